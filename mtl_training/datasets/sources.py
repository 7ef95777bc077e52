"""From a source named in a configuration to its prepared arrays, whatever the format."""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from mtl_perception.bundle import nyu13_classes
from mtl_perception.datasets import NUM_CLASSES
from mtl_training.config import SourceSettings
from mtl_training.datasets.arrays import TRUTH_OF_TASK, DatasetError, PreparedArrays
from mtl_training.datasets.findings import describe_findings
from mtl_training.datasets.mixtures import FrameSubset
from mtl_training.datasets.prepare import FrameReader, prepare
from mtl_training.datasets.vocabulary import Vocabulary, named

NAMED_PAIRS = 5
# Format: module of this package and class of its reader.
READERS = {
    'libmtl': ('libmtl', 'LibMtlFolder'),
    'nyuv2_mat': ('nyuv2_mat', 'NyuV2Mat'),
    'bdd100k': ('bdd100k', 'Bdd100k'),
    'cityscapes': ('cityscapes', 'Cityscapes'),
    'coco': ('coco', 'Coco'),
    'ade20k': ('ade20k', 'Ade20k'),
    'image_folder': ('image_folder', 'ImageFolder'),
    'office31': ('office31', 'Office31'),
}


def open_reader(source: SourceSettings) -> Path | FrameReader:
    """Return what `prepare` reads a source from.

    Raises:
        DatasetError: The data are missing, or the options do not fit the format.
    """
    path = source.location
    if source.format == 'pictures':
        return path
    options = dict(source.options)
    if source.format == 'libmtl':
        options = {'normal_axes': source.normal_axes, **options}
    refuse_strange_options(source.format, options)
    return reader_class(source.format)(path, source.split, **options)


def refuse_strange_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise DatasetError unless the reader of a format takes these options."""
    known = list(inspect.signature(reader_class(name)).parameters)[2:]
    if strangers := [option for option in options if option not in known]:
        raise DatasetError(
            f'the format {name} has no option {", ".join(strangers)}: it has '
            f'{", ".join(known) or "none"}'
        )


def reader_class(name: str) -> type:
    """Return the reader of a format of `READERS`.

    Raises:
        DatasetError: There is no such format.
    """
    if name not in READERS:
        known = ', '.join(['pictures', *READERS])
        raise DatasetError(f'there is no format {name!r}: expected one of {known}')
    module, reader = READERS[name]
    return getattr(importlib.import_module(f'mtl_training.datasets.{module}'), reader)


def open_source(
    source: SourceSettings,
    cache: str | Path,
    console: Console | None = None,
    *,
    vocabulary: Vocabulary | None = None,
    annotations: bool = False,
) -> PreparedArrays:
    """Return the arrays of one source, preparing them first where the cache has none.

    Args:
        source: the settings.
        cache: folder of prepared arrays.
        console: for progress and for what is left out; None is silent.
        vocabulary: names that the frames shall use; the source's own by default.
        annotations: read boxes and attributes of picture folders, too.

    Raises:
        DatasetError: The source is missing or damaged.
    """
    path = source.location
    if not path.exists():
        raise DatasetError(
            f'source {source.name}: {path} does not exist: set its path in the configuration or '
            'with --set data.sources.N.path=..., or MTL_DATA to the folder of all data'
        )

    own = source.tasks or ()

    def progress(values: Iterable[int], total: int, what: str) -> Iterable[int]:
        return track(values, f'{what} {source.name}', total, console=console)

    arrays = prepare(
        open_reader(source),
        source.split,
        cache,
        size=(source.height, source.width),
        num_classes=len(source.classes)
        or (vocabulary.num_classes if vocabulary is not None else NUM_CLASSES),
        limit=source.limit,
        part=source.part,
        annotations=annotations or not {'detection', 'classification'}.isdisjoint(own),
        skip_broken=source.skip_broken,
        progress=progress if console is not None else None,
    )
    if console is not None and (found := describe_findings(arrays.findings)):
        console.print(f'source {source.name}: {found}', markup=False, highlight=False)
    if vocabulary is None:
        return arrays
    arrays = arrays.speaking(vocabulary, source.rename, source.tasks, source.classes)
    if source.tasks is not None:
        lacking = [task for task in source.tasks if TRUTH_OF_TASK[task] not in arrays.truths]
        if lacking:
            raise DatasetError(
                f'source {source.name} has no truth for {", ".join(lacking)}: take it out of its '
                'tasks'
            )
    if console is not None and (left_out := arrays.left_out()):
        console.print(f'source {source.name}: {left_out}', markup=False, highlight=False)
    return arrays


def refuse_strange_names(sets: Mapping[str, PreparedArrays], tasks: Iterable[str]) -> None:
    """Make sure that every source can teach the tasks that it has truth for.

    Raises:
        DatasetError: A source shares no name with the network, one has no names of pixels beside
            others that are translated by theirs, or two sources' ids of pixels mean
            different classes and the network has no names to translate them to.
    """
    tasks = set(tasks)
    for name, arrays in sets.items():
        for task in ('segmentation', 'detection', 'classification'):
            if task in tasks and TRUTH_OF_TASK[task] in arrays.truths:
                arrays.translation.refuse_strange_names(task, name)
    labelled = {
        name: arrays
        for name, arrays in sets.items()
        if 'segmentation' in tasks and 'label' in arrays.truths and arrays.vocabulary.classes
    }
    # Pictures without names of their own are labelled with NYUv2's 13 classes.
    usual = tuple(spec.name for spec in nyu13_classes())
    if all(arrays.vocabulary.classes == usual for arrays in labelled.values()):
        labelled = {}
    nameless = [name for name, arrays in labelled.items() if not arrays.own.classes]
    if nameless and len(nameless) < len(labelled):
        raise DatasetError(
            f'the ids of pixels of {", ".join(nameless)} have no names, those of '
            f'{", ".join(labelled.keys() - set(nameless))} are translated to network.classes by '
            "theirs: name them in the source's classes (NYUv2's 13 for worlds and nyuv2)"
        )
    lists = {
        name: arrays.translation.classes
        for name, arrays in sets.items()
        if 'segmentation' in tasks
        and 'label' in arrays.truths
        and arrays.own.classes
        and not arrays.vocabulary.classes
    }
    for (one, first), (other, second) in itertools.combinations(lists.items(), 2):
        if any(a != b for a, b in zip(first, second, strict=False)):
            raise DatasetError(
                f'the ids of pixels of {one} ({named(first)}) and of {other} ({named(second)}) '
                'mean different classes: name those of the network in network.classes'
            )


def refuse_shared_pictures(trained: Iterable[FrameSubset], judged: Iterable[FrameSubset]) -> None:
    """Make sure that no picture of one data set trains while another judges by it.

    Equal pictures of two data sets that both train, one with boxes and one with masks perhaps,
    are what they are for.

    Raises:
        DatasetError: Names the first pictures that trained and judged frames share.
    """
    judging: dict[str, tuple[str, str]] = {}
    for subset in judged:
        hashes = subset.arrays.picture_hashes()
        for index in subset.indices:
            judging[hashes[index]] = subset.name, subset.arrays.ids[index]
    shared = []
    for subset in trained:
        hashes = subset.arrays.picture_hashes()
        for index in subset.indices:
            name, frame_id = judging.get(hashes[index], (subset.name, ''))
            if name != subset.name:
                shared.append(f'{subset.name}:{subset.arrays.ids[index]} = {name}:{frame_id}')
    if shared:
        more = ', ...' if len(shared) > NAMED_PAIRS else ''
        raise DatasetError(
            f'{len(shared)} pictures train in one data set and judge in another '
            f'({", ".join(shared[:NAMED_PAIRS])}{more}): remove them from one'
        )
