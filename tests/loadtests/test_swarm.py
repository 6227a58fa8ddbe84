"""The swarm counts what comes: against a served shop, and against servers that do wrong on purpose."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from live.protocol import SHOW_ENDED, SUBPROTOCOL
from live.socket import Socket
from loadtests import talk
from loadtests.swarm import (
    ACCEPT,
    Histogram,
    Swarm,
    SwarmError,
    SwarmProcess,
    allow_files,
    hello_with,
    main,
)
from membership.actor import Actor, ShowId
from tests.live.serving import Served

pytestmark = pytest.mark.anyio
Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def swarming(served: Served, show: ShowId, count: int, **more: Any) -> AsyncIterator[Swarm]:
    more.setdefault("hello", hello_with())
    path = f"/v1/shows/{show}/socket"
    swarm = Swarm([("127.0.0.1", served.port)], path, count, subprotocol=SUBPROTOCOL, **more)
    try:
        await swarm.open(10)
        swarm.reset()
        yield swarm
    finally:
        await swarm.close()


@asynccontextmanager
async def scripted(act: Act, count: int = 1, **more: Any) -> AsyncIterator[Swarm]:
    """A swarm before a server that upgrades and then does what `act` does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await act(reader, writer)
            await writer.drain()
            await reader.read()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    swarm = Swarm([("127.0.0.1", server.sockets[0].getsockname()[1])], "/", count, **more)
    try:
        yield swarm
    finally:
        await swarm.close()
        server.close()


UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: " + ACCEPT + b"\r\n\r\n"


def frame(*messages: dict[str, Any], deflate: bool = False) -> bytes:
    payload = json.dumps(list(messages)).encode()
    first = 0x81
    if deflate:
        made = zlib.compressobj(1, zlib.DEFLATED, -15)
        payload, first = (made.compress(payload) + made.flush(zlib.Z_SYNC_FLUSH))[:-4], 0xC1
    size = bytes((len(payload),)) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2, "big")
    return bytes((first,)) + size + payload


def span(first: int, last: int, epoch: str = "e") -> dict[str, Any]:
    return {"type": "range", "epoch": epoch, "from": first, "to": last}


def comment(seq: int, text: str = "好") -> dict[str, Any]:
    return {"type": "comment.posted", "seq": seq, "at": 1, "text": text, "viewer": "v"}


WELCOME = {"type": "welcome", "epoch": "e", "seq": 5, "recovered": False, "reconnect_ms": [1, 2]}


def says(*frames: bytes) -> Act:
    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(UPGRADED + b"".join(frames))

    return act


async def until(true: Callable[[], bool], wait_s: float = 10.0) -> None:
    end = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        await asyncio.sleep(0.01)


async def say(served: Served, host: Actor, show: ShowId, lines: Sequence[str]) -> int:
    """The sum of the numbers the lines got."""
    return sum([(await served.parts.comments.post(host, show, line, None)).seq for line in lines])


@pytest.mark.parametrize("deflate", [False, True])
async def test_every_viewer_has_every_comment_once_and_timed(served: Served, deflate: bool) -> None:
    show, host = await served.make_show(), await served.staff()
    async with swarming(served, show, 20, deflate=deflate) as swarm:
        lines = [f"@t={time.monotonic_ns()} {number} " + "米" * 100 for number in range(8)]
        checksum = await say(served, host, show, lines)
        await until(lambda: swarm.report().comments_least == 8)
        report = swarm.report()
        assert report.comments_most == 8
        assert report.sum_least == report.sum_most == checksum
        assert report.seq_least == report.seq_most
        assert (report.holes, report.repeats, report.disordered, report.gaps) == (0, 0, 0, 0)
        assert report.latency.count == 160
        assert 0 < report.latency.p50 <= report.latency.p99 <= report.latency.max
        assert (report.deflated > 0) is deflate
        # A character is three bytes here, and the frame's 100 alike ones deflate to a few.
        assert (report.wire_bytes < 20 * 8 * 300) is deflate


async def test_who_is_cut_comes_back_with_what_was_missed(served: Served) -> None:
    show, host = await served.make_show(), await served.staff()
    async with swarming(served, show, 10) as swarm:
        first = await say(served, host, show, ["一", "二"])
        await until(lambda: swarm.report().comments_least == 2)
        cutting = asyncio.create_task(swarm.cut(15))
        await until(lambda: swarm.here == 0)
        second = await say(served, host, show, ["三", "四", "五"])
        assert await cutting > 0
        await until(lambda: swarm.report().comments_least == 5)
        report = swarm.report()
        assert (report.recovered, report.snapshots) == (10, 0)
        assert (report.comments_most, report.sum_least) == (5, first + second)
        assert (report.holes, report.repeats) == (0, 0)
        assert report.closes == {"1006": 10}


async def test_who_stalls_gets_nothing_until_it_reads_on(served: Served) -> None:
    show, host = await served.make_show(), await served.staff()
    async with swarming(served, show, 2, small=1) as swarm:
        swarm.stall(1)
        await say(served, host, show, ["一", "二"])
        await until(lambda: swarm.viewers[1].comments == 2)
        assert swarm.viewers[0].comments == 0
        assert swarm.report().comments_least == 2, "the figures are of those who read"
        swarm.resume(1)
        await until(lambda: swarm.viewers[0].comments == 2)
        assert swarm.holes == 0


async def test_members_post_and_what_they_said_is_timed_without_a_mark(served: Served) -> None:
    show = await served.make_show()
    tokens = [served.token(await served.member()) for _ in range(4)]
    async with swarming(served, show, 6, hello=hello_with(tokens)) as swarm:
        await swarm.post(10, 0.6, 4)
        await until(lambda: swarm.report().comments_least == 6)
        report = swarm.report()
        assert (report.posted, report.acknowledged, report.refused) == (6, 6, {})
        assert report.sum_least == report.acknowledged_sum
        assert report.latency.count == 36
        assert report.answers.count == 6


async def test_a_refused_comment_is_told_by_its_word(served: Served) -> None:
    show = await served.make_show()
    async with swarming(served, show, 1) as swarm:  # a guest, where guests do not speak
        await swarm.post(5, 0.2)
        assert swarm.report().refused == {"unauthenticated": 1}


async def test_a_claim_goes_on_after_its_connection_was_lost(served: Served) -> None:
    show = await served.make_show()
    tokens = [served.token(await served.member()) for _ in range(5)]
    owner = await served.staff()
    async with served.http(owner) as http:
        body = {"title": "试吃", "quota": 3, "needs": "nothing"}
        answer = await http.post(f"/v1/shows/{show}/benefits", json=body, headers={"Idempotency-Key": "b"})
        benefit = answer.json()["id"]
    async with swarming(served, show, 5, hello=hello_with(tokens), rejoin=True) as swarm:
        for socket in [s for s in served.node.sockets if s.show == show]:
            socket.transport.pause_reading()  # nothing of the first try arrives
        await swarm.claim(benefit)
        assert swarm.report().claims_waiting == 5
        await swarm.cut(15)
        await until(lambda: swarm.report().claims_waiting == 0)
        report = swarm.report()
        assert sorted(report.ranks) == [1, 2, 3]
        assert report.refused == {"sold_out": 2}
        assert report.answered_twice == 0


async def test_an_end_for_good_is_not_followed_by_a_rejoin(served: Served) -> None:
    show = await served.make_show()
    async with swarming(served, show, 3, rejoin=True) as swarm:
        sockets: list[Socket] = [s for s in served.node.sockets if s.show == show]
        for socket in sockets:
            socket.close(SHOW_ENDED)
        await until(lambda: swarm.closes[SHOW_ENDED] == 3)
        assert swarm.first_closed_ns <= swarm.last_closed_ns
        await asyncio.sleep(0.7)  # longer than the least wait before a rejoin
        assert (swarm.here, swarm.joins) == (0, 0)


async def test_a_frame_left_out_is_a_hole_and_one_told_twice_a_repeat() -> None:
    told = says(
        frame(WELCOME),
        frame(span(6, 7), comment(6), comment(7)),
        frame(span(9, 9), comment(9)),
        frame(span(9, 10), comment(9), comment(10)),
        frame(span(11, 11, "another"), comment(11)),
    )
    async with scripted(told, hello=hello_with()) as swarm:
        await swarm.open(5)
        await until(lambda: swarm.report().comments_least == 6)
        assert (swarm.holes, swarm.repeats, swarm.disordered) == (2, 1, 0)


async def test_events_out_of_order_or_out_of_their_range_are_noticed() -> None:
    told = says(
        frame(WELCOME),
        frame(span(6, 7), comment(7), comment(6)),
        frame(span(8, 8), comment(9)),
        frame(comment(9)),
    )
    async with scripted(told, hello=hello_with()) as swarm:
        await swarm.open(5)
        await until(lambda: swarm.messages >= 6)
        assert swarm.disordered == 2


async def test_a_gap_is_answered_by_asking_for_the_rest() -> None:
    asked: list[bytes] = []

    async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(UPGRADED + frame(WELCOME) + frame({"type": "gap"}, {"type": "ping"}))
        while len(asked) < 3:  # hello, then pong and resync: each with a head of six bytes
            head = await reader.readexactly(6)
            asked.append(await reader.readexactly(head[1] & 127))
        writer.write(frame({**WELCOME, "seq": 9}) + frame(span(10, 10), comment(10)))

    async with scripted(act, hello=hello_with()) as swarm:
        await swarm.open(5)
        await until(lambda: swarm.report().comments_least == 1)
        assert json.loads(asked[1]) == {"type": "pong"}
        assert json.loads(asked[2])["since"] == {"epoch": "e", "seq": 5}
        assert (swarm.gaps, swarm.snapshots, swarm.holes) == (1, 1, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000])
async def test_frames_are_whole_however_the_bytes_arrive(size: int) -> None:
    ping = b"\x89\x02hi"
    pieces = b"\x01\x05hello\x00\x06 world\x80\x01!"
    data = UPGRADED + frame(span(1, 1), comment(1, "米" * 200), deflate=True) + ping
    data += frame(span(2, 2), comment(2)) + b"\x88\x02\x0f\xa1"
    for plain, whole in ((False, data), (True, UPGRADED + pieces)):

        async def act(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, whole: bytes = whole
        ) -> None:
            for at in range(0, len(whole), size):
                writer.write(whole[at : at + size])
                await writer.drain()
                await asyncio.sleep(0)

        async with scripted(act, plain=plain) as swarm:
            await swarm.open(5)
            await until(lambda: swarm.frames == (1 if plain else 2))  # noqa: B023
            if not plain:
                await until(lambda: swarm.viewers[0].close_code == 4_001)
                assert (swarm.report().comments_least, swarm.deflated, swarm.holes) == (2, 1, 0)


async def test_who_is_closed_at_the_door_comes_again_and_the_reason_is_kept() -> None:
    tries = 0
    refused = frame({"type": "refused", "id": 1, "code": "unavailable", "message": "", "retry_ms": 1})

    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        writer.write(
            UPGRADED + (frame(WELCOME) if tries > 1 else refused + b"\x88\x02" + (4_101).to_bytes(2, "big"))
        )
        if tries == 1:
            writer.close()

    async with scripted(act, hello=hello_with()) as swarm:
        swarm.viewers[0].rests_ms = (1, 2)
        await swarm.open(5)
        assert (swarm.here, tries) == (1, 2)
        assert swarm.closes == {4_101: 1}
        assert swarm.refused == {"hello: unavailable": 1}


async def test_a_503_is_come_back_from_after_the_time_it_says() -> None:
    tries = 0

    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        if tries <= 3:
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\n\r\n")
            writer.close()
        else:
            writer.write(UPGRADED)

    async with scripted(act, 2, plain=True) as swarm:
        await swarm.open(5)
        assert (swarm.here, swarm.turned, swarm.closes) == (2, 3, {})


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "was answered 404"),
        (b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: no\r\n\r\n", "Accept is wrong"),
        (UPGRADED[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", "keep a deflate context"),
    ],
)
async def test_a_door_nobody_gets_through_ends_the_wait_with_its_reason(answer: bytes, why: str) -> None:
    async def act(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    async with scripted(act, plain=True) as swarm:
        with pytest.raises(SwarmError, match=why):
            await swarm.open(5)


async def test_where_nobody_listens_the_wait_ends_in_words() -> None:
    swarm = Swarm([("127.0.0.1", 1)], "/", 2, plain=True)
    try:
        with pytest.raises(SwarmError, match="2 of 2 viewers are not in"):
            await swarm.open(0.3)
    finally:
        await swarm.close()


async def test_as_a_process_it_answers_commands_until_its_input_ends(served: Served) -> None:
    show, host = await served.make_show(), await served.staff()
    arguments = ["--port", str(served.port), "--path", f"/v1/shows/{show}/socket", "--count", "5"]
    async with SwarmProcess(arguments) as swarm:
        assert await swarm.ready(30) >= 0
        await swarm.ask("reset")
        checksum = await say(served, host, show, ["一", "二"])
        report = await swarm.report()
        until = time.monotonic() + 10
        while report.comments_least < 2 and time.monotonic() < until:
            report = await swarm.report()
        assert (report.viewers, report.here, report.sum_least) == (5, 5, checksum)
        assert (await swarm.ask(f"level {report.seq_least}"))["count"] == 5
        with pytest.raises(SwarmError, match="is no command"):
            await swarm.ask("dance")
        assert (await swarm.ask("cut"))["seconds"] > 0
        assert (await swarm.report()).recovered == 5


async def test_as_a_process_it_says_why_nobody_got_in(served: Served) -> None:
    async with SwarmProcess(["--port", str(served.port), "--path", "/elsewhere"]) as swarm:
        with pytest.raises(SwarmError, match="the upgrade was answered 404"):
            await swarm.ready(30)


def test_percentiles_are_of_all_times_and_the_longest_is_exact() -> None:
    times = Histogram()
    for number in range(1, 101):
        times.add(number * 1_000_000)
    times.add(10**12)
    found = times.times()
    assert found.count == 101
    assert (found.p50, found.p99) == pytest.approx((51, 100), abs=0.2)
    assert found.max == 10**6


def test_too_few_open_files_are_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1_024))
    with pytest.raises(SwarmError, match="ulimit -Hn 5128"):
        allow_files(5_000)


def test_few_lines_of_a_busy_evening_are_alike() -> None:
    chance = random.Random(4)
    lines = [talk.varied(chance) for _ in range(1_000)]
    assert len(set(lines)) > 800
    assert max(map(len, lines)) < 60


def test_it_explains_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for command in ("report", "cut", "stall N", "claim BENEFIT"):
        assert command in said
