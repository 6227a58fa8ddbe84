"""Allocation: one sum spread over several weights, to the fen, by largest remainder."""

from __future__ import annotations

from collections.abc import Sequence


def allocate(amount: int, weights: Sequence[int]) -> list[int]:
    """Spread `amount` over `weights`: each share is its proportion rounded down, and what is left goes one by
    one to the largest remainders, the earlier position first.

    The shares add up to the amount, and none is above its weight as long as the amount is not above their
    sum. The only place where a sum is divided among lines.
    """
    whole = sum(weights)
    if amount < 0 or any(weight < 0 for weight in weights) or amount > whole:
        raise ValueError("a sum is spread over weights that are at least as much together")
    if not amount:
        return [0] * len(weights)
    shares = [amount * weight // whole for weight in weights]
    remainders = [amount * weight % whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda place: (-remainders[place], place))
    for place in by_remainder[: amount - sum(shares)]:
        shares[place] += 1
    return shares
