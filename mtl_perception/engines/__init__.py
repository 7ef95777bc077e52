"""Inference runtimes behind one small interface; `open_engine` chooses among them."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Protocol

import numpy as np

from ..bundle import ModelBundle
from ._interface import EngineError, Size

__all__ = [
    'ENGINES',
    'PRECISIONS',
    'Engine',
    'EngineError',
    'Size',
    'check_unchanged',
    'identify',
    'open_engine',
]

ENGINES = ('auto', 'openvino', 'onnxruntime', 'tensorrt', 'tensorrt_rtx')
PRECISIONS = ('auto', 'float32', 'bfloat16', 'float16', 'int8')

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """A bundle's graph on one runtime and device.

    Attributes:
        name: 'openvino', 'onnxruntime', 'tensorrt' or 'tensorrt_rtx'.
        device: what it runs on, in words.
        precision: 'float32', 'bfloat16', 'float16' or 'int8'.
        remark: what went wrong and was survived, in a sentence for diagnostics; empty as a rule.
    """

    name: str
    device: str
    precision: str
    remark: str

    def input_buffer(self, batch: int, size: Size) -> np.ndarray:
        """Return the kept uint8 [batch, H, W, 3] input; `infer` on it saves a copy.

        Prepares the runtime for this shape, which may take seconds the first time.
        """
        ...

    def infer(
        self, image: np.ndarray, outputs: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run the graph.

        Args:
            image: uint8 [N, H, W, 3] RGB.
            outputs: names of the outputs that are wanted; all of the graph's when None.

        Returns:
            label uint8 [N, H, W], confidence uint8 [N, H, W], depth float32 [N, H, W] metres,
            normal float32 [N, H, W, 3], boxes float32 [N, K, 4] pixels of the network's picture,
            box_scores float32 [N, K], box_labels int32 [N, K] (-1: empty slot) and class_scores
            float32 [N, C], as far as wanted and present. The arrays may be written to and are
            valid until the next call.

        Raises:
            EngineError: a wrong image or output name, or the runtime failed.
        """
        ...

    def expect(self, batch: int, size: Size, outputs: Collection[str]) -> None:
        """Say what will be asked for, so that the runtime can prepare for it meanwhile.

        May be called from any thread, and returns at once where the shape is prepared.
        """
        ...

    def close(self) -> None:
        """Free the runtime's memory; the engine can't be used afterwards."""
        ...


def open_engine(
    bundle: ModelBundle,
    engine: str = 'auto',
    *,
    precision: str = 'auto',
    threads: int = 0,
    size: Size | None = None,
    batch: int = 1,
    gpu_device: int = 0,
) -> Engine:
    """Open a bundle's graph on the best runtime at hand, or on the one asked for.

    Args:
        bundle: the verified bundle.
        engine: one of ENGINES. 'auto' takes TensorRT where a GPU works, else OpenVINO, else ONNX
            Runtime, and logs in one line why TensorRT was not taken. 'tensorrt' takes TensorRT
            or TensorRT-RTX, whichever is installed; 'tensorrt_rtx' only the latter.
        precision: one of PRECISIONS. 'auto' is what the runtime does best with no loss that
            counts: bfloat16 on CPUs that compute it natively, float16 on GPUs, else float32.
        threads: of a CPU engine; 0 leaves it to the runtime.
        size: (height, width) to prepare for; the bundle's own when None.
        batch: pictures per call to prepare for. Other sizes and batches are prepared when they
            first arrive.
        gpu_device: number of the GPU, as CUDA counts those in CUDA_VISIBLE_DEVICES.

    Raises:
        EngineError: unknown name or precision, a runtime that is missing or refuses the graph, or
            a size that the bundle does not allow.
    """
    if engine not in ENGINES:
        raise EngineError(f'engine {engine!r} is unknown: expected one of {", ".join(ENGINES)}')
    if precision not in PRECISIONS:
        raise EngineError(
            f'precision {precision!r} is unknown: expected one of {", ".join(PRECISIONS)}'
        )
    if threads < 0 or batch < 1 or gpu_device < 0:
        raise EngineError(
            f'threads={threads}, batch={batch} and gpu_device={gpu_device}: expected threads >= 0 '
            '(0 = automatic), batch >= 1 and gpu_device >= 0'
        )
    size = size or bundle.input_size

    def open_cpu(name: str, precision: str) -> Engine:
        return _open_cpu(name, bundle, precision, threads, size, batch)

    if engine in ('auto', 'tensorrt', 'tensorrt_rtx'):
        from .prepared import open_prepared

        try:
            opened: Engine = open_prepared(
                bundle,
                # What is to be comparable between machines stays so.
                lambda: open_cpu(_choose(), 'float32' if precision == 'float32' else 'auto'),
                precision=precision,
                size=size,
                batch=batch,
                runtime='tensorrt_rtx' if engine == 'tensorrt_rtx' else 'auto',
                device=gpu_device,
                follow_sizes=engine == 'auto',
            )
        except EngineError as error:
            if engine != 'auto':
                raise EngineError(f'TensorRT was asked for, but {error}') from error
            _log.info('TensorRT is not taken: %s', error)
            opened = open_cpu(_choose(), precision)
    else:
        opened = open_cpu(engine, precision)
    _log.info('%s runs on %s (%s, %s)', bundle.name, opened.name, opened.device, opened.precision)
    return opened


def identify(engine: Engine) -> dict[str, str]:
    """Return which runtime computes, on what and in which precision, as results state it."""
    return {'name': engine.name, 'device': engine.device, 'precision': engine.precision}


def check_unchanged(engine: Engine, began_on: dict[str, str]) -> None:
    """Refuse figures of two engines.

    Args:
        engine: that was measured.
        began_on: what `identify` said of it before.

    Raises:
        EngineError: another runtime has taken over since then.
    """
    if identify(engine) != began_on:
        raise EngineError(
            f'the engine changed while it was measured, so that the figures would be of two '
            f'({engine.remark}): measure again, with --engine openvino where the GPU fails'
        )


def _open_cpu(
    name: str, bundle: ModelBundle, precision: str, threads: int, size: Size, batch: int
) -> Engine:
    """Open one of the CPU's runtimes, ready for a shape."""
    if name == 'openvino':
        from .openvino import OpenVinoEngine

        opened: Engine = OpenVinoEngine(bundle, precision=precision, threads=threads)
    else:
        from .onnxruntime import OnnxRuntimeEngine

        opened = OnnxRuntimeEngine(bundle, precision=precision, threads=threads)
    opened.input_buffer(batch, size)
    return opened


def _choose() -> str:
    """Return the best runtime that is installed."""
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        _log.info('OpenVINO is not taken (%s); ONNX Runtime runs instead', error)
        return 'onnxruntime'
    return 'openvino'
