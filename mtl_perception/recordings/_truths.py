"""Truth messages of any encoding as `Truth`, boxes and attributes."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl_perception.datasets import IGNORE, decode_normals
from mtl_perception.encodings import (
    EncodingError,
    decode_compressed,
    decode_compressed_depth,
    view_image,
)
from mtl_perception.recordings._base import TrueBoxes, Truth
from mtl_perception.recordings._topics import COMPRESSED


def read_pixels(message: Any, kind: str) -> tuple[np.ndarray, str]:
    if kind == COMPRESSED:
        return decode_compressed(message.data, message.format)
    return (
        view_image(
            message.data,
            message.height,
            message.width,
            message.encoding,
            message.step,
            bool(message.is_bigendian),
        ),
        message.encoding,
    )


def metres(pixels: np.ndarray) -> np.ndarray:
    """Return metres of uint16 millimetres; 0 and 65535 are invalid."""
    metres = pixels.astype(np.float32) * np.float32(0.001)
    metres[pixels == 65535] = 0
    return metres


def _labels(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 labels of integers of any width; negative and large ones are ignored ones."""
    if pixels.dtype == np.uint8:
        return pixels
    return np.where((pixels < 0) | (pixels > IGNORE), IGNORE, pixels).astype(np.uint8)


def _finite(pixels: np.ndarray) -> np.ndarray:
    """Return 0 for NaN and for infinite distances (REP 117: too near or too far)."""
    return np.nan_to_num(pixels, nan=0.0, posinf=0.0, neginf=0.0)


def read_truth(role: str, message: Any, kind: str) -> Truth:
    """Decode a truth message.

    Raises:
        EncodingError: an encoding that cannot hold this kind of truth, or damaged data.
    """
    if kind == COMPRESSED:
        text = str(message.format)
        if role != 'depth' and bytes(message.data[:3]) == b'\xff\xd8\xff':
            raise EncodingError(f'{role} as jpeg is damaged by compression: record it as png')
        if role == 'depth' and 'compressedDepth' in text:
            pixels = decode_compressed_depth(message.data, text)
            encoding = '32FC1' if pixels.dtype == np.float32 else '16UC1'
        else:
            pixels, encoding = decode_compressed(message.data, text)
    elif message.encoding in ('16SC1', '32SC1'):
        unsigned = {'16SC1': '16UC1', '32SC1': '32FC1'}[message.encoding]
        pixels = view_image(
            message.data, message.height, message.width, unsigned, message.step,
            bool(message.is_bigendian),
        ).view(np.int16 if message.encoding == '16SC1' else np.int32)  # fmt: skip
        encoding = message.encoding
    else:
        pixels, encoding = read_pixels(message, kind)
    return _TRUTH_READERS[role](pixels, encoding)


def _read_label(pixels: np.ndarray, encoding: str) -> Truth:
    if encoding in ('mono8', '8UC1', 'mono16', '16UC1', '16SC1', '32SC1'):
        return Truth(pixels, _labels)
    raise EncodingError(f'labels cannot be {encoding}: expected mono8, mono16, 16SC1 or png')


def _read_depth(pixels: np.ndarray, encoding: str) -> Truth:
    if encoding == '32FC1':
        return Truth(pixels, _finite)
    if encoding in ('16UC1', 'mono16'):
        return Truth(pixels, metres)
    raise EncodingError(f'depth cannot be {encoding}: expected 32FC1 (m) or 16UC1 (mm)')


def _read_normal(pixels: np.ndarray, encoding: str) -> Truth:
    if encoding == '32FC3':
        return Truth(pixels, _finite)
    if encoding == 'rgb8':
        return Truth(pixels, decode_normals)
    if encoding == 'bgr8':
        return Truth(pixels[..., ::-1], decode_normals)
    raise EncodingError(
        f'normals cannot be {encoding}: expected 32FC3 or rgb8 / png of (n+1)*127.5'
    )


_TRUTH_READERS = {'label': _read_label, 'depth': _read_depth, 'normal': _read_normal}


def read_boxes(message: Any) -> TrueBoxes:
    """Return the boxes of a Detection2DArray; each is what its likeliest hypothesis says.

    A detection without a hypothesis is a region in which nothing is told apart.
    """
    boxes, names = [], []
    for detection in message.detections:
        box = detection.bbox
        # The upright box around one that is turned has the same center.
        x, y = box.center.position.x, box.center.position.y
        cosine, sine = abs(np.cos(box.center.theta)), abs(np.sin(box.center.theta))
        half_x = (box.size_x * cosine + box.size_y * sine) / 2
        half_y = (box.size_x * sine + box.size_y * cosine) / 2
        boxes.append((x - half_x, y - half_y, x + half_x, y + half_y))
        best = max((r.hypothesis for r in detection.results), key=lambda h: h.score, default=None)
        names.append(None if best is None else str(best.class_id))
    return TrueBoxes(np.array(boxes, np.float32).reshape(-1, 4), tuple(names))


def read_attributes(message: Any) -> dict[str, str | tuple[str, ...]]:
    """Return a Classification's attributes: 'room/kitchen' with a score of 0.5 or more holds.

    Names without an attribute belong to one without a name.
    """
    holding: dict[str, list[str]] = {}
    for result in message.results:
        attribute, _, name = str(result.class_id).rpartition('/')
        answers = holding.setdefault(attribute, [])
        if result.score >= 0.5:
            answers.append(name)
    return {attribute: tuple(answers) for attribute, answers in holding.items()}
