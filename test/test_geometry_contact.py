"""Things stand where they touch the floor, however wrong their depth is."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from analytic_rooms import FLOOR, OBJECTS, ROLES, Box, camera_pose, render, small_camera
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_perception.geometry.backprojection import back_project
from mtl_perception.geometry.contact import contact_factors
from mtl_perception.geometry.floor import nominal_plane
from mtl_perception.geometry.obstacles import ObstacleConfig
from mtl_perception.geometry.pipeline import GeometryConfig, SceneGeometry

PROPERTY = settings(max_examples=25, deadline=None)
CAMERA = small_camera(384, 288)
HEIGHT = 0.6


def factors(view, depth=None, tilt_std_deg=0.1):
    prediction = view.prediction
    plane = nominal_plane(tuple(view.up), view.height)
    covariance = np.diag([np.radians(tilt_std_deg) ** 2] * 3 + [0.0])
    return contact_factors(
        prediction.depth if depth is None else depth,
        prediction.label == FLOOR,
        np.ascontiguousarray(np.moveaxis(prediction.normal, -1, 0)),
        replace(plane, covariance=covariance),
        prediction.intrinsics,
    )


def blurred(view, factor_of_things, rows=7):
    """Return depth that is wrong by a factor where there is no floor, smooth over the seam."""
    wrong = np.where(view.prediction.label == FLOOR, 1.0, factor_of_things).astype(np.float32)
    return (view.prediction.depth * cv2.blur(wrong, (1, rows))).astype(np.float32)


@PROPERTY
@given(
    pitch=st.floats(0, 25),
    roll=st.floats(-5, 5),
    height=st.floats(0.3, 1.2),
    distance=st.floats(1.0, 2.5),
    left=st.floats(-1.0, 0.6),
)
def test_perfect_depth_stays_as_it_is(pitch, roll, height, distance, left):
    box = Box((distance, left, 0.0), (distance + 0.4, left + 0.5, 0.8))
    view = render(camera_pose(height, pitch, roll), CAMERA, (box,))
    factor = factors(view)
    thing = (view.thing == 0) & (view.prediction.depth < 3)
    if thing.sum() > 300:
        # The edge is known to three pixels' rows, farther away these are longer; sides that are
        # seen along their length go with the front.
        assert np.quantile(np.abs(np.log(factor[thing])), 0.8) < 0.05
    assert factor.dtype == np.float32 and factor.shape == view.prediction.depth.shape


@pytest.mark.parametrize('wrong', [1.2, 1.3, 1.5])
@pytest.mark.parametrize('seam', ['blurred', 'sharp'])
def test_a_box_that_is_thought_too_far_comes_back_to_where_it_stands(wrong, seam):
    box = Box((1.5, -0.3, 0.0), (1.9, 0.3, 0.7))
    view = render(camera_pose(HEIGHT, 22), CAMERA, (box,))
    depth = blurred(view, wrong, rows=7 if seam == 'blurred' else 1)
    front = (view.thing == 0) & (np.abs(view.prediction.normal @ view.up) < 0.1)
    before = np.median(depth[front] / view.prediction.depth[front])
    after = (depth * factors(view, depth))[front] / view.prediction.depth[front]
    assert abs(before - wrong) < 0.05
    assert abs(np.median(after) - 1) < 0.03
    assert np.mean(np.abs(after - 1) < 0.06) > 0.85


def test_a_hidden_bumper_pulls_nothing_nearer():
    """Rows that show the robot itself say nothing of where a wall behind them meets the floor."""
    wall = Box((1.0, -2.0, 0.0), (1.4, 2.0, 2.0))
    view = render(camera_pose(HEIGHT, 10), CAMERA, (wall,))
    # The floor before the wall and all else in these rows is hidden by the robot.
    hidden = np.flatnonzero((view.prediction.label == FLOOR).any(axis=1))[0]
    depth = view.prediction.depth.copy()
    depth[hidden:] = np.nan
    label = view.prediction.label.copy()
    label[hidden:] = 255
    masked = replace(view, prediction=replace(view.prediction, label=label))
    front = (view.thing == 0) & np.isfinite(depth)
    assert np.median(factors(masked, depth)[front]) == pytest.approx(1.0, abs=0.05)


def test_what_is_thought_too_near_goes_back_a_little_only():
    box = Box((1.5, -0.3, 0.0), (1.9, 0.3, 0.7))
    view = render(camera_pose(HEIGHT, 22), CAMERA, (box,))
    front = (view.thing == 0) & (np.abs(view.prediction.normal @ view.up) < 0.1)
    factor = factors(view, blurred(view, 0.85))[front]
    assert np.median(factor) == pytest.approx(np.exp(0.1), abs=1e-3)
    # So does what stands on feet, and is nearer than the floor that is seen beneath it.
    raised = Box((1.2, -0.4, 0.1), (1.6, 0.4, 0.7))
    view = render(camera_pose(HEIGHT, 22), CAMERA, (raised,))
    assert factors(view)[view.thing == 0].max() <= np.exp(0.1) + 1e-3


def test_an_uncertain_tilt_leaves_more_to_depth():
    view = render(camera_pose(HEIGHT, 22), CAMERA, (Box((1.5, -0.3, 0.0), (1.9, 0.3, 0.7)),))
    depth = blurred(view, 1.3)
    front = (view.thing == 0) & (np.abs(view.prediction.normal @ view.up) < 0.1)
    moved = [
        float(np.median(np.log(factors(view, depth, tilt_std_deg=degrees)[front])))
        for degrees in (0.1, 2.0, 8.0)
    ]
    assert moved[0] < 0.8 * np.log(1 / 1.3) < moved[1] < 0.2 * np.log(1 / 1.3) < moved[2] < 0


def test_what_hangs_over_the_floor_does_not_move():
    board = Box((1.0, -0.4, 0.35), (1.5, 0.4, 0.45))
    view = render(camera_pose(HEIGHT, 22), CAMERA, (board,))
    hanging = view.thing == 0
    below = np.roll(view.prediction.label == FLOOR, -6, 0)
    assert (hanging & below).sum() > 50
    assert np.mean(factors(view)[hanging] == 1.0) > 0.99


@pytest.mark.parametrize('blur', [1, 3, 5, 9])
def test_a_shelf_before_a_wall_stays_before_it(blur):
    shelf = Box((1.5, -0.5, 0.5), (1.7, 0.5, 0.8))
    view = render(camera_pose(HEIGHT, 10), CAMERA, (shelf,), room=((-1, -2, 0), (2.4, 2, 2.5)))
    view.prediction.depth = cv2.blur(view.prediction.depth, (blur, blur))
    assert nearest_in_front(look(view), view.base_from_camera) == pytest.approx(1.5, abs=0.06)


def test_a_wall_behind_a_bed_stays_behind_it():
    bed = Box((1.2, -2.0, 0.0), (2.3, 2.0, 0.3))
    view = render(camera_pose(HEIGHT, 15), CAMERA, (bed,), room=((-1, -2, 0), (2.3, 2, 2.5)))
    wall = (view.thing < 0) & (view.prediction.label != FLOOR)
    wall[:, :100] = wall[:, -100:] = False
    moved = view.prediction.depth * factors(view)
    assert np.median(moved[wall] / view.prediction.depth[wall]) == pytest.approx(1, abs=0.05)


def test_a_wall_whose_foot_is_out_of_sight_may_only_come_nearer():
    near = Box((0.35, -2.0, 0.0), (0.5, 2.0, 2.0))
    view = render(camera_pose(HEIGHT, 22), CAMERA, (near,))
    assert not (view.prediction.label == FLOOR).any()
    lowest = view.prediction.depth[-1].mean()
    far = factors(view, view.prediction.depth * np.float32(2.5))
    assert (far <= 1).all()
    ranged = far * view.prediction.depth * 2.5
    # It cannot be farther than the floor would be in the lowest row.
    rays = back_project(np.ones_like(ranged), CAMERA)
    floor_there = HEIGHT / -(np.asarray(view.up) @ rays[:, -2, 192])
    assert ranged[-2, 192] <= floor_there * 1.1 < lowest * 2.5
    assert np.allclose(factors(view), 1.0)


def test_without_floor_or_depth_nothing_moves():
    view = render(camera_pose(HEIGHT, 22), CAMERA, (Box((1.5, -0.3, 0.0), (1.9, 0.3, 0.7)),))
    nothing = np.full_like(view.prediction.depth, np.nan)
    assert np.array_equal(factors(view, nothing), np.ones_like(nothing))
    upwards = render(camera_pose(HEIGHT, -40), CAMERA)
    assert np.allclose(factors(upwards), 1.0)


def look(view, *, contacts=True, scale='apply', **options):
    config = GeometryConfig(
        roles=ROLES, scale=scale, camera_height=view.height, contacts=contacts, **options
    )
    return SceneGeometry(config).update(view.prediction, base_from_camera=view.base_from_camera)


def nearest_in_front(scene, base):
    return nearest(scene.obstacles, base)


def nearest(cloud, base):
    """Return how far the nearest points straight ahead are, along the floor."""
    x, y, _ = in_base_frame(cloud, base)
    ahead = np.abs(y) < 0.2
    return np.quantile(np.hypot(x[ahead], y[ahead]), 0.05)


def in_base_frame(cloud, base):
    return base[:3, :3] @ np.stack([cloud[axis] for axis in 'xyz']) + base[:3, 3:]


@pytest.mark.parametrize('scale', ['off', 'estimate', 'apply'])
def test_obstacles_are_moved_only_where_the_scale_may_be_applied(scale):
    box = Box((1.5, -0.3, 0.0), (1.9, 0.3, 0.7))
    view = render(camera_pose(HEIGHT, 22), CAMERA, (box,))
    view.prediction.depth = blurred(view, 1.3)
    scene = look(view, scale=scale)
    distance = nearest_in_front(scene, view.base_from_camera)
    if scale == 'apply':
        assert scene.scale_applied
        assert distance == pytest.approx(1.5, abs=0.08)
        # The cloud holds the same places as the obstacles.
        cloud = scene.cloud[scene.parts.obstacle & np.isfinite(scene.cloud['z'])]
        assert nearest(cloud, view.base_from_camera) == pytest.approx(distance, abs=0.03)
    else:
        assert distance > 1.8
    assert nearest_in_front(look(view, contacts=False), view.base_from_camera) > 1.8


@pytest.mark.parametrize('wrong', [1.5, 2.5, 4.0])
def test_a_wall_right_before_the_robot_is_near_however_far_it_is_thought(wrong):
    view = render(camera_pose(HEIGHT, 22), CAMERA, room=((-1, -2, 0), (0.5, 2, 2.5)))
    view.prediction.depth = view.prediction.depth * np.float32(wrong)
    # The lowest row sees floor up to 0.55 m.
    assert nearest_in_front(look(view), view.base_from_camera) < 0.62


def test_a_low_thing_that_seems_to_be_below_the_floor_comes_up_again():
    box = Box((1.5, -0.3, 0.0), (1.7, 0.3, 0.12))
    view = render(camera_pose(HEIGHT, 22), CAMERA, (box,))
    view.prediction.depth = blurred(view, 1.4, rows=3)
    front = (view.thing == 0) & (np.abs(view.prediction.normal @ view.up) < 0.1)
    before, after = look(view, contacts=False), look(view)
    assert before.parts.hole[front].mean() > 0.5
    assert after.parts.obstacle[front].mean() > 0.5
    assert not (after.parts.hole & after.parts.obstacle).any()
    assert nearest_in_front(after, view.base_from_camera) == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize('labelled', ['floor', 'something else'])
@pytest.mark.parametrize('deep', [0.2, 0.6])
def test_a_pit_is_never_free(labelled, deep):
    view = render(camera_pose(HEIGHT, 22), CAMERA, pit=(1.2, 2.2, -0.6, 0.6, deep))
    label = view.prediction.label
    label[view.pit] = FLOOR if labelled == 'floor' else OBJECTS
    low = view.pit & (view.heights() < -0.1)
    scene = look(view)
    assert low.sum() > 1000
    assert not scene.parts.floor[low].any()
    ahead = np.abs(scene.scan.config.angle_min + np.arange(scene.scan.ranges.size)
                   * scene.scan.config.angle_increment) < 0.1  # fmt: skip
    ranges = scene.scan.ranges[ahead]
    assert (np.isnan(ranges) | (ranges < 1.45)).all()


def test_what_seems_out_of_range_is_taken_in_where_it_stands():
    view = render(camera_pose(HEIGHT, 22), CAMERA, room=((-1, -2, 0), (2.2, 2, 2.5)))
    view.prediction.depth = blurred(view, 1.3)
    scene = look(view, max_depth=2.5, obstacles=ObstacleConfig(max_range=2.5))
    assert nearest_in_front(scene, view.base_from_camera) == pytest.approx(2.2, abs=0.15)
    far = scene.cloud['z'][np.isfinite(scene.cloud['z'])]
    assert far.max() <= 2.5
    assert scene.obstacles['z'].max() <= 2.5


def test_heights_are_those_above_the_true_floor():
    box = Box((1.5, -0.3, 0.0), (1.9, 0.3, 0.5))
    view = render(camera_pose(HEIGHT, 22), CAMERA, (box,))
    view.prediction.depth = view.prediction.depth * np.float32(1.25)
    scene = look(view)
    placed = in_base_frame(scene.obstacles, view.base_from_camera)
    of_box = (np.abs(placed[1]) < 0.25) & (placed[0] < 1.7)
    assert of_box.sum() > 100
    assert np.abs(placed[2] - scene.obstacles['height'])[of_box].max() < 0.02
