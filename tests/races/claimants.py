"""One server process of a race: its own clients and gatherer, a crowd of members who all claim at once.

Run as `python -m tests.races.claimants <redis url> <database url>`. The first line on stdin says what to do;
it answers `ready`, waits for a second line, and writes each member's answer.
"""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec
from redis.asyncio import Redis

from commerce.claims import Claims
from commerce.coupons import Coupons
from commerce.grants import Grants
from live.database import Database, make_pool, open_redis
from live.lua import Scripts
from membership.actor import Actor, BenefitId, Facts, MemberId, PlanId, ShowId
from membership.notices import Notices
from membership.points import Points
from membership.refusal import Refusal
from tests.commerce.benefit_stage import Gatherer, gathered


class Task(msgspec.Struct):
    show: ShowId
    benefit: BenefitId
    members: list[MemberId]
    quota: int
    plan: PlanId
    key: str
    by_script: bool = True


class Outcome(msgspec.Struct):
    answers: list[tuple[MemberId, int | str]]
    seconds: float
    slowest_ms: float


async def claim_all(task: Task, gatherer: Gatherer) -> Outcome:
    slowest = 0.0

    async def one(member: MemberId) -> tuple[MemberId, int | str]:
        nonlocal slowest
        began = time.perf_counter()
        facts = Facts(member=member, registered=True, plans=frozenset({task.plan}))
        actor = Actor(kind="viewer", id=member, name="王小明", facts=facts)
        try:
            won = await gatherer.ask((task.show, task.benefit), (actor, f"{task.key}-{member}"))
        except Refusal as refusal:
            return member, refusal.word
        finally:
            slowest = max(slowest, time.perf_counter() - began)
        return member, won.rank

    began = time.perf_counter()
    answers = await asyncio.gather(*(one(member) for member in task.members))
    seconds = time.perf_counter() - began
    await gatherer.close()
    return Outcome(list(answers), seconds, slowest * 1000)


async def read_then_write(task: Task, redis: Redis) -> Outcome:
    """The same without a script: the count is read, looked at and written back."""
    key = f"naive:{task.benefit}"
    at_once = asyncio.Semaphore(100)

    async def one(member: MemberId) -> tuple[MemberId, int | str]:
        async with at_once:
            taken = int(await redis.get(key) or 0)
            if taken >= task.quota:
                return member, "sold_out"
            await redis.set(key, taken + 1)
            return member, taken + 1

    began = time.perf_counter()
    answers = await asyncio.gather(*(one(member) for member in task.members))
    return Outcome(list(answers), time.perf_counter() - began, 0.0)


def say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


async def main(redis_url: str, database_url: str) -> None:
    task = msgspec.json.decode(sys.stdin.readline(), type=Task)
    redis = open_redis(redis_url)
    async with make_pool(database_url, size_max=4) as pool:
        database = Database(pool)
        notices = Notices(redis)
        claims = Claims(
            Scripts(redis), notices, database.transaction, Grants(Points(notices), Coupons(notices))
        )
        await redis.ping()
        say(b"ready")
        sys.stdin.readline()
        if task.by_script:
            outcome = await claim_all(task, gathered(claims))
        else:
            outcome = await read_then_write(task, redis)
        say(msgspec.json.encode(outcome))
        await database.settle()
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
