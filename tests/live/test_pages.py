"""The viewers' pages: what a shell may say, in which language, by which headers; and the files behind it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from live.engines import Addresses
from live.pages import (
    LANG_COOKIE,
    STATIC,
    WORDS,
    Pages,
    Static,
    choose_language,
    content_policy,
    guarded,
    import_map,
    page_routes,
)
from membership.refusal import Unavailable
from tests.live.api import BASE, Shop, open_shop

asynchronous = pytest.mark.anyio

VIEWER = STATIC / "viewer"
VIDEO = "https://video.test/secret.m3u8"
KEY = re.compile(r'^    "?([\w.]+)"?: (\{.*\}|"(?:[^"\\]|\\.)*"),$', re.MULTILINE)


@pytest.fixture
async def shop(engines: Addresses, fresh_database_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(engines, fresh_database_url, tmp_path) as opened:
        opened.app.router.routes.extend(page_routes(opened.parts))
        yield opened


def browser(shop: Shop, **more: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=shop.app), base_url=BASE, **more)


async def a_show(
    shop: Shop, title: str = "新米上市夜", *, room: dict[str, Any] | None = None, hours: float = 2
) -> tuple[str, str]:
    """(room, show) with a video."""
    owner = await shop.staff()
    made = await owner.ok("POST", "/v1/rooms", {"title": "会员健康夜", "host_name": "小禾", **(room or {})})
    body = {
        "room": made["id"],
        "title": title,
        "summary": "边煮边聊",
        "starts_at": (datetime.now(UTC) + timedelta(hours=hours)).isoformat(),
        "video_url": VIDEO,
        "video_kind": "hls",
    }
    return made["slug"], (await owner.ok("POST", "/v1/shows", body))["id"]


def boot_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="boot">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    boot: dict[str, Any] = json.loads(found[1])
    return boot


# -- language --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "cookie", "accepts", "chosen"),
    [
        ("", "", "", "zh"),
        ("", "", "en-GB,en;q=0.9", "en"),
        ("", "", "fr,en;q=0.4,zh;q=0.8", "zh"),
        ("", "", "fr-FR", "zh"),
        ("", "", "en;q=x,zh;q=0.1", "zh"),
        ("", "en", "zh-CN", "en"),
        ("lang=zh", "en", "en", "zh"),
        ("lang=xx", "", "en", "en"),
        ("", '"><script>', "zh", "zh"),
    ],
)
def test_the_language_is_asked_for_then_remembered_then_the_browsers(
    query: str, cookie: str, accepts: str, chosen: str
) -> None:
    headers = [(b"accept-language", accepts.encode()), (b"cookie", f"{LANG_COOKIE}={cookie}".encode())]
    scope = {"type": "http", "query_string": query.encode(), "headers": headers, "method": "GET", "path": "/"}
    assert choose_language(Request(scope)) == chosen


@asynchronous
async def test_a_chosen_language_is_remembered(shop: Shop) -> None:
    async with browser(shop, headers={"accept-language": "zh-CN"}) as page:
        english = await page.get("/?lang=en")
        assert english.headers["content-language"] == "en" and LANG_COOKIE in english.cookies
        again = await page.get("/")
        assert '<html lang="en">' in again.text and WORDS["en"]["none"] in again.text


# -- the shells ------------------------------------------------------------------------------------


@asynchronous
async def test_the_shell_of_a_show_holds_its_card_and_every_module(shop: Shop) -> None:
    _, show = await a_show(shop)
    answer = await browser(shop).get(f"/s/{show}")
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    boot = boot_of(answer.text)
    assert boot["show"]["title"] == "新米上市夜" and boot["show"]["video"]["url"] == VIDEO
    assert boot["currency"] == "CNY" and "preview" not in boot
    named = re.findall(r'(?:href|src)="/static/v-[0-9a-f]{12}/([^"]+)"', answer.text)
    assert {f"viewer/{path.name}" for path in VIEWER.glob("*.js")} <= set(named)
    assert [name for name in named if not (STATIC / name).is_file()] == []


@asynchronous
async def test_no_script_stands_in_a_page_but_the_import_map_by_its_hash(shop: Shop) -> None:
    _, show = await a_show(shop)
    for path in ("/", f"/s/{show}", "/me/orders", "/s/none"):
        answer = await browser(shop).get(path)
        policy = answer.headers["content-security-policy"]
        inline = re.findall(r'<script type="importmap">(.*?)</script>', answer.text, re.DOTALL)
        for text in inline:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
        assert "unsafe" not in policy and "default-src 'none'" in policy
        assert not re.search(r"<style|\sstyle=|\son\w+=", answer.text)
        assert not re.search(r"<script>|<script type=\"module\">", answer.text)


@asynchronous
async def test_a_title_is_text_wherever_it_stands(shop: Shop) -> None:
    _, show = await a_show(shop, title="</script><img src=x onerror=alert(1)>")
    for path in ("/", f"/s/{show}"):
        page = (await browser(shop).get(path)).text
        assert "<img src=x" not in page and "</script><img" not in page
    assert boot_of((await browser(shop).get(f"/s/{show}")).text)["show"]["title"].startswith("</script>")


@asynchronous
async def test_a_members_room_shows_its_door_and_nothing_behind_it(shop: Shop) -> None:
    _, show = await a_show(shop, room={"audience": {"kind": "plan_members"}})
    member = await shop.member()
    for headers in ({}, dict(member.http.headers)):
        page = (await browser(shop, headers=headers).get(f"/s/{show}")).text
        assert VIDEO not in page and "边煮边聊" not in page
        card = boot_of(page)["show"]
        assert (card["admitted"], card["way_in"], card["room"]["host"]) == (False, "join", "小禾")
    listed = (await browser(shop).get("/")).text
    assert WORDS["zh"]["members"] in listed and VIDEO not in listed


@asynchronous
@pytest.mark.parametrize("show", ["none", "%00", "x" * 300, "..%2f..%2fetc", "%E7%B1%B3"])
async def test_a_show_that_is_not_there_has_a_page_that_says_so(shop: Shop, show: str) -> None:
    answer = await browser(shop).get(f"/s/{show}")
    assert answer.status_code == 404
    if "%2f" not in show:  # a path of more parts is no page of ours
        assert WORDS["zh"]["missing_title"] in answer.text


@asynchronous
async def test_a_rooms_address_leads_to_what_is_on_air_else_to_what_comes_next(shop: Shop) -> None:
    slug, later = await a_show(shop, hours=48)
    owner = await shop.staff()
    async with shop.parts.database.reading() as conn:
        room = (await shop.parts.rooms.get(conn, slug)).id
    starts = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    body = {"room": room, "title": "先开的", "starts_at": starts}
    next_up = (await owner.ok("POST", "/v1/shows", body))["id"]
    assert (await browser(shop).get(f"/r/{slug}")).headers["location"] == f"/s/{next_up}"
    for move in ("open", "start"):
        await owner.ok("POST", f"/v1/shows/{later}/{move}")
    assert (await browser(shop).get(f"/r/{slug}")).headers["location"] == f"/s/{later}"
    assert (await browser(shop).get("/r/nowhere")).status_code == 404


@asynchronous
async def test_the_first_page_lists_on_air_before_coming(shop: Shop) -> None:
    owner = await shop.staff()
    _, coming = await a_show(shop, title="后天见", hours=48)
    _, live = await a_show(shop, title="正在煮", hours=1)
    for move in ("open", "start"):
        await owner.ok("POST", f"/v1/shows/{live}/{move}")
    page = (await browser(shop).get("/")).text
    assert page.index(WORDS["zh"]["now"]) < page.index("正在煮") < page.index(WORDS["zh"]["soon"])
    assert page.index("后天见") > page.index(WORDS["zh"]["soon"]) and f"/s/{coming}" in page


@asynchronous
@pytest.mark.parametrize("path", ["/me/orders", "/me/benefits"])
async def test_ones_own_page_is_a_shell_without_a_show(shop: Shop, path: str) -> None:
    answer = await browser(shop).get(path)
    assert answer.status_code == 200 and boot_of(answer.text)["show"] is None


@asynchronous
async def test_a_store_that_does_not_answer_has_a_page_that_says_so(shop: Shop) -> None:
    pages = Pages(shop.parts)

    async def fail(request: Request) -> Response:
        raise Unavailable("down")

    app = Starlette(routes=[Route("/", guarded(pages, fail))])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE) as page:
        answer = await page.get("/")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
    assert WORDS["zh"]["down_title"] in answer.text


def test_video_may_be_plain_http_only_where_the_shop_is() -> None:
    assert "http:" not in content_policy("sha256-x", "https://shop.example").replace("https:", "")
    assert "media-src 'self' blob: https: http:" in content_policy("sha256-x", "http://192.0.2.7:8000")


def test_without_fetched_libraries_the_import_map_is_empty(tmp_path: Path) -> None:
    assert import_map(tmp_path, "/static/") == '{"imports":{}}'


# -- static files ----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> tuple[Static, httpx2.AsyncClient]:
    folder = tmp_path / "static"
    (folder / "viewer").mkdir(parents=True)
    (folder / "viewer" / "main.js").write_text("export const a = 1;\n" * 100)
    (folder / "clip.mp4").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "secret.js").write_text("no")
    served = Static(folder)
    app = Starlette(routes=[Mount("/static", app=served)])
    return served, httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url=BASE)


@asynchronous
async def test_a_file_under_its_version_is_kept_and_without_it_asked_for_anew(
    files: tuple[Static, httpx2.AsyncClient],
) -> None:
    served, client = files
    kept = await client.get(f"/static/{served.version}/viewer/main.js")
    assert "immutable" in kept.headers["cache-control"]
    assert kept.headers["content-type"].startswith("text/javascript")
    for path in ("/static/viewer/main.js", "/static/v-000000000000/viewer/main.js"):
        assert (await client.get(path)).headers["cache-control"] == "no-cache"
    tag = kept.headers["etag"]
    again = await client.get("/static/viewer/main.js", headers={"if-none-match": f'"other", {tag}'})
    assert (again.status_code, again.content) == (304, b"")


@asynchronous
async def test_text_is_sent_compressed_to_who_takes_it(files: tuple[Static, httpx2.AsyncClient]) -> None:
    served, client = files
    path = f"/static/{served.version}/viewer/main.js"
    async with client.stream("GET", path, headers={"accept-encoding": "br, gzip"}) as answer:
        raw = b"".join([part async for part in answer.aiter_raw()])
    assert answer.headers["content-encoding"] == "gzip" and gzip.decompress(raw).startswith(b"export")
    for accepts in ("identity", "gzip;q=0", "gzip; q=0.0, br"):
        answer = await client.get(path, headers={"accept-encoding": accepts})
        assert "content-encoding" not in answer.headers and len(answer.content) == 2000


@asynchronous
async def test_a_changed_file_is_seen_and_gives_all_a_new_address(
    files: tuple[Static, httpx2.AsyncClient], tmp_path: Path
) -> None:
    served, client = files
    before = (await client.get("/static/viewer/main.js")).headers["etag"]
    (tmp_path / "static" / "viewer" / "main.js").write_text("export const a = 2;\n")
    assert (await client.get("/static/viewer/main.js")).headers["etag"] != before
    assert Static(tmp_path / "static").version != served.version


@asynchronous
async def test_video_is_sent_in_the_part_that_is_asked_for(files: tuple[Static, httpx2.AsyncClient]) -> None:
    _, client = files
    answer = await client.get("/static/clip.mp4", headers={"range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, bytes(range(10, 20)))


@asynchronous
@pytest.mark.parametrize(
    "path",
    [
        "/static/../secret.js",
        "/static/%2e%2e/secret.js",
        "/static/viewer/%2e%2e/%2e%2e/secret.js",
        "/static/v-000000000000/%2e%2e/secret.js",
        "/static/%2f%2fetc/passwd.js",
        "/static/viewer",
        "/static/%00.js",
        "/static/%00.png",
        "/static/nothing.js",
        "/static/nothing.png",
    ],
)
async def test_nothing_outside_the_folder_is_served(
    files: tuple[Static, httpx2.AsyncClient], path: str
) -> None:
    _, client = files
    assert (await client.get(path)).status_code == 404


@asynchronous
async def test_files_are_only_read(files: tuple[Static, httpx2.AsyncClient]) -> None:
    _, client = files
    assert (await client.post("/static/viewer/main.js")).status_code == 405
    assert (await client.head("/static/viewer/main.js")).content == b""


# -- words, colours, sources -----------------------------------------------------------------------


def sources() -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in (*VIEWER.glob("*.js"), STATIC / "socket.js")}


def texts() -> dict[str, dict[str, str]]:
    chinese, english = (STATIC / "texts.js").read_text("utf-8").split("\n  en: {")
    return {"zh": dict(KEY.findall(chinese)), "en": dict(KEY.findall(english))}


def test_both_languages_have_the_same_words_with_the_same_places() -> None:
    found = texts()
    assert found["zh"].keys() == found["en"].keys() and len(found["zh"]) > 300
    free = {"n", "fold", "percent"}  # 8.8 折 is 12% off: each language tells a discount its own way
    for key, words in found["zh"].items():
        places = set(re.findall(r"\{(\w+)\}", words)) - free
        theirs = set(re.findall(r"\{(\w+)\}", found["en"][key].removeprefix("{"))) - free
        assert places == theirs, key
    assert WORDS["zh"].keys() == WORDS["en"].keys()


def test_every_word_the_page_says_is_there() -> None:
    said = set(re.findall(r'\bt\(\s*"([\w.]+)"', "\n".join(sources().values())))
    assert said - texts()["zh"].keys() == set()


def test_every_module_imports_only_what_is_there() -> None:
    for name, source in sources().items():
        folder = STATIC if name == "socket.js" else VIEWER
        for path, names in [
            (found[2], found[1]) for found in re.finditer(r'import\s*\{([^}]*)\}\s*from "(\.[^"]+)"', source)
        ]:
            target = (folder / path).resolve()
            assert target.is_file(), f"{name}: {path}"
            exported = target.read_text("utf-8")
            for one in (part.strip().split(" as ")[0] for part in names.split(",") if part.strip()):
                assert re.search(rf"export (?:async )?(?:const|let|function|class) {one}\b", exported), (
                    f"{name} imports {one} from {path}"
                )


def test_text_is_text() -> None:
    banned = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerouslySet|\beval\(")
    assert [name for name, source in sources().items() if banned.search(source)] == []


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def themes() -> dict[str, dict[str, str]]:
    css = (STATIC / "tokens.css").read_text("utf-8")
    day, night = css.split("@media (prefers-color-scheme: dark)")
    by_device, by_choice = night.split(':root[data-theme="dark"]')
    found = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part)) for part in (day, by_device, by_choice)]
    assert found[1] == found[2]  # the same night, however it fell
    return {"day": found[0], "night": {**found[0], **found[1]}}


@pytest.mark.parametrize("theme", ["day", "night"])
def test_text_can_be_read_on_every_surface(theme: str) -> None:
    colours = themes()[theme]
    inks = ("ink", "ink-2", "ink-3", "jujube-ink", "husk-ink", "leaf-ink", "sky-ink")
    pairs = [(ink, surface) for ink in inks for surface in ("page", "surface", "raised", "sunken")]
    for kind in ("jujube", "husk", "leaf"):
        pairs += [(f"on-{kind}", kind), (f"on-{kind}", f"{kind}-hover"), (f"{kind}-ink", f"{kind}-soft")]
    pairs.append(("sky-ink", "sky-soft"))
    poor = [(ink, on) for ink, on in pairs if contrast(colours[ink], colours[on]) < 4.5]
    assert poor == []
    for edge in ("line-strong", "focus"):
        assert min(contrast(colours[edge], colours[on]) for on in ("page", "surface", "raised")) >= 3
