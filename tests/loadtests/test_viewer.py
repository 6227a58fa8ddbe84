"""One simulated viewer against a served shop: hears everything once, comes back, stays away when told."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from live import protocol as wire
from live.socket import Socket
from loadtests.viewer import LostError, RefusedError, Viewer
from membership.actor import Actor, ShowId
from membership.partition import show_key
from tests.live.serving import Served

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def watching(
    served: Served, show: ShowId, token: str | None = None, **more: Any
) -> AsyncIterator[Viewer]:
    url = f"ws://127.0.0.1:{served.port}/v1/shows/{show}/socket"
    viewer = Viewer(url, token, chance=random.Random(1), **more)
    running = asyncio.create_task(viewer.run())
    await asyncio.wait_for(viewer.joined.wait(), 10)
    try:
        yield viewer
    finally:
        await viewer.stop()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def until(true: Callable[[], bool], wait_s: float = 10.0) -> None:
    end = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.01)


def sockets(served: Served, show: ShowId) -> list[Socket]:
    return [socket for socket in served.node.sockets if socket.show == show]


async def say(served: Served, host: Actor, show: ShowId, count: int) -> None:
    for number in range(count):
        await served.parts.comments.post(host, show, f"第 {number} 句", None)


async def test_a_guest_hears_every_event_in_order_and_in_time(served: Served) -> None:
    show, host = await served.make_show(), await served.staff()
    async with watching(served, show) as viewer:
        assert viewer.you["kind"] == "guest"
        before = viewer.position
        await say(served, host, show, 20)
        await until(lambda: viewer.events == 20)
        assert viewer.position is not None
        assert before is not None
        assert viewer.position["seq"] == before["seq"] + 20
        assert viewer.holes == 0
        assert len(viewer.latencies_ms) == 20
        assert max(viewer.latencies_ms) < 3_000


async def test_who_is_cut_off_rejoins_with_every_event_once(served: Served) -> None:
    show, host = await served.make_show(), await served.staff()
    async with watching(served, show) as viewer:
        await say(served, host, show, 3)
        await until(lambda: viewer.events == 3)
        for socket in sockets(served, show):
            socket.transport.abort()
        await until(lambda: not viewer.joined.is_set())
        await say(served, host, show, 5)
        await until(lambda: viewer.joins == 2 and viewer.events == 8)
        assert viewer.holes == 0
        assert len(viewer.latencies_ms) == 3, "what was replayed says nothing about the road"


async def test_a_lost_connection_ends_the_wait_for_an_answer(served: Served) -> None:
    show = await served.make_show()
    async with watching(served, show) as viewer:
        sockets(served, show)[0].transport.pause_reading()
        asking = asyncio.create_task(viewer.ask("reaction.send", kind="like", count=1))
        await asyncio.sleep(0)
        sockets(served, show)[0].transport.abort()
        with pytest.raises(LostError):
            await asking
        with pytest.raises(LostError):
            await viewer.ask("reaction.send", kind="like", count=1)


async def test_a_refusal_is_raised_with_its_word(served: Served) -> None:
    show = await served.make_show()
    async with watching(served, show) as viewer:
        with pytest.raises(RefusedError) as refused:
            await viewer.ask("comment.post", key="k1", text="客人不能说话")
        assert refused.value.code == "unauthenticated"


async def test_an_ended_show_is_left_for_good(served: Served) -> None:
    show = await served.make_show()
    async with watching(served, show) as viewer:
        for socket in sockets(served, show):
            socket.close(wire.SHOW_ENDED)
        await until(lambda: viewer.closed_by == wire.SHOW_ENDED)
        await asyncio.sleep(1.0)  # longer than the shortest wait before a rejoin
        assert viewer.joins == 1


async def test_an_expired_token_is_renewed_before_rejoining(served: Served) -> None:
    show, member = await served.make_show(), await served.member("小满")
    asked: list[Viewer] = []

    async def renew(viewer: Viewer) -> str:
        asked.append(viewer)
        return served.token(member)

    async with watching(served, show, served.token(member), renew=renew) as viewer:
        for socket in sockets(served, show):
            socket.close(wire.TOKEN_EXPIRED)
        await until(lambda: viewer.joins == 2)
        assert asked == [viewer]
        assert viewer.you["name"] == "小满"


async def test_a_reborn_log_is_answered_by_a_new_snapshot(served: Served) -> None:
    show, host = await served.make_show(), await served.staff()
    async with watching(served, show) as viewer:
        first = viewer.position
        await served.parts.redis.hset(show_key(show, "meta"), "epoch", "another")
        await served.node.following.check_positions()
        await until(lambda: viewer.joins == 2)
        assert viewer.position is not None
        assert first is not None
        assert viewer.position["epoch"] != first["epoch"]
        await say(served, host, show, 1)
        await until(lambda: viewer.events == 1)
        assert viewer.holes == 0
