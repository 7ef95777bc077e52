"""Messages to frames and back: images as views without copying, calibrations, outputs in place."""

from __future__ import annotations

import array
import math
from dataclasses import dataclass, field, replace
from typing import Literal

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from mtl_perception.encodings import (
    SUPPORTED_ENCODINGS,
    EncodingError,
    TooLargeError,
    decode_compressed,
    to_rgb,
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

_MEASUREMENTS = frozenset({'32FC1', '32FC3'})
_FISHEYE = frozenset({'equidistant', 'fisheye'})


class FrameRejected(ValueError):
    """A message that holds no picture for the network.

    Attributes:
        reason: under which it is counted.
    """

    def __init__(self, reason: Reason, sentence: str) -> None:
        super().__init__(sentence)
        self.reason: Reason = reason


class CalibrationError(ValueError):
    """A camera_info that does not describe the camera; the message says what is wrong with it."""


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


@dataclass(frozen=True)
class Calibration:
    """What one camera_info says about the delivered picture, after binning and ROI.

    Attributes:
        raw: camera of the picture as the lens makes it (K); distortion comes on top.
        rectified: camera of the rectified picture (P), equal to `raw` where P is empty.
        distortion: coefficients D.
        model: of the distortion.
        rotation: R, float64 [3, 3], from the camera to the rectified camera.
        baseline: P[0, 3] and P[1, 3], in pixels times metres.
        frame_id: of the message.
    """

    raw: Intrinsics
    rectified: Intrinsics
    distortion: tuple[float, ...] = ()
    model: str = ''
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    baseline: tuple[float, float] = (0.0, 0.0)
    frame_id: str = ''

    @property
    def is_distorted(self) -> bool:
        """Tell whether the lens bends straight lines."""
        return any(self.distortion)

    @classmethod
    def from_message(cls, info: CameraInfo) -> Calibration:
        """Read a camera_info.

        K, P and D describe the full sensor; a region of interest and binning are applied to them.
        A pixel of a binned picture is the mean of `binning` sensor pixels, so that the picture's
        first pixel centre lies at (binning - 1) / 2 of the sensor.

        Raises:
            CalibrationError: no size, all-zero or broken K, or an impossible region.
        """
        if info.width <= 0 or info.height <= 0:
            raise CalibrationError(
                f'camera_info has the size {info.width}x{info.height}: publish the size of the '
                'images that K belongs to'
            )
        if not any(info.k):
            raise CalibrationError(
                'camera_info has an all-zero K; metric depth needs a calibrated camera: set '
                'focal_length_px or publish K'
            )
        region = info.roi
        width, height = region.width or info.width, region.height or info.height
        if region.x_offset + width > info.width or region.y_offset + height > info.height:
            raise CalibrationError(
                f'camera_info has a region of {width}x{height} at ({region.x_offset}, '
                f'{region.y_offset}) that leaves the {info.width}x{info.height} sensor: '
                'publish the region that the driver reads out'
            )
        binning_x, binning_y = max(info.binning_x, 1), max(info.binning_y, 1)

        def delivered(fx: float, fy: float, cx: float, cy: float) -> Intrinsics:
            return Intrinsics(
                width=max(width // binning_x, 1),
                height=max(height // binning_y, 1),
                fx=fx / binning_x,
                fy=fy / binning_y,
                cx=(cx - region.x_offset + 0.5) / binning_x - 0.5,
                cy=(cy - region.y_offset + 0.5) / binning_y - 0.5,
            )

        k, p, r = info.k, info.p, np.array(info.r, np.float64).reshape(3, 3)
        try:
            raw = delivered(k[0], k[4], k[2], k[5])
            rectified = delivered(p[0], p[5], p[2], p[6]) if any(p) else raw
        except ValueError as error:
            raise CalibrationError(f'camera_info: {error}') from error
        if not np.isfinite(r).all() or not all(math.isfinite(d) for d in info.d):
            raise CalibrationError(
                'camera_info has numbers in D or R that are not finite: calibrate the camera'
            )
        return cls(
            raw=raw,
            rectified=rectified,
            distortion=tuple(info.d),
            model=info.distortion_model,
            rotation=r if r.any() else np.eye(3),
            baseline=(p[3] / binning_x, p[7] / binning_y) if any(p) else (0.0, 0.0),
            frame_id=info.header.frame_id,
        )

    @classmethod
    def from_focal_length(cls, focal_length: float, height: int, width: int) -> Calibration:
        """Return a camera without distortion whose axis meets the middle of the picture."""
        intrinsics = Intrinsics(
            width, height, focal_length, focal_length, (width - 1) / 2, (height - 1) / 2
        )
        return cls(intrinsics, intrinsics)


class Rectifier:
    """Removes lens distortion; keeps the maps of the last calibration."""

    def __init__(self) -> None:
        self._calibration: Calibration | None = None
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        self._rectified: np.ndarray | None = None

    def rectify(self, frame: CameraFrame, calibration: Calibration) -> CameraFrame:
        """Return the frame as the rectified camera of `calibration` sees it, in rgb8.

        The pixels are valid until the next call.

        Raises:
            FrameRejected: the distortion model is unknown.
        """
        if calibration is not self._calibration:
            self._maps = self._make_maps(calibration)
            self._calibration = calibration
        assert self._maps is not None
        rgb = to_rgb(frame.pixels, frame.encoding)
        if self._rectified is None or self._rectified.shape != rgb.shape:
            self._rectified = np.empty_like(rgb)
        cv2.remap(rgb, *self._maps, cv2.INTER_LINEAR, dst=self._rectified)
        return replace(
            frame, pixels=self._rectified, encoding='rgb8', intrinsics=calibration.rectified
        )

    @staticmethod
    def _make_maps(calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
        raw, rectified = calibration.raw, calibration.rectified
        size = (rectified.width, rectified.height)
        distortion = np.array(calibration.distortion, np.float64)
        try:
            make = (
                cv2.fisheye.initUndistortRectifyMap
                if calibration.model in _FISHEYE
                else cv2.initUndistortRectifyMap
            )
            return make(
                raw.matrix,
                distortion,
                calibration.rotation,
                rectified.matrix,
                size,
                cv2.CV_16SC2,
            )
        except cv2.error as error:
            raise FrameRejected(
                'bad_data',
                f'the distortion model {calibration.model!r} with {distortion.size} coefficients '
                'cannot be rectified: publish plumb_bob, rational_polynomial or equidistant, or '
                'set rectify to false',
            ) from error


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
            message.r = calibration.rotation.ravel()
            if calibration.distortion:
                message.distortion_model = calibration.model
                message.d = list(calibration.distortion)
    message.p = projection.ravel()
