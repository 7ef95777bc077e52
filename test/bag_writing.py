"""Writes small bags of any kind for the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_typestore

SIZE = (48, 64)
K = (50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0)
START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 100_000_000
IMAGE = '/camera/image'
LABEL = '/ground_truth/label/compressed'
DEPTH = '/ground_truth/depth/compressedDepth'
NORMALS = '/ground_truth/normals/compressed'

ROS2 = get_typestore(Stores.ROS2_KILTED)
ROS1 = get_typestore(Stores.ROS1_NOETIC)


@dataclass
class Scene:
    """A picture and its truth; all made from the frame's number."""

    rgb: np.ndarray
    label: np.ndarray
    depth_mm: np.ndarray
    normal: np.ndarray


def scene(index: int, size: tuple[int, int] = SIZE) -> Scene:
    """Return frame `index` of a scene that the tiny network sees roughly right."""
    rng = np.random.default_rng(index)
    small = rng.integers(0, 255, (6, 8, 3), np.uint8)
    rgb = cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST)
    label = cv2.resize(
        rng.integers(0, 13, (6, 8), np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST
    )
    label[0, 0] = 255
    depth = np.full(size, 2000 + 10 * index, np.uint16)
    depth[1, 1] = 0
    normal = np.broadcast_to(np.array([0, 0, -1], np.float32), (*size, 3)).copy()
    normal[2, 2] = 0
    return Scene(rgb, label, depth, normal)


@dataclass
class BagSink:
    """Adds messages to an open bag."""

    store: Any
    write: Callable[[str, str, int, Any], None]
    ros1: bool
    sequence: int = field(default=0)

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        types = self.store.types
        time = types['builtin_interfaces/msg/Time'](
            sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000
        )
        fields = {'seq': self.sequence} if self.ros1 else {}
        self.sequence += 1
        return types['std_msgs/msg/Header'](**fields, stamp=time, frame_id=frame_id)

    def image(
        self,
        topic: str,
        pixels: np.ndarray,
        encoding: str,
        stamp_ns: int,
        *,
        frame_id: str = 'camera',
        time_ns: int | None = None,
    ) -> None:
        pixels = np.ascontiguousarray(pixels)
        message = self.store.types['sensor_msgs/msg/Image'](
            header=self.header(stamp_ns, frame_id),
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=pixels.strides[0],
            data=pixels.view(np.uint8).ravel(),
        )
        self.write(
            topic, 'sensor_msgs/msg/Image', stamp_ns if time_ns is None else time_ns, message
        )

    def compressed(
        self,
        topic: str,
        data: bytes,
        format: str,
        stamp_ns: int,
        *,
        frame_id: str = 'camera',
        time_ns: int | None = None,
    ) -> None:
        message = self.store.types['sensor_msgs/msg/CompressedImage'](
            header=self.header(stamp_ns, frame_id),
            format=format,
            data=np.frombuffer(data, np.uint8),
        )
        time_ns = stamp_ns if time_ns is None else time_ns
        self.write(topic, 'sensor_msgs/msg/CompressedImage', time_ns, message)

    def png(self, topic: str, pixels: np.ndarray, stamp_ns: int, **kwargs: Any) -> None:
        if pixels.ndim == 3:
            pixels = pixels[..., ::-1]
        ok, data = cv2.imencode('.png', np.ascontiguousarray(pixels))
        assert ok
        head, format = b'', 'png'
        if topic.endswith('/compressedDepth'):
            head, format = bytes(12), '16UC1; compressedDepth png'
        self.compressed(topic, head + data.tobytes(), format, stamp_ns, **kwargs)

    def camera_info(
        self,
        topic: str,
        stamp_ns: int,
        k: tuple[float, ...] = K,
        size: tuple[int, int] = SIZE,
        *,
        d: tuple[float, ...] = (0.0,) * 5,
        p: tuple[float, ...] = (0.0,) * 12,
        binning: int = 0,
        region: tuple[int, int, int, int] = (0, 0, 0, 0),
        model: str = 'plumb_bob',
    ) -> None:
        """Write a camera_info; `region` is x, y, width and height on a sensor of `size`."""
        types = self.store.types
        x, y, width, height = region
        roi = types['sensor_msgs/msg/RegionOfInterest'](
            x_offset=x, y_offset=y, height=height, width=width, do_rectify=False
        )
        arrays = {
            'd': np.array(d),
            'k': np.array(k, np.float64),
            'r': np.eye(3).ravel(),
            'p': np.array(p),
        }
        if self.ros1:
            arrays = {name.upper(): array for name, array in arrays.items()}
        message = types['sensor_msgs/msg/CameraInfo'](
            header=self.header(stamp_ns, 'camera'),
            height=size[0],
            width=size[1],
            distortion_model=model,
            binning_x=binning,
            binning_y=binning,
            roi=roi,
            **arrays,
        )
        self.write(topic, 'sensor_msgs/msg/CameraInfo', stamp_ns, message)

    def transform(
        self,
        x: float,
        stamp_ns: int,
        child: str = 'camera',
        parent: str = 'map',
        topic: str = '/tf',
    ) -> None:
        types = self.store.types
        stamped = types['geometry_msgs/msg/TransformStamped'](
            header=self.header(stamp_ns, parent),
            child_frame_id=child,
            transform=types['geometry_msgs/msg/Transform'](
                translation=types['geometry_msgs/msg/Vector3'](x=x, y=0.0, z=0.0),
                rotation=types['geometry_msgs/msg/Quaternion'](x=0.0, y=0.0, z=0.0, w=1.0),
            ),
        )
        message = types['tf2_msgs/msg/TFMessage'](transforms=[stamped])
        self.write(topic, 'tf2_msgs/msg/TFMessage', stamp_ns, message)

    def diagnostics(self, stamp_ns: int) -> None:
        message = self.store.types['diagnostic_msgs/msg/DiagnosticArray'](
            header=self.header(stamp_ns, ''), status=[]
        )
        self.write('/diagnostics', 'diagnostic_msgs/msg/DiagnosticArray', stamp_ns, message)

    def frame(
        self,
        index: int,
        *,
        topic: str = f'{IMAGE}/compressed',
        truth: bool = True,
        size: tuple[int, int] = SIZE,
        stamp_ns: int | None = None,
        time_ns: int | None = None,
    ) -> None:
        """Write one frame as the sample bags have it, with a lossless picture."""
        shown = scene(index, size)
        time_ns = START_NS + index * PERIOD_NS if time_ns is None else time_ns
        stamp = time_ns if stamp_ns is None else stamp_ns
        self.camera_info(
            f'{topic.removesuffix("/compressed").rpartition("/")[0]}/camera_info', stamp
        )
        self.png(topic, shown.rgb, stamp, time_ns=time_ns)
        if truth:
            self.png(LABEL, shown.label, stamp, time_ns=time_ns)
            self.png(DEPTH, shown.depth_mm, stamp, time_ns=time_ns)
            coded = np.rint((shown.normal + 1) * 127.5).astype(np.uint8)
            coded[~shown.normal.any(axis=-1)] = 0
            self.png(NORMALS, coded, stamp, time_ns=time_ns)


@contextmanager
def bag_sink(
    path: Path,
    *,
    storage: str = 'mcap',
    compression: rosbag2.CompressionMode | None = None,
) -> Iterator[BagSink]:
    """Open a bag for writing: storage 'mcap', 'sqlite3' or 'ros1'."""
    ros1 = storage == 'ros1'
    store = ROS1 if ros1 else ROS2
    if ros1:
        writer: Any = rosbag1.Writer(path)
    else:
        plugin = rosbag2.StoragePlugin[storage.upper()]
        writer = rosbag2.Writer(path, version=9, storage_plugin=plugin)
        if compression is not None:
            writer.set_compression(compression, rosbag2.CompressionFormat.ZSTD)
    connections: dict[str, Any] = {}

    def write(topic: str, kind: str, time_ns: int, message: Any) -> None:
        if topic not in connections:
            connections[topic] = writer.add_connection(topic, kind, typestore=store)
        serialize = store.serialize_ros1 if ros1 else store.serialize_cdr
        writer.write(connections[topic], time_ns, serialize(message, kind))

    with writer:
        yield BagSink(store, write, ros1)


def write_bag(path: Path, frames: int = 5, **kwargs: Any) -> Path:
    """Write a bag of `frames` frames with truth."""
    with bag_sink(path, **kwargs) as sink:
        for index in range(frames):
            sink.frame(index)
    return path
