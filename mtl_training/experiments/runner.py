"""Run a study: train and measure what is missing, then write its tables and pages."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console

from mtl_perception.views import (
    colorize_depth,
    colorize_labels,
    colorize_normals,
    describe_classes,
    draw_boxes,
    draw_lines,
    strip,
)
from mtl_training.config import ConfigError, SourceSettings, TrainingConfig, parse_config
from mtl_training.data import needs_annotations, vocabulary_of
from mtl_training.datasets.arrays import PreparedArrays
from mtl_training.datasets.mixtures import FrameSubset
from mtl_training.datasets.sources import open_source, refuse_shared_pictures
from mtl_training.evaluate import predictions
from mtl_training.experiments.figures import FrameFigures, collect, delta_m, paired_bootstrap
from mtl_training.experiments.report import write_report
from mtl_training.experiments.study import (
    RowSettings,
    StudySettings,
    measured_source,
    row_config,
)
from mtl_training.export import coloured, named_classes
from mtl_training.networks.cost import count_macs, count_parameters
from mtl_training.processes import refuse_several_processes
from mtl_training.run_state import described, differences, load_network
from mtl_training.trainer import train

PICTURED_FRAMES = 3
NEAR_M, FAR_M = 0.7, 10.0
SHOWN_SCORE = 0.3
START = 'start.json'


def run_study(
    study: StudySettings, out: Path, scale: str, console: Console | None = None
) -> dict[str, Any]:
    """Run every row with every seed and return the study's results.

    What is already there is skipped, what was interrupted is resumed, if it is of the same
    settings; the tables are written after every training, so a long study can be watched.

    Args:
        study: what to run.
        out: results.json, tables, the page and a folder per training go here.
        scale: 'full', or 'quick' for a run through everything in minutes.
        console: for progress; None is silent.

    Raises:
        ConfigError: torchrun started it, or a training in `out` is not of the configuration that
            the study gives its row now.
    """
    refuse_several_processes('experiment')
    source = measured_source(study, scale)
    for row in study.rows:
        for seed in study.seeds:
            config = row_config(study, row, seed, scale)
            _refuse_another_training(out / row.name / str(seed), config, row.start_from, source)
    out.mkdir(parents=True, exist_ok=True)
    first = row_config(study, study.rows[0], study.seeds[0], scale)
    names = vocabulary_of(first.network)
    every_task = {
        task for row in study.rows for task in row_config(study, row, study.seeds[0], scale).tasks
    }

    def opened(entry: SourceSettings) -> PreparedArrays:
        return open_source(
            entry,
            first.data.cache,
            console,
            vocabulary=names,
            annotations=needs_annotations(every_task),
        )

    def whole(name: str, arrays: PreparedArrays) -> FrameSubset:
        return FrameSubset(name, arrays, tuple(range(len(arrays))))

    arrays = opened(source)
    frames = whole(source.name, arrays)
    for row in study.rows:
        config = row_config(study, row, study.seeds[0], scale)
        if vocabulary_of(config.network) != names:
            raise ConfigError(
                f'{study.name}: row {row.name} has other classes than {study.rows[0].name}: rows '
                'are measured on one truth, so give all of them the same classes'
            )
        trained = (whole(f'train:{one.name}', opened(one)) for one in config.data.every_source)
        refuse_shared_pictures(trained, [whole(f'measure:{source.name}', arrays)])
    for row in study.rows:
        for seed in study.seeds:
            config = row_config(study, row, seed, scale)
            folder = out / row.name / str(seed)
            if not (folder / 'measured.json').is_file():
                _train_and_measure(config, row.start_from, source, folder, frames, console)
        results = summarise(study, out, scale, len(frames))
        write_report(study, results, out)
    return results


def _refuse_another_training(
    folder: Path, config: TrainingConfig, start_from: str | None, source: SourceSettings
) -> None:
    """Raise ConfigError where `folder` holds a training or figures that are not of these settings.

    Half-done rows are judged by their checkpoint. A study compares its rows, so that their length
    may not change either.
    """
    stored: dict[str, Any] = {}
    for file in (folder / 'last.json', folder / 'measured.json', folder / START):
        if file.is_file():
            stored |= json.loads(file.read_text(encoding='utf-8'))
    different = []
    if 'config' in stored:
        different += differences(parse_config(stored['config'], str(folder)), config)
    if stored and stored.get('start_from') != start_from:
        different.append(('start_from', stored.get('start_from'), start_from))
    if 'measured_on' in stored:
        measured_on = SourceSettings.model_validate(stored['measured_on'])
        different += differences(measured_on, source, 'measure')
    if different:
        raise ConfigError(
            f'{folder} holds a training or figures of other settings than the study gives it now '
            f'({described(different)}): remove that folder to train it anew, or choose another '
            '--out'
        )


def _train_and_measure(
    config: TrainingConfig,
    start_from: str | None,
    source: SourceSettings,
    folder: Path,
    frames: FrameSubset,
    console: Console | None,
) -> None:
    finished = folder / 'result.json'
    if not (finished.is_file() and json.loads(finished.read_text())['finished']):
        resume = (folder / 'last.json').is_file()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / START).write_text(json.dumps({'start_from': start_from}), encoding='utf-8')
        start = None if resume or start_from is None else Path(start_from)
        result = train(config, folder, resume=resume, start_from=start, console=console)
        if not result['finished']:
            raise KeyboardInterrupt
    measured: dict[str, Any] = {
        'config': config.model_dump(mode='json'),
        'measured_on': source.model_dump(mode='json'),
    }
    for which in ('best', 'last'):
        network, _ = load_network(folder / f'{which}.json')
        per_frame, pictures = _measure(network, config, frames)
        per_frame.save(folder / f'{which}.npz')
        measured[which] = {
            name: float(value[0]) if np.isfinite(value[0]) else None
            for name, value in per_frame.compute().items()
        }
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f'frame{number}.png'), picture[..., ::-1])
    stage = config.schedule.stages[-1]
    measured['parameters'] = count_parameters(network)
    measured['gmacs'] = count_macs(network, (stage.height, stage.width)) / 1e9
    measured['torch_ms'] = _inference_ms(network, (stage.height, stage.width))
    (folder / 'measured.json').write_text(json.dumps(measured, indent=2), encoding='utf-8')


def _measure(
    network: torch.nn.Module, config: TrainingConfig, frames: FrameSubset
) -> tuple[FrameFigures, list[np.ndarray]]:
    pictures: list[np.ndarray] = []
    pictured = set(np.linspace(0, len(frames) - 1, PICTURED_FRAMES).astype(int).tolist())

    def pairs() -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        found = predictions(
            network,
            frames,
            focal_length=config.data.focal_length_px,
            precision='float32',
        )
        for index, (frame, pred, truth) in enumerate(found):
            if index in pictured:
                pictures.append(_picture(frame.image, pred, config))
            yield pred, truth

    settings = config.network
    figures = collect(
        pairs(), settings.num_classes, len(settings.box_classes), settings.attributes
    )
    return figures, pictures


def _picture(image: np.ndarray, pred: dict[str, np.ndarray], config: TrainingConfig) -> np.ndarray:
    """Return camera picture and predictions side by side, RGB."""
    camera = np.array(image)
    if 'boxes' in pred:
        draw_boxes(
            camera,
            *(pred[name] for name in ('boxes', 'box_labels', 'box_scores')),
            coloured(config.network.box_classes),
            least_score=SHOWN_SCORE,
        )
    if 'class_scores' in pred:
        draw_lines(camera, describe_classes(config.network.attributes, pred['class_scores']))
    panels = [camera]
    if 'label' in pred:
        panels.append(
            colorize_labels(pred['label'].astype(np.uint8), named_classes(config.network))
        )
    if 'depth' in pred:
        panels.append(colorize_depth(pred['depth'].astype(np.float32), NEAR_M, FAR_M))
    if 'normal' in pred:
        panels.append(colorize_normals(pred['normal'].astype(np.float32)))
    return strip(*panels)


@torch.inference_mode()
def _inference_ms(network: torch.nn.Module, size: tuple[int, int], repeats: int = 5) -> float:
    """Return the median time of one picture in torch, milliseconds."""
    image = torch.zeros((1, 3, *size), dtype=torch.uint8)
    durations = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        network(image)
        durations.append(1000 * (time.perf_counter() - start))
    return statistics.median(durations[1:])


def summarise(study: StudySettings, out: Path, scale: str, frames: int) -> dict[str, Any]:
    """Gather what has been measured so far: mean and deviation over seeds, gains, tests."""
    rows = [entry for row in study.rows if (entry := _summarise_row(study, row, out))]
    by_name = {entry['name']: entry for entry in rows}
    baselines = {
        task: {name: figure['mean'] for name, figure in by_name[row]['figures'].items()}
        for task, row in study.single_task.items()
        if row in by_name
    }
    for entry in rows:
        means = {name: figure['mean'] for name, figure in entry['figures'].items()}
        entry['delta_m'] = delta_m(means, baselines) if baselines else None
        entry['against'] = {}
        if study.compare_to in by_name and entry['name'] != study.compare_to:
            entry['against'] = _compare(study, out, study.compare_to, entry['name'])
    return {
        'study': study.name,
        'scale': scale,
        'measured_on': f'{study.measure.name}/{study.measure.split}',
        'frames': frames,
        'compare_to': study.compare_to,
        'rows': rows,
    }


def _summarise_row(study: StudySettings, row: RowSettings, out: Path) -> dict[str, Any] | None:
    runs = []
    for seed in study.seeds:
        folder = out / row.name / str(seed)
        if (folder / 'measured.json').is_file():
            runs.append(json.loads((folder / 'measured.json').read_text(encoding='utf-8')))
    if not runs:
        return None
    return {
        'name': row.name,
        'title': row.title,
        'seeds': len(runs),
        'parameters': runs[0]['parameters'],
        'gmacs': runs[0]['gmacs'],
        'torch_ms': statistics.median(run['torch_ms'] for run in runs),
        'figures': _over_seeds([run['best'] for run in runs]),
        'last': _over_seeds([run['last'] for run in runs]),
        'reference': row.reference,
    }


def _over_seeds(runs: list[dict[str, float | None]]) -> dict[str, dict[str, float]]:
    figures = {}
    for name in runs[0]:
        values = [run[name] for run in runs if run[name] is not None]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else 0.0
            figures[name] = {'mean': statistics.fmean(values), 'std': deviation}
    return figures


def _compare(study: StudySettings, out: Path, a: str, b: str) -> dict[str, Any]:
    def file(row: str, seed: int) -> Path:
        return out / row / str(seed) / 'best.npz'

    both = [seed for seed in study.seeds if file(a, seed).is_file() and file(b, seed).is_file()]
    pair = [[FrameFigures.load(file(row, seed)) for seed in both] for row in (a, b)]
    if not both:
        return {}
    return {
        name: {
            'difference': found.difference,
            'low': found.low,
            'high': found.high,
            'is_real': found.is_real,
        }
        for name, found in paired_bootstrap(*pair).items()
    }
