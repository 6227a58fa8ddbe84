"""The wire client in a real browser, against a socket that plays the server's part.

What viewers rely on after a tunnel: nothing missed, nothing twice, no act done again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route

from live.pages import STATIC

# Stands in for the browser's WebSocket: keeps what was sent, and says what the test tells it to.
STAGE = """
window.sockets = [];
window.WebSocket = class {
  static OPEN = 1;
  constructor(url, protocol) {
    Object.assign(this, { url, protocol, sent: [], readyState: 0 });
    sockets.push(this);
    setTimeout(() => {
      if (this.readyState !== 0) return;
      this.readyState = 1;
      this.onopen?.();
    });
  }
  send(text) { this.sent.push(JSON.parse(text)); }
  close(code = 1006) {
    if (this.readyState === 3) return;
    this.readyState = 3;
    setTimeout(() => this.onclose?.({ code, reason: "" }));
  }
  say(...messages) { this.onmessage({ data: JSON.stringify(messages) }); }
  drop(code) {
    this.readyState = 3;
    this.onclose({ code, reason: "" });
  }
};
window.heard = { events: [], states: [], status: [], welcomes: [], personal: [] };
window.answers = [];
window.now = () => sockets[sockets.length - 1];
window.until = async (test) => {
  for (let i = 0; i < 400; i++) {
    if (test()) return;
    await new Promise((go) => setTimeout(go, 10));
  }
  throw new Error("waited in vain for " + test);
};
window.back = () => until(() => sockets.length === 2 && now().sent.length);
window.welcome = (more) => ({
  type: "welcome", id: now().sent[0].id, epoch: "e1", seq: 10, recovered: false, you: {}, show: {},
  states: [], comments: [], time: Date.now(), ping_s: 25, reconnect_ms: [1, 20], ...more,
});
window.event_ = (seq) => ({ type: "comment.posted", seq, text: String(seq) });
window.range = (from, to, epoch = "e1") => ({ type: "range", epoch, from, to });
window.state = (key, version, data) => ({ type: "state", key, version, data });
window.begin = async (options) => {
  const { ShowSocket } = await import("/socket.js");
  window.client = new ShowSocket("show", {
    event: (event) => heard.events.push(event.seq),
    states: (changed) => heard.states.push(Object.fromEntries(changed)),
    status: (name, detail) => heard.status.push([name, detail]),
    welcome: (message, fresh) => heard.welcomes.push(fresh),
    personal: (message) => heard.personal.push(message.type),
  }, options);
  client.start();
  await until(() => now()?.sent.length);
};
void 0;
"""


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context()

    def serve(route: Route) -> None:
        if route.request.url.endswith("/socket.js"):
            route.fulfill(body=(STATIC / "socket.js").read_text("utf-8"), content_type="text/javascript")
        else:
            route.fulfill(body="<!doctype html><title>stage</title>", content_type="text/html")

    made.route("http://stage.test/**", serve)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A tab of its own: what a tab keeps is kept apart."""
    opened = context.new_page()
    opened.goto("http://stage.test/")
    opened.evaluate(STAGE)
    yield opened
    opened.close()


def play(page: Page, script: str) -> Any:
    return page.evaluate(f"async () => {{ {script} }}")


def test_hello_names_the_protocol_and_the_token_stays_out_of_the_address(page: Page) -> None:
    play(page, 'await begin({ token: "jwt" });')
    sent = play(page, "return [now().url, now().protocol, now().sent[0]];")
    assert sent[:2] == ["ws://stage.test/v1/shows/show/socket", "companion.v1"]
    assert sent[2] == {"type": "hello", "id": 1, "token": "jwt", "since": None}


def test_every_event_comes_once_and_in_order(page: Page) -> None:
    play(
        page,
        """await begin(); now().say(welcome());
        now().say(range(11, 13), event_(11), event_(13));
        now().say(range(12, 15), event_(12), event_(13), event_(14), event_(15));
        now().say(event_(99));
        now().say(range(16, 20));
        now().say(range(21, 21), event_(21));""",
    )
    assert play(page, "return heard.events;") == [11, 13, 14, 15, 21]
    assert play(page, "return [client.seq, now().sent.length];") == [21, 1]


def test_a_hole_asks_for_a_resync_once_and_nothing_is_taken_until_it_is_filled(page: Page) -> None:
    play(
        page,
        """await begin(); now().say(welcome());
        now().say(range(13, 14), event_(13), event_(14));
        now().say(range(15, 15), event_(15));
        now().say({ type: "gap" });""",
    )
    asked = play(page, "return now().sent.slice(1);")
    assert [(one["type"], one["since"]) for one in asked] == [("resync", {"epoch": "e1", "seq": 10})]
    play(
        page,
        f"""now().say(welcome({{ id: {asked[0]["id"]}, recovered: true, seq: 10 }}));
        now().say(range(11, 15), ...[11, 12, 13, 14, 15].map(event_));""",
    )
    assert play(page, "return heard.events;") == [11, 12, 13, 14, 15]
    assert play(page, "return heard.welcomes;") == [True, False]


def test_after_a_cut_it_says_where_it_was_and_a_lost_log_begins_anew(page: Page) -> None:
    play(
        page,
        """await begin(); now().say(welcome({ states: [state("a", 9, { x: 1 })] }));
        now().say(range(11, 11), event_(11)); now().drop(1006);
        await back();""",
    )
    assert play(page, "return now().sent[0].since;") == {"epoch": "e1", "seq": 11}
    play(
        page,
        """now().say(welcome({ epoch: "e2", seq: 3, states: [state("a", 1, { x: 2 })] }));
        now().say(range(4, 4, "e2"), event_(4));""",
    )
    assert play(page, "return [heard.events, heard.welcomes, heard.states];") == [
        [11, 4],
        [True, True],
        [{"a": {"x": 1}}, {"a": {"x": 2}}],
    ]
    names = [name for name, _ in play(page, "return heard.status;")]
    assert names == ["connecting", "open", "lost", "connecting", "open"]


def test_a_state_never_goes_back_and_a_whole_snapshot_drops_what_it_lacks(page: Page) -> None:
    play(
        page,
        """await begin();
        now().say(welcome({ states: [state("offer:1", 5, { p: 1 }), state("poll:1", 5, {})] }));
        now().say(state("offer:1", 4, { p: 0 }));
        now().say(state("offer:1", 5, { p: 1, member: 2 }));
        now().say(state("offer:1", 6, null));
        now().drop(4104); await back();
        now().say(welcome({ states: [state("offer:2", 7, {})] }));""",
    )
    assert play(page, "return heard.states;") == [
        {"offer:1": {"p": 1}, "poll:1": {}},
        {"offer:1": {"p": 1, "member": 2}},  # same version, another class
        {"offer:1": None},
        {"offer:1": None, "poll:1": None, "offer:2": {}},
    ]


def test_a_keyed_command_survives_a_cut_and_is_answered_once(page: Page) -> None:
    play(
        page,
        """await begin({ store: sessionStorage }); now().say(welcome());
        client.send("benefit.claim", { benefit: "b" }, { key: "k1" }).then((ok) => answers.push(ok.rank));
        client.send("reaction.send", { kind: "like" }).catch((error) => answers.push(error.code));
        now().drop(1006); await back(); now().say(welcome());""",
    )
    again = play(page, 'return now().sent.filter((one) => one.type === "benefit.claim");')
    assert [one["key"] for one in again] == ["k1"]
    play(page, f'now().say({{ type: "ok", id: {again[0]["id"]}, rank: 37 }});')
    play(page, "await until(() => answers.length === 2);")
    assert play(page, "return answers;") == ["disconnected", 37]
    assert play(page, 'return sessionStorage.getItem("pending:show");') is None


def test_unavailable_means_nothing_was_decided_so_the_same_key_goes_again(page: Page) -> None:
    play(
        page,
        """await begin(); now().say(welcome());
        const no = (id, code) => now().say({ type: "refused", id, code, message: "", retry_ms: 5 });
        client.send("ballot.cast", { poll: "p" }, { key: "k2" }).catch((error) => answers.push(error.code));
        no(now().sent[1].id, "unavailable");
        await until(() => now().sent.length === 3);
        no(now().sent[2].id, "already_voted");
        await until(() => answers.length);""",
    )
    sent = play(page, "return now().sent.slice(1);")
    assert [one["key"] for one in sent] == ["k2", "k2"] and sent[0]["id"] != sent[1]["id"]
    assert play(page, "return answers;") == ["already_voted"]


def test_an_unanswered_command_is_sent_after_a_reload(page: Page) -> None:
    kept = [{"body": {"type": "comment.post", "text": "在", "key": "k3"}, "made": 0}]
    play(
        page,
        f"""const kept = {json.dumps(kept)}; kept[0].made = Date.now(); const old = structuredClone(kept[0]);
        old.made -= 600000; old.body.key = "old";
        sessionStorage.setItem("pending:show", JSON.stringify([...kept, old]));
        await begin({{ store: sessionStorage }}); now().say(welcome());""",
    )
    assert [one["key"] for one in play(page, "return now().sent.slice(1);")] == ["k3"]


@pytest.mark.parametrize("code", [4502, 4503, 4506, 4508, 4999])
def test_a_final_close_is_final(page: Page, code: int) -> None:
    play(page, f"await begin(); now().say(welcome()); now().drop({code});")
    play(page, "await new Promise((go) => setTimeout(go, 120));")  # six times the longest wait to come back
    last = play(page, "return [sockets.length, heard.status.at(-1)];")
    assert last == [1, ["stopped", {"code": code, "reason": ""}]]


def test_a_token_that_is_no_good_is_dropped_and_the_cookie_speaks(page: Page) -> None:
    play(page, 'await begin({ token: "bad" }); client.window = [1, 20]; now().drop(4501); await back();')
    assert play(page, "return now().sent[0].token;") is None


# The same draws each time: a linear congruential generator, spread well enough for a few hundred draws.
SEEDED = "((seed) => () => (seed = (seed * 1664525 + 1013904223) % 2 ** 32) / 2 ** 32)(7)"


def waits(page: Page, code: int, failures: int, window: str = "[500, 4000]") -> list[float]:
    """How long it would wait, 300 times, after this close and so many failures in a row."""
    drawn: list[float] = play(
        page,
        f"""await begin({{ random: {SEEDED} }}); client.stop(); client.window = {window};
        client.attempts = {failures};
        return Array.from({{ length: 300 }}, () => client._jitter({code}));""",
    )
    return drawn


@pytest.mark.parametrize("code", [4001, 4099, 1006, 1012, 4102, 4107])
def test_the_first_return_is_spread_over_the_servers_whole_window(page: Page, code: int) -> None:
    drawn = waits(page, code, 0)
    assert min(drawn) >= 500 and max(drawn) <= 4000
    quarters = [sum(500 + 875 * n <= wait < 500 + 875 * (n + 1) for wait in drawn) for n in range(4)]
    assert min(quarters) > 45  # of 75


@pytest.mark.parametrize("code", [1000, 1006, 1012, 3000, 4100, 4104, 4499])
def test_each_failure_in_a_row_opens_the_window_up_to_its_end(page: Page, code: int) -> None:
    longest = [max(waits(page, code, failures)) for failures in (1, 2, 9, 30)]
    assert 7_000 < longest[0] <= 8_000 and 14_000 < longest[1] <= 16_000
    assert 18_000 < longest[2] <= 20_000 and 18_000 < longest[3] <= 20_000


def test_before_the_server_has_said_its_window_a_failed_start_is_tried_again_soon_then_later(
    page: Page,
) -> None:
    play(page, "await begin(); client.stop(); client.random = () => 1;")
    wait = "client.attempts = {}; return client._jitter(1006);"
    assert [play(page, wait.format(failures)) for failures in (0, 1, 2, 9)] == [2_000, 4_000, 8_000, 20_000]


def test_who_is_sent_elsewhere_is_let_in_at_once_however_often(page: Page) -> None:
    assert max(waits(page, 4001, 9)) <= 4000


def test_a_window_longer_than_the_back_off_is_kept(page: Page) -> None:
    assert 55_000 < max(waits(page, 1006, 5, "[500, 60000]")) <= 60_000


def test_a_page_of_staff_may_shorten_the_window_and_still_backs_off(page: Page) -> None:
    play(page, "await begin({ window_max_ms: 2000 }); now().say(welcome({ reconnect_ms: [500, 20000] }));")
    assert play(page, "return client.window;") == [500, 2000]
    assert play(page, "client.attempts = 9; client.random = () => 1; return client._jitter(1006);") == 20_000


def test_a_refused_upgrade_counts_as_a_failure_and_being_sent_elsewhere_does_not(page: Page) -> None:
    play(page, "await begin(); now().say(welcome()); now().drop(4001); await back();")
    assert play(page, "return client.attempts;") == 0
    play(page, "now().drop(1006); await until(() => sockets.length === 3);")  # as a 503 looks from a page
    assert play(page, "return client.attempts;") == 1
    play(page, "await until(() => now().sent.length); now().say(welcome()); now().drop(4104);")
    assert play(page, "return client.attempts;") == 2  # seconds of health forgive nothing


def test_half_a_minute_of_health_forgives_what_failed_before(page: Page) -> None:
    play(page, "await begin(); now().say(welcome()); client.attempts = 5; client.opened_at -= 29000;")
    play(page, "now().drop(1006); client._clearTimers();")
    assert play(page, "return client.attempts;") == 6
    play(page, "client._connect(); await until(() => now().sent.length); now().say(welcome());")
    play(page, "client.opened_at -= 31000; now().drop(1006);")
    assert play(page, "return client.attempts;") == 1


def test_a_hint_before_the_drain_sets_the_window_and_nonsense_does_not(page: Page) -> None:
    play(page, "await begin(); now().say(welcome()); client.random = () => 1;")
    for nonsense in ("null", "7", "[]", "[5]", "[9, 1]", "[-5, 10]", '["1", 2]', "[0, 1e999]"):
        play(page, f'now().say({{ type: "reconnect", reconnect_ms: {nonsense} }});')
        assert play(page, "return client.window;") == [1, 20]
    play(
        page,
        """now().say({ type: "reconnect", reconnect_ms: [3000, 9000] });
        window.left_at = client.clock.now(); now().drop(4001);""",
    )
    name, lost = play(page, "return heard.status.at(-1);")
    assert name == "lost" and 8_990 <= lost["retry_at"] - play(page, "return left_at;") <= 9_200


def test_back_online_it_returns_at_once_and_with_a_clean_slate(page: Page) -> None:
    play(page, "await begin(); now().say(welcome({ reconnect_ms: [20, 600000] })); client.attempts = 8;")
    page.context.set_offline(True)
    try:
        play(page, 'await until(() => heard.status.at(-1)[0] === "lost");')
        assert play(page, "return [heard.status.at(-1)[1].offline, client.attempts];") == [True, 8]
    finally:
        page.context.set_offline(False)
    play(page, "await back(); now().say(welcome());")
    assert play(page, "return client.attempts;") == 0


def test_a_close_that_no_peer_answers_is_not_waited_for(page: Page) -> None:
    """On a dead network the browser would sit in its close handshake for many seconds."""
    play(page, "await begin(); now().say(welcome()); now().close = () => {};")
    play(page, "client.heard_at = performance.now() - 60000; client._look(); await back();")
    play(page, "now().close = () => {}; now().say(welcome());")
    play(
        page, "now().onmessage({ data: '{}' }); await until(() => sockets.length === 3 && now().sent.length);"
    )
    play(page, "now().close = () => {}; now().say(welcome()); now().say({ type: 'gap' });")
    refused = '{ type: "refused", id: now().sent.at(-1).id, code: "unavailable", message: "" }'
    play(page, f"now().say({refused}); await until(() => sockets.length === 4);")
    assert play(page, "return heard.status.filter(([name]) => name === 'lost').length;") == 3


def test_ping_is_answered_and_silence_ends_the_link(page: Page) -> None:
    play(page, 'await begin(); now().say(welcome({ ping_s: 0.01 })); now().say({ type: "ping" });')
    assert play(page, "return now().sent.at(-1).type;") == "pong"
    play(page, "client.ping_ms = -9900; client._heard(); await until(() => sockets.length === 2);")


def test_what_is_no_array_ends_the_link_and_what_is_unknown_is_passed_over(page: Page) -> None:
    play(page, 'await begin(); now().say(welcome()); now().say({ type: "fortune.told", text: "rice" });')
    assert play(page, "return heard.personal;") == ["fortune.told"]
    play(page, "now().onmessage({ data: '{\"type\":' }); await until(() => sockets.length === 2);")


def test_the_servers_clock_is_learnt_from_the_shortest_trip(page: Page) -> None:
    apart = play(
        page,
        """const { ServerClock } = await import("/socket.js"); const clock = new ServerClock();
        const stamp = Date.now() + 3600000;
        clock.learn(stamp, performance.now() - 40); const near = clock.now() - stamp;
        clock.learn(stamp + 5000, performance.now() - 4000); const later = clock.now() - stamp;
        return [near, later];""",
    )
    assert all(10 <= ms <= 60 for ms in apart)
