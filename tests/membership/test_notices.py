"""Notices: hints beside the record; a store that is away is said in our own words."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from membership.actor import MemberId
from membership.notices import STREAM, Notices
from membership.refusal import Unavailable

pytestmark = pytest.mark.anyio

MEMBER = MemberId("m")


async def test_notices_keep_their_order(redis: Redis) -> None:
    notices = Notices(redis)
    await notices.send(MEMBER, {"type": "one"})
    await notices.send_many([(MEMBER, {"type": "two"}), (MEMBER, {"type": "three"})])
    await notices.send_many([])
    await notices.facts_changed(MEMBER)
    entries = await redis.xrange(STREAM)
    assert [fields.get(b"message") for _, fields in entries] == [
        b'{"type":"one"}',
        b'{"type":"two"}',
        b'{"type":"three"}',
        None,
    ]


async def test_a_store_that_is_away_is_unavailable() -> None:
    notices = Notices(Redis(host="127.0.0.1", port=1))
    for call in (notices.send(MEMBER, {"type": "one"}), notices.facts_changed(MEMBER)):
        with pytest.raises(Unavailable):
            await call
