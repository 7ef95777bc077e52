"""What all accumulators of figures need."""

from __future__ import annotations

import numpy as np


def same_shape(pred: np.ndarray, true: np.ndarray, what: str) -> None:
    """Refuse a prediction and a truth of different shapes.

    Raises:
        ValueError: they differ.
    """
    if pred.shape != true.shape:
        raise ValueError(
            f'{what}: prediction {pred.shape} and truth {true.shape} differ in shape; '
            'bring both to one size first'
        )


def ratio(total: float, count: float) -> float | None:
    """Return a mean or share; None where there is nothing to divide by."""
    return float(total) / float(count) if count else None
