"""Boxes and classes come out in the pixels of the picture, whatever the camera's size and turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_things import TASKS, box_size, paint_marker, write_things_bundle

from mtl_perception.engines import open_engine
from mtl_perception.frames import CameraFrame, Intrinsics
from mtl_perception.orientation import turn_boxes, turn_image, turn_prediction
from mtl_perception.perceiver import Perceiver


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('bundles')


def opened(folder: Path, tasks: tuple[str, ...] = TASKS, **options: object) -> Perceiver:
    bundle = write_things_bundle(folder / '_'.join(tasks), tasks)
    engine = open_engine(bundle, 'onnxruntime', threads=1)
    return Perceiver(engine, bundle, **options)


def wide_picture() -> np.ndarray:
    """Return 80x160 pixels: in 48x64 the picture is 32x64, with 8 rows of padding above."""
    picture = np.full((80, 160, 3), 20, np.uint8)
    paint_marker(picture, 'cup', (4, 8), 100, pixels_per_cell=10)
    return picture


def test_padding_is_taken_off_the_boxes(folder: Path) -> None:
    prediction = opened(folder).perceive(CameraFrame(wide_picture(), 'rgb8'))

    width, height = box_size(100)
    assert prediction.size == (32, 64)
    assert prediction.box_labels.tolist() == [1]
    assert prediction.box_scores[0] > 0.9
    np.testing.assert_allclose(
        prediction.boxes,
        [[34 - width / 2, 18 - height / 2, 34 + width / 2, 18 + height / 2]],
        atol=0.3,
    )
    assert prediction.class_scores.shape == (5,)


def test_boxes_in_the_cameras_own_pixels(folder: Path) -> None:
    frame = CameraFrame(wide_picture(), 'rgb8')
    small = opened(folder).perceive(frame).boxes.copy()

    large = opened(folder, output_size='camera').perceive(frame)

    assert large.size == (80, 160)
    np.testing.assert_allclose(large.boxes, small * 2.5, rtol=1e-6)


def test_boxes_are_cut_to_the_picture(folder: Path) -> None:
    picture = np.full((80, 160, 3), 20, np.uint8)
    paint_marker(picture, 'lamp', (0, 0), 255, pixels_per_cell=10)

    boxes = opened(folder).perceive(CameraFrame(picture, 'rgb8')).boxes

    np.testing.assert_allclose(boxes, [[0, 0, 34, 18]], atol=0.5)


def test_nothing_found_is_no_box(folder: Path) -> None:
    prediction = opened(folder).perceive(CameraFrame(np.zeros((48, 64, 3), np.uint8), 'rgb8'))

    assert prediction.boxes.shape == (0, 4)
    assert prediction.box_scores.shape == prediction.box_labels.shape == (0,)


def test_a_bundle_without_dense_tasks_works_alone(folder: Path) -> None:
    perceiver = opened(folder, ('detection', 'classification'))
    camera = Intrinsics(160, 80, 120.0, 120.0, 79.5, 39.5)

    prediction = perceiver.perceive(CameraFrame(wide_picture(), 'rgb8', camera))

    assert prediction.label is prediction.depth is prediction.normal is None
    assert prediction.size == (32, 64)
    assert len(prediction.boxes) == 1
    assert prediction.intrinsics.width == 64
    assert not prediction.depth_calibrated


def test_one_of_the_boxes_fields_brings_the_others(folder: Path) -> None:
    prediction = opened(folder).perceive(CameraFrame(wide_picture(), 'rgb8'), {'boxes'})

    assert len(prediction.boxes) == len(prediction.box_scores) == len(prediction.box_labels) == 1
    assert prediction.class_scores is prediction.depth is None


def test_frames_of_a_batch_keep_their_own_boxes(folder: Path) -> None:
    empty = CameraFrame(np.zeros((80, 160, 3), np.uint8), 'rgb8')
    full = CameraFrame(wide_picture(), 'rgb8')

    counts = [len(p.boxes) for p in opened(folder).perceive_batch([empty, full, empty])]

    assert counts == [0, 1, 0]


@pytest.mark.parametrize('degrees', [0, 90, 180, 270])
def test_boxes_turn_with_their_picture(degrees: int) -> None:
    picture = np.zeros((30, 50), np.uint8)
    picture[4:11, 20:45] = 1
    turned = turn_image(picture, degrees)
    rows, columns = (np.flatnonzero(turned.any(axis)) for axis in (1, 0))

    boxes = turn_boxes(np.array([[20, 4, 45, 11]], np.float32), picture.shape, degrees)

    expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert boxes.tolist() == [expected]


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_what_a_turned_camera_sees_is_turned_back(folder: Path, degrees: int) -> None:
    perceiver = opened(folder, ('detection',), output_size='camera')
    straight = perceiver.perceive(CameraFrame(wide_picture(), 'rgb8'))
    tilted = np.ascontiguousarray(turn_image(wide_picture(), degrees))

    seen = perceiver.perceive(CameraFrame(turn_image(tilted, -degrees), 'rgb8'))
    back = turn_prediction(seen, degrees)

    assert back.size == tilted.shape[:2]
    expected = turn_boxes(straight.boxes, (80, 160), degrees)
    np.testing.assert_allclose(back.boxes, expected, atol=1e-4)
