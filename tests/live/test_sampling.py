"""Sampling: the rule, in the order it is stated."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from live.log import Entry
from live.sampling import CALM_S, Sampler


def comment(seq: int, rank: int) -> Entry:
    return Entry(seq=seq, event=b"{}", bit=0, version=0, urgent=False, redacts=None, rank=rank)


def shown(entries: list[Entry]) -> list[int]:
    return [entry.seq for entry in entries if not entry.sampled]


def test_what_fits_is_shown_whole() -> None:
    entries = [comment(seq, 3) for seq in range(20)]
    assert Sampler(20, 0.0).choose(entries, 0.0, 20) == 0
    assert len(shown(entries)) == 20


def test_nothing_is_left_out_where_all_are_shown() -> None:
    entries = [comment(seq, 4) for seq in range(5_000)]
    assert Sampler(0, 0.0).choose(entries, 0.0, 0) == 0
    assert len(shown(entries)) == 5_000


def test_the_host_is_always_shown_and_costs_nothing() -> None:
    entries = [comment(seq, 0) for seq in range(50)] + [comment(seq, 4) for seq in range(50, 100)]
    assert Sampler(20, 0.0).choose(entries, 0.0, 20) == 30
    assert shown(entries)[:50] == list(range(50))
    assert len(shown(entries)) == 70


def test_buyers_go_before_plan_members_before_registered_before_guests() -> None:
    entries = [comment(seq, 1 + seq % 4) for seq in range(40)]  # ten of each
    Sampler(25, 0.0).choose(entries, 0.0, 25)
    of_rank = {rank: sum(e.rank == rank and not e.sampled for e in entries) for rank in (1, 2, 3, 4)}
    assert of_rank == {1: 10, 2: 10, 3: 5, 4: 0}


def test_the_group_that_does_not_fit_is_shown_evenly_over_the_beat() -> None:
    entries = [comment(seq, 4) for seq in range(100)]
    Sampler(10, 0.0).choose(entries, 0.0, 10)
    kept = shown(entries)
    assert len(kept) == 10
    assert {b - a for a, b in itertools.pairwise(kept)} == {10}


def test_the_budget_is_saved_for_one_second_only() -> None:
    sampler = Sampler(20, 0.0)
    sampler.choose([comment(seq, 4) for seq in range(20)], 0.0, 20)
    after_an_hour = [comment(seq, 4) for seq in range(100)]
    sampler.choose(after_an_hour, 3_600.0, 20)
    assert len(shown(after_an_hour)) == 20


def test_the_show_is_told_that_it_is_sampled_until_it_is_calm() -> None:
    sampler = Sampler(20, 0.0)
    assert not sampler.active(0.0)
    sampler.choose([comment(seq, 4) for seq in range(300)], 1.0, 20)
    sampler.choose([], 2.5, 20)
    assert sampler.posted_per_s in (0, 300)
    assert sampler.active(1.0 + CALM_S - 0.1)
    assert not sampler.active(1.0 + CALM_S + 0.1)


@given(
    st.lists(st.lists(st.integers(0, 4), max_size=60), max_size=30),
    st.integers(1, 40),
    st.sampled_from([0.05, 0.1, 0.25]),
)
def test_over_any_time_no_more_than_the_budget_is_shown_and_no_rank_jumps_the_line(
    beats: list[list[int]], per_s: int, beat_s: float
) -> None:
    sampler = Sampler(per_s, 0.0)
    budgeted = 0
    for number, ranks in enumerate(beats):
        entries = [comment(index, rank) for index, rank in enumerate(ranks)]
        left_out = sampler.choose(entries, number * beat_s, per_s)
        assert left_out == sum(entry.sampled for entry in entries)
        budgeted += sum(entry.rank > 0 and not entry.sampled for entry in entries)
        assert not any(entry.sampled for entry in entries if entry.rank == 0)
        worst_shown = max((e.rank for e in entries if e.rank and not e.sampled), default=0)
        assert all(e.rank >= worst_shown for e in entries if e.sampled)
    assert budgeted <= per_s + per_s * beat_s * len(beats) + 1
