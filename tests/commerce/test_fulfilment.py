"""Fulfilment: the table for the warehouse, and parcels told once or many times."""

from __future__ import annotations

import asyncio
import csv
import io
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commerce.after_sales import AfterSales, CaseInput, CaseLineInput
from commerce.benefit_terms import Benefit
from commerce.fulfilment import COLUMNS, Fulfilment, ParcelOutcome, ParcelRow, safe_cell
from commerce.orders import Placed
from commerce.refunds import Refunds
from commerce.stock import Stock
from membership.actor import Actor, OrderId, ShowId, new_id
from membership.addresses import AddressInput
from membership.audience import PLAN_MEMBERS
from membership.refusal import BadRequest, Forbidden
from tests.commerce.shop_stage import HOST, OPERATOR, Shop
from tests.commerce.test_grants import Evening
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


@pytest.fixture
def fulfilment(shop: Shop) -> Fulfilment:
    return Fulfilment(shop.orders)


async def bought(shop: Shop, show: ShowId, *, pay: bool = True, **product: Any) -> tuple[Actor, Placed]:
    buyer = await shop.buyer()
    placed = await shop.buy(buyer, show, (await shop.open(show, await shop.product(**product)), 2))
    if pay:
        await shop.pay(placed.order, placed.total_fen)
    return buyer, placed


async def send(
    shop: Shop, fulfilment: Fulfilment, *rows: tuple[str, str], **more: Any
) -> tuple[ParcelOutcome, ...]:
    async with shop.tx() as t:
        return await fulfilment.take_in(
            t,
            OPERATOR,
            [ParcelRow(order=order, carrier="顺丰", tracking=number, **more) for order, number in rows],
        )


async def table(shop: Shop, fulfilment: Fulfilment, show: ShowId | None = None) -> list[dict[str, str]]:
    async with shop.tx() as t:
        found, more = await fulfilment.table(t.conn, OPERATOR, show)
    assert not more
    assert found.startswith(b"\xef\xbb\xbf")  # so that a spreadsheet reads it as UTF-8
    return list(csv.DictReader(io.StringIO(found.decode("utf-8-sig"), newline="")))


async def test_what_is_paid_and_not_sent_is_in_the_table_until_its_parcel_is_told(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    show, other = await make_show(), await make_show()
    buyer, placed = await bought(shop, show)
    await bought(shop, show, pay=False)
    _, elsewhere = await bought(shop, other)
    (row,) = await table(shop, fulfilment, show)
    assert tuple(row) == COLUMNS
    assert (row["order"], row["why"], row["quantity"]) == (placed.order, "order", "2")
    assert (row["province"], row["city"], row["district"]) == ("浙江省", "杭州市", "西湖区")
    assert row["phone"].startswith("'+86")
    assert {each["order"] for each in await table(shop, fulfilment)} == {placed.order, elsewhere.order}

    (outcome,) = await send(shop, fulfilment, (placed.order, "SF1"))
    assert (outcome.outcome, outcome.code) == ("sent", None)
    assert await table(shop, fulfilment, show) == []
    async with shop.tx() as t:
        order = await shop.orders.get(t.conn, buyer, placed.order)
    assert (order.state, order.fulfilled_at is not None) == ("fulfilled", True)
    assert [(parcel.carrier, parcel.tracking) for parcel in order.parcels] == [("顺丰", "SF1")]
    told = [note["state"] for note in await shop.notes(buyer) if note["type"] == "order.changed"]
    assert told == ["placed", "paid", "fulfilled"]


async def test_a_parcel_told_twice_is_one_and_a_second_parcel_is_another(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    _, placed = await bought(shop, await make_show())
    outcomes = await send(
        shop, fulfilment, (placed.order, "SF1"), (placed.order, " SF1 "), (placed.order, "SF2")
    )
    assert [each.outcome for each in outcomes] == ["sent", "again", "sent"]
    assert [each.outcome for each in await send(shop, fulfilment, (placed.order, "SF2"))] == ["again"]
    assert len(await shop.rows("SELECT id FROM parcels")) == 2
    back = await send(shop, fulfilment, (placed.order, "SF2"), (placed.order, "SF3"), returned=True)
    assert [(each.outcome, each.code) for each in back] == [("returned", None), ("refused", "not_found")]
    assert [each.outcome for each in await send(shop, fulfilment, (placed.order, "SF2"), returned=True)] == [
        "again"
    ]


async def test_a_bad_row_refuses_only_itself_with_its_name(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    show = await make_show()
    _, good = await bought(shop, show)
    _, unpaid = await bought(shop, show, pay=False)
    _, refunded = await bought(shop, show)
    async with shop.tx() as t:
        await shop.payments.refund(t, OPERATOR, refunded.order)
    outcomes = await send(
        shop,
        fulfilment,
        (unpaid.order, "1"),
        (new_id(), "2"),
        ("not an id", "3"),
        (refunded.order, "4"),
        (good.order, " \t"),
        (good.order, "6"),
    )
    assert [each.code for each in outcomes] == [
        "not_paid",
        "not_found",
        "not_found",
        "already_refunded",
        "bad_request",
        None,
    ]
    assert [row["tracking"] for row in await shop.rows("SELECT tracking FROM parcels")] == ["6"]


async def test_only_staff_with_the_right_to_members_send_and_read(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    buyer, placed = await bought(shop, await make_show())
    for actor in (buyer, HOST):
        async with shop.tx() as t:
            with pytest.raises(Forbidden):
                await fulfilment.table(t.conn, actor)
            with pytest.raises(Forbidden):
                await fulfilment.take_in(t, actor, [ParcelRow(order=placed.order, carrier="a", tracking="b")])
    async with shop.tx() as t:
        with pytest.raises(BadRequest):
            await fulfilment.take_in(t, OPERATOR, [])


@pytest.mark.rule("M52")
async def test_who_ordered_in_the_members_48_hours_is_sent_to_first(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    """Members order early, and are sent to first."""
    show, plan = await make_show(), await shop.plan()
    early = await shop.product(
        on_sale_at=datetime.now(UTC) + timedelta(hours=48),
        early_s=48 * 3_600 + 600,
        early_audience=PLAN_MEMBERS,
    )
    _, first = await bought(shop, show)
    member = await shop.buyer(plan.id)
    placed = await shop.buy(member, show, (await shop.open(show, early), 1))
    await shop.pay(placed.order, placed.total_fen)
    rows = await table(shop, fulfilment, show)
    assert [(row["order"], row["priority"]) for row in rows] == [(placed.order, "yes"), (first.order, "")]
    async with shop.tx() as t:
        assert (await shop.orders.get(t.conn, member, placed.order)).priority


async def test_pieces_whose_money_went_back_are_not_sent(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    show = await make_show()
    _, placed = await bought(shop, show)
    refunds = Refunds(shop.payments, shop.orders, shop.points, Stock())
    async with shop.tx() as t:
        await refunds.lines(t, OPERATOR, placed.order, {1: 1}, "case")
    assert [row["quantity"] for row in await table(shop, fulfilment, show)] == ["1"]


async def sent_again(shop: Shop, fulfilment: Fulfilment, buyer: Actor, order: OrderId) -> tuple[Refunds, str]:
    """The order's parcel was lost: a case about both pieces, to be sent again."""
    refunds = Refunds(shop.payments, shop.orders, shop.points, Stock())
    after_sales = AfterSales(shop.orders, refunds, shop.notices)
    await send(shop, fulfilment, (order, "SF1"))
    async with shop.tx() as t:
        case = await after_sales.open(t, buyer, order, CaseInput(kind="missing", reason="没收到"))
        await after_sales.decide(t, OPERATOR, case.id, "resend", "再寄")
    return refunds, case.id


async def test_what_is_to_be_sent_again_is_not_sent_once_its_order_is_refunded(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    buyer, placed = await bought(shop, await make_show())
    _, case = await sent_again(shop, fulfilment, buyer, placed.order)
    assert [row["why"] for row in await table(shop, fulfilment)] == ["resend"]
    async with shop.tx() as t:
        await shop.payments.refund(t, OPERATOR, placed.order)
    assert await table(shop, fulfilment) == []
    assert (await send(shop, fulfilment, (placed.order, "SF2"), case=case))[0].code == "already_refunded"
    assert len(await shop.rows("SELECT id FROM parcels")) == 1


async def test_only_pieces_that_are_left_are_sent_again(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offers = [await shop.open(show, await shop.product()) for _ in range(2)]
    placed = await shop.buy(buyer, show, *[(offer, 2) for offer in offers])
    await shop.pay(placed.order, placed.total_fen)
    refunds, case = await sent_again(shop, fulfilment, buyer, placed.order)
    async with shop.tx() as t:
        await refunds.lines(t, OPERATOR, placed.order, {1: 1, 2: 2}, "by hand")
    assert [row["quantity"] for row in await table(shop, fulfilment)] == ["1"]
    assert (await send(shop, fulfilment, (placed.order, "SF2"), case=case))[0].outcome == "sent"


async def test_a_case_of_which_no_piece_is_left_has_no_parcel_in_an_order_that_goes_on(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offers = [await shop.open(show, await shop.product()) for _ in range(2)]
    placed = await shop.buy(buyer, show, *[(offer, 1) for offer in offers])
    await shop.pay(placed.order, placed.total_fen)
    refunds = Refunds(shop.payments, shop.orders, shop.points, Stock())
    after_sales = AfterSales(shop.orders, refunds, shop.notices)
    asked = CaseInput(kind="missing", reason="少一件", lines=[CaseLineInput(position=1, quantity=1)])
    async with shop.tx() as t:
        case = await after_sales.open(t, buyer, placed.order, asked)
        await after_sales.decide(t, OPERATOR, case.id, "resend", "再寄")
        await refunds.lines(t, OPERATOR, placed.order, {1: 1}, "by hand")
    assert [row["why"] for row in await table(shop, fulfilment)] == ["order"]
    (outcome,) = await send(shop, fulfilment, (placed.order, "SF2"), case=case.id)
    assert outcome.code == "already_refunded"
    assert (await send(shop, fulfilment, (placed.order, "SF3")))[0].outcome == "sent"


async def test_the_gift_of_joining_is_to_be_sent_until_its_parcel_is_told(
    shop: Shop, fulfilment: Fulfilment
) -> None:
    plan, buyer = await shop.plan(gift_text="厨房三件套", gift_value_fen=5_900), await shop.buyer()
    joined = await shop.join(buyer, plan.id)
    await shop.pay(joined.order, joined.total_fen)
    (row,) = await table(shop, fulfilment)
    assert (row["order"], row["why"], row["name"], row["city"]) == (
        joined.order,
        "gift",
        "厨房三件套",
        "杭州市",
    )
    assert (await send(shop, fulfilment, (joined.order, "SF1")))[0].outcome == "sent"
    assert await table(shop, fulfilment) == []
    assert await shop.rows("SELECT state FROM orders") == [{"state": "paid"}]


async def send_won(
    shop: Shop, fulfilment: Fulfilment, *claims: str, tracking: str = "SF1", **more: Any
) -> list[tuple[str, str | None]]:
    rows = [ParcelRow(claim=claim, carrier="顺丰", tracking=tracking, **more) for claim in claims]
    async with shop.tx() as t:
        outcomes = await fulfilment.take_in(t, OPERATOR, rows)
    assert [each.claim for each in outcomes] == list(claims)
    return [(each.outcome, each.code) for each in outcomes]


async def won_gift(shop: Shop, show: ShowId, **terms: Any) -> tuple[Evening, Benefit, Actor, str]:
    evening, buyer = Evening(shop, show), await shop.buyer()
    benefit = await evening.open(title="试吃装", **terms)
    return evening, benefit, buyer, await evening.won(benefit, buyer)


async def test_a_gift_that_was_won_is_to_be_sent_until_its_parcel_is_told(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    show = await make_show()
    evening, _, buyer, claim = await won_gift(shop, show)
    points = await evening.open(what="points", points=200)
    await evening.won(points, buyer, "k2")
    assert await table(shop, fulfilment, await make_show()) == []
    for _ in range(2):  # the newest address is the one
        (row,) = await table(shop, fulfilment, show)
        assert tuple(row)[-1] == "claim"
        assert [row[name] for name in ("order", "why", "name", "quantity", "claim")] == [
            "", "claim", "试吃装", "1", claim,
        ]  # fmt: skip
        assert row["city"] in ("杭州市", "宁波市")
        async with shop.tx() as t:
            assert buyer.member is not None
            await shop.addresses.add(
                t, buyer.member, AddressInput("王小明", "13700000000", "浙江省 宁波市 海曙区", "中山路 1 号")
            )
    assert row["city"] == "宁波市"

    told = {"order": row["order"], "claim": row["claim"], "carrier": " 顺丰", "tracking": "SF1"}
    async with shop.tx() as t:
        (outcome,) = await fulfilment.take_in(t, OPERATOR, [ParcelRow(**told)])
    assert (outcome.outcome, outcome.claim) == ("sent", claim)
    assert await table(shop, fulfilment) == []
    assert await send_won(shop, fulfilment, claim) == [("again", None)]
    assert await send_won(shop, fulfilment, claim, tracking="SF2") == [("refused", "bad_request")]
    assert await send_won(shop, fulfilment, claim, tracking="SF2", returned=True) == [
        ("refused", "not_found")
    ]
    assert await send_won(shop, fulfilment, claim, claim, returned=True) == [
        ("returned", None),
        ("again", None),
    ]
    async with shop.tx() as t:
        mine = await evening.benefits.claims_of(t.conn, buyer.member)
    assert [(one.parcel is None, one.what) for one in mine] == [(True, "points"), (False, "gift")]
    assert mine[1].parcel is not None
    assert (mine[1].parcel.carrier, mine[1].parcel.tracking) == ("顺丰", "SF1")
    assert mine[1].parcel.returned_at is not None
    acts = await shop.rows("SELECT act FROM audit_log WHERE subject = %s ORDER BY id", f"claim:{claim}")
    assert [row["act"] for row in acts] == ["parcel.send", "parcel.return"]


async def test_a_gift_that_an_order_earned_goes_where_the_order_goes_and_not_once_that_is_refunded(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    show = await make_show()
    evening, buyer = Evening(shop, show), await shop.buyer()
    benefit = await evening.open(needs="order", per_person=2)
    offer = await shop.open(show, await shop.product())
    orders, claims = [], []
    for number in range(2):
        orders.append(await evening.paid_order(buyer, offer))
        claims.append(await evening.won(benefit, buyer, f"k{number}"))
    async with shop.tx() as t:
        assert buyer.member is not None
        await shop.addresses.add(
            t, buyer.member, AddressInput("王小明", "13700000000", "浙江省 宁波市 海曙区", "中山路 1 号")
        )
    rows = [row for row in await table(shop, fulfilment, show) if row["why"] == "claim"]
    assert [(row["order"], row["claim"], row["city"]) for row in rows] == [
        ("", claim, "杭州市") for claim in claims
    ]
    async with shop.tx() as t:
        await evening.refunds.lines(t, OPERATOR, orders[0], None, "case")
    assert [row["claim"] for row in await table(shop, fulfilment) if row["why"] == "claim"] == [claims[1]]
    assert await send_won(shop, fulfilment, *claims) == [("refused", "already_refunded"), ("sent", None)]
    states = await shop.rows("SELECT state FROM orders ORDER BY id")
    assert [row["state"] for row in states] == ["refunded", "paid"]  # the gift's parcel is not the order's
    async with shop.tx() as t:
        await evening.refunds.lines(t, OPERATOR, orders[1], None, "case")
    assert await send_won(shop, fulfilment, claims[1], returned=True) == [("returned", None)]


async def test_what_no_claim_won_is_not_sent_by_one(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    show = await make_show()
    evening, _, buyer, claim = await won_gift(shop, show)
    points = await evening.won(await evening.open(what="points", points=200), buyer, "k2")
    plan = await shop.plan()
    await evening.open(title="入会礼", needs="join")
    joined = await shop.join(buyer, plan.id, show)
    await shop.pay(joined.order, joined.total_fen)
    [joining] = await shop.rows("SELECT id::text AS id FROM benefit_claims WHERE payment_id IS NOT NULL")
    assert [row["why"] for row in await table(shop, fulfilment)] == ["claim", "gift"]
    async with shop.tx() as t:
        await shop.grants.settle(t, [claim], "recalled")
    assert [row["why"] for row in await table(shop, fulfilment)] == ["gift"]
    refused = await send_won(shop, fulfilment, claim, points, joining["id"], new_id(), "not an id")
    assert refused == [
        ("refused", code)
        for code in ("already_refunded", "bad_request", "bad_request", "not_found", "not_found")
    ]
    for more in ({"order": joined.order}, {"case": new_id()}, {"gift": new_id()}):
        assert await send_won(shop, fulfilment, claim, **more) == [("refused", "bad_request")]
    assert (await send(shop, fulfilment, (OrderId(""), "SF1")))[0].code == "not_found"
    assert await shop.rows("SELECT id FROM parcels") == []


async def test_two_warehouses_that_tell_of_the_same_gifts_at_once_send_each_once(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    evening = Evening(shop, await make_show())
    benefit = await evening.open(quota=6)
    claims = [await evening.won(benefit, await shop.buyer()) for _ in range(6)]
    one, other = await asyncio.gather(
        send_won(shop, fulfilment, *claims, tracking="SF1"),
        send_won(shop, fulfilment, *reversed(claims), tracking="SF2"),
    )
    assert [sorted(pair) for pair in zip(one, reversed(other), strict=True)] == [
        [("refused", "bad_request"), ("sent", None)]
    ] * len(claims)
    assert len(await shop.rows("SELECT id FROM parcels")) == len(claims)


async def waits_for_a_row(shop: Shop) -> None:
    async with asyncio.timeout(30):
        while not await shop.rows(
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.01)


async def test_a_parcel_told_while_its_gift_is_recalled_waits_and_is_refused(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    evening, _, _, claim = await won_gift(shop, await make_show())
    async with shop.tx() as t:
        await shop.grants.settle(t, [claim], "recalled")
        sending = asyncio.create_task(send_won(shop, fulfilment, claim))
        await waits_for_a_row(shop)
    assert await sending == [("refused", "already_refunded")]
    assert await evening.state_of(claim) == "recalled"


FORMULAS = ["=1+1", "+8613800000000", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1"]


@pytest.mark.parametrize("text", FORMULAS)
async def test_a_name_that_a_spreadsheet_takes_for_a_formula_is_kept_as_text(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment, text: str
) -> None:
    show = await make_show()
    await bought(shop, show, name=text)
    (row,) = await table(shop, fulfilment, show)
    assert row["name"] == f"'{text}"


@given(st.text(max_size=40))
def test_no_cell_begins_like_a_formula(text: str) -> None:
    assert not safe_cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert safe_cell(text).removeprefix("'") == text.removeprefix("'")


def test_nothing_is_an_empty_cell() -> None:
    assert [safe_cell(value) for value in (None, "", 3, OrderId("x"))] == ["", "", "3", "x"]


async def test_money_that_comes_a_second_time_for_an_order_already_sent_goes_back(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    buyer, placed = await bought(shop, await make_show())
    await send(shop, fulfilment, (placed.order, "SF1"))
    assert (await shop.pay(placed.order, placed.total_fen)).reason == "second_payment"
    async with shop.tx() as t:
        assert (await shop.orders.get(t.conn, buyer, placed.order)).state == "fulfilled"
        assert (await shop.payments.refund(t, OPERATOR, placed.order)).state == "refunded"
    assert (await send(shop, fulfilment, (placed.order, "SF2")))[0].code == "already_refunded"


async def test_a_refund_and_a_parcel_at_once_agree(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    """Whoever comes first: nothing is sent after its money went back, and no parcel is lost."""
    show = await make_show()
    refunds = Refunds(shop.payments, shop.orders, shop.points, Stock())
    orders = [(await bought(shop, show))[1].order for _ in range(6)]

    async def give_back(order: OrderId) -> None:
        async with shop.tx() as t:
            await refunds.lines(t, OPERATOR, order, None, "case")

    ends = await asyncio.gather(
        *[give_back(order) for order in orders], send(shop, fulfilment, *[(order, "SF1") for order in orders])
    )
    outcomes = {each.order: each.outcome for each in ends[-1]}  # type: ignore[union-attr]
    assert await shop.rows("SELECT DISTINCT state FROM orders") == [{"state": "refunded"}]
    sent = {str(row["order_id"]) for row in await shop.rows("SELECT order_id FROM parcels")}
    assert sent == {order for order, outcome in outcomes.items() if outcome == "sent"}


async def test_a_table_holds_whole_orders_and_says_when_there_are_more(
    shop: Shop, make_show: MakeShow, fulfilment: Fulfilment
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offers = [await shop.open(show, await shop.product()) for _ in range(2)]
    orders = []
    for _ in range(2):
        placed = await shop.buy(buyer, show, *[(offer, 1) for offer in offers])
        await shop.pay(placed.order, placed.total_fen)
        orders.append(placed.order)
    for rows_max, whole, expected in ((4, False, 4), (3, True, 2), (2, True, 2), (1, True, 0)):
        async with shop.tx() as t:
            found, more = await fulfilment.table(t.conn, OPERATOR, show, rows_max=rows_max)
        lines = found.decode().splitlines()[1:]
        assert (more, len(lines)) == (whole, expected)
        assert all(line.startswith(orders[0]) for line in lines[:2])
