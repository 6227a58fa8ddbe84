"""Guards over HTTP: approvals, budgets, the cost meter, the incident switch. Each act is in the audit log."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from commerce.approvals import Approval, ApprovalState
from commerce.budgets import LIMIT_MAX_FEN, Budget, Scope
from commerce.costs import ShowCosts
from commerce.incidents import Incident
from commerce.payment_health import PaymentHealth, read_health
from live.handlers_shows import own_show
from live.http import Answer, Body, Context, PageQuery
from membership.actor import BenefitId, ShowId
from membership.page import Page
from membership.refusal import Forbidden
from membership.transaction import Connection

# -- approvals -------------------------------------------------------------------------------------


class ApprovalsQuery(PageQuery, frozen=True, kw_only=True):
    state: ApprovalState | None = None


class ApprovalBody(Body, frozen=True, kw_only=True):
    grant: bool
    note: Annotated[str, Meta(max_length=200)] = ""


async def list_approvals(ctx: Context, query: ApprovalsQuery) -> Page[Approval]:
    """What staff asked for and what became of it, newest first; for staff of one room, that room's."""
    async with ctx.reading() as conn:
        return await ctx.parts.approvals.list(
            conn, query.state, room=ctx.actor.room, cursor=query.cursor, limit=query.limit
        )


async def read_approval(ctx: Context) -> Approval:
    """One ask with its rules: what is broken, and by how much."""
    async with ctx.reading() as conn:
        return await _own_approval(ctx, conn)


async def decide_approval(ctx: Context, body: ApprovalBody) -> Approval:
    """Grant or decline what another asked for. The one who asked then does the same again, once."""
    async with ctx.transaction() as t:
        found = await _own_approval(ctx, t.conn)
        decided = await ctx.parts.approvals.decide(t, ctx.actor, found.id, grant=body.grant, note=body.note)
        await ctx.audit(
            t,
            "approval.grant" if body.grant else "approval.decline",
            f"approval:{decided.id}",
            {"act": decided.act, "subject": decided.subject, "asked_by": decided.asked_by},
        )
    return decided


async def _own_approval(ctx: Context, conn: Connection) -> Approval:
    found = await ctx.parts.approvals.get(conn, ctx.path["approval"])
    if ctx.actor.room is not None:
        if found.show is None:
            raise Forbidden("This concerns the whole shop; you work in one room.")
        await own_show(ctx, conn, found.show)
    return found


# -- budgets and costs -----------------------------------------------------------------------------


SubjectText = Annotated[str, Meta(pattern="^[a-z0-9-]{4,40}$")]


class BudgetsQuery(PageQuery, frozen=True, kw_only=True):
    show: SubjectText


class BudgetBody(Body, frozen=True, kw_only=True):
    """A limit for a benefit, a show or a month (2026-11); null takes it off, and the default holds."""

    scope: Scope
    subject: SubjectText
    limit_fen: Annotated[int, Meta(ge=0, le=LIMIT_MAX_FEN)] | None


async def list_budgets(ctx: Context, query: BudgetsQuery) -> Page[Budget]:
    """The limits that bear on a show: of this month, its own, and those of its benefits."""
    async with ctx.reading() as conn:
        show = await own_show(ctx, conn, ShowId(query.show))
        return Page(tuple(await ctx.parts.budgets.of_show(conn, show.id)))


async def set_budget(ctx: Context, body: BudgetBody) -> Budget:
    """Set a limit, or take it off. What is bound already stays."""
    async with ctx.transaction() as t:
        if body.scope == "show":
            await own_show(ctx, t.conn, ShowId(body.subject))
        elif body.scope == "benefit":
            benefit = await ctx.parts.benefits.get(t.conn, BenefitId(body.subject))
            await own_show(ctx, t.conn, benefit.show)
        elif ctx.actor.room is not None:
            raise Forbidden("A month's budget is the whole shop's; you work in one room.")
        budget = await ctx.parts.budgets.set(t, ctx.actor, body.scope, body.subject, body.limit_fen)
        await ctx.audit(t, "budget.set", f"{body.scope}:{body.subject}", {"limit_fen": body.limit_fen})
    return budget


async def read_costs(ctx: Context) -> ShowCosts:
    """The cost meter: what the show binds, has given away and has earned, now."""
    async with ctx.reading() as conn:
        await own_show(ctx, conn, ctx.show)
        return await ctx.parts.costs.of_show(conn, ctx.show)


# -- the incident switch ---------------------------------------------------------------------------


class IncidentBody(Body, frozen=True, kw_only=True):
    reason: Annotated[str, Meta(min_length=1, max_length=200, description="Shown to viewers")]
    extend_s: Annotated[int, Meta(ge=0, le=900, description="Unpaid holds are prolonged by it, once")] = 600


class IncidentNow(Answer, frozen=True, kw_only=True):
    """The incident that is on, if any, and how payments fare."""

    incident: Incident | None
    payments: PaymentHealth


async def read_incident(ctx: Context) -> IncidentNow:
    """Whether selling is paused, and whether payments come through."""
    async with ctx.reading() as conn:
        return IncidentNow(
            incident=await ctx.parts.incidents.now(conn),
            payments=await read_health(conn, ctx.parts.provider.name),
        )


async def begin_incident(ctx: Context, body: IncidentBody) -> Incident:
    """Pause everything that is sold or given, in every show, and prolong unpaid holds once. Again is the same."""
    async with ctx.transaction() as t:
        before = await ctx.parts.incidents.now(t.conn)
        incident = await ctx.parts.incidents.begin(t, ctx.actor, body.reason, body.extend_s)
        if before is None:
            await ctx.audit(
                t,
                "incident.begin",
                f"incident:{incident.id}",
                {"reason": incident.reason, "extend_s": incident.extend_s, "extended": incident.extended},
            )
    return incident


async def end_incident(ctx: Context) -> Incident:
    """Everything goes on as it was, with the time it had left; what somebody had paused stays paused."""
    async with ctx.transaction() as t:
        incident = await ctx.parts.incidents.end(t, ctx.actor, ctx.parts.benefits.put_in_force)
        await ctx.audit(t, "incident.end", f"incident:{incident.id}")
    return incident
