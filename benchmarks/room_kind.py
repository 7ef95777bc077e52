"""How well the kind of a room is told by one picture, and by the last seconds of a drive.

    MUJOCO_GL=egl python benchmarks/room_kind.py --rooms 60 --json out/bench/room_kind.json

A robot's camera drives for some seconds through one room of a world never trained on, and the
node's filter (`classification_memory`) averages what its pictures say. Several memories are
measured on the same pictures. Many worlds are too cramped for such a drive: at most four are tried
for each room that is asked for.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

# Both are read when the libraries load.
os.environ.setdefault('MUJOCO_GL', 'egl')
os.environ.setdefault('OMP_NUM_THREADS', '1')

import cv2
import numpy as np
import typer
from machine import describe_machine, write_result
from rich.console import Console
from rich.table import Table

from mtl_perception.bundle import ModelBundle
from mtl_perception.class_filter import ClassFilter
from mtl_perception.engines import open_engine
from mtl_perception.frames import CameraFrame
from mtl_perception.perceiver import Perceiver
from mtl_training.worlds.camera import NYU, Sensor
from mtl_training.worlds.trajectory import plan_drive
from mtl_training.worlds.world import World

# Training draws its worlds from seed 0 upwards; driving is measured from 17 million on.
FIRST_SEED = 20_000_000
ROOM = 'room'


@dataclass(frozen=True)
class Walk:
    """One drive through one room.

    Attributes:
        seed: of the world.
        kind: of the room.
        scores: float32 [T, C], what each picture says.
    """

    seed: int
    kind: str
    scores: np.ndarray


def walk(seed: int, bundle_path: str, frames: int, rate_hz: float) -> Walk | None:
    """Drive through a world's first room; None where it is too cramped for that."""
    cv2.setNumThreads(1)
    bundle = ModelBundle.load(bundle_path)
    perceiver = Perceiver(open_engine(bundle, threads=1), bundle)
    world = World(seed)
    try:
        rng = np.random.default_rng([seed, 31])
        # Heights and tilts as in the pictures that the bundles are tested with.
        height = float(rng.uniform(0.9, 1.5))
        pitch = float(np.clip(rng.normal(-0.2 * (height - 0.3), 0.1), -0.6, 0.3))
        drive = plan_drive(world, rng, frames=frames, rate_hz=rate_hz, height=height, pitch=pitch)
        if drive is None:
            return None
        sensor = Sensor.random(rng)
        scores = []
        for frame in range(len(drive)):
            picture = sensor.develop(world.render(drive.pose(frame), NYU).radiance, rng)
            prediction = perceiver.perceive(CameraFrame(picture, 'rgb8', NYU), {'class_scores'})
            scores.append(prediction.class_scores)
        return Walk(seed, world.rooms[0].kind, np.array(scores))
    finally:
        world.close()


def accuracies(
    walks: list[Walk], bundle: ModelBundle, memory_s: float, rate_hz: float
) -> np.ndarray:
    """Return which pictures' rooms are told right, bool [walks, T], with this memory."""
    part = bundle.manifest.classification.slices[ROOM]
    classes = next(a.classes for a in bundle.attributes if a.name == ROOM)
    right = []
    for one in walks:
        together = ClassFilter(bundle.attributes)
        told = [
            int(np.argmax(together.update(scores, step / rate_hz, memory_s)[part]))
            for step, scores in enumerate(one.scores)
        ]
        right.append(np.array(told) == classes.index(one.kind))
    return np.array(right)


def main(
    bundle: Annotated[str, typer.Option(help='Bundle that tells rooms.')] = 'rooms_five_tasks',
    rooms: Annotated[int, typer.Option(help='Rooms to drive through.')] = 60,
    seconds: Annotated[float, typer.Option(help='Length of each drive.')] = 8.0,
    rate: Annotated[float, typer.Option(help='Pictures per second.')] = 2.0,
    memories: Annotated[str, typer.Option(help='Memories in seconds, with commas.')] = '0,2,5,10',
    first_seed: Annotated[int, typer.Option(help='Seed of the first world.')] = FIRST_SEED,
    workers: Annotated[int, typer.Option(help='Processes.')] = 2,
    json_path: Annotated[Path | None, typer.Option('--json', help='Result file.')] = None,
) -> None:
    """Measure single pictures against the last seconds."""
    console = Console()
    loaded = ModelBundle.load(bundle)
    if ROOM not in {attribute.name for attribute in loaded.attributes}:
        raise typer.BadParameter(
            f'{loaded.name} does not tell the kind of the room: give one that does, such as '
            'rooms_five_tasks'
        )
    frames = round(seconds * rate)
    walks: list[Walk] = []
    with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool:
        seeds = iter(range(first_seed, first_seed + 4 * rooms))
        while len(walks) < rooms:
            chunk = [seed for seed, _ in zip(seeds, range(4 * workers), strict=False)]
            if not chunk:
                break
            jobs = [pool.submit(walk, s, str(loaded.path), frames, rate) for s in chunk]
            walks += [done for job in jobs if (done := job.result()) is not None]
            console.print(f'{len(walks)} of {rooms} rooms', end='\r')
    walks = walks[:rooms]
    if not walks:
        raise SystemExit('every world was too cramped for a drive: ask for more rooms')
    table = Table(title=f'{loaded.name}: kind of room, {len(walks)} rooms, {frames} pictures each')
    for name in ('memory s', 'all pictures', 'last second half', 'last picture'):
        table.add_column(name, justify='right')
    results = {}
    for memory in map(float, memories.split(',')):
        right = accuracies(walks, loaded, memory, rate)
        figures = {
            'all': float(right.mean()),
            'second_half': float(right[:, frames // 2 :].mean()),
            'last': float(right[:, -1].mean()),
        }
        results[memory] = figures
        table.add_row(f'{memory:g}', *(f'{value:.3f}' for value in figures.values()))
    console.print(table)
    if json_path is not None:
        write_result(json_path, {'results': results, 'machine': describe_machine()})


if __name__ == '__main__':
    typer.run(main)
