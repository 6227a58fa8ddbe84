"""Claims of a benefit that needs no payment: who wins, who is told what, what a crash leaves."""

from __future__ import annotations

import asyncio

import pytest
from psycopg import OperationalError

import commerce.claims
from commerce.benefit_counters import benefit_keys
from commerce.claims import AlreadyClaimed, Claims, SoldOut, Won
from commerce.coupons import CouponRuleInput, CouponRulePatch
from commerce.grants import CannotGive
from membership.actor import Actor, BenefitId, MemberId, new_id
from membership.audience import PLAN_MEMBERS, Audience
from membership.partition import show_key
from membership.refusal import Refusal, Unavailable
from tests.commerce.benefit_stage import GUEST, HOST, Stage, gathered, viewer
from tests.commerce.shop_stage import OPERATOR
from tests.conftest import MakeShow

pytestmark = pytest.mark.anyio


def words(answers: list[Won | Refusal]) -> list[str | int]:
    return [answer.rank if isinstance(answer, Won) else answer.word for answer in answers]


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spent quota is asked of Redis each time."""
    monkeypatch.setattr(commerce.claims, "SPENT_S", 0.0)


@pytest.mark.rule("semantics 2.10a")
async def test_the_first_n_in_order_of_arrival_win_and_the_rest_get_sold_out(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=3)
    members = await stage.members(5)
    answers = await stage.claims.claim_many(show, benefit.id, [(viewer(m), "k") for m in members])
    assert words(answers) == [1, 2, 3, "sold_out", "sold_out"]
    assert await stage.ranks(benefit.id) == [1, 2, 3]
    assert [event["rank"] for event in await stage.events(show, "benefit.claimed")] == [1, 2, 3]
    assert len(await stage.events(show, "benefit.sold_out")) == 1
    counts = await stage.benefits.counts(show, benefit.id)
    assert (counts.confirmed, counts.held, counts.left) == (3, 0, 0)
    assert await stage.notes(members[0]) == [
        {"type": "benefit.won", "benefit": benefit.id, "rank": 1, "of": 3}
    ]


async def test_the_public_event_masks_the_name(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show)
    await stage.claims.claim_many(show, benefit.id, [(viewer(await stage.member()), "k")])
    [event] = await stage.events(show, "benefit.claimed")
    assert event["name"] == "王**"


async def test_the_same_key_gets_the_same_answer(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=1)
    member = await stage.member()
    again = await stage.claims.claim_many(show, benefit.id, [(viewer(member), "k")] * 3)
    assert words(again) == [1, 1, 1]
    assert words(await stage.claims.claim_many(show, benefit.id, [(viewer(member), "k")])) == [1]
    assert await stage.ranks(benefit.id) == [1]


async def test_two_devices_at_once_win_once(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=5)
    member = await stage.member()
    phone, pad = Claims(stage.scripts, stage.notices, stage.tx, stage.grants), stage.claims
    first, second = await asyncio.gather(
        phone.claim_many(show, benefit.id, [(viewer(member), "phone")]),
        pad.claim_many(show, benefit.id, [(viewer(member), "pad")]),
    )
    assert sorted(map(str, words(first + second))) == ["1", "already_claimed"]
    [refused] = [answer for answer in first + second if isinstance(answer, AlreadyClaimed)]
    assert refused.details == {"rank": 1}
    assert await stage.ranks(benefit.id) == [1]


async def test_a_key_used_for_another_benefit_is_refused(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    one, other = await stage.open(show), await stage.open(show)
    actor = viewer(await stage.member())
    assert words(await stage.claims.claim_many(show, one.id, [(actor, "k")])) == [1]
    assert words(await stage.claims.claim_many(show, other.id, [(actor, "k")])) == ["key_reused"]
    assert words(await stage.claims.claim_many(show, other.id, [(actor, "k2")])) == [1]


async def test_several_a_person_are_counted_each_with_its_rank(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=5, per_person=2)
    one, other = [viewer(member) for member in await stage.members(2)]
    answers = await stage.claims.claim_many(
        show, benefit.id, [(one, "a"), (other, "a"), (one, "b"), (one, "c")]
    )
    assert words(answers) == [1, 2, 3, "already_claimed"]
    assert words(await stage.claims.claim_many(show, benefit.id, [(one, "b")])) == [3]
    assert isinstance(answers[2], Won) and answers[2].nth == 2


@pytest.mark.parametrize(
    ("status", "word"), [("waiting", "not_live"), ("paused", "paused"), ("ended", "closed")]
)
async def test_only_a_live_show_gives(stage: Stage, make_show: MakeShow, status: str, word: str) -> None:
    show = await make_show()
    benefit = await stage.open(show)
    await stage.redis.hset(show_key(show, "meta"), "status", status)
    claims = [(viewer(await stage.member()), "k")]
    assert words(await stage.claims.claim_many(show, benefit.id, claims)) == [word]


@pytest.mark.rule("L5")
async def test_no_claim_passes_after_the_close_but_a_winner_keeps_the_answer(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = await stage.open(show)
    early, late = [viewer(member) for member in await stage.members(2)]
    await stage.claims.claim_many(show, benefit.id, [(early, "k")])
    async with stage.tx() as t:
        await stage.benefits.close(t, HOST, benefit.id)
    answers = await stage.claims.claim_many(show, benefit.id, [(late, "k"), (early, "k"), (early, "k2")])
    assert words(answers) == ["closed", 1, "already_claimed"]


async def test_no_claim_passes_the_benefits_own_time(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, seconds=60)
    await stage.redis.hset(show_key(show, f"benefit:{benefit.id}"), "closes_at", 1)
    claims = [(viewer(await stage.member()), "k")]
    assert words(await stage.claims.claim_many(show, benefit.id, claims)) == ["closed"]


async def test_nothing_is_given_while_paused(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show)
    claims = [(viewer(await stage.member()), "k")]
    async with stage.tx() as t:
        await stage.benefits.pause(t, HOST, benefit.id, "事故处理")
    assert words(await stage.claims.claim_many(show, benefit.id, claims)) == ["paused"]
    async with stage.tx() as t:
        await stage.benefits.resume(t, HOST, benefit.id)
    assert words(await stage.claims.claim_many(show, benefit.id, claims)) == [1]


async def test_the_wrong_audience_learns_nothing_and_takes_nothing(stage: Stage, make_show: MakeShow) -> None:
    """Row L12: who is in another segment is refused, and it is not counted against the quota."""
    show = await make_show()
    benefit = await stage.open(show, quota=1, audience=PLAN_MEMBERS)
    one, other = await stage.members(2)
    [refused] = await stage.claims.claim_many(show, benefit.id, [(viewer(one), "k")])
    assert isinstance(refused, Refusal)
    assert (refused.word, refused.details) == ("not_eligible", {})
    assert words(await stage.claims.claim_many(show, benefit.id, [(viewer(other, plan=True), "k")])) == [1]
    [refused] = await stage.claims.claim_many(show, benefit.id, [(viewer(one), "k")])
    assert isinstance(refused, Refusal) and refused.word == "not_eligible"  # not sold_out
    assert (await stage.state(show, benefit.id))["audience"] == 1


@pytest.mark.rule("semantics 3.1b", "semantics 3.1c")
async def test_a_trial_opens_the_door_but_gives_no_part_in_the_first_n(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    members, everyone = await stage.open(show, audience=PLAN_MEMBERS), await stage.open(show)
    on_trial = [(viewer(await stage.member(), trial=True), "k1")]
    assert words(await stage.claims.claim_many(show, members.id, on_trial)) == ["not_eligible"]
    assert words(await stage.claims.claim_many(show, everyone.id, on_trial)) == [1]


async def test_who_is_no_member_is_refused(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show)
    someone = viewer(await stage.member())
    odd = viewer(MemberId("not-an-id"))
    claims = [(GUEST, "k"), (HOST, "k"), (odd, "k"), (someone, ""), (someone, "k" * 65)]
    answers = words(await stage.claims.claim_many(show, benefit.id, claims))
    assert answers == ["unauthenticated", "forbidden", "unauthenticated", "bad_request", "bad_request"]


async def test_a_member_that_is_gone_does_not_spoil_the_others(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=2)
    ghost, real = viewer(MemberId(new_id())), viewer(await stage.member())
    answers = await stage.claims.claim_many(show, benefit.id, [(ghost, "k"), (real, "k")])
    assert words(answers) == ["already_claimed", 2]
    other = viewer(await stage.member())
    assert words(await stage.claims.claim_many(show, benefit.id, [(other, "k")])) == [1]  # the rank came back


async def test_unknown_and_foreign_benefits_are_not_found(stage: Stage, make_show: MakeShow) -> None:
    show, elsewhere = await make_show(), await make_show()
    benefit = await stage.open(elsewhere)
    claims = [(viewer(await stage.member()), "k")]
    for wrong in (benefit.id, BenefitId(new_id()), BenefitId("b'); DROP TABLE benefits;--"), BenefitId("\0")):
        assert words(await stage.claims.claim_many(show, wrong, claims)) == ["not_found"]


async def test_a_benefit_for_joining_cannot_be_claimed(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, needs="join")
    claims = [(viewer(await stage.member()), "k")]
    assert words(await stage.claims.claim_many(show, benefit.id, claims)) == ["not_eligible"]


@pytest.mark.rule("semantics 2.7a")
async def test_one_person_by_the_phone_they_had(stage: Stage, make_show: MakeShow, no_memory: None) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=2)
    first, second, third = await stage.members(3)
    await stage.give_phone(first, "+8613800000001")
    assert words(await stage.claims.claim_many(show, benefit.id, [(viewer(first), "k")])) == [1]
    await stage.drop_phone(first)
    await stage.give_phone(second, "+8613800000001")
    answers = await stage.claims.claim_many(show, benefit.id, [(viewer(second), "k")])
    assert words(answers) == ["already_claimed"]
    assert words(await stage.claims.claim_many(show, benefit.id, [(viewer(third), "k")])) == [2]
    assert await stage.ranks(benefit.id) == [1, 2]


async def test_a_spent_quota_is_answered_from_memory_until_a_raise_is_noticed(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=1)
    winner, loser = [viewer(member) for member in await stage.members(2)]
    claim = stage.claims.claim_many
    assert words(await claim(show, benefit.id, [(winner, "k"), (loser, "k")])) == [1, "sold_out"]
    calls = (await stage.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert words(await claim(show, benefit.id, [(loser, "k")] * 10)) == ["sold_out"] * 10
    assert (await stage.redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == calls
    assert words(await claim(show, benefit.id, [(winner, "k")])) == [1]  # who holds one is never refused
    async with stage.tx() as t:
        await stage.benefits.raise_quota(t, HOST, benefit.id, 2)
    deadline = asyncio.get_running_loop().time() + 5
    answer = words(await claim(show, benefit.id, [(loser, "k")]))
    while answer == ["sold_out"] and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
        answer = words(await claim(show, benefit.id, [(loser, "k")]))
    assert answer == [2]


async def test_a_node_that_follows_the_state_asks_for_a_spent_quota_only_when_that_says_so(
    stage: Stage, make_show: MakeShow, no_memory: None
) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=1)
    winner, loser = [viewer(member) for member in await stage.members(2)]

    async def claim(left: int | None) -> tuple[list[str | int], int]:
        before = (await stage.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
        said = words(await stage.claims.claim_many(show, benefit.id, [(loser, "k")], left=left))
        return said, (await stage.redis.info("commandstats"))["cmdstat_evalsha"]["calls"] - before

    assert words(await stage.claims.claim_many(show, benefit.id, [(winner, "k")])) == [1]
    assert await claim(0) == (["sold_out"], 0)
    assert await claim(None) == (["sold_out"], 1)  # nobody follows it here
    async with stage.tx() as t:
        await stage.benefits.raise_quota(t, HOST, benefit.id, 2)
    assert (await claim(1))[0] == [2]


async def test_redis_away_is_unavailable_and_decides_nothing(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show)
    claims = [(viewer(await stage.member()), "k")]
    await stage.claims.claim_many(show, benefit.id, [(viewer(await stage.member()), "k")])
    await stage.redis.flushall()
    [refused] = await stage.claims.claim_many(show, benefit.id, claims)
    assert isinstance(refused, Unavailable) and refused.retry_ms
    assert await stage.ranks(benefit.id) == [1]


class _DeadAfterDeciding(Claims):
    """A process that dies between its script and its row."""

    async def _write_and_tell(self, *args: object, **more: object) -> None:  # type: ignore[override]
        raise OperationalError("the server closed the connection unexpectedly")


async def test_a_crash_before_the_row_is_completed_by_the_same_persons_repeat(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = await stage.open(show)
    actor = viewer(await stage.member())
    dead = _DeadAfterDeciding(stage.scripts, stage.notices, stage.tx, stage.grants)
    assert words(await dead.claim_many(show, benefit.id, [(actor, "k")])) == ["unavailable"]
    assert await stage.ranks(benefit.id) == []
    assert await stage.events(show, "benefit.claimed") == []  # nobody is told before the commit
    assert (await stage.benefits.counts(show, benefit.id)).confirmed == 0
    assert words(await stage.claims.claim_many(show, benefit.id, [(actor, "k")])) == [1]
    assert await stage.ranks(benefit.id) == [1]
    assert len(await stage.events(show, "benefit.claimed")) == 1


async def test_a_crash_before_the_row_is_completed_by_the_job(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commerce.claims, "SETTLE_AFTER_MS", 0)
    show = await make_show()
    benefit = await stage.open(show)
    members = await stage.members(2)
    dead = _DeadAfterDeciding(stage.scripts, stage.notices, stage.tx, stage.grants)
    await dead.claim_many(show, benefit.id, [(viewer(member), "k") for member in members])
    for _ in range(2):  # again changes nothing
        await stage.claims.settle(show)
        assert await stage.ranks(benefit.id) == [1, 2]
        assert [event["rank"] for event in await stage.events(show, "benefit.claimed")] == [1, 2]
    counts = await stage.benefits.counts(show, benefit.id)
    assert (counts.confirmed, counts.held) == (2, 0)


async def test_a_crash_before_the_announcement_is_told_by_the_job_once(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await make_show()
    benefit = await stage.open(show)
    member = await stage.member()
    quiet = Claims(stage.scripts, stage.notices, stage.tx, stage.grants)

    async def silent(*args: object) -> None:
        raise Unavailable

    monkeypatch.setattr(quiet._announcer, "tell", silent)
    assert words(await quiet.claim_many(show, benefit.id, [(viewer(member), "k")])) == [1]
    assert await stage.events(show, "benefit.claimed") == []
    monkeypatch.setattr("commerce.claim_announcer.TOLD_GRACE_S", 0)
    for _ in range(2):
        await stage.claims.settle(show)
        assert len(await stage.events(show, "benefit.claimed")) == 1
    [row] = await stage.rows("SELECT announced_at FROM benefit_claims")
    assert row["announced_at"] is not None


@pytest.mark.parametrize("by", ["repeat", "job"])
async def test_who_has_a_row_keeps_it_beside_one_to_whom_nothing_can_be_given_any_more(
    stage: Stage, make_show: MakeShow, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    show = await make_show()
    async with stage.tx() as t:
        rule = await stage.coupons.create_rule(
            t, OPERATOR, CouponRuleInput(title="满减券", kind="amount", off_fen=500)
        )
    benefit = (await stage.open(show, what="coupon", coupon_rule=rule.id, value_fen=500)).id
    first, second, third = [(viewer(member), "k") for member in await stage.members(3)]

    async def silent(*args: object) -> None:
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(stage.claims._announcer, "tell", silent)
        [before] = await stage.claims.claim_many(show, benefit, [first])
    assert isinstance(before, Won) and before.rank == 1
    async with stage.tx() as t:
        await stage.coupons.update_rule(t, OPERATOR, rule.id, CouponRulePatch(status="off"))
    if by == "repeat":
        [again, refused] = await stage.claims.claim_many(show, benefit, [first, second])
        assert again == before
        assert isinstance(refused, CannotGive)
    else:
        dead = _DeadAfterDeciding(stage.scripts, stage.notices, stage.tx, stage.grants)
        assert words(await dead.claim_many(show, benefit, [second])) == ["unavailable"]
        monkeypatch.setattr(commerce.claims, "SETTLE_AFTER_MS", 0)
        await stage.claims.settle(show)
    assert [event["rank"] for event in await stage.events(show, "benefit.claimed")] == [1]
    counts = await stage.benefits.counts(show, benefit)
    assert (counts.confirmed, counts.held) == (1, 0)
    async with stage.tx() as t:
        await stage.coupons.update_rule(t, OPERATOR, rule.id, CouponRulePatch(status="on"))
    assert words(await stage.claims.claim_many(show, benefit, [third, second])) == [2, 3]
    assert await stage.ranks(benefit) == [1, 2, 3]


async def test_what_was_decided_before_a_rebuild_is_not_written_after_it(
    stage: Stage, make_show: MakeShow
) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=1)
    early, late = [viewer(member) for member in await stage.members(2)]

    class Slow(Claims):
        async def _write_and_tell(self, *args: object, **more: object) -> object:  # type: ignore[override]
            async with stage.tx() as t:  # meanwhile the counters were lost and built anew
                await t.conn.execute("UPDATE benefits SET generation = generation + 1")
            return await super()._write_and_tell(*args, **more)  # type: ignore[arg-type]

    slow = Slow(stage.scripts, stage.notices, stage.tx, stage.grants)
    assert words(await slow.claim_many(show, benefit.id, [(early, "k")])) == ["unavailable"]
    assert await stage.ranks(benefit.id) == []
    async with stage.tx() as t:
        assert await stage.benefits.agree(t, show, at_once=True) == 1
    assert words(await stage.claims.claim_many(show, benefit.id, [(late, "k")])) == [1]


async def test_when_the_tables_know_other_ranks_they_win(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=2)
    known, unknown = await stage.members(2)
    async with stage.tx() as t:  # a row that Redis, back from the past, has never heard of
        await t.conn.execute(
            "INSERT INTO benefit_claims (id, benefit_id, member_id, rank) VALUES (%s, %s, %s, 1)",
            [new_id(), benefit.id, known],
        )
    claims = [(viewer(unknown), "k")]
    assert words(await stage.claims.claim_many(show, benefit.id, claims)) == ["unavailable"]
    async with stage.tx() as t:
        assert await stage.benefits.agree(t, show, at_once=True) == 1
    assert words(await stage.claims.claim_many(show, benefit.id, claims)) == [2]
    assert words(await stage.claims.claim_many(show, benefit.id, [(viewer(known), "k")])) == [
        "already_claimed"
    ]


async def test_the_gatherer_keeps_order_and_makes_few_calls(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=60)
    batches: list[int] = []

    class Counting(Claims):
        async def claim_many(self, *args: object) -> list[Won | Refusal]:
            batches.append(len(args[2]))  # type: ignore[arg-type]
            return await super().claim_many(*args)  # type: ignore[arg-type]

    gatherer = gathered(Counting(stage.scripts, stage.notices, stage.tx, stage.grants))
    members = await stage.members(60)
    won = await asyncio.gather(
        *(gatherer.ask((show, benefit.id), (viewer(member), "k")) for member in members)
    )
    assert [one.rank for one in won] == list(range(1, 61))
    assert len(batches) <= 2
    with pytest.raises(SoldOut):
        await gatherer.ask((show, benefit.id), (viewer(await stage.member()), "k"))
    await gatherer.close()


async def test_a_caller_who_leaves_does_not_stop_the_others(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show, quota=10)
    gatherer = gathered(stage.claims)
    members = await stage.members(3)
    tasks = [
        asyncio.create_task(gatherer.ask((show, benefit.id), (viewer(member), "k"))) for member in members
    ]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert [(await task).rank for task in tasks[1:]] == [2, 3]
    await gatherer.close()
    assert await stage.ranks(benefit.id) == [1, 2, 3]


async def test_a_failing_call_answers_everyone(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show)

    class Broken(Claims):
        async def claim_many(self, *args: object) -> list[Won | Refusal]:
            raise RuntimeError("broken")

    gatherer = gathered(Broken(stage.scripts, stage.notices, stage.tx, stage.grants))
    actors = [viewer(member) for member in await stage.members(3)]
    answers = await asyncio.gather(
        *(gatherer.ask((show, benefit.id), (actor, "k")) for actor in actors), return_exceptions=True
    )
    assert all(isinstance(answer, Unavailable) for answer in answers)
    await gatherer.close()


async def test_a_list_is_an_audience_too(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    chosen, other = await stage.members(2)
    benefit = await stage.open(show, audience=Audience(kind="list", members=(chosen,)))
    answers = await stage.claims.claim_many(show, benefit.id, [(viewer(other), "k"), (viewer(chosen), "k")])
    assert words(answers) == ["not_eligible", 1]
    assert (await stage.state(show, benefit.id))["audience"] == 2


def test_a_call_has_a_bound() -> None:
    assert commerce.claims.BATCH_MAX == 500


async def test_more_than_a_call_may_carry_is_a_programming_error(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    actor = Actor(kind="viewer", id="x")
    with pytest.raises(ValueError, match="at most 500"):
        await stage.claims.claim_many(show, BenefitId(new_id()), [(actor, "k")] * 501)


async def test_keys_of_a_benefit_lie_with_its_show(stage: Stage, make_show: MakeShow) -> None:
    show = await make_show()
    benefit = await stage.open(show)
    await stage.claims.claim_many(show, benefit.id, [(viewer(await stage.member()), "k")])
    ours = {show_key(show, key).encode() for key in benefit_keys(benefit.id)}
    found = [key async for key in stage.redis.scan_iter(match=f"*benefit:{benefit.id}*")]
    assert set(found) <= ours
