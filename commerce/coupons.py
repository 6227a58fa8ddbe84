"""Coupons: the rules by which they are made, and each one in its owner's hands.

A coupon is free, then held by an order, then used by it; or used at a till; or it is void or has run out. Every
change is one conditional update in the transaction that causes it, so that two orders, or an order and a till,
cannot have the same one.
What coupons take off an order is computed in discounts.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NewType

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from commerce.guards import Guards
from commerce.products import PRICE_MAX_FEN, audience_column, audience_from
from membership.actor import Actor, Facts, MemberId, OrderId, ProductId, is_id, new_id
from membership.audience import EVERYONE, Audience
from membership.notices import Notices
from membership.page import Page, check_page, page_of
from membership.refusal import BadRequest, Forbidden, KeyReused, NotFound, Refusal
from membership.transaction import Connection, Transaction

CouponId = NewType("CouponId", str)
CouponRuleId = NewType("CouponRuleId", str)

CouponKind = Literal["amount", "percent", "freight"]
CouponState = Literal["free", "held", "used", "void", "expired"]

TOGETHER_MAX = 3  # coupons in one order
FREE_MAX = 50  # of one member that are looked at
PRODUCTS_MAX = 200
Fen = Annotated[int, Meta(ge=1, le=PRICE_MAX_FEN)]
Group = Annotated[str, Meta(min_length=1, max_length=40)]


class NoSuchCoupon(NotFound):
    """There is no such coupon."""


class NoSuchCouponRule(NotFound):
    """There is no such rule of coupons."""


class CouponUsed(Refusal):
    """The coupon was used, or is held by another order."""

    code = "coupon_used"


class CouponsGone(Refusal):
    """No coupon of this rule is left to give, or this person has as many as one may have."""

    code = "limit_reached"


class CouponNotGood(Refusal):
    """The coupon is void, has run out, or its time has not begun."""

    code = "not_eligible"


class TillUse(Struct, frozen=True, kw_only=True):
    """A coupon as a till used it. `reference`: the till's own name for the sale; `amount_fen`: what came off."""

    coupon: CouponId
    reference: str
    amount_fen: int | None
    used_at: datetime
    undone_at: datetime | None = None


class CouponRuleInput(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule as staff write it. Two coupons go together when each names the other's group."""

    title: Annotated[str, Meta(min_length=1, max_length=60)]
    kind: CouponKind
    off_fen: Fen | None = None  # `amount`: so much; `freight`: at most so much
    percent: Annotated[int, Meta(ge=50, le=99)] | None = None  # what is paid: 88 takes 12 % off
    max_off_fen: Fen | None = None  # `percent`: at most so much
    threshold_fen: Annotated[int, Meta(ge=0, le=PRICE_MAX_FEN)] = 0  # of the goods it is for
    products: Annotated[tuple[ProductId, ...], Meta(max_length=PRODUCTS_MAX)] = ()  # empty: all
    audience: Audience = EVERYONE
    from_at: datetime | None = None
    until_at: datetime | None = None
    days: Annotated[int, Meta(ge=1, le=3650)] | None = None  # after the grant
    stack_group: Group = "coupon"
    stacks_with: Annotated[tuple[Group, ...], Meta(max_length=20)] = ()
    per_person: Annotated[int, Meta(ge=1, le=1000)] | None = None
    quota: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    owner: Annotated[str, Meta(max_length=60)] = ""  # who bears the cost


class CouponRulePatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may change of a rule: what was granted keeps its worth."""

    title: Annotated[str, Meta(min_length=1, max_length=60)] | UnsetType = UNSET
    quota: Annotated[int, Meta(ge=1, le=10_000_000)] | UnsetType | None = UNSET
    owner: Annotated[str, Meta(max_length=60)] | UnsetType = UNSET
    status: Literal["on", "off"] | UnsetType = UNSET


class CouponRule(Struct, frozen=True, kw_only=True):
    """A rule. `status` off: nothing more is granted; what was granted holds."""

    id: CouponRuleId
    title: str
    kind: CouponKind
    off_fen: int | None = None
    percent: int | None = None
    max_off_fen: int | None = None
    threshold_fen: int = 0
    products: tuple[ProductId, ...] = ()
    audience: Audience = EVERYONE
    from_at: datetime | None = None
    until_at: datetime | None = None
    days: int | None = None
    stack_group: str = "coupon"
    stacks_with: tuple[str, ...] = ()
    per_person: int | None = None
    quota: int | None = None
    granted: int = 0
    owner: str = ""
    status: Literal["on", "off"] = "on"

    def stacks(self, other: CouponRule) -> bool:
        """Whether the two may be used in one order: each names the other's group."""
        return self.stack_group in other.stacks_with and other.stack_group in self.stacks_with


class Coupon(Struct, frozen=True, kw_only=True):
    """One coupon in its owner's hands, with its rule."""

    id: CouponId
    member: MemberId
    rule: CouponRule
    state: CouponState
    granted_at: datetime
    expires_at: datetime | None
    order: OrderId | None = None
    till_reference: str | None = None  # the sale at a till that used it
    cause: str
    nth: int = 1

    def in_time(self, now: datetime) -> bool:
        begun = self.rule.from_at is None or self.rule.from_at <= now
        return begun and (self.expires_at is None or now < self.expires_at)

    def for_person(self, facts: Facts) -> bool:
        return self.rule.audience.has(facts)


_COUPON = """
    SELECT c.*, to_jsonb(r.*) AS rule
    FROM coupons c JOIN coupon_rules r ON r.id = c.rule_id
"""


class Coupons:
    """Makes rules, grants coupons, and takes each through its states."""

    def __init__(self, notices: Notices, guards: Guards | None = None) -> None:
        self._notices = notices
        self._guards = guards

    # --- rules ---

    async def create_rule(self, t: Transaction, actor: Actor, rule: CouponRuleInput) -> CouponRule:
        """Raises Forbidden, BadRequest."""
        if not actor.may("catalog.write"):
            raise Forbidden
        _check_rule(rule)
        if self._guards is not None:
            await self._guards.check_coupon(
                t,
                actor,
                title=rule.title,
                products=rule.products,
                most_fen=rule.off_fen or rule.max_off_fen,
                quota=rule.quota,
                terms=rule,
            )
        values = msgspec.structs.asdict(rule)
        row = await (
            await t.conn.execute(
                """
                INSERT INTO coupon_rules (id, title, kind, off_fen, percent, max_off_fen, threshold_fen,
                    products, audience, from_at, until_at, days, stack_group, stacks_with, per_person, quota,
                    owner)
                VALUES (%(id)s, %(title)s, %(kind)s, %(off_fen)s, %(percent)s, %(max_off_fen)s,
                    %(threshold_fen)s, %(products)s::uuid[], %(audience)s, %(from_at)s, %(until_at)s,
                    %(days)s, %(stack_group)s, %(stacks_with)s, %(per_person)s, %(quota)s, %(owner)s)
                RETURNING *
                """,
                {
                    **values,
                    "id": new_id(),
                    "products": list(rule.products),
                    "stacks_with": list(rule.stacks_with),
                    "audience": audience_column(rule.audience),
                },
            )
        ).fetchone()
        assert row is not None
        return _rule(row)

    async def update_rule(
        self, t: Transaction, actor: Actor, rule: CouponRuleId, patch: CouponRulePatch
    ) -> CouponRule:
        """Raises Forbidden, NoSuchCouponRule, BadRequest (a quota below what was granted)."""
        if not actor.may("catalog.write"):
            raise Forbidden
        found = await self.rule(t.conn, rule, lock=True)
        named = {
            name: value
            for name in CouponRulePatch.__struct_fields__
            if (value := getattr(patch, name)) is not UNSET
        }
        changed: CouponRule = msgspec.structs.replace(found, **named)
        if changed.quota is not None and changed.quota < found.granted:
            raise BadRequest(f"{found.granted} were granted already")
        if self._guards is not None and changed.quota != found.quota:
            await self._guards.check_coupon(
                t,
                actor,
                title=changed.title,
                products=changed.products,
                most_fen=changed.off_fen or changed.max_off_fen,
                quota=changed.quota,
                terms=[rule, changed.quota],
            )
        await t.conn.execute(
            "UPDATE coupon_rules SET title = %s, quota = %s, owner = %s, status = %s WHERE id = %s",
            [changed.title, changed.quota, changed.owner, changed.status, rule],
        )
        return changed

    async def rule(self, conn: Connection, rule: CouponRuleId | str, *, lock: bool = False) -> CouponRule:
        """Raises NoSuchCouponRule."""
        row = None
        if is_id(rule):
            query = "SELECT * FROM coupon_rules WHERE id = %s"
            row = await (
                await conn.execute(query + (" FOR NO KEY UPDATE" if lock else ""), [rule])
            ).fetchone()
        if row is None:
            raise NoSuchCouponRule
        return _rule(row)

    async def rules(self, conn: Connection, cursor: str | None = None, limit: int = 50) -> Page[CouponRule]:
        """Every rule, newest first."""
        check_page(cursor, limit)
        rows = await (
            await conn.execute(
                "SELECT * FROM coupon_rules WHERE %(cursor)s::uuid IS NULL OR id < %(cursor)s"
                " ORDER BY id DESC LIMIT %(limit)s + 1",
                {"cursor": cursor, "limit": limit},
            )
        ).fetchall()
        return page_of(rows, limit, _rule)

    # --- in a member's hands ---

    async def grant(
        self, t: Transaction, member: MemberId, rule: CouponRuleId | str, cause: str, *, nth: int = 1
    ) -> Coupon:
        """Give a member one coupon. The same rule, cause and nth again give the same one.

        Raises NoSuchCouponRule, KeyReused (given to somebody else for this cause), CouponsGone (switched off,
        none left, or as many as one may have), BadRequest.
        """
        if not 1 <= len(cause) <= 120 or not 1 <= nth <= 1000:
            raise BadRequest("A cause has 1–120 characters, and a number from 1 to 1000.")
        # The rule's row is what grants of it wait for: what is scarce is counted there.
        found = await self.rule(t.conn, rule, lock=True)
        before = await self._one(
            t.conn, "c.rule_id = %s AND c.cause = %s AND c.nth = %s", found.id, cause, nth
        )
        if before is not None:
            if before.member != member:
                raise KeyReused("This coupon was given to somebody else.")
            return before
        if found.status != "on" or (found.quota is not None and found.granted >= found.quota):
            raise CouponsGone
        row = await (
            await t.conn.execute(
                """
                SELECT count(*) AS held, clock_timestamp() AS now FROM coupons
                WHERE rule_id = %s AND member_id = %s AND state <> 'void'
                """,
                [found.id, member],
            )
        ).fetchone()
        assert row is not None
        if found.per_person is not None and row["held"] >= found.per_person:
            raise CouponsGone
        if found.until_at is not None and found.until_at <= row["now"]:
            raise CouponsGone
        await t.conn.execute("UPDATE coupon_rules SET granted = granted + 1 WHERE id = %s", [found.id])
        coupon = CouponId(new_id())
        await t.conn.execute(
            """
            INSERT INTO coupons (id, rule_id, member_id, cause, nth, expires_at)
            SELECT %(id)s, r.id, %(member)s, %(cause)s, %(nth)s,
                   least(r.until_at, clock_timestamp() + make_interval(days => r.days))
            FROM coupon_rules r WHERE r.id = %(rule)s
            """,
            {"id": coupon, "member": member, "cause": cause, "nth": nth, "rule": found.id},
        )
        granted = await self._one(t.conn, "c.id = %s", coupon)
        assert granted is not None
        self._tell(t, member)
        return granted

    async def void(self, t: Transaction, cause: str) -> int:
        """Take back what was granted for this cause. Returns how many were free until now; again: 0.

        One that an order holds or used stays with it; when it comes back from there, it is void.
        """
        return await self.void_all(t, [cause])

    async def void_all(self, t: Transaction, causes: Sequence[str]) -> int:
        """`void` for many causes at once."""
        return await self._void(t, "cause = ANY(%s)", list(causes)) if causes else 0

    async def void_one(self, t: Transaction, actor: Actor, coupon: CouponId) -> None:
        """Staff take one coupon back; one that an order holds or used is void when it returns from there.

        Again changes nothing. Raises Forbidden, NoSuchCoupon.
        """
        if not actor.may("member.write"):
            raise Forbidden
        if not is_id(coupon) or await self._one(t.conn, "c.id = %s", coupon) is None:
            raise NoSuchCoupon
        await self._void(t, "id = %s", coupon)

    async def free_of(self, conn: Connection, member: MemberId) -> tuple[Coupon, ...]:
        """What the member may use now, the soonest to run out first."""
        return await self._all(
            conn,
            "c.member_id = %s AND c.state = 'free' AND (c.expires_at IS NULL OR c.expires_at > clock_timestamp())"
            f" ORDER BY c.expires_at NULLS LAST, c.id LIMIT {FREE_MAX}",
            member,
        )

    async def of_member(
        self, conn: Connection, member: MemberId, cursor: str | None = None, limit: int = 50
    ) -> Page[Coupon]:
        """Every coupon of a member, newest first."""
        check_page(cursor, limit)
        found = await self._all(
            conn,
            "c.member_id = %s AND (%s::uuid IS NULL OR c.id < %s) ORDER BY c.id DESC LIMIT %s",
            member,
            cursor,
            cursor,
            limit + 1,
        )
        return Page(found[:limit], found[limit - 1].id if len(found) > limit else None)

    async def named(
        self, conn: Connection, member: MemberId, coupons: Sequence[CouponId | str]
    ) -> tuple[Coupon, ...]:
        """These coupons of the member, in this order. Raises NoSuchCoupon, also for somebody else's."""
        wanted = [coupon for coupon in coupons if is_id(coupon)]
        found = {
            one.id: one
            for one in await self._all(conn, "c.member_id = %s AND c.id = ANY(%s::uuid[])", member, wanted)
        }
        if len(wanted) != len(coupons) or any(CouponId(each) not in found for each in wanted):
            raise NoSuchCoupon
        return tuple(found[CouponId(each)] for each in wanted)

    # --- by an order ---

    async def hold(
        self, t: Transaction, member: MemberId, order: OrderId, coupons: Sequence[CouponId]
    ) -> None:
        """Free → held, all of them or none. Raises CouponUsed.

        One that ran out between quote and order is honoured as the quoted price is; that is why its end is
        not asked here.
        """
        if not coupons:
            return
        held = await t.conn.execute(
            """
            WITH locked AS MATERIALIZED (
                SELECT id FROM coupons WHERE id = ANY(%(coupons)s::uuid[]) AND member_id = %(member)s
                  AND state IN ('free', 'expired') ORDER BY id FOR NO KEY UPDATE
            )
            UPDATE coupons c SET state = 'held', order_id = %(order)s, changed_at = clock_timestamp()
            FROM locked WHERE c.id = locked.id AND c.state IN ('free', 'expired')
            """,
            {"coupons": list(coupons), "member": member, "order": order},
        )
        if held.rowcount != len(set(coupons)):
            raise CouponUsed

    async def use(self, t: Transaction, order: OrderId) -> None:
        """Held → used: the order is paid."""
        await t.conn.execute(
            "UPDATE coupons SET state = 'used', changed_at = clock_timestamp()"
            " WHERE order_id = %s AND state = 'held'",
            [order],
        )

    async def release(self, t: Transaction, orders: Sequence[OrderId]) -> int:
        """Held or used → free, or run out if its time has passed: the orders came to nothing.

        Returns how many came back; again: 0.
        """
        return await self._give_back(t, "order_id = ANY(%s::uuid[])", list(orders))

    async def let_go(self, t: Transaction, order: OrderId, coupons: Sequence[CouponId]) -> int:
        """The order goes on without these coupons: they come back as by `release`."""
        if not coupons:
            return 0
        return await self._give_back(t, "order_id = %s AND id = ANY(%s::uuid[])", order, list(coupons))

    # --- at a till ---

    async def use_at_till(
        self, t: Transaction, actor: Actor, coupon: CouponId, reference: str, amount_fen: int | None = None
    ) -> TillUse:
        """Free → used, by a sale at a till. The same reference again answers the same.

        What it takes off is the till's to work out: it alone knows its basket; more than the rule gives is
        refused. Raises Forbidden, NoSuchCoupon, CouponUsed, CouponNotGood, BadRequest, KeyReused (the
        reference was undone, or named another amount).
        """
        if not actor.may("member.write"):
            raise Forbidden
        found = await self._at_till(t.conn, coupon)
        before = await self._till_use(t.conn, found.id, reference)
        if before is not None:
            if before.undone_at is not None or before.amount_fen != amount_fen:
                raise KeyReused(
                    "This use was undone, or named another amount; give the sale another reference."
                )
            return before
        most_fen = found.rule.off_fen if found.rule.kind == "amount" else found.rule.max_off_fen
        if amount_fen is not None and most_fen is not None and amount_fen > most_fen:
            raise BadRequest(f"this coupon takes off at most {most_fen} fen", field="amount_fen")
        if found.state in ("held", "used"):
            raise CouponUsed
        clock = await (await t.conn.execute("SELECT clock_timestamp() AS now")).fetchone()
        assert clock is not None
        if found.state != "free" or not found.in_time(clock["now"]):
            raise CouponNotGood
        used = await t.conn.execute(
            "UPDATE coupons SET state = 'used', till_reference = %s, changed_at = clock_timestamp()"
            " WHERE id = %s AND state = 'free'",
            [reference, found.id],
        )
        if not used.rowcount:
            raise CouponUsed
        await t.conn.execute(
            "INSERT INTO coupon_till_uses (coupon_id, reference, amount_fen, used_by) VALUES (%s, %s, %s, %s)",
            [found.id, reference, amount_fen, actor.id],
        )
        self._tell(t, found.member)
        made = await self._till_use(t.conn, found.id, reference)
        assert made is not None
        return made

    async def undo_at_till(self, t: Transaction, actor: Actor, coupon: CouponId, reference: str) -> None:
        """The sale at the till came to nothing: the coupon comes back as by `release`. Again changes nothing.

        Raises Forbidden, NoSuchCoupon (also when this sale did not use it).
        """
        if not actor.may("member.write"):
            raise Forbidden
        found = await self._at_till(t.conn, coupon)
        undone = await t.conn.execute(
            "UPDATE coupon_till_uses SET undone_at = clock_timestamp()"
            " WHERE coupon_id = %s AND reference = %s AND undone_at IS NULL",
            [found.id, reference],
        )
        if undone.rowcount:
            await self._give_back(t, "id = %s AND till_reference = %s", found.id, reference)
        elif await self._till_use(t.conn, found.id, reference) is None:
            raise NoSuchCoupon

    # --- for the job ---

    async def expire_due(self, t: Transaction, limit: int = 500) -> int:
        """Mark free coupons that have run out."""
        done = await t.conn.execute(
            """
            UPDATE coupons SET state = 'expired', changed_at = clock_timestamp()
            WHERE id IN (
                SELECT id FROM coupons WHERE state = 'free' AND expires_at <= clock_timestamp()
                ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED)
            """,
            [limit],
        )
        return done.rowcount

    # --- parts ---

    async def _void(self, t: Transaction, where: str, value: str | list[str]) -> int:
        await t.conn.execute(
            f"SELECT 1 FROM coupons WHERE {where} ORDER BY id FOR NO KEY UPDATE",  # noqa: S608
            [value],
        )
        await t.conn.execute(
            f"UPDATE coupons SET void_after = true WHERE {where} AND state IN ('held', 'used')",  # noqa: S608
            [value],
        )
        rows = await (
            await t.conn.execute(
                f"""
                UPDATE coupons SET state = 'void', changed_at = clock_timestamp()
                WHERE {where} AND state IN ('free', 'expired') RETURNING member_id
                """,  # noqa: S608
                [value],
            )
        ).fetchall()
        for member in sorted({MemberId(str(row["member_id"])) for row in rows}):
            self._tell(t, member)
        return len(rows)

    async def _give_back(self, t: Transaction, where: str, *values: object) -> int:
        rows = await (
            await t.conn.execute(
                f"""
                WITH locked AS MATERIALIZED (
                    SELECT id FROM coupons WHERE state IN ('held', 'used') AND {where}
                    ORDER BY id FOR NO KEY UPDATE
                )
                UPDATE coupons c SET order_id = NULL, till_reference = NULL, changed_at = clock_timestamp(),
                    state = CASE WHEN c.void_after THEN 'void'
                        WHEN c.expires_at <= clock_timestamp() THEN 'expired' ELSE 'free' END
                FROM locked WHERE c.id = locked.id RETURNING c.member_id
                """,  # noqa: S608
                values,
            )
        ).fetchall()
        for member in sorted({MemberId(str(row["member_id"])) for row in rows}):
            self._tell(t, member)
        return len(rows)

    async def _at_till(self, conn: Connection, coupon: CouponId) -> Coupon:
        """The coupon, locked: orders and other tills wait."""
        if is_id(coupon):
            await conn.execute("SELECT 1 FROM coupons WHERE id = %s FOR NO KEY UPDATE", [coupon])
            found = await self._one(conn, "c.id = %s", coupon)
            if found is not None:
                return found
        raise NoSuchCoupon

    async def _till_use(self, conn: Connection, coupon: CouponId, reference: str) -> TillUse | None:
        row = await (
            await conn.execute(
                "SELECT reference, amount_fen, used_at, undone_at FROM coupon_till_uses"
                " WHERE coupon_id = %s AND reference = %s",
                [coupon, reference],
            )
        ).fetchone()
        return None if row is None else TillUse(coupon=coupon, **row)

    async def _all(self, conn: Connection, where: str, *values: object) -> tuple[Coupon, ...]:
        rows = await (await conn.execute(f"{_COUPON} WHERE {where}", values)).fetchall()
        return tuple(_coupon(row) for row in rows)

    async def _one(self, conn: Connection, where: str, *values: object) -> Coupon | None:
        found = await self._all(conn, where, *values)
        return found[0] if found else None

    def _tell(self, t: Transaction, member: MemberId) -> None:
        t.after_commit(lambda: self._notices.send(member, {"type": "coupons.changed"}))


def _check_rule(rule: CouponRuleInput) -> None:
    if rule.kind == "amount" and rule.off_fen is None:
        raise BadRequest("an amount needs off_fen", field="off_fen")
    if (rule.kind == "percent") != (rule.percent is not None):
        raise BadRequest("percent goes with the kind percent", field="percent")
    if rule.kind == "percent" and rule.off_fen is not None:
        raise BadRequest("a percentage has max_off_fen, not off_fen", field="off_fen")
    if rule.kind != "percent" and rule.max_off_fen is not None:
        raise BadRequest("max_off_fen goes with the kind percent", field="max_off_fen")
    if any(not is_id(product) for product in rule.products):
        raise BadRequest("products are named by their ids", field="products")
    for moment in (rule.from_at, rule.until_at):
        if moment is not None and (moment.tzinfo is None or not 2000 <= moment.year <= 2200):
            raise BadRequest("a time has its offset and lies between the years 2000 and 2200")
    if rule.from_at is not None and rule.until_at is not None and rule.until_at <= rule.from_at:
        raise BadRequest("until_at is not after from_at", field="until_at")


def _rule(row: dict[str, Any]) -> CouponRule:
    values = {name: row[name] for name in CouponRule.__struct_fields__}
    for name in ("from_at", "until_at"):
        if isinstance(values[name], str):
            values[name] = datetime.fromisoformat(values[name])
    values["id"] = CouponRuleId(str(row["id"]))
    values["products"] = tuple(ProductId(str(each)) for each in row["products"])
    values["stacks_with"] = tuple(row["stacks_with"])
    values["audience"] = audience_from(row["audience"])
    return CouponRule(**values)


def _coupon(row: dict[str, Any]) -> Coupon:
    return Coupon(
        id=CouponId(str(row["id"])),
        member=MemberId(str(row["member_id"])),
        rule=_rule(row["rule"]),
        state=row["state"],
        granted_at=row["granted_at"],
        expires_at=row["expires_at"],
        order=None if row["order_id"] is None else OrderId(str(row["order_id"])),
        till_reference=row["till_reference"],
        cause=row["cause"],
        nth=row["nth"],
    )
