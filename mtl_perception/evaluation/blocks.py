"""Resampling of frames in blocks, since frames of one recording resemble their neighbours.

A bootstrap that draws frames one by one takes a thousand nearly equal frames for a thousand
measurements, and its intervals come out too narrow. Drawing runs of successive frames keeps what
neighbours have in common inside the run (Carlstein 1986). How long a run must be is read off the
frames: by the rule of Politis and White (2004, corrected by Patton, Politis and White 2009), from
how fast the autocorrelation of the differences dies away.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

RESAMPLES = 2000
# A product of integers and floats makes floats of all draws it is given.
_PARTS = 50


@dataclass(frozen=True)
class Resamples:
    """Draws with replacement of blocks of frames, the same ones for every figure.

    Attributes:
        draws: how often each block is drawn, uint16 [resamples, blocks].
        block_of: the block of each frame, intp [frames].
    """

    draws: np.ndarray
    block_of: np.ndarray

    @classmethod
    def of_blocks(cls, block_of: np.ndarray, seed: int = 0) -> Resamples:
        """Draw as many blocks as there are, RESAMPLES times."""
        blocks = int(block_of.max(initial=-1)) + 1
        rng = np.random.default_rng(seed)
        draws = np.empty((RESAMPLES, blocks), np.uint16)
        for row in draws:
            row[:] = np.bincount(rng.integers(blocks, size=blocks), minlength=blocks)
        return cls(draws, block_of)

    def of_frames(self, has: np.ndarray) -> Resamples:
        """Return the same draws for some of the frames only, bool [frames]."""
        return replace(self, block_of=self.block_of[has])

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum frames' values [frames, ...] over each resample, float64 [resamples, ...]."""
        sums = np.zeros((self.draws.shape[1], *values.shape[1:]))
        np.add.at(sums, self.block_of, values)
        flat = sums.reshape(len(sums), -1)
        totals = [part @ flat for part in np.array_split(self.draws, _PARTS)]
        return np.concatenate(totals).reshape(-1, *sums.shape[1:])


def cut_into_blocks(recordings: Sequence[Hashable], length: int) -> np.ndarray:
    """Return the block of each frame, intp [frames].

    Args:
        recordings: of each frame, in recorded order; no block spans two.
        length: frames in a block, at most. Blocks of one recording differ by at most one frame.
    """
    block_of = np.zeros(len(recordings), np.intp)
    blocks = 0
    for places in _by_recording(recordings):
        count = math.ceil(len(places) / length)
        block_of[places] = blocks + np.arange(len(places)) * count // len(places)
        blocks += count
    return block_of


def automatic_length(recordings: Sequence[Hashable], series: Sequence[np.ndarray]) -> int:
    """Return how many successive frames belong together for the most correlated series.

    Args:
        recordings: of each frame, in recorded order.
        series: values of each frame, float [frames], NaN where a frame has none; for a paired
            comparison the frames' differences.
    """
    places = _by_recording(recordings)
    return max((_length(values, places) for values in series), default=1)


def _by_recording(recordings: Sequence[Hashable]) -> list[np.ndarray]:
    places: dict[Hashable, list[int]] = {}
    for place, recording in enumerate(recordings):
        places.setdefault(recording, []).append(place)
    return [np.array(frames) for frames in places.values()]


def _length(values: np.ndarray, places: Sequence[np.ndarray]) -> int:
    """Return the optimal block length of one series: Politis and White's, for fixed blocks."""
    known = np.isfinite(values)
    n = int(known.sum())
    if n < 4:
        return 1
    # What is unknown says nothing about its neighbours: it stands at the mean.
    centred = np.where(known, values - values[known].mean(), 0.0)
    together = max(5, math.ceil(math.sqrt(math.log10(n))))
    longest = min(max(map(len, places)) - 1, math.ceil(math.sqrt(n)) + together)
    covariance = np.array(
        [
            sum(centred[p[: len(p) - k]] @ centred[p[k:]] for p in places if len(p) > k) / n
            for k in range(longest + 1)
        ]
    )
    if covariance[0] <= 0:
        return 1
    alike = np.abs(covariance / covariance[0]) >= 2 * math.sqrt(math.log10(n) / n)
    # The first lag after which `together` lags in a row say nothing.
    reach = next(
        (k for k in range(longest + 1) if not alike[k + 1 : k + 1 + together].any()), longest
    )
    if reach == 0:
        return 1
    window = min(2 * reach, longest)
    lags = np.arange(1, window + 1)
    # The flat-top window of Politis and Romano (1995).
    weights = np.clip(2 * (1 - lags / window), 0, 1) * covariance[lags]
    spectrum = covariance[0] + 2 * weights.sum()
    bias = 2 * (weights * lags).sum()
    if spectrum <= 0:
        return 1
    length = (2 * bias**2 / (4 / 3 * spectrum**2)) ** (1 / 3) * n ** (1 / 3)
    return max(1, math.ceil(min(length, 3 * math.sqrt(n), n / 3)))
