"""Rooms: a host's standing places (会员健康夜), each with an address and an audience."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb

from chat.comments import need
from chat.text import bounded
from membership.actor import Actor, RoomId, is_id, new_id, new_link_id
from membership.audience import EVERYONE, Audience
from membership.moment import in_ms
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal
from membership.transaction import Connection, Transaction

TITLE_MAX, HOST_NAME_MAX = 40, 24  # code points
_SLUG = re.compile(r"[a-z0-9]([a-z0-9-]{1,38}[a-z0-9])?")


class SlugTaken(Refusal):
    """Another room has this address."""

    code = "slug_taken"


class Room(Struct, frozen=True, kw_only=True):
    """One room. Its audience is who may enter its shows."""

    id: RoomId
    slug: str
    title: str
    host_name: str
    audience: Audience
    created_at: int  # ms


class RoomInput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A room to be made; without a slug it gets one of its own."""

    title: Annotated[str, Meta(min_length=1, max_length=200)]
    slug: Annotated[str, Meta(max_length=40)] | None = None
    host_name: Annotated[str, Meta(max_length=200)] = ""
    audience: Audience = EVERYONE


class RoomPatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a room is to be changed."""

    title: Annotated[str, Meta(min_length=1, max_length=200)] | UnsetType = UNSET
    host_name: Annotated[str, Meta(max_length=200)] | UnsetType = UNSET
    audience: Audience | UnsetType = UNSET


class Rooms:
    """Rooms live in PostgreSQL only; what a show needs of its room goes with the show."""

    async def create(self, t: Transaction, actor: Actor, given: RoomInput) -> Room:
        """Make a room. Raises Forbidden, BadRequest, SlugTaken."""
        need(actor, "room.write")
        if actor.room is not None:
            raise Forbidden("You work in one room only.")
        slug = given.slug if given.slug is not None else new_link_id()
        if not _SLUG.fullmatch(slug) or is_id(slug):
            raise BadRequest("An address has 1 to 40 of a–z, 0–9 and -, and no - at its ends.")
        try:
            async with t.conn.transaction():
                cursor = await t.conn.execute(
                    "INSERT INTO rooms (id, slug, title, host_name, audience) VALUES (%s, %s, %s, %s, %s)"
                    " RETURNING *",
                    [
                        new_id(),
                        slug,
                        bounded(given.title, TITLE_MAX, "A title"),
                        _host_name(given.host_name),
                        _column(given.audience),
                    ],
                )
        except UniqueViolation:
            raise SlugTaken from None
        row = await cursor.fetchone()
        assert row is not None
        return room_from(row)

    async def list(self, conn: Connection, actor: Actor | None = None) -> list[Room]:
        """All rooms by title; for staff of one room, that one."""
        only = None if actor is None else actor.room
        cursor = await conn.execute(
            "SELECT * FROM rooms WHERE %(only)s::uuid IS NULL OR id = %(only)s ORDER BY title, id",
            {"only": only},
        )
        return [room_from(row) for row in await cursor.fetchall()]

    async def get(self, conn: Connection, id_or_slug: str) -> Room:
        """Raises NotFound."""
        by = "id" if is_id(id_or_slug) else "slug"
        statement = (
            "SELECT * FROM rooms WHERE id = %s" if by == "id" else "SELECT * FROM rooms WHERE slug = %s"
        )
        row = None
        if "\0" not in id_or_slug:
            row = await (await conn.execute(statement, [id_or_slug])).fetchone()
        if row is None:
            raise NotFound
        return room_from(row)

    async def update(self, t: Transaction, actor: Actor, room: RoomId, patch: RoomPatch) -> Room:
        """Change a room. Open shows follow at once when the caller refreshes them (`Shows.refresh_room`).

        Raises Forbidden, NotFound, BadRequest.
        """
        need(actor, "room.write")
        if actor.room is not None and actor.room != room:
            raise Forbidden
        found = await self.get(t.conn, room)
        title = found.title if patch.title is UNSET else bounded(patch.title, TITLE_MAX, "A title")
        host = found.host_name if patch.host_name is UNSET else _host_name(patch.host_name)
        audience = found.audience if patch.audience is UNSET else patch.audience
        cursor = await t.conn.execute(
            "UPDATE rooms SET title = %s, host_name = %s, audience = %s WHERE id = %s RETURNING *",
            [title, host, _column(audience), found.id],
        )
        row = await cursor.fetchone()
        assert row is not None
        return room_from(row)


def room_from(row: dict[str, Any]) -> Room:
    return Room(
        id=RoomId(str(row["id"])),
        slug=row["slug"],
        title=row["title"],
        host_name=row["host_name"],
        audience=msgspec.convert(row["audience"], Audience),
        created_at=in_ms(row["created_at"]),
    )


def _host_name(text: str) -> str:
    return bounded(text, HOST_NAME_MAX, "A host's name") if text.strip() else ""


def _column(audience: Audience) -> Jsonb:
    return Jsonb(msgspec.to_builtins(audience))
