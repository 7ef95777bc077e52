"""Smooth drives of a camera through a world's free space."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mtl_training.worlds.camera import camera_pose
from mtl_training.worlds.world import CELL_M, World

MAX_SPEED_MPS, MAX_TURN_RADPS = 0.6, 0.6


@dataclass(frozen=True)
class Drive:
    """Poses of a wheeled robot's camera, one row per frame.

    Attributes:
        x, y: place on the floor, metres.
        yaw: heading, radians.
        height: of the camera above the floor, metres.
        pitch: of the camera, radians, negative looks down.
        rate_hz: frames a second.
    """

    x: np.ndarray
    y: np.ndarray
    yaw: np.ndarray
    height: float
    pitch: float
    rate_hz: float

    def __len__(self) -> int:
        return len(self.x)

    def pose(self, frame: int) -> np.ndarray:
        """Return the optical frame's pose in the world, float64 [4, 4]."""
        return camera_pose(self.x[frame], self.y[frame], self.height, self.yaw[frame], self.pitch)


def shortest_path(
    clearance: np.ndarray, start: tuple[int, int], goal: tuple[int, int], radius_m: float
) -> np.ndarray | None:
    """Return cells int [N, 2] from start to goal that keep away from obstacles, or None.

    Dijkstra's search on the eight-connected grid; a step costs more where it is narrow.
    """
    cost = np.where(clearance > radius_m, 1 + 0.4 / np.maximum(clearance, 0.05), np.inf)
    best = np.full(clearance.shape, np.inf)
    parent: dict[tuple[int, int], tuple[int, int]] = {}
    best[start] = 0
    queue = [(0.0, start)]
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
    while queue:
        reached, cell = heapq.heappop(queue)
        if cell == goal:
            path = [cell]
            while path[-1] != start:
                path.append(parent[path[-1]])
            return np.array(path[::-1])
        if reached > best[cell]:
            continue
        for i, j in steps:
            after = cell[0] + i, cell[1] + j
            if not (0 <= after[0] < cost.shape[0] and 0 <= after[1] < cost.shape[1]):
                continue
            total = reached + cost[after] * np.hypot(i, j)
            if total < best[after]:
                best[after] = total
                parent[after] = cell
                heapq.heappush(queue, (total, after))
    return None


def plan_drive(
    world: World,
    rng: np.random.Generator,
    *,
    frames: int,
    rate_hz: float,
    height: float = 1.0,
    pitch: float = -0.14,
    roam: bool = False,
) -> Drive | None:
    """Return a drive from one free place of the first room to another, or None when cramped.

    The heading is that of the path with a look towards the middle of the room, both smoothed so
    that the robot turns at most at MAX_TURN_RADPS.

    Args:
        roam: go on into another room, looking where the way leads.
    """
    clearance = world.clearance(0.02, height + 0.25)
    radius = 0.28
    room = world.rooms[0]
    low, high = world.cell(room.x0, room.y0), world.cell(room.x1, room.y1)
    inside = np.zeros(clearance.shape, bool)
    inside[low[0] : high[0], low[1] : high[1]] = True
    cells = np.argwhere(inside & (clearance > radius + 0.05))
    if len(cells) < 20:
        return None
    start = tuple(cells[rng.integers(len(cells))])
    goals = np.argwhere(~inside & (clearance > radius + 0.05)) if roam else cells
    far = goals[np.linalg.norm((goals - start) * CELL_M, axis=1) > 1.5]
    if not len(far):
        return None
    path = shortest_path(clearance, start, tuple(far[rng.integers(len(far))]), radius)
    if path is None:
        return None
    origin, _ = world.grid
    points = origin + (path + 0.5) * CELL_M
    points = ndimage.gaussian_filter1d(points, 6, axis=0, mode='nearest')
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    seconds = (frames - 1) / rate_hz
    length = min(along[-1], MAX_SPEED_MPS * 0.75 * seconds)
    # Start and stop gently: a raised cosine over the way.
    time = np.linspace(0, 1, frames)
    way = length * (0.75 * time + 0.25 * (0.5 - 0.5 * np.cos(np.pi * time)))
    x, y = np.interp(way, along, points[:, 0]), np.interp(way, along, points[:, 1])
    ahead = np.minimum(way + 0.5, along[-1])
    dx = np.interp(ahead, along, points[:, 0]) - x
    dy = np.interp(ahead, along, points[:, 1]) - y
    focus = room.center + rng.normal(0, 0.5, 2)
    to_focus = np.stack([focus[0] - x, focus[1] - y], 1)
    to_focus /= np.linalg.norm(to_focus, axis=1, keepdims=True) + 0.3
    heading = np.stack([dx, dy], 1)
    heading /= np.linalg.norm(heading, axis=1, keepdims=True) + 0.1
    mixed = heading if roam else 0.55 * heading + 0.6 * to_focus
    yaw = np.unwrap(np.arctan2(mixed[:, 1], mixed[:, 0]))
    yaw = ndimage.gaussian_filter1d(yaw, 0.6 * rate_hz, mode='nearest')
    if np.abs(np.diff(yaw)).max() * rate_hz > MAX_TURN_RADPS:
        return None
    cell = [world.cell(a, b) for a, b in zip(x, y, strict=True)]
    if min(clearance[c] for c in cell) < radius - CELL_M:
        return None
    return Drive(x, y, yaw, height, pitch, rate_hz)
