"""The shapes of trade on the wire: commands (imperative) and events (past tense).

Shapes only; the rules stand in offers.py, orders.py, claims.py and benefits.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from membership.actor import BenefitId, OfferId, OrderId, ProductId

LINES_MAX = 10  # offers in one order: its signed quote must fit a command of 4,096 bytes
QUANTITY_MAX = 99  # pieces of one offer in one order

Key = Annotated[str, Meta(min_length=1, max_length=64)]
IdText = Annotated[str, Meta(min_length=1, max_length=64)]
CloseReason = Literal["staff", "time", "replaced", "show"]


class Command(Struct, tag_field="type", frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a viewer asks for. `id` is the connection's own number and is always answered."""

    id: int
    key: Key | None = None


class LineInput(Struct, frozen=True, forbid_unknown_fields=True):
    """So many pieces of one offer."""

    offer: Annotated[str, Meta(min_length=1, max_length=64)]
    quantity: Annotated[int, Meta(ge=1, le=QUANTITY_MAX)]


class PlaceOrder(Command, tag="order.place", frozen=True, kw_only=True):
    """Buy the quoted lines. `quote` is the signed token of a quote: no price is taken from the client.
    `key` is required."""

    quote: Annotated[str, Meta(min_length=1, max_length=4000)]
    address: IdText
    lines: Annotated[list[LineInput], Meta(min_length=1, max_length=LINES_MAX)] | None = None


class ClaimBenefit(Command, tag="benefit.claim", frozen=True, kw_only=True):
    """Take one of a benefit that needs no joining. `key` is required."""

    benefit: IdText


class QueueBenefit(Command, tag="benefit.queue", frozen=True, kw_only=True):
    """Stand in line for a seat that may come back (after `reserved_out`)."""

    benefit: IdText


class Event(Struct, tag_field="type", frozen=True, kw_only=True):
    """A numbered event of the show's log. The store adds `at`, the hub `seq`."""

    seq: int | UnsetType = UNSET
    at: int | UnsetType = UNSET


class OfferOpened(Event, tag="offer.opened", frozen=True, kw_only=True):
    """A product was put on offer (state `offer:<id>`). Urgent."""

    offer: OfferId
    kind: Literal["pin", "flash"]
    product: ProductId
    name: str
    closes_at: int | UnsetType = UNSET


class OfferClosed(Event, tag="offer.closed", frozen=True, kw_only=True):
    """An offer ended; its state is gone. Open quotes are honoured until they expire. Urgent."""

    offer: OfferId
    reason: CloseReason


class OfferSoldOut(Event, tag="offer.sold_out", frozen=True, kw_only=True):
    """Every piece of the offer's quota is paid for: none can come back. Urgent."""

    offer: OfferId


class BenefitOpened(Event, tag="benefit.opened", frozen=True, kw_only=True):
    """A benefit was opened (state `benefit:<id>`). `confirmed`: tonight's earlier joins, ranked first. Urgent."""

    benefit: BenefitId
    title: str
    value_fen: int
    quota: int
    needs: Literal["nothing", "join", "order"]
    confirmed: int
    starts_at: int | UnsetType = UNSET
    closes_at: int | UnsetType = UNSET


class BenefitRaised(Event, tag="benefit.raised", frozen=True, kw_only=True):
    """There are more of it; a quota never falls. Urgent."""

    benefit: BenefitId
    quota: int
    before: int


class BenefitPaused(Event, tag="benefit.paused", frozen=True, kw_only=True):
    """Nothing new is given for now, for this reason. Held seats stay held. Urgent."""

    benefit: BenefitId
    reason: str


class BenefitResumed(Event, tag="benefit.resumed", frozen=True, kw_only=True):
    """It goes on; who stands in line is served first. Urgent."""

    benefit: BenefitId


class BenefitClosed(Event, tag="benefit.closed", frozen=True, kw_only=True):
    """No claim and no new seat from now on; held seats run on to their time. Urgent."""

    benefit: BenefitId


class BenefitClaimed(Event, tag="benefit.claimed", frozen=True, kw_only=True):
    """Someone has it, with this rank: the record is committed."""

    benefit: BenefitId
    rank: int
    of: int
    name: str


class BenefitSoldOut(Event, tag="benefit.sold_out", frozen=True, kw_only=True):
    """All of it is confirmed: none can come back. Urgent."""

    benefit: BenefitId
    of: int


class OrderPlaced(Event, tag="order.placed", frozen=True, kw_only=True):
    """Someone ordered; the order is durable and its pieces are held for ten minutes."""

    name: str
    offer: OfferId
    product: ProductId
    product_name: str
    quantity: int


class OrderPaid(Event, tag="order.paid", frozen=True, kw_only=True):
    """Someone's order was paid."""

    name: str
    offer: OfferId
    product: ProductId
    product_name: str
    quantity: int


class PlanJoined(Event, tag="plan.joined", frozen=True, kw_only=True):
    """Someone's paid plan started or was renewed in this show."""

    name: str
    plan_name: str
    first: bool


class IncidentBegan(Event, tag="incident.began", frozen=True, kw_only=True):
    """Selling is paused everywhere, for this reason: nothing is given, held or started. Urgent."""

    reason: str


class IncidentEnded(Event, tag="incident.ended", frozen=True, kw_only=True):
    """Selling goes on as it was. Urgent."""


class OrderChanged(Struct, tag_field="type", tag="order.changed", frozen=True, kw_only=True):
    """Personal: the state of one's own order. `returning_fen` is money on its way back."""

    order: OrderId
    kind: Literal["goods", "plan"]
    state: str
    hold_until: int
    returning_fen: int = 0


class CaseChanged(Struct, tag_field="type", tag="case.changed", frozen=True, kw_only=True):
    """Personal: what became of what one asked for after a sale."""

    case: str
    order: OrderId
    state: Literal["open", "settled", "declined", "withdrawn"]
    act: Literal["refund", "decline", "resend"] | None = None


class BenefitMissed(Struct, tag_field="type", tag="benefit.missed", frozen=True, kw_only=True):
    """Personal: the plan is paid, without the gift. Late money may go back in full, by one tap, until then."""

    benefit: BenefitId
    why: Literal["sold_out", "reserved_out", "closed", "already_claimed"]
    refund_until: int | None = None


def encoded(event: Struct) -> bytes:
    """The event as the log wants it: an object that begins with its type."""
    return msgspec.json.encode(event)
