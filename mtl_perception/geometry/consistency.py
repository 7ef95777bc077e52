"""Where depth and predicted normals contradict each other, neither is to be trusted.

All of this works on slopes of the inverse depth w = 1 / Z, because a plane's w is linear in the
picture: a surface with normal n seen along the ray r has dw/du / w = n_x / (fx n . r), without
regard to its distance. A slope is relative: the share of w that changes from one pixel to the
next.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mtl_perception.frames import Intrinsics
from mtl_perception.geometry.backprojection import check_picture, ray_slopes
from mtl_perception.geometry.workspace import Workspace

# A surface seen so flat that one pixel covers more than this share of its depth has no slope that
# could be predicted.
STEEPEST = 0.5


@dataclass(frozen=True)
class Slopes:
    """Relative change of inverse depth per pixel, float32 [H, W] along u and along v."""

    u: np.ndarray
    v: np.ndarray


def depth_slopes(
    inverse_depth: np.ndarray, half_window: int = 2, workspace: Workspace | None = None
) -> Slopes:
    """Measure slopes by least squares over a square of pixels.

    Args:
        inverse_depth: float32 [H, W], 1/m; 0 where invalid.
        half_window: pixels on either side.
        workspace: keeps the results' memory; they are overwritten by the next call then.
    """
    workspace = workspace or Workspace()
    size = 2 * half_window + 1
    ramp = np.arange(-half_window, half_window + 1, dtype=np.float32)
    ramp /= size * float(np.square(ramp).sum())
    mean = np.ones(size, np.float32)
    shape = inverse_depth.shape
    divisor = workspace.array('slope divisor', shape)
    np.maximum(inverse_depth, 1e-6, out=divisor)
    slopes = []
    for axis, name in ((1, 'depth slope u'), (0, 'depth slope v')):
        out = workspace.array(name, shape)
        kernels = (ramp, mean) if axis == 1 else (mean, ramp)
        cv2.sepFilter2D(
            inverse_depth, cv2.CV_32F, *kernels, dst=out, borderType=cv2.BORDER_REFLECT_101
        )
        # A mirrored ramp has no slope: the border takes that of its nearest whole window.
        turned = out if axis == 0 else out.T
        if turned.shape[0] > 2 * half_window:
            turned[:half_window] = turned[half_window]
            turned[-half_window:] = turned[-half_window - 1]
        np.divide(out, divisor, out=out)
        slopes.append(out)
    return Slopes(*slopes)


def normal_slopes(
    normals: np.ndarray, intrinsics: Intrinsics, workspace: Workspace | None = None
) -> Slopes:
    """Return the slopes that surfaces with these normals must show.

    Args:
        normals: float32 [3, H, W], planes of unit vectors; 0 where unknown.
        intrinsics: of this picture.
        workspace: keeps the results' memory; they are overwritten by the next call then.
    """
    check_picture('normals', normals[0], intrinsics)
    workspace = workspace or Workspace()
    x, y = ray_slopes(intrinsics)
    shape = normals[0].shape
    facing = workspace.array('facing', shape)
    u = workspace.array('normal slope u', shape)
    v = workspace.array('normal slope v', shape)
    np.multiply(normals[0], x, out=facing)
    np.multiply(normals[1], y, out=u)
    np.add(facing, u, out=facing)
    np.add(facing, normals[2], out=facing)
    # A normal may not point away from the camera; one that does is at best seen edge-on.
    np.minimum(facing, -1e-3, out=facing)
    for component, focal, out in ((0, intrinsics.fx, u), (1, intrinsics.fy, v)):
        np.divide(normals[component], facing, out=out)
        np.multiply(out, 1.0 / focal, out=out)
        np.clip(out, -STEEPEST, STEEPEST, out=out)
    return Slopes(u, v)


def slope_normals(
    slopes: Slopes, intrinsics: Intrinsics, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the unit normals, towards the camera, that have these slopes: float32 [3, H, W]."""
    x, y = ray_slopes(intrinsics)
    if out is None:
        out = np.empty((3, *slopes.u.shape), np.float32)
    np.multiply(slopes.u, -intrinsics.fx, out=out[0])
    np.multiply(slopes.v, -intrinsics.fy, out=out[1])
    np.multiply(out[0], -x, out=out[2])
    out[2] -= out[1] * y
    out[2] -= 1
    out /= np.sqrt(np.square(out).sum(axis=0))
    return out


def normal_agreement(
    slopes: Slopes,
    normals: np.ndarray,
    intrinsics: Intrinsics,
    workspace: Workspace | None = None,
) -> np.ndarray:
    """Return the cosine between depth-derived and predicted normals, float32 [H, W].

    It is 0 where the predicted normal is unknown (0, 0, 0).
    """
    workspace = workspace or Workspace()
    x, y = ray_slopes(intrinsics)
    shape = slopes.u.shape
    cosine = workspace.array('normal agreement', shape)
    a = workspace.array('agreement a', shape)
    b = workspace.array('agreement b', shape)
    c = workspace.array('agreement c', shape)
    product = workspace.array('agreement product', shape)
    # (a, b, c) is the measured normal, away from the camera: (a, b, c) . ray = 1.
    np.multiply(slopes.u, intrinsics.fx, out=a)
    np.multiply(slopes.v, intrinsics.fy, out=b)
    np.multiply(a, x, out=c)
    np.subtract(1.0, c, out=c)
    np.multiply(b, y, out=product)
    np.subtract(c, product, out=c)
    np.multiply(a, normals[0], out=cosine)
    np.multiply(b, normals[1], out=product)
    np.add(cosine, product, out=cosine)
    np.multiply(c, normals[2], out=product)
    np.add(cosine, product, out=cosine)
    for part in (a, b, c):
        np.multiply(part, part, out=part)
    np.add(a, b, out=a)
    np.add(a, c, out=a)
    np.sqrt(a, out=a)
    np.divide(cosine, a, out=cosine)
    np.negative(cosine, out=cosine)
    return cosine


def agreement_share(
    agreement: np.ndarray, *, full_at: float = 0.8, none_at: float = 0.2, least: float = 0.25
) -> np.ndarray:
    """Return the share of confidence that a contradiction leaves, uint8 of 255, same shape.

    Args:
        agreement: of `normal_agreement`.
        full_at: cosine from which on nothing is taken away (0.8 is 37 degrees; predicted
            normals are 15 to 25 degrees off even where all is well).
        none_at: cosine up to which only the share `least` is left.
        least: a contradiction says that the geometry is doubtful, not that the label is wrong.
    """
    slope = 255 * (1 - least) / (full_at - none_at)
    share = agreement * slope
    share += 255 * least - none_at * slope + 0.5
    np.clip(share, 255 * least, 255, out=share)
    return share.astype(np.uint8)


def depth_deviation(
    measured: Slopes, predicted: Slopes, relative_noise: float, half_window: float
) -> np.ndarray:
    """Return the relative standard deviation of depth, float32 [H, W], at most 1.

    Two parts: the noise of the whole picture, as the fit of the floor shows it, and, over half a
    window, the difference between the slope that depth has and the slope that normals want.
    """
    variance = np.square(measured.u - predicted.u)
    variance += np.square(measured.v - predicted.v)
    variance *= half_window**2
    variance += relative_noise**2
    np.minimum(variance, 1.0, out=variance)
    return np.sqrt(variance, out=variance)
