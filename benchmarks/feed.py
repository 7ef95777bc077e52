"""Pictures held in memory, so that reading files takes no time from what is measured."""

from __future__ import annotations

import array
from collections.abc import Iterator

import cv2
import numpy as np
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from mtl_perception.encodings import to_rgb
from mtl_perception.frames import Intrinsics
from mtl_perception.ros.conversions import frame_from_compressed, frame_from_image
from mtl_perception.ros.sources import COMPRESSED_IMAGE, RecordedMessage, Source, Topic
from mtl_perception.ros.sources.folder import (
    CAMERA,
    CAMERA_COMPRESSED,
    INFO,
    START_NS,
    camera_info_message,
    image_message,
)

MAX_PIXELS = 64_000_000


class Feed:
    """A source that repeats some pictures in one size at a fixed rate.

    Args:
        source: where the first `different` pictures come from.
        size: width and height in pixels.
        fps: pictures per second.
        count: pictures altogether.
        different: pictures that are kept in memory.
        jpeg: send them as JPEG instead of raw rgb8.

    Attributes:
        fps: pictures per second.
    """

    def __init__(
        self,
        source: Source,
        *,
        size: tuple[int, int] = (640, 480),
        fps: float = 30.0,
        count: int = 300,
        different: int = 30,
        jpeg: bool = False,
    ) -> None:
        self._camera = CAMERA_COMPRESSED if jpeg else CAMERA
        self.topics: tuple[Topic, ...] = (INFO, self._camera)
        self.cameras: tuple[str, ...] = (self._camera.name,)
        self.left_out: dict[str, str] = {}
        self.start_ns = START_NS
        self.fps = fps
        self._period_ns = round(1e9 / fps)
        self._count = count
        self.duration_ns = (count - 1) * self._period_ns
        width, height = size
        # A plausible camera; what it is does not change the work.
        intrinsics = Intrinsics(width, height, width * 0.8, width * 0.8, width / 2, height / 2)
        self._pairs = []
        for rgb, header in _pictures(source, different):
            picture = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
            info = camera_info_message(intrinsics, header)
            message = _jpeg(picture, header) if jpeg else image_message(picture, 'rgb8', header)
            self._pairs.append((serialize_message(info), serialize_message(message)))

    def messages(self, start_ns: int = 0) -> Iterator[RecordedMessage]:
        """Yield the messages not older than `start_ns`."""
        for index in range(self._count):
            time_ns = START_NS + index * self._period_ns
            if time_ns < start_ns:
                continue
            info, picture = self._pairs[index % len(self._pairs)]
            yield RecordedMessage(time_ns, INFO, info)
            yield RecordedMessage(time_ns, self._camera, picture)


def _jpeg(rgb: np.ndarray, header: Header) -> CompressedImage:
    data = cv2.imencode('.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1]
    return CompressedImage(header=header, format='jpeg', data=array.array('B', data.tobytes()))


def _pictures(source: Source, count: int) -> Iterator[tuple[np.ndarray, Header]]:
    for message in source.messages():
        if message.topic.name != source.cameras[0]:
            continue
        picture = deserialize_message(message.data, message.topic.message_class)
        compressed = message.topic.type == COMPRESSED_IMAGE
        frame = (frame_from_compressed if compressed else frame_from_image)(picture, MAX_PIXELS)
        yield to_rgb(frame.pixels, frame.encoding), picture.header
        count -= 1
        if count == 0:
            return
