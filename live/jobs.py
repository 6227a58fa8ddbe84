"""Work without a socket: what is due is ended, what was committed is announced, what was done is learnt from.

Two kinds. What must happen within seconds runs on a clock here; each act is idempotent and takes its rows
under a lock, so that any number of processes may run. What happens once (after a show) is a job of the
queue, deferred in the transaction that caused it and retried until it is done.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import procrastinate
from procrastinate import BaseRetryStrategy, RetryDecision
from procrastinate.jobs import Job

from live.app import build_parts, close_parts
from live.metrics import Metrics
from live.parts import Parts
from live.queue import AFTER_SHOW
from live.recorder import Recorder
from live.settings import Settings
from membership.actor import Actor, ShowId
from membership.alone import alone
from membership.plans import ENDING_MAX, Term
from membership.refusal import Refusal

log = logging.getLogger("companion.jobs")

DUE_S: Final = 1.0
RECORD_S: Final = 1.0
SETTLE_S: Final = 2.0
LAPSE_BACK: Final = timedelta(minutes=10)  # what ran out while no job ran
MONEY_S: Final = 5.0
REFRESH_S: Final = 5.0
ENDED_S: Final = 10.0
CLOSED_LATELY_S: Final = 600  # its last orders are still paid, or run out
SCHEDULE_S: Final = 10.0
FADE_S: Final = 3_600.0
STALLED_S: Final = 60.0
AGAIN_S: Final = 5
AGAIN_MAX_S: Final = 60
WORKER_AGAIN_S: Final = 5.0

JOB = Actor(kind="job", id="jobs", name="jobs")


class Rounds:
    """The acts on a clock."""

    def __init__(self, parts: Parts, recorder: Recorder) -> None:
        self._parts = parts
        self._recorder = recorder
        self._stop = asyncio.Event()
        self._lapsed_until = datetime.now(UTC) - LAPSE_BACK

    async def run(self) -> None:
        acts: list[tuple[float, Callable[[], Awaitable[Any]]]] = [
            (DUE_S, self._expire_orders),
            (DUE_S, self._close_polls),
            (DUE_S, self._close_offers),
            (DUE_S, self._close_benefits),
            (DUE_S, self._tend),
            (RECORD_S, self._record),
            (SETTLE_S, self._settle_polls),
            (SETTLE_S, self._settle_offers),
            (SETTLE_S, self._settle_orders),
            (SETTLE_S, self._settle_incident),
            (REFRESH_S, self._meter),
            (DUE_S, self._lapse),
            (MONEY_S, self._ask_for_money),
            (MONEY_S, self._return_money),
            (REFRESH_S, self._refresh),
            (ENDED_S, self._follow_ended),
            (SCHEDULE_S, self._schedule),
            (FADE_S, self._fade),
            (FADE_S, self._expire_coupons),
        ]
        async with asyncio.TaskGroup() as group:
            for every_s, act in acts:
                group.create_task(self._repeat(every_s, act), name=act.__name__)

    def stop(self) -> None:
        self._stop.set()

    async def _repeat(self, every_s: float, act: Callable[[], Awaitable[Any]]) -> None:
        while not self._stop.is_set():
            try:
                await act()
            except Refusal as refusal:
                log.warning("%s: %s", act.__name__, refusal)
            except Exception:
                log.exception("%s failed; it is tried again", act.__name__)
            try:
                await asyncio.wait_for(self._stop.wait(), every_s)
            except TimeoutError:
                continue

    async def _expire_orders(self) -> None:
        """Holds that ran out: all at once, and where one of them cannot be ended, one by one."""
        orders, database = self._parts.orders, self._parts.database
        try:
            async with database.transaction() as t:
                await orders.expire_due(t)
        except Exception as error:
            log.warning("ending orders one by one: %s", error)
            async with database.reading() as conn:
                due = await orders.due(conn)
            for order in due:
                with _alone(f"ending order {order}"):
                    async with database.transaction() as t:
                        await orders.expire_due(t, only=order)

    async def _close_polls(self) -> None:
        async with self._parts.database.reading() as conn:
            polls = await self._parts.polls.due(conn)
        for show, poll in polls:
            with _alone(f"closing poll {poll}"):
                async with self._parts.database.transaction() as t:
                    await self._parts.polls.close(t, JOB, show, poll)

    async def _close_offers(self) -> None:
        async with self._parts.database.transaction() as t:
            await self._parts.offers.close_due(t)

    async def _close_benefits(self) -> None:
        async with self._parts.database.transaction() as t:
            await self._parts.benefits.close_due(t)

    async def _tend(self) -> None:
        """Benefits: Redis in agreement with the books, lapsed seats taken back, the queue served."""
        async with self._parts.database.reading() as conn:
            shows = await self._parts.benefits.to_tend(conn)
        for show in shows:
            with _alone(f"tending {show}"):
                async with self._parts.database.transaction() as t:
                    await self._parts.benefits.agree(t, show)
                await self._parts.seats.sweep(show)
                await self._parts.claims.settle(show)

    async def _record(self) -> None:
        """Log and behaviour to PostgreSQL, for every show that is on."""
        for show in await self._recorder.moving():
            with _alone(f"recording {show}"):
                await self._recorder.record(show)

    # What a crash left between a script and a commit, or a commit and its announcement.

    async def _settle_polls(self) -> None:
        async with self._parts.database.reading() as conn:
            await self._parts.polls.settle(conn)

    async def _settle_offers(self) -> None:
        async with self._parts.database.transaction() as t:
            await self._parts.offers.settle(t)

    async def _settle_orders(self) -> None:
        await self._parts.orders.settle_unannounced(self._parts.database, closed_within_s=CLOSED_LATELY_S)

    async def _settle_incident(self) -> None:
        """Shows that a crash, or a show's new keys, left behind the switch for money."""
        async with self._parts.database.reading() as conn:
            await self._parts.incidents.agree(conn)

    async def _meter(self) -> None:
        """What a show costs, on the screens of staff."""
        for show in await self._recorder.moving():
            await self._meter_show(show)

    async def _meter_show(self, show: ShowId) -> None:
        with _alone(f"metering {show}"):
            async with self._parts.database.reading() as conn:
                await self._parts.meter.show(conn, show)

    async def _follow_ended(self) -> None:
        """What comes after the end: orders paid late, money sent back. Seldom, as ended shows add up."""
        await self._parts.orders.settle_unannounced(self._parts.database)
        for show in await self._recorder.ended_lately():
            with _alone(f"recording {show}"):
                await self._recorder.record(show)
            await self._meter_show(show)

    async def _ask_for_money(self) -> None:
        """Payments whose webhook did not come are asked for."""
        await self._parts.payments.ask_due(self._parts.database)

    async def _return_money(self) -> None:
        """What is to go back goes back."""
        await self._parts.payments.return_due(self._parts.database)

    async def _refresh(self) -> None:
        """Prices that the clock changes, catalogue changes and stock, brought to open pages."""
        for show in await self._recorder.moving():
            with _alone(f"refreshing {show}"):
                async with self._parts.database.reading() as conn:
                    await self._parts.offers.refresh(conn, show)

    async def _fade(self) -> None:
        """Tags whose score has faded go."""
        async with self._parts.database.transaction() as t:
            await self._parts.tags.fade(t)

    async def _expire_coupons(self) -> None:
        """Coupons that ran out say so; none of them could be used since."""
        async with self._parts.database.transaction() as t:
            await self._parts.coupons.expire_due(t)

    async def _lapse(self) -> None:
        """A trial or plan ran out: the member's sockets change class."""
        async with self._parts.database.reading() as conn:
            # The database's clock: by it the nodes will read the facts that this tells them to read.
            row = await (await conn.execute("SELECT clock_timestamp() AS now")).fetchone()
            assert row is not None
            until: datetime = row["now"]
        told: Term | None = None
        while True:
            async with self._parts.database.reading() as conn:
                lapsed = await self._parts.plans.ending(conn, self._lapsed_until, until, beyond=told)
            for term in lapsed:
                await self._parts.notices.facts_changed(term.member)
            if len(lapsed) < ENDING_MAX:
                break
            told = lapsed[-1]
        self._lapsed_until = until

    async def _schedule(self) -> None:
        """Waiting rooms open 30 minutes before; show keys that were lost are rebuilt."""
        await self._parts.shows.open_due(self._parts.database, JOB)


def _alone(what: str) -> AbstractContextManager[None]:
    return alone(what, log)


async def after_show(parts: Parts, recorder: Recorder, show: ShowId) -> None:
    """Everything recorded, tags derived, the end card built. Running it again gives the same."""
    await recorder.record(show)
    async with parts.database.transaction() as t:
        await parts.tags.derive(t, show)
    async with parts.database.transaction() as t:
        await parts.report.build(t, show)


class UntilDone(BaseRetryStrategy):
    """Tried again for ever, at most AGAIN_MAX_S apart: the store may be away for longer than any number of tries."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision:
        return RetryDecision(retry_in={"seconds": min(AGAIN_S * (job.attempts + 1), AGAIN_MAX_S)})


def add_tasks(queue: procrastinate.App, parts: Parts, recorder: Recorder) -> None:
    async def run_after_show(show: str) -> None:
        await after_show(parts, recorder, ShowId(show))

    queue.task(name=AFTER_SHOW, retry=UntilDone())(run_after_show)


async def _work_on(queue: procrastinate.App, stop: asyncio.Event) -> None:
    """The queue's worker; one that ended (PostgreSQL was away) is started anew."""
    while not stop.is_set():
        with _alone("the worker of the queue"):
            await queue.run_worker_async(
                install_signal_handlers=False, concurrency=4, fetch_job_polling_interval=1.0
            )
        try:
            await asyncio.wait_for(stop.wait(), WORKER_AGAIN_S)
        except TimeoutError:
            continue


async def _retry_stalled(queue: procrastinate.App, stop: asyncio.Event) -> None:
    """A killed worker's job is not retried by itself."""
    while not stop.is_set():
        with _alone("looking for stalled jobs"):
            for job in await queue.job_manager.get_stalled_jobs():
                log.warning("job %s was left by a dead worker; running it again", job.id)
                await queue.job_manager.retry_job(job)
        try:
            await asyncio.wait_for(stop.wait(), STALLED_S)
        except TimeoutError:
            continue


async def run_jobs(settings: Settings, ready: Callable[[], Any] | None = None) -> None:
    """Work until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        parts = await build_parts(settings, Metrics())
        stack.push_async_callback(close_parts, parts)
        recorder = Recorder(parts)
        queue = parts.queue
        add_tasks(queue, parts, recorder)
        rounds = Rounds(parts, recorder)
        if ready is not None:
            ready()
        worker = asyncio.create_task(_work_on(queue, stop))
        stalled = asyncio.create_task(_retry_stalled(queue, stop))
        clock = asyncio.create_task(rounds.run())
        await stop.wait()
        rounds.stop()
        worker.cancel()
        await asyncio.gather(worker, stalled, clock, return_exceptions=True)
