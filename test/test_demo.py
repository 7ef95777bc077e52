"""What the demo leaves behind can be looked at."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from mtl_perception.bundle import nyu13_classes
from mtl_perception.ros.demo import app
from mtl_perception.showcase import Moment, Showcase, depth_range, write_video

FRAMES = 6


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Return a folder of pictures of one colour each."""
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for index in range(FRAMES):
        picture = np.full((60, 80, 3), (40 * index, 90, 200 - 30 * index), np.uint8)
        cv2.imwrite(str(folder / f'{index}.png'), picture)
    return folder


def test_the_demo_writes_figures_pictures_video_and_a_page(recording, tiny_bundle, tmp_path):
    out = tmp_path / 'demo'
    arguments = ['--recording', str(recording), '--bundle', str(tiny_bundle.path)]
    arguments += ['--out', str(out), '--in-step', '--engine', 'onnxruntime']
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert 'stamp to publish' in result.output

    summary = json.loads((out / 'summary.json').read_text())
    assert summary['frames_in'] == summary['frames_out'] == FRAMES
    assert summary['dropped'] == 0 and summary['dropped_by_reason'] == {}
    assert summary['engine'] == 'onnxruntime' and summary['bundle'] == tiny_bundle.name
    assert summary['latency_ms'].keys() == {'p50', 'p95', 'p99'}
    assert summary['fps'] > 0

    strip = cv2.imread(str(out / 'strip.png'))
    # Four moments in rows of camera, segmentation, depth and normals; the second one is picture 2.
    assert strip.shape[0] == 4 * 300 + 3 * 4 and strip.shape[1] > 4 * 400
    np.testing.assert_array_equal(strip[304 + 150, 200], (80, 90, 140))

    video = cv2.VideoCapture(str(out / summary['video']))
    pictures = []
    while (read := video.read())[0]:
        pictures.append(read[1])
    assert len(pictures) == FRAMES
    assert np.abs(pictures[3][150, 200].astype(int) - (120, 90, 110)).max() < 12

    # Plain pictures know no truth; the evaluation says what can be said without.
    assert summary['accuracy'] == {}
    assert json.loads((out / 'evaluation.json').read_text())['frames'] == FRAMES
    assert (out / 'evaluation.html').is_file()

    page = (out / 'report.html').read_text()
    assert 'href="evaluation.html"' in page
    assert 'data:image/png;base64,' in page and 'data:video/mp4;base64,' in page
    assert 'src="http' not in page and 'href="http' not in page


def test_a_missing_recording_is_said_in_one_sentence(tiny_bundle, tmp_path):
    arguments = ['--recording', str(tmp_path / 'none'), '--bundle', str(tiny_bundle.path)]
    result = CliRunner().invoke(app, [*arguments, '--out', str(tmp_path / 'out')])
    assert result.exit_code == 2
    assert 'none does not exist' in result.output and 'Traceback' not in result.output


def test_absent_tasks_leave_no_gap():
    rgb = np.full((30, 40, 3), 200, np.uint8)
    showcase = Showcase([], 1.0, 5.0)
    depth_only = Moment(rgb, depth=np.full((30, 40), 2.0, np.float32))
    assert len(showcase.panels(depth_only)) == 2
    everything = Moment(
        rgb,
        label=np.zeros((15, 20), np.uint8),
        depth=np.full((15, 20), 2.0, np.float16),
        normal=np.full((15, 20, 3), (0, 0, -127), np.int8),
    )
    painter = Showcase(nyu13_classes(), 1.0, 5.0)
    camera, segmentation, _, normals = painter.panels(everything)
    assert camera.shape == segmentation.shape == normals.shape == (300, 400, 3)
    assert (normals[150, 200] == (128, 128, 255)).all()


def test_the_depth_scale_spans_what_is_there():
    depth = np.linspace(1.1, 4.2, 20_000).reshape(100, 200)
    depth[0, :50] = np.nan
    depth[1, :50] = 0
    assert depth_range([depth]) == (1.0, 4.5)
    assert depth_range([np.full((5, 5), np.nan)]) == (0.5, 10.0)


def test_no_pictures_make_no_video(tmp_path):
    assert write_video(tmp_path / 'video', [], 10) is None
    assert list(tmp_path.iterdir()) == []
