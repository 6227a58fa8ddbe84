"""Pages for viewers: the shop's shows, one show, what is one's own; and the static files behind them.

A page is a shell: what it says of a show is the card that anybody may have. Who is looking, and what only
they may see, comes by the socket and the API. No script stands in a page but the import map, by its hash.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urljoin
from zoneinfo import ZoneInfo

import anyio.to_thread
import jinja2
import msgspec
import psycopg
import psycopg_pool
from babel.dates import format_datetime, format_skeleton
from markupsafe import Markup
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from live.http import GUEST_COOKIE
from membership.actor import NOBODY, RoomId
from membership.audience import EVERYONE
from membership.members import is_guest_id, new_guest_id
from membership.refusal import NotFound, Refusal

if TYPE_CHECKING:
    from live.parts import Parts
    from live.shows import Show

HERE: Final = Path(__file__).parent
STATIC: Final = HERE / "static"
LANG_COOKIE: Final = "companion_lang"
LANG_COOKIE_S: Final = 365 * 86_400
GUEST_COOKIE_S: Final = 30 * 86_400
SHOWS_LISTED: Final = 60
YEAR_S: Final = 31_536_000
TEXT_SUFFIXES: Final = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
}
ON_AIR: Final = ("live", "paused", "ending")

_GZIP: Final = re.compile(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))")

Lang = Literal["zh", "en"]

WORDS: Final[dict[Lang, dict[str, str]]] = {
    "zh": {
        "shows": "直播",
        "now": "正在直播",
        "soon": "即将开播",
        "before": "已结束",
        "live": "直播中",
        "members": "会员专属",
        "none": "还没有安排直播",
        "skip": "跳到直播列表",
        "mine": "我的订单与权益",
        "noscript": "看直播需要打开浏览器的 JavaScript。",
        "missing_title": "没有这场直播",
        "missing_text": "链接可能抄错了，或这场直播已撤下。",
        "down_title": "暂时打不开",
        "down_text": "系统正在恢复，请稍后刷新。",
        "home": "看看其他直播",
        "pay_title": "微信支付",
        "pay_opening": "正在打开微信支付…",
        "pay_outside": "请在微信里打开这个页面。",
        "pay_cancelled": "还没有付款，订单为您保留到时间结束。",
        "pay_failed": "没有付成，可以再试一次。",
        "pay_nothing": "这个支付链接不完整，请从订单重新进入。",
        "pay_again": "重新支付",
        "pay_back": "返回订单",
    },
    "en": {
        "shows": "Live shows",
        "now": "Live now",
        "soon": "Coming up",
        "before": "Ended",
        "live": "Live",
        "members": "Members",
        "none": "No shows are scheduled yet",
        "skip": "Skip to the shows",
        "mine": "My orders and benefits",
        "noscript": "The show needs JavaScript in your browser.",
        "missing_title": "No such show",
        "missing_text": "The link may be mistyped, or the show was taken down.",
        "down_title": "Not available right now",
        "down_text": "The service is coming back. Please reload in a moment.",
        "home": "See other shows",
        "pay_title": "WeChat Pay",
        "pay_opening": "Opening WeChat Pay…",
        "pay_outside": "Please open this page inside WeChat.",
        "pay_cancelled": "Not paid yet. The order is kept for you until its time is over.",
        "pay_failed": "The payment did not go through. You may try again.",
        "pay_nothing": "This payment link is not complete. Please start again from your order.",
        "pay_again": "Pay again",
        "pay_back": "Back to the order",
    },
}


def choose_language(request: Request) -> Lang:
    """?lang=, then the cookie, then the first of ours in Accept-Language; else Chinese."""
    for wish in (request.query_params.get("lang"), request.cookies.get(LANG_COOKIE)):
        if wish in WORDS:
            return "en" if wish == "en" else "zh"
    ranked: list[tuple[float, int, str]] = []
    for place, part in enumerate(request.headers.get("accept-language", "")[:200].split(",")):
        name, _, quality = part.strip().partition(";q=")
        try:
            weight = float(quality) if quality else 1.0
        except ValueError:
            continue
        ranked.append((-weight, place, name.lower()))
    for _, _, name in sorted(ranked):
        if name.startswith("zh"):
            return "zh"
        if name.startswith("en"):
            return "en"
    return "zh"


def import_map(vendor: Path, prefix: str) -> str:
    """The one script that stands in a page: which file each bare name means."""
    try:
        names = msgspec.json.decode((vendor / "vendor.json").read_bytes())["imports"]
    except FileNotFoundError:
        names = {}  # not fetched: the page says what it can, the API and sockets work
    mapped = {name: f"{prefix}vendor/{file}" for name, file in names.items()}
    return msgspec.json.encode({"imports": mapped}).decode().replace("<", "\\u003c")


def script_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def content_policy(inline_hash: str, public_url: str) -> str:
    """Own scripts and styles only. Pictures and video may come from elsewhere: a show names their address.

    Where the shop itself is served by plain http (a trial on one's own network), so may the video be.
    """
    plain = not public_url.startswith("https:")
    elsewhere = "https: http:" if plain else "https:"
    sockets = "wss: ws:" if plain else "wss:"  # older Safari does not count a socket as 'self'
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' '{inline_hash}'",
            "style-src 'self'",
            f"img-src 'self' data: {elsewhere}",
            f"media-src 'self' blob: {elsewhere}",
            f"connect-src 'self' {elsewhere} {sockets}",
            "worker-src 'self' blob:",  # the FLV player builds its worker itself
            "font-src 'self'",
            "manifest-src 'self'",
            "frame-src 'self'",
            "frame-ancestors 'self'",
            "form-action 'self'",
            "base-uri 'none'",
        )
    )


class Pages:
    """The shells, the environment they are drawn in, and the headers they go with."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.settings = parts.settings
        self.zone = ZoneInfo(parts.settings.timezone)
        self.files = Static(STATIC)
        self.prefix = f"/static/{self.files.version}/"
        self.import_map = import_map(STATIC / "vendor", self.prefix)
        self.policy = content_policy(script_hash(self.import_map), parts.settings.public_url)
        self.environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.globals.update(
            static=self.static,
            absolute=partial(urljoin, parts.settings.public_url + "/"),
            import_map=Markup(self.import_map),  # noqa: S704  made here, `<` escaped
            shop_name=parts.settings.shop_name,
            public_url=parts.settings.public_url,
        )
        self.modules = [
            self.static(name)
            for name in (
                "socket.js",
                "texts.js",
                *sorted(f"viewer/{path.name}" for path in (STATIC / "viewer").glob("*.js")),
            )
        ]

    def static(self, path: str) -> str:
        """The address of a static file. It holds the version of all, so that it may be kept for a year."""
        return self.prefix + path

    def render(
        self,
        template: str,
        request: Request,
        status: int = 200,
        *,
        headers: dict[str, str] | None = None,
        **values: Any,
    ) -> HTMLResponse:
        """A page in the viewer's language, with the headers every page has."""
        lang = choose_language(request)
        text = self.environment.get_template(template).render({"words": WORDS[lang], **values, "lang": lang})
        response = HTMLResponse(
            text,
            status_code=status,
            headers={
                "content-security-policy": self.policy,
                "cache-control": "no-store",
                "content-language": "zh-CN" if lang == "zh" else "en",
                "referrer-policy": "same-origin",
                "x-content-type-options": "nosniff",
                "permissions-policy": "camera=(), microphone=(), geolocation=()",
                "vary": "Accept-Language, Cookie",
                **(headers or {}),
            },
        )
        if request.query_params.get("lang") == lang:
            response.set_cookie(LANG_COOKIE, lang, max_age=LANG_COOKIE_S, samesite="lax", path="/")
        return response

    # -- the pages ---------------------------------------------------------------------------------

    async def shop(self, request: Request) -> Response:
        """The shows of the shop: on air, coming, ended."""
        async with self.parts.database.reading() as conn:
            found = (await self.parts.shows.list(conn, limit=SHOWS_LISTED)).items
        lang = choose_language(request)
        words = WORDS[lang]
        now = [show for show in found if show.status in ON_AIR]
        soon = sorted(
            (show for show in found if show.status in ("scheduled", "waiting")),
            key=lambda show: show.starts_at,
        )
        before = [show for show in found if show.status == "ended"][:12]
        groups = [
            {"title": words[name], "shows": [self._row(show, lang) for show in shows]}
            for name, shows in (("now", now), ("soon", soon), ("before", before))
        ]
        return self.render("shop.html", request, groups=groups)

    def _row(self, show: Show, lang: Lang) -> dict[str, Any]:
        starts = datetime.fromtimestamp(show.starts_at / 1000, UTC).astimezone(self.zone)
        if lang == "zh":
            when = format_datetime(starts, "M月d日 EEE HH:mm", locale="zh_CN")
        else:
            when = f"{format_skeleton('MMMEd', starts, locale='en_GB')} {starts:%H:%M}"
        card = self.parts.shows.card(show, NOBODY)
        return {
            "id": show.id,
            "title": show.title,
            "poster": show.poster_url,
            "by": " · ".join(text for text in (show.room.title, show.room.host_name) if text),
            "when": when,
            "live": show.status in ON_AIR,
            "members_only": not card.admitted and show.room.audience != EVERYONE,
        }

    async def show(self, request: Request) -> Response:
        """One show. The shell is the same for everybody."""
        async with self.parts.database.reading() as conn:
            show = await self.parts.shows.get(conn, request.path_params["show"])
        return self.viewer(request, show)

    async def room(self, request: Request) -> Response:
        """A room's own address: its show on air, else the next, else the last."""
        async with self.parts.database.reading() as conn:
            room = await self.parts.rooms.get(conn, request.path_params["room"])
            found = (await self.parts.shows.list(conn, room=RoomId(room.id), limit=SHOWS_LISTED)).items
        soon = sorted((s for s in found if s.status in ("scheduled", "waiting")), key=lambda s: s.starts_at)
        for show in [*(s for s in found if s.status in ON_AIR), *soon, *found]:
            return RedirectResponse(f"/s/{show.id}", status_code=302, headers={"cache-control": "no-store"})
        raise NotFound

    async def mine(self, request: Request) -> Response:
        """One's orders and benefits, apart from any show: holds run on after a show's end."""
        return self.render(
            "viewer.html",
            request,
            show={
                "id": "",
                "title": WORDS[choose_language(request)]["mine"],
                "status": "",
                "summary": "",
                "poster": "",
            },
            boot={**self._boot(), "show": None},
            modules=self.modules,
        )

    def _boot(self) -> dict[str, Any]:
        return {
            "currency": self.settings.currency,
            "timezone": self.settings.timezone,
            "shop": self.settings.shop_name,
            "sandbox": self.settings.sandbox,
        }

    def viewer(self, request: Request, show: Show, preview: dict[str, str] | None = None) -> HTMLResponse:
        """The viewer's page of a show. A preview `{as, token}` speaks by its own token and only looks."""
        card = msgspec.to_builtins(self.parts.shows.card(show, NOBODY))
        card["guest_comments"] = card["admitted"] and show.guest_comments
        boot = {**self._boot(), "show": card}
        if preview is not None:
            boot["preview"] = preview
        response = self.render(
            "viewer.html", request, show={"summary": "", **card}, boot=boot, modules=self.modules
        )
        if preview is None and not is_guest_id(request.cookies.get(GUEST_COOKIE, "")):
            response.set_cookie(
                GUEST_COOKIE,
                new_guest_id(),
                max_age=GUEST_COOKIE_S,
                httponly=True,
                samesite="lax",
                secure=self.settings.public_url.startswith("https:"),
                path="/",
            )
        return response

    async def pay_wechat(self, request: Request) -> Response:
        """Where WeChat's browser opens the payment; what to open stands in the address's fragment."""
        return self.render("pay_wechat.html", request)

    def missing(self, request: Request, status: int = 404) -> HTMLResponse:
        words = WORDS[choose_language(request)]
        name = "missing" if status == 404 else "down"
        return self.render(
            "missing.html",
            request,
            status,
            words={**words, "title": words[f"{name}_title"], "text": words[f"{name}_text"]},
            headers={} if status == 404 else {"retry-after": "5"},
        )


Handler = Callable[[Request], Awaitable[Response]]
_POOL_TROUBLE: Final = (psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed)


def guarded(pages: Pages, handler: Handler) -> Handler:
    """A page for a person also where there is nothing to show, or the store does not answer."""

    async def serve(request: Request) -> Response:
        try:
            return await handler(request)
        except NotFound:
            return pages.missing(request)
        except (Refusal, OSError, psycopg.OperationalError, *_POOL_TROUBLE):
            return pages.missing(request, 503)

    return serve


def page_routes(parts: Parts) -> list[BaseRoute]:
    """/, /s/{show}, /r/{room}, /me/orders, /me/benefits, /receipt, /pay/wechat and /static."""
    pages = Pages(parts)
    return [
        Route("/", guarded(pages, pages.shop)),
        Route("/s/{show}", guarded(pages, pages.show)),
        Route("/r/{room}", guarded(pages, pages.room)),
        Route("/me/orders", guarded(pages, pages.mine)),
        Route("/me/benefits", guarded(pages, pages.mine)),
        Route("/receipt", guarded(pages, pages.mine)),  # checks one that stands behind `#` or is pasted
        Route("/pay/wechat", guarded(pages, pages.pay_wechat)),
        Mount("/static", app=pages.files, name="static"),
    ]


# -- static files ----------------------------------------------------------------------------------


class Packed(msgspec.Struct, frozen=True):
    """A text file as it is sent: compressed once, not per request."""

    changed_ns: int
    etag: str
    media: str
    plain: bytes
    packed: bytes


class Static:
    """Static files. Text is kept compressed in memory; pictures and video are streamed with ranges.

    Under /static/v-<version>/ a file never changes and is kept for a year; without it, it is asked for anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._rest = StaticFiles(directory=folder)
        self._kept: dict[str, Packed] = {}
        self.version = "v-" + self._fingerprint()

    def _fingerprint(self) -> str:
        """Of all text files' contents: one that changes gives all a new address."""
        digest = hashlib.sha256()
        for path in sorted(self._folder.rglob("*")):
            if path.suffix in TEXT_SUFFIXES and path.is_file():
                digest.update(str(path.relative_to(self._folder)).encode() + b"\0")
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:12]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise HTTPException(404)
        request = Request(scope, receive)
        if request.method not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"allow": "GET, HEAD"})
        path = _path_of(scope)
        head, _, rest = path.partition("/")
        versioned = re.fullmatch(r"v-[0-9a-f]{12}", head) is not None
        if versioned:
            path = rest
        keep = f"public, max-age={YEAR_S}, immutable" if head == self.version else "no-cache"
        headers = {"cache-control": keep, "x-content-type-options": "nosniff"}
        if Path(path).suffix in TEXT_SUFFIXES:
            found = await self._text(path)
            if found is None:
                raise HTTPException(404)
            await self._answer(request, found, headers)(scope, receive, send)
            return
        if "\0" in path:
            raise HTTPException(404)
        response = await self._rest.get_response(path, scope)
        response.headers.update(headers)
        await response(scope, receive, send)

    def _answer(self, request: Request, found: Packed, headers: dict[str, str]) -> Response:
        headers = {**headers, "etag": found.etag, "vary": "Accept-Encoding"}
        if found.etag in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
            return Response(status_code=304, headers=headers)
        if _GZIP.search(request.headers.get("accept-encoding", "")) and len(found.packed) < len(found.plain):
            headers["content-encoding"] = "gzip"
            return Response(found.packed, headers=headers, media_type=found.media)
        return Response(found.plain, headers=headers, media_type=found.media)

    async def _text(self, path: str) -> Packed | None:
        try:
            full = (self._folder / path).resolve()
            if not full.is_relative_to(self._folder):
                return None
            changed = full.stat().st_mtime_ns
        except (OSError, ValueError):  # no such file, or a name that no file can have
            return None
        kept = self._kept.get(path)
        if kept is not None and kept.changed_ns == changed:
            return kept
        made = await anyio.to_thread.run_sync(_pack, full, changed)
        if made is not None:
            self._kept[path] = made  # as many as there are files: paths that lead nowhere are not kept
        return made


def _path_of(scope: Scope) -> str:
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :].lstrip("/") if root and path.startswith(root) else path.lstrip("/")


def _pack(full: Path, changed_ns: int) -> Packed | None:
    try:
        plain = full.read_bytes()
    except OSError:
        return None
    return Packed(
        changed_ns=changed_ns,
        etag=f'"{hashlib.sha256(plain).hexdigest()[:20]}"',
        media=TEXT_SUFFIXES[full.suffix],
        plain=plain,
        packed=gzip.compress(plain, 6, mtime=0),
    )
