"""Points campaigns: within a window, goods give more points; each campaign is a lot of its own.

The time of the order decides, not the time of payment: what held then is kept with the order. Campaigns that
`adds` count beside each other; of those that do not, the one with the highest priority counts alone, and of
equal ones the older.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from membership.actor import Actor, Facts, ProductId, is_id, new_id
from membership.audience import EVERYONE, Audience
from membership.line import clean_line
from membership.page import Page, check_page, page_of
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal
from membership.transaction import Connection, Transaction

HELD_MAX = 50  # campaigns that hold at one time


class NoSuchCampaign(NotFound):
    """There is no such campaign."""


class NameTaken(Refusal):
    """Another campaign has this name."""

    code = "name_taken"


class CampaignInput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A campaign as staff write it. `percent` is added to the base: 100 doubles."""

    name: Annotated[str, Meta(min_length=1, max_length=40)]
    percent: Annotated[int, Meta(ge=1, le=1000)]
    audience: Audience = EVERYONE
    products: Annotated[tuple[ProductId, ...], Meta(max_length=200)] = ()  # empty: all goods
    from_at: datetime
    until_at: datetime
    adds: bool = True
    priority: Annotated[int, Meta(ge=0, le=1000)] = 0


class Campaign(Struct, frozen=True, kw_only=True):
    id: str
    name: str
    percent: int
    audience: Audience
    products: tuple[ProductId, ...]
    from_at: datetime
    until_at: datetime
    adds: bool
    priority: int


class Holding(Struct, frozen=True):
    """A campaign as an order keeps it."""

    name: str
    percent: int
    products: tuple[ProductId, ...] = ()


class Judged(Struct, frozen=True):
    """A campaign that fits, and whether it counts: another of higher priority may stand before it."""

    holding: Holding
    priority: int
    counts: bool
    why: Literal["adds", "first", "behind"]


class Campaigns:
    """Reads campaigns and sets them."""

    async def create(self, t: Transaction, actor: Actor, given: CampaignInput) -> Campaign:
        """Raises Forbidden, BadRequest, NameTaken."""
        if not actor.may("catalog.write"):
            raise Forbidden
        kept = checked(given)
        row = await (
            await t.conn.execute(
                """
                INSERT INTO points_campaigns (id, name, percent, audience, products, from_at, until_at, adds,
                                              priority)
                VALUES (%s, %s, %s, %s, %s::uuid[], %s, %s, %s, %s)
                ON CONFLICT (name) DO NOTHING RETURNING *
                """,
                [
                    new_id(),
                    kept.name,
                    given.percent,
                    Jsonb(msgspec.to_builtins(given.audience)),
                    list(given.products),
                    given.from_at,
                    given.until_at,
                    given.adds,
                    given.priority,
                ],
            )
        ).fetchone()
        if row is None:
            raise NameTaken
        return _campaign(row)

    async def end(self, t: Transaction, actor: Actor, campaign: str) -> Campaign:
        """End a campaign now; one that has not begun never will. Raises Forbidden, NoSuchCampaign."""
        if not actor.may("catalog.write"):
            raise Forbidden
        row = None
        if is_id(campaign):
            row = await (
                await t.conn.execute(
                    """
                    UPDATE points_campaigns SET until_at = least(until_at, greatest(
                        clock_timestamp(), from_at + interval '1 microsecond'))
                    WHERE id = %s RETURNING *
                    """,
                    [campaign],
                )
            ).fetchone()
        if row is None:
            raise NoSuchCampaign
        return _campaign(row)

    async def list(self, conn: Connection, cursor: str | None = None, limit: int = 50) -> Page[Campaign]:
        """Every campaign, newest first."""
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                "SELECT * FROM points_campaigns WHERE %(cursor)s::uuid IS NULL OR id < %(cursor)s"
                " ORDER BY id DESC LIMIT %(limit)s + 1",
                {"cursor": cursor, "limit": limit},
            )
        ).fetchall()
        return page_of(rows, limit, _campaign)

    async def judged(
        self, conn: Connection, facts: Facts, products: Sequence[ProductId], at: datetime
    ) -> tuple[Judged, ...]:
        """The campaigns that fit this person and these goods at this moment, and which of them count."""
        rows = await (
            await conn.execute(
                "SELECT * FROM points_campaigns WHERE from_at <= %(at)s AND until_at > %(at)s"
                " ORDER BY priority DESC, id LIMIT %(limit)s",
                {"at": at, "limit": HELD_MAX},
            )
        ).fetchall()
        fit = [
            campaign
            for campaign in map(_campaign, rows)
            if campaign.audience.has(facts)
            and (not campaign.products or not set(campaign.products).isdisjoint(products))
        ]
        first = next((campaign for campaign in fit if not campaign.adds), None)
        judged: list[Judged] = []
        for campaign in fit:
            why: Literal["adds", "first", "behind"] = "adds"
            if not campaign.adds:
                why = "first" if campaign is first else "behind"
            holding = Holding(campaign.name, campaign.percent, campaign.products)
            judged.append(Judged(holding, campaign.priority, why != "behind", why))
        return tuple(judged)


def checked(given: CampaignInput) -> CampaignInput:
    """The campaign as it is kept. Raises BadRequest."""
    name = clean_line(given.name)
    if not name:
        raise BadRequest("a campaign has a name", field="name")
    for moment in (given.from_at, given.until_at):
        if moment.tzinfo is None or not 2000 <= moment.year <= 2200:
            raise BadRequest("a time has its offset and lies between the years 2000 and 2200")
    if given.until_at <= given.from_at:
        raise BadRequest("until_at is not after from_at", field="until_at")
    if any(not is_id(product) for product in given.products):
        raise BadRequest("products are named by their ids", field="products")
    return msgspec.structs.replace(given, name=name)


def bases(
    held: Sequence[Holding], paid_fen: Mapping[ProductId, int]
) -> tuple[dict[str, int], dict[str, int]]:
    """Name → percent and name → the money paid for the campaign's goods, as `lots_for_goods` takes them."""
    percents = {each.name: each.percent for each in held}
    money = {
        each.name: sum(
            fen for product, fen in paid_fen.items() if not each.products or product in each.products
        )
        for each in held
    }
    return percents, money


def _campaign(row: DictRow) -> Campaign:
    return Campaign(
        id=str(row["id"]),
        name=row["name"],
        percent=row["percent"],
        audience=msgspec.convert(row["audience"], Audience),
        products=tuple(ProductId(str(product)) for product in row["products"]),
        from_at=row["from_at"],
        until_at=row["until_at"],
        adds=row["adds"],
        priority=row["priority"],
    )
