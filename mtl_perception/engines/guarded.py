"""An engine that survives its GPU: it is opened anew after an error, and gives way to the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ._interface import EngineError, Size
from .cuda import CudaError

if TYPE_CHECKING:
    from . import Engine

Result = TypeVar('Result')

ERRORS_IN_A_ROW = 3
"""CUDA errors without a good frame between them after which the CPU takes over."""

_log = logging.getLogger(__name__)


class GuardedEngine:
    """Run a GPU engine; after a CUDA error free it, open it anew, and compute the frame again.

    Attributes:
        remark: what has happened, in a sentence for diagnostics; empty while all is well.
        errors: CUDA errors so far.
    """

    def __init__(self, open_gpu: Callable[[], Engine], open_cpu: Callable[[], Engine]) -> None:
        """Open the GPU engine.

        Args:
            open_gpu: opens the engine, now and after errors.
            open_cpu: opens the engine that takes over for good.

        Raises:
            EngineError: the GPU engine can't be opened the first time.
        """
        self._open_gpu = open_gpu
        self._open_cpu = open_cpu
        self._engine: Engine | None = open_gpu()
        self._in_a_row = 0
        self._on_cpu = False
        self.remark = ''
        self.errors = 0

    @property
    def name(self) -> str:
        """Name of the engine that runs now."""
        return self._current().name

    @property
    def device(self) -> str:
        """What it runs on."""
        return self._current().device

    @property
    def precision(self) -> str:
        """What it computes in."""
        return self._current().precision

    def input_buffer(self, batch: int, size: Size) -> np.ndarray:
        """Return the kept input of the engine that runs now."""
        return self._attempt(lambda engine: engine.input_buffer(batch, size))

    def infer(
        self, image: np.ndarray, outputs: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run the graph on the GPU, or on the CPU once the GPU has failed too often."""
        results = self._attempt(lambda engine: engine.infer(image, outputs))
        if not self._on_cpu:
            self._in_a_row = 0
        return results

    def expect(self, batch: int, size: Size, outputs: Collection[str]) -> None:
        """Pass on what will be asked for."""
        engine = self._engine
        if engine is not None:
            engine.expect(batch, size, outputs)

    def close(self) -> None:
        """Free the engine that runs now."""
        if self._engine is not None:
            self._engine.close()

    def _attempt(self, work: Callable[[Engine], Result]) -> Result:
        while True:
            try:
                return work(self._current())
            except CudaError as error:
                if self._on_cpu:
                    raise
                self._count(error)

    def _current(self) -> Engine:
        """Return the engine, opened anew if the last one failed."""
        while self._engine is None:
            try:
                self._engine = self._open_gpu()
            except EngineError as error:
                self._count(error)
        return self._engine

    def _count(self, error: EngineError) -> None:
        """Close what failed; after too many errors in a row, open the CPU engine."""
        self.errors += 1
        self._in_a_row += 1
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        if self._in_a_row < ERRORS_IN_A_ROW:
            self.remark = f'the GPU engine was opened anew after {self.errors} errors: {error}'
            _log.warning('%s', self.remark)
            return
        self._engine = self._open_cpu()
        self._on_cpu = True
        self.remark = (
            f'{ERRORS_IN_A_ROW} GPU errors in a row, the last one: {error}; '
            f'{self._engine.name} on the CPU runs until the node is configured again'
        )
        _log.error('%s', self.remark)
