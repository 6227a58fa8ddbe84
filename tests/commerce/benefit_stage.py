"""A stage for the tests of benefits: members, plans, payments, and the three parts that play together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
from redis.asyncio import Redis

from commerce.benefit_counters import benefit_keys
from commerce.benefit_terms import Benefit, BenefitInput
from commerce.benefits import Benefits
from commerce.claims import BATCH_MAX, WAITING_MAX, Claims, Won
from commerce.coupons import Coupons
from commerce.grants import Grants
from commerce.seats import Seats
from live.gather import Together
from live.lua import Scripts
from membership.actor import (
    NOBODY,
    Actor,
    BenefitId,
    Facts,
    MemberId,
    PaymentId,
    PlanId,
    ShowId,
    StaffId,
    new_id,
)
from membership.audience import ShowAudiences
from membership.notices import STREAM, Notices
from membership.partition import show_key
from membership.points import Points
from membership.transaction import Connection, Transaction

TransactionFactory = Callable[[], AbstractAsyncContextManager[Transaction]]

HOST = Actor(
    kind="staff", id=StaffId(new_id()), name="小禾", permissions=frozenset({"offer.run", "show.run"})
)
PLAN = PlanId(new_id())


async def facts_of(conn: Connection, member: MemberId) -> Facts:
    return Facts(member=member, registered=True)


def viewer(member: MemberId, *, plan: bool = False, trial: bool = False) -> Actor:
    plans = frozenset({PLAN}) if plan or trial else frozenset()
    return Actor(
        kind="viewer",
        id=member,
        name="王小明",
        facts=Facts(member=member, registered=True, plans=plans, on_trial=trial),
    )


GUEST = Actor(kind="viewer", id="g_visitor-0001", name="访客0001", facts=NOBODY)


Gatherer = Together[tuple[ShowId, BenefitId], tuple[Actor, str], Won]


def gathered(claims: Claims) -> Gatherer:
    """A process's claims, as the socket's commands reach them."""
    return Together(
        lambda where, asked: claims.claim_many(*where, asked),
        most=BATCH_MAX,
        rest_s=0,
        waiting_max=WAITING_MAX,
    )


class Stage:
    def __init__(self, redis: Redis, scripts: Scripts, tx: TransactionFactory) -> None:
        self.redis = redis
        self.scripts = scripts
        self.tx = tx
        self.notices = Notices(redis)
        self.points = Points(self.notices)
        self.coupons = Coupons(self.notices)
        self.grants = Grants(self.points, self.coupons)
        self.benefits = Benefits(scripts, ShowAudiences(scripts), self.notices, facts_of, self.grants)
        self.seats = Seats(scripts, self.notices, facts_of, tx, self.grants)
        self.claims = Claims(scripts, self.notices, tx, self.grants)

    async def members(self, count: int) -> list[MemberId]:
        members = [MemberId(new_id()) for _ in range(count)]
        async with self.tx() as t:
            await t.conn.execute(
                "INSERT INTO members (id, nickname)"
                " SELECT m, '王' || n FROM unnest(%s::uuid[]) WITH ORDINALITY AS w (m, n)",
                [members],
            )
        return members

    async def member(self) -> MemberId:
        return (await self.members(1))[0]

    async def give_phone(self, member: MemberId, phone: str) -> None:
        async with self.tx() as t:
            await t.conn.execute(
                "INSERT INTO identifiers (id, member_id, kind, value) VALUES (%s, %s, 'phone', %s)",
                [new_id(), member, phone],
            )

    async def drop_phone(self, member: MemberId) -> None:
        async with self.tx() as t:
            await t.conn.execute(
                "UPDATE identifiers SET ended_at = clock_timestamp() WHERE member_id = %s", [member]
            )

    async def open(self, show: ShowId, **terms: Any) -> Benefit:
        given = {"title": "厨房三件套", "quota": 3, "value_fen": 5900, **terms}
        async with self.tx() as t:
            return await self.benefits.open(t, HOST, show, BenefitInput(**given))

    async def payment(self, t: Transaction, show: ShowId, member: MemberId, payer: str = "") -> PaymentId:
        """A recorded payment of a plan, as the order's transaction leaves it."""
        await t.conn.execute(
            "INSERT INTO plans (id, name, fee_fen, period_months) VALUES (%s, '年卡', 19900, 12)"
            " ON CONFLICT DO NOTHING",
            [PLAN],
        )
        order, payment = new_id(), PaymentId(new_id())
        await t.conn.execute(
            """
            INSERT INTO orders (id, kind, member_id, show_id, state, key, body_digest, plan_id, currency,
                goods_fen, total_fen, hold_until, paid_at)
            VALUES (%s, 'plan', %s, %s, 'paid', %s, '', %s, 'CNY', 19900, 19900, now(), now())
            """,
            [order, member, show, new_id(), PLAN],
        )
        await t.conn.execute(
            """
            INSERT INTO payments (id, provider, ref, order_id, said_order, amount_fen, payer, outcome,
                provider_paid_at)
            VALUES (%s, 'sandbox', %s, %s, %s, 19900, %s, 'accepted', now())
            """,
            [payment, new_id(), order, order, payer or f"payer-{member}"],
        )
        return payment

    async def pay(self, show: ShowId, member: MemberId, payer: str = "") -> tuple[PaymentId, int | None]:
        """A first paid start: its payment, and the rank if there was one."""
        async with self.tx() as t:
            payment = await self.payment(t, show, member, payer)
            claim = await self.seats.confirm(t, show, member, payment, payer or f"payer-{member}")
        return payment, claim.rank if claim else None

    async def take(self, show: ShowId, member: MemberId) -> str:
        async with self.tx() as t:
            status = await self.seats.take(t, viewer(member), show)
        return status.status if status else "none"

    async def end_holds(self, show: ShowId, benefit: BenefitId, members: Sequence[MemberId]) -> None:
        """As if their five minutes were over."""
        held = show_key(show, benefit_keys(benefit)[2])
        for member in members:
            await self.redis.zadd(held, {member: 1}, xx=True)

    async def let_end(self, benefit: BenefitId) -> None:
        """As if its time were over: what no act can do, and the tables refuse."""
        async with self.tx() as t:
            await t.conn.execute("ALTER TABLE benefits DISABLE TRIGGER benefits_terms_guard")
            await t.conn.execute(
                "UPDATE benefits SET opened_at = now() - interval '9 s', closes_at = now() - interval '1 s'"
                " WHERE id = %s",
                [benefit],
            )
            await t.conn.execute("ALTER TABLE benefits ENABLE TRIGGER benefits_terms_guard")

    async def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        async with self.tx() as t:
            return await (await t.conn.execute(query, values)).fetchall()

    async def ranks(self, benefit: BenefitId) -> list[int]:
        return [
            row["rank"]
            for row in await self.rows(
                "SELECT rank FROM benefit_claims WHERE benefit_id = %s ORDER BY rank", benefit
            )
        ]

    async def events(self, show: ShowId, kind: str = "") -> list[dict[str, Any]]:
        entries: Any = await self.redis.xrange(show_key(show, "log"))
        events = [msgspec.json.decode(fields[b"e"]) for _, fields in entries if fields[b"e"]]
        return [event for event in events if not kind or event["type"] == kind]

    async def notes(self, member: MemberId) -> list[dict[str, Any]]:
        entries: Any = await self.redis.xrange(STREAM)
        return [
            msgspec.json.decode(fields[b"message"])
            for _, fields in entries
            if fields[b"member"].decode() == member and b"message" in fields
        ]

    async def state(self, show: ShowId, benefit: BenefitId) -> dict[str, Any]:
        parts = await self.redis.hget(show_key(show, "states"), f"benefit:{benefit}")
        assert parts is not None
        part: dict[str, Any] = msgspec.json.decode(parts)[0]
        counts = {
            field: int(await self.redis.hget(show_key(show, "counts"), f"benefit:{benefit}|{field}") or -1)
            for field in ("confirmed", "held", "queued")
        }
        return {**part["d"], "audience": part["a"], "counts": counts}
