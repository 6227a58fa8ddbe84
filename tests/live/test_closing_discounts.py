"""The zero-difference close of an evening with coupons and points; and what it says when one was touched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from commerce.coupons import CouponRuleInput
from live import brand
from live.closing import in_words
from live.engines import Addresses
from membership.actor import MemberId, new_id
from tests.live.api import Caller, Shop, open_shop
from tests.live.test_closing import ADDRESS, Evening, begin

pytestmark = pytest.mark.anyio


@pytest.fixture
async def shop(engines: Addresses, fresh_database_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(engines, fresh_database_url, tmp_path) as opened:
        yield opened


async def order(
    evening: Evening, member: Caller, offer: str, *, pay: bool = True, **wish: Any
) -> dict[str, Any]:
    address = await member.ok("POST", "/v1/me/addresses", ADDRESS)
    quote = await member.ok(
        "POST", f"/v1/shows/{evening.show}/quotes", {"lines": [{"offer": offer, "quantity": 2}], **wish}
    )
    body = {"quote": quote["token"], "address": address["id"], "key": new_id()}
    placed: dict[str, Any] = await member.ok("POST", f"/v1/shows/{evening.show}/orders", body)
    if pay and placed["state"] == "placed":
        page = await member.ok("POST", f"/v1/me/orders/{placed['order']}/payment")
        await evening.shop.pay(page["payment_url"])
    return placed


async def discounted_evening(shop: Shop) -> tuple[Evening, dict[str, str]]:
    """One order each: paid with a coupon and points, given up, refunded whole and in part, of nothing."""
    evening = await begin(shop)
    member = await shop.member("王小明")
    parts = shop.parts
    async with parts.database.transaction() as t:
        ten, whole = [
            await parts.coupons.create_rule(
                t, brand.BUILDER, CouponRuleInput(title="券", kind="amount", off_fen=fen)
            )
            for fen in (1_000, 10_000_000)
        ]
        coupons = [
            (await parts.coupons.grant(t, MemberId(member.id), rule.id, f"test:{number}")).id
            for number, rule in enumerate((ten, ten, ten, ten, whole))
        ]
        await parts.points.earn(t, MemberId(member.id), 1_000, "review", "review:1")
    rice = await evening.cue("A")
    orders = {
        "paid": await order(evening, member, rice, coupons=[coupons[0]], points=300),
        "given up": await order(evening, member, rice, pay=False, coupons=[coupons[1]], points=300),
        "whole": await order(evening, member, rice, coupons=[coupons[2]], points=200),
        "part": await order(evening, member, rice, coupons=[coupons[3]], points=100),
        "nothing": await order(evening, member, rice, coupons=[coupons[4]]),
    }
    found = {name: placed["order"] for name, placed in orders.items()}
    assert (orders["nothing"]["total_fen"], orders["nothing"]["state"]) == (0, "paid")
    await member.ok("POST", f"/v1/me/orders/{found['given up']}/cancel")
    server = await shop.shop_server()
    await server.ok("POST", f"/v1/orders/{found['whole']}/refund")
    async with parts.database.transaction() as t:
        await parts.refunds.lines(t, brand.BUILDER, found["part"], {1: 1}, "one of two")
    await evening.end()
    await evening.work()
    return evening, found


CHANGES = [
    ("UPDATE coupons SET state = 'free', order_id = NULL WHERE order_id = %s", "paid", "used by it"),
    ("UPDATE order_coupons SET off_fen = off_fen + 1 WHERE order_id = %s", "paid", "taken off by coupons"),
    ("UPDATE order_lines SET coupon_fen = coupon_fen - 1 WHERE order_id = %s AND position = 1", "part", "coupon_fen"),
    ("UPDATE order_lines SET points_fen = points_fen - 1 WHERE order_id = %s AND position = 1", "part", "points_fen"),
    (
        "UPDATE points_entries SET amount = amount + 100 WHERE kind = 'spend' AND cause = 'order:' || %s",
        "paid",
        "points spent",
    ),
    (
        "DELETE FROM points_entries WHERE kind = 'restore' AND cause = 'order:' || %s",
        "given up",
        "points spent",
    ),
    (
        "UPDATE coupons SET state = 'used', order_id = %s WHERE cause = 'test:1'",
        "given up",
        "given back",
    ),
]  # fmt: skip


async def test_it_closes_with_no_difference_and_a_coupon_or_point_changed_by_hand_is_named(
    shop: Shop,
) -> None:
    evening, found = await discounted_evening(shop)
    closing = await evening.close()
    assert closing.differences == (), in_words(closing)
    assert (closing.waiting, closing.notes) == ((), ())
    for change, which, word in CHANGES:
        named = await evening.named_after(change, found[which])
        assert any(word in each and found[which] in each for each in named), (change, named)
    assert (await evening.close()).differences == ()
