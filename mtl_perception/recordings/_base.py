"""What every kind of recording gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from mtl_perception.calibration import Calibration
from mtl_perception.frames import CameraFrame
from mtl_perception.geometry.normals import NORMALS_SOURCE
from mtl_perception.recordings._storage import BagMessage

_ASPECT_TOLERANCE = 0.02
_MOST_REMARKS = 50


class RecordingError(ValueError):
    """A recording of which nothing can be evaluated."""


@dataclass(frozen=True)
class Truth:
    """A picture of true (or measured) values, kept as stored until its size is known.

    Attributes:
        pixels: as stored, [H, W] or [H, W, 3].
        convert: makes labels (uint8, 255 = ignore), metres (float32, 0 or NaN = invalid) or unit
            normals (float32 [H, W, 3], (0, 0, 0) = invalid) of stored pixels.
    """

    pixels: np.ndarray
    convert: Callable[[np.ndarray], np.ndarray]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as stored."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def fits(self, height: int, width: int) -> bool:
        """Tell whether a picture of this size shows the same, by its aspect ratio."""
        own = self.pixels.shape[1] / self.pixels.shape[0]
        return abs(own / (width / height) - 1) <= _ASPECT_TOLERANCE

    def at(self, height: int, width: int) -> np.ndarray:
        """Return the values at a size, taking the nearest stored pixel.

        Values are never averaged: between two classes or two surfaces there is nothing.
        """
        pixels = self.pixels
        if (height, width) != self.size:
            rows, columns = (
                ((np.arange(new) + 0.5) * (stored / new)).astype(np.intp)
                for new, stored in zip((height, width), self.size, strict=True)
            )
            pixels = pixels[rows[:, None], columns]
        return self.convert(pixels)


@dataclass(frozen=True)
class TrueBoxes:
    """What is to be found in a picture.

    Attributes:
        boxes: float32 [T, 4], x0 y0 x1 y1 in pixels of the camera's picture, where a pixel's area
            reaches from its index to the next.
        names: class of each; None marks a region whose things are not told apart.
        looked_for: the classes that whoever drew the boxes looked for; None: any.
    """

    boxes: np.ndarray
    names: tuple[str | None, ...]
    looked_for: frozenset[str] | None = None


@dataclass(frozen=True)
class RecordedFrame:
    """One picture of a recording.

    Attributes:
        id: unique and stable within the recording: the file's name, or the stamp in nanoseconds.
        camera: the image topic, or 'camera' for folders.
        frame: the picture, as the Perceiver takes it.
        truth: 'label', 'depth' and 'normal', as far as recorded. Normals without a recording of
            their own are for the reader to derive from depth.
        boxes: the true boxes, or None where nobody drew any.
        attributes: by the name of an attribute the class's name, or the names of all that hold;
            what is not known is missing.
        pose: camera to world, float64 [4, 4] in metres, or None.
        calibration: of the picture with its distortion; None where that is not known and of
            pictures that were rectified on reading.
        time_ns: when it was recorded (the stamp, for folders).
        messages: picture and truths as recorded (CDR), to be copied into another bag; empty for
            folders and ROS 1 bags, and of pictures that were rectified on reading.
    """

    id: str
    camera: str
    frame: CameraFrame
    truth: Mapping[str, Truth] = field(default_factory=dict)
    boxes: TrueBoxes | None = None
    attributes: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    pose: np.ndarray | None = None
    calibration: Calibration | None = None
    time_ns: int = 0
    messages: tuple[BagMessage, ...] = ()


class Recording(Protocol):
    """A finite stream of frames.

    Attributes:
        name: for people.
        path: where it lies.
        sources: truth name -> where it comes from ('ground truth', 'RGB-D camera', 'file',
            'derived-11'); filled as soon as the recording is open.
        topics: role -> topic name, of bags.
        skipped: reason -> number of messages or pictures that could not be used.
        remarks: one sentence for everything else that was missing or unexpected.
    """

    name: str
    path: Path
    sources: dict[str, str]
    topics: dict[str, str]
    skipped: Counter[str]
    remarks: list[str]

    def frames(self) -> Iterator[RecordedFrame]:
        """Yield the frames in recorded order; may be called once."""
        ...

    def __len__(self) -> int:
        """Return the number of camera pictures, as far as the recording announces it."""
        ...


class BaseRecording:
    """What all recordings have."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.sources: dict[str, str] = {}
        self.topics: dict[str, str] = {}
        self.skipped: Counter[str] = Counter()
        self.remarks: list[str] = []

    def _name_derived_normals(self) -> None:
        if 'depth' in self.sources:
            self.sources.setdefault('normal', NORMALS_SOURCE)

    def _remark(self, sentence: str) -> None:
        if sentence not in self.remarks and len(self.remarks) < _MOST_REMARKS:
            self.remarks.append(sentence)
