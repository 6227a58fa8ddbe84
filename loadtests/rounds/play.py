"""One round: a show with a benefit for joining, one to claim and a flash offer, all at once; and the kill."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx2
from msgspec import Struct

from loadtests.__main__ import LoadError
from loadtests.rounds.house import House
from loadtests.rounds.people import Buyer, Claimant, Clients, Steps, Told
from loadtests.rounds.plan import BUYERS, CLAIMANTS, GIFTS, JOINERS, PIECES, SEATS, Plan

LIST_FEN, FLASH_FEN, FEE_FEN = 6_990, 4_990, 19_900
SEAT_S: Final = 10  # a seat given up while Redis was away comes back when it lapses
STEP_WAIT_S: Final = 10.0  # when the step of the kill is not reached: it comes after the last
FLASH_WAIT_S: Final = 660.0  # a flash is refused for ten minutes after money was found late
ADDRESS: Final = {
    "name": "王小明",
    "phone": "13800000001",
    "region": "浙江省 杭州市 西湖区",
    "detail": "文三路 1 号",
}


class Someone(Struct, frozen=True):
    member: str
    token: str
    address: str = ""


class Played(Struct, frozen=True, kw_only=True):
    """A round that is over: what is to be judged."""

    plan: Plan
    show: str
    join: str  # the benefits
    claim: str
    offer: str
    told: Told
    steps: int
    seconds: float
    killed_at: int  # step


class Brand:
    """The shop, its host, and people who come again; made once for all rounds."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.steps = Steps()
        self.clients = Clients(house.doors, self.steps, Told())
        self.owner = house.command("token", "--role", "owner", "--name", "小禾", "--hours", "24").strip()
        self.plan = self.room = ""
        self.claimants: list[Someone] = []
        self.buyers: list[Someone] = []
        self._fed = 0

    async def make(self) -> None:
        await self.house.ready()
        plan = {"name": "穗里年卡", "fee_fen": FEE_FEN, "period_months": 12}
        self.plan = (await self.do("POST", "/v1/plans", plan))["id"]
        self.room = (await self.do("POST", "/v1/rooms", {"title": "会员健康夜", "host_name": "小禾"}))["id"]
        self.claimants = await self.people(CLAIMANTS)
        self.buyers = await self.people(BUYERS, addresses=True)

    async def close(self) -> None:
        await self.clients.close()

    async def do(self, method: str, path: str, body: Any = None, clients: Clients | None = None) -> Any:
        """The host acts; each act with a key, so that it is done once."""
        answer = await (clients or self.clients).ask(
            method, path, body, token=self.owner, key=uuid.uuid4().hex
        )
        if not answer.ok:
            raise LoadError(f"{method} {path} was answered {answer.status}: {answer.body}")
        return answer.body

    async def people(self, count: int, *, addresses: bool = False) -> list[Someone]:
        """New members with their tokens."""
        numbers = range(self._fed, self._fed + count)
        self._fed += count
        rows = [
            {"external_id": f"round-{n}", "phone": f"+86198{n:08d}", "nickname": f"观众{n}"} for n in numbers
        ]
        await self.do("PUT", "/v1/members", {"members": rows})

        async def one(number: int) -> Someone:
            body = {"external_id": f"round-{number}", "ttl_s": 86_400}
            minted = await self.do("POST", "/v1/tokens", body)
            address = ""
            if addresses:
                kept = await self.clients.ask("POST", "/v1/me/addresses", ADDRESS, token=minted["token"])
                address = kept.body["id"]
            return Someone(minted["member"], minted["token"], address)

        return list(await asyncio.gather(*(one(number) for number in numbers)))

    async def misbehave(self, faults: dict[str, Any]) -> None:
        """Tell the provider how; `{}` ends it."""
        await self._provider("PUT", "/control/faults", faults)

    async def ledger(self) -> dict[str, Any]:
        """The provider's own books."""
        found: dict[str, Any] = (await self._provider("GET", "/control/ledger")).json()
        return found

    async def _provider(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        async with httpx2.AsyncClient(timeout=10, trust_env=False, verify=False) as http:
            answer = await http.request(
                method,
                self.house.provider_url + path,
                json=body,
                auth=("anybody", self.house.provider_password),
            )
        answer.raise_for_status()
        return answer


class Round:
    """Plays one plan."""

    def __init__(self, brand: Brand, plan: Plan) -> None:
        self._brand = brand
        self._plan = plan
        self._told = Told()
        self._steps = Steps()
        self._clients = Clients(brand.house.doors, self._steps, self._told)
        self._killed_at = 0

    async def play(self) -> Played:
        began = time.monotonic()
        brand, plan = self._brand, self._plan
        await brand.misbehave({})
        show, offer, claim = await self._open_show()
        joiners = await brand.people(JOINERS)
        claimants = [
            Claimant(self._clients, show, one.member, one.token, person.door)
            for one, person in zip(brand.claimants, plan.claimants, strict=True)
        ]
        await asyncio.gather(*(claimant.enter() for claimant in claimants))
        await brand.misbehave(plan.faults)
        join: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if not plan.opens_after_ms:
            join.set_result(await self._open_join(show))
        brand.house.write_out()
        self._steps.count = 0
        acts: list[Awaitable[Any]] = []
        for claimant, person in zip(claimants, plan.claimants, strict=True):
            acts.append(_after(person.after_ms, claimant.claim, claim))
        for one, person in zip(joiners, plan.joiners, strict=True):
            acts.append(
                _after(person.after_ms, self._buyer(show, one, person.door).join, brand.plan, person.act)
            )
        for one, person in zip(brand.buyers, plan.buyers, strict=True):
            buyer = self._buyer(show, one, person.door)
            acts.append(_after(person.after_ms, buyer.buy, offer, one.address, person.act))
        if plan.opens_after_ms:
            acts.append(_after(plan.opens_after_ms, self._open_later, show, join))
        killing = asyncio.create_task(self._kill())
        try:
            found = await asyncio.gather(*acts, return_exceptions=True)
            await killing
            self._told.wrong += [str(each) or repr(each) for each in found if isinstance(each, Exception)]
            await brand.misbehave({})
            await self._ask_again(show, claimants, claim, joiners)
            await brand.do("POST", f"/v1/shows/{show}/end", {}, self._clients)
        finally:
            killing.cancel()
            await asyncio.gather(*(claimant.leave() for claimant in claimants), return_exceptions=True)
            await self._clients.close()
        return Played(
            plan=plan,
            show=show,
            join=join.result() if join.done() else "",
            claim=claim,
            offer=offer,
            told=self._told,
            steps=self._steps.count,
            seconds=time.monotonic() - began,
            killed_at=self._killed_at,
        )

    async def _open_show(self) -> tuple[str, str, str]:
        """A show on air with a flash offer and a benefit to claim."""
        brand, mark = self._brand, uuid.uuid4().hex[:8]
        starts = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
        title = f"第 {self._plan.number} 场"
        show = (
            await brand.do("POST", "/v1/shows", {"room": brand.room, "title": title, "starts_at": starts})
        )["id"]
        product = {"sku": f"oil-{mark}", "name": f"菜籽油 {mark}", "list_fen": LIST_FEN, "stock": PIECES}
        made = await brand.do("POST", "/v1/products", product)
        for act in ("open", "start"):
            await brand.do("POST", f"/v1/shows/{show}/{act}", {})
        flash = {
            "product": made["id"],
            "kind": "flash",
            "flash_fen": FLASH_FEN,
            "quota": PIECES,
            "per_person": 1,
            "seconds": 3_600,
        }
        offer = await self._start_flash(show, flash)
        gift = {"title": "试吃装", "quota": GIFTS, "needs": "nothing"}
        claim = (await brand.do("POST", f"/v1/shows/{show}/benefits", gift))["id"]
        return show, offer, claim

    async def _start_flash(self, show: str, flash: dict[str, Any]) -> str:
        """Refused while money of the rounds before was found late: the host tries again until it is not."""
        async with asyncio.timeout(FLASH_WAIT_S):
            while True:
                answer = await self._clients.ask(
                    "POST", f"/v1/shows/{show}/offers", flash, token=self._brand.owner, key=uuid.uuid4().hex
                )
                if answer.ok:
                    return str(answer.body["id"])
                if answer.code != "payments_down":
                    raise LoadError(f"the flash sale was not started: {answer.body}")
                await asyncio.sleep(0.5)

    async def _open_join(self, show: str) -> str:
        """As a host does it: told that there is one already, as the answer to the first try was lost, they look."""
        gift = {"title": "入会礼", "value_fen": 5_900, "quota": SEATS, "needs": "join", "seat_s": SEAT_S}
        answer = await self._clients.ask(
            "POST", f"/v1/shows/{show}/benefits", gift, token=self._brand.owner, key=uuid.uuid4().hex
        )
        if answer.ok:
            return str(answer.body["id"])
        if answer.code != "benefit_open":
            raise LoadError(f"the benefit for joining was not opened: {answer.body}")
        found = await self._brand.do("GET", f"/v1/shows/{show}/benefits", clients=self._clients)
        return next(str(each["id"]) for each in found["items"] if each["needs"] == "join")

    async def _open_later(self, show: str, join: asyncio.Future[str]) -> None:
        join.set_result(await self._open_join(show))

    def _buyer(self, show: str, one: Someone, door: int) -> Buyer:
        return Buyer(self._clients, show, one.member, one.token, door, self._brand.house.provider_url)

    async def _kill(self) -> None:
        """At the step that was drawn; what was killed is started again."""
        plan, house = self._plan, self._brand.house
        try:
            async with asyncio.timeout(STEP_WAIT_S):
                await self._steps.until(plan.step)
        except TimeoutError:
            pass  # few steps in this one: killed when all is quiet
        await asyncio.sleep(plan.pause_ms / 1000)
        self._killed_at = self._steps.count
        for victim in plan.victims:
            house.kill(victim)
        await asyncio.sleep(plan.out_ms / 1000)
        house.restore()

    async def _ask_again(
        self, show: str, claimants: list[Claimant], benefit: str, joiners: list[Someone]
    ) -> None:
        """Everything is back: who was told a rank asks for it once more, at the other node."""
        won = [claimant for claimant in claimants if claimant.answers == ["won"]]
        await asyncio.gather(*(_again(claimant, benefit) for claimant in won))
        for claimant in won:
            if claimant.answers[-1] != "won":
                self._told.wrong.append(f"a claim was won, and asked again it was {claimant.answers[-1]}")
        ranked = {member for _, member in self._told.ranks}
        await asyncio.gather(
            *(self._buyer(show, one, 1).look_at_won() for one in joiners if one.member in ranked)
        )


async def _again(claimant: Claimant, benefit: str) -> None:
    await claimant.move()
    await claimant.claim(benefit)


async def _after(wait_ms: int, act: Any, *given: Any) -> None:
    await asyncio.sleep(wait_ms / 1000)
    await act(*given)
