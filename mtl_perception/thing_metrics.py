"""Accumulators of the figures of boxes and of what whole pictures are classified by."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from mtl_perception import _coco
from mtl_perception._figures import ratio, same_shape
from mtl_perception.datasets import region_of


class DetectionMetrics:
    """Average precision of boxes, as COCO defines it (computed by faster-coco-eval).

    Precision is averaged over 101 recalls, over intersections over union from 0.50 to 0.95, and
    over the classes that have true boxes; of a picture's boxes the best 100 of each class count.
    The boxes of all pictures are kept, since average precision needs them ordered by score.

    Args:
        class_names: labels are 0 .. len(class_names) - 1.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = tuple(class_names)
        self._found: list[_coco.Boxes] = []
        self._truth: list[_coco.Boxes] = []
        self._curves: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def frames(self) -> int:
        """How many pictures were compared."""
        return len(self._truth)

    def update(
        self,
        boxes: np.ndarray,
        scores: np.ndarray,
        labels: np.ndarray,
        true_boxes: np.ndarray,
        true_labels: np.ndarray,
    ) -> None:
        """Add one picture; both sides' boxes are x0 y0 x1 y1 in pixels of the same picture.

        Args:
            boxes: float [M, 4].
            scores: float [M].
            labels: integer [M]; empty slots (-1) are left out.
            true_boxes: float [T, 4].
            true_labels: integer [T]; in regions (see `LabelledFrame.box_labels`) detections of
                their class, or of any class, are neither right nor wrong.

        Raises:
            ValueError: shapes that do not belong together, or labels that are no class.
        """
        found = _boxes(boxes, labels, len(self.class_names), 'prediction')
        scores = np.asarray(scores, np.float32)
        if scores.shape != found.labels.shape:
            raise ValueError(f'detection: {len(found.labels)} boxes but scores {scores.shape}')
        filled = found.labels >= 0
        self._found.append(_coco.Boxes(found.boxes[filled], found.labels[filled], scores[filled]))
        self._truth.append(_boxes(true_boxes, true_labels, len(self.class_names), 'truth'))
        self._curves = None

    def merge(self, other: DetectionMetrics) -> None:
        """Add what `other` has seen."""
        if other.class_names != self.class_names:
            raise ValueError('detection: accumulators of different classes cannot be merged')
        self._found += other._found
        self._truth += other._truth
        self._curves = None

    def compute(self) -> dict[str, Any]:
        """Return ap, ap50, ap75, ar100, the same per class, and the numbers of boxes.

        Classes without a true box have None and do not enter the means.
        """
        precision, recall = self._evaluate()
        ap50 = _coco.IOU_THRESHOLDS.tolist().index(0.5)
        ap75 = int(np.argmin(np.abs(_coco.IOU_THRESHOLDS - 0.75)))
        found, truth = (
            np.bincount(
                np.concatenate([np.empty(0, np.intp), *(b.labels[b.labels >= 0] for b in side)]),
                minlength=len(self.class_names),
            )
            for side in (self._found, self._truth)
        )
        return {
            'ap': _known_mean(precision),
            'ap50': _known_mean(precision[ap50]),
            'ap75': _known_mean(precision[ap75]),
            'ar100': _known_mean(recall),
            'per_class': {
                name: {
                    'ap': _known_mean(precision[..., k]),
                    'ap50': _known_mean(precision[ap50, :, k]),
                    'boxes': int(truth[k]),
                    'detections': int(found[k]),
                }
                for k, name in enumerate(self.class_names)
            },
            'boxes': int(truth.sum()),
            'detections': int(found.sum()),
        }

    def precision_recall(self, iou: float = 0.5) -> dict[str, Any]:
        """Return the curves of the classes that have true boxes.

        Args:
            iou: least intersection over union of a hit, one of COCO's ten.

        Returns:
            'iou'; 'recall': 101 values from 0 to 1; 'precision': by class name, the best
            precision at each recall or more, 0 where the recall is not reached.
        """
        precision, _ = self._evaluate()
        index = int(np.argmin(np.abs(_coco.IOU_THRESHOLDS - iou)))
        if abs(_coco.IOU_THRESHOLDS[index] - iou) > 1e-6:
            raise ValueError(f'iou {iou}: expected one of 0.50, 0.55 ... 0.95')
        return {
            'iou': float(iou),
            'recall': [round(float(recall), 2) for recall in _coco.RECALLS],
            'precision': {
                name: precision[index, :, k].tolist()
                for k, name in enumerate(self.class_names)
                if precision[index, 0, k] >= 0
            },
        }

    def _evaluate(self) -> tuple[np.ndarray, np.ndarray]:
        if self._curves is None:
            self._curves = _coco.evaluate(self._found, self._truth, len(self.class_names))
        return self._curves

    def state(self) -> dict[str, np.ndarray]:
        """Return all boxes as arrays, to be stored and given to `load_state`."""
        return {
            'found': _table(self._found),
            'found_sizes': np.array([len(b.labels) for b in self._found], np.int64),
            'truth': _table(self._truth),
            'truth_sizes': np.array([len(b.labels) for b in self._truth], np.int64),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned."""
        self._found = _untable(state['found'], state['found_sizes'], scored=True)
        self._truth = _untable(state['truth'], state['truth_sizes'], scored=False)
        self._curves = None


def _boxes(boxes: np.ndarray, labels: np.ndarray, num_classes: int, what: str) -> _coco.Boxes:
    boxes, labels = np.asarray(boxes, np.float32), np.asarray(labels)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f'detection: {what} has boxes {boxes.shape} and labels {labels.shape}: '
            'expected [M, 4] and [M]'
        )
    labels = labels.astype(np.int32)
    least = region_of(num_classes - 1) if what == 'truth' else -1
    if labels.size and not least <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f'detection: {what} has labels {labels.min()}..{labels.max()}: '
            f'expected {least}..{num_classes - 1}'
        )
    return _coco.Boxes(boxes, labels)


def _known_mean(values: np.ndarray) -> float | None:
    known = values[values >= 0]
    return float(known.mean()) if known.size else None


def _table(pictures: Sequence[_coco.Boxes]) -> np.ndarray:
    """Return all pictures' boxes as rows of x0 y0 x1 y1 label score, float32 (exact to 2^24)."""
    rows = [np.empty((0, 6), np.float32)]
    for b in pictures:
        scores = np.ones(len(b.labels), np.float32) if b.scores is None else b.scores
        rows.append(np.column_stack([b.boxes, b.labels.astype(np.float32), scores]))
    return np.concatenate(rows)


def _untable(table: np.ndarray, sizes: np.ndarray, *, scored: bool) -> list[_coco.Boxes]:
    if not len(sizes):
        return []
    return [
        _coco.Boxes(rows[:, :4], rows[:, 4].astype(np.int32), rows[:, 5] if scored else None)
        for rows in np.split(np.asarray(table, np.float32), np.cumsum(sizes)[:-1])
    ]


class AttributeLike(Protocol):
    """What `bundle.AttributeSpec` has: the attribute's name, kind and classes."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def kind(self) -> Literal['single', 'multi']: ...  # noqa: D102

    @property
    def classes(self) -> Sequence[str]: ...  # noqa: D102


def class_targets(
    attributes: Sequence[AttributeLike], known: Mapping[str, str | Collection[str]]
) -> np.ndarray:
    """Return the truth of a picture's attributes in the order of `class_scores`.

    Args:
        attributes: of the network.
        known: by attribute the class's name, or for a 'multi' one the names of those that hold.
            Attributes that are missing, and answers that the network can't give, are unknown.

    Returns:
        int8 [C]: 1 holds, 0 does not, -1 unknown.
    """
    targets: list[int] = []
    for attribute in attributes:
        answer = known.get(attribute.name)
        names = {answer} if isinstance(answer, str) else set(answer or ())
        single = attribute.kind == 'single'
        if answer is None or (single and len(names & set(attribute.classes)) != 1):
            targets += [-1] * len(attribute.classes)
        else:
            targets += [int(name in names) for name in attribute.classes]
    return np.array(targets, np.int8)


class ClassificationMetrics:
    """Accuracy, precision and recall of what pictures are classified by.

    A 'single' attribute's answer is the class of the highest score; the classes of a 'multi' one
    hold from a score of 0.5 on.

    Args:
        attributes: in the order of the scores.

    Attributes:
        confusion: by 'single' attribute int64 [n, n]; rows are truth, columns answers.
        decisions: by 'multi' attribute int64 [n, 2, 2]; by class, truth (no, yes) and answer.
    """

    def __init__(self, attributes: Sequence[AttributeLike]) -> None:
        self.attributes = tuple(attributes)
        self.num_scores = sum(len(attribute.classes) for attribute in attributes)
        self.confusion: dict[str, np.ndarray] = {}
        self.decisions: dict[str, np.ndarray] = {}
        self._top5: dict[str, int] = {}
        for attribute in self.attributes:
            n = len(attribute.classes)
            if attribute.kind == 'single':
                self.confusion[attribute.name] = np.zeros((n, n), np.int64)
                self._top5[attribute.name] = 0
            else:
                self.decisions[attribute.name] = np.zeros((n, 2, 2), np.int64)

    def update(self, scores: np.ndarray, targets: np.ndarray) -> None:
        """Add one or more pictures.

        Args:
            scores: float [C] or [N, C].
            targets: integer of the same shape, as `class_targets` returns it; -1 is ignored.

        Raises:
            ValueError: shapes that differ or do not fit the attributes.
        """
        scores, targets = np.atleast_2d(scores), np.atleast_2d(targets)
        same_shape(scores, targets, 'classification')
        if scores.shape[1] != self.num_scores:
            raise ValueError(
                f'classification: {scores.shape[1]} scores, expected {self.num_scores}'
            )
        start = 0
        for attribute in self.attributes:
            end = start + len(attribute.classes)
            s, t = scores[:, start:end], targets[:, start:end]
            start = end
            if attribute.kind == 'multi':
                for k, decisions in enumerate(self.decisions[attribute.name]):
                    known = t[:, k] >= 0
                    np.add.at(decisions, (t[known, k], (s[known, k] >= 0.5).astype(np.intp)), 1)
                continue
            known = (t >= 0).all(axis=1)
            s, true = s[known], t[known].argmax(axis=1)
            np.add.at(self.confusion[attribute.name], (true, s.argmax(axis=1)), 1)
            best = np.argsort(-s, axis=1, kind='stable')[:, :5]
            self._top5[attribute.name] += int((best == true[:, None]).sum())

    def merge(self, other: ClassificationMetrics) -> None:
        """Add what `other` has counted."""
        mine, theirs = (
            [(a.name, a.kind, tuple(a.classes)) for a in metrics.attributes]
            for metrics in (self, other)
        )
        if mine != theirs:
            raise ValueError(
                'classification: accumulators of different attributes cannot be merged'
            )
        for name, counts in other.confusion.items():
            self.confusion[name] += counts
            self._top5[name] += other._top5[name]
        for name, counts in other.decisions.items():
            self.decisions[name] += counts

    def compute(self) -> dict[str, Any]:
        """Return the accuracy, and for each attribute what scikit-learn's report has.

        Returns:
            'accuracy': the mean of the attributes'; 'attributes': by name 'kind', 'accuracy' (of
            a 'multi' one over all decisions), 'top5' and 'confusion' of a 'single' one,
            'decisions' counted, 'classes': precision, recall, f1 and support of each, and their
            'macro' and 'weighted' means over the classes that occur in truth or answers. A
            precision or recall without a case is None and counts as 0 in the means.
        """
        attributes = {a.name: self._report(a) for a in self.attributes}
        known = [r['accuracy'] for r in attributes.values() if r['accuracy'] is not None]
        return {'accuracy': ratio(sum(known), len(known)), 'attributes': attributes}

    def _report(self, attribute: AttributeLike) -> dict[str, Any]:
        report: dict[str, Any] = {'kind': attribute.kind}
        if attribute.kind == 'single':
            confusion = self.confusion[attribute.name]
            total, hits = int(confusion.sum()), np.diagonal(confusion)
            support, answered = confusion.sum(axis=1), confusion.sum(axis=0)
            right = int(hits.sum())
            report['top5'] = ratio(self._top5[attribute.name], total)
            report['confusion'] = confusion.tolist()
        else:
            decisions = self.decisions[attribute.name]
            total, hits = int(decisions.sum()), decisions[:, 1, 1]
            support, answered = decisions[:, 1].sum(axis=1), decisions[:, :, 1].sum(axis=1)
            right = int((decisions[:, 0, 0] + decisions[:, 1, 1]).sum())
        classes = {
            name: {
                'precision': ratio(hits[k], answered[k]),
                'recall': ratio(hits[k], support[k]),
                'f1': ratio(2 * hits[k], answered[k] + support[k]),
                'support': int(support[k]),
            }
            for k, name in enumerate(attribute.classes)
        }
        occurring = [entry for entry in classes.values() if entry['f1'] is not None]
        figures = ('precision', 'recall', 'f1')
        return {
            **report,
            'accuracy': ratio(right, total),
            'decisions': total,
            'classes': classes,
            'macro': {
                f: ratio(sum(e[f] or 0 for e in occurring), len(occurring)) for f in figures
            },
            'weighted': {
                f: ratio(
                    sum((e[f] or 0) * e['support'] for e in occurring),
                    sum(e['support'] for e in occurring),
                )
                for f in figures
            },
        }

    def state(self) -> dict[str, np.ndarray]:
        """Return the counts as arrays, to be stored and given to `load_state`."""
        return {
            **{f'confusion.{name}': counts for name, counts in self.confusion.items()},
            **{f'top5.{name}': np.int64(count) for name, count in self._top5.items()},
            **{f'decisions.{name}': counts for name, counts in self.decisions.items()},
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned."""
        for name in self.confusion:
            self.confusion[name] = np.array(state[f'confusion.{name}'], np.int64)
            self._top5[name] = int(state[f'top5.{name}'])
        for name in self.decisions:
            self.decisions[name] = np.array(state[f'decisions.{name}'], np.int64)
