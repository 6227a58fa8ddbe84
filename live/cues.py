"""Cues: what is prepared before a show and run with one key on air. Nobody types a price on air.

A cue's payload is checked when it is put; running it opens what it holds, unchanged. Whether it runs is read
from what it opened, so a flash offer that ran out or was closed elsewhere needs no word to its cue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta, Struct
from psycopg.types.json import Jsonb

from chat.comments import TEXT_MAX, Comments, need
from chat.messages import Results
from chat.polls import Polls, check_poll
from chat.text import bounded
from commerce.benefit_terms import BenefitInput, checked_terms
from commerce.benefits import Benefits
from commerce.guards import NoPromo
from commerce.offers import Offers
from commerce.products import Products
from live.shows import Show, Shows, WrongStatus
from membership.actor import Actor, BenefitId, OfferId, PollId, ProductId, ShowId, is_id, new_id
from membership.audience import EVERYONE, Audience
from membership.audit import Audit
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal
from membership.transaction import Connection, Transaction

CUES_MAX = 30
TITLE_MAX = 40  # code points

CueKind = Literal["pin", "flash", "benefit", "poll", "announcement"]
CueState = Literal["ready", "running", "done"]
# Giving again what has a quota is a decision, not a second press: prepare another cue.
_ONCE: frozenset[CueKind] = frozenset({"flash", "benefit"})
_ON_AIR = ("waiting", "live", "paused")


class CueRunning(Refusal):
    """This cue is running."""

    code = "cue_running"


class CueDone(Refusal):
    """This cue has run; a quota is given once. Prepare another cue for more."""

    code = "cue_done"


class PinPayload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Put a product on air at its prices."""

    product: ProductId
    audience: Audience = EVERYONE
    seconds: Annotated[int, Meta(ge=5, le=21_600)] | None = None


class FlashPayload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So many pieces at a flash price, for a time."""

    product: ProductId
    flash_fen: Annotated[int, Meta(ge=1, le=100_000_000)]
    quota: Annotated[int, Meta(ge=1, le=1_000_000)]
    seconds: Annotated[int, Meta(ge=5, le=21_600)]
    per_person: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    audience: Audience = EVERYONE


class PollPayload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question and its choices."""

    question: str
    choices: list[str]
    max_choices: int = 1
    results: Results = "after_vote"
    audience: Audience = EVERYONE
    seconds: int | None = None


class AnnouncementPayload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line for the announcement bar."""

    text: str


Payload = PinPayload | FlashPayload | BenefitInput | PollPayload | AnnouncementPayload

PAYLOADS: dict[CueKind, type[Payload]] = {
    "pin": PinPayload,
    "flash": FlashPayload,
    "benefit": BenefitInput,
    "poll": PollPayload,
    "announcement": AnnouncementPayload,
}


class CueInput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One cue of the list. With the id of a cue that is there, that one is kept and changed."""

    kind: CueKind
    title: Annotated[str, Meta(min_length=1, max_length=200)]
    shortcut: Annotated[str, Meta(pattern="^[A-Z0-9]$")]
    payload: dict[str, Any]
    id: str | None = None


class Cue(Struct, frozen=True, kw_only=True):
    """A prepared cue and where it stands. `subject` is the offer, benefit or poll it opened."""

    id: str
    show: ShowId
    position: int
    shortcut: str
    kind: CueKind
    title: str
    payload: dict[str, Any]
    state: CueState
    subject: str | None


class Cues:
    """The list of a show's cues, and running them."""

    def __init__(
        self,
        offers: Offers,
        benefits: Benefits,
        polls: Polls,
        comments: Comments,
        products: Products,
        shows: Shows,
        audit: Audit | None = None,
    ) -> None:
        self._offers = offers
        self._benefits = benefits
        self._polls = polls
        self._comments = comments
        self._products = products
        self._shows = shows
        self._audit = audit or Audit()

    async def list(self, conn: Connection, show: ShowId) -> list[Cue]:
        """The show's cues in their order."""
        cursor = await conn.execute(_CUES + " WHERE c.show_id = %s ORDER BY c.position", [show])
        return [_cue(row) for row in await cursor.fetchall()]

    async def get(self, conn: Connection, show: ShowId, cue: str) -> Cue:
        """Raises NotFound."""
        row = None
        if is_id(cue):
            cursor = await conn.execute(_CUES + " WHERE c.show_id = %s AND c.id = %s", [show, cue])
            row = await cursor.fetchone()
        if row is None:
            raise NotFound("There is no such cue.")
        return _cue(row)

    async def put(
        self, t: Transaction, actor: Actor, show: ShowId, given: Sequence[CueInput]
    ) -> Sequence[Cue]:
        """Set the list. A running cue stays and keeps what it does; one that has run keeps that too.

        Raises Forbidden, NotFound, BadRequest (which names the cue), WrongStatus, CueRunning, NoPromo.
        """
        found = await self._show(t, actor, show, ("show.run", "room.write"))
        if found.status == "ended":
            raise WrongStatus("The show has ended.")
        if len(given) > CUES_MAX:
            raise BadRequest(f"A show has at most {CUES_MAX} cues.", limit=CUES_MAX)
        if len({cue.shortcut for cue in given}) != len(given):
            raise BadRequest("Two cues have the same key.")
        kept = [cue.id for cue in given if cue.id is not None]
        if len(set(kept)) != len(kept):
            raise BadRequest("One cue stands in the list twice.")
        # Two lists put at once wait for each other; the last one stands.
        await t.conn.execute("SELECT id FROM shows WHERE id = %s FOR NO KEY UPDATE", [show])
        before = {cue.id: cue for cue in await self.list(t.conn, show)}
        if not set(kept) <= before.keys():
            raise NotFound("There is no such cue.")
        if any(cue.state == "running" for cue in before.values() if cue.id not in kept):
            raise CueRunning("A running cue cannot be taken out; stop it first.")
        rows: list[tuple[object, ...]] = []
        for position, cue in enumerate(given):
            try:
                title = bounded(cue.title, TITLE_MAX, "A title")
                payload = await self._checked(t.conn, cue)
            except (BadRequest, NotFound, NoPromo) as refusal:
                raise type(refusal)(f"Cue {cue.shortcut}: {refusal}") from None
            old = before.get(cue.id or "")
            if old is not None and old.state != "ready" and (old.kind, old.payload) != (cue.kind, payload):
                raise CueRunning(f"Cue {cue.shortcut} has run; prepare another one instead.")
            rows.append((cue.id or new_id(), show, position, cue.shortcut, cue.kind, title, Jsonb(payload)))
        await t.conn.execute("DELETE FROM cues WHERE show_id = %s AND NOT id = ANY(%s::uuid[])", [show, kept])
        async with t.conn.cursor() as cursor:
            await cursor.executemany(
                """
                INSERT INTO cues (id, show_id, position, shortcut, kind, title, payload)
                VALUES (%s, %s, %s, %s, %s, %s, %s)
                ON CONFLICT (id) DO UPDATE SET position = excluded.position, shortcut = excluded.shortcut,
                    kind = excluded.kind, title = excluded.title, payload = excluded.payload
                """,
                rows,
            )
        return await self.list(t.conn, show)

    async def run(self, t: Transaction, actor: Actor, show: ShowId, cue: str) -> Cue:
        """Open what the cue holds. Viewers see it after the commit.

        Raises Forbidden, NotFound, WrongStatus, CueRunning, CueDone, and what the opening itself refuses
        (poll_open, already_open, benefit_open, not_live, no_promo, bad_request).
        """
        found = await self._show(t, actor, show, ("show.run", "offer.run"))
        if found.status not in _ON_AIR:
            raise WrongStatus(
                f"The show is {found.status}; a cue runs from the waiting room to the last call."
            )
        now = await self._locked(t, show, cue)
        if now.state == "running":
            raise CueRunning
        if now.state == "done" and now.kind in _ONCE:
            raise CueDone
        payload = msgspec.convert(now.payload, PAYLOADS[now.kind])
        subject: str | None = None
        match payload:
            case PinPayload():
                subject = (
                    await self._offers.open(
                        t,
                        actor,
                        show,
                        payload.product,
                        "pin",
                        payload.audience,
                        seconds=payload.seconds,
                    )
                ).id
            case FlashPayload():
                subject = (
                    await self._offers.open(
                        t,
                        actor,
                        show,
                        payload.product,
                        "flash",
                        payload.audience,
                        payload.flash_fen,
                        payload.quota,
                        payload.per_person,
                        payload.seconds,
                    )
                ).id
            case BenefitInput():
                subject = (await self._benefits.open(t, actor, show, payload)).id
            case PollPayload():
                subject = (
                    await self._polls.open(
                        t,
                        actor,
                        show,
                        payload.question,
                        payload.choices,
                        payload.max_choices,
                        payload.results,
                        payload.audience,
                        payload.seconds,
                    )
                ).id
            case AnnouncementPayload():
                await t.conn.execute(
                    "UPDATE cues SET state = 'done'"
                    " WHERE show_id = %s AND kind = 'announcement' AND state = 'running'",
                    [show],
                )
                await self._comments.announce(actor, show, payload.text)
        await t.conn.execute(
            "UPDATE cues SET state = 'running', subject_id = %s WHERE id = %s", [subject, now.id]
        )
        return await self.get(t.conn, show, now.id)

    async def note_refused(
        self, t: Transaction, actor: Actor, show: ShowId, cue: str, refusal: Refusal
    ) -> None:
        """The run of a cue was refused: the audit log says so, and with what code. A cue that is not there leaves
        no word."""
        try:
            now = await self._locked(t, show, cue)  # two refused at once are noted once
        except NotFound:
            return
        detail = {"show": show, "kind": now.kind}
        await self._audit.record_refused(t, actor, "cue.run", f"cue:{now.id}", refusal.word, detail)

    async def stop(self, t: Transaction, actor: Actor, show: ShowId, cue: str) -> Cue:
        """Close what the cue opened; a cue that does not run stays as it is. Raises Forbidden, NotFound."""
        await self._show(t, actor, show, ("show.run", "offer.run"))
        now = await self._locked(t, show, cue)
        if now.state != "running":
            return now
        match now.kind:
            case "pin" | "flash":
                await self._offers.close(t, actor, show, OfferId(now.subject or ""))
            case "benefit":
                await self._benefits.close(t, actor, BenefitId(now.subject or ""))
            case "poll":
                await self._polls.close(t, actor, show, PollId(now.subject or ""))
            case "announcement":
                await self._comments.announce(actor, show, None)
        await t.conn.execute("UPDATE cues SET state = 'done' WHERE id = %s", [now.id])
        return await self.get(t.conn, show, now.id)

    async def _show(self, t: Transaction, actor: Actor, show: ShowId, permissions: Any) -> Show:
        need(actor, *permissions)
        found = await self._shows.get(t.conn, show)
        if actor.room is not None and actor.room != found.room.id:
            raise Forbidden("You work in another room.")
        return found

    async def _locked(self, t: Transaction, show: ShowId, cue: str) -> Cue:
        """The cue, held so that two hands on one key run it once."""
        if is_id(cue):
            await t.conn.execute(
                "SELECT id FROM cues WHERE show_id = %s AND id = %s FOR NO KEY UPDATE", [show, cue]
            )
        return await self.get(t.conn, show, cue)

    async def _checked(self, conn: Connection, cue: CueInput) -> dict[str, Any]:
        """The payload in its full form."""
        try:
            payload = msgspec.convert(cue.payload, PAYLOADS[cue.kind])
        except msgspec.ValidationError as error:
            raise BadRequest(str(error)) from None
        match payload:
            case PinPayload():
                await self._products.get(conn, payload.product)
            case FlashPayload():
                product = await self._products.get(conn, payload.product)
                if product.no_promo:
                    raise NoPromo.of(product.id, product.name, "a flash sale")
                if payload.flash_fen >= product.list_fen:
                    raise BadRequest("The flash price must be below the list price.")
            case PollPayload():
                check_poll(
                    payload.question, payload.choices, payload.max_choices, payload.results, payload.seconds
                )
            case AnnouncementPayload():
                bounded(payload.text, TEXT_MAX, "An announcement")
            case BenefitInput():
                bounded(payload.title, 60, "A benefit's title")
                payload = checked_terms(payload)
                for early in payload.products:
                    product = await self._products.get(conn, early)
                    if product.no_promo:
                        raise NoPromo.of(product.id, product.name, "a benefit")
        plain: dict[str, Any] = msgspec.to_builtins(payload)
        return plain


# What a cue opened says whether it runs.
_CUES = """
    SELECT c.*, CASE WHEN c.state <> 'running' OR c.kind = 'announcement' THEN c.state
                     WHEN o.status = 'open' OR b.status <> 'closed'
                          OR (p.id IS NOT NULL AND p.closed_at IS NULL) THEN 'running' ELSE 'done' END AS now
    FROM cues c
    LEFT JOIN offers o ON c.kind IN ('pin', 'flash') AND o.id = c.subject_id::uuid
    LEFT JOIN benefits b ON c.kind = 'benefit' AND b.id = c.subject_id::uuid
    LEFT JOIN polls p ON c.kind = 'poll' AND p.id = c.subject_id::uuid
"""


def _cue(row: dict[str, Any]) -> Cue:
    assert row["kind"] in get_args(CueKind)
    return Cue(
        id=str(row["id"]),
        show=ShowId(row["show_id"]),
        position=row["position"],
        shortcut=row["shortcut"],
        kind=row["kind"],
        title=row["title"],
        payload=row["payload"],
        state=row["now"],
        subject=row["subject_id"],
    )
