"""Delivery addresses of a member. An order keeps a copy of its own."""

from __future__ import annotations

import re

import msgspec
from psycopg.rows import DictRow

from membership.actor import AddressId, MemberId, is_id, new_id
from membership.line import clean_line
from membership.members import NoSuchMember, lock_member, parse_phone
from membership.refusal import BadRequest, NotFound, Refusal
from membership.transaction import Connection, Transaction

ADDRESSES_MAX = 20  # a member
# As every region begins: freight and coverage go by it. A city alone would be sent as the rest of the country is.
_PROVINCE = re.compile(
    "北京|天津|上海|重庆|河北|山西|内蒙古|辽宁|吉林|黑龙江|江苏|浙江|安徽|福建|江西|山东|河南|湖北|湖南|广东|广西|海南"
    "|四川|贵州|云南|西藏|陕西|甘肃|青海|宁夏|新疆|台湾|香港|澳门"
)
MUNICIPALITIES = frozenset({"北京", "天津", "上海", "重庆"})
NAME_MAX, REGION_MAX, DETAIL_MAX = 40, 60, 120  # code points


class InvalidAddress(BadRequest):
    """An address needs a name, a mobile number, a region and the street."""

    code = "invalid_address"


class TooManyAddresses(Refusal):
    """A member keeps at most 20 addresses; remove one first."""

    code = "limit_reached"


class NoSuchAddress(NotFound):
    """There is no such address."""


_PLACE = re.compile(
    r"(?P<province>.+?省|.+?自治区|.+?特别行政区|(?:北京|天津|上海|重庆)市?)?"
    r"(?P<city>.+?(?:自治州|地区|盟|市))?(?P<district>.*)"
)


def region_parts(region: str) -> tuple[str, str, str]:
    """Province, city and district of a region as it was written; what cannot be told apart stays together
    in the last. A municipality is its own city."""
    words = region.replace("/", " ").split()
    if len(words) >= 3:
        return words[0], words[1], "".join(words[2:])
    matched = _PLACE.fullmatch("".join(words))
    if matched is None:
        return "", "", "".join(words)
    province, city = matched["province"] or "", matched["city"] or ""
    if province.rstrip("市") in MUNICIPALITIES and not city:
        city = province
    return province, city, matched["district"]


class AddressInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    phone: str
    region: str  # 浙江省 杭州市 西湖区
    detail: str


class Address(msgspec.Struct, frozen=True):
    id: AddressId
    name: str
    phone: str  # E.164
    region: str
    detail: str


def check_address(given: AddressInput) -> AddressInput:
    """The address as it is kept. Raises InvalidAddress naming the field, or InvalidPhone."""
    kept = {}
    for field, length_max in (("name", NAME_MAX), ("region", REGION_MAX), ("detail", DETAIL_MAX)):
        text = clean_line(getattr(given, field))
        if not 1 <= len(text) <= length_max:
            raise InvalidAddress(f"{field} has 1–{length_max} characters.", field=field)
        kept[field] = text
    if not _PROVINCE.match("".join(kept["region"].split())):
        raise InvalidAddress("region begins with the province, as in 浙江省 杭州市 西湖区.", field="region")
    return AddressInput(phone=parse_phone(given.phone), **kept)


def _address(row: DictRow) -> Address:
    return Address(AddressId(str(row["id"])), row["name"], row["phone"], row["region"], row["detail"])


class Addresses:
    async def list(self, conn: Connection, member: MemberId) -> tuple[Address, ...]:
        """Newest first."""
        rows = await (
            await conn.execute(
                "SELECT id, name, phone, region, detail FROM addresses WHERE member_id = %s ORDER BY id DESC",
                (member,),
            )
        ).fetchall()
        return tuple(_address(row) for row in rows)

    async def add(self, t: Transaction, member: MemberId, given: AddressInput) -> Address:
        """Keep an address, as the newest; the same one twice is kept once, under a new id if another one came
        between. Raises InvalidAddress, TooManyAddresses."""
        kept = check_address(given)
        # one at a time a member, so that twenty stay twenty
        if not await lock_member(t.conn, member):
            raise NoSuchMember
        held = await self.list(t.conn, member)
        for address in held:
            if AddressInput(address.name, address.phone, address.region, address.detail) != kept:
                continue
            if address != held[0]:
                again = msgspec.structs.replace(address, id=AddressId(new_id()))
                await t.conn.execute("UPDATE addresses SET id = %s WHERE id = %s", (again.id, address.id))
                return again
            return address
        if len(held) >= ADDRESSES_MAX:
            raise TooManyAddresses
        made = Address(AddressId(new_id()), kept.name, kept.phone, kept.region, kept.detail)
        await t.conn.execute(
            "INSERT INTO addresses (id, member_id, name, phone, region, detail)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            (made.id, member, made.name, made.phone, made.region, made.detail),
        )
        return made

    async def get(self, conn: Connection, member: MemberId, address: AddressId) -> Address:
        """Raises NoSuchAddress, also for somebody else's."""
        row = None
        if is_id(address):
            row = await (
                await conn.execute(
                    "SELECT id, name, phone, region, detail FROM addresses WHERE member_id = %s AND id = %s",
                    (member, address),
                )
            ).fetchone()
        if row is None:
            raise NoSuchAddress
        return _address(row)

    async def remove(self, t: Transaction, member: MemberId, address: AddressId) -> None:
        """Raises NoSuchAddress, also for somebody else's."""
        await self.get(t.conn, member, address)
        await t.conn.execute("DELETE FROM addresses WHERE member_id = %s AND id = %s", (member, address))
