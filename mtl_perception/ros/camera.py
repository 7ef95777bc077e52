"""One camera's input: its topics, its newest frame, its calibration and its health."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

import cv2
import numpy as np
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from mtl_perception.calibration import Calibration, CalibrationError, is_named_rectified
from mtl_perception.encodings import picture_size
from mtl_perception.frames import CameraFrame
from mtl_perception.msg import PerceptionStatus
from mtl_perception.ros import qos
from mtl_perception.ros.conversions import (
    UNREADABLE,
    FrameRejected,
    Reason,
    frame_from_compressed,
    frame_from_image,
)
from mtl_perception.ros.parameters import CameraSettings, Settings
from mtl_perception.ros.receiver import LeftToReceiver
from mtl_perception.ros.statistics import Durations, FrameCounter, Rate

_KEPT_CALIBRATIONS = 8
_FIRST_CALIBRATION_WAIT_S = 0.2
_OVERLOAD_WINDOW_S = 5.0
_OVERLOAD_SHARE = 0.1
_PERIOD_SMOOTHING = 0.2
_QUIET_S = 10.0
_STAMP_END = 12


class MaskError(ValueError):
    """A file that is no mask; the message says why."""


class Health(IntEnum):
    """How a camera is doing; the values are those of PerceptionStatus."""

    OK = PerceptionStatus.OK
    NO_INPUT = PerceptionStatus.NO_INPUT
    STALE = PerceptionStatus.STALE
    BAD_ENCODING = PerceptionStatus.BAD_ENCODING
    UNCALIBRATED = PerceptionStatus.UNCALIBRATED
    OVERLOADED = PerceptionStatus.OVERLOADED
    FAILING = PerceptionStatus.FAILING


@dataclass(frozen=True)
class Arrival:
    """A message and when it arrived, in nanoseconds of the monotonic clock."""

    message: Image | CompressedImage
    monotonic_ns: int


@dataclass(frozen=True)
class Topics:
    """Resolved input topics of one camera."""

    image: str
    camera_info: str

    @classmethod
    def resolve(cls, node: Node, name: str, settings: CameraSettings) -> Topics:
        """Apply namespace and remapping.

        Args:
            node: whose names they are.
            name: of the camera; empty for a single one.
            settings: of the camera.
        """
        prefix = f'{name}/' if name else ''
        image = node.resolve_topic_name(f'{prefix}image')
        info = node.resolve_topic_name(f'{prefix}camera_info')
        # A remapping, which a launch argument makes, goes before the parameter file.
        if info == node.resolve_topic_name(f'{prefix}camera_info', only_expand=True):
            sibling = f'{image.rpartition("/")[0]}/camera_info'
            info = node.resolve_topic_name(settings.camera_info_topic or sibling)
        if settings.transport == 'compressed':
            image += '/compressed'
        return cls(image, info)


class Camera:
    """Takes a camera's messages in the receiver's thread, hands the newest one to the worker.

    Attributes:
        name: as in the parameter `cameras`; empty for a single one.
        settings: its parameters; replaced as a whole when one changes.
        counter: what became of its frames.
        durations: of the stages of its frames.
        published_rate: of its predictions.
        calibration_messages: camera_infos that arrived since it was opened.
    """

    def __init__(self, node: Node, name: str, wake: Callable[[], None]) -> None:
        """Make a camera that listens to nothing yet.

        Args:
            node: to subscribe with.
            name: of the camera.
            wake: called when a new frame waits.
        """
        self.name = name
        self.settings = CameraSettings()
        self.counter = FrameCounter()
        self.durations = Durations()
        self.published_rate = Rate()
        self.received_rate = Rate()
        self._lost_before = self._lost_now = 0
        self.calibration_messages = 0
        self.enabled = True
        self._node = node
        self._wake = wake
        self._lock = threading.Lock()
        self._calibrated = threading.Condition(self._lock)
        self._node_settings = Settings()
        self._topics: Topics | None = None
        self._image: Subscription | None = None
        self._info: Subscription | None = None
        self._group = LeftToReceiver()
        self._image_qos: QoSProfile | None = None
        self._info_qos: QoSProfile | None = None
        self._incompatible: list[str] = []
        self._warned_at: dict[str, float] = {}
        self._mask: np.ndarray | None = None
        self._forget()

    def _forget(self) -> None:
        """Start with no frame, no calibration and no history."""
        self._newest: Arrival | None = None
        self._latest_info: bytes | None = None
        self._calibrations: OrderedDict[tuple[str, int, int], Calibration] = OrderedDict()
        self._focal: Calibration | None = None
        self._waited_for: set[tuple[str, int, int]] = set()
        self._info_problem = ''
        self._last_arrival_ns = 0
        self._period_ns = 0.0
        self._credit_ns = 0
        self._last_rejection = ''
        self._last_failure = ''
        self._superseded_at: list[float] = []
        self._uncalibrated = ''

    @property
    def label(self) -> str:
        """Name for people: 'camera front', or 'camera' for a single one."""
        return f'camera {self.name}' if self.name else 'camera'

    @property
    def topics(self) -> Topics | None:
        """Return the resolved topics while the camera is open."""
        return self._topics

    @property
    def incompatible_publishers(self) -> list[str]:
        """Name the nodes that publish with a QoS which this camera's subscriptions can't take."""
        return self._incompatible

    @property
    def image_qos(self) -> QoSProfile | None:
        """Return what the image subscription asks for, while there is one."""
        return self._image_qos

    def open(self, node_settings: Settings) -> None:
        """Subscribe; counts and history start anew."""
        with self._lock:
            self._forget()
        self.counter.reset()
        self.durations.reset()
        self.published_rate.reset()
        self.received_rate.reset()
        self._lost_before = self._lost_now = 0
        self.calibration_messages = 0
        self._node_settings = node_settings
        self._topics = Topics.resolve(self._node, self.name, self.settings)
        self.refresh_subscriptions()

    def close(self) -> None:
        """Unsubscribe; a frame that still waits is dropped."""
        self._lost_before, self._lost_now = self.lost_in_transport, 0
        for subscription in (self._image, self._info):
            if subscription is not None:
                self._node.destroy_subscription(subscription)
        self._image = self._info = self._image_qos = self._info_qos = None
        self._topics = None
        with self._lock:
            waiting, self._newest = self._newest, None
        if waiting is not None:
            self.counter.drop('deactivated')

    def load_mask(self) -> None:
        """Read the file of the parameter `mask`, if there is one.

        Raises:
            MaskError: it is no picture, or nothing of it is valid.
        """
        path, self._mask = self.settings.mask, None
        if not path:
            return
        mask = cv2.imread(str(Path(path).expanduser()), cv2.IMREAD_GRAYSCALE)
        if mask is None:
            raise MaskError(
                f'{self.label}: mask: {path} is no picture that can be read: give a PNG that is '
                'white where the outputs count and black elsewhere'
            )
        self._mask = cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY)[1]
        if not self._mask.any():
            raise MaskError(
                f'{self.label}: mask: {path} is black everywhere: paint white what counts'
            )

    def update(self, node_settings: Settings, settings: CameraSettings) -> None:
        """Take changed parameters over; topics and QoS follow at the next activation."""
        if settings.focal_length_px != self.settings.focal_length_px:
            self._focal = None
        self._node_settings, self.settings = node_settings, settings

    @property
    def lost_in_transport(self) -> int:
        """Return how many images the middleware knows it lost."""
        subscription = self._image
        lost = qos.count_lost(subscription) if subscription is not None else None
        if lost is not None:
            self._lost_now = lost
        return self._lost_before + self._lost_now

    @property
    def subscriptions(self) -> list[Subscription]:
        """Return what the receiver is to wait for."""
        return [one for one in (self._image, self._info) if one is not None]

    def refresh_subscriptions(self) -> bool:
        """Match the subscriptions' QoS to what the publishers offer now; tell if it changed."""
        if self._topics is None:
            return False
        before = self.subscriptions
        node, settings = self._node, self._node_settings
        offers = node.get_publishers_info_by_topic(self._topics.image)
        wanted = qos.profile(
            qos.input_reliability(settings.input_reliability, offers), settings.input_depth
        )
        if self._image is None or wanted != self._image_qos:
            if self._image is not None:
                self._lost_before, self._lost_now = self.lost_in_transport, 0
                node.destroy_subscription(self._image)
            compressed = self.settings.transport == 'compressed'
            self._image = node.create_subscription(
                CompressedImage if compressed else Image,
                self._topics.image,
                _leave_to_receiver,
                wanted,
                callback_group=self._group,
                event_callbacks=qos.loss_events(),
            )
            self._image_qos = wanted
        info_offers = node.get_publishers_info_by_topic(self._topics.camera_info)
        latched = bool(info_offers) and all(
            info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for info in info_offers
        )
        reliability = qos.input_reliability('auto', info_offers)
        wanted_info = qos.profile(
            reliability, 1, latched=latched and reliability == ReliabilityPolicy.RELIABLE
        )
        if self._info is None or wanted_info != self._info_qos:
            if self._info is not None:
                node.destroy_subscription(self._info)
            self._info = node.create_subscription(
                CameraInfo,
                self._topics.camera_info,
                _leave_to_receiver,
                wanted_info,
                callback_group=self._group,
                event_callbacks=qos.no_events(),
                raw=True,
            )
            self._info_qos = wanted_info
        self._look_for_incompatible()
        return self.subscriptions != before

    def _look_for_incompatible(self) -> None:
        assert self._topics is not None and self._image_qos is not None
        found = qos.incompatible_publishers(self._node, self._topics.image, self._image_qos)
        for description in sorted(set(found) - set(self._incompatible)):
            self._node.get_logger().warning(
                f'{self._node.get_fully_qualified_name()} cannot receive {self._topics.image} '
                f'from {description}: set input_reliability to auto or change that publisher'
            )
        self._incompatible = found

    def receive(self, subscription: Subscription) -> None:
        """Take all messages that wait in one of `subscriptions`."""
        if subscription is self._image:
            self._receive_images(subscription)
        elif subscription is self._info:
            self._receive_calibration(subscription)

    def take(self) -> Arrival | None:
        """Return the newest frame that waits and forget it."""
        with self._lock:
            arrival, self._newest = self._newest, None
        return arrival

    @property
    def is_waiting(self) -> bool:
        """Tell whether a frame waits."""
        return self._newest is not None

    def awaited_until(self, now_ns: int, within_ns: int) -> int | None:
        """Return until when it pays to wait for its next frame; None where it does not.

        Args:
            now_ns: monotonic time.
            within_ns: how long anyone would wait.
        """
        if not self._period_ns:
            return None
        expected_ns = self._last_arrival_ns + self._period_ns
        overdue_ns = int(expected_ns + min(within_ns, self._period_ns / 2))
        return overdue_ns if expected_ns - now_ns <= within_ns and now_ns < overdue_ns else None

    def reject(self, reason: Reason, sentence: str) -> None:
        """Count a frame as dropped and warn of it, but not for every frame."""
        self.counter.drop(reason)
        if reason in UNREADABLE:
            self._last_rejection = sentence
        else:
            self._last_failure = sentence
        self.warn(reason, f'{self.label}: frame dropped: {sentence}')

    def accept(self) -> None:
        """Note that a frame could be read."""
        self._last_rejection = ''

    def note_published(self, now_ns: int) -> None:
        """Note that a frame's predictions were published, at a monotonic time."""
        self.counter.publish()
        self.published_rate.tick(now_ns)
        self._last_failure = ''

    def warn(self, topic: str, sentence: str) -> None:
        """Log a warning at most every ten seconds for each topic."""
        now = time.monotonic()
        if now - self._warned_at.get(topic, -_QUIET_S) >= _QUIET_S:
            self._warned_at[topic] = now
            self._node.get_logger().warning(sentence)

    def warn_once(self, topic: str, sentence: str) -> None:
        """Log a warning the first time only."""
        if topic not in self._warned_at:
            self._warned_at[topic] = time.monotonic()
            self._node.get_logger().warning(sentence)

    def read(self, arrival: Arrival) -> CameraFrame:
        """Return the frame that a message holds; raw images are not copied.

        Raises:
            FrameRejected: it holds none.
        """
        limit = self._node_settings.max_pixels
        if isinstance(arrival.message, CompressedImage):
            frame = frame_from_compressed(arrival.message, limit)
        else:
            frame = frame_from_image(arrival.message, limit)
        return frame if self._mask is None else replace(frame, valid=self._fitting_mask(frame))

    def _fitting_mask(self, frame: CameraFrame) -> np.ndarray:
        """Return the mask at the picture's size."""
        assert self._mask is not None
        (height, width), (rows, columns) = (
            self._mask.shape,
            picture_size(frame.pixels, frame.encoding),
        )
        if height * columns != width * rows:
            raise FrameRejected(
                'bad_data',
                f'the mask is {width}x{height} but the picture {columns}x{rows}: make the mask of '
                "the picture's size",
            )
        if height != rows:
            self._mask = cv2.resize(
                self._mask, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT
            )
        return self._mask

    def calibration_for(self, frame_id: str, height: int, width: int) -> Calibration | None:
        """Return the newest calibration with this frame and size, or that of focal_length_px.

        The first frame often arrives before its camera_info: it waits a moment where someone
        publishes one.
        """
        key = (frame_id, height, width)
        with self._calibrated:
            found = self._calibrations.get(key)
            if found is None and key not in self._waited_for and self._info_is_published():
                self._waited_for.add(key)
                self._calibrated.wait_for(
                    lambda: key in self._calibrations, _FIRST_CALIBRATION_WAIT_S
                )
                found = self._calibrations.get(key)
            others = [k for k in self._calibrations if k != key]
        if found is not None:
            self._uncalibrated = ''
            return found
        focal = self.settings.focal_length_px
        if focal > 0:
            self._uncalibrated = ''
            if self._focal is None or (self._focal.raw.height, self._focal.raw.width) != key[1:]:
                self._focal = Calibration.from_focal_length(focal, height, width)
            return self._focal
        self._uncalibrated = self._why_uncalibrated(key, others)
        self.warn('uncalibrated', f'{self.label}: depth is not metric: {self._uncalibrated}')
        return None

    def is_rectified(self, calibration: Calibration) -> bool:
        """Tell whether its images are rectified already; warn once where distortion stays in."""
        setting = self.settings.input_rectified
        topic = self._topics.image if self._topics else ''
        rectified = setting == 'true' or (setting == 'auto' and is_named_rectified(topic))
        if not rectified and calibration.is_distorted and not self.settings.rectify:
            self.warn_once(
                'distorted',
                f'{self.label}: the lens distorts (D is not zero) and rectify is off: depth and '
                'points are off towards the edges; set rectify to true or use the rectified topic',
            )
        return rectified

    def _info_is_published(self) -> bool:
        topics = self._topics
        return topics is not None and self._node.count_publishers(topics.camera_info) > 0

    def _why_uncalibrated(
        self, key: tuple[str, int, int], others: list[tuple[str, int, int]]
    ) -> str:
        frame_id, height, width = key
        if self._info_problem:
            return self._info_problem
        topic = self._topics.camera_info if self._topics else 'camera_info'
        if not others:
            return f'nothing arrives on {topic}: publish it or set focal_length_px'
        other_id, other_height, other_width = others[-1]
        if other_id != frame_id:
            return (
                f'{topic} is of frame {other_id!r} but the image of frame {frame_id!r}: '
                'both need the same frame_id'
            )
        return (
            f'{topic} describes {other_width}x{other_height} pixels but the image has '
            f'{width}x{height}: publish the calibration of the delivered size (with binning and '
            'roi)'
        )

    def health(self, now_ns: int) -> tuple[Health, str]:
        """Return how the camera is doing and, as one sentence, why."""
        topic = self._topics.image if self._topics else 'image'
        if not self._last_arrival_ns:
            if self._incompatible:
                return Health.NO_INPUT, (
                    f'{topic} is published with a QoS that cannot be received: '
                    + '; '.join(self._incompatible)
                )
            return Health.NO_INPUT, f'nothing has arrived on {topic}; is the camera running?'
        silence_s = (now_ns - self._last_arrival_ns) / 1e9
        if silence_s > self._node_settings.stale_after:
            return Health.STALE, f'nothing has arrived on {topic} for {silence_s:.1f} s'
        if self._last_rejection:
            return Health.BAD_ENCODING, self._last_rejection
        if self._last_failure:
            return Health.FAILING, f'the last frame was dropped: {self._last_failure}'
        share = self._overload_share()
        if share > _OVERLOAD_SHARE:
            return Health.OVERLOADED, (
                f'{share:.0%} of the frames are replaced by newer ones before they are processed; '
                "lower the camera's rate, set max_rate, or use a smaller bundle or a faster "
                'engine'
            )
        if self._uncalibrated:
            return Health.UNCALIBRATED, self._uncalibrated
        return Health.OK, 'frames arrive and are processed'

    def _overload_share(self) -> float:
        since = time.monotonic() - _OVERLOAD_WINDOW_S
        recent = [t for t in tuple(self._superseded_at) if t > since]
        expected = self.received_rate.hertz(time.monotonic_ns()) * _OVERLOAD_WINDOW_S
        return len(recent) / expected if expected and len(recent) > 2 else 0.0

    def _receive_images(self, subscription: Subscription) -> None:
        """Of all images that wait, the newest one counts; the others are superseded."""
        newest = None
        while (
            taken := subscription.handle.take_message(subscription.msg_type, False)
        ) is not None:
            self._count_arrival()
            if newest is not None:
                self._supersede()
            newest = taken[0]
        if newest is None:
            return
        now_ns = time.monotonic_ns()
        if not self.enabled:
            self.counter.drop('disabled')
            return
        if self._is_over_rate(now_ns):
            self.counter.drop('rate_limited')
            return
        with self._lock:
            replaced, self._newest = self._newest, Arrival(newest, now_ns)
        if replaced is not None:
            self._supersede()
        self._wake()

    def _count_arrival(self) -> None:
        now_ns = time.monotonic_ns()
        self.counter.receive()
        self.received_rate.tick(now_ns)
        self._note_arrival(now_ns)

    def _supersede(self) -> None:
        self.counter.drop('superseded')
        self._superseded_at = [*self._superseded_at[-255:], time.monotonic()]

    def _note_arrival(self, now_ns: int) -> None:
        if self._last_arrival_ns:
            period = now_ns - self._last_arrival_ns
            if not self._period_ns or period > 4 * self._period_ns:
                self._period_ns = period
            else:
                self._period_ns += _PERIOD_SMOOTHING * (period - self._period_ns)
        self._last_arrival_ns = now_ns

    def _is_over_rate(self, now_ns: int) -> bool:
        """Tell whether a frame exceeds max_rate; unused time is kept for one period at most."""
        limit = self._node_settings.max_rate
        if limit <= 0:
            return False
        period = int(1e9 / limit)
        if now_ns < self._credit_ns:
            return True
        self._credit_ns = max(self._credit_ns, now_ns - period) + period
        return False

    def _receive_calibration(self, subscription: Subscription) -> None:
        while (taken := subscription.handle.take_message(subscription.msg_type, True)) is not None:
            # Cameras repeat themselves with every image; only the stamp, which follows the four
            # bytes of encapsulation, differs.
            content = taken[0][_STAMP_END:]
            if content != self._latest_info:
                self._latest_info = content
                self._take_calibration(deserialize_message(taken[0], CameraInfo))
            self.calibration_messages += 1

    def _take_calibration(self, message: CameraInfo) -> None:
        try:
            calibration = Calibration.from_message(message)
        except CalibrationError as error:
            with self._calibrated:
                self._info_problem = str(error)
                self._calibrations.clear()
                self._calibrated.notify_all()
            return
        raw = calibration.raw
        key = (calibration.frame_id, raw.height, raw.width)
        with self._calibrated:
            self._info_problem = ''
            self._calibrations[key] = calibration
            self._calibrations.move_to_end(key)
            while len(self._calibrations) > _KEPT_CALIBRATIONS:
                self._calibrations.popitem(last=False)
            self._calibrated.notify_all()


def _leave_to_receiver(message: object) -> None:
    """Stand for the callback that a subscription must have; no executor calls it."""
