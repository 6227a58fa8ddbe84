"""Who asks: a token, cookie or API key becomes an Actor, once, at the door."""

from __future__ import annotations

from typing import TYPE_CHECKING

from membership.actor import Actor, Facts, GuestId, MemberId, StaffId, new_link_id
from membership.members import guest, is_guest_id
from membership.refusal import NotFound, Unauthenticated
from membership.tokens import Preview
from membership.transaction import Connection

if TYPE_CHECKING:
    from live.parts import Parts

API_KEY_PREFIX = "ck_"
GUEST_PREFIX = "g_"
PREVIEW_PREFIX = "preview:"


async def actor_of_token(parts: Parts, conn: Connection, token: str) -> Actor:
    """The actor a JWT of ours names, with the facts of now.

    Raises Unauthenticated, TokenExpired, StaffDisabled.
    """
    claims = parts.tokens.verify(token)
    if claims.kind == "viewer":
        return await viewer_actor(parts, conn, claims.sub)
    try:
        staff = await parts.staff.actor(conn, StaffId(claims.sub))
    except NotFound:
        raise Unauthenticated("This staff account is not known any more.") from None
    if claims.preview is not None:
        return await preview_actor(parts, conn, claims.preview)
    return staff


async def viewer_actor(parts: Parts, conn: Connection, who: str) -> Actor:
    """A member with the facts of now, or the guest of that id."""
    if is_guest_id(who):
        return guest(GuestId(who))
    try:
        return await parts.members.actor(conn, MemberId(who))
    except NotFound:
        raise Unauthenticated("This member is not known here.") from None


async def preview_actor(parts: Parts, conn: Connection, preview: Preview) -> Actor:
    """Staff see a show as somebody else would: a guest, or a member of every plan on sale.

    It is nobody's identity, so it can look and do nothing.
    """
    plans = await parts.plans.all(conn) if preview == "plan" else ()
    facts = Facts(registered=preview == "plan", plans=frozenset(plan.id for plan in plans))
    return Actor(kind="viewer", id=PREVIEW_PREFIX + new_link_id(), name="预览", facts=facts)


async def actor_of_key(parts: Parts, conn: Connection, secret: str) -> Actor:
    """The shop's server behind an API key. Raises Unauthenticated."""
    return await parts.api_keys.verify(conn, secret)
