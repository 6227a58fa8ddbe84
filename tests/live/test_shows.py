"""The life of a show: its moves, its card, what a crash leaves, and its rebirth after Redis lost it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from chat.comments import Muted, NotLive
from chat.polls import AlreadyVoted
from commerce.benefit_terms import BenefitInput
from live.database import Database
from live.lua import Scripts
from live.recorder import Recorder
from live.shows import MOVES, RoomBusy, Show, ShowInput, ShowPatch, WrongStatus
from membership.actor import NOBODY, Actor, Facts, PlanId, RoomId, ShowId, new_id, public_id
from membership.audience import EVERYONE, PLAN_MEMBERS, STAFF_MASK, Audience, mask_of
from membership.behaviour import Behaviour
from membership.page import BadCursor
from membership.partition import show_key
from membership.refusal import BadRequest, Forbidden, NotFound, Unavailable
from membership.transaction import Transaction
from tests.live.stage import Stage, staff, viewer

pytestmark = pytest.mark.anyio

MEMBER = Facts(registered=True, plans=frozenset({PlanId(new_id())}))
JOB = Actor(kind="job", id="jobs")


@pytest.fixture
def stage(redis: Redis, scripts: Scripts, database: Database) -> Stage:
    return Stage(redis, scripts, database)


class _Parts:
    """What the recorder needs of the house."""

    def __init__(self, stage: Stage) -> None:
        self.redis, self.database, self.show_log = stage.redis, stage.database, stage.log
        self.pool = stage.database.pool
        self.behaviour = Behaviour(stage.redis)


async def record(stage: Stage, show: ShowId) -> None:
    await Recorder(_Parts(stage)).record(show)  # type: ignore[arg-type]


# -- schedule --------------------------------------------------------------------------------------


async def test_a_scheduled_show_has_its_keys_and_its_state_at_once(stage: Stage) -> None:
    show = await stage.show("scheduled", summary="今晚聊大米")
    state = (await stage.states(show.id))["show"]
    assert state["status"] == "scheduled"
    assert state["video"] == {"url": "/static/demo/loop.mp4", "kind": "mp4", "poster": ""}
    assert (state["title"], state["starts_at"]) == ("秋收专场", show.starts_at)
    assert state["room"]["title"] == "会员健康夜"
    assert await stage.words(show.id) == []


@pytest.mark.parametrize(
    "given",
    [
        {"title": " "},
        {"title": "长" * 61},
        {"summary": "长" * 501},
        {"starts_at": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"starts_at": datetime(2100, 1, 1, tzinfo=UTC)},
        {"starts_at": datetime(2000, 1, 1, tzinfo=UTC)},
        {"video_url": "javascript:alert(1)"},
        {"video_url": "//evil.example/x"},
        {"video_url": 'https://x.example/"onload="'},
        {"video_url": "https://x.example:99999/a"},
        {"poster_url": "data:image/png;base64,AA"},
    ],
    ids=str,
)
async def test_a_show_out_of_bounds_is_refused(stage: Stage, given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        await stage.show("scheduled", **given)


async def test_an_address_elsewhere_and_a_start_in_another_zone_are_fine(stage: Stage) -> None:
    at = datetime.now(timezone(timedelta(hours=8))) + timedelta(days=3)
    show = await stage.show("scheduled", video_url="https://cdn.example:8443/秋收/a.m3u8?x=1", starts_at=at)
    assert abs(show.starts_at - at.timestamp() * 1000) < 1_000


async def test_a_show_is_scheduled_in_a_room_by_who_may(stage: Stage, tx: Any) -> None:
    room, other = await stage.room(title="一"), await stage.room(title="二")

    def given(where: str) -> ShowInput:
        return ShowInput(room=RoomId(where), title="好", starts_at=datetime.now(UTC))

    async with tx() as t:
        for actor in (viewer(), staff("assistant"), staff("host", other.id)):
            with pytest.raises(Forbidden):
                await stage.shows.create(t, actor, given(room.id))
        for unknown in (new_id(), "none"):
            with pytest.raises(NotFound):
                await stage.shows.create(t, stage.owner, given(unknown))
        for text in ("nosuchshow", "", "\0", "x" * 500):
            with pytest.raises(NotFound):
                await stage.shows.get(t.conn, text)


async def test_shows_are_listed_latest_first_in_pages_without_gap_or_double(stage: Stage, tx: Any) -> None:
    room = await stage.room()
    start = datetime.now(UTC)
    made = [
        await stage.show("scheduled", room, starts_at=start + timedelta(hours=number // 2))
        for number in range(5)
    ]
    await stage.show("scheduled")
    async with tx() as t:
        found: list[Show] = []
        cursor = None
        while True:
            page = await stage.shows.list(t.conn, cursor, room.id, limit=2)
            found += page.items
            cursor = page.next
            if cursor is None:
                break
        expected = sorted(made, key=lambda show: (show.starts_at, show.id), reverse=True)
        assert [show.id for show in found] == [show.id for show in expected]
        assert (await stage.shows.list(t.conn, statuses=("ended",))).items == ()
        assert (await stage.shows.list(t.conn, room=RoomId("x"))).items == ()
        for bad in ("x", "1", "1.", "²." + made[0].id, "9" * 18 + ".a", "1." + "a" * 100):
            with pytest.raises(BadCursor):
                await stage.shows.list(t.conn, bad)


async def test_a_change_reaches_the_state_and_the_start_is_fixed_once_live(stage: Stage, tx: Any) -> None:
    show = await stage.show("live")
    async with tx() as t:
        await stage.shows.update(
            t, stage.host, show.id, ShowPatch(title="加场", guest_comments=True, summary="")
        )
    assert (await stage.states(show.id))["show"]["title"] == "加场"
    assert await stage.redis.hget(show_key(show.id, "meta"), "guest_comments") == b"1"
    async with tx() as t:
        with pytest.raises(WrongStatus):
            await stage.shows.update(t, stage.host, show.id, ShowPatch(starts_at=datetime.now(UTC)))
        with pytest.raises(Forbidden):
            await stage.shows.update(t, staff("assistant"), show.id, ShowPatch(title="x"))
        with pytest.raises(BadRequest):
            await stage.shows.update(t, stage.host, show.id, ShowPatch(video_url="ftp://x"))


# -- moves -----------------------------------------------------------------------------------------


async def test_a_show_goes_its_way_and_tells_each_move_once(stage: Stage) -> None:
    show = (await stage.show("scheduled")).id
    for move, status in (
        ("open", "waiting"),
        ("start", "live"),
        ("pause", "paused"),
        ("resume", "live"),
        ("end", "ended"),
    ):
        assert (await stage.move(move, show)).status == status
        state = (await stage.states(show))["show"]
        assert state["status"] == status
        assert (await stage.log.changes(show, -1)).status == status
    assert await stage.words(show) == [
        "show.opened",
        "show.started",
        "show.paused",
        "show.resumed",
        "show.ending",
        "show.ended",
    ]
    assert all(entry.urgent and entry.bit == 0 for entry in await stage.entries(show))
    ended = await stage.read(show)
    assert ended.started_at is not None
    assert ended.ended_at is not None
    assert stage.after == [show]


@pytest.mark.parametrize("status", ["scheduled", "waiting", "live", "paused", "ended"])
async def test_every_move_that_is_not_of_the_status_is_refused_and_tells_nothing(
    stage: Stage, status: str
) -> None:
    show = (await stage.show(status)).id
    told = await stage.words(show)
    allowed = {
        "scheduled": {"open"},
        "waiting": {"start"},
        "live": {"pause", "end"},
        "paused": {"resume", "end"},
        "ended": set[str](),
    }[status]
    for move in {"open", "start", "pause", "resume", "end"} - allowed:
        with pytest.raises(WrongStatus):
            await stage.move(move, show)
    assert await stage.words(show) == told


async def test_pressed_twenty_times_at_once_a_show_starts_once(stage: Stage) -> None:
    show = (await stage.show("waiting")).id
    answers = await asyncio.gather(*(stage.move("start", show) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(answer, Show) for answer in answers) == 1
    assert sum(isinstance(answer, WrongStatus) for answer in answers) == 19
    assert await stage.words(show) == ["show.opened", "show.started"]


async def test_only_who_runs_shows_moves_them_and_only_in_their_room(stage: Stage) -> None:
    show, other = await stage.show("waiting"), await stage.room(title="二")
    for actor in (viewer(), staff("assistant"), staff("operator"), staff("host", other.id)):
        with pytest.raises(Forbidden):
            await stage.move("start", show.id, actor)
    await stage.move("start", show.id, staff("host", show.room.id))
    with pytest.raises(Forbidden):
        await stage.move("end", show.id, staff("assistant"))
    with pytest.raises(NotFound):
        await stage.move("start", ShowId("nosuchshow"))


async def test_one_show_of_a_room_is_on_air_even_when_two_start_at_once(stage: Stage) -> None:
    room = await stage.room()
    shows = [(await stage.show("waiting", room)).id for _ in range(3)]
    answers = await asyncio.gather(*(stage.move("start", show) for show in shows), return_exceptions=True)
    assert sum(isinstance(answer, Show) for answer in answers) == 1
    assert sum(isinstance(answer, RoomBusy) for answer in answers) == 2


async def test_the_end_closes_what_is_open_before_it_is_told(stage: Stage, tx: Any) -> None:
    show, product = (await stage.show("live")).id, await stage.product()
    async with tx() as t:
        offer = await stage.offers.open(t, stage.host, show, product.id)
    async with tx() as t:
        benefit = await stage.benefits.open(t, stage.host, show, BenefitInput(title="礼盒", quota=10))
    async with tx() as t:
        poll = await stage.polls.open(t, stage.host, show, "好吗?", ["好", "不好"])
    await stage.polls.cast(viewer(), show, poll.id, [0], "k")
    await stage.move("end", show)
    words = await stage.words(show)
    assert words[-2:] == ["show.ending", "show.ended"]
    assert {"offer.closed", "benefit.closed", "poll.closed"} <= set(words[:-2])
    async with tx() as t:
        assert (await stage.offers.get(t.conn, show, offer.id)).status == "closed"
        assert (await stage.benefits.get(t.conn, benefit.id)).status == "closed"
        result = (await stage.polls.result(t.conn, poll.id)).result
        assert result is not None and result.voters == 1
        row = await (await t.conn.execute("SELECT * FROM on_air WHERE show_id = %s", [show])).fetchone()
        assert str(row["product_id"]) == product.id
        assert row["to_at"] is not None
    with pytest.raises(NotLive):
        await stage.comments.post(viewer(), show, "还有吗", None)


async def test_a_last_call_keeps_things_open_until_its_time_or_a_second_press(
    stage: Stage, database: Database
) -> None:
    for ending in ("press", "time"):
        show = (await stage.show("live")).id
        called = await stage.move("end", show, last_call_s=60)
        assert called.status == "ending"
        assert called.ending_until is not None
        event = msgspec.json.decode((await stage.entries(show))[-1].event)
        assert (event["type"], event["until"]) == ("show.ending", called.ending_until)
        await stage.comments.post(viewer(), show, "还能买吗", None)
        await stage.shows.open_due(database, JOB)
        assert (await stage.read(show)).status == "ending"
        if ending == "press":
            await stage.move("end", show)
        else:
            async with database.transaction() as t:
                await t.conn.execute("UPDATE shows SET ending_until = now() WHERE id = %s", [show])
            await stage.shows.open_due(database, JOB)
        assert (await stage.read(show)).status == "ended"
        assert (await stage.words(show))[-1] == "show.ended"
    assert len(stage.after) == 2
    with pytest.raises(BadRequest):
        await stage.move("end", show, last_call_s=601)


async def test_the_job_opens_waiting_rooms_half_an_hour_before(stage: Stage, database: Database) -> None:
    soon = await stage.show("scheduled", starts_at=datetime.now(UTC) + timedelta(minutes=29))
    later = await stage.show("scheduled", starts_at=datetime.now(UTC) + timedelta(minutes=31))
    assert await stage.shows.open_due(database, JOB) == 1
    assert await stage.shows.open_due(database, JOB) == 0
    assert (await stage.read(soon.id)).status == "waiting"
    assert (await stage.read(later.id)).status == "scheduled"


async def test_a_show_that_cannot_move_holds_up_no_other(
    stage: Stage, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows = [
        (await stage.show("scheduled", starts_at=datetime.now(UTC) + timedelta(minutes=n))).id
        for n in (1, 2, 3)
    ]
    move = stage.shows.open

    async def broken(t: Transaction, actor: Actor, show: ShowId) -> object:
        if show == shows[0]:
            raise ValueError("a row that cannot be read")
        if show == shows[1]:
            raise Unavailable
        return await move(t, actor, show)

    monkeypatch.setattr(stage.shows, "open", broken)
    assert await stage.shows.open_due(database, JOB) == 1
    assert (await stage.read(shows[2])).status == "waiting"


async def test_moves_that_were_committed_and_not_told_are_told_by_the_job(
    stage: Stage, database: Database
) -> None:
    show = (await stage.show("waiting")).id
    for move in ("start", "pause"):
        async with database.transaction() as t:
            await getattr(stage.shows, move)(t, stage.host, show)
            t.committed.clear()  # the process died after the commit
    assert (await stage.states(show))["show"]["status"] == "waiting"
    await asyncio.gather(*(stage.shows.open_due(database, JOB) for _ in range(3)))
    assert (await stage.states(show))["show"]["status"] == "paused"
    assert await stage.words(show) == ["show.opened", "show.started", "show.paused"]


def test_every_move_has_its_event() -> None:
    told = {word for moves in MOVES.values() for word in moves.values()}
    assert told == {
        "show.opened",
        "show.started",
        "show.paused",
        "show.resumed",
        "show.ending",
        "show.ended",
    }


# -- the card --------------------------------------------------------------------------------------


async def test_who_is_not_admitted_gets_title_host_start_poster_and_the_way_in_only(stage: Stage) -> None:
    room = await stage.room(PLAN_MEMBERS)
    show = await stage.show(
        "live", room, summary="秘密内容", video_url="https://cdn.example/secret.m3u8", poster_url="/p.jpg"
    )
    card = msgspec.json.encode(stage.shows.card(show, NOBODY))
    found = msgspec.json.decode(card)
    assert b"secret" not in card
    assert "秘密" not in card.decode()
    assert (found["admitted"], found["way_in"]) == (False, "join")
    assert set(found) == {"id", "title", "status", "starts_at", "room", "poster", "admitted", "way_in"}
    inside = stage.shows.card(show, MEMBER)
    assert inside.admitted
    assert msgspec.to_builtins(inside)["video"]["url"] == "https://cdn.example/secret.m3u8"
    assert stage.shows.card(show, NOBODY, staff=True).admitted


@pytest.mark.parametrize(
    ("audience", "facts", "way_in"),
    [
        (EVERYONE, NOBODY, None),
        (Audience(kind="registered"), NOBODY, "sign_in"),
        (PLAN_MEMBERS, Facts(registered=True), "join"),
        (Audience(kind="tiers", tiers=("gold",)), NOBODY, "sign_in"),
        (Audience(kind="tiers", tiers=("gold",)), Facts(registered=True), "closed"),
        (Audience(exclude=Audience(kind="registered")), Facts(registered=True), "closed"),
    ],
)
async def test_the_way_in_follows_the_audience(
    stage: Stage, audience: Audience, facts: Facts, way_in: str | None
) -> None:
    show = await stage.show("scheduled", await stage.room(audience))
    assert stage.shows.card(show, facts).way_in == way_in


# -- the loss of Redis -----------------------------------------------------------------------------


async def test_a_show_that_redis_knows_is_left_as_it_is(stage: Stage) -> None:
    show = await stage.show("live")
    before = await stage.log.changes(show.id, -1)
    await stage.shows.ensure(show)
    assert (await stage.log.changes(show.id, -1)).epoch == before.epoch
    assert (await stage.read(show.id)).generation == 1


async def test_after_a_loss_everything_durable_is_back_under_a_new_generation_and_epoch(
    stage: Stage, tx: Any
) -> None:
    show, product = await stage.show("live", guest_comments=True), await stage.product()
    epoch = (await stage.log.changes(show.id, -1)).epoch
    async with tx() as t:
        offer = await stage.offers.open(t, stage.host, show.id, product.id)
    async with tx() as t:
        benefit = await stage.benefits.open(t, stage.host, show.id, BenefitInput(title="礼盒", quota=10))
    async with tx() as t:
        poll = await stage.polls.open(t, stage.host, show.id, "好吗?", ["好", "不好"], audience=PLAN_MEMBERS)
    winner, voter, muted = await stage.member(), viewer(plan=True), viewer()
    await stage.claims.claim_many(show.id, benefit.id, [(winner, "k")])
    await stage.polls.cast(voter, show.id, poll.id, [1], "k")
    pinned = await stage.comments.post(viewer(), show.id, "置顶这条", None)
    await stage.comments.pin(stage.host, show.id, pinned.seq)
    await stage.comments.announce(stage.host, show.id, "九点秒杀")
    await stage.comments.mute(stage.host, show.id, public_id(show.id, muted.id), 600)
    await record(stage, show.id)

    await stage.redis.flushall()
    with pytest.raises(Unavailable):
        await stage.comments.post(viewer(), show.id, "在吗", None)
    await asyncio.gather(*(stage.shows.ensure(show) for _ in range(5)))

    changes = await stage.log.changes(show.id, -1)
    assert changes.epoch != epoch
    assert changes.status == "live"
    assert (await stage.read(show.id)).generation == 2  # five at once rebuilt it once
    states = await stage.states(show.id, STAFF_MASK)
    assert states["show"]["status"] == "live"
    assert states[f"offer:{offer.id}"]["status"] == "open"
    assert states[f"benefit:{benefit.id}"]["counts"]["confirmed"] == 1
    assert states[f"poll:{poll.id}"]["counts"] == {"voters": 1, "0": 0, "1": 1}
    assert states["pinned"]["comment"]["text"] == "置顶这条"
    assert states["announcement"] == {"text": "九点秒杀"}
    assert f"poll:{poll.id}" not in await stage.states(show.id, 1)
    with pytest.raises(AlreadyVoted):
        await stage.polls.cast(voter, show.id, poll.id, [0], "k2")
    with pytest.raises(Muted):
        await stage.comments.post(muted, show.id, "我呢", None)
    await stage.comments.post(Actor(kind="viewer", id="g_1"), show.id, "游客也在", None)


async def test_after_a_loss_an_offer_is_still_seen_by_its_own_audience_only(stage: Stage, tx: Any) -> None:
    show, product = await stage.show("live"), await stage.product()
    registered, gold = Audience(kind="registered"), Audience(kind="tiers", tiers=("gold",))
    async with tx() as t:
        poll = await stage.polls.open(t, stage.host, show.id, "好吗?", ["好", "不好"], audience=registered)
    async with tx() as t:
        offer = await stage.offers.open(t, stage.host, show.id, product.id, audience=gold)

    async def seen(facts: Facts) -> set[str]:
        changes = await stage.log.changes(show.id, -1)
        return set(await stage.states(show.id, mask_of(facts, changes.audiences))) - {"show"}

    async def as_it_should_be() -> bool:
        keys = {f"poll:{poll.id}"}, {f"poll:{poll.id}", f"offer:{offer.id}"}
        return (
            await seen(NOBODY) == set()
            and await seen(Facts(registered=True)) == keys[0]
            and await seen(Facts(registered=True, tier="gold")) == keys[1]
        )

    assert await as_it_should_be()
    for _ in range(2):
        await stage.redis.flushall()
        await stage.shows.ensure(show)
        assert await as_it_should_be()


async def test_a_show_with_every_audience_it_may_have_comes_back_after_a_loss(stage: Stage, tx: Any) -> None:
    show, product = await stage.show("live"), await stage.product()
    for tier in ("1", "2", "3", "4"):
        await stage.audiences.bit(show.id, Audience(kind="tiers", tiers=(tier,)))
    async with tx() as t:
        poll = await stage.polls.open(
            t, stage.host, show.id, "好吗?", ["好", "不好"], audience=Audience(kind="registered")
        )
    async with tx() as t:
        offer = await stage.offers.open(
            t, stage.host, show.id, product.id, audience=Audience(kind="tiers", tiers=("gold",))
        )
    for _ in range(3):
        await stage.redis.flushall()
        await stage.shows.ensure(show)
        assert {f"poll:{poll.id}", f"offer:{offer.id}"} <= set(await stage.states(show.id, STAFF_MASK))


async def test_a_rebuild_that_died_half_way_is_done_again(
    stage: Stage, database: Database, scripts: Scripts
) -> None:
    show = await stage.show("live")
    await stage.comments.announce(stage.host, show.id, "九点秒杀")
    await record(stage, show.id)
    await stage.redis.flushall()
    await scripts.load("live", "open_show")(show.id, [], ["half", 2, "live", "rebuilding", "1"])
    assert await stage.shows.open_due(database, JOB) == 1
    assert (await stage.states(show.id))["announcement"] == {"text": "九点秒杀"}
    assert await stage.shows.open_due(database, JOB) == 0


async def test_an_ended_show_that_redis_lost_is_ended_when_it_comes_back(stage: Stage) -> None:
    show = await stage.show("ended")
    await stage.redis.flushall()
    await stage.shows.ensure(show)
    assert (await stage.states(show.id))["show"]["status"] == "ended"
    with pytest.raises(NotLive):
        await stage.comments.post(viewer(), show.id, "在吗", None)


async def test_a_show_that_never_was_is_not_made(stage: Stage) -> None:
    show = msgspec.structs.replace(await stage.show("scheduled"), id=ShowId("nosuchshow"))
    with pytest.raises(NotFound):
        await stage.shows.ensure(show)
    assert await stage.shows.in_room(show.id, show.room.id) is False
    assert await stage.shows.in_room((await stage.show("scheduled", show.room)).id, show.room.id) is True
