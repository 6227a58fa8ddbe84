"""The floor: one send(2) per viewer and frame in C. What anything costs is told as a multiple of it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from loadtests.__main__ import LoadError
from loadtests.fanout.work import Running, Work, listening, run_once

SOURCE: Final = Path(__file__).with_name("floor.c")
COMPILE_S: Final = 60.0
NO_COMPILER: Final = (
    "no C compiler (cc, gcc or clang), so no floor and no ratios to it: apt-get install gcc libc6-dev"
)


class Floor:
    """The program of floor.c, compiled when it is first wanted."""

    name = "floor"
    title = "floor: one send(2) per viewer, C"

    def __init__(self) -> None:
        self._program: Path | None = None
        self._version = ""

    def prepare(self, folder: Path) -> str | None:
        compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if compiler is None:
            return NO_COMPILER
        program = folder / "floor"
        done = subprocess.run(
            [compiler, "-O2", "-o", program, SOURCE],
            capture_output=True, text=True, check=False, timeout=COMPILE_S,
        )  # fmt: skip
        if done.returncode:
            said = done.stderr.strip().splitlines()
            return f"{compiler} could not compile {SOURCE.name}: {said[0] if said else done.returncode}"
        told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
        self._program, self._version = program, told.stdout.partition("\n")[0]
        return None

    def version(self) -> str:
        return f"{self._version} -O2"

    @contextlib.contextmanager
    def serve(self, work: Work, folder: Path) -> Iterator[Running]:
        assert self._program is not None, "prepare() comes first"
        command: list[str | Path] = [self._program]
        command += [str(work.viewers), f"{work.rate:g}", f"{work.seconds:g}", str(work.size)]
        with listening(command, work, folder) as running:
            yield running


def measure_floor(
    viewers: int, rate: float, seconds: float, size: int, *, server_core: int = 0, viewer_core: int = 1
) -> float:
    """Microseconds of CPU per frame and viewer. Raises LoadError without a compiler or when a frame is lost."""
    work = Work(viewers, rate, seconds, size, server_core, viewer_core)
    with tempfile.TemporaryDirectory(prefix="companion-floor-") as folder:
        floor = Floor()
        why_not = floor.prepare(Path(folder))
        if why_not:
            raise LoadError(why_not)
        run = run_once(floor, work, Path(folder) / "run")
    if run.failed:
        raise LoadError(f"the floor's run does not count: {run.failed}")
    return run.cpu_us
