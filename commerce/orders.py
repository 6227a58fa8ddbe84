"""Orders: pieces held for ten minutes, then paid, cancelled or expired.

placed → paid → refunded, or placed → cancelled | expired. The road of a purchase: the signed quote gives the
price (prices.py), the pieces are held and the stock is taken (pieces.py), the row is written here, and after
the commit the show is told (order_announcer.py). Reading orders is in order_book.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

import msgspec
from msgspec import Struct
from psycopg.types.json import Jsonb

from commerce.messages import PlaceOrder
from commerce.offers import in_ms, order_lock
from commerce.order_announcer import UNTOLD_S, OrderAnnouncer, Step, Transactions
from commerce.order_book import LockedOrder, NoSuchOrder, Order, OrderBook, State, owns
from commerce.pieces import LimitReached, Pieces, ReservedOut, SoldOut
from commerce.prices import (
    CANDIDATE_KINDS,
    Candidate,
    CandidateKind,
    OfferEnded,
    OfferRow,
    PriceChanged,
    Priced,
    PricedLines,
    Promise,
    PromisedLine,
    Quotes,
    checked_lines,
)
from commerce.seats import Seats, SeatStatus
from membership.actor import (
    Actor,
    AddressId,
    MemberId,
    OfferId,
    OrderId,
    PlanId,
    ShowId,
    new_id,
)
from membership.addresses import Addresses
from membership.members import mask_name
from membership.notices import Notices
from membership.personal import Personal
from membership.plans import NoSuchPlan, Plans
from membership.points import Points
from membership.refusal import (
    BadRequest,
    KeyReused,
    Refusal,
    Unauthenticated,
)
from membership.script import ScriptLoader
from membership.transaction import Connection, Transaction

__all__ = [
    "PERSONAL_OF_ORDERS",
    "LockedOrder",
    "NoSuchOrder",
    "NotPaid",
    "Order",
    "OrderClosed",
    "Orders",
    "Placed",
]

HOLD_S = 600  # set once, never renewed
RETURN_WINDOW = timedelta(days=7)  # points are pending until it ends
PLACED_MAX = 20  # unpaid orders of one member at a time

PERSONAL_OF_ORDERS = (
    Personal(
        "orders",
        ("address", "shown_name"),
        "UPDATE orders SET shown_name = '', address = CASE WHEN address IS NOT NULL THEN '{}'::jsonb END"
        " WHERE member_id = %(member)s",
    ),
)


class OrderClosed(Refusal):
    """The order is no longer open."""

    code = "closed"


class NotPaid(Refusal):
    """The order is not paid, so there is nothing to refund."""

    code = "not_paid"


class Placed(Struct, frozen=True, kw_only=True):
    """The reply to placing an order; the same key gives it again."""

    order: OrderId
    kind: Literal["goods", "plan"]
    state: State
    total_fen: int
    currency: str
    hold_until: int  # ms
    seat: SeatStatus | None = None


class _Bought(Struct, frozen=True):
    """One line with the price it is ordered at."""

    row: OfferRow
    quantity: int
    unit_fen: int
    winner: CandidateKind
    candidates: tuple[Candidate, ...]
    piece: bool
    gift: bool


class Orders(OrderBook):
    """Places orders and takes them through their states."""

    def __init__(
        self,
        scripts: ScriptLoader,
        quotes: Quotes,
        plans: Plans,
        points: Points,
        notices: Notices,
        addresses: Addresses,
        seats: Seats,
        *,
        hold_s: int = HOLD_S,
    ) -> None:
        self._quotes = quotes
        self._plans = plans
        self._points = points
        self._addresses = addresses
        self._seats = seats
        self._hold_s = hold_s
        self._pieces = Pieces(scripts)
        self._announcer = OrderAnnouncer(scripts, notices, self._pieces)

    # --- a member buys ---

    async def place(self, t: Transaction, actor: Actor, show: ShowId, command: PlaceOrder) -> Placed:
        """Order the quoted lines: all of them or none, at the lower of the quote and now.

        Raises Unauthenticated, BadRequest (also: a forged quote, somebody else's), PriceChanged (expired, or
        other lines than quoted), KeyReused, NoSuchAddress, SoldOut, ReservedOut, LimitReached, Unavailable.
        """
        member = _member(actor)
        key = _key(command.key)
        lines = None if command.lines is None else [[line.offer, line.quantity] for line in command.lines]
        body = _digest("goods", show, command.quote, command.address, lines)
        again = await self._again(t.conn, member, key, body)
        if again is not None:
            return again
        promise = self._quotes.verify(command.quote)
        _check_promise(promise, member, show, command)
        address = await self._addresses.get(t.conn, member, AddressId(command.address))
        priced = await self._quotes.price(
            t.conn, actor.facts, show, [line.offer for line in promise.lines], quoted=True
        )
        bought = [_bought(priced, line, actor) for line in promise.lines]
        if any(each.row.product.status != "on" for each in bought):
            raise OfferEnded("the product was taken off the shelf")
        goods_fen = sum(each.unit_fen * each.quantity for each in bought)
        free_plan = priced.plan is not None and priced.plan.free_freight
        freight_fen = min(promise.freight_fen, self._quotes.freight.of(goods_fen, free_plan))
        await self._one_at_a_time(t.conn, member)
        await self._check_placed(t.conn, member)

        order = OrderId(new_id())
        held = {each.row.id: each.quantity for each in bought if each.piece}
        await self._pieces.hold(t, show, order, member, key, held)
        row = await (
            await t.conn.execute(
                """
                INSERT INTO orders (id, kind, member_id, show_id, key, body_digest, shown_name, currency,
                    goods_fen, freight_fen, total_fen, points_bonus_percent, address, placed_at, hold_until)
                SELECT %(id)s, 'goods', %(member)s, %(show)s, %(key)s, %(body)s, %(name)s, %(currency)s,
                    %(goods_fen)s, %(freight_fen)s, %(total_fen)s, %(bonus)s, %(address)s,
                    now.at, now.at + make_interval(secs => %(hold_s)s)
                FROM (SELECT clock_timestamp() AS at) now
                RETURNING hold_until
                """,
                {
                    "id": order,
                    "member": member,
                    "show": show,
                    "key": key,
                    "body": body,
                    "name": mask_name(actor.name),
                    "currency": self._quotes.currency,
                    "goods_fen": goods_fen,
                    "freight_fen": freight_fen,
                    "total_fen": goods_fen + freight_fen,
                    "bonus": await self._plans.points_bonus_percent(t.conn, member),
                    "address": Jsonb(msgspec.to_builtins(address)),
                    "hold_s": self._hold_s,
                },
            )
        ).fetchone()
        assert row is not None
        await self._write_lines(t.conn, order, bought)
        # Last before the commit: these rows are what buyers of one product queue for.
        wanted: dict[str, int] = {}
        for each in bought:
            wanted[each.row.product.id] = wanted.get(each.row.product.id, 0) + each.quantity
        pieces = {each.row.id: each.quantity for each in bought if each.piece and each.row.quota is not None}
        await self._pieces.take(t.conn, order, pieces, wanted)
        await self._announcer.tell_after(t, [order], "placed")
        return Placed(
            order=order,
            kind="goods",
            state="placed",
            total_fen=goods_fen + freight_fen,
            currency=self._quotes.currency,
            hold_until=in_ms(row["hold_until"]),
        )

    async def place_plan(
        self, t: Transaction, actor: Actor, plan: PlanId, show: ShowId | None, key: str | None
    ) -> Placed:
        """Order a plan, and take a seat of the benefit for joining if one is to be had.

        Pressed again while such an order is open, it is the same order: nobody pays a plan twice by two taps.
        Raises Unauthenticated, BadRequest, NoSuchPlan, KeyReused, LimitReached, Unavailable.
        """
        member = _member(actor)
        checked = _key(key)
        body = _digest("plan", show, plan, "", None)
        again = await self._again(t.conn, member, checked, body)
        if again is not None:
            seat = await self._seat(t, actor, show) if again.state == "placed" else None
            return msgspec.structs.replace(again, seat=seat)
        found = await self._plans.get(t.conn, plan)
        if not found.on_sale:
            raise NoSuchPlan
        await self._one_at_a_time(t.conn, member)
        open_row = await (
            await t.conn.execute(
                """
                SELECT id, kind, state, total_fen, currency, hold_until FROM orders
                WHERE member_id = %s AND plan_id = %s AND show_id IS NOT DISTINCT FROM %s AND state = 'placed'
                  AND hold_until > clock_timestamp()
                ORDER BY id DESC LIMIT 1
                """,
                [member, found.id, show],
            )
        ).fetchone()
        if open_row is not None:
            await t.conn.execute(
                "INSERT INTO order_aliases (member_id, key, body_digest, order_id) VALUES (%s, %s, %s, %s)",
                [member, checked, body, open_row["id"]],
            )
            return _placed(open_row, await self._seat(t, actor, show))
        await self._check_placed(t.conn, member)
        order = OrderId(new_id())
        row = await (
            await t.conn.execute(
                """
                INSERT INTO orders (id, kind, member_id, show_id, key, body_digest, plan_id, shown_name,
                    currency, goods_fen, total_fen, placed_at, hold_until)
                SELECT %(id)s, 'plan', %(member)s, %(show)s, %(key)s, %(body)s, %(plan)s, %(name)s,
                    %(currency)s, %(fee_fen)s, %(fee_fen)s, now.at, now.at + make_interval(secs => %(hold_s)s)
                FROM (SELECT clock_timestamp() AS at) now
                RETURNING id, kind, state, total_fen, currency, hold_until
                """,
                {
                    "id": order,
                    "member": member,
                    "show": show,
                    "key": checked,
                    "body": body,
                    "plan": found.id,
                    "name": mask_name(actor.name),
                    "currency": self._quotes.currency,
                    "fee_fen": found.fee_fen,
                    "hold_s": self._hold_s,
                },
            )
        ).fetchone()
        assert row is not None
        seat = await self._seat(t, actor, show)
        await self._announcer.tell_after(t, [order], "placed")
        return _placed(row, seat)

    async def cancel(self, t: Transaction, actor: Actor, order: OrderId) -> Order:
        """Give an unpaid order up; what it held comes back. Again changes nothing.

        Raises NoSuchOrder (also somebody else's), OrderClosed.
        """
        locked = await self.lock(t.conn, order)
        if locked is None or not owns(actor, locked.member, "member.write"):
            raise NoSuchOrder
        if locked.state == "placed":
            await self._close(t, [locked.id], "cancelled")
        elif locked.state != "cancelled":
            raise OrderClosed
        return await self._one(t.conn, order)

    async def expire_due(self, t: Transaction, limit: int = 200) -> int:
        """End unpaid orders whose hold is over. For the job."""
        rows = await (
            await t.conn.execute(
                """
                SELECT id FROM orders WHERE state = 'placed' AND hold_until <= clock_timestamp()
                ORDER BY hold_until LIMIT %s FOR UPDATE SKIP LOCKED
                """,
                [limit],
            )
        ).fetchall()
        orders = [OrderId(str(row["id"])) for row in rows]
        if orders:
            await self._close(t, orders, "expired")
        return len(orders)

    # --- for payments ---

    async def lower_to_now(self, t: Transaction, actor: Actor, order: LockedOrder) -> int:
        """Before the first payment page: each line at the lower of the order and now. Returns the total.

        No line changes to a flash price here: its pieces were decided when the order was placed.
        """
        if order.kind == "plan":
            assert order.plan is not None
            plan = await self._plans.get(t.conn, order.plan)
            total = min(order.total_fen, plan.fee_fen)
            if total < order.total_fen:
                await t.conn.execute(
                    "UPDATE orders SET goods_fen = %(total)s, total_fen = %(total)s WHERE id = %(id)s",
                    {"total": total, "id": order.id},
                )
            return total
        assert order.show is not None
        rows = await (
            await t.conn.execute(
                "SELECT position, offer_id, quantity, unit_fen FROM order_lines"
                " WHERE order_id = %s AND kind = 'goods' ORDER BY position",
                [order.id],
            )
        ).fetchall()
        offers = [OfferId(str(row["offer_id"])) for row in rows]
        priced = await self._quotes.price(t.conn, actor.facts, order.show, offers, quoted=True)
        goods_fen = 0
        for row, offer in zip(rows, offers, strict=True):
            candidates = priced.prices[offer].candidates
            lowest = _lowest_without_flash(candidates)
            unit_fen = int(row["unit_fen"])
            if lowest.unit_fen < unit_fen:
                unit_fen = lowest.unit_fen
                await t.conn.execute(
                    """
                    UPDATE order_lines SET unit_fen = %(unit)s, line_fen = %(unit)s * quantity,
                        winner = %(winner)s, candidates = %(candidates)s
                    WHERE order_id = %(order)s AND position = %(position)s
                    """,
                    {
                        "unit": unit_fen,
                        "winner": lowest.kind,
                        "candidates": Jsonb(msgspec.to_builtins(candidates)),
                        "order": order.id,
                        "position": row["position"],
                    },
                )
            goods_fen += unit_fen * row["quantity"]
        free_plan = priced.plan is not None and priced.plan.free_freight
        freight_fen = min(order.freight_fen, self._quotes.freight.of(goods_fen, free_plan))
        await t.conn.execute(
            "UPDATE orders SET goods_fen = %(goods)s::bigint, freight_fen = %(freight)s::bigint,"
            " total_fen = %(goods)s::bigint + %(freight)s::bigint WHERE id = %(id)s",
            {"goods": goods_fen, "freight": freight_fen, "id": order.id},
        )
        return goods_fen + freight_fen

    async def take_again(self, t: Transaction, order: LockedOrder) -> bool:
        """For late money: take the expired order's stock and quota once more; all of it or nothing."""
        rows = await (
            await t.conn.execute(
                """
                SELECT l.offer_id::text AS offer, l.product_id::text AS product, l.quantity,
                       l.piece AND o.quota IS NOT NULL AS counted
                FROM order_lines l JOIN offers o ON o.id = l.offer_id
                WHERE l.order_id = %s AND l.kind = 'goods'
                """,
                [order.id],
            )
        ).fetchall()
        wanted: dict[str, int] = {}
        for row in rows:
            wanted[row["product"]] = wanted.get(row["product"], 0) + row["quantity"]
        try:
            async with t.conn.transaction():  # a savepoint: the order's row is locked already
                await self._pieces.take(
                    t.conn,
                    order.id,
                    {OfferId(row["offer"]): row["quantity"] for row in rows if row["counted"]},
                    wanted,
                )
        except (SoldOut, ReservedOut):
            return False
        return True

    async def mark_paid(self, t: Transaction, order: LockedOrder) -> None:
        """The verified payment is being recorded: the order is paid, and its goods earn points."""
        row = await (
            await t.conn.execute(
                """
                UPDATE orders SET state = 'paid', paid_at = clock_timestamp(), closed_at = NULL,
                    closed_announced_at = NULL
                WHERE id = %s AND state IN ('placed', 'expired') RETURNING paid_at
                """,
                [order.id],
            )
        ).fetchone()
        if row is None:
            raise OrderClosed
        if order.kind == "goods":
            await self._points.earn_for_goods(
                t,
                order.member,
                order.id,
                order.goods_fen,
                order.points_bonus_percent,
                row["paid_at"] + RETURN_WINDOW,
            )

    async def mark_refunded(self, t: Transaction, order: LockedOrder) -> None:
        """Paid → refunded. The points it earned are taken back; sold pieces do not return to a quota."""
        changed = await t.conn.execute(
            "UPDATE orders SET state = 'refunded', closed_at = clock_timestamp()"
            " WHERE id = %s AND state = 'paid'",
            [order.id],
        )
        if not changed.rowcount:
            raise NotPaid
        await self._points.reverse(t, f"order:{order.id}")

    async def tell_after(self, t: Transaction, order: OrderId, step: Step) -> None:
        """After the commit, tell the show and the member of this step. Call it when all rows are written."""
        await self._announcer.tell_after(t, [order], step)

    # --- for the job ---

    async def settle_unannounced(
        self, database: Transactions, *, older_s: float = UNTOLD_S, limit: int = 200, ahead_ms: int = 0
    ) -> int:
        """What a crash left: tell of committed orders not yet told, and give back holds without an order.

        A show whose keys are gone is passed over and tried again. Returns how many were settled.
        """
        return await self._announcer.settle_unannounced(
            database, older_s=older_s, limit=limit, ahead_ms=ahead_ms
        )

    # --- parts ---

    async def _again(self, conn: Connection, member: MemberId, key: str, body: str) -> Placed | None:
        """The recorded answer to this key. Two commands of one key wait here for each other."""
        await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [order_lock(member, key)])
        row = await (
            await conn.execute(
                """
                SELECT id, kind, state, total_fen, currency, hold_until, body_digest FROM orders
                WHERE member_id = %(member)s AND key = %(key)s
                UNION ALL
                SELECT o.id, o.kind, o.state, o.total_fen, o.currency, o.hold_until, a.body_digest
                FROM order_aliases a JOIN orders o ON o.id = a.order_id
                WHERE a.member_id = %(member)s AND a.key = %(key)s
                """,
                {"member": member, "key": key},
            )
        ).fetchone()
        if row is None:
            return None
        if row["body_digest"] != body:
            raise KeyReused
        return _placed(row, None)

    async def _one_at_a_time(self, conn: Connection, member: MemberId) -> None:
        """Two taps at once with two keys: the second sees the first's order, open or counted."""
        await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"orders:{member}"])

    async def _check_placed(self, conn: Connection, member: MemberId) -> None:
        row = await (
            await conn.execute(
                "SELECT count(*) AS placed FROM orders WHERE member_id = %s AND state = 'placed'", [member]
            )
        ).fetchone()
        if row is not None and row["placed"] >= PLACED_MAX:
            raise LimitReached

    async def _write_lines(self, conn: Connection, order: OrderId, bought: Sequence[_Bought]) -> None:
        rows: list[dict[str, Any]] = []
        for each in bought:
            product = each.row.product
            rows.append(
                {
                    "order": order,
                    "position": len(rows) + 1,
                    "kind": "goods",
                    "offer": each.row.id,
                    "product": product.id,
                    "name": product.name,
                    "quantity": each.quantity,
                    "unit_fen": each.unit_fen,
                    "line_fen": each.unit_fen * each.quantity,
                    "gift_value_fen": 0,
                    "winner": each.winner,
                    "candidates": Jsonb(msgspec.to_builtins(each.candidates)),
                    "piece": each.piece,
                }
            )
            if each.gift:
                rows.append(
                    {
                        **rows[-1],
                        "position": len(rows) + 1,
                        "kind": "gift",
                        "name": product.gift_text,
                        "unit_fen": 0,
                        "line_fen": 0,
                        "gift_value_fen": product.gift_value_fen,
                        "winner": "gift",
                        "candidates": Jsonb([]),
                        "piece": False,
                    }
                )
        async with conn.cursor() as cursor:
            await cursor.executemany(
                """
                INSERT INTO order_lines (order_id, position, kind, offer_id, product_id, name, quantity,
                    unit_fen, line_fen, gift_value_fen, winner, candidates, piece)
                VALUES (%(order)s, %(position)s, %(kind)s, %(offer)s, %(product)s, %(name)s, %(quantity)s,
                    %(unit_fen)s, %(line_fen)s, %(gift_value_fen)s, %(winner)s, %(candidates)s, %(piece)s)
                """,
                rows,
            )

    async def _close(
        self, t: Transaction, orders: Sequence[OrderId], state: Literal["cancelled", "expired"]
    ) -> None:
        """End placed orders, whose rows are locked: stock and quota come back in the same transaction."""
        conn = t.conn
        await conn.execute(
            "UPDATE orders SET state = %s, closed_at = clock_timestamp() WHERE id = ANY(%s::uuid[])",
            [state, list(orders)],
        )
        await self._pieces.give_back(conn, orders)
        seats = await (
            await conn.execute(
                """
                SELECT DISTINCT o.show_id, o.member_id FROM orders o
                WHERE o.id = ANY(%s::uuid[]) AND o.kind = 'plan' AND o.show_id IS NOT NULL AND NOT EXISTS (
                    SELECT 1 FROM orders other
                    WHERE other.member_id = o.member_id AND other.show_id = o.show_id
                      AND other.kind = 'plan' AND other.state = 'placed')
                """,
                [list(orders)],
            )
        ).fetchall()
        for row in seats:
            await self._seats.release(t, ShowId(row["show_id"]), MemberId(str(row["member_id"])))
        await self._announcer.tell_after(t, orders, "closed")

    async def _seat(self, t: Transaction, actor: Actor, show: ShowId | None) -> SeatStatus | None:
        return None if show is None else await self._seats.take(t, actor, show)


# --- pure parts ---


def _member(actor: Actor) -> MemberId:
    if actor.kind != "viewer" or actor.member is None:
        raise Unauthenticated
    return actor.member


def _key(key: str | None) -> str:
    if key is None or not 1 <= len(key) <= 64 or "\0" in key:
        raise BadRequest("an order needs a key of 1–64 characters")
    return key


def _digest(kind: str, show: ShowId | None, what: str, address: str, lines: list[list[Any]] | None) -> str:
    return hashlib.sha256(msgspec.json.encode([kind, show, what, address, lines])).hexdigest()


def _check_promise(promise: Promise, member: MemberId, show: ShowId, command: PlaceOrder) -> None:
    if promise.person != member:
        raise BadRequest("the quote was made for somebody else")
    if promise.show != show:
        raise BadRequest("the quote was made in another show")
    if command.lines is not None:
        quoted = {line.offer: line.quantity for line in promise.lines}
        if checked_lines(command.lines) != quoted:
            raise PriceChanged("these are not the quoted lines; ask for a new quote")


def _lowest_without_flash(candidates: Sequence[Candidate]) -> Candidate:
    return min(
        (each for each in candidates if each.kind != "flash"),
        key=lambda each: (each.unit_fen, CANDIDATE_KINDS.index(each.kind)),
    )


def _bought(priced: PricedLines, promised: PromisedLine, actor: Actor) -> _Bought:
    """The lower of the quote and now; but a flash price only where it was quoted."""
    row, now = priced.offers[promised.offer], priced.prices[promised.offer]
    price = Priced(promised.unit_fen, promised.winner, promised.candidates, promised.winner == "flash")
    lowest = _lowest_without_flash(now.candidates)
    if lowest.unit_fen < price.unit_fen or (price.flash_used and lowest.unit_fen == price.unit_fen):
        price = Priced(lowest.unit_fen, lowest.kind, now.candidates, False)
    product = row.product
    return _Bought(
        row,
        promised.quantity,
        price.unit_fen,
        price.winner,
        price.candidates,
        price.flash_used if row.kind == "flash" else True,
        product.gift_text is not None and (promised.gift or product.gift_audience.has(actor.facts)),
    )


def _placed(row: dict[str, Any], seat: SeatStatus | None) -> Placed:
    return Placed(
        order=OrderId(str(row["id"])),
        kind=row["kind"],
        state=row["state"],
        total_fen=row["total_fen"],
        currency=row["currency"],
        hold_until=in_ms(row["hold_until"]),
        seat=seat,
    )
