"""Freight: by region, covered or not, free for a plan that says so, with a promised date that is kept."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from commerce.freight import FreightRow, NotCovered, checked_rows
from commerce.messages import LineInput
from commerce.prices import PriceChanged
from commerce.quotes import Quote
from membership.actor import Actor, AddressId, ShowId
from membership.addresses import AddressInput, region_parts
from membership.refusal import BadRequest, Forbidden
from tests.commerce.shop_stage import HOST, OPERATOR, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio

REST = FreightRow(flat_fen=800, free_from_fen=9_900, days_min=2, days_max=4)
XINJIANG = FreightRow(region="新疆", flat_fen=2_000, days_min=5, days_max=9)
HANGZHOU = FreightRow(region="浙江省杭州", flat_fen=500, free_from_fen=4_900, days_min=1, days_max=1)
ISLANDS = FreightRow(region="上海市崇明", covered=False)
SHOP_ZONE = ZoneInfo("Asia/Shanghai")


async def put(shop: Shop, *rows: FreightRow) -> None:
    async with shop.tx() as t:
        await shop.quotes.freight.set(t, OPERATOR, rows)


async def home(shop: Shop, buyer: Actor, region: str) -> AddressId:
    """A further address of the buyer; orders of the stage are sent there from now on."""
    assert buyer.member is not None
    async with shop.tx() as t:
        made = await shop.addresses.add(
            t, buyer.member, AddressInput("王小明", "13800000001", region, "一号")
        )
    shop._homes[buyer.member] = made.id
    return made.id


async def quoted(shop: Shop, buyer: Actor, show: ShowId, list_fen: int, region: str | None) -> Quote:
    offer = await shop.open(show, await shop.product(list_fen=list_fen))
    async with shop.tx() as t:
        return await shop.quotes.quote(t.conn, buyer, show, [LineInput(offer.id, 1)], region=region)


def today() -> date:
    return datetime.now(SHOP_ZONE).date()


async def test_the_longest_beginning_of_a_region_counts_and_the_rest_is_the_row_without_a_name(
    shop: Shop,
) -> None:
    await put(shop, REST, XINJIANG, HANGZHOU, ISLANDS)
    async with shop.tx() as t:
        found = [
            await shop.quotes.freight.row(t.conn, region)
            for region in (
                "浙江省 杭州市 西湖区",
                "浙江省/宁波市",
                "新疆维吾尔自治区乌鲁木齐市",
                "上海市 崇明区",
                "上海市",
                "",
                None,
            )
        ]
    assert [row.region for row in found] == ["浙江省杭州", "", "新疆", "上海市崇明", "", "", ""]


async def test_without_a_template_the_flat_amount_counts_everywhere_and_no_date_is_promised(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    quote = await quoted(shop, await shop.buyer(), show, 5_000, "西藏")
    assert (quote.freight_fen, quote.promised_from) == (800, None)


async def test_a_quote_with_an_address_says_freight_and_date_of_its_region_and_the_order_keeps_them(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    await put(shop, REST, XINJIANG)
    await home(shop, buyer, "新疆 喀什")
    quote = await quoted(shop, buyer, show, 12_000, "新疆 喀什")
    day = today()
    assert quote.freight_fen == 2_000  # free by the sum nowhere in this row
    assert (quote.promised_from, quote.promised_until) in (
        (day + timedelta(5), day + timedelta(9)),
        (day + timedelta(4), day + timedelta(8)),  # midnight passed between
    )
    await put(shop, REST, FreightRow(region="新疆", flat_fen=9_000, days_min=20, days_max=30))
    placed = await shop.place(buyer, show, quote)
    async with shop.tx() as t:
        order = await shop.orders.get(t.conn, buyer, placed.order)
    assert (order.freight_fen, order.total_fen) == (2_000, 14_000)
    assert (order.promised_from, order.promised_until) == (quote.promised_from, quote.promised_until)


async def test_where_we_do_not_send_neither_quote_nor_order_is_given(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    await put(shop, REST, ISLANDS)
    with pytest.raises(NotCovered):
        await quoted(shop, buyer, show, 5_000, "上海市 崇明区")
    quote = await quoted(shop, buyer, show, 5_000, None)
    await home(shop, buyer, "上海市崇明区")
    with pytest.raises(NotCovered):
        await shop.place(buyer, show, quote)
    assert await shop.rows("SELECT id FROM orders") == []


async def test_an_order_to_a_dearer_region_than_quoted_asks_for_a_new_quote(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    await put(shop, REST, XINJIANG, HANGZHOU)
    quote = await quoted(shop, buyer, show, 5_000, None)
    assert quote.freight_fen == 800
    await home(shop, buyer, "新疆")
    with pytest.raises(PriceChanged):
        await shop.place(buyer, show, quote)
    await home(shop, buyer, "浙江省杭州市")  # cheaper: now's freight
    assert (await shop.place(buyer, show, quote)).total_fen == 5_000


@pytest.mark.rule("semantics 3.4a", "M14")
async def test_a_plan_that_says_so_sends_for_nothing_and_the_quote_holds_when_it_lapses(
    shop: Shop, make_show: MakeShow
) -> None:
    """An open quote is honoured when a plan lapses under it."""
    show, plan = await make_show(), await shop.plan()
    await put(shop, REST, XINJIANG)
    buyer = await shop.buyer(plan.id)
    await home(shop, buyer, "新疆")
    quote = await quoted(shop, buyer, show, 5_000, "新疆")
    dear = await quoted(shop, buyer, show, 5_000, None)
    assert (quote.freight_fen, dear.freight_fen) == (0, 0)
    await shop.rows("UPDATE plan_terms SET ended_at = now(), end_reason = 'converted' RETURNING id")
    lapsed = await shop.again(buyer)
    assert not lapsed.facts.plans
    assert (await shop.place(lapsed, show, quote)).total_fen == 5_000
    assert (await shop.place(lapsed, show, dear)).total_fen == 5_000


async def test_only_the_catalogue_sets_a_template_and_a_bad_one_changes_nothing(shop: Shop) -> None:
    await put(shop, REST)
    for rows in (
        [XINJIANG],  # nothing for the rest
        [REST, REST],
        [REST, FreightRow(region="新 疆"), XINJIANG],
        [FreightRow(days_min=3)],
        [FreightRow(days_min=3, days_max=2)],
        [REST] * 401,
    ):
        with pytest.raises(BadRequest):
            checked_rows(rows)
        async with shop.tx() as t:
            with pytest.raises(BadRequest):
                await shop.quotes.freight.set(t, OPERATOR, rows)
    async with shop.tx() as t:
        with pytest.raises(Forbidden):
            await shop.quotes.freight.set(t, HOST, [REST])
        assert await shop.quotes.freight.rows(t.conn) == (REST,)
    await put(shop)
    async with shop.tx() as t:
        assert [row.days_min for row in await shop.quotes.freight.rows(t.conn)] == [None]


@pytest.mark.parametrize(
    ("region", "parts"),
    [
        ("浙江省 杭州市 西湖区", ("浙江省", "杭州市", "西湖区")),
        ("浙江省杭州市西湖区", ("浙江省", "杭州市", "西湖区")),
        ("北京市朝阳区", ("北京市", "北京市", "朝阳区")),
        ("内蒙古自治区/呼和浩特市/赛罕区", ("内蒙古自治区", "呼和浩特市", "赛罕区")),
        ("吉林省延边朝鲜族自治州延吉", ("吉林省", "延边朝鲜族自治州", "延吉")),
        ("somewhere", ("", "", "somewhere")),
        ("", ("", "", "")),
    ],
)
def test_a_region_is_told_apart_into_province_city_and_district(
    region: str, parts: tuple[str, str, str]
) -> None:
    assert region_parts(region) == parts
