"""What a domain module needs to know of Redis scripts: how to get one, and what it answers.

The loader itself (EVALSHA, the shared prelude `live/scripts/append.lua`) is built in `live/app.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from membership.actor import ShowId
from membership.refusal import KeyReused, RateLimited, Refusal, Unavailable

Arg = str | bytes | int


class Script(Protocol):
    """One decision in Redis about one show: check, change, append to the log; all or none."""

    async def __call__(self, show: ShowId, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """Run it. `keys` are names within the show (`"poll:x"`), prefixed and put after the spine.

        Raises Refusal when the script answers {'refused', code, retry_ms, message?}; Unavailable when
        Redis does not answer or the show's keys are gone. Returns what follows 'ok', or the raw value
        of scripts that answer something else.
        """


class PlainScript(Protocol):
    """One decision in Redis that belongs to no show (a sign-in code, a rate)."""

    async def __call__(self, keys: Sequence[str], args: Sequence[Arg]) -> Any: ...


class ScriptLoader(Protocol):
    def load(self, package: str, name: str) -> Script:
        """`<package>/scripts/<name>.lua` with the prelude put before it."""

    def load_plain(self, package: str, name: str) -> PlainScript:
        """`<package>/scripts/<name>.lua` as it is; all its keys must share one `{tag}`."""


def refusal_from(answer: Sequence[Any]) -> Refusal:
    """The Refusal for a script's {'refused', code, retry_ms, message?}."""
    code = _text(answer[1])
    retry_ms = int(answer[2]) if len(answer) > 2 and answer[2] not in (b"", "", None) else None
    message = _text(answer[3]) if len(answer) > 3 else None
    kind = {"unavailable": Unavailable, "rate_limited": RateLimited, "key_reused": KeyReused}
    return kind.get(code, Refusal)(message, retry_ms=retry_ms, code=code)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def json_arg(value: object) -> bytes:
    """A struct or dict as a script argument."""
    return msgspec.json.encode(value)
