"""What the readers of official data set layouts have in common.

A reader turns files as their publisher packed them into labelled frames, and says of everything
it cannot use what it is and how often it occurs. Frames of pictures without a known camera have
assumed intrinsics: they carry no depth, so nothing metric is learned from them.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from mtl_perception.bundle import AttributeSpec, ClassSpec
from mtl_perception.datasets import (
    IGNORE,
    DatasetError,
    LabelledFrame,
    assumed_intrinsics,
    read_picture,
)
from mtl_perception.frames import Intrinsics
from mtl_perception.geometry.normals import NORMALS_SOURCE
from mtl_training.datasets.findings import Findings, Problem

CLASSES = Path(__file__).parent / 'classes'
PICTURES = ('.jpg', '.jpeg', '.png')
# Annotators' tools round to whole pixels and some store ends included: less is not worth a word.
CLIP_TOLERANCE = 1.0
_NO_CLASS = -1


@cache
def class_list(name: str) -> tuple[ClassSpec, ...]:
    """Return a shipped list of classes with colours, by the name of its file in classes/."""
    entries = json.loads((CLASSES / f'{name}.json').read_text(encoding='utf-8'))
    return tuple(ClassSpec.model_validate(entry) for entry in entries)


@dataclass(frozen=True)
class Part:
    """A file or folder of the official layout.

    Attributes:
        path: below the root of the data set.
        holds: what is in it, in words, with its archive's name where there is one.
        found: pictures, masks or entries that are there.
        official: how many the publisher counts; None where that is not fixed.
        required: whether there are no frames at all without it.
    """

    path: str
    holds: str
    found: int
    official: int | None = None
    required: bool = False


@dataclass(frozen=True)
class RawBox:
    """A box as annotated: x0 y0 x1 y1 in pixels, ends excluded; class index or -1; its name."""

    corners: Any
    label: int
    name: str


def labelled_picture(
    frame_id: str,
    rgb: np.ndarray,
    *,
    label: np.ndarray | None = None,
    depth: np.ndarray | None = None,
    intrinsics: Intrinsics | None = None,
    boxes: np.ndarray | None = None,
    box_labels: np.ndarray | None = None,
    attributes: dict[str, int | list[int]] | None = None,
) -> LabelledFrame:
    """Return a frame without normals of its own; a camera that is not known is assumed."""
    height, width = rgb.shape[:2]
    return LabelledFrame(
        id=frame_id,
        rgb=rgb,
        label=label,
        depth=depth,
        normal=None,
        intrinsics=intrinsics or assumed_intrinsics(width, height),
        normals_source=NORMALS_SOURCE,
        boxes=boxes,
        box_labels=box_labels,
        attributes=attributes,
    )


class DatasetReader(ABC):
    """Frames of one split of a data set in its official layout.

    Args:
        root: folder that holds what the publisher's archives unpack to.
        split: one of `splits`.
        options: what else the format lets one choose; see its reader.

    Attributes:
        format: name in configurations and on the command line.
        default_folder: where `mtl-training prepare NAME` looks, below the folder of all data.
        source: where to get it.
        licence: under which terms, in a few words.
        splits: what may be read.
        ids: names of the frames.
        tasks: what frames can carry: 'segmentation', 'depth', 'detection', 'classification'.
            Single frames may carry less.
        classes: what labels index; empty without segmentation.
        box_classes: what box labels index; empty without detection.
        attributes: what frames' attributes may say.

    Raises:
        DatasetError: the split is unknown or what every frame needs is missing.
    """

    format: ClassVar[str]
    default_folder: ClassVar[str]
    source: ClassVar[str]
    licence: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]

    ids: list[str]
    tasks: tuple[str, ...]
    classes: tuple[ClassSpec, ...] = ()
    box_classes: tuple[str, ...] = ()
    attributes: tuple[AttributeSpec, ...] = ()

    def __init__(self, root: str | Path, split: str, **options: Any) -> None:
        self.root, self.split, self.options = Path(root), split, options
        self.name = self.root.resolve().name
        self.known_split(split)
        parts = self.parts(self.root, split, **options)
        missing = [part for part in parts if part.required and not part.found]
        if missing:
            listed = '; '.join(f'{self.root / part.path} ({part.holds})' for part in missing)
            raise DatasetError(f'{self.format} lacks {listed}: get it from {self.source}')
        self.findings = Findings()

    @classmethod
    def known_split(cls, split: str) -> None:
        """Raise DatasetError unless the data set has this split."""
        if split not in cls.splits:
            raise DatasetError(
                f'{cls.format} has no split {split!r}: expected one of {", ".join(cls.splits)}'
            )

    @classmethod
    @abstractmethod
    def parts(cls, root: Path, split: str, **options: Any) -> list[Part]:
        """Return the layout of one split with what is there of it; the root need not exist."""

    @classmethod
    @abstractmethod
    def recognises(cls, root: Path) -> bool:
        """Say whether a folder has this layout."""

    @abstractmethod
    def _read(self, frame_id: str, findings: Findings) -> LabelledFrame | None:
        """Return one frame, or None where a breaking problem was added to `findings`."""

    @abstractmethod
    def _files(self) -> Iterable[Path]:
        """Return every file that the frames come from."""

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> LabelledFrame:
        """Return one frame.

        Raises:
            DatasetError: something that the data set promises for it is missing or broken.
        """
        return self.inspect(index)[0]

    def inspect(self, index: int, strict: bool = True) -> tuple[LabelledFrame | None, Findings]:
        """Return one frame and everything that was found out about it.

        Args:
            index: of the frame.
            strict: raise DatasetError for a broken frame instead of returning None for it.
        """
        findings = Findings()
        frame = self._read(self.ids[index], findings)
        if strict and frame is None:
            raise DatasetError(next(iter(findings.broken_frames.values())))
        return frame, findings

    def check(self) -> None:
        """Read every frame once.

        Raises:
            DatasetError: names and counts everything missing or unreadable.
        """
        chosen = set(self.ids)
        findings = Findings(finding for finding in self.findings if finding.frame in chosen)
        for index in range(len(self)):
            findings.extend(self.inspect(index, strict=False)[1])
        findings.raise_if_broken(str(self.root), len(self))

    def fingerprint(self) -> str:
        """Return a hash of format, split, options and the files' names, sizes and times."""
        described = json.dumps([self.format, self.split, self.options], sort_keys=True)
        digest = hashlib.sha256(described.encode())
        for file in sorted(set(self._files())):
            if file.is_file():
                status = file.stat()
                entry = f'{file.relative_to(self.root)} {status.st_size} {status.st_mtime_ns}\n'
                digest.update(entry.encode())
        return digest.hexdigest()


def files_in(folder: Path, suffixes: Sequence[str] = PICTURES) -> list[Path]:
    """Return the files of a folder with these suffixes, by name; none where it is absent."""
    if not folder.is_dir():
        return []
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in suffixes and f.is_file())


def read_json(path: Path, expected: str) -> Any:
    """Return what a JSON file holds.

    Raises:
        DatasetError: it is missing or no JSON; `expected` says what it should hold.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise DatasetError(f'{path} cannot be read ({error}): expected {expected}') from error


def read_rgb(path: Path, frame_id: str, findings: Findings) -> np.ndarray | None:
    """Return uint8 [H, W, 3] as stored (labels do not follow EXIF turns), or None with a finding.

    Palettes, grey and CMYK pictures become RGB.
    """
    if not path.is_file():
        findings.add(Problem.PICTURE_MISSING, frame_id, f'{path}: picture missing')
        return None
    try:
        bgr = read_picture(path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except DatasetError as error:
        findings.add(Problem.PICTURE_BROKEN, frame_id, str(error))
        return None
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def lookup(classes: Iterable[Iterable[int]], ignored: Iterable[int]) -> np.ndarray:
    """Return the table from stored mask values to classes, int16 [256].

    Args:
        classes: for each class the stored values that mean it.
        ignored: stored values that mean "unlabelled"; all others are errors.
    """
    table = np.full(256, _NO_CLASS, np.int16)
    table[list(ignored)] = IGNORE
    for index, values in enumerate(classes):
        table[list(values)] = index
    return table


def read_mask(
    path: Path,
    frame_id: str,
    size: tuple[int, int] | None,
    table: np.ndarray,
    findings: Findings,
) -> np.ndarray | None:
    """Return classes uint8 [H, W], 255 = unlabelled, or None with a finding.

    Args:
        path: PNG of one channel of 8 bits.
        frame_id: names the frame in findings.
        size: (height, width) of the picture, None where that is broken itself.
        table: from `lookup`.
        findings: what is wrong is added to it.
    """
    if not path.is_file():
        findings.add(Problem.MASK_MISSING, frame_id, f'{path}: mask missing')
        return None
    try:
        stored = read_picture(path, cv2.IMREAD_UNCHANGED)
    except DatasetError as error:
        findings.add(Problem.MASK_BROKEN, frame_id, str(error))
        return None
    if stored.ndim != 2 or stored.dtype != np.uint8:
        findings.add(
            Problem.MASK_BROKEN,
            frame_id,
            f'{path}: {stored.dtype} of shape {stored.shape}, expected one channel of 8 bits',
        )
        return None
    if size is not None and stored.shape != size:
        findings.add(Problem.OTHER_SIZE, frame_id, _size_text(path, stored.shape, size))
        return None
    label = table[stored]
    if (wrong := np.unique(stored[label == _NO_CLASS])).size:
        findings.add(
            Problem.MASK_VALUE, frame_id, f'{path}: holds {wrong.tolist()}, which are no classes'
        )
        return None
    return label.astype(np.uint8)


def _size_text(path: Path, shape: tuple[int, ...], size: tuple[int, int]) -> str:
    return f'{path}: {shape[1]}x{shape[0]} pixels, its picture has {size[1]}x{size[0]}'


def clean_boxes(
    raw: Iterable[RawBox], frame_id: str, width: int, height: int, findings: Findings
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes float32 [M, 4] within the picture and their labels int64 [M].

    Boxes without four finite numbers, of no area or wholly outside the picture are left out;
    boxes that reach beyond it are clipped. Each case is a finding.
    """
    boxes, labels = [], []
    limit = np.array([width, height, width, height], np.float64)
    for box in raw:
        named = f'{frame_id}: {box.name} {_short(box.corners)}'
        corners = _four_numbers(box.corners)
        if corners is None:
            findings.add(Problem.BOX_BROKEN, frame_id, f'{named} is no box of four numbers')
            continue
        if corners[2] <= corners[0] or corners[3] <= corners[1]:
            findings.add(Problem.BOX_EMPTY, frame_id, f'{named} has no area')
            continue
        clipped = corners.clip(0, limit)
        size = f'the {width}x{height} picture'
        if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
            findings.add(Problem.BOX_OUTSIDE, frame_id, f'{named} lies outside {size}')
            continue
        if np.abs(clipped - corners).max() > CLIP_TOLERANCE:
            findings.add(Problem.BOX_CLIPPED, frame_id, f'{named} reaches beyond {size}')
        boxes.append(clipped)
        labels.append(box.label)
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def _four_numbers(corners: Any) -> np.ndarray | None:
    try:
        numbers = np.array([float(number) for number in corners])
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (4,) and np.isfinite(numbers).all() else None


def _short(corners: Any) -> str:
    numbers = _four_numbers(corners)
    return str(corners) if numbers is None else str(numbers.round(1).tolist())
