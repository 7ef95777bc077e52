"""ADE20K as the MIT Scene Parsing Benchmark packs it: 150 classes.

Zhou et al., Scene Parsing through ADE20K Dataset (CVPR 2017). Layout and numbering as in
github.com/CSAILVision/sceneparsing: `images/{split}/*.jpg`, `annotations/{split}/*.png` with
0 = other objects (not judged) and 1..150 in the order of objectInfo150.txt.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mtl_perception.datasets import LabelledFrame
from mtl_training.datasets.findings import Findings
from mtl_training.datasets.reader import (
    DatasetReader,
    Part,
    class_list,
    files_in,
    labelled_picture,
    lookup,
    read_mask,
    read_rgb,
)

OFFICIAL = {'training': 20210, 'validation': 2000}


class Ade20k(DatasetReader):
    """Frames of many sizes with 150 classes, 0..149 here."""

    format = 'ade20k'
    default_folder = 'ADEChallengeData2016'
    source = 'sceneparsing.csail.mit.edu: ADEChallengeData2016.zip'
    licence = 'ADE20K terms: pictures for non-commercial research and education; masks BSD-3'
    splits = tuple(OFFICIAL)
    tasks = ('segmentation',)

    def __init__(self, root: str | Path, split: str) -> None:
        super().__init__(root, split)
        self.classes = class_list('ade20k_150')
        self._table = lookup([[value] for value in range(1, 151)], [0])
        self._pictures = {path.stem: path for path in files_in(self.root / 'images' / split)}
        masks = {path.stem for path in files_in(self._mask('x').parent, ('.png',))}
        self.ids = sorted(set(self._pictures) | masks)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Say whether a folder has this layout."""
        return all((root / kind / 'training').is_dir() for kind in ('images', 'annotations')) or (
            (root / 'objectInfo150.txt').is_file()
        )

    @classmethod
    def parts(cls, root: Path, split: str, **options: Any) -> list[Part]:
        """Return the layout of one split with what is there of it."""
        pictures = len(files_in(root / 'images' / split))
        masks = len(files_in(root / 'annotations' / split, ('.png',)))
        count = OFFICIAL[split]
        return [
            Part(f'images/{split}', 'pictures', pictures, count, required=True),
            Part(f'annotations/{split}', 'masks of 150 classes', masks, count, required=True),
        ]

    def _mask(self, frame_id: str) -> Path:
        return self.root / 'annotations' / self.split / f'{frame_id}.png'

    def _picture(self, frame_id: str) -> Path:
        missing = self.root / 'images' / self.split / f'{frame_id}.jpg'
        return self._pictures.get(frame_id, missing)

    def _files(self) -> Iterable[Path]:
        for frame_id in self.ids:
            yield self._picture(frame_id)
            yield self._mask(frame_id)

    def _read(self, frame_id: str, findings: Findings) -> LabelledFrame | None:
        rgb = read_rgb(self._picture(frame_id), frame_id, findings)
        size = None if rgb is None else rgb.shape[:2]
        label = read_mask(self._mask(frame_id), frame_id, size, self._table, findings)
        if rgb is None or label is None:
            return None
        return labelled_picture(frame_id, rgb, label=label)
