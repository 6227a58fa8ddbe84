"""The shop and the shop on paper agree, whatever is done in whatever order."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from commerce.pieces import Pieces
from commerce.spending import Spending
from live.engines import Addresses
from membership.points import Points
from tests.commerce import paper_shop
from tests.commerce.machine import DisagreementError, Stand, drive
from tests.conftest import Emptied

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "200"))


@pytest.fixture
def stand(engines: Addresses, emptied: Emptied) -> Iterator[Stand]:
    made = Stand(engines, emptied)
    yield made
    made.close()


@pytest.mark.rule("semantics 4.2b", "semantics 4.3a", "semantics 5.1a", "semantics 5.1b")
def test_in_any_order_the_shop_is_what_the_paper_says(stand: Stand) -> None:
    drive(stand, EXAMPLES)
    assert stand.examples >= EXAMPLES
    if EXAMPLES >= 200:  # the walks went where something can go wrong
        words = (
            "placed with coupons",
            "placed with points",
            "placed of a bundle",
            "pieces refunded",
            "undone",
        )
        assert [word for word in words if not stand.met[word]] == []
        assert any(word.startswith("paid expired: ok") for word in stand.met)


async def _nothing(*_: object) -> int:
    return 0


@pytest.mark.parametrize(
    ("owner", "act"),
    [(Pieces, "give_back"), (Spending, "free"), (Points, "reverse")],
    ids=["stock is not given back", "coupons and points are not given back", "earned points are kept"],
)
def test_control_with_one_inverse_removed_the_machine_says_so(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, owner: type, act: str
) -> None:
    monkeypatch.setattr(owner, act, lambda *_, **__: _nothing())
    with pytest.raises(DisagreementError):
        drive(stand, 60)


def test_the_papers_shares_add_up() -> None:
    assert paper_shop.shares(100, [1, 1, 1]) == [34, 33, 33]
    assert paper_shop.shares(5, [0, 3, 3]) == [0, 3, 2]
    assert paper_shop.shares(0, [0, 0]) == [0, 0]
    assert paper_shop.half_up(5, 50) == 3
