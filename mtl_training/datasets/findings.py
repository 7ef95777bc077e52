"""What is wrong with a data set: named, counted, and sorted by what follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mtl_perception.datasets import DatasetError

NAMED = 20


class Problem(StrEnum):
    """Everything that a reader may find; the value is how reports call it."""

    PICTURE_MISSING = 'picture missing'
    PICTURE_BROKEN = 'picture unreadable'
    MASK_MISSING = 'mask missing'
    MASK_BROKEN = 'mask unreadable'
    MASK_VALUE = 'mask value that is no class'
    DEPTH_MISSING = 'depth or camera missing'
    DEPTH_BROKEN = 'depth or camera unreadable'
    OTHER_SIZE = 'size differs from the picture'
    REPEATED = 'picture listed twice'

    BOX_BROKEN = 'box without four finite numbers'
    BOX_EMPTY = 'box of no area'
    BOX_OUTSIDE = 'box outside the picture'
    PICTURE_UNKNOWN = 'annotation of an unknown picture'
    ATTRIBUTE_UNKNOWN = 'attribute value unknown'
    CLASS_UNKNOWN = 'class folder unknown'
    NO_CLASS = 'picture outside the class folders'

    BOX_CLIPPED = 'box clipped to the picture'
    CATEGORY_UNKNOWN = 'box of an unknown category, kept as a region'
    REGION = 'crowd or ignored box, kept as a region'
    NO_BOX = 'label without a box'
    NOT_LISTED = 'picture that the labels do not list'
    ATTRIBUTE_UNDEFINED = 'attribute undefined'


BREAKING = frozenset(
    {
        Problem.PICTURE_MISSING,
        Problem.PICTURE_BROKEN,
        Problem.MASK_MISSING,
        Problem.MASK_BROKEN,
        Problem.MASK_VALUE,
        Problem.DEPTH_MISSING,
        Problem.DEPTH_BROKEN,
        Problem.OTHER_SIZE,
        Problem.REPEATED,
    }
)
"""The frame lacks something that its data set promises: mend it or leave it out knowingly."""

LEFT_OUT = frozenset(
    {
        Problem.BOX_BROKEN,
        Problem.BOX_EMPTY,
        Problem.BOX_OUTSIDE,
        Problem.PICTURE_UNKNOWN,
        Problem.ATTRIBUTE_UNKNOWN,
        Problem.CLASS_UNKNOWN,
        Problem.NO_CLASS,
    }
)
"""One annotation or stray file that says nothing usable; the rest of its frame stands."""

NOTED = frozenset(Problem) - BREAKING - LEFT_OUT
"""Kept in the form that the problem's name says; no cause to act."""


@dataclass(frozen=True)
class Finding:
    """One problem of one frame, in a sentence that names the file and the annotation."""

    problem: Problem
    frame: str
    text: str


class Findings:
    """A list of findings that counts and names them."""

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        self._all: list[Finding] = list(findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def add(self, problem: Problem, frame: str, text: str) -> None:
        """Record one problem."""
        self._all.append(Finding(problem, frame, text))

    def extend(self, others: Iterable[Finding]) -> None:
        """Record problems found elsewhere, such as in another process."""
        self._all.extend(others)

    @property
    def counts(self) -> dict[Problem, int]:
        """How often each problem occurs, in the order of `Problem`."""
        counted = Counter(finding.problem for finding in self._all)
        return {problem: counted[problem] for problem in Problem if counted[problem]}

    @property
    def broken_frames(self) -> dict[str, str]:
        """First breaking problem of every frame that has one, by frame."""
        broken: dict[str, str] = {}
        for finding in self._all:
            if finding.problem in BREAKING:
                broken.setdefault(finding.frame, finding.text)
        return broken

    def texts(self, problem: Problem, limit: int = NAMED) -> list[str]:
        """Return the first sentences about one problem."""
        found = [finding.text for finding in self._all if finding.problem == problem]
        rest = len(found) - limit
        return found[:limit] + ([f'... and {rest} more'] if rest > 0 else [])

    def as_json(self) -> dict[str, dict[str, Any]]:
        """Return {'broken' | 'left_out' | 'noted': {problem: {'count', 'first'}}}."""
        groups = {'broken': BREAKING, 'left_out': LEFT_OUT, 'noted': NOTED}
        counts = self.counts
        return {
            name: {
                problem.value: {'count': counts[problem], 'first': self.texts(problem)}
                for problem in counts
                if problem in group
            }
            for name, group in groups.items()
        }

    def raise_if_broken(self, where: str, frames: int) -> None:
        """Raise DatasetError that counts and names the breaking problems, if there are any."""
        broken = self.broken_frames
        if not broken:
            return
        breaking = [finding.text for finding in self._all if finding.problem in BREAKING]
        shown = breaking[:NAMED]
        if len(breaking) > NAMED:
            shown.append(f'... and {len(breaking) - NAMED} more')
        raise DatasetError(
            f'{len(broken)} of {frames} frames of {where} are broken; restore their files, or '
            'leave them out with skip_broken (--skip-broken):\n  ' + '\n  '.join(shown)
        )


def describe_findings(found: Mapping[str, Any]) -> str | None:
    """Return one line about what `Findings.as_json` says was broken or left out, if anything."""
    parts = [
        f'{entry["count"]} x {problem}'
        for group in ('broken', 'left_out')
        for problem, entry in found.get(group, {}).items()
    ]
    if not parts:
        return None
    skipped = found.get('broken_frames', 0)
    frames = f'{skipped} of {found["frames"]} frames left out; ' if skipped else ''
    return f'{frames}{", ".join(parts)} (`mtl-training prepare --check` names them)'
