"""One connection's life in any order of things, against a model of it: new, open, joined, ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from live.node import HELLO_WAIT_S
from live.socket import STALL_S, STRIKES_MAX, WRITE_HIGH, Socket
from tests.live.protocol_fuzz import (
    BAD_UTF8,
    IDS,
    NOT_COMMANDS,
    SHOW,
    SILENCE_S,
    House,
    StandingLoop,
    client_frame,
    heard,
    upgrade,
)

BETWEEN_S = 0.25  # of the clock for each thing said: below the rate of commands
PONG = client_frame(10)


class Connection(RuleBasedStateMachine):
    """`state` and what follows is the model; the rules do the same to it and to a real connection."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=StandingLoop)
        self.state = "new"
        self.asked: list[int | None] = []  # what is answered, in order
        self.strikes = 0
        self.begun = b""  # what is still missing of a command in fragments
        self.begun_id = 0
        self.stalled = False
        self.code: int | None = None  # with which it ends
        self.age_s = 0.0
        self.number = 1

    def run(self, work: Awaitable[Any]) -> Any:
        async def turn() -> Any:
            return await work

        return self.runner.run(turn())

    @initialize()
    def open_house(self) -> None:
        async def make() -> House:
            return House()

        self.house: House = self.run(make())
        self.wire = self.house.connect()

    # what both do

    def feed(self, data: bytes) -> None:
        async def send() -> None:
            self.house.loop.clock += BETWEEN_S
            self.wire.feed(data)
            await self.house.settle()

        self.age_s += BETWEEN_S
        self.run(send())

    def ends(self, code: int | None) -> None:
        self.state, self.code = "ended", code

    def say(self, data: bytes) -> None:
        """A whole message; amid a fragmented one it breaks the protocol."""
        self.feed(client_frame(1, data))

    def next_id(self) -> int:
        self.number += 1
        return self.number

    @property
    def alive(self) -> bool:
        return self.state in ("open", "joined")

    # what a client does

    @precondition(lambda self: self.state == "new")
    @rule(
        deflate=st.sampled_from([None, "permessage-deflate", "permessage-deflate; server_max_window_bits=9"])
    )
    def upgrade(self, deflate: str | None) -> None:
        self.feed(upgrade(deflate=deflate))
        self.state, self.age_s = "open", 0.0

    @precondition(lambda self: self.alive and not self.begun)
    @rule(since=st.sampled_from([None, {"epoch": "e1", "seq": 0}, {"epoch": "other", "seq": 5}]))
    def hello(self, since: Any) -> None:
        number = self.next_id()
        self.asked.append(number)
        self.say(json.dumps({"type": "hello", "id": number, "token": None, "since": since}).encode())
        if self.state == "open":
            self.state = "joined"

    @precondition(lambda self: self.alive and not self.begun)
    @rule(token=st.sampled_from(["", "nonsense", "a.b.c"]))
    def hello_of_nobody(self, token: str) -> None:
        number = self.next_id()
        self.asked.append(number)
        self.say(json.dumps({"type": "hello", "id": number, "token": token}).encode())
        if self.state == "open":
            self.ends(4501)

    @precondition(lambda self: self.alive and not self.begun)
    @rule(product=st.sampled_from(IDS))
    def command(self, product: str) -> None:
        number = self.next_id()
        self.asked.append(number)
        self.say(json.dumps({"type": "product.view", "id": number, "product": product}).encode())
        if self.state == "open":
            self.ends(4507)

    @precondition(lambda self: self.alive and not self.begun)
    @rule(junk=st.sampled_from(NOT_COMMANDS))
    def junk(self, junk: bytes) -> None:
        self.asked.append(None)
        self.say(junk)
        self.strikes += 1
        if self.state == "open":
            self.ends(4507)
        elif self.strikes >= STRIKES_MAX:
            self.ends(4504)

    @precondition(lambda self: self.state == "joined" and not self.begun)
    @rule(cut=st.integers(1, 40))
    def begin(self, cut: int) -> None:
        self.begun_id = self.next_id()
        whole = json.dumps({"type": "product.view", "id": self.begun_id, "product": IDS[0]}).encode()
        self.begun = whole[cut:]
        self.feed(client_frame(1, whole[:cut], fin=False))

    @precondition(lambda self: self.alive and len(self.begun) > 1)
    @rule()
    def go_on(self) -> None:
        part, self.begun = self.begun[:1], self.begun[1:]
        self.feed(client_frame(0, part, fin=False))

    @precondition(lambda self: self.alive and self.begun)
    @rule()
    def finish(self) -> None:
        self.asked.append(self.begun_id)
        self.feed(client_frame(0, self.begun))
        self.begun = b""

    @precondition(lambda self: self.alive and self.begun)
    @rule()
    def begin_another(self) -> None:
        self.say(b"{}")
        self.ends(1002)

    @precondition(lambda self: self.alive)
    @rule(payload=st.binary(max_size=125))
    def ping(self, payload: bytes) -> None:
        before = len(self.wire.sent) + self.wire.size
        self.feed(client_frame(9, payload))
        assert len(self.wire.sent) + self.wire.size >= before + 2 + len(payload)

    @precondition(lambda self: self.alive and not self.begun)
    @rule(data=st.binary(max_size=200))
    def binary(self, data: bytes) -> None:
        self.feed(client_frame(2, data))
        self.ends(4504)

    @precondition(lambda self: self.alive and not self.begun)
    @rule(data=st.sampled_from(BAD_UTF8))
    def no_text(self, data: bytes) -> None:
        self.feed(client_frame(1, data))
        self.ends(1007)

    @precondition(lambda self: self.alive)
    @rule(opcode=st.sampled_from([3, 7, 11, 15]))
    def no_opcode(self, opcode: int) -> None:
        self.feed(client_frame(opcode))
        self.ends(1002)

    @precondition(lambda self: self.alive)
    @rule()
    def close(self) -> None:
        self.feed(client_frame(8, b"\x03\xe8"))
        self.ends(1002 if self.begun else 1000)

    @precondition(lambda self: self.state != "ended")
    @rule(politely=st.booleans())
    def go(self, politely: bool) -> None:
        async def leave() -> None:
            if politely:
                self.wire.end()
            else:
                self.wire.abort()
            await self.house.settle()

        upgraded = self.alive
        self.run(leave())
        self.ends(None)
        if not upgraded:
            self.state = "gone"

    @precondition(lambda self: self.state in ("ended", "gone"))
    @rule(data=st.sampled_from([b'{"type":"pong"}', b'{"type":"product.view","id":1,"product":"p"}', b"{"]))
    def speak_on(self, data: bytes) -> None:
        """Nothing of it is done: the invariants know no answer to it."""
        if not self.wire.closing:
            self.feed(client_frame(1, data))

    # what the network and the show do

    @precondition(lambda self: self.state == "joined" and not self.stalled)
    @rule()
    def stall(self) -> None:
        self.wire.stall()
        self.stalled = True

    @precondition(lambda self: self.stalled and self.state == "joined")
    @rule()
    def drain(self) -> None:
        async def drain() -> None:
            self.wire.drain()
            await self.house.settle()

        self.run(drain())
        self.stalled = False

    @precondition(lambda self: self.state == "joined")
    @rule(size=st.sampled_from([10, 20_000, 60_000]))
    def event(self, size: int) -> None:
        async def happen() -> None:
            self.house.say(size)
            await self.house.pass_time(BETWEEN_S)

        self.age_s += BETWEEN_S
        self.run(happen())

    @precondition(lambda self: self.alive)
    @rule(seconds=st.sampled_from([1.0, 3.0, STALL_S + 1.0]))
    def wait(self, seconds: float) -> None:
        held = self.stalled and self.wire.size > WRITE_HIGH
        self.run(self.house.pass_time(seconds))
        self.age_s += seconds
        if self.state == "open" and self.age_s > HELLO_WAIT_S:
            if self.age_s < HELLO_WAIT_S + 2.0 and not self.ended():
                return  # its turn of the wheel comes within the second
            self.ends(4507)
        elif held and self.ended():
            self.ends(None)  # it could not be told why
        elif not self.ended():
            self.feed(PONG)

    # what holds

    def ended(self) -> bool:
        socket = self.wire.protocol
        return not isinstance(socket, Socket) or socket.closing

    @invariant()
    def nothing_fails(self) -> None:
        if hasattr(self, "house"):
            assert self.house.faults == []

    @invariant()
    def it_is_where_the_model_is(self) -> None:
        if self.state == "ended":
            assert self.ended()
        elif self.alive:
            socket = self.wire.protocol
            assert isinstance(socket, Socket)
            assert not socket.closing
            assert socket.joined == (self.state == "joined")
            hub = self.house.node.hubs.get(SHOW)
            assert (hub.viewers if hub is not None else 0) == (1 if socket.joined else 0)

    @invariant()
    def all_that_was_asked_is_answered_once_and_in_order(self) -> None:
        if self.state in ("new", "gone") or self.stalled:
            return
        found = heard(bytes(self.wire.sent))
        assert len(found.answers) == len(self.asked)
        assert all(a is None or a == b for a, b in zip(self.asked, found.answers, strict=True))
        if self.state == "ended":
            assert found.code == self.code

    def teardown(self) -> None:
        try:
            if hasattr(self, "house"):
                self.run(self.house.pass_time(SILENCE_S))
                assert self.wire.closed
                self.run(self.house.node.dispatch.flush())
                assert self.house.leftovers() == []
                assert self.house.faults == []
        finally:
            self.runner.close()


TestConnection = Connection.TestCase
TestConnection.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
