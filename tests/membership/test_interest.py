"""Interest: from records to a judgement, by the rules and nothing else."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from membership.actor import ProductId
from membership.interest import (
    FEW,
    HALF_LIFE,
    OFF,
    STRONG,
    THETA,
    WATCHED,
    Aliases,
    Event,
    Interval,
    Seen,
    World,
    evidence_of,
    judge,
    merge_intervals,
    overlap,
    score_of,
    sittings,
    watch_weight,
)

T0 = datetime(2026, 11, 21, 20, 0, tzinfo=UTC)
RICE, OIL, DATES, CAKE = (ProductId(name) for name in ("rice", "oil", "dates", "cake"))
NAMES = {
    RICE: ["禾田 五常有机大米 5kg", "有机大米"],
    OIL: ["禾田 冷榨亚麻籽油 500ml", "亚麻籽油"],
    DATES: ["禾田 灰枣 大米糕礼盒", "Organic Dates"],
}


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def air(start: float, end: float) -> Interval:
    return Interval(at(start), at(end))


def seen(
    kind: str,
    seconds: float,
    subject: str = "show",
    value: int = 0,
    text: str | None = None,
    show: str = "s1",
) -> Seen:
    return Seen(f"{kind}-{show}-{seconds}-{subject}", show, kind, subject, value, at(seconds), text)


def world(**changes: Any) -> World:
    parts: dict[str, Any] = {
        "aliases": Aliases(NAMES),
        "products": frozenset(NAMES),
        "on_air": {("s1", RICE): [air(0, 600)], ("s1", OIL): [air(600, 1200)]},
        "ordered": {"o1": [RICE]},
        "choices": {"poll:p1:0": "加红枣", "poll:p1:1": "有机大米"},
    }
    return World(**(parts | changes))


def overlap_of(watched: Iterable[tuple[Interval, str]], on_air: Iterable[Interval]) -> Event | None:
    return overlap(sittings(watched), on_air)


# -- watching: what overlaps with being on air


def test_watching_counts_only_while_the_product_is_on_air() -> None:
    event = overlap_of([(air(-100, 180), "w1")], [air(0, 600)])
    assert event is not None
    assert (event.seconds, event.records, event.at) == (180.0, ("w1",), at(180))
    assert event.weight == pytest.approx(1 - math.exp(-1.5))


def test_a_glance_of_less_than_ten_seconds_is_dropped() -> None:
    assert overlap_of([(air(0, 9.999), "w")], [air(0, 600)]) is None
    assert overlap_of([(air(0, 10), "w")], [air(0, 600)]) is not None
    assert overlap_of([(air(0, 100), "w")], []) is None
    assert overlap_of([], [air(0, 100)]) is None


def test_parts_of_one_sitting_are_one_event_and_two_windows_do_not_count_double() -> None:
    parts = [(air(start, start + 60), f"w{start}") for start in range(0, 180, 60)]
    window = [(air(30, 150), "second window")]
    event = overlap_of(parts + window, [air(0, 600)])
    assert event is not None and event.seconds == 180.0
    assert set(event.records) == {"w0", "w60", "w120", "second window"}


def test_times_on_air_add_up_and_only_what_overlapped_is_evidence() -> None:
    event = overlap_of(
        [(air(0, 300), "w1"), (air(400, 500), "w2"), (air(700, 900), "w3")], [air(250, 320), air(450, 480)]
    )
    assert event is not None
    assert (event.seconds, event.records, event.at) == (80.0, ("w1", "w2"), at(480))


spans = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 900)), max_size=6)


@given(spans, spans)
def test_seconds_are_never_more_than_watched_nor_than_on_air(watched: list[Any], aired: list[Any]) -> None:
    watching = [(air(start, start + length), f"w{index}") for index, (start, length) in enumerate(watched)]
    on_air = merge_intervals(air(start, start + length) for start, length in aired)
    event = overlap_of(watching, on_air)
    seconds = 0.0 if event is None else event.seconds
    assert seconds <= sum((one.end - one.start).total_seconds() for one in on_air) + 1e-6
    ticks = {
        tick for start, length in watched for tick in range(start, start + length + 3)
    }  # joined within 2 s
    assert seconds <= len(ticks)
    assert event == overlap_of(list(reversed(watching)), list(reversed(on_air)))


def test_the_same_time_pinned_twice_is_on_air_once() -> None:
    assert merge_intervals([air(0, 100), air(50, 80), air(100, 120), air(200, 200)]) == [air(0, 120)]


# -- comments: which product is meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("有机大米真香", {RICE: 2.0}),
        ("有机大米多少钱一袋", {RICE: 2.5}),
        ("五常有机大米好不好吃", {RICE: 2.0}),
        ("要不要买有机大米呢", {RICE: 2.0}),
        ("亚麻籽油和有机大米怎么买", {RICE: 2.5, OIL: 2.5}),
        ("亚麻籽油不要，有机大米要两袋", {RICE: 2.0}),
        ("有机大米不好吃", {}),
        ("有机大米好吃！但是有机大米我不买", {}),
        ("不要太喜欢有机大米", {RICE: 2.0}),
        ("大米糕", {CAKE: 2.0}),
        ("禾田的东西都好", {}),
        ("5kg 的重吗", {}),
        ("有机大米", {RICE: 2.0}),
        ("ＯＲＧＡＮＩＣ Dates please", {DATES: 2.0}),
        ("i do not want organic dates", {}),
        ("organic datesxyz", {}),
        ("organic is best", {}),
        ("", {}),
    ],
)
def test_a_comment_means_the_product_it_names(text: str, meant: dict[ProductId, float]) -> None:
    names = dict(NAMES) | {CAKE: ["禾田 米糕 大米糕"]}
    assert Aliases(names).mentions(text) == meant


def test_the_longest_name_wins_and_a_shared_word_names_nobody() -> None:
    plain = ProductId("plain")
    aliases = Aliases({RICE: ["有机大米"], plain: ["大米"]})
    assert aliases.mentions("有机大米多好") == {RICE: 2.0}
    assert aliases.mentions("大米多好") == {plain: 2.0}
    assert Aliases({RICE: ["禾田 大米"], OIL: ["禾田 油品"]}).mentions("禾田最好") == {}
    assert Aliases({}).mentions("有机大米") == {}


@given(st.text(max_size=60))
def test_no_comment_can_break_it(text: str) -> None:
    assert set(Aliases(NAMES).mentions(text)) <= set(NAMES)


# -- evidence


def test_every_kind_of_evidence_is_found() -> None:
    events = evidence_of(
        [
            seen("watch", 0, value=180_000),
            seen("click", 20, "product:rice"),
            seen("comment", 30, text="有机大米多少钱"),
            seen("ballot", 40, "poll:p1:1"),
            seen("ballot", 41, "poll:p1:0"),
            seen("order", 50, "order:o1"),
            seen("paid", 70, "order:o1"),
            seen("reaction", 75, value=9),
            seen("claim", 76, "benefit:b"),
            seen("click", 80, "product:unknown"),
        ],
        world(),
    )
    assert set(events) == {RICE}
    assert [(event.kind, round(event.weight, 3)) for event in events[RICE]] == [
        ("click", 3.0),
        ("comment", 2.5),
        ("ballot", 4.0),
        ("order", 10.0),
        ("watch", 0.777),
    ]
    assert events[RICE][3].records == ("order-s1-50-order:o1", "paid-s1-70-order:o1")


def test_an_unpaid_order_weighs_less_and_one_without_goods_nothing() -> None:
    assert evidence_of([seen("order", 0, "order:o1")], world())[RICE][0].weight == 5.0
    assert evidence_of([seen("order", 0, "order:plan")], world()) == {}
    assert evidence_of([seen("paid", 0, "product:oil")], world())[OIL][0].weight == 10.0


def test_a_double_tap_is_one_click() -> None:
    taps = [seen("click", second, "product:rice") for second in (0, 0.5, 1.9, 2.1, 10)]
    assert [event.at for event in evidence_of(taps, world())[RICE]] == [at(0), at(2.1), at(10)]


def test_products_that_may_not_be_tagged_have_no_evidence() -> None:
    records = [seen("click", 0, "product:rice"), seen("watch", 0, value=600_000)]
    assert evidence_of(records, world(products=frozenset({OIL}))) == {}


@given(st.randoms(use_true_random=False))
def test_the_order_in_which_records_come_does_not_matter(chance: random.Random) -> None:
    records = [
        *(seen("watch", start, value=60_000) for start in range(0, 600, 60)),
        *(seen("click", second, "product:rice") for second in (5, 100)),
        seen("comment", 30, text="有机大米多少钱"),
        seen("order", 50, "order:o1"),
        seen("paid", 70, "order:o1"),
    ]
    shuffled = records.copy()
    chance.shuffle(shuffled)
    assert evidence_of(shuffled, world()) == evidence_of(records, world())


# -- judgement: semantics §7


def event(kind: str, days_ago: float = 0.0, weight: float = 1.0, seconds: float = 0.0) -> Event:
    moment = T0 - timedelta(days=days_ago)
    return Event(kind, moment, weight, (f"{kind}-{days_ago}-{weight}",), seconds)


def watch(seconds: float, days_ago: float = 0.0) -> Event:
    return event("watch", days_ago, watch_weight(seconds), seconds)


def click(days_ago: float = 0.0) -> Event:
    return event("click", days_ago, 3.0)


def test_180_seconds_on_air_and_one_click_are_weak() -> None:
    judgement = judge([watch(180), click()], T0)
    assert judgement is not None
    assert (judgement.strength, judgement.rule, judgement.score) == ("weak", WATCHED, 3.77687)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [watch(180)],
        [watch(36_000)],
        [click()],
        [watch(179.9), click()],
        [event("comment", weight=2.0)],
        [watch(3600), event("comment", weight=2.5)],
        [watch(100), watch(100), watch(100)],  # three shows, but hardly looked
        [watch(600, 45), click(45)],  # faded before it began
    ],
)
def test_less_than_that_is_no_tag(events: Sequence[Event]) -> None:
    assert judge(events, T0) is None


@pytest.mark.parametrize(
    "events",
    [
        [watch(60), click(), event("comment", weight=2.0)],
        [click(), click(0.1), click(0.2)],
        [watch(180, 20), click(20), event("order", weight=10.0)],
        [event("comment", weight=2.0), event("ballot", weight=4.0), watch(30)],
    ],
)
def test_a_score_from_three_events_on_is_strong(events: Sequence[Event]) -> None:
    judgement = judge(events, T0)
    assert judgement is not None and (judgement.strength, judgement.rule) == ("strong", STRONG)


@pytest.mark.parametrize(
    "events",
    [[event("order", weight=10.0)], [event("order", weight=5.0)], [click(), event("comment", weight=2.0)]],
)
def test_the_score_from_fewer_events_is_weak(events: Sequence[Event]) -> None:
    judgement = judge(events, T0)
    assert judgement is not None and (judgement.strength, judgement.rule) == ("weak", FEW)


def test_at_theta_it_is_on_and_just_below_it_is_not() -> None:
    def three(score: float) -> list[Event]:
        return [event("comment", weight=score - 2), event("comment", 0, 1.0), event("click", 0, 1.0)]

    on = judge(three(THETA), T0)
    assert on is not None and on.strength == "strong"
    assert judge(three(THETA - 0.000002), T0) is None


@pytest.mark.parametrize("before", ["strong", "weak"])
def test_what_is_on_stays_on_and_as_strong_until_below_six_tenths_of_theta(before: Any) -> None:
    def three(score: float) -> list[Event]:
        return [event("comment", weight=score - 2), event("comment", 0, 1.0), event("click", 0, 1.0)]

    kept = judge(three(OFF), T0, before)
    assert kept is not None and kept.strength == before
    assert judge(three(OFF - 0.000002), T0, before) is None
    assert judge(three(OFF), T0) is None


def test_silent_for_60_days_it_is_off() -> None:
    judgement = judge([watch(180), click()], T0)
    assert judgement is not None
    assert T0 < judgement.expires_at < T0 + timedelta(days=60)
    assert score_of(judgement.events, judgement.expires_at) == pytest.approx(OFF, abs=1e-5)


def test_the_score_halves_in_thirty_days_and_does_not_fade_before_its_time() -> None:
    events = [event("order", weight=10.0)]
    assert score_of(events, T0) == 10.0
    assert score_of(events, T0 + HALF_LIFE) == 5.0
    assert score_of(events, T0 - timedelta(days=1)) == 10.0
