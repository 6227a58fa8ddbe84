"""The stand the scenarios are run on: engines in a temporary folder, real server processes, a host.

The server's process is kept on one core and the viewers on another; the engines run where they like and
are accounted for apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx2
import psutil
import redis
from rich.console import Console
from rich.status import Status

from live import process
from live.engines import Engines
from loadtests import talk
from loadtests.__main__ import LoadError
from loadtests.fanout.work import children, cpu_s, rss_bytes
from loadtests.swarm import HERE, Report, SwarmError, SwarmProcess

START_S: Final = 30.0
COMMAND_S: Final = 60.0
STOP_S: Final = 45.0
FEED_ROWS: Final = 100
AT_ONCE: Final = 20
SETTLE_S: Final = 15.0
TOKEN_S: Final = 12 * 3_600


class Cores(NamedTuple):
    """Where the server and the viewers run; the same one where there is only one."""

    server: int
    viewers: int


class Spent(NamedTuple):
    """CPU seconds so far."""

    server: float
    redis: float
    postgresql: float

    def since(self, before: Spent) -> Spent:
        return Spent(*(now - then for now, then in zip(self, before, strict=True)))


class Server:
    """One `companion serve` with one server process, and the host's way to it."""

    def __init__(self, stand: Stand, running: subprocess.Popen[bytes], port: int) -> None:
        self.stand = stand
        self.running = running
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx2.AsyncClient(
            base_url=self.url,
            timeout=30,
            trust_env=False,
            headers={"Authorization": f"Bearer {stand.owner}"},
        )
        self.worker = children(running.pid)[-1]
        os.sched_setaffinity(self.worker, {stand.cores.server})

    def path(self, show: str) -> str:
        return f"/v1/shows/{show}/socket"

    async def do(
        self, method: str, path: str, body: Any = None, token: str | None = None, key: str | None = None
    ) -> Any:
        """One request to the API. Raises LoadError for an answer that is none."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        answer = await self.http.request(method, path, json=body, headers=headers)
        if answer.status_code >= 400:
            raise LoadError(f"{method} {path} was answered {answer.status_code}: {answer.text[:200]}")
        return answer.json() if answer.content else {}

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        text = (await self.http.get("/metrics")).text
        found = 0.0
        for sample in re.finditer(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE):
            if all(f'{label}="{value}"' in (sample[1] or "") for label, value in labels.items()):
                found += float(sample[2])
        return found

    def rss(self) -> int:
        return rss_bytes([self.worker])

    def stop_soon(self) -> None:
        """SIGTERM, as a deploy sends it."""
        self.running.send_signal(signal.SIGTERM)

    async def ended(self) -> None:
        """Wait for its end. Raises LoadError when it does not come."""
        until = time.monotonic() + STOP_S
        while self.running.poll() is None:
            if time.monotonic() > until:
                raise LoadError(f"the server did not end within {STOP_S:.0f} s of SIGTERM")
            await asyncio.sleep(0.02)


class Talk:
    """The host's own lines over HTTP: each at its time, whatever the answers do. Marked for the swarm."""

    def __init__(self, server: Server, show: str, rate: float, chars: int = 0) -> None:
        self._server, self._show, self._rate, self._chars = server, show, rate, chars
        self._chance = random.Random(2)
        self._task: asyncio.Task[None] | None = None
        self._saying: set[asyncio.Task[None]] = set()
        self.acknowledged = 0
        self.acknowledged_sum = 0

    async def __aenter__(self) -> Talk:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """No more; every line that was begun is answered. Raises LoadError when one was not."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._saying:
            for failed in [done.exception() for done in (await asyncio.wait(self._saying))[0]]:
                if failed is not None:
                    raise failed

    async def _run(self) -> None:
        began, number = time.monotonic(), 0
        while True:
            await asyncio.sleep(max(0.0, began + number / self._rate - time.monotonic()))
            number += 1
            self._saying.add(asyncio.create_task(self._say()))

    async def _say(self) -> None:
        """Repeated with its key until it is answered: the store was told once."""
        line = f"@t={time.monotonic_ns()} {talk.varied(self._chance)}".ljust(self._chars, "好")[:200]
        key, tries = uuid.uuid4().hex, 0
        while True:
            tries += 1
            try:
                path = f"/v1/shows/{self._show}/comments"
                answer = await self._server.do("POST", path, {"text": line}, key=key)
            except (httpx2.HTTPError, LoadError):
                if tries == 5:
                    raise
                await asyncio.sleep(0.5)
                continue
            self.acknowledged += 1
            self.acknowledged_sum += answer["seq"]
            return


class Stand:
    """Engines of our own for a run; `with Stand(folder) as stand:`."""

    def __init__(self, folder: Path, console: Console | None = None, cores: Cores | None = None) -> None:
        self.folder = folder
        self.console = console or Console(quiet=True)
        self.cores = cores or own_cores()
        self.owner = ""  # a token
        self._secret = secrets.token_hex(32)
        self._engines: Engines | None = None
        self._tokens: list[str] = []
        self._plan = ""
        self._on_plan = 0  # so many of the first members
        self._status: Status | None = None
        self._servers = 0

    def __enter__(self) -> Stand:
        (self.folder / "serve").mkdir()
        self._engines = Engines.start(self.folder / "data")
        try:
            self._command("migrate")
            self.owner = self._command("token", "--role", "owner", "--name", "小禾", "--hours", "12")
        except BaseException:
            self._engines.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._engines is not None
        self._engines.stop()

    # -- what is going on --------------------------------------------------------------------------

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Say what takes its time."""
        if self._status is not None:
            self._status.update(text)
            yield
            return
        with self.console.status(text) as self._status:
            try:
                yield
            finally:
                self._status = None

    # -- servers -----------------------------------------------------------------------------------

    def environment(self, port: int, **settings: Any) -> dict[str, str]:
        """Without the settings of this shell: a load test must not reach a real database by accident."""
        assert self._engines is not None
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COMPANION_")}
        own = {
            "redis_url": self._engines.addresses.redis_url,
            "database_url": self._engines.addresses.database_url,
            "secret": self._secret,
            "data_dir": self.folder / "serve",
            "port": port,
            "log_level": "warning",
            **settings,
        }
        paths = os.pathsep.join(filter(None, [str(HERE), kept.get("PYTHONPATH")]))
        return {
            **kept,
            **{f"COMPANION_{name.upper()}": str(value) for name, value in own.items()},
            "PYTHONPATH": paths,
        }

    def _command(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "live", *words],
            env=self.environment(0),
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if done.returncode:
            raise LoadError(f"companion {words[0]} failed: {done.stderr.strip()[-300:]}")
        return done.stdout.strip()

    @contextlib.asynccontextmanager
    async def serve(self, port: int = 0, **settings: Any) -> AsyncIterator[Server]:
        """A server of its own, ready; stopped at the end unless it was before."""
        self._servers += 1
        said = self.folder / f"server-{self._servers}.log"
        with self.step("starting the server …"), said.open("wb") as output:
            running = process.start(
                [sys.executable, "-P", "-m", "live", "serve", "--workers", "1"],
                environment=self.environment(port, **settings),
                log=output.fileno(),
            )
        try:
            server = Server(self, running, await _port(running, said))
            async with server.http:
                yield server
        finally:
            process.stop(running, [(signal.SIGTERM, STOP_S)])

    def spent(self, *servers: Server) -> Spent:
        """Of the servers' Python processes, and of each engine with what it started."""
        assert self._engines is not None
        valkey, postgres = self._engines.pids
        return Spent(
            sum(cpu_s(pid) for server in servers for pid in (server.running.pid, server.worker)),
            cpu_s(valkey),
            _with_past_children(postgres),
        )

    @property
    def redis_url(self) -> str:
        assert self._engines is not None
        return self._engines.addresses.redis_url

    def redis_calls(self) -> dict[str, int]:
        """How often each command was called so far."""
        assert self._engines is not None
        with redis.Redis.from_url(self._engines.addresses.redis_url) as client:
            told: Any = client.info("commandstats")
        return {name.removeprefix("cmdstat_"): int(of["calls"]) for name, of in told.items()}

    # -- the show and its people -------------------------------------------------------------------

    async def show(self, server: Server) -> str:
        """A show on air, in a room of its own."""
        room = await server.do("POST", "/v1/rooms", {"title": "会员健康夜", "host_name": "小禾"})
        body = {"room": room["id"], "title": "秋收专场", "starts_at": datetime.now(UTC).isoformat()}
        show = str((await server.do("POST", "/v1/shows", body))["id"])
        await server.do("POST", f"/v1/shows/{show}/open", {})
        await server.do("POST", f"/v1/shows/{show}/start", {})
        return show

    async def members(self, server: Server, count: int) -> list[str]:
        """Tokens of so many registered members, fed in as by a shop's server; kept for later scenarios."""
        if len(self._tokens) < count:
            with self.step(f"feeding in {count:,} members …"):
                may = {"name": uuid.uuid4().hex, "permissions": ["member.write", "member.read"]}
                key = (await server.do("POST", "/v1/api-keys", may))["secret"]
                gate = asyncio.Semaphore(AT_ONCE)
                for start in range(len(self._tokens), count, FEED_ROWS):
                    numbers = range(start, min(count, start + FEED_ROWS))
                    rows = [
                        {"external_id": f"e-{n}", "phone": f"+86198{n:08d}", "nickname": f"观众{n}"}
                        for n in numbers
                    ]
                    await server.do("PUT", "/v1/members", {"members": rows}, token=key)
                    self._tokens += await asyncio.gather(*(_token(server, key, n, gate) for n in numbers))
        return self._tokens[:count]

    async def plan_members(self, server: Server, count: int) -> list[str]:
        """The same, each on a trial of the plan."""
        tokens = await self.members(server, count)
        if not self._plan:
            body = {"name": "年卡", "fee_fen": 19_900, "period_months": 12, "trial_days": 7}
            self._plan = (await server.do("POST", "/v1/plans", body))["id"]
        gate = asyncio.Semaphore(AT_ONCE)

        async def start(token: str) -> None:
            async with gate:
                await server.do("POST", "/v1/me/trial", {"plan": self._plan}, token=token)

        with self.step(f"{count:,} start a trial …"):
            await asyncio.gather(*(start(token) for token in tokens[self._on_plan :]))
        self._on_plan = max(self._on_plan, count)
        return tokens

    def file_of(self, tokens: Sequence[str]) -> str:
        path = self.folder / f"tokens-{uuid.uuid4().hex}.txt"
        path.write_text("\n".join(tokens), "ascii")
        return str(path)

    def swarm(
        self, servers: Sequence[Server], show: str, count: int, *more: str, tokens: Sequence[str] = ()
    ) -> SwarmProcess:
        """Viewers on their own core; a guest each beyond the tokens."""
        arguments = ["--path", servers[0].path(show), "--count", str(count)]
        arguments += ["--core", str(self.cores.viewers)]
        for server in servers:
            arguments += ["--port", str(server.port)]
        if tokens:
            arguments += ["--tokens", self.file_of(tokens)]
        return SwarmProcess([*arguments, *more])


async def settled(swarm: SwarmProcess, comments: int, wait_s: float = SETTLE_S) -> Report:
    """The report once every viewer has so many comments, or when the time is over."""
    until = time.monotonic() + wait_s
    while True:
        report = await swarm.report()
        if report.comments_least >= comments or time.monotonic() > until:
            return report
        await asyncio.sleep(0.1)


def own_cores() -> Cores:
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[1 % len(allowed)])


async def _port(running: subprocess.Popen[bytes], said: Path) -> int:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        text = await asyncio.to_thread(said.read_text, "utf-8", "replace")
        if found := re.search(r"^serving \S+?:(\d+) ", text, re.MULTILINE):
            return int(found[1])
        if running.poll() is not None:
            raise LoadError(f"the server did not start: {text.strip()[-300:]}")
        await asyncio.sleep(0.05)
    raise LoadError(f"the server did not start within {START_S:.0f} s; it said: {text.strip()[-300:]!r}")


async def _token(server: Server, key: str, number: int, gate: asyncio.Semaphore) -> str:
    async with gate:
        body = {"external_id": f"e-{number}", "ttl_s": TOKEN_S}
        return str((await server.do("POST", "/v1/tokens", body, token=key))["token"])


def _with_past_children(pid: int) -> float:
    """Of a process and its children; those that went are in its own account."""
    spent = 0.0
    with contextlib.suppress(psutil.Error, OSError):
        parent = psutil.Process(pid)
        for one in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                spent += times.user + times.system + times.children_user + times.children_system
    return spent


__all__ = ["Cores", "LoadError", "Server", "Spent", "Stand", "SwarmError", "Talk", "own_cores", "settled"]
