"""Which comments are shown when more come than anyone can read. All are kept in the record.

The rule, applied to what waits for one beat: what the show may put on screens is `per_s` comments a second,
saved up for at most one second. The host's are always shown and cost nothing. Then buyers', then plan
members', then registered viewers', then guests', each in full while the budget lasts; the first group that
does not fit is shown evenly spaced over the beat. A viewer's own comment is drawn by their page from its
`ok`, and a pinned one is a state: neither needs to be in the sample.
"""

from __future__ import annotations

from collections.abc import Sequence

from live.log import Entry

CALM_S = 5.0  # without a comment left out: sampling is over


class Sampler:
    """One show's budget on this node."""

    def __init__(self, per_s: int, now: float) -> None:
        self.per_s = per_s  # 0 shows all
        self._saved, self._saved_at = float(per_s), now
        self._left_out_at: float | None = None
        self._posted, self._counted_from = 0, now
        self.posted_per_s = 0

    def choose(self, entries: Sequence[Entry], now: float, per_s: int) -> int:
        """Mark what is not shown by `sampled`; how many. `per_s` is the budget of this moment."""
        comments = [entry for entry in entries if entry.rank]
        self._count(len(comments), now)
        if not per_s:
            return 0
        self._saved = min(float(per_s), self._saved + (now - self._saved_at) * per_s)
        self._saved_at = now
        if len(comments) <= self._saved:
            self._saved -= len(comments)
            return 0
        left_out = 0
        for rank in sorted({entry.rank for entry in comments}):
            group = [entry for entry in comments if entry.rank == rank]
            shown = min(len(group), int(self._saved))
            self._saved -= shown
            for index, entry in enumerate(group):
                # `shown` of them, evenly: the index crosses a multiple of len/shown.
                if (index + 1) * shown // len(group) == index * shown // len(group):
                    entry.sampled = True
                    left_out += 1
        if left_out:
            self._left_out_at = now
        return left_out

    def _count(self, comments: int, now: float) -> None:
        self._posted += comments
        if now - self._counted_from >= 1.0:
            self.posted_per_s = round(self._posted / (now - self._counted_from))
            self._posted, self._counted_from = 0, now

    def active(self, now: float) -> bool:
        """Whether comments were left out within the last `CALM_S`."""
        return self._left_out_at is not None and now - self._left_out_at < CALM_S
