"""One SQL transaction, opened by the outermost room and handed down. Domain code never commits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import DictRow

Connection = AsyncConnection[DictRow]
Step = Callable[[], Awaitable[Any]]


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
