"""What staff do over HTTP: sign in, talk, poll, give, look after accounts. Each act is in the audit log."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from chat.comments import Posted
from chat.messages import Results
from chat.polls import Poll, Tally
from commerce.benefit_counters import BenefitCounts
from commerce.benefit_terms import Benefit, BenefitInput
from commerce.claim_book import Claim
from live.asking import asking
from live.handlers_shows import own_show
from live.handlers_viewer import few_guesses
from live.http import (
    STAFF_COOKIE,
    STAFF_SESSION_S,
    Answer,
    Body,
    Context,
    IdText,
    KeyText,
    PageQuery,
    refusal_noted,
)
from membership.actor import BenefitId, Permission, PollId, Role, RoomId, StaffId, permissions_of
from membership.audience import EVERYONE, Audience
from membership.audit import Act
from membership.page import Page
from membership.refusal import Forbidden
from membership.staff import LINK_S, ApiKey, StaffAccount
from membership.tags import Tag
from membership.transaction import Connection

ABOVE: frozenset[Role] = frozenset({"owner", "admin"})  # accounts that only an owner makes or lets in


# -- accounts --------------------------------------------------------------------------------------


class StaffSignIn(Body, frozen=True, kw_only=True):
    token: Annotated[str, Meta(min_length=1, max_length=128)]


class StaffMe(Answer, frozen=True, kw_only=True):
    id: StaffId
    name: str
    role: Role
    room: RoomId | None
    permissions: list[Permission]


class StaffSignedIn(Answer, frozen=True, kw_only=True):
    token: str
    expires_in_s: int
    staff: StaffMe


class StaffInput(Body, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=40)]
    role: Role
    room: IdText | None = None


class SignInLink(Answer, frozen=True, kw_only=True):
    """Works once, for ten minutes. The token stands behind `#`, so no server log has it."""

    url: str
    token: str
    expires_in_s: int


class KeyInput(Body, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=60)]
    permissions: Annotated[list[Permission], Meta(min_length=1, max_length=20)]


class KeyMade(Answer, frozen=True, kw_only=True):
    """`secret` is shown this once."""

    id: str
    secret: str


def _staff_me(account: StaffAccount) -> StaffMe:
    return StaffMe(
        id=account.id,
        name=account.name,
        role=account.role,
        room=account.room,
        permissions=sorted(permissions_of(account.role, account.room)),
    )


async def staff_sign_in(ctx: Context, body: StaffSignIn) -> StaffSignedIn:
    """Exchange the token of a one-time link for a session; sets the staff cookie."""
    async with few_guesses(ctx, "staff"), ctx.transaction() as t:
        account = await ctx.parts.staff.exchange(t, body.token)
        ctx.actor = account.actor()
        await ctx.audit(t, "staff.sign_in", f"staff:{account.id}")
    token = ctx.parts.tokens.mint(account.actor(), STAFF_SESSION_S)
    ctx.start_session(STAFF_COOKIE, token, STAFF_SESSION_S)
    return StaffSignedIn(token=token, expires_in_s=STAFF_SESSION_S, staff=_staff_me(account))


async def staff_sign_out(ctx: Context) -> None:
    """End this browser's staff session."""
    ctx.end_session(STAFF_COOKIE)


async def read_staff_me(ctx: Context) -> StaffMe:
    """Who one is, and what one may do."""
    async with ctx.reading() as conn:
        return _staff_me(await ctx.parts.staff.by_id(conn, StaffId(ctx.actor.id)))


async def list_staff(ctx: Context) -> Page[StaffAccount]:
    """All staff accounts, oldest first."""
    async with ctx.reading() as conn:
        return Page(await ctx.parts.staff.list(conn))


def _not_above(ctx: Context, role: Role) -> None:
    if role in ABOVE and ctx.actor.role != "owner":
        raise Forbidden("Only an owner makes, lets in or shuts out owners and admins.")


async def create_staff(ctx: Context, body: StaffInput) -> StaffAccount:
    """Make a staff account; it is entered by a sign-in link. With `room` it works in that room only."""
    _not_above(ctx, body.role)
    async with ctx.transaction() as t:
        room = RoomId(body.room) if body.room else None
        if room is not None:
            await ctx.parts.rooms.get(t.conn, room)
        account = await ctx.parts.staff.create(t, body.name, body.role, room)
        await ctx.audit(t, "staff.create", f"staff:{account.id}", {"role": account.role})
    return account


async def create_staff_link(ctx: Context) -> SignInLink:
    """A link that signs the account in, once, within ten minutes."""
    staff = StaffId(ctx.path["staff"])
    async with ctx.transaction() as t:
        _not_above(ctx, (await ctx.parts.staff.by_id(t.conn, staff)).role)
        token = await ctx.parts.staff.sign_in_link(t, staff)
        await ctx.audit(t, "staff.link", f"staff:{staff}")
    url = f"{ctx.parts.settings.public_url}/panel/sign-in#{token}"
    return SignInLink(url=url, token=token, expires_in_s=LINK_S)


async def disable_staff(ctx: Context) -> StaffAccount:
    """Shut an account: its links and tokens open nothing from now on."""
    staff = StaffId(ctx.path["staff"])
    async with ctx.transaction() as t:
        _not_above(ctx, (await ctx.parts.staff.by_id(t.conn, staff)).role)
        account = await ctx.parts.staff.disable(t, staff)
        await ctx.audit(t, "staff.disable", f"staff:{staff}")
    return account


async def list_api_keys(ctx: Context) -> Page[ApiKey]:
    """All API keys, without their secrets."""
    async with ctx.reading() as conn:
        return Page(await ctx.parts.api_keys.list(conn))


async def create_api_key(ctx: Context, body: KeyInput) -> KeyMade:
    """Make a key for a shop's server. The secret is shown once."""
    lacking = (set(body.permissions) - ctx.actor.permissions) | ({"staff.write"} & set(body.permissions))
    if lacking and ctx.actor.role != "owner":
        raise Forbidden(f"Only an owner gives a key: {', '.join(sorted(lacking))}.")
    async with ctx.transaction() as t:
        made = await ctx.parts.api_keys.create(t, body.name, body.permissions)
        await ctx.audit(
            t, "api_key.create", f"api_key:{made.id}", {"permissions": sorted(set(body.permissions))}
        )
    return KeyMade(id=made.id, secret=made.secret)


async def revoke_api_key(ctx: Context) -> None:
    """End a key; it opens nothing from now on."""
    async with ctx.transaction() as t:
        await ctx.parts.api_keys.revoke(t, ctx.path["key"])
        await ctx.audit(t, "api_key.revoke", f"api_key:{ctx.path['key']}")


class AuditQuery(PageQuery, frozen=True, kw_only=True):
    subject: Annotated[str, Meta(max_length=160, description="Such as product:<id>")] | None = None


async def list_audit(ctx: Context, query: AuditQuery) -> Page[Act]:
    """Every act of staff and shop servers, newest first. Of the whole shop: not for who is bound to one room."""
    if ctx.actor.room is not None:
        raise Forbidden("The audit log is the whole shop's; your account is for one room.")
    async with ctx.reading() as conn:
        return await ctx.parts.audit.list(conn, query.cursor, query.limit, subject=query.subject)


# -- talk ------------------------------------------------------------------------------------------


class CommentBody(Body, frozen=True, kw_only=True):
    text: Annotated[str, Meta(min_length=1, max_length=400)]
    reply_to: Annotated[int, Meta(ge=1, le=10**15)] | None = None
    key: KeyText | None = None


class Done(Answer, frozen=True, kw_only=True):
    """`changed` is false when it was so already."""

    changed: bool


class MuteBody(Body, frozen=True, kw_only=True):
    viewer: Annotated[str, Meta(pattern="^[a-z2-7]{12}$", description="Public id, as in comment.posted")]
    seconds: Annotated[int, Meta(ge=10, le=604_800)] = 600


class Muted(Answer, frozen=True, kw_only=True):
    viewer: str
    until: int  # ms


class AnnouncementBody(Body, frozen=True, kw_only=True):
    text: Annotated[str, Meta(max_length=400, description="1–200 characters; null clears it")] | None = None


async def post_comment(ctx: Context, body: CommentBody) -> Posted:
    """Say a line as host, or answer a viewer's."""
    async with ctx.transaction() as t:
        await own_show(ctx, t.conn, ctx.show)
        posted = await ctx.parts.comments.post(
            ctx.actor, ctx.show, body.text, ctx.key or body.key, body.reply_to
        )
        await ctx.audit(t, "comment.post", f"show:{ctx.show}", {"seq": posted.seq})
    return posted


async def hide_comment(ctx: Context) -> Done:
    """Take a comment from view, for everyone and for good."""
    return await _on_comment(ctx, "hide")


async def pin_comment(ctx: Context) -> Done:
    """Hold a comment in view, in place of the one before."""
    return await _on_comment(ctx, "pin")


async def _on_comment(ctx: Context, verb: Literal["hide", "pin"]) -> Done:
    seq = int(ctx.path["seq"])
    async with ctx.transaction() as t:
        await own_show(ctx, t.conn, ctx.show)
        act = ctx.parts.comments.hide if verb == "hide" else ctx.parts.comments.pin
        changed = await act(ctx.actor, ctx.show, seq)
        await ctx.audit(t, f"comment.{verb}", f"show:{ctx.show}", {"seq": seq})
    return Done(changed=changed)


async def unpin_comment(ctx: Context) -> Done:
    """Let the pinned comment go."""
    async with ctx.transaction() as t:
        await own_show(ctx, t.conn, ctx.show)
        changed = await ctx.parts.comments.unpin(ctx.actor, ctx.show)
        await ctx.audit(t, "comment.unpin", f"show:{ctx.show}")
    return Done(changed=changed)


async def mute_viewer(ctx: Context, body: MuteBody) -> Muted:
    """Keep a viewer from commenting for a time; they are told until when."""
    async with ctx.transaction() as t:
        await own_show(ctx, t.conn, ctx.show)
        until = await ctx.parts.comments.mute(ctx.actor, ctx.show, body.viewer, body.seconds)
        await ctx.audit(
            t, "viewer.mute", f"show:{ctx.show}", {"viewer": body.viewer, "seconds": body.seconds}
        )
    return Muted(viewer=body.viewer, until=until)


class UnmuteBody(Body, frozen=True, kw_only=True):
    viewer: Annotated[str, Meta(pattern="^[a-z2-7]{12}$", description="Public id, as in comment.posted")]


async def unmute_viewer(ctx: Context, body: UnmuteBody) -> None:
    """Let a muted viewer comment again; nothing happens when they may."""
    async with ctx.transaction() as t:
        await own_show(ctx, t.conn, ctx.show)
        await ctx.parts.comments.unmute(ctx.actor, ctx.show, body.viewer)
        await ctx.audit(t, "viewer.unmute", f"show:{ctx.show}", {"viewer": body.viewer})


async def set_announcement(ctx: Context, body: AnnouncementBody) -> None:
    """Set the announcement bar; null clears it."""
    async with ctx.transaction() as t:
        await own_show(ctx, t.conn, ctx.show)
        await ctx.parts.comments.announce(ctx.actor, ctx.show, body.text)
        await ctx.audit(t, "announcement.set", f"show:{ctx.show}", {"cleared": body.text is None})


# -- polls -----------------------------------------------------------------------------------------


class PollBody(Body, frozen=True, kw_only=True):
    question: Annotated[str, Meta(min_length=1, max_length=400)]
    choices: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=120)]], Meta(min_length=2, max_length=10)
    ]
    max_choices: Annotated[int, Meta(ge=1, le=10)] = 1
    results: Results = "after_vote"
    audience: Audience = EVERYONE
    seconds: Annotated[int, Meta(ge=15, le=1_800)] | None = None


async def open_poll(ctx: Context, body: PollBody) -> Poll:
    """Put a question to the show; one poll at a time."""
    async with ctx.transaction() as t:
        await own_show(ctx, t.conn, ctx.show)
        poll = await ctx.parts.polls.open(
            t,
            ctx.actor,
            ctx.show,
            body.question,
            body.choices,
            body.max_choices,
            body.results,
            body.audience,
            body.seconds,
        )
        await ctx.audit(t, "poll.open", f"poll:{poll.id}", {"show": ctx.show})
    return poll


async def list_polls(ctx: Context) -> Page[Poll]:
    """The polls of a show in the order they were opened; closed ones with their tally."""
    async with ctx.reading() as conn:
        await own_show(ctx, conn, ctx.show)
        return Page(tuple(await ctx.parts.polls.of_show(conn, ctx.show)))


async def close_poll(ctx: Context) -> Tally:
    """Close a poll and keep its tally. Closing again answers the same."""
    poll = PollId(ctx.path["poll"])
    async with ctx.transaction() as t:
        show = (await ctx.parts.polls.result(t.conn, poll)).show
        await own_show(ctx, t.conn, show)
        tally = await ctx.parts.polls.close(t, ctx.actor, show, poll)
        await ctx.audit(t, "poll.close", f"poll:{poll}", {"show": show, "voters": tally.voters})
    return tally


# -- benefits --------------------------------------------------------------------------------------


class QuotaBody(Body, frozen=True, kw_only=True):
    quota: Annotated[int, Meta(ge=1, le=100_000)]


class PauseBody(Body, frozen=True, kw_only=True):
    reason: Annotated[str, Meta(min_length=1, max_length=200, description="Shown to viewers")]


class BenefitCard(Answer, frozen=True, kw_only=True):
    """Terms and one moment's numbers: confirmed, held (paying), queued; left = quota − confirmed − held."""

    benefit: Benefit
    counts: BenefitCounts | None


class WinnersQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    after_rank: Annotated[int, Meta(ge=0, le=100_000)] = 0
    limit: Annotated[int, Meta(ge=1, le=100)] = 50


async def open_benefit(ctx: Context, body: BenefitInput) -> Benefit:
    """Open a benefit. Of one for joining, tonight's earlier joins are confirmed first, in payment order."""
    subject = f"show:{ctx.show}"
    async with asking(ctx), refusal_noted(ctx, "benefit.open", subject), ctx.transaction() as t:
        await own_show(ctx, t.conn, ctx.show)
        benefit = await ctx.parts.benefits.open(t, ctx.actor, ctx.show, body)
        await ctx.audit(
            t, "benefit.open", f"benefit:{benefit.id}", {"show": ctx.show, "quota": benefit.quota}
        )
    return benefit


async def list_benefits(ctx: Context) -> Page[Benefit]:
    """The benefits of a show in the order they were opened."""
    async with ctx.reading() as conn:
        await own_show(ctx, conn, ctx.show)
        return Page(tuple(await ctx.parts.benefits.list(conn, ctx.show)))


async def read_benefit(ctx: Context) -> BenefitCard:
    """One benefit with its numbers now."""
    async with ctx.reading() as conn:
        benefit = await _own_benefit(ctx, conn)
    return BenefitCard(benefit=benefit, counts=await ctx.parts.benefits.counts(benefit.show, benefit.id))


async def list_winners(ctx: Context, query: WinnersQuery) -> Page[Claim]:
    """Who has it, by rank; `next` is the rank to go on after."""
    async with ctx.reading() as conn:
        benefit = await _own_benefit(ctx, conn)
        claims = await ctx.parts.benefits.claims(
            conn, benefit.id, after_rank=query.after_rank, limit=query.limit
        )
    following = str(claims[-1].rank) if len(claims) == query.limit else None
    return Page(tuple(claims), following)


async def raise_quota(ctx: Context, body: QuotaBody) -> Benefit:
    """Raise N; it never falls. The queue is served from what is new."""
    subject = f"benefit:{ctx.path['benefit']}"
    async with asking(ctx), refusal_noted(ctx, "benefit.raise_quota", subject), ctx.transaction() as t:
        benefit = await _own_benefit(ctx, t.conn)
        changed = await ctx.parts.benefits.raise_quota(t, ctx.actor, benefit.id, body.quota)
        await ctx.audit(
            t, "benefit.raise_quota", f"benefit:{benefit.id}", {"from": benefit.quota, "to": changed.quota}
        )
    return changed


async def pause_benefit(ctx: Context, body: PauseBody) -> Benefit:
    """Give nothing new for now; viewers see the reason. Payments under way keep their seats."""
    async with ctx.transaction() as t:
        benefit = await _own_benefit(ctx, t.conn)
        changed = await ctx.parts.benefits.pause(t, ctx.actor, benefit.id, body.reason)
        await ctx.audit(t, "benefit.pause", f"benefit:{benefit.id}", {"reason": body.reason})
    return changed


async def resume_benefit(ctx: Context) -> Benefit:
    """Go on after a pause; first the queue is served."""
    async with ctx.transaction() as t:
        benefit = await _own_benefit(ctx, t.conn)
        changed = await ctx.parts.benefits.resume(t, ctx.actor, benefit.id)
        await ctx.audit(t, "benefit.resume", f"benefit:{benefit.id}")
    return changed


async def close_benefit(ctx: Context) -> Benefit:
    """No claim and no new seat after this; held seats run on to their own time.

    What viewers were promised until a time runs until then, while some is left.
    """
    subject = f"benefit:{ctx.path['benefit']}"
    async with refusal_noted(ctx, "benefit.close", subject), ctx.transaction() as t:
        benefit = await _own_benefit(ctx, t.conn)
        changed = await ctx.parts.benefits.close(t, ctx.actor, benefit.id)
        await ctx.audit(t, "benefit.close", f"benefit:{benefit.id}")
    return changed


async def _own_benefit(ctx: Context, conn: Connection) -> Benefit:
    benefit = await ctx.parts.benefits.get(conn, BenefitId(ctx.path["benefit"]))
    await own_show(ctx, conn, benefit.show)
    return benefit


# -- tags ------------------------------------------------------------------------------------------


async def list_show_tags(ctx: Context, query: PageQuery) -> Page[Tag]:
    """The tags to which something done in this show is evidence."""
    async with ctx.reading() as conn:
        await own_show(ctx, conn, ctx.show)
        return await ctx.parts.tags.of_show(conn, ctx.show, query.cursor, query.limit)
