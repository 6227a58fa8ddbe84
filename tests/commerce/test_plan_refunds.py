"""Giving a plan back, item by item; cancelling it for its end; what stays after it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commerce.benefit_terms import BenefitInput
from commerce.benefits import Benefits
from commerce.claims import Claims, Won
from commerce.fulfilment import Fulfilment, ParcelRow
from commerce.orders import Placed
from commerce.payments import ASK_AGAIN_MAX_S, ASK_FOR_H, FoundPayment
from commerce.plan_refunds import Bill, Later, OnlyAtEnd, PlanRefunds, left_of
from commerce.prices import MemberDay, PriceChanged
from commerce.refund_lines import AlreadyRefunded
from commerce.refunds import Refunds
from commerce.savings import SavingsMeter, saved_on
from commerce.stock import Stock
from membership.actor import Actor, OrderId, PaymentId, ShowId, new_id
from membership.audience import EVERYONE, PLAN_MEMBERS
from membership.plans import NoSuchPlan, Plan
from membership.refusal import Unauthenticated
from tests.commerce.shop_stage import HOST, OPERATOR, Shop
from tests.commerce.test_payments import open_gift, page_of
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


def giving_back(shop: Shop, later: Later = "end", **more: Any) -> PlanRefunds:
    return PlanRefunds(shop.payments, shop.orders, shop.plans, shop.seats, later=later, **more)


async def joined(shop: Shop, plan: Plan, show: ShowId | None = None) -> tuple[Actor, Placed]:
    buyer = await shop.buyer()
    placed = await shop.join(buyer, plan.id, show)
    await shop.pay(placed.order, placed.total_fen)
    return await shop.again(buyer), placed


async def bill(shop: Shop, back: PlanRefunds, buyer: Actor) -> Bill:
    async with shop.tx() as t:
        return await back.bill(t.conn, buyer)


async def give_back(shop: Shop, back: PlanRefunds, buyer: Actor, payable_fen: int | None = None) -> Bill:
    if payable_fen is None:
        payable_fen = (await bill(shop, back, buyer)).payable_fen
    async with shop.tx() as t:
        return await back.refund(t, buyer, payable_fen)


async def buy(shop: Shop, show: ShowId, buyer: Actor, quantity: int = 1, **product: Any) -> Placed:
    given: dict[str, Any] = {"list_fen": 5_000, "member_fen": 4_000, **product}
    placed = await shop.buy(buyer, show, (await shop.open(show, await shop.product(**given)), quantity))
    await shop.pay(placed.order, placed.total_fen)
    return placed


async def days_ago(shop: Shop, order: OrderId, days: float) -> None:
    """As if the plan had been paid and begun so many days earlier."""
    async with shop.tx() as t:
        await t.conn.execute(
            "UPDATE orders SET paid_at = paid_at - make_interval(secs => %s) WHERE id = %s",
            [days * 86_400, order],
        )
        await t.conn.execute(
            """
            UPDATE plan_terms t SET starts_at = starts_at - make_interval(secs => %(s)s),
                ends_at = ends_at - make_interval(secs => %(s)s),
                anchor_at = anchor_at - make_interval(secs => %(s)s)
            FROM payments p WHERE p.id = t.payment_id AND p.order_id = %(order)s
            """,
            {"s": days * 86_400, "order": order},
        )


async def returned(shop: Shop, order: OrderId) -> int:
    rows = await shop.rows(
        "SELECT coalesce(sum(r.amount_fen), 0)::bigint AS fen FROM payment_returns r"
        " JOIN payments p ON p.id = r.payment_id WHERE p.order_id = %s",
        order,
    )
    return int(rows[0]["fen"])


async def send(shop: Shop, order: OrderId, *, returned: bool = False) -> None:
    async with shop.tx() as t:
        (outcome,) = await Fulfilment(shop.orders).take_in(
            t, OPERATOR, [ParcelRow(order=order, carrier="顺丰", tracking="SF1", returned=returned)]
        )
    assert outcome.outcome == ("returned" if returned else "sent")


# --- within seven days ---


@pytest.mark.rule("semantics 3.3a")
async def test_within_seven_days_and_nothing_used_all_of_the_fee_goes_back(
    shop: Shop,
) -> None:
    """Day 3, nothing used, the full fee."""
    buyer, placed = await joined(shop, await shop.plan())
    await days_ago(shop, placed.order, 3)
    back = giving_back(shop)
    shown = await bill(shop, back, buyer)
    assert (shown.way, shown.fee_fen, shown.payable_fen) == ("whole", 19_900, 19_900)
    assert await returned(shop, placed.order) == 0  # looking does nothing
    await give_back(shop, back, buyer)
    assert await returned(shop, placed.order) == 19_900
    async with shop.tx() as t:
        order = await shop.orders.get(t.conn, buyer, placed.order)
    assert (order.state, order.refunded_fen) == ("refunded", 19_900)
    told = [note["state"] for note in await shop.notes(buyer) if note["type"] == "order.changed"]
    assert told == ["placed", "paid", "refunded"]


@pytest.mark.rule("semantics 3.3b")
async def test_what_was_saved_and_gifts_that_were_kept_are_deducted_item_by_item(
    shop: Shop, make_show: MakeShow
) -> None:
    """Fee − savings − stated value of gifts not returned."""
    show, plan = await make_show(), await shop.plan()
    await open_gift(shop, show)
    buyer, placed = await joined(shop, plan, show)
    await buy(shop, show, buyer, 2, list_fen=11_000, member_fen=10_000)
    await send(shop, placed.order)
    back = giving_back(shop)
    shown = await bill(shop, back, buyer)
    assert (shown.way, shown.price_fen, shown.freight_fen, shown.gifts_fen) == ("itemised", 2_000, 0, 5_900)
    assert [(gift.title, gift.value_fen, gift.sent, gift.returned) for gift in shown.gifts] == [
        ("厨房三件套", 5_900, True, False)
    ]
    assert shown.payable_fen == 19_900 - 2_000 - 5_900
    await give_back(shop, back, buyer)
    assert await returned(shop, placed.order) == 12_000
    assert await shop.rows("SELECT state FROM benefit_claims") == [{"state": "deducted"}]
    kept = await shop.rows("SELECT way, fee_fen, price_fen, gifts_fen, payable_fen FROM plan_refunds")
    assert kept == [
        {"way": "itemised", "fee_fen": 19_900, "price_fen": 2_000, "gifts_fen": 5_900, "payable_fen": 12_000}
    ]


@pytest.mark.rule("semantics 3.3b")
async def test_free_freight_counts_as_saved(shop: Shop, make_show: MakeShow) -> None:
    """Parts apart: price and freight."""
    buyer, _ = await joined(shop, await shop.plan())
    await buy(shop, await make_show(), buyer)
    shown = await bill(shop, giving_back(shop), buyer)
    assert (shown.price_fen, shown.freight_fen, shown.payable_fen) == (1_000, 800, 18_100)


@pytest.mark.rule("semantics 2.8a", "semantics 3.3b")
@pytest.mark.parametrize("how", ["not sent", "came back"])
async def test_a_gift_that_was_not_sent_or_came_back_is_recalled_and_not_deducted(
    shop: Shop, make_show: MakeShow, how: str
) -> None:
    """The gift is recalled or its stated value deducted."""
    show, plan = await make_show(), await shop.plan(gift_text="围裙", gift_value_fen=1_900)
    await open_gift(shop, show)
    buyer, placed = await joined(shop, plan, show)
    if how == "came back":
        await send(shop, placed.order)
        await send(shop, placed.order, returned=True)
    back = giving_back(shop)
    shown = await bill(shop, back, buyer)
    assert sorted((gift.title, gift.returned) for gift in shown.gifts) == [
        ("厨房三件套", how == "came back"),
        ("围裙", how == "came back"),
    ]
    assert (shown.way, shown.payable_fen) == ("whole", 19_900)
    await give_back(shop, back, buyer)
    assert await shop.rows("SELECT state FROM benefit_claims") == [{"state": "recalled"}]


async def test_a_gift_of_joining_that_was_not_sent_is_recalled_though_another_gift_was_kept(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    await open_gift(shop, show)
    buyer, _ = await joined(shop, await shop.plan(), show)
    spoon = {"list_fen": 12_000, "member_fen": None, "gift_text": "小勺", "gift_value_fen": 300}
    await send(shop, (await buy(shop, show, buyer, 1, **spoon)).order)
    shown = await give_back(shop, giving_back(shop), buyer)
    assert [(gift.cause, gift.sent) for gift in shown.gifts] == [("join", False), ("order", True)]
    assert shown.payable_fen == 19_600
    assert await shop.rows("SELECT state FROM benefit_claims") == [{"state": "recalled"}]


@pytest.mark.rule("semantics 3.3b")
async def test_the_sum_is_never_below_nothing(shop: Shop, make_show: MakeShow) -> None:
    plan = await shop.plan(fee_fen=1_000)
    buyer, placed = await joined(shop, plan)
    await buy(shop, await make_show(), buyer, 5)
    shown = await give_back(shop, giving_back(shop), buyer)
    assert (shown.price_fen, shown.payable_fen) == (5_000, 0)
    assert await returned(shop, placed.order) == 0
    async with shop.tx() as t:
        assert (await shop.orders.get(t.conn, buyer, placed.order)).state == "refunded"
    assert not (await shop.again(buyer)).facts.plans


async def test_goods_that_were_refunded_saved_nothing(shop: Shop, make_show: MakeShow) -> None:
    buyer, _ = await joined(shop, await shop.plan())
    placed = await buy(shop, await make_show(), buyer, 2, list_fen=10_000, member_fen=9_000)
    back = giving_back(shop)
    assert (await bill(shop, back, buyer)).price_fen == 2_000
    refunds = Refunds(shop.payments, shop.orders, shop.points, Stock())
    async with shop.tx() as t:
        await refunds.lines(t, OPERATOR, placed.order, {1: 1}, "case")
    assert (await bill(shop, back, buyer)).price_fen == 1_000
    async with shop.tx() as t:
        await refunds.lines(t, OPERATOR, placed.order, None, "rest")
    assert (await bill(shop, back, buyer)).way == "whole"


async def test_an_order_still_open_at_the_member_price_counts_as_saved_by(
    shop: Shop, make_show: MakeShow
) -> None:
    """Otherwise one would order, give the plan back whole, and pay the member price then."""
    show = await make_show()
    buyer, _ = await joined(shop, await shop.plan())
    thing = await shop.product(list_fen=12_000, member_fen=10_000)
    await shop.buy(buyer, show, (await shop.open(show, thing), 1))
    assert (await bill(shop, giving_back(shop), buyer)).price_fen == 2_000
    await shop.let_holds_run_out()
    assert (await bill(shop, giving_back(shop), buyer)).way == "whole"


async def run_out_with_a_page(shop: Shop, show: ShowId, buyer: Actor) -> Placed:
    """An order at the member price whose payment was begun, and whose hold is over."""
    offer = await shop.open(show, await shop.product(list_fen=12_000, member_fen=10_000))
    placed = await shop.buy(buyer, show, (offer, 1))
    await page_of(shop, buyer, placed.order)
    await shop.let_holds_run_out()
    return placed


async def later(shop: Shop, placed: Placed, seconds: float) -> None:
    """As if so much time had passed for the order and its page."""
    async with shop.tx() as t:
        await t.conn.execute(
            "UPDATE orders SET closed_at = closed_at - make_interval(secs => %s) WHERE id = %s",
            [seconds, placed.order],
        )
        await t.conn.execute(
            "UPDATE payment_starts SET started_at = started_at - make_interval(secs => %(s)s),"
            " ask_at = ask_at - make_interval(secs => %(s)s) WHERE order_id = %(order)s",
            {"s": seconds, "order": placed.order},
        )


async def test_an_order_that_ran_out_counts_while_its_money_may_be_on_its_way(
    shop: Shop, make_show: MakeShow
) -> None:
    """Otherwise one would pay as the hold ends, and have the plan back whole before the money is told of."""
    buyer, plan_order = await joined(shop, await shop.plan())
    placed = await run_out_with_a_page(shop, await make_show(), buyer)
    back = giving_back(shop)
    shown = await bill(shop, back, buyer)
    assert (shown.way, shown.price_fen, shown.payable_fen) == ("itemised", 2_000, 17_900)
    with pytest.raises(PriceChanged):
        await give_back(shop, back, buyer, 19_900)
    await give_back(shop, back, buyer)
    assert await returned(shop, plan_order.order) == 17_900
    assert (await shop.pay(placed.order, placed.total_fen)).outcome == "accepted"


async def test_an_order_that_ran_out_counts_until_the_provider_was_asked_again(
    shop: Shop, make_show: MakeShow
) -> None:
    """Asked soon after its end, the provider may not know yet; asked later it does, whenever that is."""
    buyer, _ = await joined(shop, await shop.plan())
    placed = await run_out_with_a_page(shop, await make_show(), buyer)
    back = giving_back(shop)
    for after_s, price_fen in ((40.0, 2_000), (ASK_AGAIN_MAX_S, 0)):
        await later(shop, placed, after_s)
        assert (await bill(shop, back, buyer)).price_fen == 2_000  # though it ought to have been asked
        assert await shop.payments.ask_due(shop.database) == 0
        assert (await bill(shop, back, buyer)).price_fen == price_fen
    assert (await bill(shop, back, buyer)).way == "whole"


async def test_money_found_for_an_order_that_ran_out_is_on_the_bill(shop: Shop, make_show: MakeShow) -> None:
    buyer, _ = await joined(shop, await shop.plan())
    placed = await run_out_with_a_page(shop, await make_show(), buyer)
    ref = f"ref-{placed.order}-{placed.total_fen}"
    shop.provider.paid[ref] = FoundPayment(
        ref=ref, order=placed.order, amount_fen=placed.total_fen, payer="p", paid_at=datetime.now(UTC)
    )
    await later(shop, placed, ASK_AGAIN_MAX_S)
    assert await shop.payments.ask_due(shop.database) == 1
    assert (await bill(shop, giving_back(shop), buyer)).price_fen == 2_000


@pytest.mark.parametrize("why", ["no page", "given up", "its money went back", "asked no longer"])
async def test_an_order_that_is_not_to_be_paid_any_more_is_not_on_the_bill(
    shop: Shop, make_show: MakeShow, why: str
) -> None:
    show = await make_show()
    buyer, _ = await joined(shop, await shop.plan())
    thing = await shop.product(list_fen=12_000, member_fen=10_000, stock=1)
    offer = await shop.open(show, thing)
    placed = await shop.buy(buyer, show, (offer, 1))
    if why != "no page":
        await page_of(shop, buyer, placed.order)
    if why == "given up":  # money that comes goes back
        async with shop.tx() as t:
            await shop.orders.cancel(t, buyer, placed.order)
    else:
        await shop.let_holds_run_out()
    if why == "its money went back":
        await shop.buy(await shop.buyer(), show, (offer, 1))
        late = await shop.pay(placed.order, placed.total_fen, f"ref-{placed.order}-{placed.total_fen}")
        assert (late.outcome, late.reason) == ("returned", "no_stock")
    if why == "asked no longer":
        await later(shop, placed, ASK_FOR_H * 3_600)
    assert (await bill(shop, giving_back(shop), buyer)).way == "whole"


async def test_orders_of_before_the_plan_and_of_others_are_not_counted(
    shop: Shop, make_show: MakeShow
) -> None:
    show, plan = await make_show(), await shop.plan()
    trial = await shop.buyer(plan.id)
    await buy(shop, show, trial)
    placed = await shop.join(trial, plan.id)
    await shop.pay(placed.order, placed.total_fen)
    other, _ = await joined(shop, plan)
    await buy(shop, show, other)
    assert (await bill(shop, giving_back(shop), await shop.again(trial))).way == "whole"


async def test_a_gift_with_a_purchase_because_of_the_plan_is_deducted(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    buyer, _ = await joined(shop, await shop.plan())
    more = {"list_fen": 12_000, "member_fen": None, "gift_text": "小勺", "gift_value_fen": 300}
    await send(shop, (await buy(shop, show, buyer, 2, **more)).order)
    await send(shop, (await buy(shop, show, buyer, 1, **{**more, "gift_audience": EVERYONE})).order)
    shown = await bill(shop, giving_back(shop), buyer)
    assert [(gift.title, gift.value_fen) for gift in shown.gifts] == [("小勺", 600)]
    assert (shown.gifts_fen, shown.payable_fen) == (600, 19_300)


async def test_bill_and_meter_count_the_same_pieces_of_a_purchases_gift(
    shop: Shop, make_show: MakeShow
) -> None:
    """A piece that was refunded, a parcel that came back and an order that is not paid keep no gift."""
    show = await make_show()
    buyer, _ = await joined(shop, await shop.plan())
    spoon = {"list_fen": 12_000, "member_fen": None, "gift_text": "小勺", "gift_value_fen": 300}
    placed = await buy(shop, show, buyer, 3, **spoon)
    await shop.buy(buyer, show, (await shop.open(show, await shop.product(**spoon)), 1))

    async def counted() -> tuple[int, int]:
        assert buyer.member is not None
        async with shop.tx() as t:
            meter = await SavingsMeter(shop.plans).of(t.conn, buyer.member)
        assert meter is not None
        return (await bill(shop, giving_back(shop), buyer)).gifts_fen, meter.gift_fen

    assert await counted() == (0, 900)  # to be sent: it would be left out
    refunds = Refunds(shop.payments, shop.orders, shop.points, Stock())
    async with shop.tx() as t:
        await refunds.lines(t, OPERATOR, placed.order, {1: 1}, "case")
    await send(shop, placed.order)
    assert await counted() == (600, 600)
    await send(shop, placed.order, returned=True)
    assert await counted() == (0, 0)


async def test_a_purchases_gift_that_was_not_sent_when_the_plan_went_back_is_left_out_of_the_parcel(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    buyer, _ = await joined(shop, await shop.plan())
    spoon = {"list_fen": 12_000, "member_fen": None, "gift_text": "小勺", "gift_value_fen": 300}
    paid = await buy(shop, show, buyer, 1, **spoon)
    waiting = await shop.buy(buyer, show, (await shop.open(show, await shop.product(**spoon)), 1))
    anyones = await buy(shop, show, buyer, 1, **{**spoon, "gift_audience": EVERYONE})

    async def spoons() -> set[str]:
        async with shop.tx() as t:
            rows = await Fulfilment(shop.orders)._to_send(t.conn, show, 50)
        return {str(row["order"]) for row in rows if row["name"] == "小勺"}

    async def left_out(placed: Placed, actor: Actor) -> list[str]:
        async with shop.tx() as t:
            order = await shop.orders.get(t.conn, actor, placed.order)
        return [line.name for line in order.lines if line.left_out]

    assert await spoons() == {paid.order, anyones.order}
    assert await left_out(paid, buyer) == []
    shown = await give_back(shop, giving_back(shop), buyer)
    assert (shown.way, shown.gifts_fen) == ("whole", 0)
    await shop.pay(waiting.order, waiting.total_fen)
    assert await spoons() == {anyones.order}
    for actor in (buyer, OPERATOR):
        assert await left_out(paid, actor) == await left_out(waiting, actor) == ["小勺"]
        assert await left_out(anyones, actor) == []
    await send(shop, paid.order)  # without it
    assert await left_out(paid, buyer) == ["小勺"]


async def test_a_gift_that_was_sent_before_the_plan_went_back_or_comes_with_the_next_is_not_left_out(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    buyer, _ = await joined(shop, await shop.plan())
    spoon = {"list_fen": 12_000, "member_fen": None, "gift_text": "小勺", "gift_value_fen": 300}
    sent = await buy(shop, show, buyer, 1, **spoon)
    await send(shop, sent.order)
    await give_back(shop, giving_back(shop), buyer)
    again = await shop.join(buyer, (await shop.plan(name="另卡")).id)
    await shop.pay(again.order, again.total_fen)
    buyer = await shop.again(buyer)
    after = await buy(shop, show, buyer, 1, **spoon)
    for placed in (sent, after):
        async with shop.tx() as t:
            order = await shop.orders.get(t.conn, buyer, placed.order)
        assert [(line.kind, line.left_out) for line in order.lines] == [("goods", False), ("gift", False)]


# --- another sum, twice, at once ---


@pytest.mark.rule("semantics 3.3b")
async def test_another_sum_than_the_one_shown_is_refused_and_nothing_is_done(
    shop: Shop, make_show: MakeShow
) -> None:
    buyer, placed = await joined(shop, await shop.plan())
    back = giving_back(shop)
    shown = await bill(shop, back, buyer)
    await buy(shop, await make_show(), buyer)
    with pytest.raises(PriceChanged):
        await give_back(shop, back, buyer, shown.payable_fen)
    assert await returned(shop, placed.order) == 0
    assert (await shop.again(buyer)).facts.plans


async def test_a_plan_given_back_many_times_at_once_goes_back_once(shop: Shop) -> None:
    buyer, placed = await joined(shop, await shop.plan())
    back = giving_back(shop)
    ends = await asyncio.gather(
        *[give_back(shop, back, buyer, 19_900) for _ in range(4)], return_exceptions=True
    )
    assert sum(isinstance(end, Bill) for end in ends) == 1
    assert {type(end) for end in ends if not isinstance(end, Bill)} <= {AlreadyRefunded, NoSuchPlan}
    assert await returned(shop, placed.order) == 19_900
    with pytest.raises(NoSuchPlan):
        await give_back(shop, back, buyer, 0)


async def test_an_order_at_once_with_giving_back_is_counted_or_comes_after(
    shop: Shop, make_show: MakeShow
) -> None:
    """Whoever is first: the sum shown is refused for the order's sake, or the order was not there."""
    show, plan = await make_show(), await shop.plan()
    offer = await shop.open(show, await shop.product(list_fen=12_000, member_fen=10_000, stock=100))
    back = giving_back(shop)
    for _ in range(4):
        buyer, _ = await joined(shop, plan)
        quote = await shop.quote(buyer, show, (offer, 1))
        ended, placed = await asyncio.gather(
            give_back(shop, back, buyer, 19_900), shop.place(buyer, show, quote), return_exceptions=True
        )
        if isinstance(placed, PriceChanged):  # it came after, on a quote of before
            assert isinstance(ended, Bill)
            continue
        assert isinstance(placed, Placed)
        kept = await shop.rows(
            "SELECT o.placed_at < r.refunded_at AS before FROM orders o JOIN orders p"
            " ON p.member_id = o.member_id AND p.kind = 'plan' JOIN plan_refunds r ON r.order_id = p.id"
            " WHERE o.id = %s",
            placed.order,
        )
        assert isinstance(ended, PriceChanged) and kept == []
        assert (await bill(shop, back, buyer)).price_fen == 2_000


async def test_who_has_no_paid_plan_has_nothing_to_give_back(shop: Shop) -> None:
    plan = await shop.plan()
    back = giving_back(shop)
    for buyer in (await shop.buyer(), await shop.buyer(plan.id)):  # a trial never charged
        with pytest.raises(NoSuchPlan):
            await bill(shop, back, buyer)
    for actor in (shop.guest(), OPERATOR):
        with pytest.raises(Unauthenticated):
            await bill(shop, back, actor)


# --- later ---


@pytest.mark.rule("semantics 3.3c")
async def test_after_seven_days_a_plan_is_cancelled_at_its_end(shop: Shop) -> None:
    """Day 100, cancel at the end."""
    buyer, placed = await joined(shop, await shop.plan())
    await days_ago(shop, placed.order, 7)
    back = giving_back(shop)
    shown = await bill(shop, back, buyer)
    assert (shown.way, shown.payable_fen) == ("end", 0)
    with pytest.raises(OnlyAtEnd):
        await give_back(shop, back, buyer, 0)
    assert (await shop.again(buyer)).facts.plans


async def test_one_second_before_the_seven_days_are_over_it_still_goes_back(shop: Shop) -> None:
    buyer, placed = await joined(shop, await shop.plan())
    await days_ago(shop, placed.order, 7 - 60 / 86_400)
    assert (await bill(shop, giving_back(shop), buyer)).way == "whole"


@pytest.mark.rule("semantics 3.3c")
async def test_pro_rata_where_it_is_set_the_part_for_the_time_left_goes_back(
    shop: Shop, make_show: MakeShow
) -> None:
    """Day 100, pro rata by setting."""
    plan = await shop.plan(gift_text="围裙", gift_value_fen=1_900)
    buyer, placed = await joined(shop, plan)
    await buy(shop, await make_show(), buyer)
    await send(shop, placed.order)
    await days_ago(shop, placed.order, 100)
    back = giving_back(shop, "pro_rata")
    shown = await bill(shop, back, buyer)
    assert (shown.way, shown.price_fen, shown.freight_fen, shown.gifts_fen) == ("pro_rata", 0, 0, 1_900)
    assert 19_900 * 100 // 366 <= shown.time_fen <= 19_900 * 100 // 365 + 1
    assert shown.payable_fen == 19_900 - shown.time_fen - 1_900
    fixed = await shop.rows(
        "SELECT extract(epoch FROM ends_at - starts_at)::bigint AS s FROM plan_terms WHERE kind = 'paid'"
    )
    assert fixed[0]["s"] in (365 * 86_400, 366 * 86_400)


NOON = datetime(2026, 7, 1, 12, tzinfo=UTC)


@given(st.integers(0, 1_000_000), st.integers(1, 400), st.integers(-50, 450))
def test_the_part_for_the_time_left_is_between_nothing_and_all(fee_fen: int, days: int, passed: int) -> None:
    ends = NOON + timedelta(days=days)
    left = left_of(fee_fen, NOON, ends, NOON + timedelta(days=passed))
    assert 0 <= left <= fee_fen
    if passed <= 0:
        assert left == fee_fen
    if passed >= days:
        assert left == 0
    assert left >= left_of(fee_fen, NOON, ends, NOON + timedelta(days=passed + 1))


def test_what_a_price_saved_is_measured_against_the_lowest_one_would_have_had_anyway() -> None:
    def line(winner: str, **kinds: int) -> dict[str, Any]:
        candidates = [{"kind": kind, "unit_fen": fen} for kind, fen in kinds.items()]
        return {
            "winner": winner,
            "unit_fen": kinds[winner],
            "candidates": candidates,
            "kept": 2,
        }

    kinds = {"member", "plan_percent"}
    assert saved_on(line("member", list=5_000, member=4_000), kinds) == 2_000
    assert saved_on(line("member", list=5_000, member=4_000, tier=4_500), kinds) == 1_000
    assert saved_on(line("flash", list=5_000, member=4_000, flash=3_000), kinds) == 0
    assert saved_on(line("tier", list=5_000, tier=4_500), kinds) == 0


@pytest.mark.parametrize(("audience", "saved"), [(PLAN_MEMBERS, 600), (EVERYONE, 0)])
async def test_a_member_days_price_is_the_plans_only_where_the_day_is_for_plans(
    shop: Shop, make_show: MakeShow, audience: Any, saved: int
) -> None:
    buyer, _ = await joined(shop, await shop.plan())
    placed = await buy(shop, await make_show(), buyer, list_fen=12_000, member_fen=None)
    async with shop.tx() as t:
        await t.conn.execute("SET LOCAL session_replication_role = replica")
        await t.conn.execute(
            "UPDATE order_lines SET winner = 'member_day', unit_fen = 11400, line_fen = 11400, candidates ="
            """ '[{"kind": "list", "unit_fen": 12000}, {"kind": "member_day", "unit_fen": 11400}]'"""
            " WHERE order_id = %s",
            [placed.order],
        )
    back = giving_back(shop, member_day=MemberDay(audience=audience))
    assert (await bill(shop, back, buyer)).price_fen == saved


# --- cancelling for the end ---


@pytest.mark.rule("semantics 3.2b")
async def test_a_plan_is_cancelled_for_its_end_and_that_may_be_undone_until_then(shop: Shop) -> None:
    buyer, _ = await joined(shop, await shop.plan())
    assert buyer.member is not None
    async with shop.tx() as t:
        first = await shop.plans.cancel(t, buyer.member)
        again = await shop.plans.cancel(t, buyer.member)
    assert (first.cancelled, again.cancelled, again.until) == (True, True, first.until)
    assert (await shop.again(buyer)).facts.plans  # all of it holds until the end
    assert (await bill(shop, giving_back(shop), buyer)).cancelled
    async with shop.tx() as t:
        assert not (await shop.plans.undo_cancel(t, buyer.member)).cancelled
    await shop.rows(
        "UPDATE plan_terms SET ends_at = now(), starts_at = now() - interval '1 day' RETURNING id"
    )
    async with shop.tx() as t:
        for act in (shop.plans.cancel, shop.plans.undo_cancel):
            with pytest.raises(NoSuchPlan):
                await act(t, buyer.member)


async def test_who_cancelled_and_pays_once_more_stays(shop: Shop) -> None:
    buyer, _ = await joined(shop, plan := await shop.plan())
    assert buyer.member is not None
    async with shop.tx() as t:
        await shop.plans.cancel(t, buyer.member)
    renewal = await shop.join(buyer, plan.id)
    await shop.pay(renewal.order, renewal.total_fen)
    async with shop.tx() as t:
        term = await shop.plans.current(t.conn, buyer.member)
    assert term is not None
    assert not term.cancelled


# --- renewals, and what stays ---


@pytest.mark.rule("semantics 3.2a")
async def test_a_renewal_begins_at_the_end_and_one_payment_never_extends_twice(shop: Shop) -> None:
    buyer, _ = await joined(shop, plan := await shop.plan())
    assert buyer.member is not None
    async with shop.tx() as t:
        before = await shop.plans.current(t.conn, buyer.member)
    renewal = await shop.join(buyer, plan.id)
    first = await shop.pay(renewal.order, renewal.total_fen, "ref")
    assert (await shop.pay(renewal.order, renewal.total_fen, "ref")).again
    async with shop.tx() as t:
        again = await shop.plans.start_paid(t, buyer.member, plan.id, PaymentId(first.payment))
        terms = await shop.plans.terms(t.conn, buyer.member)
    assert before is not None
    assert len(terms) == 2
    assert (again.id, again.starts_at) == (terms[0].id, before.until)


async def test_a_renewal_is_given_back_first_and_the_running_year_stays(shop: Shop) -> None:
    buyer, placed = await joined(shop, plan := await shop.plan())
    await days_ago(shop, placed.order, 100)
    renewal = await shop.join(buyer, plan.id)
    await shop.pay(renewal.order, renewal.total_fen)
    back = giving_back(shop)
    shown = await give_back(shop, back, buyer)
    assert (shown.order, shown.way, shown.payable_fen) == (renewal.order, "whole", 19_900)
    assert (await shop.again(buyer)).facts.plans
    assert (await bill(shop, back, buyer)).order == placed.order


@pytest.mark.rule("semantics 3.3e")
async def test_afterwards_the_person_is_registered_and_not_on_trial(shop: Shop) -> None:
    """Also who converted a trial with days left."""
    plan = await shop.plan()
    buyer = await shop.buyer(plan.id)
    assert buyer.member is not None
    placed = await shop.join(buyer, plan.id)
    await shop.pay(placed.order, placed.total_fen)
    await give_back(shop, giving_back(shop), await shop.again(buyer))
    after = (await shop.again(buyer)).facts
    assert (after.registered, after.plans, after.on_trial) == (True, frozenset(), False)
    async with shop.tx() as t:
        assert await shop.plans.current(t.conn, buyer.member) is None


@pytest.mark.rule("semantics 3.3d")
async def test_orders_already_placed_keep_their_price_and_freight(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    buyer, _ = await joined(shop, await shop.plan())
    thing = await shop.product(list_fen=5_000, member_fen=4_000)
    open_order = await shop.buy(buyer, show, (await shop.open(show, thing), 1))
    paid_order = await buy(shop, show, buyer)
    await give_back(shop, giving_back(shop), buyer)
    buyer = await shop.again(buyer)
    async with shop.tx() as t:
        started = await shop.payments.start(t, buyer, open_order.order)
        kept = await shop.orders.get(t.conn, buyer, paid_order.order)
    assert not isinstance(started, str)
    assert started.amount_fen == open_order.total_fen == 4_000
    assert (await shop.pay(open_order.order, 4_000)).outcome == "accepted"
    assert (kept.state, kept.total_fen, kept.refunded_fen) == ("paid", 4_000, 0)


async def test_a_quote_is_not_honoured_after_its_plan_was_given_back(shop: Shop, make_show: MakeShow) -> None:
    """The fee is back, so nothing pays for what it would save; a plan that ran out has been paid for."""
    show = await make_show()
    buyer, _ = await joined(shop, await shop.plan())
    offer = await shop.open(show, await shop.product(list_fen=5_000, member_fen=4_000))
    quote = await shop.quote(buyer, show, (offer, 1))
    await give_back(shop, giving_back(shop), buyer)
    lapsed = await shop.again(buyer)
    assert not lapsed.facts.plans
    with pytest.raises(PriceChanged):
        await shop.place(lapsed, show, quote)
    again = await shop.quote(lapsed, show, (offer, 1))
    assert again.total_fen == (await shop.place(lapsed, show, again)).total_fen == 5_800


async def test_what_was_claimed_as_a_member_alone_and_is_kept_is_deducted(
    shop: Shop, make_show: MakeShow
) -> None:
    show, back = await make_show(), giving_back(shop)
    buyer, _ = await joined(shop, await shop.plan())
    benefits = Benefits(shop.scripts, shop.audiences, shop.notices, shop.members.facts, shop.grants)
    claims = Claims(shop.scripts, shop.notices, shop.tx, shop.grants)
    for audience, points in ((PLAN_MEMBERS, 5_000), (EVERYONE, 700)):
        terms = BenefitInput(title="会员礼", what="points", points=points, quota=5, audience=audience)
        async with shop.tx() as t:
            benefit = await benefits.open(t, HOST, show, terms)
        [won] = await claims.claim_many(show, benefit.id, [(buyer, new_id())])
        assert isinstance(won, Won)
    seen = await bill(shop, back, buyer)
    assert [(gift.cause, gift.deducted_fen) for gift in seen.gifts] == [("benefit", 5_000)]
    assert (seen.way, seen.payable_fen) == ("itemised", 19_900 - 5_000)
    assert (await give_back(shop, back, buyer, 14_900)).payable_fen == 14_900


async def test_a_gift_that_was_claimed_as_a_member_and_came_back_is_not_deducted(
    shop: Shop, make_show: MakeShow
) -> None:
    show, back = await make_show(), giving_back(shop)
    buyer, _ = await joined(shop, await shop.plan())
    benefits = Benefits(shop.scripts, shop.audiences, shop.notices, shop.members.facts, shop.grants)
    claims = Claims(shop.scripts, shop.notices, shop.tx, shop.grants)
    terms = BenefitInput(title="会员礼", value_fen=1_500, quota=5, audience=PLAN_MEMBERS)
    async with shop.tx() as t:
        benefit = await benefits.open(t, HOST, show, terms)
    await claims.claim_many(show, benefit.id, [(buyer, new_id())])
    [row] = await shop.rows("SELECT id::text AS id FROM benefit_claims")
    parcel = ParcelRow(claim=row["id"], carrier="顺丰", tracking="SF1")
    for told, deducted in ((parcel, 1_500), (msgspec.structs.replace(parcel, returned=True), 0)):
        async with shop.tx() as t:
            (outcome,) = await Fulfilment(shop.orders).take_in(t, OPERATOR, [told])
        assert outcome.outcome == ("returned" if told.returned else "sent")
        assert [gift.deducted_fen for gift in (await bill(shop, back, buyer)).gifts] == [deducted]


@pytest.mark.rule("semantics 2.8a")
async def test_a_seat_does_not_reopen_when_its_plan_is_given_back(shop: Shop, make_show: MakeShow) -> None:
    """The seat does not reopen; ranks keep their gap."""
    show, plan = await make_show(), await shop.plan()
    benefits: Benefits = await open_gift(shop, show, quota=1)
    buyer, _ = await joined(shop, plan, show)
    await give_back(shop, giving_back(shop), buyer)
    other = await shop.join(await shop.buyer(), plan.id, show)
    assert benefits
    assert other.seat is not None
    assert other.seat.status == "sold_out"


async def test_who_gave_the_plan_back_and_joins_again_hears_that_the_gift_is_given_once(
    shop: Shop, make_show: MakeShow
) -> None:
    show, plan = await make_show(), await shop.plan()
    await open_gift(shop, show)
    buyer, _ = await joined(shop, plan, show)
    await give_back(shop, giving_back(shop), buyer)
    rejoined = await shop.join(await shop.again(buyer), plan.id, show)
    assert rejoined.seat is not None
    assert (rejoined.seat.status, rejoined.seat.until) == ("already_claimed", None)
