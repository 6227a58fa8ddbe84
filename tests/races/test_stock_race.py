"""More buyers than pieces, all at once over two operating-system processes: exactly as many as there are."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from commerce.bundles import BundlePart
from commerce.offers import Offer
from commerce.products import Product
from live.database import Database
from live.engines import Addresses
from live.lua import Scripts
from membership.actor import Actor, ShowId
from tests.commerce.shop_stage import Shop
from tests.commerce.test_stock import books_agree, now, presale
from tests.conftest import MakeShow
from tests.races.buyers import Answer, Paid, Task, Try

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
PIECES = 20
BUYERS = 50 + PIECES


@pytest.fixture
def shop(redis: Redis, scripts: Scripts, database: Database) -> Shop:
    return Shop(redis, scripts, database)


async def tries(shop: Shop, show: ShowId, offer: Offer, buyers: list[Actor]) -> list[Try]:
    found = []
    for buyer in buyers:
        assert buyer.member is not None
        quote = await shop.quote(buyer, show, (offer, 1))
        found.append(Try(buyer.member, quote.token, shop._homes[buyer.id]))
    return found


class Race:
    """Two processes that order together, and then pay together."""

    def __init__(self, engines: Addresses, database_url: str) -> None:
        self._arguments = ["-m", "tests.races.buyers", engines.redis_url, database_url]
        self._processes: list[asyncio.subprocess.Process] = []

    async def order(self, show: ShowId, wanted: list[Try], **more: Any) -> list[Answer]:
        for half in (wanted[::2], wanted[1::2]):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._arguments,
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 24,
            )
            self._processes.append(process)
            self._say(process, msgspec.json.encode(Task(show, half, **more)))
        assert await self._answers(60) == [b"ready\n"] * 2
        answers: list[Answer] = await self._go(list[Answer])
        return answers

    async def pay(self) -> list[Paid]:
        paid: list[Paid] = await self._go(list[Paid])
        return paid

    async def end(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        try:
            for process in self._processes:
                assert await asyncio.wait_for(process.wait(), 30) == 0
        finally:
            for process in self._processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()

    def _say(self, process: asyncio.subprocess.Process, line: bytes) -> None:
        assert process.stdin is not None
        process.stdin.write(line + b"\n")

    async def _answers(self, within_s: float) -> list[bytes]:
        found = []
        for process in self._processes:
            assert process.stdout is not None
            found.append(await asyncio.wait_for(process.stdout.readline(), within_s))
        return found

    async def _go(self, shape: Any) -> Any:
        for process in self._processes:
            self._say(process, b"go")
        return [each for line in await self._answers(120) for each in msgspec.json.decode(line, type=shape)]


async def sell_out(
    shop: Shop, show: ShowId, product: Product, engines: Addresses, url: str
) -> tuple[list[Answer], list[Paid]]:
    pin = await shop.open(show, product)
    buyers = await shop.buyers(BUYERS)
    race = Race(engines, url)
    try:
        answers = await race.order(show, await tries(shop, show, pin, buyers))
        return answers, await race.pay()
    finally:
        await race.end()


@pytest.mark.parametrize("mode", ["on_order", "presale"])
async def test_of_fifty_more_orders_than_pieces_exactly_the_pieces_are_placed(
    shop: Shop, make_show: MakeShow, engines: Addresses, fresh_database_url: str, mode: str
) -> None:
    product = await (shop.product(stock=PIECES) if mode == "on_order" else presale(shop, PIECES))
    answers, paid = await sell_out(shop, await make_show(), product, engines, fresh_database_url)
    words = Counter(answer.word for answer in answers)
    assert words["placed"] == PIECES
    assert set(words) <= {"placed", "reserved_out"}
    assert words.total() == BUYERS
    assert Counter(each.outcome for each in paid) == {"accepted": PIECES}
    assert (await now(shop, product)).free == 0
    await books_agree(shop)


async def test_paid_first_exactly_the_pieces_are_kept_and_the_others_have_their_money_back(
    shop: Shop, make_show: MakeShow, engines: Addresses, fresh_database_url: str
) -> None:
    product = await shop.product(stock=PIECES, stock_mode="on_payment")
    answers, paid = await sell_out(shop, await make_show(), product, engines, fresh_database_url)
    assert Counter(answer.word for answer in answers) == {"placed": BUYERS}
    outcomes = Counter((each.outcome, each.reason) for each in paid)
    assert outcomes == {("accepted", None): PIECES, ("returned", "no_stock"): BUYERS - PIECES}
    assert await shop.stock(product) == 0
    states = await shop.rows("SELECT state, count(*) AS orders FROM orders GROUP BY state")
    assert {row["state"]: row["orders"] for row in states} == {"paid": PIECES, "expired": BUYERS - PIECES}

    kept = {each.order for each in paid if each.outcome == "accepted"}
    lost = [answer for answer in answers if answer.order not in kept]
    while await shop.payments.return_due(shop.database):
        pass
    returned = Counter((ref.removeprefix("ref-"), fen) for ref, fen in shop.provider.returns.values())
    assert returned == {(answer.order, answer.total_fen): 1 for answer in lost}
    for answer in lost:
        actor = Actor(kind="viewer", id=answer.member)
        notes = [note for note in await shop.notes(actor) if note["type"] == "notice"]
        assert [(note["code"], note["reason"]) for note in notes] == [("payment_returning", "no_stock")]
    await books_agree(shop)


async def test_bundles_at_once_leave_no_part_below_nothing(
    shop: Shop, make_show: MakeShow, engines: Addresses, fresh_database_url: str
) -> None:
    """Two of A, fifty of B, three bundles at once: two pass, A 0, B 48."""
    show, a, b = await make_show(), await shop.product(stock=2), await shop.product(stock=50)
    parts = tuple(BundlePart(product=each.id) for each in (a, b))
    pin = await shop.open(show, await shop.product(name="秋收礼盒", stock=0, parts=parts))
    race = Race(engines, fresh_database_url)
    try:
        answers = await race.order(show, await tries(shop, show, pin, await shop.buyers(3)))
    finally:
        await race.end()
    assert Counter(answer.word for answer in answers) == {"placed": 2, "reserved_out": 1}
    assert (await shop.stock(a), await shop.stock(b)) == (0, 48)
    await books_agree(shop)


async def test_without_the_condition_the_same_race_sells_too_many(
    shop: Shop, make_show: MakeShow, engines: Addresses, fresh_database_url: str
) -> None:
    """Shows that the races above are such: if this fails, they may prove nothing."""
    show, rice = await make_show(), await shop.product(stock=3)
    pin = await shop.open(show, rice)
    race = Race(engines, fresh_database_url)
    try:
        wanted = await tries(shop, show, pin, await shop.buyers(24))
        answers = await race.order(show, wanted, guarded=False)
    finally:
        await race.end()
    assert Counter(answer.word for answer in answers)["placed"] > 3
