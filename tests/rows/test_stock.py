"""Sentences about stock that no other test says as a whole."""

from __future__ import annotations

import pytest

from tests.commerce.shop_stage import HOST, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


@pytest.mark.rule("semantics 5.2a")
async def test_the_shows_end_ends_no_hold_and_its_buyers_go_on_paying(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    rice = await shop.product(stock=2)
    offer = await shop.open(show, rice, "flash", quota=2)
    buyer = await shop.buyer()
    placed = await shop.buy(buyer, show, (offer, 1))
    async with shop.tx() as t:
        await shop.offers.close_all(t, HOST, show)
        await t.conn.execute(
            "UPDATE shows SET state = 'ended', ended_at = clock_timestamp() WHERE id = %s", [show]
        )
    async with shop.tx() as t:
        assert await shop.orders.expire_due(t) == 0
        order = await shop.orders.get(t.conn, buyer, placed.order)
        assert (order.state, order.hold_until) == ("placed", placed.hold_until)
        assert not isinstance(await shop.payments.start(t, buyer, placed.order), str)
    assert (await shop.pay(placed.order, placed.total_fen)).outcome == "accepted"
    assert await shop.stock(rice) == 1
