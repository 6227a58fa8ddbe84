"""Stock: three modes, bundles, pre-sales, limits, and two books that always agree."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
import pytest
from psycopg.errors import RestrictViolation

from commerce.bundles import BundlePart, NoSuchPart
from commerce.limits import household_of
from commerce.order_book import Order
from commerce.orders import Placed
from commerce.pieces import LimitReached, ReservedOut, SoldOut
from commerce.prices import NotOnSale
from commerce.products import Product, ProductInput, ProductPatch
from commerce.stock import Stock, StockRow
from membership.actor import Actor, OrderId, ProductId, ShowId, new_id
from membership.addresses import AddressInput
from membership.audience import PLAN_MEMBERS
from membership.refusal import BadRequest, Forbidden, KeyReused, Refusal
from tests.commerce.shop_stage import HOST, NOBODY_OF_STAFF, OPERATOR, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio

SHIP_BY = date(2027, 3, 1)


async def presale(shop: Shop, cap: int, **values: Any) -> Product:
    return await shop.product(stock_mode="presale", presale_cap=cap, ship_by=SHIP_BY, **values)


async def bundle(shop: Shop, *parts: tuple[Product, int], **values: Any) -> Product:
    made = tuple(BundlePart(product=part.id, quantity=quantity) for part, quantity in parts)
    return await shop.product(**{"name": "秋收礼盒", "stock": 0, "parts": made, **values})


async def change(shop: Shop, product: Product, **patch: Any) -> Product:
    async with shop.tx() as t:
        return await shop.products.update(t, OPERATOR, product.id, ProductPatch(**patch))


async def now(shop: Shop, product: Product) -> Product:
    async with shop.tx() as t:
        return await shop.products.get(t.conn, product.id)


async def order_of(shop: Shop, actor: Actor, placed: Placed) -> Order:
    async with shop.tx() as t:
        return await shop.orders.get(t.conn, actor, placed.order)


async def cancel(shop: Shop, actor: Actor, placed: Placed) -> None:
    async with shop.tx() as t:
        await shop.orders.cancel(t, actor, placed.order)


async def take_in(shop: Shop, *rows: StockRow, key: str | None = None, reason: str = "delivery") -> list[Any]:
    async with shop.tx() as t:
        found = await Stock().take_in(t, OPERATOR, key or new_id(), reason, rows)
    return [(each.sku, each.outcome, each.reason, each.stock) for each in found]


async def books_agree(shop: Shop) -> None:
    """Both books say what each product has; nothing is below nothing."""
    rows = await shop.rows(
        """
        SELECT p.sku, p.stock, p.presale_taken,
            coalesce((SELECT sum(delta) FROM stock_entries e WHERE e.product_id = p.id), 0) - coalesce((
                SELECT sum(quantity - returned) FROM order_pieces w
                WHERE w.product_id = p.id AND state = 'taken' AND source = 'stock'), 0) AS at_hand,
            coalesce((SELECT sum(quantity - returned) FROM order_pieces w
                WHERE w.product_id = p.id AND state = 'taken' AND source = 'presale'), 0) AS to_come
        FROM products p
        """
    )
    for row in rows:
        assert (row["stock"], row["presale_taken"]) == (row["at_hand"], row["to_come"]), row
        assert row["stock"] >= 0


@pytest.fixture(autouse=True)
async def _the_books_agree_at_the_end(shop: Shop) -> Any:
    yield
    await books_agree(shop)


# --- on payment ---


@pytest.mark.rule("semantics 5.1a")
async def test_paid_first_holds_nothing_and_the_last_to_pay_has_the_money_back(
    shop: Shop, make_show: MakeShow
) -> None:
    show, rice = await make_show(), await shop.product(stock=1, stock_mode="on_payment")
    pin = await shop.open(show, rice)
    first, second = await shop.buyer(), await shop.buyer()
    placed = [await shop.buy(buyer, show, (pin, 1)) for buyer in (first, second)]
    assert await shop.stock(rice) == 1
    assert (await shop.pay(placed[1].order, placed[1].total_fen)).outcome == "accepted"
    assert await shop.stock(rice) == 0
    late = await shop.pay(placed[0].order, placed[0].total_fen)
    assert (late.outcome, late.reason) == ("returned", "no_stock")
    order = await order_of(shop, first, placed[0])
    assert (order.state, order.returning_fen) == ("expired", placed[0].total_fen)
    told = [note for note in await shop.notes(first) if note["type"] == "notice"]
    assert [(note["code"], note["reason"]) for note in told] == [("payment_returning", "no_stock")]
    assert await shop.payments.return_due(shop.database) == 1
    assert [fen for _, fen in shop.provider.returns.values()] == [placed[0].total_fen]
    with pytest.raises(SoldOut):
        await shop.buy(await shop.buyer(), show, (pin, 1))


async def test_paid_first_who_lost_is_told_though_the_process_died_after_the_commit(
    shop: Shop, make_show: MakeShow
) -> None:
    show, rice = await make_show(), await shop.product(stock=1, stock_mode="on_payment")
    pin = await shop.open(show, rice)
    first, second = await shop.buyer(), await shop.buyer()
    placed = [await shop.buy(buyer, show, (pin, 1)) for buyer in (first, second)]
    await shop.pay(placed[1].order, placed[1].total_fen)
    async with shop.tx() as t:
        await shop.payments.record(
            t, "sandbox", "ref", placed[0].order, placed[0].total_fen, "payer", datetime.now(UTC)
        )
        t.committed.clear()  # what was to be said is lost
    assert await shop.orders.settle_unannounced(shop.database, older_s=0) > 0
    told = [note for note in await shop.notes(first) if note["type"] == "order.changed"][-1]
    assert (told["state"], told["returning_fen"]) == ("expired", placed[0].total_fen)


async def test_paid_first_a_lost_order_gives_back_what_else_it_held(shop: Shop, make_show: MakeShow) -> None:
    """§5: several lines are all or none, also when they are taken at different moments."""
    show = await make_show()
    rice = await shop.product(stock=5)
    last = await shop.product(stock=1, stock_mode="on_payment")
    pins = [await shop.open(show, each) for each in (rice, last)]
    loser, winner = await shop.buyer(), await shop.buyer()
    both = await shop.buy(loser, show, (pins[0], 2), (pins[1], 1))
    one = await shop.buy(winner, show, (pins[1], 1))
    assert (await shop.stock(rice), await shop.stock(last)) == (3, 1)
    assert (await shop.pay(one.order, one.total_fen)).outcome == "accepted"
    assert (await shop.pay(both.order, both.total_fen)).outcome == "returned"
    assert (await shop.stock(rice), await shop.stock(last)) == (5, 0)
    assert await shop.counts(show, pins[0].id) == (0, 0)


async def test_paid_first_a_flash_quota_is_held_apart_from_the_stock(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product(stock=2, stock_mode="on_payment")
    flash = await shop.open(show, rice, "flash", quota=2)
    buyers = [await shop.buyer() for _ in range(2)]
    placed = [await shop.buy(buyer, show, (flash, 1)) for buyer in buyers]
    with pytest.raises(Refusal, match="held by unpaid orders"):
        await shop.buy(await shop.buyer(), show, (flash, 1))
    await take_in(shop, StockRow(sku=rice.sku, change=-1))
    assert (await shop.pay(placed[0].order, placed[0].total_fen)).outcome == "accepted"
    assert (await shop.pay(placed[1].order, placed[1].total_fen)).reason == "no_stock"
    assert (await shop.taken(flash), await shop.stock(rice)) == (1, 0)


async def test_an_order_that_expired_unpaid_takes_again_in_each_mode(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    products = [await shop.product(stock=1, stock_mode=mode) for mode in ("on_order", "on_payment")]
    products.append(await presale(shop, 1))
    placed, buyers = [], []
    for product in products:
        pin = await shop.open(show, product)
        buyers.append(await shop.buyer())
        placed.append(await shop.buy(buyers[-1], show, (pin, 1)))
    await shop.let_holds_run_out()
    for each in products:
        assert (await now(shop, each)).free == 1
    for order in placed:
        assert (await shop.pay(order.order, order.total_fen)).outcome == "accepted"
    for each in products:
        assert (await now(shop, each)).free == 0
    with pytest.raises(SoldOut):
        await shop.buy(await shop.buyer(), show, (pin, 1))


# --- pre-sale ---


@pytest.mark.rule("semantics 5.1a")
async def test_a_pre_sale_has_a_cap_and_a_date_and_touches_no_stock(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await presale(shop, 3, stock=7)
    pin = await shop.open(show, rice)
    assert (await shop.seen(show, pin, shop.guest()) or {})["ship_by"] == "2027-03-01"
    buyer = await shop.buyer()
    placed = await shop.buy(buyer, show, (pin, 2))
    assert (await order_of(shop, buyer, placed)).lines[0].ship_by == SHIP_BY
    found = await now(shop, rice)
    assert (found.stock, found.presale_taken, found.free) == (7, 2, 1)
    with pytest.raises(LimitReached):
        await shop.buy(buyer, show, (pin, 4))
    with pytest.raises(ReservedOut):
        await shop.buy(buyer, show, (pin, 2))
    await cancel(shop, buyer, placed)
    assert (await now(shop, rice)).free == 3
    with pytest.raises(BadRequest):  # the cap never falls below what was ordered
        await shop.buy(buyer, show, (pin, 3))
        await change(shop, rice, presale_cap=2)


async def test_a_later_date_leaves_the_promise_of_earlier_orders(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await presale(shop, 3)
    pin, buyer = await shop.open(show, rice), await shop.buyer()
    placed = await shop.buy(buyer, show, (pin, 1))
    await change(shop, rice, ship_by=SHIP_BY + timedelta(days=30))
    assert (await order_of(shop, buyer, placed)).lines[0].ship_by == SHIP_BY


async def test_a_product_that_changes_its_mode_gives_back_where_it_took(
    shop: Shop, make_show: MakeShow
) -> None:
    show, rice = await make_show(), await shop.product(stock=5)
    pin = await shop.open(show, rice)
    buyers = [await shop.buyer() for _ in range(3)]
    of_stock = await shop.buy(buyers[0], show, (pin, 2))
    await change(shop, rice, stock_mode="presale", presale_cap=4, ship_by=SHIP_BY)
    of_cap = await shop.buy(buyers[1], show, (pin, 3))
    await change(shop, rice, stock_mode="on_payment")
    due = await shop.buy(buyers[2], show, (pin, 1))
    found = await now(shop, rice)
    assert (found.stock, found.presale_taken) == (3, 3)
    with pytest.raises(BadRequest):
        await change(shop, rice, presale_cap=None)  # three of it are ordered
    await cancel(shop, buyers[0], of_stock)
    await cancel(shop, buyers[1], of_cap)
    await change(shop, rice, presale_cap=None, ship_by=None)
    await shop.pay(due.order, due.total_fen)
    found = await now(shop, rice)
    assert (found.stock, found.presale_taken) == (4, 0)


@pytest.mark.parametrize(
    "values",
    [
        {"stock_mode": "presale"},
        {"stock_mode": "presale", "presale_cap": 5},
        {"stock_mode": "presale", "ship_by": SHIP_BY},
    ],
)
async def test_a_pre_sale_states_its_cap_and_date(shop: Shop, values: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        await shop.product(**values)
    rice = await shop.product()
    with pytest.raises(BadRequest):
        await change(shop, rice, **values)


# --- bundles ---


@pytest.mark.rule("semantics 5.1b", "L11")
async def test_three_at_once_for_two_bundles_leave_a_part_at_nothing(shop: Shop, make_show: MakeShow) -> None:
    show, a, b = await make_show(), await shop.product(stock=2), await shop.product(stock=50)
    pin = await shop.open(show, await bundle(shop, (a, 1), (b, 1)))
    buyers = [await shop.buyer() for _ in range(3)]
    quotes = [await shop.quote(buyer, show, (pin, 1)) for buyer in buyers]
    results = await asyncio.gather(
        *(shop.place(buyer, show, quote) for buyer, quote in zip(buyers, quotes, strict=True)),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in results) == ["Placed", "Placed", "ReservedOut"]
    assert (await shop.stock(a), await shop.stock(b)) == (0, 48)


@pytest.mark.rule("semantics 5.1b")
async def test_a_bundle_is_had_while_its_parts_are(shop: Shop, make_show: MakeShow) -> None:
    show, a, b = await make_show(), await shop.product(stock=9), await shop.product(stock=5)
    box = await bundle(shop, (a, 4), (b, 1), list_fen=9_900)
    assert (box.bundle, box.stock, box.free) == (True, 0, 2)
    pin, alone = await shop.open(show, box), await shop.open(show, a)
    seen = await shop.seen(show, pin, shop.guest())
    assert seen is not None
    assert sorted(part["quantity"] for part in seen["product"]["parts"]) == [1, 4]
    buyer = await shop.buyer()
    placed = await shop.buy(buyer, show, (pin, 1), (alone, 1))  # the same part twice in one order
    assert placed.total_fen == 9_900 + 12_800
    assert (await shop.stock(a), await shop.stock(b)) == (4, 4)
    with pytest.raises(ReservedOut):
        await shop.buy(buyer, show, (pin, 2))
    await shop.buy(buyer, show, (alone, 1))
    with pytest.raises(ReservedOut):
        await shop.buy(buyer, show, (pin, 1))
    await cancel(shop, buyer, placed)
    assert (await shop.stock(a), await shop.stock(b)) == (8, 5)
    assert (await now(shop, box)).free == 2


@pytest.mark.rule("semantics 5.1b")
async def test_a_bundle_takes_a_part_that_is_paid_first_when_it_is_ordered(
    shop: Shop, make_show: MakeShow
) -> None:
    show, a = await make_show(), await shop.product(stock=3, stock_mode="on_payment")
    pin, alone = await shop.open(show, await bundle(shop, (a, 1))), await shop.open(show, a)
    buyer = await shop.buyer()
    await shop.buy(buyer, show, (pin, 1))
    assert await shop.stock(a) == 2
    await shop.buy(buyer, show, (alone, 1))
    assert await shop.stock(a) == 2


async def test_a_bundle_that_cannot_be_is_refused(shop: Shop) -> None:
    a, hidden = await shop.product(), await shop.product(audience=PLAN_MEMBERS)
    coming, box = await presale(shop, 3), await bundle(shop, (a, 1))
    for parts in ([(a, 1), (a, 2)], [(hidden, 1)], [(coming, 1)], [(box, 1)]):
        with pytest.raises(BadRequest):
            await bundle(shop, *parts)
    for values in ({"stock": 1}, {"stock_mode": "on_payment"}):
        with pytest.raises(BadRequest):
            await bundle(shop, (a, 1), **values)
    for unknown in (new_id(), "x"):
        with pytest.raises(NoSuchPart):
            await shop.product(stock=0, parts=(BundlePart(product=ProductId(unknown)),))
    eleven = [{"product": new_id()}] * 11
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"sku": "a", "name": "a", "list_fen": 1, "parts": eleven}, ProductInput)
    with pytest.raises(BadRequest):
        await change(shop, box, stock_change=1)
    with pytest.raises(BadRequest):
        await change(shop, box, stock_mode="on_payment")
    with pytest.raises(BadRequest):
        await change(shop, a, stock_mode="presale", presale_cap=1, ship_by=SHIP_BY)
    members_box = await bundle(shop, (hidden, 1), audience=PLAN_MEMBERS)
    assert members_box.free == 10


async def test_a_part_that_is_narrowed_goes_from_the_open_card_of_its_bundle_at_once(
    shop: Shop, make_show: MakeShow
) -> None:
    show, rice, oil = await make_show(), await shop.product(name="米"), await shop.product(name="油")
    pin = await shop.open(show, await bundle(shop, (rice, 1), (oil, 1)))
    async with shop.tx() as t:
        await shop.offers.settle(t)

    async def named() -> list[str]:
        seen = await shop.seen(show, pin, shop.guest())
        assert seen is not None
        return sorted(part["name"] for part in seen["product"]["parts"])

    assert await named() == ["油", "米"]
    async with shop.tx() as t:
        changed = await shop.products.update(t, OPERATOR, rice.id, ProductPatch(audience=PLAN_MEMBERS))
        await shop.offers.close_unfit(t, changed)
    assert await named() == ["油"]
    async with shop.tx() as t:
        assert not await shop.offers.refresh(t.conn, show)  # nothing is left for the job


async def test_what_a_bundle_is_made_of_stays(shop: Shop) -> None:
    box = await bundle(shop, (await shop.product(), 1))
    for statement in ("UPDATE bundle_parts SET quantity = 2", "DELETE FROM bundle_parts"):
        with pytest.raises(RestrictViolation):
            await shop.rows(statement)
    assert box.free == 10


# --- limits ---


async def home(shop: Shop, actor: Actor, region: str, detail: str) -> None:
    """The member's address is this one from now on."""
    assert actor.member is not None
    async with shop.tx() as t:
        address = AddressInput("王小明", "13800000001", region, detail)
        shop._homes[actor.id] = (await shop.addresses.add(t, actor.member, address)).id


async def test_so_many_a_person_over_all_orders(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product(stock=50, max_per_member=3, limit_days=7)
    pin, buyer = await shop.open(show, rice), await shop.buyer()
    first = await shop.buy(buyer, show, (pin, 2))
    with pytest.raises(LimitReached) as refused:
        await shop.buy(buyer, show, (pin, 2))
    details = refused.value.details
    assert (details["scope"], details["most"], details["left"]) == ("member", 3, 1)
    await shop.pay(first.order, first.total_fen)
    second = await shop.buy(buyer, show, (pin, 1))
    with pytest.raises(LimitReached):
        await shop.buy(buyer, show, (pin, 1))
    await cancel(shop, buyer, second)
    await shop.buy(buyer, show, (pin, 1))
    other = await shop.buyer()
    await shop.buy(other, show, (pin, 3))
    async with shop.tx() as t:
        await t.conn.execute("UPDATE orders SET placed_at = placed_at - interval '8 days'")
    await shop.buy(buyer, show, (pin, 3))


@pytest.mark.rule("M54")
async def test_so_many_a_household_however_its_address_is_written(shop: Shop, make_show: MakeShow) -> None:
    """Row 54: two members of one address share the limit."""
    show, rice = await make_show(), await shop.product(stock=50, max_per_household=2)
    pin = await shop.open(show, rice)
    one, two, three = [await shop.buyer() for _ in range(3)]
    await home(shop, one, "浙江省 杭州市 西湖区", "文三路 1 号 2 幢 301 室")
    await home(shop, two, "浙江省杭州市西湖区", "文三路１号２－３０１")
    await home(shop, three, "浙江省 杭州市 西湖区", "文三路 12 号 301 室")
    await shop.buy(one, show, (pin, 1))
    with pytest.raises(LimitReached) as refused:
        await shop.buy(two, show, (pin, 2))
    assert (refused.value.details["scope"], refused.value.details["left"]) == ("household", 1)
    await shop.buy(two, show, (pin, 1))
    with pytest.raises(LimitReached):
        await shop.buy(one, show, (pin, 1))
    await shop.buy(three, show, (pin, 2))


@pytest.mark.rule("M54")
async def test_a_household_that_orders_at_once_has_its_limit_and_no_more(
    shop: Shop, make_show: MakeShow
) -> None:
    show, rice = await make_show(), await shop.product(stock=50, max_per_household=2)
    pin, buyers = await shop.open(show, rice), await shop.buyers(10)  # all live in one place
    quotes = [await shop.quote(buyer, show, (pin, 1)) for buyer in buyers]
    results = await asyncio.gather(
        *(shop.place(buyer, show, quote) for buyer, quote in zip(buyers, quotes, strict=True)),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in results) == ["LimitReached"] * 8 + ["Placed"] * 2
    assert await shop.stock(rice) == 48


async def test_a_limit_counts_what_came_in_bundles_too(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product(stock=50, max_per_member=3)
    box = await bundle(shop, (rice, 2), max_per_member=2)
    pins = [await shop.open(show, each) for each in (rice, box)]
    buyer, other = await shop.buyer(), await shop.buyer()
    await shop.buy(buyer, show, (pins[1], 1))
    for pin in pins:
        with pytest.raises(LimitReached):
            await shop.buy(buyer, show, (pin, 2))
    with pytest.raises(LimitReached):
        await shop.buy(other, show, (pins[1], 1), (pins[0], 2))
    await shop.buy(buyer, show, (pins[0], 1))
    await change(shop, rice, max_per_member=None)
    await shop.buy(buyer, show, (pins[1], 1))
    with pytest.raises(LimitReached):
        await shop.buy(buyer, show, (pins[1], 1))


async def test_late_money_past_the_limit_goes_back(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product(stock=50, max_per_member=1)
    pin, buyer = await shop.open(show, rice), await shop.buyer()
    lapsed = await shop.buy(buyer, show, (pin, 1))
    await shop.let_holds_run_out()
    again = await shop.buy(buyer, show, (pin, 1))
    assert (await shop.pay(again.order, again.total_fen)).outcome == "accepted"
    late = await shop.pay(lapsed.order, lapsed.total_fen)
    assert (late.outcome, late.reason) == ("returned", "limit_reached")
    assert await shop.stock(rice) == 49


async def test_a_household_is_a_place_and_not_its_writing() -> None:
    def of(region: str, detail: str) -> str:
        return household_of(region, detail, b"key")

    plain = of("浙江省 杭州市", "文三路1号2幢301室")
    for region, detail in (
        ("浙江省杭州市", "文三路 1 号 2 幢 301 室"),
        ("浙江省 杭州市", "文三路1－2－301"),
        ("浙江省 杭州市", "文三路１号，２栋３０１"),
        ("浙江 杭州", "文三路1号2幢301室"),
        ("浙江省 杭州", "文三路1号2幢301室"),
    ):
        assert of(region, detail) == plain
    for region, detail in (
        ("浙江省 杭州市", "文三路12号301室"),
        ("浙江省 杭州市", "文三路1号2幢302室"),
        ("浙江省 宁波市", "文三路1号2幢301室"),
    ):
        assert of(region, detail) != plain
    assert household_of("浙江省 杭州市", "文三路1号2幢301室", b"other") != plain
    assert (
        of("北京市 北京市 朝阳区", "望京1号") == of("北京 朝阳区", "望京 1号") == of("北京市朝阳", "望京1号")
    )
    assert of("广西壮族自治区 南宁市 青秀区", "民族大道1号") == of("广西 南宁 青秀", "民族大道1号")
    assert of("北京市 朝阳区", "花园小区1区2号") != of("北京市 朝阳区", "花园小区12号")


# --- early window ---


@pytest.mark.rule("L26", "M52")
async def test_members_order_two_days_before_and_are_sent_first(shop: Shop, make_show: MakeShow) -> None:
    """L26 and row 52: at T − 47 h a member may, a guest may not; such orders are marked."""
    show, plan = await make_show(), await shop.plan()
    rice = await shop.product(
        on_sale_at=datetime.now(UTC) + timedelta(hours=47), early_s=48 * 3600, early_audience=PLAN_MEMBERS
    )
    pin = await shop.open(show, rice)
    member, other = await shop.buyer(plan.id), await shop.buyer()
    for actor in (shop.guest(), other):
        with pytest.raises(NotOnSale):
            await shop.quote(actor, show, (pin, 1))
    early = await shop.buy(member, show, (pin, 1))
    assert (await order_of(shop, member, early)).priority is True
    await change(shop, rice, on_sale_at=datetime.now(UTC) + timedelta(hours=49))
    with pytest.raises(NotOnSale):
        await shop.quote(member, show, (pin, 1))
    await change(shop, rice, on_sale_at=datetime.now(UTC) - timedelta(seconds=1))
    for actor in (member, other):
        placed = await shop.buy(actor, show, (pin, 1))
        assert (await order_of(shop, actor, placed)).priority is False


# --- the ledger ---


async def test_an_import_changes_row_by_row_and_a_bad_row_refuses_itself(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    rice, oil = await shop.product(sku="rice", stock=10), await shop.product(sku="oil", stock=10)
    await bundle(shop, (rice, 1), sku="box")
    await shop.buy(await shop.buyer(), show, (await shop.open(show, rice), 4))
    assert await take_in(
        shop,
        StockRow(sku="rice", change=5),
        StockRow(sku="nothing", change=5),
        StockRow(sku="box", change=5),
        StockRow(sku="oil", set_to=3, expected=10),
        StockRow(sku="oil", set_to=9, expected=10),
        StockRow(sku="rice", change=-12),
        StockRow(sku="rice", change=-11),
        StockRow(sku="oil", change=1, set_to=1, expected=3),
        StockRow(sku="oil", set_to=4),
        StockRow(sku="oil"),
        StockRow(sku="oil", change=0),
        StockRow(sku="oil", change=10_000_000),
    ) == [
        ("rice", "changed", None, 11),
        ("nothing", "refused", "not_found", None),
        ("box", "refused", "bundle", None),
        ("oil", "changed", None, 3),
        ("oil", "refused", "stock_changed", 3),
        ("rice", "refused", "below_zero", 11),
        ("rice", "changed", None, 0),
        ("oil", "refused", "one_of_two", 3),
        ("oil", "refused", "one_of_two", 3),
        ("oil", "refused", "one_of_two", 3),
        ("oil", "same", None, 3),
        ("oil", "refused", "above_most", 3),
    ]
    assert (await shop.stock(rice), await shop.stock(oil)) == (0, 3)


async def test_an_import_is_made_once_a_key(shop: Shop) -> None:
    rice = await shop.product(sku="rice", stock=10)
    rows = [StockRow(sku="rice", change=5), StockRow(sku="later", change=5)]
    first = await take_in(shop, *rows, key="k")
    await shop.product(sku="later", stock=1)
    assert await take_in(shop, *rows, key="k") == first
    both = await asyncio.gather(*(take_in(shop, StockRow(sku="rice", change=1), key="j") for _ in range(4)))
    assert both == [both[0]] * 4
    assert await shop.stock(rice) == 16
    with pytest.raises(KeyReused):
        await take_in(shop, StockRow(sku="rice", change=6), key="k")
    async with shop.tx() as t:
        for actor in (HOST, NOBODY_OF_STAFF):
            with pytest.raises(Forbidden):
                await Stock().take_in(t, actor, "k", "count", rows)
        with pytest.raises(BadRequest):
            await Stock().take_in(t, OPERATOR, "k", "count", [])


async def test_a_number_is_only_written_over_the_one_it_was_read_from(
    shop: Shop, make_show: MakeShow
) -> None:
    """A count that was taken before an order came in does not undo the order."""
    show, rice = await make_show(), await shop.product(sku="rice", stock=10)
    await shop.buy(await shop.buyer(), show, (await shop.open(show, rice), 1))
    stale = StockRow(sku="rice", set_to=12, expected=10)
    assert await take_in(shop, stale) == [("rice", "refused", "stock_changed", 9)]
    fresh = StockRow(sku="rice", set_to=12, expected=9)
    assert await take_in(shop, fresh) == [("rice", "changed", None, 12)]


async def test_the_ledger_tells_of_every_piece_and_stays(shop: Shop) -> None:
    rice, oil = await shop.product(sku="rice", stock=10), await shop.product(sku="oil", stock=0)
    await change(shop, rice, stock_change=-2)
    await take_in(shop, StockRow(sku="rice", change=5), key="k", reason="盘点")
    async with shop.tx() as t:
        page = await Stock().entries(t.conn, OPERATOR, product=rice.id, limit=2)
        rest = await Stock().entries(t.conn, OPERATOR, product=rice.id, limit=2, cursor=page.next)
        assert (await Stock().entries(t.conn, OPERATOR, product=oil.id)).items == ()
        with pytest.raises(Forbidden):
            await Stock().entries(t.conn, shop.guest())
    told = [(each.kind, each.delta, each.stock_after, each.reason) for each in (*page.items, *rest.items)]
    assert told == [("import", 5, 13, "盘点"), ("change", -2, 8, ""), ("opening", 10, 10, "")]
    assert rest.next is None
    for statement in (
        "UPDATE stock_entries SET entered_by = ''",
        "UPDATE stock_imports SET entered_by = ''",
        "DELETE FROM stock_entries",
    ):
        with pytest.raises(RestrictViolation):
            await shop.rows(statement)


async def test_imports_and_orders_of_crossed_products_at_once_never_deadlock(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    products = [await shop.product(sku=f"p{n}", stock=20) for n in range(3)]
    pins = [await shop.open(show, each) for each in products]
    buyers = await shop.buyers(9)
    quotes = [await shop.quote(buyer, show, *[(pin, 1) for pin in pins[::-1]]) for buyer in buyers]
    tries: list[Any] = [shop.place(buyer, show, quote) for buyer, quote in zip(buyers, quotes, strict=True)]
    for turn in range(6):
        rows = [StockRow(sku=f"p{(n + turn) % 3}", change=1) for n in range(3)]
        tries.append(take_in(shop, *rows))
    await asyncio.gather(*tries)
    assert [await shop.stock(each) for each in products] == [17] * 3


# --- sold pieces that come back ---


async def put_back(shop: Shop, order: OrderId, cause: str, product: Product, quantity: int) -> int:
    async with shop.tx() as t:
        return await Stock().put_back(t, OPERATOR, order, {product.id: quantity}, cause)


async def test_sold_pieces_come_back_once_a_cause_and_never_more_than_were_sold(
    shop: Shop, make_show: MakeShow
) -> None:
    show, a, b = await make_show(), await shop.product(stock=9), await shop.product(stock=9)
    box = await bundle(shop, (a, 2), (b, 1))
    coming = await presale(shop, 5)
    pins = [await shop.open(show, each) for each in (box, a, coming)]
    buyer = await shop.buyer()
    placed = await shop.buy(buyer, show, (pins[0], 2), (pins[1], 1), (pins[2], 2))
    with pytest.raises(BadRequest):  # a wrong order has nothing
        await put_back(shop, OrderId(new_id()), "case-0", a, 1)
    await shop.pay(placed.order, placed.total_fen)
    assert (await shop.stock(a), await shop.stock(b)) == (4, 7)
    assert await put_back(shop, placed.order, "case-1", box, 1) == 3
    assert await put_back(shop, placed.order, "case-1", box, 1) == 0
    assert (await shop.stock(a), await shop.stock(b)) == (6, 8)
    assert await put_back(shop, placed.order, "case-2", coming, 1) == 1
    assert (await now(shop, coming)).free == 4
    with pytest.raises(BadRequest):
        await put_back(shop, placed.order, "case-3", b, 2)
    async with shop.tx() as t:
        with pytest.raises(Forbidden):
            await Stock().put_back(t, HOST, placed.order, {a.id: 1}, "case-4")


# --- quotas apart from the stock ---


@pytest.mark.rule("semantics 5.1c")
async def test_open_quotas_are_together_never_above_what_is_free(shop: Shop, make_show: MakeShow) -> None:
    shows: list[ShowId] = [await make_show(), await make_show()]
    rice = await shop.product(stock=10)
    first = await shop.open(shows[0], rice, "flash", quota=6)
    with pytest.raises(BadRequest):
        await shop.open(shows[1], rice, "flash", quota=5)
    buyer = await shop.buyer()
    await shop.buy(buyer, shows[0], (first, 2))  # 8 free, 4 of the quota left
    await shop.open(shows[1], rice, "flash", quota=4)
    box = await bundle(shop, (rice, 4))
    with pytest.raises(BadRequest):
        await shop.open(shows[0], box, "flash", quota=3)
    await shop.open(shows[0], box, "flash", quota=2)


@pytest.mark.rule("semantics 5.1c")
async def test_a_quota_is_no_stock(shop: Shop, make_show: MakeShow) -> None:
    """Pieces sold beside the event are gone for the event too."""
    show, rice = await make_show(), await shop.product(stock=3)
    flash, pin = await shop.open(show, rice, "flash", quota=3), await shop.open(show, rice)
    buyer = await shop.buyer()
    placed = await shop.buy(buyer, show, (pin, 2))
    with pytest.raises(ReservedOut):
        await shop.buy(buyer, show, (flash, 2))
    await shop.pay(placed.order, placed.total_fen)
    await shop.buy(buyer, show, (flash, 1))
    with pytest.raises(Refusal):
        await shop.buy(buyer, show, (flash, 1))
    assert (await shop.stock(rice), await shop.taken(flash)) == (0, 1)


# --- holds ---


@pytest.mark.rule("semantics 5.1d")
@pytest.mark.parametrize("mode", ["on_order", "on_payment", "presale", "bundle"])
async def test_a_hold_is_never_renewed_by_looking_retrying_or_failing(
    shop: Shop, make_show: MakeShow, mode: str
) -> None:
    """§5 and row 20, by number: the moment is the same to the microsecond, and the pieces come back then."""
    show = await make_show()
    rice = await shop.product(stock=5, **({"stock_mode": mode} if mode == "on_payment" else {}))
    product = {"presale": await presale(shop, 5), "bundle": await bundle(shop, (rice, 1))}.get(mode, rice)
    pin, buyer = await shop.open(show, product, "pin"), await shop.buyer()
    quote = await shop.quote(buyer, show, (pin, 2))
    placed = await shop.place(buyer, show, quote, "key")

    async def until() -> datetime:
        return (await shop.rows("SELECT hold_until FROM orders WHERE id = %s", placed.order))[0]["hold_until"]  # type: ignore[no-any-return]

    set_once = await until()
    for _ in range(3):
        await order_of(shop, buyer, placed)
        await shop.place(buyer, show, quote, "key")
        async with shop.tx() as t:
            await shop.payments.start(t, buyer, placed.order)
        await shop.pay(placed.order, 1)
        with pytest.raises(Refusal):
            await shop.buy(buyer, show, (pin, 9))
        await shop.orders.settle_unannounced(shop.database, older_s=0)
        await change(shop, product, list_fen=20_000)
        assert await until() == set_once
    assert await shop.let_holds_run_out() == 1
    with pytest.raises(Refusal):
        async with shop.tx() as t:
            await shop.payments.start(t, buyer, placed.order)
    assert (await now(shop, product)).free == 5
