"""Find and open engines that were built ahead of time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..bundle import ModelBundle, how_to_name
from ._interface import EngineError, Size
from .cache import CachedEngine, EngineCache, EngineKey, Miss
from .cuda import AMPERE, Cuda, Gpu
from .guarded import GuardedEngine
from .kernels import KernelCache
from .tensorrt import TensorRtEngine
from .tensorrt_api import TensorRt, load_tensorrt

if TYPE_CHECKING:
    from . import Engine


def open_prepared(
    bundle: ModelBundle,
    open_cpu: Callable[[], Engine],
    *,
    precision: str = 'auto',
    size: Size | None = None,
    batch: int = 1,
    runtime: str = 'auto',
    device: int = 0,
    cache: EngineCache | None = None,
    cuda: Cuda | None = None,
    api: TensorRt | None = None,
) -> GuardedEngine:
    """Open a prepared TensorRT engine, guarded.

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
    found = find_prepared(
        cache or EngineCache(), bundle, api, gpu, precision=precision, size=size, batch=batch
    )
    if isinstance(found, Miss):
        raise EngineError(found.reason)

    def open_gpu() -> Engine:
        return TensorRtEngine(
            bundle,
            found.blob,
            api,
            cuda,
            gpu,
            precision=found.notes['precision'],
            kernel_cache=KernelCache(found.path, found.blob, gpu) if found.path else None,
        )

    return GuardedEngine(open_gpu, open_cpu)


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
    command = (
        f'`mtl-perception engine build --bundle {how_to_name(bundle)} '
        f'--size {size[0]}x{size[1]} --batch 1:{batch}:{batch}`'
    )
    reasons = []
    candidates = []
    for path, header in cache.entries():
        key = header['key']
        if key['bundle'] != bundle.name:
            continue
        reason = _why_not(key, bundle, api, gpu, precision, size, batch)
        if reason:
            reasons.append(f'{path.name} {reason}')
        else:
            rank = ('float32', 'int8', 'float16').index(header['notes']['precision'])
            candidates.append((rank, path.stat().st_mtime, path, header))
    for *_, header in sorted(candidates, key=lambda found: found[:2], reverse=True):
        found = cache.find(_key_of(header['key']))
        if isinstance(found, CachedEngine):
            return found
        reasons.append(found.reason)
    if not reasons:
        return Miss(f'no TensorRT engine of {bundle.name} is in {cache.folder}: run {command}')
    return Miss(f'no TensorRT engine of {bundle.name} fits ({"; ".join(reasons)}): run {command}')


def _why_not(
    key: dict[str, Any],
    bundle: ModelBundle,
    api: TensorRt,
    gpu: Gpu,
    precision: str,
    size: Size,
    batch: int,
) -> str:
    """Say why an engine does not serve, or return nothing."""
    if key['model_sha256'] != bundle.model_sha256:
        return 'was built from another model.onnx'
    if (key['runtime'], key['runtime_version']) != (api.name, api.version):
        return f'was built by {key["runtime"]} {key["runtime_version"]}, {api.version} is here'
    if precision not in ('auto', key['precision']):
        return f'is {key["precision"]}, {precision} was asked for'
    if list(size) not in key['sizes']:
        return f'is not for pictures of {size[0]}x{size[1]}'
    if not key['batch'][0] <= 1 <= batch <= key['batch'][2]:
        return f'is for batches of {key["batch"][0]} to {key["batch"][2]}'
    capability = f'{gpu.capability[0]}.{gpu.capability[1]}'
    portable = key['device'].startswith(('compute capability ', 'the default '))
    named = key['device'].removeprefix('compute capability ').split(', ')
    fits = {
        'ampere+': gpu.capability >= AMPERE,
        'the default compute capabilities': True,
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
