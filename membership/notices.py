"""Personal notices: what one member is told on every open socket of theirs, on every node.

A notice is a hint beside the durable record: a node that missed some (Redis was away) reads the facts
of its members anew, so nothing that matters hangs on one.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from redis.asyncio import Redis

from membership.actor import MemberId

STREAM = "{notices}:log"
LENGTH_MAX = 20_000  # about an hour of a busy night


class Notices:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def send(self, member: MemberId, message: dict[str, object]) -> None:
        """Send `message` ({"type": …}) to the member's sockets."""
        await self._redis.xadd(
            STREAM,
            {"member": member, "message": msgspec.json.encode(message)},
            maxlen=LENGTH_MAX,
            approximate=True,
        )

    async def send_many(self, messages: Sequence[tuple[MemberId, dict[str, object]]]) -> None:
        """Send many at once: one key, one round trip."""
        if not messages:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for member, message in messages:
                pipe.xadd(
                    STREAM,
                    {"member": member, "message": msgspec.json.encode(message)},
                    maxlen=LENGTH_MAX,
                    approximate=True,
                )
            await pipe.execute()

    async def facts_changed(self, member: MemberId) -> None:
        """Plan, tier or name changed: sockets reload the member's facts and change class."""
        await self._redis.xadd(STREAM, {"member": member}, maxlen=LENGTH_MAX, approximate=True)
