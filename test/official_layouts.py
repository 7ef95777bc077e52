"""Tiny data sets in exactly the layouts that their publishers pack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZE = (48, 64)


def write_picture(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """Write a picture of soft colours; the suffix chooses the format."""
    random = np.random.default_rng(seed)
    pixels = cv2.resize(random.integers(40, 220, (4, 4, 3), np.uint8), size[::-1])
    return write_pixels(path, pixels)


def write_pixels(path: Path, pixels: np.ndarray) -> Path:
    """Write an array as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coded, data = cv2.imencode(path.suffix.replace('.JPEG', '.jpg'), pixels)
    assert coded
    path.write_bytes(data.tobytes())
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding='utf-8')
    return path


def cut_off(path: Path) -> None:
    """Leave the first half of a file, as a broken download does."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def bdd_label(category: str, *corners: float, **attributes: bool) -> dict[str, Any]:
    """Return a label as det_20 has it."""
    box = dict(zip(('x1', 'y1', 'x2', 'y2'), corners, strict=True))
    said = {'occluded': False, 'truncated': False, 'trafficLightColor': 'NA', **attributes}
    return {'id': f'{category}-{corners[0]}', 'category': category, 'box2d': box} | {
        'attributes': said
    }


def write_bdd100k(root: Path) -> Path:
    """Write three frames of the 100K pictures and two of the 10K."""
    frames = []
    for index, name in enumerate(('0000f77c-6257be58', '0000f77c-62c2a288', '0000f77c-cb820c98')):
        write_picture(root / f'images/100k/train/{name}.jpg', seed=index)
        mask = np.full(SIZE, 2, np.uint8)
        mask[30:, 10:40] = 0
        mask[30:, 40:50] = 1
        write_pixels(root / f'labels/drivable/masks/train/{name}.png', mask)
        frames.append(
            {
                'name': f'{name}.jpg',
                'attributes': {'weather': 'clear', 'scene': 'city street', 'timeofday': 'night'},
                'timestamp': 10000,
                'labels': [
                    bdd_label('car', 10.5, 8, 19.5, 15.25),
                    bdd_label('traffic light', 2, 2, 4, 9),
                ],
            }
        )
    frames[1]['attributes'] = {
        'weather': 'undefined',
        'scene': 'highway',
        'timeofday': 'dawn/dusk',
    }
    del frames[2]['labels']
    write_json(root / 'labels/det_20/det_train.json', frames)
    for index, name in enumerate(('0a0a0b1a-7c39d841', '0a0b16e4-93f8c456')):
        write_picture(root / f'images/10k/train/{name}.jpg', seed=10 + index)
        mask = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 20
        mask[mask == 19] = 255
        write_pixels(root / f'labels/sem_seg/masks/train/{name}.png', mask.astype(np.uint8))
    return root


CITYSCAPES_CAMERA = {
    'extrinsic': {
        'baseline': 0.209313,
        'pitch': 0.038,
        'roll': 0.0,
        'x': 1.7,
        'y': 0.1,
        'yaw': -0.0195,
        'z': 1.22,
    },
    'intrinsic': {'fx': 70.7, 'fy': 70.8, 'u0': 34.25, 'v0': 16.03},
}


def write_cityscapes(root: Path, split: str = 'train') -> Path:
    """Write two frames of two cities; every label id and several disparities occur."""
    size = (32, 64)
    for index, (city, number) in enumerate((('aachen', 0), ('bochum', 313))):
        name = f'{city}_{number:06}_000019'
        write_picture(root / f'leftImg8bit/{split}/{city}/{name}_leftImg8bit.png', size, index)
        ids = (np.arange(32 * 64).reshape(size) % 34).astype(np.uint8)
        write_pixels(root / f'gtFine/{split}/{city}/{name}_gtFine_labelIds.png', ids)
        disparity = np.full(size, 1 + 256 * 4, np.uint16)
        disparity[0, :4] = (0, 1, 2, 1 + 128)
        write_pixels(root / f'disparity/{split}/{city}/{name}_disparity.png', disparity)
        write_json(root / f'camera/{split}/{city}/{name}_camera.json', CITYSCAPES_CAMERA)
    return root


def coco_content() -> dict[str, Any]:
    """Return annotations of three pictures; category ids have gaps, as COCO's."""
    return {
        'info': {'year': 2017},
        'licenses': [],
        'categories': [
            {'id': 1, 'name': 'person', 'supercategory': 'person'},
            {'id': 3, 'name': 'car', 'supercategory': 'vehicle'},
            {'id': 90, 'name': 'toothbrush', 'supercategory': 'indoor'},
        ],
        'images': [
            {'id': 9, 'file_name': '000000000009.jpg', 'height': 48, 'width': 64, 'license': 3},
            {'id': 25, 'file_name': '000000000025.jpg', 'height': 40, 'width': 30, 'license': 3},
            {'id': 30, 'file_name': '000000000030.jpg', 'height': 48, 'width': 64, 'license': 3},
        ],
        'annotations': [
            coco_annotation(1, 9, 90, [10.5, 8.25, 20, 10]),
            coco_annotation(2, 9, 1, [0, 0, 64, 48], crowd=1),
            coco_annotation(3, 25, 3, [2, 3, 4, 5]),
        ],
    }


def coco_annotation(
    number: int, image: int, category: int, bbox: list[float], crowd: int = 0
) -> dict[str, Any]:
    """Return one annotation of COCO's instances."""
    return {
        'id': number,
        'image_id': image,
        'category_id': category,
        'bbox': bbox,
        'area': 1.0,
        'iscrowd': crowd,
        'segmentation': [],
    }


def write_coco(root: Path, content: dict[str, Any] | None = None) -> Path:
    """Write three pictures of two sizes with annotations."""
    for index, (name, size) in enumerate((('09', SIZE), ('25', (40, 30)), ('30', SIZE))):
        write_picture(root / f'val2017/0000000000{name}.jpg', size, index)
    write_json(root / 'annotations/instances_val2017.json', content or coco_content())
    return root


def write_ade20k(root: Path) -> Path:
    """Write two frames of different sizes; all of 0..150 occur in the first."""
    for number, size in ((1, SIZE), (2, (40, 30))):
        name = f'ADE_train_{number:08}'
        write_picture(root / f'images/training/{name}.jpg', size, number)
        mask = (np.arange(size[0] * size[1]).reshape(size) % 151).astype(np.uint8)
        write_pixels(root / f'annotations/training/{name}.png', mask)
    return root


def write_imagenet(root: Path) -> Path:
    """Write two classes of two pictures, with ImageNet's names and suffix."""
    for name in ('n01440764', 'n02012849'):
        for number in (18, 36):
            path = root / f'train/{name}/{name}_{number}.JPEG'
            write_picture(path, (30 + number, 40), number)
    return root


def write_office31(root: Path, pictures: int = 10) -> Path:
    """Write three classes of each domain."""
    for domain in ('amazon', 'dslr', 'webcam'):
        for name in ('back_pack', 'bike', 'trash_can'):
            for number in range(1, pictures + 1):
                path = root / f'{domain}/images/{name}/frame_{number:04}.jpg'
                write_picture(path, (30, 30), number)
    return root
