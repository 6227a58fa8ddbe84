"""The zero-difference close of one evening on which everything happened at once; and what it says of a hand since."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from commerce.benefit_terms import BenefitInput
from commerce.claims import Won
from live import brand
from live.closing import in_words
from live.engines import Addresses
from membership.actor import Actor, BenefitId, MemberId, new_id
from membership.partition import show_key
from tests.live.api import Caller, Shop, open_shop
from tests.live.test_closing import ADDRESS, Evening, begin

pytestmark = pytest.mark.anyio


@pytest.fixture
async def shop(engines: Addresses, fresh_database_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(engines, fresh_database_url, tmp_path) as opened:
        yield opened


class Stage:
    """The sample brand's evening with goods of every kind, and the acts of it over the API."""

    def __init__(self, evening: Evening, owner: Caller, server: Caller) -> None:
        self.evening = evening
        self.shop = evening.shop
        self.parts = evening.parts
        self.show = evening.show
        self.owner = owner
        self.server = server
        self.addresses: dict[str, str] = {}
        self.urls: dict[str, str] = {}  # order -> the provider's page
        self.pins: dict[str, str] = {}  # product -> offer, of the three that are shown

    async def offer(self, product: str, **terms: Any) -> str:
        body = {"product": product, **terms}
        return str((await self.owner.ok("POST", f"/v1/shows/{self.show}/offers", body))["id"])

    async def pin(self, product: str) -> str:
        """The product's open pin; a fourth puts the oldest out of view."""
        if product not in self.pins:
            if len(self.pins) == 3:
                del self.pins[next(iter(self.pins))]
            self.pins[product] = await self.offer(product)
        return self.pins[product]

    async def product(self, sku: str, list_fen: int, **given: Any) -> str:
        body = {"sku": sku, "name": sku, "list_fen": list_fen, **given}
        return str((await self.owner.ok("POST", "/v1/products", body))["id"])

    async def benefit(self, **terms: Any) -> str:
        async with self.parts.database.transaction() as t:
            return (await self.parts.benefits.open(t, brand.BUILDER, self.show, BenefitInput(**terms))).id

    async def coupon(self, rule: str, member: Caller) -> str:
        """Granted by staff."""
        body = {"members": [member.id], "cause": new_id()}
        granted = await self.server.ok("POST", f"/v1/coupon-rules/{rule}/grants", body)
        return str(granted["items"][0]["coupon"])

    async def coupon_of(self, member: Caller) -> str:
        """Had by a claim."""
        (row, *_) = await self.evening.rows(
            "SELECT coupon_id::text AS id FROM benefit_grants WHERE member_id = %s AND coupon_id IS NOT NULL"
            " ORDER BY claim_id",
            member.id,
        )
        return str(row["id"])

    async def place(self, member: Caller, lines: Mapping[str, int], **wish: Any) -> str:
        """An order with its payment begun; `wish`: coupons, points."""
        if member.id not in self.addresses:
            added = await member.ok("POST", "/v1/me/addresses", ADDRESS)
            self.addresses[member.id] = added["id"]
        address = self.addresses[member.id]
        asked = [{"offer": offer, "quantity": quantity} for offer, quantity in lines.items()]
        body = {"lines": asked, "address": address, **wish}
        quote = await member.ok("POST", f"/v1/shows/{self.show}/quotes", body)
        body = {"quote": quote["token"], "address": address, "key": new_id()}
        placed = await member.ok("POST", f"/v1/shows/{self.show}/orders", body)
        order = str(placed["order"])
        if placed["state"] == "placed":
            page = await member.ok("POST", f"/v1/me/orders/{order}/payment")
            self.urls[order] = page["payment_url"]
        return order

    async def pay(self, order: str) -> None:
        await self.shop.pay(self.urls[order])

    async def buy(self, member: Caller, lines: Mapping[str, int], **wish: Any) -> str:
        order = await self.place(member, lines, **wish)
        await self.pay(order)
        return order

    async def claim(self, member: Caller, benefit: str) -> None:
        async with self.parts.database.reading() as conn:
            facts = await self.parts.members.facts(conn, MemberId(member.id))
        actor = Actor(kind="viewer", id=member.id, name="王小明", facts=facts)
        [answer] = await self.parts.claims.claim_many(self.show, BenefitId(benefit), [(actor, new_id())])
        assert isinstance(answer, Won), answer

    async def state_of(self, member: Caller, order: str) -> str:
        return str((await member.ok("GET", f"/v1/me/orders/{order}"))["state"])

    async def run_out(self, order: str) -> None:
        """As if the hold's ten minutes had passed, and the job had come by."""
        await self.evening.rows(
            "UPDATE orders SET hold_until = clock_timestamp() - interval '1 second' WHERE id = %s", order
        )
        await self.evening.work()


async def begin_stage(shop: Shop) -> Stage:
    return Stage(await begin(shop), await shop.staff(), await shop.shop_server())


async def full_evening(shop: Shop) -> tuple[Stage, dict[str, str]]:
    """Everything that a show knows, entangled: the orders by name, and what a hand is going to touch."""
    stage = await begin_stage(shop)
    evening, server = stage.evening, stage.server
    found: dict[str, str] = {}
    people = [await shop.member(f"王{number}") for number in range(8)]
    joiner, giver_back, refunded, buyer, loser, unlucky, late, visitor = people

    # What there is to sell: at hand, paid first, still to come, together.
    tea = await stage.product("TEA", 6_000, stock=20, cost_fen=1_000, member_fen=5_000)
    cup = await stage.product("CUP", 3_000, stock=30, cost_fen=500)
    last = await stage.product("LAST", 8_000, stock=1, stock_mode="on_payment", cost_fen=1_000)
    now = datetime.now(UTC)
    sent_by = (now + timedelta(days=60)).date().isoformat()
    later = await stage.product(
        "LATER", 9_000, stock_mode="presale", presale_cap=5, ship_by=sent_by, cost_fen=1_000
    )
    parts = [{"product": tea, "quantity": 2}, {"product": cup, "quantity": 1}]
    set_ = await stage.product("SET", 13_000, parts=parts)
    campaign = {"name": "双倍积分", "percent": 100, "products": [tea]}
    window = {
        "from_at": (now - timedelta(hours=1)).isoformat(),
        "until_at": (now + timedelta(hours=3)).isoformat(),
    }
    await stage.owner.ok("POST", "/v1/points-campaigns", {**campaign, **window})
    rules = [
        await stage.owner.ok("POST", "/v1/coupon-rules", {"title": "券", **terms})
        for terms in (
            {"kind": "amount", "off_fen": 1_000},
            {"kind": "percent", "percent": 90, "max_off_fen": 800},
            {"kind": "amount", "off_fen": 5_000_000},
        )
    ]
    ten, tenth, whole = [rule["id"] for rule in rules]

    # Plans: joined with a rank, before and after the gift; refunded by staff, given back by the member.
    await evening.join(visitor)  # before the benefit: confirmed when it opens
    found["gift"] = await evening.cue("B")
    for member in (joiner, giver_back):
        found[f"join of {member.id}"] = await evening.join(member)
    await stage.owner.ok("POST", f"/v1/benefits/{found['gift']}/close")
    cash = await stage.benefit(title="入会积分", what="points", points=300, quota=1, needs="join")
    await stage.owner.ok("PATCH", f"/v1/benefits/{cash}", {"quota": 2})
    found["cash"] = cash
    found[f"join of {refunded.id}"] = await evening.join(refunded)
    found["join"] = found[f"join of {joiner.id}"]
    samples = await evening.cue("F")  # needs nothing, for members
    await stage.claim(joiner, samples)
    await stage.claim(giver_back, samples)
    newly = await stage.benefit(
        title="新会员券", what="coupon", coupon_rule=tenth, quota=5, audience={"kind": "plan_members"},
        newly_joined_s=3_600,
    )  # fmt: skip
    for member in (joiner, giver_back, refunded):
        await stage.claim(member, newly)

    # Offers and what their orders earn.
    [goods] = (await stage.owner.ok("GET", "/v1/products?search=SL-RICE-5"))["items"]
    rice = goods["id"]
    flash = await stage.offer(cup, kind="flash", flash_fen=1_500, quota=6, per_person=3, seconds=3_600)
    found["flash"] = flash
    gift = await stage.benefit(title="满额赠礼", value_fen=900, quota=5, needs="order", min_fen=5_000)
    free = await stage.benefit(title="免单", what="free_order", cap_fen=2_000, quota=5, needs="order")
    back = await stage.benefit(title="返券", what="coupon", coupon_rule=ten, quota=5, needs="order")
    found["earned"] = gift
    async with stage.parts.database.transaction() as t:
        for member in (joiner, buyer):
            await stage.parts.points.earn(t, MemberId(member.id), 2_000, "review", f"review:{member.id}")

    # A bundle, a gift in its line, coupon and points in one; a claim with a gift; a part goes back on the shelf.
    coupon = await stage.coupon(ten, joiner)
    many = await stage.buy(
        joiner,
        {await stage.pin(set_): 2, await stage.pin(rice): 1, await stage.pin(tea): 1},
        coupons=[coupon],
        points=500,
    )
    found["many"] = many
    for benefit in (gift, free, back):
        await stage.claim(joiner, benefit)
    pieces = {"lines": [{"position": 1, "quantity": 1}], "restock": True, "key": "part"}
    await server.ok("POST", f"/v1/orders/{many}/refunds", pieces)

    # Pre-sale; a claim that its whole refund recalls.
    found["presale"] = await stage.buy(buyer, {await stage.pin(later): 2})
    found["recalled"] = await stage.buy(buyer, {await stage.pin(later): 1, flash: 1}, points=100)
    for benefit in (gift, free, back):
        await stage.claim(buyer, benefit)
    await server.ok("POST", f"/v1/orders/{found['recalled']}/refund")
    all_of_it = {"restock": True, "key": "all"}
    await server.ok("POST", f"/v1/orders/{found['presale']}/refunds", all_of_it)
    found["presale"] = await stage.buy(buyer, {await stage.pin(later): 3})

    # Paid first: of two that pay for the last piece, one loses and has all of it back.
    losing = await stage.coupon(ten, loser)
    first = await stage.place(visitor, {await stage.pin(last): 1})
    second = await stage.place(loser, {await stage.pin(last): 1, flash: 1}, coupons=[losing])
    await stage.pay(first)
    await stage.pay(second)
    assert await stage.state_of(visitor, first) == "paid"
    assert await stage.state_of(loser, second) == "expired"

    # The incident: holds are prolonged, then everything goes on.
    through = await stage.place(visitor, {flash: 1})
    joining = {"plan": evening.plan, "show": evening.show, "key": "in the incident"}
    seat = await loser.ok("POST", "/v1/me/joins", joining)
    await stage.owner.ok("POST", "/v1/incident", {"reason": "支付故障", "extend_s": 60})
    await stage.pay(through)
    await stage.owner.ok("DELETE", "/v1/incident")
    await shop.pay(seat["payment_url"])

    # Too late for the gift; a plan renewed; a mode that changes under orders; a delivery to the warehouse.
    await evening.join(unlucky)
    renewal = {**joining, "key": "renewal"}
    await shop.pay((await joiner.ok("POST", "/v1/me/joins", renewal))["payment_url"])
    under = await stage.place(buyer, {await stage.pin(cup): 1})
    await stage.owner.ok("PATCH", f"/v1/products/{cup}", {"stock_mode": "on_payment"})
    over = await stage.place(buyer, {await stage.pin(cup): 2})
    await stage.owner.ok("PATCH", f"/v1/products/{cup}", {"stock_mode": "on_order", "stock_change": -1})
    for order in (under, over):
        await stage.pay(order)
    delivery = {"key": "delivery", "reason": "到货", "rows": [{"sku": "TEA", "change": 5}]}
    await stage.owner.ok("PUT", "/v1/stock", delivery)

    # Cancelled, cancelled and paid after all; expired, expired and paid after all; a page paid to nothing.
    cancelled = await stage.place(unlucky, {flash: 1, await stage.pin(set_): 1})
    await unlucky.ok("POST", f"/v1/me/orders/{cancelled}/cancel")
    await stage.pay(cancelled)
    found["cancelled"] = cancelled
    expired = await stage.place(buyer, {flash: 1, await stage.pin(cup): 1}, points=200)
    await stage.run_out(expired)
    assert await stage.state_of(buyer, expired) == "expired"
    revived = await stage.place(late, {flash: 1, await stage.pin(set_): 1})
    await stage.run_out(revived)
    await stage.pay(revived)
    assert await stage.state_of(late, revived) == "paid"
    everything_off = await stage.coupon(whole, late)
    await stage.place(late, {await stage.pin(tea): 2}, coupons=[everything_off])

    # Money that fits nothing, and a person's decision.
    async with stage.parts.database.transaction() as t:
        odd = await stage.parts.payments.record(t, "sandbox", "odd", expired, 1, "payer", now)
    assert odd.outcome == "quarantined"
    await server.ok("POST", f"/v1/odd-payments/{odd.payment}/decision", {"act": "keep", "note": "另行退还"})

    # A coupon at the till: one that an order gave back, one that a claim brought.
    await server.ok("POST", f"/v1/coupons/{losing}/use", {"reference": "till-1", "amount_fen": 1_000})
    won = await stage.coupon_of(joiner)
    await server.ok("POST", f"/v1/coupons/{won}/use", {"reference": "till-2"})

    # Plans given back: by staff whole, by the member for the sum shown.
    won = await stage.coupon_of(refunded)
    spent = await stage.buy(refunded, {await stage.pin(tea): 2}, coupons=[won], points=200)
    await server.ok("POST", f"/v1/orders/{found[f'join of {refunded.id}']}/refund")
    await server.ok("POST", f"/v1/orders/{spent}/refund")  # what paid for it was recalled meanwhile
    given = await stage.buy(giver_back, {await stage.pin(rice): 1, await stage.pin(tea): 3})
    parcel = {"order": found[f"join of {giver_back.id}"], "carrier": "顺丰", "tracking": "G1"}
    await server.ok("POST", "/v1/fulfilment", {"rows": [parcel]})
    bill = await giver_back.ok("GET", "/v1/me/plan/refund")
    await giver_back.ok("POST", "/v1/me/plan/refund", {"payable_fen": bill["payable_fen"]})

    # Sent, asked about, settled in each way; a parcel for a case.
    await server.ok(
        "POST", "/v1/fulfilment", {"rows": [{"order": given, "carrier": "顺丰", "tracking": "S1"}]}
    )
    for number, act in enumerate(
        ({"act": "refund"}, {"act": "refund", "amount_fen": 300}, {"act": "resend"}, {"act": "decline"})
    ):
        position = 1 if number == 3 else 3  # the second is the gift with the first
        asked = {"kind": "damaged", "reason": "坏了", "lines": [{"position": position, "quantity": 1}]}
        case = await giver_back.ok("POST", f"/v1/me/orders/{given}/cases", asked)
        await stage.owner.ok("POST", f"/v1/cases/{case['id']}/decision", {"note": "好的", **act})
        if act["act"] == "resend":
            again = {"order": given, "carrier": "顺丰", "tracking": "S2", "case": case["id"]}
            await server.ok("POST", "/v1/fulfilment", {"rows": [again]})
    mine = (await joiner.ok("GET", "/v1/me/benefits"))["items"]
    sample = next(one["id"] for one in mine if one["benefit"] == samples)
    parcel = {"claim": sample, "carrier": "顺丰", "tracking": "W1"}
    told = await server.ok("POST", "/v1/fulfilment", {"rows": [parcel]})
    assert [row["outcome"] for row in told["rows"]] == ["sent"]
    mine = (await joiner.ok("GET", "/v1/me/benefits"))["items"]
    assert {one["id"]: one["parcel"]["tracking"] for one in mine if "parcel" in one} == {sample: "W1"}

    poll = await evening.cue("C")
    for number, member in enumerate(people):
        await evening.vote(member, poll, [number % 3])
    await evening.end()
    await evening.work()
    return stage, found


# What the evening came to: an act that silently did nothing would prove nothing.
HAPPENED = {
    "orders": {
        "goods cancelled 1", "goods expired 2", "goods fulfilled 1", "goods paid 8", "goods refunded 3",
        "plan paid 5", "plan refunded 2",
    },
    "payments": {"accepted 18", "quarantined wrong_amount 1", "returned cancelled_before 1", "returned no_stock 1"},
    "claims": {
        "join gift confirmed 2", "join gift deducted 1", "join points confirmed 1", "join points recalled 1",
        "nothing coupon confirmed 1", "nothing coupon deducted 1", "nothing coupon recalled 1",
        "nothing gift confirmed 2", "order coupon confirmed 1", "order coupon recalled 1",
        "order free_order confirmed 1", "order free_order recalled 1", "order gift confirmed 1",
        "order gift recalled 1",
    },
    "misses": {"sold_out 1"},
    "pieces": {"presale taken 6 2", "stock back 7 0", "stock due 1 0", "stock taken 26 3"},
    "coupons": {"free 2", "used 4", "void 2"},
    "till": {"till-1 1", "till-2 1"},
    "cases": {"declined decline 1", "settled refund 2", "settled resend 1"},
    "plans": {"itemised 1"},
    "incidents": {"ended 1"},
}  # fmt: skip

COUNTED = {
    "orders": "SELECT kind, state, count(*) FROM orders GROUP BY 1, 2",
    "payments": "SELECT outcome, reason, count(*) FROM payments GROUP BY 1, 2",
    "claims": "SELECT needs, what, c.state, count(*) FROM benefit_claims c"
    " JOIN benefits b ON b.id = c.benefit_id GROUP BY 1, 2, 3",
    "misses": "SELECT why, count(*) FROM benefit_misses GROUP BY 1",
    "pieces": "SELECT source, state, sum(quantity) AS pieces, sum(returned) AS back FROM order_pieces GROUP BY 1, 2",
    "coupons": "SELECT state, count(*) FROM coupons GROUP BY 1",
    "till": "SELECT reference, count(*) FROM coupon_till_uses GROUP BY 1",
    "cases": "SELECT state, act, count(*) FROM after_sales_cases GROUP BY 1, 2",
    "plans": "SELECT way, count(*) FROM plan_refunds GROUP BY 1",
    "incidents": "SELECT CASE WHEN ended_at IS NULL THEN 'on' ELSE 'ended' END AS state, count(*)"
    " FROM incidents GROUP BY 1",
}


async def happened(evening: Evening) -> dict[str, set[str]]:
    return {
        name: {" ".join(str(value) for value in row.values() if value is not None) for row in found}
        for name, found in [(name, await evening.rows(query)) for name, query in COUNTED.items()]
    }


# Each in another book: the change, of which order or benefit, and what names it.
CHANGES = [
    ("UPDATE payments SET amount_fen = amount_fen + 1 WHERE order_id = %s", "presale", "in fen"),
    ("UPDATE order_pieces SET quantity = quantity + 1 WHERE order_id = %s", "presale", "pre-sale of LATER"),
    ("UPDATE bundle_parts SET quantity = quantity + 1 WHERE quantity = 2", "", "pieces of order"),
    ("UPDATE order_refunds SET money_fen = money_fen - 1 WHERE order_id = %s AND cause = 'staff:part'", "many",
     "refunds of order"),
    ("UPDATE payment_returns SET amount_fen = amount_fen - 1 WHERE payment_id ="
     " (SELECT id FROM payments WHERE order_id = %s)", "cancelled", "sent back in fen"),
    ("UPDATE payment_decisions SET act = 'return' WHERE act = 'keep'", "", "sent back in fen"),
    ("UPDATE benefit_claims SET order_id = (SELECT max(id::text)::uuid FROM orders WHERE state = 'cancelled')"
     " WHERE benefit_id = %s AND state = 'confirmed'", "earned", "the order that earned it"),
    ("UPDATE benefit_grants SET amount_fen = amount_fen - 1 WHERE what = 'free_order' AND order_id = %s", "many",
     "money of the order"),
    ("UPDATE benefit_misses SET payment_id = (SELECT id FROM payments WHERE outcome = 'quarantined')", "",
     "that missed benefit"),
    ("UPDATE benefits SET quota = 9 WHERE id = %s", "cash", "quota"),
    ("UPDATE points_entries SET amount = amount + 100 WHERE kind = 'spend' AND cause = 'order:' || %s", "many",
     "points spent"),
    ("UPDATE coupons SET state = 'free', order_id = NULL WHERE order_id = %s", "many",
     "used by it"),
    ("UPDATE offers SET taken = taken + 1 WHERE id = %s", "flash", "pieces taken"),
    ("UPDATE show_joins SET refunded_at = now() WHERE payment_id = (SELECT id FROM payments WHERE order_id = %s)",
     "join", "its join"),
    ("DELETE FROM plan_refunds WHERE way = 'itemised'", "", "sent back in fen"),
    ("UPDATE after_sales_cases SET amount_fen = 1 WHERE amount_fen = 300", "", "case "),
    ("DELETE FROM parcels WHERE tracking = 'S1'", "", "parcels of order"),
    ("UPDATE stock_entries SET delta = 6 WHERE kind = 'import'", "", "stock of TEA"),
    ("UPDATE points_entries SET amount = amount + 1 WHERE reason = 'goods.event:双倍积分' AND cause = 'order:' || %s",
     "many", "points of order"),
    ("UPDATE benefit_receipts SET digest = reverse(digest) WHERE benefit_id = %s AND link = 1", "gift",
     "receipt of rank 1"),
]  # fmt: skip


async def test_an_evening_with_everything_together_closes_with_no_difference_and_each_book_is_watched(
    shop: Shop,
) -> None:
    stage, found = await full_evening(shop)
    closing = await stage.evening.close()
    assert (closing.waiting, closing.notes) == ((), ()), in_words(closing)
    assert closing.differences == (), in_words(closing)
    assert closing.path is not None
    assert await happened(stage.evening) == HAPPENED
    unnamed = {}
    for change, which, word in CHANGES:
        named = await stage.evening.named_after(change, *([found[which]] if which else []))
        if not any(word in each for each in named):
            unnamed[change] = named
    assert unnamed == {}
    counts = show_key(stage.show, "counts")
    await stage.parts.redis.hincrby(counts, f"offer:{found['flash']}|sold", 1)
    [sold] = (await stage.evening.close()).differences
    assert found["flash"] in str(sold)
    await stage.parts.redis.hincrby(counts, f"offer:{found['flash']}|sold", -1)
    assert (await stage.evening.close()).digest == closing.digest
