from __future__ import annotations

import hmac
from ipaddress import ip_address
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from live.lua import Scripts
from membership.members import InvalidPhone
from membership.refusal import RateLimited, Unavailable
from membership.sign_in import CodeExpired, SandboxSms, SignIn, WrongCode

pytestmark = pytest.mark.anyio

PHONE, IP = "13812345678", "203.0.113.7"


async def keys(redis: Redis, pattern: str) -> list[bytes]:
    return [key async for key in redis.scan_iter(pattern)]  # of a Cluster: on every node


@pytest.fixture
def sign_in(scripts: Scripts) -> SignIn:
    return SignIn(scripts, b"a secret of this test")


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 1_000_000:06d}"


async def test_the_right_code_proves_the_phone_once(sign_in: SignIn) -> None:
    issued = await sign_in.send_code(PHONE, IP)
    assert len(issued.code) == 6 and issued.code.isdigit()
    assert (issued.expires_s, issued.resend_s) == (300, 60)
    assert await sign_in.check_code("+86 138 1234 5678", f" {issued.code} ") == "+8613812345678"
    with pytest.raises(CodeExpired):
        await sign_in.check_code(PHONE, issued.code)


async def test_a_code_typed_in_full_width_digits_is_right(sign_in: SignIn) -> None:
    issued = await sign_in.send_code(PHONE, IP)
    full_width = "".join(chr(ord(digit) + 0xFEE0) for digit in issued.code)
    assert await sign_in.check_code(PHONE, full_width)


async def test_five_tries_and_then_even_the_right_code_is_dead(sign_in: SignIn) -> None:
    issued = await sign_in.send_code(PHONE, IP)
    for left in (4, 3, 2, 1):
        with pytest.raises(WrongCode) as refusal:
            await sign_in.check_code(PHONE, wrong(issued.code))
        assert refusal.value.details == {"tries_left": left}
        assert refusal.value.word == "wrong_code"
    with pytest.raises(CodeExpired):
        await sign_in.check_code(PHONE, wrong(issued.code))
    with pytest.raises(CodeExpired) as dead:
        await sign_in.check_code(PHONE, issued.code)
    assert dead.value.word == "code_expired"


async def test_a_code_belongs_to_its_phone(sign_in: SignIn) -> None:
    issued = await sign_in.send_code(PHONE, IP)
    with pytest.raises(CodeExpired):
        await sign_in.check_code("13987654321", issued.code)


async def test_a_code_lives_five_minutes(sign_in: SignIn, redis: Redis) -> None:
    await sign_in.send_code(PHONE, IP)
    (key,) = await keys(redis, "{sign-in}:code:*")
    assert 299_000 < await redis.pttl(key) <= 300_000


async def test_a_code_that_is_too_old_is_expired(scripts: Scripts, redis: Redis) -> None:
    sign_in = SignIn(scripts, b"a secret", code_s=1)
    issued = await sign_in.send_code(PHONE, IP)
    (key,) = await keys(redis, "{sign-in}:code:*")
    await redis.pexpire(key, 0)
    with pytest.raises(CodeExpired):
        await sign_in.check_code(PHONE, issued.code)


@pytest.mark.parametrize("typed", ["", "abc", "12345", "1" * 10_000, "\0", "𝟙²", "-12345"])
async def test_what_is_no_code_is_wrong(sign_in: SignIn, typed: str) -> None:
    await sign_in.send_code(PHONE, IP)
    with pytest.raises(WrongCode):
        await sign_in.check_code(PHONE, typed)


@pytest.mark.parametrize("phone", ["", "12345", "<script>"])
async def test_no_code_is_sent_to_what_is_no_phone(sign_in: SignIn, redis: Redis, phone: str) -> None:
    with pytest.raises(InvalidPhone):
        await sign_in.send_code(phone, IP)
    with pytest.raises(InvalidPhone):
        await sign_in.check_code(phone, "123456")
    assert await redis.dbsize() == 0


async def test_the_next_code_waits_a_minute_and_leaves_the_first_valid(sign_in: SignIn) -> None:
    issued = await sign_in.send_code(PHONE, IP)
    with pytest.raises(RateLimited) as refusal:
        await sign_in.send_code(PHONE, "198.51.100.1")
    assert refusal.value.retry_ms is not None and 55_000 < refusal.value.retry_ms <= 60_000
    assert await sign_in.check_code(PHONE, issued.code)


async def test_a_new_code_ends_the_older_one(scripts: Scripts) -> None:
    sign_in = SignIn(scripts, b"a secret", resend_s=0)
    first = await sign_in.send_code(PHONE, IP)
    second = await sign_in.send_code(PHONE, IP)
    if first.code != second.code:
        with pytest.raises(WrongCode):
            await sign_in.check_code(PHONE, first.code)
    assert await sign_in.check_code(PHONE, second.code)


async def test_a_phone_gets_five_codes_an_hour(scripts: Scripts) -> None:
    sign_in = SignIn(scripts, b"a secret", resend_s=0)
    for number in range(5):
        await sign_in.send_code(PHONE, f"203.0.113.{number}")
    with pytest.raises(RateLimited) as refusal:
        await sign_in.send_code(PHONE, "203.0.113.99")
    assert refusal.value.retry_ms is not None and 3_500_000 < refusal.value.retry_ms <= 3_600_000


async def test_an_address_gets_twenty_codes_an_hour(sign_in: SignIn) -> None:
    for number in range(20):
        await sign_in.send_code(f"138{number:08d}", IP)
    with pytest.raises(RateLimited):
        await sign_in.send_code("13900000000", IP)
    await sign_in.send_code("13900000000", "203.0.113.8")


async def test_one_holder_of_an_ipv6_network_counts_as_one_address(sign_in: SignIn) -> None:
    base = int(ip_address("2001:db8::"))
    for number in range(20):
        await sign_in.send_code(f"138{number:08d}", str(ip_address(base + number * 1_000_003)))
    with pytest.raises(RateLimited):
        await sign_in.send_code("13900000000", "2001:db8::ffff")
    await sign_in.send_code("13900000000", "2001:db8:0:1::1")


async def test_the_window_slides(scripts: Scripts, redis: Redis) -> None:
    """An hour after the first of five, one more is sent: not five more, and not none."""
    sign_in = SignIn(scripts, b"a secret", resend_s=0, per_phone=2, window_s=3600)
    await sign_in.send_code(PHONE, IP)
    await sign_in.send_code(PHONE, IP)
    (key,) = await keys(redis, "{sign-in}:phone:*")
    found: Any = await redis.zrange(key, 0, 0, withscores=True)
    ((oldest, at),) = found
    await redis.zadd(key, {oldest: at - 3_600_001})
    await sign_in.send_code(PHONE, IP)
    with pytest.raises(RateLimited):
        await sign_in.send_code(PHONE, IP)


async def test_neither_phone_nor_code_lies_in_redis(sign_in: SignIn, redis: Redis) -> None:
    issued = await sign_in.send_code(PHONE, IP)
    for key in await keys(redis, "*"):
        assert PHONE.encode() not in key and IP.encode() not in key
    (key,) = await keys(redis, "{sign-in}:code:*")
    stored = (await redis.hgetall(key))[b"digest"]
    assert issued.code.encode() != stored
    assert len(stored) == len(hmac.new(b"", b"", "sha256").hexdigest()[:40])


async def test_every_key_has_an_end(sign_in: SignIn, redis: Redis) -> None:
    await sign_in.send_code(PHONE, IP)
    assert [await redis.pttl(key) > 0 for key in await keys(redis, "*")] == [True] * 3


async def test_without_redis_it_is_unavailable_and_nothing_is_proven(sign_in: SignIn, redis: Redis) -> None:
    issued = await sign_in.send_code(PHONE, IP)
    other = Redis(host="127.0.0.1", port=1, socket_connect_timeout=0.2, retry=Retry(NoBackoff(), 0))
    broken = SignIn(Scripts(other), b"a secret of this test")
    with pytest.raises(Unavailable):
        await broken.check_code(PHONE, issued.code)
    await other.aclose()


async def test_the_sandbox_keeps_the_last_codes_only() -> None:
    sms = SandboxSms()
    for number in range(SandboxSms.KEPT + 1):
        await sms.send_code(f"+86138{number:08d}", f"{number:06d}", 300)
    assert sms.last_code("+8613800000000") is None
    assert sms.last_code("+8613800000001") == "000001"
    await sms.send_code("+8613800000001", "999999", 300)
    assert sms.last_code("+8613800000001") == "999999"
