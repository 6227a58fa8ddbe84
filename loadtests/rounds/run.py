"""Many rounds on one deployment: while one is played, those before it settle and are judged."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

from msgspec import Struct, field

from loadtests.rounds.house import House
from loadtests.rounds.judge import SETTLED_S, Judge
from loadtests.rounds.plan import VICTIMS, Plan, draw
from loadtests.rounds.play import Brand, Played, Round

JUDGED_LATER_MAX: Final = 4  # rounds that settle while others are played
SHOWN_MAX: Final = 12  # lines of one failed round


class Failed(Struct, frozen=True):
    """A round in which something was wrong."""

    plan: Plan
    wrong: tuple[str, ...]


class Result(Struct, kw_only=True):
    """What all rounds came to."""

    seed: int
    rounds: int = 0
    failed: list[Failed] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    claims: int = 0  # ranks that clients were told
    orders: int = 0  # orders confirmed to them
    paid: int = 0  # payment pages that took the money
    repeats: int = 0  # asked again, as no answer came or one that said so
    states: int = 0  # of benefits and offers, as sockets saw them
    steps: int = 0
    seconds: float = 0.0
    slowest_s: float = 0.0

    def add(self, played: Played, wrong: list[str]) -> None:
        told = played.told
        self.rounds += 1
        self.killed.update(played.plan.victims)
        self.faults[", ".join(sorted(played.plan.faults)) or "none"] += 1
        self.claims += len(told.ranks)
        self.orders += len(told.placed)
        self.paid += len(told.paid)
        self.repeats += told.repeats
        self.states += told.states
        self.steps += played.steps
        self.slowest_s = max(self.slowest_s, played.seconds)
        if wrong:
            self.failed.append(Failed(played.plan, tuple(wrong[:SHOWN_MAX])))


async def run(
    house: House,
    *,
    rounds: int,
    seed: int,
    first: int = 1,
    victims: tuple[str, ...] = VICTIMS,
    settled_s: float = SETTLED_S,
    later_max: int = JUDGED_LATER_MAX,
    until_failed: bool = False,
    on_round: Callable[[Played, list[str]], None] | None = None,
) -> Result:
    """Play `rounds` rounds from number `first` on. With `until_failed` no more after the first that is wrong."""
    result = Result(seed=seed)
    brand = Brand(house)
    judge = Judge(brand, settled_s=settled_s)
    judging: set[asyncio.Task[None]] = set()
    began = time.monotonic()

    async def judged(played: Played) -> None:
        wrong = await judge.judge(played)
        result.add(played, wrong)
        if on_round is not None:
            on_round(played, wrong)

    try:
        await brand.make()
        for number in range(first, first + rounds):
            if until_failed and result.failed:
                break
            played = await Round(brand, draw(seed, number, victims)).play()
            judging.add(asyncio.create_task(judged(played)))
            while len(judging) >= later_max:
                judging = await _some(judging)
        while judging:
            judging = await _some(judging)
    finally:
        for task in judging:
            task.cancel()
        await asyncio.gather(*judging, return_exceptions=True)
        await brand.close()
        result.seconds = time.monotonic() - began
    return result


async def _some(judging: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    done, left = await asyncio.wait(judging, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    return left


def replay(failed: Failed, options: str = "") -> str:
    """The command that plays this round again."""
    drawn = f"--rounds 1 --seed {failed.plan.seed} --first {failed.plan.number} {options}"
    return f"python -m loadtests.rounds {drawn}".strip()


def record(result: Result, options: str) -> str:
    """The dated record of a run, as markdown."""
    at = datetime.now().astimezone()
    each = result.seconds / max(1, result.rounds)
    lines = [
        f"# {result.rounds} rounds with a kill in each, {at:%Y-%m-%d %H:%M}",
        "",
        f"Seed {result.seed}; {result.seconds:,.0f} s, {each:.1f} s a round (the slowest {result.slowest_s:.1f} s); "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}."
        + (f" **With `{options}`.**" if options else ""),
        "",
        "| what | number |",
        "| --- | --- |",
        f"| rounds in which something was wrong | {len(result.failed)} |",
        f"| ranks that clients were told | {result.claims:,} |",
        f"| orders confirmed to clients | {result.orders:,} |",
        f"| payments that the page took | {result.paid:,} |",
        f"| asked again for want of an answer | {result.repeats:,} |",
        f"| states of benefits and offers seen on sockets | {result.states:,} |",
        *(f"| {name} killed | {count} |" for name, count in sorted(result.killed.items())),
        *(f"| provider's fault: {name} | {count} |" for name, count in sorted(result.faults.items())),
        "",
    ]
    for failed in result.failed:
        lines += [f"## {failed.plan}", "", *(f"- {line}" for line in failed.wrong), ""]
        lines += ["```sh", replay(failed, options), "```", ""]
    return "\n".join(lines)


def keep(result: Result, options: str, folder: Path) -> Path:
    """Write the record."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{datetime.now().astimezone():%Y-%m-%d-%H%M}-rounds-{result.rounds}"
    more = "".join("-" + part.lstrip("-") for part in options.split())
    path = folder / f"{name}{more}.md"
    path.write_text(record(result, options), "utf-8")
    return path
