"""A stage for the tests of trade: a shop with members, a plan, products, and every part of it real."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Any

import msgspec
from redis.asyncio import Redis

from commerce.coupons import Coupon, CouponRule, CouponRuleInput, Coupons
from commerce.grants import Grants
from commerce.messages import LineInput, PlaceOrder
from commerce.offers import Offer, Offers
from commerce.orders import Orders, Placed
from commerce.payments import FoundPayment, PaymentPage, PaymentRequest, Payments, Recorded
from commerce.products import Product, ProductInput, Products
from commerce.quotes import Quote, Quotes
from commerce.seats import Seats
from live.database import Database
from live.lua import Scripts
from membership.actor import (
    Actor,
    BenefitId,
    MemberId,
    OfferId,
    OrderId,
    Permission,
    PlanId,
    ShowId,
    new_id,
)
from membership.addresses import Addresses, AddressInput
from membership.audience import Audience, ShowAudiences, mask_of
from membership.campaigns import Campaigns
from membership.members import Members, new_guest_id
from membership.members import guest as guest_actor
from membership.notices import STREAM, Notices
from membership.partition import show_key
from membership.plans import Plan, PlanInput, Plans
from membership.points import Balance, Points
from membership.transaction import Transaction

TransactionFactory = Callable[[], AbstractAsyncContextManager[Transaction]]


def staff(*permissions: Permission) -> Actor:
    return Actor(kind="staff", id=new_id(), name="小禾", permissions=frozenset(permissions))


HOST = staff("offer.run", "show.run")
OPERATOR = staff("catalog.write", "member.read", "member.write")
NOBODY_OF_STAFF = staff("report.read")


class RecordingProvider:
    """A provider that notes what it is asked, and pays when told to."""

    name = "sandbox"

    def __init__(self) -> None:
        self.asked: list[PaymentRequest] = []
        self.returns: dict[str, tuple[str, int]] = {}
        self.paid: dict[str, FoundPayment] = {}

    async def create(self, request: PaymentRequest) -> PaymentPage:
        self.asked.append(request)
        ref = f"ref-{request.order}-{request.amount_fen}"
        return PaymentPage(ref, f"http://pay.test/{ref}")

    async def query(self, ref: str) -> FoundPayment | None:
        return self.paid.get(ref)

    async def give_back(self, ref: str, amount_fen: int, key: str) -> str:
        self.returns[key] = (ref, amount_fen)
        return f"return-{key}"


class Shop:
    def __init__(self, redis: Redis, scripts: Scripts, database: Database) -> None:
        self.redis = redis
        self.scripts = scripts
        self.database = database
        self.tx = database.transaction
        self.notices = Notices(redis)
        self.members = Members(self.notices)
        self.plans = Plans(self.notices, "secret")
        self.points = Points(self.notices)
        self.addresses = Addresses()
        self.audiences = ShowAudiences(scripts)
        self.products = Products()
        self.coupons = Coupons(self.notices)
        self.campaigns = Campaigns()
        self.quotes = Quotes(
            "secret",
            products=self.products,
            coupons=self.coupons,
            points=self.points,
            plans=self.plans,
            campaigns=self.campaigns,
        )
        self.offers = Offers(scripts, self.audiences, self.products)
        self.grants = Grants(self.points, self.coupons)
        self.seats = Seats(scripts, self.notices, self.members.facts, self.tx, self.grants)
        self.orders = self.make_orders()
        self.provider = RecordingProvider()
        self.payments = Payments(self.orders, self.plans, self.seats, self.provider, self.notices)
        self._phones = 0
        self._homes: dict[str, str] = {}

    def make_orders(self, **settings: Any) -> Orders:
        return Orders(
            self.scripts,
            self.quotes,
            self.plans,
            self.points,
            self.coupons,
            self.notices,
            self.addresses,
            self.seats,
            **settings,
        )

    # --- people and things ---

    async def plan(self, **terms: Any) -> Plan:
        given: dict[str, Any] = {"name": "年卡", "fee_fen": 19_900, "period_months": 12, **terms}
        async with self.tx() as t:
            return await self.plans.create(t, PlanInput(**given))

    async def buyer(self, plan: PlanId | None = None, nickname: str = "王小明") -> Actor:
        """A registered member with an address; with `plan`, on a trial of it."""
        self._phones += 1
        phone = f"138{self._phones:08d}"
        async with self.tx() as t:
            member = await self.members.register(t, phone, nickname)
            home = await self.addresses.add(
                t, member.id, AddressInput("王小明", phone, "浙江省 杭州市 西湖区", "文三路 1 号")
            )
            if plan is not None:
                await self.plans.start_trial(t, member.id, plan, phone)
            self._homes[member.id] = home.id
            return await self.members.actor(t.conn, member.id)

    async def buyers(self, count: int) -> list[Actor]:
        """Many at once, by plain rows."""
        members = [MemberId(new_id()) for _ in range(count)]
        homes = [new_id() for _ in members]
        async with self.tx() as t:
            await t.conn.execute(
                "INSERT INTO members (id, nickname) SELECT unnest(%s::uuid[]), '李雷'", [members]
            )
            await t.conn.execute(
                "INSERT INTO addresses (id, member_id, name, phone, region, detail)"
                " SELECT h, m, '李雷', '+8613800000000', '北京市 朝阳区', '望京 1 号'"
                " FROM unnest(%s::uuid[], %s::uuid[]) AS w (h, m)",
                [homes, members],
            )
            self._homes.update(zip(members, homes, strict=True))
            return [await self.members.actor(t.conn, member) for member in members]

    async def again(self, actor: Actor) -> Actor:
        """The same member with today's facts."""
        assert actor.member is not None
        async with self.tx() as t:
            return await self.members.actor(t.conn, actor.member)

    def guest(self) -> Actor:
        return guest_actor(new_guest_id())

    async def product(self, **values: Any) -> Product:
        given: dict[str, Any] = {
            "sku": f"sku-{new_id()}",
            "name": "有机大米",
            "list_fen": 12_800,
            "stock": 10,
            **values,
        }
        async with self.tx() as t:
            return await self.products.create(t, OPERATOR, ProductInput(**given))

    async def open(self, show: ShowId, product: Product, kind: str = "pin", **terms: Any) -> Offer:
        if kind == "flash":
            terms = {"flash_fen": 9_900, "quota": 5, "seconds": 600, **terms}
        async with self.tx() as t:
            return await self.offers.open(t, HOST, show, product.id, kind, **terms)  # type: ignore[arg-type]

    # --- buying ---

    async def quote(self, actor: Actor, show: ShowId, *lines: tuple[Offer, int], **wish: Any) -> Quote:
        """`wish`: coupons, points, best, region."""
        async with self.tx() as t:
            return await self.quotes.quote(
                t.conn, actor, show, [LineInput(offer.id, quantity) for offer, quantity in lines], **wish
            )

    def command(self, actor: Actor, quote: Quote | str, key: str | None = None, **more: Any) -> PlaceOrder:
        token = quote if isinstance(quote, str) else quote.token
        address = self._homes.get(actor.id, new_id())
        values: dict[str, Any] = {"id": 1, "key": key or new_id(), "quote": token, "address": address, **more}
        return PlaceOrder(**values)

    async def place(self, actor: Actor, show: ShowId, quote: Quote, key: str | None = None) -> Placed:
        async with self.tx() as t:
            return await self.orders.place(t, actor, show, self.command(actor, quote, key))

    async def buy(self, actor: Actor, show: ShowId, *lines: tuple[Offer, int], **wish: Any) -> Placed:
        return await self.place(actor, show, await self.quote(actor, show, *lines, **wish))

    async def rule(self, **terms: Any) -> CouponRule:
        """A rule of coupons: ten yuan off, if nothing else is said."""
        given: dict[str, Any] = {"title": "十元券", "kind": "amount", **terms}
        if given["kind"] == "amount":
            given.setdefault("off_fen", 1_000)
        async with self.tx() as t:
            return await self.coupons.create_rule(t, OPERATOR, CouponRuleInput(**given))

    async def grant(
        self, actor: Actor, rule: CouponRule, cause: str | None = None, *, nth: int = 1
    ) -> Coupon:
        assert actor.member is not None
        async with self.tx() as t:
            return await self.coupons.grant(t, actor.member, rule.id, cause or new_id(), nth=nth)

    async def give_points(self, actor: Actor, points: int) -> None:
        """Active at once."""
        assert actor.member is not None
        async with self.tx() as t:
            await self.points.earn(t, actor.member, points, "review", new_id())

    async def balance(self, actor: Actor) -> Balance:
        assert actor.member is not None
        async with self.tx() as t:
            return await self.points.balance(t.conn, actor.member)

    async def join(self, actor: Actor, plan: PlanId, show: ShowId | None = None) -> Placed:
        async with self.tx() as t:
            return await self.orders.place_plan(t, actor, plan, show, new_id())

    async def pay(
        self, order: OrderId, amount_fen: int, ref: str | None = None, payer: str = "payer-1"
    ) -> Recorded:
        async with self.tx() as t:
            return await self.payments.record(
                t, "sandbox", ref or new_id(), order, amount_fen, payer, datetime.now(UTC)
            )

    async def let_holds_run_out(self) -> int:
        """As if ten minutes had passed, and the job had come by."""
        async with self.tx() as t:
            await t.conn.execute(
                "UPDATE orders SET hold_until = clock_timestamp() - interval '1 second'"
                " WHERE state = 'placed'"
            )
        async with self.tx() as t:
            return await self.orders.expire_due(t)

    # --- looking ---

    async def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        async with self.tx() as t:
            return await (await t.conn.execute(query, values)).fetchall()  # type: ignore[call-overload, no-any-return]

    async def stock(self, product: Product) -> int:
        return int((await self.rows("SELECT stock FROM products WHERE id = %s", product.id))[0]["stock"])

    async def taken(self, offer: Offer) -> int:
        return int((await self.rows("SELECT taken FROM offers WHERE id = %s", offer.id))[0]["taken"])

    async def counts(self, show: ShowId, offer: OfferId | BenefitId) -> tuple[int, int]:
        """Held and sold, as the show sees them."""
        found = await self.redis.hmget(
            show_key(show, "counts"), [f"offer:{offer}|held", f"offer:{offer}|sold"]
        )
        return int(found[0] or 0), int(found[1] or 0)

    async def events(self, show: ShowId, kind: str = "") -> list[dict[str, Any]]:
        entries = await self.redis.xrange(show_key(show, "log"))
        events = [
            {**msgspec.json.decode(fields[b"e"]), "bit": int(fields[b"a"])}
            for _, fields in entries
            if fields[b"e"]
        ]
        return [event for event in events if not kind or event["type"] == kind]

    async def records(self, show: ShowId) -> list[dict[str, Any]]:
        return [
            msgspec.json.decode(fields[b"b"])
            for _, fields in await self.redis.xrange(show_key(show, "behaviour"))
        ]

    async def parts(self, show: ShowId, offer: Offer) -> list[dict[str, Any]] | None:
        found = await self.redis.hget(show_key(show, "states"), f"offer:{offer.id}")
        return None if found is None else msgspec.json.decode(found)  # type: ignore[no-any-return]

    async def seen(self, show: ShowId, offer: Offer, actor: Actor) -> dict[str, Any] | None:
        """The state as this person's class gets it; None when nothing of it reaches them."""
        listed = msgspec.json.decode(await self.redis.hget(show_key(show, "meta"), "audiences") or b"[]")
        own = [msgspec.json.decode(each, type=Audience) for each in listed]
        mask = mask_of(actor.facts, own)
        data: dict[str, Any] | None = None
        for part in await self.parts(show, offer) or []:
            if mask >> part["a"] & 1:
                data = {**(data or {}), **part["d"]}
        return data

    async def notes(self, actor: Actor) -> list[dict[str, Any]]:
        return [
            msgspec.json.decode(fields[b"message"])
            for _, fields in await self.redis.xrange(STREAM)
            if fields[b"member"].decode() == actor.id and b"message" in fields
        ]
