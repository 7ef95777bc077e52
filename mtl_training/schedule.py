"""How far a training is, and what follows from it: learning rate, picture size, the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from mtl_training.config import ScheduleSettings, StageSettings


class Clock:
    """Progress of one training, by steps or by elapsed training time.

    Time counts from the start of this process on top of what earlier ones have used, so an
    interrupted run neither loses nor gains minutes. It is read once a step (`tick`) and stands
    still in between: all decisions of one step, in all processes, see the same moment.

    Args:
        settings: the schedule.
        elapsed_s: training time in seconds used before this process.
        now: a monotonic clock in seconds.
    """

    def __init__(
        self,
        settings: ScheduleSettings,
        elapsed_s: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.elapsed_s = elapsed_s
        self._now = now
        self._start = now() - elapsed_s

    def tick(self, agree: Callable[[float], float] = float) -> None:
        """Read the time; `agree` turns it into the one that all processes use."""
        self.elapsed_s = agree(self._now() - self._start)

    def progress(self, step: int) -> float:
        """Return how much of the training lies before `step`, 0..1."""
        if self.settings.steps is not None:
            return min(1.0, step / self.settings.steps)
        return min(1.0, self.elapsed_s / (60 * self.settings.minutes))

    def finished(self, step: int) -> bool:
        """Say whether no step is left."""
        return self.progress(step) >= 1.0

    def stage(self, step: int) -> StageSettings:
        """Return the picture size for `step`."""
        progress = self.progress(step)
        return next(
            (stage for stage in self.settings.stages if progress < stage.until),
            self.settings.stages[-1],
        )

    def learning_rate(self, step: int) -> float:
        """Return the factor of the learning rate: linear warm-up, then the decay."""
        settings, progress = self.settings, self.progress(step)
        warmup = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
        if settings.decay == 'cosine':
            return warmup * 0.5 * (1 + math.cos(math.pi * progress))
        if settings.decay == 'step':
            return warmup * settings.step_decay ** math.floor(progress / settings.step_every)
        return warmup

    def evaluations_due(self, step: int) -> int:
        """Return how many of the evenly spread evaluations lie at or before `step`."""
        return math.floor(self.progress(step) * self.settings.evaluations + 1e-9)
