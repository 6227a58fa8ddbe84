"""One run of one contender: its server on one core, the viewers on another, and what was used and delivered."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from live import process
from loadtests.__main__ import LoadError
from loadtests.swarm import Report

ROOT: Final = Path(__file__).resolve().parents[2]
START_S: Final = 60.0  # a server that does not listen by then has failed
STOP_S: Final = 20.0
ENTERED_S: Final = 0.2  # the last viewer's end of the handshake is ahead of the server's by this at most
ARRIVE_S: Final = 20.0  # after the last frame was sent, the viewers are given so long …
QUIET_S: Final = 2.0  # … and less when nothing more comes: what has not come then is missing
POLL_S: Final = 0.2
BYTES_MIN, BYTES_MAX = 64, 65_535  # of a frame's payload
_CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Work(msgspec.Struct, frozen=True):
    """What every contender is given to do."""

    viewers: int = 1_000
    rate: float = 50.0  # frames a second to each
    seconds: float = 10.0
    size: int = 200  # bytes of a frame's payload
    server_core: int = 0
    viewer_core: int = 1
    engine_core: int = 0  # of Redis and PostgreSQL, which only our server needs

    @property
    def frames(self) -> int:
        return round(self.rate * self.seconds)

    @property
    def deliveries(self) -> int:
        return self.frames * self.viewers

    def __str__(self) -> str:
        return f"{self.viewers:,} viewers × {self.rate:g} frames/s × {self.size} B × {self.seconds:g} s"


class Door(msgspec.Struct, frozen=True):
    """Where the viewers go."""

    port: int
    path: str = "/"
    plain: bool = True  # not our wire: nothing is said first, frames and marks are counted only


class Running(Protocol):
    """A contender's server that listens."""

    @property
    def door(self) -> Door: ...

    @property
    def counted(self) -> Sequence[int]:
        """The processes whose time and memory are the server's."""
        ...

    @property
    def beside(self) -> Mapping[str, int]:
        """Processes that are reported apart: name -> id."""
        ...

    def publish(self) -> int:
        """Have every frame sent; returns how many once the last one is. Raises LoadError."""
        ...


class Contender(Protocol):
    """Something that can send one frame to many."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    def prepare(self, folder: Path) -> str | None:
        """Make ready what it needs in the folder of the whole benchmark; why it cannot run here, or None."""
        ...

    def version(self) -> str: ...

    def serve(self, work: Work, folder: Path) -> contextlib.AbstractContextManager[Running]:
        """Its server, pinned; stopped when the block ends. The folder is this run's own."""
        ...


class Seen(msgspec.Struct, frozen=True):
    """What the viewers report."""

    delivered: int
    frames: int  # in which they came
    disorder: int  # numbers of events left out, told again or out of order
    closed: int
    p50_ms: float
    p99_ms: float


class Run(msgspec.Struct, frozen=True):
    """One contender in one round."""

    round: int
    failed: str | None  # why the figures do not count
    published: int = 0
    delivered: int = 0
    frames: int = 0  # in which they came: fewer when two that were late shared one
    cpu_us: float = 0.0  # of the server's processes, per delivered frame
    beside_us: dict[str, float] = {}  # of what is reported apart, per delivered frame
    p50_ms: float = 0.0  # from publication to a viewer that has read it
    p99_ms: float = 0.0
    rss_bytes: int = 0  # of the server's processes when the last frame was sent
    rss_per_viewer: int = 0  # beyond what they had before the first viewer came
    ratio: float | None = None  # to the floor of the same round


# -- processes -------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """CPU time of a process with all its threads, to the nanosecond where the system has a clock for it.

    The clock counts what /proc/<pid>/stat shows in hundredths of a second.
    """
    clock = ctypes.c_int()
    if ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)) == 0:
        return time.clock_gettime(clock.value)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        raise LoadError("a process of the server is gone") from None
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


def rss_bytes(pids: Sequence[int]) -> int:
    """Resident memory of all together; what they share is counted in each."""
    found = 0
    for pid in pids:
        said = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        found += int(said[1]) * 1024 if said else 0
    return found


def children(pid: int) -> list[int]:
    """The processes it started, and theirs."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def start(
    command: Sequence[str | Path],
    core: int,
    said: Path,
    *,
    environment: Mapping[str, str] | None = None,
    death_signal: int = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """A child on one core, in a session of its own, that ends when we do. Its errors go to `said`."""
    before_exec = process.before_exec(death_signal)

    def prepare() -> None:
        os.sched_setaffinity(0, {core})
        before_exec()

    kept = {name: value for name, value in os.environ.items() if not name.startswith("COMPANION_")}
    paths = [str(ROOT), *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    with said.open("ab") as errors:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**kept, "PYTHONPATH": os.pathsep.join(paths), **(environment or {})},
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509
        )


def stop(running: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if running.stdin is not None:
            running.stdin.close()
    process.stop(running, [(signal.SIGTERM, STOP_S)])
    if running.stdout is not None:
        running.stdout.close()


def read_line(running: subprocess.Popen[bytes], pattern: str, wait_s: float, said: Path) -> re.Match[str]:
    """The first line of its output that matches. Raises LoadError when it ends or takes too long."""
    assert running.stdout is not None
    until, have = time.monotonic() + wait_s, b""
    descriptor = running.stdout.fileno()
    while True:
        readable, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        if not readable:
            raise LoadError(f"no answer within {wait_s:.0f} s; {last_line(said)}")
        piece = os.read(descriptor, 65_536)
        if not piece:
            raise LoadError(f"it ended early; {last_line(said)}")
        have += piece
        *lines, have = have.split(b"\n")
        for line in lines:
            found = re.search(pattern, line.decode("utf-8", "replace"))
            if found:
                return found


def last_line(said: Path) -> str:
    lines = said.read_text("utf-8", "replace").strip().splitlines() if said.exists() else []
    return f"it said: {lines[-1].strip()}" if lines else "it said nothing"


# -- the viewers, and one run -----------------------------------------------------------------------


class Crowd:
    """The viewers of one run: a swarm in a process of its own, asked by its lines."""

    def __init__(self, running: subprocess.Popen[bytes], said: Path) -> None:
        self._running, self._said = running, said

    def ready(self, wait_s: float) -> None:
        """Returns when all are in; counting begins. Raises LoadError."""
        self._answer("ready", wait_s)
        time.sleep(ENTERED_S)
        self._ask("reset")

    def seen(self, expected: int) -> Seen:
        """What came, once that many messages did or no more are to be hoped for. Raises LoadError."""
        until, had, grew = time.monotonic() + ARRIVE_S, -1, time.monotonic()
        while True:
            report = msgspec.convert(self._ask("report")["report"], Report)
            now, delivered = time.monotonic(), report.latency.count
            if delivered > had:
                had, grew = delivered, now
            if delivered >= expected or report.closes or now > until or now - grew > QUIET_S:
                return Seen(
                    delivered=delivered,
                    frames=report.ranges or report.frames,
                    disorder=report.holes + report.repeats + report.disordered + report.gaps,
                    closed=sum(report.closes.values()),
                    p50_ms=report.latency.p50,
                    p99_ms=report.latency.p99,
                )
            time.sleep(POLL_S)

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._running.stdin is not None
        self._running.stdin.write(command.encode() + b"\n")
        self._running.stdin.flush()
        return self._answer(command, START_S)

    def _answer(self, wanted: str, wait_s: float) -> dict[str, Any]:
        line = read_line(self._running, rf'^\{{"said":"({wanted}|error)".*', wait_s, self._said)
        answer: dict[str, Any] = msgspec.json.decode(line[0])
        if line[1] == "error":
            raise LoadError(f"the viewers: {answer['error']}")
        return answer


@contextlib.contextmanager
def viewers(work: Work, door: Door, folder: Path) -> Iterator[Crowd]:
    """They begin to come; all leave when the block ends."""
    command = [sys.executable, "-P", "-m", "loadtests.swarm", "--port", str(door.port), "--path", door.path]
    command += ["--count", str(work.viewers), *(["--plain", "--subprotocol", ""] if door.plain else [])]
    said = folder / "viewers.log"
    running = start(command, work.viewer_core, said)
    try:
        yield Crowd(running, said)
    finally:
        stop(running)


def run_once(contender: Contender, work: Work, folder: Path, number: int = 1) -> Run:
    """Serve, let the viewers in, publish, count. A run that misses one message has failed."""
    try:
        with _entered(contender, work, folder) as (running, crowd, empty):
            used = _Used(running)
            published = running.publish()
            seen = crowd.seen(published * work.viewers)
            used.stop()
    except (LoadError, OSError, subprocess.SubprocessError) as error:
        return Run(number, str(error) or type(error).__name__)
    per_frame = 1e6 / max(1, seen.frames)
    return Run(
        round=number,
        failed=_wrong(work, published, seen),
        published=published,
        delivered=seen.delivered,
        frames=seen.frames,
        cpu_us=used.counted_s * per_frame,
        beside_us={name: spent * per_frame for name, spent in used.beside_s.items()},
        p50_ms=seen.p50_ms,
        p99_ms=seen.p99_ms,
        rss_bytes=used.rss_bytes,
        rss_per_viewer=max(0, used.rss_bytes - empty) // work.viewers,
    )


def run_idle(contender: Contender, work: Work, folder: Path) -> Run:
    """The same without a frame, for `work.seconds`; `cpu_us` is per second and viewer."""
    try:
        with _entered(contender, work, folder) as (running, crowd, empty):
            used = _Used(running)
            time.sleep(work.seconds)
            used.stop()
            seen = crowd.seen(0)
    except (LoadError, OSError, subprocess.SubprocessError) as error:
        return Run(1, str(error) or type(error).__name__)
    return Run(
        round=1,
        failed=f"{seen.closed:,} viewers were cut off" if seen.closed else None,
        cpu_us=used.counted_s * 1e6 / work.seconds / work.viewers,
        rss_bytes=used.rss_bytes,
        rss_per_viewer=max(0, used.rss_bytes - empty) // work.viewers,
    )


@contextlib.contextmanager
def _entered(contender: Contender, work: Work, folder: Path) -> Iterator[tuple[Running, Crowd, int]]:
    """The server, the viewers when all are in, and the server's memory before they came."""
    folder.mkdir(parents=True)
    with contender.serve(work, folder) as running:
        empty = rss_bytes(running.counted)
        with viewers(work, running.door, folder) as crowd:
            crowd.ready(START_S + work.viewers / 500)
            yield running, crowd, empty


class _Used:
    """What a server's processes use from here on."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._before = {pid: cpu_s(pid) for pid in (*running.counted, *running.beside.values())}
        self.counted_s = 0.0
        self.beside_s: dict[str, float] = {}
        self.rss_bytes = 0

    def stop(self) -> None:
        spent = {pid: cpu_s(pid) - before for pid, before in self._before.items()}
        self.counted_s = sum(spent[pid] for pid in self._running.counted)
        self.beside_s = {name: spent[pid] for name, pid in self._running.beside.items()}
        self.rss_bytes = rss_bytes(self._running.counted)


def _wrong(work: Work, published: int, seen: Seen) -> str | None:
    """What did not arrive, in words."""
    missing = published * work.viewers - seen.delivered
    if published != work.frames:
        return f"{published:,} of {work.frames:,} frames were published"
    if missing > 0:
        return f"{missing:,} of {published * work.viewers:,} messages missing"
    if missing < 0:
        return f"{-missing:,} messages more than were sent"
    if seen.disorder:
        return f"{seen.disorder:,} times the events were not in order"
    return f"{seen.closed:,} viewers were cut off" if seen.closed else None


# -- a server of one process that speaks the peers' lines -------------------------------------------


class _Listening:
    """See peers/__init__.py for the lines."""

    def __init__(self, running: subprocess.Popen[bytes], port: int, work: Work, said: Path) -> None:
        self._running, self._work, self._said = running, work, said
        self.door = Door(port)
        self.counted = [running.pid]
        self.beside: dict[str, int] = {}

    def publish(self) -> int:
        assert self._running.stdin is not None
        self._running.stdin.write(b"go\n")
        self._running.stdin.flush()
        done = read_line(self._running, r"^done (\d+)$", self._work.seconds * 4 + START_S, self._said)
        return int(done[1])


@contextlib.contextmanager
def listening(command: Sequence[str | Path], work: Work, folder: Path) -> Iterator[Running]:
    """Start a program that speaks the peers' lines; gives it once it listens."""
    said = folder / "server.log"
    running = start(command, work.server_core, said)
    try:
        port = int(read_line(running, r"^port (\d+)$", START_S, said)[1])
        yield _Listening(running, port, work, said)
    finally:
        stop(running)
