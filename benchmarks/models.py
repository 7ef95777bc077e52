"""Measure model bundles: quality, focal lengths, precision, speed; write their cards.

python benchmarks/models.py --data $MTL_DATA/nyuv2_288x384:devtest --data runs/worlds:test

writes `out/bench/models.json`, a model card `README.md` into each bundle, and a sheet of pictures
of the last data set. Every figure goes through the Perceiver, as on a robot; quality is measured
in float32, and once more in the precision that the engine takes by itself.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from machine import describe_machine, write_result
from model_card import write_card
from rich.console import Console
from rich.progress import track

from mtl_perception.bundle import MetricsSpec, ModelBundle
from mtl_perception.datasets import PictureFolder
from mtl_perception.engines import open_engine
from mtl_perception.evaluation.run import Settings, combine, evaluate_recording
from mtl_perception.frames import CameraFrame, Intrinsics
from mtl_perception.perceiver import Perceiver
from mtl_perception.views import (
    colorize_depth,
    colorize_labels,
    colorize_normals,
    depth_scale,
    draw_boxes,
    legend,
    strip,
)
from mtl_training.config import data_folder

MODELS = Path(__file__).resolve().parents[1] / 'models'
FOCAL_LENGTHS_PX = (250.0, 311.31, 400.0, 500.0, 600.0)
REFERENCE_PX = 311.31
WIDTH, HEIGHT = 384, 288
# Seeds of rooms that neither trainings nor the test pictures use.
FIRST_ROOM = 6_000_000
TIMED = 100
SHOWN_RANKS = (0.9, 0.6, 0.3)
SHOWN_SCORE = 0.3
DEPTH_RANGE_M = (0.5, 8.0)


def shipped() -> list[str]:
    """Return the folders of this repository's bundles."""
    return sorted(str(manifest.parent) for manifest in MODELS.glob('*/bundle.json'))


def measure_quality(bundle: ModelBundle, folder: Path, split: str, precision: str) -> Any:
    """Evaluate all frames of a data set; return the JSON document of `evaluate`."""
    settings = Settings(str(bundle.path), precision=precision, split=split, gallery=False)
    perceiver = settings.open()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            shard = evaluate_recording(folder, settings, perceiver, Path(scratch) / 'one.shard')
            evaluation = combine([shard], bundle)
            return {**evaluation.results, 'per_frame': list(evaluation.timeless_frames())}
    finally:
        perceiver.engine.close()


def stated_figures(bundle: ModelBundle, quality: dict[str, Any]) -> list[MetricsSpec]:
    """Return what the manifest states."""
    return [
        MetricsSpec(
            data=key.replace(':', '/'),
            frames=document['frames'],
            command=f'mtl-perception evaluate {key.replace(":", " --split ")} '
            f'--bundle {bundle.name} --json -',
            figures={
                # Curves belong into reports.
                task: {name: value for name, value in document[task].items() if name != 'curves'}
                for task in bundle.manifest.tasks
                if task in document and _was_judged(document[task])
            },
        )
        for key, document in quality.items()
    ]


def _was_judged(figures: dict[str, Any]) -> bool:
    """Tell whether the data set knows the truth of a task."""
    return figures.get('ap', 0) is not None and figures.get('accuracy', 0) is not None


def views_of_rooms(rooms: int) -> Iterator[dict[float, tuple[np.ndarray, np.ndarray]]]:
    """Yield one view per room: picture and true depth by focal length."""
    from mtl_training.worlds import Sensor, World, camera_pose

    random = np.random.default_rng(FIRST_ROOM)
    for seed in range(FIRST_ROOM, FIRST_ROOM + rooms):
        world = World(seed)
        try:
            clearance = world.clearance(0.7, 1.3)
            room = max(world.rooms, key=lambda room: room.area)
            # From near a corner towards the middle, so that every focal length sees the room.
            places = [
                (x, y)
                for x in np.linspace(room.x0 + 0.4, room.x1 - 0.4, 7)
                for y in np.linspace(room.y0 + 0.4, room.y1 - 0.4, 7)
                if clearance[world.cell(x, y)] > 0.3
            ]
            if not places:
                continue
            x, y = max(places, key=lambda p: float(np.hypot(*(room.center - p))))
            toward = room.center - (x, y)
            yaw = float(np.arctan2(toward[1], toward[0]) + random.normal(0, 0.2))
            pose = camera_pose(x, y, 1.0, yaw, -0.12)
            views = {}
            for focal in FOCAL_LENGTHS_PX:
                view = world.render(pose, camera_of(focal))
                rgb = Sensor().develop(view.radiance, np.random.default_rng(seed))
                views[focal] = (rgb, view.depth)
            yield views
        finally:
            world.close()


def named_folder(folder: str, split: str) -> str:
    """Return FOLDER:SPLIT as everybody can type it."""
    path, home = Path(folder).resolve(), data_folder().resolve()
    if path.is_relative_to(home):
        return f'$MTL_DATA/{path.relative_to(home)}:{split}'
    return f'{folder}:{split}'


def camera_of(focal_px: float) -> Intrinsics:
    """Return a camera without an offset of its principal point."""
    return Intrinsics(WIDTH, HEIGHT, focal_px, focal_px, (WIDTH - 1) / 2, (HEIGHT - 1) / 2)


def measure_focal_lengths(bundle: ModelBundle, rooms: list[Any]) -> dict[str, Any]:
    """Return median(predicted / true) of the same rooms at each focal length.

    `relative` is that divided by the median at the focal length of training.
    """
    perceiver = Perceiver(open_engine(bundle, precision='float32'), bundle)
    ratios: dict[float, list[np.ndarray]] = {focal: [] for focal in FOCAL_LENGTHS_PX}
    for views in rooms:
        for focal, (rgb, depth) in views.items():
            predicted = perceiver.perceive(CameraFrame(rgb, 'rgb8', camera_of(focal))).depth
            valid = np.isfinite(depth) & (depth > 0)
            ratios[focal].append((predicted[valid] / depth[valid])[::7])
    perceiver.engine.close()
    medians = {focal: float(np.median(np.concatenate(r))) for focal, r in ratios.items()}
    return {
        'rooms': len(rooms),
        'median': {f'{focal:g}': round(value, 4) for focal, value in medians.items()},
        'relative': {
            f'{focal:g}': round(value / medians[REFERENCE_PX], 4)
            for focal, value in medians.items()
        },
    }


def measure_speed(bundles: list[ModelBundle]) -> dict[str, Any]:
    """Return engine times of one picture, the bundles by turns."""
    engines = {bundle.name: open_engine(bundle) for bundle in bundles}
    durations: dict[str, list[float]] = {name: [] for name in engines}
    random = np.random.default_rng(0)
    for turn in range(TIMED + 5):
        for bundle in bundles:
            picture = engines[bundle.name].input_buffer(1, bundle.input_size)
            picture[:] = random.integers(0, 256, picture.shape, np.uint8)
            before = time.perf_counter()
            engines[bundle.name].infer(picture)
            if turn >= 5:
                durations[bundle.name].append(1e3 * (time.perf_counter() - before))
    result = {}
    for name, engine in engines.items():
        p50, p95 = np.percentile(durations[name], (50, 95))
        result[name] = {
            'engine': engine.name,
            'precision': engine.precision,
            'p50_ms': round(float(p50), 2),
            'p95_ms': round(float(p95), 2),
        }
        engine.close()
    return result


def draw_sheet(bundles: list[ModelBundle], folder: Path, split: str, frames: Any) -> np.ndarray:
    """Draw truth and predictions of a good, a middling and a poor frame of the first bundle."""
    data = PictureFolder(folder, split)
    ranked = sorted(frames, key=lambda frame: frame['segmentation']['pixacc'])
    ids: list[str] = []
    for rank in SHOWN_RANKS:
        # Frames of one room have names that differ in their last part only.
        shown_rooms = {name.rpartition('_')[0] or name for name in ids}
        poorer = [frame['id'] for frame in ranked[round(rank * (len(ranked) - 1)) :: -1]]
        ids += [n for n in poorer if (n.rpartition('_')[0] or n) not in shown_rooms][:1]
    classes = bundles[0].classes
    perceivers = [Perceiver(open_engine(bundle), bundle) for bundle in bundles]
    rows = []
    for name in ids:
        frame = data.read(data.ids.index(name))
        shown = [('truth', frame.rgb, frame.label, frame.depth, frame.normal)]
        for perceiver in perceivers:
            found = perceiver.perceive(CameraFrame(frame.rgb, 'rgb8', frame.intrinsics))
            camera = frame.rgb.copy()
            if found.boxes is not None:
                draw_boxes(
                    camera,
                    found.boxes,
                    found.box_labels,
                    found.box_scores,
                    perceiver.bundle.box_classes,
                    least_score=SHOWN_SCORE,
                )
            shown.append((perceiver.bundle.name, camera, found.label, found.depth, found.normal))
        for title, camera, label, depth, normal in shown:
            row = strip(
                _titled(camera, title),
                colorize_labels(label, classes),
                colorize_depth(depth, *DEPTH_RANGE_M),
                colorize_normals(normal),
            )
            rows += [row, np.full((4, row.shape[1], 3), 255, np.uint8)]
        rows.append(np.full((12, rows[0].shape[1], 3), 255, np.uint8))
    for perceiver in perceivers:
        perceiver.engine.close()
    sheet = np.vstack(rows[:-2])
    height = sheet.shape[0]
    side = np.vstack(
        [
            _padded(legend(classes, 2 * HEIGHT), height // 2),
            _padded(depth_scale(*DEPTH_RANGE_M, 2 * HEIGHT), height - height // 2),
        ]
    )
    return np.hstack([sheet, side])


def _titled(rgb: np.ndarray, title: str) -> np.ndarray:
    picture = rgb.copy()
    cv2.rectangle(picture, (0, 0), (12 + 11 * len(title), 26), (255, 255, 255), cv2.FILLED)
    cv2.putText(picture, title, (6, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (20, 20, 20), 1, 16)
    return picture


def _padded(picture: np.ndarray, height: int) -> np.ndarray:
    result = np.full((height, 150, 3), 255, np.uint8)
    rows, columns = min(height, picture.shape[0]), min(150, picture.shape[1])
    result[:rows, :columns] = picture[:rows, :columns]
    return result


def main(
    bundle: Annotated[
        list[str] | None, typer.Option(help='Bundle; repeatable. All shipped ones by default.')
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help='FOLDER:SPLIT to measure on; repeatable.')
    ] = None,
    rooms: Annotated[int, typer.Option(help='Of the focal length check.')] = 24,
    json: Annotated[Path, typer.Option(help='Result.')] = Path('out/bench/models.json'),
    sheet: Annotated[Path, typer.Option(help='Sheet of pictures.')] = Path('out/bench/models.jpg'),
    cards: Annotated[
        bool, typer.Option(help='Write figures and README.md into each bundle.')
    ] = True,
) -> None:
    """Measure everything and write the result."""
    console = Console()
    machine = describe_machine()
    bundles = [ModelBundle.load(name) for name in bundle or shipped()]
    dense = [one for one in bundles if {'segmentation', 'depth'} <= set(one.manifest.tasks)]
    sources = [tuple(text.rsplit(':', 1)) for text in data or ()]
    if cards and not sources:
        raise typer.BadParameter('a card states figures: give --data, or --no-cards')
    result: dict[str, Any] = {
        'machine': machine,
        'data': [named_folder(folder, split) for folder, split in sources],
        'speed': measure_speed(bundles),
        'bundles': {},
    }
    seen = list(track(views_of_rooms(rooms), 'rooms', total=rooms, console=console))
    for one in bundles:
        figures: dict[str, Any] = {'quality': {}, 'own_precision': {}}
        if one in dense:
            figures['focal_lengths'] = measure_focal_lengths(one, seen)
        for folder, split in sources:
            key = f'{Path(folder).name}:{split}'
            with console.status(f'{one.name} on {key}'):
                exact = measure_quality(one, Path(folder), split, 'float32')
                own = measure_quality(one, Path(folder), split, 'auto')
            figures['quality'][key] = exact
            figures['own_precision'][key] = {
                task: own[task] for task in one.manifest.tasks if task in own
            } | {'engine': own['engine']}
        result['bundles'][one.name] = figures
    if sources and dense:
        folder, split = sources[-1]
        frames = result['bundles'][dense[0].name]['quality'][f'{Path(folder).name}:{split}']
        picture = draw_sheet(dense, Path(folder), split, frames['per_frame'])
        sheet.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(sheet), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    for figures in result['bundles'].values():
        for document in figures['quality'].values():
            del document['per_frame']
    write_result(json, result)
    for one in bundles:
        if cards:
            one.state(stated_figures(one, result['bundles'][one.name]['quality']))
        card = write_card(one, result)
        if cards:
            (one.path / 'README.md').write_text(card)
        console.print(card)


if __name__ == '__main__':
    typer.run(main)
