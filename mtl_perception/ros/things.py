"""Boxes and classes of one camera's pictures as vision_msgs, where vision_msgs is installed."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy

from mtl_perception.bundle import ModelBundle, ranked_classes
from mtl_perception.encodings import picture_size
from mtl_perception.frames import Prediction
from mtl_perception.geometry.boxes import locate, scale_boxes
from mtl_perception.ros import qos
from mtl_perception.ros.camera import Camera
from mtl_perception.ros.outputs import Filled, Perceived
from mtl_perception.ros.parameters import Settings

try:
    from vision_msgs.msg import (
        BoundingBox2D,
        BoundingBox3D,
        Classification,
        Detection2D,
        Detection2DArray,
        Detection3D,
        Detection3DArray,
        LabelInfo,
        ObjectHypothesis,
        ObjectHypothesisWithPose,
        VisionClass,
    )

    HAVE_VISION_MSGS = True
except ImportError:
    HAVE_VISION_MSGS = False

_NEEDED = {
    'detections': ('boxes',),
    'detections_3d': ('boxes', 'depth'),
    'classification': ('class_scores',),
}
"""Topics and the network's outputs that each one can't do without."""


class ThingOutputs:
    """Publishers of boxes and classes; nothing is computed without a subscriber.

    `class_id` is the class's name; ~/detections/label_info gives each name its number.
    """

    def __init__(
        self, node: Node, camera: Camera, prefix: str, bundle: ModelBundle, profile: QoSProfile
    ) -> None:
        """Create the publishers of what the bundle computes.

        Args:
            node: that publishes.
            camera: whose predictions they carry.
            prefix: of all topics.
            bundle: that computes them.
            profile: that is offered.
        """
        self._node = node
        self._camera = camera
        self._classes = bundle.box_classes
        self._attributes = bundle.attributes
        self._available = frozenset(bundle.outputs)
        # Pixels of a class of the same name are a box's own, others in it are background.
        numbers = {spec.name: number for number, spec in enumerate(bundle.classes)}
        self._pixel_labels = [numbers.get(spec.name) for spec in self._classes]
        self._publishers: dict[str, Publisher] = {}
        self._label_info: Publisher | None = None
        topics = [t for t, needed in _NEEDED.items() if self._available.issuperset(needed)]
        if not topics:
            return
        if not HAVE_VISION_MSGS:
            distro = os.environ.get('ROS_DISTRO', '<distro>')
            node.get_logger().warning(
                f'no {", ".join(prefix + topic for topic in topics)}: vision_msgs is not '
                f'installed: sudo apt install ros-{distro}-vision-msgs'
            )
            return
        kinds = {
            'detections': Detection2DArray,
            'detections_3d': Detection3DArray,
            'classification': Classification,
        }
        for topic in topics:
            self._publishers[topic] = node.create_publisher(
                kinds[topic], prefix + topic, profile, event_callbacks=qos.no_publisher_events()
            )
        if 'detections' in topics:
            self._label_info = node.create_publisher(
                LabelInfo,
                f'{prefix}detections/label_info',
                qos.profile(ReliabilityPolicy.RELIABLE, 1, latched=True),
                event_callbacks=qos.no_publisher_events(),
            )

    def close(self) -> None:
        """Destroy the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        self._publishers.clear()
        if self._label_info is not None:
            self._node.destroy_publisher(self._label_info)
            self._label_info = None

    @property
    def topics(self) -> list[str]:
        """Return the full names of all topics."""
        return [publisher.topic_name for publisher in self._publishers.values()]

    def publish_label_info(self, threshold: float) -> None:
        """Publish which number and name belong together, and the least score of a detection."""
        if self._label_info is None:
            return
        message = LabelInfo(threshold=float(threshold))
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.class_map = [
            VisionClass(class_id=number, class_name=spec.name)
            for number, spec in enumerate(self._classes)
        ]
        self._label_info.publish(message)

    def wanted(self, enabled: Collection[str]) -> set[str]:
        """Return the topics that someone listens to."""
        return {
            topic
            for topic, publisher in self._publishers.items()
            if topic in enabled and publisher.get_subscription_count() > 0
        }

    def needed(self, wanted: Collection[str]) -> set[str]:
        """Return the network's outputs that these topics need."""
        needed = {name for topic in wanted for name in _NEEDED.get(topic, ())}
        if 'detections_3d' in wanted and any(n is not None for n in self._pixel_labels):
            needed.add('label')
        return needed

    def fill(self, perceived: Perceived, wanted: Collection[str], settings: Settings) -> Filled:
        """Return the wanted topics' messages.

        Args:
            perceived: the frame in the camera's own orientation; it has what `needed` named.
            wanted: topics from `wanted`.
            settings: of the node.
        """
        filled: Filled = []
        prediction, header = perceived.prediction, perceived.header
        sure = np.empty(0, np.intp)
        if prediction.box_scores is not None:
            sure = np.flatnonzero(prediction.box_scores >= settings.detection_threshold)
        if 'detections' in wanted:
            filled.append((self._publishers['detections'], self._detections(perceived, sure)))
        if 'detections_3d' in wanted:
            if prediction.intrinsics is None:
                self._camera.warn(
                    'detections_3d',
                    f'{self._camera.label}: no detections_3d: they need a calibrated camera: '
                    'publish camera_info or set focal_length_px',
                )
            else:
                message = self._detections_3d(perceived, sure)
                filled.append((self._publishers['detections_3d'], message))
        if 'classification' in wanted:
            assert prediction.class_scores is not None
            message = Classification(
                header=header,
                results=[
                    ObjectHypothesis(class_id=class_id, score=score)
                    for class_id, score in ranked_classes(
                        self._attributes, prediction.class_scores
                    )
                ],
            )
            filled.append((self._publishers['classification'], message))
        return filled

    def _detections(self, perceived: Perceived, sure: np.ndarray) -> Any:
        """Return the boxes in pixels of the camera's picture."""
        prediction, frame = perceived.prediction, perceived.frame
        assert prediction.boxes is not None and prediction.size is not None
        boxes = scale_boxes(
            prediction.boxes, prediction.size, picture_size(frame.pixels, frame.encoding)
        )
        message = Detection2DArray(header=perceived.header)
        for index in sure:
            x0, y0, x1, y1 = boxes[index].tolist()
            box = BoundingBox2D(size_x=x1 - x0, size_y=y1 - y0)
            box.center.position.x, box.center.position.y = (x0 + x1) / 2, (y0 + y1) / 2
            message.detections.append(
                Detection2D(
                    header=perceived.header,
                    results=[self._hypothesis(prediction, index)],
                    bbox=box,
                )
            )
        return message

    def _detections_3d(self, perceived: Perceived, sure: np.ndarray) -> Any:
        """Return the boxes in metres in the camera's optical frame; those without depth go."""
        header, prediction = perceived.header, perceived.prediction
        scale = 1.0 if perceived.scale is None else perceived.scale
        assert prediction.boxes is not None and prediction.box_labels is not None
        assert prediction.depth is not None and prediction.intrinsics is not None
        own_pixels = self._own_pixels(prediction, sure)
        found = locate(prediction.boxes[sure], prediction.depth, prediction.intrinsics, own_pixels)
        message = Detection3DArray(header=header)
        places = zip(sure, found.center * scale, found.size * scale, strict=True)
        for index, center, size in places:
            if not np.isfinite(center).all():
                continue
            box = BoundingBox3D()
            position, extent = box.center.position, box.size
            position.x, position.y, position.z = center.tolist()
            extent.x, extent.y, extent.z = size.tolist()
            hypothesis = self._hypothesis(prediction, index)
            hypothesis.pose.pose.position = position
            message.detections.append(Detection3D(header=header, results=[hypothesis], bbox=box))
        return message

    def _own_pixels(
        self, prediction: Prediction, sure: np.ndarray
    ) -> list[np.ndarray | None] | None:
        """Return for each box the pixels of its class, where the segmentation knows that class."""
        if prediction.label is None:
            return None
        assert prediction.box_labels is not None
        masks: dict[int, np.ndarray | None] = {}
        for box_label in set(prediction.box_labels[sure].tolist()):
            number = self._pixel_labels[box_label]
            masks[box_label] = None if number is None else prediction.label == number
        return [masks[box_label] for box_label in prediction.box_labels[sure].tolist()]

    def _hypothesis(self, prediction: Prediction, index: int) -> Any:
        assert prediction.box_labels is not None and prediction.box_scores is not None
        name = self._classes[prediction.box_labels[index]].name
        score = float(prediction.box_scores[index])
        return ObjectHypothesisWithPose(hypothesis=ObjectHypothesis(class_id=name, score=score))
