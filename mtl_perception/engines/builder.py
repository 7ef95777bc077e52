"""Build TensorRT engines from a graph whose types are final."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx

from ._interface import EngineError, Size
from .tensorrt_api import (
    TensorRt,
    create_network,
    make_logger,
    make_progress_monitor,
    target_capabilities,
)

_PICTURE = 'image'


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for.

    Attributes:
        sizes: (height, width) of the network's pictures; one optimisation profile each.
        batch: smallest, most likely and largest number of pictures per call.
        capabilities: compute capabilities ('8.6'); nothing: the GPU at hand, without one the
            runtime's default.
        workspace_mib: bound for the builder's scratch memory; None leaves it to TensorRT.
    """

    sizes: tuple[Size, ...]
    batch: tuple[int, int, int] = (1, 1, 1)
    capabilities: tuple[str, ...] = ()
    workspace_mib: int | None = None

    def __post_init__(self) -> None:
        least, likely, most = self.batch
        if not 1 == least <= likely <= most:
            raise EngineError(
                f'batch {least}:{likely}:{most}: expected MIN:OPT:MAX with MIN 1 (a camera may '
                'come alone) and 1 <= OPT <= MAX'
            )
        if not self.sizes:
            raise EngineError('no picture size to build for: give at least one HxW')
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise EngineError(f'workspace of {self.workspace_mib} MiB: expected 1 or more')

    def flags(self) -> dict[str, str]:
        """Return the options that change the engine and have no place of their own in its key."""
        return {'workspace_mib': str(self.workspace_mib)}


def build_engine(
    api: TensorRt,
    model: onnx.ModelProto,
    options: BuildOptions,
    *,
    on_gpu: bool = False,
    report: Callable[[str, int, int], bool] = lambda phase, step, steps: True,
    timing_cache: bytes = b'',
) -> tuple[bytes, bytes]:
    """Build an engine.

    Args:
        api: the runtime to build for.
        model: the graph; its types are those of the engine (strongly typed).
        options: sizes, batch, targets.
        on_gpu: there is a GPU, which is the target where the options name none.
        report: gets the builder's progress: phase, step, steps; returns False to cancel.
        timing_cache: what an earlier build on this GPU returned, or nothing.

    Returns:
        The serialized engine and the timing cache (empty where nothing was timed).

    Raises:
        EngineError: an operator that TensorRT lacks (the message names it), options that don't
            fit the graph, or a build that failed or was cancelled.
    """
    trt = api.module
    logger = make_logger(api)
    builder = trt.Builder(logger)
    network = create_network(trt, builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        raise EngineError(f"{api.name} can't read the graph: {_parser_errors(parser)}")
    config = builder.create_builder_config()
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    # Float32 means float32: by default matrix products round their operands to 10 bits.
    config.clear_flag(trt.BuilderFlag.TF32)
    target_capabilities(api, config, options.capabilities, on_gpu=on_gpu)
    monitor = make_progress_monitor(api, report)
    config.progress_monitor = monitor
    if api.times_kernels:
        cache = config.create_timing_cache(timing_cache)
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b'')
            config.set_timing_cache(cache, ignore_mismatch=False)
    for height, width in options.sizes:
        profile = builder.create_optimization_profile()
        shapes = [(count, height, width, 3) for count in options.batch]
        profile.set_shape(_PICTURE, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(
                f'the graph takes no pictures of {height}x{width} (height x width) in batches of '
                f"{options.batch}: use the bundle's own size, batch 1:1:1 ({logger.last_error})"
            )
    blob = builder.build_serialized_network(network, config)
    if blob is None:
        raise EngineError(
            f'{api.name} {api.version} built no engine: {logger.last_error or "cancelled"}'
        )
    timed = bytes(config.get_timing_cache().serialize()) if api.times_kernels else b''
    return bytes(blob), timed


def _parser_errors(parser: Any) -> str:
    """Return the parser's errors with the operators they belong to."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return '; '.join(
        f'operator {error.node_operator() or "?"} ({error.node_name() or "no name"}): '
        f'{error.desc()}'
        for error in errors
    )
