"""A webcam, or a video file in its place, as a ROS camera for a first try."""

from __future__ import annotations

import array
import threading
import time
from pathlib import Path

import cv2
import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

from mtl_perception.opencv import quiet
from mtl_perception.ros.sources import sibling

RETRY_S = 1.0


class CameraError(RuntimeError):
    """A camera that can't be used; the message is one sentence for the user."""


class Webcam:
    """Publishes the pictures of a camera from a thread of its own, as bgr8.

    A camera that stops delivering is opened again every second; a video file is played once at
    its own rate.

    Args:
        node: publishes.
        device: number of the camera ('0' is /dev/video0), or a file or URL that OpenCV reads.
        topic: of the pictures; camera_info, where given, goes out beside it.
        frame_id: optical frame of the camera.
        size: width and height to ask the camera for; it may choose others.
        fps: pictures per second to ask for.
        camera_info: calibration of the pictures; without one, none is published.

    Raises:
        CameraError: the camera doesn't exist or can't be opened.
    """

    def __init__(
        self,
        node: Node,
        device: str,
        *,
        topic: str = '/camera/image',
        frame_id: str = 'camera_optical_frame',
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        camera_info: CameraInfo | None = None,
    ) -> None:
        self._node = node
        self._device = device
        self._size = size
        self._fps = fps
        self._message = Image(encoding='bgr8')
        self._message.header.frame_id = frame_id
        self._info = camera_info
        self._capture = self._open()
        self._images = node.create_publisher(Image, topic, 1)
        self._infos = (
            node.create_publisher(CameraInfo, sibling(topic, 'camera_info'), 1)
            if camera_info is not None
            else None
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name='webcam', daemon=True)

    @property
    def is_live(self) -> bool:
        """Say whether pictures may still come; False after the end of a video file."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to publish."""
        self._thread.start()

    def close(self) -> None:
        """Stop publishing and free the camera."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._capture.release()
        self._node.destroy_publisher(self._images)
        if self._infos is not None:
            self._node.destroy_publisher(self._infos)

    @property
    def _is_file(self) -> bool:
        return Path(self._device).is_file()

    def _open(self) -> cv2.VideoCapture:
        if self._device.isdigit():
            path = Path(f'/dev/video{self._device}')
            if not path.exists():
                others = ', '.join(sorted(map(str, path.parent.glob('video*')))) or 'none'
                raise CameraError(
                    f'there is no camera {self._device} ({path} does not exist; present: '
                    f'{others}): plug it in or give another number'
                )
        elif '://' not in self._device and not Path(self._device).exists():
            raise CameraError(
                f'{self._device} is no camera: give a number (0 is /dev/video0), a video file or '
                'a URL'
            )
        with quiet():
            capture = cv2.VideoCapture(
                int(self._device) if self._device.isdigit() else self._device
            )
        if not capture.isOpened():
            raise CameraError(
                f'camera {self._device} can not be opened: close other programs that use it, or '
                'join the group that owns it (usually video)'
            )
        if self._size is not None:
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, self._size[0])
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self._size[1])
        if self._fps is not None:
            capture.set(cv2.CAP_PROP_FPS, self._fps)
        # A deeper queue in the driver would only deliver older pictures.
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return capture

    def _run(self) -> None:
        period_s = 1 / max(1.0, self._capture.get(cv2.CAP_PROP_FPS)) if self._is_file else 0.0
        due = time.monotonic()
        while not self._stop.is_set():
            grabbed = self._capture.grab()
            self._message.header.stamp = self._node.get_clock().now().to_msg()
            grabbed, pixels = self._capture.retrieve() if grabbed else (False, None)
            if grabbed:
                self._publish(pixels)
            elif self._is_file:
                return
            else:
                self._reopen()
            due += period_s
            self._stop.wait(max(0.0, due - time.monotonic()) if period_s else 0.0)

    def _publish(self, pixels: np.ndarray) -> None:
        message = self._message
        if len(message.data) != pixels.nbytes:
            message.data = array.array('B', bytes(pixels.nbytes))
        message.height, message.width, message.step = (*pixels.shape[:2], pixels.strides[0])
        np.copyto(np.frombuffer(message.data, np.uint8), pixels.ravel())
        if self._infos is not None:
            self._info.header = message.header
            self._infos.publish(self._info)
        self._images.publish(message)

    def _reopen(self) -> None:
        self._node.get_logger().error(
            f'camera {self._device} delivers no pictures: check its cable; trying again',
            throttle_duration_sec=10.0,
        )
        self._capture.release()
        while not self._stop.wait(RETRY_S):
            try:
                self._capture = self._open()
            except CameraError:
                continue
            return
