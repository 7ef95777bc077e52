"""What a camera_info says about the camera, without ROS."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from mtl_perception.frames import Intrinsics

_NO_ROTATION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_RECTIFIED_WORDS = frozenset({'rect', 'rectified'})


class CalibrationError(ValueError):
    """A camera_info that does not describe the camera; the message says what is wrong with it."""


@dataclass(frozen=True)
class Calibration:
    """What one camera_info says about the delivered picture, after binning and ROI.

    Attributes:
        raw: camera of the picture as the lens makes it (K); distortion comes on top.
        rectified: camera of the rectified picture (P), equal to `raw` where P is empty.
        distortion: coefficients D.
        model: of the distortion.
        rotation: R, row by row, from the camera to the rectified camera.
        baseline: P[0, 3] and P[1, 3], in pixels times metres.
        frame_id: of the message.
    """

    raw: Intrinsics
    rectified: Intrinsics
    distortion: tuple[float, ...] = ()
    model: str = ''
    rotation: tuple[float, ...] = _NO_ROTATION
    baseline: tuple[float, float] = (0.0, 0.0)
    frame_id: str = ''

    @property
    def is_distorted(self) -> bool:
        """Tell whether the lens bends straight lines."""
        return any(self.distortion)

    @classmethod
    def from_message(cls, info: Any) -> Calibration:
        """Read a sensor_msgs/CameraInfo of ROS 2 or ROS 1, or any object with its fields.

        K, P and D describe the full sensor; a region of interest and binning are applied to them.
        A pixel of a binned picture is the mean of `binning` sensor pixels, so that the picture's
        first pixel centre lies at (binning - 1) / 2 of the sensor.

        Raises:
            CalibrationError: no size, all-zero or broken K, or an impossible region.
        """
        k, d, r, p = (_numbers(info, name) for name in 'kdrp')
        if info.width <= 0 or info.height <= 0:
            raise CalibrationError(
                f'camera_info has the size {info.width}x{info.height}: publish the size of the '
                'images that K belongs to'
            )
        if not any(k):
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

        try:
            raw = delivered(k[0], k[4], k[2], k[5])
            rectified = delivered(p[0], p[5], p[2], p[6]) if any(p) else raw
        except ValueError as error:
            raise CalibrationError(f'camera_info: {error}') from error
        if not all(math.isfinite(number) for number in (*r, *d)):
            raise CalibrationError(
                'camera_info has numbers in D or R that are not finite: calibrate the camera'
            )
        return cls(
            raw=raw,
            rectified=rectified,
            distortion=tuple(d),
            model=info.distortion_model,
            rotation=tuple(r) if any(r) else _NO_ROTATION,
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


def _numbers(info: Any, name: str) -> list[float]:
    """Return K, D, R or P, whose names ROS 1 writes in capitals."""
    values = getattr(info, name) if hasattr(info, name) else getattr(info, name.upper())
    return [float(value) for value in values]


def is_named_rectified(topic: str) -> bool:
    """Tell by its name whether an image topic's pictures are rectified, so that P describes them.

    Its last name or the one before has the word 'rect' or 'rectified', as in /left/image_rect and
    /rectified/image; a compressed topic counts as the image topic that it belongs to.
    """
    names = topic.lower().removesuffix('/compressed').split('/')[-2:]
    return not _RECTIFIED_WORDS.isdisjoint(re.split('[/_]', '/'.join(names)))
