"""Frames of any size come out at the right place, in metres, for the camera that saw them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from tiny_graph import FOCAL_LENGTH_PX, tiny_manifest, tiny_model

from mtl_perception.bundle import ModelBundle, NormalsSpec
from mtl_perception.encodings import EncodingError
from mtl_perception.engines import EngineError, open_engine
from mtl_perception.frames import CameraFrame, Intrinsics
from mtl_perception.perceiver import Perceiver, auto_size, correct_focal_length, fit

RED, BLUE = (225, 87, 89), (60, 98, 168)  # NYU13's colours of bed (0) and sofa (8)


@pytest.fixture(scope='module')
def perceiver(tiny_bundle: ModelBundle) -> Perceiver:
    engine = open_engine(tiny_bundle, 'openvino', precision='float32', threads=1)
    return Perceiver(engine, tiny_bundle)


def two_colours(height: int, width: int, split: float) -> np.ndarray:
    """Return an rgb8 picture, red left of the column split * width, blue right of it."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : round(split * width)] = RED
    pixels[:, round(split * width) :] = BLUE
    return pixels


def camera(height: int, width: int, fx: float) -> Intrinsics:
    return Intrinsics(width, height, fx, fx, (width - 1) / 2, (height - 1) / 2)


@pytest.mark.parametrize(
    ('height', 'width', 'expected'),
    [
        (480, 640, (288, 384)),
        (720, 1280, (216, 384)),
        (640, 480, (288, 216)),
        (288, 384, (288, 384)),
        (240, 320, (288, 384)),
        (1080, 1920, (216, 384)),
    ],
)
def test_pictures_are_scaled_never_stretched(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    layout = fit((height, width), (288, 384))

    assert (layout.height, layout.width) == expected
    assert layout.scale_x == pytest.approx(layout.scale_y)
    assert 0 <= layout.top <= 288 - layout.height
    assert 0 <= layout.left <= 384 - layout.width


@pytest.mark.parametrize(('height', 'width'), [(48, 64), (36, 64), (64, 48), (72, 128), (96, 128)])
def test_padding_is_cut_off_exactly(perceiver: Perceiver, height: int, width: int) -> None:
    pixels = two_colours(height, width, 0.5)

    prediction = perceiver.perceive(CameraFrame(pixels, 'rgb8'))

    layout = fit((height, width), (48, 64))
    assert prediction.label.shape == (layout.height, layout.width)
    half = layout.width // 2
    assert (prediction.label[:, :half] == 0).all()
    assert (prediction.label[:, half:] == 8).all()


@pytest.mark.parametrize('output_size', ['network', 'camera'])
def test_nothing_is_known_where_the_picture_shows_nothing(
    perceiver: Perceiver, tiny_bundle: ModelBundle, output_size: str
) -> None:
    frame = CameraFrame(two_colours(96, 128, 0.5), 'rgb8')
    other = Perceiver(perceiver.engine, tiny_bundle, output_size=output_size)
    whole = other.perceive(frame)
    whole = {name: getattr(whole, name).copy() for name in tiny_bundle.outputs}
    valid = np.full((96, 128), 255, np.uint8)
    valid[:, 64:] = 0
    seen = other.perceive(replace(frame, valid=valid))
    half = seen.size[1] // 2
    for name, nothing in (('label', 255), ('confidence', 0), ('depth', np.nan)):
        found = getattr(seen, name)
        np.testing.assert_array_equal(found[:, :half], whole[name][:, :half])
        np.testing.assert_array_equal(found[:, half:], np.full_like(found[:, half:], nothing))
    assert np.isnan(seen.normal[:, half:]).all()
    # And all is known again once all is valid.
    np.testing.assert_array_equal(other.perceive(frame).depth, whole['depth'])


def test_padding_is_painted_anew_when_the_layout_changes(perceiver: Perceiver) -> None:
    white = np.full((64, 48, 3), 255, np.uint8)
    wide = CameraFrame(two_colours(36, 64, 0.5), 'rgb8')
    expected = perceiver.perceive(wide).normal.copy()
    perceiver.perceive(CameraFrame(white, 'rgb8'))

    np.testing.assert_array_equal(perceiver.perceive(wide).normal, expected)


@pytest.mark.parametrize(
    ('encoding', 'pixels'),
    [
        ('rgb8', two_colours(96, 128, 0.5)),
        ('bgr8', two_colours(96, 128, 0.5)[..., ::-1].copy()),
        ('rgba8', cv2.cvtColor(two_colours(96, 128, 0.5), cv2.COLOR_RGB2RGBA)),
        ('bgra8', cv2.cvtColor(two_colours(96, 128, 0.5), cv2.COLOR_RGB2BGRA)),
    ],
)
def test_encodings_give_the_same_labels(
    perceiver: Perceiver, encoding: str, pixels: np.ndarray
) -> None:
    label = perceiver.perceive(CameraFrame(pixels, encoding)).label

    assert (label[:, :32] == 0).all() and (label[:, 32:] == 8).all()


def test_grey_pictures_are_grey_to_the_network(perceiver: Perceiver) -> None:
    mono = np.full((48, 64), 100, np.uint8)
    depth = perceiver.perceive(CameraFrame(mono, 'mono8')).depth.copy()
    rgb = np.full((48, 64, 3), 100, np.uint8)

    np.testing.assert_array_equal(perceiver.perceive(CameraFrame(rgb, 'rgb8')).depth, depth)
    wide = CameraFrame((mono * np.uint16(257)), 'mono16')
    np.testing.assert_array_equal(perceiver.perceive(wide).depth, depth)


def test_mosaics_are_converted_before_they_are_scaled(perceiver: Perceiver) -> None:
    mosaic = np.empty((96, 128), np.uint8)
    mosaic[0::2, 0::2], mosaic[1::2, 1::2] = RED[0], RED[2]
    mosaic[0::2, 1::2] = mosaic[1::2, 0::2] = RED[1]

    assert (perceiver.perceive(CameraFrame(mosaic, 'bayer_rggb8')).label == 0).all()


def test_large_pictures_are_averaged_not_sampled(perceiver: Perceiver) -> None:
    stripes = np.zeros((480, 640, 3), np.uint8)
    stripes[:, ::2] = 254

    depth = perceiver.perceive(CameraFrame(stripes, 'rgb8')).depth

    np.testing.assert_allclose(depth, 0.5 + 4 * 127 / 255, atol=0.02)


def test_outputs_carry_their_own_intrinsics(perceiver: Perceiver) -> None:
    source = Intrinsics(128, 72, 100.0, 100.0, 60.0, 30.0)
    frame = CameraFrame(two_colours(72, 128, 0.5), 'rgb8', source)

    intrinsics = perceiver.perceive(frame).intrinsics

    assert intrinsics == source.scaled(0.5, 64, 36)


def test_the_middle_stays_in_the_middle_for_any_size(perceiver: Perceiver) -> None:
    for height, width in ((49, 65), (101, 77), (333, 500)):
        frame = CameraFrame(two_colours(height, width, 0.5), 'rgb8', camera(height, width, 80))
        intrinsics = perceiver.perceive(frame).intrinsics
        assert intrinsics.cx == pytest.approx((intrinsics.width - 1) / 2)
        assert intrinsics.cy == pytest.approx((intrinsics.height - 1) / 2)


@pytest.mark.parametrize('s', [0.5, 1.0, 1.7])
def test_depth_and_normals_follow_the_focal_length(perceiver: Perceiver, s: float) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (96, 128, 3), np.uint8)
    frame = CameraFrame(pixels, 'rgb8')
    plain = perceiver.perceive(frame)
    depth, normal = plain.depth.copy(), plain.normal.copy()
    # The picture is halved: s = (fx / 2) / fx_training.
    calibrated = replace(frame, intrinsics=camera(96, 128, 2 * s * FOCAL_LENGTH_PX))

    prediction = perceiver.perceive(calibrated)

    np.testing.assert_allclose(prediction.depth, depth * s, rtol=1e-5)
    expected = normal / np.array([1, 1, s])
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(prediction.normal, expected, atol=1e-5)
    assert prediction.depth_calibrated and not plain.depth_calibrated


def test_normals_without_depth_follow_the_focal_length(tmp_path: Path) -> None:
    model = tiny_model()
    outputs = [output for output in model.graph.output if output.name == 'normal']
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    onnx.save(model, tmp_path / 'normals.onnx')
    manifest = tiny_manifest().model_copy(
        update={
            'tasks': ('normals',),
            'segmentation': None,
            'depth': None,
            'normals': NormalsSpec(focal_length_px=FOCAL_LENGTH_PX),
        }
    )
    bundle = ModelBundle.write(tmp_path / 'normals', manifest, tmp_path / 'normals.onnx')
    perceiver = Perceiver(open_engine(bundle, 'onnxruntime'), bundle)
    pixels = np.random.default_rng(3).integers(0, 256, (96, 128, 3), np.uint8)
    plain = perceiver.perceive(CameraFrame(pixels, 'rgb8')).normal.copy()
    turned = perceiver.perceive(CameraFrame(pixels, 'rgb8', camera(96, 128, 4 * FOCAL_LENGTH_PX)))
    expected = plain / np.array([1, 1, 2])
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(turned.normal, expected, atol=1e-5)
    assert not turned.depth_calibrated


def test_a_plane_keeps_its_normal_under_the_correction() -> None:
    """A training camera would explain the picture of a camera with s times its focal length by a
    scene whose depth is 1 / s of the true one: the correction must lead back to the true plane.
    """
    s = 2.0
    u, v = np.meshgrid(np.linspace(-0.3, 0.3, 5), np.linspace(-0.2, 0.2, 4))
    true_normal = np.array([0.3, -0.5, -0.8]) / np.linalg.norm([0.3, -0.5, -0.8])
    true_depth = -2.0 / (true_normal[0] * u + true_normal[1] * v + true_normal[2])
    points = np.stack([u * true_depth, v * true_depth, true_depth / s], -1).reshape(-1, 3)
    believed = np.linalg.svd(points - points.mean(0))[2][2]
    believed *= -np.sign(believed[2])
    depth = (true_depth / s).astype(np.float32)
    normal = np.broadcast_to(believed, (4, 5, 3)).astype(np.float32)

    correct_focal_length({'depth': depth, 'normal': normal}, s)

    np.testing.assert_allclose(depth, true_depth, rtol=1e-6)
    np.testing.assert_allclose(normal, np.broadcast_to(true_normal, (4, 5, 3)), atol=1e-6)


def test_without_intrinsics_nothing_is_claimed(perceiver: Perceiver) -> None:
    prediction = perceiver.perceive(CameraFrame(two_colours(48, 64, 0.5), 'rgb8'))

    assert prediction.intrinsics is None
    assert not prediction.depth_calibrated


@pytest.mark.parametrize('outputs', [{'label'}, {'depth', 'normal'}, set()])
def test_only_wanted_fields_are_filled(perceiver: Perceiver, outputs: Collection[str]) -> None:
    frame = CameraFrame(two_colours(48, 64, 0.5), 'rgb8', camera(48, 64, 70))

    prediction = perceiver.perceive(frame, outputs)

    filled = {
        name
        for name in ('label', 'confidence', 'depth', 'normal')
        if getattr(prediction, name) is not None
    }
    assert filled == set(outputs)
    assert set(prediction.timings_ms) == {'prepare', 'infer', 'post'}


def test_outputs_of_the_cameras_size(tiny_bundle: ModelBundle, perceiver: Perceiver) -> None:
    large = Perceiver(perceiver.engine, tiny_bundle, output_size='camera')
    frame = CameraFrame(two_colours(72, 128, 0.5), 'rgb8', camera(72, 128, 130))

    prediction = large.perceive(frame)

    assert prediction.label.shape == prediction.confidence.shape == (72, 128)
    assert set(np.unique(prediction.label)) == {0, 8}
    assert (prediction.label[:, :64] == 0).all() and (prediction.label[:, 64:] == 8).all()
    assert prediction.intrinsics == frame.intrinsics
    np.testing.assert_allclose(np.linalg.norm(prediction.normal, axis=-1), 1, atol=1e-5)
    small = perceiver.perceive(frame)
    assert prediction.depth[36, 10] == pytest.approx(small.depth[18, 5], rel=1e-5)
    assert prediction.depth[36, 120] == pytest.approx(small.depth[18, 60], rel=1e-5)


def test_a_batch_gives_what_single_frames_give(perceiver: Perceiver) -> None:
    rng = np.random.default_rng(5)
    frames = [
        CameraFrame(rng.integers(0, 256, (*size, 3), np.uint8), 'bgr8', camera(*size, 90))
        for size in ((48, 64), (72, 128), (80, 60))
    ]
    singles = []
    for frame in frames:
        single = perceiver.perceive(frame)
        singles.append((single.label.copy(), single.depth.copy(), single.intrinsics))

    batch = perceiver.perceive_batch(frames)

    for prediction, (label, depth, intrinsics) in zip(batch, singles, strict=True):
        np.testing.assert_array_equal(prediction.label, label)
        np.testing.assert_allclose(prediction.depth, depth, rtol=1e-6)
        assert prediction.intrinsics == intrinsics


def test_the_auto_size_fits_each_camera(tiny_bundle: ModelBundle, perceiver: Perceiver) -> None:
    auto = Perceiver(perceiver.engine, tiny_bundle, input_size='auto', max_pixels=64 * 64)
    frames = [
        CameraFrame(two_colours(*size, 0.5), 'rgb8') for size in ((100, 100), (50, 200), (200, 50))
    ]

    shapes = [prediction.label.shape for prediction in auto.perceive_batch(frames)]

    assert shapes == [(64, 64), (32, 128), (128, 32)]


def test_the_auto_size_keeps_to_its_bound() -> None:
    assert auto_size((480, 640), 288 * 384) == (288, 384)
    assert auto_size((640, 480), 288 * 384) == (384, 288)
    for camera_size in ((720, 1280), (100, 1000), (7, 9)):
        height, width = auto_size(camera_size, 288 * 384)
        assert height % 32 == width % 32 == 0
        assert height * width <= 288 * 384


@pytest.mark.parametrize(
    ('options', 'error', 'sentence'),
    [
        ({'input_size': (50, 64)}, EngineError, 'expected multiples of 32'),
        ({'input_size': 'huge'}, ValueError, "input_size is 'huge'"),
        ({'output_size': 'huge'}, ValueError, "output_size is 'huge'"),
    ],
)
def test_wrong_sizes_are_refused(
    tiny_bundle: ModelBundle,
    perceiver: Perceiver,
    options: dict,
    error: type[Exception],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence):
        Perceiver(perceiver.engine, tiny_bundle, **options)


def test_a_broken_frame_is_refused_and_the_next_one_runs(perceiver: Perceiver) -> None:
    good = CameraFrame(two_colours(48, 64, 0.5), 'rgb8')
    for broken in (
        CameraFrame(np.zeros((48, 64), np.uint8), 'rgb8'),
        CameraFrame(np.zeros((0, 64, 3), np.uint8), 'rgb8'),
        CameraFrame(np.zeros((48, 64), np.float32), '32FC1'),
        CameraFrame(np.zeros((48, 64), np.uint8), 'theora'),
    ):
        with pytest.raises(EncodingError):
            perceiver.perceive(broken)

    assert perceiver.perceive(good).label.shape == (48, 64)


def test_a_bundle_without_depth_leaves_normals_alone(tiny_bundle: ModelBundle) -> None:
    manifest = tiny_manifest().model_copy(
        update={'tasks': ('segmentation', 'normals'), 'depth': None}
    )
    bundle = ModelBundle(tiny_bundle.path, manifest)
    engine = open_engine(bundle, 'onnxruntime', threads=1)
    frame = CameraFrame(two_colours(48, 64, 0.5), 'rgb8')
    expected = Perceiver(engine, bundle).perceive(frame).normal.copy()

    prediction = Perceiver(engine, bundle).perceive(replace(frame, intrinsics=camera(48, 64, 500)))

    assert prediction.depth is None and not prediction.depth_calibrated
    np.testing.assert_array_equal(prediction.normal, expected)
