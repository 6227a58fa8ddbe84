"""Sentences about the first N and about trials that no other test says as a whole."""

from __future__ import annotations

import pytest

from commerce.benefit_terms import BenefitInput
from commerce.benefits import Benefits
from tests.commerce.shop_stage import HOST, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


@pytest.mark.rule("semantics 3.1d", "semantics 3.1c")
async def test_a_trial_that_ends_asks_for_no_money_and_starts_nothing(
    shop: Shop, make_show: MakeShow
) -> None:
    show, plan = await make_show(), await shop.plan()
    benefits = Benefits(shop.scripts, shop.audiences, shop.notices, shop.members.facts, shop.grants)
    async with shop.tx() as t:
        await benefits.open(
            t, HOST, show, BenefitInput(title="三件套", value_fen=5_900, quota=3, needs="join")
        )
    member = await shop.buyer(plan.id)
    assert member.facts.on_trial
    await shop.rows(
        "UPDATE plan_terms SET starts_at = starts_at - interval '8 days', ends_at = ends_at - interval '8 days'"
        " RETURNING id"
    )
    async with shop.tx() as t:
        await shop.orders.expire_due(t)
    await shop.payments.ask_due(shop.database, after_s=0)
    assert not (await shop.again(member)).facts.plans
    for table in ("orders", "payments", "payment_starts", "benefit_claims"):
        assert await shop.rows(f"SELECT 1 FROM {table}") == [], table
    assert len(await shop.rows("SELECT id FROM plan_terms")) == 1
    assert shop.provider.asked == []
