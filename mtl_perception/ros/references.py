"""Distances of another sensor, against which the scale of depth is measured."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
from sensor_msgs.msg import Image, LaserScan
from std_msgs.msg import Header

from mtl_perception.encodings import EncodingError, view_image
from mtl_perception.frames import Prediction
from mtl_perception.geometry.scale import (
    ScaleObservation,
    scale_from_depths,
    scale_from_scan,
)
from mtl_perception.orientation import turn_image
from mtl_perception.ros import qos
from mtl_perception.ros.conversions import to_nanoseconds
from mtl_perception.ros.poses import TransformSource

LASER_SCAN, DEPTH_IMAGE = 'laser_scan', 'depth_image'
_KINDS = {LASER_SCAN: LaserScan, DEPTH_IMAGE: Image}
_KEPT = 10
# At 0.5 m/s the robot moves 5 cm in this time: 2 percent of a distance of 2.5 m.
_APART_NS = 100_000_000
_SAMPLES = 4000
_MILLIMETRES = 1000.0


class ScaleReference:
    """Keeps the newest messages of a reference and compares predictions with them."""

    def __init__(self, node: Node, kind: str, topic: str, transforms: TransformSource) -> None:
        """Subscribe.

        Args:
            node: to subscribe with.
            kind: LASER_SCAN (sensor_msgs/LaserScan) or DEPTH_IMAGE (sensor_msgs/Image, 32FC1 or
                16UC1, in the camera's frame and of its aspect; may be sparse).
            topic: of the reference.
            transforms: say where the laser is on the robot.
        """
        self._node = node
        self._kind = kind
        self._transforms = transforms
        self._lock = threading.Lock()
        self._messages: deque[LaserScan | Image] = deque(maxlen=_KEPT)
        self._topic = node.resolve_topic_name(topic)
        self._subscription: Subscription | None = None
        self._asked: QoSProfile | None = None
        self.problem = ''
        self.refresh()

    def refresh(self) -> None:
        """Match the subscription's reliability to what the publishers offer now."""
        offers = self._node.get_publishers_info_by_topic(self._topic)
        wanted = qos.profile(qos.input_reliability('auto', offers), _KEPT)
        if wanted == self._asked:
            return
        self.close()
        self._subscription = self._node.create_subscription(
            _KINDS[self._kind],
            self._topic,
            self._keep,
            wanted,
            event_callbacks=qos.no_events(),
        )
        self._asked = wanted

    def close(self) -> None:
        """Unsubscribe."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def _keep(self, message: LaserScan | Image) -> None:
        with self._lock:
            self._messages.append(message)

    def observe(
        self,
        header: Header,
        prediction: Prediction,
        base_frame: str,
        base_from_upright: np.ndarray | None,
        degrees: int,
    ) -> ScaleObservation | None:
        """Return the scale that the reference of the same moment shows; `problem` says why not.

        Args:
            header: of the image.
            prediction: of the upright picture.
            base_frame: of the robot.
            base_from_upright: [4, 4], frame of the upright picture to the base frame.
            degrees: clockwise turn that made the picture upright.
        """
        message = self._nearest(to_nanoseconds(header.stamp))
        if message is None:
            self.problem = (
                f'no message of {self._topic} has the time of the image to within 0.1 s'
                if self._messages
                else f'nothing has arrived on {self._topic}'
            )
            return None
        self.problem = ''
        if isinstance(message, LaserScan):
            return self._by_scan(message, prediction, base_frame, base_from_upright)
        return self._by_depth(message, prediction, degrees)

    def _nearest(self, stamp_ns: int) -> LaserScan | Image | None:
        with self._lock:
            messages = tuple(self._messages)
        apart = [abs(to_nanoseconds(message.header.stamp) - stamp_ns) for message in messages]
        if not apart or min(apart) > _APART_NS:
            return None
        return messages[apart.index(min(apart))]

    def _by_scan(
        self,
        scan: LaserScan,
        prediction: Prediction,
        base_frame: str,
        base_from_upright: np.ndarray | None,
    ) -> ScaleObservation | None:
        if base_from_upright is None:
            self.problem = 'the laser scan is of no use while the camera has no place on the robot'
            return None
        base_from_laser: np.ndarray | None = np.eye(4)
        if scan.header.frame_id != base_frame:
            base_from_laser, self.problem = self._transforms.lookup(
                base_frame, scan.header.frame_id
            )
        if base_from_laser is None:
            return None
        assert prediction.depth is not None and prediction.intrinsics is not None
        return scale_from_scan(
            prediction.depth,
            prediction.intrinsics,
            np.frombuffer(scan.ranges, np.float32),
            scan.angle_min,
            scan.angle_increment,
            np.linalg.inv(base_from_upright) @ base_from_laser,
            range_min=scan.range_min,
            range_max=scan.range_max,
        )

    def _by_depth(
        self, image: Image, prediction: Prediction, degrees: int
    ) -> ScaleObservation | None:
        try:
            depth = view_image(
                image.data,
                image.height,
                image.width,
                image.encoding,
                image.step,
                bool(image.is_bigendian),
            )
        except EncodingError as error:
            self.problem = f'the reference depth cannot be read: {error}'
            return None
        if image.encoding not in ('32FC1', '16UC1', 'mono16'):
            self.problem = (
                f'the reference depth has encoding {image.encoding}: 32FC1 (metres) or 16UC1 '
                '(millimetres) is expected'
            )
            return None
        depth = turn_image(depth, degrees)
        v, u = np.nonzero(depth > 0)
        if u.size > _SAMPLES:
            every = u.size // _SAMPLES + 1
            v, u = v[::every], u[::every]
        z = depth[v, u].astype(np.float64)
        if depth.dtype == np.uint16:
            z /= _MILLIMETRES
        assert prediction.depth is not None
        (height, width), (own_height, own_width) = prediction.depth.shape, depth.shape
        scale = width / own_width
        if abs(own_height * scale - height) > 1:
            self.problem = (
                f'the reference depth is {image.width}x{image.height}, which has another aspect '
                'than the picture: publish it registered to the picture, at its size'
            )
            return None
        return scale_from_depths(
            prediction.depth,
            (u + 0.5) * scale - 0.5,
            (v + 0.5) * scale - 0.5,
            z,
            source='depth image',
        )
