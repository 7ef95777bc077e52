"""Is B better than A? Differences of figures with bootstrap intervals over the same frames."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtl_perception.evaluation.blocks import Resamples, automatic_length, cut_into_blocks

LEVEL = 0.95
FEW_BLOCKS = 10
# So few have too few different draws for the tails of an interval.
TOO_FEW_BLOCKS = 5
ANGLE_NAMES = ('11.25', '22.5', '30')
# Figures that are compared, by task, and whether more is better.
COMPARED: dict[str, dict[str, bool]] = {
    'segmentation': {'miou': True, 'pixacc': True},
    'depth': {
        'abs_err': False, 'rel_err': False, 'rmse': False,
        'delta1': True, 'delta2': True, 'delta3': True,
    },
    'normals': {'mean': False, 'median': False, '11.25': True, '22.5': True, '30': True},
    'detection': {
        'ap': True, 'ap50': True, 'ap75': True, 'precision': True, 'recall': True, 'f1': True,
    },
    'classification': {'accuracy': True},
}  # fmt: skip


class ComparisonError(ValueError):
    """Results that cannot be compared."""


@dataclass(frozen=True)
class Difference:
    """One figure of two evaluations.

    Attributes:
        name: 'segmentation.miou'.
        first: value in A.
        second: value in B.
        low: lower end of the interval of B - A, or None where too few frames are in common and for
            average precision, which is no sum over frames.
        high: its upper end.
        more_is_better: the figure's direction.
    """

    name: str
    first: float
    second: float
    low: float | None
    high: float | None
    more_is_better: bool

    @property
    def change(self) -> float:
        """B - A."""
        return self.second - self.first

    @property
    def verdict(self) -> str:
        """'better', 'worse', or 'unclear' while the interval holds zero."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return 'unclear'
        return 'better' if (self.change > 0) == self.more_is_better else 'worse'


@dataclass(frozen=True)
class Comparison:
    """All differences of two evaluations.

    Attributes:
        differences: of all figures that both have.
        paired: frames that both have; intervals come of these.
        only_first: frames that only A has.
        only_second: frames that only B has.
        block: so many successive frames of a recording were drawn together, at most.
        blocks: there are, of the frames that both have.
        remarks: what makes the comparison weaker.
    """

    differences: tuple[Difference, ...]
    paired: int
    only_first: int
    only_second: int
    block: int
    blocks: int
    remarks: tuple[str, ...]


def compare(
    first: Mapping[str, Any], second: Mapping[str, Any], *, block: int = 0, seed: int = 0
) -> Comparison:
    """Compare two results documents.

    The intervals are those of a paired block bootstrap (Efron and Tibshirani 1993; see `blocks`):
    runs of successive frames are drawn with replacement, the same for both, and pooled figures
    are computed of what the drawn frames count.

    Args:
        first: results, A.
        second: results, B.
        block: frames of a recording that are drawn together; 0 reads off the frames' differences
            for how long they resemble each other; 1 takes every frame as a measurement of its own.
        seed: of the draws.

    Raises:
        ComparisonError: they have no figure in common.
    """
    frames = [_by_key(document) for document in (first, second)]
    if not frames[0].keys() & frames[1].keys():
        # One recording may have been evaluated under two names.
        frames = [_by_key(document, named=False) for document in (first, second)]
    common = [key for key in frames[0] if key in frames[1]]
    paired = [[frame[key] for key in common] for frame in frames]
    recordings = [key[0] for key in common]
    block = block or automatic_length(recordings, _frame_differences(*paired))
    block_of = cut_into_blocks(recordings, block)
    blocks = len(set(block_of.tolist()))
    resamples = Resamples.of_blocks(block_of, seed) if blocks >= TOO_FEW_BLOCKS else None
    differences = []
    for task, figures in COMPARED.items():
        a, b = first.get(task), second.get(task)
        if not a or not b:
            continue
        intervals: dict[str, tuple[float, float]] = {}
        if resamples is not None:
            drawn = [pooled(task, counts, resamples) for counts in paired]
            intervals = _intervals(*drawn)
        for name, more_is_better in figures.items():
            if a.get(name) is not None and b.get(name) is not None:
                low, high = intervals.get(name, (None, None))
                differences.append(
                    Difference(f'{task}.{name}', a[name], b[name], low, high, more_is_better)
                )
    if not differences:
        raise ComparisonError('the two evaluations have no figure in common: compare equal tasks')
    return Comparison(
        differences=tuple(differences),
        paired=len(common),
        only_first=len(frames[0]) - len(common),
        only_second=len(frames[1]) - len(common),
        block=block,
        blocks=blocks,
        remarks=tuple(_remarks(first, second, [len(common), *map(len, frames)], blocks)),
    )


def _remarks(
    first: Mapping[str, Any], second: Mapping[str, Any], counts: Sequence[int], blocks: int
) -> list[str]:
    remarks = []
    if not counts[0]:
        remarks.append('no frame is in both: there are no intervals')
    elif len(set(counts)) > 1:
        remarks.append('figures are over the frames of each, intervals over those in both')
    if 0 < blocks < FEW_BLOCKS:
        remarks.append(
            f'there are only {blocks} stretches of frames that are independent of each other: '
            + ('the intervals are rough' if blocks >= TOO_FEW_BLOCKS else 'too few for intervals')
        )
    sources = [(d.get('normals') or {}).get('source') for d in (first, second)]
    if sources[0] != sources[1]:
        remarks.append(f'normals come from {sources[0]} and {sources[1]}: not comparable')
    precisions = [d.get('engine', {}).get('precision') for d in (first, second)]
    if precisions[0] != precisions[1]:
        remarks.append(f'computed in {precisions[0]} and {precisions[1]}')
    return remarks


def _by_key(
    document: Mapping[str, Any], named: bool = True
) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    named = named or len(document.get('recordings', ())) > 1
    return {
        (record['recording'] if named else '', record['camera'], record['id']): record['counts']
        for record in document.get('per_frame', ())
    }


def _frame_differences(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> list[np.ndarray]:
    """Return, for every task that both have, how each frame's leading figure differs."""
    differences = []
    for task, figure in _LEADING.items():
        if any(task in a and task in b for a, b in zip(first, second, strict=True)):
            differences.append(
                np.array(
                    [
                        figure(b[task]) - figure(a[task]) if task in a and task in b else np.nan
                        for a, b in zip(first, second, strict=True)
                    ]
                )
            )
    return differences


def _mean(total: float, count: float) -> float:
    return total / count if count else float('nan')


# A figure that every frame has for itself: pixel accuracy, rel_err, mean angle, F1, accuracy.
_LEADING: dict[str, Callable[[Any], float]] = {
    'segmentation': lambda counts: _mean(sum(counts[0]), sum(counts[1])),
    'depth': lambda counts: _mean(counts[1][1], counts[0][0]),
    'normals': lambda counts: _mean(counts[1], counts[0][0]),
    'detection': lambda counts: _mean(2 * counts[0], counts[1] + counts[2]),
    'classification': lambda counts: _mean(*(sum(part) for part in zip(*counts, strict=True))),
}


def pooled(
    task: str, counts: Sequence[Mapping[str, Any]], resamples: Resamples
) -> dict[str, np.ndarray]:
    """Return each figure of the task for every resample, float64 [resamples]."""
    rows = [c[task] for c in counts if task in c]
    if len(rows) != len(counts):
        resamples = resamples.of_frames(np.array([task in c for c in counts]))
    if not rows:
        return {}
    with np.errstate(divide='ignore', invalid='ignore'):
        return _POOLING[task](rows, resamples)


def _total(rows: Sequence[Any], part: int, resamples: Resamples) -> np.ndarray:
    return resamples.total(np.array([row[part] for row in rows], np.float64))


def _pool_segmentation(rows: Sequence[Any], resamples: Resamples) -> dict[str, np.ndarray]:
    hits, true, predicted = (_total(rows, part, resamples) for part in range(3))
    return {
        'miou': np.nanmean(hits / (true + predicted - hits), axis=1),
        'pixacc': hits.sum(axis=1) / true.sum(axis=1),
    }


def _pool_depth(rows: Sequence[Any], resamples: Resamples) -> dict[str, np.ndarray]:
    counts, sums = (_total(rows, part, resamples) for part in range(2))
    pixels = counts[:, 0]
    return {
        'abs_err': sums[:, 0] / pixels,
        'rel_err': sums[:, 1] / pixels,
        'rmse': np.sqrt(sums[:, 2] / pixels),
        **{f'delta{i}': counts[:, 1 + i] / pixels for i in (1, 2, 3)},
    }


def _pool_normals(rows: Sequence[Any], resamples: Resamples) -> dict[str, np.ndarray]:
    counts, total, degrees = (_total(rows, part, resamples) for part in range(3))
    reached = np.cumsum(degrees, axis=1)
    half = reached[:, -1] / 2
    degree = (reached < half[:, None]).sum(axis=1)
    before = np.where(degree > 0, np.take_along_axis(reached, degree[:, None] - 1, 1)[:, 0], 0)
    inside = np.take_along_axis(reached, degree[:, None], 1)[:, 0] - before
    pixels = counts[:, 0]
    return {
        'mean': total / pixels,
        'median': degree + (half - before) / inside,
        **{name: counts[:, 1 + i] / pixels for i, name in enumerate(ANGLE_NAMES)},
    }


def _pool_detection(rows: Sequence[Any], resamples: Resamples) -> dict[str, np.ndarray]:
    right, found, true = resamples.total(np.array(rows, np.float64)).T
    return {
        'precision': right / found,
        'recall': right / true,
        'f1': 2 * right / (found + true),
    }


def _pool_classification(rows: Sequence[Any], resamples: Resamples) -> dict[str, np.ndarray]:
    counts = np.array(rows, np.float64)  # [frames, attributes, right and all]
    right, total = (resamples.total(counts[..., part]) for part in range(2))
    return {'accuracy': np.nanmean(right / total, axis=1)}


_POOLING: dict[str, Callable[[Sequence[Any], Resamples], dict[str, np.ndarray]]] = {
    'segmentation': _pool_segmentation,
    'depth': _pool_depth,
    'normals': _pool_normals,
    'detection': _pool_detection,
    'classification': _pool_classification,
}


def _intervals(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    tails = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    intervals = {}
    for name in first.keys() & second.keys():
        change = second[name] - first[name]
        change = change[np.isfinite(change)]
        if change.size:
            low, high = np.percentile(change, tails)
            intervals[name] = (float(low), float(high))
    return intervals


_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    '<': operator.lt, '<=': operator.le, '>': operator.gt, '>=': operator.ge,
}  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """A condition under which a check fails, such as 'segmentation.miou < -0.01'."""

    figure: str
    operator: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition.

        Raises:
            ValueError: it is none; says how one looks.
        """
        match = re.fullmatch(r'\s*([\w.]+?)\s*(<=|>=|<|>)\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*', text)
        if not match:
            raise ValueError(
                f"condition {text!r} is not understood: expected 'segmentation.miou < -0.01'"
            )
        return cls(match[1], match[2], float(match[3]))

    def holds(self, values: Mapping[str, float]) -> bool:
        """Tell whether the condition holds, so that the check fails.

        Raises:
            ValueError: the figure does not exist here.
        """
        if self.figure not in values:
            raise ValueError(
                f'there is no figure {self.figure!r}: choose from {", ".join(sorted(values))}'
            )
        return _OPERATORS[self.operator](values[self.figure], self.limit)

    def __str__(self) -> str:
        return f'{self.figure} {self.operator} {self.limit:g}'


def flat_figures(document: Mapping[str, Any]) -> dict[str, float]:
    """Return every compared figure of a document as 'task.figure' -> value."""
    return {
        f'{task}.{name}': document[task][name]
        for task, names in COMPARED.items()
        if document.get(task)
        for name in names
        if document[task].get(name) is not None
    }
