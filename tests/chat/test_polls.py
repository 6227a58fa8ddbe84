"""Polls on real stores: one ballot a person, the tally hidden until it may be seen, kept after the close."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from chat.comments import NotLive
from chat.polls import AlreadyVoted, Closed, NotEligible, Poll, PollOpen, Polls, Tally
from live.lua import Scripts
from membership.actor import Actor, PollId, new_id
from membership.audience import PLAN_MEMBERS, STAFF_MASK, Audience, ShowAudiences
from membership.behaviour import Behaviour
from membership.partition import show_key
from membership.refusal import BadRequest, Forbidden, KeyReused, NotFound

pytestmark = pytest.mark.anyio

GUESTS, PLAN, VOTERS = 1, 0b11, 1 | 1 << 9
CHOICES = ["加红枣", "加山药", "都要"]


class _FailedError(Exception):
    """Something else in the transaction went wrong."""


async def _failing(tx: Any, act: Any) -> None:
    async with tx() as t:
        await act(t)
        raise _FailedError


@pytest.fixture
def polls(scripts: Scripts) -> Polls:
    return Polls(scripts, ShowAudiences(scripts))


@pytest.fixture
def open_poll(polls: Polls, host: Actor, tx: Any) -> Any:
    async def open_(show: Any, **given: Any) -> Poll:
        async with tx() as t:
            return await polls.open(t, host, show, "下一款杂粮粥?", CHOICES, **given)

    return open_


async def test_an_open_poll_reaches_its_audience_after_the_commit(
    polls: Polls, make_show: Any, host: Actor, tx: Any, see: Any, entries: Any
) -> None:
    show = await make_show()
    async with tx() as t:
        poll = await polls.open(t, host, show, " 下一款? ", CHOICES, seconds=60)
        assert await see(show, STAFF_MASK) == {}
    data = (await see(show, GUESTS))[f"poll:{poll.id}"]
    assert data == {
        "id": poll.id,
        "question": "下一款?",
        "choices": CHOICES,
        "max_choices": 1,
        "results": "after_vote",
        "open": True,
        "closes_at": poll.closes_at,
        "counts": {"voters": 0},
    }
    [entry] = await entries(show)
    event = msgspec.json.decode(entry.event)
    assert (event["type"], event["poll"], event["closes_at"]) == ("poll.opened", poll.id, poll.closes_at)
    assert entry.urgent


async def test_a_poll_whose_transaction_fails_was_never_there(
    polls: Polls, make_show: Any, host: Actor, tx: Any, open_poll: Any, see: Any
) -> None:
    show = await make_show()
    with pytest.raises(_FailedError):
        await _failing(tx, lambda t: polls.open(t, host, show, "下一款?", CHOICES))
    assert await see(show, STAFF_MASK) == {}
    await open_poll(show)


async def test_two_hundred_ballots_of_one_person_at_once_count_one(
    polls: Polls, make_show: Any, make_viewer: Any, open_poll: Any, see: Any, redis: Redis
) -> None:
    show, viewer = await make_show(), make_viewer()
    poll = await open_poll(show)
    answers = await asyncio.gather(
        *(polls.cast(viewer, show, poll.id, [number % 3], f"k{number}") for number in range(200)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, list) for answer in answers) == 1
    assert sum(isinstance(answer, AlreadyVoted) for answer in answers) == 199
    counts = (await see(show, STAFF_MASK))[f"poll:{poll.id}"]["counts"]
    assert counts["voters"] == 1
    assert sum(counts[str(choice)] for choice in range(3)) == 1
    assert await redis.xlen(show_key(show, "behaviour")) == 1


async def test_without_the_script_the_same_race_counts_more_than_one(redis: Redis) -> None:
    """The control: asking and writing as two steps, in an order that a store without the script allows."""
    all_have_asked = asyncio.Barrier(40)

    async def cast(number: int) -> bool:
        seen = await redis.hexists("control:ballots", "person")
        await all_have_asked.wait()
        if seen:
            return False
        await redis.hset("control:ballots", "person", number)
        await redis.hincrby("control:counts", "voters", 1)
        return True

    answers = await asyncio.gather(*(cast(number) for number in range(40)))
    assert sum(answers) == 40
    assert int(await redis.hget("control:counts", "voters") or 0) == 40


async def test_two_hundred_people_at_once_are_all_counted(
    polls: Polls, make_show: Any, make_viewer: Any, open_poll: Any, tx: Any, host: Actor
) -> None:
    show = await make_show()
    poll = await open_poll(show)
    people = [make_viewer(guest=number % 2 == 0) for number in range(200)]
    await asyncio.gather(
        *(polls.cast(person, show, poll.id, [number % 3], "k") for number, person in enumerate(people))
    )
    async with tx() as t:
        assert await polls.close(t, host, show, poll.id) == Tally(200, [67, 67, 66])


async def test_the_same_key_gets_the_same_answer_and_another_body_is_refused(
    polls: Polls, make_show: Any, make_viewer: Any, open_poll: Any, see: Any
) -> None:
    show, viewer = await make_show(), make_viewer()
    poll = await open_poll(show, max_choices=2)
    assert await polls.cast(viewer, show, poll.id, [2, 0], "k") == [0, 2]
    assert await polls.cast(viewer, show, poll.id, [0, 2], "k") == [0, 2]
    with pytest.raises(KeyReused):
        await polls.cast(viewer, show, poll.id, [1], "k")
    with pytest.raises(AlreadyVoted):
        await polls.cast(viewer, show, poll.id, [0, 2], "k2")
    counts = (await see(show, STAFF_MASK))[f"poll:{poll.id}"]["counts"]
    assert counts == {"voters": 1, "0": 1, "1": 0, "2": 1}


async def test_results_after_the_vote_are_seen_by_voters_and_staff_only(
    polls: Polls, make_show: Any, make_viewer: Any, open_poll: Any, see: Any
) -> None:
    show = await make_show()
    poll = await open_poll(show)
    await polls.cast(make_viewer(), show, poll.id, [1], "k")
    key = f"poll:{poll.id}"
    assert (await see(show, GUESTS))[key]["counts"] == {"voters": 1}
    for mask in (VOTERS, STAFF_MASK):
        assert (await see(show, mask))[key]["counts"] == {"voters": 1, "0": 0, "1": 1, "2": 0}


async def test_results_after_the_close_are_hidden_even_from_voters(
    polls: Polls, make_show: Any, open_poll: Any, see: Any, tx: Any, host: Actor
) -> None:
    show = await make_show()
    poll = await open_poll(show, results="after_close")
    key = f"poll:{poll.id}"
    assert (await see(show, VOTERS))[key]["counts"] == {"voters": 0}
    assert "0" in (await see(show, STAFF_MASK))[key]["counts"]
    async with tx() as t:
        await polls.close(t, host, show, poll.id)
    data = (await see(show, GUESTS))[key]
    assert data["open"] is False
    assert data["counts"] == {"voters": 0, "0": 0, "1": 0, "2": 0}


async def test_open_results_are_seen_by_all(make_show: Any, open_poll: Any, see: Any) -> None:
    show = await make_show()
    poll = await open_poll(show, results="always")
    assert "2" in (await see(show, GUESTS))[f"poll:{poll.id}"]["counts"]


async def test_a_poll_for_plan_members_is_in_no_guests_state_event_or_ballot_box(
    polls: Polls,
    make_show: Any,
    make_viewer: Any,
    open_poll: Any,
    see: Any,
    entries: Any,
    tx: Any,
    host: Actor,
) -> None:
    show = await make_show()
    poll = await open_poll(show, audience=PLAN_MEMBERS)
    assert await see(show, GUESTS) == {}
    assert f"poll:{poll.id}" in await see(show, PLAN)
    for outsider in (make_viewer(), make_viewer(guest=True)):
        with pytest.raises(NotEligible):
            await polls.cast(outsider, show, poll.id, [0], "k")
    assert await polls.cast(make_viewer(plan=True), show, poll.id, [0], "k") == [0]
    async with tx() as t:
        assert (await polls.close(t, host, show, poll.id)).voters == 1
    assert await see(show, GUESTS) == {}
    assert [entry.bit for entry in await entries(show)] == [1, 1]


async def test_a_show_has_one_open_poll_even_when_two_are_opened_at_once(
    polls: Polls, make_show: Any, open_poll: Any
) -> None:
    show, other = await make_show(), await make_show()
    answers = await asyncio.gather(*(open_poll(show) for _ in range(8)), return_exceptions=True)
    assert sum(isinstance(answer, Poll) for answer in answers) == 1
    assert sum(isinstance(answer, PollOpen) for answer in answers) == 7
    await open_poll(other)


async def test_the_next_poll_takes_the_closed_ones_place(
    polls: Polls, make_show: Any, open_poll: Any, see: Any, tx: Any, host: Actor
) -> None:
    show = await make_show()
    first = await open_poll(show)
    async with tx() as t:
        await polls.close(t, host, show, first.id)
    assert f"poll:{first.id}" in await see(show, GUESTS)
    second = await open_poll(show)
    assert set(await see(show, GUESTS)) == {f"poll:{second.id}"}


async def test_closing_keeps_every_ballot_and_the_tally_and_closing_again_answers_the_same(
    polls: Polls, make_show: Any, make_viewer: Any, open_poll: Any, tx: Any, host: Actor, entries: Any
) -> None:
    show, member, guest = await make_show(), make_viewer(), make_viewer(guest=True)
    poll = await open_poll(show, max_choices=2)
    await polls.cast(member, show, poll.id, [0, 1], "k")
    await polls.cast(guest, show, poll.id, [1], "k")
    async with tx() as t:
        tally = await polls.close(t, host, show, poll.id)
    assert tally == Tally(2, [1, 2, 0])
    async with tx() as t:
        assert await polls.close(t, host, show, poll.id) == tally
        cursor = await t.conn.execute("SELECT person, member_id::text, choices FROM ballots")
        found = {row["person"]: (row["member_id"], row["choices"]) for row in await cursor.fetchall()}
        assert found == {member.id: (member.id, [0, 1]), guest.id: (None, [1])}
        kept = await polls.result(t.conn, poll.id)
        assert (kept.result, kept.question) == (tally, "下一款杂粮粥?")
        assert await polls.of_show(t.conn, show) == [kept]
    closed = [msgspec.json.decode(entry.event) for entry in await entries(show)][1:]
    assert [(event["type"], event["voters"], event["tally"]) for event in closed] == [
        ("poll.closed", 2, [1, 2, 0])
    ]
    with pytest.raises(Closed):
        await polls.cast(make_viewer(), show, poll.id, [0], "k")
    assert await polls.cast(guest, show, poll.id, [1], "k") == [1]  # a late repeat still has its answer


async def test_a_close_that_rolled_back_can_be_done_again_and_loses_no_ballot(
    polls: Polls, make_show: Any, make_viewer: Any, open_poll: Any, tx: Any, host: Actor, entries: Any
) -> None:
    show = await make_show()
    poll = await open_poll(show)
    await polls.cast(make_viewer(), show, poll.id, [0], "k")
    with pytest.raises(_FailedError):
        await _failing(tx, lambda t: polls.close(t, host, show, poll.id))
    with pytest.raises(Closed):
        await polls.cast(make_viewer(), show, poll.id, [0], "k")
    async with tx() as t:
        assert await polls.close(t, host, show, poll.id) == Tally(1, [1, 0, 0])
        cursor = await t.conn.execute("SELECT count(*) AS n FROM ballots")
        assert (await cursor.fetchone())["n"] == 1
    assert len(await entries(show)) == 2


async def test_ballots_of_more_than_one_page_are_all_kept(
    polls: Polls, make_show: Any, open_poll: Any, tx: Any, host: Actor, redis: Redis
) -> None:
    show = await make_show()
    poll = await open_poll(show)
    await redis.hset(
        show_key(show, f"poll:{poll.id}:ballots"),
        mapping={f"g_{number}": b'{"c":[0],"at":1800000000000}' for number in range(5_000)},
    )
    async with tx() as t:
        await polls.close(t, host, show, poll.id)
        cursor = await t.conn.execute("SELECT count(*) AS n FROM ballots WHERE poll_id = %s", [poll.id])
        assert (await cursor.fetchone())["n"] == 5_000


async def test_no_ballot_counts_once_the_time_is_up_and_the_job_finds_the_poll(
    polls: Polls, make_show: Any, make_viewer: Any, open_poll: Any, tx: Any, redis: Redis
) -> None:
    show = await make_show()
    poll = await open_poll(show, seconds=15)
    async with tx() as t:
        assert await polls.due(t.conn) == []
        await t.conn.execute("UPDATE polls SET closes_at = now() - interval '1 second'")
        assert await polls.due(t.conn) == [(show, poll.id)]
    await redis.hset(show_key(show, f"poll:{poll.id}"), "closes_at", 1)
    with pytest.raises(Closed):
        await polls.cast(make_viewer(), show, poll.id, [0], "k")


async def test_what_someone_voted_is_known_when_they_come_back(
    polls: Polls, make_show: Any, make_viewer: Any, open_poll: Any
) -> None:
    show, viewer, other = await make_show(), make_viewer(), make_viewer()
    assert await polls.votes(show, viewer.id) == {}
    poll = await open_poll(show)
    await polls.cast(viewer, show, poll.id, [2], "k")
    assert await polls.voted(show, poll.id, viewer.id)
    assert not await polls.voted(show, poll.id, other.id)
    assert await polls.ballot_of(show, poll.id, viewer.id) == [2]
    assert await polls.ballot_of(show, poll.id, other.id) is None
    assert await polls.votes(show, viewer.id) == {poll.id: [2]}
    assert await polls.votes(show, other.id) == {}


@pytest.mark.parametrize(
    "choices", [[], [3], [-1], [0, 0], [0, 1, 2], [0, 1]], ids=["none", "high", "low", "twice", "all", "two"]
)
async def test_a_ballot_out_of_bounds_is_refused(
    polls: Polls, make_show: Any, make_viewer: Any, open_poll: Any, see: Any, choices: list[int]
) -> None:
    show = await make_show()
    poll = await open_poll(show)
    with pytest.raises(BadRequest):
        await polls.cast(make_viewer(), show, poll.id, choices, "k")
    assert (await see(show, STAFF_MASK))[f"poll:{poll.id}"]["counts"]["voters"] == 0


async def test_a_ballot_needs_a_key_a_viewer_and_a_poll_of_this_show(
    polls: Polls, make_show: Any, make_viewer: Any, open_poll: Any, host: Actor
) -> None:
    show, other = await make_show(), await make_show()
    poll = await open_poll(show)
    for key in (None, ""):
        with pytest.raises(BadRequest):
            await polls.cast(make_viewer(), show, poll.id, [0], key)
    with pytest.raises(Forbidden):
        await polls.cast(host, show, poll.id, [0], "k")
    for unknown in (PollId(new_id()), PollId("x"), PollId(""), PollId("k" * 1000)):
        with pytest.raises(NotFound):
            await polls.cast(make_viewer(), show, unknown, [0], "k")
    await polls.cast(make_viewer(), show, poll.id, [0], "k")
    with pytest.raises(NotFound):
        await polls.cast(make_viewer(), other, poll.id, [0], "k")


@pytest.mark.parametrize(
    "given",
    [
        {"question": ""},
        {"question": "问" * 201},
        {"choices": ["一"]},
        {"choices": [str(number) for number in range(11)]},
        {"choices": ["一", "一 "]},
        {"choices": ["一", " "]},
        {"choices": ["一", "二" * 61]},
        {"max_choices": 0},
        {"max_choices": 3},
        {"results": "never"},
        {"seconds": 14},
        {"seconds": 1801},
    ],
    ids=str,
)
async def test_a_poll_out_of_bounds_is_refused(
    polls: Polls, make_show: Any, host: Actor, tx: Any, given: dict[str, Any]
) -> None:
    show = await make_show()
    with pytest.raises(BadRequest):
        async with tx() as t:
            await polls.open(t, host, show, **{"question": "好吗?", "choices": ["好", "不好"], **given})


@pytest.mark.parametrize("status", ["scheduled", "ending", "ended"])
async def test_a_poll_opens_only_while_people_are_here(make_show: Any, open_poll: Any, status: str) -> None:
    show = await make_show(status)
    with pytest.raises(NotLive):
        await open_poll(show)


async def test_viewers_and_reviewers_open_and_close_nothing(
    polls: Polls, make_show: Any, make_viewer: Any, make_staff: Any, open_poll: Any, tx: Any, host: Actor
) -> None:
    show = await make_show()
    poll = await open_poll(show)
    for actor in (make_viewer(), make_staff("reviewer"), make_staff("operator")):
        with pytest.raises(Forbidden):
            async with tx() as t:
                await polls.open(t, actor, show, "好吗?", ["好", "不好"])
        with pytest.raises(Forbidden):
            async with tx() as t:
                await polls.close(t, actor, show, poll.id)
    for unknown in (PollId(new_id()), PollId("none")):
        with pytest.raises(NotFound):
            async with tx() as t:
                await polls.close(t, host, show, unknown)
    with pytest.raises(NotFound):
        async with tx() as t:
            await polls.close(t, host, await make_show(), poll.id)
    async with tx() as t:
        assert await polls.close_open(t, make_staff("assistant"), show) == Tally(0, [0, 0, 0])
        assert await polls.close_open(t, host, show) is None


async def test_a_poll_that_was_committed_and_never_put_is_settled(
    polls: Polls, make_show: Any, host: Actor, tx: Any, make_viewer: Any, see: Any, entries: Any
) -> None:
    show = await make_show()
    async with tx() as t:
        poll = await polls.open(t, host, show, "好吗?", ["好", "不好"])
        t.committed.clear()  # as if the process had died after the commit
    with pytest.raises(NotFound):
        await polls.cast(make_viewer(), show, poll.id, [0], "k")
    for _ in range(2):
        async with tx() as t:
            assert await polls.settle(t.conn) == 1
    await polls.cast(make_viewer(), show, poll.id, [0], "k")
    assert len(await entries(show)) == 1
    assert f"poll:{poll.id}" in await see(show, GUESTS)


async def test_a_poll_that_never_reached_the_show_closes_with_no_ballots(
    polls: Polls, make_show: Any, host: Actor, tx: Any
) -> None:
    show = await make_show()
    async with tx() as t:
        poll = await polls.open(t, host, show, "好吗?", ["好", "不好"])
        t.committed.clear()
    async with tx() as t:
        assert await polls.close(t, host, show, poll.id) == Tally(0, [0, 0])


async def test_an_open_poll_survives_the_loss_of_the_store_with_the_ballots_recorded(
    polls: Polls, make_show: Any, make_viewer: Any, open_poll: Any, tx: Any, redis: Redis, scripts: Scripts,
    see: Any, host: Actor,
) -> None:  # fmt: skip
    show, early, late = await make_show(), make_viewer(), make_viewer(guest=True)
    poll = await open_poll(show, max_choices=2, audience=Audience(kind="everyone", exclude=PLAN_MEMBERS))
    await polls.cast(early, show, poll.id, [0, 2], "k")
    async with tx() as t:
        await Behaviour(redis).drain(t, show)
    await redis.flushall()
    await scripts.load("live", "open_show")(show, [], ["new", 2, "live"])
    reborn = Polls(scripts, ShowAudiences(scripts))  # another process
    async with tx() as t:
        await reborn.rebuild(t.conn, show)
    assert (await see(show, STAFF_MASK))[f"poll:{poll.id}"]["counts"] == {"voters": 1, "0": 1, "1": 0, "2": 1}
    with pytest.raises(AlreadyVoted):
        await reborn.cast(early, show, poll.id, [1], "k2")
    await reborn.cast(late, show, poll.id, [1], "k")
    async with tx() as t:
        assert await reborn.close(t, host, show, poll.id) == Tally(2, [1, 1, 1])
