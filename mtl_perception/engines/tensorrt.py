"""TensorRT on an NVIDIA GPU: runs engines that `mtl-perception engine build` has built."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from ..bundle import ModelBundle, how_to_name
from ._interface import (
    EngineError,
    Plans,
    Shape,
    Size,
    UnpreparedSizeError,
    check_outputs,
    image_shape,
    wanted_outputs,
)
from .cuda import OUT_OF_MEMORY, Cuda, CudaError, DeviceMemory, Gpu, PinnedArray, out_of_memory
from .kernels import KernelCache
from .tensorrt_api import Contexts, TensorRt, make_logger

_PICTURE = 'image'
_ENQUEUE_FAILED = 'ENQUEUE_FAILED'

_CONTEXT_SURVIVES = (OUT_OF_MEMORY, _ENQUEUE_FAILED)
"""Codes of errors after which CUDA's context need not be reset, which others may use."""

_log = logging.getLogger(__name__)


class TensorRtEngine:
    """A built engine on one GPU (interface: `Engine`).

    Each shape has its own execution context, pinned host arrays, device memory and CUDA graph,
    all made once: a frame costs two copies and one launch. Only wanted outputs are copied back.
    """

    remark = ''

    def __init__(
        self,
        bundle: ModelBundle,
        blob: bytes,
        api: TensorRt,
        cuda: Cuda,
        gpu: Gpu,
        *,
        precision: str,
        cuda_graph: bool = True,
        kernel_cache: KernelCache | None = None,
    ) -> None:
        """Load a serialized engine.

        Args:
            bundle: what the engine was built from.
            blob: the serialized engine.
            api: the TensorRT it was built with.
            cuda: the driver.
            gpu: where to run.
            precision: what the engine computes in.
            cuda_graph: capture the inference as a CUDA graph; where that fails, kernels are
                launched one by one.
            kernel_cache: where TensorRT-RTX's kernels are kept from start to start.

        Raises:
            EngineError: the engine belongs to another TensorRT or GPU, or to another graph.
            CudaError: the GPU failed; OutOfMemoryError with how much was needed.
        """
        self.name = api.name
        self.device = str(gpu)
        self.precision = precision
        self._bundle = bundle
        self._trt = api.module
        self._cuda = cuda
        self._cuda_graph = cuda_graph
        self._kernel_cache = kernel_cache
        self._failed = False
        self._gpu_handle = cuda.call('cuDeviceGet', gpu.index)
        self._primary = cuda.call('cuDevicePrimaryCtxRetain', self._gpu_handle)
        self._stream: Any = None
        self._engine: Any = None
        self._contexts: Contexts | None = None
        self._plans: Plans[_Plan] = Plans(bundle, self._prepare, drop=_Plan.free)
        try:
            cuda.call('cuCtxSetCurrent', self._primary)
            flags = cuda.driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            self._stream = cuda.call('cuStreamCreate', flags)
            self._logger = make_logger(api)
            self._runtime = self._trt.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(blob)
            if self._engine is None:
                raise EngineError(
                    f'{api.name} {api.version} does not load the engine on {gpu} '
                    f'({self._logger.last_error}): build it again with '
                    f'`mtl-perception engine build --bundle {how_to_name(bundle)}`'
                )
            self._check_outputs()
            self._contexts = self._open_contexts(api)
        except BaseException:
            self.close()
            raise

    def input_buffer(self, batch: int, size: Size) -> np.ndarray:
        """Return the kept, pinned input for a shape; prepares the GPU the first time."""
        with self._noting_failure():
            self._cuda.call('cuCtxSetCurrent', self._primary)
            return self._plans.get((batch, *size)).image.array

    def infer(
        self, image: np.ndarray, outputs: Collection[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run the engine; see `Engine.infer`.

        Raises:
            CudaError: the GPU failed; this engine can't be used any more.
        """
        with self._noting_failure():
            # Threads have contexts of their own; the worker need not be the one that opened.
            self._cuda.call('cuCtxSetCurrent', self._primary)
            plan = self._plans.get(image_shape(image))
            wanted = wanted_outputs(plan.outputs, outputs)
            if image is not plan.image.array:
                np.copyto(plan.image.array, image)
            plan.launch()
            for name in wanted:
                plan.fetch(name)
            self._cuda.call('cuStreamSynchronize', self._stream)
        return {name: plan.outputs[name].array for name in wanted}

    def expect(self, batch: int, size: Size, outputs: Collection[str]) -> None:
        """Prepare nothing: every choice of outputs is ready."""

    def close(self) -> None:
        """Free everything on the GPU, as far as it still answers.

        After a CUDA error, the process' context on this GPU is reset: no call would succeed in it
        any more.
        """
        with suppress(CudaError):
            self._cuda.call('cuCtxSetCurrent', self._primary)
        self._plans.clear()
        self._contexts = None
        self._engine = None
        if self._stream is not None:
            with suppress(CudaError):
                self._cuda.call('cuStreamDestroy', self._stream)
            self._stream = None
        if self._primary is not None:
            # A release may return the error of an earlier call, and must not prevent the reset.
            with suppress(CudaError):
                self._cuda.call('cuDevicePrimaryCtxRelease', self._gpu_handle)
            if self._failed:
                with suppress(CudaError):
                    self._cuda.call('cuDevicePrimaryCtxReset', self._gpu_handle)
            self._primary = None

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """Remember that the context is lost where CUDA itself failed."""
        try:
            yield
        except CudaError as error:
            self._failed |= error.code not in _CONTEXT_SURVIVES
            raise

    def _open_contexts(self, api: TensorRt) -> Contexts:
        """Prepare to make contexts, with the kernels of an earlier start."""
        kept = self._kernel_cache
        if kept is None or not api.compiles_when_opened:
            return Contexts(api, self._engine)
        contexts = Contexts(api, self._engine, kept.load())
        if contexts.refused:
            kept.discard(f'{api.name} {api.version} does not take them')
        return contexts

    def _check_outputs(self) -> None:
        """Refuse engines whose tensors are not the bundle's."""
        engine = self._engine
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        expected = {_PICTURE, *self._bundle.outputs}
        if names != expected:
            raise EngineError(
                f'the engine has the tensors {sorted(names)}, the bundle {self._bundle.name} '
                f'{sorted(expected)}: build it again'
            )

    def _profile(self, shape: Shape) -> int:
        """Return the optimisation profile that covers a shape."""
        engine = self._engine
        built = []
        for index in range(engine.num_optimization_profiles):
            least, _, most = engine.get_tensor_profile_shape(_PICTURE, index)
            wanted = (*shape, 3)
            if all(a <= n <= b for a, n, b in zip(least, wanted, most, strict=True)):
                return index
            built.append(f'{least[1]}x{least[2]} in batches of {least[0]}..{most[0]}')
        raise UnpreparedSizeError(
            f'the engine was built for {", ".join(built)}; {shape[1]}x{shape[2]} in a batch of '
            f'{shape[0]} was asked for: build it with --size {shape[1]}x{shape[2]} '
            f'--batch 1:1:{shape[0]}'
        )

    def _prepare(self, shape: Shape) -> _Plan:
        profile = self._profile(shape)
        assert self._contexts is not None
        context = self._contexts.make()
        if context is None:
            needed = self._engine.device_memory_size_v2
            free, _ = self._cuda.call('cuMemGetInfo')
            if needed <= free:
                raise EngineError(
                    f'TensorRT makes no execution context ({self._logger.last_error}): build the '
                    'engine again'
                )
            error = CudaError(self._logger.last_error, OUT_OF_MEMORY)
            raise out_of_memory(self._cuda, needed, error)
        plan = _Plan(self._trt, self._cuda, self._stream, context, shape)
        try:
            plan.allocate(self._engine, profile, self._bundle.outputs)
            arrays = {name: pinned.array for name, pinned in plan.outputs.items()}
            check_outputs(self._bundle, shape, arrays)
            plan.launch()
            self._cuda.call('cuStreamSynchronize', self._stream)
            if self._cuda_graph:
                plan.capture()
        except BaseException:
            plan.free()
            raise
        if self._kernel_cache is not None:
            self._kernel_cache.keep(self._contexts.kernels())
        return plan


class _Plan:
    """One shape's context, buffers and CUDA graph."""

    def __init__(self, trt: Any, cuda: Cuda, stream: Any, context: Any, shape: Shape) -> None:
        self._trt = trt
        self._cuda = cuda
        self._stream = stream
        self._context = context
        self._shape = shape
        self._device: dict[str, DeviceMemory] = {}
        self._graph: Any = None
        self.outputs: dict[str, PinnedArray] = {}
        self.image: PinnedArray

    def allocate(self, engine: Any, profile: int, outputs: Collection[str]) -> None:
        """Choose the profile, make the buffers, tell the context their addresses."""
        trt, context = self._trt, self._context
        if not context.set_optimization_profile_async(profile, int(self._stream)):
            raise EngineError(f'TensorRT refuses optimisation profile {profile}: build again')
        if not context.set_input_shape(_PICTURE, (*self._shape, 3)):
            raise EngineError(f'TensorRT refuses pictures of {self._shape}: build again')
        self.image = PinnedArray(self._cuda, (*self._shape, 3), np.uint8)
        self._address(_PICTURE, self.image)
        for name in outputs:
            shape = tuple(context.get_tensor_shape(name))
            dtype = trt.nptype(engine.get_tensor_dtype(name))
            array = self.outputs[name] = PinnedArray(self._cuda, shape, dtype)
            self._address(name, array)

    def launch(self) -> None:
        """Copy the picture to the GPU and start the inference; does not wait."""
        if self._graph is not None:
            self._cuda.call('cuGraphLaunch', self._graph, self._stream)
            return
        try:
            self._enqueue()
        except CudaError as error:
            if error.code == _ENQUEUE_FAILED:
                self._cuda.call('cuStreamSynchronize', self._stream)  # has CUDA's own reason
            raise

    def fetch(self, name: str) -> None:
        """Start copying an output back; does not wait."""
        array, memory = self.outputs[name], self._device[name]
        self._cuda.call(
            'cuMemcpyDtoHAsync', array.address, memory.address, array.nbytes, self._stream
        )

    def capture(self) -> None:
        """Record the copy and the inference as a CUDA graph, or go on without one."""
        driver = self._cuda.driver
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        graph = None
        try:
            self._cuda.call('cuStreamBeginCapture', self._stream, mode)
            try:
                self._enqueue()
            finally:
                graph = self._cuda.call('cuStreamEndCapture', self._stream)
            self._graph = self._cuda.call('cuGraphInstantiate', graph, 0)
        except EngineError as error:
            _log.info('no CUDA graph for %s (%s): kernels are launched singly', self._shape, error)
        finally:
            if graph is not None and int(graph):
                self._cuda.call('cuGraphDestroy', graph)

    def free(self) -> None:
        """Give everything back, as far as the GPU still answers."""
        if self._graph is not None:
            with suppress(CudaError):
                self._cuda.call('cuGraphExecDestroy', self._graph)
        self._context = None
        pinned = [*self.outputs.values(), *([self.image] if hasattr(self, 'image') else [])]
        for memory in (*self._device.values(), *pinned):
            with suppress(CudaError):
                memory.free()
        self._device.clear()
        self.outputs.clear()

    def _enqueue(self) -> None:
        memory = self._device[_PICTURE]
        self._cuda.call(
            'cuMemcpyHtoDAsync', memory.address, self.image.address, memory.size, self._stream
        )
        if not self._context.execute_async_v3(int(self._stream)):
            raise CudaError('TensorRT could not start the inference', _ENQUEUE_FAILED)

    def _address(self, name: str, array: PinnedArray) -> None:
        memory = self._device[name] = DeviceMemory(self._cuda, array.nbytes)
        if not self._context.set_tensor_address(name, memory.address):
            raise EngineError(f'TensorRT refuses the memory of {name}: build the engine again')
