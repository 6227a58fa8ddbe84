"""The machine a result was measured on, so that a figure is never read without it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Final

import msgspec

BUSY: Final = 0.5  # load before the first run; beyond it the figures are of a shared machine


class Machine(msgspec.Struct, frozen=True):
    """What the reader must know about it."""

    processor: str
    cores: int
    memory_mb: int
    kernel: str
    system: str
    python: str
    load_before: float  # runnable processes, mean of the minute before the first run

    @property
    def busy(self) -> bool:
        return self.load_before > BUSY

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.memory_mb / 1024:.0f} GB; {self.system}, "
            f"kernel {self.kernel}; Python {self.python}; load before {self.load_before:.1f}"
        )


def this_machine() -> Machine:
    model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        system = "Linux"
    return Machine(
        processor=model[1].strip() if model else platform.machine(),
        cores=os.cpu_count() or 1,
        memory_mb=int(memory[1]) // 1024 if memory else 0,
        kernel=platform.release(),
        system=system,
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        load_before=os.getloadavg()[0],
    )
