"""What the node counts and measures: frames by fate, durations, rates, its own CPU and memory."""

from __future__ import annotations

import resource
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mtl_perception.ros.conversions import Reason

STAGES = ('queue', 'decode', 'resize', 'infer', 'post', 'publish')
"""Stages of a frame's way in their order."""

_WINDOW = 300
_PERCENTILES = (50, 95, 99)
_MIB = 1 << 20
_MEMORY_PERIOD_S = 0.5


@dataclass(frozen=True)
class FrameCounts:
    """Frames of one camera since activation: received = published + dropped + under way."""

    received: int = 0
    published: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def under_way(self) -> int:
        """Return how many frames wait or are being processed."""
        return self.received - self.published - sum(self.dropped.values())


class FrameCounter:
    """Counts every frame's fate; safe for the executor and the worker at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Start from zero."""
        with self._lock:
            self._received = self._published = 0
            self._dropped: Counter[str] = Counter()

    def receive(self) -> None:
        """Count a frame that arrived."""
        with self._lock:
            self._received += 1

    def publish(self) -> None:
        """Count a frame whose predictions went out."""
        with self._lock:
            self._published += 1

    def drop(self, reason: Reason) -> None:
        """Count a frame that was dropped."""
        with self._lock:
            self._dropped[reason] += 1

    def snapshot(self) -> FrameCounts:
        """Return consistent counts."""
        with self._lock:
            return FrameCounts(self._received, self._published, dict(self._dropped))


class Durations:
    """The last few hundred durations of every stage, in milliseconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: dict[str, deque[float]] = {}

    def add(self, durations_ms: Mapping[str, float]) -> None:
        """Take in one frame's durations by stage."""
        with self._lock:
            for stage, duration in durations_ms.items():
                self._samples.setdefault(stage, deque(maxlen=_WINDOW)).append(duration)

    def percentiles(self) -> dict[str, tuple[float, float, float]]:
        """Return p50, p95 and p99 of every stage that has samples."""
        with self._lock:
            samples = {stage: list(values) for stage, values in self._samples.items()}
        return {
            stage: tuple(float(p) for p in np.percentile(values, _PERCENTILES))
            for stage, values in samples.items()
        }

    def reset(self) -> None:
        """Forget all samples."""
        with self._lock:
            self._samples.clear()


class Rate:
    """Events per second over a sliding window, on the monotonic clock."""

    def __init__(self, window_s: float = 3.0) -> None:
        self._window_ns = int(window_s * 1e9)
        self._times: deque[int] = deque(maxlen=1024)

    def tick(self, now_ns: int) -> None:
        """Count an event."""
        self._times.append(now_ns)

    def hertz(self, now_ns: int) -> float:
        """Return the rate; 0 with fewer than two events in the window."""
        recent = [t for t in tuple(self._times) if now_ns - t <= self._window_ns]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) * 1e9 / max(recent[-1] - recent[0], 1)

    def reset(self) -> None:
        """Forget all events."""
        self._times.clear()


class ProcessLoad:
    """CPU time and resident memory of this process."""

    def __init__(self) -> None:
        self._last = (time.monotonic(), self._cpu_s())
        self._memory = (float('-inf'), 0.0)

    def cpu_cores(self) -> float:
        """Return CPU seconds per second since the last call."""
        now, used = time.monotonic(), self._cpu_s()
        before, used_before = self._last
        if now - before < 1e-3:
            return 0.0
        self._last = (now, used)
        return (used - used_before) / (now - before)

    def memory_mib(self) -> float:
        """Return resident memory, looked up twice a second; 0 where the system does not tell."""
        now = time.monotonic()
        if now - self._memory[0] >= _MEMORY_PERIOD_S:
            try:
                pages = int(Path('/proc/self/statm').read_text().split()[1])
            except (OSError, IndexError, ValueError):
                pages = 0
            self._memory = (now, pages * resource.getpagesize() / _MIB)
        return self._memory[1]

    @staticmethod
    def _cpu_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime


def merge_counts(counts: Iterable[FrameCounts]) -> FrameCounts:
    """Return the sum over cameras."""
    received = published = 0
    dropped: Counter[str] = Counter()
    for count in counts:
        received += count.received
        published += count.published
        dropped.update(count.dropped)
    return FrameCounts(received, published, dict(dropped))
