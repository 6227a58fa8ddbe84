"""Each act takes its locks in the written order: while it waits for one, what comes later in the list is free,
and what comes earlier is its own."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg.errors import LockNotAvailable
from redis.asyncio import Redis

from commerce.offers import buyer_lock
from commerce.plan_refunds import PlanRefunds
from commerce.refunds import Refunds
from commerce.stock import Stock
from live.database import Database
from live.lua import Scripts
from membership.transaction import LOCKS, Connection, lock, try_lock
from tests.commerce.guard_stage import GuardedShop
from tests.commerce.shop_stage import OPERATOR
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 30.0
ADVISORY = "SELECT pg_advisory_xact_lock(hashtextextended(%s, %s))"


@pytest.fixture
def shop(redis: Redis, scripts: Scripts, database: Database) -> GuardedShop:
    return GuardedShop(redis, scripts, database)


@asynccontextmanager
async def held_up(
    shop: GuardedShop, lock: str, values: list[Any], act: Coroutine[Any, Any, Any]
) -> AsyncIterator[Connection]:
    """Holds the lock until the act waits for it; then, while it waits, the connection may look at other locks.
    The act is let go on afterwards, and must end well."""
    async with shop.tx() as t:
        await t.conn.execute(lock, values)
        mine = await (await t.conn.execute("SELECT pg_backend_pid() AS pid")).fetchone()
        assert mine is not None
        task = asyncio.create_task(act)
        until = time.monotonic() + DEADLINE_S
        while True:
            # Elsewhere: a transaction sees the same activity from its first look to its end.
            if await shop.rows(
                "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))", mine["pid"]
            ):
                break
            assert not task.done(), "the act did not need the lock"
            assert time.monotonic() < until, "the act never came to the lock"
            await asyncio.sleep(0.02)
        yield t.conn
    await asyncio.wait_for(task, DEADLINE_S)


async def is_free(conn: Connection, query: str, *values: Any) -> bool:
    """Whether the rows could be locked now."""
    try:
        async with conn.transaction():
            await conn.execute(f"{query} FOR UPDATE NOWAIT", values)
    except LockNotAvailable:
        return False
    return True


async def test_an_offer_asks_for_the_switch_before_it_locks_its_product(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show, product = await make_show(), await shop.product()
    async with held_up(shop, ADVISORY, ["incident", 9], shop.flash(show, product)) as conn:
        assert await is_free(conn, "SELECT 1 FROM products WHERE id = %s", product.id)


async def test_a_refund_has_its_coupon_before_the_shelf(shop: GuardedShop, make_show: MakeShow) -> None:
    show, buyer, product = await make_show(), await shop.buyer(), await shop.product()
    coupon = await shop.grant(buyer, await shop.rule())
    offer = await shop.open(show, product)
    placed = await shop.buy(buyer, show, (offer, 2), coupons=[coupon.id])
    await shop.pay(placed.order, placed.total_fen)

    async def refund() -> None:
        async with shop.tx() as t:
            refunds = Refunds(shop.payments, shop.orders, shop.points, Stock())
            await refunds.lines(t, OPERATOR, placed.order, None, "complaint", restock=True)

    before = await shop.stock(product)
    lock = "SELECT 1 FROM products WHERE id = %s FOR NO KEY UPDATE"
    async with held_up(shop, lock, [product.id], refund()) as conn:
        assert not await is_free(conn, "SELECT 1 FROM coupons WHERE id = %s", coupon.id)
    assert await shop.stock(product) == before + 2


async def test_money_that_comes_uses_the_coupon_before_the_shelf(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    product = await shop.product(stock_mode="on_payment")
    coupon = await shop.grant(buyer, await shop.rule())
    placed = await shop.buy(buyer, show, (await shop.open(show, product), 1), coupons=[coupon.id])
    lock = "SELECT 1 FROM products WHERE id = %s FOR NO KEY UPDATE"
    paying = shop.pay(placed.order, placed.total_fen)
    async with held_up(shop, lock, [product.id], paying) as conn:
        assert not await is_free(conn, "SELECT 1 FROM coupons WHERE id = %s", coupon.id)


async def test_coupons_taken_back_together_are_locked_in_the_order_of_their_ids(shop: GuardedShop) -> None:
    rule = await shop.rule()
    given = []
    for _ in range(3):
        buyer = await shop.buyer()
        assert buyer.member is not None
        async with shop.tx() as t:
            given.append(await shop.coupons.grant(t, buyer.member, rule.id, "claim:1", nth=len(given) + 1))
    first, middle, last = sorted(coupon.id for coupon in given)
    for cause in ("claim:0", "claim:1"):  # the first now lies last in the table, and in its index
        await shop.rows("UPDATE coupons SET cause = %s WHERE id = %s RETURNING id", cause, first)

    async def void() -> None:
        async with shop.tx() as t:
            assert await shop.coupons.void(t, "claim:1") == 3

    lock = "SELECT 1 FROM coupons WHERE id = %s FOR NO KEY UPDATE"
    async with held_up(shop, lock, [middle], void()) as conn:
        assert not await is_free(conn, "SELECT 1 FROM coupons WHERE id = %s", first)
        assert await is_free(conn, "SELECT 1 FROM coupons WHERE id = %s", last)


async def test_an_order_takes_points_before_coupons(shop: GuardedShop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    await shop.give_points(buyer, 1_000)
    coupon = await shop.grant(buyer, await shop.rule())
    offer = await shop.open(show, await shop.product())
    quote = await shop.quote(buyer, show, (offer, 1), coupons=[coupon.id], points=500)
    lock = [f"points:{buyer.member}", 0]
    async with held_up(shop, ADVISORY, lock, shop.place(buyer, show, quote)) as conn:
        assert await is_free(conn, "SELECT 1 FROM coupons WHERE id = %s", coupon.id)


async def test_a_plan_given_back_locks_its_order_before_its_buyer(shop: GuardedShop) -> None:
    buyer = await shop.buyer()
    placed = await shop.join(buyer, (await shop.plan()).id)
    await shop.pay(placed.order, placed.total_fen)
    member = await shop.again(buyer)
    back = PlanRefunds(shop.payments, shop.orders, shop.plans, shop.seats)

    async def refund() -> None:
        async with shop.tx() as t:
            await back.refund(t, member, placed.total_fen)

    assert member.member is not None
    lock = [buyer_lock(member.member), 0]
    async with held_up(shop, ADVISORY, lock, refund()) as conn:
        assert not await is_free(conn, "SELECT 1 FROM orders WHERE id = %s", placed.order)


async def test_a_plans_money_sent_back_locks_the_buyer_before_the_points(shop: GuardedShop) -> None:
    buyer = await shop.buyer()
    placed = await shop.join(buyer, (await shop.plan()).id)
    await shop.pay(placed.order, placed.total_fen)

    async def refund() -> None:
        async with shop.tx() as t:
            await shop.payments.refund(t, OPERATOR, placed.order)

    async with held_up(shop, ADVISORY, [f"points:{buyer.id}", 0], refund()) as conn:
        assert not await is_free(conn, "SELECT 1 FROM members WHERE id = %s", buyer.id)


async def test_a_name_is_one_transactions_at_a_time_and_one_that_nobody_knows_is_no_lock(
    shop: GuardedShop,
) -> None:
    async with shop.tx() as mine, shop.tx() as other:
        await lock(mine.conn, "points:a")
        assert not await try_lock(other.conn, "points:a")
        assert await try_lock(other.conn, "points:b")
        with pytest.raises(KeyError):
            await lock(mine.conn, "nobody:a")
    async with shop.tx() as t:
        assert await try_lock(t.conn, "points:a")


def test_every_name_that_is_locked_is_written_down() -> None:
    text = (ROOT / "docs" / "decisions" / "locks.md").read_text()
    assert set(re.findall(r"`([a-z]+)(?:`|:…)", text)) >= LOCKS.keys()
