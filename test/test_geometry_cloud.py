"""Pixels become points and back; the cloud's bytes are what PCL reads."""

import dataclasses

import cv2
import numpy as np
import pytest
from analytic_rooms import ROLES, Box, camera_pose, render, small_camera
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_perception.frames import Intrinsics
from mtl_perception.geometry.backprojection import back_project, project, subsampled
from mtl_perception.geometry.cloud import (
    POINT,
    flying_pixels,
    organised_cloud,
    thin_by_stride,
    thin_by_voxel,
)
from mtl_perception.geometry.consistency import (
    agreement_share,
    depth_deviation,
    depth_slopes,
    normal_agreement,
    normal_slopes,
    slope_normals,
)
from mtl_perception.geometry.pipeline import GeometryConfig, SceneGeometry

PROPERTY = settings(max_examples=25, deadline=None)
FOCAL = st.floats(5, 5000)
CENTRE = st.floats(-500, 500)


@PROPERTY
@given(fx=FOCAL, fy=FOCAL, cx=CENTRE, cy=CENTRE, seed=st.integers(0, 999))
def test_points_project_back_onto_their_pixels(fx, fy, cx, cy, seed):
    camera = Intrinsics(7, 5, fx, fy, cx, cy)
    depth = np.random.default_rng(seed).uniform(0.1, 20, (5, 7)).astype(np.float32)
    u, v = project(back_project(depth, camera), camera)
    columns, rows = np.meshgrid(np.arange(7), np.arange(5))
    assert np.allclose(u, columns, atol=2e-6 * fx * (1 + abs(cx)) + 1e-4)
    assert np.allclose(v, rows, atol=2e-6 * fy * (1 + abs(cy)) + 1e-4)


@PROPERTY
@given(rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_every_nth_pixel_keeps_its_ray(rows, columns):
    camera = Intrinsics(11, 9, 40.0, 50.0, 4.2, 5.1)
    depth = np.linspace(1, 3, 99, dtype=np.float32).reshape(9, 11)
    whole = back_project(depth, camera)[:, ::rows, ::columns]
    part = back_project(depth[::rows, ::columns], subsampled(camera, rows, columns))
    assert np.allclose(whole, part, atol=1e-6)


def test_a_picture_of_another_size_than_the_camera_is_refused():
    with pytest.raises(ValueError, match='does not fit intrinsics of 7x5'):
        back_project(np.ones((4, 7), np.float32), Intrinsics(7, 5, 5, 5, 3, 2))


def test_every_field_arrives_in_its_place():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3, 4, 5)).astype(np.float32)
    points[:, 1, 2] = np.nan
    normals = rng.normal(size=(3, 4, 5)).astype(np.float32)
    rgb = rng.integers(0, 256, (4, 5, 3), np.uint8)
    label = rng.integers(0, 13, (4, 5), np.uint8)
    confidence = rng.integers(0, 256, (4, 5), np.uint8)
    cloud = organised_cloud(points, rgb, label, confidence, normals)
    assert cloud.shape == (4, 5)
    for index, axis in enumerate('xyz'):
        np.testing.assert_array_equal(cloud[axis], points[index])
        np.testing.assert_array_equal(cloud[f'normal_{axis}'], normals[index])
    np.testing.assert_array_equal(cloud['label'], label)
    np.testing.assert_array_equal(cloud['confidence'], confidence)
    bits = np.ascontiguousarray(cloud['rgb']).view(np.uint32)
    for shift, channel in ((16, 0), (8, 1), (0, 2)):
        np.testing.assert_array_equal(bits >> shift & 255, rgb[..., channel])
    assert (bits >> 24 == 0).all()


def test_what_is_missing_is_marked_as_missing():
    cloud = organised_cloud(np.zeros((3, 2, 2), np.float32))
    assert (cloud['label'] == 255).all()
    assert (cloud['confidence'] == 255).all()
    assert np.isnan(cloud['normal_y']).all()
    assert (np.ascontiguousarray(cloud['rgb']).view(np.uint32) == 0).all()


def test_a_message_is_filled_in_place():
    data = bytearray(2 * 3 * POINT.itemsize)
    view = np.frombuffer(data, POINT).reshape(2, 3)
    points = np.arange(18, dtype=np.float32).reshape(3, 2, 3)
    assert organised_cloud(points, out=view) is view
    np.testing.assert_array_equal(np.frombuffer(data, POINT)['y'], np.arange(6, 12))
    with pytest.raises(ValueError, match='expected a contiguous array of POINT'):
        organised_cloud(points, out=np.empty((3, 2), POINT))


def test_thinning_by_stride_keeps_rows_and_columns():
    points = np.arange(3 * 35, dtype=np.float32).reshape(3, 5, 7)
    cloud = organised_cloud(points, normals=points)
    thin = thin_by_stride(cloud, 2)
    assert thin.shape == (3, 4)
    np.testing.assert_array_equal(thin, cloud[::2, ::2])
    with pytest.raises(ValueError, match='step=0'):
        thin_by_stride(cloud, 0)


@PROPERTY
@given(size=st.floats(0.05, 2.0), seed=st.integers(0, 999))
def test_thinning_by_voxel_keeps_the_surest_point_of_every_cube(size, seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-2, 2, (3, 6, 8)).astype(np.float32)
    points[:, 0, :3] = np.nan
    confidence = rng.integers(0, 4, (6, 8), np.uint8)
    cloud = organised_cloud(points, confidence=confidence, normals=np.zeros_like(points))
    thin = thin_by_voxel(cloud, size)

    def cubes(records):
        axes = [np.floor(records[axis] / np.float32(size)).astype(int) for axis in 'xyz']
        return list(zip(*axes, strict=True))

    flat = cloud.reshape(-1)
    flat = flat[np.isfinite(flat['x'])]
    best = {}
    for cube, record in zip(cubes(flat), flat, strict=True):
        best[cube] = max(best.get(cube, 0), record['confidence'])
    assert sorted(cubes(thin)) == sorted(best)
    assert all(
        record['confidence'] == best[cube] for cube, record in zip(cubes(thin), thin, strict=True)
    )
    mixed = thin_by_voxel(flat[rng.permutation(flat.size)], size)
    np.testing.assert_array_equal(mixed, thin)


def test_thinning_by_voxel_of_nothing_is_nothing():
    cloud = organised_cloud(np.full((3, 2, 2), np.nan, np.float32))
    assert thin_by_voxel(cloud, 0.1).shape == (0,)
    with pytest.raises(ValueError, match='voxel size=0'):
        thin_by_voxel(cloud, 0)


def blurred(view, pixels):
    """Return the view with depth blurred across edges, as networks do."""
    depth = cv2.blur(view.prediction.depth, (pixels, pixels))
    return dataclasses.replace(view.prediction, depth=depth)


def test_blur_between_two_surfaces_is_removed_and_surfaces_stay():
    post = Box((1.5, -0.3, 0.0), (1.8, 0.3, 1.2))
    view = render(camera_pose(0.6, 10), boxes=(post,))
    prediction = blurred(view, 5)
    truth = view.prediction.depth
    between = np.abs(prediction.depth / truth - 1) > 0.15
    geometry = SceneGeometry(GeometryConfig(roles=ROLES))
    cloud = geometry.update(prediction, outputs={'points'}).cloud
    gone = np.isnan(cloud['x'])
    edge = cv2.dilate((between & (truth > 0)).view(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert between.sum() > 300
    assert gone[between].mean() > 0.8
    assert gone[~edge].mean() < 0.005
    kept = SceneGeometry(GeometryConfig(roles=ROLES, remove_edges=False))
    assert not np.isnan(kept.update(prediction, outputs={'points'}).cloud['x'])[between].any()


def test_sharp_edges_and_thin_things_lose_nothing():
    leg = Box((1.5, 0.0, 0.0), (1.53, 0.03, 0.8))
    view = render(camera_pose(0.6, 10), boxes=(leg,))
    camera = view.prediction.intrinsics
    slopes = normal_slopes(
        np.ascontiguousarray(np.moveaxis(view.prediction.normal, -1, 0)), camera
    )
    flying = flying_pixels(1 / view.prediction.depth, np.abs(slopes.u) + np.abs(slopes.v))
    assert (view.thing == 0).sum() > 50
    assert flying[view.thing == 0].mean() < 0.05
    assert flying.mean() < 0.01


@PROPERTY
@given(pitch=st.floats(-10, 25), roll=st.floats(-8, 8), height=st.floats(0.4, 1.2))
def test_slopes_of_depth_are_the_slopes_that_exact_normals_want(pitch, roll, height):
    view = render(camera_pose(height, pitch, roll), small_camera(96, 72))
    prediction = view.prediction
    normals = np.ascontiguousarray(np.moveaxis(prediction.normal, -1, 0))
    measured = depth_slopes(1 / prediction.depth)
    predicted = normal_slopes(normals, prediction.intrinsics)
    label = prediction.label
    one_surface = cv2.erode(label, np.ones((7, 7))) == cv2.dilate(label, np.ones((7, 7)))
    # Side walls share a label with the far wall: their corner is one too.
    one_surface &= (
        np.ptp([np.roll(prediction.normal, shift, 1)[..., 0] for shift in range(-3, 4)], axis=0)
        < 1e-3
    )
    one_surface[:, [0, 1, 2, -1, -2, -3]] = False
    one_surface[[0, 1, 2, -1, -2, -3]] = False
    assert one_surface.mean() > 0.3
    inside = (np.abs(predicted.u) + np.abs(predicted.v) < 0.2) & one_surface
    assert np.allclose(measured.u[inside], predicted.u[inside], atol=2e-3)
    assert np.allclose(measured.v[inside], predicted.v[inside], atol=2e-3)
    agreement = normal_agreement(measured, normals, prediction.intrinsics)
    assert agreement[inside].min() > 0.99
    derived = slope_normals(measured, prediction.intrinsics)
    assert (derived * normals).sum(axis=0)[inside].min() > 0.99


def test_where_normals_contradict_depth_confidence_drops_and_deviation_grows():
    view = render(camera_pose(0.6, 10))
    prediction = view.prediction
    wrong = np.zeros(prediction.depth.shape, bool)
    wrong[60:100, 80:120] = True
    prediction.normal[wrong] = prediction.normal[wrong][:, [2, 0, 1]]
    geometry = SceneGeometry(GeometryConfig(roles=ROLES))
    cloud = geometry.update(prediction).cloud
    assert cloud['confidence'][wrong].mean() < 100
    assert np.median(cloud['confidence'][~wrong]) == 255
    unsure = SceneGeometry(GeometryConfig(roles=ROLES, min_confidence=0.5)).update(prediction)
    assert np.isnan(unsure.cloud['x'])[wrong].mean() > 0.9
    assert np.isnan(unsure.cloud['x'])[~wrong].mean() < 0.05

    camera = prediction.intrinsics
    measured = depth_slopes(1 / prediction.depth)
    predicted = normal_slopes(np.ascontiguousarray(np.moveaxis(prediction.normal, -1, 0)), camera)
    deviation = depth_deviation(measured, predicted, 0.02, 2)
    assert deviation.min() == pytest.approx(0.02)
    assert deviation[wrong].mean() > 2 * np.median(deviation[~wrong])


def test_agreement_is_a_share_between_a_quarter_and_one():
    cosine = np.array([-1, 0, 0.2, 0.5, 0.8, 1], np.float32)
    assert agreement_share(cosine).tolist() == [63, 63, 64, 159, 255, 255]


@pytest.mark.parametrize('value', [np.nan, np.inf, 0.0, -1.0])
def test_a_picture_without_depth_gives_a_cloud_without_points(value):
    view = render(camera_pose(0.6, 10), small_camera(48, 36))
    view.prediction.depth[:] = value
    scene = SceneGeometry(GeometryConfig(roles=ROLES)).update(
        view.prediction, base_from_camera=view.base_from_camera
    )
    assert scene.cloud.shape == (36, 48)
    assert np.isnan(scene.cloud['x']).all()
    assert np.isnan(scene.cloud['z']).all()
    assert scene.obstacles.size == 0
    assert scene.floor.plane is None
    assert np.isnan(scene.scan.ranges).all()
    np.testing.assert_array_equal(scene.cloud['label'], view.prediction.label)


def test_a_prediction_without_depth_or_calibration_is_refused():
    view = render(camera_pose(0.6, 10), small_camera(48, 36))
    geometry = SceneGeometry()
    with pytest.raises(ValueError, match='needs a bundle with depth'):
        geometry.update(dataclasses.replace(view.prediction, depth=None))
    with pytest.raises(ValueError, match='needs a calibrated camera'):
        geometry.update(dataclasses.replace(view.prediction, intrinsics=None))
    with pytest.raises(ValueError, match=r"unknown outputs \['cloud'\]"):
        geometry.update(view.prediction, outputs={'cloud'})
