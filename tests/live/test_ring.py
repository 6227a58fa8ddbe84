"""The ring: bounded by time and bytes, never at the cost of what nobody has been told."""

from __future__ import annotations

from live.log import Entry
from live.ring import RING_BYTES, RING_S, Ring


def entry(seq: int, size: int = 100, **over: object) -> Entry:
    event = b'{"type":"comment.posted","text":"%s"}' % (b"x" * size)
    return Entry(seq=seq, event=event, bit=0, version=0, urgent=False, redacts=None, **over)  # type: ignore[arg-type]


def test_what_is_older_than_a_minute_goes() -> None:
    ring = Ring()
    for seq in range(1, 121):
        ring.keep(entry(seq), float(seq), told=seq)
    assert ring[0][1].seq == 120 - RING_S
    assert ring.bytes == sum(len(each.event) for _, each in ring)
    assert ring.covers(59)
    assert not ring.covers(58)


def test_what_is_over_two_megabytes_goes() -> None:
    ring = Ring()
    for seq in range(1, 101):
        ring.keep(entry(seq, 50_000), 0.0, told=seq)
    assert RING_BYTES - 60_000 < ring.bytes <= RING_BYTES
    assert ring[-1][1].seq == 100


def test_what_nobody_was_told_stays_however_old_and_large() -> None:
    ring = Ring()
    for seq in range(1, 101):
        ring.keep(entry(seq, 50_000), float(seq * 10), told=0)
    assert [each.seq for each in ring.after(0)] == list(range(1, 101))


def test_what_was_hidden_leaves_memory_and_its_number_stays() -> None:
    ring = Ring()
    for seq in (1, 2, 3):
        ring.keep(entry(seq), 0.0, told=0)
    ring.redact(2)
    ring.redact(9)
    assert [(each.seq, bool(each.event)) for each in ring.after(0)] == [(1, True), (2, False), (3, True)]
    assert ring.bytes == len(entry(1).event) + len(entry(3).event)


def test_the_latest_are_what_a_class_may_have_and_was_shown() -> None:
    ring = Ring()
    ring.keep(entry(1), 0.0, told=0)
    ring.keep(entry(2, rank=4, sampled=True), 0.0, told=0)
    secret = entry(3)
    secret.bit = 1
    ring.keep(secret, 0.0, told=0)
    ring.keep(entry(4), 0.0, told=0)
    ring.keep(entry(5), 0.0, told=0)
    kinds = [b'"type":"comment.posted"']
    assert [each.seq for each in ring.latest(kinds, 0b1, until=4, most=30)] == [1, 4]
    assert [each.seq for each in ring.latest(kinds, 0b11, until=5, most=2)] == [4, 5]
    assert ring.latest([b'"type":"order.paid"'], 0b1, until=5, most=2) == []
