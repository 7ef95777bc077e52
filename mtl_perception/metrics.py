"""Accumulators of every task's figures: one definition for both sides.

Those of segmentation, depth and normals are LibMTL's for NYUv2 (one confusion matrix, all valid
pixels of the set pooled), so figures compare with studies made with it; those of boxes are COCO's.
Every accumulator streams: `update` with one or more frames, `merge` with another accumulator,
`compute` at any time. Figures without a single valid pixel are None, never NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtl_perception._figures import ratio, same_shape
from mtl_perception.thing_metrics import (
    AttributeLike,
    ClassificationMetrics,
    DetectionMetrics,
    class_targets,
)

__all__ = [
    'KEYS_OF_TASK',
    'NORMALS_THRESHOLDS_DEG',
    'TASKS',
    'TRUTHS_OF_TASK',
    'AttributeLike',
    'ClassificationMetrics',
    'DepthMetrics',
    'DetectionMetrics',
    'MultiTaskMetrics',
    'NormalsMetrics',
    'SegmentationMetrics',
    'angles_between',
    'class_targets',
]

TASKS = ('segmentation', 'depth', 'normals', 'detection', 'classification')
KEYS_OF_TASK = {
    'segmentation': ('label',),
    'depth': ('depth',),
    'normals': ('normal',),
    'detection': ('boxes', 'box_scores', 'box_labels'),
    'classification': ('class_scores',),
}
"""What each task's accumulator takes of a prediction."""

TRUTHS_OF_TASK = {
    'segmentation': ('label',),
    'depth': ('depth',),
    'normals': ('normal',),
    'detection': ('boxes', 'box_labels'),
    'classification': ('class_targets',),
}
"""What each task's accumulator takes of the ground truth."""

NORMALS_THRESHOLDS_DEG = (11.25, 22.5, 30.0)
DEPTH_LOG_FLOOR_M = 1e-3
_ANGLES_HELD = 2_000_000


class SegmentationMetrics:
    """Mean intersection over union and pixel accuracy from one confusion matrix.

    Args:
        num_classes: labels are 0 .. num_classes - 1.
        class_names: keys of `iou`; the class numbers as text by default.

    Attributes:
        confusion: int64 [num_classes, num_classes + 1]; rows are truth, columns predictions. The
            last column counts labelled pixels for which no class was predicted (value outside
            0 .. num_classes - 1, such as 255): a refusal counts as an error.
    """

    def __init__(self, num_classes: int, class_names: Sequence[str] | None = None) -> None:
        names = tuple(class_names or map(str, range(num_classes)))
        if len(names) != num_classes:
            raise ValueError(f'{num_classes} classes but {len(names)} class names')
        self.num_classes = num_classes
        self.class_names = names
        self.confusion = np.zeros((num_classes, num_classes + 1), np.int64)

    def update(self, label_pred: np.ndarray, label_true: np.ndarray) -> None:
        """Count integer labels of any shape; truth outside 0 .. num_classes - 1 is ignored."""
        pred, true = np.asarray(label_pred), np.asarray(label_true)
        same_shape(pred, true, 'segmentation')
        n = self.num_classes
        if not (pred.dtype == true.dtype == np.uint8):
            pred, true = (np.where((v < 0) | (v > n), n, v) for v in (pred, true))
        # What is no class becomes one more, whose row of truths is not kept.
        code_type = np.uint16 if n < 256 else np.int64
        pairs = np.minimum(true, n).astype(code_type)
        pairs *= n + 1
        pairs += np.minimum(pred, n).astype(code_type, copy=False)
        counts = np.bincount(pairs.ravel(), minlength=(n + 1) ** 2)
        self.confusion += counts.reshape(n + 1, n + 1)[:n]

    def merge(self, other: SegmentationMetrics) -> None:
        """Add what `other` has counted."""
        if other.class_names != self.class_names:
            raise ValueError('segmentation: accumulators of different classes cannot be merged')
        self.confusion += other.confusion

    def compute(self) -> dict[str, Any]:
        """Return miou, pixacc, iou by class name and the number of classes that occur.

        A class in neither truth nor prediction has an `iou` of None; `miou` is over the others.
        """
        hits = np.diagonal(self.confusion).astype(np.float64)
        in_truth = self.confusion.sum(axis=1)
        union = in_truth + self.confusion[:, :-1].sum(axis=0) - hits
        iou = [ratio(hit, size) for hit, size in zip(hits, union, strict=True)]
        present = [value for value in iou if value is not None]
        return {
            'miou': ratio(sum(present), len(present)),
            'pixacc': ratio(hits.sum(), in_truth.sum()),
            'iou': dict(zip(self.class_names, iou, strict=True)),
            'classes': len(present),
        }

    def state(self) -> dict[str, np.ndarray]:
        """Return the counts as arrays, to be stored and given to `load_state`."""
        return {'confusion': self.confusion}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned."""
        self.confusion = np.array(state['confusion'], np.int64)


class DepthMetrics:
    """Errors of metric depth over all pixels with finite, positive truth.

    Pixels whose prediction is not finite are left out and counted as `missing`.

    Attributes:
        sums: float64 [4]; of |p - t|, |p - t| / t, (p - t)^2 and |log10 p - log10 t|.
        counts: int64 [5]; pixels, missing pixels, and those with max(p / t, t / p) below 1.25,
            1.25^2 and 1.25^3.
    """

    def __init__(self) -> None:
        self.sums = np.zeros(4)
        self.counts = np.zeros(5, np.int64)

    def update(self, pred: np.ndarray, true: np.ndarray) -> None:
        """Add depth in metres, any one shape; truth that is not finite or not > 0 is ignored."""
        pred, true = np.asarray(pred), np.asarray(true)
        same_shape(pred, true, 'depth')
        known = (true > 0) & np.isfinite(true)
        valid = known & np.isfinite(pred)
        whole = valid.all()
        p, t = (np.asarray(v if whole else v[valid], np.float64).ravel() for v in (pred, true))
        error = np.abs(p - t)
        log_ratio = np.maximum(p, DEPTH_LOG_FLOOR_M)
        log_ratio /= t
        np.log10(log_ratio, out=log_ratio)
        np.abs(log_ratio, out=log_ratio)
        larger, smaller = np.maximum(p, t), np.minimum(p, t)
        # Not divided, so that a prediction of 0 m or less is beyond every bound.
        within = [np.count_nonzero(larger < 1.25**power * smaller) for power in (1, 2, 3)]
        self.counts += (p.size, np.count_nonzero(known) - p.size, *within)
        absolute, logarithmic = error.sum(), log_ratio.sum()
        relative = np.divide(error, t, out=log_ratio).sum()
        self.sums += (absolute, relative, np.square(error, out=error).sum(), logarithmic)

    def merge(self, other: DepthMetrics) -> None:
        """Add what `other` has counted."""
        self.sums += other.sums
        self.counts += other.counts

    def compute(self) -> dict[str, Any]:
        """Return abs_err and rmse in metres, rel_err, log10, delta1..3 and the pixel counts."""
        pixels, missing, *within = (int(count) for count in self.counts)
        absolute, relative, squared, logarithmic = self.sums
        mean_square = ratio(squared, pixels)
        return {
            'abs_err': ratio(absolute, pixels),
            'rel_err': ratio(relative, pixels),
            'rmse': None if mean_square is None else mean_square**0.5,
            'log10': ratio(logarithmic, pixels),
            **{f'delta{i}': ratio(count, pixels) for i, count in enumerate(within, start=1)},
            'pixels': pixels,
            'missing': missing,
        }

    def state(self) -> dict[str, np.ndarray]:
        """Return the sums as arrays, to be stored and given to `load_state`."""
        return {'sums': self.sums, 'counts': self.counts}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned."""
        self.sums = np.array(state['sums'], np.float64)
        self.counts = np.array(state['counts'], np.int64)


def angles_between(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the angle between vectors of any length, [..., 3], in degrees, float64 [...].

    It is NaN where either vector is zero or not finite.
    """
    shape = np.asarray(pred).shape[:-1]
    # Sums over rows of three contiguous components are several times faster than over triples.
    p, t = (np.asarray(v).reshape(-1, 3).T.astype(np.float64, order='C') for v in (pred, true))
    with np.errstate(invalid='ignore', divide='ignore', over='ignore'):
        lengths = _dot(p, p)
        lengths *= _dot(t, t)
        cosine = _dot(p, t)
        cosine /= np.sqrt(lengths, out=lengths)
    angles = np.arccos(np.clip(cosine, -1.0, 1.0, out=cosine), out=cosine)
    angles *= 180 / np.pi
    return angles.reshape(shape)


def _dot(p: np.ndarray, t: np.ndarray) -> np.ndarray:
    total = p[0] * t[0]
    part = p[1] * t[1]
    total += part
    total += np.multiply(p[2], t[2], out=part)
    return total


class NormalsMetrics:
    """Angle between predicted and true surface normals over all pixels with a true normal.

    The median comes from a histogram, so that memory does not grow with the number of frames; it
    is exact to half of `resolution_deg`. Everything else is exact. A pixel without a usable
    prediction (NaN or zero vector) counts as 180 degrees off.

    Args:
        source: where the truth comes from ('published', 'derived-11', 'rendered', ...); figures
            of different sources are not comparable.
        resolution_deg: width of a histogram bin in degrees.
    """

    def __init__(self, source: str = 'unknown', resolution_deg: float = 1e-4) -> None:
        self.source = source
        self.resolution_deg = resolution_deg
        self._histogram = np.zeros(round(180.0 / resolution_deg) + 1, np.int64)
        self._pending: list[np.ndarray] = []
        self._pending_size = 0
        self._sum = 0.0
        self._within = np.zeros(len(NORMALS_THRESHOLDS_DEG), np.int64)
        self._pixels = 0

    @property
    def histogram(self) -> np.ndarray:
        """Angles counted in bins of `resolution_deg`, int64."""
        # Emptied in large portions: a histogram this fine costs more to touch than to fill.
        if self._pending:
            bins = np.concatenate(self._pending)
            self._histogram += np.bincount(bins, minlength=self._histogram.size)
            self._pending, self._pending_size = [], 0
        return self._histogram

    def update(self, pred: np.ndarray, true: np.ndarray) -> None:
        """Add normals [..., 3]; truth that is (0, 0, 0) or not finite is ignored."""
        pred, true = np.asarray(pred), np.asarray(true)
        same_shape(pred, true, 'normals')
        # Any NaN spreads into the sum of squares, so one test finds both kinds of invalid truth.
        length = np.einsum('...i,...i', true, true)
        valid = np.isfinite(length) & (length > 0)
        self.update_angles(angles_between(pred, true)[valid])

    def update_angles(self, angles: np.ndarray) -> list[int]:
        """Add angles in degrees of valid pixels, as `angles_between` returns them.

        Returns:
            How many of them are below 11.25, 22.5 and 30 degrees.
        """
        angles = np.asarray(angles, np.float64).ravel()
        missing = np.isnan(angles)
        if missing.any():
            angles = np.where(missing, 180.0, angles)
        within = [int(np.count_nonzero(angles < limit)) for limit in NORMALS_THRESHOLDS_DEG]
        self._sum += float(angles.sum())
        self._within += within
        self._pixels += angles.size
        self._pending.append((angles / self.resolution_deg).astype(np.int32))
        self._pending_size += angles.size
        if self._pending_size > _ANGLES_HELD:
            _ = self.histogram
        return within

    def merge(self, other: NormalsMetrics) -> None:
        """Add what `other` has counted; truths of different sources are named together."""
        if other.resolution_deg != self.resolution_deg:
            raise ValueError('normals: accumulators of different resolution cannot be merged')
        if other._pixels and other.source != self.source:
            sources = set(self.source.split('+')) if self._pixels else set()
            self.source = '+'.join(sorted(sources | set(other.source.split('+'))))
        self._histogram = self.histogram + other.histogram
        self._sum += other._sum
        self._within += other._within
        self._pixels += other._pixels

    def compute(self) -> dict[str, Any]:
        """Return mean and median in degrees, shares below 11.25, 22.5 and 30, and the source."""
        shares = [ratio(count, self._pixels) for count in self._within]
        return {
            'mean': ratio(self._sum, self._pixels),
            'median': self._median(),
            **{
                f'{limit:g}': share
                for limit, share in zip(NORMALS_THRESHOLDS_DEG, shares, strict=True)
            },
            'source': self.source,
            'pixels': self._pixels,
        }

    def _median(self) -> float | None:
        if not self._pixels:
            return None
        reached = np.cumsum(self.histogram)
        middle = ((self._pixels - 1) // 2, self._pixels // 2)
        bins = np.searchsorted(reached, middle, side='right')
        return float(np.mean(bins + 0.5) * self.resolution_deg)

    def state(self) -> dict[str, np.ndarray]:
        """Return the counts as arrays (the histogram sparse), for `load_state`."""
        bins = np.flatnonzero(self.histogram)
        return {
            'bins': bins.astype(np.int32),
            'bin_counts': self.histogram[bins],
            'sum': np.float64(self._sum),
            'within': self._within,
            'pixels': np.int64(self._pixels),
            'source': np.str_(self.source),
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned."""
        self._pending, self._pending_size = [], 0
        self._histogram = np.zeros_like(self._histogram)
        self._histogram[np.asarray(state['bins'])] = state['bin_counts']
        self._sum = float(state['sum'])
        self._within = np.array(state['within'], np.int64)
        self._pixels = int(state['pixels'])
        self.source = str(state['source'])


class MultiTaskMetrics:
    """The accumulators of several tasks together.

    Args:
        tasks: some of TASKS.
        class_names: of the segmentation, in the order of its labels.
        normals_source: see `NormalsMetrics`.
        resolution_deg: see `NormalsMetrics`.
        box_classes: of the detection, in the order of its labels.
        attributes: of the classification, in the order of its scores.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        class_names: Sequence[str],
        normals_source: str = 'unknown',
        *,
        resolution_deg: float = 1e-4,
        box_classes: Sequence[str] = (),
        attributes: Sequence[AttributeLike] = (),
    ) -> None:
        unknown = set(tasks) - set(TASKS)
        if unknown:
            raise ValueError(f'unknown tasks {sorted(unknown)}: expected some of {list(TASKS)}')
        makers: dict[str, Callable[[], Any]] = {
            'segmentation': lambda: SegmentationMetrics(len(class_names), class_names),
            'depth': DepthMetrics,
            'normals': lambda: NormalsMetrics(normals_source, resolution_deg),
            'detection': lambda: DetectionMetrics(box_classes),
            'classification': lambda: ClassificationMetrics(attributes),
        }
        self.frames = 0
        self.tasks: dict[str, Any] = {task: makers[task]() for task in TASKS if task in tasks}

    def update(
        self, pred: Mapping[str, np.ndarray | None], truth: Mapping[str, np.ndarray | None]
    ) -> None:
        """Add one frame; a task of which either side lacks something is left out.

        Args:
            pred: by KEYS_OF_TASK: label integer [H, W]; depth metres [H, W]; normal [H, W, 3];
                boxes [M, 4], box_scores [M], box_labels [M]; class_scores [C].
            truth: by TRUTHS_OF_TASK: the same, and class_targets [C] as `class_targets` returns.
        """
        self.frames += 1
        for task, metrics in self.tasks.items():
            values = [
                *(pred.get(key) for key in KEYS_OF_TASK[task]),
                *(truth.get(key) for key in TRUTHS_OF_TASK[task]),
            ]
            if all(value is not None for value in values):
                metrics.update(*values)

    def merge(self, other: MultiTaskMetrics) -> None:
        """Add what `other` has counted; both must have the same tasks."""
        if self.tasks.keys() != other.tasks.keys():
            raise ValueError(
                f'accumulators of {list(self.tasks)} and {list(other.tasks)} cannot be merged'
            )
        self.frames += other.frames
        for task, metrics in self.tasks.items():
            metrics.merge(other.tasks[task])

    def compute(self) -> dict[str, Any]:
        """Return the figures of each task by its name, and 'frames': N."""
        figures: dict[str, Any] = {task: m.compute() for task, m in self.tasks.items()}
        return {**figures, 'frames': self.frames}

    def state(self) -> dict[str, np.ndarray]:
        """Return everything as arrays with names that a .npz file can hold."""
        arrays = {
            f'{task}.{name}': np.asarray(value)
            for task, metrics in self.tasks.items()
            for name, value in metrics.state().items()
        }
        return {**arrays, 'frames': np.int64(self.frames)}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned."""
        self.frames = int(state['frames'])
        for task, metrics in self.tasks.items():
            prefix = f'{task}.'
            metrics.load_state(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
