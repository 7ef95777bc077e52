"""Run the node for a long time and watch that it neither grows nor leaks.

    python benchmarks/soak.py --minutes 60 --json out/bench/soak.json

Exits with 1 when memory or open files grew after the warm-up, or when a picture is unaccounted
for.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from feed import Feed
from machine import describe_machine, write_result
from rich.console import Console
from rich.progress import Progress

from mtl_perception.bundle import ModelBundle
from mtl_perception.ros.live import LiveResult, perception_program, replay_through
from mtl_perception.ros.sources import open_source
from mtl_perception.shared import shared_folder

# Allocators and caches have found their size by then, and the queues of pictures, which only fill
# while the node is held up, have been full.
WARM_UP_SHARE = 0.2
HELD_UP_S = 1.0
MAX_GROWTH_MIB = 5.0


@dataclass
class Watch:
    """Samples a process' resident memory and open descriptors until it ends.

    Once it may hold the process up, so that its queues are full for a moment.

    Attributes:
        period_s: between samples.
        hold_up_after_s: when it does, from the start; never by default.
        times_s: since the start.
        memory_mib: resident memory.
        descriptors: open files, sockets and shared memory.
    """

    period_s: float
    hold_up_after_s: float = math.inf
    times_s: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def start(self, pid: int) -> None:
        """Watch a process from a thread of its own."""
        threading.Thread(target=self._run, args=(psutil.Process(pid),), daemon=True).start()

    def _run(self, process: psutil.Process) -> None:
        began, held_up = time.monotonic(), False
        while True:
            try:
                if not held_up and time.monotonic() - began > self.hold_up_after_s:
                    held_up = True
                    process.suspend()
                    time.sleep(HELD_UP_S)
                    process.resume()
                memory, descriptors = process.memory_info().rss, process.num_fds()
            except psutil.Error:
                return
            self.times_s.append(time.monotonic() - began)
            self.memory_mib.append(memory / 2**20)
            self.descriptors.append(descriptors)
            time.sleep(self.period_s)

    def growth(self) -> dict[str, float]:
        """Return how much memory and descriptors grew between the warm-up and the end.

        Compared are medians of the first and the last tenth of what follows the warm-up; the very
        last samples, in which the node shuts down, are left out.
        """
        first = int(len(self.times_s) * WARM_UP_SHARE)
        memory, descriptors = self.memory_mib[first:-2], self.descriptors[first:-2]
        tenth = max(1, len(memory) // 10)
        return {
            'memory_mib': round(float(np.median(memory[-tenth:]) - np.median(memory[:tenth])), 2),
            'descriptors': int(np.median(descriptors[-tenth:]) - np.median(descriptors[:tenth])),
        }


def complaints(result: LiveResult, growth: dict[str, float]) -> list[str]:
    """Return what is wrong, one sentence each."""
    found = []
    if growth['memory_mib'] > MAX_GROWTH_MIB:
        found.append(f'memory grew by {growth["memory_mib"]} MiB, allowed are {MAX_GROWTH_MIB}')
    if growth['descriptors'] > 0:
        found.append(f'{growth["descriptors"]} more descriptors are open than after the warm-up')
    lost = result.frames_in - result.frames_out - sum(result.dropped.values())
    if lost:
        found.append(f'{lost} pictures neither came out nor were counted as dropped')
    return found


def main(
    minutes: Annotated[float, typer.Option(help='Of playing.')] = 60.0,
    fps: Annotated[float, typer.Option(help='Pictures per second.')] = 60.0,
    recording: Annotated[
        Path | None, typer.Option(help='Where the pictures come from; default: samples/room.')
    ] = None,
    split: Annotated[str | None, typer.Option(help='Split of a data set.')] = None,
    bundle: Annotated[str, typer.Option(help='Folder or name of the model bundle.')] = 'pvt_v2_b0',
    json: Annotated[Path, typer.Option(help='Result.')] = Path('out/bench/soak.json'),
) -> None:
    """Play for a long time and judge."""
    console = Console()
    machine = describe_machine()
    loaded = ModelBundle.load(bundle)
    source = open_source(recording or shared_folder('samples') / 'room', split=split)
    count = round(minutes * 60 * fps)
    watch = Watch(
        period_s=max(0.1, min(5.0, minutes * 60 / 200)),
        hold_up_after_s=minutes * 60 * WARM_UP_SHARE / 2,
    )
    with Progress(console=console) as progress:
        task = progress.add_task(f'{minutes:g} minutes at {fps:g} Hz', total=count)
        result = replay_through(
            perception_program(loaded),
            Feed(source, fps=fps, count=count),
            on_picture=lambda _: progress.advance(task),
            on_start=watch.start,
        )
    growth = watch.growth()
    wrong = complaints(result, growth)
    summary: dict[str, Any] = result.summary() | {
        'bundle': loaded.name,
        'minutes': minutes,
        'growth': growth,
        'complaints': wrong,
        'memory': {
            'times_s': [round(one, 1) for one in watch.times_s],
            'mib': [round(one, 1) for one in watch.memory_mib],
        },
        'machine': machine,
    }
    write_result(json, summary)
    console.print(
        f'{result.frames_out} of {result.frames_in} pictures came out at {result.fps:.1f} fps, '
        f'{sum(result.dropped.values())} dropped {result.dropped}; memory '
        f'{growth["memory_mib"]:+.1f} MiB, descriptors {growth["descriptors"]:+d}'
    )
    for one in wrong:
        console.print(one, style='red')
    if wrong:
        raise typer.Exit(1)


if __name__ == '__main__':
    typer.run(main)
