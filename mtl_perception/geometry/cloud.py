"""The organised cloud: one point per pixel, laid out as the `points` topic sends it."""

from __future__ import annotations

import cv2
import numpy as np

from mtl_perception.geometry.workspace import Workspace

# Every field at a multiple of its size: readers may map it onto a C struct (PCL does).
POINT = np.dtype(
    {
        'names': [
            'x', 'y', 'z', 'rgb', 'label', 'confidence', 'normal_x', 'normal_y', 'normal_z',
        ],
        'formats': ['<f4', '<f4', '<f4', '<f4', 'u1', 'u1', '<f4', '<f4', '<f4'],
        'offsets': [0, 4, 8, 12, 16, 17, 20, 24, 28],
        'itemsize': 32,
    }
)  # fmt: skip

# Pixels on either side of one that may hang between two surfaces: networks blur depth edges over
# 4 to 8 pixels at 288x384.
_EDGE_REACH = 2
# Without predicted normals a ramp of depth counts as a surface up to this relative slope per
# pixel: the floor seen from 0.3 m height at 5 m distance has 0.054 at 288x384.
_STEEPEST_SURFACE = 0.06


def flying_pixels(
    inverse_depth: np.ndarray,
    steepness: np.ndarray | None,
    *,
    jump: float = 0.04,
    workspace: Workspace | None = None,
) -> np.ndarray:
    """Find pixels that hang between two surfaces, where depth blurs across an edge.

    Such a pixel has both nearer and farther neighbours (5x5), each by more than `jump` and more
    than the surface's own slope explains. A sharp edge between two pixels has none, and thin
    things in front of a wall keep theirs.

    Args:
        inverse_depth: float32 [H, W], 1/m; 0 where invalid.
        steepness: float32 [H, W], relative change of inverse depth per pixel that the predicted
            normals explain; None when there are no normals.
        jump: relative change of inverse depth.
        workspace: keeps the result's memory; it is overwritten by the next call then.

    Returns:
        bool [H, W].
    """
    workspace = workspace or Workspace()
    shape = inverse_depth.shape
    window = np.ones((2 * _EDGE_REACH + 1,) * 2, np.uint8)
    nearer = workspace.array('nearer', shape)
    farther = workspace.array('farther', shape)
    cv2.dilate(inverse_depth, window, dst=nearer)
    cv2.erode(inverse_depth, window, dst=farther)
    np.subtract(nearer, inverse_depth, out=nearer)
    np.subtract(inverse_depth, farther, out=farther)
    between = np.minimum(nearer, farther, out=nearer)
    limit = farther
    if steepness is None:
        np.multiply(inverse_depth, jump + _EDGE_REACH * _STEEPEST_SURFACE, out=limit)
    else:
        np.multiply(steepness, _EDGE_REACH, out=limit)
        np.add(limit, jump, out=limit)
        np.multiply(limit, inverse_depth, out=limit)
    return np.greater(between, limit, out=workspace.array('flying', shape, np.bool_))


def pack_rgb(rgb: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return colours as PCL packs them, float32 [H, W] whose bits are 0x00RRGGBB.

    Args:
        rgb: uint8 [H, W, 3].
        out: uint8 [H, W, 4] to work in.
    """
    bgra = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA, dst=out)
    bits = bgra.view('<u4')[..., 0]
    bits &= np.uint32(0x00FFFFFF)
    return bits.view('<f4')


def pack_tags(
    label: np.ndarray | None, confidence: np.ndarray | None, out: np.ndarray
) -> np.ndarray:
    """Return labels and confidences as the four bytes that records hold, float32 [H, W].

    Args:
        label: uint8 [H, W]; 255 (unlabelled) when None.
        confidence: uint8 [H, W]; 255 when None.
        out: uint8 [H, W, 4] to work in.
    """
    shape = out.shape[:2]
    nothing = np.zeros(shape, np.uint8)
    label = np.full(shape, 255, np.uint8) if label is None else label
    confidence = np.full(shape, 255, np.uint8) if confidence is None else confidence
    return cv2.merge([label, confidence, nothing, nothing], dst=out).view('<f4')[..., 0]


def organised_cloud(
    points: np.ndarray,
    rgb: np.ndarray | None = None,
    label: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    normals: np.ndarray | None = None,
    *,
    out: np.ndarray | None = None,
    workspace: Workspace | None = None,
) -> np.ndarray:
    """Interleave planes into one record per pixel.

    Args:
        points: float32 [3, H, W]; NaN where there is no point.
        rgb: uint8 [H, W, 3]; black when None.
        label: uint8 [H, W]; 255 (unlabelled) when None.
        confidence: uint8 [H, W]; 255 when None.
        normals: float32 [3, H, W]; NaN when None.
        out: POINT [H, W] to write into, contiguous; may be a view of a message's bytes.
        workspace: memory for what lies between.

    Returns:
        POINT [H, W].
    """
    workspace = workspace or Workspace()
    shape = points.shape[1:]
    if out is None:
        out = np.empty(shape, POINT)
    if out.shape != shape or out.dtype != POINT or not out.flags.c_contiguous:
        raise ValueError(
            f'out is {out.dtype} of shape {out.shape}: expected a contiguous array of POINT '
            f'of shape {shape}'
        )
    if rgb is None:
        colour = workspace.array('colour', shape)
        colour.fill(0)
    else:
        colour = pack_rgb(rgb, workspace.array('colour', (*shape, 4), np.uint8))
    tags = pack_tags(label, confidence, workspace.array('tags', (*shape, 4), np.uint8))
    if normals is None:
        unknown = workspace.array('unknown normal', shape)
        unknown.fill(np.nan)
        normals = (unknown, unknown, unknown)
    records = out.view('<f4').reshape(*shape, 8)
    # Only bits are copied: what is no number as float (label, colour) comes through unharmed.
    cv2.merge([*points, colour, tags, *normals], dst=records)
    return out


def thin_by_stride(cloud: np.ndarray, step: int) -> np.ndarray:
    """Return every `step`-th row and column, still organised, as a contiguous copy."""
    if step < 1:
        raise ValueError(f'step={step}: expected 1 (all points) or more')
    return np.ascontiguousarray(cloud[::step, ::step])


def thin_by_voxel(cloud: np.ndarray, size: float) -> np.ndarray:
    """Return at most one point per cube of `size` metres, and none that is NaN.

    The surest point stands for its cube, the nearest among equally sure ones; the order of the
    pixels does not matter.

    Args:
        cloud: structured array of any shape with fields x, y, z and confidence.
        size: edge of a cube, metres.

    Returns:
        The same dtype, [K], ordered by cube.
    """
    if not size > 0:
        raise ValueError(f'voxel size={size}: expected a length in metres above 0')
    flat = cloud.reshape(-1)
    flat = flat[np.isfinite(flat['z'])]
    if flat.size == 0:
        return flat
    cubes = np.stack([np.floor(flat[axis] / np.float32(size)) for axis in 'xyz']).astype(np.int64)
    cubes -= cubes.min(axis=1, keepdims=True)
    extent = cubes.max(axis=1) + 1
    key = (cubes[0] * extent[1] + cubes[1]) * extent[2] + cubes[2]
    order = np.lexsort(
        (flat['x'], flat['y'], flat['z'], -flat['confidence'].astype(np.int16), key)
    )
    key = key[order]
    first = np.ones(key.size, bool)
    np.not_equal(key[1:], key[:-1], out=first[1:])
    return flat[order[first]]
