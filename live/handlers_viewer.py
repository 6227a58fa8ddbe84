"""What viewers and members do over HTTP: sign in, join, order, and see what is theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta

from chat.comments import badge_of
from commerce.coupons import TOGETHER_MAX, CouponId
from commerce.messages import LINES_MAX, LineInput, PlaceOrder
from commerce.order_announcer import Transactions
from commerce.orders import Order, OrderClosed, Placed
from commerce.parcels import Parcel
from commerce.payments import PayerClient, PaymentProvider, Payments
from commerce.quotes import Quote
from commerce.seats import SeatStatus
from live.http import (
    VIEWER_COOKIE,
    VIEWER_SESSION_S,
    Answer,
    Body,
    Context,
    IdText,
    KeyText,
    PageQuery,
    ShowText,
    may,
)
from membership.actor import Actor, AddressId, BenefitId, MemberId, OrderId, PlanId, ShowId
from membership.addresses import Address, AddressInput
from membership.behaviour import record_of
from membership.members import Member, check_nickname, display_name, mask_phone, parse_phone
from membership.moment import in_ms
from membership.page import Page
from membership.plans import Plan, Term
from membership.points import SPENT_BY, Balance, Ending, Entry
from membership.refusal import BadRequest, Forbidden, RateLimited, Refusal
from membership.tags import Evidence, Tag
from membership.transaction import Connection

SIGN_IN_TRIES = 30  # wrong ones, of one address …
SIGN_IN_WINDOW_MS = 600_000  # … in ten minutes

Phone = Annotated[str, Meta(min_length=1, max_length=32, description="As people write it; +86 is assumed")]
Code = Annotated[str, Meta(pattern="^[0-9]{6}$")]
Nickname = Annotated[str, Meta(min_length=1, max_length=64)]


class MembersOnly(Refusal):
    """This room is for members; its card names the way in."""

    code = "members_only"


# -- signing in ------------------------------------------------------------------------------------


class CodeRequest(Body, frozen=True, kw_only=True):
    phone: Phone


class CodeSent(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """A code is on its way. `sandbox_code` only where the sandbox stands in for text messages."""

    expires_s: int
    resend_s: int
    sandbox_code: str | None = None


class SignInBody(Body, frozen=True, kw_only=True):
    phone: Phone
    code: Code
    nickname: Nickname | None = None
    show: ShowText | None = None


class PlanNow(Answer, frozen=True, kw_only=True):
    """The plan that runs; `ends_at` in ms. `cancelled`: for its end, to be undone until then. `grace`: the paid
    time is over and a renewal failed; all goes on until `ends_at`, and paying for this plan until then renews it."""

    id: PlanId
    name: str
    ends_at: int
    trial: bool
    cancelled: bool = False
    grace: bool = False


class Me(Answer, frozen=True, kw_only=True):
    """A member, for their own eyes."""

    id: MemberId
    name: str
    nickname: str | None
    phone: str | None
    kind: Literal["registered", "plan"]
    badge: str
    plan: PlanNow | None
    points: Balance


class SignedIn(Answer, frozen=True, kw_only=True):
    """`token` identifies in `Authorization: Bearer` and in the socket's hello; pages have the cookie."""

    token: str
    expires_in_s: int
    you: Me


async def send_code(ctx: Context, body: CodeRequest) -> CodeSent:
    """Send a one-time code by text message. One a minute and five an hour to a phone, twenty an hour from
    an address."""
    settings = ctx.parts.settings
    if settings.sms == "off":
        raise Forbidden("Signing in by phone is switched off here.")
    phone = parse_phone(body.phone)
    issued = await ctx.parts.sign_in.send_code(phone, ctx.client_ip)
    await ctx.parts.sms.send_code(phone, issued.code, issued.expires_s)
    return CodeSent(
        expires_s=issued.expires_s,
        resend_s=issued.resend_s,
        sandbox_code=issued.code if settings.sms == "sandbox" else None,
    )


async def sign_in(ctx: Context, body: SignInBody) -> SignedIn:
    """Prove a phone by its code. Registers whoever holds it for the first time; sets the session cookie."""
    if body.nickname is not None:
        check_nickname(body.nickname)  # before the code is used up
    if body.show is not None:
        async with ctx.reading() as conn:
            await ctx.parts.shows.get(conn, ShowId(body.show))
    async with few_guesses(ctx, "sign-in"):
        phone = await ctx.parts.sign_in.check_code(body.phone, body.code)
    async with ctx.transaction() as t:
        member = await ctx.parts.members.register(
            t, phone, body.nickname, ShowId(body.show) if body.show else None
        )
        actor = await ctx.parts.members.actor(t.conn, member.id)
        you = await me_of(ctx, t.conn, member, actor)
    token = ctx.parts.tokens.mint(actor, VIEWER_SESSION_S)
    ctx.start_session(VIEWER_COOKIE, token, VIEWER_SESSION_S)
    return SignedIn(token=token, expires_in_s=VIEWER_SESSION_S, you=you)


async def sign_out(ctx: Context) -> None:
    """End this browser's session."""
    ctx.end_session(VIEWER_COOKIE)


@asynccontextmanager
async def few_guesses(ctx: Context, what: str) -> AsyncIterator[None]:
    """Bound wrong guesses from one address; what was right counts for nothing. Raises RateLimited."""
    key, bounds = f"{{http}}:tries:{what}:{ctx.client_ip}", [SIGN_IN_TRIES, SIGN_IN_WINDOW_MS]
    try:
        await ctx.service.count_rate([key], [*bounds, ""])
    except RateLimited as refusal:
        raise RateLimited(
            "Too many wrong tries from your address; wait.", retry_ms=refusal.retry_ms
        ) from None
    yield
    await ctx.service.count_rate([key], [*bounds, "back"])


# -- who one is ------------------------------------------------------------------------------------


async def me_of(ctx: Context, conn: Connection, member: Member, actor: Actor) -> Me:
    term = await ctx.parts.plans.current(conn, member.id)
    plan = None
    if term is not None:
        plan = PlanNow(
            id=term.plan,
            name=term.plan_name,
            ends_at=in_ms(term.until),
            trial=term.trial,
            cancelled=term.cancelled,
            grace=term.grace,
        )
    return Me(
        id=member.id,
        name=display_name(member),
        nickname=member.nickname,
        phone=mask_phone(member.phone) if member.phone else None,
        kind="plan" if plan else "registered",
        badge=badge_of(actor),
        plan=plan,
        points=await ctx.parts.points.balance(conn, member.id),
    )


async def _me(ctx: Context, conn: Connection) -> Me:
    member = await ctx.parts.members.by_id(conn, ctx.member)
    return await me_of(ctx, conn, member, await ctx.parts.members.actor(conn, member.id))


class Renaming(Body, frozen=True, kw_only=True):
    nickname: Nickname


class PhoneChange(Body, frozen=True, kw_only=True):
    phone: Phone
    code: Code


async def read_me(ctx: Context) -> Me:
    """Name, plan and points of the signed-in member. The phone is masked."""
    async with ctx.reading() as conn:
        return await _me(ctx, conn)


async def rename_me(ctx: Context, body: Renaming) -> Me:
    """Change the nickname; open sockets are told."""
    async with ctx.transaction() as t:
        await ctx.parts.members.rename(t, ctx.member, body.nickname)
        return await _me(ctx, t.conn)


async def change_phone(ctx: Context, body: PhoneChange) -> Me:
    """Move to another phone, proven by a code sent to it."""
    async with few_guesses(ctx, "sign-in"):
        phone = await ctx.parts.sign_in.check_code(body.phone, body.code)
    async with ctx.transaction() as t:
        await ctx.parts.members.change_phone(t, ctx.member, phone)
        return await _me(ctx, t.conn)


class PointsPage(Answer, frozen=True, kw_only=True):
    """The balance, what ends when, and the ledger's entries, newest first."""

    balance: Balance
    ending: tuple[Ending, ...]
    items: tuple[Entry, ...]
    next: str | None = None


async def read_points(ctx: Context, query: PageQuery) -> PointsPage:
    """Points: what is active, what is pending, and every entry that led there."""
    async with ctx.reading() as conn:
        balance = await ctx.parts.points.balance(conn, ctx.member)
        ending = await ctx.parts.points.ending(conn, ctx.member)
        page = await ctx.parts.points.entries(conn, ctx.member, query.cursor, query.limit)
    return PointsPage(balance=balance, ending=ending, items=page.items, next=page.next)


# -- plans -----------------------------------------------------------------------------------------


class TrialBody(Body, frozen=True, kw_only=True):
    plan: IdText
    show: ShowText | None = None


class PlansQuery(PageQuery, frozen=True, kw_only=True):
    """`off_sale`: those off sale too, for who may change plans; `cursor` and `limit` are of that list."""

    off_sale: bool = False


async def list_plans(ctx: Context, query: PlansQuery) -> Page[Plan]:
    """The plans on sale, cheapest first. With `off_sale`, for who may change them: all, newest first."""
    if query.off_sale:
        may(ctx.actor, "catalog.write")
    async with ctx.reading() as conn:
        if query.off_sale:
            return await ctx.parts.plans.page(conn, query.cursor, query.limit)
        return Page(await ctx.parts.plans.all(conn))


async def start_trial(ctx: Context, body: TrialBody) -> Term:
    """Seven times 24 hours, once a phone over all plans; it never charges by itself. Open sockets change
    class."""
    show = ShowId(body.show) if body.show else None
    async with ctx.transaction() as t:
        if show is not None:
            await ctx.parts.shows.get(t.conn, show)
        member = await ctx.parts.members.by_id(t.conn, ctx.member)
        if member.phone is None:
            raise Forbidden("A trial needs a proven phone.")
        term = await ctx.parts.plans.start_trial(t, member.id, PlanId(body.plan), member.phone, show)
        if show is not None:
            joined = record_of(ctx.actor, "join", f"plan:{term.plan}", value=1)
            assert joined is not None
            t.after_commit(lambda: ctx.parts.behaviour.record(show, [joined]))
    return term


# -- addresses -------------------------------------------------------------------------------------


async def list_addresses(ctx: Context) -> Page[Address]:
    """One's delivery addresses, newest first; at most twenty."""
    async with ctx.reading() as conn:
        return Page(await ctx.parts.addresses.list(conn, ctx.member))


async def add_address(ctx: Context, body: AddressInput) -> Address:
    """Keep a delivery address; the same one twice is kept once."""
    async with ctx.transaction() as t:
        return await ctx.parts.addresses.add(t, ctx.member, body)


async def remove_address(ctx: Context) -> None:
    """Forget an address. Orders keep the address they were sent to."""
    async with ctx.transaction() as t:
        await ctx.parts.addresses.remove(t, ctx.member, AddressId(ctx.path["address"]))


# -- joining and buying ----------------------------------------------------------------------------


Openid = Annotated[
    str, Meta(min_length=1, max_length=128, pattern="^[0-9A-Za-z_-]+$", description="The buyer's, at WeChat")
]


class JoinBody(Body, frozen=True, kw_only=True):
    plan: IdText
    show: ShowText | None = None
    key: KeyText | None = None
    openid: Openid | None = None


class Joining(Answer, frozen=True, kw_only=True):
    """The plan's order, where to pay it, and the seat of the benefit for joining, if one is open."""

    order: Placed
    payment_url: str
    seat: SeatStatus | None


class QuoteBody(Body, frozen=True, kw_only=True):
    """`address`: where it is to be sent; left out, the freight is that of most regions. `coupons`: to be used,
    the first named first; `best`: those that save most. `points`: to be spent, at most; by hundreds."""

    lines: Annotated[list[LineInput], Meta(min_length=1, max_length=LINES_MAX)]
    address: IdText | None = None
    coupons: Annotated[tuple[IdText, ...], Meta(max_length=TOGETHER_MAX)] = ()
    points: Annotated[int, Meta(ge=0, le=100_000_000, multiple_of=SPENT_BY)] = 0
    best: bool = False


class OrderBody(Body, frozen=True, kw_only=True):
    """No price is taken from the client: the quote's token carries what was promised."""

    quote: Annotated[str, Meta(min_length=1, max_length=4000)]
    address: IdText
    key: KeyText | None = None


class PaymentBody(Body, frozen=True, kw_only=True):
    """Inside WeChat, the page that embeds us names the buyer, and the payment opens there."""

    openid: Openid | None = None


class PaymentPageAnswer(Answer, frozen=True, kw_only=True):
    payment_url: str


def _needed_key(ctx: Context, body_key: str | None) -> str:
    key = ctx.key or body_key
    if key is None:
        raise BadRequest("Send an Idempotency-Key (or `key`), kept until it is answered.")
    return key


async def make_payment_page(
    database: Transactions,
    payments: Payments,
    provider: PaymentProvider,
    actor: Actor,
    order: OrderId,
    client: PayerClient | None = None,
) -> str:
    """The address where the order is paid. No transaction is open while the provider is called: a slow one
    would hold the order's row and a connection."""
    async with database.transaction() as t:
        started = await payments.start(t, actor, order, client)
    if isinstance(started, str):
        return started
    page = await provider.create(started)
    async with database.transaction() as t:
        url = await payments.keep_page(t, started.order, page)
    if url is None:
        raise OrderClosed
    return url


async def _payment_page(ctx: Context, order: OrderId, openid: str | None) -> str:
    parts, client = ctx.parts, PayerClient(ip=ctx.client_ip, openid=openid or "")
    return await make_payment_page(parts.database, parts.payments, parts.provider, ctx.actor, order, client)


async def join_plan(ctx: Context, body: JoinBody) -> Joining:
    """Order a plan and start its payment. A seat of tonight's benefit is held for five minutes from here.

    Pressed again while the order is open, it is the same order and the same payment page.
    """
    key = _needed_key(ctx, body.key)
    show = ShowId(body.show) if body.show else None
    async with ctx.transaction() as t:
        if show is not None:
            await ctx.parts.shows.get(t.conn, show)
        placed = await ctx.parts.orders.place_plan(t, ctx.actor, PlanId(body.plan), show, key)
    url = await _payment_page(ctx, placed.order, body.openid)
    return Joining(order=placed, payment_url=url, seat=placed.seat)


async def create_quote(ctx: Context, body: QuoteBody) -> Quote:
    """Every candidate price, the winner and why; signed, and honoured for at most ten minutes."""
    async with ctx.reading() as conn:
        await entered_show(ctx, conn)
        region = None
        if body.address is not None:
            region = (await ctx.parts.addresses.get(conn, ctx.member, AddressId(body.address))).region
        return await ctx.parts.quotes.quote(
            conn,
            ctx.actor,
            ctx.show,
            body.lines,
            region=region,
            coupons=[CouponId(each) for each in body.coupons],
            points=body.points,
            best=body.best,
        )


async def place_order(ctx: Context, body: OrderBody) -> Placed:
    """Order the quoted lines, all or none, at the lower of the quote and now; held for ten minutes."""
    key = _needed_key(ctx, body.key)
    command = PlaceOrder(id=0, key=key, quote=body.quote, address=body.address)
    async with ctx.transaction() as t:
        await entered_show(ctx, t.conn)
        return await ctx.parts.orders.place(t, ctx.actor, ctx.show, command)


async def entered_show(ctx: Context, conn: Connection) -> None:
    """Refuse who is not in the room's audience. Raises NotFound, MembersOnly."""
    show = await ctx.parts.shows.get(conn, ctx.show)
    if not show.room.audience.has(ctx.actor.facts):
        raise MembersOnly(join=f"/s/{show.id}")


async def list_my_orders(ctx: Context, query: PageQuery) -> Page[Order]:
    """One's orders, newest first."""
    async with ctx.reading() as conn:
        return await ctx.parts.orders.of_member(conn, ctx.member, query.cursor, query.limit)


async def read_my_order(ctx: Context) -> Order:
    """One of one's own orders."""
    async with ctx.reading() as conn:
        return await ctx.parts.orders.get(conn, ctx.actor, OrderId(ctx.path["order"]))


async def start_payment(ctx: Context, body: PaymentBody) -> PaymentPageAnswer:
    """The page where the order is paid. Asked again, it is the same payment; the hold is not renewed."""
    return PaymentPageAnswer(payment_url=await _payment_page(ctx, OrderId(ctx.path["order"]), body.openid))


async def cancel_my_order(ctx: Context) -> Order:
    """Give an unpaid order up; what it held comes back. Again changes nothing."""
    async with ctx.transaction() as t:
        return await ctx.parts.orders.cancel(t, ctx.actor, OrderId(ctx.path["order"]))


async def refund_my_order(ctx: Context) -> Order:
    """Take the money back for a plan that came without its gift as the money was late; within 24 hours."""
    async with ctx.transaction() as t:
        return await ctx.parts.payments.refund(t, ctx.actor, OrderId(ctx.path["order"]))


# -- what one has won, and what was learnt ----------------------------------------------------------


class MyBenefit(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """Something won: yours, with its rank, which never changes, and the signed receipt of it.

    `order` earned it; it brought a `coupon`, `points`, or sent `returned_fen` of that order back. `parcel`: with
    which a gift was sent, once it is.
    """

    id: str
    benefit: BenefitId
    show: ShowId
    title: str
    what: str
    value_fen: int
    nth: int
    rank: int
    of: int
    state: str
    claimed_at: int
    order: OrderId | None = None
    coupon: str | None = None
    points: int = 0
    returned_fen: int = 0
    parcel: Parcel | None = None
    receipt: str = ""


async def list_my_benefits(ctx: Context) -> Page[MyBenefit]:
    """What one has won, newest first, with rank and state."""
    async with ctx.reading() as conn:
        claims = await ctx.parts.benefits.claims_of(conn, ctx.member)
        held = await ctx.parts.receipts.of_member(conn, ctx.member, limit=200)
    receipts = {one.claim: one.receipt for one in held.items}
    fields = [name for name in MyBenefit.__struct_fields__ if name != "receipt"]
    return Page(
        tuple(
            MyBenefit(**{name: getattr(claim, name) for name in fields}, receipt=receipts.get(claim.id, ""))
            for claim in claims
        )
    )


async def list_my_tags(ctx: Context) -> Page[MyTag]:
    """What was learnt from what one did, and how one can tell. Weak guesses are left out."""
    async with ctx.reading() as conn:
        tags = await ctx.parts.tags.of_member(conn, ctx.member)
    return Page(tuple(my_tag(tag) for tag in tags if tag.strength == "strong"))


async def delete_my_tag(ctx: Context) -> None:
    """Strike a tag out. It does not return for 180 days, nor ever from what was done before now."""
    async with ctx.transaction() as t:
        await ctx.parts.tags.delete_by_member(t, ctx.member, ctx.path["tag"])


class MyTag(Answer, frozen=True, kw_only=True):
    """A tag of one's own: why it is there, in words and in events."""

    id: str
    name: str
    score: float
    rule: str
    rule_text: str
    events: int
    as_of: datetime
    expires_at: datetime
    evidence: tuple[Evidence, ...]


def my_tag(tag: Tag) -> MyTag:
    return MyTag(**{name: getattr(tag, name) for name in MyTag.__struct_fields__})
