"""Colour pictures of labels, depth and normals, with a legend and a scale.

All pictures are uint8 [H, W, 3] RGB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from .bundle import AttributeSpec, ClassSpec, attribute_slices

INVALID = (128, 128, 128)
"""Grey of pixels without a measurement."""

UNLABELLED = (0, 0, 0)
"""Black of labels outside the classes (255: unlabelled or below the confidence threshold)."""

_PAPER = (24, 26, 30)
_INK = (236, 238, 240)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def colorize_labels(
    label: np.ndarray, classes: Sequence[ClassSpec], out: np.ndarray | None = None
) -> np.ndarray:
    """Paint each pixel in its class' colour; labels that are no class are black.

    Args:
        label: uint8 [H, W].
        classes: in the order of the labels.
        out: uint8 [H, W, 3] to write to; made when None.
    """
    return np.take(_label_table(classes), label, axis=0, out=out, mode='clip')


def overlay(
    rgb: np.ndarray,
    label: np.ndarray,
    classes: Sequence[ClassSpec],
    alpha: float = 0.5,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Lay the class colours over a picture of the same size; unlabelled pixels stay as they are.

    Args:
        rgb: uint8 [H, W, 3].
        label: uint8 [H, W].
        classes: in the order of the labels.
        alpha: share of the class colour, 0..1.
        out: uint8 [H, W, 3] to write to; made when None.
    """
    mixed = cv2.addWeighted(rgb, 1 - alpha, colorize_labels(label, classes), alpha, 0, dst=out)
    return cv2.copyTo(rgb, (label >= len(classes)).view(np.uint8), mixed)


def draw_boxes(
    picture: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    classes: Sequence[ClassSpec],
    *,
    least_score: float = 0.0,
) -> None:
    """Draw boxes with names into a picture, in place; the surest lie on top.

    Args:
        picture: uint8 [H, W, 3], contiguous.
        boxes: float32 [M, 4], x0 y0 x1 y1, pixel areas from index to index + 1.
        labels: integer [M], index of the class; others than the classes are left out.
        scores: float32 [M], written beside the name; None writes the name alone.
        classes: in the order of the labels.
        least_score: boxes with a lower score are left out.
    """
    height, width = picture.shape[:2]
    size = _font_scale(min(max(height / 32, 10), 24))
    line = max(1, round(min(height, width) / 240))
    order = range(len(boxes)) if scores is None else np.argsort(scores, kind='stable')
    for index in order:
        if not 0 <= labels[index] < len(classes):
            continue
        if scores is not None and scores[index] < least_score:
            continue
        spec = classes[labels[index]]
        x0, y0, x1, y1 = (round(float(value)) for value in boxes[index])
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), spec.color, line)
        text = spec.name if scores is None else f'{spec.name} {scores[index]:.2f}'
        _tag(picture, text, (x0, y0), spec.color, size)


def draw_lines(picture: np.ndarray, lines: Sequence[str]) -> None:
    """Write lines of text into the lower left corner of a picture, in place."""
    height = picture.shape[0]
    size = _font_scale(min(max(height / 26, 11), 28))
    step = _tag_height(size)
    for number, text in enumerate(reversed(lines)):
        _tag(picture, text, (0, height - number * step), _PAPER, size)


def describe_classes(attributes: Sequence[AttributeSpec], class_scores: np.ndarray) -> list[str]:
    """Return a line for each attribute: its class with the score, or all that hold.

    Args:
        attributes: in the order of the scores.
        class_scores: float32 [C].
    """
    lines = []
    for attribute, part in attribute_slices(attributes):
        scores = class_scores[part]
        if attribute.kind == 'single':
            best = int(scores.argmax())
            lines.append(f'{attribute.name}: {attribute.classes[best]} {scores[best]:.2f}')
        else:
            holding = [
                f'{name} {score:.2f}'
                for name, score in zip(attribute.classes, scores, strict=True)
                if score >= 0.5
            ]
            lines.append(f'{attribute.name}: {", ".join(holding) or "-"}')
    return lines


def colorize_depth(
    depth: np.ndarray, min_m: float, max_m: float, out: np.ndarray | None = None
) -> np.ndarray:
    """Paint depth with the turbo map: near is warm, far is cold, invalid is grey.

    Equal steps of colour are equal factors of depth, so that near things, which a robot may run
    into, are told apart as well as far ones.

    Args:
        depth: float32 [H, W] metres; NaN, infinite and non-positive values are invalid.
        min_m: depth of the warmest colour, positive.
        max_m: depth of the coldest colour.
        out: uint8 [H, W, 3] to write to; made when None.

    Raises:
        ValueError: not 0 < min_m < max_m.
    """
    if not 0 < min_m < max_m:
        raise ValueError(f'depth range {min_m}..{max_m} m: expected 0 < min_m < max_m')
    invalid = ~(np.isfinite(depth) & (depth > 0))
    steps = cv2.log(np.where(invalid, np.float32(max_m), depth))
    gain = -254 / math.log(max_m / min_m)
    steps *= np.float32(gain)
    steps += np.float32(1.5 - gain * math.log(max_m))
    np.clip(steps, 1, 255, out=steps)
    # Index 0 is kept for the invalid.
    steps[invalid] = 0
    return np.take(_depth_table(), steps.astype(np.uint8), axis=0, out=out, mode='clip')


def colorize_normals(normal: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Paint unit normals of the optical frame; invalid ones (zero or NaN) are grey.

    Red grows to the left, green upwards, blue towards the camera, so that what faces the camera
    is blue, a floor green, and walls to the left and right violet and teal.

    Args:
        normal: float32 [H, W, 3], x right, y down, z forward.
        out: uint8 [H, W, 3] to write to; made when None.
    """
    # All of -127.5 n + 127.5 is positive, so the absolute value that is taken changes nothing,
    # and a zero vector becomes the grey of the invalid.
    painted = cv2.convertScaleAbs(normal, dst=out, alpha=-127.5, beta=127.5)
    unknown = np.isnan(normal[..., 0])
    if unknown.any():
        painted[unknown] = INVALID
    return painted


def legend(classes: Sequence[ClassSpec], height: int) -> np.ndarray:
    """Return a column of `height` pixels that names every class beside its colour."""
    row = height / max(len(classes), 1)
    size = _font_scale(min(row * 0.62, 22))
    widest = max((_text_width(spec.name, size) for spec in classes), default=0)
    swatch = max(6, int(min(row * 0.8, 28)))
    picture = _paper(height, widest + swatch + 20)
    for index, spec in enumerate(classes):
        middle = int((index + 0.5) * row)
        top = middle - swatch // 2
        cv2.rectangle(picture, (6, top), (5 + swatch, top + swatch - 1), spec.color, cv2.FILLED)
        _write(picture, spec.name, 12 + swatch, middle, size)
    return picture


def depth_scale(min_m: float, max_m: float, height: int) -> np.ndarray:
    """Return a column of `height` pixels with the colours of `colorize_depth` and metres."""
    margin = max(8, height // 24)
    bar = height - 2 * margin
    ramp = colorize_depth(np.geomspace(max_m, min_m, bar, dtype=np.float32)[:, None], min_m, max_m)
    size = _font_scale(min(max(height / 24, 9), 18))
    marks = _marks(min_m, max_m, most=max(2, bar // 30))
    texts = [f'{mark:g} m' for mark in marks]
    picture = _paper(height, 36 + max(_text_width(text, size) for text in texts))
    picture[margin : margin + bar, 6:22] = ramp
    for mark, text in zip(marks, texts, strict=True):
        share = math.log(max_m / mark) / math.log(max_m / min_m)
        y = margin + round(share * (bar - 1))
        cv2.line(picture, (22, y), (26, y), _INK, 1)
        _write(picture, text, 30, y, size)
    return picture


def strip(*pictures: np.ndarray, gap: int = 4) -> np.ndarray:
    """Set pictures side by side, brought to the first one's height, `gap` pixels apart."""
    height = pictures[0].shape[0]
    columns: list[np.ndarray] = []
    for picture in pictures:
        if columns:
            columns.append(_paper(height, gap))
        if picture.shape[0] != height:
            width = round(picture.shape[1] * height / picture.shape[0])
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        columns.append(picture)
    return np.hstack(columns)


def _label_table(classes: Sequence[ClassSpec]) -> np.ndarray:
    table = np.full((256, 3), UNLABELLED, np.uint8)
    for index, spec in enumerate(classes):
        table[index] = spec.color
    return table


def _depth_table() -> np.ndarray:
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)
    table = np.ascontiguousarray(ramp[:, 0, ::-1])
    table[0] = INVALID
    return table


def _marks(min_m: float, max_m: float, most: int) -> list[float]:
    """Return at most about `most` round depths within the range, apart on the log scale."""
    rounds = [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 10, 15, 20, 30, 50, 80, 150]
    inside = [mark for mark in rounds if min_m <= mark <= max_m] or [min_m, max_m]
    factor = (max_m / min_m) ** (1 / most)
    chosen: list[float] = []
    for mark in reversed(inside):
        if not chosen or chosen[-1] / mark >= factor:
            chosen.append(mark)
    return chosen


def _paper(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), _PAPER, np.uint8)


def _font_scale(pixels: float) -> float:
    """Return OpenCV's scale for capitals of about 0.7 times `pixels`."""
    return cv2.getFontScaleFromHeight(_FONT, max(6, round(pixels * 0.7)))


def _text_width(text: str, size: float) -> int:
    return cv2.getTextSize(text, _FONT, size, 1)[0][0]


def _tag(
    picture: np.ndarray, text: str, corner: tuple[int, int], color: Sequence[int], size: float
) -> None:
    """Write text on a coloured ground that ends at (x, y), or begins there at the upper rim."""
    (width, letters), _ = cv2.getTextSize(text, _FONT, size, 1)
    height = _tag_height(size)
    x = max(0, min(corner[0], picture.shape[1] - width - 4))
    top = corner[1] - height
    top = max(0, corner[1] if top < 0 else top)
    cv2.rectangle(picture, (x, top), (x + width + 3, top + height - 1), color, cv2.FILLED)
    luminance = 0.3 * color[0] + 0.6 * color[1] + 0.1 * color[2]
    ink = _PAPER if luminance > 130 else _INK
    y = top + (height + letters) // 2
    cv2.putText(picture, text, (x + 2, y), _FONT, size, ink, 1, cv2.LINE_AA)


def _tag_height(size: float) -> int:
    return round(cv2.getTextSize('M', _FONT, size, 1)[0][1] * 1.7)


def _write(picture: np.ndarray, text: str, x: int, middle: int, size: float) -> None:
    """Write text with its capitals centred on the row `middle`."""
    height = cv2.getTextSize('M', _FONT, size, 1)[0][1]
    y = middle + height // 2
    cv2.putText(picture, text, (x, y), _FONT, size, _INK, 1, cv2.LINE_AA)
