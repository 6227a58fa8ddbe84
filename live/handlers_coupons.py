"""Coupons, points campaigns and the savings meter over HTTP: their rules for staff, what is theirs for members."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from commerce.coupons import (
    Coupon,
    CouponId,
    CouponKind,
    CouponRule,
    CouponRuleId,
    CouponRuleInput,
    CouponRulePatch,
    CouponState,
    TillUse,
)
from commerce.savings import Savings
from live.asking import asking
from live.http import Answer, Body, Context, IdText, PageQuery
from membership.actor import MemberId
from membership.campaigns import Campaign, CampaignInput, checked
from membership.line import clean_line
from membership.page import Page
from membership.refusal import BadRequest, Forbidden, Refusal

GRANTS_MAX = 100  # members that one call gives a coupon to


# -- rules -----------------------------------------------------------------------------------------


async def list_coupon_rules(ctx: Context, query: PageQuery) -> Page[CouponRule]:
    """The rules of coupons, newest first, with how many were granted by each."""
    async with ctx.reading() as conn:
        return await ctx.parts.coupons.rules(conn, query.cursor, query.limit)


async def read_coupon_rule(ctx: Context) -> CouponRule:
    """One rule: what it takes off, of what, from when, and what it goes together with."""
    async with ctx.reading() as conn:
        return await ctx.parts.coupons.rule(conn, ctx.path["rule"])


async def create_coupon_rule(ctx: Context, body: CouponRuleInput) -> CouponRule:
    """Write a rule. What it takes off never changes afterwards: another worth is another rule."""
    async with asking(ctx), ctx.transaction() as t:
        rule = await ctx.parts.coupons.create_rule(t, ctx.actor, body)
        await ctx.audit(
            t, "coupon_rule.create", f"coupon_rule:{rule.id}", {"title": rule.title, "kind": rule.kind}
        )
    return rule


async def update_coupon_rule(ctx: Context, body: CouponRulePatch) -> CouponRule:
    """Change the title, the quota or who bears the cost, or switch granting off. Granted ones hold."""
    async with asking(ctx), ctx.transaction() as t:
        rule = await ctx.parts.coupons.update_rule(t, ctx.actor, CouponRuleId(ctx.path["rule"]), body)
        await ctx.audit(
            t, "coupon_rule.update", f"coupon_rule:{rule.id}", {"status": rule.status, "quota": rule.quota}
        )
    return rule


# -- granting --------------------------------------------------------------------------------------


class GrantBody(Body, frozen=True, kw_only=True):
    """The same cause again gives nobody a second one."""

    members: Annotated[tuple[IdText, ...], Meta(min_length=1, max_length=GRANTS_MAX)]
    cause: Annotated[str, Meta(min_length=1, max_length=60)]


class Granted(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one row: the coupon, or the word of the refusal."""

    member: str
    coupon: CouponId | None = None
    refused: str | None = None


class Grants(Answer, frozen=True, kw_only=True):
    """What became of each row, in order; a refused one leaves the others standing."""

    items: tuple[Granted, ...]


async def grant_coupons(ctx: Context, body: GrantBody) -> Grants:
    """Give members a coupon each. One row that is refused leaves the others standing."""
    rule = CouponRuleId(ctx.path["rule"])
    members = dict.fromkeys(body.members)
    async with asking(ctx), ctx.transaction() as t:
        found = await ctx.parts.coupons.rule(t.conn, rule)
        await ctx.parts.guards.check_coupons_given(t, ctx.actor, found, list(members), body.cause)
    return Grants(items=tuple([await _grant(ctx, rule, member, body.cause) for member in members]))


async def _grant(ctx: Context, rule: CouponRuleId, member: str, cause: str) -> Granted:
    try:
        async with ctx.transaction() as t:
            found = await ctx.parts.members.by_id(t.conn, MemberId(member))
            coupon = await ctx.parts.coupons.grant(t, found.id, rule, f"staff:{cause}:{found.id}")
            await ctx.audit(t, "coupon.grant", f"coupon:{coupon.id}", {"rule": rule, "member": found.id})
    except Refusal as refusal:
        return Granted(member=member, refused=refusal.word)
    return Granted(member=member, coupon=coupon.id)


async def void_coupon(ctx: Context) -> None:
    """Take a coupon back. One that an order holds or used stays with it, and is void when it returns."""
    coupon = CouponId(ctx.path["coupon"])
    async with ctx.transaction() as t:
        await ctx.parts.coupons.void_one(t, ctx.actor, coupon)
        await ctx.audit(t, "coupon.void", f"coupon:{coupon}")


class TillBody(Body, frozen=True, kw_only=True):
    """`reference`: the till's own name for the sale; `amount_fen`: what the coupon took off there."""

    reference: Annotated[str, Meta(min_length=1, max_length=80)]
    amount_fen: Annotated[int, Meta(ge=0, le=100_000_000)] | None = None


class TillUndo(Body, frozen=True, kw_only=True):
    reference: Annotated[str, Meta(min_length=1, max_length=80)]


async def use_coupon_at_till(ctx: Context, body: TillBody) -> TillUse:
    """Use a coupon for a sale at a till; it is used online too. The same reference again answers the same."""
    coupon, reference = CouponId(ctx.path["coupon"]), clean_line(body.reference)
    if not reference:
        raise BadRequest("a sale has a reference", field="reference")
    async with ctx.transaction() as t:
        use = await ctx.parts.coupons.use_at_till(t, ctx.actor, coupon, reference, body.amount_fen)
        await ctx.audit(t, "coupon.use_at_till", f"coupon:{coupon}", {"reference": use.reference})
    return use


async def undo_coupon_at_till(ctx: Context, body: TillUndo) -> None:
    """The sale at the till came to nothing: its coupon is free again, or has run out. Again changes nothing."""
    coupon, reference = CouponId(ctx.path["coupon"]), clean_line(body.reference)
    async with ctx.transaction() as t:
        await ctx.parts.coupons.undo_at_till(t, ctx.actor, coupon, reference)
        await ctx.audit(t, "coupon.undo_at_till", f"coupon:{coupon}", {"reference": reference})


async def list_member_coupons(ctx: Context, query: PageQuery) -> Page[Coupon]:
    """A member's coupons with their rules, newest first."""
    if not ctx.actor.may("member.read"):
        raise Forbidden
    async with ctx.reading() as conn:
        member = await ctx.parts.members.by_id(conn, MemberId(ctx.path["member"]))
        return await ctx.parts.coupons.of_member(conn, member.id, query.cursor, query.limit)


# -- one's own -------------------------------------------------------------------------------------


class MyCoupon(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """A coupon of one's own, in the words of its rule; what is the shop's business is left out."""

    id: CouponId
    title: str
    kind: CouponKind
    state: CouponState
    off_fen: int | None = None
    percent: int | None = None
    max_off_fen: int | None = None
    threshold_fen: int = 0
    products: tuple[str, ...] = ()
    from_at: datetime | None = None
    expires_at: datetime | None = None
    granted_at: datetime
    order: str | None = None
    stack_group: str
    stacks_with: tuple[str, ...] = ()


async def list_my_coupons(ctx: Context, query: PageQuery) -> Page[MyCoupon]:
    """One's coupons, newest first: free, held by an order, used, void or run out."""
    async with ctx.reading() as conn:
        page = await ctx.parts.coupons.of_member(conn, ctx.member, query.cursor, query.limit)
    return Page(tuple(my_coupon(each) for each in page.items), page.next)


def my_coupon(coupon: Coupon) -> MyCoupon:
    rule = coupon.rule
    return MyCoupon(
        id=coupon.id,
        title=rule.title,
        kind=rule.kind,
        state=coupon.state,
        off_fen=rule.off_fen,
        percent=rule.percent,
        max_off_fen=rule.max_off_fen,
        threshold_fen=rule.threshold_fen,
        products=rule.products,
        from_at=rule.from_at,
        expires_at=coupon.expires_at,
        granted_at=coupon.granted_at,
        order=coupon.order,
        stack_group=rule.stack_group,
        stacks_with=rule.stacks_with,
    )


class MySavings(Answer, frozen=True, kw_only=True):
    """What one's running plan has saved; null without a plan."""

    savings: Savings | None


async def read_my_savings(ctx: Context) -> MySavings:
    """What one's plan has saved since it began, part by part, against the card's fee."""
    async with ctx.reading() as conn:
        return MySavings(savings=await ctx.parts.savings.of(conn, ctx.member))


# -- points campaigns ------------------------------------------------------------------------------


async def list_campaigns(ctx: Context, query: PageQuery) -> Page[Campaign]:
    """Campaigns that give more points for a time, newest first."""
    async with ctx.reading() as conn:
        return await ctx.parts.campaigns.list(conn, query.cursor, query.limit)


async def create_campaign(ctx: Context, body: CampaignInput) -> Campaign:
    """Give more points for goods ordered within a window; `percent` is added to the base, 100 doubles."""
    async with ctx.transaction() as t:
        kept = checked(body)
        await ctx.parts.guards.check_campaign(
            t.conn, kept.percent, kept.from_at, kept.until_at, adds=kept.adds
        )
        campaign = await ctx.parts.campaigns.create(t, ctx.actor, kept)
        await ctx.audit(
            t,
            "points_campaign.create",
            f"points_campaign:{campaign.id}",
            {"name": campaign.name, "percent": campaign.percent},
        )
    return campaign


async def end_campaign(ctx: Context) -> Campaign:
    """End a campaign now. Orders placed until now keep what they were promised."""
    async with ctx.transaction() as t:
        campaign = await ctx.parts.campaigns.end(t, ctx.actor, ctx.path["campaign"])
        await ctx.audit(t, "points_campaign.end", f"points_campaign:{campaign.id}")
    return campaign
