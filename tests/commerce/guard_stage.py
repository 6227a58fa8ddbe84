"""A stage for the tests of guards: the shop with a guard at each door, and a second person."""

from __future__ import annotations

from typing import Any

import msgspec
from redis.asyncio import Redis

from commerce.approvals import Approval, Approvals, NeedsApproval
from commerce.benefit_terms import Benefit, BenefitInput
from commerce.benefits import Benefits
from commerce.budgets import Budgets
from commerce.claims import Claims, Won
from commerce.costs import Costs
from commerce.coupons import Coupons
from commerce.guards import Guards
from commerce.incidents import Incident, Incidents
from commerce.offers import Offers
from commerce.payments import Payments
from commerce.products import Product, Products
from live.database import Database
from live.lua import Scripts
from membership.actor import Actor, ShowId
from membership.partition import show_key
from membership.refusal import Refusal
from tests.commerce.shop_stage import Shop, staff

HOST = staff("offer.run", "show.run", "incident.run", "catalog.write")
BOSS = staff("offer.run", "approve", "incident.run", "catalog.write")
OTHER_BOSS = staff("approve")


class GuardedShop(Shop):
    def __init__(
        self,
        redis: Redis,
        scripts: Scripts,
        database: Database,
        *,
        approve_above_fen: int = 0,
        rebate_cap_percent: int = 10,
        **budgets_fen: int,
    ) -> None:
        super().__init__(redis, scripts, database)
        self.approvals = Approvals()
        self.budgets = Budgets(**budgets_fen)
        self.costs = Costs(self.budgets)
        self.incidents = Incidents(scripts, self.notices)
        self.guards = Guards(
            self.approvals,
            self.budgets,
            self.incidents,
            approve_above_fen=approve_above_fen,
            rebate_cap_percent=rebate_cap_percent,
        )
        self.products = Products(self.guards)
        self.coupons = Coupons(self.notices, self.guards)
        self.offers = Offers(scripts, self.audiences, self.products, guards=self.guards)
        self.orders = self.make_orders(guards=self.guards)
        self.payments = Payments(self.orders, self.plans, self.seats, self.provider, self.notices)
        self.benefits = Benefits(
            scripts, self.audiences, self.notices, self.members.facts, self.grants, self.guards
        )
        self.claims = Claims(scripts, self.notices, self.tx, self.grants)

    async def give(self, show: ShowId, actor: Actor = HOST, **terms: Any) -> Benefit:
        """Open a benefit: by default 100 gifts of 59 yuan."""
        given = {"title": "厨房三件套", "quota": 100, "value_fen": 5_900, **terms}
        async with self.tx() as t:
            return await self.benefits.open(t, actor, show, BenefitInput(**given))

    async def raise_to(self, benefit: Benefit, quota: int, actor: Actor = HOST) -> Benefit:
        async with self.tx() as t:
            return await self.benefits.raise_quota(t, actor, benefit.id, quota)

    async def flash(self, show: ShowId, product: Product, actor: Actor = HOST, **terms: Any) -> Any:
        terms = {"flash_fen": 9_900, "quota": 5, "seconds": 600, **terms}
        async with self.tx() as t:
            return await self.offers.open(t, actor, show, product.id, "flash", **terms)

    async def limit(self, scope: Any, subject: str, fen: int | None) -> None:
        async with self.tx() as t:
            await self.budgets.set(t, BOSS, scope, subject, fen)

    async def ask(self, refusal: NeedsApproval, actor: Actor = HOST) -> Approval:
        """As the door does with a refusal that a second person may lift."""
        assert refusal.ask is not None
        async with self.tx() as t:
            approval, _ = await self.approvals.ask(t, actor, refusal.ask)
        return approval

    async def decide(self, approval: Approval, actor: Actor = BOSS, *, grant: bool = True) -> Approval:
        async with self.tx() as t:
            return await self.approvals.decide(t, actor, approval.id, grant=grant)

    async def granted(self, refusal: NeedsApproval, actor: Actor = HOST) -> Approval:
        return await self.decide(await self.ask(refusal, actor))

    async def stop_selling(self, reason: str = "支付故障", extend_s: int = 600) -> Incident:
        async with self.tx() as t:
            return await self.incidents.begin(t, HOST, reason, extend_s)

    async def go_on(self) -> Incident:
        async with self.tx() as t:
            return await self.incidents.end(t, HOST, self.benefits.put_in_force)

    async def claim(self, show: ShowId, benefit: Benefit, actor: Actor, key: str = "k") -> Won | Refusal:
        (answer,) = await self.claims.claim_many(show, benefit.id, [(actor, key)])
        return answer

    async def told(self, show: ShowId, key: str = "incident") -> dict[str, Any] | None:
        """A state as everybody gets it."""
        found = await self.redis.hget(show_key(show, "states"), key)
        return None if found is None else msgspec.json.decode(found)[0]["d"]  # type: ignore[no-any-return]
