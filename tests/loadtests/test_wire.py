"""The blocking client: the same wire without asyncio, as locust's users speak it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from live import protocol
from loadtests.wire import Gone, Turned, Wire, messages_of
from membership.actor import ShowId
from tests.live.serving import Served

pytestmark = pytest.mark.anyio


def address(served: Served, show: ShowId | str) -> str:
    return f"ws://localhost:{served.port}/v1/shows/{show}/socket"


def join(url: str, token: str | None = None) -> tuple[Wire, dict[str, Any]]:
    made = Wire(url)
    made.send("hello", 1, token=token, since=None)
    return made, answer(made, 1)


def answer(connection: Wire, command_id: int) -> dict[str, Any]:
    while True:
        for message in connection.receive(8.0):
            if message.get("id") == command_id:
                return message


async def test_it_joins_and_is_answered(served: Served) -> None:
    show, member = await served.make_show(), await served.member("小满")

    def act() -> None:
        connection, welcome = join(address(served, show), served.token(member))
        assert welcome["you"]["name"] == "小满"
        number = connection.send("comment.post", key="k1", text="来啦来啦")
        assert answer(connection, number)["type"] == "ok"
        connection.close()

    await asyncio.to_thread(act)


async def test_waiting_for_a_frame_ends_when_the_time_is_over(served: Served) -> None:
    show = await served.make_show()

    def act() -> None:
        connection, _ = join(address(served, show))
        while connection.receive(0.5):
            pass  # presence and the like
        connection.close()

    await asyncio.wait_for(asyncio.to_thread(act), 10)


async def test_an_upgrade_that_is_refused_tells_its_status(served: Served) -> None:
    def act() -> None:
        with pytest.raises(Turned) as turned:
            Wire(f"ws://127.0.0.1:{served.port}/v1/nothing/here")
        assert turned.value.status == 404

    await asyncio.to_thread(act)


async def test_a_show_that_is_none_is_answered_and_closed_with_its_code(served: Served) -> None:
    def act() -> None:
        connection, refused = join(address(served, "nosuchshow"))
        assert refused["code"] == "not_found"
        with pytest.raises(Gone) as gone:
            connection.receive(5.0)
        assert gone.value.code == protocol.BAD_PROTOCOL
        with pytest.raises(Gone):
            connection.send("pong")
        connection.close()

    await asyncio.to_thread(act)


async def test_a_port_where_nobody_listens_is_an_os_error() -> None:
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(Wire, "ws://localhost:1/v1/shows/x/socket")


def test_the_same_bytes_are_decoded_once() -> None:
    frame = b'[{"type":"ping"}]'
    assert messages_of(frame) == [{"type": "ping"}]
    assert messages_of(bytes(bytearray(frame))) is messages_of(frame)
