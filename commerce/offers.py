"""Offers: a product in one show, at a price, for an audience, with or without a quota.

PostgreSQL remembers the offer first; then the show is told by an idempotent script. From then on Redis
decides who holds a piece (`hold_offer.lua`), and `offers.taken` is the last guard. The bytes of a state part
go to one audience: the card to the offer's, the member price only to those who may see it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from msgspec import Struct

from commerce.bundles import parts_of
from commerce.guards import Guards, NoPromo
from commerce.messages import CloseReason, OfferClosed, OfferOpened, OfferSoldOut, encoded
from commerce.price_history import PriceHistory
from commerce.prices import (
    MemberDay,
    NoSuchOffer,
    OfferRow,
    PlanTerms,
    decide,
    read_offers,
    read_plans,
)
from commerce.products import PriceEntry, Product, Products, audience_column, audience_from
from membership.actor import NOBODY, Actor, Facts, OfferId, ProductId, ShowId, is_id, new_id
from membership.audience import EVERYONE, Audience, ShowAudiences
from membership.moment import in_ms
from membership.page import Page, check_page, page_of
from membership.refusal import BadRequest, Forbidden, Refusal, Unavailable
from membership.script import ScriptLoader, json_arg
from membership.transaction import Connection, Transaction

PINS_MAX = 3  # open at a time in one show; a further one replaces the oldest
SECONDS_MIN, SECONDS_MAX = 5, 6 * 3600
QUOTA_MAX = 1_000_000


class AlreadyOpen(Refusal):
    """This product has an open offer of this kind in this show."""

    code = "already_open"


class Offer(Struct, frozen=True, kw_only=True):
    """An offer as staff see it. `taken` are pieces held and sold; `replaced` the pins it put out of view."""

    id: OfferId
    show: ShowId
    product: ProductId
    kind: Literal["pin", "flash"]
    audience: Audience
    flash_fen: int | None
    quota: int | None
    per_person: int | None
    taken: int
    status: Literal["open", "closed"]
    opened_at: int  # ms
    closes_at: int | None  # ms
    closed_at: int | None  # ms
    close_reason: CloseReason | None
    replaced: tuple[OfferId, ...] = ()


# The keys of a show that offers and orders share, in the order of their scripts.
ORDER_KEYS = ("offers", "offer_people", "holds", "holds_unsettled", "orders_told", "buyers")


def _offer(row: dict[str, Any]) -> Offer:
    return Offer(
        id=OfferId(str(row["id"])),
        show=ShowId(row["show_id"]),
        product=ProductId(str(row["product_id"])),
        kind=row["kind"],
        audience=audience_from(row["audience"]),
        flash_fen=row["flash_fen"],
        quota=row["quota"],
        per_person=row["per_person"],
        taken=row["taken"],
        status=row["status"],
        opened_at=in_ms(row["opened_at"]),
        closes_at=None if row["closes_at"] is None else in_ms(row["closes_at"]),
        closed_at=None if row["closed_at"] is None else in_ms(row["closed_at"]),
        close_reason=row["close_reason"],
    )


class _Telling(Struct, frozen=True):
    """What a show is told of one offer: made from rows, so that a crash loses nothing."""

    row: OfferRow
    parts: bytes
    gone_parts: bytes
    no_stock: bool


class Offers:
    """Opens and closes offers, and keeps their states true."""

    def __init__(
        self,
        scripts: ScriptLoader,
        audiences: ShowAudiences,
        products: Products,
        *,
        member_day: MemberDay | None = None,
        guards: Guards | None = None,
    ) -> None:
        self._guards = guards
        self._audiences = audiences
        self._products = products
        self._member_day = member_day
        self._history = PriceHistory()
        self._admit = scripts.load("commerce", "admit_offer")
        self._open = scripts.load("commerce", "open_offer")
        self._refresh = scripts.load("commerce", "refresh_offer")
        self._close = scripts.load("commerce", "close_offer")
        self._rebuild = scripts.load("commerce", "rebuild_offers")

    async def open(
        self,
        t: Transaction,
        actor: Actor,
        show: ShowId,
        product: ProductId,
        kind: Literal["pin", "flash"] = "pin",
        audience: Audience = EVERYONE,
        flash_fen: int | None = None,
        quota: int | None = None,
        per_person: int | None = None,
        seconds: int | None = None,
    ) -> Offer:
        """Put a product on offer. Viewers see it after the commit.

        Raises Forbidden, NoSuchProduct, BadRequest, NoPromo, AlreadyOpen, not_live, Unavailable,
        TooManyAudiences, and what the guards refuse (guards.py).
        """
        if not actor.may("offer.run"):
            raise Forbidden
        if self._guards is not None:
            await self._guards.check_selling(t.conn)
        found = await self._products.get(t.conn, product)
        _check_terms(found, kind, flash_fen, quota, per_person, seconds)
        if quota is not None:
            await self._check_quota(t.conn, found, quota)
        audience = _narrowed(found, audience)
        if self._guards is not None:
            await self._guards.check_offer(
                t,
                actor,
                show,
                found.id,
                kind,
                flash_fen=flash_fen,
                quota=quota,
                per_person=per_person,
                seconds=seconds,
                audience=audience,
            )
        await self._admit(show, [], [kind])
        bit = await self._audiences.bit(show, audience)
        replaced = await self._make_room(t, show) if kind == "pin" else ()
        cursor = await t.conn.execute(
            """
            INSERT INTO offers (id, show_id, product_id, kind, audience, audience_bit, flash_fen, quota,
                                per_person, opened_at, closes_at)
            SELECT %(id)s, %(show)s, %(product)s, %(kind)s, %(audience)s, %(bit)s, %(flash_fen)s, %(quota)s,
                   %(per_person)s, now.at, now.at + make_interval(secs => %(seconds)s)
            FROM (SELECT clock_timestamp() AS at) now
            ON CONFLICT (show_id, product_id, kind) WHERE status = 'open' DO NOTHING
            RETURNING *
            """,
            {
                "id": new_id(),
                "show": show,
                "product": found.id,
                "kind": kind,
                "audience": audience_column(audience),
                "bit": bit,
                "flash_fen": flash_fen,
                "quota": quota,
                "per_person": per_person,
                "seconds": seconds,
            },
        )
        row = await cursor.fetchone()
        if row is None:
            raise AlreadyOpen
        offer = _offer(row)
        (telling,) = await self._tellings(t.conn, show, [offer.id])
        t.after_commit(lambda: self._tell_open(telling))
        return msgspec.structs.replace(offer, replaced=replaced)

    async def close(
        self, t: Transaction, actor: Actor, show: ShowId, offer: OfferId, reason: CloseReason = "staff"
    ) -> Offer:
        """End an offer; again changes nothing. Open quotes are honoured until they expire.

        Raises Forbidden, NoSuchOffer.
        """
        if not actor.may("offer.run"):
            raise Forbidden
        found = await self.get(t.conn, show, offer)
        closed = await self._end(t, [found.id], reason)
        return closed[0] if closed else found

    async def close_due(self, t: Transaction) -> int:
        """End every offer whose time is over; while selling is paused, time stands still. For the job."""
        rows = await (
            await t.conn.execute(
                "SELECT id FROM offers WHERE status = 'open' AND closes_at <= coalesce("
                "(SELECT began_at FROM incidents WHERE ended_at IS NULL), clock_timestamp()) ORDER BY id"
            )
        ).fetchall()
        return len(await self._end(t, [row["id"] for row in rows], "time"))

    async def close_all(self, t: Transaction, actor: Actor, show: ShowId) -> list[Offer]:
        """End every offer of a show that ends."""
        if not actor.may("show.run"):
            raise Forbidden
        rows = await (
            await t.conn.execute(
                "SELECT id FROM offers WHERE status = 'open' AND show_id = %s ORDER BY id", [show]
            )
        ).fetchall()
        return await self._end(t, [row["id"] for row in rows], "show")

    async def lock_open(self, conn: Connection, product: ProductId) -> None:
        """Lock a product's open offers. Before the product's own row, as who buys takes them."""
        if not is_id(product):
            return
        await conn.execute(
            "SELECT 1 FROM offers WHERE product_id = %s AND status = 'open' ORDER BY id FOR NO KEY UPDATE",
            [product],
        )

    async def close_unfit(self, t: Transaction, product: Product) -> list[Offer]:
        """End a product's open offers when it is off the shelf, or was narrowed to another audience: what a
        viewer may not know of goes from open pages too, also from the cards of bundles that contain it."""
        await self._refresh_bundles(t, product.id)
        rows = await (
            await t.conn.execute(
                "SELECT id, audience FROM offers WHERE product_id = %s AND status = 'open' ORDER BY id",
                [product.id],
            )
        ).fetchall()
        fits = product.status == "on"
        unfit = [
            row["id"]
            for row in rows
            if not (fits and product.audience in (EVERYONE, audience_from(row["audience"])))
        ]
        return await self._end(t, unfit, "staff") if unfit else []

    async def get(self, conn: Connection, show: ShowId | None, offer: OfferId) -> Offer:
        """One offer; with `show`, only of that show. Raises NoSuchOffer."""
        row = None
        if is_id(offer):
            row = await (
                await conn.execute(
                    "SELECT * FROM offers WHERE id = %s AND (%s::text IS NULL OR show_id = %s)",
                    [offer, show, show],
                )
            ).fetchone()
        if row is None:
            raise NoSuchOffer
        return _offer(row)

    async def of_show(
        self,
        conn: Connection,
        show: ShowId,
        *,
        open_only: bool = False,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Offer]:
        """The show's offers in the order they were opened. For staff."""
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                """
                SELECT * FROM offers WHERE show_id = %(show)s AND (NOT %(open_only)s OR status = 'open')
                    AND (%(cursor)s::uuid IS NULL OR id > %(cursor)s)
                ORDER BY id LIMIT %(limit)s + 1
                """,
                {"show": show, "open_only": open_only, "cursor": cursor, "limit": limit},
            )
        ).fetchall()
        return page_of(rows, limit, _offer)

    async def refresh(self, conn: Connection, show: ShowId, *, at: datetime | None = None) -> int:
        """Bring the states of open offers up to date: prices that changed with the clock or the catalogue,
        stock that ran out or came back. Returns how many changed. For the job, every few seconds.

        `at`: as of another moment; left out, the store's clock decides."""
        rows = await (
            await conn.execute(
                "SELECT id FROM offers WHERE show_id = %s AND status = 'open' AND announced_at IS NOT NULL",
                [show],
            )
        ).fetchall()
        tellings = await self._tellings(conn, show, [str(row["id"]) for row in rows], at)
        return sum([await self._tell_refreshed(telling) for telling in tellings])

    async def settle(self, t: Transaction, limit: int = 100) -> int:
        """Tell shows of offers that were opened or closed and, after a crash, not told. For the job.

        The newest `limit`: those of shows whose keys are gone for good stay untold, and are not waited behind.
        """
        rows = await (
            await t.conn.execute(
                """
                SELECT * FROM offers
                WHERE announced_at IS NULL OR (status = 'closed' AND close_announced_at IS NULL)
                ORDER BY id DESC LIMIT %s FOR NO KEY UPDATE SKIP LOCKED
                """,
                [limit],
            )
        ).fetchall()
        told = 0
        for row in reversed(rows):
            offer = _offer(row)
            with contextlib.suppress(Unavailable):  # the show's keys are gone; tried again
                if row["announced_at"] is None and offer.status == "open":
                    (telling,) = await self._tellings(t.conn, offer.show, [offer.id])
                    await self._tell_open(telling)
                if offer.status == "closed":
                    await self._tell_closed(offer, row["audience_bit"])
                await t.conn.execute(
                    """
                    UPDATE offers SET announced_at = coalesce(announced_at, clock_timestamp()),
                        close_announced_at = CASE WHEN status = 'closed' THEN clock_timestamp() END
                    WHERE id = %s
                    """,
                    [offer.id],
                )
                told += 1
        return told

    async def rebuild(self, conn: Connection, show: ShowId) -> bool:
        """Set the show's offers, counters and holds in Redis from the tables, when Redis lost them.

        Called under the lock of whoever opened the show's keys anew. Offers that Redis knows stay.
        """
        rows = await (
            await conn.execute(
                """
                SELECT o.*, coalesce(s.held, 0)::int AS held, coalesce(s.sold, 0)::int AS sold
                FROM offers o LEFT JOIN (
                    SELECT l.offer_id, sum(l.quantity) FILTER (WHERE d.state = 'placed') AS held,
                           sum(l.quantity) FILTER (WHERE d.paid_at IS NOT NULL) AS sold
                    FROM order_lines l JOIN orders d ON d.id = l.order_id
                    WHERE d.show_id = %(show)s AND l.piece GROUP BY l.offer_id
                ) s ON s.offer_id = o.id
                WHERE o.show_id = %(show)s
                """,
                {"show": show},
            )
        ).fetchall()
        lines = await (
            await conn.execute(
                """
                SELECT d.id, d.member_id, d.key, d.paid_at, l.offer_id, l.quantity
                FROM orders d JOIN order_lines l ON l.order_id = d.id
                WHERE d.show_id = %s AND l.piece AND (d.state = 'placed' OR d.paid_at IS NOT NULL)
                ORDER BY d.id, l.position
                """,
                [show],
            )
        ).fetchall()
        buyers = await (
            await conn.execute(
                "SELECT DISTINCT member_id FROM orders WHERE show_id = %s AND paid_at IS NOT NULL", [show]
            )
        ).fetchall()
        open_now = [str(row["id"]) for row in rows if row["status"] == "open"]
        tellings = {telling.row.id: telling for telling in await self._tellings(conn, show, open_now)}
        people: dict[tuple[str, str], int] = {}
        holds: dict[str, dict[str, Any]] = {}
        for line in lines:
            order, offer, member = str(line["id"]), str(line["offer_id"]), str(line["member_id"])
            people[offer, member] = people.get((offer, member), 0) + line["quantity"]
            hold = holds.setdefault(
                order,
                {
                    "m": member,
                    "l": order_lock(member, line["key"]),
                    "s": "h" if line["paid_at"] is None else "s",
                    "o": [],
                },
            )
            hold["o"].append([offer, line["quantity"]])
        offers = []
        for row in rows:
            offer = OfferId(str(row["id"]))
            telling = tellings.get(offer)
            offers.append(
                {
                    "id": offer,
                    "kind": row["kind"],
                    "quota": _text(row["quota"]),
                    "per_person": _text(row["per_person"]),
                    "bit": row["audience_bit"],
                    "status": row["status"] if telling is not None else "closed",
                    "parts": "" if telling is None else telling.parts.decode(),
                    "gone_parts": "" if telling is None else telling.gone_parts.decode(),
                    "gone_event": encoded(OfferSoldOut(offer=offer)).decode(),
                    "no_stock": telling is not None and telling.no_stock,
                    "held": row["held"],
                    "sold": row["sold"],
                }
            )
        body = {
            "offers": offers,
            "people": [[offer, member, pieces] for (offer, member), pieces in people.items()],
            "holds": [[order, msgspec.json.encode(hold).decode()] for order, hold in holds.items()],
            "buyers": [str(row["member_id"]) for row in buyers],
        }
        rebuilt = await self._rebuild(show, ORDER_KEYS, [json_arg(body)])
        return int(rebuilt) > 0

    # --- what is told ---

    async def _check_quota(self, conn: Connection, product: Product, quota: int) -> None:
        """The open quotas of a product together are never above what is free of it. They reserve nothing: a
        piece of a quota is had only while a piece of the stock is."""
        # Two offers opened at once take turns, so that the second counts the first.
        await conn.execute("SELECT 1 FROM products WHERE id = %s FOR NO KEY UPDATE", [product.id])
        row = await (
            await conn.execute(
                """
                SELECT free_pieces(p) - (
                    SELECT coalesce(sum(o.quota - o.taken), 0) FROM offers o
                    WHERE o.product_id = p.id AND o.status = 'open' AND o.quota IS NOT NULL) AS left
                FROM products p WHERE p.id = %s
                """,
                [product.id],
            )
        ).fetchone()
        if row is None or quota > row["left"]:
            raise BadRequest("the quota is above the free stock")

    async def _make_room(self, t: Transaction, show: ShowId) -> tuple[OfferId, ...]:
        """With three pins open, the oldest makes way: the host presses one key, not two."""
        rows = await (
            await t.conn.execute(
                """
                SELECT id FROM offers WHERE show_id = %s AND kind = 'pin' AND status = 'open'
                ORDER BY id DESC OFFSET %s
                """,
                [show, PINS_MAX - 1],
            )
        ).fetchall()
        closed = await self._end(t, [row["id"] for row in rows], "replaced")
        return tuple(offer.id for offer in closed)

    async def _end(
        self, t: Transaction, offers: Sequence[UUID | OfferId], reason: CloseReason
    ) -> list[Offer]:
        rows = await (
            await t.conn.execute(
                """
                WITH locked AS MATERIALIZED (
                    SELECT id FROM offers WHERE status = 'open' AND id = ANY(%s::uuid[])
                    ORDER BY id FOR NO KEY UPDATE
                )
                UPDATE offers o SET status = 'closed', closed_at = clock_timestamp(), close_reason = %s
                FROM locked WHERE o.id = locked.id AND o.status = 'open' RETURNING o.*
                """,
                [list(offers), reason],
            )
        ).fetchall()
        closed = []
        for row in rows:
            offer, bit = _offer(row), int(row["audience_bit"])
            t.after_commit(lambda offer=offer, bit=bit: self._tell_closed(offer, bit))  # type: ignore[misc]
            closed.append(offer)
        return closed

    async def _tell_open(self, telling: _Telling) -> None:
        row = telling.row
        opened = OfferOpened(
            offer=row.id,
            kind=row.kind,
            product=row.product.id,
            name=row.product.name,
            closes_at=msgspec.UNSET if row.ends_at is None else in_ms(row.ends_at),
        )
        await self._open(
            row.show,
            ["offers"],
            [
                row.id,
                row.kind,
                _text(row.quota),
                _text(row.per_person),
                row.audience_bit,
                telling.parts,
                telling.gone_parts,
                encoded(opened),
                encoded(OfferSoldOut(offer=row.id)),
            ],
        )

    async def _tell_refreshed(self, telling: _Telling) -> int:
        no_stock = "1" if telling.no_stock else ""
        return int(
            await self._refresh(
                telling.row.show, ["offers"], [telling.row.id, telling.parts, telling.gone_parts, no_stock]
            )
        )

    async def _refresh_bundles(self, t: Transaction, part: ProductId) -> None:
        """Bring the open cards of bundles with this part up to date after the commit. Where Redis cannot be
        asked, the job does it."""
        rows = await (
            await t.conn.execute(
                """
                SELECT o.show_id, array_agg(o.id::text ORDER BY o.id) AS offers
                FROM offers o JOIN bundle_parts b ON b.bundle_id = o.product_id
                WHERE b.part_id = %s AND o.status = 'open' AND o.announced_at IS NOT NULL GROUP BY o.show_id
                """,
                [part],
            )
        ).fetchall()
        for row in rows:
            with contextlib.suppress(Unavailable):
                for telling in await self._tellings(t.conn, ShowId(row["show_id"]), row["offers"]):
                    t.after_commit(lambda telling=telling: self._tell_refreshed(telling))  # type: ignore[misc]

    async def _tell_closed(self, offer: Offer, bit: int) -> None:
        event = OfferClosed(offer=offer.id, reason=offer.close_reason or "staff")
        await self._close(offer.show, ["offers"], [offer.id, bit, encoded(event)])

    async def _tellings(
        self, conn: Connection, show: ShowId, offers: Sequence[str], at: datetime | None = None
    ) -> list[_Telling]:
        if not offers:
            return []
        found = await read_offers(conn, show, offers)
        products = sorted({row.product.id for row in found.values()})
        entries = await self._products.prices(conn, products)
        bundles = await parts_of(conn, [row.product.id for row in found.values() if row.product.bundle])
        _, plan = await read_plans(conn, NOBODY)
        clock = await (
            await conn.execute(
                """
                SELECT clock_timestamp() AS now, array(
                    SELECT p.id::text FROM unnest(%s::uuid[]) AS p (id) WHERE EXISTS (
                        SELECT 1 FROM orders d JOIN order_pieces w ON w.order_id = d.id
                        WHERE w.product_id = p.id AND w.state = 'taken' AND d.state = 'placed')
                ) AS held
                """,
                [[*products, *(part.product for parts in bundles.values() for part in parts)]],
            )
        ).fetchone()
        assert clock is not None
        now: datetime = at or clock["now"]
        was_fen = await self._history.paid_before(
            conn, {row.product.id: row.opened_at for row in found.values() if row.kind == "flash"}
        )
        tellings = []
        for row in found.values():
            bit = await self._member_price_bit(show, row)
            card, member_card = self._card(row, entries[row.product.id], plan, now)
            if row.flash_fen is not None and was_fen.get(row.product.id, 0) > row.flash_fen:
                card["was_fen"] = was_fen[row.product.id]  # a cut for a limited time may strike this through
            inside = bundles.get(row.product.id, ())
            if inside:
                card["product"]["parts"] = [
                    {"name": part.name, "quantity": part.quantity, "unit": part.unit}
                    for part in inside
                    if part.audience in (EVERYONE, row.audience)
                ]
            parts = [{"a": row.audience_bit, "d": card, "counts": ["held", "sold"]}]
            if bit is not None and member_card:
                parts.append({"a": bit, "d": member_card})
            gone = [{**parts[0], "d": {**card, "status": "sold_out"}}, *parts[1:]]
            may_come_back = {row.product.id, *(part.product for part in inside)} & set(clock["held"])
            no_stock = row.product.free <= 0 and not may_come_back
            tellings.append(_Telling(row, json_arg(parts), json_arg(gone), no_stock))
        return tellings

    async def _member_price_bit(self, show: ShowId, row: OfferRow) -> int | None:
        """The bit that may see the member price: never wider than the offer's own. None: it is not shown."""
        seen_by = row.product.member_price_audience
        if seen_by == EVERYONE or seen_by == row.audience:
            return row.audience_bit
        if row.audience == EVERYONE:
            return await self._audiences.bit(show, seen_by)
        return None

    def _card(
        self, row: OfferRow, entries: Sequence[PriceEntry], plan: PlanTerms | None, now: datetime
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the offer's audience sees, and what those who may see the member price see beside it."""
        product = row.product
        shared = [entry for entry in entries if entry.audience == EVERYONE]
        without = decide(product, NOBODY, None, None, now, entries=shared, member_day=self._member_day)
        card: dict[str, Any] = {
            "id": row.id,
            "kind": row.kind,
            "product": {
                "id": product.id,
                "name": product.name,
                "short": product.short,
                "image": product.image,
                "unit": product.unit,
                "gift_text": product.gift_text,
                "gift_value_fen": product.gift_value_fen,
            },
            "list_fen": without.unit_fen,
            "status": "open",
        }
        if row.kind == "flash":
            card["flash_fen"] = row.flash_fen
        if row.quota is not None:
            card["quota"] = row.quota
        if row.per_person is not None:
            card["per_person"] = row.per_person
        if row.ends_at is not None:
            card["closes_at"] = in_ms(row.ends_at)
        if product.stock_mode != "on_order":
            card["stock_mode"] = product.stock_mode
        if product.stock_mode == "presale" and product.ship_by is not None:
            card["ship_by"] = product.ship_by.isoformat()
        for name in ("max_per_member", "max_per_household"):
            if (most := getattr(product, name)) is not None:
                card["product"].update({name: most, "limit_days": product.limit_days})
        member_card: dict[str, Any] = {}
        if plan is not None:
            as_member = Facts(registered=True, plans=frozenset({plan.id}))
            of_members = [
                entry
                for entry in entries
                if entry.audience.kind in ("everyone", "registered", "plan_members", "plans")
            ]
            member = decide(
                product, as_member, None, plan, now, entries=of_members, member_day=self._member_day
            )
            if member.unit_fen < without.unit_fen:
                member_card = {
                    "member_fen": member.unit_fen,
                    "plan_saves_fen": without.unit_fen - member.unit_fen,
                }
        return card, member_card


def order_lock(member: str, key: str) -> str:
    """What an order's transaction locks: two commands of one key wait for each other, and a hold whose lock
    is free belongs to no transaction that may yet commit."""
    return f"order:{member}:{key}"


def buyer_lock(member: str) -> str:
    """What placing locks beside it: one order of a member at a time, whatever its key."""
    return f"orders:{member}"


def _text(number: int | None) -> str:
    return "" if number is None else str(number)


def _narrowed(product: Product, audience: Audience) -> Audience:
    """An offer is never for more people than its product."""
    if product.audience in (EVERYONE, audience):
        return audience
    if audience == EVERYONE:
        return product.audience
    raise BadRequest("the product is for another audience than the offer")


def _check_terms(
    product: Product,
    kind: str,
    flash_fen: int | None,
    quota: int | None,
    per_person: int | None,
    seconds: int | None,
) -> None:
    if kind not in ("pin", "flash"):
        raise BadRequest("kind is pin or flash")
    if product.status != "on":
        raise BadRequest("the product is off the shelf")
    for name, value, low, high in (
        ("quota", quota, 1, QUOTA_MAX),
        ("per_person", per_person, 1, QUOTA_MAX),
        ("seconds", seconds, SECONDS_MIN, SECONDS_MAX),
    ):
        if value is not None and not low <= value <= high:
            raise BadRequest(f"{name} is between {low} and {high}")
    if kind == "pin":
        if flash_fen is not None or quota is not None or per_person is not None:
            raise BadRequest("a pin has no flash price and no quota")
        return
    if product.no_promo:
        raise NoPromo.of(product.id, product.name, "a flash sale")
    if flash_fen is None or quota is None or seconds is None:
        raise BadRequest("a flash offer needs flash_fen, quota and seconds")
    if not 1 <= flash_fen < product.list_fen:
        raise BadRequest("flash_fen must be below the list price")
    if quota > product.free:
        raise BadRequest("the quota is above the free stock")
