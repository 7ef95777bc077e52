"""~/segmentation/label_info: which number means which class, where vision_msgs is installed."""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy

from mtl_perception.bundle import ClassSpec
from mtl_perception.ros import qos

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:
    LabelInfo = VisionClass = None


class LabelInfoOutput:
    """Publishes the label space, once and again whenever it changes; late readers get it, too."""

    def __init__(self, node: Node, prefix: str) -> None:
        """Create the publisher where vision_msgs is installed.

        Args:
            node: that publishes.
            prefix: of all topics of the camera.
        """
        self._node = node
        self._publisher = None
        if LabelInfo is not None:
            self._publisher = node.create_publisher(
                LabelInfo,
                f'{prefix}segmentation/label_info',
                qos.profile(ReliabilityPolicy.RELIABLE, 1, latched=True),
                event_callbacks=qos.no_publisher_events(),
            )

    def publish(self, classes: Sequence[ClassSpec], threshold: float) -> None:
        """Publish the classes in the order of their labels and the confidence threshold."""
        if self._publisher is None:
            return
        message = LabelInfo(threshold=float(threshold))
        message.header.stamp = self._node.get_clock().now().to_msg()
        message.class_map = [
            VisionClass(class_id=number, class_name=spec.name)
            for number, spec in enumerate(classes)
        ]
        self._publisher.publish(message)

    def close(self) -> None:
        """Destroy the publisher."""
        if self._publisher is not None:
            self._node.destroy_publisher(self._publisher)
