"""Budgets: what benefits may cost, for one benefit, a show and a month (rows L20 and 36)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from commerce.approvals import OverBudget
from commerce.benefit_terms import Benefit
from commerce.budgets import Budget, Scope
from commerce.guards import Guards
from live.database import Database
from live.lua import Scripts
from membership.actor import ShowId
from membership.refusal import BadRequest, Forbidden
from tests.commerce.guard_stage import BOSS, HOST, GuardedShop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


@pytest.fixture
def shop(redis: Redis, scripts: Scripts, database: Database) -> GuardedShop:
    return GuardedShop(redis, scripts, database)


async def budget(shop: GuardedShop, scope: Scope, subject: str) -> Budget:
    async with shop.tx() as t:
        return await shop.budgets.get(t.conn, scope, subject)


@pytest.mark.rule("L20")
async def test_l20_a_quota_raised_past_the_budget_is_refused_and_goes_through_when_granted(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show = await make_show()
    await shop.limit("show", show, 590_000)
    benefit = await shop.give(show)
    assert (await budget(shop, "show", show)).left_fen == 0
    with pytest.raises(OverBudget, match=r"8850\.00 of 5900\.00") as refused:
        await shop.raise_to(benefit, 150)
    assert refused.value.word == "over_budget"
    assert (await budget(shop, "show", show)).committed_fen == 590_000
    await shop.granted(refused.value)
    assert (await shop.raise_to(benefit, 150)).quota == 150
    assert (await budget(shop, "show", show)).committed_fen == 885_000
    with pytest.raises(OverBudget):  # the grant was for that raise, once
        await shop.raise_to(benefit, 151)


@pytest.mark.parametrize("scope", ["benefit", "show", "month"])
async def test_36_each_scope_has_a_limit_of_its_own(
    redis: Redis, scripts: Scripts, database: Database, make_show: MakeShow, scope: str
) -> None:
    shop = GuardedShop(redis, scripts, database, **{f"{scope}_fen": 590_000})
    show = await make_show()
    with pytest.raises(OverBudget, match=r"5959\.00 of 5900\.00"):
        await shop.give(show, quota=101)
    await shop.give(show)
    other = await make_show() if scope == "month" else show
    if scope == "benefit":
        await shop.give(show)
        return
    with pytest.raises(OverBudget):
        await shop.give(other, quota=1)


async def test_a_limit_set_by_hand_is_stronger_than_the_default_and_can_be_taken_off(
    redis: Redis, scripts: Scripts, database: Database, make_show: MakeShow
) -> None:
    shop = GuardedShop(redis, scripts, database, show_fen=5_900)
    show = await make_show()
    with pytest.raises(OverBudget):
        await shop.give(show, quota=2)
    await shop.limit("show", show, 11_800)
    await shop.give(show, quota=2)
    await shop.limit("show", show, None)
    with pytest.raises(OverBudget):
        await shop.give(show, quota=1)


async def test_what_is_closed_binds_only_what_was_given(shop: GuardedShop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    await shop.limit("show", show, 590_000)
    benefit = await shop.give(show)
    await shop.claim(show, benefit, buyer)
    assert await budget(shop, "show", show) == Budget(
        scope="show",
        subject=show,
        limit_fen=590_000,
        committed_fen=590_000,
        spent_fen=5_900,
        left_fen=0,
    )
    async with shop.tx() as t:
        await shop.benefits.close(t, HOST, benefit.id)
    found = await budget(shop, "show", show)
    assert (found.committed_fen, found.spent_fen, found.left_fen) == (5_900, 5_900, 584_100)
    await shop.give(show, quota=99)


async def test_nobody_gets_round_a_budget_by_stating_no_value(shop: GuardedShop, make_show: MakeShow) -> None:
    """What it brings counts: a point is a fen, a free order its cap."""
    show = await make_show()
    await shop.limit("show", show, 10_000)
    with pytest.raises(OverBudget):
        await shop.give(show, what="points", points=1_001, quota=10, value_fen=0)
    with pytest.raises(OverBudget):
        await shop.give(show, what="free_order", needs="order", cap_fen=10_001, quota=1, value_fen=0)
    await shop.give(show, what="points", points=1_000, quota=10, value_fen=0)


async def test_who_may_not_approve_sets_no_budget_and_what_is_none_is_named(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show = await make_show()
    async with shop.tx() as t:
        with pytest.raises(Forbidden):
            await shop.budgets.set(t, HOST, "show", show, 1)
        for scope, subject in (("month", "2026-13"), ("show", "../x"), ("benefit", "1")):
            with pytest.raises(BadRequest):
                await shop.budgets.set(t, BOSS, scope, subject, 1)  # type: ignore[arg-type]
        with pytest.raises(BadRequest):
            await shop.budgets.set(t, BOSS, "show", show, -1)


# --- two at once ---


async def opened_at_once(
    shop: GuardedShop, pool: AsyncConnectionPool[Any], shows: list[ShowId]
) -> list[Benefit | BaseException]:
    """One opening in each show, on two pools, with the budget of the month for one of them."""
    other = GuardedShop(shop.redis, shop.scripts, Database(pool))
    openings = [(shop if turn % 2 else other).give(show, quota=100) for turn, show in enumerate(shows)]
    return await asyncio.gather(*openings, return_exceptions=True)


async def test_two_openings_on_two_pools_do_not_pass_a_budget_together(
    shop: GuardedShop, pool: AsyncConnectionPool[Any], fresh_database_url: str, make_show: MakeShow
) -> None:
    async with AsyncConnectionPool(fresh_database_url, kwargs=pool.kwargs, open=False) as second:
        shows = [await make_show() for _ in range(8)]
        async with shop.tx() as t:
            month = await shop.budgets.month_now(t.conn)
        await shop.limit("month", month, 590_000)
        answers = await opened_at_once(shop, second, shows)
    assert sum(isinstance(answer, Benefit) for answer in answers) == 1
    assert sum(isinstance(answer, OverBudget) for answer in answers) == 7
    assert (await budget(shop, "month", month)).committed_fen == 590_000


async def test_control_without_the_lock_they_do(
    shop: GuardedShop,
    pool: AsyncConnectionPool[Any],
    fresh_database_url: str,
    make_show: MakeShow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The race is real: with the lock taken away, and all at the same place, the limit is passed."""
    places = asyncio.Barrier(8)

    async def no_lock(self: object, conn: object) -> None:
        return None

    settle = Guards._settle

    async def settle_together(self: Guards, *given: Any) -> None:
        await places.wait()
        await settle(self, *given)

    monkeypatch.setattr("commerce.budgets.Budgets.lock", no_lock)
    monkeypatch.setattr(Guards, "_settle", settle_together)
    async with AsyncConnectionPool(fresh_database_url, kwargs=pool.kwargs, open=False) as second:
        shows = [await make_show() for _ in range(8)]
        async with shop.tx() as t:
            month = await shop.budgets.month_now(t.conn)
        await shop.limit("month", month, 590_000)
        answers = await opened_at_once(shop, second, shows)
    assert sum(isinstance(answer, Benefit) for answer in answers) > 1
    assert (await budget(shop, "month", month)).committed_fen > 590_000
