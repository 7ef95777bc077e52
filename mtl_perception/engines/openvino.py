"""OpenVINO on the CPU: the default without a GPU."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..bundle import ModelBundle
from ._interface import (
    EngineError,
    Plans,
    Shape,
    Size,
    check_outputs,
    image_shape,
    wanted_outputs,
)

_TYPES = {'float32': 'f32', 'bfloat16': 'bf16', 'float16': 'f16'}

_KEPT_GRAPHS = 2
"""Graphs of one shape beside the whole one, for outputs that were wanted together."""

_BACKGROUND_NICENESS = 10

_log = logging.getLogger(__name__)


@dataclass
class _Graph:
    """A compiled graph of fixed shape.

    `outputs` are views of the request's own tensors: nothing is copied after an inference.
    """

    request: Any
    outputs: dict[str, np.ndarray]


@dataclass
class _Plan:
    """All graphs of one shape; they read the same image.

    `smaller` are those that compute some of the outputs only, the least recently used one first;
    None where OpenVINO refused it.
    """

    shape: Shape
    image: np.ndarray
    whole: _Graph
    smaller: dict[frozenset[str], _Graph | None] = field(default_factory=dict)
    compiling: tuple[frozenset[str], Future[_Graph]] | None = None


class OpenVinoEngine:
    """A bundle's graph, compiled by OpenVINO for latency on the CPU (interface: `Engine`).

    What nobody wants is not computed: where some of the outputs are asked for, the part of the
    graph that they need is compiled in the background and takes over when it is ready. Its results
    are the same.
    """

    name = 'openvino'
    remark = ''

    def __init__(self, bundle: ModelBundle, *, precision: str = 'auto', threads: int = 0) -> None:
        """Choose the precision; graphs are compiled when a shape is first asked for.

        Args:
            bundle: the verified bundle.
            precision: 'float32', 'bfloat16', 'float16', or 'auto': bfloat16 where the CPU
                computes it natively (AVX512-BF16, AMX), else float32.
            threads: OpenVINO's threads; 0 leaves it to OpenVINO.

        Raises:
            EngineError: OpenVINO is not installed, or the CPU lacks the precision.
        """
        try:
            import openvino
        except ImportError as error:
            raise EngineError(
                f"OpenVINO can't be imported ({error}): install requirements/runtime.txt "
                'or set engine to onnxruntime'
            ) from error
        self._openvino = openvino
        self._core = openvino.Core()
        self._bundle = bundle
        self._threads = threads
        self.device = self._core.get_property('CPU', 'FULL_DEVICE_NAME').strip()
        self.precision = self._choose_precision(precision)
        self._plans: Plans[_Plan] = Plans(bundle, self._prepare)
        self._background = ThreadPoolExecutor(1, 'openvino', initializer=_yield_to_others)
        self._lock = threading.Lock()

    def input_buffer(self, batch: int, size: Size) -> np.ndarray:
        """Return the kept input for a shape; compiles the graph the first time."""
        with self._lock:
            return self._plans.get((batch, *size)).image

    def expect(self, batch: int, size: Size, outputs: Collection[str]) -> None:
        """Have the part of the graph compiled that these outputs need."""
        # Who infers or prepares at this moment will say what it wants itself.
        if not self._lock.acquire(blocking=False):
            return
        try:
            plan = self._plans.get((batch, *size))
            self._graph_for(plan, frozenset(wanted_outputs(plan.whole.outputs, outputs)))
        finally:
            self._lock.release()

    def infer(
        self, image: np.ndarray, outputs: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run the graph; see `Engine.infer`."""
        with self._lock:
            plan = self._plans.get(image_shape(image))
            wanted = wanted_outputs(plan.whole.outputs, outputs)
            graph = self._graph_for(plan, frozenset(wanted))
        if image is not plan.image:
            np.copyto(plan.image, image)
        try:
            graph.request.infer()
        except RuntimeError as error:
            raise EngineError(f'OpenVINO failed on {self._bundle.name}: {error}') from error
        return {name: graph.outputs[name] for name in wanted}

    def close(self) -> None:
        """Free the compiled graphs."""
        self._background.shutdown()
        self._plans.clear()

    def _graph_for(self, plan: _Plan, wanted: frozenset[str]) -> _Graph:
        """Return the smallest graph at hand; have a smaller one compiled where there could be."""
        if plan.compiling is not None and plan.compiling[1].done():
            done, plan.compiling = plan.compiling, None
            self._adopt(plan, *done)
        if not wanted or len(wanted) == len(plan.whole.outputs):
            return plan.whole
        if wanted in plan.smaller:
            graph = plan.smaller[wanted] = plan.smaller.pop(wanted)
            return graph or plan.whole
        if plan.compiling is None:
            compiled = self._background.submit(self._compile, plan.shape, plan.image, wanted)
            plan.compiling = wanted, compiled
        return plan.whole

    def _adopt(self, plan: _Plan, wanted: frozenset[str], compiled: Future[_Graph]) -> None:
        """Take over what was compiled in the background; drop what was not used for longest."""
        try:
            plan.smaller[wanted] = compiled.result()
        except Exception as error:  # whatever it is, the whole graph is there
            _log.info('all outputs are computed: %s', error)
            plan.smaller[wanted] = None
        while len(plan.smaller) > _KEPT_GRAPHS:
            plan.smaller.pop(next(iter(plan.smaller)))

    def _choose_precision(self, precision: str) -> str:
        capabilities = self._core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
        if precision == 'auto':
            # OpenVINO's own default is bf16 only where the CPU has instructions for it; the
            # capability alone is also listed where it would be emulated.
            default = self._core.get_property('CPU', 'INFERENCE_PRECISION_HINT')
            native = default == self._openvino.Type.bf16 and 'BF16' in capabilities
            return 'bfloat16' if native else 'float32'
        needed = {'bfloat16': 'BF16', 'float16': 'FP16', 'float32': 'FP32'}.get(precision)
        if needed is None:
            raise EngineError(
                f'OpenVINO does not run bundles in {precision}: set precision to auto, or engine '
                'to tensorrt'
            )
        if needed not in capabilities:
            raise EngineError(
                f'{self.device} does not compute {precision} in OpenVINO '
                f'(it has {", ".join(capabilities)}): set precision to auto or float32'
            )
        return precision

    def _prepare(self, shape: Shape) -> _Plan:
        image = np.zeros((*shape, 3), np.uint8)
        whole = self._compile(shape, image, frozenset(self._bundle.outputs))
        check_outputs(self._bundle, shape, whole.outputs)
        return _Plan(shape, image, whole)

    def _compile(self, shape: Shape, image: np.ndarray, wanted: frozenset[str]) -> _Graph:
        """Compile the part of the graph that some outputs need."""
        config: dict[str, object] = {
            'PERFORMANCE_HINT': 'LATENCY',
            'NUM_STREAMS': 1,
            'INFERENCE_PRECISION_HINT': _TYPES[self.precision],
        }
        if self._threads:
            config['INFERENCE_NUM_THREADS'] = self._threads
        try:
            model = self._core.read_model(self._bundle.model_path)
            model.reshape({'image': [*shape, 3]})
            for result in model.get_results():
                if result.input_value(0).names.isdisjoint(wanted):
                    model.remove_result(result)
            compiled = self._core.compile_model(model, 'CPU', config)
            request = compiled.create_infer_request()
            request.set_tensor('image', self._openvino.Tensor(image, shared_memory=True))
            # The first inference takes several times as long as the others.
            request.infer()
            names = [name for name in self._bundle.outputs if name in wanted]
            outputs = {name: request.get_tensor(name).data for name in names}
        except RuntimeError as error:
            raise EngineError(
                f'OpenVINO refuses the graph of {self._bundle.name} at {shape}: {error}'
            ) from error
        return _Graph(request, outputs)


def _yield_to_others() -> None:
    """Let this thread have what inference and the rest of the robot leave of the processor."""
    if sys.platform == 'linux':  # elsewhere, niceness belongs to whole processes
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICENESS)
