"""Scenarios for locust: an evening's viewers over real sockets, timed by the message's own clock.

    locust -f loadtests/locustfile.py --headless -u 500 -r 50 -t 2m \\
        --host http://127.0.0.1:8000 --show k7m2… --tokens tokens.txt

`make load` starts a server and does all of this by itself. What is reported: `join` is the time from
connecting to `welcome`; `delivery` is from an event's `at`, the store's clock, to its arrival here, so the
machine must be the same or its clock be kept by NTP; `command` is from sending to the answer; `refused` is an
answer too; `hole` is a range that did not follow the one before, and always a failure.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import gevent
from locust import User, events, task
from locust.env import Environment
from locust.runners import WorkerRunner

from live.protocol import DRAIN, NO_PONG, SLOW, TOKEN_EXPIRED
from loadtests.talk import line
from loadtests.wire import Gone, Turned, Wire

LINE_EVERY_S: Final = 60.0
LIKES_EVERY_S: Final = 20.0
BURST_S: Final = 1.0  # a poll's or a benefit's rush
IDLE_S: Final = 1.0
STALL_S: Final = (5.0, 25.0)  # a slow reader reads nothing for so long
SLOW_RECEIVE_BYTES: Final = 4_096
CLOSED_WITHOUT_CODE: Final = 1006
# Answers that an evening's rules give to people who did nothing wrong.
FAIR: Final = frozenset(
    {"sold_out", "reserved_out", "already_claimed", "already_voted", "closed", "paused", "not_live",
     "rate_limited", "muted"}
)  # fmt: skip


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _arguments(parser: Any) -> None:
    group = parser.add_argument_group("Live companion")
    group.add_argument("--show", default="", help="the show's id, as in its link (required)")
    group.add_argument(
        "--tokens", default="", help="file of members' tokens, one a line; without one all are guests"
    )
    group.add_argument("--every", type=float, default=0.0, help="seconds between lines of progress; 0: none")


class Tokens:
    """Members' tokens, each given out once; afterwards there are only guests."""

    def __init__(self, environment: Environment) -> None:
        options = environment.parsed_options
        assert options is not None
        path = options.tokens
        found = Path(path).read_text("ascii").split() if path else []
        first, step = 0, 1
        if isinstance(environment.runner, WorkerRunner):  # every worker process has a share of its own
            first, step = environment.runner.worker_index, options.processes or 1
        self._left: Iterator[str] = itertools.islice(found, first, None, max(1, step))

    def next(self) -> str | None:
        return next(self._left, None)


@events.init.add_listener  # type: ignore[untyped-decorator]
def _begin(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    if options is None or not options.show:
        raise SystemExit("locustfile: name the show: --show k7m2p3q4r5 (its id, as in its link)")
    if not (environment.host or "").startswith(("http://", "https://")):
        raise SystemExit("locustfile: name the service: --host http://127.0.0.1:8000")
    Viewer.tokens = Tokens(environment)
    if os.environ.get("LOADTEST_TIED"):
        gevent.spawn(_end_with_parent, environment)
    if options.every and not isinstance(environment.runner, WorkerRunner):
        gevent.spawn(_progress, environment, options.every)


def _end_with_parent(environment: Environment) -> None:
    """Who started us may be killed; then nobody reads the result."""
    parent = os.getppid()
    while os.getppid() == parent:
        gevent.sleep(0.5)
    os._exit(1)


def _progress(environment: Environment, every_s: float) -> None:
    started = time.monotonic()
    runner = environment.runner
    assert runner is not None
    while True:
        gevent.sleep(every_s)
        entries = runner.stats.entries.values()
        came = [entry for entry in entries if entry.method == "delivery"]
        worst = max((entry.get_current_response_time_percentile(0.99) or 0 for entry in came), default=0)
        print(
            f"load: {time.monotonic() - started:4.0f} s  {runner.user_count} viewers"
            f"  {sum(entry.num_requests for entry in came):,} delivered"
            f"  p99 of the last 10 s {worst:.0f} ms"
            f"  holes {sum(entry.num_requests for entry in entries if entry.method == 'hole')}",
            flush=True,
        )


class Viewer(User):
    """Joins, listens and rejoins; what else it does is the scenario's."""

    abstract = True
    tokens: ClassVar[Tokens]
    receive_bytes: ClassVar[int | None] = None
    expected_closes: ClassVar[tuple[int, ...]] = ()

    def on_start(self) -> None:
        parts = urlsplit(self.environment.host)
        scheme = "wss" if parts.scheme == "https" else "ws"
        options = self.environment.parsed_options
        show = options.show if options is not None else ""
        self.url = f"{scheme}://{parts.netloc}/v1/shows/{show}/socket"
        self.token = self.tokens.next()
        self.chance = random.Random()
        self.wire: Wire | None = None
        self.position: dict[str, Any] | None = None
        self.here_since_ms = 0.0
        self.reconnect_ms = (500, 5_000)
        self.on_air = ""
        self.noticed: set[str] = set()
        self._asked: dict[int, tuple[str, float]] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @task
    def watch(self) -> None:
        """One connection, from hello to its end."""
        try:
            self._join()
            while True:
                self.listen()
        except Turned as turned:
            self.report("refused", f"upgrade: {turned.status}")
            gevent.sleep(self.chance.uniform(0.5, 1.5) * turned.retry_after_s)
        except Gone as gone:
            final = 4500 <= gone.code < 5000
            self._ended(str(gone.code), expected=gone.code in (DRAIN, *self.expected_closes))
            if final or gone.code == TOKEN_EXPIRED:
                gevent.sleep(3_600)  # the run's end finds us here
            self._back_off()
        except OSError as error:
            self._ended(type(error).__name__, expected=CLOSED_WITHOUT_CODE in self.expected_closes)
            self._back_off()
        finally:
            self._asked.clear()
            self._due.clear()
            if self.wire is not None:
                self.wire.close()
                self.wire = None

    def listen(self) -> None:
        """Hear what comes until the next own act is due, then act."""
        assert self.wire is not None
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()
        wait_s = min(IDLE_S, self._due[0][0] - now) if self._due else IDLE_S
        for message in self.wire.receive(wait_s):
            self._take(message)

    def later(self, wait_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + wait_s, next(self._order), act))

    def ask(self, command: str, **fields: Any) -> None:
        assert self.wire is not None
        self._asked[self.wire.send(command, **fields)] = (command, time.perf_counter())

    def begin(self) -> None:
        """What to do once one is in."""

    def saw(self, noun: str, name: str, data: dict[str, Any]) -> None:
        """A state came, by hello or afterwards; each one once."""

    def report(
        self, kind: str, name: str, took_ms: float = 0.0, size: int = 0, *, failed: bool = False
    ) -> None:
        self.environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=took_ms,
            response_length=size,
            exception=RuntimeError(name) if failed else None,
            context={},
        )

    def _ended(self, how: str, *, expected: bool) -> None:
        self.report("closed", f"{type(self).__name__}: {how}", failed=not expected)

    def _back_off(self) -> None:
        least, most = self.reconnect_ms
        gevent.sleep(self.chance.uniform(least, most) / 1000)

    def _join(self) -> None:
        began = time.perf_counter()
        self.wire = Wire(self.url, receive_bytes=self.receive_bytes)
        self.wire.send("hello", 1, token=self.token, since=self.position)
        self._asked[1] = ("hello", began)
        while 1 in self._asked:
            self.listen()
        self.begin()

    def _take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "welcome":
                self._welcome(message)
            case "range":
                if self.position is not None:
                    if message["from"] != self.position["seq"] + 1:
                        self.report("hole", "range", failed=True)
                    self.position = {"epoch": message["epoch"], "seq": message["to"]}
            case "state" if message["data"]:
                self._saw(message["key"], message["data"])
            case "ok":
                command, began = self._asked.pop(message["id"], ("?", time.perf_counter()))
                self.report("command", command, (time.perf_counter() - began) * 1000)
            case "refused":
                command, began = self._asked.pop(message.get("id") or 0, ("?", time.perf_counter()))
                took_ms, code = (time.perf_counter() - began) * 1000, message["code"]
                self.report("refused", f"{command}: {code}", took_ms, failed=code not in FAIR)
            case "ping" if self.wire is not None:
                self.wire.send("pong")
            case "gap" if self.wire is not None:
                self.position = None
                self.wire.send("resync", 1, since=None)
            case kind if "seq" in message and message["at"] >= self.here_since_ms:
                # What was missed and replayed says nothing about the road.
                self.report("delivery", kind, max(0.0, time.time() * 1000 - message["at"]))

    def _welcome(self, message: dict[str, Any]) -> None:
        if (asked := self._asked.pop(message["id"], None)) is not None:
            how = "again" if message["recovered"] else "anew"
            self.report("join", how, (time.perf_counter() - asked[1]) * 1000)
        self.position = {"epoch": message["epoch"], "seq": message["seq"]}
        self.here_since_ms = message["time"]
        least, most = message["reconnect_ms"]
        self.reconnect_ms = (least, most)
        for state in message["states"]:
            self._saw(state["key"], state["data"])

    def _saw(self, key: str, data: dict[str, Any]) -> None:
        noun, _, name = key.partition(":")
        if not name or key in self.noticed:
            return
        self.noticed.add(key)
        if noun == "offer":
            self.on_air = data["product"]["name"]
        self.saw(noun, name, data)


class CrowdViewer(Viewer):
    """Most people: a line a minute from members, likes now and then, a look at what is on offer."""

    weight = 12

    def begin(self) -> None:
        self.later(self.chance.expovariate(1 / LIKES_EVERY_S), self.like)
        if self.token is not None:
            self.later(self.chance.expovariate(1 / LINE_EVERY_S), self.say)

    def say(self) -> None:
        self.ask("comment.post", key=uuid.uuid4().hex, text=line(self.chance, self.on_air, "calm"))
        self.later(self.chance.expovariate(1 / LINE_EVERY_S), self.say)

    def like(self) -> None:
        self.ask("reaction.send", kind="like", count=self.chance.randint(1, 6))
        self.later(self.chance.expovariate(1 / LIKES_EVERY_S), self.like)

    def saw(self, noun: str, name: str, data: dict[str, Any]) -> None:
        if noun == "offer" and self.chance.random() < 0.5:
            product = data["product"]["id"]
            self.later(self.chance.uniform(1, 10), lambda: self.ask("product.view", product=product))


class BallotBurst(Viewer):
    """Votes within a second of every poll."""

    weight = 4

    def saw(self, noun: str, name: str, data: dict[str, Any]) -> None:
        if noun == "poll" and data.get("open"):
            choice = self.chance.randrange(len(data["choices"]))
            self.later(
                self.chance.uniform(0, BURST_S),
                lambda: self.ask("ballot.cast", key=uuid.uuid4().hex, poll=name, choices=[choice]),
            )


class FlashClaim(Viewer):
    """Members who reach for every free benefit within a second; most come too late."""

    weight = 3

    def saw(self, noun: str, name: str, data: dict[str, Any]) -> None:
        if noun == "benefit" and data["needs"] == "nothing" and self.token is not None:
            self.later(
                self.chance.uniform(0, BURST_S),
                lambda: self.ask("benefit.claim", key=uuid.uuid4().hex, benefit=name),
            )


class SlowReader(Viewer):
    """Reads nothing for seconds, with a small window: must be healed without a hole, or told to come back."""

    weight = 1
    receive_bytes = SLOW_RECEIVE_BYTES
    # Cut while it does not read: the close frame never arrives.
    expected_closes = (SLOW, NO_PONG, CLOSED_WITHOUT_CODE)

    def begin(self) -> None:
        self.later(self.chance.uniform(1, 5), self.stall)

    def stall(self) -> None:
        gevent.sleep(self.chance.uniform(*STALL_S))
        # What waited was late by our own doing: only its being whole is judged.
        self.here_since_ms = time.time() * 1000 + IDLE_S * 1000
        self.later(self.chance.uniform(1, 5), self.stall)
