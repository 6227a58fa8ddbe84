"""Orders: pieces held for ten minutes, then paid, cancelled or expired.

placed → paid → refunded, or placed → cancelled | expired. The road of a purchase: the signed quote gives the
price, `hold_offer.lua` decides the pieces of the show's quota, the order's transaction takes the stock by a
conditional update, and after the commit `announce_order.lua` tells the show, once a step. What a crash leaves
between these is settled by asking the tables.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct
from psycopg.types.json import Jsonb

from commerce.messages import OrderChanged, OrderPaid, OrderPlaced, PlaceOrder, PlanJoined, encoded
from commerce.offers import ORDER_KEYS, in_ms, order_lock
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
    ProductId,
    ShowId,
    is_id,
    new_id,
)
from membership.addresses import Addresses
from membership.behaviour import Kind, Record, encode
from membership.members import mask_name
from membership.notices import Notices
from membership.page import Page, check_page
from membership.personal import Personal
from membership.plans import NoSuchPlan, Plans
from membership.points import Points
from membership.refusal import (
    BadRequest,
    Forbidden,
    KeyReused,
    NotFound,
    Refusal,
    Unauthenticated,
    Unavailable,
)
from membership.script import Arg, ScriptLoader
from membership.transaction import Connection, Transaction

HOLD_S = 600  # set once, never renewed
UNSETTLED_MS = 60_000  # a hold whose order was not told by then is looked at
UNTOLD_S = 3  # rows younger than this are being told by who committed them
RETURN_WINDOW = timedelta(days=7)  # points are pending until it ends
PLACED_MAX = 20  # unpaid orders of one member at a time

State = Literal["placed", "paid", "cancelled", "expired", "refunded"]
Step = Literal["placed", "paid", "closed"]

PERSONAL_OF_ORDERS = (
    Personal(
        "orders",
        ("address", "shown_name"),
        "UPDATE orders SET shown_name = '', address = CASE WHEN address IS NOT NULL THEN '{}'::jsonb END"
        " WHERE member_id = %(member)s",
    ),
)


class NoSuchOrder(NotFound):
    """There is no such order."""


class SoldOut(Refusal):
    """No piece is left, and none can come back."""

    code = "sold_out"


class ReservedOut(Refusal):
    """The last pieces are held by unpaid orders; some may come back."""

    code = "reserved_out"


class LimitReached(Refusal):
    """Pay or cancel one of your open orders first."""

    code = "limit_reached"


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


class OrderLine(Struct, frozen=True, kw_only=True):
    """One line as it was ordered. A gift line costs nothing."""

    kind: Literal["goods", "gift"]
    offer: OfferId | None
    product: ProductId | None
    name: str
    quantity: int
    unit_fen: int
    line_fen: int
    gift_value_fen: int
    winner: str
    candidates: tuple[Candidate, ...]


class Order(Struct, frozen=True, kw_only=True):
    """An order as its owner and staff see it. `returning_fen` is money on its way back."""

    id: OrderId
    kind: Literal["goods", "plan"]
    member: MemberId
    show: ShowId | None
    state: State
    currency: str
    lines: tuple[OrderLine, ...]
    goods_fen: int
    freight_fen: int
    total_fen: int
    returning_fen: int
    plan: PlanId | None
    plan_name: str | None
    address: dict[str, str] | None
    placed_at: int  # ms
    hold_until: int  # ms
    paid_at: int | None
    closed_at: int | None


class LockedOrder(Struct, frozen=True, kw_only=True):
    """An order's row, locked until the transaction ends."""

    id: OrderId
    kind: Literal["goods", "plan"]
    member: MemberId
    show: ShowId | None
    state: State
    plan: PlanId | None
    currency: str
    goods_fen: int
    freight_fen: int
    total_fen: int
    points_bonus_percent: int
    hold_until: datetime
    paid_at: datetime | None


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


class _Bought(Struct, frozen=True):
    """One line with the price it is ordered at."""

    row: OfferRow
    quantity: int
    unit_fen: int
    winner: CandidateKind
    candidates: tuple[Candidate, ...]
    piece: bool
    gift: bool


class Orders:
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
        self._notices = notices
        self._addresses = addresses
        self._seats = seats
        self._hold_s = hold_s
        self._hold = scripts.load("commerce", "hold_offer")
        self._release_hold = scripts.load("commerce", "release_hold")
        self._announce = scripts.load("commerce", "announce_order")
        self._list_holds = scripts.load("commerce", "list_holds")

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
        await self._check_placed(t.conn, member)

        order = OrderId(new_id())
        await self._take_pieces(t, show, order, member, key, bought)
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
        await self._take(t.conn, order, pieces, wanted)
        await self._tell_after(t, order, "placed")
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
        # One at a time a member, so that two taps at once with two keys are one order, too.
        await t.conn.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"plan:{member}"])
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
        await self._tell_after(t, order, "placed")
        return _placed(row, seat)

    async def cancel(self, t: Transaction, actor: Actor, order: OrderId) -> Order:
        """Give an unpaid order up; what it held comes back. Again changes nothing.

        Raises NoSuchOrder (also somebody else's), OrderClosed.
        """
        locked = await self.lock(t.conn, order)
        if locked is None or not _owns(actor, locked.member, "member.write"):
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

    # --- reading ---

    async def get(self, conn: Connection, actor: Actor, order: OrderId) -> Order:
        """One order. Raises NoSuchOrder, also for somebody else's."""
        found = await self._one(conn, order)
        if not _owns(actor, found.member, "member.read"):
            raise NoSuchOrder
        return found

    async def of_member(
        self, conn: Connection, member: MemberId, cursor: str | None = None, limit: int = 50
    ) -> Page[Order]:
        """The member's orders, newest first."""
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                """
                SELECT id FROM orders
                WHERE member_id = %(member)s AND (%(cursor)s::uuid IS NULL OR id < %(cursor)s)
                ORDER BY id DESC LIMIT %(limit)s + 1
                """,
                {"member": member, "cursor": cursor, "limit": limit},
            )
        ).fetchall()
        items = await self._read(conn, [row["id"] for row in rows[:limit]])
        return Page(items, items[-1].id if len(rows) > limit else None)

    async def all(
        self,
        conn: Connection,
        actor: Actor,
        cursor: str | None = None,
        limit: int = 50,
        *,
        show: ShowId | None = None,
    ) -> Page[Order]:
        """Every order in the order of placing, for staff and the shop's server. Raises Forbidden."""
        if not actor.may("member.read"):
            raise Forbidden
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                """
                SELECT id FROM orders WHERE (%(cursor)s::uuid IS NULL OR id > %(cursor)s)
                    AND (%(show)s::text IS NULL OR show_id = %(show)s)
                ORDER BY id LIMIT %(limit)s + 1
                """,
                {"cursor": cursor, "limit": limit, "show": show},
            )
        ).fetchall()
        items = await self._read(conn, [row["id"] for row in rows[:limit]])
        return Page(items, items[-1].id if len(rows) > limit else None)

    # --- for payments ---

    async def lock(self, conn: Connection, order: str) -> LockedOrder | None:
        """The order's row, locked; None when there is none."""
        if not is_id(order):
            return None
        row = await (await conn.execute("SELECT * FROM orders WHERE id = %s FOR UPDATE", [order])).fetchone()
        if row is None:
            return None
        return LockedOrder(
            id=OrderId(str(row["id"])),
            kind=row["kind"],
            member=MemberId(str(row["member_id"])),
            show=row["show_id"],
            state=row["state"],
            plan=None if row["plan_id"] is None else PlanId(str(row["plan_id"])),
            currency=row["currency"],
            goods_fen=row["goods_fen"],
            freight_fen=row["freight_fen"],
            total_fen=row["total_fen"],
            points_bonus_percent=row["points_bonus_percent"],
            hold_until=row["hold_until"],
            paid_at=row["paid_at"],
        )

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
                await self._take(
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
        await self._tell_after(t, order, step)

    # --- for the job ---

    async def settle_unannounced(
        self, database: Transactions, *, older_s: float = UNTOLD_S, limit: int = 200, ahead_ms: int = 0
    ) -> int:
        """What a crash left: tell of committed orders not yet told, and give back holds without an order.

        A show whose keys are gone is passed over and tried again. Returns how many were settled.
        """
        settled = 0
        async with database.transaction() as t:
            shows = await self._unsettled_shows(t.conn, older_s)
        for show in shows:
            try:
                async with database.transaction() as t:
                    settled += await self._settle_rows(t, show, older_s, limit)
                if show is not None:
                    async with database.transaction() as t:
                        settled += await self._settle_holds(t, show, limit, ahead_ms)
            except Unavailable:
                continue
        return settled

    async def _unsettled_shows(self, conn: Connection, older_s: float) -> list[ShowId | None]:
        rows = await (
            await conn.execute(
                """
                SELECT DISTINCT show_id FROM orders
                WHERE (placed_announced_at IS NULL OR (paid_at IS NOT NULL AND paid_announced_at IS NULL)
                       OR (closed_at IS NOT NULL AND closed_announced_at IS NULL))
                  AND placed_at < clock_timestamp() - make_interval(secs => %s)
                UNION
                SELECT show_id FROM offers WHERE status = 'open' OR closed_at > now() - interval '1 day'
                """,
                [older_s],
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
            lock = msgspec.json.decode(record)["l"]
            row = await (
                await t.conn.execute(
                    "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 0)) AS free", [lock]
                )
            ).fetchone()
            if row is None or not row["free"]:
                continue
            tellings = await self._tellings(t.conn, [order])
            if not tellings:
                settled += int(await self._release_hold(show, ORDER_KEYS, [order]))
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
            await self._announce(show, ORDER_KEYS, [order, step, telling.member, lock])
            settled += 1
        return settled

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

    async def _check_placed(self, conn: Connection, member: MemberId) -> None:
        row = await (
            await conn.execute(
                "SELECT count(*) AS placed FROM orders WHERE member_id = %s AND state = 'placed'", [member]
            )
        ).fetchone()
        if row is not None and row["placed"] >= PLACED_MAX:
            raise LimitReached

    async def _take_pieces(
        self,
        t: Transaction,
        show: ShowId,
        order: OrderId,
        member: MemberId,
        key: str,
        bought: Sequence[_Bought],
    ) -> None:
        """Let Redis decide the pieces; they go back when the transaction does not commit."""
        pieces: list[Arg] = []
        for each in bought:
            if each.piece:
                pieces += [each.row.id, each.quantity]
        if not pieces:
            return

        async def give_back() -> None:
            await self._release_hold(show, ORDER_KEYS, [order])

        t.on_rollback(give_back)  # before the call: one that timed out may have run
        await self._hold(
            show, ORDER_KEYS[:4], [order, member, order_lock(member, key), UNSETTLED_MS, *pieces]
        )

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

    async def _take(
        self, conn: Connection, order: OrderId, pieces: dict[OfferId, int], wanted: dict[str, int]
    ) -> None:
        """Quota and stock by conditional updates, in one order of ids for everybody: two never deadlock."""
        for offer, quantity in sorted(pieces.items()):
            taken = await conn.execute(
                "UPDATE offers SET taken = taken + %(n)s WHERE id = %(id)s AND taken + %(n)s <= quota",
                {"n": quantity, "id": offer},
            )
            if not taken.rowcount:
                raise ReservedOut(retry_ms=5000)
        for product, quantity in sorted(wanted.items()):
            taken = await conn.execute(
                "UPDATE products SET stock = stock - %(n)s WHERE id = %(id)s AND stock >= %(n)s",
                {"n": quantity, "id": product},
            )
            if not taken.rowcount:
                raise await self._none_left(conn, order, product, quantity)

    async def _none_left(self, conn: Connection, order: OrderId, product: str, quantity: int) -> Refusal:
        """Which word fits: pieces held by other unpaid orders may come back."""
        row = await (
            await conn.execute(
                """
                SELECT p.stock, coalesce((
                    SELECT sum(l.quantity) FROM order_lines l JOIN orders o ON o.id = l.order_id
                    WHERE l.product_id = p.id AND l.kind = 'goods'
                      AND o.state = 'placed' AND o.id <> %s), 0) AS held
                FROM products p WHERE p.id = %s
                """,
                [order, product],
            )
        ).fetchone()
        assert row is not None
        if row["stock"] + row["held"] >= quantity and row["held"] > 0:
            return ReservedOut(retry_ms=5000)
        if row["stock"] > 0:
            return LimitReached("fewer pieces are left than you ask for")
        return SoldOut()

    async def _close(
        self, t: Transaction, orders: Sequence[OrderId], state: Literal["cancelled", "expired"]
    ) -> None:
        """End placed orders, whose rows are locked: stock and quota come back in the same transaction."""
        conn = t.conn
        await conn.execute(
            "UPDATE orders SET state = %s, closed_at = clock_timestamp() WHERE id = ANY(%s::uuid[])",
            [state, list(orders)],
        )
        # Rows are locked in the order of their ids, as in _take: two never deadlock.
        await conn.execute(
            """
            WITH back AS (
                SELECT offer_id, sum(quantity) AS pieces FROM order_lines
                WHERE order_id = ANY(%s::uuid[]) AND piece GROUP BY offer_id
            ), locked AS MATERIALIZED (
                SELECT id FROM offers WHERE id IN (SELECT offer_id FROM back) AND quota IS NOT NULL
                ORDER BY id FOR NO KEY UPDATE
            )
            UPDATE offers SET taken = taken - back.pieces FROM back, locked
            WHERE offers.id = back.offer_id AND offers.id = locked.id
            """,
            [list(orders)],
        )
        await conn.execute(
            """
            WITH back AS (
                SELECT product_id, sum(quantity) AS pieces FROM order_lines
                WHERE order_id = ANY(%s::uuid[]) AND kind = 'goods' GROUP BY product_id
            ), locked AS MATERIALIZED (
                SELECT id FROM products WHERE id IN (SELECT product_id FROM back)
                ORDER BY id FOR NO KEY UPDATE
            )
            UPDATE products SET stock = stock + back.pieces FROM back, locked
            WHERE products.id = back.product_id AND products.id = locked.id
            """,
            [list(orders)],
        )
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
        for telling in await self._tellings(conn, orders):
            t.after_commit(lambda telling=telling: self._tell(telling, "closed"))  # type: ignore[misc]

    async def _seat(self, t: Transaction, actor: Actor, show: ShowId | None) -> SeatStatus | None:
        return None if show is None else await self._seats.take(t, actor, show)

    async def _tell_after(self, t: Transaction, order: OrderId, step: Step) -> None:
        (telling,) = await self._tellings(t.conn, [order])
        t.after_commit(lambda: self._tell(telling, step))

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
        changed = OrderChanged(
            order=telling.order,
            kind=telling.kind,
            state=telling.state,
            hold_until=in_ms(telling.hold_until),
            returning_fen=telling.returning_fen,
        )
        with contextlib.suppress(Unavailable):
            await self._notices.send(telling.member, msgspec.to_builtins(changed))

    async def _one(self, conn: Connection, order: OrderId) -> Order:
        found = await self._read(conn, [uuid.UUID(order)]) if is_id(order) else ()
        if not found:
            raise NoSuchOrder
        return found[0]

    async def _read(self, conn: Connection, orders: Sequence[uuid.UUID]) -> tuple[Order, ...]:
        rows = await (
            await conn.execute(
                """
                SELECT o.*, p.name AS plan_name, coalesce((
                        SELECT sum(r.amount_fen) FROM payments pay
                        JOIN payment_returns r ON r.payment_id = pay.id
                        LEFT JOIN payment_returns_done done ON done.return_id = r.id
                        WHERE pay.order_id = o.id AND done.return_id IS NULL), 0)::bigint AS returning_fen
                FROM orders o LEFT JOIN plans p ON p.id = o.plan_id WHERE o.id = ANY(%s)
                """,
                [list(orders)],
            )
        ).fetchall()
        lines = await (
            await conn.execute(
                "SELECT * FROM order_lines WHERE order_id = ANY(%s) ORDER BY order_id, position",
                [list(orders)],
            )
        ).fetchall()
        of_order: dict[uuid.UUID, list[OrderLine]] = {row["id"]: [] for row in rows}
        for line in lines:
            of_order[line["order_id"]].append(_order_line(line))
        found = {row["id"]: _order(row, of_order[row["id"]]) for row in rows}
        return tuple(found[order] for order in orders if order in found)


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


def _owns(actor: Actor, member: MemberId, permission: Literal["member.read", "member.write"]) -> bool:
    return (actor.kind == "viewer" and actor.member == member) or actor.may(permission)


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


def _line_event(telling: _Telling, line: _Line, step: Step) -> bytes:
    kind: type[OrderPlaced] | type[OrderPaid]
    match step:
        case "placed" if telling.state in ("placed", "paid"):
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


def _order_line(row: dict[str, Any]) -> OrderLine:
    return OrderLine(
        kind=row["kind"],
        offer=None if row["offer_id"] is None else OfferId(str(row["offer_id"])),
        product=None if row["product_id"] is None else ProductId(str(row["product_id"])),
        name=row["name"],
        quantity=row["quantity"],
        unit_fen=row["unit_fen"],
        line_fen=row["line_fen"],
        gift_value_fen=row["gift_value_fen"],
        winner=row["winner"],
        candidates=msgspec.convert(row["candidates"], tuple[Candidate, ...]),
    )


def _order(row: dict[str, Any], lines: Sequence[OrderLine]) -> Order:
    return Order(
        id=OrderId(str(row["id"])),
        kind=row["kind"],
        member=MemberId(str(row["member_id"])),
        show=row["show_id"],
        state=row["state"],
        currency=row["currency"],
        lines=tuple(lines),
        goods_fen=row["goods_fen"],
        freight_fen=row["freight_fen"],
        total_fen=row["total_fen"],
        returning_fen=row["returning_fen"],
        plan=None if row["plan_id"] is None else PlanId(str(row["plan_id"])),
        plan_name=row["plan_name"],
        address=row["address"] or None,
        placed_at=in_ms(row["placed_at"]),
        hold_until=in_ms(row["hold_until"]),
        paid_at=None if row["paid_at"] is None else in_ms(row["paid_at"]),
        closed_at=None if row["closed_at"] is None else in_ms(row["closed_at"]),
    )
