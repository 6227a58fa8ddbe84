"""The door and the connection: what is malformed, oversized, late or not allowed is refused by name."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket as sockets
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from live import protocol as wire
from live.engines import Addresses
from live.rounds import HELLO_WAIT_S
from live.server import HEADER_BYTES_MAX
from live.socket import FRAMES_AT_ONCE
from membership.actor import Actor, ShowId, new_id
from membership.audience import PLAN_MEMBERS
from tests.live.serving import Seat, Served, serve

pytestmark = pytest.mark.anyio


async def test_a_guest_is_welcomed_with_position_snapshot_and_reconnect_window(served: Served) -> None:
    show = await served.make_show()
    seat = await served.enter(show)
    welcome = seat.welcome
    assert welcome["recovered"] is False
    assert welcome["you"]["kind"] == "guest"
    assert welcome["show"]["id"] == show
    assert welcome["ping_s"] == 25
    assert welcome["reconnect_ms"][0] < welcome["reconnect_ms"][1]
    await seat.close()


async def test_a_comment_reaches_others_numbered_and_its_writer_has_it_from_the_answer(
    served: Served,
) -> None:
    show = await served.make_show()
    writer, reader = await served.enter(show, await served.member("王小明")), await served.enter(show)
    answer = await writer.ask("comment.post", key="k1", text="五常的吗?")
    assert answer["type"] == "ok"
    heard = await reader.event("comment.posted")
    assert heard["seq"] == answer["seq"]
    assert heard["text"] == answer["text"] == "五常的吗?"
    again = await writer.ask("comment.post", key="k1", text="五常的吗?")
    assert again["seq"] == answer["seq"]


async def test_the_writer_reads_the_comment_as_others_do(served: Served) -> None:
    show = await served.make_show()
    writer, reader = await served.enter(show, await served.member("王小明")), await served.enter(show)
    answer = await writer.ask("comment.post", key="k1", text="\u202e 五常\n\n的吗?\x00 ")
    assert answer["text"] == (await reader.event("comment.posted"))["text"] == "五常 的吗?"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("not json", "bad_request"),
        ("[]", "bad_request"),
        ('{"type":"no.such","id":5}', "bad_request"),
        ('{"type":"comment.post","id":5}', "bad_request"),
        ('{"type":"comment.post","id":"five","text":"x"}', "bad_request"),
        ('{"type":"comment.post","id":5,"key":"k","text":"x","price":1}', "bad_request"),
        ('{"type":"order.place","id":5,"key":"k","quote":"q","address":"a",'
         '"lines":[{"offer":"o","quantity":-1}]}', "bad_request"),
        ('{"type":"reaction.send","id":5,"kind":"like","count":1000000}', "bad_request"),
        ('{"type":"ballot.cast","id":5,"poll":"p","choices":[]}', "bad_request"),
        ('{"type":"benefit.claim","id":5,"benefit":"b"}', "bad_request"),
        ('{"type":"hello","id":5}', "bad_request"),
    ],
)  # fmt: skip
async def test_a_malformed_command_is_refused_and_the_connection_stays_sound(
    served: Served, frame: str, code: str
) -> None:
    seat = await served.enter(await served.make_show(), await served.member("王小明"))
    await seat.send(frame)
    refused = await seat.event("refused")
    assert refused["code"] == code
    assert refused["id"] == (5 if '"id":5' in frame else None)
    assert (await seat.ask("comment.post", key="k", text="还在"))["type"] == "ok"


async def test_five_undecodable_frames_end_the_connection(served: Served) -> None:
    seat = await served.enter(await served.make_show())
    for _ in range(5):
        await seat.send("{")
    assert await seat.closed() == wire.BAD_PROTOCOL


async def test_a_binary_frame_is_not_the_protocol(served: Served) -> None:
    seat = await served.enter(await served.make_show())
    await seat.send(b"\x00\x01")
    assert await seat.closed() == wire.BAD_PROTOCOL


async def test_an_oversized_frame_is_closed_as_too_big(served: Served) -> None:
    seat = await served.enter(await served.make_show())
    await seat.send(json.dumps({"type": "comment.post", "id": 5, "key": "k", "text": "x" * 5_000}))
    assert await seat.closed() == 1009


async def test_a_fragmented_command_is_one_command(served: Served) -> None:
    seat = await served.enter(await served.make_show(), await served.member("王小明"))

    async def parts() -> Any:
        for part in ('{"type":"comment.post",', '"id":5,"key":"k",', '"text":"分三段"}'):
            yield part

    await seat.socket.send(parts())
    assert (await seat.until(lambda m: m.get("id") == 5))["type"] == "ok"


async def test_a_command_before_hello_and_no_hello_at_all_end_4507(served: Served) -> None:
    show = await served.make_show()
    early = Seat(await served.open(show))
    await early.send({"type": "comment.post", "id": 5, "key": "k", "text": "x"})
    assert (await early.event("refused"))["code"] == "unauthenticated"
    assert await early.closed() == wire.NO_HELLO
    silent = Seat(await served.open(show))
    before = asyncio.get_running_loop().time()
    code = await asyncio.wait_for(silent.closed(), HELLO_WAIT_S + 3)
    assert code == wire.NO_HELLO
    assert asyncio.get_running_loop().time() - before >= HELLO_WAIT_S - 0.5


@pytest.mark.parametrize("token", ["nonsense", "a.b.c", "x" * 2_000])
async def test_a_token_that_is_none_of_ours_is_refused_and_closed_for_good(
    served: Served, token: str
) -> None:
    seat = Seat(await served.open(await served.make_show()))
    await seat.send({"type": "hello", "id": 1, "token": token})
    assert (await seat.event("refused"))["code"] == "unauthenticated"
    assert await seat.closed() == wire.BAD_TOKEN


async def test_an_unknown_show_is_said_by_accepting_and_closing(served: Served) -> None:
    seat = Seat(await served.open(ShowId("nosuchshow")))
    await seat.send({"type": "hello", "id": 1, "token": None})
    assert (await seat.event("refused"))["code"] == "not_found"
    assert await seat.closed() == wire.BAD_PROTOCOL


async def test_an_ended_show_closes_4506(served: Served) -> None:
    seat = await served.enter(await served.make_show("ended"))
    assert seat.welcome["code"] == "show_ended"
    assert await seat.closed() == wire.SHOW_ENDED


async def test_a_foreign_origin_another_path_and_no_subprotocol_are_refused_before_the_upgrade(
    served: Served,
) -> None:
    show = await served.make_show()
    with pytest.raises(InvalidStatus) as refused:
        await served.open(show, origin="https://evil.example")
    assert refused.value.response.status_code == 403
    with pytest.raises(InvalidStatus) as refused:
        await served.open(show, subprotocols=None)
    assert refused.value.response.status_code == 400
    with pytest.raises(InvalidStatus) as refused:
        await served.open(ShowId("a/b"))
    assert refused.value.response.status_code == 404
    ours = await served.open(show, origin=served.url)
    await ours.close()


async def test_too_many_joins_a_second_are_told_when_to_come_back(served: Served) -> None:
    show = await served.make_show()
    served.node._join_tokens, served.node._join_tokens_at = 0, served.node.now() + 60
    with pytest.raises(InvalidStatus) as refused:
        await served.open(show, patient=False)
    served.node._join_tokens, served.node._join_tokens_at = 1_000, served.node.now()
    assert refused.value.response.status_code == 503
    assert int(refused.value.response.headers["Retry-After"]) >= 1


async def test_a_members_only_room_refuses_a_guest_before_anything_leaks_and_shows_the_way(
    served: Served,
) -> None:
    show = await served.make_show(audience=PLAN_MEMBERS)
    secret = secrets.token_hex(8)
    staff = await served.staff()
    await served.parts.comments.announce(staff, show, f"秘密{secret}")
    member = await served.enter(show, await served.member("李四", plan=True))
    assert member.welcome["type"] == "welcome"
    for actor in (None, await served.member("王五")):
        seat = await served.enter(show, actor)
        assert seat.welcome["code"] == "members_only"
        assert seat.welcome["join"] == f"/s/{show}"
        assert await seat.closed() == wire.MEMBERS_ONLY
        assert secret.encode() not in seat.bytes
        assert b"states" not in seat.bytes


async def test_html_in_a_comment_and_a_nickname_travels_as_text(served: Served) -> None:
    show = await served.make_show()
    text = "<script>alert(1)</script>&lt;b&gt;"
    writer, reader = await served.enter(show, await served.member("<b>王")), await served.enter(show)
    assert (await writer.ask("comment.post", key="k", text=text))["type"] == "ok"
    heard = await reader.event("comment.posted")
    assert heard["text"] == text
    assert heard["name"] == "<b>王"


async def test_commands_above_the_rate_are_refused_and_not_done(served: Served) -> None:
    seat = await served.enter(await served.make_show())
    for number in range(40):
        await seat.send({"type": "product.view", "id": 100 + number, "product": new_id()})
    answers = [await seat.until(lambda m, n=n: m.get("id") == 100 + n) for n in range(40)]
    assert [a["type"] for a in answers[:19]] == ["ok"] * 19  # hello was the first of the twenty
    assert {a.get("code") for a in answers[30:]} == {"rate_limited"}


async def test_a_flood_of_frames_ends_the_connection_and_no_other(served: Served) -> None:
    show = await served.make_show()
    flooding, other = await served.enter(show), await served.enter(show, await served.member("王小明"))
    for _ in range(FRAMES_AT_ONCE + 200):
        await flooding.socket.ping()
    assert await flooding.closed() == wire.BAD_PROTOCOL
    assert (await other.ask("comment.post", key="k", text="还在"))["type"] == "ok"


async def test_a_guest_who_signs_in_keeps_the_socket(served: Served) -> None:
    show = await served.make_show()
    seat = await served.enter(show)
    member = await served.member("王小明")
    await seat.send({"type": "refresh", "id": 9, "token": served.token(member)})
    assert (await seat.until(lambda m: m.get("id") == 9))["type"] == "ok"
    assert (await seat.event("you"))["data"]["kind"] == "registered"
    assert (await seat.ask("comment.post", key="k", text="登录好了"))["name"] == "王小明"
    other = await served.member("别人")
    await seat.send({"type": "refresh", "id": 10, "token": served.token(other)})
    assert (await seat.until(lambda m: m.get("id") == 10))["code"] == "forbidden"


async def test_a_preview_may_only_look(served: Served) -> None:
    seat = Seat(await served.open(await served.make_show()))
    staff = await served.staff()
    token = served.parts.tokens.mint(staff, 60, preview="plan")
    await seat.send({"type": "hello", "id": 1, "token": token})
    welcome = await seat.event("welcome")
    assert welcome["you"]["kind"] == "plan"
    assert (await seat.ask("comment.post", key="k", text="x"))["code"] == "forbidden"


async def test_a_guest_who_turns_into_a_preview_may_only_look_too(served: Served) -> None:
    seat = await served.enter(await served.make_show())
    token = served.parts.tokens.mint(await served.staff(), 60, preview="plan")
    assert (await seat.ask("refresh", token=token))["type"] == "ok"
    assert (await seat.ask("comment.post", key="k", text="x"))["code"] == "forbidden"


async def test_an_endless_header_is_cut(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * (HEADER_BYTES_MAX + 100) + b"\r\n\r\n")
    assert b"431" in await asyncio.wait_for(reader.readline(), 5)
    writer.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Host: h\r\nOrigin: http://[\r\n", b"403"),
        ("Host: h\r\nOrigin: http://h\r\nOrigin: http://h\r\n", b"403"),
        ("Host: h\r\nHost: evil\r\nOrigin: http://evil\r\n", b"403"),
        ("Origin: null\r\n", b"403"),
        ("Host: h\r\nCookie: a=b\r\nCookie: c=d\r\n", b"101"),
        ("Host: h\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2\r\n", b"101"),
    ],
)  # fmt: skip
async def test_a_header_that_is_repeated_or_no_address_gets_an_answer_and_leaves_nothing_behind(
    served: Served, headers: str, status: bytes
) -> None:
    show = await served.make_show()
    request = (
        f"GET /v1/shows/{show}/socket HTTP/1.1\r\n{headers}Upgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: companion.v1\r\n\r\n"
    ).encode()
    before = len(served.server.server_state.connections)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(request)
    assert status in await asyncio.wait_for(reader.readline(), 5)
    writer.transport.abort()
    async with asyncio.timeout(5):  # a dead one would fail the server's shutdown
        while len(served.server.server_state.connections) > before:
            await asyncio.sleep(0.01)


async def test_an_offer_to_go_on_in_another_protocol_is_declined_by_an_answer(served: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n"
    )
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer
    writer.close()


async def test_what_comes_together_with_the_upgrade_is_not_lost(served: Served) -> None:
    show = await served.make_show()
    hello = json.dumps({"type": "hello", "id": 1, "token": None}).encode()
    mask = b"\x01\x02\x03\x04"
    frame = b"\x81" + bytes([0x80 | len(hello)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(hello))
    request = (
        f"GET /v1/shows/{show}/socket HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: companion.v1\r\n\r\n"
    ).encode()
    with sockets.create_connection(("127.0.0.1", served.port)) as raw:
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(raw, request + frame)
        got = b""
        while b'"welcome"' not in got:
            got += await asyncio.wait_for(loop.sock_recv(raw, 65_536), 5)
    assert got.startswith(b"HTTP/1.1 101")


async def test_draining_closes_everyone_4001_after_a_hint(served: Served) -> None:
    show = await served.make_show()
    seats = [await served.enter(show) for _ in range(20)]
    await served.node.drain(3)
    served.node.draining = False
    for seat in seats:
        assert await seat.closed() == wire.DRAIN
        assert any(m["type"] == "reconnect" for m in seat.messages)


async def test_every_close_code_is_documented_and_in_its_class() -> None:
    for code, meaning in wire.CLOSE_CODES.items():
        assert 4000 < code < 5000
        assert ("come back" in meaning or "get a new one" in meaning) == (code < 4500), meaning


async def test_a_lost_show_is_rebuilt_when_someone_joins(
    served: Served,
) -> None:
    show = await served.make_show()
    redis = served.parts.redis
    await redis.delete(*[key async for key in redis.scan_iter(f"*{show}*")])
    seat = await served.enter(show)
    assert seat.welcome["type"] == "welcome"
    assert isinstance(seat.welcome["show"], dict)


async def test_an_actor_without_a_name_gets_one(served: Served) -> None:
    member = await served.member(None)
    seat = await served.enter(
        await served.make_show(), Actor(kind="viewer", id=member.id, facts=member.facts)
    )
    assert seat.welcome["you"]["name"]


async def test_a_guest_with_the_pages_cookie_is_one_person_over_reconnects(served: Served) -> None:
    show = await served.make_show()
    async with served.http() as browser:
        page = await browser.get(f"/s/{show}")
    cookie = page.headers["set-cookie"].split(";")[0]
    assert "HttpOnly" in page.headers["set-cookie"]
    names = []
    for sent in (cookie, cookie, "companion_guest=../../etc"):
        seat = Seat(await served.open(show, additional_headers={"Cookie": sent}))
        await seat.send({"type": "hello", "id": 1, "token": None})
        names.append((await seat.event("welcome"))["you"]["id"])
        await seat.close()
    assert names[0] == names[1] != names[2]


async def test_a_frame_is_deflated_once_for_all_who_negotiated_it(served: Served) -> None:
    show = await served.make_show()
    plain = await served.enter(show)
    shrunk = []
    for compression in ("deflate", "deflate"):
        seat = Seat(await served.open(show, compression=compression))
        await seat.send({"type": "hello", "id": 1, "token": None})
        await seat.event("welcome")
        shrunk.append(seat)
    hub = served.node.hubs[show]
    sockets = [socket for group in hub.classes.values() for socket in group]
    assert sorted(socket.deflates for socket in sockets) == [False, True, True]
    posted = await served.parts.comments.post(await served.staff(), show, "同一句话" * 40)
    for seat in (plain, *shrunk):
        assert (await seat.until(lambda m: m.get("seq") == posted.seq))["text"] == "同一句话" * 40


async def test_a_client_that_wants_a_smaller_window_gets_plain_frames(served: Served) -> None:
    show = await served.make_show()
    small = ClientPerMessageDeflateFactory(server_max_window_bits=9)
    seat = Seat(await served.open(show, compression=None, extensions=[small]))
    await seat.send({"type": "hello", "id": 1, "token": None})
    await seat.event("welcome")
    hub = served.node.hubs[show]
    assert [socket.deflates for group in hub.classes.values() for socket in group] == [False]
    posted = await served.parts.comments.post(await served.staff(), show, "一样收到" * 40)
    assert (await seat.until(lambda m: m.get("seq") == posted.seq))["text"] == "一样收到" * 40


async def test_an_inflated_command_is_capped_like_any_other(served: Served) -> None:
    show = await served.make_show()
    seat = Seat(await served.open(show, compression="deflate"))
    await seat.send({"type": "hello", "id": 1, "token": None})
    await seat.event("welcome")
    await seat.send(json.dumps({"type": "product.view", "id": 5, "product": "0" * 1_000_000}))
    assert await seat.closed() == 1009


async def test_a_mute_is_told_at_once_to_the_muted_on_every_node_and_to_nobody_else(
    served: Served, engines: Addresses, tmp_path: Path
) -> None:
    show = await served.make_show()
    person, host = await served.member("王小明"), await served.staff()
    async with serve(engines, served.parts.settings.database_url, tmp_path) as other:
        pages = [await served.enter(show, person), await other.enter(show, person)]
        guest, neighbour = await served.enter(show), await served.enter(show, await served.member("李四"))
        for seats in (pages, [guest]):
            who = seats[0].welcome["you"]["id"]
            until = await served.parts.comments.mute(host, show, who, 600)
            assert [(await seat.event("muted"))["until"] for seat in seats] == [until] * len(seats)
            await served.parts.comments.unmute(host, show, who)
            assert [(await seat.event("muted"))["until"] for seat in seats] == [None] * len(seats)
        posted = await served.parts.comments.post(host, show, "好了", None)
        await neighbour.until(lambda m: m.get("seq") == posted.seq)
        assert not [m for m in neighbour.messages if "muted" in m["type"]]
