"""Which data set a name or a folder is, and what is missing of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_perception.datasets import DatasetError
from mtl_training.config import data_folder
from mtl_training.datasets.findings import Findings
from mtl_training.datasets.inspection import Inspection, Progress, inspect
from mtl_training.datasets.reader import DatasetReader
from mtl_training.datasets.sources import READERS, reader_class, refuse_strange_options

# Names that people use for a format or a folder of it.
ALIASES = {'imagenet': 'image_folder', 'ADEChallengeData2016': 'ade20k', 'bdd': 'bdd100k'}


def official_formats() -> dict[str, type[DatasetReader]]:
    """Return the readers of official layouts by the name of their format."""
    classes = {name: reader_class(name) for name in READERS}
    return {name: c for name, c in classes.items() if issubclass(c, DatasetReader)}


def resolve(data: str | Path, name: str | None = None) -> tuple[str, Path]:
    """Return the format and folder of what a person calls a data set.

    Args:
        data: a folder or file; or a format's name, which stands for its usual folder below
            `data_folder()`.
        name: the format, where it shall not be recognised by the layout.

    Raises:
        DatasetError: there is no such format, or `data` is neither a folder nor a format.
    """
    if name is not None and name != 'pictures':
        reader_class(name)
    path = Path(data).expanduser()
    if path.exists():
        return name or recognise(path), path
    formats = official_formats()
    called = ALIASES.get(str(data), str(data))
    if called in formats:
        return name or called, data_folder() / formats[called].default_folder
    raise DatasetError(
        f'{data} does not exist: expected a folder, or one of {", ".join(formats)} for its folder '
        f'below {data_folder()} (MTL_DATA)'
    )


def recognise(path: Path) -> str:
    """Return the format of a folder by its layout; 'pictures' where it is none of the official."""
    if any(path.glob('*/rgb')):
        return 'pictures'
    # Class folders are the least particular layout, so they are asked last.
    formats = sorted(official_formats().items(), key=lambda item: item[0] == 'image_folder')
    return next((name for name, reader in formats if reader.recognises(path)), 'pictures')


def default_split(name: str) -> str:
    """Return the split that a format is trained on."""
    splits = getattr(reader_class(name), 'splits', ()) if name != 'pictures' else ()
    return splits[0] if splits else 'train'


def check(
    name: str,
    path: Path,
    split: str,
    options: Mapping[str, Any] | None = None,
    processes: int = 0,
    progress: Progress | None = None,
) -> Inspection:
    """Return what is there of a data set in its official layout, also where there is nothing.

    Args:
        name: of an official format.
        path: its folder; may be absent.
        split: of it.
        options: of its reader.
        processes: workers that read the files; 0 reads them in this process.
        progress: wraps an iterable of known length, for a progress bar.

    Raises:
        DatasetError: the format has no such split or option.
    """
    refuse_strange_options(name, options or {})
    reader = official_formats()[name]
    reader.known_split(split)
    parts = tuple(reader.parts(path, split, **(options or {})))
    try:
        opened = reader(path, split, **(options or {}))
    except DatasetError as error:
        return Inspection(
            format=name,
            path=str(path),
            split=split,
            parts=parts,
            frames=0,
            carried={},
            findings=Findings(),
            error=str(error),
        )
    return inspect(opened, processes, progress)
