"""Cityscapes: fine labels in 19 classes or 7 categories, and depth from disparity.

Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding (CVPR 2016). Layout
and label ids as in github.com/mcordts/cityscapesScripts (README.md, helpers/labels.py):
`{type}/{split}/{city}/{city}_{seq:06}_{frame:06}_{type}{ext}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mtl_perception.datasets import DatasetError, LabelledFrame, read_picture
from mtl_perception.frames import Intrinsics
from mtl_training.datasets.findings import Findings, Problem
from mtl_training.datasets.reader import (
    CLASSES,
    DatasetReader,
    Part,
    class_list,
    labelled_picture,
    lookup,
    read_json,
    read_mask,
    read_rgb,
)

PICTURE = '_leftImg8bit.png'
OFFICIAL = {'train': 2975, 'val': 500, 'test': 1525}
# Label ids run to 33; 'license plate' (-1) is never drawn into a picture.
LABEL_IDS = 34
# Prepared arrays count millimetres in 16 bits, and the stereo pair is unsure by metres out there.
MAX_DEPTH_M = 65.5


class Cityscapes(DatasetReader):
    """Frames of 2048x1024 with 19 classes and, where disparity is there, metric depth.

    The test split has no public labels and carries depth alone. Normals are not published;
    preparing derives them from depth.

    Args:
        root: folder of leftImg8bit, gtFine, disparity and camera.
        split: 'train', 'val' or 'test'.
        classes: 19, or 7 for the categories that the benchmark scores beside them. Classes that
            it ignores (parking, guard rail, trailer, ...) stay unlabelled in their categories,
            too, as in its category score.
    """

    format = 'cityscapes'
    default_folder = 'cityscapes'
    source = (
        'www.cityscapes-dataset.com (an account is needed): leftImg8bit_trainvaltest.zip, '
        'gtFine_trainvaltest.zip, and for depth disparity_trainvaltest.zip with '
        'camera_trainvaltest.zip'
    )
    licence = 'Cityscapes licence: research, teaching and other non-commercial use'
    splits = tuple(OFFICIAL)

    def __init__(self, root: str | Path, split: str, classes: int = 19) -> None:
        super().__init__(root, split, classes=classes)
        if classes not in (7, 19):
            raise DatasetError(f'cityscapes has 19 classes or 7 categories, not {classes!r}')
        self._table = lookup(_label_ids(classes).values(), range(LABEL_IDS))
        pictures = _pictures(self.root, split)
        self._stems = {path.name.removesuffix(PICTURE): path for path in pictures}
        self.ids = sorted(self._stems)
        self._has_labels = split != 'test' and (self.root / 'gtFine' / split).is_dir()
        self._has_depth = (self.root / 'disparity' / split).is_dir()
        tasks = {'segmentation': self._has_labels, 'depth': self._has_depth}
        self.tasks = tuple(task for task, there in tasks.items() if there)
        self.classes = class_list(f'cityscapes_{classes}') if self._has_labels else ()

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Say whether a folder has this layout."""
        return (root / 'leftImg8bit').is_dir()

    @classmethod
    def parts(cls, root: Path, split: str, **options: Any) -> list[Part]:
        """Return the layout of one split with what is there of it."""
        described = {
            'leftImg8bit': ('left pictures', PICTURE),
            'gtFine': ('fine labels as label ids', '_gtFine_labelIds.png'),
            'disparity': ('disparity, for depth', '_disparity.png'),
            'camera': ('calibration, for depth', '_camera.json'),
        }
        if split == 'test':
            del described['gtFine']
        return [
            Part(
                f'{kind}/{split}',
                f'{holds}, of {kind}_trainvaltest.zip',
                sum(1 for _ in (root / kind / split).glob(f'*/*{ending}')),
                OFFICIAL[split],
                required=kind == 'leftImg8bit',
            )
            for kind, (holds, ending) in described.items()
        ]

    def _path(self, kind: str, frame_id: str, ending: str) -> Path:
        city = self._stems[frame_id].parent.name
        return self.root / kind / self.split / city / f'{frame_id}_{ending}'

    def _files(self) -> Iterable[Path]:
        for frame_id in self.ids:
            yield self._stems[frame_id]
            yield self._path('gtFine', frame_id, 'gtFine_labelIds.png')
            yield self._path('disparity', frame_id, 'disparity.png')
            yield self._path('camera', frame_id, 'camera.json')

    def _read(self, frame_id: str, findings: Findings) -> LabelledFrame | None:
        rgb = read_rgb(self._stems[frame_id], frame_id, findings)
        size = None if rgb is None else rgb.shape[:2]
        label = depth = None
        if self._has_labels:
            path = self._path('gtFine', frame_id, 'gtFine_labelIds.png')
            label = read_mask(path, frame_id, size, self._table, findings)
        intrinsics = None
        if self._has_depth:
            intrinsics, depth = self._read_depth(frame_id, size, findings)
        if rgb is None or findings.broken_frames:
            return None
        return labelled_picture(frame_id, rgb, label=label, depth=depth, intrinsics=intrinsics)

    def _read_depth(
        self, frame_id: str, size: tuple[int, int] | None, findings: Findings
    ) -> tuple[Intrinsics | None, np.ndarray | None]:
        paths = {
            'disparity': self._path('disparity', frame_id, 'disparity.png'),
            'camera': self._path('camera', frame_id, 'camera.json'),
        }
        absent = [kind for kind, path in paths.items() if not path.is_file()]
        for kind in absent:
            findings.add(Problem.DEPTH_MISSING, frame_id, f'{paths[kind]}: {kind} missing')
        if absent:
            return None, None
        try:
            stored = read_picture(paths['disparity'], cv2.IMREAD_UNCHANGED)
            if stored.dtype != np.uint16 or stored.ndim != 2:
                raise DatasetError(
                    f'{paths["disparity"]}: {stored.dtype} of shape {stored.shape}, expected one '
                    'channel of 16 bits'
                )
            camera = read_camera(paths['camera'], stored.shape[1], stored.shape[0])
        except DatasetError as error:
            findings.add(Problem.DEPTH_BROKEN, frame_id, str(error))
            return None, None
        if size is not None and stored.shape != size:
            findings.add(
                Problem.OTHER_SIZE,
                frame_id,
                f'{paths["disparity"]}: {stored.shape[1]}x{stored.shape[0]} pixels, its picture '
                f'has {size[1]}x{size[0]}',
            )
            return None, None
        intrinsics, baseline = camera
        return intrinsics, depth_from_disparity(stored, intrinsics.fx, baseline)


def read_camera(path: Path, width: int, height: int) -> tuple[Intrinsics, float]:
    """Return the left camera and the stereo baseline in metres of a `*_camera.json`.

    Pixel centres lie at whole numbers there as here (csCalibration.pdf: the origin of the picture
    is its top-left pixel).

    Raises:
        DatasetError: a number is missing or makes no camera.
    """
    expected = '{"extrinsic": {"baseline"}, "intrinsic": {"fx", "fy", "u0", "v0"}}'
    values = read_json(path, expected)
    try:
        numbers = [float(values['intrinsic'][name]) for name in ('fx', 'fy', 'u0', 'v0')]
        baseline = float(values['extrinsic']['baseline'])
        intrinsics = Intrinsics(width, height, *numbers)
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f'{path} is no camera ({error}): expected {expected}') from error
    if not 0 < baseline < np.inf:
        raise DatasetError(f'{path} has the baseline {baseline} m: a positive one is expected')
    return intrinsics, baseline


def depth_from_disparity(stored: np.ndarray, fx: float, baseline: float) -> np.ndarray:
    """Return metres along the optical axis, float32 [H, W], 0 = invalid.

    Args:
        stored: uint16 [H, W], disparity d = (p - 1) / 256 pixels for p > 0, 0 = invalid.
        fx: focal length in pixels.
        baseline: of the stereo pair in metres.
    """
    disparity = (stored.astype(np.float32) - 1) / 256
    # p = 1 is a disparity of nothing: infinitely far, which no depth can say.
    valid = disparity > fx * baseline / MAX_DEPTH_M
    return np.divide(fx * baseline, disparity, out=np.zeros_like(disparity), where=valid)


def _pictures(root: Path, split: str) -> list[Path]:
    return sorted((root / 'leftImg8bit' / split).glob(f'*/*{PICTURE}'))


def _label_ids(classes: int) -> dict[str, list[int]]:
    """Return the stored label ids of each class or category."""
    text = (CLASSES / 'cityscapes_ids.json').read_text(encoding='utf-8')
    return json.loads(text)[str(classes)]
