"""Freight: what sending costs by region, whether a region is covered at all, and when the goods are promised.

The template is rows by the beginning of a region's name: the longest that fits counts, the row without a name
is for the rest. Without any row every region is covered at the house's flat amount, and no date is promised.
A template that changes later changes no order and no open quote.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from msgspec import Meta, Struct

from membership.actor import Actor
from membership.refusal import BadRequest, Forbidden, Refusal
from membership.transaction import Connection, Transaction, lock

ROWS_MAX = 400  # provinces, cities, and the islands apart
REGION_CHARS_MAX = 30
DAYS_MAX = 60

Fen = Annotated[int, Meta(ge=0, le=1_000_000)]
Days = Annotated[int, Meta(ge=0, le=DAYS_MAX)]


class NotCovered(Refusal):
    """We do not send there yet; choose another address."""

    code = "not_covered"


class Freight(Struct, frozen=True):
    """What sending costs where no template says otherwise: a flat amount, nothing from a sum of goods on."""

    flat_fen: int = 800
    free_from_fen: int = 9900


class FreightRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of the template. `region`: how the region's name begins, as 浙江 or 上海市崇明; empty: the rest.

    `free_from_fen`: from this sum of goods on nothing; null: never by the sum. `days`: working days are not
    counted apart, the promise is in days from the order.
    """

    region: Annotated[str, Meta(max_length=REGION_CHARS_MAX)] = ""
    flat_fen: Fen = 800
    free_from_fen: Annotated[int, Meta(ge=0, le=100_000_000)] | None = None
    days_min: Days | None = None
    days_max: Days | None = None
    covered: bool = True

    def of(self, goods_fen: int, free_plan: bool) -> int:
        """The freight of so much of goods; nothing for who has a plan that says so."""
        if free_plan or (self.free_from_fen is not None and goods_fen >= self.free_from_fen):
            return 0
        return self.flat_fen

    def promised(self, ordered_at: datetime, zone: str) -> tuple[date, date] | None:
        """From which day to which day the goods arrive; days of the shop's zone."""
        if self.days_min is None or self.days_max is None:
            return None
        day = ordered_at.astimezone(ZoneInfo(zone)).date()
        return day + timedelta(days=self.days_min), day + timedelta(days=self.days_max)


def joined_region(region: str) -> str:
    """A region's name without the spaces between its parts: 浙江省杭州市西湖区."""
    return "".join(region.split()).replace("/", "")


class FreightTemplate:
    """Reads and sets the template. `freight` is what counts where it has no row."""

    def __init__(self, freight: Freight | None = None, *, timezone: str = "Asia/Shanghai") -> None:
        given = freight or Freight()
        self._rest = FreightRow(flat_fen=given.flat_fen, free_from_fen=given.free_from_fen)
        self._timezone = timezone

    async def row(self, conn: Connection, region: str | None) -> FreightRow:
        """The row for this region; None (no address known yet): the row for the rest."""
        found = await (
            await conn.execute(
                """
                SELECT region, flat_fen, free_from_fen, days_min, days_max, covered FROM freight_rows
                WHERE starts_with(%s, region) ORDER BY char_length(region) DESC LIMIT 1
                """,
                [joined_region(region or "")],
            )
        ).fetchone()
        return self._rest if found is None else FreightRow(**found)

    def promised(self, row: FreightRow, ordered_at: datetime) -> tuple[date, date] | None:
        return row.promised(ordered_at, self._timezone)

    async def is_set(self, conn: Connection) -> bool:
        """Whether there is a template."""
        row = await (await conn.execute("SELECT 1 FROM freight_rows LIMIT 1")).fetchone()
        return row is not None

    async def rows(self, conn: Connection) -> tuple[FreightRow, ...]:
        """The template as it was set, the row for the rest first."""
        found = await (
            await conn.execute(
                "SELECT region, flat_fen, free_from_fen, days_min, days_max, covered FROM freight_rows"
                " ORDER BY region"
            )
        ).fetchall()
        return tuple(FreightRow(**row) for row in found) or (self._rest,)

    async def set(self, t: Transaction, actor: Actor, rows: Sequence[FreightRow]) -> tuple[FreightRow, ...]:
        """Set the whole template. No rows: as if none had ever been set. Raises Forbidden, BadRequest."""
        if not actor.may("catalog.write"):
            raise Forbidden
        kept = checked_rows(rows)
        await lock(t.conn, "freight")
        await t.conn.execute("DELETE FROM freight_rows")
        values: list[dict[str, Any]] = [
            {name: getattr(row, name) for name in FreightRow.__struct_fields__} for row in kept
        ]
        async with t.conn.cursor() as cursor:
            await cursor.executemany(
                """
                INSERT INTO freight_rows (region, flat_fen, free_from_fen, days_min, days_max, covered)
                VALUES (%(region)s, %(flat_fen)s, %(free_from_fen)s, %(days_min)s, %(days_max)s, %(covered)s)
                """,
                values,
            )
        return await self.rows(t.conn)


def checked_rows(rows: Sequence[FreightRow]) -> tuple[FreightRow, ...]:
    """The rows as they are kept. Raises BadRequest naming the region."""
    if len(rows) > ROWS_MAX:
        raise BadRequest(f"a template has at most {ROWS_MAX} rows")
    kept: dict[str, FreightRow] = {}
    for row in rows:
        region = joined_region(row.region)
        if region in kept:
            raise BadRequest(f"the region {region or '(the rest)'} stands twice")
        if (row.days_min is None) != (row.days_max is None):
            raise BadRequest(f"{region or 'the rest'}: a promise has a first and a last day")
        if row.days_min is not None and row.days_max is not None and row.days_min > row.days_max:
            raise BadRequest(f"{region or 'the rest'}: the last day comes before the first")
        kept[region] = FreightRow(
            region=region,
            flat_fen=row.flat_fen,
            free_from_fen=row.free_from_fen,
            days_min=row.days_min,
            days_max=row.days_max,
            covered=row.covered,
        )
    if kept and "" not in kept:
        raise BadRequest("a template has a row for the rest: the one with an empty region")
    return tuple(kept.values())
