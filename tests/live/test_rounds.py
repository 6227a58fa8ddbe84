"""The clock work: pings, pongs, tokens, stalls, the bound of all buffers, sampling told, steps told."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from live import protocol as wire
from live.joining import PING_S
from live.metrics import Metrics
from live.node import HELLO_WAIT_S
from live.pressure import Pressure
from live.rounds import PONG_WAIT_S, REFRESH_GRACE_S, Rounds
from live.socket import STALL_S
from live.wheel import Wheel
from membership.actor import Actor, ShowId
from tests.live.recording import Watcher
from tests.live.serving import Served

pytestmark = pytest.mark.anyio

GUEST = Actor(kind="viewer", id="g_1")
MB = 1_048_576


class Hall:
    """What the rounds ask of a node: sockets, a wheel, a clock that the test turns."""

    def __init__(self, buffers_max_mb: int = 16) -> None:
        self.at = 1_000.0
        self.sockets: set[Any] = set()
        self.stalled: set[Any] = set()
        self.hubs: dict[ShowId, Any] = {}
        self.buffered = 0
        self.pressure = Pressure(self.at)
        self.wheel = Wheel(self.now)
        self.metrics = Metrics()
        scripts = SimpleNamespace(load=lambda *_: None)
        self.parts = SimpleNamespace(scripts=scripts, settings=SimpleNamespace(buffers_max_mb=buffers_max_mb))
        self.dispatch = SimpleNamespace(flush=None)
        self.tail = SimpleNamespace(lag=lambda: {"p07": 0.25})
        self.rounds = Rounds(cast(Any, self), self.metrics)

    def now(self) -> float:
        return self.at

    @staticmethod
    def reconnect_ms() -> list[int]:
        return [500, 9_000]

    def enter(self, **given: Any) -> Watcher:
        watcher = Watcher(ShowId("show"), GUEST)
        socket = watcher.socket
        socket.made_at, socket.ping_at = self.at, self.at + PING_S
        watcher.node.stalled = self.stalled
        for name, value in given.items():
            setattr(socket, name, value)
        self.sockets.add(socket)
        self.wheel.put(socket, self.at)
        return watcher

    async def turn(self, seconds: float, late_s: float = 0.0) -> None:
        self.at += seconds
        self.rounds._late_s = late_s
        await self.rounds._turn()


def figure(hall: Hall, name: str, **labels: str) -> float | None:
    """An instrument's value, as /metrics would say it."""
    instruments = hall.metrics.registry
    return instruments.get_sample_value(name, labels)


def pings(watcher: Watcher) -> int:
    return sum(message["type"] == "ping" for message in watcher.messages())


async def test_who_says_no_hello_is_closed_and_who_is_being_answered_is_not() -> None:
    hall = Hall()
    silent, answered = hall.enter(joined=False), hall.enter(joined=False, joining=True)
    for _ in range(8):
        await hall.turn(1.0)
    assert hall.at > HELLO_WAIT_S
    assert (silent.node.closes, answered.node.closes) == ([wire.NO_HELLO], [])


async def test_a_viewer_is_pinged_each_period_and_closed_when_nothing_comes_back() -> None:
    hall = Hall()
    alive, gone = hall.enter(), hall.enter()
    for _ in range(int(2 * PING_S) + 2):
        await hall.turn(1.0)
        alive.socket.pinged_at = 0.0  # as any byte does
    assert pings(alive) == 2
    assert [m["reconnect_ms"] for m in alive.messages()] == [[500, 9_000]] * 2
    assert pings(gone) == 1
    assert (alive.node.closes, gone.node.closes) == ([], [wire.NO_PONG])


async def test_nobody_is_closed_for_silence_while_this_process_stood_still() -> None:
    hall = Hall()
    watcher = hall.enter()
    await hall.turn(1.0)
    await hall.turn(PING_S)
    assert pings(watcher) == 1
    await hall.turn(PONG_WAIT_S + 5, late_s=PONG_WAIT_S)
    assert watcher.node.closes == []
    assert pings(watcher) == 2  # asked again, and the answer has its time again
    await hall.turn(PONG_WAIT_S + 1)
    assert watcher.node.closes == [wire.NO_PONG]


async def test_a_token_that_ended_is_told_and_has_thirty_seconds() -> None:
    hall = Hall()
    watcher = hall.enter(expires_at=time.time() - 1)
    await hall.turn(1.0)
    assert [m["code"] for m in watcher.messages()] == ["token_expired"]
    for _ in range(int(REFRESH_GRACE_S) - 2):
        await hall.turn(1.0)
        watcher.socket.pinged_at = 0.0
    assert watcher.node.closes == []
    for _ in range(4):
        await hall.turn(1.0)
    assert watcher.node.closes == [wire.TOKEN_EXPIRED]


async def test_who_reads_nothing_for_five_seconds_is_closed_as_slow() -> None:
    hall = Hall()
    watcher = hall.enter()
    watcher.transport.waiting = 40_000
    watcher.socket.stalled_at = hall.at
    await hall.turn(STALL_S - 0.5)
    assert watcher.node.closes == []
    await hall.turn(1.0)
    assert watcher.node.closes == [wire.SLOW]


async def test_who_reads_slowly_but_reads_is_not_closed_as_slow() -> None:
    hall = Hall()
    watcher = hall.enter()
    watcher.transport.waiting = 60_000
    watcher.socket.stalled_at = hall.at
    for _ in range(20):
        watcher.transport._waiting -= 1_000
        await hall.turn(1.0)
    assert watcher.node.closes == []


async def test_over_the_bound_of_all_buffers_the_slowest_are_let_go_first() -> None:
    hall = Hall(buffers_max_mb=16)
    watchers = [hall.enter() for _ in range(40)]
    for index, watcher in enumerate(watchers):
        watcher.transport.waiting = 100_000 + index * 20_000
    total = sum(w.transport.waiting for w in watchers)
    assert total > 16 * MB
    await hall.rounds._buffers()
    closed = [index for index, watcher in enumerate(watchers) if watcher.node.closes]
    assert closed == list(range(closed[0], 40))  # the largest
    left = sum(w.transport.waiting for w in watchers[: closed[0]])
    assert 0.8 * 16 * MB < left <= 0.9 * 16 * MB
    assert hall.buffered == left
    assert figure(hall, "companion_buffered_bytes") == left
    assert figure(hall, "companion_log_lag_seconds", partition="p07") == 0.25


async def test_a_step_under_pressure_is_shown_in_the_figures_and_what_was_withheld_is_told_again() -> None:
    hall = Hall()
    told: list[Any] = []
    hall.hubs[ShowId("show")] = SimpleNamespace(tell_again=told.append)
    for _ in range(20):
        await hall.turn(0.25, late_s=0.2)
    assert hall.pressure.level >= 1
    assert len(told) == hall.pressure.level
    assert figure(hall, "companion_degraded_step") == hall.pressure.level


async def test_a_viewer_has_a_bucket_of_each_kind_so_that_claims_do_not_use_up_comments(
    served: Served,
) -> None:
    show, member = await served.make_show(), await served.member("王小明")
    seat = await served.enter(show, member)
    answers = [await seat.ask("benefit.claim", benefit="none", key=f"k{n}") for n in range(8)]
    assert [answer["code"] for answer in answers][:5] == ["not_found"] * 5
    assert "rate_limited" in [answer["code"] for answer in answers]
    assert answers[-1]["retry_ms"] == 1000
    assert (await seat.ask("comment.post", text="还能说话"))["type"] == "ok"


async def test_the_panel_sees_the_hardest_pressed_node_of_all(served: Served) -> None:
    show = await served.make_show()
    seat = await served.enter(show, await served.staff())
    rounds = Rounds(served.node, served.node.metrics)
    served.node.pressure.level = 2
    await rounds._presence()
    assert (await seat.state("degraded"))["step"] == "comments"
    async with served.http() as http:
        answer = await http.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "degraded", "degraded": ["reactions", "comments"]},
    )
    served.node.pressure.level = 0
    await rounds._presence()
    assert await seat.state("degraded", lambda data: data is None) is None


async def test_sampling_is_told_while_it_lasts(served: Served) -> None:
    show = await served.make_show()
    seat = await served.enter(show, await served.staff())
    rounds = Rounds(served.node, served.node.metrics)
    hub = served.node.hubs[show]
    hub.sampler.per_s = 20
    hub.sampler.posted_per_s = 180
    hub.sampler._left_out_at = served.node.now()
    await rounds._samples()
    assert await seat.state("sampling") == {"shown_per_s": 20, "posted_per_s": 180}
    hub.sampler._left_out_at = None
    await rounds._samples()
    assert await seat.state("sampling", lambda data: data is None) is None
