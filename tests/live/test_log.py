"""The tail, on a single server and on a Cluster: everything in order, once taken, by whoever has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import count, groupby
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster

from live.database import open_redis, open_tail_clients
from live.ending import end
from live.engines import Addresses, Binaries
from live.log import BLOCK_MS, NOTICES, Entry, Tail
from membership.actor import MemberId, ShowId
from membership.notices import Notices
from membership.partition import partition, show_key, tag
from tests.live.cluster import running_cluster

pytestmark = pytest.mark.anyio

WAIT_S = 4.0  # less than the server blocks: what is awaited came by itself, not with the next round


async def until(wanted: Callable[[], Any], wait_s: float = WAIT_S) -> None:
    async with asyncio.timeout(wait_s):
        while not wanted():
            await asyncio.sleep(0.005)


class Heard:
    """A tail, and all that it told."""

    def __init__(self, url: str, redis: Redis) -> None:
        self.redis = redis
        self.nodes = open_tail_clients(url, block_s=BLOCK_MS / 1000)
        self.tail = Tail(self.nodes, redis, self._entries, self._notices, self._health)
        self.seqs: dict[ShowId, list[int]] = {}
        self.notices: list[tuple[str, bytes | None]] = []
        self.health: list[bool] = []
        self.refused = 0  # batches still to be refused
        self.before: Callable[[ShowId], Any] | None = None

    async def _entries(self, show: ShowId, entries: list[Entry]) -> None:
        if self.before is not None:
            await self.before(show)
        if self.refused:
            self.refused -= 1
            raise ValueError("not now")
        self.seqs.setdefault(show, []).extend(entry.seq for entry in entries)

    def _notices(self, told: list[tuple[str, bytes | None]]) -> None:
        self.notices += told

    def _health(self, up: bool) -> None:
        self.health.append(up)

    async def append(self, show: ShowId, seq: int) -> None:
        await self.redis.xadd(show_key(show, "log"), {"e": "{}", "a": 0, "v": 0}, id=f"{seq}-0")

    async def close(self) -> None:
        await self.tail.stop()
        await self.nodes.aclose()


@pytest.fixture(scope="module")
def cluster(binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running_cluster(binaries.valkey, tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(params=["single", "cluster"])
async def heard(request: Any, engines: Addresses) -> AsyncIterator[Heard]:
    url = engines.redis_url if request.param == "single" else request.getfixturevalue("cluster").url
    redis = open_redis(url)
    await redis.flushall()
    made = Heard(url, redis)
    await made.tail.start()
    yield made
    await made.close()
    await redis.aclose()


def shows(number: int) -> list[ShowId]:
    """Shows of as many partitions."""
    named = (ShowId(f"show-{at}") for at in count())
    found: dict[int, ShowId] = {}
    while len(found) < number:
        show = next(named)
        found.setdefault(partition(show), show)
    return list(found.values())


async def test_shows_of_every_partition_arrive_each_in_order(heard: Heard) -> None:
    followed = shows(64)
    for show in followed:
        await heard.tail.follow(show, 0)
    for seq in range(1, 6):
        await asyncio.gather(*(heard.append(show, seq) for show in followed))
    await until(lambda: all(len(heard.seqs.get(show, ())) == 5 for show in followed))
    assert {tuple(seqs) for seqs in heard.seqs.values()} == {(1, 2, 3, 4, 5)}
    assert heard.tail.lag().keys() == {tag(show) for show in followed} | {NOTICES}
    assert heard.health == [True]


async def test_a_show_that_joins_a_blocked_read_is_heard_at_once_and_from_its_position(heard: Heard) -> None:
    # Two of one partition: the second joins a read that is under way.
    named = sorted((ShowId(f"show-{at}") for at in range(200)), key=partition)
    first, second, *_ = next(list(group) for _, group in groupby(named, partition))
    await heard.tail.follow(first, 0)
    await heard.append(first, 1)
    await until(lambda: heard.seqs.get(first) == [1])
    for seq in range(1, 8):
        await heard.append(second, seq)
    await heard.tail.follow(second, 5)
    await until(lambda: heard.seqs.get(second) == [6, 7])
    await heard.append(second, 8)
    await heard.append(first, 2)
    await until(lambda: heard.seqs == {first: [1, 2], second: [6, 7, 8]})


async def test_what_could_not_be_taken_comes_again(heard: Heard) -> None:
    (show,) = shows(1)
    heard.refused = 1
    await heard.tail.follow(show, 0)
    await heard.append(show, 1)
    await until(lambda: heard.seqs.get(show) == [1])
    assert heard.refused == 0


async def test_a_show_begun_anew_while_its_entries_are_taken_keeps_its_new_position(heard: Heard) -> None:
    (show,) = shows(1)
    for seq in range(1, 9):
        await heard.append(show, seq)

    async def begin_anew(show: ShowId) -> None:
        heard.before = None
        await heard.tail.follow(show, 5)

    heard.before = begin_anew
    await heard.tail.follow(show, 0)
    await until(lambda: heard.seqs.get(show) == [*range(1, 9), 6, 7, 8])


async def test_a_reader_that_ended_is_begun_anew_by_the_next_follow(heard: Heard) -> None:
    (show,) = shows(1)
    await heard.tail.follow(show, 0)
    await heard.append(show, 1)
    await until(lambda: heard.seqs.get(show) == [1])
    (reader,) = (task for task in asyncio.all_tasks() if task.get_name() == f"log tail {tag(show)}")
    await end([reader])
    await heard.append(show, 2)
    await heard.tail.follow(show, 1)
    await until(lambda: heard.seqs[show] == [1, 2])


async def test_a_partition_without_shows_costs_no_connection(heard: Heard) -> None:
    first, second = shows(2)
    await heard.tail.follow(first, 0)
    await heard.tail.follow(second, 0)
    await heard.append(first, 1)
    await heard.append(second, 1)
    await until(lambda: len(heard.seqs) == 2)
    await heard.tail.unfollow(second)
    assert heard.tail.lag().keys() == {tag(first), NOTICES}
    await heard.append(first, 2)
    await heard.append(second, 2)
    await until(lambda: heard.seqs[first] == [1, 2])
    assert heard.seqs[second] == [1]
    await heard.tail.follow(second, 1)
    await until(lambda: heard.seqs[second] == [1, 2])


@pytest.mark.parametrize("passes", range(1, 6))
async def test_a_reader_cancelled_again_while_it_ends_gives_its_connection_back(
    heard: Heard, passes: int
) -> None:
    (show,) = shows(1)
    await heard.tail.follow(show, 0)
    await heard.append(show, 1)
    await until(lambda: heard.seqs.get(show) == [1])
    reader = heard.tail._readers[tag(show)]
    await until(lambda: reader._blocked)
    assert reader._task is not None and reader._home is not None
    pool = reader._home.connection_pool
    before = len(pool._in_use_connections)
    while not reader._task.done():
        reader._task.cancel()
        for _ in range(passes):
            await asyncio.sleep(0)
    await until(lambda: len(pool._in_use_connections) == before - 1)


async def test_notices_come_from_the_newest_on_and_in_order(heard: Heard) -> None:
    notices = Notices(heard.redis)
    await notices.send_many([(MemberId(f"m{at}"), {"type": "you", "n": at}) for at in range(100)])
    await notices.facts_changed(MemberId("m0"))
    await until(lambda: len(heard.notices) == 101)
    assert [member for member, _ in heard.notices] == [*(f"m{at}" for at in range(100)), "m0"]
    assert heard.notices[-1][1] is None


async def test_a_reader_whose_connection_is_cut_goes_on_where_it_stopped(heard: Heard) -> None:
    first, second = shows(2)
    for show in (first, second):
        await heard.tail.follow(show, 0)
        await heard.append(show, 1)
    await until(lambda: len(heard.seqs) == 2)

    redis = heard.redis
    on: list[Any] = redis.get_primaries() if isinstance(redis, RedisCluster) else [None]
    for node in on:
        where = {} if node is None else {"target_nodes": node}
        for client in await redis.client_list(_type="normal", **where):
            if client["cmd"] == "xread":
                await redis.client_kill_filter(_id=client["id"], **where)
    for show in (first, second):
        await heard.append(show, 2)
    await until(lambda: heard.seqs == {first: [1, 2], second: [1, 2]})
    await until(lambda: heard.health[-1])
    assert heard.health == [True, False, True]
