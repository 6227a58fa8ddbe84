"""Telling the sandbox to misbehave: one page for people, the same acts as JSON for tests.

Both ask for the control password (HTTP Basic, any user name), which `companion sandbox` prints.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

import jinja2
import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from commerce.sandbox import control_key
from live.sandbox.store import Faults

if TYPE_CHECKING:
    from live.sandbox.app import Sandbox

BODY_MAX: Final = 16_384
SENT_MAX: Final = 50


class Denied(Exception):
    """An HTTP answer that is no success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class PayBody(Struct, frozen=True, kw_only=True):
    """Pay, whatever the hold says. `again`: a further payment of an order already paid."""

    payer: Annotated[str, Meta(min_length=1, max_length=64)] = "payer-control"
    off_fen: Annotated[int, Meta(ge=-100_000, le=100_000)] = 0
    again: bool = False


class SendBody(Struct, frozen=True, kw_only=True):
    """Send a webhook now: `times`, as if signed `age_s` ago, with a wrong key when `forged`."""

    times: Annotated[int, Meta(ge=1, le=SENT_MAX)] = 1
    age_s: Annotated[float, Meta(ge=-86_400, le=86_400)] = 0
    forged: bool = False


class FinishBody(Struct, frozen=True, kw_only=True):
    state: Literal["done", "declined"] = "done"


async def read_body(request: Request) -> bytes:
    """The body, bounded. Raises Denied."""
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > BODY_MAX:
            raise Denied(413, f"at most {BODY_MAX} bytes")
    return bytes(parts)


class Control:
    """The control's routes."""

    def __init__(self, sandbox: Sandbox, secret: str, pages: jinja2.Environment) -> None:
        self._sandbox = sandbox
        self._password = control_key(secret)
        self._pages = pages

    def routes(self) -> list[Route]:
        return [
            Route("/control", self._guarded(self._page), methods=["GET"]),
            Route("/control", self._guarded(self._act), methods=["POST"]),
            Route("/control/faults", self._guarded(self._read_faults), methods=["GET"]),
            Route("/control/faults", self._guarded(self._set_faults), methods=["PUT"]),
            Route("/control/ledger", self._guarded(self._ledger), methods=["GET"]),
            Route("/control/payments/{ref}/pay", self._guarded(self._pay), methods=["POST"]),
            Route("/control/news/{name}/send", self._guarded(self._send), methods=["POST"]),
            Route("/control/returns/{key}/finish", self._guarded(self._finish), methods=["POST"]),
        ]

    def _guarded(
        self, act: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                self._check(request)
                return await act(request)
            except Denied as denied:
                headers = {"www-authenticate": 'Basic realm="sandbox"'} if denied.status == 401 else None
                return Response(str(denied), denied.status, headers, media_type="text/plain")
            except msgspec.DecodeError as error:  # a body of another shape among them
                return Response(str(error), 400, media_type="text/plain")

        return answer

    def _check(self, request: Request) -> None:
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        try:
            password = base64.b64decode(sent, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            password = b""
        if scheme.lower() != "basic" or not hmac.compare_digest(password, self._password.encode()):
            raise Denied(401, "the control password is needed")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise Denied(403, "a foreign page may not do this")

    # --- as JSON ---

    async def _read_faults(self, request: Request) -> Response:
        return _json(self._sandbox.store.faults())

    async def _set_faults(self, request: Request) -> Response:
        """Replace all faults; `{}` ends them."""
        faults = msgspec.json.decode(await read_body(request), type=Faults)
        self._sandbox.store.set_faults(faults)
        return _json(faults)

    async def _ledger(self, request: Request) -> Response:
        return _json(self._known())

    async def _pay(self, request: Request) -> Response:
        asked = msgspec.json.decode(await read_body(request) or b"{}", type=PayBody)
        return _json({"ref": self._paid(request.path_params["ref"], asked)})

    async def _send(self, request: Request) -> Response:
        """The shop's answers, in order."""
        asked = msgspec.json.decode(await read_body(request) or b"{}", type=SendBody)
        return _json({"answers": await self._sent(request.path_params["name"], asked)})

    async def _finish(self, request: Request) -> Response:
        asked = msgspec.json.decode(await read_body(request) or b"{}", type=FinishBody)
        self._finished(request.path_params["key"], asked)
        return _json({"state": asked.state})

    # --- as a page ---

    async def _page(self, request: Request) -> Response:
        page = self._pages.get_template("control.html").render(
            faults=msgspec.to_builtins(self._sandbox.store.faults()), **self._known()
        )
        return HTMLResponse(
            page,
            headers={
                "cache-control": "no-store",
                "content-security-policy": "default-src 'none'; style-src 'self'; base-uri 'none';"
                " frame-ancestors 'none'; form-action 'self'",
            },
        )

    async def _act(self, request: Request) -> Response:
        form = {name: values[-1] for name, values in parse_qs((await read_body(request)).decode()).items()}
        try:
            match form.pop("act", ""):
                case "faults":
                    self._sandbox.store.set_faults(msgspec.convert(form, Faults, strict=False))
                case "pay":
                    self._paid(form.get("ref", ""), PayBody())
                case "pay_again":
                    self._paid(form.get("ref", ""), PayBody(again=True))
                case "send":
                    await self._sent(form.get("name", ""), SendBody())
                case "forge":
                    await self._sent(form.get("name", ""), SendBody(forged=True))
                case "finish":
                    self._finished(form.get("key", ""), FinishBody())
                case _:
                    raise Denied(400, "no such act")
        except msgspec.ValidationError as error:
            raise Denied(400, str(error)) from None
        return RedirectResponse("control", 303)

    # --- the acts ---

    def _known(self) -> dict[str, Any]:
        store = self._sandbox.store
        payments = [
            {**msgspec.to_builtins(payment), "returned_fen": store.returned(payment.ref)}
            for payment in store.latest()
        ]
        return {
            "payments": payments,
            "returns": store.returns(),
            "news": [msgspec.to_builtins(news) for news in store.all_news()],
        }

    def _paid(self, ref: str, asked: PayBody) -> str:
        if asked.again:
            second = self._sandbox.store.pay_again(ref, asked.payer)
            if second is None:
                raise Denied(404, "no such payment")
            self._sandbox.tell_payment(second.ref)
            return second.ref
        if self._sandbox.store.get(ref) is None:
            raise Denied(404, "no such payment")
        if not self._sandbox.pay(ref, asked.payer, asked.off_fen):
            raise Denied(409, "this payment is not open")
        return ref

    async def _sent(self, name: str, asked: SendBody) -> list[int]:
        news = self._sandbox.store.news(name)
        if news is None:
            raise Denied(404, "no such webhook")
        answers = []
        for _ in range(asked.times):
            answers.append(await self._sandbox.send(news, age_s=asked.age_s, forged=asked.forged))
            if not asked.forged:
                delivered = 200 <= answers[-1] < 300
                self._sandbox.store.attempted(name, delivered=delivered, next_at=news.next_at)
        return answers

    def _finished(self, key: str, asked: FinishBody) -> None:
        finished = self._sandbox.store.finish_return(key, asked.state)
        if finished is None:
            raise Denied(404, "no return of this key is under way")
        self._sandbox.tell_return(*_with_key(finished, key), asked.state)


def _with_key(finished: tuple[str, int], key: str) -> tuple[str, str, int]:
    return finished[0], key, finished[1]


def _json(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
