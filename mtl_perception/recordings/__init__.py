"""Bags and picture folders as a stream of camera frames with whatever truth they hold.

`open_recording` tells what a path is; every kind then gives the same `RecordedFrame`s. Memory
stays constant however long a recording is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mtl_perception.datasets import NUM_CLASSES, PictureFolder
from mtl_perception.recordings._bag import BagRecording
from mtl_perception.recordings._base import (
    RecordedFrame,
    Recording,
    RecordingError,
    TrueBoxes,
    Truth,
)
from mtl_perception.recordings._folders import (
    FolderRecording,
    SequenceRecording,
)
from mtl_perception.recordings._storage import is_bag
from mtl_perception.recordings._topics import TopicChoice, find_cameras, published_by_node

__all__ = [
    'RecordedFrame',
    'Recording',
    'RecordingError',
    'TopicChoice',
    'TrueBoxes',
    'Truth',
    'find_cameras',
    'find_recordings',
    'is_bag',
    'open_recording',
    'published_by_node',
]

_WANTED = ('label', 'depth', 'boxes', 'attributes')
SPLITS_BY_PREFERENCE = ('devtest', 'test', 'val')


def open_recording(
    path: str | Path,
    split: str | None = None,
    *,
    topics: TopicChoice | None = None,
    tolerance_s: float = 0.02,
    num_classes: int = NUM_CLASSES,
    rectify: bool = False,
) -> Recording:
    """Open a bag, a labelled picture folder, an RGB-D sequence or a folder of plain pictures.

    Args:
        path: of the recording.
        split: for labelled folders with several splits.
        topics: see `TopicChoice`; bags only.
        tolerance_s: how far the stamp of a truth may lie from its picture's; an equal stamp wins.
        num_classes: of a labelled folder's pixels.
        rectify: take the lens distortion out of pictures and truths; bags only, as only they
            tell it.

    Raises:
        RecordingError, DatasetError: one sentence about what is wrong with the whole of it.
    """
    path = Path(path)
    if not path.exists():
        raise RecordingError(f'{path} does not exist: give a bag or a folder of pictures')
    if is_bag(path):
        return BagRecording(path, topics or TopicChoice(), tolerance_s, rectify)
    if rectify:
        raise RecordingError(
            f'{path} cannot be rectified: only bags hold the distortion of their camera'
        )
    if path.is_file():
        raise RecordingError(
            f'{path} is no recording: expected a bag (.mcap, .db3, .bag or a rosbag2 folder) '
            'or a folder of pictures'
        )
    if (path / 'rgb').is_dir():
        return FolderRecording(PictureFolder(path.parent, path.name, _WANTED, num_classes))
    splits = sorted(folder.parent.name for folder in path.glob('*/rgb') if folder.is_dir())
    if splits:
        return FolderRecording(
            PictureFolder(path, split or _only_split(path, splits), _WANTED, num_classes)
        )
    return SequenceRecording(path)


def find_recordings(path: str | Path) -> list[Path]:
    """Return the recordings that a path holds, sorted: itself if it is one, else all bags below.

    A folder in which no bag is found is returned itself: it may hold pictures.
    """
    path = Path(path)
    pictures = path.is_dir() and (
        (path / 'rgb').is_dir() or any(path.glob('*/rgb')) or any(path.glob('*.color.*'))
    )
    if not path.is_dir() or pictures or is_bag(path):
        return [path]
    found: list[Path] = []
    for folder, subfolders, files in _walk(path):
        bags = [name for name in subfolders if is_bag(folder / name)]
        subfolders[:] = sorted(set(subfolders) - set(bags))
        found += [folder / name for name in bags]
        found += [folder / name for name in files if is_bag(folder / name)]
    return sorted(found) or [path]


def _walk(path: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    for folder, subfolders, files in os.walk(path):
        yield Path(folder), subfolders, files


def _only_split(path: Path, splits: list[str]) -> str:
    preferred = [split for split in SPLITS_BY_PREFERENCE if split in splits]
    if len(splits) == 1 or preferred:
        return (preferred or splits)[0]
    raise RecordingError(f'{path} has the splits {", ".join(splits)}: choose one with --split')
