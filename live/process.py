"""Child processes that cannot outlive us: parent-death signal, own session, and a user that is not root.

The kernel sends the signal when the *thread* that started the child ends, so children are started from
the main thread only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_CLONE_NEWUSER = 0x10000000  # linux/sched.h

# How a program that refuses to run as root (PostgreSQL) is started by root.
RootWay = Literal["not_root", "namespace", "setuid"]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def before_exec(
    death_signal: int, *, map_user: int | None = None, set_user: int | None = None
) -> Callable[[], None]:
    """What the child does between fork and exec.

    `map_user` enters a user namespace in which our own user has that id; `set_user` becomes that user.
    Both change credentials, which clears a parent-death signal: so that is asked for last. A parent that
    died before it was asked for is noticed by its id.
    """
    parent = os.getpid()
    libc = _libc() if sys.platform == "linux" else None  # loaded before the fork
    uid, gid = os.geteuid(), os.getegid()
    uid_map = f"{map_user} {uid} 1".encode()
    gid_map = f"{map_user} {gid} 1".encode()

    def prepare() -> None:
        if libc is not None and map_user is not None:
            if libc.unshare(_CLONE_NEWUSER) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            for name, text in (("setgroups", b"deny"), ("uid_map", uid_map), ("gid_map", gid_map)):
                descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
                os.write(descriptor, text)
                os.close(descriptor)
        if set_user is not None:
            os.setgroups([])
            os.setgid(set_user)
            os.setuid(set_user)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)
        # A shell's `&` leaves SIGINT ignored, and ignored signals survive exec.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return prepare


def end_with_parent() -> None:
    """Ask to be killed when our parent ends. Our own children then end in the same way."""
    if sys.platform == "linux":
        parent = os.getppid()
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def start(
    command: Sequence[str | Path],
    *,
    death_signal: int = signal.SIGKILL,
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | int | None = None,
    keep: Sequence[int] = (),
    map_user: int | None = None,
    set_user: int | None = None,
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own: Ctrl-C in our terminal is ours alone to answer.

    `keep` are descriptors the child inherits; `log` takes its output.
    """
    return subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=None if log is None else subprocess.STDOUT,
        env=dict(os.environ if environment is None else environment),
        cwd=folder,
        pass_fds=tuple(keep),
        start_new_session=True,
        preexec_fn=before_exec(death_signal, map_user=map_user, set_user=set_user),  # noqa: PLW1509
    )


def stop(process: subprocess.Popen[bytes], signals: Sequence[tuple[int, float]]) -> int:
    """Send each signal and wait its seconds, SIGKILL at last. Returns the exit code."""
    for number, wait_s in signals:
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
    if process.poll() is None:
        process.kill()
    return process.wait()


def common_user() -> int:
    """A user id with a name and without rights: initdb looks its user up by id."""
    for name in ("nobody", "daemon"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid
    return next(user.pw_uid for user in pwd.getpwall() if user.pw_uid != 0)


def root_way() -> RootWay:
    """How this process can start a program that refuses root; tried once, since containers forbid much."""
    if os.geteuid() != 0:
        return "not_root"
    if sys.platform != "linux":
        return "setuid"
    try:
        trial = start(["true"], log=subprocess.DEVNULL, map_user=common_user())
    except (OSError, subprocess.SubprocessError):
        return "setuid"
    return "namespace" if trial.wait(10) == 0 else "setuid"


def gone(pid: int, wait_s: float) -> bool:
    """Whether the process (not a child of ours) ends within the time."""
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False
