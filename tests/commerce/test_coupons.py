"""membership §1.6: coupons are granted once a cause, counted, held by one order, used once, given back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from commerce.coupons import (
    Coupon,
    CouponId,
    CouponRule,
    CouponRuleInput,
    CouponRulePatch,
    CouponsGone,
    CouponUsed,
    NoSuchCoupon,
    NoSuchCouponRule,
)
from membership.actor import Actor, OrderId, new_id
from membership.refusal import BadRequest, Forbidden, KeyReused, Refusal
from tests.commerce.shop_stage import NOBODY_OF_STAFF, OPERATOR, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)


async def states(shop: Shop) -> list[str]:
    return [row["state"] for row in await shop.rows("SELECT state FROM coupons ORDER BY id")]


async def order_of(shop: Shop, make_show: MakeShow, buyer: Actor) -> OrderId:
    show = await make_show()
    offer = await shop.open(show, await shop.product())
    return (await shop.buy(buyer, show, (offer, 1))).order


async def test_the_same_cause_grants_one_coupon_and_nth_tells_several_apart(shop: Shop) -> None:
    rule, buyer = await shop.rule(), await shop.buyer()
    first = await shop.grant(buyer, rule, "claim:1")
    assert await shop.grant(buyer, rule, "claim:1") == first
    second = await shop.grant(buyer, rule, "claim:1", nth=2)
    assert second.id != first.id
    with pytest.raises(KeyReused):
        await shop.grant(await shop.buyer(), rule, "claim:1")
    assert (await shop.rows("SELECT granted FROM coupon_rules"))[0]["granted"] == 2


async def test_a_quota_is_granted_to_the_last_one_and_not_beyond(shop: Shop) -> None:
    """Limit counted in the transaction that grants: 20 at once, 5 there are."""
    rule, buyers = await shop.rule(quota=5), await shop.buyers(20)

    async def grant(buyer: Actor) -> str:
        try:
            await shop.grant(buyer, rule)
        except Refusal as refusal:
            return refusal.word
        return "granted"

    words = await asyncio.gather(*(grant(buyer) for buyer in buyers))
    assert sorted(words) == ["granted"] * 5 + ["limit_reached"] * 15
    assert (await shop.rows("SELECT granted, (SELECT count(*) FROM coupons) AS n FROM coupon_rules"))[0] == {
        "granted": 5,
        "n": 5,
    }


async def test_one_person_gets_as_many_as_one_may_have(shop: Shop) -> None:
    rule, buyer = await shop.rule(per_person=1), await shop.buyer()
    coupon = await shop.grant(buyer, rule)
    with pytest.raises(CouponsGone):
        await shop.grant(buyer, rule)
    async with shop.tx() as t:
        await shop.coupons.void_one(t, OPERATOR, coupon.id)
    await shop.grant(buyer, rule)  # what was taken back does not count


async def test_a_coupon_ends_with_its_rule_or_its_days_whichever_comes_first(shop: Shop) -> None:
    until = datetime.now(UTC) + 48 * HOUR
    buyer = await shop.buyer()
    assert (await shop.grant(buyer, await shop.rule(until_at=until))).expires_at == until
    assert (await shop.grant(buyer, await shop.rule(until_at=until, days=30))).expires_at == until
    days = (await shop.grant(buyer, await shop.rule(until_at=until, days=1))).expires_at
    assert days is not None and days < until
    assert (await shop.grant(buyer, await shop.rule())).expires_at is None
    async with shop.tx() as t:
        rule = await shop.coupons.create_rule(
            t,
            OPERATOR,
            CouponRuleInput(title="旧", kind="amount", off_fen=1, until_at=datetime.now(UTC) - HOUR),
        )
    with pytest.raises(CouponsGone):
        await shop.grant(buyer, rule)


async def test_a_rule_that_is_switched_off_grants_no_more_and_what_was_granted_holds(shop: Shop) -> None:
    rule, buyer = await shop.rule(quota=5), await shop.buyer()
    coupon = await shop.grant(buyer, rule)
    async with shop.tx() as t:
        await shop.coupons.update_rule(t, OPERATOR, rule.id, CouponRulePatch(status="off"))
        with pytest.raises(BadRequest):
            await shop.coupons.update_rule(t, OPERATOR, rule.id, CouponRulePatch(quota=0))
    with pytest.raises(CouponsGone):
        await shop.grant(buyer, rule)
    async with shop.tx() as t:
        assert buyer.member is not None
        assert [each.id for each in await shop.coupons.free_of(t.conn, buyer.member)] == [coupon.id]


async def test_one_order_holds_a_coupon_and_it_comes_back_once(shop: Shop, make_show: MakeShow) -> None:
    buyer = await shop.buyer()
    assert buyer.member is not None
    coupon = await shop.grant(buyer, await shop.rule())
    first, second = [await order_of(shop, make_show, buyer) for _ in range(2)]
    async with shop.tx() as t:
        await shop.coupons.hold(t, buyer.member, first, [coupon.id])
    with pytest.raises(CouponUsed):
        async with shop.tx() as t:
            await shop.coupons.hold(t, buyer.member, second, [coupon.id])
    async with shop.tx() as t:
        await shop.coupons.use(t, first)
    assert await states(shop) == ["used"]
    async with shop.tx() as t:
        assert await shop.coupons.release(t, [first, second]) == 1
        assert await shop.coupons.release(t, [first, second]) == 0
    assert await states(shop) == ["free"]


async def test_a_coupon_is_its_owners_alone(shop: Shop, make_show: MakeShow) -> None:
    buyer, stranger = await shop.buyer(), await shop.buyer()
    assert buyer.member is not None and stranger.member is not None
    coupon = await shop.grant(buyer, await shop.rule())
    order = await order_of(shop, make_show, stranger)
    async with shop.tx() as t:
        with pytest.raises(NoSuchCoupon):
            await shop.coupons.named(t.conn, stranger.member, [coupon.id])
        with pytest.raises(NoSuchCoupon):
            await shop.coupons.named(t.conn, buyer.member, [CouponId("x"), coupon.id])
    with pytest.raises(CouponUsed):
        async with shop.tx() as t:
            await shop.coupons.hold(t, stranger.member, order, [coupon.id])


async def test_what_is_taken_back_while_an_order_has_it_is_void_when_it_returns(
    shop: Shop, make_show: MakeShow
) -> None:
    buyer = await shop.buyer()
    assert buyer.member is not None
    rule = await shop.rule()
    held, free = await shop.grant(buyer, rule, "claim:1"), await shop.grant(buyer, rule, "claim:1", nth=2)
    order = await order_of(shop, make_show, buyer)
    async with shop.tx() as t:
        await shop.coupons.hold(t, buyer.member, order, [held.id])
        assert await shop.coupons.void(t, "claim:1") == 1
        assert await shop.coupons.void(t, "claim:1") == 0
    assert await states(shop) == ["held", "void"]
    assert free.id != held.id
    async with shop.tx() as t:
        await shop.coupons.release(t, [order])
    assert await states(shop) == ["void", "void"]


async def test_one_whose_time_has_passed_comes_back_expired(shop: Shop, make_show: MakeShow) -> None:
    buyer = await shop.buyer()
    assert buyer.member is not None
    coupon = await shop.grant(buyer, await shop.rule())
    order = await order_of(shop, make_show, buyer)
    async with shop.tx() as t:
        await shop.coupons.hold(t, buyer.member, order, [coupon.id])
        await t.conn.execute("UPDATE coupons SET expires_at = clock_timestamp() - interval '1 second'")
        await shop.coupons.release(t, [order])
    assert await states(shop) == ["expired"]


async def test_the_job_marks_what_has_run_out(shop: Shop) -> None:
    buyer, rule = await shop.buyer(), await shop.rule()
    await shop.grant(buyer, rule)
    await shop.grant(buyer, rule)
    async with shop.tx() as t:
        await t.conn.execute(
            "UPDATE coupons SET expires_at = clock_timestamp() WHERE id = (SELECT max(id::text)::uuid FROM coupons)"
        )
        assert await shop.coupons.expire_due(t) == 1
        assert await shop.coupons.expire_due(t) == 0
    assert await states(shop) == ["free", "expired"]


async def test_a_members_coupons_come_newest_first_page_by_page(shop: Shop) -> None:
    buyer, rule = await shop.buyer(), await shop.rule()
    assert buyer.member is not None
    granted: list[Coupon] = [await shop.grant(buyer, rule) for _ in range(3)]
    async with shop.tx() as t:
        first = await shop.coupons.of_member(t.conn, buyer.member, None, 2)
        rest = await shop.coupons.of_member(t.conn, buyer.member, first.next, 2)
    found = [each.id for each in (*first.items, *rest.items)]
    assert found == [each.id for each in reversed(granted)]
    assert rest.next is None
    assert isinstance(first.items[0].rule, CouponRule)


@pytest.mark.parametrize(
    "terms",
    [
        {"kind": "amount"},
        {"kind": "percent"},
        {"kind": "percent", "percent": 88, "off_fen": 5},
        {"kind": "amount", "off_fen": 5, "percent": 88},
        {"kind": "freight", "max_off_fen": 5},
        {"kind": "freight", "products": ("rice",)},
        {"kind": "freight", "until_at": datetime(2026, 1, 1)},  # noqa: DTZ001 - without its offset
        {
            "kind": "freight",
            "from_at": datetime(2026, 2, 1, tzinfo=UTC),
            "until_at": datetime(2026, 1, 1, tzinfo=UTC),
        },
    ],
)
async def test_terms_that_contradict_themselves_are_refused(shop: Shop, terms: dict[str, Any]) -> None:
    async with shop.tx() as t:
        with pytest.raises(BadRequest):
            await shop.coupons.create_rule(t, OPERATOR, CouponRuleInput(title="券", **terms))


async def test_rules_are_for_who_may_write_the_catalogue(shop: Shop) -> None:
    given = CouponRuleInput(title="券", kind="freight")
    rule = await shop.rule()
    async with shop.tx() as t:
        with pytest.raises(Forbidden):
            await shop.coupons.create_rule(t, NOBODY_OF_STAFF, given)
        with pytest.raises(Forbidden):
            await shop.coupons.update_rule(t, NOBODY_OF_STAFF, rule.id, CouponRulePatch(title="又"))
        with pytest.raises(Forbidden):
            await shop.coupons.void_one(t, NOBODY_OF_STAFF, CouponId(new_id()))
        with pytest.raises(NoSuchCouponRule):
            await shop.coupons.rule(t.conn, new_id())
        with pytest.raises(NoSuchCoupon):
            await shop.coupons.void_one(t, OPERATOR, CouponId(new_id()))
