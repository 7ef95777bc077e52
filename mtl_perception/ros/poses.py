"""Where a camera is on the robot: from its parameter, or from TF where tf2_ros is installed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rclpy.node import Node
from rclpy.time import Time

# From the optical frame (x right, y down, z forward) to the camera's body (x forward, y left,
# z up), REP 103.
_BODY_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


def pose_matrix(pose: Sequence[float]) -> np.ndarray:
    """Return base_from_camera, float64 [4, 4], optical frame to base frame.

    Args:
        pose: x, y, z (metres) and roll, pitch, yaw (radians, about fixed axes x, y, z) of the
            camera's body in the base frame.
    """
    x, y, z, roll, pitch, yaw = pose
    cr, sr, cp, sp = math.cos(roll), math.sin(roll), math.cos(pitch), math.sin(pitch)
    cy, sy = math.cos(yaw), math.sin(yaw)
    body = np.array(
        [
            [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
            [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
            [-sp, cp * sr, cp * cr],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = body @ _BODY_FROM_OPTICAL
    matrix[:3, 3] = x, y, z
    return matrix


class TransformSource:
    """Looks up base_from_camera in TF; listens only once somebody needs it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._buffer = None
        self._listener = None
        self._wanted = False
        self._missing = ''

    def lookup(self, base_frame: str, frame_id: str) -> tuple[np.ndarray | None, str]:
        """Return the newest base_from_camera, float64 [4, 4], or None and why it is not known.

        May be called in any thread; the first call only asks the executor to begin to listen.
        """
        self._wanted = True
        if self._buffer is None:
            return None, self._missing
        try:
            transform = self._buffer.lookup_transform(base_frame, frame_id, Time())
        except Exception as error:  # tf2's exceptions have no common class in all distributions
            return None, f'TF knows no way from {frame_id!r} to {base_frame!r}: {error}'
        q, t = transform.transform.rotation, transform.transform.translation
        matrix = np.eye(4)
        matrix[:3, :3] = quaternion_matrix(q.x, q.y, q.z, q.w)
        matrix[:3, 3] = t.x, t.y, t.z
        return matrix, ''

    def listen(self) -> None:
        """Subscribe to TF if it is wanted; call it on the executor."""
        if not self._wanted or self._buffer is not None or self._missing:
            return
        try:
            import tf2_ros
        except ImportError:
            self._missing = (
                "tf2_ros is not installed, so the camera's place on the robot is unknown: set "
                'camera_pose, or install ros-<distro>-tf2-ros-py'
            )
            return
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, self._node)

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.unregister()
        self._buffer = self._listener = None
        self._wanted, self._missing = False, ''


def quaternion_matrix(x: float, y: float, z: float, w: float) -> np.ndarray:
    """Return the rotation of a unit quaternion, float64 [3, 3]."""
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
