"""One transaction with its steps, and one line of migrations."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolTimeout
from redis.exceptions import RedisError, TimeoutError

from live.database import (
    JOBS_SCHEMA,
    Database,
    Migration,
    SchemaError,
    find_migrations,
    make_pool,
    migrate,
    open_redis,
)
from live.engines import Addresses
from live.lua import Scripts
from membership.actor import ShowId
from membership.partition import show_key
from tests.conftest import copied

pytestmark = pytest.mark.anyio


@pytest.fixture
def fresh_database_url(engines: Addresses, template: str) -> Iterator[str]:
    """These tests change the schema: a copy of their own."""
    with copied(engines, template, "test_schema") as url:
        yield url


@pytest.fixture
def empty_database_url(engines: Addresses) -> Iterator[str]:
    """A database without any table."""
    with psycopg.connect(engines.database_url, autocommit=True) as conn:
        conn.execute("CREATE DATABASE untouched")
        yield engines.database_url.replace("/companion?", "/untouched?")
        conn.execute("DROP DATABASE untouched WITH (FORCE)")


class Steps:
    """Steps that write down that they ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def step(self, name: str, fail: bool = False) -> Any:
        async def run() -> None:
            self.ran.append(name)
            if fail:
                raise RuntimeError(name)

        return run


async def rooms(database: Database) -> int:
    async with database.reading() as conn:
        row = await (await conn.execute("SELECT count(*) AS n FROM rooms")).fetchone()
    assert row is not None
    return int(row["n"])


INSERT = "INSERT INTO rooms (id, slug, title) VALUES (gen_random_uuid(), %s, 'x')"


async def test_what_is_committed_is_there_when_its_steps_run(database: Database) -> None:
    steps = Steps()
    seen: list[int] = []

    async def look() -> None:
        seen.append(await rooms(database))

    async with database.transaction() as t:
        await t.conn.execute(INSERT, ["one"])
        t.after_commit(look)
        t.after_commit(steps.step("told"))
        t.on_rollback(steps.step("given back"))
        assert await rooms(database) == 0
    assert seen == [1]
    assert steps.ran == ["told"]


async def test_an_error_rolls_back_and_gives_back_in_order(database: Database) -> None:
    steps = Steps()
    with pytest.raises(LookupError):
        async with database.transaction() as t:
            await t.conn.execute(INSERT, ["one"])
            t.after_commit(steps.step("told"))
            t.on_rollback(steps.step("first"))
            t.on_rollback(steps.step("second"))
            raise LookupError
    assert await rooms(database) == 0
    assert steps.ran == ["first", "second"]


async def test_a_step_that_fails_neither_stops_the_others_nor_undoes_the_commit(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps()
    async with database.transaction() as t:
        await t.conn.execute(INSERT, ["one"])
        t.after_commit(steps.step("fails", fail=True))
        t.after_commit(steps.step("told"))
    assert steps.ran == ["fails", "told"]
    assert await rooms(database) == 1
    assert "a step after the transaction failed" in caplog.text


async def test_a_refused_commit_gives_back(database: Database) -> None:
    steps = Steps()
    async with database.transaction() as t:
        await t.conn.execute(
            "CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        )
    with pytest.raises(psycopg.errors.UniqueViolation):
        async with database.transaction() as t:
            t.on_rollback(steps.step("given back"))
            t.after_commit(steps.step("told"))
            await t.conn.execute("INSERT INTO late VALUES (1), (1)")
    assert steps.ran == ["given back"]


async def test_a_link_lost_in_the_commit_gives_nothing_back(
    database: Database, fresh_database_url: str
) -> None:
    steps = Steps()
    with pytest.raises(psycopg.OperationalError):
        async with database.transaction() as t:
            t.on_rollback(steps.step("given back"))
            t.after_commit(steps.step("told"))
            await t.conn.execute(INSERT, ["one"])
            pid = t.conn.info.backend_pid
            with psycopg.connect(fresh_database_url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            t.conn.pgconn.finish()
    assert steps.ran == []
    assert await rooms(database) == 0  # and the pool has replaced the connection


async def test_the_end_is_seen_through_when_the_caller_is_cancelled(database: Database) -> None:
    steps = Steps()
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        entered.set()
        await go_on.wait()
        steps.ran.append("told")

    async def act() -> None:
        async with database.transaction() as t:
            await t.conn.execute(INSERT, ["one"])
            t.after_commit(slow)

    task = asyncio.create_task(act())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    await database.settle()
    assert steps.ran == ["told"]
    assert await rooms(database) == 1


async def test_a_cancelled_act_is_rolled_back(database: Database) -> None:
    steps = Steps()
    entered = asyncio.Event()

    async def act() -> None:
        async with database.transaction() as t:
            t.on_rollback(steps.step("given back"))
            await t.conn.execute(INSERT, ["one"])
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(act())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await database.settle()
    assert steps.ran == ["given back"]
    assert await rooms(database) == 0


async def test_a_reading_keeps_nothing(database: Database) -> None:
    async with database.reading() as conn:
        await conn.execute(INSERT, ["one"])
    assert await rooms(database) == 0


async def test_connections_that_died_are_replaced(database: Database, fresh_database_url: str) -> None:
    assert await rooms(database) == 0
    with psycopg.connect(fresh_database_url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert await rooms(database) == 0


async def test_migrating_twice_changes_nothing(empty_database_url: str) -> None:
    expected = [migration.number for migration in find_migrations()]
    assert migrate(empty_database_url, look_only=True) == expected
    assert migrate(empty_database_url) == expected
    assert migrate(empty_database_url) == []
    assert migrate(empty_database_url, look_only=True) == []
    with psycopg.connect(empty_database_url) as conn:
        row = conn.execute("SELECT version_num FROM schema_version").fetchall()
    assert row == [(expected[-1],)]


async def test_two_that_migrate_at_once_do_it_once(empty_database_url: str) -> None:
    applied: list[list[str]] = []
    threads = [threading.Thread(target=lambda: applied.append(migrate(empty_database_url))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(numbers) for numbers in applied) == [0, 0, len(find_migrations())]


async def test_a_migration_that_fails_leaves_the_schema_as_it_was(empty_database_url: str) -> None:
    line = [
        Migration("0001", "good", ["CREATE TABLE good (n int); INSERT INTO good VALUES (100 % 7)"]),
        Migration("0002", "bad", ["CREATE TABLE bad (n int); SELECT 1 / 0"]),
    ]
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(empty_database_url, line)
    with psycopg.connect(empty_database_url) as conn:
        assert conn.execute("SELECT to_regclass('good')").fetchone() == (None,)
    assert migrate(empty_database_url, line[:1]) == ["0001"]
    assert migrate(empty_database_url, [line[0], Migration("0002", "mended", ["SELECT 1"])]) == ["0002"]


async def test_a_database_of_a_newer_program_is_refused(fresh_database_url: str) -> None:
    with psycopg.connect(fresh_database_url) as conn:
        conn.execute("UPDATE schema_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match=r"is of a newer program \(schema 9999, this one knows \d{4}\)"):
        migrate(fresh_database_url)


async def test_the_job_queues_schema_is_the_first_number_and_marked(fresh_database_url: str) -> None:
    with psycopg.connect(fresh_database_url) as conn:
        mark = conn.execute("SELECT obj_description('procrastinate_jobs'::regclass)").fetchone()
    assert mark == (f"schema as of {JOBS_SCHEMA}",)


async def test_a_job_queue_with_another_schema_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("live.database.JOBS_SCHEMA", "02.00.00_01_older.sql")
    with pytest.raises(SchemaError, match="the installed procrastinate has the schema 03"):
        find_migrations()


async def test_numbers_are_one_line_over_all_packages() -> None:
    numbers = [migration.number for migration in find_migrations()]
    assert numbers[0] == "0000"
    assert numbers == sorted(set(numbers))


async def test_the_pool_refuses_to_wait_for_ever(fresh_database_url: str) -> None:
    async with make_pool(fresh_database_url, size_max=1) as pool:
        pool.timeout = 0.1
        async with pool.connection() as conn:
            await conn.execute("SELECT 1")
            with pytest.raises(PoolTimeout):
                await pool.getconn()


async def test_a_command_is_never_repeated_by_the_client(engines: Addresses) -> None:
    client = open_redis(engines.redis_url)
    try:
        await client.flushall()
        text = "redis.call('INCR', 'runs'); local t = redis.call('TIME')[1] + 2"
        with pytest.raises(TimeoutError):
            await client.eval(text + " while redis.call('TIME')[1] + 0 < t do end return 1", 0)
        runs = None
        while runs is None:
            try:
                runs = await client.get("runs")
            except RedisError:
                continue
        assert runs == b"1"
    finally:
        await client.aclose()


async def test_a_show_is_opened_once_and_anew_for_a_later_generation(scripts: Scripts, redis: Any) -> None:
    open_show = scripts.load("live", "open_show")
    show = ShowId("abcdefghjk")
    assert await open_show(show, [], ["first", 1, "scheduled", "poll", ""]) == [1, b"first"]
    await redis.hset(show_key(show, "meta"), mapping={"seq": 7, "status": "live"})
    assert await open_show(show, [], ["second", 1, "scheduled"]) == [0, b"first"]
    assert await redis.hget(show_key(show, "meta"), "status") == b"live"
    assert await open_show(show, [], ["third", 2, "paused", "poll", "p1"]) == [1, b"third"]
    assert await redis.hgetall(show_key(show, "meta")) == {
        b"epoch": b"third",
        b"seq": b"0",
        b"version": b"0",
        b"generation": b"2",
        b"status": b"paused",
        b"poll": b"p1",
    }
    assert await open_show(show, [], ["fourth", 1, "live"]) == [0, b"third"]
