"""semantics 4: an order-wide discount is spread over lines by largest remainder, to the fen."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commerce.allocation import allocate

weights = st.lists(st.integers(0, 100_000_000), min_size=1, max_size=12)


@pytest.mark.rule("semantics 4.3a")
def test_the_largest_remainder_gets_the_odd_fen_and_of_equal_ones_the_earlier() -> None:
    assert allocate(100, [1_000, 1_000, 1_000]) == [34, 33, 33]
    assert allocate(10, [100, 250, 650]) == [1, 3, 6]  # 1.0, 2.5, 6.5: of equal remainders the earlier
    assert allocate(0, [0, 0]) == [0, 0]
    assert allocate(5, [0, 5, 0]) == [0, 5, 0]


@settings(deadline=None)
@given(weights, st.data())
def test_shares_add_up_and_none_is_above_its_weight(given_weights: list[int], data: st.DataObject) -> None:
    amount = data.draw(st.integers(0, sum(given_weights)))
    shares = allocate(amount, given_weights)
    assert sum(shares) == amount
    for share, weight in zip(shares, given_weights, strict=True):
        assert 0 <= share <= weight
        exact = amount * weight / sum(given_weights) if amount else 0
        assert abs(share - exact) < 1 + exact * 1e-9


@settings(deadline=None)
@given(weights, st.data())
def test_more_for_all_of_them_is_never_less_for_all_together(
    given_weights: list[int], data: st.DataObject
) -> None:
    whole = sum(given_weights)
    assert allocate(whole, given_weights) == given_weights
    first = data.draw(st.integers(0, whole))
    left = [
        weight - share for weight, share in zip(given_weights, allocate(first, given_weights), strict=True)
    ]
    second = data.draw(st.integers(0, whole - first))
    assert sum(allocate(second, left)) == second  # a second discount fits into what the first left


@pytest.mark.parametrize(("amount", "of"), [(11, [5, 5]), (-1, [5]), (1, [-1, 5]), (1, [])])
def test_what_cannot_be_spread_is_refused(amount: int, of: list[int]) -> None:
    with pytest.raises(ValueError, match="spread"):
        allocate(amount, of)
