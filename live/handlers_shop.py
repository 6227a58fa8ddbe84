"""What a shop's server and the operators do: products, prices, plans, members, tokens, orders, tags."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import UNSET, Meta

from commerce.bundles import Part, parts_of
from commerce.claim_book import Claim
from commerce.orders import Order
from commerce.payments import NOTE_CHARS, Decision, PaymentRow
from commerce.products import GROUP_MAX, PriceEntry, Product, ProductInput, ProductPatch, Products
from commerce.stock import ROWS_MAX, StockEntry, StockOutcome, StockRow
from live.asking import asking
from live.http import Answer, Body, Context, IdText, KeyText, PageQuery, ShowText, refusal_noted
from membership.actor import MemberId, OrderId, PaymentId, PlanId, ProductId, ShowId
from membership.audience import EVERYONE, Audience
from membership.members import FedRow, FeedRow, Member, display_name, mask_phone
from membership.page import Page
from membership.plans import Plan, PlanInput, Term
from membership.points import Balance
from membership.refusal import BadRequest, NotFound
from membership.tags import Tag
from membership.transaction import Connection

FEED_ROWS_MAX = 500  # what fits into 64 KB
TOKEN_S_MAX = 86_400


# -- products --------------------------------------------------------------------------------------


class ProductQuery(PageQuery, frozen=True, kw_only=True):
    search: Annotated[str, Meta(max_length=60, description="Part of the name or SKU")] | None = None


class PriceBody(Body, frozen=True, kw_only=True):
    """A further line of the price list; it can lower a price, never raise one. `min_quantity` from 2: a group
    price, for each piece of an order that has so many of the product."""

    unit_fen: Annotated[int, Meta(ge=1, le=100_000_000)]
    audience: Audience = EVERYONE
    from_at: datetime
    until_at: datetime | None = None
    min_quantity: Annotated[int, Meta(ge=1, le=GROUP_MAX)] = 1


class ProductCard(Answer, frozen=True, kw_only=True):
    """A product with the prices that hold now or will."""

    product: Product
    prices: tuple[PriceEntry, ...]
    parts: tuple[Part, ...] = ()  # of a bundle


async def list_products(ctx: Context, query: ProductQuery) -> Page[Product]:
    """Products in the order they were made."""
    async with ctx.reading() as conn:
        return await ctx.parts.products.list(
            conn, search=query.search, cursor=query.cursor, limit=query.limit
        )


async def read_product(ctx: Context) -> ProductCard:
    """One product and its price list."""
    async with ctx.reading() as conn:
        return await _product_card(ctx.parts.products, conn, ProductId(ctx.path["product"]))


async def _product_card(products: Products, conn: Connection, product: ProductId) -> ProductCard:
    found = await products.get(conn, product)
    return ProductCard(
        product=found,
        prices=(await products.prices(conn, [found.id]))[found.id],
        parts=(await parts_of(conn, [found.id]))[found.id] if found.bundle else (),
    )


async def create_product(ctx: Context, body: ProductInput) -> Product:
    """Add a product. Prices are in the currency's minor unit."""
    async with asking(ctx), ctx.transaction() as t:
        made = await ctx.parts.products.create(t, ctx.actor, body)
        await ctx.audit(
            t, "product.create", f"product:{made.id}", {"sku": made.sku, "list_fen": made.list_fen}
        )
    return made


async def update_product(ctx: Context, body: ProductPatch) -> Product:
    """Change what is named and leave the rest. `stock_change` is a difference. Open quotes are honoured; offers
    to people who may no longer know of the product end."""
    product = ProductId(ctx.path["product"])
    async with asking(ctx), ctx.transaction() as t:
        if body.status is not UNSET or body.audience is not UNSET:
            await ctx.parts.offers.lock_open(t.conn, product)
        changed = await ctx.parts.products.update(t, ctx.actor, product, body)
        await ctx.parts.offers.close_unfit(t, changed)
        named = [name for name in body.__struct_fields__ if getattr(body, name) is not UNSET]
        await ctx.audit(
            t,
            "product.update",
            f"product:{product}",
            {"changed": named, "list_fen": changed.list_fen, "member_fen": changed.member_fen},
        )
    return changed


class StockBody(Body, frozen=True, kw_only=True):
    """Rows are worked through in their order. The same key again gives the same answer."""

    key: KeyText
    reason: Annotated[str, Meta(min_length=1, max_length=80, description="Delivery, count …: for the ledger")]
    rows: Annotated[list[StockRow], Meta(min_length=1, max_length=ROWS_MAX)]


class StockAnswer(Answer, frozen=True, kw_only=True):
    """What became of each row, in order; a refused one leaves the others standing."""

    rows: tuple[StockOutcome, ...]


class StockQuery(PageQuery, frozen=True, kw_only=True):
    product: IdText | None = None


async def import_stock(ctx: Context, body: StockBody) -> StockAnswer:
    """Change stocks by a difference, or set them where they still are what is expected. Free pieces are meant."""
    async with ctx.transaction() as t:
        outcomes = await ctx.parts.stock.take_in(t, ctx.actor, body.key, body.reason, body.rows)
        counted = {word: sum(each.outcome == word for each in outcomes) for word in ("changed", "refused")}
        await ctx.audit(t, "stock.import", "stock", {"key": body.key, "reason": body.reason, **counted})
    return StockAnswer(rows=outcomes)


async def list_stock_entries(ctx: Context, query: StockQuery) -> Page[StockEntry]:
    """Every piece that came in or was counted away, other than by an order."""
    product = None if query.product is None else ProductId(query.product)
    async with ctx.reading() as conn:
        return await ctx.parts.stock.entries(
            conn, ctx.actor, product=product, cursor=query.cursor, limit=query.limit
        )


async def add_price(ctx: Context, body: PriceBody) -> PriceEntry:
    """Add a line to the product's price list: for whom, from when, until when."""
    product = ProductId(ctx.path["product"])
    for moment in (body.from_at, body.until_at):
        if moment is not None and not 2000 <= moment.year <= 2200:
            raise BadRequest("A price begins and ends between the years 2000 and 2200.")
    async with asking(ctx), ctx.transaction() as t:
        entry = await ctx.parts.products.set_price(
            t,
            ctx.actor,
            product,
            body.unit_fen,
            body.audience,
            body.from_at,
            body.until_at,
            body.min_quantity,
        )
        await ctx.audit(t, "price.add", f"product:{product}", {"entry": entry.id, "unit_fen": entry.unit_fen})
    return entry


async def end_price(ctx: Context) -> None:
    """End a line of a price list now; one that has not begun is taken off."""
    entry = ctx.path["price"]
    async with ctx.transaction() as t:
        await ctx.parts.products.end_price(t, ctx.actor, entry)
        await ctx.audit(t, "price.end", f"price:{entry}")


# -- plans -----------------------------------------------------------------------------------------


class PlanPatch(Body, frozen=True, kw_only=True):
    on_sale: bool


async def create_plan(ctx: Context, body: PlanInput) -> Plan:
    """Put a plan on sale. What members bought does not change later: a new price is a new plan."""
    async with ctx.transaction() as t:
        await ctx.parts.guards.check_plan(t.conn, body.points_bonus_percent)
        plan = await ctx.parts.plans.create(t, body)
        await ctx.audit(t, "plan.create", f"plan:{plan.id}", {"name": plan.name, "fee_fen": plan.fee_fen})
    return plan


async def update_plan(ctx: Context, body: PlanPatch) -> Plan:
    """Take a plan off sale, or put it back. Members who have it keep it."""
    plan = PlanId(ctx.path["plan"])
    async with ctx.transaction() as t:
        if body.on_sale:
            found = await ctx.parts.plans.get(t.conn, plan)
            await ctx.parts.guards.check_plan(t.conn, found.points_bonus_percent)
        changed = await ctx.parts.plans.set_on_sale(t, plan, body.on_sale)
        await ctx.audit(t, "plan.set_on_sale", f"plan:{plan}", {"on_sale": body.on_sale})
    return changed


# -- members ---------------------------------------------------------------------------------------


class MemberQuery(PageQuery, frozen=True, kw_only=True):
    phone: Annotated[str, Meta(max_length=32, description="The whole number")] | None = None
    query: (
        Annotated[str, Meta(max_length=64, description="Part of the nickname, or the shop's own id")] | None
    ) = None


class MemberRow(Answer, frozen=True, kw_only=True):
    """A member as staff see one: the phone is masked."""

    id: MemberId
    name: str
    phone: str | None
    external_id: str | None
    source_show: ShowId | None
    created_at: datetime


class MemberCard(Answer, frozen=True, kw_only=True):
    """A member with plan, points and terms."""

    member: MemberRow
    plan: Term | None
    terms: tuple[Term, ...]
    points: Balance


class FeedBody(Body, frozen=True, kw_only=True):
    members: Annotated[list[FeedRow], Meta(min_length=1, max_length=FEED_ROWS_MAX)]


class FeedAnswer(Answer, frozen=True, kw_only=True):
    """What became of each row, in order; a refused one leaves the others standing."""

    members: list[FedRow]


class MintBody(Body, frozen=True, kw_only=True):
    """For whom: our member id, or the shop's own."""

    member: IdText | None = None
    external_id: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    show: ShowText | None = None
    ttl_s: Annotated[int, Meta(ge=60, le=TOKEN_S_MAX)] = 3_600


class Minted(Answer, frozen=True, kw_only=True):
    """A viewer's token for the socket's hello or `Authorization: Bearer`."""

    token: str
    expires_in_s: int
    member: MemberId
    socket: str | None = None  # path of the show's socket


def member_row(member: Member) -> MemberRow:
    return MemberRow(
        id=member.id,
        name=display_name(member),
        phone=mask_phone(member.phone) if member.phone else None,
        external_id=member.external_id,
        source_show=member.source_show,
        created_at=member.created_at,
    )


async def list_members(ctx: Context, query: MemberQuery) -> Page[MemberRow]:
    """Members, newest first; or the one who holds a phone."""
    async with ctx.reading() as conn:
        page = await ctx.parts.members.find(
            conn, phone=query.phone, query=query.query, cursor=query.cursor, limit=query.limit
        )
    return Page(tuple(member_row(member) for member in page.items), page.next)


async def read_member(ctx: Context) -> MemberCard:
    """One member with plan, terms and points. That it was looked at is in the audit log."""
    async with ctx.transaction() as t:
        member = await ctx.parts.members.by_id(t.conn, ctx.path["member"])
        card = MemberCard(
            member=member_row(member),
            plan=await ctx.parts.plans.current(t.conn, member.id),
            terms=await ctx.parts.plans.terms(t.conn, member.id),
            points=await ctx.parts.points.balance(t.conn, member.id),
        )
        await ctx.audit(t, "member.read", f"member:{member.id}")
    return card


async def feed_members(ctx: Context, body: FeedBody) -> FeedAnswer:
    """Take in members by the shop's own id and phone. Running it again changes nothing."""
    async with ctx.transaction() as t:
        fed = await ctx.parts.members.feed(t, body.members)
        outcomes = {
            outcome: sum(row.outcome == outcome for row in fed) for outcome in {row.outcome for row in fed}
        }
        await ctx.audit(t, "member.feed", "members", outcomes)
    return FeedAnswer(members=fed)


async def mint_token(ctx: Context, body: MintBody) -> Minted:
    """Let a member who signed in at the shop enter here: a short-lived viewer token."""
    if (body.member is None) == (body.external_id is None):
        raise BadRequest("Name either member or external_id.")
    async with ctx.transaction() as t:
        if body.show is not None:
            await ctx.parts.shows.get(t.conn, ShowId(body.show))
        if body.member is not None:
            member = await ctx.parts.members.by_id(t.conn, body.member)
        else:
            known = await ctx.parts.members.by_external_id(t.conn, body.external_id or "")
            if known is None:
                raise NotFound("No member has this external_id.")
            member = known
        actor = await ctx.parts.members.actor(t.conn, member.id)
        await ctx.audit(t, "token.mint", f"member:{member.id}", {"ttl_s": body.ttl_s})
    return Minted(
        token=ctx.parts.tokens.mint(actor, body.ttl_s),
        expires_in_s=body.ttl_s,
        member=member.id,
        socket=f"/v1/shows/{body.show}/socket" if body.show else None,
    )


# -- tags ------------------------------------------------------------------------------------------


async def list_member_tags(ctx: Context) -> Page[Tag]:
    """The member's tags, strongest first, with the evidence behind each."""
    async with ctx.reading() as conn:
        member = await ctx.parts.members.by_id(conn, ctx.path["member"])
        return Page(await ctx.parts.tags.of_member(conn, member.id))


# -- orders ----------------------------------------------------------------------------------------


class OrdersQuery(PageQuery, frozen=True, kw_only=True):
    show: ShowText | None = None


class PaidOrder(Answer, frozen=True, kw_only=True):
    """An order with the payments that came for it."""

    order: Order
    payments: tuple[PaymentRow, ...]


async def list_orders(ctx: Context, query: OrdersQuery) -> Page[Order]:
    """Every order in the order of placing, so that a shop's server reads on from its last cursor."""
    show = ShowId(query.show) if query.show else None
    async with ctx.reading() as conn:
        return await ctx.parts.orders.all(conn, ctx.actor, query.cursor, query.limit, show=show)


async def read_order(ctx: Context) -> PaidOrder:
    """One order with its payments."""
    order = OrderId(ctx.path["order"])
    async with ctx.reading() as conn:
        found = await ctx.parts.orders.get(conn, ctx.actor, order)
        return PaidOrder(order=found, payments=await ctx.parts.payments.of_order(conn, order))


async def refund_order(ctx: Context) -> Order:
    """Send a paid order's money back in full. Points, plan and gift that came of it end with it."""
    order = OrderId(ctx.path["order"])
    async with refusal_noted(ctx, "order.refund", f"order:{order}"), ctx.transaction() as t:
        refunded = await ctx.parts.payments.refund(t, ctx.actor, order)
        await ctx.audit(t, "order.refund", f"order:{order}", {"total_fen": refunded.total_fen})
    return refunded


async def list_member_orders(ctx: Context, query: PageQuery) -> Page[Order]:
    """A member's orders, newest first."""
    async with ctx.reading() as conn:
        member = await ctx.parts.members.by_id(conn, ctx.path["member"])
        return await ctx.parts.orders.of_member(conn, member.id, query.cursor, query.limit)


async def list_member_benefits(ctx: Context) -> Page[Claim]:
    """What a member has won, newest first."""
    async with ctx.reading() as conn:
        member = await ctx.parts.members.by_id(conn, ctx.path["member"])
        return Page(tuple(await ctx.parts.benefits.claims_of(conn, member.id)))


async def list_odd_payments(ctx: Context) -> Page[PaymentRow]:
    """Payments that fit no order, and those whose return the provider declined; oldest first."""
    async with ctx.reading() as conn:
        return Page(await ctx.parts.payments.to_look_at(conn, ctx.actor))


class DecisionBody(Body, frozen=True, kw_only=True):
    """`return`: money kept apart goes back. `keep`: it stays, settled otherwise. `by_hand`: a return that the
    provider declined was made by other means."""

    act: Decision
    note: Annotated[str, Meta(min_length=1, max_length=NOTE_CHARS, description="Why, for the audit log")]


async def decide_odd_payment(ctx: Context, body: DecisionBody) -> PaymentRow:
    """A person decides about a payment that waits for one. Each decision once; it is audited."""
    async with ctx.transaction() as t:
        return await ctx.parts.payments.decide(
            t, ctx.actor, PaymentId(ctx.path["payment"]), body.act, body.note
        )
