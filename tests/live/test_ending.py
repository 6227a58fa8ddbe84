"""The end of tasks: a cancellation that was lost is said again."""

from __future__ import annotations

import asyncio

import pytest

from live.ending import end

pytestmark = pytest.mark.anyio


async def test_a_task_that_lost_its_cancellation_is_told_again() -> None:
    told: list[int] = []

    async def hard_of_hearing() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                told.append(1)
                if len(told) == 3:
                    raise

    task = asyncio.create_task(hard_of_hearing())
    await asyncio.sleep(0)
    await asyncio.wait_for(end([task]), 5)
    assert task.cancelled()
    assert len(told) == 3


async def test_who_ends_tasks_among_which_they_are_goes_on() -> None:
    own = asyncio.current_task()
    assert own is not None
    await end([own])
    assert not own.cancelling()


async def test_a_task_that_failed_is_not_raised_here() -> None:
    async def fails() -> None:
        raise OSError

    task = asyncio.create_task(fails())
    await asyncio.sleep(0)
    await end([task])
    assert isinstance(task.exception(), OSError)
