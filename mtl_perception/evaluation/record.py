"""Writes predictions as a bag with the node's topics, for RViz and Foxglove."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from mtl_perception.bundle import DENSE_TASKS, ModelBundle, ranked_classes
from mtl_perception.calibration import Calibration
from mtl_perception.encodings import picture_size, to_rgb
from mtl_perception.evaluation.things import SURE_SCORE
from mtl_perception.frames import Intrinsics, Prediction
from mtl_perception.geometry.boxes import scale_boxes
from mtl_perception.recordings import RecordedFrame, _vision_msgs
from mtl_perception.views import colorize_depth, colorize_labels, colorize_normals

_WORLD = 'map'
_TRUTHS = {'label': 'mono8', 'depth': '32FC1', 'normal': '32FC3'}


class Recorder:
    """One mcap file with camera, truth and predictions, all at the cameras' own stamps.

    Use as a context manager: the file appears when it is complete, and not after an error.

    Args:
        path: of the file, ending in .mcap; it must not exist.
        bundle: whose predictions are written.

    Raises:
        ValueError: another suffix, or the file exists.
    """

    def __init__(self, path: Path, bundle: ModelBundle) -> None:
        if path.suffix != '.mcap':
            raise ValueError(f'{path} cannot be recorded to: give a name that ends in .mcap')
        if path.exists():
            raise ValueError(f'{path} exists: delete it or record to another file')
        self._path = path
        self._bundle = bundle
        self._store = get_typestore(Stores.ROS2_KILTED)
        _vision_msgs.register(self._store)
        self._connections: dict[str, Any] = {}
        self._prefixes: dict[str, str] = {}

    def __enter__(self) -> Recorder:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = Path(tempfile.mkdtemp(dir=self._path.parent, prefix='.recording-'))
        self._bag = self._folder / 'bag'
        self._writer = Writer(self._bag, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._writer.close()
            if kind is None:
                next(self._bag.glob('*.mcap')).replace(self._path)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, frame: RecordedFrame, prediction: Prediction) -> None:
        """Write one frame: what was recorded, then what is predicted."""
        self._copy(frame)
        prefix = self._prefix(frame)
        for topic, (pixels, encoding) in self._pictures(prediction).items():
            self._image(prefix + topic, pixels, encoding, frame)
        self._things(prefix, prediction, frame)
        if prediction.intrinsics is not None:
            for task in self._bundle.manifest.tasks:
                if task not in DENSE_TASKS:
                    continue
                self._info(f'{prefix}{task}/camera_info', prediction.intrinsics, frame)

    def _things(self, prefix: str, prediction: Prediction, frame: RecordedFrame) -> None:
        header = self._header(frame)
        if prediction.boxes is not None:
            assert prediction.box_labels is not None and prediction.box_scores is not None
            assert prediction.size is not None
            picture = picture_size(frame.frame.pixels, frame.frame.encoding)
            sure = prediction.box_scores >= SURE_SCORE
            message = _vision_msgs.make_detections(
                self._store,
                header,
                scale_boxes(prediction.boxes[sure], prediction.size, picture),
                [self._bundle.box_classes[label].name for label in prediction.box_labels[sure]],
                prediction.box_scores[sure],
            )
            self._write(f'{prefix}detections', message, frame)
        if prediction.class_scores is not None:
            ranked = ranked_classes(self._bundle.attributes, prediction.class_scores)
            message = _vision_msgs.make_classification(self._store, header, ranked)
            self._write(f'{prefix}classification', message, frame)

    def _copy(self, frame: RecordedFrame) -> None:
        """Write what was recorded: as it was, or else what was read of it."""
        for message in frame.messages:
            self._write_raw(message.topic, message.type, frame.time_ns, message.data)
        camera = frame.frame
        image = frame.camera if frame.camera.startswith('/') else '/camera/image'
        image = image.removesuffix('/compressed')
        namespace = image.rpartition('/')[0]
        if not frame.messages:
            self._image(image, to_rgb(camera.pixels, camera.encoding), 'rgb8', frame)
            for role, truth in frame.truth.items():
                values = truth.at(*truth.size)
                self._image(f'/ground_truth{namespace}/{role}', values, _TRUTHS[role], frame)
        if frame.calibration is not None:
            self._calibration(f'{namespace}/camera_info', frame.calibration, frame)
        elif camera.intrinsics is not None:
            self._info(f'{namespace}/camera_info', camera.intrinsics, frame)
        if frame.pose is not None:
            self._pose(frame)

    def _pictures(self, prediction: Prediction) -> Mapping[str, tuple[np.ndarray, str]]:
        pictures: dict[str, tuple[np.ndarray, str]] = {}
        if prediction.label is not None:
            pictures['segmentation/mask'] = (prediction.label, 'mono8')
            colors = colorize_labels(prediction.label, self._bundle.classes)
            pictures['segmentation/color'] = (colors, 'rgb8')
        if prediction.confidence is not None:
            pictures['segmentation/confidence'] = (prediction.confidence, 'mono8')
        if prediction.depth is not None:
            spec = self._bundle.manifest.depth
            near, far = (max(spec.min, 0.3), spec.max) if spec else (0.3, 10.0)
            pictures['depth/image'] = (prediction.depth, '32FC1')
            pictures['depth/color'] = (colorize_depth(prediction.depth, near, far), 'rgb8')
        if prediction.normal is not None:
            pictures['normals/image'] = (prediction.normal, '32FC3')
            pictures['normals/color'] = (colorize_normals(prediction.normal), 'rgb8')
        return pictures

    def _prefix(self, frame: RecordedFrame) -> str:
        """Return '/perception/', or '/perception/NAME/' from the second camera on."""
        if frame.camera not in self._prefixes:
            words = re.sub(r'/(image\w*|compressed)', '', frame.camera).strip('/')
            name = f'{re.sub("[^a-zA-Z0-9_]+", "_", words)}/' if self._prefixes else ''
            self._prefixes[frame.camera] = f'/perception/{name}'
            if self._bundle.classes:
                self._label_info(frame)
        return self._prefixes[frame.camera]

    def _header(self, frame: RecordedFrame, frame_id: str | None = None) -> Any:
        sec, nanosec = divmod(frame.frame.stamp_ns, 1_000_000_000)
        types = self._store.types
        return types['std_msgs/msg/Header'](
            stamp=types['builtin_interfaces/msg/Time'](sec=sec, nanosec=nanosec),
            frame_id=(frame.frame.frame_id or 'camera') if frame_id is None else frame_id,
        )

    def _image(self, topic: str, pixels: np.ndarray, encoding: str, frame: RecordedFrame) -> None:
        pixels = np.ascontiguousarray(pixels)
        message = self._store.types['sensor_msgs/msg/Image'](
            header=self._header(frame),
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=pixels.strides[0],
            data=pixels.view(np.uint8).ravel(),
        )
        self._write(topic, message, frame)

    def _info(self, topic: str, camera: Intrinsics, frame: RecordedFrame) -> None:
        self._calibration(topic, Calibration(camera, camera), frame)

    def _calibration(self, topic: str, of: Calibration, frame: RecordedFrame) -> None:
        types = self._store.types
        projection = np.zeros((3, 4))
        projection[:, :3] = of.rectified.matrix
        projection[:2, 3] = of.baseline
        message = types['sensor_msgs/msg/CameraInfo'](
            header=self._header(frame),
            height=of.raw.height,
            width=of.raw.width,
            distortion_model=of.model or 'plumb_bob',
            d=np.array(of.distortion or (0.0,) * 5),
            k=of.raw.matrix.ravel(),
            r=np.array(of.rotation),
            p=projection.ravel(),
            binning_x=0,
            binning_y=0,
            roi=types['sensor_msgs/msg/RegionOfInterest'](
                x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
            ),
        )
        self._write(topic, message, frame)

    def _label_info(self, frame: RecordedFrame) -> None:
        types = self._store.types
        classes = [
            types['vision_msgs/msg/VisionClass'](class_id=index, class_name=spec.name)
            for index, spec in enumerate(self._bundle.classes)
        ]
        message = types['vision_msgs/msg/LabelInfo'](
            header=self._header(frame), class_map=classes, threshold=0.0
        )
        self._write(f'{self._prefixes[frame.camera]}segmentation/label_info', message, frame)

    def _pose(self, frame: RecordedFrame) -> None:
        types = self._store.types
        x, y, z = (float(value) for value in frame.pose[:3, 3])
        qx, qy, qz, qw = quaternion_of(frame.pose[:3, :3])
        stamped = types['geometry_msgs/msg/TransformStamped'](
            header=self._header(frame, _WORLD),
            child_frame_id=frame.frame.frame_id or 'camera',
            transform=types['geometry_msgs/msg/Transform'](
                translation=types['geometry_msgs/msg/Vector3'](x=x, y=y, z=z),
                rotation=types['geometry_msgs/msg/Quaternion'](x=qx, y=qy, z=qz, w=qw),
            ),
        )
        message = types['tf2_msgs/msg/TFMessage'](transforms=[stamped])
        self._write('/tf', message, frame)

    def _write(self, topic: str, message: Any, frame: RecordedFrame) -> None:
        kind = message.__msgtype__
        data = self._store.serialize_cdr(message, kind)
        self._write_raw(topic, kind, frame.time_ns or frame.frame.stamp_ns, data)

    def _write_raw(self, topic: str, kind: str, time_ns: int, data: bytes | memoryview) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._store
            )
        self._writer.write(self._connections[topic], time_ns, data)


def quaternion_of(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """Return x, y, z, w of a rotation matrix, with the largest component positive.

    The eigenvector of Bar-Itzhack's matrix (2000): the nearest rotation, also of a matrix that is
    not quite one.
    """
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = np.asarray(rotation, np.float64)
    k = np.array(
        [
            [m00 - m11 - m22, m01 + m10, m02 + m20, m21 - m12],
            [m01 + m10, m11 - m00 - m22, m12 + m21, m02 - m20],
            [m02 + m20, m12 + m21, m22 - m00 - m11, m10 - m01],
            [m21 - m12, m02 - m20, m10 - m01, m00 + m11 + m22],
        ]
    )
    vector = np.linalg.eigh(k / 3)[1][:, -1]
    vector = vector * np.sign(vector[np.argmax(np.abs(vector))])
    return tuple(float(value) for value in vector)  # type: ignore[return-value]
