"""A short soak: what `make soak` does for an hour, for some seconds."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'benchmarks'))

from feed import Feed
from soak import Watch, complaints

from mtl_perception.ros.live import LiveResult, perception_program, replay_through
from mtl_perception.ros.sources import open_source


@pytest.fixture
def feed(tmp_path: Path) -> Feed:
    """Return five seconds of two pictures in turn."""
    for index in range(2):
        cv2.imwrite(str(tmp_path / f'{index}.png'), np.full((48, 64, 3), 100 * index, np.uint8))
    return Feed(open_source(tmp_path), fps=20, count=100)


def test_memory_and_descriptors_stay_and_every_picture_is_accounted_for(feed, tiny_bundle):
    watch = Watch(period_s=0.1)
    program = perception_program(tiny_bundle, {'engine': 'onnxruntime', 'threads': 1})
    result = replay_through(program, feed, on_start=watch.start)
    # From the first picture on: loading the bundle is no leak.
    assert result.frames_in == 100 and result.frames_out > 0
    began = watch.times_s[-1] - 5
    kept = [i for i, moment in enumerate(watch.times_s) if moment > began]
    watch.times_s = [watch.times_s[i] for i in kept]
    watch.memory_mib = [watch.memory_mib[i] for i in kept]
    watch.descriptors = [watch.descriptors[i] for i in kept]
    assert complaints(result, watch.growth()) == []


def test_a_process_is_held_up_once_and_goes_on():
    with subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']) as child:
        process = psutil.Process(child.pid)
        watch = Watch(period_s=0.05, hold_up_after_s=0.3)
        watch.start(child.pid)
        deadline = time.monotonic() + 30
        while process.status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.status() == psutil.STATUS_STOPPED
        seen = len(watch.times_s)
        while len(watch.times_s) < seen + 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(watch.times_s) >= seen + 20
        assert process.status() != psutil.STATUS_STOPPED
        child.kill()


def test_growth_and_loss_are_complained_about():
    watch = Watch(period_s=1.0)
    watch.times_s = [float(i) for i in range(100)]
    watch.memory_mib = [100 + 0.5 * i for i in range(100)]
    watch.descriptors = [20 + (i > 60) for i in range(100)]
    growth = watch.growth()
    assert growth['memory_mib'] > 30 and growth['descriptors'] == 1
    result = LiveResult(rate=1, frames_in=10, frames_out=7, dropped={'superseded': 2})
    first, second, third = complaints(result, growth)
    assert first.startswith('memory grew by') and second.startswith('1 more descriptors')
    assert third.startswith('1 pictures')
    assert complaints(LiveResult(rate=1), {'memory_mib': 4.9, 'descriptors': 0}) == []


def test_a_feed_repeats_its_pictures_at_the_asked_size(feed):
    messages = list(feed.messages())
    assert len(messages) == 200
    assert [message.topic.name for message in messages[:2]] == [
        '/camera/camera_info',
        '/camera/image',
    ]
    assert messages[1].data != messages[3].data and messages[1].data == messages[5].data
    assert len(messages[1].data) > 640 * 480 * 3
    assert messages[-1].time_ns - messages[0].time_ns == 99 * 50_000_000
