"""Gathered reads: few calls, each asker gets its own answer, a failure stays with those who waited for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from live.gather import READ_MAX, Gather

pytestmark = pytest.mark.anyio


class Store:
    def __init__(self) -> None:
        self.reads: list[list[int]] = []
        self.let = asyncio.Event()
        self.fail = False

    async def read(self, keys: Sequence[int]) -> Mapping[int, str]:
        self.reads.append(list(keys))
        await self.let.wait()
        if self.fail:
            raise OSError("gone")
        return {key: f"v{key}" for key in keys if key >= 0}


async def test_who_asks_while_a_read_is_under_way_shares_the_next_one() -> None:
    store = Store()
    gather = Gather(store.read)
    asked = [asyncio.create_task(gather.get(key)) for key in range(300)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    later = [asyncio.create_task(gather.get(key)) for key in (7, 7, -1)]
    await asyncio.sleep(0)
    store.let.set()
    assert await asyncio.gather(*asked) == [f"v{key}" for key in range(300)]
    assert await asyncio.gather(*later) == ["v7", "v7", None]
    assert [len(keys) for keys in store.reads] == [300, 2]


async def test_a_read_is_bounded() -> None:
    store = Store()
    store.let.set()
    gather = Gather(store.read)
    await asyncio.gather(*(gather.get(key) for key in range(2 * READ_MAX + 1)))
    assert [len(keys) for keys in store.reads] == [READ_MAX, READ_MAX, 1]


async def test_a_failed_read_fails_those_who_waited_and_the_next_one_goes_on() -> None:
    store = Store()
    store.fail = True
    store.let.set()
    gather = Gather(store.read)
    failed = await asyncio.gather(gather.get(1), gather.get(2), return_exceptions=True)
    assert [type(found) for found in failed] == [OSError, OSError]
    store.fail = False
    assert await gather.get(3) == "v3"


async def test_one_asker_who_gives_up_takes_nothing_from_the_others() -> None:
    store = Store()
    gather = Gather(store.read)
    one, two = asyncio.create_task(gather.get(1)), asyncio.create_task(gather.get(1))
    await asyncio.sleep(0)
    one.cancel()
    store.let.set()
    assert await two == "v1"


async def test_closing_leaves_nobody_waiting() -> None:
    store = Store()
    gather = Gather(store.read)
    first = asyncio.create_task(gather.get(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(gather.get(2))
    await asyncio.sleep(0)
    store.let.set()
    await gather.close()
    assert await first == "v1"
    with pytest.raises(asyncio.CancelledError):
        await second
