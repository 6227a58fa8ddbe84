"""Audience: whom a room, offer, product, poll, benefit, page or price is for. One type, used everywhere.

A show holds at most eight audiences at a time; each has a bit, and the class of a viewer is the set
of bits that match. What a class may not have is never in its bytes.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from membership.actor import Actor, Facts, MemberId, PlanId, ShowId
from membership.refusal import Refusal
from membership.script import ScriptLoader

Kind = Literal["everyone", "registered", "plan_members", "plans", "tiers", "segment", "list"]


class Audience(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """everyone | registered | plan members | plans | tiers | segment | a list; and except."""

    kind: Kind = "everyone"
    plans: tuple[PlanId, ...] = ()
    tiers: tuple[str, ...] = ()
    segment: str | None = None
    members: tuple[MemberId, ...] = ()
    exclude: Audience | None = None

    def has(self, facts: Facts) -> bool:
        """Whether a person with these facts is in the audience."""
        if self.exclude is not None and self.exclude.has(facts):
            return False
        match self.kind:
            case "everyone":
                return True
            case "registered":
                return facts.registered
            case "plan_members":
                return bool(facts.plans)
            case "plans":
                return not facts.plans.isdisjoint(self.plans)
            case "tiers":
                return facts.tier in self.tiers
            case "segment":
                return self.segment in facts.segments
            case "list":
                return facts.member in self.members


EVERYONE = Audience()
PLAN_MEMBERS = Audience(kind="plan_members")

EVERYONE_BIT = 0
PLAN_MEMBERS_BIT = 1
FIRST_OWN_BIT, LAST_OWN_BIT = 2, 7  # up to six more a show
STAFF_BIT = 8
VOTERS_BIT = 9  # who has voted in the open poll: sees the tally
STAFF_MASK = (1 << 10) - 1


def mask_of(facts: Facts, own: list[Audience], *, voted: bool = False) -> int:
    """The class of a viewer: one bit for each of the show's audiences the viewer is in.

    `own` are the show's further audiences in the order of their bits, from FIRST_OWN_BIT.
    """
    mask = 1 << EVERYONE_BIT
    if PLAN_MEMBERS.has(facts):
        mask |= 1 << PLAN_MEMBERS_BIT
    for offset, audience in enumerate(own):
        if audience.has(facts):
            mask |= 1 << (FIRST_OWN_BIT + offset)
    if voted:
        mask |= 1 << VOTERS_BIT
    return mask


def mask_of_actor(actor: Actor, own: list[Audience], *, voted: bool = False) -> int:
    """Staff see every class; others by their facts."""
    return STAFF_MASK if actor.kind == "staff" else mask_of(actor.facts, own, voted=voted)


class TooManyAudiences(Refusal):
    """A show has at most eight audiences: everyone, plan members and six more."""

    code = "too_many_audiences"


class ShowAudiences:
    """The audiences a show uses, kept in Redis with the show; gives each its bit."""

    def __init__(self, scripts: ScriptLoader) -> None:
        self._register = scripts.load("membership", "register_audience")

    async def bit(self, show: ShowId, audience: Audience) -> int:
        """The bit of `audience` in `show`; taken on first use. Raises TooManyAudiences."""
        if audience == EVERYONE:
            return EVERYONE_BIT
        if audience == PLAN_MEMBERS:
            return PLAN_MEMBERS_BIT
        encoded = msgspec.json.encode(audience)
        offset = int(await self._register(show, [], [encoded, LAST_OWN_BIT - FIRST_OWN_BIT + 1]))
        if offset < 0:
            raise TooManyAudiences
        return FIRST_OWN_BIT + offset
