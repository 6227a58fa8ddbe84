"""After a tunnel: every missed event once and in order, or a snapshot; never a part."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from live.engines import Addresses
from live.hub import ShowHub
from live.log import Entry
from membership.actor import PERMISSIONS, Actor, Facts, MemberId, ShowId, new_id
from membership.partition import show_key
from tests.live.recording import Client
from tests.live.serving import Seat, Served, serve

pytestmark = pytest.mark.anyio

HOST = Actor(kind="staff", id=new_id(), name="小禾", role="host", permissions=PERMISSIONS["host"])


async def say(served: Served, show: ShowId, count: int) -> list[int]:
    """`count` comments by as many people; their numbers."""
    numbers = []
    for index in range(count):
        who = MemberId(new_id())
        actor = Actor(kind="viewer", id=who, name=f"观众{index}", facts=Facts(member=who, registered=True))
        numbers.append((await served.parts.comments.post(actor, show, f"第 {index} 句")).seq)
    return numbers


def position(seat: Seat, seq: int | None = None) -> dict[str, object]:
    return {"epoch": seat.welcome["epoch"], "seq": seat.welcome["seq"] if seq is None else seq}


async def drained(served: Served, show: ShowId, seq: int) -> ShowHub:
    hub = served.node.hubs[show]
    assert await hub.reached(seq, 5)
    return hub


async def test_cut_off_under_traffic_a_viewer_has_every_event_once_and_in_order(served: Served) -> None:
    """Twenty seconds at twenty comments a second are four hundred events."""
    show = await served.make_show()
    first = await served.enter(show)
    before = await say(served, show, 5)
    await first.until(lambda m: m.get("seq") == before[-1])
    await first.close()
    missed = await say(served, show, 400)
    back = await served.enter(show, since=position(first, before[-1]))
    assert back.welcome["recovered"] is True
    later = await say(served, show, 5)
    await back.until(lambda m: m.get("seq") == later[-1])
    client = Client(back.welcome["epoch"], before[-1], [], [])
    for message in back.messages:
        client.apply(message)
    assert sorted(client.comments) == missed + later
    assert [m["seq"] for m in back.numbered()] == missed + later


async def test_a_rejoin_in_the_middle_of_a_burst_has_no_hole_and_no_double(served: Served) -> None:
    show = await served.make_show()
    first = await served.enter(show)
    start = position(first)
    talking = asyncio.create_task(say(served, show, 200))
    seats = []
    for _ in range(20):
        seats.append(await served.enter(show, since=dict(start)))
        await asyncio.sleep(0)
    numbers = await talking
    for seat in seats:
        await seat.until(lambda m: m.get("seq") == numbers[-1])
        client = Client(seat.welcome["epoch"], int(start["seq"]), [], [])  # type: ignore[call-overload]
        for message in seat.messages:
            client.apply(message)
        assert sorted(client.comments) == numbers


async def test_what_was_hidden_meanwhile_is_redacted_in_the_replay(served: Served) -> None:
    show = await served.make_show()
    seat = await served.enter(show)
    numbers = await say(served, show, 3)
    await served.parts.comments.hide(HOST, show, numbers[1])
    await drained(served, show, numbers[-1] + 1)
    back = await served.enter(show, since=position(seat))
    await back.until(lambda m: m.get("type") == "comment.hidden")
    assert [m["seq"] for m in back.numbered()] == [numbers[0], numbers[2], numbers[2] + 1]
    assert "第 1 句".encode() not in back.bytes


async def test_after_a_lost_log_recovered_is_false_and_the_snapshot_right(served: Served) -> None:
    show = await served.make_show()
    seat = await served.enter(show)
    numbers = await say(served, show, 5)
    await served.parts.comments.announce(HOST, show, "明天发货")
    await seat.state("announcement")
    redis = served.parts.redis
    await redis.delete(*[key async for key in redis.scan_iter(f"*{show}*")])
    await served.node.following.check_positions()
    assert (await seat.event("gap"))["type"] == "gap"
    await seat.send({"type": "resync", "id": 77, "since": position(seat, numbers[-1])})
    again = await seat.until(lambda m: m.get("id") == 77)
    assert again["type"] == "welcome"
    assert again["recovered"] is False
    assert again["epoch"] != seat.welcome["epoch"]
    back = await served.enter(show, since=position(seat, numbers[-1]))
    assert back.welcome["recovered"] is False
    await say(served, show, 1)
    assert (await back.event("comment.posted"))["text"] == "第 0 句"


async def test_a_position_older_than_the_ring_is_read_from_the_store_for_all_who_wait(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    show = await served.make_show()
    seat = await served.enter(show)
    numbers = await say(served, show, 300)
    hub = await drained(served, show, numbers[-1])
    while hub.ring[0][1].seq < numbers[250]:
        hub.ring.popleft()
    hub._cache.clear()
    read = served.node.show_log.between
    asked: list[tuple[ShowId, int]] = []

    async def counted(of: ShowId, first: int, last: int) -> list[Entry]:
        asked.append((of, first))
        return await read(of, first, last)

    monkeypatch.setattr(served.node.show_log, "between", counted)
    backs = await asyncio.gather(*(served.enter(show, since=position(seat)) for _ in range(30)))
    for back in backs:
        assert back.welcome["recovered"] is True
        await back.until(lambda m: m.get("seq") == numbers[-1])
        assert [m["seq"] for m in back.numbered()] == numbers
    assert 1 <= asked.count((show, int(str(position(seat)["seq"])) + 1)) <= 3


async def test_a_log_trimmed_over_the_position_gives_a_snapshot_never_a_part(served: Served) -> None:
    show = await served.make_show()
    seat = await served.enter(show)
    numbers = await say(served, show, 50)
    hub = await drained(served, show, numbers[-1])
    hub.ring.clear()
    hub._cache.clear()
    await served.parts.redis.xtrim(show_key(show, "log"), maxlen=10, approximate=False)
    back = await served.enter(show, since=position(seat))
    assert back.welcome["recovered"] is False


async def test_writes_lost_in_a_fail_over_get_a_new_epoch(served: Served) -> None:
    """The store comes back with a lower number in the same epoch: clients would drop what is new."""
    show = await served.make_show()
    seat = await served.enter(show)
    numbers = await say(served, show, 10)
    await seat.until(lambda m: m.get("seq") == numbers[-1])
    redis, log = served.parts.redis, show_key(show, "log")
    await redis.hset(show_key(show, "meta"), "seq", numbers[4])
    kept = await redis.xrange(log, max=f"{numbers[4]}-0")
    await redis.delete(log)
    for raw_id, fields in kept:
        await redis.xadd(log, fields, id=raw_id)
    await served.node.following.check_positions()
    await seat.event("gap")
    await seat.send({"type": "resync", "id": 5, "since": position(seat, numbers[-1])})
    again = await seat.until(lambda m: m.get("id") == 5)
    assert again["recovered"] is False
    assert again["epoch"] != seat.welcome["epoch"]
    said = await say(served, show, 1)
    assert (await seat.event("comment.posted"))["seq"] == said[0]


async def test_two_nodes_tell_the_same_and_a_viewer_may_rejoin_at_the_other(
    served: Served, engines: Addresses, tmp_path: Path
) -> None:
    show = await served.make_show()
    async with serve(engines, served.parts.settings.database_url, tmp_path) as other:
        here, there = await served.enter(show), await other.enter(show)
        numbers = await say(served, show, 20)
        for seat in (here, there):
            await seat.until(lambda m: m.get("seq") == numbers[-1])
            assert [m["seq"] for m in seat.numbered()] == numbers
        await here.close()
        more = await say(other, show, 20)
        moved = await other.enter(show, since=position(here, numbers[-1]))
        await moved.until(lambda m: m.get("seq") == more[-1])
        assert moved.welcome["recovered"] is True
        assert [m["seq"] for m in moved.numbered()] == more


async def test_the_store_away_closes_nobody_and_the_log_goes_on_where_it_stopped(served: Served) -> None:
    show = await served.make_show()
    seat = await served.enter(show, await served.member("王小明"))
    await say(served, show, 3)
    redis = served.parts.redis
    await redis.client_pause(1_500)
    refused = await seat.ask("comment.post", key="k1", text="断线时说的")
    assert (refused["type"], refused["code"]) == ("refused", "unavailable")
    assert refused["retry_ms"]

    async def again() -> dict[str, object]:
        while True:
            answer = await seat.ask("comment.post", key="k1", text="断线时说的")
            if answer["type"] == "ok" or answer["code"] != "unavailable":
                return answer
            await asyncio.sleep(answer["retry_ms"] / 1000)

    answer = await asyncio.wait_for(again(), 15)
    assert answer["type"] == "ok"  # the key makes the repeat safe, whether or not the first one ran
    numbers = await say(served, show, 3)
    await seat.until(lambda m: m.get("seq") == numbers[-1])
    said = [m for m in seat.numbered() if m.get("text") == "断线时说的" and m["type"] != "ok"]
    assert len(said) == 1
