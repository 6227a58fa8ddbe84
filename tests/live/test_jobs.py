"""Work without a socket: rounds that may run anywhere at once, and what follows a show."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from procrastinate.jobs import Job

from live import jobs
from live.jobs import Rounds, UntilDone, add_tasks, after_show
from live.queue import AFTER_SHOW
from live.recorder import Recorder
from membership.actor import MemberId, ShowId
from membership.behaviour import record_of
from membership.refusal import Unavailable
from tests.live.serving import Served
from tests.live.test_road import OWNER, on_offer, rice

pytestmark = pytest.mark.anyio


async def tags_of(served: Served, member: str) -> list[Any]:
    async with served.parts.database.reading() as conn:
        return list(await served.parts.tags.of_member(conn, MemberId(member)))


async def end(served: Served, show: ShowId) -> None:
    async with served.parts.database.transaction() as t:
        await served.parts.shows.end(t, OWNER, show)


async def test_after_a_show_every_member_who_did_something_has_tags_with_evidence_and_again_changes_nothing(
    served: Served,
) -> None:
    """Within 60 s of the end, by the queue's own worker; a guest has none."""
    show = await served.make_show()
    product = await rice(served, name="有机大米 5kg", tag_name="有机大米")
    await on_offer(served, show, product)
    fan, lurker = await served.member("王小明"), await served.member("李四")
    seat, still, guest = (
        await served.enter(show, fan),
        await served.enter(show, lurker),
        await served.enter(show),
    )
    assert (await seat.ask("product.view", product=product))["type"] == "ok"
    now = time.time_ns() // 1_000_000
    clicks = [record_of(fan, "click", f"product:{product}", value=1, at=now + 3_000 * n) for n in (1, 2)]
    await served.parts.behaviour.record(show, [click for click in clicks if click is not None])
    assert (await seat.ask("comment.post", key="k", text="有机大米煮粥香吗?"))["type"] == "ok"
    await still.ask("reaction.send", kind="like", count=1)
    await guest.ask("product.view", product=product)
    recorder, queue = Recorder(served.parts), served.parts.queue
    add_tasks(queue, served.parts, recorder)
    await end(served, show)
    await seat.event("show.ended")
    before = asyncio.get_running_loop().time()
    worker = asyncio.create_task(queue.run_worker_async(install_signal_handlers=False, concurrency=1))

    async def tagged() -> None:
        while not await tags_of(served, fan.id):
            await asyncio.sleep(0.2)

    await asyncio.wait_for(tagged(), 60)
    print(f"tags {asyncio.get_running_loop().time() - before:.1f} s after the end")
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    tag = (await tags_of(served, fan.id))[0]
    assert tag.name == "对有机大米感兴趣"
    assert tag.score > 0
    assert tag.rule
    assert len(tag.evidence) >= 4
    assert {e.kind for e in tag.evidence} >= {"click", "comment"}
    assert tag.strength == "strong"
    first = await tags_of(served, fan.id)
    async with served.parts.database.transaction() as t:
        summary = await served.parts.tags.derive(t, show)
    assert (summary.added, summary.changed, summary.dropped) == (0, 0, 0)
    assert await tags_of(served, fan.id) == first
    async with served.http(await served.staff()) as http:
        listed = await http.get(f"/v1/shows/{show}/tags")
        assert "对有机大米感兴趣" in listed.text
        report = (await http.get(f"/v1/shows/{show}/report")).json()
    assert report["comments"] >= 1 or "comments" not in report


async def test_the_record_has_every_entry_once_however_often_it_is_made(served: Served) -> None:
    show = await served.make_show()
    recorder = Recorder(served.parts)
    for number in range(5):
        await served.parts.comments.post(OWNER, show, f"第 {number} 句")
    await asyncio.gather(*(recorder.record(show) for _ in range(4)))
    await served.parts.comments.post(OWNER, show, "最后一句")
    await recorder.record(show)
    await recorder.record(show)
    async with served.parts.database.reading() as conn:
        rows = await (
            await conn.execute(
                "SELECT seq, event FROM show_log WHERE show_id = %s AND event->>'type' = 'comment.posted'"
                " ORDER BY seq",
                [show],
            )
        ).fetchall()
    assert [row["event"]["text"] for row in rows] == [*(f"第 {n} 句" for n in range(5)), "最后一句"]


async def test_a_reborn_log_is_recorded_under_its_new_epoch(served: Served) -> None:
    show = await served.make_show()
    recorder = Recorder(served.parts)
    await served.parts.comments.post(OWNER, show, "旧的一句")
    await recorder.record(show)
    redis = served.parts.redis
    await redis.delete(*[key async for key in redis.scan_iter(f"*{show}*")])
    assert await recorder.record(show) == 0
    await served.parts.shows.agree(show)
    await served.parts.comments.post(OWNER, show, "新的一句")
    await recorder.record(show)
    async with served.parts.database.reading() as conn:
        rows = await (
            await conn.execute(
                "SELECT DISTINCT epoch FROM show_log"
                " WHERE show_id = %s AND event->>'type' = 'comment.posted'",
                [show],
            )
        ).fetchall()
    assert len(rows) == 2


async def test_a_trial_that_runs_out_changes_the_class_of_its_open_socket(served: Served) -> None:
    show = await served.make_show()
    member = await served.member("王小明", plan=True)
    seat = await served.enter(show, member)
    assert seat.welcome["you"]["kind"] == "plan"
    async with served.parts.database.transaction() as t:
        await t.conn.execute(
            "UPDATE plan_terms SET starts_at = starts_at - interval '8 days', ends_at = clock_timestamp(),"
            " anchor_at = anchor_at - interval '8 days' WHERE member_id = %s",
            [member.id],
        )
    rounds = Rounds(served.parts, Recorder(served.parts))
    await rounds._lapse()
    assert (await seat.event("you"))["data"]["kind"] == "registered"


async def test_the_rounds_run_in_two_processes_at_once_and_a_failing_one_does_not_stop_the_others(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.make_show()
    one, two = Rounds(served.parts, Recorder(served.parts)), Rounds(served.parts, Recorder(served.parts))
    failed = asyncio.Event()

    async def fails() -> int:
        failed.set()
        raise Unavailable

    monkeypatch.setattr(one, "_settle_orders", fails)
    running = [asyncio.create_task(rounds.run()) for rounds in (one, two)]
    await asyncio.wait_for(failed.wait(), 10)
    for rounds in (one, two):
        rounds.stop()
    await asyncio.wait_for(asyncio.gather(*running), 10)


async def test_a_poll_that_cannot_be_closed_holds_up_no_other(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    async def due(conn: Any) -> list[tuple[str, str]]:
        return [("show", "first"), ("show", "second"), ("show", "third")]

    async def close(t: Any, actor: Any, show: str, poll: str) -> None:
        if poll == "first":
            raise Unavailable
        if poll == "second":
            raise ValueError("a fault of ours")
        closed.append(poll)

    monkeypatch.setattr(served.parts.polls, "due", due)
    monkeypatch.setattr(served.parts.polls, "close", close)
    await Rounds(served.parts, Recorder(served.parts))._close_polls()
    assert closed == ["third"]


async def test_an_order_that_cannot_be_ended_holds_up_no_other(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    async def due(conn: Any) -> list[str]:
        return ["first", "second", "third"]

    async def expire_due(t: Any, *, only: str | None = None) -> int:
        if only is None or only == "second":
            raise ValueError("a row that cannot be ended")
        ended.append(only)
        return 1

    monkeypatch.setattr(served.parts.orders, "due", due)
    monkeypatch.setattr(served.parts.orders, "expire_due", expire_due)
    await Rounds(served.parts, Recorder(served.parts))._expire_orders()
    assert ended == ["first", "third"]


async def test_a_show_that_cannot_be_recorded_holds_up_no_other(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows = [await served.make_show(), await served.make_show()]
    recorder = Recorder(served.parts)
    recorded: list[ShowId] = []

    async def record(show: ShowId) -> int:
        recorded.append(show)
        raise ValueError("an entry that cannot be read")

    monkeypatch.setattr(recorder, "record", record)
    await Rounds(served.parts, recorder)._record()
    assert set(shows) <= set(recorded)


async def test_what_comes_after_the_end_is_recorded_for_an_hour(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    on, first, last, old = [await served.make_show() for _ in range(4)]
    for show in (first, last, old):
        await end(served, show)
    async with served.parts.database.transaction() as t:
        await t.conn.execute("UPDATE shows SET ended_at = ended_at - interval '1 min' WHERE state = 'ended'")
        await t.conn.execute("UPDATE shows SET ended_at = now() - interval '2 h' WHERE id = %s", [old])
    recorder = Recorder(served.parts)
    recorded: list[ShowId] = []

    async def record(show: ShowId) -> int:
        recorded.append(show)
        raise ValueError("an entry that cannot be read")

    monkeypatch.setattr(recorder, "record", record)
    rounds = Rounds(served.parts, recorder)
    await rounds._follow_ended()
    assert [show for show in recorded if show in (on, first, last, old)] == [last, first]
    recorded.clear()
    await rounds._record()
    assert on in recorded and not {first, last, old} & {*recorded}


async def test_everybody_who_lapsed_is_told_however_many(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = Rounds(served.parts, Recorder(served.parts))
    monkeypatch.setattr(jobs, "ENDING_MAX", 2)
    terms, told = [SimpleNamespace(member=f"member {n}") for n in range(5)], []

    async def ending(conn: Any, after: datetime, until: datetime, *, beyond: Any) -> list[Any]:
        first = terms.index(beyond) + 1 if beyond else 0
        return terms[first : first + 2]

    async def facts_changed(member: str) -> None:
        told.append(member)

    monkeypatch.setattr(served.parts.plans, "ending", ending)
    monkeypatch.setattr(served.parts.notices, "facts_changed", facts_changed)
    await rounds._lapse()
    assert told == [term.member for term in terms]


def test_what_follows_a_show_is_tried_until_it_is_done() -> None:
    """Redis may be away for longer than any number of tries."""
    waits = [
        (decision.retry_at - datetime.now(UTC)).total_seconds()
        for attempts in (0, 5, 11, 10_000)
        if (decision := UntilDone().get_retry_decision(exception=Unavailable(), job=_job(attempts))).retry_at
    ]
    assert [round(wait) for wait in waits] == [5, 30, 60, 60]


def _job(attempts: int) -> Job:
    return Job(id=1, queue="default", lock=None, queueing_lock=None, task_name=AFTER_SHOW, attempts=attempts)


async def test_who_lapsed_is_told_by_the_clock_of_the_database(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose clock is ahead would tell too early, and then never again."""
    rounds = Rounds(served.parts, Recorder(served.parts))

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=1)

    monkeypatch.setattr("live.jobs.datetime", Ahead)
    await rounds._lapse()
    assert rounds._lapsed_until <= datetime.now(UTC)


async def test_the_queues_worker_is_started_anew_and_stalled_jobs_are_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "WORKER_AGAIN_S", 0.01)
    monkeypatch.setattr(jobs, "STALLED_S", 0.01)
    stop = asyncio.Event()
    calls = {"worker": 0, "stalled": 0}

    class Queue:
        job_manager: Any = None

        async def run_worker_async(self, **settings: Any) -> None:
            calls["worker"] += 1
            raise OSError("PostgreSQL went away")

        async def get_stalled_jobs(self) -> list[Any]:
            calls["stalled"] += 1
            raise OSError("PostgreSQL went away")

    queue: Any = Queue()
    queue.job_manager = queue
    running = [asyncio.create_task(act(queue, stop)) for act in (jobs._work_on, jobs._retry_stalled)]
    async with asyncio.timeout(5):
        while min(calls.values()) < 3:
            await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*running)


async def test_waiting_rooms_open_half_an_hour_before(served: Served) -> None:
    show = await served.make_show("scheduled")
    async with served.parts.database.transaction() as t:
        await t.conn.execute(
            "UPDATE shows SET starts_at = now() + interval '29 minutes' WHERE id = %s", [show]
        )
    await Rounds(served.parts, Recorder(served.parts))._schedule()
    async with served.parts.database.reading() as conn:
        assert (await served.parts.shows.get(conn, show)).status == "waiting"


async def test_after_show_is_safe_to_run_again(served: Served) -> None:
    show = await served.make_show()
    await served.parts.comments.post(OWNER, show, "一句")
    await end(served, show)
    recorder = Recorder(served.parts)
    await after_show(served.parts, recorder, show)
    async with served.parts.database.reading() as conn:
        first = await served.parts.report.get(conn, show)
    await after_show(served.parts, recorder, show)
    async with served.parts.database.reading() as conn:
        assert await served.parts.report.get(conn, show) == first
    assert first is not None
