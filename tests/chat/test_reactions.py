"""Reactions are totals: merged, bounded, a state and never an event."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chat.comments import NotLive
from chat.reactions import Reactions
from live.lua import Scripts
from membership.refusal import BadRequest

pytestmark = pytest.mark.anyio


@pytest.fixture
def reactions(scripts: Scripts) -> Reactions:
    return Reactions(scripts)


async def test_many_nodes_at_once_lose_no_tap_and_nothing_enters_the_log(
    reactions: Reactions, make_show: Any, see: Any, entries: Any
) -> None:
    show = await make_show()
    await asyncio.gather(*(reactions.add(show, {"like": 3, "rice": 1, "clap": 0}) for _ in range(100)))
    assert (await see(show, 1))["reactions"] == {"counts": {"like": 300, "rice": 100}}
    assert await entries(show) == []


@pytest.mark.parametrize("counts", [{"love": 1}, {"like": -1}, {"like": 10**9}, {"like|x": 1}])
async def test_an_unknown_kind_or_a_count_out_of_bounds_is_refused_whole(
    reactions: Reactions, make_show: Any, see: Any, counts: dict[str, int]
) -> None:
    show = await make_show()
    with pytest.raises(BadRequest):
        await reactions.add(show, {"clap": 1, **counts})
    assert "reactions" not in await see(show, 1)


@pytest.mark.parametrize("status", ["scheduled", "ended"])
async def test_taps_before_and_after_the_show_are_refused(
    reactions: Reactions, make_show: Any, status: str
) -> None:
    show = await make_show(status)
    with pytest.raises(NotLive):
        await reactions.add(show, {"like": 1})
    await reactions.add(show, {})
