"""Compare the evaluation's throughput with the bare engine's, and watch its memory.

    python benchmarks/evaluation.py --json out/bench/evaluation.json

The engine is measured alone, right before and right after the evaluation; the ratio is against
the mean of both, which have as many threads as the evaluation's own engine. Decoding and scoring
run beside inference, so they are free where a core is left for them: with fewer engine threads
than cores the ratio says how well the three overlap; with as many threads as cores it says what
decoding and scoring cost in all. Both are given.

With `--soak N` a recording of N frames is evaluated instead (the sample, looped) and the growth
of memory after the first tenth is given; exits with 1 where it is more than 50 MB. `--precision
auto` makes it as fast as the machine can.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from machine import describe_machine, write_result
from rich.console import Console

from mtl_perception.evaluation.run import Settings, combine, evaluate_recording
from mtl_perception.perceiver import Perceiver
from mtl_perception.recordings import RecordedFrame, open_recording

MAX_GROWTH_MB = 50.0
ROOT = Path(__file__).resolve().parent.parent


class Looped:
    """A recording again and again until there are `frames`, its time running on."""

    def __init__(self, path: Path, frames: int) -> None:
        self._path, self._frames = path, frames
        first = open_recording(path)
        self.name, self.path = first.name, first.path
        self.sources, self.topics = first.sources, first.topics
        self.skipped, self.remarks = first.skipped, first.remarks

    def __len__(self) -> int:
        return self._frames

    def frames(self) -> Iterator[RecordedFrame]:
        """Yield the frames of every pass, later by one pass each time."""
        done, later_ns = 0, 0
        while True:
            last_ns = first_ns = None
            for frame in open_recording(self._path).frames():
                stamp = frame.frame.stamp_ns
                first_ns = stamp if first_ns is None else first_ns
                last_ns = stamp
                moved = replace(frame.frame, stamp_ns=stamp + later_ns)
                yield replace(frame, frame=moved, id=str(stamp + later_ns))
                done += 1
                if done == self._frames:
                    return
            if first_ns is None or last_ns is None:
                raise ValueError(f'{self._path} holds no frames to loop')
            later_ns += last_ns - first_ns + 100_000_000


def engine_fps(perceiver: Perceiver, frames: list[RecordedFrame], seconds: float) -> float:
    """Return pictures per second of the engine alone, on its own input buffer."""
    layout = perceiver.layout(frames[0].frame.pixels.shape[:2])
    perceiver.perceive(frames[0].frame)
    images = perceiver.engine.input_buffer(1, layout.network)
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds or count < 5:
        perceiver.engine.infer(images)
        count += 1
    return count / spent


def measure(path: Path, settings: Settings, frames: int, seconds: float) -> dict[str, Any]:
    """Return the evaluation's throughput beside the bare engine's."""
    perceiver = settings.open()
    some = [frame for frame, _ in zip(open_recording(path).frames(), range(5), strict=False)]
    before = engine_fps(perceiver, some, seconds)
    with tempfile.TemporaryDirectory() as folder:
        recording = Looped(path, frames)
        shard = evaluate_recording(recording, settings, perceiver, Path(folder) / 'shard')
        results = combine([shard], perceiver.bundle).results
    after = engine_fps(perceiver, some, seconds)
    engine = (before + after) / 2
    evaluation = results['times']['frames_per_second']
    perceiver.close()
    return {
        'engine_threads': settings.threads,
        'frames': results['frames'],
        'engine': results['engine'],
        'engine_fps': engine,
        'engine_fps_before_and_after': [before, after],
        'evaluation_fps': evaluation,
        'ratio': evaluation / engine,
        'latency_ms': results['times']['latency_ms'],
    }


def soak(path: Path, settings: Settings, frames: int) -> dict[str, Any]:
    """Evaluate a long recording; return how memory grew after its first tenth."""
    process = psutil.Process()
    samples: list[float] = []

    def watch(done: int, total: int) -> None:
        if done % max(1, frames // 100) == 0:
            samples.append(process.memory_info().rss / 1e6)

    perceiver = settings.open()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        target = Path(folder) / 'shard'
        evaluate_recording(Looped(path, frames), settings, perceiver, target, progress=watch)
        seconds = time.perf_counter() - started
    perceiver.close()
    settled = samples[len(samples) // 10 :]
    return {
        'frames': frames,
        'seconds': seconds,
        'memory_mb': [round(value, 1) for value in samples],
        'growth_mb': max(settled) - settled[0],
    }


def _counts(threads: str, cores: int) -> list[int]:
    given = [int(count) for count in threads.split(',') if count]
    return given or sorted({max(1, cores - 1), cores})


def main(
    recording: Annotated[Path, typer.Option(help='What to evaluate.')] = ROOT / 'samples/room',
    bundle: Annotated[str, typer.Option(help='Folder or name of the bundle.')] = 'pvt_v2_b0',
    engine: Annotated[str, typer.Option(help='Of the bundle.')] = 'auto',
    precision: Annotated[str, typer.Option(help='Of the engine.')] = 'float32',
    threads: Annotated[
        str, typer.Option(help='Of the engine, one run for each; default: a core less, all cores.')
    ] = '',
    frames: Annotated[int, typer.Option(min=10, help='Of the recording, looped.')] = 300,
    seconds: Annotated[
        float, typer.Option(help='To measure the bare engine, twice a run.')
    ] = 10.0,
    soak_frames: Annotated[
        int, typer.Option('--soak', help='Evaluate that many frames and watch memory.')
    ] = 0,
    json_file: Annotated[Path | None, typer.Option('--json', help='Write the figures.')] = None,
) -> None:
    """Measure the evaluation on this machine."""
    settings = Settings(bundle, engine=engine, precision=precision, gallery=True)
    console = Console(highlight=False)
    result: dict[str, Any] = {'machine': describe_machine()}
    cores = len(os.sched_getaffinity(0))
    if soak_frames:
        result['soak'] = soak(recording, settings, soak_frames)
        growth, took = result['soak']['growth_mb'], result['soak']['seconds']
        console.print(
            f'{soak_frames} frames in {took:.0f} s: memory grew by {growth:.1f} MB '
            f'(at most {MAX_GROWTH_MB:.0f})'
        )
    else:
        result['runs'] = []
        for count in _counts(threads, cores):
            run = measure(recording, replace(settings, threads=count), frames, seconds)
            result['runs'].append(run)
            console.print(
                f'{count} of {cores} cores for the engine: evaluation '
                f'{run["evaluation_fps"]:.1f} frames/s, bare engine {run["engine_fps"]:.1f}: '
                f'{100 * run["ratio"]:.0f} %'
            )
    if json_file is not None:
        write_result(json_file, result)
    if soak_frames and result['soak']['growth_mb'] > MAX_GROWTH_MB:
        raise typer.Exit(1)


if __name__ == '__main__':
    typer.run(main)
