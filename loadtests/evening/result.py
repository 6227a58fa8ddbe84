"""What a scenario found: one figure a line with its goal, and the dated record of the run."""

from __future__ import annotations

import os
import platform
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

TABLE: Final = "evening.md"
HEAD: Final = "| when | scenario | size | figures | right |\n| --- | --- | --- | --- | --- |\n"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number. `must` marks what is right or wrong; the others are times and costs of this machine."""

    name: str
    value: float
    unit: str = ""
    goal: str = ""
    met: bool | None = None  # None: no goal
    must: bool = False

    def __str__(self) -> str:
        text = f"{self.value:,.0f}" if self.value == int(self.value) else f"{self.value:,.2f}"
        return f"{text} {self.unit}".strip()


class Result(msgspec.Struct, kw_only=True):
    """One run of one scenario."""

    scenario: str
    size: dict[str, Any]
    figures: list[Figure] = []
    notes: list[str] = []
    at: str = ""
    seconds: float = 0.0
    machine: dict[str, Any] = {}

    def add(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        most: float | None = None,
        exactly: float | None = None,
    ) -> None:
        """A figure: with `most` a goal of this machine, with `exactly` a matter of right and wrong."""
        goal, met = "", None
        if most is not None:
            goal, met = f"≤ {most:g}", value <= most
        elif exactly is not None:
            goal, met = f"{exactly:g}", value == exactly
        self.figures.append(
            Figure(name=name, value=value, unit=unit, goal=goal, met=met, must=exactly is not None)
        )

    def figure(self, name: str) -> Figure:
        return next(figure for figure in self.figures if figure.name == name)

    @property
    def right(self) -> bool:
        """Whether nothing was lost, told twice or told wrong."""
        return all(figure.met for figure in self.figures if figure.must)

    def keep(self, folder: Path) -> Path:
        """A JSON file of this run, and its row in the folder's table."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.at.replace(':', '').replace('-', '')[:15]}-{self.scenario}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        table = folder / TABLE
        size = ", ".join(f"{name} {value}" for name, value in self.size.items())
        told = "; ".join(
            f"{figure.name} {figure}" + ("" if figure.met is None else " ✓" if figure.met else " ✗")
            for figure in self.figures
        )
        with table.open("a", encoding="utf-8") as rows:
            if not rows.tell():
                rows.write(HEAD)
            rows.write(f"| {self.at[:16]} | {self.scenario} | {size} | {told} | {_yes(self.right)} |\n")
        return path


def begun(scenario: str, **size: Any) -> Result:
    """An empty result, dated now, with the machine it is of."""
    return Result(
        scenario=scenario,
        size=size,
        figures=[],
        notes=[],
        at=datetime.now().astimezone().isoformat(timespec="seconds"),
        machine={
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "load": os.getloadavg()[0],
        },
    )


def _yes(met: bool) -> str:
    return "yes" if met else "no"
