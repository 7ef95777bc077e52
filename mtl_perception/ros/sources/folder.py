"""Folders of pictures, played as the camera that took them would have published them."""

from __future__ import annotations

import array
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from mtl_perception.datasets import DatasetError, PictureFolder
from mtl_perception.frames import Intrinsics
from mtl_perception.ros.conversions import fill_camera_info
from mtl_perception.ros.sources.base import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    RecordedMessage,
    SourceError,
    Topic,
    leave_out,
)
from mtl_perception.sequences import SUFFIXES, PictureSequence

# A zero stamp means 'not set', so recorded time starts one second after it.
START_NS = 1_000_000_000

CAMERA = Topic('/camera/image', IMAGE)
CAMERA_COMPRESSED = Topic('/camera/image/compressed', COMPRESSED_IMAGE)
INFO = Topic('/camera/camera_info', CAMERA_INFO)
CAMERA_DEPTH = Topic('/camera/depth/image_raw', IMAGE)
LABEL = Topic('/ground_truth/label', IMAGE)
DEPTH = Topic('/ground_truth/depth', IMAGE)
NORMALS = Topic('/ground_truth/normals', IMAGE)
TRANSFORMS = Topic('/tf', 'tf2_msgs/msg/TFMessage')


@dataclass(frozen=True)
class _Frame:
    """One picture and what is stored with it.

    Attributes:
        pixels: uint8 [H, W, 3] or [H, W], in `encoding`.
        path: its file.
        images: truth topic -> (array, encoding).
        pose: float64 [4, 4], camera to world in metres.
    """

    pixels: np.ndarray
    encoding: str
    path: Path
    intrinsics: Intrinsics | None = None
    images: dict[Topic, tuple[np.ndarray, str]] = field(default_factory=dict)
    pose: np.ndarray | None = None


class _Pictures(Protocol):
    topics: tuple[Topic, ...]

    def __len__(self) -> int: ...

    def read(self, index: int) -> _Frame: ...


class FolderSource:
    """A folder of pictures at a fixed frame rate.

    Understood are `{split}/rgb/*.jpg` with `depth`, `label13` and `normal` beside `rgb` (see
    mtl_perception.datasets), RGB-D sequences (`NAME.color.jpg`, `NAME.depth.png` in millimetres,
    `NAME.pose.txt` camera to world, `camera-intrinsics.txt`) and any folder of pictures, played
    in the order of their names. Poses become /tf where tf2_msgs is installed.

    Args:
        path: the folder.
        split: which split of a data set to play; needed where it has several.
        fps: pictures per second.
        transport: 'raw', or 'compressed' for the files' own bytes.
        frame_id: of the camera.
        limit: play only so many pictures; 0 plays all.
        start_s: where playing will start; the limit counts from there.
        chosen: play only these topics; empty: all.

    Raises:
        SourceError: there is nothing to play, a chosen topic is missing, or a file is broken.
    """

    def __init__(
        self,
        path: Path,
        *,
        split: str | None = None,
        fps: float = 30.0,
        transport: Literal['raw', 'compressed'] = 'raw',
        frame_id: str = 'camera_optical_frame',
        limit: int = 0,
        start_s: float = 0.0,
        chosen: Collection[str] = (),
    ) -> None:
        if not 0 < fps < float('inf'):
            raise SourceError(f'fps {fps} is no frame rate: give a positive number')
        if not path.is_dir():
            raise SourceError(
                f'{path} is neither a recording nor a folder: give a rosbag2 folder, an .mcap or '
                '.db3 file, or a folder of pictures'
            )
        self._frame_id = frame_id
        self._period_ns = round(1e9 / fps)
        self._pictures = _open_pictures(path, split)
        self._count = len(self._pictures)
        if limit:
            first = math.ceil(round(start_s * 1e9) / self._period_ns)
            self._count = min(first + limit, self._count)
        self._camera = CAMERA if transport == 'raw' else CAMERA_COMPRESSED
        found = {topic.name: topic for topic in (self._camera, *self._pictures.topics)}
        self.left_out = leave_out(found, chosen)
        if self._camera.name in self.left_out:
            raise SourceError(
                f'{", ".join(chosen)} hold no camera pictures: choose {self._camera.name} as well'
            )
        self.topics = tuple(
            topic
            for name, topic in found.items()
            if name not in self.left_out and self._is_installed(topic)
        )
        self.cameras = (self._camera.name,)
        self.start_ns = START_NS
        self.duration_ns = (self._count - 1) * self._period_ns

    def _is_installed(self, topic: Topic) -> bool:
        try:
            _ = topic.message_class
        except ImportError as error:
            self.left_out[topic.name] = f'{topic.type} is not installed ({error})'
            return False
        return True

    def messages(self, start_ns: int = 0) -> Iterator[RecordedMessage]:
        """Yield the messages not older than `start_ns`; see Source."""
        first = max(0, -(-(start_ns - START_NS) // self._period_ns))
        for index in range(first, self._count):
            time_ns = START_NS + index * self._period_ns
            try:
                frame = self._pictures.read(index)
            except DatasetError as error:
                raise SourceError(str(error)) from error
            for topic, message in self._messages(frame, _header(time_ns, self._frame_id)):
                if topic in self.topics:
                    yield RecordedMessage(time_ns, topic, serialize_message(message))

    def _messages(self, frame: _Frame, header: Header) -> Iterator[tuple[Topic, object]]:
        if frame.intrinsics is not None:
            yield INFO, camera_info_message(frame.intrinsics, header)
        if TRANSFORMS in self.topics and frame.pose is not None:
            yield TRANSFORMS, TRANSFORMS.message_class(transforms=[_transform(frame.pose, header)])
        if self._camera.type == IMAGE:
            yield self._camera, image_message(frame.pixels, frame.encoding, header)
        else:
            data = array.array('B', frame.path.read_bytes())
            format_ = 'png' if frame.path.suffix.lower() == '.png' else 'jpeg'
            yield self._camera, CompressedImage(header=header, format=format_, data=data)
        for topic, (pixels, encoding) in frame.images.items():
            yield topic, image_message(pixels, encoding, header)


def image_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Return a densely packed Image of `pixels` [H, W] or [H, W, C]."""
    pixels = np.ascontiguousarray(pixels)
    return Image(
        header=header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=pixels.strides[0],
        data=array.array('B', pixels.tobytes()),
    )


def camera_info_message(camera: Intrinsics, header: Header) -> CameraInfo:
    """Return the CameraInfo of a camera without distortion."""
    message = CameraInfo(header=header)
    fill_camera_info(message, camera.height, camera.width, camera, None, rectified=True)
    return message


def _header(time_ns: int, frame_id: str) -> Header:
    header = Header(frame_id=frame_id)
    header.stamp.sec, header.stamp.nanosec = divmod(time_ns, 1_000_000_000)
    return header


def _transform(pose: np.ndarray, header: Header) -> TransformStamped:
    """Return world -> camera from a camera-to-world matrix."""
    message = TransformStamped(child_frame_id=header.frame_id)
    message.header.stamp = header.stamp
    message.header.frame_id = 'world'
    place, turn = message.transform.translation, message.transform.rotation
    place.x, place.y, place.z = (float(value) for value in pose[:3, 3])
    turn.x, turn.y, turn.z, turn.w = quaternion(pose[:3, :3])
    return message


def quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Return x, y, z, w of a rotation matrix, w >= 0."""
    vector = cv2.Rodrigues(rotation)[0].ravel()
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return 0.0, 0.0, 0.0, 1.0
    x, y, z = vector / angle * np.sin(angle / 2)
    return float(x), float(y), float(z), float(np.cos(angle / 2))


def _open_pictures(path: Path, split: str | None) -> _Pictures:
    if (path / 'rgb').is_dir() and split is None:
        return _LabelledPictures(path.parent, path.name)
    splits = sorted(child.parent.name for child in path.glob('*/rgb') if child.is_dir())
    if split is not None and split not in splits:
        found = f'it has {", ".join(splits)}' if splits else 'it has no {split}/rgb folder'
        raise SourceError(f'{path} has no split {split}: {found}')
    if splits:
        if split is None and len(splits) > 1:
            raise SourceError(f'{path} has several splits: choose one of {", ".join(splits)}')
        return _LabelledPictures(path, split or splits[0])
    return _PlainPictures(path)


class _LabelledPictures:
    """A split of a labelled data set; only stored truth is played, none that is derived."""

    def __init__(self, root: Path, split: str) -> None:
        want = ('label', 'depth')
        if (root / split / 'normal').is_dir():
            want = (*want, 'normal')
        try:
            self._folder = PictureFolder(root, split, want=want)
        except DatasetError as error:
            raise SourceError(str(error)) from error
        folder = {'label': LABEL, 'depth': DEPTH, 'normal': NORMALS}
        self.topics = (INFO, TRANSFORMS, *(folder[name] for name in self._folder.truths))
        self._files = {file.stem: file for file in (root / split / 'rgb').iterdir()}
        if not (root / split / 'cameras.json').is_file():
            self.topics = tuple(topic for topic in self.topics if topic != TRANSFORMS)

    def __len__(self) -> int:
        return len(self._folder)

    def read(self, index: int) -> _Frame:
        frame = self._folder.read(index)
        images: dict[Topic, tuple[np.ndarray, str]] = {}
        if frame.label is not None:
            images[LABEL] = frame.label, 'mono8'
        if frame.depth is not None:
            images[DEPTH] = np.where(frame.depth > 0, frame.depth, np.float32(np.nan)), '32FC1'
        if frame.normal is not None:
            images[NORMALS] = frame.normal, '32FC3'
        return _Frame(
            pixels=frame.rgb,
            encoding='rgb8',
            path=self._files[frame.id],
            intrinsics=frame.intrinsics,
            images=images,
            pose=frame.pose,
        )


class _PlainPictures:
    """A sequence of plain or RGB-D pictures, its depth as the camera's own."""

    def __init__(self, folder: Path) -> None:
        try:
            self._sequence = PictureSequence(folder)
        except DatasetError as error:
            raise SourceError(
                f'{folder} holds no recording and no pictures: expected rosbag2 files, '
                f'SPLIT/rgb folders or files ending in {", ".join(SUFFIXES)}'
            ) from error
        self.topics = (
            *((INFO,) if self._sequence.has_camera else ()),
            *((TRANSFORMS,) if self._sequence.has_poses else ()),
            *((CAMERA_DEPTH,) if self._sequence.has_depth else ()),
        )

    def __len__(self) -> int:
        return len(self._sequence)

    def read(self, index: int) -> _Frame:
        pixels = self._sequence.picture(index)
        depth = self._sequence.depth(index)
        return _Frame(
            pixels=pixels,
            encoding='bgr8',
            path=self._sequence.files[index],
            intrinsics=self._sequence.intrinsics(*pixels.shape[:2]),
            images={} if depth is None else {CAMERA_DEPTH: (depth, '16UC1')},
            pose=self._sequence.pose(index),
        )
