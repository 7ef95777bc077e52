"""ONNX Runtime on the CPU: the fallback where OpenVINO is absent."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from ..bundle import ModelBundle
from ._interface import (
    EngineError,
    Plans,
    Shape,
    Size,
    image_shape,
    output_form,
    wanted_outputs,
)


@dataclass
class _Plan:
    """Kept arrays of one shape that the session reads and writes in place."""

    image: np.ndarray
    outputs: dict[str, np.ndarray]
    bindings: dict[frozenset[str], object]


class OnnxRuntimeEngine:
    """A bundle's graph in ONNX Runtime on the CPU, float32 (interface: `Engine`)."""

    name = 'onnxruntime'
    precision = 'float32'
    remark = ''

    def __init__(self, bundle: ModelBundle, *, precision: str = 'auto', threads: int = 0) -> None:
        """Open the session.

        Args:
            bundle: the verified bundle.
            precision: 'float32' or 'auto', which is the same here.
            threads: within an operator; 0 leaves it to ONNX Runtime.

        Raises:
            EngineError: ONNX Runtime is not installed, refuses the graph or the precision.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError(
                f"ONNX Runtime can't be imported ({error}): install requirements/runtime.txt"
            ) from error
        if precision not in ('auto', 'float32'):
            raise EngineError(
                f'ONNX Runtime computes float32 on CPUs, {precision} was asked for: '
                'set precision to float32 or engine to openvino'
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # A spinning pool would take the cores from the camera and the rest of the robot.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        self._bundle = bundle
        # Heads that nobody asked for are not computed.
        self._run_options = onnxruntime.RunOptions()
        self._run_options.only_execute_path_to_fetches = True
        try:
            self._session = onnxruntime.InferenceSession(
                str(bundle.model_path), options, providers=['CPUExecutionProvider']
            )
        except Exception as error:  # its exceptions share no base class
            raise EngineError(f'ONNX Runtime refuses {bundle.model_path}: {error}') from error
        self.device = 'CPU'
        self._plans: Plans[_Plan] = Plans(bundle, self._prepare)

    def input_buffer(self, batch: int, size: Size) -> np.ndarray:
        """Return the kept input for a shape."""
        return self._plans.get((batch, *size)).image

    def infer(
        self, image: np.ndarray, outputs: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run the graph; see `Engine.infer`."""
        plan = self._plans.get(image_shape(image))
        wanted = frozenset(wanted_outputs(plan.outputs, outputs))
        if image is not plan.image:
            np.copyto(plan.image, image)
        binding = plan.bindings.get(wanted)
        if binding is None:
            binding = plan.bindings[wanted] = self._bind(plan, wanted)
        try:
            self._session.run_with_iobinding(binding, self._run_options)
        except Exception as error:  # its exceptions share no base class
            raise EngineError(f'ONNX Runtime failed on {self._bundle.name}: {error}') from error
        return {name: plan.outputs[name] for name in plan.outputs if name in wanted}

    def expect(self, batch: int, size: Size, outputs: Collection[str]) -> None:
        """Prepare nothing: every choice of outputs is ready."""

    def close(self) -> None:
        """Free the session."""
        self._plans.clear()
        self._session = None

    def _prepare(self, shape: Shape) -> _Plan:
        outputs = {
            name: np.zeros(*output_form(self._bundle, name, shape))
            for name in self._bundle.outputs
        }
        return _Plan(np.zeros((*shape, 3), np.uint8), outputs, {})

    def _bind(self, plan: _Plan, wanted: frozenset[str]) -> object:
        binding = self._session.io_binding()
        image = plan.image
        binding.bind_input('image', 'cpu', 0, np.uint8, image.shape, image.ctypes.data)
        # The graph runs for at least one output, also where nobody wants any.
        for name in wanted or list(plan.outputs)[:1]:
            array = plan.outputs[name]
            binding.bind_output(name, 'cpu', 0, array.dtype.type, array.shape, array.ctypes.data)
        return binding
