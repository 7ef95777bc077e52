"""Augmented pictures are pictures of a camera that could exist: geometry, labels, colours."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from mtl_perception.frames import Intrinsics  # noqa: E402
from mtl_perception.geometry.normals import normals_from_depth  # noqa: E402
from mtl_training.config import AugmentationSettings  # noqa: E402
from mtl_training.datasets.arrays import ArrayFrame  # noqa: E402
from mtl_training.datasets.augmentation import (  # noqa: E402
    VirtualCamera,
    augment,
    change_colours,
    draw_camera,
)

CAMERA = Intrinsics(width=96, height=72, fx=80.0, fy=80.5, cx=49.3, cy=34.1)
# Planes n . P = d in metres: a floor and a slanted wall, normals towards the camera.
FLOOR = (np.array([0.0, -1.0, 0.0]), -1.2)
WALL = (np.array([-0.5, 0.0, -math.sqrt(0.75)]), -2.5)


def render_planes(camera: Intrinsics) -> ArrayFrame:
    """Return the exact view of floor (class 4) and wall (class 11)."""
    v, u = np.mgrid[: camera.height, : camera.width]
    rays = np.stack(
        [(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)], axis=-1
    )
    with np.errstate(divide='ignore'):
        distances = [d / (rays @ n) for n, d in (FLOOR, WALL)]
    distances = [np.where(distance > 0, distance, np.inf) for distance in distances]
    floor = distances[0] < distances[1]
    depth = np.where(floor, *distances)
    normal = np.where(floor[..., None], FLOOR[0], WALL[0])
    return ArrayFrame(
        id='planes',
        image=np.random.default_rng(0).integers(0, 255, (*u.shape, 3), np.uint8),
        label=np.where(floor, 4, 11).astype(np.uint8),
        depth=np.rint(1000 * depth).astype(np.uint16),
        normal=np.rint(127 * normal).astype(np.int8),
        intrinsics=camera,
    )


@st.composite
def cameras(draw: st.DrawFn) -> VirtualCamera:
    zoom = draw(st.floats(0.7, 2.0))
    height, width = 64, 80
    return VirtualCamera(
        zoom=zoom,
        roll=draw(st.floats(-0.2, 0.2)),
        mirrored=draw(st.booleans()),
        left=draw(st.floats(0, 1)) * (zoom * CAMERA.width - width),
        top=draw(st.floats(0, 1)) * (zoom * CAMERA.height - height),
        height=height,
        width=width,
        focal_length=draw(st.floats(60, 120)),
    )


@settings(max_examples=30, deadline=None)
@given(cameras())
def test_depth_and_normals_agree_with_the_new_camera(camera: VirtualCamera) -> None:
    frame = render_planes(CAMERA)
    out = augment(frame, camera)
    fx, fy, cx, cy = out['intrinsics'].astype(float)
    v, u = np.mgrid[: camera.height, : camera.width]
    squash = camera.zoom * CAMERA.fx / camera.focal_length
    # Unproject with the new camera, then undo mirror, roll and squash: the room's own planes.
    depth = out['depth'].astype(float)
    turned = np.stack([(u - cx) / fx * depth, (v - cy) / fy * depth], axis=-1)
    cosine, sine = math.cos(camera.roll), math.sin(camera.roll)
    xy = turned @ np.array([[cosine, -sine], [sine, cosine]])
    if camera.mirrored:
        xy[..., 0] *= -1
    points = np.concatenate([xy, squash * depth[..., None]], axis=-1)
    for label, (n, d) in ((4, FLOOR), (11, WALL)):
        inside = (out['label'] == label) & (depth > 0)
        if inside.sum() < 50:
            continue
        # Nearest-neighbour sampling is half a source pixel off at most.
        pixel = np.abs(points[inside, 2]) / CAMERA.fx
        error = np.abs(points[inside] @ n - d)
        assert (error < 1.2 * pixel + 2e-3).all()
        expected = np.array([n[0] * (-1 if camera.mirrored else 1), n[1], squash * n[2]])
        expected[:2] = np.array([[cosine, -sine], [sine, cosine]]) @ expected[:2]
        expected /= np.linalg.norm(expected)
        angles = np.degrees(np.arccos(np.clip(out['normal'][inside] @ expected, -1, 1)))
        assert angles.max() < 1.0


@pytest.mark.parametrize('mirrored', [False, True])
@pytest.mark.parametrize('zoom', [0.8, 1.0, 1.6])
def test_normals_are_those_of_the_augmented_depth(zoom: float, mirrored: bool) -> None:
    camera = VirtualCamera(zoom, 0.05, mirrored, 3.0, 2.0, 56, 72, 90.0)
    smooth = render_planes(CAMERA)
    out = augment(smooth, camera)
    target = camera.intrinsics(CAMERA)
    derived = normals_from_depth(out['depth'], target)
    known = (np.linalg.norm(out['normal'], axis=-1) > 0) & (derived != 0).any(-1)
    cosine = np.einsum('hwc,hwc->hw', derived, out['normal'])[known]
    assert np.median(np.degrees(np.arccos(np.clip(cosine, -1, 1)))) < 3.0


def test_plain_camera_changes_nothing() -> None:
    frame = render_planes(CAMERA)
    camera = VirtualCamera(1.0, 0.0, False, 0, 0, CAMERA.height, CAMERA.width, CAMERA.fx)
    out = augment(frame, camera)
    np.testing.assert_array_equal(out['image'], frame.image)
    np.testing.assert_array_equal(out['label'], frame.label)
    np.testing.assert_allclose(out['depth'], frame.depth / 1000, rtol=1e-6)
    np.testing.assert_allclose(out['intrinsics'], [80.0, 80.5, 49.3, 34.1], rtol=1e-6)


def test_zoom_divides_depth_and_moves_the_principal_point() -> None:
    frame = render_planes(CAMERA)
    camera = VirtualCamera(2.0, 0.0, False, 10, 6, 64, 80, CAMERA.fx)
    out = augment(frame, camera)
    assert out['intrinsics'][0] == CAMERA.fx
    assert out['intrinsics'][2] == pytest.approx(2 * (CAMERA.cx + 0.5) - 0.5 - 10)
    assert out['intrinsics'][3] == pytest.approx(2 * (CAMERA.cy + 0.5) - 0.5 - 6)
    # Output pixel 20 of the crop is scaled pixel 30, source pixel 14.75.
    assert out['depth'][4, 20] == pytest.approx(frame.depth[5, 15] / 2000, rel=0.02)


def test_mirror_is_exact() -> None:
    frame = render_planes(CAMERA)
    camera = VirtualCamera(1.0, 0.0, True, 0, 0, CAMERA.height, CAMERA.width, CAMERA.fx)
    out = augment(frame, camera)
    np.testing.assert_array_equal(out['image'], frame.image[:, ::-1])
    np.testing.assert_array_equal(out['label'], frame.label[:, ::-1])
    wall = out['label'] == 11
    assert (out['normal'][wall][:, 0] > 0.49).all()


def test_another_focal_length_is_brought_to_the_training_one() -> None:
    wide = Intrinsics(width=96, height=72, fx=50.0, fy=50.0, cx=47.5, cy=35.5)
    frame = render_planes(wide)
    camera = VirtualCamera(1.0, 0.0, False, 0, 0, 72, 96, 100.0)
    out = augment(frame, camera)
    np.testing.assert_allclose(out['depth'], frame.depth / 1000 * 2, rtol=1e-5)


def test_outside_the_picture_nothing_is_claimed() -> None:
    frame = render_planes(CAMERA)
    camera = VirtualCamera(0.5, 0.0, False, 0, 0, 72, 96, CAMERA.fx)
    out = augment(frame, camera)
    assert (out['label'][40:] == 255).all()
    assert not out['depth'][40:].any() and not out['normal'][40:].any()


def test_drawn_cameras_stay_within_the_settings() -> None:
    random = np.random.default_rng(0)
    chosen = AugmentationSettings(zoom=(1.0, 1.5), rotation_deg=3, flip=0.5)
    drawn = [draw_camera(random, chosen, CAMERA, 36, 48, 80.0) for _ in range(200)]
    assert all(0.5 <= camera.zoom <= 0.75 for camera in drawn)
    assert all(0 <= camera.left <= camera.zoom * 96 - 48 + 1e-9 for camera in drawn)
    assert all(abs(camera.roll) <= math.radians(3) for camera in drawn)
    assert 60 < sum(camera.mirrored for camera in drawn) < 140


def test_colours_change_pixels_but_neutral_settings_do_not() -> None:
    image = render_planes(CAMERA).image
    neutral = AugmentationSettings(
        brightness=0, contrast=0, saturation=0, hue_deg=0, gamma=1, greyscale=0, blur=0, noise=0
    )
    same = change_colours(image, np.random.default_rng(0), neutral)
    np.testing.assert_allclose(same.astype(int), image.astype(int), atol=1)
    changed = change_colours(image, np.random.default_rng(0), AugmentationSettings())
    assert changed.dtype == np.uint8 and changed.shape == image.shape
    assert np.abs(changed.astype(int) - image).mean() > 3


def test_greyscale_has_no_colour() -> None:
    image = render_planes(CAMERA).image
    grey = AugmentationSettings(greyscale=1, blur=0, noise=0, gamma=1)
    out = change_colours(image, np.random.default_rng(0), grey).astype(int)
    assert np.ptp(out, axis=-1).max() <= 1


@pytest.mark.parametrize(('zoom', 'roll'), [(1.0, 0.15), (1.7, 0.0), (0.8, -0.1)])
def test_a_zoomed_and_rolled_room_is_the_room_seen_by_that_camera(
    zoom: float, roll: float
) -> None:
    """Where the focal length grows with the zoom, nothing is squashed: render it anew."""
    pytest.importorskip('mujoco', reason="the workshop's packages are absent")
    from mtl_training.worlds import RenderingUnavailableError, World, camera_pose

    camera = Intrinsics(128, 96, 100.0, 100.0, 63.2, 47.9)
    world = World(5_000_003, 'living_room')
    pose = camera_pose(*world.rooms[0].center, 1.3, yaw=0.5, pitch=-0.2)
    virtual = VirtualCamera(zoom, roll, False, 6.0, 4.0, 64, 80, zoom * camera.fx)
    turned = pose.copy()
    cosine, sine = math.cos(roll), math.sin(roll)
    turned[:3, :3] = pose[:3, :3] @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    try:
        seen = world.render(pose, camera, color=False)
        truth = world.render(turned, virtual.intrinsics(camera), color=False)
    except RenderingUnavailableError as error:
        pytest.skip(str(error))
    frame = ArrayFrame(
        id='room',
        image=np.zeros((96, 128, 3), np.uint8),
        label=seen.label,
        depth=np.rint(1000 * np.nan_to_num(seen.depth)).astype(np.uint16),
        normal=np.rint(127 * seen.normal).astype(np.int8),
        intrinsics=camera,
    )
    out = augment(frame, virtual)
    inside = (out['depth'] > 0) & (truth.depth > 0)
    assert inside.mean() > 0.7
    assert (out['label'] == truth.label)[inside].mean() > 0.95
    error = np.abs(out['depth'] / np.where(inside, truth.depth, 1) - 1)[inside]
    assert np.median(error) < 0.005 and np.percentile(error, 90) < 0.03
    cosines = np.einsum('hwc,hwc->hw', out['normal'], truth.normal)[inside]
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    assert np.median(angles) < 0.6 and np.percentile(angles, 90) < 3
    world.close()
