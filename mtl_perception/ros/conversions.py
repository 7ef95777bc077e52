"""Messages to frames and back: images as views without copying, calibrations, outputs in place."""

from __future__ import annotations

import array
from typing import Literal

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from mtl_perception.calibration import Calibration
from mtl_perception.encodings import (
    SUPPORTED_ENCODINGS,
    EncodingError,
    TooLargeError,
    decode_compressed,
    view_image,
)
from mtl_perception.frames import CameraFrame, Intrinsics

Reason = Literal[
    'superseded',
    'rate_limited',
    'too_old',
    'disabled',
    'deactivated',
    'bad_encoding',
    'bad_size',
    'bad_data',
    'too_large',
    'engine_failed',
    'publishing_failed',
]
"""Why a frame was dropped; the names appear in PerceptionStatus and in /diagnostics."""

UNREADABLE: frozenset[Reason] = frozenset({'bad_encoding', 'bad_size', 'bad_data', 'too_large'})
"""Reasons that lie in a frame's content."""

_MILLIMETRES = 1000.0
_LARGEST_MILLIMETRES = 65535.0

_MEASUREMENTS = frozenset({'32FC1', '32FC3'})


class FrameRejected(ValueError):
    """A message that holds no picture for the network.

    Attributes:
        reason: under which it is counted.
    """

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason: Reason = reason


def to_nanoseconds(stamp: Time) -> int:
    """Return a stamp as one number."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def frame_from_image(message: Image, max_pixels: int) -> CameraFrame:
    """View an Image's bytes as a frame without copying them; it keeps the message's memory alive.

    Args:
        message: of any supported colour or grey encoding.
        max_pixels: larger pictures are refused.

    Raises:
        FrameRejected: the message is too large, empty, cut off or of another encoding.
    """
    _check_size(message.height, message.width, max_pixels)
    if message.encoding not in SUPPORTED_ENCODINGS or message.encoding in _MEASUREMENTS:
        names = ', '.join(sorted(SUPPORTED_ENCODINGS - _MEASUREMENTS))
        raise FrameRejected(
            'bad_encoding',
            f'encoding {message.encoding[:40]!r} is no colour or grey image: publish one of '
            f'{names}',
        )
    try:
        pixels = view_image(
            message.data,
            message.height,
            message.width,
            message.encoding,
            message.step,
            bool(message.is_bigendian),
        )
    except EncodingError as error:
        raise FrameRejected('bad_data', str(error)) from error
    return CameraFrame(
        pixels,
        message.encoding,
        stamp_ns=to_nanoseconds(message.header.stamp),
        frame_id=message.header.frame_id,
    )


def frame_from_compressed(message: CompressedImage, max_pixels: int) -> CameraFrame:
    """Decode a CompressedImage.

    Raises:
        FrameRejected: no jpeg or png, cut off, or larger than `max_pixels`.
    """
    try:
        pixels, encoding = decode_compressed(message.data, message.format, max_pixels)
    except TooLargeError as error:
        raise FrameRejected('too_large', str(error)) from error
    except EncodingError as error:
        raise FrameRejected('bad_data', str(error)) from error
    return CameraFrame(
        pixels,
        encoding,
        stamp_ns=to_nanoseconds(message.header.stamp),
        frame_id=message.header.frame_id,
    )


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height <= 0 or width <= 0:
        raise FrameRejected(
            'bad_size', f'the image is {width}x{height}: a picture has at least one pixel'
        )
    if height * width > max_pixels:
        raise FrameRejected(
            'too_large',
            f'the image of {width}x{height} pixels exceeds max_pixels {max_pixels}: '
            "raise max_pixels or lower the camera's resolution",
        )


def writable_array(message: Image, height: int, width: int, encoding: str) -> np.ndarray:
    """Lay an array over the bytes of a kept message, made anew only when the size changes.

    Assigning an array to `data` would cost tens of milliseconds; writing in place costs a copy.

    Args:
        message: gets size, encoding and step.
        height: rows.
        width: columns.
        encoding: one of mono8, rgb8, 16UC1, 32FC1, 32FC3.

    Returns:
        A writable view [H, W] or [H, W, C] of `message.data`.
    """
    dtype, channels = _OUTPUT_TYPES[encoding]
    step = width * channels * dtype.itemsize
    if len(message.data) != height * step:
        message.data = array.array('B', bytes(height * step))
    message.height, message.width, message.encoding, message.step = height, width, encoding, step
    message.is_bigendian = 0
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.frombuffer(message.data, dtype).reshape(shape)


def to_millimetres(depth: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Return scaled metres as uint16 millimetres, 0 where invalid or beyond 65.535 m."""
    millimetres = np.rint(depth * np.float32(scale * _MILLIMETRES))
    valid = (millimetres > 0) & (millimetres <= _LARGEST_MILLIMETRES)
    return np.where(valid, millimetres, 0).astype(np.uint16)


_OUTPUT_TYPES = {
    'mono8': (np.dtype('u1'), 1),
    'rgb8': (np.dtype('u1'), 3),
    '16UC1': (np.dtype('<u2'), 1),
    '32FC1': (np.dtype('<f4'), 1),
    '32FC3': (np.dtype('<f4'), 3),
}


def fill_camera_info(
    message: CameraInfo,
    height: int,
    width: int,
    intrinsics: Intrinsics | None,
    calibration: Calibration | None,
    *,
    rectified: bool,
) -> None:
    """Describe the camera of the outputs in place.

    Args:
        message: to fill; its header is left alone.
        height: rows of the outputs.
        width: columns of the outputs.
        intrinsics: of the outputs; None leaves K zero, which ROS reads as uncalibrated.
        calibration: of the input, for distortion and the stereo baseline; None: neither.
        rectified: the outputs belong to the rectified picture, which has no distortion.
    """
    message.height, message.width = height, width
    message.binning_x = message.binning_y = 0
    message.distortion_model, message.d = 'plumb_bob', [0.0] * 5
    message.r = np.eye(3).ravel()
    if intrinsics is None:
        message.k, message.p = np.zeros(9), np.zeros(12)
        return
    message.k = intrinsics.matrix.ravel()
    projection = np.zeros((3, 4))
    projection[:, :3] = intrinsics.matrix
    if calibration is not None:
        source = calibration.rectified if rectified else calibration.raw
        scale_x, scale_y = intrinsics.fx / source.fx, intrinsics.fy / source.fy
        projection[0, 3] = calibration.baseline[0] * scale_x
        projection[1, 3] = calibration.baseline[1] * scale_y
        if not rectified:
            other = calibration.rectified
            projection[0, :3] = (other.fx * scale_x, 0, (other.cx + 0.5) * scale_x - 0.5)
            projection[1, :3] = (0, other.fy * scale_y, (other.cy + 0.5) * scale_y - 0.5)
            message.r = calibration.rotation
            if calibration.distortion:
                message.distortion_model = calibration.model
                message.d = list(calibration.distortion)
    message.p = projection.ravel()
