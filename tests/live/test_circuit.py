"""The circuit: after a failure nobody waits, one looks, and all follow its answer."""

from __future__ import annotations

import asyncio

import pytest

from live.circuit import REST_S, Circuit
from membership.refusal import Away


class Clock:
    def __init__(self) -> None:
        self.at = 100.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuit(clock: Clock) -> Circuit:
    made = Circuit(clock, (OSError,))
    with pytest.raises(OSError, match="gone"), made.asking():
        raise OSError("gone")
    return made


def test_after_a_failure_nobody_asks_for_a_moment(circuit: Circuit, clock: Clock) -> None:
    clock.at += REST_S - 0.01
    with pytest.raises(Away) as told:
        circuit.check()
    assert told.value.retry_ms
    clock.at += 0.02
    circuit.check()


def test_then_one_looks_and_the_others_wait_for_no_answer(circuit: Circuit, clock: Clock) -> None:
    clock.at += REST_S
    with circuit.asking(), pytest.raises(Away):
        circuit.check()
    circuit.check()
    with circuit.asking():
        circuit.check()  # it answers again: all at once


def test_when_the_one_fails_the_rest_begins_anew(circuit: Circuit, clock: Clock) -> None:
    clock.at += REST_S
    with pytest.raises(OSError, match="still"), circuit.asking():
        raise OSError("still gone")
    with pytest.raises(Away), circuit.asking():
        raise AssertionError("nobody asks now")


def test_a_refusal_is_an_answer(circuit: Circuit, clock: Clock) -> None:
    clock.at += REST_S
    with pytest.raises(ValueError, match="no"), circuit.asking():
        raise ValueError("no")
    with circuit.asking():
        circuit.check()


def test_one_who_looked_and_left_lets_the_next_one_look(circuit: Circuit, clock: Clock) -> None:
    clock.at += REST_S
    with pytest.raises(asyncio.CancelledError), circuit.asking():
        raise asyncio.CancelledError
    with circuit.asking(), pytest.raises(Away):
        circuit.check()
