"""The terms of a benefit: what it brings, how many, for whom, when, and needing what.

They are fixed when it opens; what may still change (the quota, a pause) changes in the viewer's favour.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from psycopg import Error as SqlError

from membership.actor import BenefitId, Facts, ProductId, ShowId
from membership.audience import EVERYONE, Audience
from membership.moment import in_ms
from membership.refusal import BadRequest, NotFound, Unavailable
from membership.transaction import Connection, Transaction

What = Literal["gift", "coupon", "points", "early_access", "free_order"]
Needs = Literal["nothing", "join", "order"]
Status = Literal["open", "paused", "closed"]

Transactions = Callable[[], AbstractAsyncContextManager[Transaction]]  # database.transaction

REGISTERED = Audience(kind="registered")
QUOTA_MAX = 100_000
SEAT_S = 300  # starting the payment takes a seat for five minutes
COUNTDOWN_S = (10, 300)  # shorter is no countdown, longer is an announcement
PRODUCTS_MAX = 20  # of one early access
POINTS_MAX = 1_000_000
CAP_FEN_MAX = 5_000_000  # 50,000 yuan: the most that one free order sends back
KEPT_MAX = 256  # benefits whose fixed terms one process keeps
TEND_AFTER_CLOSE_S = 3600  # seats run out within their seat_s; until then lost counters are built anew, too
LOOKED_AT_S = 60  # after it settled: a store that fails over may have lost its last writes
GONE_AFTER_S = 86_400  # after its close, one of whose show the store holds nothing has nothing left to settle

# The benefits that `agree`, `Seats.sweep` and `Claims.settle` see to each second.
TENDED = f"(settled_at IS NULL OR settled_at > now() - interval '{LOOKED_AT_S} s')"


class BenefitInput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The terms of a benefit, as staff or a prepared cue give them.

    `what` says which of `coupon_rule` (its id), `points`, `products` with `until` (ms; they may be ordered early
    until then) and `cap_fen` is needed. `needs: order` is a paid order in this show with at least `min_fen` paid
    for goods; `needs: join` is a first paid start of a plan, and with `renewals` any. `newly_joined_s`,
    `watched_s`, `first_order` narrow the audience; our own records decide.
    """

    title: Annotated[str, Meta(min_length=1, max_length=60)]
    text: Annotated[str, Meta(max_length=400)] = ""
    what: What = "gift"
    value_fen: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    quota: Annotated[int, Meta(ge=1, le=QUOTA_MAX)]
    per_person: Annotated[int, Meta(ge=1, le=100)] = 1
    needs: Needs = "nothing"
    audience: Audience = EVERYONE
    seconds: Annotated[int, Meta(ge=5, le=86_400)] | None = None
    seat_s: Annotated[int, Meta(ge=1, le=3600)] = SEAT_S
    coupon_rule: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    points: Annotated[int, Meta(ge=0, le=POINTS_MAX)] = 0
    products: Annotated[tuple[ProductId, ...], Meta(max_length=PRODUCTS_MAX)] = ()
    until: Annotated[int, Meta(ge=0, le=4_102_444_800_000)] | None = None
    cap_fen: Annotated[int, Meta(ge=0, le=CAP_FEN_MAX)] = 0
    min_fen: Annotated[int, Meta(ge=0, le=100_000_000)] = 0
    newly_joined_s: Annotated[int, Meta(ge=0, le=31_622_400)] = 0
    watched_s: Annotated[int, Meta(ge=0, le=86_400)] = 0
    first_order: bool = False
    renewals: bool = False
    starts_in_s: Annotated[int, Meta(ge=0, le=COUNTDOWN_S[1])] = 0


class Benefit(Struct, frozen=True, kw_only=True):
    """A benefit and its terms. Times are ms. `starts_at`: no claim before; None: since it was opened."""

    id: BenefitId
    show: ShowId
    title: str
    text: str
    what: What
    value_fen: int
    quota: int
    per_person: int
    needs: Needs
    audience: Audience
    seat_s: int
    status: Status
    pause_reason: str | None
    opened_at: int
    closes_at: int | None
    closed_at: int | None
    generation: int
    version: int
    coupon_rule: str | None = None
    points: int = 0
    products: tuple[ProductId, ...] = ()
    until: int | None = None
    cap_fen: int = 0
    min_fen: int = 0
    newly_joined_s: int = 0
    watched_s: int = 0
    first_order: bool = False
    renewals: bool = False
    starts_at: int | None = None

    @property
    def is_booked(self) -> bool:
        """Whether a claim brings what is booked at once. A gift, and what is only named, goes with a parcel."""
        return bool(self.coupon_rule or self.points or self.products or self.cap_fen)

    @property
    def is_conditional(self) -> bool:
        """Whether more than the audience decides who may have it."""
        return bool(self.newly_joined_s or self.watched_s or self.first_order or self.needs == "order")


def checked_terms(terms: BenefitInput) -> BenefitInput:
    """Terms that make sense together, the value that follows from them filled in. Raises BadRequest."""
    if not terms.title.strip():
        raise BadRequest("A benefit needs a title.")
    if terms.needs == "join":
        if terms.per_person != 1:
            raise BadRequest("A benefit for joining is given once to a person.")
        if _depends_on_plans(terms.audience):
            raise BadRequest("A benefit for joining cannot depend on having a plan: joining changes that.")
        if terms.newly_joined_s or terms.watched_s:
            raise BadRequest("A benefit for joining asks for joining, wherever the payment is made.")
        if terms.starts_in_s:
            raise BadRequest("A benefit for joining counts from the show's start: it has no countdown.")
    if terms.renewals and terms.needs != "join":
        raise BadRequest("renewals says who joins: it goes with needs: join.")
    if terms.starts_in_s and terms.starts_in_s < COUNTDOWN_S[0]:
        raise BadRequest(f"A countdown lasts {COUNTDOWN_S[0]} to {COUNTDOWN_S[1]} seconds.")
    if terms.min_fen and terms.needs != "order":
        raise BadRequest("min_fen is the least that an order comes to: it goes with needs: order.")
    given: dict[What, bool] = {
        "coupon": terms.coupon_rule is not None,
        "points": terms.points > 0,
        "early_access": bool(terms.products),
        "free_order": terms.cap_fen > 0,
    }
    fields = {
        "coupon": "coupon_rule",
        "points": "points",
        "early_access": "products",
        "free_order": "cap_fen",
    }
    for what, has in given.items():
        if has != (terms.what == what):
            raise BadRequest(
                f"{fields[what]} goes with what: {what}, and is needed for it.", field=fields[what]
            )
    if terms.until is not None and terms.what != "early_access":
        raise BadRequest("until goes with what: early_access.", field="until")
    if terms.what == "free_order" and terms.needs != "order":
        raise BadRequest("A free order sends an order's money back: it needs an order.")
    follows = {"points": terms.points, "free_order": terms.cap_fen}.get(terms.what)  # 100 points are 1 yuan
    if follows is not None and terms.value_fen not in (0, follows):
        raise BadRequest(f"The value of this benefit is {follows} fen: it follows from what it brings.")
    return msgspec.structs.replace(
        terms, title=terms.title.strip(), value_fen=terms.value_fen if follows is None else follows
    )


def may_have(audience: Audience, facts: Facts) -> bool:
    """Whether a benefit for `audience` is for this person. A trial and a grace give no part in the first N."""
    if facts.on_trial or facts.in_grace:
        facts = msgspec.structs.replace(facts, plans=frozenset())
    return audience.has(facts)


async def read_terms(conn: Connection, benefit: BenefitId) -> Benefit:
    """The terms of one benefit. Raises NotFound, also for what is no id at all."""
    found = await conn.execute("SELECT * FROM benefits WHERE id = %s", [known_shape(benefit)])
    row = await found.fetchone()
    if row is None:
        raise NotFound
    return benefit_of(row)


class FixedTerms:
    """What never changes once a benefit is open (show, audience, needs, per person), read once a process."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self._kept: dict[BenefitId, Benefit] = {}

    async def get(self, show: ShowId, benefit: BenefitId) -> Benefit:
        """Raises NotFound, also for another show's benefit; Unavailable when PostgreSQL does not answer."""
        terms = self._kept.get(benefit)
        if terms is None:
            try:
                async with self._transactions() as t:
                    terms = await read_terms(t.conn, benefit)
            except SqlError as error:
                raise Unavailable(retry_ms=1000) from error
            if len(self._kept) >= KEPT_MAX:
                self._kept.pop(next(iter(self._kept)))
            self._kept[benefit] = terms
        if terms.show != show:
            raise NotFound
        return terms


def known_shape(benefit: BenefitId) -> uuid.UUID:
    """Raises NotFound for what is no id."""
    try:
        return uuid.UUID(benefit)
    except ValueError as error:
        raise NotFound from error


def benefit_of(row: dict[str, Any]) -> Benefit:
    """A Benefit from its row."""
    return Benefit(
        id=BenefitId(str(row["id"])),
        show=ShowId(row["show_id"]),
        title=row["title"],
        text=row["body"],
        what=row["what"],
        value_fen=row["value_fen"],
        quota=row["quota"],
        per_person=row["per_person"],
        needs=row["needs"],
        audience=msgspec.convert(row["audience"], Audience),
        seat_s=row["seat_s"],
        status=row["status"],
        pause_reason=row["pause_reason"],
        opened_at=in_ms(row["opened_at"]),
        closes_at=in_ms(row["closes_at"]) if row["closes_at"] else None,
        closed_at=in_ms(row["closed_at"]) if row["closed_at"] else None,
        generation=row["generation"],
        version=row["version"],
        coupon_rule=str(row["coupon_rule"]) if row["coupon_rule"] else None,
        points=row["points"],
        products=tuple(ProductId(str(product)) for product in row["products"]),
        until=in_ms(row["until_at"]) if row["until_at"] else None,
        cap_fen=row["cap_fen"],
        min_fen=row["min_fen"],
        newly_joined_s=row["newly_joined_s"],
        watched_s=row["watched_s"],
        first_order=row["first_order"],
        renewals=row["renewals"],
        starts_at=in_ms(row["starts_at"]) if row["starts_at"] else None,
    )


def _depends_on_plans(audience: Audience) -> bool:
    if audience.kind in ("plan_members", "plans"):
        return True
    return audience.exclude is not None and _depends_on_plans(audience.exclude)
