"""Fine histograms: percentiles of any number of values in constant memory."""

from __future__ import annotations

import math

import numpy as np

PERCENTILES = (50, 95, 99)


class LogHistogram:
    """Counts positive values in bins of equal ratio, about 0.6 % wide; merges exactly.

    Args:
        low: values below are counted in the first bin.
        high: values above are counted in the last bin.
    """

    PER_DECADE = 400

    def __init__(self, low: float = 1e-3, high: float = 1e6) -> None:
        self._low = low
        self.counts = np.zeros(round(np.log10(high / low) * self.PER_DECADE) + 1, np.int64)

    def add(self, values: np.ndarray | float) -> None:
        """Count one or more values; NaN is left out."""
        values = np.atleast_1d(np.asarray(values, np.float64)).ravel()
        values = np.maximum(values[~np.isnan(values)], self._low)
        places = (np.log10(values / self._low) * self.PER_DECADE).astype(np.intp)
        np.add.at(self.counts, np.minimum(places, self.counts.size - 1), 1)

    def merge(self, other: LogHistogram) -> None:
        """Add what `other` has counted."""
        self.counts += other.counts

    def percentile(self, percent: float) -> float | None:
        """Return the smallest value that `percent` of all do not exceed; None without values."""
        total = int(self.counts.sum())
        if not total:
            return None
        rank = max(0, math.ceil(total * percent / 100) - 1)
        place = int(np.searchsorted(np.cumsum(self.counts), rank, side='right'))
        return float(self._low * 10 ** ((place + 0.5) / self.PER_DECADE))

    def summary(self) -> dict[str, float | None]:
        """Return {'p50', 'p95', 'p99'}."""
        return {f'p{percent}': self.percentile(percent) for percent in PERCENTILES}
