"""What Nav2's costmap makes of the clouds, by config/nav2_costmap.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from node_rig import node_of
from sensor_msgs.msg import PointCloud2
from test_node_scene import BOX, POSE, bundle_of, perceive, records, room

from mtl_perception.ros.poses import pose_matrix

pytestmark = pytest.mark.usefixtures('ros_domain')

COSTMAP = Path(__file__).parent.parent / 'config' / 'nav2_costmap.yaml'
CELL = 0.05


@pytest.fixture(scope='module')
def voxel_layer() -> dict[str, Any]:
    costmap = yaml.safe_load(COSTMAP.read_text())
    return costmap['local_costmap']['local_costmap']['ros__parameters']['voxel_layer']


def buffer(cloud: PointCloud2, source: Mapping[str, Any]) -> np.ndarray:
    """Return the points that nav2_costmap_2d's ObservationBuffer keeps, [K, 3] in the base frame.

    It transforms the cloud, here with the camera's pose in TF's place, and drops what lies outside
    the source's heights; comparisons with NaN are false.
    """
    points = records(cloud).reshape(-1)
    camera = np.stack([points[axis] for axis in 'xyz'] + [np.ones(points.size)])
    base = (pose_matrix(POSE) @ camera)[:3].T
    z = base[:, 2]
    kept = (z <= source['max_obstacle_height']) & (z >= source['min_obstacle_height'])
    return base[kept]


def cells(points: np.ndarray, limit: float) -> set[tuple[int, int]]:
    """Return the costmap's cells of points nearer than `limit` metres."""
    near = points[np.linalg.norm(points[:, :2], axis=1) < limit]
    return {tuple(cell) for cell in np.floor(near[:, :2] / CELL).astype(int)}


def area(x: tuple[float, float], y: tuple[float, float]) -> set[tuple[int, int]]:
    """Return the cells of a rectangle, metres."""
    columns = range(round(x[0] / CELL), round(x[1] / CELL))
    rows = range(round(y[0] / CELL), round(y[1] / CELL))
    return {(column, row) for column in columns for row in rows}


def test_a_box_is_marked_and_the_floor_before_it_is_cleared(
    tmp_path: Path, voxel_layer: dict[str, Any]
) -> None:
    with node_of(bundle_of(room(), tmp_path), camera_pose=POSE) as rig:
        obstacles, points = perceive(rig, 'obstacles', 'points', kinds=(PointCloud2, PointCloud2))
    marking, clearing = voxel_layer['obstacles'], voxel_layer['points']
    assert (marking['marking'], marking['clearing']) == (True, False)
    assert (clearing['marking'], clearing['clearing']) == (False, True)
    marked = cells(buffer(obstacles, marking), marking['obstacle_max_range'])
    front = area((BOX.low[0], BOX.low[0] + CELL), (BOX.low[1] + CELL, BOX.high[1] - CELL))
    before = area((1.2, BOX.low[0] - CELL), (-0.3, 0.3))
    assert len(marked & front) > 0.8 * len(front)
    assert not marked & before
    seen = cells(buffer(points, clearing), clearing['raytrace_max_range'])
    assert len(seen & before) > 0.5 * len(before)


def test_clearing_needs_a_limit_below_the_floor(
    tmp_path: Path, voxel_layer: dict[str, Any]
) -> None:
    """Nav2's default of 0.0 would drop every floor point that noise puts below the floor."""
    view = room()
    with node_of(bundle_of(view, tmp_path, depth_factor=1.02), camera_pose=POSE) as rig:
        (points,) = perceive(rig, 'points', kinds=(PointCloud2,))
    before = area((1.2, 1.9), (-0.3, 0.3))
    source = voxel_layer['points']
    configured = cells(buffer(points, source), source['raytrace_max_range'])
    default = cells(
        buffer(points, {**source, 'min_obstacle_height': 0.0}), source['raytrace_max_range']
    )
    assert len(configured & before) > 0.5 * len(before)
    assert not default & before
