"""Telling of orders: the show once a step, then the buyer, always after the commit.

`announce_order.lua` counts and tells; a step told before changes nothing. What a crash leaves between commit
and telling, or between hold and commit, is settled here by asking the tables.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Literal, Protocol

import msgspec
from msgspec import Struct

from commerce.messages import OrderChanged, OrderPaid, OrderPlaced, PlanJoined, encoded
from commerce.offers import ORDER_KEYS, order_lock
from commerce.order_book import State
from commerce.pieces import Pieces
from membership.actor import MemberId, OfferId, OrderId, ProductId, ShowId
from membership.alone import alone
from membership.behaviour import Kind, Record, encode
from membership.moment import in_ms
from membership.notices import Notices
from membership.refusal import Unavailable
from membership.script import Arg, ScriptLoader
from membership.transaction import Connection, Transaction, try_lock

log = logging.getLogger(__name__)

UNTOLD_S = 3  # rows younger than this are being told by who committed them
CLOSED_WITHIN_S = 86_400  # after an offer's close, holds of its orders are still looked at

Step = Literal["placed", "paid", "closed"]


class Transactions(Protocol):
    """Who opens SQL transactions: the outermost room, for jobs that settle one show after another."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]: ...


class _Line(Struct, frozen=True):
    offer: OfferId
    product: ProductId
    name: str
    quantity: int
    piece: bool
    bit: int


class _Telling(Struct, frozen=True, kw_only=True):
    """What is told of one order, read in the transaction that changed it."""

    order: OrderId
    kind: Literal["goods", "plan"]
    show: ShowId | None
    member: MemberId
    key: str
    state: State
    name: str
    plan_name: str
    first: bool
    hold_until: datetime
    placed_at: datetime
    paid_at: datetime | None
    returning_fen: int
    placed_told: bool
    paid_told: bool
    closed_told: bool
    lines: tuple[_Line, ...]


class OrderAnnouncer:
    """Tells a show and the buyer what became of an order."""

    def __init__(self, scripts: ScriptLoader, notices: Notices, pieces: Pieces) -> None:
        self._notices = notices
        self._pieces = pieces
        self._announce = scripts.load("commerce", "announce_order")
        self._list_holds = scripts.load("commerce", "list_holds")

    async def tell_after(self, t: Transaction, orders: Sequence[OrderId], step: Step) -> None:
        """After the commit, tell of this step. Call it when all rows are written."""
        for telling in await self._tellings(t.conn, orders):
            t.after_commit(lambda telling=telling: self._tell(telling, step))  # type: ignore[misc]

    async def tell_buyer_after(self, t: Transaction, order: OrderId) -> None:
        """After the commit, tell the buyer alone how the order stands."""
        for telling in await self._tellings(t.conn, [order]):
            t.after_commit(lambda telling=telling: self._tell_buyer(telling))  # type: ignore[misc]

    # --- for the job ---

    async def settle_unannounced(
        self,
        database: Transactions,
        *,
        older_s: float = UNTOLD_S,
        closed_within_s: int = CLOSED_WITHIN_S,
        limit: int = 200,
        ahead_ms: int = 0,
    ) -> int:
        """What a crash left: tell of committed orders not yet told, and give back holds without an order.

        Holds are looked at in shows with an offer that is open, or was closed so lately. A show whose keys are
        gone is passed over and tried again. Returns how many were settled.
        """
        settled = 0
        async with database.transaction() as t:
            shows = await self._unsettled_shows(t.conn, older_s, closed_within_s)
        for show in shows:
            with alone(f"settling the orders of {show}", log, refused=logging.DEBUG):
                async with database.transaction() as t:
                    settled += await self._settle_rows(t, show, older_s, limit)
                if show is not None:
                    async with database.transaction() as t:
                        settled += await self._settle_holds(t, show, limit, ahead_ms)
        return settled

    async def _unsettled_shows(
        self, conn: Connection, older_s: float, closed_within_s: int
    ) -> list[ShowId | None]:
        """The show with the newest offer first."""
        rows = await (
            await conn.execute(
                """
                SELECT u.show_id FROM (
                SELECT DISTINCT show_id FROM orders
                WHERE (placed_announced_at IS NULL OR (paid_at IS NOT NULL AND paid_announced_at IS NULL)
                       OR (closed_at IS NOT NULL AND closed_announced_at IS NULL))
                  AND placed_at < clock_timestamp() - make_interval(secs => %s)
                UNION
                SELECT show_id FROM offers
                WHERE status = 'open' OR closed_at > now() - make_interval(secs => %s)
                ) u ORDER BY (SELECT max(opened_at) FROM offers f WHERE f.show_id = u.show_id) DESC NULLS LAST
                """,
                [older_s, closed_within_s],
            )
        ).fetchall()
        return [row["show_id"] for row in rows]

    async def _settle_rows(self, t: Transaction, show: ShowId | None, older_s: float, limit: int) -> int:
        rows = await (
            await t.conn.execute(
                """
                SELECT id FROM orders
                WHERE show_id IS NOT DISTINCT FROM %s
                  AND (placed_announced_at IS NULL OR (paid_at IS NOT NULL AND paid_announced_at IS NULL)
                       OR (closed_at IS NOT NULL AND closed_announced_at IS NULL))
                  AND coalesce(closed_at, paid_at, placed_at) < clock_timestamp() - make_interval(secs => %s)
                ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED
                """,
                [show, older_s, limit],
            )
        ).fetchall()
        for telling in await self._tellings(t.conn, [OrderId(str(row["id"])) for row in rows]):
            if not telling.placed_told:
                await self._tell(telling, "placed")
            if telling.paid_at is not None and not telling.paid_told:
                await self._tell(telling, "paid")
            if telling.state in ("cancelled", "expired", "refunded") and not telling.closed_told:
                await self._tell(telling, "closed")
            await t.conn.execute(
                """
                UPDATE orders SET placed_announced_at = coalesce(placed_announced_at, clock_timestamp()),
                    paid_announced_at = CASE WHEN paid_at IS NOT NULL
                        THEN coalesce(paid_announced_at, clock_timestamp()) END,
                    closed_announced_at = CASE WHEN closed_at IS NOT NULL
                        THEN coalesce(closed_announced_at, clock_timestamp()) END
                WHERE id = %s
                """,
                [telling.order],
            )
        return len(rows)

    async def _settle_holds(self, t: Transaction, show: ShowId, limit: int, ahead_ms: int) -> int:
        """Holds that no one told of. While the order's lock is taken its transaction may yet commit."""
        due = await self._list_holds(show, ["holds", "holds_unsettled"], [limit, ahead_ms])
        settled = 0
        for order_bytes, record in zip(due[::2], due[1::2], strict=True):
            order = OrderId(order_bytes.decode())
            name = msgspec.json.decode(record)["l"]
            if not await try_lock(t.conn, name):
                continue
            tellings = await self._tellings(t.conn, [order])
            if not tellings:
                settled += await self._pieces.release(show, order)
                continue
            (telling,) = tellings
            step: Step = "placed"
            told = telling.placed_told
            if telling.paid_at is not None:
                step, told = "paid", telling.paid_told
            elif telling.state != "placed":
                step, told = "closed", telling.closed_told
            if not told:
                continue  # the rows are told first, with their events
            await self._announce(show, ORDER_KEYS, [order, step, telling.member, name])
            settled += 1
        return settled

    # --- parts ---

    async def _tellings(self, conn: Connection, orders: Sequence[OrderId]) -> list[_Telling]:
        if not orders:
            return []
        rows = await (
            await conn.execute(
                """
                SELECT o.*, p.name AS plan_name, coalesce((
                        SELECT bool_or(pt.first_paid_start) FROM payments pay
                        JOIN plan_terms pt ON pt.payment_id = pay.id
                        WHERE pay.order_id = o.id), false) AS first,
                    coalesce((
                        SELECT sum(r.amount_fen) FROM payments pay
                        JOIN payment_returns r ON r.payment_id = pay.id
                        LEFT JOIN payment_returns_done done ON done.return_id = r.id
                        WHERE pay.order_id = o.id AND done.return_id IS NULL), 0)::bigint AS returning_fen
                FROM orders o LEFT JOIN plans p ON p.id = o.plan_id
                WHERE o.id = ANY(%s::uuid[]) ORDER BY o.id
                """,
                [list(orders)],
            )
        ).fetchall()
        lines = await (
            await conn.execute(
                """
                SELECT l.order_id, l.offer_id, l.product_id, l.name, l.quantity, l.piece, f.audience_bit
                FROM order_lines l JOIN offers f ON f.id = l.offer_id
                WHERE l.order_id = ANY(%s::uuid[]) AND l.kind = 'goods' ORDER BY l.order_id, l.position
                """,
                [list(orders)],
            )
        ).fetchall()
        of_order: dict[uuid.UUID, list[_Line]] = {row["id"]: [] for row in rows}
        for line in lines:
            of_order[line["order_id"]].append(
                _Line(
                    OfferId(str(line["offer_id"])),
                    ProductId(str(line["product_id"])),
                    line["name"],
                    line["quantity"],
                    line["piece"],
                    line["audience_bit"],
                )
            )
        return [
            _Telling(
                order=OrderId(str(row["id"])),
                kind=row["kind"],
                show=row["show_id"],
                member=MemberId(str(row["member_id"])),
                key=row["key"],
                state=row["state"],
                name=row["shown_name"],
                plan_name=row["plan_name"] or "",
                first=row["first"],
                hold_until=row["hold_until"],
                placed_at=row["placed_at"],
                paid_at=row["paid_at"],
                returning_fen=row["returning_fen"],
                placed_told=row["placed_announced_at"] is not None,
                paid_told=row["paid_announced_at"] is not None,
                closed_told=row["closed_announced_at"] is not None,
                lines=tuple(of_order[row["id"]]),
            )
            for row in rows
        ]

    async def _tell(self, telling: _Telling, step: Step) -> None:
        """Tell the show, once a step, then the member: a hint beside the row."""
        if telling.show is not None:
            over = step == "placed" and telling.state in ("cancelled", "expired")
            args: list[Arg] = [telling.order, step, telling.member, order_lock(telling.member, telling.key)]
            for number, line in enumerate(telling.lines):
                args += [
                    line.offer,
                    line.quantity if line.piece and not over else 0,
                    line.bit,
                    _line_event(telling, line, step),
                    _line_record(telling, line, step, number),
                ]
            if telling.kind == "plan":
                args += ["", 0, 0, _plan_event(telling, step), _plan_record(telling, step)]
            if not int(await self._announce(telling.show, ORDER_KEYS, args)):
                return
        await self._tell_buyer(telling)

    async def _tell_buyer(self, telling: _Telling) -> None:
        changed = OrderChanged(
            order=telling.order,
            kind=telling.kind,
            state=telling.state,
            hold_until=in_ms(telling.hold_until),
            returning_fen=telling.returning_fen,
        )
        with contextlib.suppress(Unavailable):
            await self._notices.send(telling.member, msgspec.to_builtins(changed))


def _line_event(telling: _Telling, line: _Line, step: Step) -> bytes:
    kind: type[OrderPlaced] | type[OrderPaid]
    match step:
        case "placed" if telling.state in ("placed", "paid", "fulfilled"):
            kind = OrderPlaced
        case "paid":
            kind = OrderPaid
        case _:
            return b""
    event = kind(
        name=telling.name,
        offer=line.offer,
        product=line.product,
        product_name=line.name,
        quantity=line.quantity,
    )
    return encoded(event)


def _line_record(telling: _Telling, line: _Line, step: Step, number: int) -> bytes:
    if step == "closed":
        return b""
    kind: Kind = "order" if step == "placed" else "paid"
    return _record(telling, step, number, kind, f"product:{line.product}", line.quantity)


def _plan_event(telling: _Telling, step: Step) -> bytes:
    if step != "paid":
        return b""
    return encoded(PlanJoined(name=telling.name, plan_name=telling.plan_name, first=telling.first))


def _plan_record(telling: _Telling, step: Step) -> bytes:
    if step == "closed":
        return b""
    kind: Kind = "order" if step == "placed" else "join"
    return _record(telling, step, 0, kind, f"order:{telling.order}", 1)


def _record(telling: _Telling, step: Step, number: int, kind: Kind, subject: str, value: int) -> bytes:
    """The same step of the same order always has the same record id: told twice, it is one."""
    at = telling.paid_at if step == "paid" and telling.paid_at is not None else telling.placed_at
    record = Record(
        id=str(uuid.uuid5(uuid.UUID(telling.order), f"{step}:{number}")),
        kind=kind,
        viewer=telling.member,
        member=telling.member,
        subject=subject,
        value=value,
        at=in_ms(at),
    )
    return encode(record)
