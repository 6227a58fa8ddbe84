"""What payment providers tell us: verified before a byte of it is believed.

A webhook that is refused is audited, at most one row in ten seconds for each provider and word: whoever
forges them can fill neither the log nor the database.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from commerce.payments import FoundReturn
from live.http import Answer, Body, Context
from membership.actor import Actor, PaymentId
from membership.refusal import NotFound, Refusal, Unavailable

AUDIT_S: Final = 10.0

LISTENER: Final = Actor(kind="job", id="webhooks", name="webhooks")


class PaymentData(msgspec.Struct, frozen=True, kw_only=True):
    """A payment as the sandbox has it; or a return of it, which names our key."""

    ref: Annotated[str, Meta(min_length=1, max_length=200)]
    amount_fen: Annotated[int, Meta(ge=0, le=100_000_000_000)]
    order: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    payer: Annotated[str, Meta(max_length=200)] | None = None
    paid_at: datetime | None = None
    key: Annotated[str, Meta(max_length=64)] | None = None
    return_ref: Annotated[str, Meta(max_length=200)] | None = None
    declined: Annotated[str, Meta(max_length=200)] | None = None


class PaymentNews(Body, frozen=True, kw_only=True):
    """A webhook in the form of Standard Webhooks."""

    type: Literal["payment.succeeded", "payment.returned"]
    timestamp: datetime
    data: PaymentData


class WechatResource(msgspec.Struct, frozen=True, kw_only=True):
    """What it is about, sealed with the APIv3 key."""

    algorithm: Literal["AEAD_AES_256_GCM"]
    ciphertext: str
    nonce: str
    associated_data: str = ""
    original_type: str = ""


class WechatNews(Body, frozen=True, kw_only=True):
    """A notification of WeChat Pay, version 3."""

    id: str
    create_time: str
    resource_type: str
    event_type: str
    summary: str = ""
    resource: WechatResource


class PaymentNoted(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """What became of it. Said again for the same reference, it changes nothing; news of another kind are
    taken note of by doing nothing."""

    payment: PaymentId | None = None
    outcome: Literal["accepted", "returned", "quarantined"] | None = None
    reason: str | None = None
    returned: Literal["noted", "again", "unknown"] | None = None
    again: bool = False


class RefusedWebhooks:
    """Counts what was refused, and says when it is to be written down."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._counts: dict[tuple[str, str], tuple[int, float | None]] = {}  # not yet written, last written

    def note(self, provider: str, word: str) -> int:
        """One more. Returns how many to write down now; 0 when that was done a moment ago."""
        count, written = self._counts.get((provider, word), (0, None))
        count, now = count + 1, self._now()
        if written is not None and now - written < AUDIT_S:
            self._counts[provider, word] = (count, written)
            return 0
        self._counts[provider, word] = (0, now)
        return count


async def note_sandbox_payment(ctx: Context) -> PaymentNoted:
    """The sandbox provider says that a payment succeeded, or what became of a return.

    Headers: `webhook-id`, `webhook-timestamp`, `webhook-signature`. The provider's clock decides nothing: a
    rank is given when our record commits.
    """
    return await _note(ctx, "sandbox")


async def note_wechat_payment(ctx: Context) -> PaymentNoted:
    """WeChat Pay says that a payment succeeded, or what became of a refund.

    Headers: `Wechatpay-Serial`, `Wechatpay-Timestamp`, `Wechatpay-Nonce`, `Wechatpay-Signature`; the resource
    is encrypted with the APIv3 key.
    """
    return await _note(ctx, "wechat")


async def _note(ctx: Context, name: str) -> PaymentNoted:
    provider, payments = ctx.parts.provider, ctx.parts.payments
    if provider.name != name:
        raise NotFound("This payment provider is not used here.")
    try:
        news = provider.read_webhook(ctx.request.headers, ctx.raw)
        if news is None:
            return PaymentNoted()
        async with ctx.transaction() as t:
            if isinstance(news, FoundReturn):
                return PaymentNoted(returned=await payments.note_return(t, name, news))
            noted = await payments.record(
                t, name, news.ref, news.order, news.amount_fen, news.payer, news.paid_at
            )
    except Unavailable:
        raise
    except Refusal as refusal:
        await _audit(ctx, name, refusal)
        raise
    return PaymentNoted(payment=noted.payment, outcome=noted.outcome, reason=noted.reason, again=noted.again)


async def _audit(ctx: Context, provider: str, refusal: Refusal) -> None:
    times = ctx.parts.refused_webhooks.note(provider, refusal.word)
    if times:
        async with ctx.transaction() as t:
            await ctx.parts.audit.record(
                t,
                LISTENER,
                "webhook.refuse",
                f"provider:{provider}",
                {"word": refusal.word, "times": times},
            )
