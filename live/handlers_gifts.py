"""The gifts of one's plan over HTTP: what is due this period, taking it, and the birthday."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from commerce.parcels import Parcel, parcels_of_gifts
from live.http import Answer, Body, Context, IdText
from membership.periodic_gifts import GiftNow
from membership.transaction import Connection


class MyGift(GiftNow, frozen=True, kw_only=True):
    """A gift in its current period. `parcel`: with which the one that was taken was sent."""

    parcel: Parcel | None = None


class MyGifts(Answer, frozen=True, kw_only=True):
    """`birthday`: MM-DD, when it was told."""

    items: tuple[MyGift, ...]
    birthday: str | None


class GiftClaimBody(Body, frozen=True, kw_only=True):
    """`address`: one of one's own, for a gift that is sent."""

    address: IdText | None = None


class Birthday(Body, frozen=True, kw_only=True):
    birthday: Annotated[str, Meta(pattern="^[0-9]{2}-[0-9]{2}$", description="MM-DD")]


class BirthdayKept(Answer, frozen=True, kw_only=True):
    birthday: str


async def list_my_gifts(ctx: Context) -> MyGifts:
    """The gifts of one's paid plan, each in its current period: due, claimed, or waiting for the birthday."""
    async with ctx.reading() as conn:
        return MyGifts(
            items=await _with_parcels(conn, await ctx.parts.periodic_gifts.of_member(conn, ctx.member)),
            birthday=await ctx.parts.periodic_gifts.birthday(conn, ctx.member),
        )


async def claim_gift(ctx: Context, body: GiftClaimBody) -> MyGift:
    """Take the gift of this period; again answers the same. One that is not taken lapses with its period."""
    async with ctx.transaction() as t:
        claimed = await ctx.parts.periodic_gifts.claim(t, ctx.member, ctx.path["gift"], body.address)
        (gift,) = await _with_parcels(t.conn, [claimed])
    return gift


async def set_birthday(ctx: Context, body: Birthday) -> BirthdayKept:
    """Tell one's birthday, without the year and once; it is forgotten with the person."""
    async with ctx.transaction() as t:
        return BirthdayKept(
            birthday=await ctx.parts.periodic_gifts.set_birthday(t, ctx.member, body.birthday)
        )


async def _with_parcels(conn: Connection, gifts: Sequence[GiftNow]) -> tuple[MyGift, ...]:
    parcels = await parcels_of_gifts(conn, [gift.claim for gift in gifts if gift.claim is not None])
    return tuple(
        MyGift(**msgspec.structs.asdict(gift), parcel=parcels.get(gift.claim or "")) for gift in gifts
    )
