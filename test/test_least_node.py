"""The least node that the benchmark compares with sends back an answer for every picture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
sys.path.append(str(Path(__file__).parent.parent / 'benchmarks'))

from feed import Feed
from node import least_program

from mtl_perception.bundle import ModelBundle
from mtl_perception.ros.live import replay_through
from mtl_perception.ros.sources import open_source
from mtl_perception.shared import shared_folder


def test_the_least_node_answers_every_picture_with_its_stamp() -> None:
    bundle = ModelBundle.load('pvt_v2_b0')
    feed = Feed(open_source(shared_folder('samples') / 'room'), count=12, different=3)
    frames = []
    result = replay_through(
        least_program(bundle, 'auto'), feed, in_step=True, on_frame=frames.append
    )
    assert (result.frames_in, result.frames_out) == (12, 12)
    for frame in frames:
        assert frame.arrays['label'].shape == frame.arrays['depth'].shape == bundle.input_size
    assert len({frame.recorded.stamp_ns for frame in frames}) == 12
