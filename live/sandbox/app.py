"""The sandbox's HTTP side: signed requests from the shop, the buyer's page, and webhooks until answered.

How it misbehaves when told so is in `control.py`; here it is obeyed.
"""

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
from zoneinfo import ZoneInfo

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
from live.sandbox.control import Control, Denied, read_body
from live.sandbox.store import News, NewsType, ReturnState, SandboxPayment, SandboxStore

SILENT_S: Final = 20.0  # longer than any shop waits
WEBHOOK_S: Final = 5.0
# Seconds to the next try; a shop that is down for a quarter of an hour misses nothing.
RETRY_S: Final = (1.0, 2.0, 5.0, 15.0, 60.0, 120.0, 300.0, 600.0)
TEXTS: Final[dict[str, dict[str, str]]] = {
    "zh": {
        "title": "收银台（沙箱）",
        "note": "这是测试收银台，不会产生真实扣款。",
        "amount": "支付金额",
        "order": "订单号",
        "payer": "付款账户",
        "hold": "请在 {time} 前完成支付",
        "pay": "确认支付",
        "fail": "模拟支付失败",
        "paid": "已支付",
        "failed": "上次支付失败，可重新支付",
        "superseded": "此支付已失效，请回到订单重新支付",
        "back": "返回商家",
        "missing": "没有这笔支付",
    },
    "en": {
        "title": "Sandbox checkout",
        "note": "A checkout for trying things out. No money moves.",
        "amount": "Amount",
        "order": "Order",
        "payer": "Paying account",
        "hold": "Pay before {time} ({zone})",
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


class Sandbox:
    """The provider: its store, its keys, and the webhooks on their way."""

    def __init__(
        self,
        secret: str,
        store: SandboxStore,
        *,
        timezone: str = "UTC",
        retry_s: tuple[float, ...] = RETRY_S,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.store = store
        self._zone = ZoneInfo(timezone)
        self._key = request_key(secret)
        self._webhook = Webhook(webhook_secret(secret))
        self._forger = Webhook(webhook_secret(secret + "forged"))
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
        self._control = Control(self, secret, self._pages)

    def routes(self) -> list[Route]:
        return [
            *self._control.routes(),
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
        except Denied as denied:
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
        except Denied as denied:
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
        except Denied as denied:
            return _problem(denied.status, str(denied))
        except msgspec.DecodeError as error:
            return _problem(400, str(error))
        ref = request.path_params["ref"]
        if self.store.use_up("failing_returns"):
            return _problem(500, "it was told to fail")
        wanted: ReturnState = "under_way" if self.store.faults().slow_returns else "done"
        if self.store.use_up("declined_returns"):
            wanted = "declined"
        before = self.store.returned(ref)
        state = self.store.give_back(ref, asked.amount_fen, asked.key, wanted)
        if state is None:
            return _problem(409, "more than was paid, or the key was used otherwise")
        if state == "declined":
            return _problem(409, "the payer's account is closed")
        if state == "done" and self.store.returned(ref) > before:
            self.tell_return(ref, asked.key, asked.amount_fen, "done")
        return _json(200, {"ref": f"return_{asked.key}", "status": state})

    async def _signed(self, request: Request) -> bytes:
        """The body of a request whose HMAC is right and young."""
        self._resume()
        body = await read_body(request)
        moment = request.headers.get("x-sandbox-time", "")
        if not moment.isascii() or not moment.isdigit() or abs(time.time() - int(moment)) > CLOCK_S:
            raise Denied(401, "x-sandbox-time is missing or too far from our clock")
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        wanted = sign_request(self._key, request.method, path, int(moment), body)
        if not hmac.compare_digest(
            wanted.encode(), request.headers.get("x-sandbox-signature", "").encode("latin-1", "replace")
        ):
            raise Denied(401, "x-sandbox-signature does not fit")
        match self.store.faults().api:
            case "error":
                raise Denied(500, "it was told to fail")
            case "silent":
                await asyncio.sleep(SILENT_S)
                raise Denied(500, "it was told to be silent")
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
            form = parse_qs((await read_body(request)).decode("utf-8", "replace"))
        except Denied as denied:
            return _problem(denied.status, str(denied))
        result = form.get("result", [""])[0]
        if result == "pay":
            payer = form.get("payer", [payment.payer])[0].strip()[:64] or payment.payer
            if not self.pay(payment.ref, payer):
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
            until = datetime.fromtimestamp(payment.hold_until / 1000, self._zone)
            hold = texts["hold"].format(time=until.strftime("%H:%M:%S"), zone=self._zone.key)
        page = self._pages.get_template("pay.html").render(
            texts=texts,
            lang="en" if texts is TEXTS["en"] else "zh-CN",
            payment=payment,
            amount=f"{payment.amount_fen // 100}.{payment.amount_fen % 100:02d}",
            hold=hold,
            style="../pay.css",  # relative: the page may stand behind the shop's own address
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

    def pay(self, ref: str, payer: str, off_fen: int | None = None) -> bool:
        """The buyer pays; False when it is not open."""
        off_fen = self.store.faults().charge_off_fen if off_fen is None else off_fen
        paid = self.store.pay(ref, payer, off_fen)
        if paid:
            self.tell_payment(ref)
        return paid

    def tell_payment(self, ref: str) -> None:
        payment = self.store.get(ref)
        assert payment is not None
        self._tell(f"msg_{ref}", ref, "payment.succeeded", _said(payment))

    def tell_return(self, ref: str, key: str, amount_fen: int, state: ReturnState) -> None:
        data: dict[str, Any] = {
            "ref": ref,
            "key": key,
            "amount_fen": amount_fen,
            "return_ref": f"return_{key}",
            "declined": "the payer's account is closed" if state == "declined" else "",
        }
        self._tell(f"msg_{key}_{state}", ref, "payment.returned", data)

    def _tell(self, name: str, ref: str, kind: NewsType, data: dict[str, Any]) -> None:
        """Owe the shop a webhook, as the faults would have it."""
        faults = self.store.faults()
        if faults.vanish:
            return
        waiting = [] if not faults.reorder else self.store.held()
        now = time.time()
        late = faults.hold or (faults.reorder and not waiting)
        if not self.store.owe(name, ref, kind, data, None if late else now + faults.delay_s) or late:
            return
        self.deliver(name, *waiting)

    def _resume(self) -> None:
        """After a restart: what was owed and not answered goes on."""
        if not self._resumed:
            self._resumed = True
            for news in self.store.undelivered():
                self.deliver(news.id)

    def deliver(self, name: str, *then: str) -> None:
        """Send in the background until it is answered; `then` those that were kept back behind it."""
        if name not in self._deliveries:
            task = asyncio.create_task(self._send_in_turn((name, *then)))
            self._deliveries[name] = task
            task.add_done_callback(lambda _: self._deliveries.pop(name, None))

    async def _send_in_turn(self, names: tuple[str, ...]) -> None:
        for number, name in enumerate(names):
            if number:
                self.store.send_at(name, time.time())
            await self._send_until_answered(name)

    async def _send_until_answered(self, name: str) -> None:
        while True:
            news = self.store.news(name)
            if news is None or news.next_at is None:
                return
            wait_s = news.next_at - time.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            delivered = 200 <= await self.send(news) < 300
            for _ in range(self.store.faults().copies - 1):
                await self.send(news)
            tries = news.attempts
            next_at = time.time() + self._retry_s[tries] if tries < len(self._retry_s) else None
            self.store.attempted(name, delivered=delivered, next_at=next_at)

    async def send(self, news: News, *, age_s: float = 0, forged: bool = False) -> int:
        """One webhook; the shop's answer, 0 for none. Its id stays the same over all tries, so that the shop
        can tell a repeat."""
        payment = self.store.get(news.ref)
        assert payment is not None
        now = datetime.fromtimestamp(time.time() - age_s, UTC)
        body = msgspec.json.encode({"type": news.type, "timestamp": now, "data": news.data}).decode()
        headers = {
            "content-type": "application/json",
            "webhook-id": news.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": (self._forger if forged else self._webhook).sign(news.id, now, body),
        }
        try:
            async with httpx2.AsyncClient(
                transport=self._transport, timeout=WEBHOOK_S, trust_env=False, verify=_tls(payment.notify_url)
            ) as client:
                answer = await client.post(payment.notify_url, content=body.encode(), headers=headers)
        except httpx2.HTTPError:
            return 0
        return int(answer.status_code)

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
    timezone: str = "UTC",
    retry_s: tuple[float, ...] = RETRY_S,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> Starlette:
    """The provider as an app. `path` is its file; without one it forgets at the end of the process.
    Buyers read times in `timezone`.

    Several processes with one file are one provider. A mounted app gets no lifespan events: then webhooks
    that an earlier process left are taken up with the first request.
    """
    sandbox = Sandbox(secret, SandboxStore(path), timezone=timezone, retry_s=retry_s, transport=transport)

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
        "amount_fen": payment.paid_fen or payment.amount_fen,
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


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


def _problem(status: int, detail: str) -> Response:
    return Response(
        msgspec.json.encode({"type": "about:blank", "status": status, "detail": detail}),
        status,
        media_type="application/problem+json",
    )
