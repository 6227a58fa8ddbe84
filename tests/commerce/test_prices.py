"""Prices: the lowest wins and never multiplies, half up; quotes are signed, kept, and say why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from commerce.freight import FreightRow
from commerce.messages import LineInput
from commerce.prices import (
    CANDIDATE_KINDS,
    Candidate,
    MemberDay,
    NoSuchOffer,
    NotOnSale,
    OfferEnded,
    PriceChanged,
    decide,
    round_half_up,
)
from commerce.products import PriceEntry, Product, ProductPatch
from commerce.quotes import SIGNED_KINDS, Quotes, checked_lines
from membership.actor import NOBODY, Facts, PlanId, ProductId, new_id
from membership.audience import EVERYONE, PLAN_MEMBERS, Audience
from membership.refusal import BadRequest
from tests.commerce.shop_stage import OPERATOR, Shop
from tests.conftest import MakeShow

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
PLAN = PlanId(new_id())
MEMBER = Facts(registered=True, plans=frozenset({PLAN}))

fen = st.integers(1, 100_000_000)
anyio = pytest.mark.anyio


class Plan(Struct, frozen=True):
    percent: int | None = None


class Flash(Struct, frozen=True):
    flash_fen: int | None
    kind: Literal["pin", "flash"] = "flash"
    audience: Audience = EVERYONE
    status: Literal["open", "closed"] = "open"
    ends_at: datetime | None = None


def product(list_fen: int = 12_800, member_fen: int | None = None, *, no_promo: bool = False) -> Product:
    return Product(
        id=ProductId(new_id()),
        sku="rice",
        name="有机大米",
        short="",
        unit="袋",
        image=None,
        list_fen=list_fen,
        member_fen=member_fen,
        member_price_audience=EVERYONE,
        stock=10,
        stock_mode="on_order",
        audience=EVERYONE,
        on_sale_at=None,
        early_s=0,
        early_audience=PLAN_MEMBERS,
        no_promo=no_promo,
        no_behaviour_tags=False,
        tag_name=None,
        gift_text=None,
        gift_value_fen=0,
        gift_audience=PLAN_MEMBERS,
        status="on",
    )


def entry(of: Product, unit_fen: int, audience: Audience = EVERYONE, min_quantity: int = 1) -> PriceEntry:
    return PriceEntry(
        id=new_id(),
        product=of.id,
        audience=audience,
        unit_fen=unit_fen,
        from_at=NOW - timedelta(hours=1),
        until_at=NOW + timedelta(hours=1),
        min_quantity=min_quantity,
    )


# --- rounding ---


@pytest.mark.rule("semantics 4.3a")
@given(st.integers(0, 10**12), st.integers(0, 1000), st.integers(1, 1000))
def test_rounding_is_half_up_for_every_amount(amount: int, numerator: int, denominator: int) -> None:
    exact = Decimal(amount) * numerator / denominator
    assert round_half_up(amount, numerator, denominator) == int(exact.quantize(Decimal(1), ROUND_HALF_UP))


@pytest.mark.parametrize(
    ("amount", "percent", "rounded"), [(125, 50, 63), (1, 50, 1), (1, 49, 0), (12_850, 88, 11_308)]
)
def test_half_a_fen_goes_up(amount: int, percent: int, rounded: int) -> None:
    assert round_half_up(amount, percent, 100) == rounded


def test_money_below_nothing_is_not_rounded() -> None:
    with pytest.raises(ValueError, match="not negative"):
        round_half_up(-1, 1, 2)


# --- the decision ---


@pytest.mark.rule("semantics 4.1a", "semantics 4.1b")
@given(
    list_fen=fen,
    member_fen=st.none() | fen,
    percent=st.none() | st.integers(1, 99),
    flash_fen=st.none() | fen,
    listed=st.lists(fen, max_size=3),
    day=st.booleans(),
    is_member=st.booleans(),
)
def test_the_lowest_candidate_wins_and_none_is_multiplied(
    list_fen: int,
    member_fen: int | None,
    percent: int | None,
    flash_fen: int | None,
    listed: list[int],
    day: bool,
    is_member: bool,
) -> None:
    if member_fen is not None:
        member_fen = min(member_fen, list_fen)
    thing = product(list_fen, member_fen)
    facts = MEMBER if is_member else NOBODY
    decided = decide(
        thing,
        facts,
        Flash(flash_fen) if flash_fen is not None else None,
        Plan(percent),
        NOW,
        entries=[entry(thing, each) for each in listed],
        member_day=MemberDay(day=NOW.day) if day else None,
    )
    others = {list_fen, *listed}
    if is_member:
        if member_fen is not None:
            others.add(member_fen)
        elif percent is not None:
            others.add(max(1, round_half_up(list_fen, percent, 100)))
        if day:
            others.add(max(1, round_half_up(list_fen, 88, 100)))
    single = others | ({flash_fen} if flash_fen is not None else set())
    assert decided.unit_fen == min(single)
    assert decided.unit_fen == min(each.unit_fen for each in decided.candidates)
    assert {each.unit_fen for each in decided.candidates} == single
    assert 1 <= decided.unit_fen <= list_fen
    assert decided.flash_used == (flash_fen is not None and flash_fen < min(others))
    assert (decided.winner == "flash") == decided.flash_used


@pytest.mark.rule("semantics 4.5c")
@given(list_fen=fen, member_fen=fen, extra=st.booleans())
def test_a_member_never_pays_more_than_anybody_else(list_fen: int, member_fen: int, extra: bool) -> None:
    thing = product(list_fen, min(list_fen, member_fen))
    entries = [entry(thing, list_fen + 1)] if extra else []
    of_guest = decide(thing, NOBODY, None, None, NOW, entries=entries)
    of_member = decide(thing, MEMBER, None, Plan(90), NOW, entries=entries)
    assert of_member.unit_fen <= of_guest.unit_fen <= list_fen


@pytest.mark.rule("semantics 4.1a", "M14")
def test_the_plans_percentage_counts_only_without_a_member_price_of_its_own() -> None:
    own = decide(product(10_000, 9_500), MEMBER, None, Plan(50), NOW)
    assert (own.unit_fen, own.winner) == (9_500, "member")
    without = decide(product(10_000), MEMBER, None, Plan(50), NOW)
    assert (without.unit_fen, without.winner) == (5_000, "plan_percent")
    thing = product(10_000)
    listed = decide(thing, MEMBER, None, Plan(50), NOW, entries=[entry(thing, 9_000, PLAN_MEMBERS)])
    assert (listed.unit_fen, listed.winner) == (9_000, "member")


@pytest.mark.rule("semantics 4.1c")
def test_on_a_tie_no_flash_piece_is_used() -> None:
    tie = decide(product(12_800, 9_900), MEMBER, Flash(9_900), None, NOW)
    assert (tie.winner, tie.flash_used) == ("member", False)
    below = decide(product(12_800, 9_900), MEMBER, Flash(9_899), None, NOW)
    assert (below.winner, below.flash_used) == ("flash", True)


@pytest.mark.rule("L31")
def test_a_flash_price_ends_with_its_offer_and_is_nothing_for_a_no_promo_product() -> None:
    over = Flash(9_900, ends_at=NOW)
    assert decide(product(), NOBODY, over, None, NOW).winner == "list"
    assert decide(product(), NOBODY, over, None, NOW - timedelta(milliseconds=1)).winner == "flash"
    assert decide(product(), NOBODY, Flash(9_900, status="closed"), None, NOW).winner == "list"
    assert decide(product(), NOBODY, Flash(9_900, audience=PLAN_MEMBERS), None, NOW).winner == "list"
    assert decide(product(no_promo=True), NOBODY, Flash(9_900), None, NOW).winner == "list"


@pytest.mark.rule("semantics 4.7a", "L28")
def test_member_day_begins_and_ends_at_midnight_in_the_shops_zone() -> None:
    day = MemberDay(day=18, percent=88, zone="Asia/Shanghai")
    before = datetime(2026, 11, 17, 15, 59, 59, tzinfo=UTC)
    first = datetime(2026, 11, 17, 16, 0, tzinfo=UTC)
    last = datetime(2026, 11, 18, 15, 59, 59, tzinfo=UTC)
    after = datetime(2026, 11, 18, 16, 0, tzinfo=UTC)
    prices = [
        decide(product(12_850), MEMBER, None, None, at, member_day=day).unit_fen
        for at in (before, first, last, after)
    ]
    assert prices == [12_850, 11_308, 11_308, 12_850]
    assert decide(product(no_promo=True), MEMBER, None, None, first, member_day=day).winner == "list"
    assert decide(product(), NOBODY, None, None, first, member_day=day).winner == "list"


def test_a_price_list_holds_from_its_first_moment_until_before_its_last() -> None:
    thing = product(10_000)
    line = entry(thing, 8_000)
    assert line.until_at is not None
    at = [
        line.from_at - timedelta(seconds=1),
        line.from_at,
        line.until_at - timedelta(seconds=1),
        line.until_at,
    ]
    assert [decide(thing, NOBODY, None, None, now, entries=[line]).unit_fen for now in at] == [
        10_000,
        8_000,
        8_000,
        10_000,
    ]


@pytest.mark.rule("semantics 4.1a")
def test_a_tier_price_is_for_its_tier() -> None:
    thing = product(10_000)
    gold = Audience(kind="tiers", tiers=("gold",))
    decided = decide(
        thing, Facts(registered=True, tier="gold"), None, None, NOW, entries=[entry(thing, 8_500, gold)]
    )
    assert (decided.unit_fen, decided.winner) == (8_500, "tier")
    assert (
        decide(
            thing, Facts(registered=True, tier="silver"), None, None, NOW, entries=[entry(thing, 8_500, gold)]
        ).unit_fen
        == 10_000
    )


def test_freight_is_free_from_a_sum_on_and_for_a_plan_that_says_so() -> None:
    freight = FreightRow(flat_fen=800, free_from_fen=9_900)
    assert [freight.of(9_899, False), freight.of(9_900, False), freight.of(1, True)] == [800, 0, 0]


# --- lines from outside ---


@pytest.mark.parametrize("quantity", [0, -1, -(10**30), 100, 10**30, True])
def test_an_absurd_quantity_is_refused(quantity: int) -> None:
    with pytest.raises(BadRequest):
        checked_lines([LineInput(new_id(), quantity)])


def test_no_lines_too_many_lines_and_a_line_twice_are_refused() -> None:
    offer = new_id()
    for lines in ([], [LineInput(new_id(), 1)] * 11, [LineInput(offer, 1), LineInput(offer, 2)]):
        with pytest.raises(BadRequest):
            checked_lines(lines)
    with pytest.raises(NoSuchOffer):
        checked_lines([LineInput("1; DROP TABLE orders", 1)])


# --- quotes ---


@pytest.mark.rule("semantics 4.4a", "L1", "M17")
@anyio
async def test_each_sees_their_own_price_and_the_quote_says_why(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    rice = await shop.product(
        list_fen=12_800, member_fen=10_900, gift_text="5 包杂粮试吃装", gift_value_fen=1_500
    )
    pin = await shop.open(show, rice)
    of_guest = await shop.quote(shop.guest(), show, (pin, 2))
    line = of_guest.lines[0]
    assert (line.unit_fen, line.line_fen, line.winner, line.gift_text) == (12_800, 25_600, "list", None)
    assert [(each.kind, each.unit_fen) for each in line.candidates] == [("list", 12_800)]
    of_member = await shop.quote(await shop.buyer(plan.id), show, (pin, 1))
    line = of_member.lines[0]
    assert (line.unit_fen, line.winner, line.gift_text) == (10_900, "member", "5 包杂粮试吃装")
    assert [(each.kind, each.unit_fen) for each in line.candidates] == [("list", 12_800), ("member", 10_900)]
    assert (of_member.freight_fen, of_member.total_fen, of_member.plan_saves) == (0, 10_900, None)


@pytest.mark.rule("semantics 4.6a", "L2", "M17")
@anyio
async def test_a_guest_is_told_what_a_plan_would_save_of_its_fee(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan(fee_fen=19_900)
    pin = await shop.open(show, await shop.product(list_fen=12_800, member_fen=10_900))
    saves = (await shop.quote(shop.guest(), show, (pin, 5))).plan_saves
    assert saves is not None
    assert (saves.plan, saves.goods_fen, saves.fee_fen) == (plan.id, 9_500, 19_900)
    assert saves.total_fen == saves.goods_fen + saves.freight_fen + saves.gift_fen


@pytest.mark.rule("semantics 4.6a")
@anyio
async def test_savings_keep_silent_about_a_member_price_that_is_not_shown(
    shop: Shop, make_show: MakeShow
) -> None:
    show = await make_show()
    await shop.plan()
    hidden = await shop.product(list_fen=12_800, member_fen=10_900, member_price_audience=PLAN_MEMBERS)
    quote = await shop.quote(shop.guest(), show, (await shop.open(show, hidden), 1))
    assert quote.plan_saves is not None
    assert quote.plan_saves.goods_fen == 0
    assert "10900" not in str(quote)


@anyio
@pytest.mark.parametrize("lines", [1, 2, 3])
async def test_totals_are_the_sum_of_their_lines(shop: Shop, make_show: MakeShow, lines: int) -> None:
    show, buyer = await make_show(), await shop.buyer()
    offers = [await shop.open(show, await shop.product(list_fen=1_111 * n)) for n in range(1, lines + 1)]
    quote = await shop.quote(buyer, show, *[(offer, n) for n, offer in enumerate(offers, 1)])
    assert all(line.line_fen == line.unit_fen * line.quantity for line in quote.lines)
    assert quote.goods_fen == sum(line.line_fen for line in quote.lines)
    assert quote.total_fen == quote.goods_fen + quote.freight_fen


@anyio
async def test_what_a_person_may_not_know_of_is_no_offer_at_all(shop: Shop, make_show: MakeShow) -> None:
    show, other_show, plan = await make_show(), await make_show(), await shop.plan()
    for_members = await shop.open(show, await shop.product(), audience=PLAN_MEMBERS)
    first_release = await shop.open(show, await shop.product(audience=PLAN_MEMBERS))
    elsewhere = await shop.open(other_show, await shop.product())
    for offer in (for_members, first_release, elsewhere):
        with pytest.raises(NoSuchOffer):
            await shop.quote(shop.guest(), show, (offer, 1))
    assert await shop.quote(await shop.buyer(plan.id), show, (for_members, 1), (first_release, 1))


@pytest.mark.rule("L26", "M22")
@anyio
async def test_members_order_in_the_early_window_and_guests_do_not(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    soon = datetime.now(UTC) + timedelta(hours=47)
    rice = await shop.product(on_sale_at=soon, early_s=48 * 3600)
    pin = await shop.open(show, rice)
    assert await shop.quote(await shop.buyer(plan.id), show, (pin, 1))
    with pytest.raises(NotOnSale):
        await shop.quote(await shop.buyer(), show, (pin, 1))


@anyio
async def test_a_closed_offer_is_quoted_no_more(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    flash = await shop.open(show, await shop.product(), "flash", seconds=5)
    await shop.rows(
        "UPDATE offers SET opened_at = opened_at - interval '1 minute', closes_at = now() RETURNING id"
    )
    with pytest.raises(OfferEnded):
        await shop.quote(buyer, show, (flash, 1))


@anyio
async def test_a_price_list_line_is_a_candidate_and_can_be_ended(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product(list_fen=10_000)
    pin = await shop.open(show, rice)
    async with shop.tx() as t:
        line = await shop.products.set_price(
            t, OPERATOR, rice.id, 8_000, EVERYONE, datetime.now(UTC) - timedelta(minutes=1)
        )
    assert (await shop.quote(buyer, show, (pin, 1))).lines[0].winner == "price_list"
    async with shop.tx() as t:
        await shop.products.end_price(t, OPERATOR, line.id)
    assert (await shop.quote(buyer, show, (pin, 1))).lines[0].unit_fen == 10_000


@pytest.mark.rule("semantics 4.4a")
@anyio
async def test_a_token_says_what_was_promised(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    pin = await shop.open(show, await shop.product())
    quote = await shop.quote(buyer, show, (pin, 3))
    promise = shop.quotes.verify(quote.token)
    assert (promise.quote, promise.show, promise.person) == (quote.quote, show, buyer.id)
    assert [(line.offer, line.quantity, line.unit_fen) for line in promise.lines] == [(pin.id, 3, 12_800)]
    assert promise.expires_at - datetime.now(UTC) <= timedelta(minutes=10)
    assert len(quote.token) < 1_000


@anyio
async def test_ten_lines_with_every_candidate_fit_a_command(shop: Shop, make_show: MakeShow) -> None:
    show, plan = await make_show(), await shop.plan()
    offers = [
        await shop.open(
            show, await shop.product(list_fen=9_999_999, member_fen=9_999_998), "flash", flash_fen=9_999_997
        )
        for _ in range(10)
    ]
    quote = await shop.quote(await shop.buyer(plan.id), show, *[(offer, 1) for offer in offers])
    assert len(quote.token) < 3_000


@pytest.mark.rule("semantics 4.4a")
@anyio
async def test_a_forged_or_foreign_or_expired_token_is_refused(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    token = (await shop.quote(buyer, show, (await shop.open(show, await shop.product()), 1))).token
    claims = jwt.decode(token, options={"verify_signature": False})
    head, body, signature = token.split(".")
    for forged in (
        "",
        "not a token",
        f"{head}.{body}.{'A' * len(signature)}",
        jwt.encode({**claims, "lines": [[claims["lines"][0][0], 1, 1, 0, []]]}, "x" * 32, algorithm="HS256"),
        jwt.encode(claims, "secret" * 8, algorithm="HS256"),
        jwt.encode(claims, None, algorithm="none"),
        Quotes(
            "another secret",
            products=shop.products,
            coupons=shop.coupons,
            points=shop.points,
            plans=shop.plans,
        )._key.hex(),
    ):
        with pytest.raises(BadRequest):
            shop.quotes.verify(forged)
    key = shop.quotes._key
    past = jwt.encode({**claims, "exp": int(datetime.now(UTC).timestamp()) - 1}, key, algorithm="HS256")
    with pytest.raises(PriceChanged):
        shop.quotes.verify(past)
    for broken in ({**claims, "lines": [[1, 2]]}, {**claims, "aud": "viewer"}, {**claims, "lines": None}):
        with pytest.raises(BadRequest):
            shop.quotes.verify(jwt.encode(broken, key, algorithm="HS256"))


def test_the_candidates_order_puts_flash_last() -> None:
    assert CANDIDATE_KINDS[-1] == "flash"


def test_a_quote_signed_by_another_version_names_the_same_kinds() -> None:
    """Kinds are signed by their places: old places never move, and every kind has one."""
    assert SIGNED_KINDS[:7] == ("list", "price_list", "member", "plan_percent", "tier", "member_day", "flash")
    assert sorted(SIGNED_KINDS) == sorted(CANDIDATE_KINDS)


@anyio
async def test_a_product_off_the_shelf_is_no_offer(shop: Shop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product()
    pin = await shop.open(show, rice)
    async with shop.tx() as t:
        await shop.products.update(t, OPERATOR, rice.id, ProductPatch(status="off"))
    with pytest.raises(NoSuchOffer):
        await shop.quote(buyer, show, (pin, 1))


# --- group prices ---


@pytest.mark.rule("semantics 4.1a", "semantics 4.1b")
def test_a_group_price_is_a_candidate_from_its_number_on_and_multiplies_nothing() -> None:
    thing = product(10_000, 9_000)
    entries = [entry(thing, 8_500, min_quantity=3), entry(thing, 8_000, min_quantity=5)]
    found = [
        decide(thing, MEMBER, None, Plan(50), NOW, entries=entries, quantity=many)
        for many in (1, 2, 3, 4, 5, 99)
    ]
    assert [(each.unit_fen, each.winner) for each in found] == [
        (9_000, "member"),
        (9_000, "member"),
        (8_500, "group"),
        (8_500, "group"),
        (8_000, "group"),
        (8_000, "group"),
    ]
    equal = decide(thing, MEMBER, None, None, NOW, entries=[entry(thing, 9_000, min_quantity=2)], quantity=2)
    assert equal.winner == "member"  # on a tie the group price is not named


@anyio
@pytest.mark.rule("semantics 4.1a", "semantics 4.3b")
async def test_a_group_price_counts_the_product_over_the_whole_order_and_stays_to_the_refund(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product(list_fen=10_000, stock=20)
    other = await shop.product(list_fen=10_000, stock=20)
    pin, flash = await shop.open(show, rice), await shop.open(show, rice, "flash", flash_fen=9_000)
    beside = await shop.open(show, other)
    begun = datetime.now(UTC) - timedelta(minutes=1)
    async with shop.tx() as t:
        await shop.products.set_price(
            t, OPERATOR, rice.id, 8_000, EVERYONE, begun, begun + timedelta(days=1), min_quantity=3
        )
    two = await shop.quote(buyer, show, (pin, 2), (beside, 2))  # another product does not count
    assert [(line.unit_fen, line.winner) for line in two.lines] == [(10_000, "list"), (10_000, "list")]
    three = await shop.quote(buyer, show, (pin, 2), (flash, 1), (beside, 1))
    assert [(line.unit_fen, line.winner) for line in three.lines] == [
        (8_000, "group"),
        (8_000, "group"),
        (10_000, "list"),
    ]
    assert Candidate("group", 8_000) in three.lines[0].candidates
    assert three.lines[0].was_fen is None  # for many at once, not for a time
    placed = await shop.place(buyer, show, three)
    assert placed.total_fen == three.total_fen
    assert await shop.taken(flash) == 0  # the group price is lower: no flash piece is used
    rows = await shop.rows("SELECT unit_fen, winner FROM order_lines ORDER BY position")
    assert [(row["unit_fen"], row["winner"]) for row in rows] == [
        (8_000, "group"),
        (8_000, "group"),
        (10_000, "list"),
    ]


@anyio
@pytest.mark.rule("semantics 4.1a", "semantics 4.4c")
async def test_a_group_price_that_began_after_the_quote_lowers_the_order_and_one_that_ended_is_kept(
    shop: Shop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    rice = await shop.product(list_fen=10_000, stock=20)
    pin = await shop.open(show, rice)
    quoted = await shop.quote(buyer, show, (pin, 3))
    single = await shop.quote(buyer, show, (pin, 1))
    async with shop.tx() as t:
        line = await shop.products.set_price(
            t, OPERATOR, rice.id, 8_000, EVERYONE, datetime.now(UTC) - timedelta(minutes=1), min_quantity=3
        )
    kept = await shop.quote(buyer, show, (pin, 4))
    lowered = await shop.place(buyer, show, quoted)
    assert lowered.total_fen == quoted.total_fen - 3 * 2_000
    assert (await shop.place(buyer, show, single)).total_fen == single.total_fen
    async with shop.tx() as t:
        await shop.products.end_price(t, OPERATOR, line.id)
    assert (await shop.place(buyer, show, kept)).total_fen == kept.total_fen


@anyio
async def test_a_group_price_is_for_no_plan_and_asks_for_a_number_that_one_can_order(shop: Shop) -> None:
    rice = await shop.product()
    for audience, many in ((PLAN_MEMBERS, 2), (EVERYONE, 0), (EVERYONE, 100)):
        async with shop.tx() as t:
            with pytest.raises(BadRequest):
                await shop.products.set_price(
                    t, OPERATOR, rice.id, 9_000, audience, datetime.now(UTC), min_quantity=many
                )
