"""Writes worlds as labelled picture folders, with several processes, and goes on after a stop."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mtl_perception.frames import Intrinsics
from mtl_training.worlds.camera import NYU, Sensor, sample_intrinsics, sample_pose
from mtl_training.worlds.parts import CLASSES
from mtl_training.worlds.recipes import PictureRecipe
from mtl_training.worlds.world import View, World

SUFFIX = {'rgb': 'jpg', 'depth': 'png', 'label13': 'png', 'normal': 'png'}
MIN_PIXELS = 60
Progress = Callable[[Iterable[int], int, str], Iterable[int]]


class GenerationError(RuntimeError):
    """A world could not be written; the message names its seed."""


def encode_depth(depth: np.ndarray) -> np.ndarray:
    """Return millimetres, uint16 [H, W], 0 = invalid, of metres with NaN = invalid."""
    millimetres = np.nan_to_num(depth * 1000, nan=0, posinf=0)
    return np.clip(np.round(millimetres), 0, 65535).astype(np.uint16)


def encode_normals(normal: np.ndarray) -> np.ndarray:
    """Return (n + 1) x 127.5 as uint8 [H, W, 3]; zero vectors become (0, 0, 0), invalid."""
    valid = np.any(normal != 0, axis=-1, keepdims=True)
    return (np.round((normal + 1) * 127.5) * valid).astype(np.uint8)


def visible_boxes(view: View, names: list[str]) -> list[dict[str, Any]]:
    """Return the things in view.

    Returns:
        One dict each: name, label (class name of most of its pixels), box [x0, y0, x1, y1] in
        pixels (ends excluded), pixels, instance.
    """
    boxes = []
    for instance in np.unique(view.instance):
        if instance < 0:
            continue
        mask = view.instance == instance
        pixels = int(mask.sum())
        if pixels < MIN_PIXELS:
            continue
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        label = int(np.bincount(view.label[mask], minlength=256).argmax())
        boxes.append(
            {
                'name': names[instance],
                'label': CLASSES[label],
                'box': [
                    int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1,
                ],
                'pixels': pixels,
                'instance': int(instance),
            }
        )  # fmt: skip
    return boxes


def _write_world(task: tuple[PictureRecipe, int, str]) -> tuple[int, dict[str, Any]]:
    """Render one world's pictures into a folder of its own; return its scene."""
    recipe, number, folder = task
    seed = recipe.seed + number
    cv2.setNumThreads(1)
    target = Path(folder)
    shutil.rmtree(target, ignore_errors=True)
    for name in SUFFIX:
        (target / name).mkdir(parents=True)
    rng = np.random.default_rng([seed, 7])
    try:
        world = World(seed)
        frames: dict[str, Any] = {}
        for index in range(min(recipe.views, recipe.frames - number * recipe.views)):
            intrinsics = sample_intrinsics(rng, recipe.nyu_share)
            pose = sample_pose(world, rng, intrinsics, recipe.min_things)
            sensor = replace(
                Sensor.random(rng), border=intrinsics == NYU and bool(rng.random() < 0.6)
            )
            view = world.render(pose, intrinsics)
            frame_id = f'{number:05d}_{index}'
            _write_frame(target, frame_id, view, sensor, rng)
            frames[frame_id] = _describe(world, view, pose, intrinsics)
        world.close()
    except Exception as error:
        raise GenerationError(f'world with seed {seed} failed: {error!r}') from error
    keys = ('kind', 'x0', 'x1', 'y0', 'y1', 'height')
    rooms = [{key: getattr(room, key) for key in keys} for room in world.rooms]
    return number, {'seed': seed, 'rooms': rooms, 'frames': frames}


def _write_frame(
    target: Path, frame_id: str, view: View, sensor: Sensor, rng: np.random.Generator
) -> None:
    assert view.radiance is not None
    picture = sensor.develop(view.radiance, rng)
    images = {
        'rgb': picture[..., ::-1],
        'depth': encode_depth(view.depth),
        'label13': view.label,
        'normal': encode_normals(view.normal)[..., ::-1],
    }
    for name, image in images.items():
        path = target / name / f'{frame_id}.{SUFFIX[name]}'
        options = [cv2.IMWRITE_JPEG_QUALITY, sensor.quality] if name == 'rgb' else []
        if not cv2.imwrite(str(path), np.ascontiguousarray(image), options):
            raise OSError(f'{path} cannot be written')


def _describe(
    world: World, view: View, pose: np.ndarray, intrinsics: Intrinsics
) -> dict[str, Any]:
    room = world.room_at(pose[0, 3], pose[1, 3])
    counts = np.bincount(view.label.ravel(), minlength=256)[: len(CLASSES)]
    return {
        'intrinsics': [intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy],
        'pose': pose.round(6).tolist(),
        'room': room.kind if room else None,
        'classes': [
            name for name, count in zip(CLASSES, counts, strict=True) if count >= MIN_PIXELS
        ],
        'boxes': visible_boxes(view, world.instances),
    }


def generate(
    root: Path, recipe: PictureRecipe, *, processes: int, progress: Progress
) -> dict[str, int]:
    """Write `{root}/{split}/{rgb,depth,label13,normal}/ID.*`, cameras.json and scenes/.

    A scene file names the world's seed and rooms, and for each picture its camera, the kind of
    the room that the camera stands in, the classes in view and the boxes of the things in view.

    Worlds that are already there are kept; a recipe that differs from the folder's is refused.

    Args:
        progress: wraps an iterable of worlds (iterable, total, description).

    Returns:
        Numbers of 'worlds' and 'frames' in the folder, and of worlds 'made' by this call.

    Raises:
        GenerationError: a world failed, the folder holds another recipe's pictures or other
            files, or a class that the recipe requires is missing.
    """
    folder = root / recipe.split
    scenes = folder / 'scenes'
    _check_recipe(folder / 'recipe.json', recipe)
    scenes.mkdir(exist_ok=True)
    done = {int(path.stem): json.loads(path.read_text()) for path in scenes.glob('*.json')}
    missing = [number for number in range(recipe.worlds) if number not in done]
    for name in SUFFIX:
        (folder / name).mkdir(exist_ok=True)
    staging = folder / '.partial'
    tasks = [(recipe, number, str(staging / f'{number:05d}')) for number in missing]
    # OpenGL contexts do not survive a fork.
    context = multiprocessing.get_context('spawn')
    if tasks:
        with context.Pool(min(processes, len(tasks)), maxtasksperchild=40) as pool:
            results = pool.imap_unordered(_write_world, tasks)
            for number, scene in progress(results, len(tasks), f'Worlds for {recipe.split}'):
                done[number] = scene
                _publish(folder, staging / f'{number:05d}', number, done)
    shutil.rmtree(staging, ignore_errors=True)
    frames = sum(len(scene['frames']) for scene in done.values())
    if recipe.all_classes:
        seen = {
            name
            for scene in done.values()
            for frame in scene['frames'].values()
            for name in frame['classes']
        }
        if missing_classes := sorted(set(CLASSES) - seen):
            raise GenerationError(
                f'{folder} shows no {", ".join(missing_classes)} though the recipe requires all '
                'classes: raise its frames or choose another seed'
            )
    return {'worlds': len(done), 'frames': frames, 'made': len(tasks)}


def _check_recipe(path: Path, recipe: PictureRecipe) -> None:
    wanted = recipe.model_dump()
    if path.is_file():
        found = json.loads(path.read_text())
        # More frames of the same worlds may be asked for later.
        differing = {
            key: (found.get(key), value)
            for key, value in wanted.items()
            if key != 'frames' and found.get(key) != value
        }
        if differing or found['frames'] > recipe.frames:
            raise GenerationError(
                f'{path.parent} holds pictures of another recipe ({found}, asked for {wanted}): '
                'choose another folder or split'
            )
        if found['frames'] % recipe.views and found['frames'] != recipe.frames:
            raise GenerationError(
                f'{path.parent} ends within a world ({found["frames"]} frames, {recipe.views} a '
                'world) and cannot be continued: choose another folder or split'
            )
    elif path.parent.is_dir() and any(path.parent.iterdir()):
        raise GenerationError(
            f'{path.parent} holds files but no recipe.json, so they are not of generated worlds: '
            'choose an empty folder'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_text(path, json.dumps(wanted, indent=2))


def _write_text(path: Path, text: str) -> None:
    part = path.with_suffix('.part')
    part.write_text(text, encoding='utf-8')
    part.replace(path)


def _publish(folder: Path, made: Path, number: int, done: dict[int, Any]) -> None:
    """Move a finished world's pictures into place, so that readers never see half of one."""
    frames = {
        frame_id: {key: frame[key] for key in ('intrinsics', 'pose')}
        for _, scene in sorted(done.items())
        for frame_id, frame in scene['frames'].items()
    }
    _write_text(folder / 'cameras.json', json.dumps({'frames': frames}))
    for path in made.rglob('*.*'):
        path.replace(folder / path.parent.name / path.name)
    _write_text(folder / 'scenes' / f'{number:05d}.json', json.dumps(done[number]))
