"""Distances of another sensor, against which the scale of depth is measured."""

from __future__ import annotations

import threading
from collections import deque

import cv2
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
from mtl_perception.rectification import Lens
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


class ReferenceProblem(ValueError):
    """A reference that says nothing about this moment; the message says why."""


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
        lens: Lens | None = None,
    ) -> ScaleObservation | None:
        """Return the scale that the reference of the same moment shows; `problem` says why not.

        Args:
            header: of the image.
            prediction: of the upright picture.
            base_frame: of the robot.
            base_from_upright: [4, 4], frame of the upright picture to the base frame.
            degrees: clockwise turn that made the picture upright.
            lens: that the picture was rectified with, before it was turned, if it was.
        """
        self.problem = ''
        try:
            message = self._nearest(header)
            if isinstance(message, LaserScan):
                return self._by_scan(message, prediction, base_frame, base_from_upright)
            return self._by_depth(message, prediction, degrees, lens)
        except ReferenceProblem as problem:
            self.problem = str(problem)
            return None

    def sensed_depth(
        self, header: Header, picture: tuple[int, int], degrees: int, lens: Lens | None
    ) -> np.ndarray | None:
        """Return what a depth camera measured at the image's moment; None of a laser.

        Args:
            header: of the image.
            picture: (height, width) of the upright picture.
            degrees: clockwise turn that made it upright.
            lens: that the picture was rectified with, before it was turned, if it was.

        Returns:
            float32 of that size, metres; 0 or NaN where nothing was measured.

        Raises:
            ReferenceProblem: there is none of that moment, or it does not belong to the picture.
        """
        if self._kind != DEPTH_IMAGE:
            return None
        message = self._nearest(header)
        assert isinstance(message, Image)
        depth = turn_image(_measured(message, lens), degrees)
        _refuse_other_aspect(depth, picture, message)
        return cv2.resize(depth, picture[::-1], interpolation=cv2.INTER_NEAREST_EXACT)

    def _nearest(self, header: Header) -> LaserScan | Image:
        stamp_ns = to_nanoseconds(header.stamp)
        with self._lock:
            messages = tuple(self._messages)
        if not messages:
            raise ReferenceProblem(f'nothing has arrived on {self._topic}')
        apart = [abs(to_nanoseconds(message.header.stamp) - stamp_ns) for message in messages]
        if min(apart) > _APART_NS:
            raise ReferenceProblem(
                f'no message of {self._topic} has the time of the image to within 0.1 s'
            )
        nearest = messages[apart.index(min(apart))]
        if isinstance(nearest, Image) and nearest.header.frame_id != header.frame_id:
            raise ReferenceProblem(
                f'{self._topic} is seen from {nearest.header.frame_id!r}, the image from '
                f'{header.frame_id!r}: use the depth that is aligned to the image'
            )
        return nearest

    def _by_scan(
        self,
        scan: LaserScan,
        prediction: Prediction,
        base_frame: str,
        base_from_upright: np.ndarray | None,
    ) -> ScaleObservation | None:
        if base_from_upright is None:
            raise ReferenceProblem(
                'the laser scan is of no use while the camera has no place on the robot'
            )
        base_from_laser: np.ndarray | None = np.eye(4)
        if scan.header.frame_id != base_frame:
            base_from_laser, problem = self._transforms.lookup(base_frame, scan.header.frame_id)
            if base_from_laser is None:
                raise ReferenceProblem(problem)
        assert base_from_laser is not None
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
        self, image: Image, prediction: Prediction, degrees: int, lens: Lens | None
    ) -> ScaleObservation | None:
        assert prediction.depth is not None
        # A few thousand pixels are enough: only rectifying takes all of them.
        depth = turn_image(_view(image) if lens is None else _measured(image, lens), degrees)
        _refuse_other_aspect(depth, prediction.depth.shape, image)
        v, u = np.nonzero(depth > 0)
        if u.size > _SAMPLES:
            every = u.size // _SAMPLES + 1
            v, u = v[::every], u[::every]
        scale = prediction.depth.shape[1] / depth.shape[1]
        return scale_from_depths(
            prediction.depth,
            (u + 0.5) * scale - 0.5,
            (v + 0.5) * scale - 0.5,
            _metres(depth[v, u]),
            source='depth image',
        )


def _view(image: Image) -> np.ndarray:
    """Return a depth image's own values.

    Raises:
        ReferenceProblem: it can't be read or is no depth.
    """
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
        raise ReferenceProblem(f'the reference depth cannot be read: {error}') from error
    if image.encoding not in ('32FC1', '16UC1', 'mono16'):
        raise ReferenceProblem(
            f'the reference depth has encoding {image.encoding}: 32FC1 (metres) or 16UC1 '
            '(millimetres) is expected'
        )
    return depth


def _measured(image: Image, lens: Lens | None) -> np.ndarray:
    """Return a depth image's metres, rectified with a lens; 0 where nothing was measured."""
    depth = np.nan_to_num(_metres(_view(image)), nan=0.0, posinf=0.0)
    return depth if lens is None else lens.depth(np.ascontiguousarray(depth))


def _refuse_other_aspect(depth: np.ndarray, picture: tuple[int, ...], image: Image) -> None:
    """Raise ReferenceProblem where upright depth can't belong to the upright picture."""
    (height, width), (own_height, own_width) = picture, depth.shape
    if abs(own_height * width / own_width - height) > 1:
        raise ReferenceProblem(
            f'the reference depth is {image.width}x{image.height}, which has another aspect '
            'than the picture: publish it registered to the picture, at its size'
        )


def _metres(depth: np.ndarray) -> np.ndarray:
    """Return a depth image's values as float32 metres."""
    metres = depth.astype(np.float32)
    return metres / np.float32(_MILLIMETRES) if depth.dtype == np.uint16 else metres
