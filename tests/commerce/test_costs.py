"""The cost meter: each number is a sum over rows, and the rows add up."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from commerce.costs import CostRow, ShowCosts
from commerce.products import ProductPatch
from live.database import Database
from live.lua import Scripts
from membership.actor import ShowId
from tests.commerce.guard_stage import HOST, GuardedShop
from tests.commerce.shop_stage import OPERATOR
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


@pytest.fixture
def shop(redis: Redis, scripts: Scripts, database: Database) -> GuardedShop:
    return GuardedShop(redis, scripts, database)


async def meter(shop: GuardedShop, show: ShowId) -> ShowCosts:
    async with shop.tx() as t:
        return await shop.costs.of_show(t.conn, show)


def row(costs: ShowCosts, kind: str, row_id: str | None = None) -> CostRow | None:
    found = [one for one in costs.by if one.kind == kind and row_id in (None, one.id)]
    return found[0] if found else None


async def test_a_show_without_anything_costs_nothing(shop: GuardedShop, make_show: MakeShow) -> None:
    assert await meter(shop, await make_show()) == ShowCosts(
        budget_fen=None,
        committed_fen=0,
        spent_fen=0,
        left_fen=None,
        by=(),
        goods_fen=0,
        fees_fen=0,
        margin_fen=0,
        rebate_permille=0,
    )


async def test_gifts_cuts_and_points_of_an_evening_add_up(shop: GuardedShop, make_show: MakeShow) -> None:
    """One flash piece of 99 (list 128, cost 60) is paid, one is held; one of three gifts of 5 yuan is given."""
    show, buyer, other = await make_show(), await shop.buyer(), await shop.buyer()
    await shop.limit("show", show, 2_000)
    offer = await shop.flash(show, await shop.product(cost_fen=6_000), quota=5)
    benefit = await shop.give(show, quota=3, value_fen=500)
    paid = await shop.buy(buyer, show, (offer, 1))
    await shop.pay(paid.order, paid.total_fen)
    await shop.buy(other, show, (offer, 1))
    await shop.claim(show, benefit, buyer)
    costs = await meter(shop, show)
    assert (costs.budget_fen, costs.committed_fen, costs.spent_fen, costs.left_fen) == (
        2_000,
        1_500,
        500,
        500,
    )
    assert row(costs, "benefit") == CostRow(
        kind="benefit", id=benefit.id, title="厨房三件套", committed_fen=1_500, spent_fen=500, counted=True
    )
    cut = row(costs, "price")
    assert cut is not None
    assert (cut.committed_fen, cut.spent_fen, cut.counted) == (5 * 2_900, 2_900, False)
    earned = row(costs, "points", "earned")
    assert earned is not None
    assert earned.spent_fen == 99
    assert costs.goods_fen == 9_900
    assert costs.margin_fen == 9_900 - 6_000 - 500 - 99
    assert costs.rebate_permille == (500 + 99) * 1000 // 9_900
    async with shop.tx() as t:  # a closed sale binds no more than what is still held
        await shop.offers.close(t, HOST, show, offer.id)
    cut = row(await meter(shop, show), "price")
    assert cut is not None
    assert (cut.committed_fen, cut.spent_fen) == (2 * 2_900, 2_900)


async def test_the_fee_of_who_joined_pays_for_the_gift(shop: GuardedShop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan(fee_fen=19_900)
    joined = await shop.join(await shop.buyer(), plan.id, show)
    await shop.pay(joined.order, joined.total_fen)
    await shop.join(await shop.buyer(), plan.id, show)  # not paid: not counted
    await shop.claim(show, await shop.give(show, quota=3, value_fen=5_900), await shop.buyer())
    costs = await meter(shop, show)
    assert (costs.goods_fen, costs.fees_fen) == (0, 19_900)
    assert costs.margin_fen == 19_900 - 5_900
    assert costs.rebate_permille == 5_900 * 1000 // 19_900


async def test_of_a_plan_given_back_counts_what_was_kept_for_more_than_its_gifts(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show, plan = await make_show(), await shop.plan(fee_fen=19_900, gift_value_fen=5_900)
    whole, part = [await shop.join(await shop.buyer(), plan.id, show) for _ in range(2)]
    for joined in (whole, part):
        await shop.pay(joined.order, joined.total_fen)
    async with shop.tx() as t:
        await shop.payments.refund(t, OPERATOR, whole.order)
    assert (await meter(shop, show)).fees_fen == 19_900
    async with shop.tx() as t:  # as a plan given back after half its time, one gift of 59 yuan kept
        await shop.payments.return_part(t, part.order, 9_000, "plan")
        await t.conn.execute(
            """
            INSERT INTO plan_refunds (payment_id, order_id, way, fee_fen, price_fen, freight_fen, gifts_fen,
                time_fen, payable_fen, refunded_by)
            SELECT id, order_id, 'pro_rata', 19900, 0, 0, 5900, 5000, 9000, 'm' FROM payments WHERE order_id = %s
            """,
            [part.order],
        )
        await t.conn.execute(
            "UPDATE orders SET state = 'refunded', closed_at = now() WHERE id = %s", [part.order]
        )
    assert (await meter(shop, show)).fees_fen == 19_900 - 9_000 - 5_900


async def test_no_margin_is_claimed_while_a_cost_is_unknown(shop: GuardedShop, make_show: MakeShow) -> None:
    show = await make_show()
    product = await shop.product()
    offer = await shop.open(show, product)
    paid = await shop.buy(await shop.buyer(), show, (offer, 2))
    await shop.pay(paid.order, paid.total_fen)
    assert (await meter(shop, show)).margin_fen is None
    async with shop.tx() as t:
        await shop.products.update(t, HOST, product.id, ProductPatch(cost_fen=10_000))
    costs = await meter(shop, show)
    assert costs.margin_fen == 2 * 2_800 - 256
    assert costs.budget_fen is None


async def test_what_another_show_gives_is_not_in_it(shop: GuardedShop, make_show: MakeShow) -> None:
    show, other = await make_show(), await make_show()
    await shop.give(other)
    costs: Any = await meter(shop, show)
    assert costs.committed_fen == 0
    assert (await meter(shop, other)).committed_fen == 590_000
