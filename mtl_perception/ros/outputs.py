"""The images of one camera's predictions: kept messages, written in place."""

from __future__ import annotations

import array
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from mtl_perception import views
from mtl_perception.bundle import ModelBundle
from mtl_perception.calibration import Calibration
from mtl_perception.encodings import can_resize, to_rgb
from mtl_perception.frames import CameraFrame, Prediction
from mtl_perception.ros import qos
from mtl_perception.ros.conversions import (
    fill_camera_info,
    to_millimetres,
    writable_array,
)
from mtl_perception.ros.labels import LabelSpace
from mtl_perception.ros.parameters import Settings

_IMAGES = {
    'segmentation/mask': ('label',),
    'segmentation/confidence': ('confidence',),
    'segmentation/color': ('label',),
    'segmentation/overlay': ('label',),  # or boxes alone
    'depth/image': ('depth',),
    'depth/scaled': ('depth',),
    'depth/color': ('depth',),
    'normals/image': ('normal',),
    'normals/color': ('normal',),
}
"""Image topics and the network's outputs that each one shows."""

_COMPRESSED = '/compressed'
_FORMATS = {
    'segmentation/mask': 'png',  # labels stay exact
    'segmentation/color': 'png',
    'segmentation/overlay': 'jpeg',
    'depth/color': 'jpeg',
    'normals/color': 'jpeg',
}
"""Image topics that are also sent compressed, below image_transport's name for that."""

_INFOS = {
    'segmentation/camera_info': 'label',
    'depth/camera_info': 'depth',
    'normals/camera_info': 'normal',
}

_OVERLAY = 'segmentation/overlay'
_JPEG_QUALITY = 85
_NEED_SURE_LABELS = frozenset({'segmentation/mask', 'segmentation/color', _OVERLAY})

Filled = list[tuple[Publisher, Any]]
"""Messages that are ready, with their publishers."""


@dataclass
class Perceived:
    """One frame and all that is known about it, in the camera's own orientation.

    Attributes:
        header: of the input message; every output carries it unchanged.
        frame: the picture that the predictions belong to (rectified where that was asked for).
        calibration: of the input; None when unknown.
        rectified: whether `frame` has no distortion left.
        prediction: of the network.
        scale: factor that makes its depth metric; None where none is applied.
        map_scale: factor for `depth/scaled`; None where nothing tells it.
    """

    header: Header
    frame: CameraFrame
    calibration: Calibration | None
    rectified: bool
    prediction: Prediction
    scale: float | None
    map_scale: float | None


class ImageOutputs:
    """Publishers and kept messages of one camera's images and camera_infos."""

    def __init__(self, node: Node, prefix: str, bundle: ModelBundle, profile: QoSProfile) -> None:
        """Create the publishers.

        Args:
            node: that publishes.
            prefix: of all topics, '~/' or '~/front/'.
            bundle: that computes what they show; topics of absent tasks are left out.
            profile: that is offered.
        """
        self._node = node
        self._box_classes, self._attributes = bundle.box_classes, bundle.attributes
        available = bundle.outputs
        self._publishers: dict[str, Publisher] = {}
        self._images: dict[str, Image] = {}
        self._compressed: dict[str, CompressedImage] = {}
        self._infos: dict[str, CameraInfo] = {}
        self._sure_label = np.empty((0, 0), np.uint8)
        for topic, needed in _IMAGES.items():
            if set(needed) <= set(available) or (topic == _OVERLAY and 'boxes' in available):
                self._publishers[topic] = _publisher(node, Image, prefix + topic, profile)
                self._images[topic] = Image()
                if topic in _FORMATS:
                    name = topic + _COMPRESSED
                    self._publishers[name] = _publisher(
                        node, CompressedImage, prefix + name, profile
                    )
                    self._compressed[topic] = CompressedImage()
        for topic, needs in _INFOS.items():
            if needs in available:
                self._publishers[topic] = _publisher(node, CameraInfo, prefix + topic, profile)
                self._infos[topic] = CameraInfo()

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        self._publishers.clear()

    @property
    def topics(self) -> list[str]:
        """Return the full names of all topics."""
        return [publisher.topic_name for publisher in self._publishers.values()]

    def wanted(self, enabled: Collection[str]) -> set[str]:
        """Return the topics to publish now: those that someone listens to."""
        return {
            topic
            for topic, publisher in self._publishers.items()
            if topic.removesuffix(_COMPRESSED) in enabled
            and publisher.get_subscription_count() > 0
        }

    @staticmethod
    def needed(wanted: Collection[str], settings: Settings) -> set[str]:
        """Return the network's outputs that these topics show."""
        wanted = _shown(wanted)
        needed = {name for topic in wanted for name in _IMAGES.get(topic, ())}
        if _OVERLAY in wanted:
            needed |= {'boxes', 'class_scores'}
        needed |= {_INFOS[topic] for topic in wanted if topic in _INFOS}
        if settings.confidence_threshold > 0 and _NEED_SURE_LABELS & wanted:
            needed.add('confidence')
        return needed

    def fill(
        self, perceived: Perceived, wanted: Collection[str], labels: LabelSpace, settings: Settings
    ) -> Filled:
        """Write the wanted topics' messages, which stay the same from frame to frame.

        Args:
            perceived: the frame; its prediction has what `needed` named.
            wanted: topics from `wanted`.
            labels: label space of mask, color and overlay.
            settings: of the node.
        """
        wanted = set(wanted)
        if perceived.map_scale is None:
            wanted.discard('depth/scaled')
        prediction, shown = perceived.prediction, _shown(wanted)
        if _NEED_SURE_LABELS & shown and prediction.label is not None:
            if self._sure_label.shape != prediction.label.shape:
                self._sure_label = np.empty(prediction.label.shape, np.uint8)
            labels.apply(
                prediction.label,
                prediction.confidence,
                settings.confidence_threshold,
                self._sure_label,
            )
        filled: Filled = []
        for topic, image in self._images.items():
            if topic in shown:
                self._fill(topic, image, perceived, labels, settings)
                image.header = perceived.header
            if topic in wanted:
                filled.append((self._publishers[topic], image))
            if topic + _COMPRESSED in wanted:
                compressed = self._compressed[topic]
                _compress(image, _FORMATS[topic], compressed)
                filled.append((self._publishers[topic + _COMPRESSED], compressed))
        size = prediction.size
        for topic, info in self._infos.items():
            if topic in wanted:
                assert size is not None
                fill_camera_info(
                    info,
                    *size,
                    prediction.intrinsics,
                    perceived.calibration,
                    rectified=perceived.rectified,
                )
                info.header = perceived.header
                filled.append((self._publishers[topic], info))
        return filled

    def _fill(
        self,
        topic: str,
        image: Image,
        perceived: Perceived,
        labels: LabelSpace,
        settings: Settings,
    ) -> None:
        """Write one topic's picture into its message."""
        values = getattr(perceived.prediction, _IMAGES[topic][0])
        assert perceived.prediction.size is not None
        height, width = perceived.prediction.size

        def out(encoding: str) -> np.ndarray:
            return writable_array(image, height, width, encoding)

        match topic:
            case 'segmentation/mask':
                np.copyto(out('mono8'), self._sure_label)
            case 'segmentation/confidence':
                np.copyto(out('mono8'), values)
            case 'segmentation/color':
                views.colorize_labels(self._sure_label, labels.classes, out('rgb8'))
            case 'segmentation/overlay':
                self._overlay(perceived, labels, settings, out('rgb8'))
            case 'depth/image':
                _write_depth(values, 1.0, settings.depth_encoding, out)
            case 'depth/scaled':
                assert perceived.map_scale is not None
                _write_depth(values, perceived.map_scale, settings.depth_encoding, out)
            case 'depth/color':
                low, high = settings.color_min_depth, settings.color_max_depth
                views.colorize_depth(values, max(low, 0.01), high, out('rgb8'))
            case 'normals/image':
                np.copyto(out('32FC3'), values)
            case 'normals/color':
                views.colorize_normals(np.ascontiguousarray(values), out('rgb8'))

    def _overlay(
        self, perceived: Perceived, labels: LabelSpace, settings: Settings, out: np.ndarray
    ) -> None:
        """Lay everything that is known over the picture: label colours, boxes, classes."""
        prediction = perceived.prediction
        rgb = picture(perceived.frame, *out.shape[:2])
        if prediction.label is not None:
            views.overlay(rgb, self._sure_label, labels.classes, settings.overlay_alpha, out)
        else:
            np.copyto(out, rgb)
        if prediction.boxes is not None:
            assert prediction.box_scores is not None and prediction.box_labels is not None
            views.draw_boxes(
                out,
                prediction.boxes,
                prediction.box_labels,
                prediction.box_scores,
                self._box_classes,
                least_score=settings.detection_threshold,
            )
        if prediction.class_scores is not None:
            views.draw_lines(
                out, views.describe_classes(self._attributes, prediction.class_scores)
            )


def _shown(topics: Collection[str]) -> set[str]:
    """Return the pictures that these topics show, compressed or not."""
    return {topic.removesuffix(_COMPRESSED) for topic in topics}


def _compress(image: Image, kind: str, out: CompressedImage) -> None:
    """Write a filled mono8 or rgb8 message as 'png' or 'jpeg', as image_transport does."""
    pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, -1)
    if image.encoding == 'rgb8':
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if kind == 'jpeg' else []
    _, data = cv2.imencode(f'.{kind}', pixels, quality)
    out.header = image.header
    # Colours are stored as OpenCV has them, which is what readers are told.
    stored = 'bgr8' if image.encoding == 'rgb8' else image.encoding
    out.format = f'{image.encoding}; {kind} compressed {stored}'
    out.data = array.array('B', data.tobytes())


def picture(frame: CameraFrame, height: int, width: int) -> np.ndarray:
    """Return a frame's picture at the size of the outputs, uint8 [height, width, 3] RGB."""
    pixels, encoding = frame.pixels, frame.encoding
    if not can_resize(encoding):
        pixels, encoding = to_rgb(pixels, encoding), 'rgb8'
    if pixels.shape[:2] != (height, width):
        smaller = height < pixels.shape[0]
        pixels = cv2.resize(
            pixels,
            (width, height),
            interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR,
        )
    return to_rgb(pixels, encoding)


def _write_depth(
    depth: np.ndarray, scale: float, encoding: str, out: Callable[[str], np.ndarray]
) -> None:
    """Write scaled metres, or whole millimetres with 0 where invalid or beyond 65.535 m."""
    if encoding == '32FC1':
        np.multiply(depth, np.float32(scale), out=out(encoding))
        return
    np.copyto(out(encoding), to_millimetres(depth, scale))


def _publisher(node: Node, kind: type, topic: str, profile: QoSProfile) -> Publisher:
    return node.create_publisher(kind, topic, profile, event_callbacks=qos.no_publisher_events())
