"""A plan with days of grace: what a failed renewal is, what the grace gives, and how it ends."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from commerce.claims import Won
from commerce.freight import FreightRow
from commerce.orders import Placed
from commerce.savings import SavingsMeter
from live.database import Database
from live.lua import Scripts
from membership.actor import Actor, MemberId, PlanId
from membership.audience import PLAN_MEMBERS
from membership.periodic_gifts import GiftInput, PeriodicGifts
from membership.plans import Plan, PlanInput, Term
from membership.refusal import BadRequest, Refusal
from tests.commerce.guard_stage import GuardedShop
from tests.commerce.shop_stage import Shop
from tests.commerce.test_freight import put
from tests.commerce.test_payments import open_gift, page_of
from tests.commerce.test_plan_refunds import give_back, giving_back, joined
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio

DAYS = 10


def member_of(actor: Actor) -> MemberId:
    assert actor.member is not None
    return actor.member


async def terms(shop: Shop, buyer: Actor, kind: str) -> list[Term]:
    """Oldest first."""
    async with shop.tx() as t:
        found = await shop.plans.terms(t.conn, member_of(buyer))
    return sorted((term for term in found if term.kind == kind), key=lambda term: term.starts_at)


async def current(shop: Shop, buyer: Actor) -> Term | None:
    async with shop.tx() as t:
        return await shop.plans.current(t.conn, member_of(buyer))


async def until_end(shop: Shop, buyer: Actor, left: timedelta) -> None:
    """As if so much of the paid time were left; below nothing, it is over so long."""
    await shop.rows(
        """
        WITH moved AS (
            SELECT max(ends_at) - clock_timestamp() - %s::interval AS by FROM plan_terms
            WHERE member_id = %s AND kind = 'paid')
        UPDATE plan_terms SET starts_at = starts_at - moved.by, ends_at = ends_at - moved.by,
            anchor_at = anchor_at - moved.by, ended_at = ended_at - moved.by
        FROM moved WHERE member_id = %s RETURNING id
        """,
        left,
        buyer.id,
        buyer.id,
    )


async def not_paid(shop: Shop, buyer: Actor, plan: Plan, *, begun: bool = True) -> Placed:
    """An order for the plan that runs out, its payment begun at the provider or not."""
    placed = await shop.join(buyer, plan.id)
    if begun:
        await page_of(shop, buyer, placed.order)
    assert await shop.let_holds_run_out() == 1
    return placed


async def pay(shop: Shop, buyer: Actor, plan: PlanId) -> Term:
    placed = await shop.join(buyer, plan)
    await shop.pay(placed.order, placed.total_fen)
    return (await terms(shop, buyer, "paid"))[-1]


async def member(shop: Shop, **given: Any) -> tuple[Actor, Plan]:
    """Whose paid plan has a day left, and ten days of grace."""
    plan = await shop.plan(**{"grace_days": DAYS, **given})
    buyer, _ = await joined(shop, plan)
    await until_end(shop, buyer, timedelta(days=1))
    return buyer, plan


# --- what a failed renewal is ---


@pytest.mark.rule("semantics 3.2c")
async def test_without_days_of_grace_a_failed_renewal_changes_nothing(shop: Shop) -> None:
    buyer, plan = await member(shop, grace_days=PlanInput("年卡", 19_900, 12).grace_days)
    assert plan.grace_days == 0
    await not_paid(shop, buyer, plan)
    assert await terms(shop, buyer, "grace") == []
    await until_end(shop, buyer, timedelta(seconds=-1))
    assert not (await shop.again(buyer)).facts.plans


@pytest.mark.rule("semantics 3.2c")
async def test_a_failed_renewal_gives_one_grace_from_the_end_of_the_paid_time(shop: Shop) -> None:
    buyer, plan = await member(shop)
    first = await not_paid(shop, buyer, plan)
    await not_paid(shop, buyer, plan)
    (grace,) = await terms(shop, buyer, "grace")
    (paid,) = await terms(shop, buyer, "paid")
    assert (grace.starts_at, grace.until) == (paid.ends_at, paid.ends_at + timedelta(days=DAYS))
    assert (await current(shop, buyer)) == paid  # until then
    await until_end(shop, buyer, timedelta(seconds=-1))
    now = await current(shop, buyer)
    assert now is not None
    assert (now.kind, now.grace, now.trial) == ("grace", True, False)
    await not_paid(shop, await shop.again(buyer), plan)  # and one in the grace
    assert len(await terms(shop, buyer, "grace")) == 1
    rows = await shop.rows("SELECT failed_order::text AS failed FROM plan_terms WHERE kind = 'grace'")
    assert rows == [{"failed": first.order}]
    await until_end(shop, buyer, timedelta(days=-DAYS, seconds=-1))
    assert not (await shop.again(buyer)).facts.plans


async def test_a_plan_that_nobody_can_renew_gives_none(shop: Shop) -> None:
    buyer, plan = await member(shop)
    placed = await shop.join(buyer, plan.id)
    await page_of(shop, buyer, placed.order)
    async with shop.tx() as t:
        await shop.plans.set_on_sale(t, plan.id, False)
    assert await shop.let_holds_run_out() == 1
    assert await terms(shop, buyer, "grace") == []


async def test_looking_giving_up_and_another_plan_are_no_renewal_that_failed(shop: Shop) -> None:
    buyer, plan = await member(shop)
    other = await shop.plan(name="季卡", period_months=3, grace_days=DAYS)
    await not_paid(shop, buyer, plan, begun=False)
    await not_paid(shop, buyer, other)
    cut_off = await shop.join(buyer, plan.id)  # begun here, and the provider made no page
    async with shop.tx() as t:
        await shop.payments.start(t, buyer, cut_off.order)
    assert await shop.let_holds_run_out() == 1
    given_up = await shop.join(buyer, plan.id)
    await page_of(shop, buyer, given_up.order)
    async with shop.tx() as t:
        await shop.orders.cancel(t, buyer, given_up.order)
    assert await terms(shop, buyer, "grace") == []


async def test_a_trial_a_first_order_and_who_paid_by_another_order_get_none(
    shop: Shop, make_show: MakeShow
) -> None:
    plan = await shop.plan(grace_days=DAYS)
    trying, fresh = await shop.buyer(plan.id), await shop.buyer()
    for buyer in (trying, fresh):
        await not_paid(shop, buyer, plan)
        assert await terms(shop, buyer, "grace") == []
    # Two orders at once, in a show and beside it: one is paid, so the other was no renewal that failed.
    for _ in ("joining", "renewing"):
        buyer = await shop.again(fresh)
        left = await shop.join(buyer, plan.id, await make_show())
        await page_of(shop, buyer, left.order)
        await pay(shop, buyer, plan.id)
        assert await shop.let_holds_run_out() == 1
        assert await terms(shop, buyer, "grace") == []


async def test_an_order_placed_after_the_end_was_no_renewal(shop: Shop) -> None:
    buyer, plan = await member(shop)
    await until_end(shop, buyer, timedelta(minutes=-1))
    await not_paid(shop, await shop.again(buyer), plan)
    assert await terms(shop, buyer, "grace") == []


@pytest.mark.rule("semantics 3.2c")
async def test_a_plan_cancelled_for_its_end_gets_none_and_undoing_brings_it_back(shop: Shop) -> None:
    buyer, plan = await member(shop)
    async with shop.tx() as t:
        await shop.plans.cancel(t, member_of(buyer))
    await not_paid(shop, buyer, plan)
    assert await terms(shop, buyer, "grace") == []
    async with shop.tx() as t:
        await shop.plans.undo_cancel(t, member_of(buyer))
    await not_paid(shop, buyer, plan)
    (given,) = await terms(shop, buyer, "grace")
    for _ in range(2):
        async with shop.tx() as t:
            await shop.plans.cancel(t, member_of(buyer))
    (gone,) = await terms(shop, buyer, "grace")
    assert gone.until == gone.starts_at
    async with shop.tx() as t:
        await shop.plans.undo_cancel(t, member_of(buyer))
    assert await terms(shop, buyer, "grace") == [given]


@pytest.mark.parametrize(("over", "given"), [(timedelta(minutes=1), 1), (timedelta(days=DAYS + 1), 0)])
async def test_a_renewal_expired_after_the_end_has_what_is_left_of_its_grace(
    shop: Shop, over: timedelta, given: int
) -> None:
    """The end came between the order and the end of its hold; or nothing expired orders for long."""
    buyer, plan = await member(shop)
    placed = await shop.join(buyer, plan.id)
    await page_of(shop, buyer, placed.order)
    before = over + timedelta(hours=1)
    await shop.rows("UPDATE orders SET placed_at = placed_at - %s WHERE kind = 'plan' RETURNING id", before)
    await shop.rows("UPDATE plan_terms SET created_at = created_at - %s RETURNING id", before * 2)
    await until_end(shop, buyer, -over)
    assert not (await shop.again(buyer)).facts.plans
    assert await shop.let_holds_run_out() == 1
    assert len(await terms(shop, buyer, "grace")) == len((await shop.again(buyer)).facts.plans) == given


@pytest.mark.rule("semantics 3.2c")
async def test_of_workers_that_expire_at_once_one_gives_the_grace(shop: Shop, make_show: MakeShow) -> None:
    buyer, plan = await member(shop)
    for show in (None, await make_show(), await make_show()):
        placed = await shop.join(buyer, plan.id, show)
        await page_of(shop, buyer, placed.order)
    await shop.rows("UPDATE orders SET hold_until = clock_timestamp() WHERE state = 'placed' RETURNING id")

    async def expire() -> int:
        async with shop.tx() as t:
            return await shop.orders.expire_due(t, 2)

    assert sum(await asyncio.gather(*[expire() for _ in range(4)])) == 3
    assert len(await terms(shop, buyer, "grace")) == 1


async def test_a_cancellation_under_way_is_waited_for(shop: Shop) -> None:
    buyer, plan = await member(shop)
    placed = await shop.join(buyer, plan.id)
    await page_of(shop, buyer, placed.order)
    async with shop.tx() as t:
        await shop.plans.cancel(t, member_of(buyer))
        expiring = asyncio.create_task(shop.let_holds_run_out())
        async with asyncio.timeout(15):
            while not expiring.done() and not await shop.rows(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ):
                await asyncio.sleep(0.01)
    assert await expiring == 1
    assert await terms(shop, buyer, "grace") == []


# --- what it gives ---


async def test_a_grace_gives_access_price_and_freight_and_no_gifts_points_or_seat(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    await put(shop, FreightRow(flat_fen=800))
    gift = GiftInput(title="小样", value_fen=1_500, every="month")
    buyer, plan = await member(shop, gifts=(gift,))
    await not_paid(shop, buyer, plan)

    async def brought() -> tuple[int, int]:
        async with shop.tx() as t:
            due = await PeriodicGifts(shop.addresses).of_member(t.conn, member_of(buyer))
            return len(due), await shop.plans.points_bonus_percent(t.conn, member_of(buyer))

    assert await brought() == (1, 20)
    await until_end(shop, buyer, timedelta(seconds=-1))
    buyer = await shop.again(buyer)
    assert (buyer.facts.plans, buyer.facts.on_trial) == ({plan.id}, False)
    assert await brought() == (0, 0)
    offer = await shop.open(show, await shop.product(list_fen=5_000, member_fen=4_000))
    quote = await shop.quote(buyer, show, (offer, 1))
    assert (quote.lines[0].unit_fen, quote.freight_fen) == (4_000, 0)
    placed = await shop.place(buyer, show, quote)
    await shop.pay(placed.order, placed.total_fen)
    async with shop.tx() as t:
        meter = await SavingsMeter(shop.plans).of(t.conn, member_of(buyer))
    assert meter is not None
    assert (meter.kind, meter.price_fen, meter.freight_fen) == ("grace", 1_000, 800)
    await open_gift(shop, show)
    joining = await shop.join(buyer, plan.id, show)
    assert joining.seat is None
    recorded = await shop.pay(joining.order, joining.total_fen)
    assert recorded.claim is None


async def test_a_grace_has_no_part_in_the_first_to_claim(
    redis: Redis, scripts: Scripts, database: Database, make_show: MakeShow
) -> None:
    shop, show = GuardedShop(redis, scripts, database), await make_show()
    buyer, plan = await member(shop)
    paying, _ = await joined(shop, plan)
    await not_paid(shop, buyer, plan)
    await until_end(shop, buyer, timedelta(seconds=-1))
    buyer = await shop.again(buyer)
    assert (buyer.facts.plans, buyer.facts.in_grace) == ({plan.id}, True)
    benefit = await shop.give(show, quota=1, value_fen=500, audience=PLAN_MEMBERS)
    assert isinstance(await shop.claim(show, benefit, buyer), Refusal)
    won = await shop.claim(show, benefit, await shop.again(paying))
    assert isinstance(won, Won)
    assert won.rank == 1


# --- how it ends ---


@pytest.mark.rule("semantics 3.2c")
async def test_paying_in_the_grace_goes_on_from_the_paid_end_and_ends_it(shop: Shop) -> None:
    buyer, plan = await member(shop)
    await not_paid(shop, buyer, plan)
    await until_end(shop, buyer, timedelta(days=-3))
    paid = await pay(shop, buyer, plan.id)
    before, _ = await terms(shop, buyer, "paid")
    assert (paid.starts_at, paid.first_paid_start) == (before.ends_at, False)
    assert paid.until - before.starts_at >= timedelta(days=730)  # two years from one anchor
    (grace,) = await terms(shop, buyer, "grace")
    assert grace.until < grace.starts_at + timedelta(days=4)
    assert (await current(shop, buyer)) == paid
    # The new term has a grace of its own.
    await not_paid(shop, buyer, plan)
    assert [term.starts_at for term in await terms(shop, buyer, "grace")] == [before.ends_at, paid.ends_at]


async def test_late_money_for_the_renewal_that_failed_is_paid_in_the_grace(shop: Shop) -> None:
    buyer, plan = await member(shop)
    placed = await not_paid(shop, buyer, plan)
    await until_end(shop, buyer, timedelta(days=-3))
    await shop.pay(placed.order, placed.total_fen)
    before, paid = await terms(shop, buyer, "paid")
    assert (paid.starts_at, paid.first_paid_start) == (before.ends_at, False)


async def test_another_plan_bought_in_a_grace_is_no_first_start_and_leaves_the_grace(shop: Shop) -> None:
    buyer, plan = await member(shop)
    other = await shop.plan(name="季卡", period_months=3)
    await not_paid(shop, buyer, plan)
    await until_end(shop, buyer, timedelta(days=-3))
    bought = await pay(shop, buyer, other.id)
    assert not bought.first_paid_start
    assert bought.starts_at > (await terms(shop, buyer, "paid"))[0].ends_at
    assert (await shop.again(buyer)).facts.plans == {plan.id, other.id}


@pytest.mark.rule("semantics 3.2c")
async def test_paying_after_the_grace_is_a_first_paid_start(shop: Shop) -> None:
    buyer, plan = await member(shop)
    await not_paid(shop, buyer, plan)
    await until_end(shop, buyer, timedelta(days=-DAYS, seconds=-1))
    paid = await pay(shop, buyer, plan.id)
    assert paid.first_paid_start
    assert paid.starts_at > (await terms(shop, buyer, "grace"))[0].ends_at


@pytest.mark.rule("semantics 3.2c")
async def test_paid_before_the_end_the_grace_is_not_used_and_goes(shop: Shop) -> None:
    buyer, plan = await member(shop)
    await not_paid(shop, buyer, plan)
    paid = await pay(shop, buyer, plan.id)
    (grace,) = await terms(shop, buyer, "grace")
    assert grace.until == grace.starts_at == paid.starts_at
    async with shop.tx() as t:  # nor does undoing a cancellation bring that one back
        await shop.plans.cancel(t, member_of(buyer))
        await shop.plans.undo_cancel(t, member_of(buyer))
    assert await terms(shop, buyer, "grace") == [grace]


async def test_a_cancelled_grace_stays_gone_after_a_renewal(shop: Shop) -> None:
    buyer, plan = await member(shop)
    await not_paid(shop, buyer, plan)
    async with shop.tx() as t:
        await shop.plans.cancel(t, member_of(buyer))
    await pay(shop, buyer, plan.id)
    async with shop.tx() as t:
        await shop.plans.cancel(t, member_of(buyer))
        await shop.plans.undo_cancel(t, member_of(buyer))
    (grace,) = await terms(shop, buyer, "grace")
    assert grace.until == grace.starts_at


async def test_given_back_the_grace_goes_with_the_plan(shop: Shop) -> None:
    plan = await shop.plan(grace_days=DAYS)
    buyer, _ = await joined(shop, plan)
    await not_paid(shop, buyer, plan)
    assert len(await terms(shop, buyer, "grace")) == 1
    await give_back(shop, giving_back(shop), buyer)
    (grace,) = await terms(shop, buyer, "grace")
    assert grace.until == grace.starts_at
    assert not (await shop.again(buyer)).facts.plans


async def test_the_job_tells_a_lapse_at_the_end_of_the_grace_and_that_the_paid_time_is_over(
    shop: Shop,
) -> None:
    buyer, plan = await member(shop)
    await not_paid(shop, buyer, plan)
    (paid,), (grace,) = await terms(shop, buyer, "paid"), await terms(shop, buyer, "grace")

    async def ending(at: datetime) -> list[str]:
        async with shop.tx() as t:
            found = await shop.plans.ending(t.conn, at - timedelta(minutes=1), at + timedelta(minutes=1))
        return [term.id for term in found]

    assert await ending(paid.ends_at) == [paid.id]
    assert await ending(grace.ends_at) == [grace.id]
    await pay(shop, buyer, plan.id)
    assert await ending(paid.ends_at) == await ending(grace.ends_at) == []


@pytest.mark.parametrize(("months", "most"), [(1, 14), (2, 30), (12, 30)])
async def test_the_days_of_grace_are_bounded(shop: Shop, months: int, most: int) -> None:
    assert (await shop.plan(period_months=months, grace_days=most)).grace_days == most
    for days in (-1, most + 1):
        with pytest.raises(BadRequest, match="grace_days"):
            await shop.plan(period_months=months, grace_days=days)
