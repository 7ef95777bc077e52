"""Boxes and classes of a frame beside their truth, in the bundle's own terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtl_perception.bundle import AttributeSpec, ModelBundle, attribute_slices
from mtl_perception.datasets import NOT_TOLD_APART
from mtl_perception.encodings import picture_size
from mtl_perception.frames import Prediction
from mtl_perception.geometry.boxes import overlap, scale_boxes
from mtl_perception.metrics import class_targets
from mtl_perception.recordings import RecordedFrame

SURE_SCORE = 0.3
"""Boxes from this score on count as found; the node's own threshold."""

SAME_THING_IOU = 0.5


@dataclass(frozen=True)
class Hits:
    """How a frame's boxes meet the true ones.

    Attributes:
        right: sure boxes that meet a true box of their class.
        found: sure boxes.
        true: true boxes.
    """

    right: int
    found: int
    true: int

    def figures(self) -> dict[str, float | None]:
        """Return precision, recall and their harmonic mean."""
        return {
            'precision': self.right / self.found if self.found else None,
            'recall': self.right / self.true if self.true else None,
            'f1': 2 * self.right / (self.found + self.true) if self.found + self.true else None,
        }


def things_of(
    frame: RecordedFrame, prediction: Prediction, bundle: ModelBundle
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return boxes and classes of prediction and truth, with the keys of `MultiTaskMetrics`.

    True boxes are brought to the pixels of the outputs; those of classes that the bundle lacks
    are left out, and so are predicted ones of classes that nobody looked for.
    """
    pred: dict[str, np.ndarray] = {}
    truth: dict[str, np.ndarray] = {}
    if prediction.boxes is not None:
        assert prediction.box_labels is not None and prediction.box_scores is not None
        judged = np.ones(len(prediction.boxes), bool)
        if frame.boxes is not None:
            names = [spec.name for spec in bundle.box_classes]
            truth |= _true_boxes(frame, prediction, names)
            if frame.boxes.looked_for is not None:
                looked_for = np.array([name in frame.boxes.looked_for for name in names])
                judged = looked_for[prediction.box_labels]
        pred = {
            'boxes': prediction.boxes[judged],
            'box_scores': prediction.box_scores[judged],
            'box_labels': prediction.box_labels[judged],
        }
    if prediction.class_scores is not None:
        pred['class_scores'] = prediction.class_scores
        targets = class_targets(bundle.attributes, named_attributes(frame, bundle.attributes))
        if (targets >= 0).any():
            truth['class_targets'] = targets
    return pred, truth


def _true_boxes(
    frame: RecordedFrame, prediction: Prediction, names: Sequence[str]
) -> dict[str, np.ndarray]:
    assert frame.boxes is not None and prediction.size is not None
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    numbers[None] = NOT_TOLD_APART
    known = [name in numbers for name in frame.boxes.names]
    picture = picture_size(frame.frame.pixels, frame.frame.encoding)
    boxes = scale_boxes(frame.boxes.boxes[known], picture, prediction.size)
    labels = [numbers[name] for name in frame.boxes.names if name in numbers]
    return {'boxes': boxes.astype(np.float32), 'box_labels': np.array(labels, np.int32)}


def named_attributes(
    frame: RecordedFrame, attributes: Sequence[AttributeSpec]
) -> dict[str, str | tuple[str, ...]]:
    """Return a frame's attributes; answers without an attribute's name go where they fit."""
    named = dict(frame.attributes)
    nameless = named.pop('', ())
    answers = {nameless} if isinstance(nameless, str) else set(nameless)
    for attribute in attributes:
        fitting = tuple(answer for answer in attribute.classes if answer in answers)
        if fitting:
            named.setdefault(attribute.name, fitting)
    return named


def unknown_answers(frame: RecordedFrame, bundle: ModelBundle) -> Counter[str]:
    """Count the truth that the bundle has no class for, by what it is."""
    unknown: Counter[str] = Counter()
    if frame.boxes is not None and bundle.box_classes:
        names = {spec.name for spec in bundle.box_classes}
        for name in frame.boxes.names:
            if name is not None and name not in names:
                unknown[f'true boxes of {name!r}, which the bundle does not know'] += 1
    for attribute in bundle.attributes:
        answer = named_attributes(frame, bundle.attributes).get(attribute.name, ())
        for name in [answer] if isinstance(answer, str) else answer:
            if name not in attribute.classes:
                unknown[
                    f'pictures whose {attribute.name} is {name!r}, which the bundle does not know'
                ] += 1
    return unknown


def count_hits(pred: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> Hits:
    """Match sure boxes with true ones of their class, the surest first, each true box once.

    Boxes of which more than half lies in a region whose things are not told apart do not count.

    Args:
        pred: 'boxes', 'box_scores', 'box_labels'.
        truth: 'boxes', 'box_labels'.
    """
    sure = pred['box_scores'] >= SURE_SCORE
    boxes, labels = pred['boxes'][sure], pred['box_labels'][sure]
    order = np.argsort(-pred['box_scores'][sure], kind='stable')
    alike = truth['box_labels'] == NOT_TOLD_APART
    true_boxes, true_labels = truth['boxes'][~alike], truth['box_labels'][~alike]
    overlaps = overlap(boxes, true_boxes)
    free = np.ones(len(true_boxes), bool)
    right = found = 0
    for index in order:
        fitting = free & (true_labels == labels[index])
        values = np.where(fitting, overlaps[index], 0)
        if values.size and values.max() >= SAME_THING_IOU:
            free[values.argmax()] = False
            right += 1
            found += 1
        elif not _lies_in(boxes[index], truth['boxes'][alike]):
            found += 1
    return Hits(right, found, len(true_boxes))


def _lies_in(box: np.ndarray, regions: np.ndarray) -> bool:
    """Tell whether more than half of a box lies in one of some regions."""
    low, high = np.maximum(box[:2], regions[:, :2]), np.minimum(box[2:], regions[:, 2:])
    common = (high - low).clip(min=0).prod(axis=1)
    return bool((common > (box[2:] - box[:2]).prod() / 2).any())


def count_answers(
    attributes: Sequence[AttributeSpec], class_scores: np.ndarray, targets: np.ndarray
) -> list[list[int]]:
    """Return for each attribute how many answers are right, and how many there are.

    Args:
        attributes: in the order of the scores.
        class_scores: float [C].
        targets: int8 [C], as `class_targets` returns them.
    """
    counts = []
    for attribute, part in attribute_slices(attributes):
        scores, known = class_scores[part], targets[part]
        if attribute.kind == 'single':
            asked = int((known >= 0).all())
            counts.append([int(asked and known[scores.argmax()] == 1), asked])
        else:
            told = known >= 0
            counts.append([int(((scores >= 0.5) == known)[told].sum()), int(told.sum())])
    return counts
