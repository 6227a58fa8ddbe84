"""Bundles: several products sold as one, at a price of its own, all parts or none.

A bundle has no stock: what is free of it follows from its parts (`free_pieces` in the schema), and an order
takes the parts. What a bundle is made of is set once; another composition is another product. No bundle stands
in a bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from membership.actor import ProductId, is_id
from membership.audience import EVERYONE, Audience
from membership.refusal import BadRequest, NotFound
from membership.transaction import Connection

PARTS_MAX = 10  # products in one bundle


class BundlePart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """So many pieces of one product in a bundle."""

    product: ProductId
    quantity: Annotated[int, Meta(ge=1, le=99)] = 1


class NoSuchPart(NotFound):
    """A part of the bundle is no product."""


class Part(Struct, frozen=True, kw_only=True):
    """A part as it is shown: by name, to those who may know of it."""

    product: ProductId
    name: str
    unit: str
    quantity: int
    audience: Audience


async def add_parts(
    conn: Connection, bundle: ProductId, audience: Audience, parts: Sequence[BundlePart]
) -> None:
    """Write what a new bundle is made of.

    Raises NoSuchPart; BadRequest for the same product twice, a bundle or a pre-sale in it, or a part that is
    hidden from some who would see the bundle.
    """
    wanted = {part.product: part.quantity for part in parts}
    if len(wanted) != len(parts):
        raise BadRequest("the same product stands in the bundle twice")
    rows = await (
        await conn.execute(
            "SELECT id::text AS id, bundle, stock_mode, audience FROM products WHERE id = ANY(%s::uuid[])"
            " ORDER BY id FOR SHARE",
            [[part for part in wanted if is_id(part)]],
        )
    ).fetchall()
    if len(rows) != len(wanted):
        raise NoSuchPart
    for row in rows:
        if row["bundle"]:
            raise BadRequest("a bundle cannot be part of a bundle")
        if row["stock_mode"] == "presale":
            raise BadRequest("a pre-sale cannot be part of a bundle")
        if msgspec.convert(row["audience"], Audience) not in (EVERYONE, audience):
            raise BadRequest("a part is for another audience than the bundle")
    await conn.execute(
        "INSERT INTO bundle_parts (bundle_id, part_id, quantity)"
        " SELECT %s, w.part, w.quantity FROM unnest(%s::uuid[], %s::int[]) AS w (part, quantity)",
        [bundle, list(wanted), list(wanted.values())],
    )


async def parts_of(conn: Connection, bundles: Sequence[ProductId]) -> dict[ProductId, tuple[Part, ...]]:
    """What these bundles are made of; nothing for a product that is none."""
    found: dict[ProductId, tuple[Part, ...]] = dict.fromkeys(bundles, ())
    if not found:
        return found
    rows = await (
        await conn.execute(
            """
            SELECT b.bundle_id::text AS bundle, b.part_id::text AS part, b.quantity, p.name, p.unit, p.audience
            FROM bundle_parts b JOIN products p ON p.id = b.part_id
            WHERE b.bundle_id = ANY(%s::uuid[]) ORDER BY b.bundle_id, b.part_id
            """,
            [list(found)],
        )
    ).fetchall()
    for row in rows:
        found[ProductId(row["bundle"])] += (
            Part(
                product=ProductId(row["part"]),
                name=row["name"],
                unit=row["unit"],
                quantity=row["quantity"],
                audience=msgspec.convert(row["audience"], Audience),
            ),
        )
    return found
