"""The stock under any order of orders, payments, ends, refunds and imports: what paper says, and never below nothing.

Three modes, two bundles that share a part with each other and with what is sold alone. After each step every
piece is where the paper has it, and both books of it agree.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Coroutine, Iterator
from datetime import date
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from commerce.bundles import BundlePart
from commerce.offers import Offer
from commerce.products import Product, ProductPatch
from commerce.stock import Stock, StockRow
from live.engines import Addresses
from membership.actor import Actor, OrderId, ShowId, new_id
from membership.refusal import Refusal
from tests.commerce.machine import Stand
from tests.commerce.shop_stage import OPERATOR, Shop
from tests.conftest import Emptied, show_maker

EXAMPLES: Final = int(os.environ.get("STOCK_EXAMPLES", "25"))
STEPS: Final = 14
ALONE: Final = ("rice", "last", "coming", "tea")  # on_order, on_payment, presale, on_order
BUNDLES: Final = {"pair": {"rice": 1, "tea": 2}, "three": {"rice": 1, "last": 1, "tea": 1}}
# A show has three pins at a time: what is bought together is of one show.
SHELVES: Final = (("rice", "last", "coming"), ("tea", "pair", "three"))
WANTED = st.dictionaries(st.integers(0, 2), st.integers(1, 3), min_size=1, max_size=3)
PIECES = st.integers(1, 6)
PLACES = st.tuples(st.integers(0, 1), st.integers(0, 2))


class PaperOrder:
    def __init__(self, takes: dict[str, int], due: set[str]) -> None:
        self.takes = takes
        self.due = due
        self.taken = {name for name in takes if name not in due}
        self.state = "placed"
        self.back: Counter[str] = Counter()


class StockMachine(RuleBasedStateMachine):
    """Every step on paper and in the shop."""

    def __init__(self, stand: Stand) -> None:
        super().__init__()
        self.stand = stand
        stand.examples += 1
        self.free: dict[str, int] = {}
        self.paid_first = {"last"}
        self.orders: list[PaperOrder] = []
        self.ids: list[tuple[OrderId, int]] = []
        self.buyer: Actor
        self.products: dict[str, Product] = {}
        self.offers: dict[str, Offer] = {}
        self.shows: list[ShowId] = []
        self.shop: Shop

    @initialize(stocks=st.lists(PIECES, min_size=3, max_size=3), cap=st.integers(1, 5))
    def open_shop(self, stocks: list[int], cap: int) -> None:
        self.free = dict(zip(("rice", "last", "tea"), stocks, strict=True)) | {"coming": cap}
        self.stand.run(self._open_shop())

    async def _open_shop(self) -> None:
        self.shop, show = await self.stand.empty_shop()
        self.shows = [show, await show_maker(self.stand.scripts, self.shop.tx)()]
        (self.buyer,) = await self.shop.buyers(1)
        for name in ALONE:
            values: dict[str, Any] = {"sku": name, "stock": self.free[name]}
            if name == "coming":
                values = {
                    "stock_mode": "presale",
                    "presale_cap": self.free[name],
                    "ship_by": date(2027, 3, 1),
                }
                values |= {"sku": name, "stock": 0}
            if name == "last":
                values["stock_mode"] = "on_payment"
            self.products[name] = await self.shop.product(**values)
        for name, parts in BUNDLES.items():
            made = tuple(BundlePart(product=self.products[part].id, quantity=n) for part, n in parts.items())
            self.products[name] = await self.shop.product(sku=name, stock=0, parts=made)
        for show, shelf in zip(self.shows, SHELVES, strict=True):
            for name in shelf:
                self.offers[name] = await self.shop.open(show, self.products[name])

    def _run(self, work: Coroutine[Any, Any, str]) -> str:
        async def answered() -> str:
            try:
                return await work
            except Refusal as refusal:
                return refusal.word

        return self.stand.run(answered())

    # --- orders ---

    @rule(shelf=st.integers(0, 1), wanted=WANTED)
    def buy(self, shelf: int, wanted: dict[int, int]) -> None:
        lines = [(SHELVES[shelf][place], quantity) for place, quantity in wanted.items()]
        takes: Counter[str] = Counter()
        at_once: set[str] = set()
        for name, quantity in lines:
            for part, each in BUNDLES.get(name, {name: 1}).items():
                takes[part] += each * quantity
                if name in BUNDLES or part not in self.paid_first:
                    at_once.add(part)
        enough = all(self.free[part] >= quantity for part, quantity in takes.items())

        async def place() -> str:
            quote = await self.shop.quote(
                self.buyer, self.shows[shelf], *((self.offers[name], quantity) for name, quantity in lines)
            )
            placed = await self.shop.place(self.buyer, self.shows[shelf], quote)
            self.ids.append((placed.order, placed.total_fen))
            return "placed"

        answer = self._run(place())
        assert answer == "placed" if enough else answer in ("sold_out", "reserved_out", "limit_reached")
        if enough:
            made = PaperOrder(dict(takes), set(takes) - at_once)
            for part in made.taken:
                self.free[part] -= takes[part]
            self.orders.append(made)

    @rule(place=PLACES)
    def buy_one(self, place: tuple[int, int]) -> None:
        self.buy(place[0], {place[1]: 1})

    @rule(place=PLACES, quantity=st.integers(1, 2))
    def buy_and_pay(self, place: tuple[int, int], quantity: int) -> None:
        before = len(self.orders)
        self.buy(place[0], {place[1]: quantity})
        if len(self.orders) > before:
            self.pay(-1)

    @rule(place=PLACES, left=st.integers(0, 2))
    def pay_too_late(self, place: tuple[int, int], left: int) -> None:
        """The hold runs out, pieces are counted away until so many are left, and then the money comes."""
        before = len(self.orders)
        self.buy(place[0], {place[1]: 1})
        self.let_holds_run_out()
        name = SHELVES[place[0]][place[1]]
        for part in BUNDLES.get(name, {name: 1}):
            if part != "coming":
                self.take_in([(part, min(0, left - self.free[part]))])
        if len(self.orders) > before:
            self.pay(-1)

    def _pick(self, which: int) -> tuple[OrderId, int, PaperOrder]:
        place = which % len(self.orders)
        return (*self.ids[place], self.orders[place])

    def _end(self, made: PaperOrder, state: str) -> None:
        for part in made.taken:
            self.free[part] += made.takes[part]
        made.taken = set()
        made.state = state

    @precondition(lambda self: self.orders)
    @rule(which=st.integers(0, 99))
    def cancel(self, which: int) -> None:
        order, _, made = self._pick(which)

        async def cancel() -> str:
            async with self.shop.tx() as t:
                await self.shop.orders.cancel(t, self.buyer, order)
            return "cancelled"

        answer = self._run(cancel())
        assert answer == ("cancelled" if made.state in ("placed", "cancelled") else "closed")
        if made.state == "placed":
            self._end(made, "cancelled")

    @precondition(lambda self: any(made.state == "placed" for made in self.orders))
    @rule()
    def let_holds_run_out(self) -> None:
        placed = [made for made in self.orders if made.state == "placed"]
        assert self.stand.run(self.shop.let_holds_run_out()) == len(placed)
        for made in placed:
            self._end(made, "expired")

    @precondition(lambda self: self.orders)
    @rule(which=st.integers(0, 99))
    def pay(self, which: int) -> None:
        """In time, too late, twice, or for one that was given up."""
        order, total_fen, made = self._pick(which)
        wanted = {part: n for part, n in made.takes.items() if part not in made.taken}
        recorded = self.stand.run(self.shop.pay(order, total_fen))
        if made.state not in ("placed", "expired"):
            assert recorded.outcome == "returned"
        elif all(self.free[part] >= n for part, n in wanted.items()):
            assert recorded.outcome == "accepted"
            for part, n in wanted.items():
                self.free[part] -= n
            made.taken, made.state = set(made.takes), "paid"
        else:
            assert (recorded.outcome, recorded.reason) == ("returned", "no_stock")
            self._end(made, "expired")

    @precondition(lambda self: any(made.state == "paid" for made in self.orders))
    @rule(which=st.integers(0, 99), restock=st.booleans())
    def refund(self, which: int, restock: bool) -> None:
        paid = [place for place, made in enumerate(self.orders) if made.state == "paid"]
        order, _, made = self._pick(paid[which % len(paid)])
        made.state = "refunded"

        async def refund() -> None:
            async with self.shop.tx() as t:
                await self.shop.payments.refund(t, OPERATOR, order)
                if restock:
                    back = {self.products[part].id: n for part, n in made.takes.items()}
                    assert await Stock().put_back(t, OPERATOR, order, back, "refund") == sum(back.values())
                    assert await Stock().put_back(t, OPERATOR, order, back, "refund") == 0

        self.stand.run(refund())
        if restock:
            for part, n in made.takes.items():
                self.free[part] += n

    # --- the world around ---

    @rule(changes=st.lists(st.tuples(st.sampled_from(("rice", "last", "tea", "pair")), st.integers(-4, 4))))
    def take_in(self, changes: list[tuple[str, int]]) -> None:
        if not changes:
            return
        expected = []
        for name, change in changes:
            fits = name in self.free and self.free[name] + change >= 0
            expected.append("refused" if not fits else "changed" if change else "same")
            if fits:
                self.free[name] += change

        async def take_in() -> list[str]:
            rows = [StockRow(sku=name, change=change) for name, change in changes]
            async with self.shop.tx() as t:
                return [each.outcome for each in await Stock().take_in(t, OPERATOR, new_id(), "count", rows)]

        assert self.stand.run(take_in()) == expected

    @rule(name=st.sampled_from(("rice", "last")))
    def change_the_mode(self, name: str) -> None:
        self.paid_first ^= {name}
        mode = "on_payment" if name in self.paid_first else "on_order"

        async def change() -> None:
            async with self.shop.tx() as t:
                await self.shop.products.update(
                    t,
                    OPERATOR,
                    self.products[name].id,
                    ProductPatch(stock_mode=mode),  # type: ignore[arg-type]
                )

        self.stand.run(change())

    @invariant()
    def every_piece_is_where_the_paper_has_it(self) -> None:
        if not self.free:
            return
        rows = self.stand.run(
            self.shop.rows(
                """
                SELECT p.sku, p.stock, free_pieces(p) AS free, p.stock - (
                        SELECT coalesce(sum(e.delta), 0) FROM stock_entries e WHERE e.product_id = p.id
                    ) + coalesce(sum(w.quantity - w.returned) FILTER (WHERE w.source = 'stock'), 0) AS off,
                    p.presale_taken
                        - coalesce(sum(w.quantity - w.returned) FILTER (WHERE w.source = 'presale'), 0) AS off_cap
                FROM products p LEFT JOIN order_pieces w ON w.product_id = p.id AND w.state = 'taken'
                GROUP BY p.id
                """
            )
        )
        assert min(row["stock"] for row in rows) >= 0
        assert {row["sku"]: (row["off"], row["off_cap"]) for row in rows} == dict.fromkeys(
            self.products, (0, 0)
        )
        expected = dict(self.free)
        for name, parts in BUNDLES.items():
            expected[name] = min(self.free[part] // each for part, each in parts.items())
        assert {row["sku"]: row["free"] for row in rows} == expected


@pytest.fixture
def stand(engines: Addresses, emptied: Emptied) -> Iterator[Stand]:
    made = Stand(engines, emptied)
    yield made
    made.close()


@pytest.mark.rule("semantics 5.1a", "semantics 5.1b")
def test_no_stock_is_ever_below_nothing_and_no_piece_is_lost(stand: Stand) -> None:
    run_state_machine_as_test(
        lambda: StockMachine(stand),  # type: ignore[arg-type]
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # the first wrong run says enough; making it shorter takes minutes
        ),
    )
    assert stand.examples >= EXAMPLES
