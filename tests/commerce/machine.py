"""The shop driven at random against a shop on paper: orders, coupons, points, stock and refunds in any order.

Every step is done twice, by the product over a real PostgreSQL and Redis and on paper (paper_shop.py); after it
the rows, the counters and the points must be what the paper says.

    python -m tests.commerce.machine --examples 10000
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg
import uvloop
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from commerce.bundles import BundlePart
from commerce.coupons import Coupon, CouponRule, CouponRuleInput
from commerce.fulfilment import Fulfilment, ParcelRow
from commerce.messages import LineInput
from commerce.offers import Offer
from commerce.products import Product, ProductInput, ProductPatch
from commerce.quotes import Quote
from commerce.refunds import Refunds
from commerce.stock import Stock, StockRow
from live.database import Database, make_pool, migrate, open_redis
from live.engines import Addresses, Engines
from live.lua import Scripts
from membership.actor import Actor, OrderId, PlanId, ShowId, new_id
from membership.refusal import Refusal
from tests.commerce import paper_shop as paper
from tests.commerce.shop_stage import HOST, OPERATOR, Shop
from tests.conftest import Emptied, database_url, show_maker

STEPS: Final = 10  # of one example
COUPONS_MOST: Final = 6  # of one buyer
BUYERS: Final = 2
T = TypeVar("T")

SEEN = """
SELECT json_build_object(
    'stock', (SELECT json_object_agg(id, json_build_array(stock, presale_taken)) FROM products),
    'brought', (SELECT json_object_agg(id, (
        SELECT coalesce(sum(delta), 0) FROM stock_entries e WHERE e.product_id = products.id)) FROM products),
    'taken', (SELECT json_object_agg(id, taken) FROM offers),
    'orders', (SELECT json_object_agg(id, json_build_object('state', state, 'goods', goods_fen,
        'coupon', coupon_fen, 'points', points_fen, 'freight', freight_fen, 'total', total_fen, 'lines', (
            SELECT json_agg(json_build_array(
                offer_id, quantity, unit_fen, line_fen, coupon_fen, points_fen, piece) ORDER BY position)
            FROM order_lines WHERE order_id = orders.id AND kind = 'goods'))) FROM orders),
    'coupons', (SELECT json_object_agg(id, json_build_array(state, order_id)) FROM coupons),
    'came', (SELECT coalesce(sum(amount_fen), 0) FROM payments),
    'odd', (SELECT coalesce(sum(amount_fen), 0) FROM payments WHERE outcome = 'quarantined'),
    'went', (SELECT coalesce(sum(amount_fen), 0) FROM payment_returns),
    'points', (SELECT json_object_agg(m.id, json_build_array(
        (SELECT coalesce(sum(amount), 0) FROM points_entries e
         WHERE e.member_id = m.id AND active_from <= clock_timestamp()),
        (SELECT coalesce(sum(amount), 0) FROM points_entries e
         WHERE e.member_id = m.id AND active_from > clock_timestamp()))) FROM members m)
) AS seen
"""


class DisagreementError(AssertionError):
    """The shop and the paper differ."""


def agree(shop: object, on_paper: object) -> None:
    if shop != on_paper:
        raise DisagreementError(f"the shop: {shop!r}\non paper: {on_paper!r}")


class Stand:
    """Engines, a migrated database and connections that last for many examples, on one event loop."""

    def __init__(self, engines: Addresses, emptied: Emptied, *, every: int = 0) -> None:
        self._emptied = emptied
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.redis: Redis = open_redis(engines.redis_url)
        self._pool: AsyncConnectionPool[Any] = self.run(self._open(emptied.url))
        self.database = Database(self._pool)
        self.scripts = Scripts(self.redis)
        self.examples = self.steps = 0
        self.met: Counter[str] = Counter()  # what came about, for whoever doubts that it did
        self._every = every
        self._began = time.monotonic()

    def begin(self) -> None:
        """One more example."""
        if self._every and self.examples and self.examples % self._every == 0:
            self.say()
        self.examples += 1

    def say(self) -> None:
        met = ", ".join(f"{word} {count}" for word, count in sorted(self.met.items()))
        print(
            f"{time.monotonic() - self._began:6.0f} s  {self.examples} examples, {self.steps} steps  {met}",
            flush=True,
        )

    async def _open(self, url: str) -> AsyncConnectionPool[Any]:
        pool = make_pool(url, size_max=4)
        await pool.open()
        return pool

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def end_return_windows(self) -> None:
        """As if seven days had passed. The ledger is only added to; this connection is not bound by that."""
        self._emptied.alter(
            "UPDATE points_entries SET active_from = clock_timestamp() - interval '1 second'"
            " WHERE active_from > clock_timestamp()"
        )

    async def empty_shop(self) -> tuple[Shop, ShowId]:
        self._emptied.delete_rows()
        await self.redis.flushall()
        shop = Shop(self.redis, self.scripts, self.database)
        return shop, await show_maker(self.scripts, shop.tx)()

    def close(self) -> None:
        self.run(self._pool.close())
        self.run(self.redis.aclose())
        self._runner.close()


# How likely each act is beside the others.
ACTS: Final = {
    "order": 4,
    "order_and_pay": 8,
    "best": 2,
    "old_quote": 2,
    "give_up": 3,
    "pay_any": 2,
    "page": 2,
    "webhook_again": 1,
    "late": 4,
    "refund_some": 5,
    "refund_any": 2,
    "send": 2,
    "undo": 1,
    "coupon": 1,
    "points": 1,
    "join": 1,
    "lapse": 1,
    "price": 2,
    "stock": 1,
    "import": 1,
    "days": 1,
}


class Trade(RuleBasedStateMachine):
    """Quotes, orders, money, refunds, stock and plans, in any order."""

    def __init__(self, stand: Stand) -> None:
        super().__init__()
        self.stand = stand
        stand.begin()
        self.shop: Shop
        self.show: ShowId
        self.paper: paper.PaperShop
        self.buyers: list[Actor] = []
        self.products: list[Product] = []
        self.offers: list[Offer] = []
        self.plan: PlanId
        self.quotes: list[tuple[Quote, paper.Basket]] = []
        self.ids: list[OrderId] = []  # of the paper's orders, in the same order
        self.trace: list[str] = []  # the acts so far
        self._seed = 0
        self._chance = random.Random()
        self.refs: list[tuple[str, int, int]] = []  # reference, order, amount
        self.rules: list[tuple[CouponRule, paper.CouponRule]] = []
        self.coupons: list[Coupon] = []  # of the paper's coupons, in the same order
        self.refunds: Refunds
        self.stock = Stock()
        self.fulfilment: Fulfilment

    @initialize(chance=st.integers(0, 2**32 - 1))
    def open_shop(self, chance: int) -> None:
        """Three products, the second perhaps no_promo, the third with a flash price; and a bundle of those that
        are no pre-sale, if there are two. Coupons, points and a plan are in some hands."""
        self._seed = chance
        draw = random.Random(f"{chance}/shop")
        modes = [draw.choice(["on_order", "on_order", "on_payment", "presale"]) for _ in range(3)]
        things = [
            paper.Product(draw.choice([draw.randint(2, 300), draw.randint(301, 15_000)]), None, 0, mode)
            for mode in modes
        ]
        for thing in things:
            if thing.mode == "presale":
                thing.cap = draw.randint(1, 9)
            else:
                thing.stock = draw.randint(1, 9)
        things[1].no_promo = draw.random() < 0.5
        at_hand = [index for index, thing in enumerate(things) if thing.mode != "presale"]
        if len(at_hand) > 1:
            inside = {index: draw.randint(1, 2) for index in at_hand[:2]}
            things.append(paper.Product(draw.randint(2, 15_000), None, 0, parts=inside))
        for thing in things:
            share = draw.choice([None, draw.randint(1, 100)])
            thing.member_fen = None if share is None else max(1, thing.list_fen * share // 100)
        last = things[2]
        fen = max(1, min(last.list_fen - 1, last.list_fen * draw.randint(1, 99) // 100))
        quota = min(draw.randint(1, 6), last.stock or last.cap)
        pins = [0, 1, 3] if len(things) == 4 else [0, 1, 2]  # a show has three
        offered = paper.Flash(2, fen, quota, draw.randint(1, 4))
        self.paper = paper.PaperShop(things, pins, offered, buyers=BUYERS)
        off_fen = draw.choice([7, 500, 3_000, 20_000])
        threshold = draw.choice([0, 0, 100, 1_000, 9_000])
        most = draw.choice([None, draw.randint(1, 2_000)])
        rules = [
            paper.CouponRule("amount", "a", frozenset("bf"), off_fen=off_fen, threshold_fen=threshold),
            paper.CouponRule("percent", "b", frozenset("af"), percent=draw.randint(50, 99), most_fen=most),
            paper.CouponRule("freight", "f", frozenset("abf"), off_fen=draw.choice([0, 0, 300])),
            paper.CouponRule("amount", "c", frozenset("a"), off_fen=off_fen, products=frozenset({0})),
        ]
        self.stand.run(self._open_shop(rules))
        for _ in range(draw.randint(1, 5)):
            self.give_a_coupon(draw.randrange(BUYERS), draw.randrange(len(rules)))
        self.give_points(draw.randrange(BUYERS), draw.randint(1, 3_000))
        if draw.random() < 0.5:
            self.join(0)

    async def _open_shop(self, rules: Sequence[paper.CouponRule]) -> None:
        shop, self.show = await self.stand.empty_shop()
        self.shop = shop
        self.fulfilment = Fulfilment(shop.orders)
        self.refunds = Refunds(shop.payments, shop.orders, shop.points, self.stock)
        self.plan = (
            await shop.plan(
                percent=paper.PLAN_PERCENT,
                fee_fen=paper.PLAN_FEE,
                free_freight=True,
                points_bonus_percent=paper.PLAN_BONUS_PERCENT,
            )
        ).id
        self.buyers = await shop.buyers(BUYERS)
        async with shop.tx() as t:
            for thing in self.paper.products:
                self.products.append(await shop.products.create(t, OPERATOR, self._described(thing)))
            for index in self.paper.pins:
                self.offers.append(await shop.offers.open(t, HOST, self.show, self.products[index].id))
            flash = self.paper.flash
            self.offers.append(
                await shop.offers.open(
                    t,
                    HOST,
                    self.show,
                    self.products[flash.product].id,
                    "flash",
                    flash_fen=flash.fen,
                    quota=flash.quota,
                    per_person=flash.per_person,
                    seconds=3_600,
                )
            )
            for rule in rules:
                made = await shop.coupons.create_rule(
                    t,
                    OPERATOR,
                    CouponRuleInput(
                        title=rule.group,
                        kind=rule.kind,  # type: ignore[arg-type]
                        off_fen=rule.off_fen or None,
                        percent=rule.percent if rule.kind == "percent" else None,
                        max_off_fen=rule.most_fen,
                        threshold_fen=rule.threshold_fen,
                        products=tuple(self.products[index].id for index in rule.products),
                        stack_group=rule.group,
                        stacks_with=tuple(sorted(rule.goes_with)),
                    ),
                )
                self.rules.append((made, rule))

    def _described(self, thing: paper.Product) -> ProductInput:
        return ProductInput(
            sku=new_id(),
            name="有机大米",
            list_fen=thing.list_fen,
            member_fen=thing.member_fen,
            stock=thing.stock,
            stock_mode=thing.mode,  # type: ignore[arg-type]
            presale_cap=thing.cap or None,
            ship_by=date(2100, 1, 1) if thing.cap else None,
            no_promo=thing.no_promo,
            parts=tuple(
                BundlePart(product=self.products[index].id, quantity=each)
                for index, each in thing.parts.items()
            ),
        )

    # --- buying ---

    def quote(self, buyer: int, lines: list[tuple[int, int]], used: list[int], points: int) -> None:
        made = self.paper.quote(buyer, lines, used, points)
        got = self.stand.run(self._quote(buyer, lines, used, points, False))
        self._check_quote(got, made)
        self.quotes.append((got, made))

    def quote_with_the_best_coupons(self, buyer: int, lines: list[tuple[int, int]]) -> None:
        got = self.stand.run(self._quote(buyer, lines, [], 0, True))
        place = {coupon.id: index for index, coupon in enumerate(self.coupons)}
        used = [place[each.coupon] for each in got.coupons if each.used]
        used.sort(key=lambda which: self.paper.coupons[which].rule.kind == "freight")
        made = self.paper.quote(buyer, lines, used, 0)
        agree({which for which, _ in made.coupons}, set(used))
        agree(self.paper.saved(made), self.paper.most_saved(buyer, lines))
        agree(got.total_fen, made.total_fen)

    def _own(self, buyer: int) -> list[int]:
        return [index for index, coupon in enumerate(self.paper.coupons) if coupon.buyer == buyer]

    def _check_quote(self, got: Quote, made: paper.Basket) -> None:
        agree(
            [
                (line.unit_fen, line.line_fen, line.winner == "flash", line.coupon_fen, line.points_fen)
                for line in got.lines
            ],
            [(line.unit_fen, line.fen, line.flash, line.coupon_fen, line.points) for line in made.lines],
        )
        agree(
            (got.goods_fen, got.coupon_fen, got.points, got.freight_fen, got.total_fen),
            (made.goods_fen, made.coupon_fen, made.points, made.freight_fen, made.total_fen),
        )
        agree(
            {each.coupon: each.off_fen for each in got.coupons if each.used},
            {self.coupons[which].id: off_fen for which, off_fen in made.coupons},
        )

    async def _actor(self, buyer: int) -> Actor:
        """The buyer with today's facts; asked for anew when these have changed."""
        if bool(self.buyers[buyer].facts.plans) != self.paper.buyers[buyer].on_plan:
            self.buyers[buyer] = await self.shop.again(self.buyers[buyer])
        return self.buyers[buyer]

    async def _quote(
        self, buyer: int, lines: list[tuple[int, int]], coupons: list[int], points: int, best: bool
    ) -> Quote:
        actor = await self._actor(buyer)
        async with self.shop.tx() as t:
            return await self.shop.quotes.quote(
                t.conn,
                actor,
                self.show,
                [LineInput(self.offers[offer].id, quantity) for offer, quantity in lines],
                coupons=[self.coupons[which].id for which in coupons],
                points=points,
                best=best,
            )

    def place(self, which: int) -> str:
        """Also a quote that was used before, and one made before prices, plans or stock changed."""
        got, made = self.quotes[which]
        answer = self.paper.place(made)

        async def place() -> str:
            actor = await self._actor(made.buyer)
            placed = await self.shop.place(actor, self.show, got)
            self.ids.append(placed.order)
            agree(placed.total_fen, self.paper.orders[-1].total_fen)
            return "ok"

        agree(self._answer(place()), answer)
        self.stand.met[f"placed: {answer}"] += 1
        if answer == "ok":
            order = self.paper.orders[-1]
            self.stand.met["placed with coupons"] += bool(order.basket.coupons)
            self.stand.met["placed with points"] += bool(order.basket.points)
            self.stand.met["placed with nothing to pay"] += not order.total_fen
            self.stand.met["placed of a bundle"] += any(
                self.paper.products[line.product].parts for line in order.lines
            )
        return answer

    def _ordered(self, which: int) -> tuple[OrderId, paper.Order]:
        index = which % len(self.ids)
        return self.ids[index], self.paper.orders[index]

    def cancel(self, which: int) -> None:
        order, made = self._ordered(which)
        answer = self.paper.cancel(made)

        async def cancel() -> str:
            async with self.shop.tx() as t:
                await self.shop.orders.cancel(t, self.buyers[made.buyer], order)
            return "ok"

        agree(self._answer(cancel()), answer)

    def let_the_hold_run_out(self, which: int) -> None:
        order, made = self._ordered(which)
        expected = int(made.state == "placed")
        self.paper.expire(made)

        async def run_out() -> int:
            await self.shop.rows(
                "UPDATE orders SET hold_until = clock_timestamp() - interval '1 second'"
                " WHERE id = %s AND state = 'placed' RETURNING id",
                order,
            )
            async with self.shop.tx() as t:
                return await self.shop.orders.expire_due(t)

        agree(self.stand.run(run_out()), expected)

    # --- money ---

    def open_the_page(self, which: int) -> None:
        order, made = self._ordered(which)
        answer = self.paper.start(made)

        async def start() -> str:
            actor = await self._actor(made.buyer)
            async with self.shop.tx() as t:
                request = await self.shop.payments.start(t, actor, order)
            assert not isinstance(request, str)
            agree(request.amount_fen, made.total_fen)
            return "ok"

        agree(self._answer(start()), answer)

    def pay_too_late(self, index: int, left: int, again: bool) -> None:
        """The hold runs out, the buyer orders `again`, others buy until so many are left, and then the money comes."""
        self.let_the_hold_run_out(index)
        order = self.paper.orders[index]
        for line in order.lines if again else ():
            self.quote(order.buyer, [(line.offer, line.quantity)], [], 0)
            self.place(-1)
        for line in order.lines[:1]:
            if (
                self.paper.products[line.product].mode != "presale"
                and not self.paper.products[line.product].parts
            ):
                self.change_the_stock(line.product, min(0, left - self.paper.products[line.product].stock))
        self.pay(index)

    def pay(self, which: int, off: int = 0) -> None:
        order, made = self._ordered(which)
        amount_fen = max(0, made.total_fen + off)
        before = made.state
        expected = self.paper.pay(made, amount_fen)
        ref = new_id()
        self.refs.append((ref, which % len(self.ids), amount_fen))
        recorded = self.stand.run(self.shop.pay(order, amount_fen, ref))
        agree((recorded.outcome, recorded.reason, recorded.again), (*expected, False))
        discounts = " with coupons or points" if made.basket.coupons or made.basket.points else ""
        self.stand.met[f"paid {before}: {expected[1] or 'ok'}{discounts}"] += 1

    def tell_of_a_payment_again(self, which: int) -> None:
        ref, index, amount_fen = self.refs[which % len(self.refs)]
        assert self.stand.run(self.shop.pay(self.ids[index], amount_fen, ref)).again

    def refund(self, which: int) -> None:
        order, made = self._ordered(which)
        answer = self.paper.refund(made)
        agree(self._answer(self._refund(order)), answer)
        self.stand.met[f"refunded: {answer}"] += 1

    async def _refund(self, order: OrderId) -> str:
        async with self.shop.tx() as t:
            await self.shop.payments.refund(t, OPERATOR, order)
        return "ok"

    def refund_pieces(self, which: int, pieces: dict[int, int], restock: bool) -> None:
        order, made = self._ordered(which)
        answer, fen, points = self.paper.refund_pieces(made, pieces, restock)

        async def refund() -> str:
            async with self.shop.tx() as t:
                done = await self.refunds.lines(
                    t,
                    OPERATOR,
                    order,
                    {index + 1: count for index, count in pieces.items()},
                    new_id(),
                    restock=restock,
                )
            agree((done.money_fen, done.points, done.whole), (fen, points, made.state == "refunded"))
            self.stand.met["pieces refunded" + (" and with them points" if points else "")] += 1
            return "ok"

        agree(self._answer(refund()), answer)

    def send(self, which: int) -> None:
        order, made = self._ordered(which)
        done = self.paper.send(made)

        async def take_in() -> bool:
            row = ParcelRow(order=order, carrier="顺丰", tracking=new_id())
            async with self.shop.tx() as t:
                (outcome,) = await self.fulfilment.take_in(t, OPERATOR, [row])
            return outcome.outcome != "refused"

        agree(self.stand.run(take_in()), done)
        self.stand.met[f"sent: {done}"] += 1

    def undo_everything(self) -> None:
        """Each effect has an inverse: afterwards stock, coupons, points and money are as before the orders."""
        for index, made in enumerate(self.paper.orders):
            if made.state == "placed":
                self.cancel(index)
            elif made.sold and not made.plan:
                left = {
                    place: line.quantity - back.pieces
                    for place, (line, back) in enumerate(zip(made.lines, made.back, strict=True))
                    if line.quantity > back.pieces
                }
                self._refund_all(index, left)
            elif made.sold:
                self.refund(index)
        assert all(coupon.state == "free" for coupon in self.paper.coupons)
        self.stand.met["undone"] += 1

    def _refund_all(self, index: int, left: dict[int, int]) -> None:
        answer, _, _ = self.paper.refund_pieces(self.paper.orders[index], left, True)

        async def refund() -> str:
            async with self.shop.tx() as t:
                await self.refunds.lines(t, OPERATOR, self.ids[index], None, new_id(), restock=True)
            return "ok"

        agree(self._answer(refund()), answer)

    # --- the world around ---

    def give_a_coupon(self, buyer: int, which: int) -> None:
        made, rule_on_paper = self.rules[which]
        if len(self._own(buyer)) == COUPONS_MOST:
            return

        async def grant() -> Coupon:
            async with self.shop.tx() as t:
                return await self.shop.coupons.grant(t, self.buyers[buyer].member, made.id, new_id())  # type: ignore[arg-type]

        self.coupons.append(self.stand.run(grant()))
        self.paper.coupons.append(paper.Coupon(buyer, rule_on_paper))

    def give_points(self, buyer: int, amount: int) -> None:
        async def earn() -> None:
            async with self.shop.tx() as t:
                await self.shop.points.earn(t, self.buyers[buyer].member, amount, "gift", new_id())  # type: ignore[arg-type]

        self.stand.run(earn())
        self.paper.buyers[buyer].points += amount

    def let_return_windows_end(self) -> None:
        self.paper.end_return_windows()
        self.stand.end_return_windows()

    def join(self, buyer: int) -> None:
        if self.paper.buyers[buyer].on_plan or any(
            order.plan and order.buyer == buyer and order.state == "placed" for order in self.paper.orders
        ):
            return
        self.paper.place_plan(buyer)
        self.ids.append(self.stand.run(self.shop.join(self.buyers[buyer], self.plan)).order)
        self.pay(len(self.ids) - 1)

    def let_the_plan_lapse(self, buyer: int) -> None:
        self.paper.let_lapse(buyer)
        self.stand.run(
            self.shop.rows(
                "UPDATE plan_terms SET ends_at = clock_timestamp()"
                " WHERE member_id = %s AND ended_at IS NULL AND ends_at > clock_timestamp() RETURNING id",
                self.buyers[buyer].id,
            )
        )

    def change_the_price(self, which: int, list_fen: int, percent: int | None) -> None:
        index = which % len(self.products)
        if index == self.paper.flash.product:  # a flash price stays below the list price
            list_fen = max(list_fen, self.paper.flash.fen + 1)
        member_fen = None if percent is None else max(1, list_fen * percent // 100)
        self.paper.products[index].list_fen = list_fen
        self.paper.products[index].member_fen = member_fen
        self._update(index, ProductPatch(list_fen=list_fen, member_fen=member_fen))

    def change_the_stock(self, which: int, change: int) -> None:
        index = which % len(self.products)
        if self.paper.products[index].mode == "presale":
            return
        answer = "ok" if self.paper.bring(index, change) else "bad_request"
        agree(self._update(index, ProductPatch(stock_change=change)), answer)

    def import_the_stock(self, which: int, change: int, set_to: int | None, off: bool) -> None:
        """A row that changes by a difference, or sets what is still as the sender believes."""
        if self.paper.products[which].mode == "presale":
            return
        free = self.paper.products[which].stock
        sku = self.products[which].sku
        if set_to is None:
            row = StockRow(sku=sku, change=change)
            done = self.paper.bring(which, change)
        else:
            row = StockRow(sku=sku, set_to=set_to, expected=free + int(off))
            done = not off and self.paper.bring(which, set_to - free)

        async def take_in() -> bool:
            async with self.shop.tx() as t:
                (outcome,) = await self.stock.take_in(t, OPERATOR, new_id(), "count", [row])
            return outcome.outcome != "refused"

        agree(self.stand.run(take_in()), done)

    def _update(self, index: int, patch: ProductPatch) -> str:
        async def update() -> str:
            async with self.shop.tx() as t:
                await self.shop.products.update(t, OPERATOR, self.products[index].id, patch)
            return "ok"

        return self._answer(update())

    def _answer(self, work: Coroutine[Any, Any, str]) -> str:
        try:
            return self.stand.run(work)
        except Refusal as refusal:
            return refusal.word

    # --- what may happen next ---

    @rule(chance=st.integers(0, 2**32 - 1))
    def step(self, chance: int) -> None:
        """One act. Chance decides which and with what; the machine decides how many, and finds the fewest."""
        self._chance = random.Random(f"{self._seed}/{chance}/{len(self.trace)}")
        (act,) = self._chance.choices(list(ACTS), list(ACTS.values()))
        note(act)
        self.trace.append(act)
        getattr(self, f"_{act}")()

    def _one(self, most: int) -> int:
        return self._chance.randrange(most)

    def _ask(self) -> None:
        """A quote: up to three offers, up to three coupons, some points."""
        buyer = self._one(BUYERS)
        offers = self._chance.sample(range(len(self.offers)), self._chance.choice([1, 1, 2, 3]))
        lines = [(offer, self._chance.choice([1, 1, 2, 3])) for offer in offers]
        own = self._own(buyer)
        coupons = self._chance.sample(own, min(len(own), self._one(4)))
        self.quote(buyer, lines, coupons, self._chance.choice([0, 0, 100, 300, 10_000]))

    def _order(self) -> None:
        self._ask()
        self.place(-1)

    def _order_and_pay(self) -> None:
        self._ask()
        if self.place(-1) == "ok" and self.paper.orders[-1].state == "placed":
            if self._one(3) == 0:
                self.open_the_page(len(self.ids) - 1)
            self.pay(len(self.ids) - 1)

    def _best(self) -> None:
        offers = self._chance.sample(range(len(self.offers)), 2)
        self.quote_with_the_best_coupons(self._one(BUYERS), [(offer, 1 + self._one(2)) for offer in offers])

    def _old_quote(self) -> None:
        if self.quotes:
            self.place(self._one(len(self.quotes)))

    def _give_up(self) -> None:
        if self.ids:
            self.cancel(self._placed()) if self._one(2) else self.let_the_hold_run_out(self._placed())

    def _pay_any(self) -> None:
        if self.ids:
            self.pay(self._one(len(self.ids)), self._chance.choice([0, 0, 0, 1, -1, 10_000]))

    def _page(self) -> None:
        if self.ids:
            index = self._placed()
            self.open_the_page(index)
            self.pay(index)

    def _webhook_again(self) -> None:
        if self.refs:
            self.tell_of_a_payment_again(self._one(len(self.refs)))

    def _late(self) -> None:
        left, again = self._one(4), not self._one(3)
        if again:  # the flash, whose pieces a person are counted
            self.quote(self._one(BUYERS), [(len(self.offers) - 1, 1 + self._one(2))], [], 0)
            if self.place(-1) == "ok":
                self.pay_too_late(len(self.ids) - 1, left, again)
        elif any(order.state == "placed" for order in self.paper.orders):
            self.pay_too_late(self._placed(), left, again)

    def _refund_some(self) -> None:
        paid = [i for i, each in enumerate(self.paper.orders) if each.sold and not each.plan]
        if not paid:
            return
        index = self._chance.choice(paid if self._one(9) else range(len(self.ids)))
        made = self.paper.orders[index]
        pieces = {}
        for place in range(len(made.lines)):
            left = made.lines[place].quantity - made.back[place].pieces
            if self._one(2) and (left or self._one(9) == 0):
                pieces[place] = 1 + self._one(left or 1)
        if pieces:
            self.refund_pieces(index, pieces, bool(self._one(2)))

    def _refund_any(self) -> None:
        if self.ids:
            self.refund(self._one(len(self.ids)))

    def _send(self) -> None:
        if self.ids:
            self.send(self._one(len(self.ids)))

    def _undo(self) -> None:
        if any(order.sold or order.state == "placed" for order in self.paper.orders):
            self.undo_everything()

    def _coupon(self) -> None:
        self.give_a_coupon(self._one(BUYERS), self._one(len(self.rules)))

    def _points(self) -> None:
        self.give_points(self._one(BUYERS), 1 + self._one(2_000))

    def _join(self) -> None:
        self.join(self._one(BUYERS))

    def _lapse(self) -> None:
        self.let_the_plan_lapse(self._one(BUYERS))

    def _price(self) -> None:
        member = self._chance.choice([None, 50, 85, 100])
        self.change_the_price(
            self._one(3), self._chance.choice([self._one(300), self._one(15_000)]) + 2, member
        )

    def _stock(self) -> None:
        self.change_the_stock(self._one(3), self._one(11) - 4)

    def _import(self) -> None:
        set_to = self._chance.choice([None, self._one(7)])
        self.import_the_stock(self._one(3), self._one(11) - 4, set_to, off=not self._one(4))

    def _days(self) -> None:
        self.let_return_windows_end()

    def _placed(self) -> int:
        """An unpaid order if there is one, else any."""
        placed = [index for index, each in enumerate(self.paper.orders) if each.state == "placed"]
        return self._chance.choice(placed or range(len(self.ids)))

    # --- what must hold ---

    @invariant()
    def the_shop_is_what_the_paper_says(self) -> None:
        if not self.offers:
            return
        self.stand.steps += 1
        self.paper.check()
        seen, counts = self.stand.run(self._look())
        written = self._written()
        for part in written:
            agree(seen[part], written[part])
        agree(counts, (self.paper.flash.held, self.paper.flash.sold))

    async def _look(self) -> tuple[dict[str, Any], tuple[int, int]]:
        (row,) = await self.shop.rows(SEEN)
        return row["seen"], await self.shop.counts(self.show, self.offers[-1].id)

    def _written(self) -> dict[str, Any]:
        flash = self.offers[-1].id
        return {
            "stock": {
                product.id: [made.stock, made.to_come]
                for product, made in zip(self.products, self.paper.products, strict=True)
            },
            "brought": {
                product.id: fen for product, fen in zip(self.products, self.paper.brought, strict=True)
            },
            "taken": {offer.id: self.paper.flash.taken if offer.id == flash else 0 for offer in self.offers},
            "orders": {
                order: {
                    "state": made.state,
                    "goods": made.goods_fen,
                    "coupon": made.basket.coupon_fen,
                    "points": made.basket.points,
                    "freight": made.basket.freight_fen,
                    "total": made.total_fen,
                    "lines": [
                        [
                            self.offers[line.offer].id,
                            line.quantity,
                            line.unit_fen,
                            line.fen,
                            line.coupon_fen,
                            line.points,
                            line.flash or self.offers[line.offer].id != flash,
                        ]
                        for line in made.lines
                    ]
                    or None,
                }
                for order, made in zip(self.ids, self.paper.orders, strict=True)
            }
            or None,
            "coupons": {
                coupon.id: [made.state, None if made.order is None else self.ids[made.order]]
                for coupon, made in zip(self.coupons, self.paper.coupons, strict=True)
            }
            or None,
            "came": self.paper.came_fen,
            "odd": self.paper.odd_fen,
            "went": self.paper.went_fen,
            "points": {buyer.id: list(self.paper.points(index)) for index, buyer in enumerate(self.buyers)},
        }


def drive(stand: Stand, examples: int, *, seeded: bool = True) -> None:
    """Run so many examples; raises what the first wrong one raises. `seeded`: the same ones each time. Otherwise
    others each time, and a wrong one is made as short as it can be."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Trade(stand),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            derandomize=seeded,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate] if seeded else [Phase.generate, Phase.shrink],
        ),
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.commerce.machine", description=__doc__)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=250, help="examples between two lines of progress")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)  # odd money is meant
    with tempfile.TemporaryDirectory() as folder:
        engines = Engines.start(Path(folder), durable=False)
        try:
            url = database_url(engines.addresses, "machine")
            with psycopg.connect(engines.addresses.database_url, autocommit=True) as conn:
                conn.execute("CREATE DATABASE machine")
            migrate(url)
            emptied = Emptied(url)
            stand = Stand(engines.addresses, emptied, every=asked.every)
            try:
                drive(stand, asked.examples, seeded=False)
            finally:
                stand.say()
                stand.close()
                emptied.close()
        finally:
            engines.stop()
    print(f"{stand.examples} examples, {stand.steps} steps: the shop and the paper agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
