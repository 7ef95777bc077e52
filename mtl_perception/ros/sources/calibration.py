"""A camera's calibration given by the user, instead of what was recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import yaml
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo

from mtl_perception.frames import Intrinsics
from mtl_perception.ros.sources.base import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    RecordedMessage,
    Source,
    SourceError,
    Topic,
    infos_first,
    sibling,
)
from mtl_perception.ros.sources.folder import camera_info_message


def read_camera_info(path: Path) -> CameraInfo:
    """Return the camera of a calibration file as camera_calibration writes it (YAML).

    Raises:
        SourceError: the file can't be read or lacks something.
    """
    try:
        content = yaml.safe_load(path.read_text())
        return CameraInfo(
            width=int(content['image_width']),
            height=int(content['image_height']),
            distortion_model=str(content['distortion_model']),
            d=_numbers(content, 'distortion_coefficients'),
            k=_numbers(content, 'camera_matrix', 9),
            r=_numbers(content, 'rectification_matrix', 9),
            p=_numbers(content, 'projection_matrix', 12),
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise SourceError(
            f'{path} is no camera calibration ({reason}): '
            'give the YAML file that camera_calibration writes'
        ) from error


def _numbers(content: dict, name: str, count: int | None = None) -> np.ndarray:
    numbers = np.array(content[name]['data'], np.float64)
    if count is not None and numbers.size != count:
        raise ValueError(f'{name} has {numbers.size} numbers instead of {count}')
    return numbers


def parse_k(text: str) -> tuple[float, float, float, float]:
    """Return fx, fy, cx, cy of 'fx,fy,cx,cy' in pixels.

    Raises:
        SourceError: it is something else.
    """
    try:
        fx, fy, cx, cy = (float(number) for number in text.split(','))
        Intrinsics(1, 1, fx, fy, cx, cy)
    except ValueError as error:
        raise SourceError(
            f'{text} is no camera matrix: give four numbers fx,fy,cx,cy in pixels, fx and fy '
            'positive'
        ) from error
    return fx, fy, cx, cy


class CalibratedSource:
    """A source whose cameras publish the given calibration instead of a recorded one.

    Args:
        source: the pictures.
        calibration: a CameraInfo of the pictures' size, or fx, fy, cx, cy of the pictures as
            they are.

    Raises:
        SourceError: the calibration was made for another size of pictures.
    """

    def __init__(
        self, source: Source, calibration: CameraInfo | tuple[float, float, float, float]
    ) -> None:
        self._source = source
        self._calibration = calibration
        self._infos = {
            name: Topic(sibling(name, 'camera_info'), CAMERA_INFO) for name in source.cameras
        }
        replaced = {topic.name for topic in self._infos.values()}
        self.topics = (
            *(topic for topic in source.topics if topic.name not in replaced),
            *dict.fromkeys(self._infos.values()),
        )
        self.cameras = source.cameras
        self.left_out = source.left_out
        self.start_ns = source.start_ns
        self.duration_ns = source.duration_ns

    def messages(self, start_ns: int = 0) -> Iterator[RecordedMessage]:
        """Yield the messages not older than `start_ns`; see Source."""
        return infos_first(self._with_infos(start_ns))

    def _with_infos(self, start_ns: int) -> Iterator[RecordedMessage]:
        replaced = {topic.name for topic in self._infos.values()}
        infos: dict[str, CameraInfo] = {}
        for message in self._source.messages(start_ns):
            name = message.topic.name
            if name in replaced:
                continue
            if name in self._infos:
                picture = deserialize_message(message.data, message.topic.message_class)
                if name not in infos:
                    infos[name] = self._info(message.topic, picture)
                infos[name].header = picture.header
                yield RecordedMessage(
                    message.time_ns, self._infos[name], serialize_message(infos[name])
                )
            yield message

    def _info(self, topic: Topic, picture: object) -> CameraInfo:
        width, height = _size(topic, picture)
        if isinstance(self._calibration, CameraInfo):
            if (self._calibration.width, self._calibration.height) != (width, height):
                raise SourceError(
                    f'the calibration is for {self._calibration.width}x{self._calibration.height} '
                    f'but {topic.name} has {width}x{height} pictures: calibrate at that size'
                )
            return self._calibration
        return camera_info_message(Intrinsics(width, height, *self._calibration), picture.header)


def _size(topic: Topic, picture: object) -> tuple[int, int]:
    """Return width and height of an Image or CompressedImage."""
    if topic.type != COMPRESSED_IMAGE:
        return picture.width, picture.height
    pixels = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise SourceError(f'the first picture of {topic.name} can not be decoded: record it again')
    return pixels.shape[1], pixels.shape[0]
