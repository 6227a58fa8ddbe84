"""One timer wheel for all sockets of a process: no timer and no task a viewer.

Each socket stands in one slot, that of its next look: its hello, ping, pong or token, whichever is due
first. Moving it costs two set operations; a turn touches only who is due.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from live.socket import Socket

SLOT_S = 0.25


class Wheel:
    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._slots: dict[int, set[Socket]] = {}
        self._turned = int(now() / SLOT_S)

    def put(self, socket: Socket, due_s: float) -> None:
        """Look at `socket` at `due_s` of the loop's clock, not before; a time given before is dropped."""
        slot = max(int(due_s / SLOT_S), self._turned) + 1
        if socket.slot != slot:
            self.drop(socket)
            self._slots.setdefault(slot, set()).add(socket)
            socket.slot = slot

    def drop(self, socket: Socket) -> None:
        found = self._slots.get(socket.slot)
        if found is not None:
            found.discard(socket)
            if not found:
                del self._slots[socket.slot]
        socket.slot = 0

    def turn(self) -> list[Socket]:
        """Who is due now; they stand in no slot until they are put again."""
        until = int(self._now() / SLOT_S)
        due: list[Socket] = []
        for slot in range(self._turned + 1, until + 1):
            due += self._slots.pop(slot, ())
        self._turned = until
        for socket in due:
            socket.slot = 0
        return due

    def __len__(self) -> int:
        return sum(len(found) for found in self._slots.values())
