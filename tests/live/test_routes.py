"""The HTTP API on real engines: every route once in a whole evening, and what each refuses."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import inspect
import json
import pkgutil
import re
import typing
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx2
import icalendar
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from standardwebhooks.webhooks import Webhook

from commerce.receipts import verify
from commerce.sandbox import webhook_secret
from live.engines import Addresses
from live.http import BODY_BYTES_MAX, BUCKETS_MAX, PATH_FORMS, Rates, Route
from live.jobs import after_show
from live.openapi import refusals_of
from live.problem import WORDS
from live.recorder import Recorder
from live.routes import TABLE, http_routes
from membership.actor import MemberId, Role, ShowId, new_id, public_id
from membership.refusal import RateLimited, Refusal
from tests.live.api import BASE, PAY, SECRET, Caller, Shop, open_shop

pytestmark = pytest.mark.anyio


@pytest.fixture
async def shop(engines: Addresses, fresh_database_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(engines, fresh_database_url, tmp_path) as opened:
        yield opened


# -- the table itself --------------------------------------------------------------------------------


def test_each_row_says_what_its_handler_takes_and_gives() -> None:
    for route in TABLE:
        hints = typing.get_type_hints(route.handler)
        given = [hint for name, hint in hints.items() if name not in ("ctx", "return")]
        declared = [kind for kind in (route.query, None if route.signed else route.body) if kind is not None]
        assert given == declared, route.name
        if route.answer in (str, bytes, dict[str, Any]):
            assert hints["return"].__name__ == "Raw", route.name
        else:
            assert hints["return"] == (type(None) if route.answer is None else route.answer), route.name
        assert inspect.getdoc(route.handler), f"{route.name} says nothing of itself"


def test_names_and_addresses_are_unique() -> None:
    assert len({route.name for route in TABLE}) == len(TABLE)
    assert len({(route.method, route.path) for route in TABLE}) == len(TABLE)
    assert all(name in PATH_FORMS for route in TABLE for name in route.parameters)


def every_refusal() -> set[type[Refusal]]:
    for package in ("membership", "chat", "commerce", "live"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found: set[type[Refusal]] = set()
    waiting: list[type[Refusal]] = [Refusal]
    while waiting:
        kind = waiting.pop()
        found.add(kind)
        waiting.extend(kind.__subclasses__())
    return found


def test_every_refusal_of_every_package_has_a_status_and_a_meaning() -> None:
    ours = {kind.code for kind in every_refusal() if kind.__module__.split(".")[0] != "tests"}
    assert ours <= WORDS.keys()
    assert {word for route in TABLE for word in refusals_of(route)} <= WORDS.keys()


# -- the door ----------------------------------------------------------------------------------------


def address_of(route: Route, **named: str) -> str:
    """The route's path with values that have the right form and name nothing, but for what is named."""
    nothing = {name: new_id() for name in PATH_FORMS} | {"show": "nothing999", "seq": "1", "viewer": "abc"}
    values = nothing | named
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], route.path)


async def test_nobody_passes_a_door_that_is_not_theirs(shop: Shop) -> None:
    nobody, member, reviewer = shop.client(), await shop.member(), await shop.staff("reviewer")
    key = await shop.shop_server("room.write")
    for route in TABLE:
        path = address_of(route)
        body = {} if route.body is not None else None
        if route.who == "public":
            continue
        assert await nobody.refused(route.method, path, body) == "unauthenticated", route.name
        if route.who == "viewer":
            assert await reviewer.refused(route.method, path, body) == "forbidden", route.name
            continue
        assert await member.refused(route.method, path, body) == "unauthenticated", route.name
        if route.who not in ("staff", "chat.moderate"):
            assert await reviewer.refused(route.method, path, body) == "forbidden", route.name
        if route.who not in ("staff", "room.write"):
            assert await key.refused(route.method, path, body) == "forbidden", route.name


async def test_a_token_that_is_none_is_refused_everywhere(shop: Shop) -> None:
    for header in (
        "Bearer nonsense",
        "Bearer ck_nonsense",
        "Basic abc",
        "Bearer",
        "Bearer a.b.c",
        "Bearer é",
    ):
        caller = shop.client()
        caller.http.headers = httpx2.Headers([(b"authorization", header.encode())])
        for path in ("/v1/me", "/v1/plans", "/v1/rooms"):
            assert await caller.refused("GET", path) == "unauthenticated"


async def test_ids_of_another_form_name_nothing(shop: Shop) -> None:
    owner, member = await shop.staff(), await shop.member()
    for path in ("/v1/polls/1/close", "/v1/offers/x%00/close", "/v1/benefits/../close"):
        assert await owner.refused("POST", path) in ("not_found", "method_not_allowed")
    for path in (
        "/v1/shows/%00",
        "/v1/shows/" + "a" * 65,
        "/v1/members/王",
        "/v1/nothing",
        "/v1/",
        "/v1/a/b/c",
    ):
        assert await owner.refused("GET", path) == "not_found"
    assert await member.refused("GET", "/v1/me/orders/' OR 1=1") == "not_found"


async def test_another_method_is_named_as_such(shop: Shop) -> None:
    answer = await shop.client().http.delete("/v1/plans")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, POST"
    assert (await shop.client().http.head("/v1/plans")).status_code == 200


BAD_BODIES = [
    (b"", "bad_request"),
    (b"{", "bad_request"),
    (b"[]", "bad_request"),
    (b"null", "bad_request"),
    (b"\xff\xfe", "bad_request"),
    (b'{"phone":1}', "bad_request"),
    (b'{"phone":"138","price":1}', "bad_request"),
    (b'{"phone":"\\u0000138"}', "bad_request"),
    (b'{"phone":"\\ud800138"}', "bad_request"),
    (b'{"phone":' + b"[" * 30_000, "bad_request"),
    (b'{"phone":"' + b"1" * BODY_BYTES_MAX + b'"}', "too_large"),
]


async def test_a_bad_body_gets_a_clear_refusal(shop: Shop) -> None:
    nobody = shop.client({"content-type": "application/json"})
    for body, word in BAD_BODIES:
        assert await nobody.refused("POST", "/v1/sign-in/codes", content=body) == word, body[:40]


async def test_a_bad_body_is_refused_by_every_route_that_takes_one(shop: Shop) -> None:
    for route in TABLE:
        if route.body is None or route.signed:
            continue
        # A person of its own for each: one who asked them all would be told to ask less.
        caller = await shop.member() if route.who == "viewer" else await shop.staff()
        headers = {"content-type": "application/json"}
        for body in (b"{", b'{"no_such_member":1}', b"7"):
            word = await caller.refused(route.method, address_of(route), content=body, headers=headers)
            assert word == "bad_request", route.name
        plain = {"content-type": "text/plain"}
        assert await caller.refused(route.method, address_of(route), content=b"{}", headers=plain) == (
            "unsupported_media"
        )


async def test_a_stream_without_end_is_cut_at_64_kb(shop: Shop) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1_000):
            sent += 4_096
            yield b" " * 4_096

    headers = {"content-type": "application/json"}
    assert await shop.client(headers).refused("POST", "/v1/sign-in/codes", content=endless()) == "too_large"
    assert sent <= 2 * BODY_BYTES_MAX


async def test_queries_are_bounded(shop: Shop) -> None:
    owner = await shop.staff()
    for query in ("limit=0", "limit=101", "limit=x", "cursor=", "cursor=%00", "cursor=nonsense", "limits=3"):
        assert await owner.refused("GET", f"/v1/products?{query}") == "bad_request"
        assert await owner.refused("GET", f"/v1/audit?{query}") == "bad_request"
    for cursor in ("x", "1.", ".x", "99999999999999999999.abc", "1.a%27b", "-1.a"):
        assert await owner.refused("GET", f"/v1/shows?cursor={cursor}") == "bad_request"


# -- sessions ----------------------------------------------------------------------------------------


async def sign_in(shop: Shop, phone: str = "13700000001", **more: Any) -> tuple[Caller, dict[str, Any]]:
    browser = shop.client()
    sent = await browser.ok("POST", "/v1/sign-in/codes", {"phone": phone})
    body = {"phone": phone, "code": sent["sandbox_code"], **more}
    return browser, await browser.ok("POST", "/v1/sign-in", body)


async def test_a_phone_and_its_code_make_a_member_and_a_session(shop: Shop) -> None:
    browser, signed = await sign_in(shop, nickname="<b>小满</b>")
    assert signed["you"]["nickname"] == "<b>小满</b>"  # text is text
    assert signed["you"]["kind"] == "registered"
    assert signed["you"]["phone"] == "137****0001"
    me = await browser.ok("GET", "/v1/me")
    assert me == signed["you"]
    by_token = shop.client({"authorization": f"Bearer {signed['token']}"})
    assert (await by_token.ok("GET", "/v1/me"))["id"] == me["id"]
    again, second = await sign_in(shop, "+86 137 0000 0002")
    assert second["you"]["id"] != me["id"]
    assert (await again.ok("GET", "/v1/me"))["id"] == second["you"]["id"]


async def test_session_cookies_are_closed_to_scripts_and_other_sites(shop: Shop) -> None:
    browser = shop.client()
    sent = await browser.ok("POST", "/v1/sign-in/codes", {"phone": "13700000001"})
    answer = await browser.call("POST", "/v1/sign-in", {"phone": "13700000001", "code": sent["sandbox_code"]})
    cookies = {line.partition("=")[0]: line.lower() for line in answer.headers.get_list("set-cookie")}
    assert "httponly" in cookies["companion_viewer"]
    assert "httponly" not in cookies["companion_csrf"]
    assert all("samesite=lax" in line and "secure" not in line for line in cookies.values())


async def test_a_write_by_cookie_needs_the_token_of_the_page(shop: Shop) -> None:
    browser, _ = await sign_in(shop)
    body = {"nickname": "小满"}
    assert await browser.refused("PATCH", "/v1/me", body) == "bad_csrf"
    assert await browser.refused("PATCH", "/v1/me", body, headers={"x-csrf-token": "guess"}) == "bad_csrf"
    token = browser.http.cookies["companion_csrf"]
    await browser.ok("PATCH", "/v1/me", body, headers={"x-csrf-token": token})
    for origin in ("https://evil.example", "http://[", "null"):
        foreign = {"x-csrf-token": token, "origin": origin}
        assert await browser.refused("PATCH", "/v1/me", body, headers=foreign) == "bad_origin"
    await browser.ok("PATCH", "/v1/me", body, headers={"x-csrf-token": token, "origin": BASE})
    await browser.ok("POST", "/v1/sign-out", headers={"x-csrf-token": token})
    assert await browser.refused("GET", "/v1/me") == "unauthenticated"


async def test_a_stale_cookie_shuts_no_public_door(shop: Shop) -> None:
    browser = shop.client({"cookie": "companion_viewer=nonsense; companion_staff=nonsense"})
    await browser.ok("GET", "/v1/plans")
    await browser.ok("POST", "/v1/sign-in/codes", {"phone": "13700000001"})
    assert await browser.refused("GET", "/v1/me") == "unauthenticated"
    assert await browser.refused("GET", "/v1/rooms") == "unauthenticated"


async def test_wrong_codes_and_no_phones_are_refused(shop: Shop) -> None:
    nobody = shop.client()
    for phone in ("123", "not a phone", "02088888888", "+1", "138０００００００"):
        assert await nobody.refused("POST", "/v1/sign-in/codes", {"phone": phone}) == "invalid_phone"
    body = {"phone": "13700000001", "code": "000000"}
    assert await nobody.refused("POST", "/v1/sign-in", body) == "code_expired"
    await nobody.ok("POST", "/v1/sign-in/codes", {"phone": "13700000001"})
    answer = await nobody.call("POST", "/v1/sign-in", {"phone": "13700000001", "code": "000000"})
    assert answer.json()["code"] in ("wrong_code",)
    again = await nobody.call("POST", "/v1/sign-in/codes", {"phone": "13700000001"})
    assert again.json()["code"] == "rate_limited"
    assert 0 < int(again.headers["retry-after"]) <= 60
    assert again.json()["retry_ms"] <= 60_000


async def test_guessing_is_bounded_by_address(shop: Shop) -> None:
    nobody = shop.client()
    words = [
        await nobody.refused("POST", "/v1/sign-in", {"phone": f"137{number:08d}", "code": "000000"})
        for number in range(31)
    ]
    assert words == ["code_expired"] * 30 + ["rate_limited"]
    staff = [await nobody.refused("POST", "/v1/staff/sign-in", {"token": "x"}) for _ in range(31)]
    assert staff == ["unauthenticated"] * 30 + ["rate_limited"]


async def test_one_viewer_writes_so_fast_and_no_faster(shop: Shop) -> None:
    hasty, calm = await shop.member(), await shop.member()
    words = [await hasty.refused("PATCH", "/v1/me", {}) for _ in range(60)]
    assert words[:40] == ["bad_request"] * 40
    assert "rate_limited" in words[40:]
    assert await calm.refused("PATCH", "/v1/me", {}) == "bad_request"
    await hasty.ok("GET", "/v1/me")


def test_what_the_rates_keep_is_bounded() -> None:
    clock = 0.0
    rates = Rates(per_s=1.0, burst=2, now=lambda: clock)
    for _ in range(2):
        rates.take("a")
    with pytest.raises(RateLimited) as refused:
        rates.take("a")
    assert 0 < (refused.value.retry_ms or 0) <= 1_001
    clock = 1.0
    rates.take("a")
    for number in range(BUCKETS_MAX + 1):
        rates.take(str(number))
    assert len(rates._buckets) <= BUCKETS_MAX


async def test_a_staff_link_opens_once(shop: Shop) -> None:
    owner, browser = await shop.staff(), shop.client()
    made = await owner.ok("POST", "/v1/staff", {"name": "助理", "role": "assistant"})
    link = await owner.ok("POST", f"/v1/staff/{made['id']}/links")
    assert link["url"] == f"{BASE}/panel/sign-in#{link['token']}"
    signed = await browser.ok("POST", "/v1/staff/sign-in", {"token": link["token"]})
    assert signed["staff"]["permissions"] == ["chat.moderate", "offer.run", "report.read"]
    assert (await browser.ok("GET", "/v1/staff/me"))["name"] == "助理"
    assert await shop.client().refused("POST", "/v1/staff/sign-in", {"token": link["token"]}) == "link_used"
    await owner.ok("POST", f"/v1/staff/{made['id']}/disable")
    assert await browser.refused("GET", "/v1/staff/me") == "forbidden"


async def test_only_an_owner_makes_owners(shop: Shop) -> None:
    admin = await shop.staff("admin")
    owner = await shop.staff("owner")
    for role in ("owner", "admin"):
        assert await admin.refused("POST", "/v1/staff", {"name": "x", "role": role}) == "forbidden"
    above = await owner.ok("POST", "/v1/staff", {"name": "x", "role": "owner"})
    for act in ("links", "disable"):
        assert await admin.refused("POST", f"/v1/staff/{above['id']}/{act}") == "forbidden"
    key = {"name": "x", "permissions": ["staff.write"]}
    assert await admin.refused("POST", "/v1/api-keys", key) == "forbidden"
    more = {"name": "door", "permissions": ["member.write"]}  # with it one enters as any member
    assert await admin.refused("POST", "/v1/api-keys", more) == "forbidden"


async def test_staff_of_one_room_work_in_that_room_only(shop: Shop) -> None:
    owner = await shop.staff()
    here, there = [await a_room(owner, slug) for slug in ("here", "there")]
    bound = await shop.staff("host", here["id"])
    own, other = await a_show(owner, here["id"]), await a_show(owner, there["id"])
    assert [room["id"] for room in (await bound.ok("GET", "/v1/rooms"))["items"]] == [here["id"]]
    assert [show["id"] for show in (await bound.ok("GET", "/v1/shows"))["items"]] == [own["id"]]
    assert await bound.refused("GET", f"/v1/shows?room={there['id']}") == "forbidden"
    for method, path, body in (
        ("GET", f"/v1/shows/{other['id']}", None),
        ("POST", f"/v1/shows/{other['id']}/open", None),
        ("POST", f"/v1/shows/{other['id']}/comments", {"text": "x"}),
        ("PUT", f"/v1/shows/{other['id']}/announcement", {"text": "x"}),
        ("PUT", f"/v1/shows/{other['id']}/cues", {"cues": []}),
        ("GET", f"/v1/rooms/{there['id']}", None),
    ):
        assert await bound.refused(method, path, body) == "forbidden", path
    await bound.ok("POST", f"/v1/shows/{own['id']}/open")


# What staff of one room may call although it names none: the catalogue, and what shows them their own room's.
OPEN_TO_ONE_ROOM = {
    "list_rooms", "list_shows", "list_coupon_rules", "read_coupon_rule", "list_campaigns", "read_freight",
    "list_products", "read_product", "list_stock_entries", "list_approvals", "read_approval", "decide_approval",
    "read_incident", "read_staff_me",
}  # fmt: skip


async def test_staff_of_one_room_pass_no_door_to_another_room_or_the_whole_shop(shop: Shop) -> None:
    owner = await shop.staff()
    here, there = [await a_room(owner, slug) for slug in ("here", "there")]
    show = (await a_show(owner, there["id"]))["id"]
    for act in ("open", "start"):
        await owner.ok("POST", f"/v1/shows/{show}/{act}")
    product = await owner.ok("POST", "/v1/products", RICE)
    gift = {"title": "满赠好礼", "quota": 1}
    question = {"question": "？", "choices": ["a", "b"]}
    shelf = {"product": product["id"]}
    say = {"kind": "announcement", "title": "x", "shortcut": "A", "payload": {"text": "x"}}
    cues = await owner.ok("PUT", f"/v1/shows/{show}/cues", {"cues": [say]})
    names = {
        "room": there["id"],
        "show": show,
        "cue": cues["items"][0]["id"],
        "offer": (await owner.ok("POST", f"/v1/shows/{show}/offers", shelf))["id"],
        "poll": (await owner.ok("POST", f"/v1/shows/{show}/polls", question))["id"],
        "benefit": (await owner.ok("POST", f"/v1/shows/{show}/benefits", gift))["id"],
    }
    bodies: dict[str, Any] = {
        "create_room": {"title": "x"},
        "create_show": {"room": there["id"], "title": "x", "starts_at": "2026-11-22T12:00:00+00:00"},
        "create_preview": {"seen_as": "guest"},
        "put_cues": {"cues": []},
        "post_comment": {"text": "x"},
        "mute_viewer": {"viewer": "a" * 12},
        "unmute_viewer": {"viewer": "a" * 12},
        "open_poll": question,
        "open_offer": shelf,
        "open_benefit": gift,
        "raise_quota": {"quota": 2},
        "pause_benefit": {"reason": "x"},
        "set_budget": {"scope": "month", "subject": "2026-11", "limit_fen": 0},
    }
    queries = {"list_budgets": f"?show={show}"}
    roles: tuple[Role, ...] = ("owner", "host")
    for role in roles:
        bound = await shop.staff(role, here["id"])
        for route in TABLE:
            held = names.keys() & set(route.parameters)
            if route.name in OPEN_TO_ONE_ROOM or route.who == "viewer":
                continue
            if route.who == "public" and not (held and route.prefers_staff):
                continue
            path = address_of(route, **names) + queries.get(route.name, "")
            body = bodies.get(route.name, {}) if route.body is not None else None
            assert await bound.refused(route.method, path, body) == "forbidden", (role, route.name)


async def test_an_owner_of_one_room_makes_nobody_who_is_more_than_that(shop: Shop) -> None:
    room = (await a_room(await shop.staff(), "here"))["id"]
    bound, free = await shop.staff("owner", room), await shop.staff("owner")
    for more in ({}, {"room": room}):
        assert await bound.refused("POST", "/v1/staff", {"name": "x", "role": "owner", **more}) == "forbidden"
    made = await free.ok("POST", "/v1/staff", {"name": "x", "role": "owner"})
    assert await bound.refused("POST", f"/v1/staff/{made['id']}/links") == "forbidden"
    key = {"name": "x", "permissions": ["show.run"]}
    assert await bound.refused("POST", "/v1/api-keys", key) == "forbidden"
    assert "staff.write" not in (await bound.ok("GET", "/v1/staff/me"))["permissions"]


async def test_a_host_of_one_room_prepares_and_runs_a_show_there(shop: Shop) -> None:
    owner = await shop.staff()
    room = (await a_room(owner, "here"))["id"]
    product = (await owner.ok("POST", "/v1/products", RICE))["id"]
    bound = await shop.staff("host", room)
    show = (await a_show(bound, room))["id"]
    for path in (
        "/v1/rooms", "/v1/shows", "/v1/products", f"/v1/products/{product}", "/v1/coupon-rules", "/v1/plans",
        "/v1/approvals", "/v1/incident", f"/v1/budgets?show={show}", f"/v1/shows/{show}/costs",
        f"/v1/shows/{show}/live", f"/v1/shows/{show}/benefits", f"/v1/shows/{show}/offers",
    ):  # fmt: skip
        await bound.ok("GET", path)
    offer = {"kind": "pin", "title": "x", "shortcut": "A", "payload": {"product": product}}
    cue = (await bound.ok("PUT", f"/v1/shows/{show}/cues", {"cues": [offer]}))["items"][0]["id"]
    for act in ("open", "start", f"cues/{cue}/run", "end"):
        await bound.ok("POST", f"/v1/shows/{show}/{act}", {} if act == "end" else None)


async def test_a_cue_that_is_refused_is_in_the_audit_log_once_a_minute_and_code(shop: Shop) -> None:
    owner, other = await shop.staff(), await shop.staff("assistant")
    room = await a_room(owner, "night")
    show = (await a_show(owner, room["id"]))["id"]
    said = {"kind": "announcement", "title": "公告", "shortcut": "A", "payload": {"text": "好"}}
    cues = await owner.ok("PUT", f"/v1/shows/{show}/cues", {"cues": [said]})
    cue = cues["items"][0]["id"]
    run = f"/v1/shows/{show}/cues/{cue}/run"

    async def noted() -> list[tuple[str, str | None]]:
        found = (await owner.ok("GET", f"/v1/audit?subject=cue:{cue}"))["items"]
        assert all(act["detail"]["show"] == show for act in found)
        return [(act["act"], act["detail"].get("code")) for act in reversed(found)]

    refused = ("cue.run.refused", "wrong_status")
    words = await asyncio.gather(*(owner.refused("POST", run) for _ in range(6)))
    assert set(words) == {"wrong_status"}
    assert await noted() == [refused]
    assert await other.refused("POST", run) == "wrong_status"
    assert await noted() == [refused, refused]  # somebody else
    await owner.ok("POST", f"/v1/shows/{show}/open")
    await owner.ok("POST", run)
    assert await owner.refused("POST", run) == "cue_running"
    assert await noted() == [refused, refused, ("cue.run", None), ("cue.run.refused", "cue_running")]
    nothing = new_id()
    assert await owner.refused("POST", f"/v1/shows/{show}/cues/{nothing}/run") == "not_found"
    assert (await owner.ok("GET", f"/v1/audit?subject=cue:{nothing}"))["items"] == []


# -- keys --------------------------------------------------------------------------------------------


async def test_the_same_key_gives_the_same_answer_once(shop: Shop) -> None:
    owner = await shop.staff()
    body, headers = {"title": "会员健康夜", "slug": "night"}, {"idempotency-key": "k1"}
    first = await owner.call("POST", "/v1/rooms", body, headers=headers)
    second = await owner.call("POST", "/v1/rooms", body, headers=headers)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert await owner.refused("POST", "/v1/rooms", {**body, "title": "x"}, headers=headers) == "key_reused"
    other = await shop.staff()
    assert await other.refused("POST", "/v1/rooms", body, headers=headers) == "slug_taken"
    # what was refused is decided anew
    taken = {"title": "x", "slug": "night"}
    for _ in range(2):
        assert (
            await owner.refused("POST", "/v1/rooms", taken, headers={"idempotency-key": "k2"}) == "slug_taken"
        )
    for key in ("", "x" * 65):
        assert (
            await owner.refused("POST", "/v1/rooms", body, headers={"idempotency-key": key}) == "bad_request"
        )
    rooms = await owner.ok("GET", "/v1/rooms")
    assert len(rooms["items"]) == 1


async def test_a_key_under_way_is_busy(shop: Shop) -> None:
    owner = await shop.staff()
    keep = shop.parts.scripts.load_plain("live", "keep_reply")
    staff = (await owner.ok("GET", "/v1/staff/me"))["id"]
    body = {"title": "x"}
    raw = json.dumps(body).encode()
    digest = hashlib.sha256(b"POST /v1/rooms\n" + raw).hexdigest()
    assert await keep([f"{{http}}:reply:staff:{staff}:k"], [digest, 60_000]) == b"new"
    headers = {"idempotency-key": "k", "content-type": "application/json"}
    assert await owner.refused("POST", "/v1/rooms", content=raw, headers=headers) == "busy"


async def test_a_join_whose_first_try_died_goes_on_with_its_key(shop: Shop) -> None:
    """The order itself knows its key: who asks again need not wait until a dead request frees it."""
    owner, member = await shop.staff(), await shop.member("王小明")
    plan = await owner.ok("POST", "/v1/plans", {"name": "年卡", "fee_fen": 19_900, "period_months": 12})
    keep = shop.parts.scripts.load_plain("live", "keep_reply")
    raw = json.dumps({"plan": plan["id"]}).encode()
    digest = hashlib.sha256(b"POST /v1/me/joins\n" + raw).hexdigest()
    assert await keep([f"{{http}}:reply:viewer:{member.id}:k"], [digest, 60_000]) == b"new"
    headers = {"idempotency-key": "k", "content-type": "application/json"}
    first = await member.ok("POST", "/v1/me/joins", content=raw, headers=headers)
    again = await member.ok("POST", "/v1/me/joins", content=raw, headers=headers)
    assert first["order"]["order"] == again["order"]["order"]
    assert len((await member.ok("GET", "/v1/me/orders"))["items"]) == 1


async def test_what_was_done_is_answered_also_where_its_answer_cannot_be_kept(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = await shop.staff()

    def away(*_: Any, **__: Any) -> Any:
        raise RedisConnectionError("away")

    monkeypatch.setattr(shop.parts.redis, "pipeline", away)
    headers = {"idempotency-key": "k"}
    made = await owner.ok("POST", "/v1/rooms", {"title": "会员健康夜"}, headers=headers)
    assert made["title"] == "会员健康夜"


async def test_the_instruments_count_the_calls_of_each_script(shop: Shop) -> None:
    keep = shop.parts.scripts.load_plain("live", "keep_reply")
    await asyncio.gather(*(keep([f"{{http}}:reply:k{n}"], ["d", 1_000]) for n in range(5)))
    text = (await shop.client().call("GET", "/metrics")).text
    calls = re.search(r'^companion_script_calls_total{script="live/keep_reply"} (\S+)$', text, re.MULTILINE)
    at_once = re.search(
        r'^companion_script_calls_at_once{script="live/keep_reply"} (\S+)$', text, re.MULTILINE
    )
    assert calls is not None and float(calls[1]) == 5
    assert at_once is not None and 1 <= float(at_once[1]) <= 5


# -- an evening --------------------------------------------------------------------------------------


async def a_room(owner: Caller, slug: str | None = None, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = await owner.ok(
        "POST", "/v1/rooms", {"title": "会员健康夜", "host_name": "小禾", "slug": slug, **more}
    )
    return made


async def a_show(owner: Caller, room: str, **more: Any) -> dict[str, Any]:
    starts = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    body = {
        "room": room,
        "title": "秋收专场",
        "starts_at": starts,
        "video_url": "/static/demo/loop.m3u8",
        **more,
    }
    made: dict[str, Any] = await owner.ok("POST", "/v1/shows", body)
    return made


RICE = {
    "sku": "rice-5",
    "name": "有机大米",
    "list_fen": 12_800,
    "member_fen": 10_900,
    "stock": 50,
    "unit": "袋",
}
PLAN = {"name": "年卡", "fee_fen": 19_900, "period_months": 12}
ADDRESS = {"name": "王小明", "phone": "13700000001", "region": "浙江省杭州市西湖区", "detail": "文三路 1 号"}


async def after_the_order(owner: Caller, server: Caller, viewer: Caller, order: str) -> None:
    """Sent, asked about, and settled; the plan cancelled for its end, and kept after all."""
    await owner.ok("PUT", "/v1/freight", {"rows": []})
    await owner.ok("GET", "/v1/freight")
    assert order in await server.ok("GET", "/v1/fulfilment.csv")
    row = {"order": order, "carrier": "顺丰", "tracking": "SF1"}
    await server.ok("POST", "/v1/fulfilment", {"rows": [row]})
    asked = {"kind": "missing", "reason": "少了一件", "lines": [{"position": 1, "quantity": 1}]}
    case = await viewer.ok("POST", f"/v1/me/orders/{order}/cases", asked)
    path = f"/v1/me/cases/{case['id']}"
    png = b"\x89PNG\r\n\x1a\n" + bytes(20)
    added = await viewer.ok("POST", f"{path}/photos", content=png, headers={"content-type": "image/png"})
    photo = added["photos"][0]["id"]
    await viewer.ok("GET", f"{path}/photos/{photo}")
    await owner.ok("GET", f"/v1/cases/{case['id']}/photos/{photo}")
    await viewer.ok("POST", f"{path}/withdraw")
    again = await viewer.ok("POST", f"/v1/me/orders/{order}/cases", asked)
    assert len((await viewer.ok("GET", "/v1/me/cases"))["items"]) == 2
    assert [one["id"] for one in (await owner.ok("GET", "/v1/cases?state=open"))["items"]] == [again["id"]]
    await owner.ok("GET", f"/v1/cases/{again['id']}")
    await owner.ok("GET", f"/v1/cases/{again['id']}/refund")
    await owner.ok("POST", f"/v1/cases/{again['id']}/decision", {"act": "decline", "note": "已核对"})
    await server.ok("POST", f"/v1/orders/{order}/refunds", {"amount_fen": 1, "key": "goodwill"})
    await viewer.ok("GET", "/v1/refund-rule")
    assert (await viewer.ok("POST", "/v1/me/plan/cancel"))["cancelled"]
    assert not (await viewer.ok("DELETE", "/v1/me/plan/cancel"))["cancelled"]


async def plans_off_sale(shop: Shop, owner: Caller, nobody: Caller, on_sale: str) -> None:
    """Who may put a plan back finds those off sale too, part by part; nobody else does."""
    off = []
    for name in ("旧卡", "更旧的卡"):
        plan = await owner.ok("POST", "/v1/plans", {**PLAN, "name": name})
        await owner.ok("PATCH", f"/v1/plans/{plan['id']}", {"on_sale": False})
        off.append(plan["id"])
    first = await owner.ok("GET", "/v1/plans?off_sale=true&limit=2")
    rest = await owner.ok("GET", f"/v1/plans?off_sale=true&limit=2&cursor={first['next']}")
    found = [(each["id"], each["on_sale"]) for each in first["items"] + rest["items"]]
    assert found == [(off[1], False), (off[0], False), (on_sale, True)]
    assert rest["next"] is None
    assert await owner.refused("GET", "/v1/plans?off_sale=true&cursor=x") == "bad_request"
    for caller, word in (
        (nobody, "unauthenticated"),
        (await shop.member(), "unauthenticated"),
        (await shop.staff("reviewer"), "forbidden"),
    ):
        assert await caller.refused("GET", "/v1/plans?off_sale=true") == word
        assert [each["id"] for each in (await caller.ok("GET", "/v1/plans"))["items"]] == [on_sale]


async def gifts_of_a_plan(server: Caller, viewer: Caller, plan: dict[str, Any], address: str) -> None:
    """The sample of this month once, to one's address; the box waits for a birthday, which is told once."""
    sample, box = plan["gifts"]
    shown = await viewer.ok("GET", "/v1/me/gifts")
    assert [(each["gift"]["title"], each["state"]) for each in shown["items"]] == [
        ("小样", "due"),
        ("生日礼盒", "waiting"),
    ]
    path = f"/v1/me/gifts/{sample['id']}/claim"
    assert await viewer.refused("POST", path, {}) == "bad_request"
    taken = await viewer.ok("POST", path, {"address": address})
    assert taken["state"] == "claimed"
    assert await viewer.ok("POST", path, {"address": address}) == taken
    assert taken["parcel"] is None
    orders = (await viewer.ok("GET", "/v1/me/orders"))["items"]
    joined = next(order["id"] for order in orders if order["kind"] == "plan")
    row = {"order": joined, "carrier": "顺丰", "tracking": "SF7", "gift": taken["claim"]}
    await server.ok("POST", "/v1/fulfilment", {"rows": [row]})
    for sent in (
        (await viewer.ok("GET", "/v1/me/gifts"))["items"][0],
        await viewer.ok("POST", path, {"address": address}),
    ):
        assert (sent["parcel"]["carrier"], sent["parcel"]["tracking"]) == ("顺丰", "SF7")
        assert {**sent, "parcel": None} == taken
    assert (
        await viewer.refused("POST", f"/v1/me/gifts/{box['id']}/claim", {"address": address})
        == "not_eligible"
    )
    assert await viewer.ok("PUT", "/v1/me/birthday", {"birthday": "02-29"}) == {"birthday": "02-29"}
    assert await viewer.refused("PUT", "/v1/me/birthday", {"birthday": "03-01"}) == "already_decided"
    assert await viewer.refused("PUT", "/v1/me/birthday", {"birthday": "02-31"}) == "bad_request"


async def coupons_and_points(owner: Caller, server: Caller, viewer: Caller) -> None:
    """Rules of coupons, what they grant, campaigns of points, and what a plan saved."""
    member = (await viewer.ok("GET", "/v1/me"))["id"]
    given = {"title": "满 50 减 10", "kind": "amount", "off_fen": 1_000, "threshold_fen": 5_000, "quota": 3}
    rule = await owner.ok("POST", "/v1/coupon-rules", given)
    assert await owner.refused("POST", "/v1/coupon-rules", {"title": "x", "kind": "percent"}) == "bad_request"
    path = f"/v1/coupon-rules/{rule['id']}"
    nobody = "00000000-0000-7000-8000-000000000000"
    granted = await server.ok("POST", f"{path}/grants", {"members": [member, nobody], "cause": "anniversary"})
    assert [row.get("refused") for row in granted["items"]] == [None, "not_found"]
    again = await server.ok("POST", f"{path}/grants", {"members": [member], "cause": "anniversary"})
    assert again["items"][0] == granted["items"][0]
    assert (await owner.ok("GET", path))["granted"] == 1
    assert (await owner.ok("PATCH", path, {"status": "off"}))["status"] == "off"
    refused = await server.ok("POST", f"{path}/grants", {"members": [member], "cause": "more"})
    assert refused["items"][0]["refused"] == "limit_reached"
    assert [one["id"] for one in (await owner.ok("GET", "/v1/coupon-rules"))["items"]] == [rule["id"]]
    (own,) = (await viewer.ok("GET", "/v1/me/coupons"))["items"]
    assert (own["title"], own["state"], own["off_fen"]) == ("满 50 减 10", "free", 1_000)
    assert not {"owner", "quota", "granted", "audience", "cause"} & set(own)  # the shop's business
    (seen,) = (await owner.ok("GET", f"/v1/members/{member}/coupons"))["items"]
    assert seen["cause"].startswith("staff:anniversary:")
    till = f"/v1/coupons/{own['id']}/use"
    sale = {"reference": "till-7/0001", "amount_fen": 1_000}
    used = await server.ok("POST", till, sale)
    assert await server.ok("POST", till, sale) == used
    assert await server.refused("POST", till, {"reference": "till-7/0002"}) == "coupon_used"
    assert (await viewer.ok("GET", "/v1/me/coupons"))["items"][0]["state"] == "used"
    await server.ok("DELETE", till, {"reference": "till-7/0001"})
    assert (await viewer.ok("GET", "/v1/me/coupons"))["items"][0]["state"] == "free"
    await server.ok("DELETE", f"/v1/coupons/{own['id']}")
    assert (await viewer.ok("GET", "/v1/me/coupons"))["items"][0]["state"] == "void"
    window = {"from_at": "2026-01-01T00:00:00+08:00", "until_at": "2026-01-02T00:00:00+08:00"}
    campaign = await owner.ok("POST", "/v1/points-campaigns", {"name": "双倍", "percent": 50, **window})
    assert (
        await owner.refused("POST", "/v1/points-campaigns", {"name": "双倍", "percent": 1, **window})
        == "name_taken"
    )
    naive = {"from_at": "2026-01-01T00:00:00", "until_at": "2026-01-02T00:00:00"}
    bad = {"name": "又", "percent": 50, **naive}
    assert await owner.refused("POST", "/v1/points-campaigns", bad) == "bad_request"
    assert (await owner.ok("GET", "/v1/points-campaigns"))["items"] == [campaign]
    await owner.ok("POST", f"/v1/points-campaigns/{campaign['id']}/end")
    assert "savings" in await viewer.ok("GET", "/v1/me/savings")


async def test_every_route_answers_in_the_course_of_an_evening(shop: Shop) -> None:
    """One evening from the first room to the end card; every row of the table succeeds at least once."""
    owner, nobody = await shop.staff(), shop.client()
    server = await shop.shop_server()

    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/asyncapi.json", "/docs"):
        await nobody.ok("GET", path)

    # accounts
    helper = await owner.ok("POST", "/v1/staff", {"name": "助理", "role": "assistant"})
    link = await owner.ok("POST", f"/v1/staff/{helper['id']}/links")
    browser = shop.client()
    await browser.ok("POST", "/v1/staff/sign-in", {"token": link["token"]})
    await browser.ok("GET", "/v1/staff/me")
    csrf = {"x-csrf-token": browser.http.cookies["companion_csrf"]}
    await browser.ok("POST", "/v1/staff/sign-out", headers=csrf)
    await owner.ok("POST", f"/v1/staff/{helper['id']}/disable")
    assert len((await owner.ok("GET", "/v1/staff"))["items"]) == 2
    key = await owner.ok("POST", "/v1/api-keys", {"name": "x", "permissions": ["member.read"]})
    await owner.ok("GET", "/v1/api-keys")
    await owner.ok("DELETE", f"/v1/api-keys/{key['id']}")
    assert await shop.client({"authorization": f"Bearer {key['secret']}"}).refused("GET", "/v1/members") == (
        "unauthenticated"
    )

    # the catalogue and the plan
    rice = await owner.ok("POST", "/v1/products", RICE)
    oil = await server.ok(
        "POST", "/v1/products", {**RICE, "sku": "oil", "name": "山茶油", "member_fen": None}
    )
    assert await owner.refused("POST", "/v1/products", RICE) == "sku_taken"
    await owner.ok("PATCH", f"/v1/products/{rice['id']}", {"stock_change": 10})
    assert len((await owner.ok("GET", "/v1/products?search=大米"))["items"]) == 1
    delivery = {
        "key": "d-1",
        "reason": "到货",
        "rows": [{"sku": "oil", "change": 5}, {"sku": "?", "change": 5}],
    }
    for _ in range(2):
        brought = await server.ok("PUT", "/v1/stock", delivery)
        assert [row["outcome"] for row in brought["rows"]] == ["changed", "refused"]
        assert brought["rows"][1]["reason"] == "not_found"
    assert await server.refused("PUT", "/v1/stock", {**delivery, "reason": "盘点"}) == "key_reused"
    entries = await owner.ok("GET", f"/v1/stock-entries?product={oil['id']}&limit=1")
    assert [(entry["delta"], entry["reason"]) for entry in entries["items"]] == [(5, "到货")]
    assert entries["next"]
    price = await owner.ok(
        "POST",
        f"/v1/products/{oil['id']}/prices",
        {"unit_fen": 9_900, "audience": {"kind": "plan_members"}, "from_at": datetime.now(UTC).isoformat()},
    )
    assert price["min_quantity"] == 1
    many = {
        "unit_fen": 9_900,
        "audience": {"kind": "plan_members"},
        "from_at": price["from_at"],
        "min_quantity": 3,
    }
    assert await owner.refused("POST", f"/v1/products/{oil['id']}/prices", many) == "bad_request"
    card = await owner.ok("GET", f"/v1/products/{oil['id']}")
    assert [line["id"] for line in card["prices"]] == [price["id"]]
    far = {"unit_fen": 1, "from_at": "9999-12-31T23:59:59-14:00"}  # beyond what can be read back
    assert await owner.refused("POST", f"/v1/products/{oil['id']}/prices", far) == "bad_request"
    await owner.ok("DELETE", f"/v1/prices/{price['id']}")
    gifts = [
        {"title": "小样", "value_fen": 1_500, "every": "month"},
        {"title": "生日礼盒", "every": "birthday"},
    ]
    plan = await server.ok("POST", "/v1/plans", {**PLAN, "gifts": gifts})
    await owner.ok("PATCH", f"/v1/plans/{plan['id']}", {"on_sale": True})
    assert [found["id"] for found in (await nobody.ok("GET", "/v1/plans"))["items"]] == [plan["id"]]
    await plans_off_sale(shop, owner, nobody, plan["id"])

    # room, show, cues
    room = await a_room(owner, "night")
    await owner.ok("GET", "/v1/rooms")
    assert (await owner.ok("GET", "/v1/rooms/night"))["id"] == room["id"]
    await owner.ok("PATCH", f"/v1/rooms/{room['id']}", {"title": "健康夜"})
    made = await a_show(owner, room["id"])
    show = made["id"]
    assert [found["id"] for found in (await owner.ok("GET", "/v1/shows?status=scheduled"))["items"]] == [show]
    await owner.ok("PATCH", f"/v1/shows/{show}", {"title": "秋收夜"})
    ics = icalendar.Calendar.from_ical(await nobody.ok("GET", f"/v1/shows/{show}/calendar.ics"))
    (event,) = ics.walk("VEVENT")
    assert event["summary"] == "秋收夜"
    assert abs(event["dtstart"].dt.timestamp() * 1000 - made["starts_at"]) < 1000
    await owner.ok("POST", f"/v1/shows/{show}/previews", {"seen_as": "plan"})
    cues = await owner.ok(
        "PUT",
        f"/v1/shows/{show}/cues",
        {
            "cues": [
                {"kind": "pin", "title": "大米", "shortcut": "A", "payload": {"product": rice["id"]}},
                {
                    "kind": "benefit",
                    "title": "前 2 名入会礼",
                    "shortcut": "B",
                    "payload": {"title": "入会礼", "quota": 2, "needs": "join", "value_fen": 3_900},
                },
            ]
        },
    )
    assert [cue["state"] for cue in (await owner.ok("GET", f"/v1/shows/{show}/cues"))["items"]] == [
        "ready"
    ] * 2

    # on air
    assert await owner.refused("POST", f"/v1/shows/{show}/start") == "wrong_status"
    for act in ("open", "start", "pause", "resume"):
        await owner.ok("POST", f"/v1/shows/{show}/{act}")
    guest_card = await nobody.ok("GET", f"/v1/shows/{show}")
    assert guest_card["status"] == "live"
    assert "staff" not in guest_card
    assert (await owner.ok("GET", f"/v1/shows/{show}"))["staff"]["room"]["id"] == room["id"]
    ran = await owner.ok("POST", f"/v1/shows/{show}/cues/{cues['items'][0]['id']}/run")
    assert await owner.refused("POST", f"/v1/shows/{show}/cues/{ran['id']}/run") == "cue_running"
    gift = await owner.ok("POST", f"/v1/shows/{show}/cues/{cues['items'][1]['id']}/run")
    said = await owner.ok("POST", f"/v1/shows/{show}/comments", {"text": "欢迎大家"})
    await owner.ok("POST", f"/v1/shows/{show}/comments", {"text": "在的", "reply_to": said["seq"]})
    assert (await owner.ok("POST", f"/v1/shows/{show}/comments/{said['seq']}/pin"))["changed"] is True
    assert (await owner.ok("DELETE", f"/v1/shows/{show}/pinned-comment"))["changed"] is True
    assert (await owner.ok("POST", f"/v1/shows/{show}/comments/{said['seq']}/hide"))["changed"] is True
    assert (await owner.ok("POST", f"/v1/shows/{show}/comments/{said['seq']}/hide"))["changed"] is False
    assert await owner.refused("POST", f"/v1/shows/{show}/comments/99999/hide") == "not_found"
    await owner.ok("PUT", f"/v1/shows/{show}/announcement", {"text": "九点开奖"})
    await owner.ok("PUT", f"/v1/shows/{show}/announcement", {"text": None})

    # a viewer signs in, tries, joins
    phone = {"phone": "13700000001"}
    code = (await nobody.ok("POST", "/v1/sign-in/codes", phone))["sandbox_code"]
    signed = await shop.client().ok("POST", "/v1/sign-in", {**phone, "code": code, "show": show})
    viewer = shop.client({"authorization": f"Bearer {signed['token']}"})
    who = public_id(ShowId(show), signed["you"]["id"])
    muted = await owner.ok("POST", f"/v1/shows/{show}/mutes", {"viewer": who, "seconds": 60})
    assert muted["until"] > datetime.now(UTC).timestamp() * 1000
    await owner.ok("DELETE", f"/v1/shows/{show}/mutes", {"viewer": who})
    await viewer.ok("PATCH", "/v1/me", {"nickname": "王小明"})
    code = (await nobody.ok("POST", "/v1/sign-in/codes", {"phone": "13700000009"}))["sandbox_code"]
    await viewer.ok("PUT", "/v1/me/phone", {"phone": "13700000009", "code": code})
    address = await viewer.ok("POST", "/v1/me/addresses", ADDRESS)
    spare = await viewer.ok("POST", "/v1/me/addresses", {**ADDRESS, "detail": "文三路 2 号"})
    await viewer.ok("DELETE", f"/v1/me/addresses/{spare['id']}")
    assert [each["id"] for each in (await viewer.ok("GET", "/v1/me/addresses"))["items"]] == [address["id"]]

    offers = (await owner.ok("GET", f"/v1/shows/{show}/offers"))["items"]
    lines = {"lines": [{"offer": offers[0]["id"], "quantity": 2}]}
    guest_quote = await nobody.ok("POST", f"/v1/shows/{show}/quotes", lines)
    assert guest_quote["lines"][0]["unit_fen"] == 12_800
    term = await viewer.ok("POST", "/v1/me/trial", {"plan": plan["id"], "show": show})
    assert term["kind"] == "trial"
    assert await viewer.refused("POST", "/v1/me/trial", {"plan": plan["id"]}) == "trial_used"
    joining = await viewer.ok("POST", "/v1/me/joins", {"plan": plan["id"], "show": show, "key": "join-1"})
    assert joining["seat"]["status"] == "held"
    paid = await shop.pay(joining["payment_url"])
    assert paid.headers["location"].startswith(f"{BASE}/s/{show}?order={joining['order']['order']}")
    me = await viewer.ok("GET", "/v1/me")
    assert (me["kind"], me["plan"]["trial"], me["badge"]) == ("plan", False, "plan")
    won = (await viewer.ok("GET", "/v1/me/benefits"))["items"]
    assert [(claim["rank"], claim["of"]) for claim in won] == [(1, 2)]
    assert "member" not in won[0]

    # and has a receipt that anyone can check, in a chain that anyone can read
    receipt = (await viewer.ok("GET", "/v1/me/receipts"))["items"][0]["receipt"]
    checked = await nobody.ok("POST", "/v1/receipts/check", {"receipt": receipt})
    assert (checked["valid"], checked["says"]["rank"], checked["says"]["of"]) == (True, 1, 2)
    assert verify(receipt, (await nobody.ok("GET", "/v1/receipts/key"))["key"]).rank == 1
    assert not (await nobody.ok("POST", "/v1/receipts/check", {"receipt": receipt[:-9]}))["valid"]
    (link,) = (await nobody.ok("GET", f"/v1/benefits/{won[0]['benefit']}/ranks"))["items"]
    assert (link["rank"], link["link"], link["viewer"]) == (1, 1, checked["says"]["viewer"])
    assert hashlib.sha256(link["core"].encode()).hexdigest() == link["digest"]

    # and buys at the member price
    quote = await viewer.ok("POST", f"/v1/shows/{show}/quotes", lines)
    assert quote["lines"][0]["unit_fen"] == 10_900
    order_body = {"quote": quote["token"], "address": address["id"], "key": "order-1"}
    priced = {**order_body, "total_fen": 1}
    assert await viewer.refused("POST", f"/v1/shows/{show}/orders", priced) == "bad_request"
    order = await viewer.ok("POST", f"/v1/shows/{show}/orders", order_body)
    assert (await viewer.ok("POST", f"/v1/shows/{show}/orders", order_body))["order"] == order["order"]
    other = await shop.member()
    for method, path in (("GET", ""), ("POST", "/payment"), ("POST", "/cancel"), ("POST", "/refund")):
        assert await other.refused(method, f"/v1/me/orders/{order['order']}{path}") == "not_found"
    page = await viewer.ok("POST", f"/v1/me/orders/{order['order']}/payment")
    await shop.pay(page["payment_url"])
    assert (await viewer.ok("GET", f"/v1/me/orders/{order['order']}"))["state"] == "paid"
    second = await viewer.ok("POST", f"/v1/shows/{show}/orders", {**order_body, "key": "order-2"})
    assert (await viewer.ok("POST", f"/v1/me/orders/{second['order']}/cancel"))["state"] == "cancelled"
    assert len((await viewer.ok("GET", "/v1/me/orders"))["items"]) == 3
    points = await viewer.ok("GET", "/v1/me/points")
    assert points["balance"]["pending"] == sum(entry["amount"] for entry in points["items"]) > 0

    # offers, benefits and polls by hand
    flash = await owner.ok(
        "POST",
        f"/v1/shows/{show}/offers",
        {"product": oil["id"], "kind": "flash", "flash_fen": 6_900, "quota": 5, "seconds": 600},
    )
    await owner.ok("POST", f"/v1/offers/{flash['id']}/close")
    await owner.ok("GET", f"/v1/shows/{show}/benefits")
    benefits = f"/v1/shows/{show}/benefits"
    points = {"title": "积分", "what": "points", "points": 100, "quota": 10, "seconds": 600}
    assert await owner.refused("POST", benefits, {**points, "points": 0}) == "bad_request"
    assert await owner.refused("POST", benefits, {**points, "starts_in_s": 9}) == "bad_request"
    promised = await owner.ok("POST", benefits, {**points, "starts_in_s": 10})
    assert await owner.refused("POST", f"/v1/benefits/{promised['id']}/close") == "window_promised"
    acts = (await owner.ok("GET", f"/v1/audit?subject=benefit:{promised['id']}"))["items"]
    assert (acts[0]["act"], acts[0]["detail"]) == (
        "benefit.close.refused",
        {"code": "window_promised"},
    )
    coupon = await owner.ok("POST", benefits, {"title": "满减券", "quota": 10})
    assert (await owner.ok("PATCH", f"/v1/benefits/{coupon['id']}", {"quota": 20}))["quota"] == 20
    assert await owner.refused("PATCH", f"/v1/benefits/{coupon['id']}", {"quota": 5}) == "bad_request"
    for typed in ({"quota": 21, "confirmed": 3}, {"left": 1}, {"rank": 1}):  # nobody types a number
        assert await owner.refused("PATCH", f"/v1/benefits/{coupon['id']}", typed) == "bad_request"
    await owner.ok("POST", f"/v1/benefits/{coupon['id']}/pause", {"reason": "系统核对中"})
    await owner.ok("POST", f"/v1/benefits/{coupon['id']}/resume")
    await owner.ok("POST", f"/v1/benefits/{coupon['id']}/close")
    counts = (await owner.ok("GET", f"/v1/benefits/{gift['subject']}"))["counts"]
    assert (counts["confirmed"], counts["held"]) == (1, 0)
    assert len((await owner.ok("GET", f"/v1/benefits/{gift['subject']}/claims"))["items"]) == 1
    poll = await owner.ok(
        "POST", f"/v1/shows/{show}/polls", {"question": "加红枣吗?", "choices": ["加", "不加"]}
    )
    assert (
        await owner.refused("POST", f"/v1/shows/{show}/polls", {"question": "再问", "choices": ["一", "二"]})
        == "poll_open"
    )
    await owner.ok("POST", f"/v1/polls/{poll['id']}/close")
    await owner.ok("GET", f"/v1/shows/{show}/polls")
    await owner.ok("POST", f"/v1/shows/{show}/cues/{ran['id']}/stop")
    live = await owner.ok("GET", f"/v1/shows/{show}/live")
    assert live["sales"]["paid"] == 1
    assert live["joins"]["first"] == 1

    # guards
    await owner.ok("PUT", "/v1/budgets", {"scope": "show", "subject": show, "limit_fen": 100_000_000})
    assert len((await owner.ok("GET", f"/v1/budgets?show={show}"))["items"]) == 2
    assert (await owner.ok("GET", f"/v1/shows/{show}/costs"))["spent_fen"] > 0
    dear = {**RICE, "sku": "dear", "cost_fen": 20_000}
    asked = (await owner.call("POST", "/v1/products", dear)).json()["approval"]
    assert len((await owner.ok("GET", "/v1/approvals?state=asked"))["items"]) == 1
    await owner.ok("GET", f"/v1/approvals/{asked}")
    second = await shop.staff("operator")
    await second.ok("POST", f"/v1/approvals/{asked}/decision", {"grant": True})
    await owner.ok("POST", "/v1/products", dear)
    await owner.ok("POST", "/v1/incident", {"reason": "系统核对中", "extend_s": 60})
    assert (await owner.ok("GET", "/v1/incident"))["incident"]["extend_s"] == 60
    await owner.ok("DELETE", "/v1/incident")

    # the shop's server
    fed = await server.ok(
        "PUT", "/v1/members", {"members": [{"external_id": "u1", "phone": "13700000077", "nickname": "阿青"}]}
    )
    assert fed["members"][0]["outcome"] == "created"
    minted = await server.ok("POST", "/v1/tokens", {"external_id": "u1", "show": show})
    assert minted["socket"] == f"/v1/shows/{show}/socket"
    assert (await shop.client({"authorization": f"Bearer {minted['token']}"}).ok("GET", "/v1/me"))[
        "name"
    ] == "阿青"
    assert await server.refused("POST", "/v1/tokens", {"external_id": "nobody"}) == "not_found"
    assert await server.refused("POST", "/v1/tokens", {}) == "bad_request"
    page = await server.ok("GET", "/v1/orders?limit=2")
    rest = await server.ok("GET", f"/v1/orders?limit=2&cursor={page['next']}")
    assert len(page["items"]) + len(rest["items"]) == 3
    member = signed["you"]["id"]
    found = await server.ok("GET", "/v1/members?phone=13700000009")
    assert [(row["id"], row["phone"]) for row in found["items"]] == [(member, "137****0009")]
    await server.ok("GET", f"/v1/members/{member}")
    assert len((await server.ok("GET", f"/v1/members/{member}/orders"))["items"]) == 3
    assert len((await server.ok("GET", f"/v1/members/{member}/benefits"))["items"]) == 1
    paid_order = await server.ok("GET", f"/v1/orders/{order['order']}")
    assert [payment["outcome"] for payment in paid_order["payments"]] == ["accepted"]
    await server.ok("GET", "/v1/odd-payments")
    await after_the_order(owner, server, viewer, order["order"])
    await coupons_and_points(owner, server, viewer)
    await gifts_of_a_plan(server, viewer, plan, address["id"])
    refunded = await server.ok("POST", f"/v1/orders/{order['order']}/refund")
    assert refunded["state"] == "refunded"

    # the end, and what the evening taught
    assert await owner.refused("GET", f"/v1/shows/{show}/report") == "not_found"
    await owner.ok("POST", f"/v1/shows/{show}/end", {})
    await learn(shop, show)
    report = await owner.ok("GET", f"/v1/shows/{show}/report")
    assert report["joins"]["first"] == 1
    tags = (await owner.ok("GET", f"/v1/members/{member}/tags"))["items"]
    assert [tag["name"] for tag in tags] == ["对有机大米感兴趣"]
    assert tags[0]["evidence"]
    assert [tag["id"] for tag in (await owner.ok("GET", f"/v1/shows/{show}/tags"))["items"]] == [
        tags[0]["id"]
    ]
    await viewer.ok("GET", "/v1/me/tags")
    await viewer.ok("DELETE", f"/v1/me/tags/{tags[0]['id']}")
    assert (await owner.ok("GET", f"/v1/members/{member}/tags"))["items"] == []
    acts = {act["act"] for act in (await owner.ok("GET", "/v1/audit?limit=100"))["items"]}
    assert {"show.start", "cue.run", "comment.hide", "viewer.mute", "product.create", "order.refund"} <= acts
    csrf_free = shop.client()
    await csrf_free.ok("POST", "/v1/sign-out")

    # what only one who missed the gift may do is refused to the others
    assert await viewer.refused("POST", f"/v1/me/orders/{joining['order']['order']}/refund") in (
        "forbidden",
        "closed",
    )
    bill = await viewer.ok("GET", "/v1/me/plan/refund")
    await viewer.ok("POST", "/v1/me/plan/refund", {"payable_fen": bill["payable_fen"]})
    # a refund by one tap has its own evening, below
    missing = {(route.method, route.path) for route in TABLE} - shop.done
    assert missing <= {
        ("POST", "/v1/me/orders/{order}/refund"),
        ("POST", "/v1/odd-payments/{payment}/decision"),
        ("POST", "/v1/payments/sandbox/webhook"),
        ("POST", "/v1/payments/wechat/webhook"),
    }


async def learn(shop: Shop, show: str) -> None:
    """What the after-show job does."""
    parts = shop.parts
    await after_show(parts, Recorder(parts), ShowId(show))


# -- who may not know --------------------------------------------------------------------------------


async def test_a_members_room_tells_a_guest_the_way_in_and_nothing_else(shop: Shop) -> None:
    owner = await shop.staff()
    plan = await owner.ok("POST", "/v1/plans", PLAN)
    room = await a_room(owner, audience={"kind": "plan_members"})
    made = await a_show(owner, room["id"], summary="内部价目", video_url="https://cdn.example/secret.m3u8")
    show = made["id"]
    for act in ("open", "start"):
        await owner.ok("POST", f"/v1/shows/{show}/{act}")
    secret = await owner.ok("POST", "/v1/products", {**RICE, "name": "秘密茶", "sku": "tea"})
    offer = await owner.ok("POST", f"/v1/shows/{show}/offers", {"product": secret["id"]})
    lines = {"lines": [{"offer": offer["id"], "quantity": 1}]}
    for caller, way in ((shop.client(), "join"), (await shop.member(), "join")):
        answer = await caller.call("GET", f"/v1/shows/{show}")
        assert answer.json()["admitted"] is False
        assert answer.json()["way_in"] == way
        refused = await caller.call("POST", f"/v1/shows/{show}/quotes", lines)
        assert refused.json()["code"] == "members_only"
        for said in (answer.text, refused.text):
            assert "秘密茶" not in said
            assert "secret.m3u8" not in said
            assert "内部价目" not in said
    member = await shop.member()
    await member.ok("POST", "/v1/me/trial", {"plan": plan["id"], "show": show})
    inside = await member.ok("GET", f"/v1/shows/{show}")
    assert inside["video"]["url"] == "https://cdn.example/secret.m3u8"
    assert (await member.ok("POST", f"/v1/shows/{show}/quotes", lines))["lines"][0]["name"] == "秘密茶"


async def test_a_coupon_or_points_gone_since_the_quote_refuse_the_order_by_name(shop: Shop) -> None:
    owner, viewer = await shop.staff(), await shop.member()
    show = (await a_show(owner, (await a_room(owner))["id"]))["id"]
    for act in ("open", "start"):
        await owner.ok("POST", f"/v1/shows/{show}/{act}")
    product = (await owner.ok("POST", "/v1/products", RICE))["id"]
    offer = (await owner.ok("POST", f"/v1/shows/{show}/offers", {"product": product}))["id"]
    address = (await viewer.ok("POST", "/v1/me/addresses", ADDRESS))["id"]
    rule = await owner.ok("POST", "/v1/coupon-rules", {"title": "减 10", "kind": "amount", "off_fen": 1_000})
    grants = f"/v1/coupon-rules/{rule['id']}/grants"
    given = (await owner.ok("POST", grants, {"members": [viewer.id], "cause": "x"}))["items"]
    async with shop.parts.database.transaction() as t:
        await shop.parts.points.earn(t, MemberId(viewer.id), 100, "test", "test:1")

    async def quoted(more: dict[str, Any]) -> str:
        asked = {"lines": [{"offer": offer, "quantity": 1}], "address": address, **more}
        return str((await viewer.ok("POST", f"/v1/shows/{show}/quotes", asked))["token"])

    for more, word in (
        ({"coupons": [given[0]["coupon"]]}, "coupon_used"),
        ({"points": 100}, "not_enough_points"),
    ):
        first, again = [
            {"address": address, "quote": await quoted(more), "key": f"{word} {n}"} for n in (1, 2)
        ]
        await viewer.ok("POST", f"/v1/shows/{show}/orders", first)
        assert await viewer.refused("POST", f"/v1/shows/{show}/orders", again) == word


async def test_an_offer_for_members_is_not_found_by_others(shop: Shop) -> None:
    owner = await shop.staff()
    show = (await a_show(owner, (await a_room(owner))["id"]))["id"]
    for act in ("open", "start"):
        await owner.ok("POST", f"/v1/shows/{show}/{act}")
    product = await owner.ok("POST", "/v1/products", RICE)
    hidden = await owner.ok(
        "POST", f"/v1/shows/{show}/offers", {"product": product["id"], "audience": {"kind": "plan_members"}}
    )
    lines = {"lines": [{"offer": hidden["id"], "quantity": 1}]}
    assert await shop.client().refused("POST", f"/v1/shows/{show}/quotes", lines) == "not_found"
    for quantity in (0, -1, 1_000, 1.5, "2"):
        bad = {"lines": [{"offer": hidden["id"], "quantity": quantity}]}
        assert await shop.client().refused("POST", f"/v1/shows/{show}/quotes", bad) == "bad_request"


async def test_a_preview_looks_and_does_nothing(shop: Shop) -> None:
    owner = await shop.staff()
    await owner.ok("POST", "/v1/plans", PLAN)
    show = (await a_show(owner, (await a_room(owner, audience={"kind": "plan_members"}))["id"]))["id"]
    seen = {}
    for who in ("guest", "plan"):
        token = (await owner.ok("POST", f"/v1/shows/{show}/previews", {"seen_as": who}))["token"]
        preview = shop.client({"authorization": f"Bearer {token}"})
        seen[who] = (await preview.ok("GET", f"/v1/shows/{show}"))["admitted"]
        assert await preview.refused("GET", "/v1/me") == "unauthenticated"
        assert await preview.refused("POST", f"/v1/shows/{show}/start") == "unauthenticated"
    assert seen == {"guest": False, "plan": True}


# -- webhooks ----------------------------------------------------------------------------------------


def signed(body: bytes, secret: str = SECRET, at: datetime | None = None) -> dict[str, str]:
    moment = at or datetime.now(UTC)
    signature = Webhook(webhook_secret(secret)).sign("msg_1", moment, body.decode())
    return {
        "content-type": "application/json",
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": signature,
    }


async def test_news_of_a_payment_is_believed_only_when_signed(shop: Shop) -> None:
    path = "/v1/payments/sandbox/webhook"
    data = {
        "ref": "r1",
        "order": new_id(),
        "amount_fen": 1,
        "payer": "p",
        "paid_at": datetime.now(UTC).isoformat(),
    }
    body = json.dumps(
        {"type": "payment.succeeded", "timestamp": datetime.now(UTC).isoformat(), "data": data}
    ).encode()
    provider = shop.client()
    good = signed(body)
    for headers in (
        {},
        signed(body, "another" * 6),
        signed(body, at=datetime.now(UTC) - timedelta(minutes=6)),
        signed(body, at=datetime.now(UTC) + timedelta(minutes=6)),
        {**good, "webhook-signature": "v1"},
        {**good, "webhook-signature": "v1,???"},
        {**good, "webhook-timestamp": "nan"},
        {**good, "webhook-id": "msg_2"},
    ):
        assert await provider.refused("POST", path, content=body, headers=headers) == "bad_signature"
    assert await provider.refused("POST", path, content=body + b" ", headers=good) == "bad_signature"
    noted = await provider.ok("POST", path, content=body, headers=good)
    assert (noted["outcome"], noted["reason"]) == ("quarantined", "unknown_order")
    assert (await provider.ok("POST", path, content=body, headers=good))["again"] is True
    other = b'{"type":"invoice.paid"}'
    assert await provider.ok("POST", path, content=other, headers=signed(other)) == {}
    for wrong in (b"{}", b"[]", b'{"type":"payment.succeeded"}', b"\xff"):
        headers = good | signed(wrong) if wrong != b"\xff" else good
        answer = await provider.call("POST", path, content=wrong, headers=headers)
        assert answer.status_code in (200, 400, 401)


async def test_a_failed_payment_leaves_the_order_to_be_paid(shop: Shop) -> None:
    owner, viewer = await shop.staff(), await shop.member()
    plan = await owner.ok("POST", "/v1/plans", PLAN)
    joining = await viewer.ok("POST", "/v1/me/joins", {"plan": plan["id"], "key": "k"})
    assert joining["payment_url"].startswith(PAY)
    assert await viewer.refused("POST", "/v1/me/joins", {"plan": plan["id"]}) == "bad_request"
    await shop.pay(joining["payment_url"], "fail")
    order = joining["order"]["order"]
    assert (await viewer.ok("GET", f"/v1/me/orders/{order}"))["state"] == "placed"
    again = await viewer.ok("POST", f"/v1/me/orders/{order}/payment")
    await shop.pay(again["payment_url"])
    assert (await viewer.ok("GET", "/v1/me"))["kind"] == "plan"
    assert await viewer.refused("POST", f"/v1/me/orders/{order}/payment") == "closed"


async def test_late_money_brings_the_plan_without_the_gift_and_a_refund_by_one_tap(shop: Shop) -> None:
    owner, early, late = await shop.staff(), await shop.member(), await shop.member()
    plan = await owner.ok("POST", "/v1/plans", PLAN)
    show = (await a_show(owner, (await a_room(owner))["id"]))["id"]
    for act in ("open", "start"):
        await owner.ok("POST", f"/v1/shows/{show}/{act}")
    gift = {"title": "入会礼", "quota": 1, "needs": "join", "seat_s": 1}
    await owner.ok("POST", f"/v1/shows/{show}/benefits", gift)
    body = {"plan": plan["id"], "show": show}
    slow = await late.ok("POST", "/v1/me/joins", {**body, "key": "k1"})
    assert slow["seat"]["status"] == "held"
    with anyio.fail_after(10):
        lapsed = 0
        while not lapsed:
            lapsed = (await shop.parts.seats.sweep(ShowId(show))).lapsed
    quick = await early.ok("POST", "/v1/me/joins", {**body, "key": "k2"})
    await shop.pay(quick["payment_url"])
    await shop.pay(slow["payment_url"])
    assert len((await early.ok("GET", "/v1/me/benefits"))["items"]) == 1
    assert (await late.ok("GET", "/v1/me/benefits"))["items"] == []
    assert (await late.ok("GET", "/v1/me"))["kind"] == "plan"
    refund = f"/v1/me/orders/{slow['order']['order']}/refund"
    assert (await late.ok("POST", refund))["state"] == "refunded"
    assert (await late.ok("GET", "/v1/me"))["kind"] == "registered"
    assert await early.refused("POST", f"/v1/me/orders/{quick['order']['order']}/refund") == "forbidden"


# -- stores away -------------------------------------------------------------------------------------


async def test_a_store_that_does_not_answer_is_said_plainly(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> None:
        raise ConnectionError("redis://user:secret@10.0.0.1 is away")

    monkeypatch.setattr(shop.parts.redis, "ping", away)
    answer = await shop.client().call("GET", "/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "secret" not in answer.text
    assert answer.headers["retry-after"] == "1"
    assert (await shop.client().call("GET", "/healthz")).status_code == 200


async def test_a_process_that_drains_asks_for_no_new_work(shop: Shop) -> None:
    shop.app.router.routes[:] = http_routes(shop.parts, lambda: "draining")
    assert await shop.client().refused("GET", "/readyz") == "unavailable"
    await shop.client().ok("GET", "/healthz")
    assert 'companion_http_seconds_count{route="health",status="2xx"}' in await shop.client().ok(
        "GET", "/metrics"
    )


async def test_a_failure_of_ours_tells_nothing_of_our_insides(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*given: Any, **named: Any) -> None:
        raise RuntimeError("password hunter2")

    monkeypatch.setattr(shop.parts.plans, "all", broken)
    caller = shop.client()
    response = await caller.http.get("/v1/plans")
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert "hunter2" not in response.text
