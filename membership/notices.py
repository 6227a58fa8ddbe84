"""Personal notices: what one member is told on every open socket of theirs, on every node.

A notice is a hint beside the durable record: a node that missed some (Redis was away) reads the facts
of its members anew, so nothing that matters hangs on one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from membership.actor import MemberId
from membership.refusal import Unavailable

STREAM = "{notices}:log"
LENGTH_MAX = 20_000  # about an hour of a busy night


class Notices:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def send(self, member: MemberId, message: dict[str, object]) -> None:
        """Send `message` ({"type": …}) to the member's sockets. Raises Unavailable."""
        await self.send_many([(member, message)])

    async def send_many(self, messages: Sequence[tuple[MemberId, dict[str, object]]]) -> None:
        """Send many at once: one key, one round trip. Raises Unavailable."""
        await self._append(
            [{"member": member, "message": msgspec.json.encode(message)} for member, message in messages]
        )

    async def facts_changed(self, member: MemberId) -> None:
        """Plan, tier or name changed: sockets reload the member's facts and change class. Raises Unavailable."""
        await self._append([{"member": member}])

    async def _append(self, entries: Sequence[dict[Any, Any]]) -> None:
        if not entries:
            return
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for entry in entries:
                    pipe.xadd(STREAM, entry, maxlen=LENGTH_MAX, approximate=True)
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"notices: {error}", retry_ms=1000) from error
