"""Lists by cursor: a page of rows and where the next one begins. Rows are ordered by their UUIDv7."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from membership.actor import is_id
from membership.refusal import BadRequest

T = TypeVar("T")

LIMIT_MAX = 200


class Page(msgspec.Struct, Generic[T], frozen=True):
    items: tuple[T, ...]
    next: str | None = None  # cursor of the next page; None: this was the last


class BadCursor(BadRequest):
    """This is no cursor of this list."""


def check_page(cursor: str | None, limit: int) -> None:
    """Refuse a cursor or limit that no list of ours gave out."""
    if cursor is not None and not is_id(cursor):
        raise BadCursor
    if not 1 <= limit <= LIMIT_MAX:
        raise BadRequest(f"limit is 1–{LIMIT_MAX}.")


def page_of(rows: Sequence[Mapping[str, Any]], limit: int, make: Callable[[Any], T]) -> Page[T]:
    """The page made of rows that were read in the list's order, one more than `limit` of them."""
    more = len(rows) > limit
    return Page(tuple(make(row) for row in rows[:limit]), str(rows[limit - 1]["id"]) if more else None)
