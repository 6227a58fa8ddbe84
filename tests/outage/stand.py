"""Engines of one's own, to be killed, frozen, emptied and brought back from the past; and server processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from websockets.exceptions import InvalidStatus

from live.engines import Addresses, Binaries, Engines
from membership.actor import Actor, ShowId
from tests.live.serving import Seat, Served

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 15.0


async def until(condition: Callable[[], object], wait_s: float = WAIT_S) -> None:
    """Looks every 20 ms. Raises TimeoutError."""
    async with asyncio.timeout(wait_s):
        while not condition():
            await asyncio.sleep(0.02)


async def entered(served: Served, show: ShowId, actor: Actor | None = None) -> Seat:
    """Comes back until it is let in; starting an engine holds up this process, which then lets nobody in."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with contextlib.suppress(InvalidStatus):
                seat = await served.enter(show, actor)
                if seat.welcome["type"] == "welcome":
                    return seat
            await asyncio.sleep(0.1)


class Stand:
    """Both engines as they are run in production: every write synced before it is answered."""

    def __init__(self, folder: Path, binaries: Binaries) -> None:
        self._folder = folder
        self._engines = Engines.start(folder, binaries)

    @property
    def addresses(self) -> Addresses:
        return self._engines.addresses

    def stop(self) -> None:
        self._engines.stop()

    def kill_redis(self) -> None:
        self._kill(0)

    def kill_postgres(self) -> None:
        self._kill(1)

    def restart(self) -> None:
        """Start again what was killed, on the same data and at the same address."""
        self._engines._revivals.clear()  # here it is meant
        self._engines.revive()

    @contextlib.contextmanager
    def frozen_redis(self) -> Iterator[None]:
        pid = self._engines.pids[0]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def remember(self) -> None:
        """Keep Redis' files as they are now."""
        shutil.rmtree(self._folder / "before", ignore_errors=True)
        shutil.copytree(self._folder / "valkey", self._folder / "before")

    def forget(self) -> None:
        """Kill Redis and start it again from the files that were kept: what was written since is lost."""
        self.kill_redis()
        shutil.rmtree(self._folder / "valkey")
        (self._folder / "before").rename(self._folder / "valkey")
        self.restart()

    def empty(self) -> None:
        """Kill Redis and start it again with nothing."""
        self.kill_redis()
        shutil.rmtree(self._folder / "valkey")
        self.restart()

    def _kill(self, which: int) -> None:
        pid = self._engines.pids[which]
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + WAIT_S
        engine = (self._engines._valkey, self._engines._postgres)[which]
        assert engine is not None
        engine.wait(end - time.monotonic())


class ServerProcess:
    """One node as a process of its own, which can be killed."""

    def __init__(self, environment: dict[str, str]) -> None:
        bound = sockets.socket()
        bound.bind(("127.0.0.1", 0))
        bound.listen(128)
        port = bound.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COMPANION_")}
        reading, writing = os.pipe()
        own = {
            "COMPANION_PORT": str(port),
            "COMPANION_PUBLIC_URL": self.url,
            "COMPANION_LOG_LEVEL": "warning",
            "COMPANION_MEMBER_DAY": "0",
            "READY_FD": str(writing),
            "PYTHONPATH": str(ROOT),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "live", "worker", "--socket", str(bound.fileno())],
            env={**kept, **environment, **own},
            pass_fds=(bound.fileno(), writing),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(writing)
        bound.close()
        self._reading = reading

    async def ready(self) -> None:
        said = await asyncio.wait_for(asyncio.to_thread(os.read, self._reading, 1), 30)
        os.close(self._reading)
        assert said == b"1", "the server process ended before it served"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Link:
    """A TCP connection's way to Redis that can go dead without a word: it stays open and carries nothing."""

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.opened = 0
        self._dead: set[int] = set()  # connections that carry nothing any more

    async def start(self) -> str:
        """Returns the URL that leads through it."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    def go_dead(self) -> None:
        """All connections there are now; new ones are carried."""
        self._dead = set(range(self.opened + 1))

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        number = self.opened
        there = await asyncio.open_unix_connection(self._path)
        self._writers += [writer, there[1]]
        for source, target in ((reader, there[1]), (there[0], writer)):
            task = asyncio.create_task(self._pass_on(number, source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, number: int, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65_536):
                if number not in self._dead:
                    target.write(data)
        target.close()
