"""A first release: who may not know of it hears nothing of it, while it is sold, narrowed, and over."""

from __future__ import annotations

from typing import Any

import pytest

from membership.actor import NOBODY, Actor, ShowId, new_id
from membership.audience import PLAN_MEMBERS
from tests.live.serving import Seat, Served
from tests.live.test_road import OWNER, on_offer, pay, rice

pytestmark = pytest.mark.anyio

NAME, LIST_FEN = "首发秘制芝麻糊", 987_651
ADDRESS = {"name": "李四", "phone": "13800000000", "region": "上海市 徐汇区", "detail": "示例路 1 号"}


async def buy(served: Served, show: ShowId, offer: str, buyer: Actor) -> None:
    async with served.http(buyer) as http:
        address = (await http.post("/v1/me/addresses", json=ADDRESS)).json()["id"]
        lines = {"lines": [{"offer": offer, "quantity": 1}]}
        quote = (await http.post(f"/v1/shows/{show}/quotes", json=lines)).json()
        body = {"quote": quote["token"], "address": address, "key": new_id()}
        order = (await http.post(f"/v1/shows/{show}/orders", json=body)).json()["order"]
        await pay((await http.post(f"/v1/me/orders/{order}/payment")).json()["payment_url"], served)


async def told_apart(served: Served, show: ShowId, hidden: str) -> tuple[Any, Any]:
    """What a guest is answered about the hidden offer, and about one that never was."""
    answers = []
    async with served.http() as http:
        for offer in (hidden, new_id()):
            lines = {"lines": [{"offer": offer, "quantity": 1}]}
            found = await http.post(f"/v1/shows/{show}/quotes", json=lines)
            answers.append((found.status_code, found.content.replace(offer.encode(), b"")))
    return answers[0], answers[1]


def heard(seats: list[Seat]) -> bytes:
    return b"".join(seat.bytes for seat in seats)


@pytest.mark.rule("L8")
async def test_a_first_release_is_sold_and_sold_out_without_a_word_to_others(served: Served) -> None:
    show = await served.make_show()
    secret = await rice(served, name=NAME, list_fen=LIST_FEN, audience=PLAN_MEMBERS, stock=1)
    member = await served.member("李四", plan=True)
    inside = await served.enter(show, member)
    others = [await served.enter(show), await served.enter(show, await served.member("王五"))]
    flash = {"kind": "flash", "flash_fen": LIST_FEN - 1, "quota": 1, "seconds": 600}
    pin = await on_offer(served, show, secret, audience={"kind": "plan_members"})
    event = await on_offer(served, show, secret, audience={"kind": "plan_members"}, **flash)
    await inside.state(f"offer:{event}")
    await buy(served, show, event, member)
    assert (await inside.event("order.paid"))["offer"] == event
    said = await served.parts.comments.post(OWNER, show, "说完了")
    for seat in list(others):
        await seat.until(lambda m: m.get("seq") == said.seq)
        others.append(await served.enter(show, since={"epoch": seat.welcome["epoch"], "seq": 0}))
    others.append(await served.enter(show))

    unknown = [await told_apart(served, show, offer) for offer in (pin, event)]
    assert all(hidden == never for hidden, never in unknown)
    async with served.parts.database.reading() as conn:
        listed = await served.parts.products.list(conn, NOBODY)
        assert secret not in {product.id for product in listed.items}
    async with served.http() as http:
        pages = b"".join(
            [(await http.get(path)).content for path in (f"/v1/shows/{show}", f"/s/{show}", "/")]
        )
    for needle in (NAME, str(LIST_FEN), str(LIST_FEN - 1), secret, pin, event):
        assert needle.encode() in inside.bytes or needle == secret, needle
        for said_to_others in (heard(others), pages):
            assert needle.encode() not in said_to_others, needle
            assert needle not in said_to_others.decode("unicode_escape", "ignore"), needle

    # The show is over: what is left of it, its page and its log, tells others no more.
    async with served.parts.database.transaction() as t:
        await served.parts.shows.end(t, OWNER, show)
    await inside.event("show.ended")  # from here on this node knows
    late = [await served.enter(show)]
    assert await late[0].closed() == 4506
    async with served.http() as http:
        pages = b"".join([(await http.get(path)).content for path in (f"/v1/shows/{show}", f"/s/{show}")])
    for needle in (NAME, str(LIST_FEN), pin, event):
        for said_to_others in (heard(late), pages):
            assert needle.encode() not in said_to_others, needle


@pytest.mark.rule("L8")
async def test_a_product_that_becomes_a_first_release_goes_from_open_pages(served: Served) -> None:
    show = await served.make_show()
    product = await rice(served, name=NAME, list_fen=LIST_FEN)
    guest = await served.enter(show)
    offer = await on_offer(served, show, product)
    await guest.state(f"offer:{offer}")
    async with served.http(await served.staff()) as http:
        changed = await http.patch(f"/v1/products/{product}", json={"audience": {"kind": "plan_members"}})
        assert changed.status_code == 200, changed.text
    assert (await guest.event("offer.closed"))["offer"] == offer
    hidden, never = await told_apart(served, show, offer)
    assert hidden == never
    fresh = await served.enter(show)
    assert NAME.encode() not in fresh.bytes
    assert offer not in {state["key"].removeprefix("offer:") for state in fresh.welcome["states"]}


@pytest.mark.rule("L8")
async def test_a_bundle_names_to_others_no_part_that_is_hidden_from_them(served: Served) -> None:
    show = await served.make_show()
    part = await rice(served, name=NAME, list_fen=LIST_FEN)
    shown = await rice(served, name="有机大米")
    parts = [{"product": part}, {"product": shown, "quantity": 2}]
    async with served.http(await served.staff()) as http:
        given = {"sku": "box", "name": "秋收礼盒", "list_fen": 39_900, "parts": parts}
        made = await http.post("/v1/products", json=given)
        assert made.status_code == 201, made.text
        box = made.json()["id"]
        await http.patch(f"/v1/products/{part}", json={"audience": {"kind": "plan_members"}})
    guest = await served.enter(show)
    offer = await on_offer(served, show, box)
    card = await guest.state(f"offer:{offer}")
    assert [(each["name"], each["quantity"]) for each in card["product"]["parts"]] == [("有机大米", 2)]
    assert NAME.encode() not in guest.bytes
