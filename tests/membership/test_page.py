from __future__ import annotations

import pytest

from membership.actor import new_id
from membership.page import BadCursor, check_page
from membership.refusal import BadRequest


def test_a_cursor_of_ours_passes() -> None:
    check_page(None, 1)
    check_page(new_id(), 200)


@pytest.mark.parametrize("cursor", ["", "1", "x" * 36, "0'; DROP TABLE members; --"])
def test_a_cursor_that_is_none_is_refused(cursor: str) -> None:
    with pytest.raises(BadCursor):
        check_page(cursor, 10)


@pytest.mark.parametrize("limit", [0, -1, 201])
def test_a_limit_out_of_bounds_is_refused(limit: int) -> None:
    with pytest.raises(BadRequest):
        check_page(None, limit)
