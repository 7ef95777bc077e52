"""Figures per frame, so that differences between trainings can be tested frame by frame."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtl_perception.bundle import AttributeSpec
from mtl_perception.datasets import NOT_TOLD_APART, region_of
from mtl_perception.metrics import (
    ClassificationMetrics,
    DepthMetrics,
    NormalsMetrics,
    SegmentationMetrics,
)

# COCO's.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST_DETECTIONS = 100
# A power of two, so that 11.25, 22.5 and 30 degrees are the ends of bins.
RESOLUTION_DEG = 0.0625
BINS = round(180 / RESOLUTION_DEG) + 1
# name: (task, higher is better)
METRICS: dict[str, tuple[str, bool]] = {
    'miou': ('segmentation', True),
    'pixacc': ('segmentation', True),
    'abs_err': ('depth', False),
    'rel_err': ('depth', False),
    'mean': ('normals', False),
    'median': ('normals', False),
    '11.25': ('normals', True),
    '22.5': ('normals', True),
    '30': ('normals', True),
    'ap': ('detection', True),
    'ap50': ('detection', True),
    'accuracy': ('classification', True),
}


@dataclass(frozen=True)
class FrameFigures:
    """What every frame contributes to the figures of a set; absent tasks are None.

    Attributes:
        confusion: int64 [N, C, C + 1], as SegmentationMetrics counts it.
        depth: float64 [N, 3]: sums of |p - t| and |p - t| / t, and the pixels.
        angles: int32 [N, 1801], normals' errors in bins of 0.1 degrees.
        things: int64 [N, C], true boxes of each class.
        detections: float32 [D, 13]: frame, class and score of everything that was found, then for
            each of COCO's ten thresholds 1 for a hit, 0 for a miss, -1 for neither.
        answers: int64 [N, A, 2], right and all answers to each attribute.
    """

    confusion: np.ndarray | None = None
    depth: np.ndarray | None = None
    angles: np.ndarray | None = None
    things: np.ndarray | None = None
    detections: np.ndarray | None = None
    answers: np.ndarray | None = None

    def __len__(self) -> int:
        per_frame = (self.confusion, self.depth, self.angles, self.things, self.answers)
        return next(len(array) for array in per_frame if array is not None)

    def save(self, path: Path) -> None:
        """Write to a .npz file."""
        arrays = {name: array for name, array in vars(self).items() if array is not None}
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> FrameFigures:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in arrays.files})

    def compute(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return every figure of the set, each [B].

        Args:
            weights: how often each frame counts, [B, N]; once by default.
        """
        if weights is None:
            weights = np.ones((1, len(self)))
        figures: dict[str, np.ndarray] = {}
        with np.errstate(divide='ignore', invalid='ignore'):
            if self.confusion is not None:
                figures |= _segmentation(np.tensordot(weights, self.confusion, axes=1))
            if self.depth is not None:
                absolute, relative, pixels = (weights @ self.depth).T
                figures |= {'abs_err': absolute / pixels, 'rel_err': relative / pixels}
            if self.angles is not None:
                figures |= _normals(weights @ self.angles)
            if self.things is not None:
                figures |= average_precision(self.detections, self.things, weights)
            if self.answers is not None:
                right, given = np.moveaxis(np.tensordot(weights, self.answers, axes=1), -1, 0)
                figures['accuracy'] = np.nanmean(right / given, axis=1)
        return figures


def _segmentation(confusion: np.ndarray) -> dict[str, np.ndarray]:
    classes = confusion.shape[1]
    right = np.diagonal(confusion, axis1=1, axis2=2)
    # The last column counts predictions that are no class.
    union = confusion[..., :classes].sum(axis=1) + confusion.sum(axis=2) - right
    return {
        'miou': np.nanmean(right / union, axis=1),
        'pixacc': right.sum(axis=1) / confusion.sum(axis=(1, 2)),
    }


def _normals(histogram: np.ndarray) -> dict[str, np.ndarray]:
    pixels = histogram.sum(axis=1, keepdims=True)
    share = np.cumsum(histogram, axis=1) / pixels
    centres = (np.arange(BINS) + 0.5) * RESOLUTION_DEG
    below = {f'{limit:g}': share[:, _bins_below(limit)] for limit in (11.25, 22.5, 30)}
    return {
        'mean': (histogram @ centres) / pixels[:, 0],
        'median': np.where(pixels[:, 0] > 0, centres[np.argmax(share >= 0.5, axis=1)], np.nan),
        **below,
    }


def _bins_below(limit: float) -> int:
    bins = limit / RESOLUTION_DEG
    assert bins.is_integer(), f'{limit} degrees lies within a bin'
    return int(bins) - 1


def collect(
    pairs: Iterable[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
    num_classes: int,
    num_box_classes: int = 0,
    attributes: Sequence[AttributeSpec] = (),
) -> FrameFigures:
    """Measure predictions against truths, frame by frame; keys as in `MultiTaskMetrics`."""
    confusion, depth, angles = [], [], []
    things, detections, answers = [], [], []
    for frame, (pred, truth) in enumerate(pairs):
        if 'label' in pred:
            segmentation = SegmentationMetrics(num_classes)
            segmentation.update(pred['label'], truth['label'])
            confusion.append(segmentation.confusion)
        if 'depth' in pred:
            distances = DepthMetrics()
            distances.update(pred['depth'], truth['depth'])
            depth.append([*distances.sums[:2], distances.counts[0]])
        if 'normal' in pred:
            normals = NormalsMetrics('frame', RESOLUTION_DEG)
            normals.update(pred['normal'], truth['normal'])
            angles.append(normals.histogram.astype(np.int32))
        if 'boxes' in pred:
            labels = truth.get('box_labels', np.zeros(0, np.int64))
            things.append(np.bincount(labels[labels >= 0], minlength=num_box_classes))
            if 'boxes' in truth:
                detections.append(_judged(frame, pred, truth))
        if 'class_scores' in pred:
            targets = truth.get('class_targets', np.full(len(pred['class_scores']), -1))
            report = ClassificationMetrics(attributes)
            report.update(pred['class_scores'], targets)
            answers.append(
                [
                    (round((entry['accuracy'] or 0) * entry['decisions']), entry['decisions'])
                    for entry in report.compute()['attributes'].values()
                ]
            )
    return FrameFigures(
        confusion=np.stack(confusion) if confusion else None,
        depth=np.array(depth, np.float64) if depth else None,
        angles=np.stack(angles) if angles else None,
        things=np.stack(things) if things else None,
        detections=np.concatenate([np.zeros((0, 13), np.float32), *detections])
        if things
        else None,
        answers=np.array(answers, np.int64) if answers else None,
    )


def _judged(
    frame: int, pred: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Match one frame's boxes to the truth as COCO does; rows as in `FrameFigures`."""
    true_labels = truth['box_labels']
    rows = []
    for label in np.unique(pred['box_labels']):
        chosen = np.flatnonzero(pred['box_labels'] == label)
        order = chosen[np.argsort(-pred['box_scores'][chosen], kind='stable')]
        order = order[:MOST_DETECTIONS]
        boxes = pred['boxes'][order]
        things = truth['boxes'][true_labels == label]
        regions = truth['boxes'][np.isin(true_labels, (NOT_TOLD_APART, region_of(label)))]
        overlap, _ = _overlaps(boxes, things)
        _, covered = _overlaps(boxes, regions)
        in_region = covered.max(axis=1, initial=0)[:, None] >= IOU_THRESHOLDS
        state = np.where(in_region, -1, 0).astype(np.float32)
        for number, threshold in enumerate(IOU_THRESHOLDS):
            free = np.ones(len(things), bool)
            for index in range(len(boxes)):
                left = np.where(free, overlap[index], -1)
                if len(left) and left.max() >= threshold:
                    free[left.argmax()] = False
                    state[index, number] = 1
        heads = np.column_stack(
            [np.full(len(order), frame), np.full(len(order), label), pred['box_scores'][order]]
        )
        rows.append(np.hstack([heads, state]).astype(np.float32))
    return np.concatenate([np.zeros((0, 13), np.float32), *rows])


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return intersection over union, and over the first's area, float64 [M, T]."""
    a, b = (np.asarray(side, np.float64).reshape(-1, 4) for side in (boxes, others))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = (high - low).clip(min=0).prod(axis=-1)
    area_a, area_b = ((side[:, 2:] - side[:, :2]).prod(axis=1) for side in (a, b))
    union = area_a[:, None] + area_b - both
    return both / union.clip(min=1e-9), both / area_a[:, None].clip(min=1e-9)


def average_precision(
    detections: np.ndarray, things: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return ap and ap50, each [B], of frames that count `weights` [B, N] times.

    They are COCO's (`DetectionMetrics` gives the same for weights of one), computed from matches
    that were made once, which a bootstrap over frames needs.
    """
    per_class = []
    for label in range(things.shape[1]):
        rows = detections[detections[:, 1] == label]
        rows = rows[np.argsort(-rows[:, 2], kind='stable')]
        wanted = weights @ things[:, label]
        counts = weights[:, rows[:, 0].astype(np.intp)]
        per_class.append(
            [_area(counts, rows[:, 3 + k], wanted) for k in range(len(IOU_THRESHOLDS))]
        )
    with warnings.catch_warnings():
        # Without a true box of any class there is no precision.
        warnings.simplefilter('ignore', RuntimeWarning)
        precision = np.nanmean(np.array(per_class), axis=0)
    return {'ap': precision.mean(axis=0), 'ap50': precision[0]}


def _area(counts: np.ndarray, state: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the mean precision at COCO's 101 recalls, [B]; NaN where nothing is wanted."""
    hits = np.cumsum(counts * (state == 1), axis=1)
    misses = np.cumsum(counts * (state == 0), axis=1)
    areas = np.full(len(counts), np.nan)
    for index in np.flatnonzero(wanted > 0):
        total = (hits[index] + misses[index]).clip(min=1e-9)
        best = np.maximum.accumulate((hits[index] / total)[::-1])[::-1]
        places = np.searchsorted(hits[index] / wanted[index], RECALLS, side='left')
        areas[index] = np.append(best, 0.0)[places].mean()
    return areas


@dataclass(frozen=True)
class Difference:
    """B minus A for one figure, with the 95 % interval of a paired bootstrap over frames."""

    difference: float
    low: float
    high: float

    @property
    def is_real(self) -> bool:
        """Say whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    a: Sequence[FrameFigures], b: Sequence[FrameFigures], samples: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """Compare two rows on the same frames, drawn again and again with replacement.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993). Frames of one room resemble
    each other, so the intervals are a little too narrow. What the trainings' seeds change is
    averaged, not drawn: it shows in the deviation over seeds.

    Args:
        a: one training for each seed.
        b: the other row's, of the same seeds.
        samples: how often frames are drawn.
        seed: of the draws.
    """
    lengths = {len(one) for one in (*a, *b)}
    if len(lengths) != 1:
        raise ValueError(f'{lengths} frames cannot be paired')
    frames = lengths.pop()
    random = np.random.default_rng(seed)
    weights = random.multinomial(frames, np.full(frames, 1 / frames), size=samples)
    plain_a, plain_b = ([one.compute() for one in row] for row in (a, b))
    drawn_a, drawn_b = ([one.compute(weights) for one in row] for row in (a, b))
    differences = {}
    for name in plain_a[0].keys() & plain_b[0].keys():
        plain, drawn = (
            np.mean([second[name] - first[name] for first, second in zip(*pair, strict=True)], 0)
            for pair in ((plain_a, plain_b), (drawn_a, drawn_b))
        )
        known = drawn[np.isfinite(drawn)]
        if known.size:
            low, high = np.percentile(known, [2.5, 97.5])
            differences[name] = Difference(float(plain[0]), float(low), float(high))
    return differences


def delta_m(
    figures: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]
) -> float | None:
    """Return the mean relative gain over single-task networks, in percent (Maninis et al. 2019).

    The mean over tasks of the mean over the task's metrics of the gain, positive when better;
    None when a task lacks its baseline.
    """
    gains = []
    for task in dict.fromkeys(task for task, _ in METRICS.values()):
        own = [name for name, (of, _) in METRICS.items() if of == task and name in figures]
        if not own:
            continue
        if task not in baselines or any(not baselines[task].get(name) for name in own):
            return None
        base = baselines[task]
        signs = {name: 1 if METRICS[name][1] else -1 for name in own}
        relative = [signs[name] * (figures[name] - base[name]) / base[name] for name in own]
        gains.append(sum(relative) / len(relative))
    return 100 * sum(gains) / len(gains) if gains else None
