"""The gifts of one's plan over HTTP: what is due this period, taking it, and the birthday."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from live.http import Answer, Body, Context, IdText
from membership.periodic_gifts import GiftNow


class MyGifts(Answer, frozen=True, kw_only=True):
    """`birthday`: MM-DD, when it was told."""

    items: tuple[GiftNow, ...]
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
            items=await ctx.parts.periodic_gifts.of_member(conn, ctx.member),
            birthday=await ctx.parts.periodic_gifts.birthday(conn, ctx.member),
        )


async def claim_gift(ctx: Context, body: GiftClaimBody) -> GiftNow:
    """Take the gift of this period; again answers the same. One that is not taken lapses with its period."""
    async with ctx.transaction() as t:
        return await ctx.parts.periodic_gifts.claim(t, ctx.member, ctx.path["gift"], body.address)


async def set_birthday(ctx: Context, body: Birthday) -> BirthdayKept:
    """Tell one's birthday, without the year and once; it is forgotten with the person."""
    async with ctx.transaction() as t:
        return BirthdayKept(
            birthday=await ctx.parts.periodic_gifts.set_birthday(t, ctx.member, body.birthday)
        )
