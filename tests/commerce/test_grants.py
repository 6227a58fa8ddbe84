"""What a claim brings, what earns it, when it starts; and how all of it goes back."""

from __future__ import annotations

import asyncio
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from psycopg import errors

import commerce.claims
from commerce.benefit_terms import Benefit, BenefitInput, checked_terms
from commerce.benefits import Benefits, WindowPromised
from commerce.claims import Claims, Won
from commerce.coupons import CouponRuleInput, CouponRulePatch
from commerce.messages import ClaimBenefit
from commerce.offers import Offer
from commerce.payments import FoundReturn
from commerce.prices import NotOnSale
from commerce.refunds import Refunds
from commerce.stock import Stock
from live.archive import ArchiveDraft
from live.books import read_rows
from live.comparison import _check_grants
from membership.actor import Actor, MemberId, OrderId, ShowId, new_id
from membership.partition import show_key
from membership.refusal import BadRequest, NotFound, Refusal, Unavailable
from tests.commerce.shop_stage import HOST, OPERATOR, Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio

GIFT: dict[str, Any] = {"title": "满赠好礼", "quota": 3}


class Evening:
    """A shop with a show on air, and the parts that give."""

    def __init__(self, shop: Shop, show: ShowId) -> None:
        self.shop = shop
        self.show = show
        self.refunds = Refunds(shop.payments, shop.orders, shop.points, Stock())
        self.benefits = Benefits(shop.scripts, shop.audiences, shop.notices, shop.members.facts, shop.grants)
        self.claims = Claims(shop.scripts, shop.notices, shop.tx, shop.grants, self.refunds.give)

    async def open(self, **terms: Any) -> Benefit:
        async with self.shop.tx() as t:
            return await self.benefits.open(t, HOST, self.show, BenefitInput(**{**GIFT, **terms}))

    async def claim(
        self, benefit: Benefit, actor: Actor, key: str = "k", since: int | None = None
    ) -> Won | Refusal:
        assert actor.member is not None
        given = {} if since is None else {actor.member: since}
        [answer] = await self.claims.claim_many(self.show, benefit.id, [(actor, key)], given)
        return answer

    async def won(self, benefit: Benefit, actor: Actor, key: str = "k") -> str:
        """Claim it; the claim's id."""
        answer = await self.claim(benefit, actor, key)
        assert isinstance(answer, Won), answer
        [row] = await self.shop.rows(
            "SELECT id::text AS id FROM benefit_claims WHERE benefit_id = %s AND rank = %s",
            benefit.id,
            answer.rank,
        )
        return str(row["id"])

    async def refused(self, benefit: Benefit, actor: Actor, **given: Any) -> tuple[str, object]:
        """Claim it in vain: the word and the condition; and no counter has moved."""
        before = await self.counts(benefit)
        answer = await self.claim(benefit, actor, **given)
        assert isinstance(answer, Refusal), answer
        assert await self.counts(benefit) == before
        return answer.word, answer.details.get("condition")

    async def counts(self, benefit: Benefit) -> tuple[int, ...]:
        now = await self.benefits.counts(self.show, benefit.id)
        return now.quota, now.confirmed, now.held, now.queued

    async def paid_order(self, actor: Actor, offer: Offer, quantity: int = 1) -> OrderId:
        placed = await self.shop.buy(actor, self.show, (offer, quantity))
        await self.shop.pay(placed.order, placed.total_fen)
        return placed.order

    async def watched(self, member: MemberId, *spans: tuple[int, int]) -> None:
        """Recorded watching: from so many seconds after the start, for so many."""
        [row] = await self.shop.rows("SELECT started_at FROM shows WHERE id = %s", self.show)
        async with self.shop.tx() as t:
            for start_s, length_s in spans:
                await t.conn.execute(
                    "INSERT INTO behaviour_records (id, show_id, kind, viewer, member_id, subject, value, at)"
                    " VALUES (%s, %s, 'watch', %s, %s, 'show', %s, %s)",
                    [
                        new_id(),
                        self.show,
                        member,
                        member,
                        length_s * 1000,
                        row["started_at"] + timedelta(seconds=start_s),
                    ],
                )

    async def state_of(self, claim: str) -> str:
        [row] = await self.shop.rows("SELECT state FROM benefit_claims WHERE id = %s", claim)
        return str(row["state"])


@pytest.fixture
async def evening(shop: Shop, make_show: MakeShow) -> Evening:
    return Evening(shop, await make_show())


# --- what it brings ---


async def test_points_come_with_the_claim_once_and_go_when_it_is_recalled(evening: Evening) -> None:
    shop, buyer = evening.shop, await evening.shop.buyer()
    assert buyer.member is not None
    benefit = await evening.open(what="points", points=200)
    assert benefit.value_fen == 200  # 100 points are 1 yuan
    claim = await evening.won(benefit, buyer)
    assert isinstance(await evening.claim(benefit, buyer), Won)  # the same key again
    async with shop.tx() as t:
        assert (await shop.points.balance(t.conn, buyer.member)).active == 200
        [seen] = await evening.benefits.claims_of(t.conn, buyer.member)
        assert (seen.points, seen.state) == (200, "confirmed")
    for expected in (1, 0):  # once
        async with shop.tx() as t:
            assert await shop.grants.settle(t, [claim], "recalled") == expected
    async with shop.tx() as t:
        assert (await shop.points.balance(t.conn, buyer.member)).active == 0
    assert await evening.state_of(claim) == "recalled"


@pytest.mark.rule("semantics 2.8a")
async def test_what_was_deducted_stays_with_who_has_it(evening: Evening) -> None:
    shop, buyer = evening.shop, await evening.shop.buyer()
    assert buyer.member is not None
    claim = await evening.won(await evening.open(what="points", points=200), buyer)
    async with shop.tx() as t:
        await shop.grants.settle(t, [claim], "deducted")
        assert (await shop.points.balance(t.conn, buyer.member)).active == 200
    assert await evening.state_of(claim) == "deducted"


async def test_a_coupon_comes_with_the_claim_and_is_void_when_it_is_recalled(evening: Evening) -> None:
    shop, buyer = evening.shop, await evening.shop.buyer()
    assert buyer.member is not None
    async with shop.tx() as t:
        rule = await shop.coupons.create_rule(
            t, OPERATOR, CouponRuleInput(title="满减券", kind="amount", off_fen=500)
        )
    benefit = await evening.open(what="coupon", coupon_rule=rule.id, value_fen=500)
    claim = await evening.won(benefit, buyer)
    async with shop.tx() as t:
        [coupon] = await shop.coupons.free_of(t.conn, buyer.member)
        [seen] = await evening.benefits.claims_of(t.conn, buyer.member)
        assert (coupon.rule.id, seen.coupon) == (rule.id, coupon.id)
        await shop.grants.settle(t, [claim], "recalled")
        assert await shop.coupons.free_of(t.conn, buyer.member) == ()


async def test_the_coupons_of_many_claims_are_void_by_the_same_calls_as_one(
    evening: Evening, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = evening.shop
    async with shop.tx() as t:
        rule = await shop.coupons.create_rule(
            t, OPERATOR, CouponRuleInput(title="满减券", kind="amount", off_fen=500)
        )
    benefit = await evening.open(what="coupon", coupon_rule=rule.id, value_fen=500, quota=9)
    claims = [await evening.won(benefit, buyer) for buyer in await shop.buyers(5)]
    calls = []
    async with shop.tx() as t:
        plain = t.conn.execute

        async def execute(*given: Any) -> Any:
            calls.append(given)
            return await plain(*given)

        monkeypatch.setattr(t.conn, "execute", execute)
        assert await shop.grants.settle(t, claims[:1], "recalled") == 1
        once = len(calls)
        assert await shop.grants.settle(t, claims[1:], "recalled") == 4
        assert len(calls) == 2 * once
        monkeypatch.undo()
    assert await shop.rows("SELECT state, count(*) AS n FROM coupons GROUP BY state") == [
        {"state": "void", "n": 5}
    ]


async def test_a_coupon_that_cannot_be_given_leaves_no_claim_and_no_rank(evening: Evening) -> None:
    shop, buyer = evening.shop, await evening.shop.buyer()
    async with shop.tx() as t:
        rule = await shop.coupons.create_rule(
            t, OPERATOR, CouponRuleInput(title="满减券", kind="amount", off_fen=500)
        )
    benefit = await evening.open(what="coupon", coupon_rule=rule.id, quota=1)
    async with shop.tx() as t:
        await shop.coupons.update_rule(t, OPERATOR, rule.id, CouponRulePatch(status="off"))
    assert await evening.refused(benefit, buyer) == ("closed", None)
    assert await shop.rows("SELECT 1 FROM benefit_claims") == []
    async with shop.tx() as t:
        await shop.coupons.update_rule(t, OPERATOR, rule.id, CouponRulePatch(status="on"))
    answer = await evening.claim(benefit, buyer)
    assert isinstance(answer, Won)
    assert answer.rank == 1


async def test_only_a_rule_without_a_quota_of_its_own_can_be_given(evening: Evening) -> None:
    shop = evening.shop
    with pytest.raises(NotFound):
        await evening.open(what="coupon", coupon_rule=new_id())
    async with shop.tx() as t:
        rule = await shop.coupons.create_rule(
            t, OPERATOR, CouponRuleInput(title="限量券", kind="amount", off_fen=500, quota=5)
        )
    with pytest.raises(BadRequest, match="quota of its own"):
        await evening.open(what="coupon", coupon_rule=rule.id)


async def test_early_access_opens_the_order_to_who_has_it_until_its_time(evening: Evening) -> None:
    shop = evening.shop
    product = await shop.product(on_sale_at=datetime.now(UTC) + timedelta(days=1))
    offer = await shop.open(evening.show, product)
    lucky, other = await shop.buyer(), await shop.buyer()
    benefit = await evening.open(what="early_access", products=(product.id,))
    claim = await evening.won(benefit, lucky)
    await shop.quote(lucky, evening.show, (offer, 1))
    with pytest.raises(NotOnSale):
        await shop.quote(other, evening.show, (offer, 1))
    async with shop.tx() as t:
        await shop.grants.settle(t, [claim], "recalled")
    with pytest.raises(NotOnSale):
        await shop.quote(lucky, evening.show, (offer, 1))
    over = await evening.open(what="early_access", products=(product.id,), until=1)
    await evening.won(over, other)
    with pytest.raises(NotOnSale):
        await shop.quote(other, evening.show, (offer, 1))
    with pytest.raises(NotFound):
        await evening.open(what="early_access", products=(new_id(),))


async def test_a_free_order_sends_the_goods_money_back_up_to_its_cap(evening: Evening) -> None:
    """semantics 8: 免单 refunds the goods of one order up to a stated cap; the freight stays paid."""
    shop = evening.shop
    offer = await shop.open(evening.show, await shop.product(list_fen=12_800))
    small, large = await shop.buyer(), await shop.buyer()
    benefit = await evening.open(what="free_order", needs="order", cap_fen=20_000)
    assert benefit.value_fen == 20_000
    orders = {
        small.id: await evening.paid_order(small, offer),
        large.id: await evening.paid_order(large, offer, 2),
    }
    for buyer, expected in ((small, 12_800), (large, 20_000)):
        claim = await evening.won(benefit, buyer)
        assert isinstance(await evening.claim(benefit, buyer), Won)  # again: not twice
        [back] = await shop.rows(
            "SELECT sum(r.amount_fen)::bigint AS fen FROM payment_returns r JOIN payments p ON p.id = r.payment_id"
            " WHERE p.order_id = %s",
            orders[buyer.id],
        )
        assert back["fen"] == expected
        [grant] = await shop.rows(
            "SELECT amount_fen, order_id::text FROM benefit_grants WHERE claim_id = %s", claim
        )
        assert (grant["amount_fen"], grant["order_id"]) == (expected, orders[buyer.id])
    async with shop.tx() as t:  # a refund of the rest sends no fen twice
        await evening.refunds.lines(t, OPERATOR, orders[large.id], None, "case-1")
    [sums] = await shop.rows(
        "SELECT p.amount_fen, (SELECT sum(amount_fen) FROM payment_returns r WHERE r.payment_id = p.id)::bigint AS back"
        " FROM payments p WHERE p.order_id = %s",
        orders[large.id],
    )
    assert sums["amount_fen"] == sums["back"]


async def test_an_order_whose_money_is_all_back_gives_no_second_free_order(evening: Evening) -> None:
    """And who has it keeps nobody else's claim of the same beat waiting."""
    shop = evening.shop
    offer = await shop.open(evening.show, await shop.product(list_fen=5_000))
    had, fresh = await shop.buyer(), await shop.buyer()
    first = await evening.paid_order(had, offer)
    await evening.won(await evening.open(what="free_order", needs="order", cap_fen=20_000), had)
    second = await evening.open(what="free_order", needs="order", cap_fen=20_000)
    await evening.paid_order(fresh, offer)
    answers = await evening.claims.claim_many(evening.show, second.id, [(had, "k"), (fresh, "k")])
    assert isinstance(answers[0], Refusal)
    assert (answers[0].word, answers[0].details["condition"]) == ("not_eligible", "order")
    assert isinstance(answers[1], Won)
    assert answers[1].rank == 1
    # A gift for the same order is not for its money: what a free order sent back was paid even so.
    assert isinstance(await evening.claim(await evening.open(needs="order"), had, "another"), Won)
    [back] = await shop.rows(
        "SELECT sum(r.amount_fen)::bigint AS fen FROM payment_returns r JOIN payments p ON p.id = r.payment_id"
        " WHERE p.order_id = %s",
        first,
    )
    assert back["fen"] == 5_000


async def test_a_free_order_whose_money_went_back_elsewhere_holds_up_nobody(evening: Evening) -> None:
    shop = evening.shop
    offer = await shop.open(evening.show, await shop.product(list_fen=5_000))
    gone, fresh = await shop.buyer(), await shop.buyer()
    benefit = await evening.open(what="free_order", needs="order", cap_fen=20_000)
    order = await evening.paid_order(gone, offer)
    await evening.paid_order(fresh, offer)
    [paid] = await shop.rows("SELECT ref, amount_fen FROM payments WHERE order_id = %s", order)
    async with shop.tx() as t:  # at the provider's own desk
        await shop.payments.note_return(
            t,
            "sandbox",
            FoundReturn(ref=paid["ref"], key="desk", amount_fen=paid["amount_fen"], return_ref="r-1"),
        )
    answers = await evening.claims.claim_many(evening.show, benefit.id, [(gone, "k"), (fresh, "k")])
    assert all(isinstance(answer, Won) for answer in answers)
    rows = await shop.rows("SELECT amount_fen FROM benefit_grants ORDER BY amount_fen")
    assert [row["amount_fen"] for row in rows] == [0, 5_000]


async def test_a_free_order_gives_what_the_providers_own_desk_has_left_of_it(evening: Evening) -> None:
    shop = evening.shop
    offer, buyer = await shop.open(evening.show, await shop.product(list_fen=12_800)), await shop.buyer()
    order = await evening.paid_order(buyer, offer, 2)
    [paid] = await shop.rows("SELECT ref, amount_fen FROM payments WHERE order_id = %s", order)
    desk_fen = paid["amount_fen"] - 5_600
    async with shop.tx() as t:
        found = FoundReturn(ref=paid["ref"], key="desk", amount_fen=desk_fen, return_ref="r-1")
        await shop.payments.note_return(t, "sandbox", found)
    await evening.won(await evening.open(what="free_order", needs="order", cap_fen=20_000), buyer)
    assert await shop.rows("SELECT amount_fen FROM benefit_grants") == [{"amount_fen": 5_600}]
    [back] = await shop.rows("SELECT sum(amount_fen)::bigint AS fen FROM payment_returns")
    assert back["fen"] == paid["amount_fen"]


# --- what earns it ---


async def test_an_order_earns_one_claim_and_a_small_or_unpaid_one_none(evening: Evening) -> None:
    shop, buyer = evening.shop, await evening.shop.buyer()
    offer = await shop.open(evening.show, await shop.product(list_fen=10_000, stock=50))
    benefit = await evening.open(needs="order", min_fen=20_000, per_person=2)
    assert await evening.refused(benefit, buyer) == ("not_eligible", "order")
    await evening.paid_order(buyer, offer)  # too small
    unpaid = await shop.buy(buyer, evening.show, (offer, 2))
    assert await evening.refused(benefit, buyer) == ("not_eligible", "order")
    await shop.pay(unpaid.order, unpaid.total_fen)
    await evening.won(benefit, buyer, "one")
    assert isinstance(await evening.claim(benefit, buyer, "one"), Won)  # the same key, the same answer
    answer = await evening.claim(benefit, buyer, "two")  # its order is used
    assert isinstance(answer, Refusal)
    assert (answer.word, answer.details["condition"]) == ("not_eligible", "order")
    assert await evening.counts(benefit) == (3, 1, 0, 0)
    await evening.paid_order(buyer, offer, 3)
    await evening.won(benefit, buyer, "two")
    rows = await shop.rows("SELECT rank, order_id FROM benefit_claims ORDER BY rank")
    assert [row["rank"] for row in rows] == [1, 2]
    assert len({row["order_id"] for row in rows}) == 2


async def test_two_claims_at_once_cannot_use_one_order_twice(evening: Evening) -> None:
    shop, buyer = evening.shop, await evening.shop.buyer()
    offer = await shop.open(evening.show, await shop.product())
    benefit = await evening.open(needs="order", per_person=2)
    await evening.paid_order(buyer, offer)
    answers = await evening.claims.claim_many(evening.show, benefit.id, [(buyer, "phone"), (buyer, "pad")])
    assert [answer.rank if isinstance(answer, Won) else answer.word for answer in answers] == [
        1,
        "not_eligible",
    ]
    assert await evening.counts(benefit) == (3, 1, 0, 0)


@pytest.mark.rule("semantics 2.8a")
async def test_a_refund_that_leaves_too_little_recalls_what_the_order_earned(evening: Evening) -> None:
    shop, buyer, next_one = evening.shop, await evening.shop.buyer(), await evening.shop.buyer()
    assert buyer.member is not None
    offer = await shop.open(evening.show, await shop.product(list_fen=10_000, stock=50))
    benefit = await evening.open(needs="order", min_fen=20_000, what="points", points=300)
    order = await evening.paid_order(buyer, offer, 3)
    claim = await evening.won(benefit, buyer)
    for cause, state in (("one", "confirmed"), ("two", "recalled")):
        async with shop.tx() as t:
            await evening.refunds.lines(t, OPERATOR, order, {1: 1}, cause)
        assert await evening.state_of(claim) == state
    reasons = await shop.rows(
        "SELECT amount FROM points_entries WHERE cause = %s ORDER BY id", f"claim:{claim}"
    )
    assert [row["amount"] for row in reasons] == [300, -300]
    await evening.paid_order(next_one, offer, 2)
    answer = await evening.claim(benefit, next_one)
    assert isinstance(answer, Won)
    assert answer.rank == 2
    assert await evening.counts(benefit) == (3, 2, 0, 0)


async def test_a_whole_refund_recalls_what_the_order_earned(evening: Evening) -> None:
    shop, buyer = evening.shop, await evening.shop.buyer()
    offer = await shop.open(evening.show, await shop.product())
    benefit = await evening.open(needs="order")
    order = await evening.paid_order(buyer, offer)
    claim = await evening.won(benefit, buyer)
    async with shop.tx() as t:
        await shop.payments.refund(t, OPERATOR, order)
    assert await evening.state_of(claim) == "recalled"
    answer = await evening.claim(benefit, buyer, "again")
    assert isinstance(answer, Refusal)
    assert answer.word == "already_claimed"


async def test_an_order_refunded_between_the_question_and_the_row_gives_its_rank_back(
    evening: Evening, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, buyer, next_one = evening.shop, await evening.shop.buyer(), await evening.shop.buyer()
    offer = await shop.open(evening.show, await shop.product())
    benefit = await evening.open(needs="order", quota=1)
    order = await evening.paid_order(buyer, offer)
    await evening.paid_order(next_one, offer)
    ask = evening.claims._decide

    async def late(*args: Any) -> Any:
        async with shop.tx() as t:
            await shop.payments.refund(t, OPERATOR, order)
        return await ask(*args)

    with monkeypatch.context() as patch:
        patch.setattr(evening.claims, "_decide", late)
        assert await evening.refused(benefit, buyer) == ("not_eligible", "order")
    answer = await evening.claim(benefit, next_one)
    assert isinstance(answer, Won)
    assert answer.rank == 1


async def test_a_first_order_is_the_first_that_was_paid(evening: Evening) -> None:
    shop, old, new = evening.shop, await evening.shop.buyer(), await evening.shop.buyer()
    offer = await shop.open(evening.show, await shop.product(stock=50))
    nothing = await evening.open(first_order=True)
    with_order = await evening.open(first_order=True, needs="order", per_person=2, quota=5)
    await evening.won(nothing, new)  # none yet
    await evening.paid_order(old, offer)
    assert await evening.refused(nothing, old) == ("not_eligible", "first_order")
    await evening.paid_order(old, offer)
    await evening.won(with_order, old)
    assert (await evening.claim(with_order, old, "second")).details == {"condition": "first_order"}  # type: ignore[union-attr]
    assert await evening.counts(with_order) == (5, 1, 0, 0)


async def test_who_has_just_joined_and_what_goes_with_the_plan(evening: Evening) -> None:
    shop = evening.shop
    plan = await shop.plan()
    new, old, renewed, trying = [*[await shop.buyer() for _ in range(3)], await shop.buyer(plan.id)]
    joined = {}
    for buyer in (new, old, renewed):
        placed = await shop.join(buyer, plan.id, evening.show)
        joined[buyer.id] = placed.order
        await shop.pay(placed.order, placed.total_fen, payer=f"payer-{buyer.id}")
    await shop.rows(
        "UPDATE plan_terms SET starts_at = starts_at - interval '1 hour'"
        " WHERE member_id = ANY(%s::uuid[]) RETURNING id",
        [old.id, renewed.id],
    )
    again = await shop.join(renewed, plan.id, evening.show)
    await shop.pay(again.order, again.total_fen, payer=f"payer-{renewed.id}")
    benefit = await evening.open(newly_joined_s=1800, what="points", points=100)
    for buyer in (old, trying, renewed, await shop.buyer()):
        assert await evening.refused(benefit, await shop.again(buyer)) == ("not_eligible", "newly_joined")
    claim = await evening.won(benefit, await shop.again(new))
    async with shop.tx() as t:
        await shop.payments.refund(t, OPERATOR, joined[new.id])
    assert await evening.state_of(claim) == "recalled"


async def test_watching_is_counted_by_our_own_records_and_once_for_two_devices(evening: Evening) -> None:
    shop, buyer = evening.shop, await evening.shop.buyer()
    assert buyer.member is not None
    await shop.rows(
        "UPDATE shows SET started_at = started_at - interval '10 minutes' WHERE id = %s RETURNING id",
        evening.show,
    )
    benefit = await evening.open(watched_s=120)
    assert await evening.refused(benefit, buyer) == ("not_eligible", "watched")
    # Before the start, and twice the same minute on two devices: 60 s in all, and another 30 s.
    await evening.watched(buyer.member, (-300, 290), (0, 60), (10, 50), (100, 30))
    answer = await evening.claim(benefit, buyer)
    assert isinstance(answer, Refusal)
    assert answer.retry_ms == 30_000
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    assert await evening.refused(benefit, buyer, since=now_ms - 5_000) == ("not_eligible", "watched")
    assert isinstance(await evening.claim(benefit, buyer, since=now_ms - 31_000), Won)


def test_a_claim_cannot_say_how_long_its_sender_watched() -> None:
    assert set(ClaimBenefit.__struct_fields__) == {"id", "key", "benefit"}


async def test_a_condition_that_cannot_be_read_decides_nothing(
    evening: Evening, monkeypatch: pytest.MonkeyPatch
) -> None:
    buyer = await evening.shop.buyer()
    benefit = await evening.open(first_order=True)

    async def away(*args: object) -> None:
        raise Unavailable

    await evening.claims._fixed.get(evening.show, benefit.id)
    with monkeypatch.context() as patch:
        patch.setattr(commerce.claims, "judge", away)
        assert await evening.refused(benefit, buyer) == ("unavailable", None)
    assert isinstance(await evening.claim(benefit, buyer), Won)


async def test_after_a_crash_the_job_gives_what_the_claim_brings(
    evening: Evening, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, buyer = evening.shop, await evening.shop.buyer()
    assert buyer.member is not None
    monkeypatch.setattr(commerce.claims, "SETTLE_AFTER_MS", 0)
    offer = await shop.open(evening.show, await shop.product())
    benefit = await evening.open(needs="order", what="points", points=100)
    await evening.paid_order(buyer, offer)

    async def dead(*args: object) -> None:
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(evening.claims, "_write_and_tell", dead)
        assert (await evening.claim(benefit, buyer)).word == "unavailable"  # type: ignore[union-attr]
    for _ in range(2):  # again changes nothing
        await evening.claims.settle(evening.show)
    [row] = await shop.rows(
        "SELECT sum(amount)::bigint AS points FROM points_entries WHERE reason = 'benefit'"
    )
    assert row["points"] == 100
    assert isinstance(await evening.claim(benefit, buyer), Won)


# --- when ---


async def test_before_its_start_nobody_gets_it_and_everybody_is_told_how_long(evening: Evening) -> None:
    shop, buyer = evening.shop, await evening.shop.buyer()
    benefit = await evening.open(starts_in_s=60, seconds=120)
    assert benefit.starts_at is not None
    assert (benefit.closes_at, benefit.starts_at) == (benefit.opened_at + 180_000, benefit.opened_at + 60_000)
    answer = await evening.claim(benefit, buyer)
    assert isinstance(answer, Refusal)
    assert answer.word == "not_started"
    assert answer.retry_ms is not None
    assert 0 < answer.retry_ms <= 60_000
    assert await evening.counts(benefit) == (3, 0, 0, 0)
    found = await shop.redis.hget(show_key(evening.show, "states"), f"benefit:{benefit.id}")
    assert msgspec.json.decode(found)[0]["d"]["starts_at"] == benefit.starts_at
    [told] = await shop.events(evening.show, "benefit.opened")
    assert told["starts_at"] == benefit.starts_at
    # An earlier start is in the viewer's favour; the same claim passes then.
    await shop.rows(
        "UPDATE benefits SET starts_at = now() - interval '1 s', version = version + 1,"
        " changed_at = now() - interval '1 h' WHERE id = %s RETURNING id",
        benefit.id,
    )
    async with shop.tx() as t:
        assert await evening.benefits.agree(t, evening.show) == 1
    assert isinstance(await evening.claim(benefit, buyer), Won)


@pytest.mark.rule("semantics 2.9a")
async def test_a_promised_window_is_kept_by_the_host_and_by_the_tables(evening: Evening) -> None:
    shop, buyer = evening.shop, await evening.shop.buyer()
    benefit = await evening.open(starts_in_s=10, seconds=120, quota=1)
    with pytest.raises(WindowPromised):
        async with shop.tx() as t:
            await evening.benefits.close(t, HOST, benefit.id)
    for change in (
        "closes_at = closes_at - interval '1 s'",
        "starts_at = starts_at + interval '1 s'",
        "watched_s = 60",
        "min_fen = 1",
        "body = 'x'",
        "first_order = true",
        "points = 1",
    ):
        with pytest.raises((errors.RestrictViolation, errors.CheckViolation)):
            await shop.rows(f"UPDATE benefits SET {change} WHERE id = %s RETURNING id", benefit.id)  # type: ignore[arg-type]
    await shop.rows(
        "UPDATE benefits SET closes_at = closes_at + interval '1 s' WHERE id = %s RETURNING id", benefit.id
    )
    async with shop.tx() as t:  # a pause with a reason is honest
        await evening.benefits.pause(t, HOST, benefit.id, "系统核对中")
    # What is gone need not stay open.
    spent = await evening.open(seconds=120, quota=1)
    await evening.won(spent, buyer)
    async with shop.tx() as t:
        assert (await evening.benefits.close(t, HOST, spent.id)).status == "closed"


# --- terms ---


@pytest.mark.parametrize(
    ("terms", "why"),
    [
        ({"starts_in_s": 9}, "10 to 300"),
        ({"what": "points"}, "points"),
        ({"points": 5}, "what: points"),
        ({"what": "coupon"}, "coupon_rule"),
        ({"what": "early_access"}, "products"),
        ({"what": "free_order", "needs": "order"}, "cap_fen"),
        ({"what": "free_order", "cap_fen": 100}, "needs an order"),
        ({"cap_fen": 100}, "free_order"),
        ({"until": 5}, "until"),
        ({"min_fen": 5}, "min_fen"),
        ({"needs": "join", "newly_joined_s": 60}, "joining"),
        ({"needs": "join", "watched_s": 60}, "joining"),
        ({"needs": "join", "starts_in_s": 60}, "no countdown"),
        ({"what": "points", "points": 100, "value_fen": 5_900}, "follows"),
    ],
)
def test_terms_that_do_not_go_together_are_refused(terms: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        checked_terms(BenefitInput(**{**GIFT, **terms}))


@pytest.mark.parametrize("needs", ["nothing", "join", "order"])
@pytest.mark.parametrize("what", ["gift", "coupon", "points", "early_access", "free_order"])
def test_whatever_it_brings_goes_with_whatever_it_needs(what: str, needs: str) -> None:
    brings: dict[str, dict[str, Any]] = {
        "gift": {},
        "coupon": {"coupon_rule": new_id()},
        "points": {"points": 100},
        "early_access": {"products": (new_id(),)},
        "free_order": {"cap_fen": 100},
    }
    terms = BenefitInput(**{**GIFT, **brings[what], "what": what, "needs": needs})
    if what == "free_order" and needs != "order":
        with pytest.raises(BadRequest):
            checked_terms(terms)
    else:
        assert checked_terms(terms).what == what


@pytest.mark.rule("semantics 2.8a")
async def test_joining_brings_points_too_and_they_go_with_the_plan(evening: Evening) -> None:
    shop = evening.shop
    plan, early, late = await shop.plan(), await shop.buyer(), await shop.buyer()
    orders = {}
    placed = await shop.join(early, plan.id, evening.show)
    orders[early.id] = placed.order
    await shop.pay(placed.order, placed.total_fen, payer="one")
    await evening.open(needs="join", what="points", points=500)
    placed = await shop.join(late, plan.id, evening.show)
    orders[late.id] = placed.order
    await shop.pay(placed.order, placed.total_fen, payer="two")
    for buyer in (early, late):
        assert buyer.member is not None
        async with shop.tx() as t:
            assert (await shop.points.balance(t.conn, buyer.member)).active == 500
            await shop.payments.refund(t, OPERATOR, orders[buyer.id])
            assert (await shop.points.balance(t.conn, buyer.member)).active == 0


async def test_a_benefit_for_a_first_order_and_joining_asks_both(evening: Evening) -> None:
    shop = evening.shop
    plan, old, new = await shop.plan(), await shop.buyer(), await shop.buyer()
    offer = await shop.open(evening.show, await shop.product())
    await evening.paid_order(old, offer)
    benefit = await evening.open(needs="join", first_order=True)
    ranks = []
    for buyer in (old, new):
        placed = await shop.join(buyer, plan.id, evening.show)
        recorded = await shop.pay(placed.order, placed.total_fen, payer=f"payer-{buyer.id}")
        ranks.append(recorded.claim.rank if recorded.claim else None)
    assert ranks == [None, 1]
    assert await evening.counts(benefit) == (3, 1, 0, 0)


# --- who joins ---


@pytest.mark.rule("semantics 2.1a")
@pytest.mark.parametrize("was", ["guest", "registered", "trial", "lapsed"])
async def test_a_first_paid_start_is_one_whoever_they_were(evening: Evening, was: str) -> None:
    shop, plan = evening.shop, await evening.shop.plan()
    benefit = await evening.open(needs="join")
    if was == "guest":
        async with shop.tx() as t:  # nobody we can name takes no seat
            assert await shop.seats.take(t, shop.guest(), evening.show) is None
    buyer = await shop.buyer(plan.id if was == "trial" else None)
    if was == "lapsed":
        placed = await shop.join(buyer, plan.id)
        await shop.pay(placed.order, placed.total_fen)
        await shop.rows(
            "UPDATE plan_terms SET starts_at = starts_at - interval '2 years', ends_at = ends_at - interval '2 years'"
            " WHERE member_id = %s RETURNING id",
            buyer.id,
        )
    placed = await shop.join(await shop.again(buyer), plan.id, evening.show)
    assert (await evening.counts(benefit))[2] == 1  # held
    recorded = await shop.pay(placed.order, placed.total_fen)
    assert recorded.claim is not None
    assert recorded.claim.rank == 1


@pytest.mark.rule("semantics 2.1b")
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("renewals", [False, True])
async def test_a_renewal_counts_only_where_that_is_switched_on(
    evening: Evening, renewals: bool, early: bool
) -> None:
    shop, plan, buyer = evening.shop, await evening.shop.plan(), await evening.shop.buyer()
    assert buyer.member is not None
    first = await shop.join(buyer, plan.id)
    await shop.pay(first.order, first.total_fen)
    buyer = await shop.again(buyer)
    benefit = None if early else await evening.open(needs="join", renewals=renewals)
    placed = await shop.join(buyer, plan.id, evening.show)
    if benefit is not None:
        assert (await evening.counts(benefit))[2] == renewals
    await shop.pay(placed.order, placed.total_fen)
    if benefit is None:
        benefit = await evening.open(needs="join", renewals=renewals)
    async with shop.tx() as t:
        claims = await evening.benefits.claims_of(t.conn, MemberId(buyer.id))
    assert [claim.rank for claim in claims] == ([1] if renewals else [])
    assert await evening.counts(benefit) == (3, int(renewals), 0, 0)
    with pytest.raises(BadRequest):
        await evening.open(renewals=True)


@pytest.mark.rule("semantics 2.4b", "M18")
async def test_the_providers_own_paid_time_decides_no_rank(evening: Evening) -> None:
    shop, plan = evening.shop, await evening.shop.plan()
    await evening.open(needs="join")
    ranks = []
    for minutes in (5, 60):  # who is recorded second says to have paid an hour ago
        buyer = await shop.buyer()
        placed = await shop.join(buyer, plan.id, evening.show)
        async with shop.tx() as t:
            recorded = await shop.payments.record(
                t,
                "sandbox",
                new_id(),
                placed.order,
                placed.total_fen,
                f"payer-{buyer.id}",
                datetime.now(UTC) - timedelta(minutes=minutes),
            )
        assert recorded.claim is not None
        ranks.append(recorded.claim.rank)
    assert ranks == [1, 2]


@pytest.mark.rule("semantics 2.7b")
async def test_the_same_address_is_only_marked_for_who_ships(evening: Evening) -> None:
    shop = evening.shop
    one, two, other = [await shop.buyer() for _ in range(3)]
    async with shop.tx() as t:
        assert two.member is not None
        await t.conn.execute("UPDATE addresses SET detail = ' 文三路１号' WHERE member_id = %s", [two.member])
        await t.conn.execute(
            "UPDATE addresses SET detail = '文二路 7 号' WHERE member_id = %s", [other.member]
        )
    benefit = await evening.open()
    for buyer in (one, two, other):
        await evening.won(benefit, buyer)  # refused to nobody
    async with shop.tx() as t:
        found = await evening.benefits.claims(t.conn, benefit.id)
        [own] = await evening.benefits.claims_of(t.conn, two.member)
    assert [claim.shares_address for claim in found] == [True, True, False]
    assert not own.shares_address


# --- many at once ---


@pytest.mark.rule("M16")
async def test_of_two_hundred_who_grab_fifty_over_two_nodes_fifty_get_one_each(evening: Evening) -> None:
    shop = evening.shop
    benefit = await evening.open(quota=50, what="points", points=10)
    buyers = await shop.buyers(200)
    nodes = [Claims(shop.scripts, shop.notices, shop.tx, shop.grants) for _ in range(2)]

    async def grab(number: int, buyer: Actor) -> list[Won | Refusal]:
        return list(
            await asyncio.gather(  # two devices, on two nodes, at once
                *(
                    _one(
                        nodes[(number + device) % 2],
                        evening.show,
                        benefit,
                        buyer,
                        f"{buyer.id}-{device}"[:64],
                    )
                    for device in range(2)
                )
            )
        )

    answers = await asyncio.gather(*(grab(number, buyer) for number, buyer in enumerate(buyers)))
    won = [[answer for answer in pair if isinstance(answer, Won)] for pair in answers]
    assert sorted(len(each) for each in won) == [0] * 150 + [1] * 50
    assert sorted(each[0].rank for each in won if each) == list(range(1, 51))
    words = {answer.word for pair in answers for answer in pair if isinstance(answer, Refusal)}
    assert words <= {"sold_out", "already_claimed"}
    [row] = await shop.rows("SELECT count(*) AS lots, sum(amount)::bigint AS points FROM points_entries")
    assert (row["lots"], row["points"]) == (50, 500)


async def _one(claims: Claims, show: ShowId, benefit: Benefit, buyer: Actor, key: str) -> Won | Refusal:
    [answer] = await claims.claim_many(show, benefit.id, [(buyer, key)])
    return answer


# --- the books ---


class _PutBackError(Exception):
    """What a hand changed is put back."""


async def test_the_books_agree_and_name_what_a_hand_changed(evening: Evening) -> None:
    shop = evening.shop
    offer = await shop.open(evening.show, await shop.product())
    one, two = await shop.buyer(), await shop.buyer()
    order = await evening.paid_order(one, offer)
    kept = await evening.won(await evening.open(what="points", points=100), one)
    gone = await evening.won(await evening.open(what="points", points=50), two)
    await evening.won(await evening.open(what="free_order", needs="order", cap_fen=500), one, "another")
    async with shop.tx() as t:
        await shop.grants.settle(t, [gone], "recalled")

    async def named() -> list[str]:
        async with shop.tx() as t:
            books = await read_rows(t.conn, evening.show, ArchiveDraft(io.BytesIO(), Path("draft")))
        return [str(each) for each in _check_grants(books)]

    assert await named() == []
    changes = [
        (
            "UPDATE points_entries SET amount = 99 WHERE cause = %s AND kind = 'earn'",
            f"claim:{kept}",
            "points",
        ),
        ("UPDATE benefit_grants SET undone_at = now() WHERE claim_id = %s", kept, "what it brought"),
        ("UPDATE benefit_grants SET undone_at = NULL WHERE claim_id = %s", gone, "what it brought"),
        ("DELETE FROM benefit_grants WHERE claim_id = %s", kept, "what it brings"),
        (
            "UPDATE order_refunds SET money_fen = money_fen - 1 WHERE order_id = %s",
            order,
            "money of the order",
        ),
    ]
    for change, value, word in changes:
        with pytest.raises(_PutBackError):
            async with shop.tx() as t:
                await t.conn.execute("SET LOCAL session_replication_role = replica")
                assert (await t.conn.execute(change, [value])).rowcount == 1, change  # type: ignore[arg-type]
                books = await read_rows(t.conn, evening.show, ArchiveDraft(io.BytesIO(), Path("draft")))
                assert any(word in str(each) for each in _check_grants(books)), change
                raise _PutBackError
    assert await named() == []


async def test_claims_and_refunds_at_once_over_two_nodes_leave_no_claim_without_its_order(
    evening: Evening,
) -> None:
    shop = evening.shop
    offer = await shop.open(evening.show, await shop.product(stock=50))
    buyers = [await shop.buyer() for _ in range(8)]
    orders = {buyer.id: await evening.paid_order(buyer, offer) for buyer in buyers}
    benefit = await evening.open(needs="order", per_person=2, quota=16, what="free_order", cap_fen=1_000)
    nodes = [Claims(shop.scripts, shop.notices, shop.tx, shop.grants, evening.refunds.give) for _ in range(2)]

    async def refund(buyer: Actor) -> None:
        async with shop.tx() as t:
            await shop.payments.refund(t, OPERATOR, orders[buyer.id])

    await asyncio.gather(
        *(
            _one(node, evening.show, benefit, buyer, f"k{number}")
            for number, node in enumerate(nodes)
            for buyer in buyers
        ),
        *(refund(buyer) for buyer in buyers[:4]),
    )
    rows = await shop.rows(
        """
        SELECT c.member_id::text AS member, c.state, o.state AS order_state, p.amount_fen AS paid,
            (SELECT sum(amount_fen) FROM payment_returns r WHERE r.payment_id = p.id)::bigint AS back
        FROM benefit_claims c JOIN orders o ON o.id = c.order_id JOIN payments p ON p.order_id = o.id
        """
    )
    assert len({row["member"] for row in rows}) == len(rows)  # one order earns one
    assert {buyer.id for buyer in buyers[4:]} <= {
        row["member"] for row in rows if row["state"] == "confirmed"
    }
    for row in rows:
        is_refunded = row["order_state"] == "refunded"
        assert row["state"] == ("recalled" if is_refunded else "confirmed")
        assert row["back"] == (row["paid"] if is_refunded else 1_000)
    assert (await evening.counts(benefit))[1] == len(rows)
