"""Kernels that TensorRT-RTX compiles when an engine is opened, kept for the next start.

A file lies beside its engine, in the same form; its header names the engine (by sha256), the GPU
and the driver that the kernels were compiled for. TensorRT-RTX checks them once more itself.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from .cache import read_file, write_file
from .cuda import Gpu

SUFFIX = '.kernels'

_log = logging.getLogger(__name__)


class KernelCache:
    """The kept kernels of one engine on one GPU."""

    def __init__(self, engine: Path, blob: bytes, gpu: Gpu) -> None:
        """Name the file.

        Args:
            engine: the engine's file.
            blob: the engine.
            gpu: that runs it.
        """
        self._key = {
            'engine': hashlib.sha256(blob).hexdigest(),
            'gpu': str(gpu),
            'driver': f'{gpu.driver[0]}.{gpu.driver[1]}',
        }
        # GPUs of one machine keep their own; a new driver replaces what the old one had.
        device = hashlib.sha256(str(gpu).encode()).hexdigest()[:8]
        self.path = engine.with_name(f'{engine.stem}.{device}{SUFFIX}')
        self._kept = b''

    def load(self) -> bytes:
        """Return the kernels, or nothing; files that can't be used are discarded with a reason."""
        if not self.path.is_file():
            return b''
        try:
            header, blob = read_file(self.path)
        except (OSError, ValueError) as error:
            self.discard(f'the file is damaged ({error})')
            return b''
        differing = [name for name, own in self._key.items() if header['key'].get(name) != own]
        if differing:
            self.discard(f'they belong to another {" and ".join(differing)}')
            return b''
        self._kept = blob
        return blob

    def discard(self, reason: str) -> None:
        """Remove the file and say why."""
        _log.info(
            'the kernels in %s are discarded: %s; compiling again takes seconds', self.path, reason
        )
        self._kept = b''
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            _log.debug('%s stays: %s', self.path, error)

    def keep(self, blob: bytes) -> None:
        """Write the kernels unless they are kept already; without them a start takes longer."""
        if not blob or blob == self._kept:
            return
        try:
            write_file(self.path, self._key, {}, blob)
        except OSError as error:
            _log.info('the kernels are not kept in %s: %s', self.path.parent, error)
        self._kept = blob
