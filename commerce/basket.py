"""A basket: quoted lines at the lower of the quote and now, with what coupons and points take off.

The promise stands as it was signed; today's prices may be better. Which of the two is taken is decided by what
is to pay: a lower price that would cost a coupon its threshold does not make the order dearer.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from commerce.coupons import Coupon
from commerce.discounts import AppliedCoupon, Discount, GoodsLine, work_out
from commerce.freight import FreightRow
from commerce.prices import CANDIDATE_KINDS, Candidate, CandidateKind, OfferRow, Priced
from commerce.quotes import PricedLines, Promise, PromisedLine
from membership.actor import Actor, OfferId, ProductId


class Bought(Struct, frozen=True, kw_only=True):
    """One line with the price it is ordered at, and its share of what is taken off."""

    row: OfferRow
    quantity: int
    unit_fen: int
    winner: CandidateKind
    candidates: tuple[Candidate, ...]
    piece: bool
    gift: bool
    coupon_fen: int = 0
    points_fen: int = 0

    @property
    def line_fen(self) -> int:
        return self.unit_fen * self.quantity


class Basket(Struct, frozen=True, kw_only=True):
    """What is ordered and what it costs."""

    lines: tuple[Bought, ...]
    coupons: tuple[AppliedCoupon, ...]
    freight_fen: int

    @property
    def goods_fen(self) -> int:
        return sum(each.line_fen for each in self.lines)

    @property
    def coupon_fen(self) -> int:
        return sum(each.coupon_fen for each in self.lines)

    @property
    def points(self) -> int:
        """Points spent; each takes off one fen."""
        return sum(each.points_fen for each in self.lines)

    @property
    def total_fen(self) -> int:
        return self.goods_fen - self.coupon_fen - self.points + self.freight_fen

    def pieces(self) -> dict[OfferId, int]:
        """What is to be held of the show's quotas."""
        return {each.row.id: each.quantity for each in self.lines if each.piece}

    def money_by_product(self) -> dict[ProductId, int]:
        """What is paid for each product's goods: the base of points."""
        found: dict[ProductId, int] = {}
        for each in self.lines:
            paid_fen = each.line_fen - each.coupon_fen - each.points_fen
            found[each.row.product.id] = found.get(each.row.product.id, 0) + paid_fen
        return found


def basket_of(
    priced: PricedLines,
    promise: Promise,
    actor: Actor,
    coupons: Sequence[Coupon],
    sending: FreightRow,
    *,
    free_plan: bool,
) -> Basket:
    """The lower of the promise and now; sending never costs more than was promised."""
    lines = [bought(priced, line, actor) for line in promise.lines]
    freight_fen = sending.of(sum(each.line_fen for each in lines), free_plan)
    now = _with_discounts(lines, coupons, min(freight_fen, promise.freight_list_fen), promise.points)
    promised = Basket(
        lines=tuple(_as_promised(priced, line, actor) for line in promise.lines),
        coupons=_titled(promise.coupons, coupons),
        freight_fen=promise.freight_fen,
    )
    # Of equal sums the one that takes fewer points and coupons.
    return min(now, promised, key=lambda each: (each.total_fen, each.points, len(each.coupons)))


def _titled(applied: Sequence[AppliedCoupon], coupons: Sequence[Coupon]) -> tuple[AppliedCoupon, ...]:
    """With the titles of their rules, which a token leaves out: it must fit a command."""
    titles = {coupon.id: coupon.rule.title for coupon in coupons}
    return tuple(AppliedCoupon(each.coupon, titles[each.coupon], each.kind, each.off_fen) for each in applied)


def _with_discounts(
    lines: Sequence[Bought], coupons: Sequence[Coupon], freight_fen: int, points: int
) -> Basket:
    discount = work_out([_goods(each) for each in lines], freight_fen, coupons, points)
    return Basket(lines=_shared(lines, discount), coupons=discount.coupons, freight_fen=discount.freight_fen)


def _shared(lines: Sequence[Bought], discount: Discount) -> tuple[Bought, ...]:
    return tuple(
        Bought(
            row=each.row,
            quantity=each.quantity,
            unit_fen=each.unit_fen,
            winner=each.winner,
            candidates=each.candidates,
            piece=each.piece,
            gift=each.gift,
            coupon_fen=coupon_fen,
            points_fen=points_fen,
        )
        for each, coupon_fen, points_fen in zip(
            lines, discount.line_coupon_fen, discount.line_points_fen, strict=True
        )
    )


def _goods(line: Bought) -> GoodsLine:
    return GoodsLine(line.row.product.id, line.line_fen, line.row.product.no_promo)


def lowest_without_flash(candidates: Sequence[Candidate]) -> Candidate:
    return min(
        (each for each in candidates if each.kind != "flash"),
        key=lambda each: (each.unit_fen, CANDIDATE_KINDS.index(each.kind)),
    )


def bought(priced: PricedLines, promised: PromisedLine, actor: Actor) -> Bought:
    """The lower of the quote and now; but a flash price only where it was quoted."""
    row, now = priced.offers[promised.offer], priced.prices[promised.offer]
    price = Priced(promised.unit_fen, promised.winner, promised.candidates, promised.winner == "flash")
    lowest = lowest_without_flash(now.candidates)
    if lowest.unit_fen < price.unit_fen or (price.flash_used and lowest.unit_fen == price.unit_fen):
        price = Priced(lowest.unit_fen, lowest.kind, now.candidates, False)
    return Bought(
        row=row,
        quantity=promised.quantity,
        unit_fen=price.unit_fen,
        winner=price.winner,
        candidates=price.candidates,
        piece=price.flash_used if row.kind == "flash" else True,
        gift=_gift(row, promised, actor),
    )


def _as_promised(priced: PricedLines, promised: PromisedLine, actor: Actor) -> Bought:
    row = priced.offers[promised.offer]
    return Bought(
        row=row,
        quantity=promised.quantity,
        unit_fen=promised.unit_fen,
        winner=promised.winner,
        candidates=promised.candidates,
        piece=promised.winner == "flash" if row.kind == "flash" else True,
        gift=_gift(row, promised, actor),
        coupon_fen=promised.coupon_fen,
        points_fen=promised.points_fen,
    )


def _gift(row: OfferRow, promised: PromisedLine, actor: Actor) -> bool:
    product = row.product
    return product.gift_text is not None and (promised.gift or product.gift_audience.has(actor.facts))
