"""A GPU made of host memory, to run the GPU engine's own code without one.

`FakeDriver` stands for `cuda.bindings.driver`: device memory is ordinary memory, copies are real
copies, streams run at once. `FakeTensorRt` stands for `tensorrt`: an execution context computes
the bundle's graph with ONNX Runtime on the addresses that it was given. Both refuse every name
that the real packages do not have, and count what is allocated and freed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cuda.bindings.driver as real_driver
import numpy as np
import onnxruntime
import tensorrt_rtx as real_tensorrt

from mtl_perception.engines.tensorrt_api import TensorRt

_TYPES = {
    'tensor(uint8)': real_tensorrt.DataType.UINT8,
    'tensor(int32)': real_tensorrt.DataType.INT32,
    'tensor(float)': real_tensorrt.DataType.FLOAT,
}


class FakeDriver:
    """CUDA's driver API over host memory.

    Attributes:
        allocated: size of each allocation by address.
        registered: addresses of pinned memory.
        calls: names of the functions called, in order.
        device: number of the GPU whose context was taken last.
        kernels_compiled: by TensorRT-RTX, when contexts were made.
        memory_taken_per_call: bytes that each look at the free memory finds missing.
        fail: name of a function -> code of the error that its next calls return.
    """

    CUresult = real_driver.CUresult
    CUdevice_attribute = real_driver.CUdevice_attribute
    CUstream_flags = real_driver.CUstream_flags
    CUstreamCaptureMode = real_driver.CUstreamCaptureMode

    def __init__(
        self,
        *,
        count: int = 1,
        name: bytes = b'Imaginary GPU',
        capability: tuple[int, int] = (8, 6),
        version: int = 12060,
        memory: int = 1 << 30,
    ) -> None:
        self._count, self._name, self._capability = count, name, capability
        self._version, self._memory = version, memory
        self._leaked = 0
        self.memory_taken_per_call = 0
        self._buffers: dict[int, Any] = {}
        self._capturing: list[Callable[[], None]] | None = None
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self.allocated: dict[int, int] = {}
        self.registered: set[int] = set()
        self.calls: list[str] = []
        self.fail: dict[str, str] = {}
        self.contexts = 0
        self.streams = 0
        self.resets = 0
        self.kernels_compiled = 0
        self.device: int | None = None

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith('cu') or name == 'calls':
            return value
        assert hasattr(real_driver, name), f'cuda.bindings.driver has no {name}'

        def call(*arguments: Any) -> tuple:
            self.calls.append(name)
            code = self.fail.get(name)
            if code:
                # A call that fails still returns a tuple of the usual length.
                return getattr(self.CUresult, code), None
            result = value(*arguments)
            status = self.CUresult.CUDA_SUCCESS
            return (status, *result) if isinstance(result, tuple) else (status,)

        return call

    def run(self, work: Callable[[], None]) -> None:
        """Do what a stream was given, or record it."""
        if self._capturing is None:
            work()
        else:
            self._capturing.append(work)

    def cuInit(self, flags: int) -> None: ...

    def cuDeviceGetCount(self) -> tuple:
        return (self._count,)

    def cuDriverGetVersion(self) -> tuple:
        return (self._version,)

    def cuDeviceGet(self, index: int) -> tuple:
        return (index,)

    def cuDeviceGetAttribute(self, attribute: Any, device: int) -> tuple:
        return (self._capability['MINOR' in attribute.name],)

    def cuDeviceGetName(self, length: int, device: int) -> tuple:
        name = self._name + (f' {device}'.encode() if device else b'')
        return (name.ljust(length, b'\0'),)

    def cuDeviceTotalMem(self, device: int) -> tuple:
        return (self._memory,)

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple:
        self.contexts += 1
        self.device = device
        return ('context',)

    def cuDevicePrimaryCtxRelease(self, device: int) -> None:
        self.contexts -= 1

    def cuDevicePrimaryCtxReset(self, device: int) -> None:
        self.resets += 1

    def cuCtxSetCurrent(self, context: Any) -> None:
        assert context == 'context'

    def cuMemGetInfo(self) -> tuple:
        self._leaked += self.memory_taken_per_call
        used = sum(self.allocated.values()) + self._leaked
        return self._memory - used, self._memory

    def cuMemAlloc(self, size: int) -> tuple:
        buffer = np.zeros(size, np.uint8)
        self._buffers[buffer.ctypes.data] = buffer
        self.allocated[buffer.ctypes.data] = size
        return (buffer.ctypes.data,)

    def cuMemFree(self, pointer: int) -> None:
        del self.allocated[pointer], self._buffers[pointer]

    def cuMemHostRegister(self, pointer: int, size: int, flags: int) -> None:
        assert pointer % 4096 == 0
        self.registered.add(pointer)

    def cuMemHostUnregister(self, pointer: int) -> None:
        self.registered.remove(pointer)

    def cuMemcpyHtoDAsync(self, device: int, host: int, size: int, stream: Any) -> None:
        assert self.allocated[device] == size
        assert host in self.registered or 'cuMemHostRegister' in self.fail
        self.run(lambda: ctypes.memmove(device, host, size))

    def cuMemcpyDtoHAsync(self, host: int, device: int, size: int, stream: Any) -> None:
        assert self.allocated[device] == size
        assert host in self.registered or 'cuMemHostRegister' in self.fail
        self.run(lambda: ctypes.memmove(host, device, size))

    def cuStreamCreate(self, flags: Any) -> tuple:
        self.streams += 1
        return (1,)

    def cuStreamDestroy(self, stream: Any) -> None:
        self.streams -= 1

    def cuStreamSynchronize(self, stream: Any) -> None:
        assert self._capturing is None

    def cuStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        self._capturing = []

    def cuStreamEndCapture(self, stream: Any) -> tuple:
        self._graphs[len(self._graphs) + 1] = self._capturing
        self._capturing = None
        return (len(self._graphs),)

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple:
        return (graph,)

    def cuGraphDestroy(self, graph: int) -> None: ...

    def cuGraphExecDestroy(self, graph: int) -> None:
        del self._graphs[graph]

    def cuGraphLaunch(self, graph: int, stream: Any) -> None:
        for work in self._graphs[graph]:
            work()


class FakeContext:
    """An IExecutionContext that computes with ONNX Runtime."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] | None = None

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        return profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = tuple(shape)
        return name == 'image'

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == 'image':
            return self._shape
        names = dict(zip('NHW', self._shape, strict=False))
        return tuple(names.get(size, size) for size in self._engine.forms[name].shape)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self._engine.broken:
            return False
        self._engine.driver.run(self._compute)
        return True

    def _array(self, name: str) -> np.ndarray:
        shape = self.get_tensor_shape(name)
        dtype = np.dtype(real_tensorrt.nptype(self._engine.get_tensor_dtype(name)))
        size = int(np.prod(shape)) * dtype.itemsize
        raw = (ctypes.c_ubyte * size).from_address(self._addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)

    def _compute(self) -> None:
        names = self._engine.outputs
        results = self._engine.session.run(names, {'image': self._array('image')})
        for name, result in zip(names, results, strict=True):
            self._array(name)[...] = result


class FakeEngine:
    """An ICudaEngine of a bundle's graph."""

    def __init__(
        self,
        driver: FakeDriver,
        model: Path,
        profiles: list[tuple[tuple[int, ...], ...]],
        out_of_memory: bool,
    ) -> None:
        self.driver = driver
        self.session = onnxruntime.InferenceSession(str(model))
        self.forms = {output.name: output for output in self.session.get_outputs()}
        self.outputs = list(self.forms)
        self.broken = False
        self._profiles = profiles
        self._out_of_memory = out_of_memory
        self.num_optimization_profiles = len(profiles)
        self.num_io_tensors = 1 + len(self.outputs)
        self.device_memory_size_v2 = 3 << 30

    def get_tensor_name(self, index: int) -> str:
        return ['image', *self.outputs][index]

    def get_tensor_dtype(self, name: str) -> Any:
        kind = 'tensor(uint8)' if name == 'image' else self.forms[name].type
        return _TYPES[kind]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> tuple:
        return self._profiles[profile_index]

    def create_execution_context(
        self, runtime_config: FakeRuntimeConfig | None = None
    ) -> FakeContext | None:
        if runtime_config is not None:
            cache = runtime_config._cache
            kernel = f'kernel {len(cache._used)}'.encode()
            if kernel not in cache._kernels:
                self.driver.kernels_compiled += 1
                cache._kernels.append(kernel)
            cache._used.append(kernel)
        return None if self._out_of_memory else FakeContext(self)

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig(self.driver)


class FakeRuntimeCache:
    """An IRuntimeCache: one kernel for each context, tied to the version of the driver."""

    def __init__(self, driver: FakeDriver) -> None:
        self._tag = f'driver {driver._version}'.encode()
        self._kernels: list[bytes] = []
        self._used: list[bytes] = []

    def serialize(self) -> bytes:
        return b'\n'.join([self._tag, *self._kernels])

    def deserialize(self, blob: bytes) -> bool:
        tag, *kernels = blob.split(b'\n')
        if tag == self._tag:
            self._kernels = kernels
        return tag == self._tag


class FakeRuntimeConfig:
    """An IRuntimeConfig."""

    dynamic_shapes_kernel_specialization_strategy: Any = None

    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver
        self._cache: FakeRuntimeCache

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache(self._driver)

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        eager = real_tensorrt.DynamicShapesKernelSpecializationStrategy.EAGER
        assert self.dynamic_shapes_kernel_specialization_strategy == eager
        self._cache = cache
        return True


def fake_tensorrt(
    driver: FakeDriver,
    model: Path,
    *,
    sizes: tuple[tuple[int, int], ...] = ((48, 64),),
    batch: tuple[int, int, int] = (1, 1, 2),
    loads: bool = True,
    out_of_memory: bool = False,
    name: str = 'tensorrt',
) -> tuple[TensorRt, list[FakeEngine]]:
    """Return a TensorRT whose engines compute a bundle's graph, and the list of its engines."""
    engines: list[FakeEngine] = []
    profiles = [tuple((count, *size, 3) for count in batch) for size in sizes]

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, blob: bytes) -> FakeEngine | None:
            if not loads:
                self._logger.log(real_tensorrt.ILogger.ERROR, 'the version does not match')
                return None
            engines.append(FakeEngine(driver, model, profiles, out_of_memory))
            return engines[-1]

    for fake, real in (
        (Runtime, real_tensorrt.Runtime),
        (FakeEngine, real_tensorrt.ICudaEngine),
        (FakeContext, real_tensorrt.IExecutionContext),
        (FakeRuntimeConfig, real_tensorrt.IRuntimeConfig),
        (FakeRuntimeCache, real_tensorrt.IRuntimeCache),
    ):
        own = {'driver', 'session', 'outputs', 'forms', 'broken'}
        for member in vars(fake):
            assert member.startswith('_') or member in own or hasattr(real, member), member
    module = SimpleNamespace(
        Runtime=Runtime,
        ILogger=real_tensorrt.ILogger,
        DynamicShapesKernelSpecializationStrategy=(
            real_tensorrt.DynamicShapesKernelSpecializationStrategy
        ),
        nptype=real_tensorrt.nptype,
        __version__='10.9.0',
    )
    return TensorRt(name, module, '10.9.0'), engines
