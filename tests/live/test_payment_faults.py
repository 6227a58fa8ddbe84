"""Whatever the provider does: each order ends right, and money agrees to the fen. Real processes, real HTTP."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

import commerce.sandbox
from commerce.products import ProductInput
from commerce.sandbox import SandboxProvider
from live.engines import Addresses
from membership.actor import PERMISSIONS, Actor, new_id
from membership.refusal import Unavailable
from tests.commerce.payment_sample import payment_request
from tests.conftest import copied
from tests.live.provider_process import SECRET, ProviderProcess, assert_money_agrees
from tests.live.serving import Served, serve

pytestmark = pytest.mark.anyio

OWNER = Actor(kind="job", id="test", role="owner", permissions=PERMISSIONS["owner"])
HOME = {"name": "王小明", "phone": "13800000000", "region": "上海市 徐汇区", "detail": "示例路 1 号"}


@pytest.fixture(scope="module")
async def provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProviderProcess]:
    made = ProviderProcess(tmp_path_factory.mktemp("provider"))
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
async def served(
    engines: Addresses, template: str, tmp_path_factory: pytest.TempPathFactory, provider: ProviderProcess
) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("faults")
    with copied(engines, template, "payment_faults") as url:
        async with serve(engines, url, folder, sandbox_url=provider.url) as made:
            await made.member(plan=True)  # there is a plan to join
            yield made


class Bought:
    """An order at the payment's door."""

    def __init__(self, shop: Shop, buyer: Actor, order: str, total_fen: int) -> None:
        self.shop, self.buyer, self.order, self.total_fen = shop, buyer, order, total_fen
        self.url = self.ref = self.product = ""

    async def begin(self) -> Bought:
        async with self.shop.http(self.buyer) as http:
            answer = await http.post(f"/v1/me/orders/{self.order}/payment")
            assert answer.status_code == 200, answer.text
        self.url = answer.json()["payment_url"]
        self.ref = self.url.rsplit("/", 1)[1]
        return self

    async def press(self) -> None:
        """Pay on the page, as the buyer's browser does: by the shop's address."""
        async with self.shop.http() as browser:
            assert (await browser.get(self.url)).status_code == 200
            assert (await browser.post(self.url, data={"result": "pay"})).status_code == 303

    async def seen(self) -> dict[str, Any]:
        async with self.shop.http(self.buyer) as http:
            return dict((await http.get(f"/v1/me/orders/{self.order}")).json())

    async def state(self) -> str:
        return str((await self.seen())["state"])

    async def becomes(self, state: str) -> None:
        async with asyncio.timeout(10):
            while await self.state() != state:
                await asyncio.sleep(0.02)

    async def payments(self) -> list[dict[str, Any]]:
        async with self.shop.http(self.shop.operator) as http:
            return list((await http.get(f"/v1/orders/{self.order}")).json()["payments"])

    async def refund(self) -> httpx2.Response:
        async with self.shop.http(self.shop.operator) as http:
            return await http.post(f"/v1/orders/{self.order}/refund")


class Shop:
    """The served shop, its staff, and what its jobs do when their time comes."""

    def __init__(self, served: Served, provider: ProviderProcess, operator: Actor) -> None:
        self.served, self.provider, self.operator = served, provider, operator
        self.database = served.parts.database

    async def buys(self, product: str | None = None, stock: int = 5) -> Bought:
        show = await self.served.make_show()
        if product is None:
            async with self.database.transaction() as t:
                made = await self.served.parts.products.create(
                    t, OWNER, ProductInput(sku=new_id(), name="五常有机大米", list_fen=12_800, stock=stock)
                )
            product = made.id
        async with self.http(self.operator) as staff:
            pinned = await staff.post(f"/v1/shows/{show}/offers", json={"product": product, "kind": "pin"})
            offer = pinned.json()["id"]
        buyer = await self.served.member("王小明")
        async with self.http(buyer) as http:
            home = (await http.post("/v1/me/addresses", json=HOME)).json()["id"]
            lines = {"lines": [{"offer": offer, "quantity": 1}]}
            quote = (await http.post(f"/v1/shows/{show}/quotes", json=lines)).json()["token"]
            body = {"quote": quote, "address": home, "key": new_id()}
            placed = (await http.post(f"/v1/shows/{show}/orders", json=body)).json()
        bought = Bought(self, buyer, placed["order"], placed["total_fen"])
        bought.product = product
        return await bought.begin()

    async def joins(self) -> Bought:
        show, buyer = await self.served.make_show(), await self.served.member("李雷")
        async with self.http(buyer) as http:
            plan = (await http.get("/v1/plans")).json()["items"][0]["id"]
            answer = await http.post("/v1/me/joins", json={"plan": plan, "show": show, "key": new_id()})
        joined = answer.json()["order"]
        return await Bought(self, buyer, joined["order"], joined["total_fen"]).begin()

    def http(self, actor: Actor | None = None) -> httpx2.AsyncClient:
        """As `Served.http`, but without loading the system's certificates for each client."""
        headers = {} if actor is None else {"authorization": f"Bearer {self.served.token(actor)}"}
        return httpx2.AsyncClient(base_url=self.served.url, headers=headers, timeout=10, verify=False)

    async def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        async with self.database.transaction() as t:
            return await (await t.conn.execute(query, values)).fetchall()  # type: ignore[call-overload, no-any-return]

    async def by_hand(self, query: str, *values: object) -> None:
        """As somebody at the database's own prompt, past every trigger."""
        async with self.database.transaction() as t:
            await t.conn.execute("SET LOCAL session_replication_role = replica")
            await t.conn.execute(query, values)  # type: ignore[call-overload]

    async def stock(self, product: str) -> int:
        return int((await self.rows("SELECT stock FROM products WHERE id = %s", product))[0]["stock"])

    async def minutes_pass(self, minutes: int = 10) -> None:
        """Every time that the jobs look at lies so much further back."""
        await self.rows(
            """
            WITH orders_moved AS (
                UPDATE orders SET hold_until = hold_until - %(by)s::interval WHERE state = 'placed' RETURNING 1
            ), tries_moved AS (
                UPDATE payment_return_tries SET next_at = next_at - %(by)s::interval RETURNING 1
            )
            UPDATE payment_starts SET started_at = started_at - %(by)s::interval, ask_at = ask_at - %(by)s::interval
            RETURNING 1
            """.replace("%(by)s", f"'{minutes} minutes'")
        )

    async def jobs(self) -> None:
        """One round of what runs on a clock."""
        async with self.database.transaction() as t:
            await self.served.parts.orders.expire_due(t)
        await self.served.parts.payments.ask_due(self.database)
        await self.served.parts.payments.return_due(self.database)

    async def agrees(self, under_way_fen: int = 0) -> None:
        async with self.database.reading() as conn:
            await assert_money_agrees(conn, self.provider.file, under_way_fen=under_way_fen)

    async def odd(self) -> dict[str, dict[str, Any]]:
        """What waits for a person, by the provider's reference."""
        async with self.http(self.operator) as http:
            return {row["ref"]: row for row in (await http.get("/v1/odd-payments")).json()["items"]}

    async def decide(self, payment: str, act: str, who: Actor | None = None) -> httpx2.Response:
        async with self.http(who or self.operator) as http:
            body = {"act": act, "note": "与买家核对过"}
            return await http.post(f"/v1/odd-payments/{payment}/decision", json=body)

    async def audited(self, act: str) -> list[dict[str, Any]]:
        return await self.rows("SELECT subject, detail, actor_id FROM audit_log WHERE act = %s", act)


@pytest.fixture
async def shop(served: Served, provider: ProviderProcess) -> AsyncIterator[Shop]:
    await provider.told()
    yield Shop(served, provider, await served.staff())
    await provider.told()


# --- webhooks late, twice, out of order, never ---


async def test_a_webhook_that_is_late_pays_the_order_when_it_comes(shop: Shop) -> None:
    await shop.provider.told(delay_s=0.4)
    bought = await shop.buys()
    await bought.press()
    assert await bought.state() == "placed"
    await bought.becomes("paid")
    await shop.agrees()


async def test_a_webhook_sent_many_times_at_once_and_later_is_one_payment(shop: Shop) -> None:
    await shop.provider.told(copies=4)
    goods, plan = await shop.buys(), await shop.joins()
    for bought in (goods, plan):
        await bought.press()
        await bought.becomes("paid")
        (name,) = await shop.provider.news_of(bought.ref)
        answers = await asyncio.gather(*[shop.provider.send(name, times=3) for _ in range(4)])
        assert answers == [[200] * 3] * 4
        assert [row["outcome"] for row in await bought.payments()] == ["accepted"]
    points = await shop.rows(
        "SELECT sum(amount) AS got FROM points_entries WHERE member_id = %s", goods.buyer.id
    )
    assert points[0]["got"] == 128
    await shop.agrees()


async def test_the_second_webhook_before_the_first_pays_both(shop: Shop) -> None:
    await shop.provider.told(reorder=True)
    first, second = await shop.buys(), await shop.joins()
    await first.press()
    await second.press()
    await second.becomes("paid")
    await first.becomes("paid")
    sent = {each["ref"]: each["delivered_at"] for each in (await shop.provider.ledger())["news"]}
    assert sent[second.ref] < sent[first.ref]
    await shop.agrees()


async def test_a_payment_told_after_its_refund_changes_nothing(shop: Shop) -> None:
    await shop.provider.told(hold=True)
    bought = await shop.buys()
    await bought.press()
    await shop.minutes_pass(1)
    await shop.jobs()  # found by asking
    assert await bought.state() == "paid"
    assert (await bought.refund()).status_code == 200
    await shop.jobs()
    (paid,) = await shop.provider.news_of(bought.ref)
    (gone,) = await shop.provider.news_of(bought.ref, "payment.returned")
    assert await shop.provider.send(gone) == [200]
    assert await shop.provider.send(paid) == [200]
    assert await bought.state() == "refunded"
    assert (await bought.seen())["returning_fen"] == 0
    await shop.agrees()


async def test_money_for_an_order_given_up_goes_back_once(shop: Shop) -> None:
    bought = await shop.buys()
    async with shop.http(bought.buyer) as http:
        assert (await http.post(f"/v1/me/orders/{bought.order}/cancel")).status_code == 200
    await bought.press()
    (name,) = await shop.provider.news_of(bought.ref)
    assert await shop.provider.send(name, times=2) == [200, 200]
    await shop.jobs()
    assert await bought.state() == "cancelled"
    assert [row["reason"] for row in await bought.payments()] == ["cancelled_before"]
    assert await shop.stock(bought.product) == 5
    await shop.agrees()


async def test_a_payment_that_is_never_told_is_found_by_asking(shop: Shop) -> None:
    await shop.provider.told(vanish=True)
    goods, plan = await shop.buys(), await shop.joins()
    for bought in (goods, plan):
        await bought.press()
    await shop.jobs()
    assert await goods.state() == "placed"  # too young to be asked for
    await shop.minutes_pass(1)
    await shop.jobs()
    assert [await goods.state(), await plan.state()] == ["paid", "paid"]
    await shop.agrees()


async def test_who_does_not_pay_is_asked_for_ever_more_seldom(shop: Shop) -> None:
    bought = await shop.buys()
    await shop.minutes_pass(1)
    waits = []
    for _ in range(6):
        await shop.served.parts.payments.ask_due(shop.database)
        (row,) = await shop.rows(
            "SELECT round(extract(epoch FROM ask_at - clock_timestamp()))::int AS wait, asked"
            " FROM payment_starts WHERE ref = %s",
            bought.ref,
        )
        waits.append(row["wait"])
        await shop.rows("UPDATE payment_starts SET ask_at = now() WHERE ref = %s RETURNING 1", bought.ref)
    assert [round(wait, -1) for wait in waits] == [30, 60, 120, 240, 480, 600]
    await bought.press()
    await bought.becomes("paid")
    await shop.agrees()


# --- what is no news of ours ---


async def test_a_forged_or_an_old_webhook_is_refused_by_name_audited_and_moves_nothing(shop: Shop) -> None:
    await shop.provider.told(hold=True)
    bought = await shop.buys()
    await bought.press()
    (name,) = await shop.provider.news_of(bought.ref)
    before = await shop.rows("SELECT count(*) AS n FROM payments")
    for how in ({"forged": True}, {"age_s": 3_600}, {"age_s": -3_600}, {"forged": True, "times": 10}):
        assert set(await shop.provider.send(name, **how)) == {401}
    async with shop.http() as anybody:
        answer = await anybody.post("/v1/payments/sandbox/webhook", json={"type": "payment.succeeded"})
    assert answer.json()["code"] == "bad_signature"
    assert await shop.rows("SELECT count(*) AS n FROM payments") == before
    assert [await bought.state(), await shop.stock(bought.product)] == ["placed", 4]
    acts = [act["detail"] for act in await shop.audited("webhook.refuse")]
    assert len(acts) == 1  # a flood of them does not fill the log
    assert acts[0]["word"] == "bad_signature"
    assert await shop.provider.send(name) == [200]
    assert await bought.state() == "paid"
    await shop.agrees()


async def test_money_for_an_unknown_order_waits_for_a_person_who_sends_it_back(shop: Shop) -> None:
    stranger = SandboxProvider(SECRET, shop.served.url, base_url=shop.provider.url)
    page = await stranger.create(payment_request(show=None, amount_fen=9_900))
    await shop.provider.pay(page.ref)
    (name,) = await shop.provider.news_of(page.ref)
    assert await shop.provider.send(name) == [200]
    row = (await shop.odd())[page.ref]
    assert (row["reason"], row["order"], row["amount_fen"]) == ("unknown_order", None, 9_900)
    assert (await shop.decide(row["id"], "return")).status_code == 200
    await shop.jobs()
    assert page.ref not in await shop.odd()
    await shop.agrees()


@pytest.mark.parametrize("off_fen", [-1, 1, 5_000])
async def test_another_amount_buys_nothing_and_waits_for_a_person(shop: Shop, off_fen: int) -> None:
    await shop.provider.told(charge_off_fen=off_fen)
    bought = await shop.buys()
    await bought.press()
    (name,) = await shop.provider.news_of(bought.ref)
    assert await shop.provider.send(name) == [200]
    assert [await bought.state(), await shop.stock(bought.product)] == ["placed", 4]
    row = (await shop.odd())[bought.ref]
    assert (row["outcome"], row["reason"], row["order"]) == ("quarantined", "wrong_amount", bought.order)
    assert f"payment:{row['id']}" in {act["subject"] for act in await shop.audited("payment.quarantine")}
    await shop.jobs()
    await shop.agrees()  # it stays where it is until somebody decides
    host = await shop.served.staff("host")
    assert (await shop.decide(row["id"], "return", host)).json()["code"] == "forbidden"
    assert (await shop.decide(row["id"], "by_hand")).json()["code"] == "not_found"
    act = "keep" if off_fen == 1 else "return"
    assert (await shop.decide(row["id"], act)).json()["decided"] == [act]
    for again in ("return", "keep"):
        assert (await shop.decide(row["id"], again)).json()["code"] == "already_decided"
    (decided,) = [
        each for each in await shop.audited(f"payment.{act}") if each["subject"] == f"payment:{row['id']}"
    ]
    assert decided["actor_id"] == shop.operator.id
    assert bought.ref not in await shop.odd()
    await shop.minutes_pass()
    await shop.jobs()
    assert await bought.state() == "expired"
    assert await shop.stock(bought.product) == 5
    await shop.agrees()


# --- late ---


async def test_money_after_the_hold_takes_what_is_left_and_else_goes_back(shop: Shop) -> None:
    await shop.provider.told(hold=True)
    lucky = await shop.buys(stock=1)
    late = await shop.buys(stock=1)
    for bought in (lucky, late):
        await bought.press()
    # Nobody has asked the provider yet when the hold is over.
    await shop.rows("UPDATE orders SET hold_until = now() WHERE state = 'placed' RETURNING 1")
    async with shop.database.transaction() as t:
        await shop.served.parts.orders.expire_due(t)
    assert [await lucky.state(), await late.state()] == ["expired", "expired"]
    await shop.provider.told()
    quick = await shop.buys(product=late.product)  # the last piece is somebody else's now
    await quick.press()
    await quick.becomes("paid")
    for bought in (lucky, late):
        (name,) = await shop.provider.news_of(bought.ref)
        assert await shop.provider.send(name, times=2) == [200, 200]
    await shop.jobs()
    assert [await lucky.state(), await late.state()] == ["paid", "expired"]
    assert [row["reason"] for row in await late.payments()] == ["no_stock"]
    assert [await shop.stock(lucky.product), await shop.stock(late.product)] == [0, 0]
    await shop.agrees()


async def test_a_plan_paid_after_its_hold_starts_anyway(shop: Shop) -> None:
    bought = await shop.joins()
    await shop.minutes_pass(11)
    await shop.jobs()
    assert await bought.state() == "expired"
    await shop.provider.pay(bought.ref)
    await bought.becomes("paid")
    await shop.agrees()


# --- the provider away ---


async def test_ten_minutes_without_the_provider_lose_nothing(shop: Shop) -> None:
    await shop.provider.told(vanish=True)
    paid, refunded, unpaid = await shop.buys(), await shop.buys(), await shop.buys()
    await refunded.press()
    await shop.minutes_pass(1)
    await shop.jobs()
    assert await refunded.state() == "paid"
    await paid.press()
    shop.provider.kill()
    try:
        assert (await refunded.refund()).status_code == 200
        beginning = await shop.served.member("韩梅梅")
        async with shop.http(beginning) as http:
            plan = (await http.get("/v1/plans")).json()["items"][0]["id"]
            refused = await http.post("/v1/me/joins", json={"plan": plan, "key": "k"})
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        async with shop.http() as browser:
            assert (await browser.get(unpaid.url)).status_code == 502
        for _ in range(10):
            await shop.minutes_pass(1)
            await shop.jobs()
        assert [await paid.state(), await unpaid.state()] == ["expired", "expired"]
    finally:
        shop.provider.start()
    async with shop.http(beginning) as http:
        over = await http.post("/v1/me/joins", json={"plan": plan, "key": "k"})
        assert over.json()["code"] == "closed"  # its ten minutes were not renewed
        joined = await http.post("/v1/me/joins", json={"plan": plan, "key": "l"})
        assert joined.status_code == 201, joined.text
    await shop.minutes_pass(5)
    await shop.jobs()
    assert [await paid.state(), await refunded.state(), await unpaid.state()] == [
        "paid",
        "refunded",
        "expired",
    ]
    assert (await refunded.seen())["returning_fen"] == 0
    await shop.agrees()


async def test_a_provider_killed_before_its_webhook_was_answered_sends_it_when_it_is_back(shop: Shop) -> None:
    await shop.provider.told(delay_s=1)
    bought = await shop.buys()
    await bought.press()
    shop.provider.kill()
    shop.provider.start()
    await bought.becomes("paid")
    await shop.agrees()


@pytest.mark.parametrize("api", ["error", "silent"])
async def test_a_provider_that_fails_or_is_silent_is_called_again_later(
    shop: Shop, api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commerce.sandbox, "CALL_S", 0.3)
    await shop.provider.told(vanish=True)
    bought = await shop.buys()
    await bought.press()
    await shop.provider.told(api=api)
    with pytest.raises(Unavailable):
        await shop.served.parts.provider.query(bought.ref)
    await shop.minutes_pass(1)
    await shop.jobs()
    assert await bought.state() == "placed"
    await shop.provider.told()
    await shop.minutes_pass(1)
    await shop.jobs()
    assert await bought.state() == "paid"
    await shop.agrees()


# --- twice ---


async def test_one_order_paid_twice_gives_one_payment_back_once(shop: Shop) -> None:
    goods, plan = await shop.buys(), await shop.joins()
    for bought in (goods, plan):
        await bought.press()
        await bought.becomes("paid")
        second = await shop.provider.pay(bought.ref, again=True, payer="another-account")
        (name,) = await shop.provider.news_of(second)
        assert await shop.provider.send(name, times=3) == [200] * 3
        await asyncio.gather(shop.jobs(), shop.jobs())
        rows = await bought.payments()
        assert [(row["outcome"], row["reason"], row["returned_fen"]) for row in rows] == [
            ("accepted", None, 0),
            ("returned", "second_payment", bought.total_fen),
        ]
        assert await bought.state() == "paid"
    await shop.agrees()


async def test_a_second_refund_is_refused_and_its_webhook_twice_is_one_return(shop: Shop) -> None:
    goods, plan = await shop.buys(), await shop.joins()
    for bought in (goods, plan):
        await bought.press()
        await bought.becomes("paid")
        answers = await asyncio.gather(*[bought.refund() for _ in range(3)])
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
        assert {answer.json().get("code") for answer in answers} == {None, "already_refunded"}
        await shop.jobs()
        (name,) = await shop.provider.news_of(bought.ref, "payment.returned")
        assert await shop.provider.send(name, times=3) == [200] * 3
        assert await bought.state() == "refunded"
        (row,) = await bought.payments()
        assert (row["returned_fen"], row["returning_fen"]) == (bought.total_fen, 0)
    await shop.agrees()


async def test_two_processes_send_many_returns_at_once_and_each_goes_once(shop: Shop) -> None:
    every = [await shop.buys() for _ in range(6)]
    for bought in every:
        await bought.press()
        await bought.becomes("paid")
        assert (await bought.refund()).status_code == 200
    await asyncio.gather(*[shop.jobs() for _ in range(3)])
    made = [each["ref"] for each in (await shop.provider.ledger())["returns"]]
    assert [made.count(bought.ref) for bought in every] == [1] * 6
    assert [(await bought.seen())["returning_fen"] for bought in every] == [0] * 6
    await shop.agrees()


# --- money back that does not go ---


async def test_a_return_that_fails_first_goes_later_and_once(shop: Shop) -> None:
    bought = await shop.buys()
    await bought.press()
    await bought.becomes("paid")
    await shop.provider.told(failing_returns=2)
    await bought.refund()
    for _ in range(2):
        await shop.jobs()
        await shop.agrees(under_way_fen=bought.total_fen)
        assert bought.ref not in await shop.odd()  # failing is not declining
        await shop.minutes_pass(1)
    await shop.jobs()
    assert (await bought.seen())["returning_fen"] == 0
    await shop.agrees()


async def test_a_return_that_is_declined_is_shown_to_staff_and_may_be_made_by_hand(shop: Shop) -> None:
    bought = await shop.buys()
    await bought.press()
    await bought.becomes("paid")
    await shop.provider.told(declined_returns=1_000)
    await bought.refund()
    await shop.jobs()
    row = (await shop.odd())[bought.ref]
    assert (row["stuck"], row["returning_fen"]) == ("the payer's account is closed", bought.total_fen)
    await shop.agrees(under_way_fen=bought.total_fen)
    assert (await shop.decide(row["id"], "return")).json()["code"] == "not_found"
    assert (await shop.decide(row["id"], "by_hand")).json()["decided"] == ["by_hand"]
    assert (await shop.decide(row["id"], "by_hand")).json()["code"] == "already_decided"
    await shop.provider.told()
    await shop.minutes_pass()
    await shop.jobs()  # nothing is sent a second time
    assert bought.ref not in await shop.odd()
    await shop.agrees()


async def test_a_return_that_takes_its_time_is_done_when_the_provider_says_so(shop: Shop) -> None:
    await shop.provider.told(slow_returns=True)
    done, declined = await shop.buys(), await shop.buys()
    for bought in (done, declined):
        await bought.press()
        await bought.becomes("paid")
        await bought.refund()
    await shop.jobs()
    await shop.agrees(under_way_fen=2 * done.total_fen)
    keys = {each["ref"]: each["key"] for each in (await shop.provider.ledger())["returns"]}
    async with shop.provider.control() as control:
        await control.post(f"/control/returns/{keys[done.ref]}/finish", json={"state": "done"})
        await control.post(f"/control/returns/{keys[declined.ref]}/finish", json={"state": "declined"})
        again = await control.post(f"/control/returns/{keys[done.ref]}/finish", json={"state": "done"})
        assert again.status_code == 404
    async with asyncio.timeout(10):
        while (await done.seen())["returning_fen"] or declined.ref not in await shop.odd():
            await asyncio.sleep(0.02)
    await shop.provider.told()
    await shop.minutes_pass()
    await shop.jobs()  # the declined one is tried again, and goes
    assert declined.ref not in await shop.odd()
    await shop.agrees()


async def test_money_sent_back_at_the_providers_own_desk_is_written_down(shop: Shop) -> None:
    bought = await shop.buys()
    await bought.press()
    await bought.becomes("paid")
    desk = SandboxProvider(SECRET, shop.served.url, base_url=shop.provider.url)
    await desk.give_back(bought.ref, 1_000, "desk-7")
    (name,) = await shop.provider.news_of(bought.ref, "payment.returned")
    assert await shop.provider.send(name, times=2) == [200, 200]
    assert [row["returned_fen"] for row in await bought.payments()] == [1_000]
    assert len(await shop.audited("payment.returned_elsewhere")) == 1
    await shop.agrees()
    await bought.refund()  # only what is left
    await shop.jobs()
    assert [row["returned_fen"] for row in await bought.payments()] == [bought.total_fen]
    await shop.agrees()


# --- the proof itself ---


async def test_the_proof_that_money_agrees_sees_one_fen_and_one_lost_row(shop: Shop) -> None:
    bought = await shop.buys()
    await bought.press()
    await bought.becomes("paid")
    await shop.agrees()
    ref = bought.ref
    for wrong, right in (
        (
            f"UPDATE payments SET paid_fen = paid_fen + 1 WHERE ref = '{ref}'",
            f"UPDATE payments SET paid_fen = paid_fen - 1 WHERE ref = '{ref}'",
        ),
        (
            f"UPDATE payments SET status = 'open' WHERE ref = '{ref}'",
            f"UPDATE payments SET status = 'paid' WHERE ref = '{ref}'",
        ),
        (
            f"INSERT INTO returns (key, ref, amount_fen, at) VALUES ('lost', '{ref}', 1, 0)",
            "DELETE FROM returns WHERE key = 'lost'",
        ),
    ):
        with sqlite3.connect(shop.provider.file) as ledger:
            ledger.execute(wrong)
        with pytest.raises(AssertionError, match=r"^[12]\."):
            await shop.agrees()
        with sqlite3.connect(shop.provider.file) as ledger:
            ledger.execute(right)
    for wrong, right in (
        (
            "UPDATE orders SET goods_fen = goods_fen + 1, total_fen = total_fen + 1 WHERE id = %s RETURNING 1",
            "UPDATE orders SET goods_fen = goods_fen - 1, total_fen = total_fen - 1 WHERE id = %s RETURNING 1",
        ),
        (
            "UPDATE orders SET state = 'expired', closed_at = now() WHERE id = %s RETURNING 1",
            "UPDATE orders SET state = 'paid', closed_at = NULL WHERE id = %s RETURNING 1",
        ),
    ):
        await shop.by_hand(wrong, bought.order)
        with pytest.raises(AssertionError, match=r"^4\."):
            await shop.agrees()
        await shop.by_hand(right, bought.order)
    await shop.agrees()


# --- the control ---


async def test_the_faults_are_set_only_by_who_has_the_password(shop: Shop) -> None:
    async with httpx2.AsyncClient(base_url=shop.provider.url) as anybody:
        for auth in (None, ("control", "wrong"), ("control", "")):
            answer = await anybody.put("/control/faults", json={"vanish": True}, auth=auth)
            assert answer.status_code == 401
        assert (await anybody.get("/control")).headers["www-authenticate"].startswith("Basic")
    async with shop.provider.control() as control:
        foreign = await control.put("/control/faults", json={}, headers={"origin": "http://evil.test"})
        assert foreign.status_code == 403
        for wrong in ({"copies": 0}, {"delay_s": -1}, {"api": "perhaps"}, {"unknown": 1}):
            assert (await control.put("/control/faults", json=wrong)).status_code == 400
        for path in ("payments/none/pay", "news/none/send", "returns/none/finish"):
            assert (await control.post(f"/control/{path}", json={})).status_code == 404
        assert (await control.get("/control/faults")).json()["vanish"] is False


async def test_the_faults_are_set_on_a_page_by_the_shops_address(shop: Shop) -> None:
    bought = await shop.buys()
    page = f"{shop.served.url}/sandbox/control"
    async with httpx2.AsyncClient(auth=("x", shop.provider.password)) as browser:
        assert bought.ref in (await browser.get(page)).text
        origin = {"origin": shop.served.url}
        form = {"act": "faults", "hold": "true", "copies": "2", "api": "ok", "delay_s": "0.0"}
        assert (await browser.post(page, data=form, headers=origin)).status_code == 303
        async with shop.provider.control() as control:
            told = (await control.get("/control/faults")).json()
            assert (told["hold"], told["copies"]) == (True, 2)
        assert (await browser.post(page, data={"act": "pay", "ref": bought.ref})).status_code == 303
        (name,) = await shop.provider.news_of(bought.ref)
        assert name in (await browser.get(page)).text
        assert (await browser.post(page, data={"act": "forge", "name": name})).status_code == 303
        assert await bought.state() == "placed"
        assert (await browser.post(page, data={"act": "send", "name": name})).status_code == 303
        assert await bought.state() == "paid"
        for wrong in ({"act": "dance"}, {"act": "faults", "copies": "many"}):
            assert (await browser.post(page, data=wrong)).status_code == 400
        assert (await browser.post(page, data={"act": "pay", "ref": "none"})).status_code == 404
    await shop.agrees()
