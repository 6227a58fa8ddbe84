from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from membership.actor import OrderId, new_id
from membership.notices import Notices
from membership.points import AMOUNT_MAX, Balance, Points, lots_for_goods
from membership.refusal import BadRequest, KeyReused
from tests.conftest import TransactionFactory
from tests.membership.conftest import MakeMember, break_off, told

pytestmark = pytest.mark.anyio

Pool = AsyncConnectionPool[Any]


@pytest.fixture
def points(redis: Redis) -> Points:
    return Points(Notices(redis))


# -- how many


@pytest.mark.rule("M64")
@pytest.mark.parametrize(
    ("paid_fen", "percent", "events", "lots"),
    [
        (10_900, 20, {"双倍": 100}, [109, 21, 109]),  # semantics: 109 → 109 + 21 + 109
        (10_990, 0, {}, [109]),
        (10_999, 20, {}, [109, 21]),
        (99, 20, {}, []),
        (100, 20, {}, [1]),
        (0, 20, {}, []),
        (500, 20, {}, [5, 1]),
        (10_000, 20, {"双倍": 100, "三倍": 200}, [100, 20, 100, 200]),  # added, not multiplied
    ],
)
def test_points_for_goods_are_floored_lot_by_lot(
    paid_fen: int, percent: int, events: dict[str, int], lots: list[int]
) -> None:
    assert list(lots_for_goods(paid_fen, percent, events).values()) == lots


@given(
    st.integers(0, 10**9),
    st.integers(0, 1000),
    st.dictionaries(st.text(max_size=5), st.integers(0, 500), max_size=3),
)
def test_lots_are_whole_positive_and_never_more_than_their_share(
    paid_fen: int, percent: int, events: dict[str, int]
) -> None:
    lots = lots_for_goods(paid_fen, percent, events)
    assert all(type(lot) is int and lot > 0 for lot in lots.values())
    share = paid_fen / 100 * (100 + percent + sum(events.values())) / 100
    assert sum(lots.values()) <= share + 1e-6
    assert lots.get("goods", 0) == paid_fen // 100


@pytest.mark.parametrize(("paid_fen", "percent"), [(-1, 0), (100, -1)])
def test_less_than_nothing_earns_nothing(paid_fen: int, percent: int) -> None:
    with pytest.raises(BadRequest):
        lots_for_goods(paid_fen, percent)


# -- the ledger


async def test_lots_are_pending_until_the_return_window_ends(
    points: Points, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member, until = await make_member(), datetime.now(UTC) + timedelta(days=7)
    async with tx() as t:
        lots = await points.earn_for_goods(t, member.id, OrderId("o-1"), 10_900, 20, until)
        assert [(lot.reason, lot.amount) for lot in lots] == [("goods", 109), ("goods.plan", 21)]
        assert await points.balance(t.conn, member.id) == Balance(active=0, pending=130)
        assert await points.balance(t.conn, member.id, at=until) == Balance(active=130, pending=0)
        just_before = until - timedelta(microseconds=1)
        assert await points.balance(t.conn, member.id, at=just_before) == Balance(active=0, pending=130)


async def test_the_same_cause_twice_is_one_lot(
    points: Points, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member = await make_member()
    async with tx() as t:
        first = await points.earn(t, member.id, 100, "review", "review:1")
    async with tx() as t:
        assert await points.earn(t, member.id, 100, "review", "review:1") == first
        assert await points.balance(t.conn, member.id) == Balance(100, 0)


async def test_the_same_cause_with_another_body_is_refused(
    points: Points, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member, other = await make_member(), await make_member()
    async with tx() as t:
        await points.earn(t, member.id, 100, "review", "review:1")
        with pytest.raises(KeyReused):
            await points.earn(t, member.id, 101, "review", "review:1")
        with pytest.raises(KeyReused):
            await points.earn(t, other.id, 100, "review", "review:1")


async def test_twenty_at_once_for_one_cause_are_one_lot(
    points: Points, make_member: MakeMember, tx: TransactionFactory, pool: Pool
) -> None:
    member = await make_member()

    async def earn() -> str:
        async with tx() as t:
            return (await points.earn(t, member.id, 5, "sign-in", f"{member.id}:2026-11-21")).id

    assert len(set(await asyncio.gather(*(earn() for _ in range(20))))) == 1
    async with pool.connection() as conn:
        assert await points.balance(conn, member.id) == Balance(5, 0)


async def test_a_refund_answers_everything_it_caused_once(
    points: Points, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member, until = await make_member(), datetime.now(UTC) + timedelta(days=7)
    async with tx() as t:
        await points.earn(t, member.id, 7, "review", "review:1")
        await points.earn_for_goods(t, member.id, OrderId("o-1"), 10_900, 20, until, {"双倍": 100})
        assert await points.reverse(t, "order:o-1") == 239
        assert await points.reverse(t, "order:o-1") == 0
        assert await points.reverse(t, "order:never") == 0
        assert await points.balance(t.conn, member.id) == Balance(active=7, pending=0)
        assert await points.balance(t.conn, member.id, at=until) == Balance(active=7, pending=0)


async def test_two_refunds_at_once_take_back_once(
    points: Points, make_member: MakeMember, tx: TransactionFactory, pool: Pool
) -> None:
    member = await make_member()
    async with tx() as t:
        await points.earn_for_goods(t, member.id, OrderId("o-1"), 10_900, 20)

    async def reverse() -> int:
        async with tx() as t:
            return await points.reverse(t, "order:o-1")

    assert sorted(await asyncio.gather(*(reverse() for _ in range(8)))) == [0] * 7 + [130]
    async with pool.connection() as conn:
        assert await points.balance(conn, member.id) == Balance(0, 0)


@pytest.mark.parametrize("amount", [0, -1, AMOUNT_MAX + 1])
async def test_an_amount_out_of_bounds_is_refused(
    points: Points, make_member: MakeMember, tx: TransactionFactory, amount: int
) -> None:
    member = await make_member()
    async with tx() as t:
        with pytest.raises(BadRequest):
            await points.earn(t, member.id, amount, "review", "review:1")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE points_entries SET amount = 1000000",
        "DELETE FROM points_entries",
        "TRUNCATE points_entries CASCADE",
        "INSERT INTO points_entries (id, member_id, lot_id, kind, amount, reason, cause, active_from)"
        " SELECT gen_random_uuid(), member_id, lot_id, 'earn', 5, 'x', 'y', now() FROM points_entries",
    ],
)
async def test_the_ledger_is_only_added_to(
    points: Points, make_member: MakeMember, tx: TransactionFactory, statement: Any
) -> None:
    member = await make_member()
    async with tx() as t:
        await points.earn(t, member.id, 100, "review", "review:1")
    with pytest.raises(psycopg.errors.IntegrityError):
        async with tx() as t:
            await t.conn.execute(statement)
    async with tx() as t:
        assert await points.balance(t.conn, member.id) == Balance(100, 0)


async def test_an_earning_that_does_not_commit_is_not_told(
    points: Points, make_member: MakeMember, tx: TransactionFactory, redis: Redis
) -> None:
    member = await make_member()
    await break_off(tx, lambda t: points.earn(t, member.id, 100, "review", "review:1"))
    assert await told(redis) == []
    async with tx() as t:
        assert await points.balance(t.conn, member.id) == Balance(0, 0)
        await points.earn(t, member.id, 100, "review", "review:1")
    (notice,) = await told(redis)
    assert notice["message"] == '{"type":"points.changed","amount":100,"reason":"review"}'


async def test_entries_come_newest_first_page_by_page(
    points: Points, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member = await make_member()
    async with tx() as t:
        for number in range(5):
            await points.earn(t, member.id, number + 1, "review", f"review:{number}")
        first = await points.entries(t.conn, member.id, limit=3)
        rest = await points.entries(t.conn, member.id, first.next, 3)
    assert [entry.amount for entry in (*first.items, *rest.items)] == [5, 4, 3, 2, 1]
    assert rest.next is None


Act = tuple[str, int, int, bool]  # earn or reverse, which order, fen, pending


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["earn", "reverse"]), st.integers(0, 3), st.integers(0, 50_000), st.booleans()
        ),
        max_size=14,
    )
)
async def test_earning_and_refunding_in_any_order_keeps_the_sum_of_what_stands(
    points: Points, make_member: MakeMember, tx: TransactionFactory, acts: list[Act]
) -> None:
    """Whatever is repeated or comes twice, the balance is what the orders that stand have earned."""
    member, run = await make_member(), new_id()
    later = datetime.now(UTC) + timedelta(days=7)
    stands: dict[int, tuple[int, bool]] = {}
    reversed_orders: set[int] = set()
    async with tx() as t:
        for act, order, fen, pending in acts:
            name = OrderId(f"{run}-{order}")
            if act == "earn":
                fen, pending = stands.setdefault(order, (fen, pending))
                await points.earn_for_goods(t, member.id, name, fen, 20, later if pending else None)
            elif order in stands:
                await points.reverse(t, f"order:{name}")
                reversed_orders.add(order)
        expected = {True: 0, False: 0}
        for order, (fen, pending) in stands.items():
            if order not in reversed_orders:
                expected[pending] += sum(lots_for_goods(fen, 20).values())
        assert await points.balance(t.conn, member.id) == Balance(expected[False], expected[True])
        entries = (await points.entries(t.conn, member.id, limit=200)).items
        assert sum(entry.amount for entry in entries) == sum(expected.values())
        by_lot: dict[str, int] = {}
        for entry in entries:
            by_lot[entry.lot] = by_lot.get(entry.lot, 0) + entry.amount
        assert all(left >= 0 for left in by_lot.values())
