"""The floor is found from labels, normals and positions together."""

import dataclasses

import numpy as np
import pytest
from analytic_rooms import FLOOR, Box, camera_pose, render, small_camera
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtl_perception.frames import Intrinsics
from mtl_perception.geometry.backprojection import back_project
from mtl_perception.geometry.floor import FloorConfig, fit_floor, floor_votes, nominal_plane

BED = 0
ANALYTIC = settings(max_examples=25, deadline=None)


def fit(view, *, config=None, **known):
    prediction = view.prediction
    points = back_project(prediction.depth, prediction.intrinsics)
    normals = np.moveaxis(prediction.normal, -1, 0)
    votes = floor_votes(prediction.label, prediction.confidence, (FLOOR,), prediction.depth.shape)
    labelled = prediction.label is not None
    return fit_floor(points, normals, votes, config, labelled=labelled, **known)


def angle_deg(first, second):
    return np.degrees(np.arccos(np.clip(np.dot(first, second), -1, 1)))


def spoil(view, seed, depth_noise=0.0, normal_noise=0.0, scale=1.0):
    """Return the view as a network might see it: blurred noise, one wrong factor."""
    rng = np.random.default_rng(seed)
    prediction = view.prediction
    factor = scale * (1 + depth_noise * rng.standard_normal(prediction.depth.shape))
    depth = (prediction.depth * factor).astype(np.float32)
    normal = prediction.normal + normal_noise * rng.standard_normal(prediction.normal.shape)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    spoiled = dataclasses.replace(prediction, depth=depth, normal=normal.astype(np.float32))
    return dataclasses.replace(view, prediction=spoiled)


@ANALYTIC
@given(
    pitch=st.floats(-15, 30),
    roll=st.floats(-10, 10),
    height=st.floats(0.3, 1.2),
    seed=st.integers(0, 2**16),
)
def test_planes_at_random_poses_are_recovered(pitch, roll, height, seed):
    view = render(camera_pose(height, pitch, roll), small_camera(96, 72))
    share = (view.prediction.label == FLOOR).mean()
    exact = fit(view).plane
    noisy = fit(spoil(view, seed, 0.05, 0.15)).plane
    if share < 0.05:
        return
    assert angle_deg(exact.normal, view.up) < 0.2
    assert exact.height == pytest.approx(height, abs=0.005)
    assert exact.pitch_deg == pytest.approx(pitch, abs=0.2)
    assert exact.roll_deg == pytest.approx(roll, abs=0.3)
    assert angle_deg(noisy.normal, view.up) < 2.0
    assert noisy.height == pytest.approx(height, abs=0.03 + 0.03 * height)
    assert noisy.confidence < exact.confidence
    assert abs(noisy.height - height) < 5 * noisy.height_std


@ANALYTIC
@given(seed=st.integers(0, 2**16), pitch=st.floats(0, 25))
def test_the_order_of_the_pixels_changes_nothing(seed, pitch):
    view = spoil(render(camera_pose(0.6, pitch), small_camera(64, 48)), seed, 0.03, 0.1)
    prediction = view.prediction
    points = back_project(prediction.depth, prediction.intrinsics).reshape(3, -1)
    normals = np.moveaxis(prediction.normal, -1, 0).reshape(3, -1)
    votes = floor_votes(prediction.label, None, (FLOOR,), prediction.depth.shape).reshape(-1)
    order = np.random.default_rng(seed).permutation(votes.size)
    plain = fit_floor(points, normals, votes).plane
    mixed = fit_floor(points[:, order], normals[:, order], votes[order]).plane
    assert mixed.normal == pytest.approx(plain.normal, abs=1e-4)
    assert mixed.height == pytest.approx(plain.height, abs=1e-4)
    assert mixed.pixels == pytest.approx(plain.pixels, abs=3)


@ANALYTIC
@given(scale=st.floats(0.5, 2.0), pitch=st.floats(0, 25))
def test_a_depth_of_another_scale_gives_the_plane_of_that_scale(scale, pitch):
    view = render(camera_pose(0.8, pitch), small_camera(64, 48))
    plane = fit(view).plane
    other = fit(spoil(view, 0, scale=scale)).plane
    assert other.normal == pytest.approx(plane.normal, abs=2e-3)
    assert other.height == pytest.approx(plane.height * scale, rel=5e-3)
    assert plane.scaled(scale).height == pytest.approx(other.height, rel=5e-3)
    assert plane.scaled(scale).height_std == pytest.approx(plane.height_std * scale)


@ANALYTIC
@given(
    focal=st.sampled_from((20.0, 60.0, 400.0, 3000.0)),
    ratio=st.sampled_from((0.3, 1.0, 3.0)),
    centre=st.sampled_from((-200.0, 31.5, 500.0)),
)
def test_extreme_intrinsics_give_a_plane_or_a_reason(focal, ratio, centre):
    camera = Intrinsics(64, 48, focal, focal * ratio, centre, 23.5)
    view = render(camera_pose(0.7, 20), camera)
    estimate = fit(view)
    assert (estimate.plane is None) == bool(estimate.reason)
    if estimate.plane is not None:
        assert angle_deg(estimate.plane.normal, view.up) < 2
        assert estimate.plane.height == pytest.approx(0.7, rel=0.1)
        assert np.isfinite(estimate.plane.covariance).all()


def test_tables_and_beds_are_not_taken_for_the_floor():
    bed = Box((1.0, -2.0, 0.0), (4.0, 1.0, 0.5), BED)
    view = render(camera_pose(0.9, 20), boxes=(bed,))
    assert (view.thing == 0).sum() > (view.prediction.label == FLOOR).sum()
    with_labels = fit(view).plane
    unlabelled = dataclasses.replace(view.prediction, label=None)
    without = fit(dataclasses.replace(view, prediction=unlabelled)).plane
    for plane in (with_labels, without):
        assert plane.height == pytest.approx(0.9, abs=0.01)


def test_a_bed_labelled_floor_does_not_lift_the_floor():
    bed = Box((1.5, -2.0, 0.0), (4.0, 0.0, 0.5), FLOOR)
    view = render(camera_pose(0.9, 20), boxes=(bed,))
    assert fit(view).plane.height == pytest.approx(0.9, abs=0.01)


def test_a_strip_of_five_percent_is_enough():
    view = render(camera_pose(0.6, 10))
    label = view.prediction.label
    rows = np.flatnonzero((label == FLOOR).any(axis=1))
    keep = rows[-int(0.05 * label.shape[0]) :]
    strip = np.full_like(label, 11)
    strip[keep] = label[keep]
    assert (strip == FLOOR).mean() == pytest.approx(0.05, abs=0.01)
    cut = dataclasses.replace(view.prediction, label=strip)
    noisy = spoil(dataclasses.replace(view, prediction=cut), 1, 0.03, 0.15)
    plane = fit(noisy).plane
    assert angle_deg(plane.normal, view.up) < 2
    assert plane.height == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'label': 11}, 'no pixel is labelled floor'),
        ({'depth': np.nan}, '0 pixels are floor by label and normal'),
        ({'depth': -1.0}, '0 pixels are floor by label and normal'),
        ({'depth': np.inf}, '0 pixels are floor by label and normal'),
        ({'normal': np.nan}, '0 pixels are floor by label and normal'),
        ({'normal': 0.0}, '0 pixels are floor by label and normal'),
    ],
)
def test_without_a_floor_there_is_a_reason(change, reason):
    view = render(camera_pose(0.6, 10), small_camera(48, 36))
    for name, value in change.items():
        getattr(view.prediction, name)[:] = value
    estimate = fit(view)
    assert estimate.plane is None
    assert estimate.reason.startswith(reason)


def test_one_pixel_of_floor_is_no_floor():
    view = render(camera_pose(0.6, 10), small_camera(48, 36))
    label = view.prediction.label
    label[:-1] = 11
    label[-1, 1:] = 11
    estimate = fit(view)
    assert estimate.plane is None
    assert estimate.reason == '1 pixels are floor by label and normal; 30 are needed'


def test_one_pixel_still_fixes_a_plane_when_it_is_asked_for():
    """Its normal gives the direction and its depth the height; both remain uncertain."""
    view = render(camera_pose(0.6, 10), small_camera(48, 36))
    label = view.prediction.label
    label[:-1] = 11
    label[-1, 1:] = 11
    plane = fit(view, config=FloorConfig(min_pixels=1, min_confidence=0.0)).plane
    assert angle_deg(plane.normal, view.up) < 1
    assert plane.height == pytest.approx(0.6, abs=0.05)
    assert plane.height_std > 0.02


def test_a_wall_labelled_floor_is_refused():
    view = render(camera_pose(0.6, -45), small_camera(48, 36))
    view.prediction.label[:] = FLOOR
    estimate = fit(view)
    assert estimate.plane is None
    assert estimate.reason


def test_a_known_mounting_steadies_the_direction():
    view = render(camera_pose(0.6, 12, 2), small_camera(96, 72))
    noisy = spoil(view, 3, 0.2, 0.4)
    config = FloorConfig(min_confidence=0.0)
    free = fit(noisy, config=config).plane
    held = fit(noisy, config=config, up=tuple(view.up), up_std_deg=0.5).plane
    assert held.angle_std < free.angle_std
    assert angle_deg(held.normal, view.up) < 0.5


@example(up=(0.0, -1.0, 0.0), height=1.0)
@given(
    up=st.tuples(st.floats(-0.3, 0.3), st.just(-1.0), st.floats(-0.7, 0.7)),
    height=st.floats(0.1, 3),
)
@ANALYTIC
def test_heights_above_a_plane_are_those_of_geometry(up, height):
    plane = nominal_plane(up, height)
    normal = np.asarray(plane.normal)
    assert np.linalg.norm(normal) == pytest.approx(1)
    assert plane.height_of(np.zeros(3)) == pytest.approx(height)
    assert plane.height_of(-normal * height) == pytest.approx(0, abs=1e-6)
    assert np.allclose(plane.covariance[:3, :3] @ normal, 0, atol=1e-12)
