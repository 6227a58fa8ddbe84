"""Coupons and points on the road of an order: quoted, held, used, given back. semantics 4 and 6."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from commerce.coupons import Coupon, CouponId, CouponUsed, NoSuchCoupon
from commerce.freight import FreightRow
from commerce.messages import LINES_MAX, QUANTITY_MAX
from commerce.order_book import Order
from commerce.orders import NotPaid, OrderClosed, Placed
from commerce.products import ProductPatch
from commerce.refund_lines import AlreadyRefunded
from commerce.savings import SavingsMeter
from membership.actor import Actor, OrderId, new_id
from membership.audience import EVERYONE, PLAN_MEMBERS, Audience
from membership.campaigns import CampaignInput
from membership.points import Balance, NotEnoughPoints
from membership.refusal import BadRequest, Unauthenticated
from tests.commerce.shop_stage import OPERATOR, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


async def read(shop: Shop, buyer: Actor, placed: Placed) -> Order:
    async with shop.tx() as t:
        return await shop.orders.get(t.conn, buyer, placed.order)


async def state_of(shop: Shop, coupon: Coupon) -> str:
    return str((await shop.rows("SELECT state FROM coupons WHERE id = %s", coupon.id))[0]["state"])


async def cancel(shop: Shop, buyer: Actor, order: OrderId) -> None:
    async with shop.tx() as t:
        await shop.orders.cancel(t, buyer, order)


async def refund(shop: Shop, order: OrderId) -> None:
    async with shop.tx() as t:
        await shop.payments.refund(t, OPERATOR, order)


async def start_payment(shop: Shop, buyer: Actor, order: OrderId) -> int:
    async with shop.tx() as t:
        started = await shop.payments.start(t, buyer, order)
    assert not isinstance(started, str)
    return started.amount_fen


# --- quotes ---


@pytest.mark.rule("semantics 4.2a", "semantics 4.3a", "semantics 4.4a")
async def test_a_quote_says_what_each_coupon_does_and_spreads_it_over_the_lines(
    shop: Shop, make_show: MakeShow
) -> None:
    """semantics 4: then coupons, by stacking rules as data; then points."""
    show, buyer = await make_show(), await shop.buyer()
    rice, oil = await shop.product(list_fen=6_000), await shop.product(list_fen=3_000)
    offers = await shop.open(show, rice), await shop.open(show, oil)
    used = await shop.grant(buyer, await shop.rule(off_fen=1_000, title="十元"))
    other = await shop.grant(buyer, await shop.rule(off_fen=500))
    high = await shop.grant(buyer, await shop.rule(threshold_fen=100_000))
    await shop.give_points(buyer, 350)
    quote = await shop.quote(
        buyer, show, (offers[0], 1), (offers[1], 1), coupons=[used.id, other.id], points=500
    )
    said = {each.coupon: (each.off_fen, each.used, each.why_not) for each in quote.coupons}
    assert said == {
        used.id: (1_000, True, None),
        other.id: (0, False, "not_stacking"),
        high.id: (0, False, "threshold"),
    }
    assert (quote.goods_fen, quote.coupon_fen, quote.points, quote.points_fen) == (9_000, 1_000, 300, 300)
    assert [(line.coupon_fen, line.points_fen) for line in quote.lines] == [(667, 200), (333, 100)]
    assert (quote.points_max, quote.freight_fen) == (300, 800)
    assert quote.total_fen == 9_000 - 1_000 - 300 + 800


async def test_the_best_coupons_are_chosen_when_one_asks_for_them(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offer = await shop.open(show, await shop.product(list_fen=10_000))
    small = await shop.grant(buyer, await shop.rule(off_fen=500))
    big = await shop.grant(buyer, await shop.rule(kind="percent", percent=80))
    quote = await shop.quote(buyer, show, (offer, 1), best=True)
    assert [each.coupon for each in quote.coupons if each.used] == [big.id]
    assert {each.coupon: each.why_not for each in quote.coupons}[small.id] == "not_chosen"
    assert quote.total_fen == 8_000


async def test_what_cannot_be_asked_for_is_refused(shop: Shop, make_show: MakeShow) -> None:
    show, buyer, stranger = await make_show(), await shop.buyer(), await shop.buyer()
    offer = await shop.open(show, await shop.product())
    coupon = await shop.grant(stranger, await shop.rule())
    for wish, error in (
        ({"coupons": [coupon.id]}, NoSuchCoupon),
        ({"coupons": [CouponId(new_id())] * 2}, BadRequest),
        ({"coupons": [CouponId(new_id()) for _ in range(4)]}, BadRequest),
        ({"points": 150}, BadRequest),
        ({"points": -100}, BadRequest),
    ):
        with pytest.raises(error):
            await shop.quote(buyer, show, (offer, 1), **wish)  # type: ignore[arg-type]
    for wish in ({"coupons": [coupon.id]}, {"points": 100}):
        with pytest.raises(Unauthenticated):
            await shop.quote(shop.guest(), show, (offer, 1), **wish)
    assert (await shop.quote(shop.guest(), show, (offer, 1), best=True)).coupons == ()


@pytest.mark.rule("L31")
async def test_the_largest_quote_still_fits_a_command(shop: Shop, make_show: MakeShow) -> None:
    """Ten lines at high prices with every candidate, three coupons, points and a long way to go."""
    show, plan = await make_show(), await shop.plan(percent=95)
    buyer = await shop.buyer(plan.id)
    await shop.give_points(buyer, 900_000_000)
    now = datetime.now(UTC)
    offers = []
    for _ in range(LINES_MAX):
        product = await shop.product(list_fen=99_999_999, stock=1_000, gift_text="礼" * 80)
        async with shop.tx() as t:
            for audience, off in ((EVERYONE, 1), (PLAN_MEMBERS, 2), (Audience(kind="registered"), 3)):
                await shop.products.set_price(
                    t, OPERATOR, product.id, 99_999_999 - off, audience, now - timedelta(hours=1)
                )
        offers.append(await shop.open(show, product, "flash", flash_fen=99_999_990, quota=500))
    titled: dict[str, Any] = {"title": "券" * 60, "stack_group": "any", "stacks_with": ("any",)}
    coupons = [await shop.grant(buyer, await shop.rule(off_fen=99_999_999 - n, **titled)) for n in range(3)]
    region = "省" * 30
    async with shop.tx() as t:
        await shop.quotes.freight.set(
            t,
            OPERATOR,
            [FreightRow(), FreightRow(region=region, flat_fen=999_999, days_min=1, days_max=60)],
        )
    quote = await shop.quote(
        buyer,
        show,
        *((offer, QUANTITY_MAX) for offer in offers),
        coupons=[each.id for each in coupons],
        points=900_000_000,
        region=region,
    )
    assert (sum(each.used for each in quote.coupons), quote.points) == (3, 900_000_000)
    command = shop.command(buyer, quote, "k" * 64)
    assert len(msgspec.json.encode(command)) <= 4_096
    assert len(quote.token) <= 4_000
    promise = shop.quotes.verify(quote.token)
    assert [each.off_fen for each in promise.coupons] == [99_999_999, 99_999_998, 99_999_997]
    assert promise.points == 900_000_000


async def test_no_promo_takes_no_coupon(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offer = await shop.open(show, await shop.product(no_promo=True))
    coupon = await shop.grant(buyer, await shop.rule())
    quote = await shop.quote(buyer, show, (offer, 1), coupons=[coupon.id])
    assert (quote.coupon_fen, quote.coupons[0].why_not) == (0, "no_promo")


# --- placing ---


async def test_an_order_holds_its_coupon_and_points_and_a_payment_uses_them(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offer = await shop.open(show, await shop.product(list_fen=5_000))
    coupon = await shop.grant(buyer, await shop.rule(title="十元"))
    await shop.give_points(buyer, 1_000)
    placed = await shop.buy(buyer, show, (offer, 2), coupons=[coupon.id], points=1_000)
    assert placed.total_fen == 10_000 - 1_000 - 1_000
    assert await state_of(shop, coupon) == "held"
    assert await shop.balance(buyer) == Balance(0, 0)
    order = await read(shop, buyer, placed)
    assert (order.coupon_fen, order.points, order.points_fen, order.total_fen) == (1_000, 1_000, 1_000, 8_000)
    assert [(each.title, each.off_fen) for each in order.coupons] == [("十元", 1_000)]
    assert (order.lines[0].coupon_fen, order.lines[0].points_fen) == (1_000, 1_000)
    assert (await shop.pay(placed.order, 8_000)).outcome == "accepted"
    assert await state_of(shop, coupon) == "used"
    # semantics 6: earned on money paid for goods, not on the part paid by coupon or points.
    assert await shop.balance(buyer) == Balance(0, 80)


@pytest.mark.rule("M46")
async def test_a_coupon_used_meanwhile_refuses_the_order_whole(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    product = await shop.product(stock=10)
    offer = await shop.open(show, product)
    coupon = await shop.grant(buyer, await shop.rule())
    quote = await shop.quote(buyer, show, (offer, 1), coupons=[coupon.id])
    await shop.buy(buyer, show, (offer, 1), coupons=[coupon.id])
    with pytest.raises(CouponUsed):
        await shop.place(buyer, show, quote)
    assert await shop.stock(product) == 9
    assert len(await shop.rows("SELECT id FROM orders")) == 1


async def test_points_spent_meanwhile_refuse_the_order_whole(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    product = await shop.product(stock=10)
    offer = await shop.open(show, product)
    coupon = await shop.grant(buyer, await shop.rule())
    await shop.give_points(buyer, 200)
    quote = await shop.quote(buyer, show, (offer, 1), coupons=[coupon.id], points=200)
    await shop.buy(buyer, show, (offer, 1), points=200)
    with pytest.raises(NotEnoughPoints):
        await shop.place(buyer, show, quote)
    assert await shop.stock(product) == 9
    assert await state_of(shop, coupon) == "free"


async def test_a_coupon_that_ran_out_under_a_quote_is_honoured(shop: Shop, make_show: MakeShow) -> None:
    """semantics 4: a quote is honoured for ten minutes."""
    show, buyer = await make_show(), await shop.buyer()
    offer = await shop.open(show, await shop.product())
    coupon = await shop.grant(buyer, await shop.rule())
    quote = await shop.quote(buyer, show, (offer, 1), coupons=[coupon.id])
    await shop.rows("UPDATE coupons SET expires_at = clock_timestamp() RETURNING id")
    async with shop.tx() as t:
        await shop.coupons.expire_due(t)
    assert (await shop.place(buyer, show, quote)).total_fen == quote.total_fen
    assert await state_of(shop, coupon) == "held"


async def test_the_same_key_again_takes_nothing_twice(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offer = await shop.open(show, await shop.product())
    coupon = await shop.grant(buyer, await shop.rule())
    await shop.give_points(buyer, 500)
    quote = await shop.quote(buyer, show, (offer, 1), coupons=[coupon.id], points=300)
    key = new_id()
    first = await shop.place(buyer, show, quote, key)
    assert await shop.place(buyer, show, quote, key) == first
    assert await shop.balance(buyer) == Balance(200, 0)


@pytest.mark.rule("semantics 4.2b")
async def test_nothing_to_pay_is_paid_at_once(shop: Shop, make_show: MakeShow) -> None:
    """semantics 4: payable ≥ 0; of nothing, no provider is asked."""
    show, buyer = await make_show(), await shop.buyer()
    product = await shop.product(list_fen=5_000, stock=3)
    offer = await shop.open(show, product)
    goods = await shop.grant(
        buyer, await shop.rule(off_fen=5_000, stack_group="goods", stacks_with=("freight",))
    )
    freight = await shop.grant(
        buyer, await shop.rule(kind="freight", stack_group="freight", stacks_with=("goods",))
    )
    placed = await shop.buy(buyer, show, (offer, 1), coupons=[goods.id, freight.id])
    assert (placed.total_fen, placed.state) == (0, "paid")
    order = await read(shop, buyer, placed)
    assert (order.state, order.paid_at is not None) == ("paid", True)
    assert [await state_of(shop, each) for each in (goods, freight)] == ["used", "used"]
    assert await shop.stock(product) == 2
    assert await shop.rows("SELECT * FROM payments") == []
    assert [event["type"] for event in await shop.events(show) if event["type"].startswith("order")] == [
        "order.placed",
        "order.paid",
    ]
    await shop.let_holds_run_out()
    assert (await read(shop, buyer, placed)).state == "paid"
    await refund(shop, placed.order)
    assert [await state_of(shop, each) for each in (goods, freight)] == ["free", "free"]
    assert await shop.rows("SELECT * FROM payment_returns") == []


# --- every effect has its inverse ---


@pytest.mark.parametrize("ended", ["cancelled", "expired", "refunded"])
async def test_an_order_that_comes_to_nothing_gives_everything_back(
    shop: Shop, make_show: MakeShow, ended: str
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    product = await shop.product(stock=5, list_fen=5_000)
    offer = await shop.open(show, product)
    coupon = await shop.grant(buyer, await shop.rule())
    await shop.give_points(buyer, 700)
    placed = await shop.buy(buyer, show, (offer, 1), coupons=[coupon.id], points=700)
    if ended == "cancelled":
        await cancel(shop, buyer, placed.order)
    elif ended == "expired":
        await shop.let_holds_run_out()
    else:
        await shop.pay(placed.order, placed.total_fen)
        await refund(shop, placed.order)
    assert (await read(shop, buyer, placed)).state == ended
    assert await state_of(shop, coupon) == "free"
    assert await shop.balance(buyer) == Balance(700, 0)
    again = await shop.buy(buyer, show, (offer, 1), coupons=[coupon.id], points=700)
    assert again.total_fen == placed.total_fen


async def test_late_money_takes_the_coupon_and_the_points_again(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offer = await shop.open(show, await shop.product())
    coupon = await shop.grant(buyer, await shop.rule())
    await shop.give_points(buyer, 500)
    placed = await shop.buy(buyer, show, (offer, 1), coupons=[coupon.id], points=500)
    await shop.let_holds_run_out()
    assert (await shop.pay(placed.order, placed.total_fen)).outcome == "accepted"
    assert await state_of(shop, coupon) == "used"
    assert (await shop.balance(buyer)).active == 0
    await refund(shop, placed.order)
    assert await state_of(shop, coupon) == "free"
    assert await shop.balance(buyer) == Balance(500, 0)


@pytest.mark.parametrize("gone", ["coupon", "points"])
async def test_late_money_goes_back_when_the_discount_was_used_elsewhere(
    shop: Shop, make_show: MakeShow, gone: str
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    product = await shop.product(stock=5)
    offer = await shop.open(show, product)
    coupon = await shop.grant(buyer, await shop.rule())
    await shop.give_points(buyer, 500)
    placed = await shop.buy(buyer, show, (offer, 1), coupons=[coupon.id], points=500)
    await shop.let_holds_run_out()
    elsewhere: dict[str, Any] = {"coupons": [coupon.id]} if gone == "coupon" else {"points": 500}
    await shop.buy(buyer, show, (offer, 1), **elsewhere)
    recorded = await shop.pay(placed.order, placed.total_fen)
    assert (recorded.outcome, recorded.reason) == ("returned", "discount_gone")
    assert (await read(shop, buyer, placed)).state == "expired"
    assert await shop.stock(product) == 4
    assert (await shop.balance(buyer)).active == (500 if gone == "coupon" else 0)


async def test_late_money_without_stock_leaves_coupon_and_points_free(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offer = await shop.open(show, await shop.product(stock=1))
    coupon = await shop.grant(buyer, await shop.rule())
    await shop.give_points(buyer, 500)
    placed = await shop.buy(buyer, show, (offer, 1), coupons=[coupon.id], points=500)
    await shop.let_holds_run_out()
    await shop.buy(await shop.buyer(), show, (offer, 1))
    assert (await shop.pay(placed.order, placed.total_fen)).reason == "no_stock"
    assert await state_of(shop, coupon) == "free"
    assert await shop.balance(buyer) == Balance(500, 0)


# --- the lower of the quote and now ---


@pytest.mark.rule("semantics 4.4c")
async def test_a_lower_price_now_lowers_what_the_discounts_are_worked_out_on(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    product = await shop.product(list_fen=10_000)
    offer = await shop.open(show, product)
    coupon = await shop.grant(buyer, await shop.rule(kind="percent", percent=90))
    quote = await shop.quote(buyer, show, (offer, 1), coupons=[coupon.id])
    assert quote.total_fen == 9_000
    async with shop.tx() as t:
        await shop.products.update(t, OPERATOR, product.id, ProductPatch(list_fen=9_900))
    assert (await shop.place(buyer, show, quote)).total_fen == 8_910


@pytest.mark.rule("semantics 4.4c")
async def test_a_lower_price_that_would_cost_the_coupon_its_threshold_does_not_make_it_dearer(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    product = await shop.product(list_fen=10_000)
    offer = await shop.open(show, product)
    coupon = await shop.grant(buyer, await shop.rule(off_fen=2_000, threshold_fen=10_000))
    quote = await shop.quote(buyer, show, (offer, 1), coupons=[coupon.id])
    waiting = await shop.buy(await shop.buyer(), show, (offer, 1))
    async with shop.tx() as t:
        await shop.products.update(t, OPERATOR, product.id, ProductPatch(list_fen=9_950))
    placed = await shop.place(buyer, show, quote)
    assert (placed.total_fen, await state_of(shop, coupon)) == (8_000, "held")
    assert [each.title for each in (await read(shop, buyer, placed)).coupons] == ["十元券"]
    assert waiting.total_fen == 10_000
    assert await start_payment(shop, buyer, placed.order) == 8_000
    async with shop.tx() as t:
        await shop.products.update(t, OPERATOR, product.id, ProductPatch(list_fen=7_000))
    assert (await read(shop, buyer, placed)).total_fen == 8_000  # once started, the amount stands


async def test_at_payment_a_coupon_the_lower_price_no_longer_needs_goes_back(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    product = await shop.product(list_fen=10_000)
    offer = await shop.open(show, product)
    coupon = await shop.grant(buyer, await shop.rule(off_fen=2_000, threshold_fen=10_000))
    await shop.give_points(buyer, 4_000)
    placed = await shop.buy(buyer, show, (offer, 1), coupons=[coupon.id], points=4_000)
    assert placed.total_fen == 4_000
    async with shop.tx() as t:
        await shop.products.update(t, OPERATOR, product.id, ProductPatch(list_fen=5_000))
    # Half of 5,000 in points, no coupon: 2,500 and the freight of a small order.
    assert await start_payment(shop, buyer, placed.order) == 2_500
    order = await read(shop, buyer, placed)
    assert (order.goods_fen, order.coupon_fen, order.points, order.freight_fen) == (5_000, 0, 2_500, 0)
    assert (await state_of(shop, coupon), await shop.balance(buyer)) == ("free", Balance(1_500, 0))
    assert order.coupons == ()
    await shop.pay(placed.order, 2_500)
    await refund(shop, placed.order)
    assert await shop.balance(buyer) == Balance(4_000, 0)


async def test_a_lower_price_that_leaves_nothing_to_pay_is_paid_without_a_provider(
    shop: Shop, make_show: MakeShow
) -> None:
    show, plan = await make_show(), await shop.plan()
    buyer = await shop.buyer(plan.id)  # no freight
    product = await shop.product(list_fen=5_000)
    offer = await shop.open(show, product)
    coupon = await shop.grant(buyer, await shop.rule(off_fen=4_000))
    placed = await shop.buy(buyer, show, (offer, 1), coupons=[coupon.id])
    assert placed.total_fen == 1_000
    async with shop.tx() as t:
        await shop.products.update(t, OPERATOR, product.id, ProductPatch(list_fen=3_000))
    async with shop.tx() as t:
        assert await shop.payments.start(t, buyer, placed.order) == f"/s/{show}"
    order = await read(shop, buyer, placed)
    assert (order.state, order.total_fen, order.coupon_fen) == ("paid", 0, 3_000)
    assert (await state_of(shop, coupon), shop.provider.asked) == ("used", [])


# --- points ---


@pytest.mark.rule("M64")
async def test_the_time_of_the_order_decides_which_campaigns_count(shop: Shop, make_show: MakeShow) -> None:
    """Row 64, L29: 109 paid, plan +20 %, double event → 109 + 21 + 109; settled after the event has ended."""
    show, plan = await make_show(), await shop.plan()
    buyer = await shop.buyer()
    joined = await shop.join(buyer, plan.id)
    await shop.pay(joined.order, joined.total_fen)
    buyer = await shop.again(buyer)
    product = await shop.product(list_fen=12_800, member_fen=10_900)
    offer = await shop.open(show, product)
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    async with shop.tx() as t:
        double = await shop.campaigns.create(
            t, OPERATOR, CampaignInput(name="双倍", percent=100, from_at=now - hour, until_at=now + hour)
        )
        await shop.campaigns.create(
            t,
            OPERATOR,
            CampaignInput(
                name="只算一个", percent=50, from_at=now - hour, until_at=now + hour, adds=False, priority=2
            ),
        )
        await shop.campaigns.create(
            t,
            OPERATOR,
            CampaignInput(name="排在后", percent=50, from_at=now - hour, until_at=now + hour, adds=False),
        )
    quote = await shop.quote(buyer, show, (offer, 1))
    # L32: the priority is explicit and shown in the price's explanation.
    assert [
        (each.reason, each.points, each.counts, each.why, each.priority) for each in quote.points_earned
    ] == [
        ("goods", 109, True, "", 0),
        ("goods.plan", 21, True, "", 0),
        ("goods.event:只算一个", 54, True, "first", 2),
        ("goods.event:双倍", 109, True, "adds", 0),
        ("goods.event:排在后", 0, False, "behind", 0),
    ]
    placed = await shop.place(buyer, show, quote)
    async with shop.tx() as t:
        await shop.campaigns.end(t, OPERATOR, double.id)
    await shop.pay(placed.order, placed.total_fen)
    rows = await shop.rows(
        "SELECT reason, amount FROM points_entries WHERE cause = %s ORDER BY id", f"order:{placed.order}"
    )
    assert {row["reason"]: row["amount"] for row in rows} == {
        "goods": 109,
        "goods.plan": 21,
        "goods.event:双倍": 109,
        "goods.event:只算一个": 54,
    }
    later = await shop.buy(buyer, show, (offer, 1))
    await shop.pay(later.order, later.total_fen)
    rows = await shop.rows("SELECT reason FROM points_entries WHERE cause = %s", f"order:{later.order}")
    assert "goods.event:双倍" not in {row["reason"] for row in rows}


# --- the savings meter ---


@pytest.mark.rule("semantics 4.6a", "M17")
async def test_the_meter_adds_up_what_the_plan_alone_brought(shop: Shop, make_show: MakeShow) -> None:
    """semantics 4, row 17: parts apart and the sum against the card's fee; never more than was saved."""
    show, plan = await make_show(), await shop.plan()
    meter = SavingsMeter(shop.plans)
    product = await shop.product(
        list_fen=5_800, member_fen=4_900, gift_text="试吃装 5 包", gift_value_fen=2_500
    )
    offer = await shop.open(show, product)
    buyer = await shop.buyer()
    assert buyer.member is not None
    before = await shop.buy(buyer, show, (offer, 1))
    await shop.pay(before.order, before.total_fen)
    joined = await shop.join(buyer, plan.id)
    await shop.pay(joined.order, joined.total_fen)
    buyer = await shop.again(buyer)
    assert buyer.member is not None
    own = await shop.grant(buyer, await shop.rule(off_fen=300, audience=PLAN_MEMBERS))
    anyones = await shop.grant(buyer, await shop.rule(off_fen=200))
    kept = await shop.buy(buyer, show, (offer, 1), coupons=[own.id])
    await shop.pay(kept.order, kept.total_fen)
    other = await shop.buy(buyer, show, (offer, 1), coupons=[anyones.id])
    await shop.pay(other.order, other.total_fen)
    await shop.buy(buyer, show, (offer, 1))  # not paid: nothing saved yet
    async with shop.tx() as t:
        found = await meter.of(t.conn, buyer.member)
    assert found is not None
    # Twice 9 off, the freight and the gift; one coupon that only members have.
    assert (found.price_fen, found.freight_fen, found.gift_fen, found.coupon_fen) == (
        1_800,
        1_600,
        5_000,
        300,
    )
    assert (found.total_fen, found.fee_fen, found.left_fen) == (8_700, 19_900, 11_200)
    await refund(shop, kept.order)
    async with shop.tx() as t:
        found = await meter.of(t.conn, buyer.member)
        assert await meter.of(t.conn, (await shop.buyer()).member or buyer.member) is None
    assert found is not None
    assert (found.price_fen, found.freight_fen, found.gift_fen, found.coupon_fen) == (900, 800, 2_500, 0)


# --- words on the screen ---


@pytest.mark.rule("semantics 4.5a", "semantics 4.5b")
@pytest.mark.parametrize(
    ("sold", "was_fen"),
    [
        ([], None),  # never sold before
        ([("buyer", 30), ("member", 40)], 12_800),  # none in the week: the last one
        ([("buyer", 30), ("buyer", 3), ("member", 5)], 10_900),  # the lowest of the week
        ([("member", 8), ("buyer", 3)], 12_800),
    ],
)
async def test_only_a_time_limited_cut_is_set_against_the_lowest_price_paid_before_it(
    shop: Shop, make_show: MakeShow, sold: list[tuple[str, int]], was_fen: int | None
) -> None:
    """semantics 4: strike-through only for a time-limited cut, against the lowest transaction price of the last
    7 days before it (none: the last transaction)."""
    show, plan = await make_show(), await shop.plan()
    product = await shop.product(list_fen=12_800, member_fen=10_900, stock=50)
    pin = await shop.open(show, product)
    people = {"buyer": await shop.buyer(), "member": await shop.buyer(plan.id)}
    for who, days_ago in sold:
        placed = await shop.buy(people[who], show, (pin, 1))
        await shop.pay(placed.order, placed.total_fen)
        await shop.rows(
            "UPDATE orders SET paid_at = clock_timestamp() - make_interval(days => %s) WHERE id = %s RETURNING id",
            days_ago,
            placed.order,
        )
    flash = await shop.open(show, product, "flash", flash_fen=9_900, quota=20)
    assert (await shop.quote(people["buyer"], show, (flash, 1))).lines[0].was_fen == was_fen
    assert ((await shop.seen(show, flash, shop.guest())) or {}).get("was_fen") == was_fen
    for who in ("buyer", "member"):  # two current prices beside each other: nothing struck through
        assert (await shop.quote(people[who], show, (pin, 1))).lines[0].was_fen is None


@pytest.mark.rule("semantics 4.5b")
async def test_a_price_for_a_time_is_a_cut_and_one_without_an_end_is_none(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    product = await shop.product(list_fen=12_800, stock=50)
    pin = await shop.open(show, product)
    placed = await shop.buy(buyer, show, (pin, 1))
    await shop.pay(placed.order, placed.total_fen)
    now = datetime.now(UTC)
    await shop.rows(
        "UPDATE orders SET paid_at = %s WHERE id = %s RETURNING id", now - timedelta(days=1), placed.order
    )
    async with shop.tx() as t:
        cut = await shop.products.set_price(
            t, OPERATOR, product.id, 10_000, EVERYONE, now - timedelta(hours=1), now + timedelta(hours=1)
        )
    line = (await shop.quote(buyer, show, (pin, 1))).lines[0]
    assert (line.unit_fen, line.was_fen) == (10_000, 12_800)
    async with shop.tx() as t:
        await shop.products.end_price(t, OPERATOR, cut.id)
        await shop.products.set_price(t, OPERATOR, product.id, 10_000, EVERYONE, now - timedelta(hours=1))
    line = (await shop.quote(buyer, show, (pin, 1))).lines[0]
    assert (line.unit_fen, line.was_fen) == (10_000, None)


# --- two at once ---


@pytest.mark.rule("M46")
async def test_one_coupon_in_two_orders_at_once_is_used_by_one(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offer = await shop.open(show, await shop.product(stock=50))
    coupon = await shop.grant(buyer, await shop.rule())
    quote = await shop.quote(buyer, show, (offer, 1), coupons=[coupon.id])

    async def place() -> str:
        try:
            await shop.place(buyer, show, quote)
        except CouponUsed as refusal:
            return refusal.word
        return "placed"

    words = await asyncio.gather(*(place() for _ in range(8)))
    assert sorted(words) == ["coupon_used"] * 7 + ["placed"]
    assert len(await shop.rows("SELECT 1 FROM orders")) == 1


# --- any order of steps ---


Step = tuple[str, int]
steps = st.lists(
    st.tuples(st.sampled_from(["buy", "cancel", "expire", "pay", "late", "refund"]), st.integers(0, 2)),
    max_size=12,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
async def test_whatever_happens_coupons_and_points_are_free_exactly_when_no_order_has_them(
    shop: Shop, make_show: MakeShow, taken: list[Step]
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offer = await shop.open(show, await shop.product(list_fen=5_000, stock=100))
    coupon = await shop.grant(buyer, await shop.rule())
    await shop.give_points(buyer, 1_000)
    orders: list[Placed] = []
    for act, which in taken:
        chosen = orders[which % len(orders)] if orders else None
        if act == "buy":
            quote = await shop.quote(buyer, show, (offer, 1), best=True, points=400)
            orders.append(await shop.place(buyer, show, quote))
        elif chosen is None:
            continue
        elif act in ("pay", "late"):
            if act == "late":
                await shop.let_holds_run_out()
            async with shop.tx() as t:
                found = await shop.orders.lock(t.conn, chosen.order)
            assert found is not None
            await shop.pay(chosen.order, found.total_fen)
        elif act == "expire":
            await shop.let_holds_run_out()
        else:
            with suppress(OrderClosed, NotPaid, AlreadyRefunded):
                await (cancel(shop, buyer, chosen.order) if act == "cancel" else refund(shop, chosen.order))
    rows = await shop.rows(
        "SELECT state, coupon_fen, points_fen, total_fen FROM orders WHERE member_id = %s", buyer.member
    )
    using = [row for row in rows if row["state"] in ("placed", "paid", "fulfilled")]
    assert all(row["total_fen"] >= 0 for row in rows)
    assert sum(row["coupon_fen"] > 0 for row in using) == ((await state_of(shop, coupon)) in ("held", "used"))
    assert (await shop.balance(buyer)).active == 1_000 - sum(row["points_fen"] for row in using)
