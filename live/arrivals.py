"""What the stores know of those who come in, many people in one read: ten thousand may come at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from chat.standings import TalkStanding
from commerce.seats import Standing
from live.gather import Gather
from membership.actor import Actor, BenefitId, MemberId, PollId, ShowId
from membership.plans import Term

if TYPE_CHECKING:
    from live.parts import Parts


REST_S = 0.01  # who comes within this time shares a read


class Card(NamedTuple):
    """A member's plan, and the seats they hold or wait for in one show."""

    term: Term | None
    seats: Mapping[BenefitId, Standing]


class Arrivals:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._members = Gather(self._read_members, rest_s=REST_S)
        self._cards = Gather(self._read_cards, rest_s=REST_S)
        self._talks = Gather(self._read_talks, rest_s=REST_S)

    async def member(self, member: MemberId) -> Actor | None:
        """The viewer with the facts of now; None for one unknown or erased. Raises what the pool raises."""
        return await self._members.get(member)

    async def card(self, show: ShowId, member: MemberId, *, seats: bool) -> Card:
        """`seats`: whether the show has any benefit."""
        return await self._cards.get((show if seats else None, member)) or Card(None, {})

    async def talk(self, show: ShowId, poll: PollId | None, person: str) -> TalkStanding:
        """Mute, and ballot in the poll the show shows. Raises Unavailable."""
        return await self._talks.get((show, poll, person)) or TalkStanding()

    async def close(self) -> None:
        for gather in (self._members, self._cards, self._talks):
            await gather.close()

    async def _read_members(self, members: Sequence[MemberId]) -> Mapping[MemberId, Actor]:
        async with self._parts.database.reading() as conn:
            return await self._parts.members.actors(conn, members)

    async def _read_cards(
        self, asked: Sequence[tuple[ShowId | None, MemberId]]
    ) -> Mapping[tuple[ShowId | None, MemberId], Card]:
        of_show: dict[ShowId | None, list[MemberId]] = defaultdict(list)
        for show, member in asked:
            of_show[show].append(member)
        found: dict[tuple[ShowId | None, MemberId], Card] = {}
        async with self._parts.database.reading() as conn:
            terms = await self._parts.plans.current_of(conn, [member for _, member in asked])
            for show, members in of_show.items():
                seats = {} if show is None else await self._parts.seats.standing_of(conn, show, members)
                for member in members:
                    found[show, member] = Card(terms.get(member), seats.get(member, {}))
        return found

    async def _read_talks(
        self, asked: Sequence[tuple[ShowId, PollId | None, str]]
    ) -> Mapping[tuple[ShowId, PollId | None, str], TalkStanding]:
        of_show: dict[tuple[ShowId, PollId | None], list[str]] = defaultdict(list)
        for show, poll, person in asked:
            of_show[show, poll].append(person)
        found: dict[tuple[ShowId, PollId | None, str], TalkStanding] = {}
        for (show, poll), people in of_show.items():
            for person, standing in (await self._parts.standings.standing(show, poll, people)).items():
                found[show, poll, person] = standing
        return found
