"""Rooms of boxes whose pictures can be computed exactly, for the tests of geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtl_perception.frames import Intrinsics, Prediction
from mtl_perception.geometry.backprojection import back_project
from mtl_perception.geometry.obstacles import ClassRoles

CEILING, FLOOR, OBJECTS, WALL = 2, 4, 6, 11
ROLES = ClassRoles(floor=(FLOOR,), ceiling=(CEILING,))
# Class of the faces -x, +x, -y, +y, -z, +z of the room as seen from inside.
_ROOM_FACES = (WALL, WALL, WALL, WALL, FLOOR, CEILING)


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in the base frame (x forward, y left, z up; z = 0 is the floor)."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    label: int = OBJECTS


@dataclass
class View:
    """An exact picture and what is true about it."""

    prediction: Prediction
    base_from_camera: np.ndarray
    up: np.ndarray
    height: float
    thing: np.ndarray  # int [H, W]: index of the box a pixel shows, -1 for the room itself
    pit: np.ndarray  # bool [H, W]: inside the pit

    def heights(self) -> np.ndarray:
        """Return how far every pixel's point is above the true floor, float64 [H, W] metres."""
        points = back_project(self.prediction.depth, self.prediction.intrinsics)
        return np.einsum('i,ihw->hw', self.up, points) + self.height


def camera_pose(
    height: float, pitch_deg: float = 0.0, roll_deg: float = 0.0, forward: float = 0.0
) -> np.ndarray:
    """Return base_from_camera: looking along x, pitch positive down, roll clockwise."""
    pitch, roll = np.radians([pitch_deg, roll_deg])
    level = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float)
    c, s = np.cos(pitch), np.sin(pitch)
    # Turning about the optical x axis (right) by -pitch lowers the forward axis.
    pitched = np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    c, s = np.cos(roll), np.sin(roll)
    rolled = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = level @ pitched @ rolled
    pose[:3, 3] = forward, 0, height
    return pose


def small_camera(width: int = 192, height: int = 144, fov_deg: float = 63.0) -> Intrinsics:
    focal = width / 2 / np.tan(np.radians(fov_deg) / 2)
    return Intrinsics(width, height, focal, focal, width / 2 - 0.5, height / 2 - 0.5)


def render(
    pose: np.ndarray,
    camera: Intrinsics | None = None,
    boxes: tuple[Box, ...] = (),
    *,
    room: tuple[tuple[float, float, float], tuple[float, float, float]] = (
        (-1.0, -2.0, 0.0),
        (5.0, 2.0, 2.5),
    ),
    pit: tuple[float, float, float, float, float] | None = None,
) -> View:
    """Cast one ray per pixel into a room with boxes.

    `pit` is a hole in the floor: x low, x high, y low, y high, depth.
    """
    camera = camera or small_camera()
    u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)])
    directions = np.einsum('ij,jhw->ihw', pose[:3, :3], rays)
    origin = pose[:3, 3]
    depth, face = _leave(origin, directions, *room)
    label = np.asarray(_ROOM_FACES, np.uint8)[face]
    normal = _face_normals(face, inside=True)
    in_pit = np.zeros(u.shape, bool)
    if pit is not None:
        point = origin[:, None, None] + directions * depth
        in_pit = (face == 4) & (point[0] > pit[0]) & (point[0] < pit[1])
        in_pit &= (point[1] > pit[2]) & (point[1] < pit[3])
        low, high = (pit[0], pit[2], -pit[4]), (pit[1], pit[3], 3.0)
        below, below_face = _leave(origin, directions, low, high)
        depth = np.where(in_pit, below, depth)
        label = np.where(in_pit, np.asarray(_ROOM_FACES, np.uint8)[below_face], label)
        normal = np.where(in_pit, _face_normals(below_face, inside=True), normal)
    thing = np.full(u.shape, -1)
    for index, box in enumerate(boxes):
        enter, face, hit = _enter(origin, directions, box.low, box.high)
        nearer = hit & (enter < depth)
        depth = np.where(nearer, enter, depth)
        label = np.where(nearer, np.uint8(box.label), label)
        normal = np.where(nearer, _face_normals(face, inside=False), normal)
        thing = np.where(nearer, index, thing)
        in_pit &= ~nearer
    normal = np.einsum('ji,jhw->hwi', pose[:3, :3], normal).astype(np.float32)
    prediction = Prediction(
        label=np.ascontiguousarray(label, np.uint8),
        confidence=np.full(u.shape, 255, np.uint8),
        depth=depth.astype(np.float32),
        normal=np.ascontiguousarray(normal),
        intrinsics=camera,
        depth_calibrated=True,
    )
    return View(prediction, pose, pose[2, :3], float(pose[2, 3]), thing, in_pit)


def _slabs(
    origin: np.ndarray, directions: np.ndarray, low: tuple, high: tuple
) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide='ignore', invalid='ignore'):
        first = (np.asarray(low)[:, None, None] - origin[:, None, None]) / directions
        second = (np.asarray(high)[:, None, None] - origin[:, None, None]) / directions
    return first, second


def _leave(origin: np.ndarray, directions: np.ndarray, low: tuple, high: tuple):
    first, second = _slabs(origin, directions, low, high)
    far = np.fmax(first, second)
    axis = np.argmin(far, axis=0)
    ahead = np.take_along_axis(directions, axis[None], 0)[0] > 0
    return far.min(axis=0), 2 * axis + ahead


def _enter(origin: np.ndarray, directions: np.ndarray, low: tuple, high: tuple):
    first, second = _slabs(origin, directions, low, high)
    near, far = np.fmin(first, second), np.fmax(first, second)
    axis = np.argmax(near, axis=0)
    enter = near.max(axis=0)
    ahead = np.take_along_axis(directions, axis[None], 0)[0] > 0
    return enter, 2 * axis + ~ahead, (enter < far.min(axis=0)) & (enter > 0)


def _face_normals(face: np.ndarray, *, inside: bool) -> np.ndarray:
    outward = np.zeros((3, *face.shape))
    np.put_along_axis(outward, (face // 2)[None], np.where(face % 2, 1.0, -1.0)[None], 0)
    return -outward if inside else outward
