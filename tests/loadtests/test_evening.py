"""The scenarios of an evening, each at a tiny size: what is right must be, and what is wrong must show."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadtests.__main__ import LoadError
from loadtests.evening import scenarios
from loadtests.evening.__main__ import main, parser, size_of
from loadtests.evening.result import Result, begun
from loadtests.evening.stand import Stand, Talk
from loadtests.swarm import Report, Times

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with Stand(tmp_path_factory.mktemp("stand")) as made:
        yield made


def wrong(result: Result) -> list[str]:
    return [f"{figure.name}: {figure}" for figure in result.figures if figure.must and not figure.met]


async def test_comments_reach_everybody_deflated_or_not(stand: Stand) -> None:
    result = await scenarios.comments(stand, viewers=30, seconds=1, rate=30, floor_s=0.3)
    assert not wrong(result)
    assert result.right
    assert result.figure("plain: frames that came deflated").value == 0
    assert result.figure("deflated: frames that came deflated").value > 0
    assert result.figure("deflated: on the wire, a comment and viewer").goal == "≤ 80"
    assert result.figure("plain: the same ÷ floor").value > 0


async def test_idle_viewers_are_weighed(stand: Stand) -> None:
    result = await scenarios.idle(stand, viewers=40, seconds=0.5)
    assert not wrong(result)
    assert result.figure("memory each").goal == "≤ 10"


async def test_everybody_who_is_cut_comes_back(stand: Stand) -> None:
    result = await scenarios.cut(stand, viewers=30, rate=10, seconds=0.5)
    assert not wrong(result)
    assert result.figure("rejoined with every event").value == 30
    assert result.figure("reads of the log for those who came back, a show and node").value <= 3


@pytest.mark.heavy
async def test_who_never_reads_is_closed_and_who_reads_on_is_healed(stand: Stand) -> None:
    result = await scenarios.stalled(stand, viewers=130, seconds=1, rounds=1, rate=120)
    assert not wrong(result)
    closed, healed = result.figure("closed 4102").value, result.figure("healed without a hole").value
    assert closed + healed == result.figure("stalled").value == 2
    assert closed >= 1


@pytest.mark.heavy
async def test_claims_outlive_the_replacing_of_both_nodes(stand: Stand) -> None:
    result = await scenarios.rolling(stand, viewers=30, quota=7, seconds=1)
    assert not wrong(result)
    assert result.figure("told sold out").value == 23
    assert result.figure("closed 4001").value >= 30, "each node's viewers were sent to the other"


@pytest.mark.heavy
async def test_classes_are_compared_at_equal_viewers(stand: Stand) -> None:
    result = await scenarios.classes(stand, viewers=30, seconds=1, rounds=1, rate=10)
    assert not wrong(result)
    assert result.figure("CPU of three classes ÷ one, median of the pairs").value > 0


async def test_more_comments_than_people_may_write_are_refused(stand: Stand) -> None:
    with pytest.raises(LoadError, match="too many for 30 people"):
        await scenarios.comments(stand, viewers=30, rate=200)


@pytest.mark.heavy
async def test_the_host_counts_what_was_accepted_and_says_what_failed(stand: Stand) -> None:
    async with stand.serve() as server:
        show = await stand.show(server)
        async with Talk(server, show, 50) as said:
            while said.acknowledged < 5:
                await asyncio.sleep(0.01)
        assert said.acknowledged_sum >= sum(range(1, 6))
        calls = stand.redis_calls()
        assert calls["xadd"] >= said.acknowledged
        assert await server.metric("companion_log_reads_total") >= 0
        with pytest.raises(LoadError, match="answered 404"):
            await server.do("POST", "/v1/shows/nowhere/start", {})


@pytest.mark.heavy
def test_the_command_drains_keeps_its_figures_and_leaves_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "loadtests.evening",
        "drain",
        "--viewers",
        "30",
        "--out",
        str(tmp_path),
    ]
    root = str(Path(scenarios.__file__).parents[2])
    done = subprocess.run(
        command,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "closed 4001" in done.stdout
    (kept,) = tmp_path.glob("*-drain.json")
    result = msgspec.json.decode(kept.read_bytes(), type=Result)
    assert not wrong(result)
    assert result.figure("closed 4001").value == 30
    assert result.seconds > 0
    row = (tmp_path / "evening.md").read_text("utf-8").splitlines()[-1]
    assert "| drain | viewers 30 |" in row
    assert row.endswith("| yes |")


def report(**changed: Any) -> Report:
    zero: dict[str, Any] = {}
    for field in msgspec.structs.fields(Report):
        kinds = {dict[str, int]: {}, Times: Times(), list[int]: []}
        zero[field.name] = kinds.get(field.type, 0) if field.type not in (int, float) else 0
    right = {"comments_least": 9, "comments_most": 9, "sum_least": 45, "sum_most": 45}
    return Report(**{**zero, **right, **changed})


@pytest.mark.parametrize(
    ("changed", "right"),
    [
        ({}, True),
        ({"comments_least": 8}, False),
        ({"comments_most": 10}, False),
        ({"sum_least": 44}, False),
        ({"holes": 1}, False),
        ({"repeats": 1}, False),
        ({"disordered": 1}, False),
        ({"gaps": 1}, False),
    ],
)
def test_one_missing_or_odd_message_fails_the_run(changed: dict[str, int], right: bool) -> None:
    result = begun("comments", viewers=3)
    scenarios._complete(result, report(**changed), 9, 45)
    result.add("CPU", 99.0, most=1)
    assert result.right is right, "a cost that misses its goal fails nothing"
    assert result.figure("CPU").met is False


def test_a_result_is_kept_beside_those_before_it(tmp_path: Path) -> None:
    for met in (True, False):
        result = begun("idle", viewers=3)
        result.add("memory each", 12.5, "KB", most=10)
        result.add("missing", 0 if met else 1, exactly=0)
        result.keep(tmp_path)
    rows = (tmp_path / "evening.md").read_text("utf-8").splitlines()
    assert len(rows) == 4, "one head, two rows"
    assert rows[2].endswith("| yes |")
    assert rows[3].endswith("| no |")
    assert "memory each 12.50 KB ✗" in rows[3]
    kept = json.loads(next(tmp_path.glob("*-idle.json")).read_text("utf-8"))
    assert kept["machine"]["cores"] >= 1


def test_the_beat_that_is_promised_grows_with_the_show() -> None:
    assert [scenarios.beat_ms(viewers) for viewers in (10, 1_000, 5_000)] == [50, 100, 250]


def test_what_is_asked_for_replaces_the_small_size() -> None:
    given = parser().parse_args(["--small", "--viewers", "77", "--rounds", "2", "all"])
    assert size_of("idle", given) == {"viewers": 77, "seconds": 10.0}
    assert size_of("stalled", given) == {"viewers": 77, "seconds": 8.0, "rounds": 2}


def test_every_scenario_has_a_small_size_it_understands() -> None:
    assert scenarios.SMALL.keys() == scenarios.ALL.keys()
    for name, run in scenarios.ALL.items():
        assert scenarios.SMALL[name].keys() <= run.__annotations__.keys(), name


def test_the_help_names_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in scenarios.ALL)


def test_a_number_that_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["idle", "--viewers", "0"])
    assert "more than 0" in capsys.readouterr().err
