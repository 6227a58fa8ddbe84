"""Prices: one rounding function and one decision.

The lowest candidate wins; candidates never multiply, and none can raise a price. A flash piece is used only
when the flash price is below every other candidate. Promises of prices are in quotes.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Literal, Protocol
from zoneinfo import ZoneInfo

from msgspec import Struct

from commerce.products import PriceEntry, Product, audience_from, product_from
from membership.actor import Facts, OfferId, PlanId, ShowId, is_id
from membership.audience import PLAN_MEMBERS, Audience
from membership.refusal import NotFound, Refusal
from membership.transaction import Connection

CandidateKind = Literal[
    "list", "price_list", "member", "plan_percent", "tier", "member_day", "group", "flash"
]
# The order decides a tie: flash last, so that an equal price uses no flash piece.
CANDIDATE_KINDS: tuple[CandidateKind, ...] = (
    "list",
    "price_list",
    "member",
    "plan_percent",
    "tier",
    "member_day",
    "group",
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

    def began(self, now: datetime) -> datetime:
        """The midnight with which the day of this moment began."""
        return now.astimezone(ZoneInfo(self.zone)).replace(hour=0, minute=0, second=0, microsecond=0)


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
    quantity: int = 1,
) -> Priced:
    """The price of one unit for this person now: every candidate, the lowest wins, never multiplied.

    `plan` is the person's active plan. Its percentage counts only where the product has no member price of
    its own. `quantity`: of the product in the whole order; a group price is a candidate from its own number on.
    """
    candidates = [Candidate("list", product.list_fen)]
    own_member_price = False
    if product.member_fen is not None:
        own_member_price = True
        if facts.plans:
            candidates.append(Candidate("member", product.member_fen))
    for entry in entries:
        kind: CandidateKind = "group" if entry.min_quantity > 1 else _entry_kind(entry.audience)
        own_member_price = own_member_price or (kind == "member" and entry.from_at <= now)
        if entry.holds(facts, now) and quantity >= entry.min_quantity:
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
    opened_at: datetime
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
                   o.flash_fen, o.quota, o.per_person, o.status AS offer_status, o.closes_at, o.opened_at, p.*,
                   free_pieces(p) AS free
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
            opened_at=row["opened_at"],
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
