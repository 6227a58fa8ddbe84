"""One coupon and one purse of points in many orders at once, over two pools of connections: one order has them.

First, that the race is there when nothing guards it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from commerce.coupons import CouponId, Coupons
from commerce.offers import Offer
from commerce.orders import Orders
from commerce.quotes import Quote
from live.database import Database, make_pool
from live.lua import Scripts
from membership.actor import Actor, MemberId, OrderId, ShowId
from membership.refusal import Refusal
from membership.transaction import Connection, Transaction
from tests.commerce.shop_stage import OPERATOR, Shop
from tests.conftest import Emptied, MakeShow

pytestmark = pytest.mark.anyio

AT_ONCE = 6  # of each of the two


@pytest.fixture
async def shops(
    redis: Redis, scripts: Scripts, database: Database, emptied: Emptied
) -> AsyncIterator[list[Shop]]:
    """Two that share the stores and nothing else, as two processes do."""
    pool = make_pool(emptied.url)
    async with pool:
        first, second = Shop(redis, scripts, database), Shop(redis, scripts, Database(pool))
        second._homes = first._homes  # the same people
        yield [first, second]


async def set_up(shop: Shop, make_show: MakeShow) -> tuple[ShowId, Actor, list[Offer]]:
    """Offers of different products, so that no row of stock makes the orders take turns."""
    show, buyer = await make_show(), await shop.buyer()
    offers = [await shop.open(show, await shop.product(list_fen=2_000)) for _ in range(2)]
    return show, buyer, offers


async def quotes(shop: Shop, show: ShowId, buyer: Actor, offers: Sequence[Offer], **wish: Any) -> list[Quote]:
    return [await shop.quote(buyer, show, (offer, 1), **wish) for offer in offers]


async def all_at_once(
    shops: Sequence[Shop], show: ShowId, buyer: Actor, quoted: Sequence[Quote]
) -> list[str]:
    async def place(shop: Shop, quote: Quote) -> str:
        try:
            await shop.place(buyer, show, quote)
        except Refusal as refusal:
            return refusal.word
        return "placed"

    acts = [place(shop, quote) for shop, quote in zip(shops, quoted, strict=True) for _ in range(AT_ONCE)]
    return await asyncio.wait_for(asyncio.gather(*acts), 60)


async def wants(shop: Shop) -> list[dict[str, Any]]:
    return await shop.rows("SELECT id FROM orders WHERE coupon_fen + points_fen > 0")


class Meeting:
    """Two that have read wait here for each other before either writes."""

    def __init__(self) -> None:
        self.barrier = asyncio.Barrier(2)


class UnguardedCoupons(Coupons):
    """As it would be if an order looked first and wrote afterwards."""

    def __init__(self, coupons: Coupons, meeting: Meeting) -> None:
        super().__init__(coupons._notices)
        self._meeting = meeting

    async def hold(
        self, t: Transaction, member: MemberId, order: OrderId, coupons: Sequence[CouponId]
    ) -> None:
        found = await self.named(t.conn, member, coupons)
        assert all(each.state == "free" for each in found)
        await self._meeting.barrier.wait()
        await t.conn.execute(
            "UPDATE coupons SET state = 'held', order_id = %s WHERE id = ANY(%s::uuid[])",
            [order, list(coupons)],
        )


class UnguardedOrders(Orders):
    async def one_at_a_time(self, conn: Connection, member: MemberId) -> None:
        return None


async def test_the_race_is_there_when_nothing_guards_it(shops: list[Shop], make_show: MakeShow) -> None:
    """This shows that the test below can fail: two that look first and write afterwards both have it."""
    first = shops[0]
    show, buyer, offers = await set_up(first, make_show)
    coupon = await first.grant(buyer, await first.rule())
    quoted = await quotes(first, show, buyer, offers, coupons=[coupon.id])
    meeting = Meeting()
    for shop in shops:
        shop.orders = UnguardedOrders(
            shop.scripts,
            shop.quotes,
            shop.plans,
            shop.points,
            UnguardedCoupons(shop.coupons, meeting),
            shop.notices,
            shop.addresses,
            shop.seats,
        )
    places = [shop.place(buyer, show, quote) for shop, quote in zip(shops, quoted, strict=True)]
    await asyncio.wait_for(asyncio.gather(*places), 60)
    assert len(await wants(first)) == 2  # one coupon has lowered two orders


@pytest.mark.rule("M46")
@pytest.mark.parametrize("one_at_a_time", [True, False])
async def test_one_coupon_in_many_orders_at_once_is_had_by_exactly_one(
    shops: list[Shop], make_show: MakeShow, *, one_at_a_time: bool
) -> None:
    """Also where nothing else makes a member's orders take turns: the coupon's own row is the guard."""
    first = shops[0]
    show, buyer, offers = await set_up(first, make_show)
    coupon = await first.grant(buyer, await first.rule())
    quoted = await quotes(first, show, buyer, offers, coupons=[coupon.id])
    if not one_at_a_time:
        for shop in shops:
            shop.orders = UnguardedOrders(
                shop.scripts,
                shop.quotes,
                shop.plans,
                shop.points,
                shop.coupons,
                shop.notices,
                shop.addresses,
                shop.seats,
            )
    words = await all_at_once(shops, show, buyer, quoted)
    assert sorted(words) == ["coupon_used"] * (2 * AT_ONCE - 1) + ["placed"]
    (order,) = await wants(first)
    held = await first.rows("SELECT state, order_id FROM coupons")
    assert held == [{"state": "held", "order_id": order["id"]}]


async def test_points_for_one_order_spent_by_many_at_once_are_spent_by_exactly_one(
    shops: list[Shop], make_show: MakeShow
) -> None:
    first = shops[0]
    show, buyer, offers = await set_up(first, make_show)
    await first.give_points(buyer, 1_050)
    quoted = await quotes(first, show, buyer, offers, points=1_000)
    words = await all_at_once(shops, show, buyer, quoted)
    assert sorted(words) == ["not_enough_points"] * (2 * AT_ONCE - 1) + ["placed"]
    assert len(await wants(first)) == 1
    assert (await first.balance(buyer)).active == 50


@pytest.mark.rule("M46")
async def test_one_coupon_online_and_at_the_till_at_once_is_had_by_exactly_one(
    shops: list[Shop], make_show: MakeShow
) -> None:
    first, second = shops
    show, buyer, offers = await set_up(first, make_show)
    coupon = await first.grant(buyer, await first.rule())
    quoted = await first.quote(buyer, show, (offers[0], 1), coupons=[coupon.id])

    async def online() -> str:
        try:
            await first.place(buyer, show, quoted)
        except Refusal as refusal:
            return refusal.word
        return "had"

    async def till(number: int) -> str:
        try:
            async with second.tx() as t:
                await second.coupons.use_at_till(t, OPERATOR, coupon.id, f"sale-{number}")
        except Refusal as refusal:
            return refusal.word
        return "had"

    acts = [act for number in range(AT_ONCE) for act in (online(), till(number))]
    words = await asyncio.wait_for(asyncio.gather(*acts), 60)
    assert sorted(words) == ["coupon_used"] * (2 * AT_ONCE - 1) + ["had"]
    (row,) = await first.rows("SELECT state, order_id, till_reference FROM coupons")
    assert (row["order_id"] is None) == (row["till_reference"] is not None)
    assert row["state"] == ("used" if row["order_id"] is None else "held")
    uses = await first.rows("SELECT reference FROM coupon_till_uses")
    assert [use["reference"] for use in uses] == (
        [] if row["till_reference"] is None else [row["till_reference"]]
    )
