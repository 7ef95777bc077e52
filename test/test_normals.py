"""Normals from depth: analytic planes and a real frame with published normals."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mtl_perception.datasets import PictureFolder
from mtl_perception.frames import Intrinsics
from mtl_perception.geometry.normals import normals_from_depth
from mtl_perception.metrics import NormalsMetrics, angles_between

CAMERA = Intrinsics(width=96, height=72, fx=78.0, fy=77.0, cx=48.8, cy=35.1)


def rays(camera: Intrinsics) -> np.ndarray:
    u, v = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    return np.stack(
        ((u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(u.shape)), axis=-1
    )


def render_plane(camera: Intrinsics, normal: tuple[float, ...], distance: float) -> np.ndarray:
    """Return the depth of the plane normal . X = -distance; 0 where it is not seen."""
    facing = -(rays(camera) @ np.array(normal))
    depth = np.divide(distance, facing, out=np.zeros_like(facing), where=facing > 0.02)
    return depth.astype(np.float32)


def test_a_floor_points_up_in_the_optical_frame() -> None:
    depth = render_plane(CAMERA, (0, -1, 0), distance=1.2)
    normal = normals_from_depth(depth, CAMERA)
    floor = depth > 0
    assert floor.sum() > 1000
    assert np.abs(normal[floor] - (0, -1, 0)).max() < 1e-3


@pytest.mark.parametrize(
    'direction', [(0, 0, -1), (1, 0, -0.4), (-1, 0, -1), (0, 1, -0.5), (0.3, -0.5, -0.8)]
)
def test_a_wall_or_slope_is_exact_up_to_the_border(direction: tuple[float, ...]) -> None:
    expected = np.array(direction) / np.linalg.norm(direction)
    depth = render_plane(CAMERA, tuple(expected), distance=2.0)
    seen = depth > 0
    normal = normals_from_depth(depth, CAMERA)
    assert angles_between(normal, np.broadcast_to(expected, normal.shape))[seen].max() < 0.05


def test_every_normal_is_unit_and_faces_the_camera() -> None:
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 5, (72, 96)).astype(np.float32)
    normal = normals_from_depth(depth, CAMERA)
    assert np.linalg.norm(normal, axis=-1) == pytest.approx(np.ones((72, 96)), abs=1e-5)
    # Where the fitted plane passes behind the camera the side is decided by that plane; with
    # this noise it does not.
    assert (np.einsum('hwc,hwc->hw', normal, rays(CAMERA)) < 0).all()


def test_invalid_pixels_have_no_normal_and_do_not_disturb_others() -> None:
    depth = render_plane(CAMERA, (0, 0, -1), distance=3.0)
    depth[20:30, 30:60] = 0
    depth[5, 5] = np.nan
    normal = normals_from_depth(depth, CAMERA)
    valid = np.isfinite(depth) & (depth > 0)
    assert not normal[~valid].any()
    assert np.abs(normal[valid] - (0, 0, -1)).max() < 1e-3


def test_lonely_pixels_and_single_lines_have_no_normal() -> None:
    depth = np.zeros((72, 96), np.float32)
    depth[10, 10] = 2.0
    depth[40, :] = 2.0
    assert not normals_from_depth(depth, CAMERA).any()


def test_the_fit_equals_a_plain_least_squares_fit() -> None:
    rng = np.random.default_rng(1)
    depth = rng.uniform(2, 3, (72, 96))
    normal = normals_from_depth(depth, CAMERA)
    row, column = 30, 50
    window = np.s_[row - 5 : row + 6, column - 5 : column + 6]
    plane, *_ = np.linalg.lstsq(
        rays(CAMERA)[window].reshape(-1, 3), 1 / depth[window].ravel(), rcond=None
    )
    assert normal[row, column] == pytest.approx(-plane / np.linalg.norm(plane), abs=1e-6)


def test_a_size_that_does_not_fit_the_camera_is_refused() -> None:
    with pytest.raises(ValueError, match='does not fit intrinsics of 96x72'):
        normals_from_depth(np.ones((10, 10)), CAMERA)


@pytest.mark.parametrize('window', [1, 4])
def test_an_even_or_tiny_window_is_refused(window: int) -> None:
    with pytest.raises(ValueError, match='odd number'):
        normals_from_depth(np.ones((72, 96)), CAMERA, window)


def test_a_real_frame_agrees_with_its_published_normals(nyuv2) -> None:
    picture = cv2.imread(str(nyuv2.parent / 'nyuv2_published_normals' / 'norm_gt_000433.png'))
    coded = picture[..., ::-1].astype(np.float32) / 127.5 - 1
    published = np.stack((coded[..., 0], -coded[..., 2], coded[..., 1]), axis=-1)
    published[np.abs(np.linalg.norm(coded, axis=-1) - 1) > 0.05] = 0
    published = cv2.resize(published, (384, 288), interpolation=cv2.INTER_NEAREST)
    folder = PictureFolder(nyuv2, 'devtest', want=('normal',))
    derived = folder.read(folder.ids.index('0433'))
    assert derived.normals_source == 'derived-11'
    metrics = NormalsMetrics('published')
    metrics.update(derived.normal, published)
    figures = metrics.compute()
    assert figures['pixels'] > 80_000
    assert figures['median'] < 4.5
    assert figures['mean'] < 12.5
