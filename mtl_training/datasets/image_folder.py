"""Pictures sorted into folders by their class, as ImageNet's are.

Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge (IJCV 2015):
`{split}/{class}/*.JPEG`, classes by WordNet id such as n01440764.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mtl_perception.bundle import AttributeSpec
from mtl_perception.datasets import DatasetError, LabelledFrame
from mtl_training.datasets.findings import Findings, Problem
from mtl_training.datasets.reader import (
    PICTURES,
    DatasetReader,
    Part,
    files_in,
    labelled_picture,
    read_json,
    read_rgb,
)

CLASS_FILE = 'imagenet_class_index.json'
OFFICIAL = {'train': 1281167, 'val': 50000}


class ClassFolders(DatasetReader):
    """Frames `{class}/{file}` of one folder of class folders, in a fixed random order."""

    tasks = ('classification',)
    folder: Path

    def _index_pictures(self, known: tuple[str, ...]) -> None:
        """Fill ids from the folders of `known` classes; note strange folders and loose files."""
        self._paths: dict[str, Path] = {}
        self._class_of: dict[str, int] = {}
        for entry in sorted(self.folder.iterdir()):
            if entry.is_dir() and entry.name not in known:
                count = len(files_in(entry))
                text = f'{entry}: no known class ({count} pictures)'
                self.findings.add(Problem.CLASS_UNKNOWN, '', text)
            elif entry.is_file() and entry.suffix.lower() in PICTURES:
                text = f'{entry}: in no class folder; move it into that of its class'
                self.findings.add(Problem.NO_CLASS, '', text)
        for index, name in enumerate(known):
            for path in files_in(self.folder / name):
                frame_id = f'{name}/{path.stem}'
                if frame_id in self._paths:
                    text = f'{path}: {self._paths[frame_id].name} has the same name'
                    self.findings.add(Problem.REPEATED, frame_id, text)
                self._paths[frame_id] = path
                self._class_of[frame_id] = index
        # Sorted by name, the first frames or a block of them would be of one class.
        self.ids = sorted(self._paths, key=shuffled)

    def _files(self) -> Iterable[Path]:
        return self._paths.values()

    def _attributes_of(self, frame_id: str) -> dict[str, Any]:
        return {self.attributes[0].name: self._class_of[frame_id]}

    def _read(self, frame_id: str, findings: Findings) -> LabelledFrame | None:
        rgb = read_rgb(self._paths[frame_id], frame_id, findings)
        if rgb is None:
            return None
        return labelled_picture(frame_id, rgb, attributes=self._attributes_of(frame_id))


class ImageFolder(ClassFolders):
    """`{root}/{split}/{class}/*`: ImageNet, or your own pictures.

    `{root}/imagenet_class_index.json`, where present, names the classes and gives their order:
    `{"0": ["n01440764", "tench"], ...}` as torchvision and Keras use it, or
    `{"n01440764": "tench", ...}`. Without it every folder is a class of its own name, in
    alphabetical order. ImageNet's validation pictures come in one flat folder: sort them into
    class folders first; loose pictures are counted and named, not read.

    Args:
        root: folder of the splits.
        split: folder in it.
        attribute: what the classes are classes of.
    """

    format = 'image_folder'
    default_folder = 'imagenet'
    source = 'image-net.org (an account is needed): ILSVRC2012_img_train.tar, _img_val.tar'
    licence = 'ImageNet terms of access: non-commercial research and education'
    splits = ('train', 'val')

    def __init__(self, root: str | Path, split: str, attribute: str = 'category') -> None:
        super().__init__(root, split, attribute=attribute)
        self.folder = self.root / split
        index = self.root / CLASS_FILE
        folders = sorted(entry.name for entry in self.folder.iterdir() if entry.is_dir())
        named = _class_names(index) if index.is_file() else {name: name for name in folders}
        self._index_pictures(tuple(named))
        if not self.ids:
            raise DatasetError(
                f'{self.folder} holds no pictures in class folders ({len(self.findings)} files '
                'and folders that fit no class): expected CLASS/NAME.jpg'
            )
        self._class_file = index if index.is_file() else None
        classes = _distinct(named)
        self.attributes = (AttributeSpec(name=attribute, kind='single', classes=classes),)

    @classmethod
    def known_split(cls, split: str) -> None:
        """Accept any folder: own pictures may be split as one likes."""

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Say whether a folder has this layout."""
        if (root / CLASS_FILE).is_file():
            return True
        folders = [entry for entry in root.glob('train/*') if entry.is_dir()]
        # With rgb/ it is a picture folder of this project's own format.
        named_rgb = any(entry.name == 'rgb' for entry in folders)
        return not named_rgb and any(files_in(entry) for entry in folders)

    @classmethod
    def parts(cls, root: Path, split: str, **options: Any) -> list[Part]:
        """Return the layout of one split with what is there of it."""
        folder, named = root / split, (root / CLASS_FILE).is_file()
        found = sum(
            len(files_in(entry))
            for entry in (folder.iterdir() if folder.is_dir() else ())
            if entry.is_dir()
        )
        official = OFFICIAL.get(split) if named else None
        return [
            Part(split, 'folders of classes with pictures', found, official, required=True),
            Part(CLASS_FILE, 'names and order of the classes (optional)', int(named)),
        ]

    def _files(self) -> Iterable[Path]:
        yield from super()._files()
        if self._class_file is not None:
            yield self._class_file


def shuffled(frame_id: str) -> bytes:
    """Return a key that sorts frames in an order that is random, but always the same."""
    return hashlib.sha256(frame_id.encode()).digest()


def _class_names(path: Path) -> dict[str, str]:
    """Return the classes' names by folder, in their order."""
    expected = '{"0": ["n01440764", "tench"], ...} or {"n01440764": "tench", ...}'
    content = read_json(path, expected)
    try:
        if all(isinstance(value, str) for value in content.values()):
            return dict(content)
        ordered = sorted(content.items(), key=lambda item: int(item[0]))
        return {str(folder): str(name) for _, (folder, name) in ordered}
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(f'{path} is broken ({error}): expected {expected}') from error


def _distinct(named: dict[str, str]) -> tuple[str, ...]:
    """Return the names, with the folder's behind those that occur twice (ImageNet has two)."""
    names = list(named.values())
    return tuple(
        f'{name} ({folder})' if names.count(name) > 1 else name for folder, name in named.items()
    )
