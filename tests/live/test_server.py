"""The serving process: what it does once before the first request."""

from __future__ import annotations

import gc

from live.server import GC_THRESHOLDS, settle_memory


def test_what_was_made_before_serving_is_not_looked_at_again_by_the_collector() -> None:
    before = gc.get_threshold()
    try:
        settle_memory()
        assert gc.get_freeze_count() > 10_000
        assert gc.get_threshold() == GC_THRESHOLDS
        made = [[index] for index in range(5)]
        assert any(known is made for known in gc.get_objects())  # what comes later is
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
