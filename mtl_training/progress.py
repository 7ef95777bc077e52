"""What a person sees of a training: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_EVERY_S = 30.0


class Reporter:
    """Progress of one training; silent without a console."""

    def __init__(self, console: Console | None, name: str) -> None:
        self.console = console
        self.name = name
        self._bar: Progress | None = None
        self._smooth: dict[str, float] = {}
        self._last = (time.monotonic(), 0)
        self._steps_here = 0

    def __enter__(self) -> Reporter:
        if self.console is not None and self.console.is_terminal:
            self._bar = Progress(
                TextColumn('{task.description}'),
                BarColumn(),
                TextColumn('{task.percentage:5.1f} %'),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn('{task.fields[figures]}'),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=1.0, figures='')
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(
        self, step: int, progress: float, losses: dict[str, float], size: tuple[int, int]
    ) -> None:
        """Show the losses, smoothed over about fifty steps."""
        for name, value in losses.items():
            old = self._smooth.get(name, value)
            self._smooth[name] = 0.98 * old + 0.02 * value
        self._steps_here += 1
        figures = ' '.join(f'{name} {value:.3f}' for name, value in self._smooth.items())
        if self._bar is not None:
            text = f'step {step} {size[0]}x{size[1]} {figures}'
            self._bar.update(self._task, completed=progress, figures=text)
        elif self.console is not None:
            then, steps = self._last
            passed = time.monotonic() - then
            if passed > LOG_EVERY_S:
                seconds = passed / (self._steps_here - steps)
                self.console.print(
                    f'{self.name} {100 * progress:.1f} % step {step} {size[0]}x{size[1]} '
                    f'{seconds:.2f} s/step {figures}',
                    highlight=False,
                )
                self._last = (time.monotonic(), self._steps_here)

    def evaluated(self, step: int, score: float, figures: dict[str, Any]) -> None:
        """Print the held-out figures of one evaluation."""
        if self.console is None:
            return
        shown = {
            'segmentation': ('miou', 'pixacc'),
            'depth': ('abs_err', 'rel_err'),
            'normals': ('mean', 'median'),
            'detection': ('ap', 'ap50'),
            'classification': ('accuracy',),
        }
        parts = [
            f'{name} {figures[task][name]:.4f}'
            for task, names in shown.items()
            if task in figures
            for name in names
            if figures[task][name] is not None
        ]
        self.console.print(
            f'held out at step {step}: {" ".join(parts)} score {score:.4f}', highlight=False
        )
