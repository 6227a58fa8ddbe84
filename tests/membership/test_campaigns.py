"""L32, row 64: campaigns of points overlap by stated rules, and the time of the order decides."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from membership.actor import NOBODY, Actor, Facts, PlanId, ProductId, new_id
from membership.audience import PLAN_MEMBERS
from membership.campaigns import CampaignInput, Campaigns, Holding, NameTaken, NoSuchCampaign, bases
from membership.points import lots_for_goods
from membership.refusal import BadRequest, Forbidden
from tests.conftest import TransactionFactory

pytestmark = pytest.mark.anyio

OPERATOR = Actor(kind="staff", id=new_id(), permissions=frozenset({"catalog.write"}))
NOW = datetime.now(UTC)
RICE, OIL = ProductId(new_id()), ProductId(new_id())


def given(name: str = "双倍", **terms: Any) -> CampaignInput:
    window = {"from_at": NOW - timedelta(hours=1), "until_at": NOW + timedelta(hours=1)}
    return CampaignInput(**{"name": name, "percent": 100, **window, **terms})


async def counting(
    tx: TransactionFactory,
    at: datetime = NOW,
    facts: Facts = NOBODY,
    products: tuple[ProductId, ...] = (RICE,),
) -> dict[str, str]:
    async with tx() as t:
        judged = await Campaigns().judged(t.conn, facts, products, at)
        return {each.holding.name: each.why for each in judged}


async def made(tx: TransactionFactory, *campaigns: CampaignInput) -> None:
    async with tx() as t:
        for campaign in campaigns:
            await Campaigns().create(t, OPERATOR, campaign)


async def test_a_campaign_holds_from_its_first_moment_to_before_its_last(tx: TransactionFactory) -> None:
    await made(tx, given())
    moments = [
        NOW + timedelta(hours=hours, microseconds=more)
        for hours, more in ((-1, -1), (-1, 0), (1, -1), (1, 0))
    ]
    assert [len(await counting(tx, moment)) for moment in moments] == [0, 1, 1, 0]


@pytest.mark.rule("M64")
async def test_those_that_add_count_together_and_of_the_others_the_one_of_highest_priority(
    tx: TransactionFactory,
) -> None:
    await made(
        tx,
        given("一起甲"),
        given("一起乙"),
        given("独占低", adds=False, priority=1),
        given("独占高", adds=False, priority=9),
        given("独占高二", adds=False, priority=9),
    )
    assert await counting(tx) == {
        "独占高": "first",
        "独占高二": "behind",  # of equal ones the older
        "独占低": "behind",
        "一起甲": "adds",
        "一起乙": "adds",
    }


async def test_a_campaign_is_for_its_audience_and_its_goods(tx: TransactionFactory) -> None:
    await made(tx, given("会员", audience=PLAN_MEMBERS), given("油", products=(OIL,)))
    member = Facts(registered=True, plans=frozenset({PlanId(new_id())}))
    assert await counting(tx) == {}
    assert await counting(tx, facts=member, products=(RICE, OIL)) == {"会员": "adds", "油": "adds"}


@pytest.mark.rule("M64")
def test_each_multiplier_is_floored_on_its_own_base() -> None:
    """semantics 6: on the base, additive, one lot each; one for some goods only on the money paid for those."""
    percents, money = bases([Holding("双倍", 100), Holding("油", 50, (OIL,))], {RICE: 10_950, OIL: 399})
    assert lots_for_goods(11_349, 20, percents, money) == {
        "goods": 113,
        "goods.plan": 22,
        "goods.event:双倍": 113,
        "goods.event:油": 1,
    }


async def test_ending_a_campaign_ends_it_now(tx: TransactionFactory) -> None:
    await made(tx, given())
    async with tx() as t:
        (campaign,) = (await Campaigns().list(t.conn)).items
        assert (await Campaigns().end(t, OPERATOR, campaign.id)).until_at < campaign.until_at
        with pytest.raises(NoSuchCampaign):
            await Campaigns().end(t, OPERATOR, new_id())
    assert await counting(tx, datetime.now(UTC) + timedelta(minutes=1)) == {}


@pytest.mark.parametrize(
    "terms",
    [
        {"until_at": NOW - timedelta(hours=2)},
        {"from_at": datetime(2026, 1, 1)},  # noqa: DTZ001 - a time without its offset is what is refused
        {"name": "   "},
        {"products": (ProductId("rice"),)},
    ],
)
async def test_bad_terms_are_refused(tx: TransactionFactory, terms: dict[str, Any]) -> None:
    async with tx() as t:
        with pytest.raises(BadRequest):
            await Campaigns().create(t, OPERATOR, given(**terms))


async def test_a_name_is_given_once_and_only_by_who_may(tx: TransactionFactory) -> None:
    await made(tx, given())
    async with tx() as t:
        with pytest.raises(NameTaken):
            await Campaigns().create(t, OPERATOR, given())
        with pytest.raises(Forbidden):
            await Campaigns().create(t, Actor(kind="staff", id="x"), given("又"))
