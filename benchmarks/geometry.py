"""Measure the geometry: its error in worlds never trained on, on NYUv2, and its cost.

    MUJOCO_GL=egl python benchmarks/geometry.py --worlds 20 --json out/bench/geometry.json

With `--bundle` the same figures are taken with what a network sees, and the self-scaled depth of
NYUv2 is compared with the plain one.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault('MUJOCO_GL', 'egl')
os.environ.setdefault('OMP_NUM_THREADS', '1')

import cv2
import numpy as np
import typer
from machine import describe_machine, write_result
from rich.console import Console
from rich.progress import track

from mtl_perception.allocator import keep_freed_memory
from mtl_perception.bundle import ModelBundle
from mtl_perception.datasets import PictureFolder
from mtl_perception.engines import open_engine
from mtl_perception.frames import CameraFrame, Intrinsics, Prediction
from mtl_perception.geometry.backprojection import back_project
from mtl_perception.geometry.floor import FloorPlane
from mtl_perception.geometry.obstacles import ClassRoles
from mtl_perception.geometry.pipeline import GeometryConfig, Scene, SceneGeometry
from mtl_perception.geometry.scale import scale_from_height
from mtl_perception.geometry.scan import ScanConfig, in_base, nearest_per_beam, scan_config_for
from mtl_perception.perceiver import Perceiver
from mtl_training.datasets.mixtures import held_out_blocks
from mtl_training.worlds.camera import Sensor, camera_pose
from mtl_training.worlds.parts import CLASSES
from mtl_training.worlds.world import World

FLOOR, CEILING = CLASSES.index('floor'), CLASSES.index('ceiling')
ROLES = ClassRoles.from_names(CLASSES)
# Training draws its worlds from seed 0 upwards, some thousands at most.
FIRST_SEED = 5_000_000
RANGE_M = 3.0
LOW_M = 0.05
LEAST_PIXELS = 30
# Blocks of frames, and frames in each: see `held_out` in mtl_training/configs.
HELD_OUT_BLOCKS = (4, 12)


@dataclass(frozen=True)
class Case:
    """One picture of a world, and what is true about it."""

    picture: np.ndarray | None
    truth: Prediction
    instance: np.ndarray
    pose: np.ndarray

    @property
    def up(self) -> np.ndarray:
        """Direction up in the optical frame."""
        return self.pose[2, :3]

    @property
    def height(self) -> float:
        """Metres of the camera above the floor."""
        return float(self.pose[2, 3])

    @property
    def base_from_camera(self) -> np.ndarray:
        """Pose in a base frame on the floor below the camera, heading where it looks."""
        forward = self.pose[:2, 2] / np.linalg.norm(self.pose[:2, 2])
        turn = np.array([[forward[0], forward[1], 0], [-forward[1], forward[0], 0], [0, 0, 1]])
        base = np.eye(4)
        base[:3, :3] = turn @ self.pose[:3, :3]
        base[2, 3] = self.height
        return base


def robot_cases(
    worlds: int, views: int, *, color: bool, first: int = FIRST_SEED
) -> Iterator[Case]:
    """Look into worlds as robots do: 0.3 to 1.2 m high, up to 25 degrees down, rolled up to 5."""
    camera = Intrinsics(384, 288, 311.31, 311.68, 195.35, 152.24)
    for seed in range(first, first + worlds):
        rng = np.random.default_rng([seed, 11])
        world = World(seed)
        clearance = world.clearance(0.03, 1.5)
        origin, _ = world.grid
        cells = np.argwhere(clearance > 0.35)
        for _ in range(views if len(cells) else 0):
            x, y = origin + (cells[rng.integers(len(cells))] + 0.5) * 0.05
            yaw = _open_direction(world, clearance, x, y, rng)
            height = rng.uniform(0.3, 1.2)
            pitch = -np.radians(rng.uniform(0, 25))
            pose = camera_pose(x, y, height, yaw, pitch, np.radians(rng.uniform(-5, 5)))
            view = world.render(pose, camera, color=color)
            picture = None
            if color:
                picture = Sensor.random(rng).develop(view.radiance, rng)
            truth = Prediction(
                label=view.label,
                confidence=np.full(view.label.shape, 255, np.uint8),
                depth=view.depth,
                normal=view.normal,
                intrinsics=camera,
                depth_calibrated=True,
            )
            yield Case(picture, truth, view.instance, pose)
        world.close()


def _open_direction(world, clearance: np.ndarray, x: float, y: float, rng) -> float:
    """Return, of six directions, the one that leads farthest before something stands there."""
    reach = {}
    for yaw in rng.uniform(-np.pi, np.pi, 6):
        steps = np.arange(0.1, 6.0, 0.1)
        free = [
            clearance[world.cell(x + step * np.cos(yaw), y + step * np.sin(yaw))] > 0.02
            for step in steps
        ]
        reach[float(yaw)] = int(np.argmin([*free, False]))
    return max(reach, key=reach.__getitem__)


def from_truth(case: Case) -> Prediction:
    """Return a perfect prediction."""
    return case.truth


def network(bundle: ModelBundle) -> Callable[[Case], Prediction]:
    """Return what a bundle sees of a case."""
    perceiver = Perceiver(open_engine(bundle, threads=1), bundle)

    def perceive(case: Case) -> Prediction:
        frame = CameraFrame(case.picture, 'rgb8', case.truth.intrinsics)
        seen = perceiver.perceive(frame)
        return replace(
            seen,
            **{
                name: getattr(seen, name).copy()
                for name in ('label', 'confidence', 'depth', 'normal')
                if getattr(seen, name) is not None
            },
        )

    return perceive


def measure_worlds(
    cases: list[Case],
    perceive: Callable[[Case], Prediction],
    *,
    scales: bool,
    mounted: bool = False,
) -> dict[str, object]:
    """Return the errors of floor, scale and obstacles.

    Args:
        cases: pictures with their truth.
        perceive: what to compute the geometry from.
        scales: multiply depth by 0.7 to 1.4 for the scale's part; a network has its own error.
        mounted: whether the robot knows how its camera is mounted.
    """
    rng = np.random.default_rng(0)
    angle, height_error, scale_error, missed_floors = [], [], [], 0
    hits, pixels, things, found, wrong, floors = 0, 0, 0, 0, 0, 0
    for case in track(cases, description='worlds', transient=True):
        prediction = perceive(case)
        share = float((case.truth.label == FLOOR).mean())
        factor = float(np.exp(rng.uniform(np.log(0.7), np.log(1.4)))) if scales else 1.0
        apply = GeometryConfig(roles=ROLES, scale='apply', camera_height=case.height)
        # With a network the camera's height sets the scale first, as on a robot.
        plain = GeometryConfig(roles=ROLES) if scales else apply
        base = case.base_from_camera if mounted else None
        scene = SceneGeometry(plain).update(prediction, base_from_camera=base)
        if share >= 0.05:
            if scene.floor.plane is None:
                missed_floors += 1
            else:
                angle.append(_angle_deg(scene.floor.plane, case.up))
                # A plane that was scaled to the known height proves nothing about it.
                if scales:
                    height_error.append(abs(scene.floor.plane.height - case.height))
                depth = prediction.depth * np.float32(factor)
                shrunk = SceneGeometry(apply).update(
                    replace(prediction, depth=depth), outputs={'floor'}, base_from_camera=base
                )
                true_scale = _true_scale(depth, case.truth.depth)
                scale_error.append(abs(shrunk.scale.scale / true_scale - 1))
        counted = _count_obstacles(case, scene)
        hits, pixels = hits + counted[0], pixels + counted[1]
        found, things = found + counted[2], things + counted[3]
        wrong, floors = wrong + counted[4], floors + counted[5]
    return {
        'frames': len(cases),
        'frames_with_5_percent_floor': len(angle) + missed_floors,
        'floors_not_found': missed_floors,
        'floor_angle_deg_median': _median(angle),
        'floor_angle_deg_p95': _percentile(angle, 95),
        'floor_height_m_median': _median(height_error),
        'floor_height_m_p95': _percentile(height_error, 95),
        'scale_error_median': _median(scale_error),
        'scale_error_p95': _percentile(scale_error, 95),
        'obstacle_pixel_recall': hits / max(pixels, 1),
        'obstacle_thing_recall': found / max(things, 1),
        'obstacle_things': things,
        'false_obstacle_share_of_floor': wrong / max(floors, 1),
    }


def _count_obstacles(case: Case, scene: Scene) -> tuple[int, int, int, int, int, int]:
    """Return pixels hit / of things, things found / there, false / all floor pixels."""
    truth = case.truth
    points = back_project(truth.depth, truth.intrinsics)
    height = np.einsum('i,ihw->hw', case.up, points) + case.height
    near = (truth.depth <= RANGE_M) & np.isfinite(truth.depth)
    hits = pixels = found = things = 0
    for thing in np.unique(case.instance[case.instance >= 0]):
        mask = (case.instance == thing) & near & (height < 1.9) & (truth.label != CEILING)
        if mask.sum() < LEAST_PIXELS or height[mask].max() < LOW_M:
            continue
        hit = int((scene.parts.obstacle & mask).sum())
        hits, pixels = hits + hit, pixels + int(mask.sum())
        things += 1
        found += hit > 0.5 * mask.sum()
    floor = (truth.label == FLOOR) & near
    return hits, pixels, found, things, int((scene.parts.obstacle & floor).sum()), int(floor.sum())


def measure_distances(
    cases: list[Case], perceive: Callable[[Case], Prediction]
) -> dict[str, dict[str, float]]:
    """Return how far off the nearest obstacle is in every direction, for ways to tell it.

    Directions are 1 degree apart. The errors are of those in which something truly stands within
    3 m; in free directions nothing stands within 3.6 m, and what is seen within 3 m is wrong. The
    robot knows its camera's height and mounting. `depth` cuts the network's depth 0.2 m above the
    nominal floor, `scaled` is the obstacles of `scale: apply`, `contacts` the same with things
    standing where they touch the floor.
    """
    names = ('depth', 'scaled', 'contacts')
    errors: dict[str, list[np.ndarray]] = {name: [] for name in names}
    phantoms: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for case in track(cases, description='distances', transient=True):
        base, seen = case.base_from_camera, perceive(case)
        beams = scan_config_for(case.truth.intrinsics, base)
        beams = replace(beams, angle_increment=math.radians(1))

        def nearest(x: np.ndarray, y: np.ndarray, beams: ScanConfig = beams) -> np.ndarray:
            return np.minimum(nearest_per_beam(x, y, beams), beams.range_max)

        def obstacles(
            prediction: Prediction, base: np.ndarray = base, **options: Any
        ) -> tuple[np.ndarray, np.ndarray]:
            config = GeometryConfig(roles=ROLES, camera_height=float(base[2, 3]), **options)
            scene = SceneGeometry(config).update(
                prediction, outputs={'obstacles'}, base_from_camera=base
            )
            return in_base(base, np.stack([scene.obstacles[axis] for axis in 'xyz']))

        truth = nearest(*obstacles(case.truth, scale='off'))
        points = back_project(seen.depth, seen.intrinsics).reshape(3, -1)
        height = base[2, :3] @ points + base[2, 3]
        found = {
            'depth': in_base(base, points[:, (height > 0.2) & (height < 2)]),
            'scaled': obstacles(seen, scale='apply', contacts=False),
            'contacts': obstacles(seen, scale='apply'),
        }
        near = truth < RANGE_M
        for name, places in found.items():
            ranges = nearest(*places)
            errors[name].append((ranges - truth)[near])
            phantoms[name].append(ranges[truth > 1.2 * RANGE_M] < RANGE_M)
    result = {}
    for name, parts in errors.items():
        error = np.concatenate(parts)
        result[name] = {
            'directions': len(error),
            'error_m_median': float(np.median(np.abs(error))),
            'error_m_p90': float(np.percentile(np.abs(error), 90)),
            'share_more_than_15cm_too_far': float((error > 0.15).mean()),
            'share_more_than_15cm_too_near': float((error < -0.15).mean()),
            'free_directions': sum(map(len, phantoms[name])),
            'share_of_free_directions_closed': float(np.concatenate(phantoms[name]).mean()),
        }
    return result


def _angle_deg(plane: FloorPlane, up: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(np.dot(plane.normal, up), -1, 1))))


def _true_scale(depth: np.ndarray, truth: np.ndarray) -> float:
    both = (truth > 0) & (depth > 0)
    return float(np.median(truth[both] / depth[both]))


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None


def _percentile(values: list[float], share: float) -> float | None:
    return float(np.percentile(values, share)) if values else None


def measure_nyuv2(
    root: Path, bundle: ModelBundle, split: str, frames: Sequence[int] | None = None
) -> dict[str, object]:
    """Compare depth as predicted with depth scaled by the camera's true height, same frames.

    Height and tilt of the camera, which a robot knows, are those of the floor's plane in the true
    depth (true labels, normals from depth). A frame counts when both planes are found; the scale
    is that of the frame alone.

    Also told is what the filter's weights rest on: how far a frame's own scale (the median of
    true / predicted depth) is off, and how far the floor's scale is off that, as the root mean
    square of logarithms.
    """
    folder = PictureFolder(root, split)
    frames = range(len(folder)) if frames is None else frames
    perceiver = Perceiver(open_engine(bundle, threads=1), bundle)
    plain, scaled, heights, own, floor, stated = [], [], [], [], [], []
    for index in track(frames, description=split, transient=True):
        frame = folder.read(index)
        truth = Prediction(
            label=frame.label, depth=frame.depth, normal=frame.normal, intrinsics=frame.intrinsics
        )
        true_floor = SceneGeometry(GeometryConfig(roles=ROLES)).update(truth, outputs={'floor'})
        if true_floor.plane is None or true_floor.plane.confidence < 0.5:
            continue
        height, base = true_floor.plane.height, _mounting(true_floor.plane)
        seen = perceiver.perceive(CameraFrame(frame.rgb, 'rgb8', frame.intrinsics))
        unscaled = SceneGeometry(GeometryConfig(roles=ROLES)).update(
            seen, outputs={'floor'}, base_from_camera=base
        )
        config = GeometryConfig(roles=ROLES, scale='apply', camera_height=height)
        scene = SceneGeometry(config).update(seen, outputs={'floor'}, base_from_camera=base)
        if not scene.scale_applied:
            continue
        heights.append(height)
        plain.append(_absolute_relative(seen.depth, frame.depth))
        scaled.append(_absolute_relative(scene.depth, frame.depth))
        observed = scale_from_height(unscaled.floor.plane, height)
        own.append(math.log(_true_scale(seen.depth, frame.depth)))
        floor.append(math.log(observed.scale) - own[-1])
        stated.append(observed.std / observed.scale)
    pixels = sum(count for _, count in plain)
    return {
        'split': split,
        'frames': len(plain),
        'frames_without_a_floor': len(frames) - len(plain),
        'camera_height_m_median': _median(heights),
        'rel_err': sum(total for total, _ in plain) / max(pixels, 1),
        'rel_err_self_scaled': sum(total for total, _ in scaled) / max(pixels, 1),
        'frames_improved': sum(b < a for (a, _), (b, _) in zip(plain, scaled, strict=True)),
        'own_scale_error': _root_mean_square(own),
        'floor_scale_error': _root_mean_square(floor),
        'floor_scale_error_stated': _root_mean_square(stated),
    }


def _root_mean_square(values: list[float]) -> float | None:
    return float(np.sqrt(np.mean(np.square(values)))) if values else None


def _mounting(plane: FloorPlane) -> np.ndarray:
    """Return the pose, in a base frame on the floor, of a camera that sees this plane."""
    up = np.asarray(plane.normal)
    forward = np.array([0.0, 0.0, 1.0]) - up[2] * up
    forward /= np.linalg.norm(forward)
    base = np.eye(4)
    base[:3, :3] = np.stack([forward, np.cross(up, forward), up])
    base[2, 3] = plane.height
    return base


def _absolute_relative(depth: np.ndarray, truth: np.ndarray) -> tuple[float, int]:
    valid = np.isfinite(truth) & (truth > 0) & np.isfinite(depth)
    error = np.abs(depth[valid] - truth[valid]) / truth[valid]
    return float(error.sum(dtype=np.float64)), int(valid.sum())


def measure_cost(cases: list[Case], repeats: int, scale: str) -> dict[str, object]:
    """Return what one frame costs on one core, milliseconds of this thread's own time."""
    cv2.setNumThreads(1)
    keep_freed_memory()  # as the node does
    geometry = SceneGeometry(GeometryConfig(roles=ROLES, scale=scale))
    wall, cpu = [], []
    for _ in range(repeats):
        for case in cases:
            base = case.base_from_camera
            rgb = case.picture
            if rgb is None:
                rgb = np.zeros((*case.truth.depth.shape, 3), np.uint8)
            began, began_cpu = time.perf_counter(), time.thread_time()
            geometry.update(case.truth, rgb, base_from_camera=base)
            cpu.append((time.thread_time() - began_cpu) * 1e3)
            wall.append((time.perf_counter() - began) * 1e3)
    return {
        'what': 'cloud, floor, obstacles, scan and consistency at 288x384, one core',
        'scale': scale,
        'frames': len(wall),
        'wall_ms': {'p50': _median(wall), 'p95': _percentile(wall, 95), 'min': min(wall)},
        'cpu_ms': {'p50': _median(cpu), 'p95': _percentile(cpu, 95), 'min': min(cpu)},
    }


def main(
    worlds: Annotated[int, typer.Option(help='Worlds to look into.')] = 20,
    views: Annotated[int, typer.Option(help='Pictures of each.')] = 3,
    repeats: Annotated[int, typer.Option(help='Rounds of the timing.')] = 5,
    bundle: Annotated[str, typer.Option(help='Bundle for predicted inputs; "" for none.')] = '',
    nyuv2: Annotated[Path | None, typer.Option(help='Folder nyuv2_288x384.')] = None,
    split: Annotated[str, typer.Option(help='Split of NYUv2.')] = 'devtest',
    held_out: Annotated[
        bool,
        typer.Option('--held-out', help='Of train, only the frames that recipes do not train on.'),
    ] = False,
    json_path: Annotated[Path, typer.Option('--json')] = Path('out/bench/geometry.json'),
) -> None:
    """Measure and write the result."""
    machine = describe_machine()
    cases = list(
        track(
            robot_cases(worlds, views, color=bool(bundle)),
            total=worlds * views,
            description='rendering',
            transient=True,
        )
    )
    result: dict[str, object] = {
        'cost': measure_cost(cases, repeats, 'off'),
        'cost_scale_applied': measure_cost(cases, repeats, 'apply'),
        'worlds_ground_truth': measure_worlds(cases, from_truth, scales=True),
    }
    if bundle:
        loaded = ModelBundle.load(bundle)
        result['bundle'] = {'name': loaded.name, 'model_sha256': loaded.model_sha256}
        see = network(loaded)
        result['worlds_predicted'] = measure_worlds(cases, see, scales=False)
        result['worlds_predicted_known_mounting'] = measure_worlds(
            cases, see, scales=False, mounted=True
        )
        result['obstacle_distances'] = measure_distances(cases, see)
        if nyuv2 is not None:
            ids = PictureFolder(nyuv2, split).ids
            frames = held_out_blocks(ids, *HELD_OUT_BLOCKS) if held_out else None
            result['nyuv2'] = measure_nyuv2(nyuv2, loaded, split, frames)
    Console().print_json(json.dumps(result))
    write_result(json_path, result | {'machine': machine})


if __name__ == '__main__':
    typer.run(main)
