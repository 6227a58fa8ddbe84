"""Sentences about prices that no other test says as a whole."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from commerce.pieces import ReservedOut
from commerce.refunds import Refunds
from commerce.stock import Stock
from membership.audience import PLAN_MEMBERS
from membership.refusal import Refusal
from tests.commerce.shop_stage import OPERATOR, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


@pytest.mark.rule("semantics 4.3b", "M17")
async def test_the_screen_the_quote_the_order_and_the_refund_show_the_same_units(
    shop: Shop, make_show: MakeShow
) -> None:
    show, plan = await make_show(), await shop.plan()
    rice = await shop.product(list_fen=12_800, member_fen=10_900)
    offer = await shop.open(show, rice)
    member = await shop.buyer(plan.id)
    card = await shop.seen(show, offer, member)
    assert card is not None
    quote = await shop.quote(member, show, (offer, 3))
    placed = await shop.place(member, show, quote)
    await shop.pay(placed.order, placed.total_fen)
    refunds = Refunds(shop.payments, shop.orders, shop.points, Stock())
    async with shop.tx() as t:
        order = await shop.orders.get(t.conn, member, placed.order)
        back = await refunds.lines(t, OPERATOR, placed.order, {1: 1}, "broken")
    assert (card["list_fen"], card["member_fen"]) == (12_800, 10_900)
    units = quote.lines[0].unit_fen, order.lines[0].unit_fen, back.lines[0].money_fen
    assert units == (10_900, 10_900, 10_900)


@pytest.mark.rule("semantics 4.4b")
async def test_a_quote_promises_the_price_and_no_piece(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    offer = await shop.open(show, await shop.product(stock=1))
    one, other = await shop.buyers(2)
    first, second = await shop.quote(one, show, (offer, 1)), await shop.quote(other, show, (offer, 1))
    assert first.total_fen == second.total_fen
    placed = await shop.place(other, show, second)
    with pytest.raises(ReservedOut):
        await shop.place(one, show, first)
    async with shop.tx() as t:
        await shop.orders.cancel(t, other, placed.order)
    assert (await shop.place(one, show, first)).total_fen == first.total_fen


@pytest.mark.rule("semantics 4.5a")
async def test_a_member_price_strikes_nothing_through(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    rice = await shop.product(list_fen=12_800, member_fen=10_900, stock=50)
    offer = await shop.open(show, rice)
    buyer = await shop.buyer()
    placed = await shop.buy(buyer, show, (offer, 1))
    await shop.pay(placed.order, placed.total_fen)  # somebody paid more in the week before
    member = await shop.buyer(plan.id)
    for actor in (member, buyer):
        quote = await shop.quote(actor, show, (offer, 1))
        assert quote.lines[0].was_fen is None
        card = await shop.seen(show, offer, actor)
        assert card is not None
        assert (card["list_fen"], card["member_fen"]) == (12_800, 10_900)
        assert "was_fen" not in card


@pytest.mark.rule("M14")
async def test_a_plan_gives_its_percentage_freight_and_early_access_and_the_day_after_nothing_of_it(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    plan = await shop.plan(name="银卡", fee_fen=9_900, percent=85, free_freight=True)
    rice = await shop.product(list_fen=5_000)
    soon = await shop.product(
        list_fen=5_000,
        on_sale_at=datetime.now(UTC) + timedelta(hours=47),
        early_s=48 * 3600,
        early_audience=PLAN_MEMBERS,
    )
    offers = [await shop.open(show, rice), await shop.open(show, soon)]
    buyer = await shop.buyer()
    placed = await shop.join(buyer, plan.id)
    await shop.pay(placed.order, placed.total_fen)
    quote = await shop.quote(await shop.again(buyer), show, (offers[0], 1), (offers[1], 1))
    assert (quote.goods_fen, quote.freight_fen) == (8_500, 0)
    term = (await shop.rows("SELECT ends_at - starts_at AS lasts FROM plan_terms"))[0]
    assert term["lasts"] in (timedelta(days=365), timedelta(days=366))
    await shop.rows(
        "UPDATE plan_terms SET starts_at = starts_at - (ends_at - clock_timestamp()),"
        " ends_at = clock_timestamp() RETURNING id"
    )
    later = await shop.again(buyer)
    quote = await shop.quote(later, show, (offers[0], 1))
    assert (quote.goods_fen, quote.freight_fen) == (5_000, 800)
    with pytest.raises(Refusal) as refused:
        await shop.quote(later, show, (offers[1], 1))
    assert refused.value.word == "not_eligible"
