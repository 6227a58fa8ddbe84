"""Rooms: an address of their own, an audience, and who may make them."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from live.database import Database
from live.lua import Scripts
from live.rooms import RoomInput, RoomPatch, SlugTaken
from membership.actor import RoomId, new_id
from membership.audience import EVERYONE, PLAN_MEMBERS
from membership.refusal import BadRequest, Forbidden, NotFound
from tests.live.stage import Stage, staff, viewer

pytestmark = pytest.mark.anyio


@pytest.fixture
def stage(redis: Redis, scripts: Scripts, database: Database) -> Stage:
    return Stage(redis, scripts, database)


async def test_a_room_is_found_by_id_and_by_its_address(stage: Stage, tx: Any) -> None:
    async with tx() as t:
        made = await stage.rooms.create(
            t, stage.host, RoomInput(title=" 会员健康夜 ", slug="health-night", audience=PLAN_MEMBERS)
        )
        assert made.title == "会员健康夜"
        assert await stage.rooms.get(t.conn, made.id) == made
        assert await stage.rooms.get(t.conn, "health-night") == made
        assert await stage.rooms.list(t.conn) == [made]
        for unknown in (new_id(), "nothing-here", "", "\0"):
            with pytest.raises(NotFound):
                await stage.rooms.get(t.conn, unknown)


async def test_an_address_is_taken_once_and_the_transaction_goes_on(stage: Stage, tx: Any) -> None:
    async with tx() as t:
        await stage.rooms.create(t, stage.owner, RoomInput(title="一", slug="same"))
        with pytest.raises(SlugTaken):
            await stage.rooms.create(t, stage.owner, RoomInput(title="二", slug="same"))
        await stage.rooms.create(t, stage.owner, RoomInput(title="三"))
    async with tx() as t:
        assert len(await stage.rooms.list(t.conn)) == 2


@pytest.mark.parametrize(
    "given",
    [
        {"title": " "},
        {"title": "长" * 41},
        {"title": "好", "slug": "-a"},
        {"title": "好", "slug": "A b"},
        {"title": "好", "slug": "健康"},
        {"title": "好", "slug": ""},
        {"title": "好", "host_name": "长" * 25},
    ],
    ids=str,
)
async def test_a_room_out_of_bounds_is_refused(stage: Stage, tx: Any, given: dict[str, str]) -> None:
    async with tx() as t:
        with pytest.raises(BadRequest):
            await stage.rooms.create(t, stage.owner, RoomInput(**given))


async def test_only_who_writes_rooms_may_and_staff_of_one_room_only_in_theirs(stage: Stage, tx: Any) -> None:
    room, other = await stage.room(title="一"), await stage.room(title="二")
    bound = staff("host", room.id)
    async with tx() as t:
        for actor in (viewer(), staff("assistant"), staff("reviewer"), bound):
            with pytest.raises(Forbidden):
                await stage.rooms.create(t, actor, RoomInput(title="好"))
        with pytest.raises(Forbidden):
            await stage.rooms.update(t, bound, other.id, RoomPatch(title="改"))
        changed = await stage.rooms.update(t, bound, room.id, RoomPatch(title="改"))
        assert (changed.title, changed.host_name) == ("改", "小禾")
        assert await stage.rooms.list(t.conn, bound) == [changed]
        with pytest.raises(NotFound):
            await stage.rooms.update(t, stage.owner, RoomId(new_id()), RoomPatch(title="改"))


async def test_the_open_shows_of_a_room_follow_its_audience(stage: Stage, tx: Any) -> None:
    room = await stage.room()
    show = await stage.show("live", room)
    async with tx() as t:
        await stage.rooms.update(t, stage.owner, room.id, RoomPatch(audience=PLAN_MEMBERS))
        await stage.shows.refresh_room(t, room.id)
    assert (await stage.log.changes(show.id, -1)).room_audience == PLAN_MEMBERS
    async with tx() as t:
        await stage.rooms.update(t, stage.owner, room.id, RoomPatch(audience=EVERYONE))
        await stage.shows.refresh_room(t, room.id)
    assert (await stage.log.changes(show.id, -1)).room_audience == EVERYONE
