"""Joint augmentation of picture and ground truth as a camera that could have taken it.

Zoom is the virtual camera of DSINE and Depth Pro: the picture is scaled, the focal length is
declared unchanged, so the scene must have been squashed along the optical axis. A point (X, Y, Z)
becomes (A (X, Y), Z / s) with A a roll and perhaps a mirror; pixels, depth, normals and
intrinsics all follow from that one map, so they still agree with each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from mtl_perception.datasets import region_of
from mtl_perception.frames import Intrinsics
from mtl_perception.letterbox import PADDING
from mtl_training.config import AugmentationSettings
from mtl_training.datasets.arrays import INVALID_LABEL, MILLIMETRES, NORMAL_SCALE, ArrayFrame

# Rec. 601 luma, as a row of the colour matrix.
LUMA = np.array([0.299, 0.587, 0.114])
# Boxes of which less area is left in the picture are regions of their class, boxes with a shorter
# edge are dropped.
LEAST_SHARE = 0.25
LEAST_EDGE_PX = 3.0


@dataclass(frozen=True)
class VirtualCamera:
    """How the augmented picture is taken from the real one.

    Attributes:
        zoom: scale of the picture, output pixels per source pixel.
        roll: rotation about the optical axis, radians, positive turns the picture clockwise.
        mirrored: left and right exchanged.
        left, top: first pixel of the crop within the scaled (and mirrored) picture.
        height, width: size of the crop in pixels.
        focal_length: fx of the augmented picture in pixels, the one the network is trained for.
    """

    zoom: float
    roll: float
    mirrored: bool
    left: float
    top: float
    height: int
    width: int
    focal_length: float

    def squash(self, source: Intrinsics) -> float:
        """Return s: depth becomes depth / s, the third component of normals grows by s."""
        return self.zoom * source.fx / self.focal_length

    def intrinsics(self, source: Intrinsics) -> Intrinsics:
        """Return the camera of the augmented picture."""
        cx = source.width - 1 - source.cx if self.mirrored else source.cx
        return Intrinsics(
            width=self.width,
            height=self.height,
            fx=self.focal_length,
            fy=self.focal_length * source.fy / source.fx,
            cx=(cx + 0.5) * self.zoom - 0.5 - self.left,
            cy=(source.cy + 0.5) * self.zoom - 0.5 - self.top,
        )

    def axes(self) -> np.ndarray:
        """Return A, float64 [2, 2]: mirror, then roll."""
        cosine, sine = math.cos(self.roll), math.sin(self.roll)
        sign = -1.0 if self.mirrored else 1.0
        return np.array([[sign * cosine, -sine], [sign * sine, cosine]])

    def pixel_map(self, source: Intrinsics) -> np.ndarray:
        """Return the affine map from source pixels to augmented ones, float64 [2, 3]."""
        target = self.intrinsics(source)
        focal_in = np.diag([source.fx, source.fy])
        focal_out = np.diag([target.fx, target.fy])
        linear = focal_out @ (self.squash(source) * self.axes()) @ np.linalg.inv(focal_in)
        offset = np.array([target.cx, target.cy]) - linear @ np.array([source.cx, source.cy])
        return np.column_stack([linear, offset])


def draw_camera(
    random: np.random.Generator,
    settings: AugmentationSettings,
    source: Intrinsics,
    height: int,
    width: int,
    focal_length: float,
) -> VirtualCamera:
    """Draw a zoom, roll, mirror and crop.

    Zoom 1 is the picture that just covers the crop; smaller zooms leave a border of invalid
    pixels, as a camera of another aspect does on the robot.
    """
    low, high = settings.zoom
    cover = max(height / source.height, width / source.width)
    zoom = cover * math.exp(random.uniform(math.log(low), math.log(high)))
    slack_x, slack_y = zoom * source.width - width, zoom * source.height - height
    return VirtualCamera(
        zoom=zoom,
        roll=math.radians(random.uniform(-settings.rotation_deg, settings.rotation_deg)),
        mirrored=bool(random.random() < settings.flip),
        left=slack_x * random.random(),
        top=slack_y * random.random(),
        height=height,
        width=width,
        focal_length=focal_length,
    )


def augment(frame: ArrayFrame, camera: VirtualCamera) -> dict[str, np.ndarray]:
    """Take `frame` with a virtual camera.

    Returns:
        image uint8 [H, W, 3]; label uint8 [H, W], 255 outside the picture; depth float32 [H, W]
        metres, 0 invalid; normal float32 [H, W, 3] unit, (0, 0, 0) invalid; intrinsics float32
        [4] fx fy cx cy; boxes float32 [M, 4] within the picture, box_labels int64 [M],
        boxes_known bool [C], attributes int8 [A].
    """
    size = (camera.width, camera.height)
    pixel_map = camera.pixel_map(frame.intrinsics)
    squash = camera.squash(frame.intrinsics)
    image = cv2.warpAffine(
        _shrinkable(frame.image, camera.zoom), pixel_map, size, borderValue=PADDING
    )
    label = cv2.warpAffine(
        frame.label, pixel_map, size, flags=cv2.INTER_NEAREST, borderValue=INVALID_LABEL
    )
    depth = cv2.warpAffine(frame.depth, pixel_map, size, flags=cv2.INTER_NEAREST)
    normal = cv2.warpAffine(frame.normal.view(np.uint8), pixel_map, size, flags=cv2.INTER_NEAREST)
    target = camera.intrinsics(frame.intrinsics)
    boxes, seen, whole = move_boxes(frame.boxes, pixel_map, camera.height, camera.width)
    box_labels = frame.box_labels[seen]
    # What shows a little is neither a thing to be found nor background.
    box_labels = np.where((box_labels >= 0) & ~whole, region_of(box_labels), box_labels)
    return {
        'image': image,
        'label': label,
        'depth': depth.astype(np.float32) * np.float32(1 / (MILLIMETRES * squash)),
        'normal': turn_normals(normal.view(np.int8), camera.axes(), squash),
        'intrinsics': np.array([target.fx, target.fy, target.cx, target.cy], np.float32),
        'boxes': boxes,
        'box_labels': box_labels,
        'boxes_known': frame.boxes_known,
        'attributes': frame.attributes,
    }


def move_boxes(
    boxes: np.ndarray, pixel_map: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take boxes along with an affine map, cut them to the picture, drop what does not show.

    A turned box becomes the one around its turned inscribed ellipse, which follows things better
    than the one around its corners (Kalra et al., Towards Rotation Invariance in Object
    Detection, ICCV 2021). Without a roll both are the moved box.

    Args:
        boxes: float [M, 4], x0 y0 x1 y1 with pixel centres at +0.5.
        pixel_map: float [2, 3] between coordinates with pixel centres at whole numbers.
        height, width: of the new picture in pixels.

    Returns:
        The boxes that are left, float32 [K, 4]; which they are, bool [M]; and of which of them
        enough is left to tell the thing by, bool [K].
    """
    boxes = np.asarray(boxes, np.float64)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    linear, offset = pixel_map[:, :2], pixel_map[:, 2]
    centre = centre @ linear.T + offset + 0.5
    half = np.sqrt(half**2 @ (linear**2).T)
    low, high = centre - half, centre + half
    limit = np.array([width, height], np.float64)
    seen_low, seen_high = low.clip(0, limit), high.clip(0, limit)
    seen = seen_high - seen_low
    share = seen.prod(axis=1) / (high - low).prod(axis=1).clip(min=1e-9)
    kept = (seen >= LEAST_EDGE_PX).all(axis=1)
    left = np.concatenate([seen_low, seen_high], axis=1)[kept].astype(np.float32)
    return left, kept, share[kept] >= LEAST_SHARE


def turn_normals(normal: np.ndarray, axes: np.ndarray, squash: float) -> np.ndarray:
    """Return unit normals of the mapped scene, float32 [H, W, 3]; (0, 0, 0) stays.

    Normals transform by the inverse transpose of the points' map: for A orthogonal that is
    (A (nx, ny), s nz), then normalised.
    """
    linear = np.zeros((3, 3))
    linear[:2, :2] = axes
    linear[2, 2] = squash
    turned = cv2.transform(normal.astype(np.float32) / np.float32(NORMAL_SCALE), linear)
    length = np.sqrt(np.einsum('hwc,hwc->hw', turned, turned))[..., None]
    return np.divide(turned, length, out=np.zeros_like(turned), where=length > 0)


def _shrinkable(image: np.ndarray, zoom: float) -> np.ndarray:
    """Blur a picture that is to be made smaller, so that its texture does not alias."""
    if zoom >= 0.75:
        return image
    return cv2.GaussianBlur(image, (0, 0), 0.5 * math.sqrt(1 / zoom**2 - 1))


def change_colours(
    image: np.ndarray, random: np.random.Generator, settings: AugmentationSettings
) -> np.ndarray:
    """Return another exposure, tint and sharpness of the picture, uint8 [H, W, 3].

    Brightness, contrast, saturation and hue are one 3x4 matrix, gamma one table: two passes.
    """

    def around_one(spread: float) -> float:
        return 1 + random.uniform(-spread, spread)

    saturation = 0.0 if random.random() < settings.greyscale else around_one(settings.saturation)
    hue = math.radians(random.uniform(-settings.hue_deg, settings.hue_deg))
    grey = np.tile(LUMA, (3, 1))
    matrix = grey + saturation * (_hue_matrix(hue) - grey)
    contrast = around_one(settings.contrast)
    gain = contrast * around_one(settings.brightness)
    matrix = np.column_stack([gain * matrix, np.full(3, 128 * (1 - contrast))])
    image = cv2.transform(image, matrix)
    if settings.gamma > 1:
        exponent = settings.gamma ** random.uniform(-1, 1)
        table = np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)
        image = cv2.LUT(image, table)
    if random.random() < settings.blur:
        image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.4, 1.4))
    if random.random() < settings.noise:
        # A tile is drawn and repeated with a shift: drawing every pixel costs more than the warp.
        height, width = image.shape[:2]
        tile = random.normal(0, random.uniform(2, 8), (96, 96, 3)).astype(np.float32)
        repeats = (-(-height // 96), -(-width // 96), 1)
        noise = np.tile(tile, repeats)[:height, :width]
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


def _hue_matrix(angle: float) -> np.ndarray:
    """Return the rotation of RGB about grey that keeps luma (SVG feColorMatrix hueRotate)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    grey = np.tile([0.213, 0.715, 0.072], (3, 1))  # Rec. 709 luma, as in the turn
    chroma = np.eye(3) - grey
    turn = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])
    return grey + cosine * chroma + sine * turn
