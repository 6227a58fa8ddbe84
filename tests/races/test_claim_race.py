"""Thousands claim one benefit at once over two operating-system processes, each with its own clients."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from commerce.benefit_counters import benefit_keys
from live.engines import Addresses
from live.lua import Scripts
from membership.actor import BenefitId, MemberId, ShowId
from membership.audience import PLAN_MEMBERS
from membership.partition import show_key
from tests.commerce.benefit_stage import PLAN, Stage, TransactionFactory
from tests.conftest import MakeShow
from tests.races.claimants import Outcome, Task

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
MEMBERS, QUOTA = 5_000, 100


@pytest.fixture
def stage(redis: Redis, scripts: Scripts, tx: TransactionFactory) -> Stage:
    return Stage(redis, scripts, tx)


async def race(engines: Addresses, database_url: str, tasks: list[Task]) -> list[Outcome]:
    """Start a process for each task, let all of them go at once, and read what they were answered."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.races.claimants",
            engines.redis_url,
            database_url,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        for _ in tasks
    ]
    try:
        for process, task in zip(processes, tasks, strict=True):
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(msgspec.json.encode(task) + b"\n")
        for process in processes:
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), 60) == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
        outcomes = []
        for process in processes:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), 120)
            outcomes.append(msgspec.json.decode(line, type=Outcome))
        for process in processes:
            assert await asyncio.wait_for(process.wait(), 30) == 0
        return outcomes
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


def tasks_for(show: ShowId, benefit: BenefitId, parts: list[list[MemberId]], **more: bool) -> list[Task]:
    return [
        Task(show, benefit, members, QUOTA, PLAN, f"device-{number}", **more)
        for number, members in enumerate(parts)
    ]


@pytest.mark.rule("semantics 2.10a", "L3")
async def test_five_thousand_members_over_two_processes_win_exactly_one_hundred_ranks(
    stage: Stage,
    make_show: MakeShow,
    engines: Addresses,
    fresh_database_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=QUOTA, audience=PLAN_MEMBERS)
    members = await stage.members(MEMBERS)
    outcomes = await race(
        engines, fresh_database_url, tasks_for(show, benefit.id, [members[::2], members[1::2]])
    )

    answers = [answer for outcome in outcomes for answer in outcome.answers]
    assert sorted(member for member, _ in answers) == sorted(members)
    replies = {answer: member for member, answer in answers if isinstance(answer, int)}
    assert sorted(replies) == list(range(1, QUOTA + 1))
    assert len(set(replies.values())) == QUOTA
    words = Counter(answer for _, answer in answers if not isinstance(answer, int))
    assert words == {"sold_out": MEMBERS - QUOTA}

    rows = await stage.rows(
        "SELECT rank, member_id::text AS m FROM benefit_claims WHERE benefit_id = %s", benefit.id
    )
    assert {row["rank"]: row["m"] for row in rows} == replies
    assert len(rows) == QUOTA

    kept: Any = await stage.redis.hgetall(show_key(show, benefit_keys(benefit.id)[1]))
    assert {int(rank): member.decode() for member, rank in kept.items()} == replies
    events = await stage.events(show, "benefit.claimed")
    assert sorted(event["rank"] for event in events) == list(range(1, QUOTA + 1))
    counts = await stage.benefits.counts(show, benefit.id)
    assert (counts.confirmed, counts.held, counts.left) == (QUOTA, 0, 0)
    assert [note["rank"] for note in await stage.notes(replies[37])] == [37]

    winners = [sum(isinstance(answer, int) for _, answer in outcome.answers) for outcome in outcomes]
    with capsys.disabled():
        sys.stdout.write(
            f"\n{MEMBERS} claims over 2 processes for {QUOTA}: {winners} won, "
            + ", ".join(f"{one.seconds:.2f} s (slowest answer {one.slowest_ms:.0f} ms)" for one in outcomes)
            + "\n"
        )


async def test_without_the_script_the_same_race_gives_too_many(
    stage: Stage,
    make_show: MakeShow,
    engines: Addresses,
    fresh_database_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Shows that the race above is one: if this fails, the test above may prove nothing."""
    show = await make_show()
    members = await stage.members(MEMBERS // 2)
    outcomes = await race(
        engines,
        fresh_database_url,
        tasks_for(show, BenefitId("naive"), [members[::2], members[1::2]], by_script=False),
    )
    ranks = Counter(
        answer for outcome in outcomes for _, answer in outcome.answers if isinstance(answer, int)
    )
    assert sum(ranks.values()) > QUOTA
    assert max(ranks.values()) > 1
    with capsys.disabled():
        sys.stdout.write(
            f"\nwithout the script: {sum(ranks.values())} winners for {QUOTA}, "
            f"one rank given {max(ranks.values())} times\n"
        )


async def test_everybody_on_two_devices_at_once_wins_once(
    stage: Stage, make_show: MakeShow, engines: Addresses, fresh_database_url: str
) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=QUOTA, audience=PLAN_MEMBERS)
    members = await stage.members(300)
    outcomes = await race(engines, fresh_database_url, tasks_for(show, benefit.id, [members, members[::-1]]))
    won = [member for outcome in outcomes for member, answer in outcome.answers if isinstance(answer, int)]
    assert len(won) == len(set(won)) == QUOTA
    refused = Counter(
        answer for outcome in outcomes for _, answer in outcome.answers if not isinstance(answer, int)
    )
    assert set(refused) == {"already_claimed", "sold_out"}
    assert refused["already_claimed"] == QUOTA
    assert await stage.ranks(benefit.id) == list(range(1, QUOTA + 1))


async def test_both_processes_share_one_line_of_ranks(
    stage: Stage, make_show: MakeShow, engines: Addresses, fresh_database_url: str
) -> None:
    """More than a call carries: the calls alternate, and no rank is given twice or left out."""
    show = await make_show()
    benefit = await stage.open(show, quota=2_000, audience=PLAN_MEMBERS)
    members = await stage.members(3_000)
    outcomes = await race(
        engines, fresh_database_url, tasks_for(show, benefit.id, [members[::2], members[1::2]])
    )
    won = [[rank for _, rank in outcome.answers if isinstance(rank, int)] for outcome in outcomes]
    assert sorted(won[0] + won[1]) == list(range(1, 2_001))
    assert won[0] and won[1]
    assert all(ranks == sorted(ranks) for ranks in won)  # in the order in which each process asked
    assert await stage.ranks(benefit.id) == list(range(1, 2_001))
