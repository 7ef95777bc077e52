"""The frames of a run: what trains, and what is held out to judge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console

from mtl_perception.bundle import nyu13_classes
from mtl_training.config import HeldOutSettings, NetworkSettings, TrainingConfig
from mtl_training.datasets.arrays import TRUTH_OF_TASK, DatasetError
from mtl_training.datasets.mixtures import Frames, FrameSubset, FrameUnion, held_out_blocks
from mtl_training.datasets.sources import (
    open_source,
    refuse_shared_pictures,
    refuse_strange_names,
)
from mtl_training.datasets.vocabulary import Vocabulary
from mtl_training.processes import Processes


@dataclass(frozen=True)
class TrainingData:
    """Frames to train on, by source, and frames that choose the checkpoint."""

    train: list[FrameSubset]
    held_out: Frames


def vocabulary_of(settings: NetworkSettings) -> Vocabulary:
    """Return the names that a network uses; NYUv2-13's where it has 13 classes without names."""
    classes = settings.classes
    if not classes and settings.num_classes == len(nyu13_classes()):
        classes = tuple(spec.name for spec in nyu13_classes())
    return Vocabulary(classes, settings.num_classes, settings.box_classes, settings.attributes)


def needs_annotations(tasks: Iterable[str]) -> bool:
    """Say whether boxes or attributes of pictures are needed."""
    return not {'detection', 'classification'}.isdisjoint(tasks)


def open_data(config: TrainingConfig, console: Console | None = None) -> TrainingData:
    """Open every source and cut the held-out blocks out of those that judge.

    Raises:
        DatasetError: A source is missing or damaged, its names are not the network's, or no frame
            has truth for one of the tasks.
    """
    vocabulary = vocabulary_of(config.network)
    sets = {
        source.name: open_source(
            source,
            config.data.cache,
            console,
            vocabulary=vocabulary,
            annotations=needs_annotations(config.tasks),
        )
        for source in config.data.every_source
    }
    refuse_strange_names(sets, config.tasks)
    judges = {settings.name: settings for settings in config.data.judges}
    train, held_out = [], []
    for source in config.data.every_source:
        arrays = sets[source.name]
        chosen: tuple[int, ...] = ()
        if source.name in judges:
            chosen = _judging(judges[source.name], arrays.ids)
            held_out.append(FrameSubset(source.name, arrays, chosen))
        if source in config.data.sources:
            kept = tuple(sorted(set(range(len(arrays))) - set(chosen)))
            train.append(FrameSubset(source.name, arrays, kept))
    refuse_shared_pictures(train, held_out)
    _refuse_tasks_without_truth(config, train, 'data.sources')
    _refuse_tasks_without_truth(config, held_out, 'data.held_out')
    return TrainingData(train, held_out[0] if len(held_out) == 1 else FrameUnion(tuple(held_out)))


def _judging(settings: HeldOutSettings, ids: list[str]) -> tuple[int, ...]:
    """Return the indices of the frames that judge."""
    if isinstance(settings.source, str):
        return held_out_blocks(ids, settings.blocks, settings.frames_per_block)
    return tuple(range(len(ids)))


def _refuse_tasks_without_truth(
    config: TrainingConfig, subsets: list[FrameSubset], place: str
) -> None:
    known = {truth for subset in subsets for truth in subset.arrays.truths}
    lacking = [task for task in config.tasks if TRUTH_OF_TASK[task] not in known]
    if lacking:
        raise DatasetError(
            f'no frame of {place} ({", ".join(subset.name for subset in subsets)}) has truth for '
            f'{", ".join(lacking)}: name a source that has, or take the task out'
        )


def open_together(
    config: TrainingConfig, console: Console | None, processes: Processes
) -> TrainingData:
    """Open the data; only the leading process prepares them."""
    if processes.leads:
        data = open_data(config, console)
        processes.wait()
        return data
    processes.wait()
    return open_data(config)
