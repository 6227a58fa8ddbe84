"""Fixtures: real engines once a session, a fresh database and an empty Redis for every test."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString

import msgspec
import psycopg
import pytest
from psycopg import sql
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis

from live.database import Database, make_pool, migrate, open_redis
from live.engines import Addresses, Binaries, Engines
from live.lua import Scripts
from membership.actor import ShowId, new_id, new_link_id
from membership.transaction import Transaction
from tests.live.cluster import running_cluster

MakeShow = Callable[..., Awaitable[ShowId]]
TransactionFactory = Callable[[], AbstractAsyncContextManager[Transaction]]

for name in [name for name in os.environ if name.startswith("COMPANION_")]:
    del os.environ[name]  # a developer's own settings are no part of a test


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def binaries() -> Binaries:
    """The embedded engines, or with TEST_FLOOR=1 Debian's PostgreSQL 15 and Redis 7.0."""
    if os.environ.get("TEST_FLOOR") != "1":
        return Binaries.of_extra()
    redis = shutil.which("redis-server")
    postgres = Path("/usr/lib/postgresql/15/bin")
    if redis is None or not postgres.is_dir():
        pytest.exit("TEST_FLOOR=1 needs: apt-get install redis-server postgresql-15", 2)
    return Binaries(Path(redis), postgres)


@pytest.fixture(scope="session")
def engines(binaries: Binaries, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """Both engines for the whole session; they may lose everything, so they are quick.

    With TEST_CLUSTER=1 Redis is a Cluster of three nodes.
    """
    running = Engines.start(tmp_path_factory.mktemp("engines"), binaries, durable=False)
    try:
        if os.environ.get("TEST_CLUSTER") == "1":
            with running_cluster(binaries.valkey, tmp_path_factory.mktemp("cluster")) as cluster:
                yield msgspec.structs.replace(running.addresses, redis_url=cluster.url)
        else:
            yield running.addresses
    finally:
        running.stop()


def database_url(engines: Addresses, name: str) -> str:
    return engines.database_url.replace("/companion?", f"/{name}?")


@pytest.fixture(scope="session")
def template(engines: Addresses) -> str:
    """The name of a database made by running every migration."""
    with psycopg.connect(engines.database_url, autocommit=True) as conn:
        conn.execute("CREATE DATABASE template_shop")
    migrate(database_url(engines, "template_shop"))
    return "template_shop"


class Emptied:
    """One migrated database that is emptied before each test: 5 ms, where a copy of the template takes 100.

    Triggers that forbid deleting are off for this connection only.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._conn = self._open()
        tables = self._conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        names = [sql.Identifier(row[0]) for row in tables.fetchall()]
        counted = [(name, self._conn.execute(_COUNT.format(name)).fetchone()) for name in names]
        # What migrations put in (their own marks) stays.
        empty = [name for name, row in counted if row == (0,)]
        self._empty = sql.SQL("; ").join(sql.SQL("DELETE FROM {}").format(name) for name in empty)

    def _open(self) -> psycopg.Connection[Any]:
        conn = psycopg.connect(self.url, autocommit=True)
        conn.execute("SET session_replication_role = replica")
        return conn

    def empty(self) -> None:
        try:
            self._conn.execute("SELECT 1")
        except psycopg.OperationalError:  # a test ended every connection, this one too
            self._conn = self._open()
        self._conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        self.delete_rows()

    def alter(self, statement: LiteralString) -> None:
        """Change rows that are only added to, as if time had passed."""
        self._conn.execute(statement)

    def delete_rows(self) -> None:
        """For who keeps its own connections from one run to the next."""
        self._conn.execute(self._empty)

    def close(self) -> None:
        self._conn.close()


_COUNT = sql.SQL("SELECT count(*) FROM {}")


@contextmanager
def copied(engines: Addresses, template: str, name: str) -> Iterator[str]:
    """The URL of a copy of the template: for tests that change the schema, or a server of its own."""
    with psycopg.connect(engines.database_url, autocommit=True) as conn:
        names = sql.Identifier(name), sql.Identifier(template)
        conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(*names))
        yield database_url(engines, name)
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(names[0]))


@pytest.fixture(scope="session")
def emptied(engines: Addresses, template: str) -> Iterator[Emptied]:
    with copied(engines, template, "test_shop") as url:
        made = Emptied(url)
        yield made
        made.close()


@pytest.fixture
def fresh_database_url(emptied: Emptied) -> str:
    """A migrated, empty database."""
    emptied.empty()
    return emptied.url


@pytest.fixture
async def redis(engines: Addresses) -> AsyncIterator[Redis]:
    client = open_redis(engines.redis_url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def pool(fresh_database_url: str) -> AsyncIterator[AsyncConnectionPool[Any]]:
    async with make_pool(fresh_database_url, size_max=20) as opened:
        yield opened


@pytest.fixture
async def database(pool: AsyncConnectionPool[Any]) -> AsyncIterator[Database]:
    made = Database(pool)
    yield made
    await made.settle()


@pytest.fixture
def tx(database: Database) -> TransactionFactory:
    """`async with tx() as t:` commits and runs the after-commit steps, or rolls back and runs the others."""
    return database.transaction


@pytest.fixture
def scripts(redis: Redis) -> Scripts:
    return Scripts(redis)


@pytest.fixture
def make_show(scripts: Scripts, tx: TransactionFactory) -> MakeShow:
    """A room, a show in it, and the show's keys in Redis. `meta` are further META fields."""
    return show_maker(scripts, tx)


def show_maker(scripts: Scripts, tx: TransactionFactory) -> MakeShow:
    """The same without a fixture."""
    open_show = scripts.load("live", "open_show")

    async def make(status: str = "live", **meta: str | int) -> ShowId:
        show, room = ShowId(new_link_id()), new_id()
        now = datetime.now(UTC)
        started = now if status in ("live", "paused", "ending", "ended") else None
        async with tx() as t:
            await t.conn.execute(
                "INSERT INTO rooms (id, slug, title, host_name) VALUES (%s, %s, %s, %s)",
                [room, f"room-{show}", "会员健康夜", "小禾"],
            )
            await t.conn.execute(
                "INSERT INTO shows (id, room_id, title, state, starts_at, started_at)"
                " VALUES (%s, %s, %s, %s, %s, %s)",
                [show, room, "秋收专场", status, now, started],
            )
        fields: dict[str, str | int] = {"guest_comments": "", "poll": ""}
        if started is not None:
            fields["started_at"] = int(started.timestamp() * 1000)
        fields.update(meta)
        await open_show(
            show, [], [secrets.token_hex(4), 1, status, *(part for pair in fields.items() for part in pair)]
        )
        return show

    return make
