"""What the talk of a show knows of viewers who come in: mutes and ballots, many in one read."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from membership.actor import PollId, ShowId, public_id
from membership.script import Arg, ScriptLoader


class TalkStanding(msgspec.Struct, frozen=True):
    """Until when one may not comment (ms, None when they may), and their ballot in the shown poll."""

    muted_until: int | None = None
    choices: list[int] | None = None


class _Ballot(msgspec.Struct):
    c: list[int]


_BALLOT = msgspec.json.Decoder(_Ballot)


class Standings:
    def __init__(self, scripts: ScriptLoader) -> None:
        self._read = scripts.load("chat", "read_viewers")

    async def standing(
        self, show: ShowId, poll: PollId | None, people: Sequence[str]
    ) -> dict[str, TalkStanding]:
        """By person (member's id, else guest's); `poll` is the one the show shows. Raises Unavailable."""
        args: list[Arg] = []
        for person in people:
            args += [public_id(show, person), person]
        flat = await self._read(show, ["mutes", f"poll:{poll or ''}:ballots"], args)
        return {
            person: TalkStanding(
                muted_until=int(until) or None, choices=_BALLOT.decode(ballot).c if ballot else None
            )
            for person, until, ballot in zip(people, flat[::2], flat[1::2], strict=True)
        }
