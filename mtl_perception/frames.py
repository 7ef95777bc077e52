"""Plain data that passes between camera, perceiver and outputs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole camera without distortion, in pixels; pixel centres lie at whole numbers.

    A point (X, Y, Z) of the optical frame (x right, y down, z forward; REP 103) is seen at
    u = fx X / Z + cx, v = fy Y / Z + cy.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float

    def __post_init__(self) -> None:
        numbers = (self.fx, self.fy, self.cx, self.cy)
        if not all(np.isfinite(number) for number in numbers) or self.fx <= 0 or self.fy <= 0:
            raise ValueError(
                f'intrinsics fx={self.fx} fy={self.fy} cx={self.cx} cy={self.cy} are no camera: '
                'finite numbers and positive focal lengths are expected; calibrate the camera'
            )

    @property
    def matrix(self) -> np.ndarray:
        """Return K, float64 [3, 3]."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)

    def scaled(self, scale: float, width: int, height: int) -> Intrinsics:
        """Return the camera of the picture resized by `scale` to `width` x `height` pixels.

        Pixel centres are kept: cx becomes (cx + 0.5) scale - 0.5.
        """
        return Intrinsics(
            width=width,
            height=height,
            fx=self.fx * scale,
            fy=self.fy * scale,
            cx=(self.cx + 0.5) * scale - 0.5,
            cy=(self.cy + 0.5) * scale - 0.5,
        )

    def cropped(self, left: int, top: int, width: int, height: int) -> Intrinsics:
        """Return the camera of the `width` x `height` window whose first pixel is (left, top)."""
        return replace(self, width=width, height=height, cx=self.cx - left, cy=self.cy - top)


@dataclass(frozen=True)
class CameraFrame:
    """One picture as the camera delivered it.

    Attributes:
        pixels: uint8 or uint16 [H, W] or [H, W, C], possibly a view of a message's bytes.
        encoding: name as in sensor_msgs/image_encodings.hpp ('rgb8', 'bgr8', 'mono8', ...).
        intrinsics: of `pixels`, or None when the camera is not calibrated.
        stamp_ns: header stamp in nanoseconds.
        frame_id: optical frame of the camera.
        valid: uint8 [H, W], 0 where the picture shows nothing of the surroundings: beyond the
            lens after rectification, or the robot itself; None: all of it is valid.
    """

    pixels: np.ndarray
    encoding: str
    intrinsics: Intrinsics | None = None
    stamp_ns: int = 0
    frame_id: str = ''
    valid: np.ndarray | None = None


@dataclass
class Prediction:
    """What the network says about one frame, in the camera's optical frame.

    Attributes:
        label: uint8 [H, W], class index, 255 where the frame is not valid; None when the bundle
            has no segmentation.
        confidence: uint8 [H, W], softmax maximum x 255.
        depth: float32 [H, W], metres along the optical axis; NaN where invalid.
        normal: float32 [H, W, 3], unit vectors towards the camera.
        boxes: float32 [M, 4], x0 y0 x1 y1 of the M things found, in pixels of the outputs, where
            a pixel's area reaches from its index to the next: 0..W and 0..H. Cut to the picture.
        box_scores: float32 [M], 0..1, descending.
        box_labels: int32 [M], index of the detection's class.
        class_scores: float32 [C], 0..1, of all classes of all attributes in the manifest's order.
        picture_size: (height, width) of the outputs' picture, also where no map was asked for.
        intrinsics: of the outputs (not of the input), or None when the camera is not calibrated.
        depth_calibrated: False when depth assumes the training camera's focal length.
        timings_ms: duration of each stage by name ('prepare', 'infer', 'post').
    """

    label: np.ndarray | None = None
    confidence: np.ndarray | None = None
    depth: np.ndarray | None = None
    normal: np.ndarray | None = None
    boxes: np.ndarray | None = None
    box_scores: np.ndarray | None = None
    box_labels: np.ndarray | None = None
    class_scores: np.ndarray | None = None
    picture_size: tuple[int, int] | None = None
    intrinsics: Intrinsics | None = None
    depth_calibrated: bool = False
    timings_ms: dict[str, float] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int] | None:
        """Return (height, width) of the outputs' picture; None when it is not known."""
        for values in (self.label, self.confidence, self.depth, self.normal):
            if values is not None:
                return values.shape[0], values.shape[1]
        return self.picture_size
