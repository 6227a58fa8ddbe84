"""The hub: one frame a class and beat, nothing to a class that may not have it, nobody loses a number."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from chat.comments import Comments
from chat.polls import Polls
from live import protocol as wire
from live.hub import (
    CACHED_MAX,
    FRAME_BYTES_MAX,
    NOTHING,
    RECENT_SHOWN,
    REPLAY_BYTES_MAX,
    WRITES_PER_STEP,
    ShowHub,
    beat_s,
)
from live.log import Changes, Entry, Part, ShowLog, State
from live.lua import Scripts
from live.metrics import Metrics
from live.socket import DROP, SKIP_TRANSIENT, STATE_ONLY
from membership.actor import PERMISSIONS, Actor, Facts, MemberId, PlanId, ShowId, new_id
from membership.audience import Audience, ShowAudiences
from membership.refusal import NotFound
from tests.conftest import MakeShow, TransactionFactory
from tests.live.recording import Client, Watcher

pytestmark = pytest.mark.anyio

GUEST = Actor(kind="viewer", id="g_1")
HOST = Actor(kind="staff", id="s", name="小禾", role="host", permissions=PERMISSIONS["host"])
MEMBER = Actor(
    kind="viewer",
    id="m_1",
    name="李四",
    facts=Facts(member=MemberId("m_1"), registered=True, plans=frozenset({PlanId("p")})),
)


def changes(seq: int = 0, **over: Any) -> Changes:
    return Changes(
        **{
            "version": 0,
            "seq": seq,
            "epoch": "e1",
            "generation": "1",
            "status": "live",
            "poll": "",
            "audiences": [],
            "room_audience": Audience(),
            "states": [],
            "entries": [],
            **over,
        }
    )


def entry(seq: int, bit: int = 0, text: str = "hello", **over: Any) -> Entry:
    event = msgspec.json.encode({"type": "comment.posted", "text": text})
    return Entry(
        **{"seq": seq, "event": event, "bit": bit, "version": 0, "urgent": False, "redacts": None, **over}
    )


def make_hub(seq: int = 0, **over: Any) -> ShowHub:
    return ShowHub(ShowId("show"), changes(seq, **over), time.monotonic, Metrics())


def enter(hub: ShowHub, actor: Actor) -> Watcher:
    watcher = Watcher(hub.show, actor)
    hub.enter(watcher.socket)
    return watcher


async def flushed(hub: ShowHub) -> None:
    """Until everything received is in a frame."""
    await asyncio.wait_for(_flushed(hub), 5)


async def _flushed(hub: ShowHub) -> None:
    while hub.sent < hub.seq or hub._changed or hub._unsorted or hub._flushing:
        await asyncio.sleep(0.001)


def test_the_beat_grows_with_the_show() -> None:
    assert beat_s(1) == beat_s(500) == 0.05
    assert beat_s(1_000) == 0.1
    assert beat_s(2_500) == beat_s(100_000) == 0.25
    assert beat_s(500, took_s=0.06) == 0.12  # twice what writing the last one took
    assert beat_s(1_000, per_s=200) == pytest.approx(0.15)  # many events: fewer, longer frames
    assert beat_s(10, per_s=200) == 0.05


def test_a_frame_of_any_size_has_the_right_header() -> None:
    for size in (0, 125, 126, 65_535, 65_536):
        made = wire.frame(b"x" * size)
        head = {True: 2, False: 4 if size < 65_536 else 10}[size < 126]
        assert len(made) == size + head
        assert made[0] == 0x81


async def test_a_class_gets_only_what_its_audiences_may_have_and_ranges_stay_whole() -> None:
    hub = make_hub()
    guest, member, staff = enter(hub, GUEST), enter(hub, MEMBER), enter(hub, HOST)
    hub.receive([entry(1, text="for all"), entry(2, bit=1, text="SECRET"), entry(3, bit=8, text="STAFF")])
    await flushed(hub)
    assert b"SECRET" not in guest.bytes
    assert b"STAFF" not in guest.bytes + member.bytes
    assert [m["seq"] for m in guest.numbered()] == [1]
    assert [m["seq"] for m in member.numbered()] == [1, 2]
    assert [m["seq"] for m in staff.numbered()] == [1, 2, 3]
    for watcher in (guest, member, staff):
        assert watcher.messages()[0] == {"type": "range", "epoch": "e1", "from": 1, "to": 3}


async def test_viewers_of_one_class_share_the_same_bytes() -> None:
    hub = make_hub()
    watchers = [enter(hub, GUEST) for _ in range(3)]
    hub.receive([entry(1)])
    await flushed(hub)
    assert len({id(watcher.transport.frames[0]) for watcher in watchers}) == 1


async def test_a_state_shows_each_class_its_own_parts() -> None:
    state = State(
        key="offer:1",
        version=1,
        parts=(Part(a=0, d={"list_fen": 12800}, counts=("sold",)), Part(a=1, d={"secret_fen": 10900})),
        counts={"sold": 3, "held": 2},
    )
    hub = make_hub(states=[state])
    assert state.seen_by(0b1) == {"list_fen": 12800, "counts": {"sold": 3}}
    assert state.seen_by(0b11) == {"list_fen": 12800, "secret_fen": 10900, "counts": {"sold": 3}}
    only_members = State(key="offer:2", version=2, parts=(Part(a=1, d={"x": 1}),), counts={})
    guest, member = enter(hub, GUEST), enter(hub, MEMBER)
    hub.apply(changes(version=2, states=[only_members]))
    await flushed(hub)
    assert guest.transport.frames == []
    assert member.messages() == [{"type": "state", "key": "offer:2", "version": 2, "data": {"x": 1}}]
    assert b"offer:2" not in msgspec.json.encode(hub.states_for(0b1))


async def test_a_state_that_is_gone_is_named_only_to_classes_that_had_it() -> None:
    only_members = State(key="offer:2", version=2, parts=(Part(a=1, d={"x": 1}),), counts={})
    for_all = State(key="offer:1", version=1, parts=(Part(a=0, d={"x": 1}),), counts={})
    hub = make_hub(states=[for_all, only_members])
    guest, member = enter(hub, GUEST), enter(hub, MEMBER)
    for_few = State(key="offer:1", version=4, parts=(Part(a=1, d={"x": 1}),), counts={})
    hub.apply(changes(version=4, states=[State("offer:2", 3, (), {}), for_few]))
    await flushed(hub)
    assert b"offer:2" not in guest.bytes
    assert [(m["key"], m["data"]) for m in guest.messages()] == [("offer:1", None)]
    assert {m["key"]: m["data"] for m in member.messages()} == {"offer:1": {"x": 1}, "offer:2": None}
    hub.apply(changes(version=5, states=[State("offer:1", 5, (), {})]))
    await flushed(hub)
    assert len(guest.messages()) == 1


async def test_who_leaves_the_class_while_a_state_goes_is_told_that_it_is_gone() -> None:
    hub = make_hub(states=[State("offer:2", 1, (Part(a=1, d={"x": 1}),), {})])
    member = enter(hub, MEMBER)
    member.socket.joined = True
    hub.apply(changes(version=2, states=[State("offer:2", 2, (), {})]))
    member.socket.actor = GUEST
    hub.regroup(member.socket)
    await flushed(hub)
    assert [(m["key"], m["data"]) for m in member.messages()] == [("offer:2", None)]


async def test_a_missing_number_is_noticed() -> None:
    hub = make_hub()
    assert hub.receive([entry(1)])
    assert not hub.receive([entry(3)])
    assert hub.receive([entry(1), entry(2), entry(3)])
    assert hub.seq == 3
    await flushed(hub)


async def test_an_urgent_event_cuts_the_beat_short() -> None:
    hub = make_hub()
    watcher = enter(hub, GUEST)
    hub.receive([entry(1)])
    await flushed(hub)
    hub.receive([entry(2)])  # waits for the beat
    await asyncio.sleep(0)
    assert [m["seq"] for m in watcher.numbered()] == [1]
    hub.receive([entry(3, urgent=True)])
    for _ in range(5):
        await asyncio.sleep(0)
    await flushed(hub)
    assert [[m["seq"] for m in frame if "seq" in m] for frame in watcher.frames()] == [[1], [2, 3]]


async def test_a_slow_viewer_skips_what_is_of_the_moment_then_events_and_is_healed_from_the_ring() -> None:
    hub = make_hub()
    slow, fast = enter(hub, GUEST), enter(hub, GUEST)
    slow.transport.waiting = SKIP_TRANSIENT + 1
    presence = State(
        key="presence", version=1, parts=(Part(a=0, counts=("viewers",)),), counts={"viewers": 2}
    )
    hub.apply(changes(version=1, states=[presence]))
    await flushed(hub)
    assert slow.transport.frames == []
    assert len(fast.transport.frames) == 1
    slow.transport.waiting = STATE_ONLY + 1
    for seq in range(1, 6):
        hub.receive([entry(seq)])
        await flushed(hub)
    assert slow.transport.frames == []
    offer = State(key="offer:1", version=2, parts=(Part(a=0, d={"left": 3}),), counts={})
    hub.apply(changes(version=2, states=[offer]))
    await flushed(hub)
    assert [m["key"] for m in slow.messages()] == ["offer:1"]  # states still pass
    slow.transport.waiting = 0
    assert hub.heal(slow.socket)
    assert [m["seq"] for m in slow.numbered()] == [1, 2, 3, 4, 5]
    hub.receive([entry(6)])
    await flushed(hub)
    client = Client("e1", 0, [], [])
    for message in slow.messages():
        client.apply(message)
    assert client.seq == 6
    assert client.states["presence"][1] == {"counts": {"viewers": 2}}


async def test_a_slow_viewer_is_told_what_went_while_it_was_skipped() -> None:
    offer = State(key="offer:1", version=1, parts=(Part(a=0, d={"left": 3}),), counts={})
    secret = State(key="offer:2", version=1, parts=(Part(a=1, d={"left": 3}),), counts={})
    hub = make_hub(states=[offer, secret], version=1)
    slow = enter(hub, GUEST)
    slow.transport.waiting = STATE_ONLY + 1
    hub.receive([entry(1)])
    hub.apply(changes(version=2, states=[State("offer:1", 2, (), {}), State("offer:2", 2, (), {})]))
    await flushed(hub)
    assert slow.transport.frames == []
    slow.transport.waiting = 0
    assert hub.heal(slow.socket)
    assert [(m["key"], m["data"]) for m in slow.messages() if m["type"] == "state"] == [("offer:1", None)]


async def test_a_viewer_over_the_last_mark_is_closed_as_slow() -> None:
    hub = make_hub()
    slow = enter(hub, GUEST)
    slow.transport.waiting = DROP + 1
    hub.receive([entry(1)])
    await flushed(hub)
    assert slow.node.closes == [wire.SLOW]


async def test_a_viewer_healed_while_a_frame_is_on_its_way_gets_nothing_twice() -> None:
    hub = make_hub()
    watcher = enter(hub, GUEST)
    hub.receive([entry(1)])
    await flushed(hub)
    watcher.transport.waiting = STATE_ONLY + 1
    hub.receive([entry(2)])
    await flushed(hub)
    watcher.transport.waiting = 0
    hub.receive([entry(3)])
    hub._start_flush()
    hub.sent = 3  # as the flush sets it before it writes
    hub.heal(watcher.socket)
    await flushed(hub)
    assert [m["seq"] for m in watcher.numbered()] == [1, 2, 3]


async def test_a_replay_that_is_too_long_is_none_so_that_a_snapshot_is_sent() -> None:
    hub = make_hub()
    hub.receive([entry(seq, text="x" * 2_000) for seq in range(1, 101)])
    await flushed(hub)
    assert hub.replay(0b1, 90) is not None
    assert hub.replay(0b1, 0) is None
    assert REPLAY_BYTES_MAX < 100 * 2_000
    assert hub.replay(0b1, 100) is NOTHING
    assert hub.replay(0b1, 101) is None


async def test_a_beat_that_brings_more_than_a_frame_may_hold_is_told_in_several_joined_ranges() -> None:
    hub = make_hub()
    watcher = enter(hub, GUEST)
    state = State(key="offer:1", version=1, parts=(Part(a=0, d={"left": 3}),), counts={})
    hub.receive([entry(seq, text="x" * 2_000) for seq in range(1, 101)])
    hub.apply(changes(version=1, states=[state]))
    await flushed(hub)
    assert len(watcher.transport.frames) == 4
    assert all(len(frame) <= FRAME_BYTES_MAX + 10_000 for frame in watcher.transport.frames)
    client = Client("e1", 0, [], [])
    for message in watcher.messages():
        client.apply(message)
    assert client.seq == 100
    assert sorted(client.comments) == list(range(1, 101))
    assert client.states["offer:1"][1] == {"left": 3}


async def test_a_sampled_comment_is_left_out_of_frames_snapshots_and_replays_and_ranges_stay_whole() -> None:
    hub = ShowHub(ShowId("show"), changes(), time.monotonic, Metrics(), comments_per_s=10)
    watcher = enter(hub, GUEST)
    hub.receive([entry(seq, rank=4) for seq in range(1, 101)])
    await flushed(hub)
    shown = [m["seq"] for m in watcher.numbered()]
    assert len(shown) == 10
    assert watcher.messages()[0] == {"type": "range", "epoch": "e1", "from": 1, "to": 100}
    assert [msgspec.json.decode(raw)["seq"] for raw in hub.comments_for(0b1)] == shown
    replay = hub.replay(0b1, 0)
    assert replay is not None
    replayed = msgspec.json.decode(replay.plain[4:])
    assert [m["seq"] for m in replayed if "seq" in m] == shown


async def test_a_narrowed_room_closes_those_who_may_not_stay_and_nobody_else() -> None:
    hub = make_hub()
    guest, member, staff = enter(hub, GUEST), enter(hub, MEMBER), enter(hub, HOST)
    hub.apply(changes(version=1, room_audience=Audience("plan_members")))
    await flushed(hub)
    assert (guest.node.closes, member.node.closes, staff.node.closes) == ([wire.MEMBERS_ONLY], [], [])


async def test_a_state_of_this_node_alone_survives_a_reload_and_is_told_when_it_is_gone() -> None:
    hub = make_hub()
    watcher = enter(hub, GUEST)
    hub.tell_local("log", None)
    hub.tell_local("log", {"up": False, "since": 5})
    await flushed(hub)
    hub.load(changes(seq=9, epoch="e2"))
    assert [msgspec.json.decode(raw)["key"] for raw in hub.states_for(0b1)] == ["log"]
    hub.tell_local("log", None)
    await flushed(hub)
    told = [m for m in watcher.messages() if m["type"] == "state"]
    assert [m["data"] for m in told] == [{"up": False, "since": 5}, None]
    assert told[0]["version"] < told[1]["version"]


async def test_under_pressure_likes_are_not_told_and_the_latest_number_follows_when_it_is_over() -> None:
    hub = make_hub()
    watcher = enter(hub, GUEST)
    hub.pressure.level = 1

    def likes(version: int, count: int) -> Changes:
        state = State("reactions", version, (Part(a=0, counts=("*",)),), {"like": count})
        return changes(version=version, states=[state])

    offer = State("offer:1", 3, (Part(a=0, d={"left": 1}),), {})
    hub.apply(likes(1, 10))
    hub.apply(likes(2, 20))
    hub.apply(changes(version=3, states=[offer]))
    await flushed(hub)
    assert [m["key"] for m in watcher.messages()] == ["offer:1"]
    hub.pressure.level = 0
    hub.tell_again(["reactions", "presence"])
    await flushed(hub)
    assert watcher.messages()[-1]["data"] == {"counts": {"like": 20}}


async def test_one_show_writes_a_step_at_a_time_so_that_ten_at_once_do_not_stall_the_loop() -> None:
    turn = asyncio.Lock()
    hubs = [ShowHub(ShowId(f"s{n}"), changes(), time.monotonic, Metrics(), turn=turn) for n in range(10)]
    watchers = [[enter(hub, GUEST) for _ in range(WRITES_PER_STEP + 1)] for hub in hubs]
    written: list[int] = []

    async def look() -> None:
        while sum(written) < len(hubs) * (WRITES_PER_STEP + 1):
            before = sum(written)
            await asyncio.sleep(0)
            written.append(sum(len(w.transport.frames) for found in watchers for w in found) - before)

    for hub in hubs:
        hub.receive([entry(1, urgent=True)])
    await asyncio.wait_for(look(), 10)
    assert max(written) <= WRITES_PER_STEP


async def test_who_keeps_up_is_written_to_without_another_look_and_who_slows_down_is_looked_at_again() -> (
    None
):
    hub = make_hub()
    watcher = enter(hub, GUEST)
    assert not watcher.socket.easy
    hub.receive([entry(1)])
    await flushed(hub)
    assert watcher.socket.easy
    watcher.transport.waiting = STATE_ONLY + 1
    assert not watcher.socket.easy
    hub.receive([entry(2)])
    await flushed(hub)
    assert [m["seq"] for m in watcher.numbered()] == [1]
    watcher.transport.waiting = 0
    hub.receive([entry(3)])
    await flushed(hub)
    hub.receive([entry(4)])
    await flushed(hub)
    assert [m["seq"] for m in watcher.numbered()] == [1, 2, 3, 4]
    assert watcher.socket.easy


async def test_who_moves_to_another_class_while_a_frame_is_on_its_way_gets_nothing_of_the_class_it_left() -> (
    None
):
    offer = State("offer:1", 1, (Part(a=0, d={"list": 128}), Part(a=1, d={"member": 109})), {})
    hub = make_hub(states=[offer], version=1)
    watcher = enter(hub, MEMBER)
    hub.receive([entry(1)])
    await flushed(hub)
    assert watcher.socket.easy
    newer = State("offer:1", 2, (Part(a=0, d={"list": 128}), Part(a=1, d={"member": 99})), {})
    hub.apply(changes(seq=1, version=2, states=[newer]))
    hub.receive([entry(2), entry(3, bit=1, text="MEMBERS")])
    async with hub._turn:  # the frames are made, the writing waits
        hub._start_flush()
        while hub.sent < 3:
            await asyncio.sleep(0)
        watcher.socket.actor = GUEST
        hub.regroup(watcher.socket)
        before = len(watcher.transport.frames)
    await flushed(hub)
    after = b"".join(watcher.transport.frames[before:])
    assert b"99" not in after
    assert b"MEMBERS" not in after
    client = Client("e1", 0, [], [])
    for message in watcher.messages():
        client.apply(message)
    assert (client.seq, sorted(client.comments)) == (3, [1, 2])
    assert client.states["offer:1"] == (2, {"list": 128})


async def test_a_poll_that_opens_before_all_were_sorted_leaves_nobody_in_a_room_that_was_narrowed() -> None:
    hub = make_hub()
    guest, member = enter(hub, GUEST), enter(hub, MEMBER)
    narrow = Audience("plan_members")
    hub.apply(changes(version=1, room_audience=narrow))
    hub.apply(changes(version=2, room_audience=narrow, poll="p1"))
    await flushed(hub)
    assert (guest.node.closes, member.node.closes) == ([wire.MEMBERS_ONLY], [])


async def test_who_claims_to_be_far_ahead_hurries_nobodys_beat() -> None:
    hub = make_hub()
    watchers = [enter(hub, GUEST) for _ in range(3)]
    ahead = asyncio.create_task(hub.reached(1 << 50, 0.3))
    await asyncio.sleep(0)
    for seq in range(1, 11):
        hub.receive([entry(seq)])
        await asyncio.sleep(0.001)
    await flushed(hub)
    assert len(watchers[0].transport.frames) <= 3  # the first at once, the others by the beat
    assert not await ahead


async def test_a_state_of_this_node_that_is_gone_is_told_once() -> None:
    hub = make_hub()
    watcher = enter(hub, GUEST)
    hub.tell_local("sampling", {"shown_per_s": 20, "posted_per_s": 90})
    await flushed(hub)
    for _ in range(3):
        hub.tell_local("sampling", None)
        await flushed(hub)
    assert [m["data"] for m in watcher.messages()][1:] == [None]


async def test_what_was_hidden_after_it_was_read_from_the_store_is_not_replayed() -> None:
    hub = make_hub(seq=2)
    older = [entry(1, text="RUDE"), entry(2)]
    hub.receive([entry(3, redacts=1)])
    await flushed(hub)
    replay = hub.replay(0b1, 0, older)
    assert replay is not None
    assert b"RUDE" not in replay.plain


class Spoken:
    """A live show on real Redis with everything that talks in it."""

    def __init__(self, redis: Redis, scripts: Scripts, show: ShowId, tx: TransactionFactory) -> None:
        self.show, self.tx = show, tx
        self.log = ShowLog(redis, scripts)
        audiences = ShowAudiences(scripts)
        self.comments = Comments(scripts, audiences, pace_burst=10_000)
        self.polls = Polls(scripts, audiences)
        self.posted: list[int] = []
        self.poll: Any = None

    async def act(self, act: str, number: int) -> None:
        match act:
            case "comment":
                done = await self.comments.post(MEMBER, self.show, f"第{number}句")
                self.posted.append(done.seq)
            case "hide" if self.posted:
                await self.comments.hide(HOST, self.show, self.posted[number % len(self.posted)])
            case "pin" if self.posted:
                with contextlib.suppress(NotFound):  # it was hidden
                    await self.comments.pin(HOST, self.show, self.posted[number % len(self.posted)])
            case "announce":
                await self.comments.announce(HOST, self.show, f"公告{number}")
            case "open" if self.poll is None:
                async with self.tx() as t:
                    self.poll = await self.polls.open(t, HOST, self.show, "红枣还是山药?", ["红枣", "山药"])
            case "vote" if self.poll is not None:
                voter = Actor(
                    kind="viewer", id=new_id(), facts=Facts(member=MemberId(new_id()), registered=True)
                )
                await self.polls.cast(voter, self.show, self.poll.id, [number % 2], f"k{number}")
            case "close" if self.poll is not None:
                async with self.tx() as t:
                    await self.polls.close(t, HOST, self.show, self.poll.id)
                self.poll = None


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["comment", "comment", "hide", "pin", "announce", "open", "vote", "vote", "close"]),
        st.integers(0, 50),
    ),
    min_size=1,
    max_size=25,
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(before=ACTS, after=ACTS, beats=st.integers(1, 6))
async def test_an_old_snapshot_and_the_events_since_make_the_new_snapshot(
    redis: Redis,
    scripts: Scripts,
    make_show: MakeShow,
    tx: TransactionFactory,
    before: list[tuple[str, int]],
    after: list[tuple[str, int]],
    beats: int,
) -> None:
    spoken = Spoken(redis, scripts, await make_show(), tx)
    for act, number in before:
        await spoken.act(act, number)
    hub = ShowHub(spoken.show, await spoken.log.changes(spoken.show, -1, 200), time.monotonic, Metrics())
    watchers = {actor.id: enter(hub, actor) for actor in (GUEST, MEMBER, HOST)}
    clients = {
        who: Client(
            hub.epoch,
            hub.sent,
            msgspec.json.decode(msgspec.json.encode(hub.states_for(watcher.socket.mask))),
            msgspec.json.decode(msgspec.json.encode(hub.comments_for(watcher.socket.mask))),
        )
        for who, watcher in watchers.items()
    }
    for index, (act, number) in enumerate(after):
        await spoken.act(act, number)
        if index % beats == 0 or index == len(after) - 1:
            hub.apply(await spoken.log.changes(spoken.show, hub.version))
            assert hub.receive(await spoken.log.between(spoken.show, hub.seq + 1, 1 << 60))
            await flushed(hub)
    fresh = await spoken.log.changes(spoken.show, -1, 200)
    again = ShowHub(spoken.show, fresh, time.monotonic, Metrics())
    for who, watcher in watchers.items():
        client = clients[who]
        for message in watcher.messages():
            client.apply(message)
        mask = watcher.socket.mask
        states = {
            state["key"]: (state["version"], state["data"]) for state in _decoded(again.states_for(mask))
        }
        assert client.states == states
        shown = _decoded(again.comments_for(mask))
        assert [client.comments[seq] for seq in sorted(client.comments)][-RECENT_SHOWN:] == shown
        assert client.seq == fresh.seq


def _decoded(raw: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(raw))


async def test_an_answer_that_comes_late_brings_no_older_state_back() -> None:
    """Two reads under way at once: what was read before what is known has nothing new."""
    hub = make_hub()

    def read(version: int, status: str) -> Changes:
        state = State("offer:o", version, (Part(0, {"status": status}),), {})
        return changes(version=version, states=[state])

    hub.apply(read(9, "sold_out"))
    hub.apply(read(7, "open"))
    assert hub.version == 9
    assert hub.states["offer:o"].seen_by(1) == {"status": "sold_out"}


async def test_replays_kept_for_a_quiet_show_are_bounded() -> None:
    hub = make_hub()
    hub.receive([entry(seq) for seq in range(1, 401)])
    await flushed(hub)
    for since in range(400):
        assert hub.replay(1, since) is not None
    assert len(hub._cache) <= CACHED_MAX
