"""Light reflected by the room's surfaces, gathered in a grid of probes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from mtl_training.worlds.parts import Part
from mtl_training.worlds.textures import read_bilinear

PROBE_M = 0.25
VOXEL_M = 0.125
STEPS_M = (0.18, 0.4, 0.7, 1.1, 1.6, 2.3, 3.2, 4.4)
POOLS = (1, 1, 2, 2, 4, 4, 4, 4)
"""Distances along each cone, and how many voxels are merged along each axis there."""
CONE_WIDTH, DENSITY = 0.3, 1.5
"""Deviation of the blur per distance, and what makes up for opacity that the blur thins out."""


def surface_points(
    parts: Sequence[Part], spacing: float, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Return points spread over the parts' boxes: part, local, area.

    Round parts are covered by the faces of the box around them.
    """
    index, local, areas = [], [], []
    for number, part in enumerate(parts):
        half = np.array(part.size, float)
        if part.kind == 'cylinder':
            half = np.array([part.size[0], part.size[0], part.size[1]]) * (0.9, 0.9, 1)
        elif part.kind == 'cone':
            radius = max(part.size[:2])
            half = np.array([radius * 0.9, radius * 0.9, part.size[2]])
        for axis in range(3):
            a, b = half[(axis + 1) % 3], half[(axis + 2) % 3]
            area = 4 * a * b
            if area < 0.002:
                continue
            count = max(1, int(area / spacing**2))
            for sign in (-1, 1):
                points = np.empty((count, 3), np.float32)
                points[:, axis] = sign * half[axis]
                points[:, (axis + 1) % 3] = rng.uniform(-a, a, count)
                points[:, (axis + 2) % 3] = rng.uniform(-b, b, count)
                index.append(np.full(count, number))
                local.append(points)
                areas.append(np.full(count, area / count, np.float32))
    return np.concatenate(index), np.concatenate(local), np.concatenate(areas)


class Probes:
    """Six-sided irradiance in a grid, filled by cone tracing (Crassin et al. 2011).

    Surface points' radiance is spread into voxels; each probe gathers it along 26 directions over
    distances at which the voxels are blurred accordingly.

    Args:
        low, high: corners of the world, metres.
        position: of the surface points, float32 [N, 3].
        area: that each point stands for, square metres, [N].
    """

    def __init__(
        self, low: np.ndarray, high: np.ndarray, position: np.ndarray, area: np.ndarray
    ) -> None:
        self.low = low.astype(np.float32)
        self._area = area
        # Whole blocks of merged voxels.
        blocks = np.ceil((high - low) / (VOXEL_M * max(POOLS))).astype(int)
        self._voxels = blocks * max(POOLS)
        cell = np.clip(((position - self.low) / VOXEL_M).astype(int), 0, self._voxels - 1)
        self._cell = np.ravel_multi_index(cell.T, self._voxels)
        cover = np.bincount(self._cell, area, int(np.prod(self._voxels))) / VOXEL_M**2
        self._opacity = np.clip(cover, 0, 1).astype(np.float32)
        # A voxel's colour is the mean over the surface in it, weighted by its opacity.
        self._share = self._opacity / np.maximum(cover, 1e-6) / VOXEL_M**2
        self._grid = np.ceil((high - low) / PROBE_M).astype(int)
        axes = [np.arange(n) for n in self._grid]
        centers = np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3) + 0.5
        self._centers = (centers * PROBE_M).astype(np.float32)
        self._directions = _directions()
        sides = np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32)
        weight = np.maximum(sides @ self._directions.T, 0)
        self._weight = weight / weight.sum(1, keepdims=True)
        self._atlas: list[np.ndarray] = []

    def fill(self, radiance: np.ndarray) -> None:
        """Gather the radiance float32 [N, 3] of the surface points."""
        levels = self._levels(radiance)
        gathered = np.zeros((len(self._centers), 6, 3), np.float32)
        for direction, share in zip(self._directions, self._weight.T, strict=True):
            through = np.ones((len(self._centers), 1), np.float32)
            light = np.zeros((len(self._centers), 3), np.float32)
            for distance, pool, level in zip(STEPS_M, POOLS, levels, strict=True):
                at = (self._centers + direction * np.float32(distance)) / (VOXEL_M * pool)
                shape = level.shape[:3]
                at = np.clip(at.astype(np.int32), 0, np.array(shape, np.int32) - 1)
                index = (at[:, 0] * shape[1] + at[:, 1]) * shape[2] + at[:, 2]
                value = level.reshape(-1, 4)[index]
                light += through * value[:, :3]
                through *= 1 - value[:, 3:]
            gathered += share[None, :, None] * light[:, None, :]
        probes = gathered.reshape(*self._grid, 18)
        # Probes inside walls are dark; their neighbours' light must not fade towards them.
        probes = ndimage.gaussian_filter(probes, (0.6, 0.6, 0.6, 0), mode='nearest')
        self._keep(probes.reshape(*self._grid, 6, 3))

    def _levels(self, radiance: np.ndarray) -> list[np.ndarray]:
        """Return voxels float32 [X, Y, Z, 4] (colour times opacity, opacity) for each step."""
        channels = [
            np.bincount(self._cell, self._area * radiance[:, c], len(self._opacity)) * self._share
            for c in range(3)
        ]
        volume = np.stack([*channels, self._opacity], -1).astype(np.float32)
        volume = volume.reshape(*self._voxels, 4)
        levels, pooled = [], 1
        for distance, pool in zip(STEPS_M, POOLS, strict=True):
            while pooled < pool:
                x, y, z = np.array(volume.shape[:3]) // 2
                volume = volume.reshape(x, 2, y, 2, z, 2, 4).mean((1, 3, 5))
                pooled *= 2
            blur = distance * CONE_WIDTH / (VOXEL_M * pool)
            level = DENSITY * ndimage.gaussian_filter(
                volume, (blur, blur, blur, 0), mode='nearest'
            )
            level[..., 3] = np.minimum(level[..., 3], 1)
            levels.append(level)
        return levels

    def _keep(self, faces: np.ndarray) -> None:
        """Keep six-sided probes float32 [X, Y, Z, 6, 3] as a constant and a gradient by normal.

        Slices of constant z lie below each other in one picture, so that OpenCV's bilinear
        `remap` reads it; two slices make it trilinear.
        """
        plus, minus = faces[..., :3, :], faces[..., 3:, :]
        constant = faces.mean(3)
        slope = (plus - minus) / 2
        coefficients = np.concatenate([constant[..., None, :], slope], 3)
        x, y, z = coefficients.shape[:3]
        atlas = coefficients.transpose(2, 1, 0, 4, 3).reshape(z * y, x, 3, 4)
        self._atlas = [np.ascontiguousarray(atlas[:, :, c], np.float32) for c in range(3)]
        self._shape = (x, y, z)

    def light(self, position: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Return reflected irradiance / pi at points in free space, float32 [N, 3]."""
        size = np.array(self._shape, np.float32)
        place = (position - self.low) / np.float32(PROBE_M) - 0.5
        place = np.clip(place, 0, size - 1.001).astype(np.float32)
        slice_ = np.floor(place[:, 2])
        weight = (place[:, 2] - slice_)[:, None]
        row = place[:, 1] + slice_ * size[1]
        out = np.empty((len(position), 3), np.float32)
        for channel in range(3):
            below = read_bilinear(self._atlas[channel], place[:, 0], row)
            above = read_bilinear(self._atlas[channel], place[:, 0], row + size[1])
            value = below + (above - below) * weight
            out[:, channel] = value[:, 0] + np.einsum('ni,ni->n', value[:, 1:], normal)
        return np.maximum(out, 0)


def _directions() -> np.ndarray:
    grid = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), -1).reshape(-1, 3)
    grid = grid[np.any(grid != 0, 1)].astype(np.float32)
    return grid / np.linalg.norm(grid, axis=1, keepdims=True)
