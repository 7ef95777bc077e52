"""Recordings go through the real node over DDS, and every picture is accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bag_writing import PERIOD_NS, bag_sink, scene
from typer.testing import CliRunner

from mtl_perception.cli import app
from mtl_perception.datasets import PictureFolder
from mtl_perception.engines import open_engine
from mtl_perception.frames import CameraFrame
from mtl_perception.perceiver import Perceiver
from mtl_perception.ros.collector import lost_elsewhere
from mtl_perception.ros.live import (
    LiveError,
    LiveFrame,
    LiveResult,
    percentiles,
    perception_program,
    replay_live,
    replay_through,
)
from mtl_perception.ros.sources import open_source
from mtl_perception.ros.sources.folder import START_NS

# The same numbers in the node's process and in this one.
EXACT = {'engine': 'onnxruntime', 'precision': 'float32', 'threads': 1}


@pytest.fixture
def sequence(nyuv2: Path) -> Path:
    folder = nyuv2.parent / 'rgbd_sequence_7scenes'
    if not folder.is_dir():
        pytest.skip(f'{folder} is absent: set MTL_DATA to the folder that holds it')
    return folder


def test_every_picture_of_an_rgbd_sequence_comes_out(sequence, tiny_bundle):
    frames: list[LiveFrame] = []
    result = replay_live(
        sequence, tiny_bundle.path, in_step=True, parameters=EXACT, on_frame=frames.append
    )
    assert (result.frames_in, result.frames_out, result.dropped) == (30, 30, {})
    recorded = [frame.recorded.recorded_stamp_ns for frame in frames]
    assert recorded == [START_NS + index * round(1e9 / 30) for index in range(30)]
    for frame in frames:
        assert frame.frame_id == 'camera_optical_frame'
        assert frame.latency_ms > 0
        assert {name: (a.dtype, a.shape) for name, a in frame.arrays.items()} == {
            'label': (np.uint8, (48, 64)),
            'depth': (np.float32, (48, 64)),
            'normal': (np.float32, (48, 64, 3)),
        }
        assert frame.arrays['label'].max() < 13
        assert (frame.arrays['depth'] > 0).all()
        np.testing.assert_allclose(np.linalg.norm(frame.arrays['normal'], axis=-1), 1, atol=1e-4)
    summary = result.summary()
    assert summary['engine'] == 'onnxruntime' and summary['precision'] == 'float32'
    assert 0 < summary['latency_ms']['p50'] <= summary['latency_ms']['p99']
    assert summary['memory_mib'] > 0


def test_what_the_node_publishes_is_what_the_perceiver_says(nyuv2, tiny_bundle):
    frames: list[LiveFrame] = []
    result = replay_live(
        nyuv2,
        tiny_bundle.path,
        split='devtest',
        limit=4,
        in_step=True,
        parameters=EXACT,
        on_frame=frames.append,
    )
    assert result.frames_out == 4
    engine = open_engine(tiny_bundle, 'onnxruntime', precision='float32', threads=1)
    perceiver = Perceiver(engine, tiny_bundle)
    pictures = PictureFolder(nyuv2, 'devtest', want=())
    for index, frame in enumerate(frames):
        picture = pictures.read(index)
        expected = perceiver.perceive(CameraFrame(picture.rgb, 'rgb8', picture.intrinsics))
        np.testing.assert_array_equal(frame.arrays['label'], expected.label)
        np.testing.assert_array_equal(frame.arrays['depth'], expected.depth)
        np.testing.assert_array_equal(frame.arrays['normal'], expected.normal)
    engine.close()


def test_the_limit_shortens_the_replay_of_a_bag(room_bag, tiny_bundle):
    result = replay_live(room_bag, tiny_bundle.path, limit=5, in_step=True, parameters=EXACT)
    assert (result.frames_in, result.frames_out) == (5, 5)


@pytest.mark.parametrize(
    ('images', 'topic'),
    [((), '/camera/color/image_raw'), (('/camera/infra1/image',), '/camera/infra1/image')],
)
def test_the_node_gets_its_camera_beside_other_pictures(tmp_path, tiny_bundle, images, topic):
    with bag_sink(tmp_path / 'bag') as sink:
        for index in range(5):
            stamp, shown = START_NS + index * PERIOD_NS, scene(index)
            sink.image('/camera/infra1/image', shown.label, 'mono8', stamp)
            sink.png('/camera/color/image_raw/compressed', shown.rgb, stamp)
            sink.image('/camera/color/image_raw', shown.rgb, 'rgb8', stamp)
            # As if it were what the node has to say of the pictures that are played now.
            sink.image('/perception/segmentation/mask', shown.label, 'mono8', stamp)
    played, frames = [], []
    result = replay_live(
        tmp_path / 'bag',
        tiny_bundle.path,
        images=images,
        in_step=True,
        parameters=EXACT,
        on_frame=frames.append,
        on_picture=played.append,
    )
    assert (result.frames_in, result.frames_out, result.dropped) == (5, 5, {})
    assert {frame.recorded.topic for frame in frames} == {topic}
    assert '/perception/segmentation/mask' not in {picture.topic for picture in played}


def test_evaluate_plays_the_camera_that_it_evaluates(tmp_path, tiny_bundle):
    with bag_sink(tmp_path / 'bag') as sink:
        for index in range(4):
            stamp = START_NS + index * PERIOD_NS
            sink.image('/front/image', scene(index).rgb, 'rgb8', stamp)
            if index % 2:
                sink.image('/rear/image', scene(index).rgb, 'rgb8', stamp)
    target = tmp_path / 'results.json'
    arguments = ['--live', '--image', '/rear/image', '--rotate', '180', '--quiet']
    command = ['evaluate', str(tmp_path / 'bag'), '--bundle', str(tiny_bundle.path), *arguments]
    result = CliRunner().invoke(app, [*command, '--json', str(target)])
    assert result.exit_code == 0, result.output
    document = json.loads(target.read_text())
    assert document['frames'] == document['live']['frames_in'] == 2


def test_pictures_that_come_too_fast_are_counted(sequence, tiny_bundle):
    # A limit below the camera's rate makes the node drop on machines of any speed.
    limited = EXACT | {'max_rate': 6.0}
    result = replay_live(sequence, tiny_bundle.path, parameters=limited)
    assert result.frames_in == 30
    assert 0 < result.frames_out < 30
    assert result.dropped['rate_limited'] > 0
    assert result.frames_out + sum(result.dropped.values()) == 30
    summary = result.summary()
    assert summary['dropped'] == 30 - result.frames_out
    assert summary['dropped_by_reason'] == result.dropped


def test_a_node_is_fed_as_fast_as_it_takes(room_bag, tiny_bundle):
    source = open_source(room_bag)
    program = perception_program(tiny_bundle, EXACT)

    result = replay_through(program, source, rate=1e6, in_flight=2)

    # A busy machine may send the third picture before the node has taken the second.
    assert result.frames_in == 90
    assert result.frames_out >= 45
    assert result.frames_out + sum(result.dropped.values()) == 90
    assert result.dropped.keys() <= {'superseded'}


def test_drops_after_the_last_published_picture_are_known_by_their_reason(sequence, tiny_bundle):
    limited = EXACT | {'max_rate': 0.1}

    result = replay_live(sequence, tiny_bundle.path, parameters=limited)

    # The second one may use the time before the first.
    assert result.frames_out in (1, 2)
    assert result.dropped['rate_limited'] > 0
    assert result.dropped.keys() <= {'rate_limited', 'superseded'}
    assert sum(result.dropped.values()) == 30 - result.frames_out


def test_a_node_that_publishes_nothing_still_tells_why(sequence, tiny_bundle):
    result = replay_live(sequence, tiny_bundle.path, parameters=EXACT | {'max_pixels': 1024})

    assert (result.frames_in, result.frames_out) == (30, 0)
    assert result.dropped.keys() <= {'too_large', 'superseded'} and result.dropped['too_large'] > 0
    assert sum(result.dropped.values()) == 30


def test_a_node_that_cannot_start_is_quoted(sequence, tiny_bundle):
    with pytest.raises(LiveError, match=r'the node ended with code .*engine'):
        replay_live(sequence, tiny_bundle.path, parameters={'engine': 'steam'})


def test_percentiles_of_nothing_are_null():
    assert percentiles([]) == {'p50': None, 'p95': None, 'p99': None}
    assert percentiles([float(i) for i in range(101)]) == {'p50': 50, 'p95': 95, 'p99': 99}


@pytest.mark.parametrize(
    ('out', 'counted', 'received', 'published', 'expected'),
    [
        (10, {}, 10, 10, {}),
        (6, {'superseded': 2}, 8, 6, {'not_received': 2}),
        (5, {'superseded': 1}, 8, 6, {'incomplete': 1, 'unfinished': 1, 'not_received': 2}),
        # The last status is still on its way.
        (10, {}, 9, 9, {}),
    ],
)
def test_every_loss_has_its_place(out, counted, received, published, expected):
    result = LiveResult(rate=1, frames_in=10, frames_out=out, dropped=counted)
    assert lost_elsewhere(result, received, published) == expected
    assert out + sum(counted.values()) + sum(expected.values()) == 10
