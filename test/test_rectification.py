"""What a distorting lens sees becomes what a straight, turned camera would see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from bag_writing import DEPTH, IMAGE, LABEL, SIZE, START_NS, K, bag_sink, scene
from typer.testing import CliRunner

from mtl_perception.bundle import ModelBundle
from mtl_perception.calibration import Calibration, CalibrationError
from mtl_perception.cli import app
from mtl_perception.frames import Intrinsics
from mtl_perception.recordings import RecordingError, open_recording
from mtl_perception.rectification import Lens

RAW = Intrinsics(160, 120, 90.0, 92.0, 82.0, 57.0)
STRAIGHT = Intrinsics(160, 120, 80.0, 80.0, 79.5, 59.5)
TURN = cv2.Rodrigues(np.array([0.05, -0.08, 0.03]))[0]
# A plane n X = 1 in the camera's frame: a wall that leans.
PLANE = np.array([0.1, -0.15, 0.5])
LENSES = {
    'plumb_bob': (-0.25, 0.08, 0.002, -0.001, 0.0),
    'equidistant': (0.05, -0.01, 0.003, -0.001),
}


def calibration(model: str) -> Calibration:
    return Calibration(RAW, STRAIGHT, LENSES[model], model, tuple(TURN.ravel()))


def raw_rays(model: str, size: tuple[int, int]) -> np.ndarray:
    """Return the ray (z = 1) of each pixel of the lens's picture, as OpenCV undistorts points."""
    scale = size[1] / RAW.width
    camera = RAW.scaled(scale, size[1], size[0])
    v, u = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float64)
    points = np.stack([u, v], axis=-1).reshape(-1, 1, 2)
    undistort = cv2.undistortPoints if model == 'plumb_bob' else cv2.fisheye.undistortPoints
    straight = undistort(points, camera.matrix, np.array(LENSES[model])).reshape(*size, 2)
    return np.concatenate([straight, np.ones((*size, 1))], axis=-1)


def straight_rays(size: tuple[int, int]) -> np.ndarray:
    camera = STRAIGHT.scaled(size[1] / STRAIGHT.width, size[1], size[0])
    v, u = np.mgrid[0 : size[0], 0 : size[1]]
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    return np.stack([x, y, np.ones_like(x)], axis=-1)


@pytest.mark.parametrize('size', [(120, 160), (240, 320)])
@pytest.mark.parametrize('model', LENSES)
def test_depth_labels_and_normals_are_those_of_the_straight_camera(
    model: str, size: tuple[int, int]
) -> None:
    rays = raw_rays(model, size)
    depth = (1 / (rays @ PLANE)).astype(np.float32)
    side = (rays[..., 0] > 0.1).astype(np.uint8)
    normal = -PLANE / np.linalg.norm(PLANE)

    lens = Lens(calibration(model))
    straight = lens.depth(depth)
    labels = lens.labels(side)
    normals = lens.normals(np.broadcast_to(normal, (*size, 3)).astype(np.float32))

    shown = labels != 255
    assert shown.mean() > 0.6
    assert np.array_equal(shown, straight > 0)
    assert np.array_equal(shown, np.abs(normals).sum(axis=-1) > 0)
    seen = straight_rays(size)
    expected = 1 / (seen @ (TURN @ PLANE))
    assert np.abs(straight / expected - 1)[shown].max() < 0.02
    assert np.abs(straight / expected - 1)[shown].mean() < 0.004
    in_camera = seen @ TURN  # R transposed, for rows
    right = in_camera[..., 0] / in_camera[..., 2] > 0.1
    assert (labels == right)[shown].mean() > 0.99
    assert np.abs(normals[shown] - TURN @ normal).max() < 1e-6


@pytest.mark.parametrize('model', LENSES)
def test_boxes_surround_what_they_surrounded(model: str) -> None:
    boxes = np.array([[30, 20, 70, 60], [90, 50, 150, 110]], np.float32)
    lens = Lens(calibration(model))
    for box, straight in zip(boxes, lens.boxes(boxes), strict=True):
        x0, y0, x1, y1 = box.astype(int)
        blob = np.zeros((RAW.height, RAW.width), np.uint8)
        blob[y0:y1, x0:x1] = 1
        rows, columns = np.nonzero(lens.labels(blob, unknown=0))
        around = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert straight == pytest.approx(around, abs=1.5)


def test_a_box_that_is_not_shown_has_no_area() -> None:
    narrow = Calibration(
        RAW, Intrinsics(160, 120, 400.0, 400.0, 79.5, 59.5), (-0.1,) + (0.0,) * 4, 'plumb_bob'
    )
    x0, y0, x1, y1 = Lens(narrow).boxes(np.array([[2, 2, 12, 12]], np.float32))[0]
    assert (x1 - x0) * (y1 - y0) == 0


def test_a_pixel_mixed_with_what_is_not_valid_is_not_shown() -> None:
    lens = Lens(calibration('plumb_bob'))
    valid = np.ones((120, 160), np.uint8)
    valid[:, 80:] = 0
    shown = lens.shown(valid)
    assert shown is not None
    assert 0 < shown.sum() <= (lens.labels(valid, unknown=0) == 1).sum()
    assert not (shown.astype(bool) & (lens.labels(valid, unknown=0) == 0)).any()


@pytest.mark.parametrize(
    ('model', 'coefficients'),
    [('double_sphere', 4), ('plumb_bob', 3), ('', 5), ('equidistant', 5)],
)
def test_an_unknown_lens_is_named(model: str, coefficients: int) -> None:
    with pytest.raises(CalibrationError, match=f"'{model}' with {coefficients} coefficients"):
        Lens(Calibration(RAW, STRAIGHT, (0.1,) * coefficients, model))


P = (30.0, 0.0, 31.5, 0.0, 0.0, 30.0, 23.5, 0.0, 0.0, 0.0, 1.0, 0.0)
D = (-0.3, 0.1, 0.0, 0.0, 0.0)


def write_distorted(path: Path, model: str = 'plumb_bob') -> Path:
    shown = scene(0)
    with bag_sink(path) as sink:
        sink.camera_info('/camera/camera_info', START_NS, d=D, p=P, model=model)
        sink.image(IMAGE, shown.rgb, 'rgb8', START_NS)
        sink.png(LABEL, shown.label, START_NS)
        sink.png(DEPTH, shown.depth_mm, START_NS)
    return path


def test_a_bags_pictures_and_truths_are_rectified_on_request(tmp_path: Path) -> None:
    path = write_distorted(tmp_path / 'bag')
    raw = open_recording(path)
    (frame,) = raw.frames()
    assert frame.frame.intrinsics.fx == K[0]
    assert np.array_equal(frame.truth['label'].at(*SIZE), scene(0).label)
    assert any('is distorted' in remark for remark in raw.remarks)

    recording = open_recording(path, rectify=True)
    (frame,) = recording.frames()
    camera, shown = frame.frame.intrinsics, scene(0)
    assert (camera.fx, camera.cx) == (P[0], P[2])
    assert recording.remarks == [f'{IMAGE} and its truths were rectified']
    maps = cv2.initUndistortRectifyMap(
        np.array(K).reshape(3, 3), np.array(D), None, camera.matrix, SIZE[::-1], cv2.CV_32FC1
    )
    expected = cv2.remap(shown.rgb, *maps, cv2.INTER_LINEAR)
    assert np.abs(frame.frame.pixels.astype(int) - expected).mean() < 2
    nearest = cv2.remap(shown.label, *maps, cv2.INTER_NEAREST, borderValue=255)
    hidden = frame.frame.valid == 0
    label = frame.truth['label'].at(*SIZE)
    assert hidden[0, 0]
    assert (label[hidden] == 255).all()
    assert (label == nearest)[~hidden].mean() > 0.97
    depth = frame.truth['depth'].at(*SIZE)
    assert (depth[hidden] == 0).all()
    assert np.median(depth[~hidden]) == pytest.approx(2.0)


@pytest.mark.parametrize('rectify', [False, True])
def test_a_recorded_evaluation_gives_the_same_figures_again(
    tiny_bundle: ModelBundle, tmp_path: Path, rectify: bool
) -> None:
    def evaluate(path: Path, *more: str | Path) -> dict[str, Any]:
        target = tmp_path / 'results.json'
        how = ['--bundle', tiny_bundle.path, '--engine', 'onnxruntime', '--json', target, *more]
        result = CliRunner().invoke(app, ['evaluate', str(path), '--quiet', *map(str, how)])
        assert result.exit_code == 0, result.output
        return json.loads(target.read_text())

    path, recorded = write_distorted(tmp_path / 'bag'), tmp_path / 'recorded.mcap'
    first = evaluate(path, '--record', recorded, *['--rectify'] * rectify)
    second = evaluate(recorded)
    assert first['depth']['pixels'] > 1000
    for task in ('segmentation', 'depth', 'normals'):
        assert first[task] == second[task]
    # What was rectified is not distorted any more; what was not still can be rectified.
    calibration = next(open_recording(recorded).frames()).calibration
    assert calibration.distortion == ((0.0,) * 5 if rectify else D)
    assert calibration.rectified.fx == P[0]


def test_pictures_of_an_unknown_lens_are_counted(tmp_path: Path) -> None:
    path = write_distorted(tmp_path / 'bag', 'double_sphere')
    recording = open_recording(path, rectify=True)
    assert not list(recording.frames())
    assert recording.skipped == {f'{IMAGE}: pictures that cannot be rectified': 1}
    assert any("'double_sphere'" in remark for remark in recording.remarks)


def test_folders_hold_no_distortion(tmp_path: Path) -> None:
    (tmp_path / 'rgb').mkdir()
    with pytest.raises(RecordingError, match='only bags hold the distortion'):
        open_recording(tmp_path, rectify=True)
