"""Offers: what they may be, who sees which bytes, and that their numbers are the store's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from commerce.guards import NoPromo
from commerce.offers import PINS_MAX, AlreadyOpen, Offers, order_lock
from commerce.prices import MemberDay, NoSuchOffer
from commerce.products import NoSuchProduct, ProductPatch
from membership.actor import OfferId, ProductId, new_id
from membership.audience import EVERYONE, PLAN_MEMBERS, Audience, TooManyAudiences
from membership.partition import show_key
from membership.refusal import BadRequest, Forbidden, Refusal, Unavailable
from tests.commerce.shop_stage import HOST, OPERATOR, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio

GOLD = Audience(kind="tiers", tiers=("gold",))


@pytest.mark.rule("semantics 4.5a", "L2")
async def test_a_pin_shows_two_prices_and_what_a_plan_saves(shop: Shop, make_show: MakeShow) -> None:
    show, _ = await make_show(), await shop.plan()
    rice = await shop.product(list_fen=12_800, member_fen=10_900, gift_text="杂粮 5 包", gift_value_fen=1_500)
    pin = await shop.open(show, rice)
    seen = await shop.seen(show, pin, shop.guest())
    assert seen is not None
    assert (seen["list_fen"], seen["member_fen"], seen["plan_saves_fen"]) == (12_800, 10_900, 1_900)
    assert seen["product"] == {
        "id": rice.id,
        "name": "有机大米",
        "short": "",
        "image": None,
        "unit": "件",
        "gift_text": "杂粮 5 包",
        "gift_value_fen": 1_500,
    }
    assert (seen["kind"], seen["status"], "quota" in seen) == ("pin", "open", False)
    (event,) = await shop.events(show, "offer.opened")
    assert (event["offer"], event["product"], event["name"], event["bit"]) == (pin.id, rice.id, "有机大米", 0)


@pytest.mark.rule("L5")
async def test_a_flash_shows_its_price_its_pieces_and_its_end(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    flash = await shop.open(show, await shop.product(), "flash", per_person=2)
    seen = await shop.seen(show, flash, shop.guest())
    assert seen is not None
    assert (seen["flash_fen"], seen["quota"], seen["per_person"]) == (9_900, 5, 2)
    assert flash.closes_at is not None
    assert seen["closes_at"] == flash.closes_at
    assert flash.closes_at - flash.opened_at == 600_000
    parts = await shop.parts(show, flash)
    assert parts is not None
    assert parts[0]["counts"] == ["held", "sold"]
    assert await shop.counts(show, flash.id) == (0, 0)


async def test_nothing_is_told_before_the_commit(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product()
    with pytest.raises(RuntimeError, match="lost power"):
        async with shop.tx() as t:
            await shop.offers.open(t, HOST, show, rice.id)
            raise RuntimeError("lost power")
    assert await shop.events(show) == []
    assert (await shop.rows("SELECT count(*) AS n FROM offers"))[0]["n"] == 0


@pytest.mark.rule("L8")
async def test_an_offer_for_members_reaches_no_guest(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    offer = await shop.open(show, await shop.product(member_fen=10_900), audience=PLAN_MEMBERS)
    assert await shop.seen(show, offer, shop.guest()) is None
    seen = await shop.seen(show, offer, await shop.buyer(plan.id))
    assert seen is not None
    assert seen["member_fen"] == 10_900
    assert {event["bit"] for event in await shop.events(show)} == {1}
    parts = await shop.parts(show, offer)
    assert parts is not None
    assert {part["a"] for part in parts} == {1}


@pytest.mark.rule("M42")
async def test_a_hidden_member_price_is_a_part_of_its_own(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    rice = await shop.product(member_fen=10_900, member_price_audience=PLAN_MEMBERS)
    offer = await shop.open(show, rice)
    of_guest = await shop.seen(show, offer, shop.guest())
    of_member = await shop.seen(show, offer, await shop.buyer(plan.id))
    assert of_guest is not None
    assert of_member is not None
    assert "member_fen" not in of_guest
    assert "plan_saves_fen" not in of_guest
    assert of_member["member_fen"] == 10_900


async def test_a_member_price_never_widens_its_offers_audience(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    await shop.plan()
    rice = await shop.product(member_fen=10_900, member_price_audience=PLAN_MEMBERS)
    offer = await shop.open(show, rice, audience=GOLD)
    parts = await shop.parts(show, offer)
    assert parts is not None
    assert {part["a"] for part in parts} == {2}
    assert "member_fen" not in str(parts)


async def test_an_offer_is_never_for_more_people_than_its_product(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    first_release = await shop.product(audience=PLAN_MEMBERS)
    offer = await shop.open(show, first_release)
    assert offer.audience == PLAN_MEMBERS
    assert {event["bit"] for event in await shop.events(show)} == {1}
    with pytest.raises(BadRequest):
        await shop.open(show, first_release, audience=GOLD)


@pytest.mark.parametrize(
    "terms",
    [
        {"kind": "pin", "flash_fen": 1},
        {"kind": "pin", "quota": 1},
        {"kind": "pin", "seconds": 1},
        {"kind": "pin", "seconds": 10**9},
        {"kind": "flash", "flash_fen": None},
        {"kind": "flash", "flash_fen": 0},
        {"kind": "flash", "flash_fen": -1},
        {"kind": "flash", "flash_fen": 12_800},
        {"kind": "flash", "quota": None},
        {"kind": "flash", "quota": 0},
        {"kind": "flash", "quota": -5},
        {"kind": "flash", "quota": 11},
        {"kind": "flash", "per_person": 0},
        {"kind": "flash", "seconds": None},
        {"kind": "auction"},
    ],
)
async def test_terms_that_cannot_be_are_refused(
    shop: Shop, make_show: MakeShow, terms: dict[str, Any]
) -> None:
    show, rice = await make_show(), await shop.product(stock=10)
    with pytest.raises(BadRequest):
        await shop.open(show, rice, **terms)
    assert await shop.events(show) == []


async def test_a_no_promo_product_has_no_flash_price(shop: Shop, make_show: MakeShow) -> None:
    show, formula = await make_show(), await shop.product(no_promo=True)
    with pytest.raises(NoPromo):
        await shop.open(show, formula, "flash")
    assert await shop.open(show, formula)


async def test_only_who_runs_offers_opens_them(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product()
    offer = await shop.open(show, rice)
    async with shop.tx() as t:
        for actor in (OPERATOR, await shop.buyer()):
            with pytest.raises(Forbidden):
                await shop.offers.open(t, actor, show, rice.id)
            with pytest.raises(Forbidden):
                await shop.offers.close(t, actor, show, offer.id)
        with pytest.raises(NoSuchProduct):
            await shop.offers.open(t, HOST, show, ProductId("nothing"))


@pytest.mark.parametrize(
    ("status", "pin", "flash"),
    [
        ("scheduled", False, False),
        ("waiting", True, False),
        ("live", True, True),
        ("paused", True, False),
        ("ending", False, False),
        ("ended", False, False),
    ],
)
async def test_the_shows_status_decides_what_may_open(
    shop: Shop, make_show: MakeShow, status: str, pin: bool, flash: bool
) -> None:
    show, rice = await make_show(status), await shop.product()
    for kind, may in (("pin", pin), ("flash", flash)):
        if may:
            assert await shop.open(show, rice, kind)
        else:
            with pytest.raises(Refusal) as refused:
                await shop.open(show, rice, kind)
            assert refused.value.word == "not_live"


async def test_one_product_has_one_open_offer_of_a_kind(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product()
    pin = await shop.open(show, rice)
    await shop.open(show, rice, "flash")
    with pytest.raises(AlreadyOpen):
        await shop.open(show, rice)
    async with shop.tx() as t:
        await shop.offers.close(t, HOST, show, pin.id)
    assert await shop.open(show, rice)


async def test_a_further_pin_replaces_the_oldest(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    pins = [await shop.open(show, await shop.product()) for _ in range(PINS_MAX)]
    further = await shop.open(show, await shop.product())
    assert further.replaced == (pins[0].id,)
    assert await shop.parts(show, pins[0]) is None
    (closed,) = await shop.events(show, "offer.closed")
    assert (closed["offer"], closed["reason"]) == (pins[0].id, "replaced")


async def test_a_seventh_audience_of_its_own_is_refused(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    for n in range(6):
        await shop.open(show, await shop.product(), audience=Audience(kind="segment", segment=str(n)))
    with pytest.raises(TooManyAudiences):
        await shop.open(show, await shop.product(), audience=Audience(kind="segment", segment="6"))


async def test_closing_takes_the_state_and_says_why_once(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    offer = await shop.open(show, await shop.product())
    for _ in range(2):
        async with shop.tx() as t:
            closed = await shop.offers.close(t, HOST, show, offer.id)
        assert (closed.status, closed.close_reason) == ("closed", "staff")
    assert await shop.parts(show, offer) is None
    assert len(await shop.events(show, "offer.closed")) == 1
    async with shop.tx() as t:
        for show_id, other in (
            (show, OfferId(new_id())),
            (show, OfferId("x")),
            (await make_show(), offer.id),
        ):
            with pytest.raises(NoSuchOffer):
                await shop.offers.close(t, HOST, show_id, other)


async def test_offers_end_by_the_clock_and_with_their_show(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    flash = await shop.open(show, await shop.product(), "flash")
    pin = await shop.open(show, await shop.product())
    async with shop.tx() as t:
        assert await shop.offers.close_due(t) == 0
    await shop.rows(
        "UPDATE offers SET opened_at = now() - interval '1 hour', closes_at = now()"
        " WHERE id = %s RETURNING id",
        flash.id,
    )
    async with shop.tx() as t:
        assert await shop.offers.close_due(t) == 1
    async with shop.tx() as t:
        assert [each.id for each in await shop.offers.close_all(t, HOST, show)] == [pin.id]
    reasons = [(event["offer"], event["reason"]) for event in await shop.events(show, "offer.closed")]
    assert reasons == [(flash.id, "time"), (pin.id, "show")]
    async with shop.tx() as t:
        page = await shop.offers.of_show(t.conn, show)
        assert {each.status for each in page.items} == {"closed"}
        assert (await shop.offers.of_show(t.conn, show, open_only=True)).items == ()


async def test_an_offer_not_told_after_a_crash_is_told_by_the_job(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product()
    async with shop.tx() as t:
        offer = await shop.offers.open(t, HOST, show, rice.id)
        t.committed.clear()  # the process dies right after the commit
    assert await shop.parts(show, offer) is None
    for _ in range(2):
        async with shop.tx() as t:
            await shop.offers.settle(t)
    assert await shop.parts(show, offer) is not None
    async with shop.tx() as t:
        await shop.offers.close(t, HOST, show, offer.id)
        t.committed.clear()
    for _ in range(2):
        async with shop.tx() as t:
            await shop.offers.settle(t)
    assert await shop.parts(show, offer) is None
    assert [event["type"] for event in await shop.events(show)] == ["offer.opened", "offer.closed"]


async def test_settling_waits_for_a_show_that_is_away(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product()
    async with shop.tx() as t:
        await shop.offers.open(t, HOST, show, rice.id)
        t.committed.clear()
    meta = await shop.redis.dump(show_key(show, "meta"))
    await shop.redis.delete(show_key(show, "meta"))
    async with shop.tx() as t:
        assert await shop.offers.settle(t) == 0
    await shop.redis.restore(show_key(show, "meta"), 0, meta)
    async with shop.tx() as t:
        assert await shop.offers.settle(t) == 1


async def test_offers_of_shows_that_are_gone_hold_up_no_other(shop: Shop, make_show: MakeShow) -> None:
    gone, there, rice = await make_show(), await make_show(), await shop.product()
    for show in (gone, gone, gone, there):
        async with shop.tx() as t:
            offer = await shop.offers.open(t, HOST, show, rice.id)
            t.committed.clear()
        async with shop.tx() as t:  # one pinned at a time
            await shop.offers.close_all(t, HOST, show)
            t.committed.clear()
    await shop.redis.delete(show_key(gone, "meta"))
    async with shop.tx() as t:
        assert await shop.offers.settle(t, limit=2) == 1
    assert [event["offer"] for event in await shop.events(there, "offer.closed")] == [offer.id]


@pytest.mark.rule("L28")
async def test_a_price_that_changes_with_the_clock_reaches_open_pages(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    rice = await shop.product(list_fen=10_000)
    offer = await shop.open(show, rice)
    async with shop.tx() as t:
        await shop.offers.settle(t)
        assert await shop.offers.refresh(t.conn, show) == 0
        await shop.products.set_price(
            t, OPERATOR, rice.id, 8_000, EVERYONE, datetime.now(UTC) - timedelta(seconds=1)
        )
        assert await shop.offers.refresh(t.conn, show) == 1
        assert await shop.offers.refresh(t.conn, show) == 0
    seen = await shop.seen(show, offer, shop.guest())
    assert seen is not None
    assert seen["list_fen"] == 8_000


async def test_stock_that_runs_out_and_comes_back_is_shown(shop: Shop, make_show: MakeShow) -> None:
    show, rice = await make_show(), await shop.product(stock=1)
    offer = await shop.open(show, rice)

    async def status() -> str:
        async with shop.tx() as t:
            await shop.offers.settle(t)
            await shop.offers.refresh(t.conn, show)
        seen = await shop.seen(show, offer, shop.guest())
        assert seen is not None
        return str(seen["status"])

    placed = await shop.buy(await shop.buyer(), show, (offer, 1))
    assert await status() == "open"  # held only: it may come back
    await shop.pay(placed.order, placed.total_fen)
    assert await status() == "sold_out"
    assert len(await shop.events(show, "offer.sold_out")) == 1
    async with shop.tx() as t:
        await shop.products.update(t, OPERATOR, rice.id, ProductPatch(stock_change=1))
    assert await status() == "open"


async def test_lost_counters_are_rebuilt_from_the_tables(shop: Shop, make_show: MakeShow) -> None:
    show = await make_show()
    await shop.plan()
    flash = await shop.open(show, await shop.product(member_fen=12_000), "flash", per_person=2)
    paid = await shop.buy(await shop.buyer(), show, (flash, 2))
    await shop.pay(paid.order, paid.total_fen)
    buyer = await shop.buyer()
    held = await shop.buy(buyer, show, (flash, 1))
    before = await shop.parts(show, flash)
    names = ("offers", "offer_people", "holds", "holds_unsettled", "orders_told", "states", "counts")
    await shop.redis.delete(*[show_key(show, name) for name in names])
    with pytest.raises(Unavailable):
        await shop.buy(await shop.buyer(), show, (flash, 1))
    async with shop.tx() as t:
        assert await shop.offers.rebuild(t.conn, show)
    async with shop.tx() as t:
        assert not await shop.offers.rebuild(t.conn, show)  # counters in use are left alone
    assert await shop.counts(show, flash.id) == (1, 2)
    assert await shop.parts(show, flash) == before
    async with shop.tx() as t:
        await shop.orders.cancel(t, buyer, held.order)
    assert await shop.counts(show, flash.id) == (0, 2)
    await shop.orders.settle_unannounced(shop.database, older_s=0)
    assert await shop.counts(show, flash.id) == (0, 2)
    assert await shop.redis.zcard(show_key(show, "holds_unsettled")) == 0


async def test_a_store_from_the_past_holds_nothing_until_it_is_rebuilt(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    flash = await shop.open(show, await shop.product(), "flash")
    buyer = await shop.buyer()
    quote = await shop.quote(buyer, show, (flash, 1))
    await shop.redis.hincrby(show_key(show, "meta"), "generation", 1)
    await shop.redis.hset(show_key(show, "counts"), f"offer:{flash.id}|sold", 4)  # type: ignore[misc]
    with pytest.raises(Unavailable):
        await shop.place(buyer, show, quote)
    async with shop.tx() as t:
        assert await shop.offers.rebuild(t.conn, show)
    assert await shop.counts(show, flash.id) == (0, 0)
    assert await shop.place(buyer, show, quote)


def test_two_keys_are_two_locks() -> None:
    assert order_lock("a", "b") != order_lock("a", "c")


@pytest.mark.rule("L28", "semantics 4.7a")
async def test_member_day_comes_and_goes_at_the_shops_midnight_on_open_pages(
    shop: Shop, make_show: MakeShow
) -> None:
    """L28: 88 % on the 18th, from midnight to midnight in the shop's zone, rounded half up to 分; open sockets get
    the state anew, nobody reloads."""
    day = MemberDay(day=18, percent=88, zone="Asia/Shanghai")
    shop.offers = Offers(shop.scripts, shop.audiences, shop.products, member_day=day)
    show, plan = await make_show(), await shop.plan()
    member = await shop.buyer(plan.id)
    offer = await shop.open(show, await shop.product(list_fen=12_850))
    plain = await shop.open(show, await shop.product(list_fen=12_850, no_promo=True))
    midnight = datetime(2026, 12, 17, 16, tzinfo=UTC)  # the 18th begins in Shanghai
    moments = {
        midnight - timedelta(microseconds=1): None,
        midnight: 11_308,
        midnight + timedelta(hours=24) - timedelta(microseconds=1): 11_308,
        midnight + timedelta(hours=24): None,
    }
    async with shop.tx() as t:
        await shop.offers.settle(t)
    for at, member_fen in moments.items():
        async with shop.tx() as t:
            await shop.offers.refresh(t.conn, show, at=at)
        seen = await shop.seen(show, offer, member)
        assert seen is not None
        assert (seen["list_fen"], seen.get("member_fen")) == (12_850, member_fen), at
        assert "member_fen" not in ((await shop.seen(show, plain, member)) or {})
