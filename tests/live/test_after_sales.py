"""After the order over HTTP: sending, cases with photos, refunds in part, giving a plan back; and the books of it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from live.engines import Addresses
from membership.actor import MemberId
from tests.live.api import Caller, Shop, open_shop
from tests.live.test_closing import Evening, begin
from tests.live.test_routes import ADDRESS

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)
NOWHERE = "01a1fffb-0380-71dd-ac90-4c11d41745bb"


@pytest.fixture
async def shop(engines: Addresses, fresh_database_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(engines, fresh_database_url, tmp_path) as opened:
        yield opened


async def settle(evening: Evening) -> None:
    await evening.end()
    await evening.work()


async def named(evening: Evening) -> list[str]:
    return [str(difference) for difference in (await evening.close()).differences]


async def test_an_order_is_sent_asked_about_and_refunded_in_part_and_the_show_closes_with_no_difference(
    shop: Shop,
) -> None:
    evening = await begin(shop)
    owner, server, member = await shop.staff(), await shop.shop_server(), await shop.member("王小明")
    rice, flash = await evening.cue("A"), await evening.cue("D")
    order = await evening.order(member, rice, 2)
    other = await evening.order(await shop.member("李雷"), flash)

    # sent
    rows = list(
        csv.DictReader(io.StringIO((await owner.ok("GET", f"/v1/fulfilment.csv?show={evening.show}"))[1:]))
    )
    assert {row["order"] for row in rows} == {order, other}
    parcel = {"order": order, "carrier": "顺丰", "tracking": "SF1"}
    sent = await server.ok("POST", "/v1/fulfilment", {"rows": [parcel, parcel, {**parcel, "order": NOWHERE}]})
    assert [row["outcome"] for row in sent["rows"]] == ["sent", "again", "refused"]
    (mine,) = (await member.ok("GET", "/v1/me/orders"))["items"]
    assert (mine["state"], mine["parcels"][0]["tracking"], mine["refunded_fen"]) == ("fulfilled", "SF1", 0)

    # asked about, with a photo
    asked = {"kind": "damaged", "reason": "袋子破了", "lines": [{"position": 1, "quantity": 1}]}
    case = await member.ok("POST", f"/v1/me/orders/{order}/cases", asked)
    assert await member.refused("POST", f"/v1/me/orders/{order}/cases", asked) == "case_open"
    await photos(member, await shop.member("别人"), owner, case["id"])
    (seen,) = (await owner.ok("GET", f"/v1/cases?state=open&order={order}"))["items"]
    assert (seen["id"], seen["member"]) == (case["id"], member.id)
    before = await owner.ok("GET", f"/v1/cases/{case['id']}/refund")
    assert before["buyer"] == "王小明"
    assert re.fullmatch(r"\d{3}\*{4}\d{4}", before["phone"])
    assert (before["order"]["state"], before["order"]["parcels"][0]["tracking"]) == ("fulfilled", "SF1")
    assert before["money_fen"] == before["lines"][0]["money_fen"] == mine["lines"][0]["unit_fen"]
    decision = {"act": "refund", "note": "退您一件"}
    settled = await owner.ok("POST", f"/v1/cases/{case['id']}/decision", decision)
    assert (settled["state"], settled["amount_fen"]) == ("settled", mine["lines"][0]["unit_fen"])
    assert await owner.refused("POST", f"/v1/cases/{case['id']}/decision", decision) == "closed"
    host = await shop.staff("host")
    assert await host.refused("GET", f"/v1/cases/{case['id']}/refund") == "forbidden"
    assert (await member.ok("GET", "/v1/me/cases"))["items"][0]["note"] == "退您一件"
    (mine,) = (await member.ok("GET", "/v1/me/orders"))["items"]
    assert (mine["refunded_fen"], mine["lines"][0]["refunded"]) == (settled["amount_fen"], 1)

    # a sum, and twice
    path = f"/v1/orders/{order}/refunds"
    given = await server.ok("POST", path, {"amount_fen": 100, "key": "k1"})
    assert (given["money_fen"], given["whole"]) == (100, False)
    assert (await server.ok("POST", path, {"amount_fen": 100, "key": "k1"}))["again"]
    twice = {"lines": [{"position": 1, "quantity": 2}], "key": "k2"}
    assert await server.refused("POST", path, twice) == "already_refunded"
    assert await member.refused("POST", path, twice) == "unauthenticated"
    for bad in ({"amount_fen": 100}, {"lines": [twice["lines"][0]] * 2, "key": "k3"}):  # type: ignore[index]
        assert await server.refused("POST", path, bad) == "bad_request"

    noted = (await owner.ok("GET", f"/v1/audit?subject=order:{order}"))["items"]
    assert [(act["act"], act["detail"]["code"]) for act in noted if act["act"].endswith(".refused")] == [
        ("order.refund_part.refused", "already_refunded")
    ]

    # paid in part by points: they come back with the pieces, by parts and by the whole
    for pieces in (1, 2):
        spender = await shop.member(f"积分{pieces}")
        sales = f"/v1/shows/{evening.show}/live"
        before = (await owner.ok("GET", sales))["sales"]["sales_fen"]
        paid = await by_points(evening, spender, rice)
        (spent,) = (await spender.ok("GET", "/v1/me/orders"))["items"]
        after = (await owner.ok("GET", sales))["sales"]["sales_fen"]
        assert after - before == spent["goods_fen"] - 200  # what was paid, not what it would have cost
        if pieces == 1:
            one = {"lines": [{"position": 1, "quantity": 1}], "restock": True, "key": "p"}
            given = await server.ok("POST", f"/v1/orders/{paid}/refunds", one)
            assert given["points"] == 100
        else:
            await server.ok("POST", f"/v1/orders/{paid}/refund")
            assert await server.refused("POST", f"/v1/orders/{paid}/refund") == "already_refunded"
        points = (await spender.ok("GET", "/v1/me/points"))["balance"]
        assert points["active"] == 800 + 100 * pieces

    await settle(evening)
    assert await named(evening) == []
    await by_hand_is_named(evening)


async def by_points(evening: Evening, member: Caller, offer: str) -> str:
    """An order of two pieces, 200 points of it spent."""
    parts = evening.parts
    async with parts.database.transaction() as t:
        await parts.points.earn(t, MemberId(member.id), 1_000, "gift", f"gift:{member.id}")
    address = await member.ok("POST", "/v1/me/addresses", ADDRESS)
    body = {"lines": [{"offer": offer, "quantity": 2}], "points": 200, "address": address["id"]}
    quote = await member.ok("POST", f"/v1/shows/{evening.show}/quotes", body)
    assert quote["points"] == 200
    placed = await member.ok(
        "POST",
        f"/v1/shows/{evening.show}/orders",
        {"quote": quote["token"], "address": address["id"], "key": "by-points"},
    )
    page = await member.ok("POST", f"/v1/me/orders/{placed['order']}/payment")
    await evening.shop.pay(page["payment_url"])
    return str(placed["order"])


async def photos(member: Caller, other: Caller, owner: Caller, case: str) -> None:
    path = f"/v1/me/cases/{case}/photos"
    added = await member.ok("POST", path, content=PNG, headers={"content-type": "image/png"})
    (photo,) = added["photos"]
    for caller, where in (
        (member, f"{path}/{photo['id']}"),
        (owner, f"/v1/cases/{case}/photos/{photo['id']}"),
    ):
        answer = await caller.call("GET", where)
        assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, PNG, "image/png")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"] == "sandbox"
    assert await other.refused("GET", f"{path}/{photo['id']}") == "not_found"
    assert (
        await other.refused("POST", path, content=PNG, headers={"content-type": "image/png"}) == "not_found"
    )
    wrong: list[tuple[str, bytes, str]] = [
        ("image/jpeg", PNG, "unsupported_media"),
        ("image/svg+xml", b"<svg/>", "unsupported_media"),
        ("application/json", b"{}", "unsupported_media"),
        ("image/png", PNG + bytes(512 * 1024), "too_large"),
    ]
    for media, image, word in wrong:
        assert await member.refused("POST", path, content=image, headers={"content-type": media}) == word


async def by_hand_is_named(evening: Evening) -> None:
    """What is changed at the database's own prompt after the close."""
    changes = [
        (
            "UPDATE order_refunds SET money_fen = money_fen + 1 WHERE quantity = 1 AND restocked = false",
            "in fen",
        ),
        ("UPDATE order_refunds SET quantity = 9 WHERE quantity = 1 AND restocked = false", "quantity"),
        (
            "UPDATE order_refunds SET earned = earned + 1 WHERE quantity = 1 AND restocked = false",
            "points taken back",
        ),
        ("UPDATE after_sales_cases SET amount_fen = 1", "case "),
        ("UPDATE parcels SET case_id = (SELECT id FROM after_sales_cases)", "parcels of order"),
    ]
    for change, word in changes:
        found = await evening.named_after(change)
        assert any(word in each for each in found), (change, found)
    assert await named(evening) == []


async def test_a_plan_is_shown_item_by_item_given_back_and_the_show_closes_with_no_difference(
    shop: Shop,
) -> None:
    evening = await begin(shop)
    owner, member, stays = await shop.staff(), await shop.member("王小明"), await shop.member("李雷")
    assert await shop.client().ok("GET", "/v1/refund-rule") == {"whole_days": 7, "later": "end"}
    assert await member.refused("GET", "/v1/me/plan/refund") == "not_found"
    await evening.cue("B")
    order = await evening.join(member)
    await evening.join(stays)
    rice = await evening.cue("A")
    await evening.order(member, rice, 1)
    parcel = {"order": order, "carrier": "顺丰", "tracking": "G1"}
    await owner.ok("POST", "/v1/fulfilment", {"rows": [parcel]})
    shown = await member.ok("GET", "/v1/me/plan/refund")
    parts = shown["price_fen"] + shown["freight_fen"] + shown["gifts_fen"]
    assert (shown["way"], shown["order"], shown["payable_fen"]) == (
        "itemised",
        order,
        shown["fee_fen"] - parts,
    )
    assert shown["gifts_fen"] > 0
    wrong = {"payable_fen": shown["payable_fen"] + 1}
    assert await member.refused("POST", "/v1/me/plan/refund", wrong) == "price_changed"
    given = await member.ok("POST", "/v1/me/plan/refund", {"payable_fen": shown["payable_fen"]})
    assert given["payable_fen"] == shown["payable_fen"]
    assert (await member.ok("GET", "/v1/me"))["kind"] == "registered"
    assert await member.refused("POST", "/v1/me/plan/refund", {"payable_fen": 0}) == "not_found"

    ended = await stays.ok("POST", "/v1/me/plan/cancel")
    assert ended["cancelled"]
    assert (await stays.ok("GET", "/v1/me"))["kind"] == "plan"
    assert not (await stays.ok("DELETE", "/v1/me/plan/cancel"))["cancelled"]
    assert await member.refused("POST", "/v1/me/plan/cancel") == "not_found"

    await settle(evening)
    assert await named(evening) == []


async def test_freight_and_date_of_an_address_are_quoted_and_where_we_do_not_send_is_said(
    shop: Shop,
) -> None:
    evening = await begin(shop)
    owner, member = await shop.staff(), await shop.member("王小明")
    rows: list[dict[str, Any]] = [
        {"region": "", "flat_fen": 900, "free_from_fen": None, "days_min": 2, "days_max": 4},
        {"region": "西藏", "covered": False},
    ]
    put = await owner.ok("PUT", "/v1/freight", {"rows": rows})
    assert [row["region"] for row in put["rows"]] == ["", "西藏"]
    assert await owner.ok("GET", "/v1/freight") == put
    assert await owner.refused("PUT", "/v1/freight", {"rows": rows[1:]}) == "bad_request"
    host = await shop.staff("host")
    assert await host.refused("PUT", "/v1/freight", {"rows": []}) == "forbidden"
    rice = await evening.cue("A")
    home = await member.ok("POST", "/v1/me/addresses", ADDRESS)
    far = await member.ok("POST", "/v1/me/addresses", {**ADDRESS, "region": "西藏自治区 拉萨市"})
    path, lines = f"/v1/shows/{evening.show}/quotes", [{"offer": rice, "quantity": 1}]
    quote = await member.ok("POST", path, {"lines": lines, "address": home["id"]})
    assert quote["freight_fen"] == 900
    assert (
        date.fromisoformat(quote["promised_until"]) - date.fromisoformat(quote["promised_from"])
    ).days == 2
    assert await member.refused("POST", path, {"lines": lines, "address": far["id"]}) == "not_covered"
    stranger = await shop.member("别人")
    assert await stranger.refused("POST", path, {"lines": lines, "address": home["id"]}) == "not_found"
    assert (
        await shop.client().refused("POST", path, {"lines": lines, "address": home["id"]})
        == "unauthenticated"
    )
    body = {"quote": quote["token"], "address": far["id"], "key": "k"}
    assert await member.refused("POST", f"/v1/shows/{evening.show}/orders", body) == "not_covered"
    placed = await member.ok(
        "POST", f"/v1/shows/{evening.show}/orders", {**body, "address": home["id"], "key": "k2"}
    )
    order = await member.ok("GET", f"/v1/me/orders/{placed['order']}")
    assert order["promised_until"] == quote["promised_until"]
