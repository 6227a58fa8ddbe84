from __future__ import annotations

import asyncio
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool

from membership.actor import AddressId, MemberId, new_id
from membership.addresses import (
    ADDRESSES_MAX,
    Addresses,
    AddressInput,
    InvalidAddress,
    NoSuchAddress,
    TooManyAddresses,
)
from membership.members import InvalidPhone, NoSuchMember
from tests.conftest import TransactionFactory
from tests.membership.conftest import MakeMember

pytestmark = pytest.mark.anyio

Pool = AsyncConnectionPool[Any]
HOME = AddressInput("王小明", "13812345678", "浙江省 杭州市 西湖区", "文三路 1 号")


async def test_an_address_is_kept_clean_and_shown_newest_first(
    make_member: MakeMember, tx: TransactionFactory
) -> None:
    addresses, member = Addresses(), await make_member()
    async with tx() as t:
        first = await addresses.add(t, member.id, HOME)
        second = await addresses.add(
            t, member.id, AddressInput(" 李\u202e雷 ", "+86 139 8765 4321", "上海市", "南京路\n2 号")
        )
        assert await addresses.list(t.conn, member.id) == (second, first)
        assert await addresses.get(t.conn, member.id, first.id) == first
    assert first.phone == "+8613812345678"
    assert (second.name, second.detail) == ("李雷", "南京路 2 号")


async def test_the_same_address_twice_is_kept_once(make_member: MakeMember, tx: TransactionFactory) -> None:
    addresses, member = Addresses(), await make_member()
    async with tx() as t:
        assert await addresses.add(t, member.id, HOME) == await addresses.add(t, member.id, HOME)
        assert len(await addresses.list(t.conn, member.id)) == 1


async def test_an_address_given_again_after_another_is_the_newest(
    make_member: MakeMember, tx: TransactionFactory
) -> None:
    addresses, member = Addresses(), await make_member()
    other = AddressInput("李雷", "13987654321", "上海市", "南京路 2 号")
    async with tx() as t:
        await addresses.add(t, member.id, HOME)
        newer = await addresses.add(t, member.id, other)
        newest = await addresses.add(t, member.id, HOME)
        assert await addresses.list(t.conn, member.id) == (newest, newer)
        assert await addresses.add(t, member.id, HOME) == newest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "长" * 41),
        ("name", "\u200b"),
        ("region", " "),
        ("region", "长" * 61),
        ("region", "杭州市 西湖区"),
        ("detail", ""),
        ("detail", "长" * 121),
    ],
)
async def test_a_bad_field_is_named(
    make_member: MakeMember, tx: TransactionFactory, field: str, value: str
) -> None:
    member = await make_member()
    parts = {"name": HOME.name, "phone": HOME.phone, "region": HOME.region, "detail": HOME.detail}
    async with tx() as t:
        with pytest.raises(InvalidAddress) as refusal:
            await Addresses().add(t, member.id, AddressInput(**(parts | {field: value})))
    assert refusal.value.details == {"field": field}


async def test_a_parcel_needs_a_mobile_number(make_member: MakeMember, tx: TransactionFactory) -> None:
    member = await make_member()
    async with tx() as t:
        with pytest.raises(InvalidPhone):
            await Addresses().add(t, member.id, AddressInput("王", "010 6552 9988", "北京市", "长安街"))


async def test_somebody_elses_address_is_not_there(make_member: MakeMember, tx: TransactionFactory) -> None:
    addresses, owner, other = Addresses(), await make_member(), await make_member()
    async with tx() as t:
        made = await addresses.add(t, owner.id, HOME)
        for address in (made.id, AddressId(new_id()), AddressId("x")):
            with pytest.raises(NoSuchAddress):
                await addresses.get(t.conn, other.id, address)
            with pytest.raises(NoSuchAddress):
                await addresses.remove(t, other.id, address)
        assert await addresses.list(t.conn, owner.id) == (made,)
        await addresses.remove(t, owner.id, made.id)
        assert await addresses.list(t.conn, owner.id) == ()


async def test_nobody_keeps_no_address(tx: TransactionFactory) -> None:
    with pytest.raises(NoSuchMember):
        async with tx() as t:
            await Addresses().add(t, MemberId(new_id()), HOME)


async def test_twenty_stay_twenty_also_when_many_come_at_once(
    make_member: MakeMember, tx: TransactionFactory, pool: Pool
) -> None:
    addresses, member = Addresses(), await make_member()

    async def add(number: int) -> str:
        try:
            async with tx() as t:
                await addresses.add(t, member.id, AddressInput("王", "13812345678", "上海市", f"{number} 号"))
        except TooManyAddresses as refusal:
            return refusal.word
        return "added"

    added = await asyncio.gather(*(add(number) for number in range(ADDRESSES_MAX + 5)))
    assert sorted(added) == ["added"] * ADDRESSES_MAX + ["limit_reached"] * 5
    async with pool.connection() as conn:
        assert len(await addresses.list(conn, member.id)) == ADDRESSES_MAX
