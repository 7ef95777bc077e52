"""A few frames worth looking at: the best, the most ordinary and the worst."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from mtl_perception.bundle import ModelBundle
from mtl_perception.encodings import to_rgb
from mtl_perception.evaluation.things import SURE_SCORE, named_attributes, things_of
from mtl_perception.frames import Prediction
from mtl_perception.geometry.boxes import scale_boxes
from mtl_perception.recordings import RecordedFrame
from mtl_perception.views import (
    colorize_depth,
    colorize_labels,
    colorize_normals,
    describe_classes,
    draw_boxes,
    draw_lines,
)

KEPT = 2
_ORDINARY_KEPT = 24
# Neighbouring frames look the same: of so many in a row one is shown.
_APART = 8
_QUALITY = 85
_WIDEST = 480

# What frames are ranked by, the first that a recording has: (task, figure, is more better).
RANKINGS = (
    ('segmentation', 'pixacc', True),
    ('depth', 'rel_err', False),
    ('normals', 'mean', False),
    ('detection', 'f1', True),
    ('classification', 'accuracy', True),
    ('without_truth', 'unsure', False),
)


@dataclass(order=True)
class Shown:
    """A frame of the gallery.

    Attributes:
        rank: the figure it was ranked by; more is better.
        id: of the frame, after its camera where the recording has several.
        figures: of the frame, by task.
        pictures: name ('camera', 'segmentation', 'depth', 'normals', 'boxes', and these with
            ' truth') -> jpeg.
        recording: where it comes from.
    """

    rank: float
    id: str
    figures: dict[str, Any] = field(compare=False)
    pictures: dict[str, bytes] = field(compare=False)
    recording: str = field(compare=False, default='')


Kept = list[tuple[float, int, Shown]]


class Gallery:
    """Keeps the best and the worst frames and some evenly spread ones, as small pictures.

    Memory is bounded: of the evenly spread ones every second is given up when there are too many.

    Args:
        bundle: says how predictions are shown.
        recording: name of the recording.
        announced: frames that are expected; 0 where that is unknown. Pictures cost more than
            scoring, so none should be made that are given up later.
        several_cameras: name each frame's camera; frames of one moment have the same id.
    """

    def __init__(
        self,
        bundle: ModelBundle,
        recording: str,
        announced: int = 0,
        several_cameras: bool = False,
    ) -> None:
        self._bundle = bundle
        self._recording = recording
        self._several_cameras = several_cameras
        self._best: Kept = []
        self._worst: Kept = []
        self._spread: list[tuple[int, Shown]] = []
        self._step = max(1, math.ceil(announced / _ORDINARY_KEPT))
        self._count = 0
        self._ranking: tuple[str, str, bool] | None = None

    def add(self, frame: RecordedFrame, prediction: Prediction, record: dict[str, Any]) -> None:
        """Look at a scored frame and keep it if it belongs here."""
        rank = self._rank(record)
        if rank is None:
            return
        index, self._count = self._count, self._count + 1
        spread = index % self._step == 0
        best, worst = _admits(self._best, rank, index), _admits(self._worst, -rank, index)
        if not (spread or best or worst):
            return
        shown = self._show(frame, prediction, record, rank)
        if best:
            _admit(self._best, rank, index, shown)
        if worst:
            _admit(self._worst, -rank, index, shown)
        if spread:
            self._spread.append((index, shown))
            if len(self._spread) > _ORDINARY_KEPT:
                self._step *= 2
                self._spread = [item for item in self._spread if item[0] % self._step == 0]

    def chosen(self) -> list[Shown]:
        """Return all frames that are kept, each once, in their order in the recording."""
        kept = {place: shown for _, place, shown in (*self._best, *self._worst)}
        kept |= dict(self._spread)
        return [kept[index] for index in sorted(kept)]

    def _rank(self, record: dict[str, Any]) -> float | None:
        if self._ranking is None:
            for ranking in RANKINGS:
                if record.get(ranking[0], {}).get(ranking[1]) is not None:
                    self._ranking = ranking
                    break
            else:
                return None
        task, figure, more_is_better = self._ranking
        value = record.get(task, {}).get(figure)
        return value if value is None or more_is_better else -value

    def _show(
        self, frame: RecordedFrame, prediction: Prediction, record: dict[str, Any], rank: float
    ) -> Shown:
        classes = self._bundle.classes
        spec = self._bundle.manifest.depth
        near, far = (max(spec.min, 0.3), spec.max) if spec else (0.3, 10.0)
        painters = {
            'segmentation': ('label', lambda label: colorize_labels(label, classes)),
            'depth': ('depth', lambda depth: colorize_depth(depth, near, far)),
            'normals': ('normal', colorize_normals),
        }
        pictures = {}
        size: tuple[int, int] | None = None
        for name, (key, paint) in painters.items():
            array = getattr(prediction, key)
            if array is None:
                continue
            size = size or (array.shape[0], array.shape[1])
            pictures[name] = paint(array)
            if key in frame.truth:
                pictures[f'{name} truth'] = paint(np.ascontiguousarray(frame.truth[key].at(*size)))
        rgb = to_rgb(frame.frame.pixels, frame.frame.encoding)
        pictures |= self._things(frame, prediction, rgb)
        pictures['camera'] = rgb if size is None else _resized(rgb, size[::-1])
        return Shown(
            rank=rank,
            id=f'{frame.camera} {frame.id}' if self._several_cameras else frame.id,
            figures={k: v for k, v in record.items() if isinstance(v, dict) and k != 'counts'},
            pictures={name: _jpeg(picture) for name, picture in pictures.items()},
            recording=self._recording,
        )

    def _things(
        self, frame: RecordedFrame, prediction: Prediction, rgb: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the picture with the boxes that were found, and with the true ones."""
        classes, attributes = self._bundle.box_classes, self._bundle.attributes
        drawn: dict[str, np.ndarray] = {}
        if prediction.boxes is None and prediction.class_scores is None:
            return drawn
        assert prediction.size is not None
        wide = _resized(rgb, (_WIDEST, round(rgb.shape[0] * _WIDEST / rgb.shape[1])))
        pred, truth = things_of(frame, prediction, self._bundle)
        for name, values, scores in (
            ('boxes', pred, pred.get('box_scores')),
            ('boxes truth', truth, None),
        ):
            picture = drawn[name] = wide.copy()
            if 'boxes' in values:
                draw_boxes(
                    picture,
                    scale_boxes(values['boxes'], prediction.size, picture.shape[:2]),
                    values['box_labels'],
                    scores,
                    classes,
                    least_score=SURE_SCORE,
                )
            if name == 'boxes' and 'class_scores' in values:
                draw_lines(picture, describe_classes(attributes, values['class_scores']))
            if name == 'boxes truth':
                draw_lines(picture, _named(named_attributes(frame, attributes)))
        if frame.boxes is None and not frame.attributes:
            del drawn['boxes truth']
        return drawn


def _named(attributes: Mapping[str, str | tuple[str, ...]]) -> list[str]:
    return [
        f'{name}: {answer if isinstance(answer, str) else ", ".join(answer) or "-"}'
        for name, answer in attributes.items()
    ]


def choose(shown: list[Shown]) -> list[tuple[str, int]]:
    """Return 'best', 'median' or 'worst' and the index of each frame to be shown."""
    ranked = sorted(
        range(len(shown)), key=lambda i: (-shown[i].rank, shown[i].recording, shown[i].id)
    )
    middle = max(0, (len(ranked) - KEPT) // 2)
    places = {
        'best': range(KEPT),
        'median': range(middle, middle + KEPT),
        'worst': range(len(ranked) - 1, len(ranked) - 1 - KEPT, -1),
    }
    chosen: dict[int, str] = {}
    for title, wanted in places.items():
        for place in wanted:
            if 0 <= place < len(ranked):
                chosen.setdefault(ranked[place], title)
    return [(title, index) for index, title in chosen.items()]


def _admits(kept: Kept, rank: float, index: int) -> bool:
    """Tell whether a frame belongs among the highest of its neighbourhood and of all."""
    near = [other for other, place, _ in kept if abs(place - index) < _APART]
    return rank > max(near) if near else len(kept) < KEPT or rank > min(item[0] for item in kept)


def _admit(kept: Kept, rank: float, index: int, shown: Shown) -> None:
    kept[:] = [item for item in kept if abs(item[1] - index) >= _APART]
    kept.append((rank, index, shown))
    kept.sort(key=lambda item: (-item[0], item[1]))
    del kept[KEPT:]


def _resized(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return rgb if rgb.shape[1::-1] == size else cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


def _jpeg(rgb: np.ndarray) -> bytes:
    height, width = rgb.shape[:2]
    if width > _WIDEST:
        rgb = _resized(rgb, (_WIDEST, round(height * _WIDEST / width)))
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
