"""What is known of one recording, as one file; and all of them together."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mtl_perception.evaluation.gallery import Shown
from mtl_perception.evaluation.results import atomic
from mtl_perception.evaluation.scoring import Score

SUFFIX = '.evaluation'
_INFO, _SCORE, _FRAMES, _GALLERY = 'info.json', 'score.npz', 'frames.jsonl', 'gallery.json'


@dataclass(frozen=True)
class Shard:
    """One recording's results on disk: a zip file that is complete or absent."""

    path: Path

    @classmethod
    def write(
        cls,
        path: Path,
        info: dict[str, Any],
        score: Score,
        frames: Path,
        shown: Sequence[Shown],
    ) -> Shard:
        """Write a shard at once; `frames` is a file of JSON lines."""
        arrays = io.BytesIO()
        np.savez(arrays, allow_pickle=False, **score.state())
        entries = [
            {'rank': s.rank, 'id': s.id, 'figures': s.figures, 'recording': s.recording}
            | {'pictures': {name: f'gallery/{i}/{name}.jpg' for name in s.pictures}}
            for i, s in enumerate(shown)
        ]
        with (
            atomic(path, 'wb') as file,
            zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive,
        ):
            archive.writestr(_INFO, json.dumps(info))
            archive.writestr(_SCORE, arrays.getvalue())
            archive.write(frames, _FRAMES)
            archive.writestr(_GALLERY, json.dumps(entries))
            for entry, item in zip(entries, shown, strict=True):
                for name, jpeg in item.pictures.items():
                    archive.writestr(entry['pictures'][name], jpeg, zipfile.ZIP_STORED)
        return cls(path)

    def info(self) -> dict[str, Any] | None:
        """Return what the recording was; None where there is no readable shard."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                return json.loads(archive.read(_INFO))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            return None

    def add_to(self, score: Score) -> None:
        """Merge the counts into a score."""
        with zipfile.ZipFile(self.path) as archive:
            data = io.BytesIO(archive.read(_SCORE))
        own = score.fresh()
        with np.load(data, allow_pickle=False) as state:
            own.load_state(dict(state))
        score.merge(own)

    def frames(self) -> Iterator[dict[str, Any]]:
        """Yield the frames' records, reading one after the other."""
        with zipfile.ZipFile(self.path) as archive, archive.open(_FRAMES) as lines:
            for line in lines:
                yield json.loads(line)

    def gallery(self) -> list[Shown]:
        """Return the frames that were kept to be looked at, yet without their pictures."""
        with zipfile.ZipFile(self.path) as archive:
            entries = json.loads(archive.read(_GALLERY))
        return [
            Shown(entry['rank'], entry['id'], entry['figures'], {}, entry['recording'])
            for entry in entries
        ]

    def with_pictures(self, shown: Shown, index: int) -> Shown:
        """Return a frame of `gallery`, there at `index`, with its pictures."""
        with zipfile.ZipFile(self.path) as archive:
            files = json.loads(archive.read(_GALLERY))[index]['pictures'].items()
            pictures = {name: archive.read(file) for name, file in files}
        return replace(shown, pictures=pictures)
