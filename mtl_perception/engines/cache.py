"""Cache of built engines: what is found there is whole and was built for exactly this, or nothing.

One file holds one engine: a magic line, the length of a JSON header, the header, the engine. The
header holds the key, part by part, and the engine's sha256.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from ._interface import EngineError

_MAGIC = b'mtl_perception engine 1\n'
_SUFFIX = '.engine'
KEPT_PER_BUNDLE = 8
REWRITING = 2
"""Raise it when graphs are rewritten, judged or built in another way: engines are built again."""

DEFAULT_TARGET = 'the default compute capabilities'
"""Of an engine that was built without a GPU and for none in particular."""

LOCK_TIMEOUT_S = 3600.0
"""Longest wait for another process' build; large networks take minutes on a Jetson."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on.

    Attributes:
        bundle: name of the bundle, for people.
        model_sha256: of the bundle's model.onnx.
        runtime: 'tensorrt' or 'tensorrt_rtx'.
        runtime_version: its version.
        device: GPU name with its compute capability, or the target capabilities.
        precision: asked for: 'float32', 'float16' or 'int8'.
        sizes: (height, width) pairs.
        batch: (min, opt, max).
        flags: all else that changes the engine, by name: builder options, the frames it was
            calibrated and judged on.
    """

    bundle: str
    model_sha256: str
    runtime: str
    runtime_version: str
    device: str
    precision: str
    sizes: tuple[tuple[int, int], ...]
    batch: tuple[int, int, int]
    flags: tuple[tuple[str, str], ...] = ()

    def parts(self) -> dict[str, Any]:
        """Return the key's parts as JSON has them."""
        return json.loads(json.dumps(self.__dict__))

    @property
    def digest(self) -> str:
        """Hash over all parts, hexadecimal."""
        text = json.dumps(self.parts(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def file_name(self) -> str:
        """Name of the engine's file: readable, and unlike for unlike keys."""
        sizes = '_'.join(f'{height}x{width}' for height, width in self.sizes)
        return f'{self.bundle}-{self.runtime}-{self.precision}-{sizes}-{self.digest[:16]}{_SUFFIX}'


@dataclass(frozen=True)
class CachedEngine:
    """An engine with what is known about it (achieved precision, gate's reports, build time).

    `path` is the file that it was read from, if any.
    """

    blob: bytes
    notes: dict[str, Any]
    path: Path | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Miss:
    """Why there is no usable engine, in a sentence."""

    reason: str


class EngineCache:
    """A folder of built engines, shared by all processes of a user."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Use a folder: MTL_PERCEPTION_CACHE or the user's cache folder unless one is given."""
        chosen = folder or os.environ.get('MTL_PERCEPTION_CACHE')
        self.folder = Path(chosen) if chosen else user_cache_path('mtl_perception') / 'engines'

    def find(self, key: EngineKey) -> CachedEngine | Miss:
        """Return the engine for a key, or why there is none that can be used."""
        path = self.folder / key.file_name
        if not path.is_file():
            return Miss(self._why_absent(key))
        try:
            header, blob = read_file(path)
        except (OSError, ValueError) as error:
            return Miss(f'{path} is damaged ({error})')
        if header['key'] != key.parts():
            return Miss(f'{path} was built for another key')
        return CachedEngine(blob, header['notes'], path)

    def build(
        self, key: EngineKey, make: Callable[[], CachedEngine]
    ) -> tuple[CachedEngine, Path | None, str]:
        """Return the engine for a key; build, keep and prune where there is none.

        Processes that want the same engine at once wait for the first one's.

        Returns:
            The engine, its file (None where the folder can't be written), and in a sentence where
            it came from.
        """
        path = self.folder / key.file_name
        error = self._why_not_writable()
        if error:
            found = self.find(key)
            if isinstance(found, CachedEngine):
                return found, path, f'found in {path}'
            _log.warning(
                "engines can't be kept in %s (%s): set MTL_PERCEPTION_CACHE to a folder that can "
                'be written',
                self.folder,
                error,
            )
            return make(), None, f"built, not kept: {self.folder} can't be written"
        with self._locked(path):
            found = self.find(key)
            if isinstance(found, CachedEngine):
                return found, path, f'found in {path}'
            _log.info('building: %s', found.reason)
            made = make()
            try:
                write_file(path, key.parts(), made.notes, made.blob)
            except OSError as failure:
                _log.warning("the engine can't be kept in %s (%s): make room", path, failure)
                return made, None, f"built, not kept: {path} can't be written ({failure})"
            self._prune(key)
        return made, path, f'built: {found.reason}'

    def entries(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Yield files with their headers (key, notes, sha256); damaged files are left out."""
        for path in sorted(self.folder.glob(f'*{_SUFFIX}')):
            try:
                yield path, _read_header(path)[0]
            except (OSError, ValueError):
                continue

    def _why_not_writable(self) -> OSError | None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                return None
        except OSError as error:
            return error

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        lock = FileLock(f'{path}.lock')
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.info('another process builds %s: waiting for it', path.name)
            try:
                lock.acquire(timeout=LOCK_TIMEOUT_S)
            except Timeout as timeout:
                raise EngineError(
                    f'another process has been building {path.name} for an hour: end it, or '
                    f'remove {path}.lock'
                ) from timeout
        try:
            yield
        finally:
            lock.release()

    def _why_absent(self, key: EngineKey) -> str:
        """Say which part of the key differs from the engine that comes nearest."""
        wanted = _flat(key.parts())
        nearest: list[str] | None = None
        for _, header in self.entries():
            have = _flat(header['key'])
            if have.get('bundle') != key.bundle:
                continue
            differing = [part for part in wanted if have.get(part) != wanted[part]]
            if nearest is None or len(differing) < len(nearest):
                nearest = [f'{p} was {have.get(p)}, is {wanted[p]}' for p in differing]
        if nearest is None:
            return f'no engine of {key.bundle} is in {self.folder}'
        return f'the engine of {key.bundle} in {self.folder} is another: {"; ".join(nearest)}'

    def _prune(self, key: EngineKey) -> None:
        """Remove engines that can't be hit again, and the oldest beyond KEPT_PER_BUNDLE.

        Those of other GPUs stay: machines may share the folder.
        """
        own = []
        for path, header in self.entries():
            have = header['key']
            if (have['bundle'], have['device']) != (key.bundle, key.device):
                continue
            outdated = have['model_sha256'] != key.model_sha256 or (
                have['runtime'] == key.runtime and have['runtime_version'] != key.runtime_version
            )
            if outdated:
                _remove(path)
            else:
                own.append(path)
        own.sort(key=modified_at, reverse=True)
        for path in own[KEPT_PER_BUNDLE:]:
            _remove(path)


def _flat(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a key's parts with each flag as a part of its own."""
    return {**parts, **dict(parts.get('flags', ())), 'flags': None}


def modified_at(path: Path) -> float:
    """Return when a file was written last; 0 where another process has just removed it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def write_file(path: Path, key: dict[str, Any], notes: dict[str, Any], blob: bytes) -> None:
    """Write a file beside its place and rename it: it appears whole or not at all."""
    header = {
        'key': key,
        'notes': notes,
        'sha256': hashlib.sha256(blob).hexdigest(),
        'bytes': len(blob),
    }
    text = json.dumps(header).encode()
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        with os.fdopen(descriptor, 'wb') as file:
            file.write(_MAGIC + struct.pack('<Q', len(text)) + text)
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header and the offset of the engine."""
    with path.open('rb') as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError('it is no engine file of this version')
        (length,) = struct.unpack('<Q', file.read(8).ljust(8, b'\0'))
        if length > path.stat().st_size:
            raise ValueError('its header is cut off')
        header = json.loads(file.read(length))
        if not isinstance(header, dict) or not {'key', 'notes', 'sha256'} <= header.keys():
            raise ValueError('its header is incomplete')
        return header, file.tell()


def read_file(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header (key, notes, sha256) and the content of a whole file.

    Raises:
        OSError: it can't be read.
        ValueError: it is no such file, or cut off, or its bytes have changed.
    """
    header, offset = _read_header(path)
    with path.open('rb') as file:
        file.seek(offset)
        blob = file.read()
    if hashlib.sha256(blob).hexdigest() != header['sha256']:
        raise ValueError(f'{len(blob)} of {header.get("bytes")} bytes, or changed bytes')
    return header, blob


def _remove(path: Path) -> None:
    """Remove an engine with its lock and the kernels that were compiled for it."""
    _log.info('removing the outdated engine %s', path)
    path.unlink(missing_ok=True)
    Path(f'{path}.lock').unlink(missing_ok=True)
    for kernels in path.parent.glob(f'{glob.escape(path.stem)}.*.kernels'):
        kernels.unlink(missing_ok=True)
