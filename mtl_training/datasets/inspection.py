"""What `mtl-training prepare --check` says: what is there, what frames carry, what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mtl_perception.datasets import LabelledFrame
from mtl_training.datasets.findings import Finding, Findings
from mtl_training.datasets.pool import work_on_frames
from mtl_training.datasets.reader import DatasetReader, Part

Progress = Callable[[Iterable[int], int, str], Iterable[int]]


@dataclass(frozen=True)
class Inspection:
    """The result of looking at every file of one split.

    Attributes:
        format, path, split: what was looked at.
        parts: the official layout with what is there of it.
        frames: number of frames.
        carried: how many unbroken frames carry each task.
        findings: everything that is wrong or worth a word.
        error: why there are no frames at all, if so.
    """

    format: str
    path: str
    split: str
    parts: tuple[Part, ...]
    frames: int
    carried: dict[str, int]
    findings: Findings
    error: str | None = None

    @property
    def complete(self) -> bool:
        """Say whether all frames can be used as they are and no part is short."""
        short = any(
            part.official is not None and part.found < part.official for part in self.parts
        )
        return self.frames > 0 and not short and not self.findings.broken_frames

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            'format': self.format,
            'path': self.path,
            'split': self.split,
            'parts': [
                {
                    'path': part.path,
                    'holds': part.holds,
                    'found': part.found,
                    'official': part.official,
                    'required': part.required,
                }
                for part in self.parts
            ],
            'frames': self.frames,
            'broken_frames': len(self.findings.broken_frames),
            'tasks': self.carried,
            'complete': self.complete,
            'error': self.error,
            **self.findings.as_json(),
        }


def inspect(
    reader: DatasetReader, processes: int = 0, progress: Progress | None = None
) -> Inspection:
    """Read every frame of a data set once.

    Args:
        reader: of one split.
        processes: workers; 0 works in this process.
        progress: wraps an iterable of known length, for a progress bar.
    """
    chosen = {'', *reader.ids}
    findings = Findings(finding for finding in reader.findings if finding.frame in chosen)
    carried = Counter(dict.fromkeys(reader.tasks, 0))
    indices: Iterable[int] = range(len(reader))
    if progress is not None:
        indices = progress(indices, len(reader), 'checking')
    results = work_on_frames(partial(look_at, reader), len(reader), processes)
    for _, (tasks, found) in zip(indices, results, strict=False):
        carried.update(tasks)
        findings.extend(found)
    return Inspection(
        format=reader.format,
        path=str(reader.root),
        split=reader.split,
        parts=tuple(reader.parts(reader.root, reader.split, **reader.options)),
        frames=len(reader),
        carried=dict(carried),
        findings=findings,
    )


def look_at(reader: DatasetReader, index: int) -> tuple[list[str], list[Finding]]:
    """Return the tasks that one frame carries and what was found out about it."""
    frame, findings = reader.inspect(index, strict=False)
    return [] if frame is None else tasks_of(frame), list(findings)


def tasks_of(frame: LabelledFrame) -> list[str]:
    """Return the tasks that a frame has truth for."""
    carries = {
        'segmentation': frame.label is not None,
        'depth': frame.depth is not None,
        'normals': frame.normal is not None,
        'detection': frame.boxes is not None,
        'classification': bool(frame.attributes),
    }
    return [task for task, there in carries.items() if there]
