"""Pixels to rays and points, in the optical frame (x right, y down, z forward; REP 103)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mtl_perception.frames import Intrinsics


@lru_cache(maxsize=16)
def ray_slopes(intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Return X / Z of every column, float32 [1, W], and Y / Z of every row, float32 [H, 1].

    The ray of pixel (u, v) is (x[0, u], y[v, 0], 1). The arrays are shared and read-only.
    """
    x = (np.arange(intrinsics.width) - intrinsics.cx) / intrinsics.fx
    y = (np.arange(intrinsics.height) - intrinsics.cy) / intrinsics.fy
    slopes = x.astype(np.float32)[None, :], y.astype(np.float32)[:, None]
    for slope in slopes:
        slope.flags.writeable = False
    return slopes


def check_picture(name: str, picture: np.ndarray, intrinsics: Intrinsics) -> None:
    """Raise ValueError unless `picture` is as large as the camera's `intrinsics` say."""
    if picture.shape[:2] != (intrinsics.height, intrinsics.width):
        raise ValueError(
            f'{name} of shape {picture.shape} does not fit intrinsics of '
            f'{intrinsics.width}x{intrinsics.height}: expected [height, width] of one picture'
        )


def back_project(
    depth: np.ndarray, intrinsics: Intrinsics, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the points that pixels of known depth show.

    Args:
        depth: float32 [H, W], metres along the optical axis; NaN where invalid.
        intrinsics: of this picture.
        out: float32 [3, H, W] to write into.

    Returns:
        float32 [3, H, W]: planes of x, y and z in metres; NaN where depth is.
    """
    check_picture('depth', depth, intrinsics)
    if out is None:
        out = np.empty((3, *depth.shape), np.float32)
    x, y = ray_slopes(intrinsics)
    np.multiply(depth, x, out=out[0])
    np.multiply(depth, y, out=out[1])
    out[2] = depth
    return out


def project(points: np.ndarray, intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
    """Return pixel coordinates u and v of points [3, ...]; NaN for those not in front."""
    z = np.where(points[2] > 0, points[2], np.nan)
    u = points[0] / z * intrinsics.fx + intrinsics.cx
    v = points[1] / z * intrinsics.fy + intrinsics.cy
    return u, v


def subsampled(intrinsics: Intrinsics, rows: int, columns: int) -> Intrinsics:
    """Return the camera of `picture[::rows, ::columns]`: the same rays, fewer of them."""
    return Intrinsics(
        width=-(-intrinsics.width // columns),
        height=-(-intrinsics.height // rows),
        fx=intrinsics.fx / columns,
        fy=intrinsics.fy / rows,
        cx=intrinsics.cx / columns,
        cy=intrinsics.cy / rows,
    )
