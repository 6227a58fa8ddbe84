"""The fan-out benchmark: a whole one in small, what makes a run fail, and what is told and drawn of it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from rich.console import Console

from live.protocol import array, numbered, range_head
from loadtests.fanout.__main__ import compare, main, rotated
from loadtests.fanout.companion import AT, event
from loadtests.fanout.contenders import NodeWs, PythonPeer, all_contenders
from loadtests.fanout.floor import NO_COMPILER, Floor, measure_floor
from loadtests.fanout.machine import Machine
from loadtests.fanout.plot import Bar, bars, step
from loadtests.fanout.result import (
    Result,
    Standing,
    in_order,
    latency_plot,
    markdown_table,
    ratio_plot,
    read_result,
    remarks,
    with_ratios,
    write,
)
from loadtests.fanout.work import Run, Running, Work, cpu_s, listening, run_idle, run_once

CORES = sorted(os.sched_getaffinity(0))
SMALL = Work(viewers=20, rate=10, seconds=0.5, size=200, server_core=CORES[0], viewer_core=CORES[-1])
SVG = "{http://www.w3.org/2000/svg}"
MACHINE = Machine("A processor", 2, 24_000, "6.1", "Debian", "3.11", 0.1)

# A server that speaks the peers' lines and leaves out what its argument says.
CARELESS = """
import asyncio, contextlib, sys
import uvloop
from websockets.exceptions import ConnectionClosed
from websockets.asyncio.server import serve
from loadtests.fanout.peers.pace import frames

async def main():
    viewers = []
    async def stay(viewer):
        viewers.append(viewer)
        await viewer.wait_closed()
    async with serve(stay, "127.0.0.1", 0, compression=None) as server:
        number = 0
        async for text in frames(next(iter(server.sockets)).getsockname()[1]):
            number += 1
            for viewer in viewers[1 if sys.argv[4] == "one" and number == 3 else 0:]:
                with contextlib.suppress(ConnectionClosed):
                    await viewer.send(text)
            if sys.argv[4] == "twice" and number == 3:
                await viewers[0].send(text)
            if sys.argv[4] == "cut" and number == 3:
                viewers[0].transport.abort()
            if sys.argv[4] == "die" and number == 3:
                raise SystemExit("a server that dies")

uvloop.run(main())
"""


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """What a test starts has ended with it; engines of the whole session may run beside."""
    path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    before = set(path.read_text().split())
    yield
    assert set(path.read_text().split()) <= before


class Careless:
    """A contender of the test's own."""

    name, title = "careless", "a careless server"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def prepare(self, folder: Path) -> str | None:
        return None

    def version(self) -> str:
        return "1"

    @contextlib.contextmanager
    def serve(self, work: Work, folder: Path) -> Iterator[Running]:
        program = folder / "careless.py"
        program.write_text(CARELESS)
        asked = [f"{work.rate:g}", f"{work.seconds:g}", str(work.size), self.fault]
        with listening([sys.executable, "-P", program, *asked], work, folder) as running:
            yield running


@pytest.mark.usefixtures("nothing_left")
def test_a_small_benchmark_compares_us_with_the_floor_and_the_peers_of_this_venv(tmp_path: Path) -> None:
    wanted = {"floor", "companion", "picows", "websockets", "starlette"}
    contenders = [contender for contender in all_contenders() if contender.name in wanted]
    result = compare(contenders, SMALL, 1, tmp_path, Console(quiet=True))
    standings = {standing.name: standing for standing in result.contenders}
    assert standings.keys() == wanted
    floor = standings.pop("floor")
    assert floor.not_run is None or floor.not_run == NO_COMPILER
    for standing in standings.values():
        (run,) = standing.runs
        assert run.failed is None, f"{standing.name}: {run.failed}"
        assert run.published == 5
        assert run.delivered == 100
        # On a busy machine two of our events may be late together and share a frame; a peer's never do.
        assert 0 < run.frames <= 100 if standing.name == "companion" else run.frames == 100
        assert run.cpu_us > 0
        assert 0 < run.p50_ms <= run.p99_ms
        assert run.rss_bytes > 1_000_000
        assert (run.ratio is None) == bool(floor.not_run)
        assert standing.version
    assert standings["companion"].runs[0].beside_us["valkey"] > 0


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("one", "1 of 100 messages missing"),
        ("twice", "1 messages more than were sent"),
        ("cut", "2 of 100 messages missing"),
        ("die", "it ended early; it said: a server that dies"),
    ],
)
def test_a_run_in_which_one_message_went_wrong_has_failed_and_says_so(
    fault: str, said: str, tmp_path: Path
) -> None:
    run = run_once(Careless(fault), SMALL, tmp_path / "run")
    assert run.failed == said


def test_the_same_server_without_a_fault_passes(tmp_path: Path) -> None:
    assert run_once(Careless("none"), SMALL, tmp_path / "run").failed is None


def test_a_failed_run_is_left_out_of_the_figures_and_fails_the_benchmark() -> None:
    careless = Standing("careless", "a careless server", runs=[Run(1, "1 of 100 messages missing")])
    result = Result(datetime.now(UTC), MACHINE, SMALL, 1, [careless])
    assert result.failed
    assert "| a careless server | – | – | – | – | – | – | 0 of 1 |" in markdown_table(result)
    assert "a careless server failed in round 1: 1 of 100 messages missing." in remarks(result)
    careless.runs.append(Run(2, None, cpu_us=10.0, p50_ms=1.0, p99_ms=2.0))
    assert result.failed
    assert "| a careless server | 10.0 | – | 1.0 | 2.0 | 0.0 | 0.0 | 1 of 2 |" in markdown_table(result)


def test_the_floor_is_measured_alone_or_says_what_it_needs() -> None:
    if Floor().prepare(Path("/nonexistent")) == NO_COMPILER:
        with pytest.raises(Exception, match="no C compiler"):
            measure_floor(20, 10, 0.5, 200)
    else:
        assert measure_floor(20, 10, 0.5, 200, server_core=CORES[0], viewer_core=CORES[-1]) > 0


def test_without_a_compiler_there_are_times_but_no_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    said = Floor().prepare(tmp_path)
    assert said == NO_COMPILER
    result = Result(
        datetime.now(UTC),
        MACHINE,
        SMALL,
        1,
        [
            Standing("floor", "floor", not_run=said),
            Standing("companion", "ours", runs=[Run(1, None, cpu_us=10.0, p50_ms=1, p99_ms=2)]),
        ],
    )
    with_ratios(result.contenders)
    assert "| **ours** | 10.0 | – |" in markdown_table(result)
    assert any(line.startswith("floor was not run: no C compiler") for line in remarks(result))
    assert "There is no floor, so there are no ratios to it." in remarks(result)
    page = write(result, tmp_path / "results")
    assert sorted(path.suffix for path in page.parent.iterdir()) == [".json", ".md", ".svg"]


def test_a_peer_that_cannot_run_here_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = PythonPeer("x", "x", "x", ["no_such_package"])
    assert peer.prepare(tmp_path) == "no_such_package missing: pip install 'live-companion[bench]'"
    monkeypatch.setattr("loadtests.fanout.contenders.find_node", lambda: None)
    assert "no node" in (NodeWs().prepare(tmp_path) or "")
    for contender in all_contenders():
        if contender.name == "nchan":
            monkeypatch.setattr("shutil.which", lambda *_, **__: None)
            assert "apt-get install nginx-light libnginx-mod-nchan" in (contender.prepare(tmp_path) or "")


def test_idle_viewers_are_measured_without_a_frame(tmp_path: Path) -> None:
    quiet = msgspec.structs.replace(SMALL, rate=0.0)
    run = run_idle(Careless("none"), quiet, tmp_path / "run")
    assert run.failed is None
    assert run.rss_bytes > 1_000_000
    assert run.delivered == 0


@pytest.mark.parametrize("size", [200, 1_000])
def test_our_event_makes_a_frame_of_the_size_that_was_asked_for(size: int) -> None:
    made = event("0123abcd", 41, size).replace('"type"', AT + '"type"', 1).encode()
    assert len(array([range_head("0123abcd", 41, 41), numbered(41, made)])) == size


def test_time_used_by_a_process_is_what_the_process_itself_says() -> None:
    before, own = cpu_s(os.getpid()), time.process_time()
    while time.process_time() - own < 0.05:
        pass
    assert 0.05 <= cpu_s(os.getpid()) - before <= time.process_time() - own + 0.01


def test_who_begins_a_round_ends_the_next() -> None:
    names = ["a", "b", "c"]
    assert [rotated(names, number) for number in (1, 2, 3, 4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_messages_that_shared_a_frame_are_told() -> None:
    shared = Run(1, None, delivered=1_000, frames=950, cpu_us=9.0)
    whole = Run(2, None, delivered=1_000, frames=1_000, cpu_us=9.0)
    said = [
        remarks(Result(datetime.now(UTC), MACHINE, SMALL, 1, [Standing("a", "ours", runs=runs)]))
        for runs in ([shared, whole], [whole])
    ]
    assert "ours: up to 5.0% of the messages shared a frame with another; the cost is per frame." in said[0]
    assert not any("shared a frame" in line for line in said[1])


# -- told and drawn ----------------------------------------------------------------------------------


def run(number: int, cpu_us: float, **more: float | str | None) -> Run:
    return msgspec.convert(
        {"round": number, "failed": None, "cpu_us": cpu_us, "p50_ms": 2.0, "p99_ms": 9.0, **more}, Run
    )


@pytest.fixture
def result() -> Result:
    made = Result(
        datetime(2026, 11, 21, 20, 30, tzinfo=UTC),
        MACHINE,
        Work(),
        3,
        [
            Standing("floor", "floor: C", "cc 12", runs=[run(1, 8.0), run(2, 10.0), run(3, 7.0)]),
            Standing("companion", "ours", "1", runs=[run(1, 9.6), run(2, 11.0), run(3, 10.5)]),
            Standing("slow", "a <slow> & old one", "2", runs=[run(1, 16.0), run(2, 30.0, failed="x"), run(3, 21.0)]),
            Standing("away", "not here", not_run="no such program"),
        ],
    )  # fmt: skip
    with_ratios(made.contenders)
    return made


def test_ratios_are_to_the_floor_of_the_same_round_and_their_median_is_told(result: Result) -> None:
    ours = result.contenders[1]
    assert ours.ratios() == pytest.approx([1.2, 1.1, 1.5])
    table = markdown_table(result).splitlines()
    assert table[2].startswith("| floor: C | 8.0 | 1.00 |")
    assert table[3].startswith("| **ours** | 10.5 | 1.20 (1.10–1.50) | 2.0 | 9.0 |")
    assert table[4].startswith("| a <slow> & old one | 18.5 | 2.50 (2.00–3.00) |")
    assert table[4].endswith("| 2 of 3 |")
    assert table[5] == "| not here | – | – | – | – | – | – | not run |"


def test_the_cheapest_stands_first_and_who_did_not_run_last(result: Result) -> None:
    result.contenders.reverse()
    assert [standing.name for standing in in_order(result.contenders)] == [
        "floor",
        "companion",
        "slow",
        "away",
    ]


def test_a_result_is_written_read_again_and_its_table_printed(
    result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = write(result, tmp_path)
    assert page.name == "2026-11-21-fanout.md"
    text = page.read_text()
    assert str(MACHINE) in text
    assert "- floor: C: cc 12" in text
    for name in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert (tmp_path / name).exists()
    assert read_result(page.with_suffix(".json")) == result
    assert main(["--table", str(page.with_suffix(".json"))]) == 0
    assert capsys.readouterr().out == markdown_table(result)


def test_a_second_result_of_the_day_leaves_the_first_alone(result: Result, tmp_path: Path) -> None:
    first = write(result, tmp_path).read_bytes()
    assert write(result, tmp_path).name == "2026-11-21-fanout-2.md"
    assert (tmp_path / "2026-11-21-fanout.md").read_bytes() == first


def test_a_file_that_is_no_result_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text('{"some": "thing"}')
    assert main(["--table", str(tmp_path / "other.json")]) == 1
    assert capsys.readouterr().err.startswith("fanout: ")


def test_plots_are_well_formed_and_fit_both_light_and_dark_pages(result: Result) -> None:
    for text, count in ((ratio_plot(result), 3), (latency_plot(result), 6)):
        drawn = ElementTree.fromstring(text)
        assert drawn.tag == f"{SVG}svg"
        assert len(drawn.findall(f"{SVG}rect")) == count
        assert len(drawn.findall(f"{SVG}rect[@class='own']")) == 1
        assert "prefers-color-scheme: dark" in text
        words = [found.text for found in drawn.findall(f"{SVG}text")]
        assert "a <slow> & old one" in words


def test_bars_are_as_long_as_their_numbers_and_stay_on_the_page() -> None:
    drawn = ElementTree.fromstring(bars('a "title"', "unit", [Bar("one", 1.0), Bar("four", 4.0)]))
    short, long = (float(found.get("width", "0")) for found in drawn.findall(f"{SVG}rect"))
    assert long == pytest.approx(4 * short, abs=0.2)
    assert float(drawn.findall(f"{SVG}rect")[1].get("x", "0")) + long < float(drawn.get("width", "0"))


@pytest.mark.parametrize(("largest", "between"), [(0.9, 0.2), (2.4, 0.5), (6.0, 1.0), (46.0, 10.0)])
def test_ticks_fall_on_round_numbers(largest: float, between: float) -> None:
    assert step(largest) == pytest.approx(between)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--viewers", "0"], "must be from 1 to 20,000"),
        (["--bytes", "20"], "must be from 64 to 65,535"),
        (["--only", "nobody"], "invalid choice"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_it_explains_itself_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "example: python -m loadtests.fanout --viewers 1000" in " ".join(capsys.readouterr().out.split())
