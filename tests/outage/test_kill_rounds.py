"""Rounds with a kill -9 in each, on real processes: nothing is oversold, lost, double or told otherwise later.

With a guard taken out the same rounds are found wrong: they can tell.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from live.engines import Binaries
from loadtests.rounds.__main__ import MEMORY_MIN
from loadtests.rounds.house import House, free_folder
from loadtests.rounds.plan import VICTIMS, draw
from loadtests.rounds.run import record, replay, run

SEED = 20_261_122
ROUNDS = 20
CONTROL_ROUNDS = 4


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is room: the kill is meant, a slow disk is not."""
    place = free_folder(MEMORY_MIN)
    made = Path(tempfile.mkdtemp(prefix="companion-rounds-", dir=place)) if place else tmp_path
    yield made
    if place:
        shutil.rmtree(made, ignore_errors=True)


def test_a_round_is_drawn_again_from_its_seed_and_number() -> None:
    assert draw(SEED, 7) == draw(SEED, 7)
    drawn = [draw(SEED, number) for number in range(1, ROUNDS + 1)]
    assert len({(plan.step, plan.pause_ms, plan.out_ms) for plan in drawn}) > ROUNDS / 2
    assert {victim for plan in drawn for victim in plan.victims} == {*VICTIMS}, "each is killed in a test run"


def test_in_twenty_rounds_with_a_kill_nothing_is_oversold_lost_or_double(
    folder: Path, binaries: Binaries
) -> None:
    with House(folder, binaries=binaries) as house:
        result = asyncio.run(run(house, rounds=ROUNDS, seed=SEED))
    assert not result.failed, record(result, "")
    assert result.rounds == ROUNDS
    assert result.claims >= 10 * ROUNDS, "in each round ten gifts are won"
    assert result.paid > 0
    assert result.repeats > 0, "something was away"


def test_without_the_count_of_pieces_the_rounds_are_found_wrong(folder: Path, binaries: Binaries) -> None:
    with House(folder, without="pieces", binaries=binaries) as house:
        result = asyncio.run(
            run(house, rounds=CONTROL_ROUNDS, seed=SEED, settled_s=3.0, later_max=1, until_failed=True)
        )
    assert result.failed
    said = "\n".join(result.failed[0].wrong)
    assert "pieces sold" in said
    assert f"--first {result.failed[0].plan.number}" in replay(result.failed[0])


@pytest.mark.heavy
def test_where_an_answer_comes_before_it_is_written_the_rounds_are_found_wrong(
    folder: Path, binaries: Binaries
) -> None:
    with House(folder, durable=False, binaries=binaries) as house:
        result = asyncio.run(
            run(
                house,
                rounds=CONTROL_ROUNDS,
                seed=SEED,
                victims=("postgresql",),
                settled_s=3.0,
                later_max=1,
                until_failed=True,
            )
        )
    assert result.failed, "acknowledged orders were lost and nobody saw it"
