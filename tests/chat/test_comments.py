"""Comments on a real store: pace, mute, hide, pin, announcement."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from chat.comments import (
    Comments,
    Muted,
    NotLive,
    badge_of,
    shown_name,
)
from live.lua import Scripts
from membership.actor import Actor, Role, ShowId, public_id
from membership.audience import STAFF_MASK, ShowAudiences
from membership.partition import show_key
from membership.refusal import (
    BadRequest,
    Forbidden,
    KeyReused,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
)

pytestmark = pytest.mark.anyio

MakeShow = Any
EVERYONE_MASK = 1


@pytest.fixture
def comments(scripts: Scripts) -> Comments:
    return Comments(scripts, ShowAudiences(scripts))


async def _events(entries: Any, show: ShowId) -> list[dict[str, Any]]:
    return [msgspec.json.decode(entry.event) for entry in await entries(show) if entry.event]


async def test_a_comment_is_numbered_named_and_bears_no_member_id(
    comments: Comments, make_show: MakeShow, make_viewer: Any, entries: Any
) -> None:
    show, viewer = await make_show(), make_viewer(plan=True)
    posted = await comments.post(viewer, show, "大米多少钱?", "k1")
    [entry] = await entries(show)
    event = msgspec.json.decode(entry.event)
    assert entry.seq == posted.seq == 1
    assert entry.bit == 0
    assert not entry.urgent
    assert event == {
        "type": "comment.posted",
        "at": posted.at,
        "text": "大米多少钱?",
        "name": "王小明",
        "viewer": public_id(show, viewer.id),
        "badge": "plan",
    }
    assert viewer.id.encode() not in entry.event


async def test_markup_is_kept_as_text_and_text_is_composed(
    comments: Comments, make_show: MakeShow, make_viewer: Any, entries: Any
) -> None:
    show = await make_show()
    await comments.post(make_viewer(), show, "<b>cafe\u0301</b>\x00 \u202e", None)
    [event] = await _events(entries, show)
    assert event["text"] == "<b>café</b>"


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "米" * 201])
async def test_a_bad_line_is_refused_and_counts_against_nothing(
    comments: Comments, make_show: MakeShow, make_viewer: Any, entries: Any, text: str
) -> None:
    show, viewer = await make_show(), make_viewer()
    for _ in range(5):
        with pytest.raises(BadRequest):
            await comments.post(viewer, show, text, None)
    await comments.post(viewer, show, "好", None)
    assert len(await entries(show)) == 1


async def test_three_comments_in_two_seconds_pass_and_the_fourth_starts_a_pause_of_ten(
    comments: Comments, make_show: MakeShow, make_viewer: Any, redis: Redis, entries: Any
) -> None:
    show, viewer = await make_show(), make_viewer()
    for number in range(3):
        await comments.post(viewer, show, f"第{number}条", None)
    with pytest.raises(RateLimited) as caught:
        await comments.post(viewer, show, "第四条", None)
    assert caught.value.retry_ms == 10_000
    assert "10 s" in str(caught.value)
    with pytest.raises(RateLimited) as caught:
        await comments.post(viewer, show, "还是不行", None)
    assert caught.value.retry_ms is not None
    assert 9_000 < caught.value.retry_ms <= 10_000  # trying again does not make it longer
    assert len(await entries(show)) == 3

    await redis.delete(show_key(show, f"paused:{viewer.id}"))  # the pause is over
    for number in range(3):
        await comments.post(viewer, show, f"又第{number}条", None)
    with pytest.raises(RateLimited):
        await comments.post(viewer, show, "又第四条", None)


async def test_the_window_slides_so_a_fourth_passes_once_the_first_is_two_seconds_old(
    comments: Comments, make_show: MakeShow, make_viewer: Any, redis: Redis
) -> None:
    show, viewer = await make_show(), make_viewer()
    for _ in range(3):
        await comments.post(viewer, show, "好", None)
    recent = show_key(show, f"recent:{viewer.id}")
    first = int((await redis.lrange(recent, 0, 0))[0])
    await redis.lset(recent, 0, str(first - 2_000))
    await comments.post(viewer, show, "第四条", None)
    with pytest.raises(RateLimited):
        await comments.post(viewer, show, "第五条", None)


async def test_of_fifty_comments_at_once_exactly_three_pass(
    comments: Comments, make_show: MakeShow, make_viewer: Any, entries: Any
) -> None:
    show, viewer = await make_show(), make_viewer()
    answers = await asyncio.gather(
        *(comments.post(viewer, show, f"抢{number}", None) for number in range(50)), return_exceptions=True
    )
    assert sum(not isinstance(answer, Exception) for answer in answers) == 3
    assert sum(isinstance(answer, RateLimited) for answer in answers) == 47
    assert len(await entries(show)) == 3


async def test_staff_have_no_pace_and_their_badge_is_host(
    comments: Comments, make_show: MakeShow, host: Actor, entries: Any
) -> None:
    show = await make_show()
    for number in range(6):
        await comments.post(host, show, f"欢迎{number}", None)
    events = await _events(entries, show)
    assert [event["badge"] for event in events] == ["host"] * 6


async def test_the_same_key_gives_the_same_answer_once_and_another_body_is_refused(
    comments: Comments, make_show: MakeShow, make_viewer: Any, entries: Any
) -> None:
    show, viewer, other = await make_show(), make_viewer(), make_viewer()
    first = await comments.post(viewer, show, "在吗", "k1")
    for _ in range(5):
        assert await comments.post(viewer, show, "在吗", "k1") == first
    with pytest.raises(KeyReused):
        await comments.post(viewer, show, "不在", "k1")
    await comments.post(other, show, "在的", "k1")  # a key is its owner's
    assert len(await entries(show)) == 2


async def test_guests_speak_only_where_the_show_lets_them(
    comments: Comments, make_show: MakeShow, make_viewer: Any, entries: Any
) -> None:
    closed, open_ = await make_show(), await make_show(guest_comments="1")
    guest = make_viewer(guest=True)
    with pytest.raises(Unauthenticated):
        await comments.post(guest, closed, "你好", None)
    await comments.post(guest, open_, "你好", None)
    [event] = await _events(entries, open_)
    assert event["badge"] == "guest"
    assert event["name"].startswith("访客")
    assert guest.id not in str(event)


@pytest.mark.parametrize("status", ["scheduled", "ended"])
async def test_nobody_comments_before_the_waiting_room_or_after_the_end(
    comments: Comments, make_show: MakeShow, make_viewer: Any, host: Actor, status: str
) -> None:
    show = await make_show(status)
    for actor in (make_viewer(), host):
        with pytest.raises(NotLive):
            await comments.post(actor, show, "你好", None)


@pytest.mark.parametrize("status", ["waiting", "live", "paused", "ending"])
async def test_people_talk_from_the_waiting_room_to_the_last_call(
    comments: Comments, make_show: MakeShow, make_viewer: Any, status: str
) -> None:
    await comments.post(make_viewer(), await make_show(status), "你好", None)


async def test_a_show_that_the_store_does_not_know_is_unavailable(
    comments: Comments, make_viewer: Any, scripts: Scripts
) -> None:
    with pytest.raises(Unavailable):
        await comments.post(make_viewer(), ShowId("nosuchshow"), "你好", None)


async def test_a_behaviour_record_goes_with_a_viewers_comment_and_not_with_the_hosts(
    comments: Comments, make_show: MakeShow, make_viewer: Any, host: Actor, redis: Redis
) -> None:
    show, viewer = await make_show(), make_viewer()
    await comments.post(viewer, show, "好吃", "k")
    await comments.post(viewer, show, "好吃", "k")
    await comments.post(host, show, "谢谢", None)
    records = [
        msgspec.json.decode(fields[b"b"]) for _, fields in await redis.xrange(show_key(show, "behaviour"))
    ]
    assert [(record["kind"], record["viewer"], record["text"]) for record in records] == [
        ("comment", viewer.id, "好吃")
    ]


async def test_a_hidden_comment_is_redacted_once_and_cannot_be_pinned_or_answered(
    comments: Comments, make_show: MakeShow, make_viewer: Any, host: Actor, entries: Any, see: Any
) -> None:
    show = await make_show()
    rude = (await comments.post(make_viewer(), show, "骂人的话", None)).seq
    await comments.pin(host, show, rude)
    assert (await see(show, EVERYONE_MASK))["pinned"]["comment"]["text"] == "骂人的话"
    assert await comments.hide(host, show, rude)
    assert not await comments.hide(host, show, rude)
    found = await entries(show)
    assert [entry.redacts for entry in found] == [None, None, rude]
    assert found[0].event == b""
    assert (await see(show, STAFF_MASK))["pinned"] == {}
    with pytest.raises(NotFound):
        await comments.pin(host, show, rude)
    with pytest.raises(NotFound):
        await comments.post(host, show, "回复", None, reply_to=rude)


async def test_hiding_what_is_no_comment_is_not_found(
    comments: Comments, make_show: MakeShow, host: Actor
) -> None:
    show = await make_show()
    await comments.announce(host, show, "九点抽奖")
    for seq in (0, -1, 1, 2, 10**18):
        with pytest.raises(NotFound):
            await comments.hide(host, show, seq)


async def test_the_next_pin_takes_the_place_of_the_last_and_unpin_clears(
    comments: Comments, make_show: MakeShow, make_viewer: Any, host: Actor, see: Any, entries: Any
) -> None:
    show = await make_show()
    first = (await comments.post(make_viewer("甲"), show, '他说"好"/\\', None)).seq
    second = (await comments.post(make_viewer("乙"), show, "二", None)).seq
    assert await comments.pin(host, show, first)
    assert not await comments.pin(host, show, first)
    assert (await see(show, 1))["pinned"] == {
        "comment": {"seq": first, "text": '他说"好"/\\', "name": "甲", "badge": ""}
    }
    await comments.pin(host, show, second)
    assert (await see(show, 1))["pinned"]["comment"]["seq"] == second
    assert await comments.unpin(host, show)
    assert not await comments.unpin(host, show)
    assert (await see(show, 1))["pinned"] == {}
    assert [event["type"] for event in await _events(entries, show)][2:] == [
        "comment.pinned",
        "comment.pinned",
        "comment.unpinned",
    ]


async def test_staff_reply_names_whom_they_answer_and_viewers_do_not_reply(
    comments: Comments, make_show: MakeShow, make_viewer: Any, host: Actor, entries: Any
) -> None:
    show = await make_show()
    asked = (await comments.post(make_viewer('引"号'), show, "几天到?", None)).seq
    await comments.post(host, show, "两天到", None, reply_to=asked)
    answer = (await _events(entries, show))[-1]
    assert (answer["reply_to"], answer["reply_name"]) == (asked, '引"号')
    with pytest.raises(Forbidden):
        await comments.post(make_viewer(), show, "我也想知道", None, reply_to=asked)
    with pytest.raises(NotFound):
        await comments.post(host, show, "谁?", None, reply_to=999)


async def test_an_announcement_is_state_and_event_and_can_be_cleared(
    comments: Comments, make_show: MakeShow, host: Actor, see: Any, entries: Any
) -> None:
    show = await make_show("scheduled")
    await comments.announce(host, show, " 九点\n秒杀 ")
    assert (await see(show, 1))["announcement"] == {"text": "九点 秒杀"}
    await comments.announce(host, show, None)
    assert (await see(show, 1))["announcement"] == {}
    assert [event["text"] for event in await _events(entries, show)] == ["九点 秒杀", None]
    with pytest.raises(BadRequest):
        await comments.announce(host, show, "米" * 201)
    with pytest.raises(NotLive):
        await comments.announce(host, await make_show("ended"), "太晚了")


async def test_a_muted_viewer_is_told_for_how_long_and_only_staff_see_the_event(
    comments: Comments, make_show: MakeShow, make_viewer: Any, host: Actor, entries: Any
) -> None:
    show, viewer = await make_show(), make_viewer()
    who = public_id(show, viewer.id)
    until = await comments.mute(host, show, who, 60)
    assert await comments.muted_until(show, who) == until
    with pytest.raises(Muted) as caught:
        await comments.post(viewer, show, "为什么", None)
    assert caught.value.retry_ms is not None
    assert 0 < caught.value.retry_ms <= 60_000
    await comments.post(make_viewer(), show, "别人可以", None)
    await comments.unmute(host, show, who)
    await comments.unmute(host, show, who)
    assert await comments.muted_until(show, who) is None
    await comments.post(viewer, show, "谢谢", None)
    found = await entries(show)
    assert [entry.bit for entry in found if b"muted" in entry.event] == [8, 8]


@pytest.mark.parametrize(
    ("viewer", "seconds", "refusal"),
    [
        ("x", 60, NotFound),
        ("*" * 12, 60, NotFound),
        ("a" * 12, 9, BadRequest),
        ("a" * 12, 10**9, BadRequest),
        ("a" * 12, -1, BadRequest),
    ],
)
async def test_a_mute_out_of_bounds_is_refused(
    comments: Comments, make_show: MakeShow, host: Actor, viewer: str, seconds: int, refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        await comments.mute(host, await make_show(), viewer, seconds)


async def test_roles_decide_who_moderates(
    comments: Comments, make_show: MakeShow, make_viewer: Any, make_staff: Callable[[Role], Actor]
) -> None:
    show = await make_show()
    seq = (await comments.post(make_viewer(), show, "你好", None)).seq
    for actor in (make_viewer(), make_staff("operator"), make_staff("admin")):
        for act in (
            comments.hide(actor, show, seq),
            comments.pin(actor, show, seq),
            comments.unpin(actor, show),
            comments.mute(actor, show, "a" * 12, 60),
            comments.unmute(actor, show, "a" * 12),
            comments.announce(actor, show, "我来宣布"),
        ):
            with pytest.raises(Forbidden):
                await act
    await comments.hide(make_staff("reviewer"), show, seq)
    with pytest.raises(Forbidden):
        await comments.announce(make_staff("reviewer"), show, "我来宣布")
    with pytest.raises(Forbidden):
        await comments.post(Actor(kind="shop", id="key"), show, "广告", None)


async def test_the_pace_of_a_show_is_counted(
    comments: Comments, make_show: MakeShow, make_viewer: Any, redis: Redis
) -> None:
    show = await make_show()
    for _ in range(4):
        await comments.post(make_viewer(), show, "好", None)
    await redis.hset(show_key(show, "pace"), "100", 7)  # long ago
    pace = await comments.pace(show)
    assert (pace.minute, pace.total) == (4, 11)


async def test_a_reborn_show_has_what_was_pinned_announced_and_muted(
    comments: Comments, make_show: MakeShow, make_viewer: Any, host: Actor, see: Any, redis: Redis
) -> None:
    show, muted = await make_show(), "a" * 12
    word = {"type": "comment.pinned", "text": "好", "name": "甲", "badge": ""}
    await redis.sadd(show_key(show, "hidden"), "1")  # of the store that was lost
    await comments.rebuild(
        show,
        [
            {**word, "comment": 3},
            {"type": "announcement.set", "text": "九点秒杀"},
            {"type": "viewer.muted", "viewer": muted, "until": 4_000_000_000_000},
            {"type": "viewer.muted", "viewer": "b" * 12, "until": 4_000_000_000_000},
            {"type": "viewer.unmuted", "viewer": "b" * 12},
        ],
    )
    seen = await see(show, 1)
    assert seen["pinned"] == {"comment": {"seq": 0, "text": "好", "name": "甲", "badge": ""}}
    assert seen["announcement"] == {"text": "九点秒杀"}
    assert await comments.muted_until(show, muted) == 4_000_000_000_000
    assert await comments.muted_until(show, "b" * 12) is None
    seq = (await comments.post(make_viewer(), show, "第一条", None)).seq
    assert await comments.hide(host, show, seq)
    assert await comments.unpin(host, show)


async def test_a_pin_that_was_hidden_is_not_rebuilt(
    comments: Comments, make_show: MakeShow, see: Any
) -> None:
    show = await make_show()
    await comments.rebuild(
        show,
        [
            {"type": "comment.pinned", "comment": 3, "text": "骂", "name": "甲", "badge": ""},
            {"type": "comment.hidden", "comment": 3},
            {"type": "announcement.set", "text": "一"},
            {"type": "announcement.set", "text": None},
        ],
    )
    assert await see(show, 1) == {}


def test_a_person_has_another_public_id_in_every_show(make_viewer: Any) -> None:
    viewer = make_viewer()
    ids = {public_id(ShowId(show), viewer.id) for show in ("aaaaaaaaaa", "bbbbbbbbbb")}
    assert len(ids) == 2
    assert all(len(found) == 12 for found in ids)


def test_names_are_cleaned_and_cut_and_badges_follow_facts(make_viewer: Any, host: Actor) -> None:
    show = ShowId("aaaaaaaaaa")
    assert shown_name(show, make_viewer("王\u202e\x00" + "长" * 100)) == "王" + "长" * 23
    assert shown_name(show, make_viewer("\u200b")).startswith("观众")
    assert shown_name(show, make_viewer(guest=True)).startswith("访客")
    assert [
        badge_of(actor) for actor in (host, make_viewer(plan=True), make_viewer(), make_viewer(guest=True))
    ] == ["host", "plan", "", "guest"]
