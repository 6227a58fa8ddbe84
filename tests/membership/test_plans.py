from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from membership.actor import MemberId, PaymentId, PlanId, ShowId, new_id
from membership.members import Members, NoSuchMember
from membership.plans import AlreadyMember, NoSuchPlan, NoTrial, PlanInput, Plans, Term, TrialUsed
from membership.refusal import BadRequest, KeyReused
from tests.conftest import TransactionFactory
from tests.membership.conftest import MakeMember, MakePlan, next_phone, told

pytestmark = pytest.mark.anyio

Pool = AsyncConnectionPool[Any]
SHOP = ZoneInfo("Asia/Shanghai")
SHOW = ShowId("abcdefghjk")


def payment() -> PaymentId:
    return PaymentId(new_id())


# -- the plans on sale


async def test_a_plan_is_made_and_listed_cheapest_first(plans: Plans, tx: TransactionFactory) -> None:
    async with tx() as t:
        year = await plans.create(
            t, PlanInput("金穗年卡", 19_900, 12, percent=88, gift_text="五谷礼盒", gift_value_fen=5_900)
        )
        month = await plans.create(t, PlanInput(" 月卡 ", 990, 1))
        assert await plans.all(t.conn) == (month, year)
        assert await plans.get(t.conn, year.id) == year
        assert (month.name, month.trial_days, month.points_bonus_percent, month.free_freight) == (
            "月卡",
            7,
            20,
            True,
        )
        await plans.set_on_sale(t, month.id, False)
        assert await plans.all(t.conn) == (year,)
        assert len(await plans.all(t.conn, on_sale=False)) == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"name": " "},
        {"name": "长" * 41},
        {"fee_fen": 0},
        {"fee_fen": -1},
        {"fee_fen": 10_000_001},
        {"period_months": 0},
        {"trial_days": -1},
        {"percent": 100},
        {"percent": 0},
        {"points_bonus_percent": -1},
        {"gift_value_fen": -1},
        {"gift_text": "长" * 201},
    ],
)
async def test_a_plan_out_of_bounds_is_refused(
    plans: Plans, tx: TransactionFactory, bad: dict[str, Any]
) -> None:
    parts: dict[str, Any] = {"name": "年卡", "fee_fen": 1, "period_months": 1}
    async with tx() as t:
        with pytest.raises(BadRequest) as refusal:
            await plans.create(t, PlanInput(**(parts | bad)))
    assert refusal.value.details == {"field": next(iter(bad))}


async def test_an_unknown_plan_is_refused(
    plans: Plans, make_member: MakeMember, tx: TransactionFactory
) -> None:
    member = await make_member()
    for plan in (PlanId(new_id()), PlanId("x")):
        async with tx() as t:
            with pytest.raises(NoSuchPlan):
                await plans.get(t.conn, plan)
            with pytest.raises(NoSuchPlan):
                await plans.start_paid(t, member.id, plan, payment())


# -- trials


@pytest.mark.rule("semantics 3.1a")
async def test_a_trial_is_seven_times_24_hours_to_the_second(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan = await make_member(), await make_plan()
    assert member.phone is not None
    # over the night in March when another country's clock jumps: 24 h are 24 h
    start = datetime(2026, 3, 5, 20, 0, 0, 123456, UTC)
    async with tx() as t:
        term = await plans.start_trial(t, member.id, plan.id, member.phone, SHOW, at=start)
        assert term.trial and not term.first_paid_start and term.source_show == SHOW
        assert (term.starts_at, term.ends_at, term.until) == (
            start,
            start + timedelta(hours=168),
            term.ends_at,
        )
        last = term.ends_at - timedelta(microseconds=1)
        assert await plans.current(t.conn, member.id, at=start) == term
        assert await plans.current(t.conn, member.id, at=last) == term
        assert await plans.current(t.conn, member.id, at=term.ends_at) is None
        assert await plans.current(t.conn, member.id, at=start - timedelta(microseconds=1)) is None


@pytest.mark.rule("semantics 3.1a")
async def test_a_second_trial_is_refused_over_all_plans_for_ever(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, year, month = await make_member(), await make_plan("年卡"), await make_plan("月卡")
    assert member.phone is not None
    async with tx() as t:
        await plans.start_trial(t, member.id, year.id, member.phone, at=datetime(2024, 1, 1, tzinfo=UTC))
    for plan in (year, month):
        with pytest.raises(TrialUsed) as refusal:
            async with tx() as t:
                await plans.start_trial(t, member.id, plan.id, member.phone)
        assert refusal.value.word == "trial_used"


async def test_a_phone_that_changed_hands_or_a_new_phone_gives_no_second_trial(
    plans: Plans, members: Members, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    first, plan = await make_member("13812345678"), await make_plan()
    async with tx() as t:
        await plans.start_trial(t, first.id, plan.id, "13812345678", at=datetime(2024, 1, 1, tzinfo=UTC))
        await members.change_phone(t, first.id, "13987654321")
    second = await make_member("13812345678")
    for member, phone in ((second, "138 1234 5678"), (second, next_phone()), (first, "13987654321")):
        with pytest.raises(TrialUsed):
            async with tx() as t:
                await plans.start_trial(t, member.id, plan.id, phone)


@pytest.mark.rule("semantics 3.1a")
@pytest.mark.parametrize("mark", ["openid", "payer"])
async def test_one_openid_or_payer_has_one_trial(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory, mark: str
) -> None:
    one, other, plan = await make_member(), await make_member(), await make_plan()
    assert one.phone is not None and other.phone is not None
    async with tx() as t:
        await plans.start_trial(t, one.id, plan.id, one.phone, **{mark: "o-1"})  # type: ignore[arg-type]
    with pytest.raises(TrialUsed):
        async with tx() as t:
            await plans.start_trial(t, other.id, plan.id, other.phone, **{mark: "o-1"})  # type: ignore[arg-type]
    async with tx() as t:
        await plans.start_trial(t, other.id, plan.id, other.phone, **{mark: "o-2"})  # type: ignore[arg-type]


async def test_a_refused_trial_uses_nothing_up(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan, no_trial = await make_member(), await make_plan(), await make_plan("无体验", trial_days=0)
    assert member.phone is not None
    async with tx() as t:
        with pytest.raises(NoTrial):
            await plans.start_trial(t, member.id, no_trial.id, member.phone)
        await plans.start_paid(t, member.id, plan.id, payment(), at=datetime.now(UTC) - timedelta(days=1))
        with pytest.raises(AlreadyMember):
            await plans.start_trial(t, member.id, plan.id, member.phone)
        assert await (await t.conn.execute("SELECT 1 FROM trial_marks")).fetchone() is None


async def test_no_trial_of_a_plan_off_sale_or_for_nobody(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan = await make_member(), await make_plan()
    async with tx() as t:
        for nobody in (MemberId(new_id()), MemberId("x")):
            with pytest.raises(NoSuchMember):
                await plans.start_trial(t, nobody, plan.id, next_phone())
        await plans.set_on_sale(t, plan.id, False)
        with pytest.raises(NoSuchPlan):
            await plans.start_trial(t, member.id, plan.id, next_phone())


async def test_a_used_trial_is_remembered_without_the_phone(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan = await make_member("13812345678"), await make_plan()
    async with tx() as t:
        await plans.start_trial(t, member.id, plan.id, "13812345678")
        rows = await (await t.conn.execute("SELECT kind, mark FROM trial_marks")).fetchall()
    assert {row["kind"] for row in rows} == {"member", "phone"}
    assert all(len(row["mark"]) == 32 for row in rows)


# -- paid terms


async def test_a_paid_year_ends_the_same_day_and_time_next_year(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan = await make_member(), await make_plan()
    start = datetime(2026, 11, 21, 20, 30, 15, 5, SHOP)
    async with tx() as t:
        term = await plans.start_paid(t, member.id, plan.id, payment(), SHOW, at=start)
    assert (term.starts_at, term.ends_at) == (start, datetime(2027, 11, 21, 20, 30, 15, 5, SHOP))
    assert term.first_paid_start and not term.trial and term.plan_name == "金穗年卡"


@pytest.mark.rule("semantics 3.2a")
async def test_renewing_early_extends_from_the_end(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan = await make_member(), await make_plan()
    start = datetime(2026, 1, 10, 12, 0, tzinfo=SHOP)
    async with tx() as t:
        first = await plans.start_paid(t, member.id, plan.id, payment(), at=start)
        second = await plans.start_paid(t, member.id, plan.id, payment(), at=start + timedelta(days=100))
        current = await plans.current(t.conn, member.id, at=start + timedelta(days=200))
    assert second.starts_at == first.ends_at
    assert second.ends_at == datetime(2028, 1, 10, 12, 0, tzinfo=SHOP)
    assert (first.first_paid_start, second.first_paid_start) == (True, False)
    assert current is not None and (current.id, current.until) == (first.id, second.ends_at)


async def test_the_31st_stays_the_31st_over_short_months(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan = await make_member(), await make_plan("月卡", 990, 1)
    start = datetime(2026, 1, 31, 0, 30, tzinfo=SHOP)  # still the 30th in UTC
    async with tx() as t:
        ends = [
            (await plans.start_paid(t, member.id, plan.id, payment(), at=start)).ends_at.astimezone(SHOP)
            for _ in range(3)
        ]
    assert [(end.month, end.day) for end in ends] == [(2, 28), (3, 31), (4, 30)]


@pytest.mark.rule("semantics 3.2a")
async def test_the_same_payment_never_extends_twice(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, other, plan, paid = await make_member(), await make_member(), await make_plan(), payment()
    async with tx() as t:
        first = await plans.start_paid(t, member.id, plan.id, paid)
        assert await plans.start_paid(t, member.id, plan.id, paid) == first
        assert await plans.terms(t.conn, member.id) == (first,)
        with pytest.raises(KeyReused):
            await plans.start_paid(t, other.id, plan.id, paid)


@pytest.mark.rule("semantics 3.1e")
async def test_a_trial_converts_at_once(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan = await make_member(), await make_plan()
    assert member.phone is not None
    start = datetime(2026, 5, 1, tzinfo=UTC)
    paid_at = start + timedelta(days=2)
    async with tx() as t:
        await plans.start_trial(t, member.id, plan.id, member.phone, at=start)
        term = await plans.start_paid(t, member.id, plan.id, payment(), at=paid_at)
        newest, trial = await plans.terms(t.conn, member.id)
        assert (await plans.current(t.conn, member.id, at=paid_at)) == term == newest
    assert term.first_paid_start and term.starts_at == paid_at
    assert trial.ends_at == trial.until == paid_at


@pytest.mark.rule("semantics 2.1a")
async def test_who_lapsed_starts_anew_and_counts_as_a_first_start(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan = await make_member(), await make_plan("月卡", 990, 1)
    start = datetime(2026, 1, 10, tzinfo=UTC)
    async with tx() as t:
        first = await plans.start_paid(t, member.id, plan.id, payment(), at=start)
        # at the very second it ends it is over
        again = await plans.start_paid(t, member.id, plan.id, payment(), at=first.ends_at)
        other = await plans.start_paid(t, member.id, plan.id, payment(), at=first.ends_at + timedelta(days=1))
    assert again.first_paid_start and again.starts_at == first.ends_at
    assert not other.first_paid_start


@pytest.mark.rule("semantics 2.1a", "semantics 2.1b")
async def test_a_second_plan_beside_a_running_one_is_no_first_start(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, year, month = await make_member(), await make_plan(), await make_plan("月卡", 990, 1)
    async with tx() as t:
        long = await plans.start_paid(t, member.id, year.id, payment())
        short = await plans.start_paid(t, member.id, month.id, payment())
        assert not short.first_paid_start
        assert (await plans.current(t.conn, member.id)) == long


@pytest.mark.rule("semantics 3.3e")
async def test_a_refund_ends_access_and_the_person_is_registered(
    plans: Plans, members: Members, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan, paid = await make_member(), await make_plan(), payment()
    assert member.phone is not None
    async with tx() as t:
        await plans.start_trial(t, member.id, plan.id, member.phone)
        await plans.start_paid(t, member.id, plan.id, paid)
        ended = await plans.end_refunded(t, paid)
        assert ended is not None
        assert await plans.end_refunded(t, paid) == ended
        assert await plans.end_refunded(t, payment()) is None
        assert await plans.current(t.conn, member.id) is None
        facts = await members.facts(t.conn, member.id)
        assert facts.registered and not facts.plans and not facts.on_trial
        again = await plans.start_paid(t, member.id, plan.id, payment())
    assert again.first_paid_start


async def test_a_refunded_renewal_leaves_the_term_before_it(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan, renewal = await make_member(), await make_plan(), payment()
    async with tx() as t:
        first = await plans.start_paid(t, member.id, plan.id, payment())
        await plans.start_paid(t, member.id, plan.id, renewal)
        await plans.end_refunded(t, renewal)
        current = await plans.current(t.conn, member.id)
        assert current == first and current.until == first.ends_at
        again = await plans.start_paid(t, member.id, plan.id, payment())
        assert again.starts_at == first.ends_at


async def test_only_a_paid_plan_adds_to_points(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan = await make_member(), await make_plan()
    assert member.phone is not None
    async with tx() as t:
        assert await plans.points_bonus_percent(t.conn, member.id) == 0
        await plans.start_trial(t, member.id, plan.id, member.phone)
        assert await plans.points_bonus_percent(t.conn, member.id) == 0
        await plans.start_paid(t, member.id, plan.id, payment())
        assert await plans.points_bonus_percent(t.conn, member.id) == 20


async def test_sockets_are_told_after_the_commit_and_only_then(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory, redis: Redis
) -> None:
    member, plan = await make_member(), await make_plan()
    async with tx() as t:
        await plans.start_paid(t, member.id, plan.id, payment())
        assert await told(redis) == []
    assert await told(redis) == [{"member": member.id}]


async def test_a_term_that_runs_out_is_found_once_and_only_when_nothing_follows(
    plans: Plans, make_member: MakeMember, make_plan: MakePlan, tx: TransactionFactory
) -> None:
    member, plan = await make_member(), await make_plan()
    assert member.phone is not None
    start = datetime(2026, 5, 1, tzinfo=UTC)
    async with tx() as t:
        term = await plans.start_trial(t, member.id, plan.id, member.phone, at=start)
        before, after = term.ends_at - timedelta(seconds=1), term.ends_at + timedelta(seconds=1)
        assert await plans.ending(t.conn, before, term.ends_at) == (term,)
        assert await plans.ending(t.conn, term.ends_at, after) == ()
        assert await plans.ending(t.conn, before, after, kind="paid") == ()
        first = await plans.start_paid(t, member.id, plan.id, payment(), at=term.ends_at)
        assert await plans.ending(t.conn, before, first.ends_at, kind="paid") == (first,)
        renewed = await plans.start_paid(t, member.id, plan.id, payment(), at=after)
        assert await plans.ending(t.conn, before, first.ends_at, kind="paid") == ()
        assert await plans.ending(t.conn, first.ends_at, renewed.ends_at) == (renewed,)


async def test_terms_that_run_out_together_are_read_a_page_at_a_time(
    plans: Plans,
    make_member: MakeMember,
    make_plan: MakePlan,
    tx: TransactionFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("membership.plans.ENDING_MAX", 2)
    plan, start = await make_plan(), datetime(2026, 5, 1, tzinfo=UTC)
    members = [await make_member() for _ in range(5)]
    async with tx() as t:
        terms = [await plans.start_paid(t, member.id, plan.id, payment(), at=start) for member in members]
        before, after = start, terms[0].ends_at + timedelta(seconds=1)
        read: list[Term] = []
        while page := await plans.ending(t.conn, before, after, beyond=read[-1] if read else None):
            assert len(page) <= 2
            read += page
    assert {term.member for term in read} == {member.id for member in members} and len(read) == 5
