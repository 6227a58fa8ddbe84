"""The storm at a tiny size, and what is wrong must show, from whichever side."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from loadtests.evening.stand import Stand
from loadtests.storm import Arrivals, Calls, Seen, in_words, judge, slower, storm

pytestmark = pytest.mark.anyio
CLAIMANTS, QUOTA = 40, 10


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    with Stand(tmp_path_factory.mktemp("storm")) as stand:
        return await storm(stand, CLAIMANTS, QUOTA, 0.2)


async def test_a_storm_is_decided_in_the_order_of_arrival(seen: Seen) -> None:
    assert judge(seen) == []
    assert len(seen.arrivals) == QUOTA
    assert [member for _, member in seen.booked] == seen.arrivals
    assert all(calls.number >= 1 and calls.at_once == 1 for calls in seen.calls)
    assert sum(report.answers.count for report in seen.reports) == CLAIMANTS
    assert slower(seen.reports).p99 > 0
    assert "10 winners" in in_words(seen, 0.2)


async def test_each_side_that_differs_is_named(seen: Seen) -> None:
    first, second = seen.reports

    def with_report(**more: Any) -> Seen:
        return msgspec.structs.replace(seen, reports=(msgspec.structs.replace(first, **more), second))

    swapped = [seen.arrivals[1], seen.arrivals[0], *seen.arrivals[2:]]
    cases = {
        "replies: 11 winners": with_report(ranks=[*first.ranks, 1]),
        "never answered": with_report(claims_waiting=1),
        "two different answers": with_report(answered_twice=1),
        "told sold_out": with_report(refused={}),
        "order of arrival": msgspec.structs.replace(seen, arrivals=swapped),
        "PostgreSQL": msgspec.structs.replace(seen, booked=seen.booked[:-1]),
        "receipts": msgspec.structs.replace(seen, links=seen.links[1:]),
        "Redis: {'confirmed': 9": msgspec.structs.replace(seen, counts={"confirmed": 9, "held": 0}),
        "under way at once": msgspec.structs.replace(seen, calls=(Calls(5, 2), Calls(5, 1))),
    }
    for said, changed in cases.items():
        assert any(said in line for line in judge(changed)), said


def test_arrivals_are_read_from_what_redis_says_it_does() -> None:
    arrivals = Arrivals("redis://127.0.0.1:1/0", "b7", 3)
    other = b'1.0 [0 unix:/s] "EVALSHA" "ff" "1" "k" "b8" "benefit.claim:b8" "" "m9" "k9"'
    call = b'1.0 [0 unix:/s] "EVALSHA" "ff" "1" "k" "b7" "benefit.claim:b7" "" "m1" "k1" "m2" "k\\"2"'
    again = b'1.1 [0 unix:/s] "EVALSHA" "ff" "1" "k" "b7" "benefit.claim:b7" "1:1:0" "m1" "k1" "m3" "k3"'
    inner = b'1.2 [0 lua] "HGET" "x" "benefit.claim:b7"'
    for line in (other, call, again, inner):
        arrivals.take(line)
    assert (list(arrivals.members), arrivals.calls) == (["m1", "m2", "m3"], 2)
