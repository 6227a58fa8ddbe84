"""How hard this process is pressed, and what it gives up for that, in a known order.

likes → comment sampling → presence. Never orders, quotas or notices. A step is taken when the loop has been
late, or buffers full, for two seconds; the last one is taken back after ten calm seconds.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

STEPS: Final = ("reactions", "comments", "presence")  # each includes the ones before it
LATE_S: Final = 0.05  # median lateness of the loop that counts as pressure
CALM_LATE_S: Final = 0.02
TURNS: Final = 8  # looks at the loop that are judged together: two seconds of them
UP_AFTER_S: Final = 2.0
DOWN_AFTER_S: Final = 10.0
BUFFERS_HIGH: Final = 0.5  # of what all viewers' buffers may hold
PAUSE_S: Final = 1.0  # the loop stood still so long: nothing may be concluded from silence
JOIN_LATE_S: Final = 0.1  # after a pause nobody is let in until the loop is this punctual
SAMPLED_SHARE: Final = 4  # at step `comments` a fourth of the usual number is shown
SAMPLED_DEFAULT: Final = 20  # per second, where all are shown otherwise


class Pressure:
    def __init__(self, now: float) -> None:
        self._late: deque[float] = deque(maxlen=TURNS)
        self._changed_at = self._pressed_at = now
        self._pressed_since: float | None = None
        self.level = 0  # steps taken
        self.paused_at: float | None = None  # the loop stood still; until it is punctual again
        self.last_pause_at = 0.0

    @property
    def step(self) -> str | None:
        return STEPS[self.level - 1] if self.level else None

    def observe(self, late_s: float, buffered: float, now: float) -> bool:
        """One look: how late the loop was, and how full the buffers are (0–1). True when the step changed."""
        self._late.append(late_s)
        if late_s >= PAUSE_S:
            self.paused_at = self.last_pause_at = now
        elif self.paused_at is not None and late_s < JOIN_LATE_S:
            self.paused_at = None
        typical = median(self._late) if len(self._late) == TURNS else 0.0
        before = self.level
        if typical > LATE_S or buffered > BUFFERS_HIGH:
            self._pressed_at = now
            self._pressed_since = now if self._pressed_since is None else self._pressed_since
            if self.level < len(STEPS) and now - max(self._pressed_since, self._changed_at) >= UP_AFTER_S:
                self.level += 1
                self._changed_at = now
            return self.level != before
        self._pressed_since = None
        if typical > CALM_LATE_S:
            self._pressed_at = now
        elif self.level and now - max(self._pressed_at, self._changed_at) >= DOWN_AFTER_S:
            self.level -= 1
            self._changed_at = now
        return self.level != before

    def gives_up(self, what: str) -> bool:
        return self.level > STEPS.index(what)

    def comments_per_s(self, usual: int) -> int:
        """What a show may put on screens each second now; 0 for all."""
        if not self.gives_up("comments"):
            return usual
        return max(1, (usual or SAMPLED_DEFAULT) // SAMPLED_SHARE)
