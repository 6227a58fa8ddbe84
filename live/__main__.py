"""The command `companion`: serve, work, demo, sandbox, migrate, token, apikey, verify, close.

An error is one line that says what to do next. Processes that serve are kept running by the supervisor;
the engines belong to whichever command started them, others attach.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit

import msgspec
import psycopg
import redis
import uvloop

from commerce.sandbox import control_key
from live import diagnostics, process, supervisor
from live.cluster import ClusterUrl
from live.database import SchemaError, migrate
from live.engines import EngineError, Engines, FolderInUse, attach, forget, make_data_dir
from live.settings import (
    Settings,
    SettingsError,
    data_dir_of,
    default_data_dir,
    environment_of,
    has_deployment,
    read_settings,
    unknown,
)
from live.supervisor import Child, PortInUse
from membership.actor import PERMISSIONS, Actor, MemberId, Permission, RoomId, ShowId, StaffId
from membership.refusal import Refusal

if TYPE_CHECKING:
    from live.parts import Parts

ANSWER_S = 4.5  # an engine that does not answer is reported within five seconds
REDIS_MIN, POSTGRES_MIN = (7, 0), 15


class CommandError(Exception):
    """One line that says what is wrong and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    # Under a shell's `&` SIGINT comes ignored; before the loop runs, Ctrl-C is to end us all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for line in unknown(os.environ):
        print(f"companion: {line}", file=sys.stderr)
    command: Callable[[argparse.Namespace], int] = parsed.command
    try:
        return command(parsed)
    except (CommandError, EngineError, PortInUse, SchemaError, SettingsError, Refusal) as error:
        print(f"companion: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="companion",
        description="Stands beside a live video stream and makes it sell.",
        epilog="Settings are environment variables COMPANION_*: see docs/settings.md.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, run: Callable[[argparse.Namespace], int], about: str, example: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name,
            help=about,
            description=about,
            epilog=f"Example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(command=run)
        return added

    serve = add(
        "serve",
        _serve,
        "Serve pages, API and sockets on one port; starts the embedded engines when no URLs are set.",
        "COMPANION_PORT=8080 companion serve --workers 2",
    )
    serve.add_argument("--workers", type=_count, metavar="N", help="server processes (COMPANION_WORKERS)")
    add(
        "work",
        _work,
        "Do the work without a socket: end what is due, settle, record, derive tags after a show.",
        "companion work",
    )
    demo = add(
        "demo",
        _demo,
        "A sample brand goes live before a simulated crowd; prints the addresses. Ctrl-C stops everything.",
        "companion demo --viewers 500 --fresh",
    )
    demo.add_argument("--viewers", type=_count, default=200, metavar="N", help="simulated viewers (200)")
    demo.add_argument("--workers", type=_count, metavar="N", help="server processes (COMPANION_WORKERS)")
    demo.add_argument("--fresh", action="store_true", help="delete the data folder's contents first")
    demo.add_argument(
        "--tied", action="store_true", help="end when the calling process ends, however it ends"
    )
    sandbox = add(
        "sandbox",
        _sandbox,
        "A payment provider for trying the shop, as a process of its own. No money moves.",
        "COMPANION_SANDBOX_URL=http://127.0.0.1:8010 companion sandbox --port 8010",
    )
    sandbox.add_argument("--port", type=_port, default=8010, metavar="N", help="where it listens (8010)")
    sandbox.add_argument(
        "--file", type=Path, metavar="PATH", help="what it remembers (sandbox.sqlite in the data folder)"
    )
    sandbox.add_argument("--socket", type=int, help=argparse.SUPPRESS)
    add("migrate", _migrate, "Bring the database's schema up to date.", "companion migrate")
    token = add(
        "token",
        _token,
        "Print a signed token for a viewer or for staff, or a one-time sign-in link for staff.",
        "companion token --role owner --name 小禾 --link",
    )
    whom = token.add_mutually_exclusive_group(required=True)
    whom.add_argument("--member", metavar="ID", help="a viewer: the member with this id")
    whom.add_argument("--phone", metavar="NUMBER", help="a viewer: registers the phone when it is new")
    whom.add_argument("--staff", metavar="ID", help="the staff account with this id")
    whom.add_argument("--role", choices=sorted(PERMISSIONS), help="a new staff account of this role")
    token.add_argument("--name", default="", help="name of the new staff account")
    token.add_argument("--room", metavar="ID", help="bind the new staff account to this room alone")
    token.add_argument("--hours", type=_count, default=12, metavar="N", help="how long it is valid (12)")
    token.add_argument("--link", action="store_true", help="staff: a sign-in link, single use, 10 minutes")
    apikey = add(
        "apikey",
        _apikey,
        "Make an API key for a shop's server; its secret is printed once.",
        "companion apikey --name webshop --may member.write --may catalog.write",
    )
    apikey.add_argument("--name", required=True, help="what it is for")
    apikey.add_argument(
        "--may", action="append", required=True, choices=get_args(Permission), help="a permission; repeat"
    )
    check = add(
        "verify",
        _verify,
        "Check a receipt, or the sealed archive of a show: what it says, or what is wrong with it.",
        "companion verify r1.eyJ… --url https://live.example.com --chain",
    )
    check.add_argument(
        "what", metavar="RECEIPT", help="the receipt, or a file that holds it or is an archive"
    )
    by = check.add_mutually_exclusive_group()
    by.add_argument("--key", metavar="PUBLIC", help="check against this public key, without any server")
    by.add_argument(
        "--url", metavar="ADDRESS", help="check against the key of the server there (else this folder's)"
    )
    check.add_argument("--chain", action="store_true", help="with --url: also its place among all ranks")
    close = add(
        "close",
        _close,
        "Count everything of a show that has ended again, name each difference, and seal the record.",
        "companion close q7m2kd4n8p",
    )
    close.add_argument("show", metavar="SHOW", help="the show's id, as in its link")
    worker = commands.add_parser("worker")  # what serve starts; without help it is not listed
    worker.add_argument("--socket", type=int, required=True)
    worker.set_defaults(command=_worker)
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65_535:
        raise ValueError
    return number


# --- engines ---


@contextlib.contextmanager
def _engines(settings: Settings) -> Iterator[tuple[Settings, Engines | None]]:
    """The settings with URLs that answer; the engines are given where they are ours to watch."""
    if not settings.embedded:
        _check_answers(settings)
        yield settings, None
        return
    running = attach(settings.data_dir)
    engines = None
    if running is None:
        try:
            engines = Engines.start(settings.data_dir)
            running = engines.addresses
        except FolderInUse:
            running = attach(settings.data_dir)  # somebody else was first
            if running is None:
                raise
    try:
        yield (
            msgspec.structs.replace(settings, redis_url=running.redis_url, database_url=running.database_url),
            engines,
        )
    finally:
        if engines is not None:
            engines.stop()


def _check_answers(settings: Settings) -> None:
    """Raises CommandError when an engine is away or too old. Name resolution may hang, so in threads."""
    said: dict[str, str | None] = {}

    def ask(name: str, question: Callable[[], str | None]) -> None:
        try:
            said[name] = question()
        except Exception as error:
            said[name] = str(error).strip().splitlines()[-1].strip() if str(error).strip() else repr(error)

    def ask_redis() -> str | None:
        address = ClusterUrl.parse(settings.redis_url)
        if address is None:
            return ask_server(settings.redis_url)
        answer: str | None = None
        for node in address.nodes:  # one that answers is enough
            try:
                return ask_server(address.of(*node), cluster=True)
            except redis.RedisError as error:
                answer = str(error)
        return answer

    def ask_server(url: str, *, cluster: bool = False) -> str | None:
        with redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3) as client:
            version = str(client.info("server")["redis_version"])
            runs_cluster = bool(client.info("cluster").get("cluster_enabled"))
        if tuple(int(part) for part in version.split(".")[:2]) < REDIS_MIN:
            return f"it is version {version}, needed is 7.0 or later"
        if runs_cluster is not cluster:
            scheme, other = ("redis+cluster", "is") if runs_cluster else ("redis", "is not")
            return f"it {other} a node of a Cluster, so the address begins with {scheme}://"
        return None

    def ask_postgres() -> str | None:
        with psycopg.connect(settings.database_url, connect_timeout=3) as conn:
            found = conn.info.server_version // 10_000
        return None if found >= POSTGRES_MIN else f"it is version {found}, needed is {POSTGRES_MIN} or later"

    asked = {"REDIS_URL": ask_redis, "DATABASE_URL": ask_postgres}
    threads = [threading.Thread(target=ask, args=pair, daemon=True) for pair in asked.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ANSWER_S / len(threads))
    for name in asked:
        answer = said.get(name, "no answer")
        if answer is not None:
            raise CommandError(
                f"COMPANION_{name} does not work: {answer}; start that engine or correct the address, "
                "or unset both URLs for the embedded engines"
            )


def _schema(settings: Settings, *, ours: bool) -> None:
    """Embedded: always brought up to date. A shared database is moved by its admin's own command."""
    if ours:
        migrate(settings.database_url)
        return
    if waiting := migrate(settings.database_url, look_only=True):
        raise SchemaError(f"the database lacks {len(waiting)} migrations: run `companion migrate`")


# --- serve, work, demo ---


@contextlib.contextmanager
def _only_server(settings: Settings) -> Iterator[None]:
    """Refuses a second `serve` on the folder."""
    if not settings.embedded:
        yield
        return
    make_data_dir(settings.data_dir)
    with (settings.data_dir / "serve.lock").open("a+b") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandError(
                f"the data folder {settings.data_dir} is already being served: stop that one, "
                "or set COMPANION_DATA_DIR to another folder"
            ) from None
        yield


def _bind(settings: Settings) -> tuple[Settings, socket.socket]:
    """The listening socket, and the settings with the port that was taken."""
    bound = supervisor.bind(settings.host, settings.port)
    port = bound.getsockname()[1]
    if settings.port == 0:
        public_url = settings.public_url
        if urlsplit(public_url).port == 0:
            public_url = public_url.removesuffix(":0") + f":{port}"
        settings = msgspec.structs.replace(settings, port=port, public_url=public_url)
    return settings, bound


def _environment(settings: Settings) -> dict[str, str]:
    """Of a child: our settings, and our own packages found before any folder named alike (`-P`)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COMPANION_")}
    here = str(Path(__file__).resolve().parent.parent)
    paths = [here, *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    return {**kept, **environment_of(settings), "PYTHONPATH": os.pathsep.join(paths)}


def _server_children(settings: Settings, bound: socket.socket) -> list[Child]:
    return [
        Child(
            name=f"server {number}",
            command=(sys.executable, "-P", "-m", "live", "worker", "--socket", str(bound.fileno())),
            environment=_environment(settings),
            keep=(bound.fileno(),),
            says_ready=True,
        )
        for number in range(1, settings.workers + 1)
    ]


def _supervise(
    settings: Settings, children: Sequence[Child], engines: Engines | None, on_ready: Callable[[], Any]
) -> None:
    asyncio.run(
        supervisor.supervise(
            children,
            on_ready=on_ready,
            watch=engines.revive if engines is not None else None,
            stop_s=settings.drain_s + 7.0,
        )
    )


def _read(arguments: argparse.Namespace) -> Settings:
    if not os.environ.get("COMPANION_DATA_DIR", "").strip():
        folder = default_data_dir(os.environ)
        if not folder.exists():
            print(f"companion: making the data folder {folder} (COMPANION_DATA_DIR)", file=sys.stderr)
    settings = read_settings(os.environ)
    diagnostics.set_up(settings.log_level)
    if getattr(arguments, "workers", None):
        settings = msgspec.structs.replace(settings, workers=arguments.workers)
    return settings


def _serve(arguments: argparse.Namespace) -> int:
    settings = _read(arguments)
    with _only_server(settings):
        settings, bound = _bind(settings)
        with bound, _engines(settings) as (settings, engines):
            _schema(settings, ours=engines is not None)

            def ready() -> None:
                print(f"serving {settings.public_url} ({settings.workers} processes)", flush=True)

            _supervise(settings, _server_children(settings, bound), engines, ready)
    return 0


def _worker(arguments: argparse.Namespace) -> int:
    """One server process on the supervisor's socket."""
    from live.server import run_server

    settings = _read(arguments)
    bound = socket.socket(fileno=arguments.socket)
    uvloop.run(run_server(settings, bound, lambda: supervisor.say_ready(os.environ)))
    return 0


def _work(arguments: argparse.Namespace) -> int:
    from live.jobs import run_jobs

    settings = _read(arguments)
    with _engines(settings) as (settings, engines):
        _schema(settings, ours=engines is not None)
        uvloop.run(run_jobs(settings, lambda: supervisor.say_ready(os.environ)))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from live.brand import SHOP
    from live.demo import crowd_command, crowd_environment, load_demo, screen

    if arguments.tied:
        process.end_with_parent()  # `make` passes nothing on when it is killed; the kernel does
    os.environ.setdefault("COMPANION_SANDBOX", "yes")
    os.environ.setdefault("COMPANION_SHOP_NAME", SHOP)
    settings = _read(arguments)
    if arguments.fresh:
        if not settings.embedded:
            raise CommandError("--fresh deletes data of embedded engines: unset both engine URLs")
        forget(settings.data_dir)
        settings = _read(arguments)  # the secret went with the rest
    with _only_server(settings):
        settings, bound = _bind(settings)
        settings, provider = _sandbox_child(settings)
        with bound, _engines(settings) as (settings, engines):
            _schema(settings, ours=True)
            demo = asyncio.run(load_demo(settings))
            children = [
                *provider,
                *_server_children(settings, bound),
                Child(
                    name="work",
                    command=(sys.executable, "-P", "-m", "live", "work"),
                    environment=_environment(settings),
                    says_ready=True,
                ),
                Child(
                    name="crowd",
                    command=crowd_command(settings, demo, arguments.viewers),
                    environment={**_environment(settings), **crowd_environment(demo)},
                    once=True,
                ),
            ]

            def ready() -> None:
                print(screen(settings, demo, arguments.viewers), flush=True)

            _supervise(settings, children, engines, ready)
    return 0


def _sandbox_child(settings: Settings) -> tuple[Settings, list[Child]]:
    """The demo's payment provider as a process of its own, and the settings that lead to it.

    Its socket is bound here and lives as long as we do: a provider that is started again is found where it was.
    """
    if not settings.sandbox or settings.sandbox_url or settings.payment_provider != "sandbox":
        return settings, []
    bound = supervisor.bind("127.0.0.1", 0)
    settings = msgspec.structs.replace(settings, sandbox_url=f"http://127.0.0.1:{bound.getsockname()[1]}")
    command = (sys.executable, "-P", "-m", "live", "sandbox", "--socket", str(bound.fileno()))
    number = bound.detach()  # kept open for the children
    child = Child(
        name="sandbox", command=command, environment=_environment(settings), keep=(number,), says_ready=True
    )
    return settings, [child]


def _sandbox(arguments: argparse.Namespace) -> int:
    from live.sandbox.serving import run_sandbox

    settings = _read(arguments)
    if arguments.socket is None:
        bound = supervisor.bind(settings.host, arguments.port)
    else:
        bound = socket.socket(fileno=arguments.socket)
    make_data_dir(settings.data_dir)
    with bound:
        if arguments.socket is None:
            host, port = bound.getsockname()[:2]
            print(f"payments on http://{host}:{port}", flush=True)
            print(f"faults at /control, password {control_key(settings.secret)}", flush=True)
        run_sandbox(
            settings.secret,
            arguments.file or settings.data_dir / "sandbox.sqlite",
            bound,
            timezone=settings.timezone,
            ready=lambda: supervisor.say_ready(os.environ),
        )
    return 0


# --- migrate, token, apikey ---


def _migrate(arguments: argparse.Namespace) -> int:
    settings = _read(arguments)
    with _engines(settings) as (settings, _):
        applied = migrate(settings.database_url)
    print(f"applied {', '.join(applied)}" if applied else "up to date")
    return 0


def _with_parts(arguments: argparse.Namespace, act: Callable[[Parts], Any]) -> Any:
    """Run `act` with the house built; starts the engines for this one run when nobody does.

    Raises CommandError where there is nothing to act on, and makes nothing.
    """
    from live.app import build_parts, close_parts
    from live.metrics import Metrics

    if not has_deployment(os.environ):
        raise CommandError(_nothing_here())
    settings = _read(arguments)

    async def run(settings: Settings) -> Any:
        parts = await build_parts(settings, Metrics())
        try:
            return await act(parts)
        finally:
            await close_parts(parts)

    with _engines(settings) as (settings, engines):
        _schema(settings, ours=engines is not None)
        return asyncio.run(run(settings))


def _token(arguments: argparse.Namespace) -> int:
    if arguments.link and (arguments.member or arguments.phone):
        raise CommandError("--link is for staff: give --staff or --role")
    if arguments.role and not arguments.name:
        raise CommandError("--role makes a new account: give it a --name")

    async def mint(parts: Parts) -> str:
        async with parts.database.transaction() as t:
            if arguments.member or arguments.phone:
                if arguments.phone:
                    member = await parts.members.register(t, arguments.phone, None, None)
                else:
                    member = await parts.members.by_id(t.conn, MemberId(arguments.member))
                viewer = Actor(kind="viewer", id=member.id, name=member.nickname or "")
                return parts.tokens.mint(viewer, arguments.hours * 3600)
            if arguments.role:
                room = RoomId(arguments.room) if arguments.room else None
                account = await parts.staff.create(t, arguments.name, arguments.role, room)
            else:
                account = await parts.staff.by_id(t.conn, StaffId(arguments.staff))
            if arguments.link:
                link = await parts.staff.sign_in_link(t, account.id)
                return f"{parts.settings.public_url}/panel/sign-in#{link}"
            return parts.tokens.mint(account.actor(), arguments.hours * 3600)

    print(_with_parts(arguments, mint))
    return 0


def _apikey(arguments: argparse.Namespace) -> int:
    async def make(parts: Parts) -> Any:
        async with parts.database.transaction() as t:
            return await parts.api_keys.create(t, arguments.name, arguments.may)

    made = _with_parts(arguments, make)
    print(f"id      {made.id}\nsecret  {made.secret}\nThe secret is not shown again.")
    return 0


# --- verify, close ---


def _verify(arguments: argparse.Namespace) -> int:
    """0 when it is good, 1 when it is not; needs no engine and, with a key, no deployment."""
    from commerce.receipts import Unverified, in_words, verify
    from live import verification
    from live.archive import archive_in_words, verify_archive

    try:
        given = verification.read_given(arguments.what)
        if arguments.chain and not arguments.url:
            raise CommandError("--chain reads the ranks from a server: give it --url")
        key = arguments.key or (verification.read_key(arguments.url) if arguments.url else _own_key())
        if isinstance(given, Path):
            if arguments.chain:
                raise CommandError("--chain is for a receipt")
            print(archive_in_words(verify_archive(given, key)))
            return 0
        said = verify(given, key)
        lines = [in_words(said)]
        if arguments.chain:
            lines.append(f"chain     {verification.check_chain(arguments.url, said)}")
    except Unverified as error:
        print(f"companion: not good: {error}", file=sys.stderr)
        return 1
    except verification.NoAnswer as error:
        raise CommandError(str(error)) from None
    print("\n".join(["good      signed by this key", *lines]))
    return 0


def _nothing_here() -> str:
    return (
        f"there is no deployment in {data_dir_of(os.environ)}: set COMPANION_DATA_DIR to the folder "
        "of the one that is meant, and COMPANION_SECRET where it has one of its own"
    )


def _own_key() -> str:
    """The key of the deployment in the environment or the data folder; none is made for the asking."""
    from commerce.receipts import Receipts
    from live.settings import has_secret

    if not has_secret(os.environ):
        raise CommandError(f"{_nothing_here()}; or give --key or --url")
    return Receipts(read_settings(os.environ).secret).public_key


def _close(arguments: argparse.Namespace) -> int:
    from live.closing import Closer, in_words

    async def close(parts: Parts) -> Any:
        return await Closer(parts).close(ShowId(arguments.show))

    closing = _with_parts(arguments, close)
    print(in_words(closing))
    return 0 if closing.path is not None else 1


if __name__ == "__main__":
    raise SystemExit(main())
