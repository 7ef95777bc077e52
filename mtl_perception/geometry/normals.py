"""Surface normals from a depth picture."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from mtl_perception.frames import Intrinsics

NORMALS_SOURCE = 'derived-11'
_MIN_PIXELS = 6


def normals_from_depth(depth: np.ndarray, intrinsics: Intrinsics, window: int = 11) -> np.ndarray:
    """Fit a plane around every pixel and return its normal, turned towards the camera.

    A plane a X + b Y + c Z = 1 seen by a pinhole camera has the inverse depth
    1 / Z = a x + b y + c, with x = (u - cx) / fx and y = (v - cy) / fy: it is linear in the
    picture. So one least-squares fit of 1 / Z over `window` x `window` pixels gives the normal
    (a, b, c), and box filters give every sum of the fit. Beyond the border, pixels are mirrored
    together with their coordinates, which keeps planes exact up to the border.

    With `window=11` at 288x384 this is the fit named 'derived-11', frozen so that figures stay
    comparable.

    Args:
        depth: [H, W], metres along the optical axis; not finite or <= 0 is invalid.
        intrinsics: of this picture.
        window: odd number of pixels.

    Returns:
        float32 [H, W, 3], unit vectors in the optical frame (x right, y down, z forward);
        (0, 0, 0) where depth is invalid or too few neighbours are valid.
    """
    if depth.ndim != 2 or (intrinsics.height, intrinsics.width) != depth.shape:
        raise ValueError(
            f'depth of shape {depth.shape} does not fit intrinsics of '
            f'{intrinsics.width}x{intrinsics.height}: expected [height, width] of one picture'
        )
    if window < 3 or window % 2 == 0:
        raise ValueError(f'window={window}: expected an odd number of at least 3 pixels')
    depth = depth.astype(np.float64)
    valid = np.isfinite(depth) & (depth > 0)
    inverse = np.divide(1.0, depth, out=np.zeros_like(depth), where=valid)
    grid = _whole_grid(intrinsics, window) if valid.all() else _Grid(intrinsics, window, valid)
    mean_w = _box(inverse, window) * grid.per_count
    cov_xw = _box(grid.x * inverse, window) * grid.per_count - grid.mean_x * mean_w
    cov_yw = _box(grid.y * inverse, window) * grid.per_count - grid.mean_y * mean_w
    a = (grid.cov_yy * cov_xw - grid.cov_xy * cov_yw) * grid.scale
    b = (grid.cov_xx * cov_yw - grid.cov_xy * cov_xw) * grid.scale
    c = mean_w - a * grid.mean_x - b * grid.mean_y
    # (a, b, c) . (x, y, 1) is the fitted inverse depth; positive means: away from the camera.
    away = np.where(a * grid.x + b * grid.y + c > 0, -1.0, 1.0)
    length = np.sqrt(a * a + b * b + c * c)
    known = grid.known & (length > 0)
    factor = np.divide(away, length, out=np.zeros_like(length), where=known)
    normal = np.empty((*depth.shape, 3), np.float32)
    for index, component in enumerate((a, b, c)):
        np.multiply(component, factor, out=normal[..., index], casting='same_kind')
    return normal


def _box(values: np.ndarray, window: int) -> np.ndarray:
    return cv2.boxFilter(
        values, cv2.CV_64F, (window, window), normalize=False, borderType=cv2.BORDER_REFLECT
    )


class _Grid:
    """The part of the fit that depends on the camera and on which pixels are valid alone."""

    def __init__(self, intrinsics: Intrinsics, window: int, valid: np.ndarray) -> None:
        weight = valid.astype(np.float64)
        x = ((np.arange(intrinsics.width) - intrinsics.cx) / intrinsics.fx)[None, :] * weight
        y = ((np.arange(intrinsics.height) - intrinsics.cy) / intrinsics.fy)[:, None] * weight
        count = _box(weight, window)
        known = valid & (count > _MIN_PIXELS - 0.5)
        per_count = np.divide(1.0, count, out=np.zeros_like(count), where=known)
        mean_x, mean_y = _box(x, window) * per_count, _box(y, window) * per_count
        cov_xx = _box(x * x, window) * per_count - mean_x * mean_x
        cov_yy = _box(y * y, window) * per_count - mean_y * mean_y
        cov_xy = _box(x * y, window) * per_count - mean_x * mean_y
        determinant = cov_xx * cov_yy - cov_xy * cov_xy
        # Neighbours on one line fix no plane; their determinant is zero but for rounding.
        pixel_area = 1.0 / (intrinsics.fx * intrinsics.fy)
        known &= determinant > 1e-3 * pixel_area**2
        self.x, self.y, self.per_count, self.known = x, y, per_count, known
        self.mean_x, self.mean_y = mean_x, mean_y
        self.cov_xx, self.cov_yy, self.cov_xy = cov_xx, cov_yy, cov_xy
        self.scale = np.divide(1.0, determinant, out=np.zeros_like(count), where=known)


@lru_cache(maxsize=4)
def _whole_grid(intrinsics: Intrinsics, window: int) -> _Grid:
    valid = np.ones((intrinsics.height, intrinsics.width), bool)
    return _Grid(intrinsics, window, valid)
