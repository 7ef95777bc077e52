"""The files that a run leaves for people."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class Record:
    """The files that a run leaves for people: losses.jsonl and TensorBoard's."""

    def __init__(self, folder: Path, step: int) -> None:
        self._writer = SummaryWriter(str(folder / 'tensorboard'), purge_step=step)
        self._losses = _open_losses(folder / 'losses.jsonl', step)

    def step(
        self, step: int, losses: dict[str, float], figures: dict[str, float], lr: float
    ) -> None:
        """Note the losses of one step and other figures of it by name."""
        json.dump({'step': step, **losses, **figures}, self._losses)
        self._losses.write('\n')
        if step % 20 == 0:
            for name, value in losses.items():
                self._writer.add_scalar(f'loss/{name}', value, step)
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
            self._writer.add_scalar('learning_rate', lr, step)

    def evaluated(self, step: int, figures: dict[str, Any]) -> None:
        """Note held-out figures by task."""
        for task, values in figures.items():
            for name, value in values.items() if isinstance(values, dict) else ():
                if isinstance(value, float):
                    self._writer.add_scalar(f'held_out/{task}/{name}', value, step)

    def flush(self) -> None:
        """Bring the losses to the disk."""
        self._losses.flush()

    def close(self) -> None:
        """Close the files."""
        self._losses.close()
        self._writer.close()


def _open_losses(path: Path, step: int) -> Any:
    """Open the record of losses for appending, cut back to the first `step` steps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = []
    if step and path.is_file():
        for line in path.read_text(encoding='utf-8').splitlines():
            with contextlib.suppress(ValueError, KeyError):  # the last one may be cut off
                if json.loads(line)['step'] <= step:
                    kept.append(line)
    draft = path.with_suffix('.draft')
    draft.write_text(''.join(f'{line}\n' for line in kept), encoding='utf-8')
    draft.replace(path)
    return path.open('a', encoding='utf-8')
