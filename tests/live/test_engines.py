"""The embedded engines: one owner, nothing lost, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from live import process
from live.engines import Binaries, EngineError, Engines, FolderInUse, attach, forget

OWNER = """
import sys, time
from pathlib import Path
from live.engines import Binaries, Engines
engines = Engines.start(Path(sys.argv[1]), Binaries(Path(sys.argv[2]), Path(sys.argv[3])))
print(*engines.pids, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits for its parent does not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def until(condition: Callable[[], bool], wait_s: float = 5.0) -> bool:
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def start(folder: Path, binaries: Binaries) -> Iterator[Callable[[], Engines]]:
    started: list[Engines] = []

    def begin() -> Engines:
        started.append(Engines.start(folder, binaries))
        return started[-1]

    yield begin
    for engines in started:
        engines.stop()


@pytest.fixture
def owner(
    folder: Path, binaries: Binaries
) -> Iterator[Callable[[], tuple[subprocess.Popen[str], list[int]]]]:
    """Another process that owns the folder; gives it and its engines' pids."""
    started: list[subprocess.Popen[str]] = []

    def begin() -> tuple[subprocess.Popen[str], list[int]]:
        other = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(folder), str(binaries.valkey), str(binaries.postgres_bin)],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(other)
        assert other.stdout is not None
        return other, [int(word) for word in other.stdout.readline().split()]

    yield begin
    for other in started:
        other.kill()
        other.communicate()


def write(engines: Engines, value: str) -> None:
    with redis.Redis.from_url(engines.addresses.redis_url) as client:
        client.set("kept", value)
    with psycopg.connect(engines.addresses.database_url) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
        conn.execute("INSERT INTO kept VALUES (%s)", [value])


def read(redis_url: str, database_url: str) -> tuple[str, str]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        first = client.get("kept")
    with psycopg.connect(database_url) as conn:
        row = conn.execute("SELECT max(value) FROM kept").fetchone()
    return str(first), row[0] if row else ""


def test_both_answer_on_private_unix_sockets_only(start: Callable[[], Engines], folder: Path) -> None:
    engines = start()
    write(engines, "1")
    assert read(engines.addresses.redis_url, engines.addresses.database_url) == ("1", "1")
    run_dir = Path(engines.addresses.run_dir)
    assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "engines.json").stat().st_mode) == 0o600
    sockets = {int(line.split()[1].split(":")[1], 16) for line in listening_of(engines.pids)}
    assert sockets == set()


def listening_of(pids: tuple[int, ...]) -> list[str]:
    """The TCP sockets that these processes listen on, as lines of /proc/net/tcp."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    lines = []
    for table in ("tcp", "tcp6"):
        lines += Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[3] == "0A" and line.split()[9] in inodes]


def test_postgresql_does_not_run_as_root_and_syncs(start: Callable[[], Engines]) -> None:
    engines = start()
    with psycopg.connect(engines.addresses.database_url) as conn:
        asked = "fsync", "full_page_writes", "synchronous_commit", "server_encoding", "TimeZone"
        shown = {name: conn.execute(f"SHOW {name}").fetchone() for name in asked}
        collation = conn.execute("SELECT datcollate FROM pg_database WHERE datname = 'companion'").fetchone()
    assert shown == {
        "fsync": ("on",),
        "full_page_writes": ("on",),
        "synchronous_commit": ("on",),
        "server_encoding": ("UTF8",),
        "TimeZone": ("UTC",),
    }
    assert collation == ("C",)
    with redis.Redis.from_url(engines.addresses.redis_url, decode_responses=True) as client:
        assert client.config_get("append*")["appendfsync"] == "always"
        assert client.config_get("appendonly")["appendonly"] == "yes"


def test_a_second_owner_is_refused_and_told_who_has_it(start: Callable[[], Engines], folder: Path) -> None:
    start()
    with pytest.raises(FolderInUse, match=rf"in use by process {os.getpid()}.*COMPANION_DATA_DIR"):
        Engines.start(folder)


def test_others_attach_while_the_owner_runs(
    owner: Callable[[], tuple[subprocess.Popen[str], list[int]]], folder: Path
) -> None:
    assert attach(folder) is None
    other, _ = owner()
    found = attach(folder)
    assert found is not None
    assert found.pid == other.pid
    with redis.Redis.from_url(found.redis_url) as client:
        assert client.ping()
    other.kill()
    other.wait()
    assert until(lambda: attach(folder) is None)


def test_killing_the_owner_leaves_no_engine_and_a_folder_that_starts(
    owner: Callable[[], tuple[subprocess.Popen[str], list[int]]],
    start: Callable[[], Engines],
    folder: Path,
) -> None:
    other, pids = owner()
    assert all(alive(pid) for pid in pids)
    other.kill()
    other.wait()
    assert until(lambda: not any(alive(pid) for pid in pids))
    assert (folder / "engines.json").exists()
    engines = start()
    write(engines, "1")


def test_nothing_acknowledged_is_lost_over_five_kills(
    binaries: Binaries, start: Callable[[], Engines]
) -> None:
    for round_number in range(1, 6):
        engines = start()
        if round_number > 1:
            kept = read(engines.addresses.redis_url, engines.addresses.database_url)
            assert kept == (str(round_number - 1),) * 2
        write(engines, str(round_number))
        for pid in engines.pids:
            os.kill(pid, signal.SIGKILL)
        engines.stop()


def test_an_engine_that_ended_by_itself_is_started_again_at_its_address(start: Callable[[], Engines]) -> None:
    engines = start()
    before = engines.addresses
    write(engines, "1")
    old = engines.pids
    for pid in old:
        os.kill(pid, signal.SIGKILL)

    def revived() -> bool:
        engines.revive()
        return set(engines.pids).isdisjoint(old)

    assert until(revived)
    assert engines.addresses == before
    assert read(before.redis_url, before.database_url) == ("1", "1")


def test_an_engine_that_keeps_ending_is_given_up_by_name(start: Callable[[], Engines]) -> None:
    engines = start()
    for _ in range(5):
        revive_after_a_kill(engines)
    with pytest.raises(EngineError, match="Valkey ended 6 times within 60 s"):
        revive_after_a_kill(engines)


def revive_after_a_kill(engines: Engines) -> None:
    pid = engines.pids[0]
    os.kill(pid, signal.SIGKILL)

    def revived() -> bool:
        engines.revive()  # a process whose last thread still ends is not yet seen as ended
        return engines.pids[0] != pid

    assert until(revived)


def test_a_stop_is_orderly_and_may_be_repeated(start: Callable[[], Engines], folder: Path) -> None:
    engines = start()
    pids, run_dir = engines.pids, Path(engines.addresses.run_dir)
    engines.stop()
    engines.stop()
    assert not any(alive(pid) for pid in pids)
    assert not run_dir.exists()
    assert not (folder / "engines.json").exists()
    assert "database system is shut down" in (folder / "postgres.log").read_text()


def test_a_folder_of_a_newer_version_is_refused_untouched(folder: Path, binaries: Binaries) -> None:
    folder.mkdir()
    (folder / "FORMAT").write_text("2\n")
    with pytest.raises(EngineError, match=r"is of version 2, this program knows 1: install the newer"):
        Engines.start(folder, binaries)
    assert [entry.name for entry in folder.iterdir()] == ["FORMAT"]


def test_a_folder_of_another_postgresql_is_refused(start: Callable[[], Engines], folder: Path) -> None:
    start().stop()
    (folder / "postgres" / "PG_VERSION").write_text("99\n")
    with pytest.raises(EngineError, match=r"was made by PostgreSQL 99.*COMPANION_DATA_DIR"):
        start()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, binaries: Binaries) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"file/data cannot be used \(Not a directory\)"):
        Engines.start(tmp_path / "file" / "data", binaries)


def test_a_half_made_cluster_is_made_anew(start: Callable[[], Engines], folder: Path) -> None:
    (folder / "postgres.new" / "base").mkdir(parents=True)
    write(start(), "1")
    assert not (folder / "postgres.new").exists()


def test_a_stale_process_id_of_a_stranger_does_not_stop_the_start(
    start: Callable[[], Engines], folder: Path
) -> None:
    start().stop()
    (folder / "postgres" / "postmaster.pid").write_text(f"1\n{folder}\n0\n5432\n\n\n\n")
    write(start(), "1")


def test_an_engine_that_does_not_start_says_why(folder: Path, binaries: Binaries) -> None:
    false = shutil.which("false")
    assert false is not None
    with pytest.raises(EngineError, match=r"Valkey did not start: it said nothing \(see .*valkey.log\)"):
        Engines.start(folder, Binaries(Path(false), binaries.postgres_bin))
    assert attach(folder) is None


def test_where_namespaces_are_off_root_becomes_another_user(
    binaries: Binaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        # Nobody else may change user; then PostgreSQL runs as ourselves.
        assert process.root_way() == "not_root"
        return
    monkeypatch.setattr(process, "root_way", lambda: "setuid")
    base = Path("/tmp") / f"companion-test-{os.getpid()}"
    base.mkdir(mode=0o755)
    try:
        closed = any(not parent.stat().st_mode & stat.S_IXOTH for parent in binaries.postgres_bin.parents)
        if closed:
            with pytest.raises(EngineError, match=r"user namespaces are off here, and /.* is closed"):
                Engines.start(base / "data", binaries)
            return
        engines = Engines.start(base / "data", binaries)
        try:
            write(engines, "1")
            assert Path(f"/proc/{engines.pids[1]}").stat().st_uid == process.common_user()
            assert stat.S_IMODE((base / "data" / "engines.json").stat().st_mode) == 0o600
        finally:
            engines.stop()
        (base / "closed").mkdir(mode=0o700)
        with pytest.raises(EngineError, match="closed is closed to other users: set COMPANION_DATA_DIR"):
            Engines.start(base / "closed" / "data", binaries)
    finally:
        shutil.rmtree(base)


def test_forgetting_empties_a_folder_of_ours(start: Callable[[], Engines], folder: Path) -> None:
    engines = start()
    with pytest.raises(FolderInUse):
        forget(folder)
    engines.stop()
    forget(folder)
    assert {entry.name for entry in folder.iterdir()} <= {"engines.lock"}
    write(start(), "1")


def test_forgetting_leaves_a_strange_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    with pytest.raises(EngineError, match="holds other things"):
        forget(tmp_path)
    assert (tmp_path / "letters").is_dir()
    forget(tmp_path / "none")


def test_the_folder_that_is_written_for_others_is_plain_json(
    start: Callable[[], Engines], folder: Path
) -> None:
    engines = start()
    written = json.loads((folder / "engines.json").read_text())
    assert written["pid"] == os.getpid()
    assert written["redis_url"] == engines.addresses.redis_url
