"""semantics 6: burn by hundreds, earliest expiry first; restored with their own dates, at least 30 days after."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from membership.actor import MemberId, OrderId, new_id
from membership.members import Member
from membership.notices import Notices
from membership.points import Balance, NotEnoughPoints, Points
from membership.refusal import BadRequest, KeyReused, Refusal
from membership.transaction import Transaction
from tests.conftest import TransactionFactory
from tests.membership.conftest import MakeMember, break_off, told

pytestmark = pytest.mark.anyio

Pool = AsyncConnectionPool[Any]
DAY = timedelta(days=1)
NOW = datetime.now(UTC)  # lots of one day end together


@pytest.fixture
def points(redis: Redis) -> Points:
    return Points(Notices(redis))


@pytest.fixture
async def member(make_member: MakeMember) -> Member:
    return await make_member()


async def lot(
    t: Transaction,
    member: MemberId,
    amount: int,
    ends: timedelta | None = 100 * DAY,
    *,
    begins: timedelta = -10 * DAY,
) -> str:
    """An earning with dates of our choice."""
    number = new_id()
    await t.conn.execute(
        "INSERT INTO points_entries (id, member_id, lot_id, kind, amount, reason, cause, active_from, expires_at)"
        " VALUES (%s, %s, %s, 'earn', %s, 'review', %s, %s, %s)",
        [number, member, number, amount, number, NOW + begins, None if ends is None else NOW + ends],
    )
    return number


async def left(t: Transaction, member: MemberId) -> dict[str, int]:
    rows = await (
        await t.conn.execute(
            "SELECT lot_id::text AS lot, sum(amount)::bigint AS points FROM points_entries"
            " WHERE member_id = %s GROUP BY lot_id",
            [member],
        )
    ).fetchall()
    return {row["lot"]: row["points"] for row in rows}


async def test_a_lot_ends_with_the_twelfth_month_in_the_shops_zone(
    points: Points, member: Member, tx: TransactionFactory
) -> None:
    shanghai = ZoneInfo("Asia/Shanghai")
    for begins, ends in (
        (datetime(2026, 11, 21, 12, tzinfo=UTC), datetime(2027, 12, 1, tzinfo=shanghai)),
        (datetime(2026, 11, 30, 15, 59, tzinfo=UTC), datetime(2027, 12, 1, tzinfo=shanghai)),
        (datetime(2026, 11, 30, 16, 0, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=shanghai)),  # December there
    ):
        async with tx() as t:
            entry = await points.earn(t, member.id, 5, "review", new_id(), begins)
        assert entry.expires_at == ends


async def test_a_shop_may_let_points_last_for_ever(
    redis: Redis, member: Member, tx: TransactionFactory
) -> None:
    async with tx() as t:
        entry = await Points(Notices(redis), months=0).earn(t, member.id, 5, "review", "review:1")
    assert entry.expires_at is None


async def test_what_ends_first_is_spent_first_and_what_never_ends_last(
    points: Points, member: Member, tx: TransactionFactory
) -> None:
    async with tx() as t:
        never = await lot(t, member.id, 100, None)
        late = await lot(t, member.id, 150, 90 * DAY)
        soon = await lot(t, member.id, 150, 10 * DAY)
        older = await lot(t, member.id, 50, 90 * DAY, begins=-20 * DAY)
        await points.spend(t, member.id, 300, "order:1")
        assert await left(t, member.id) == {soon: 0, older: 0, late: 50, never: 100}
        assert await points.balance(t.conn, member.id) == Balance(150, 0)


async def test_pending_and_ended_points_are_not_spent(
    points: Points, member: Member, tx: TransactionFactory
) -> None:
    async with tx() as t:
        await lot(t, member.id, 500, begins=DAY)
        await lot(t, member.id, 500, -DAY)
        await lot(t, member.id, 199)
        assert await points.balance(t.conn, member.id) == Balance(199, 500)
        with pytest.raises(NotEnoughPoints):
            await points.spend(t, member.id, 200, "order:1")
        await points.spend(t, member.id, 100, "order:1")
        assert await points.balance(t.conn, member.id) == Balance(99, 500)


@pytest.mark.parametrize("amount", [0, -100, 50, 150])
async def test_points_are_spent_by_hundreds(
    points: Points, member: Member, tx: TransactionFactory, amount: int
) -> None:
    async with tx() as t:
        await lot(t, member.id, 1_000)
        with pytest.raises(BadRequest):
            await points.spend(t, member.id, amount, "order:1")


async def test_the_same_cause_spends_once_and_another_amount_is_refused(
    points: Points, member: Member, tx: TransactionFactory, redis: Redis
) -> None:
    async with tx() as t:
        await lot(t, member.id, 1_000)
        first = await points.spend(t, member.id, 300, "order:1")
        assert await points.spend(t, member.id, 300, "order:1") == first
        with pytest.raises(KeyReused):
            await points.spend(t, member.id, 200, "order:1")
        assert await points.balance(t.conn, member.id) == Balance(700, 0)
    assert [each["message"] for each in await told(redis)] == [
        '{"type":"points.changed","amount":-300,"reason":"spend"}'
    ]


async def test_what_comes_back_has_its_own_date_and_the_last_taken_comes_first(
    points: Points, member: Member, tx: TransactionFactory
) -> None:
    async with tx() as t:
        soon = await lot(t, member.id, 150, 10 * DAY)
        late = await lot(t, member.id, 500, 90 * DAY)
        await points.spend(t, member.id, 300, "order:1")
        assert await points.restore(t, "order:1", 100, "part 1") == 100
        assert await left(t, member.id) == {soon: 0, late: 450}
        assert await points.restore(t, "order:1", 100, "part 1") == 100  # the same part: nothing more
        assert await left(t, member.id) == {soon: 0, late: 450}
        assert await points.restore(t, "order:1", None, "rest") == 200
        assert await left(t, member.id) == {soon: 150, late: 500}
        assert await points.restore(t, "order:1", None, "again") == 0
        ending = await points.ending(t.conn, member.id)
        assert [each.points for each in ending] == [150, 500]


async def test_what_comes_back_after_its_end_lasts_thirty_days_again(
    points: Points, member: Member, tx: TransactionFactory
) -> None:
    async with tx() as t:
        ended = await lot(t, member.id, 200, -DAY)
        # Spent while it lasted.
        await t.conn.execute(
            "INSERT INTO points_entries (id, member_id, lot_id, kind, amount, reason, cause, active_from,"
            " expires_at) SELECT %s, member_id, id, 'spend', -200, 'spend', 'order:1', active_from, expires_at"
            " FROM points_entries WHERE id = %s",
            [new_id(), ended],
        )
        assert await points.balance(t.conn, member.id) == Balance(0, 0)
        assert await points.restore(t, "order:1", 100, "part 1") == 100
        assert await points.restore(t, "order:1", None, "part 2") == 100
        assert await points.restore(t, "order:1", None, "part 3") == 0
        assert await points.balance(t.conn, member.id) == Balance(200, 0)
        for each in await points.ending(t.conn, member.id):
            assert timedelta(days=29, hours=23) < each.at - datetime.now(UTC) <= timedelta(days=30)


async def test_more_than_is_spent_does_not_come_back(
    points: Points, member: Member, tx: TransactionFactory
) -> None:
    async with tx() as t:
        await lot(t, member.id, 500)
        await points.spend(t, member.id, 200, "order:1")
        for amount in (201, -1):
            with pytest.raises(BadRequest):
                await points.restore(t, "order:1", amount, "part")
        assert await points.restore(t, "order:never", None, "part") == 0


async def test_an_order_that_ended_may_take_its_points_once_more(
    points: Points, member: Member, tx: TransactionFactory
) -> None:
    async with tx() as t:
        await lot(t, member.id, 500)
        await points.spend(t, member.id, 200, "order:1")
        await points.restore(t, "order:1", None, "ended")
        await points.spend(t, member.id, 200, "order:1", "again")
        assert await points.balance(t.conn, member.id) == Balance(300, 0)
        assert await points.restore(t, "order:1", None, "refunded") == 200
        assert await points.balance(t.conn, member.id) == Balance(500, 0)


async def test_a_refund_after_the_points_were_spent_leaves_a_debt_that_does_not_run_out(
    points: Points, member: Member, tx: TransactionFactory
) -> None:
    async with tx() as t:
        await points.earn(t, member.id, 300, "goods", "order:1")
        await points.spend(t, member.id, 300, "order:2")
        assert await points.reverse(t, "order:1") == 300
        later = datetime.now(UTC) + 1_000 * DAY
        assert await points.balance(t.conn, member.id) == Balance(-300, 0)
        assert await points.balance(t.conn, member.id, at=later) == Balance(-300, 0)
        await points.earn(t, member.id, 350, "goods", "order:3")
        with pytest.raises(NotEnoughPoints):
            await points.spend(t, member.id, 100, "order:4")
        await points.earn(t, member.id, 50, "goods", "order:5")
        await points.spend(t, member.id, 100, "order:4")
        assert await points.balance(t.conn, member.id) == Balance(0, 0)


async def test_part_of_an_earning_is_taken_back_from_its_lots_in_proportion(
    points: Points, member: Member, tx: TransactionFactory
) -> None:
    async with tx() as t:
        await points.earn_for_goods(t, member.id, OrderId("1"), 10_900, 20, None, {"双倍": 100})
        assert await points.reverse(t, "order:1", 100, "part 1") == 100
        assert await points.reverse(t, "order:1", 100, "part 1") == 0  # the same part: nothing more
        assert (await points.balance(t.conn, member.id)).active == 139
        assert all(points_left > 0 for points_left in (await left(t, member.id)).values())
        with pytest.raises(BadRequest):
            await points.reverse(t, "order:1", 140, "part 2")
        assert await points.reverse(t, "order:1", None, "rest") == 139
        assert await points.balance(t.conn, member.id) == Balance(0, 0)


async def test_spending_that_does_not_commit_leaves_everything(
    points: Points, member: Member, tx: TransactionFactory, redis: Redis
) -> None:
    async with tx() as t:
        await lot(t, member.id, 500)
    await break_off(tx, lambda t: points.spend(t, member.id, 200, "order:1"))
    async with tx() as t:
        assert await points.balance(t.conn, member.id) == Balance(500, 0)
    assert await told(redis) == []


async def test_fifty_at_once_spend_one_hundred_of_one_hundred_once(
    points: Points, member: Member, tx: TransactionFactory
) -> None:
    """A lost update would give each of them the same hundred."""
    async with tx() as t:
        await lot(t, member.id, 100)

    async def spend(number: int) -> str:
        try:
            async with tx() as t:
                await points.spend(t, member.id, 100, f"order:{number}")
        except Refusal as refusal:
            return refusal.word
        return "spent"

    words = await asyncio.gather(*(spend(number) for number in range(50)))
    assert sorted(set(words)) == ["not_enough_points", "spent"]
    assert words.count("spent") == 1
    async with tx() as t:
        assert await points.balance(t.conn, member.id) == Balance(0, 0)


class Unguarded(Points):
    """As it would be without one spender at a time."""

    def __init__(self, notices: Notices, meeting: asyncio.Barrier) -> None:
        super().__init__(notices)
        self._meeting = meeting

    async def lock(self, t: Transaction, member: MemberId) -> None:
        return None

    async def _lots(self, conn: Any, member: MemberId) -> Any:
        lots = await super()._lots(conn, member)
        await self._meeting.wait()  # both have read before either writes
        return lots


async def test_the_race_is_there_when_nothing_guards_it(
    redis: Redis, member: Member, tx: TransactionFactory
) -> None:
    """This shows that the test above can fail: without the lock two spend the same hundred."""
    unguarded = Unguarded(Notices(redis), asyncio.Barrier(2))
    async with tx() as t:
        await lot(t, member.id, 100)

    async def spend(number: int) -> None:
        async with tx() as t:
            await unguarded.spend(t, member.id, 100, f"order:{number}")

    await asyncio.wait_for(asyncio.gather(spend(1), spend(2)), 30)
    async with tx() as t:
        assert await unguarded.balance(t.conn, member.id) == Balance(-100, 0)


Act = tuple[str, int, int]

acts = st.lists(
    st.tuples(
        st.sampled_from(["earn", "spend", "restore", "reverse", "reverse_part"]),
        st.integers(0, 3),
        st.integers(1, 500),
    ),
    max_size=16,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts)
async def test_in_any_order_the_balance_is_what_was_earned_less_what_is_spent(
    points: Points, make_member: MakeMember, tx: TransactionFactory, steps: list[Act]
) -> None:
    """semantics 6, as a model: three sums of one cause each, and no lot is ever restored above what it was."""
    member, run = await make_member(), new_id()
    earned: dict[int, int] = {}
    spent: dict[int, int] = {}
    taken: dict[int, int] = {}
    async with tx() as t:
        for number, (act, which, amount) in enumerate(steps):
            cause = f"{run}:{which}"
            held = sum(earned.values()) - sum(taken.values()) - sum(spent.values())
            if act == "earn" and which not in earned:
                await points.earn(t, member.id, amount, "goods", cause)
                earned[which] = amount
            elif act == "spend" and which not in spent and amount >= 100:
                wanted = amount // 100 * 100
                if wanted <= held:
                    await points.spend(t, member.id, wanted, cause)
                    spent[which] = wanted
                else:
                    with pytest.raises(NotEnoughPoints):
                        await points.spend(t, member.id, wanted, cause)
            elif act == "restore" and which in spent:
                back = min(amount, spent[which])
                assert await points.restore(t, cause, back, str(number)) == back
                spent[which] -= back
            elif act in ("reverse", "reverse_part") and which in earned:
                still = earned[which] - taken.get(which, 0)
                back = still if act == "reverse" else min(amount, still)
                assert await points.reverse(t, cause, None if act == "reverse" else back, str(number)) == back
                taken[which] = taken.get(which, 0) + back
        expected = sum(earned.values()) - sum(taken.values()) - sum(spent.values())
        assert await points.balance(t.conn, member.id) == Balance(expected, 0)
