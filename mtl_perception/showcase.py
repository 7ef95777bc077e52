"""Puts camera and predictions side by side: as a picture of several moments and as a video."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mtl_perception import views
from mtl_perception.bundle import ClassSpec
from mtl_perception.opencv import quiet

PANEL_WIDTH = 400
GAP = 4
# What browsers play: VP9, which OpenCV's wheels can write, else H.264, which distributions can.
CODECS = ('vp09', 'avc1')
OVERLAY_ALPHA = 0.65

_PAPER = (24, 26, 30)
_INK = (236, 238, 240)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class Moment:
    """One camera picture and what the network says about it; absent tasks are None.

    Attributes:
        rgb: uint8 [H, W, 3].
        label: uint8 [h, w].
        depth: float [h, w], metres, NaN = invalid.
        normal: [h, w, 3], any number type, unit vectors or a multiple of them.
    """

    rgb: np.ndarray
    label: np.ndarray | None = None
    depth: np.ndarray | None = None
    normal: np.ndarray | None = None


class Showcase:
    """Paints moments in one common scale of colours.

    Args:
        classes: of the labels.
        min_m: depth of the warmest colour.
        max_m: depth of the coldest colour.
    """

    def __init__(self, classes: Sequence[ClassSpec], min_m: float, max_m: float) -> None:
        self._classes = list(classes)
        self._range = min_m, max_m

    def panels(self, moment: Moment, titled: bool = True) -> list[np.ndarray]:
        """Return equally large pictures: camera, segmentation, depth, normals (where present)."""
        height = round(PANEL_WIDTH * moment.rgb.shape[0] / moment.rgb.shape[1])
        size = PANEL_WIDTH, height
        rgb = cv2.resize(moment.rgb, size, interpolation=cv2.INTER_AREA)
        panels = {'camera': rgb}
        if moment.label is not None:
            label = cv2.resize(moment.label, size, interpolation=cv2.INTER_NEAREST)
            panels['segmentation'] = views.overlay(rgb, label, self._classes, OVERLAY_ALPHA)
        if moment.depth is not None:
            painted = views.colorize_depth(moment.depth.astype(np.float32), *self._range)
            panels['depth'] = cv2.resize(painted, size, interpolation=cv2.INTER_LINEAR)
        if moment.normal is not None:
            normal = moment.normal.astype(np.float32)
            normal /= np.linalg.norm(normal, axis=-1, keepdims=True).clip(min=1e-6)
            painted = views.colorize_normals(normal)
            panels['normals'] = cv2.resize(painted, size, interpolation=cv2.INTER_LINEAR)
        if titled:
            for title, panel in panels.items():
                _write_title(panel, title)
        return list(panels.values())

    def strip(self, moments: Sequence[Moment]) -> np.ndarray:
        """Return one row per moment, with the legend and the depth scale, uint8 [H, W, 3] RGB."""
        rows = [
            views.strip(*self.panels(moment, titled=index == 0), gap=GAP)
            for index, moment in enumerate(moments)
        ]
        return self._with_keys(_stack(rows))

    def square(self, moment: Moment) -> np.ndarray:
        """Return camera, segmentation, depth and normals two by two, with legend and scale."""
        panels = self.panels(moment)
        rows = [views.strip(*panels[i : i + 2], gap=GAP) for i in range(0, len(panels), 2)]
        width = max(row.shape[1] for row in rows)
        return self._with_keys(_stack([_pad(row, width) for row in rows]))

    def _with_keys(self, picture: np.ndarray) -> np.ndarray:
        height = picture.shape[0]
        # Keys longer than two panels would only be harder to read.
        key = min(height, 2 * round(PANEL_WIDTH * 3 / 4))
        keys = [views.legend(self._classes, key)] if self._classes else []
        keys.append(views.depth_scale(*self._range, key))
        return views.strip(picture, *(_grow(one, height) for one in keys), gap=GAP)


def depth_range(depths: Iterable[np.ndarray]) -> tuple[float, float]:
    """Return near and far ends for the colours of depth pictures, in metres.

    The outermost two percent of the pixels do not stretch the scale.
    """
    values = [depth[np.isfinite(depth) & (depth > 0)][::97] for depth in depths]
    pixels = np.concatenate([*values, np.empty(0)]).astype(np.float32)
    if not pixels.size:
        return 0.5, 10.0
    near, far = (float(value) for value in np.percentile(pixels, (2, 98)))
    near = max(0.1, math.floor(near * 5) / 5)
    return near, max(near + 0.5, math.ceil(far * 2) / 2)


def write_video(
    path: Path,
    pictures: Iterable[np.ndarray],
    fps: float,
    on_picture: Callable[[], None] | None = None,
) -> Path | None:
    """Write a video that browsers play, or an animated webp where no such codec is at hand.

    Args:
        path: without a suffix, which tells the kind.
        pictures: uint8 [H, W, 3] RGB, all of one size.
        fps: pictures per second.
        on_picture: called after each picture.

    Returns:
        What was written; None when OpenCV can write neither.
    """
    pictures = iter(pictures)
    first = next(pictures, None)
    if first is None:
        return None
    # Codecs store colour at half the resolution and so need even sizes.
    height, width = (length // 2 * 2 for length in first.shape[:2])
    target = path.with_suffix('.mp4')
    # A video that was cut off can't be played: it gets its name when it is whole.
    partial = path.with_suffix('.partial.mp4')
    writer = _open_writer(partial, fps, (width, height))
    if writer is None:
        partial.unlink(missing_ok=True)
        return _write_webp(path.with_suffix('.webp'), [first, *pictures], fps)
    for picture in itertools.chain([first], pictures):
        writer.write(cv2.cvtColor(picture[:height, :width], cv2.COLOR_RGB2BGR))
        if on_picture is not None:
            on_picture()
    writer.release()
    partial.replace(target)
    return target


def _open_writer(path: Path, fps: float, size: tuple[int, int]) -> cv2.VideoWriter | None:
    with quiet():
        for codec in CODECS:
            fourcc = cv2.VideoWriter_fourcc(*codec)
            writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, fps, size)
            if writer.isOpened():
                return writer
    return None


def _write_webp(path: Path, pictures: list[np.ndarray], fps: float) -> Path | None:
    if not hasattr(cv2, 'imwriteanimation'):
        return None
    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) for picture in pictures]
    animation.durations = np.full(len(pictures), round(1000 / fps), np.int32)
    cv2.imwriteanimation(str(path), animation, [cv2.IMWRITE_WEBP_QUALITY, 70])
    return path


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    paper = np.full((GAP, rows[0].shape[1], 3), _PAPER, np.uint8)
    parts = [part for row in rows for part in (paper, row)]
    return np.vstack(parts[1:])


def _pad(picture: np.ndarray, width: int) -> np.ndarray:
    """Fill up with paper on the right."""
    missing = width - picture.shape[1]
    return cv2.copyMakeBorder(picture, 0, 0, 0, missing, cv2.BORDER_CONSTANT, value=_PAPER)


def _grow(picture: np.ndarray, height: int) -> np.ndarray:
    """Fill up with paper below."""
    missing = height - picture.shape[0]
    return cv2.copyMakeBorder(picture, 0, missing, 0, 0, cv2.BORDER_CONSTANT, value=_PAPER)


def _write_title(panel: np.ndarray, title: str) -> None:
    (width, height), base = cv2.getTextSize(title, _FONT, 0.6, 1)
    cv2.rectangle(panel, (0, 0), (width + 16, height + base + 10), _PAPER, cv2.FILLED)
    cv2.putText(panel, title, (8, height + 7), _FONT, 0.6, _INK, 1, cv2.LINE_AA)
