"""Several cameras, their time and their rates: every frame is accounted for."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticStatus
from node_rig import (
    Rig,
    camera_info,
    image_message,
    node_of,
    pixels_of,
    predict,
    textured,
)
from rclpy.subscription import Subscription
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from mtl_perception.bundle import ModelBundle
from mtl_perception.engines import EngineError
from mtl_perception.frames import Prediction
from mtl_perception.msg import PerceptionStatus
from mtl_perception.perceiver import Perceiver
from mtl_perception.ros.camera import Camera, Health

pytestmark = pytest.mark.usefixtures('ros_domain')


def wait_until_done(rig: Rig, received: int, camera: int = 0) -> dict[str, int]:
    """Return the drops once so many frames arrived and none is under way."""

    def done() -> bool:
        counts = rig.node.cameras[camera].counter.snapshot()
        return counts.received == received and counts.under_way == 0

    rig.wait(done, f'end of {received} frames')
    counts = rig.node.cameras[camera].counter.snapshot()
    assert counts.received == counts.published + sum(counts.dropped.values())
    return dict(counts.dropped)


def hold_inference(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[int]]:
    """Let every inference wait for an event; return it and the batch sizes so far."""
    gate, sizes = threading.Event(), []
    original = Perceiver.perceive_batch

    def held(self: Perceiver, frames: Any, outputs: Any = None) -> list[Prediction]:
        sizes.append(len(frames))
        assert gate.wait(60)
        return original(self, frames, outputs)

    monkeypatch.setattr(Perceiver, 'perceive_batch', held)
    return gate, sizes


# Rates and time


def test_the_newest_frame_wins(tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, _ = hold_inference(monkeypatch)
    with node_of(tiny_bundle) as rig:
        camera = rig.node.cameras[0]
        stamps = []
        for number in range(4):
            stamps.append(rig.deliver(image_message(textured())))
            if number == 0:
                rig.wait(lambda: not camera.is_waiting, 'start of the inference')
        gate.set()
        rig.wait_for('/perception/status', stamps[-1])
        assert wait_until_done(rig, 4) == {'superseded': 2}
        published = [status.header.stamp for status in rig.received['/perception/status']]
    assert published == [stamps[0], stamps[3]]


def test_the_executor_stays_free_during_an_inference(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, sizes = hold_inference(monkeypatch)
    with node_of(tiny_bundle) as rig:
        stamp = rig.deliver(image_message(textured()))
        rig.wait(lambda: sizes == [1], 'start of the inference')
        assert rig.set(max_rate=5.0) == ['']
        assert rig.diagnosis('perception: engine', having='active')
        gate.set()
        rig.wait_for('/perception/status', stamp)


def test_a_busy_executor_holds_no_frame_up(tiny_bundle: ModelBundle) -> None:
    gate, busy = threading.Event(), threading.Event()

    def hold_executor() -> None:
        busy.set()
        assert gate.wait(60)

    with node_of(tiny_bundle) as rig:
        rig.publisher('/image', Image)
        rig.node.executor.create_task(hold_executor)
        assert busy.wait(60)
        stamps = [rig.deliver(image_message(textured())) for _ in range(2)]
        rig.wait_for('/perception/status', stamps[-1])
        gate.set()


def test_frames_that_wait_for_a_busy_receiver_are_counted(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, busy = threading.Event(), threading.Event()
    original = Camera.receive

    def hold(self: Camera, subscription: Subscription) -> None:
        busy.set()
        assert gate.wait(60)
        original(self, subscription)

    monkeypatch.setattr(Camera, 'receive', hold)
    with node_of(tiny_bundle) as rig:
        stamps = [rig.send(image_message(textured())) for _ in range(4)]
        assert busy.wait(60)
        time.sleep(0.5)  # for the last one to arrive
        gate.set()
        rig.wait_for('/perception/status', stamps[-1])
        assert wait_until_done(rig, 4) == {'superseded': 3}


def test_max_rate_spares_the_engine(tiny_bundle: ModelBundle) -> None:
    with node_of(tiny_bundle, max_rate=1.0) as rig:
        rig.perceive(image_message(textured()))
        rig.perceive(image_message(textured()))
        for _ in range(3):
            rig.deliver(image_message(textured()))
        assert wait_until_done(rig, 5).get('rate_limited', 0) >= 2


def test_frames_that_are_too_old_are_dropped(tiny_bundle: ModelBundle) -> None:
    with node_of(tiny_bundle, max_age=5.0, stale_after=60.0) as rig:
        past = rig.client.get_clock().now().nanoseconds / 1e9 - 60
        rig.send(image_message(textured()), stamp_s=past)
        rig.wait(lambda: rig.dropped() == {'too_old': 1}, 'dropped frame')
        failing = rig.diagnosis(having='the last frame was dropped: its stamp is 60')
        assert failing.level == DiagnosticStatus.ERROR
        status = rig.perceive(image_message(textured()))
    assert status.health == Health.UNCALIBRATED


def test_time_may_go_back_as_in_a_looping_recording(tiny_bundle: ModelBundle) -> None:
    with node_of(tiny_bundle, use_sim_time=True) as rig:
        clock = rig.client.create_publisher(Clock, '/clock', 10)
        rig.wait(lambda: clock.get_subscription_count() > 0, 'reader of /clock')
        for seconds in (100.0, 100.1, 50.0, 50.1):
            now = rig.stamp(seconds + 0.02)
            clock.publish(Clock(clock=now))
            rig.wait(lambda now=now: rig.node.get_clock().now().to_msg() == now, 'simulated time')
            status = rig.perceive(image_message(textured()), stamp_s=seconds)
            assert status.latency_ms == pytest.approx(20.0, abs=0.1)
        assert wait_until_done(rig, 4) == {}


def test_a_stamp_of_zero_has_no_latency(tiny_bundle: ModelBundle) -> None:
    with node_of(tiny_bundle) as rig:
        publisher = rig.publisher('/image', Image)
        publisher.publish(image_message(textured()))
        status = rig.wait_for('/perception/status', Time())
    assert status.latency_ms != status.latency_ms


def test_silence_is_reported_though_simulated_time_stands_still(
    tiny_bundle: ModelBundle,
) -> None:
    with node_of(tiny_bundle, use_sim_time=True, stale_after=0.2) as rig:
        assert rig.diagnosis(having='NO_INPUT').level == b'\x02'
        rig.perceive(image_message(textured()))
        assert 'nothing has arrived on /image for' in rig.diagnosis(having='STALE').message


def test_an_overloaded_node_says_so(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, _ = hold_inference(monkeypatch)
    with node_of(tiny_bundle) as rig:
        camera = rig.node.cameras[0]

        def is_overloaded() -> bool:
            rig.deliver(image_message(textured()))
            return camera.health(time.monotonic_ns())[0] == Health.OVERLOADED

        rig.wait(is_overloaded, 'overload')
        gate.set()
        counts = camera.counter.snapshot()
        assert wait_until_done(rig, counts.received) == {'superseded': counts.received - 2}


def test_a_failing_engine_costs_frames_but_not_the_node(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Perceiver.perceive_batch
    failing = [True]

    def sometimes(self: Perceiver, frames: Any, outputs: Any = None) -> list[Prediction]:
        if failing.pop() if failing else False:
            raise EngineError('the device is gone')
        return original(self, frames, outputs)

    monkeypatch.setattr(Perceiver, 'perceive_batch', sometimes)
    with node_of(tiny_bundle, stale_after=60.0) as rig:
        rig.send(image_message(textured()))
        rig.wait(lambda: rig.dropped() == {'engine_failed': 1}, 'dropped frame')
        told = rig.diagnosis(having='the device is gone')
        assert told.level == DiagnosticStatus.ERROR
        assert rig.perceive(image_message(textured())).published == 1


def test_frames_that_wait_at_deactivation_are_counted(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, _ = hold_inference(monkeypatch)
    with node_of(tiny_bundle) as rig:
        camera = rig.node.cameras[0]
        for number in range(2):
            rig.deliver(image_message(textured()))
            if number == 0:
                rig.wait(lambda: not camera.is_waiting, 'start of the inference')
        threading.Timer(0.3, gate.set).start()
        rig.node.trigger_deactivate()
        assert wait_until_done(rig, 2) == {'deactivated': 1}


# Several cameras


def two_cameras(bundle: ModelBundle, **parameters: Any) -> Any:
    return node_of(bundle, cameras=['front', 'rear'], **parameters)


def test_frames_of_several_cameras_share_an_inference(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, sizes = hold_inference(monkeypatch)
    gate.set()
    with two_cameras(tiny_bundle, batch_deadline=0.5) as rig:
        for name in ('front', 'rear'):
            rig.calibrate(camera_info(), f'/{name}/camera_info')
            rig.publisher(f'/{name}/image', Image)
        statuses: list[PerceptionStatus] = []

        def have_shared() -> bool:
            """Send a pair; the node waits for the second once it knows how often frames come."""
            stamps = {
                name: rig.send(image_message(textured()), f'/{name}/image')
                for name in ('front', 'rear')
            }
            statuses[:] = [
                rig.wait_for(f'/perception/{name}/status', stamp) for name, stamp in stamps.items()
            ]
            time.sleep(0.1)
            return 2 in sizes

        rig.wait(have_shared, 'inference of two frames')
    assert [status.camera for status in statuses] == ['front', 'rear']
    assert all(status.depth_calibrated for status in statuses)


def test_frames_that_fail_together_are_each_their_own_cameras(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, sizes = hold_inference(monkeypatch)
    gate.set()
    held = Perceiver.perceive_batch

    def single_only(self: Perceiver, frames: Any, outputs: Any = None) -> list[Prediction]:
        found = held(self, frames, outputs)
        if len(frames) > 1:
            raise EngineError('one by one, please')
        return found

    monkeypatch.setattr(Perceiver, 'perceive_batch', single_only)
    pictures = {'front': textured(seed=1), 'rear': textured(seed=2)}
    with two_cameras(tiny_bundle, batch_deadline=0.5) as rig:
        for name in pictures:
            rig.calibrate(camera_info(), f'/{name}/camera_info')
            rig.publisher(f'/{name}/image', Image)
            rig.collect(f'/perception/{name}/depth/image', Image)
        depths: dict[str, np.ndarray] = {}

        def have_shared() -> bool:
            stamps = {
                name: rig.send(image_message(pixels), f'/{name}/image')
                for name, pixels in pictures.items()
            }
            for name, stamp in stamps.items():
                message = rig.wait_for(f'/perception/{name}/depth/image', stamp)
                depths[name] = pixels_of(message)
            time.sleep(0.1)
            return 2 in sizes

        rig.wait(have_shared, 'inference of two frames')
    for name, pixels in pictures.items():
        np.testing.assert_allclose(depths[name], predict(tiny_bundle, pixels).depth, rtol=1e-5)


def test_a_dead_camera_delays_nobody(tiny_bundle: ModelBundle) -> None:
    # A frame that waited for the dead camera would wait longer than the test does.
    with two_cameras(tiny_bundle, batch_deadline=600.0) as rig:
        for name in ('front', 'rear'):
            rig.publisher(f'/{name}/image', Image)
        statuses = []
        for number in range(20):
            stamp = rig.send(image_message(textured()), '/front/image')
            if number < 5:
                rig.deliver(image_message(textured()), '/rear/image')
            statuses.append(rig.wait_for('/perception/front/status', stamp))
            time.sleep(0.1)
        assert statuses[-1].health == Health.UNCALIBRATED
        assert rig.diagnosis('perception: camera rear', having='STALE')
        # The camera comes back, with another resolution.
        stamp = rig.send(image_message(textured(72, 128)), '/rear/image')
        status = rig.wait_for('/perception/rear/status', stamp)
        assert (status.output_width, status.output_height) == (64, 36)
        assert wait_until_done(rig, 20, camera=0) == {}
        assert set(wait_until_done(rig, 6, camera=1)) <= {'superseded'}


def test_four_cameras_account_for_every_frame(tiny_bundle: ModelBundle) -> None:
    """At 10 Hz each, while one dies, comes back and has another resolution then."""
    names = ['front', 'left', 'rear', 'right']
    sent = dict.fromkeys(names, 0)
    with node_of(tiny_bundle, cameras=names) as rig:
        for name in names:
            rig.publisher(f'/{name}/image', Image)
        for number in range(24):
            for name in names:
                if name == 'rear' and 6 <= number < 14:
                    continue
                size = (72, 128) if name == 'rear' and number >= 14 else (96, 128)
                rig.send(image_message(textured(*size)), f'/{name}/image')
                sent[name] += 1
            time.sleep(0.1)
        for index, name in enumerate(names):
            dropped = wait_until_done(rig, sent[name], camera=index)
            assert set(dropped) <= {'superseded'}
        statuses = rig.received['/perception/rear/status']
        rig.wait(lambda: statuses[-1].received == sent['rear'], 'last status')
        last = statuses[-1]
    assert (last.input_width, last.input_height) == (128, 72)
    assert last.received == last.published + sum(last.dropped)


def test_settings_of_one_camera(tiny_bundle: ModelBundle) -> None:
    with two_cameras(tiny_bundle, rotate=90, rear__rotate=180) as rig:
        front, rear = rig.node.cameras
        assert (front.settings.rotate, rear.settings.rotate) == (90, 180)
        assert rig.set(rotate=270) == ['']
        assert (front.settings.rotate, rear.settings.rotate) == (270, 180)
        rig.wait(lambda: rig.node.get_parameter('front.rotate').value == 270, 'shown value')
        assert rig.set(max_rate=50.0) == ['']
        assert (front.settings.rotate, rear.settings.rotate) == (270, 180)
        assert rig.set(front__rotate=0) == ['']
        assert rig.set(rotate=90) == ['']
        assert (front.settings.rotate, rear.settings.rotate) == (0, 180)


# Other processes

CAMERA = textwrap.dedent(
    """
    import array, sys, time
    import rclpy
    from sensor_msgs.msg import Image

    rclpy.init()
    node = rclpy.create_node('camera')
    publisher = node.create_publisher(Image, 'image', 10)
    message = Image(height=480, width=640, encoding='rgb8', step=1920)
    message.data = array.array('B', bytes(480 * 1920))
    message.header.frame_id = 'camera'
    until = time.monotonic() + 20
    def reliable():
        readers = node.get_subscriptions_info_by_topic('/image')
        return readers and readers[0].qos_profile.reliability.name == 'RELIABLE'
    while not reliable() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    for _ in range(15):
        message.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(message)
        time.sleep(0.1)
    time.sleep(1)
    """
)


def test_a_camera_without_a_fastdds_profile_is_received_whole(
    tiny_bundle: ModelBundle, ros_domain: dict[str, str]
) -> None:
    environment = {
        name: value
        for name, value in ros_domain.items()
        if name not in ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
    }
    # A queue for all of them, since on a busy machine the node may be late.
    with node_of(tiny_bundle, input_depth=20) as rig:
        subprocess.run([sys.executable, '-c', CAMERA], env=environment, check=True, timeout=60)
        dropped = wait_until_done(rig, 15)
        published = rig.node.cameras[0].counter.snapshot().published
    assert published + dropped.get('superseded', 0) == 15
    assert published > 1
