"""What the talk of a show knows of those who come in."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from chat.comments import Comments
from chat.polls import Polls
from chat.standings import Standings, TalkStanding
from live.lua import Scripts
from membership.actor import PERMISSIONS, Actor, Facts, MemberId, ShowId, new_id, public_id
from membership.audience import ShowAudiences
from membership.partition import show_key
from membership.refusal import Unavailable
from tests.conftest import MakeShow, TransactionFactory

pytestmark = pytest.mark.anyio

HOST = Actor(kind="staff", id="s", name="小禾", role="host", permissions=PERMISSIONS["host"])


def someone() -> Actor:
    member = MemberId(new_id())
    return Actor(kind="viewer", id=member, name="王小明", facts=Facts(member=member, registered=True))


async def test_mutes_and_ballots_of_many_are_one_read_each_to_its_person(
    scripts: Scripts, make_show: MakeShow, tx: TransactionFactory
) -> None:
    show = await make_show()
    audiences = ShowAudiences(scripts)
    comments, polls, standings = Comments(scripts, audiences), Polls(scripts, audiences), Standings(scripts)
    muted, voted, neither = someone(), someone(), someone()
    async with tx() as t:
        poll = await polls.open(t, HOST, show, "红枣还是山药？", ["红枣", "山药"])
    await polls.cast(voted, show, poll.id, [1], "k1")
    until = await comments.mute(HOST, show, public_id(show, muted.id), 60)
    found = await standings.standing(show, poll.id, [muted.id, voted.id, neither.id])
    assert found == {
        muted.id: TalkStanding(muted_until=until),
        voted.id: TalkStanding(choices=[1]),
        neither.id: TalkStanding(),
    }
    assert (await standings.standing(show, None, [voted.id]))[voted.id] == TalkStanding()


async def test_a_mute_that_ended_is_none(redis: Redis, scripts: Scripts, make_show: MakeShow) -> None:
    show, person = await make_show(), someone()
    await redis.hset(show_key(show, "mutes"), public_id(show, person.id), "1000")
    assert (await Standings(scripts).standing(show, None, [person.id]))[person.id] == TalkStanding()


async def test_a_show_that_is_gone_is_unavailable_never_unmuted(scripts: Scripts) -> None:
    with pytest.raises(Unavailable):
        await Standings(scripts).standing(ShowId("gone"), None, ["g_1"])
