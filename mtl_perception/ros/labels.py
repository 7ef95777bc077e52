"""Label spaces at run time: the bundle's classes, or the user's groups of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtl_perception.bundle import ClassSpec

UNKNOWN = 255
"""Label of pixels that belong to no group or are not sure enough."""


class LabelGroupsError(ValueError):
    """A file of label groups that cannot be used; the message says why."""


class _Group(BaseModel):
    model_config = ConfigDict(extra='forbid')

    name: str = Field(min_length=1)
    classes: tuple[str, ...] = Field(min_length=1)
    color: tuple[int, int, int] | None = None


class _Groups(BaseModel):
    model_config = ConfigDict(extra='forbid')

    groups: tuple[_Group, ...] = Field(min_length=1, max_length=255)


class LabelSpace:
    """Turns the bundle's labels into the labels that are published.

    Attributes:
        classes: name and colour of every published label, in order.
    """

    def __init__(self, classes: Sequence[ClassSpec], table: np.ndarray) -> None:
        """Take the published classes and a table uint8 [256] from bundle label to label."""
        self.classes = list(classes)
        self._table = table

    @classmethod
    def of_bundle(cls, classes: Sequence[ClassSpec]) -> LabelSpace:
        """Return the bundle's own labels."""
        table = np.full(256, UNKNOWN, np.uint8)
        table[: len(classes)] = np.arange(len(classes))
        return cls(classes, table)

    @classmethod
    def load(cls, path: str | Path, classes: Sequence[ClassSpec]) -> LabelSpace:
        """Read groups such as `groups: [{name: floor, classes: [floor], color: [0, 255, 0]}]`.

        Classes in no group become 255. A group without a colour has that of its first class.

        Args:
            path: of the YAML file.
            classes: of the bundle.

        Raises:
            LabelGroupsError: an unreadable file, a class that the bundle lacks or that two groups
                claim.
        """
        try:
            content = _Groups.model_validate(
                yaml.safe_load(Path(path).expanduser().read_text(encoding='utf-8'))
            )
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise LabelGroupsError(f'label_groups: {path} cannot be read: {error}') from error
        except ValidationError as error:
            first = error.errors()[0]
            where = '.'.join(str(part) for part in first['loc']) or 'the file'
            raise LabelGroupsError(
                f'label_groups: {path}: {where}: {first["msg"]}; expected groups: '
                '[{name: ..., classes: [...], color: [r, g, b]}]'
            ) from error
        index = {spec.name: number for number, spec in enumerate(classes)}
        table = np.full(256, UNKNOWN, np.uint8)
        specs = []
        for number, group in enumerate(content.groups):
            for name in group.classes:
                if name not in index:
                    raise LabelGroupsError(
                        f'label_groups: {path}: the bundle has no class {name!r}; it has '
                        f'{", ".join(index)}'
                    )
                if table[index[name]] != UNKNOWN:
                    taken = content.groups[table[index[name]]].name
                    raise LabelGroupsError(
                        f'label_groups: {path}: {name!r} is in {taken!r} and in {group.name!r}; '
                        'leave it in one'
                    )
                table[index[name]] = number
            color = group.color or classes[index[group.classes[0]]].color
            specs.append(ClassSpec(name=group.name, color=color))
        return cls(specs, table)

    def apply(
        self,
        label: np.ndarray,
        confidence: np.ndarray | None,
        threshold: float,
        out: np.ndarray,
    ) -> None:
        """Write the published labels.

        Args:
            label: uint8 [H, W], labels of the bundle.
            confidence: uint8 [H, W]; needed where `threshold` is above 0.
            threshold: confidence (0 to 1) below which a pixel gets 255.
            out: uint8 [H, W].
        """
        cv2.LUT(label, self._table, dst=out)
        if threshold > 0 and confidence is not None:
            np.putmask(out, confidence < threshold * 255, UNKNOWN)
