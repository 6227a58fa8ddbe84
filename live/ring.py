"""A show's latest events in this process' memory: rejoins, healing and snapshots are served from here.

60 s or 2 MB of events, whichever is less, looked at when the next one comes; what was not told yet is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from live.log import Entry

RING_S = 60.0
RING_BYTES = 2_097_152


class Ring(deque[tuple[float, Entry]]):
    """Entries with the time they came, oldest first; their numbers follow each other."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def keep(self, entry: Entry, now: float, told: int) -> None:
        """Take an entry in and let go of what is too old or too much, up to the number `told`."""
        self.append((now, entry))
        self.bytes += len(entry.event)
        while len(self) > 1 and (self.bytes > RING_BYTES or self[0][0] < now - RING_S):
            if self[0][1].seq > told:
                break
            self.bytes -= len(self.popleft()[1].event)

    def redact(self, seq: int) -> None:
        """What was hidden leaves memory; its number stays."""
        for _, entry in self:
            if entry.seq == seq:
                self.bytes -= len(entry.event)
                entry.event = b""

    def after(self, seq: int) -> list[Entry]:
        """What came after `seq`, oldest first."""
        found: list[Entry] = []
        for _, entry in reversed(self):
            if entry.seq <= seq:
                break
            found.append(entry)
        return found[::-1]

    def covers(self, seq: int) -> bool:
        """Whether everything after `seq` is still here."""
        return bool(self) and self[0][1].seq <= seq + 1

    def latest(self, kinds: Sequence[bytes], mask: int, until: int, most: int) -> list[Entry]:
        """The last `most` events of these kinds that a class may have and was shown, oldest first."""
        found: list[Entry] = []
        for _, entry in reversed(self):
            if (
                entry.seq <= until
                and mask >> entry.bit & 1
                and not entry.sampled
                and any(kind in entry.event[:80] for kind in kinds)
            ):
                found.append(entry)
                if len(found) == most:
                    break
        return found[::-1]
