"""The panel's pages: who gets in, what the shells hold, and that every word exists in both languages."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from live.engines import Addresses
from live.http import STAFF_COOKIE
from live.pages import STATIC
from live.panel_pages import WORDS, panel_routes
from membership.actor import Role, RoomId
from tests.live.api import BASE, Shop, open_shop

asynchronous = pytest.mark.anyio

PANEL = STATIC / "panel"
LINE = re.compile(r'^    (\w+): "((?:[^"\\]|\\.)*)",$', re.MULTILINE)


@pytest.fixture
async def shop(engines: Addresses, fresh_database_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(engines, fresh_database_url, tmp_path) as opened:
        opened.app.router.routes.extend(panel_routes(opened.parts))
        yield opened


def browser(shop: Shop, cookie: str | None = None) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=shop.app),
        base_url=BASE,
        cookies={} if cookie is None else {STAFF_COOKIE: cookie},
    )


async def desk(shop: Shop, role: Role = "host", room: str | None = None) -> httpx2.AsyncClient:
    """A browser with a staff session."""
    async with shop.parts.database.transaction() as t:
        account = await shop.parts.staff.create(t, "小禾", role, RoomId(room) if room else None)
    return browser(shop, shop.parts.tokens.mint(account.actor(), 3600))


async def a_show(shop: Shop) -> tuple[str, str]:
    """A room and a show in it."""
    owner = await shop.staff()
    room = (await owner.ok("POST", "/v1/rooms", {"title": "会员健康夜"}))["id"]
    starts = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    body = {"room": room, "title": "秋收专场", "starts_at": starts}
    return room, (await owner.ok("POST", "/v1/shows", body))["id"]


# -- who gets in -----------------------------------------------------------------------------------


@asynchronous
async def test_who_is_not_signed_in_is_sent_to_do_so_and_comes_back(shop: Shop) -> None:
    for cookie in (None, "nonsense"):
        answer = await browser(shop, cookie).get("/panel/abc")
        assert (answer.status_code, answer.headers["location"]) == (302, "/panel/sign-in?next=/panel/abc")


@asynchronous
async def test_a_disabled_account_is_sent_away(shop: Shop) -> None:
    async with shop.parts.database.transaction() as t:
        account = await shop.parts.staff.create(t, "小禾", "host", None)
    page = browser(shop, shop.parts.tokens.mint(account.actor(), 3600))
    assert (await page.get("/panel")).status_code == 200
    async with shop.parts.database.transaction() as t:
        await shop.parts.staff.disable(t, account.id)
    assert (await page.get("/panel")).status_code == 302


@asynchronous
async def test_a_preview_is_no_session_of_staff(shop: Shop) -> None:
    async with shop.parts.database.transaction() as t:
        account = await shop.parts.staff.create(t, "小禾", "host", None)
    token = shop.parts.tokens.mint(account.actor(), 3600, preview="plan")
    assert (await browser(shop, token).get("/panel")).status_code == 302
    assert (await browser(shop, token).get("/panel/token?show=abc")).json()["code"] == "unauthenticated"


@asynchronous
async def test_a_viewer_is_no_staff(shop: Shop) -> None:
    async with shop.parts.database.transaction() as t:
        member = await shop.parts.members.register(t, "13800000001", "阿珍")
        actor = await shop.parts.members.actor(t.conn, member.id)
    page = browser(shop, shop.parts.tokens.mint(actor, 3600))
    assert (await page.get("/panel")).status_code == 302
    assert (await page.get("/panel/token?show=abc")).status_code == 401


# -- the shells ------------------------------------------------------------------------------------


@asynchronous
async def test_the_shell_holds_no_script_of_its_own_but_the_import_map_by_its_hash(shop: Shop) -> None:
    page = await desk(shop)
    for path in ("/panel", "/panel/abc", "/panel/sign-in"):
        answer = await page.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        found = re.findall(r"<script([^>]*)>(.*?)</script>", answer.text, re.DOTALL)
        inline = [(kind, text) for kind, text in found if "src=" not in kind]
        assert [kind.strip() for kind, _ in inline] == ['type="importmap"']
        digest = base64.b64encode(hashlib.sha256(inline[0][1].encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy and "unsafe-inline" not in policy
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"\sstyle=|\son\w+=", answer.text)


@asynchronous
async def test_what_stands_in_the_address_is_text(shop: Shop) -> None:
    answer = await (await desk(shop)).get('/panel/"><script>alert(1)</script>')
    assert "<script>alert(1)" not in answer.text


@asynchronous
async def test_the_shell_speaks_the_language_that_is_asked_for(shop: Shop) -> None:
    page = await desk(shop)
    english = await page.get("/panel?lang=en")
    assert 'lang="en"' in english.text and WORDS["en"]["panel"] in english.text
    chinese = await page.get("/panel/sign-in?lang=zh")
    assert 'lang="zh-CN"' in chinese.text and WORDS["zh"]["sign_in_title"] in chinese.text


@asynchronous
async def test_the_sign_in_page_tells_no_other_site_where_it_was(shop: Shop) -> None:
    answer = await browser(shop).get("/panel/sign-in")
    assert answer.headers["referrer-policy"] == "no-referrer"


@asynchronous
async def test_every_module_that_the_shell_names_is_there(shop: Shop) -> None:
    answer = await (await desk(shop)).get("/panel")
    named = re.findall(r'(?:href|src)="/static/v-[0-9a-f]{12}/([^"]+)"', answer.text)
    assert "panel/main.js" in named and "panel/panel.css" in named
    ours = [name for name in named if not name.startswith("vendor/")]
    assert [name for name in ours if not (STATIC / name).is_file()] == []


# -- the socket's token ----------------------------------------------------------------------------


@asynchronous
async def test_the_socket_gets_a_token_that_says_staff(shop: Shop) -> None:
    room, show = await a_show(shop)
    answer = await (await desk(shop, room=room)).get(f"/panel/token?show={show}")
    claims = shop.parts.tokens.verify(answer.json()["token"])
    assert (claims.kind, claims.role, claims.preview) == ("staff", "host", None)
    assert answer.json()["expires_at"] / 1000 <= claims.exp
    assert answer.headers["cache-control"] == "no-store"


@asynchronous
@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "bad_request"),
        ("?show=", "bad_request"),
        ("?show=%00", "bad_request"),
        ("?show=none", "not_found"),
    ],
)
async def test_the_token_is_for_a_show_that_there_is(shop: Shop, query: str, code: str) -> None:
    answer = await (await desk(shop)).get(f"/panel/token{query}")
    assert answer.json()["code"] == code
    assert answer.headers["content-type"] == "application/problem+json"


@asynchronous
async def test_staff_of_another_room_get_no_token_and_no_phone(shop: Shop) -> None:
    _, show = await a_show(shop)
    other = (await (await shop.staff()).ok("POST", "/v1/rooms", {"title": "别处"}))["id"]
    page = await desk(shop, room=other)
    assert (await page.get(f"/panel/token?show={show}")).json()["code"] == "forbidden"
    assert (await page.get(f"/s/{show}/phone?as=guest")).status_code == 404


# -- a viewer's phone ------------------------------------------------------------------------------


@asynchronous
@pytest.mark.parametrize("seen_as", ["guest", "plan"])
async def test_the_phone_speaks_by_a_token_that_only_looks(shop: Shop, seen_as: str) -> None:
    _, show = await a_show(shop)
    answer = await (await desk(shop)).get(f"/s/{show}/phone?as={seen_as}")
    token = re.search(r'"token": ?"([^"]+)"', answer.text)
    assert answer.status_code == 200 and token is not None
    assert shop.parts.tokens.verify(token[1]).preview == seen_as
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]


@asynchronous
async def test_there_is_no_phone_for_others(shop: Shop) -> None:
    _, show = await a_show(shop)
    assert (await browser(shop).get(f"/s/{show}/phone?as=guest")).status_code == 404
    page = await desk(shop)
    assert (await page.get(f"/s/{show}/phone?as=owner")).status_code == 404
    assert (await page.get("/s/none/phone?as=guest")).status_code == 404


# -- words and sources -----------------------------------------------------------------------------


def panel_texts() -> dict[str, dict[str, str]]:
    source = (STATIC / "panel-texts.js").read_text("utf-8")
    chinese, english = source.split("\n  en: {")
    return {"zh": dict(LINE.findall(chinese)), "en": dict(LINE.findall(english))}


def panel_sources() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in PANEL.glob("*.js")}


def test_both_languages_have_the_same_words_with_the_same_places() -> None:
    texts = panel_texts()
    assert texts["zh"].keys() == texts["en"].keys() and len(texts["zh"]) > 300
    places = {
        lang: {key: set(re.findall(r"\{(\w+)\}", words)) for key, words in of.items()}
        for lang, of in texts.items()
    }
    assert places["zh"] == places["en"]
    assert WORDS["zh"].keys() == WORDS["en"].keys()


def test_every_word_the_panel_says_is_there() -> None:
    said = set(re.findall(r'\bt\(\s*"(\w+)"', "\n".join(panel_sources().values())))
    assert said - panel_texts()["zh"].keys() == set()


def test_text_is_text() -> None:
    banned = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerouslySet|\beval\(")
    assert [name for name, source in panel_sources().items() if banned.search(source)] == []
