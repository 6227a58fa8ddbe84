"""One read for all who ask while another is under way: a storm of joins costs a few large reads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

READ_MAX = 500  # keys in one read


class Gather(Generic[K, V]):
    """Ask for one key; keys asked for meanwhile are read together, at most `READ_MAX` at once.

    `read` answers with what it found. One failed read fails all who waited for it, and only them.
    """

    def __init__(self, read: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._read = read
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """None when the key was not found. What is read is read after the call."""
        answer = self._waiting.get(key)
        if answer is None:
            answer = self._waiting[key] = asyncio.get_running_loop().create_future()
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._run())
        return await asyncio.shield(answer)

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = {key: self._waiting.pop(key) for key in list(self._waiting)[:READ_MAX]}
                try:
                    found = await self._read(list(batch))
                except Exception as error:
                    for answer in batch.values():
                        answer.set_exception(error)
                        answer.exception()  # nobody may be waiting any more
                    continue
                except asyncio.CancelledError:
                    for answer in batch.values():
                        answer.cancel()
                    raise
                for key, answer in batch.items():
                    answer.set_result(found.get(key))
        finally:
            self._reading = None

    async def close(self) -> None:
        """Let the read under way end, and tell who waits for another that there is none."""
        for answer in self._waiting.values():
            answer.cancel()
        self._waiting.clear()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
