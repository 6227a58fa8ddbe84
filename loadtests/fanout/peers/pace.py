"""The lines a peer and the runner say to each other, and the timer that paces its frames."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Final

MARK: Final = "@t="  # before the time of publication, CLOCK_MONOTONIC in ns


def payload(size: int) -> str:
    """A frame's text: when it was made, and filling."""
    return f"{MARK}{time.monotonic_ns()} ".ljust(size, "x")


def asked(arguments: list[str]) -> tuple[float, float, int]:
    """Frames a second, seconds, bytes: what every peer is started with."""
    rate, seconds, size = arguments[1:4]
    return float(rate), float(seconds), int(size)


async def frames(port: int) -> AsyncIterator[str]:
    """The texts to send, each when it is due; what is late is not left out."""
    rate, seconds, size = asked(sys.argv)
    print(f"port {port}", flush=True)
    if not await asyncio.to_thread(sys.stdin.readline):
        return
    count, began = round(rate * seconds), time.monotonic()
    for number in range(count):
        wait_s = began + number / rate - time.monotonic()
        await asyncio.sleep(max(0.0, wait_s))
        yield payload(size)
    print(f"done {count}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
