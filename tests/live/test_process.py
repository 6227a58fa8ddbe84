"""Children that end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from live import process

PARENT = """
import sys, time
from live import process
child = process.start(["sleep", "600"], map_user=int(sys.argv[1]) if len(sys.argv) > 1 else None)
print(child.pid, flush=True)
time.sleep(600)
"""


def ended(pid: int, wait_s: float = 5.0) -> bool:
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def child_of_killed_parent(*arguments: str) -> int:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not ended(pid, 0.1)
    parent.kill()
    parent.communicate()
    return pid


def test_a_child_ends_when_its_parent_is_killed() -> None:
    assert ended(child_of_killed_parent())


def test_a_child_in_a_user_namespace_ends_too() -> None:
    if process.root_way() == "namespace":
        assert ended(child_of_killed_parent(str(process.common_user())))
    else:
        assert process.root_way() in ("not_root", "setuid")


def test_a_child_has_a_session_of_its_own_and_answers_interrupts() -> None:
    child = process.start(["sleep", "600"])
    assert os.getsid(child.pid) == child.pid
    assert process.stop(child, [(signal.SIGINT, 5.0)]) == -signal.SIGINT


def test_a_child_that_ignores_its_signals_is_killed() -> None:
    child = process.start(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)",
        ],
        log=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.stdout.close()
    assert process.stop(child, [(signal.SIGTERM, 0.1)]) == -signal.SIGKILL


def test_waiting_for_a_stranger_tells_whether_it_ended() -> None:
    child = process.start(["sleep", "600"])
    assert not process.gone(child.pid, 0.1)
    process.stop(child, [])
    assert process.gone(child.pid, 0.1)
