"""Products: what can be sold, who may know of it, and how many pieces are free.

Free pieces are `products.stock`: a hold takes them off in the order's own transaction and gives them back
when it ends. So staff change the stock by a difference, never by writing a number they once read, and each
difference stands in the stock's ledger (stock.py). A bundle has no stock: it is had while its parts are.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from psycopg.errors import CheckViolation
from psycopg.types.json import Jsonb

from commerce.bundles import PARTS_MAX, BundlePart, add_parts
from commerce.guards import Guards, NoPromo
from commerce.stock import enter
from membership.actor import Actor, Facts, ProductId, is_id, new_id
from membership.audience import EVERYONE, PLAN_MEMBERS, Audience
from membership.page import Page, check_page
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal
from membership.transaction import Connection, Transaction

PRICE_MAX_FEN = 100_000_000  # a million yuan
SCAN = 200  # rows read at a time when some are not for the reader

Fen = Annotated[int, Meta(ge=1, le=PRICE_MAX_FEN)]
# on_order: pieces are taken when the order is placed. on_payment: when the money is recorded; who comes too
# late has it back. presale: pieces still to come, up to a cap, sent by a date.
StockMode = Literal["on_order", "on_payment", "presale"]
Cap = Annotated[int, Meta(ge=1, le=10_000_000)]
Limit = Annotated[int, Meta(ge=1, le=9_999)]
LimitDays = Annotated[int, Meta(ge=1, le=3_650)]
# A path of ours or a web address, as of a show's poster: pages draw it.
ImageUrl = Annotated[str, Meta(max_length=500, pattern="^(/$|/[^/]|https?://)")]


class SkuTaken(Refusal):
    """Another product has this SKU."""

    code = "sku_taken"


class NoSuchProduct(NotFound):
    """There is no such product."""


class ProductInput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A product as staff or the shop's server describe it."""

    sku: Annotated[str, Meta(min_length=1, max_length=64)]
    name: Annotated[str, Meta(min_length=1, max_length=60)]
    short: Annotated[str, Meta(max_length=120)] = ""
    unit: Annotated[str, Meta(min_length=1, max_length=20)] = "件"
    image: ImageUrl | None = None
    list_fen: Fen
    member_fen: Fen | None = None
    member_price_audience: Audience = EVERYONE  # who may see the member price
    stock: Annotated[int, Meta(ge=0, le=10_000_000)] = 0  # none for a bundle
    stock_mode: StockMode = "on_order"
    presale_cap: Cap | None = None  # pieces that may be ordered before they are there
    ship_by: date | None = None  # of a pre-sale: when the last is sent
    parts: Annotated[tuple[BundlePart, ...], Meta(max_length=PARTS_MAX)] = ()  # makes it a bundle, for good
    max_per_member: Limit | None = None  # pieces, in the last `limit_days`
    max_per_household: Limit | None = None  # the same for all orders to one address
    limit_days: LimitDays = 30
    audience: Audience = EVERYONE  # who may know of the product at all
    on_sale_at: datetime | None = None
    early_s: Annotated[int, Meta(ge=0, le=2_592_000)] = 0  # the early audience may order so long before
    early_audience: Audience = PLAN_MEMBERS
    no_promo: bool = False  # no flash price, no member day
    no_behaviour_tags: bool = False
    tag_name: Annotated[str, Meta(min_length=1, max_length=40)] | None = None
    gift_text: Annotated[str, Meta(min_length=1, max_length=80)] | None = None
    gift_value_fen: Annotated[int, Meta(ge=0, le=PRICE_MAX_FEN)] = 0
    gift_audience: Audience = PLAN_MEMBERS  # who gets the gift
    status: Literal["on", "off"] = "on"
    cost_fen: Annotated[int, Meta(ge=0, le=PRICE_MAX_FEN)] | None = None  # of one piece, to the shop


class ProductPatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What changes; the rest stays. `stock_change` is a difference."""

    name: Annotated[str, Meta(min_length=1, max_length=60)] | UnsetType = UNSET
    short: Annotated[str, Meta(max_length=120)] | UnsetType = UNSET
    unit: Annotated[str, Meta(min_length=1, max_length=20)] | UnsetType = UNSET
    image: ImageUrl | UnsetType | None = UNSET
    list_fen: Fen | UnsetType = UNSET
    member_fen: Fen | UnsetType | None = UNSET
    member_price_audience: Audience | UnsetType = UNSET
    stock_change: Annotated[int, Meta(ge=-10_000_000, le=10_000_000)] | UnsetType = UNSET
    stock_mode: StockMode | UnsetType = UNSET  # orders already placed keep theirs
    presale_cap: Cap | UnsetType | None = UNSET
    ship_by: date | UnsetType | None = UNSET
    max_per_member: Limit | UnsetType | None = UNSET
    max_per_household: Limit | UnsetType | None = UNSET
    limit_days: LimitDays | UnsetType = UNSET
    audience: Audience | UnsetType = UNSET
    on_sale_at: datetime | UnsetType | None = UNSET
    early_s: Annotated[int, Meta(ge=0, le=2_592_000)] | UnsetType = UNSET
    early_audience: Audience | UnsetType = UNSET
    no_promo: bool | UnsetType = UNSET
    no_behaviour_tags: bool | UnsetType = UNSET
    tag_name: Annotated[str, Meta(min_length=1, max_length=40)] | UnsetType | None = UNSET
    gift_text: Annotated[str, Meta(min_length=1, max_length=80)] | UnsetType | None = UNSET
    gift_value_fen: Annotated[int, Meta(ge=0, le=PRICE_MAX_FEN)] | UnsetType = UNSET
    gift_audience: Audience | UnsetType = UNSET
    status: Literal["on", "off"] | UnsetType = UNSET
    cost_fen: Annotated[int, Meta(ge=0, le=PRICE_MAX_FEN)] | UnsetType | None = UNSET


class Product(Struct, frozen=True, kw_only=True):
    """A product as it stands. `stock` is what is free at hand, `free` what may be had now in the product's mode:
    of a bundle what its parts allow, of a pre-sale what is left of the cap."""

    id: ProductId
    sku: str
    name: str
    short: str
    unit: str
    image: str | None
    list_fen: int
    member_fen: int | None
    member_price_audience: Audience
    stock: int
    stock_mode: StockMode
    presale_cap: int | None = None
    presale_taken: int = 0
    ship_by: date | None = None
    bundle: bool = False
    free: int = 0
    max_per_member: int | None = None
    max_per_household: int | None = None
    limit_days: int = 30
    audience: Audience
    on_sale_at: datetime | None
    early_s: int
    early_audience: Audience
    no_promo: bool
    no_behaviour_tags: bool
    tag_name: str | None
    gift_text: str | None
    gift_value_fen: int
    gift_audience: Audience
    status: Literal["on", "off"]
    cost_fen: int | None = None

    def may_order(self, facts: Facts, now: datetime) -> bool:
        """On sale to this person at this moment; the early audience comes in before the rest."""
        if self.status != "on":
            return False
        if self.on_sale_at is None or now >= self.on_sale_at:
            return True
        return now >= self.on_sale_at - timedelta(seconds=self.early_s) and self.early_audience.has(facts)


class PublicProduct(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A product as a viewer may know it: no stock, no audiences; the member price only for its audience."""

    id: ProductId
    name: str
    short: str
    unit: str
    image: str | None
    list_fen: int
    member_fen: int | None = None
    gift_text: str | None = None
    gift_value_fen: int = 0
    on_sale_at: datetime | None = None
    ship_by: date | None = None


class PriceEntry(Struct, frozen=True, kw_only=True):
    """One line of a price list. With `min_quantity` it is a group price: for so many of the product in one order."""

    id: str
    product: ProductId
    audience: Audience
    unit_fen: int
    from_at: datetime
    until_at: datetime | None
    min_quantity: int = 1

    def holds(self, facts: Facts, now: datetime) -> bool:
        """For this person, at this moment; `until_at` itself is outside."""
        inside = self.from_at <= now and (self.until_at is None or now < self.until_at)
        return inside and self.audience.has(facts)


_AUDIENCES = ("member_price_audience", "audience", "early_audience", "gift_audience")
GROUP_MAX = 99  # pieces that a group price may ask for: what one line of an order holds
_ON_SALE_NEEDED = "early_s needs on_sale_at"
_PRESALE_NEEDS = "a pre-sale needs presale_cap and ship_by"


def audience_from(value: Any) -> Audience:
    """An audience column as the struct."""
    return msgspec.convert(value, Audience)


def audience_column(audience: Audience) -> Jsonb:
    return Jsonb(msgspec.to_builtins(audience))


def product_from(row: dict[str, Any]) -> Product:
    """A row of `products p`, with `free_pieces(p) AS free`, as the struct."""
    values = {name: row[name] for name in Product.__struct_fields__}
    values["id"] = ProductId(str(row["id"]))
    for name in _AUDIENCES:
        values[name] = audience_from(row[name])
    return Product(**values)


def seen_by(product: Product, facts: Facts) -> PublicProduct | None:
    """What this person may know of the product; None when nothing."""
    if product.status != "on" or not product.audience.has(facts):
        return None
    return PublicProduct(
        id=product.id,
        name=product.name,
        short=product.short,
        unit=product.unit,
        image=product.image,
        list_fen=product.list_fen,
        member_fen=product.member_fen if product.member_price_audience.has(facts) else None,
        gift_text=product.gift_text,
        gift_value_fen=product.gift_value_fen,
        on_sale_at=product.on_sale_at,
        ship_by=product.ship_by if product.stock_mode == "presale" else None,
    )


class Products:
    """The catalogue: products and their price list."""

    def __init__(self, guards: Guards | None = None) -> None:
        self._guards = guards

    async def create(self, t: Transaction, actor: Actor, product: ProductInput) -> Product:
        """Raises SkuTaken, BadRequest (a member price above the list price …)."""
        if not actor.may("catalog.write"):
            raise Forbidden
        if product.member_fen is not None and product.member_fen > product.list_fen:
            raise BadRequest("member_fen is above list_fen")
        if product.early_s and product.on_sale_at is None:
            raise BadRequest(_ON_SALE_NEEDED)
        if product.gift_value_fen and product.gift_text is None:
            raise BadRequest("gift_value_fen needs gift_text")
        if product.no_promo and product.gift_text is not None:
            raise NoPromo.of("", product.name, "a gift with purchase")
        if product.stock_mode == "presale" and (product.presale_cap is None or product.ship_by is None):
            raise BadRequest(_PRESALE_NEEDS)
        if product.parts and (product.stock or product.stock_mode != "on_order" or product.presale_cap):
            raise BadRequest("a bundle has no stock of its own and is sold on order")
        _aware(product.on_sale_at)
        values: dict[str, Any] = {name: getattr(product, name) for name in ProductInput.__struct_fields__}
        values["bundle"] = bool(product.parts)
        for name in _AUDIENCES:
            values[name] = audience_column(values[name])
        cursor = await t.conn.execute(
            """
            INSERT INTO products (id, sku, name, short, unit, image, list_fen, member_fen,
                member_price_audience, stock, stock_mode, audience, on_sale_at, early_s, early_audience,
                no_promo, no_behaviour_tags, tag_name, gift_text, gift_value_fen, gift_audience, status,
                bundle, presale_cap, ship_by, max_per_member, max_per_household, limit_days, cost_fen)
            VALUES (%(id)s, %(sku)s, %(name)s, %(short)s, %(unit)s, %(image)s, %(list_fen)s, %(member_fen)s,
                %(member_price_audience)s, %(stock)s, %(stock_mode)s, %(audience)s, %(on_sale_at)s,
                %(early_s)s, %(early_audience)s, %(no_promo)s, %(no_behaviour_tags)s, %(tag_name)s,
                %(gift_text)s, %(gift_value_fen)s, %(gift_audience)s, %(status)s,
                %(bundle)s, %(presale_cap)s, %(ship_by)s, %(max_per_member)s, %(max_per_household)s,
                %(limit_days)s, %(cost_fen)s)
            ON CONFLICT (sku) DO NOTHING
            RETURNING id
            """,
            {"id": new_id(), **values},
        )
        row = await cursor.fetchone()
        if row is None:
            raise SkuTaken
        made = ProductId(str(row["id"]))
        if product.parts:
            await add_parts(t.conn, made, product.audience, product.parts)
        await enter(
            t.conn, actor, made, product.stock, product.stock, kind="opening", cause=f"product:{made}"
        )
        if self._guards is not None:
            await self._guards.check_product(t, actor, made, None)
        return await self.get(t.conn, made)

    async def update(self, t: Transaction, actor: Actor, product: ProductId, patch: ProductPatch) -> Product:
        """Change what the patch names. Raises NoSuchProduct, BadRequest (also: fewer pieces than none)."""
        if not actor.may("catalog.write"):
            raise Forbidden
        row = None
        if is_id(product):
            cursor = await t.conn.execute("SELECT * FROM products WHERE id = %s FOR NO KEY UPDATE", [product])
            row = await cursor.fetchone()
        if row is None:
            raise NoSuchProduct
        changed: dict[str, Any] = {
            name: value
            for name in ProductPatch.__struct_fields__
            if (value := getattr(patch, name)) is not UNSET and name != "stock_change"
        }
        _aware(changed.get("on_sale_at"))
        before = (row["list_fen"], row["member_fen"], row["cost_fen"])
        if {**row, **changed}["no_promo"] and {**row, **changed}["gift_text"] is not None:
            raise NoPromo.of(product, row["name"], "a gift with purchase")
        await self._check_mode(t.conn, product, {**row, **changed})
        values = {**row, **changed, "stock_change": patch.stock_change or 0}
        for name in _AUDIENCES:
            audience = changed[name] if name in changed else audience_from(row[name])
            values[name] = audience_column(audience)
        try:
            async with t.conn.transaction():  # a savepoint: the row was locked just above
                cursor = await t.conn.execute(
                    """
                    UPDATE products SET name = %(name)s, short = %(short)s, unit = %(unit)s,
                        image = %(image)s, list_fen = %(list_fen)s, member_fen = %(member_fen)s,
                        member_price_audience = %(member_price_audience)s,
                        stock = stock + %(stock_change)s, audience = %(audience)s,
                        on_sale_at = %(on_sale_at)s, early_s = %(early_s)s,
                        early_audience = %(early_audience)s, no_promo = %(no_promo)s,
                        no_behaviour_tags = %(no_behaviour_tags)s,
                        tag_name = %(tag_name)s, gift_text = %(gift_text)s,
                        gift_value_fen = %(gift_value_fen)s, gift_audience = %(gift_audience)s,
                        status = %(status)s, updated_at = now(),
                        stock_mode = %(stock_mode)s, presale_cap = %(presale_cap)s, ship_by = %(ship_by)s,
                        max_per_member = %(max_per_member)s, max_per_household = %(max_per_household)s,
                        limit_days = %(limit_days)s, cost_fen = %(cost_fen)s
                    WHERE id = %(id)s
                    RETURNING stock
                    """,
                    values,
                )
        except CheckViolation as error:
            raise BadRequest(f"the product would break a rule: {error.diag.constraint_name}") from None
        row = await cursor.fetchone()
        assert row is not None
        if patch.stock_change:
            cause = f"change:{new_id()}"
            await enter(t.conn, actor, product, patch.stock_change, row["stock"], kind="change", cause=cause)
        if self._guards is not None:
            await self._guards.check_product(t, actor, product, before)
        return await self.get(t.conn, product)

    async def _check_mode(self, conn: Connection, product: ProductId, values: dict[str, Any]) -> None:
        if values["stock_mode"] != "presale":
            return
        if values["presale_cap"] is None or values["ship_by"] is None:
            raise BadRequest(_PRESALE_NEEDS)
        part = await conn.execute("SELECT 1 FROM bundle_parts WHERE part_id = %s LIMIT 1", [product])
        if await part.fetchone() is not None:
            raise BadRequest("a part of a bundle cannot be a pre-sale")

    async def get(self, conn: Connection, product: ProductId, facts: Facts | None = None) -> Product:
        """One product; with `facts`, only if that person may know of it. Raises NotFound."""
        row = None
        if is_id(product):
            row = await (
                await conn.execute(
                    "SELECT p.*, free_pieces(p) AS free FROM products p WHERE p.id = %s", [product]
                )
            ).fetchone()
        if row is None:
            raise NoSuchProduct
        found = product_from(row)
        if facts is not None and seen_by(found, facts) is None:
            raise NoSuchProduct
        return found

    async def list(
        self,
        conn: Connection,
        facts: Facts | None = None,
        *,
        search: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[Product]:
        """Products in the order they were made.

        With `facts`, only what that person may know of: neither rows nor their number betray the rest.
        """
        check_page(cursor, limit)
        found: list[Product] = []
        after = cursor
        while True:
            rows = await (
                await conn.execute(
                    """
                    SELECT p.*, free_pieces(p) AS free FROM products p
                    WHERE (%(after)s::uuid IS NULL OR id > %(after)s) AND (%(search)s::text IS NULL
                        OR strpos(lower(name), lower(%(search)s)) > 0
                        OR strpos(lower(sku), lower(%(search)s)) > 0)
                    ORDER BY id LIMIT %(limit)s
                    """,
                    {"after": after, "search": search or None, "limit": SCAN},
                )
            ).fetchall()
            for row in rows:
                product = product_from(row)
                if facts is not None and seen_by(product, facts) is None:
                    continue
                if len(found) == limit:
                    return Page(tuple(found), found[-1].id)
                found.append(product)
            if len(rows) < SCAN:
                return Page(tuple(found))
            after = str(rows[-1]["id"])

    async def set_price(
        self,
        t: Transaction,
        actor: Actor,
        product: ProductId,
        unit_fen: int,
        audience: Audience,
        from_at: datetime,
        until_at: datetime | None = None,
        min_quantity: int = 1,
    ) -> PriceEntry:
        """A further line of the price list. It can lower a price, never raise one.

        `min_quantity` from 2: for each piece of an order that has so many of the product.
        """
        if not actor.may("catalog.write"):
            raise Forbidden
        found = await self.get(t.conn, product)
        _aware(from_at)
        _aware(until_at)
        if until_at is not None and until_at <= from_at:
            raise BadRequest("until_at is not after from_at")
        if not 1 <= unit_fen <= found.list_fen:
            raise BadRequest("unit_fen must be between 1 and the list price")
        if not 1 <= min_quantity <= GROUP_MAX:
            raise BadRequest(f"min_quantity is between 1 and {GROUP_MAX}", field="min_quantity")
        if min_quantity > 1 and audience.kind in ("plan_members", "plans"):
            # One sum must say what the plan saved, and the group price is not the plan's.
            raise BadRequest("a group price is not for plans alone", field="audience")
        if found.no_promo:
            raise NoPromo.of(found.id, found.name, "a price list")
        if self._guards is not None:
            await self._guards.check_price(
                t, actor, found.id, unit_fen, audience, from_at, until_at, min_quantity
            )
        entry = PriceEntry(
            id=new_id(),
            product=found.id,
            audience=audience,
            unit_fen=unit_fen,
            from_at=from_at,
            until_at=until_at,
            min_quantity=min_quantity,
        )
        await t.conn.execute(
            "INSERT INTO price_entries (id, product_id, audience, unit_fen, from_at, until_at, min_quantity)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            [entry.id, entry.product, audience_column(audience), unit_fen, from_at, until_at, min_quantity],
        )
        return entry

    async def end_price(self, t: Transaction, actor: Actor, entry: str) -> None:
        """End a line of the price list now; one that has not begun is taken off. Raises NotFound."""
        if not actor.may("catalog.write"):
            raise Forbidden
        if not is_id(entry):
            raise NotFound
        gone = await t.conn.execute("DELETE FROM price_entries WHERE id = %s AND from_at >= now()", [entry])
        if gone.rowcount:
            return
        ended = await t.conn.execute(
            "UPDATE price_entries SET until_at = now()"
            " WHERE id = %s AND (until_at IS NULL OR until_at > now())",
            [entry],
        )
        if not ended.rowcount:
            raise NotFound

    async def prices(
        self, conn: Connection, products: Sequence[ProductId]
    ) -> dict[ProductId, tuple[PriceEntry, ...]]:
        """The price lists of these products that hold now or will, by product."""
        rows = await (
            await conn.execute(
                "SELECT * FROM price_entries WHERE product_id = ANY(%s::uuid[])"
                " AND (until_at IS NULL OR until_at > now()) ORDER BY id",
                [list(products)],
            )
        ).fetchall()
        found: dict[ProductId, tuple[PriceEntry, ...]] = dict.fromkeys(products, ())
        for row in rows:
            product = ProductId(str(row["product_id"]))
            found[product] += (
                PriceEntry(
                    id=str(row["id"]),
                    product=product,
                    audience=audience_from(row["audience"]),
                    unit_fen=row["unit_fen"],
                    from_at=row["from_at"],
                    until_at=row["until_at"],
                    min_quantity=row["min_quantity"],
                ),
            )
        return found


def _aware(moment: datetime | None) -> None:
    if moment is not None and moment.tzinfo is None:
        raise BadRequest("a time needs its offset, like 2026-11-21T20:00:00+08:00")
