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
    play(page, 'await begin({ token: "bad" }); now().drop(4501); await back();')
    assert play(page, "return now().sent[0].token;") is None


def test_it_comes_back_somewhere_in_the_servers_window_and_slower_each_time(page: Page) -> None:
    waits = play(
        page,
        """await begin(); client.stop(); client.window = [500, 20000];
        const draw = (code, attempts) => {
          client.attempts = attempts;
          return Array.from({ length: 300 }, () => client._jitter(code));
        };
        return { told: draw(4001, 0), first: draw(1006, 0), later: draw(4102, 9) };""",
    )
    for drawn in waits.values():
        assert min(drawn) >= 500 and max(drawn) <= 20_000
    assert max(waits["told"]) - min(waits["told"]) > 15_000  # full jitter over the whole window
    assert max(waits["first"]) <= 1_000 and max(waits["later"]) > 15_000


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
