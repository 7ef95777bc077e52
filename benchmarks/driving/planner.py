"""A plain local planner: a rolling grid built from obstacles alone, and a dynamic window."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra

_HIT, _MISS, _LOW, _HIGH, _TAKEN = 0.7, 0.7, -1.5, 1.6, 0.5
# What a view says of a cell counts less the farther it is: fully up to here, this share less for
# each further metre, and never less than the last. However often it is said, it does not become
# surer than that: one near view corrects many far ones.
_SURE_M, _DOUBT_PER_M, _LEAST_TRUST = 0.6, 0.35, 0.35
# Ways through cells that no view showed are so much longer.
_UNSEEN_PRICE = 2.0
# Added per metre where the robot comes too near to what is marked, and for every metre too near.
_TIGHT_PRICE, _TIGHTER_PRICE_PER_M = 10.0, 300.0
_POINTS_PER_CELL = 2
# A direction's nearest thing is where so many points, at 1 m, are as near or nearer: as many as a
# few centimetres of height have. Fewer are edges and noise.
_POINTS_AT_1_M = 20
# So far, in metres, before and behind the nearest thing in each direction does a view mark.
_BEFORE_M, _SKIN_M = 0.05, 0.25
# Way kept between the robot and what is marked: half a cell and what a camera errs. None is kept
# up to this speed, or the robot would stand for good before many a gap it could pass.
_MARGIN_M, _SLOW_MPS = 0.06, 0.15
# Faster than that, the robot's centre stays so far, in metres, from what no view showed.
_UNSEEN_APART_M = 0.15


@dataclass(frozen=True)
class Robot:
    """A round robot with differential drive.

    Attributes:
        radius: metres.
        height: of its top above the floor, metres; it passes below what is higher.
        max_speed: m/s.
        max_turn: rad/s.
        acceleration: m/s^2.
        turn_acceleration: rad/s^2.
    """

    radius: float = 0.18
    height: float = 0.9
    max_speed: float = 0.4
    max_turn: float = 1.2
    acceleration: float = 0.8
    turn_acceleration: float = 3.0


@dataclass(frozen=True)
class Pose:
    """Place and heading in the world: metres, radians counter-clockwise from x."""

    x: float
    y: float
    yaw: float

    def moved(self, speed: float, turn: float, seconds: float) -> Pose:
        """Return the pose after driving an arc."""
        middle = self.yaw + turn * seconds / 2
        return Pose(
            self.x + speed * math.cos(middle) * seconds,
            self.y + speed * math.sin(middle) * seconds,
            self.yaw + turn * seconds,
        )


class RollingGrid:
    """Where obstacles are around the robot; the world beyond the window is forgotten.

    Cells are squares of the world's floor. A cell holds the log-odds of being taken: an obstacle
    raises them; a view that passes over the cell to an obstacle behind it, or to the end of the
    camera's range, lowers them. Near cells are believed more than far ones.

    Attributes:
        odds: float32 [X, Y], log-odds of being taken.
        seen: bool [X, Y], cells that some view has shown.
    """

    def __init__(self, size_m: float = 8.0, cell_m: float = 0.05) -> None:
        self.cell_m = cell_m
        self.cells = round(size_m / cell_m)
        self.odds = np.zeros((self.cells, self.cells), np.float32)
        self.seen = np.zeros((self.cells, self.cells), bool)
        self._corner = np.zeros(2, int)

    @property
    def corner(self) -> np.ndarray:
        """World coordinates of the window's first cell's corner, metres."""
        return self._corner * self.cell_m

    @property
    def taken(self) -> np.ndarray:
        """Bool [X, Y]: cells to keep away from."""
        return self.odds > _TAKEN

    def centre_on(self, pose: Pose) -> None:
        """Roll the window so that the robot is in its middle."""
        place = np.floor(np.array([pose.x, pose.y]) / self.cell_m).astype(int)
        corner = place - self.cells // 2
        shift = corner - self._corner
        for field in (self.odds, self.seen):
            if (np.abs(shift) >= self.cells).any():
                field[:] = 0
                continue
            for axis, step in enumerate(shift):
                if step:
                    field[:] = np.roll(field, -step, axis)
                    gone = [slice(None)] * 2
                    gone[axis] = slice(-step, None) if step > 0 else slice(None, -step)
                    field[tuple(gone)] = 0
        self._corner = corner

    def index(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cells of points in the world; may lie outside the window."""
        i = np.floor(np.asarray(x) / self.cell_m).astype(int) - self._corner[0]
        j = np.floor(np.asarray(y) / self.cell_m).astype(int) - self._corner[1]
        return i, j

    def add(
        self,
        x: np.ndarray,
        y: np.ndarray,
        eye: Pose,
        *,
        half_view: float,
        nearest: float,
        farthest: float,
    ) -> None:
        """Take in the obstacles that one picture showed.

        Args:
            x, y: of the obstacles' points in the world [K].
            eye: camera's place and heading.
            half_view: half the camera's horizontal view, radians.
            nearest: range from which on the camera sees the floor, metres.
            farthest: range of the obstacles, metres.
        """
        # Wide enough that every beam holds some of the points of a far wall.
        beams = 90
        bearing = np.arctan2(y - eye.y, x - eye.x) - eye.yaw
        bearing = (bearing + np.pi) % (2 * np.pi) - np.pi
        ranges = np.hypot(x - eye.x, y - eye.y)
        beam = np.clip(((bearing / half_view + 1) / 2 * beams).astype(int), 0, beams - 1)
        reach = _reaches(beam, ranges, beams, farthest)

        centres = (np.arange(self.cells) + 0.5) * self.cell_m
        dx = (centres + self.corner[0] - eye.x)[:, None]
        dy = (centres + self.corner[1] - eye.y)[None, :]
        cell_range = np.hypot(dx, dy)
        cell_bearing = (np.arctan2(dy, dx) - eye.yaw + np.pi) % (2 * np.pi) - np.pi
        cell_beam = np.clip(((cell_bearing / half_view + 1) / 2 * beams).astype(int), 0, beams - 1)
        trust = np.clip(1 - _DOUBT_PER_M * (cell_range - _SURE_M), _LEAST_TRUST, 1)

        # What stands behind is marked when it is seen freely: it is where depth errs most.
        front = (ranges > reach[beam] - _BEFORE_M) & (ranges < reach[beam] + _SKIN_M)
        i, j = self.index(x[front], y[front])
        inside = (i >= 0) & (i < self.cells) & (j >= 0) & (j < self.cells)
        count = np.zeros_like(self.odds)
        np.add.at(count, (i[inside], j[inside]), 1)
        marked = count >= _POINTS_PER_CELL
        seen = (np.abs(cell_bearing) < half_view) & (cell_range > nearest)
        seen &= (cell_range < reach[cell_beam] - self.cell_m) & ~marked
        free = np.minimum(self.odds, np.maximum(self.odds - _MISS * trust, _LOW * trust))
        taken = np.maximum(self.odds, np.minimum(self.odds + _HIT * trust, _HIGH * trust))
        self.odds = np.where(marked, taken, np.where(seen, free, self.odds)).astype(np.float32)
        self.seen |= seen | marked

    def free(self, pose: Pose, radius: float) -> None:
        """Clear what lies under the robot: it stands there."""
        under = self._within(pose, radius)
        self.odds[under] = np.minimum(self.odds[under], 0)
        self.seen |= under

    def forget(self, pose: Pose, keep_m: float) -> None:
        """Clear everything but what is nearer to the robot than `keep_m`, metres."""
        far = ~self._within(pose, keep_m)
        self.odds[far] = 0
        self.seen[far] = False

    def _within(self, pose: Pose, radius: float) -> np.ndarray:
        centres = (np.arange(self.cells) + 0.5) * self.cell_m
        dx = (centres + self.corner[0] - pose.x)[:, None]
        dy = (centres + self.corner[1] - pose.y)[None, :]
        return np.hypot(dx, dy) < radius

    def bump(self, pose: Pose, radius: float) -> None:
        """Note that something stands before the robot's front, where its bumper was pressed."""
        angles = pose.yaw + np.linspace(-0.5, 0.5, 5)
        reach = radius + self.cell_m
        i, j = self.index(pose.x + reach * np.cos(angles), pose.y + reach * np.sin(angles))
        inside = (i >= 0) & (i < self.cells) & (j >= 0) & (j < self.cells)
        self.odds[i[inside], j[inside]] = _HIGH


def _reaches(beam: np.ndarray, ranges: np.ndarray, beams: int, farthest: float) -> np.ndarray:
    """Return the range of the nearest thing in each beam, `farthest` where there is none."""
    reach = np.full(beams, farthest)
    order = np.lexsort((ranges, beam))
    beam, ranges = beam[order], ranges[order]
    nearer = np.arange(len(beam)) - np.searchsorted(beam, beam)
    enough = nearer * ranges >= _POINTS_AT_1_M
    np.minimum.at(reach, beam[enough], ranges[enough])
    return reach


def _distance_to(cells: np.ndarray) -> np.ndarray:
    """Return the distance in cells from each cell to the nearest of these."""
    return cv2.distanceTransform((~cells).astype(np.uint8), cv2.DIST_L2, 5)


class Planner:
    """Dynamic window (Fox, Burgard, Thrun 1997) that follows the grid's way to the goal.

    The cost to the goal over the grid (Dijkstra; cost grows near obstacles and is higher where
    nothing was seen) replaces the original's heading to the goal, so that chairs do not trap it.
    """

    def __init__(self, robot: Robot, goal: tuple[float, float]) -> None:
        self.robot = robot
        self.goal = goal
        self._coarse = 2
        self._cost: np.ndarray | None = None
        self._distance: np.ndarray | None = None
        self._unseen_distance: np.ndarray | None = None
        self._grid: RollingGrid | None = None

    def look(self, grid: RollingGrid) -> None:
        """Compute clearance and cost to the goal from the grid as it is now."""
        self._distance = _distance_to(grid.taken) * grid.cell_m
        self._unseen_distance = _distance_to(~grid.seen) * grid.cell_m
        step = self._coarse
        cells = grid.cells // step
        blocks = self._distance[: cells * step, : cells * step].reshape(cells, step, cells, step)
        clearance = blocks.mean(axis=(1, 3))
        margin = np.clip((0.5 - clearance) / 0.5, 0, 1)
        price = 1 + 4 * margin**2
        unseen = ~grid.seen[: cells * step, : cells * step].reshape(cells, step, cells, step)
        price[unseen.all(axis=(1, 3))] *= _UNSEEN_PRICE
        # Nearer to an obstacle than it should come is dear, not impossible: the robot may have
        # been driven there by a grid that learnt better since. A gap's middle is the least dear.
        lacking = self.robot.radius + _MARGIN_M - clearance
        price += _TIGHT_PRICE * (lacking > 0) + _TIGHTER_PRICE_PER_M * np.maximum(lacking, 0)
        self._cost = self._distances_to_goal(price, grid)
        self._grid = grid

    def _distances_to_goal(self, price: np.ndarray, grid: RollingGrid) -> np.ndarray:
        cells = len(price)
        size = grid.cell_m * self._coarse
        number = np.arange(cells * cells).reshape(cells, cells)
        edges = []
        for di, dj in ((0, 1), (1, 0), (1, 1), (1, -1)):
            a = number[: cells - di, max(0, -dj) : cells - max(0, dj)]
            b = number[di:, max(0, dj) : cells + min(0, dj)]
            length = size * math.hypot(di, dj)
            cost = (price.ravel()[a] + price.ravel()[b]) / 2 * length
            edges.append((a.ravel(), b.ravel(), cost.ravel()))
        row, column, cost = (np.concatenate(part) for part in zip(*edges, strict=True))
        graph = csr_matrix((cost, (row, column)), (cells * cells, cells * cells))
        at = (np.asarray(self.goal) - grid.corner) / size
        i, j = np.clip(np.floor(at).astype(int), 0, cells - 1)
        return dijkstra(graph, directed=False, indices=number[i, j]).reshape(cells, cells)

    def _sample(
        self, field: np.ndarray, x: np.ndarray, y: np.ndarray, cell_m: float
    ) -> np.ndarray:
        """Interpolate a field of cells at points of the world."""
        assert self._grid is not None
        corner = self._grid.corner
        row = ((x - corner[0]) / cell_m - 0.5).astype(np.float32)
        column = ((y - corner[1]) / cell_m - 0.5).astype(np.float32)
        shape = row.shape
        values = cv2.remap(
            field.astype(np.float32),
            column.reshape(1, -1),
            row.reshape(1, -1),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return values.reshape(shape)

    def steer(self, pose: Pose, speed: float, turn: float, period: float) -> tuple[float, float]:
        """Choose the speed (m/s) and the turn (rad/s) for the next `period` seconds."""
        assert self._distance is not None and self._unseen_distance is not None
        assert self._cost is not None and self._grid is not None
        robot = self.robot
        reach = robot.acceleration * period
        slowest = max(0.0, speed - 2 * reach)
        speeds = np.linspace(slowest, max(slowest, min(robot.max_speed, speed + reach)), 5)
        reach = robot.turn_acceleration * period
        turns = np.linspace(
            max(-robot.max_turn, turn - reach), min(robot.max_turn, turn + reach), 11
        )
        v, w = (axis.ravel()[:, None] for axis in np.meshgrid(speeds, turns))
        times = np.arange(1, 13)[None] * 0.125
        yaw = pose.yaw + w * times
        middle = pose.yaw + w * (times - 0.0625)
        x = pose.x + np.cumsum(v * np.cos(middle) * 0.125, axis=1)
        y = pose.y + np.cumsum(v * np.sin(middle) * 0.125, axis=1)
        cell = self._grid.cell_m
        clearance = self._sample(self._distance, x, y, cell)
        here = float(self._sample(self._distance, np.array([pose.x]), np.array([pose.y]), cell)[0])
        # Where the robot already stands too near it may pass slowly, but not drive closer.
        least = max(here - 0.02, min(robot.radius - 0.03, here - 0.01))
        needed = np.where(
            v <= _SLOW_MPS, min(robot.radius - 0.01, least), robot.radius + _MARGIN_M - 0.01
        )
        known = self._sample(self._unseen_distance, x, y, cell) > _UNSEEN_APART_M
        safe = ((clearance > needed) & (known | (v <= _SLOW_MPS))).all(axis=1) | (v[:, 0] == 0)
        cost = self._sample(self._cost, x[:, -1], y[:, -1], cell * self._coarse)
        aim = self._aim(pose)
        off = np.abs((aim - yaw[:, -1] + np.pi) % (2 * np.pi) - np.pi)
        score = cost + 0.15 * off + 0.05 * np.abs(w[:, 0])
        score += 0.3 * np.clip(0.3 - clearance.min(axis=1), 0, 0.3)
        score[~safe] = np.inf
        best = int(np.argmin(score))
        if not np.isfinite(score[best]):
            return 0.0, 0.0
        chosen = float(v[best, 0]), float(w[best, 0])
        if chosen[0] < 0.03 and abs(chosen[1]) < 0.1:
            # A standstill leads nowhere: turn towards the way.
            side = (aim - pose.yaw + np.pi) % (2 * np.pi) - np.pi
            limit = min(robot.max_turn, abs(turn) + reach)
            return 0.0, float(np.clip(2 * side, -limit, limit)) or limit
        return chosen

    def _aim(self, pose: Pose) -> float:
        """Return the direction in which the cost falls, a little ahead."""
        angles = np.linspace(-np.pi, np.pi, 24, endpoint=False)
        cell = self._grid.cell_m * self._coarse
        x, y = pose.x + 0.4 * np.cos(angles), pose.y + 0.4 * np.sin(angles)
        if math.hypot(self.goal[0] - pose.x, self.goal[1] - pose.y) < 0.5:
            return math.atan2(self.goal[1] - pose.y, self.goal[0] - pose.x)
        return float(angles[int(np.argmin(self._sample(self._cost, x, y, cell)))])
