"""The few calls of CUDA's driver API that inference needs, as cuda-python offers them.

The driver API rather than the runtime's: it asks the installed driver for each function, so that
one cuda-python serves drivers of different age.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ._interface import EngineError

LEAST_DRIVER = (12, 0)
"""Oldest CUDA version of the driver that TensorRT 10 and TensorRT-RTX run on."""

LEAST_CAPABILITY = (7, 5)
"""Turing: the oldest GPUs that TensorRT 10 and 11 and TensorRT-RTX support."""

AMPERE = (8, 0)
"""Compute capability from which on engines that were built for 'ampere+' run."""


OUT_OF_MEMORY = 'CUDA_ERROR_OUT_OF_MEMORY'


class CudaError(EngineError):
    """A CUDA call failed; `code` is CUDA's name for the reason."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class OutOfMemoryError(CudaError):
    """The GPU's memory does not suffice."""


class GpuUnavailableError(EngineError):
    """There is no GPU that can be used; the message says why and what to do."""


class NoSuchGpuError(GpuUnavailableError):
    """There is no GPU of this number, but there are others."""


_CANNOT_REGISTER = (
    'CUDA_ERROR_NOT_PERMITTED',
    'CUDA_ERROR_NOT_SUPPORTED',
    'CUDA_ERROR_OPERATING_SYSTEM',
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """A GPU that can be used.

    Attributes:
        index: CUDA's number.
        name: as the driver says it.
        capability: compute capability (major, minor).
        driver: CUDA version of the driver (major, minor).
        memory: bytes.
    """

    index: int
    name: str
    capability: tuple[int, int]
    driver: tuple[int, int]
    memory: int

    def __str__(self) -> str:
        return f'{self.name} (compute capability {self.capability[0]}.{self.capability[1]})'


class Cuda:
    """The driver API with errors as exceptions."""

    def __init__(self, driver: ModuleType | None = None) -> None:
        """Import cuda-python's driver bindings.

        Raises:
            GpuUnavailableError: cuda-python or the NVIDIA driver is missing.
        """
        if driver is None:
            try:
                # Asked first: without a driver, installing cuda-python would not help.
                ctypes.CDLL('libcuda.so.1')
            except OSError as error:
                raise GpuUnavailableError(
                    f'no NVIDIA driver is installed ({error}): install it, or run the container '
                    'with --gpus all'
                ) from error
            try:
                from cuda.bindings import driver
            except ImportError as error:
                raise GpuUnavailableError(
                    f"cuda-python can't be imported ({error}): install requirements/tensorrt.txt, "
                    'on a Jetson cuda-bindings of its own CUDA version'
                ) from error
        self.driver: Any = driver
        try:
            self.call('cuInit', 0)
        except CudaError as error:
            raise GpuUnavailableError(_why_no_init(error.code)) from error

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function; return its result, a tuple of several, or None.

        Raises:
            OutOfMemoryError: CUDA_ERROR_OUT_OF_MEMORY.
            CudaError: any other failure.
        """
        status, *results = getattr(self.driver, name)(*arguments)
        if status != self.driver.CUresult.CUDA_SUCCESS:
            code = getattr(status, 'name', str(status))
            kind = OutOfMemoryError if code == OUT_OF_MEMORY else CudaError
            raise kind(f'{name} failed with {code}', code)
        if len(results) > 1:
            return tuple(results)
        return results[0] if results else None

    def find_gpu(self, index: int = 0) -> Gpu:
        """Return a GPU that TensorRT can use.

        Raises:
            GpuUnavailableError: no such GPU (NoSuchGpuError where there are others), a driver
                that is too old, or a GPU that is too old.
        """
        count = self.call('cuDeviceGetCount')
        if not 0 <= index < count:
            fix = (
                f'set gpu_device to {"0" if count == 1 else f"0 to {count - 1}"}, '
                if count
                else ''
            )
            raise (NoSuchGpuError if count else GpuUnavailableError)(
                f'GPU {index} was asked for, the driver sees {count}: {fix}check '
                'CUDA_VISIBLE_DEVICES'
            )
        version = self.call('cuDriverGetVersion')
        driver = (version // 1000, version % 1000 // 10)
        if driver < LEAST_DRIVER:
            raise GpuUnavailableError(
                f'the NVIDIA driver is made for CUDA {driver[0]}.{driver[1]}, '
                f'{LEAST_DRIVER[0]}.{LEAST_DRIVER[1]} or newer is needed: update the driver'
            )
        device = self.call('cuDeviceGet', index)
        attribute = self.driver.CUdevice_attribute
        capability = (
            self.call(
                'cuDeviceGetAttribute',
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                device,
            ),
            self.call(
                'cuDeviceGetAttribute',
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                device,
            ),
        )
        name = self.call('cuDeviceGetName', 256, device).split(b'\0')[0].decode()
        if capability < LEAST_CAPABILITY:
            raise GpuUnavailableError(
                f'{name} has compute capability {capability[0]}.{capability[1]}, TensorRT needs '
                f'{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} (Turing) or newer: set engine to '
                'openvino'
            )
        memory = self.call('cuDeviceTotalMem', device)
        return Gpu(index, name, capability, driver, int(memory))


class DeviceMemory:
    """Bytes on the GPU."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        """Allocate.

        Raises:
            OutOfMemoryError: with the size that was needed and what is free.
        """
        self._cuda = cuda
        try:
            self._pointer = cuda.call('cuMemAlloc', size)
        except OutOfMemoryError as error:
            raise out_of_memory(cuda, size, error) from error
        self.address = int(self._pointer)
        self.size = size

    def free(self) -> None:
        """Give the memory back."""
        self._cuda.call('cuMemFree', self._pointer)


class PinnedArray:
    """A numpy array whose pages the GPU copies from and to directly.

    The memory belongs to numpy and is only registered with CUDA: whoever still holds a view when
    the GPU has failed and CUDA's context is gone reads old numbers, not freed memory.
    """

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype | type) -> None:
        """Allocate whole pages, register them, lay the array over them.

        Where the system can't register memory, copies go through the driver's own buffers.
        """
        self._cuda = cuda
        count = int(np.prod(shape))
        self.nbytes = count * np.dtype(dtype).itemsize
        pages = np.frombuffer(mmap.mmap(-1, max(self.nbytes, 1)), np.uint8)
        self.array = pages[: self.nbytes].view(dtype).reshape(shape)
        self.address = pages.ctypes.data
        self._registered = True
        try:
            cuda.call('cuMemHostRegister', self.address, self.nbytes, 0)
        except CudaError as error:
            if error.code not in _CANNOT_REGISTER:
                raise
            self._registered = False
            _log.info('memory is not pinned (%s): copies take longer', error)

    def free(self) -> None:
        """Unregister the pages; the array stays readable."""
        if self._registered:
            self._cuda.call('cuMemHostUnregister', self.address)


def out_of_memory(cuda: Cuda, needed: int, cause: Exception) -> OutOfMemoryError:
    """Return the error that says how much memory was needed and how much there is."""
    free, total = cuda.call('cuMemGetInfo')
    return OutOfMemoryError(
        f'the GPU has {free / 2**20:.0f} of {total / 2**20:.0f} MiB free, '
        f'{needed / 2**20:.0f} MiB more are needed ({cause}): close other programs on the GPU, '
        'or build with a smaller batch or size',
        OUT_OF_MEMORY,
    )


def _why_no_init(code: str) -> str:
    if code == 'CUDA_ERROR_NO_DEVICE':
        return (
            'the NVIDIA driver finds no GPU (CUDA_ERROR_NO_DEVICE): check CUDA_VISIBLE_DEVICES '
            'and nvidia-smi'
        )
    if code == 'CUDA_ERROR_SYSTEM_DRIVER_MISMATCH':
        return (
            'the NVIDIA kernel module and library differ (CUDA_ERROR_SYSTEM_DRIVER_MISMATCH): '
            'reboot after the driver update'
        )
    return f'the NVIDIA driver does not start ({code}): check nvidia-smi'
