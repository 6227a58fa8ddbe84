"""Pressure: the ladder goes up in its order, slowly, and comes down more slowly."""

from __future__ import annotations

from live.pressure import DOWN_AFTER_S, JOIN_LATE_S, LATE_S, PAUSE_S, STEPS, TURNS, UP_AFTER_S, Pressure

TURN_S = 0.25


def run(pressure: Pressure, since: float, seconds: float, late_s: float, buffered: float = 0.0) -> float:
    for _ in range(int(seconds / TURN_S)):
        since += TURN_S
        pressure.observe(late_s, buffered, since)
    return since


def test_a_late_loop_takes_likes_then_comments_then_presence_and_nothing_else() -> None:
    pressure = Pressure(0.0)
    at, seen = 0.0, []
    for _ in range(8):
        at = run(pressure, at, UP_AFTER_S, LATE_S * 2)
        seen.append(pressure.step)
    assert [step for index, step in enumerate(seen) if step and step not in seen[:index]] == [*STEPS]
    assert all(pressure.gives_up(step) for step in STEPS)


def test_one_slow_turn_is_no_pressure() -> None:
    pressure = Pressure(0.0)
    at = run(pressure, 0.0, 10, 0.0)
    for _ in range(TURNS):
        pressure.observe(0.4, 0.0, at + TURN_S)
        at = run(pressure, at + TURN_S, 3, 0.0)
    assert pressure.step is None


def test_one_look_at_full_buffers_is_no_pressure() -> None:
    pressure = Pressure(0.0)
    at = run(pressure, 0.0, 60, 0.0)
    pressure.observe(0.0, 0.9, at + TURN_S)
    run(pressure, at + TURN_S, 5, 0.0)
    assert pressure.step is None


def test_full_buffers_are_pressure_too() -> None:
    pressure = Pressure(0.0)
    run(pressure, 0.0, UP_AFTER_S + 1, 0.0, buffered=0.6)
    assert pressure.step == "reactions"


def test_each_step_is_taken_back_after_ten_calm_seconds() -> None:
    pressure = Pressure(0.0)
    at = run(pressure, 0.0, 20, LATE_S * 2)
    assert pressure.level == 3
    at = run(pressure, at, DOWN_AFTER_S - 1, 0.0)
    assert pressure.level == 3
    at = run(pressure, at, TURNS * TURN_S + 1, 0.0)
    assert pressure.level == 2
    run(pressure, at, 2 * DOWN_AFTER_S + 1, 0.0)
    assert pressure.step is None


def test_between_calm_and_late_nothing_moves() -> None:
    pressure = Pressure(0.0)
    at = run(pressure, 0.0, UP_AFTER_S + TURNS * TURN_S, LATE_S * 2)
    level = pressure.level
    run(pressure, at, 60, (LATE_S + 0.02) / 2)
    assert pressure.level == level > 0


def test_after_the_loop_stood_still_nobody_is_let_in_until_it_is_punctual() -> None:
    pressure = Pressure(0.0)
    pressure.observe(PAUSE_S, 0.0, 1.0)
    assert pressure.paused_at == 1.0
    pressure.observe(JOIN_LATE_S * 2, 0.0, 1.25)
    assert pressure.paused_at == 1.0
    pressure.observe(0.0, 0.0, 1.5)
    assert pressure.paused_at is None
    assert pressure.last_pause_at == 1.0


def test_at_the_step_of_comments_a_fourth_is_shown_also_where_all_were() -> None:
    pressure = Pressure(0.0)
    assert (pressure.comments_per_s(20), pressure.comments_per_s(0)) == (20, 0)
    pressure.level = 2
    assert (pressure.comments_per_s(20), pressure.comments_per_s(0), pressure.comments_per_s(1)) == (5, 5, 1)
