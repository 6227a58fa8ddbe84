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
from typing import Any
from urllib.parse import urlsplit

import httpx2
from rich.console import Console
from rich.live import Live
from rich.table import Table

from loadtests.talk import line
from loadtests.viewer import RefusedError, Viewer

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
PAYS = 0.85  # of those who order; the others let the hold run out


class Crowd:
    """All simulated viewers of one show."""

    def __init__(self, url: str, show: str, viewers: int, key: str | None, seed: int) -> None:
        parts = urlsplit(url)
        self.socket_url = (
            f"{'wss' if parts.scheme == 'https' else 'ws'}://{parts.netloc}/v1/shows/{show}/socket"
        )
        self.url, self.show, self.size, self.key = url, show, viewers, key
        self.chance = random.Random(seed)
        self.http = httpx2.AsyncClient(base_url=url, timeout=15, limits=httpx2.Limits(max_connections=20))
        self.viewers: list[Viewer] = []
        self.members: dict[Viewer, str] = {}  # viewer -> token
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.mood, self.on_air = "calm", ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._offers: set[str] = set()
        self._seen: set[str] = set()

    # -- who they are ------------------------------------------------------------------------------

    async def tokens(self, count: int) -> list[str]:
        """Members as the shop's server has them; their tokens."""
        if self.key is None:
            return []
        headers = {"Authorization": f"Bearer {self.key}"}
        tokens: list[str] = []
        for start in range(0, count, FEED_ROWS):
            rows = [
                {
                    "external_id": f"crowd-{number}",
                    "phone": f"+86199{number:08d}",
                    "nickname": NICKNAMES[number % len(NICKNAMES)],
                }
                for number in range(start, min(count, start + FEED_ROWS))
            ]
            answer = await self.http.put("/v1/members", json={"members": rows}, headers=headers)
            answer.raise_for_status()
            for row in rows:
                made = await self.http.post(
                    "/v1/tokens", json={"external_id": row["external_id"]}, headers=headers
                )
                made.raise_for_status()
                tokens.append(made.json()["token"])
        return tokens

    # -- what they do ------------------------------------------------------------------------------

    async def run(self, seconds: float | None) -> None:
        tokens = await self.tokens(self.size // 2)
        for number in range(self.size):
            token = tokens[number] if number < len(tokens) else None
            viewer = Viewer(
                self.socket_url,
                token,
                on_message=self._heard,
                chance=random.Random(self.chance.random()),
            )
            self.viewers.append(viewer)
            if token is not None:
                self.members[viewer] = token
            self._start(self._live(viewer))
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            await asyncio.sleep(0.25)
            if self.viewers and all(viewer.closed_by == 4506 for viewer in self.viewers):
                return

    async def close(self) -> None:
        await asyncio.gather(*(viewer.stop() for viewer in self.viewers), return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.http.aclose()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _live(self, viewer: Viewer) -> None:
        await asyncio.sleep(viewer.chance.uniform(0, JOIN_SPREAD_S))
        self._start(self._restless(viewer))
        await viewer.run()

    async def _restless(self, viewer: Viewer) -> None:
        """Likes and lines while nothing special happens: one line a viewer in about two minutes."""
        while True:
            await asyncio.sleep(viewer.chance.expovariate(1 / 20))
            if not viewer.joined.is_set():
                continue
            if viewer.chance.random() < 0.6:
                kind = viewer.chance.choice(("like", "like", "like", "clap", "rice"))
                await self._try(
                    viewer, "reaction.send", "likes", kind=kind, count=viewer.chance.randint(1, 6)
                )
            elif viewer in self.members:
                await self._say(viewer)

    async def _say(self, viewer: Viewer) -> None:
        text = line(viewer.chance, self.on_air, self.mood)
        await self._try(viewer, "comment.post", "comments", key=uuid.uuid4().hex, text=text)

    async def _try(self, viewer: Viewer, command: str, counted: str, **fields: Any) -> dict[str, Any] | None:
        try:
            answer = await viewer.ask(command, **fields)
        except RefusedError as refused:
            self.refusals[refused.code] += 1
            return None
        except Exception:
            return None  # the socket went away under it; the viewer rejoins by itself
        self.counts[counted] += 1
        return answer

    # -- what they react to ------------------------------------------------------------------------

    async def _heard(self, viewer: Viewer, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "welcome":
            for state in message["states"]:
                await self._saw_state(viewer, state["key"], state["data"])
        elif kind == "state" and message["data"]:
            await self._saw_state(viewer, message["key"], message["data"])

    async def _saw_state(self, viewer: Viewer, key: str, data: dict[str, Any]) -> None:
        noun, _, name = key.partition(":")
        once = f"{id(viewer)}:{key}"
        if noun not in ("offer", "benefit", "poll") or once in self._seen:
            return
        if noun == "poll":
            if data.get("open"):
                self._seen.add(once)
                self.mood = "poll"
                if viewer.chance.random() < 0.6:
                    self._start(self._vote(viewer, name, len(data["choices"])))
        elif data.get("status") == "open":
            self._seen.add(once)
            if noun == "offer":
                self.on_air = data["product"]["name"]
                self.mood = "flash" if data["kind"] == "flash" else self.mood
                self._start(self._consider(viewer, name, data))
            else:
                self.mood = "benefit"
                self._start(self._reach(viewer, name, data))

    async def _vote(self, viewer: Viewer, poll: str, choices: int) -> None:
        await asyncio.sleep(viewer.chance.uniform(1, 15))
        choice = min(int(viewer.chance.triangular(0, choices, 0)), choices - 1)
        await self._try(viewer, "ballot.cast", "ballots", key=uuid.uuid4().hex, poll=poll, choices=[choice])

    async def _consider(self, viewer: Viewer, offer: str, data: dict[str, Any]) -> None:
        """Look at the product; some ask; some members buy."""
        flash = data["kind"] == "flash"
        await asyncio.sleep(viewer.chance.expovariate(1 / (2 if flash else 10)))
        if viewer.chance.random() < 0.5:
            for _ in range(viewer.chance.randint(1, 3)):
                await self._try(viewer, "product.view", "clicks", product=data["product"]["id"])
                await asyncio.sleep(viewer.chance.uniform(0.5, 4))
        if viewer not in self.members:
            return
        if viewer.chance.random() < 0.3:
            await self._say(viewer)
        if viewer.chance.random() < (0.35 if flash else 0.12):
            await self._buy(viewer, offer)

    async def _reach(self, viewer: Viewer, benefit: str, data: dict[str, Any]) -> None:
        """Claim what is free; join for what needs joining."""
        await asyncio.sleep(viewer.chance.expovariate(1 / 4))
        if viewer not in self.members:
            return
        if data["needs"] == "nothing":
            await self._try(viewer, "benefit.claim", "claims", key=uuid.uuid4().hex, benefit=benefit)
        elif viewer.chance.random() < 0.4 and viewer.you.get("kind") != "plan":
            await self._join(viewer)
        if viewer.chance.random() < 0.3:
            await self._say(viewer)

    # -- money -------------------------------------------------------------------------------------

    async def _send(self, viewer: Viewer, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self.members[viewer]}"}
        answer = await self.http.request(method, path, json=body, headers=headers)
        if answer.status_code >= 400:
            self.refusals[answer.json().get("code", str(answer.status_code))] += 1
            return None
        return answer.json() if answer.content else {}

    async def _buy(self, viewer: Viewer, offer: str) -> None:
        """Address, quote, order, payment: the page's own steps."""
        with contextlib.suppress(httpx2.HTTPError):
            address = await self._address(viewer)
            lines = [{"offer": offer, "quantity": viewer.chance.choice((1, 1, 1, 2))}]
            quote = await self._send(viewer, "POST", f"/v1/shows/{self.show}/quotes", {"lines": lines})
            if quote is None or address is None:
                return
            placed = await self._try(
                viewer, "order.place", "orders", key=uuid.uuid4().hex, quote=quote["token"], address=address
            )
            if placed is None or viewer.chance.random() > PAYS:
                return
            started = await self._send(viewer, "POST", f"/v1/me/orders/{placed['order']}/payment", {})
            if started is not None:
                await self._pay(viewer, started["payment_url"])

    async def _join(self, viewer: Viewer) -> None:
        with contextlib.suppress(httpx2.HTTPError):
            plans = await self._send(viewer, "GET", "/v1/plans")
            if not plans:
                return
            found = plans["items"] if isinstance(plans, dict) else plans
            body = {"plan": found[0]["id"], "show": self.show, "key": uuid.uuid4().hex}
            joined = await self._send(viewer, "POST", "/v1/me/joins", body)
            if joined is not None:
                self.counts["seats" if joined.get("seat") else "joins begun"] += 1
                if viewer.chance.random() < PAYS:
                    await self._pay(viewer, joined["payment_url"])

    async def _address(self, viewer: Viewer) -> str | None:
        known = await self._send(viewer, "GET", "/v1/me/addresses")
        if known and known["items"]:
            return str(known["items"][0]["id"])
        body = {
            "name": viewer.you.get("name", "穗里人"),
            "phone": "19900000000",
            "region": viewer.chance.choice(REGIONS),
            "detail": f"示例路 {viewer.chance.randint(1, 300)} 号 {viewer.chance.randint(1, 30)} 室",
        }
        made = await self._send(viewer, "POST", "/v1/me/addresses", body)
        return None if made is None else str(made["id"])

    async def _pay(self, viewer: Viewer, payment_url: str) -> None:
        """On the payment provider's own page, as a person would: look, then pay."""
        await asyncio.sleep(viewer.chance.uniform(0.5, 3))
        page = await self.http.get(payment_url)
        if page.status_code == 200:
            paid = await self.http.post(payment_url, data={"result": "pay"})
            if paid.status_code < 400:
                self.counts["payments"] += 1

    # -- what it looks like ------------------------------------------------------------------------

    def latency(self) -> str:
        found = [ms for viewer in self.viewers for ms in viewer.latencies_ms[-200:]]
        if len(found) < 20:
            return "–"
        cuts = statistics.quantiles(found, n=100)
        return f"p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms"

    def table(self) -> Table:
        table = Table(title=f"crowd in {self.show}", title_justify="left")
        table.add_column("what")
        table.add_column("so far", justify="right")
        here = sum(viewer.joined.is_set() for viewer in self.viewers)
        table.add_row("viewers here", f"{here} of {self.size}")
        for name, count in sorted(self.counts.items()):
            table.add_row(name, str(count))
        table.add_row("delivery", self.latency())
        table.add_row("holes in a log", str(sum(viewer.holes for viewer in self.viewers)))
        for code, count in self.refusals.most_common(5):
            table.add_row(f"refused: {code}", str(count), style="dim")
        return table

    def sentence(self) -> str:
        here = sum(viewer.joined.is_set() for viewer in self.viewers)
        done = ", ".join(f"{count} {name}" for name, count in sorted(self.counts.items()))
        return f"crowd: {here}/{self.size} viewers; {done or 'arriving'}; delivery {self.latency()}"


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
        asyncio.run(attend(crowd, given.seconds, given.every))
    except httpx2.HTTPError as error:
        print(f"crowd: {error}; is the service at {given.url}, and the key right?", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
