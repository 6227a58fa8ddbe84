"""Benefits from outside: conditions, countdown and what a claim brings, through the socket and the books."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from membership.actor import Actor, ShowId
from tests.live.serving import ANSWER_S, Seat, Served
from tests.live.test_road import on_offer, pay, rice

pytestmark = pytest.mark.anyio


async def opened(served: Served, show: ShowId, **terms: Any) -> dict[str, Any]:
    async with served.http(await served.staff()) as http:
        made = await http.post(f"/v1/shows/{show}/benefits", json={"title": "宠粉福利", "quota": 5, **terms})
        assert made.status_code == 201, made.text
        answer: dict[str, Any] = made.json()
        return answer


async def counted(served: Served, benefit: str) -> tuple[int, int]:
    async with served.http(await served.staff()) as http:
        counts = (await http.get(f"/v1/benefits/{benefit}")).json()["counts"]
        return counts["confirmed"], counts["held"]


async def bought(served: Served, show: ShowId, buyer: Actor, offer: str) -> str:
    async with served.http(buyer) as http:
        address = await http.post(
            "/v1/me/addresses",
            json={
                "name": "王小明",
                "phone": "13800000001",
                "region": "浙江省 杭州市 西湖区",
                "detail": "文三路 1 号",
            },
        )
        assert address.status_code == 201, address.text
        quote = await http.post(f"/v1/shows/{show}/quotes", json={"lines": [{"offer": offer, "quantity": 1}]})
        assert quote.status_code == 200, quote.text
        order = await http.post(
            f"/v1/shows/{show}/orders",
            json={"quote": quote.json()["token"], "address": address.json()["id"], "key": "o1"},
        )
        assert order.status_code == 201, order.text
        page = await http.post(f"/v1/me/orders/{order.json()['order']}/payment")
        await pay(page.json()["payment_url"], served)
        return str(order.json()["order"])


async def test_the_node_counts_how_long_its_socket_watched(served: Served) -> None:
    show = await served.make_show()
    seat = await served.enter(show, await served.member("王小明"))
    long, short = [await opened(served, show, watched_s=seconds) for seconds in (3_600, 1)]
    shown = await seat.state(f"benefit:{long['id']}")
    assert shown["watched_s"] == 3_600
    refused = await seat.ask("benefit.claim", key="long", benefit=long["id"])
    assert (refused["code"], refused["condition"]) == ("not_eligible", "watched")
    assert 0 < refused["retry_ms"] < 3_600_000
    assert await counted(served, long["id"]) == (0, 0)
    async with asyncio.timeout(ANSWER_S):
        while (answer := await seat.ask("benefit.claim", key="short", benefit=short["id"]))["type"] != "ok":
            await asyncio.sleep(answer["retry_ms"] / 1000)
    assert (answer["rank"], answer["of"]) == (1, 5)
    assert answer["receipt"]


async def test_before_the_countdown_ends_a_claim_is_told_how_long(served: Served) -> None:
    show = await served.make_show()
    seat = await served.enter(show, await served.member("王小明"))
    benefit = await opened(served, show, starts_in_s=300)
    shown = await seat.state(f"benefit:{benefit['id']}")
    assert shown["starts_at"] == benefit["starts_at"] == benefit["opened_at"] + 300_000
    refused = await seat.ask("benefit.claim", key="k", benefit=benefit["id"])
    assert refused["code"] == "not_started"
    assert 0 < refused["retry_ms"] <= 300_000
    assert await counted(served, benefit["id"]) == (0, 0)


async def test_the_same_key_with_another_benefit_is_refused(served: Served) -> None:
    show = await served.make_show()
    seat = await served.enter(show, await served.member("王小明"))
    one, other = await opened(served, show), await opened(served, show)
    assert (await seat.ask("benefit.claim", key="k", benefit=one["id"]))["rank"] == 1
    assert (await seat.ask("benefit.claim", key="k", benefit=other["id"]))["code"] == "key_reused"
    assert await counted(served, other["id"]) == (0, 0)


async def test_a_free_order_is_claimed_by_who_paid_one_and_its_money_is_on_its_way(served: Served) -> None:
    show = await served.make_show()
    offer = await on_offer(served, show, await rice(served))
    buyer, other = await served.member("王小明"), await served.member("李雷")
    seats: list[Seat] = [await served.enter(show, one) for one in (buyer, other)]
    order = await bought(served, show, buyer, offer)
    benefit = await opened(served, show, what="free_order", needs="order", cap_fen=5_000)
    assert (await seats[1].ask("benefit.claim", key="k", benefit=benefit["id"]))["condition"] == "order"
    assert (await seats[0].ask("benefit.claim", key="k", benefit=benefit["id"]))["rank"] == 1
    async with served.http(buyer) as http:
        [claim] = (await http.get("/v1/me/benefits")).json()["items"]
        assert (claim["order"], claim["returned_fen"]) == (order, 5_000)
    async with served.parts.database.reading() as conn:
        row = await (
            await conn.execute("SELECT sum(amount_fen)::bigint AS fen FROM payment_returns")
        ).fetchone()
    assert row is not None
    assert row["fen"] == 5_000
