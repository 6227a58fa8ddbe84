"""Factories for people and plans."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from membership.members import Member, Members
from membership.notices import STREAM, Notices
from membership.plans import Plan, PlanInput, Plans
from membership.transaction import Transaction
from tests.conftest import TransactionFactory

MakeMember = Callable[..., Awaitable[Member]]
MakePlan = Callable[..., Awaitable[Plan]]


async def told(redis: Redis) -> list[dict[str, str]]:
    """What was sent to members' sockets: member and message."""
    entries: Any = await redis.xrange(STREAM)
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]


async def break_off(tx: TransactionFactory, act: Callable[[Transaction], Awaitable[object]]) -> None:
    """Do something in a transaction that then fails and rolls back."""
    with suppress(ZeroDivisionError):
        async with tx() as t:
            await act(t)
            raise ZeroDivisionError


_phones = itertools.count(10_000_000)


def next_phone() -> str:
    """A mobile number that nobody else in this run has."""
    return f"138{next(_phones)}"


@pytest.fixture
def notices(redis: Redis) -> Notices:
    return Notices(redis)


@pytest.fixture
def members(notices: Notices) -> Members:
    return Members(notices)


@pytest.fixture
def plans(notices: Notices) -> Plans:
    return Plans(notices, b"a secret of this test")


@pytest.fixture
def make_member(members: Members, tx: TransactionFactory) -> MakeMember:
    async def make(phone: str | None = None, nickname: str | None = None) -> Member:
        async with tx() as t:
            return await members.register(t, phone or next_phone(), nickname)

    return make


@pytest.fixture
def make_plan(plans: Plans, tx: TransactionFactory) -> MakePlan:
    async def make(
        name: str = "金穗年卡", fee_fen: int = 19_900, period_months: int = 12, trial_days: int = 7
    ) -> Plan:
        async with tx() as t:
            return await plans.create(
                t, PlanInput(name=name, fee_fen=fee_fen, period_months=period_months, trial_days=trial_days)
            )

    return make
