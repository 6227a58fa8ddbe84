"""When the store breaks on the night: who is watching stays, and what was acknowledged is heard by all.

    python -m loadtests.outage --viewers 200 --frozen-s 15

Starts a server of its own with two processes, joins viewers, and lets members talk, each line with a key that
is repeated until it is answered. Then Redis is killed (-9) and started again, and later frozen (SIGSTOP). At
the end: no viewer was closed, the epoch is the one it was, and every acknowledged line was heard by every
viewer, once and in order. Any difference fails.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console

from loadtests.__main__ import Evening, LoadError, house
from loadtests.viewer import LostError, RefusedError, Viewer

SETTLE_S: Final = 20.0  # for the last acknowledged line to reach the last viewer
BACK_S: Final = 30.0  # for the first acknowledged line after an outage
ANSWER_MS: Final = 1_500.0  # a command's own timeout is 1,000
LINE_S: Final = 1.0  # between two lines of one member; the pace rule allows three in two seconds
JOINS_A_SECOND: Final = 200
AGAIN: Final = ("unavailable", "rate_limited")


class Watcher:
    """A viewer that writes down what it got: lines with epoch and number, snapshots, gaps."""

    def __init__(self, socket_url: str, token: str | None = None) -> None:
        self.viewer = Viewer(socket_url, token, on_message=self._take)
        self.heard: list[tuple[str, int, str]] = []
        self.shown: set[str] = set()  # lines that came in a snapshot
        self.epochs: list[str] = []
        self.gaps = 0
        self.welcomes: list[dict[str, Any]] = []
        self.personal: list[dict[str, Any]] = []
        self._running: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    @property
    def returns(self) -> int:
        """How often it had to come back; an answer to a gap is no return."""
        return max(0, len(self.welcomes) - 1 - self.gaps)

    def start(self) -> None:
        self._running = asyncio.create_task(self.viewer.run())

    async def stop(self) -> None:
        await self.viewer.stop()
        if self._running is not None:
            await asyncio.gather(self._running, return_exceptions=True)

    async def until(self, wanted: Any, wait_s: float) -> None:
        """Until `wanted()` holds, looked at after every message. Raises TimeoutError."""
        async with asyncio.timeout(wait_s):
            while not wanted():
                self._changed.clear()
                await self._changed.wait()

    def texts(self) -> Counter[str]:
        return Counter(text for _, _, text in self.heard)

    async def _take(self, viewer: Viewer, message: dict[str, Any]) -> None:
        match message["type"]:
            case "welcome":
                self.welcomes.append(message)
                self._epoch(message["epoch"])
                if not message["recovered"]:
                    self.shown |= {comment["text"] for comment in message["comments"]}
            case "range":
                self._epoch(message["epoch"])
            case "gap":
                self.gaps += 1
            case "comment.posted" if viewer.position is not None:  # else a snapshot is on its way
                self.heard.append((self.epochs[-1], message["seq"], message["text"]))
            case "you" | "muted":
                self.personal.append(message)
        self._changed.set()

    def _epoch(self, epoch: str) -> None:
        if not self.epochs or self.epochs[-1] != epoch:
            self.epochs.append(epoch)


@dataclass
class Said:
    """A line that was acknowledged."""

    text: str
    seq: int
    at_s: float
    tries: int


class Talker:
    """A member who says a numbered line each second, and repeats each with its key until it is answered."""

    def __init__(self, watcher: Watcher, name: str) -> None:
        self.watcher = watcher
        self.name = name
        self.said: list[Said] = []
        self.refused: Counter[str] = Counter()
        self.slowest_ms = 0.0
        self.lost = 0
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """After the line that is being said."""
        self._stop.set()

    async def run(self, every_s: float = LINE_S) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            await self.say(f"{self.name} 第 {number} 句")
            await self._wait(every_s)

    async def say(self, text: str) -> Said:
        key, tries = uuid.uuid4().hex, 0
        while True:
            tries += 1
            began = time.perf_counter()
            try:
                answer = await self.watcher.viewer.ask("comment.post", key=key, text=text)
            except RefusedError as refused:
                self._took(began)
                self.refused[refused.code] += 1
                if refused.code not in AGAIN or not refused.answer["retry_ms"]:
                    raise LoadError(f"a line was refused for good: {refused.answer}") from refused
                await asyncio.sleep(refused.answer["retry_ms"] / 1000)
            except LostError:
                self.lost += 1
                await asyncio.sleep(0.2)
            else:
                self._took(began)
                self.said.append(Said(text, answer["seq"], time.monotonic(), tries))
                return self.said[-1]

    def _took(self, began: float) -> None:
        self.slowest_ms = max(self.slowest_ms, (time.perf_counter() - began) * 1000)

    async def _wait(self, wait_s: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), wait_s)
        except TimeoutError:
            return


def differences(
    watchers: list[Watcher], talkers: list[Talker], *, epochs: int = 1, may_return: bool = False
) -> list[str]:
    """What is wrong, in words. Every acknowledged line once and in order with every viewer; nobody closed.

    With more than one epoch a line may have come in the snapshot that follows a new one instead.
    """
    wrong = []
    acknowledged = {said.text: said.seq for talker in talkers for said in talker.said}
    for number, watcher in enumerate(watchers):
        who = f"viewer {number}"
        heard = watcher.texts()
        if watcher.returns and not may_return:
            wrong.append(f"{who} was closed {watcher.returns} times")
        if watcher.viewer.holes:
            wrong.append(f"{who} saw {watcher.viewer.holes} ranges that did not join")
        missing = [text for text in acknowledged if not heard[text] and text not in watcher.shown]
        if missing:
            wrong.append(f"{who} never got {len(missing)} acknowledged lines, such as {missing[0]!r}")
        twice = [text for text, count in heard.items() if count > 1]
        if twice:
            wrong.append(f"{who} got {len(twice)} lines twice, such as {twice[0]!r}")
        for epoch in set(watcher.epochs):
            numbers = [seq for of, seq, _ in watcher.heard if of == epoch]
            if numbers != sorted(set(numbers)):
                wrong.append(f"{who} got numbers of one epoch out of order")
        if len(watcher.epochs) > epochs:
            wrong.append(f"{who} saw {len(watcher.epochs)} epochs")
        if epochs == 1:
            known = {text: seq for _, seq, text in watcher.heard}
            wrong += [
                f"{who} got {text!r} as number {known[text]}, acknowledged was {seq}"
                for text, seq in acknowledged.items()
                if known.get(text, seq) != seq
            ]
    return wrong


@dataclass
class Outage:
    """One thing that was done to the store, and how long until a line was acknowledged again."""

    what: str
    began_s: float
    over_s: float = 0.0
    first_s: float = 0.0


@dataclass
class Found:
    watchers: list[Watcher] = field(default_factory=list)
    talkers: list[Talker] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)


def valkey_of(root: int) -> psutil.Process:
    """The store among the processes that `root` started."""
    for process in psutil.Process(root).children(recursive=True):
        if "valkey" in process.name() or "redis" in process.name():
            return process
    raise LoadError("the store's process was not found")


async def evening(
    url: str, show: str, tokens: list[str], root: int, *, viewers: int, frozen_s: float, calm_s: float
) -> Found:
    """Talk, kill, talk, freeze, talk; then wait until everybody heard everything."""
    socket_url = url.replace("http", "ws", 1) + f"/v1/shows/{show}/socket"
    found = Found()
    for number in range(viewers):
        token = tokens[number] if number < len(tokens) else None
        found.watchers.append(Watcher(socket_url, token))
        found.watchers[-1].start()
        if number % JOINS_A_SECOND == JOINS_A_SECOND - 1:
            await asyncio.sleep(1)
    for watcher in found.watchers:
        await asyncio.wait_for(watcher.viewer.joined.wait(), 60)
    found.talkers = [
        Talker(watcher, f"观众{number}") for number, watcher in enumerate(found.watchers[: len(tokens)])
    ]
    talking = [asyncio.create_task(talker.run()) for talker in found.talkers]
    try:
        await asyncio.sleep(calm_s)

        store = valkey_of(root)
        killed = Outage("killed -9 and started again", time.monotonic())
        store.kill()
        # What ended is reaped, and another started, by who supervises it; that is part of the outage.
        async with asyncio.timeout(BACK_S):
            await _started_again(root, store.pid)
        killed.over_s = time.monotonic()
        await _first(found, killed)
        await asyncio.sleep(calm_s)

        store = valkey_of(root)
        frozen = Outage(f"frozen for {frozen_s:g} s", time.monotonic())
        os.kill(store.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(frozen_s)
        finally:
            os.kill(store.pid, signal.SIGCONT)
        frozen.over_s = time.monotonic()
        await _first(found, frozen)
        await asyncio.sleep(calm_s)
    finally:
        for talker in found.talkers:
            talker.stop()
    await asyncio.wait_for(asyncio.gather(*talking), BACK_S)
    await heard_all(found.watchers, found.talkers)
    return found


async def _started_again(root: int, before: int) -> None:
    while True:
        try:
            if valkey_of(root).pid != before:
                return
        except (LoadError, psutil.Error):
            pass
        await asyncio.sleep(0.05)


async def _first(found: Found, outage: Outage) -> None:
    """The first line acknowledged after it was over."""
    async with asyncio.timeout(BACK_S):
        while True:
            after = [
                said.at_s for talker in found.talkers for said in talker.said if said.at_s > outage.over_s
            ]
            if after:
                break
            await asyncio.sleep(0.05)
    outage.first_s = min(after)
    found.outages.append(outage)


async def heard_all(watchers: list[Watcher], talkers: list[Talker], wait_s: float = SETTLE_S) -> None:
    """Wait until everybody has every acknowledged line; who never gets one is found by `differences`."""
    wanted = {said.text for talker in talkers for said in talker.said}
    until = time.monotonic() + wait_s
    for watcher in watchers:
        try:
            await watcher.until(
                lambda of=watcher: wanted <= of.texts().keys() | of.shown,
                max(0.1, until - time.monotonic()),
            )
        except TimeoutError:
            continue


def run(
    *, viewers: int, talkers: int, frozen_s: float, calm_s: float, workers: int, console: Console
) -> list[str]:
    """The whole evening with a server of its own; what is wrong afterwards."""
    with tempfile.TemporaryDirectory() as folder, house(Path(folder), workers) as (entrance, root):
        host = Evening(entrance)
        host.start()
        tokens = host.members(talkers)
        given = {"viewers": viewers, "frozen_s": frozen_s, "calm_s": calm_s}

        async def whole() -> Found:
            found = await evening(entrance.url, entrance.show, tokens, root, **given)  # type: ignore[arg-type]
            await asyncio.gather(*(watcher.stop() for watcher in found.watchers))
            return found

        try:
            found = asyncio.run(whole())
        finally:
            host.http.close()
    wrong = differences(found.watchers, found.talkers)
    slowest = max(talker.slowest_ms for talker in found.talkers)
    if slowest > ANSWER_MS:
        wrong.append(f"a command waited {slowest:.0f} ms for its answer")
    for outage in found.outages:
        console.print(
            f"{outage.what}: away {outage.over_s - outage.began_s:.2f} s, the first line acknowledged "
            f"{outage.first_s - outage.over_s:.2f} s after it was back",
            highlight=False,
        )
    said = [said for talker in found.talkers for said in talker.said]
    refused: Counter[str] = Counter()
    for talker in found.talkers:
        refused.update(talker.refused)
    console.print(
        f"{len(said)} lines acknowledged, {sum(one.tries > 1 for one in said)} of them after repeats; "
        f"refused meanwhile {dict(refused)}; the slowest answer took {slowest:.0f} ms",
        highlight=False,
    )
    console.print(
        f"{viewers} viewers on {workers} processes: {sum(w.returns for w in found.watchers)} closed, "
        f"{sum(w.viewer.holes for w in found.watchers)} holes, {sum(w.gaps for w in found.watchers)} gaps",
        highlight=False,
    )
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.outage",
        description=(__doc__ or "").split("\n")[0],
        epilog="example: python -m loadtests.outage --viewers 200 --frozen-s 15",
    )
    parser.add_argument("--viewers", type=int, default=100, help="who watches (default 100)")
    parser.add_argument("--talkers", type=int, default=12, help="members among them who talk (default 12)")
    parser.add_argument("--frozen-s", type=float, default=15.0, help="seconds of SIGSTOP (default 15)")
    parser.add_argument("--calm-s", type=float, default=5.0, help="seconds between the outages (default 5)")
    parser.add_argument("--workers", type=int, default=2, help="server processes (default 2)")
    given = parser.parse_args()
    if not 1 <= given.talkers <= min(given.viewers, 15):
        parser.error("--talkers is 1 to 15 and at most --viewers: of more lines a second a sample is shown")
    console = Console()
    try:
        wrong = run(**vars(given), console=console)
    except LoadError as error:
        print(f"outage: {error}", file=sys.stderr)
        return 1
    except TimeoutError:
        print(f"outage: no line was acknowledged within {BACK_S:.0f} s", file=sys.stderr)
        return 1
    for line in wrong[:20]:
        console.print(f"WRONG {line}", style="red", highlight=False)
    if not wrong:
        console.print("nobody was closed; everybody has every acknowledged line, once and in order")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
