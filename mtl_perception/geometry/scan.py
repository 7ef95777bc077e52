"""A planar scan, as a laser scanner at the robot's base would give it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mtl_perception.frames import Intrinsics
from mtl_perception.geometry.backprojection import ray_slopes
from mtl_perception.geometry.floor import FloorPlane


@dataclass(frozen=True)
class ScanConfig:
    """Beams of the scan, angles in radians, counter-clockwise from the base frame's x axis."""

    angle_min: float = -math.pi / 4
    angle_max: float = math.pi / 4
    angle_increment: float = math.radians(0.5)
    range_min: float = 0.05
    range_max: float = 5.0

    def __post_init__(self) -> None:
        if not (self.angle_increment > 0 and self.angle_max > self.angle_min):
            raise ValueError(
                f'scan from {self.angle_min} to {self.angle_max} by {self.angle_increment}: '
                'expected angle_min < angle_max and a positive increment, in radians'
            )

    @property
    def beams(self) -> int:
        """Number of ranges."""
        return round((self.angle_max - self.angle_min) / self.angle_increment) + 1


def scan_config_for(
    intrinsics: Intrinsics, base_from_camera: np.ndarray, range_max: float = 5.0
) -> ScanConfig:
    """Return beams that cover the camera's view, in steps of 0.5 degree.

    Coarse pictures get multiples of it, so that no beam falls between two columns.
    """
    x, y = (slopes.reshape(-1)[[0, -1]].astype(np.float64) for slopes in ray_slopes(intrinsics))
    corners = np.array([[x[0], x[1], x[1], x[0]], [y[0], y[0], y[1], y[1]], [1.0, 1.0, 1.0, 1.0]])
    directions = base_from_camera[:2, :3] @ np.column_stack([corners, corners.mean(axis=1)])
    step = ScanConfig.angle_increment
    step *= math.ceil(1.5 / intrinsics.fx / step)
    *angles, heading = (math.atan2(dy, dx) for dx, dy in directions.T)
    # Along a straight border the direction turns one way only: the corners are the widest. The
    # turns add up to a whole one where the camera sees what is right below it.
    turns = [_half_turn(b - a) for a, b in zip(angles, angles[1:] + angles[:1], strict=True)]
    if abs(sum(turns)) > math.pi:
        widest = [-math.pi, math.pi]
    else:
        widest = [_half_turn(angle - heading) for angle in angles]
    # In whole steps, so that beams of all cameras on a robot fall together.
    low = math.floor((heading + min(widest)) / step)
    high = math.ceil((heading + max(widest)) / step)
    high = min(high, low + math.floor(2 * math.pi / step + 1e-6) - 1)
    return ScanConfig(low * step, high * step, step, range_max=range_max)


def _half_turn(angle: float) -> float:
    """Return the same direction within half a turn of 0."""
    return math.remainder(angle, 2 * math.pi)


def in_base(base_from_camera: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y in the base frame of points [3, ...] in the optical frame."""
    rotation = base_from_camera[:2, :3].astype(points.dtype)
    x, y = (
        points[0] * row[0] + points[1] * row[1] + points[2] * row[2] + float(offset)
        for row, offset in zip(rotation, base_from_camera[:2, 3], strict=True)
    )
    return x, y


def first_row_below_horizon(plane: FloorPlane, intrinsics: Intrinsics) -> int:
    """Return the first row of which some ray meets the floor; the height where none does."""
    x, y = ray_slopes(intrinsics)
    a, b, c = (float(value) for value in plane.normal)
    # Along a row it is linear, so one of the ends falls most.
    falling = x[:, [0, -1]] * a + (y * b + c) < -1e-4
    rows = np.flatnonzero(falling.any(axis=1))
    return int(rows[0]) if rows.size else intrinsics.height


def floor_crossings(plane: FloorPlane, intrinsics: Intrinsics) -> np.ndarray:
    """Return where every pixel's ray meets the floor, float32 [3, H, W], optical frame.

    NaN where a ray does not go down.
    """
    x, y = ray_slopes(intrinsics)
    a, b, c = (float(value) for value in plane.normal)
    falling = x * a + (y * b + c)
    np.copyto(falling, np.nan, where=falling > -1e-4)
    depth = np.float32(-plane.height) / falling
    return np.stack([depth * x, depth * y, depth])


def _beam(x: np.ndarray, y: np.ndarray, config: ScanConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return beam numbers (config.beams where outside) and ranges."""
    ranges = np.sqrt(x * x + y * y)
    turns = 2 * math.pi / config.angle_increment
    beam = np.arctan2(y, x)
    beam *= 1 / config.angle_increment
    beam -= config.angle_min / config.angle_increment
    # Into half a step below angle_min and a turn above it; floor() because % is slow on floats.
    beam -= np.floor((beam + 0.5) * (1 / turns)) * turns
    np.rint(beam, out=beam)
    outside = ~(beam < config.beams)
    outside |= ~(ranges >= config.range_min)
    beam[outside] = config.beams
    ranges[outside] = 0
    return beam.astype(np.intp), ranges


def nearest_per_beam(x: np.ndarray, y: np.ndarray, config: ScanConfig) -> np.ndarray:
    """Return the shortest range in every beam, float32 [beams]; inf where there is none."""
    beam, ranges = _beam(x.reshape(-1), y.reshape(-1), config)
    nearest = np.full(config.beams + 1, np.inf, np.float32)
    np.minimum.at(nearest, beam, ranges.astype(np.float32, copy=False))
    return nearest[:-1]


def spread_to_neighbours(nearest: np.ndarray) -> np.ndarray:
    """Return the minimum over every beam and the two beside it: a beam may fall between pixels."""
    padded = np.pad(nearest, 1, constant_values=np.inf)
    return np.minimum(np.minimum(padded[:-2], padded[2:]), nearest)


def farthest_per_beam(x: np.ndarray, y: np.ndarray, config: ScanConfig) -> np.ndarray:
    """Return the longest range in every beam, float32 [beams]; 0 where there is none."""
    beam, ranges = _beam(x.reshape(-1), y.reshape(-1), config)
    farthest = np.zeros(config.beams + 1, np.float32)
    np.maximum.at(farthest, beam, ranges.astype(np.float32, copy=False))
    return farthest[:-1]


def combine_beams(
    obstacle: np.ndarray, unknown: np.ndarray, floor: np.ndarray, config: ScanConfig
) -> np.ndarray:
    """Return the ranges of a LaserScan (REP 117), float32 [beams].

    A range: the nearest obstacle, seen over known floor. +inf: floor as far as `range_max` (or
    nearly so: rows of pixels lie far apart there) and nothing on it. NaN: unknown, because floor
    is missing before the obstacle or before the end. NaN clears and marks nothing.

    Args:
        obstacle: nearest obstacle per beam, inf for none.
        unknown: where the first patch without floor begins per beam, inf for none.
        floor: farthest floor per beam, 0 for none.
        config: beams.
    """
    free = (floor >= 0.8 * config.range_max) & (unknown >= 0.9 * config.range_max)
    ranges = np.where(free, np.float32(np.inf), np.float32(np.nan))
    hit = (obstacle <= config.range_max) & (obstacle <= unknown)
    return np.where(hit, obstacle, ranges).astype(np.float32)
