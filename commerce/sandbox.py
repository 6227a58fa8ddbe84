"""The sandbox payment provider as a shop sees it: an HTTP client behind the PaymentProvider port.

The provider itself is an app of its own (`live/sandbox/`), as a rule a process of its own. Both sides share
one secret: requests carry an HMAC, webhooks are signed as Standard Webhooks.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ssl
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import httpx2
import msgspec
from msgspec import Struct
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from commerce.payments import (
    BadSignature,
    FoundPayment,
    FoundReturn,
    PaymentPage,
    PaymentRequest,
    ReturnRefused,
)
from membership.refusal import BadRequest, Unavailable

CALL_S = 5.0  # a provider that takes longer is asked again by the job
CLOCK_S = 300  # how far the two clocks may differ


class PaidData(Struct, frozen=True, kw_only=True):
    """What a payment.succeeded webhook and a paid query say."""

    ref: str
    order: str
    amount_fen: int
    payer: str
    paid_at: datetime


class ReturnedData(Struct, frozen=True, kw_only=True):
    """What a payment.returned webhook says. `key` is the one the shop gave."""

    ref: str
    key: str
    amount_fen: int
    return_ref: str
    declined: str = ""


def request_key(secret: str) -> bytes:
    """The key of the request HMAC; never the shared secret itself."""
    return hmac.digest(secret.encode(), b"companion sandbox requests", "sha256")


def webhook_secret(secret: str) -> str:
    """The Standard Webhooks secret, in its usual form."""
    key = hmac.digest(secret.encode(), b"companion sandbox webhooks", "sha256")
    return "whsec_" + base64.b64encode(key).decode()


def control_key(secret: str) -> str:
    """The password of the sandbox's fault controls."""
    return hmac.digest(secret.encode(), b"companion sandbox control", "sha256").hex()[:24]


def sign_request(key: bytes, method: str, path: str, moment: int, body: bytes) -> str:
    """Over method, path below the provider's root, time and the body's digest."""
    digest = hashlib.sha256(body).hexdigest()
    return hmac.new(key, f"{method}\n{path}\n{moment}\n{digest}".encode(), hashlib.sha256).hexdigest()


class SandboxProvider:
    """Speaks to the sandbox over HTTP. Holds no connection between calls.

    `base_url` is where the sandbox answers (the mount of this very service unless told otherwise), `page_url`
    where buyers reach it.
    """

    name = "sandbox"

    def __init__(
        self,
        secret: str,
        public_url: str,
        *,
        base_url: str | None = None,
        page_url: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._public_url = public_url.rstrip("/")
        self._base_url = (base_url or f"{self._public_url}/sandbox").rstrip("/")
        self._page_url = (page_url or self._base_url).rstrip("/")
        self._key = request_key(secret)
        self._webhook = Webhook(webhook_secret(secret))
        self._transport = transport
        # Made once: loading the system's certificates takes longer than a call.
        self._tls = ssl.create_default_context() if self._base_url.startswith("https:") else False

    async def create(self, request: PaymentRequest) -> PaymentPage:
        """A page for this order and amount; the same again is the same page."""
        back = (
            f"/s/{request.show}?order={request.order}"
            if request.show
            else f"/me/orders?order={request.order}"
        )
        answer = await self._call(
            "POST",
            "/payments",
            {
                "order": request.order,
                "amount_fen": request.amount_fen,
                "currency": request.currency,
                "description": request.description,
                "return_url": self._public_url + back,
                "notify_url": f"{self._public_url}/v1/payments/sandbox/webhook",
                "payer_hint": "payer-" + hashlib.sha256(request.member.encode()).hexdigest()[:10],
                "hold_until": request.hold_until,
            },
        )
        return PaymentPage(ref=str(answer["ref"]), url=f"{self._page_url}/pay/{answer['ref']}")

    async def query(self, ref: str) -> FoundPayment | None:
        """The payment when it was paid."""
        answer = await self._call("GET", f"/payments/{ref}", None, missing={})
        if answer.get("status") != "paid":
            return None
        return _found(msgspec.convert(answer, PaidData))

    async def give_back(self, ref: str, amount_fen: int, key: str) -> str | None:
        """Send money back, once a key."""
        answer = await self._call("POST", f"/payments/{ref}/returns", {"amount_fen": amount_fen, "key": key})
        return str(answer["ref"]) if answer.get("status") == "done" else None

    def read_webhook(self, headers: Mapping[str, str], body: bytes) -> FoundPayment | FoundReturn | None:
        """Verify and read a webhook; None for a type that is none of our business.

        Raises BadSignature, BadRequest.
        """
        try:
            self._webhook.verify(body, dict(headers.items()), json_parse=False)
        except (WebhookVerificationError, ValueError, TypeError):  # malformed headers raise the plain ones
            raise BadSignature from None
        try:
            read = msgspec.json.decode(body)
            kind = read.get("type") if isinstance(read, dict) else None
            if kind not in ("payment.succeeded", "payment.returned"):
                return None
            data = read.get("data")
            if kind == "payment.returned":
                back = msgspec.convert(data, ReturnedData)
                return FoundReturn(**msgspec.structs.asdict(back))
            found = _found(msgspec.convert(data, PaidData))
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise BadRequest(f"the webhook cannot be read: {error}") from None
        if found.paid_at.tzinfo is None:
            raise BadRequest("paid_at needs its offset from UTC")
        return found

    async def _call(
        self,
        method: str,
        path: str,
        content: dict[str, Any] | None,
        *,
        missing: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        body = b"" if content is None else msgspec.json.encode(content)
        moment = int(time.time())
        headers = {
            "content-type": "application/json",
            "x-sandbox-time": str(moment),
            "x-sandbox-signature": sign_request(self._key, method, path, moment, body),
        }
        try:
            async with httpx2.AsyncClient(
                transport=self._transport, timeout=CALL_S, verify=self._tls, trust_env=False
            ) as client:
                answer = await client.request(method, self._base_url + path, content=body, headers=headers)
        except httpx2.HTTPError as error:
            raise Unavailable(f"sandbox: {type(error).__name__}", retry_ms=2000) from error
        if answer.status_code == 404 and missing is not None:
            return missing
        if answer.status_code == 409 and path.endswith("/returns"):
            raise ReturnRefused(_detail(answer.content))
        if answer.status_code >= 400:
            raise Unavailable(f"sandbox: {answer.status_code}", retry_ms=2000)
        try:
            read = msgspec.json.decode(answer.content, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise Unavailable("sandbox: an answer that cannot be read", retry_ms=2000) from error
        return read


def _found(data: PaidData) -> FoundPayment:
    return FoundPayment(
        ref=data.ref, order=data.order, amount_fen=data.amount_fen, payer=data.payer, paid_at=data.paid_at
    )


def _detail(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body, type=dict[str, Any]).get("detail", "declined"))
    except msgspec.DecodeError:
        return "declined"
