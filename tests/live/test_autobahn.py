"""The cases of the Autobahn|Testsuite against our Protocol, by their numbers, each with what we do.

The suite expects a server that echoes. Ours takes commands: a text that is none is answered by one `refused`
and the connection stays, which stands for the echo here. Binary messages and messages over 4,096 bytes are
refused by rule. `python -m tests.live.test_autobahn` writes docs/autobahn.md.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN

import live
from live.protocol import COMMAND_BYTES_MAX
from tests.live.protocol_fuzz import URI, House, StandingLoop, client_frame, deflated, upgrade

PAGE = Path(live.__file__).parent.parent / "docs" / "autobahn.md"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
NORMAL = (1000).to_bytes(2, "big")
MESSAGES = 100  # where the suite sends a thousand
BETWEEN_S = 0.25  # of the clock: below the rate of commands
PRODUCT = "0190a5f2-7c3e-7abc-8def-0123456789ab"
WORD = bytes.fromhex("cebae1bdb9cf83cebcceb5")  # a Greek one, with an accent of three octets
PERMISSIVE = "permessage-deflate; client_no_context_takeover; client_max_window_bits"

AS_EXPECTED = "as expected"
ECHO = "as expected, an answer for the echo"
STRICTER = "stricter, by rule"
TAKEN = "no echo: taken, and not answered"
LATER = "as expected, at the message's end (the suite allows it)"
DIFFERS = "differs"


@dataclass(frozen=True)
class Case:
    """What one case sends, and what it is to come to."""

    number: str
    sent: str  # in words
    frames: tuple[bytes, ...]
    answers: int = 0
    pongs: tuple[bytes, ...] = ()
    code: int = 1000
    verdict: str = AS_EXPECTED
    chop: int = 0  # octets a read; 0: a read a frame
    ends: bool = True  # the client says goodbye after it
    offer: str | None = None
    slow: bool = False  # the clock moves between messages

    @property
    def group(self) -> str:
        return self.number.rpartition(".")[0]

    @property
    def outcome(self) -> str:
        parts = []
        if self.answers:
            parts.append("answered" if self.answers == 1 else f"{self.answers} answers")
        if self.pongs:
            parts.append("pong" if len(self.pongs) == 1 else f"{len(self.pongs)} pongs")
        return ", ".join((*parts, f"closed {self.code}"))


@dataclass
class Seen:
    """What the client of a case got."""

    answers: int = 0
    pongs: list[bytes] = field(default_factory=list)
    code: int | None = None


def text(payload: bytes, **more: bool | int) -> bytes:
    return client_frame(TEXT, payload, **more)  # type: ignore[arg-type]


def more_of(payload: bytes, fin: bool) -> bytes:
    return client_frame(0, payload, fin=fin)


def pieces(opcode: int, payload: bytes, size: int) -> tuple[bytes, ...]:
    """A message in fragments of `size` octets."""
    parts = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    last = len(parts) - 1
    return tuple(
        client_frame(0 if place else opcode, part, fin=place == last) for place, part in enumerate(parts)
    )


def large(opcode: int, size: int) -> bytes:
    """The beginning of one frame of `size` octets: its head alone ends the connection."""
    return client_frame(opcode, b"*" * min(size, 65_536), claimed=size)


def framing() -> Iterator[Case]:
    for place, size in enumerate((0, 125, 126, 127, 128, 65_535, 65_536, 65_536), 1):
        fits = size <= COMMAND_BYTES_MAX
        chop = 997 if place == 8 else 0
        told = f"of {size:,} octets" + (", in reads of 997" if chop else "")
        yield Case(
            f"1.1.{place}",
            f"a text {told}",
            (text(b"*" * size),),
            answers=1 if fits else 0,
            code=1000 if fits else 1009,
            verdict=ECHO if fits else STRICTER,
            chop=chop,
        )
        yield Case(
            f"1.2.{place}",
            f"a binary message {told}",
            (client_frame(BINARY, b"\xfe" * size),),
            code=4504 if fits else 1009,
            verdict=STRICTER,
            chop=chop,
        )


def pings() -> Iterator[Case]:
    binary = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
    for place, payload, told in (
        (1, b"", "a ping without payload"),
        (2, b"Hello, world!", "a ping with text"),
        (3, binary, "a ping with octets that are no text"),
        (4, b"\xfe" * 125, "a ping of 125 octets"),
    ):
        yield Case(f"2.{place}", told, (client_frame(PING, payload),), pongs=(payload,))
    yield Case("2.5", "a ping of 126 octets", (client_frame(PING, b"\xfe" * 126),), code=1002)
    long = b"\xfe" * 125
    yield Case(
        "2.6", "a ping of 125 octets, octet by octet", (client_frame(PING, long),), pongs=(long,), chop=1
    )
    yield Case("2.7", "a pong nobody asked for", (client_frame(PONG),))
    yield Case("2.8", "a pong with payload nobody asked for", (client_frame(PONG, b"unsolicited"),))
    mixed = (client_frame(PONG, b"unsolicited"), client_frame(PING, b"ping payload"))
    yield Case("2.9", "such a pong, then a ping", mixed, pongs=(b"ping payload",))
    ten = tuple(b"payload-%d" % number for number in range(10))
    frames = tuple(client_frame(PING, payload) for payload in ten)
    yield Case("2.10", "ten pings", frames, pongs=ten)
    yield Case("2.11", "ten pings, octet by octet", frames, pongs=ten, chop=1)


def reserved() -> Iterator[Case]:
    hello = text(b"Hello, world!")
    yield Case("3.1", "a text with RSV 1", (text(b"Hello, world!", rsv=1),), code=1002)
    for place, rsv in ((2, 2), (3, 3), (4, 4)):
        frames = (hello, text(b"Hello, world!", rsv=rsv), client_frame(PING))
        told = f"a text, a text with RSV {rsv}, a ping" + (", octet by octet" if place == 4 else "")
        chop = 1 if place == 4 else 0
        yield Case(f"3.{place}", told, frames, answers=1, code=1002, chop=chop)
    yield Case("3.5", "a binary message with RSV 5", (client_frame(BINARY, b"\x00\xff", rsv=5),), code=1002)
    yield Case("3.6", "a ping with RSV 6", (client_frame(PING, b"Hello, world!", rsv=6),), code=1002)
    yield Case("3.7", "a close with RSV 7", (client_frame(CLOSE, rsv=7),), code=1002)
    for group, first in ((1, 3), (2, 11)):
        for place in range(1, 6):
            opcode = first + place - 1
            alone = place < 3
            payload = b"" if place in (1, 3) else b"reserved opcode payload"
            odd = client_frame(opcode, payload)
            told = f"opcode {opcode}" if alone else f"a text, opcode {opcode}, a ping"
            yield Case(
                f"4.{group}.{place}",
                told + (", octet by octet" if place == 5 else ""),
                (odd,) if alone else (hello, odd, client_frame(PING)),
                answers=0 if alone else 1,
                code=1002,
                chop=1 if place == 5 else 0,
            )


def fragments() -> Iterator[Case]:
    one, two = b"fragment1", b"fragment2"
    both = (text(one, fin=False), more_of(two, True))
    for place, opcode, name in ((1, PING, "ping"), (2, PONG, "pong")):
        frames = (client_frame(opcode, one, fin=False), more_of(two, True))
        yield Case(f"5.{place}", f"a {name} in two fragments", frames, code=1002)
    for place, told, chop in ((3, "", 0), (4, ", a read each", 0), (5, ", octet by octet", 1)):
        yield Case(f"5.{place}", f"a text in two fragments{told}", both, answers=1, verdict=ECHO, chop=chop)
    between = (both[0], client_frame(PING, b"ping payload"), both[1])
    for place, told, chop in ((6, "", 0), (7, ", a read each", 0), (8, ", octet by octet", 1)):
        yield Case(
            f"5.{place}",
            f"a text in two fragments with a ping between them{told}",
            between,
            answers=1,
            pongs=(b"ping payload",),
            verdict=ECHO,
            chop=chop,
        )
    ways = ((", in one read", -1), (", a read each", 0), (", octet by octet", 1))
    for start, fin in ((9, True), (12, False)):
        for place, (told, chop) in enumerate(ways, start):
            frames = (more_of(b"non-continuation payload", fin), text(b"Hello, world!"))
            ending = "last" if fin else "not last"
            sent = f"a continuation ({ending}) of nothing, then a text{told}"
            yield Case(f"5.{place}", sent, frames, code=1002, chop=chop)
    again = (*both, more_of(b"fragment3", False), text(b"fragment4"))
    yield Case(
        "5.15", "a text in two fragments, a continuation of nothing, a text", again, answers=1, code=1002
    )
    for place, fin in ((16, False), (17, True)):
        frames = (more_of(one, fin), text(two, fin=False), more_of(b"fragment3", True)) * 2
        ending = "last" if fin else "not last"
        sent = f"twice: a continuation ({ending}) of nothing, a text in two fragments"
        yield Case(f"5.{place}", sent, frames, code=1002)
    frames = (text(one, fin=False), text(two))
    yield Case("5.18", "a text in two fragments that both say text", frames, code=1002)
    five = (
        text(one, fin=False),
        more_of(two, False),
        client_frame(PING, b"pongme 1!"),
        more_of(b"fragment3", False),
        more_of(b"fragment4", False),
        client_frame(PING, b"pongme 2!"),
        more_of(b"fragment5", True),
    )
    for place, told in ((19, ""), (20, ", a read each")):
        yield Case(
            f"5.{place}",
            f"a text in five fragments with two pings between them{told}",
            five,
            answers=1,
            pongs=(b"pongme 1!", b"pongme 2!"),
            verdict=ECHO,
        )


def utf8() -> Iterator[Case]:
    yield Case("6.1.1", "an empty text", (text(b""),), answers=1, verdict=ECHO)
    frames = (text(b"", fin=False), more_of(b"", False), more_of(b"", True))
    yield Case("6.1.2", "a text in three empty fragments", frames, answers=1, verdict=ECHO)
    frames = (text(b"", fin=False), more_of(b"middle frame payload", False), more_of(b"", True))
    yield Case("6.1.3", "a text between two empty fragments", frames, answers=1, verdict=ECHO)
    german = "Hello-µ@ßöäüàá-UTF-8!!".encode()
    half = len("Hello-µ@ßöä".encode())
    yield Case("6.2.1", "a text of many alphabets", (text(german),), answers=1, verdict=ECHO)
    frames = (text(german[:half], fin=False), more_of(german[half:], True))
    yield Case("6.2.2", "it in two fragments, cut between characters", frames, answers=1, verdict=ECHO)
    yield Case("6.2.3", "it in fragments of one octet", pieces(TEXT, german, 1), answers=1, verdict=ECHO)
    yield Case("6.2.4", "Greek in fragments of one octet", pieces(TEXT, WORD, 1), answers=1, verdict=ECHO)
    surrogate = WORD + b"\xed\xa0\x80" + b"edited"
    yield Case("6.3.1", "a text with a surrogate", (text(surrogate),), code=1007)
    yield Case("6.3.2", "it in fragments of one octet", pieces(TEXT, surrogate, 1), code=1007)
    beyond = WORD + b"\xf4\x90\x80\x80" + b"edited"
    for place, cut in ((1, 15), (2, 13)):
        frames = (text(beyond[:11], fin=False), more_of(beyond[11:cut], False), more_of(beyond[cut:], True))
        sent = "a code point that is none, in the second of three fragments"
        yield Case(f"6.4.{place}", sent, frames, code=1007, verdict=LATER)
    for place, chop in ((3, 17), (4, 18)):
        sent = "a code point that is none, in the second of three reads of a frame"
        yield Case(f"6.4.{place}", sent, (text(beyond),), code=1007, verdict=LATER, chop=chop)
    for group, (told, payloads) in enumerate(sequences(), 5):
        for place, payload in enumerate(payloads, 1):
            good = is_utf8(payload)
            yield Case(
                f"6.{group}.{place}",
                f"{told}, {'' if good else 'not '}UTF-8",
                (text(payload),),
                answers=1 if good else 0,
                code=1000 if good else 1007,
                verdict=ECHO if good else AS_EXPECTED,
            )


def is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def sequences() -> Iterator[tuple[str, list[bytes]]]:
    """Groups 6.5 to 6.23: octets after Markus Kuhn's list for decoders of UTF-8."""

    def of(*written: str) -> list[bytes]:
        return [bytes.fromhex(one) for one in written]

    yield "some text", [*(f"hello{sign}world".encode() for sign in "$¢€𤭢"), WORD]
    yield "all prefixes of a Greek word", [WORD[:size] for size in range(1, len(WORD) + 1)]
    yield "the first sequence of each length", of("00", "c280", "e0a080", "f0908080")
    yield "the first of 5 and 6 octets", of("f888808080", "fc8480808080")
    yield "the last sequence of each length", of("7f", "dfbf", "efbfbf", "f48fbfbf")
    yield "the last of 4, 5 and 6 octets", of("f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf")
    yield "other boundaries", of("ed9fbf", "ee8080", "efbfbd", "f48fbfbf", "f4908080")
    tails = [b"\x80", b"\xbf", *((b"\x80\xbf" * 3)[:size] for size in range(2, 7))]
    yield "continuations of nothing", [*tails, bytes(range(0x80, 0xBF))]
    starts = ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD))
    yield "starts alone", [b"".join(bytes((octet, 0x20)) for octet in range(*pair)) for pair in starts]
    short = of(
        "c0", "e080", "f08080", "f8808080", "fc80808080", "df", "efbf", "f7bfbf", "fbbfbfbf", "fdbfbfbfbf"
    )
    yield "sequences without their last octet", short
    yield "all of these one after the other", [b"".join(short)]
    yield "impossible octets", of("fe", "ff", "fefeffff")
    yield "a slash written too long", of("c0af", "e080af", "f08080af", "f8808080af", "fc80808080af")
    yield "the longest of what is too long", of("c1bf", "e09fbf", "f08fbfbf", "f887bfbfbf", "fc83bfbfbfbf")
    yield "NUL written too long", of("c080", "e08080", "f0808080", "f880808080", "fc8080808080")
    single = of("eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf")
    yield "a surrogate", single
    high, low = of("eda080", "edadbf", "edae80", "edafbf"), of("edb080", "edbfbf")
    yield "a pair of surrogates", [first + second for first in high for second in low]
    planes = [chr(plane << 16 | last).encode() for plane in range(1, 17) for last in (0xFFFE, 0xFFFF)]
    yield "code points that are no characters", [*of("efbfbe", "efbfbf"), *planes]
    yield "specials", [chr(code).encode() for code in range(0xFFF9, 0x10000)]


def closing() -> Iterator[Case]:
    goodbye = client_frame(CLOSE, NORMAL)

    def case(number: str, sent: str, *frames: bytes, **more: object) -> Case:
        return Case(number, sent, frames, ends=False, **more)  # type: ignore[arg-type]

    yield case("7.1.1", "a text, a close", text(b"Hello World!"), goodbye, answers=1, verdict=ECHO)
    yield case("7.1.2", "two closes", goodbye, goodbye)
    yield case("7.1.3", "a close, a ping", goodbye, client_frame(PING))
    yield case("7.1.4", "a close, a text", goodbye, text(b"Hello World!"))
    yield case(
        "7.1.5",
        "a fragment, a close, a fragment",
        text(b"fragment1", fin=False),
        goodbye,
        more_of(b"fragment2", True),
        code=1002,
        verdict=DIFFERS,
    )
    huge = large(TEXT, 262_144)
    yield case(
        "7.1.6", "a text of 262,144 octets, a close, a ping", huge, goodbye, code=1009, verdict=STRICTER
    )
    yield case("7.3.1", "a close without payload", client_frame(CLOSE), code=1005)
    yield case("7.3.2", "a close of one octet", client_frame(CLOSE, b"\x03"), code=1002)
    yield case("7.3.3", "a close with a code", goodbye)
    yield case("7.3.4", "a close with a reason", client_frame(CLOSE, NORMAL + b"Hello World!"))
    yield case("7.3.5", "a close with a reason of 123 octets", client_frame(CLOSE, NORMAL + b"*" * 123))
    yield case(
        "7.3.6", "a close with a reason of 124 octets", client_frame(CLOSE, NORMAL + b"*" * 124), code=1002
    )
    bad = WORD + b"\xed\xa0\x80"
    yield case("7.5.1", "a close with a reason not UTF-8", client_frame(CLOSE, NORMAL + bad), code=1007)
    good = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
    for place, code in enumerate(good, 1):
        sent = client_frame(CLOSE, code.to_bytes(2, "big"))
        yield case(
            f"7.7.{place}", "a close with a code that may be sent: the same comes back", sent, code=code
        )
    for place, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1):
        sent = client_frame(CLOSE, code.to_bytes(2, "big"))
        yield case(f"7.9.{place}", "a close with a code that may not be sent", sent, code=1002)
    for place, code in enumerate((5000, 65_535), 1):
        sent = client_frame(CLOSE, code.to_bytes(2, "big"))
        yield case(f"7.13.{place}", "a close with a code beyond all of them", sent, code=1002)


def limits() -> Iterator[Case]:
    kib = 1_024
    sizes = [size * kib for size in (64, 256, 1_024, 4_096, 8_192, 16_384)]
    for group, opcode, name in ((1, TEXT, "text"), (2, BINARY, "binary message")):
        for place, size in enumerate(sizes, 1):
            frame = large(opcode, size)
            yield Case(
                f"9.{group}.{place}", f"a {name} of 64 KiB to 16 MiB", (frame,), code=1009, verdict=STRICTER
            )
    parts = [size * kib for size in (64 / kib, 0.25, 1, 4, 16, 64, 256, 1_024, 4_096)]
    for group, opcode, name in ((3, TEXT, "text"), (4, BINARY, "binary message")):
        for place, size in enumerate(parts, 1):
            code = 4504 if opcode == BINARY and size <= COMMAND_BYTES_MAX else 1009
            if size > COMMAND_BYTES_MAX:
                frames: tuple[bytes, ...] = (
                    client_frame(opcode, b"*" * 65_536, claimed=int(size), fin=False),
                )
            else:  # 70 fragments are as good as 65,536: it ends at the 65th, of the smallest
                frames = pieces(opcode, b"*" * int(size) * 71, int(size))[:70]
            told = "up to 4 KiB" if size <= COMMAND_BYTES_MAX else "16 KiB and more"
            sent = f"a {name} of 4 MiB in fragments of {told}"
            yield Case(f"9.{group}.{place}", sent, frames, code=code, verdict=STRICTER)
    for group, opcode, name in ((5, TEXT, "text"), (6, BINARY, "binary message")):
        for place, chop in enumerate((64, 128, 256, 512, 1_024, 2_048), 1):
            frame = large(opcode, 1_024 * kib)
            sent = f"a {name} of 1 MiB in reads of 64 to 2,048 octets"
            yield Case(f"9.{group}.{place}", sent, (frame,), code=1009, verdict=STRICTER, chop=chop)
    for place, size in enumerate((0, 16, 64, 256, 1_024, 4_096), 1):
        if size == 0:
            sent = f"{MESSAGES} empty texts: five that are no command end it"
            yield Case(
                f"9.7.{place}",
                sent,
                (text(b""),) * MESSAGES,
                answers=5,
                code=4504,
                verdict=STRICTER,
                slow=True,
            )
        else:
            yield many(f"9.7.{place}", f"{MESSAGES} texts of {size:,} octets, one by one", size)
        frames = (client_frame(BINARY, b"\xfe" * size),) * MESSAGES
        sent = f"{MESSAGES} binary messages of 0 to 4,096 octets, one by one"
        yield Case(f"9.8.{place}", sent, frames, code=4504, verdict=STRICTER)
    frames = pieces(TEXT, b"*" * 65_536, 1_300)
    yield Case("10.1.1", "a text of 65,536 octets in fragments of 1,300", frames, code=1009, verdict=STRICTER)


def command_of(size: int, number: int, filling: str = "") -> bytes:
    """A command of exactly so many octets. One too short to carry an id is a pong, which is not answered."""
    if size < 128:
        return b'{"type":"pong"}'.ljust(size)
    made = json.dumps({"type": "product.view", "id": number, "product": PRODUCT, "page": ""}).encode()
    room = size - len(made)
    filling = (filling * (room // max(1, len(filling)) + 1))[:room] if filling else ""
    return (made[:-2] + filling.encode() + b'"}').ljust(size)


def many(number: str, sent: str, size: int) -> Case:
    frames = tuple(text(command_of(size, place)) for place in range(MESSAGES))
    told = sent if size >= 128 else f"{sent}: too short for a command with an id"
    return Case(
        number,
        told,
        frames,
        answers=MESSAGES if size >= 128 else 0,
        verdict=ECHO if size >= 128 else TAKEN,
        slow=True,
    )


MESSAGE_SIZES = (
    *((size, 0) for size in (16, 64, 256, 1_024, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072)),
    *((size, 256) for size in (8_192, 16_384, 32_768, 65_536, 131_072)),
    *((131_072, size) for size in (1_024, 4_096, 32_768)),
)
JSON_LIKE = "{'sku': 'rice-5kg', 'price_fen': 8800, 'left': 12}, "
HTML_LIKE = "<li class='offer'><a href='/o/12'>Wuchang rice, 5 kg</a></li> "
OFFERS = (
    ("the default offer", PERMISSIVE),
    ("server_no_context_takeover", f"{PERMISSIVE}; server_no_context_takeover"),
    ("server_max_window_bits=9", f"{PERMISSIVE}; server_max_window_bits=9"),
    ("server_max_window_bits=15", f"{PERMISSIVE}; server_max_window_bits=15"),
    ("both, 9 bits", f"{PERMISSIVE}; server_no_context_takeover; server_max_window_bits=9"),
    ("both, 15 bits", f"{PERMISSIVE}; server_no_context_takeover; server_max_window_bits=15"),
    (
        "three offers",
        f"{PERMISSIVE}; server_no_context_takeover; server_max_window_bits=9,"
        f" {PERMISSIVE}; server_no_context_takeover, {PERMISSIVE}",
    ),
)


def squeezed(opcode: int, payload: bytes, fragment: int) -> tuple[bytes, ...]:
    """One compressed message, in fragments of so many octets of it."""
    data = deflated(payload)
    size = fragment or max(1, len(data))
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    last = len(parts) - 1
    return tuple(
        client_frame(0 if place else opcode, part, fin=place == last, rsv=0 if place else 4)
        for place, part in enumerate(parts)
    )


def compressed() -> Iterator[Case]:
    data = (
        ("JSON", JSON_LIKE),
        ("a picture (binary)", None),
        ("prose (binary)", None),
        ("HTML", HTML_LIKE),
        ("a PDF (binary)", None),
    )
    for group, (name, filling) in enumerate(data, 1):
        for place, (size, fragment) in enumerate(MESSAGE_SIZES, 1):
            yield one_compressed(f"12.{group}.{place}", name, filling, size, fragment, PERMISSIVE)
    for group, (name, offer) in enumerate(OFFERS, 1):
        for place, (size, fragment) in enumerate(MESSAGE_SIZES, 1):
            yield one_compressed(f"13.{group}.{place}", f"JSON, {name}", JSON_LIKE, size, fragment, offer)


def one_compressed(number: str, name: str, filling: str | None, size: int, fragment: int, offer: str) -> Case:
    if filling is None:
        payload = random.Random(size).randbytes(size)
        frame = fragment or size + 1  # what does not compress grows
        code = 4504 if frame <= COMMAND_BYTES_MAX else 1009
        sent = f"compressed {name}: 16 octets to 128 KiB, whole or in fragments"
        return Case(
            number, sent, squeezed(BINARY, payload, fragment), code=code, verdict=STRICTER, offer=offer
        )
    if size > COMMAND_BYTES_MAX:
        frames = squeezed(TEXT, command_of(size, 1, filling), fragment)
        sent = f"compressed {name}: 8 to 128 KiB, whole or in fragments"
        return Case(number, sent, frames, code=1009, verdict=STRICTER, offer=offer)
    frames = tuple(
        frame for place in range(MESSAGES) for frame in squeezed(TEXT, command_of(size, place, filling), 0)
    )
    told = "16 and 64 octets, too short for a command with an id" if size < 128 else "256 to 4,096 octets"
    return Case(
        number,
        f"{MESSAGES} compressed messages of {name}, of {told}",
        frames,
        answers=MESSAGES if size >= 128 else 0,
        verdict=ECHO if size >= 128 else TAKEN,
        offer=offer,
        slow=True,
    )


def cases() -> list[Case]:
    makers = (framing, pings, reserved, fragments, utf8, closing, limits, compressed)
    made = [case for maker in makers for case in maker()]
    return sorted(made, key=lambda case: [int(part) for part in case.number.split(".")])


CASES = cases()


async def _play(house: House, case: Case) -> Seen:
    wire = house.connect()
    wire.feed(upgrade(deflate=case.offer))
    wire.feed(text(b'{"type":"hello","id":0,"token":null}'))
    await house.settle()
    head, _, _ = bytes(wire.sent).partition(b"\r\n\r\n")
    reads = list(case.frames)
    if case.chop == -1:
        reads = [b"".join(case.frames)]
    elif case.chop:
        data = b"".join(case.frames)
        reads = [data[at : at + case.chop] for at in range(0, len(data), case.chop)]
    for read in reads:
        if wire.closing:
            break
        wire.feed(read)
        if case.slow:
            house.loop.clock += BETWEEN_S
        if not case.chop or len(reads) < 1_000:
            await house.settle()
    await house.settle()
    if case.ends:
        wire.feed(client_frame(CLOSE, NORMAL))
        await house.settle()
    assert house.faults == []
    seen = Seen()
    client = ClientProtocol(URI, state=OPEN, max_size=None)
    if b"Sec-WebSocket-Extensions" in head:
        bits = 9 if b"server_max_window_bits=9" in head else 15
        client.extensions = [PerMessageDeflate(True, True, bits, 15)]
    client.receive_data(bytes(wire.sent)[len(head) + 4 :])
    assert client.parser_exc is None
    for event in client.events_received():
        assert isinstance(event, Frame)
        if event.opcode is Opcode.TEXT:
            seen.answers += sum(message["type"] in ("ok", "refused") for message in json.loads(event.data))
        elif event.opcode is Opcode.PONG:
            seen.pongs.append(bytes(event.data))
        elif event.opcode is Opcode.CLOSE:
            seen.code = int.from_bytes(event.data[:2], "big") if event.data else 1005
    return seen


@pytest.fixture(scope="module")
def play() -> Iterator[Callable[[Case], Seen]]:
    """One node for all cases: what one leaves behind, the next ones would meet."""
    with asyncio.Runner(loop_factory=StandingLoop) as runner:

        async def open_house() -> House:
            return House()

        house = runner.run(open_house())
        yield lambda case: runner.run(_play(house, case))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.number)
def test_a_case_of_the_suite_comes_to_what_the_page_says(play: Callable[[Case], Seen], case: Case) -> None:
    seen = play(case)
    assert (seen.answers, tuple(seen.pongs), seen.code) == (case.answers, case.pongs, case.code)


def test_every_case_of_the_suite_is_there_once() -> None:
    counts: dict[str, int] = {}
    for case in CASES:
        counts[case.group] = counts.get(case.group, 0) + 1
    sixes = (5, 11, 4, 2, 4, 3, 5, 8, 5, 10, 1, 3, 5, 5, 5, 7, 8, 34, 7)
    assert counts == {
        "1.1": 8,
        "1.2": 8,
        "2": 11,
        "3": 7,
        "4.1": 5,
        "4.2": 5,
        "5": 20,
        "6.1": 3,
        "6.2": 4,
        "6.3": 2,
        "6.4": 4,
        **{f"6.{group}": count for group, count in enumerate(sixes, 5)},
        "7.1": 6,
        "7.3": 6,
        "7.5": 1,
        "7.7": 13,
        "7.9": 9,
        "7.13": 2,
        "9.1": 6,
        "9.2": 6,
        "9.3": 9,
        "9.4": 9,
        "9.5": 6,
        "9.6": 6,
        "9.7": 6,
        "9.8": 6,
        "10.1": 1,
        **{f"12.{group}": 18 for group in range(1, 6)},
        **{f"13.{group}": 18 for group in range(1, 8)},
    }
    assert len({case.number for case in CASES}) == len(CASES)


HEAD = f"""# The Autobahn cases

The [Autobahn|Testsuite](https://github.com/crossbario/autobahn-testsuite) is the usual examination of a
WebSocket implementation. Its {len(CASES)} server cases are written as tests against our `Socket`
(`tests/live/test_autobahn.py`), and this page is made from them: what is sent, and what we do.

The suite examines a server that echoes. Ours takes commands, so three things differ by rule:

- A text that is no command is answered by one `refused` (`bad_request`); that stands for the echo. The fifth
  such text ends the connection with 4504. A `pong`, the one command that is short, is not answered.
- A binary message ends it with 4504. Nothing here is binary.
- A message over {COMMAND_BYTES_MAX:,} octets, inflated, ends it with 1009. No viewer's command is longer.

Where the suite sends a thousand messages, the tests send {MESSAGES}. “Closed 1000” is the client's own goodbye,
answered in kind.

| cases | what is sent | what we do | against the suite |
| --- | --- | --- | --- |
"""

TAIL = """
**6.4**: a text is judged when it is whole. A command has at most 4,096 octets, so nothing is gained by judging
its fragments.

**7.1.5**: a close frame between two fragments of a message. The suite expects it answered in kind; the parser
holds that the message should have been ended, and closes 1002. The connection ends either way.
"""


def ranges(numbers: list[str]) -> str:
    """Numbers of one group, those in a row as the first and the last."""
    found: list[list[str]] = []
    for number in numbers:
        place = int(number.rpartition(".")[2])
        if found and place == int(found[-1][-1].rpartition(".")[2]) + 1:
            found[-1] = [found[-1][0], number]
        else:
            found.append([number])
    return ", ".join("–".join(part) for part in found)


def page() -> str:
    """docs/autobahn.md. Cases in a row that share what is sent and what is done share a line."""
    lines: list[tuple[tuple[str, ...], list[str]]] = []
    for case in CASES:
        key = case.group, case.sent, case.outcome, case.verdict
        if case.group.startswith(("6.", "9.", "12.", "13.", "7.")):  # these mix; each outcome has one line
            found = next((numbers for known, numbers in lines if known == key), None)
        else:
            found = lines[-1][1] if lines and lines[-1][0] == key else None
        if found is None:
            lines.append((key, [case.number]))
        else:
            found.append(case.number)
    rows = [
        f"| {ranges(numbers)} | {sent} | {outcome} | {verdict} |"
        for (_, sent, outcome, verdict), numbers in lines
    ]
    return HEAD + "\n".join(rows) + "\n" + TAIL


def test_the_page_says_what_these_tests_say() -> None:
    assert PAGE.read_text() == page(), "run `python -m tests.live.test_autobahn`"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
