"""What a benchmark found: kept as JSON, told as a table, drawn as two plots."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from rich.table import Table

from loadtests.fanout.machine import Machine
from loadtests.fanout.plot import Bar, bars
from loadtests.fanout.work import Run, Work

FORMAT: Final = 1  # of the JSON; raised when a field changes its meaning
FLOOR, OWN = "floor", "companion"
HEADINGS: Final = (
    "contender",
    "µs per frame",
    "÷ floor",
    "p50 ms",
    "p99 ms",
    "RSS MB",
    "KB a viewer",
    "runs",
)


class Idle(msgspec.Struct, frozen=True):
    """What viewers cost to whom nothing is said."""

    failed: str | None
    viewers: int = 0
    seconds: float = 0.0
    rss_bytes: int = 0
    rss_per_viewer: int = 0
    cpu_us_per_viewer_s: float = 0.0


class Standing(msgspec.Struct):
    """A contender and all its runs; figures are medians over those that did not fail."""

    name: str
    title: str
    version: str = ""
    not_run: str | None = None  # why it could not run here
    runs: list[Run] = []
    idle: Idle | None = None

    @property
    def good(self) -> list[Run]:
        return [run for run in self.runs if run.failed is None]

    @property
    def failures(self) -> list[Run]:
        return [run for run in self.runs if run.failed is not None]

    def median(self, of: Callable[[Run], float | None]) -> float | None:
        found = [value for value in map(of, self.good) if value is not None]
        return statistics.median(found) if found else None

    def ratios(self) -> list[float]:
        return [run.ratio for run in self.good if run.ratio is not None]


class Result(msgspec.Struct):
    """One benchmark."""

    at: datetime
    machine: Machine
    work: Work
    rounds: int
    contenders: list[Standing]
    kind: str = "fanout"
    format: int = FORMAT

    @property
    def failed(self) -> bool:
        return any(standing.failures for standing in self.contenders)


def read_result(path: Path) -> Result:
    return msgspec.json.decode(path.read_bytes(), type=Result)


def with_ratios(standings: Sequence[Standing]) -> None:
    """Each run's cost as a multiple of the floor's in the same round."""
    floor = {
        run.round: run.cpu_us
        for standing in standings
        if standing.name == FLOOR
        for run in standing.good
        if run.cpu_us > 0
    }
    for standing in standings:
        standing.runs = [
            msgspec.structs.replace(run, ratio=run.cpu_us / floor[run.round])
            if run.failed is None and run.round in floor
            else run
            for run in standing.runs
        ]


# -- told ------------------------------------------------------------------------------------------


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _cells(standing: Standing) -> list[str]:
    if not standing.good:
        return [standing.title, *["–"] * 6, "not run" if standing.not_run else f"0 of {len(standing.runs)}"]
    ratios = standing.ratios()
    ratio = _number(statistics.median(ratios), 2) if ratios else "–"
    if len(ratios) > 1 and standing.name != FLOOR:
        ratio += f" ({min(ratios):.2f}–{max(ratios):.2f})"
    memory = standing.median(lambda run: run.rss_bytes / 1_048_576)
    each = standing.median(lambda run: run.rss_per_viewer / 1024)
    runs = f"{len(standing.good)}"
    if standing.failures:
        runs += f" of {len(standing.runs)}"
    return [
        standing.title,
        _number(standing.median(lambda run: run.cpu_us), 1),
        ratio,
        _number(standing.median(lambda run: run.p50_ms), 1),
        _number(standing.median(lambda run: run.p99_ms), 1),
        _number(memory, 0 if memory and memory >= 10 else 1),
        _number(each, 1),
        runs,
    ]


def in_order(standings: Sequence[Standing]) -> list[Standing]:
    """The cheapest first; who has no figure last."""
    return sorted(standings, key=lambda standing: standing.median(lambda run: run.cpu_us) or float("inf"))


def remarks(result: Result) -> list[str]:
    """What a reader of the table must know besides."""
    said = []
    for standing in result.contenders:
        if standing.not_run:
            said.append(f"{standing.title} was not run: {standing.not_run}.")
        said += [f"{standing.title} failed in round {run.round}: {run.failed}." for run in standing.failures]
    floor = next((standing for standing in result.contenders if standing.name == FLOOR), None)
    if floor is None or not floor.good:
        said.append("There is no floor, so there are no ratios to it.")
    for standing in result.contenders:
        apart: dict[str, list[float]] = {}
        for run in standing.good:
            for name, cost in run.beside_us.items():
                apart.setdefault(name, []).append(cost)
        said += [
            f"{standing.title}: {name} took {statistics.median(costs):.2f} µs per frame besides, not counted."
            for name, costs in apart.items()
        ]
        shared = [1 - run.frames / run.delivered for run in standing.good if run.delivered > run.frames > 0]
        if shared:
            said.append(
                f"{standing.title}: up to {max(shared):.1%} of the messages shared a frame with another; "
                "the cost is per frame."
            )
    if result.machine.busy:
        said.append(
            f"The machine was busy (load {result.machine.load_before:.1f} before the first run): "
            "ratios may hold, times do not."
        )
    if result.work.server_core == result.work.viewer_core:
        said.append("Servers and viewers shared one core: times are of both.")
    return said


def rich_table(result: Result) -> Table:
    table = Table(title=f"{result.work}, median of {result.rounds}", title_justify="left")
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if number else "left", no_wrap=number > 0)
    for standing in in_order(result.contenders):
        style = "bold" if standing.name == OWN else ("dim" if not standing.good else "")
        table.add_row(*_cells(standing), style=style)
    return table


def markdown_table(result: Result) -> str:
    lines = [
        "| " + " | ".join(HEADINGS) + " |",
        "| --- | " + " | ".join(["---:"] * (len(HEADINGS) - 1)) + " |",
    ]
    for standing in in_order(result.contenders):
        cells = _cells(standing)
        if standing.name == OWN:
            cells[0] = f"**{cells[0]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def idle_table(result: Result) -> str:
    rows = [(standing, standing.idle) for standing in in_order(result.contenders) if standing.idle]
    if not rows:
        return ""
    viewers = max(idle.viewers for _, idle in rows)
    lines = [
        "",
        f"## {viewers:,} viewers to whom nothing is said"
        if viewers
        else "## Viewers to whom nothing is said",
        "",
        "| contender | RSS MB | KB a viewer | µs a second and viewer |",
        "| --- | ---: | ---: | ---: |",
    ]
    for standing, idle in rows:
        told = (
            f"failed: {idle.failed} | – | –"
            if idle.failed
            else f"{idle.rss_bytes / 1_048_576:.0f} | {idle.rss_per_viewer / 1024:.1f} | "
            f"{idle.cpu_us_per_viewer_s:.1f}"
        )
        lines.append(f"| {standing.title} | {told} |")
    return "\n".join(lines) + "\n"


def markdown(result: Result, plots: Sequence[str]) -> str:
    """The page of one benchmark."""
    versions = [
        f"- {standing.title}: {standing.version}" for standing in result.contenders if standing.version
    ]
    return "\n".join(
        [
            f"# Fan-out, {result.at:%Y-%m-%d %H:%M %Z}".rstrip(),
            "",
            f"{result.work}; {result.rounds} rounds, every contender once in each; figures are medians, ratios "
            "are to the floor of the same round. CPU is that of the server's processes, on core "
            f"{result.work.server_core}; the viewers were on core {result.work.viewer_core}, our engines on core "
            f"{result.work.engine_core}.",
            "",
            markdown_table(result),
            *(f"- {line}" for line in remarks(result)),
            idle_table(result),
            *(f"![{Path(name).stem}]({name})" for name in plots),
            "",
            "## Measured on",
            "",
            f"- {result.machine}",
            *versions,
            "",
        ]
    )


# -- drawn -----------------------------------------------------------------------------------------


def ratio_plot(result: Result) -> str:
    rows = []
    for standing in in_order(result.contenders):
        ratios = standing.ratios()
        if ratios:
            middle = statistics.median(ratios)
            rows.append(
                Bar(
                    standing.title,
                    middle,
                    low=min(ratios),
                    high=max(ratios),
                    said=f"{middle:.2f}",
                    own=standing.name == OWN,
                )
            )
    return bars("CPU per frame and viewer, ÷ floor", f"{result.work}; line: spread of the rounds", rows)


def latency_plot(result: Result) -> str:
    rows = []
    for standing in in_order(result.contenders):
        near, far = standing.median(lambda run: run.p50_ms), standing.median(lambda run: run.p99_ms)
        if near is not None and far is not None:
            said = f"{near:.1f} / {far:.1f}"
            rows.append(Bar(standing.title, near, far, said=said, own=standing.name == OWN))
    return bars(
        "From publication to the viewer, p50 / p99 ms", f"{result.work}; the viewers' own time is in it", rows
    )


def write(result: Result, folder: Path) -> Path:
    """The page, its figures and its plots, beside earlier ones of the day. Returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = day = f"{result.at:%Y-%m-%d}-fanout"
    number = 1
    while (folder / f"{stem}.md").exists():
        number += 1
        stem = f"{day}-{number}"
    plots = [f"{stem}-latency.svg"]
    if any(standing.ratios() for standing in result.contenders):
        plots.insert(0, f"{stem}-ratio.svg")
        (folder / plots[0]).write_text(ratio_plot(result), "utf-8")
    (folder / plots[-1]).write_text(latency_plot(result), "utf-8")
    figures = msgspec.json.format(msgspec.json.encode(result), indent=1)
    (folder / f"{stem}.json").write_bytes(figures + b"\n")
    page = folder / f"{stem}.md"
    page.write_text(markdown(result, plots), "utf-8")
    return page
