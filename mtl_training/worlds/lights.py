"""Lamps, windows and the sun, and what stands in their light."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mtl_perception.frames import Intrinsics
from mtl_training.worlds.raster import FAR_M, Rasteriser

SHADOW_SIZE = 400


@dataclass
class Light:
    """A lamp, a window full of sky, or the sun.

    Attributes:
        kind: 'lamp' shines to all sides, 'window' from a rectangle into the room by the cosine,
            'sun' in parallel from `center`.
        center: metres, world.
        color: intensity; a lamp's radiant intensity, a window's radiance times its area, the
            sun's irradiance.
        extent_u, extent_v: half edges of the shining rectangle, vectors in metres.
        direction: where a window or the sun shines, unit vector.
    """

    kind: Literal['lamp', 'window', 'sun']
    center: np.ndarray
    color: np.ndarray
    extent_u: np.ndarray = field(default_factory=lambda: np.zeros(3))
    extent_v: np.ndarray = field(default_factory=lambda: np.zeros(3))
    direction: np.ndarray = field(default_factory=lambda: np.array([0.0, 0, -1]))


def look(forward: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return the pose (optical frame to world) of a level camera that looks along `forward`."""
    forward = np.asarray(forward, float) / np.linalg.norm(forward)
    up = np.array([0, 0, 1.0]) if abs(forward[2]) < 0.99 else np.array([0, 1.0, 0])
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    pose[:3, 3] = position
    return pose


class ShadowCube:
    """Depth seen from one point to all sides.

    Args:
        raster: of the world.
        point: metres.
        direction: where the light at the point shines, over half of all directions; a side that
            lies wholly behind it is left out. None for a lamp, which shines everywhere.
    """

    def __init__(
        self, raster: Rasteriser, point: np.ndarray, direction: np.ndarray | None = None
    ) -> None:
        # Three more pixels on each side than 90 degrees, so that filters find neighbours.
        half = SHADOW_SIZE / 2
        self.focal = half - 3
        camera = Intrinsics(
            SHADOW_SIZE, SHADOW_SIZE, self.focal, self.focal, half - 0.5, half - 0.5
        )
        self.point = point.astype(np.float32)
        faces, frames = [], []
        for axis in range(3):
            for sign in (1.0, -1.0):
                forward = np.zeros(3)
                forward[axis] = sign
                pose = look(forward, point)
                if direction is not None and forward @ direction < -0.999:
                    faces.append(np.full((SHADOW_SIZE, SHADOW_SIZE), FAR_M, np.float32))
                else:
                    faces.append(raster.draw_shadow(pose, camera))
                frames.append(pose[:3, :3].T)
        self.depth = np.stack(faces).ravel()
        frames = np.array(frames)
        # Each face's right and down are along an axis: which one, and its sign.
        self.right, self.down = np.abs(frames[:, 0]).argmax(1), np.abs(frames[:, 1]).argmax(1)
        rows = np.arange(6)
        self.right_sign = frames[rows, 0, self.right].astype(np.float32)
        self.down_sign = frames[rows, 1, self.down].astype(np.float32)

    def visible(self, position: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Return 1 where the point sees `position` float32 [N, 3], else 0.

        Args:
            shift: added to the map's pixels, float32 [N, 2]; softens the edge over many samples.
        """
        offset = position - self.point
        size = np.abs(offset)
        axis = size.argmax(1)
        first = np.arange(0, 3 * len(offset), 3)
        flat = offset.ravel()
        face = 2 * axis + (flat[first + axis] < 0)
        z = np.maximum(size.ravel()[first + axis], np.float32(1e-3))
        scale = np.float32(self.focal) / z
        u = flat[first + self.right[face]] * self.right_sign[face] * scale
        v = flat[first + self.down[face]] * self.down_sign[face] * scale
        half = np.float32(SHADOW_SIZE / 2)
        u = np.clip((u + (shift[:, 0] + half)).astype(np.int32), 0, SHADOW_SIZE - 1)
        v = np.clip((v + (shift[:, 1] + half)).astype(np.int32), 0, SHADOW_SIZE - 1)
        seen = self.depth[(face.astype(np.int32) * SHADOW_SIZE + v) * SHADOW_SIZE + u]
        return (z < seen * np.float32(1.01) + np.float32(0.02)).astype(np.float32)


class SunMap:
    """Depth seen along parallel rays (by a camera far away)."""

    def __init__(self, raster: Rasteriser, light: Light, size_m: float) -> None:
        self.distance = 40.0
        pose = look(light.direction, light.center - light.direction * self.distance)
        self.size = 1024
        self.focal = self.size / (size_m / self.distance)
        camera = Intrinsics(
            self.size, self.size, self.focal, self.focal, self.size / 2 - 0.5, self.size / 2 - 0.5
        )
        self.depth = raster.draw_shadow(pose, camera)
        self.pose = pose

    def visible(self, position: np.ndarray) -> np.ndarray:
        """Return the lit share of points float32 [N, 3], 0 to 1."""
        local = (position - self.pose[:3, 3].astype(np.float32)) @ self.pose[:3, :3].astype(
            np.float32
        )
        u = (local[:, 0] / local[:, 2] * self.focal + self.size / 2).astype(np.int32)
        v = (local[:, 1] / local[:, 2] * self.focal + self.size / 2).astype(np.int32)
        inside = (u >= 1) & (v >= 1) & (u < self.size - 1) & (v < self.size - 1)
        u, v = np.clip(u, 1, self.size - 2), np.clip(v, 1, self.size - 2)
        lit = np.zeros(len(u), np.float32)
        for du, dv in ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)):
            lit += local[:, 2] < self.depth[v + dv, u + du] + 0.06
        return lit / 5 * inside
