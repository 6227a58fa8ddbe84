"""The loader of Lua scripts: one prelude before every script of a show, EVALSHA, and the answer's kind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as LinkError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as LateError

from live.circuit import Circuit
from live.cluster import BoundedCluster
from live.database import REDIS_CONNECTIONS
from membership.actor import ShowId
from membership.partition import partition, show_key, spine
from membership.refusal import Away
from membership.script import Arg, PlainScript, Script, refusal_from

INCLUDE = "-- include: "  # a script's first line may name a part it shares: <package>/<name>


def read_script(package: str, name: str) -> str:
    return (resources.files(package) / "scripts" / f"{name}.lua").read_text("utf-8")


def read_with_include(package: str, name: str) -> str:
    """The script, with the part named in its first line put before it."""
    text = read_script(package, name)
    first = text.partition("\n")[0]
    if not first.startswith(INCLUDE):
        return text
    part_package, _, part = first.removeprefix(INCLUDE).strip().partition("/")
    return read_script(part_package, part) + "\n" + text


class _Turns:
    """As many calls at once as the client has connections to a server, and a circuit for each partition.

    Those who wait for a turn when the store stops answering are told with those who have one: within the
    timeout of one command, however many wait.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis: Redis | BoundedCluster = redis
        self._free: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(REDIS_CONNECTIONS)
        )
        self.circuits: defaultdict[int, Circuit] = defaultdict(
            lambda: Circuit(time.monotonic, (LinkError, LateError, OSError))
        )

    def free(self, key: str) -> asyncio.Semaphore:
        """The turns at the server that has `key`: a node of a Cluster that is away takes none of another's."""
        return self._free[self._redis.home(key) if isinstance(self._redis, BoundedCluster) else ""]


class _Call:
    """One script: sent by its digest, in full when the server does not know it yet.

    Never retried by the client: a call that timed out may have run, and its key makes a repeat safe.
    """

    def __init__(self, redis: Redis, turns: _Turns, name: str, text: str) -> None:
        self._redis: Redis | BoundedCluster = redis
        self._turns = turns
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.name = name
        self.calls = self.at_once = self._under_way = 0

    async def run(self, place: int, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """`place` names the circuit: a show's partition, or -1 for what belongs to none."""
        circuit = self._turns.circuits[place]
        circuit.check()
        try:
            async with self._turns.free(keys[0]):
                with circuit.asking(), self._counted():
                    answer = await self._send(keys, args)
        except (RedisError, OSError, TimeoutError) as error:
            if isinstance(error, LateError):
                await self._drop_idle_links()
            raise Away(f"{self.name}: {error}", retry_ms=1000) from error
        if isinstance(answer, list) and answer:
            if answer[0] in (b"refused", "refused"):
                raise refusal_from(answer)
            if answer[0] in (b"ok", "ok"):
                return answer[1] if len(answer) == 2 else answer[1:]
        return answer

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.calls += 1
        self._under_way += 1
        self.at_once = max(self.at_once, self._under_way)
        try:
            yield
        finally:
            self._under_way -= 1

    async def _drop_idle_links(self) -> None:
        """One link was dead without a word; its idle neighbours are not waited for one after the other."""
        pool = self._redis.connection_pool if isinstance(self._redis, Redis) else None
        if pool is not None:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                await pool.disconnect(inuse_connections=False)

    async def _send(self, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        try:
            return await self._redis.evalsha(self._sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self._redis.eval(self._text, len(keys), *keys, *args)


class _ShowScript(_Call):
    async def __call__(self, show: ShowId, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        return await self.run(partition(show), [*spine(show), *(show_key(show, key) for key in keys)], args)


class _PlainCall(_Call):
    async def __call__(self, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        return await self.run(-1, keys, args)


class Scripts:
    """Loads scripts from the four packages; the client is handed in once."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._turns = _Turns(redis)
        self._prelude = read_script("live", "append")
        self._loaded: list[_Call] = []

    def forget_failures(self) -> None:
        """Ask the store again at once: whoever calls this knows that it is back."""
        self._turns.circuits.clear()

    def load(self, package: str, name: str) -> Script:
        text = self._prelude + "\n" + read_with_include(package, name)
        script = _ShowScript(self._redis, self._turns, f"{package}/{name}", text)
        self._loaded.append(script)
        return script

    def load_plain(self, package: str, name: str) -> PlainScript:
        script = _PlainCall(self._redis, self._turns, f"{package}/{name}", read_script(package, name))
        self._loaded.append(script)
        return script

    def counted(self) -> Iterator[tuple[str, int, int]]:
        """Of each script that was called: its name, how often, and how many calls were under way at once at most.

        One that several parts have loaded is counted for each: its calls are added, of the most at once the
        highest is given.
        """
        calls: dict[str, tuple[int, int]] = {}
        for script in self._loaded:
            so_far, most = calls.get(script.name, (0, 0))
            calls[script.name] = so_far + script.calls, max(most, script.at_once)
        yield from ((name, number, most) for name, (number, most) in sorted(calls.items()) if number)
