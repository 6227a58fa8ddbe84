"""The queue of jobs that run once, kept in PostgreSQL: a job exists exactly when what caused it is committed."""

from __future__ import annotations

from typing import Final

import procrastinate
from procrastinate import PsycopgConnector

from membership.actor import ShowId
from membership.transaction import Transaction

AFTER_SHOW: Final = "after_show"
AFTER_SHOW_WAIT_S: Final = 3  # the nodes have written who watched until when


def make_queue(database_url: str) -> procrastinate.App:
    """The queue of one-off jobs. `open_async` before use."""
    return procrastinate.App(connector=PsycopgConnector(conninfo=database_url, min_size=1, max_size=4))


class Deferred:
    """Defers jobs inside our own transaction."""

    def __init__(self, queue: procrastinate.App) -> None:
        self._queue = queue

    async def after_show(self, t: Transaction, show: ShowId) -> None:
        await self._queue.configure_task(
            AFTER_SHOW,
            connection=t.conn,
            schedule_in={"seconds": AFTER_SHOW_WAIT_S},
            lock=f"{AFTER_SHOW}:{show}",
        ).defer_async(show=show)
