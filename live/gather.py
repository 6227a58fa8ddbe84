"""Few large calls in place of many small ones: reads that many wait for, writes that many make at once."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

from membership.refusal import Refusal, Unavailable

log = logging.getLogger("companion.gather")

A = TypeVar("A")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

READ_MAX = 500  # keys in one read
READ_S = 5.0  # a read that takes longer fails, and the next begins


class Gather(Generic[K, V]):
    """Ask for one key; keys asked for while a read is under way, or in its first `rest_s`, go with the next.

    The first after silence is read at once, `READ_MAX` keys at most. `read` answers with what it found. One
    failed read fails all who waited for it, and only them.
    """

    def __init__(
        self, read: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], *, rest_s: float = 0.0
    ) -> None:
        self._read = read
        self._rest_s = rest_s
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
            loop = asyncio.get_running_loop()
            while self._waiting:
                began = loop.time()
                batch = {key: self._waiting.pop(key) for key in list(self._waiting)[:READ_MAX]}
                try:
                    async with asyncio.timeout(READ_S):
                        found = await self._read(list(batch))
                except Exception as error:
                    for answer in batch.values():
                        answer.set_exception(error)
                        answer.exception()  # nobody may be waiting any more
                    found = {}
                except asyncio.CancelledError:
                    for answer in batch.values():
                        answer.cancel()
                    raise
                for key, answer in batch.items():
                    if not answer.done():
                        answer.set_result(found.get(key))
                await asyncio.sleep(max(0.0, began + self._rest_s - loop.time()))
        finally:
            self._reading = None

    async def close(self) -> None:
        """Let the read under way end, and tell who waits for another that there is none."""
        for answer in self._waiting.values():
            answer.cancel()
        self._waiting.clear()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)


class TooManyWaiting(Refusal):
    """Too many are waiting for this; try again in a moment."""

    code = "rate_limited"


class Together(Generic[K, A, V]):
    """Ask under one key: what is asked while a call is under way, or in its first `rest_s`, goes with the next.

    The first after silence goes at once. Order is kept; a call takes `most`, and `waiting_max` may wait. `call`
    answers each item with its value or its Refusal.
    """

    def __init__(
        self,
        call: Callable[[K, Sequence[A]], Awaitable[Sequence[V | Refusal]]],
        *,
        most: int,
        rest_s: float,
        waiting_max: int,
    ) -> None:
        self._call = call
        self._most = most
        self._rest_s = rest_s
        self._waiting_max = waiting_max
        self._waiting: dict[K, deque[tuple[A, asyncio.Future[V | Refusal]]]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def ask(self, key: K, item: A) -> V:
        """Raises the Refusal it was answered with; Unavailable when the call failed."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[V | Refusal] = loop.create_future()
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = deque([(item, answer)])
            task = loop.create_task(self._run(key))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        elif len(waiting) >= self._waiting_max:
            raise TooManyWaiting(retry_ms=500)
        else:
            waiting.append((item, answer))
        result = await answer
        if isinstance(result, Refusal):
            raise result
        return result

    async def close(self) -> None:
        """Wait for what was asked."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, key: K) -> None:
        waiting = self._waiting[key]
        loop = asyncio.get_running_loop()
        batch: list[tuple[A, asyncio.Future[V | Refusal]]] = []
        try:
            while waiting:
                began = loop.time()
                batch = [waiting.popleft() for _ in range(min(len(waiting), self._most))]
                answers: Sequence[V | Refusal]
                try:
                    answers = await self._call(key, [item for item, _ in batch])
                except Refusal as refusal:
                    answers = [refusal] * len(batch)
                except Exception:
                    log.exception("a call for %s failed", key)
                    answers = [Unavailable(retry_ms=1000)] * len(batch)
                for (_, answer), result in zip(batch, answers, strict=True):
                    if not answer.done():
                        answer.set_result(result)
                await asyncio.sleep(max(0.0, began + self._rest_s - loop.time()))
        finally:  # also when this process is told to stop
            del self._waiting[key]
            for _, answer in (*batch, *waiting):
                if not answer.done():
                    answer.set_result(Unavailable(retry_ms=1000))
