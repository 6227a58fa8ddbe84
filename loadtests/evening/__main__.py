"""Run scenarios on a stand of their own and keep what came of them.

    python -m loadtests.evening comments idle
    python -m loadtests.evening --small all

A goal in time or cost says as much as the machine is quiet. What is lost, told twice or told wrong fails
the run, whatever its figures.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx2
import uvloop
from rich.console import Console
from rich.table import Table

from live.engines import EngineError
from loadtests.__main__ import RESULTS, LoadError, own_folder
from loadtests.evening import scenarios
from loadtests.evening.result import Result
from loadtests.evening.stand import Stand
from loadtests.swarm import SwarmError, allow_files

OPTIONS: Final = ("viewers", "seconds", "rounds", "rate", "quota")


def parser() -> argparse.ArgumentParser:
    lines = [f"  {name:10} {_first_line(run)}" for name, run in scenarios.ALL.items()]
    made = argparse.ArgumentParser(
        prog="python -m loadtests.evening",
        description="An evening at its size, against a server of its own.",
        epilog="\n".join(
            ["scenarios:", *lines, "", "example: python -m loadtests.evening cut --viewers 2000"]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("scenario", nargs="+", choices=[*scenarios.ALL, "all"], metavar="SCENARIO")
    made.add_argument("--small", action="store_true", help="each at a size that takes seconds")
    made.add_argument("--viewers", type=int, help="instead of the scenario's own number")
    made.add_argument("--seconds", type=float, help="how long each part is measured")
    made.add_argument("--rounds", type=int, help="pairs that are compared (stalled, classes)")
    made.add_argument("--rate", type=float, help="comments a second (comments, cut, stalled, classes)")
    made.add_argument("--quota", type=int, help="pieces (rolling)")
    made.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help=f"default {RESULTS}")
    return made


def _first_line(run: scenarios.Scenario) -> str:
    return (run.__doc__ or "").partition("\n")[0]


def size_of(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, of what the scenario knows."""
    known = inspect.signature(scenarios.ALL[name]).parameters
    asked = {option: getattr(given, option) for option in OPTIONS if getattr(given, option) is not None}
    size = dict(scenarios.SMALL[name]) if given.small else {}
    return {**size, **{option: value for option, value in asked.items() if option in known}}


def table(result: Result) -> Table:
    size = ", ".join(f"{name} {value}" for name, value in result.size.items())
    made = Table(title=f"{result.scenario}: {size}", title_justify="left")
    made.add_column("what")
    made.add_column("measured", justify="right")
    made.add_column("goal")
    for figure in result.figures:
        mark = "" if figure.met is None else ("[green]yes[/] " if figure.met else "[red]no[/] ")
        made.add_row(figure.name, str(figure), f"{mark}{figure.goal}")
    return made


async def run(stand: Stand, names: Sequence[str], given: argparse.Namespace) -> bool:
    """Whether all was right."""
    right = True
    for name in names:
        began = time.monotonic()
        with stand.step(f"{name} …"):
            result = await scenarios.ALL[name](stand, **size_of(name, given))
        result.seconds = time.monotonic() - began
        stand.console.print(table(result))
        path = await asyncio.to_thread(result.keep, given.out)
        stand.console.print(f"kept: {path}", highlight=False, soft_wrap=True)
        right = right and result.right
    return right


def main(arguments: Sequence[str] | None = None) -> int:
    made = parser()
    given = made.parse_args(arguments)
    if any(value is not None and value <= 0 for value in map(vars(given).get, OPTIONS)):
        made.error("a number must be more than 0")
    names = list(scenarios.ALL) if "all" in given.scenario else list(dict.fromkeys(given.scenario))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT also when it came ignored
        signal.signal(number, stop)
    console = Console()
    if not console.is_terminal:
        console.width = 110  # a file or CI's log: nothing says how wide it is
    folder, alive = own_folder()
    try:
        allow_files(given.viewers or 10_000)
        console.print("starting the engines …")
        with Stand(folder, console) as stand:
            return 0 if uvloop.run(run(stand, names, given)) else 1
    except (LoadError, SwarmError, EngineError, httpx2.HTTPError, OSError) as error:
        print(f"evening: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a second one leaves no folder behind
            signal.signal(number, signal.SIG_IGN)
        shutil.rmtree(folder, ignore_errors=True)
        alive.close()


if __name__ == "__main__":
    sys.exit(main())
