"""The HTTP door: who asks, what they sent, and one answer in one form.

A route is a row of the table in `live/routes.py`. For each request the door bounds and decodes what was
sent, decides the actor once, checks that the actor may, calls the handler, and turns every refusal and
every failure into problem+json. Handlers see typed structs and return typed structs.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
import psycopg
from redis.exceptions import RedisError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from live.identity import API_KEY_PREFIX, actor_of_key, actor_of_token
from live.problem import InternalError, problem_response
from membership.actor import PERMISSIONS, SHOP_WIDE, Actor, MemberId, Permission, ShowId
from membership.members import guest, new_guest_id
from membership.refusal import (
    BadRequest,
    Forbidden,
    NotFound,
    RateLimited,
    Refusal,
    Unauthenticated,
    Unavailable,
)
from membership.script import PlainScript
from membership.transaction import Connection, Transaction

if TYPE_CHECKING:
    from live.metrics import Metrics
    from live.parts import Parts

log = logging.getLogger("companion.http")

BODY_BYTES_MAX: Final = 64 * 1024
BODY_WAIT_S: Final = 10.0  # for the whole body to arrive
KEY_CHARS_MAX: Final = 64
WRITES_PER_S: Final = 5.0  # of one viewer, as on the socket
WRITES_AT_ONCE: Final = 40
UNNAMED_FACTOR: Final = 4  # behind one address there may be many
BUCKETS_MAX: Final = 50_000
KEY_RUNNING_MS: Final = 60_000  # a request that died with its process frees its key after this
REPLY_KEPT_S: Final = 86_400
VIEWER_SESSION_S: Final = 30 * 86_400
STAFF_SESSION_S: Final = 12 * 3_600

VIEWER_COOKIE: Final = "companion_viewer"
STAFF_COOKIE: Final = "companion_staff"
GUEST_COOKIE: Final = "companion_guest"  # a guest stays one person over reconnects: one ballot
CSRF_COOKIE: Final = "companion_csrf"
CSRF_HEADER: Final = "x-csrf-token"

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
SAFE: Final = frozenset({"GET", "HEAD"})
NO_ACTOR: Final = Actor(kind="viewer", id="")  # until the door has looked
Who = Literal["public", "viewer", "staff"] | Permission


class TooLarge(Refusal):
    """The body is larger than 64 KB."""

    code = "too_large"


class UnsupportedMedia(Refusal):
    """The body must be application/json."""

    code = "unsupported_media"


class MethodNotAllowed(Refusal):
    """This address does not take this method."""

    code = "method_not_allowed"


class BadOrigin(Refusal):
    """The request came from a foreign page."""

    code = "bad_origin"


class BadCsrf(Refusal):
    """Send the value of the companion_csrf cookie in the X-CSRF-Token header."""

    code = "bad_csrf"


class Busy(Refusal):
    """The same Idempotency-Key is still being worked on; ask again shortly."""

    code = "busy"


class Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what is sent to us: a member we do not know is refused, not passed over."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what we send."""


Cursor = Annotated[str, msgspec.Meta(min_length=1, max_length=128, description="`next` of the part before")]
Limit = Annotated[int, msgspec.Meta(ge=1, le=100, description="How many, at most")]
ShowText = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,64}$", description="A show's link id")]
IdText = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
KeyText = Annotated[str, msgspec.Meta(min_length=1, max_length=64, description="Kept until it is answered")]


class PageQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which part of a list."""

    cursor: Cursor | None = None
    limit: Limit = 50


class Raw(msgspec.Struct, frozen=True):
    """An answer that is not JSON."""

    body: bytes
    media: str
    headers: dict[str, str] = {}


Handler = Callable[..., Awaitable[Any]]


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. The handler is called with the Context, then query and body where given."""

    method: Method
    path: str
    handler: Handler
    who: Who
    summary: str
    tag: str
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    answer: Any = None  # None: no content
    status: int = 200
    media: str = "application/json"
    refusals: tuple[str, ...] = ()
    keeps_reply: bool = True  # a repeat with the same Idempotency-Key gets the kept answer
    own_key: bool = False  # the handler itself does each key once: a repeat need not wait for the first's end
    prefers_staff: bool = False  # public, but staff who ask see more
    takes: tuple[str, ...] = ()  # media of a body that is no JSON; the handler reads `ctx.raw`
    body_bytes_max: int = BODY_BYTES_MAX
    signed: bool = False  # the handler verifies `ctx.raw` before it is decoded

    @property
    def name(self) -> str:
        """The operation's name: the handler's."""
        return getattr(self.handler, "__name__", "")

    @property
    def writes(self) -> bool:
        return self.method not in SAFE

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"\{(\w+)\}", self.path)


# What may stand in a path. An id of another form cannot exist, so it is not found.
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SEQ = re.compile(r"[1-9][0-9]{0,14}")
PATH_FORMS: Final[dict[str, tuple[re.Pattern[str], str]]] = {
    "show": (_WORD, "The show's link id"),
    "room": (_WORD, "The room's id or slug"),
    "viewer": (_WORD, "The viewer's public id, as in comment.posted"),
    "seq": (_SEQ, "The comment's number in the show's log"),
    "cue": (_UUID, "The cue's id"),
    "poll": (_UUID, "The poll's id"),
    "offer": (_UUID, "The offer's id"),
    "benefit": (_UUID, "The benefit's id"),
    "order": (_UUID, "The order's id"),
    "case": (_UUID, "The after-sales case's id"),
    "photo": (_UUID, "The photo's id"),
    "payment": (_UUID, "The payment's id"),
    "member": (_UUID, "The member's id"),
    "product": (_UUID, "The product's id"),
    "price": (_UUID, "The id of a line of a price list"),
    "approval": (_UUID, "The ask's id"),
    "rule": (_UUID, "The id of a rule of coupons"),
    "coupon": (_UUID, "The coupon's id"),
    "campaign": (_UUID, "The id of a campaign of points"),
    "gift": (_UUID, "The id of a gift of a plan"),
    "plan": (_UUID, "The plan's id"),
    "address": (_UUID, "The address's id"),
    "tag": (_UUID, "The tag's id"),
    "staff": (_UUID, "The staff account's id"),
    "key": (_UUID, "The API key's id"),
}

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000|\x00")


class Cookie(msgspec.Struct, frozen=True):
    name: str
    value: str
    age_s: int
    http_only: bool = True


class Service:
    """What the service says of itself: its documents, instruments and readiness."""

    def __init__(
        self,
        *,
        openapi: dict[str, Any],
        asyncapi: dict[str, Any],
        metrics: Metrics,
        count_rate: PlainScript,
        not_ready: Callable[[], str | None],
        degraded: Callable[[], list[str]],
    ) -> None:
        self.openapi = openapi
        self.asyncapi = asyncapi
        self.metrics = metrics
        self.viewers = Rates(WRITES_PER_S, WRITES_AT_ONCE)
        self.addresses = Rates(WRITES_PER_S * UNNAMED_FACTOR, WRITES_AT_ONCE * UNNAMED_FACTOR)
        self.count_rate = count_rate
        self.not_ready = not_ready  # why no new work should come here; None when it may
        self.degraded = degraded  # what is given up under pressure, or cannot be read

    def answered(self, route: str, status: int, took_s: float) -> None:
        self.metrics.http.labels(route, f"{status // 100}xx").observe(took_s)


class Context:
    """One request, known: the parts, the actor, the path's values and the key."""

    __slots__ = ("actor", "by", "cookies", "key", "parts", "path", "raw", "request", "service")

    def __init__(self, parts: Parts, service: Service, request: Request, path: Mapping[str, str]) -> None:
        self.parts = parts
        self.service = service
        self.request = request
        self.path = path
        self.actor = NO_ACTOR
        self.by: Literal["nothing", "bearer", "key", "cookie"] = "nothing"
        self.key: str | None = None
        self.raw = b""  # the body as it was sent
        self.cookies: list[Cookie] = []

    @property
    def show(self) -> ShowId:
        return ShowId(self.path["show"])

    @property
    def member(self) -> MemberId:
        """The signed-in member; routes for viewers have one."""
        member = self.actor.member
        if member is None:
            raise Unauthenticated
        return member

    @property
    def client_ip(self) -> str:
        """The address behind the trusted proxies; the server has resolved it."""
        return self.request.client.host if self.request.client else ""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self.parts.database.transaction() as t:
            yield t

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        async with self.parts.database.reading() as conn:
            yield conn

    async def audit(self, t: Transaction, act: str, subject: str, detail: Any = None) -> None:
        """Note a staff act in the audit log, in the act's own transaction."""
        await self.parts.audit.record(t, self.actor, act, subject, detail or {})

    def set_cookie(self, name: str, value: str, age_s: int, *, http_only: bool = True) -> None:
        self.cookies.append(Cookie(name, value, age_s, http_only))

    def start_session(self, cookie: str, token: str, age_s: int) -> None:
        """Set the session cookie, and the CSRF cookie that pages read unless there is one."""
        self.set_cookie(cookie, token, age_s)
        csrf = self.request.cookies.get(CSRF_COOKIE, "")
        if not re.fullmatch(r"[A-Za-z0-9_-]{22,64}", csrf):
            csrf = secrets.token_urlsafe(24)
        self.set_cookie(CSRF_COOKIE, csrf, VIEWER_SESSION_S, http_only=False)

    def end_session(self, cookie: str) -> None:
        self.set_cookie(cookie, "", 0)


@asynccontextmanager
async def refusal_noted(ctx: Context, act: str, subject: str) -> AsyncIterator[None]:
    """Around an act of staff that is worth money: that it was tried and refused is in the audit log, too."""
    try:
        yield
    except (NotFound, Unavailable):
        raise
    except Refusal as refusal:
        async with ctx.transaction() as t:
            await ctx.audit(t, f"{act}.refused", subject, {"code": refusal.word})
        raise


def may(actor: Actor, who: Who) -> None:
    """Refuse an actor whom a route is not for."""
    if who == "public":
        return
    if who == "viewer":
        if actor.kind != "viewer":
            raise Forbidden("This is for viewers; you are signed in as staff or as a shop's server.")
        if actor.member is None:
            raise Unauthenticated
        return
    if actor.kind == "viewer":
        raise Unauthenticated("Sign in as staff, or send an API key.")
    if who == "staff":
        return
    if not actor.may(who):
        if actor.room is not None and who in SHOP_WIDE:
            raise Forbidden("This is the whole shop's; you work in one room.", permission=who)
        raise Forbidden(f"This needs the permission {who}.", permission=who)


def roles_with(permission: Permission) -> list[str]:
    return [role for role, permissions in PERMISSIONS.items() if permission in permissions]


class Rates:
    """Token buckets of one process: how fast one person, or one address without a name, may write.

    A bucket that has filled up again is forgotten, so what is kept is bounded by what was asked lately.
    """

    def __init__(self, per_s: float, burst: int, now: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._now = per_s, burst, now
        self._buckets: dict[str, tuple[float, float]] = {}  # who -> (writes left, when)

    def take(self, who: str) -> None:
        """One write. Raises RateLimited."""
        now = self._now()
        left, at = self._buckets.pop(who, (float(self._burst), now))
        left = min(float(self._burst), left + (now - at) * self._per_s)
        if left < 1:
            self._buckets[who] = (left, now)
            raise RateLimited(retry_ms=int((1 - left) / self._per_s * 1000) + 1)
        self._buckets[who] = (left - 1, now)
        if len(self._buckets) > BUCKETS_MAX:
            for oldest in list(self._buckets)[: BUCKETS_MAX // 2]:  # in the order of the last write
                del self._buckets[oldest]


class Door:
    """Serves the routes of one path: one ASGI app, all its methods."""

    def __init__(
        self,
        parts: Parts,
        routes: list[Route],
        keep_reply: PlainScript,
        service: Service,
    ) -> None:
        self.parts = parts
        self.service = service
        self.routes = {route.method: route for route in routes}
        self.keep_reply = keep_reply
        self.bodies = {
            route.method: msgspec.json.Decoder(route.body) for route in routes if route.body is not None
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        started = time.perf_counter()
        method = "GET" if request.method == "HEAD" else request.method
        route = self.routes.get(method)  # type: ignore[call-overload]
        response = await self._answer(request, route)
        self.service.answered(
            route.name if route else "", response.status_code, time.perf_counter() - started
        )
        await response(scope, receive, send)

    async def _answer(self, request: Request, route: Route | None) -> Response:
        if not self.routes:
            return problem_response(NotFound("No such address; see /docs."))
        if route is None:
            allowed = sorted({*self.routes, *(("HEAD",) if "GET" in self.routes else ())})
            return problem_response(MethodNotAllowed(), {"allow": ", ".join(allowed)})
        ctx = Context(self.parts, self.service, request, request.path_params)
        try:
            return await self._serve(ctx, route)
        except Refusal as refusal:
            if isinstance(refusal, Unavailable):
                log.warning("%s: %s", route.name, refusal)
            return problem_response(refusal)
        except psycopg.DataError as error:
            log.warning("%s: a value that the store cannot hold (%s)", route.name, type(error).__name__)
            return problem_response(BadRequest("A value is out of bounds."))
        except (RedisError, psycopg.OperationalError, OSError) as error:  # the pool's errors among them
            log.warning("%s: %s: %s", route.name, type(error).__name__, error)
            return problem_response(Unavailable(retry_ms=1000))
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception:
            log.exception("%s failed", route.name)
            return problem_response(InternalError())

    async def _serve(self, ctx: Context, route: Route) -> Response:
        for name in route.parameters:
            if not PATH_FORMS[name][0].fullmatch(ctx.path[name]):
                raise NotFound
        await self._identify(ctx, route)
        may(ctx.actor, route.who)
        if route.writes and ctx.actor.kind == "viewer" and not route.signed:
            if ctx.by == "nothing":
                self.service.addresses.take(ctx.client_ip)
            else:
                self.service.viewers.take(ctx.actor.id)
        ctx.key = self._key(ctx.request) if route.writes else None
        given: list[Any] = []
        if route.query is not None:
            given.append(_query(ctx.request, route.query))
        if route.writes:
            ctx.raw = await _read_body(ctx.request, route.body_bytes_max)
            if route.takes and media_of(ctx.request) not in route.takes:
                raise UnsupportedMedia(f"Send {' or '.join(route.takes)}.")
        if route.body is not None and not route.signed:
            given.append(_decode(self.bodies[route.method], ctx.raw, ctx.request))
        if ctx.key is None or not route.keeps_reply or ctx.by == "nothing":
            return self._respond(ctx, route, await route.handler(ctx, *given))
        return await self._once(ctx, route, given)

    # -- who ------------------------------------------------------------------------------------

    async def _identify(self, ctx: Context, route: Route) -> None:
        """Decide the actor: Bearer first; else the cookie that fits the route; else a guest."""
        request = ctx.request
        authorization = request.headers.get("authorization")
        if authorization is not None:
            scheme, _, secret = authorization.partition(" ")
            secret = secret.strip()
            if scheme.lower() != "bearer" or not secret or len(secret) > 2048 or "\x00" in secret:
                raise Unauthenticated("Send `Authorization: Bearer` with a token or an API key.")
            async with ctx.reading() as conn:
                if secret.startswith(API_KEY_PREFIX):
                    ctx.actor, ctx.by = await actor_of_key(self.parts, conn, secret), "key"
                else:
                    ctx.actor, ctx.by = await actor_of_token(self.parts, conn, secret), "bearer"
            return
        cookie = self._cookie(request, route)
        if route.writes:
            _check_origin(request, self.parts.settings.public_url)
        if cookie is None:
            ctx.actor = guest(new_guest_id())
            return
        try:
            async with ctx.reading() as conn:
                actor = await actor_of_token(self.parts, conn, cookie)
        except Refusal as refusal:
            if route.who == "public" and not isinstance(refusal, Unavailable):
                ctx.actor = guest(new_guest_id())
                return  # a stale cookie does not shut a public door
            raise
        ctx.actor, ctx.by = actor, "cookie"
        if route.writes:
            sent, kept = request.headers.get(CSRF_HEADER, ""), request.cookies.get(CSRF_COOKIE, "")
            if not kept or not secrets.compare_digest(sent.encode(), kept.encode()):
                raise BadCsrf

    def _cookie(self, request: Request, route: Route) -> str | None:
        """Viewer and staff sessions live side by side in one browser; the route says which speaks."""
        as_staff = route.who not in ("public", "viewer") or (
            route.prefers_staff and request.query_params.get("as") != "viewer"
        )
        staff, viewer = request.cookies.get(STAFF_COOKIE), request.cookies.get(VIEWER_COOKIE)
        if route.who not in ("public", "viewer"):
            return staff
        return (staff or viewer) if as_staff else viewer

    # -- once -----------------------------------------------------------------------------------

    def _key(self, request: Request) -> str | None:
        key = request.headers.get("idempotency-key")
        if key is None:
            return None
        if not 1 <= len(key) <= KEY_CHARS_MAX or not key.isprintable():
            raise BadRequest(f"Idempotency-Key has 1 to {KEY_CHARS_MAX} printable characters.")
        return key

    async def _once(self, ctx: Context, route: Route, given: list[Any]) -> Response:
        """Run the handler once per caller and key; a repeat gets the kept answer.

        A refusal is not kept: what was refused may be asked again with the same key.
        """
        path = ctx.request.url.path
        digest = hashlib.sha256(f"{route.method} {path}\n".encode() + ctx.raw).hexdigest()
        record = f"{{http}}:reply:{ctx.actor.kind}:{ctx.actor.id}:{ctx.key}"
        seen = await self.keep_reply([record], [digest, KEY_RUNNING_MS])
        if seen == b"running" and not route.own_key:
            raise Busy(retry_ms=1000)
        if seen not in (b"new", b"running"):
            status, _, body = bytes(seen).partition(b"\n")
            return Response(
                body,
                status_code=int(status),
                media_type=route.media if body else None,
                headers={"cache-control": "no-store", "idempotent-replayed": "true"},
            )
        redis = self.parts.redis
        try:
            response = self._respond(ctx, route, await route.handler(ctx, *given))
        except asyncio.CancelledError:
            raise  # it may have been done: the key stays taken until its time is over
        except BaseException:
            with suppress(RedisError, OSError):
                await redis.delete(record)
            raise
        kept = b"%d\n" % response.status_code + bytes(response.body)
        # One packet, not MULTI: the Cluster client runs each command of a MULTI in a thread of its own.
        try:
            async with redis.pipeline(transaction=False) as pipe:
                pipe.hset(record, mapping={"digest": digest, "answer": kept})
                pipe.expire(record, REPLY_KEPT_S)
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("%s: done, but its answer is not kept: %s", route.name, error)
        return response

    def _respond(self, ctx: Context, route: Route, answer: Any) -> Response:
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        if isinstance(answer, Raw):
            headers.update(answer.headers)
            response = Response(answer.body, route.status, headers, answer.media)
        elif route.answer is None:
            response = Response(status_code=204, headers=headers)
        else:
            response = Response(msgspec.json.encode(answer), route.status, headers, route.media)
        secure = urlsplit(self.parts.settings.public_url or "").scheme == "https"
        for cookie in ctx.cookies:
            response.set_cookie(
                cookie.name,
                cookie.value,
                max_age=cookie.age_s,
                path="/",
                secure=secure,
                httponly=cookie.http_only,
                samesite="lax",
            )
        return response


# -- what was sent ---------------------------------------------------------------------------------


def _check_origin(request: Request, public_url: str | None) -> None:
    """A browser names the page that writes; it must be ours. Other clients send no Origin."""
    origin = request.headers.get("origin")
    if origin is None:
        return
    ours = {request.headers.get("host", "").lower(), urlsplit(public_url or "").netloc.lower()}
    try:
        named = urlsplit(origin).netloc.lower()
    except ValueError:  # no address at all, as `http://[`
        raise BadOrigin from None
    if named not in ours - {""}:
        raise BadOrigin


async def _read_body(request: Request, bytes_max: int) -> bytes:
    """The whole body, of so many bytes at most, in at most ten seconds."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > bytes_max:
        raise TooLarge(f"The body has at most {bytes_max // 1024} KB.")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WAIT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > bytes_max:
                    raise TooLarge(f"The body has at most {bytes_max // 1024} KB.")
    except TimeoutError:
        raise BadRequest(f"The body did not arrive within {BODY_WAIT_S:.0f} s.") from None
    return bytes(body)


def media_of(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _decode(decoder: msgspec.json.Decoder[Any], raw: bytes, request: Request) -> Any:
    if raw:
        if media_of(request) != "application/json":
            raise UnsupportedMedia
        if _NUL.search(raw):
            raise BadRequest("Text may not hold the character NUL.")
    try:
        return decoder.decode(raw or b"{}")
    except msgspec.ValidationError as error:
        raise BadRequest(_plain(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The body is no JSON: {error}.") from None
    except RecursionError:
        raise BadRequest("The body is nested too deeply.") from None


def _query(request: Request, kind: type[msgspec.Struct]) -> Any:
    given = {name: value for name, value in request.query_params.items() if name != "as"}
    if any("\x00" in value for value in given.values()):
        raise BadRequest("Text may not hold the character NUL.")
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise BadRequest(_plain(error)) from None


def _plain(error: msgspec.ValidationError) -> str:
    """`Expected int, got str (at lines[0].quantity).`"""
    text, _, place = str(error).replace("`", "").partition(" - at ")
    if not place:
        return f"{text}."
    return f"{text} (at {place.removeprefix('$.') if place != '$' else 'the body'})."
