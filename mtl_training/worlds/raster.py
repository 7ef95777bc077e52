"""Depth and part numbers of a world by MuJoCo's renderer, positions and normals from them."""

from __future__ import annotations

import atexit
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from mtl_perception.frames import Intrinsics
from mtl_training.worlds.parts import Part

NEAR_M, FAR_M = 0.04, 60.0
MAX_SIZE = 1280
CASTS, NO_SHADOW = 0, 3
"""Geom groups: solids, and glass and lamps that light passes."""


class RenderingUnavailableError(RuntimeError):
    """The machine has no headless OpenGL."""


_context: Any = None


def _gl_context() -> Any:
    """Return this process's OpenGL context, made on first use.

    Raises:
        RenderingUnavailableError: naming the packages that are missing.
    """
    global _context
    if _context is None:
        # Headless: EGL needs no display. A user's own choice is kept. mujoco.gl_context would
        # decide when mujoco is first imported, which may have been before us.
        library = os.environ.get('MUJOCO_GL', 'egl').lower()
        try:
            module = importlib.import_module(f'mujoco.{library}')
            _context = module.GLContext(MAX_SIZE, MAX_SIZE)
        except Exception as error:  # OpenGL loaders raise whatever the missing library raises
            raise RenderingUnavailableError(
                f'MuJoCo cannot render here ({error}); it needs headless OpenGL: '
                'install libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri, or set MUJOCO_GL=osmesa'
            ) from error
        atexit.register(_context.free)
    _context.make_current()
    return _context


def rounded_box_mesh(
    size: Sequence[float], radius: float, per_side: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices float64 [V, 3] and triangles int32 [F, 3] of a box with round edges.

    The cube's grid is projected onto a sphere of `radius`, and its octants are moved apart.
    """
    half = np.tan(np.linspace(-1, 1, per_side) * np.pi / 4)
    a, b = np.meshgrid(half, half, indexing='ij')
    one = np.ones_like(a)
    vertices, faces = [], []
    for axis in range(3):
        for sign in (-1, 1):
            grid = [None, None, None]
            grid[axis], grid[(axis + 1) % 3], grid[(axis + 2) % 3] = sign * one, a, b
            start = len(vertices) * per_side**2
            vertices.append(np.stack(grid, -1).reshape(-1, 3))
            index = np.arange(per_side**2).reshape(per_side, per_side) + start
            quad = [index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]]
            if sign < 0:
                quad.reverse()
            p, q, r, s = (corner.ravel() for corner in quad)
            faces += [np.stack([p, q, r], -1), np.stack([p, r, s], -1)]
    cube = np.concatenate(vertices)
    outward = cube / np.linalg.norm(cube, axis=1, keepdims=True)
    points = radius * outward + np.sign(cube) * (np.asarray(size) - radius)
    points, merged = np.unique(points.round(9), axis=0, return_inverse=True)
    return points, merged.ravel()[np.concatenate(faces)].astype(np.int32)


def cone_mesh(
    lower: float, upper: float, half_height: float, sides: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices and triangles of a truncated cone along z."""
    angle = np.arange(sides) * (2 * np.pi / sides)
    ring = np.stack([np.cos(angle), np.sin(angle)], -1)
    bottom = np.column_stack([ring * lower, np.full(sides, -half_height)])
    top = np.column_stack([ring * upper, np.full(sides, half_height)])
    vertices = np.concatenate([bottom, top, [[0, 0, -half_height], [0, 0, half_height]]])
    here, after = np.arange(sides), (np.arange(sides) + 1) % sides
    faces = np.concatenate(
        [
            np.stack([here, after, after + sides], -1),
            np.stack([here, after + sides, here + sides], -1),
            np.stack([after, here, np.full(sides, 2 * sides)], -1),
            np.stack([here + sides, after + sides, np.full(sides, 2 * sides + 1)], -1),
        ]
    )
    return vertices, faces.astype(np.int32)


def build_spec(parts: Sequence[Part]) -> Any:
    """Return the MjSpec of a world; geom i is part i, named part_{i}."""
    import mujoco

    spec = mujoco.MjSpec()
    spec.visual.global_.offwidth = spec.visual.global_.offheight = MAX_SIZE
    # Clipping planes are multiples of the extent.
    spec.stat.extent = 1.0
    spec.visual.map.znear = NEAR_M
    spec.visual.map.zfar = FAR_M
    # Flat faces need no subdivision: shading happens per pixel.
    spec.visual.quality.numquads = 1
    spec.visual.quality.offsamples = 0
    types = mujoco.mjtGeom
    for index, part in enumerate(parts):
        options: dict[str, Any] = {}
        size = list(part.size)
        if part.kind == 'box':
            options['type'] = types.mjGEOM_BOX
        elif part.kind == 'ellipsoid':
            options['type'] = types.mjGEOM_ELLIPSOID
        elif part.kind == 'cylinder':
            options['type'] = types.mjGEOM_CYLINDER
        else:
            if part.kind == 'rounded_box':
                vertices, faces = rounded_box_mesh(part.size, part.radius)
            else:
                vertices, faces = cone_mesh(*part.size)
            spec.add_mesh(
                name=f'mesh_{index}', uservert=vertices.ravel(), userface=faces.ravel(),
                inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
            )  # fmt: skip
            options.update(type=types.mjGEOM_MESH, meshname=f'mesh_{index}')
            size = [0, 0, 0]
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, np.ascontiguousarray(part.rotation, np.float64).ravel())
        spec.worldbody.add_geom(
            name=f'part_{index}',
            size=size,
            pos=part.center,
            quat=quat,
            rgba=(*part.material.color, 1.0),
            contype=0,
            conaffinity=0,
            group=CASTS if part.casts else NO_SHADOW,
            **options,
        )
    return spec


@dataclass(frozen=True)
class Hits:
    """What the camera's rays meet, one row per ray; part is -1 where nothing was met.

    Attributes:
        part: int32 [N], index of the part.
        depth: float32 [N], metres along the optical axis.
        position: float32 [N, 3], world frame.
        normal: float32 [N, 3], outward unit normal of the surface, world frame.
        local: float32 [N, 3], position in the part's frame.
        local_normal: float32 [N, 3], normal in the part's frame.
    """

    part: np.ndarray
    depth: np.ndarray
    position: np.ndarray
    normal: np.ndarray
    local: np.ndarray
    local_normal: np.ndarray

    def at(self, chosen: np.ndarray) -> Hits:
        """Return the chosen rows."""
        return Hits(*(getattr(self, field.name)[chosen] for field in fields(self)))


class Rasteriser:
    """Renders depth and part numbers of one model from any pinhole camera.

    One pass gives both: segment colours and the depth buffer of the same drawing.
    """

    def __init__(self, model: Any, parts: Sequence[Part]) -> None:
        import mujoco

        self._mj = mujoco
        _gl_context()
        self.model = model
        self._data = mujoco.MjData(model)
        mujoco.mj_forward(model, self._data)
        self._mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._mjr)
        self._mjr.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scenes = {
            True: self._make_scene([CASTS, NO_SHADOW]),
            False: self._make_scene([CASTS]),
        }
        kinds = ('box', 'rounded_box', 'cylinder', 'ellipsoid', 'cone')
        self.kind = np.array([kinds.index(part.kind) for part in parts], np.int8)
        self.size = np.array([part.size for part in parts], np.float32)
        self.radius = np.array([part.radius for part in parts], np.float32)
        self.center = np.array([part.center for part in parts], np.float32)
        self.rotation = np.array([part.rotation for part in parts], np.float32)

    def close(self) -> None:
        """Free the model's buffers on the graphics side."""
        if self._mjr is not None:
            _gl_context()
            self._mjr.free()
            self._mjr = None

    def _make_scene(self, groups: list[int]) -> Any:
        mujoco = self._mj
        scene = mujoco.MjvScene(self.model, maxgeom=self.model.ngeom + 16)
        options = mujoco.MjvOption()
        options.geomgroup[:] = 0
        options.geomgroup[groups] = 1
        camera = mujoco.MjvCamera()
        mujoco.mjv_updateScene(
            self.model, self._data, options, None, camera,
            mujoco.mjtCatBit.mjCAT_ALL.value, scene,
        )  # fmt: skip
        scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = True
        scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        part_of = np.full(scene.ngeom + 1, -1, np.int32)
        for geom in scene.geoms[: scene.ngeom]:
            if geom.segid >= 0:
                part_of[geom.segid + 1] = geom.objid
        return scene, part_of

    def draw(self, pose: np.ndarray, intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
        """Return part numbers int32 [H, W] and Z-depth float32 [H, W] in metres.

        Where nothing is met, part is -1 and depth FAR_M.

        Args:
            pose: optical frame to world, float64 [4, 4].
            intrinsics: of the picture, at most MAX_SIZE pixels wide and high.
        """
        scene, part_of = self._scenes[True]
        area = self._render(scene, pose, intrinsics)
        colors = np.empty((intrinsics.height, intrinsics.width, 3), np.uint8)
        buffer = np.empty((intrinsics.height, intrinsics.width), np.float32)
        self._mj.mjr_readPixels(colors, buffer, area, self._mjr)
        segment = colors[..., 0].astype(np.int32)
        segment += colors[..., 1].astype(np.int32) << 8
        segment += colors[..., 2].astype(np.int32) << 16
        part = part_of[np.minimum(segment[::-1], len(part_of) - 1)]
        return part, self._metres(buffer)

    def draw_shadow(self, pose: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
        """Return the Z-depth float32 [H, W] of what throws a shadow, as `draw` does."""
        scene, _ = self._scenes[False]
        area = self._render(scene, pose, intrinsics)
        buffer = np.empty((intrinsics.height, intrinsics.width), np.float32)
        self._mj.mjr_readPixels(None, buffer, area, self._mjr)
        return self._metres(buffer)

    def _render(self, scene: Any, pose: np.ndarray, intrinsics: Intrinsics) -> Any:
        _gl_context()
        width, height = intrinsics.width, intrinsics.height
        # Pixel centres lie at whole numbers, so the picture's edge is half a pixel outside.
        left = (-0.5 - intrinsics.cx) / intrinsics.fx * NEAR_M
        right = (width - 0.5 - intrinsics.cx) / intrinsics.fx * NEAR_M
        top = (intrinsics.cy + 0.5) / intrinsics.fy * NEAR_M
        bottom = (intrinsics.cy - height + 0.5) / intrinsics.fy * NEAR_M
        for camera in scene.camera:
            camera.pos[:] = pose[:3, 3]
            camera.forward[:] = pose[:3, 2]
            camera.up[:] = -pose[:3, 1]
            camera.frustum_center = (left + right) / 2
            camera.frustum_width = (right - left) / 2
            camera.frustum_top, camera.frustum_bottom = top, bottom
            camera.frustum_near, camera.frustum_far = NEAR_M, FAR_M
            camera.orthographic = 0
        area = self._mj.MjrRect(0, 0, width, height)
        self._mj.mjr_render(area, scene, self._mjr)
        return area

    @staticmethod
    def _metres(buffer: np.ndarray) -> np.ndarray:
        """Return metres, float32 [H, W], of a reversed depth buffer drawn upside down."""
        near, far = np.float32(NEAR_M), np.float32(FAR_M)
        # 1 at the near plane, 0 at the far one.
        return near * far / (near + buffer[::-1] * (far - near))

    def hits(
        self,
        part: np.ndarray,
        depth: np.ndarray,
        columns: np.ndarray,
        rows: np.ndarray,
        pose: np.ndarray,
        intrinsics: Intrinsics,
    ) -> Hits:
        """Return positions and normals of pixels (`columns`, `rows`) with known part and depth.

        Normals are those of the solid itself, not of neighbouring depths, so that edges are sharp
        and flat faces exact.
        """
        ray = np.stack(
            [
                (columns - intrinsics.cx) / intrinsics.fx,
                (rows - intrinsics.cy) / intrinsics.fy,
                np.ones(len(part)),
            ],
            -1,
        ).astype(np.float32)
        rotation = pose[:3, :3].astype(np.float32)
        position = (ray * depth[:, None]) @ rotation.T + pose[:3, 3].astype(np.float32)
        turn = self.rotation[part]
        local = np.einsum('nji,nj->ni', turn, position - self.center[part])
        local_normal = self.local_normals(part, local)
        normal = np.einsum('nij,nj->ni', turn, local_normal)
        # Facets reach past a smooth solid's horizon; what is seen there just faces the camera.
        sight = ray @ rotation.T
        sight /= np.linalg.norm(sight, axis=1, keepdims=True)
        away = np.einsum('ni,ni->n', normal, sight)
        past = np.flatnonzero(away > -1e-3)
        turned = normal[past] - (away[past] + 1e-2)[:, None] * sight[past]
        normal[past] = turned / np.linalg.norm(turned, axis=1, keepdims=True)
        return Hits(part, depth, position, normal, local, local_normal)

    def local_normals(self, part: np.ndarray, local: np.ndarray) -> np.ndarray:
        """Return outward unit normals float32 [N, 3] at surface points of the parts' frames."""
        kind, size = self.kind[part], self.size[part]
        normal = np.zeros_like(local)
        chosen = np.flatnonzero(kind == 0)
        outside = np.abs(local[chosen]) - size[chosen]
        axis = outside.argmax(1)
        normal[chosen, axis] = np.sign(local[chosen, axis])
        chosen = np.flatnonzero(kind == 1)
        core = size[chosen] - self.radius[part[chosen]][:, None]
        normal[chosen] = local[chosen] - np.clip(local[chosen], -core, core)
        chosen = np.flatnonzero(kind == 2)
        radial = np.hypot(local[chosen, 0], local[chosen, 1])
        cap = np.abs(np.abs(local[chosen, 2]) - size[chosen, 1]) < np.abs(radial - size[chosen, 0])
        normal[chosen, :2] = np.where(cap[:, None], 0, local[chosen, :2])
        normal[chosen, 2] = np.where(cap, np.sign(local[chosen, 2]), 0)
        chosen = np.flatnonzero(kind == 3)
        normal[chosen] = local[chosen] / size[chosen] ** 2
        chosen = np.flatnonzero(kind == 4)
        lower, upper, half = size[chosen].T
        radial = np.hypot(local[chosen, 0], local[chosen, 1]) + 1e-9
        wall = lower + (upper - lower) * (local[chosen, 2] + half) / (2 * half)
        cap = np.abs(np.abs(local[chosen, 2]) - half) < 0.7 * np.abs(radial - wall)
        normal[chosen, :2] = np.where(
            cap[:, None], 0, local[chosen, :2] / radial[:, None] * (2 * half)[:, None]
        )
        normal[chosen, 2] = np.where(cap, np.sign(local[chosen, 2]), lower - upper)
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        # A ray that grazes a facet can meet the middle of the solid within rounding.
        return np.where(length > 1e-9, normal / np.maximum(length, 1e-9), [0, 0, 1]).astype(
            np.float32
        )
