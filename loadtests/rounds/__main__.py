"""Rounds with a kill in each: `python -m loadtests.rounds --rounds 300 --seed 20261122`.

Two server nodes, jobs, payment provider, Redis and PostgreSQL of its own, all of them real processes. In each
round people join, claim and buy what there is too little of, and at a drawn moment one of the processes, or
two, is killed (-9) and started again. Nothing may be oversold, lost, double or changed afterwards.

A round that is wrong prints the command that plays it again. `--guard-removed` takes one guard out: then
rounds must go wrong, or nothing would be proved by those that do not.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from live.engines import EngineError
from loadtests.__main__ import RESULTS, LoadError
from loadtests.rounds.house import House, free_folder
from loadtests.rounds.judge import SETTLED_S
from loadtests.rounds.plan import VICTIMS
from loadtests.rounds.play import Played
from loadtests.rounds.run import JUDGED_LATER_MAX, Failed, Result, keep, replay, run

GUARDS: Final = ("pieces", "settling", "durable")
MEMORY_MIN: Final = 2 << 30
OWN_WAITS_S: Final = 180.0  # with the product's own waits something may be looked at only after a minute
OWN_WAITS_LATER: Final = 40


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m loadtests.rounds",
        description=(__doc__ or "").split("\n")[0],
        epilog="example: python -m loadtests.rounds --rounds 300 --seed 20261122",
    )
    made.add_argument("--rounds", type=int, default=20, help="how many (default 20)")
    made.add_argument("--seed", type=int, default=20261122, help="what is drawn from (default 20261122)")
    made.add_argument("--first", type=int, default=1, help="number of the first round (default 1)")
    made.add_argument("--guard-removed", choices=GUARDS, default="", help="take a guard out: this must fail")
    made.add_argument("--only", choices=VICTIMS, help="kill nothing but this")
    made.add_argument("--own-waits", action="store_true", help="shorten none of the product's waits")
    made.add_argument("--logs", type=Path, metavar="DIR", help="copy there what the processes said")
    made.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help=f"for the record (default {RESULTS})"
    )
    return made


def house_of(folder: Path, guard_removed: str, *, hurried: bool = True) -> House:
    """The processes; without `durable` the engines answer before anything is on the disk."""
    durable = guard_removed != "durable"
    return House(folder, hurried=hurried, durable=durable, without=guard_removed if durable else "")


def options(given: argparse.Namespace) -> str:
    """What a replay has to be told beside the seed."""
    said = {"--guard-removed": given.guard_removed, "--only": given.only}
    return " ".join(f"{name} {shlex.quote(value)}" for name, value in said.items() if value)


def play(given: argparse.Namespace, console: Console) -> Result:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with (
        tempfile.TemporaryDirectory(prefix="companion-rounds-", dir=free_folder(MEMORY_MIN)) as folder,
        house_of(Path(folder), given.guard_removed, hurried=not given.own_waits) as house,
        Progress(*columns, console=console, transient=True) as progress,
    ):
        bar = progress.add_task("rounds", total=given.rounds)

        def on_round(played: Played, wrong: list[str]) -> None:
            progress.advance(bar)
            if wrong:
                failed = Failed(played.plan, tuple(wrong))
                console.print(f"WRONG {played.plan}", style="red", highlight=False)
                for line in wrong:
                    console.print(f"      {line}", highlight=False, soft_wrap=True)
                console.print(
                    f"      again: {replay(failed, options(given))}", highlight=False, soft_wrap=True
                )

        result = asyncio.run(
            run(
                house,
                rounds=given.rounds,
                seed=given.seed,
                first=given.first,
                victims=(given.only,) if given.only else VICTIMS,
                settled_s=OWN_WAITS_S if given.own_waits else SETTLED_S,
                later_max=OWN_WAITS_LATER if given.own_waits else JUDGED_LATER_MAX,
                on_round=on_round,
            )
        )
        if given.logs is not None:
            given.logs.mkdir(parents=True, exist_ok=True)
            for path in house.folder.glob("*.log"):
                shutil.copy(path, given.logs)
        return result


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    if not 1 <= given.rounds <= 100_000 or given.first < 1:
        parser().error("--rounds is 1 to 100,000 and --first at least 1")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    console = Console()
    try:
        result = play(given, console)
    except (LoadError, EngineError, OSError) as error:
        print(f"rounds: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    path = keep(result, options(given), given.out)
    console.print(
        f"{result.rounds} rounds in {result.seconds:.0f} s: {result.claims} ranks, {result.orders} orders and "
        f"{result.paid} payments acknowledged, {result.repeats} asked again; {len(result.failed)} rounds wrong",
        highlight=False,
    )
    console.print(f"record: {path}", highlight=False, soft_wrap=True)
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
