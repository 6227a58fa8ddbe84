"""The command `companion`, as a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from live.__main__ import main
from live.engines import Addresses, attach

ROOT = Path(__file__).resolve().parents[2]
MARK = "TEST_MARK"  # in the environment of everything a command starts


class Command:
    """A running `companion …` and whatever it started."""

    def __init__(self, *arguments: str, ignore_interrupts: bool = False, **environment: str) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = environment["COMPANION_DATA_DIR"] or environment["XDG_DATA_HOME"] or environment["HOME"]

        def before() -> None:
            if ignore_interrupts:
                signal.signal(signal.SIGINT, signal.SIG_IGN)

        clean = {name: value for name, value in os.environ.items() if not name.startswith("COMPANION_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "live", *arguments],
            env={**clean, **environment, MARK: self.mark, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,  # noqa: PLW1509
            start_new_session=True,
        )

    def family(self) -> list[int]:
        """Every process that still runs of those this command started, itself included."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                marked = f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes()
                # Valkey writes its title over its environment.
                if marked or os.readlink(folder / "cwd").startswith(self.folder):
                    found.append(int(folder.name))
        return found

    def line(self, pattern: str, wait_s: float = 60.0) -> re.Match[str]:
        """The first line of output that matches; fails with what was said when the process ends before."""
        assert self.process.stdout is not None
        end = time.monotonic() + wait_s
        seen = []
        while time.monotonic() < end:
            text = self.process.stdout.readline()
            if not text:
                break
            seen.append(text)
            found = re.search(pattern, text)
            if found:
                return found
        self.kill()
        raise AssertionError(f"no line matched {pattern!r}: {''.join(seen)} {self.rest()}")

    def rest(self) -> tuple[str, str]:
        return self.process.communicate(timeout=20)

    def kill(self) -> None:
        self.process.kill()
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


Run = Callable[..., Command]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start a command with a data folder and a free port of this test's own."""
    started: list[Command] = []

    def start(*arguments: str, ignore_interrupts: bool = False, **environment: str) -> Command:
        given = {"COMPANION_DATA_DIR": str(tmp_path / "data"), "COMPANION_PORT": "0", **environment}
        started.append(Command(*arguments, ignore_interrupts=ignore_interrupts, **given))
        return started[-1]

    yield start
    for command in started:
        command.kill()
        if command.process.poll() is None or command.process.stdout:
            with contextlib.suppress(ValueError):
                command.process.communicate(timeout=10)


def nothing_left(command: Command, wait_s: float = 5.0) -> bool:
    end = time.monotonic() + wait_s
    while command.family() and time.monotonic() < end:
        time.sleep(0.05)
    return not command.family()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("name", ["serve", "work", "demo", "sandbox", "migrate", "token", "apikey"])
def test_every_command_explains_itself_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert re.search(rf"Example: .*companion {name}", capsys.readouterr().out)


def test_the_list_of_commands_leaves_out_what_only_the_program_uses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "apikey" in said
    assert "worker" not in said


def one_line_error(command: Command) -> str:
    out, err = command.rest()
    assert command.process.returncode == 1, err
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("companion: ")
    return lines[0]


def test_a_bad_setting_ends_it_in_one_line(run: Run) -> None:
    assert "COMPANION_PORT is 'x', but must be" in one_line_error(run("serve", COMPANION_PORT="x"))


def test_an_unknown_setting_is_reported_and_the_command_goes_on(run: Run) -> None:
    command = run("migrate", COMPANION_REDSI_URL="redis://h")
    out, err = command.rest()
    assert command.process.returncode == 0, err
    assert err == "companion: COMPANION_REDSI_URL is no setting; did you mean COMPANION_REDIS_URL?\n"
    assert out.startswith("applied 0000, ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("token", "--role", "owner", "--name", "小禾", "--link"),
        ("apikey", "--name", "shop", "--may", "member.write"),
        ("close", "q7m2kd4n8p"),
        ("verify", "r1.x"),
    ],
)
def test_a_command_that_acts_on_a_deployment_makes_none(
    arguments: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    said = one_line_error(run(*arguments, COMPANION_DATA_DIR="", HOME=str(tmp_path), XDG_DATA_HOME=""))
    assert f"no deployment in {tmp_path}/.local/share/companion: set COMPANION_DATA_DIR" in said
    assert list(tmp_path.iterdir()) == []
    # A folder that holds a secret alone is none either.
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "secret").write_text("s" * 40)
    if arguments[0] != "verify":
        assert f"no deployment in {tmp_path}/data" in one_line_error(run(*arguments))


def test_a_new_default_folder_is_named_before_it_is_made(run: Run, tmp_path: Path) -> None:
    default = {"COMPANION_DATA_DIR": "", "HOME": "", "XDG_DATA_HOME": str(tmp_path)}
    folder = tmp_path / "companion"
    out, err = run("migrate", **default).rest()
    assert out.startswith("applied 0000, ")
    assert err == f"companion: making the data folder {folder} (COMPANION_DATA_DIR)\n"
    out, err = run("migrate", **default).rest()
    assert (out, err) == ("up to date\n", "")


def test_migrating_twice_says_up_to_date_and_leaves_no_engine(run: Run) -> None:
    first, _ = run("migrate").rest()
    assert first.startswith("applied 0000, ")
    again = run("migrate")
    assert again.rest()[0] == "up to date\n"
    assert nothing_left(again)


def test_a_folder_of_a_newer_version_ends_it_in_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "FORMAT").write_text("9")
    assert "is of version 9, this program knows 1" in one_line_error(run("serve"))


def test_an_engine_that_does_not_answer_is_named_within_five_seconds(
    run: Run, fresh_database_url: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        command = run("serve", COMPANION_REDIS_URL=address, COMPANION_DATABASE_URL=fresh_database_url)
        said = one_line_error(command)
        # The program itself takes a second to load on a busy machine.
        assert time.monotonic() - began < 6.0
    assert "COMPANION_REDIS_URL does not work" in said
    assert "start that engine or correct the address" in said


def test_an_engine_that_is_not_there_is_named(run: Run, engines: Addresses) -> None:
    command = run(
        "work",
        COMPANION_REDIS_URL=engines.redis_url,
        COMPANION_DATABASE_URL="postgresql://nobody@127.0.0.1:1/shop",
    )
    assert "COMPANION_DATABASE_URL does not work" in one_line_error(command)


def test_a_shared_database_is_never_migrated_by_serving(run: Run, engines: Addresses) -> None:
    with psycopg.connect(engines.database_url, autocommit=True) as conn:
        conn.execute("CREATE DATABASE shared")
    try:
        urls = {
            "COMPANION_REDIS_URL": engines.redis_url,
            "COMPANION_DATABASE_URL": engines.database_url.replace("/companion?", "/shared?"),
        }
        assert "run `companion migrate`" in one_line_error(run("serve", **urls))
        assert run("migrate", **urls).rest()[0].startswith("applied 0000")
        served = run("serve", **urls)
        address = served.line(r"serving (\S+)")[1]
        assert json.loads(get(f"{address}/healthz"))["status"] == "ok"
    finally:
        served.kill()
        with psycopg.connect(engines.database_url, autocommit=True) as conn:
            conn.execute("DROP DATABASE shared WITH (FORCE)")


def test_serving_owns_the_folder_and_others_attach(run: Run, tmp_path: Path) -> None:
    served = run("serve", "--workers", "2")
    address = served.line(r"serving (\S+) \(2 processes\)")[1]
    assert json.loads(get(f"{address}/healthz"))["status"] == "ok"
    assert "is already being served" in one_line_error(run("serve"))
    port = address.rpartition(":")[2]
    other = run("serve", COMPANION_PORT=port, COMPANION_DATA_DIR=str(tmp_path / "other"))
    assert f"port {port} on 127.0.0.1 is in use" in one_line_error(other)
    assert run("migrate").rest()[0] == "up to date\n"
    link, _ = run("token", "--role", "owner", "--name", "小禾", "--link").rest()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/panel/sign-in#[\w-]{43}\n", link)
    key, _ = run("apikey", "--name", "shop", "--may", "member.write").rest()
    assert re.search(r"^secret  ck_[\w-]{43}$", key, re.MULTILINE)
    assert one_line_error(run("token", "--staff", "nobody")) == "companion: There is no such staff account."
    served.process.send_signal(signal.SIGTERM)
    served.rest()
    assert served.process.returncode == 0
    assert nothing_left(served)


def test_an_interrupt_stops_serving_also_when_it_was_ignored_at_the_start(run: Run) -> None:
    served = run("serve", ignore_interrupts=True)
    served.line("serving")
    served.process.send_signal(signal.SIGINT)
    served.rest()
    assert served.process.returncode == 0
    assert nothing_left(served)


def test_killing_the_server_leaves_nothing_and_the_folder_starts_again(run: Run) -> None:
    served = run("serve")
    served.line("serving")
    assert len(served.family()) >= 4  # supervisor, worker, two engines
    served.process.kill()
    assert nothing_left(served)
    again = run("serve")
    again.line("serving")


def test_a_killed_engine_comes_back_under_a_running_server(run: Run, tmp_path: Path) -> None:
    served = run("serve")
    address = served.line(r"serving (\S+)")[1]
    found = attach(tmp_path / "data")
    assert found is not None
    with redis.Redis.from_url(found.redis_url) as client:
        pid = int(client.info("server")["process_id"])
        client.set("kept", "1")
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 20
    value = None
    while value is None and time.monotonic() < end:
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(found.redis_url) as client:
            value = client.get("kept")
    assert value == b"1"
    assert json.loads(get(f"{address}/healthz"))["status"] == "ok"


def test_the_demo_keeps_its_data_until_told_to_begin_anew(run: Run, tmp_path: Path) -> None:
    page = r"viewer page\s+http://127\.0\.0\.1:\d+/s/(\w{10})"
    demo = run("demo", "--viewers", "10", ignore_interrupts=True)
    panel = demo.line(r"host panel\s+(\S+)")[1]
    first = demo.line(page)[1]
    members = demo.line(r"members only\s+(\S+)")[1]
    docs = demo.line(r"API\s+(\S+)")[1]
    demo.line("█|▀|▄")  # the picture
    another = demo.line(r"Another link to the panel: (.+)")[1]
    for address in (panel, members, docs, panel.split("/panel")[0] + f"/s/{first}"):
        assert "<html" in get(address).lower()
    # As it stands: in a shell that knows nothing of us but where the program lies.
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    link = subprocess.run(
        ["sh", "-c", another], env=bare, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert link.startswith(panel.partition("#")[0] + "#")
    assert link.strip() != panel
    provider = [pid for pid in demo.family() if b"\0sandbox\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(provider) == 1  # a process of its own, reached by the shop's address
    style = panel.split("/panel")[0] + "/sandbox/pay.css"
    assert "main" in get(style)
    os.kill(provider[0], signal.SIGKILL)
    assert "main" in get(style)  # its socket waits for the next one
    demo.process.send_signal(signal.SIGINT)
    demo.rest()
    assert demo.process.returncode == 0
    assert nothing_left(demo)

    again = run("demo", "--viewers", "10")
    assert again.line(page)[1] == first
    assert len(again.family()) >= 6  # supervisor, server, work, crowd, two engines
    again.process.kill()
    assert nothing_left(again)

    fresh = run("demo", "--viewers", "10", "--fresh", "--tied")
    assert fresh.line(page)[1] != first
    fresh.process.send_signal(signal.SIGTERM)
    fresh.rest()
    assert nothing_left(fresh)


def test_the_demo_ends_with_the_make_that_started_it(run: Run, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    environment = {
        **os.environ,
        MARK: mark,
        "PYTHONPATH": str(ROOT),
        "COMPANION_DATA_DIR": str(tmp_path / "data"),
        "COMPANION_PORT": "0",
    }
    make = subprocess.Popen(
        ["sh", "-c", f"{sys.executable} -m live demo --viewers 5 --tied; true"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    demo = Command.__new__(Command)
    demo.mark, demo.process, demo.folder = mark, make, str(tmp_path / "data")
    try:
        demo.line("viewer page")
        make.kill()
        assert nothing_left(demo)
    finally:
        demo.kill()
        make.communicate(timeout=10)
