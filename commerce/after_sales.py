"""After-sales: a buyer asks for something about an order, with a reason and photos; staff settle it.

A case is about pieces of lines; a line has one open case at a time. open → settled | declined | withdrawn, and
nothing after. Money goes back through refunds.py, so a case can never send what was sent before.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from commerce.messages import CaseChanged
from commerce.order_book import PAID, LockedOrder, NoSuchOrder, owns
from commerce.orders import NotPaid, Orders
from commerce.parcels import Parcel, parcel_of_row
from commerce.refund_lines import AlreadyRefunded, RefundLine, read_lines
from commerce.refunds import Refunds
from membership.actor import Actor, MemberId, OrderId, is_id, new_id
from membership.audit import Audit
from membership.moment import in_ms
from membership.notices import Notices
from membership.page import Page, check_page
from membership.personal import Personal
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal
from membership.transaction import Connection, Transaction

CASES_MAX = 20  # of one order, open or not
PHOTOS_MAX = 3
PHOTO_BYTES_MAX = 512 * 1024
REASON_CHARS_MAX = NOTE_CHARS_MAX = 500

Kind = Literal["refund", "return", "exchange", "missing", "damaged"]
CaseState = Literal["open", "settled", "declined", "withdrawn"]
CaseAct = Literal["refund", "decline", "resend"]
PhotoMedia = Literal["image/jpeg", "image/png", "image/webp"]

# Every move a case may make.
CASE_MOVES: Final[Mapping[CaseState, frozenset[CaseState]]] = {
    "open": frozenset({"settled", "declined", "withdrawn"}),
    "settled": frozenset(),
    "declined": frozenset(),
    "withdrawn": frozenset(),
}
DECIDED: Final[Mapping[CaseAct, CaseState]] = {
    "refund": "settled",
    "resend": "settled",
    "decline": "declined",
}

PERSONAL_OF_CASES = (
    Personal(
        "after_sales_photos",
        ("image",),
        "DELETE FROM after_sales_photos WHERE case_id IN"
        " (SELECT id FROM after_sales_cases WHERE member_id = %(member)s)",
    ),
    Personal(
        "after_sales_cases",
        ("reason",),
        "UPDATE after_sales_cases SET reason = '' WHERE member_id = %(member)s",
    ),
)


class NoSuchCase(NotFound):
    """There is no such case."""


class CaseClosed(Refusal):
    """This case was settled, declined or withdrawn before."""

    code = "closed"


class CaseOpen(Refusal):
    """Another case about these goods is open; see what comes of it first."""

    code = "case_open"


class TooManyCases(Refusal):
    """This order has had as many cases as one may; ask the shop."""

    code = "limit_reached"


class TooManyPhotos(Refusal):
    """A case has at most three photos."""

    code = "limit_reached"


class NoPicture(Refusal):
    """This is no JPEG, PNG or WebP picture."""

    code = "unsupported_media"


class PhotoTooLarge(Refusal):
    """A photo has at most 512 KB."""

    code = "too_large"


class CaseLineInput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So many pieces of one line."""

    position: Annotated[int, Meta(ge=1, le=100)]
    quantity: Annotated[int, Meta(ge=1, le=9999)]


class CaseInput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a buyer asks for. Without `lines` it is about all goods that were not refunded yet."""

    kind: Kind
    reason: Annotated[str, Meta(min_length=1, max_length=REASON_CHARS_MAX)]
    lines: Annotated[list[CaseLineInput], Meta(min_length=1, max_length=20)] | None = None


class CaseLine(Struct, frozen=True, kw_only=True):
    """Goods a case is about."""

    position: int
    name: str
    quantity: int


class CasePhoto(Struct, frozen=True, kw_only=True):
    """A photo of a case; its bytes have an address of their own."""

    id: str
    media: PhotoMedia


class Case(Struct, frozen=True, kw_only=True):
    """A case as its owner and staff see it. `amount_fen` and `points`: what went back; `parcel`: sent again."""

    id: str
    order: OrderId
    member: MemberId
    kind: Kind
    reason: str
    state: CaseState
    lines: tuple[CaseLine, ...]
    photos: tuple[CasePhoto, ...]
    opened_at: int  # ms
    closed_at: int | None
    act: CaseAct | None
    amount_fen: int | None
    points: int | None
    note: str | None
    parcel: Parcel | None


class AfterSales:
    """Opens cases for buyers, and settles them for staff."""

    def __init__(
        self, orders: Orders, refunds: Refunds, notices: Notices, audit: Audit | None = None
    ) -> None:
        self._orders = orders
        self._refunds = refunds
        self._notices = notices
        self._audit = audit or Audit()

    # --- a buyer asks ---

    async def open(self, t: Transaction, actor: Actor, order: OrderId, given: CaseInput) -> Case:
        """Open a case. Raises NoSuchOrder (also for somebody else's), NotPaid, AlreadyRefunded, BadRequest,
        CaseOpen, TooManyCases."""
        reason = _text(given.reason, "reason", REASON_CHARS_MAX)
        locked = await self._orders.lock(t.conn, order)
        if locked is None or actor.member is None or locked.member != actor.member:
            raise NoSuchOrder
        lines = await self._asked(t.conn, locked, given.lines)
        await self._check_room(t.conn, locked.id, lines)
        case = new_id()
        await t.conn.execute(
            """
            INSERT INTO after_sales_cases (id, order_id, member_id, kind, reason)
            VALUES (%s, %s, %s, %s, %s)
            """,
            [case, locked.id, locked.member, given.kind, reason],
        )
        async with t.conn.cursor() as cursor:
            await cursor.executemany(
                "INSERT INTO after_sales_lines (case_id, order_id, position, quantity)"
                " VALUES (%s, %s, %s, %s)",
                [(case, locked.id, position, quantity) for position, quantity in lines.items()],
            )
        return await self._one(t.conn, case)

    async def add_photo(self, t: Transaction, actor: Actor, case: str, media: str, image: bytes) -> Case:
        """Keep a photo of an open case; the same one twice is kept once. What it is, its first bytes say.

        Raises NoSuchCase, CaseClosed, NoPicture, PhotoTooLarge, TooManyPhotos.
        """
        if len(image) > PHOTO_BYTES_MAX:
            raise PhotoTooLarge
        found = picture_media(image)
        if found is None or found != media:
            raise NoPicture
        row = await self._lock(t.conn, case)
        if row is None or actor.member is None or str(row["member_id"]) != actor.member:
            raise NoSuchCase
        if row["state"] != "open":
            raise CaseClosed
        digest = hashlib.sha256(image).digest()
        seen = await (
            await t.conn.execute(
                """
                SELECT count(*) AS photos, coalesce(bool_or(digest = %s), false) AS again
                FROM after_sales_photos WHERE case_id = %s
                """,
                [digest, case],
            )
        ).fetchone()
        assert seen is not None
        if not seen["again"]:
            if seen["photos"] >= PHOTOS_MAX:
                raise TooManyPhotos
            await t.conn.execute(
                "INSERT INTO after_sales_photos (id, case_id, media, image, digest)"
                " VALUES (%s, %s, %s, %s, %s)",
                [new_id(), case, found, image, digest],
            )
        return await self._one(t.conn, case)

    async def withdraw(self, t: Transaction, actor: Actor, case: str) -> Case:
        """Take a case back; again changes nothing. Raises NoSuchCase, CaseClosed."""
        row = await self._lock(t.conn, case)
        if row is None or actor.member is None or str(row["member_id"]) != actor.member:
            raise NoSuchCase
        if row["state"] != "withdrawn":
            await self._move(t.conn, case, row["state"], "withdrawn")
        return await self._one(t.conn, case)

    # --- staff settle ---

    async def decide(
        self,
        t: Transaction,
        actor: Actor,
        case: str,
        act: CaseAct,
        note: str,
        *,
        amount_fen: int | None = None,
        restock: bool = False,
    ) -> Case:
        """Settle or decline a case, once; the buyer is told.

        `refund`: what was paid for its pieces goes back, or a sum while the goods stay. `resend`: they are sent
        once more. Raises Forbidden, NoSuchCase, CaseClosed, BadRequest, AlreadyRefunded, and what Refunds raises.
        """
        if not actor.may("member.write"):
            raise Forbidden
        said = _text(note, "note", NOTE_CHARS_MAX)
        if act != "refund" and (amount_fen is not None or restock):
            raise BadRequest("only a refund has a sum or puts goods back", field="act")
        if amount_fen is not None and restock:
            raise BadRequest("goods that stay with the buyer are not put back", field="restock")
        found = await self._lock(t.conn, case)
        if found is None:
            raise NoSuchCase
        if found["state"] != "open":
            raise CaseClosed
        order = OrderId(str(found["order_id"]))
        lines = await self._lines(t.conn, case)
        back = None
        if act == "resend":
            for line in await read_lines(t.conn, order):
                _check_left(line, lines.get(line.position, 0))
        elif act == "refund" and amount_fen is None:
            back = await self._refunds.lines(t, actor, order, lines, f"case:{case}", restock=restock)
        elif act == "refund":
            back = await self._refunds.give(
                t, actor, order, amount_fen or 0, f"case:{case}", tuple(sorted(lines))
            )
        await self._move(
            t.conn,
            case,
            "open",
            DECIDED[act],
            act=act,
            note=said,
            by=actor.id,
            amount_fen=None if back is None else back.money_fen,
            points=None if back is None else back.points,
        )
        await self._audit.record(
            t,
            actor,
            f"case.{act}",
            f"case:{case}",
            {"order": order, "amount_fen": None if back is None else back.money_fen, "restock": restock},
        )
        settled = await self._one(t.conn, case)
        changed = CaseChanged(case=case, order=order, state=settled.state, act=settled.act)
        message: dict[str, object] = msgspec.to_builtins(changed)
        t.after_commit(lambda: self._notices.send(settled.member, message))
        return settled

    # --- looking ---

    async def of_member(
        self, conn: Connection, member: MemberId, cursor: str | None = None, limit: int = 50
    ) -> Page[Case]:
        """The member's cases, newest first."""
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                """
                SELECT id FROM after_sales_cases
                WHERE member_id = %(member)s AND (%(cursor)s::uuid IS NULL OR id < %(cursor)s)
                ORDER BY id DESC LIMIT %(limit)s + 1
                """,
                {"member": member, "cursor": cursor, "limit": limit},
            )
        ).fetchall()
        return await self._page(conn, rows, limit)

    async def all(
        self,
        conn: Connection,
        actor: Actor,
        cursor: str | None = None,
        limit: int = 50,
        *,
        state: CaseState | None = None,
        order: OrderId | None = None,
    ) -> Page[Case]:
        """Cases, oldest first, for staff. Raises Forbidden."""
        if not actor.may("member.read"):
            raise Forbidden
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                """
                SELECT id FROM after_sales_cases
                WHERE (%(cursor)s::uuid IS NULL OR id > %(cursor)s)
                  AND (%(state)s::text IS NULL OR state = %(state)s)
                  AND (%(order)s::uuid IS NULL OR order_id = %(order)s)
                ORDER BY id LIMIT %(limit)s + 1
                """,
                {"cursor": cursor, "limit": limit, "state": state, "order": order},
            )
        ).fetchall()
        return await self._page(conn, rows, limit)

    async def get(self, conn: Connection, actor: Actor, case: str) -> Case:
        """One case. Raises NoSuchCase (also for somebody else's)."""
        found = await self._one(conn, case)
        if not owns(actor, found.member, "member.read"):
            raise NoSuchCase
        return found

    async def photo(self, conn: Connection, actor: Actor, case: str, photo: str) -> tuple[PhotoMedia, bytes]:
        """A photo's bytes, for the buyer and staff. Raises NoSuchCase."""
        row = None
        if is_id(case) and is_id(photo):
            row = await (
                await conn.execute(
                    """
                    SELECT c.member_id, p.media, p.image FROM after_sales_photos p
                    JOIN after_sales_cases c ON c.id = p.case_id WHERE p.id = %s AND c.id = %s
                    """,
                    [photo, case],
                )
            ).fetchone()
        if row is None or not owns(actor, MemberId(str(row["member_id"])), "member.read"):
            raise NoSuchCase("There is no such photo.")
        return row["media"], bytes(row["image"])

    # --- parts ---

    async def _asked(
        self, conn: Connection, locked: LockedOrder, given: Sequence[CaseLineInput] | None
    ) -> dict[int, int]:
        """Position → pieces. A piece that was refunded is asked about no more."""
        if locked.state == "refunded":
            raise AlreadyRefunded
        if locked.state not in PAID:
            raise NotPaid("This order is not paid; cancel it instead.")
        lines: dict[int, RefundLine] = {line.position: line for line in await read_lines(conn, locked.id)}
        if not lines:
            raise BadRequest("a plan has no goods; it is given back on the page of the plan")
        if given is None:
            return {
                line.position: line.quantity - line.back
                for line in lines.values()
                if line.quantity > line.back
            }
        asked: dict[int, int] = {}
        for each in given:
            line = lines.get(each.position)
            if line is None or each.position in asked or each.quantity > line.quantity:
                raise BadRequest("there are no such goods in this order", field="lines")
            _check_left(line, each.quantity)
            asked[each.position] = each.quantity
        return asked

    async def _check_room(self, conn: Connection, order: OrderId, lines: Mapping[int, int]) -> None:
        row = await (
            await conn.execute("SELECT count(*) AS cases FROM after_sales_cases WHERE order_id = %s", [order])
        ).fetchone()
        assert row is not None
        if row["cases"] >= CASES_MAX:
            raise TooManyCases
        open_row = await (
            await conn.execute(
                "SELECT case_id FROM after_sales_lines"
                " WHERE order_id = %s AND position = ANY(%s) AND is_open LIMIT 1",
                [order, list(lines)],
            )
        ).fetchone()
        if open_row is not None:
            raise CaseOpen(case=str(open_row["case_id"]))

    async def _lock(self, conn: Connection, case: str) -> dict[str, Any] | None:
        """The case's row, locked; its order's first, as everywhere."""
        if not is_id(case):
            return None
        row = await (
            await conn.execute("SELECT order_id FROM after_sales_cases WHERE id = %s", [case])
        ).fetchone()
        if row is None:
            return None
        await self._orders.lock(conn, str(row["order_id"]))
        return await (
            await conn.execute("SELECT * FROM after_sales_cases WHERE id = %s FOR UPDATE", [case])
        ).fetchone()

    async def _move(
        self,
        conn: Connection,
        case: str,
        was: CaseState,
        now: CaseState,
        *,
        act: CaseAct | None = None,
        note: str | None = None,
        by: str | None = None,
        amount_fen: int | None = None,
        points: int | None = None,
    ) -> None:
        if now not in CASE_MOVES[was]:
            raise CaseClosed
        await conn.execute(
            """
            UPDATE after_sales_cases SET state = %(now)s, closed_at = clock_timestamp(), act = %(act)s,
                note = %(note)s, decided_by = %(by)s, amount_fen = %(amount)s, points = %(points)s
            WHERE id = %(case)s AND state = %(was)s
            """,
            {
                "case": case,
                "was": was,
                "now": now,
                "act": act,
                "note": note,
                "by": by,
                "amount": amount_fen,
                "points": points,
            },
        )
        await conn.execute("UPDATE after_sales_lines SET is_open = false WHERE case_id = %s", [case])

    async def _lines(self, conn: Connection, case: str) -> dict[int, int]:
        rows = await (
            await conn.execute("SELECT position, quantity FROM after_sales_lines WHERE case_id = %s", [case])
        ).fetchall()
        return {row["position"]: row["quantity"] for row in rows}

    async def _one(self, conn: Connection, case: str) -> Case:
        found = await self._read(conn, [uuid.UUID(case)]) if is_id(case) else ()
        if not found:
            raise NoSuchCase
        return found[0]

    async def _page(self, conn: Connection, rows: Sequence[dict[str, Any]], limit: int) -> Page[Case]:
        items = await self._read(conn, [row["id"] for row in rows[:limit]])
        return Page(items, items[-1].id if len(rows) > limit else None)

    async def _read(self, conn: Connection, cases: Sequence[uuid.UUID]) -> tuple[Case, ...]:
        rows = await (
            await conn.execute("SELECT * FROM after_sales_cases WHERE id = ANY(%s)", [list(cases)])
        ).fetchall()
        lines = await (
            await conn.execute(
                """
                SELECT w.case_id, w.position, w.quantity, l.name FROM after_sales_lines w
                JOIN order_lines l ON l.order_id = w.order_id AND l.position = w.position
                WHERE w.case_id = ANY(%s) ORDER BY w.case_id, w.position
                """,
                [list(cases)],
            )
        ).fetchall()
        photos = await (
            await conn.execute(
                "SELECT id, case_id, media FROM after_sales_photos WHERE case_id = ANY(%s) ORDER BY id",
                [list(cases)],
            )
        ).fetchall()
        parcels = await (
            await conn.execute("SELECT * FROM parcels WHERE case_id = ANY(%s)", [list(cases)])
        ).fetchall()
        found: dict[uuid.UUID, Case] = {}
        for row in rows:
            found[row["id"]] = Case(
                id=str(row["id"]),
                order=OrderId(str(row["order_id"])),
                member=MemberId(str(row["member_id"])),
                kind=row["kind"],
                reason=row["reason"],
                state=row["state"],
                lines=tuple(
                    CaseLine(position=each["position"], name=each["name"], quantity=each["quantity"])
                    for each in lines
                    if each["case_id"] == row["id"]
                ),
                photos=tuple(
                    CasePhoto(id=str(each["id"]), media=each["media"])
                    for each in photos
                    if each["case_id"] == row["id"]
                ),
                opened_at=in_ms(row["opened_at"]),
                closed_at=None if row["closed_at"] is None else in_ms(row["closed_at"]),
                act=row["act"],
                amount_fen=row["amount_fen"],
                points=row["points"],
                note=row["note"],
                parcel=next((parcel_of_row(each) for each in parcels if each["case_id"] == row["id"]), None),
            )
        return tuple(found[case] for case in cases if case in found)


# --- pure parts ---


def picture_media(image: bytes) -> PhotoMedia | None:
    """What a picture is by its first bytes; None for what is none of the three kinds."""
    if image.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    return None


def _check_left(line: RefundLine, pieces: int) -> None:
    """Raises AlreadyRefunded where the money of too many of the line's pieces went back."""
    if pieces > line.quantity - line.back:
        raise AlreadyRefunded(f"Of line {line.position} {line.quantity - line.back} are left.")


def _text(given: str, field: str, chars_max: int) -> str:
    text = given.strip()
    if not 1 <= len(text) <= chars_max or "\0" in text:
        raise BadRequest(f"{field} has 1–{chars_max} characters", field=field)
    return text
