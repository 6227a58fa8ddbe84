"""Parcels: what was sent of an order or with a gift that was won, and what of it came back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from membership.actor import OrderId
from membership.moment import in_ms
from membership.transaction import Connection


class Parcel(Struct, frozen=True, kw_only=True):
    """A parcel as the buyer and staff see it."""

    id: str
    carrier: str
    tracking: str
    sent_at: int  # ms
    returned_at: int | None = None
    case: str | None = None


async def parcels_of(conn: Connection, orders: Sequence[OrderId]) -> dict[OrderId, tuple[Parcel, ...]]:
    """The parcels of these orders, oldest first."""
    rows = await (
        await conn.execute(
            "SELECT * FROM parcels WHERE order_id = ANY(%s::uuid[]) ORDER BY order_id, id", [list(orders)]
        )
    ).fetchall()
    found: dict[OrderId, tuple[Parcel, ...]] = {}
    for row in rows:
        order = OrderId(str(row["order_id"]))
        found[order] = (*found.get(order, ()), parcel_of_row(row))
    return found


async def parcels_of_gifts(conn: Connection, claims: Sequence[str]) -> dict[str, Parcel]:
    """The parcels with which these taken gifts of periods were sent; what is not sent is left out."""
    rows = await (
        await conn.execute("SELECT * FROM parcels WHERE gift_claim_id = ANY(%s::uuid[])", [list(claims)])
    ).fetchall()
    return {str(row["gift_claim_id"]): parcel_of_row(row) for row in rows}


def parcel_of_row(row: dict[str, Any]) -> Parcel:
    return Parcel(
        id=str(row["id"]),
        carrier=row["carrier"],
        tracking=row["tracking"],
        sent_at=in_ms(row["sent_at"]),
        returned_at=None if row["returned_at"] is None else in_ms(row["returned_at"]),
        case=None if row["case_id"] is None else str(row["case_id"]),
    )
