"""Benefits: opening, the earlier joins of tonight, raising, pausing, closing, agreement with the books."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from psycopg import errors

from commerce.benefit_counters import benefit_keys
from commerce.benefit_terms import GONE_AFTER_S, LOOKED_AT_S, BenefitInput
from commerce.benefits import BenefitOpen, Closed, NotLive
from commerce.claim_announcer import shown_name
from membership.actor import Actor, BenefitId, MemberId, ShowId, new_id
from membership.audience import PLAN_MEMBERS, Audience
from membership.partition import show_key
from membership.refusal import BadRequest, Forbidden, NotFound, Refusal, Unavailable
from membership.transaction import Transaction
from tests.commerce.benefit_stage import HOST, Stage, viewer
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


async def claimed(stage: Stage, show: ShowId, benefit: BenefitId, member: MemberId) -> str | int:
    [answer] = await stage.claims.claim_many(show, benefit, [(viewer(member), new_id())])
    return answer.word if isinstance(answer, Refusal) else answer.rank


@pytest.mark.rule("semantics 2.5a")
async def test_opening_tells_the_audience_after_the_commit(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    async with stage.tx() as t:
        benefit = await stage.benefits.open(
            t, HOST, show, BenefitInput(title=" 前百名 ", quota=100, value_fen=5900, seconds=600)
        )
        assert await stage.events(show) == []
    [event] = await stage.events(show)
    assert event["type"] == "benefit.opened" and event["quota"] == 100 and event["title"] == "前百名"
    state = await stage.state(show, benefit.id)
    assert state == {
        "id": benefit.id,
        "title": "前百名",
        "text": "",
        "what": "gift",
        "value_fen": 5900,
        "quota": 100,
        "per_person": 1,
        "needs": "nothing",
        "opens_at": benefit.opened_at,
        "closes_at": benefit.closes_at,
        "status": "open",
        "audience": 0,
        "counts": {"confirmed": 0, "held": 0, "queued": 0},
    }
    assert benefit.closes_at is not None and 599_000 <= benefit.closes_at - benefit.opened_at <= 601_000


async def test_an_audience_of_its_own_gets_its_own_bit(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, audience=Audience(kind="tiers", tiers=("gold",)))
    assert (await stage.state(show, benefit.id))["audience"] == 2
    entries: Any = await stage.redis.xrange(show_key(show, "log"))
    assert [fields[b"a"] for _, fields in entries] == [b"2"]


@pytest.mark.rule("semantics 2.2a", "semantics 2.2b")
async def test_tonights_paid_joins_are_confirmed_first_in_payment_order(
    stage: Stage, make_show: MakeShow
) -> None:
    show, elsewhere = await make_show(), await make_show()
    first, second, third, fourth, other = await stage.members(5)
    for member in (second, first):
        await stage.pay(show, member)
    await stage.pay(elsewhere, other)
    refunded, _ = await stage.pay(show, fourth)
    async with stage.tx() as t:
        await stage.seats.refund(t, refunded, "recalled")
    await stage.pay(show, third)
    benefit = await stage.open(show, needs="join", quota=4)
    async with stage.tx() as t:
        claims = await stage.benefits.claims(t.conn, benefit.id)
    assert [(claim.rank, claim.member) for claim in claims] == [(1, second), (2, first), (3, third)]
    counts = await stage.benefits.counts(show, benefit.id)
    assert (counts.confirmed, counts.held, counts.left) == (3, 0, 1)
    [event] = await stage.events(show, "benefit.opened")
    assert event["confirmed"] == 3
    won = [note for note in await stage.notes(first) if note["type"] == "benefit.won"]
    assert [note["rank"] for note in won] == [2]
    assert await stage.take(show, first) == "confirmed"
    assert (await stage.pay(show, other))[1] == 4


@pytest.mark.rule("semantics 2.2b", "semantics 2.7a")
async def test_earlier_joins_fill_no_more_than_the_quota_and_count_a_person_once(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    one, twin, two, three = await stage.members(4)
    await stage.pay(show, one, "openid-1")
    await stage.pay(show, twin, "openid-1")
    await stage.pay(show, two)
    await stage.pay(show, three)
    benefit = await stage.open(show, needs="join", quota=2)
    async with stage.tx() as t:
        claims = await stage.benefits.claims(t.conn, benefit.id)
    assert [claim.member for claim in claims] == [one, two]
    assert await stage.take(show, await stage.member()) == "sold_out"


@pytest.mark.rule("semantics 2.2b")
async def test_a_second_benefit_for_joining_confirms_the_earlier_joins_that_have_no_rank_yet(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    ranked, missed, between, after = await stage.members(4)
    await stage.pay(show, ranked)
    first = await stage.open(show, needs="join", quota=1)
    await stage.pay(show, missed)  # nothing is left
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, first.id)
    await stage.pay(show, between)
    second = await stage.open(show, needs="join", quota=3)
    assert (await stage.pay(show, after))[1] == 3
    async with stage.tx() as t:
        claims = [await stage.benefits.claims(t.conn, benefit.id) for benefit in (first, second)]
    assert [[claim.member for claim in each] for each in claims] == [[ranked], [missed, between, after]]


@pytest.mark.rule("semantics 2.2b")
async def test_a_payment_and_the_opening_do_not_pass_each_other(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    members = await stage.members(6)
    results: list[Any] = await asyncio.gather(
        *(stage.pay(show, member) for member in members[:3]),
        stage.open(show, needs="join", quota=6),
        *(stage.pay(show, member) for member in members[3:]),
    )
    benefit = results[3].id
    assert await stage.ranks(benefit) == [1, 2, 3, 4, 5, 6]
    rows = await stage.rows(
        "SELECT c.rank FROM benefit_claims c JOIN show_joins j USING (payment_id) ORDER BY j.ordinal"
    )
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6]


async def test_one_benefit_for_joining_at_a_time(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join")
    with pytest.raises(BenefitOpen):
        await stage.open(show, needs="join")
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit.id)
    await stage.open(show, needs="join")


@pytest.mark.parametrize(
    "terms",
    [
        {"needs": "join", "per_person": 2},
        {"needs": "join", "audience": PLAN_MEMBERS},
        {"needs": "join", "audience": Audience(exclude=PLAN_MEMBERS)},
        {"title": "   "},
    ],
)
async def test_terms_that_cannot_be_are_refused(
    stage: Stage, make_show: MakeShow, terms: dict[str, Any]
) -> None:
    show = await make_show()
    with pytest.raises(BadRequest):
        await stage.open(show, **terms)
    assert await stage.events(show) == []


@pytest.mark.parametrize("status", ["scheduled", "waiting", "paused", "ended"])
async def test_a_benefit_opens_only_in_a_live_show(stage: Stage, make_show: MakeShow, status: str) -> None:
    show = await make_show(status)
    with pytest.raises(NotLive):
        await stage.open(show)


async def test_an_unknown_show_or_benefit_is_not_found(stage: Stage) -> None:
    with pytest.raises(NotFound):
        await stage.open(ShowId("nowhere"))
    for wrong in (new_id(), "nonsense"):
        with pytest.raises(NotFound):
            async with stage.tx() as t:
                await stage.benefits.close(t, HOST, BenefitId(wrong))


async def test_only_who_runs_offers_may_touch_a_benefit(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = (await stage.open(show)).id
    nobody = Actor(kind="staff", id="x", permissions=frozenset({"chat.moderate"}))
    acts: list[Callable[[Transaction], Awaitable[object]]] = [
        lambda t: stage.benefits.open(t, nobody, show, BenefitInput(title="x", quota=1)),
        lambda t: stage.benefits.raise_quota(t, nobody, benefit, 9),
        lambda t: stage.benefits.pause(t, nobody, benefit, "x"),
        lambda t: stage.benefits.resume(t, nobody, benefit),
        lambda t: stage.benefits.close(t, nobody, benefit),
        lambda t: stage.benefits.close_all(t, nobody, show),
    ]
    for act in acts:
        with pytest.raises(Forbidden):
            async with stage.tx() as t:
                await act(t)


@pytest.mark.rule("semantics 2.9a")
async def test_a_quota_rises_and_serves_the_queue_and_never_falls(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = (await stage.open(show, needs="join", quota=1)).id
    payer, *line = await stage.members(3)
    await stage.take(show, payer)
    for member in line:
        await stage.seats.queue(show, benefit, viewer(member))
    async with stage.tx() as t:
        raised = await stage.benefits.raise_quota(t, HOST, benefit, 2)
    assert (raised.quota, raised.version) == (2, 2)
    assert [await stage.take(show, member) for member in line] == ["held", "reserved_out"]
    assert (await stage.events(show))[-1]["type"] == "benefit.raised"
    assert (await stage.state(show, benefit))["quota"] == 2
    for quota in (1, 0, -5, 100_001):
        with pytest.raises(BadRequest):
            async with stage.tx() as t:
                await stage.benefits.raise_quota(t, HOST, benefit, quota)
    async with stage.tx() as t:  # the same again is no change
        assert (await stage.benefits.raise_quota(t, HOST, benefit, 2)).version == 2


async def test_sold_out_is_told_once_for_each_quota(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = (await stage.open(show, quota=1)).id
    one, two = await stage.members(2)
    assert await claimed(stage, show, benefit, one) == 1
    async with stage.tx() as t:
        await stage.benefits.raise_quota(t, HOST, benefit, 2)
    stage.claims._spent.clear()
    assert await claimed(stage, show, benefit, two) == 2
    assert [event["of"] for event in await stage.events(show, "benefit.sold_out")] == [1, 2]


@pytest.mark.rule("semantics 2.9a")
async def test_a_pause_shows_its_reason_to_viewers(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = (await stage.open(show)).id
    async with stage.tx() as t:
        await stage.benefits.pause(t, HOST, benefit, " 事故处理中 ")
    state = await stage.state(show, benefit)
    assert (state["status"], state["reason"]) == ("paused", "事故处理中")
    assert (await stage.events(show))[-1]["reason"] == "事故处理中"
    async with stage.tx() as t:
        assert (await stage.benefits.pause(t, HOST, benefit, "事故处理中")).version == 2
    async with stage.tx() as t:
        await stage.benefits.resume(t, HOST, benefit)
    async with stage.tx() as t:
        assert (await stage.benefits.resume(t, HOST, benefit)).version == 3
    assert "reason" not in await stage.state(show, benefit)
    for reason in ("", "   ", "x" * 201):
        with pytest.raises(BadRequest):
            async with stage.tx() as t:
                await stage.benefits.pause(t, HOST, benefit, reason)


async def test_a_closed_benefit_stays_closed(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = (await stage.open(show)).id
    for _ in range(2):
        async with stage.tx() as t:
            assert (await stage.benefits.close(t, HOST, benefit)).status == "closed"
    assert len(await stage.events(show, "benefit.closed")) == 1
    acts: list[Callable[[Transaction], Awaitable[object]]] = [
        lambda t: stage.benefits.raise_quota(t, HOST, benefit, 9),
        lambda t: stage.benefits.pause(t, HOST, benefit, "x"),
        lambda t: stage.benefits.resume(t, HOST, benefit),
    ]
    for act in acts:
        with pytest.raises(Closed):
            async with stage.tx() as t:
                await act(t)


async def test_a_show_that_ends_closes_what_is_open(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    await stage.open(show)
    await stage.open(show, needs="join")
    async with stage.tx() as t:
        assert len(await stage.benefits.close_all(t, HOST, show)) == 2
    async with stage.tx() as t:
        assert {benefit.status for benefit in await stage.benefits.list(t.conn, show)} == {"closed"}


async def test_what_has_passed_its_time_is_closed(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    due, running = await stage.open(show, seconds=60), await stage.open(show, seconds=60)
    await stage.let_end(due.id)
    for expected in (1, 0):
        async with stage.tx() as t:
            assert await stage.benefits.close_due(t) == expected
    async with stage.tx() as t:
        states = [benefit.status for benefit in await stage.benefits.list(t.conn, show)]
    assert states == ["closed", "open"]
    assert running.status == "open"


async def test_a_member_sees_what_they_won(stage: Stage, make_show: MakeShow) -> None:
    show, member = await make_show(), await stage.member()
    benefit = await stage.open(show, title="厨房三件套", quota=7)
    await claimed(stage, show, benefit.id, await stage.member())
    await claimed(stage, show, benefit.id, member)
    async with stage.tx() as t:
        [mine] = await stage.benefits.claims_of(t.conn, member)
    assert (mine.title, mine.rank, mine.of, mine.show, mine.state) == ("厨房三件套", 2, 7, show, "confirmed")


async def test_a_crash_after_the_commit_of_terms_is_put_in_force_and_told_once(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await make_show()
    benefit = (await stage.open(show, quota=1)).id

    async def dead(*args: object) -> None:
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(stage.benefits._counters, "_put", dead)
        async with stage.tx() as t:
            await stage.benefits.raise_quota(t, HOST, benefit, 2)
    async with stage.tx() as t:
        assert await stage.benefits.agree(t, show) == 0  # so young that its maker may still be at it
    assert (await stage.benefits.counts(show, benefit)).quota == 1
    monkeypatch.setattr("commerce.benefit_counters.TOLD_GRACE_S", 0)
    for expected in (1, 0, 0):
        async with stage.tx() as t:
            assert await stage.benefits.agree(t, show) == expected
    assert (await stage.benefits.counts(show, benefit)).quota == 2
    assert len(await stage.events(show, "benefit.raised")) == 1
    [row] = await stage.rows("SELECT version, told_version FROM benefits")
    assert row["version"] == row["told_version"] == 2


async def test_a_crash_at_the_opening_is_made_good(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await make_show()

    async def dead(*args: object) -> None:
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(stage.benefits._counters, "_put", dead)
        benefit = (await stage.open(show)).id
    assert await claimed(stage, show, benefit, await stage.member()) == "unavailable"
    async with stage.tx() as t:
        await stage.benefits.agree(t, show, at_once=True)
    assert len(await stage.events(show, "benefit.opened")) == 1
    assert await claimed(stage, show, benefit, await stage.member()) == 1


async def test_a_lost_show_is_rebuilt_under_a_new_generation_without_telling_again(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = (await stage.open(show, quota=3)).id
    winner, other = await stage.members(2)
    assert await claimed(stage, show, benefit, winner) == 1
    async with stage.tx() as t:
        await stage.benefits.agree(t, show)  # notes that the opening was told
    await stage.redis.flushall()
    with pytest.raises(Unavailable):
        async with stage.tx() as t:
            await stage.benefits.agree(t, show)
    await stage.scripts.load("live", "open_show")(show, [], ["reborn", 2, "live"])
    assert await claimed(stage, show, benefit, other) == "unavailable"
    async with stage.tx() as t:
        assert await stage.benefits.agree(t, show, at_once=True) == 1
    assert await stage.events(show) == []
    [row] = await stage.rows("SELECT generation FROM benefits")
    assert row["generation"] == 2
    assert (await stage.state(show, benefit))["counts"]["confirmed"] == 1
    assert await claimed(stage, show, benefit, winner) == "already_claimed"
    assert await claimed(stage, show, benefit, other) == 2


async def test_after_a_rebuild_the_same_key_still_gets_the_same_answer(
    stage: Stage, make_show: MakeShow
) -> None:
    show, member = await make_show(), await stage.member()
    benefit = (await stage.open(show)).id
    [before] = await stage.claims.claim_many(show, benefit, [(viewer(member), "k")])
    await stage.redis.flushall()
    await stage.scripts.load("live", "open_show")(show, [], ["reborn", 2, "live"])
    async with stage.tx() as t:
        await stage.benefits.agree(t, show, at_once=True)
    assert await stage.claims.claim_many(show, benefit, [(viewer(member), "k")]) == [before]


@pytest.mark.parametrize("needs", ["join", "nothing"])
async def test_a_committed_claim_that_nobody_was_told_is_told_once_after_a_rebuild(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch, needs: str
) -> None:
    monkeypatch.setattr("commerce.claim_announcer.TOLD_GRACE_S", 0)
    show = await make_show()
    benefit = (await stage.open(show, needs=needs, quota=2)).id
    told, untold = await stage.members(2)

    async def win(member: MemberId) -> int | str | None:
        if needs == "nothing":
            return await claimed(stage, show, benefit, member)
        return (await stage.pay(show, member))[1]

    assert await win(told) == 1
    for _ in range(2):
        await tended(stage)  # notes that the first one was told
    announcer = (stage.seats if needs == "join" else stage.claims)._announcer
    with monkeypatch.context() as patch:
        patch.setattr(announcer, "_announce", _away)
        assert await win(untold) == 2
    await stage.redis.delete(*[show_key(show, key) for key in benefit_keys(benefit)])
    async with stage.tx() as t:
        assert await stage.benefits.agree(t, show, at_once=True) == 1
    counts = await stage.benefits.counts(show, benefit)
    assert (counts.confirmed, counts.held) == (2, 0)  # at once, whoever was told of it
    for _ in range(3):
        await tended(stage)
        assert [event["rank"] for event in await stage.events(show, "benefit.claimed")] == [1, 2]
        for rank, member in ((1, told), (2, untold)):
            won = [note["rank"] for note in await stage.notes(member) if note["type"] == "benefit.won"]
            assert won == [rank]
    assert len(await stage.events(show, "benefit.sold_out")) == 1
    counts = await stage.benefits.counts(show, benefit)
    assert (counts.confirmed, counts.held) == (2, 0)
    assert await win(await stage.member()) in (None, "sold_out")


async def test_a_claim_told_just_before_a_rebuild_is_not_told_again(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row does not say so yet: that is noted some seconds later."""
    monkeypatch.setattr("commerce.claim_announcer.TOLD_GRACE_S", 0)
    show = await make_show()
    benefit = (await stage.open(show, quota=1)).id
    assert await claimed(stage, show, benefit, await stage.member()) == 1
    [row] = await stage.rows("SELECT announced_at FROM benefit_claims")
    assert row["announced_at"] is None
    await stage.redis.delete(show_key(show, benefit_keys(benefit)[0]))
    async with stage.tx() as t:
        assert await stage.benefits.agree(t, show, at_once=True) == 1
    await tended(stage)
    [row] = await stage.rows("SELECT announced_at FROM benefit_claims")
    assert row["announced_at"] is not None
    assert len(await stage.events(show, "benefit.claimed")) == 1
    assert len(await stage.events(show, "benefit.sold_out")) == 1
    assert (await stage.benefits.counts(show, benefit)).confirmed == 1


async def _away(*_: Any) -> Any:
    raise Unavailable


async def test_counters_of_an_older_store_are_not_believed(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = (await stage.open(show)).id
    # The store came back from the past: the show's keys were opened anew, the benefit's are old.
    await stage.scripts.load("live", "open_show")(show, [], ["reborn", 2, "live"])
    assert await claimed(stage, show, benefit, await stage.member()) == "unavailable"


async def test_an_older_version_changes_nothing(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = (await stage.open(show, quota=1)).id
    held: list[Any] = []
    put = stage.benefits._counters._put

    async def late(*args: Any) -> None:
        held.append(args)

    stage.benefits._counters._put = late  # type: ignore[assignment]
    async with stage.tx() as t:
        await stage.benefits.raise_quota(t, HOST, benefit, 2)
    stage.benefits._counters._put = put
    async with stage.tx() as t:
        await stage.benefits.raise_quota(t, HOST, benefit, 3)
    assert await put(*held[0]) == b"same"
    assert (await stage.benefits.counts(show, benefit)).quota == 3


async def tended(stage: Stage) -> list[ShowId]:
    """One turn of the job that tends, as in live/jobs.py; returns whom it tended."""
    async with stage.tx() as t:
        shows = list(await stage.benefits.to_tend(t.conn))
    for show in shows:
        async with stage.tx() as t:
            await stage.benefits.agree(t, show)
        await stage.seats.sweep(show)
        await stage.claims.settle(show)
    return shows


async def later(stage: Stage, seconds: int) -> None:
    """Everything about benefits happened so much earlier."""
    by = timedelta(seconds=seconds)
    async with stage.tx() as t:
        await t.conn.execute(
            "UPDATE benefits SET closed_at = closed_at - %s, settled_at = settled_at - %s", [by, by]
        )
        await t.conn.execute("UPDATE benefit_claims SET claimed_at = claimed_at - %s", [by])


async def test_what_is_tended_comes_newest_first_until_nothing_of_it_is_left(
    stage: Stage, make_show: MakeShow
) -> None:
    older, newer, _ = await make_show(), await make_show(), await make_show()
    first, second = (await stage.open(older, needs="join")).id, (await stage.open(newer)).id
    payer = await stage.member()
    await stage.take(older, payer)
    await claimed(stage, newer, second, payer)
    assert await tended(stage) == [newer, older]
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, first)
        await stage.benefits.close(t, HOST, second)
    for _ in range(3):  # a seat is held in one, of the other a claim is not noted as told
        assert await tended(stage) == [newer, older]
    assert await settled(stage) == []
    await later(stage, 5)
    for _ in range(3):
        await tended(stage)
    assert await settled(stage) == [second]
    await stage.end_holds(older, first, [payer])
    for _ in range(3):
        await tended(stage)
    assert await settled(stage) == [first, second]
    assert await tended(stage) == [newer, older]  # still looked at, as long as a store may take writes back
    await later(stage, LOOKED_AT_S)
    assert await tended(stage) == []


async def test_a_settled_benefit_that_is_not_is_tended_again(stage: Stage, make_show: MakeShow) -> None:
    """The store lost its last writes, or the counters are built anew."""
    show, payer = await make_show(), await stage.member()
    benefit = (await stage.open(show, needs="join")).id
    await stage.take(show, payer)
    kept = await stage.redis.lrange(show_key(show, benefit_keys(benefit)[6]), 0, -1)  # not yet written
    assert len(kept) == 1
    await stage.end_holds(show, benefit, [payer])
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit)
    for _ in range(3):
        await tended(stage)
    assert await settled(stage) == [benefit]
    await stage.redis.rpush(show_key(show, benefit_keys(benefit)[6]), *kept)
    async with stage.tx() as t:
        await stage.benefits.agree(t, show)
    assert await settled(stage) == []
    for _ in range(2):
        await tended(stage)
    assert await settled(stage) == [benefit]
    async with stage.tx() as t:
        await t.conn.execute("UPDATE benefits SET generation = generation + 1")
    assert await settled(stage) == []


async def test_a_winner_is_told_however_late_the_jobs_come(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, winner = await make_show(), await stage.member()
    benefit = (await stage.open(show)).id

    async def dead(*args: object) -> None:
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(stage.claims._announcer, "tell", dead)
        await claimed(stage, show, benefit, winner)
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit)
    await later(stage, 10 * GONE_AFTER_S)
    for _ in range(3):
        assert await tended(stage) == [show]
    assert [event["rank"] for event in await stage.events(show, "benefit.claimed")] == [1]
    assert await settled(stage) == [benefit]


async def test_where_the_store_holds_nothing_of_the_show_nothing_is_left_to_settle(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = (await stage.open(show, needs="join")).id
    await stage.take(show, await stage.member())
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit)
    await stage.redis.delete(show_key(show, "meta"))
    await later(stage, GONE_AFTER_S - 60)
    async with stage.tx() as t:
        with pytest.raises(Unavailable):
            await stage.benefits.agree(t, show)
    await later(stage, 60)
    async with stage.tx() as t:
        await stage.benefits.agree(t, show)
    assert await settled(stage) == [benefit]


async def settled(stage: Stage) -> list[BenefitId]:
    rows = await stage.rows("SELECT id FROM benefits WHERE settled_at IS NOT NULL ORDER BY id")
    return [BenefitId(str(row["id"])) for row in rows]


@pytest.mark.rule("semantics 2.9a", "semantics 2.4a")
async def test_the_tables_are_the_last_guard(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = (await stage.open(show, quota=1)).id
    one, two = await stage.members(2)

    async def insert(member: MemberId, rank: int, nth: int = 1) -> None:
        async with stage.tx() as t:
            await t.conn.execute(
                "INSERT INTO benefit_claims (id, benefit_id, member_id, rank, nth)"
                " VALUES (%s, %s, %s, %s, %s)",
                [new_id(), benefit, member, rank, nth],
            )

    async def change(query: str) -> None:
        async with stage.tx() as t:
            await t.conn.execute(query)

    await insert(one, 1)
    with pytest.raises(errors.UniqueViolation):
        await insert(two, 1)
    with pytest.raises(errors.CheckViolation):
        await insert(two, 2)
    with pytest.raises(errors.CheckViolation):
        await insert(one, 1, 2)
    for query in (
        "UPDATE benefit_claims SET rank = 7",
        "DELETE FROM benefit_claims",
        "UPDATE benefits SET quota = 0",
        "UPDATE benefits SET value_fen = 1",
    ):
        with pytest.raises(errors.RestrictViolation):
            await change(query)


def test_a_winner_without_a_name_is_a_member() -> None:
    assert (shown_name("王小明"), shown_name(None), shown_name("")) == ("王**", "会**", "会**")
