"""After-sales: a buyer asks with a reason and photos, staff settle it once, money never goes back twice."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import psycopg
import pytest

from commerce.after_sales import (
    CASE_MOVES,
    CASES_MAX,
    PHOTO_BYTES_MAX,
    AfterSales,
    Case,
    CaseClosed,
    CaseInput,
    CaseLineInput,
    CaseOpen,
    NoPicture,
    NoSuchCase,
    PhotoTooLarge,
    TooManyCases,
    TooManyPhotos,
    picture_media,
)
from commerce.fulfilment import Fulfilment, ParcelRow
from commerce.order_book import NoSuchOrder
from commerce.orders import NotPaid, Placed
from commerce.refund_lines import AlreadyRefunded
from commerce.refunds import Refunds
from commerce.stock import Stock
from membership.actor import Actor, OrderId, ShowId, new_id
from membership.refusal import BadRequest, Forbidden
from tests.commerce.shop_stage import HOST, OPERATOR, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio

JPEG = b"\xff\xd8\xff\xe0" + bytes(60)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(60)
WEBP = b"RIFF\x00\x00\x00\x00WEBP" + bytes(60)


@pytest.fixture
def refunds(shop: Shop) -> Refunds:
    return Refunds(shop.payments, shop.orders, shop.points, Stock())


@pytest.fixture
def after_sales(shop: Shop, refunds: Refunds) -> AfterSales:
    return AfterSales(shop.orders, refunds, shop.notices)


async def bought(
    shop: Shop, show: ShowId, *quantities: int, list_fen: int = 5_000
) -> tuple[Actor, Placed, list[Any]]:
    buyer = await shop.buyer()
    things = [await shop.product(list_fen=list_fen) for _ in quantities]
    offers = [await shop.open(show, thing) for thing in things]
    placed = await shop.buy(buyer, show, *zip(offers, quantities, strict=True))
    await shop.pay(placed.order, placed.total_fen)
    return buyer, placed, things


async def ask(
    shop: Shop,
    after_sales: AfterSales,
    buyer: Actor,
    order: OrderId,
    lines: dict[int, int] | None = None,
    **more: Any,
) -> Case:
    asked = None
    if lines is not None:
        asked = [CaseLineInput(position=position, quantity=pieces) for position, pieces in lines.items()]
    values: dict[str, Any] = {"kind": "damaged", "reason": "收到时袋子破了", **more}
    async with shop.tx() as t:
        return await after_sales.open(t, buyer, order, CaseInput(lines=asked, **values))


async def decide(shop: Shop, after_sales: AfterSales, case: str, act: Any, **more: Any) -> Case:
    async with shop.tx() as t:
        return await after_sales.decide(t, OPERATOR, case, act, "好的", **more)


async def returned(shop: Shop, order: OrderId) -> int:
    rows = await shop.rows(
        "SELECT coalesce(sum(r.amount_fen), 0)::bigint AS fen FROM payment_returns r"
        " JOIN payments p ON p.id = r.payment_id WHERE p.order_id = %s",
        order,
    )
    return int(rows[0]["fen"])


async def test_a_case_about_some_pieces_is_settled_by_a_refund_of_them_and_the_buyer_is_told(
    shop: Shop, make_show: MakeShow, after_sales: AfterSales
) -> None:
    buyer, placed, (thing, _) = await bought(shop, await make_show(), 2, 1)
    case = await ask(shop, after_sales, buyer, placed.order, {1: 1})
    assert (case.state, case.kind, [(each.position, each.quantity) for each in case.lines]) == (
        "open",
        "damaged",
        [(1, 1)],
    )
    async with shop.tx() as t:
        order = await shop.orders.get(t.conn, buyer, placed.order)
    assert [line.case for line in order.lines] == [case.id, None]
    settled = await decide(shop, after_sales, case.id, "refund", restock=True)
    assert (settled.state, settled.act, settled.amount_fen, settled.note) == (
        "settled",
        "refund",
        5_000,
        "好的",
    )
    assert await returned(shop, placed.order) == 5_000
    assert await shop.stock(thing) == 9  # two sold, one back on the shelf
    (note,) = [note for note in await shop.notes(buyer) if note["type"] == "case.changed"]
    assert note == {
        "type": "case.changed",
        "case": case.id,
        "order": placed.order,
        "state": "settled",
        "act": "refund",
    }
    acts = await shop.rows("SELECT act FROM audit_log ORDER BY id")
    assert [row["act"] for row in acts] == ["order.refund_part", "case.refund"]


async def test_a_case_about_everything_refunds_the_order(
    shop: Shop, make_show: MakeShow, after_sales: AfterSales
) -> None:
    buyer, placed, _ = await bought(shop, await make_show(), 1, 1)
    case = await ask(shop, after_sales, buyer, placed.order)
    await decide(shop, after_sales, case.id, "refund")
    async with shop.tx() as t:
        assert (await shop.orders.get(t.conn, buyer, placed.order)).state == "refunded"
    assert await returned(shop, placed.order) == placed.total_fen
    with pytest.raises(AlreadyRefunded):
        await ask(shop, after_sales, buyer, placed.order)


async def test_a_line_has_one_open_case_at_a_time(
    shop: Shop, make_show: MakeShow, after_sales: AfterSales
) -> None:
    buyer, placed, _ = await bought(shop, await make_show(), 2, 1)
    first = await ask(shop, after_sales, buyer, placed.order, {1: 1})
    with pytest.raises(CaseOpen) as refused:
        await ask(shop, after_sales, buyer, placed.order)
    assert refused.value.details == {"case": first.id}
    await ask(shop, after_sales, buyer, placed.order, {2: 1})
    async with shop.tx() as t:
        assert (await after_sales.withdraw(t, buyer, first.id)).state == "withdrawn"
        assert (await after_sales.withdraw(t, buyer, first.id)).state == "withdrawn"
    assert (await ask(shop, after_sales, buyer, placed.order, {1: 2})).state == "open"
    with pytest.raises(psycopg.errors.UniqueViolation):  # the table itself
        await shop.rows("UPDATE after_sales_lines SET is_open = true RETURNING case_id")


async def test_two_taps_at_once_open_one_case(
    shop: Shop, make_show: MakeShow, after_sales: AfterSales
) -> None:
    buyer, placed, _ = await bought(shop, await make_show(), 1)
    ends = await asyncio.gather(
        *[ask(shop, after_sales, buyer, placed.order) for _ in range(4)], return_exceptions=True
    )
    assert sorted(type(end).__name__ for end in ends) == ["Case", "CaseOpen", "CaseOpen", "CaseOpen"]


async def test_a_case_is_decided_once_by_whoever_comes_first(
    shop: Shop, make_show: MakeShow, after_sales: AfterSales
) -> None:
    buyer, placed, _ = await bought(shop, await make_show(), 1)
    case = await ask(shop, after_sales, buyer, placed.order)
    acts = ["refund", "refund", "decline", "resend"]
    ends = await asyncio.gather(
        *[decide(shop, after_sales, case.id, act) for act in acts], return_exceptions=True
    )
    assert sorted(type(end).__name__ for end in ends) == ["Case", "CaseClosed", "CaseClosed", "CaseClosed"]
    (settled,) = [end for end in ends if isinstance(end, Case)]
    expected = placed.total_fen if settled.act == "refund" else 0
    assert await returned(shop, placed.order) == expected
    async with shop.tx() as t:
        with pytest.raises(CaseClosed):
            await after_sales.withdraw(t, buyer, case.id)
        with pytest.raises(CaseClosed):
            await after_sales.add_photo(t, buyer, case.id, "image/png", PNG)


def test_a_case_moves_from_open_and_never_again() -> None:
    assert {was: set(ends) for was, ends in CASE_MOVES.items()} == {
        "open": {"settled", "declined", "withdrawn"},
        "settled": set(),
        "declined": set(),
        "withdrawn": set(),
    }


async def test_a_refund_by_hand_in_between_leaves_the_case_nothing_to_send(
    shop: Shop, make_show: MakeShow, after_sales: AfterSales, refunds: Refunds
) -> None:
    buyer, placed, _ = await bought(shop, await make_show(), 2, 1)
    case = await ask(shop, after_sales, buyer, placed.order, {1: 2})
    async with shop.tx() as t:
        await refunds.lines(t, OPERATOR, placed.order, {1: 1}, "by hand")
    for act in ("refund", "resend"):
        with pytest.raises(AlreadyRefunded):
            await decide(shop, after_sales, case.id, act)
    async with shop.tx() as t:
        assert (await after_sales.get(t.conn, buyer, case.id)).state == "open"
    assert await returned(shop, placed.order) == 5_000


async def test_a_sum_for_a_complaint_and_a_parcel_sent_again(
    shop: Shop, make_show: MakeShow, after_sales: AfterSales
) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show, 2, 1)
    case = await ask(shop, after_sales, buyer, placed.order, {1: 1})
    settled = await decide(shop, after_sales, case.id, "refund", amount_fen=800)
    assert (settled.amount_fen, await returned(shop, placed.order)) == (800, 800)

    fulfilment = Fulfilment(shop.orders)
    async with shop.tx() as t:
        await fulfilment.take_in(t, OPERATOR, [ParcelRow(order=placed.order, carrier="a", tracking="1")])
    missing = await ask(shop, after_sales, buyer, placed.order, {2: 1}, kind="missing")
    await decide(shop, after_sales, missing.id, "resend")
    async with shop.tx() as t:
        told = (await fulfilment.table(t.conn, OPERATOR, show))[0].decode()
    assert told.count("resend") == 1
    assert missing.id in told
    rows = [
        ParcelRow(order=placed.order, carrier="a", tracking="2", case=missing.id),
        ParcelRow(order=placed.order, carrier="a", tracking="3", case=missing.id),
        ParcelRow(order=placed.order, carrier="a", tracking="4", case=case.id),
        ParcelRow(order=placed.order, carrier="a", tracking="5", case=new_id()),
        ParcelRow(order=placed.order, carrier="a", tracking="6", case="no id"),
    ]
    async with shop.tx() as t:
        outcomes = await fulfilment.take_in(t, OPERATOR, rows)
    assert [each.code for each in outcomes] == [None, "bad_request", "bad_request", "not_found", "not_found"]
    async with shop.tx() as t:
        sent = await after_sales.get(t.conn, buyer, missing.id)
        assert "resend" not in (await fulfilment.table(t.conn, OPERATOR, show))[0].decode()
    assert sent.parcel is not None
    assert sent.parcel.tracking == "2"


async def test_what_does_not_fit_is_refused_by_name(
    shop: Shop, make_show: MakeShow, after_sales: AfterSales, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show, 2)
    other = await shop.buyer()
    for actor in (other, shop.guest(), OPERATOR):
        with pytest.raises(NoSuchOrder):
            await ask(shop, after_sales, actor, placed.order)
    bad: list[dict[str, Any]] = [{"lines": {2: 1}}, {"lines": {1: 3}}, {"reason": "  "}, {"reason": "a\0"}]
    for case_terms in bad:
        with pytest.raises(BadRequest):
            await ask(shop, after_sales, buyer, placed.order, **case_terms)
    twice = [CaseLineInput(position=1, quantity=1)] * 2
    async with shop.tx() as t:
        with pytest.raises(BadRequest):
            await after_sales.open(t, buyer, placed.order, CaseInput(kind="return", reason="x", lines=twice))
    unpaid = await shop.buy(buyer, show, (await shop.open(show, await shop.product()), 1))
    with pytest.raises(NotPaid):
        await ask(shop, after_sales, buyer, unpaid.order)
    joined = await shop.join(buyer, (await shop.plan()).id)
    await shop.pay(joined.order, joined.total_fen)
    with pytest.raises(BadRequest):
        await ask(shop, after_sales, buyer, joined.order)
    case = await ask(shop, after_sales, buyer, placed.order)
    wrong: list[dict[str, Any]] = [
        {"act": "decline", "amount_fen": 1},
        {"act": "resend", "restock": True},
        {"act": "refund", "amount_fen": 1, "restock": True},
    ]
    for decision in wrong:
        with pytest.raises(BadRequest):
            await decide(shop, after_sales, case.id, **decision)
    async with shop.tx() as t:
        for actor in (buyer, HOST):
            with pytest.raises(Forbidden):
                await after_sales.decide(t, actor, case.id, "refund", "x")
        with pytest.raises(Forbidden):
            await after_sales.all(t.conn, buyer)
        with pytest.raises(NoSuchCase):
            await after_sales.get(t.conn, other, case.id)
        with pytest.raises(NoSuchCase):
            await after_sales.withdraw(t, other, case.id)
        with pytest.raises(NoSuchCase):
            await after_sales.get(t.conn, OPERATOR, "no id")
    await decide(shop, after_sales, case.id, "decline")
    monkeypatch.setattr("commerce.after_sales.CASES_MAX", 1)
    with pytest.raises(TooManyCases):
        await ask(shop, after_sales, buyer, placed.order)
    assert CASES_MAX == 20
    assert await returned(shop, placed.order) == 0


async def test_cases_are_listed_for_their_owner_and_for_staff(
    shop: Shop, make_show: MakeShow, after_sales: AfterSales
) -> None:
    show = await make_show()
    buyer, placed, _ = await bought(shop, show, 1, 1, 1)
    assert buyer.member is not None
    cases = [await ask(shop, after_sales, buyer, placed.order, {n: 1}) for n in (1, 2, 3)]
    other, elsewhere, _ = await bought(shop, show, 1)
    await ask(shop, after_sales, other, elsewhere.order)
    await decide(shop, after_sales, cases[0].id, "decline")
    async with shop.tx() as t:
        own = await after_sales.of_member(t.conn, buyer.member, limit=2)
        rest = await after_sales.of_member(t.conn, buyer.member, own.next, 2)
        assert [each.id for each in (*own.items, *rest.items)] == [case.id for case in reversed(cases)]
        assert rest.next is None
        opened = await after_sales.all(t.conn, OPERATOR, state="open", order=placed.order)
        assert [each.id for each in opened.items] == [cases[1].id, cases[2].id]
        assert len((await after_sales.all(t.conn, OPERATOR)).items) == 4


# --- photos ---


async def test_photos_are_kept_for_the_buyer_and_staff_and_are_what_their_first_bytes_say(
    shop: Shop, make_show: MakeShow, after_sales: AfterSales
) -> None:
    buyer, placed, _ = await bought(shop, await make_show(), 1)
    case = await ask(shop, after_sales, buyer, placed.order)

    async def add(media: str, image: bytes, actor: Actor = buyer) -> Case:
        async with shop.tx() as t:
            return await after_sales.add_photo(t, actor, case.id, media, image)

    for media, image in (
        ("image/png", JPEG),
        ("image/svg+xml", b"<svg/>"),
        ("text/html", b"<script>"),
        ("image/png", b""),
        ("image/jpeg", b"GIF89a" + bytes(50)),
    ):
        with pytest.raises(NoPicture):
            await add(media, image)
    with pytest.raises(PhotoTooLarge):
        await add("image/png", PNG + bytes(PHOTO_BYTES_MAX))
    with pytest.raises(NoSuchCase):
        await add("image/png", PNG, await shop.buyer())
    for _ in range(2):  # the same twice is one
        found = await add("image/png", PNG)
    assert [photo.media for photo in found.photos] == ["image/png"]
    await add("image/jpeg", JPEG)
    found = await add("image/webp", WEBP)
    with pytest.raises(TooManyPhotos):
        await add("image/jpeg", JPEG + b"\1")
    assert [photo.media for photo in found.photos] == ["image/png", "image/jpeg", "image/webp"]
    async with shop.tx() as t:
        for actor in (buyer, OPERATOR):
            photo = found.photos[2].id
            assert await after_sales.photo(t.conn, actor, case.id, photo) == ("image/webp", WEBP)
        for actor in (await shop.buyer(), shop.guest(), HOST):
            with pytest.raises(NoSuchCase):
                await after_sales.photo(t.conn, actor, case.id, photo)
        with pytest.raises(NoSuchCase):
            await after_sales.photo(t.conn, buyer, new_id(), photo)


def test_the_kinds_of_picture_are_known_by_their_first_bytes() -> None:
    assert [picture_media(image) for image in (JPEG, PNG, WEBP)] == ["image/jpeg", "image/png", "image/webp"]
    for image in (b"", b"\xff\xd8", b"RIFF\0\0\0\0WAVE", b"GIF89a", io.BytesIO(b"<html>").read()):
        assert picture_media(image) is None


async def test_who_is_forgotten_leaves_the_books_and_no_reason_and_no_photo(
    shop: Shop, make_show: MakeShow, after_sales: AfterSales
) -> None:
    from commerce.after_sales import PERSONAL_OF_CASES

    buyer, placed, _ = await bought(shop, await make_show(), 1)
    case = await ask(shop, after_sales, buyer, placed.order)
    async with shop.tx() as t:
        await after_sales.add_photo(t, buyer, case.id, "image/png", PNG)
        for personal in PERSONAL_OF_CASES:
            await t.conn.execute(personal.erase, {"member": buyer.member})
    assert await shop.rows("SELECT id FROM after_sales_photos") == []
    assert await shop.rows("SELECT reason, kind FROM after_sales_cases") == [
        {"reason": "", "kind": "damaged"}
    ]
