"""Payments: each recorded once, and everything it causes stands or falls with it."""

from __future__ import annotations

import asyncio
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import psycopg
import pytest

from commerce.benefit_terms import BenefitInput
from commerce.benefits import Benefits
from commerce.order_book import NoSuchOrder
from commerce.orders import NotPaid, OrderClosed, Placed
from commerce.payment_returns import FAILURES_MAX, RETURNS_AT_ONCE, Reason
from commerce.payments import (
    ASK_AFTER_S,
    AlreadyRefunded,
    FoundPayment,
    PaymentPage,
    PaymentRequest,
    Recorded,
    RefundOver,
)
from commerce.products import ProductPatch
from commerce.provider import FoundReturn, ReturnRefused
from live.database import Database, make_pool
from live.handlers_viewer import make_payment_page
from membership.actor import Actor, OrderId, ShowId, new_id
from membership.plans import Plan
from membership.refusal import BadRequest, Forbidden, Unavailable
from tests.commerce.shop_stage import HOST, OPERATOR, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


async def bought(shop: Shop, show: ShowId, **product: Any) -> tuple[Actor, Placed, Any]:
    buyer, thing = await shop.buyer(), await shop.product(**product)
    return buyer, await shop.buy(buyer, show, (await shop.open(show, thing), 1)), thing


async def page_of(shop: Shop, actor: Actor, order: OrderId) -> str:
    return await make_payment_page(shop.database, shop.payments, shop.provider, actor, order)


async def state(shop: Shop, order: OrderId) -> str:
    return str((await shop.rows("SELECT state FROM orders WHERE id = %s", order))[0]["state"])


async def paid_untold(shop: Shop, show: ShowId, count: int) -> list[str]:
    """Orders paid at the provider, whose webhooks never came; their references, oldest first."""
    pin = await shop.open(show, await shop.product(stock=count))
    refs = []
    for buyer in await shop.buyers(count):
        placed = await shop.buy(buyer, show, (pin, 1))
        await page_of(shop, buyer, placed.order)
        ref = f"ref-{placed.order}-{placed.total_fen}"
        shop.provider.paid[ref] = FoundPayment(
            ref=ref, order=placed.order, amount_fen=placed.total_fen, payer="p", paid_at=datetime.now(UTC)
        )
        refs.append(ref)
    return refs


async def to_send_back(shop: Shop, count: int) -> list[str]:
    """Payments of orders nobody knows that staff want sent back; their references, oldest first."""
    refs = [f"ref-{n}" for n in range(count)]
    for ref in refs:
        recorded = await shop.pay(OrderId(new_id()), 100, ref)
        async with shop.tx() as t:
            await shop.payments.decide(t, OPERATOR, recorded.payment, "return", "与买家核对过")
    return refs


async def open_gift(shop: Shop, show: ShowId, quota: int = 1) -> Benefits:
    benefits = Benefits(shop.scripts, shop.audiences, shop.notices, shop.members.facts, shop.grants)
    async with shop.tx() as t:
        await benefits.open(
            t, HOST, show, BenefitInput(title="厨房三件套", value_fen=5_900, quota=quota, needs="join")
        )
    return benefits


# --- starting ---


async def test_a_payment_is_started_at_the_orders_total(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show)
    url = await page_of(shop, buyer, placed.order)
    (request,) = shop.provider.asked
    assert (request.order, request.amount_fen, request.currency) == (placed.order, 12_800, "CNY")
    assert (request.description, request.show, request.hold_until) == (
        "有机大米 × 1",
        show,
        placed.hold_until,
    )
    assert url == f"http://pay.test/ref-{placed.order}-12800"
    assert await page_of(shop, buyer, placed.order) == url
    assert len(await shop.rows("SELECT ref FROM payment_starts")) == 1
    assert len(shop.provider.asked) == 1  # the page is known


async def test_only_an_open_order_is_paid(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show)
    async with shop.tx() as t:
        with pytest.raises(NoSuchOrder):
            await shop.payments.start(t, OPERATOR, placed.order)
    await shop.rows("UPDATE orders SET hold_until = now() RETURNING id")
    async with shop.tx() as t:
        with pytest.raises(OrderClosed):
            await shop.payments.start(t, buyer, placed.order)
        await shop.orders.cancel(t, buyer, placed.order)
        with pytest.raises(OrderClosed):
            await shop.payments.start(t, buyer, placed.order)
    assert shop.provider.asked == []


@pytest.mark.rule("semantics 3.1b", "semantics 4.4c")
async def test_at_payment_the_lower_of_the_order_and_now_is_asked(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    buyer = await shop.buyer()
    rice = await shop.product(list_fen=5_000, member_fen=4_500)
    placed = await shop.buy(buyer, show, (await shop.open(show, rice), 1))
    assert placed.total_fen == 5_800
    async with shop.tx() as t:
        await shop.plans.start_trial(t, buyer.member, plan.id, "13900000000")  # type: ignore[arg-type]
    await page_of(shop, await shop.again(buyer), placed.order)
    assert shop.provider.asked[-1].amount_fen == 4_500  # the member's price, and free freight
    async with shop.tx() as t:
        order = await shop.orders.get(t.conn, buyer, placed.order)
    assert (order.total_fen, order.freight_fen, order.lines[0].winner) == (4_500, 0, "member")
    assert (await shop.pay(placed.order, 4_500)).outcome == "accepted"


async def test_only_what_is_lower_now_is_written_again(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice, oil = await shop.product(list_fen=3_000), await shop.product(list_fen=6_000)
    offers = [(await shop.open(show, rice), 1), (await shop.open(show, oil), 1)]
    coupon = await shop.grant(buyer, await shop.rule(kind="freight", off_fen=500))

    async def written(order: OrderId) -> dict[str, str]:
        """Which transaction wrote each row last."""
        rows = await shop.rows(
            """
            SELECT 'order' AS what, xmin::text FROM orders WHERE id = %s UNION ALL
            SELECT 'line ' || position, xmin::text FROM order_lines WHERE order_id = %s UNION ALL
            SELECT 'coupon', xmin::text FROM order_coupons WHERE order_id = %s
            """,
            *[order] * 3,
        )
        return {row["what"]: row["xmin"] for row in rows}

    async def lowered(order: OrderId) -> int:
        async with shop.tx() as t:
            locked = await shop.orders.lock(t.conn, order)
            assert locked is not None
            return await shop.orders.lower_to_now(t, buyer, locked)

    placed = await shop.buy(buyer, show, *offers, coupons=[coupon.id])
    before = await written(placed.order)
    assert before.keys() == {"order", "line 1", "line 2", "coupon"}
    assert await lowered(placed.order) == placed.total_fen
    assert await written(placed.order) == before
    async with shop.tx() as t:
        await shop.products.update(t, OPERATOR, oil.id, ProductPatch(list_fen=5_500))
    assert await lowered(placed.order) == placed.total_fen - 500
    after = await written(placed.order)
    assert (after["line 1"], after["line 2"]) == (before["line 1"], after["order"])


async def test_a_price_that_rose_or_fell_after_the_start_changes_nothing(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    buyer, placed, rice = await bought(shop, show)
    for list_fen in (20_000, 10_000):
        async with shop.tx() as t:
            await shop.products.update(t, OPERATOR, rice.id, ProductPatch(list_fen=list_fen))
        async with shop.tx() as t:
            request = await shop.payments.start(t, buyer, placed.order)  # as if each stopped before its call
        assert isinstance(request, PaymentRequest)
        assert request.amount_fen == 12_800
    await page_of(shop, buyer, placed.order)
    assert [request.amount_fen for request in shop.provider.asked] == [12_800]


async def test_a_provider_that_is_away_is_called_again_at_the_next_start(
    shop: Shop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show)

    async def away(request: Any) -> Any:
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(shop.provider, "create", away)
        with pytest.raises(Unavailable):
            await page_of(shop, buyer, placed.order)
    assert await shop.rows("SELECT ref, url FROM payment_starts") == [{"ref": None, "url": None}]
    assert await shop.payments.ask_due(shop.database, after_s=0) == 0  # there is no page to ask for
    url = await page_of(shop, buyer, placed.order)
    assert await shop.rows("SELECT url FROM payment_starts") == [{"url": url}]


async def test_slow_calls_to_the_provider_hold_no_connection_and_no_row(
    shop: Shop, make_show: MakeShow, fresh_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await make_show()
    pin = await shop.open(show, await shop.product(stock=20))
    buyers = await shop.buyers(10)
    orders = [(await shop.buy(buyer, show, (pin, 1))).order for buyer in buyers]
    create, called, answer = shop.provider.create, asyncio.Semaphore(0), asyncio.Event()

    async def slow(request: PaymentRequest) -> PaymentPage:
        called.release()
        await answer.wait()
        return await create(request)

    monkeypatch.setattr(shop.provider, "create", slow)
    async with make_pool(fresh_database_url, size_max=4) as pool:
        database = Database(pool)
        starts = [
            asyncio.create_task(make_payment_page(database, shop.payments, shop.provider, buyer, order))
            for buyer, order in zip(buyers, orders, strict=True)
        ]
        try:
            async with asyncio.timeout(5):
                for _ in starts:
                    await called.acquire()  # all ten are at the provider at once
                async with database.transaction() as t:
                    assert (await shop.orders.get(t.conn, buyers[0], orders[0])).state == "placed"
                    await shop.orders.cancel(t, buyers[0], orders[0])  # the row is free too
        finally:
            answer.set()
        urls = await asyncio.gather(*starts, return_exceptions=True)
        await database.settle()
    assert isinstance(urls[0], OrderClosed)  # nobody is sent to pay what was given up meanwhile
    assert urls[1:] == [f"http://pay.test/ref-{order}-12800" for order in orders[1:]]
    assert len(await shop.rows("SELECT ref FROM payment_starts WHERE ref IS NOT NULL")) == 10


async def test_one_order_started_twice_at_once_has_one_page(
    shop: Shop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show)
    create, both = shop.provider.create, asyncio.Barrier(2)

    async def together(request: PaymentRequest) -> PaymentPage:
        await both.wait()
        return await create(request)

    monkeypatch.setattr(shop.provider, "create", together)
    async with asyncio.timeout(5):
        urls = await asyncio.gather(*[page_of(shop, buyer, placed.order) for _ in range(2)])
    assert urls[0] == urls[1]
    assert len(await shop.rows("SELECT ref FROM payment_starts")) == 1


# --- recording ---


async def test_a_payment_pays_its_order_and_earns_its_points(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    buyer, placed, rice = await bought(shop, show, list_fen=5_050)
    recorded = await shop.pay(placed.order, placed.total_fen)
    assert (recorded.outcome, recorded.reason, recorded.again) == ("accepted", None, False)
    async with shop.tx() as t:
        order = await shop.orders.get(t.conn, buyer, placed.order)
        balance = await shop.points.balance(t.conn, buyer.member)  # type: ignore[arg-type]
    assert (order.state, order.freight_fen) == ("paid", 800)
    assert (balance.active, balance.pending) == (0, 50)  # not for freight
    assert await shop.stock(rice) == 9
    states = [note["state"] for note in await shop.notes(buyer) if note["type"] == "order.changed"]
    assert states == ["placed", "paid"]


@pytest.mark.rule("semantics 3.1c")
async def test_a_paid_plan_adds_a_fifth_of_the_points_and_a_trial_does_not(
    shop: Shop, make_show: MakeShow
) -> None:
    show, plan = await make_show(), await shop.plan()
    pin = await shop.open(show, await shop.product(list_fen=10_900))
    on_trial, paying = await shop.buyer(plan.id), await shop.buyer()
    joined = await shop.join(paying, plan.id, show)
    await shop.pay(joined.order, joined.total_fen)
    totals = []
    for buyer in (on_trial, await shop.again(paying)):
        placed = await shop.buy(buyer, show, (pin, 1))
        await shop.pay(placed.order, placed.total_fen)
        async with shop.tx() as t:
            totals.append((await shop.points.balance(t.conn, buyer.member)).pending)  # type: ignore[arg-type]
    assert totals == [109, 130]


async def test_a_repeated_webhook_changes_nothing(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    _, placed, _ = await bought(shop, show)
    first = await shop.pay(placed.order, placed.total_fen, "ref")
    second = await shop.pay(placed.order, placed.total_fen, "ref")
    assert (second.payment, second.outcome, second.again) == (first.payment, "accepted", True)
    assert len(await shop.events(show, "order.paid")) == 1
    assert len(await shop.rows("SELECT id FROM points_entries")) == 1


async def test_one_webhook_many_times_at_once_is_one_payment(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    _, placed, _ = await bought(shop, show)
    done = await asyncio.gather(*[shop.pay(placed.order, placed.total_fen, "ref") for _ in range(8)])
    assert sorted(each.again for each in done) == [False] + [True] * 7
    assert len({each.payment for each in done}) == 1
    assert len(await shop.events(show, "order.paid")) == 1


async def test_one_webhook_of_an_unknown_order_many_times_at_once_is_one_payment(shop: Shop) -> None:
    done = await asyncio.gather(*[shop.pay(OrderId(new_id()), 100, "ref") for _ in range(8)])
    assert sorted(each.again for each in done) == [False] + [True] * 7
    assert len(await shop.rows("SELECT id FROM payments")) == 1


async def test_a_second_payment_goes_back(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show)
    done = await asyncio.gather(*[shop.pay(placed.order, placed.total_fen) for _ in range(3)])
    assert sorted(each.outcome for each in done) == ["accepted", "returned", "returned"]
    assert {each.reason for each in done} == {None, "second_payment"}
    async with shop.tx() as t:
        order = await shop.orders.get(t.conn, buyer, placed.order)
    assert (order.state, order.returning_fen) == ("paid", 2 * placed.total_fen)
    notices = [note["code"] for note in await shop.notes(buyer) if note["type"] == "notice"]
    assert notices == ["payment_returning"] * 2


@pytest.mark.parametrize("off", [-1, 1, -12_800])
async def test_a_wrong_amount_is_kept_apart_and_buys_nothing(
    shop: Shop, make_show: MakeShow, off: int
) -> None:
    show = await make_show()
    _, placed, _ = await bought(shop, show)
    recorded = await shop.pay(placed.order, placed.total_fen + off)
    assert (recorded.outcome, recorded.reason) == ("quarantined", "wrong_amount")
    assert await state(shop, placed.order) == "placed"
    assert (await shop.pay(placed.order, placed.total_fen)).outcome == "accepted"
    async with shop.tx() as t:
        rows = await shop.payments.to_look_at(t.conn, OPERATOR)
        assert [(row.order, row.reason) for row in rows] == [(placed.order, "wrong_amount")]
        with pytest.raises(Forbidden):
            await shop.payments.to_look_at(t.conn, HOST)
        assert len(await shop.payments.of_order(t.conn, placed.order)) == 2
        assert await shop.payments.of_order(t.conn, OrderId("x")) == ()


async def test_what_a_person_sends_back_is_what_the_providers_own_desk_has_left(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    _, placed, _ = await bought(shop, show)
    for ref, desk_fen in (("part", 100), ("all", placed.total_fen + 1)):
        odd = await shop.pay(placed.order, placed.total_fen + 1, ref)
        async with shop.tx() as t:
            found = FoundReturn(ref=ref, key=f"desk {ref}", amount_fen=desk_fen, return_ref=f"r-{ref}")
            await shop.payments.note_return(t, "sandbox", found)
        async with shop.tx() as t:
            await shop.payments.decide(t, OPERATOR, odd.payment, "return", "wrong amount")
        [back] = await shop.rows(
            "SELECT sum(amount_fen)::bigint AS fen FROM payment_returns WHERE payment_id = %s", odd.payment
        )
        assert back["fen"] == placed.total_fen + 1


@pytest.mark.parametrize("order", ["", "not an order", "01a1fffb-0380-71dd-ac90-4c11d41745bb", "订单" * 500])
async def test_money_for_an_order_that_is_none_is_kept_apart(shop: Shop, order: str) -> None:
    recorded = await shop.pay(OrderId(order), 100, "ref")
    assert (recorded.outcome, recorded.reason, recorded.order) == ("quarantined", "unknown_order", None)
    assert (await shop.pay(OrderId(order), 100, "ref")).again


@pytest.mark.parametrize(
    ("ref", "amount_fen", "payer"), [("", 1, "p"), ("r", -1, "p"), ("r", 10**18, "p"), ("r\0", 1, "p")]
)
async def test_what_is_no_payment_is_refused(shop: Shop, ref: str, amount_fen: int, payer: str) -> None:
    with pytest.raises(BadRequest):
        async with shop.tx() as t:
            await shop.payments.record(t, "sandbox", ref, new_id(), amount_fen, payer, datetime.now(UTC))


async def test_money_that_comes_after_the_hold_in_time_before_the_job_is_in_time(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    _, placed, rice = await bought(shop, show)
    await shop.rows("UPDATE orders SET hold_until = now() - interval '1 minute' RETURNING id")
    assert (await shop.pay(placed.order, placed.total_fen)).outcome == "accepted"
    assert await shop.stock(rice) == 9


async def test_late_money_takes_the_stock_and_the_piece_again(shop: Shop, make_show: MakeShow) -> None:
    show, buyer, rice = await make_show(), await shop.buyer(), await shop.product(stock=1)
    flash = await shop.open(show, rice, "flash", quota=1)
    placed = await shop.buy(buyer, show, (flash, 1))
    await shop.let_holds_run_out()
    assert await shop.counts(show, flash.id) == (0, 0)
    assert (await shop.pay(placed.order, placed.total_fen)).outcome == "accepted"
    assert (await shop.stock(rice), await shop.taken(flash)) == (0, 1)
    assert await shop.counts(show, flash.id) == (0, 1)
    assert await state(shop, placed.order) == "paid"
    for _ in range(2):
        await shop.orders.settle_unannounced(shop.database, older_s=0)
    assert await shop.counts(show, flash.id) == (0, 1)


@pytest.mark.parametrize("kind", ["pin", "flash"])
async def test_late_money_with_nothing_left_goes_back(shop: Shop, make_show: MakeShow, kind: str) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product(stock=1 if kind == "pin" else 10)
    terms = {} if kind == "pin" else {"quota": 1}
    offer = await shop.open(show, rice, kind, **terms)
    late = await shop.buy(buyer, show, (offer, 1))
    await shop.let_holds_run_out()
    other = await shop.buy(await shop.buyer(), show, (offer, 1))
    recorded = await shop.pay(late.order, late.total_fen)
    assert (recorded.outcome, recorded.reason) == ("returned", "no_stock")
    assert await state(shop, late.order) == "expired"
    assert await shop.counts(show, offer.id) == (1, 0)
    async with shop.tx() as t:
        assert (await shop.orders.get(t.conn, buyer, late.order)).returning_fen == late.total_fen
    assert (await shop.pay(other.order, other.total_fen)).outcome == "accepted"
    assert await shop.rows("SELECT id FROM points_entries WHERE cause = %s", f"order:{late.order}") == []


async def test_late_money_races_a_new_buyer_for_the_last_piece(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product(stock=1)
    pin = await shop.open(show, rice)
    late = await shop.buy(await shop.buyer(), show, (pin, 1))
    await shop.let_holds_run_out()
    buyer = await shop.buyer()
    quote = await shop.quote(buyer, show, (pin, 1))
    paid, placed = await asyncio.gather(
        shop.pay(late.order, late.total_fen), shop.place(buyer, show, quote), return_exceptions=True
    )
    assert isinstance(paid, Recorded)
    assert (paid.outcome == "accepted") != isinstance(placed, Placed)
    assert await shop.stock(rice) == 0


async def test_money_for_a_cancelled_order_goes_back(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    buyer, placed, rice = await bought(shop, show)
    async with shop.tx() as t:
        await shop.orders.cancel(t, buyer, placed.order)
    recorded = await shop.pay(placed.order, placed.total_fen)
    assert (recorded.outcome, recorded.reason) == ("returned", "cancelled_before")
    assert await shop.stock(rice) == 10


async def test_a_payment_and_the_end_of_the_hold_at_once_agree(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product(stock=10)
    pin = await shop.open(show, rice)
    buyers = await shop.buyers(10)
    placed = [await shop.buy(buyer, show, (pin, 1)) for buyer in buyers]
    await shop.rows("UPDATE orders SET hold_until = now() - interval '1 second' RETURNING id")
    await asyncio.gather(
        shop.let_holds_run_out(),
        *[shop.pay(each.order, each.total_fen) for each in placed],
        shop.let_holds_run_out(),
    )
    states = {row["state"] for row in await shop.rows("SELECT state FROM orders")}
    assert states == {"paid"}
    assert await shop.stock(rice) == 0
    assert await shop.counts(show, pin.id) == (0, 10)


async def test_what_fails_half_way_leaves_nothing(
    shop: Shop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await make_show()
    _, placed, _ = await bought(shop, show)

    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("lost power")

    with monkeypatch.context() as patch:
        patch.setattr(shop.points, "earn_for_goods", broken)
        with pytest.raises(RuntimeError, match="lost power"):
            await shop.pay(placed.order, placed.total_fen, "ref")
    assert await shop.rows("SELECT id FROM payments") == []
    assert await state(shop, placed.order) == "placed"
    assert await shop.events(show, "order.paid") == []
    assert (await shop.pay(placed.order, placed.total_fen, "ref")).again is False


# --- plans ---


async def test_paying_a_plan_starts_it_and_says_so(shop: Shop, make_show: MakeShow) -> None:
    show, plan, buyer = await make_show(), await shop.plan(), await shop.buyer()
    placed = await shop.join(buyer, plan.id, show)
    recorded = await shop.pay(placed.order, placed.total_fen)
    assert (recorded.outcome, recorded.claim) == ("accepted", None)
    assert (await shop.again(buyer)).facts.plans == {plan.id}
    (event,) = await shop.events(show, "plan.joined")
    assert (event["name"], event["plan_name"], event["first"]) == ("王**", "年卡", True)
    assert [record["kind"] for record in await shop.records(show)] == ["order", "join"]
    assert await shop.rows("SELECT id FROM points_entries") == []  # no points for the fee
    renewal = await shop.join(await shop.again(buyer), plan.id, show)
    await shop.pay(renewal.order, renewal.total_fen)
    assert [event["first"] for event in await shop.events(show, "plan.joined")] == [True, False]


async def test_a_plan_outside_a_show_is_paid_as_well(shop: Shop) -> None:
    plan, buyer = await shop.plan(), await shop.buyer()
    placed = await shop.join(buyer, plan.id)
    await shop.pay(placed.order, placed.total_fen)
    assert (await shop.again(buyer)).facts.plans == {plan.id}
    await shop.orders.settle_unannounced(shop.database, older_s=0)
    assert await shop.rows("SELECT id FROM orders WHERE paid_announced_at IS NULL") == []


async def test_a_plan_paid_late_starts_anyway(shop: Shop, make_show: MakeShow) -> None:
    show, plan, buyer = await make_show(), await shop.plan(), await shop.buyer()
    placed = await shop.join(buyer, plan.id, show)
    await shop.let_holds_run_out()
    assert (await shop.pay(placed.order, placed.total_fen)).outcome == "accepted"
    assert await state(shop, placed.order) == "paid"
    assert (await shop.again(buyer)).facts.plans == {plan.id}


async def test_a_seat_is_taken_with_the_order_and_ranked_with_the_payment(
    shop: Shop, make_show: MakeShow
) -> None:
    show, plan = await make_show(), await shop.plan()
    await open_gift(shop, show, quota=2)
    ranks = []
    for n in range(3):
        buyer = await shop.buyer()
        placed = await shop.join(buyer, plan.id, show)
        assert placed.seat is not None
        assert placed.seat.status == ("held" if n < 2 else "sold_out")
        recorded = await shop.pay(placed.order, placed.total_fen, payer=f"payer-{n}")
        ranks.append(recorded.claim.rank if recorded.claim else None)
    assert ranks == [1, 2, None]


@pytest.mark.rule("semantics 2.8b")
async def test_an_abandoned_order_gives_its_seat_back(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    await open_gift(shop, show)
    first, second = await shop.buyer(), await shop.buyer()
    held = await shop.join(first, plan.id, show)
    waiting = await shop.join(second, plan.id, show)
    assert waiting.seat is not None
    assert waiting.seat.status == "reserved_out"
    async with shop.tx() as t:
        await shop.orders.cancel(t, first, held.order)
    assert (await shop.join(second, plan.id, show)).seat.status == "held"  # type: ignore[union-attr]


async def late_without_gift(shop: Shop, show: ShowId, plan: Plan) -> tuple[Actor, Placed]:
    await open_gift(shop, show)
    late, other = await shop.buyer(), await shop.buyer()
    placed = await shop.join(late, plan.id, show)
    await shop.let_holds_run_out()
    quick = await shop.join(other, plan.id, show)
    await shop.pay(quick.order, quick.total_fen, payer="payer-2")
    recorded = await shop.pay(placed.order, placed.total_fen, payer="payer-1")
    assert (recorded.outcome, recorded.claim) == ("accepted", None)
    return await shop.again(late), placed


@pytest.mark.rule("semantics 2.6a")
async def test_late_money_without_the_gift_goes_back_by_one_tap(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    late, placed = await late_without_gift(shop, show, plan)
    assert late.facts.plans
    async with shop.tx() as t:
        order = await shop.payments.refund(t, late, placed.order)
    assert (order.state, order.returning_fen) == ("refunded", placed.total_fen)
    assert not (await shop.again(late)).facts.plans
    async with shop.tx() as t:
        with pytest.raises(AlreadyRefunded):
            await shop.payments.refund(t, late, placed.order)
        assert (await shop.orders.get(t.conn, late, placed.order)).returning_fen == placed.total_fen


@pytest.mark.rule("semantics 2.6a")
async def test_the_one_tap_is_over_after_a_day_and_not_for_others(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    late, placed = await late_without_gift(shop, show, plan)
    await shop.rows("UPDATE benefit_misses SET refund_until = now() RETURNING payment_id")
    async with shop.tx() as t:
        with pytest.raises(RefundOver):
            await shop.payments.refund(t, late, placed.order)
    buyer = await shop.buyer()
    ordinary = await shop.buy(buyer, show, (await shop.open(show, await shop.product()), 1))
    await shop.pay(ordinary.order, ordinary.total_fen)
    async with shop.tx() as t:
        with pytest.raises(Forbidden):
            await shop.payments.refund(t, buyer, ordinary.order)


# --- refunds and returns ---


async def test_a_refund_takes_the_points_back_and_is_once(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    buyer, placed, rice = await bought(shop, show)
    async with shop.tx() as t:
        with pytest.raises(NotPaid):
            await shop.payments.refund(t, OPERATOR, placed.order)
    await shop.pay(placed.order, placed.total_fen)

    async def refund() -> str:
        async with shop.tx() as t:
            return (await shop.payments.refund(t, OPERATOR, placed.order)).state

    ends = await asyncio.gather(*[refund() for _ in range(3)], return_exceptions=True)
    assert sorted(end if isinstance(end, str) else type(end).__name__ for end in ends) == [
        "AlreadyRefunded",
        "AlreadyRefunded",
        "refunded",
    ]
    async with shop.tx() as t:
        balance = await shop.points.balance(t.conn, buyer.member)  # type: ignore[arg-type]
    assert (balance.active, balance.pending) == (0, 0)
    assert len(await shop.rows("SELECT id FROM payment_returns")) == 1
    assert await shop.stock(rice) == 9  # what comes back by parcel is counted by the warehouse
    states = [note["state"] for note in await shop.notes(buyer) if note["type"] == "order.changed"]
    assert states == ["placed", "paid", "refunded"]
    assert (await shop.pay(placed.order, placed.total_fen)).reason == "second_payment"


async def test_marked_money_is_sent_back_once(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show)
    await shop.pay(placed.order, placed.total_fen, "first")
    await shop.pay(placed.order, placed.total_fen, "second")
    waiting = "SELECT r.amount_fen FROM payment_returns_open o JOIN payment_returns r ON r.id = o.return_id"
    assert await shop.rows(waiting) == [{"amount_fen": placed.total_fen}]
    assert await shop.payments.return_due(shop.database) == 1
    assert await shop.rows(waiting) == []  # what went is looked at no more
    assert await shop.payments.return_due(shop.database) == 0
    assert list(shop.provider.returns.values()) == [("second", placed.total_fen)]
    async with shop.tx() as t:
        assert (await shop.orders.get(t.conn, buyer, placed.order)).returning_fen == 0
        rows = await shop.payments.of_order(t.conn, placed.order)
    assert [(row.returning_fen, row.returned_fen) for row in rows] == [(0, 0), (0, placed.total_fen)]


async def test_parts_of_a_payment_go_back_each_cause_once_and_never_more_than_came(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    _, placed, _ = await bought(shop, show)

    async def part(amount_fen: int, cause: str) -> int:
        async with shop.tx() as t:
            return await shop.payments.return_part(t, placed.order, amount_fen, cause)

    with pytest.raises(NotPaid):
        await part(1, "early")
    await shop.pay(placed.order, placed.total_fen, "ref")
    assert await part(5_000, "case-1") == placed.total_fen - 5_000
    assert await part(5_000, "case-1") == placed.total_fen - 5_000
    for wrong, cause in ((4_000, "case-1"), (0, "a"), (-1, "b"), (placed.total_fen - 4_999, "c")):
        with pytest.raises(BadRequest):
            await part(wrong, cause)
    ends = await asyncio.gather(
        *[part(placed.total_fen - 5_000, f"case-{n}") for n in (2, 3, 4)], return_exceptions=True
    )
    assert sorted(type(end).__name__ for end in ends) == ["BadRequest", "BadRequest", "int"]
    async with shop.tx() as t:
        await shop.payments.refund(t, OPERATOR, placed.order)  # nothing is left to send
    assert await shop.payments.return_due(shop.database) == 2
    assert sum(amount for _, amount in shop.provider.returns.values()) == placed.total_fen


async def test_the_table_itself_refuses_to_send_back_more_than_came(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    _, placed, _ = await bought(shop, show)
    paid = await shop.pay(placed.order, placed.total_fen)
    insert = "INSERT INTO payment_returns (id, payment_id, amount_fen, reason) VALUES (%s, %s, %s, %s) RETURNING id"
    await shop.rows(insert, new_id(), paid.payment, placed.total_fen, "one")
    with pytest.raises(psycopg.errors.CheckViolation):
        await shop.rows(insert, new_id(), paid.payment, 1, "two")


@pytest.mark.parametrize(
    "odd",
    [BadRequest("the payment is of another app"), ReturnRefused("no money left"), KeyError("refund_id")],
)
async def test_one_return_answered_oddly_is_shown_to_staff_and_does_not_stop_the_others(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, odd: Exception
) -> None:
    first, *others = await to_send_back(shop, 3)
    give_back = shop.provider.give_back

    async def oddly(ref: str, amount_fen: int, key: str) -> str:
        if ref == first:
            raise odd
        return await give_back(ref, amount_fen, key)

    with monkeypatch.context() as patch:
        patch.setattr(shop.provider, "give_back", oddly)
        assert await shop.payments.return_due(shop.database) == 2
    assert sorted(ref for ref, _ in shop.provider.returns.values()) == others
    async with shop.tx() as t:
        [row] = await shop.payments.to_look_at(t.conn, OPERATOR)
    assert row.ref == first
    assert row.stuck is not None and str(odd) in row.stuck
    assert await shop.rows("SELECT tries, refused FROM payment_return_tries") == [
        {"tries": 1, "refused": True}
    ]
    await shop.rows("UPDATE payment_return_tries SET next_at = now() RETURNING 1 AS one")
    assert await shop.payments.return_due(shop.database) == 1  # it goes as soon as the provider lets it
    async with shop.tx() as t:
        assert await shop.payments.to_look_at(t.conn, OPERATOR) == ()


async def test_a_return_that_went_and_could_not_be_written_down_waits_its_turn(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await to_send_back(shop, 2)

    async def away(*_: Any) -> bool:
        raise psycopg.OperationalError("the tables are away")

    with monkeypatch.context() as patch:
        patch.setattr(shop.payments, "_note_done", away)
        assert await shop.payments.return_due(shop.database) == 0
    tries = await shop.rows("SELECT tries, refused, said FROM payment_return_tries")
    assert tries == [{"tries": 1, "refused": False, "said": "the tables are away"}] * 2
    await shop.rows("UPDATE payment_return_tries SET next_at = now() RETURNING 1 AS one")
    assert await shop.payments.return_due(shop.database) == 2
    assert len(shop.provider.returns) == 2  # under the same keys


async def test_so_many_go_back_at_once_and_no_more(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await to_send_back(shop, 2 * RETURNS_AT_ONCE)
    give_back, together = shop.provider.give_back, asyncio.Barrier(RETURNS_AT_ONCE)
    running = most = 0

    async def counted(ref: str, amount_fen: int, key: str) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await together.wait()  # nobody is answered before all of them are here
        running -= 1
        return await give_back(ref, amount_fen, key)

    monkeypatch.setattr(shop.provider, "give_back", counted)
    async with asyncio.timeout(15):
        assert await shop.payments.return_due(shop.database) == 2 * RETURNS_AT_ONCE
    assert most == RETURNS_AT_ONCE
    assert await shop.rows("SELECT return_id FROM payment_returns_open") == []


async def test_a_round_ends_early_when_the_provider_is_away(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = FAILURES_MAX + 2 * RETURNS_AT_ONCE
    await to_send_back(shop, count)
    called = []

    async def away(ref: str, amount_fen: int, key: str) -> str:
        called.append(ref)
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(shop.provider, "give_back", away)
        assert await shop.payments.return_due(shop.database) == 0
    assert FAILURES_MAX <= len(called) < FAILURES_MAX + RETURNS_AT_ONCE
    tries = await shop.rows("SELECT refused FROM payment_return_tries")
    assert tries == [{"refused": False}] * len(called)
    assert await shop.payments.return_due(shop.database) == count - len(called)


# --- a page whose address does not hold ---


async def test_a_page_is_made_anew_in_the_same_way_when_its_address_is_over(
    shop: Shop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show)
    asked: list[PaymentRequest] = []

    async def brief(request: PaymentRequest) -> PaymentPage:
        asked.append(request)
        return PaymentPage("ref-1", f"http://pay.test/{len(asked)}", 1_000 * int(time.time() + 200), "h5")

    monkeypatch.setattr(shop.provider, "create", brief)
    assert await page_of(shop, buyer, placed.order) == "http://pay.test/1"
    assert await page_of(shop, buyer, placed.order) == "http://pay.test/1"
    await shop.rows("UPDATE payment_starts SET page_until = now() RETURNING ref")
    assert await page_of(shop, buyer, placed.order) == "http://pay.test/2"
    assert [(request.way, request.amount_fen) for request in asked] == [("", 12_800), ("h5", 12_800)]
    assert await shop.rows("SELECT ref FROM payment_starts") == [{"ref": "ref-1"}]


# --- a webhook that never came ---


async def test_a_lost_webhook_is_asked_for(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show)
    await page_of(shop, buyer, placed.order)
    assert await shop.payments.ask_due(shop.database, after_s=0) == 0
    ref = f"ref-{placed.order}-{placed.total_fen}"
    shop.provider.paid[ref] = FoundPayment(
        ref=ref,
        order=placed.order,
        amount_fen=placed.total_fen,
        payer="payer-1",
        paid_at=datetime.now(UTC) - timedelta(minutes=1),
    )
    assert await shop.payments.ask_due(shop.database) == 0  # too young to be asked for
    assert await shop.payments.ask_due(shop.database, after_s=0) == 1
    assert await state(shop, placed.order) == "paid"
    assert await shop.payments.ask_due(shop.database, after_s=0) == 0
    assert (await shop.pay(placed.order, placed.total_fen, ref)).again


@pytest.mark.parametrize(
    ("odd", "asked"),
    [(Unavailable(), 0), (BadRequest("the payment is of another app"), 1), (KeyError("amount"), 1)],
)
async def test_one_payment_that_cannot_be_asked_for_does_not_stop_the_others(
    shop: Shop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch, odd: Exception, asked: int
) -> None:
    broken, *_ = await paid_untold(shop, await make_show(), 3)
    query = shop.provider.query

    async def oddly(ref: str) -> FoundPayment | None:
        if ref == broken:
            raise odd
        return await query(ref)

    monkeypatch.setattr(shop.provider, "query", oddly)
    await shop.rows("UPDATE payment_starts SET started_at = started_at - interval '1 hour' RETURNING ref")
    before = await shop.rows("SELECT ask_at FROM payment_starts WHERE ref = %s", broken)
    assert await shop.payments.ask_due(shop.database) == 2
    states = sorted(row["state"] for row in await shop.rows("SELECT state FROM orders"))
    assert states == ["paid", "paid", "placed"]
    [after] = await shop.rows("SELECT ask_at, asked FROM payment_starts WHERE ref = %s", broken)
    assert after["ask_at"] - before[0]["ask_at"] >= timedelta(seconds=ASK_AFTER_S)
    assert after["asked"] == asked  # who answers is asked ever more seldom


async def test_money_for_a_cancelled_order_whose_webhook_was_lost_is_asked_for_and_goes_back(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show)
    await page_of(shop, buyer, placed.order)
    ref = f"ref-{placed.order}-{placed.total_fen}"
    shop.provider.paid[ref] = FoundPayment(
        ref=ref, order=placed.order, amount_fen=placed.total_fen, payer="p", paid_at=datetime.now(UTC)
    )
    async with shop.tx() as t:
        await shop.orders.cancel(t, buyer, placed.order)
    assert await shop.payments.ask_due(shop.database, after_s=0) == 1
    assert await shop.payments.return_due(shop.database) == 1
    assert await shop.payments.ask_due(shop.database, after_s=0) == 0


@pytest.mark.parametrize("odd", [Unavailable("the seats are being rebuilt"), KeyError("order")])
async def test_money_that_cannot_be_recorded_is_asked_for_again_soon_and_does_not_stop_the_others(
    shop: Shop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch, odd: Exception
) -> None:
    broken, *_ = await paid_untold(shop, await make_show(), 3)
    record = shop.payments.record

    async def fails_for_one(t: Any, provider: str, ref: str, *rest: Any) -> Recorded:
        if ref == broken:
            raise odd
        return await record(t, provider, ref, *rest)

    await shop.rows(
        "UPDATE payment_starts SET asked = 4, started_at = started_at - interval '1 hour' RETURNING ref"
    )
    with monkeypatch.context() as patch:
        patch.setattr(shop.payments, "record", fails_for_one)
        assert await shop.payments.ask_due(shop.database) == 2
    [row] = await shop.rows(
        "SELECT asked, ask_at - clock_timestamp() AS wait FROM payment_starts WHERE ref = %s", broken
    )
    assert row["asked"] == 4
    assert row["wait"] <= timedelta(seconds=ASK_AFTER_S)  # by the growing wait it would be eight minutes
    await shop.rows("UPDATE payment_starts SET ask_at = now() RETURNING ref")
    assert await shop.payments.ask_due(shop.database) == 1


@pytest.mark.parametrize("kind", ["goods", "plan"])
async def test_money_of_a_person_forgotten_meanwhile_goes_back(
    shop: Shop, make_show: MakeShow, kind: str
) -> None:
    show = await make_show()
    if kind == "goods":
        buyer, placed, _ = await bought(shop, show)
    else:
        buyer = await shop.buyer()
        placed = await shop.join(buyer, (await shop.plan()).id, show)
    assert buyer.member is not None
    async with shop.tx() as t:
        await shop.members.erase(t, buyer.member)
    recorded = await shop.pay(placed.order, placed.total_fen, "ref-late")
    assert (recorded.outcome, recorded.reason) == ("returned", "cancelled_before")
    assert await shop.payments.return_due(shop.database) == 1


async def test_the_refund_of_an_order_paid_late_is_told_to_the_buyer(shop: Shop, make_show: MakeShow) -> None:
    """Its end was told once before, when it expired."""
    show = await make_show()
    buyer, placed, _ = await bought(shop, show)
    await shop.let_holds_run_out()
    assert (await shop.pay(placed.order, placed.total_fen)).outcome == "accepted"
    async with shop.tx() as t:
        await shop.payments.refund(t, OPERATOR, placed.order)
    told = [note["state"] for note in await shop.notes(buyer) if note["type"] == "order.changed"]
    assert told == ["placed", "expired", "paid", "refunded"]


@pytest.mark.parametrize("how", ["closed", "ended"])
async def test_late_money_after_the_benefit_is_over_goes_back_by_one_tap(
    shop: Shop, make_show: MakeShow, how: str
) -> None:
    show, plan = await make_show(), await shop.plan()
    benefits = await open_gift(shop, show)
    late = await shop.buyer()
    placed = await shop.join(late, plan.id, show)
    await shop.let_holds_run_out()
    await shop.seats.sweep(show)
    async with shop.tx() as t:
        await benefits.close_all(t, HOST, show)
        if how == "ended":
            await t.conn.execute("UPDATE shows SET state = 'ended', ended_at = now() WHERE id = %s", [show])
    recorded = await shop.pay(placed.order, placed.total_fen)
    assert (recorded.outcome, recorded.claim) == ("accepted", None)
    [note] = [note for note in await shop.notes(late) if note["type"] == "benefit.missed"]
    late = await shop.again(late)
    assert late.facts.plans
    async with shop.tx() as t:
        order = await shop.orders.get(t.conn, late, placed.order)
        assert order.refund_until is not None  # a page loaded anew offers it too
        assert (note["why"], note["refund_until"]) == ("closed", order.refund_until)
        assert (await shop.payments.refund(t, late, placed.order)).state == "refunded"


async def test_an_order_without_late_money_has_no_refund_window(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show)
    await shop.pay(placed.order, placed.total_fen)
    async with shop.tx() as t:
        assert (await shop.orders.get(t.conn, buyer, placed.order)).refund_until is None


async def test_every_reason_that_is_written_is_one_the_schema_admits(shop: Shop) -> None:
    [row] = await shop.rows(
        "SELECT pg_get_constraintdef(oid) AS said FROM pg_constraint WHERE conname = 'payments_reason_check'"
    )
    assert set(re.findall(r"'(\w+)'", row["said"])) == set(get_args(Reason))
