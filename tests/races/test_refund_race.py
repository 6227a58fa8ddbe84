"""A plan is given back in the moment in which a benefit is given for it: the benefit goes with it, or is not given.

First, that each race is there when nothing guards it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import pytest
from redis.asyncio import Redis

import commerce.conditions
import commerce.payment_returns
from commerce.benefit_terms import Benefit, BenefitInput
from commerce.claims import Won
from commerce.orders import Placed
from commerce.plan_refunds import PlanRefunds
from live.database import Database, make_pool
from live.lua import Scripts
from membership.actor import Actor, ShowId
from membership.refusal import Refusal
from membership.transaction import Transaction
from tests.commerce.guard_stage import HOST, GuardedShop
from tests.commerce.shop_stage import OPERATOR
from tests.conftest import Emptied, MakeShow
from tests.races.test_lock_order import ADVISORY, DEADLINE_S, held_up, is_free

pytestmark = pytest.mark.anyio

Way = Literal["by the shop", "by the member"]
WAYS: tuple[Way, ...] = ("by the shop", "by the member")
NEWLY: dict[str, Any] = {"value_fen": 0, "what": "points", "points": 100, "newly_joined_s": 3_600}


@pytest.fixture
def shop(redis: Redis, scripts: Scripts, database: Database) -> GuardedShop:
    return GuardedShop(redis, scripts, database)


@pytest.fixture
async def shops(
    shop: GuardedShop, redis: Redis, scripts: Scripts, emptied: Emptied
) -> AsyncIterator[list[GuardedShop]]:
    """Two that share the stores and nothing else, as two processes do."""
    async with make_pool(emptied.url) as pool:
        yield [shop, GuardedShop(redis, scripts, Database(pool))]


async def joined(shop: GuardedShop, show: ShowId | None) -> tuple[Actor, Placed]:
    buyer = await shop.buyer()
    placed = await shop.join(buyer, (await shop.plan()).id, show)
    await shop.pay(placed.order, placed.total_fen, payer=f"payer-{buyer.id}")
    return await shop.again(buyer), placed


async def give_back(t: Transaction, shop: GuardedShop, way: Way, buyer: Actor, placed: Placed) -> None:
    if way == "by the shop":
        await shop.payments.refund(t, OPERATOR, placed.order)
    else:
        back = PlanRefunds(shop.payments, shop.orders, shop.plans, shop.seats)
        await back.refund(t, buyer, placed.total_fen)


async def given_back(shop: GuardedShop, way: Way, buyer: Actor, placed: Placed) -> None:
    async with shop.tx() as t:
        await give_back(t, shop, way, buyer, placed)


async def open_for_joining(t: Transaction, shop: GuardedShop, show: ShowId) -> Benefit:
    terms = BenefitInput(title="厨房三件套", quota=100, value_fen=5_900, needs="join")
    return await shop.benefits.open(t, HOST, show, terms)


async def opened_for_joining(shop: GuardedShop, show: ShowId) -> Benefit:
    async with shop.tx() as t:
        return await open_for_joining(t, shop, show)


async def one_within_the_other(
    shop: GuardedShop, first: Callable[[Transaction], Awaitable[Any]], second: Awaitable[Any]
) -> Any:
    """The second begins when the first has done all but commit, which it does once the second waits for it, or
    has ended without. Returns what came of the second."""
    async with shop.tx() as t:
        await first(t)
        other = asyncio.ensure_future(second)
        await until_it_waits(shop, t.conn.info.backend_pid, other)
    return await asyncio.wait_for(other, DEADLINE_S)


async def until_it_waits(shop: GuardedShop, pid: int, act: asyncio.Future[Any]) -> None:
    """For this process of the server, or has ended."""
    until = time.monotonic() + DEADLINE_S
    waits = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    while not act.done() and not await shop.rows(waits, pid):
        assert time.monotonic() < until, "it neither waits nor ends"
        await asyncio.sleep(0.02)


async def claims(shop: GuardedShop) -> list[str]:
    """Their states."""
    rows = await shop.rows("SELECT state FROM benefit_claims ORDER BY benefit_id, rank")
    return [row["state"] for row in rows]


async def given_for_nothing(shop: GuardedShop) -> int:
    """How many still stand though the plan that earned them was given back."""
    rows = await shop.rows(
        """
        SELECT c.id FROM benefit_claims c
        JOIN payments p ON p.id IN (c.payment_id, c.joined_by) JOIN orders o ON o.id = p.order_id
        WHERE c.state = 'confirmed' AND o.state = 'refunded'
        """
    )
    return len(rows)


# --- a benefit opens for who joined earlier ---


@pytest.mark.parametrize("way", WAYS)
async def test_the_race_of_an_opening_is_there_when_nothing_guards_it(
    shop: GuardedShop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    """This shows that the tests below can fail."""

    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr(commerce.payment_returns, "lock_show", nothing)
    show = await make_show()
    buyer, placed = await joined(shop, show)
    await one_within_the_other(
        shop, lambda t: give_back(t, shop, way, buyer, placed), opened_for_joining(shop, show)
    )
    assert await given_for_nothing(shop) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_benefit_that_opens_while_a_plan_is_given_back_ranks_everybody_but_its_member(
    shop: GuardedShop, make_show: MakeShow, way: Way
) -> None:
    show = await make_show()
    buyer, placed = await joined(shop, show)
    other, _ = await joined(shop, show)
    await one_within_the_other(
        shop, lambda t: give_back(t, shop, way, buyer, placed), opened_for_joining(shop, show)
    )
    rows = await shop.rows("SELECT member_id::text AS member, rank, state FROM benefit_claims")
    assert rows == [{"member": other.id, "rank": 1, "state": "confirmed"}]


@pytest.mark.parametrize("way", WAYS)
async def test_a_plan_given_back_while_a_benefit_opens_takes_its_gift_along(
    shop: GuardedShop, make_show: MakeShow, way: Way
) -> None:
    show = await make_show()
    buyer, placed = await joined(shop, show)
    await one_within_the_other(
        shop, lambda t: open_for_joining(t, shop, show), given_back(shop, way, buyer, placed)
    )
    assert await claims(shop) == ["recalled"]


# --- who has newly joined claims ---


@pytest.mark.parametrize("way", WAYS)
async def test_the_race_of_a_claim_is_there_when_nothing_guards_it(
    shop: GuardedShop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    """This shows that the tests below can fail: the plan was paid back whole, and the points stay."""

    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr(commerce.conditions, "_lock_plans", nothing)
    show = await make_show()
    buyer, placed = await joined(shop, None)
    benefit = await shop.give(show, **NEWLY)
    answer = await one_within_the_other(
        shop, lambda t: give_back(t, shop, way, buyer, placed), shop.claim(show, benefit, buyer)
    )
    assert isinstance(answer, Won)
    assert await given_for_nothing(shop) == 1
    assert (await shop.balance(buyer)).active == 100


@pytest.mark.parametrize("way", WAYS)
async def test_a_claim_beside_a_plan_that_is_given_back_is_refused_and_its_rank_comes_back(
    shop: GuardedShop, make_show: MakeShow, way: Way
) -> None:
    """The plan may have been joined in no show: the member's row is the guard, not the show's seats."""
    show = await make_show()
    buyer, placed = await joined(shop, None)
    other, _ = await joined(shop, None)
    benefit = await shop.give(show, **NEWLY)
    answer = await one_within_the_other(
        shop, lambda t: give_back(t, shop, way, buyer, placed), shop.claim(show, benefit, buyer)
    )
    assert isinstance(answer, Refusal)
    assert (answer.word, answer.details["condition"]) == ("not_eligible", "newly_joined")
    assert (await shop.balance(buyer)).active == 0
    assert (await shop.benefits.counts(show, benefit.id)).confirmed == 0
    won = await shop.claim(show, benefit, other)
    assert isinstance(won, Won)
    assert won.rank == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_plan_given_back_beside_a_claim_that_is_written_takes_its_points_along(
    shop: GuardedShop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    show = await make_show()
    buyer, placed = await joined(shop, None)
    benefit = await shop.give(show, **NEWLY)
    give, backs = shop.grants.give, []

    async def give_and_be_overtaken(t: Transaction, *given: Any) -> None:
        await give(t, *given)  # the claim's row is written, and its points are booked
        backs.append(asyncio.ensure_future(given_back(shop, way, buyer, placed)))
        await until_it_waits(shop, t.conn.info.backend_pid, backs[0])

    monkeypatch.setattr(shop.grants, "give", give_and_be_overtaken)
    assert isinstance(await shop.claim(show, benefit, buyer), Won)
    await asyncio.wait_for(backs[0], DEADLINE_S)
    assert await claims(shop) == ["recalled"]
    assert (await shop.balance(buyer)).active == 0


# --- in which order ---


async def test_a_claim_of_who_has_newly_joined_locks_the_members_before_the_benefit(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show = await make_show()
    buyer, _ = await joined(shop, None)
    benefit = await shop.give(show, **NEWLY)
    lock = "SELECT 1 FROM members WHERE id = %s FOR NO KEY UPDATE"
    async with held_up(shop, lock, [buyer.id], shop.claim(show, benefit, buyer)) as conn:
        assert await is_free(conn, "SELECT 1 FROM benefits WHERE id = %s", benefit.id)


@pytest.mark.parametrize("way", WAYS)
async def test_who_gives_a_plan_back_has_the_shows_seats_before_the_payment(
    shop: GuardedShop, make_show: MakeShow, way: Way
) -> None:
    """A benefit that opens holds the seats when it needs the payment's row."""
    show = await make_show()
    buyer, placed = await joined(shop, show)
    act = given_back(shop, way, buyer, placed)
    async with held_up(shop, ADVISORY, [f"show:{show}", 8], act) as conn:
        assert await is_free(conn, "SELECT 1 FROM payments WHERE order_id = %s", placed.order)
        assert not await is_free(conn, "SELECT 1 FROM members WHERE id = %s", buyer.id)


async def test_openings_claims_and_plans_given_back_at_once_wait_in_no_circle(
    shops: list[GuardedShop], make_show: MakeShow
) -> None:
    """Over two pools; none is refused for a circle, and nothing is left that was given for nothing."""
    first, second = shops
    show = await make_show()
    people = [await joined(first, show) for _ in range(8)]
    newly = await first.give(show, **NEWLY)
    answers = await asyncio.wait_for(
        asyncio.gather(
            *(first.claim(show, newly, buyer) for buyer, _ in people[::2]),
            *(
                given_back((first, second)[number % 2], WAYS[number // 2 % 2], buyer, placed)
                for number, (buyer, placed) in enumerate(people[:6])
            ),
            opened_for_joining(second, show),
            *(second.claim(show, newly, buyer) for buyer, _ in people[1::2]),
        ),
        DEADLINE_S,
    )
    words = {answer.word for answer in answers if isinstance(answer, Refusal)}
    assert words <= {"not_eligible"}
    assert await given_for_nothing(first) == 0
    kept = await first.rows(
        "SELECT count(*) AS n FROM benefit_claims WHERE state = 'confirmed' AND member_id = ANY(%s::uuid[])",
        [buyer.id for buyer, _ in people[6:]],
    )
    assert kept == [{"n": 4}]  # who kept the plan has both
