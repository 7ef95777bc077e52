"""Where the files lie that come with the package: config, models, samples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PACKAGE = 'mtl_perception'


def shared_folders(name: str) -> Iterator[Path]:
    """Yield the folders that may hold `name` ('config', 'models', ...), the nearest first."""
    root = Path(__file__).resolve().parent.parent
    if (root / 'package.xml').is_file():
        yield root / name
    for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep):
        if prefix:
            yield Path(prefix) / 'share' / _PACKAGE / name


def shared_folder(name: str) -> Path:
    """Return the folder `name` of the repository or, without one, of the installation.

    Raises:
        FileNotFoundError: the package is not installed where ROS looks.
    """
    for folder in shared_folders(name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f'the folder {name} of {_PACKAGE} is not found: source install/setup.bash of your '
        'workspace, or work in the repository'
    )
