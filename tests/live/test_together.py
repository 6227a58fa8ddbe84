"""Calls made together: few, in order, each answer to its asker, bounded, and nobody left waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from live.gather import Together, TooManyWaiting
from membership.refusal import Forbidden, Refusal, Unavailable

pytestmark = pytest.mark.anyio


class Store:
    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.let = asyncio.Event()
        self.let.set()
        self.fail: Exception | None = None

    async def call(self, key: str, items: Sequence[int]) -> Sequence[str | Refusal]:
        self.calls.append(list(items))
        await self.let.wait()
        if self.fail is not None:
            raise self.fail
        return [f"{key}{item}" if item >= 0 else Forbidden(f"{item}") for item in items]


def together(
    store: Store, *, most: int = 100, rest_s: float = 0.01, waiting_max: int = 1_000
) -> Together[str, int, str]:
    return Together(store.call, most=most, rest_s=rest_s, waiting_max=waiting_max)


async def test_the_first_goes_at_once_and_who_comes_in_its_rest_goes_together_and_in_order() -> None:
    store = Store()
    asked = together(store, rest_s=0.05)
    assert await asked.ask("a", 1) == "a1"
    assert await asyncio.gather(*(asked.ask("a", n) for n in (2, 3, 4))) == ["a2", "a3", "a4"]
    assert store.calls == [[1], [2, 3, 4]]
    await asked.close()
    assert await asked.ask("a", 5) == "a5"
    assert store.calls[-1] == [5]
    await asked.close()


async def test_a_call_is_bounded_and_what_is_left_goes_with_the_next() -> None:
    store = Store()
    asked = together(store, most=10)
    answers = await asyncio.gather(*(asked.ask("a", n) for n in range(25)))
    assert answers == [f"a{n}" for n in range(25)]
    assert [len(call) for call in store.calls] == [10, 10, 5]
    await asked.close()


async def test_each_gets_its_own_refusal() -> None:
    asked = together(Store())
    answers = await asyncio.gather(*(asked.ask("a", n) for n in (1, -2, 3)), return_exceptions=True)
    assert answers[0] == "a1"
    assert isinstance(answers[1], Forbidden)
    assert str(answers[1]) == "-2"
    assert answers[2] == "a3"
    await asked.close()


@pytest.mark.parametrize("failure", [Unavailable(retry_ms=700), RuntimeError("broken")])
async def test_a_call_that_fails_is_unavailable_to_all_of_it_and_the_next_goes_on(failure: Exception) -> None:
    store = Store()
    store.fail = failure
    asked = together(store)
    answers = await asyncio.gather(*(asked.ask("a", n) for n in (1, 2)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable, Unavailable]
    store.fail = None
    assert await asked.ask("a", 3) == "a3"
    await asked.close()


async def test_one_key_does_not_wait_for_another() -> None:
    store = Store()
    store.let.clear()
    asked = together(store)
    slow = asyncio.create_task(asked.ask("a", 1))
    await asyncio.sleep(0)
    quick = asyncio.create_task(asked.ask("b", 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert store.calls == [[1], [1]]
    store.let.set()
    assert (await slow, await quick) == ("a1", "b1")
    await asked.close()


async def test_over_the_bound_nobody_more_waits() -> None:
    store = Store()
    store.let.clear()
    asked = together(store, waiting_max=3)
    waiting = [asyncio.create_task(asked.ask("a", n)) for n in range(4)]
    await asyncio.sleep(0)  # the first is called, three wait
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(asked.ask("a", 4)))
    await asyncio.sleep(0)
    store.let.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(answer, TooManyWaiting) for answer in answers) >= 1
    assert [answer for answer in answers if isinstance(answer, str)] == [
        f"a{n}" for n, answer in enumerate(answers) if isinstance(answer, str)
    ]
    await asked.close()


async def test_who_gives_up_takes_nothing_from_the_others() -> None:
    store = Store()
    store.let.clear()
    asked = together(store)
    first = asyncio.create_task(asked.ask("a", 1))
    await asyncio.sleep(0)
    gone, stays = asyncio.create_task(asked.ask("a", 2)), asyncio.create_task(asked.ask("a", 3))
    await asyncio.sleep(0)
    gone.cancel()
    store.let.set()
    assert (await first, await stays) == ("a1", "a3")
    await asked.close()
