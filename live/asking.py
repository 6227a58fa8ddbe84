"""What a second person must grant: the refusal of an act becomes an ask, in a transaction of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from commerce.approvals import NeedsApproval

if TYPE_CHECKING:
    from live.http import Context


@asynccontextmanager
async def asking(ctx: Context) -> AsyncIterator[None]:
    """Around an act's transaction: what was refused is rolled back by then, and the ask is kept.

    Raises the refusal again, with the id by which a second person grants it.
    """
    try:
        yield
    except NeedsApproval as refusal:
        if refusal.ask is None:
            raise
        async with ctx.transaction() as t:
            approval, new = await ctx.parts.approvals.ask(t, ctx.actor, refusal.ask)
            if new:
                await ctx.audit(
                    t,
                    "approval.ask",
                    f"approval:{approval.id}",
                    {"act": approval.act, "subject": approval.subject, "show": approval.show},
                )
        raise refusal.carrying(approval) from None
