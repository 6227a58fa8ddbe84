"""The way to a sandbox that is a process of its own: what buyers open below /sandbox is handed on to it.

So the demo keeps one address for phones and tunnels, while the provider lives and dies alone. The shop's own
requests and the webhooks do not come this way.
"""

from __future__ import annotations

from typing import Final

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from live.sandbox.control import Denied, read_body

CALL_S: Final = 10.0
# What both sides need; nothing else crosses, the shop's cookies least of all.
SENT: Final = ("accept-language", "authorization", "content-type", "host", "origin")
ANSWERED: Final = (
    "cache-control",
    "content-security-policy",
    "content-type",
    "location",
    "referrer-policy",
    "www-authenticate",
)


def create_forward(url: str, transport: httpx2.AsyncBaseTransport | None = None) -> Starlette:
    """Pages, their style and the control at `url`, below wherever this is mounted."""

    async def forward(request: Request) -> Response:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        query = f"?{request.url.query}" if request.url.query else ""
        headers = {name: request.headers[name] for name in SENT if name in request.headers}
        try:
            body = await read_body(request)
            async with httpx2.AsyncClient(
                transport=transport, timeout=CALL_S, trust_env=False, verify=url.startswith("https:")
            ) as client:
                answer = await client.request(
                    request.method, url + path + query, content=body, headers=headers
                )
        except Denied as denied:
            return Response(str(denied), denied.status, media_type="text/plain")
        except httpx2.HTTPError:
            return Response("支付渠道暂时不可用 · The payment provider is away", 502, media_type="text/plain")
        kept = {name: answer.headers[name] for name in ANSWERED if name in answer.headers}
        return Response(answer.content, answer.status_code, kept)

    return Starlette(
        routes=[
            Route("/pay/{rest:path}", forward, methods=["GET", "POST"]),
            Route("/pay.css", forward, methods=["GET"]),
            Route("/control", forward, methods=["GET", "POST"]),
            Route("/control/{rest:path}", forward, methods=["GET", "POST", "PUT"]),
        ]
    )
