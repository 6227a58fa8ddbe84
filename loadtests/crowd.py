"""A simulated crowd: viewers over real sockets who talk, like, vote, click, claim and buy.

    python -m loadtests.crowd --url http://127.0.0.1:8000 --show k7m2… --viewers 200

Half are members that the shop's server feeds in with an API key (COMPANION_CROWD_KEY), the rest are
guests. They react to what happens on air, as a page would see it. Runs until it is stopped or `--seconds`
are over; prints what it did.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2
import uvloop
from rich.console import Console
from rich.live import Live
from rich.table import Table

from loadtests.talk import line
from loadtests.viewer import LostError, RefusedError, Viewer

NICKNAMES = (
    "小满", "阿珍", "老周", "圆圆妈", "大米粒", "陈叔", "晓晓", "木子", "三三", "团子", "安安爸", "李姐",
    "麦子", "阿禾", "青禾", "糖糖", "王阿姨", "小雨", "阿海",
    "林林", "豆豆妈", "谷子", "周末做饭", "素心", "石头",
)  # fmt: skip
REGIONS = (
    "上海市 徐汇区",
    "浙江省 杭州市 西湖区",
    "江苏省 苏州市 姑苏区",
    "广东省 深圳市 南山区",
    "四川省 成都市 武侯区",
)
JOIN_SPREAD_S = 8.0
FEED_ROWS = 100
TOKEN_S = 43_200
MOOD_S = 60.0
PAYS = 0.85  # of those who order; the others let the hold run out
TRIES = 0.15  # of the members begin with a trial
WAITS = 0.7  # of those who find every seat held stand in line


@dataclass(eq=False)
class Person:
    """One of the crowd: a connection, and what is on this person's mind."""

    viewer: Viewer
    number: int | None = None  # of a member; guests have none
    on_air: str = ""
    mood: str = "calm"
    mood_until: float = 0.0
    noticed: set[str] = field(default_factory=set)  # states reacted to
    waiting_to_pay: dict[str, str] = field(default_factory=dict)  # benefit queued for -> payment address

    @property
    def chance(self) -> random.Random:
        return self.viewer.chance

    def feel(self, mood: str) -> None:
        self.mood, self.mood_until = mood, time.monotonic() + MOOD_S

    def line(self) -> str:
        return line(self.chance, self.on_air, self.mood if time.monotonic() < self.mood_until else "calm")


class Crowd:
    """All simulated viewers of one show."""

    def __init__(self, url: str, show: str, viewers: int, key: str | None, seed: int) -> None:
        parts = urlsplit(url)
        self.socket_url = (
            f"{'wss' if parts.scheme == 'https' else 'ws'}://{parts.netloc}/v1/shows/{show}/socket"
        )
        self.url, self.show, self.size, self.key = url, show, viewers, key
        self.chance = random.Random(seed)
        self.http = httpx2.AsyncClient(
            base_url=url, timeout=15, limits=httpx2.Limits(max_connections=20), trust_env=False
        )
        self.people: list[Person] = []
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self._plan = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._living: list[asyncio.Task[None]] = []

    # -- who they are ------------------------------------------------------------------------------

    async def feed(self, count: int) -> list[str]:
        """Members as the shop's server has them; their tokens."""
        if self.key is None:
            return []
        tokens: list[str] = []
        for start in range(0, count, FEED_ROWS):
            numbers = range(start, min(count, start + FEED_ROWS))
            rows = [
                {
                    "external_id": f"crowd-{number}",
                    "phone": f"+86199{number:08d}",
                    "nickname": NICKNAMES[number % len(NICKNAMES)],
                }
                for number in numbers
            ]
            answer = await self.http.put("/v1/members", json={"members": rows}, headers=self._shop())
            answer.raise_for_status()
            tokens += await asyncio.gather(*(self.token(number) for number in numbers))
        return tokens

    async def token(self, number: int) -> str:
        body = {"external_id": f"crowd-{number}", "ttl_s": TOKEN_S}
        made = await self.http.post("/v1/tokens", json=body, headers=self._shop())
        made.raise_for_status()
        return str(made.json()["token"])

    def _shop(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    # -- what they do ------------------------------------------------------------------------------

    async def run(self, seconds: float | None) -> None:
        """All come, and stay until the show ends or the time is over."""
        tokens = await self.feed(self.size // 2)
        plans = await self.http.get("/v1/plans")
        plans.raise_for_status()
        self._plan = next((plan["id"] for plan in plans.json()["items"]), "")
        for number in range(self.size):
            member = number if number < len(tokens) else None
            viewer = Viewer(
                self.socket_url,
                None if member is None else tokens[number],
                chance=random.Random(self.chance.random()),
            )
            person = Person(viewer, member)
            viewer.on_message = self._hearing(person)
            viewer.renew = self._renewing(person)
            self.people.append(person)
            self._living.append(self._start(self._live(person)))
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            await asyncio.sleep(0.25)
            if self._living and all(task.done() for task in self._living):
                return

    async def close(self) -> None:
        await asyncio.gather(*(person.viewer.stop() for person in self.people), return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.http.aclose()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failed := task.exception()) is not None:
            self.counts["failed acts"] += 1
            print(f"crowd: {failed!r}", file=sys.stderr)

    async def _live(self, person: Person) -> None:
        await asyncio.sleep(person.chance.uniform(0, JOIN_SPREAD_S))
        restless = self._start(self._restless(person))
        try:
            await person.viewer.run()
        finally:
            restless.cancel()

    async def _restless(self, person: Person) -> None:
        """Likes and lines while nothing special happens: one line a viewer in about two minutes."""
        if person.number is not None and person.chance.random() < TRIES:
            await person.viewer.joined.wait()
            await self._try_plan(person)
        while True:
            await asyncio.sleep(person.chance.expovariate(1 / 20))
            if person.chance.random() < 0.6:
                kind = person.chance.choice(("like", "like", "like", "clap", "rice"))
                await self._try(
                    person, "reaction.send", "likes", kind=kind, count=person.chance.randint(1, 6)
                )
            elif person.number is not None:
                await self._say(person)

    async def _say(self, person: Person) -> None:
        await self._try(person, "comment.post", "comments", key=uuid.uuid4().hex, text=person.line())

    async def _try(self, person: Person, command: str, counted: str, **fields: Any) -> dict[str, Any] | None:
        try:
            answer = await person.viewer.ask(command, **fields)
        except RefusedError as refused:
            self.refusals[refused.code] += 1
            return None
        except LostError:
            return None  # the viewer rejoins by itself
        self.counts[counted] += 1
        return answer

    # -- what they react to ------------------------------------------------------------------------

    def _hearing(self, person: Person) -> Any:
        async def hear(_: Viewer, message: dict[str, Any]) -> None:
            self._heard(person, message)

        return hear

    def _renewing(self, person: Person) -> Any:
        async def renew(viewer: Viewer) -> str:
            with contextlib.suppress(httpx2.HTTPError):
                if person.number is not None:
                    return await self.token(person.number)
            return viewer.token or ""

        return renew

    def _heard(self, person: Person, message: dict[str, Any]) -> None:
        match message["type"]:
            case "welcome":
                for state in message["states"]:
                    self._saw(person, state["key"], state["data"])
            case "state" if message["data"]:
                self._saw(person, message["key"], message["data"])
            case "order.changed" if message["state"] == "paid":
                self.counts["orders paid" if message["kind"] == "goods" else "plans paid"] += 1
            case "benefit.won":
                self.counts["ranks"] += 1
            case "seat.held" if address := person.waiting_to_pay.pop(message["benefit"], ""):
                self._start(self._pay(person, address))

    def _saw(self, person: Person, key: str, data: dict[str, Any]) -> None:
        noun, _, name = key.partition(":")
        if key in person.noticed:
            return
        if noun == "poll" and data.get("open"):
            person.noticed.add(key)
            person.feel("poll")
            if person.chance.random() < 0.6:
                self._start(self._vote(person, name, len(data["choices"])))
        elif noun == "offer" and data.get("status") == "open":
            person.noticed.add(key)
            person.on_air = data["product"]["name"]
            person.feel("flash" if data["kind"] == "flash" else "calm")
            self._start(self._consider(person, name, data))
        elif noun == "benefit" and data.get("status") == "open":
            person.noticed.add(key)
            person.feel("benefit")
            self._start(self._reach(person, name, data))

    async def _vote(self, person: Person, poll: str, choices: int) -> None:
        await asyncio.sleep(person.chance.uniform(1, 15))
        choice = min(int(person.chance.triangular(0, choices, 0)), choices - 1)
        await self._try(person, "ballot.cast", "ballots", key=uuid.uuid4().hex, poll=poll, choices=[choice])

    async def _consider(self, person: Person, offer: str, data: dict[str, Any]) -> None:
        """Look at the product; some ask; some members buy."""
        flash = data["kind"] == "flash"
        await asyncio.sleep(person.chance.expovariate(1 / (2 if flash else 10)))
        if person.chance.random() < 0.5:
            for _ in range(person.chance.randint(1, 3)):
                await self._try(person, "product.view", "clicks", product=data["product"]["id"])
                await asyncio.sleep(person.chance.uniform(0.5, 4))
        if person.number is None:
            return
        if person.chance.random() < 0.3:
            await self._say(person)
        if person.chance.random() < (0.35 if flash else 0.12):
            await self._buy(person, offer)

    async def _reach(self, person: Person, benefit: str, data: dict[str, Any]) -> None:
        """Claim what is free; join for what needs joining."""
        await asyncio.sleep(person.chance.expovariate(1 / 4))
        if person.number is None:
            return
        if data["needs"] == "nothing":
            await self._try(person, "benefit.claim", "claims", key=uuid.uuid4().hex, benefit=benefit)
        elif person.chance.random() < 0.4 and not self._pays_already(person):
            await self._join(person, benefit)
        if person.chance.random() < 0.3:
            await self._say(person)

    @staticmethod
    def _pays_already(person: Person) -> bool:
        plan = person.viewer.you.get("plan")
        return plan is not None and not plan["trial"]

    # -- money -------------------------------------------------------------------------------------

    async def _send(self, person: Person, method: str, path: str, body: Any = None) -> Any:
        """The answer; None when it was refused or did not come."""
        headers = {"Authorization": f"Bearer {person.viewer.token}"}
        try:
            answer = await self.http.request(method, path, json=body, headers=headers)
            said = answer.json() if answer.content else {}
        except (httpx2.HTTPError, ValueError):
            self.refusals["no answer"] += 1
            return None
        if answer.status_code >= 400:
            self.refusals[said.get("code", str(answer.status_code))] += 1
            return None
        return said

    async def _buy(self, person: Person, offer: str) -> None:
        """Address, quote, order, payment: the page's own steps."""
        address = await self._address(person)
        lines = [{"offer": offer, "quantity": person.chance.choice((1, 1, 1, 2))}]
        quote = await self._send(person, "POST", f"/v1/shows/{self.show}/quotes", {"lines": lines})
        if quote is None or address is None:
            return
        placed = await self._try(
            person, "order.place", "orders", key=uuid.uuid4().hex, quote=quote["token"], address=address
        )
        if placed is None or person.chance.random() > PAYS:
            return
        started = await self._send(person, "POST", f"/v1/me/orders/{placed['order']}/payment", {})
        if started is not None:
            await self._pay(person, started["payment_url"])

    async def _join(self, person: Person, benefit: str) -> None:
        """Order the plan. Who finds every seat held stands in line, or joins without the gift."""
        body = {"plan": self._plan, "show": self.show, "key": uuid.uuid4().hex}
        joined = await self._send(person, "POST", "/v1/me/joins", body)
        if joined is None:
            return
        seat = joined.get("seat")
        self.counts["seats" if seat and seat["status"] == "held" else "joins without a seat"] += 1
        if seat and seat["status"] == "reserved_out" and person.chance.random() < WAITS:
            person.waiting_to_pay[benefit] = joined["payment_url"]
            if await self._try(person, "benefit.queue", "places in line", benefit=benefit) is None:
                person.waiting_to_pay.pop(benefit, None)
        elif person.chance.random() < PAYS:
            await self._pay(person, joined["payment_url"])

    async def _try_plan(self, person: Person) -> None:
        """A trial; whoever has had one before stays as they are."""
        headers = {"Authorization": f"Bearer {person.viewer.token}"}
        body = {"plan": self._plan, "show": self.show}
        with contextlib.suppress(httpx2.HTTPError):
            answer = await self.http.post("/v1/me/trial", json=body, headers=headers)
            if answer.status_code < 400:
                self.counts["trials"] += 1

    async def _address(self, person: Person) -> str | None:
        known = await self._send(person, "GET", "/v1/me/addresses")
        if known and known["items"]:
            return str(known["items"][0]["id"])
        body = {
            "name": person.viewer.you.get("name", "穗里人"),
            "phone": "19900000000",
            "region": person.chance.choice(REGIONS),
            "detail": f"示例路 {person.chance.randint(1, 300)} 号 {person.chance.randint(1, 30)} 室",
        }
        made = await self._send(person, "POST", "/v1/me/addresses", body)
        return None if made is None else str(made["id"])

    async def _pay(self, person: Person, payment_url: str) -> None:
        """On the payment provider's own page, as a person would: look, then pay."""
        await asyncio.sleep(person.chance.uniform(0.5, 3))
        try:
            page = await self.http.get(payment_url)
            paid = await self.http.post(payment_url, data={"result": "pay"})
        except httpx2.HTTPError:
            self.refusals["no answer"] += 1
            return
        if page.status_code == 200 and paid.status_code < 400:
            self.counts["payments"] += 1
        else:
            self.refusals[f"payment page {page.status_code}, {paid.status_code}"] += 1

    # -- what it looks like ------------------------------------------------------------------------

    def latency(self) -> str:
        found = [ms for person in self.people for ms in person.viewer.latencies_ms]
        if len(found) < 20:
            return "–"
        cuts = statistics.quantiles(found, n=100)
        return f"p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms"

    def holes(self) -> int:
        return sum(person.viewer.holes for person in self.people)

    def table(self) -> Table:
        table = Table(title=f"crowd in {self.show}", title_justify="left")
        table.add_column("what")
        table.add_column("so far", justify="right")
        here = sum(person.viewer.joined.is_set() for person in self.people)
        table.add_row("viewers here", f"{here} of {self.size}")
        for name, count in sorted(self.counts.items()):
            table.add_row(name, str(count))
        table.add_row("delivery", self.latency())
        table.add_row("holes in a log", str(self.holes()))
        for code, count in self.refusals.most_common(5):
            table.add_row(f"refused: {code}", str(count), style="dim")
        return table

    def sentence(self) -> str:
        here = sum(person.viewer.joined.is_set() for person in self.people)
        done = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        refused = ", ".join(f"{count} {code}" for code, count in self.refusals.most_common(5))
        return (
            f"crowd: {here}/{self.size} viewers; {done or 'arriving'}; delivery {self.latency()}, "
            f"holes {self.holes()}; refused: {refused or 'none'}"
        )


async def _show(crowd: Crowd, console: Console, every_s: float) -> None:
    """A live table on a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        while True:
            await asyncio.sleep(every_s)
            console.print(crowd.sentence(), highlight=False, soft_wrap=True)
    with Live(crowd.table(), console=console, refresh_per_second=2) as live:
        while True:
            await asyncio.sleep(0.5)
            live.update(crowd.table())


async def attend(crowd: Crowd, seconds: float | None, every_s: float) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    showing = asyncio.create_task(_show(crowd, Console(), every_s))
    running = asyncio.create_task(crowd.run(seconds))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        for task in (showing, running, stopping):
            task.cancel()
        await asyncio.gather(showing, running, stopping, return_exceptions=True)
        await crowd.close()
        print(crowd.sentence())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.crowd",
        description=(__doc__ or "").split("\n")[0],
        epilog="example: COMPANION_CROWD_KEY=ck_… python -m loadtests.crowd --show k7m2p3q4r5 --viewers 500",
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service")
    parser.add_argument("--show", required=True, help="the show's id, as in its link")
    parser.add_argument("--viewers", type=int, default=200, help="how many (default 200, at most 5,000)")
    parser.add_argument("--seconds", type=float, default=None, help="stop after so long")
    parser.add_argument(
        "--every", type=float, default=30.0, help="seconds between lines when not on a terminal"
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same people")
    given = parser.parse_args()
    if not 1 <= given.viewers <= 5_000:
        parser.error("--viewers is 1 to 5,000: beyond that, use locust workers on several machines")
    crowd = Crowd(given.url, given.show, given.viewers, os.environ.get("COMPANION_CROWD_KEY"), given.seed)
    try:
        uvloop.run(attend(crowd, given.seconds, given.every))
    except httpx2.HTTPError as error:
        print(f"crowd: {error}; is the service at {given.url}, and the key right?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
