"""Tiny picture folders and configurations for the tests of the workshop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mtl_perception.datasets import ROOMS, THINGS
from mtl_training.config import TrainingConfig, parse_config

# Augmentation that changes nothing.
STILL = {
    'zoom': [1.0, 1.0],
    'rotation_deg': 0,
    'flip': 0,
    'brightness': 0,
    'contrast': 0,
    'saturation': 0,
    'hue_deg': 0,
    'gamma': 1,
    'greyscale': 0,
    'blur': 0,
    'noise': 0,
}


def write_pictures(
    root: Path,
    split: str = 'train',
    count: int = 8,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
) -> Path:
    """Write frames of a box in front of a wall in the format of PictureFolder; return `root`."""
    random = np.random.default_rng(seed)
    for folder in ('rgb', 'depth', 'label13'):
        (root / split / folder).mkdir(parents=True, exist_ok=True)
    height, width = size
    for index in range(count):
        image = np.full((height, width, 3), random.integers(60, 200, 3), np.uint8)
        depth = np.full((height, width), random.integers(2000, 4000), np.uint16)
        label = np.full((height, width), 11, np.uint8)
        label[0] = 255
        top, left = random.integers(4, height // 2), random.integers(4, width // 2)
        box = (slice(top, top + height // 3), slice(left, left + width // 3))
        image[box] = random.integers(0, 255, 3)
        depth[box] = random.integers(800, 1800)
        label[box] = random.integers(0, 11)
        for folder, picture in (('rgb', image), ('depth', depth), ('label13', label)):
            assert cv2.imwrite(str(root / split / folder / f'{index:04d}.png'), picture)
    return root


def write_scenes(root: Path, split: str = 'train') -> Path:
    """Write the box of every frame of `write_pictures`, and a kind of room; return `root`."""
    frames = {}
    for index, path in enumerate(sorted((root / split / 'label13').iterdir())):
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        mask = label < 11
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        thing = THINGS[int(label[mask][0]) % len(THINGS)]
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        frames[path.stem] = {
            'room': ROOMS[index % len(ROOMS)],
            'boxes': [{'label': thing, 'box': box}],
        }
    (root / split / 'scenes').mkdir(exist_ok=True)
    scene = root / split / 'scenes' / '00000.json'
    scene.write_text(json.dumps({'frames': frames}), encoding='utf-8')
    return root


def tiny_config(
    data: Path, cache: Path, *, held_out: int = 2, focal_length: float = 60.0, **changes: Any
) -> TrainingConfig:
    """Return a run of a narrow PVTv2-B0 network on tiny pictures."""
    values: dict[str, Any] = {
        'name': 'tiny',
        'seed': 3,
        'network': {'backbone': 'pvt_v2_b0', 'decoder_channels': 16},
        'data': {
            'cache': str(cache),
            'sources': [{'name': 'boxes', 'path': str(data), 'height': 64, 'width': 96}],
            'held_out': {'source': 'boxes', 'blocks': 1, 'frames_per_block': held_out},
            'focal_length_px': focal_length,
        },
        'schedule': {
            'steps': 6,
            'warmup_steps': 2,
            'evaluations': 2,
            'stages': [
                {'until': 0.5, 'height': 32, 'width': 64},
                {'until': 1.0, 'height': 64, 'width': 96},
            ],
        },
        'balancing': {'method': 'equal'},
        'batch_size': 2,
        'precision': 'float32',
        'threads': 1,
        'workers': 0,
    }
    return parse_config(values | changes, 'test')
