"""Health, readiness, metrics, and the documents that describe the service."""

from __future__ import annotations

import importlib.metadata
from importlib import resources
from typing import Any

import msgspec
import psycopg
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from redis.exceptions import RedisError

from live.http import Answer, Context, Raw
from membership.refusal import Unavailable

DOCS_CSP = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:"


class Health(Answer, frozen=True, kw_only=True):
    """The process runs. `degraded`: likes, comments or presence given up under pressure; `log` not readable."""

    status: str
    degraded: tuple[str, ...] = ()


def version() -> str:
    """The installed version; a tree that was never installed has none."""
    for name in ("live-companion",):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "0"


async def health(ctx: Context) -> Health:
    """The process answers. Says nothing of the stores; see readiness."""
    return Health(status="ok")


async def readiness(ctx: Context) -> Health:
    """Both stores answer and this process takes new work; else 503."""
    try:
        await ctx.parts.redis.ping()
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable(f"Redis does not answer: {error}", retry_ms=1000) from error
    try:
        async with ctx.reading() as conn:
            await conn.execute("SELECT 1")
    except (psycopg.Error, OSError, TimeoutError) as error:
        raise Unavailable(f"PostgreSQL does not answer: {error}", retry_ms=1000) from error
    reason = ctx.service.not_ready()
    if reason:
        raise Unavailable(reason, retry_ms=2000)
    degraded = ctx.service.degraded()
    return Health(status="degraded" if degraded else "ok", degraded=tuple(degraded))


async def metrics(ctx: Context) -> Raw:
    """Prometheus' text form; of this process."""
    return Raw(generate_latest(ctx.service.metrics.registry), CONTENT_TYPE_LATEST)


async def openapi_document(ctx: Context) -> Raw:
    """This description, generated from the route table."""
    return Raw(_encoded(ctx.service.openapi), "application/json", {"cache-control": "no-cache"})


async def asyncapi_document(ctx: Context) -> Raw:
    """The socket's description, generated from the command and event structs."""
    return Raw(_encoded(ctx.service.asyncapi), "application/json", {"cache-control": "no-cache"})


async def docs_page(ctx: Context) -> Raw:
    """The browsable form of both descriptions."""
    page = (resources.files("live") / "static" / "docs" / "index.html").read_bytes()
    return Raw(page, "text/html; charset=utf-8", {"content-security-policy": DOCS_CSP})


def _encoded(document: Any) -> bytes:
    return msgspec.json.encode(document)
