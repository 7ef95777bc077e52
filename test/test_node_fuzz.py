"""Whatever arrives: the node stays up, bounds its memory and counts every frame."""

from __future__ import annotations

import array
import math
from collections.abc import Iterator

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from node_rig import Rig, image_message, node_of, textured
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest

from mtl_perception.bundle import ModelBundle
from mtl_perception.calibration import Calibration, CalibrationError
from mtl_perception.encodings import SUPPORTED_ENCODINGS
from mtl_perception.ros.conversions import (
    UNREADABLE,
    FrameRejected,
    frame_from_compressed,
    frame_from_image,
)

MAX_PIXELS = 100_000
UINT32 = st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1))
ENCODINGS = st.one_of(st.sampled_from(sorted(SUPPORTED_ENCODINGS)), st.text(max_size=30))
STAMPS = st.builds(Time, sec=st.integers(-(2**31), 2**31 - 1), nanosec=st.integers(0, 2**32 - 1))
FRAMES = st.sampled_from(['', 'camera', 'a/b c', '\u00e9'])
NUMBERS = st.one_of(st.floats(width=32), st.sampled_from([0.0, math.nan, math.inf, 1e300]))


@st.composite
def image_messages(draw: st.DrawFn) -> Image:
    message = Image(
        height=draw(UINT32),
        width=draw(UINT32),
        step=draw(UINT32),
        encoding=draw(ENCODINGS),
        is_bigendian=draw(st.sampled_from([0, 1, 255])),
        data=array.array('B', bytes(draw(st.integers(0, 60_000)))),
    )
    message.header.stamp, message.header.frame_id = draw(STAMPS), draw(FRAMES)
    return message


@st.composite
def camera_infos(draw: st.DrawFn) -> CameraInfo:
    numbers = [draw(NUMBERS) for _ in range(6)]
    message = CameraInfo(
        height=draw(UINT32),
        width=draw(UINT32),
        distortion_model=draw(st.sampled_from(['', 'plumb_bob', 'equidistant', 'x'])),
        d=draw(st.lists(NUMBERS, max_size=9)),
        k=[numbers[0], 0.0, numbers[1], 0.0, numbers[2], numbers[3], 0.0, 0.0, 1.0],
        r=[numbers[4]] * 9,
        p=[numbers[5]] * 12,
        binning_x=draw(UINT32),
        binning_y=draw(UINT32),
        roi=RegionOfInterest(
            x_offset=draw(UINT32), y_offset=draw(UINT32), height=draw(UINT32), width=draw(UINT32)
        ),
    )
    message.header.frame_id = draw(FRAMES)
    return message


@settings(max_examples=300, deadline=None)
@given(image_messages())
def test_an_image_is_a_picture_or_a_counted_refusal(message: Image) -> None:
    try:
        frame = frame_from_image(message, MAX_PIXELS)
    except FrameRejected as rejection:
        assert rejection.reason in UNREADABLE
        assert len(str(rejection)) < 600
    else:
        assert frame.pixels.nbytes <= 2 * len(message.data)
        assert message.height * message.width <= MAX_PIXELS


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=200), head=st.sampled_from([b'', b'\x89PNG\r\n\x1a\n', b'\xff\xd8'])
)
def test_a_compressed_image_is_a_picture_or_a_counted_refusal(data: bytes, head: bytes) -> None:
    with pytest.raises(FrameRejected) as rejection:
        frame_from_compressed(CompressedImage(format='jpeg', data=head + data), MAX_PIXELS)
    assert rejection.value.reason in UNREADABLE


@settings(max_examples=300, deadline=None)
@given(camera_infos())
def test_a_camera_info_is_a_camera_or_a_refusal(message: CameraInfo) -> None:
    try:
        calibration = Calibration.from_message(message)
    except CalibrationError as error:
        assert str(error).startswith('camera_info')
    else:
        for camera in (calibration.raw, calibration.rectified):
            assert np.isfinite(camera.matrix).all()
            assert camera.fx > 0
            assert camera.width > 0
            assert camera.height > 0


@pytest.fixture
def fuzzed(tiny_bundle: ModelBundle, ros_domain: dict[str, str]) -> Iterator[Rig]:
    with node_of(tiny_bundle, max_pixels=MAX_PIXELS) as rig:
        yield rig


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(message=image_messages(), info=camera_infos())
def test_the_node_survives_anything(fuzzed: Rig, message: Image, info: CameraInfo) -> None:
    camera = fuzzed.node.cameras[0]
    before = camera.counter.snapshot()
    fuzzed.calibrate(info)
    fuzzed.publisher('/image', Image).publish(message)

    def is_accounted_for() -> bool:
        counts = camera.counter.snapshot()
        return counts.received == before.received + 1 and counts.under_way == 0

    fuzzed.wait(is_accounted_for, 'end of the frame')
    published = camera.counter.snapshot().published
    fuzzed.perceive(image_message(textured()))
    assert camera.counter.snapshot().published == published + 1
