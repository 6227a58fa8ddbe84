"""Products: what can be sold, who may know of it, and how many pieces are free.

Free pieces are `products.stock`: a hold takes them off in the order's own transaction and gives them back
when it ends. So staff change the stock by a difference, never by writing a number they once read.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from psycopg.errors import CheckViolation
from psycopg.types.json import Jsonb

from membership.actor import Actor, Facts, ProductId, is_id, new_id
from membership.audience import EVERYONE, PLAN_MEMBERS, Audience
from membership.page import Page, check_page
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal
from membership.transaction import Connection, Transaction

PRICE_MAX_FEN = 100_000_000  # a million yuan
SCAN = 200  # rows read at a time when some are not for the reader

Fen = Annotated[int, Meta(ge=1, le=PRICE_MAX_FEN)]
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
    stock: Annotated[int, Meta(ge=0, le=10_000_000)]
    stock_mode: Literal["on_order"] = "on_order"
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


class Product(Struct, frozen=True, kw_only=True):
    """A product as it stands. `stock` is what is free now."""

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
    stock_mode: str
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


class PriceEntry(Struct, frozen=True, kw_only=True):
    """One line of a price list."""

    id: str
    product: ProductId
    audience: Audience
    unit_fen: int
    from_at: datetime
    until_at: datetime | None

    def holds(self, facts: Facts, now: datetime) -> bool:
        """For this person, at this moment; `until_at` itself is outside."""
        inside = self.from_at <= now and (self.until_at is None or now < self.until_at)
        return inside and self.audience.has(facts)


_AUDIENCES = ("member_price_audience", "audience", "early_audience", "gift_audience")
_ON_SALE_NEEDED = "early_s needs on_sale_at"


def audience_from(value: Any) -> Audience:
    """An audience column as the struct."""
    return msgspec.convert(value, Audience)


def audience_column(audience: Audience) -> Jsonb:
    return Jsonb(msgspec.to_builtins(audience))


def product_from(row: dict[str, Any]) -> Product:
    """A row of `products` as the struct."""
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
    )


class Products:
    """The catalogue: products and their price list."""

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
        _aware(product.on_sale_at)
        values = {name: getattr(product, name) for name in ProductInput.__struct_fields__}
        for name in _AUDIENCES:
            values[name] = audience_column(values[name])
        cursor = await t.conn.execute(
            """
            INSERT INTO products (id, sku, name, short, unit, image, list_fen, member_fen,
                member_price_audience, stock, stock_mode, audience, on_sale_at, early_s, early_audience,
                no_promo, no_behaviour_tags, tag_name, gift_text, gift_value_fen, gift_audience, status)
            VALUES (%(id)s, %(sku)s, %(name)s, %(short)s, %(unit)s, %(image)s, %(list_fen)s, %(member_fen)s,
                %(member_price_audience)s, %(stock)s, %(stock_mode)s, %(audience)s, %(on_sale_at)s,
                %(early_s)s, %(early_audience)s, %(no_promo)s, %(no_behaviour_tags)s, %(tag_name)s,
                %(gift_text)s, %(gift_value_fen)s, %(gift_audience)s, %(status)s)
            ON CONFLICT (sku) DO NOTHING
            RETURNING *
            """,
            {"id": new_id(), **values},
        )
        row = await cursor.fetchone()
        if row is None:
            raise SkuTaken
        return product_from(row)

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
                        status = %(status)s, updated_at = now()
                    WHERE id = %(id)s
                    RETURNING *
                    """,
                    values,
                )
        except CheckViolation as error:
            raise BadRequest(f"the product would break a rule: {error.diag.constraint_name}") from None
        row = await cursor.fetchone()
        assert row is not None
        return product_from(row)

    async def get(self, conn: Connection, product: ProductId, facts: Facts | None = None) -> Product:
        """One product; with `facts`, only if that person may know of it. Raises NotFound."""
        row = None
        if is_id(product):
            row = await (await conn.execute("SELECT * FROM products WHERE id = %s", [product])).fetchone()
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
                    SELECT * FROM products
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
    ) -> PriceEntry:
        """A further line of the price list. It can lower a price, never raise one."""
        if not actor.may("catalog.write"):
            raise Forbidden
        found = await self.get(t.conn, product)
        _aware(from_at)
        _aware(until_at)
        if until_at is not None and until_at <= from_at:
            raise BadRequest("until_at is not after from_at")
        if not 1 <= unit_fen <= found.list_fen:
            raise BadRequest("unit_fen must be between 1 and the list price")
        entry = PriceEntry(
            id=new_id(),
            product=found.id,
            audience=audience,
            unit_fen=unit_fen,
            from_at=from_at,
            until_at=until_at,
        )
        await t.conn.execute(
            "INSERT INTO price_entries (id, product_id, audience, unit_fen, from_at, until_at)"
            " VALUES (%s, %s, %s, %s, %s, %s)",
            [entry.id, entry.product, audience_column(audience), unit_fen, from_at, until_at],
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
                ),
            )
        return found


def _aware(moment: datetime | None) -> None:
    if moment is not None and moment.tzinfo is None:
        raise BadRequest("a time needs its offset, like 2026-11-21T20:00:00+08:00")
