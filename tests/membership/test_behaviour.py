from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from membership.actor import Actor, Facts, MemberId, ShowId, new_id
from membership.behaviour import BATCH, TEXT_MAX, Behaviour, Record, encode, record_of
from membership.members import guest, new_guest_id
from membership.partition import show_key
from membership.refusal import Unavailable
from tests.conftest import MakeShow, TransactionFactory
from tests.membership.conftest import break_off

pytestmark = pytest.mark.anyio

Pool = AsyncConnectionPool[Any]
NOW_MS = time.time_ns() // 1_000_000


@pytest.fixture
def behaviour(redis: Redis) -> Behaviour:
    return Behaviour(redis)


def record(number: int = 0, **changes: Any) -> Record:
    member = MemberId(new_id())
    parts: dict[str, Any] = {
        "id": new_id(),
        "kind": "click",
        "viewer": member,
        "member": member,
        "subject": "product:x",
        "at": NOW_MS + number,
    }
    return Record(**(parts | changes))


async def rows_of(pool: Pool, show: ShowId) -> list[dict[str, Any]]:
    async with pool.connection() as conn:
        rows: list[dict[str, Any]] = await (
            await conn.execute("SELECT * FROM behaviour_records WHERE show_id = %s ORDER BY at", (show,))
        ).fetchall()
        return rows


# -- what a record is


def test_viewers_are_recorded_and_those_who_work_here_are_not() -> None:
    member = MemberId(new_id())
    viewer = Actor(kind="viewer", id=member, facts=Facts(member=member, registered=True))
    made = record_of(viewer, "comment", "show", text="有机大米多少钱")
    assert made is not None and (made.viewer, made.member, made.text) == (member, member, "有机大米多少钱")
    assert abs(made.at - time.time_ns() // 1_000_000) < 5_000
    anonymous = record_of(guest(new_guest_id()), "click", "product:x", at=5)
    assert anonymous is not None and (anonymous.member, anonymous.at) == (None, 5)
    for kind in ("staff", "shop", "job"):
        assert record_of(Actor(kind=kind, id="x"), "click", "product:x") is None
    assert encode(None) == b""
    long = record_of(viewer, "comment", "show", text="长" * (TEXT_MAX + 1))
    assert long is not None and long.text is not None and len(long.text) == TEXT_MAX


# -- copying


async def test_every_new_record_is_copied_once(
    behaviour: Behaviour, make_show: MakeShow, tx: TransactionFactory, pool: Pool
) -> None:
    show, other = await make_show(), await make_show()
    first = [record(number) for number in range(3)]
    await behaviour.record(show, first)
    await behaviour.record(other, [record()])
    async with tx() as t:
        assert await behaviour.drain(t, show) == 3
    async with tx() as t:
        assert await behaviour.drain(t, show) == 0
    await behaviour.record(show, [record(4, kind="watch", subject="show", value=61_000, text="说")])
    async with tx() as t:
        assert await behaviour.drain(t, show) == 1
    rows = await rows_of(pool, show)
    assert [str(row["id"]) for row in rows[:3]] == [one.id for one in first]
    assert (rows[3]["kind"], rows[3]["value"], rows[3]["text"]) == ("watch", 61_000, "说")
    assert rows[3]["at"].timestamp() * 1000 == pytest.approx(NOW_MS + 4)


async def test_a_show_without_records_is_copied_as_nothing(
    behaviour: Behaviour, tx: TransactionFactory
) -> None:
    async with tx() as t:
        assert await behaviour.drain(t, ShowId("nosuchshow")) == 0


async def test_more_than_one_batch_is_copied_whole(
    behaviour: Behaviour, make_show: MakeShow, tx: TransactionFactory, pool: Pool
) -> None:
    show = await make_show()
    await behaviour.record(show, [record(number) for number in range(BATCH + 7)])
    async with tx() as t:
        assert await behaviour.drain(t, show) == BATCH + 7
    assert len(await rows_of(pool, show)) == BATCH + 7


async def test_a_copy_that_does_not_commit_is_made_again(
    behaviour: Behaviour, make_show: MakeShow, tx: TransactionFactory, pool: Pool
) -> None:
    show = await make_show()
    await behaviour.record(show, [record(number) for number in range(5)])
    await break_off(tx, lambda t: behaviour.drain(t, show))
    assert await rows_of(pool, show) == []
    async with tx() as t:
        assert await behaviour.drain(t, show) == 5


async def test_many_copiers_at_once_copy_each_record_once(
    behaviour: Behaviour, make_show: MakeShow, tx: TransactionFactory, pool: Pool
) -> None:
    show = await make_show()
    await behaviour.record(show, [record(number) for number in range(200)])

    async def drain() -> int:
        async with tx() as t:
            return await behaviour.drain(t, show)

    assert sum(await asyncio.gather(*(drain() for _ in range(8)))) == 200
    assert len(await rows_of(pool, show)) == 200


async def test_a_record_written_twice_counts_once(
    behaviour: Behaviour, make_show: MakeShow, tx: TransactionFactory
) -> None:
    show, twice = await make_show(), record()
    await behaviour.record(show, [twice, twice])
    await behaviour.record(show, [twice])
    async with tx() as t:
        assert await behaviour.drain(t, show) == 1


async def test_a_stream_that_was_lost_is_read_from_its_new_start(
    behaviour: Behaviour, make_show: MakeShow, tx: TransactionFactory, pool: Pool, redis: Redis
) -> None:
    show = await make_show()
    kept, stream = record(), show_key(show, "behaviour")
    await redis.xadd(stream, {"b": encode(kept)}, id="99999999999999-0")
    async with tx() as t:
        assert await behaviour.drain(t, show) == 1
    await redis.delete(stream)
    await behaviour.record(show, [kept, record(1)])
    async with tx() as t:
        assert await behaviour.drain(t, show) == 1
    async with tx() as t:
        assert await behaviour.drain(t, show) == 0
    assert len(await rows_of(pool, show)) == 2


BAD: list[bytes] = [
    b"",
    b"{}",
    b"not json",
    b"\xff\xfe",
    encode(record(id="x")),
    encode(record(member="x")),
    encode(record(value=-1)),
    encode(record(value=2**62)),
    encode(record(at=-1)),
    encode(record(at=2**62)),
    encode(record(subject="a\0b")),
    encode(record(subject="x" * 300)),
    encode(record()).replace(b'"click"', b'"steal"'),
]


@pytest.mark.parametrize("body", BAD)
async def test_a_bad_entry_does_not_hold_up_the_rest(
    behaviour: Behaviour, make_show: MakeShow, tx: TransactionFactory, redis: Redis, body: bytes
) -> None:
    show = await make_show()
    await behaviour.record(show, [record()])
    await redis.xadd(show_key(show, "behaviour"), {"b": body})
    await redis.xadd(show_key(show, "behaviour"), {"something": "else"})
    await behaviour.record(show, [record()])
    async with tx() as t:
        assert await behaviour.drain(t, show) == 2


async def test_text_that_sql_cannot_hold_is_made_fit(
    behaviour: Behaviour, make_show: MakeShow, tx: TransactionFactory, pool: Pool
) -> None:
    show = await make_show()
    await behaviour.record(show, [record(kind="comment", text="大\0米")])
    async with tx() as t:
        assert await behaviour.drain(t, show) == 1
    (row,) = await rows_of(pool, show)
    assert row["text"] == "大米"


async def test_without_redis_it_is_unavailable(tx: TransactionFactory) -> None:
    broken = Redis(host="127.0.0.1", port=1, socket_connect_timeout=0.2, retry=Retry(NoBackoff(), 0))
    with pytest.raises(Unavailable):
        await Behaviour(broken).record(ShowId("abcdefghjk"), [record()])
    with pytest.raises(Unavailable):
        async with tx() as t:
            await Behaviour(broken).drain(t, ShowId("abcdefghjk"))
    await broken.aclose()
