"""Seats of a benefit for joining: taken once, passed on in order, settled with the payment."""

from __future__ import annotations

from typing import Any

import pytest
from anyio import create_task_group, fail_after, sleep, to_thread
from anyio.from_thread import run
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import commerce.seats
from commerce.benefit_counters import benefit_keys, lock_show
from commerce.seats import Missed, Queued, Swept
from membership.actor import BenefitId, MemberId, PaymentId, ShowId, new_id
from membership.audience import Audience
from membership.partition import show_key
from membership.refusal import Refusal, Unavailable
from tests.commerce.benefit_stage import GUEST, HOST, Stage, viewer
from tests.commerce.shop_stage import Shop
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


@pytest.mark.rule("semantics 2.3a", "semantics 2.5a")
async def test_starting_to_pay_holds_a_seat_for_five_minutes_never_renewed(
    stage: Stage, make_show: MakeShow
) -> None:
    show, member = await make_show(), await stage.member()
    benefit = await stage.open(show, needs="join")
    async with stage.tx() as t:
        first = await stage.seats.take(t, viewer(member), show)
    async with stage.tx() as t:
        again = await stage.seats.take(t, viewer(member), show)
    assert first is not None and first == again
    now = int((await stage.redis.time())[0]) * 1000
    assert first.status == "held" and first.until is not None and 298_000 < first.until - now <= 301_000
    counts = (await stage.state(show, benefit.id))["counts"]
    assert counts == {"confirmed": 0, "held": 1, "queued": 0}


@pytest.mark.rule("semantics 2.3a")
async def test_a_lapsed_seat_is_not_given_to_the_same_person_again(stage: Stage, make_show: MakeShow) -> None:
    show, member = await make_show(), await stage.member()
    benefit = await stage.open(show, needs="join")
    await stage.take(show, member)
    await stage.end_holds(show, benefit.id, [member])
    assert await stage.take(show, member) == "lapsed"
    with pytest.raises(Refusal) as refused:
        await stage.seats.queue(show, benefit.id, viewer(member))
    assert refused.value.word == "limit_reached"


@pytest.mark.rule("semantics 2.5a", "semantics 2.5b")
async def test_reserved_out_is_not_sold_out(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    await stage.open(show, needs="join", quota=1)
    payer, late = await stage.members(2)
    assert await stage.take(show, payer) == "held"
    assert await stage.take(show, late) == "reserved_out"
    _, rank = await stage.pay(show, payer)
    assert rank == 1
    assert await stage.take(show, late) == "sold_out"
    assert await stage.take(show, payer) == "confirmed"


@pytest.mark.rule("semantics 2.1a")
@pytest.mark.parametrize("who", ["guest", "paid", "staff"])
async def test_who_cannot_join_takes_no_seat(stage: Stage, make_show: MakeShow, who: str) -> None:
    show, member = await make_show(), await stage.member()
    await stage.open(show, needs="join")
    actor = {"guest": GUEST, "paid": viewer(member, plan=True), "staff": HOST}[who]
    async with stage.tx() as t:
        assert await stage.seats.take(t, actor, show) is None


@pytest.mark.rule("semantics 2.1a")
async def test_a_trial_converting_takes_a_seat(stage: Stage, make_show: MakeShow) -> None:
    show, member = await make_show(), await stage.member()
    await stage.open(show, needs="join")
    async with stage.tx() as t:
        status = await stage.seats.take(t, viewer(member, trial=True), show)
    assert status is not None and status.status == "held"


async def test_another_audience_takes_no_seat_and_no_rank(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    chosen, other = await stage.members(2)
    await stage.open(show, needs="join", audience=Audience(kind="list", members=(chosen,)))
    assert await stage.take(show, other) == "none"
    assert (await stage.pay(show, other))[1] is None
    assert await stage.take(show, chosen) == "held"


async def test_a_hold_goes_back_when_its_transaction_rolls_back(stage: Stage, make_show: MakeShow) -> None:
    show, member = await make_show(), await stage.member()
    benefit = await stage.open(show, needs="join")

    async def fail() -> None:
        async with stage.tx() as t:
            await stage.seats.take(t, viewer(member), show)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert (await stage.benefits.counts(show, benefit.id)).held == 0
    assert await stage.take(show, member) == "held"  # nothing happened: not the one seat of this person


@pytest.mark.rule("semantics 2.5b", "semantics 2.8b")
async def test_an_ended_order_frees_its_seat_for_the_queues_head(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=1)
    payer, first, second = await stage.members(3)
    await stage.take(show, payer)
    assert await stage.seats.queue(show, benefit.id, viewer(first)) == Queued(
        benefit=benefit.id, status="queued", ahead=0
    )
    queued = await stage.seats.queue(show, benefit.id, viewer(second))
    assert queued.ahead == 1
    assert (await stage.seats.queue(show, benefit.id, viewer(first))).ahead == 0  # keeps the place
    assert (await stage.state(show, benefit.id))["counts"]["queued"] == 2
    async with stage.tx() as t:
        await stage.seats.release(t, show, payer)
    assert await stage.take(show, first) == "held"
    assert await stage.take(show, second) == "reserved_out"
    await stage.seats.sweep(show)
    [note] = await stage.notes(first)
    assert note["type"] == "seat.held" and note["benefit"] == benefit.id


@pytest.mark.rule("semantics 2.8b")
async def test_lapsed_seats_are_swept_in_order_and_told_once(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=2)
    one, two, *line = await stage.members(5)
    await stage.take(show, one)
    await stage.take(show, two)
    for member in line:
        await stage.seats.queue(show, benefit.id, viewer(member))
    await stage.end_holds(show, benefit.id, [one, two])
    swept = await stage.seats.sweep(show)
    assert (swept.lapsed, swept.served) == (2, 2)
    again = await stage.seats.sweep(show)
    assert (again.lapsed, again.served) == (0, 0)
    assert [note["type"] for note in await stage.notes(one)] == ["seat.lapsed"]
    assert [len(await stage.notes(member)) for member in line] == [1, 1, 0]
    assert [await stage.take(show, member) for member in line] == ["held", "held", "reserved_out"]
    rows = await stage.rows("SELECT member_id::text AS m, state FROM benefit_seats")
    states = {row["m"]: row["state"] for row in rows}
    assert [states[m] for m in (one, two, *line)] == ["lapsed", "lapsed", "held", "held", "queued"]


async def test_nobody_waits_in_the_line_of_a_closed_benefit(stage: Stage, make_show: MakeShow) -> None:
    show, waits = await make_show(), await stage.member()
    benefit = (await stage.open(show, needs="join", quota=1)).id
    await stage.take(show, await stage.member())
    assert (await stage.seats.queue(show, benefit, viewer(waits))).status == "queued"
    await stage.seats.sweep(show)
    async with stage.tx() as t:
        assert (await stage.seats.standing(t.conn, show, waits))[benefit].queued
        await stage.benefits.close(t, HOST, benefit)
    async with stage.tx() as t:
        assert await stage.seats.standing(t.conn, show, waits) == {}


async def test_who_leaves_the_line_is_not_served(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=1)
    payer, first, second = await stage.members(3)
    await stage.take(show, payer)
    for member in (first, second):
        await stage.seats.queue(show, benefit.id, viewer(member))
    await stage.seats.leave_queue(show, benefit.id, viewer(first))
    await stage.seats.leave_queue(show, benefit.id, viewer(first))
    await stage.end_holds(show, benefit.id, [payer])
    await stage.seats.sweep(show)
    assert await stage.take(show, second) == "held"
    assert await stage.take(show, first) == "reserved_out"


@pytest.mark.rule("semantics 2.5b")
async def test_a_queue_only_where_a_seat_may_come_back(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=1)
    one, two, three = await stage.members(3)
    held = await stage.seats.queue(show, benefit.id, viewer(one))
    assert held.status == "held" and held.until  # one is free: no need to wait
    monkeypatch.setattr(commerce.seats, "QUEUE_MAX", 1)
    assert (await stage.seats.queue(show, benefit.id, viewer(two))).status == "queued"

    async def word(member: MemberId) -> str:
        with pytest.raises(Refusal) as refused:
            await stage.seats.queue(show, benefit.id, viewer(member))
        return refused.value.word

    assert await word(three) == "limit_reached"
    await stage.pay(show, one)
    assert await word(three) == "sold_out"
    assert await word(one) == "already_claimed"
    async with stage.tx() as t:
        await stage.benefits.pause(t, HOST, benefit.id, "事故")
    assert await word(three) == "paused"
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit.id)
    assert await word(three) == "closed"


async def test_bad_queue_commands_are_refused(stage: Stage, make_show: MakeShow) -> None:
    show, elsewhere, member = await make_show(), await make_show(), await stage.member()
    joins, claims = await stage.open(show, needs="join"), await stage.open(show)

    async def word(*args: Any) -> str:
        with pytest.raises(Refusal) as refused:
            await stage.seats.queue(*args)
        return refused.value.word

    assert await word(show, joins.id, GUEST) == "unauthenticated"
    assert await word(show, claims.id, viewer(member)) == "not_eligible"
    assert await word(show, joins.id, viewer(member, plan=True)) == "not_eligible"
    assert await word(elsewhere, joins.id, viewer(member)) == "not_found"
    assert await word(show, BenefitId("nonsense"), viewer(member)) == "not_found"


@pytest.mark.rule("semantics 2.4a")
async def test_ranks_are_given_in_the_order_of_commits_and_told_after(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=3)
    early, late = await stage.members(2)
    await stage.take(show, early)
    await stage.take(show, late)
    async with stage.tx() as t:
        payment = await stage.payment(t, show, late)
        claim = await stage.seats.confirm(t, show, late, payment, "p")
        assert claim is not None and (claim.rank, claim.of) == (1, 3)
        assert await stage.events(show, "benefit.claimed") == []
        assert (await stage.benefits.counts(show, benefit.id)).confirmed == 0
    assert (await stage.pay(show, early))[1] == 2
    events = await stage.events(show, "benefit.claimed")
    assert [(event["rank"], event["of"], event["name"]) for event in events] == [
        (1, 3, "王**"),
        (2, 3, "王**"),
    ]
    assert [note["type"] for note in await stage.notes(late)] == ["benefit.won"]
    assert (await stage.state(show, benefit.id))["counts"] == {"confirmed": 2, "held": 0, "queued": 0}


async def test_the_same_payment_confirms_once(stage: Stage, make_show: MakeShow) -> None:
    show, member = await make_show(), await stage.member()
    benefit = await stage.open(show, needs="join")
    payment, rank = await stage.pay(show, member)
    async with stage.tx() as t:
        again = await stage.seats.confirm(t, show, member, payment, "p")
    assert again is not None and again.rank == rank == 1
    assert await stage.ranks(benefit.id) == [1]
    assert len(await stage.events(show, "benefit.claimed")) == 1


@pytest.mark.rule("semantics 2.6a")
async def test_late_money_takes_a_free_seat_or_brings_the_plan_without_the_gift(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=2)
    one, two, three = await stage.members(3)
    for member in (one, two):
        await stage.take(show, member)
    await stage.end_holds(show, benefit.id, [one, two])
    assert (await stage.pay(show, one))[1] == 1  # lapsed, but one is free
    assert await stage.take(show, three) == "held"
    payment, rank = await stage.pay(show, two)
    assert rank is None
    async with stage.tx() as t:
        missed = await stage.seats.missed(t.conn, payment)
    assert missed is not None and missed.why == "reserved_out" and missed.benefit == benefit.id
    [row] = await stage.rows("SELECT recorded_at FROM benefit_misses WHERE payment_id = %s", payment)
    assert missed.refund_until == round(row["recorded_at"].timestamp() * 1000) + 24 * 3_600_000
    notes = [note for note in await stage.notes(two) if note["type"] == "benefit.missed"]
    assert [note["why"] for note in notes] == ["reserved_out"]
    assert (await stage.pay(show, three))[1] == 2


@pytest.mark.rule("semantics 2.6a")
async def test_who_never_had_a_seat_has_no_refund_window(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=1)
    one, two = await stage.members(2)
    await stage.pay(show, one)
    payment, rank = await stage.pay(show, two)
    assert rank is None
    async with stage.tx() as t:
        assert await stage.seats.missed(t.conn, payment) == Missed(benefit=benefit.id, why="sold_out")


@pytest.mark.rule("semantics 2.7a")
async def test_one_person_by_payer_and_by_phone(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=9)
    one, same_payer, same_phone, other = await stage.members(4)
    await stage.give_phone(one, "+8613800000001")
    assert (await stage.pay(show, one, "openid-1"))[1] == 1
    await stage.take(show, same_payer)
    payment, rank = await stage.pay(show, same_payer, "openid-1")
    assert rank is None
    async with stage.tx() as t:
        missed = await stage.seats.missed(t.conn, payment)
    assert missed is not None and missed.why == "already_claimed"
    await stage.drop_phone(one)
    await stage.give_phone(same_phone, "+8613800000001")
    assert (await stage.pay(show, same_phone, "openid-2"))[1] is None
    assert (await stage.pay(show, other, "openid-3"))[1] == 2
    counts = await stage.benefits.counts(show, benefit.id)
    assert (counts.confirmed, counts.held) == (2, 0)


@pytest.mark.rule("semantics 2.4a", "semantics 2.8a", "M18")
async def test_a_refund_keeps_the_gap_and_reopens_no_seat(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=2)
    one, two, three = await stage.members(3)
    payment, _ = await stage.pay(show, one)
    await stage.pay(show, two)
    async with stage.tx() as t:
        claim = await stage.seats.refund(t, payment, "recalled")
    assert claim is not None and (claim.state, claim.rank) == ("recalled", 1)
    assert await stage.take(show, three) == "sold_out"
    assert await stage.ranks(benefit.id) == [1, 2]
    async with stage.tx() as t:
        again = await stage.seats.refund(t, payment, "deducted")
    assert again is not None and again.state == "recalled"


async def test_a_refund_of_what_won_nothing_is_nothing(stage: Stage, make_show: MakeShow) -> None:
    async with stage.tx() as t:
        assert await stage.seats.refund(t, PaymentId(new_id()), "recalled") is None
        assert await stage.seats.missed(t.conn, PaymentId(new_id())) is None


async def test_a_payment_rolled_back_keeps_the_hold(stage: Stage, make_show: MakeShow) -> None:
    show, member = await make_show(), await stage.member()
    benefit = await stage.open(show, needs="join")
    await stage.take(show, member)

    async def fail(who: MemberId) -> None:
        async with stage.tx() as t:
            payment = await stage.payment(t, show, who)
            assert await stage.seats.confirm(t, show, who, payment, "p")
            counts = await stage.benefits.counts(show, benefit.id)
            assert (counts.confirmed, counts.held) == (0, 1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail(member)
    assert await stage.take(show, member) == "held"
    async with stage.tx() as t:
        await stage.seats.release(t, show, member)
    with pytest.raises(RuntimeError):
        await fail(await stage.member())  # had no seat: what was kept for it comes free
    assert (await stage.benefits.counts(show, benefit.id)).held == 0
    assert await stage.events(show, "benefit.claimed") == []


async def test_a_crash_in_a_payment_is_settled_by_the_tables(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commerce.seats, "SETTLING_GRACE_MS", 0)
    monkeypatch.setattr("commerce.claim_announcer.TOLD_GRACE_S", 0)
    show = await make_show()
    benefit = await stage.open(show, needs="join")
    lost, committed = await stage.members(2)
    for member in (lost, committed):
        await stage.take(show, member)
        await stage.seats.reserve_for_payment(benefit, member, "of a process that died")
    async with stage.tx() as t:  # its row was committed, and nobody was told
        payment = await stage.payment(t, show, committed)
        await t.conn.execute(
            "INSERT INTO benefit_claims (id, benefit_id, member_id, rank, payment_id)"
            " VALUES (%s, %s, %s, 1, %s)",
            [new_id(), benefit.id, committed, payment],
        )
    for _ in range(2):
        await stage.seats.sweep(show)
        counts = await stage.benefits.counts(show, benefit.id)
        assert (counts.confirmed, counts.held) == (1, 1)
    assert len(await stage.events(show, "benefit.claimed")) == 1
    assert await stage.take(show, lost) == "held"
    assert (await stage.pay(show, lost))[1] == 2


async def test_what_happened_to_seats_is_written_however_late_the_jobs_come(
    stage: Stage, make_show: MakeShow
) -> None:
    """They were away for two days from before the close; without this the show could never be closed."""
    show = await make_show()
    benefit = (await stage.open(show, needs="join")).id
    holder = await stage.member()
    await stage.take(show, holder)
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit)
        await t.conn.execute("UPDATE benefits SET closed_at = closed_at - interval '2 d'")
    await stage.end_holds(show, benefit, [holder])
    assert (await stage.seats.sweep(show)).lapsed == 1
    [row] = await stage.rows("SELECT state FROM benefit_seats")
    assert row["state"] == "lapsed"
    assert await stage.redis.llen(show_key(show, benefit_keys(benefit)[6])) == 0


@pytest.mark.rule("L5")
async def test_held_seats_outlive_the_close_and_no_other_does(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=5)
    holder, lapsed, stranger = await stage.members(3)
    await stage.take(show, holder)
    await stage.take(show, lapsed)
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit.id)
    await stage.end_holds(show, benefit.id, [lapsed])
    assert await stage.take(show, stranger) == "none"
    async with stage.tx() as t:
        await t.conn.execute("UPDATE shows SET state = 'ended', ended_at = now() WHERE id = %s", [show])
    assert (await stage.pay(show, holder))[1] == 1  # buyers keep paying after the show
    assert (await stage.pay(show, lapsed))[1] is None
    assert (await stage.pay(show, stranger))[1] is None
    assert [event["type"] for event in await stage.events(show)][-1] == "benefit.claimed"


async def test_a_hold_in_a_closed_benefit_is_honoured_beside_a_new_one(
    stage: Stage, make_show: MakeShow
) -> None:
    show, member = await make_show(), await stage.member()
    first = await stage.open(show, needs="join", title="第一轮")
    await stage.take(show, member)
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, first.id)
    await stage.open(show, needs="join", title="第二轮")
    async with stage.tx() as t:
        payment = await stage.payment(t, show, member)
        claim = await stage.seats.confirm(t, show, member, payment, "p")
    assert claim is not None and claim.benefit == first.id


async def test_a_lapsed_hold_in_a_closed_benefit_gives_way_to_the_new_one(
    stage: Stage, make_show: MakeShow
) -> None:
    show, member = await make_show(), await stage.member()
    first = await stage.open(show, needs="join", title="第一轮")
    await stage.take(show, member)
    await stage.end_holds(show, first.id, [member])
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, first.id)
    second = await stage.open(show, needs="join", title="第二轮")
    payment, rank = await stage.pay(show, member)
    assert rank == 1 and await stage.ranks(second.id) == [1]
    async with stage.tx() as t:
        assert await stage.seats.missed(t.conn, payment) is None
    assert [note["type"] for note in await stage.notes(member)] == ["benefit.won"]


async def test_paused_gives_no_seat_but_takes_the_money_of_holders(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=2)
    holder, waiting, late = await stage.members(3)
    await stage.take(show, holder)
    other = await stage.member()
    await stage.take(show, other)
    await stage.seats.queue(show, benefit.id, viewer(waiting))
    async with stage.tx() as t:
        await stage.benefits.pause(t, HOST, benefit.id, "事故处理中")
    await stage.end_holds(show, benefit.id, [other])
    assert await stage.take(show, late) == "paused"
    assert (await stage.pay(show, late))[1] is None  # what is free belongs to the queue first
    assert (await stage.pay(show, holder))[1] == 1
    async with stage.tx() as t:
        await stage.benefits.resume(t, HOST, benefit.id)
    assert await stage.take(show, waiting) == "held"


async def test_lost_counters_are_rebuilt_with_seats_and_queue(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=3)
    winner, holder, gone, *line = await stage.members(5)
    await stage.pay(show, winner)
    for member in (holder, gone):
        await stage.take(show, member)
    for member in line:
        await stage.seats.queue(show, benefit.id, viewer(member))
    await stage.seats.sweep(show)
    await stage.redis.delete(*[show_key(show, key) for key in benefit_keys(benefit.id)])
    with pytest.raises(Unavailable):
        await stage.take(show, holder)
    with pytest.raises(Unavailable):
        await stage.pay(show, holder)
    with pytest.raises(Unavailable):
        await stage.benefits.counts(show, benefit.id)
    assert (await stage.seats.sweep(show)).served == 0
    async with stage.tx() as t:
        assert await stage.benefits.agree(t, show, at_once=True) == 1
    counts = await stage.benefits.counts(show, benefit.id)
    assert (counts.confirmed, counts.held, counts.queued) == (1, 2, 2)
    assert await stage.take(show, winner) == "confirmed"
    assert await stage.take(show, holder) == "held"
    await stage.end_holds(show, benefit.id, [gone])
    assert await stage.take(show, gone) == "lapsed"
    assert await stage.take(show, line[0]) == "held"
    assert (await stage.pay(show, holder))[1] == 2
    async with stage.tx() as t:
        assert await stage.benefits.agree(t, show, at_once=True) == 0


@pytest.mark.rule("semantics 2.2a")
async def test_a_join_outside_the_show_counts_for_nothing(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show("waiting")
    assert (await stage.pay(show, await stage.member()))[1] is None
    assert await stage.rows("SELECT 1 AS n FROM show_joins") == []


class Rules:
    """The rules of seats as plain lists: what the real ones are compared with."""

    def __init__(self, quota: int) -> None:
        self.quota = quota
        self.paused = False
        self.held: list[int] = []
        self.had: set[int] = set()
        self.queue: list[int] = []
        self.ranks: list[int] = []  # persons in the order of their payments

    def free(self) -> int:
        return self.quota - len(self.held) - len(self.ranks)

    def serve(self) -> None:
        while self.free() > 0 and self.queue and not self.paused:
            self.hold(self.queue.pop(0))

    def hold(self, person: int) -> None:
        self.held.append(person)
        self.had.add(person)

    def take(self, person: int) -> str:
        if person in self.ranks:
            return "confirmed"
        if person in self.held:
            return "held"
        if person in self.had:
            return "lapsed"
        if self.paused:
            return "paused"
        if self.free() <= 0:
            return "reserved_out" if self.held else "sold_out"
        self.hold(person)
        return "held"

    def line_up(self, person: int) -> str:
        if person in self.ranks:
            return "already_claimed"
        if person in self.held:
            return "held"
        if person in self.had:
            return "limit_reached"
        if person in self.queue:
            return "queued"
        if self.paused:
            return "paused"
        if self.free() > 0:
            self.hold(person)
            return "held"
        if not self.held:
            return "sold_out"
        self.queue.append(person)
        return "queued"

    def end(self, person: int) -> None:
        if person in self.held:
            self.held.remove(person)
        self.serve()

    def may_pay(self, person: int) -> bool:
        if person in self.ranks:
            return False
        return person in self.held or self.free() - len(self.queue) > 0

    def pay(self, person: int) -> int | None:
        if not self.may_pay(person):
            return None
        for places in (self.held, self.queue):
            if person in places:
                places.remove(person)
        self.had.add(person)
        self.ranks.append(person)
        return len(self.ranks)


PERSON = st.integers(0, 2)


class SeatMachine(RuleBasedStateMachine):
    """Any walk over the acts on seats. Runs in a thread; each act runs on the test's own loop."""

    stage: Stage
    make_show: MakeShow

    @initialize(quota=st.just(1))
    def open(self, quota: int) -> None:
        self.plain = Rules(quota)
        run(self._open)

    async def _open(self) -> None:
        self.show = await self.make_show()
        self.benefit = (await self.stage.open(self.show, needs="join", quota=self.plain.quota)).id
        self.people = await self.stage.members(3)

    @rule(person=PERSON)
    def take(self, person: int) -> None:
        expected = self.plain.take(person)
        assert run(self.stage.take, self.show, self.people[person]) == expected

    @rule(person=PERSON)
    def line_up(self, person: int) -> None:
        async def queue() -> str:
            try:
                actor = viewer(self.people[person])
                return (await self.stage.seats.queue(self.show, self.benefit, actor)).status
            except Refusal as refusal:
                return refusal.word

        expected = self.plain.line_up(person)
        assert run(queue) == expected

    @rule(person=PERSON)
    def leave_line(self, person: int) -> None:
        if person in self.plain.queue:
            self.plain.queue.remove(person)
        run(self.stage.seats.leave_queue, self.show, self.benefit, viewer(self.people[person]))

    @rule(person=PERSON)
    def release(self, person: int) -> None:
        async def release() -> None:
            async with self.stage.tx() as t:
                await self.stage.seats.release(t, self.show, self.people[person])

        self.plain.end(person)
        run(release)

    @rule(person=PERSON)
    def lapse(self, person: int) -> None:
        self.plain.end(person)
        run(self.stage.end_holds, self.show, self.benefit, [self.people[person]])
        run(self.stage.seats.sweep, self.show)

    @rule(person=PERSON)
    def pay(self, person: int) -> None:
        expected = self.plain.pay(person)
        assert run(self.stage.pay, self.show, self.people[person])[1] == expected

    @rule(person=PERSON)
    def payment_fails(self, person: int) -> None:
        async def fail() -> None:
            with pytest.raises(RuntimeError):
                async with self.stage.tx() as t:
                    payment = await self.stage.payment(t, self.show, self.people[person])
                    claim = await self.stage.seats.confirm(t, self.show, self.people[person], payment, "p")
                    assert (claim is not None) == self.plain.may_pay(person)
                    raise RuntimeError

        run(fail)

    @rule()
    def more(self) -> None:
        async def more() -> None:
            async with self.stage.tx() as t:
                await self.stage.benefits.raise_quota(t, HOST, self.benefit, self.plain.quota)

        self.plain.quota += 1
        self.plain.serve()
        run(more)

    @rule()
    def pause_or_resume(self) -> None:
        async def turn() -> None:
            async with self.stage.tx() as t:
                if self.plain.paused:
                    await self.stage.benefits.pause(t, HOST, self.benefit, "事故")
                else:
                    await self.stage.benefits.resume(t, HOST, self.benefit)

        self.plain.paused = not self.plain.paused
        self.plain.serve()
        run(turn)

    @rule()
    def lose_redis(self) -> None:
        async def lose() -> None:
            await self.stage.seats.sweep(self.show)
            await self.stage.redis.delete(*[show_key(self.show, key) for key in benefit_keys(self.benefit)])
            async with self.stage.tx() as t:
                await self.stage.benefits.agree(t, self.show, at_once=True)

        run(lose)

    @invariant()
    def redis_the_tables_and_the_rules_agree(self) -> None:
        counts = run(self.stage.benefits.counts, self.show, self.benefit)
        assert counts.confirmed + counts.held <= counts.quota
        assert (counts.quota, counts.confirmed, counts.held, counts.queued) == (
            self.plain.quota,
            len(self.plain.ranks),
            len(self.plain.held),
            len(self.plain.queue),
        )
        rows = run(
            self.stage.rows,
            "SELECT member_id::text AS m, rank FROM benefit_claims WHERE benefit_id = %s ORDER BY rank",
            self.benefit,
        )
        assert [row["m"] for row in rows] == [self.people[person] for person in self.plain.ranks]
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))


@pytest.mark.rule("semantics 2.3b")
async def test_any_walk_keeps_the_rules_and_redis_agrees_with_the_tables(
    stage: Stage, make_show: MakeShow
) -> None:
    class Machine(SeatMachine):
        pass

    Machine.stage, Machine.make_show = stage, staticmethod(make_show)
    walk = settings(max_examples=50, stateful_step_count=40, deadline=None)
    await to_thread.run_sync(lambda: run_state_machine_as_test(Machine, settings=walk))


# --- late money when the benefit is over ---


@pytest.mark.parametrize("how", ["closed", "ended", "keys_gone", "never_swept"])
async def test_late_money_after_the_benefit_closed_is_told_with_a_refund(
    stage: Stage, make_show: MakeShow, how: str
) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=2)
    late = await stage.member()
    await stage.take(show, late)
    if how == "never_swept":
        await stage.rows("UPDATE benefit_seats SET until = now() - interval '1 day' RETURNING state")
    else:
        await stage.end_holds(show, benefit.id, [late])
        await stage.seats.sweep(show)
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit.id)
        if how != "closed":
            await t.conn.execute("UPDATE shows SET state = 'ended', ended_at = now() WHERE id = %s", [show])
    if how in ("keys_gone", "never_swept"):
        await stage.redis.delete(*[show_key(show, key) for key in benefit_keys(benefit.id)])
    payment, rank = await stage.pay(show, late)
    assert rank is None
    async with stage.tx() as t:
        missed = await stage.seats.missed(t.conn, payment)
        assert await stage.seats.confirm(t, show, late, payment, "p") is None  # again: told once
    assert missed is not None and (missed.benefit, missed.why) == (benefit.id, "closed")
    [row] = await stage.rows("SELECT recorded_at FROM benefit_misses WHERE payment_id = %s", payment)
    assert missed.refund_until == round(row["recorded_at"].timestamp() * 1000) + 24 * 3_600_000
    notes = [note for note in await stage.notes(late) if note["type"] == "benefit.missed"]
    assert [(note["why"], note["refund_until"]) for note in notes] == [("closed", missed.refund_until)]


async def test_late_money_for_a_closed_benefit_keeps_its_refund_when_the_new_one_is_full(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    first = await stage.open(show, needs="join", title="第一轮")
    late, other = await stage.members(2)
    await stage.take(show, late)
    await stage.end_holds(show, first.id, [late])
    await stage.seats.sweep(show)
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, first.id)
    await stage.open(show, needs="join", title="第二轮", quota=1)
    assert (await stage.pay(show, other))[1] == 1
    payment, rank = await stage.pay(show, late)
    assert rank is None
    async with stage.tx() as t:
        missed = await stage.seats.missed(t.conn, payment)
    assert missed is not None and (missed.benefit, missed.why) == (first.id, "closed")
    assert missed.refund_until is not None


async def test_who_had_no_seat_in_a_closed_benefit_missed_nothing(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=1)
    holder, waiting = await stage.members(2)
    await stage.take(show, holder)
    await stage.seats.queue(show, benefit.id, viewer(waiting))
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit.id)
    await stage.seats.sweep(show)
    payment, _ = await stage.pay(show, waiting)
    async with stage.tx() as t:
        assert await stage.seats.missed(t.conn, payment) is None


# --- a benefit that closes before a seat's row is written ---


@pytest.mark.rule("L5")
@pytest.mark.parametrize("how", ["free_at_once", "served"])
@pytest.mark.parametrize("ends", ["benefit", "show"])
async def test_a_seat_from_the_queue_outlives_a_close_that_comes_before_its_row(
    stage: Stage, make_show: MakeShow, how: str, ends: str
) -> None:
    show, benefit, member = await _seated_without_a_row(stage, make_show, how)
    assert await stage.take(show, member) == "held"
    async with stage.tx() as t:
        await stage.benefits.close_all(t, HOST, show)
        if ends == "show":
            await t.conn.execute("UPDATE shows SET state = 'ended', ended_at = now() WHERE id = %s", [show])
    payment, rank = await stage.pay(show, member)
    assert rank == 1
    async with stage.tx() as t:
        assert await stage.seats.missed(t.conn, payment) is None
    await stage.seats.sweep(show)
    states = "SELECT state FROM benefit_seats WHERE member_id = %s"
    assert await stage.rows(states, member) == [{"state": "confirmed"}]
    counts = await stage.benefits.counts(show, benefit)
    assert (counts.confirmed, counts.held) == (1, 0)


@pytest.mark.rule("semantics 2.6a")
async def test_late_money_for_a_seat_without_a_row_is_told_with_a_refund(
    stage: Stage, make_show: MakeShow
) -> None:
    show, benefit, late = await _seated_without_a_row(stage, make_show, "free_at_once")
    await stage.end_holds(show, benefit, [late])
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit)
    payment, rank = await stage.pay(show, late)
    assert rank is None
    async with stage.tx() as t:
        missed = await stage.seats.missed(t.conn, payment)
    assert missed is not None and (missed.benefit, missed.why) == (benefit, "closed")
    assert missed.refund_until is not None


async def test_a_seat_without_a_row_in_a_closed_benefit_is_honoured_beside_a_new_one(
    stage: Stage, make_show: MakeShow
) -> None:
    show, first, member = await _seated_without_a_row(stage, make_show, "free_at_once")
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, first)
    second = await stage.open(show, needs="join", title="第二轮")
    assert (await stage.pay(show, member))[1] == 1
    assert (await stage.ranks(first), await stage.ranks(second.id)) == ([1], [])
    assert (await stage.pay(show, await stage.member()))[1] == 1
    assert (await stage.ranks(first), await stage.ranks(second.id)) == ([1], [1])


async def test_an_ended_order_frees_a_seat_without_a_row_of_a_closed_benefit(
    stage: Stage, make_show: MakeShow
) -> None:
    show, benefit, member = await _seated_without_a_row(stage, make_show, "free_at_once")
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit)
    async with stage.tx() as t:
        await stage.seats.release(t, show, member)
    assert (await stage.benefits.counts(show, benefit)).held == 0


@pytest.mark.rule("L5")
async def test_a_close_that_the_store_has_not_heard_of_gives_no_seat_to_others(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, benefit, member = await _seated_without_a_row(stage, make_show, "free_at_once", quota=9)
    other = await stage.member()
    with monkeypatch.context() as patch:
        patch.setattr(stage.benefits._counters, "_put", _raise_away)
        async with stage.tx() as t:
            await stage.benefits.close(t, HOST, benefit)
    payment, rank = await stage.pay(show, other)
    assert rank is None
    async with stage.tx() as t:
        assert await stage.seats.missed(t.conn, payment) is None  # who never had a seat missed nothing
    assert (await stage.pay(show, member))[1] == 1


async def test_who_shares_the_payer_of_a_winner_missed_nothing_of_a_closed_benefit(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = (await stage.open(show, needs="join")).id
    one, other = await stage.members(2)
    assert (await stage.pay(show, one, "one-account"))[1] == 1
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit)
    payment, rank = await stage.pay(show, other, "one-account")
    assert rank is None
    async with stage.tx() as t:
        assert await stage.seats.missed(t.conn, payment) is None


async def _seated_without_a_row(
    stage: Stage, make_show: MakeShow, how: str, quota: int = 1
) -> tuple[ShowId, BenefitId, MemberId]:
    """A member with a seat by way of the queue, which no job has written yet."""
    show = await make_show()
    benefit = (await stage.open(show, needs="join", quota=quota)).id
    first, member = await stage.members(2)
    if how == "served":
        await stage.take(show, first)
        assert (await stage.seats.queue(show, benefit, viewer(member))).status == "queued"
        await stage.seats.sweep(show)
        await stage.end_holds(show, benefit, [first])
        assert await stage.take(show, first) == "lapsed"  # whose script serves the queue's head
    else:
        assert (await stage.seats.queue(show, benefit, viewer(member))).status == "held"
    held = "SELECT 1 AS n FROM benefit_seats WHERE state = 'held' AND member_id = %s"
    assert await stage.rows(held, member) == []
    return show, benefit, member


# --- locks and lost answers ---


async def test_the_sweep_and_a_payment_take_their_locks_in_one_order(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commerce.seats, "SETTLING_GRACE_MS", 0)
    show = await make_show()
    benefit = await stage.open(show, needs="join")
    crashed, late = await stage.members(2)
    for member in (crashed, late):
        await stage.take(show, member)
    await stage.seats.sweep(show)
    await stage.seats.reserve_for_payment(benefit, crashed, "of a process that died")
    await stage.end_holds(show, benefit.id, [late])  # the sweep is to write this member's row
    async with create_task_group() as tasks, stage.tx() as t:
        await lock_show(t.conn, show)
        tasks.start_soon(stage.seats.sweep, show)
        with fail_after(5):
            while not await stage.rows(
                "SELECT 1 AS n FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ):
                await sleep(0.01)
        payment = await stage.payment(t, show, late)
        claim = await stage.seats.confirm(t, show, late, payment, "p")
    assert claim is not None and claim.rank == 1
    counts = await stage.benefits.counts(show, benefit.id)
    assert (counts.confirmed, counts.held) == (1, 1)  # the crashed one's seat is held again
    assert await stage.take(show, crashed) == "held"


async def test_a_hold_whose_answer_was_lost_goes_back(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join", quota=1)
    member, other = await stage.members(2)
    real = stage.seats._hold

    async def unanswered(*args: Any) -> Any:
        await real(*args)
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(stage.seats, "_hold", unanswered)
        with pytest.raises(Unavailable):
            await stage.take(show, member)
    assert (await stage.benefits.counts(show, benefit.id)).held == 0
    assert await stage.take(show, member) == "held"  # not the one seat of this person
    with monkeypatch.context() as patch:
        patch.setattr(stage.seats, "_hold", unanswered)
        with pytest.raises(Unavailable):
            await stage.take(show, member)
    assert (await stage.benefits.counts(show, benefit.id)).held == 1  # an earlier order's seat stays
    assert await stage.take(show, other) == "reserved_out"
    assert (await stage.pay(show, member))[1] == 1


async def _raise_away(*_: Any, **__: Any) -> Any:
    raise Unavailable


@pytest.mark.parametrize("ends", ["cancelled", "expired"])
async def test_the_sweep_frees_the_seat_of_an_order_that_ended_while_the_store_was_away(
    shop: Shop, make_show: MakeShow, ends: str
) -> None:
    show = await make_show()
    stage = Stage(shop.redis, shop.scripts, shop.tx)
    benefit = await stage.open(show, needs="join", quota=2, seat_s=1_200)
    gone, stays, next_one = [await shop.buyer() for _ in range(3)]
    plan = (await shop.plan()).id
    placed = [await shop.join(buyer, plan, show) for buyer in (gone, stays)]
    assert await shop.seats.queue(show, benefit.id, next_one) == Queued(
        benefit=benefit.id, status="queued", ahead=0
    )
    release = shop.seats._release
    shop.seats._release = _raise_away
    if ends == "cancelled":
        async with shop.tx() as t:
            await shop.orders.cancel(t, gone, placed[0].order)
    else:
        async with shop.tx() as t:
            await t.conn.execute(
                "UPDATE orders SET hold_until = clock_timestamp() WHERE id = %s", [placed[0].order]
            )
        async with shop.tx() as t:
            assert await shop.orders.expire_due(t) == 1
    assert await shop.seats.sweep(show) == Swept()  # still away: the sweep goes on without
    shop.seats._release = release
    assert (await stage.benefits.counts(show, benefit.id)).held == 2
    assert (await shop.seats.sweep(show)).released == 1
    assert (await shop.seats.sweep(show)).released == 0
    async with shop.tx() as t:
        assert gone.member is not None and stays.member is not None and next_one.member is not None
        standing = await shop.seats.standing_of(t.conn, show, [gone.member, stays.member, next_one.member])
    assert {member for member, of in standing.items() if of[benefit.id].until} == {
        stays.member,
        next_one.member,
    }


async def test_the_sweep_leaves_the_seat_of_who_orders_again_or_was_served_after(
    shop: Shop, make_show: MakeShow
) -> None:
    show, plan = await make_show(), (await shop.plan()).id
    stage = Stage(shop.redis, shop.scripts, shop.tx)
    benefit = await stage.open(show, needs="join", quota=1, seat_s=1_200)
    holder, served = [await shop.buyer() for _ in range(2)]
    first = await shop.join(holder, plan, show)
    ended = await shop.join(served, plan, show)  # without a seat
    await shop.seats.queue(show, benefit.id, served)
    async with shop.tx() as t:
        await shop.orders.cancel(t, served, ended.order)
    release = shop.seats._release
    shop.seats._release = _raise_away
    async with shop.tx() as t:
        await shop.orders.cancel(t, holder, first.order)
    shop.seats._release = release
    again = await shop.join(holder, plan, show)  # before a sweep came by: the seat is theirs still
    assert again.seat is not None and again.seat.status == "held"
    assert (await shop.seats.sweep(show)).released == 0
    async with shop.tx() as t:
        await shop.orders.cancel(t, holder, again.order)
    assert [(await shop.seats.sweep(show)).released for _ in range(3)] == [0, 0, 0]
    async with shop.tx() as t:
        assert served.member is not None
        assert (await shop.seats.standing(t.conn, show, served.member))[benefit.id].until
