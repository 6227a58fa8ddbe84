"""Instruments, in Prometheus' text form at /metrics. Names carry their unit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

Counted = Callable[[], Iterable[tuple[str, int, int]]]  # name, calls, most at once


class _Scripts(Collector):
    """Calls of the store's scripts."""

    def __init__(self, counted: Counted) -> None:
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            "companion_script_calls", "Calls of the store's scripts", labels=["script"]
        )
        at_once = GaugeMetricFamily(
            "companion_script_calls_at_once", "Most calls of a script under way at once", labels=["script"]
        )
        for name, number, most in self._counted():
            calls.add_metric([name], number)
            at_once.add_metric([name], most)
        yield from (calls, at_once)


class Metrics:
    """One set per process, in a registry of its own; also holds the tasks that run beside the loop."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"namespace": "companion", "registry": self.registry}
        self.viewers = Gauge("viewers", "Open sockets that have joined", **made)
        self.joins = Counter("joins", "Answered hellos", ["outcome"], **made)
        self.closes = Counter("closes", "Closed sockets", ["code"], **made)
        self.refused_upgrades = Counter("refused_upgrades", "Upgrades answered 503", **made)
        self.commands = Counter("commands", "Commands answered", ["type", "outcome"], **made)
        self.frames = Counter("frames", "Shared frames written", **made)
        self.events = Counter("events", "Log entries fanned out", **made)
        self.bytes_out = Counter("bytes_out", "Bytes of shared frames written", **made)
        self.skipped = Counter("skipped_frames", "Frames a slow viewer did not get", ["kind"], **made)
        self.sampled = Counter("sampled_comments", "Comments left out of a sample", **made)
        self.flush = Histogram(
            "flush_seconds",
            "From the first to the last viewer of one beat",
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
            **made,
        )
        self.stalled = Gauge("stalled_viewers", "Viewers above the high mark of their buffer", **made)
        self.buffered_bytes = Gauge("buffered_bytes", "Bytes that viewers have yet to read", **made)
        self.degraded = Gauge(
            "degraded_step", "0 all is shown, 1 no likes, 2 fewer comments, 3 no presence", **made
        )
        self.loop_late = Gauge("loop_late_seconds", "How late the loop was at its last look", **made)
        self.log_lag = Gauge(
            "log_lag_seconds", "Since a read of a partition's log was last answered", ["partition"], **made
        )
        self.beat_length = Gauge(
            "beat_seconds", "Shortest time between two frames, of the show told last", **made
        )
        self.healed = Counter("healed", "Slow viewers brought up to date from the ring", **made)
        self.snapshots = Counter("snapshots", "Joins answered by snapshot", **made)
        self.replays = Counter("replays", "Joins answered by replay", **made)
        self.log_reads = Counter(
            "log_reads",
            "Reads from Redis: a show's beginning, what was missed, changed states",
            ["why"],
            **made,
        )
        self.loop_lag = Histogram(
            "loop_lag_seconds",
            "How late the loop was",
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0),
            **made,
        )
        self.http = Histogram(
            "http_seconds",
            "Time to answer a request",
            ["route", "status"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
            **made,
        )
        self.log_up = Gauge("log_up", "1 while the log can be read", **made)
        self.dropped_behaviour = Counter("dropped_behaviour", "Behaviour records over the bound", **made)
        self._tasks: set[asyncio.Task[Any]] = set()

    def watch_scripts(self, counted: Counted) -> None:
        """Show how often each of the store's scripts was called, read when somebody looks."""
        self.registry.register(_Scripts(counted))

    def hold(self, task: asyncio.Task[Any]) -> None:
        """Keep a running task from being collected, and let no failure go unseen."""
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            task.get_loop().call_exception_handler(
                {"message": "a task failed", "exception": task.exception(), "task": task}
            )
