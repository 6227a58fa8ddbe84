"""Two server processes, their jobs and engines; Redis killed and started again, then frozen, under traffic."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys

from rich.console import Console

from loadtests.outage import Said, Talker, Watcher, differences, run
from tests.outage.stand import ROOT


def test_no_viewer_is_closed_and_every_acknowledged_line_is_heard_by_all_once_and_in_order() -> None:
    said = io.StringIO()
    wrong = run(viewers=10, talkers=5, frozen_s=3, calm_s=1, workers=2, console=Console(file=said))
    assert wrong == [], said.getvalue()


def test_a_difference_is_named() -> None:
    async def told() -> list[str]:
        watcher = Watcher("ws://nowhere")
        talker = Talker(watcher, "观众")
        talker.said = [Said(text, seq, 0.0, 1) for seq, text in enumerate(("一", "二", "三"), 1)]
        watcher.epochs = ["e1"]
        watcher.heard = [("e1", 3, "三"), ("e1", 1, "一"), ("e1", 1, "一")]
        watcher.welcomes = [{}, {}]
        watcher.viewer.holes = 1
        return differences([watcher], [talker])

    assert asyncio.run(told()) == [
        "viewer 0 was closed 1 times",
        "viewer 0 saw 1 ranges that did not join",
        "viewer 0 never got 1 acknowledged lines, such as '二'",
        "viewer 0 got 1 lines twice, such as '一'",
        "viewer 0 got numbers of one epoch out of order",
    ]


def test_help_shows_an_example() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.outage", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "example: python -m loadtests.outage" in done.stdout
