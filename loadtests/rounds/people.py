"""The clients of a round, as real ones are: whatever breaks, they ask again with the same key until answered.

What they were told is kept: these are the promises that the judge holds the books against.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections import defaultdict
from typing import Any, Final

import httpx2
from msgspec import Struct

from loadtests.viewer import LostError, RefusedError, Viewer

CALL_S: Final = 3.0  # then the other node is asked
AGAIN_S: Final = 0.1
ANSWERED_S: Final = 60.0  # nobody asks longer than this: no answer by then is a failure of its own
BACK_MS: Final = (20, 200)  # a lost socket comes back
KEY: Final = "idempotency-key"


class UnansweredError(Exception):
    """A client asked and asked and was never told."""


class Answer(Struct, frozen=True):
    """What an HTTP call came to in the end."""

    status: int
    body: dict[str, Any]

    @property
    def ok(self) -> bool:
        return self.status < 400

    @property
    def code(self) -> str:
        return str(self.body.get("code", self.status))


class Told:
    """Everything that clients of one show were told, and what was odd about it."""

    def __init__(self) -> None:
        self.ranks: dict[tuple[str, str], int] = {}  # (benefit, member) -> rank
        self.receipts: dict[tuple[str, str], str] = {}
        self.shown: dict[tuple[str, int], str] = {}  # (benefit, rank) -> name, as everybody was told
        self.placed: dict[str, str] = {}  # order -> member
        self.paid: dict[str, str] = {}  # order -> member: the payment page said so
        self.given_up: set[str] = set()  # orders whose cancelling was confirmed
        self.refused: dict[str, list[str]] = defaultdict(list)  # what -> words
        self.repeats = 0
        self.states = 0  # of benefits and offers, as sockets saw them
        self.wrong: list[str] = []

    def note(self, what: str) -> None:
        """Something wrong; many sockets see the same, it is noted once."""
        if what not in self.wrong:
            self.wrong.append(what)

    def rank(self, benefit: str, member: str, rank: int, receipt: str = "") -> None:
        before = self.ranks.setdefault((benefit, member), rank)
        if before != rank:
            self.note(f"member {member} was told rank {before}, then {rank}")
        if receipt:
            self.receipts[benefit, member] = receipt

    def look(self, message: dict[str, Any]) -> None:
        """Any message of a socket: numbers above what there is, and ranks that change hands, are noted."""
        match message["type"]:
            case "welcome":
                for state in message["states"]:
                    self._look_at(state["key"], state["data"])
            case "state":
                self._look_at(message["key"], message["data"])
            case "benefit.claimed":
                place = message["benefit"], message["rank"]
                before = self.shown.setdefault(place, message["name"])
                if before != message["name"]:
                    self.note(f"rank {place[1]} was told as {before}'s, then as {message['name']}'s")

    def _look_at(self, key: str, data: dict[str, Any] | None) -> None:
        kind = key.partition(":")[0]
        if not data or kind not in ("benefit", "offer") or data.get("quota") is None:
            return
        self.states += 1
        counts = data.get("counts") or {}
        taken = counts.get("held", 0) + counts.get("confirmed" if kind == "benefit" else "sold", 0)
        if taken > data["quota"]:
            self.note(f"a state of {kind} was seen with {taken} of {data['quota']} taken: {counts}")


class Steps:
    """Counts what clients do and are told; what waits for a number is woken by it."""

    def __init__(self) -> None:
        self.count = 0
        self._wanted = 0
        self._reached = asyncio.Event()

    def take(self) -> None:
        self.count += 1
        if self._wanted and self.count >= self._wanted:
            self._reached.set()

    async def until(self, count: int) -> None:
        self._wanted = count
        if self.count < count:
            await self._reached.wait()


class Clients:
    """How one reaches the two nodes."""

    def __init__(self, doors: tuple[str, str], steps: Steps, told: Told) -> None:
        self.doors = doors
        self.steps = steps
        self.told = told
        self.http = [
            httpx2.AsyncClient(base_url=door, timeout=CALL_S, trust_env=False, verify=False) for door in doors
        ]

    async def close(self) -> None:
        for http in self.http:
            await http.aclose()

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        door: int = 0,
        key: str | None = None,
    ) -> Answer:
        """Ask until there is an answer, at one door and then the other. Raises UnansweredError."""
        headers = {KEY: key} if key else {}
        if token:
            headers["authorization"] = f"Bearer {token}"
        until = time.monotonic() + ANSWERED_S
        last = ""
        for turn in itertools.count(door):
            self.steps.take()
            wait_s = AGAIN_S
            try:
                got = await self.http[turn % 2].request(method, path, json=body, headers=headers)
            except httpx2.HTTPError as error:
                last = repr(error)
            else:
                said = _object(got)
                retry_ms = said.get("retry_ms") if got.status_code >= 400 else None
                if not _is_temporary(got.status_code, said):
                    self.steps.take()
                    return Answer(got.status_code, said)
                last = f"{got.status_code} {said.get('code')}"
                wait_s = min(0.5, max(AGAIN_S, (retry_ms or 0) / 1000))
            if time.monotonic() > until:
                raise UnansweredError(f"{method} {path} was not answered within {ANSWERED_S:.0f} s: {last}")
            self.told.repeats += 1
            await asyncio.sleep(wait_s)
        raise AssertionError

    async def pay(self, url: str, provider_url: str) -> bool:
        """Press "pay" on the page until it answers; whether it took the money.

        Behind a node that is away the page is looked for at the provider itself.
        """
        own = provider_url + "/pay/" + url.rpartition("/")[2]
        until = time.monotonic() + ANSWERED_S
        async with httpx2.AsyncClient(timeout=CALL_S, trust_env=False, verify=False) as browser:
            for turn in itertools.count():
                self.steps.take()
                try:
                    pressed = await browser.post(own if turn % 2 else url, data={"result": "pay"})
                except httpx2.HTTPError:
                    pass
                else:
                    if pressed.status_code < 500:
                        self.steps.take()
                        return pressed.status_code == 303
                if time.monotonic() > until:
                    raise UnansweredError("the payment page did not answer")
                await asyncio.sleep(AGAIN_S)
        raise AssertionError


class Claimant:
    """Sits at a socket, claims with one key until answered, and asks once more at the other node."""

    def __init__(self, clients: Clients, show: str, member: str, token: str, door: int) -> None:
        self._clients = clients
        self._door = door
        self._show = show
        self.member = member
        self.key = uuid.uuid4().hex
        self.answers: list[str] = []
        self._viewer = Viewer(self._url(door), token, on_message=self._look, back_ms=BACK_MS)
        self._running: asyncio.Task[None] | None = None

    def _url(self, door: int) -> str:
        return self._clients.doors[door % 2].replace("http", "ws", 1) + f"/v1/shows/{self._show}/socket"

    async def enter(self) -> None:
        self._running = asyncio.create_task(self._viewer.run())
        await asyncio.wait_for(self._viewer.joined.wait(), ANSWERED_S)

    async def move(self) -> None:
        """To the other node."""
        self._door += 1
        self._viewer.url = self._url(self._door)
        self._viewer.joined.clear()
        await self._viewer.drop()
        await asyncio.wait_for(self._viewer.joined.wait(), ANSWERED_S)

    async def claim(self, benefit: str) -> None:
        until = time.monotonic() + ANSWERED_S
        while True:
            self._clients.steps.take()
            wait_s = AGAIN_S
            try:
                answer = await self._viewer.ask("benefit.claim", key=self.key, benefit=benefit)
            except RefusedError as refused:
                if refused.answer.get("retry_ms") is None:
                    self._clients.steps.take()
                    self.answers.append(refused.code)
                    rank = refused.answer.get("rank")
                    if refused.code == "already_claimed" and rank:
                        self._clients.told.rank(benefit, self.member, rank)
                    return
                wait_s = min(0.5, refused.answer["retry_ms"] / 1000)
            except LostError:
                self._viewer.url = self._url(self._door + self._clients.told.repeats)
            else:
                self._clients.steps.take()
                self.answers.append("won")
                self._clients.told.rank(benefit, self.member, answer["rank"], answer.get("receipt", ""))
                return
            if time.monotonic() > until:
                raise UnansweredError(f"a claim was not answered within {ANSWERED_S:.0f} s")
            self._clients.told.repeats += 1
            await asyncio.sleep(wait_s)

    async def leave(self) -> None:
        await self._viewer.stop()
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _look(self, viewer: Viewer, message: dict[str, Any]) -> None:
        self._clients.told.look(message)


class Buyer:
    """Orders by HTTP, pays on the provider's page or gives the order up."""

    def __init__(
        self, clients: Clients, show: str, member: str, token: str, door: int, provider_url: str
    ) -> None:
        self._clients = clients
        self._told = clients.told
        self._show = show
        self._door = door
        self._provider_url = provider_url
        self.member = member
        self._token = token
        self._key = uuid.uuid4().hex

    async def join(self, plan: str, act: str) -> None:
        """A plan for a year; a seat of the benefit comes with it while there is one."""
        body = {"plan": plan, "show": self._show}
        answer = await self._ask("POST", "/v1/me/joins", body, key=self._key)
        if not answer.ok:
            self._told.refused["join"].append(answer.code)
            return
        order = answer.body["order"]["order"]
        self._told.placed[order] = self.member
        await self._finish(order, answer.body["payment_url"], act)

    async def buy(self, offer: str, address: str, act: str) -> None:
        """One piece of the offer."""
        lines = {"lines": [{"offer": offer, "quantity": 1}]}
        while True:
            quote = await self._ask("POST", f"/v1/shows/{self._show}/quotes", lines)
            if not quote.ok:
                self._told.refused["quote"].append(quote.code)
                return
            body = {"quote": quote.body["token"], "address": address}
            answer = await self._ask("POST", f"/v1/shows/{self._show}/orders", body, key=self._key)
            if answer.code != "price_changed":
                break
            self._key = uuid.uuid4().hex  # another quote is another order
        if not answer.ok:
            self._told.refused["order"].append(answer.code)
            return
        order = answer.body["order"]
        self._told.placed[order] = self.member
        if act == "give up":
            await self._give_up(order)
            return
        page = await self._ask("POST", f"/v1/me/orders/{order}/payment")
        if page.ok:
            await self._finish(order, page.body["payment_url"], act)
        else:
            self._told.refused["payment"].append(page.code)

    async def _finish(self, order: str, url: str, act: str) -> None:
        if act == "give up":
            await self._give_up(order)
            return
        if act == "pay late":  # the page was open in another window
            await self._give_up(order)
        if await self._clients.pay(url, self._provider_url):
            self._told.paid[order] = self.member
            await self.until_recorded(order)

    async def _give_up(self, order: str) -> None:
        answer = await self._ask("POST", f"/v1/me/orders/{order}/cancel")
        if answer.ok:
            self._told.given_up.add(order)
        else:
            self._told.refused["cancel"].append(answer.code)

    async def until_recorded(self, order: str) -> None:
        """Look at the order until it is more than placed; then at what one has won."""
        until = time.monotonic() + ANSWERED_S
        while True:
            answer = await self._ask("GET", f"/v1/me/orders/{order}")
            if answer.status == 404 or (answer.ok and answer.body["state"] != "placed"):
                break  # an order that is not there is the judge's to name
            if time.monotonic() > until:
                raise UnansweredError(f"order {order} was paid and is still {answer.body.get('state')}")
            await asyncio.sleep(3 * AGAIN_S)
        await self.look_at_won()

    async def look_at_won(self) -> None:
        answer = await self._ask("GET", "/v1/me/benefits")
        for won in answer.body.get("items", ()):
            if won["show"] == self._show:
                self._told.rank(won["benefit"], self.member, won["rank"], won.get("receipt", ""))

    async def _ask(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> Answer:
        return await self._clients.ask(method, path, body, token=self._token, door=self._door, key=key)


def _object(got: httpx2.Response) -> dict[str, Any]:
    try:
        said = got.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _is_temporary(status: int, said: dict[str, Any]) -> bool:
    if status >= 500 or status == 429:
        return True
    return status >= 400 and said.get("retry_ms") is not None and said.get("code") not in ("reserved_out",)
