"""Frames past the transport: whole and in order, whatever the kernel takes, and never to another connection."""

from __future__ import annotations

import asyncio
import os
import random
import socket as sockets
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import pytest
import uvloop
from websockets.protocol import OPEN

from live.protocol import SharedFrame
from live.socket import Kind, Socket
from tests.live.recording import RecordingNode, RecordingTransport

SMALL: Final = 4_608  # bytes of a send buffer; the kernel doubles it
WAIT_S: Final = 20.0


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner


class Pair:
    """A socket of ours on a real connection, and its peer, who reads when told to."""

    def __init__(self, ours: Socket, peer: sockets.socket) -> None:
        self.ours, self.peer = ours, peer
        self.lost = asyncio.get_running_loop().create_future()

    async def read(self, size: int) -> bytes:
        """Up to `size` bytes; b"" at the end of the connection."""
        async with asyncio.timeout(WAIT_S):
            return await asyncio.get_running_loop().sock_recv(self.peer, size)

    async def read_exactly(self, size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            data = await self.read(size - len(got))
            assert data, f"ended after {len(got)} of {size} bytes"
            got += data
        return bytes(got)


@asynccontextmanager
async def connected() -> AsyncIterator[Pair]:
    loop = asyncio.get_running_loop()
    made: asyncio.Future[Socket] = loop.create_future()

    class Told(Socket):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            made.set_result(self)

        def connection_lost(self, exc: Exception | None) -> None:
            os.fstat(self.fd)  # what every write relies on: still ours
            super().connection_lost(exc)
            pair.lost.set_result(exc)

    def connection() -> Socket:
        ours = Told(cast(Any, RecordingNode()), set())
        ours.ws.state = OPEN
        return ours

    server = await loop.create_server(connection, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    peer = sockets.socket()
    peer.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, SMALL)
    peer.setblocking(False)
    await loop.sock_connect(peer, address)
    try:
        pair = Pair(await made, peer)
        kept = pair.ours.transport.get_extra_info("socket")
        kept.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, SMALL)
        yield pair
        pair.ours.transport.abort()
        await asyncio.wait_for(pair.lost, WAIT_S)
    finally:
        peer.close()
        server.close()


def careless(ours: Socket, data: bytes) -> None:
    """The control: writes past the transport without a look at what waits there."""
    try:
        taken = os.write(ours.fd, data)
    except OSError:
        taken = 0
    if taken < len(data):
        ours.spill(data, taken)


async def talk(put: Callable[[Socket, bytes], None], seed: int) -> tuple[bytes, bytes, int]:
    """Frames of all sizes to a peer that reads now and then: what was said, what it got, how often some waited."""
    random_ = random.Random(seed)
    said, got, waited = bytearray(), bytearray(), 0
    async with connected() as pair:
        for number in range(300):
            if random_.random() < 0.7:
                frame = struct.pack("!I", number) * random_.choice([1, 50, 1_000, 9_000])
                put(pair.ours, frame)
                said += frame
                waited += bool(pair.ours.transport.get_write_buffer_size())
            elif len(got) < len(said):
                got += await pair.read(random_.choice([100, 10_000, 200_000]))
        got += await pair.read_exactly(len(said) - len(got))
    return bytes(said), bytes(got), waited


@pytest.mark.parametrize("seed", range(5))
def test_frames_arrive_whole_and_in_order_however_slowly_they_are_read(
    runner: asyncio.Runner, seed: int
) -> None:
    said, got, waited = runner.run(talk(Socket.put, seed))
    assert waited > 20
    assert got == said


def test_without_a_look_at_what_waits_they_do_not(runner: asyncio.Runner) -> None:
    said, got, _ = runner.run(talk(careless, 0))
    assert len(got) == len(said)
    assert got != said


def test_a_viewer_is_easy_again_once_the_kernel_took_everything(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with connected() as pair:
            pair.ours.easy = True
            size = 0
            while pair.ours.easy:
                pair.ours.put(b"x" * 1_000)
                size += 1_000
            assert pair.ours.transport.get_write_buffer_size()
            await pair.read_exactly(size)
            assert pair.ours.send_shared(SharedFrame(b"[]"), Kind.STATE)
            assert not pair.ours.transport.get_write_buffer_size()

    runner.run(main())


def test_a_write_to_a_peer_that_reset_ends_the_connection_and_raises_nothing(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with connected() as pair:
            pair.peer.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
            pair.peer.close()
            pair.ours.put(b"said too late")
            await asyncio.wait_for(asyncio.shield(pair.lost), WAIT_S)
            assert pair.ours.closing
            assert not pair.ours.easy

    runner.run(main())


def test_who_has_left_writes_to_nobody_though_the_descriptor_is_in_use_again(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with connected() as pair:
            reader, writer = os.pipe()
            descriptor = pair.ours.transport.get_extra_info("socket").fileno()
            pair.ours.transport.abort()
            await asyncio.wait_for(asyncio.shield(pair.lost), WAIT_S)
            while True:  # closed in a later pass of the loop
                try:
                    os.fstat(descriptor)
                except OSError:
                    break
                await asyncio.sleep(0)
            os.dup2(writer, descriptor)  # as the next connection would have it
            try:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.write(pair.ours.fd, b"not for you")
                os.set_blocking(reader, False)
                with pytest.raises(BlockingIOError):
                    os.read(reader, 11)
            finally:
                for number in (reader, writer, descriptor):
                    os.close(number)

    runner.run(main())


def test_over_tls_bytes_go_by_the_transport() -> None:
    class Encrypted(RecordingTransport):
        def get_extra_info(self, name: str) -> Any:
            return {"socket": kept, "sslcontext": object()}.get(name, super().get_extra_info(name))

    kept, peer = sockets.socketpair()
    with kept, peer:
        ours, transport = Socket(cast(Any, RecordingNode()), set()), Encrypted()
        ours.connection_made(cast(Any, transport))
        ours.put(b"hello")
        assert transport.frames == [b"hello"]
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            peer.recv(10)
