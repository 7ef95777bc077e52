"""Where a camera was: a small tree of recorded transforms (REP 105), without ROS."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

# Frames that stand still in the world (REP 105).
_FIXED_FRAMES = frozenset({'earth', 'map', 'odom', 'world'})
_KEPT = 512
_JUMP_NS = 1_000_000_000


def matrix_of(translation: Sequence[float], quaternion: Sequence[float]) -> np.ndarray:
    """Return the float64 [4, 4] transform of a translation in metres and a quaternion x y z w."""
    x, y, z, w = np.asarray(quaternion, np.float64) / max(np.linalg.norm(quaternion), 1e-12)
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = translation
    return matrix


def interpolate(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Return the transform at `share` (0..1) of the way from one [4, 4] transform to another."""
    turn, _ = cv2.Rodrigues(first[:3, :3].T @ second[:3, :3])
    matrix = np.eye(4)
    matrix[:3, :3] = first[:3, :3] @ cv2.Rodrigues(turn * share)[0]
    matrix[:3, 3] = first[:3, 3] * (1 - share) + second[:3, 3] * share
    return matrix


class Transforms:
    """Takes TFMessages as they come and answers where a frame was; memory is bounded."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._fixed: dict[str, np.ndarray] = {}
        self._moving: dict[str, tuple[list[int], list[np.ndarray]]] = {}
        self._newest = -1

    def add(self, message: Any, static: bool) -> None:
        """Take a tf2_msgs/TFMessage (or any object with its fields)."""
        for stamped in message.transforms:
            child = stamped.child_frame_id.lstrip('/')
            self._parent[child] = stamped.header.frame_id.lstrip('/')
            moved, turned = stamped.transform.translation, stamped.transform.rotation
            matrix = matrix_of(
                (moved.x, moved.y, moved.z), (turned.x, turned.y, turned.z, turned.w)
            )
            if static:
                self._fixed[child] = matrix
                continue
            stamp = stamped.header.stamp.sec * 1_000_000_000 + stamped.header.stamp.nanosec
            self._newest = stamp
            stamps, matrices = self._moving.setdefault(child, ([], []))
            if stamps and stamp < stamps[-1] - _JUMP_NS:
                # Time was set back, as when a recording is looped: what was known is void.
                stamps.clear()
                matrices.clear()
            place = bisect_left(stamps, stamp)
            stamps.insert(place, stamp)
            matrices.insert(place, matrix)
            if len(stamps) > _KEPT:
                del stamps[0], matrices[0]

    def reaches(self, stamp_ns: int) -> bool:
        """Tell whether transforms up to this time have been taken."""
        return self._newest >= stamp_ns

    def pose(
        self, frame_id: str, stamp_ns: int, tolerance_ns: int = 100_000_000
    ) -> np.ndarray | None:
        """Return frame to root, float64 [4, 4] in metres, or None where unknown at that time.

        Between two recorded transforms it is interpolated; beyond the last one it may be
        `tolerance_ns` old. A way of static transforms alone tells a pose only where it ends in a
        frame of the world: one that ends on the robot moves with it.
        """
        frame = frame_id.lstrip('/')
        pose, moves = np.eye(4), False
        visited = set()
        while frame in self._parent and frame not in visited:
            visited.add(frame)
            step = self._fixed.get(frame)
            if step is None:
                step, moves = self._at(frame, stamp_ns, tolerance_ns), True
            if step is None:
                return None
            pose = step @ pose
            frame = self._parent[frame]
        known = moves or (bool(visited) and frame.rpartition('/')[2] in _FIXED_FRAMES)
        return pose if known else None

    def _at(self, frame: str, stamp_ns: int, tolerance_ns: int) -> np.ndarray | None:
        stamps, matrices = self._moving.get(frame, ([], []))
        if not stamps:
            return None
        place = bisect_left(stamps, stamp_ns)
        if place < len(stamps) and stamps[place] == stamp_ns:
            return matrices[place]
        if 0 < place < len(stamps):
            before, after = stamps[place - 1], stamps[place]
            share = (stamp_ns - before) / (after - before)
            return interpolate(matrices[place - 1], matrices[place], share)
        nearest = min(place, len(stamps) - 1)
        if abs(stamps[nearest] - stamp_ns) > tolerance_ns:
            return None
        return matrices[nearest]
