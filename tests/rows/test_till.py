"""A coupon used at a till in the shop is used online too, and comes back when the sale came to nothing."""

from __future__ import annotations

import pytest

from commerce.coupons import Coupon, CouponNotGood, CouponUsed, NoSuchCoupon, TillUse
from membership.actor import new_id
from membership.refusal import BadRequest, Forbidden, KeyReused
from tests.commerce.shop_stage import NOBODY_OF_STAFF, OPERATOR, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


async def use(
    shop: Shop, coupon: Coupon, reference: str = "sale-1", amount_fen: int | None = None
) -> TillUse:
    async with shop.tx() as t:
        return await shop.coupons.use_at_till(t, OPERATOR, coupon.id, reference, amount_fen)


async def undo(shop: Shop, coupon: Coupon, reference: str = "sale-1") -> None:
    async with shop.tx() as t:
        await shop.coupons.undo_at_till(t, OPERATOR, coupon.id, reference)


async def state(shop: Shop, coupon: Coupon) -> str:
    return str((await shop.rows("SELECT state FROM coupons WHERE id = %s", coupon.id))[0]["state"])


@pytest.mark.rule("M46")
async def test_a_coupon_used_at_the_till_is_used_online_until_that_is_undone(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offer = await shop.open(show, await shop.product())
    coupon = await shop.grant(buyer, await shop.rule())
    quoted = await shop.quote(buyer, show, (offer, 1), coupons=[coupon.id])
    first = await use(shop, coupon, amount_fen=1_000)
    assert await use(shop, coupon, amount_fen=1_000) == first  # the same sale again
    with pytest.raises(KeyReused):
        await use(shop, coupon, amount_fen=900)
    with pytest.raises(CouponUsed):
        await use(shop, coupon, "sale-2")
    with pytest.raises(CouponUsed):
        await shop.place(buyer, show, quoted)
    again = await shop.quote(buyer, show, (offer, 1), coupons=[coupon.id])
    assert (again.coupon_fen, again.coupons[0].used) == (0, False)
    async with shop.tx() as t:
        (seen,) = (await shop.coupons.of_member(t.conn, coupon.member)).items
    assert (seen.state, seen.till_reference, seen.order) == ("used", "sale-1", None)
    assert {"type": "coupons.changed"} in await shop.notes(buyer)

    await undo(shop, coupon)
    await undo(shop, coupon)
    assert await state(shop, coupon) == "free"
    with pytest.raises(KeyReused):
        await use(shop, coupon, amount_fen=1_000)  # a late repeat of a sale that was undone
    placed = await shop.place(buyer, show, quoted)
    assert placed.total_fen == quoted.total_fen
    with pytest.raises(CouponUsed):
        await use(shop, coupon, "sale-3")
    await undo(shop, coupon)  # undone long ago: the order keeps it
    assert await state(shop, coupon) == "held"


@pytest.mark.rule("M46")
async def test_a_till_uses_what_is_good_and_nobody_else_does(shop: Shop) -> None:
    buyer = await shop.buyer()
    coupon, gone, void = [await shop.grant(buyer, await shop.rule()) for _ in range(3)]
    await shop.rows("UPDATE coupons SET expires_at = clock_timestamp() WHERE id = %s RETURNING id", gone.id)
    async with shop.tx() as t:
        await shop.coupons.void_one(t, OPERATOR, void.id)
    for bad in (gone, void):
        with pytest.raises(CouponNotGood):
            await use(shop, bad)
    with pytest.raises(BadRequest):
        await use(shop, coupon, amount_fen=1_001)  # more than the rule takes off
    with pytest.raises(NoSuchCoupon):
        await undo(shop, coupon)
    async with shop.tx() as t:
        for nothing in ("x", new_id()):
            with pytest.raises(NoSuchCoupon):
                await shop.coupons.use_at_till(t, OPERATOR, nothing, "sale-1")  # type: ignore[arg-type]
        with pytest.raises(Forbidden):
            await shop.coupons.use_at_till(t, NOBODY_OF_STAFF, coupon.id, "sale-1")
        with pytest.raises(Forbidden):
            await shop.coupons.undo_at_till(t, NOBODY_OF_STAFF, coupon.id, "sale-1")
    assert await state(shop, coupon) == "free"


@pytest.mark.rule("M46")
async def test_a_coupon_taken_back_while_a_till_has_it_is_void_when_that_is_undone(shop: Shop) -> None:
    buyer = await shop.buyer()
    coupon = await shop.grant(buyer, await shop.rule())
    await use(shop, coupon)
    async with shop.tx() as t:
        await shop.coupons.void_one(t, OPERATOR, coupon.id)
    await undo(shop, coupon)
    assert await state(shop, coupon) == "void"
