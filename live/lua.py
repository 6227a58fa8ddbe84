"""The loader of Lua scripts: one prelude before every script of a show, EVALSHA, and the answer's kind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from membership.actor import ShowId
from membership.partition import show_key, spine
from membership.refusal import Unavailable
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


class _Call:
    """One script: sent by its digest, in full when the server does not know it yet.

    Never retried by the client: a call that timed out may have run, and its key makes a repeat safe.
    """

    def __init__(self, redis: Redis, name: str, text: str) -> None:
        self._redis = redis
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.name = name

    async def run(self, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        try:
            try:
                answer = await self._redis.evalsha(self._sha, len(keys), *keys, *args)
            except NoScriptError:
                answer = await self._redis.eval(self._text, len(keys), *keys, *args)
        except (RedisError, OSError, TimeoutError) as error:
            raise Unavailable(f"{self.name}: {error}", retry_ms=1000) from error
        if isinstance(answer, list) and answer:
            if answer[0] in (b"refused", "refused"):
                raise refusal_from(answer)
            if answer[0] in (b"ok", "ok"):
                return answer[1] if len(answer) == 2 else answer[1:]
        return answer


class _ShowScript(_Call):
    async def __call__(self, show: ShowId, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        return await self.run([*spine(show), *(show_key(show, key) for key in keys)], args)


class _PlainCall(_Call):
    async def __call__(self, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        return await self.run(keys, args)


class Scripts:
    """Loads scripts from the four packages; the client is handed in once."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._prelude = read_script("live", "append")

    def load(self, package: str, name: str) -> Script:
        text = self._prelude + "\n" + read_with_include(package, name)
        return _ShowScript(self._redis, f"{package}/{name}", text)

    def load_plain(self, package: str, name: str) -> PlainScript:
        return _PlainCall(self._redis, f"{package}/{name}", read_script(package, name))
