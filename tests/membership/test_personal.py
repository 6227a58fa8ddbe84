"""Erasing: the person is forgotten, the books stay."""

from __future__ import annotations

import time
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from membership.actor import NOBODY, MemberId, PaymentId, new_id
from membership.addresses import Addresses, AddressInput
from membership.behaviour import Behaviour, Record
from membership.members import Members, NoSuchMember
from membership.notices import Notices
from membership.personal import PERSONAL
from membership.plans import Plans, TrialUsed
from membership.points import Points
from tests.conftest import MakeShow, TransactionFactory
from tests.membership.conftest import MakeMember, MakePlan

pytestmark = pytest.mark.anyio

Pool = AsyncConnectionPool[Any]


async def test_every_column_of_the_list_exists(pool: Pool) -> None:
    async with pool.connection() as conn:
        rows = await (
            await conn.execute("SELECT table_name, column_name FROM information_schema.columns")
        ).fetchall()
    columns = {(row["table_name"], row["column_name"]) for row in rows}
    for personal in PERSONAL:
        for column in personal.columns:
            assert (personal.table, column) in columns


async def test_erasing_keeps_the_books_and_forgets_the_person(
    members: Members,
    plans: Plans,
    make_member: MakeMember,
    make_plan: MakePlan,
    make_show: MakeShow,
    tx: TransactionFactory,
    pool: Pool,
    redis: Redis,
) -> None:
    member = await make_member("13812345678", "金闪闪")
    plan, show = await make_plan(), await make_show()
    points, behaviour = Points(Notices(redis)), Behaviour(redis)
    said = Record(
        id=new_id(),
        kind="comment",
        viewer=member.id,
        member=member.id,
        subject="show",
        at=time.time_ns() // 1_000_000,
        text="我住翠苑",
    )
    await behaviour.record(show, [said])
    async with tx() as t:
        await plans.start_paid(t, member.id, plan.id, PaymentId(new_id()))
        await points.earn(t, member.id, 109, "goods", "order:1")
        await Addresses().add(t, member.id, AddressInput("金闪闪", "13812345678", "浙江省杭州市", "翠苑一区"))
        await behaviour.drain(t, show)
    late = Record(
        id=new_id(), kind="click", viewer=member.id, member=member.id, subject="product:x", at=said.at + 1
    )
    await behaviour.record(show, [late])

    async with tx() as t:
        await members.erase(t, member.id)
    async with tx() as t:
        assert await behaviour.drain(t, show) == 1

    async with pool.connection() as conn:
        tables = await (
            await conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ).fetchall()
        kept = ""
        for table in tables:
            rows = await (await conn.execute(f'SELECT * FROM "{table["tablename"]}"')).fetchall()
            kept += repr(rows)
        for trace in ("13812345678", "金闪闪", "翠苑", "杭州"):
            assert trace not in kept
        done = await (await conn.execute("SELECT viewer, member_id, kind FROM behaviour_records")).fetchall()
        assert {row["kind"] for row in done} == {"comment", "click"}
        assert all(row["viewer"] is None and row["member_id"] is None for row in done)
        assert (await points.balance(conn, member.id)).active == 109
        (term,) = await plans.terms(conn, member.id)
        assert term.plan == plan.id
        assert await members.facts(conn, member.id) == NOBODY
        with pytest.raises(NoSuchMember):
            await members.by_id(conn, member.id)


async def test_the_phone_is_free_again_but_its_trial_stays_used(
    members: Members, plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan = await make_member("13812345678"), await make_plan()
    async with tx() as t:
        await plans.start_trial(t, member.id, plan.id, "13812345678")
    async with tx() as t:
        await members.erase(t, member.id)
    again = await make_member("13812345678")
    assert again.id != member.id
    with pytest.raises(TrialUsed):
        async with tx() as t:
            await plans.start_trial(t, again.id, plan.id, "13812345678")


async def test_an_unknown_or_erased_member_is_refused(
    members: Members, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member = await make_member()
    async with tx() as t:
        await members.erase(t, member.id)
    for unknown in (member.id, MemberId(new_id()), MemberId("x")):
        with pytest.raises(NoSuchMember):
            async with tx() as t:
                await members.erase(t, unknown)
