"""What is true of a distorted picture, as the rectified camera sees it."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from mtl_perception.recordings._base import TrueBoxes, Truth
from mtl_perception.rectification import Lens


def rectify_truth(lens: Lens, role: str, truth: Truth, valid: np.ndarray | None) -> Truth:
    """Return true values of the rectified picture.

    Args:
        lens: of the camera.
        role: 'label', 'depth' or 'normal'.
        truth: of the distorted picture, at any size.
        valid: uint8 [H, W], 0 where the rectified picture shows nothing; None: it shows
            something everywhere. Nothing is known there.
    """
    values = truth.at(*truth.size)
    straight = {'label': lens.labels, 'depth': lens.depth, 'normal': lens.normals}[role](values)
    if valid is not None:
        rows, columns = straight.shape[:2]
        if valid.shape != (rows, columns):
            valid = cv2.resize(valid, (columns, rows), interpolation=cv2.INTER_NEAREST_EXACT)
        straight[valid == 0] = 255 if role == 'label' else 0
    return Truth(straight, _as_it_is)


def rectify_boxes(lens: Lens, boxes: TrueBoxes) -> tuple[TrueBoxes, int]:
    """Return the boxes around the rectified ones, and how many the picture does not show."""
    straight = lens.boxes(boxes.boxes)
    seen = (straight[:, 2] > straight[:, 0]) & (straight[:, 3] > straight[:, 1])
    names = tuple(name for name, kept in zip(boxes.names, seen, strict=True) if kept)
    return replace(boxes, boxes=straight[seen], names=names), int((~seen).sum())


def _as_it_is(values: np.ndarray) -> np.ndarray:
    return values
