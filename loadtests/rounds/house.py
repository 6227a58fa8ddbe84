"""The processes of a deployment: two server nodes, the jobs, the payment provider, Redis and PostgreSQL.

Each can be killed and is started again on the same data and at the same address. The listening sockets are
held here, as a supervisor holds them: who connects to a dead node waits in its queue until it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx2
import msgspec
import psycopg

from live import process, supervisor
from live.engines import Binaries, Engines
from loadtests.__main__ import LoadError

ROOT: Final = Path(__file__).resolve().parents[2]
NODES: Final = ("node 1", "node 2")
ENGINES: Final = ("redis", "postgresql")
START_S: Final = 60.0
ENDED_S: Final = 15.0
SAID_CHARS: Final = 2_000  # of a process' own words, when it did not start


class House:
    """`with House(folder) as house:`, from the main thread."""

    def __init__(
        self,
        folder: Path,
        *,
        hurried: bool = True,
        durable: bool = True,
        without: str = "",
        binaries: Binaries | None = None,
    ) -> None:
        self.folder = folder
        self._binaries = binaries
        self._durable = durable
        self._nursery_options = [
            *(["--hurried"] if hurried else []),
            *(["--without", without] if without else []),
        ]
        self._secret = secrets.token_hex(32)
        self._sockets: dict[str, socket.socket] = {}
        self._pids: dict[str, int] = {}
        self._killed: set[str] = set()
        self._engines: Engines | None = None
        self._nursery: subprocess.Popen[bytes] | None = None
        self._commands = 0
        self.provider_url = self.provider_password = ""

    def __enter__(self) -> House:
        try:
            self._engines = Engines.start(self.folder / "data", self._binaries, durable=self._durable)
            if not self._durable:
                self._write_late()
            self._sockets = {name: supervisor.bind("127.0.0.1", 0) for name in NODES}
            self._nursery = self._start_nursery()
            self.command("migrate")
            self._start("provider")
            self.provider_url, self.provider_password = self._find_provider()
            for name in (*NODES, "jobs"):
                self._start(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._nursery is not None:
            self._nursery.kill()
            self._nursery.communicate()
        for bound in self._sockets.values():
            bound.close()
        if self._engines is not None:
            self._engines.stop()

    # --- where things are ---

    @property
    def doors(self) -> tuple[str, str]:
        """Of the two nodes."""
        return self._url("node 1"), self._url("node 2")

    @property
    def database_url(self) -> str:
        assert self._engines is not None
        return self._engines.addresses.database_url

    def _url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._sockets[name].getsockname()[1]}"

    # --- what is done to it ---

    def kill(self, name: str) -> None:
        """SIGKILL; returns when it is gone. Twice changes nothing."""
        if name in self._killed:
            return
        self._killed.add(name)
        if name not in ENGINES:
            os.kill(self._pids[name], signal.SIGKILL)
            return
        assert self._engines is not None
        os.kill(self._engines.pids[ENGINES.index(name)], signal.SIGKILL)
        engine = (self._engines._valkey, self._engines._postgres)[ENGINES.index(name)]
        assert engine is not None
        engine.wait(ENDED_S)

    def write_out(self) -> None:
        """What was committed until now is on the disk, also where answers do not wait for that."""
        if not self._durable:
            with psycopg.connect(self.database_url, autocommit=True) as conn:
                conn.execute("SET synchronous_commit = on")
                conn.execute("SELECT pg_logical_emit_message(true, 'round', '')")

    def restore(self) -> None:
        """Start again what was killed. From the main thread; clients find it by trying."""
        killed, self._killed = self._killed, set()
        if killed & {*ENGINES}:
            assert self._engines is not None
            self._engines._revivals.clear()  # here it is meant
            self._engines.revive()
        for name in sorted(killed - {*ENGINES}):
            self._start(name)

    async def ready(self) -> None:
        """Both nodes answer, and so do their stores."""
        async with (
            httpx2.AsyncClient(timeout=5, trust_env=False, verify=False) as http,
            asyncio.timeout(START_S),
        ):
            for door in self.doors:
                while True:
                    with contextlib.suppress(httpx2.HTTPError):
                        if (await http.get(f"{door}/readyz")).status_code == 200:
                            break
                    await asyncio.sleep(0.05)

    # --- commands ---

    def command(self, *arguments: str, wait_s: float = START_S) -> str:
        """Run one command of `companion` to its end; what it printed."""
        output, pid = self.begin(*arguments)
        if not process.gone(pid, wait_s):  # reaped by the nursery as soon as it ends
            raise LoadError(f"companion {arguments[0]} did not end within {wait_s:.0f} s")
        return output.read_text("utf-8", "replace")

    def begin(self, *arguments: str) -> tuple[Path, int]:
        """Begin a command; where it prints, and its id."""
        self._commands += 1
        output = self.folder / f"command-{self._commands}.log"
        output.touch(0o600)
        return output, self._fork(arguments, output, NODES[0])

    @staticmethod
    def is_running(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    # --- parts ---

    def _start(self, name: str) -> None:
        match name:
            case "jobs":
                arguments = ["work"]
            case "provider":
                arguments = ["sandbox", "--port", "0"]
            case _:
                arguments = ["worker", "--socket", str(self._sockets[name].fileno())]
        door = name if name in NODES else NODES[0]
        output = self.folder / f"{name.replace(' ', '-')}.log"
        output.touch(0o600)
        self._pids[name] = self._fork(arguments, output, door)

    def _fork(self, arguments: Sequence[str], output: Path, door: str) -> int:
        nursery = self._nursery
        assert nursery is not None and nursery.stdin is not None and nursery.stdout is not None
        asked = {
            "arguments": list(arguments),
            "environment": self._environment(door),
            "output": str(output),
        }
        nursery.stdin.write(msgspec.json.encode(asked) + b"\n")
        nursery.stdin.flush()
        answer = nursery.stdout.readline()
        if not answer:
            said = (self.folder / "nursery.log").read_text("utf-8", "replace")
            raise LoadError(f"no process can be started: {said[-SAID_CHARS:].strip()}")
        return int(answer)

    def _write_late(self) -> None:
        """PostgreSQL, which answers before it has written, writes only every ten seconds: a kill loses more."""
        with psycopg.connect(self.database_url, autocommit=True) as conn:
            conn.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
            conn.execute("SELECT pg_reload_conf()")

    def _find_provider(self) -> tuple[str, str]:
        """Its address and the password of its faults, as it prints them."""
        until, text = time.monotonic() + START_S, ""
        while time.monotonic() < until:
            text = (self.folder / "provider.log").read_text("utf-8", "replace")
            address, password = re.search(r"on (http://\S+)", text), re.search(r"password (\S+)\n", text)
            if address and password:
                return address[1].replace("0.0.0.0", "127.0.0.1"), password[1]  # noqa: S104
            time.sleep(0.02)
        raise LoadError(f"the payment provider did not start: {text[-SAID_CHARS:].strip()}")

    def _start_nursery(self) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COMPANION_")}
        with (self.folder / "nursery.log").open("wb") as said:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.outage.nursery", *self._nursery_options],
                env={**kept, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                pass_fds=[bound.fileno() for bound in self._sockets.values()],
                start_new_session=True,
                preexec_fn=process.before_exec(signal.SIGKILL),  # noqa: PLW1509
            )

    def _environment(self, door: str) -> dict[str, str]:
        assert self._engines is not None
        addresses = self._engines.addresses
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COMPANION_")}
        return {
            **kept,
            "PYTHONPATH": str(ROOT),
            "COMPANION_SECRET": self._secret,
            "COMPANION_DATA_DIR": str(self.folder / "serve"),
            "COMPANION_REDIS_URL": addresses.redis_url,
            "COMPANION_DATABASE_URL": addresses.database_url,
            "COMPANION_PORT": str(self._sockets[door].getsockname()[1]),
            "COMPANION_PUBLIC_URL": self._url(door),
            "COMPANION_SANDBOX": "yes",
            "COMPANION_MEMBER_DAY": "0",
            "COMPANION_SANDBOX_URL": self.provider_url,
            "COMPANION_LOG_LEVEL": "warning",
        }


def free_folder(wanted_bytes: int) -> str | None:
    """A place in memory for the engines when there is room, else the usual one."""
    shared = Path("/dev/shm")  # noqa: S108  # a private folder is made in it
    if shared.is_dir():
        there = os.statvfs(shared)
        if there.f_bavail * there.f_frsize >= wanted_bytes:
            return str(shared)
    return None
