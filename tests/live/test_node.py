"""The node: nobody is left in a hub that is gone, in a class that is no longer theirs, or in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from live.hub import ShowHub
from live.joining import Hello
from live.rounds import EMPTY_HUB_S, Rounds
from live.socket import Socket
from membership.actor import Actor, MemberId, ShowId
from membership.refusal import Unavailable
from tests.live.serving import Seat, Served

pytestmark = pytest.mark.anyio


async def seated(served: Served, show: ShowId, actor: Actor) -> tuple[Seat, Socket, ShowHub]:
    seat = await served.enter(show, actor)
    (socket,) = [each for each in served.node.sockets if each.actor is not None and each.actor.id == actor.id]
    return seat, socket, served.node.hubs[show]


async def lose_plan(served: Served, member: MemberId) -> None:
    """As a refund does, without telling anybody."""
    async with served.parts.database.transaction() as t:
        await t.conn.execute(
            "UPDATE plan_terms SET ended_at = clock_timestamp(), end_reason = 'refunded'"
            " WHERE member_id = %s",
            [member],
        )


async def test_an_empty_hub_is_kept_for_who_is_on_the_way_in(served: Served) -> None:
    show = await served.make_show()
    rounds = Rounds(served.node, served.node.metrics)
    hub = await served.node.hub(show)
    hub.wanted_at -= EMPTY_HUB_S + 1
    assert await served.node.hub(show) is hub  # a hello begins
    await rounds._presence()
    assert served.node.hubs.get(show) is hub
    hub.wanted_at -= EMPTY_HUB_S + 1
    await rounds._presence()
    assert show not in served.node.hubs


async def test_the_end_waits_for_claims_in_flight(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[str] = []

    async def note(what: str) -> None:
        ends.append(what)

    monkeypatch.setattr(served.node.dispatch._claims, "close", lambda: note("claims"))
    monkeypatch.setattr(served.node.tail, "stop", lambda: note("tail"))
    await served.node.stop()
    assert ends == ["claims", "tail"]


async def test_presence_goes_on_past_a_show_whose_keys_are_gone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, there = await served.make_show(), await served.make_show()
    for show in (gone, there):
        await served.node.hub(show)
    rounds = Rounds(served.node, served.node.metrics)
    touched: list[ShowId] = []

    async def touch(show: ShowId, keys: Any, args: Any) -> None:
        touched.append(show)
        if show == gone:
            raise Unavailable

    monkeypatch.setattr(rounds, "_touch_presence", touch)
    await rounds._presence()
    assert touched == [gone, there]


async def test_who_lost_a_plan_leaves_its_class_though_the_card_cannot_be_read(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, member = await served.make_show(), await served.member("王小明", paid=True)
    assert member.member is not None
    seat, socket, hub = await seated(served, show, member)
    before = socket.mask
    await lose_plan(served, member.member)

    async def fails(*_: Any) -> Any:
        raise Unavailable

    monkeypatch.setattr(served.node.dispatch, "you", fails)
    await served.node.reload_member(member.member)
    assert socket.mask != before
    assert socket in hub.classes[socket.mask]
    assert member.member in served.node.stale_members  # told by a later round
    monkeypatch.undo()
    assert (await seat.event("you"))["data"]["kind"] == "registered"


async def test_an_event_that_comes_while_the_position_is_asked_for_is_no_lost_log(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await served.make_show()
    hub = await served.node.hub(show)
    position = served.node.show_log.position
    reborn: list[ShowHub] = []

    async def overtaken(asked: ShowId) -> Any:
        found = await position(asked)
        if asked == show:
            hub.seq += 1  # as the tail does
        return found

    async def reload(hub: ShowHub) -> None:
        reborn.append(hub)

    monkeypatch.setattr(served.node.show_log, "position", overtaken)
    monkeypatch.setattr(served.node.following, "reload", reload)
    await served.node.following.check_positions()
    hub.seq -= 1
    assert hub not in reborn


async def test_facts_read_earlier_and_answered_later_are_not_believed(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, member = await served.make_show(), await served.member("王小明", paid=True)
    assert member.member is not None
    _, socket, _ = await seated(served, show, member)
    await lose_plan(served, member.member)
    async with served.parts.database.reading() as conn:
        now = await served.parts.members.actor(conn, member.member)
    answers: list[asyncio.Future[Actor]] = []

    async def asked(*_: Any) -> Actor:
        answers.append(asyncio.get_running_loop().create_future())
        return await answers[-1]

    monkeypatch.setattr(served.node.arrivals, "member", asked)
    readings = []
    for _ in range(2):
        readings.append(asyncio.create_task(served.node.reload_member(member.member)))
        while len(answers) < len(readings):
            await asyncio.sleep(0)
    answers[1].set_result(now)
    await readings[1]
    answers[0].set_result(member)
    await readings[0]
    assert socket.actor == now
    assert not served.node._readings


async def test_who_pays_while_being_let_in_is_told_though_nobody_was_here_to_hear_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, member = await served.make_show(), await served.member("王小明", paid=True)
    assert member.member is not None
    you = served.node.dispatch.you_for_now

    async def changed_meanwhile(*given: Any) -> Any:
        monkeypatch.undo()
        told = await you(*given)
        await lose_plan(served, member.member)  # type: ignore[arg-type]
        served.node._on_notices([(str(member.member), None)])
        return told

    monkeypatch.setattr(served.node.dispatch, "you_for_now", changed_meanwhile)
    seat = await served.enter(show, member)
    assert seat.welcome["you"]["kind"] == "plan"
    assert (await seat.event("you"))["data"]["kind"] == "registered"


async def test_who_voted_elsewhere_is_of_the_voters_class_after_a_resync(served: Served) -> None:
    show, member = await served.make_show(), await served.member("王小明")
    seat, socket, hub = await seated(served, show, member)
    host = await served.staff()
    async with served.parts.database.transaction() as t:
        poll = await served.parts.polls.open(t, host, show, "红枣还是山药？", ["红枣", "山药"])
    await seat.state(f"poll:{poll.id}")
    await served.parts.polls.cast(member, show, poll.id, [0], "k1")  # at another node
    before = socket.mask
    welcome = await seat.ask("resync", since=None)
    assert welcome["you"]["votes"] == {poll.id: [0]}
    assert socket.mask != before
    assert socket in hub.classes[socket.mask]


async def test_after_an_outage_members_are_read_anew_one_after_the_other(served: Served) -> None:
    show, member = await served.make_show(), await served.member("王小明", paid=True)
    assert member.member is not None
    seat, _, _ = await seated(served, show, member)
    await lose_plan(served, member.member)
    served.node.following.on_health(False)
    served.node.following.on_health(True)
    assert member.member in served.node.stale_members
    assert (await seat.event("you"))["data"]["kind"] == "registered"
    while served.node.stale_members:
        await asyncio.sleep(0.01)


async def test_who_leaves_while_a_new_token_is_checked_is_not_remembered(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    show, member = await served.make_show(), await served.member("王小明")
    seat = await served.enter(show)
    (socket,) = [each for each in served.node.sockets if each.show == show]
    checked = asyncio.Event()

    async def who(*_: Any) -> Hello:
        socket.transport.abort()
        while socket.joined:
            await asyncio.sleep(0.01)
        checked.set()
        return Hello(member, None)

    monkeypatch.setattr(served.node.joining, "_who", who)
    await seat.send({"type": "refresh", "id": 2, "token": served.token(member)})
    await asyncio.wait_for(checked.wait(), 5)
    await asyncio.sleep(0.1)
    assert member.member not in served.node.members
