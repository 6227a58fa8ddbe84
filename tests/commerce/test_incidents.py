"""The switch for money: one act stops everything that sells or gives, one act lets it go on as it was (row L21)."""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from commerce.benefit_counters import benefit_keys
from commerce.benefits import WindowPromised
from commerce.incidents import Incident, MoneyPaused, NoIncident
from commerce.payment_health import PaymentsDown, read_health
from commerce.payments import FoundPayment
from live.database import Database
from live.engines import Addresses
from live.lua import Scripts
from membership.actor import OrderId, ShowId
from membership.partition import show_key
from membership.refusal import BadRequest, Forbidden, Refusal, Unavailable
from tests.commerce.guard_stage import BOSS, HOST, OTHER_BOSS, GuardedShop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shop(redis: Redis, scripts: Scripts, database: Database) -> GuardedShop:
    return GuardedShop(redis, scripts, database)


async def agree(shop: GuardedShop, show: ShowId | None = None) -> int:
    """The job's turn."""
    async with shop.tx() as t:
        return await shop.incidents.agree(t.conn, show)


async def hold_of(shop: GuardedShop, order: OrderId) -> datetime:
    rows = await shop.rows("SELECT hold_until FROM orders WHERE id = %s", order)
    hold: datetime = rows[0]["hold_until"]
    return hold


async def test_one_act_stops_offers_benefits_and_orders_in_every_show(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    first, second = await make_show(), await make_show()
    offers, benefits, quotes = {}, {}, {}
    buyer = await shop.buyer()
    for show in (first, second):
        offers[show] = await shop.flash(show, await shop.product())
        benefits[show] = await shop.give(show)
        quotes[show] = await shop.quote(buyer, show, (offers[show], 1))
    await shop.stop_selling("支付通道故障")
    for show in (first, second):
        assert (await shop.told(show) or {})["reason"] == "支付通道故障"
        assert [event["reason"] for event in await shop.events(show, "incident.began")] == ["支付通道故障"]
        refused: list[Refusal | Any] = [await shop.claim(show, benefits[show], buyer)]
        for attempt in (
            shop.place(buyer, show, quotes[show]),
            shop.flash(show, await shop.product()),
            shop.open(show, await shop.product()),
            shop.give(show),
            shop.join(buyer, (await shop.plan()).id, show),
        ):
            with pytest.raises(MoneyPaused) as raised:
                await attempt
            refused.append(raised.value)
        for refusal in refused:
            assert isinstance(refusal, Refusal)
            assert refusal.word == "paused"
            assert refusal.details["reason"] == "支付通道故障"
    await shop.go_on()
    for show in (first, second):
        assert await shop.told(show) is None
        assert len(await shop.events(show, "incident.ended")) == 1
        assert not isinstance(await shop.claim(show, benefits[show], buyer), Refusal)
        assert (await shop.place(buyer, show, quotes[show])).state == "placed"


async def test_it_ends_as_it_began_what_was_paused_before_stays_paused(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    open_one, paused_one = await shop.give(show), await shop.give(show)
    async with shop.tx() as t:
        await shop.benefits.pause(t, HOST, paused_one.id, "补货中")
    offer = await shop.flash(show, await shop.product())
    before = await shop.redis.hgetall(show_key(show, "states"))
    rows = await shop.rows("SELECT id, status, pause_reason, quota, event FROM benefits ORDER BY id")
    await shop.stop_selling()
    await shop.go_on()
    after = await shop.redis.hgetall(show_key(show, "states"))
    assert after.keys() == before.keys()
    assert after[f"offer:{offer.id}".encode()] == before[f"offer:{offer.id}".encode()]
    assert after[f"benefit:{open_one.id}".encode()] == before[f"benefit:{open_one.id}".encode()]
    assert rows == await shop.rows("SELECT id, status, pause_reason, quota, event FROM benefits ORDER BY id")
    still = await shop.claim(show, paused_one, buyer)
    assert isinstance(still, Refusal)
    assert (still.word, still.details["reason"]) == ("paused", "补货中")
    told = [event["type"] for event in await shop.events(show)]
    assert told.count("benefit.opened") == 2
    assert told[-2:] == ["incident.began", "incident.ended"]


async def move_back(shop: GuardedShop) -> None:
    """As if the switch had been on for twenty minutes."""
    async with shop.tx() as t:
        for table in ("offers", "benefits"):
            await t.conn.execute("SET LOCAL session_replication_role = replica")
            await t.conn.execute(
                f"UPDATE {table} SET opened_at = opened_at - interval '20 minutes',"
                " closes_at = closes_at - interval '20 minutes'"
            )
        await t.conn.execute("UPDATE incidents SET began_at = began_at - interval '20 minutes'")


async def test_windows_stand_still_while_it_is_on(shop: GuardedShop, make_show: MakeShow) -> None:
    """What had ten minutes left has ten minutes left afterwards, and nothing closes meanwhile."""
    show, buyer = await make_show(), await shop.buyer()
    offer, benefit = await shop.flash(show, await shop.product()), await shop.give(show, seconds=600)
    await shop.stop_selling()
    await move_back(shop)
    await shop.redis.hset(
        show_key(show, benefit_keys(benefit.id)[0]), "closes_at", str(int(datetime.now(UTC).timestamp()))
    )
    async with shop.tx() as t:
        assert await shop.offers.close_due(t) == 0
        assert await shop.benefits.close_due(t) == 0
    refused = await shop.claim(show, benefit, buyer)
    assert isinstance(refused, Refusal)
    assert refused.word == "paused"
    before = [(await shop.rows(f"SELECT closes_at FROM {table}"))[0] for table in ("offers", "benefits")]
    await shop.go_on()
    (stood,) = await shop.rows("SELECT ended_at - began_at AS lasted FROM incidents")
    assert stood["lasted"] > timedelta(minutes=20)
    for table, was in zip(("offers", "benefits"), before, strict=True):
        (now,) = await shop.rows(f"SELECT closes_at FROM {table}")
        assert now["closes_at"] - was["closes_at"] == stood["lasted"]
    assert not isinstance(await shop.claim(show, benefit, buyer), Refusal)
    await shop.place(buyer, show, await shop.quote(buyer, show, (offer, 1)))


async def test_a_promised_window_stands_still_for_who_closes_by_hand_too(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show, buyer = await make_show(), await shop.buyer()
    benefit, over = await shop.give(show, seconds=600), await shop.give(show, seconds=600)
    async with shop.tx() as t:
        await t.conn.execute("SET LOCAL session_replication_role = replica")
        await t.conn.execute(
            "UPDATE benefits SET opened_at = opened_at - interval '1 h', closes_at = opened_at WHERE id = %s",
            [over.id],
        )
    await shop.stop_selling()
    await move_back(shop)
    with pytest.raises(WindowPromised):
        async with shop.tx() as t:
            await shop.benefits.close(t, HOST, benefit.id)
    async with shop.tx() as t:  # its time was over when the switch came
        assert (await shop.benefits.close(t, HOST, over.id)).status == "closed"
    await shop.go_on()
    assert not isinstance(await shop.claim(show, benefit, buyer), Refusal)


async def test_what_was_over_before_is_not_brought_back(shop: GuardedShop, make_show: MakeShow) -> None:
    show = await make_show()
    await shop.flash(show, await shop.product())
    async with shop.tx() as t:
        await t.conn.execute(
            "UPDATE offers SET opened_at = now() - interval '2 hours', closes_at = now() - interval '1 second'"
        )
    await shop.stop_selling()
    async with shop.tx() as t:
        assert await shop.offers.close_due(t) == 1


@pytest.mark.rule("L21")
async def test_l21_holds_are_prolonged_once_and_never_twice(shop: GuardedShop, make_show: MakeShow) -> None:
    show = await make_show()
    offer = await shop.open(show, await shop.product())
    first, second, late = [await shop.buyer() for _ in range(3)]
    kept = await shop.buy(first, show, (offer, 1))
    paid = await shop.buy(second, show, (offer, 1))
    await shop.pay(paid.order, paid.total_fen)
    before, settled = await hold_of(shop, kept.order), await hold_of(shop, paid.order)
    incident = await shop.stop_selling(extend_s=600)
    assert incident.extended == 1
    assert await hold_of(shop, kept.order) - before == timedelta(seconds=600)
    assert await hold_of(shop, paid.order) == settled
    told = [note for note in await shop.notes(first) if note["type"] == "order.changed"][-1]
    assert (told["order"], told["state"]) == (kept.order, "placed")
    assert told["hold_until"] == round((before + timedelta(seconds=600)).timestamp() * 1000)
    await shop.stop_selling(extend_s=900)  # again: the same incident
    await agree(shop)
    await shop.go_on()
    new = await shop.buy(late, show, (offer, 1))
    fresh = await hold_of(shop, new.order)
    assert (await shop.stop_selling(extend_s=300)).extended == 1  # another incident: only who is new
    assert await hold_of(shop, kept.order) - before == timedelta(seconds=600)
    assert await hold_of(shop, new.order) - fresh == timedelta(seconds=300)


async def test_a_held_seat_is_prolonged_once_too(shop: GuardedShop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    benefit = await shop.give(show, needs="join", quota=2)
    await shop.join(buyer, (await shop.plan()).id, show)
    held = show_key(show, benefit_keys(benefit.id)[2])
    before = await shop.redis.zscore(held, buyer.id)
    assert before is not None
    await shop.stop_selling(extend_s=600)
    assert await shop.redis.zscore(held, buyer.id) == before + 600_000
    await agree(shop)
    await shop.go_on()
    await shop.stop_selling(extend_s=600)
    assert await shop.redis.zscore(held, buyer.id) == before + 600_000
    async with shop.tx() as t:
        await shop.seats.sweep(show)
        seats = await (await t.conn.execute("SELECT state, until FROM benefit_seats")).fetchall()
    assert [seat["state"] for seat in seats] == ["held"]


@pytest.mark.parametrize("over", [False, True])
async def test_a_seat_held_in_a_closed_benefit_is_prolonged_with_its_order(
    shop: GuardedShop, make_show: MakeShow, *, over: bool
) -> None:
    """Also where the show is over: its buyers go on paying."""
    show, buyer = await make_show(), await shop.buyer()
    benefit = await shop.give(show, needs="join", quota=2)
    placed = await shop.join(buyer, (await shop.plan()).id, show)
    hold = await hold_of(shop, placed.order)
    async with shop.tx() as t:
        await shop.benefits.close(t, HOST, benefit.id)
        if over:
            await t.conn.execute("UPDATE shows SET state = 'ended', ended_at = now() WHERE id = %s", [show])
    held = show_key(show, benefit_keys(benefit.id)[2])
    before = await shop.redis.zscore(held, buyer.id)
    assert before is not None
    await shop.stop_selling(extend_s=600)
    assert await hold_of(shop, placed.order) - hold == timedelta(seconds=600)
    assert await shop.redis.zscore(held, buyer.id) == before + 600_000
    await agree(shop)
    assert await shop.redis.zscore(held, buyer.id) == before + 600_000
    recorded = await shop.pay(placed.order, placed.total_fen)
    assert recorded.claim is not None
    assert recorded.claim.rank == 1


async def test_whoever_pays_meanwhile_has_paid(shop: GuardedShop, make_show: MakeShow) -> None:
    show, buyer = await make_show(), await shop.buyer()
    benefit = await shop.give(show, needs="join", quota=1)
    placed = await shop.join(buyer, (await shop.plan()).id, show)
    await shop.stop_selling()
    recorded = await shop.pay(placed.order, placed.total_fen)
    assert recorded.outcome == "accepted"
    assert recorded.claim is not None
    assert (recorded.claim.benefit, recorded.claim.rank) == (benefit.id, 1)


async def test_who_has_begun_to_order_ends_first_and_then_nobody_begins(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    """From the commit of the switch on no order is placed; no hold misses its prolonging."""
    show = await make_show()
    offer = await shop.open(show, await shop.product(stock=100))
    buyers = await shop.buyers(20)
    quotes = [await shop.quote(buyer, show, (offer, 1)) for buyer in buyers]
    places = [shop.place(buyer, show, quote) for buyer, quote in zip(buyers, quotes, strict=True)]
    answers = await asyncio.gather(*places[:10], shop.stop_selling(), *places[10:], return_exceptions=True)
    incident = next(answer for answer in answers if isinstance(answer, Incident))
    placed = await shop.rows("SELECT extended_by IS NOT NULL AS longer, placed_at FROM orders")
    assert len(placed) == incident.extended
    assert all(row["longer"] for row in placed)
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert all(isinstance(each, Refusal) and each.word == "paused" for each in refused)
    assert len(placed) + len(refused) == 20


async def test_two_who_press_at_once_make_one_incident_and_one_end(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show = await make_show()
    begun = await asyncio.gather(*(shop.stop_selling(f"故障 {n}") for n in range(6)))
    assert len({incident.id for incident in begun}) == 1
    assert len(await shop.events(show, "incident.began")) == 1
    ends = await asyncio.gather(*(shop.go_on() for _ in range(6)), return_exceptions=True)
    assert sum(isinstance(end, Incident) for end in ends) == 1
    assert sum(isinstance(end, NoIncident) for end in ends) == 5
    assert len(await shop.events(show, "incident.ended")) == 1


async def test_it_is_for_who_may_and_within_bounds(shop: GuardedShop) -> None:
    async with shop.tx() as t:
        with pytest.raises(Forbidden):
            await shop.incidents.begin(t, OTHER_BOSS, "故障", 600)
        for reason, extend_s in ((" ", 600), ("故" * 201, 600), ("故障", 901), ("故障", -1)):
            with pytest.raises(BadRequest):
                await shop.incidents.begin(t, HOST, reason, extend_s)
        with pytest.raises(Forbidden):
            await shop.incidents.end(t, OTHER_BOSS)
        with pytest.raises(NoIncident):
            await shop.incidents.end(t, BOSS)


# --- what a crash leaves ---


async def test_a_crash_between_the_commit_and_the_shows_is_finished_by_the_job(
    shop: GuardedShop, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, other, buyer = await make_show(), await make_show("paused"), await shop.buyer()
    benefit = await shop.give(show)

    async def dead(*_: object) -> None:
        return None

    with monkeypatch.context() as crash:
        crash.setattr(shop.incidents, "_put_all", dead)
        await shop.stop_selling()
    assert await shop.told(show) is None
    with pytest.raises(
        MoneyPaused
    ):  # the row is the truth: what goes through PostgreSQL stands still already
        await shop.give(show)
    assert await agree(shop) == 2
    assert await agree(shop) == 0
    assert (await shop.told(show) or {})["reason"] == "支付故障"
    assert (await shop.told(other) or {})["reason"] == "支付故障"
    refused = await shop.claim(show, benefit, buyer)
    assert isinstance(refused, Refusal)
    assert refused.word == "paused"
    with monkeypatch.context() as crash:
        crash.setattr(shop.incidents, "_put_all", dead)
        await shop.go_on()
    assert await shop.told(show) is not None
    assert await agree(shop) == 2
    assert await shop.told(show) is None
    assert not isinstance(await shop.claim(show, benefit, buyer), Refusal)


async def test_killed_in_the_middle_it_is_on_everywhere_or_off_everywhere_once_the_job_came_by(
    shop: GuardedShop, make_show: MakeShow, engines: Addresses, fresh_database_url: str
) -> None:
    """`kill -9` after the commit, when one of two shows was told."""
    shows = [await make_show(), await make_show()]
    benefit, buyer = await shop.give(shows[0]), await shop.buyer()
    offer = await shop.open(shows[1], await shop.product())
    kept = await shop.buy(buyer, shows[1], (offer, 1))
    before = await hold_of(shop, kept.order)
    for act, words in (("begin", ["incident.began"]), ("end", ["incident.began", "incident.ended"])):
        dying = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.commerce.dying_switch",
            engines.redis_url,
            fresh_database_url,
            act,
            "1",
            cwd=ROOT,
        )
        assert await dying.wait() == -signal.SIGKILL
        on = [await shop.told(show) is not None for show in shows]
        assert on.count(act == "begin") == 1
        assert await agree(shop) == 1
        assert [await shop.told(show) is not None for show in shows] == [act == "begin"] * 2
        for show in shows:
            assert [event["type"] for event in await shop.events(show, "")][-len(words) :] == words
    assert await hold_of(shop, kept.order) - before == timedelta(seconds=600)
    assert not isinstance(await shop.claim(shows[0], benefit, buyer), Refusal)


async def test_word_of_an_older_act_changes_nothing(shop: GuardedShop, make_show: MakeShow) -> None:
    """A slow process that still carries the beginning comes after the end."""
    show = await make_show()
    begun = await shop.stop_selling()
    await shop.go_on()
    assert await shop.incidents._put_all(begun, [show], []) == 0
    assert await shop.told(show) is None


async def test_a_show_that_opens_meanwhile_or_lost_its_keys_follows(
    shop: GuardedShop, scripts: Scripts, make_show: MakeShow
) -> None:
    old = await make_show()
    await shop.stop_selling()
    new = await make_show("waiting")
    await shop.redis.delete(*[key async for key in shop.redis.scan_iter(match=f"*{old}*")])
    with pytest.raises(Unavailable):
        await scripts.load("commerce", "put_meter")(old, [], [b"[]"])
    await scripts.load("live", "open_show")(old, [], ["epoch", 2, "live"])
    assert await agree(shop) == 2
    assert await shop.told(old) == await shop.told(new)
    assert await shop.told(new) is not None


# --- L21: payments that do not come through ---


async def started(shop: GuardedShop, show: ShowId, *, ago_s: int, asked: int) -> OrderId:
    """An order whose buyer is at the provider's page since `ago_s`."""
    buyer = await shop.buyer()
    placed = await shop.buy(buyer, show, (await shop.open(show, await shop.product()), 1))
    async with shop.tx() as t:
        await t.conn.execute(
            """
            INSERT INTO payment_starts (provider, order_id, amount_fen, ref, url, started_at, asked)
            VALUES ('sandbox', %s, %s, %s, 'http://pay.test', clock_timestamp() - make_interval(secs => %s), %s)
            """,
            [placed.order, placed.total_fen, f"ref-{placed.order}", ago_s, asked],
        )
    return placed.order


async def health(shop: GuardedShop) -> Any:
    async with shop.tx() as t:
        return await read_health(t.conn, "sandbox")


@pytest.mark.rule("L21")
async def test_l21_a_payment_found_by_asking_means_the_news_does_not_come_and_blocks_a_flash_start(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show = await make_show()
    order = await started(shop, show, ago_s=120, asked=2)
    assert (await health(shop)).state == "ok"  # somebody dawdles at the page
    assert ((await health(shop)).waiting, (await health(shop)).oldest_s >= 120) == (1, True)
    rows = await shop.rows("SELECT total_fen FROM orders WHERE id = %s", order)
    shop.provider.paid[f"ref-{order}"] = FoundPayment(
        ref=f"ref-{order}",
        order=order,
        amount_fen=rows[0]["total_fen"],
        payer="p",
        paid_at=datetime.now(UTC) - timedelta(seconds=90),
    )
    assert await shop.payments.ask_due(shop.database) == 1
    assert (await health(shop)).state == "webhook_down"
    with pytest.raises(PaymentsDown, match="incident switch") as refused:
        await shop.flash(show, await shop.product())
    assert refused.value.word == "payments_down"
    await shop.open(show, await shop.product())  # what nobody rushes for goes on
    heard = await shop.buy(await shop.buyer(), show, (await shop.open(show, await shop.product()), 1))
    await shop.pay(heard.order, heard.total_fen)  # the provider's news comes again
    assert (await health(shop)).state == "ok"
    await shop.flash(show, await shop.product())


@pytest.mark.rule("L21")
async def test_l21_a_provider_that_answers_no_question_is_down(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    show = await make_show()
    await started(shop, show, ago_s=20, asked=0)
    assert (await health(shop)).state == "ok"
    await started(shop, show, ago_s=61, asked=0)
    found = await health(shop)
    assert (found.state, found.waiting) == ("provider_down", 1)
    assert found.since is not None
    with pytest.raises(PaymentsDown):
        await shop.flash(show, await shop.product())


async def test_a_seat_is_prolonged_once_though_the_store_was_lost(
    shop: GuardedShop, make_show: MakeShow
) -> None:
    """Built anew from the books, in the same incident and in the next."""
    show, buyer = await make_show(), await shop.buyer()
    benefit = await shop.give(show, needs="join", quota=2)
    await shop.join(buyer, (await shop.plan()).id, show)
    held = show_key(show, benefit_keys(benefit.id)[2])
    before = await shop.redis.zscore(held, buyer.id)
    assert before is not None
    await shop.stop_selling(extend_s=600)
    await shop.seats.sweep(show)  # the change is written

    async def lose_and_build() -> None:
        await shop.redis.delete(*(show_key(show, key) for key in benefit_keys(benefit.id)))
        async with shop.tx() as t:
            assert await shop.benefits.agree(t, show, at_once=True) == 1

    await lose_and_build()
    await agree(shop)
    assert await shop.redis.zscore(held, buyer.id) == before + 600_000
    await shop.go_on()
    await lose_and_build()
    await shop.stop_selling(extend_s=900)
    assert await shop.redis.zscore(held, buyer.id) == before + 600_000
