"""Codes asked for and tried by many at once. First, that counting in Python lets too many through."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from live.lua import Scripts
from membership.refusal import RateLimited
from membership.sign_in import CodeExpired, SignIn, WrongCode

pytestmark = pytest.mark.anyio

PHONE, IP = "13812345678", "203.0.113.7"


async def test_reading_a_count_and_writing_it_back_lets_too_many_through(redis: Redis) -> None:
    """Control: without the script all look before any has counted. If this fails, the tests below prove
    nothing."""
    all_looked = asyncio.Barrier(20)

    async def send() -> bool:
        sent = int(await redis.get("sent") or 0)
        await all_looked.wait()
        if sent >= 5:
            return False
        await redis.set("sent", sent + 1)
        return True

    assert sum(await asyncio.gather(*(send() for _ in range(20)))) > 5


async def sent(sign_in: SignIn, phone: str, ip: str) -> bool:
    try:
        await sign_in.send_code(phone, ip)
    except RateLimited:
        return False
    return True


async def test_thirty_at_once_for_one_phone_send_one_code(scripts: Scripts) -> None:
    sign_in = SignIn(scripts, "a secret")
    answers = await asyncio.gather(*(sent(sign_in, PHONE, f"203.0.113.{number}") for number in range(30)))
    assert sum(answers) == 1


async def test_thirty_at_once_without_the_pause_send_five_an_hour(scripts: Scripts) -> None:
    sign_in = SignIn(scripts, "a secret", resend_s=0)
    answers = await asyncio.gather(*(sent(sign_in, PHONE, f"203.0.113.{number}") for number in range(30)))
    assert sum(answers) == 5


async def test_forty_phones_at_once_from_one_address_send_twenty(scripts: Scripts) -> None:
    sign_in = SignIn(scripts, "a secret")
    answers = await asyncio.gather(*(sent(sign_in, f"138{number:08d}", IP) for number in range(40)))
    assert sum(answers) == 20


async def test_a_hundred_guesses_at_once_are_five_tries(scripts: Scripts) -> None:
    sign_in = SignIn(scripts, "a secret")
    right = (await sign_in.send_code(PHONE, IP)).code
    guesses = [f"{number:06d}" for number in range(101) if f"{number:06d}" != right][:100]

    async def guess(code: str) -> str:
        try:
            await sign_in.check_code(PHONE, code)
        except WrongCode:
            return "wrong"
        except CodeExpired as refusal:
            return "last" if "last try" in str(refusal) else "expired"
        return "in"

    answers = await asyncio.gather(*(guess(code) for code in guesses))
    assert (answers.count("wrong"), answers.count("last"), answers.count("expired")) == (4, 1, 95)


async def test_the_right_code_tried_twenty_times_at_once_opens_once(scripts: Scripts) -> None:
    sign_in = SignIn(scripts, "a secret")
    right = (await sign_in.send_code(PHONE, IP)).code

    async def enter() -> bool:
        try:
            await sign_in.check_code(PHONE, right)
        except CodeExpired:
            return False
        return True

    assert sum(await asyncio.gather(*(enter() for _ in range(20)))) == 1
