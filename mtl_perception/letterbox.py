"""Bring a camera's picture into the network's input: one scale factor, centred, padded."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .encodings import can_resize, to_rgb
from .frames import CameraFrame, Intrinsics

Size = tuple[int, int]
"""(height, width) in pixels."""

# The padding's grey: ImageNet's mean, which the network's normalisation takes to about zero, the
# value that its convolutions pad with.
PADDING = (124, 116, 104)

_STRIDE = 32


@dataclass(frozen=True)
class Layout:
    """Where a camera's picture lies in the network's.

    Attributes:
        camera: (height, width) of the camera's picture.
        network: (height, width) of the network's input.
        top: first row of the picture within the input.
        left: first column of the picture within the input.
        height: of the picture within the input.
        width: of the picture within the input.
    """

    camera: Size
    network: Size
    top: int
    left: int
    height: int
    width: int

    @property
    def scale_x(self) -> float:
        """Network pixels per camera pixel along a row."""
        return self.width / self.camera[1]

    @property
    def scale_y(self) -> float:
        """Network pixels per camera pixel along a column (scale_x but for rounding)."""
        return self.height / self.camera[0]

    def window(self, array: np.ndarray) -> np.ndarray:
        """Return the view of a network-sized [H, W, ...] array that the picture covers."""
        return array[self.top : self.top + self.height, self.left : self.left + self.width]

    def cut_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Return boxes of the network's input in pixels of the picture within it, cut to it.

        Args:
            boxes: float32 [M, 4], x0 y0 x1 y1.
        """
        origin = np.array([self.left, self.top] * 2, np.float32)
        return (boxes - origin).clip(0, np.array([self.width, self.height] * 2, np.float32))

    def intrinsics(self, camera: Intrinsics) -> Intrinsics:
        """Return the camera of the outputs: scaled, padding cut off again.

        Pixel centres are kept: cx becomes (cx + 0.5) scale - 0.5.
        """
        return Intrinsics(
            width=self.width,
            height=self.height,
            fx=camera.fx * self.scale_x,
            fy=camera.fy * self.scale_y,
            cx=(camera.cx + 0.5) * self.scale_x - 0.5,
            cy=(camera.cy + 0.5) * self.scale_y - 0.5,
        )


def fit(camera: Size, network: Size) -> Layout:
    """Lay a picture into the network's input: one scale, centred, the rest is padding.

    Args:
        camera: (height, width) of the camera's picture.
        network: (height, width) of the network's input.
    """
    scale = min(network[0] / camera[0], network[1] / camera[1])
    height = max(1, min(network[0], round(camera[0] * scale)))
    width = max(1, min(network[1], round(camera[1] * scale)))
    top, left = (network[0] - height) // 2, (network[1] - width) // 2
    return Layout(camera, network, top, left, height, width)


def auto_size(camera: Size, max_pixels: int) -> Size:
    """Return the (height, width), multiples of 32, that suits a camera's aspect ratio best.

    Of all sizes of at most `max_pixels`, the one in which the camera's picture covers most pixels;
    of equals the smallest.

    Args:
        camera: (height, width) of the camera's picture.
        max_pixels: of the network's input.
    """
    best, best_covered = (_STRIDE, _STRIDE), 0
    for height in range(_STRIDE, max_pixels // _STRIDE + 1, _STRIDE):
        width = max_pixels // height // _STRIDE * _STRIDE
        # Narrower inputs that the picture fills as well need less padding.
        needed = -(-round(camera[1] * height / camera[0]) // _STRIDE) * _STRIDE
        size = (height, max(_STRIDE, min(width, needed)))
        layout = fit(camera, size)
        covered = layout.height * layout.width
        if covered > best_covered:
            best, best_covered = size, covered
    return best


class Scratch:
    """Arrays that last from frame to frame."""

    def __init__(self) -> None:
        self._arrays: dict[tuple, np.ndarray] = {}

    def array(self, name: tuple, shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
        """Return the array of a name, made anew only when its shape or type changes."""
        array = self._arrays.get(name)
        if array is None or array.shape != shape or array.dtype != dtype:
            array = self._arrays[name] = np.empty(shape, dtype)
        return array


class Letterbox:
    """Places frames into network inputs without allocating anything after the first frame."""

    def __init__(self) -> None:
        self._padded: dict[tuple[int, Size], tuple[np.ndarray, Layout]] = {}
        self._scratch = Scratch()

    def place(self, frame: CameraFrame, layout: Layout, images: np.ndarray, slot: int) -> None:
        """Scale a frame into a slot of the network's input, in RGB.

        Args:
            frame: the camera's picture.
            layout: where it goes, from `fit`.
            images: uint8 [N, H, W, 3]; rows and columns that the picture leaves are padding.
            slot: which of the N.
        """
        image = images[slot]
        # The padding stays from frame to frame; only another layout has to paint it anew.
        buffer, painted = self._padded.get((slot, layout.network), (None, None))
        if buffer is not images or painted != layout:
            image[:] = PADDING
            self._padded[slot, layout.network] = (images, layout)
        target = layout.window(image)
        pixels, encoding = frame.pixels, frame.encoding
        if not can_resize(encoding):
            rgb = self._scratch.array(('rgb', slot), (*layout.camera, 3), np.uint8)
            pixels, encoding = to_rgb(pixels, encoding, rgb), 'rgb8'
        to_rgb(self._scale(pixels, (layout.height, layout.width), slot), encoding, target)

    def _scale(self, pixels: np.ndarray, size: Size, slot: int) -> np.ndarray:
        """Resize a picture in its own encoding to (height, width), without aliasing.

        Bilinear samples alias below half the size. Halving first is several times faster than
        averaging over areas of broken size.
        """
        height, width = pixels.shape[:2]
        while _halves(height, size[0]) and _halves(width, size[1]):
            height, width = height // 2, width // 2
            pixels = self._resize(pixels, (height, width), cv2.INTER_AREA, slot)
        if (height, width) == size:
            return pixels
        too_large = height > 2 * size[0] or width > 2 * size[1]
        method = cv2.INTER_AREA if too_large else cv2.INTER_LINEAR
        return self._resize(pixels, size, method, slot)

    def _resize(self, pixels: np.ndarray, size: Size, method: int, slot: int) -> np.ndarray:
        """Resize into a kept array."""
        kept = self._scratch.array(
            ('resized', slot, size), (*size, *pixels.shape[2:]), pixels.dtype
        )
        return cv2.resize(pixels, size[::-1], dst=kept, interpolation=method)


def _halves(length: int, target: int) -> bool:
    return length % 2 == 0 and length >= 2 * target
