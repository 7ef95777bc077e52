"""`mtl-perception engine`: build engines ahead of time and look at what is there."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer(
    help='Build TensorRT engines ahead of time, and check what is there.', no_args_is_help=True
)


@app.command()
def build(
    bundle: Annotated[str, typer.Option(help='Folder or name of the bundle.')],
    runtime: Annotated[
        Literal['auto', 'tensorrt', 'tensorrt_rtx'],
        typer.Option(help='auto: TensorRT where it is installed, else TensorRT-RTX.'),
    ] = 'auto',
    precision: Annotated[
        Literal['fp32', 'fp16', 'int8'],
        typer.Option(help='One that does not pass the gate gives way to the next safer.'),
    ] = 'fp16',
    size: Annotated[
        str,
        typer.Option(
            help="HEIGHTxWIDTH (a node's input_size is WIDTHxHEIGHT), several comma-separated; "
            "'' is the bundle's own."
        ),
    ] = '',
    batch: Annotated[str, typer.Option(help='Pictures per call, MIN:OPT:MAX.')] = '1:1:1',
    compute_capability: Annotated[
        str,
        typer.Option(
            help="Targets, e.g. 8.6,8.9 (TensorRT-RTX), or ampere+ (TensorRT); '' is this GPU."
        ),
    ] = '',
    workspace: Annotated[
        int, typer.Option(min=0, help="MiB of the builder's scratch memory; 0: no bound.")
    ] = 0,
    frames: Annotated[
        Path | None,
        typer.Option(help='Recording or folder for gate and calibration; the sample bag if none.'),
    ] = None,
    frames_count: Annotated[int, typer.Option(min=1, help='Frames to take from it.')] = 8,
    gpu_device: Annotated[int, typer.Option(min=0, help='Number of the GPU.')] = 0,
    build_only: Annotated[
        bool,
        typer.Option('--build-only', help='Do not load the engine; the gate runs on the CPU.'),
    ] = False,
    json_path: Annotated[
        Path | None, typer.Option('--json', help="File for the result; '-' prints it.")
    ] = None,
) -> None:
    """Build an engine, prove it against float32, and keep it for the node.

    Prints what each precision's gate found. Exits with 2 and one sentence when it can't.
    """
    from mtl_perception.bundle import BundleError, ModelBundle
    from mtl_perception.engines import EngineError
    from mtl_perception.engines._interface import check_size
    from mtl_perception.engines.builder import BuildOptions
    from mtl_perception.engines.prepare import prepare_engine, usable_gpu
    from mtl_perception.engines.tensorrt_api import load_tensorrt

    try:
        loaded = ModelBundle.load(bundle)
        api = load_tensorrt(runtime)
        options = BuildOptions(
            sizes=_sizes(size) or (loaded.input_size,),
            batch=_batch(batch),
            capabilities=tuple(filter(None, compute_capability.split(','))),
            workspace_mib=workspace or None,
        )
        found = usable_gpu(gpu_device)
        cuda, gpu = (None, None) if isinstance(found, str) else found
        if gpu is None:
            _say(f'No GPU: {found}. The gate runs on the CPU.')
        wanted = _named(precision)
        for one in options.sizes:
            check_size(loaded, one)
        # Float32 is judged, too, where there is a GPU to run it on.
        needed = wanted != 'float32' or gpu is not None
        pictures = read_pictures(frames, options.sizes[0], frames_count) if needed else []
        with _progress(f'{loaded.name} {precision}') as report:
            prepared = prepare_engine(
                loaded,
                api,
                options,
                wanted,
                pictures,
                gpu=gpu,
                cuda=cuda,
                build_only=build_only,
                report=report,
            )
    except (BundleError, EngineError, OSError, ValueError) as error:
        typer.echo(f'engine build: {error}', err=True)
        raise typer.Exit(2) from error
    for line in describe(prepared.notes):
        _say(line)
    _say(f'{prepared.path or "not kept"}: {prepared.origin}')
    _write_json(
        json_path,
        {
            'bundle': loaded.name,
            'runtime': api.name,
            'runtime_version': api.version,
            'path': str(prepared.path) if prepared.path else None,
            'origin': prepared.origin,
            **prepared.notes,
        },
    )


@app.command()
def check(
    bundle: Annotated[str, typer.Option(help='Folder or name of the bundle.')],
    runtime: Annotated[
        Literal['auto', 'tensorrt', 'tensorrt_rtx'],
        typer.Option(help='tensorrt_rtx: as with `engine: tensorrt_rtx`; else auto.'),
    ] = 'auto',
    precision: Annotated[
        Literal['auto', 'fp32', 'fp16', 'int8'], typer.Option(help='What the node will ask for.')
    ] = 'auto',
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH; '' is the bundle's own.")] = '',
    batch: Annotated[int, typer.Option(min=1, help='Cameras of the node.')] = 1,
    gpu_device: Annotated[int, typer.Option(min=0, help='Number of the GPU.')] = 0,
    json_path: Annotated[
        Path | None, typer.Option('--json', help="File for the result; '-' prints it.")
    ] = None,
) -> None:
    """Say which engine a node would take now, and why not TensorRT.

    Exits with 1 when a node would run on the CPU.
    """
    from mtl_perception.bundle import BundleError, ModelBundle
    from mtl_perception.engines import EngineError
    from mtl_perception.engines.cache import EngineCache
    from mtl_perception.engines.prepared import open_prepared

    try:
        loaded = ModelBundle.load(bundle)
    except BundleError as error:
        typer.echo(f'engine check: {error}', err=True)
        raise typer.Exit(2) from error
    cache = EngineCache()
    kept = [
        {'file': path.name, 'key': header['key'], 'notes': header['notes']}
        for path, header in cache.entries()
        if header['key']['bundle'] == loaded.name
    ]
    for entry in kept:
        _say(entry['file'])
        for line in describe(entry['notes']):
            _say(f'  {line}')
    result: dict[str, Any] = {'bundle': loaded.name, 'cache': str(cache.folder), 'kept': kept}
    try:
        wanted = _sizes(size)
        engine = open_prepared(
            loaded,
            _no_cpu,
            precision=_named(precision),
            size=wanted[0] if wanted else None,
            batch=batch,
            runtime=runtime,
            device=gpu_device,
        )
        engine.infer(engine.input_buffer(batch, wanted[0] if wanted else loaded.input_size))
        result |= {'engine': engine.name, 'device': engine.device, 'precision': engine.precision}
        engine.close()
    except (EngineError, ValueError) as error:
        _say(f'A node runs {loaded.name} on the CPU: {error}')
        _write_json(json_path, {**result, 'engine': None, 'reason': str(error)})
        raise typer.Exit(1) from error
    _say(f'A node runs {loaded.name} on {result["device"]} in {result["precision"]}.')
    _write_json(json_path, result)


def describe(notes: dict[str, Any]) -> Iterator[str]:
    """Yield lines about a built engine: precision, gate, remarks, size."""
    for report in notes['gate']:
        verdict = 'passed' if report['passed'] else 'did not pass'
        yield f'{report["precision"]} {verdict} on {report["frames"]} frames ({report["method"]})'
        for finding in report['findings']:
            value = 'no number' if finding['value'] is None else f'{finding["value"]:.4g}'
            mark = 'ok' if finding['passed'] else 'FAILED'
            limit = f'limit {finding["limit"]:g} {mark}'
            yield f'  {finding["head"]}: {finding["figure"]} {value}, {limit}'
    yield from notes['remarks']
    yield (
        f'computes in {notes["precision"]} ({notes["asked_for"]} was asked for), '
        f'{notes["engine_bytes"] / 1e6:.1f} MB, built in {notes["build_s"]:.1f} s'
    )


def read_pictures(path: Path | None, size: tuple[int, int], count: int) -> list[np.ndarray]:
    """Return evenly spread frames of a recording as the network gets them.

    Args:
        path: bag or folder; the shipped sample bag when None.
        size: (height, width) of the network.
        count: how many at most.

    Raises:
        ValueError: no recording, or no frame in it that can be read.
    """
    import numpy as np

    from mtl_perception.encodings import picture_size
    from mtl_perception.letterbox import Letterbox, fit
    from mtl_perception.recordings import open_recording
    from mtl_perception.shared import shared_folder

    recording = open_recording(path or shared_folder('samples') / 'room')
    every = max(1, len(recording) // count)
    letterbox = Letterbox()
    pictures: list[np.ndarray] = []
    for index, recorded in enumerate(recording.frames()):
        if index % every:
            continue
        frame = recorded.frame
        image = np.empty((1, *size, 3), np.uint8)
        letterbox.place(frame, fit(picture_size(frame.pixels, frame.encoding), size), image, 0)
        pictures.append(image[0])
        if len(pictures) == count:
            break
    if not pictures:
        raise ValueError(f'{path} holds no frame that can be read: give another recording')
    return pictures


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    try:
        pairs = [part.lower().split('x') for part in text.split(',') if part]
        return tuple((int(height), int(width)) for height, width in pairs)
    except ValueError:
        raise ValueError(f'size {text!r}: expected HEIGHTxWIDTH, e.g. 288x384') from None


def _named(precision: str) -> str:
    """Return the name that engines have for a precision of the command line."""
    from mtl_perception.engines.prepared import COMMAND_NAMES

    return {command: name for name, command in COMMAND_NAMES.items()}.get(precision, precision)


def _batch(text: str) -> tuple[int, int, int]:
    try:
        least, likely, most = (int(part) for part in text.split(':'))
    except ValueError:
        raise ValueError(f'batch {text!r}: expected MIN:OPT:MAX, e.g. 1:1:4') from None
    return least, likely, most


def _no_cpu() -> Any:
    from mtl_perception.engines import EngineError

    raise EngineError('the GPU failed three times in a row: run `make gpu-check`')


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _write_json(path: Path | None, content: dict[str, Any]) -> None:
    if path is None:
        return
    text = json.dumps(content, indent=2)
    if str(path) == '-':
        typer.echo(text)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + '\n', encoding='utf-8')


@contextmanager
def _progress(title: str) -> Iterator[Callable[[str, int, int], bool]]:
    """Show the builder's phases as bars; Ctrl-C cancels the build at its next step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        TextColumn('{task.percentage:>3.0f} %'),
        TimeElapsedColumn(),
    )
    lock = threading.Lock()
    tasks: dict[str, Any] = {}
    cancelled = threading.Event()

    def stop(*_: object) -> None:
        """Note it: TensorRT swallows what is raised in its callbacks."""
        cancelled.set()
        raise KeyboardInterrupt

    usual = signal.signal(signal.SIGINT, stop)
    with (
        ExitStack() as stack,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        stack.callback(signal.signal, signal.SIGINT, usual)
        progress.add_task(title, total=None)

        def report(phase: str, step: int, steps: int) -> bool:
            with lock:
                if phase not in tasks:
                    tasks[phase] = progress.add_task(phase, total=max(steps, 1))
                if step >= steps:
                    progress.remove_task(tasks.pop(phase))
                else:
                    progress.update(tasks[phase], completed=step)
            return not cancelled.is_set()

        try:
            yield report
        except Exception:
            if not cancelled.is_set():
                raise
    if cancelled.is_set():
        raise KeyboardInterrupt
