"""Receipts over HTTP: one's own, the public key, the check of one, and every rank of a benefit for anyone to
recompute."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from commerce.receipts import CHARS_MAX, VERSION, HeldReceipt, Link, Receipt, Unverified, verify
from live.handlers_shows import own_show
from live.http import Answer, Body, Context, PageQuery
from membership.actor import BenefitId
from membership.page import Page
from membership.refusal import NotFound

LINK_MAX = 100_000


class PublicKey(Answer, frozen=True, kw_only=True):
    """`key`: 32 bytes as base64url. It changes only with the deployment's secret: keep it."""

    version: str
    algorithm: str
    key: str


class ReceiptBody(Body, frozen=True, kw_only=True):
    receipt: Annotated[str, Meta(min_length=1, max_length=CHARS_MAX)]


class Checked(Answer, frozen=True, kw_only=True):
    """`valid`, and what it says; else what is `wrong` with it."""

    valid: bool
    says: Receipt | None = None
    wrong: str | None = None


class RanksQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which part of the chain: the links after this one."""

    after: Annotated[int, Meta(ge=0, le=LINK_MAX)] = 0
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


async def list_my_receipts(ctx: Context, query: PageQuery) -> Page[HeldReceipt]:
    """The signed receipts of what one has won, newest first."""
    async with ctx.reading() as conn:
        return await ctx.parts.receipts.of_member(conn, ctx.member, query.cursor, query.limit)


async def read_key(ctx: Context) -> PublicKey:
    """The public key by which receipts and sealed archives are checked, without this server."""
    return PublicKey(version=VERSION, algorithm="Ed25519", key=ctx.parts.receipts.public_key)


async def check(ctx: Context, body: ReceiptBody) -> Checked:
    """Check a receipt against this deployment's key."""
    try:
        return Checked(valid=True, says=verify(body.receipt.strip(), ctx.parts.receipts.public_key))
    except Unverified as error:
        return Checked(valid=False, wrong=str(error))


async def list_ranks(ctx: Context, query: RanksQuery) -> Page[Link]:
    """A benefit's chain in its order, for whom the benefit is for; `next` is the link to go on after.

    Each link's digest is the SHA-256 of its core, and each core names the digest before it.
    """
    benefit = BenefitId(ctx.path["benefit"])
    async with ctx.reading() as conn:
        terms = await ctx.parts.benefits.get(conn, benefit)
        if ctx.actor.kind in ("staff", "shop"):
            await own_show(ctx, conn, terms.show)
        else:
            show = await ctx.parts.shows.get(conn, terms.show)
            if not (show.room.audience.has(ctx.actor.facts) and terms.audience.has(ctx.actor.facts)):
                raise NotFound
        links = await ctx.parts.receipts.chain(conn, terms.id, after=query.after, limit=query.limit)
    return Page(links, str(links[-1].link) if len(links) == query.limit else None)
