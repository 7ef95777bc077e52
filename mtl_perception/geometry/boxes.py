"""Boxes in the picture, and where in the room the things in them stand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtl_perception.frames import Intrinsics

_LEAST_PIXELS = 12
_NEAR_SHARE, _FAR_SHARE = 0.05, 0.95


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union of boxes x0 y0 x1 y1: [A, 4] and [B, 4] give [A, B]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = (high - low).clip(min=0).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).clip(min=0).prod(axis=1) for b in (boxes, others)]
    union = areas[0][:, None] + areas[1][None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def scale_boxes(boxes: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Return boxes [M, 4] of a picture of (height, width) `size` for one of `new_size`."""
    (height, width), (new_height, new_width) = size, new_size
    return boxes * np.array([new_width / width, new_height / height] * 2)


@dataclass(frozen=True)
class ThingsInSpace:
    """Things in the camera's optical frame; the axes of their boxes are the camera's.

    Attributes:
        center: float64 [M, 3], metres; NaN where the depth says nothing.
        size: float64 [M, 3], metres along x, y and z.
    """

    center: np.ndarray
    size: np.ndarray


def locate(
    boxes: np.ndarray,
    depth: np.ndarray,
    intrinsics: Intrinsics,
    masks: list[np.ndarray | None] | None = None,
) -> ThingsInSpace:
    """Return where the things in boxes are.

    A thing's distance is the median depth of its pixels, which neither its background nor what
    stands before it moves as long as most pixels are its own. Its width and height are those of
    the box at that distance. Along the optical axis only the side that is seen can be measured:
    the size there is the spread of the thing's depths (its 5 to 95 % range), without those further
    from the median than the thing is wide and high.

    Args:
        boxes: float [M, 4], x0 y0 x1 y1, pixel areas from index to index + 1 (0..W, 0..H).
        depth: float32 [H, W], metres; what is not finite or not positive is unknown.
        intrinsics: of the depth picture.
        masks: for each box a bool picture [H, W] of the pixels that may be the thing's own, or
            None where all of the box's are; where fewer than 12 lie in the box, all count.
    """
    center = np.full((len(boxes), 3), np.nan)
    size = np.full((len(boxes), 3), np.nan)
    height, width = depth.shape
    for index, (x0, y0, x1, y1) in enumerate(np.asarray(boxes, np.float64)):
        rows = slice(max(0, int(np.floor(y0))), min(height, int(np.ceil(y1))))
        columns = slice(max(0, int(np.floor(x0))), min(width, int(np.ceil(x1))))
        inside = depth[rows, columns]
        valid = np.isfinite(inside) & (inside > 0)
        mask = masks[index] if masks is not None else None
        if mask is not None:
            own = valid & mask[rows, columns]
            if np.count_nonzero(own) >= _LEAST_PIXELS:
                valid = own
        values = inside[valid].astype(np.float64)
        if not values.size:
            continue
        z = float(np.median(values))
        extent = np.array([(x1 - x0) / intrinsics.fx, (y1 - y0) / intrinsics.fy]) * z
        near = values[np.abs(values - z) <= extent.max()]
        low, high = np.quantile(near, [_NEAR_SHARE, _FAR_SHARE])
        # Pixel areas reach from index to index + 1, intrinsics speak of pixel centres.
        u, v = (x0 + x1) / 2 - 0.5, (y0 + y1) / 2 - 0.5
        center[index] = (
            (u - intrinsics.cx) / intrinsics.fx * z,
            (v - intrinsics.cy) / intrinsics.fy * z,
            z,
        )
        size[index] = (*extent, high - low)
    return ThingsInSpace(center, size)
