"""Pages for staff: the panel's shell, its one-time sign-in, the token of its socket, and a viewer's phone.

The shells hold nothing of a show: everything comes by the API and the socket, which ask who is there. The
token of a sign-in link stands behind `#`, so it reaches no server by the address, only by POST.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec
import psycopg
import psycopg_pool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from live.http import STAFF_COOKIE
from live.identity import actor_of_token
from live.pages import STATIC, Lang, Pages, choose_language, guarded
from live.problem import problem_response
from membership.actor import Actor
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal, Unauthenticated, Unavailable
from membership.tokens import Preview
from membership.transaction import Connection

if TYPE_CHECKING:
    from live.parts import Parts
    from live.shows import Show

SOCKET_TOKEN_S: Final = 3_600  # the panel asks for the next one five minutes before
PREVIEW_TOKEN_S: Final = 3_600
SIGN_IN: Final = "/panel/sign-in"
NOT_PRELOADED: Final = ("panel/theme.js", "panel/sign_in.js")
PREVIEWS: Final[dict[str, Preview]] = {"guest": "guest", "plan": "plan"}

WORDS: Final[dict[Lang, dict[str, str]]] = {
    "zh": {
        "panel": "直播控制台",
        "skip_to_main": "跳到内容",
        "loading": "正在读取…",
        "noscript": "控制台需要打开浏览器的 JavaScript。",
        "sign_in_title": "登录控制台",
        "sign_in_field": "粘贴收到的链接",
        "sign_in_button": "登录",
        "sign_in_new": "需要新的链接？请店主或管理员重新生成一个。",
    },
    "en": {
        "panel": "Host panel",
        "skip_to_main": "Skip to content",
        "loading": "Loading…",
        "noscript": "The panel needs JavaScript in your browser.",
        "sign_in_title": "Sign in to the panel",
        "sign_in_field": "Paste the link you were sent",
        "sign_in_button": "Sign in",
        "sign_in_new": "Need a new link? Ask the owner or an admin to make one.",
    },
}

Handler = Callable[[Request], Awaitable[Response]]


class SocketToken(msgspec.Struct, frozen=True):
    """What the panel says hello with: a viewer's cookie in the same browser would speak first."""

    token: str
    expires_at: int  # ms


class PanelPages:
    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.pages = Pages(parts)
        own = sorted(f"panel/{path.name}" for path in (STATIC / "panel").glob("*.js"))
        names = ("socket.js", "panel-texts.js", *(name for name in own if name not in NOT_PRELOADED))
        self.modules = [self.pages.static(name) for name in names]

    async def panel(self, request: Request) -> Response:
        """The list of shows, or the desk of one. Who is not signed in is sent to do so and comes back."""
        try:
            async with self.parts.database.reading() as conn:
                await self._staff(conn, request)
        except (Unauthenticated, Forbidden):
            return RedirectResponse(
                f"{SIGN_IN}?next={quote(request.url.path)}", 302, headers={"cache-control": "no-store"}
            )
        return self.pages.render(
            "panel.html",
            request,
            words=WORDS[choose_language(request)],
            show_id=request.path_params.get("show", ""),
            timezone=self.parts.settings.timezone,
            modules=self.modules,
        )

    async def sign_in(self, request: Request) -> Response:
        """Takes the token from behind `#` and exchanges it by POST /v1/staff/sign-in."""
        return self.pages.render(
            "panel_sign_in.html",
            request,
            words=WORDS[choose_language(request)],
            headers={"referrer-policy": "no-referrer"},
        )

    async def token(self, request: Request) -> Response:
        """A token for the panel's socket to one show."""
        async with self.parts.database.reading() as conn:
            staff = await self._staff(conn, request)
            await self._own_show(conn, staff, request.query_params.get("show", ""))
        made = SocketToken(
            token=self.parts.tokens.mint(staff, SOCKET_TOKEN_S),
            expires_at=(int(time.time()) + SOCKET_TOKEN_S) * 1000,
        )
        return Response(
            msgspec.json.encode(made), media_type="application/json", headers={"cache-control": "no-store"}
        )

    async def phone(self, request: Request) -> Response:
        """The viewer's page as a guest or a plan member sees it; it looks and does nothing."""
        seen_as = PREVIEWS.get(request.query_params.get("as", ""))
        if seen_as is None:
            raise NotFound
        async with self.parts.database.reading() as conn:
            try:
                staff = await self._staff(conn, request)
                show = await self._own_show(conn, staff, request.path_params["show"])
            except (Unauthenticated, Forbidden):
                raise NotFound from None  # to others there is no such page
        token = self.parts.tokens.mint(staff, PREVIEW_TOKEN_S, preview=seen_as)
        return self.pages.viewer(request, show, {"as": seen_as, "token": token})

    async def _staff(self, conn: Connection, request: Request) -> Actor:
        """Whose staff cookie this is. Raises Unauthenticated, Forbidden (a disabled account)."""
        cookie = request.cookies.get(STAFF_COOKIE)
        if not cookie:
            raise Unauthenticated("Sign in as staff.")
        actor = await actor_of_token(self.parts, conn, cookie)
        if actor.kind != "staff":
            raise Unauthenticated("Sign in as staff.")
        return actor

    async def _own_show(self, conn: Connection, staff: Actor, show: str) -> Show:
        if not show or len(show) > 64 or "\0" in show:
            raise BadRequest("Say which show.")
        found = await self.parts.shows.get(conn, show)
        if staff.room is not None and staff.room != found.room.id:
            raise Forbidden("You work in another room.")
        return found


def answered(handler: Handler) -> Handler:
    """A refusal, or a store that does not answer, as problem+json: the panel's own script reads it."""

    async def serve(request: Request) -> Response:
        try:
            return await handler(request)
        except Refusal as refusal:
            return problem_response(refusal)
        except (OSError, psycopg.OperationalError, psycopg_pool.PoolTimeout, psycopg_pool.PoolClosed):
            return problem_response(Unavailable(retry_ms=1000))

    return serve


def panel_routes(parts: Parts) -> list[BaseRoute]:
    """/panel, /panel/sign-in, /panel/token, /panel/money, /panel/{show} and /s/{show}/phone."""
    panel = PanelPages(parts)
    return [
        Route("/panel", guarded(panel.pages, panel.panel)),
        Route(SIGN_IN, guarded(panel.pages, panel.sign_in)),
        Route("/panel/token", answered(panel.token)),
        Route("/panel/money", guarded(panel.pages, panel.panel)),
        Route("/panel/{show}", guarded(panel.pages, panel.panel)),
        Route("/s/{show}/phone", guarded(panel.pages, panel.phone)),
    ]
