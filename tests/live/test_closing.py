"""The zero-difference close, on the sample brand's evening; and what it says when anything was touched."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from commerce.benefit_counters import benefit_keys
from live import brand
from live.__main__ import main
from live.archive import verify_archive
from live.closing import Closer, Closing, in_words
from live.engines import Addresses
from live.shows import WrongStatus
from membership.actor import Actor, BenefitId, Facts, MemberId, ShowId
from membership.partition import show_key
from membership.refusal import NotFound
from tests.live.api import SECRET, Caller, Shop, open_shop

pytestmark = pytest.mark.anyio

ADDRESS = {
    "name": "王小明",
    "phone": "13800000001",
    "region": "浙江省 杭州市 西湖区",
    "detail": "文三路 1 号",
}
FEE_FEN = 19_900


@pytest.fixture
async def shop(engines: Addresses, fresh_database_url: str, tmp_path: Path) -> AsyncIterator[Shop]:
    async with open_shop(engines, fresh_database_url, tmp_path) as opened:
        yield opened


class Evening:
    """The sample brand's open show: its cues run, members join, claim, buy, pay, cancel and are refunded."""

    def __init__(self, shop: Shop, show: ShowId, cues: dict[str, str], plan: str) -> None:
        self.shop = shop
        self.parts = shop.parts
        self.show = show
        self.plan = plan
        self._cues = cues
        self.opened: dict[str, str] = {}

    async def cue(self, shortcut: str) -> str:
        async with self.parts.database.transaction() as t:
            ran = await self.parts.cues.run(t, brand.BUILDER, self.show, self._cues[shortcut])
        self.opened[shortcut] = ran.subject or ""
        return self.opened[shortcut]

    async def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        async with self.parts.database.transaction() as t:
            found = await t.conn.execute(query, values)  # type: ignore[call-overload]
            return await found.fetchall() if found.description else []

    async def by_hand(self, query: str, *values: object) -> None:
        """As somebody at the database's own prompt, past every trigger."""
        async with self.parts.database.transaction() as t:
            await t.conn.execute("SET LOCAL session_replication_role = replica")
            changed = await t.conn.execute(query, values)  # type: ignore[call-overload]
        assert changed.rowcount == 1

    async def named_after(self, change: str, *values: object) -> list[str]:
        """What a close names after one row was changed by hand; the row is put back."""
        table = change.split()[2] if change.startswith("DELETE") else change.split()[1]
        async with self.parts.pool.connection() as conn:
            await conn.execute("SET session_replication_role = replica")
            await conn.execute("CREATE TEMP TABLE IF NOT EXISTS kept (name text, rows jsonb)")
            await conn.execute(
                f"INSERT INTO kept SELECT '{table}', jsonb_agg(to_jsonb(w)) FROM {table} w"  # type: ignore[arg-type]
            )
            assert (await conn.execute(change, values or None)).rowcount == 1, change  # type: ignore[arg-type]
            await conn.commit()
            named = [str(difference) for difference in (await self.close()).differences]
            await conn.execute(
                f"DELETE FROM {table};"  # type: ignore[arg-type]
                f" INSERT INTO {table} OVERRIDING SYSTEM VALUE"
                f" SELECT (jsonb_populate_recordset(NULL::{table}, rows)).* FROM kept; DROP TABLE kept"
            )
            await conn.execute("RESET session_replication_role")
            await conn.commit()
        return named

    async def join(self, member: Caller) -> str:
        body = {"plan": self.plan, "show": self.show, "key": f"join-{member.id}"}
        joining = await member.ok("POST", "/v1/me/joins", body)
        await self.shop.pay(joining["payment_url"])
        return str(joining["order"]["order"])

    async def order(self, member: Caller, offer: str, quantity: int = 1, *, pay: bool = True) -> str:
        address = await member.ok("POST", "/v1/me/addresses", ADDRESS)
        lines = {"lines": [{"offer": offer, "quantity": quantity}]}
        quote = await member.ok("POST", f"/v1/shows/{self.show}/quotes", lines)
        body = {"quote": quote["token"], "address": address["id"], "key": quote["token"][-20:]}
        placed = await member.ok("POST", f"/v1/shows/{self.show}/orders", body)
        if pay:
            page = await member.ok("POST", f"/v1/me/orders/{placed['order']}/payment")
            await self.shop.pay(page["payment_url"])
        return str(placed["order"])

    async def claim(self, member: Caller, benefit: str) -> None:
        async with self.parts.database.reading() as conn:
            facts: Facts = await self.parts.members.facts(conn, MemberId(member.id))
        actor = Actor(kind="viewer", id=member.id, name="王小明", facts=facts)
        await self.parts.claims.claim_many(self.show, BenefitId(benefit), [(actor, f"k-{member.id}")])

    async def vote(self, member: Caller, poll: str, choices: list[int]) -> None:
        actor = Actor(kind="viewer", id=member.id, name="王小明", facts=Facts(member=MemberId(member.id)))
        await self.parts.polls.cast(actor, self.show, poll, choices, f"v-{member.id}")

    async def work(self) -> None:
        """What `companion work` does each second, once and at once."""
        parts = self.parts
        async with parts.database.transaction() as t:
            await parts.orders.expire_due(t)
        await parts.orders.settle_unannounced(parts.database, older_s=0)
        await parts.seats.sweep(self.show)
        await parts.claims.settle(self.show)
        await parts.payments.return_due(parts.database)

    async def end(self) -> None:
        async with self.parts.database.transaction() as t:
            await self.parts.shows.end(t, brand.BUILDER, self.show)

    async def close(self) -> Closing:
        return await Closer(self.parts).close(self.show)


async def begin(shop: Shop) -> Evening:
    demo = await brand.load(shop.parts)
    async with shop.parts.database.transaction() as t:
        await shop.parts.shows.start(t, brand.BUILDER, demo.show)
    async with shop.parts.database.transaction() as t:
        cues = {cue.shortcut: cue.id for cue in await shop.parts.cues.list(t.conn, demo.show)}
        (plan,) = await shop.parts.plans.all(t.conn)
    return Evening(shop, demo.show, cues, plan.id)


async def whole_evening(shop: Shop) -> Evening:
    """Earlier joins, seats, claims without payment, a flash, a refund of each kind, an order given up."""
    evening = await begin(shop)
    members = [await shop.member(f"王{number}") for number in range(5)]
    await evening.join(members[0])  # before the benefit: confirmed when it opens
    benefit = await evening.cue("B")
    joined = [await evening.join(member) for member in members[1:4]]
    rice, flash = await evening.cue("A"), await evening.cue("D")
    samples = await evening.cue("F")
    for member in members[:3]:
        await evening.claim(member, samples)
    await evening.order(members[0], rice, 2)
    await evening.order(members[4], flash)
    back = await evening.order(members[1], flash)
    given_up = await evening.order(members[2], flash, pay=False)
    await members[2].ok("POST", f"/v1/me/orders/{given_up}/cancel")
    server = await shop.shop_server()
    await server.ok("POST", f"/v1/orders/{back}/refund")
    await server.ok("POST", f"/v1/orders/{joined[2]}/refund")  # its gift is recalled, its rank keeps the gap
    poll = await evening.cue("C")
    for number, member in enumerate(members):
        await evening.vote(member, poll, [number % 2])
    await evening.end()
    await evening.work()
    assert benefit
    return evening


async def test_the_sample_brands_evening_closes_with_no_difference_and_twice_alike(shop: Shop) -> None:
    evening = await whole_evening(shop)
    closing = await evening.close()
    assert closing.differences == (), in_words(closing)
    assert (closing.waiting, closing.notes) == ((), ())
    assert closing.totals["claims"] == closing.totals["receipts"] == 7
    assert closing.totals["orders"] == 8
    assert closing.path is not None
    assert stat.S_IMODE(os.stat(closing.path).st_mode) == 0o600
    manifest = verify_archive(closing.path, shop.parts.receipts.public_key)
    assert (manifest.digest, manifest.show) == (closing.digest, evening.show)
    before = closing.path.read_bytes()
    again = await evening.close()
    assert (again.digest, again.path, again.sealed_at) == (closing.digest, closing.path, closing.sealed_at)
    assert closing.path.read_bytes() == before
    assert [file.name for file in closing.path.parent.iterdir()] == [closing.path.name]
    assert "differences  0" in in_words(closing)
    assert closing.digest in in_words(closing)


async def test_one_row_one_counter_and_one_byte_of_a_receipt_changed_by_hand_are_all_three_named(
    shop: Shop,
) -> None:
    evening = await whole_evening(shop)
    samples, gift = evening.opened["F"], evening.opened["B"]
    payment = (
        await evening.rows("SELECT id::text FROM payments WHERE amount_fen = %s ORDER BY id LIMIT 1", FEE_FEN)
    )[0]["id"]
    await evening.by_hand("UPDATE payments SET amount_fen = amount_fen + 1 WHERE id = %s", payment)
    counter = show_key(evening.show, benefit_keys(BenefitId(samples))[0])
    await evening.parts.redis.hincrby(counter, "confirmed", 1)
    await evening.by_hand(
        "UPDATE benefit_receipts SET core = replace(core, '\"rank\":2', '\"rank\":3')"
        " WHERE benefit_id = %s AND link = 2",
        gift,
    )
    closing = await evening.close()
    named = [str(difference) for difference in closing.differences]
    assert len(named) == 3, named
    assert closing.path is None
    money, counted, receipt = (
        next(each for each in named if word in each) for word in (payment, "confirmed", "receipt of rank 2")
    )
    assert f"expected {FEE_FEN} · found {FEE_FEN + 1}" in money
    assert "PostgreSQL" in money
    assert samples in counted
    assert "Redis · expected 3 · found 4" in counted
    assert gift in receipt
    assert "receipts · expected digest" in receipt
    assert "not sealed" in in_words(closing)
    assert all(each in in_words(closing) for each in named)


CHANGES = [
    ("a rank's holder", "UPDATE benefit_claims SET member_id = (SELECT id FROM members ORDER BY id DESC LIMIT 1)"
     " WHERE id = (SELECT id FROM benefit_claims ORDER BY id LIMIT 1)", "rank 1"),
    ("a rank", "UPDATE benefit_claims SET rank = 90 WHERE id = (SELECT id FROM benefit_claims"
     " WHERE payment_id IS NOT NULL AND rank = 3)", "rank 90"),
    ("when it was claimed", "UPDATE benefit_claims SET claimed_at = claimed_at - interval '1 minute'"
     " WHERE id = (SELECT id FROM benefit_claims ORDER BY id LIMIT 1)", "rank 1"),
    ("a claim's state", "UPDATE benefit_claims SET state = 'recalled', settled_at = now()"
     " WHERE payment_id IS NOT NULL AND rank = 1", "its state"),
    ("a claim taken away", "DELETE FROM benefit_claims WHERE payment_id IS NULL AND rank = 2", "receipt of rank none"),
    ("a receipt taken away", "DELETE FROM benefit_receipts WHERE claim_id ="
     " (SELECT id FROM benefit_claims WHERE payment_id IS NULL AND rank = 3)", "receipt of rank 3"),
    ("a receipt's digest", "UPDATE benefit_receipts SET digest = reverse(digest) WHERE claim_id ="
     " (SELECT id FROM benefit_claims WHERE payment_id IS NULL AND rank = 1)", "receipt of rank 1"),
    ("a quota", "UPDATE benefits SET quota = quota + 1 WHERE needs = 'join'", "quota"),
    ("a benefit's value", "UPDATE benefits SET value_fen = 1 WHERE needs = 'nothing'", "value_fen"),
    ("what a gift costs", "UPDATE benefit_costs SET piece_fen = piece_fen - 1 WHERE benefit_id ="
     " (SELECT id FROM benefits WHERE needs = 'join')", "cost of a piece in fen"),
    ("a seat", "UPDATE benefit_seats SET state = 'released' WHERE member_id ="
     " (SELECT member_id FROM benefit_claims WHERE payment_id IS NOT NULL AND rank = 2)", "its seat"),
    ("the pieces taken", "UPDATE offers SET taken = taken + 1 WHERE kind = 'flash'", "pieces taken"),
    ("a stock", "UPDATE products SET stock = stock - 1 WHERE sku = 'SL-RICE-5'", "stock of SL-RICE-5"),
    ("an entry of the stock's ledger", "UPDATE stock_entries SET delta = delta + 1 WHERE product_id ="
     " (SELECT id FROM products WHERE sku = 'SL-RICE-5')", "stock of SL-RICE-5"),
    ("what a pre-sale has given", "UPDATE products SET presale_cap = 5, presale_taken = 1 WHERE sku = 'SL-RICE-5'",
     "pre-sale of SL-RICE-5"),
    ("pieces that an order took", "UPDATE order_pieces SET quantity = quantity + 1 WHERE (order_id, product_id) ="
     " (SELECT order_id, product_id FROM order_pieces WHERE state = 'taken' ORDER BY order_id LIMIT 1)",
     "pieces of order"),
    ("pieces that were given back", "UPDATE order_pieces SET state = 'taken' WHERE state = 'back'",
     "pieces of order"),
    ("an order's total", "UPDATE orders SET goods_fen = goods_fen + 1, total_fen = total_fen + 1"
     " WHERE id = (SELECT id FROM orders WHERE kind = 'goods' AND state = 'paid' ORDER BY id LIMIT 1)", "goods in fen"),
    ("an order's state", "UPDATE orders SET state = 'cancelled', closed_at = now() WHERE id ="
     " (SELECT id FROM orders WHERE kind = 'goods' AND state = 'paid' ORDER BY id LIMIT 1)", "state"),
    ("a line", "UPDATE order_lines SET quantity = quantity + 1, line_fen = unit_fen * (quantity + 1)"
     " WHERE (order_id, position) = (SELECT order_id, position FROM order_lines WHERE kind = 'goods'"
     " ORDER BY order_id LIMIT 1)", "goods in fen"),
    ("a payment taken away", "DELETE FROM payments WHERE id = (SELECT p.id FROM payments p JOIN orders o"
     " ON o.id = p.order_id WHERE o.kind = 'goods' AND o.state = 'paid' ORDER BY p.id LIMIT 1)", "accepted payments"),
    ("money sent back", "UPDATE payment_returns SET amount_fen = amount_fen - 1 WHERE id ="
     " (SELECT id FROM payment_returns ORDER BY id LIMIT 1)", "sent back in fen"),
    ("what was asked for", "UPDATE payment_starts SET amount_fen = 1 WHERE order_id ="
     " (SELECT order_id FROM payment_starts ORDER BY order_id LIMIT 1)", "asked of sandbox"),
    ("points", "UPDATE points_entries SET amount = amount + 1 WHERE id ="
     " (SELECT id FROM points_entries WHERE kind = 'earn' ORDER BY id LIMIT 1)", "points of order"),
    ("a plan's term", "UPDATE plan_terms SET end_reason = 'refunded', ended_at = now() WHERE id ="
     " (SELECT id FROM plan_terms WHERE ended_at IS NULL ORDER BY id LIMIT 1)", "its end"),
    ("a join", "UPDATE show_joins SET refunded_at = now() WHERE ordinal ="
     " (SELECT min(ordinal) FROM show_joins)", "its join"),
    ("a poll's tally", "UPDATE polls SET tally = '{0,5,0}'", "its ballots"),
    ("a line of the log", "DELETE FROM show_log WHERE seq = 5", "log entry 5"),
]  # fmt: skip


async def test_whatever_is_changed_in_a_row_is_named(shop: Shop) -> None:
    """Each on its own, and put back."""
    evening = await whole_evening(shop)
    assert (await evening.close()).differences == ()
    for what, change, word in CHANGES:
        named = await evening.named_after(change)
        assert any(word in each for each in named), (what, named)
    assert (await evening.close()).differences == ()


NEWLY_CHANGES = [
    ("one that stays though the plan went back", "UPDATE benefit_claims SET state = 'confirmed', settled_at = NULL"
     " WHERE state = 'recalled'", "its state · PostgreSQL · expected recalled or deducted · found confirmed"),
    ("one that went though the plan stays", "UPDATE benefit_claims SET state = 'recalled', settled_at = now()"
     " WHERE rank = 1", "its state · PostgreSQL · expected confirmed · found recalled"),
    ("one by no plan", "UPDATE benefit_claims SET joined_by = NULL WHERE rank = 1", "the plan that earned it"),
    ("one by another's plan", "UPDATE benefit_claims SET joined_by = (SELECT joined_by FROM benefit_claims"
     " WHERE rank = 2) WHERE rank = 1", "the plan that earned it"),
]  # fmt: skip


async def test_a_claim_for_having_newly_joined_follows_its_plan_wherever_that_was_joined(shop: Shop) -> None:
    evening = await begin(shop)
    owner, server = await shop.staff(), await shop.shop_server()
    body = {"title": "新会员礼", "quota": 5, "value_fen": 900, "newly_joined_s": 3_600}
    benefit = (await owner.ok("POST", f"/v1/shows/{evening.show}/benefits", body))["id"]
    members = [await shop.member(f"王{number}") for number in range(3)]
    orders = [await evening.join(members[0])]
    for member in members[1:]:  # on their own page, in no show
        joining = await member.ok("POST", "/v1/me/joins", {"plan": evening.plan, "key": f"join-{member.id}"})
        await shop.pay(joining["payment_url"])
        orders.append(str(joining["order"]["order"]))
    for member in members:
        await evening.claim(member, benefit)
    await server.ok("POST", f"/v1/orders/{orders[2]}/refund")
    states = await evening.rows("SELECT state FROM benefit_claims ORDER BY rank")
    assert [row["state"] for row in states] == ["confirmed", "confirmed", "recalled"]
    await evening.end()
    await evening.work()
    closing = await evening.close()
    assert (closing.differences, closing.waiting) == ((), ()), in_words(closing)
    for what, change, word in NEWLY_CHANGES:
        named = await evening.named_after(change)
        assert any(word in each for each in named), (what, named)
    assert (await evening.close()).differences == ()


async def test_whatever_is_changed_in_redis_is_named(shop: Shop) -> None:
    evening = await whole_evening(shop)
    redis: Any = evening.parts.redis
    samples, gift, flash = (evening.opened[cue] for cue in "FBD")

    def key(name: str) -> str:
        return show_key(evening.show, name)

    terms, claims, _, _, _, _, _, told, spare = benefit_keys(BenefitId(samples))
    (holder,) = [member for member, ranks in (await redis.hgetall(key(claims))).items() if ranks == b"1"]
    (order,) = list(await redis.hkeys(key("holds")))[:1]
    person = (await redis.hkeys(key("offer_people")))[0]
    hashes = [
        (terms, "quota", "31", "quota"),
        (terms, "ranked", "9", "ranks given"),
        (terms, "status", "open", "status"),
        (claims, holder, "8", "ranks of"),
        (claims, "somebody", "9", "ranks of somebody"),
        ("counts", f"benefit:{gift}|confirmed", "5", "confirmed as shown"),
        ("counts", f"benefit:{gift}|held", "1", "held as shown"),
        ("counts", f"offer:{flash}|sold", "9", "sold"),
        ("counts", f"offer:{flash}|held", "1", "held"),
        ("offers", f"{flash}|quota", "7", "quota"),
        ("offer_people", person, "9", "pieces of"),
        ("holds", order, '{"m":"x","l":"","s":"h","o":[]}', "its pieces"),
        ("counts", f"poll:{evening.opened['C']}|voters", "6", "voters"),
        ("counts", f"poll:{evening.opened['C']}|1", "3", ": 1 "),
        ("meta", "status", "live", "status"),
        ("meta", "seq", "9999", "last number"),
    ]
    for name, field, value, word in hashes:
        was = await redis.hget(key(name), field)
        await redis.hset(key(name), field, value)
        closing = await evening.close()
        named = [str(difference) for difference in closing.differences]
        assert any(word in each for each in named), (name, field, named, closing.waiting)
        await (redis.hdel(key(name), field) if was is None else redis.hset(key(name), field, was))
    await redis.setbit(key(told), 3, 0)
    await evening.by_hand(
        "UPDATE benefit_claims SET announced_at = now() WHERE benefit_id = %s AND rank = 3", samples
    )
    assert any("rank 3: told" in str(each) for each in (await evening.close()).differences)
    await redis.setbit(key(told), 3, 1)
    await redis.zadd(key(spare), {"8": 8})
    assert any("ranks given" in str(each) for each in (await evening.close()).differences)
    await redis.zrem(key(spare), "8")
    await redis.delete(key(terms))
    assert any("counters" in str(each) for each in (await evening.close()).differences)


async def test_a_show_that_has_not_ended_is_refused(shop: Shop) -> None:
    evening = await begin(shop)
    with pytest.raises(WrongStatus, match="is live"):
        await evening.close()
    with pytest.raises(NotFound):
        await Closer(evening.parts).close(ShowId("nosuchshow"))


async def test_open_orders_held_seats_and_money_on_its_way_are_waited_for_by_name(shop: Shop) -> None:
    evening = await begin(shop)
    await evening.cue("B")
    rice = await evening.cue("A")
    payer, buyer, refunded = [await shop.member(f"李{number}") for number in range(3)]
    body = {"plan": evening.plan, "show": evening.show, "key": "join"}
    joining = await payer.ok("POST", "/v1/me/joins", body)
    order = await evening.order(buyer, rice, pay=False)
    back = await evening.order(refunded, rice)
    await (await shop.shop_server()).ok("POST", f"/v1/orders/{back}/refund")
    await evening.end()
    closing = await evening.close()
    said = "\n".join(closing.waiting)
    assert closing.path is None
    assert f"order {order}" in said
    assert f"order {joining['order']['order']}" in said
    assert f"a seat of {payer.id} is held until" in said
    assert "the provider has not confirmed it" in said
    assert "not closed" in in_words(closing)

    await shop.pay(joining["payment_url"])
    await buyer.ok("POST", f"/v1/me/orders/{order}/cancel")
    await evening.work()
    closing = await evening.close()
    assert (closing.waiting, closing.differences) == ((), ())
    assert closing.path is not None


async def test_a_show_that_redis_no_longer_holds_is_closed_by_rows_alone_and_says_so(shop: Shop) -> None:
    evening = await whole_evening(shop)
    await Closer(evening.parts).close(evening.show)
    await evening.parts.redis.flushall()
    closing = await evening.close()
    assert closing.differences == ()
    assert "Redis holds this show no more" in "\n".join(closing.notes)
    await evening.by_hand("UPDATE offers SET taken = taken + 1 WHERE id = %s", evening.opened["D"])
    assert len((await evening.close()).differences) == 1


async def test_a_show_reborn_in_the_middle_closes_with_no_difference(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("commerce.claim_announcer.TOLD_GRACE_S", 0)
    evening = await begin(shop)
    await evening.cue("B")
    samples = await evening.cue("F")
    members = [await shop.member(f"赵{number}") for number in range(4)]
    for member in members[:2]:
        await evening.join(member)
        await evening.claim(member, samples)
    await evening.parts.redis.flushall()
    await evening.parts.shows.agree(evening.show)
    for member in members[2:]:
        await evening.join(member)
        await evening.claim(member, samples)
    await evening.end()
    await evening.work()
    closing = await evening.close()
    assert (closing.waiting, closing.differences) == ((), ()), in_words(closing)
    assert closing.totals["claims"] == 8
    assert "the log has a gap" in "\n".join(closing.notes)


async def test_an_archive_holds_neither_name_phone_address_nor_payer(shop: Shop) -> None:
    evening = await whole_evening(shop)
    closing = await evening.close()
    assert closing.path is not None
    text = closing.path.read_text()
    for secret in ("文三路", "13800000001", "+86138", "payer", SECRET):
        assert secret not in text


async def test_an_archive_with_any_byte_changed_is_refused(shop: Shop, tmp_path: Path) -> None:
    evening = await begin(shop)
    await evening.end()
    closing = await evening.close()
    assert closing.path is not None
    whole = closing.path.read_bytes()
    key = shop.parts.receipts.public_key
    other = tmp_path / "other.jsonl"
    for place in range(0, len(whole), 7):
        other.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert main(["verify", str(other), "--key", key]) == 1, place
    for cut in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\n", whole + whole):
        other.write_bytes(cut)
        assert main(["verify", str(other), "--key", key]) == 1
    assert main(["verify", str(closing.path), "--key", key]) == 0

    closing.path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    (changed,) = (await evening.close()).differences
    assert closing.path.name in str(changed)
    closing.path.write_bytes(whole)
    assert (await evening.close()).differences == ()


async def test_the_parts_of_an_archive_are_what_its_manifest_says(shop: Shop) -> None:
    evening = await whole_evening(shop)
    closing = await evening.close()
    assert closing.path is not None
    lines = closing.path.read_bytes().splitlines(keepends=True)
    manifest = msgspec.json.decode(lines[-2])["manifest"]
    place = 0
    for part in manifest["parts"]:
        assert msgspec.json.decode(lines[place]) == {"part": part["name"], "rows": part["rows"]}
        rows = lines[place + 1 : place + 1 + part["rows"]]
        assert hashlib.sha256(b"".join(rows)).hexdigest() == part["sha256"]
        place += 1 + part["rows"]
    assert place == len(lines) - 2


# --- the commands ---


async def receipt_of(shop: Shop, evening: Evening) -> str:
    async with shop.parts.database.reading() as conn:
        (link, *_) = await shop.parts.receipts.chain(conn, BenefitId(evening.opened["F"]))
    return shop.parts.receipts.sign(link.core)


async def test_verify_needs_a_key_and_nothing_else(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evening = await whole_evening(shop)
    receipt, key = await receipt_of(shop, evening), shop.parts.receipts.public_key
    assert main(["verify", receipt, "--key", key]) == 0
    said = capsys.readouterr().out
    assert "1 of 30" in said
    assert "会员限量试吃装" in said
    changed = receipt[:20] + ("A" if receipt[20] != "A" else "B") + receipt[21:]
    assert main(["verify", changed, "--key", key]) == 1
    assert "the signature does not fit" in capsys.readouterr().err
    kept = tmp_path / "receipt.txt"
    kept.write_text(receipt + "\n")
    assert main(["verify", str(kept), "--key", key]) == 0
    for junk in ("", "r1", "收据", "\x00", "x" * 9_000, str(tmp_path)):
        assert main(["verify", junk, "--key", key]) == 1
    assert main(["verify", receipt, "--key", "nonsense"]) == 1
    assert main(["verify", receipt, "--key", key, "--chain"]) == 1
    capsys.readouterr()

    monkeypatch.setenv("COMPANION_DATA_DIR", str(tmp_path / "nothing"))
    assert main(["verify", receipt]) == 1
    assert "give --key or --url" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()
    monkeypatch.setenv("COMPANION_SECRET", SECRET)
    assert main(["verify", receipt]) == 0
    monkeypatch.setenv("COMPANION_SECRET", SECRET[::-1] + "x")
    assert main(["verify", receipt]) == 1


@pytest.mark.parametrize("command", ["verify", "close"])
def test_the_commands_explain_themselves(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"Example: companion {command}" in capsys.readouterr().out
