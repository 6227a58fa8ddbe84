"""PostgreSQL gone, a node killed, a token that ends, a reader that stalls, a loop that stood still."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
import time
from pathlib import Path

import pytest

from live.log import RECENT_ENTRIES
from live.socket import STATE_ONLY
from loadtests.outage import Talker, Watcher, differences, heard_all
from loadtests.wire import Wire
from membership.actor import Actor, Facts, MemberId, ShowId, new_id
from membership.members import guest, new_guest_id
from membership.partition import show_key
from tests.live.serving import Served
from tests.outage.stand import ServerProcess, Stand, entered, until

pytestmark = pytest.mark.anyio


async def test_without_postgresql_guests_come_in_and_members_are_told_to_come_back(
    served: Served, stand: Stand
) -> None:
    show, member = await served.make_show(), await served.member("王小明", paid=True)
    seat = await served.enter(show, member)
    stand.kill_postgres()
    try:
        stranger = await served.enter(show)
        assert stranger.welcome["you"]["kind"] == "guest"
        known = await served.enter(show, guest(new_guest_id()))
        assert known.welcome["type"] == "welcome"
        refused = await served.enter(show, member)
        assert (refused.welcome["type"], refused.welcome["code"]) == ("refused", "unavailable")
        assert refused.welcome["retry_ms"]
        assert "postgres" not in json.dumps(refused.welcome).lower()
        assert await refused.closed() == 4104
        await seat.send({"type": "resync", "id": 9})  # who is in stays in, and is shown what is known
        again = await seat.until(lambda m: m.get("id") == 9)
        assert (again["type"], again["you"]["kind"], again["you"]["plan"]) == ("welcome", "plan", None)
        said = await seat.ask("comment.post", key="k1", text="还在")
        assert said["type"] == "ok"
    finally:
        stand.restart()
    assert (await seat.event("you"))["data"]["plan"]["name"] == seat.welcome["you"]["plan"]["name"]
    await entered(served, show, member)


async def test_a_node_killed_sends_its_viewers_elsewhere_whole_and_is_counted_no_more(
    served: Served, stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("live.rounds.PRESENCE_TTL_MS", 3_500)
    settings = served.parts.settings
    node = ServerProcess(
        {
            "COMPANION_REDIS_URL": settings.redis_url,
            "COMPANION_DATABASE_URL": settings.database_url,
            "COMPANION_SECRET": settings.secret,
            "COMPANION_DATA_DIR": str(tmp_path),
            "COMPANION_COMMENTS_SHOWN_PER_S": "0",
        }
    )
    watchers: list[Watcher] = []
    try:
        await node.ready()
        show = await served.make_show()
        here = await served.enter(show, await served.member("小禾"))
        path = f"/v1/shows/{show}/socket"
        for number in range(4):
            token = served.token(await served.member(f"观众{number}"))
            watchers.append(Watcher(node.url.replace("http", "ws", 1) + path, token))
            watchers[-1].start()
        talkers = [Talker(watcher, f"观众{number}") for number, watcher in enumerate(watchers)]
        await asyncio.gather(*(watcher.viewer.joined.wait() for watcher in watchers))
        await asyncio.gather(*(talker.say(f"{talker.name} 在那边") for talker in talkers))
        await here.state("presence", lambda data: data["counts"]["viewers"] == 5)
        node.kill()
        for watcher in watchers:
            watcher.viewer.url = served.url.replace("http", "ws", 1) + path
        missed = Talker(Watcher(""), "小禾")
        answer = await here.ask("comment.post", key="k1", text="没听到的")
        assert answer["type"] == "ok"
        await until(lambda: all(watcher.returns for watcher in watchers))
        for watcher in watchers:
            assert watcher.welcomes[-1]["recovered"] is True
            await watcher.until(lambda of=watcher: "没听到的" in of.texts(), 10)  # type: ignore[misc]
        await asyncio.gather(*(talker.say(f"{talker.name} 在这边") for talker in talkers))
        await heard_all(watchers, talkers)
        assert differences(watchers, [*talkers, missed], may_return=True) == []
        nodes = show_key(show, "presence")
        async with asyncio.timeout(15):
            while await served.parts.redis.hlen(nodes) > 1:
                await asyncio.sleep(0.1)
        assert await served.parts.redis.hkeys(nodes) == [served.node.id.encode()]
        await until(lambda: served.node.hubs[show].states["presence"].counts == {"viewers": 5})
    finally:
        node.kill()
        await asyncio.gather(*(watcher.stop() for watcher in watchers))


async def test_a_token_that_ends_is_told_then_has_its_grace_then_closes_4106(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("live.rounds.REFRESH_GRACE_S", 1.0)
    show, member = await served.make_show(), await served.member("王小明")
    ends, renewed = await served.enter(show), await served.enter(show)
    for seat in (ends, renewed):
        await seat.send({"type": "refresh", "id": 5, "token": served.token(member, ttl_s=2)})
        assert (await seat.until(lambda m: m.get("id") == 5))["type"] == "ok"
    for seat in (ends, renewed):
        told = await seat.event("refused")
        assert (told["code"], told["id"]) == ("token_expired", None)
    await renewed.send({"type": "refresh", "id": 6, "token": served.token(member)})
    assert (await renewed.until(lambda m: m.get("id") == 6))["type"] == "ok"
    assert await ends.closed() == 4106
    assert (await renewed.ask("comment.post", key="k1", text="我还在"))["type"] == "ok"


async def say(served: Served, show: ShowId, count: int, length: int) -> list[int]:
    """`count` comments by as many people."""
    numbers = []
    for index in range(count):
        who = MemberId(new_id())
        actor = Actor(kind="viewer", id=who, name=f"观众{index}", facts=Facts(member=who, registered=True))
        numbers.append((await served.parts.comments.post(actor, show, "米" * length)).seq)
    return numbers


async def test_a_reader_that_stalls_and_reads_again_has_everything_once_and_in_order(
    served: Served,
) -> None:
    """Its buffer passes the mark above which events are skipped; when it drains they come from the ring."""
    show = await served.make_show()
    url = served.url.replace("http", "ws", 1) + f"/v1/shows/{show}/socket"
    wire = await asyncio.to_thread(Wire, url, receive_bytes=4_096)
    try:
        await asyncio.to_thread(wire.send, "hello", 1, token=None, since=None)
        (welcome,) = await asyncio.to_thread(wire.receive, 5)
        (socket,) = [each for each in served.node.sockets if each.show == show]
        socket.transport.get_extra_info("socket").setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, 4_096)
        numbers: list[int] = []
        async with asyncio.timeout(30):
            while socket.behind is None:
                numbers += await say(served, show, 20, 180)
                assert await served.node.hubs[show].reached(numbers[-1], 5)
        assert socket.transport.get_write_buffer_size() > STATE_ONLY // 2
        got: list[dict[str, object]] = []
        async with asyncio.timeout(30):
            while not got or max(int(str(m.get("seq", 0))) for m in got) < numbers[-1]:
                got += await asyncio.to_thread(wire.receive, 5)
        assert [m["seq"] for m in got if m["type"] == "comment.posted"] == numbers
        at = welcome["seq"]
        for message in got:
            if message["type"] == "range":
                assert message["from"] == at + 1
                at = message["to"]
        assert "gap" not in {m["type"] for m in got}
        assert len(numbers) > RECENT_ENTRIES // 2
        assert not socket.closing
    finally:
        await asyncio.to_thread(wire.close)


async def test_after_this_process_stood_still_nobody_is_closed_and_joins_wait_until_it_runs_well(
    served: Served,
) -> None:
    show = await served.make_show()
    seats = [await served.enter(show) for _ in range(3)]
    for socket in served.node.sockets:
        if socket.show == show:
            socket.pinged_at = served.node.now() - 9.0  # a pong is due within the pause
            served.node.wheel.put(socket, socket.pinged_at + 10.0)
    time.sleep(1.5)  # as a collection of garbage, or a stopped process
    await until(lambda: served.node.pressure.paused_at is not None)
    assert served.node.admit() > 0
    await until(lambda: served.node.pressure.paused_at is None)
    assert served.node.admit() == 0
    number = (await say(served, show, 1, 3))[0]
    for seat in seats:
        assert (await seat.event("comment.posted"))["seq"] == number
