"""Checkpoints as safetensors + JSON; a crash or a full disk never costs the previous one.

`last.json` names its tensor file; it is replaced in one step, after the tensors are safely on the
disk. Loading reads numbers and text only: nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 2


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, read or used."""


@dataclass
class Checkpoint:
    """Tensors by name, and everything else as JSON values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below `prefix.`, without the prefix."""
        start = f'{prefix}.'
        return {
            name.removeprefix(start): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(start)
        }


def save_checkpoint(folder: Path, name: str, checkpoint: Checkpoint) -> Path:
    """Write `{folder}/{name}.json` and the tensor file that it names; return the JSON's path.

    Raises:
        CheckpointError: The disk is full or the folder cannot be written; the previous
            checkpoint of this name is untouched.
    """
    target = folder / f'{name}.json'
    previous = _tensor_file(target)
    serial = 0 if previous is None else int(previous.stem.rpartition('-')[2]) + 1
    tensors = folder / f'{name}-{serial:06d}.safetensors'
    scratch = folder / f'.{name}.json.new'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        contiguous = {
            key: value.detach().contiguous() for key, value in checkpoint.tensors.items()
        }
        save_file(contiguous, tensors)
        _flush(tensors)
        text = json.dumps({'format': FORMAT, 'tensors': tensors.name, **checkpoint.values})
        scratch.write_text(text, encoding='utf-8')
        _flush(scratch)
        scratch.replace(target)
    except (OSError, SafetensorError) as error:
        tensors.unlink(missing_ok=True)
        scratch.unlink(missing_ok=True)
        raise CheckpointError(
            f'checkpoint {target} could not be written ({error}): free some space; the previous '
            'checkpoint is intact'
        ) from error
    if previous is not None:
        previous.unlink(missing_ok=True)
    return target


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint by its JSON file.

    Raises:
        CheckpointError: It is missing, cut off, or of an unknown format.
    """
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
        if values.pop('format', None) != FORMAT:
            raise CheckpointError(
                f'{path} is no checkpoint of format {FORMAT}: it was written by another version'
            )
        name = values.pop('tensors')
        if Path(name).name != name:
            raise CheckpointError(f'{path} names tensors outside its folder ({name})')
        return Checkpoint(load_file(path.parent / name), values)
    except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(
            f'checkpoint {path} cannot be read ({error}): give the .json of a complete checkpoint'
        ) from error


def _tensor_file(target: Path) -> Path | None:
    try:
        return target.parent / json.loads(target.read_text(encoding='utf-8'))['tensors']
    except (OSError, ValueError, KeyError):
        return None


def _flush(path: Path) -> None:
    with path.open('rb') as file:
        os.fsync(file.fileno())
