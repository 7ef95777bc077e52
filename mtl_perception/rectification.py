"""Take the lens distortion out of pictures, and out of what is known of their pixels."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np

from mtl_perception.calibration import Calibration, CalibrationError
from mtl_perception.encodings import to_rgb
from mtl_perception.frames import CameraFrame

_FISHEYE = frozenset({'equidistant', 'fisheye'})
# Models of which cv2.initUndistortRectifyMap tells one from the other by their coefficients.
_OPENCV_MODELS = frozenset({'plumb_bob', 'rational_polynomial', 'thin_prism'})
_POINTS_PER_EDGE = 9


class Lens:
    """What one calibrated camera sees, as its rectified camera would see it.

    Attributes:
        calibration: of both.
    """

    def __init__(self, calibration: Calibration) -> None:
        """Check that the distortion can be removed.

        Raises:
            CalibrationError: its model is unknown, or has another number of coefficients.
        """
        self.calibration = calibration
        self._rotation = np.array(calibration.rotation).reshape(3, 3)
        self._distortion = np.array(calibration.distortion, np.float64)
        self._maps: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        if calibration.model not in _FISHEYE | _OPENCV_MODELS:
            raise _unknown(calibration)
        try:
            self.maps(calibration.raw.height, calibration.raw.width)
        except cv2.error as error:
            raise _unknown(calibration) from error

    def maps(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return cv2.remap's maps for pictures of `height` x `width`; they are kept.

        The rectified picture has the rectified camera's size, scaled like the raw one.
        """
        if (height, width) not in self._maps:
            raw, rectified = self.calibration.raw, self.calibration.rectified
            if (height, width) != (raw.height, raw.width):
                scale = width / raw.width
                size = round(scale * rectified.width), round(scale * rectified.height)
                raw, rectified = raw.scaled(scale, width, height), rectified.scaled(scale, *size)
            make = (
                cv2.fisheye.initUndistortRectifyMap
                if self.calibration.model in _FISHEYE
                else cv2.initUndistortRectifyMap
            )
            self._maps[height, width] = make(
                raw.matrix,
                self._distortion,
                self._rotation,
                rectified.matrix,
                (rectified.width, rectified.height),
                cv2.CV_16SC2,
            )
        return self._maps[height, width]

    def shown(self, valid: np.ndarray) -> np.ndarray | None:
        """Return which rectified pixels show valid ones of the raw picture and nothing else.

        Args:
            valid: uint8 [H, W], 0 where the raw picture is not valid.

        Returns:
            uint8 [H, W], 0 or 1; None where all of them are valid.
        """
        raw = cv2.compare(valid, 0, cv2.CMP_GT)
        mixed = cv2.remap(raw, *self.maps(*valid.shape), cv2.INTER_LINEAR)
        return None if mixed.min() == 255 else (mixed == 255).view(np.uint8)

    def labels(self, labels: np.ndarray, unknown: int = 255) -> np.ndarray:
        """Return labels, uint8 [H, W], of the nearest pixels; `unknown` beyond the picture."""
        return self._nearest(labels, unknown)

    def depth(self, depth: np.ndarray) -> np.ndarray:
        """Return metres along the rectified camera's axis, float32 [H, W]; 0 is unknown."""
        straight = self._nearest(depth, 0)
        rotation = self._rotation
        if not np.array_equal(rotation, np.eye(3)):
            rows, columns = straight.shape
            v, u = np.mgrid[0:rows, 0:columns]
            camera = self.calibration.rectified
            camera = camera.scaled(columns / camera.width, columns, rows)
            x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
            along = rotation[0, 2] * x + rotation[1, 2] * y + rotation[2, 2]
            straight /= along.astype(np.float32)
        return straight

    def normals(self, normals: np.ndarray) -> np.ndarray:
        """Return normals in the rectified camera's frame, float32 [H, W, 3]; 0 is unknown."""
        return self._nearest(normals, 0) @ self._rotation.T.astype(np.float32)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Return the boxes around rectified boxes, cut to the rectified picture.

        Args:
            boxes: float32 [M, 4], x0 y0 x1 y1, where a pixel reaches from its index to the next.

        Returns:
            float32 [M, 4]; of no area where the rectified picture does not show any of it.
        """
        raw, rectified = self.calibration.raw, self.calibration.rectified
        undistort = (
            cv2.fisheye.undistortPoints
            if self.calibration.model in _FISHEYE
            else cv2.undistortPoints
        )
        steps = np.linspace(0, 1, _POINTS_PER_EDGE)
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)])
        around = np.concatenate([np.outer(1 - steps, a) + np.outer(steps, b)
                                 for a, b in pairwise(corners)])  # fmt: skip
        straight = np.zeros((len(boxes), 4), np.float32)
        for index, box in enumerate(boxes.astype(np.float64)):
            # Boxes count pixels' areas, cameras their centres.
            outline = box[:2] + around * (box[2:] - box[:2]) - 0.5
            points = undistort(
                outline[:, None],
                raw.matrix,
                self._distortion,
                R=self._rotation,
                P=rectified.matrix,
            )
            points = (points[:, 0] + 0.5).clip(0, (rectified.width, rectified.height))
            straight[index] = *points.min(axis=0), *points.max(axis=0)
        return straight

    def _nearest(self, values: np.ndarray, beyond: float) -> np.ndarray:
        maps = self.maps(*values.shape[:2])
        return cv2.remap(values, *maps, cv2.INTER_NEAREST, borderValue=(beyond,) * 4)


class Rectifier:
    """Rectifies a camera's pictures; keeps what it needs for the last calibration."""

    def __init__(self) -> None:
        self._lens: Lens | None = None
        self._rectified: np.ndarray | None = None
        self._valid: tuple[np.ndarray | None, np.ndarray | None] | None = None

    def lens(self, calibration: Calibration) -> Lens:
        """Return what rectifies this camera.

        Raises:
            CalibrationError: the distortion model is unknown.
        """
        if self._lens is None or self._lens.calibration != calibration:
            self._lens, self._valid = Lens(calibration), None
        return self._lens

    def rectify(self, frame: CameraFrame, calibration: Calibration) -> CameraFrame:
        """Return the frame as the rectified camera of `calibration` sees it, in rgb8.

        What the lens does not show is not valid. The pixels last until the next call.

        Raises:
            CalibrationError: the distortion model is unknown.
            EncodingError: the pixels do not fit their encoding.
        """
        lens = self.lens(calibration)
        rgb = to_rgb(frame.pixels, frame.encoding)
        if self._valid is None or self._valid[0] is not frame.valid:
            whole = np.ones(rgb.shape[:2], np.uint8)
            self._valid = frame.valid, lens.shown(whole if frame.valid is None else frame.valid)
        maps = lens.maps(*rgb.shape[:2])
        size = maps[0].shape[:2]
        if self._rectified is None or self._rectified.shape[:2] != size:
            self._rectified = np.empty((*size, 3), np.uint8)
        cv2.remap(rgb, *maps, cv2.INTER_LINEAR, dst=self._rectified)
        return replace(
            frame,
            pixels=self._rectified,
            encoding='rgb8',
            intrinsics=calibration.rectified,
            valid=self._valid[1],
        )


def _unknown(calibration: Calibration) -> CalibrationError:
    return CalibrationError(
        f'the distortion model {calibration.model!r} with {len(calibration.distortion)} '
        'coefficients cannot be rectified: publish plumb_bob, rational_polynomial or equidistant, '
        'or do not rectify'
    )
