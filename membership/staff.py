"""Staff accounts with their one-time sign-in links, and the API keys of a shop's server.

Links and keys are 256 random bits; only their SHA-256 is kept.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, get_args

import msgspec
from psycopg.rows import DictRow

from membership.actor import (
    PERMISSIONS,
    Actor,
    Permission,
    Role,
    RoomId,
    StaffId,
    is_id,
    new_id,
    permissions_of,
)
from membership.line import clean_line
from membership.refusal import BadRequest, Forbidden, NotFound, Unauthenticated
from membership.transaction import Connection, Transaction

LINK_S = 600
NAME_MAX = 40
KEY_NAME_MAX = 60
KEY_PREFIX = "ck_"
SECRET_MAX = 128  # characters; ours have 43, a key 46


class NoSuchStaff(NotFound):
    """There is no such staff account."""


class StaffDisabled(Forbidden):
    """This staff account is disabled."""


class LinkUsed(Unauthenticated):
    """This link was used. Ask for a new one."""

    code = "link_used"


class LinkExpired(Unauthenticated):
    """This link has expired. Ask for a new one."""

    code = "link_expired"


class UnknownLink(Unauthenticated):
    """This is no sign-in link."""


class InvalidApiKey(Unauthenticated):
    """This API key is not valid."""


class StaffAccount(msgspec.Struct, frozen=True):
    id: StaffId
    name: str
    role: Role
    room: RoomId | None
    created_at: datetime
    disabled_at: datetime | None = None

    def actor(self) -> Actor:
        return Actor(
            kind="staff",
            id=self.id,
            name=self.name,
            role=self.role,
            permissions=permissions_of(self.role, self.room),
            room=self.room,
        )


def _account(row: DictRow) -> StaffAccount:
    return StaffAccount(
        id=StaffId(str(row["id"])),
        name=row["name"],
        role=row["role"],
        room=None if row["room_id"] is None else RoomId(str(row["room_id"])),
        created_at=row["created_at"],
        disabled_at=row["disabled_at"],
    )


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def _check_name(name: str, length_max: int) -> str:
    name = clean_line(name)
    if not 1 <= len(name) <= length_max:
        raise BadRequest(f"A name has 1–{length_max} characters.")
    return name


class Staff:
    async def create(self, t: Transaction, name: str, role: Role, room: RoomId | None = None) -> StaffAccount:
        """An account; it is entered by a sign-in link. Raises BadRequest."""
        name = _check_name(name, NAME_MAX)
        if role not in PERMISSIONS:
            raise BadRequest("There is no such role.")
        if room is not None and not is_id(room):
            raise BadRequest("There is no such room.")
        staff = StaffId(new_id())
        await t.conn.execute(
            "INSERT INTO staff (id, name, role, room_id) VALUES (%s, %s, %s, %s)", (staff, name, role, room)
        )
        return await self.by_id(t.conn, staff)

    async def by_id(self, conn: Connection, staff: StaffId) -> StaffAccount:
        """Raises NoSuchStaff."""
        row = None
        if is_id(staff):
            row = await (await conn.execute("SELECT * FROM staff WHERE id = %s", (staff,))).fetchone()
        if row is None:
            raise NoSuchStaff
        return _account(row)

    async def list(self, conn: Connection) -> tuple[StaffAccount, ...]:
        """All accounts, oldest first."""
        rows = await (await conn.execute("SELECT * FROM staff ORDER BY id LIMIT 1000")).fetchall()
        return tuple(_account(row) for row in rows)

    async def disable(self, t: Transaction, staff: StaffId) -> StaffAccount:
        """Shut an account: its links and tokens open nothing from now on."""
        await self.by_id(t.conn, staff)
        await t.conn.execute(
            "UPDATE staff SET disabled_at = coalesce(disabled_at, clock_timestamp()) WHERE id = %s", (staff,)
        )
        return await self.by_id(t.conn, staff)

    async def sign_in_link(self, t: Transaction, staff: StaffId, *, ttl_s: int = LINK_S) -> str:
        """The token of a link that works once, for ten minutes. Raises NoSuchStaff, StaffDisabled."""
        account = await self.by_id(t.conn, staff)
        if account.disabled_at is not None:
            raise StaffDisabled
        token = secrets.token_urlsafe(32)
        await t.conn.execute(
            """
            INSERT INTO staff_links (token_digest, staff_id, expires_at)
            VALUES (%s, %s, clock_timestamp() + %s * interval '1 second')
            """,
            (_digest(token), account.id, ttl_s),
        )
        return token

    async def exchange(self, t: Transaction, token: str) -> StaffAccount:
        """The account behind a link, which is used up.

        Raises LinkUsed, LinkExpired, UnknownLink, StaffDisabled.
        """
        if len(token) > SECRET_MAX:
            raise UnknownLink
        digest = _digest(token)
        # of two at once one gets the row; the other waits and finds it used
        taken = await (
            await t.conn.execute(
                """
                UPDATE staff_links SET used_at = clock_timestamp()
                WHERE token_digest = %s AND used_at IS NULL AND expires_at > clock_timestamp()
                RETURNING staff_id
                """,
                (digest,),
            )
        ).fetchone()
        if taken is None:
            row = await (
                await t.conn.execute("SELECT used_at FROM staff_links WHERE token_digest = %s", (digest,))
            ).fetchone()
            if row is None:
                raise UnknownLink
            raise LinkExpired if row["used_at"] is None else LinkUsed
        account = await self.by_id(t.conn, StaffId(str(taken["staff_id"])))
        if account.disabled_at is not None:
            raise StaffDisabled
        return account

    async def actor(self, conn: Connection, staff: StaffId) -> Actor:
        """The actor for a token's staff id, with today's role. Raises NoSuchStaff, StaffDisabled."""
        account = await self.by_id(conn, staff)
        if account.disabled_at is not None:
            raise StaffDisabled
        return account.actor()


class CreatedKey(NamedTuple):
    id: str
    secret: str  # shown once


class ApiKey(msgspec.Struct, frozen=True):
    id: str
    name: str
    permissions: tuple[Permission, ...]
    created_at: datetime
    revoked_at: datetime | None


class ApiKeys:
    async def create(self, t: Transaction, name: str, permissions: Sequence[Permission]) -> CreatedKey:
        """A key of a shop's server. Raises BadRequest."""
        name = _check_name(name, KEY_NAME_MAX)
        wanted = sorted(set(permissions))
        if not wanted or not set(wanted) <= set(get_args(Permission)):
            raise BadRequest("A key has at least one permission, and only such as there are.")
        key = CreatedKey(new_id(), KEY_PREFIX + secrets.token_urlsafe(32))
        await t.conn.execute(
            "INSERT INTO api_keys (id, name, secret_digest, permissions) VALUES (%s, %s, %s, %s)",
            (key.id, name, _digest(key.secret), wanted),
        )
        return key

    async def verify(self, conn: Connection, secret: str) -> Actor:
        """The shop server behind a key. Raises InvalidApiKey, also for a revoked one."""
        if not secret.startswith(KEY_PREFIX) or len(secret) > SECRET_MAX:
            raise InvalidApiKey
        # looked up by digest: how long that takes tells nothing of the secret
        row = await (
            await conn.execute(
                "SELECT id, name, permissions FROM api_keys WHERE secret_digest = %s AND revoked_at IS NULL",
                (_digest(secret),),
            )
        ).fetchone()
        if row is None:
            raise InvalidApiKey
        return Actor(
            kind="shop", id=str(row["id"]), name=row["name"], permissions=frozenset(row["permissions"])
        )

    async def revoke(self, t: Transaction, key: str) -> None:
        """End a key; again changes nothing. Raises NotFound."""
        done = None
        if is_id(key):
            done = await t.conn.execute(
                "UPDATE api_keys SET revoked_at = coalesce(revoked_at, clock_timestamp()) WHERE id = %s",
                (key,),
            )
        if done is None or done.rowcount == 0:
            raise NotFound("There is no such API key.")

    async def list(self, conn: Connection) -> tuple[ApiKey, ...]:
        """All keys without their secrets, oldest first."""
        rows = await (
            await conn.execute(
                "SELECT id, name, permissions, created_at, revoked_at FROM api_keys ORDER BY id LIMIT 1000"
            )
        ).fetchall()
        return tuple(
            ApiKey(
                str(row["id"]), row["name"], tuple(row["permissions"]), row["created_at"], row["revoked_at"]
            )
            for row in rows
        )
