"""People of a show, and what a class of viewers sees of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from live.log import Entry, ShowLog, redacted
from live.lua import Scripts
from membership.actor import PERMISSIONS, Actor, Facts, MemberId, PlanId, Role, ShowId, new_id

MakeViewer = Callable[..., Actor]
See = Callable[[ShowId, int], Awaitable[dict[str, dict[str, Any]]]]
Entries = Callable[[ShowId], Awaitable[list[Entry]]]


@pytest.fixture
def make_viewer() -> MakeViewer:
    """A registered viewer; a plan member with plan=True; a guest with guest=True."""

    def make(name: str = "王小明", *, plan: bool = False, guest: bool = False) -> Actor:
        if guest:
            return Actor(kind="viewer", id=f"g_{new_id()}")
        member = MemberId(new_id())
        plans = frozenset({PlanId(new_id())}) if plan else frozenset[PlanId]()
        facts = Facts(member=member, registered=True, plans=plans)
        return Actor(kind="viewer", id=member, name=name, facts=facts)

    return make


@pytest.fixture
def make_staff() -> Callable[[Role], Actor]:
    def make(role: Role) -> Actor:
        return Actor(kind="staff", id=new_id(), name="小禾", role=role, permissions=PERMISSIONS[role])

    return make


@pytest.fixture
def host(make_staff: Callable[[Role], Actor]) -> Actor:
    return make_staff("host")


@pytest.fixture
def see(redis: Redis, scripts: Scripts) -> See:
    """The states that a class (mask of bits) sees now."""
    log = ShowLog(redis, scripts)

    async def seen(show: ShowId, mask: int) -> dict[str, dict[str, Any]]:
        changes = await log.changes(show, -1)
        found = {state.key: state.seen_by(mask) for state in changes.states}
        return {key: data for key, data in found.items() if data is not None}

    return seen


@pytest.fixture
def entries(redis: Redis, scripts: Scripts) -> Entries:
    """The show's log, hidden entries redacted."""
    log = ShowLog(redis, scripts)

    async def read(show: ShowId) -> list[Entry]:
        return redacted((await log.changes(show, -1, 1000)).entries)

    return read
