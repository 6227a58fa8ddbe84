"""Refunds of goods: any split adds up to the whole, nothing goes back twice, points follow the money."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commerce.messages import LineInput
from commerce.order_book import MOVES, NoSuchOrder
from commerce.orders import NotPaid
from commerce.refund_lines import FREIGHT, AlreadyRefunded, RefundLine, split, spread
from commerce.refunds import Refunded, Refunds
from commerce.stock import Stock
from membership.actor import Actor, OrderId, ProductId, ShowId, new_id
from membership.refusal import BadRequest, Forbidden, KeyReused
from tests.commerce.shop_stage import HOST, OPERATOR, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


@pytest.fixture
def refunds(shop: Shop) -> Refunds:
    return Refunds(shop.payments, shop.orders, shop.points, Stock())


async def paid(
    shop: Shop, show: ShowId, *lines: tuple[int, int], points: int = 0
) -> tuple[Actor, OrderId, list[Any]]:
    """An order of (list price, quantity) lines, paid."""
    buyer = await shop.buyer()
    assert buyer.member is not None
    if points:
        async with shop.tx() as t:
            await shop.points.earn(t, buyer.member, points, "gift", new_id())
    things = [await shop.product(list_fen=list_fen, stock=100) for list_fen, _ in lines]
    offers = [await shop.open(show, thing) for thing in things]
    wanted = [LineInput(offer.id, quantity) for offer, (_, quantity) in zip(offers, lines, strict=True)]
    async with shop.tx() as t:
        quote = await shop.quotes.quote(t.conn, buyer, show, wanted, points=points)
    placed = await shop.place(buyer, show, quote)
    await shop.pay(placed.order, placed.total_fen)
    return buyer, placed.order, things


async def back(
    shop: Shop, refunds: Refunds, order: OrderId, wanted: dict[int, int] | None, cause: str, **more: Any
) -> Refunded:
    async with shop.tx() as t:
        return await refunds.lines(t, OPERATOR, order, wanted, cause, **more)


async def returned(shop: Shop, order: OrderId) -> int:
    rows = await shop.rows(
        "SELECT coalesce(sum(r.amount_fen), 0)::bigint AS fen FROM payment_returns r"
        " JOIN payments p ON p.id = r.payment_id WHERE p.order_id = %s",
        order,
    )
    return int(rows[0]["fen"])


async def state(shop: Shop, order: OrderId) -> str:
    return str((await shop.rows("SELECT state FROM orders WHERE id = %s", order))[0]["state"])


# --- the shares, without a store ---

LINES = st.lists(
    st.tuples(st.integers(1, 99), st.integers(0, 1_000_000), st.integers(0, 5_000)), min_size=1, max_size=6
)


@pytest.mark.rule("semantics 4.3a")
@settings(max_examples=300, deadline=None)
@given(LINES, st.integers(0, 5_000), st.integers(0, 2**32))
def test_any_split_of_refunds_adds_up_to_the_whole_to_the_fen(
    given_lines: list[tuple[int, int, int]], freight_fen: int, seed: int
) -> None:
    """Refunds use the allocation of the order."""
    chance = random.Random(seed)
    whole = freight_fen + sum(paid_fen for _, paid_fen, _ in given_lines)
    now = [
        RefundLine(position=n, product=ProductId("p"), quantity=quantity, paid_fen=paid_fen, points=points)
        for n, (quantity, paid_fen, points) in enumerate(given_lines, 1)
    ]
    left, restored, freight_back = whole, 0, 0
    while any(line.back < line.quantity for line in now):
        open_lines = [line for line in now if line.back < line.quantity]
        picked = chance.sample(open_lines, chance.randint(1, len(open_lines)))
        wanted: dict[int, int] | None = {
            line.position: chance.randint(1, line.quantity - line.back) for line in picked
        }
        if chance.random() < 0.1:
            wanted = None
        for each in split(now, freight_fen, freight_back, wanted, left):
            assert each.money_fen >= 0
            left -= each.money_fen
            restored += each.points
            if each.position == FREIGHT:
                freight_back += each.money_fen
                continue
            line = now[each.position - 1]
            now[each.position - 1] = RefundLine(
                position=line.position,
                product=line.product,
                quantity=line.quantity,
                paid_fen=line.paid_fen,
                points=line.points,
                back=line.back + each.quantity,
                back_fen=line.back_fen + each.money_fen,
                back_points=line.back_points + each.points,
            )
            assert now[each.position - 1].back_fen <= line.paid_fen
    assert left == 0
    assert restored == sum(points for _, _, points in given_lines)


def line(position: int = 1, quantity: int = 3, paid_fen: int = 1_000, **more: int) -> RefundLine:
    return RefundLine(
        position=position, product=ProductId("p"), quantity=quantity, paid_fen=paid_fen, points=0, **more
    )


def test_a_thousand_fen_over_three_pieces_go_back_as_333_333_and_334() -> None:
    sums = [
        split([line(back=back, back_fen=back_fen)], 0, 0, {1: 1}, 9_999)[0].money_fen
        for back, back_fen in ((0, 0), (1, 333), (2, 666))
    ]
    assert sums == [333, 333, 334]


def test_the_freight_goes_back_with_the_last_piece_of_the_order_only() -> None:
    two = [line(1, 1), line(2, 1)]
    assert [each.position for each in split(two, 800, 0, {1: 1}, 9_999)] == [1]
    rest = split([line(1, 1, back=1, back_fen=1_000), line(2, 1)], 800, 0, None, 9_999)
    assert [(each.position, each.money_fen) for each in rest] == [(2, 1_000), (FREIGHT, 800)]


def test_a_sum_for_a_complaint_counts_against_a_later_refund_of_the_same_pieces() -> None:
    given_fen = spread([line()], 400)
    assert [(each.quantity, each.money_fen) for each in given_fen] == [(0, 400)]
    assert split([line(back_fen=400)], 0, 0, {1: 1}, 9_999)[0].money_fen == 0  # 333 are due, 400 were given
    assert split([line(back_fen=400)], 0, 0, None, 9_999)[0].money_fen == 600
    with pytest.raises(AlreadyRefunded):
        spread([line(back_fen=400)], 601)


# --- with a store ---


async def test_one_piece_goes_back_with_its_money_and_its_points_and_the_rest_stays_sold(
    shop: Shop, make_show: MakeShow, refunds: Refunds
) -> None:
    show = await make_show()
    buyer, order, things = await paid(shop, show, (10_900, 2), (1_000, 1))
    assert buyer.member is not None
    done = await back(shop, refunds, order, {1: 1}, "case-1")
    assert (done.money_fen, done.points, done.earned, done.whole) == (10_900, 0, 109, False)
    async with shop.tx() as t:
        found = await shop.orders.get(t.conn, buyer, order)
        balance = await shop.points.balance(t.conn, buyer.member)
    assert (found.state, found.refunded_fen, found.returning_fen) == ("paid", 10_900, 10_900)
    assert [(each.position, each.refunded) for each in found.lines] == [(1, 1), (2, 0)]
    assert balance.pending == 228 - 109
    assert await shop.stock(things[0]) == 98  # a parcel on its way is no piece on the shelf
    told = [note["state"] for note in await shop.notes(buyer) if note["type"] == "order.changed"]
    assert told == ["placed", "paid", "paid"]
    assert await shop.payments.return_due(shop.database) == 1
    assert [amount for _, amount in shop.provider.returns.values()] == [10_900]


async def test_a_piece_goes_back_once_whatever_the_cause_and_a_cause_is_answered_alike(
    shop: Shop, make_show: MakeShow, refunds: Refunds
) -> None:
    _, order, _ = await paid(shop, await make_show(), (5_000, 2))
    first = await back(shop, refunds, order, {1: 1}, "case-1")
    again = await back(shop, refunds, order, {1: 1}, "case-1")
    assert (again.money_fen, again.again) == (first.money_fen, True)
    with pytest.raises(KeyReused):
        await back(shop, refunds, order, {1: 2}, "case-1")
    with pytest.raises(AlreadyRefunded) as refused:
        await back(shop, refunds, order, {1: 2}, "case-2")
    assert refused.value.details == {"position": 1, "left": 1}
    last = await back(shop, refunds, order, None, "case-3")
    assert last.whole
    assert await state(shop, order) == "refunded"
    with pytest.raises(AlreadyRefunded):
        await back(shop, refunds, order, {1: 1}, "case-4")
    async with shop.tx() as t:
        with pytest.raises(AlreadyRefunded):
            await shop.payments.refund(t, OPERATOR, order)
    assert await returned(shop, order) == 10_000


async def test_one_piece_asked_back_many_times_at_once_goes_back_once(
    shop: Shop, make_show: MakeShow, refunds: Refunds
) -> None:
    _, order, _ = await paid(shop, await make_show(), (5_000, 1))
    ends = await asyncio.gather(
        *[back(shop, refunds, order, {1: 1}, f"case-{n}") for n in range(5)], return_exceptions=True
    )
    assert sorted(type(end).__name__ for end in ends) == ["AlreadyRefunded"] * 4 + ["Refunded"]
    assert await returned(shop, order) == 5_800


@pytest.mark.rule("semantics 4.3a")
@pytest.mark.parametrize("seed", range(3))
async def test_parts_in_any_order_and_the_rest_by_one_refund_send_back_all_that_was_paid(
    shop: Shop, make_show: MakeShow, refunds: Refunds, seed: int
) -> None:
    """Points spent come back, points earned are reversed, never more than earned."""
    chance = random.Random(seed)
    buyer, order, _ = await paid(shop, await make_show(), (3_333, 3), (777, 7), points=400)
    assert buyer.member is not None
    total = (await shop.rows("SELECT total_fen, points_fen FROM orders WHERE id = %s", order))[0]
    assert total["points_fen"] == 400
    left = {1: 3, 2: 7}
    money = points = earned = 0
    for number in range(chance.randint(1, 4)):
        position = chance.choice([each for each in left if left[each]])
        pieces = chance.randint(1, left[position])
        if sum(left.values()) == pieces:
            break
        left[position] -= pieces
        done = await back(shop, refunds, order, {position: pieces}, f"part-{number}")
        money, points, earned = money + done.money_fen, points + done.points, earned + done.earned
    rest = await back(shop, refunds, order, None, "rest")
    assert rest.whole
    assert money + rest.money_fen == total["total_fen"] == await returned(shop, order)
    assert points + rest.points == 400
    async with shop.tx() as t:
        balance = await shop.points.balance(t.conn, buyer.member)
    assert (balance.active, balance.pending) == (400, 0)
    sums = await shop.rows(
        "SELECT sum(amount) FILTER (WHERE kind = 'earn')::bigint AS earned,"
        " -sum(amount) FILTER (WHERE kind = 'reverse')::bigint AS back FROM points_entries WHERE cause = %s",
        f"order:{order}",
    )
    assert sums[0]["earned"] == sums[0]["back"] == earned + rest.earned


async def test_after_parts_a_refund_of_the_order_sends_what_is_left_of_it(
    shop: Shop, make_show: MakeShow, refunds: Refunds
) -> None:
    _, order, _ = await paid(shop, await make_show(), (3_333, 3))
    await back(shop, refunds, order, {1: 2}, "case-1")
    async with shop.tx() as t:
        assert (await shop.payments.refund(t, OPERATOR, order)).state == "refunded"
    assert await returned(shop, order) == 9_999
    rows = await shop.rows(
        "SELECT sum(quantity)::int AS pieces, sum(money_fen)::int AS fen FROM order_refunds"
    )
    assert rows == [{"pieces": 3, "fen": 9_999}]


async def test_pieces_are_put_back_where_staff_say_so(
    shop: Shop, make_show: MakeShow, refunds: Refunds
) -> None:
    _, order, (thing, _) = await paid(shop, await make_show(), (5_000, 3), (4_000, 1))
    assert await shop.stock(thing) == 97
    await back(shop, refunds, order, {1: 2}, "case-1", restock=True)
    await back(shop, refunds, order, {1: 2}, "case-1", restock=True)
    assert await shop.stock(thing) == 99


async def test_a_sum_for_a_complaint_leaves_the_goods_and_is_bounded_by_what_was_paid(
    shop: Shop, make_show: MakeShow, refunds: Refunds
) -> None:
    _, order, _ = await paid(shop, await make_show(), (5_000, 2))
    async with shop.tx() as t:
        done = await refunds.give(t, OPERATOR, order, 1_500, "case-1")
    assert (done.money_fen, done.whole, done.earned) == (1_500, False, 15)
    async with shop.tx() as t:
        assert (await refunds.give(t, OPERATOR, order, 1_500, "case-1")).again
        with pytest.raises(AlreadyRefunded):
            await refunds.give(t, OPERATOR, order, 8_501, "case-2")
        with pytest.raises(BadRequest):
            await refunds.give(t, OPERATOR, order, 100, "case-2", (9,))
        with pytest.raises(BadRequest):
            await refunds.give(t, OPERATOR, order, 0, "case-2")
        with pytest.raises(KeyReused):  # the same cause, and something else
            await refunds.give(t, OPERATOR, order, 1_501, "case-1")
        for wanted in (None, {1: 1}):
            with pytest.raises(KeyReused):
                await refunds.lines(t, OPERATOR, order, wanted, "case-1")
    assert (await back(shop, refunds, order, None, "rest")).money_fen == 8_500
    assert (await back(shop, refunds, order, None, "rest")).again
    async with shop.tx() as t:
        with pytest.raises(KeyReused):
            await refunds.give(t, OPERATOR, order, 8_500, "rest")
    assert await returned(shop, order) == 10_000


async def test_only_staff_refund_and_only_what_is_paid(
    shop: Shop, make_show: MakeShow, refunds: Refunds
) -> None:
    show = await make_show()
    buyer, order, _ = await paid(shop, show, (5_000, 1))
    for actor in (buyer, HOST):
        async with shop.tx() as t:
            with pytest.raises(NoSuchOrder):
                await refunds.lines(t, actor, order, None, "x")
    for wanted in ({2: 1}, {1: 0}, {1: -1}, {0: 1}):
        with pytest.raises(BadRequest):
            await back(shop, refunds, order, wanted, "x")
    unpaid = await shop.buy(buyer, show, (await shop.open(show, await shop.product()), 1))
    with pytest.raises(NotPaid):
        await back(shop, refunds, unpaid.order, None, "x")
    with pytest.raises(NoSuchOrder):
        await back(shop, refunds, OrderId(new_id()), None, "x")
    plan = await shop.plan()
    joined = await shop.join(await shop.buyer(), plan.id)
    await shop.pay(joined.order, joined.total_fen)
    with pytest.raises(BadRequest):
        await back(shop, refunds, joined.order, None, "x")
    assert await returned(shop, order) == 0


async def test_the_table_itself_refuses_a_piece_twice(
    shop: Shop, make_show: MakeShow, refunds: Refunds
) -> None:
    _, order, _ = await paid(shop, await make_show(), (5_000, 2))
    await back(shop, refunds, order, {1: 1}, "case-1")
    with pytest.raises(psycopg.errors.CheckViolation):
        await shop.rows(
            "INSERT INTO order_refunds (id, order_id, position, quantity, money_fen, cause, refunded_by)"
            " VALUES (%s, %s, 1, 2, 0, 'by hand', 'x') RETURNING id",
            new_id(),
            order,
        )


# --- the moves of an order ---


async def test_the_moves_of_an_order_are_one_table_and_every_other_move_is_refused(
    shop: Shop, make_show: MakeShow
) -> None:
    kept = {(row["was"], row["now"]) for row in await shop.rows("SELECT was, now FROM order_moves")}
    assert kept == {(was, now) for was, ends in MOVES.items() for now in ends}
    assert set(MOVES) == {now for ends in MOVES.values() for now in ends} | {"placed"}
    show = await make_show()
    _, order, _ = await paid(shop, show, (5_000, 1))
    closed = {"cancelled", "expired", "refunded"}
    for was in MOVES:
        for now in set(MOVES) - {was}:
            # The row is put into its state past every guard, to try one move from there.
            async with shop.tx() as t:
                await t.conn.execute("SET LOCAL session_replication_role = replica")
                await t.conn.execute(
                    "UPDATE orders SET state = %s, closed_at = CASE WHEN %s THEN now() END WHERE id = %s",
                    [was, was in closed, order],
                )
            move = shop.rows(
                "UPDATE orders SET state = %s, closed_at = CASE WHEN %s THEN now() END"
                " WHERE id = %s RETURNING state",
                now,
                now in closed,
                order,
            )
            if now in MOVES[was]:
                assert await move == [{"state": now}]
            else:
                with pytest.raises(psycopg.errors.CheckViolation, match=f"from {was} to {now}"):
                    await move


async def test_an_order_with_nothing_to_pay_is_refunded_without_money(
    shop: Shop, refunds: Refunds, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    product = await shop.product(list_fen=2_000, stock=3)
    offer = await shop.open(show, product)
    goods = await shop.rule(off_fen=1_600, stack_group="goods", stacks_with=("freight",))
    freight = await shop.rule(kind="freight", stack_group="freight", stacks_with=("goods",))
    for whole in (True, False):
        coupons = [(await shop.grant(buyer, rule)).id for rule in (goods, freight)]
        await shop.give_points(buyer, 200)
        before = (await shop.balance(buyer)).active
        placed = await shop.buy(buyer, show, (offer, 1), coupons=coupons, points=200)
        assert (placed.total_fen, placed.state) == (200, "placed")
        async with shop.tx() as t:
            await shop.orders.cancel(t, buyer, placed.order)
        assert (await shop.balance(buyer)).active == before
        free = await shop.rule(off_fen=2_000, stack_group="goods", stacks_with=("freight",))
        coupons = [(await shop.grant(buyer, free)).id, coupons[1]]
        placed = await shop.buy(buyer, show, (offer, 1), coupons=coupons)
        assert (placed.total_fen, placed.state) == (0, "paid")
        with pytest.raises(Forbidden):  # one's own, though it cost nothing
            async with shop.tx() as t:
                await shop.payments.refund(t, buyer, placed.order)
        with pytest.raises(AlreadyRefunded):  # there is no money of it to give
            async with shop.tx() as t:
                await refunds.give(t, OPERATOR, placed.order, 1, "sorry")
        if whole:
            async with shop.tx() as t:
                assert (await shop.payments.refund(t, OPERATOR, placed.order)).state == "refunded"
        else:
            done = await back(shop, refunds, placed.order, {1: 1}, "all")
            assert (done.money_fen, done.whole) == (0, True)
            assert await back(shop, refunds, placed.order, {1: 1}, "all") == msgspec.structs.replace(
                done, again=True
            )
        with pytest.raises(AlreadyRefunded):
            async with shop.tx() as t:
                await shop.payments.refund(t, OPERATOR, placed.order)
        with pytest.raises(AlreadyRefunded):
            await back(shop, refunds, placed.order, None, "more")
        states = await shop.rows("SELECT state FROM coupons WHERE id = ANY(%s::uuid[])", coupons)
        assert [row["state"] for row in states] == ["free", "free"]
        await shop.rows("UPDATE coupons SET state = 'void' WHERE state = 'free' RETURNING id")
    assert await shop.rows("SELECT * FROM payments") == []
    assert await shop.rows("SELECT * FROM payment_returns") == []
    assert await shop.stock(product) == 1
