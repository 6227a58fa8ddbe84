"""Guards at the doors: a second person's word, cost, limits, no_promo, the rebate cap (rows 36, L20, L21, L31)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg.errors import CheckViolation
from redis.asyncio import Redis

from commerce.approvals import (
    ASKED_MAX,
    AlreadyDecided,
    Approval,
    AskExpired,
    NeedsApproval,
    OverBudget,
)
from commerce.coupons import CouponRuleInput
from commerce.guards import NoPromo, OverRebateCap
from commerce.products import ProductInput, ProductPatch
from live.database import Database
from live.lua import Scripts
from membership.actor import Actor, new_id
from membership.audience import EVERYONE, PLAN_MEMBERS
from membership.refusal import Forbidden, NotFound, RateLimited, Unavailable
from tests.commerce.guard_stage import BOSS, HOST, OTHER_BOSS, GuardedShop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio

SOON = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def shop(redis: Redis, scripts: Scripts, database: Database) -> GuardedShop:
    return GuardedShop(redis, scripts, database)


async def refusal_of(shop: GuardedShop, show: Any, product: Any, **terms: Any) -> NeedsApproval:
    with pytest.raises(NeedsApproval) as refused:
        await shop.flash(show, product, **terms)
    return refused.value


# --- a second person ---


async def test_a_flash_price_below_cost_needs_a_second_person_and_then_goes_through_once(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show, product = await make_show(), await shop.product(cost_fen=10_000)
    await shop.flash(show, await shop.product(cost_fen=9_900))
    refusal = await refusal_of(shop, show, product)
    assert refusal.word == "needs_approval"
    assert "99.00, below its cost of 100.00" in str(refusal)
    asked = await shop.ask(refusal)
    assert (asked.state, asked.title) == ("asked", "有机大米 · 99.00 × 5")
    told = refusal.carrying(asked)
    assert told.details["approval"] == asked.id
    assert told.details["granted_by"] == ["operator", "owner"]
    assert "operator or owner" in str(told)
    await refusal_of(shop, show, product)  # asked is not granted
    assert (await shop.decide(asked)).state == "granted"
    offer = await shop.flash(show, product)
    async with shop.tx() as t:
        assert (await shop.approvals.get(t.conn, asked.id)).state == "used"
        await shop.offers.close(t, HOST, show, offer.id)
    await refusal_of(shop, show, product)  # an approval is used once


async def test_a_grant_is_for_these_terms_and_this_person(shop: GuardedShop, make_show: MakeShow) -> None:
    show, product = await make_show(), await shop.product(cost_fen=10_000)
    await shop.granted(await refusal_of(shop, show, product))
    await refusal_of(shop, show, product, flash_fen=9_899)
    await refusal_of(shop, show, product, quota=6)
    await refusal_of(shop, show, product, seconds=601)
    await refusal_of(shop, show, product, audience=PLAN_MEMBERS)
    await refusal_of(shop, await make_show(), product)
    await refusal_of(shop, show, product, actor=BOSS)
    async with shop.tx() as t:
        await shop.products.update(t, BOSS, product.id, ProductPatch(cost_fen=10_001))
    await refusal_of(shop, show, product)  # and for no more than was broken then
    async with shop.tx() as t:
        await shop.products.update(t, BOSS, product.id, ProductPatch(cost_fen=9_999))
    await shop.flash(show, product)


async def test_what_failed_for_another_reason_has_not_used_the_grant(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show, product = await make_show(), await shop.product(cost_fen=10_000)
    approval = await shop.granted(await refusal_of(shop, show, product))
    await shop.redis.flushall()
    with pytest.raises(Unavailable):
        await shop.flash(show, product)
    async with shop.tx() as t:
        assert (await shop.approvals.get(t.conn, approval.id)).state == "granted"


async def test_who_asked_cannot_grant_and_who_may_not_approve_cannot_either(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show, product = await make_show(), await shop.product(cost_fen=10_000)
    asked = await shop.ask(await refusal_of(shop, show, product, actor=BOSS), BOSS)
    with pytest.raises(Forbidden, match="second person"):
        await shop.decide(asked, BOSS)
    with pytest.raises(Forbidden, match="operator, owner"):
        await shop.decide(asked, HOST)
    key = Actor(kind="shop", id=new_id(), permissions=frozenset({"approve"}))
    with pytest.raises(Forbidden):
        await shop.decide(asked, key)
    with pytest.raises(NotFound):
        async with shop.tx() as t:
            await shop.approvals.decide(t, OTHER_BOSS, "x", grant=True)
    with pytest.raises(CheckViolation):  # the table's own guard, whatever the code says
        async with shop.tx() as t:
            await t.conn.execute(
                "UPDATE approvals SET state = 'granted', decided_by = asked_by, decided_at = now()"
            )
    with pytest.raises(Forbidden, match="member of staff"):
        await shop.ask(await refusal_of(shop, show, product), key)


async def test_of_two_who_decide_at_once_one_does(shop: GuardedShop, make_show: MakeShow) -> None:
    show, product = await make_show(), await shop.product(cost_fen=10_000)
    asked = await shop.ask(await refusal_of(shop, show, product))
    answers = await asyncio.gather(
        *(shop.decide(asked, [BOSS, OTHER_BOSS][n % 2], grant=n % 3 > 0) for n in range(10)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, Approval) for answer in answers) == 1
    assert sum(isinstance(answer, AlreadyDecided) for answer in answers) == 9


async def test_a_grant_used_by_two_hands_at_once_is_used_once(shop: GuardedShop, make_show: MakeShow) -> None:
    show, product = await make_show(), await shop.product(cost_fen=10_000)
    benefit = await shop.give(show, quota=1)
    await shop.limit("show", show, 590_000)
    with pytest.raises(OverBudget) as refused:
        await shop.raise_to(benefit, 101)
    await shop.granted(refused.value)
    await shop.granted(await refusal_of(shop, show, product))
    answers = await asyncio.gather(*(shop.flash(show, product) for _ in range(6)), return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
    answers = await asyncio.gather(*(shop.raise_to(benefit, 101) for _ in range(6)), return_exceptions=True)
    assert all(not isinstance(answer, BaseException) for answer in answers)  # the same again changes nothing
    used = await shop.rows("SELECT count(*) AS n FROM approvals WHERE state = 'used'")
    assert used[0]["n"] == 2


async def test_declined_or_too_late_it_stays_refused(shop: GuardedShop, make_show: MakeShow) -> None:
    show, product = await make_show(), await shop.product(cost_fen=10_000)
    declined = await shop.decide(await shop.ask(await refusal_of(shop, show, product)), grant=False)
    assert declined.state == "declined"
    granted = await shop.granted(await refusal_of(shop, show, product))
    late = await shop.ask(await refusal_of(shop, show, product, quota=4))
    async with shop.tx() as t:
        await t.conn.execute(
            "UPDATE approvals SET asked_at = asked_at - interval '31 minutes',"
            " expires_at = expires_at - interval '31 minutes'"
        )
    await refusal_of(shop, show, product)
    with pytest.raises(AskExpired):
        await shop.decide(late)
    async with shop.tx() as t:
        assert (await shop.approvals.get(t.conn, granted.id)).state == "expired"
        page = await shop.approvals.list(t.conn, "expired")
    assert {one.id for one in page.items} == {granted.id, late.id}


async def test_the_same_ask_is_one_ask_and_asks_are_bounded(shop: GuardedShop, make_show: MakeShow) -> None:
    show, product = await make_show(), await shop.product(cost_fen=10_000, stock=100)
    refusal = await refusal_of(shop, show, product)
    asks = await asyncio.gather(*(shop.ask(refusal) for _ in range(5)))
    assert len({ask.id for ask in asks}) == 1
    for quota in range(6, 5 + ASKED_MAX):
        await shop.ask(await refusal_of(shop, show, product, quota=quota))
    with pytest.raises(RateLimited, match="wait for a decision"):
        await shop.ask(await refusal_of(shop, show, product, quota=3))
    async with shop.tx() as t:
        assert await shop.approvals.waiting(t.conn, show) == ASKED_MAX
        page = await shop.approvals.list(t.conn, "asked", limit=15)
        rest = await shop.approvals.list(t.conn, "asked", cursor=page.next, limit=15)
    assert len({one.id for one in (*page.items, *rest.items)}) == ASKED_MAX


async def test_above_the_limit_a_second_person_must_grant_sale_gift_and_coupon(
    redis: Redis, scripts: Scripts, database: Database, make_show: MakeShow
) -> None:
    shop = GuardedShop(redis, scripts, database, approve_above_fen=590_000)
    show = await make_show()
    benefit = await shop.give(show)
    with pytest.raises(NeedsApproval, match=r"5959\.00, above 5900\.00"):
        await shop.raise_to(benefit, 101)
    with pytest.raises(NeedsApproval, match=r"5959\.00"):
        await shop.give(show, quota=101)
    product = await shop.product(stock=1_000)
    await shop.flash(show, product, flash_fen=12_800 - 5_900, quota=100)
    with pytest.raises(NeedsApproval, match=r"5959\.00"):
        await shop.flash(show, await shop.product(stock=1_000), flash_fen=12_800 - 5_900, quota=101)
    async with shop.tx() as t:
        rule = await shop.coupons.create_rule(
            t, BOSS, CouponRuleInput(title="满减", kind="amount", off_fen=5_900, quota=100)
        )
        assert rule.quota == 100
    with pytest.raises(NeedsApproval) as refused:
        async with shop.tx() as t:
            await shop.coupons.create_rule(
                t, HOST, CouponRuleInput(title="满减", kind="amount", off_fen=5_900, quota=101)
            )
    await shop.granted(refused.value)
    async with shop.tx() as t:
        await shop.coupons.create_rule(
            t, HOST, CouponRuleInput(title="满减", kind="amount", off_fen=5_900, quota=101)
        )


async def test_prices_below_cost_need_a_second_person_wherever_they_are_set(shop: GuardedShop) -> None:
    product = await shop.product(cost_fen=10_000)
    with pytest.raises(NeedsApproval):
        async with shop.tx() as t:
            await shop.products.set_price(t, HOST, product.id, 9_999, EVERYONE, SOON)
    async with shop.tx() as t:
        await shop.products.set_price(t, HOST, product.id, 10_000, EVERYONE, SOON)
    for patch in (
        ProductPatch(member_fen=9_000),
        ProductPatch(list_fen=9_000),
        ProductPatch(cost_fen=12_801),
    ):
        with pytest.raises(NeedsApproval):
            async with shop.tx() as t:
                await shop.products.update(t, HOST, product.id, patch)
    given = ProductInput(sku="loss", name="引流品", list_fen=900, stock=1, cost_fen=1_000)
    with pytest.raises(NeedsApproval) as refused:
        async with shop.tx() as t:
            await shop.products.create(t, HOST, given)
    assert not await shop.rows("SELECT 1 FROM products WHERE sku = 'loss'")
    await shop.granted(refused.value)
    async with shop.tx() as t:
        made = await shop.products.create(t, HOST, given)
    async with shop.tx() as t:  # what was granted is not asked for again with every other change
        await shop.products.update(t, HOST, made.id, ProductPatch(name="特价品"))


async def test_a_grant_for_a_benefit_is_bound_to_its_times(shop: GuardedShop, make_show: MakeShow) -> None:
    show, product = await make_show(), await shop.product()
    await shop.limit("show", show, 10_000)
    until = 4_000_000_000_000
    granted: dict[str, Any] = {
        "what": "early_access",
        "products": (product.id,),
        "until": until,
        "seconds": 60,
        "starts_in_s": 10,
    }
    with pytest.raises(OverBudget) as refused:
        await shop.give(show, **granted)
    await shop.granted(refused.value)
    for other in ({"until": until + 1}, {"until": None}, {"seconds": 3_600}, {"starts_in_s": 300}):
        with pytest.raises(OverBudget):
            await shop.give(show, **{**granted, **other})
    await shop.give(show, **granted)


# --- no_promo (L31) ---


@pytest.mark.rule("L31")
async def test_l31_a_no_promo_product_takes_no_part_in_any_promotion(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show, formula = await make_show(), await shop.product(name="婴儿配方奶粉", no_promo=True)
    async with shop.tx() as t:
        await t.conn.execute(
            "UPDATE products SET on_sale_at = now() + interval '1 day' WHERE id = %s", [formula.id]
        )
    refused: list[NoPromo] = []
    with pytest.raises(NoPromo) as flash:
        await shop.flash(show, formula)
    refused.append(flash.value)
    with pytest.raises(NoPromo) as entry:
        async with shop.tx() as t:
            await shop.products.set_price(t, HOST, formula.id, 9_900, EVERYONE, SOON)
    refused.append(entry.value)
    with pytest.raises(NoPromo) as coupon:
        async with shop.tx() as t:
            await shop.coupons.create_rule(
                t, HOST, CouponRuleInput(title="券", kind="amount", off_fen=100, products=(formula.id,))
            )
    refused.append(coupon.value)
    with pytest.raises(NoPromo) as prize:
        await shop.give(show, what="early_access", products=[formula.id], value_fen=0)
    refused.append(prize.value)
    with pytest.raises(NoPromo) as gift:
        async with shop.tx() as t:
            await shop.products.update(t, HOST, formula.id, ProductPatch(gift_text="送勺子"))
    refused.append(gift.value)
    for refusal in refused:
        assert refusal.word == "no_promo"
        assert refusal.details == {"rule": "no_promo", "product": formula.id}
        assert "婴儿配方奶粉 is marked no_promo" in str(refusal)
        assert "Choose another product" in str(refusal)
    assert not await shop.rows("SELECT 1 FROM offers UNION ALL SELECT 1 FROM benefits")


# --- the rebate cap (36, 64) ---


async def plan_of(shop: GuardedShop, percent: int) -> None:
    async with shop.tx() as t:
        await shop.guards.check_plan(t.conn, percent)


async def test_36_a_plan_that_would_give_back_more_than_the_cap_cannot_be_saved(shop: GuardedShop) -> None:
    """A point a yuan is 1 %: with a bonus of 900 % it is the cap of 10 %, and not above it."""
    await plan_of(shop, 900)
    with pytest.raises(OverRebateCap, match=r"10.1 %.*allows 10 %") as refused:
        await plan_of(shop, 901)
    assert refused.value.details == {
        "rebate_permille": 101,
        "cap_permille": 100,
        "parts": {"points": 101, "benefits": 0},
    }


@pytest.mark.rule("M64")
async def test_64_campaigns_that_overlap_are_summed_with_the_best_plan(shop: GuardedShop) -> None:
    await shop.plan(points_bonus_percent=400)
    now = datetime.now(UTC)
    async with shop.tx() as t:
        await t.conn.execute(
            "INSERT INTO points_campaigns (id, name, percent, from_at, until_at) VALUES (%s, '双倍', 300, %s, %s)",
            [new_id(), now, now + timedelta(days=2)],
        )
    async with shop.tx() as t:
        check = shop.guards.check_campaign
        await check(t.conn, 200, now + timedelta(days=1), now + timedelta(days=3))
        with pytest.raises(OverRebateCap):
            await check(t.conn, 201, now + timedelta(days=1), now + timedelta(days=3))
        await check(t.conn, 500, now + timedelta(days=2), now + timedelta(days=3))  # not at one time
    await plan_of(shop, 600)
    with pytest.raises(OverRebateCap):
        await plan_of(shop, 601)


async def test_36_what_benefits_have_cost_counts_against_the_cap(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    """9 % measured, 1 % in points: a rule that adds 2 % cannot be saved, one that adds nothing can."""
    show, buyer = await make_show(), await shop.buyer()
    product = await shop.product(list_fen=1_000_000)
    offer = await shop.open(show, product)
    placed = await shop.buy(buyer, show, (offer, 1))
    await shop.pay(placed.order, placed.total_fen)
    benefit = await shop.give(show, quota=1, value_fen=90_000)
    await shop.claim(show, benefit, buyer)
    await plan_of(shop, 0)
    with pytest.raises(OverRebateCap, match=r"12 % .*3 % in points, 9 % in benefits"):
        await plan_of(shop, 200)
