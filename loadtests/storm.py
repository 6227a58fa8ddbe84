"""The claim storm, through the door: thousands of viewers on two server processes reach for a hundred pieces.

    python -m loadtests.storm --claimants 20000 --quota 100

Engines and two server processes of its own. Registered members come over real sockets, from two processes of
viewers; within a second everybody claims once. Then it is compared:

- replies: exactly `quota` winners with the ranks 1 to `quota`, everybody else told `sold_out`, all answered;
- Redis: who was first to arrive there, as the store's own MONITOR shows it, has the rank of that place;
- PostgreSQL: the same ranks for the same members, and the public chain of receipts link by link;
- the server's instruments: calls of the deciding script, at most one under way in a process.

Any difference fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import redis
from msgspec import Struct
from rich.console import Console

from live.engines import EngineError
from live.lua import read_script, read_with_include
from loadtests.__main__ import RESULTS, LoadError
from loadtests.evening.stand import Server, Stand
from loadtests.swarm import Report, SwarmError, SwarmProcess, Times

NODES: Final = 2
SWARMS: Final = 2  # a process of viewers has 20,000 descriptors at most on many machines
CLAIMANTS_MAX: Final = 36_000
JOINS_A_SECOND: Final = 400  # of each swarm
ANSWERED_S: Final = 90.0
PAGE: Final = 100
SCRIPT: Final = "commerce/claim_benefit"
WORD: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"')


class Arrivals:
    """Who came to Redis first, told by its MONITOR: listened to until so many different members have come.

    Every command costs the store a little more while one listens, so it ends as soon as it can.
    """

    def __init__(self, url: str, benefit: str, wanted: int) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=1.0)
        self._mark = f"benefit.claim:{benefit}".encode()
        self._wanted = wanted
        self.members: dict[str, None] = {}  # in the order of arrival
        self.calls = 0
        self._listening = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def start(self) -> None:
        """MONITOR also shows a call that was answered NOSCRIPT and did nothing; so the store knows the script."""
        self._client.script_load(read_script("live", "append") + "\n" + read_with_include(*SCRIPT.split("/")))
        self._thread.start()
        if not self._listening.wait(10):
            raise LoadError("Redis did not begin to tell what it does")

    def stop(self) -> list[str]:
        self._stop.set()
        self._thread.join(10)
        self._client.close()
        return list(self.members)[: self._wanted]

    def _listen(self) -> None:
        connection: Any = self._client.connection_pool.get_connection()
        try:
            connection.send_command("MONITOR")
            connection.read_response()
            self._listening.set()
            while not self._stop.is_set() and len(self.members) < self._wanted:
                with contextlib.suppress(redis.TimeoutError):
                    self.take(connection.read_response(disable_decoding=True))
        finally:
            connection.disconnect()

    def take(self, line: bytes) -> None:
        """One line of MONITOR; a call of the deciding script ends in stamp and pairs of member and key."""
        if self._mark not in line or b'"evalsha"' not in line.lower()[:80]:
            return
        words = WORD.findall(line)
        after = words.index(self._mark) + 2  # the stamp lies between
        self.calls += 1
        for member in words[after::2]:
            self.members.setdefault(member.decode())


class Calls(Struct, frozen=True):
    """Of the deciding script, in one server process."""

    number: int
    at_once: int


class Seen(Struct, frozen=True, kw_only=True):
    """What the storm left, from every side."""

    quota: int
    claimants: int
    reports: tuple[Report, ...]
    arrivals: list[str]  # members, as they came to Redis
    booked: list[tuple[int, str]]  # rank, member: PostgreSQL
    links: list[dict[str, Any]]  # the public chain of receipts
    counts: dict[str, int]  # Redis
    calls: tuple[Calls, ...]


def judge(seen: Seen) -> list[str]:
    """Every difference in words; none when the storm was decided right."""
    wrong = []
    winners = min(seen.quota, seen.claimants)
    right = list(range(1, winners + 1))
    won = sorted(rank for report in seen.reports for rank in report.ranks)
    if won != right:
        wrong.append(f"replies: {len(won)} winners with ranks {won[:5]}…, expected 1 to {winners}")
    sold_out = sum(report.refused.get("sold_out", 0) for report in seen.reports)
    if sold_out != seen.claimants - winners:
        wrong.append(f"replies: {sold_out} were told sold_out, expected {seen.claimants - winners}")
    others = {
        word: count for report in seen.reports for word, count in report.refused.items() if word != "sold_out"
    }
    if any(not word.startswith("again") for word in others):
        wrong.append(f"replies: {others}")
    if waiting := sum(report.claims_waiting for report in seen.reports):
        wrong.append(f"replies: {waiting} claims were never answered")
    if twice := sum(report.answered_twice for report in seen.reports):
        wrong.append(f"replies: {twice} claims got two different answers")
    if [rank for rank, _ in seen.booked] != right:
        wrong.append(f"PostgreSQL: {len(seen.booked)} claims, expected {winners}")
    arrived = seen.arrivals[:winners]
    differing = [rank for (rank, member), first in zip(seen.booked, arrived, strict=False) if member != first]
    if len(arrived) < winners or differing:
        wrong.append(
            f"order of arrival at Redis: {len(arrived)} seen, other members at ranks {differing[:5]}"
        )
    ranks = [link["rank"] for link in seen.links]
    if sorted(ranks) != right or [link["link"] for link in seen.links] != right:
        wrong.append(f"receipts: {len(ranks)} links for the ranks {ranks[:5]}…, expected {winners}")
    if seen.counts.get("confirmed") != winners or seen.counts.get("held", 0):
        wrong.append(f"Redis: {seen.counts}, expected confirmed {winners} and held 0")
    for number, calls in enumerate(seen.calls, 1):
        if calls.at_once > 1:
            wrong.append(f"server process {number}: {calls.at_once} script calls under way at once")
    return wrong


async def storm(stand: Stand, claimants: int, quota: int, within_s: float) -> Seen:
    """One storm on a show of its own."""
    async with contextlib.AsyncExitStack() as running:
        nodes = [await running.enter_async_context(stand.serve(comments_shown_per_s=0)) for _ in range(NODES)]
        show = await stand.show(nodes[0])
        tokens = await stand.members(nodes[0], claimants)
        swarms = [
            await running.enter_async_context(_swarm(stand, nodes, show, part)) for part in _halves(tokens)
        ]
        with stand.step(f"{claimants:,} viewers come …"):
            await asyncio.gather(*(swarm.ready(60 + claimants / JOINS_A_SECOND) for swarm in swarms))
        body = {
            "title": f"试吃装 {quota} 份",
            "quota": quota,
            "needs": "nothing",
            "audience": {"kind": "registered"},
        }
        benefit = (await nodes[0].do("POST", f"/v1/shows/{show}/benefits", body))["id"]
        await asyncio.gather(*(swarm.ask("reset") for swarm in swarms))
        arrivals = Arrivals(stand.redis_url, benefit, min(quota, claimants))
        await asyncio.to_thread(arrivals.start)
        with stand.step("they claim …"):
            rate = claimants / len(swarms) / within_s
            await asyncio.gather(*(swarm.ask(f"claim {benefit} {rate}", 60 + within_s) for swarm in swarms))
            reports = await _answered(swarms)
        first = await asyncio.to_thread(arrivals.stop)
        return Seen(
            quota=quota,
            claimants=claimants,
            reports=tuple(reports),
            arrivals=first,
            booked=[(c["rank"], c["member"]) async for c in _claims(nodes[0], benefit)],
            links=await _links(nodes[0], benefit),
            counts=(await nodes[0].do("GET", f"/v1/benefits/{benefit}"))["counts"],
            calls=tuple([await _calls(node) for node in nodes]),
        )


def _halves(tokens: list[str]) -> Iterator[list[str]]:
    size = -(-len(tokens) // SWARMS)
    yield from (tokens[start : start + size] for start in range(0, len(tokens), size))


def _swarm(stand: Stand, nodes: list[Server], show: str, tokens: list[str]) -> SwarmProcess:
    arguments = [part for node in nodes for part in ("--port", str(node.port))]
    arguments += ["--path", f"/v1/shows/{show}/socket", "--count", str(len(tokens))]
    arguments += ["--rate", str(JOINS_A_SECOND), "--rejoin", "--tokens", stand.file_of(tokens)]
    return SwarmProcess(arguments)


async def _answered(swarms: list[SwarmProcess]) -> list[Report]:
    """The reports once every claim is answered, or when the time is over."""
    until = time.monotonic() + ANSWERED_S
    while True:
        reports = [await swarm.report() for swarm in swarms]
        if not any(report.claims_waiting for report in reports) or time.monotonic() > until:
            return reports
        await asyncio.sleep(0.2)


async def _claims(node: Server, benefit: str) -> Any:
    cursor = ""
    while True:
        page = await node.do(
            "GET", f"/v1/benefits/{benefit}/claims?limit={PAGE}{f'&after_rank={cursor}' if cursor else ''}"
        )
        for claim in page["items"]:
            yield claim
        cursor = page.get("next") or ""
        if not cursor:
            return


async def _links(node: Server, benefit: str) -> list[dict[str, Any]]:
    links: list[dict[str, Any]] = []
    while True:
        page = await node.do("GET", f"/v1/benefits/{benefit}/ranks?limit={PAGE}&after={len(links)}")
        links += page["items"]
        if len(page["items"]) < PAGE:
            return links


async def _calls(node: Server) -> Calls:
    """Read from the process' own instruments."""
    text = (await node.http.get("/metrics")).text

    def value(name: str) -> int:
        found = re.search(rf'^{name}{{script="{SCRIPT}"}} (\S+)$', text, re.MULTILINE)
        return int(float(found[1])) if found else 0

    return Calls(value("companion_script_calls_total"), value("companion_script_calls_at_once"))


def slower(reports: tuple[Report, ...]) -> Times:
    """Of the viewers' processes the one that waited longer: neither half is hidden in the other."""
    return max((report.answers for report in reports), key=lambda times: times.p99)


def in_words(seen: Seen, within_s: float) -> str:
    answers = slower(seen.reports)
    calls = " and ".join(f"{calls.number} (at once {calls.at_once})" for calls in seen.calls)
    lag = max(report.lag_max_ms for report in seen.reports)
    return (
        f"{seen.claimants:,} claims within {within_s:g} s over {NODES} server processes, from {SWARMS} processes of "
        f"viewers: {sum(len(report.ranks) for report in seen.reports)} winners, all answered; send to answer p50 "
        f"{answers.p50:.0f} ms, p99 {answers.p99:.0f} ms, the last {answers.max:.0f} ms; script calls {calls}; "
        f"the viewers' own worst lag {lag:.0f} ms"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.storm",
        description=(__doc__ or "").split("\n")[0],
        epilog="example: python -m loadtests.storm --claimants 20000 --quota 100",
    )
    parser.add_argument("--claimants", type=int, default=5_000, help="registered members (default 5,000)")
    parser.add_argument("--quota", type=int, default=100, help="pieces (default 100)")
    parser.add_argument("--within-s", type=float, default=1.0, help="until the last has claimed (default 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help=f"default {RESULTS}")
    given = parser.parse_args()
    if not SWARMS <= given.claimants <= CLAIMANTS_MAX or not 1 <= given.quota <= 100_000:
        parser.error(f"--claimants is {SWARMS} to {CLAIMANTS_MAX:,}: a process has 20,000 descriptors")
    if not 0.1 <= given.within_s <= 600:
        parser.error("--within-s is 0.1 to 600")
    console = Console()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="companion-storm-") as folder,
            Stand(Path(folder), console) as stand,
        ):
            seen = asyncio.run(storm(stand, given.claimants, given.quota, given.within_s))
    except (LoadError, SwarmError, EngineError, OSError) as error:
        print(f"storm: {error}", file=sys.stderr)
        return 1
    wrong = judge(seen)
    said = in_words(seen, given.within_s)
    console.print(said, highlight=False)
    for line in wrong:
        console.print(f"WRONG {line}", style="red", highlight=False)
    if not wrong:
        console.print("replies, order of arrival, receipts, Redis and PostgreSQL agree", highlight=False)
    given.out.mkdir(parents=True, exist_ok=True)
    at = datetime.now().astimezone()
    record = given.out / f"{at:%Y-%m-%d-%H%M}-storm-{seen.claimants}.md"
    verdict = [f"- WRONG {line}" for line in wrong] or [
        "Replies, order of arrival, receipts and books agree."
    ]
    record.write_text(
        "\n".join([f"# Claim storm, {at:%Y-%m-%d %H:%M}", "", said + ".", "", *verdict, ""]), "utf-8"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
