"""The sandbox's HTTP side: signed requests from the shop, the buyer's page, and webhooks until answered."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import httpx2
import jinja2
import msgspec
from msgspec import Meta, Struct
from standardwebhooks.webhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from commerce.sandbox import CLOCK_S, request_key, sign_request, webhook_secret
from live.sandbox.store import SandboxPayment, SandboxStore

BODY_MAX: Final = 16_384
WEBHOOK_S: Final = 5.0
# Seconds to the next try; a shop that is down for a quarter of an hour misses nothing.
RETRY_S: Final = (1.0, 2.0, 5.0, 15.0, 60.0, 120.0, 300.0, 600.0)
TEXTS: Final[dict[str, dict[str, str]]] = {
    "zh": {
        "title": "收银台(沙箱)",
        "note": "这是测试收银台,不会产生真实扣款。",
        "amount": "支付金额",
        "order": "订单号",
        "payer": "付款账户",
        "hold": "请在 {time} 前完成支付",
        "pay": "确认支付",
        "fail": "模拟支付失败",
        "paid": "已支付",
        "failed": "上次支付失败,可重新支付",
        "superseded": "此支付已失效,请回到订单重新支付",
        "back": "返回商家",
        "missing": "没有这笔支付",
    },
    "en": {
        "title": "Sandbox checkout",
        "note": "A checkout for trying things out. No money moves.",
        "amount": "Amount",
        "order": "Order",
        "payer": "Paying account",
        "hold": "Pay before {time}",
        "pay": "Pay now",
        "fail": "Let it fail",
        "paid": "Paid",
        "failed": "The last try failed; you may try again",
        "superseded": "This payment is no longer valid; start again from your order",
        "back": "Back to the shop",
        "missing": "There is no such payment",
    },
}


class CreateBody(Struct, frozen=True, kw_only=True):
    """What the shop asks for."""

    order: Annotated[str, Meta(min_length=1, max_length=64)]
    amount_fen: Annotated[int, Meta(ge=1, le=100_000_000_000)]
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] = "CNY"
    description: Annotated[str, Meta(max_length=200)] = ""
    return_url: Annotated[str, Meta(max_length=500, pattern="^https?://")]
    notify_url: Annotated[str, Meta(max_length=500, pattern="^https?://")]
    payer_hint: Annotated[str, Meta(max_length=64)] = "payer"
    hold_until: int | None = None


class ReturnBody(Struct, frozen=True, kw_only=True):
    amount_fen: Annotated[int, Meta(ge=1)]
    key: Annotated[str, Meta(min_length=1, max_length=64)]


class _Denied(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Sandbox:
    """The provider: its store, its keys, and the webhooks on their way."""

    def __init__(
        self,
        secret: str,
        store: SandboxStore,
        *,
        retry_s: tuple[float, ...] = RETRY_S,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.store = store
        self._key = request_key(secret)
        self._webhook = Webhook(webhook_secret(secret))
        self._retry_s = retry_s
        self._transport = transport
        self._deliveries: dict[str, asyncio.Task[None]] = {}
        self._resumed = False
        self._pages = jinja2.Environment(
            loader=jinja2.FunctionLoader(
                lambda name: (resources.files(__package__) / name).read_text("utf-8")
            ),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )

    def routes(self) -> list[Route]:
        return [
            Route("/payments", self._create, methods=["POST"]),
            Route("/payments/{ref}", self._query, methods=["GET"]),
            Route("/payments/{ref}/returns", self._give_back, methods=["POST"]),
            Route("/pay/{ref}", self._page, methods=["GET"]),
            Route("/pay/{ref}", self._decide, methods=["POST"]),
            Route("/pay.css", self._style, methods=["GET"]),
        ]

    # --- the shop's requests ---

    async def _create(self, request: Request) -> Response:
        try:
            body = await self._signed(request)
            asked = msgspec.json.decode(body, type=CreateBody)
        except _Denied as denied:
            return _problem(denied.status, str(denied))
        except msgspec.DecodeError as error:
            return _problem(400, str(error))
        payment = self.store.create(
            order=asked.order,
            amount_fen=asked.amount_fen,
            currency=asked.currency,
            description=asked.description,
            return_url=asked.return_url,
            notify_url=asked.notify_url,
            payer=asked.payer_hint,
            hold_until=asked.hold_until,
        )
        url = str(request.url).split("?", 1)[0].removesuffix("/payments") + f"/pay/{payment.ref}"
        return _json(201, {"ref": payment.ref, "url": url, "status": payment.status})

    async def _query(self, request: Request) -> Response:
        try:
            await self._signed(request)
        except _Denied as denied:
            return _problem(denied.status, str(denied))
        payment = self.store.get(request.path_params["ref"])
        if payment is None:
            return _problem(404, "no such payment")
        answer: dict[str, Any] = {"status": payment.status, "returned_fen": self.store.returned(payment.ref)}
        return _json(200, {**answer, **_said(payment)})

    async def _give_back(self, request: Request) -> Response:
        try:
            body = await self._signed(request)
            asked = msgspec.json.decode(body, type=ReturnBody)
        except _Denied as denied:
            return _problem(denied.status, str(denied))
        except msgspec.DecodeError as error:
            return _problem(400, str(error))
        ref = request.path_params["ref"]
        if not self.store.give_back(ref, asked.amount_fen, asked.key):
            return _problem(409, "more than was paid, or the key was used otherwise")
        return _json(200, {"ref": f"return_{asked.key}"})

    async def _signed(self, request: Request) -> bytes:
        """The body of a request whose HMAC is right and young."""
        self._resume()
        body = await _body(request)
        moment = request.headers.get("x-sandbox-time", "")
        if not moment.isascii() or not moment.isdigit() or abs(time.time() - int(moment)) > CLOCK_S:
            raise _Denied(401, "x-sandbox-time is missing or too far from our clock")
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        wanted = sign_request(self._key, request.method, path, int(moment), body)
        if not hmac.compare_digest(
            wanted.encode(), request.headers.get("x-sandbox-signature", "").encode("latin-1", "replace")
        ):
            raise _Denied(401, "x-sandbox-signature does not fit")
        return body

    # --- the buyer's page ---

    async def _page(self, request: Request) -> Response:
        texts = _texts(request)
        payment = self.store.get(request.path_params["ref"])
        if payment is None:
            return HTMLResponse(texts["missing"], 404)
        return self._drawn(request, payment, texts)

    async def _decide(self, request: Request) -> Response:
        texts = _texts(request)
        payment = self.store.get(request.path_params["ref"])
        if payment is None:
            return HTMLResponse(texts["missing"], 404)
        try:
            form = parse_qs((await _body(request)).decode("utf-8", "replace"))
        except _Denied as denied:
            return _problem(denied.status, str(denied))
        result = form.get("result", [""])[0]
        if result == "pay":
            payer = form.get("payer", [payment.payer])[0].strip()[:64] or payment.payer
            if self.store.pay(payment.ref, payer):
                self._deliver(payment.ref)
            else:
                now = self.store.get(payment.ref) or payment  # a second tap: paid since it was looked up
                if now.status != "paid":
                    return self._drawn(request, now, texts, status=409)
            return RedirectResponse(_with_result(payment.return_url, "paid"), 303)
        if result == "fail":
            self.store.fail(payment.ref)
            return RedirectResponse(_with_result(payment.return_url, "failed"), 303)
        return _problem(400, "result is pay or fail")

    async def _style(self, request: Request) -> Response:
        text = (resources.files(__package__) / "pay.css").read_text("utf-8")
        return Response(text, media_type="text/css", headers={"cache-control": "max-age=300"})

    def _drawn(
        self, request: Request, payment: SandboxPayment, texts: dict[str, str], status: int = 200
    ) -> Response:
        hold = ""
        if payment.hold_until is not None and payment.status in ("open", "failed"):
            moment = datetime.fromtimestamp(payment.hold_until / 1000, UTC).strftime("%H:%M:%S UTC")
            hold = texts["hold"].format(time=moment)
        page = self._pages.get_template("pay.html").render(
            texts=texts,
            lang="en" if texts is TEXTS["en"] else "zh-CN",
            payment=payment,
            amount=f"{payment.amount_fen // 100}.{payment.amount_fen % 100:02d}",
            hold=hold,
            style=request.scope.get("root_path", "") + "/pay.css",
        )
        back = urlsplit(payment.return_url)
        return HTMLResponse(
            page,
            status,
            headers={
                "cache-control": "no-store",
                "referrer-policy": "no-referrer",
                # a form's redirect counts as its action: the shop's own origin is named
                "content-security-policy": "default-src 'none'; style-src 'self'; base-uri 'none';"
                f" frame-ancestors 'none'; form-action 'self' {back.scheme}://{back.netloc}",
            },
        )

    # --- webhooks ---

    def _resume(self) -> None:
        """After a restart: what was paid and not answered goes on."""
        if not self._resumed:
            self._resumed = True
            for payment in self.store.undelivered():
                self._deliver(payment.ref)

    def _deliver(self, ref: str) -> None:
        if ref not in self._deliveries:
            task = asyncio.create_task(self._send_until_answered(ref))
            self._deliveries[ref] = task
            task.add_done_callback(lambda _: self._deliveries.pop(ref, None))

    async def _send_until_answered(self, ref: str) -> None:
        while True:
            payment = self.store.get(ref)
            if payment is None or payment.next_at is None:
                return
            wait_s = payment.next_at - time.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            delivered = await self._send(payment)
            tries = payment.attempts
            next_at = time.time() + self._retry_s[tries] if tries < len(self._retry_s) else None
            self.store.attempted(ref, delivered=delivered, next_at=next_at)

    async def _send(self, payment: SandboxPayment) -> bool:
        """One webhook. Its id stays the same over all tries, so that the shop can tell a repeat."""
        now = datetime.now(UTC)
        body = msgspec.json.encode(
            {"type": "payment.succeeded", "timestamp": now, "data": _said(payment)}
        ).decode()
        name = f"msg_{payment.ref}"
        headers = {
            "content-type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(name, now, body),
        }
        try:
            async with httpx2.AsyncClient(
                transport=self._transport, timeout=WEBHOOK_S, trust_env=False, verify=_tls(payment.notify_url)
            ) as client:
                answer = await client.post(payment.notify_url, content=body.encode(), headers=headers)
        except httpx2.HTTPError:
            return False
        return 200 <= answer.status_code < 300

    async def aclose(self) -> None:
        """Stop sending; what is not answered goes on at the next start."""
        for task in list(self._deliveries.values()):
            task.cancel()
        await asyncio.gather(*self._deliveries.values(), return_exceptions=True)

    def resume(self) -> None:
        """Send on what an earlier process left. Within a running loop."""
        self._resume()


def create_sandbox(
    secret: str,
    path: Path | None = None,
    *,
    retry_s: tuple[float, ...] = RETRY_S,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> Starlette:
    """The provider as an app. `path` is its file; without one it forgets at the end of the process.

    Several processes with one file are one provider. A mounted app gets no lifespan events: then webhooks
    that an earlier process left are taken up with the first request.
    """
    sandbox = Sandbox(secret, SandboxStore(path), retry_s=retry_s, transport=transport)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        sandbox.resume()
        yield
        await sandbox.aclose()
        sandbox.store.close()

    app = Starlette(routes=sandbox.routes(), lifespan=lifespan)
    app.state.sandbox = sandbox
    return app


def _said(payment: SandboxPayment) -> dict[str, Any]:
    return {
        "ref": payment.ref,
        "order": payment.order,
        "amount_fen": payment.amount_fen,
        "payer": payment.payer,
        "paid_at": None if payment.paid_at is None else datetime.fromtimestamp(payment.paid_at, UTC),
    }


def _with_result(url: str, result: str) -> str:
    parts = urlsplit(url)
    query = "&".join(part for part in (parts.query, urlencode({"payment": result})) if part)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, parts.fragment))


def _texts(request: Request) -> dict[str, str]:
    asked = request.query_params.get("lang") or request.headers.get("accept-language", "")
    return TEXTS["en" if asked.lower().startswith("en") else "zh"]


def _tls(url: str) -> bool:
    return url.startswith("https:")


async def _body(request: Request) -> bytes:
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > BODY_MAX:
            raise _Denied(413, f"at most {BODY_MAX} bytes")
    return bytes(parts)


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _problem(status: int, detail: str) -> Response:
    return Response(
        msgspec.json.encode({"type": "about:blank", "status": status, "detail": detail}),
        status,
        media_type="application/problem+json",
    )
