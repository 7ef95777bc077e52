"""A camera's known height, or another sensor, makes depth metric."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from analytic_rooms import ROLES, Box, camera_pose, render, small_camera
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_perception.geometry.floor import nominal_plane
from mtl_perception.geometry.pipeline import GeometryConfig, SceneGeometry
from mtl_perception.geometry.scale import (
    ScaleConfig,
    ScaleFilter,
    ScaleObservation,
    scale_from_depths,
    scale_from_height,
    scale_from_scan,
)

PROPERTY = settings(max_examples=20, deadline=None)


def scaled(prediction, factor):
    return dataclasses.replace(prediction, depth=prediction.depth * np.float32(factor))


@PROPERTY
@given(factor=st.floats(0.7, 1.4), height=st.floats(0.3, 1.2), pitch=st.floats(0, 25))
def test_the_camera_height_gives_back_the_factor_that_depth_is_off_by(factor, height, pitch):
    view = render(camera_pose(height, pitch), small_camera(96, 72))
    config = GeometryConfig(roles=ROLES, scale='apply', camera_height=height)
    scene = SceneGeometry(config).update(scaled(view.prediction, factor))
    assert scene.scale_applied
    # One frame does not outvote the prior altogether: depth is seldom off by so much.
    assert scene.scale.scale == pytest.approx(1 / factor, rel=0.02)
    assert scene.floor.plane.height == pytest.approx(height, rel=0.02)
    seen = np.isfinite(scene.depth)
    assert np.allclose(scene.depth[seen], view.prediction.depth[seen], rtol=0.02)


def test_estimate_publishes_the_scale_and_changes_nothing():
    view = render(camera_pose(0.6, 15), small_camera(96, 72))
    config = GeometryConfig(roles=ROLES, scale='estimate', camera_height=0.6)
    scene = SceneGeometry(config).update(scaled(view.prediction, 0.8), outputs={'floor'})
    assert not scene.scale_applied
    assert scene.scale.scale == pytest.approx(1.25, rel=0.01)
    assert 0 < scene.scale.std < 0.1
    assert scene.floor.plane.height == pytest.approx(0.48, rel=0.01)


def test_off_and_unknown_heights_give_no_scale():
    view = render(camera_pose(0.6, 15), small_camera(96, 72))
    off = SceneGeometry(GeometryConfig(roles=ROLES, camera_height=0.6)).update(view.prediction)
    unknown = SceneGeometry(GeometryConfig(roles=ROLES, scale='apply')).update(view.prediction)
    for scene in (off, unknown):
        assert math.isnan(scene.scale.scale)
        assert not scene.scale_applied


def test_the_pose_in_the_base_frame_gives_the_height():
    view = render(camera_pose(0.6, 15), small_camera(96, 72))
    geometry = SceneGeometry(GeometryConfig(roles=ROLES, scale='estimate'))
    scene = geometry.update(
        scaled(view.prediction, 1.3), base_from_camera=view.base_from_camera, outputs={'floor'}
    )
    assert scene.scale.scale == pytest.approx(1 / 1.3, rel=0.01)


@pytest.mark.parametrize('mode', ['off', 'estimate', 'apply'])
@pytest.mark.parametrize('z', [0.0, -0.1])
def test_a_base_that_is_not_below_the_camera_tells_no_height(mode, z):
    view = render(camera_pose(0.6, 15), small_camera(96, 72))
    pose = view.base_from_camera.copy()
    pose[2, 3] = z
    geometry = SceneGeometry(GeometryConfig(roles=ROLES, scale=mode))
    scene = geometry.update(
        view.prediction, base_from_camera=pose, outputs={'floor', 'obstacles', 'points', 'scan'}
    )
    assert math.isnan(scene.scale.scale)
    assert scene.floor.plane.height == pytest.approx(0.6, abs=0.02)


def test_without_a_floor_the_last_scale_is_kept_and_grows_unsure():
    view = render(camera_pose(0.6, 15), small_camera(96, 72))
    config = GeometryConfig(roles=ROLES, scale='apply', camera_height=0.6)
    geometry = SceneGeometry(config)
    wrong = scaled(view.prediction, 0.8)
    first = geometry.update(wrong, time_s=0.0, outputs={'floor'})
    blind = dataclasses.replace(wrong, label=np.full_like(wrong.label, 11))
    second = geometry.update(blind, time_s=2.0, outputs={'floor'})
    assert second.floor.plane is None
    assert second.scale_applied
    assert second.scale.scale == pytest.approx(first.scale.scale, rel=0.01)
    assert second.scale.std > first.scale.std


def test_what_was_seen_long_ago_fades_into_the_networks_own_scale():
    follow = ScaleFilter()
    for second in range(60):
        seen = follow.update(ScaleObservation(1.4, 0.05, 'test'), float(second))
    assert seen.scale == pytest.approx(1.4, rel=0.02)
    scales, relative = [seen.scale], []
    for second in range(60, 1600):
        state = follow.update(None, float(second))
        scales.append(state.scale)
        relative.append(state.std / state.scale)
    # No jump, and never less certain than before anything was seen.
    assert max(a - b for a, b in itertools.pairwise(scales)) < 0.005
    assert all(a > b for a, b in itertools.pairwise(scales))
    assert max(relative) <= follow.config.prior_std
    assert scales[100] > 1.2
    assert scales[-1] == pytest.approx(1.0, abs=0.01)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"scale='on': expected one of off, estimate, apply"):
        GeometryConfig(scale='on')
    with pytest.raises(ValueError, match='camera_height=-1'):
        GeometryConfig(camera_height=-1)
    with pytest.raises(ValueError, match='camera_height=0'):
        scale_from_height(nominal_plane((0, -1, 0), 1.0), 0)


def test_noise_is_averaged_and_the_deviation_says_how_well():
    rng = np.random.default_rng(0)
    follow = ScaleFilter(ScaleConfig(drift_per_root_s=0.0))
    errors = []
    for step in range(40):
        value = 1.2 * math.exp(0.08 * rng.standard_normal())
        state = follow.update(ScaleObservation(value, value * 0.06, 'test'), float(step))
        errors.append(state.std)
    assert state.scale == pytest.approx(1.2, rel=0.04)
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert abs(state.scale - 1.2) < 3 * state.std


def test_a_faster_camera_does_not_make_a_surer_scale():
    after = []
    for rate in (2, 5, 30):
        follow = ScaleFilter()
        for step in range(3 * rate + 1):
            state = follow.update(ScaleObservation(1.25, 0.25, 'test'), step / rate)
        after.append((state.scale, state.std))
    assert np.ptp(after, axis=0) == pytest.approx(0, abs=0.004)
    assert 1.15 < after[0][0] < 1.25
    # A second picture of the same moment says nothing more.
    assert follow.update(ScaleObservation(1.25, 0.25, 'test'), 3.0) == state


def test_one_outlier_is_set_aside_and_a_lasting_change_is_taken_over():
    follow = ScaleFilter()
    for step in range(20):
        follow.update(ScaleObservation(1.0, 0.02, 'test'), step / 10)
    outlier = follow.update(ScaleObservation(2.0, 0.02, 'test'), 2.0)
    assert outlier.scale == pytest.approx(1.0, rel=0.01)
    assert outlier.warning.startswith('the scale of depth jumps: 2.00 in this frame, 1.00 before')
    calm = follow.update(ScaleObservation(1.0, 0.02, 'test'), 2.1)
    assert calm.warning == ''
    for step in range(ScaleConfig().patience):
        state = follow.update(ScaleObservation(1.4, 0.02, 'test'), 2.2 + step / 10)
    assert state.scale == pytest.approx(1.4, rel=0.01)


@pytest.mark.parametrize(
    ('scale', 'warned'), [(1.45, False), (1.6, True), (0.7, False), (0.6, True)]
)
def test_drift_beyond_the_bound_warns(scale, warned):
    state = ScaleFilter(ScaleConfig(bound=1.5)).update(ScaleObservation(scale, 0.01, 'test'), 0)
    assert ('beyond the bound of 1.5' in state.warning) == warned


def test_time_that_runs_backwards_does_no_harm():
    follow = ScaleFilter()
    follow.update(ScaleObservation(1.1, 0.02, 'test'), 100.0)
    state = follow.update(None, 3.0)
    assert state.scale == pytest.approx(1.1, rel=0.01)
    assert math.isfinite(state.std)
    follow.reset()
    assert math.isnan(follow.state.scale)


@PROPERTY
@given(factor=st.floats(0.7, 1.4), seed=st.integers(0, 99), share=st.floats(0, 0.3))
def test_sparse_depths_give_the_factor_in_spite_of_outliers(factor, seed, share):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(1, 5, (40, 60)).astype(np.float32)
    u, v = rng.uniform(-5, 65, 300), rng.uniform(-5, 45, 300)
    inside = (u > -0.4) & (u < 59.4) & (v > -0.4) & (v < 39.4)
    z = np.full(300, 3.0)
    z[inside] = depth[np.rint(v[inside]).astype(int), np.rint(u[inside]).astype(int)]
    z[rng.random(300) < share] *= 2
    z[rng.random(300) < 0.1] = np.nan
    observation = scale_from_depths(depth * np.float32(factor), u, v, z)
    assert observation.scale == pytest.approx(1 / factor, rel=0.02)
    order = rng.permutation(300)
    mixed = scale_from_depths(depth * np.float32(factor), u[order], v[order], z[order])
    assert mixed.scale == pytest.approx(observation.scale)


def test_too_few_common_pixels_give_no_scale():
    depth = np.full((10, 10), np.nan, np.float32)
    depth[:, :5] = 2
    u = np.arange(9.0) % 5
    assert scale_from_depths(depth, u, u, np.full(9, 2.0)) is None
    u = np.arange(20.0) % 5 + 5
    assert scale_from_depths(depth, u, u, np.full(20, 2.0)) is None


def test_a_laser_scan_gives_the_factor():
    view = render(camera_pose(0.6, 15), boxes=(Box((2, -0.5, 0), (2.4, 0.2, 1.0)),))
    wrong = scaled(view.prediction, 0.75)
    # A laser 0.3 m above the floor at the base's origin sees the box, and the room's far wall.
    angles = np.arange(-0.4, 0.4, 0.01)
    box = (np.tan(angles) > -0.25) & (np.tan(angles) < 0.1)
    ranges = np.where(box, 2.0, 5.0) / np.cos(angles)
    ranges[::7] = np.inf
    base_from_laser = np.eye(4)
    base_from_laser[2, 3] = 0.3
    camera_from_laser = np.linalg.inv(view.base_from_camera) @ base_from_laser
    observation = scale_from_scan(
        wrong.depth, wrong.intrinsics, ranges, -0.4, 0.01, camera_from_laser
    )
    assert observation.source == 'laser scan'
    assert observation.scale == pytest.approx(1 / 0.75, rel=0.01)
    geometry = SceneGeometry(GeometryConfig(roles=ROLES, scale='apply', camera_height=2.0))
    scene = geometry.update(wrong, scale_reference=observation, outputs={'floor'})
    assert scene.floor.plane.height == pytest.approx(0.6, rel=0.01)
