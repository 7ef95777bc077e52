"""Does the network say the same of the same place in the next frame?"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mtl_perception.datasets import IGNORE
from mtl_perception.frames import Intrinsics

LONGEST_GAP_NS = 500_000_000
SAME_SURFACE = 0.25
_FLOW_AGREES_PX = 1.0
_NEAREST_M = 0.05


@dataclass(frozen=True)
class Seen:
    """What is kept of one frame for the next; all pictures of one size.

    Attributes:
        stamp_ns: of the frame.
        intrinsics: of the pictures, or None.
        pose: camera to world, or None.
        label: uint8 [H, W], 255 where the frame shows nothing, or None.
        depth: float32 [H, W] metres, or None.
        grey: uint8 [H, W], for optical flow; may be None where poses are known.
    """

    stamp_ns: int
    intrinsics: Intrinsics | None
    pose: np.ndarray | None
    label: np.ndarray | None
    depth: np.ndarray | None
    grey: np.ndarray | None

    @property
    def size(self) -> tuple[int, ...] | None:
        """Return (height, width) of the pictures."""
        pictures = (self.label, self.depth, self.grey)
        return next((picture.shape for picture in pictures if picture is not None), None)


@dataclass(frozen=True)
class Consistency:
    """Comparison of one frame with the one before.

    Attributes:
        method: 'poses' or 'optical flow'.
        pixels: of the frame.
        compared: pixels that show the same surface in both frames.
        same_label: compared pixels with equal labels.
        labelled: compared pixels that have labels (0 without segmentation).
        log_depth: sum over the compared of |ln(depth now / depth before)|, after the camera's
            own motion is taken out where poses are known.
    """

    method: str
    pixels: int
    compared: int
    same_label: int
    labelled: int
    log_depth: float


class TemporalConsistency:
    """Compares each frame of one camera with the one before it.

    With poses the predicted depth carries every pixel into the previous camera; pixels whose two
    depths differ by more than a quarter count as covered or moved and are not compared. Without
    poses dense optical flow (DIS) finds the pixel again; what does not flow back to where it came
    from is not compared, and change of depth by the camera's own motion is not taken out.
    """

    def __init__(self) -> None:
        self._before: Seen | None = None
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)

    def add(self, now: Seen) -> Consistency | None:
        """Return the comparison with the frame before: one of the same size, shortly before."""
        before, self._before = self._before, now
        if before is None or not 0 < now.stamp_ns - before.stamp_ns <= LONGEST_GAP_NS:
            return None
        if before.size != now.size:
            return None
        posed = now.pose is not None and before.pose is not None
        if posed and now.depth is not None and now.intrinsics is not None:
            return self._by_poses(before, now)
        if now.grey is not None and before.grey is not None:
            return self._by_flow(before, now)
        return None

    def _by_poses(self, before: Seen, now: Seen) -> Consistency:
        assert now.intrinsics and before.pose is not None and now.pose is not None
        camera = now.intrinsics
        height, width = now.depth.shape
        motion = (np.linalg.inv(before.pose) @ now.pose).astype(np.float32)
        right = ((np.arange(width) - camera.cx) / camera.fx).astype(np.float32)
        down = ((np.arange(height) - camera.cy) / camera.fy).astype(np.float32)[:, None]
        # A point is its depth times its ray, turned into the previous camera, and shifted.
        x, y, depth = (
            (r0 * right + (r1 * down + r2)) * now.depth + shift for r0, r1, r2, shift in motion[:3]
        )
        with np.errstate(divide='ignore', invalid='ignore'):
            columns = np.rint(x / depth * np.float32(camera.fx) + np.float32(camera.cx))
            rows = np.rint(y / depth * np.float32(camera.fy) + np.float32(camera.cy))
        place, inside = _places(columns, rows)
        return _compare('poses', before, now, place, inside & (depth > _NEAREST_M), depth)

    def _by_flow(self, before: Seen, now: Seen) -> Consistency:
        back = self._flow.calc(now.grey, before.grey, None)
        forth = self._flow.calc(before.grey, now.grey, None)
        height, width = now.grey.shape
        columns = np.rint(np.arange(width) + back[..., 0])
        rows = np.rint(np.arange(height)[:, None] + back[..., 1])
        place, inside = _places(columns, rows)
        inside &= (
            np.abs(back + forth.reshape(-1, 2).take(place, axis=0)).max(axis=-1) <= _FLOW_AGREES_PX
        )
        return _compare('optical flow', before, now, place, inside, now.depth)


def _places(columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return flat indices of pixels, intp [H, W], and which lie inside the picture."""
    height, width = columns.shape
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    return np.where(inside, rows * width + columns, 0).astype(np.intp), inside


def _compare(
    method: str,
    before: Seen,
    now: Seen,
    place: np.ndarray,
    visible: np.ndarray,
    depth: np.ndarray | None,
) -> Consistency:
    """Compare a frame with the pixels `place` of the one before, where they are visible."""
    log_depth = 0.0
    if depth is not None and before.depth is not None:
        with np.errstate(divide='ignore', invalid='ignore'):
            change = np.abs(np.log(depth / before.depth.take(place)))
        visible = visible & (change < np.log1p(SAME_SURFACE))
        log_depth = float(change[visible].sum(dtype=np.float64))
    compared = int(np.count_nonzero(visible))
    same = labelled = 0
    if now.label is not None and before.label is not None:
        earlier = before.label.take(place)
        known = visible & (now.label != IGNORE) & (earlier != IGNORE)
        labelled = int(np.count_nonzero(known))
        same = int(np.count_nonzero((now.label == earlier) & known))
    return Consistency(method, visible.size, compared, same, labelled, log_depth)
