"""Find and open engines that were built ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..bundle import ModelBundle, how_to_name
from ._interface import EngineError, Size
from .cache import (
    DEFAULT_TARGET,
    REWRITING,
    CachedEngine,
    EngineCache,
    EngineKey,
    Miss,
    modified_at,
)
from .cuda import AMPERE, Cuda, CudaError, Gpu
from .guarded import GuardedEngine
from .kernels import KernelCache
from .tensorrt import TensorRtEngine
from .tensorrt_api import TensorRt, load_tensorrt

if TYPE_CHECKING:
    from . import Engine

COMMAND_NAMES = {'float32': 'fp32', 'float16': 'fp16', 'int8': 'int8'}
"""Precisions of TensorRT engines, and how `engine build` names them."""


def open_prepared(
    bundle: ModelBundle,
    open_cpu: Callable[[], Engine],
    *,
    precision: str = 'auto',
    size: Size | None = None,
    batch: int = 1,
    runtime: str = 'auto',
    device: int = 0,
    follow_sizes: bool = False,
    cache: EngineCache | None = None,
    cuda: Cuda | None = None,
    api: TensorRt | None = None,
) -> GuardedEngine:
    """Open a prepared TensorRT engine, guarded and ready for one picture and for `batch`.

    Nothing is built here: a build takes up to minutes, a node's transitions may take seconds.

    Args:
        bundle: the verified bundle.
        open_cpu: opens the engine that takes over when the GPU fails for good.
        precision: 'float32', 'float16', 'int8' as asked for when it was built, or 'auto': float16
            before int8 before float32.
        size: (height, width) of the network; the bundle's own when None.
        batch: largest number of pictures per call.
        runtime: 'tensorrt', 'tensorrt_rtx' or 'auto': the first of them that is installed.
        device: number of the GPU.
        follow_sizes: hand over to the CPU, too, where pictures come in a size that the engine was
            not built for.
        cache: where engines are kept.
        cuda: the driver; cuda-python's own when None.
        api: the TensorRT; the installed one when None.

    Raises:
        EngineError: with the reason why TensorRT can't be used, and the fix.
    """
    cuda = cuda or Cuda()
    gpu = cuda.find_gpu(device)
    api = api or load_tensorrt(runtime)
    size = size or bundle.input_size
    if precision not in ('auto', *COMMAND_NAMES):
        raise EngineError(
            f'TensorRT engines compute in {", ".join(COMMAND_NAMES)}, {precision} was asked for: '
            'set precision to auto, or engine to openvino'
        )
    wanted = _Wanted(bundle, api, gpu, precision, size, batch)

    def open_gpu(found: CachedEngine) -> Engine:
        engine = TensorRtEngine(
            bundle,
            found.blob,
            api,
            cuda,
            gpu,
            precision=found.notes['precision'],
            kernel_cache=KernelCache(found.path, found.blob, gpu) if found.path else None,
        )
        try:
            for count in sorted({1, batch}):
                engine.input_buffer(count, size)
        except BaseException:
            engine.close()
            raise
        return engine

    cache = cache or EngineCache()
    engines, reasons = _find(cache, wanted)
    for found in engines:
        try:
            return GuardedEngine(
                lambda found=found: open_gpu(found), open_cpu, follow_sizes=follow_sizes
            )
        except CudaError:  # not for this engine's sake
            raise
        except EngineError as error:
            reasons.append(str(error))
    raise EngineError(_none_fits(cache, wanted, reasons))


def find_prepared(
    cache: EngineCache,
    bundle: ModelBundle,
    api: TensorRt,
    gpu: Gpu,
    *,
    precision: str,
    size: Size,
    batch: int,
) -> CachedEngine | Miss:
    """Return the prepared engine that serves a node best, or why there is none."""
    wanted = _Wanted(bundle, api, gpu, precision, size, batch)
    engines, reasons = _find(cache, wanted)
    return engines[0] if engines else Miss(_none_fits(cache, wanted, reasons))


@dataclass(frozen=True)
class _Wanted:
    """What a node asks for."""

    bundle: ModelBundle
    api: TensorRt
    gpu: Gpu
    precision: str
    size: Size
    batch: int

    @property
    def command(self) -> str:
        """The command that builds it."""
        height, width = self.size
        words = [f'--bundle {how_to_name(self.bundle)} --size {height}x{width}']
        words.append(f'--batch 1:{self.batch}:{self.batch}')
        if self.precision != 'auto':
            words.append(f'--precision {COMMAND_NAMES[self.precision]}')
        if self.api.name != 'tensorrt':
            words.append(f'--runtime {self.api.name}')
        if self.gpu.index:
            words.append(f'--gpu-device {self.gpu.index}')
        return f'`mtl-perception engine build {" ".join(words)}`'


def _find(cache: EngineCache, wanted: _Wanted) -> tuple[list[CachedEngine], list[str]]:
    """Return the engines that fit, the best first, and why the others do not."""
    candidates, reasons = [], []
    for path, header in cache.entries():
        key = header['key']
        if key['bundle'] != wanted.bundle.name:
            continue
        reason = _why_not(key, wanted)
        if reason:
            reasons.append(f'{path.name} {reason}')
        else:
            rank = ('float32', 'int8', 'float16').index(header['notes']['precision'])
            candidates.append((rank, modified_at(path), key))
    engines = []
    for *_, key in sorted(candidates, key=lambda found: found[:2], reverse=True):
        found = cache.find(_key_of(key))
        if isinstance(found, CachedEngine):
            engines.append(found)
        else:
            reasons.append(found.reason)
    return engines, reasons


def _none_fits(cache: EngineCache, wanted: _Wanted, reasons: list[str]) -> str:
    if not reasons:
        why = f'is in {cache.folder}'
    else:
        why = f'fits ({"; ".join(reasons)})'
    return f'no TensorRT engine of {wanted.bundle.name} {why}: run {wanted.command}'


def _why_not(key: dict[str, Any], wanted: _Wanted) -> str:
    """Say why an engine does not serve, or return nothing."""
    api, gpu = wanted.api, wanted.gpu
    if key['model_sha256'] != wanted.bundle.model_sha256:
        return 'was built from another model.onnx'
    if (key['runtime'], key['runtime_version']) != (api.name, api.version):
        return (
            f'was built by {key["runtime"]} {key["runtime_version"]}, {api.name} {api.version} '
            'is here'
        )
    if dict(key['flags']).get('rewriting') != str(REWRITING):
        return 'was built by another version of this package'
    if wanted.precision not in ('auto', key['precision']):
        return f'is {key["precision"]}, {wanted.precision} was asked for'
    if list(wanted.size) not in key['sizes']:
        return f'is not for pictures of {wanted.size[0]}x{wanted.size[1]} (height x width)'
    if not wanted.batch <= key['batch'][2]:
        return f'is for batches of up to {key["batch"][2]}'
    capability = f'{gpu.capability[0]}.{gpu.capability[1]}'
    portable = key['device'].startswith(('compute capability ', 'the default '))
    named = key['device'].removeprefix('compute capability ').split(', ')
    fits = {
        'ampere+': gpu.capability >= AMPERE,
        # TensorRT-RTX's default list leaves Turing out.
        DEFAULT_TARGET: gpu.capability >= AMPERE,
    }.get(named[0], capability in named)
    if portable and not fits:
        return f'is for {key["device"]}, this GPU has {capability}'
    if not portable and key['device'] != str(gpu):
        return f'was built on {key["device"]}, this is {gpu}'
    return ''


def _key_of(parts: dict[str, Any]) -> EngineKey:
    """Return the key that a file's header was written from."""
    return EngineKey(
        **{
            **parts,
            'sizes': tuple(tuple(size) for size in parts['sizes']),
            'batch': tuple(parts['batch']),
            'flags': tuple(tuple(flag) for flag in parts['flags']),
        }
    )
