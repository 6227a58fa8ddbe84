"""Polls: open, cast one ballot a person, close; the tally, hidden until voted or closed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, get_args

import msgspec
from msgspec import UNSET

from chat.comments import NotLive, answer_of, digest_of, need
from chat.messages import PollOpened, Results, encoded
from chat.text import bounded
from membership.actor import Actor, PollId, ShowId, is_id, new_id
from membership.audience import EVERYONE, STAFF_BIT, VOTERS_BIT, Audience, ShowAudiences
from membership.behaviour import encode, record_of
from membership.moment import in_ms
from membership.personal import Personal
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal, Unavailable
from membership.script import ScriptLoader, json_arg
from membership.transaction import Connection, Transaction

QUESTION_MAX, CHOICE_MAX = 200, 60  # code points
CHOICES_MIN, CHOICES_MAX = 2, 10
SECONDS_MIN, SECONDS_MAX = 15, 1_800
_OPEN_IN = ("waiting", "live", "paused")
_PAGE = 2_000  # ballots copied a step
_KEPT_S = 86_400
_REMEMBERED = 256  # definitions; a poll's never changes


PERSONAL_OF_BALLOTS = (
    Personal(
        "ballots",
        ("person", "member_id"),
        "UPDATE ballots SET person = gen_random_uuid()::text, member_id = NULL WHERE member_id = %(member)s",
    ),
)


class PollOpen(Refusal):
    """Another poll is open; close it first."""

    code = "poll_open"


class Closed(Refusal):
    """This poll is closed."""

    code = "closed"


class AlreadyVoted(Refusal):
    """You have voted in this poll."""

    code = "already_voted"


class NotEligible(Refusal):
    """This poll is for others."""

    code = "not_eligible"


class Tally(msgspec.Struct, frozen=True):
    """How many voted, and the ballots for each choice."""

    voters: int
    tally: list[int]


class Poll(msgspec.Struct, frozen=True, kw_only=True):
    """One question put to a show. `result` is there once it is closed."""

    id: PollId
    show: ShowId
    question: str
    choices: list[str]
    max_choices: int
    results: Results
    audience: Audience
    opened_at: int  # ms
    closes_at: int | None = None
    closed_at: int | None = None
    result: Tally | None = None


class _Cast(msgspec.Struct, frozen=True):
    """The recorded answer to a ballot."""

    choices: list[int]


class _Definition(msgspec.Struct, frozen=True):
    """What casting needs to know of a poll; kept with it in Redis."""

    choices: int
    max_choices: int
    audience: Audience


class Polls:
    """The polls of shows. Redis decides while one is open; PostgreSQL keeps ballots and tally after."""

    def __init__(self, scripts: ScriptLoader, audiences: ShowAudiences) -> None:
        self._audiences = audiences
        self._definitions: dict[PollId, _Definition] = {}
        self._open = scripts.load("chat", "open_poll")
        self._cast = scripts.load("chat", "cast_ballot")
        self._close = scripts.load("chat", "close_poll")
        self._read = scripts.load("chat", "read_poll")
        self._read_shown = scripts.load("chat", "read_shown_poll")
        self._read_ballots = scripts.load("chat", "read_ballots")
        self._rebuild_ballots = scripts.load("chat", "rebuild_ballots")

    async def open(
        self,
        t: Transaction,
        actor: Actor,
        show: ShowId,
        question: str,
        choices: Sequence[str],
        max_choices: int = 1,
        results: Results = "after_vote",
        audience: Audience = EVERYONE,
        seconds: int | None = None,
    ) -> Poll:
        """Open a poll; it reaches its audience once the transaction has committed.

        Raises BadRequest, NotFound, NotLive (not in the waiting room, on air or paused), PollOpen, Forbidden,
        TooManyAudiences.
        """
        need(actor, "show.run", "offer.run")
        asked, offered = check_poll(question, choices, max_choices, results, seconds)
        # Locks the show's state: a poll is not opened into a show that is ending at this moment.
        cursor = await t.conn.execute("SELECT state FROM shows WHERE id = %s FOR SHARE", [show])
        row = await cursor.fetchone()
        if row is None:
            raise NotFound
        if row["state"] not in _OPEN_IN:
            raise NotLive
        await self._audiences.bit(show, audience)  # refused now, not after the commit
        cursor = await t.conn.execute(
            "INSERT INTO polls (id, show_id, question, choices, max_choices, results, audience,"
            " opened_by, closes_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s,"
            " now() + make_interval(secs => %s)) ON CONFLICT (show_id) WHERE closed_at IS NULL DO NOTHING"
            " RETURNING *",
            [
                new_id(),
                show,
                asked,
                json_arg(offered).decode(),
                max_choices,
                results,
                json_arg(audience).decode(),
                actor.id,
                seconds,
            ],
        )
        row = await cursor.fetchone()
        if row is None:
            raise PollOpen
        poll = _poll(row)
        t.after_commit(lambda: self._put(poll, announce=True))
        return poll

    async def cast(
        self, actor: Actor, show: ShowId, poll: PollId, choices: Sequence[int], key: str | None
    ) -> list[int]:
        """Cast a viewer's one ballot; answers the choices that count. A repeat of `key` is answered the same.

        Raises BadRequest, Forbidden (staff do not vote), NotFound, NotEligible, Closed, AlreadyVoted,
        KeyReused.
        """
        if actor.kind != "viewer":
            raise Forbidden("Only viewers vote.")
        if not key:
            raise BadRequest("A ballot needs a key.")
        definition = await self._definition(show, poll)
        if not definition.audience.has(actor.facts):
            raise NotEligible
        chosen = sorted(set(choices))
        if len(chosen) != len(choices):
            raise BadRequest("A choice counts once.")
        if not 1 <= len(chosen) <= definition.max_choices:
            raise BadRequest(f"Choose 1 to {definition.max_choices}.", limit=definition.max_choices)
        if not all(0 <= choice < definition.choices for choice in chosen):
            raise BadRequest("There is no such choice.")
        records = [encode(record_of(actor, "ballot", f"poll:{poll}:{choice}", value=1)) for choice in chosen]
        try:
            answer = await self._cast(
                show,
                [f"poll:{poll}", f"poll:{poll}:ballots"],
                [
                    poll,
                    actor.id,
                    key,
                    digest_of("ballot.cast", poll, chosen),
                    json_arg(chosen),
                    len(records),
                    *records,
                    *chosen,
                ],
            )
        except Refusal as refusal:
            kinds = {"closed": Closed, "already_voted": AlreadyVoted, "not_found": NotFound}
            if refusal.word in kinds:
                raise kinds[refusal.word] from None
            raise
        return msgspec.json.decode(answer_of(answer), type=_Cast).choices

    async def close(self, t: Transaction, actor: Actor, show: ShowId, poll: PollId) -> Tally:
        """Close a poll and keep its ballots and tally. Closing again answers the same.

        Redis closes first: a transaction that fails leaves a poll to close again, never a lost ballot.
        """
        need(actor, "show.run", "offer.run")
        row = await self._row(t.conn, poll, lock=True)
        if row["show_id"] != show:
            raise NotFound
        found = _poll(row)
        if found.result is not None:
            return found.result
        bit = await self._audiences.bit(show, found.audience)
        answer = await self._close(
            show,
            [f"poll:{poll}", f"poll:{poll}:ballots"],
            [poll, _parts(found, bit, open_=False), bit, _KEPT_S],
        )
        tally = (
            msgspec.json.decode(answer, type=Tally) if answer else Tally(0, [0 for _ in found.choices])
        )  # no answer: the row was committed, but never reached the show
        cursor = b"0"
        while answer:
            cursor, flat = await self._read_ballots(show, [f"poll:{poll}:ballots"], [cursor, _PAGE])
            await self._keep(t, poll, dict(zip(flat[::2], flat[1::2], strict=True)))
            if cursor == b"0":
                break
        await t.conn.execute(
            "UPDATE polls SET closed_at = now(), voters = %s, tally = %s WHERE id = %s",
            [tally.voters, tally.tally, poll],
        )
        return tally

    async def close_open(self, t: Transaction, actor: Actor, show: ShowId) -> Tally | None:
        """Close the show's open poll; None when there is none."""
        cursor = await t.conn.execute("SELECT id FROM polls WHERE show_id = %s AND closed_at IS NULL", [show])
        row = await cursor.fetchone()
        return None if row is None else await self.close(t, actor, show, PollId(str(row["id"])))

    async def due(self, conn: Connection) -> list[tuple[ShowId, PollId]]:
        """The polls whose time is up and that are still open: a job closes them."""
        cursor = await conn.execute(
            "SELECT show_id, id FROM polls WHERE closed_at IS NULL AND closes_at <= now() ORDER BY closes_at"
        )
        return [(ShowId(row["show_id"]), PollId(str(row["id"]))) for row in await cursor.fetchall()]

    async def settle(self, conn: Connection) -> int:
        """Put polls that were committed but never reached their show, for a job; how many are open."""
        cursor = await conn.execute("SELECT * FROM polls WHERE closed_at IS NULL ORDER BY opened_at")
        rows = await cursor.fetchall()
        for row in rows:
            with contextlib.suppress(Unavailable):  # the show's keys are away; the next turn finds them
                await self._put(_poll(row), announce=True)
        return len(rows)

    async def ballot_of(self, show: ShowId, poll: PollId, person: str) -> list[int] | None:
        """What a person (member's id, else guest's) has voted; None when they have not."""
        found = await self._read(show, [f"poll:{poll}", f"poll:{poll}:ballots"], [person])
        return msgspec.json.decode(found)["c"] if found else None

    async def voted(self, show: ShowId, poll: PollId, person: str) -> bool:
        """Whether a person has voted: then the class of the viewer has the voters' bit."""
        return await self.ballot_of(show, poll, person) is not None

    async def votes(self, show: ShowId, person: str) -> dict[PollId, list[int]]:
        """A person's ballot in the poll that the show shows (open, or closed last), by its id."""
        shown = await self._read_shown(show, [], [])
        if not shown:
            return {}
        poll = PollId(shown.decode())
        chosen = await self.ballot_of(show, poll, person)
        return {} if chosen is None else {poll: chosen}

    async def result(self, conn: Connection, poll: PollId) -> Poll:
        """A poll as recorded, with its result when closed. Raises NotFound."""
        return _poll(await self._row(conn, poll))

    async def of_show(self, conn: Connection, show: ShowId) -> list[Poll]:
        """The polls of a show in the order they were opened."""
        cursor = await conn.execute("SELECT * FROM polls WHERE show_id = %s ORDER BY opened_at, id", [show])
        return [_poll(row) for row in await cursor.fetchall()]

    async def rebuild(self, conn: Connection, show: ShowId) -> None:
        """Take the open poll up again in a reborn show, with the ballots that were recorded."""
        cursor = await conn.execute("SELECT * FROM polls WHERE show_id = %s AND closed_at IS NULL", [show])
        row = await cursor.fetchone()
        if row is None:
            return
        poll = _poll(row)
        await self._put(poll, announce=False)
        prefix = f"poll:{poll.id}:"
        cursor = await conn.execute(
            "SELECT viewer, min(at) AS at, array_agg(DISTINCT substr(subject, %s)::int) AS choices"
            " FROM behaviour_records WHERE show_id = %s AND kind = 'ballot' AND viewer IS NOT NULL"
            " AND starts_with(subject, %s)"
            " GROUP BY viewer",
            [len(prefix) + 1, show, prefix],
        )
        while rows := await cursor.fetchmany(_PAGE):
            pairs: list[str | bytes] = []
            for found in rows:
                pairs += [
                    found["viewer"],
                    json_arg({"c": sorted(found["choices"]), "at": in_ms(found["at"])}),
                ]
            await self._rebuild_ballots(show, [f"poll:{poll.id}:ballots"], [poll.id, *pairs])

    async def _put(self, poll: Poll, *, announce: bool) -> None:
        bit = await self._audiences.bit(poll.show, poll.audience)  # a reborn show may give it another
        definition = _Definition(len(poll.choices), poll.max_choices, poll.audience)
        event = PollOpened(
            poll=poll.id,
            question=poll.question,
            choices=poll.choices,
            max_choices=poll.max_choices,
            results=poll.results,
            closes_at=UNSET if poll.closes_at is None else poll.closes_at,
        )
        await self._open(
            poll.show,
            [f"poll:{poll.id}", f"poll:{poll.id}:ballots"],
            [
                poll.id,
                json_arg(definition),
                len(poll.choices),
                poll.max_choices,
                "" if poll.closes_at is None else poll.closes_at,
                _parts(poll, bit, open_=True),
                bit,
                encoded(event) if announce else "",
            ],
        )

    async def _definition(self, show: ShowId, poll: PollId) -> _Definition:
        """Read once a process and poll: it never changes."""
        known = self._definitions.get(poll)
        if known is None:
            if not is_id(poll):
                raise NotFound
            found = await self._read(show, [f"poll:{poll}", f"poll:{poll}:ballots"], [""])
            if not found:
                raise NotFound
            known = msgspec.json.decode(found, type=_Definition)
            if len(self._definitions) >= _REMEMBERED:
                del self._definitions[next(iter(self._definitions))]
            self._definitions[poll] = known
        return known

    async def _row(self, conn: Connection, poll: PollId, *, lock: bool = False) -> dict[str, Any]:
        if not is_id(poll):
            raise NotFound
        statement = (
            "SELECT * FROM polls WHERE id = %s FOR UPDATE" if lock else "SELECT * FROM polls WHERE id = %s"
        )
        cursor = await conn.execute(statement, [poll])
        row = await cursor.fetchone()
        if row is None:
            raise NotFound
        return row

    async def _keep(self, t: Transaction, poll: PollId, ballots: dict[bytes, bytes]) -> None:
        people: list[str] = []
        choices: list[str] = []
        times: list[datetime] = []
        for person, found in ballots.items():
            ballot = msgspec.json.decode(found)
            people.append(person.decode())
            choices.append("{" + ",".join(map(str, ballot["c"])) + "}")
            times.append(datetime.fromtimestamp(ballot["at"] / 1000, UTC))
        members = [person if is_id(person) else None for person in people]  # a guest's id is no uuid
        await t.conn.execute(
            "INSERT INTO ballots (poll_id, person, member_id, choices, cast_at)"
            " SELECT %s, person, member, choices::smallint[], at"
            " FROM unnest(%s::text[], %s::uuid[], %s::text[], %s::timestamptz[])"
            " AS given(person, member, choices, at) ON CONFLICT DO NOTHING",
            [poll, people, members, choices, times],
        )


def check_poll(
    question: str, choices: Sequence[str], max_choices: int, results: str, seconds: int | None
) -> tuple[str, list[str]]:
    """The question and choices cleaned. Raises BadRequest; also for a poll prepared as a cue."""
    asked = bounded(question, QUESTION_MAX, "A question")
    if not CHOICES_MIN <= len(choices) <= CHOICES_MAX:
        raise BadRequest(f"A poll has {CHOICES_MIN} to {CHOICES_MAX} choices.")
    offered = [bounded(choice, CHOICE_MAX, "A choice") for choice in choices]
    if len(set(offered)) != len(offered):
        raise BadRequest("Two choices are the same.")
    if not 1 <= max_choices <= len(offered):
        raise BadRequest(f"A ballot carries 1 to {len(offered)} choices.")
    if results not in get_args(Results):
        raise BadRequest(f"Results are shown {', '.join(get_args(Results))}.")
    if seconds is not None and not SECONDS_MIN <= seconds <= SECONDS_MAX:
        raise BadRequest(f"A poll is open for {SECONDS_MIN} to {SECONDS_MAX} seconds.")
    return asked, offered


def _parts(poll: Poll, bit: int, *, open_: bool) -> bytes:
    """The parts of state `poll:<id>`: how many voted is for all asked, the tally for whom the rule says."""
    data: dict[str, object] = {
        "id": poll.id,
        "question": poll.question,
        "choices": poll.choices,
        "max_choices": poll.max_choices,
        "results": poll.results,
        "open": open_,
    }
    if poll.closes_at is not None:
        data["closes_at"] = poll.closes_at
    if not open_ or poll.results == "always":
        return json_arg([{"a": bit, "d": data, "counts": ["*"]}])
    parts: list[dict[str, object]] = [{"a": bit, "d": data, "counts": ["voters"]}]
    if poll.results == "after_vote":
        parts.append({"a": VOTERS_BIT, "d": {}, "counts": ["*"]})
    return json_arg([*parts, {"a": STAFF_BIT, "d": {}, "counts": ["*"]}])


def _poll(row: dict[str, Any]) -> Poll:
    return Poll(
        id=PollId(str(row["id"])),
        show=ShowId(row["show_id"]),
        question=row["question"],
        choices=row["choices"],
        max_choices=row["max_choices"],
        results=row["results"],
        audience=msgspec.convert(row["audience"], Audience),
        opened_at=in_ms(row["opened_at"]),
        closes_at=in_ms(row["closes_at"]) if row["closes_at"] else None,
        closed_at=in_ms(row["closed_at"]) if row["closed_at"] else None,
        result=Tally(row["voters"], row["tally"]) if row["closed_at"] else None,
    )
