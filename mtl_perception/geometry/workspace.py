"""Arrays that live from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike


class Workspace:
    """Scratch arrays by name: a stream of equally large pictures allocates once.

    Not safe for two threads at a time: every worker keeps its own.

    >>> workspace = Workspace()
    >>> a = workspace.array('height', (2, 3))
    >>> a is workspace.array('height', (2, 3))
    True
    """

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: Sequence[int], dtype: DTypeLike = np.float32) -> np.ndarray:
        """Return the array kept under `name`; its contents are whatever they were.

        A new one replaces it when shape or dtype differ.
        """
        kept = self._arrays.get(name)
        if kept is None or kept.shape != tuple(shape) or kept.dtype != dtype:
            kept = self._arrays[name] = np.empty(shape, dtype)
        return kept
