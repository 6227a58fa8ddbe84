"""The whole road, from outside: socket, script, commit, log, frame; money by the sandbox's own page."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from commerce.products import ProductInput
from live.brand import PRODUCTS
from live.engines import Addresses
from live.hub import beat_s
from membership.actor import PERMISSIONS, Actor, ShowId
from membership.audience import PLAN_MEMBERS
from tests.live.serving import Seat, Served, serve

pytestmark = pytest.mark.anyio

OWNER = Actor(kind="staff", id="00000000-0000-7000-8000-000000000001", name="小禾", role="owner",
              permissions=PERMISSIONS["owner"])  # fmt: skip


async def rice(served: Served, **over: Any) -> str:
    given = {
        **{f: getattr(PRODUCTS[0], f) for f in PRODUCTS[0].__struct_fields__},
        "sku": f"R{time.time_ns()}",
    }
    async with served.parts.database.transaction() as t:
        return (await served.parts.products.create(t, OWNER, ProductInput(**{**given, **over}))).id


async def on_offer(served: Served, show: ShowId, product: str, **over: Any) -> str:
    async with served.http(await served.staff()) as http:
        made = await http.post(f"/v1/shows/{show}/offers", json={"product": product, "kind": "pin", **over})
        assert made.status_code == 201, made.text
        return str(made.json()["id"])


async def pay(url: str, served: Served) -> None:
    async with served.http() as browser:
        assert (await browser.get(url)).status_code == 200
        paid = await browser.post(url, data={"result": "pay"})
        assert paid.status_code < 400, paid.text


@pytest.mark.rule("L4")
async def test_membership_paid_mid_show_changes_the_same_socket_within_a_beat_of_the_commit(
    served: Served,
) -> None:
    show = await served.make_show()
    await served.member(plan=True)  # there is a plan to join
    product = await rice(served, member_price_audience=PLAN_MEMBERS)
    offer = await on_offer(served, show, product)
    buyer = await served.member("王小明")
    seat = await served.enter(show, buyer)
    before = next(s["data"] for s in seat.welcome["states"] if s["key"] == f"offer:{offer}")
    assert before["list_fen"] == 12_800
    assert "member_fen" not in before
    async with served.http(buyer) as http:
        plan = (await http.get("/v1/plans")).json()["items"][0]["id"]
        joined = await http.post("/v1/me/joins", json={"plan": plan, "show": show, "key": "j1"})
        assert joined.status_code in (200, 201), joined.text
        await pay(joined.json()["payment_url"], served)
    you = (await seat.event("you"))["data"]
    arrived = time.time()
    assert you["kind"] == you["badge"] == "plan"
    after = await seat.state(f"offer:{offer}", lambda data: "member_fen" in data)
    assert after["member_fen"] == 10_900
    async with served.parts.database.reading() as conn:
        row = await (
            await conn.execute("SELECT max(recorded_at) AS at FROM payments WHERE outcome = 'accepted'")
        ).fetchone()
    assert row is not None
    took_s = arrived - row["at"].timestamp()
    print(f"commit to the same socket: {took_s * 1000:.0f} ms, beat {beat_s(1) * 1000:.0f} ms")
    assert took_s < 2.0
    assert (await seat.ask("comment.post", key="k", text="我是会员了"))["badge"] == "plan"


@pytest.mark.rule("L8")
async def test_what_is_for_plan_members_never_reaches_a_guest_in_any_byte(served: Served) -> None:
    show = await served.make_show()
    name, price, list_price = "首发秘制芝麻糊", 765_437, 987_651
    secret = await rice(served, name=name, list_fen=list_price, member_fen=price, audience=PLAN_MEMBERS,
                        member_price_audience=PLAN_MEMBERS)  # fmt: skip
    shared = await rice(served, member_fen=654_311, list_fen=876_543, member_price_audience=PLAN_MEMBERS)
    guest = await served.enter(show)
    registered = await served.enter(show, await served.member("王五"))
    member = await served.enter(show, await served.member("李四", plan=True))
    first = await on_offer(served, show, secret, audience={"kind": "plan_members"})
    second = await on_offer(served, show, shared)
    await member.state(f"offer:{first}")
    assert (await member.state(f"offer:{second}"))["member_fen"] == 654_311
    said = await served.parts.comments.post(OWNER, show, "说完了")
    others: list[Seat] = [guest, registered]
    for seat in list(others):
        await seat.until(lambda m: m.get("seq") == said.seq)
        others.append(await served.enter(show, since={"epoch": seat.welcome["epoch"], "seq": 0}))
    others.append(await served.enter(show))
    await others[-1].send({"type": "resync", "id": 9, "since": None})
    await others[-1].until(lambda m: m.get("id") == 9)
    heard = b"".join(seat.bytes for seat in others)
    async with served.http() as http:
        for path in (
            f"/v1/shows/{show}",
            f"/s/{show}",
            "/",
            "/v1/plans",
            "/v1/products",
            f"/v1/products/{secret}",
        ):
            heard += (await http.get(path)).content
        for offer in (first, second):
            body = {"lines": [{"offer": offer, "quantity": 1}]}
            heard += (await http.post(f"/v1/shows/{show}/quotes", json=body)).content
        heard += (await http.post(f"/v1/offers/{first}/close")).content
    for needle in (name, str(price), str(list_price), "654311", secret):
        assert needle.encode() not in heard, needle
        assert needle.encode().decode() not in heard.decode("unicode_escape", "ignore"), needle
    assert str(price).encode() in member.bytes


async def test_claims_over_the_sockets_of_two_servers_give_each_rank_once(
    served: Served, engines: Addresses, tmp_path: Path
) -> None:
    """Through the gatherers of two nodes. 5,000 over two processes: tests/races and loadtests/storm.py."""
    show = await served.make_show()
    people = [await served.member(paid=True) for _ in range(60)]
    async with served.http(await served.staff()) as http:
        made = await http.post(
            f"/v1/shows/{show}/benefits",
            json={"title": "试吃装", "quota": 20, "needs": "nothing", "audience": {"kind": "plan_members"}},
        )
        assert made.status_code == 201, made.text
        benefit = made.json()["id"]
    async with serve(engines, served.parts.settings.database_url, tmp_path) as other:
        seats = [
            await (served if index % 2 else other).enter(show, person) for index, person in enumerate(people)
        ]
        answers = await asyncio.gather(
            *(seat.ask("benefit.claim", key=f"k{index}", benefit=benefit) for index, seat in enumerate(seats))
        )
    won = [answer["rank"] for answer in answers if answer["type"] == "ok"]
    assert sorted(won) == list(range(1, 21)), Counter(a.get("code") for a in answers)
    assert Counter(a["code"] for a in answers if a["type"] == "refused") == {"sold_out": 40}
    async with served.parts.database.reading() as conn:
        rows = await (
            await conn.execute(
                "SELECT rank FROM benefit_claims WHERE benefit_id = %s ORDER BY rank", [benefit]
            )
        ).fetchall()
    assert [row["rank"] for row in rows] == list(range(1, 21))


async def test_someone_elses_order_a_forged_price_and_a_negative_quantity_are_refused_and_move_nothing(
    served: Served,
) -> None:
    show = await served.make_show()
    offer = await on_offer(served, show, await rice(served, stock=5))
    buyer, other = await served.member("王小明"), await served.member("李四")
    seat = await served.enter(show, buyer)
    async with served.http(buyer) as http, served.http(other) as thief:
        address = (
            await http.post(
                "/v1/me/addresses",
                json={
                    "name": "王小明",
                    "phone": "13800000000",
                    "region": "上海市 徐汇区",
                    "detail": "示例路 1 号",
                },
            )
        ).json()["id"]
        body = {"lines": [{"offer": offer, "quantity": 2}]}
        quote = (await http.post(f"/v1/shows/{show}/quotes", json=body)).json()
        forged = quote["token"][:-4] + "AAAA"
        assert (await seat.ask("order.place", key="a", quote=forged, address=address))["type"] == "refused"
        theirs = (await thief.post(f"/v1/shows/{show}/quotes", json=body)).json()["token"]
        assert (await seat.ask("order.place", key="b", quote=theirs, address=address))["type"] == "refused"
        for quantity in (-1, 0, 10**9):
            bad = await http.post(
                f"/v1/shows/{show}/quotes", json={"lines": [{"offer": offer, "quantity": quantity}]}
            )
            assert bad.status_code == 400
        cheap = await http.post(
            f"/v1/shows/{show}/orders",
            json={"quote": quote["token"], "address": address, "key": "c", "total_fen": 1},
        )
        assert cheap.status_code == 400
        placed = await seat.ask("order.place", key="d", quote=quote["token"], address=address)
        assert placed["type"] == "ok"
        assert placed["total_fen"] >= 2 * 12_800
        again = await seat.ask("order.place", key="d", quote=quote["token"], address=address)
        assert again["order"] == placed["order"]
        order = placed["order"]
        assert (await thief.get(f"/v1/me/orders/{order}")).status_code == 404
        assert (await thief.post(f"/v1/me/orders/{order}/payment", json={})).status_code == 404
        assert (await thief.post(f"/v1/me/orders/{order}/cancel", json={})).status_code == 404
        page = await http.post(f"/v1/me/orders/{order}/payment", json={})
        await pay(page.json()["payment_url"], served)
        changed = await seat.until(lambda m: m["type"] == "order.changed" and m["state"] == "paid")
        assert changed["order"] == order
    async with served.parts.database.reading() as conn:
        row = await (
            await conn.execute("SELECT count(*) AS n FROM orders WHERE show_id = %s", [show])
        ).fetchone()
    assert row is not None
    assert row["n"] == 1


async def test_a_seat_taken_is_in_the_welcome_after_a_reload(served: Served) -> None:
    show = await served.make_show()
    await served.member(plan=True)  # there is a plan to join
    buyer = await served.member("王小明")
    async with served.http(await served.staff()) as http:
        body = {"title": "前 1 名", "quota": 1, "needs": "join"}
        benefit = (await http.post(f"/v1/shows/{show}/benefits", json=body)).json()["id"]
    async with served.http(buyer) as http:
        plan = (await http.get("/v1/plans")).json()["items"][0]["id"]
        joined = (await http.post("/v1/me/joins", json={"plan": plan, "show": show, "key": "j"})).json()
        assert joined["seat"]["status"] == "held"
    await served.parts.seats.sweep(show)  # the job's turn: what Redis decided is in the books
    again = await served.enter(show, buyer)
    assert again.welcome["you"]["seats"] == {benefit: {"until": joined["seat"]["until"]}}
    second = await served.member("李四")
    other = await served.enter(show, second)
    queued = await other.ask("benefit.queue", benefit=benefit)
    assert (queued["type"], queued["status"]) == ("ok", "queued")
    await served.parts.seats.sweep(show)
    back = await served.enter(show, second)
    assert back.welcome["you"]["seats"] == {benefit: {"queued": True, "ahead": 0}}
