"""The two stores: opening them, one SQL transaction, and the schema's one line of numbered migrations.

Domain code is handed a `Transaction` and never commits; this is the only module that does.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from itertools import pairwise
from types import ModuleType
from typing import Any, cast

import psycopg
from alembic.migration import MigrationContext
from alembic.runtime.migration import RevisionStep
from alembic.script.base import Script
from alembic.script.revision import ResolutionError, Revision, RevisionMap
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from live.cluster import BoundedCluster, ClusterUrl, NodeClients
from membership.partition import PARTITIONS
from membership.transaction import Connection, Step, Transaction

log = logging.getLogger(__name__)

Pool = AsyncConnectionPool[Connection]

LOCK_MS = 10_000  # a lock waited for longer is a fault, not a queue
IDLE_MS = 60_000  # of an open transaction without a statement
COMMAND_S = 1.0  # a script that takes longer is given up, though it may still have run
CONNECT_S = 3.0
REDIS_CONNECTIONS = (
    50  # of one client to one server; a script takes well under 1 ms, so more would only wait in Redis
)
MIGRATION_PACKAGES = ("membership", "chat", "commerce", "live")
MIGRATION_LOCK = 0x636F6D70616E696F  # "companio": one migrator at a time on a database
VERSION_TABLE = "schema_version"

# The job queue's own schema is our revision 0000, as of this file of its own migrations. The mark is left in
# the database, so that the revision for a later release knows whether its files are already in.
JOBS_SCHEMA = "03.04.00_50_post_add_retry_failed_job_procedure.sql"


class SchemaError(Exception):
    """One line that says what is wrong with the schema and what to do."""


def open_redis(url: str) -> Redis:
    """A client that never repeats a command by itself: one that timed out may have run.

    For the address of a Cluster it is the Cluster's client, which has the same commands.
    """
    address = ClusterUrl.parse(url)
    return _open_server(url) if address is None else cast("Redis", _open_cluster(address))


def open_tail_clients(url: str, *, block_s: float) -> NodeClients:
    """Clients of readers that wait in XREAD; `block_s` is how long the server may let them."""

    def open_client(node_url: str) -> Redis:
        # One connection for each reader, and a few that wake them.
        return _open_server(node_url, connections=PARTITIONS + 8, answer_s=block_s + 2.0)

    return NodeClients(url, open_client, _open_cluster)


def _open_server(url: str, *, connections: int = REDIS_CONNECTIONS, answer_s: float = COMMAND_S) -> Redis:
    # The plain pool refuses the 101st command at once; this one lets it wait its turn.
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=CONNECT_S,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=answer_s,
        socket_connect_timeout=CONNECT_S,
        legacy_responses=False,
        decode_responses=False,
    )
    return Redis.from_pool(pool)


def _open_cluster(address: ClusterUrl) -> BoundedCluster:
    return BoundedCluster(
        address,
        connections=REDIS_CONNECTIONS,
        turn_s=CONNECT_S,
        command_s=COMMAND_S,
        connect_s=CONNECT_S,
    )


def make_pool(url: str, *, size_max: int = 10) -> Pool:
    """The pool, not yet open: `async with pool:` or `await pool.open()`.

    Each connection is checked when taken: after a restart of PostgreSQL the dead ones are replaced.
    """
    return AsyncConnectionPool(
        url,
        connection_class=cast("type[Connection]", psycopg.AsyncConnection),
        kwargs={
            "row_factory": dict_row,
            "autocommit": False,
            "connect_timeout": 5,
            # A host that went away without a word is noticed, as TCP would after a quarter of an hour.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            # A process that stopped in the middle holds up a show no longer than this.
            "options": f"-c lock_timeout={LOCK_MS} -c idle_in_transaction_session_timeout={IDLE_MS}",
        },
        min_size=1,
        max_size=size_max,
        max_waiting=1000,
        timeout=5.0,
        check=AsyncConnectionPool.check_connection,
        open=False,
    )


class Database:
    """Opens transactions on the pool and sees each through to its last step."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._ending: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """One act: commit, then its `after_commit` steps; on an error roll back, then `on_rollback`.

        The end is seen through even when the caller is cancelled (a viewer closed the page), so that
        nothing is left between the commit and its steps.
        """
        conn = await self.pool.getconn()
        t = Transaction(conn)
        try:
            yield t
        except BaseException:
            await self._see_through(self._roll_back(t))
            raise
        await self._see_through(self._commit(t))

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """A connection for reads; what it might have written is rolled back."""
        async with self.pool.connection() as conn:
            try:
                yield conn
            finally:
                await conn.rollback()

    async def settle(self) -> None:
        """Wait for the ends of transactions whose callers are gone. Before the pool closes."""
        while self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)

    async def _see_through(self, end: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(end)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        await asyncio.shield(task)

    async def _commit(self, t: Transaction) -> None:
        try:
            await t.conn.commit()
        except psycopg.Error as error:
            # With a code, PostgreSQL refused the commit. Without one the link broke and nobody knows:
            # then what was taken stays taken, and the job that settles reads the truth from the tables.
            refused = error.sqlstate is not None
            await self._return(t)
            if refused:
                await _run_steps(t.rolled_back)
            raise
        except BaseException:
            await self._return(t)
            raise
        await self._return(t)
        await _run_steps(t.committed)

    async def _roll_back(self, t: Transaction) -> None:
        try:
            await t.conn.rollback()
        except psycopg.Error:
            log.warning("rollback failed; the connection is dropped", exc_info=True)
            await t.conn.close()
        await self._return(t)
        await _run_steps(t.rolled_back)

    async def _return(self, t: Transaction) -> None:
        await self.pool.putconn(t.conn)


async def _run_steps(steps: Sequence[Step]) -> None:
    """Every step runs; one that fails is logged and left to the job that settles."""
    for step in steps:
        try:
            await step()
        except Exception:
            log.warning("a step after the transaction failed", exc_info=True)


# --- migrations ---


class Migration:
    """One numbered file: its revision, its SQL."""

    def __init__(self, number: str, name: str, statements: Sequence[str]) -> None:
        self.number = number
        self.name = name
        self.statements = statements


def find_migrations(packages: Iterable[str] = MIGRATION_PACKAGES) -> list[Migration]:
    """All `<package>/migrations/NNNN_name.sql` in one line of numbers, the job queue's schema first."""
    found = [Migration("0000", "jobs", _job_queue_sql())]
    for package in packages:
        folder = resources.files(importlib.import_module(package)) / "migrations"
        if not folder.is_dir():
            continue
        for file in folder.iterdir():
            matched = re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name)
            if matched:
                found.append(Migration(matched[1], matched[2], [file.read_text("utf-8")]))
    found.sort(key=lambda migration: migration.number)
    for before, after in pairwise(found):
        if before.number == after.number:
            raise SchemaError(
                f"two migrations have the number {after.number}: {before.name} and {after.name}"
            )
    return found


def _job_queue_sql() -> list[str]:
    folder = resources.files("procrastinate") / "sql"
    newest = max(file.name for file in (folder / "migrations").iterdir() if file.name.endswith(".sql"))
    if newest != JOBS_SCHEMA:
        raise SchemaError(
            f"the installed procrastinate has the schema {newest}: install 3.10, which is known"
        )
    schema = (folder / "schema.sql").read_text("utf-8")
    return [schema, f"COMMENT ON TABLE procrastinate_jobs IS 'schema as of {newest}'"]


def migrate(
    database_url: str, migrations: Sequence[Migration] | None = None, *, look_only: bool = False
) -> list[str]:
    """Bring the schema up to date in one transaction; returns the numbers applied, none the second time.

    `look_only` changes nothing and returns the numbers that are missing. Raises SchemaError for a database
    of a newer program.
    """
    line = list(find_migrations() if migrations is None else migrations)
    revisions = _revision_map(line)
    newest = line[-1].number
    missing: list[str] = []

    def steps(heads: tuple[str, ...] | str, _: MigrationContext) -> list[RevisionStep]:
        current = heads[0] if heads else None
        try:
            revisions.get_revision(current)
        except ResolutionError:
            raise SchemaError(
                f"the database is of a newer program (schema {current}, this one knows {newest}): "
                "install that program, or use another database"
            ) from None
        todo = [] if current == newest else list(revisions.iterate_revisions(newest, current))
        todo.reverse()
        missing.extend(str(revision.revision) for revision in todo)
        return [RevisionStep(revisions, cast(Script, revision), is_upgrade=True) for revision in todo]

    # libpq reads our URL; SQLAlchemy only carries the connection.
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(database_url), poolclass=NullPool
    )
    with engine.begin() as connection:
        options = {"fn": steps, "version_table": VERSION_TABLE, "transactional_ddl": True}
        context = MigrationContext.configure(connection, opts=options)
        if look_only:
            steps(context.get_current_heads(), context)
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            context.run_migrations(connection=connection)
    return missing


def _revision_map(line: Sequence[Migration]) -> RevisionMap:
    scripts: list[Revision] = []
    for before, migration in zip([None, *line], line, strict=False):
        module = ModuleType(f"migration_{migration.number}")
        module.__doc__ = migration.name
        vars(module)["down_revision"] = before.number if before else None
        vars(module)["upgrade"] = _upgrade(migration)
        scripts.append(Script(module, migration.number, f"{migration.number}_{migration.name}.sql"))
    return RevisionMap(lambda: scripts)


def _upgrade(migration: Migration) -> Any:
    def upgrade(connection: Any) -> None:
        # The driver's own cursor without parameters: many statements at once, and % is only a sign.
        cursor = connection.connection.driver_connection.cursor()
        for text in migration.statements:
            cursor.execute(text)

    return upgrade
