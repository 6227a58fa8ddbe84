"""The port to a payment provider: what it is asked, what it says, and what it may refuse.

Adapters live beside it (sandbox.py, wechat.py); payments and returns know only this page.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, Protocol

from msgspec import Struct

from membership.actor import MemberId, OrderId, ShowId
from membership.refusal import Refusal


class ReturnRefused(Refusal):
    """The provider declines to send this money back; a person is to look."""


class BadSignature(Refusal):
    """The signature does not fit the body."""

    code = "bad_signature"


class PayerClient(Struct, frozen=True, kw_only=True):
    """Where the buyer sits: some providers ask for it. `openid` is the buyer's name at WeChat, if known."""

    ip: str = ""
    openid: str = ""


class PaymentRequest(Struct, frozen=True, kw_only=True):
    """What a provider is asked to collect. `way`: how it made this order's page before, if it did."""

    order: OrderId
    kind: Literal["goods", "plan"]
    show: ShowId | None
    member: MemberId
    amount_fen: int
    currency: str
    description: str
    hold_until: int  # ms
    client: PayerClient = PayerClient()
    way: str = ""


class PaymentPage(Struct, frozen=True):
    """The provider's reference, and where the buyer pays. `until` (ms): after that the address is made anew."""

    ref: str
    url: str
    until: int | None = None
    way: str = ""


class FoundPayment(Struct, frozen=True, kw_only=True):
    """A payment as the provider verified it."""

    ref: str
    order: str
    amount_fen: int
    payer: str
    paid_at: datetime


class FoundReturn(Struct, frozen=True, kw_only=True):
    """What became of a return, as the provider verified it. `key` is ours, or that of somebody at the
    provider's own desk; `declined` says why it does not go."""

    key: str
    ref: str  # of the payment
    amount_fen: int
    return_ref: str
    declined: str = ""


class PaymentProvider(Protocol):
    """A payment provider. Calls may raise Unavailable; the same arguments again are answered the same."""

    @property
    def name(self) -> str: ...

    async def create(self, request: PaymentRequest) -> PaymentPage:
        """A page where this order is paid."""

    async def query(self, ref: str) -> FoundPayment | None:
        """The payment behind a reference when it was paid, else None."""

    async def give_back(self, ref: str, amount_fen: int, key: str) -> str | None:
        """Send money back; the same key once. Returns the provider's reference of the return, None while it
        is under way: then asking again tells. Raises ReturnRefused."""

    def read_webhook(self, headers: Mapping[str, str], body: bytes) -> FoundPayment | FoundReturn | None:
        """Verify and read what the provider tells; None for what is none of our business.

        Raises BadSignature, BadRequest.
        """
