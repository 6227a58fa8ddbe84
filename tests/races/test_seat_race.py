"""A hundred and fifty join for a hundred seats at once, some never pay: sampled without pause."""

from __future__ import annotations

import asyncio
import random
import sys

import pytest
from redis.asyncio import Redis

from commerce.benefit_terms import Benefit
from live.database import Database, make_pool, open_redis
from live.engines import Addresses
from live.lua import Scripts
from membership.actor import MemberId, ShowId
from membership.refusal import Refusal
from tests.commerce.benefit_stage import HOST, Stage, TransactionFactory, viewer
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio

JOINS, QUOTA, ABANDONED = 150, 100, 30


@pytest.fixture
def stage(redis: Redis, scripts: Scripts, tx: TransactionFactory) -> Stage:
    return Stage(redis, scripts, tx)


class Watcher:
    """Reads the benefit whole, over and over; the tables between."""

    def __init__(self, stage: Stage, show: ShowId, benefit: Benefit) -> None:
        self.stage, self.show, self.benefit = stage, show, benefit
        self.samples = 0
        self.most = 0
        self.looks = 0
        self.over: list[object] = []
        self.stop = asyncio.Event()

    async def watch(self) -> None:
        while not self.stop.is_set():
            counts = await self.stage.benefits.counts(self.show, self.benefit.id)
            self.samples += 1
            self.most = max(self.most, counts.confirmed + counts.held)
            if counts.confirmed + counts.held > QUOTA or counts.left < 0:
                self.over.append(counts)
            await asyncio.sleep(0)

    async def look(self) -> None:
        """Ranks are in the order of commits when every look finds 1 to k and no gap."""
        while not self.stop.is_set():
            ranks = await self.stage.ranks(self.benefit.id)
            self.looks += 1
            if ranks != list(range(1, len(ranks) + 1)) or len(ranks) > QUOTA:
                self.over.append(ranks)
            await asyncio.sleep(0.005)


@pytest.mark.rule("semantics 2.3b", "M18")
async def test_a_hundred_and_fifty_joins_never_pass_a_hundred_seats(
    stage: Stage,
    make_show: MakeShow,
    engines: Addresses,
    fresh_database_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=QUOTA)
    members = await stage.members(JOINS)
    await stage.pay(show, members[0])  # the plan is there, and one seat is taken before the rush
    rush = members[1:]
    random.Random(7).shuffle(rush)

    other_redis = open_redis(engines.redis_url)
    watcher = Watcher(stage, show, benefit)
    async with make_pool(fresh_database_url, size_max=8) as other_pool:
        other_database = Database(other_pool)
        stages = [stage, Stage(other_redis, Scripts(other_redis), other_database.transaction)]
        watching = [asyncio.create_task(watcher.watch()), asyncio.create_task(watcher.look())]
        try:
            holders, line = await _rush(stages, show, benefit, rush)
            assert (len(holders), len(line)) == (QUOTA - 1, JOINS - QUOTA)
            abandoned, payers = holders[:ABANDONED], holders[ABANDONED:]

            async def pay_all() -> list[int | None]:
                paid = await asyncio.gather(
                    *(stages[n % 2].pay(show, member) for n, member in enumerate(payers))
                )
                return [rank for _, rank in paid]

            async def let_lapse() -> list[MemberId]:
                """Half lapse by time, half end their order; both processes sweep."""
                for n, member in enumerate(abandoned):
                    if n % 2:
                        await stage.end_holds(show, benefit.id, [member])
                    else:
                        async with stages[1].tx() as t:
                            await stages[1].seats.release(t, show, member)
                    await asyncio.gather(*(one.seats.sweep(show) for one in stages))
                return [member for member in line if await stage.take(show, member) == "held"]

            ranks, served = await asyncio.gather(pay_all(), let_lapse())
            assert None not in ranks
            assert served == line[:ABANDONED]  # in the order they stood in
            await asyncio.gather(*(one.seats.sweep(show) for one in stages))
            for member in served:
                assert [note["type"] for note in await stage.notes(member)] == ["seat.held"]
            last = await asyncio.gather(*(stages[n % 2].pay(show, member) for n, member in enumerate(served)))
            assert None not in [rank for _, rank in last]
            late = await asyncio.gather(*(stage.pay(show, member) for member in abandoned))
            assert {rank for _, rank in late} == {None}  # the plan without the gift
        finally:
            watcher.stop.set()
            await asyncio.gather(*watching)
            await other_database.settle()
    await other_redis.aclose()

    assert watcher.over == []
    assert await stage.ranks(benefit.id) == list(range(1, QUOTA + 1))
    rows = await stage.rows(
        "SELECT c.rank FROM show_joins j JOIN benefit_claims c USING (payment_id) ORDER BY j.ordinal"
    )
    assert [row["rank"] for row in rows] == list(range(1, QUOTA + 1))
    counts = await stage.benefits.counts(show, benefit.id)
    assert (counts.confirmed, counts.held, counts.queued) == (QUOTA, 0, JOINS - QUOTA - ABANDONED)
    events = await stage.events(show, "benefit.claimed")
    assert sorted(event["rank"] for event in events) == list(range(1, QUOTA + 1))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{JOINS} joins for {QUOTA} seats: {watcher.samples} moments sampled, at most {watcher.most} "
            f"held and confirmed; {watcher.looks} looks at the tables, ranks always 1 to k\n"
        )


async def _rush(
    stages: list[Stage], show: ShowId, benefit: Benefit, members: list[MemberId]
) -> tuple[list[MemberId], list[MemberId]]:
    """All start to pay at once; who finds no seat stands in line. Both in the order of the store."""

    async def start(number: int, member: MemberId) -> str:
        return await stages[number % 2].take(show, member)

    words = await asyncio.gather(*(start(number, member) for number, member in enumerate(members)))
    assert set(words) == {"held", "reserved_out"}
    line = [member for member, word in zip(members, words, strict=True) if word == "reserved_out"]
    for member in line:
        assert (await stages[0].seats.queue(show, benefit.id, viewer(member))).status == "queued"
    return [member for member, word in zip(members, words, strict=True) if word == "held"], line


async def test_one_seat_and_many_hands(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=1)
    members = await stage.members(40)
    words = await asyncio.gather(*(stage.take(show, member) for member in members))
    assert sorted(words) == ["held"] + ["reserved_out"] * 39
    paid = await asyncio.gather(*(stage.pay(show, member) for member in members))
    assert [rank for _, rank in paid if rank] == [1]
    assert paid[words.index("held")][1] == 1  # who held the seat has it, whoever else paid sooner
    assert await stage.ranks(benefit.id) == [1]


async def test_raising_while_all_want_in(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=1)
    members = await stage.members(30)

    async def want(member: MemberId) -> str:
        word = await stage.take(show, member)
        if word != "reserved_out":
            return word
        try:
            return (await stage.seats.queue(show, benefit.id, viewer(member))).status
        except Refusal as refusal:
            return refusal.word

    async def more() -> str:
        for quota in range(2, 11):
            async with stage.tx() as t:
                await stage.benefits.raise_quota(t, HOST, benefit.id, quota)
        return "raised"

    await asyncio.gather(*(want(member) for member in members[:15]), more(), *(want(m) for m in members[15:]))
    counts = await stage.benefits.counts(show, benefit.id)
    assert (counts.quota, counts.held, counts.queued) == (10, 10, 20)
