"""A drive as a film: the map from above beside what the camera sees."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from driving.episode import Mount, Sight, Task
from driving.planner import Pose, Robot, RollingGrid
from mtl_training.worlds.world import CELL_M, World

_HEIGHT = 432
_WALL, _FREE, _SEEN = (90, 96, 104), (250, 248, 244), (43, 90, 226)
_ROBOT, _PATH, _GOAL = (60, 150, 60), (60, 150, 60), (200, 60, 160)


class Film:
    """Write one frame for every step; `close` ends the file."""

    def __init__(
        self, path: Path, world: World, task: Task, robot: Robot, mount: Mount, rate_hz: float
    ) -> None:
        self._taken = world.obstacles(0.03, robot.height)
        self._origin, size = world.grid
        self._scale = _HEIGHT / size[1]
        self._task, self._robot, self._mount = task, robot, mount
        self._trail: list[tuple[int, int]] = []
        width = int(size[0] * self._scale) // 2 * 2
        self._map_size = width, _HEIGHT
        self._view_size = _HEIGHT * 4 // 3, _HEIGHT
        self.frames = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = cv2.VideoWriter(
            str(path),
            cv2.VideoWriter_fourcc(*'mp4v'),
            rate_hz,
            (width + self._view_size[0], _HEIGHT),
        )
        if not self._writer.isOpened():
            raise OSError(f'OpenCV cannot write {path}: its build has no MPEG-4 encoder')

    def close(self) -> None:
        """End the file."""
        self._writer.release()

    def add(self, pose: Pose, grid: RollingGrid, sight: Sight) -> np.ndarray:
        """Write what stands where, what the robot believes and what it sees; return the frame."""
        frame = np.hstack([self._map(pose, grid), self._view(sight)])
        self._writer.write(frame)
        self.frames += 1
        return frame

    def _pixel(self, x: float, y: float) -> tuple[int, int]:
        across, up = (np.array([x, y]) - self._origin) / CELL_M * self._scale
        return round(across), round(_HEIGHT - up)

    def _map(self, pose: Pose, grid: RollingGrid) -> np.ndarray:
        floor = np.where(self._taken.T[::-1, :, None], _WALL, _FREE).astype(np.uint8)
        image = cv2.resize(floor, self._map_size, interpolation=cv2.INTER_NEAREST)
        i, j = np.nonzero(grid.taken)
        half = max(1, round(self._scale * grid.cell_m / CELL_M / 2))
        for x, y in zip(
            (i + 0.5) * grid.cell_m + grid.corner[0],
            (j + 0.5) * grid.cell_m + grid.corner[1],
            strict=True,
        ):
            u, v = self._pixel(x, y)
            cv2.rectangle(image, (u - half, v - half), (u + half - 1, v + half - 1), _SEEN, -1)
        at = self._pixel(pose.x, pose.y)
        self._trail.append(at)
        cv2.polylines(image, [np.array(self._trail)], False, _PATH, 2, cv2.LINE_AA)
        radius = round(self._robot.radius / CELL_M * self._scale)
        cv2.circle(image, self._pixel(*self._task.goal), 7, _GOAL, -1, cv2.LINE_AA)
        cv2.circle(image, at, radius, _ROBOT, 2, cv2.LINE_AA)
        nose = self._pixel(
            pose.x + 1.6 * self._robot.radius * np.cos(pose.yaw),
            pose.y + 1.6 * self._robot.radius * np.sin(pose.yaw),
        )
        cv2.line(image, at, nose, _ROBOT, 2, cv2.LINE_AA)
        return image

    def _view(self, sight: Sight) -> np.ndarray:
        if sight.picture is not None:
            image = sight.picture[..., ::-1].copy()
        else:
            depth = np.nan_to_num(sight.prediction.depth, nan=0.0)
            grey = np.uint8(np.clip(255 * (1 - depth / 6), 0, 255))
            image = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
        if sight.obstacle is not None:
            mask = sight.obstacle
            if mask.shape != image.shape[:2]:
                mask = cv2.resize(mask.astype(np.uint8), image.shape[1::-1]) > 0
            image[mask] = (0.55 * image[mask] + 0.45 * np.array(_SEEN)).astype(np.uint8)
        return cv2.resize(image, self._view_size, interpolation=cv2.INTER_LINEAR)
