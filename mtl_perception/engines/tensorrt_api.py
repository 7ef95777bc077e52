"""The one place that knows how TensorRT 10, TensorRT 11 and TensorRT-RTX differ."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ._interface import EngineError

RUNTIMES = ('tensorrt', 'tensorrt_rtx')

_log = logging.getLogger(__name__)

_HOW_TO_INSTALL = (
    'on a Jetson it comes with JetPack 6.1 or newer (make the environment with '
    '--system-site-packages), on a PC install requirements/tensorrt.txt'
)


@dataclass(frozen=True)
class TensorRt:
    """An imported TensorRT.

    Attributes:
        name: 'tensorrt' or 'tensorrt_rtx'.
        module: the imported package.
        version: as the package says it.
    """

    name: str
    module: Any
    version: str

    @property
    def builds_without_gpu(self) -> bool:
        """Tell whether engines can be built for GPUs that are not there."""
        return self.name == 'tensorrt_rtx'

    @property
    def times_kernels(self) -> bool:
        """Tell whether the builder measures kernels, so that a timing cache saves work."""
        return self.name == 'tensorrt'

    @property
    def compiles_when_opened(self) -> bool:
        """Tell whether kernels are compiled on the GPU that runs them, not by the builder."""
        return self.name == 'tensorrt_rtx'


def load_tensorrt(runtime: str = 'auto') -> TensorRt:
    """Import TensorRT.

    Args:
        runtime: 'tensorrt', 'tensorrt_rtx', or 'auto': the first of them that is installed.

    Raises:
        EngineError: unknown name, not installed, or older than 10.
    """
    if runtime != 'auto' and runtime not in RUNTIMES:
        raise EngineError(
            f'runtime {runtime!r} is unknown: expected auto, {" or ".join(RUNTIMES)}'
        )
    reasons = []
    for name in RUNTIMES if runtime == 'auto' else (runtime,):
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(f'{name}: {error}')
            continue
        version = getattr(module, '__version__', None)
        if version is None:  # a folder of that name
            reasons.append(f'what is imported as {name} is no TensorRT')
            continue
        # TensorRT-RTX counts its versions from 1; its API is that of 10.
        if name == 'tensorrt' and int(version.split('.')[0]) < 10:
            reasons.append(f'{name} is {version}, 10 or newer is needed')
            continue
        return TensorRt(name, module, version)
    raise EngineError(f"TensorRT can't be used ({'; '.join(reasons)}): {_HOW_TO_INSTALL}")


def create_network(trt: Any, builder: Any) -> Any:
    """Return an empty, strongly typed network.

    TensorRT 11 knows no other and ignores the flag.
    """
    flag = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    return builder.create_network(1 << int(flag))


def target_capabilities(
    api: TensorRt, config: Any, capabilities: Sequence[str], *, on_gpu: bool
) -> None:
    """Make the builder build for GPUs of these compute capabilities ('8.6', '12.0').

    TensorRT-RTX builds for any list; its own default leaves Turing out. TensorRT builds for the
    GPU at hand; 'ampere+' makes it build for all GPUs from Ampere on.

    Args:
        api: the runtime.
        config: its IBuilderConfig.
        capabilities: nothing: the GPU at hand; without one, RTX's own default list.
        on_gpu: there is a GPU at hand.

    Raises:
        EngineError: a capability that the runtime does not build for.
    """
    trt = api.module
    if not capabilities:
        if on_gpu and api.name == 'tensorrt_rtx':
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
        return
    if api.name == 'tensorrt':
        if list(capabilities) != ['ampere+']:
            raise EngineError(
                f'TensorRT builds for the GPU at hand, {",".join(capabilities)} was asked for: '
                'leave the compute capability out, say ampere+ for all GPUs from Ampere on, or '
                'use --runtime tensorrt_rtx'
            )
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        return
    known = {
        f'{name[2:-1]}.{name[-1]}': value
        for name, value in trt.ComputeCapability.__members__.items()
        if name.startswith('SM')
    }
    unknown = [capability for capability in capabilities if capability not in known]
    if unknown:
        raise EngineError(
            f'TensorRT-RTX {api.version} does not build for {", ".join(unknown)}: '
            f'expected some of {", ".join(known)}'
        )
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        if not config.set_compute_capability(known[capability], index):
            raise EngineError(
                f'TensorRT-RTX {api.version} refuses compute capability {capability}'
            )


class Contexts:
    """Makes an engine's execution contexts.

    TensorRT-RTX compiles kernels for them, which takes seconds, and can be given those of an
    earlier start.

    Attributes:
        refused: known kernels were given, and TensorRT-RTX does not take them.
    """

    def __init__(self, api: TensorRt, engine: Any, kernels: bytes = b'') -> None:
        """Prepare for an engine.

        Args:
            api: the runtime.
            engine: the deserialized engine.
            kernels: what `kernels` returned at an earlier start on this GPU, or nothing.
        """
        self._engine = engine
        self._runtime_config: Any = None
        self._runtime_cache: Any = None
        self.refused = False
        if not api.compiles_when_opened:
            return
        trt = api.module
        self._runtime_config = engine.create_runtime_config()
        # A shape stays what it is; the default would capture the kernels that stand in until the
        # right ones are compiled.
        self._runtime_config.dynamic_shapes_kernel_specialization_strategy = (
            trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._runtime_cache = self._runtime_config.create_runtime_cache()
        if kernels:
            self.refused = not self._runtime_cache.deserialize(kernels)
        self._runtime_config.set_runtime_cache(self._runtime_cache)

    def make(self) -> Any:
        """Return a new execution context; None where memory does not suffice."""
        if self._runtime_config is None:
            return self._engine.create_execution_context()
        return self._engine.create_execution_context(self._runtime_config)

    def kernels(self) -> bytes:
        """Return all kernels so far; nothing where none are compiled."""
        return b'' if self._runtime_cache is None else bytes(self._runtime_cache.serialize())


def make_logger(api: TensorRt) -> Any:
    """Return a TensorRT logger that writes to Python's logging."""
    trt = api.module
    # Errors come back as exceptions, which quote them; they need not be told twice.
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.DEBUG,
        trt.ILogger.ERROR: logging.DEBUG,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.DEBUG,
        trt.ILogger.VERBOSE: logging.NOTSET,
    }

    class Logger(trt.ILogger):
        """Passes messages on; keeps the last error for exceptions to quote."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = ''

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.last_error = message
            if level > logging.NOTSET:
                _log.log(level, '%s: %s', api.name, message)

    return Logger()


def make_progress_monitor(api: TensorRt, report: Callable[[str, int, int], bool]) -> Any:
    """Return a TensorRT progress monitor.

    Args:
        api: the runtime.
        report: is called with a phase's name, the step that is done and the number of steps, from
            any thread; returns False to cancel the build.
    """
    trt = api.module

    class Monitor(trt.IProgressMonitor):
        """Adds the number of steps, which TensorRT tells only once, to each report."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return report(phase_name, step + 1, self._steps.get(phase_name, step + 1))

        def phase_finish(self, phase_name: str) -> None:
            steps = self._steps.get(phase_name, 1)
            report(phase_name, steps, steps)

    return Monitor()
