"""The zero-difference close of a show that has ended: everything counted is counted again and compared.

Three witnesses: PostgreSQL's rows, the counters in Redis, and the show's log. Each number is rebuilt from what
it should follow from (claims from the log and the receipts, sold pieces from paid orders, points from paid
goods …) and each difference is named. Nothing is mended here. With no difference the record is sealed: one
dated, signed file. Closing again gives the same digest, as long as nothing has changed.

What is still under way (an unpaid order, money on its way back) is said, and the close refused until then.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct
from redis.exceptions import RedisError

from commerce.receipts import Unverified
from live.archive import SUFFIX, VERSION, ArchiveDraft, Manifest, draft, verify_archive
from live.books import (
    FETCH,
    Books,
    Counters,
    Marks,
    event_digest,
    kept_counters,
    read_counters,
    read_marks,
    read_rows,
    totals,
)
from live.comparison import (
    POSTGRES,
    REDIS,
    Difference,
    difference,
    differences,
    differences_from_counters,
    differences_from_log,
    differences_of_stock,
    is_whole,
    waiting,
)
from live.log import entry_from
from live.recorder import Recorder
from live.shows import Show, WrongStatus
from membership.actor import BenefitId, ShowId
from membership.partition import show_key
from membership.refusal import Unavailable

if TYPE_CHECKING:
    from live.parts import Parts

FOLDER: Final = "closings"


class Closing(Struct, frozen=True, kw_only=True):
    """What a close came to: sealed, or why not."""

    show: ShowId
    title: str
    totals: dict[str, int]
    notes: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()  # what is under way and must end first
    differences: tuple[Difference, ...] = ()
    digest: str = ""
    sealed_at: str = ""
    path: Path | None = None  # of the archive


class Closer:
    """Closes shows. Writes nothing but the archive, and the record of the log that it copies first."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._recorder = Recorder(parts)

    async def close(self, show: ShowId) -> Closing:
        """Compare, and seal when there is no difference.

        Raises NotFound; WrongStatus while the show has not ended; Unavailable while Redis does not answer.
        """
        database = self._parts.database
        async with database.reading() as conn:
            found = await self._parts.shows.get(conn, show)
        if found.status != "ended":
            raise WrongStatus(f"The show is {found.status}; end it before it is closed.")
        await self._recorder.record(show)
        folder = self._parts.settings.data_dir / FOLDER
        async with database.reading() as conn:
            # One moment for every part; times in one form wherever the server stands.
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            await conn.execute("SET LOCAL TIME ZONE 'UTC'")
            with draft(folder, show) as archive:
                books = await read_rows(conn, show, archive)
                marks = await read_marks(conn, show)
                benefits = [BenefitId(row["id"]) for row in books.rows["benefits"]]
                counters = await read_counters(self._parts.redis, show, benefits)
                return await self._judge(found, books, counters, marks, archive, folder)

    async def _judge(
        self,
        show: Show,
        books: Books,
        counters: Counters | None,
        marks: Marks,
        archive: ArchiveDraft,
        folder: Path,
    ) -> Closing:
        notes: list[str] = []
        whole_log = counters is not None and marks.generation == 1 and is_whole(books, counters)
        if counters is None:
            notes.append("Redis holds this show no more: rows were compared with each other and the receipts")
        if not whole_log:
            notes.append("the log has a gap (Redis was lost or cut it): counts were not rebuilt from it")
        made = Closing(show=show.id, title=show.title, totals=totals(books), notes=tuple(notes))
        if under_way := tuple(waiting(books, counters, marks)):
            return msgspec.structs.replace(made, waiting=under_way)
        found = [*differences(show.id, books), *differences_of_stock(marks)]
        if whole_log:
            found += differences_from_log(books)
        if counters is not None:
            found += differences_from_counters(books, counters, marks)
            found += await self._check_stream(show.id, books, counters)
        if found:
            return msgspec.structs.replace(made, differences=tuple(found))
        return self._seal(show, made, counters, archive, folder)

    async def _check_stream(self, show: ShowId, books: Books, counters: Counters) -> list[Difference]:
        """The copied log is what Redis still has of it, entry for entry."""
        copied = books.epochs.get(counters.meta["epoch"], {})
        found: list[Difference] = []
        after, last = "-", 0
        redis: Any = self._parts.redis
        while True:
            try:
                raw = await redis.xrange(show_key(show, "log"), min=after, max="+", count=FETCH)
            except (RedisError, OSError, TimeoutError) as error:
                raise Unavailable(f"Redis does not answer: {error}", retry_ms=1000) from error
            for raw_id, fields in raw:
                entry = entry_from(raw_id, fields)
                last = entry.seq
                kept = copied.get(entry.seq)
                if entry.event and kept != event_digest(msgspec.json.decode(entry.event)):
                    is_now = "none" if kept is None else "another event"
                    found.append(difference(f"log entry {entry.seq}", POSTGRES, "as in Redis", is_now))
            if len(raw) < FETCH:
                break
            after = f"({raw[-1][0].decode()}"
        told = int(counters.meta.get("seq", "0"))
        if last and told != last:
            found.append(difference("the log's last number", REDIS, last, told))
        status = counters.meta.get("status", "none")
        if status != "ended":
            found.append(difference("the show's status", REDIS, "ended", status))
        return found

    def _seal(
        self, show: Show, made: Closing, counters: Counters | None, archive: ArchiveDraft, folder: Path
    ) -> Closing:
        """Write the manifest and put the file in its place. One of the same content stays as it is."""
        archive.begin("redis", int(counters is not None))
        if counters is not None:
            archive.row(msgspec.json.encode(kept_counters(counters), order="sorted"))
        assert show.ended_at is not None
        ended = datetime.fromtimestamp(show.ended_at / 1000, UTC)
        manifest = archive.seal(
            Manifest(
                archive=VERSION,
                show=show.id,
                title=show.title,
                ended_at=ended.isoformat(timespec="milliseconds"),
                totals=made.totals,
                notes=made.notes,
                parts=(),
            ),
            self._parts.receipts,
            datetime.now(UTC).isoformat(timespec="seconds"),
        )
        path = folder / f"{show.id}-{ended:%Y%m%d}-{manifest.digest[:12]}{SUFFIX}"
        if path.exists():
            try:
                manifest = verify_archive(path, self._parts.receipts.public_key)
            except Unverified as error:
                changed = difference(f"archive {path.name}", "closings", "as it was sealed", error)
                return msgspec.structs.replace(made, differences=(changed,))
        else:
            archive.keep(path)
        return msgspec.structs.replace(made, digest=manifest.digest, sealed_at=manifest.sealed_at, path=path)


def in_words(closing: Closing) -> str:
    """What a close came to, for people."""
    counted = ", ".join(f"{name} {number}" for name, number in closing.totals.items())
    lines = [f"show         {closing.title} ({closing.show})", f"compared     {counted}"]
    lines += [f"note         {note}" for note in closing.notes]
    if closing.waiting:
        lines += [f"waiting      {what}" for what in closing.waiting]
        return "\n".join([*lines, f"not closed   {len(closing.waiting)} things are under way: wait for them"])
    lines += [f"difference   {found}" for found in closing.differences]
    lines.append(f"differences  {len(closing.differences)}")
    if closing.path is None:
        return "\n".join([*lines, "not sealed   the differences have to be explained first"])
    return "\n".join(
        [
            *lines,
            f"sealed       {closing.path}",
            f"             {closing.sealed_at}; check it by `companion verify`",
            f"digest       {closing.digest}",
        ]
    )
