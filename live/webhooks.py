"""What payment providers tell us, signed by Standard Webhooks; verified before a byte of it is believed."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from commerce.sandbox import SandboxProvider
from live.http import Answer, Body, Context
from membership.actor import PaymentId
from membership.refusal import BadRequest, NotFound


class PaymentData(msgspec.Struct, frozen=True, kw_only=True):
    """A payment as the provider has it."""

    ref: Annotated[str, Meta(min_length=1, max_length=200)]
    order: Annotated[str, Meta(min_length=1, max_length=200)]
    amount_fen: Annotated[int, Meta(ge=0, le=100_000_000_000)]
    payer: Annotated[str, Meta(max_length=200)]
    paid_at: datetime


class PaymentNews(Body, frozen=True, kw_only=True):
    """A webhook in the form of Standard Webhooks."""

    type: Literal["payment.succeeded"]
    timestamp: datetime
    data: PaymentData


class PaymentNoted(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """What became of the payment. Said again for the same reference, it changes nothing; news of another
    kind are taken note of by doing nothing."""

    payment: PaymentId | None = None
    outcome: Literal["accepted", "returned", "quarantined"] | None = None
    reason: str | None = None
    again: bool = False


async def note_sandbox_payment(ctx: Context) -> PaymentNoted:
    """The sandbox provider says that a payment succeeded.

    Headers: `webhook-id`, `webhook-timestamp`, `webhook-signature`. The provider's clock decides nothing: a
    rank is given when our record commits.
    """
    provider = ctx.parts.provider
    if not isinstance(provider, SandboxProvider):
        raise NotFound("No sandbox is used here.")
    found = provider.read_webhook(ctx.request.headers, ctx.raw)
    if found is None:
        return PaymentNoted()
    if found.paid_at.tzinfo is None:
        raise BadRequest("paid_at needs its offset from UTC.")
    async with ctx.transaction() as t:
        noted = await ctx.parts.payments.record(
            t, provider.name, found.ref, found.order, found.amount_fen, found.payer, found.paid_at
        )
    return PaymentNoted(payment=noted.payment, outcome=noted.outcome, reason=noted.reason, again=noted.again)
