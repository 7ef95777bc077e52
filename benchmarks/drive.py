"""Let a robot with one camera drive through worlds never trained on, and count what it hits.

    MUJOCO_GL=egl python benchmarks/drive.py --episodes 50 --json out/bench/drive.json

Three robots drive every episode: with this package's obstacles from the network's picture
(`ours`), with the same geometry from perfect labels, depth and normals (`ground_truth`), and with
the usual recipe, the same network's depth cut 0.2 m above the nominal floor (`height_cut`).
Finished drives are kept in `--work` and not driven again; a second call goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

# Both are read when the libraries load.
os.environ.setdefault('MUJOCO_GL', 'egl')
os.environ.setdefault('OMP_NUM_THREADS', '1')

import cv2
import typer
from driving.episode import (
    CONTROL_S,
    Mount,
    Task,
    drive,
    geometry_config,
    make_task,
    naive_eyes,
    our_eyes,
    true_eyes,
)
from driving.film import Film
from driving.planner import Robot
from machine import describe_machine, write_result
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mtl_perception.bundle import ModelBundle
from mtl_perception.engines import open_engine
from mtl_perception.geometry.obstacles import ClassRoles
from mtl_perception.perceiver import Perceiver
from mtl_training.worlds.parts import CLASSES
from mtl_training.worlds.world import World

VARIANTS = ('ours', 'ground_truth', 'height_cut')
# Training draws its worlds from seed 0 upwards, some thousands at most. The geometry, the planner
# and their constants were made on worlds from 6 to 18 million on.
FIRST_SEED = 19_000_000


def code_sha256() -> str:
    """Return the digest of the code that makes the worlds, sees and drives."""
    root = Path(__file__).resolve().parent.parent
    paths = [Path(__file__), *(root / 'benchmarks' / 'driving').glob('*.py')]
    paths += (root / 'mtl_perception').glob('*.py')
    for folder in ('mtl_perception/engines', 'mtl_perception/geometry', 'mtl_training/worlds'):
        paths += (root / folder).rglob('*.py')
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.relative_to(root).as_posix().encode() + b'\0' + path.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Plan:
    """What all episodes share; drives of another plan do not count.

    Attributes:
        bundle: path of the network.
        model_sha256: of its graph.
        robot: that drives.
        mount: of its camera.
        variants: names from VARIANTS.
        limit_s: longest drive; None allows what the length of the way asks for.
        code: digest of the code when the drives began.
    """

    bundle: str
    model_sha256: str
    robot: Robot = field(default_factory=Robot)
    mount: Mount = field(default_factory=Mount)
    variants: tuple[str, ...] = VARIANTS
    limit_s: float | None = None
    code: str = field(default_factory=code_sha256)

    def fingerprint(self) -> str:
        """Return what a kept drive must match."""
        return json.dumps(asdict(self) | {'bundle': None})


def run_world(plan: Plan, seed: int, film: Path | None) -> list[dict]:
    """Drive one world's episode with every robot; an empty list where nobody could drive."""
    cv2.setNumThreads(1)
    world = World(seed)
    try:
        task = make_task(world, plan.robot)
        if task is None:
            return [{'seed': seed, 'variant': None, 'plan': plan.fingerprint()}]
        return [
            {**_run(plan, world, task, name, film), 'plan': plan.fingerprint()}
            for name in plan.variants
        ]
    finally:
        world.close()


def _run(plan: Plan, world: World, task: Task, variant: str, film: Path | None) -> dict[str, Any]:
    robot, mount = plan.robot, plan.mount
    if variant == 'ground_truth':
        roles = ClassRoles.from_names(CLASSES)
        eyes = true_eyes(geometry_config(robot, mount, roles, scale='off'), mount)
    else:
        bundle = ModelBundle.load(plan.bundle)
        perceiver = Perceiver(open_engine(bundle, threads=1), bundle)
        if variant == 'ours':
            roles = ClassRoles.from_names([spec.name for spec in bundle.classes])
            config = geometry_config(robot, mount, roles, scale='apply')
            eyes = our_eyes(perceiver, config, mount, task.seed)
        else:
            eyes = naive_eyes(perceiver, robot, mount, task.seed)
    if film is None:
        return drive(world, task, eyes, variant, robot, mount, limit_s=plan.limit_s).as_dict()
    recorder = Film(film / f'{variant}_{task.seed}.mp4', world, task, robot, mount, 1 / CONTROL_S)
    try:
        outcome = drive(
            world, task, eyes, variant, robot, mount, recorder.add, limit_s=plan.limit_s
        )
        return outcome.as_dict()
    finally:
        recorder.close()


def summarise(drives: list[dict]) -> dict[str, Any]:
    """Return, per variant, the share of successes and the collisions per 100 m."""
    result: dict[str, Any] = {'episodes': len({drive['seed'] for drive in drives})}
    for variant in VARIANTS:
        of = [drive for drive in drives if drive['variant'] == variant]
        metres = sum(drive['metres'] for drive in of)
        collisions = sum(drive['collisions'] for drive in of)
        result[variant] = {
            'success': sum(drive['success'] for drive in of) / max(len(of), 1),
            'reached': sum(drive['reached'] for drive in of) / max(len(of), 1),
            'collisions_per_100m': 100 * collisions / metres if metres else None,
            'collisions': collisions,
            'metres': round(metres, 1),
        }
    return result


def load_drives(path: Path, plan: Plan) -> dict[int, list[dict]]:
    """Return kept drives of this plan by seed; a line cut off in the middle counts as missing."""
    kept: dict[int, list[dict]] = {}
    if not path.is_file():
        return kept
    for line in path.read_text().splitlines():
        try:
            drives = json.loads(line)
        except json.JSONDecodeError:
            continue
        if drives and drives[0]['plan'] == plan.fingerprint():
            kept[drives[0]['seed']] = drives
    return kept


def run_episodes(
    plan: Plan,
    episodes: int,
    work: Path,
    *,
    workers: int = 1,
    film: bool = False,
    first_seed: int = FIRST_SEED,
) -> dict[str, Any]:
    """Drive until `episodes` worlds are done, keeping each as it ends; return the summary."""
    work.mkdir(parents=True, exist_ok=True)
    path = work / 'drives.jsonl'
    done = load_drives(path, plan)
    kept = set(done)

    def driven() -> list[int]:
        return sorted(seed for seed in done if done[seed][0]['variant'] is not None)[:episodes]

    with (
        ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool,
        path.open('a') as log,
        Progress(transient=True) as progress,
    ):
        bar = progress.add_task('episodes', total=episodes)
        seed, running = first_seed, {}
        while True:
            count = len(driven())
            progress.update(bar, completed=count)
            if count >= episodes:
                break
            while len(running) < min(workers, episodes - count):
                if seed not in done:
                    running[pool.submit(run_world, plan, seed, None)] = seed
                seed += 1
            finished = next(as_completed(running))
            done[running.pop(finished)] = finished.result()
            drives = finished.result()
            log.write(json.dumps(drives) + '\n')
            log.flush()
        # Some worlds have no way to drive, so which episode is the first is known at the end; it
        # goes the same way again.
        if film and driven()[0] not in kept:
            pool.submit(run_world, plan, driven()[0], work).result()
    return summarise([drive for seed in driven() for drive in done[seed]])


def main(
    episodes: Annotated[int, typer.Option(help='Worlds to drive through.')] = 50,
    bundle: Annotated[str, typer.Option(help='Folder or name of the bundle.')] = 'pvt_v2_b0',
    json_path: Annotated[Path, typer.Option('--json')] = Path('out/bench/drive.json'),
    work: Annotated[Path, typer.Option(help='Where finished drives and films are kept.')] = Path(
        'out/bench/drive'
    ),
    workers: Annotated[int, typer.Option(help='Processes.')] = 1,
    film: Annotated[bool, typer.Option(help='Film the first episode.')] = True,
) -> None:
    """Drive, and write the summary."""
    machine = describe_machine()
    loaded = ModelBundle.load(bundle)
    plan = Plan(str(loaded.path), loaded.model_sha256)
    result = run_episodes(plan, episodes, work, workers=workers, film=film)
    table = Table('robot', 'success', 'reached', 'collisions / 100 m', 'metres')
    for variant in VARIANTS:
        row = result[variant]
        per_100m = row['collisions_per_100m']
        table.add_row(
            variant,
            f'{row["success"]:.0%}',
            f'{row["reached"]:.0%}',
            '-' if per_100m is None else f'{per_100m:.1f}',
            f'{row["metres"]:.0f}',
        )
    Console().print(table)
    write_result(
        json_path,
        result
        | {
            'success_means': 'the goal was reached in time and nothing was touched',
            'bundle': loaded.name,
            'model_sha256': loaded.model_sha256,
            'first_seed': FIRST_SEED,
            'robot': asdict(plan.robot),
            'camera': asdict(plan.mount),
            'machine': machine,
        },
    )


if __name__ == '__main__':
    typer.run(main)
