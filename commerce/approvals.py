"""Approvals: what breaks a rule of the house may be done when a second person has said so.

One member of staff presses and is refused; the refusal is an ask. Another, with the permission `approve`, grants
it; then the same act with the same terms goes through for the one who asked, once, within half an hour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct
from psycopg.types.json import Jsonb

from membership.actor import PERMISSIONS, Actor, RoomId, ShowId, is_id, new_id
from membership.moment import in_ms
from membership.page import Page, check_page, page_of
from membership.refusal import BadRequest, Forbidden, NotFound, RateLimited, Refusal
from membership.transaction import Connection, Transaction, lock

VALID_S = 1800
ASKED_MAX = 20  # waiting asks of one person
TITLE_MAX = 120
NOTE_MAX = 200

Rule = Literal["below_cost", "above_limit", "over_budget"]
ApprovalState = Literal["asked", "granted", "declined", "used", "expired"]
GRANTED_BY: tuple[str, ...] = tuple(sorted(role for role, has in PERMISSIONS.items() if "approve" in has))


class Broken(Struct, frozen=True, kw_only=True):
    """One rule that an act breaks, and by how much.

    `fen`: below_cost: cost less price, of one piece; above_limit: the whole; over_budget: what passes the limit.
    """

    rule: Rule
    subject: str
    fen: int
    limit_fen: int
    text: str


class Ask(Struct, frozen=True, kw_only=True):
    """What an approval would be for: an act with all its terms."""

    act: str
    subject: str
    show: ShowId | None
    title: str
    digest: str
    rules: tuple[Broken, ...]


class Approval(Struct, frozen=True, kw_only=True):
    """An ask and what became of it. Times are ms."""

    id: str
    act: str
    subject: str
    show: ShowId | None
    title: str
    rules: tuple[Broken, ...]
    asked_by: str
    asked_name: str
    asked_at: int
    expires_at: int
    state: ApprovalState
    decided_name: str | None
    decided_at: int | None
    note: str


class NeedsApproval(Refusal):
    """A second person must grant this first."""

    code = "needs_approval"

    def __init__(self, message: str | None = None, *, ask: Ask | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.ask = ask

    def carrying(self, approval: Approval) -> NeedsApproval:
        """The same refusal with the id by which it can be granted."""
        return type(self)(
            f"{self} Another member of staff must grant it ({' or '.join(GRANTED_BY)});"
            f" then do the same again, within {VALID_S // 60} minutes.",
            ask=self.ask,
            approval=approval.id,
            granted_by=list(GRANTED_BY),
            expires_at=approval.expires_at,
            **self.details,
        )


class OverBudget(NeedsApproval):
    """This passes a budget."""

    code = "over_budget"


class AlreadyDecided(Refusal):
    """Somebody has decided about this before."""

    code = "already_decided"


class AskExpired(Refusal):
    """Nobody decided in time. Ask again."""

    code = "closed"


def digest_of(*terms: object) -> str:
    """What binds an approval to one act: another price, number or audience is another act."""
    return hashlib.sha256(msgspec.json.encode(terms)).hexdigest()


class Approvals:
    """Asks, decisions, and using one."""

    async def ask(self, t: Transaction, actor: Actor, ask: Ask) -> tuple[Approval, bool]:
        """Put an act before a second person; the same again is the same ask, and not new.

        In a transaction of its own: the one that was refused has been rolled back. Raises Forbidden, RateLimited.
        """
        if actor.kind != "staff":
            raise Forbidden("This needs a second person's word, which only a member of staff can ask for.")
        person = _person(actor)
        await lock(t.conn, f"approvals:{person}")
        found = await t.conn.execute(
            _APPROVALS + " WHERE digest = %s AND asked_by = %s AND state IN ('asked', 'granted')"
            " AND expires_at > clock_timestamp() ORDER BY id DESC",
            [ask.digest, person],
        )
        for row in await found.fetchall():
            before = _approval(row)
            if _covers(before.rules, ask.rules):
                return before, False
        count = await (
            await t.conn.execute(
                "SELECT count(*) AS asked FROM approvals"
                " WHERE asked_by = %s AND state = 'asked' AND expires_at > clock_timestamp()",
                [person],
            )
        ).fetchone()
        if count is not None and count["asked"] >= ASKED_MAX:
            raise RateLimited(f"{ASKED_MAX} of your asks wait for a decision.", retry_ms=60_000)
        approval = new_id()
        await t.conn.execute(
            """
            INSERT INTO approvals (id, digest, act, subject, show_id, title, rules, asked_by, asked_name,
                asked_at, expires_at)
            SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s, now.at, now.at + make_interval(secs => %s)
            FROM (SELECT clock_timestamp() AS at) now
            """,
            [
                approval,
                ask.digest,
                ask.act,
                ask.subject,
                ask.show,
                ask.title[:TITLE_MAX],
                Jsonb(msgspec.to_builtins(ask.rules)),
                person,
                actor.name,
                VALID_S,
            ],
        )
        return await self.get(t.conn, approval), True

    async def decide(
        self, t: Transaction, actor: Actor, approval: str, *, grant: bool, note: str = ""
    ) -> Approval:
        """Grant or decline what another asked for. Of two at once, one decides.

        Raises Forbidden (also for one's own ask), NotFound, AlreadyDecided, AskExpired, BadRequest.
        """
        if actor.kind != "staff" or not actor.may("approve"):
            raise Forbidden(f"Who may grant: {', '.join(GRANTED_BY)}.")
        if len(note) > NOTE_MAX:
            raise BadRequest(f"A note has at most {NOTE_MAX} characters.")
        found = await self.get(t.conn, approval)
        if found.asked_by == _person(actor):
            raise Forbidden("You asked for this yourself: a second person must decide.")
        decided = await t.conn.execute(
            """
            UPDATE approvals SET state = %s, decided_by = %s, decided_name = %s,
                decided_at = clock_timestamp(), note = %s
            WHERE id = %s AND state = 'asked' AND expires_at > clock_timestamp() AND asked_by <> %s
            """,
            [
                "granted" if grant else "declined",
                _person(actor),
                actor.name,
                note,
                approval,
                _person(actor),
            ],
        )
        now = await self.get(t.conn, approval)
        if not decided.rowcount:
            raise AskExpired if now.state == "expired" and now.decided_at is None else AlreadyDecided
        return now

    async def use(self, t: Transaction, actor: Actor, ask: Ask) -> Approval | None:
        """Take the grant for this act, in the act's own transaction; None when there is none that covers it."""
        found = await t.conn.execute(
            _APPROVALS + " WHERE digest = %s AND asked_by = %s AND state = 'granted'"
            " AND expires_at > clock_timestamp() ORDER BY id DESC FOR UPDATE",
            [ask.digest, _person(actor)],
        )
        for row in await found.fetchall():
            granted = _approval(row)
            if _covers(granted.rules, ask.rules):
                await t.conn.execute(
                    "UPDATE approvals SET state = 'used', used_at = clock_timestamp() WHERE id = %s",
                    [granted.id],
                )
                return granted
        return None

    async def get(self, conn: Connection, approval: str) -> Approval:
        """Raises NotFound."""
        row = None
        if is_id(approval):
            row = await (await conn.execute(_APPROVALS + " WHERE id = %s", [approval])).fetchone()
        if row is None:
            raise NotFound("There is no such approval.")
        return _approval(row)

    async def list(
        self,
        conn: Connection,
        state: ApprovalState | None = None,
        *,
        room: RoomId | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Approval]:
        """Newest first; with `room`, only what concerns its shows."""
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                """
                SELECT *, expires_at <= clock_timestamp() AS expired FROM approvals
                WHERE (%(cursor)s::uuid IS NULL OR id < %(cursor)s)
                  AND (%(state)s::text IS NULL OR CASE WHEN state IN ('asked', 'granted')
                       AND expires_at <= clock_timestamp() THEN 'expired' ELSE state END = %(state)s)
                  AND (%(room)s::text IS NULL
                       OR show_id IN (SELECT id FROM shows WHERE room_id::text = %(room)s))
                ORDER BY id DESC LIMIT %(limit)s + 1
                """,
                {"cursor": cursor, "state": state, "room": room, "limit": limit},
            )
        ).fetchall()
        return page_of(rows, limit, _approval)

    async def waiting(self, conn: Connection, show: ShowId) -> int:
        """How many asks of this show wait for a decision."""
        row = await (
            await conn.execute(
                "SELECT count(*) AS n FROM approvals"
                " WHERE show_id = %s AND state = 'asked' AND expires_at > clock_timestamp()",
                [show],
            )
        ).fetchone()
        return 0 if row is None else int(row["n"])


_APPROVALS = "SELECT *, expires_at <= clock_timestamp() AS expired FROM approvals"


def _person(actor: Actor) -> str:
    return f"{actor.kind}:{actor.id}"


def _covers(granted: Sequence[Broken], now: Sequence[Broken]) -> bool:
    """What was granted reaches for what is broken now: the same rules, and by no more."""
    most = {(each.rule, each.subject): each.fen for each in granted}
    return all(each.fen <= most.get((each.rule, each.subject), -1) for each in now)


def _approval(row: dict[str, Any]) -> Approval:
    state: ApprovalState = row["state"]
    assert state in get_args(ApprovalState)
    if state in ("asked", "granted") and row["expired"]:
        state = "expired"
    return Approval(
        id=str(row["id"]),
        act=row["act"],
        subject=row["subject"],
        show=None if row["show_id"] is None else ShowId(row["show_id"]),
        title=row["title"],
        rules=msgspec.convert(row["rules"], tuple[Broken, ...]),
        asked_by=row["asked_by"],
        asked_name=row["asked_name"],
        asked_at=in_ms(row["asked_at"]),
        expires_at=in_ms(row["expires_at"]),
        state=state,
        decided_name=row["decided_name"],
        decided_at=None if row["decided_at"] is None else in_ms(row["decided_at"]),
        note=row["note"],
    )
