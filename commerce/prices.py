"""Prices: one rounding function, one decision, and quotes that are signed and explain themselves.

The lowest candidate wins; candidates never multiply, and none can raise a price. A flash piece is used only
when the flash price is below every other candidate. A quote promises the price for up to ten minutes, across
midnight, a lapsed plan and the offer's end; it promises no stock.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import Any, Literal, Protocol
from zoneinfo import ZoneInfo

import jwt
import msgspec
from msgspec import Struct

from commerce.messages import LINES_MAX, QUANTITY_MAX, LineInput
from commerce.products import PriceEntry, Product, Products, audience_from, product_from
from membership.actor import Actor, Facts, OfferId, PlanId, ProductId, ShowId, is_id, new_id
from membership.audience import PLAN_MEMBERS, Audience
from membership.refusal import BadRequest, NotFound, Refusal
from membership.transaction import Connection

QUOTE_S_MAX = 600
CandidateKind = Literal["list", "price_list", "member", "plan_percent", "tier", "member_day", "flash"]
# The order decides a tie: flash last, so that an equal price uses no flash piece.
CANDIDATE_KINDS: tuple[CandidateKind, ...] = (
    "list",
    "price_list",
    "member",
    "plan_percent",
    "tier",
    "member_day",
    "flash",
)


class NoSuchOffer(NotFound):
    """There is no such offer here."""


class PriceChanged(Refusal):
    """The quote no longer holds; ask for a new one."""

    code = "price_changed"


class OfferEnded(Refusal):
    """The offer is closed."""

    code = "closed"


class NotOnSale(Refusal):
    """The product is not on sale for you yet."""

    code = "not_eligible"


def round_half_up(amount: int, numerator: int, denominator: int) -> int:
    """amount × numerator ÷ denominator in 分, half up. The only place where money is rounded."""
    if amount < 0 or numerator < 0 or denominator <= 0:
        raise ValueError("money is rounded from amounts that are not negative")
    return (2 * amount * numerator + denominator) // (2 * denominator)


class PlanPrice(Protocol):
    """What a plan says about prices."""

    @property
    def percent(self) -> int | None: ...


class FlashPrice(Protocol):
    """What an offer says about prices."""

    @property
    def kind(self) -> Literal["pin", "flash"]: ...
    @property
    def audience(self) -> Audience: ...
    @property
    def flash_fen(self) -> int | None: ...
    @property
    def status(self) -> Literal["open", "closed"]: ...
    @property
    def ends_at(self) -> datetime | None: ...


class MemberDay(Struct, frozen=True):
    """One day of each month, 00:00–24:00 in the shop's zone: a percentage of the list price."""

    day: int = 18
    percent: int = 88
    audience: Audience = PLAN_MEMBERS
    zone: str = "Asia/Shanghai"

    def holds(self, facts: Facts, now: datetime) -> bool:
        zone: tzinfo = ZoneInfo(self.zone)
        return now.astimezone(zone).day == self.day and self.audience.has(facts)


class Candidate(Struct, frozen=True):
    """One price a unit could have, and why."""

    kind: CandidateKind
    unit_fen: int


class Priced(Struct, frozen=True):
    """The decision for one unit. `flash_used`: each unit takes a piece of the flash quota."""

    unit_fen: int
    winner: CandidateKind
    candidates: tuple[Candidate, ...]
    flash_used: bool


def decide(
    product: Product,
    facts: Facts,
    offer: FlashPrice | None,
    plan: PlanPrice | None,
    now: datetime,
    *,
    entries: Sequence[PriceEntry] = (),
    member_day: MemberDay | None = None,
) -> Priced:
    """The price of one unit for this person now: every candidate, the lowest wins, never multiplied.

    `plan` is the person's active plan. Its percentage counts only where the product has no member price of
    its own.
    """
    candidates = [Candidate("list", product.list_fen)]
    own_member_price = False
    if product.member_fen is not None:
        own_member_price = True
        if facts.plans:
            candidates.append(Candidate("member", product.member_fen))
    for entry in entries:
        kind = _entry_kind(entry.audience)
        own_member_price = own_member_price or (kind == "member" and entry.from_at <= now)
        if entry.holds(facts, now):
            candidates.append(Candidate(kind, entry.unit_fen))
    if facts.plans and plan is not None and plan.percent is not None and not own_member_price:
        candidates.append(
            Candidate("plan_percent", max(1, round_half_up(product.list_fen, plan.percent, 100)))
        )
    if member_day is not None and not product.no_promo and member_day.holds(facts, now):
        percent = max(1, round_half_up(product.list_fen, member_day.percent, 100))
        candidates.append(Candidate("member_day", percent))
    if (
        offer is not None
        and offer.kind == "flash"
        and offer.flash_fen is not None
        and not product.no_promo
        and offer.status == "open"
        and (offer.ends_at is None or now < offer.ends_at)
        and offer.audience.has(facts)
    ):
        candidates.append(Candidate("flash", offer.flash_fen))
    winner = min(candidates, key=lambda each: (each.unit_fen, CANDIDATE_KINDS.index(each.kind)))
    return Priced(winner.unit_fen, winner.kind, tuple(candidates), winner.kind == "flash")


def _entry_kind(audience: Audience) -> CandidateKind:
    match audience.kind:
        case "plan_members" | "plans":
            return "member"
        case "tiers":
            return "tier"
        case _:
            return "price_list"


class Freight(Struct, frozen=True):
    """What sending costs: a flat amount, nothing from a sum of goods on, nothing for some plans."""

    flat_fen: int = 800
    free_from_fen: int = 9900

    def of(self, goods_fen: int, free_plan: bool) -> int:
        return 0 if free_plan or goods_fen >= self.free_from_fen else self.flat_fen


class OfferRow(Struct, frozen=True, kw_only=True):
    """An offer with its product, as prices and orders read them."""

    id: OfferId
    show: ShowId
    kind: Literal["pin", "flash"]
    audience: Audience
    audience_bit: int
    flash_fen: int | None
    quota: int | None
    per_person: int | None
    status: Literal["open", "closed"]
    ends_at: datetime | None
    product: Product

    def sold_to(self, facts: Facts) -> bool:
        """Whether this person may know of the offer and of its product at all."""
        return self.audience.has(facts) and self.product.audience.has(facts)


async def read_offers(conn: Connection, show: ShowId, offers: Sequence[str]) -> dict[OfferId, OfferRow]:
    """These offers of the show with their products; those that are none are left out."""
    keys = [offer for offer in offers if is_id(offer)]
    rows = await (
        await conn.execute(
            """
            SELECT o.id AS offer_id, o.show_id, o.kind, o.audience AS offer_audience, o.audience_bit,
                   o.flash_fen, o.quota, o.per_person, o.status AS offer_status, o.closes_at, p.*
            FROM offers o JOIN products p ON p.id = o.product_id
            WHERE o.show_id = %s AND o.id = ANY(%s::uuid[])
            """,
            [show, keys],
        )
    ).fetchall()
    found: dict[OfferId, OfferRow] = {}
    for row in rows:
        offer = OfferId(str(row["offer_id"]))
        found[offer] = OfferRow(
            id=offer,
            show=ShowId(row["show_id"]),
            kind=row["kind"],
            audience=audience_from(row["offer_audience"]),
            audience_bit=row["audience_bit"],
            flash_fen=row["flash_fen"],
            quota=row["quota"],
            per_person=row["per_person"],
            status=row["offer_status"],
            ends_at=row["closes_at"],
            product=product_from(row),
        )
    return found


class PlanTerms(Struct, frozen=True):
    """The parts of a plan that prices, freight and points look at."""

    id: PlanId
    name: str
    fee_fen: int
    percent: int | None
    free_freight: bool
    points_bonus_percent: int


async def read_plans(conn: Connection, facts: Facts) -> tuple[PlanTerms | None, PlanTerms | None]:
    """The person's best plan for prices (or None), and the plan a person without one is shown (or None)."""
    rows = await (
        await conn.execute(
            "SELECT id, name, fee_fen, percent, free_freight, points_bonus_percent, on_sale FROM plans"
            " ORDER BY fee_fen, id"
        )
    ).fetchall()
    own: PlanTerms | None = None
    shown: PlanTerms | None = None
    for row in rows:
        plan = PlanTerms(
            PlanId(str(row["id"])),
            row["name"],
            row["fee_fen"],
            row["percent"],
            row["free_freight"],
            row["points_bonus_percent"],
        )
        if plan.id in facts.plans and (own is None or (plan.percent or 100) < (own.percent or 100)):
            own = plan
        if shown is None and row["on_sale"]:
            shown = plan
    return own, shown


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
    freight_fen: int
    total_fen: int
    plan_saves: PlanSaves | None = None


class PromisedLine(Struct, frozen=True):
    """A line as it was signed."""

    offer: OfferId
    quantity: int
    unit_fen: int
    winner: CandidateKind
    candidates: tuple[Candidate, ...]
    gift: bool


class Promise(Struct, frozen=True):
    """What a verified token says."""

    quote: str
    show: ShowId
    person: str
    lines: tuple[PromisedLine, ...]
    freight_fen: int
    expires_at: datetime


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
        currency: str = "CNY",
        freight: Freight | None = None,
        member_day: MemberDay | None = None,
        quote_s: int = QUOTE_S_MAX,
    ) -> None:
        if not 1 <= quote_s <= QUOTE_S_MAX:
            raise ValueError(f"quote_s is between 1 and {QUOTE_S_MAX}")
        # A key of its own: no other token of the house passes for a quote, and no quote for another.
        self._key = hmac.digest(secret.encode(), b"companion quote", hashlib.sha256)
        self._products = products
        self.currency = currency
        self.freight = freight or Freight()
        self.member_day = member_day
        self._quote_s = quote_s

    async def price(
        self,
        conn: Connection,
        facts: Facts,
        show: ShowId,
        offers: Sequence[OfferId],
        *,
        quoted: bool = False,
    ) -> PricedLines:
        """Price these offers for a person now.

        Raises NoSuchOffer for what the person may not know of. `quoted`: a quote proves that they might, and
        it is honoured when a plan lapses under it.
        """
        found = await read_offers(conn, show, offers)
        for offer in offers:
            row = found.get(offer)
            if row is None or not (quoted or (row.sold_to(facts) and row.product.status == "on")):
                raise NoSuchOffer
        clock = await (await conn.execute("SELECT clock_timestamp() AS now")).fetchone()
        assert clock is not None
        now: datetime = clock["now"]
        plan, shown = await read_plans(conn, facts)
        entries = await self._products.prices(conn, sorted({row.product.id for row in found.values()}))
        prices = {
            offer: decide(
                row.product,
                facts,
                row,
                plan,
                now,
                entries=entries[row.product.id],
                member_day=self.member_day,
            )
            for offer, row in found.items()
        }
        return PricedLines(found, prices, plan, shown, entries, now)

    async def quote(self, conn: Connection, actor: Actor, show: ShowId, lines: Sequence[LineInput]) -> Quote:
        """A signed promise for these lines to this person, valid for at most ten minutes.

        Raises BadRequest, NotFound (also for offers not for this person), OfferEnded, NotOnSale.
        """
        wanted = checked_lines(lines)
        priced = await self.price(conn, actor.facts, show, list(wanted))
        for offer in wanted:
            row = priced.offers[offer]
            if row.status != "open" or (row.ends_at is not None and priced.now >= row.ends_at):
                raise OfferEnded
            if not row.product.may_order(actor.facts, priced.now):
                raise NotOnSale
        quoted = tuple(_quoted(priced, offer, quantity, actor.facts) for offer, quantity in wanted.items())
        goods_fen = sum(line.line_fen for line in quoted)
        free_plan = priced.plan is not None and priced.plan.free_freight
        freight_fen = self.freight.of(goods_fen, free_plan)
        expires_at = priced.now + timedelta(seconds=self._quote_s)
        quote = new_id()
        token = jwt.encode(
            {
                "aud": "quote",
                "jti": quote,
                "sub": actor.member or actor.id,
                "show": show,
                "exp": int(expires_at.timestamp()),
                "freight": freight_fen,
                "lines": [
                    [
                        line.offer,
                        line.quantity,
                        line.unit_fen,
                        CANDIDATE_KINDS.index(line.winner),
                        [[CANDIDATE_KINDS.index(each.kind), each.unit_fen] for each in line.candidates],
                        int(line.gift_text is not None),
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
            freight_fen=freight_fen,
            total_fen=goods_fen + freight_fen,
            plan_saves=self._plan_saves(priced, wanted, actor.facts, goods_fen, freight_fen),
        )

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
                        CANDIDATE_KINDS[winner],
                        tuple(Candidate(CANDIDATE_KINDS[kind], fen) for kind, fen in candidates),
                        bool(gift),
                    )
                    for offer, quantity, unit_fen, winner, candidates, gift in claims["lines"]
                ),
                freight_fen=claims["freight"],
                expires_at=datetime.fromtimestamp(claims["exp"], tz=ZoneInfo("UTC")),
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
    ) -> PlanSaves | None:
        """For someone without a plan: the same lines as its member, where the member price may be seen."""
        plan = priced.shown_plan
        if plan is None or facts.plans:
            return None
        as_member = msgspec.structs.replace(facts, registered=True, plans=frozenset({plan.id}))
        goods_saved = gift_fen = 0
        for offer, quantity in wanted.items():
            row = priced.offers[offer]
            gift_fen += row.product.gift_value_fen * quantity * _gets_gift(row.product, as_member)
            gift_fen -= row.product.gift_value_fen * quantity * _gets_gift(row.product, facts)
            if not row.product.member_price_audience.has(facts):
                continue
            visible = [entry for entry in priced.entries[row.product.id] if entry.audience.kind != "list"]
            then = decide(
                row.product, as_member, row, plan, priced.now, entries=visible, member_day=self.member_day
            )
            goods_saved += (priced.prices[offer].unit_fen - then.unit_fen) * quantity
        goods_saved = max(0, goods_saved)
        freight_saved = freight_fen - self.freight.of(goods_fen - goods_saved, plan.free_freight)
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


def _gets_gift(product: Product, facts: Facts) -> bool:
    return product.gift_text is not None and product.gift_audience.has(facts)


def _quoted(priced: PricedLines, offer: OfferId, quantity: int, facts: Facts) -> QuotedLine:
    row, price = priced.offers[offer], priced.prices[offer]
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
    )
