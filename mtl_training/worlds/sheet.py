"""A sheet of many scenes, for looking at what the generator makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np

from mtl_perception.bundle import nyu13_classes
from mtl_perception.views import colorize_labels
from mtl_training.worlds.camera import NYU, Sensor, sample_pose
from mtl_training.worlds.recipes import SheetRecipe
from mtl_training.worlds.world import World

Progress = Callable[[Iterable[int], int, str], Iterable[int]]


def write_sheet(path: Path, recipe: SheetRecipe, *, progress: Progress) -> dict[str, int]:
    """Write a PNG of one view of each world, its labels in the lower right corner.

    Returns:
        Number of 'scenes'.
    """
    classes = nyu13_classes()
    width, height = recipe.width, recipe.width * 3 // 4
    tiles = []
    for index in progress(range(recipe.scenes), recipe.scenes, 'Scenes'):
        seed = recipe.seed + index
        rng = np.random.default_rng([seed, 3])
        world = World(seed)
        pose = sample_pose(world, rng, NYU)
        view = world.render(pose, NYU)
        assert view.radiance is not None
        world.close()
        tile = Sensor(noise=0.006, contrast=1.1).develop(view.radiance, rng)
        tile = cv2.resize(tile, (width, height), interpolation=cv2.INTER_AREA)
        labels = colorize_labels(view.label, classes)
        inset = cv2.resize(labels, (width // 3, height // 3), interpolation=cv2.INTER_NEAREST)
        tile[-height // 3 - 1 :, -width // 3 - 1 :] = 255
        tile[height - height // 3 :, width - width // 3 :] = inset
        tiles.append(tile)
    while len(tiles) % recipe.columns:
        tiles.append(np.full_like(tiles[0], 255))
    rows = [np.hstack(tiles[i : i + recipe.columns]) for i in range(0, len(tiles), recipe.columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = np.vstack(rows)[..., ::-1]
    if not cv2.imwrite(str(path), np.ascontiguousarray(sheet), [cv2.IMWRITE_PNG_COMPRESSION, 9]):
        raise OSError(f'{path} cannot be written')
    return {'scenes': recipe.scenes}
