"""Who asks: the ids of every kind of thing, and the actor that each domain method is given.

An actor is decided once, at the door (token, cookie or API key); below that nobody asks again.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import b32encode
from typing import Literal, NewType

import msgspec
import uuid_utils

from membership.refusal import Unauthenticated

MemberId = NewType("MemberId", str)
GuestId = NewType("GuestId", str)
StaffId = NewType("StaffId", str)
RoomId = NewType("RoomId", str)
ShowId = NewType("ShowId", str)
PlanId = NewType("PlanId", str)
ProductId = NewType("ProductId", str)
OfferId = NewType("OfferId", str)
BenefitId = NewType("BenefitId", str)
OrderId = NewType("OrderId", str)
PaymentId = NewType("PaymentId", str)
PollId = NewType("PollId", str)
AddressId = NewType("AddressId", str)

Permission = Literal[
    "show.run",  # start, pause, end, cues, announcement
    "chat.moderate",  # hide, pin, mute, reply
    "offer.run",  # open and close offers and benefits
    "catalog.write",  # products, prices, plans
    "member.read",  # members, their orders and tags
    "member.write",  # feed members in, mint viewer tokens
    "report.read",
    "room.write",  # rooms and shows
    "staff.write",  # staff accounts and API keys
    "approve",  # grant what another asked for; set budgets
    "incident.run",  # stop and go on with everything that takes money
]

Role = Literal["owner", "host", "assistant", "reviewer", "operator", "admin"]

PERMISSIONS: dict[Role, frozenset[Permission]] = {
    "owner": frozenset(
        {
            "show.run",
            "chat.moderate",
            "offer.run",
            "catalog.write",
            "member.read",
            "member.write",
            "report.read",
            "room.write",
            "staff.write",
            "approve",
            "incident.run",
        }
    ),
    "host": frozenset(
        {"show.run", "chat.moderate", "offer.run", "report.read", "room.write", "incident.run"}
    ),
    "assistant": frozenset({"chat.moderate", "offer.run", "report.read"}),
    "reviewer": frozenset({"chat.moderate"}),
    "operator": frozenset(
        {
            "catalog.write",
            "member.read",
            "member.write",
            "report.read",
            "room.write",
            "approve",
            "incident.run",
        }
    ),
    "admin": frozenset({"staff.write", "report.read", "incident.run"}),
}

# What reaches past one room: the catalogue, members and their orders, accounts and keys, the switch for money.
SHOP_WIDE: frozenset[Permission] = frozenset(
    {"catalog.write", "member.read", "member.write", "staff.write", "incident.run"}
)


def permissions_of(role: Role, room: RoomId | None) -> frozenset[Permission]:
    """What staff of a role may do. Bound to a room, they have nothing that reaches past it, whatever the role."""
    return PERMISSIONS[role] if room is None else PERMISSIONS[role] - SHOP_WIDE


class Facts(msgspec.Struct, frozen=True):
    """What decides which audiences a person is in. Loaded once per socket, again when it changes."""

    member: MemberId | None = None
    registered: bool = False
    plans: frozenset[PlanId] = frozenset()  # active now, paid or trial
    on_trial: bool = False  # what runs is a trial
    in_grace: bool = False  # no plan that runs is paid, and one is in its grace
    tier: str | None = None
    segments: frozenset[str] = frozenset()


NOBODY = Facts()


class Actor(msgspec.Struct, frozen=True):
    """Who asks. `id` is a MemberId, GuestId, StaffId, an API key's id or the job's name."""

    kind: Literal["viewer", "staff", "shop", "job"]
    id: str
    name: str = ""
    facts: Facts = NOBODY
    role: Role | None = None
    permissions: frozenset[Permission] = frozenset()
    room: RoomId | None = None  # staff bound to one room

    @property
    def member(self) -> MemberId | None:
        """The member behind a viewer; None for a guest, staff, a shop server and a job."""
        return self.facts.member

    def signed_in(self) -> MemberId:
        """The member behind a viewer. Raises Unauthenticated for everybody else."""
        if self.kind != "viewer" or self.member is None:
            raise Unauthenticated
        return self.member

    def may(self, permission: Permission) -> bool:
        return self.kind == "job" or permission in self.permissions


def new_id() -> str:
    """A UUIDv7 as text: sorts by time of making."""
    return str(uuid_utils.uuid7())


def id_from(at_s: float) -> str:
    """The least id of that moment (seconds since 1970): `new_id` gives none below it from then on."""
    ms = f"{int(at_s * 1000):012x}"
    return f"{ms[:8]}-{ms[8:]}-7000-8000-000000000000"


_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_id(text: str) -> bool:
    """Whether `text` has the shape of our ids. Ask before an id from outside reaches SQL."""
    return _ID.fullmatch(text) is not None


def public_id(show: ShowId, person: str) -> str:
    """Who a viewer is to others in one show: 60 bits of a hash; two shows give one person two ids."""
    digest = hashlib.blake2b(f"{show}\n{person}".encode(), digest_size=8, person=b"viewer").digest()
    return b32encode(digest).decode().lower()[:12]


_LINK_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"  # no 0/o, 1/l/i: read aloud on air


def new_link_id() -> str:
    """Ten characters for public links: 49 bits, read aloud without mistakes."""
    return "".join(secrets.choice(_LINK_ALPHABET) for _ in range(10))
