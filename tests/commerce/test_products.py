"""Products: what staff may write, and what each person may know of."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from commerce.products import NoSuchProduct, ProductInput, ProductPatch, SkuTaken, seen_by
from membership.actor import NOBODY, Facts, PlanId, ProductId, new_id
from membership.audience import EVERYONE, PLAN_MEMBERS, Audience
from membership.page import BadCursor
from membership.refusal import BadRequest, Forbidden, NotFound
from tests.commerce.shop_stage import HOST, OPERATOR, Shop

pytestmark = pytest.mark.anyio

MEMBER = Facts(registered=True, plans=frozenset({PlanId(new_id())}))


async def test_a_product_is_kept_as_it_was_described(shop: Shop) -> None:
    given: dict[str, Any] = {
        "sku": "rice-5kg",
        "short": "五常大米",
        "unit": "袋",
        "image": "/static/demo/rice.webp",
        "member_fen": 10_900,
        "audience": Audience(kind="registered"),
        "no_behaviour_tags": True,
        "tag_name": "有机大米",
        "gift_text": "杂粮 5 包",
        "gift_value_fen": 1_500,
        "on_sale_at": datetime(2026, 12, 1, tzinfo=UTC),
        "early_s": 3600,
    }
    made = await shop.product(**given)
    async with shop.tx() as t:
        found = await shop.products.get(t.conn, made.id)
    assert found == made
    assert {name: getattr(found, name) for name in given} == given


@pytest.mark.parametrize(
    "values",
    [
        {"list_fen": 0},
        {"list_fen": -1},
        {"list_fen": 1.5},
        {"list_fen": 10**12},
        {"stock": -1},
        {"name": ""},
        {"name": "大" * 61},
        {"stock_mode": "on_hand"},
        {"price": 1},
        {"image": "javascript:alert(1)"},
        {"image": "//elsewhere.test/a.png"},
        {"image": "data:text/html,x"},
        {"audience": {"kind": "friends"}},
    ],
)
async def test_a_malformed_product_is_none(values: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"sku": "a", "name": "a", "list_fen": 1, "stock": 1, **values}, ProductInput)


@pytest.mark.parametrize(
    "values",
    [
        {"list_fen": 100, "member_fen": 101},
        {"early_s": 60},
        {"gift_value_fen": 1},
        {"on_sale_at": datetime(2026, 12, 1)},  # noqa: DTZ001 - a time without its offset is the point
    ],
)
async def test_a_product_that_contradicts_itself_is_refused(shop: Shop, values: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        await shop.product(**values)


async def test_a_sku_is_taken_once(shop: Shop) -> None:
    await shop.product(sku="rice")
    with pytest.raises(SkuTaken):
        await shop.product(sku="rice")


async def test_only_who_may_write_the_catalogue_does(shop: Shop) -> None:
    rice = await shop.product()
    async with shop.tx() as t:
        with pytest.raises(Forbidden):
            await shop.products.create(t, HOST, ProductInput(sku="x", name="x", list_fen=1, stock=1))
        with pytest.raises(Forbidden):
            await shop.products.update(t, HOST, rice.id, ProductPatch(list_fen=1))
        with pytest.raises(Forbidden):
            await shop.products.set_price(t, HOST, rice.id, 1, EVERYONE, datetime.now(UTC))
        with pytest.raises(Forbidden):
            await shop.products.end_price(t, HOST, new_id())


async def test_a_patch_changes_what_it_names(shop: Shop) -> None:
    rice = await shop.product(member_fen=10_900, stock=10)
    async with shop.tx() as t:
        changed = await shop.products.update(
            t, OPERATOR, rice.id, ProductPatch(name="新米", member_fen=None, audience=PLAN_MEMBERS)
        )
    assert changed == msgspec.structs.replace(rice, name="新米", member_fen=None, audience=PLAN_MEMBERS)


async def test_stock_changes_by_a_difference_and_never_below_nothing(shop: Shop) -> None:
    rice = await shop.product(stock=10)
    async with shop.tx() as t:
        assert (await shop.products.update(t, OPERATOR, rice.id, ProductPatch(stock_change=5))).stock == 15
    async with shop.tx() as t:
        with pytest.raises(BadRequest):
            await shop.products.update(t, OPERATOR, rice.id, ProductPatch(stock_change=-16))
        assert (await shop.products.update(t, OPERATOR, rice.id, ProductPatch(stock_change=-15))).stock == 0


@pytest.mark.parametrize("patch", [{"list_fen": 10_000}, {"gift_text": None}])
async def test_a_patch_that_breaks_a_rule_changes_nothing(shop: Shop, patch: dict[str, Any]) -> None:
    rice = await shop.product(list_fen=12_800, member_fen=10_900, gift_text="杂粮", gift_value_fen=100)
    async with shop.tx() as t:
        with pytest.raises(BadRequest):
            await shop.products.update(t, OPERATOR, rice.id, ProductPatch(**patch))
        assert await shop.products.get(t.conn, rice.id) == rice


async def test_an_id_that_is_none_is_not_found(shop: Shop) -> None:
    async with shop.tx() as t:
        for text in ("", "x", new_id(), "' OR 1=1 --"):
            with pytest.raises(NoSuchProduct):
                await shop.products.get(t.conn, ProductId(text))
            with pytest.raises(NoSuchProduct):
                await shop.products.update(t, OPERATOR, ProductId(text), ProductPatch(name="x"))
            with pytest.raises(NotFound):
                await shop.products.end_price(t, OPERATOR, text)


@pytest.mark.rule("L8")
async def test_a_first_release_is_in_no_list_search_or_count_of_a_guest(shop: Shop) -> None:
    shown = await shop.product(name="有机大米")
    hidden = await shop.product(name="有机新品", audience=PLAN_MEMBERS)
    off = await shop.product(name="有机旧品", status="off")
    async with shop.tx() as t:
        of_guest = await shop.products.list(t.conn, NOBODY, search="有机")
        of_member = await shop.products.list(t.conn, MEMBER, search="有机")
        of_staff = await shop.products.list(t.conn, search="有机")
        with pytest.raises(NoSuchProduct):
            await shop.products.get(t.conn, hidden.id, NOBODY)
        assert await shop.products.get(t.conn, hidden.id, MEMBER) == hidden
    assert [each.id for each in of_guest.items] == [shown.id]
    assert [each.id for each in of_member.items] == [shown.id, hidden.id]
    assert [each.id for each in of_staff.items] == [shown.id, hidden.id, off.id]


async def test_pages_of_a_list_are_whole_though_some_rows_are_hidden(shop: Shop) -> None:
    kept = []
    for n in range(9):
        made = await shop.product(audience=PLAN_MEMBERS if n % 3 else EVERYONE)
        if n % 3 == 0:
            kept.append(made.id)
    found: list[ProductId] = []
    cursor = None
    async with shop.tx() as t:
        for size in (2, 1):
            page = await shop.products.list(t.conn, NOBODY, cursor=cursor, limit=2)
            assert len(page.items) == size
            found += [each.id for each in page.items]
            cursor = page.next
        assert cursor is None
        with pytest.raises(BadCursor):
            await shop.products.list(t.conn, cursor="nonsense")
    assert found == kept


async def test_a_search_is_text_and_no_pattern(shop: Shop) -> None:
    await shop.product(name="100% 燕麦")
    await shop.product(name="燕麦")
    async with shop.tx() as t:
        assert len((await shop.products.list(t.conn, search="%")).items) == 1
        assert len((await shop.products.list(t.conn, search="_")).items) == 0


@pytest.mark.rule("M42")
async def test_the_public_face_has_no_stock_and_hides_a_hidden_member_price(shop: Shop) -> None:
    rice = await shop.product(member_fen=10_900, member_price_audience=PLAN_MEMBERS)
    of_guest, of_member = seen_by(rice, NOBODY), seen_by(rice, MEMBER)
    assert of_guest is not None
    assert of_member is not None
    assert of_guest.member_fen is None
    assert of_member.member_fen == 10_900
    encoded = msgspec.json.encode(of_guest)
    assert b"10900" not in encoded
    assert b"stock" not in encoded


@pytest.mark.rule("M14")
async def test_the_early_audience_comes_in_before_the_rest(shop: Shop) -> None:
    start = datetime(2026, 12, 1, 20, 0, tzinfo=UTC)
    rice = await shop.product(on_sale_at=start, early_s=48 * 3600)
    moments = [start - timedelta(hours=49), start - timedelta(hours=47), start]
    assert [rice.may_order(MEMBER, at) for at in moments] == [False, True, True]
    assert [rice.may_order(NOBODY, at) for at in moments] == [False, False, True]


@pytest.mark.rule("semantics 4.5c")
async def test_a_price_list_never_raises_a_price_and_keeps_its_order(shop: Shop) -> None:
    rice = await shop.product(list_fen=10_000)
    now = datetime.now(UTC)
    async with shop.tx() as t:
        for unit_fen in (0, -1, 10_001):
            with pytest.raises(BadRequest):
                await shop.products.set_price(t, OPERATOR, rice.id, unit_fen, EVERYONE, now)
        with pytest.raises(BadRequest):
            await shop.products.set_price(t, OPERATOR, rice.id, 9_000, EVERYONE, now, now)
        later = await shop.products.set_price(
            t, OPERATOR, rice.id, 9_000, EVERYONE, now + timedelta(hours=1), now + timedelta(hours=2)
        )
        assert await shop.products.prices(t.conn, [rice.id]) == {rice.id: (later,)}
        await shop.products.end_price(t, OPERATOR, later.id)
        assert await shop.products.prices(t.conn, [rice.id]) == {rice.id: ()}
