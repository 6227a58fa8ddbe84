"""The scenarios: each makes its show on a stand, runs, and returns its figures."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any, Final, NamedTuple

from loadtests.evening.result import Result, begun
from loadtests.evening.stand import LoadError, Server, Spent, Stand, Talk, settled
from loadtests.fanout.floor import measure_floor
from loadtests.swarm import Report, SwarmProcess

FLOOR_RATE, FLOOR_BYTES = 50, 200
SPEAKER_PER_S, SPEAKER_MOST_PER_S = 0.4, 1.0  # comments of one person; the pace rule allows 1.5
WARM_S: Final = 3.0
KB, MB = 1_024, 1_048_576
LINE_CHARS: Final = 160  # of the lines that fill a stalled viewer's buffers
STALL_WAIT_S: Final = 60.0
BUFFER_MARK: Final = MB  # waiting for one viewer at most
SPARE: Final = 32 * MB  # what the process itself may grow meanwhile
DRAIN_S: Final = 25.0
BACK_S: Final = 20.0
READS: Final = 3

Scenario = Callable[..., Awaitable[Result]]


def beat_ms(viewers: int) -> float:
    """The beat promised for a show of this size: 50 ms, 100 at 1,000, 250 from 2,500 on."""
    return min(250.0, max(50.0, viewers / 10))


def _complete(result: Result, report: Report, count: int, checksum: int, what: str = "") -> None:
    """Every viewer has every comment, once, in order, and nothing else is missing."""
    name = f"{what}: " if what else ""
    missing = max(0, count - report.comments_least)
    result.add(f"{name}missing comments of the viewer that has fewest", missing, exactly=0)
    result.add(f"{name}comments too many", max(0, report.comments_most - count), exactly=0)
    wrong = int(report.sum_least != checksum or report.sum_most != checksum)
    result.add(f"{name}viewers whose comments are others than those accepted", wrong, exactly=0)
    odd = report.holes + report.repeats + report.disordered + report.gaps
    result.add(f"{name}holes, repeats, disorder, gap messages", odd, exactly=0)


def _engines(result: Result, spent: Spent, seconds: float, what: str = "") -> None:
    name = f"{what}: " if what else ""
    result.add(f"{name}Redis", spent.redis / seconds, "cores")
    result.add(f"{name}PostgreSQL", spent.postgresql / seconds, "cores")


# -- talk ------------------------------------------------------------------------------------------


async def comments(
    stand: Stand, *, viewers: int = 1_000, seconds: float = 30.0, rate: float = 200.0, floor_s: float = 5.0
) -> Result:
    """Members post over their own sockets at a steady rate; nothing is sampled; deflate off, then on."""
    result = begun("comments", viewers=viewers, seconds=seconds, rate=rate)
    speakers = _speakers(viewers, rate)
    floors = []
    for deflate in (False, True):
        what = "deflated" if deflate else "plain"
        with stand.step("measuring the floor …"):
            floors.append(_floor(stand, viewers, floor_s))
        async with stand.serve(comments_shown_per_s=0) as server:
            show = await stand.show(server)
            tokens = await stand.members(server, speakers)
            more = ["--deflate"] if deflate else []
            with stand.step(f"{what}: {viewers:,} viewers, {rate:g} comments/s for {seconds:g} s …"):
                async with stand.swarm([server], show, viewers, *more, tokens=tokens) as swarm:
                    await swarm.ready()
                    await swarm.ask(f"post {rate} {min(WARM_S, seconds)} {speakers}")
                    warm = await swarm.report()
                    await settled(swarm, warm.acknowledged)
                    await swarm.ask("reset")
                    before, began = stand.spent(server), time.monotonic()
                    await swarm.ask(f"post {rate} {seconds} {speakers}", seconds + 60)
                    posted = await swarm.report()
                    report = await settled(swarm, posted.acknowledged)
                    spent, took = stand.spent(server).since(before), time.monotonic() - began
        deliveries = max(1, report.acknowledged * viewers)
        floor = median(floors)
        cost = spent.server * 1e6 / deliveries
        result.add(f"{what}: comments not accepted", report.posted - report.acknowledged, exactly=0)
        _complete(result, report, report.acknowledged, report.acknowledged_sum, what)
        result.add(f"{what}: floor", floor, "µs a frame")
        result.add(f"{what}: CPU a comment and viewer", cost, "µs")
        result.add(f"{what}: the same ÷ floor", cost / floor, most=0.15)
        result.add(f"{what}: post to receipt, p50", report.latency.p50, "ms")
        result.add(f"{what}: post to receipt, p99", report.latency.p99, "ms", most=beat_ms(viewers) + 150)
        wire = report.wire_bytes / deliveries
        result.add(f"{what}: on the wire, a comment and viewer", wire, "B", most=80 if deflate else None)
        result.add(f"{what}: comments a frame", report.events / max(1, report.frames))
        result.add(f"{what}: frames that came deflated", 100 * report.deflated / max(1, report.frames), "%")
        result.add(f"{what}: post to answer, p99", report.answers.p99, "ms")
        _engines(result, spent, took, what)
        result.add(f"{what}: viewers' own worst lag", report.lag_max_ms, "ms")
    return result


def _speakers(viewers: int, rate: float) -> int:
    """How many take turns, so that none speaks faster than people may."""
    if viewers < rate / SPEAKER_MOST_PER_S:
        raise LoadError(f"{rate:g} comments/s are too many for {viewers:,} people: they pause between two")
    return min(viewers, max(1, math.ceil(rate / SPEAKER_PER_S)))


def _floor(stand: Stand, viewers: int, seconds: float) -> float:
    return measure_floor(
        viewers,
        FLOOR_RATE,
        seconds,
        FLOOR_BYTES,
        server_core=stand.cores.server,
        viewer_core=stand.cores.viewers,
    )


# -- nothing happens -------------------------------------------------------------------------------


async def idle(stand: Stand, *, viewers: int = 10_000, seconds: float = 30.0) -> Result:
    """Viewers who only watch: memory and CPU of each."""
    result = begun("idle", viewers=viewers, seconds=seconds)
    async with stand.serve() as server:
        show = await stand.show(server)
        async with stand.swarm([server], show, min(20, viewers)) as few:  # what is made once is made
            await few.ready()
        await asyncio.sleep(1)
        rss = server.rss()
        before_joining = stand.spent(server)
        async with stand.swarm([server], show, viewers) as swarm:
            with stand.step(f"{viewers:,} viewers come …"):
                joined_s = await swarm.ready()
                await asyncio.sleep(1)
            joining = stand.spent(server).since(before_joining)
            before = stand.spent(server)
            with stand.step(f"{viewers:,} viewers watch for {seconds:g} s …"):
                await asyncio.sleep(seconds)
            spent = stand.spent(server).since(before)
            grown = server.rss() - rss
            report = await swarm.report()
    result.add("viewers that are not here at the end", viewers - report.here, exactly=0)
    result.add("memory each", grown / viewers / KB, "KB", most=10)
    result.add("CPU each", spent.server / seconds / viewers * 1e6, "µs/s", most=10)
    result.add("until all were in", joined_s, "s")
    result.add("CPU of a join", joining.server / viewers * 1e6, "µs")
    _engines(result, spent, seconds)
    return result


# -- everybody is cut off --------------------------------------------------------------------------


async def cut(
    stand: Stand,
    *,
    viewers: int = 10_000,
    rate: float = 20.0,
    seconds: float = 10.0,
    members: int | None = None,
) -> Result:
    """Every connection ends in one moment while the host talks; each viewer comes back by the rules.

    A fifth of them are members unless `members` says how many; the others are guests.
    """
    members = viewers // 5 if members is None else members
    result = begun("cut", viewers=viewers, members=members, rate=rate, seconds=seconds)
    async with stand.serve(comments_shown_per_s=0) as server:
        show = await stand.show(server)
        tokens = await stand.members(server, members)
        async with stand.swarm([server], show, viewers, tokens=tokens) as swarm:
            with stand.step(f"{viewers:,} viewers come …"):
                await swarm.ready()
            await swarm.ask("reset")
            async with Talk(server, show, rate) as said:
                await asyncio.sleep(seconds)
                reads, states = await _reads(server, "show", "missed"), await _reads(server, "states")
                calls, began, before = stand.redis_calls(), time.monotonic(), stand.spent(server)
                with stand.step(f"{viewers:,} viewers are cut off and come back …"):
                    back_s = (await swarm.ask("cut"))["seconds"]
                took = time.monotonic() - began
                spent = stand.spent(server).since(before)
                reads = await _reads(server, "show", "missed") - reads
                states = await _reads(server, "states") - states
                called = stand.redis_calls()
                await asyncio.sleep(min(2.0, seconds))  # the talk goes on with everybody back
            report = await settled(swarm, said.acknowledged)
    result.add("until all were back", back_s, "s", most=BACK_S)
    _complete(result, report, said.acknowledged, said.acknowledged_sum)
    result.add("rejoined with less than every event", report.snapshots, exactly=0)
    result.add("rejoined with every event", report.recovered, exactly=viewers)
    result.add("reads of the log for those who came back, a show and node", reads, most=READS)
    result.add("reads of changed states meanwhile (the viewers' number moves)", states)
    result.add("answered 503 meanwhile", report.turned)
    result.add("CPU of a rejoin", spent.server / viewers * 1e6, "µs")
    _engines(result, spent, took)
    grown = {name: called[name] - calls.get(name, 0) for name in called}
    for name, count in sorted(grown.items(), key=lambda pair: -pair[1])[:4]:
        result.add(f"Redis calls a rejoin: {name}", count / viewers)
    return result


async def _reads(server: Server, *why: str) -> float:
    """Reads of the show's log so far: its beginning, what was missed, or changed states."""
    return sum([await server.metric("companion_log_reads_total", why=each) for each in why])


# -- some never read -------------------------------------------------------------------------------


async def stalled(
    stand: Stand,
    *,
    viewers: int = 5_000,
    seconds: float = 15.0,
    rounds: int = 5,
    rate: float = 120.0,
    share: float = 0.01,
) -> Result:
    """One in a hundred stops to read, in pairs with and without them; half of them read on in time."""
    result = begun("stalled", viewers=viewers, seconds=seconds, rounds=rounds, rate=rate)
    count = max(2, round(viewers * share))
    changes: list[float] = []
    rounds_with: list[Stalled] = []
    odd = cut_off = 0
    async with stand.serve(comments_shown_per_s=0) as server:
        show = await stand.show(server)
        speakers = _speakers(viewers - count, rate)
        tokens = await stand.members(server, speakers)
        async with stand.swarm([server], show, viewers - count, tokens=tokens) as swarm:
            with stand.step(f"{viewers - count:,} viewers come …"):
                await swarm.ready()
            # Until the swarm ends; enough for 256 KB a viewer, where events are skipped, within the 5 s it may stall.
            await swarm.say(f"post {rate} 86400 {speakers} {LINE_CHARS}")
            await asyncio.sleep(min(WARM_S, seconds))
            for number in range(rounds):
                p99 = {}
                for with_them in (False, True) if number % 2 == 0 else (True, False):
                    what = f"round {number + 1} of {rounds}, {'with' if with_them else 'without'} them …"
                    with stand.step(what):
                        if with_them:
                            found = await _stall(stand, server, show, swarm, count, seconds)
                            rounds_with.append(found)
                        report = found.others if with_them else await _over(swarm, seconds)
                    p99[with_them] = report.latency.p99
                    odd += report.holes + report.repeats + report.disordered + report.gaps
                    cut_off += sum(report.closes.values())
                changes.append((p99[True] / max(p99[False], 0.1) - 1) * 100)
    result.add("p99 of the others, change, median of the pairs", median(changes), "%", most=10)
    result.add("p99 of the others, worst change", max(changes), "%")
    grown = max(found.grown for found in rounds_with)
    result.add("memory grown while they stall, at most", grown / MB, "MB", most=_bound(count) / MB)
    result.add("stalled", count * rounds)
    result.add("closed 4102", sum(found.closed for found in rounds_with))
    result.add("healed without a hole", sum(found.healed for found in rounds_with))
    result.add("neither closed nor healed", sum(found.lost for found in rounds_with), exactly=0)
    result.add("frames not sent to them, for later", sum(found.skipped for found in rounds_with))
    result.add("holes, repeats, disorder, gap messages of the others", odd, exactly=0)
    result.add("others that were closed", cut_off, exactly=0)
    return result


class Stalled(NamedTuple):
    """One round with them."""

    others: Report
    grown: int  # bytes
    closed: float
    healed: float
    lost: float
    skipped: float


def _bound(count: int) -> float:
    return count * BUFFER_MARK + SPARE


async def _over(swarm: SwarmProcess, seconds: float) -> Report:
    """What was seen in so many seconds from now."""
    await swarm.ask("reset")
    await asyncio.sleep(seconds)
    return await swarm.report()


async def _stall(
    stand: Stand, server: Server, show: str, others: SwarmProcess, count: int, seconds: float
) -> Stalled:
    """`count` viewers stop; half read on as soon as the server began to skip frames for them."""
    closes = await server.metric("companion_closes_total", code="4102")
    skipped = await server.metric("companion_skipped_frames_total")
    rss = most = server.rss()
    patient = count // 2
    async with stand.swarm([server], show, count, "--small", str(count)) as swarm:
        await swarm.ready()
        await swarm.ask(f"stall {count}")
        measuring = asyncio.create_task(_over(others, seconds))
        until, resumed, gone = time.monotonic() + STALL_WAIT_S, False, 0.0
        while time.monotonic() < until and not (resumed and gone >= count - patient):
            await asyncio.sleep(0.1)
            most = max(most, server.rss())
            gone = await server.metric("companion_closes_total", code="4102") - closes
            if not resumed and (gone or await server.metric("companion_skipped_frames_total") > skipped):
                await swarm.ask(f"resume {patient}")
                resumed = True
        seen = await measuring
        if not resumed:
            await swarm.ask(f"resume {patient}")
        gone = await server.metric("companion_closes_total", code="4102") - closes
        healed = await _caught_up(swarm, others, count - gone)
        report = await swarm.report()
        whole = max(0.0, healed - report.holes - report.repeats)
        skipped = await server.metric("companion_skipped_frames_total") - skipped
    return Stalled(seen, most - rss, gone, whole, max(0.0, count - gone - whole), skipped)


async def _caught_up(swarm: SwarmProcess, others: SwarmProcess, wanted: float) -> int:
    """How many of the swarm are where the others are; waits until they are enough, or the time is over."""
    until = time.monotonic() + 10
    level = (await others.report()).seq_least
    while True:
        count = int((await swarm.ask(f"level {level}"))["count"])
        if count >= wanted or time.monotonic() > until:
            return count
        await asyncio.sleep(0.1)


# -- a deploy --------------------------------------------------------------------------------------


async def drain(stand: Stand, *, viewers: int = 10_000) -> Result:
    """SIGTERM with everybody here: each is told to come back elsewhere."""
    result = begun("drain", viewers=viewers)
    async with stand.serve() as server:
        show = await stand.show(server)
        async with stand.swarm([server], show, viewers) as swarm:
            with stand.step(f"{viewers:,} viewers come …"):
                await swarm.ready()
            await swarm.ask("reset")
            began = time.monotonic_ns()
            with stand.step("the server is told to stop …"):
                server.stop_soon()
                await server.ended()
            ended = time.monotonic_ns()
            report = await swarm.report()
    closed = sum(report.closes.values())
    result.add("closed", closed, exactly=viewers)
    result.add("closed 4001", report.closes.get("4001", 0), exactly=viewers)
    result.add("cut without a close frame (1006)", report.closes.get("1006", 0), exactly=0)
    result.add("until all were closed", (report.last_closed_ns - began) / 1e9, "s", most=DRAIN_S)
    result.add("until the first was", (report.first_closed_ns - began) / 1e9, "s")
    result.add("until the process had ended", (ended - began) / 1e9, "s")
    return result


async def rolling(stand: Stand, *, viewers: int = 2_000, quota: int = 100, seconds: float = 20.0) -> Result:
    """Two nodes, each replaced in turn while everybody claims; every claim is answered once."""
    result = begun("rolling", viewers=viewers, quota=quota, seconds=seconds)
    async with contextlib.AsyncExitStack() as running:
        nodes = await asyncio.gather(
            *(running.enter_async_context(stand.serve(comments_shown_per_s=0)) for _ in range(2))
        )
        show = await stand.show(nodes[0])
        tokens = await stand.members(nodes[0], viewers)
        swarm = await running.enter_async_context(
            stand.swarm(nodes, show, viewers, "--rejoin", tokens=tokens)
        )
        with stand.step(f"{viewers:,} viewers come …"):
            await swarm.ready()
        body = {
            "title": f"试吃装 {quota} 份",
            "quota": quota,
            "needs": "nothing",
            "audience": {"kind": "registered"},
        }
        benefit = (await nodes[0].do("POST", f"/v1/shows/{show}/benefits", body))["id"]
        await swarm.ask("reset")
        with stand.step("they claim while one node after the other is replaced …"):
            await swarm.say(f"claim {benefit} {viewers / seconds}")
            for index in range(2):
                await asyncio.sleep(seconds / 4)
                nodes[index].stop_soon()
                await nodes[index].ended()
                port = nodes[index].port
                nodes[index] = await running.enter_async_context(stand.serve(port, comments_shown_per_s=0))
            await swarm.answer("claim", seconds + 60)
            report = await _answered(swarm)
        booked = await _booked(nodes[0], benefit)
        counts = (await nodes[0].do("GET", f"/v1/benefits/{benefit}"))["counts"]
    winners = min(quota, viewers)
    right = list(range(1, winners + 1))
    result.add("claims without an answer", report.claims_waiting, exactly=0)
    result.add("claims with two answers", report.answered_twice, exactly=0)
    result.add("winners", len(report.ranks), exactly=winners)
    result.add("replies: ranks that are not 1 to the quota", int(sorted(report.ranks) != right), exactly=0)
    result.add("PostgreSQL: ranks that are not 1 to the quota", int(booked != right), exactly=0)
    result.add("Redis: confirmed", counts.get("confirmed", 0), exactly=winners)
    result.add("Redis: held", counts.get("held", 0), exactly=0)
    result.add("told sold out", report.refused.get("sold_out", 0), exactly=viewers - winners)
    result.add("holes and repeats", report.holes + report.repeats, exactly=0)
    result.add("closed 4001", report.closes.get("4001", 0))
    result.add("cut without a close frame (1006)", report.closes.get("1006", 0), exactly=0)
    result.add(
        "sent again after an answer that said so",
        sum(count for word, count in report.refused.items() if word.startswith("again")),
    )
    result.add("claim to answer, p99", report.answers.p99, "ms")
    return result


async def _answered(swarm: SwarmProcess) -> Report:
    """The report once every claim is answered, or when the time is over."""
    until = time.monotonic() + 60
    while True:
        report = await swarm.report()
        if not report.claims_waiting or time.monotonic() > until:
            return report
        await asyncio.sleep(0.2)


async def _booked(server: Server, benefit: str) -> list[int]:
    """The ranks in PostgreSQL, as the API reads them."""
    ranks: list[int] = []
    cursor = ""
    while True:
        after = f"&after_rank={cursor}" if cursor else ""
        page = await server.do("GET", f"/v1/benefits/{benefit}/claims?limit=100{after}")
        ranks += [claim["rank"] for claim in page["items"]]
        cursor = page.get("next") or ""
        if not cursor:
            return sorted(ranks)


# -- who may see what ------------------------------------------------------------------------------


async def classes(
    stand: Stand, *, viewers: int = 1_000, seconds: float = 15.0, rounds: int = 3, rate: float = 20.0
) -> Result:
    """Guests, registered and plan members in one show, against as many who are all plan members."""
    result = begun("classes", viewers=viewers, seconds=seconds, rounds=rounds, rate=rate)
    costs: dict[bool, list[float]] = {True: [], False: []}
    odd = missing = 0
    async with stand.serve(comments_shown_per_s=0) as server:
        members = await stand.members(server, viewers + viewers // 3)
        await stand.plan_members(server, viewers)
        plan, registered = members[:viewers], members[viewers:]
        third = viewers // 3
        mixed = [*plan[:third], *registered[:third]]  # the others are guests
        for number in range(rounds):
            for three in (True, False) if number % 2 == 0 else (False, True):
                what = "three classes" if three else "one class"
                with stand.step(f"round {number + 1} of {rounds}: {what}, {viewers:,} viewers …"):
                    show = await stand.show(server)
                    tokens = mixed if three else plan
                    async with stand.swarm([server], show, viewers, tokens=tokens) as swarm:
                        await swarm.ready()
                        await _extras(server, show)  # from here on there are three classes
                        await asyncio.sleep(1)
                        await swarm.ask("reset")
                        before, began = stand.spent(server), time.monotonic()
                        async with Talk(server, show, rate) as said:
                            while time.monotonic() - began < seconds:
                                await asyncio.sleep(1)
                                await _extras(server, show)
                        report = await settled(swarm, said.acknowledged)
                        spent = stand.spent(server).since(before)
                    costs[three].append(spent.server / report.seconds)
                    odd += report.holes + report.repeats + report.disordered + report.gaps
                    missing += int(report.sum_least != said.acknowledged_sum)
                    missing += int(report.sum_most != said.acknowledged_sum)
    ratio = median(with_three / one for with_three, one in zip(costs[True], costs[False], strict=True))
    result.add("CPU of three classes ÷ one, median of the pairs", ratio, most=1.3)
    result.add("three classes", median(costs[True]), "cores")
    result.add("one class", median(costs[False]), "cores")
    result.add("runs with comments missing or too many", missing, exactly=0)
    result.add("holes, repeats, disorder, gap messages", odd, exactly=0)
    return result


async def _extras(server: Server, show: str) -> None:
    """A benefit for the registered, one for plan members: opened and closed, told to nobody else."""
    for kind in ("registered", "plan_members"):
        body = {"title": "会员专享试吃", "quota": 10, "needs": "nothing", "audience": {"kind": kind}}
        benefit = (await server.do("POST", f"/v1/shows/{show}/benefits", body))["id"]
        await server.do("POST", f"/v1/benefits/{benefit}/close", {})


ALL: Final[dict[str, Scenario]] = {
    "comments": comments,
    "idle": idle,
    "cut": cut,
    "stalled": stalled,
    "drain": drain,
    "rolling": rolling,
    "classes": classes,
}

# What a soak runs beside its half hour: each minutes, not hours.
SMALL: Final[dict[str, dict[str, Any]]] = {
    "comments": {"viewers": 300, "seconds": 10.0, "rate": 60.0, "floor_s": 2.0},
    "idle": {"viewers": 1_000, "seconds": 10.0},
    "cut": {"viewers": 1_000, "seconds": 3.0},
    "stalled": {"viewers": 500, "seconds": 8.0, "rounds": 1},
    "drain": {"viewers": 1_000},
    "rolling": {"viewers": 300, "quota": 30, "seconds": 8.0},
    "classes": {"viewers": 300, "seconds": 5.0, "rounds": 1},
}
