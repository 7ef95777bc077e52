"""What a robot must not hit is found; floor, ceiling and holes are not taken for it."""

import dataclasses

import cv2
import numpy as np
import pytest
from analytic_rooms import CEILING, FLOOR, OBJECTS, ROLES, Box, camera_pose, render, small_camera
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_perception.geometry.backprojection import ray_slopes
from mtl_perception.geometry.obstacles import ClassRoles, ObstacleConfig
from mtl_perception.geometry.pipeline import GeometryConfig, SceneGeometry
from mtl_perception.geometry.scan import ScanConfig, nearest_per_beam, scan_config_for

PROPERTY = settings(max_examples=20, deadline=None)
CAMERA = small_camera(256, 192)
ROOM = ((-1.0, -2.0, 0.0), (7.0, 2.0, 2.5))


def look(view, *, base=True, **config):
    geometry = SceneGeometry(GeometryConfig(roles=ROLES, **config))
    return geometry.update(
        view.prediction, base_from_camera=view.base_from_camera if base else None
    )


@PROPERTY
@given(
    pitch=st.floats(5, 25),
    roll=st.floats(-8, 8),
    height=st.floats(0.3, 1.2),
    distance=st.floats(1.8, 2.7),
    left=st.floats(-0.4, 0.2),
    tall=st.floats(0.05, 0.5),
    seed=st.integers(0, 99),
)
def test_low_boxes_are_found_and_floor_is_left_alone(
    pitch, roll, height, distance, left, tall, seed
):
    box = Box((distance, left, 0.0), (distance + 0.2, left + 0.2, tall))
    view = render(camera_pose(height, pitch, roll), CAMERA, (box,))
    rng = np.random.default_rng(seed)
    depth = view.prediction.depth * (
        1 + 0.004 * rng.standard_normal((CAMERA.height, CAMERA.width))
    )
    view.prediction.depth = depth.astype(np.float32)
    scene = look(view)
    thing = view.thing == 0
    if thing.sum() > 20:
        # Of a box that is five pixels high, one row at its upper edge may count as an edge.
        assert scene.parts.obstacle[thing].mean() > 0.8
    floor = view.prediction.label == FLOOR
    assert scene.parts.obstacle[floor].mean() < 0.005
    if floor.any():
        near = floor & (view.prediction.depth < 4.5)
        assert scene.parts.floor[near].mean() > 0.98


def test_label_and_normal_hold_low_things_when_depth_is_noisy():
    """A 6 cm box drowns in 3 cm of noise; its label and its front's normal do not."""
    box = Box((1.5, -0.2, 0.0), (1.7, 0.2, 0.06))
    view = render(camera_pose(0.6, 15), CAMERA, (box,))
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.standard_normal(view.prediction.depth.shape), (0, 0), 6)
    noise = 1 + 0.05 * noise / noise.std()
    view.prediction.depth = (view.prediction.depth * noise).astype(np.float32)
    thing, floor = view.thing == 0, view.prediction.label == FLOOR
    with_label = look(view)
    assert with_label.parts.obstacle[thing].mean() > 0.6
    assert with_label.parts.obstacle[floor].mean() < 0.005
    blind = dataclasses.replace(view.prediction, label=None, normal=None)
    without = look(dataclasses.replace(view, prediction=blind))
    assert without.parts.obstacle[thing].mean() < with_label.parts.obstacle[thing].mean() - 0.2


def test_a_box_that_is_labelled_floor_is_an_obstacle_and_a_carpet_is_not():
    box = Box((2.0, -0.3, 0.0), (2.3, 0.0, 0.3), FLOOR)
    carpet = Box((1.3, 0.1, 0.0), (2.5, 0.8, 0.01), OBJECTS)
    view = render(camera_pose(0.6, 15), CAMERA, (box, carpet))
    obstacle = look(view).parts.obstacle
    assert obstacle[view.thing == 0].mean() > 0.9
    assert obstacle[view.thing == 1].mean() < 0.1


def test_ceiling_and_what_is_out_of_range_are_no_obstacles():
    lamp = Box((1.8, -0.2, 2.1), (2.2, 0.2, 2.3))
    view = render(camera_pose(1.2, -10), CAMERA, (lamp,), room=ROOM)
    scene = look(view)
    assert (view.prediction.label == CEILING).sum() > 100
    assert not scene.parts.obstacle[view.prediction.label == CEILING].any()
    assert (view.thing == 0).sum() > 100
    assert not scene.parts.obstacle[view.thing == 0].any()
    assert not scene.parts.obstacle[view.prediction.depth > 5.0].any()
    assert np.isnan(scene.cloud['x'])[view.prediction.label == CEILING].all()
    near = look(view, obstacles=ObstacleConfig(max_range=8.0))
    assert near.parts.obstacle[view.prediction.depth > 5.5].any()


def test_records_hold_the_points_and_thin_high_walls():
    box = Box((1.5, -0.2, 0.0), (1.7, 0.2, 0.2))
    view = render(camera_pose(0.6, 15), CAMERA, (box,))
    scene = look(view)
    records = scene.obstacles
    points = np.stack([records[axis] for axis in 'xyz'])
    expected = view.base_from_camera[:3, :3] @ points + view.base_from_camera[:3, 3:]
    np.testing.assert_allclose(records['height'], expected[2], atol=0.01)
    assert (records['height'] > 0).mean() > 0.99
    assert set(np.unique(records['label'])) == {OBJECTS, 11}
    low = scene.parts.obstacle & (view.thing == 0)
    assert (records['label'] == OBJECTS).sum() == low.sum()
    assert (records['height'] > 0.3).sum() < 0.3 * (scene.parts.obstacle & ~low).sum()
    length = np.linalg.norm(points, axis=0)
    assert (records['std'] >= 0.99 * scene.plane.relative_noise * length).all()
    assert (records['std'] < length).all()


def test_without_any_plane_all_that_is_not_labelled_floor_is_an_obstacle():
    view = render(camera_pose(0.6, 15), CAMERA)
    view.prediction.normal[:] = 0
    scene = look(view, base=False)
    assert scene.plane is None
    floor = view.prediction.label == FLOOR
    assert not scene.parts.obstacle[floor].any()
    seen = ~floor & np.isfinite(scene.depth) & (scene.depth < 5)
    assert scene.parts.obstacle[seen].all()
    assert np.isnan(scene.obstacles['height']).all()


def test_the_last_floor_stands_in_for_a_while():
    view = render(camera_pose(0.6, 15), CAMERA)
    geometry = SceneGeometry(GeometryConfig(roles=ROLES, floor_memory_s=1.0))
    geometry.update(view.prediction, time_s=0.0)
    blind = dataclasses.replace(
        view.prediction, label=np.full_like(view.prediction.label, OBJECTS)
    )
    soon = geometry.update(blind, time_s=0.9)
    late = geometry.update(blind, time_s=1.1)
    assert soon.floor.plane is None
    assert soon.plane.height == pytest.approx(0.6, abs=0.01)
    assert late.plane is None
    geometry.update(view.prediction, time_s=1.2)
    geometry.reset()
    assert geometry.update(blind, time_s=1.3).plane is None


def test_roles_are_found_by_name():
    roles = ClassRoles.from_names(['bed', 'floor', 'rug', 'ceiling'], floor=('floor', 'rug'))
    assert roles == ClassRoles(floor=(1, 2), ceiling=(3,))


def beam_angles(scan):
    return scan.config.angle_min + scan.config.angle_increment * np.arange(scan.config.beams)


def test_the_scan_measures_boxes_and_walls_from_the_base():
    box = Box((2.0, -0.4, 0.0), (2.3, 0.4, 0.3))
    view = render(camera_pose(0.6, 12, 3, forward=0.25), CAMERA, (box,), room=ROOM)
    scene = look(view)
    angles = beam_angles(scene.scan)
    ranges = scene.scan.ranges
    front = np.abs(np.tan(angles)) < 0.17
    np.testing.assert_allclose(ranges[front], 2.0 / np.cos(angles[front]), atol=0.03)
    side = np.abs(angles) > np.radians(26)
    finite = side & np.isfinite(ranges)
    assert finite.sum() > 5
    np.testing.assert_allclose(ranges[finite], 2.0 / np.sin(np.abs(angles[finite])), rtol=0.03)


def test_free_floor_is_infinite_and_unseen_beams_are_unknown():
    view = render(camera_pose(0.6, 10), CAMERA, room=((-1.0, -5.0, 0.0), (9.0, 5.0, 2.5)))
    geometry = SceneGeometry(
        GeometryConfig(roles=ROLES, scan=ScanConfig(-np.pi / 2, np.pi / 2, np.radians(1)))
    )
    scene = geometry.update(view.prediction, base_from_camera=view.base_from_camera)
    angles = np.degrees(beam_angles(scene.scan))
    assert np.isposinf(scene.scan.ranges[np.abs(angles) < 25]).all()
    assert np.isnan(scene.scan.ranges[np.abs(angles) > 40]).all()


def test_missing_floor_is_unknown_in_scan_and_cloud():
    pit = (1.6, 2.4, -0.5, 0.5, 1.0)
    box = Box((3.5, -0.2, 0.0), (3.8, 0.2, 0.5))
    view = render(camera_pose(0.9, 20), CAMERA, (box,), room=ROOM, pit=pit)
    scene = look(view)
    deep = view.pit & (view.heights() < -0.1)
    assert deep.sum() > 1000
    assert not scene.parts.obstacle[deep].any()
    angles = beam_angles(scene.scan)
    over_pit = np.abs(np.tan(angles)) < 0.17
    assert np.isnan(scene.scan.ranges[over_pit]).all()
    beside = np.abs(np.tan(angles)) > 0.4
    assert not np.isnan(scene.scan.ranges[beside & (np.abs(angles) < np.radians(30))]).any()
    # Nothing behind the pit may clear a costmap's cells above it, not even the box.
    hidden = np.isnan(scene.cloud['x'])
    assert hidden[deep].mean() > 0.95
    assert (view.thing == 0).sum() > 100
    assert hidden[view.thing == 0].all()
    assert scene.parts.obstacle[view.thing == 0].mean() > 0.95
    before = (view.prediction.label == FLOOR) & ~view.pit & (view.prediction.depth < 1.4)
    assert hidden[before].mean() < 0.02


def test_an_obstacle_before_a_pit_is_still_measured():
    pit = (2.6, 3.4, -0.5, 0.5, 1.0)
    box = Box((1.8, -0.5, 0.0), (2.0, 0.5, 0.15))
    view = render(camera_pose(0.9, 20), CAMERA, (box,), room=ROOM, pit=pit)
    scene = look(view)
    angles = beam_angles(scene.scan)
    front = np.abs(np.tan(angles)) < 0.15
    np.testing.assert_allclose(scene.scan.ranges[front], 1.8 / np.cos(angles[front]), atol=0.03)


def test_a_patch_without_depth_is_unknown_in_the_scan():
    view = render(camera_pose(0.6, 15), CAMERA, room=((-1.0, -5.0, 0.0), (9.0, 5.0, 2.5)))
    middle = np.s_[CAMERA.height // 2 + 10 : CAMERA.height // 2 + 40, 108:148]
    view.prediction.depth[middle] = np.nan
    scene = look(view)
    angles = beam_angles(scene.scan)
    assert np.isnan(scene.scan.ranges[np.abs(angles) < np.radians(3)]).all()
    assert np.isposinf(scene.scan.ranges[np.abs(angles) > np.radians(10)]).mean() > 0.5


def test_a_camera_that_looks_up_sees_walls_and_no_floor():
    view = render(camera_pose(0.6, -40), CAMERA)
    scene = look(view)
    assert scene.floor.plane is None
    assert scene.plane.height == pytest.approx(0.6)
    assert not np.isposinf(scene.scan.ranges).any()
    assert not scene.parts.obstacle[view.prediction.label == CEILING].any()


def test_a_scan_without_a_base_frame_is_refused_with_a_sentence():
    view = render(camera_pose(0.6, 15), CAMERA)
    scene = look(view, base=False)
    assert scene.scan is None
    assert scene.scan_refusal.startswith('no scan: where the camera is on the robot is unknown')


def test_beams_cover_the_view_in_whole_steps():
    config = scan_config_for(CAMERA, camera_pose(0.5, 15))
    half = np.degrees(np.arctan(0.5 * CAMERA.width / CAMERA.fx))
    assert np.degrees(config.angle_max) >= half
    assert np.degrees(config.angle_min) <= -half
    assert config.angle_min / config.angle_increment == pytest.approx(
        round(config.angle_min / config.angle_increment)
    )
    assert np.degrees(config.angle_increment) == pytest.approx(0.5)
    coarse = scan_config_for(small_camera(64, 48), camera_pose(0.5, 15))
    assert np.degrees(coarse.angle_increment) == pytest.approx(2.0)
    rear = camera_pose(0.5, 15)
    rear[:2] *= -1
    assert np.degrees(scan_config_for(CAMERA, rear).angle_min) > 90
    with pytest.raises(ValueError, match='expected angle_min < angle_max'):
        ScanConfig(1.0, 0.0)


@PROPERTY
@given(pitch=st.floats(-60, 80), roll=st.floats(-20, 20), yaw=st.floats(-180, 180))
def test_no_pixel_lies_beside_the_beams(pitch, roll, yaw):
    pose = camera_pose(0.5, pitch, roll)
    turn = np.radians(yaw)
    pose[:2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]] @ pose[:2]
    config = scan_config_for(CAMERA, pose)
    x, y = ray_slopes(CAMERA)
    rays = np.stack(np.broadcast_arrays(x, y, np.float32(1))).astype(np.float64)
    x, y = np.tensordot(pose[:2, :3], rays, 1)
    beyond = (np.arctan2(y, x) - config.angle_min + 1e-6) % (2 * np.pi)
    assert beyond.max() <= config.beams * config.angle_increment
    assert config.angle_max - config.angle_min < 2 * np.pi


def test_a_camera_that_looks_straight_down_sees_all_around():
    view = render(camera_pose(0.5, 90, forward=2.0), CAMERA)
    # Exactly down, as no product of cosines is.
    view.base_from_camera[:3, :3] = np.rint(view.base_from_camera[:3, :3])
    config = scan_config_for(CAMERA, view.base_from_camera)
    assert config.beams * config.angle_increment == pytest.approx(2 * np.pi, rel=0.01)
    scene = look(view)
    assert scene.floor.plane.height == pytest.approx(0.5, rel=0.01)
    assert scene.floor.plane.normal == pytest.approx((0, 0, -1), abs=0.01)
    assert not scene.parts.obstacle.any()


@PROPERTY
@given(
    angle=st.floats(-3.14, 3.14),
    low=st.floats(-6.0, 3.0),
    width=st.floats(0.2, 6.0),
)
def test_beams_find_their_angle_across_the_turn(angle, low, width):
    config = ScanConfig(low, low + width, 0.05, range_min=0.0)
    x, y = np.float32([2 * np.cos(angle)]), np.float32([2 * np.sin(angle)])
    hit = np.flatnonzero(np.isfinite(nearest_per_beam(x, y, config)))
    angles = low + 0.05 * np.arange(config.beams)
    away = np.abs((angles - angle + np.pi) % (2 * np.pi) - np.pi)
    if away.min() < 0.024:
        assert len(hit) == 1
        assert away[hit[0]] < 0.0251
    elif away.min() > 0.026:
        assert len(hit) == 0
