"""Signing in by phone and one-time code. Throttled by phone and by address; Redis decides.

Neither the phone nor the code lies in Redis: both are there as keyed digests.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections import OrderedDict
from typing import Protocol

import msgspec

from membership.actor import new_id
from membership.members import parse_phone
from membership.refusal import Refusal
from membership.script import ScriptLoader

CODE_DIGITS = 6
CODE_S = 300
TRIES = 5
RESEND_S = 60
WINDOW_S = 3600
PER_PHONE = 5  # sends a window
PER_IP = 20


class WrongCode(Refusal):
    """This is not the code."""

    code = "wrong_code"


class CodeExpired(Refusal):
    """The code is too old, used, or was tried too often. Ask for a new one."""

    code = "code_expired"


class IssuedCode(msgspec.Struct, frozen=True):
    code: str
    expires_s: int
    resend_s: int


class Sms(Protocol):
    """Whoever sends text messages for the shop."""

    async def send_code(self, phone: str, code: str, expires_s: int) -> None: ...


class SandboxSms:
    """Sends nothing; keeps the last codes, for the demo and for tests to show."""

    KEPT = 1000  # phones

    def __init__(self) -> None:
        self._codes: OrderedDict[str, str] = OrderedDict()

    async def send_code(self, phone: str, code: str, expires_s: int) -> None:
        self._codes[phone] = code
        self._codes.move_to_end(phone)
        while len(self._codes) > self.KEPT:
            self._codes.popitem(last=False)

    def last_code(self, phone: str) -> str | None:
        """`phone` in E.164."""
        return self._codes.get(phone)


class SignIn:
    """The limits are constructor values, so that a deployment may be stricter."""

    def __init__(
        self,
        scripts: ScriptLoader,
        secret: bytes | str,
        *,
        code_s: int = CODE_S,
        tries: int = TRIES,
        resend_s: int = RESEND_S,
        window_s: int = WINDOW_S,
        per_phone: int = PER_PHONE,
        per_ip: int = PER_IP,
    ) -> None:
        key = secret.encode() if isinstance(secret, str) else secret
        self._key = hmac.digest(key, b"companion sign-in", "sha256")
        self._issue = scripts.load_plain("membership", "issue_code")
        self._check = scripts.load_plain("membership", "check_code")
        self._code_s = code_s
        self._tries = tries
        self._resend_s = resend_s
        self._window_s = window_s
        self._per_phone = per_phone
        self._per_ip = per_ip

    async def send_code(self, phone: str, ip: str) -> IssuedCode:
        """A new code for this phone; the older one ends. The caller hands it to the Sms port.

        Raises InvalidPhone, RateLimited (with retry_ms), Unavailable.
        """
        phone = parse_phone(phone)
        code = f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}d}"
        await self._issue(
            [self._name("code", phone), self._name("phone", phone), self._name("ip", _network(ip))],
            [
                self._digest("typed", f"{phone}:{code}"),
                self._code_s * 1000,
                self._resend_s * 1000,
                self._window_s * 1000,
                self._per_phone,
                self._per_ip,
                new_id(),
            ],
        )
        return IssuedCode(code, self._code_s, self._resend_s)

    async def check_code(self, phone: str, code: str) -> str:
        """The phone in E.164, now proven. A right code works once.

        Raises InvalidPhone, WrongCode (with `tries_left`), CodeExpired, Unavailable.
        """
        phone = parse_phone(phone)
        typed = "".join(str(int(digit)) for digit in code[:32] if digit.isdecimal())  # also full-width
        answer = await self._check(
            [self._name("code", phone)], [self._digest("typed", f"{phone}:{typed}"), self._tries]
        )
        if answer == 1:
            return phone
        if answer[0] == b"expired":
            raise CodeExpired
        left = int(answer[1])
        if left <= 0:
            raise CodeExpired("That was the last try. Ask for a new code.")
        raise WrongCode(tries_left=left)

    def _name(self, kind: str, value: str) -> str:
        # one tag: a script's keys must share a Cluster node
        return f"{{sign-in}}:{kind}:{self._digest(kind, value)}"

    def _digest(self, purpose: str, value: str) -> str:
        return hmac.new(self._key, f"{purpose}:{value}".encode(), "sha256").hexdigest()[:40]


def _network(ip: str) -> str:
    """The address as it is counted: an IPv4 address, or the /64 that one IPv6 subscriber holds."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
