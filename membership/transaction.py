"""One SQL transaction, opened by the outermost room and handed down. Domain code never commits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from psycopg import AsyncConnection
from psycopg.rows import DictRow

Connection = AsyncConnection[DictRow]
Step = Callable[[], Awaitable[Any]]

# Every name that is locked by itself (advisory), and the seed it is hashed with: the same in every process and
# release. In which order they are taken is said in docs/decisions/locks.md.
LOCKS: Final[Mapping[str, int]] = {
    "payment": 0,  # …:provider:reference
    "order": 0,  # …:member:key
    "stock": 0,  # …:sender:key
    "incident": 9,
    "show": 8,  # …:show
    "orders": 0,  # …:member
    "household": 0,  # …:address
    "budgets": 9,
    "approvals": 0,  # …:person
    "points": 0,  # …:member
    "phone": 0,  # …:phone
    "freight": 0,
    "rebate": 9,
    "tags": 0,
    "sweep": 8,  # …:show
    "ensure": 9,  # …:show
    "brand": 0,
}


class Transaction:
    """The connection, and what is to happen when it has ended.

    `after_commit` steps tell the world what is now durable (the second, idempotent script);
    `on_rollback` steps give back what the first script took. Both run once, in order. A crash
    between commit and the steps is settled by a job that finds the rows not yet announced.
    """

    __slots__ = ("committed", "conn", "rolled_back")

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.committed: list[Step] = []
        self.rolled_back: list[Step] = []

    def after_commit(self, step: Step) -> None:
        self.committed.append(step)

    def on_rollback(self, step: Step) -> None:
        self.rolled_back.append(step)


async def lock(conn: Connection, name: str) -> None:
    """Wait until the name is nobody else's; it is this transaction's until it ends."""
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, %s))", _key(name))


async def lock_shared(conn: Connection, name: str) -> None:
    """The same beside others who share it; who locks it waits for all of them."""
    await conn.execute("SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, %s))", _key(name))


async def try_lock(conn: Connection, name: str) -> bool:
    """The same without waiting: False when it is another's."""
    found = await conn.execute(
        "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, %s)) AS mine", _key(name)
    )
    row = await found.fetchone()
    return row is not None and bool(row["mine"])


def _key(name: str) -> tuple[str, int]:
    return name, LOCKS[name.partition(":")[0]]
