"""The judge of the rounds names what is wrong: each promise to a client, each fen."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from loadtests.rounds.judge import against_claims, against_money, against_orders
from loadtests.rounds.people import Told
from loadtests.rounds.plan import GIFTS, PIECES, draw
from loadtests.rounds.play import Played


@pytest.fixture
def played() -> Played:
    return Played(
        plan=draw(1, 1),
        show="s",
        join="b-join",
        claim="b-claim",
        offer="o",
        told=Told(),
        steps=0,
        seconds=1.0,
        killed_at=0,
    )


def gifts() -> list[dict[str, Any]]:
    return [
        {"benefit": "b-claim", "member": f"m{rank}", "rank": rank, "core": f"core {rank}"}
        for rank in range(1, GIFTS + 1)
    ]


def receipt(core: str) -> str:
    return f"r1.{base64.urlsafe_b64encode(core.encode()).decode().rstrip('=')}.sig"


def test_ranks_are_what_was_told(played: Played) -> None:
    played.told.rank("b-claim", "m1", 1, receipt("core 1"))
    assert against_claims(played, gifts(), []) == []
    played.told.rank("b-claim", "m2", 3)
    played.told.rank("b-claim", "m99", 4)
    played.told.rank("b-claim", "m5", 5, receipt("another"))
    wrong = against_claims(played, gifts(), [])
    assert [line.split(",")[-1].strip() for line in wrong[:2]] == ["the books say 2", "the books say none"]
    assert "receipt of rank 5" in wrong[2]
    played.told.rank("b-claim", "m1", 2)
    assert played.told.wrong == ["member m1 was told rank 1, then 2"]


def test_a_gap_a_rank_too_many_and_a_gift_too_few_are_seen(played: Played) -> None:
    gap = [row for row in gifts() if row["rank"] != 4]
    assert "no gap" in against_claims(played, gap, [])[0]
    joins = [{"benefit": "b-join", "member": f"j{rank}", "rank": rank, "core": ""} for rank in range(1, 7)]
    assert "at most 1 to 5" in against_claims(played, gifts() + joins, [])[0]
    missed = [{"member": "j1", "why": "sold_out"}]
    assert "missed it" in against_claims(played, gifts() + joins[:5], missed)[0]


def test_a_state_with_more_than_there_is_and_a_rank_that_changes_hands_are_seen() -> None:
    told = Told()
    data = {"quota": 5, "counts": {"held": 2, "confirmed": 3}}
    told.look({"type": "state", "key": "benefit:b", "data": data})
    told.look({"type": "state", "key": "show", "data": {"quota": 1, "counts": {"held": 9}}})
    told.look({"type": "benefit.claimed", "benefit": "b", "rank": 1, "name": "甲"})
    assert told.wrong == []
    data["counts"]["held"] = 3  # type: ignore[index]
    welcome = {"type": "welcome", "states": [{"key": "benefit:b", "data": data}]}
    told.look(welcome)
    told.look(welcome)
    told.look({"type": "benefit.claimed", "benefit": "b", "rank": 1, "name": "乙"})
    assert len(told.wrong) == 2
    assert "6 of 5" in told.wrong[0]


def order(number: int, state: str = "paid", **more: Any) -> dict[str, Any]:
    paid = state in ("paid", "refunded")
    row = {"id": f"o{number}", "member": f"m{number}", "kind": "goods", "state": state, "paid": paid}
    return {**row, "total_fen": 4_990, **more}


def test_orders_are_what_was_told(played: Played) -> None:
    told = played.told
    told.placed = {f"o{n}": f"m{n}" for n in range(1, 4)}
    told.paid = {"o1": "m1"}
    told.given_up = {"o2"}
    sold = [{"sold": 1, "held": 0, "taken": 1, "stock": PIECES - 1}]
    right = [order(1), order(2, "cancelled"), order(3, "expired")]
    assert against_orders(played, right, sold) == []
    assert "not in the books" in against_orders(played, right[:2], sold)[0]
    assert "was paid for and is expired" in against_orders(played, [order(1, "expired"), *right[1:]], sold)[0]
    assert "was given up and is paid" in against_orders(played, [right[0], order(2), right[2]], sold)[0]
    assert "2 orders for one" in against_orders(played, [*right, order(4, member="m1")], sold)[0]
    over = [{"sold": PIECES, "held": 1, "taken": PIECES, "stock": 0}]
    assert "pieces sold" in against_orders(played, right, over)[0]


def test_money_agrees_to_the_fen(played: Played) -> None:
    played.told.placed = {"o1": "m1"}
    took = {"ref": "r1", "order": "o1", "status": "paid", "paid_fen": 4_990, "returned_fen": 0}
    row = {"ref": "r1", "order_id": "o1", "amount_fen": 4_990, "outcome": "accepted", "reason": None}
    assert against_money(played, [row], [], {"payments": [took]}) == []
    assert "recorded are 0" in against_money(played, [], [], {"payments": [took]})[0]
    assert "the provider took 0" in against_money(played, [row], [], {"payments": []})[0]
    assert (
        "recorded are 4991"
        in against_money(played, [{**row, "amount_fen": 4_991}], [], {"payments": [took]})[0]
    )
    lost = {**row, "outcome": "returned", "reason": "no_stock"}
    assert "is not back" in against_money(played, [lost], [], {"payments": [took]})[0]
    back = {"ref": "r1", "amount_fen": 4_990, "done": True}
    went = {**took, "returned_fen": 4_990}
    assert against_money(played, [lost], [back], {"payments": [went]}) == []
    assert "sent 4990 fen back" in against_money(played, [lost], [], {"payments": [went]})[0]
