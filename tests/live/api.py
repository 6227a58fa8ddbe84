"""The HTTP API for tests: real engines, the route table, and a client that holds every answer against OpenAPI."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from openapi_schema_validator import OAS31Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from starlette.applications import Starlette

from commerce.payments import Payments
from commerce.sandbox import SandboxProvider
from live.app import build_parts, close_parts
from live.engines import Addresses
from live.metrics import Metrics
from live.openapi import openapi
from live.parts import Parts
from live.routes import TABLE, http_routes
from live.sandbox import create_sandbox
from live.settings import read_settings
from membership.actor import PERMISSIONS, Actor, Permission, Role, RoomId

SECRET = "s" * 40
BASE = "http://shop.test"
PAY = "http://pay.test"
DOCUMENT = openapi(TABLE, version="test", server=None)
_REGISTRY: Registry[Any] = Registry().with_resource(
    "urn:api", Resource(contents=DOCUMENT, specification=DRAFT202012)
)
_PATTERNS = [
    (re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)) + "$"), path) for path in DOCUMENT["paths"]
]
_PATTERNS.sort(key=lambda pair: pair[1].count("{"))


def route_of(path: str) -> str | None:
    return next((route for pattern, route in _PATTERNS if pattern.match(path)), None)


def check_documented(method: str, path: str, response: httpx2.Response) -> None:
    """The status is one that the description names, and the body has the shape that it gives."""
    route = route_of(path)
    if route is None or method.lower() not in DOCUMENT["paths"][route]:
        return
    responses = DOCUMENT["paths"][route][method.lower()]["responses"]
    status = str(response.status_code)
    assert status in responses, f"{method} {route}: {status} is not described: {response.text[:300]}"
    described = responses[status]
    if "$ref" in described:
        described = DOCUMENT["components"]["responses"][described["$ref"].rsplit("/", 1)[-1]]
    media = response.headers.get("content-type", "").partition(";")[0]
    content = described.get("content")
    if content is None:
        assert response.content == b""
        return
    assert media in content, f"{method} {route}: {media} is not described"
    if media.endswith("json"):
        pointer = f"urn:api#{_pointer(route, method.lower(), status, media)}"
        OAS31Validator({"$ref": pointer}, registry=_REGISTRY).validate(response.json())


def _pointer(route: str, method: str, status: str, media: str) -> str:
    def escaped(text: str) -> str:
        return text.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")

    responses = DOCUMENT["paths"][route][method]["responses"]
    if "$ref" in responses[status]:
        base = responses[status]["$ref"].removeprefix("#")
    else:
        base = f"/paths/{escaped(route)}/{method}/responses/{status}"
    return f"{base}/content/{escaped(media)}/schema"


class Shop:
    """The service under test and those who call it."""

    def __init__(self, parts: Parts, app: Starlette, sandbox: Starlette) -> None:
        self.parts = parts
        self.app = app
        self.sandbox = sandbox
        self.done: set[tuple[str, str]] = set()  # (method, route) that succeeded
        self._phones = iter(range(13800000000, 13899999999))

    def client(self, headers: dict[str, str] | None = None) -> Caller:
        return Caller(self, headers or {})

    async def staff(self, role: Role = "owner", room: str | None = None) -> Caller:
        async with self.parts.database.transaction() as t:
            account = await self.parts.staff.create(t, "小禾", role, RoomId(room) if room else None)
        return self.client({"authorization": f"Bearer {self.parts.tokens.mint(account.actor(), 3600)}"})

    async def shop_server(self, *permissions: Permission) -> Caller:
        async with self.parts.database.transaction() as t:
            made = await self.parts.api_keys.create(t, "webshop", permissions or sorted(PERMISSIONS["owner"]))
        return self.client({"authorization": f"Bearer {made.secret}"})

    async def member(self, nickname: str | None = None) -> Caller:
        async with self.parts.database.transaction() as t:
            member = await self.parts.members.register(t, str(next(self._phones)), nickname)
            actor = await self.parts.members.actor(t.conn, member.id)
        return self.as_viewer(actor)

    def as_viewer(self, actor: Actor) -> Caller:
        caller = self.client({"authorization": f"Bearer {self.parts.tokens.mint(actor, 3600)}"})
        caller.id = actor.id
        return caller

    async def pay(self, url: str, result: str = "pay") -> httpx2.Response:
        """Press the button on the sandbox's page, and wait until its webhook was answered."""
        transport = httpx2.ASGITransport(app=self.sandbox)
        async with httpx2.AsyncClient(transport=transport, base_url=PAY) as client:
            answer = await client.post(
                url.removeprefix(PAY),
                content=f"result={result}",
                headers={"content-type": "application/x-www-form-urlencoded"},
            )
        deliveries = dict(self.sandbox.state.sandbox._deliveries)
        for task in deliveries.values():
            await task
        return answer


class Caller:
    """Someone with an identity; each answer is held against the description."""

    def __init__(self, shop: Shop, headers: dict[str, str]) -> None:
        self.shop = shop
        self.id = ""
        self.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=shop.app), base_url=BASE, headers=headers
        )

    async def call(self, method: str, path: str, json: Any = None, **more: Any) -> httpx2.Response:
        if json is not None:
            more["json"] = json
        response = await self.http.request(method, path, **more)
        check_documented(method, path.partition("?")[0], response)
        if response.is_success:
            self.shop.done.add((method, route_of(path.partition("?")[0]) or path))
        return response

    async def ok(self, method: str, path: str, json: Any = None, **more: Any) -> Any:
        """The answer's JSON; the call must succeed."""
        response = await self.call(method, path, json, **more)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        if response.headers.get("content-type", "").startswith("application/json"):
            return response.json()
        return response.text

    async def refused(self, method: str, path: str, json: Any = None, **more: Any) -> str:
        """The refusal's word; the call must be refused in the one form."""
        response = await self.call(method, path, json, **more)
        assert not response.is_success, f"{method} {path}: {response.text}"
        assert response.headers["content-type"] == "application/problem+json"
        problem = response.json()
        assert problem["status"] == response.status_code
        return str(problem["code"])


@asynccontextmanager
async def open_shop(engines: Addresses, database_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    settings = read_settings(
        {
            "COMPANION_REDIS_URL": engines.redis_url,
            "COMPANION_DATABASE_URL": database_url,
            "COMPANION_SECRET": SECRET,
            "COMPANION_PUBLIC_URL": BASE,
            "COMPANION_DATA_DIR": str(tmp_path),
            "COMPANION_SANDBOX": "yes",
            "COMPANION_MEMBER_DAY": "0",
        }
    )
    parts = await build_parts(settings, Metrics())
    app = Starlette()
    sandbox = create_sandbox(SECRET, transport=httpx2.ASGITransport(app=app))
    provider = SandboxProvider(SECRET, BASE, base_url=PAY, transport=httpx2.ASGITransport(app=sandbox))
    parts = dataclasses.replace(
        parts,
        provider=provider,
        payments=Payments(parts.orders, parts.plans, parts.seats, provider, parts.notices),
    )
    app.router.routes.extend(http_routes(parts))
    try:
        await parts.redis.flushall()
        yield Shop(parts, app, sandbox)
    finally:
        await sandbox.state.sandbox.aclose()
        sandbox.state.sandbox.store.close()
        await close_parts(parts)
