"""Whether a store is worth asking: who asks in the moment after it failed to answer is told so at once.

A frozen store makes every call wait for its whole timeout. After the first such wait nobody else waits:
calls fail at once for REST_S, then one goes and looks while the others still fail, and all follow its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from membership.refusal import Away

REST_S: Final = 0.3


class Circuit:
    """Of one store, or one partition of it. `failures` are the errors that mean it did not answer."""

    __slots__ = ("_failing", "_failures", "_looking", "_now", "_rest_until")

    def __init__(self, now: Callable[[], float], failures: tuple[type[BaseException], ...]) -> None:
        self._now = now
        self._failures = failures
        self._failing = self._looking = False
        self._rest_until = 0.0

    def check(self) -> None:
        """Raises Away while asking is of no use."""
        if self._failing and (self._looking or self._now() < self._rest_until):
            raise Away(retry_ms=1000)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around one call. Raises Away without making it while asking is of no use."""
        self.check()
        looks = self._looking = self._failing
        try:
            yield
        except self._failures:
            self._failing, self._rest_until = True, self._now() + REST_S
            raise
        except Exception:
            self._failing = False  # an answer, if not the one hoped for
            raise
        else:
            self._failing = False
        finally:
            if looks:
                self._looking = False
