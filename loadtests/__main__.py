"""A load test that brings its own server: engines, server, jobs, an evening, locust, and what came of it.

    python -m loadtests --viewers 1000 --minutes 5 --workers 2

Everything lives in a temporary folder and ends with this process, however that ends. What is measured
stands in loadtests/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.util
import itertools
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import httpx2
import psutil
from rich.console import Console
from rich.table import Table

HERE: Final = Path(__file__).resolve().parent
RESULTS: Final = HERE / "results"
FOLDER: Final = "companion-load-"
START_S: Final = 90.0  # engines, migrations and the sample brand on a slow machine
STOP_S: Final = 25.0
SPREAD_S: Final = 10.0  # in which the viewers come
VIEWERS_MAX: Final = 20_000
FEED_ROWS: Final = 100
ROUND_S: Final = 20.0  # one poll and one benefit
ASK_S: Final = 12.0  # of a round both are open
LINE_S: Final = 1.0  # the host says something so often
SETTLED_S: Final = SPREAD_S + 5.0  # from here on memory should hold still
# Goals of README.md; the last column of the table says which were met.
GOAL_P50_MS, GOAL_P99_MS = 150, 500
BUSY: Final = 0.85  # of a core: beyond it locust's own times say more about locust


class LoadError(Exception):
    """One line: what is wrong and what to do."""


class Entrance(NamedTuple):
    """What `companion demo` prints."""

    url: str
    show: str
    link: str


class Used(NamedTuple):
    """What a group of processes has used so far."""

    cpu_s: float
    memory_bytes: int


# -- the server ------------------------------------------------------------------------------------


@contextlib.contextmanager
def house(folder: Path, workers: int) -> Iterator[tuple[Entrance, int]]:
    """Engines, server processes and jobs with the sample brand; gives the entrance and the process id.

    It is the demo with one spectator. Settings of this shell are left out: a load test must not reach a
    real database by accident.
    """
    said = folder / "server.log"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COMPANION_")}
    own = {
        "COMPANION_DATA_DIR": str(folder / "data"),
        "COMPANION_PORT": "0",
        "COMPANION_SANDBOX": "yes",
        "COMPANION_LOG_LEVEL": "warning",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), kept.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-P", "-m", "live", "demo", "--tied", "--viewers", "1"]
    with said.open("wb") as output:
        running = subprocess.Popen(
            [*command, "--workers", str(workers)],
            env={**kept, **own},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to answer
        )
    try:
        yield _entrance(running, said), running.pid
    finally:
        _end(running)


def _entrance(running: subprocess.Popen[bytes], said: Path) -> Entrance:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        text = said.read_text("utf-8", "replace")
        link = re.search(r"(http://\S+)/panel/sign-in#(\S+)", text)
        show = re.search(r"/s/(\w+)", text)
        if link and show and "Ctrl-C" in text:
            return Entrance(link[1], show[1], link[2])
        if running.poll() is not None:
            raise LoadError(f"the server did not start: {_last_line(said)}")
        time.sleep(0.1)
    raise LoadError(f"the server did not start within {START_S:.0f} s: is the machine busy with other work?")


def _end(running: subprocess.Popen[bytes]) -> None:
    if running.poll() is None:
        running.terminate()
        try:
            running.wait(STOP_S)
        except subprocess.TimeoutExpired:
            running.kill()  # its children have asked the kernel to end with it
    running.wait()


# -- the evening -----------------------------------------------------------------------------------


class Evening:
    """The host of the show, through the HTTP API: keeps something happening."""

    def __init__(self, entrance: Entrance) -> None:
        self.show = entrance.show
        self.http = httpx2.Client(base_url=entrance.url, timeout=20, trust_env=False)
        token = self._do("POST", "/v1/staff/sign-in", {"token": entrance.link})["token"]
        self.http.headers["Authorization"] = f"Bearer {token}"
        self._poll = self._benefit = ""

    def members(self, count: int) -> list[str]:
        """Fed in as by a shop's server; their tokens."""
        key = self._do(
            "POST", "/v1/api-keys", {"name": "load test", "permissions": ["member.write", "member.read"]}
        )
        headers = {"Authorization": f"Bearer {key['secret']}"}
        tokens = []
        for start in range(0, count, FEED_ROWS):
            numbers = range(start, min(count, start + FEED_ROWS))
            rows = [
                {"external_id": f"load-{n}", "phone": f"+86198{n:08d}", "nickname": f"观众{n}"}
                for n in numbers
            ]
            self._do("PUT", "/v1/members", {"members": rows}, headers)
            for number in numbers:
                body = {"external_id": f"load-{number}", "ttl_s": 43_200}
                tokens.append(self._do("POST", "/v1/tokens", body, headers)["token"])
        return tokens

    def start(self) -> None:
        self._do("POST", f"/v1/shows/{self.show}/start", {})
        cues = self._do("GET", f"/v1/shows/{self.show}/cues")["items"]
        pinned = next(cue for cue in cues if cue["kind"] == "pin")
        self._do("POST", f"/v1/shows/{self.show}/cues/{pinned['id']}/run", {})

    def run(self, locust: subprocess.Popen[bytes], quota: int, tick: Callable[[], None]) -> None:
        """Until locust is done: a line each second, a poll and a benefit each round."""
        began = time.monotonic()
        for beat in itertools.count(1):
            in_round = (time.monotonic() - began) % ROUND_S
            if in_round < ASK_S and not self._poll:
                self._open(quota)
            elif in_round >= ASK_S and self._poll:
                self._close()
            self._say(f"第 {beat} 句：大家看一下这个米，真空小包，一煮就香。")
            tick()
            with contextlib.suppress(subprocess.TimeoutExpired):
                locust.wait(max(0.01, began + beat * LINE_S - time.monotonic()))
                return

    def _say(self, text: str) -> None:
        self._do("POST", f"/v1/shows/{self.show}/comments", {"text": text})

    def _open(self, quota: int) -> None:
        poll = {"question": "下一款粥加什么？", "choices": ["红枣", "山药", "都要"]}
        self._poll = self._do("POST", f"/v1/shows/{self.show}/polls", poll)["id"]
        benefit = {"title": f"试吃装 {quota} 份", "quota": quota, "needs": "nothing"}
        self._benefit = self._do("POST", f"/v1/shows/{self.show}/benefits", benefit)["id"]

    def _close(self) -> None:
        self._do("POST", f"/v1/polls/{self._poll}/close", {})
        self._do("POST", f"/v1/benefits/{self._benefit}/close", {})
        self._poll = self._benefit = ""

    def _do(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        keyed = {"Idempotency-Key": uuid.uuid4().hex, **(headers or {})}
        answer = self.http.request(method, path, json=body, headers=keyed)
        if answer.status_code >= 400:
            raise LoadError(f"{method} {path} was answered {answer.status_code}: {answer.text[:200]}")
        return answer.json() if answer.content else {}


# -- what it cost ----------------------------------------------------------------------------------

GROUPS: Final = ("server", "jobs", "valkey", "postgresql")


def used(root: int) -> dict[str, Used]:
    """CPU and memory so far of what runs under `root`, by group."""
    found = {group: Used(0.0, 0) for group in GROUPS}
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            group = _group(process.name(), process.cmdline())
            if group:
                times = process.cpu_times()
                # PostgreSQL's backends come and go: those that went are in their parent's account.
                spent = times.user + times.system + times.children_user + times.children_system
                before = found[group]
                found[group] = Used(before.cpu_s + spent, before.memory_bytes + _own_bytes(process))
    return found


def _group(name: str, command: list[str]) -> str | None:
    if "valkey" in name or "redis" in name:
        return "valkey"
    if "postgres" in name:
        return "postgresql"
    if "live" in command:
        return "server" if "worker" in command else ("jobs" if "work" in command else None)
    return None


def _own_bytes(process: psutil.Process) -> int:
    """Resident memory without what it shares: PostgreSQL's processes share one large buffer."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


class Watch:
    """Looks at the processes while the evening runs, and passes locust's progress on."""

    def __init__(self, root: int, locust: int, said: Path, console: Console) -> None:
        self._root, self._locust = root, psutil.Process(locust)
        self._said, self._console = said.open("rb"), console
        self._began = time.monotonic()
        self._before = self.settled = self.latest = used(root)
        self._settled = False
        self._locust_from: dict[int, tuple[float, float]] = {}  # pid -> when, CPU until then
        self.locust_cores = 0.0  # of its busiest process

    def tick(self) -> None:
        for line in self._said:
            if line.startswith(b"load: "):
                self._console.print(line.decode().strip(), highlight=False, soft_wrap=True)
        with contextlib.suppress(psutil.Error):
            busiest = 0.0
            for process in (self._locust, *self._locust.children(recursive=True)):
                times, now = process.cpu_times(), time.monotonic()
                since, spent = self._locust_from.setdefault(process.pid, (now, times.user + times.system))
                if now - since >= 1:
                    busiest = max(busiest, (times.user + times.system - spent) / (now - since))
            self.locust_cores = busiest or self.locust_cores
        if not self._settled and self.seconds() > SETTLED_S:
            self._settled, self.settled = True, used(self._root)

    def end(self) -> None:
        self.tick()
        self._said.close()
        self.latest = used(self._root)

    def seconds(self) -> float:
        return max(1.0, time.monotonic() - self._began)

    def cost(self) -> Iterator[tuple[str, str]]:
        """Of each group: cores, and memory once everybody was there and at the end."""
        for group, latest in self.latest.items():
            cores = (latest.cpu_s - self._before[group].cpu_s) / self.seconds()
            then, now = (found[group].memory_bytes / 1_048_576 for found in (self.settled, self.latest))
            yield group, f"{cores:.2f}, {then:.0f} → {now:.0f} MB"


# -- the result ------------------------------------------------------------------------------------


class Outcome:
    """Locust's own figures, read once more by what they mean."""

    def __init__(self, entries: Sequence[dict[str, Any]]) -> None:
        self._entries = entries

    def count(self, kind: str) -> int:
        return sum(entry["num_requests"] for entry in self._of(kind))

    def names(self, kind: str) -> Counter[str]:
        return Counter({entry["name"]: entry["num_requests"] for entry in self._of(kind)})

    def failed(self) -> Counter[str]:
        return Counter(
            {f"{e['method']} {e['name']}": e["num_failures"] for e in self._entries if e["num_failures"]}
        )

    def percentiles(self, kind: str, name: str | None = None) -> tuple[float, float, float]:
        """p50, p95, p99 in ms over all entries of the kind (locust keeps two digits from 100 ms on)."""
        times: Counter[float] = Counter()
        for entry in self._of(kind):
            if name is None or entry["name"] == name:
                for took, count in entry["response_times"].items():
                    times[float(took)] += count
        return tuple(_at(times, share) for share in (0.50, 0.95, 0.99))  # type: ignore[return-value]

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [entry for entry in self._entries if entry["method"] == kind]


def _at(times: Counter[float], share: float) -> float:
    wanted, seen = share * times.total(), 0
    for took in sorted(times):
        seen += times[took]
        if seen >= wanted:
            return took
    return math.nan


def _three(found: tuple[float, float, float]) -> str:
    return "–" if math.isnan(found[0]) else " / ".join(f"{ms:.0f}" for ms in found)


def table(given: argparse.Namespace, outcome: Outcome, watch: Watch) -> Table:
    seconds = watch.seconds()
    made = Table(
        title=f"{given.viewers} viewers, {given.workers} server process(es), {seconds:.0f} s",
        title_justify="left",
    )
    made.add_column("what")
    made.add_column("measured", justify="right")
    made.add_column("goal")
    delivery, joins = outcome.percentiles("delivery"), outcome.percentiles("join")
    delivered, holes = outcome.count("delivery"), outcome.count("hole")

    def row(what: str, measured: str, met: bool | None = None, goal: str = "") -> None:
        mark = "" if met is None else ("[green]met[/] " if met else "[red]missed[/] ")
        made.add_row(what, measured, f"{mark}{goal}")

    joined = outcome.names("join")
    row("joined", f"{joined.total():,}", joined["anew"] >= given.viewers, f"at least {given.viewers:,}")
    row("rejoined without loss", f"{joined['again']:,}")
    row("join p50 / p95 / p99, ms", _three(joins))
    row("messages delivered", f"{delivered:,} ({delivered / seconds:,.0f}/s)", delivered > 0)
    row("holes", str(holes), holes == 0, "0")
    row(
        "delivery p50 / p95 / p99, ms",
        _three(delivery),
        delivery[0] <= GOAL_P50_MS and delivery[2] <= GOAL_P99_MS,
        f"p50 ≤ {GOAL_P50_MS}, p99 ≤ {GOAL_P99_MS}",
    )
    for name, count in sorted(outcome.names("command").items()):
        row(f"{name}: {count:,} ok, ms", _three(outcome.percentiles("command", name)))
    for name, count in outcome.names("refused").most_common():
        row(f"refused {name}", f"{count:,}")
    for name, count in outcome.names("closed").most_common():
        row(f"closed {name}", f"{count:,}")
    failed = outcome.failed()
    row("failures", ", ".join(f"{n} × {what}" for what, n in failed.items()) or "0", not failed, "0")
    for group, spent in watch.cost():
        row(f"{group}: cores, memory", spent)
    busy = watch.locust_cores
    row("locust, busiest: cores", f"{busy:.2f}", busy < BUSY, f"< {BUSY}")
    return made


# -- all of it -------------------------------------------------------------------------------------


def locust_command(
    given: argparse.Namespace, entrance: Entrance, tokens: Path, report: Path, figures: Path
) -> list[str]:
    seconds = math.ceil(given.minutes * 60)
    rate = max(1, math.ceil(given.viewers / min(SPREAD_S, seconds / 2)))
    command = [sys.executable, "-m", "locust", "-f", str(HERE / "locustfile.py"), "--headless"]
    command += ["-u", str(given.viewers), "-r", str(rate), "-t", f"{seconds}s"]
    command += ["--host", entrance.url, "--show", entrance.show, "--tokens", str(tokens)]
    command += ["--html", str(report), "--json-file", str(figures.with_suffix(""))]
    command += ["--every", "10" if seconds > 30 else "3"]
    command += ["--only-summary", "--exit-code-on-error", "0", "--loglevel", "ERROR"]
    if given.processes > 1:
        command += ["--processes", str(given.processes)]
    return command


def run(given: argparse.Namespace, console: Console) -> int:
    allow_files(given.viewers)
    given.out.mkdir(parents=True, exist_ok=True)
    report = given.out / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{given.viewers}.html"
    folder, alive = own_folder()
    tokens, figures, said = folder / "tokens.txt", folder / "figures.json", folder / "locust.log"
    try:
        console.print("starting engines, server and jobs …")
        with house(folder, given.workers) as (entrance, root):
            evening = Evening(entrance)
            members = given.viewers // 2
            console.print(f"{entrance.url} serves; feeding in {members:,} members …", highlight=False)
            tokens.write_text("\n".join(evening.members(members)), "ascii")
            evening.start()
            command = locust_command(given, entrance, tokens, report, figures)
            with _locust(command, said) as locust:
                watch = Watch(root, locust.pid, said, console)
                try:
                    evening.run(locust, given.quota or max(10, given.viewers // 20), watch.tick)
                except KeyboardInterrupt:
                    console.print("stopping; a second Ctrl-C leaves out the result")
                    locust.terminate()
                    locust.wait(STOP_S)
                watch.end()
                if not figures.exists():
                    raise LoadError(f"locust ended without a result: {_last_line(said)}")
                console.print(table(given, Outcome(json.loads(figures.read_text())), watch))
        console.print(f"report: {report}", highlight=False, soft_wrap=True)
        outcome = Outcome(json.loads(figures.read_text()))
        return 1 if outcome.failed() else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        alive.close()


def own_folder() -> tuple[Path, IO[bytes]]:
    """A temporary folder, locked while we live; those of runs that were killed are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*/alive"):
        with contextlib.suppress(OSError), left.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER))
    alive = (folder / "alive").open("wb")
    fcntl.flock(alive, fcntl.LOCK_EX)
    return folder, alive


@contextlib.contextmanager
def _locust(command: list[str], said: Path) -> Iterator[subprocess.Popen[bytes]]:
    paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    with said.open("wb") as output:
        running = subprocess.Popen(
            command,
            env={**os.environ, "LOADTEST_TIED": "1", "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield running
        finally:
            _end(running)


def _last_line(said: Path) -> str:
    lines = said.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def allow_files(viewers: int) -> None:
    """Every viewer is an open file, here and in the server; children inherit the limit."""
    needed = viewers + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (resource.RLIM_INFINITY, -1) and hard < needed:
        raise LoadError(
            f"{viewers:,} viewers need {needed:,} open files, the limit is {hard:,}: "
            f"ulimit -Hn {needed}, or fewer --viewers"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text) if text.isascii() and text.isdigit() else least - 1
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least} to {most:,}")
        return number

    return read


def _minutes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.05 <= number <= 24 * 60:
        raise argparse.ArgumentTypeError(f"{text!r} must be minutes from 0.05 to 1440")
    return number


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m loadtests",
        description="Load a server of its own with locust, headless, and say what came of it.",
        epilog="example: python -m loadtests --viewers 1000 --minutes 5 --workers 2",
    )
    made.add_argument("--viewers", type=_whole(2, VIEWERS_MAX), default=300, help="how many (default 300)")
    made.add_argument("--minutes", type=_minutes, default=1.0, help="how long (default 1)")
    made.add_argument("--workers", type=_whole(1, 64), default=1, help="server processes (default 1)")
    made.add_argument(
        "--processes",
        type=_whole(1, 64),
        default=1,
        help="locust processes, when one is too busy (default 1)",
    )
    made.add_argument(
        "--quota", type=_whole(0, 100_000), default=0, help="pieces of each benefit (default: viewers / 20)"
    )
    made.add_argument(
        "--out", type=Path, default=RESULTS, metavar="DIR", help=f"for reports (default {RESULTS})"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    if importlib.util.find_spec("locust") is None:
        print(
            "loadtests: locust is missing: pip install 'live-companion[load]', or use make load",
            file=sys.stderr,
        )
        return 1

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGINT also when it came ignored
        signal.signal(number, stop)
    try:
        console = Console()
        if not console.is_terminal:
            console.width = 110  # a file or CI's log: nothing says how wide it is
        return run(given, console)
    except (LoadError, httpx2.HTTPError, OSError) as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
