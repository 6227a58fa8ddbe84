"""Fulfilment: what is to be sent, as a table for the warehouse, and what was sent, with its tracking number.

An order is fulfilled by its first parcel. Sent again after a complaint, a parcel belongs to its case; a parcel
of a plan's order is the gift of joining, or the gift of a period that it names; what was won by a claim is
sent for itself, with no order. Telling the same parcel twice changes nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from commerce.order_book import LEFT_OUT, PAID, LockedOrder, NoSuchOrder
from commerce.orders import NotPaid, Orders
from commerce.refund_lines import AlreadyRefunded
from membership.actor import Actor, ShowId, is_id, new_id
from membership.addresses import region_parts
from membership.audit import Audit
from membership.line import clean_line
from membership.refusal import BadRequest, Forbidden, Refusal
from membership.transaction import Connection, Transaction

ROWS_MAX = 500  # of one call: what fits into 64 KB
PARCELS_MAX = 20  # of one order
SENT_ROWS_MAX = 20_000  # of one table for the warehouse

COLUMNS: Final = (
    "order", "why", "priority", "paid_at", "promised_until", "ship_by", "sku", "name", "quantity",
    "receiver", "phone", "province", "city", "district", "region", "detail", "case", "gift", "claim",
)  # fmt: skip
# Of a line of goods `l`: its pieces whose money did not go back.
_LEFT: Final = """(l.quantity - coalesce((
    SELECT sum(r.quantity) FROM order_refunds r WHERE r.order_id = l.order_id AND r.position = l.position), 0))"""
# The address that a member gave last.
_NEWEST: Final = """(
    SELECT jsonb_build_object('name', d.name, 'phone', d.phone, 'region', d.region, 'detail', d.detail)
    FROM addresses d WHERE d.member_id = {}.member_id ORDER BY d.id DESC LIMIT 1)"""
# What a spreadsheet would take for a formula. A tab or a return before it is no shelter.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class ParcelRow(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One parcel as the warehouse tells it. `case`: sent again for this complaint; `gift`: with this gift of a
    period; `claim`: with what this claim won, and without an order. `returned`: it came back."""

    order: Annotated[str, Meta(max_length=64)] = ""
    carrier: Annotated[str, Meta(min_length=1, max_length=40)]
    tracking: Annotated[str, Meta(min_length=1, max_length=60)]
    case: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    gift: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    claim: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    returned: bool = False


class ParcelOutcome(Struct, frozen=True, kw_only=True):
    """What became of a row; a refused one leaves the others standing."""

    order: str
    claim: str | None = None
    tracking: str
    outcome: Literal["sent", "again", "returned", "refused"]
    code: str | None = None
    message: str | None = None


class Fulfilment:
    """Says what is to be sent, and takes in what was."""

    def __init__(self, orders: Orders, audit: Audit | None = None) -> None:
        self._orders = orders
        self._audit = audit or Audit()

    async def take_in(
        self, t: Transaction, actor: Actor, rows: Sequence[ParcelRow]
    ) -> tuple[ParcelOutcome, ...]:
        """Note parcels; each row stands alone. Raises Forbidden, BadRequest (no rows, or too many)."""
        if not actor.may("member.write"):
            raise Forbidden
        if not 1 <= len(rows) <= ROWS_MAX:
            raise BadRequest(f"between 1 and {ROWS_MAX} rows")
        found: dict[int, ParcelOutcome] = {}
        # In one order of ids for everybody, claims after orders as who refunds takes them: nobody deadlocks.
        for number, row in sorted(
            enumerate(rows), key=lambda each: (each[1].claim or "", each[1].order, each[0])
        ):
            try:
                async with t.conn.transaction():  # a savepoint: a refused row takes nothing with it
                    outcome = await self._take_in_one(t, actor, row)
                found[number] = ParcelOutcome(
                    order=row.order, claim=row.claim, tracking=row.tracking, outcome=outcome
                )
            except Refusal as refusal:
                found[number] = ParcelOutcome(
                    order=row.order,
                    claim=row.claim,
                    tracking=row.tracking,
                    outcome="refused",
                    code=refusal.word,
                    message=str(refusal),
                )
        return tuple(found[number] for number in range(len(rows)))

    async def table(
        self, conn: Connection, actor: Actor, show: ShowId | None = None, *, rows_max: int = SENT_ROWS_MAX
    ) -> tuple[bytes, bool]:
        """What is paid and not sent, what was ordered early first, then by payment; with what is to be sent again and
        the gifts of joining, of periods and of claims. CSV in UTF-8 with its mark, for spreadsheets; whole orders
        only. Beside it, whether more is to be sent than a table holds. Raises Forbidden."""
        if not actor.may("member.read"):
            raise Forbidden
        text = io.StringIO(newline="")
        text.write("\ufeff")
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        rows = await self._to_send(conn, show, rows_max + 1)
        more = len(rows) > rows_max
        cut = _whole(rows[rows_max]) if more else None
        for row in rows:
            if _whole(row) != cut:
                writer.writerow([safe_cell(row[column]) for column in COLUMNS])
        return text.getvalue().encode(), more

    # --- parts ---

    async def _take_in_one(
        self, t: Transaction, actor: Actor, row: ParcelRow
    ) -> Literal["sent", "again", "returned"]:
        carrier, tracking = clean_line(row.carrier), clean_line(row.tracking)
        if not carrier or not tracking:
            raise BadRequest("a parcel has a carrier and a tracking number")
        if row.claim is not None:
            return await self._take_in_claim(t, actor, row, row.claim, carrier, tracking)
        if row.case is not None and not is_id(row.case):
            raise NoSuchOrder("There is no such case of this order.")
        if row.gift is not None and (row.case is not None or not is_id(row.gift)):
            raise NoSuchOrder("There is no such gift of this order.")
        order = await self._orders.lock(t.conn, row.order)
        if order is None:
            raise NoSuchOrder
        known = await (
            await t.conn.execute(
                """
                SELECT id, returned_at, gift_claim_id::text AS gift FROM parcels
                WHERE order_id = %s AND carrier = %s AND tracking = %s
                """,
                [order.id, carrier, tracking],
            )
        ).fetchone()
        if row.returned:
            outcome = await self._note_returned(t, actor, f"order:{order.id}", known)
            if outcome == "returned":
                await self._orders.tell_buyer_after(t, order.id)
            return outcome
        if known is not None:
            if known["gift"] != row.gift:
                raise BadRequest("a gift of a period has a tracking number of its own")
            return "again"
        await self._check_gift(t.conn, order, row.gift)
        await self._check_case(t.conn, order, row.case)
        if order.state == "refunded":
            raise AlreadyRefunded("This order was refunded; do not send it.")
        if order.state not in PAID:
            raise NotPaid("This order is not paid; do not send it.")
        await self._insert(t, actor, order, row, carrier, tracking)
        if order.kind == "goods" and order.state == "paid":
            await self._orders.mark_fulfilled(t, order)
        await self._orders.tell_buyer_after(t, order.id)
        return "sent"

    async def _insert(
        self, t: Transaction, actor: Actor, order: LockedOrder, row: ParcelRow, carrier: str, tracking: str
    ) -> None:
        made = await t.conn.execute(
            """
            INSERT INTO parcels (id, order_id, case_id, gift_claim_id, carrier, tracking, sent_by)
            SELECT %(id)s, %(order)s, %(case)s, %(gift)s, %(carrier)s, %(tracking)s, %(by)s
            WHERE %(gift)s::uuid IS NOT NULL OR (
                SELECT count(*) FROM parcels WHERE order_id = %(order)s AND gift_claim_id IS NULL) < %(most)s
            """,
            {
                "id": new_id(),
                "order": order.id,
                "case": row.case,
                "gift": row.gift,
                "carrier": carrier,
                "tracking": tracking,
                "by": actor.id,
                "most": PARCELS_MAX,
            },
        )
        if not made.rowcount:
            raise BadRequest(f"an order has at most {PARCELS_MAX} parcels")
        await self._audit.record(
            t,
            actor,
            "parcel.send",
            f"order:{order.id}",
            {"carrier": carrier, "case": row.case, "gift": row.gift},
        )

    async def _take_in_claim(
        self, t: Transaction, actor: Actor, row: ParcelRow, claim: str, carrier: str, tracking: str
    ) -> Literal["sent", "again", "returned"]:
        if row.order or row.case is not None or row.gift is not None:
            raise BadRequest("what a claim won is sent for itself: without an order, a case or a gift")
        won = None
        if is_id(claim):  # who recalls it waits for this parcel, or is seen here
            found = await t.conn.execute(
                """
                SELECT c.state, b.what, b.needs, o.state AS order_state
                FROM benefit_claims c JOIN benefits b ON b.id = c.benefit_id
                LEFT JOIN orders o ON o.id = c.order_id
                WHERE c.id = %s FOR UPDATE OF c
                """,
                [claim],
            )
            won = await found.fetchone()
        if won is None:
            raise NoSuchOrder("There is no such claim.")
        if won["what"] != "gift" or won["needs"] == "join":
            raise BadRequest("only gifts are sent, and those of joining with the order of the plan")
        found = await t.conn.execute(
            "SELECT id, carrier, tracking, returned_at FROM parcels WHERE claim_id = %s", [claim]
        )
        sent = await found.fetchone()
        known = sent if sent and (sent["carrier"], sent["tracking"]) == (carrier, tracking) else None
        if row.returned:
            return await self._note_returned(t, actor, f"claim:{claim}", known)
        if known is not None:
            return "again"
        if sent is not None:
            raise BadRequest("this gift was sent")
        if won["state"] != "confirmed" or won["order_state"] not in (None, *PAID):
            raise AlreadyRefunded("This gift was recalled; do not send it.")
        await t.conn.execute(
            "INSERT INTO parcels (id, claim_id, carrier, tracking, sent_by) VALUES (%s, %s, %s, %s, %s)",
            [new_id(), claim, carrier, tracking, actor.id],
        )
        await self._audit.record(t, actor, "parcel.send", f"claim:{claim}", {"carrier": carrier})
        return "sent"

    async def _note_returned(
        self, t: Transaction, actor: Actor, subject: str, known: dict[str, Any] | None
    ) -> Literal["again", "returned"]:
        if known is None:
            raise NoSuchOrder("This parcel was never sent.")
        if known["returned_at"] is not None:
            return "again"
        await t.conn.execute(
            "UPDATE parcels SET returned_at = clock_timestamp() WHERE id = %s", [known["id"]]
        )
        await self._audit.record(t, actor, "parcel.return", subject, {"parcel": str(known["id"])})
        return "returned"

    async def _check_case(self, conn: Connection, order: LockedOrder, case: str | None) -> None:
        if case is None:
            return
        row = await (
            await conn.execute(
                f"""
                SELECT c.act, p.id AS parcel, EXISTS (
                    SELECT 1 FROM after_sales_lines w
                    JOIN order_lines l ON l.order_id = w.order_id AND l.position = w.position
                    WHERE w.case_id = c.id AND {_LEFT} > 0) AS is_left
                FROM after_sales_cases c LEFT JOIN parcels p ON p.case_id = c.id
                WHERE c.id = %s AND c.order_id = %s
                """,  # noqa: S608 - a constant; what comes from outside is a parameter
                [case, order.id],
            )
        ).fetchone()
        if row is None:
            raise NoSuchOrder("There is no such case of this order.")
        if row["act"] != "resend" or row["parcel"] is not None:
            raise BadRequest("nothing is to be sent again for this case")
        if not row["is_left"]:
            raise AlreadyRefunded("What was to be sent again was refunded; do not send it.")

    async def _check_gift(self, conn: Connection, order: LockedOrder, gift: str | None) -> None:
        if gift is None:
            return
        row = await (
            await conn.execute(
                """
                SELECT s.id AS parcel, g.needs_address FROM gift_claims c JOIN plan_gifts g ON g.id = c.gift_id
                JOIN plan_terms t ON t.id = c.term_id JOIN payments p ON p.id = t.payment_id
                LEFT JOIN parcels s ON s.gift_claim_id = c.id
                WHERE c.id = %s AND p.order_id = %s
                """,
                [gift, order.id],
            )
        ).fetchone()
        if row is None:
            raise NoSuchOrder("There is no such gift of this order.")
        if row["parcel"] is not None or not row["needs_address"]:
            raise BadRequest("this gift was sent, or is not sent at all")

    async def _to_send(self, conn: Connection, show: ShowId | None, most: int) -> list[dict[str, Any]]:
        rows = await (
            await conn.execute(
                f"""
                SELECT o.id AS order, 'order' AS why, o.priority, o.paid_at, o.promised_until,
                    l.ship_by, p.sku, l.name, l.quantity - coalesce(back.pieces, 0) AS quantity,
                    o.address, NULL::uuid AS case, NULL::uuid AS gift, NULL::uuid AS claim, l.position
                FROM orders o JOIN order_lines l ON l.order_id = o.id
                LEFT JOIN products p ON p.id = l.product_id
                LEFT JOIN LATERAL (
                    SELECT sum(r.quantity) AS pieces FROM order_refunds r
                    WHERE r.order_id = o.id
                      AND r.position = l.position - CASE WHEN l.kind = 'gift' THEN 1 ELSE 0 END) back ON true
                WHERE o.kind = 'goods' AND o.state = 'paid' AND (%(show)s::text IS NULL OR o.show_id = %(show)s)
                  AND l.quantity > coalesce(back.pieces, 0)
                  AND NOT {LEFT_OUT}
                UNION ALL
                SELECT o.id, 'resend', true, o.paid_at, o.promised_until, NULL, p.sku, l.name,
                    least(w.quantity, {_LEFT}), o.address, c.id, NULL, NULL, l.position
                FROM after_sales_cases c JOIN orders o ON o.id = c.order_id
                JOIN after_sales_lines w ON w.case_id = c.id
                JOIN order_lines l ON l.order_id = w.order_id AND l.position = w.position
                LEFT JOIN products p ON p.id = l.product_id
                WHERE c.act = 'resend' AND o.state IN ('paid', 'fulfilled') AND {_LEFT} > 0
                  AND (%(show)s::text IS NULL OR o.show_id = %(show)s)
                  AND NOT EXISTS (SELECT 1 FROM parcels s WHERE s.case_id = c.id)
                UNION ALL
                SELECT o.id, 'gift', false, o.paid_at, NULL, NULL, '', g.title, 1, {_NEWEST.format("o")},
                    NULL, NULL, NULL, g.nth
                FROM orders o JOIN plans pl ON pl.id = o.plan_id
                JOIN payments pay ON pay.order_id = o.id AND pay.outcome = 'accepted'
                CROSS JOIN LATERAL (
                    SELECT pl.gift_text AS title, 1 AS nth WHERE pl.gift_text <> ''
                    UNION ALL
                    SELECT b.title, 2 FROM benefit_claims c JOIN benefits b ON b.id = c.benefit_id
                    WHERE c.payment_id = pay.id AND c.state = 'confirmed' AND b.what = 'gift') g
                WHERE o.kind = 'plan' AND o.state = 'paid' AND (%(show)s::text IS NULL OR o.show_id = %(show)s)
                  AND NOT EXISTS (SELECT 1 FROM parcels s WHERE s.order_id = o.id AND s.gift_claim_id IS NULL)
                UNION ALL
                SELECT o.id, 'period', false, c.claimed_at, NULL, NULL, '', g.title, 1, c.address, NULL, c.id,
                    NULL, g.position
                FROM gift_claims c JOIN plan_gifts g ON g.id = c.gift_id
                JOIN plan_terms t ON t.id = c.term_id AND t.ended_at IS NULL
                JOIN payments pay ON pay.id = t.payment_id JOIN orders o ON o.id = pay.order_id
                WHERE g.needs_address AND o.state = 'paid' AND (%(show)s::text IS NULL OR o.show_id = %(show)s)
                  AND NOT EXISTS (SELECT 1 FROM parcels s WHERE s.gift_claim_id = c.id)
                UNION ALL
                SELECT NULL, 'claim', false, c.claimed_at, NULL, NULL, '', b.title, 1,
                    coalesce(o.address, {_NEWEST.format("c")}), NULL, NULL, c.id, c.nth
                FROM benefit_claims c JOIN benefits b ON b.id = c.benefit_id
                LEFT JOIN orders o ON o.id = c.order_id
                WHERE c.state = 'confirmed' AND b.what = 'gift' AND b.needs <> 'join'
                  AND (c.order_id IS NULL OR o.state IN ('paid', 'fulfilled'))
                  AND (%(show)s::text IS NULL OR b.show_id = %(show)s)
                  AND NOT EXISTS (SELECT 1 FROM parcels s WHERE s.claim_id = c.id)
                ORDER BY priority DESC, paid_at, 1, claim, position LIMIT %(most)s
                """,  # noqa: S608 - a constant; what comes from outside is a parameter
                {"show": show, "most": most},
            )
        ).fetchall()
        return [_sent_row(row) for row in rows]


def _whole(row: dict[str, Any]) -> object:
    """What a row is a part of: an order, or a claim for itself."""
    return row["order"] or row["claim"]


def _sent_row(row: dict[str, Any]) -> dict[str, Any]:
    address: dict[str, str] = row["address"] or {}
    province, city, district = region_parts(address.get("region", ""))
    return {
        **row,
        "priority": "yes" if row["priority"] else "",
        "paid_at": row["paid_at"].isoformat(timespec="seconds"),
        "receiver": address.get("name", ""),
        "phone": address.get("phone", ""),
        "province": province,
        "city": city,
        "district": district,
        "region": address.get("region", ""),
        "detail": address.get("detail", ""),
    }


def safe_cell(value: object) -> str:
    """A cell that no spreadsheet takes for a formula; a phone such as +86… too is kept as text."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
