"""Quotes: a signed promise of prices to one person, that explains itself.

Every candidate of every line, the winner, what coupons and points take off and why a coupon does not, the
freight and the promised date. Honoured for at most ten minutes, across midnight, a lapsed plan and the offer's
end; it promises no stock.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import jwt
import msgspec
from msgspec import Struct

from commerce.coupons import TOGETHER_MAX, Coupon, CouponId, CouponKind, Coupons
from commerce.discounts import AppliedCoupon, Discount, GoodsLine, WhyNot, chosen, points_most, work_out
from commerce.freight import Freight, FreightRow, FreightTemplate, NotCovered
from commerce.grants import early_products
from commerce.messages import LINES_MAX, QUANTITY_MAX, LineInput
from commerce.price_history import PriceHistory, cut_since
from commerce.prices import (
    Candidate,
    CandidateKind,
    MemberDay,
    NoSuchOffer,
    NotOnSale,
    OfferEnded,
    OfferRow,
    PlanTerms,
    PriceChanged,
    Priced,
    decide,
    read_offers,
    read_plans,
)
from commerce.products import PriceEntry, Product, Products
from membership.actor import Actor, Facts, OfferId, PlanId, ProductId, ShowId, is_id, new_id
from membership.campaigns import Campaigns, bases
from membership.plans import Plans
from membership.points import GOODS, GOODS_PLAN, SPENT_BY, Points, event_reason, lots_for_goods
from membership.refusal import BadRequest, Unauthenticated
from membership.transaction import Connection

QUOTE_S_MAX = 600
# In a token a kind is its place here, and another version of us may read it: what is new comes at the end.
COUPON_KINDS: tuple[CouponKind, ...] = ("amount", "percent", "freight")
SIGNED_KINDS: tuple[CandidateKind, ...] = (
    "list",
    "price_list",
    "member",
    "plan_percent",
    "tier",
    "member_day",
    "flash",
    "group",
)


class QuotedLine(Struct, frozen=True, kw_only=True):
    """One line of a quote: the unit price, what won, and every candidate."""

    offer: OfferId
    product: ProductId
    name: str
    quantity: int
    unit_fen: int
    line_fen: int
    winner: CandidateKind
    candidates: tuple[Candidate, ...]
    gift_text: str | None = None
    coupon_fen: int = 0  # its share of what coupons take off
    points_fen: int = 0  # its share of the points spent
    was_fen: int | None = None  # struck through: the lowest price paid in the week before a time-limited cut


class QuotedCoupon(Struct, frozen=True, kw_only=True):
    """A coupon of one's own: what it takes off here, or why it is not used."""

    coupon: CouponId
    title: str
    off_fen: int
    used: bool
    why_not: WhyNot | None = None


class EarnedPoints(Struct, frozen=True, kw_only=True):
    """Points these goods would earn by one rule. `counts` false: `behind` a campaign of higher priority."""

    reason: str
    percent: int
    points: int
    counts: bool = True
    why: str = ""
    priority: int = 0


class PlanSaves(Struct, frozen=True, kw_only=True):
    """What a plan would save on these lines: parts apart, and their sum against the plan's fee."""

    plan: PlanId
    plan_name: str
    fee_fen: int
    goods_fen: int
    freight_fen: int
    gift_fen: int  # stated value
    total_fen: int


class Quote(Struct, frozen=True, kw_only=True):
    """A price promise to one person. `token` is the signed form, to be given back with the order."""

    quote: str
    token: str
    show: ShowId
    currency: str
    expires_at: int  # ms
    lines: tuple[QuotedLine, ...]
    goods_fen: int
    coupons: tuple[QuotedCoupon, ...]
    coupon_fen: int
    points: int
    points_fen: int
    points_max: int
    points_earned: tuple[EarnedPoints, ...]
    freight_fen: int
    total_fen: int
    promised_from: date | None = None  # when it arrives, in days of the shop's zone
    promised_until: date | None = None
    plan_saves: PlanSaves | None = None


class PromisedLine(Struct, frozen=True):
    """A line as it was signed."""

    offer: OfferId
    quantity: int
    unit_fen: int
    winner: CandidateKind
    candidates: tuple[Candidate, ...]
    gift: bool
    coupon_fen: int = 0
    points_fen: int = 0


class Promise(Struct, frozen=True):
    """What a verified token says."""

    quote: str
    show: ShowId
    person: str
    lines: tuple[PromisedLine, ...]
    freight_fen: int
    expires_at: datetime
    made_at: datetime
    freight_list_fen: int = 0  # before a coupon for it
    coupons: tuple[AppliedCoupon, ...] = ()
    points: int = 0
    dates: tuple[date, date] | None = None
    free_freight: bool = False  # by the plan one had when it was quoted
    sent_to: str = ""  # the row of the freight template


def checked_lines(lines: Sequence[LineInput]) -> dict[OfferId, int]:
    """Offer → quantity. Refuses absurd numbers and the same offer twice."""
    if not 1 <= len(lines) <= LINES_MAX:
        raise BadRequest(f"between 1 and {LINES_MAX} lines")
    found: dict[OfferId, int] = {}
    for line in lines:
        if type(line.quantity) is not int or not 1 <= line.quantity <= QUANTITY_MAX:
            raise BadRequest(f"a quantity is between 1 and {QUANTITY_MAX}")
        if not is_id(line.offer):
            raise NoSuchOffer
        offer = OfferId(line.offer)
        if offer in found:
            raise BadRequest("the same offer stands in two lines")
        found[offer] = line.quantity
    return found


class PricedLines(Struct, frozen=True):
    """Lines priced now, with what an order needs to be made of them."""

    offers: Mapping[OfferId, OfferRow]
    prices: Mapping[OfferId, Priced]
    plan: PlanTerms | None
    shown_plan: PlanTerms | None
    entries: Mapping[ProductId, Sequence[PriceEntry]]
    now: datetime


class Quotes:
    """Prices lines for a person, signs the promise, and reads it back."""

    def __init__(
        self,
        secret: str,
        *,
        products: Products,
        coupons: Coupons,
        points: Points,
        plans: Plans,
        campaigns: Campaigns | None = None,
        currency: str = "CNY",
        freight: Freight | None = None,
        member_day: MemberDay | None = None,
        timezone: str = "Asia/Shanghai",
        quote_s: int = QUOTE_S_MAX,
    ) -> None:
        if not 1 <= quote_s <= QUOTE_S_MAX:
            raise ValueError(f"quote_s is between 1 and {QUOTE_S_MAX}")
        # A key of its own: no other token of the house passes for a quote, and no quote for another.
        self._key = hmac.digest(secret.encode(), b"companion quote", hashlib.sha256)
        self._products = products
        self._coupons = coupons
        self._points = points
        self._plans = plans
        self.campaigns = campaigns or Campaigns()
        self._history = PriceHistory()
        self.currency = currency
        self.freight = FreightTemplate(freight, timezone=timezone)
        self.member_day = member_day
        self._quote_s = quote_s

    async def price(
        self,
        conn: Connection,
        facts: Facts,
        show: ShowId,
        offers: Mapping[OfferId, int],
        *,
        quoted: bool = False,
    ) -> PricedLines:
        """Price so many of each of these offers for a person now.

        Raises NoSuchOffer for what the person may not know of. `quoted`: a quote proves that they might, and
        it is honoured when a plan lapses under it.
        """
        found = await read_offers(conn, show, list(offers))
        for offer in offers:
            row = found.get(offer)
            if row is None or not (quoted or (row.sold_to(facts) and row.product.status == "on")):
                raise NoSuchOffer
        clock = await (await conn.execute("SELECT clock_timestamp() AS now")).fetchone()
        assert clock is not None
        now: datetime = clock["now"]
        plan, shown = await read_plans(conn, facts)
        entries = await self._products.prices(conn, sorted({row.product.id for row in found.values()}))
        pieces = _pieces(found, offers)
        prices = {
            offer: decide(
                row.product,
                facts,
                row,
                plan,
                now,
                entries=entries[row.product.id],
                member_day=self.member_day,
                quantity=pieces[row.product.id],
            )
            for offer, row in found.items()
        }
        return PricedLines(found, prices, plan, shown, entries, now)

    async def quote(
        self,
        conn: Connection,
        actor: Actor,
        show: ShowId,
        lines: Sequence[LineInput],
        *,
        region: str | None = None,
        coupons: Sequence[CouponId] = (),
        points: int = 0,
        best: bool = False,
    ) -> Quote:
        """A signed promise for these lines to this person, valid for at most ten minutes.

        `region`: of the address it is to be sent to; left out, the freight is that of most regions.
        `coupons`: to be used, the first named first; `best`: those that save most are found. `points`: to be
        spent at most. What cannot be used says why.
        Raises BadRequest, NotFound (also for offers not for this person, and coupons not theirs),
        Unauthenticated (a guest has neither), OfferEnded, NotOnSale, NotCovered.
        """
        wanted = checked_lines(lines)
        _check_asked(actor, coupons, points)
        priced = await self.price(conn, actor.facts, show, wanted)
        for offer in wanted:
            row = priced.offers[offer]
            if row.status != "open" or (row.ends_at is not None and priced.now >= row.ends_at):
                raise OfferEnded
            if not row.product.may_order(actor.facts, priced.now) and (
                row.product.status != "on" or row.product.id not in await early_products(conn, actor.member)
            ):
                raise NotOnSale
        goods = tuple(_goods(priced, offer, quantity) for offer, quantity in wanted.items())
        goods_fen = sum(line.line_fen for line in goods)
        free_plan = priced.plan is not None and priced.plan.free_freight
        sending = await self.freight.row(conn, region)
        if region is not None and not sending.covered:
            raise NotCovered
        freight_fen = sending.of(goods_fen, free_plan)
        promised = self.freight.promised(sending, priced.now)

        looked_at = await self._looked_at(conn, actor, coupons)
        used, reasons = chosen(
            looked_at, actor.facts, priced.now, goods, freight_fen, named=coupons, best=best
        )
        before_points = work_out(goods, freight_fen, used)
        most = await self._points_most(conn, actor, goods_fen - before_points.coupon_fen)
        discount = work_out(goods, freight_fen, used, min(points, most))
        was_fen = await self._history.paid_before(conn, _cuts(priced, wanted, self.member_day))
        quoted = tuple(
            _quoted(priced, offer, quantity, actor.facts, discount, place, was_fen)
            for place, (offer, quantity) in enumerate(wanted.items())
        )
        expires_at = priced.now + timedelta(seconds=self._quote_s)
        quote = new_id()
        token = jwt.encode(
            {
                "aud": "quote",
                "jti": quote,
                "sub": actor.member or actor.id,
                "show": show,
                "exp": int(expires_at.timestamp()),
                "made": int(priced.now.timestamp() * 1000),
                "freight": discount.freight_fen,
                "freight_list": freight_fen,
                "free": free_plan,
                "to": sending.region,
                "dates": None if promised is None else [day.isoformat() for day in promised],
                "coupons": [
                    [each.coupon, COUPON_KINDS.index(each.kind), each.off_fen] for each in discount.coupons
                ],
                "lines": [
                    [
                        line.offer,
                        line.quantity,
                        line.unit_fen,
                        SIGNED_KINDS.index(line.winner),
                        [[SIGNED_KINDS.index(each.kind), each.unit_fen] for each in line.candidates],
                        int(line.gift_text is not None),
                        line.coupon_fen,
                        line.points_fen,
                    ]
                    for line in quoted
                ],
            },
            self._key,
            algorithm="HS256",
        )
        return Quote(
            quote=quote,
            token=token,
            show=show,
            currency=self.currency,
            expires_at=int(expires_at.timestamp()) * 1000,
            lines=quoted,
            goods_fen=goods_fen,
            coupons=_quoted_coupons(looked_at, discount, reasons),
            coupon_fen=discount.coupon_fen,
            points=discount.points_fen,
            points_fen=discount.points_fen,
            points_max=most,
            points_earned=await self._earned(conn, actor, priced, quoted),
            freight_fen=discount.freight_fen,
            total_fen=discount.total_fen,
            promised_from=None if promised is None else promised[0],
            promised_until=None if promised is None else promised[1],
            plan_saves=self._plan_saves(priced, wanted, actor.facts, goods_fen, freight_fen, sending),
        )

    async def _looked_at(
        self, conn: Connection, actor: Actor, coupons: Sequence[CouponId]
    ) -> tuple[Coupon, ...]:
        """The coupons that were named, and whatever else the person might use."""
        if actor.member is None:
            return ()
        named = await self._coupons.named(conn, actor.member, coupons) if coupons else ()
        known = {coupon.id for coupon in named}
        free = await self._coupons.free_of(conn, actor.member)
        return (*named, *(coupon for coupon in free if coupon.id not in known))

    async def _points_most(self, conn: Connection, actor: Actor, goods_fen: int) -> int:
        if actor.member is None:
            return 0
        balance = await self._points.balance(conn, actor.member)
        return max(0, min(points_most(goods_fen), balance.active // SPENT_BY * SPENT_BY))

    async def _earned(
        self, conn: Connection, actor: Actor, priced: PricedLines, quoted: Sequence[QuotedLine]
    ) -> tuple[EarnedPoints, ...]:
        """What paying this would earn, rule by rule, and which campaigns stand behind others."""
        if actor.member is None:
            return ()
        paid_fen: dict[ProductId, int] = {}
        for line in quoted:
            left_fen = line.line_fen - line.coupon_fen - line.points_fen
            paid_fen[line.product] = paid_fen.get(line.product, 0) + left_fen
        judged = await self.campaigns.judged(conn, actor.facts, list(paid_fen), priced.now)
        bonus = await self._plans.points_bonus_percent(conn, actor.member)
        percents, money = bases([each.holding for each in judged], paid_fen)
        lots = lots_for_goods(sum(paid_fen.values()), bonus, percents, money)
        earned = [EarnedPoints(reason=GOODS, percent=100, points=lots.get(GOODS, 0))]
        if bonus:
            earned.append(EarnedPoints(reason=GOODS_PLAN, percent=bonus, points=lots.get(GOODS_PLAN, 0)))
        for each in judged:
            reason = event_reason(each.holding.name)
            earned.append(
                EarnedPoints(
                    reason=reason,
                    percent=each.holding.percent,
                    points=lots.get(reason, 0) if each.counts else 0,
                    counts=each.counts,
                    why=each.why,
                    priority=each.priority,
                )
            )
        return tuple(earned)

    def verify(self, token: str) -> Promise:
        """Read a quote back. Raises PriceChanged when it has expired, BadRequest when it is not ours."""
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._key,
                algorithms=["HS256"],
                audience="quote",
                options={"require": ["exp", "sub", "jti"]},
            )
            return Promise(
                quote=claims["jti"],
                show=ShowId(claims["show"]),
                person=claims["sub"],
                lines=tuple(
                    PromisedLine(
                        OfferId(offer),
                        quantity,
                        unit_fen,
                        SIGNED_KINDS[winner],
                        tuple(Candidate(SIGNED_KINDS[kind], fen) for kind, fen in candidates),
                        bool(gift),
                        coupon_fen,
                        points_fen,
                    )
                    for offer, quantity, unit_fen, winner, candidates, gift, coupon_fen, points_fen in claims[
                        "lines"
                    ]
                ),
                freight_fen=claims["freight"],
                freight_list_fen=claims["freight_list"],
                coupons=tuple(
                    AppliedCoupon(CouponId(coupon), "", COUPON_KINDS[kind], off_fen)
                    for coupon, kind, off_fen in claims["coupons"]
                ),
                points=sum(line[7] for line in claims["lines"]),
                dates=_dates(claims["dates"]),
                free_freight=claims["free"],
                sent_to=claims["to"],
                expires_at=datetime.fromtimestamp(claims["exp"], tz=ZoneInfo("UTC")),
                made_at=datetime.fromtimestamp(claims["made"] / 1000, tz=ZoneInfo("UTC")),
            )
        except jwt.ExpiredSignatureError:
            raise PriceChanged("the quote has expired; ask for a new one") from None
        except (jwt.InvalidTokenError, KeyError, ValueError, TypeError, IndexError):
            raise BadRequest("the quote is not one of ours") from None

    def _plan_saves(
        self,
        priced: PricedLines,
        wanted: Mapping[OfferId, int],
        facts: Facts,
        goods_fen: int,
        freight_fen: int,
        sending: FreightRow,
    ) -> PlanSaves | None:
        """For someone without a plan: the same lines as its member, where the member price may be seen."""
        plan = priced.shown_plan
        if plan is None or facts.plans:
            return None
        as_member = msgspec.structs.replace(facts, registered=True, plans=frozenset({plan.id}))
        goods_saved = gift_fen = 0
        pieces = _pieces(priced.offers, wanted)
        for offer, quantity in wanted.items():
            row = priced.offers[offer]
            gift_fen += row.product.gift_value_fen * quantity * _gets_gift(row.product, as_member)
            gift_fen -= row.product.gift_value_fen * quantity * _gets_gift(row.product, facts)
            if not row.product.member_price_audience.has(facts):
                continue
            visible = [entry for entry in priced.entries[row.product.id] if entry.audience.kind != "list"]
            then = decide(
                row.product,
                as_member,
                row,
                plan,
                priced.now,
                entries=visible,
                member_day=self.member_day,
                quantity=pieces[row.product.id],
            )
            goods_saved += (priced.prices[offer].unit_fen - then.unit_fen) * quantity
        goods_saved = max(0, goods_saved)
        freight_saved = freight_fen - sending.of(goods_fen - goods_saved, plan.free_freight)
        total = goods_saved + max(0, freight_saved) + max(0, gift_fen)
        return PlanSaves(
            plan=plan.id,
            plan_name=plan.name,
            fee_fen=plan.fee_fen,
            goods_fen=goods_saved,
            freight_fen=max(0, freight_saved),
            gift_fen=max(0, gift_fen),
            total_fen=total,
        )


def _dates(given: list[str] | None) -> tuple[date, date] | None:
    return None if given is None else (date.fromisoformat(given[0]), date.fromisoformat(given[1]))


def _pieces(offers: Mapping[OfferId, OfferRow], wanted: Mapping[OfferId, int]) -> dict[ProductId, int]:
    """How many of each product are wanted, over all lines: what group prices ask for."""
    found: dict[ProductId, int] = {}
    for offer, quantity in wanted.items():
        product = offers[offer].product.id
        found[product] = found.get(product, 0) + quantity
    return found


def _gets_gift(product: Product, facts: Facts) -> bool:
    return product.gift_text is not None and product.gift_audience.has(facts)


def _check_asked(actor: Actor, coupons: Sequence[CouponId], points: int) -> None:
    if (coupons or points) and actor.member is None:
        raise Unauthenticated
    if len(coupons) > TOGETHER_MAX or len(set(coupons)) != len(coupons):
        raise BadRequest(f"at most {TOGETHER_MAX} coupons, each once")
    if type(points) is not int or points < 0 or points % SPENT_BY:
        raise BadRequest(f"points are spent by {SPENT_BY}s", field="points")


def _goods(priced: PricedLines, offer: OfferId, quantity: int) -> GoodsLine:
    product = priced.offers[offer].product
    return GoodsLine(product.id, priced.prices[offer].unit_fen * quantity, product.no_promo)


def _cuts(
    priced: PricedLines, offers: Iterable[OfferId], member_day: MemberDay | None
) -> dict[ProductId, datetime]:
    """The products that are cheaper for a limited time, and since when."""
    found: dict[ProductId, datetime] = {}
    for offer in offers:
        row, price = priced.offers[offer], priced.prices[offer]
        since = cut_since(row, price, priced.entries[row.product.id], member_day, priced.now)
        if since is not None:
            found[row.product.id] = min(since, found.get(row.product.id, since))
    return found


def _quoted(
    priced: PricedLines,
    offer: OfferId,
    quantity: int,
    facts: Facts,
    discount: Discount,
    place: int,
    was_fen: Mapping[ProductId, int],
) -> QuotedLine:
    row, price = priced.offers[offer], priced.prices[offer]
    was = was_fen.get(row.product.id)
    return QuotedLine(
        offer=offer,
        product=row.product.id,
        name=row.product.name,
        quantity=quantity,
        unit_fen=price.unit_fen,
        line_fen=price.unit_fen * quantity,
        winner=price.winner,
        candidates=price.candidates,
        gift_text=row.product.gift_text if _gets_gift(row.product, facts) else None,
        coupon_fen=discount.line_coupon_fen[place],
        points_fen=discount.line_points_fen[place],
        was_fen=was if was is not None and was > price.unit_fen else None,
    )


def _quoted_coupons(
    looked_at: Sequence[Coupon], discount: Discount, reasons: Mapping[CouponId, WhyNot]
) -> tuple[QuotedCoupon, ...]:
    off_fen = {each.coupon: each.off_fen for each in discount.coupons}
    return tuple(
        QuotedCoupon(
            coupon=coupon.id,
            title=coupon.rule.title,
            off_fen=off_fen.get(coupon.id, 0),
            used=coupon.id in off_fen,
            why_not=reasons.get(coupon.id),
        )
        for coupon in looked_at
    )
