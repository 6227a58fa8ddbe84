"""The claim storm, through the door: plan members over real sockets and several server processes claim at once.

    python -m loadtests.storm --claimants 5000 --quota 100 --workers 2

Starts a server of its own, feeds the members in, lets each join and pay on the sandbox's page, opens a
benefit for plan members (one on trial is none), and lets everybody claim in the same instant. Then replies,
the store's counters and the books are compared: exactly `quota` winners ranked 1 to quota, everybody else
`sold_out`, nobody twice. Any difference fails.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console
from rich.progress import Progress

from loadtests.__main__ import Evening, LoadError, house
from loadtests.viewer import RefusedError, Viewer

AT_ONCE = 20  # HTTP requests in flight while the people are made
JOINS_A_SECOND = 400
PAGE = 100


class Storm:
    """One storm on one show."""

    def __init__(self, evening: Evening, url: str, show: str, console: Console) -> None:
        self.evening, self.url, self.show, self.console = evening, url, show, console
        self.http = httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False)
        self.viewers: list[Viewer] = []
        self.answers: list[dict[str, Any]] = []
        self.took_ms: list[float] = []

    async def make_members(self, tokens: list[str], progress: Progress) -> None:
        """Everyone a plan member who paid."""
        plan = (await self.http.get("/v1/plans")).json()["items"][0]["id"]
        task = progress.add_task("joins", total=len(tokens))
        gate = asyncio.Semaphore(AT_ONCE)

        async def join(token: str) -> None:
            async with gate:
                answer = await self.http.post(
                    "/v1/me/joins",
                    json={"plan": plan, "key": uuid.uuid4().hex},
                    headers={"Authorization": f"Bearer {token}"},
                )
                if answer.status_code >= 400:
                    raise LoadError(f"a join was refused: {answer.text[:200]}")
                paid = await self.http.post(answer.json()["payment_url"], data={"result": "pay"})
                if paid.status_code >= 400:
                    raise LoadError(f"a payment failed: {paid.text[:200]}")
                progress.advance(task)

        await asyncio.gather(*(join(token) for token in tokens))

    async def enter(self, tokens: list[str], progress: Progress) -> None:
        socket_url = self.url.replace("http", "ws", 1) + f"/v1/shows/{self.show}/socket"
        task = progress.add_task("sockets", total=len(tokens))
        running = []
        for number, token in enumerate(tokens):
            viewer = Viewer(socket_url, token)
            self.viewers.append(viewer)
            running.append(asyncio.create_task(viewer.run()))
            if number % JOINS_A_SECOND == JOINS_A_SECOND - 1:
                await asyncio.sleep(1)
        self.running = running
        for viewer in self.viewers:
            await asyncio.wait_for(viewer.joined.wait(), 120)
            await asyncio.wait_for(self._member(viewer), 120)  # the last payment's news may be on its way
            progress.advance(task)

    async def _member(self, viewer: Viewer) -> None:
        for _ in range(1_200):
            if viewer.you.get("kind") == "plan":
                return
            await asyncio.sleep(0.1)

    async def claim(self, benefit: str) -> None:
        """Everybody in the same instant; each claim with a key of its own."""

        async def one(viewer: Viewer) -> dict[str, Any]:
            began = time.perf_counter()
            try:
                return await viewer.ask("benefit.claim", key=uuid.uuid4().hex, benefit=benefit)
            except RefusedError as refused:
                return refused.answer
            finally:
                self.took_ms.append((time.perf_counter() - began) * 1000)

        self.answers = list(await asyncio.gather(*(one(viewer) for viewer in self.viewers)))

    async def leave(self) -> None:
        await asyncio.gather(*(viewer.stop() for viewer in self.viewers), return_exceptions=True)
        await asyncio.gather(*self.running, return_exceptions=True)
        await self.http.aclose()

    def booked(self, benefit: str) -> list[int]:
        """The ranks in PostgreSQL, as the API reads them."""
        ranks: list[int] = []
        cursor = ""
        while True:
            page = self.evening._do(
                "GET",
                f"/v1/benefits/{benefit}/claims?limit={PAGE}{'&after_rank=' + cursor if cursor else ''}",
            )
            ranks += [claim["rank"] for claim in page["items"]]
            cursor = page.get("next") or ""
            if not cursor:
                return sorted(ranks)


def judge(answers: list[dict[str, Any]], booked: list[int], counts: dict[str, int], quota: int) -> list[str]:
    """Every difference in words; none when the storm was decided right."""
    wrong = []
    won = sorted(answer["rank"] for answer in answers if answer["type"] == "ok")
    right = list(range(1, min(quota, len(answers)) + 1))
    if won != right:
        wrong.append(f"replies: {len(won)} winners with ranks {won[:5]}…, expected 1 to {len(right)}")
    if booked != right:
        wrong.append(f"PostgreSQL: {len(booked)} claims, expected {len(right)}")
    if counts.get("confirmed") != len(right) or counts.get("held", 0):
        wrong.append(f"Redis: {counts}, expected confirmed {len(right)} and held 0")
    others = Counter(answer.get("code") for answer in answers if answer["type"] != "ok")
    if others != Counter({"sold_out": len(answers) - len(right)}) and len(answers) > quota:
        wrong.append(f"refusals: {dict(others)}, expected {len(answers) - len(right)} sold_out")
    return wrong


async def storm(given: argparse.Namespace, url: str, show: str, evening: Evening, console: Console) -> int:
    found = Storm(evening, url, show, console)
    with Progress(console=console, transient=True) as progress:
        step = progress.add_task("members", total=None)
        tokens = await asyncio.to_thread(evening.members, given.claimants)
        progress.remove_task(step)
        await found.make_members(tokens, progress)
        await found.enter(tokens, progress)
        body = {
            "title": f"试吃装 {given.quota} 份",
            "quota": given.quota,
            "needs": "nothing",
            "audience": {"kind": "plan_members"},
        }
        benefit = evening._do("POST", f"/v1/shows/{show}/benefits", body)["id"]
        await found.claim(benefit)
    booked = await asyncio.to_thread(found.booked, benefit)
    counts = evening._do("GET", f"/v1/benefits/{benefit}")["counts"]
    await found.leave()
    wrong = judge(found.answers, booked, counts, given.quota)
    took = sorted(found.took_ms)
    winners = sum(answer["type"] == "ok" for answer in found.answers)
    console.print(
        f"{len(found.answers)} claims over {given.workers} server processes: {winners} winners, "
        f"{len(found.answers) - winners} refused; answered in p50 {took[len(took) // 2]:.0f} ms, "
        f"p99 {took[int(len(took) * 0.99)]:.0f} ms, all within {took[-1]:.0f} ms",
        highlight=False,
    )
    for line in wrong:
        console.print(f"WRONG {line}", style="red", highlight=False)
    if not wrong:
        console.print("replies, Redis and PostgreSQL agree", highlight=False)
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.storm",
        description=(__doc__ or "").split("\n")[0],
        epilog="example: python -m loadtests.storm --claimants 5000 --quota 100 --workers 2",
    )
    parser.add_argument("--claimants", type=int, default=5_000, help="plan members who claim (default 5,000)")
    parser.add_argument("--quota", type=int, default=100, help="pieces (default 100)")
    parser.add_argument("--workers", type=int, default=2, help="server processes (default 2)")
    given = parser.parse_args()
    if not 1 <= given.claimants <= 15_000:
        parser.error("--claimants is 1 to 15,000: a process has 20,000 descriptors")
    console = Console()
    try:
        with tempfile.TemporaryDirectory() as folder, house(Path(folder), given.workers) as (entrance, _):
            evening = Evening(entrance)
            evening.start()
            return asyncio.run(storm(given, entrance.url, entrance.show, evening, console))
    except LoadError as error:
        print(f"storm: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
