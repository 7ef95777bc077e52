"""An engine that survives its GPU: it is opened anew after an error, and gives way to the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ._interface import EngineError, Size, UnpreparedSizeError
from .cuda import CudaError, OutOfMemoryError

if TYPE_CHECKING:
    from . import Engine

Result = TypeVar('Result')

ERRORS_IN_A_ROW = 3
"""CUDA errors without a good frame between them after which the CPU takes over."""

_log = logging.getLogger(__name__)


class GuardedEngine:
    """Run a GPU engine; after a CUDA error free it, open it anew, and compute the frame again.

    Attributes:
        name: of the engine that ran last.
        device: what it runs on.
        precision: what it computes in.
        remark: what has happened, in a sentence for diagnostics; empty while all is well.
        errors: CUDA errors so far.
    """

    def __init__(
        self,
        open_gpu: Callable[[], Engine],
        open_cpu: Callable[[], Engine],
        *,
        follow_sizes: bool = False,
    ) -> None:
        """Open the GPU engine.

        Args:
            open_gpu: opens the engine, now and after errors.
            open_cpu: opens the engine that takes over for good.
            follow_sizes: let it take over, too, where the GPU engine was not built for the size
                of the pictures.

        Raises:
            EngineError: the GPU engine can't be opened the first time.
        """
        self._open_gpu = open_gpu
        self._open_cpu = open_cpu
        self._follow_sizes = follow_sizes
        self._engine: Engine | None = None
        self._take(open_gpu())
        self._in_a_row = 0
        self._on_cpu = False
        self.remark = ''
        self.errors = 0

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
            except UnpreparedSizeError as error:
                if not self._follow_sizes or self._on_cpu:
                    raise
                self._hand_over(str(error))

    def _current(self) -> Engine:
        """Return the engine, opened anew if the last one failed."""
        while self._engine is None:
            try:
                self._take(self._open_gpu())
            except EngineError as error:
                self._count(error)
        return self._engine

    def _take(self, engine: Engine) -> None:
        """Run this engine from now on."""
        self._engine = engine
        self.name, self.device, self.precision = engine.name, engine.device, engine.precision

    def _count(self, error: EngineError) -> None:
        """Close what failed; after too many errors in a row, hand over to the CPU."""
        self.errors += 1
        self._in_a_row += 1
        if isinstance(error, OutOfMemoryError):  # another attempt would need as much
            self._hand_over(str(error))
            return
        if self._in_a_row >= ERRORS_IN_A_ROW:
            self._hand_over(f'{ERRORS_IN_A_ROW} GPU errors in a row, the last one: {error}')
            return
        self._close_gpu()
        self.remark = f'the GPU engine was opened anew after {self.errors} errors: {error}'
        _log.warning('%s', self.remark)

    def _hand_over(self, reason: str) -> None:
        """Let the CPU engine run from now on."""
        self._close_gpu()
        self._take(self._open_cpu())
        self._on_cpu = True
        self.remark = (
            f'{reason}; {self.name} on the CPU ({self.precision}) runs until the node is '
            'configured again'
        )
        _log.error('%s', self.remark)

    def _close_gpu(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None
