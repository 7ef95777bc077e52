"""What one camera's last pictures together say of its classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mtl_perception.bundle import AttributeSpec, attribute_slices

_LEAST = 1e-6
"""Scores are kept so far from 0 and 1: one picture can't decide for all."""


class ClassFilter:
    """Averages the class scores of one camera over the last seconds.

    One picture may show a corner of a bedroom without its bed; those before it told the room. The
    average is that of log-odds (of logarithms, for attributes of which exactly one class holds:
    the opinions are multiplied, then normalised), each picture counting exp(-age / memory).
    """

    def __init__(self, attributes: Sequence[AttributeSpec]) -> None:
        """Remember nothing yet.

        Args:
            attributes: in the order of the scores.
        """
        parts = list(attribute_slices(attributes))
        self._single = [part for attribute, part in parts if attribute.kind == 'single']
        self._size = parts[-1][1].stop if parts else 0
        self.reset()

    def reset(self) -> None:
        """Forget all pictures."""
        self._sum = np.zeros(self._size)
        self._weight = 0.0
        self._time_s = -math.inf

    def update(self, scores: np.ndarray, time_s: float, memory_s: float) -> np.ndarray:
        """Take in one picture's scores and return those of all, float32 [C], 0..1.

        Time that goes backwards (a bag that begins anew) forgets what was before.

        Args:
            scores: float32 [C], 0..1, of all classes of all attributes.
            time_s: when the picture was taken, seconds.
            memory_s: age in seconds at which a picture counts 1/e; 0: this picture alone.
        """
        if memory_s <= 0:
            self.reset()
            return scores
        if time_s < self._time_s:
            self.reset()
        kept = math.exp((self._time_s - time_s) / memory_s)
        self._time_s = time_s
        said = np.clip(scores.astype(np.float64), _LEAST, 1 - _LEAST)
        odds = np.log(said) - np.log1p(-said)
        for part in self._single:
            odds[part] = np.log(said[part])
        self._sum = self._sum * kept + odds
        self._weight = self._weight * kept + 1
        mean = self._sum / self._weight
        together = 1 / (1 + np.exp(-mean))
        for part in self._single:
            likelihood = np.exp(mean[part] - mean[part].max())
            together[part] = likelihood / likelihood.sum()
        return together.astype(np.float32)
