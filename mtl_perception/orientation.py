"""Cameras mounted on their side: turn the picture upright, and what was seen back again."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from mtl_perception.encodings import to_rgb
from mtl_perception.frames import CameraFrame, Intrinsics, Prediction

TURNS = {
    90: cv2.ROTATE_90_CLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_COUNTERCLOCKWISE,
}


def turn_image(image: np.ndarray, degrees: int) -> np.ndarray:
    """Turn an array [H, W] or [H, W, C] clockwise by 0, 90, 180 or 270 degrees."""
    return image if degrees % 360 == 0 else cv2.rotate(image, TURNS[degrees % 360])


def turn_intrinsics(intrinsics: Intrinsics, degrees: int) -> Intrinsics:
    """Return the camera of the picture that was turned clockwise.

    A pixel (u, v) of the W x H picture lies at (H - 1 - v, u) after 90 degrees.
    """
    width, height = intrinsics.width, intrinsics.height
    fx, fy, cx, cy = intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy
    match degrees % 360:
        case 90:
            return Intrinsics(height, width, fy, fx, height - 1 - cy, cx)
        case 180:
            return Intrinsics(width, height, fx, fy, width - 1 - cx, height - 1 - cy)
        case 270:
            return Intrinsics(height, width, fy, fx, cy, width - 1 - cx)
    return intrinsics


def turn_rotation(degrees: int) -> np.ndarray:
    """Return what turning the picture clockwise does to vectors of its frame, float64 [3, 3]."""
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees % 360]
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def turn_normals(normals: np.ndarray, degrees: int) -> np.ndarray:
    """Turn a field of normals [H, W, 3] clockwise: both their places and the vectors themselves.

    Returns:
        A new array, except for 0 degrees.
    """
    if degrees % 360 == 0:
        return normals
    turned = turn_image(normals, degrees)
    match degrees % 360:
        case 90:
            turned[..., 0], turned[..., 1] = -turned[..., 1], turned[..., 0].copy()
        case 180:
            turned[..., :2] *= -1
        case 270:
            turned[..., 0], turned[..., 1] = turned[..., 1].copy(), -turned[..., 0]
    return turned


def turn_boxes(boxes: np.ndarray, size: tuple[int, int], degrees: int) -> np.ndarray:
    """Turn boxes clockwise with their picture.

    Args:
        boxes: float32 [M, 4], x0 y0 x1 y1.
        size: (height, width) of the picture before it is turned.
        degrees: 0, 90, 180 or 270.
    """
    (height, width), (x0, y0, x1, y1) = size, boxes.T
    match degrees % 360:
        case 90:
            columns = (height - y1, x0, height - y0, x1)
        case 180:
            columns = (width - x1, height - y1, width - x0, height - y0)
        case 270:
            columns = (y0, width - x1, y1, width - x0)
        case _:
            return boxes
    return np.stack(columns, axis=1)


def turn_frame(frame: CameraFrame, degrees: int) -> CameraFrame:
    """Return the frame turned clockwise, in rgb8; itself for 0 degrees.

    Raises:
        EncodingError: its pixels do not fit their encoding.
    """
    if degrees % 360 == 0:
        return frame
    intrinsics, valid = frame.intrinsics, frame.valid
    return replace(
        frame,
        pixels=turn_image(to_rgb(frame.pixels, frame.encoding), degrees),
        encoding='rgb8',
        valid=None if valid is None else turn_image(valid, degrees),
        intrinsics=None if intrinsics is None else turn_intrinsics(intrinsics, degrees),
    )


def turn_prediction(prediction: Prediction, degrees: int) -> Prediction:
    """Return a prediction with all maps, normals, boxes and intrinsics turned clockwise."""
    if degrees % 360 == 0:
        return prediction
    maps = {
        name: None if values is None else turn_image(values, degrees)
        for name, values in (
            ('label', prediction.label),
            ('confidence', prediction.confidence),
            ('depth', prediction.depth),
        )
    }
    normal, intrinsics = prediction.normal, prediction.intrinsics
    boxes, size = prediction.boxes, prediction.size
    if boxes is not None:
        assert size is not None
        boxes = turn_boxes(boxes, size, degrees)
    if size is not None and degrees % 180:
        size = size[::-1]
    return replace(
        prediction,
        **maps,
        boxes=boxes,
        picture_size=size,
        normal=None if normal is None else turn_normals(normal, degrees),
        intrinsics=None if intrinsics is None else turn_intrinsics(intrinsics, degrees),
    )
