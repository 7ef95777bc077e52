"""Names of classes, boxes and attributes: what a data set calls them, and what the network does.

A mixture of data sets has one vocabulary, the network's. What a data set does not know is absent
from its frames, and no frame is taken for a negative example of a class that nobody labelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtl_perception.bundle import AttributeSpec, ClassificationSpec
from mtl_perception.datasets import DatasetError

INVALID_LABEL = 255
UNKNOWN = -1
# No label of a box or region.
NO_BOX_CLASS = -2


@dataclass(frozen=True)
class Vocabulary:
    """Names in the order of their ids.

    Attributes:
        classes: of pixels; () where ids have no names and are taken as they are.
        num_classes: number of the ids.
        box_classes: of boxes.
        attributes: of whole pictures.
    """

    classes: tuple[str, ...] = ()
    num_classes: int = 13
    box_classes: tuple[str, ...] = ()
    attributes: tuple[AttributeSpec, ...] = ()

    @property
    def columns(self) -> dict[str, slice]:
        """Return where each attribute's classes lie in a row of all of them."""
        if not self.attributes:
            return {}
        return ClassificationSpec(attributes=self.attributes).slices

    @property
    def width(self) -> int:
        """Number of all attributes' classes together."""
        return sum(len(attribute.classes) for attribute in self.attributes)

    def attribute_row(self, values: Mapping[str, int | list[int]] | None) -> np.ndarray:
        """Return attributes as int8 [width]: 1 holds, 0 does not, -1 unknown.

        Args:
            values: as in `LabelledFrame.attributes`.

        Raises:
            DatasetError: an attribute or a class does not exist.
        """
        row = np.full(self.width, UNKNOWN, np.int8)
        for name, value in (values or {}).items():
            if name not in self.columns:
                raise DatasetError(f'attribute {name!r} is not among {list(self.columns)}')
            part = row[self.columns[name]]
            part[:] = 0
            indices = np.atleast_1d(np.asarray(value, np.int64))
            if (indices < 0).any() or (indices >= len(part)).any():
                raise DatasetError(
                    f'attribute {name!r} is {value}, class ids 0..{len(part) - 1} are expected'
                )
            part[indices] = 1
        return row

    def to_json(self) -> dict[str, Any]:
        """Return the names as JSON values, for `from_json`."""
        return {
            'classes': list(self.classes),
            'num_classes': self.num_classes,
            'box_classes': list(self.box_classes),
            'attributes': [attribute.model_dump() for attribute in self.attributes],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Vocabulary:
        """Return what `to_json` wrote."""
        return cls(
            classes=tuple(values['classes']),
            num_classes=values['num_classes'],
            box_classes=tuple(values['box_classes']),
            attributes=tuple(AttributeSpec(**entry) for entry in values['attributes']),
        )


class Translation:
    """From one data set's vocabulary to the network's.

    Args:
        source: the data set's names.
        target: the network's names.
        rename: the data set's names to the network's, where they differ.

    Attributes:
        labels: uint8 [256], the network's id of each of the data set's, 255 where it has none;
            None where the ids stay.
        boxes: int64 [source boxes], the network's class or NO_BOX_CLASS where it has none.
        boxes_known: bool [target boxes], the network's classes that the data set labels.
        classes: names of the data set's pixel classes, renamed; () where they have none.
        unused: names of the data set that the network does not know, by kind.

    Raises:
        DatasetError: ids without names do not fit, or a renamed class does not exist.
    """

    def __init__(
        self, source: Vocabulary, target: Vocabulary, rename: Mapping[str, str] | None = None
    ) -> None:
        rename = rename or {}
        self._source, self._target = source, target
        self._refuse_unknown_names(source, rename)
        self.classes = tuple(rename.get(name, name) for name in source.classes)
        self.labels = self._label_map(source, target, self.classes)
        ids = {name: index for index, name in enumerate(target.box_classes)}
        self.boxes = np.array(
            [ids.get(rename.get(name, name), NO_BOX_CLASS) for name in source.box_classes],
            np.int64,
        )
        self.boxes_known = np.zeros(len(target.box_classes), bool)
        self.boxes_known[self.boxes[self.boxes >= 0]] = True
        self._target_width = target.width
        self._attributes = [
            (source.columns[theirs.name], target.columns[ours.name], ours, theirs)
            for theirs in source.attributes
            for ours in target.attributes
            if rename.get(theirs.name, theirs.name) == ours.name
        ]
        self._columns = {
            ours.name: _column_map(theirs, ours, rename) for _, _, ours, theirs in self._attributes
        }
        self.unused = {
            'boxes': [
                name
                for name, to in zip(source.box_classes, self.boxes, strict=True)
                if to < 0
            ],
            'classes': []
            if self.labels is None
            else [
                name
                for index, name in enumerate(source.classes)
                if self.labels[index] == INVALID_LABEL
            ],
            'attributes': [
                name
                for theirs in source.attributes
                for name in self._unused_answers(theirs, rename.get(theirs.name, theirs.name))
            ],
        }  # fmt: skip

    def _unused_answers(self, theirs: AttributeSpec, called: str) -> list[str]:
        """Return an attribute that the network lacks, or the classes of it that it lacks."""
        if called not in self._columns:
            return [theirs.name]
        pairs = zip(theirs.classes, self._columns[called], strict=True)
        return [f'{theirs.name} {name}' for name, column in pairs if column < 0]

    def refuse_strange_names(self, task: str, source: str) -> None:
        """Raise DatasetError where the data set and the network share no name for a task.

        Args:
            task: that the data set has truth for.
            source: what the data set is called.
        """
        kind, key, shared, theirs, ours = {
            'segmentation': (
                'classes of pixels',
                'classes',
                self.labels is None or (self.labels != INVALID_LABEL).any(),
                self._source.classes,
                self._target.classes,
            ),
            'detection': (
                'classes of boxes',
                'box_classes',
                self.boxes_known.any(),
                self._source.box_classes,
                self._target.box_classes,
            ),
            'classification': (
                'attributes',
                'attributes',
                any((columns >= 0).any() for columns in self._columns.values()),
                _described(self._source.attributes),
                _described(self._target.attributes),
            ),
        }[task]
        if not shared:
            raise DatasetError(
                f'source {source} has the {kind} {named(theirs)}, and none of them is one of the '
                f"network's ({named(ours)}): translate them with its rename, set network.{key}, "
                f'or give it tasks without {task}'
            )

    @staticmethod
    def _refuse_unknown_names(source: Vocabulary, rename: Mapping[str, str]) -> None:
        known = {*source.classes, *source.box_classes}
        for attribute in source.attributes:
            known |= {attribute.name, *attribute.classes}
        if strangers := sorted(set(rename) - known):
            raise DatasetError(
                f'rename names {strangers}, which the data set does not have: it has '
                f'{sorted(known)}'
            )

    @staticmethod
    def _label_map(
        source: Vocabulary, target: Vocabulary, theirs: tuple[str, ...]
    ) -> np.ndarray | None:
        if not theirs or not target.classes:
            if source.num_classes > target.num_classes:
                raise DatasetError(
                    f'the data set has {source.num_classes} classes of pixels, the network '
                    f'{target.num_classes}: set network.num_classes, or name network.classes'
                )
            return None
        if theirs == target.classes[: len(theirs)]:
            return None
        ids = {name: index for index, name in enumerate(target.classes)}
        table = np.full(256, INVALID_LABEL, np.uint8)
        table[: len(theirs)] = [ids.get(name, INVALID_LABEL) for name in theirs]
        return table

    def attributes(self, row: np.ndarray) -> np.ndarray:
        """Return the data set's attributes int8 [source width] as the network's [width]."""
        result = np.full(self._target_width, UNKNOWN, np.int8)
        for place, to, ours, _ in self._attributes:
            values, columns, part = row[place], self._columns[ours.name], result[to]
            if (values == UNKNOWN).all():
                continue
            if ours.kind == 'single':
                chosen = columns[values == 1]
                if len(chosen) and (chosen >= 0).all():
                    part[:] = 0
                    part[chosen] = 1
            else:
                for column, value in zip(columns, values, strict=True):
                    if column >= 0:
                        part[column] = max(part[column], value)
        return result


def _column_map(
    theirs: AttributeSpec, ours: AttributeSpec, rename: Mapping[str, str]
) -> np.ndarray:
    """Return the network's class of each of the data set's, -1 where it has none."""
    ids = {name: index for index, name in enumerate(ours.classes)}
    return np.array([ids.get(rename.get(name, name), -1) for name in theirs.classes])


def _described(attributes: Iterable[AttributeSpec]) -> list[str]:
    return [f'{spec.name} ({named(spec.classes)})' for spec in attributes]


def named(names: Iterable[str], most: int = 8) -> str:
    """Return a list of names for a sentence, cut after `most`."""
    names = list(names)
    shown = ', '.join(names[:most])
    return shown if len(names) <= most else f'{shown} and {len(names) - most} more'
