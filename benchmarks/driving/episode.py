"""One drive from a start to a goal, in lock-step with perception."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np

from driving.planner import Planner, Pose, Robot, RollingGrid
from mtl_perception.frames import CameraFrame, Intrinsics, Prediction
from mtl_perception.geometry.backprojection import back_project
from mtl_perception.geometry.obstacles import ObstacleConfig
from mtl_perception.geometry.pipeline import GeometryConfig, SceneGeometry
from mtl_perception.perceiver import Perceiver
from mtl_training.worlds.camera import Sensor, camera_pose
from mtl_training.worlds.trajectory import shortest_path
from mtl_training.worlds.world import World

CAMERA = Intrinsics(384, 288, 311.31, 311.68, 191.5, 143.5)
CONTROL_S = 0.1
SEE_EVERY = 6
GOAL_M = 0.3
# Nav2's own default for marking: what is farther errs by more than a robot's width.
RANGE_M = 2.5
LOOK_AROUND_RADPS = 1.0
RETREAT_MPS, RETREAT_S = -0.2, 0.6
STUCK_M, STUCK_S = 0.15, 4.0
# Stuck again so near the place counts as stuck there again.
STUCK_AGAIN_M = 0.6
# What is too near to be seen again is forgotten only from this time on.
FORGET_ALL_FROM = 3


@dataclass(frozen=True)
class Mount:
    """Where the camera is on the robot: metres, and radians (down is positive).

    `tilt_std_deg` is what the robot believes of its tilt on the move.
    """

    forward: float = 0.12
    height: float = 0.6
    pitch: float = math.radians(22)
    tilt_std_deg: float = 1.0

    @property
    def base_from_camera(self) -> np.ndarray:
        """Optical frame to base frame, float64 [4, 4]."""
        return camera_pose(self.forward, 0.0, self.height, 0.0, -self.pitch)

    @property
    def blind_m(self) -> float:
        """Range, from the camera, below which the floor is out of the picture."""
        lowest = self.pitch + math.atan((CAMERA.height - CAMERA.cy) / CAMERA.fy)
        return self.height / math.tan(lowest)


@dataclass(frozen=True)
class Task:
    """Start and goal in one world."""

    seed: int
    start: Pose
    goal: tuple[float, float]
    length: float


@dataclass
class Outcome:
    """What became of a drive.

    Attributes:
        seed: of the world.
        variant: 'ours', 'ground_truth' or 'height_cut'.
        success: reached the goal in time without touching anything.
        reached: reached it in time.
        collisions: times that it touched something.
        metres: driven.
        seconds: taken.
        shortest_m: length of the shortest way.
    """

    seed: int
    variant: str
    success: bool
    reached: bool
    collisions: int
    metres: float
    seconds: float
    shortest_m: float

    def as_dict(self) -> dict[str, object]:
        """Return plain values."""
        return asdict(self)


@dataclass
class Sight:
    """What the robot saw last: for the video."""

    picture: np.ndarray | None = None
    prediction: Prediction | None = None
    obstacle: np.ndarray | None = None
    points: np.ndarray = field(default_factory=lambda: np.zeros((2, 0)))


Eyes = Callable[[World, np.ndarray, float], Sight]
"""From a world, the camera's pose in it and the time to obstacles x, y in the base frame."""


def make_task(world: World, robot: Robot) -> Task | None:
    """Return the longest of some random drives through this world, or None where it is cramped."""
    rng = np.random.default_rng([world.seed, 17])
    clearance = world.clearance(0.03, robot.height)
    origin, _ = world.grid
    radius = robot.radius + 0.12
    cells = np.argwhere(clearance > radius + 0.05)
    if len(cells) < 50:
        return None
    best: np.ndarray | None = None
    longest = 2.5
    for _ in range(12):
        first, last = cells[rng.integers(len(cells), size=2)]
        if np.hypot(*(first - last)) * 0.05 < 2.0:
            continue
        path = shortest_path(clearance, tuple(first), tuple(last), radius)
        if path is None:
            continue
        points = origin + (path + 0.5) * 0.05
        length = float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
        if longest < length < 12.0:
            best, longest = points, length
    if best is None:
        return None
    ahead = best[min(12, len(best) - 1)] - best[0]
    yaw = float(np.arctan2(ahead[1], ahead[0]) + rng.uniform(-0.8, 0.8))
    goal = float(best[-1][0]), float(best[-1][1])
    return Task(world.seed, Pose(float(best[0][0]), float(best[0][1]), yaw), goal, longest)


def true_eyes(config: GeometryConfig, mount: Mount) -> Eyes:
    """Return eyes with perfect labels, depth and normals, and our geometry."""
    geometry = SceneGeometry(config)

    def see(world: World, pose: np.ndarray, time_s: float) -> Sight:
        view = world.render(pose, CAMERA, color=False)
        prediction = Prediction(
            label=view.label,
            confidence=np.full(view.label.shape, 255, np.uint8),
            depth=view.depth,
            normal=view.normal,
            intrinsics=CAMERA,
        )
        return _by_geometry(geometry, prediction, None, mount, time_s)

    return see


def our_eyes(perceiver: Perceiver, config: GeometryConfig, mount: Mount, seed: int) -> Eyes:
    """Return the node's way: perceiver and geometry on developed pictures."""
    geometry = SceneGeometry(config)
    photograph = _photographer(seed)

    def see(world: World, pose: np.ndarray, time_s: float) -> Sight:
        picture = photograph(world, pose)
        prediction = perceiver.perceive(CameraFrame(picture, 'rgb8', CAMERA))
        return _by_geometry(geometry, prediction, picture, mount, time_s)

    return see


def naive_eyes(perceiver: Perceiver, robot: Robot, mount: Mount, seed: int) -> Eyes:
    """Return the usual recipe: the same network's depth, cut 0.2 m above the nominal floor."""
    photograph = _photographer(seed)
    base = mount.base_from_camera

    def see(world: World, pose: np.ndarray, time_s: float) -> Sight:
        picture = photograph(world, pose)
        prediction = perceiver.perceive(CameraFrame(picture, 'rgb8', CAMERA), {'depth'})
        depth = prediction.depth
        points = back_project(depth, prediction.intrinsics).reshape(3, -1)
        placed = base[:3, :3] @ points + base[:3, 3:]
        high = (placed[2] > 0.2) & (placed[2] < robot.height) & (points[2] < RANGE_M)
        return Sight(picture, prediction, high.reshape(depth.shape), placed[:2, high])

    return see


def _by_geometry(
    geometry: SceneGeometry,
    prediction: Prediction,
    picture: np.ndarray | None,
    mount: Mount,
    time_s: float,
) -> Sight:
    base = mount.base_from_camera
    scene = geometry.update(
        prediction, time_s=time_s, outputs={'obstacles'}, base_from_camera=base
    )
    points = np.stack([scene.obstacles[axis] for axis in 'xyz'])
    placed = base[:3, :3] @ points + base[:3, 3:]
    return Sight(picture, prediction, scene.parts.obstacle.copy(), placed[:2])


def _photographer(seed: int) -> Callable[[World, np.ndarray], np.ndarray]:
    """Return a camera whose noise and colours are fixed by the seed."""
    rng = np.random.default_rng([seed, 23])
    sensor = Sensor.random(rng)

    def photograph(world: World, pose: np.ndarray) -> np.ndarray:
        return sensor.develop(world.render(pose, CAMERA).radiance, rng)

    return photograph


def geometry_config(robot: Robot, mount: Mount, roles, *, scale: str) -> GeometryConfig:
    """Return the geometry of a robot that knows its camera's mounting."""
    return GeometryConfig(
        roles=roles,
        scale=scale,
        camera_height=mount.height,
        mount_std_deg=mount.tilt_std_deg,
        obstacles=ObstacleConfig(max_range=RANGE_M, max_height=robot.height),
    )


def _apart(a: Pose, b: Pose) -> float:
    return math.hypot(a.x - b.x, a.y - b.y)


def drive(
    world: World,
    task: Task,
    eyes: Eyes,
    variant: str,
    robot: Robot,
    mount: Mount,
    watch: Callable[[Pose, RollingGrid, Sight], object] | None = None,
    *,
    limit_s: float | None = None,
) -> Outcome:
    """Drive one task: a picture every 0.6 s, the robot waits for what it shows.

    Odometry is exact. First the robot turns once on the spot, to see what stands beside it. Where
    it touches something it stops, notes it, and backs off; five touches end the drive. Where it
    gets no farther it forgets what it can see again and turns once more, as Nav2's recoveries do,
    and the third time at one place all.
    """
    clearance = world.clearance(0.03, robot.height)
    # Cells count from their centres: half a cell less is still clear.
    touch = robot.radius - 0.025
    grid, planner = RollingGrid(), Planner(robot, task.goal)
    pose, speed, turn = task.start, 0.0, 0.0
    look_around = math.ceil(2 * math.pi / LOOK_AROUND_RADPS / CONTROL_S)
    limit_s = 40 + task.length / 0.1 if limit_s is None else limit_s
    limit = look_around + round(limit_s / CONTROL_S)
    anchor, anchored, looking = pose, look_around, look_around
    stuck_at: Pose | None = None
    stuck = 0
    half_view = math.atan(CAMERA.cx / CAMERA.fx)
    collisions, metres, step, retreat, reached = 0, 0.0, 0, 0, False
    sight = Sight()
    while step < limit and collisions < 5 and not reached:
        if step % SEE_EVERY == 0:
            eye = Pose(
                pose.x + mount.forward * math.cos(pose.yaw),
                pose.y + mount.forward * math.sin(pose.yaw),
                pose.yaw,
            )
            camera = camera_pose(eye.x, eye.y, mount.height, eye.yaw, -mount.pitch)
            sight = eyes(world, camera, step * CONTROL_S)
            c, s = math.cos(pose.yaw), math.sin(pose.yaw)
            x = pose.x + c * sight.points[0] - s * sight.points[1]
            y = pose.y + s * sight.points[0] + c * sight.points[1]
            grid.centre_on(pose)
            grid.add(x, y, eye, half_view=half_view, nearest=mount.blind_m, farthest=RANGE_M)
            grid.free(pose, robot.radius)
            planner.look(grid)
        if watch is not None:
            watch(pose, grid, sight)
        if _apart(pose, anchor) > STUCK_M:
            anchor, anchored = pose, step
        if stuck_at is not None and _apart(pose, stuck_at) > STUCK_AGAIN_M:
            stuck_at, stuck = None, 0
        if (step - anchored) * CONTROL_S > STUCK_S:
            stuck_at, stuck = pose, stuck + 1
            unseen_m = mount.forward + mount.blind_m
            grid.forget(pose, unseen_m if stuck < FORGET_ALL_FROM else 0.0)
            planner.look(grid)
            looking = look_around
            anchored = step + looking
        if looking:
            speed, turn, looking = 0.0, LOOK_AROUND_RADPS, looking - 1
        elif retreat:
            speed, turn, retreat = RETREAT_MPS, 0.0, retreat - 1
        else:
            speed, turn = planner.steer(pose, max(speed, 0.0), turn, CONTROL_S)
        after = pose.moved(speed, turn, CONTROL_S)
        if speed != 0 and clearance[world.cell(after.x, after.y)] < touch:
            if speed > 0:
                collisions += 1
                retreat = round(RETREAT_S / CONTROL_S)
                grid.bump(pose, robot.radius)
                planner.look(grid)
            after, speed = pose, 0.0
        metres += _apart(after, pose)
        pose = after
        step += 1
        reached = math.hypot(task.goal[0] - pose.x, task.goal[1] - pose.y) < GOAL_M
    return Outcome(
        seed=task.seed,
        variant=variant,
        success=reached and collisions == 0,
        reached=reached,
        collisions=collisions,
        metres=round(metres, 3),
        seconds=round(step * CONTROL_S, 1),
        shortest_m=round(task.length, 3),
    )
