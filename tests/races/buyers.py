"""One server process of a race for stock: its own clients, and buyers who all order, then all pay, at once.

Run as `python -m tests.races.buyers <redis url> <database url>`. The first line on stdin says what to do; it
answers `ready`, waits for a line, places every order and writes the answers; with a further line it pays what
was placed and writes what became of the money.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

from commerce.messages import PlaceOrder
from commerce.orders import Placed
from commerce.pieces import Pieces
from live.database import Database, make_pool, open_redis
from live.lua import Scripts
from membership.actor import MemberId, OrderId, ShowId, new_id
from membership.refusal import Refusal
from tests.commerce.shop_stage import Shop

READERS = 6  # who have read before the first writes, where the guard is off


class Try(msgspec.Struct):
    member: MemberId
    quote: str
    address: str


class Task(msgspec.Struct):
    show: ShowId
    tries: list[Try]
    guarded: bool = True


class Answer(msgspec.Struct):
    member: MemberId
    word: str  # 'placed', or the refusal's
    order: OrderId | None = None
    total_fen: int = 0


class Paid(msgspec.Struct):
    order: OrderId
    outcome: str
    reason: str | None


async def place_all(shop: Shop, task: Task) -> list[Answer]:
    async def one(wanted: Try) -> Answer:
        command = PlaceOrder(id=1, key=new_id(), quote=wanted.quote, address=wanted.address)
        try:
            async with shop.tx() as t:
                actor = await shop.members.actor(t.conn, wanted.member)
                placed: Placed = await shop.orders.place(t, actor, task.show, command)
        except Refusal as refusal:
            return Answer(wanted.member, refusal.word)
        return Answer(wanted.member, "placed", placed.order, placed.total_fen)

    return await asyncio.gather(*(one(wanted) for wanted in task.tries))


async def pay_all(shop: Shop, answers: list[Answer]) -> list[Paid]:
    async def one(answer: Answer) -> Paid:
        assert answer.order is not None
        async with shop.tx() as t:
            found = await shop.payments.record(
                t,
                "sandbox",
                f"ref-{answer.order}",
                answer.order,
                answer.total_fen,
                "payer",
                datetime.now(UTC),
            )
        return Paid(answer.order, found.outcome, found.reason)

    return await asyncio.gather(*(one(answer) for answer in answers if answer.order is not None))


def read_then_write() -> None:
    """The same without the condition: the stock is read, looked at and written back."""
    read = 0
    several_have_read = asyncio.Event()

    async def take_one(self: Pieces, conn: Any, product: str, source: str, quantity: int) -> bool:
        nonlocal read
        row = await (await conn.execute("SELECT stock FROM products WHERE id = %s", [product])).fetchone()
        read += 1
        if read >= READERS:
            several_have_read.set()
        await several_have_read.wait()
        if row["stock"] < quantity:
            return False
        left = row["stock"] - quantity
        await conn.execute("UPDATE products SET stock = %s WHERE id = %s", [left, product])
        return True

    Pieces._take_one = take_one  # type: ignore[method-assign]


def say(answer: object) -> None:
    sys.stdout.buffer.write((b"ready" if answer is None else msgspec.json.encode(answer)) + b"\n")
    sys.stdout.buffer.flush()


async def main(redis_url: str, database_url: str) -> None:
    task = msgspec.json.decode(sys.stdin.readline(), type=Task)
    redis = open_redis(redis_url)
    async with make_pool(database_url, size_max=10) as pool:
        database = Database(pool)
        shop = Shop(redis, Scripts(redis), database)
        if not task.guarded:
            read_then_write()
        await redis.ping()
        say(None)
        sys.stdin.readline()
        answers = await place_all(shop, task)
        say(answers)
        if sys.stdin.readline():
            say(await pay_all(shop, answers))
        await database.settle()
    await redis.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
