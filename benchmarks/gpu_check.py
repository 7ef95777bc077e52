"""Everything that needs a GPU, in one command: `make gpu-check`.

Builds the engines, compares each with float32, times them, injects errors, soaks, and runs the
node. Writes report.json and report.md; ends with 1 when anything did not pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from machine import describe_machine, write_result
from rich.console import Console

from mtl_perception.bundle import ModelBundle
from mtl_perception.engine_cli import read_pictures
from mtl_perception.engines import Engine, open_engine
from mtl_perception.engines._interface import EngineError
from mtl_perception.engines.builder import BuildOptions
from mtl_perception.engines.cache import CachedEngine, EngineCache
from mtl_perception.engines.cuda import Cuda, CudaError, Gpu
from mtl_perception.engines.gate import compare
from mtl_perception.engines.guarded import ERRORS_IN_A_ROW, GuardedEngine
from mtl_perception.engines.prepare import prepare_engine, usable_gpu
from mtl_perception.engines.tensorrt import TensorRtEngine
from mtl_perception.engines.tensorrt_api import TensorRt, load_tensorrt

if TYPE_CHECKING:
    from feed import Feed

PRECISIONS = ('float32', 'float16', 'int8')
BATCHES = (1, 2, 4)
CAMERAS = ('front', 'left', 'rear', 'right')
RATE_HZ = 30.0
_LEAST_SHARE = 0.99


@dataclass(frozen=True)
class Subject:
    """A built engine and what it takes to open it."""

    bundle: ModelBundle
    blob: bytes
    precision: str
    api: TensorRt
    cuda: Cuda
    gpu: Gpu

    def open(self, *, cuda_graph: bool = True) -> TensorRtEngine:
        """Open the engine."""
        return TensorRtEngine(
            self.bundle,
            self.blob,
            self.api,
            self.cuda,
            self.gpu,
            precision=self.precision,
            cuda_graph=cuda_graph,
        )


def check_graph(subject: Subject, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return whether CUDA graph on and off give the same outputs."""
    plain, captured = subject.open(cuda_graph=False), subject.open(cuda_graph=True)
    try:
        equal = all(
            _same(plain.infer(picture[None]), captured.infer(picture[None]))
            for picture in pictures
        )
    finally:
        plain.close()
        captured.close()
    return {'passed': equal, 'frames': len(pictures)}


def check_batches(subject: Subject, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return whether a picture in a batch gives what it gives alone, within the gate's limits.

    Kernels of another batch size may round differently.
    """
    engine = subject.open()
    failures: list[str] = []
    try:
        for batch in BATCHES:
            images = np.stack([pictures[i % len(pictures)] for i in range(batch)])
            together = _copied(engine.infer(images))
            for slot in range(batch):
                among = {name: array[slot : slot + 1] for name, array in together.items()}
                report = compare(
                    engine.infer,
                    lambda _, among=among: among,
                    [images[slot]],
                    precision=subject.precision,
                    method=f'slot {slot} of {batch}',
                    num_classes=len(subject.bundle.classes),
                )
                if not report.passed:
                    failures.append(f'{report.method}: {report.failure}')
    finally:
        engine.close()
    return {'passed': not failures, 'batches': list(BATCHES), 'failures': failures}


def time_engine(subject: Subject, seconds: float) -> list[dict[str, Any]]:
    """Return latency percentiles with CUDA graph on and off, per batch, with and without copies.

    'all' copies every output back, 'none' only runs the engine on a picture that is copied in.
    """
    rows = []
    for cuda_graph in (True, False):
        engine = subject.open(cuda_graph=cuda_graph)
        try:
            for batch in BATCHES:
                image = engine.input_buffer(batch, subject.bundle.input_size)
                for copied, outputs in (('all', None), ('none', ())):
                    durations = _durations(
                        lambda e=engine, i=image, o=outputs: e.infer(i, o), seconds
                    )
                    rows.append(
                        {
                            'precision': subject.precision,
                            'cuda_graph': cuda_graph,
                            'batch': batch,
                            'outputs_copied': copied,
                            'calls': len(durations),
                            **_percentiles(durations),
                        }
                    )
        finally:
            engine.close()
    return rows


def check_recovery(subject: Subject, picture: np.ndarray) -> dict[str, Any]:
    """Return whether an engine comes back after an error and gives way after three in a row."""
    opened: list[TensorRtEngine] = []

    def open_gpu() -> Engine:
        opened.append(subject.open())
        return opened[-1]

    def open_cpu() -> Engine:
        return open_engine(subject.bundle, 'openvino')

    guarded = GuardedEngine(open_gpu, open_cpu)
    image = picture[None]
    try:
        before = _copied(guarded.infer(image))
        _break_once(opened[-1])
        after = _copied(guarded.infer(image))
        came_back = guarded.errors == 1 and len(opened) == 2 and _same(before, after)
        guarded.infer(image)
        _break_for_good(opened, guarded)
        guarded.infer(image)
        gave_way = guarded.name == 'openvino' and guarded.errors == 1 + ERRORS_IN_A_ROW
    finally:
        guarded.close()
    return {
        'passed': came_back and gave_way,
        'came_back': came_back,
        'gave_way': gave_way,
        'remark': guarded.remark,
    }


def soak(subject: Subject, pictures: Sequence[np.ndarray], seconds: float) -> dict[str, Any]:
    """Return what running without a pause does to memory, latency and outputs."""
    engine = subject.open()
    try:
        expected = _copied(engine.infer(pictures[0][None]))
        free_before, _ = subject.cuda.call('cuMemGetInfo')
        durations = []
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            image = pictures[len(durations) % len(pictures)][None]
            started = time.perf_counter()
            engine.infer(image)
            durations.append((time.perf_counter() - started) * 1e3)
        free_after, _ = subject.cuda.call('cuMemGetInfo')
        same = _same(expected, engine.infer(pictures[0][None]))
    finally:
        engine.close()
    tenth = max(1, len(durations) // 10)
    lost = int(free_before) - int(free_after)
    return {
        'passed': same and lost < 16 << 20,
        'seconds': round(seconds, 1),
        'frames': len(durations),
        'gpu_memory_lost_mib': round(lost / 2**20, 1),
        'outputs_unchanged': same,
        'first_tenth': _percentiles(durations[:tenth]),
        'last_tenth': _percentiles(durations[-tenth:]),
    }


def run_cameras(
    bundle: ModelBundle, seconds: float, *, engine: str = 'tensorrt', gpu_device: int = 0
) -> dict[str, Any]:
    """Return what the real node makes of four cameras, 640x480 at 30 Hz each, over DDS."""
    from cameras import replay_cameras

    feed = _feed(seconds)
    cameras = replay_cameras(bundle, feed, CAMERAS, {'engine': engine, 'gpu_device': gpu_device})
    published = sum(camera.counts.published for camera in cameras)
    used = {camera.engine for camera in cameras}
    return {
        'passed': all(name.startswith(engine) for name in used)
        and all(camera.is_settled for camera in cameras)
        and published >= _LEAST_SHARE * sum(camera.sent for camera in cameras),
        'engine': ', '.join(sorted(used)),
        'published_hz': round(published / seconds, 1),
        'accounted_for': all(camera.is_settled for camera in cameras),
        'cameras': {camera.name: camera.summary() for camera in cameras},
    }


def run_node(
    bundle: ModelBundle, seconds: float, *, engine: str = 'tensorrt', gpu_device: int = 0
) -> dict[str, Any]:
    """Return rate and latency of the real node, 640x480 at 30 Hz over DDS."""
    from mtl_perception.ros.live import percentiles, perception_program, replay_through

    program = perception_program(bundle, {'engine': engine, 'gpu_device': gpu_device})
    result = replay_through(program, _feed(seconds))
    return {
        'passed': result.engine.startswith(engine)
        and result.frames_out >= _LEAST_SHARE * result.frames_in,
        'engine': result.engine,
        'precision': result.precision,
        'fps': round(result.fps, 2),
        'frames_in': result.frames_in,
        'frames_out': result.frames_out,
        'dropped': result.dropped,
        'latency_ms': percentiles(result.latencies_ms),
        'overhead_ms': percentiles(result.overhead_ms),
    }


def _feed(seconds: float) -> Feed:
    """Return the sample bag's pictures at 640x480 and 30 Hz."""
    from feed import Feed

    from mtl_perception.ros.sources import open_source

    source = open_source(Path(__file__).resolve().parent.parent / 'samples' / 'room')
    return Feed(source, fps=RATE_HZ, count=round(seconds * RATE_HZ))


def as_markdown(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [
        f'# GPU check: {"passed" if report["passed"] else "FAILED"}',
        '',
        f'{report["gpu"]}, driver for CUDA {report["driver"]}, {report["runtime"]} '
        f'{report["runtime_version"]}, bundle {report["bundle"]}, commit '
        f'{report["machine"]["commit"]}.',
        '',
        '| check | result |',
        '|---|---|',
    ]
    for name, check in report['checks'].items():
        words = ', '.join(f'{key} {value}' for key, value in check.items() if key != 'passed')
        lines.append(f'| {name} | {"passed" if check["passed"] else "FAILED"}: {words} |')
    lines += [
        '',
        '| precision | CUDA graph | batch | outputs copied | p50 ms | p95 ms | p99 ms |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in report['latency']:
        graph = 'on' if row['cuda_graph'] else 'off'
        lines.append(
            f'| {row["precision"]} | {graph} | {row["batch"]} | {row["outputs_copied"]} '
            f'| {row["p50"]} | {row["p95"]} | {row["p99"]} |'
        )
    return '\n'.join(lines) + '\n'


def main(
    bundle: Annotated[str, typer.Option(help='Folder or name of the bundle.')] = 'pvt_v2_b0',
    runtime: Annotated[str, typer.Option(help='auto, tensorrt or tensorrt_rtx.')] = 'auto',
    frames: Annotated[
        Path | None, typer.Option(help='Recording or folder; the sample bag if none.')
    ] = None,
    out: Annotated[Path, typer.Option(help='Folder for the report.')] = Path('out/gpu'),
    soak_s: Annotated[float, typer.Option('--soak', help='Seconds of the soak.')] = 120.0,
    seconds: Annotated[float, typer.Option(help='Of every latency measurement.')] = 1.0,
    gpu_device: Annotated[int, typer.Option(min=0, help='Number of the GPU.')] = 0,
) -> None:
    """Check everything on this machine's GPU."""
    console = Console()
    found = usable_gpu(gpu_device)
    if isinstance(found, str):
        console.print(f'gpu-check needs a GPU: {found}')
        raise typer.Exit(2)
    cuda, gpu = found
    try:
        api = load_tensorrt(runtime)
    except EngineError as error:
        console.print(f'gpu-check: {error}')
        raise typer.Exit(2) from error
    loaded = ModelBundle.load(bundle)
    pictures = read_pictures(frames, loaded.input_size, 8)
    report: dict[str, Any] = {
        'gpu': str(gpu),
        'driver': f'{gpu.driver[0]}.{gpu.driver[1]}',
        'gpu_memory_mib': gpu.memory >> 20,
        'runtime': api.name,
        'runtime_version': api.version,
        'bundle': loaded.name,
        'machine': describe_machine(),
        'checks': {},
        'latency': [],
    }
    checks: dict[str, dict[str, Any]] = report['checks']

    def step(name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Run one check; what it raises is its result."""
        with console.status(name):
            try:
                checks[name] = work()
            except Exception as error:  # one failed check must not hide the others
                checks[name] = {'passed': False, 'error': f'{type(error).__name__}: {error}'}
        console.print(f'{"passed" if checks[name]["passed"] else "FAILED"}  {name}')

    cache = EngineCache()
    options = BuildOptions((loaded.input_size,), (1, 1, max(BATCHES)))
    for precision in PRECISIONS:

        def build(wanted: str = precision) -> dict[str, Any]:
            prepared = prepare_engine(
                loaded, api, options, wanted, pictures, cache=cache, gpu=gpu, cuda=cuda
            )
            # A precision that gave way to a safer one has passed the gate as that one.
            return {'passed': prepared.notes['gate'][-1]['passed'], **prepared.notes}

        step(f'build {precision}', build)
    for subject in _subjects(cache, loaded, api, cuda, gpu):
        name = subject.precision
        step(f'CUDA graph {name}', lambda s=subject: check_graph(s, pictures))
        step(f'batches {name}', lambda s=subject: check_batches(s, pictures))

        def time_it(s: Subject = subject) -> dict[str, Any]:
            rows = time_engine(s, seconds)
            report['latency'] += rows
            return {'passed': True, 'rows': len(rows)}

        step(f'latency {name}', time_it)
        step(f'recovery {name}', lambda s=subject: check_recovery(s, pictures[0]))
        if name == 'float16':
            step('soak', lambda s=subject: soak(s, pictures, soak_s))
    step('node 640x480 at 30 Hz', lambda: run_node(loaded, 15.0, gpu_device=gpu_device))
    step(
        'node with four cameras at 30 Hz',
        lambda: run_cameras(loaded, 15.0, gpu_device=gpu_device),
    )
    report['passed'] = all(check['passed'] for check in checks.values())
    write_result(out / 'report.json', report)
    (out / 'report.md').write_text(as_markdown(report))
    console.print(f'{out / "report.json"} and report.md are written')
    raise typer.Exit(0 if report['passed'] else 1)


def _subjects(
    cache: EngineCache, bundle: ModelBundle, api: TensorRt, cuda: Cuda, gpu: Gpu
) -> list[Subject]:
    """Return the engines that were built for this bundle, one per precision."""
    from mtl_perception.engines.prepared import find_prepared

    subjects = []
    for precision in PRECISIONS:
        found = find_prepared(
            cache,
            bundle,
            api,
            gpu,
            precision=precision,
            size=bundle.input_size,
            batch=max(BATCHES),
        )
        # One that gave way to a safer precision is that one's twin.
        if isinstance(found, CachedEngine) and found.notes['precision'] == precision:
            subjects.append(Subject(bundle, found.blob, precision, api, cuda, gpu))
    return subjects


def _break_once(engine: TensorRtEngine) -> None:
    """Make the next launch fail as if the GPU had."""

    def fail(name: str, *arguments: Any) -> Any:
        if name == 'cuStreamSynchronize':
            raise CudaError('injected error', 'CUDA_ERROR_LAUNCH_FAILED')
        return Cuda.call(engine._cuda, name, *arguments)

    broken = object.__new__(Cuda)
    broken.driver = engine._cuda.driver
    broken.call = fail
    engine._cuda = broken


def _break_for_good(opened: list[TensorRtEngine], guarded: GuardedEngine) -> None:
    """Make every further GPU engine fail at its first frame."""
    healthy = guarded._open_gpu

    def open_broken() -> Engine:
        engine = healthy()
        _break_once(engine)
        return engine

    guarded._open_gpu = open_broken
    _break_once(opened[-1])


def _durations(work: Callable[[], object], seconds: float) -> list[float]:
    """Return the milliseconds of each call during some seconds, after a few calls to warm up."""
    for _ in range(5):
        work()
    durations = []
    began = time.perf_counter()
    while not durations or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        work()
        durations.append((time.perf_counter() - started) * 1e3)
    return durations


def _percentiles(durations: Sequence[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(durations, (50, 95, 99))
    return {'p50': round(float(p50), 3), 'p95': round(float(p95), 3), 'p99': round(float(p99), 3)}


def _copied(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in results.items()}


def _same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in first)


if __name__ == '__main__':
    typer.run(main)
