"""The socket against what nobody should send: by seed, by the real stores, and the double against uvloop."""

from __future__ import annotations

import asyncio
import random
import socket as sockets
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from live.socket import CLOSE_WAIT_S, FRAMES_AT_ONCE, WRITE_HIGH, WRITE_LOW, Socket
from membership.actor import ShowId
from tests.live.protocol_fuzz import (
    BAD_UTF8,
    NOT_COMMANDS,
    Generator,
    House,
    StandingLoop,
    TransportDouble,
    client_frame,
    fuzz,
    heard,
    upgrade,
)
from tests.live.serving import Served

FRAMES = 20_000
GROWTH_MAX = 1.1
SEED = 20_260_719
HELLO = client_frame(1, b'{"type":"hello","id":1,"token":null}')
VIEW = b'{"type":"product.view","id":%d,"product":"0190a5f2-7c3e-7abc-8def-0123456789ab"}'


def test_twenty_thousand_frames_of_a_seed_leave_nothing_broken_stuck_or_behind() -> None:
    outcome = fuzz(FRAMES, SEED)
    assert outcome.faults == []
    assert outcome.frames >= FRAMES
    assert outcome.more_objects <= GROWTH_MAX
    assert outcome.answers > FRAMES / 10  # most of it was understood: not everything ends at the first frame
    assert {"1000", "1002", "1007", "1009", "4501", "4504", "4507"} <= set(outcome.closes)


def test_a_session_is_the_same_whatever_came_before_it() -> None:
    with asyncio.Runner(loop_factory=StandingLoop) as runner:

        async def tokens() -> Any:
            return House().tokens

        made = runner.run(tokens())
    one, other = Generator(5, made), Generator(5, made)
    other.good, other.bad = one.good, one.bad  # a token has the second it was made in
    for number in range(50):
        other.session(number)
    assert one.session(17) == other.session(17)
    assert one.session(17) != one.session(18)


def played(play: Callable[[House, TransportDouble], Any]) -> TransportDouble:
    """One connection that has said hello, in `play`."""

    async def run() -> TransportDouble:
        house = House()
        wire = house.connect()
        wire.feed(upgrade())
        wire.feed(HELLO)
        await house.settle()
        await play(house, wire)
        assert house.faults == []
        return wire

    with asyncio.Runner(loop_factory=StandingLoop) as runner:
        return runner.run(run())


@pytest.mark.parametrize(
    "last", [client_frame(8, b"\x03\xe8"), client_frame(3), client_frame(1, b"x", rsv=2)]
)
def test_a_flood_that_ends_in_what_the_parser_ends_itself_is_closed_all_the_same(last: bytes) -> None:
    async def play(house: House, wire: TransportDouble) -> None:
        wire.feed(client_frame(9) * (FRAMES_AT_ONCE + 10) + last)
        await house.pass_time(CLOSE_WAIT_S + 1)
        assert wire.closed

    played(play)


@pytest.mark.parametrize("leave", ["close", "end", "nonsense"])
def test_a_peer_that_leaves_without_reading_what_was_written_is_cut(leave: str) -> None:
    async def play(house: House, wire: TransportDouble) -> None:
        wire.stall()
        wire.feed(client_frame(9, b"unread"))
        if leave == "end":
            wire.end()
        else:
            wire.feed(client_frame(8, b"\x03\xe8") if leave == "close" else client_frame(3))
        await house.settle()
        assert not wire.closed
        await house.pass_time(CLOSE_WAIT_S + 1)
        assert wire.closed
        assert house.leftovers() == []

    played(play)


def test_what_comes_after_our_close_is_neither_kept_nor_answered_for_ever() -> None:
    async def play(house: House, wire: TransportDouble) -> None:
        wire.feed(client_frame(2, b"binary"))
        await house.settle()
        socket = wire.protocol
        assert isinstance(socket, Socket)
        for _ in range(10):
            wire.feed(client_frame(9) * 30)
            assert socket.ws.events == []
        assert not wire.closing  # it is given time to answer the close
        wire.feed(client_frame(9) * FRAMES_AT_ONCE)
        await house.settle()
        assert wire.closed

    wire = played(play)
    assert heard(bytes(wire.sent)).code == 4504


@pytest.mark.parametrize("body", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_an_upgrade_with_a_body_is_told_that_it_is_none(body: bytes) -> None:
    async def ask() -> bytes:
        house = House()
        wire = house.connect()
        wire.feed(upgrade(more=body) + b"5\r\nhello\r\n0\r\n\r\n")
        await house.settle()
        assert wire.closed
        return bytes(wire.sent)

    with asyncio.Runner(loop_factory=StandingLoop) as runner:
        answer = runner.run(ask())
    assert heard(answer).status == 400
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("bad", BAD_UTF8)
@pytest.mark.parametrize("fragments", [1, 2])
def test_text_that_is_not_utf8_ends_1007(bad: bytes, fragments: int) -> None:
    async def play(house: House, wire: TransportDouble) -> None:
        if fragments == 1:
            wire.feed(client_frame(1, bad))
        else:
            wire.feed(client_frame(1, bad[:1], fin=False) + client_frame(0, bad[1:]))
        await house.settle()

    assert heard(bytes(played(play).sent)).code == 1007


def test_after_reading_is_paused_nothing_comes_and_then_everything_is_answered_in_order() -> None:
    async def play(house: House, wire: TransportDouble) -> None:
        wire.feed(b"".join(client_frame(1, VIEW % number) for number in range(100, 140)))
        assert not wire.reading
        wire.feed(client_frame(1, VIEW % 140))
        assert len(wire.inbox) == 1
        await house.settle()
        assert wire.reading

    assert heard(bytes(played(play).sent)).answers == [1, *range(100, 141)]


# -- the double and the original --------------------------------------------------------------------


class Noted(asyncio.Protocol):
    """What a transport calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.got = b""
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.got += data

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return False

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")


def outcome_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except RuntimeError:
        return "raises"
    return "passes"


async def _told(protocol: Noted, turn: Callable[[], Any], peer: dict[str, Callable[[], Any]]) -> list[Any]:
    """The same calls on either transport, and what it says to each."""
    transport, told = protocol.transport, []

    def note(*what: Any) -> None:
        told.append(what)

    note("fresh", transport.is_closing(), transport.get_write_buffer_size(), transport.is_reading())
    transport.pause_reading()
    transport.pause_reading()
    peer["send"]()
    await turn()
    note("paused", protocol.got, transport.is_reading())
    transport.resume_reading()
    transport.resume_reading()
    await turn()
    note("resumed", protocol.got, transport.is_reading())
    transport.write(b"x" * 100)
    note("written", transport.get_write_buffer_size())
    await turn()
    note("left", transport.get_write_buffer_size())
    peer["stall"]()
    for _ in range(8):
        transport.write(b"y" * 4_000_000)
        await turn()
    note("stalled", transport.get_write_buffer_size() > WRITE_HIGH, list(protocol.calls))
    transport.close()
    transport.close()
    note("closing", transport.is_closing(), transport.is_reading(), list(protocol.calls))
    note("after close", outcome_of(lambda: transport.write(b"z")), outcome_of(transport.pause_reading))
    note("after close", outcome_of(transport.resume_reading))
    await turn()
    note("still there", list(protocol.calls))
    transport.abort()
    transport.abort()
    note("aborted", outcome_of(lambda: transport.write(b"z")), list(protocol.calls))
    await turn()
    note("lost", list(protocol.calls), transport.is_closing())
    note("too late", outcome_of(lambda: transport.write(b"z")), outcome_of(transport.close))
    note("too late", outcome_of(transport.abort), outcome_of(transport.pause_reading))
    note("too late", outcome_of(lambda: transport.set_write_buffer_limits(1, 1)))
    return told


async def _of_uvloop() -> list[Any]:
    loop = asyncio.get_running_loop()
    ours, theirs = sockets.socketpair()
    theirs.setblocking(False)
    protocol = Noted()
    await loop.create_connection(lambda: protocol, sock=ours)

    async def turn() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    told = await _told(protocol, turn, {"send": lambda: theirs.send(b"hello"), "stall": lambda: None})
    theirs.close()
    return told


async def _of_double() -> list[Any]:
    wire = TransportDouble(asyncio.get_running_loop(), [])
    protocol = Noted()
    wire.made(protocol)

    async def turn() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    return await _told(protocol, turn, {"send": lambda: wire.feed(b"hello"), "stall": wire.stall})


def test_the_double_says_what_uvloops_transport_says() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        original = runner.run(_of_uvloop())
    with asyncio.Runner(loop_factory=StandingLoop) as runner:
        assert runner.run(_of_double()) == original


# -- with the real stores ---------------------------------------------------------------------------


async def _raw(served: Served, data: list[bytes]) -> bytes:
    """Everything a plain TCP client gets for these reads, until the end or two quiet seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    got = b""
    try:
        for part in data:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        writer.write_eof()
        async with asyncio.timeout(20):
            while part := await reader.read(65_536):
                got += part
    except OSError:
        pass  # it was closed to us while we wrote
    finally:
        writer.transport.abort()
    return got


@pytest.mark.anyio
async def test_sessions_of_a_seed_through_a_real_server_leave_it_as_it_was(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    show = await served.make_show()
    member = await served.member("王小明")
    generator = Generator(SEED, served.parts.tokens)
    generator.good = [served.token(member), served.token(await served.staff())]
    r = random.Random(SEED)
    before, joined = len(served.server.server_state.connections), _viewers(served)
    for number in range(0, 60, 6):
        sessions = [generator.session(number + place) for place in range(6)]
        reads = [[step.data for step in made.steps if step.act == "feed"] for made in sessions]
        reads = [[b"".join(parts)] if r.random() < 0.5 else parts for parts in reads]
        reads = [[part.replace(b"/fuzzed/", f"/{show}/".encode()) for part in parts] for parts in reads]
        for output in await asyncio.gather(*(_raw(served, parts) for parts in reads)):
            heard(output)
    async with asyncio.timeout(10):
        while len(served.server.server_state.connections) > before or show_viewers(served, show):
            await asyncio.sleep(0.02)
    assert _viewers(served) == joined
    seat = await served.enter(show, await served.member("李四"))  # the other has said too much for now
    assert (await seat.ask("comment.post", key="after", text="还在"))["type"] == "ok"
    failed = [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
    assert [f"{record.name}: {record.getMessage()} {record.exc_info}" for record in failed] == []


@pytest.mark.anyio
@pytest.mark.parametrize("text", ["\x00", "'; DROP TABLE shows; --", "{p00}:x", "五" * 21, "x" * 64])
@pytest.mark.parametrize(
    "command",
    [
        {"type": "benefit.claim", "key": "k", "benefit": ""},
        {"type": "benefit.queue", "benefit": ""},
        {"type": "ballot.cast", "key": "k", "poll": "", "choices": [1 << 40]},
        {"type": "ballot.cast", "key": "k", "poll": "", "choices": [-(1 << 70)]},
        {"type": "order.place", "key": "k", "quote": "q", "address": ""},
        {"type": "order.place", "key": "", "quote": "", "address": "a"},
        {"type": "comment.post", "key": "", "text": "x"},
        {"type": "product.view", "product": ""},
        {"type": "refresh", "token": ""},
        {"type": "resync", "since": {"epoch": "", "seq": 1 << 63}},
    ],
    ids=lambda command: command["type"],
)
async def test_any_text_in_any_field_is_answered_by_the_real_stores_and_none_of_them_fails(
    served: Served, show: ShowId, caplog: pytest.LogCaptureFixture, command: dict[str, Any], text: str
) -> None:
    seat = await served.enter(show, await served.member("王小明"))
    filled = {name: text if value == "" else value for name, value in command.items()}
    if "since" in filled:
        filled["since"] = {"epoch": text[:32], "seq": 1 << 63}
    await seat.send({**filled, "id": 5})
    answer = await seat.until(lambda m: m.get("id") == 5)
    assert answer["type"] in ("ok", "refused", "welcome")
    assert answer.get("code") != "unavailable"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    await seat.close()


def _viewers(served: Served) -> int:
    return int(served.node.metrics.viewers._value.get())


def show_viewers(served: Served, show: ShowId) -> int:
    hub = served.node.hubs.get(show)
    return hub.viewers if hub is not None else 0


@pytest.fixture(scope="module")
async def show(served: Served) -> ShowId:
    """One show for all of these: they only ask."""
    return await served.make_show()


@pytest.mark.anyio
@pytest.mark.parametrize("payload", NOT_COMMANDS)
async def test_what_is_no_command_is_refused_by_a_running_server(
    served: Served, show: ShowId, payload: bytes
) -> None:
    seat = await served.enter(show)
    await seat.socket.send(payload, text=True)
    assert (await seat.event("refused"))["code"] == "bad_request"
    await seat.close()


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["%00", "a%0d%0ab", "五", "\\xff", "'--", "{p00}", "a}b", "%", "x" * 64])
async def test_a_show_of_any_name_is_one_that_is_not_known(
    served: Served, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    named = path.encode().replace(b"\\xff", b"\xff")
    request = upgrade().replace(b"/fuzzed/", b"/" + named + b"/")
    output = await _raw(served, [request, HELLO])
    assert heard(output).status in (101, 400, 404)
    assert b'"welcome"' not in output
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
