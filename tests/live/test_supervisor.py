"""The supervisor: one socket, restarts, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from live import supervisor
from live.supervisor import Child, PortInUse, bind, supervise

pytestmark = pytest.mark.anyio

# A worker: says its pid on the file, is ready, serves its pid to whoever connects.
WORKER = """
import os, socket, sys
from live.supervisor import say_ready
listening = socket.socket(fileno=int(sys.argv[1]))
listening.setblocking(True)
with open(sys.argv[2], "a") as file:
    print(os.getpid(), file=file, flush=True)
say_ready(os.environ)
while True:
    client, _ = listening.accept()
    client.sendall(str(os.getpid()).encode())
    client.close()
"""

# The whole: supervises two workers until told, prints the port when both are ready.
PARENT = """
import asyncio, sys
from live.supervisor import Child, bind, supervise
bound = bind("127.0.0.1", 0)
command = (sys.executable, "-c", sys.argv[1], str(bound.fileno()), sys.argv[2])
keep = (bound.fileno(),)
children = [Child(name=f"server {n}", command=command, keep=keep, says_ready=True) for n in (1, 2)]
asyncio.run(supervise(children, on_ready=lambda: print(bound.getsockname()[1], flush=True)))
print("ended", flush=True)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def until(condition: Callable[[], bool], wait_s: float = 10.0) -> bool:
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        if condition():
            return True
        await asyncio.sleep(0.02)
    return False


class Parent:
    """A supervising process and the pids its workers wrote down."""

    def __init__(self, folder: Path, *, ignore_interrupts: bool = False) -> None:
        self.written = folder / "pids"
        self.written.touch()

        def before() -> None:
            if ignore_interrupts:
                signal.signal(signal.SIGINT, signal.SIG_IGN)

        self.process = subprocess.Popen(
            [sys.executable, "-c", PARENT, WORKER, str(self.written)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=before,  # noqa: PLW1509
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    @property
    def pids(self) -> list[int]:
        return [int(line) for line in self.written.read_text().split()]

    def ask(self) -> int:
        """The pid of the worker that answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
            return int(client.recv(16))

    def end(self) -> str:
        self.process.kill()
        return self.process.communicate()[0]


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Parent]:
    return lambda **options: Parent(tmp_path, **options)


async def test_workers_share_one_socket_and_a_killed_one_is_replaced(start: Callable[..., Parent]) -> None:
    parent = start()
    try:
        first = parent.pids
        assert len(first) == 2
        assert parent.ask() in first
        os.kill(first[0], signal.SIGKILL)
        assert await until(lambda: len(parent.pids) == 3)
        assert await until(lambda: parent.ask() == parent.pids[2])
    finally:
        parent.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignored", [False, True])
async def test_a_signal_stops_all_also_when_interrupts_were_ignored(
    start: Callable[..., Parent], number: signal.Signals, ignored: bool
) -> None:
    parent = start(ignore_interrupts=ignored)
    parent.process.send_signal(number)
    said, _ = await asyncio.to_thread(parent.process.communicate, timeout=10)
    assert said == "ended\n"
    assert parent.process.returncode == 0
    assert not any(alive(pid) for pid in parent.pids)


async def test_killing_the_supervisor_leaves_no_worker(start: Callable[..., Parent]) -> None:
    parent = start()
    parent.end()
    assert await until(lambda: not any(alive(pid) for pid in parent.pids), 5.0)
    with pytest.raises(ConnectionRefusedError):
        parent.ask()


async def test_a_port_in_use_is_said_in_one_line() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"port {port} on 127.0.0.1 is in use: .*COMPANION_PORT"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
async def test_an_address_that_is_not_ours_is_said_in_one_line(host: str) -> None:
    with pytest.raises(PortInUse, match="cannot listen on"):
        bind(host, 0)


async def supervised(
    *children: Child, until_true: Callable[[], bool], watch: Callable[[], None] | None = None
) -> None:
    """Supervise in this process until the condition holds."""

    async def stop() -> None:
        try:
            assert await until(until_true)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    stopper: Awaitable[None] = asyncio.create_task(stop())
    await supervise(children, watch=watch, stop_s=0.5)
    await stopper


async def test_one_that_fails_again_and_again_waits_longer_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "BACK_OFF_S", (0.0, 0.0, 0.25))
    marks = tmp_path / "marks"
    marks.touch()
    child = Child(name="poor", command=("sh", "-c", f"echo x >> {marks}; exit 3"))
    began = time.monotonic()
    await supervised(child, until_true=lambda: len(marks.read_text().split()) >= 4)
    assert time.monotonic() - began >= 0.25
    assert "poor" in caplog.text
    assert "ended with 3; again in 0.2 s" in caplog.text


async def test_one_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    once = Child(name="once", command=("sh", "-c", f"echo x >> {marks}"), once=True)
    other = Child(name="other", command=("sleep", "600"))
    await supervised(once, other, until_true=marks.exists)
    assert marks.read_text() == "x\n"


async def test_one_that_does_not_stop_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ready = tmp_path / "ready"
    command = ("sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.05; done")
    await supervised(Child(name="deaf", command=command), until_true=ready.exists)
    assert "did not stop within" in caplog.text


async def test_a_watch_that_raises_ends_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "WATCH_S", 0.05)
    mark = tmp_path / "pid"
    child = Child(name="child", command=("sh", "-c", f"echo $$ > {mark}; exec sleep 600"))

    def watch() -> None:
        if mark.exists() and mark.read_text():
            raise LookupError("an engine is gone")

    with pytest.raises(LookupError, match="an engine is gone"):
        await supervise([child], watch=watch)
    assert not alive(int(mark.read_text()))


async def test_ready_is_said_once_all_are(tmp_path: Path) -> None:
    gate, said = tmp_path / "gate", tmp_path / "said"
    ready = "from live.supervisor import say_ready; import os, time; say_ready(os.environ); time.sleep(600)"
    hurried = (sys.executable, "-c", ready)
    patient = (
        "sh",
        "-c",
        f'until [ -e {gate} ]; do sleep 0.02; done; exec "$0" -c "$1"',
        sys.executable,
        ready,
    )
    children = [
        Child(name="hurried", command=hurried, says_ready=True),
        Child(name="patient", command=patient, says_ready=True),
        Child(name="silent", command=("sleep", "600")),
    ]

    async def stop() -> None:
        try:
            assert not await until(said.exists, 0.3)
            gate.touch()
            assert await until(said.exists)
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    stopper = asyncio.create_task(stop())
    await supervise(children, on_ready=said.touch, stop_s=0.5)
    await stopper
