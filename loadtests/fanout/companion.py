"""Our own server on its real road: event → script in Redis → tail → hub → one frame for every viewer.

One worker of `companion serve` on embedded engines in a temporary folder, a show on air, guests. Events are
appended by a script behind the same prelude as every other, each urgent, so that none waits for the beat
and each goes out in a frame of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httpx2
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from live.engines import attach
from live.lua import Scripts
from live.protocol import array, numbered, range_head
from loadtests.__main__ import LoadError
from loadtests.fanout.peers.pace import payload
from loadtests.fanout.work import ROOT, START_S, Door, Running, Work, children, read_line, start, stop

EVENT: Final = '{"type":"load.told","text":"%s"}'
AT: Final = '"at":1700000000000,'  # what the script adds to it


def _own_version() -> str:
    """The release, and the commit where we run from a repository."""
    try:
        released = version("live-companion")
    except PackageNotFoundError:
        released = "from source"
    if (ROOT / ".git").exists() and (git := shutil.which("git")):
        asked = [git, "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        released += f", commit {commit}" if commit else ""
    return released


def event(epoch: str, number: int, size: int) -> str:
    """An event whose frame is `size` bytes long; longer where the frame without filling is."""
    bare = EVENT.replace('"type"', AT + '"type"') % payload(0)
    framed = array([range_head(epoch, number, number), numbered(number, bare.encode())])
    return EVENT % payload(len(payload(0)) + max(0, size - len(framed)))


class Companion:
    """`companion serve` with one worker."""

    name = "companion"
    title = "companion, through Redis and hub"

    def prepare(self, folder: Path) -> str | None:
        return None

    def version(self) -> str:
        return f"{_own_version()}, websockets {version('websockets')}, uvloop {version('uvloop')}"

    @contextlib.contextmanager
    def serve(self, work: Work, folder: Path) -> Iterator[Running]:
        said = folder / "server.log"
        settings = {
            "COMPANION_DATA_DIR": str(folder / "data"),
            "COMPANION_PORT": "0",
            "COMPANION_LOG_LEVEL": "warning",
            "COMPANION_JOIN_RATE": "100000",  # joining is not what is measured
            "COMPANION_DRAIN_S": "0",  # nor is leaving; the viewers have gone by then
        }
        command = [sys.executable, "-P", "-m", "live", "serve", "--workers", "1"]
        running = start(command, work.server_core, said, environment=settings)
        try:
            url = read_line(running, r"^serving (\S+)", START_S, said)[1]
            token = _owner(settings, work, folder)
            yield _Serving(running, url, _show(url, token), work, Path(settings["COMPANION_DATA_DIR"]))
        finally:
            stop(running)


class _Serving:
    """Serves a show that is on air."""

    def __init__(
        self, running: subprocess.Popen[bytes], url: str, show: str, work: Work, data_dir: Path
    ) -> None:
        self._work, self._show, self._data_dir = work, cast(Any, show), data_dir
        self.door = Door(urlsplit(url).port or 0, f"/v1/shows/{show}/socket", plain=False)
        kinds = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in children(running.pid)}
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in kinds}
        self.counted = [running.pid, *(pid for pid, words in commands.items() if b"worker" in words)]
        self.beside = {
            name: pid for name in ("valkey",) for pid, kind in kinds.items() if kind.startswith(name)
        }
        if len(self.counted) != 2 or not self.beside:
            raise LoadError(f"the server's processes are not those that were expected: {kinds}")
        for pid in kinds:
            if pid not in self.counted:
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(pid, {work.engine_core})

    def publish(self) -> int:
        return asyncio.run(self._publish())

    async def _publish(self) -> int:
        found = attach(self._data_dir)
        if found is None:
            raise LoadError("the embedded engines are gone")
        work = self._work
        # Never repeated by the client: an event whose answer came late would be appended twice.
        redis = Redis.from_url(found.redis_url, retry=Retry(NoBackoff(), 0))
        try:
            script = Scripts(redis).load("loadtests.fanout", "append_event")
            seq, epoch = await script(self._show, [], ["", ""])
            began = time.monotonic()
            for index in range(work.frames):
                await asyncio.sleep(max(0.0, began + index / work.rate - time.monotonic()))
                text = event(epoch.decode(), seq + 1, work.size)
                seq = await script(self._show, [], [text, "1"])
        except Exception as error:  # a refusal, or the store is away
            raise LoadError(f"an event was not taken: {error}") from error
        finally:
            await redis.aclose()
        return work.frames


def _owner(settings: dict[str, str], work: Work, folder: Path) -> str:
    """A token for staff who may make rooms and shows."""
    said = folder / "token.log"
    command = [sys.executable, "-P", "-m", "live", "token", "--role", "owner", "--name", "load test"]
    asking = start(command, work.viewer_core, said, environment=settings)
    try:
        return read_line(asking, r"^(\S+)$", START_S, said)[1]
    finally:
        stop(asking)


def _show(url: str, token: str) -> str:
    """A room with a show that is on air."""
    with httpx2.Client(base_url=url, timeout=20, trust_env=False) as http:

        def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
            keyed = {"Idempotency-Key": uuid.uuid4().hex, "Authorization": f"Bearer {token}"}
            answer = http.post(path, json=body, headers=keyed)
            if answer.status_code >= 400:
                raise LoadError(f"POST {path} was answered {answer.status_code}: {answer.text[:200]}")
            made: dict[str, Any] = answer.json()
            return made

        room = post("/v1/rooms", {"title": "load test"})["id"]
        starts_at = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
        show = str(post("/v1/shows", {"room": room, "title": "load test", "starts_at": starts_at})["id"])
        post(f"/v1/shows/{show}/open", {})
        post(f"/v1/shows/{show}/start", {})
        return show
