"""`make demo`: the shipped recording goes through the real node; the result is worth a look."""

from __future__ import annotations

import base64
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import jinja2
import numpy as np
import typer
from rclpy.serialization import deserialize_message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from mtl_perception.bundle import ModelBundle
from mtl_perception.encodings import to_rgb
from mtl_perception.evaluation.command import Outputs, evaluate
from mtl_perception.evaluation.run import Settings
from mtl_perception.ros.conversions import frame_from_compressed, frame_from_image
from mtl_perception.ros.live import LiveFrame, LiveResult, replay_live
from mtl_perception.ros.player import PublishedPicture
from mtl_perception.ros.sources import COMPRESSED_IMAGE, open_source
from mtl_perception.shared import shared_folder
from mtl_perception.showcase import Moment, Showcase, depth_range, write_video

STRIP_ROWS = 4
# Task -> figure -> its name and format for people.
ACCURACY = {
    'segmentation': {'miou': ('mIoU', '.3f'), 'pixacc': ('pixel accuracy', '.3f')},
    'depth': {
        'abs_err': ('depth, mean error', '.2f m'),
        'rel_err': ('depth, relative error', '.3f'),
    },
    'normals': {
        'mean': ('normals, mean error', '.1f°'),
        'median': ('normals, median error', '.1f°'),
    },
    'detection': {'ap50': ('boxes, AP50', '.3f')},
    'classification': {'accuracy': ('classes, accuracy', '.3f')},
}
MAX_PIXELS = 64_000_000
TEMPLATE = Path(__file__).parent / 'demo.html.j2'

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Predictions:
    """Keeps the outputs of a replay, packed to a third of their size, by recorded stamp."""

    def __init__(self) -> None:
        self._packed: dict[int, dict[str, np.ndarray]] = {}

    def add(self, frame: LiveFrame) -> None:
        """Keep one picture's outputs."""
        packed = {}
        for name, array in frame.arrays.items():
            if name == 'depth':
                packed[name] = array.astype(np.float16)
            elif name == 'normal':
                packed[name] = np.rint(array * 127).astype(np.int8)
            else:
                packed[name] = array
        self._packed[frame.recorded.recorded_stamp_ns] = packed

    def __len__(self) -> int:
        return len(self._packed)

    def depth_range(self) -> tuple[float, float]:
        """Return the ends of the depth scale, in metres."""
        return depth_range(one['depth'] for one in self._packed.values() if 'depth' in one)

    def moments(
        self, path: Path, wanted: set[int] | None = None, **folder: Any
    ) -> Iterator[Moment]:
        """Yield the recorded pictures that came out, in order, with their outputs.

        Args:
            path: the recording that was played.
            wanted: numbers of the pictures among those that came out; None takes all.
            folder: options of `open_source`.
        """
        source = open_source(path, **folder)
        index = 0
        for message in source.messages():
            if message.topic.name != source.cameras[0]:
                continue
            picture = deserialize_message(message.data, message.topic.message_class)
            compressed = message.topic.type == COMPRESSED_IMAGE
            stamp = picture.header.stamp.sec * 1_000_000_000 + picture.header.stamp.nanosec
            if stamp not in self._packed:
                continue
            if wanted is None or index in wanted:
                read = frame_from_compressed if compressed else frame_from_image
                frame = read(picture, MAX_PIXELS)
                yield Moment(to_rgb(frame.pixels, frame.encoding), **self._packed[stamp])
            index += 1


def run_demo(
    path: Path,
    bundle: str,
    out: Path,
    *,
    rate: float = 1.0,
    in_step: bool = False,
    parameters: Mapping[str, object] | None = None,
    console: Console | None = None,
    evaluation: bool = True,
    **folder: Any,
) -> LiveResult:
    """Play a recording through the node and write strip, video, report and summary to `out`.

    Args:
        path: a recording or a folder of pictures.
        bundle: folder or name of the model bundle.
        out: made where it does not exist; its earlier results are replaced.
        rate: speed.
        in_step: see `replay_live`.
        parameters: of the node.
        console: for progress.
        evaluation: also compare every picture with the recording's ground truth, as
            `mtl-perception evaluate` does.
        folder: `split`, `limit` and `fps`, for folders.

    Raises:
        SourceError, BundleError, LiveError: one sentence about what is wrong.
    """
    console = console or Console()
    out.mkdir(parents=True, exist_ok=True)
    loaded = ModelBundle.load(bundle)
    total = _count_pictures(path, folder)
    predictions = Predictions()
    with _progress(console) as progress:
        task = progress.add_task('through the node', total=total)

        def played(_: PublishedPicture) -> None:
            progress.advance(task)

        result = replay_live(
            path,
            loaded.path,
            rate=rate,
            in_step=in_step,
            parameters=parameters,
            on_frame=predictions.add,
            on_picture=played,
            **folder,
        )
        video = strip = None
        if len(predictions):
            classes = loaded.classes if 'segmentation' in loaded.manifest.tasks else []
            showcase = Showcase(classes, *predictions.depth_range())
            strip = _write_strip(out / 'strip.png', showcase, predictions, path, folder)
            task = progress.add_task('drawing', total=len(predictions))
            squares = (showcase.square(one) for one in predictions.moments(path, **folder))
            video = write_video(
                out / 'demo', squares, _video_fps(path, folder), lambda: progress.advance(task)
            )
    summary = result.summary() | {
        'recording': path.name,
        'machine': machine(),
        'video': video.name if video else None,
    }
    _write_results(out, summary, loaded, strip, video)
    if evaluation:
        with console.status('comparing with the ground truth'):
            summary['accuracy'] = _evaluate(path, loaded, out, summary, folder)
        _write_results(out, summary, loaded, strip, video)
    return result


def _write_results(
    out: Path,
    summary: Mapping[str, Any],
    bundle: ModelBundle,
    strip: Path | None,
    video: Path | None,
) -> None:
    (out / 'summary.json').write_text(json.dumps(summary, indent=2) + '\n')
    write_page(out / 'report.html', summary, bundle, strip, video)


def _evaluate(
    path: Path,
    bundle: ModelBundle,
    out: Path,
    live: Mapping[str, Any],
    folder: Mapping[str, Any],
) -> dict[str, Any]:
    """Write evaluation.html and evaluation.json; return the figures that sum them up."""
    target = out / 'evaluation.json'
    settings = Settings(
        bundle=str(bundle.path), split=folder.get('split'), limit=folder.get('limit', 0)
    )
    outputs = Outputs(json=str(target), report=out / 'evaluation.html', quiet=True)
    evaluate(path, settings, outputs, live=live)
    results = json.loads(target.read_text())
    accuracy = {}
    for task, names in ACCURACY.items():
        found = {name: (results.get(task) or {}).get(name) for name in names}
        if any(value is not None for value in found.values()):
            accuracy[task] = found
    return accuracy


def machine() -> dict[str, str | int]:
    """Name what the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        model = next(
            (x.split(':', 1)[1].strip() for x in lines if x.startswith('model name')), model
        )
    return {
        'cpu': model,
        'cores': len(os.sched_getaffinity(0)),
        'python': platform.python_version(),
    }


def write_page(
    path: Path,
    summary: Mapping[str, Any],
    bundle: ModelBundle,
    strip: Path | None,
    video: Path | None,
) -> None:
    """Write one self-contained page with the figures, the strip and the video."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text()).render(
        summary=summary,
        figures=figures(summary),
        manifest=bundle.manifest,
        strip=_data_url(strip, 'image/png'),
        video=_data_url(video, 'video/mp4' if video and video.suffix == '.mp4' else 'image/webp'),
    )
    path.write_text(page)


def print_table(summary: Mapping[str, Any], console: Console) -> None:
    """Print the figures for people."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    for name, value in figures(summary):
        table.add_row(name, value)
    console.print(table)


def figures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the summary as names and values with units."""
    latency = summary['latency_ms']
    reasons = summary['dropped_by_reason']
    lost = ', '.join(f'{count} {reason.replace("_", " ")}' for reason, count in reasons.items())
    rows = [
        ('frames in', str(summary['frames_in'])),
        ('frames out', str(summary['frames_out'])),
        ('dropped', f'{summary["dropped"]} ({lost})' if lost else '0'),
        ('rate', f'{summary["fps"]:.1f} fps'),
    ]
    if latency['p50'] is not None:
        spread = ' / '.join(f'{latency[rank]:.1f}' for rank in ('p50', 'p95', 'p99'))
        rows.append(('stamp to publish, p50 / p95 / p99', f'{spread} ms'))
        rows.append(('of it in the engine, p50', f'{summary["infer_ms"]["p50"]:.1f} ms'))
    rows += [
        ('engine', f'{summary["engine"]} {summary["precision"]}'.strip() or 'unknown'),
        ('bundle', summary['bundle']),
        ("node's memory", f'{summary["memory_mib"]:.0f} MiB'),
    ]
    for task, found in summary.get('accuracy', {}).items():
        for name, value in found.items():
            title, form = ACCURACY[task][name]
            if value is not None:
                digits, unit = form[:3], form[3:]
                rows.append((title, f'{value:{digits}}{unit}'))
    return rows


def _count_pictures(path: Path, folder: Mapping[str, Any]) -> int:
    source = open_source(path, **folder)
    return sum(1 for one in source.messages() if one.topic.name == source.cameras[0])


def _video_fps(path: Path, folder: Mapping[str, Any]) -> float:
    source = open_source(path, **folder)
    count = _count_pictures(path, folder)
    duration_s = source.duration_ns * 1e-9
    return min(60.0, max(1.0, (count - 1) / duration_s)) if duration_s > 0 else 10.0


def _write_strip(
    path: Path,
    showcase: Showcase,
    predictions: Predictions,
    recording: Path,
    folder: Mapping[str, Any],
) -> Path:
    """Write moments that are evenly spread over the recording, its ends left out."""
    count = len(predictions)
    chosen = {int((row + 0.5) * count / STRIP_ROWS) for row in range(STRIP_ROWS)}
    moments = list(predictions.moments(recording, chosen, **folder))
    cv2.imwrite(str(path), cv2.cvtColor(showcase.strip(moments), cv2.COLOR_RGB2BGR))
    return path


def _data_url(path: Path | None, kind: str) -> str | None:
    if path is None:
        return None
    return f'data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}'


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), console=console
    )


@app.command()
def main(
    out: Annotated[Path, typer.Option(help='Folder for the results.')] = Path('out/demo'),
    recording: Annotated[
        Path | None, typer.Option(help='Recording or folder to play; default: samples/room.')
    ] = None,
    bundle: Annotated[str, typer.Option(help='Folder or name of the model bundle.')] = 'pvt_v2_b0',
    rate: Annotated[float, typer.Option(help='2 plays twice as fast as recorded.')] = 1.0,
    in_step: Annotated[
        bool,
        typer.Option('--in-step', help='Wait for each picture: a slow machine drops none then.'),
    ] = False,
    engine: Annotated[
        Literal['auto', 'openvino', 'onnxruntime', 'tensorrt', 'tensorrt_rtx'],
        typer.Option(help='Inference engine.'),
    ] = 'auto',
    split: Annotated[str | None, typer.Option(help='Split of a data set.')] = None,
    limit: Annotated[int, typer.Option(min=0, help='Pictures to play; 0: all.')] = 0,
) -> None:
    """Play a recording through the node over DDS and show what came out."""
    console = Console()
    path = recording or shared_folder('samples') / 'room'
    console.print(f'Playing {path.name} through the node with the bundle {bundle}')
    try:
        run_demo(
            path,
            bundle,
            out,
            rate=rate,
            in_step=in_step,
            parameters={'engine': engine},
            console=console,
            split=split,
            limit=limit,
        )
    except (ValueError, RuntimeError) as error:
        typer.echo(f'demo: {error}', err=True)
        raise typer.Exit(2) from error
    print_table(json.loads((out / 'summary.json').read_text()), console)
    console.print(f'Look at {out}/report.html', highlight=False)


if __name__ == '__main__':
    app()
