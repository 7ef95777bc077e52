"""Prepared frames as memory-mapped arrays: reading one costs a page fault, not a decoder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtl_perception.datasets import DatasetError, is_region_of_class, region_of
from mtl_perception.frames import Intrinsics
from mtl_training.datasets.vocabulary import (
    INVALID_LABEL,
    NO_BOX_CLASS,
    UNKNOWN,
    Translation,
    Vocabulary,
    named,
)

FORMAT = 2
INDEX = 'index.json'
HASHES = 'hashes.json'
MILLIMETRES = 1000.0
NORMAL_SCALE = 127.0
# The array that holds the truth of each task.
TRUTH_OF_TASK = {
    'segmentation': 'label',
    'depth': 'depth',
    'normals': 'normal',
    'detection': 'boxes',
    'classification': 'attributes',
}

__all__ = ['ArrayFrame', 'DatasetError', 'PreparedArrays']


@dataclass(frozen=True)
class ArrayFrame:
    """One labelled picture; arrays may be views of a file and must not be written.

    Attributes:
        id: name of the frame within its data set.
        image: uint8 [H, W, 3], RGB.
        label: uint8 [H, W], 255 = unlabelled.
        depth: uint16 [H, W], millimetres along the optical axis, 0 = invalid.
        normal: int8 [H, W, 3], unit normal x 127 towards the camera, (0, 0, 0) = invalid.
        intrinsics: of the picture.
        boxes: float32 [M, 4], x0 y0 x1 y1 in pixels, pixel centres at +0.5.
        box_labels: int64 [M], class or region (see `LabelledFrame.box_labels`).
        boxes_known: bool [C], the classes whose boxes are all there; none where nobody looked.
        attributes: int8 [A], all attributes' classes in a row: 1 holds, 0 does not, -1 unknown.
    """

    id: str
    image: np.ndarray
    label: np.ndarray
    depth: np.ndarray
    normal: np.ndarray
    intrinsics: Intrinsics
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    box_labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    boxes_known: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    attributes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))


class PreparedArrays:
    """A folder written by `prepare`: whatever its data set knows of every frame.

    Processes that receive a pickled copy map the files again instead of copying them.

    Args:
        folder: where `prepare` wrote.
        vocabulary: names that the frames shall use; the data set's own by default.
        rename: the data set's names to those of `vocabulary`, where they differ.
        tasks: the only tasks whose truth is shown; all by default.
        classes: names of the pixels' ids where the data set has none.

    Attributes:
        findings: what was wrong with the files, as `Findings.as_json` says it; {} where only
            whole data sets are prepared.
        own: the data set's names.
        vocabulary: the names that frames use.
        translation: from the first to the second.
        truths: what the data set knows and may show, of label, depth, normal, boxes, attributes.
    """

    def __init__(
        self,
        folder: str | Path,
        vocabulary: Vocabulary | None = None,
        rename: Mapping[str, str] | None = None,
        tasks: Collection[str] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.folder = Path(folder)
        self._arguments = (vocabulary, rename, tasks, classes)
        index = self._read_index()
        self.ids: list[str] = index['ids']
        self.normals_source: str = index['normals_source']
        self.findings: dict[str, Any] = index.get('findings', {})
        dense = ('label', 'depth', 'normal')
        self.truths = tuple(
            name
            for name in index['truths']
            if tasks is None or any(TRUTH_OF_TASK[task] == name for task in tasks)
        )
        self.own = Vocabulary.from_json(index['vocabulary'])
        if classes:
            if self.own.classes and self.own.classes != tuple(classes):
                raise DatasetError(
                    f'{self.folder} names its own classes of pixels ({named(self.own.classes)}): '
                    "leave out the source's classes, or translate them with its rename"
                )
            self.own = replace(self.own, classes=tuple(classes), num_classes=len(classes))
        self.vocabulary = vocabulary or self.own
        self.translation = Translation(self.own, self.vocabulary, rename)
        names = ['image', 'intrinsics', *(name for name in dense if name in self.truths)]
        if 'boxes' in self.truths:
            names += ['boxes', 'box_labels', 'box_starts', 'boxes_labelled']
        if 'attributes' in self.truths:
            names += ['attributes']
        try:
            self._arrays: dict[str, np.ndarray] = {
                name: np.load(self.folder / f'{name}.npy', mmap_mode='r') for name in names
            }
        except (OSError, ValueError) as error:
            raise DatasetError(
                f'{self.folder} is damaged ({error}): delete the folder and prepare again'
            ) from error
        per_frame = ('image', *dense, 'attributes', 'boxes_labelled')
        lengths = {len(self._arrays[name]) for name in per_frame if name in self._arrays}
        if lengths != {len(self.ids)}:
            raise DatasetError(
                f'{self.folder} has arrays of {sorted(lengths)} frames for {len(self.ids)} ids: '
                'delete the folder and prepare again'
            )
        self._nothing = {
            'label': np.full(self.size, INVALID_LABEL, np.uint8),
            'depth': np.zeros(self.size, np.uint16),
            'normal': np.zeros((*self.size, 3), np.int8),
        }

    def _read_index(self) -> dict[str, Any]:
        index_file = self.folder / INDEX
        try:
            index = json.loads(index_file.read_text(encoding='utf-8'))
        except (OSError, json.JSONDecodeError) as error:
            raise DatasetError(
                f'{index_file} cannot be read ({error}): run `mtl-training prepare` first'
            ) from error
        if index.get('format') != FORMAT:
            raise DatasetError(
                f'{self.folder} was prepared in format {index.get("format")}, {FORMAT} is '
                'expected: delete the folder and prepare again'
            )
        return index

    def __reduce__(self) -> tuple[type[PreparedArrays], tuple[Any, ...]]:
        return PreparedArrays, (self.folder, *self._arguments)

    def speaking(
        self,
        vocabulary: Vocabulary,
        rename: Mapping[str, str] | None = None,
        tasks: Collection[str] | None = None,
        classes: Sequence[str] = (),
    ) -> PreparedArrays:
        """Return the same frames with the names of `vocabulary` (see the class)."""
        return PreparedArrays(self.folder, vocabulary, rename, tasks, classes)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) of every frame in pixels."""
        return self._arrays['image'].shape[1:3]

    def picture_hashes(self) -> list[str]:
        """Return a hash of every picture; computed once and kept beside the arrays."""
        file = self.folder / HASHES
        if file.is_file():
            return json.loads(file.read_text(encoding='utf-8'))
        hashes = [
            hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest()
            for image in self._arrays['image']
        ]
        scratch = file.with_suffix(f'.{os.getpid()}')
        scratch.write_text(json.dumps(hashes), encoding='utf-8')
        scratch.replace(file)
        return hashes

    def read(self, index: int) -> ArrayFrame:
        """Return frame `index` as views of the mapped files."""
        height, width = self.size
        arrays = self._arrays
        fx, fy, cx, cy = (float(number) for number in arrays['intrinsics'][index])
        dense = {
            name: arrays[name][index] if name in arrays else nothing
            for name, nothing in self._nothing.items()
        }
        if self.translation.labels is not None:
            dense['label'] = self.translation.labels[dense['label']]
        boxes, box_labels, known = self._boxes(index)
        row = np.full(self.own.width, UNKNOWN, np.int8)
        return ArrayFrame(
            id=self.ids[index],
            image=arrays['image'][index],
            **dense,
            intrinsics=Intrinsics(width, height, fx, fy, cx, cy),
            boxes=boxes,
            box_labels=box_labels,
            boxes_known=known,
            attributes=self.translation.attributes(arrays.get('attributes', {index: row})[index]),
        )

    def _boxes(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return boxes, their classes and the known classes of one frame."""
        arrays = self._arrays
        if 'boxes' not in arrays or not arrays['boxes_labelled'][index]:
            known = np.zeros(len(self.vocabulary.box_classes), bool)
            return np.zeros((0, 4), np.float32), np.zeros(0, np.int64), known
        place = slice(*arrays['box_starts'][index : index + 2])
        labels = np.array(arrays['box_labels'][place], np.int64)
        things, regions = labels >= 0, is_region_of_class(labels)
        labels[things] = self.translation.boxes[labels[things]]
        classes = self.translation.boxes[region_of(labels[regions])]
        labels[regions] = np.where(classes == NO_BOX_CLASS, NO_BOX_CLASS, region_of(classes))
        kept = labels != NO_BOX_CLASS
        return arrays['boxes'][place][kept], labels[kept], self.translation.boxes_known

    def left_out(self) -> str | None:
        """Say what the vocabulary has no name for; of boxes, how many."""
        unused = self.translation.unused
        said = [self._boxes_left_out()] if 'boxes' in self.truths and unused['boxes'] else []
        if 'label' in self.truths and unused['classes']:
            said.append(f'classes of pixels that are not trained: {named(unused["classes"])}')
        if 'attributes' in self.truths and unused['attributes']:
            said.append(f'attributes that are not trained: {named(unused["attributes"])}')
        return '; '.join(filter(None, said)) or None

    def _boxes_left_out(self) -> str | None:
        unused = self.translation.unused['boxes']
        labels = self._arrays['box_labels']
        ids = [self.own.box_classes.index(name) for name in unused]
        counts = {name: int((labels == k).sum()) for name, k in zip(unused, ids, strict=True)}
        total = sum(counts.values())
        listed = ', '.join(f'{name} {count}' for name, count in counts.items() if count)
        return f'{total} boxes of classes that are not trained: {listed}' if total else None
