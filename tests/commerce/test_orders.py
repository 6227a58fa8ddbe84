"""Orders: exactly as many as there are, at the price that was shown, each key once, every hold given back."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from psycopg.errors import RestrictViolation

from commerce.messages import LineInput, PlaceOrder
from commerce.offers import Offer
from commerce.order_book import NoSuchOrder
from commerce.orders import OrderClosed, Placed
from commerce.pieces import LimitReached, Need, Pieces, ReservedOut, SoldOut
from commerce.prices import OfferEnded, PriceChanged
from commerce.products import ProductPatch
from commerce.quotes import Quote
from membership.actor import Actor, OrderId, ShowId, new_id
from membership.addresses import NoSuchAddress
from membership.audience import PLAN_MEMBERS
from membership.partition import show_key
from membership.plans import NoSuchPlan
from membership.refusal import BadRequest, Forbidden, KeyReused, Refusal, Unauthenticated, Unavailable
from tests.commerce.shop_stage import HOST, NOBODY_OF_STAFF, OPERATOR, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


async def at_once(tries: list[Any]) -> tuple[list[Any], list[str]]:
    """What came of them: results, and the words of refusals. Anything else is a bug."""
    results = await asyncio.gather(*tries, return_exceptions=True)
    for each in results:
        if isinstance(each, BaseException) and not isinstance(each, Refusal):
            raise each
    won = [each for each in results if not isinstance(each, Refusal)]
    return won, [each.word for each in results if isinstance(each, Refusal)]


async def quoted(shop: Shop, show: ShowId, offer: Offer, buyers: list[Actor]) -> list[Quote]:
    return [await shop.quote(buyer, show, (offer, 1)) for buyer in buyers]


# --- placing ---


@pytest.mark.rule("semantics 5.1a")
async def test_an_order_holds_its_pieces_for_ten_minutes(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product(stock=10)
    pin = await shop.open(show, rice)
    placed = await shop.buy(buyer, show, (pin, 3))
    assert (placed.kind, placed.state, placed.total_fen, placed.currency) == (
        "goods",
        "placed",
        38_400,
        "CNY",
    )
    async with shop.tx() as t:
        order = await shop.orders.get(t.conn, buyer, placed.order)
    assert order.hold_until - order.placed_at == 600_000
    assert (order.member, order.show, order.address) == (
        buyer.id,
        show,
        {
            "id": shop._homes[buyer.id],
            "name": "王小明",
            "phone": "+8613800000001",
            "region": "浙江省 杭州市 西湖区",
            "detail": "文三路 1 号",
        },
    )
    (line,) = order.lines
    assert (line.unit_fen, line.quantity, line.line_fen, line.winner) == (12_800, 3, 38_400, "list")
    assert await shop.stock(rice) == 7
    assert await shop.counts(show, pin.id) == (3, 0)


@pytest.mark.rule("L1")
async def test_a_members_order_has_the_members_price_and_one_gift_line(
    shop: Shop, make_show: MakeShow
) -> None:
    show, plan = await make_show(), await shop.plan()
    rice = await shop.product(member_fen=10_900, gift_text="5 包杂粮试吃装", gift_value_fen=1_500)
    pin = await shop.open(show, rice)
    member, guest_price = await shop.buyer(plan.id), await shop.buyer()
    placed = await shop.buy(member, show, (pin, 1))
    assert placed.total_fen == 10_900
    async with shop.tx() as t:
        lines = (await shop.orders.get(t.conn, member, placed.order)).lines
    assert [(line.kind, line.name, line.unit_fen, line.gift_value_fen) for line in lines] == [
        ("goods", "有机大米", 10_900, 0),
        ("gift", "5 包杂粮试吃装", 0, 1_500),
    ]
    placed = await shop.buy(guest_price, show, (pin, 1))
    async with shop.tx() as t:
        assert len((await shop.orders.get(t.conn, guest_price, placed.order)).lines) == 1


async def test_freight_is_part_of_the_total(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    pin = await shop.open(show, await shop.product(list_fen=2_000))
    assert (await shop.buy(await shop.buyer(), show, (pin, 1))).total_fen == 2_800
    assert (await shop.buy(await shop.buyer(plan.id), show, (pin, 1))).total_fen == 2_000


async def test_a_guest_signs_in_first_and_staff_do_not_buy(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    pin = await shop.open(show, await shop.product())
    guest = shop.guest()
    quote = await shop.quote(guest, show, (pin, 1))
    for actor in (guest, HOST):
        with pytest.raises(Unauthenticated):
            await shop.place(actor, show, quote)


@pytest.mark.rule("L1")
async def test_there_is_no_way_to_name_a_price(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    pin = await shop.open(show, await shop.product(member_fen=10_900))
    command = {"type": "order.place", "id": 1, "key": "k", "quote": "q", "address": "a"}
    line = {"offer": pin.id, "quantity": 1}
    msgspec.convert({**command, "lines": [line]}, PlaceOrder)
    for posted in (
        {**command, "unit_fen": 10_900},
        {**command, "lines": [{**line, "unit_fen": 10_900}]},
        {**command, "lines": [{**line, "quantity": -1}]},
        {**command, "lines": [{**line, "quantity": 0}]},
        {**command, "lines": [{**line, "quantity": 100}]},
        {**command, "lines": [{**line, "quantity": 1.5}]},
        {**command, "lines": []},
        {**command, "lines": [line] * 11},
    ):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(posted, PlaceOrder)
    for token in ("10900", "x" * 4_000):
        with pytest.raises(BadRequest):
            async with shop.tx() as t:
                await shop.orders.place(t, buyer, show, shop.command(buyer, token))


async def test_somebody_elses_quote_buys_nothing(shop: Shop, make_show: MakeShow) -> None:
    show, other_show, plan = await make_show(), await make_show(), await shop.plan()
    rice = await shop.product(member_fen=10_900)
    pin = await shop.open(show, rice)
    cheap = await shop.quote(await shop.buyer(plan.id), show, (pin, 1))
    buyer = await shop.buyer()
    with pytest.raises(BadRequest):
        await shop.place(buyer, show, cheap)
    own = await shop.quote(buyer, show, (pin, 1))
    with pytest.raises(BadRequest):
        await shop.place(buyer, other_show, own)
    assert await shop.stock(rice) == 10


async def test_lines_that_were_not_quoted_need_a_new_quote(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product()
    pin, other = await shop.open(show, rice), await shop.open(show, await shop.product())
    quote = await shop.quote(buyer, show, (pin, 1))
    for lines in (
        [LineInput(pin.id, 2)],
        [LineInput(other.id, 1)],
        [LineInput(pin.id, 1), LineInput(other.id, 1)],
    ):
        with pytest.raises(PriceChanged):
            async with shop.tx() as t:
                await shop.orders.place(t, buyer, show, shop.command(buyer, quote, lines=lines))
    async with shop.tx() as t:
        command = shop.command(buyer, quote, lines=[LineInput(pin.id, 1)])
        assert (await shop.orders.place(t, buyer, show, command)).total_fen == 12_800
    assert await shop.stock(rice) == 9


async def test_an_order_needs_a_key_and_ones_own_address(shop: Shop, make_show: MakeShow) -> None:
    show, buyer, neighbour = await make_show(), await shop.buyer(), await shop.buyer()
    pin = await shop.open(show, await shop.product())
    quote = await shop.quote(buyer, show, (pin, 1))
    for key in (None, "", "x" * 65, "a\0"):
        with pytest.raises(BadRequest):
            async with shop.tx() as t:
                command = msgspec.structs.replace(shop.command(buyer, quote), key=key)
                await shop.orders.place(t, buyer, show, command)
    for address in (shop._homes[neighbour.id], new_id(), "home"):
        with pytest.raises(NoSuchAddress):
            async with shop.tx() as t:
                await shop.orders.place(t, buyer, show, shop.command(buyer, quote, address=address))


@pytest.mark.rule("semantics 3.3d", "semantics 4.4a")
async def test_the_price_that_was_shown_is_honoured_after_it_rose(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product(list_fen=10_000)
    quote = await shop.quote(buyer, show, (await shop.open(show, rice), 1))
    async with shop.tx() as t:
        await shop.products.update(t, OPERATOR, rice.id, ProductPatch(list_fen=12_000))
    assert (await shop.place(buyer, show, quote)).total_fen == 10_000


@pytest.mark.rule("semantics 4.4c")
async def test_a_price_that_fell_is_taken(shop: Shop, make_show: MakeShow) -> None:
    show, plan, buyer = await make_show(), await shop.plan(), await shop.buyer()
    rice = await shop.product(member_fen=10_900)
    quote = await shop.quote(buyer, show, (await shop.open(show, rice), 1))
    async with shop.tx() as t:
        await shop.plans.start_trial(t, buyer.member, plan.id, "13900000000")  # type: ignore[arg-type]
    placed = await shop.place(await shop.again(buyer), show, quote)
    assert placed.total_fen == 10_900


@pytest.mark.rule("semantics 3.4a", "semantics 4.4a")
async def test_an_open_quote_outlives_the_plan_and_the_offer(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    buyer = await shop.buyer(plan.id)
    rice = await shop.product(member_fen=10_900, gift_text="杂粮", gift_value_fen=100)
    offer = await shop.open(show, rice, audience=PLAN_MEMBERS)
    quote = await shop.quote(buyer, show, (offer, 1))
    await shop.rows(
        "UPDATE plan_terms SET ends_at = now(), starts_at = now() - interval '7 days' RETURNING id"
    )
    async with shop.tx() as t:
        await shop.offers.close(t, HOST, show, offer.id)
    lapsed = await shop.again(buyer)
    assert not lapsed.facts.plans
    placed = await shop.place(lapsed, show, quote)
    async with shop.tx() as t:
        order = await shop.orders.get(t.conn, lapsed, placed.order)
    assert (order.total_fen, len(order.lines)) == (10_900, 2)


async def test_a_product_taken_off_the_shelf_is_sold_no_more(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product()
    quote = await shop.quote(buyer, show, (await shop.open(show, rice), 1))
    async with shop.tx() as t:
        await shop.products.update(t, OPERATOR, rice.id, ProductPatch(status="off"))
    with pytest.raises(OfferEnded):
        await shop.place(buyer, show, quote)


async def test_unpaid_orders_of_one_member_are_bounded(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    pin = await shop.open(show, await shop.product(stock=100))
    for _ in range(20):
        await shop.buy(buyer, show, (pin, 1))
    with pytest.raises(LimitReached):
        await shop.buy(buyer, show, (pin, 1))
    await shop.let_holds_run_out()
    assert await shop.buy(buyer, show, (pin, 1))


async def test_the_bound_of_unpaid_orders_holds_for_orders_placed_at_once(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    pin = await shop.open(show, await shop.product(stock=100))
    for _ in range(17):
        await shop.buy(buyer, show, (pin, 1))
    quote = await shop.quote(buyer, show, (pin, 1))
    won, words = await at_once([shop.place(buyer, show, quote) for _ in range(8)])
    assert (len(won), words) == (3, ["limit_reached"] * 5)


# --- all or none ---


async def test_several_lines_are_all_or_none(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    many, few = await shop.product(stock=10), await shop.product(stock=1)
    pin, flash = await shop.open(show, many), await shop.open(show, few, "flash", quota=1)
    quote = await shop.quote(buyer, show, (pin, 2), (flash, 1))
    await shop.buy(await shop.buyer(), show, (flash, 1))
    assert await refused_word(shop.place(buyer, show, quote)) == "reserved_out"
    assert await shop.stock(many) == 10
    assert await shop.counts(show, pin.id) == (0, 0)
    assert await shop.counts(show, flash.id) == (1, 0)
    assert len(await shop.rows("SELECT id FROM orders")) == 1


async def test_stock_that_fails_last_gives_every_piece_back(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    first, second = await shop.product(stock=5), await shop.product(stock=5)
    flash = await shop.open(show, first, "flash", quota=5)
    pin = await shop.open(show, second)
    quote = await shop.quote(buyer, show, (flash, 2), (pin, 3))
    async with shop.tx() as t:
        await shop.products.update(t, OPERATOR, second.id, ProductPatch(stock_change=-5))
    with pytest.raises(SoldOut):
        await shop.place(buyer, show, quote)
    assert await shop.stock(first) == 5
    assert await shop.taken(flash) == 0
    assert await shop.counts(show, flash.id) == (0, 0)
    assert await shop.redis.hlen(show_key(show, "holds")) == 0
    assert await shop.buy(buyer, show, (flash, 2))


async def test_words_for_nothing_left(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    rice = await shop.product(stock=2)
    pin = await shop.open(show, rice)
    placed = await shop.buy(await shop.buyer(), show, (pin, 2))
    with pytest.raises(ReservedOut):
        await shop.buy(await shop.buyer(), show, (pin, 1))
    await shop.pay(placed.order, placed.total_fen)
    with pytest.raises(SoldOut):
        await shop.buy(await shop.buyer(), show, (pin, 1))


async def test_a_flash_quota_is_per_person_and_in_all(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    flash = await shop.open(show, await shop.product(stock=100), "flash", quota=5, per_person=2)
    await shop.buy(buyer, show, (flash, 2))
    word = await refused_word(shop.buy(buyer, show, (flash, 1)))
    assert word == "limit_reached"
    for _ in range(2):
        await shop.buy(await shop.buyer(), show, (flash, 1))
    assert await refused_word(shop.buy(await shop.buyer(), show, (flash, 2))) == "reserved_out"
    last = await shop.buy(await shop.buyer(), show, (flash, 1))
    assert await refused_word(shop.buy(await shop.buyer(), show, (flash, 1))) == "reserved_out"
    for order in await shop.rows("SELECT id, total_fen FROM orders"):
        await shop.pay(OrderId(str(order["id"])), order["total_fen"])
    assert await refused_word(shop.buy(await shop.buyer(), show, (flash, 1))) == "sold_out"
    assert await shop.counts(show, flash.id) == (0, 5)
    (event,) = await shop.events(show, "offer.sold_out")
    assert event["offer"] == flash.id
    seen = await shop.seen(show, flash, shop.guest())
    assert seen is not None
    assert seen["status"] == "sold_out"
    assert last.state == "placed"


async def pieces_of(shop: Shop, show: ShowId, offer: Offer, buyer: Actor) -> int:
    """What the show counts for this person."""
    field = f"{offer.id}|{buyer.member}"
    return int(await shop.redis.hget(show_key(show, "offer_people"), field) or 0)  # type: ignore[misc]


@pytest.mark.parametrize("other", ["open", "paid", "refunded"])
async def test_late_money_past_the_pieces_a_person_goes_back(
    shop: Shop, make_show: MakeShow, other: str
) -> None:
    """The order had ended, so another one took its place."""
    show, buyer, rice = await make_show(), await shop.buyer(), await shop.product()
    flash = await shop.open(show, rice, "flash", quota=5, per_person=2)
    lapsed = await shop.buy(buyer, show, (flash, 1))
    await shop.let_holds_run_out()
    again = await shop.buy(buyer, show, (flash, 2))
    if other != "open":
        await shop.pay(again.order, again.total_fen)
    if other == "refunded":  # its pieces stay sold
        async with shop.tx() as t:
            await shop.payments.refund(t, OPERATOR, again.order)
    late = await shop.pay(lapsed.order, lapsed.total_fen)
    assert (late.outcome, late.reason) == ("returned", "limit_reached")
    async with shop.tx() as t:
        order = await shop.orders.get(t.conn, buyer, lapsed.order)
    assert (order.state, order.returning_fen) == ("expired", lapsed.total_fen)
    (told,) = [note for note in await shop.notes(buyer) if note.get("code") == "payment_returning"]
    assert (told["order"], told["reason"], told["amount_fen"]) == (
        lapsed.order,
        "limit_reached",
        lapsed.total_fen,
    )
    assert (await shop.taken(flash), await pieces_of(shop, show, flash, buyer)) == (2, 2)


async def test_late_money_within_the_pieces_a_person_is_taken(shop: Shop, make_show: MakeShow) -> None:
    """Also beside what others hold, and what one had of another offer or has given up."""
    show, buyer, rice = await make_show(), await shop.buyer(), await shop.product(stock=50)
    flash = await shop.open(show, rice, "flash", quota=9, per_person=2)
    second = await shop.open(show, await shop.product(), "flash", quota=9, per_person=2)
    lapsed = await shop.buy(buyer, show, (flash, 1))
    await shop.let_holds_run_out()
    given_up = await shop.buy(buyer, show, (flash, 2))
    async with shop.tx() as t:
        await shop.orders.cancel(t, buyer, given_up.order)
    await shop.buy(buyer, show, (flash, 1), (second, 2))
    await shop.buy(await shop.buyer(), show, (flash, 2))
    assert (await shop.pay(lapsed.order, lapsed.total_fen)).outcome == "accepted"
    assert (await shop.taken(flash), await pieces_of(shop, show, flash, buyer)) == (4, 2)
    assert await refused_word(shop.buy(buyer, show, (flash, 1))) == "limit_reached"


async def test_late_money_that_was_not_told_yet_counts_for_the_pieces_a_person(
    shop: Shop, make_show: MakeShow
) -> None:
    """The show does not know of it: the rows do."""
    show, buyer, rice = await make_show(), await shop.buyer(), await shop.product()
    flash = await shop.open(show, rice, "flash", quota=5, per_person=1)
    lapsed = await shop.buy(buyer, show, (flash, 1))
    await shop.let_holds_run_out()
    async with shop.tx() as t:
        recorded = await shop.payments.record(
            t, "sandbox", "late", lapsed.order, lapsed.total_fen, "p", await now(shop)
        )
        t.committed.clear()  # killed
    assert recorded.outcome == "accepted"
    assert await pieces_of(shop, show, flash, buyer) == 0
    assert await refused_word(shop.buy(buyer, show, (flash, 1))) == "limit_reached"
    await shop.orders.settle_unannounced(shop.database, older_s=0)
    assert await pieces_of(shop, show, flash, buyer) == await shop.taken(flash) == 1
    assert await shop.counts(show, flash.id) == (0, 1)


async def test_late_money_and_another_order_at_once_are_one_piece_a_person(
    shop: Shop, make_show: MakeShow
) -> None:
    show, rice = await make_show(), await shop.product(stock=50)
    flash = await shop.open(show, rice, "flash", quota=20, per_person=1)
    buyers = [await shop.buyer() for _ in range(6)]
    lapsed = [await shop.buy(buyer, show, (flash, 1)) for buyer in buyers]
    await shop.let_holds_run_out()
    quotes = await quoted(shop, show, flash, buyers)
    tries = [shop.pay(order.order, order.total_fen) for order in lapsed]
    tries += [shop.place(buyer, show, quote) for buyer, quote in zip(buyers, quotes, strict=True)]
    _, words = await at_once(tries)
    assert set(words) <= {"limit_reached"}
    assert await shop.taken(flash) == sum(await shop.counts(show, flash.id)) == 6
    assert {await pieces_of(shop, show, flash, buyer) for buyer in buyers} == {1}


async def refused_word(attempt: Any) -> str:
    with pytest.raises(Refusal) as refused:
        await attempt
    return refused.value.word


@pytest.mark.rule("semantics 4.1c")
async def test_a_lower_price_than_flash_uses_no_piece(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    rice = await shop.product(member_fen=9_900)
    flash = await shop.open(show, rice, "flash", flash_fen=9_900, quota=1)
    placed = await shop.buy(await shop.buyer(plan.id), show, (flash, 1))
    assert placed.total_fen == 9_900
    assert await shop.counts(show, flash.id) == (0, 0)
    assert await shop.taken(flash) == 0
    assert await shop.stock(rice) == 9


# --- keys ---


async def test_the_same_key_is_the_same_order(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product()
    quote = await shop.quote(buyer, show, (await shop.open(show, rice), 1))
    first = await shop.place(buyer, show, quote, "key")
    assert await shop.place(buyer, show, quote, "key") == first
    assert await shop.stock(rice) == 9
    other = await shop.quote(buyer, show, (await shop.open(show, await shop.product()), 1))
    with pytest.raises(KeyReused):
        await shop.place(buyer, show, other, "key")


async def test_a_key_is_ones_own(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product()
    pin = await shop.open(show, rice)
    orders = set()
    for buyer in (await shop.buyer(), await shop.buyer()):
        orders.add((await shop.place(buyer, show, await shop.quote(buyer, show, (pin, 1)), "key")).order)
    assert len(orders) == 2


async def test_a_repeat_is_answered_though_the_quote_has_expired_meanwhile(
    shop: Shop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    quote = await shop.quote(buyer, show, (await shop.open(show, await shop.product()), 1))
    first = await shop.place(buyer, show, quote, "key")

    def expired(token: str) -> None:
        raise PriceChanged

    monkeypatch.setattr(shop.quotes, "verify", expired)
    assert await shop.place(buyer, show, quote, "key") == first
    with pytest.raises(PriceChanged):
        await shop.place(buyer, show, quote, "another")


async def test_one_key_twice_at_once_is_one_order(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product()
    quote = await shop.quote(buyer, show, (await shop.open(show, rice), 1))
    won, words = await at_once([shop.place(buyer, show, quote, "key") for _ in range(8)])
    assert len({each.order for each in won}) == 1
    assert (len(won), words) == (8, [])
    assert await shop.stock(rice) == 9


async def test_one_key_with_two_bodies_at_once_is_one_order_and_one_refusal(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    pin = await shop.open(show, await shop.product())
    quotes = [await shop.quote(buyer, show, (pin, n)) for n in (1, 2)]
    won, words = await at_once([shop.place(buyer, show, quote, "key") for quote in quotes])
    assert (len(won), words) == (1, ["key_reused"])


# --- races ---


async def test_control_without_the_condition_more_is_sold_than_there_is(
    shop: Shop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race exists: read the stock, then write what was read less one, and pieces are sold twice."""
    show, rice = await make_show(), await shop.product(stock=5)
    pin = await shop.open(show, rice)
    buyers = await shop.buyers(12)
    quotes = await quoted(shop, show, pin, buyers)
    all_have_read = asyncio.Barrier(12)

    async def take(self: Pieces, conn: Any, order: Any, pieces: Any, needs: tuple[Need, ...]) -> None:
        for need in needs:
            found = await conn.execute("SELECT stock FROM products WHERE id = %s", [need.product])
            row = await found.fetchone()
            await all_have_read.wait()
            if row["stock"] < need.quantity:
                raise SoldOut
            await conn.execute(
                "UPDATE products SET stock = %s WHERE id = %s", [row["stock"] - need.quantity, need.product]
            )

    monkeypatch.setattr(Pieces, "take", take)
    won, _ = await at_once(
        [shop.place(buyer, show, quote) for buyer, quote in zip(buyers, quotes, strict=True)]
    )
    assert len(won) > 5


async def test_of_sixty_orders_at_once_for_ten_pieces_ten_are_placed(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product(stock=10)
    pin = await shop.open(show, rice)
    buyers = await shop.buyers(60)
    quotes = await quoted(shop, show, pin, buyers)
    won, words = await at_once(
        [shop.place(buyer, show, quote) for buyer, quote in zip(buyers, quotes, strict=True)]
    )
    assert (len(won), set(words), len(words)) == (10, {"reserved_out"}, 50)
    assert await shop.stock(rice) == 0
    assert await shop.counts(show, pin.id) == (10, 0)
    assert len(await shop.rows("SELECT id FROM orders")) == 10


async def test_control_without_the_script_a_flash_quota_is_overrun(
    shop: Shop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race exists: count what is held in Python, then add to it."""
    show = await make_show()
    flash = await shop.open(show, await shop.product(stock=100), "flash", quota=5)
    key, field = show_key(show, "counts"), f"offer:{flash.id}|held"
    all_have_read = asyncio.Barrier(20)

    async def hold() -> bool:
        held = int(await shop.redis.hget(key, field) or 0)  # type: ignore[misc]
        await all_have_read.wait()
        if held >= 5:
            return False
        await shop.redis.hincrby(key, field, 1)  # type: ignore[misc]
        return True

    assert sum(await asyncio.gather(*[hold() for _ in range(20)])) > 5


async def test_of_sixty_orders_at_once_for_a_quota_of_seven_seven_are_placed(
    shop: Shop, make_show: MakeShow
) -> None:
    show, rice = await make_show(), await shop.product(stock=100)
    flash = await shop.open(show, rice, "flash", quota=7, per_person=1)
    buyers = await shop.buyers(30)
    quotes = await quoted(shop, show, flash, buyers)
    # each person tries twice, with two keys
    won, words = await at_once(
        [shop.place(buyer, show, quote) for buyer, quote in zip(buyers * 2, quotes * 2, strict=True)]
    )
    assert len(won) == 7
    assert set(words) <= {"reserved_out", "limit_reached"}
    assert await shop.counts(show, flash.id) == (7, 0)
    assert await shop.taken(flash) == 7
    assert await shop.stock(rice) == 93
    members = await shop.rows("SELECT count(DISTINCT member_id) AS n FROM orders")
    assert members[0]["n"] == 7


async def test_orders_of_crossed_lines_at_once_never_deadlock(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    products = [await shop.product(stock=20) for _ in range(3)]
    pins = [await shop.open(show, each) for each in products]
    buyers = await shop.buyers(24)
    quotes = []
    for n, buyer in enumerate(buyers):
        turned = pins[n % 3 :] + pins[: n % 3]
        quotes.append(await shop.quote(buyer, show, *[(pin, 1) for pin in turned[::-1]]))
    tries: list[Any] = [shop.place(b, show, q) for b, q in zip(buyers, quotes, strict=True)]
    won, words = await at_once([*tries, shop.let_holds_run_out()])
    assert len([each for each in won if isinstance(each, Placed)]) + len(words) == 24
    for each in products:
        held = await shop.rows(
            "SELECT coalesce(sum(quantity), 0) AS n FROM order_lines l JOIN orders o ON o.id = l.order_id"
            " WHERE l.product_id = %s AND o.state = 'placed'",
            each.id,
        )
        assert await shop.stock(each) == 20 - held[0]["n"]


# --- the end of a hold ---


async def test_a_hold_that_runs_out_gives_everything_back(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product(stock=5)
    flash = await shop.open(show, rice, "flash", quota=2, per_person=2)
    placed = await shop.buy(buyer, show, (flash, 2))
    async with shop.tx() as t:
        assert await shop.orders.expire_due(t) == 0
    assert await shop.let_holds_run_out() == 1
    assert await shop.let_holds_run_out() == 0
    assert (await shop.stock(rice), await shop.taken(flash)) == (5, 0)
    assert await shop.counts(show, flash.id) == (0, 0)
    async with shop.tx() as t:
        assert (await shop.orders.get(t.conn, buyer, placed.order)).state == "expired"
    states = [note["state"] for note in await shop.notes(buyer) if note["type"] == "order.changed"]
    assert states == ["placed", "expired"]
    assert await shop.buy(buyer, show, (flash, 2))


async def test_one_of_those_that_ran_out_is_ended_alone(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    offer = await shop.open(show, await shop.product(stock=5))
    orders = [(await shop.buy(await shop.buyer(), show, (offer, 1))).order for _ in range(3)]
    await shop.rows(
        "UPDATE orders SET hold_until = clock_timestamp() - interval '1 s' WHERE id <> %s RETURNING id",
        orders[2],
    )
    async with shop.tx() as t:
        assert sorted(await shop.orders.due(t.conn)) == sorted(orders[:2])
        assert await shop.orders.expire_due(t, only=orders[2]) == 0
        assert await shop.orders.expire_due(t, only=orders[1]) == 1
        assert await shop.orders.due(t.conn) == orders[:1]


@pytest.mark.rule("semantics 5.1d")
async def test_nothing_renews_a_hold(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    quote = await shop.quote(buyer, show, (await shop.open(show, await shop.product()), 1))
    placed = await shop.place(buyer, show, quote, "key")
    assert (await shop.place(buyer, show, quote, "key")).hold_until == placed.hold_until
    async with shop.tx() as t:
        await shop.payments.start(t, buyer, placed.order)
        await shop.payments.start(t, buyer, placed.order)
    await shop.pay(placed.order, 1)  # a wrong amount
    async with shop.tx() as t:
        assert (await shop.orders.get(t.conn, buyer, placed.order)).hold_until == placed.hold_until


async def test_a_cancelled_order_gives_back_once(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product(stock=5)
    flash = await shop.open(show, rice, "flash", quota=5)
    placed = await shop.buy(buyer, show, (flash, 2))

    async def cancel() -> Any:
        async with shop.tx() as t:
            return await shop.orders.cancel(t, buyer, placed.order)

    won, _ = await at_once([cancel() for _ in range(4)])
    assert {each.state for each in won} == {"cancelled"}
    assert (await shop.stock(rice), await shop.taken(flash)) == (5, 0)
    assert await shop.counts(show, flash.id) == (0, 0)
    paid = await shop.buy(buyer, show, (flash, 1))
    await shop.pay(paid.order, paid.total_fen)
    async with shop.tx() as t:
        with pytest.raises(OrderClosed):
            await shop.orders.cancel(t, buyer, paid.order)


async def test_a_closed_offers_holds_still_come_back(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    flash = await shop.open(show, await shop.product(), "flash")
    placed = await shop.buy(buyer, show, (flash, 2))
    async with shop.tx() as t:
        await shop.offers.close(t, HOST, show, flash.id)
        await shop.orders.cancel(t, buyer, placed.order)
    assert await shop.counts(show, flash.id) == (0, 0)
    assert await shop.parts(show, flash) is None


# --- whose order ---


async def test_somebody_elses_order_is_not_found(shop: Shop, make_show: MakeShow) -> None:
    show, buyer, stranger = await make_show(), await shop.buyer(), await shop.buyer()
    placed = await shop.buy(buyer, show, (await shop.open(show, await shop.product()), 1))
    for actor in (stranger, shop.guest(), NOBODY_OF_STAFF):
        for order in (placed.order, OrderId(new_id()), OrderId("x")):
            async with shop.tx() as t:
                with pytest.raises(NoSuchOrder):
                    await shop.orders.get(t.conn, actor, order)
                with pytest.raises(NoSuchOrder):
                    await shop.orders.cancel(t, actor, order)
                with pytest.raises(NoSuchOrder):
                    await shop.payments.start(t, actor, order)
                with pytest.raises(NoSuchOrder):
                    await shop.payments.refund(t, actor, order)
    async with shop.tx() as t:
        assert (await shop.orders.get(t.conn, OPERATOR, placed.order)).id == placed.order
        assert (await shop.orders.of_member(t.conn, stranger.member)).items == ()  # type: ignore[arg-type]


async def test_lists_of_orders_come_in_pages(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    pin = await shop.open(show, await shop.product())
    placed = [(await shop.buy(buyer, show, (pin, 1))).order for _ in range(3)]
    assert buyer.member is not None
    async with shop.tx() as t:
        first = await shop.orders.of_member(t.conn, buyer.member, limit=2)
        rest = await shop.orders.of_member(t.conn, buyer.member, first.next, limit=2)
        assert [each.id for each in (*first.items, *rest.items)] == placed[::-1]
        assert rest.next is None
        everything = await shop.orders.all(t.conn, OPERATOR, show=show)
        assert [each.id for each in everything.items] == placed
        with pytest.raises(Forbidden):
            await shop.orders.all(t.conn, HOST)


# --- what is told ---


async def test_an_order_is_told_masked_and_without_its_price(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer(nickname="王小明")
    rice = await shop.product()
    pin = await shop.open(show, rice)
    placed = await shop.buy(buyer, show, (pin, 2))
    await shop.pay(placed.order, placed.total_fen)
    for kind in ("order.placed", "order.paid"):
        (event,) = await shop.events(show, kind)
        assert set(event) == {"type", "at", "bit", "name", "offer", "product", "product_name", "quantity"}
        assert (event["name"], event["product_name"], event["quantity"]) == ("王**", "有机大米", 2)
    kinds = [(each["kind"], each["subject"], each["value"]) for each in await shop.records(show)]
    assert kinds == [("order", f"product:{rice.id}", 2), ("paid", f"product:{rice.id}", 2)]
    assert await shop.counts(show, pin.id) == (0, 2)


async def test_a_members_only_purchase_is_told_to_members_only(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    secret = await shop.open(show, await shop.product(), audience=PLAN_MEMBERS)
    shown = await shop.open(show, await shop.product())
    await shop.buy(await shop.buyer(plan.id), show, (secret, 1), (shown, 1))
    told = {event["offer"]: event["bit"] for event in await shop.events(show, "order.placed")}
    assert told == {secret.id: 1, shown.id: 0}


async def test_nothing_is_told_of_an_order_that_was_not_committed(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    flash = await shop.open(show, await shop.product(), "flash")
    quote = await shop.quote(buyer, show, (flash, 1))
    with pytest.raises(RuntimeError, match="lost power"):
        async with shop.tx() as t:
            await shop.orders.place(t, buyer, show, shop.command(buyer, quote))
            assert await shop.counts(show, flash.id) == (1, 0)
            raise RuntimeError("lost power")
    assert await shop.counts(show, flash.id) == (0, 0)
    assert await shop.events(show, "order.placed") == []
    assert await shop.notes(buyer) == []


# --- what a crash leaves ---


async def test_killed_between_commit_and_telling_the_job_tells(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    flash = await shop.open(show, await shop.product(), "flash")
    quote = await shop.quote(buyer, show, (flash, 1))
    async with shop.tx() as t:
        placed = await shop.orders.place(t, buyer, show, shop.command(buyer, quote))
        t.committed.clear()  # killed
    assert await shop.events(show, "order.placed") == []
    for _ in range(3):
        await shop.orders.settle_unannounced(shop.database, older_s=0)
    assert len(await shop.events(show, "order.placed")) == 1
    assert [note["state"] for note in await shop.notes(buyer)] == ["placed"]
    assert await shop.counts(show, flash.id) == (1, 0)
    async with shop.tx() as t:
        await shop.payments.record(
            t, "sandbox", "ref", placed.order, placed.total_fen, "p", (await now(shop))
        )
        t.committed.clear()
    for _ in range(2):
        await shop.orders.settle_unannounced(shop.database, older_s=0)
    assert len(await shop.events(show, "order.paid")) == 1
    assert await shop.counts(show, flash.id) == (0, 1)
    assert len(await shop.rows("SELECT id FROM orders WHERE paid_announced_at IS NULL")) == 0


async def now(shop: Shop) -> Any:
    return (await shop.rows("SELECT now() AS now"))[0]["now"]


async def test_telling_by_the_job_and_by_the_transaction_is_telling_once(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    pin = await shop.open(show, await shop.product())
    placed = await shop.buy(buyer, show, (pin, 1))
    await shop.pay(placed.order, placed.total_fen)
    for _ in range(2):
        await shop.orders.settle_unannounced(shop.database, older_s=0)
    assert [event["type"] for event in await shop.events(show)] == [
        "offer.opened",
        "order.placed",
        "order.paid",
    ]
    assert len({record["id"] for record in await shop.records(show)}) == 2


async def test_an_order_that_ended_untold_holds_nothing(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    flash = await shop.open(show, await shop.product(), "flash")
    quote = await shop.quote(buyer, show, (flash, 1))
    async with shop.tx() as t:
        placed = await shop.orders.place(t, buyer, show, shop.command(buyer, quote))
        t.committed.clear()
    async with shop.tx() as t:
        await shop.orders.cancel(t, buyer, placed.order)
    await shop.orders.settle_unannounced(shop.database, older_s=0)
    assert await shop.counts(show, flash.id) == (0, 0)
    assert await shop.redis.hlen(show_key(show, "holds")) == 0
    assert await shop.events(show, "order.placed") == []


async def test_a_hold_without_an_order_is_given_back_only_when_nobody_may_commit_it(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    flash = await shop.open(show, await shop.product(), "flash")
    quote = await shop.quote(buyer, show, (flash, 2))
    async with shop.tx() as t:
        await shop.orders.place(t, buyer, show, shop.command(buyer, quote))
        # the transaction is still running: the job must not take its pieces
        await shop.orders.settle_unannounced(shop.database, ahead_ms=120_000)
        assert await shop.counts(show, flash.id) == (2, 0)
        t.committed.clear()
    await shop.orders.settle_unannounced(shop.database, older_s=0, ahead_ms=120_000)
    assert await shop.counts(show, flash.id) == (2, 0)

    async with shop.tx() as t:
        await shop.orders.place(t, buyer, show, shop.command(buyer, quote))
        await t.conn.rollback()  # killed before the commit, and with it the giving back
        t.committed.clear()
    assert await shop.counts(show, flash.id) == (4, 0)
    await shop.orders.settle_unannounced(shop.database)
    assert await shop.counts(show, flash.id) == (4, 0)  # it is too young to be looked at
    await shop.orders.settle_unannounced(shop.database, ahead_ms=120_000)
    assert await shop.counts(show, flash.id) == (2, 0)


async def test_a_store_that_is_away_places_nothing(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product()
    quote = await shop.quote(buyer, show, (await shop.open(show, rice), 1))
    await shop.redis.delete(show_key(show, "meta"))
    with pytest.raises(Unavailable):
        await shop.place(buyer, show, quote)
    assert await shop.stock(rice) == 10
    assert await shop.rows("SELECT id FROM orders") == []


async def test_settling_goes_on_past_a_show_that_is_away(shop: Shop, make_show: MakeShow) -> None:
    shows = [await make_show(), await make_show()]
    for show in shows:
        buyer = await shop.buyer()
        quote = await shop.quote(buyer, show, (await shop.open(show, await shop.product()), 1))
        async with shop.tx() as t:
            await shop.orders.place(t, buyer, show, shop.command(buyer, quote))
            t.committed.clear()
    await shop.redis.delete(show_key(shows[0], "meta"))
    await shop.orders.settle_unannounced(shop.database, older_s=0)
    assert len(await shop.events(shows[1], "order.placed")) == 1
    untold = await shop.rows("SELECT show_id FROM orders WHERE placed_announced_at IS NULL")
    assert [row["show_id"] for row in untold] == [shows[0]]


# --- plans ---


async def test_a_plan_is_ordered_at_its_fee_with_a_seat_if_there_is_one(
    shop: Shop, make_show: MakeShow
) -> None:
    show, plan, buyer = await make_show(), await shop.plan(fee_fen=19_900), await shop.buyer()
    placed = await shop.join(buyer, plan.id, show)
    assert (placed.kind, placed.total_fen, placed.seat) == ("plan", 19_900, None)
    assert await shop.events(show, "order.placed") == []
    with pytest.raises(NoSuchPlan):
        await shop.join(buyer, type(plan.id)(new_id()), show)
    with pytest.raises(Unauthenticated):
        await shop.join(shop.guest(), plan.id, show)


async def test_a_second_tap_on_join_is_the_same_order(shop: Shop, make_show: MakeShow) -> None:
    show, plan, buyer = await make_show(), await shop.plan(), await shop.buyer()
    won, words = await at_once([shop.join(buyer, plan.id, show) for _ in range(5)])
    assert words == []
    assert len({each.order for each in won}) == 1
    await shop.let_holds_run_out()
    assert (await shop.join(buyer, plan.id, show)).order not in {each.order for each in won}


async def test_the_key_of_a_second_tap_gives_its_order_for_good(shop: Shop, make_show: MakeShow) -> None:
    show, plan, buyer = await make_show(), await shop.plan(), await shop.buyer()

    async def join(key: str, of: Any = plan) -> Placed:
        async with shop.tx() as t:
            return await shop.orders.place_plan(t, buyer, of.id, show, key)

    first, second = await join("one"), await join("two")
    await shop.pay(first.order, first.total_fen)
    again = await join("two")
    assert (first.order, again.order, again.state) == (second.order, second.order, "paid")
    with pytest.raises(KeyReused):
        await join("two", await shop.plan(name="月卡"))


async def test_a_plan_off_sale_is_not_ordered(shop: Shop) -> None:
    plan, buyer = await shop.plan(), await shop.buyer()
    async with shop.tx() as t:
        await shop.plans.set_on_sale(t, plan.id, False)
    with pytest.raises(NoSuchPlan):
        await shop.join(buyer, plan.id)


async def test_one_key_for_a_plan_and_for_goods_is_refused(shop: Shop, make_show: MakeShow) -> None:
    show, plan, buyer = await make_show(), await shop.plan(), await shop.buyer()
    quote = await shop.quote(buyer, show, (await shop.open(show, await shop.product()), 1))
    await shop.place(buyer, show, quote, "key")
    with pytest.raises(KeyReused):
        async with shop.tx() as t:
            await shop.orders.place_plan(t, buyer, plan.id, show, "key")


# --- the books ---


async def test_rows_of_the_books_do_not_vanish_or_change(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    placed = await shop.buy(buyer, show, (await shop.open(show, await shop.product()), 1))
    await shop.pay(placed.order, placed.total_fen)
    for act in (
        "DELETE FROM orders RETURNING id",
        "DELETE FROM order_lines RETURNING order_id",
        "UPDATE order_lines SET quantity = 2, line_fen = 25600 RETURNING order_id",
        "UPDATE payments SET amount_fen = 1 RETURNING id",
        "DELETE FROM payments RETURNING id",
    ):
        with pytest.raises(RestrictViolation):
            await shop.rows(act)
