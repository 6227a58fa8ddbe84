"""Reactions: taps without words, kept as totals only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from chat.comments import NotLive
from chat.messages import ReactionKind
from membership.actor import ShowId
from membership.refusal import BadRequest, Refusal
from membership.script import ScriptLoader

KINDS: frozenset[str] = frozenset(get_args(ReactionKind))
ADD_MAX = 1_000_000  # of one kind in one call: a node's viewers in one second


class Reactions:
    """The show's totals; a node merges its viewers' taps and adds them once a second."""

    def __init__(self, scripts: ScriptLoader) -> None:
        self._add = scripts.load("chat", "add_reactions")

    async def add(self, show: ShowId, counts: Mapping[str, int]) -> None:
        """Add `counts` (kind to number). Raises BadRequest, NotLive (not opened yet, or ended)."""
        args: list[str | int] = []
        for kind, number in counts.items():
            if kind not in KINDS:
                raise BadRequest(f"A reaction is one of {', '.join(sorted(KINDS))}.")
            if not 0 <= number <= ADD_MAX:
                raise BadRequest(f"A count of reactions lies between 0 and {ADD_MAX}.")
            if number:
                args += [kind, number]
        if not args:
            return
        try:
            await self._add(show, [], args)
        except Refusal as refusal:
            raise NotLive if refusal.word == "not_live" else refusal from None
