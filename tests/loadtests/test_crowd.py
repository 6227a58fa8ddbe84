"""A small crowd at the sample brand's evening: comes, talks, votes, claims, joins and buys."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from live.brand import BUILDER, load
from loadtests.crowd import Crowd
from tests.live.serving import Served

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 40.0
WANTED = ("comments", "likes", "clicks", "ballots", "orders", "orders paid", "seats", "plans paid", "ranks")


async def on_air(served: Served, shortcut: str, show: str) -> None:
    parts = served.parts
    async with parts.database.transaction() as t:
        cue = next(cue for cue in await parts.cues.list(t.conn, show) if cue.shortcut == shortcut)
        await parts.cues.run(t, BUILDER, show, cue.id)


async def test_a_crowd_talks_votes_claims_joins_and_buys(served: Served) -> None:
    demo = await load(served.parts)
    async with served.parts.database.transaction() as t:
        await served.parts.shows.start(t, BUILDER, demo.show)
    crowd = Crowd(served.url, demo.show, 40, demo.crowd_key, seed=3)
    running = asyncio.create_task(crowd.run(None))
    try:
        await until(crowd, "likes")
        for shortcut in ("A", "B", "C", "D"):
            await on_air(served, shortcut, demo.show)
        for what in WANTED:
            await until(crowd, what)
        for person in crowd.people:
            await asyncio.wait_for(person.viewer.joined.wait(), WAIT_S)
        assert crowd.holes() == 0
        assert crowd.counts["failed acts"] == 0
        assert set(crowd.refusals) <= {"sold_out", "reserved_out", "closed", "rate_limited", "already_voted"}
        assert "40/40 viewers" in crowd.sentence()
    finally:
        await crowd.close()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
    async with served.parts.database.reading() as conn:
        found = await conn.execute("SELECT count(*) AS paid FROM orders WHERE state = 'paid'")
        row = await found.fetchone()
        assert row is not None
        assert row["paid"] >= crowd.counts["orders paid"] + crowd.counts["plans paid"]
        ranks = await (await conn.execute("SELECT rank FROM benefit_claims ORDER BY rank")).fetchall()
        assert [row["rank"] for row in ranks] == list(range(1, len(ranks) + 1))


async def until(crowd: Crowd, counted: str) -> None:
    end = time.monotonic() + WAIT_S
    while not crowd.counts[counted]:
        assert time.monotonic() < end, f"no {counted}: {crowd.sentence()}"
        await asyncio.sleep(0.05)


async def test_a_crowd_without_a_key_is_all_guests(served: Served) -> None:
    show = await served.make_show()
    crowd = Crowd(served.url, show, 4, None, seed=1)
    assert await crowd.feed(2) == []
    await crowd.close()


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtests.crowd", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_explains_itself_with_an_example() -> None:
    done = command("--help")
    assert done.returncode == 0
    assert "example: COMPANION_CROWD_KEY=" in done.stdout


def test_a_service_that_does_not_answer_is_one_line() -> None:
    done = command("--show", "k7m2p3q4r5", "--url", "http://127.0.0.1:1", "--viewers", "2")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is the service at http://127.0.0.1:1" in done.stderr


def test_too_many_viewers_are_refused_with_what_to_do() -> None:
    done = command("--show", "k7m2p3q4r5", "--viewers", "90000")
    assert done.returncode == 2
    assert "locust workers" in done.stderr
