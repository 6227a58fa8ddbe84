"""Keeps child processes running: one bound socket for all workers, restarts with back-off, an orderly end.

The children get a signal when we die, so a kill of this process leaves none of them behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from live import process

log = logging.getLogger("companion.supervisor")

BACKLOG = 4096
BACK_OFF_S = (0.1, 0.5, 1.0, 2.0, 5.0)  # before the first, second … restart in a row
STEADY_S = 30.0  # a child that ran this long starts over at the first
WATCH_S = 1.0


class PortInUse(Exception):
    """One line that says what to do."""


class Child(msgspec.Struct, frozen=True, kw_only=True):
    """A process to keep running."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] | None = None
    keep: tuple[int, ...] = ()  # descriptors it inherits
    says_ready: bool = False  # it calls say_ready() once it serves
    once: bool = False  # an end with code 0 is its end


SEND_BUFFER_BYTES = (
    131_072  # Linux doubles it. Left alone, one viewer who reads nothing holds 2.6 MB in the kernel
)
READY = "READY_FD"  # environment name of the descriptor; not a setting, so without the prefix


def bind(host: str, port: int) -> socket.socket:
    """The one listening socket. A second copy is told so, which SO_REUSEPORT would hide."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, number)
    except OSError as error:
        raise PortInUse(f"cannot listen on {host}: {error.strerror}; set COMPANION_HOST") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES
        )  # what is accepted has it, too
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} on {host} is in use: stop what listens there, or set COMPANION_PORT to another"
            ) from error
        raise PortInUse(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from error
    bound.setblocking(False)
    return bound


async def supervise(
    children: Sequence[Child],
    *,
    on_ready: Callable[[], Any] | None = None,
    watch: Callable[[], Any] | None = None,
    stop_s: float = 10.0,
) -> None:
    """Run all until SIGINT, SIGTERM or SIGHUP, then stop all; returns when none is left.

    `on_ready` is called once, when every child that says so is ready. `watch` is called each second and may
    raise to end everything. Signals come by the loop's own handlers: so they work when SIGINT was ignored
    at our start. To be called on the main thread.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopping.set)
    announced = [asyncio.Event() for child in children if child.says_ready]
    ready = iter(announced)
    keepers = [
        asyncio.create_task(_keep(child, stopping, next(ready) if child.says_ready else None, stop_s))
        for child in children
    ]
    others = [
        asyncio.create_task(_when_all(announced, on_ready)),
        asyncio.create_task(_watch(watch, stopping)),
    ]
    try:
        done, _ = await asyncio.wait([*keepers, others[1]], return_when=asyncio.FIRST_EXCEPTION)
        failed = [task.exception() for task in done if task.exception() is not None]
    finally:
        stopping.set()
        others[0].cancel()
        await asyncio.gather(*keepers, *others, return_exceptions=True)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
    if failed and failed[0] is not None:
        raise failed[0]


async def _when_all(announced: Sequence[asyncio.Event], then: Callable[[], Any] | None) -> None:
    for event in announced:
        await event.wait()
    if then is not None:
        then()


async def _watch(watch: Callable[[], Any] | None, stopping: asyncio.Event) -> None:
    while not await _within(stopping, WATCH_S):
        if watch is not None:
            watch()


async def _keep(child: Child, stopping: asyncio.Event, ready: asyncio.Event | None, stop_s: float) -> None:
    """One child, started again whenever it ends by itself."""
    failures = 0
    while not stopping.is_set():
        started_at = time.monotonic()
        reading, writing = os.pipe()
        try:
            running = await asyncio.create_subprocess_exec(
                *child.command,
                stdin=asyncio.subprocess.DEVNULL,
                env={**(os.environ if child.environment is None else child.environment), READY: str(writing)},
                pass_fds=(*child.keep, writing),
                start_new_session=True,  # Ctrl-C in the terminal is for us; we pass it on
                preexec_fn=process.before_exec(signal.SIGKILL),
            )
        finally:
            os.close(writing)
        listening = asyncio.create_task(_hear(reading, ready))
        ended = asyncio.create_task(running.wait())
        await asyncio.wait(
            [ended, stop := asyncio.create_task(stopping.wait())], return_when="FIRST_COMPLETED"
        )
        stop.cancel()
        if not ended.done():
            await _end(running, ended, stop_s)
        code = await ended
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        if stopping.is_set() or (child.once and code == 0):
            return
        failures = 0 if time.monotonic() - started_at > STEADY_S else failures
        wait_s = BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)]
        failures += 1
        log.warning("%s (pid %d) ended with %d; again in %.1f s", child.name, running.pid, code, wait_s)
        await _within(stopping, wait_s)


async def _end(running: asyncio.subprocess.Process, ended: asyncio.Task[int], stop_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        running.terminate()
    await asyncio.wait([ended], timeout=stop_s)
    if not ended.done():
        log.warning("pid %d did not stop within %.0f s and is killed", running.pid, stop_s)
        with contextlib.suppress(ProcessLookupError):
            running.kill()


async def _hear(reading: int, ready: asyncio.Event | None) -> None:
    """Wait for the child's byte, or for its end, which closes the pipe."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(reading, readable.set)
    try:
        await readable.wait()
        if os.read(reading, 1) and ready is not None:
            ready.set()
    finally:
        loop.remove_reader(reading)
        os.close(reading)


async def _within(event: asyncio.Event, wait_s: float) -> bool:
    """Whether the event comes within the time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await event.wait()
    return event.is_set()


def say_ready(environment: Mapping[str, str]) -> None:
    """In the child: tell the supervisor that we serve."""
    descriptor = environment.get(READY)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(int(descriptor), b"1")
            os.close(int(descriptor))
