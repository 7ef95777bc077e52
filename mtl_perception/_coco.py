"""Average precision as COCO defines it, computed by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtl_perception.datasets import NOT_TOLD_APART, is_region_of_class, region_of

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST_DETECTIONS = 100
"""Of a class in a picture; those with lower scores are not looked at."""


@dataclass(frozen=True)
class Boxes:
    """What was found, or is, in one picture.

    Attributes:
        boxes: float32 [M, 4], x0 y0 x1 y1.
        labels: int32 [M].
        scores: float32 [M]; None for the truth.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None


def evaluate(
    found: Sequence[Boxes], truth: Sequence[Boxes], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compare boxes picture by picture.

    Args:
        found: of each picture; labels are 0 .. num_classes - 1.
        truth: of each picture; in regions (see `LabelledFrame.box_labels`) detections of their
            class, or of any class, are neither right nor wrong.
        num_classes: of the labels.

    Returns:
        Precision, float64 [10, 101, num_classes], for each of IOU_THRESHOLDS and RECALLS, and
        recall, float64 [10, num_classes]; -1 for classes without any true box.
    """
    shape = (len(IOU_THRESHOLDS), len(RECALLS), num_classes)
    if not truth:
        return np.full(shape, -1.0), np.full((shape[0], num_classes), -1.0)
    # Imported here: a node that only publishes boxes needs no evaluator.
    from faster_coco_eval import COCO, COCOeval_faster

    every = range(num_classes)
    annotations: list[dict[str, Any]] = [
        {**entry, 'id': 0, 'category_id': category}
        for image, boxes in enumerate(truth, 1)
        for entry, categories in _describe(image, boxes, every)
        for category in categories
    ]
    for number, annotation in enumerate(annotations, 1):  # 0 would mean 'no match'
        annotation['id'] = number
    known = COCO(
        {
            'images': [{'id': image} for image in range(1, len(truth) + 1)],
            'categories': [{'id': category, 'name': str(category)} for category in every],
            'annotations': annotations,
        }
    )
    rows = [_rows(image, boxes) for image, boxes in enumerate(found, 1)]
    judge = COCOeval_faster(known, known.loadRes(np.concatenate(rows)), 'bbox')
    judge.params.iouThrs, judge.params.recThrs = IOU_THRESHOLDS, RECALLS
    judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ['all']
    judge.params.maxDets = [MOST_DETECTIONS]
    judge.evaluate()
    judge.accumulate()
    precision = np.asarray(judge.eval['precision'], np.float64).reshape(*shape)
    recall = np.asarray(judge.eval['recall'], np.float64).reshape(shape[0], num_classes)
    return precision, recall


def _describe(
    image: int, boxes: Boxes, every: range
) -> Iterator[tuple[dict[str, Any], Sequence[int]]]:
    """Yield the annotation of each of one picture's true boxes, and the classes it stands for."""
    for (x0, y0, x1, y1), label in zip(
        boxes.boxes.astype(np.float64), boxes.labels.tolist(), strict=True
    ):
        if label == NOT_TOLD_APART:
            categories: Sequence[int] = every
        else:
            categories = (region_of(label) if is_region_of_class(label) else label,)
        entry = {
            'image_id': image,
            'bbox': [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            'area': float((x1 - x0) * (y1 - y0)),
            'iscrowd': int(label < 0),
        }
        yield entry, categories


def _rows(image: int, boxes: Boxes) -> np.ndarray:
    """Return one picture's detections as image, x, y, width, height, score, class."""
    assert boxes.scores is not None
    rows = np.empty((len(boxes.boxes), 7))
    rows[:, 0] = image
    rows[:, 1:5] = boxes.boxes
    rows[:, 3:5] -= rows[:, 1:3]
    rows[:, 5], rows[:, 6] = boxes.scores, boxes.labels
    return rows
