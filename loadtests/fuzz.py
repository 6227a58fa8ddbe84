"""`python -m loadtests.fuzz --frames 1000000 --seed 7`: frames and commands of a seed against the socket.

What is sent, what is doubled and what must hold stand in tests/live/protocol_fuzz.py, so this runs from the
repository. Ends with 1, and with the number of the session, at the first fault.
"""

from __future__ import annotations

import argparse
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.live.protocol_fuzz import Outcome, fuzz

GROWTH_MAX = 1.1  # the last round's memory over the second's
FAULTS_SHOWN = 5


def report(outcome: Outcome, seed: int) -> Table:
    table = Table(title=f"seed {seed}", show_header=False)
    for name, value in (
        ("frames sent", f"{outcome.frames:,}"),
        ("connections", f"{outcome.connections:,}"),
        ("commands answered", f"{outcome.answers:,}"),
        ("frames written", f"{outcome.written:,}"),
        ("frames/s", f"{outcome.frames / max(0.001, outcome.seconds):,.0f}"),
        ("memory by round, MB", " ".join(f"{size / 1e6:.0f}" for size in outcome.memory)),
        ("last round over second", f"{outcome.growth:.3f} (at most {GROWTH_MAX})"),
        ("the same of objects", f"{outcome.more_objects:.3f} (at most {GROWTH_MAX})"),
        ("ended", ", ".join(f"{code}: {count}" for code, count in outcome.closes.most_common())),
        ("faults", str(len(outcome.faults))),
    ):
        table.add_row(name, value)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the same seed is the same run")
    parser.add_argument("--first", type=int, default=0, help="the session to begin with, as a fault names it")
    parser.add_argument("--rounds", type=int, default=10, help="memory is looked at after each")
    args = parser.parse_args()
    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"seed {args.seed}", total=args.frames)
        outcome = fuzz(
            args.frames,
            args.seed,
            rounds=args.rounds,
            first=args.first,
            told=lambda so_far: progress.update(bar, completed=min(so_far.frames, args.frames)),
        )
    console.print(report(outcome, args.seed))
    for fault in outcome.faults[:FAULTS_SHOWN]:
        console.print(fault, markup=False)
    grew = max(outcome.growth, outcome.more_objects)
    if grew > GROWTH_MAX:
        console.print(f"memory grew {grew:.2f} times")
    return 1 if outcome.faults or grew > GROWTH_MAX else 0


if __name__ == "__main__":
    sys.exit(main())
