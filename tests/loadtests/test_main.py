"""`python -m loadtests`: a whole run in small, its errors, and what is left of it when it is killed."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loadtests.__main__ import LoadError, Outcome, allow_files, main

ROOT = Path(__file__).resolve().parents[2]
MARK = "TEST_MARK"  # in the environment of everything a run starts


class Run:
    """A running load test and whatever it started."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark, self.folder = uuid.uuid4().hex, folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loadtests", "--out", str(folder / "results"), *arguments],
            cwd=ROOT,
            env={**os.environ, MARK: self.mark, "TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def line(self, pattern: str) -> str:
        """The first line that matches; all that was said when there is none."""
        assert self.process.stdout is not None
        said = []
        for text in self.process.stdout:
            said.append(text)
            if re.search(pattern, text):
                return text
        raise AssertionError(f"no line matched {pattern!r}: {''.join(said)}")

    def family(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                marked = f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes()
                # Valkey writes its title over its environment.
                if marked or os.readlink(folder / "cwd").startswith(str(self.folder)):
                    found.append(int(folder.name))
        return found

    def nothing_left(self, wait_s: float = 10.0) -> bool:
        end = time.monotonic() + wait_s
        while self.family() and time.monotonic() < end:
            time.sleep(0.05)
        return not self.family()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    started: list[Run] = []

    def start(*arguments: str) -> Run:
        started.append(Run(tmp_path, *arguments))
        return started[-1]

    yield start
    for made in started:
        for pid in made.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        made.process.communicate(timeout=10)


def test_a_run_says_what_it_measured_and_leaves_only_its_report(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    running = run("--viewers", "10", "--minutes", "0.1")
    said, _ = running.process.communicate(timeout=120)
    assert running.process.returncode == 0, said
    for what in (
        r"joined +│ +10 │ met",
        r"holes +│ +0 │ met",
        "delivery p50 / p95 / p99",
        "server: cores, memory",
    ):
        assert re.search(what, said), said
    (report,) = (tmp_path / "results").iterdir()
    assert report.suffix == ".html"
    assert str(report) in said
    assert "delivery" in report.read_text()
    assert running.nothing_left()
    assert list(tmp_path.glob("companion-load-*")) == []


def test_a_killed_run_leaves_no_process_behind_and_the_next_one_takes_its_folder_away(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    running = run("--viewers", "4", "--minutes", "5")
    running.line("feeding in")
    assert len(running.family()) > 3
    running.process.kill()
    assert running.nothing_left(), running.family()
    (left,) = tmp_path.glob("companion-load-*")
    following = run("--viewers", "4", "--minutes", "5")
    following.line("feeding in")
    assert not left.exists()
    following.process.terminate()
    assert following.nothing_left(30.0), following.family()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--viewers", "many"], "must be a whole number from 2 to 20,000"),
        (["--viewers", "1"], "must be a whole number from 2 to 20,000"),
        (["--minutes", "0"], "must be minutes from 0.05 to 1440"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_it_explains_itself_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "example: python -m loadtests --viewers 1000" in " ".join(capsys.readouterr().out.split())


def test_too_few_open_files_are_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1_024))
    with pytest.raises(LoadError, match="ulimit -Hn 5512"):
        allow_files(5_000)


def entry(kind: str, name: str, times: dict[str, int], failures: int = 0) -> dict[str, Any]:
    return {
        "method": kind,
        "name": name,
        "num_requests": sum(times.values()),
        "num_failures": failures,
        "response_times": times,
    }


def test_percentiles_are_taken_over_all_kinds_of_events_together() -> None:
    outcome = Outcome(
        [
            entry("delivery", "comment.posted", {"10": 90}),
            entry("delivery", "poll.opened", {"20": 8, "500": 2}),
            entry("join", "anew", {"900": 5}),
            entry("hole", "range", {"0": 2}, failures=2),
        ]
    )
    assert outcome.percentiles("delivery") == (10, 20, 500)
    assert outcome.count("delivery") == 100
    assert outcome.failed() == Counter({"hole range": 2})
    assert outcome.names("join") == Counter({"anew": 5})
