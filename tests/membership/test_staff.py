from __future__ import annotations

import asyncio
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool

from membership.actor import PERMISSIONS, Role, RoomId, StaffId, new_id
from membership.refusal import BadRequest, NotFound, Unauthenticated
from membership.staff import (
    ApiKeys,
    InvalidApiKey,
    LinkExpired,
    LinkUsed,
    NoSuchStaff,
    Staff,
    StaffAccount,
    StaffDisabled,
    UnknownLink,
)
from tests.conftest import TransactionFactory

pytestmark = pytest.mark.anyio

Pool = AsyncConnectionPool[Any]


@pytest.fixture
async def host(tx: TransactionFactory) -> StaffAccount:
    async with tx() as t:
        return await Staff().create(t, " 小禾 ", "host", RoomId(new_id()))


async def test_an_account_acts_with_the_permissions_of_its_role(host: StaffAccount, pool: Pool) -> None:
    async with pool.connection() as conn:
        actor = await Staff().actor(conn, host.id)
        assert await Staff().list(conn) == (host,)
    assert (actor.kind, actor.id, actor.name, actor.role, actor.room) == (
        "staff",
        host.id,
        "小禾",
        "host",
        host.room,
    )
    assert actor.permissions == PERMISSIONS["host"] - {"incident.run"}  # of one room
    assert not actor.may("staff.write")


@pytest.mark.parametrize(
    ("name", "role", "room"),
    [("", "host", None), ("长" * 41, "host", None), ("甲", "god", None), ("甲", "host", "x")],
)
async def test_a_bad_account_is_refused(tx: TransactionFactory, name: str, role: Any, room: Any) -> None:
    async with tx() as t:
        with pytest.raises(BadRequest):
            await Staff().create(t, name, role, room)


@pytest.mark.parametrize("role", PERMISSIONS)
async def test_in_one_room_no_role_reaches_past_it(tx: TransactionFactory, role: Role) -> None:
    async with tx() as t:
        bound = (await Staff().create(t, "小禾", role, RoomId(new_id()))).actor()
        free = (await Staff().create(t, "小禾", role)).actor()
    assert free.permissions == PERMISSIONS[role]
    assert bound.permissions == PERMISSIONS[role] & {
        "show.run",
        "chat.moderate",
        "offer.run",
        "report.read",
        "room.write",
        "approve",
    }


async def test_a_link_opens_the_door_once(host: StaffAccount, tx: TransactionFactory) -> None:
    async with tx() as t:
        token = await Staff().sign_in_link(t, host.id)
    async with tx() as t:
        assert await Staff().exchange(t, token) == host
    with pytest.raises(LinkUsed) as refusal:
        async with tx() as t:
            await Staff().exchange(t, token)
    assert refusal.value.word == "link_used"


async def test_ten_at_once_with_one_link_open_one_door(host: StaffAccount, tx: TransactionFactory) -> None:
    async with tx() as t:
        token = await Staff().sign_in_link(t, host.id)

    async def exchange() -> bool:
        try:
            async with tx() as t:
                await Staff().exchange(t, token)
        except LinkUsed:
            return False
        return True

    assert sum(await asyncio.gather(*(exchange() for _ in range(10)))) == 1


async def test_a_link_lives_ten_minutes(host: StaffAccount, tx: TransactionFactory) -> None:
    async with tx() as t:
        token = await Staff().sign_in_link(t, host.id)
        row = await (
            await t.conn.execute("SELECT extract(epoch FROM expires_at - now()) AS left_s FROM staff_links")
        ).fetchone()
        assert row is not None and 599 < row["left_s"] <= 601
        await t.conn.execute("UPDATE staff_links SET expires_at = clock_timestamp()")
        with pytest.raises(LinkExpired) as refusal:
            await Staff().exchange(t, token)
    assert refusal.value.word == "link_expired"


@pytest.mark.parametrize("token", ["", "x", "é" * 20, "\ud800", "x" * 10_000])
async def test_what_is_no_link_is_refused(tx: TransactionFactory, token: str) -> None:
    async with tx() as t:
        with pytest.raises(UnknownLink):
            await Staff().exchange(t, token)


async def test_a_disabled_account_opens_nothing(host: StaffAccount, tx: TransactionFactory) -> None:
    async with tx() as t:
        token = await Staff().sign_in_link(t, host.id)
        assert (await Staff().disable(t, host.id)).disabled_at is not None
        with pytest.raises(StaffDisabled):
            await Staff().sign_in_link(t, host.id)
        with pytest.raises(StaffDisabled):
            await Staff().actor(t.conn, host.id)
        with pytest.raises(StaffDisabled):
            await Staff().exchange(t, token)


async def test_an_unknown_account_is_refused(pool: Pool) -> None:
    async with pool.connection() as conn:
        for staff in (StaffId(new_id()), StaffId("x")):
            with pytest.raises(NoSuchStaff):
                await Staff().actor(conn, staff)


async def test_neither_link_nor_key_is_kept(host: StaffAccount, tx: TransactionFactory) -> None:
    async with tx() as t:
        token = await Staff().sign_in_link(t, host.id)
        key = await ApiKeys().create(t, "商城", ["member.write"])
        rows = await (await t.conn.execute("SELECT * FROM staff_links")).fetchall()
        rows += await (await t.conn.execute("SELECT * FROM api_keys")).fetchall()
    assert token not in repr(rows) and key.secret not in repr(rows)


async def test_a_key_acts_with_its_permissions_until_revoked(tx: TransactionFactory) -> None:
    keys = ApiKeys()
    async with tx() as t:
        key = await keys.create(t, "商城", ["member.write", "catalog.write"])
        actor = await keys.verify(t.conn, key.secret)
        assert (actor.kind, actor.id, actor.name) == ("shop", key.id, "商城")
        assert actor.permissions == {"member.write", "catalog.write"}
        assert key.secret.startswith("ck_")
        await keys.revoke(t, key.id)
        await keys.revoke(t, key.id)
        (listed,) = await keys.list(t.conn)
        assert listed.revoked_at is not None
        with pytest.raises(InvalidApiKey):
            await keys.verify(t.conn, key.secret)
        for unknown in (new_id(), "x"):
            with pytest.raises(NotFound):
                await keys.revoke(t, unknown)


@pytest.mark.parametrize("permissions", [[], ["everything"], ["member.write", "x"]])
async def test_a_key_has_only_permissions_that_there_are(tx: TransactionFactory, permissions: Any) -> None:
    async with tx() as t:
        with pytest.raises(BadRequest):
            await ApiKeys().create(t, "商城", permissions)


@pytest.mark.parametrize("secret", ["", "ck_", "ck_x", "ck_" + "x" * 500, "\ud800", "ck_\ud800", "ck_\0"])
async def test_what_is_no_key_is_refused(pool: Pool, secret: str) -> None:
    async with pool.connection() as conn:
        with pytest.raises(Unauthenticated):
            await ApiKeys().verify(conn, secret)
