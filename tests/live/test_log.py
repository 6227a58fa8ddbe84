"""The tail: each stream's position moves with what was taken, and never over a new beginning."""

from __future__ import annotations

from typing import Any, cast

import pytest

from live.log import Entry, Tail
from membership.actor import ShowId
from membership.partition import show_key

pytestmark = pytest.mark.anyio

SHOW = ShowId("show")


class OneAnswer:
    """A client whose blocked read has an answer."""

    async def xread(self, positions: dict[str, str], **more: Any) -> Any:
        fields = {b"e": b"", b"a": b"0", b"v": b"0"}
        return {show_key(SHOW, "log").encode(): [(b"101-0", fields), (b"110-0", fields)]}


async def read_once(begins_anew: bool) -> str:
    async def on_entries(show: ShowId, entries: list[Entry]) -> None:
        if begins_anew:
            await tail.follow(show, 5)

    tail = Tail(cast(Any, None), cast(Any, None), on_entries, lambda told: None, lambda up: None)
    await tail.follow(SHOW, 100)
    await tail._read_once(cast(Any, OneAnswer()))
    return tail._positions[show_key(SHOW, "log")]


async def test_the_position_moves_behind_what_was_taken() -> None:
    assert await read_once(begins_anew=False) == "110-0"


async def test_a_show_begun_anew_while_its_entries_were_taken_keeps_its_new_position() -> None:
    assert await read_once(begins_anew=True) == "5-0"
