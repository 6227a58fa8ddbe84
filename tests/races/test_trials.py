"""Two trials of one person at once: one starts. First, that the race is there when nothing guards it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from membership.actor import MemberId, PaymentId, new_id
from membership.members import Member, Members
from membership.notices import Notices
from membership.plans import AlreadyMember, Plan, PlanInput, Plans, TrialUsed
from tests.conftest import TransactionFactory

pytestmark = pytest.mark.anyio

Pool = AsyncConnectionPool[Any]
PHONE = "13812345678"


@pytest.fixture
def plans(redis: Redis) -> Plans:
    return Plans(Notices(redis), "a secret of this test")


@pytest.fixture
def members(redis: Redis) -> Members:
    return Members(Notices(redis))


@pytest.fixture
async def member(members: Members, tx: TransactionFactory) -> Member:
    async with tx() as t:
        return await members.register(t, PHONE)


@pytest.fixture
async def offered(plans: Plans, tx: TransactionFactory) -> list[Plan]:
    async with tx() as t:
        return [await plans.create(t, PlanInput(name, 19_900, 12)) for name in ("年卡", "季卡")]


async def trials(pool: Pool) -> int:
    async with pool.connection() as conn:
        row = await (
            await conn.execute("SELECT count(*) AS n FROM plan_terms WHERE kind = 'trial'")
        ).fetchone()
    return int(row["n"])


async def test_looking_first_and_starting_then_gives_two_trials(
    member: Member, offered: list[Plan], tx: TransactionFactory, pool: Pool
) -> None:
    """Control: without the guard both look before either has started. If this fails, the tests below prove
    nothing."""
    both_looked = asyncio.Barrier(2)

    async def start(plan: Plan) -> None:
        async with tx() as t:
            found = await t.conn.execute("SELECT 1 FROM plan_terms WHERE member_id = %s", (member.id,))
            assert await found.fetchone() is None
            await both_looked.wait()
            await t.conn.execute(
                "INSERT INTO plan_terms (id, member_id, plan_id, kind, starts_at, ends_at, anchor_at,"
                " anchor_months, first_paid_start)"
                " VALUES (%s, %s, %s, 'trial', now(), now() + interval '168 hours', now(), 0, false)",
                (new_id(), member.id, plan.id),
            )

    await asyncio.gather(*(start(plan) for plan in offered))
    assert await trials(pool) == 2


async def test_two_at_once_for_two_plans_are_one_trial(
    plans: Plans, member: Member, offered: list[Plan], tx: TransactionFactory, pool: Pool
) -> None:
    ready = asyncio.Barrier(2)

    async def start(plan: Plan) -> bool:
        try:
            async with tx() as t:
                await t.conn.execute("SELECT 1")
                await ready.wait()
                await plans.start_trial(t, member.id, plan.id, PHONE)
        except TrialUsed:
            return False
        return True

    assert sorted(await asyncio.gather(*(start(plan) for plan in offered))) == [False, True]
    assert await trials(pool) == 1


async def test_two_members_at_once_with_one_phone_and_payer_are_one_trial(
    plans: Plans, members: Members, member: Member, offered: list[Plan], tx: TransactionFactory, pool: Pool
) -> None:
    """The phone changed hands in between: the members' own locks are two, the mark is one."""
    async with tx() as t:
        others = [await members.register(t, f"1390000000{number}") for number in range(5)]

    async def start(who: Member) -> bool:
        try:
            async with tx() as t:
                await plans.start_trial(t, who.id, offered[0].id, PHONE, payer="payer-1")
        except TrialUsed:
            return False
        return True

    started = await asyncio.gather(*(start(who) for who in (member, *others)))
    assert sum(started) == 1
    assert await trials(pool) == 1


async def test_who_waits_for_a_trial_that_is_rolled_back_gets_it(
    plans: Plans, members: Members, member: Member, offered: list[Plan], tx: TransactionFactory, pool: Pool
) -> None:
    async with tx() as t:
        other = await members.register(t, "13900000000")
    begun = asyncio.Event()

    async def fails() -> None:
        with suppress(ZeroDivisionError):
            async with tx() as t:
                await plans.start_trial(t, member.id, offered[0].id, PHONE)
                begun.set()
                while not await _somebody_waits(pool):  # bounded by the test's own time limit
                    await asyncio.sleep(0)
                raise ZeroDivisionError

    async def waits() -> None:
        await begun.wait()
        async with tx() as t:
            await plans.start_trial(t, other.id, offered[0].id, PHONE)

    async with asyncio.timeout(20):
        await asyncio.gather(fails(), waits())
    assert await trials(pool) == 1


async def _somebody_waits(pool: Pool) -> bool:
    async with pool.connection() as conn:
        row = await (
            await conn.execute(
                "SELECT 1 FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        ).fetchone()
    return row is not None


async def test_ten_renewals_at_once_join_end_to_end(
    plans: Plans, member: Member, offered: list[Plan], tx: TransactionFactory, pool: Pool
) -> None:
    payments = [PaymentId(new_id()) for _ in range(10)]

    async def pay(payment: PaymentId) -> None:
        async with tx() as t:
            await plans.start_paid(t, member.id, offered[0].id, payment)

    # every payment is told twice, as providers do
    await asyncio.gather(*(pay(payment) for payment in payments * 2))
    async with pool.connection() as conn:
        terms = sorted(await plans.terms(conn, member.id), key=lambda term: term.starts_at)
    assert len(terms) == 10
    assert [term.first_paid_start for term in terms] == [True] + [False] * 9
    assert all(before.ends_at == after.starts_at for before, after in pairwise(terms))


async def test_a_trial_and_a_payment_at_once_leave_one_running(
    plans: Plans, member: Member, offered: list[Plan], tx: TransactionFactory, pool: Pool
) -> None:
    async def try_it() -> None:
        try:
            async with tx() as t:
                await plans.start_trial(t, member.id, offered[0].id, PHONE)
        except AlreadyMember:
            return

    async def pay() -> None:
        async with tx() as t:
            term = await plans.start_paid(t, member.id, offered[0].id, PaymentId(new_id()))
            assert term.first_paid_start

    await asyncio.gather(try_it(), pay())
    async with pool.connection() as conn:
        running = await (
            await conn.execute(
                "SELECT kind FROM plan_terms WHERE member_id = %s AND coalesce(ended_at, ends_at) > now()",
                (MemberId(member.id),),
            )
        ).fetchall()
    assert [row["kind"] for row in running] == ["paid"]
