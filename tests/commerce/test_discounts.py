"""semantics 4: then coupons, by stacking rules as data; then points. Payable is never below zero."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commerce.coupons import Coupon, CouponId, CouponRule, CouponRuleId
from commerce.discounts import GoodsLine, chosen, points_most, why_not, work_out
from membership.actor import NOBODY, Facts, MemberId, PlanId, ProductId, new_id
from membership.audience import PLAN_MEMBERS

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
RICE, OIL = ProductId(new_id()), ProductId(new_id())
OWNER = MemberId(new_id())


def coupon(kind: str = "amount", **terms: Any) -> Coupon:
    own = {name: terms.pop(name) for name in ("state", "expires_at") if name in terms}
    if kind == "amount":
        terms.setdefault("off_fen", 1_000)
    rule = CouponRule(id=CouponRuleId(new_id()), title="券", kind=kind, **terms)  # type: ignore[arg-type]
    return Coupon(
        id=CouponId(new_id()),
        member=OWNER,
        rule=rule,
        state=own.get("state", "free"),
        granted_at=NOW,
        expires_at=own.get("expires_at"),
        cause="test",
    )


def together(*groups: str) -> dict[str, Any]:
    return {"stack_group": groups[0], "stacks_with": groups[1:]}


def goods(*fen: int, product: ProductId = RICE, **more: Any) -> list[GoodsLine]:
    return [GoodsLine(product, each, **more) for each in fen]


def test_an_amount_is_spread_over_its_goods_and_never_takes_more_than_there_is() -> None:
    found = work_out(goods(1_000, 2_000), 800, [coupon(off_fen=100)])
    assert (found.line_coupon_fen, found.coupon_fen, found.total_fen) == ((33, 67), 100, 3_700)
    whole = work_out(goods(300), 800, [coupon(off_fen=1_000)])
    assert (whole.coupon_fen, whole.total_fen) == (300, 800)
    assert whole.coupons[0].off_fen == 300


def test_a_percentage_pays_half_up_and_is_capped() -> None:
    eighty_eight = coupon("percent", percent=88)
    assert work_out(goods(12_850), 0, [eighty_eight]).total_fen == 11_308
    assert work_out(goods(12_850), 0, [coupon("percent", percent=88, max_off_fen=500)]).coupon_fen == 500


def test_a_freight_coupon_takes_the_freight_off_and_leaves_the_goods() -> None:
    found = work_out(goods(5_000), 800, [coupon("freight")])
    assert (found.freight_fen, found.coupon_fen, found.total_fen) == (0, 0, 5_000)
    assert work_out(goods(5_000), 800, [coupon("freight", off_fen=500)]).freight_fen == 300
    assert work_out(goods(9_900), 0, [coupon("freight")]).coupons == ()


def test_the_threshold_is_on_the_goods_the_coupon_is_for() -> None:
    lines = [GoodsLine(RICE, 5_000), GoodsLine(OIL, 5_000)]
    for_rice = coupon(threshold_fen=5_001, products=(RICE,))
    assert why_not(for_rice, NOBODY, NOW, lines) == "threshold"
    assert why_not(coupon(threshold_fen=10_000), NOBODY, NOW, lines) is None
    found = work_out(lines, 0, [coupon(off_fen=100, threshold_fen=5_000, products=(RICE,))])
    assert found.line_coupon_fen == (100, 0)


def test_no_promo_goods_are_never_lowered_by_a_coupon() -> None:
    lines = [GoodsLine(RICE, 5_000, no_promo=True), GoodsLine(OIL, 1_000)]
    assert work_out(lines, 0, [coupon(off_fen=3_000)]).line_coupon_fen == (0, 1_000)
    assert why_not(coupon(threshold_fen=1_001), NOBODY, NOW, lines) == "threshold"
    assert why_not(coupon(), NOBODY, NOW, lines[:1]) == "no_promo"


def test_each_reason_against_a_coupon_has_its_word() -> None:
    lines = goods(5_000)
    cases: dict[str, Coupon] = {
        "used": coupon(state="held"),
        "expired": coupon(expires_at=NOW),
        "not_yet": coupon(from_at=NOW + timedelta(seconds=1)),
        "audience": coupon(audience=PLAN_MEMBERS),
        "products": coupon(products=(OIL,)),
        "threshold": coupon(threshold_fen=5_001),
    }
    assert {word: why_not(each, NOBODY, NOW, lines) for word, each in cases.items()} == {
        word: word for word in cases
    }
    member = Facts(registered=True, plans=frozenset({PlanId(new_id())}))
    assert why_not(cases["audience"], member, NOW, lines) is None


@pytest.mark.rule("semantics 4.2a")
def test_two_go_together_only_when_each_names_the_others_group() -> None:
    first = coupon(**together("shop", "brand"))
    agreed = coupon(**together("brand", "shop"))
    one_sided = coupon(**together("brand"))
    lines = goods(10_000)
    for second, words in ((agreed, {}), (one_sided, {one_sided.id: "not_stacking"})):
        both = [first, second]
        used, reasons = chosen(both, NOBODY, NOW, lines, 0, named=[each.id for each in both])
        assert (len(used), reasons) == (2 - len(words), words)
    alike = [coupon(), coupon()]
    used, reasons = chosen(alike, NOBODY, NOW, lines, 0, named=[alike[1].id, alike[0].id])
    assert used == [alike[1]]  # the first named has the first word
    assert reasons == {alike[0].id: "not_stacking"}


def test_at_most_three_are_used_and_what_was_not_named_is_not_chosen() -> None:
    five = [coupon(off_fen=100, **together("any", "any")) for _ in range(5)]
    used, reasons = chosen(five, NOBODY, NOW, goods(10_000), 0, named=[each.id for each in five[:4]])
    assert used == five[:3]
    assert reasons == {five[3].id: "not_stacking", five[4].id: "not_chosen"}


@pytest.mark.rule("semantics 4.2a")
def test_the_one_that_saves_most_on_what_is_left_works_first_and_freight_last() -> None:
    amount = coupon(off_fen=2_000, **together("any", "any"))
    percent = coupon("percent", percent=90, **together("any", "any"))
    freight = coupon("freight", **together("any", "any"))
    found = work_out(goods(10_000), 800, [freight, percent, amount])
    # 2,000 off first, then 10 % of the 8,000 that are left.
    assert [(each.kind, each.off_fen) for each in found.coupons] == [
        ("amount", 2_000),
        ("percent", 800),
        ("freight", 800),
    ]
    assert found.total_fen == 7_200


def test_one_that_takes_nothing_off_stays_with_its_owner() -> None:
    whole = coupon(off_fen=5_000, **together("any", "any"))
    further = coupon(off_fen=100, **together("any", "any"))
    used, reasons = chosen([whole, further], NOBODY, NOW, goods(5_000), 0, named=[whole.id, further.id])
    assert (used, reasons) == ([whole], {further.id: "nothing_left"})


def test_the_best_set_is_found_and_says_why_the_others_are_not_in_it() -> None:
    alone = coupon(off_fen=2_500)
    small = [coupon(off_fen=fen, **together("any", "any")) for fen in (1_000, 900, 800, 700)]
    used, reasons = chosen([alone, *small], NOBODY, NOW, goods(10_000), 0, best=True)
    assert used == small[:3]  # 2,700 together
    assert reasons == {alone.id: "not_chosen", small[3].id: "not_chosen"}
    used, _ = chosen([alone, *small[:2]], NOBODY, NOW, goods(10_000), 0, best=True)
    assert used == [alone]


@pytest.mark.rule("semantics 4.2a")
def test_points_are_spent_by_hundreds_on_at_most_half_of_the_goods_after_coupons() -> None:
    """semantics 6: burn by hundreds (100 = 1 yuan), at most half of an order."""
    assert [points_most(fen) for fen in (0, 199, 200, 399, 400, 10_900)] == [0, 0, 100, 100, 200, 5_400]
    found = work_out(goods(6_000, 4_900), 800, [coupon(off_fen=900)], points=100_000)
    assert (found.coupon_fen, found.points_fen) == (900, 5_000)
    assert found.total_fen == 10_900 - 900 - 5_000 + 800


rules = st.one_of(
    st.builds(
        lambda off, threshold: {"kind": "amount", "off_fen": off, "threshold_fen": threshold},
        st.integers(1, 30_000),
        st.integers(0, 30_000),
    ),
    st.builds(
        lambda percent, most: {"kind": "percent", "percent": percent, "max_off_fen": most},
        st.integers(50, 99),
        st.none() | st.integers(1, 5_000),
    ),
    st.builds(lambda off: {"kind": "freight", "off_fen": off}, st.none() | st.integers(1, 2_000)),
)
lines_of = st.lists(
    st.builds(GoodsLine, st.sampled_from([RICE, OIL]), st.integers(1, 30_000), st.booleans()),
    min_size=1,
    max_size=8,
)


@pytest.mark.rule("semantics 4.2b", "semantics 4.3a")
@settings(deadline=None)
@given(
    lines_of, st.lists(rules, max_size=3), st.integers(0, 2_000), st.integers(0, 300).map(lambda n: n * 100)
)
def test_payable_is_never_below_zero_and_every_sum_agrees_to_the_fen(
    lines: list[GoodsLine], terms: list[dict[str, Any]], freight_fen: int, points: int
) -> None:
    coupons = [coupon(**{**each, **together("any", "any")}) for each in terms]
    found = work_out(lines, freight_fen, coupons, points)
    goods_off = sum(each.off_fen for each in found.coupons if each.kind != "freight")
    assert found.coupon_fen == goods_off
    assert found.freight_fen == freight_fen - sum(
        each.off_fen for each in found.coupons if each.kind == "freight"
    )
    assert 0 <= found.freight_fen <= freight_fen
    assert 0 <= found.total_fen <= sum(line.line_fen for line in lines) + freight_fen
    assert found.points_fen % 100 == 0
    assert found.points_fen <= min(points, (found.goods_fen - found.coupon_fen) // 2)
    for line, off_fen, points_fen in zip(lines, found.line_coupon_fen, found.line_points_fen, strict=True):
        assert off_fen >= 0 and points_fen >= 0
        assert off_fen + points_fen <= line.line_fen
        assert not (line.no_promo and off_fen)
    for each in found.coupons:
        assert each.off_fen > 0


@settings(deadline=None)
@given(lines_of, st.lists(rules, min_size=1, max_size=6), st.integers(0, 2_000))
def test_the_best_set_saves_at_least_what_any_one_coupon_saves(
    lines: list[GoodsLine], terms: list[dict[str, Any]], freight_fen: int
) -> None:
    coupons = [coupon(**{**each, **together("any", "any")}) for each in terms]
    used, reasons = chosen(coupons, NOBODY, NOW, lines, freight_fen, best=True)
    assert len(used) <= 3
    assert {each.id for each in used}.isdisjoint(reasons)
    assert {each.id for each in used} | set(reasons) == {each.id for each in coupons}
    best = work_out(lines, freight_fen, used).total_fen
    for each in coupons:
        assert best <= work_out(lines, freight_fen, [each]).total_fen
