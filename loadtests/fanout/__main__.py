"""The fan-out benchmark: our server and its peers send the same frames to the same viewers on one machine.

    python -m loadtests.fanout --viewers 1000 --rounds 5

Each contender runs once in every round, the order rotated; servers on one core, viewers on another. What
is measured, and how to read it, stands in loadtests/README.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtests.__main__ import RESULTS, LoadError, allow_files, own_folder
from loadtests.fanout.contenders import all_contenders
from loadtests.fanout.machine import this_machine
from loadtests.fanout.result import (
    FLOOR,
    Idle,
    Result,
    Standing,
    idle_table,
    markdown_table,
    read_result,
    remarks,
    rich_table,
    with_ratios,
    write,
)
from loadtests.fanout.work import BYTES_MAX, BYTES_MIN, Contender, Run, Work, run_idle, run_once

IDLE_S: Final = 30.0  # long enough for every viewer to be pinged once
PLAIN_WIDTH: Final = 120


def rotated(names: Sequence[str], number: int) -> list[str]:
    """The order of a round, counted from 1: whoever began the last one ends this one."""
    turn = (number - 1) % max(1, len(names))
    return [*names[turn:], *names[:turn]]


def say(title: str, run: Run) -> str:
    if run.failed:
        return f"round {run.round}  {title}: [red]FAILED[/] {run.failed}"
    return (
        f"round {run.round}  {title}: {run.cpu_us:.2f} µs per frame, p50 {run.p50_ms:.1f} ms, "
        f"p99 {run.p99_ms:.1f} ms, {run.delivered:,} delivered"
    )


def compare(
    contenders: Sequence[Contender],
    work: Work,
    rounds: int,
    folder: Path,
    console: Console,
    idle: int = 0,
) -> Result:
    """Every contender that can run here, `rounds` times."""
    result = Result(datetime.now().astimezone(), this_machine(), work, rounds, [])
    able: dict[str, tuple[Contender, Standing]] = {}
    for contender in contenders:
        standing = Standing(contender.name, contender.title)
        result.contenders.append(standing)
        standing.not_run = contender.prepare(folder)
        if standing.not_run:
            console.print(f"not run: {contender.title}: {standing.not_run}", highlight=False)
            continue
        standing.version = contender.version()
        able[contender.name] = contender, standing
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(able) * (rounds + bool(idle)))
        for number in range(1, rounds + 1):
            for name in rotated(list(able), number):
                contender, standing = able[name]
                progress.update(task, description=f"round {number}: {contender.title}")
                run = run_once(contender, work, folder / "runs" / f"{number}-{name}", number)
                standing.runs.append(run)
                progress.console.print(say(contender.title, run), highlight=False)
                progress.advance(task)
        for name, (contender, standing) in able.items() if idle else ():
            progress.update(task, description=f"{idle:,} idle viewers: {contender.title}")
            standing.idle = _idle(contender, work, idle, folder / "runs" / f"idle-{name}")
            progress.advance(task)
    with_ratios(result.contenders)
    return result


def _idle(contender: Contender, work: Work, viewers: int, folder: Path) -> Idle:
    quiet = msgspec.structs.replace(work, viewers=viewers, rate=0.0, seconds=IDLE_S)
    run = run_idle(contender, quiet, folder)
    if run.failed:
        return Idle(run.failed)
    return Idle(None, viewers, IDLE_S, run.rss_bytes, run.rss_per_viewer, run.cpu_us)


def show(result: Result, console: Console) -> None:
    console.print(rich_table(result))
    for line in remarks(result):
        console.print(f"- {line}", highlight=False)
    if told := idle_table(result):
        console.print(told, highlight=False)


# -- the command -----------------------------------------------------------------------------------


def _number(kind: Callable[[str], Any], least: float, most: float) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be from {least:,} to {most:,}")
        return number

    return read


def parser() -> argparse.ArgumentParser:
    names = [contender.name for contender in all_contenders()]
    cores = sorted(os.sched_getaffinity(0))
    made = argparse.ArgumentParser(
        prog="python -m loadtests.fanout",
        description="Our server and its peers send the same frames to the same viewers; what each costs.",
        epilog="example: python -m loadtests.fanout --viewers 1000 --rate 50 --seconds 10 --rounds 5",
    )
    add = made.add_argument
    add("--viewers", type=_number(int, 1, 20_000), default=1_000, help="default 1,000")
    add("--rate", type=_number(float, 0.1, 1_000), default=50.0, help="frames a second (default 50)")
    add("--bytes", type=_number(int, BYTES_MIN, BYTES_MAX), default=200, help="of a frame (default 200)")
    add("--seconds", type=_number(float, 0.5, 600), default=10.0, help="of each run (default 10)")
    add("--rounds", type=_number(int, 1, 100), default=5, help="runs of each contender (default 5)")
    add(
        "--only",
        nargs="+",
        choices=names,
        metavar="NAME",
        help=f"these and the floor, of: {', '.join(names)}",
    )
    add("--idle", type=_number(int, 0, 20_000), default=0, help="also N viewers to whom nothing is said")
    add("--server-core", type=int, choices=cores, default=cores[0], help=f"default {cores[0]}")
    add("--viewer-core", type=int, choices=cores, default=cores[-1], help=f"default {cores[-1]}")
    add("--engine-core", type=int, choices=cores, help="of Redis and PostgreSQL; default the server's")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help=f"for results (default {RESULTS})")
    add("--table", type=Path, metavar="JSON", help="print the table of an earlier result, and end")
    return made


def _run(given: argparse.Namespace, console: Console) -> int:
    if given.table:
        print(markdown_table(read_result(given.table)), end="")
        return 0
    allow_files(max(given.viewers, given.idle))
    engine_core = given.server_core if given.engine_core is None else given.engine_core
    work = Work(
        given.viewers,
        given.rate,
        given.seconds,
        given.bytes,
        given.server_core,
        given.viewer_core,
        engine_core,
    )
    chosen = [c for c in all_contenders() if not given.only or c.name in (FLOOR, *given.only)]
    os.sched_setaffinity(0, {given.viewer_core})  # who publishes stays out of the server's way
    folder, alive = own_folder()
    try:
        result = compare(chosen, work, given.rounds, folder, console, given.idle)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        alive.close()
    show(result, console)
    page = write(result, given.out)
    console.print(f"written: {page}", highlight=False, soft_wrap=True)
    return 1 if result.failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    console = Console()
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    try:
        return _run(given, console)
    except (LoadError, OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        print(f"fanout: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
