"""World: one furnished flat with a MuJoCo model, its free space and its camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import ndimage

from mtl_perception.frames import Intrinsics
from mtl_training.worlds.flat import build_flat
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import CLASSES
from mtl_training.worlds.plan import Room, make_plan
from mtl_training.worlds.raster import FAR_M, Rasteriser, build_spec
from mtl_training.worlds.shading import Shader, ambient_occlusion
from mtl_training.worlds.textures import TextureSet

IGNORE = 255
CELL_M = 0.05


@dataclass(frozen=True)
class View:
    """What a camera sees of a world.

    Attributes:
        radiance: float32 [H, W, 3], linear light, or None when not asked for.
        label: uint8 [H, W], NYUv2-13, 255 where nothing was met.
        depth: float32 [H, W], Z-depth in metres, NaN where nothing was met.
        normal: float32 [H, W, 3], unit, optical frame, towards the camera; 0 where nothing.
        instance: int32 [H, W], index into World.instances, -1 for the building.
    """

    radiance: np.ndarray | None
    label: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    instance: np.ndarray


class World:
    """One furnished flat, the same for the same seed.

    Args:
        seed: of everything in it.
        kind: of the first room, one of plan.ROOM_TYPES; any when None.

    Attributes:
        rooms: rectangles, heights and kinds.
        parts: every solid.
        instances: name of each thing.
        spec, model: MjSpec and MjModel; geom i is parts[i]. A robot can be added to a copy of
            `spec` before compiling it anew.
    """

    def __init__(self, seed: int, kind: str | None = None) -> None:
        self.seed = seed
        self._clearances: dict[tuple[float, float], np.ndarray] = {}
        rng = np.random.default_rng([seed, 2026])
        self.textures = TextureSet()
        look = Look(rng, self.textures)
        flat = build_flat(rng, look, make_plan(rng, kind))
        self.rooms, self.parts, self.lights = flat.rooms, flat.parts, flat.lights
        self.instances = flat.names
        self.spec: Any = build_spec(self.parts)
        self.model: Any = self.spec.compile()
        self._label = np.array([part.label for part in self.parts] + [IGNORE], np.uint8)
        self._instance = np.array([part.instance for part in self.parts] + [-1], np.int32)

    @cached_property
    def raster(self) -> Rasteriser:
        """Return the renderer of depth and parts; needs headless OpenGL."""
        return Rasteriser(self.model, self.parts)

    @cached_property
    def shader(self) -> Shader:
        """Return the room's light; takes about a second on first use."""
        return Shader(self.raster, self.parts, self.textures, self.lights, self.seed)

    def close(self) -> None:
        """Free the graphics memory."""
        if 'raster' in self.__dict__:
            self.raster.close()

    def render(self, pose: np.ndarray, intrinsics: Intrinsics, *, color: bool = True) -> View:
        """Return what a camera sees.

        Args:
            pose: optical frame (x right, y down, z forward) to world, float64 [4, 4].
            intrinsics: of the picture.
            color: compute light too (the slow part).
        """
        part, depth = self.raster.draw(pose, intrinsics)
        height, width = part.shape
        met = part >= 0
        rows, columns = np.nonzero(met)
        hits = self.raster.hits(part[met], depth[met], columns, rows, pose, intrinsics)
        rotation = pose[:3, :3].astype(np.float32)
        normal = np.zeros((height, width, 3), np.float32)
        normal[met] = hits.normal @ rotation
        distance = np.where(met, depth, np.float32(np.nan))
        radiance = None
        if color:
            radiance = self._radiance(pose, intrinsics, part, distance, normal, hits)
        return View(radiance, self._label[part], distance, normal, self._instance[part])

    def _radiance(self, pose, intrinsics, part, depth, normal, hits) -> np.ndarray:
        """Shade pixel centres, and along edges the mean of two samples on the diagonal."""
        height, width = part.shape
        met = part >= 0
        rows, columns = np.mgrid[:height, :width]
        ray = np.stack(
            [(columns - intrinsics.cx) / intrinsics.fx, (rows - intrinsics.cy) / intrinsics.fy,
             np.ones((height, width))], -1,
        ).astype(np.float32)  # fmt: skip
        points = ray * np.nan_to_num(depth, nan=FAR_M)[..., None]
        occlusion = ambient_occlusion(points, normal, intrinsics.fx)
        angle = 1 / intrinsics.fx
        camera = pose[:3, 3]
        edge = np.zeros((height, width), bool)
        edge[:, 1:] |= part[:, 1:] != part[:, :-1]
        edge[1:] |= part[1:] != part[:-1]
        edge[:, :-1] |= edge[:, 1:]
        edge[:-1] |= edge[1:]
        picture = np.zeros((height, width, 3), np.float32)
        plain = ~edge[met]
        picture[met & ~edge] = self.shader.shade(
            hits.at(plain), camera, angle, occlusion[met & ~edge]
        )
        fine = intrinsics.scaled(2.0, 2 * width, 2 * height)
        part2, depth2 = self.raster.draw(pose, fine)
        mask = np.repeat(np.repeat(edge, 2, 0), 2, 1) & (part2 >= 0)
        mask[::2, 1::2] = mask[1::2, ::2] = False
        rows2, columns2 = np.nonzero(mask)
        if not len(rows2):
            return picture
        hits2 = self.raster.hits(part2[mask], depth2[mask], columns2, rows2, pose, fine)
        color = self.shader.shade(hits2, camera, angle / 2, occlusion[rows2 // 2, columns2 // 2])
        # Bright lamps are clipped before averaging, as a sensor's edge pixels are.
        color = np.minimum(color, 8.0)
        pixel = (rows2 // 2) * width + columns2 // 2
        count = np.maximum(np.bincount(pixel, minlength=height * width), 1)
        for channel in range(3):
            total = np.bincount(pixel, color[:, channel], height * width)
            picture[..., channel] += (total / count).reshape(height, width)
        return picture

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the origin [2] in metres and the size [2] in cells of the maps."""
        low = np.array([min(r.x0 for r in self.rooms), min(r.y0 for r in self.rooms)]) - 0.5
        high = np.array([max(r.x1 for r in self.rooms), max(r.y1 for r in self.rooms)]) + 0.5
        return low, np.ceil((high - low) / CELL_M).astype(int)

    def obstacles(self, low_m: float, high_m: float) -> np.ndarray:
        """Return where something stands between two heights above the floor.

        Returns:
            bool [X, Y], cells of CELL_M from `grid`'s origin; outside the rooms everything is
            taken.
        """
        origin, size = self.grid
        taken = np.ones(size, bool)
        x = origin[0] + (np.arange(size[0]) + 0.5) * CELL_M
        y = origin[1] + (np.arange(size[1]) + 0.5) * CELL_M
        for room in self.rooms:
            # Doorways reach through the walls' thickness.
            inside = (x > room.x0 - 0.061) & (x < room.x1 + 0.061)
            across = (y > room.y0 - 0.061) & (y < room.y1 + 0.061)
            taken[np.ix_(inside, across)] = False
        for part in self.parts:
            if part.label in (CLASSES.index('floor'), CLASSES.index('ceiling')):
                continue
            half = np.array(part.size, float)
            if part.kind == 'cylinder':
                half = np.array([part.size[0], part.size[0], part.size[1]])
            elif part.kind == 'cone':
                half = np.array([max(part.size[:2])] * 2 + [part.size[2]])
            reach = np.abs(part.rotation) @ half
            center = np.asarray(part.center)
            if center[2] + reach[2] <= low_m or center[2] - reach[2] >= high_m:
                continue
            i = np.clip(((center[0] + np.array([-1, 1]) * reach[0] - origin[0]) / CELL_M), 0,
                        size[0] - 1).astype(int)  # fmt: skip
            j = np.clip(((center[1] + np.array([-1, 1]) * reach[1] - origin[1]) / CELL_M), 0,
                        size[1] - 1).astype(int)  # fmt: skip
            cells = np.stack(
                np.meshgrid(x[i[0] : i[1] + 1], y[j[0] : j[1] + 1], indexing='ij'), -1
            )
            offset = cells - center[:2]
            flat = part.rotation[:2, :2].T
            local = np.abs(offset @ flat.T)
            grow = CELL_M / 2
            upright = abs(part.rotation[2, 2]) > 0.99
            if upright:
                hit = (local[..., 0] <= half[0] + grow) & (local[..., 1] <= half[1] + grow)
            else:
                hit = np.ones(cells.shape[:2], bool)
            taken[i[0] : i[1] + 1, j[0] : j[1] + 1] |= hit
        return taken

    def clearance(self, low_m: float = 0.03, high_m: float = 1.2) -> np.ndarray:
        """Return the distance in metres from each cell to the nearest obstacle, float32 [X, Y].

        Obstacles are what stands between two heights above the floor. Maps are kept.
        """
        key = (low_m, high_m)
        if key not in self._clearances:
            free = ~self.obstacles(low_m, high_m)
            distance = ndimage.distance_transform_edt(free) * CELL_M
            self._clearances[key] = distance.astype(np.float32)
        return self._clearances[key]

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """Return the cell of the maps that holds a point."""
        origin, size = self.grid
        i, j = ((np.array([x, y]) - origin) / CELL_M).astype(int)
        return int(np.clip(i, 0, size[0] - 1)), int(np.clip(j, 0, size[1] - 1))

    def room_at(self, x: float, y: float) -> Room | None:
        """Return the room that holds a point of the floor."""
        for room in self.rooms:
            if room.x0 <= x <= room.x1 and room.y0 <= y <= room.y1:
                return room
        return None
