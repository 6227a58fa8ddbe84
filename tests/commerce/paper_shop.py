"""A shop on paper: what the rules say about prices, coupons, points, orders, stock and money, in plain Python.

It shares no code with the product and reads nothing of it, so that the two can be held against each other.
Amounts are in fen; answers are "ok" or the code of a refusal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from itertools import combinations

PLAN_FEE = 19_900
PLAN_PERCENT = 88
PLAN_BONUS_PERCENT = 20
FREIGHT, FREE_FROM = 800, 9_900


@dataclass
class Product:
    list_fen: int
    member_fen: int | None
    stock: int  # at hand
    mode: str = "on_order"
    cap: int = 0  # of a pre-sale
    to_come: int = 0  # ordered of a pre-sale
    parts: dict[int, int] = field(default_factory=dict)  # of a bundle
    no_promo: bool = False


@dataclass
class Flash:
    """An offer with a price and a quota. `taken`: rows of unpaid and sold orders; `held` and `sold`: the show's
    counters; `people`: held or ever bought, by buyer."""

    product: int
    fen: int
    quota: int
    per_person: int
    taken: int = 0
    held: int = 0
    sold: int = 0
    people: Counter[int] = field(default_factory=Counter)


@dataclass
class Buyer:
    on_plan: bool = False
    plan_order: int | None = None  # the order that brought the plan they are on
    points: int = 0  # active


@dataclass(frozen=True)
class CouponRule:
    kind: str  # amount, percent, freight
    group: str
    goes_with: frozenset[str] = frozenset()
    off_fen: int = 0
    percent: int = 100
    most_fen: int | None = None
    threshold_fen: int = 0
    products: frozenset[int] = frozenset()  # empty: all


@dataclass
class Coupon:
    buyer: int
    rule: CouponRule
    state: str = "free"
    order: int | None = None


@dataclass(frozen=True)
class Line:
    offer: int
    product: int
    quantity: int
    unit_fen: int
    flash: bool  # takes pieces of the flash quota
    coupon_fen: int = 0
    points: int = 0  # each takes off one fen

    @property
    def fen(self) -> int:
        return self.unit_fen * self.quantity

    @property
    def paid_fen(self) -> int:
        return self.fen - self.coupon_fen - self.points


@dataclass(frozen=True)
class Basket:
    """Lines with what is taken off them. `coupons`: (which, what it takes off)."""

    buyer: int
    lines: tuple[Line, ...]
    freight_list_fen: int
    freight_fen: int
    coupons: tuple[tuple[int, int], ...] = ()
    under: int | None = field(default=None, compare=False)  # the order of the plan it was made under

    @property
    def goods_fen(self) -> int:
        return sum(line.fen for line in self.lines)

    @property
    def coupon_fen(self) -> int:
        return sum(line.coupon_fen for line in self.lines)

    @property
    def points(self) -> int:
        return sum(line.points for line in self.lines)

    @property
    def total_fen(self) -> int:
        return self.goods_fen - self.coupon_fen - self.points + self.freight_fen


@dataclass
class Need:
    """Pieces an order takes. `due`: with the payment. `state`: due, taken or back."""

    quantity: int
    due: bool
    state: str
    returned: int = 0


@dataclass
class Back:
    """What went back of a line."""

    pieces: int = 0
    fen: int = 0
    points: int = 0


@dataclass
class Order:
    buyer: int
    basket: Basket
    needs: dict[int, Need] = field(default_factory=dict)  # by product
    state: str = "placed"
    bonus_percent: int = 0
    started: bool = False
    plan: bool = False
    paid_fen: int = 0
    returned_fen: int = 0
    freight_back_fen: int = 0
    back: list[Back] = field(default_factory=list)
    earned: int = 0  # when it was paid
    earned_left: int = 0
    pending: bool = True

    @property
    def sold(self) -> bool:
        return self.state in ("paid", "fulfilled")

    @property
    def lines(self) -> tuple[Line, ...]:
        return self.basket.lines

    @property
    def goods_fen(self) -> int:
        return PLAN_FEE if self.plan else self.basket.goods_fen

    @property
    def total_fen(self) -> int:
        return PLAN_FEE if self.plan else self.basket.total_fen

    @property
    def points_back(self) -> int:
        return sum(each.points for each in self.back)


def half_up(fen: int, percent: int) -> int:
    return int((Decimal(fen) * percent / 100).quantize(Decimal(1), ROUND_HALF_UP))


def shares(amount: int, weights: Sequence[int]) -> list[int]:
    """By largest remainder, the earlier first."""
    if not amount:
        return [0 for _ in weights]
    exact = [Fraction(amount) * weight / sum(weights) for weight in weights]
    found = [int(each) for each in exact]
    while sum(found) < amount:
        rest = [each - share for each, share in zip(exact, found, strict=True)]
        found[rest.index(max(rest))] += 1
    return found


class PaperShop:
    """`pins`: the products on offer at their price; the flash stands behind them."""

    def __init__(self, products: Sequence[Product], pins: Sequence[int], flash: Flash, buyers: int) -> None:
        self.products = list(products)
        self.pins = list(pins)
        self.flash = flash
        self.flash_offer = len(pins)
        self.buyers = [Buyer() for _ in range(buyers)]
        self.orders: list[Order] = []
        self.coupons: list[Coupon] = []
        self.brought = [product.stock for product in products]  # everything ever put on the shelf
        self.odd_fen = 0  # money that bought nothing and stays until a person decides
        self.came_fen = 0
        self.went_fen = 0

    def product_of(self, offer: int) -> int:
        return self.flash.product if offer == self.flash_offer else self.pins[offer]

    # --- prices ---

    def _without_flash(self, buyer: int, product: Product) -> int:
        prices = [product.list_fen]
        if self.buyers[buyer].on_plan:
            if product.member_fen is not None:
                prices.append(product.member_fen)
            else:
                prices.append(max(1, half_up(product.list_fen, PLAN_PERCENT)))
        return min(prices)

    def _freight(self, buyer: int, goods_fen: int) -> int:
        return 0 if self.buyers[buyer].on_plan or goods_fen >= FREE_FROM else FREIGHT

    def quote(
        self, buyer: int, wanted: Iterable[tuple[int, int]], coupons: Sequence[int] = (), points: int = 0
    ) -> Basket:
        lines = []
        for offer, quantity in wanted:
            index = self.product_of(offer)
            unit_fen = self._without_flash(buyer, self.products[index])
            flash = offer == self.flash_offer and self.flash.fen < unit_fen
            lines.append(Line(offer, index, quantity, self.flash.fen if flash else unit_fen, flash))
        freight_fen = self._freight(buyer, sum(line.fen for line in lines))
        points = min(points, self.buyers[buyer].points // 100 * 100) if self.buyers[buyer].points > 0 else 0
        return self._work_out(buyer, lines, freight_fen, self._together(lines, coupons), points)

    # --- coupons and points ---

    def _for(self, rule: CouponRule, line: Line) -> bool:
        product = self.products[line.product]
        return not product.no_promo and (not rule.products or line.product in rule.products)

    def _reached(self, rule: CouponRule, lines: Sequence[Line]) -> bool:
        goods_fen = sum(line.fen for line in lines if self._for(rule, line))
        return goods_fen > 0 and goods_fen >= rule.threshold_fen

    def _off(self, rule: CouponRule, lines: Sequence[Line]) -> int:
        """What it takes off what earlier ones left."""
        if rule.kind == "freight" or not self._reached(rule, lines):
            return 0
        left_fen = sum(line.fen - line.coupon_fen for line in lines if self._for(rule, line))
        if rule.kind == "amount":
            return min(left_fen, rule.off_fen)
        off_fen = left_fen - half_up(left_fen, rule.percent)
        return off_fen if rule.most_fen is None else min(off_fen, rule.most_fen)

    def _together(self, lines: Sequence[Line], coupons: Sequence[int]) -> list[int]:
        """Which of these are used: those that fit, the first named having the first word."""
        taken: list[int] = []
        for which in coupons:
            coupon = self.coupons[which]
            fits = coupon.state == "free" and self._reached(coupon.rule, lines)
            if fits and len(taken) < 3 and all(self.stack(which, other) for other in taken):
                taken.append(which)
        return taken

    def stack(self, one: int, other: int) -> bool:
        first, second = self.coupons[one].rule, self.coupons[other].rule
        return first.group in second.goes_with and second.group in first.goes_with

    def _work_out(
        self, buyer: int, given: Sequence[Line], freight_fen: int, coupons: Sequence[int], points: int
    ) -> Basket:
        lines = [replace(line, coupon_fen=0, points=0) for line in given]
        freight_list_fen = freight_fen
        applied: list[tuple[int, int]] = []
        waiting = [which for which in coupons if self.coupons[which].rule.kind != "freight"]
        while waiting:
            offs = {which: self._off(self.coupons[which].rule, lines) for which in waiting}
            which = max(waiting, key=lambda each: offs[each])
            waiting.remove(which)
            if offs[which]:
                rule = self.coupons[which].rule
                weights = [line.fen - line.coupon_fen if self._for(rule, line) else 0 for line in lines]
                lines = [
                    replace(line, coupon_fen=line.coupon_fen + share)
                    for line, share in zip(lines, shares(offs[which], weights), strict=True)
                ]
                applied.append((which, offs[which]))
        for which in coupons:
            rule = self.coupons[which].rule
            if rule.kind == "freight" and self._reached(rule, lines) and freight_fen:
                off_fen = min(freight_fen, rule.off_fen or freight_fen)
                freight_fen -= off_fen
                applied.append((which, off_fen))
        left = [line.fen - line.coupon_fen for line in lines]
        spent = min(points, sum(left) // 2 // 100 * 100)
        lines = [replace(line, points=share) for line, share in zip(lines, shares(spent, left), strict=True)]
        under = self.buyers[buyer].plan_order
        return Basket(buyer, tuple(lines), freight_list_fen, freight_fen, tuple(applied), under)

    def most_saved(self, buyer: int, wanted: Sequence[tuple[int, int]]) -> int:
        """What the best coupons save that a buyer may use together, tried one set after another."""
        free = [
            i for i, coupon in enumerate(self.coupons) if coupon.buyer == buyer and coupon.state == "free"
        ]
        most = 0
        for count in (1, 2, 3):
            for together in combinations(free, count):
                if all(self.stack(one, other) for one, other in combinations(together, 2)):
                    most = max(most, self.saved(self.quote(buyer, wanted, together)))
        return most

    @staticmethod
    def saved(basket: Basket) -> int:
        return sum(off_fen for _, off_fen in basket.coupons)

    # --- orders ---

    def place(self, quote: Basket) -> str:
        """At the lower of the quote and now, all lines or none; not under a plan that was given back."""
        if quote.under is not None and self.orders[quote.under].state == "refunded":
            return "price_changed"
        basket = min(
            self._now(quote), quote, key=lambda each: (each.total_fen, each.points, len(each.coupons))
        )
        order = Order(quote.buyer, basket, self._needs(basket.lines))
        order.back = [Back() for _ in basket.lines]
        order.bonus_percent = PLAN_BONUS_PERCENT if self.buyers[quote.buyer].on_plan else 0
        refused = self._refused(order)
        if refused:
            return refused
        if not order.total_fen:
            self._take_due(order)
        self._take_pieces(order)
        for which, _ in basket.coupons:
            self.coupons[which].state, self.coupons[which].order = "held", len(self.orders)
        self.buyers[order.buyer].points -= basket.points
        self.orders.append(order)
        if order.total_fen == 0:
            self._accept(order, 0)
        return "ok"

    def _refused(self, order: Order) -> str:
        refused = self._hold_pieces(order)
        if refused:
            return refused
        if order.basket.points > self.buyers[order.buyer].points:
            return "not_enough_points"
        if any(self.coupons[which].state != "free" for which, _ in order.basket.coupons):
            return "coupon_used"
        return self._take_stock(order)

    def _now(self, quote: Basket) -> Basket:
        lines = []
        for line in quote.lines:
            now_fen = self._without_flash(quote.buyer, self.products[line.product])
            if now_fen < line.unit_fen or (line.flash and now_fen == line.unit_fen):
                line = replace(line, unit_fen=now_fen, flash=False)
            lines.append(line)
        freight_fen = min(self._freight(quote.buyer, sum(line.fen for line in lines)), quote.freight_list_fen)
        coupons = [which for which, _ in quote.coupons]
        return self._work_out(quote.buyer, lines, freight_fen, coupons, quote.points)

    def let_lapse(self, buyer: int) -> None:
        self.buyers[buyer].on_plan, self.buyers[buyer].plan_order = False, None

    def place_plan(self, buyer: int) -> None:
        self.orders.append(Order(buyer, Basket(buyer, (), 0, 0), plan=True))

    # --- pieces ---

    def _pieces(self, order: Order) -> int:
        return sum(line.quantity for line in order.lines if line.flash)

    def _take_pieces(self, order: Order) -> None:
        pieces = self._pieces(order)
        self.flash.taken += pieces
        self.flash.held += pieces
        self.flash.people[order.buyer] += pieces

    def _hold_pieces(self, order: Order) -> str:
        pieces, flash = self._pieces(order), self.flash
        if not pieces:
            return ""
        if flash.sold >= flash.quota:
            return "sold_out"
        if flash.sold + pieces > flash.quota:
            return "limit_reached"
        if flash.sold + flash.held + pieces > flash.quota:
            return "reserved_out"
        return "limit_reached" if flash.people[order.buyer] + pieces > flash.per_person else ""

    def _needs(self, lines: Sequence[Line]) -> dict[int, Need]:
        """Pieces by product, bundles as their parts."""
        needs: dict[int, Need] = {}
        for line in lines:
            parts = self.products[line.product].parts
            due = not parts and self.products[line.product].mode == "on_payment"
            for index, each in (parts or {line.product: 1}).items():
                need = needs.setdefault(index, Need(0, True, "due"))
                need.quantity += line.quantity * each
                need.due = need.due and due
        for need in needs.values():
            need.state = "due" if need.due else "taken"
        return dict(sorted(needs.items()))

    def _free(self, index: int) -> int:
        product = self.products[index]
        return product.cap - product.to_come if product.mode == "presale" else product.stock

    def _move(self, index: int, pieces: int) -> None:
        """Off the shelf, or back on it when below nothing."""
        product = self.products[index]
        if product.mode == "presale":
            product.to_come += pieces
        else:
            product.stock -= pieces

    def _take_stock(self, order: Order) -> str:
        for index, need in order.needs.items():
            free = self._free(index)
            if free < need.quantity:
                held = sum(
                    other.needs[index].quantity
                    for other in self.orders
                    if other.state == "placed"
                    and index in other.needs
                    and other.needs[index].state == "taken"
                )
                if held and free + held >= need.quantity:
                    return "reserved_out"
                return "limit_reached" if free > 0 else "sold_out"
        for index, need in order.needs.items():
            if need.state == "taken":
                self._move(index, need.quantity)
        return ""

    def _take_due(self, order: Order) -> bool:
        """What the payment takes: all of it or nothing."""
        due = {index: need for index, need in order.needs.items() if need.state != "taken"}
        if order.state == "expired" and self.flash.taken + self._pieces(order) > self.flash.quota:
            return False
        if any(self._free(index) < need.quantity for index, need in due.items()):
            return False
        for index, need in due.items():
            self._move(index, need.quantity)
            need.state = "taken"
        if order.state == "expired":
            self._take_pieces(order)
        return True

    def cancel(self, order: Order) -> str:
        if order.state == "placed":
            self._close(order, "cancelled")
        return "ok" if order.state == "cancelled" else "closed"

    def expire(self, order: Order) -> None:
        if order.state == "placed":
            self._close(order, "expired")

    def _close(self, order: Order, state: str) -> None:
        order.state = state
        for index, need in order.needs.items():
            if need.state == "taken":
                self._move(index, -need.quantity)
                need.state = "back"
        pieces = self._pieces(order)
        self.flash.taken -= pieces
        self.flash.held -= pieces
        self.flash.people[order.buyer] -= pieces
        self._give_coupons_back(order)
        self.buyers[order.buyer].points += order.basket.points

    def _give_coupons_back(self, order: Order) -> None:
        for which, _ in order.basket.coupons:
            if self.coupons[which].order is not None and self.orders[self.coupons[which].order or 0] is order:
                self.coupons[which].state, self.coupons[which].order = "free", None

    # --- money ---

    def start(self, order: Order) -> str:
        """The first payment page: from then on the amount stands."""
        if order.state != "placed":
            return "closed"
        if not order.started and not order.plan:
            order.basket = self._lowered(order)
        order.started = True
        return "ok"

    def _lowered(self, order: Order) -> Basket:
        before = order.basket
        lines = [
            replace(
                line,
                unit_fen=min(line.unit_fen, self._without_flash(order.buyer, self.products[line.product])),
            )
            for line in before.lines
        ]
        freight_fen = min(
            before.freight_list_fen, self._freight(order.buyer, sum(line.fen for line in lines))
        )
        coupons = sorted(which for which, _ in before.coupons)
        basket = self._work_out(order.buyer, lines, freight_fen, coupons, before.points)
        if basket.total_fen > before.total_fen:  # a lower price can cost a coupon its threshold
            return before
        kept = {which for which, _ in basket.coupons}
        for which in coupons:
            if which not in kept:
                self.coupons[which].state, self.coupons[which].order = "free", None
        self.buyers[order.buyer].points += before.points - basket.points
        return basket

    def pay(self, order: Order, amount_fen: int) -> tuple[str, str | None]:
        """Money comes for an order: (outcome, reason)."""
        self.came_fen += amount_fen
        outcome, reason = self._judge(order, amount_fen)
        if outcome == "accepted":
            self._accept(order, amount_fen)
        elif outcome == "returned":
            self.went_fen += amount_fen
        else:
            self.odd_fen += amount_fen
        return outcome, reason

    def _judge(self, order: Order, amount_fen: int) -> tuple[str, str | None]:
        if amount_fen != order.total_fen:
            return "quarantined", "wrong_amount"
        if order.state in ("paid", "fulfilled", "refunded"):
            return "returned", "second_payment"
        if order.state == "cancelled":
            return "returned", "cancelled_before"
        if order.plan:
            return "accepted", None
        if order.state == "expired":
            pieces = self._pieces(order)
            if pieces and self.flash.people[order.buyer] + pieces > self.flash.per_person:
                return "returned", "limit_reached"
            again = [self.coupons[which] for which, _ in order.basket.coupons]
            if any(coupon.state != "free" for coupon in again):
                return "returned", "discount_gone"
            if order.basket.points > self.buyers[order.buyer].points:
                return "returned", "discount_gone"
        if not self._take_due(order):
            if order.state == "placed":
                self._close(order, "expired")
            return "returned", "no_stock"
        if order.state == "expired":
            self.buyers[order.buyer].points -= order.basket.points
        return "accepted", None

    def _accept(self, order: Order, amount_fen: int) -> None:
        order.state, order.paid_fen = "paid", amount_fen
        if order.plan:
            buyer = self.buyers[order.buyer]
            if not buyer.on_plan:
                buyer.plan_order = next(i for i, each in enumerate(self.orders) if each is order)
            buyer.on_plan = True
            return
        for which, _ in order.basket.coupons:
            coupon = self.coupons[which]
            coupon.state = "used"
            coupon.order = next(i for i, each in enumerate(self.orders) if each is order)
        pieces = self._pieces(order)
        self.flash.held -= pieces
        self.flash.sold += pieces
        base = sum(line.paid_fen for line in order.lines) // 100
        order.earned = order.earned_left = base + base * order.bonus_percent // 100

    def send(self, order: Order) -> bool:
        """A parcel is on its way: only for what is paid. With a plan it brings a gift."""
        if order.sold and not order.plan:
            order.state = "fulfilled"
        return order.sold

    # --- money that goes back ---

    def refund(self, order: Order) -> str:
        """All that is left. What was sold does not come back to a quota."""
        if order.state == "refunded":
            return "already_refunded"
        if not order.sold:
            return "not_paid"
        if order.plan:
            self.let_lapse(order.buyer)
        self._send(order, order.paid_fen - order.returned_fen)
        for line, back in zip(order.lines, order.back, strict=True):
            self.buyers[order.buyer].points += line.points - back.points
            back.pieces, back.fen, back.points = line.quantity, line.paid_fen, line.points
        self._end_refunded(order)
        return "ok"

    def refund_pieces(self, order: Order, wanted: dict[int, int], restock: bool) -> tuple[str, int, int]:
        """So many pieces of each line: (answer, money, points)."""
        if order.plan:
            return "bad_request", 0, 0
        if order.state == "refunded":
            return "already_refunded", 0, 0
        if not order.sold:
            return "not_paid", 0, 0
        for index, pieces in wanted.items():
            if pieces > order.lines[index].quantity - order.back[index].pieces:
                return "already_refunded", 0, 0
        fen = points = 0
        for index, pieces in wanted.items():
            line, back = order.lines[index], order.back[index]
            back.pieces += pieces
            fen += line.paid_fen * back.pieces // line.quantity - back.fen
            points += line.points * back.pieces // line.quantity - back.points
            back.fen = line.paid_fen * back.pieces // line.quantity
            back.points = line.points * back.pieces // line.quantity
            if restock:
                self._put_back(order, line.product, pieces)
        whole = all(back.pieces == line.quantity for line, back in zip(order.lines, order.back, strict=True))
        if whole:
            order.freight_back_fen = order.basket.freight_fen
            fen += order.freight_back_fen
        self._send(order, fen)
        self.buyers[order.buyer].points += points
        if whole:
            self._end_refunded(order)
        else:
            paid_fen = sum(line.paid_fen for line in order.lines)
            back_fen = sum(back.fen for back in order.back)
            due = order.earned * back_fen // paid_fen if paid_fen else order.earned
            self._take_points_back(order, order.earned_left - (order.earned - due))
        return "ok", fen, points

    def _put_back(self, order: Order, product: int, pieces: int) -> None:
        for index, each in (self.products[product].parts or {product: 1}).items():
            self._move(index, -pieces * each)
            order.needs[index].returned += pieces * each

    def _send(self, order: Order, fen: int) -> None:
        self.went_fen += fen
        order.returned_fen += fen

    def _take_points_back(self, order: Order, points: int) -> None:
        order.earned_left -= points
        if not order.pending:
            self.buyers[order.buyer].points -= points

    def _end_refunded(self, order: Order) -> None:
        order.state = "refunded"
        self._take_points_back(order, order.earned_left)
        self._give_coupons_back(order)

    # --- the rest ---

    def bring(self, index: int, change: int) -> bool:
        """A change of stock by staff: refused when it would leave less than nothing."""
        if self.products[index].stock + change < 0:
            return False
        self.products[index].stock += change
        self.brought[index] += change
        return True

    def end_return_windows(self) -> None:
        for order in self.orders:
            if order.pending and order.paid_fen + order.earned:
                order.pending = False
                self.buyers[order.buyer].points += order.earned_left

    def points(self, buyer: int) -> tuple[int, int]:
        """Active and pending."""
        pending = sum(order.earned_left for order in self.orders if order.buyer == buyer and order.pending)
        return self.buyers[buyer].points, pending

    def check(self) -> None:
        """What holds whatever was done."""
        out: Counter[int] = Counter()
        for order in self.orders:
            assert order.total_fen >= 0
            if not order.plan:
                assert (
                    order.total_fen == sum(line.paid_fen for line in order.lines) + order.basket.freight_fen
                )
                assert all(line.paid_fen >= 0 <= line.points for line in order.lines)
            assert 0 <= order.returned_fen <= order.paid_fen
            for index, need in order.needs.items():
                assert 0 <= need.returned <= need.quantity
                if need.state == "taken":
                    out[index] += need.quantity - need.returned
        for index, product in enumerate(self.products):
            assert product.stock >= 0
            assert 0 <= product.to_come <= product.cap
            at_hand = 0 if product.mode == "presale" else out[index]
            assert product.stock == self.brought[index] - at_hand
            assert product.mode != "presale" or product.to_come == out[index]
        assert 0 <= self.flash.held + self.flash.sold <= self.flash.quota
        assert all(0 <= pieces <= self.flash.per_person for pieces in self.flash.people.values())
        kept_fen = sum(order.paid_fen - order.returned_fen for order in self.orders)
        assert self.came_fen - self.went_fen == kept_fen + self.odd_fen
