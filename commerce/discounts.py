"""Discounts: what coupons and points take off the goods of an order, and which coupons may go together.

Pure rules. Prices are decided first (prices.py); then coupons, each on what the one before it left; then points,
on at most half of what is left; each is spread over the lines by allocation.py. Nothing goes below zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import combinations
from typing import Literal

from msgspec import Struct

from commerce.allocation import allocate
from commerce.coupons import TOGETHER_MAX, Coupon, CouponId, CouponKind
from commerce.prices import round_half_up
from membership.actor import Facts, ProductId
from membership.points import SPENT_BY

BEST_OF = 12  # coupons among which the best set is sought: 298 sets of at most three

WhyNot = Literal[
    "used",
    "expired",
    "not_yet",
    "audience",
    "products",
    "no_promo",
    "threshold",
    "not_stacking",
    "not_chosen",
    "nothing_left",
]


class GoodsLine(Struct, frozen=True):
    """One line of goods at its decided price."""

    product: ProductId
    line_fen: int
    no_promo: bool = False


class AppliedCoupon(Struct, frozen=True):
    """What one coupon takes off: of the goods, or of the freight."""

    coupon: CouponId
    title: str
    kind: CouponKind
    off_fen: int


class Discount(Struct, frozen=True, kw_only=True):
    """What is taken off, by coupon and by line; `freight_fen` is what is left of the freight."""

    coupons: tuple[AppliedCoupon, ...]
    line_coupon_fen: tuple[int, ...]
    line_points_fen: tuple[int, ...]
    goods_fen: int
    freight_fen: int

    @property
    def coupon_fen(self) -> int:
        """Off the goods; a coupon for the freight lowers `freight_fen`."""
        return sum(self.line_coupon_fen)

    @property
    def points_fen(self) -> int:
        return sum(self.line_points_fen)

    @property
    def total_fen(self) -> int:
        return self.goods_fen - self.coupon_fen - self.points_fen + self.freight_fen


def points_most(goods_fen: int) -> int:
    """Points that may be spent on goods of this worth after coupons: by hundreds, at most half of it."""
    return goods_fen // 2 // SPENT_BY * SPENT_BY


def work_out(
    lines: Sequence[GoodsLine], freight_fen: int, coupons: Sequence[Coupon], points: int = 0
) -> Discount:
    """Take these coupons off, then the points: no more of those than half of what is left, by hundreds.

    Of the coupons for goods, the one that saves most on what is left works first; freight comes last. A
    coupon that takes nothing off is not among the applied: it stays with its owner.
    """
    left = [line.line_fen for line in lines]
    applied: list[AppliedCoupon] = []
    waiting = [coupon for coupon in coupons if coupon.rule.kind != "freight"]
    while waiting:
        offs = [_off(coupon, lines, left) for coupon in waiting]
        best = max(range(len(waiting)), key=lambda place: (offs[place], -place))
        coupon, off_fen = waiting.pop(best), offs[best]
        if off_fen:
            held = [fen if _takes(coupon, line) else 0 for line, fen in zip(lines, left, strict=True)]
            shares = allocate(off_fen, held)
            left = [fen - share for fen, share in zip(left, shares, strict=True)]
            applied.append(AppliedCoupon(coupon.id, coupon.rule.title, coupon.rule.kind, off_fen))
    for coupon in coupons:
        if coupon.rule.kind == "freight":
            off_fen = min(freight_fen, coupon.rule.off_fen or freight_fen) * _reached(coupon, lines)
            if off_fen:
                freight_fen -= off_fen
                applied.append(AppliedCoupon(coupon.id, coupon.rule.title, "freight", off_fen))
    line_points_fen = allocate(min(points, points_most(sum(left))), left)
    return Discount(
        coupons=tuple(applied),
        line_coupon_fen=tuple(line.line_fen - fen for line, fen in zip(lines, left, strict=True)),
        line_points_fen=tuple(line_points_fen),
        goods_fen=sum(line.line_fen for line in lines),
        freight_fen=freight_fen,
    )


def why_not(coupon: Coupon, facts: Facts, now: datetime, lines: Sequence[GoodsLine]) -> WhyNot | None:
    """Why this person cannot use this coupon on these lines now; None when they can."""
    if coupon.state in ("held", "used", "void"):
        return "used"
    if coupon.state == "expired" or (coupon.expires_at is not None and coupon.expires_at <= now):
        return "expired"
    if not coupon.in_time(now):
        return "not_yet"
    if not coupon.for_person(facts):
        return "audience"
    if not any(_takes(coupon, line) for line in lines):
        named = any(not coupon.rule.products or line.product in coupon.rule.products for line in lines)
        return "no_promo" if named else "products"
    return None if _reached(coupon, lines) else "threshold"


def chosen(
    coupons: Sequence[Coupon],
    facts: Facts,
    now: datetime,
    lines: Sequence[GoodsLine],
    freight_fen: int,
    *,
    named: Sequence[CouponId] = (),
    best: bool = False,
) -> tuple[list[Coupon], dict[CouponId, WhyNot]]:
    """Which of these coupons are used together, and why each of the others is not.

    Those `named` are used as far as they go together, the first named first; with `best` the set that saves
    most is, and of equal sets the one with fewer coupons.
    """
    reasons: dict[CouponId, WhyNot] = {}
    fit: list[Coupon] = []
    for coupon in coupons:
        reason = why_not(coupon, facts, now, lines)
        if reason is None:
            fit.append(coupon)
        else:
            reasons[coupon.id] = reason
    if best:
        taken = _best(fit, lines, freight_fen)
        reasons |= {coupon.id: "not_chosen" for coupon in fit if coupon not in taken}
    else:
        taken = []
        order = {coupon: place for place, coupon in enumerate(named)}
        for coupon in sorted(fit, key=lambda each: order.get(each.id, len(order))):
            if coupon.id not in order:
                reasons[coupon.id] = "not_chosen"
            elif len(taken) < TOGETHER_MAX and all(coupon.rule.stacks(other.rule) for other in taken):
                taken.append(coupon)
            else:
                reasons[coupon.id] = "not_stacking"
    used = {each.coupon for each in work_out(lines, freight_fen, taken).coupons}
    reasons |= {coupon.id: "nothing_left" for coupon in taken if coupon.id not in used}
    return [coupon for coupon in taken if coupon.id in used], reasons


def _best(fit: Sequence[Coupon], lines: Sequence[GoodsLine], freight_fen: int) -> list[Coupon]:
    alone = {coupon.id: _saving(lines, freight_fen, [coupon]) for coupon in fit}
    ranked = sorted(fit, key=lambda coupon: -alone[coupon.id])[:BEST_OF]
    taken: tuple[Coupon, ...] = ()
    most = 0
    for count in range(1, TOGETHER_MAX + 1):
        for together in combinations(ranked, count):
            if all(one.rule.stacks(other.rule) for one, other in combinations(together, 2)):
                saving = _saving(lines, freight_fen, together)
                if saving > most:
                    taken, most = together, saving
    return list(taken)


def _saving(lines: Sequence[GoodsLine], freight_fen: int, coupons: Sequence[Coupon]) -> int:
    return sum(each.off_fen for each in work_out(lines, freight_fen, coupons).coupons)


def _takes(coupon: Coupon, line: GoodsLine) -> bool:
    """Whether the coupon is for these goods. `no_promo` is never lowered by one."""
    return not line.no_promo and (not coupon.rule.products or line.product in coupon.rule.products)


def _reached(coupon: Coupon, lines: Sequence[GoodsLine]) -> bool:
    """The threshold is on the goods the coupon is for, at their prices before any coupon."""
    goods_fen = sum(line.line_fen for line in lines if _takes(coupon, line))
    return goods_fen > 0 and goods_fen >= coupon.rule.threshold_fen


def _off(coupon: Coupon, lines: Sequence[GoodsLine], left: Sequence[int]) -> int:
    """What the coupon takes off what is left of its goods."""
    if not _reached(coupon, lines):
        return 0
    goods_fen = sum(fen for line, fen in zip(lines, left, strict=True) if _takes(coupon, line))
    if coupon.rule.kind == "amount":
        return min(goods_fen, coupon.rule.off_fen or 0)
    off_fen = goods_fen - round_half_up(goods_fen, coupon.rule.percent or 100, 100)
    return min(off_fen, coupon.rule.max_off_fen or off_fen)
