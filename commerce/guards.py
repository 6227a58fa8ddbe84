"""Guards: what may not be opened, raised, priced or saved, or only with a second person's word.

One call stands at each door: an offer, a benefit, a raise, a price, a coupon, a plan. It says yes by returning.
A refusal names the rule and what to do next; one that a second person may lift carries what to ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from commerce.approvals import Approvals, Ask, Broken, NeedsApproval, OverBudget, digest_of
from commerce.budgets import Budgets, piece_of, yuan
from commerce.payment_health import PaymentsDown, read_health
from membership.actor import Actor, BenefitId, ProductId, ShowId
from membership.audience import Audience
from membership.moment import in_ms
from membership.refusal import Refusal
from membership.transaction import Connection, Transaction, lock

if TYPE_CHECKING:
    from commerce.coupons import CouponRule
    from commerce.incidents import Incidents

REBATE_BASE_PERMILLE = 10  # a point a yuan, a fen a point
MEASURED_DAYS = 90
MEASURED_FROM_FEN = 1_000_000  # of fewer sales, the share that benefits cost says nothing


class NoPromo(Refusal):
    """The product is marked no_promo, as infant formula is: nothing promotes it."""

    code = "no_promo"

    @classmethod
    def of(cls, product: str, name: str, use: str) -> NoPromo:
        """The refusal that names the rule and the product."""
        return cls(
            f"{name} is marked no_promo, as infant formula is: it takes no part in {use}."
            " Choose another product, or sell it at its own price.",
            rule="no_promo",
            product=product,
        )


class OverRebateCap(Refusal):
    """With this, the rules would give back more of each yuan than the house allows."""

    code = "over_rebate_cap"


class Guards:
    """`approve_above_fen`: what costs more than that needs a second person; 0 is never."""

    def __init__(
        self,
        approvals: Approvals,
        budgets: Budgets,
        incidents: Incidents,
        *,
        provider: str = "sandbox",
        approve_above_fen: int = 0,
        rebate_cap_percent: int = 10,
    ) -> None:
        self._approvals = approvals
        self._budgets = budgets
        self._incidents = incidents
        self._provider = provider
        self._approve_above_fen = approve_above_fen
        self._rebate_cap_permille = rebate_cap_percent * 10

    async def check_selling(self, conn: Connection) -> None:
        """Nothing begins while the switch for money is on. First in a transaction. Raises MoneyPaused."""
        await self._incidents.check(conn)

    async def check_offer(
        self,
        t: Transaction,
        actor: Actor,
        show: ShowId,
        product: ProductId,
        kind: str,
        *,
        flash_fen: int | None,
        quota: int | None,
        per_person: int | None,
        seconds: int | None,
        audience: Audience,
    ) -> None:
        """An offer that is to open. Raises PaymentsDown, NeedsApproval."""
        if kind != "flash" or flash_fen is None:
            return
        health = await read_health(t.conn, self._provider)
        if health.state != "ok":
            raise PaymentsDown(
                "Payments do not come through now, so no flash sale is started. Look at the payments on the panel;"
                " the incident switch prolongs the holds of those who wait.",
                state=health.state,
                waiting=health.waiting,
            )
        row = await self._product(t.conn, product)
        broken = _below_cost(row, flash_fen)
        cut_fen = (row["list_fen"] - flash_fen) * (quota or 0)
        broken += self._above_limit(f"product:{product}", cut_fen, "The price cuts come to")
        await self._settle(
            t,
            actor,
            Ask(
                act="offer.open",
                subject=f"product:{product}",
                show=show,
                title=f"{row['name']} · {yuan(flash_fen)} × {quota}",
                digest=digest_of(
                    "offer.open", show, product, kind, flash_fen, quota, per_person, seconds, audience
                ),
                rules=tuple(broken),
            ),
        )

    async def check_benefit(self, t: Transaction, actor: Actor, benefit: BenefitId) -> None:
        """A benefit whose row is written and that is to open: a refusal takes the row back with it.

        Raises NoPromo, NeedsApproval, OverBudget.
        """
        row = await self._benefit(t.conn, benefit)
        await self._refuse_promoted(t.conn, row["products"], "a benefit")
        piece_fen = piece_of(row, await self._coupon_fen(t.conn, row["coupon_rule"]))
        await self._budgets.lock(t.conn)
        await self._budgets.note(t.conn, benefit, piece_fen)
        terms = {name: row[name] for name in _BENEFIT_TERMS}
        terms["until"] = None if row["until_at"] is None else in_ms(row["until_at"])
        for name in ("starts_at", "closes_at"):  # as spans: the moment of opening is new with each try
            terms[name] = None if row[name] is None else row[name] - row["opened_at"]
        await self._settle(
            t,
            actor,
            Ask(
                act="benefit.open",
                subject=f"show:{row['show_id']}",
                show=ShowId(row["show_id"]),
                title=f"{row['title']} · {yuan(piece_fen)} × {row['quota']}",
                digest=digest_of("benefit.open", row["show_id"], piece_fen, _plain(terms)),
                rules=await self._broken_by(t.conn, benefit, "this benefit", piece_fen * row["quota"]),
            ),
        )

    async def check_raise(self, t: Transaction, actor: Actor, benefit: BenefitId, before: int) -> None:
        """A benefit whose new quota is written. Raises NeedsApproval, OverBudget."""
        row = await self._benefit(t.conn, benefit)
        piece_fen = row["piece_fen"] if row["piece_fen"] is not None else row["value_fen"]
        await self._budgets.lock(t.conn)
        await self._settle(
            t,
            actor,
            Ask(
                act="benefit.raise",
                subject=f"benefit:{benefit}",
                show=ShowId(row["show_id"]),
                title=f"{row['title']} · {before} → {row['quota']}",
                digest=digest_of("benefit.raise", benefit, row["quota"]),
                rules=await self._broken_by(t.conn, benefit, f"benefit:{benefit}", piece_fen * row["quota"]),
            ),
        )

    async def check_price(
        self,
        t: Transaction,
        actor: Actor,
        product: ProductId,
        unit_fen: int,
        audience: Audience,
        from_at: datetime,
        until_at: datetime | None,
        min_quantity: int = 1,
    ) -> None:
        """A line of a price list that is to be added. Raises NeedsApproval."""
        row = await self._product(t.conn, product)
        await self._settle(
            t,
            actor,
            Ask(
                act="price.add",
                subject=f"product:{product}",
                show=None,
                title=f"{row['name']} · {yuan(unit_fen)}",
                digest=digest_of("price.add", product, unit_fen, audience, from_at, until_at, min_quantity),
                rules=tuple(_below_cost(row, unit_fen)),
            ),
        )

    async def check_product(
        self,
        t: Transaction,
        actor: Actor,
        product: ProductId,
        before: tuple[int, int | None, int | None] | None,
    ) -> None:
        """A product whose row is written: its prices cover its cost. `before`: list_fen, member_fen and cost_fen
        as they were; what was so before is not asked for again. Raises NeedsApproval."""
        row = await self._product(t.conn, product)
        now = (row["list_fen"], row["member_fen"], row["own_cost_fen"])
        if now == before:
            return
        lowest = min(price for price in now[:2] if price is not None)
        await self._settle(
            t,
            actor,
            Ask(
                act="product.price",
                subject=f"product:{row['sku']}",
                show=None,
                title=f"{row['name']} · {yuan(lowest)}",
                digest=digest_of("product.price", row["sku"], now),
                rules=tuple(_below_cost({**row, "id": row["sku"]}, lowest)),
            ),
        )

    async def check_coupon(
        self,
        t: Transaction,
        actor: Actor,
        *,
        title: str,
        products: Sequence[ProductId],
        most_fen: int | None,
        quota: int | None,
        terms: object,
    ) -> None:
        """A coupon's rule that is to be saved. `most_fen`: the most that one takes off, if anything bounds it.
        Without a `quota` the benefits that give such coupons bound them. Raises NoPromo, NeedsApproval."""
        await self._refuse_promoted(t.conn, products, "a coupon")
        broken = self._above_limit("coupon", (most_fen or 0) * (quota or 0), "Such coupons come to")
        await self._settle(
            t,
            actor,
            Ask(
                act="coupon.rule",
                subject="coupon",
                show=None,
                title=title,
                digest=digest_of("coupon.rule", terms),
                rules=tuple(broken),
            ),
        )

    async def check_coupons_given(
        self, t: Transaction, actor: Actor, rule: CouponRule, members: Sequence[str], cause: str
    ) -> None:
        """Coupons that staff are to give away. A rule with a quota was asked about when it was saved; of one
        without, all that were given and are to be given count. Raises NeedsApproval."""
        if rule.quota is not None:
            return
        whole_fen = (rule.off_fen or rule.max_off_fen or 0) * (rule.granted + len(members))
        broken = self._above_limit("coupon", whole_fen, "Without a quota, such coupons come to")
        await self._settle(
            t,
            actor,
            Ask(
                act="coupon.give",
                subject=f"coupon_rule:{rule.id}",
                show=None,
                title=f"{rule.title} × {len(members)}",
                digest=digest_of("coupon.give", rule.id, sorted(members), cause),
                rules=tuple(broken),
            ),
        )

    async def check_plan(self, conn: Connection, points_bonus_percent: int) -> None:
        """A plan that is to be on sale. Raises OverRebateCap."""
        await self._check_rebate(conn, plan_percent=points_bonus_percent)

    async def check_campaign(
        self, conn: Connection, percent: int, from_at: datetime, until_at: datetime, *, adds: bool = True
    ) -> None:
        """A time with more points that is to be saved. Raises OverRebateCap."""
        await self._check_rebate(conn, campaign=(percent, from_at, until_at, adds))

    # --- parts ---

    async def _settle(self, t: Transaction, actor: Actor, ask: Ask) -> None:
        if not ask.rules or await self._approvals.use(t, actor, ask) is not None:
            return
        refusal = OverBudget if all(each.rule == "over_budget" for each in ask.rules) else NeedsApproval
        raise refusal(
            " ".join(each.text for each in ask.rules), ask=ask, rules=msgspec.to_builtins(ask.rules)
        )

    async def _broken_by(
        self, conn: Connection, benefit: BenefitId, subject: str, whole_fen: int
    ) -> tuple[Broken, ...]:
        broken = self._above_limit(subject, whole_fen, "This gift comes to")
        return (*broken, *await self._budgets.broken_by(conn, benefit))

    def _above_limit(self, subject: str, whole_fen: int, words: str) -> list[Broken]:
        limit_fen = self._approve_above_fen
        if not limit_fen or whole_fen <= limit_fen:
            return []
        return [
            Broken(
                rule="above_limit",
                subject=subject,
                fen=whole_fen,
                limit_fen=limit_fen,
                text=f"{words} {yuan(whole_fen)}, above {yuan(limit_fen)}.",
            )
        ]

    async def _product(self, conn: Connection, product: ProductId) -> dict[str, Any]:
        row = await (
            await conn.execute(
                "SELECT id::text AS id, sku, name, list_fen, member_fen, cost_fen AS own_cost_fen,"
                " piece_cost(p) AS cost_fen FROM products p WHERE id = %s",
                [product],
            )
        ).fetchone()
        assert row is not None
        return row

    async def _benefit(self, conn: Connection, benefit: BenefitId) -> dict[str, Any]:
        row = await (
            await conn.execute(
                "SELECT b.*, c.piece_fen FROM benefits b LEFT JOIN benefit_costs c ON c.benefit_id = b.id"
                " WHERE b.id = %s",
                [benefit],
            )
        ).fetchone()
        assert row is not None
        return row

    async def _coupon_fen(self, conn: Connection, rule: object) -> int:
        """The most that one coupon of a rule takes off. Freight, and a share without a bound, are not known."""
        if rule is None:
            return 0
        row = await (
            await conn.execute(
                "SELECT coalesce(off_fen, max_off_fen, 0) AS most FROM coupon_rules WHERE id = %s", [rule]
            )
        ).fetchone()
        return 0 if row is None else int(row["most"])

    async def _refuse_promoted(self, conn: Connection, products: Sequence[object], use: str) -> None:
        if not products:
            return
        row = await (
            await conn.execute(
                "SELECT id::text AS id, name FROM products WHERE id = ANY(%s::uuid[]) AND no_promo LIMIT 1",
                [[str(product) for product in products]],
            )
        ).fetchone()
        if row is not None:
            raise NoPromo.of(row["id"], row["name"], use)

    async def _check_rebate(
        self,
        conn: Connection,
        *,
        plan_percent: int = 0,
        campaign: tuple[int, datetime, datetime, bool] | None = None,
    ) -> None:
        await lock(conn, "rebate")
        found = await (
            await conn.execute("SELECT max(points_bonus_percent) AS most FROM plans WHERE on_sale")
        ).fetchone()
        plans = int(found["most"] or 0) if found is not None else 0
        cursor = await conn.execute(
            "SELECT percent, from_at, until_at, adds FROM points_campaigns WHERE until_at > clock_timestamp()"
        )
        campaigns = [
            (row["percent"], row["from_at"], row["until_at"], row["adds"]) for row in await cursor.fetchall()
        ]
        before = plans + _most_at_once(campaigns)
        with_it = [*campaigns, campaign] if campaign is not None else campaigns
        after = max(plans, plan_percent) + _most_at_once(with_it)
        benefits_permille = await self._measured(conn)
        points_permille = -(-REBATE_BASE_PERMILLE * (100 + after) // 100)
        rebate_permille = points_permille + benefits_permille
        if after > before and rebate_permille > self._rebate_cap_permille:
            raise OverRebateCap(
                f"With this, up to {rebate_permille / 10:g} % of what is paid for goods would be given back:"
                f" {points_permille / 10:g} % in points, {benefits_permille / 10:g} % in benefits and coupons"
                f" (measured over {MEASURED_DAYS} days). The house allows {self._rebate_cap_permille / 10:g} %."
                " Lower the bonus, or end another campaign first.",
                rebate_permille=rebate_permille,
                cap_permille=self._rebate_cap_permille,
                parts={"points": points_permille, "benefits": benefits_permille},
            )

    async def _measured(self, conn: Connection) -> int:
        """What benefits and coupons have cost, of a thousand paid for goods; 0 while too little was sold."""
        row = await (
            await conn.execute(
                """
                SELECT coalesce(sum(goods_fen - coupon_fen - points_fen), 0)::bigint AS goods,
                    coalesce(sum(coupon_fen), 0)::bigint AS coupons,
                    (SELECT coalesce(sum(coalesce(c.piece_fen, b.value_fen)), 0)::bigint
                     FROM benefit_claims k JOIN benefits b ON b.id = k.benefit_id
                     LEFT JOIN benefit_costs c ON c.benefit_id = b.id
                     WHERE k.state = 'confirmed' AND b.what <> 'coupon'
                       AND k.claimed_at > now() - make_interval(days => %(days)s)) AS benefits
                FROM orders WHERE kind = 'goods' AND state <> 'refunded'
                    AND paid_at > now() - make_interval(days => %(days)s)
                """,
                {"days": MEASURED_DAYS},
            )
        ).fetchone()
        assert row is not None
        if row["goods"] < MEASURED_FROM_FEN:
            return 0
        return int(-(-(row["benefits"] + row["coupons"]) * 1000 // row["goods"]))


# What an approval of a benefit is bound to, with its times; its id is new with each try.
_BENEFIT_TERMS = (
    "title",
    "body",
    "what",
    "value_fen",
    "quota",
    "per_person",
    "needs",
    "audience",
    "seat_s",
    "coupon_rule",
    "points",
    "products",
    "cap_fen",
    "min_fen",
    "newly_joined_s",
    "watched_s",
    "first_order",
    "renewals",
)


def _plain(terms: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in terms.items()}


def _below_cost(row: dict[str, Any], price_fen: int) -> list[Broken]:
    cost_fen = row["cost_fen"]
    if cost_fen is None or price_fen >= cost_fen:
        return []
    return [
        Broken(
            rule="below_cost",
            subject=f"product:{row['id']}",
            fen=cost_fen - price_fen,
            limit_fen=cost_fen,
            text=f"{row['name']} would be sold at {yuan(price_fen)}, below its cost of {yuan(cost_fen)}.",
        )
    ]


def _most_at_once(campaigns: Sequence[tuple[int, datetime, datetime, bool]]) -> int:
    """The highest sum of percents that holds at any moment; of those that do not add, one counts."""
    most = 0
    for _, moment, _, _ in campaigns:  # the sum rises only where one begins
        running = [each for each in campaigns if each[1] <= moment < each[2]]
        adding = sum(percent for percent, _, _, adds in running if adds)
        alone = max((percent for percent, _, _, adds in running if not adds), default=0)
        most = max(most, adding + alone)
    return most
