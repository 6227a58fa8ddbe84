"""Guards over HTTP: who may ask, grant, set a budget and throw the switch; every act is in the audit log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from live.books import Books
from live.comparison import differences
from live.engines import Addresses
from live.jobs import Rounds
from live.recorder import Recorder
from membership.actor import ShowId
from tests.live.api import Caller, Shop, open_shop

pytestmark = pytest.mark.anyio

GIFT = {"title": "厨房三件套", "quota": 100, "value_fen": 5_900}


@pytest.fixture
async def shop(engines: Addresses, fresh_database_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(engines, fresh_database_url, tmp_path) as opened:
        yield opened


async def on_air(owner: Caller, slug: str = "night") -> tuple[str, str]:
    """A live show: its id and its room's."""
    room = await owner.ok("POST", "/v1/rooms", {"slug": slug, "title": "会员健康夜", "host_name": "小禾"})
    body = {"room": room["id"], "title": "秋收专场", "starts_at": "2026-11-22T12:00:00+00:00"}
    show = (await owner.ok("POST", "/v1/shows", body))["id"]
    await owner.ok("POST", f"/v1/shows/{show}/open")
    await owner.ok("POST", f"/v1/shows/{show}/start")
    return show, room["id"]


async def refused(caller: Caller, method: str, path: str, body: Any = None) -> dict[str, Any]:
    response = await caller.call(method, path, body)
    assert response.status_code >= 400, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def acts(owner: Caller, *words: str) -> list[str]:
    """The acts of these kinds, oldest first."""
    found = (await owner.ok("GET", "/v1/audit?limit=100"))["items"]
    return [act["act"] for act in reversed(found) if act["act"].split(".")[0] in words]


@pytest.mark.rule("L20")
async def test_l20_the_host_asks_the_operator_grants_and_the_host_presses_again(shop: Shop) -> None:
    owner, host, operator = await shop.staff(), await shop.staff("host"), await shop.staff("operator")
    show, _ = await on_air(owner)
    await operator.ok("PUT", "/v1/budgets", {"scope": "show", "subject": show, "limit_fen": 590_000})
    benefit = await host.ok("POST", f"/v1/shows/{show}/benefits", GIFT)
    path = f"/v1/benefits/{benefit['id']}"
    said = await refused(host, "PATCH", path, {"quota": 150})
    assert (said["status"], said["code"], said["granted_by"]) == (409, "over_budget", ["operator", "owner"])
    assert said["rules"][0]["fen"] == 295_000
    assert "operator or owner" in said["detail"]
    assert (await refused(host, "PATCH", path, {"quota": 150}))["approval"] == said["approval"]
    listed = (await host.ok("GET", "/v1/approvals?state=asked"))["items"]
    assert [one["id"] for one in listed] == [said["approval"]]
    assert (listed[0]["title"], listed[0]["show"]) == ("厨房三件套 · 100 → 150", show)
    decision = f"/v1/approvals/{said['approval']}/decision"
    assert await host.refused("POST", decision, {"grant": True}) == "forbidden"
    granted = await operator.ok("POST", decision, {"grant": True, "note": "今晚可以"})
    assert (granted["state"], granted["note"]) == ("granted", "今晚可以")
    assert await owner.refused("POST", decision, {"grant": False}) == "already_decided"
    assert (await host.ok("PATCH", path, {"quota": 150}))["quota"] == 150
    assert (await host.ok("GET", f"/v1/approvals/{said['approval']}"))["state"] == "used"
    budgets = (await owner.ok("GET", f"/v1/budgets?show={show}"))["items"]
    assert [(one["scope"], one["left_fen"]) for one in budgets] == [("month", None), ("show", -295_000)]
    costs = await owner.ok("GET", f"/v1/shows/{show}/costs")
    assert (costs["budget_fen"], costs["committed_fen"]) == (590_000, 885_000)
    assert await acts(owner, "approval", "budget") == ["budget.set", "approval.ask", "approval.grant"]


async def test_an_owner_alone_cannot_grant_what_he_asked_for(shop: Shop) -> None:
    owner = await shop.staff()
    show, _ = await on_air(owner)
    await owner.ok("PUT", "/v1/budgets", {"scope": "show", "subject": show, "limit_fen": 0})
    said = await refused(owner, "POST", f"/v1/shows/{show}/benefits", GIFT)
    assert said["code"] == "over_budget"
    decision = f"/v1/approvals/{said['approval']}/decision"
    assert await owner.refused("POST", decision, {"grant": True}) == "forbidden"
    server = await shop.shop_server()
    assert await server.refused("POST", decision, {"grant": True}) == "forbidden"
    assert await server.refused("POST", f"/v1/shows/{show}/benefits", GIFT) == "forbidden"


async def test_a_cue_below_cost_runs_once_a_second_person_has_granted_it(shop: Shop) -> None:
    owner, host = await shop.staff(), await shop.staff("host")
    show, _ = await on_air(owner)
    given = {"sku": "rice", "name": "有机大米", "list_fen": 12_800, "stock": 50, "cost_fen": 10_000}
    product = await owner.ok("POST", "/v1/products", given)
    assert product["cost_fen"] == 10_000
    flash = {"product": product["id"], "flash_fen": 9_900, "quota": 5, "seconds": 60}
    cue = {"kind": "flash", "title": "秒杀", "shortcut": "D", "payload": flash}
    (cue,) = (await host.ok("PUT", f"/v1/shows/{show}/cues", {"cues": [cue]}))["items"]
    path = f"/v1/shows/{show}/cues/{cue['id']}/run"
    said = await refused(host, "POST", path)
    assert said["code"] == "needs_approval"
    await owner.ok("POST", f"/v1/approvals/{said['approval']}/decision", {"grant": True})
    assert (await host.ok("POST", path))["state"] == "running"
    public = await shop.client().call("GET", f"/v1/products/{product['id']}")
    assert "cost_fen" not in public.text


@pytest.mark.rule("L20")
async def test_coupons_without_a_quota_are_not_given_away_above_the_limit_by_one_alone(shop: Shop) -> None:
    shop.parts.guards._approve_above_fen = 20_000
    operator, owner, server = await shop.staff("operator"), await shop.staff(), await shop.shop_server()
    members = [(await shop.member()).id for _ in range(4)]
    rule = await operator.ok(
        "POST", "/v1/coupon-rules", {"title": "百元券", "kind": "amount", "off_fen": 10_000}
    )
    path = f"/v1/coupon-rules/{rule['id']}/grants"
    two = await operator.ok("POST", path, {"members": members[:2], "cause": "sorry"})
    assert all(row["coupon"] for row in two["items"])
    more = {"members": members[2:], "cause": "sorry"}
    said = await refused(operator, "POST", path, more)  # a second batch counts with the first
    assert said["code"] == "needs_approval"
    assert said["rules"][0]["fen"] == 40_000
    assert await server.refused("POST", path, more) == "forbidden"
    await owner.ok("POST", f"/v1/approvals/{said['approval']}/decision", {"grant": True})
    assert await operator.refused("POST", path, {**more, "members": members[1:]}) == "needs_approval"
    assert all(row["coupon"] for row in (await operator.ok("POST", path, more))["items"])
    other = {"members": members[:1], "cause": "again"}
    assert await operator.refused("POST", path, other) == "needs_approval"
    assert (await owner.ok("GET", f"/v1/coupon-rules/{rule['id']}"))["granted"] == 4


async def test_staff_of_one_room_see_and_grant_what_is_asked_in_their_room(shop: Shop) -> None:
    owner = await shop.staff()
    show, room = await on_air(owner)
    _, elsewhere = await on_air(owner, "day")
    await owner.ok("PUT", "/v1/budgets", {"scope": "show", "subject": show, "limit_fen": 0})
    said = await refused(owner, "POST", f"/v1/shows/{show}/benefits", GIFT)
    here, there = await shop.staff("operator", room), await shop.staff("operator", elsewhere)
    assert len((await here.ok("GET", "/v1/approvals"))["items"]) == 1
    assert (await there.ok("GET", "/v1/approvals"))["items"] == []
    path = f"/v1/approvals/{said['approval']}"
    assert await there.refused("GET", path) == "forbidden"
    assert await there.refused("POST", f"{path}/decision", {"grant": True}) == "forbidden"
    month = {"scope": "month", "subject": "2026-11", "limit_fen": 0}
    assert await here.refused("PUT", "/v1/budgets", month) == "forbidden"
    await here.ok("POST", f"{path}/decision", {"grant": True})
    await owner.ok("POST", f"/v1/shows/{show}/benefits", GIFT)


async def test_the_switch_over_http_is_audited_and_ends_as_it_began(shop: Shop) -> None:
    owner, host, admin = await shop.staff(), await shop.staff("host"), await shop.staff("admin")
    show, _ = await on_air(owner)
    benefit = await owner.ok("POST", f"/v1/shows/{show}/benefits", GIFT)
    assert (await host.ok("GET", "/v1/incident"))["incident"] is None
    assert (await host.ok("GET", "/v1/incident"))["payments"]["state"] == "ok"
    begun = await admin.ok("POST", "/v1/incident", {"reason": "支付故障", "extend_s": 600})
    again = await host.ok("POST", "/v1/incident", {"reason": "又按了一次", "extend_s": 900})
    assert again == begun
    assert await owner.refused("POST", f"/v1/shows/{show}/benefits", GIFT) == "paused"
    live = await owner.ok("GET", f"/v1/shows/{show}/live")
    assert live["incident"]["reason"] == "支付故障"
    assert live["costs"]["committed_fen"] == 590_000
    assert await (await shop.staff("assistant")).refused("DELETE", "/v1/incident") == "forbidden"
    assert (await host.ok("DELETE", "/v1/incident"))["ended_at"] >= begun["began_at"]
    assert await host.refused("DELETE", "/v1/incident") == "not_found"
    assert (await owner.ok("GET", f"/v1/benefits/{benefit['id']}"))["benefit"]["status"] == "open"
    assert await acts(owner, "incident") == ["incident.begin", "incident.end"]


async def test_a_plan_above_the_rebate_cap_is_not_saved(shop: Shop) -> None:
    owner = await shop.staff()
    plan = {"name": "年卡", "fee_fen": 19_900, "period_months": 12, "points_bonus_percent": 1_000}
    said = await refused(owner, "POST", "/v1/plans", plan)
    assert (said["code"], said["rebate_permille"], said["cap_permille"]) == ("over_rebate_cap", 110, 100)
    assert (await owner.ok("GET", "/v1/plans"))["items"] == []


async def test_the_jobs_put_the_meter_on_the_screens_of_staff_and_finish_the_switch(shop: Shop) -> None:
    owner = await shop.staff()
    show, _ = await on_air(owner)
    await owner.ok("POST", f"/v1/shows/{show}/benefits", GIFT)
    async with shop.parts.database.transaction() as t:  # as a process leaves it that dies after the commit
        await t.conn.execute(
            "INSERT INTO incidents (id, reason, extend_s, began_by, began_name)"
            " VALUES (gen_random_uuid(), '支付故障', 0, 'staff:x', '小禾')"
        )
    rounds = Rounds(shop.parts, Recorder(shop.parts))
    await rounds._settle_incident()
    await rounds._meter()
    await rounds._meter()
    changes = await shop.parts.show_log.changes(ShowId(show), -1)
    states = {state.key: state for state in changes.states}
    assert states["incident"].seen_by(1) is not None
    meter = states["costs"].seen_by(1 << 8)
    assert meter is not None
    assert (meter["committed_fen"], meter["payments"]["state"], meter["approvals"]) == (590_000, "ok", 0)
    assert states["costs"].seen_by(0xFF) is None  # no viewer, of whatever class
    versions = states["costs"].version
    await asyncio.gather(rounds._meter(), rounds._settle_incident())
    again = {
        state.key: state.version for state in (await shop.parts.show_log.changes(ShowId(show), -1)).states
    }
    assert again["costs"] == versions


def test_the_close_names_an_approval_that_was_changed_by_hand() -> None:
    def named(**changed: str) -> list[str]:
        books = Books()
        kept = {
            "id": "a1",
            "state": "used",
            "asked_by": "staff:1",
            "decided_by": "staff:2",
            "decided_at": "2026-11-22T12:00:00+00:00",
            "used_at": "2026-11-22T12:01:00+00:00",
            "expires_at": "2026-11-22T12:30:00+00:00",
        }
        books.rows["approvals"] = [{**kept, **changed}]
        return [str(each) for each in differences(ShowId("x"), books)]

    assert named() == []
    assert "who decided · PostgreSQL · expected a second person" in named(decided_by="staff:1")[0]
    assert "expected while it held" in named(used_at="2026-11-22T12:31:00+00:00")[0]
    assert "expected while it held" in named(used_at="2026-11-22T11:59:00+00:00")[0]
