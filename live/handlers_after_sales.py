"""After the order: what sending costs, what was sent, what a buyer asks for, what goes back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from msgspec import Meta

from commerce.after_sales import NOTE_CHARS_MAX, Case, CaseAct, CaseInput, CaseState
from commerce.freight import ROWS_MAX as FREIGHT_ROWS_MAX
from commerce.freight import FreightRow
from commerce.fulfilment import ROWS_MAX, ParcelOutcome, ParcelRow
from commerce.order_book import Order
from commerce.orders import NotPaid
from commerce.plan_refunds import WHOLE_DAYS, Bill, Later
from commerce.refund_lines import AlreadyRefunded, RefundedLine
from commerce.refunds import Refunded
from live.http import (
    Answer,
    Body,
    Context,
    IdText,
    KeyText,
    PageQuery,
    Raw,
    ShowText,
    media_of,
    refusal_noted,
)
from membership.actor import OrderId, PlanId, ShowId
from membership.members import display_name, mask_phone
from membership.moment import in_ms
from membership.page import Page
from membership.plans import Term
from membership.refusal import BadRequest

# -- cases -----------------------------------------------------------------------------------------


class CasesQuery(PageQuery, frozen=True, kw_only=True):
    state: CaseState | None = None
    order: IdText | None = None


class CaseDecision(Body, frozen=True, kw_only=True):
    """`refund`: what was paid for the pieces goes back, or `amount_fen` while the goods stay with the buyer.
    `restock`: the pieces lie on the shelf again. The note is read by the buyer."""

    act: CaseAct
    note: Annotated[str, Meta(min_length=1, max_length=NOTE_CHARS_MAX)]
    amount_fen: Annotated[int, Meta(ge=1, le=100_000_000_000)] | None = None
    restock: bool = False


class CaseRefund(Answer, frozen=True, kw_only=True):
    """Before a case is settled: the order, its buyer (the phone masked), and what a refund of the case's goods
    would send back now. Line 0 is the freight; no lines: nothing of these goods can go back any more."""

    order: Order
    buyer: str
    phone: str | None
    lines: tuple[RefundedLine, ...]
    money_fen: int
    points: int


async def open_case(ctx: Context, body: CaseInput) -> Case:
    """Ask for something about goods of a paid order. A line has one open case at a time."""
    async with ctx.transaction() as t:
        return await ctx.parts.after_sales.open(t, ctx.actor, OrderId(ctx.path["order"]), body)


async def list_my_cases(ctx: Context, query: PageQuery) -> Page[Case]:
    """What one has asked for, newest first, with what came of it."""
    async with ctx.reading() as conn:
        return await ctx.parts.after_sales.of_member(conn, ctx.member, query.cursor, query.limit)


async def add_case_photo(ctx: Context) -> Case:
    """Add a photo to an open case: the file itself as the body. What it is, its first bytes say."""
    async with ctx.transaction() as t:
        return await ctx.parts.after_sales.add_photo(
            t, ctx.actor, ctx.path["case"], media_of(ctx.request), ctx.raw
        )


async def read_my_photo(ctx: Context) -> Raw:
    """A photo of one's own case."""
    return await _photo(ctx)


async def withdraw_case(ctx: Context) -> Case:
    """Take a case back; again changes nothing."""
    async with ctx.transaction() as t:
        return await ctx.parts.after_sales.withdraw(t, ctx.actor, ctx.path["case"])


async def list_cases(ctx: Context, query: CasesQuery) -> Page[Case]:
    """What buyers ask for, oldest first."""
    order = OrderId(query.order) if query.order else None
    async with ctx.reading() as conn:
        return await ctx.parts.after_sales.all(
            conn, ctx.actor, query.cursor, query.limit, state=query.state, order=order
        )


async def read_case(ctx: Context) -> Case:
    """One case."""
    async with ctx.reading() as conn:
        return await ctx.parts.after_sales.get(conn, ctx.actor, ctx.path["case"])


async def read_case_refund(ctx: Context) -> CaseRefund:
    """What a refund of the case's goods would send back now, of which order, and to whom. Nothing is done."""
    async with ctx.transaction() as t:
        case = await ctx.parts.after_sales.get(t.conn, ctx.actor, ctx.path["case"])
        pieces = {line.position: line.quantity for line in case.lines}
        try:
            lines = await ctx.parts.refunds.would_send(t, ctx.actor, case.order, pieces)
        except (AlreadyRefunded, NotPaid):
            lines = ()
        member = await ctx.parts.members.by_id(t.conn, case.member)
        return CaseRefund(
            order=await ctx.parts.orders.get(t.conn, ctx.actor, case.order),
            buyer=display_name(member),
            phone=mask_phone(member.phone) if member.phone else None,
            lines=lines,
            money_fen=sum(line.money_fen for line in lines),
            points=sum(line.points for line in lines),
        )


async def read_case_photo(ctx: Context) -> Raw:
    """A photo of a case, for staff."""
    return await _photo(ctx)


async def _photo(ctx: Context) -> Raw:
    async with ctx.reading() as conn:
        media, image = await ctx.parts.after_sales.photo(conn, ctx.actor, ctx.path["case"], ctx.path["photo"])
    # What a buyer sent is shown as a picture and as nothing else.
    return Raw(image, media, {"content-disposition": "inline", "content-security-policy": "sandbox"})


async def decide_case(ctx: Context, body: CaseDecision) -> Case:
    """Settle or decline a case, once; the buyer is told, and the act is audited."""
    case = ctx.path["case"]
    async with refusal_noted(ctx, f"case.{body.act}", f"case:{case}"), ctx.transaction() as t:
        return await ctx.parts.after_sales.decide(
            t,
            ctx.actor,
            case,
            body.act,
            body.note,
            amount_fen=body.amount_fen,
            restock=body.restock,
        )


# -- refunds ---------------------------------------------------------------------------------------


class RefundPieces(Body, frozen=True, kw_only=True):
    position: Annotated[int, Meta(ge=1, le=100)]
    quantity: Annotated[int, Meta(ge=1, le=9999)]


class RefundBody(Body, frozen=True, kw_only=True):
    """Pieces of lines (left out: all that is left), or a sum while the goods stay with the buyer."""

    lines: Annotated[list[RefundPieces], Meta(min_length=1, max_length=20)] | None = None
    amount_fen: Annotated[int, Meta(ge=1, le=100_000_000_000)] | None = None
    restock: bool = False
    key: KeyText | None = None


async def refund_lines(ctx: Context, body: RefundBody) -> Refunded:
    """Send back part of a paid order. The same key again gives the same answer; a piece goes back once."""
    key = ctx.key or body.key
    if key is None:
        raise BadRequest("Send an Idempotency-Key (or `key`), kept until it is answered.")
    wanted = None if body.lines is None else {each.position: each.quantity for each in body.lines}
    if body.lines is not None and len(wanted or ()) != len(body.lines):
        raise BadRequest("the same line stands twice", field="lines")
    if body.amount_fen is not None and body.restock:
        raise BadRequest("goods that stay with the buyer are not put back", field="restock")
    order, refunds = OrderId(ctx.path["order"]), ctx.parts.refunds
    async with refusal_noted(ctx, "order.refund_part", f"order:{order}"), ctx.transaction() as t:
        if body.amount_fen is not None:
            positions = None if wanted is None else tuple(wanted)
            return await refunds.give(t, ctx.actor, order, body.amount_fen, f"staff:{key}", positions)
        return await refunds.lines(t, ctx.actor, order, wanted, f"staff:{key}", restock=body.restock)


# -- sending ---------------------------------------------------------------------------------------


class FulfilmentQuery(Body, frozen=True, kw_only=True):
    show: ShowText | None = None


class ParcelsBody(Body, frozen=True, kw_only=True):
    rows: Annotated[list[ParcelRow], Meta(min_length=1, max_length=ROWS_MAX)]


class ParcelsAnswer(Answer, frozen=True, kw_only=True):
    """What became of each row, in order; a refused one leaves the others standing."""

    rows: tuple[ParcelOutcome, ...]


class FreightBody(Body, frozen=True, kw_only=True):
    """The whole template; a row with an empty region is for the rest. No rows: the house's flat amount."""

    rows: Annotated[list[FreightRow], Meta(max_length=FREIGHT_ROWS_MAX)]


class FreightAnswer(Answer, frozen=True, kw_only=True):
    rows: tuple[FreightRow, ...]


async def read_fulfilment(ctx: Context, query: FulfilmentQuery) -> Raw:
    """What is paid and not sent, as CSV for the warehouse: early orders first. That it was taken is audited.
    Rows with a `claim` are gifts that were won: they have no order.

    At most 20,000 rows; `companion-more: yes` says that there are more, to be fetched when these were sent.
    """
    show = ShowId(query.show) if query.show else None
    async with ctx.transaction() as t:
        table, more = await ctx.parts.fulfilment.table(t.conn, ctx.actor, show)
        await ctx.audit(t, "fulfilment.read", f"show:{show}" if show else "orders")
    name = f"fulfilment-{show or 'all'}-{datetime.now(UTC):%Y%m%d-%H%M}.csv"
    return Raw(
        table,
        "text/csv",
        {"content-disposition": f'attachment; filename="{name}"', "companion-more": "yes" if more else "no"},
    )


async def note_parcels(ctx: Context, body: ParcelsBody) -> ParcelsAnswer:
    """What was sent, with its tracking numbers; the buyers are told. The same parcel again changes nothing.

    A gift that a claim won is sent by `claim`, without an order.
    """
    async with ctx.transaction() as t:
        return ParcelsAnswer(rows=await ctx.parts.fulfilment.take_in(t, ctx.actor, body.rows))


async def read_freight(ctx: Context) -> FreightAnswer:
    """What sending costs by region, and where we send at all."""
    async with ctx.reading() as conn:
        return FreightAnswer(rows=await ctx.parts.quotes.freight.rows(conn))


async def put_freight(ctx: Context, body: FreightBody) -> FreightAnswer:
    """Set the freight template. Open quotes and orders keep what they were promised."""
    async with ctx.transaction() as t:
        rows = await ctx.parts.quotes.freight.set(t, ctx.actor, body.rows)
        await ctx.audit(t, "freight.set", "freight", {"rows": len(rows)})
    return FreightAnswer(rows=rows)


# -- giving a plan back ----------------------------------------------------------------------------


class RefundRule(Answer, frozen=True, kw_only=True):
    """How a plan may be given back, to be shown before it is paid: within `whole_days` and nothing used, all of
    it; otherwise the fee less savings taken and the stated value of gifts not returned. `later`: after that,
    cancelled for its end, or the part of the fee for the time left."""

    whole_days: int
    later: Later


class PlanBack(Body, frozen=True, kw_only=True):
    """The sum that was shown; nothing is done for another."""

    payable_fen: Annotated[int, Meta(ge=0, le=100_000_000_000)]


class PlanEnd(Answer, frozen=True, kw_only=True):
    """When the plan ends, and whether it was cancelled for then."""

    plan: PlanId
    plan_name: str
    ends_at: int  # ms
    cancelled: bool


async def read_refund_rule(ctx: Context) -> RefundRule:
    """How a plan may be given back: for everyone, before paying."""
    return RefundRule(whole_days=WHOLE_DAYS, later=ctx.parts.plan_refunds.later)


async def read_plan_bill(ctx: Context) -> Bill:
    """What giving one's plan back would bring now, item by item. Nothing is done."""
    async with ctx.reading() as conn:
        return await ctx.parts.plan_refunds.bill(conn, ctx.actor)


async def refund_my_plan(ctx: Context, body: PlanBack) -> Bill:
    """Give the plan back for the sum shown. Orders already placed keep their price."""
    async with ctx.transaction() as t:
        return await ctx.parts.plan_refunds.refund(t, ctx.actor, body.payable_fen)


async def cancel_my_plan(ctx: Context) -> PlanEnd:
    """Cancel the plan for its end; all of it holds until then. Again changes nothing."""
    async with ctx.transaction() as t:
        return _plan_end(await ctx.parts.plans.cancel(t, ctx.member))


async def undo_cancel_plan(ctx: Context) -> PlanEnd:
    """Keep the plan after all, until its end."""
    async with ctx.transaction() as t:
        return _plan_end(await ctx.parts.plans.undo_cancel(t, ctx.member))


def _plan_end(term: Term) -> PlanEnd:
    return PlanEnd(
        plan=term.plan,
        plan_name=term.plan_name,
        ends_at=in_ms(term.until),
        cancelled=term.cancelled,
    )
