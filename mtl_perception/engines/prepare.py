"""Build an engine ahead of time: rewrite, gate, build, keep."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx

from ..bundle import ModelBundle
from ._interface import EngineError, check_size
from .builder import BuildOptions, build_engine
from .cache import (
    DEFAULT_TARGET,
    REWRITING,
    CachedEngine,
    EngineCache,
    EngineKey,
    read_file,
    write_file,
)
from .cuda import AMPERE, Cuda, Gpu, GpuUnavailableError, NoSuchGpuError
from .gate import (
    GateReport,
    Limits,
    Rewritten,
    compare,
    onnx_runner,
    reference_runner,
    rewrite_to_half,
)
from .precision import load_graph
from .tensorrt import TensorRtEngine
from .tensorrt_api import TensorRt

_log = logging.getLogger(__name__)

SAFER = {'int8': 'float16', 'float16': 'float32'}
"""The precision to try when one does not pass the gate."""

_SMALL = (96, 128)

Progress = Callable[[str, int, int], bool]


@dataclass(frozen=True)
class Prepared:
    """A built engine.

    Attributes:
        path: its file; None where the cache can't be written.
        origin: in a sentence, whether it was found or why it was built.
        notes: achieved precision, gate's reports, remarks, sizes in bytes, durations in seconds.
    """

    path: Path | None
    origin: str
    notes: dict[str, Any]


def prepare_engine(
    bundle: ModelBundle,
    api: TensorRt,
    options: BuildOptions,
    precision: str,
    pictures: Sequence[np.ndarray],
    *,
    cache: EngineCache | None = None,
    gpu: Gpu | None = None,
    cuda: Cuda | None = None,
    limits: Limits | None = None,
    build_only: bool = False,
    report: Progress = lambda phase, step, steps: True,
) -> Prepared:
    """Return a cached engine or build one that passes the gate.

    Args:
        bundle: the verified bundle.
        api: the TensorRT to build with.
        options: sizes, batch, targets.
        precision: 'float32', 'float16' or 'int8'; one that fails the gate gives way to a safer.
        pictures: uint8 [H, W, 3] of the first size, for the gate and for calibration; float32
            needs none, but is judged on the GPU only with them.
        cache: where engines are kept.
        gpu: the GPU to build on and to run the gate on; None to build without one.
        cuda: the driver, with `gpu`.
        limits: of the gate.
        build_only: do not load the engine; the gate runs on the CPU alone. Engines for GPUs other
            than the one at hand are never loaded.
        report: gets the builder's progress.

    Raises:
        EngineError: the options or the graph don't suit the runtime, or the engine that it built
            gives wrong results even in float32.
    """
    if gpu is None and not api.builds_without_gpu:
        raise EngineError(
            'TensorRT builds on the GPU that it builds for, and there is none: build on the '
            'robot, or use --runtime tensorrt_rtx'
        )
    if precision != 'float32' and not pictures:
        raise EngineError(
            f'{precision} must pass the gate on real frames and there are none: '
            'give --frames BAG_OR_FOLDER'
        )
    for size in options.sizes:
        check_size(bundle, size)
    cache = cache or EngineCache()
    on_gpu = gpu is not None and bool(pictures) and not build_only and serves(options, gpu)
    # All else that decides what is built, and how far it was proved.
    flags = {
        'rewriting': str(REWRITING),
        'frames': _short_hash(*pictures),
        'limits': str(limits or Limits()),
        'gated_on_gpu': str(on_gpu),
    }
    key = EngineKey(
        bundle=bundle.name,
        model_sha256=bundle.model_sha256,
        runtime=api.name,
        runtime_version=api.version,
        device=target_of(options, gpu),
        precision=precision,
        sizes=options.sizes,
        batch=options.batch,
        flags=tuple(sorted((options.flags() | flags).items())),
    )
    timing_path = cache.folder / f'{api.name}-{api.version}-{_short_hash(str(gpu))}.timing'

    def make() -> CachedEngine:
        started = time.perf_counter()
        attempt = precision
        reports: list[GateReport] = []
        remarks: list[str] = []
        while True:
            rewritten = rewrite(bundle, attempt, pictures, limits)
            reports += rewritten.reports
            remarks += rewritten.remarks
            build_started = time.perf_counter()
            blob, timed = build_engine(
                api,
                rewritten.model,
                options,
                on_gpu=gpu is not None,
                report=report,
                timing_cache=_read_or_nothing(timing_path),
            )
            build_s = time.perf_counter() - build_started
            _write_quietly(timing_path, timed)
            if not on_gpu:
                break
            assert gpu is not None and cuda is not None
            verdict = _gate_on_gpu(bundle, blob, api, cuda, gpu, rewritten, pictures, limits)
            reports.append(verdict)
            if verdict.passed:
                break
            if rewritten.precision not in SAFER:
                raise EngineError(
                    f'{api.name} {api.version} computes {bundle.name} wrongly on {gpu} even in '
                    f'float32 ({verdict.failure}): set engine to openvino, and report it with the '
                    'report of `make gpu-check`'
                )
            attempt = SAFER[rewritten.precision]
            remarks.append(f'{rewritten.precision} did not pass on the GPU: {attempt} is built')
        return CachedEngine(
            blob,
            {
                'precision': rewritten.precision,
                'asked_for': precision,
                'gate': [entry.as_dict() for entry in reports],
                'gated_on_gpu': on_gpu,
                'remarks': remarks,
                'engine_bytes': len(blob),
                'build_s': round(build_s, 2),
                'total_s': round(time.perf_counter() - started, 2),
            },
        )

    engine, path, origin = cache.build(key, make)
    return Prepared(path, origin, engine.notes)


def rewrite(
    bundle: ModelBundle,
    precision: str,
    pictures: Sequence[np.ndarray],
    limits: Limits | None = None,
) -> Rewritten:
    """Return a bundle's graph in a precision that passes the gate on the CPU, or a safer one."""
    model = load_graph(str(bundle.model_path))
    if precision == 'float32':
        return Rewritten(model, 'float32')
    classes = len(bundle.classes)
    earlier: list[GateReport] = []
    remarks: list[str] = []
    if precision == 'int8':
        from .quantization import quantize_within_gate

        quantized = quantize_within_gate(model, pictures, num_classes=classes, limits=limits)
        if quantized.precision == 'int8':
            return quantized
        earlier += quantized.reports
        remarks += quantized.remarks
    half = rewrite_to_half(model, pictures, num_classes=classes, limits=limits)
    reports = [*earlier, *half.reports]
    remarks += half.remarks
    if half.precision == 'float16' and bundle.manifest.input.resizable:
        reports.append(_compare_in_reference(model, half.model, pictures, classes, limits))
        if not reports[-1].passed:
            remarks.append('onnx.reference did not pass: the whole graph stays float32')
            return Rewritten(model, 'float32', tuple(reports), tuple(remarks))
    return Rewritten(half.model, half.precision, tuple(reports), tuple(remarks))


def _compare_in_reference(
    model: onnx.ModelProto,
    half: onnx.ModelProto,
    pictures: Sequence[np.ndarray],
    num_classes: int,
    limits: Limits | None,
) -> GateReport:
    """Compare on one small picture with numpy's own half arithmetic, operator by operator.

    A second opinion, independent of ONNX Runtime and of the roundings put into the graph; numpy
    is slow, hence small.
    """
    small = cv2.resize(pictures[0], _SMALL[::-1], interpolation=cv2.INTER_AREA)
    return compare(
        onnx_runner(model),
        reference_runner(half),
        [small],
        precision='float16',
        method=f'onnx.reference at {_SMALL[0]}x{_SMALL[1]}',
        num_classes=num_classes,
        limits=limits,
    )


def target_of(options: BuildOptions, gpu: Gpu | None) -> str:
    """Return the words for what an engine is built for."""
    if options.capabilities:
        return f'compute capability {", ".join(options.capabilities)}'
    return str(gpu) if gpu else DEFAULT_TARGET


def serves(options: BuildOptions, gpu: Gpu) -> bool:
    """Tell whether an engine of these options runs on a GPU."""
    if not options.capabilities:
        return True
    if options.capabilities == ('ampere+',):
        return gpu.capability >= AMPERE
    return f'{gpu.capability[0]}.{gpu.capability[1]}' in options.capabilities


def usable_gpu(device: int = 0) -> tuple[Cuda, Gpu] | str:
    """Return the driver and a GPU, or why there is none.

    Raises:
        NoSuchGpuError: there are GPUs, but none of this number.
    """
    try:
        cuda = Cuda()
        return cuda, cuda.find_gpu(device)
    except NoSuchGpuError:
        raise
    except GpuUnavailableError as error:
        return str(error)


def _gate_on_gpu(
    bundle: ModelBundle,
    blob: bytes,
    api: TensorRt,
    cuda: Cuda,
    gpu: Gpu,
    rewritten: Rewritten,
    pictures: Sequence[np.ndarray],
    limits: Limits | None,
) -> GateReport:
    """Compare the built engine with the bundle's graph in float32 on the CPU."""
    engine = TensorRtEngine(bundle, blob, api, cuda, gpu, precision=rewritten.precision)
    try:
        return compare(
            onnx_runner(onnx.load(bundle.model_path)),
            engine.infer,
            pictures,
            precision=rewritten.precision,
            method=f'the built engine on {gpu}',
            num_classes=len(bundle.classes),
            limits=limits,
        )
    finally:
        engine.close()


def _short_hash(*parts: str | np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part))
    return digest.hexdigest()[:16]


def _read_or_nothing(path: Path) -> bytes:
    try:
        return read_file(path)[1]
    except (OSError, ValueError):
        return b''


def _write_quietly(path: Path, content: bytes) -> None:
    """Keep the timing cache; without one the next build only takes longer."""
    if not content:
        return
    try:
        write_file(path, {}, {}, content)
    except OSError as error:
        _log.debug('the timing cache is not kept: %s', error)
