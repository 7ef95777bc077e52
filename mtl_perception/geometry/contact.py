"""Where a thing stands on the floor, the picture tells its distance better than its depth does.

The row in which a thing meets a floor of known height is a distance (Horswill, Polly: A
Vision-Based Artificial Agent, AAAI 1993), and what rises upright from there is as far away all the
way up (Badino, Franke and Pfeiffer, The Stixel World, DAGM 2009). A network errs by a seventh of
the distance, by more right before a wall; the row of the contact is off by two or three pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

from mtl_perception.frames import Intrinsics
from mtl_perception.geometry.backprojection import ray_slopes, subsampled
from mtl_perception.geometry.floor import FloorPlane
from mtl_perception.geometry.scan import floor_crossings
from mtl_perception.geometry.workspace import Workspace

# So many rows and columns of the picture are looked at: of 288x384, every third and every fourth.
_ROWS, _COLUMNS = 96, 96
# Rows of these above the contact in which depth is that of the thing: networks blur depth where
# it turns from floor to wall.
_CLEAR_ROWS = 3
# Logarithms of quotients of distances. Nearer by more than this than the row below: another thing,
# before the other. Farther by as much, but not right above the edge: another thing, behind it.
_BREAK = 0.2
# Nearer by more than this than the floor right below: no contact, but something that hangs before
# the floor, like a table's top.
_OVERHANG = 0.3
# More than this to be moved: no contact. Outwards it goes at most so far: what stands on feet is
# nearer than the floor that is seen beneath it.
_FARTHEST, _OUTWARDS = 0.7, 0.1
# What the two ways to tell a distance are weighed by: a network's depth is off by this share
# (standard deviation), the row of the edge by so many pixels.
_DEPTH_STD, _ROW_STD_PX = 0.12, 2.0
# Upright is what has at most this cosine between its normal and the floor's, and shows its face to
# the ray by at least that cosine: a wall seen along its length has no distance of its own.
_UPRIGHT, _FACING = 0.8, 0.3


def contact_factors(
    depth: np.ndarray,
    floor: np.ndarray,
    normals: np.ndarray,
    plane: FloorPlane,
    camera: Intrinsics,
    workspace: Workspace | None = None,
) -> np.ndarray:
    """Return by how much to stretch each pixel's ray so that things stand where they touch floor.

    A pixel belongs to the floor's edge below it in its column if depth is unbroken in between.
    What is upright goes to the upright plane through the edge that has its normal; what is not,
    and what comes after that, moves along with what is right above the edge. How far it goes
    depends on who knows better: near the horizon, and for a low camera, the plane's uncertain tilt
    makes the edge's distance as doubtful as depth.

    A column without floor at the picture's lower end has its contact out of sight: it can't be
    farther than the floor would be in the lowest row that shows anything, and may only come
    nearer.

    Args:
        depth: float32 [H, W], metres along the optical axis; NaN where unknown or removed.
        floor: bool [H, W], what is floor.
        normals: float32 [3, H, W], planes of unit vectors towards the camera; 0 where unknown.
        plane: the floor, with the height that the camera really has; its covariance tells how
            far its tilt is to be trusted.
        camera: of this picture.
        workspace: keeps the result's memory; it is overwritten by the next call then.

    Returns:
        float32 [H, W], above 0; 1 where no contact is known.
    """
    workspace = workspace or Workspace()
    steps = max(1, camera.height // _ROWS), max(1, camera.width // _COLUMNS)
    small = subsampled(camera, *steps)

    def from_below(picture: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(picture[:: steps[0], :: steps[1]][::-1])

    # All of this looks from the lowest row up.
    x, y = ray_slopes(small)
    y = y[::-1]
    rows, columns = small.height, small.width
    row = np.arange(rows, dtype=np.intp)[:, None]
    column = np.arange(columns, dtype=np.intp)[None]
    edge = np.maximum.accumulate(np.where(from_below(floor), row, -1), axis=0)
    out_of_sight = edge < 0
    known_depth = np.isfinite(from_below(depth))
    edge_row = np.where(out_of_sight, known_depth.argmax(axis=0)[None], edge)
    a, b, c = (float(value) for value in plane.normal)
    fall = -(x * a + (y * b + c))
    crossing = floor_crossings(plane, small)[2, ::-1]
    # A ray that is off by an angle meets the floor elsewhere: relative variance of the distance.
    steep = np.square(fall) / np.maximum((x * x + 1) + y * y - np.square(fall), 1e-6)
    tilt = plane.angle_std**2 + (_ROW_STD_PX / camera.fy) ** 2
    doubt = np.divide(
        tilt * np.square(1 + steep), steep, out=np.ones_like(fall), where=fall > 1e-4
    )

    # Flat indices of other pixels in the same column: the edge's last row of floor, the row above
    # it (both the lowest one that shows anything where no floor is in sight), one well up the
    # thing, one of floor.
    last = (rows - 1) * columns
    at_edge = edge_row * columns
    at_thing = np.minimum(at_edge + _CLEAR_ROWS * columns, last) + column
    at_floor = np.maximum(at_edge - columns, 0) + column
    at_next = np.where(out_of_sight, at_edge, np.minimum(at_edge + columns, last)) + column
    at_edge += column
    with np.errstate(divide='ignore', invalid='ignore'):
        far = np.log(from_below(depth))
        # Pixels between two things are left out of depth: what counts is the next one that is in.
        seen = np.maximum.accumulate(np.where(known_depth, row, 0), axis=0)
        change = far.take(seen * columns + column)
        change = change[1:] - change[:-1]
        broken = (change > _BREAK) & (row[1:] > edge[1:] + _CLEAR_ROWS)
        broken |= change < -_BREAK
        last_break = np.maximum.accumulate(np.where(broken, row[1:], -1), axis=0)
        contact = np.log(0.5 * (crossing.take(at_edge) + crossing.take(at_next)))
        slopes = np.broadcast_to(y, crossing.shape).ravel()
        slope = 0.5 * (slopes.take(at_edge) + slopes.take(at_next))
        thing = far.take(at_thing)
        shared = contact - thing
        known = (np.abs(shared) < _FARTHEST) & (thing > far.take(at_floor) - _OVERHANG)
        known |= out_of_sight & (shared < 0)
        known[1:] &= edge[1:] >= last_break

        u, v, w = (from_below(axis) for axis in normals)
        upward = u * a + v * b + w * c
        u -= upward * a
        v -= upward * b
        w -= upward * c
        facing = u * x + w
        sideways = facing + v * slope
        facing += v * y
        own = contact + np.log(sideways / facing) - far
        upright = (np.abs(upward) < _UPRIGHT) & (facing < -_FACING)
        upright &= np.abs(own - shared) < _FARTHEST
        # A wall behind a bed does not stand where the bed does.
        lying = (np.abs(upward) >= _UPRIGHT) & (row > edge)
        upright &= np.maximum.accumulate(np.where(lying, row, -1), axis=0) <= edge
        move = np.where(upright, own, shared)
        weight = _DEPTH_STD**2 / (_DEPTH_STD**2 + doubt.take(at_edge))
        np.multiply(move, weight, out=move, where=~out_of_sight)
        np.minimum(move, np.where(out_of_sight, np.float32(0), np.float32(_OUTWARDS)), out=move)
    np.copyto(move, 0.0, where=~known)
    np.exp(move, out=move)
    out = workspace.array('contact factors', depth.shape)
    move = np.ascontiguousarray(move[::-1], np.float32)
    size = (camera.width, camera.height)
    return cv2.resize(move, size, dst=out, interpolation=cv2.INTER_NEAREST)
