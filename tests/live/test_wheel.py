"""The timer wheel: who is due is looked at once, at their time, and nobody else is touched."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from live.wheel import SLOT_S, Wheel


class Standing:
    slot = 0


class Clock:
    at = 100.0

    def __call__(self) -> float:
        return self.at


def test_who_is_put_again_stands_in_one_slot_only() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    socket: Any = Standing()
    wheel.put(socket, 130.0)
    wheel.put(socket, 101.0)
    assert len(wheel) == 1
    clock.at = 102.0
    assert wheel.turn() == [socket]
    assert len(wheel) == 0
    clock.at = 140.0
    assert wheel.turn() == []


def test_who_left_is_not_looked_at() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    socket: Any = Standing()
    wheel.put(socket, 101.0)
    wheel.drop(socket)
    wheel.drop(socket)
    clock.at = 110.0
    assert wheel.turn() == []


def test_a_time_that_has_passed_is_the_next_turn() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    socket: Any = Standing()
    wheel.put(socket, 3.0)
    clock.at += SLOT_S
    assert wheel.turn() == [socket]


def test_a_loop_that_stood_still_looks_at_all_it_missed() -> None:
    clock = Clock()
    wheel = Wheel(clock)
    sockets: list[Any] = [Standing() for _ in range(40)]
    for index, socket in enumerate(sockets):
        wheel.put(socket, 100.0 + index / 10)
    clock.at = 110.0
    assert set(wheel.turn()) == set(sockets)


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0.01, 5)), max_size=60))
def test_nobody_is_early_by_more_than_the_slot_and_nobody_is_forgotten(
    moves: list[tuple[float, float]],
) -> None:
    clock = Clock()
    wheel = Wheel(clock)
    due: dict[Any, float] = {}
    for wait_s, step_s in moves:
        socket: Any = Standing()
        due[socket] = clock.at + wait_s
        wheel.put(socket, due[socket])
        clock.at += step_s
        for found in wheel.turn():
            assert clock.at >= due.pop(found) - SLOT_S
        assert all(left + 2 * SLOT_S >= clock.at for left in due.values())
    clock.at += 100
    assert set(wheel.turn()) == set(due)
