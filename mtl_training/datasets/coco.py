"""COCO detection: `annotations/instances_{split}.json` beside the folder `{split}` of pictures.

Lin et al., Microsoft COCO: Common Objects in Context (ECCV 2014); format as on
cocodataset.org/#format-data. Boxes are [x, y, width, height] from the picture's top-left corner,
which is continuous coordinates with ends excluded. `iscrowd` 1 marks a group whose things are not
told apart: its box is kept as a region of its class, as COCO's own evaluation takes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from mtl_perception.datasets import (
    NOT_TOLD_APART,
    DatasetError,
    LabelledFrame,
    region_of,
)
from mtl_training.datasets.findings import Findings, Problem
from mtl_training.datasets.reader import (
    DatasetReader,
    Part,
    RawBox,
    clean_boxes,
    files_in,
    labelled_picture,
    read_json,
    read_rgb,
)

OFFICIAL = {'train2017': 118287, 'val2017': 5000, 'train2014': 82783, 'val2014': 40504}
EXPECTED = '{"images": [...], "annotations": [...], "categories": [...]}'


class Coco(DatasetReader):
    """Frames of many sizes with boxes of 80 classes, in the order of their category ids.

    Any file of this format works, too: classes come from its `categories`. A picture without
    annotations has no boxes, which is a statement: nothing of the 80 classes is in it.
    """

    format = 'coco'
    default_folder = 'coco'
    source = 'cocodataset.org: annotations_trainval2017.zip, train2017.zip and val2017.zip'
    licence = 'annotations CC BY 4.0; pictures under the terms of their Flickr owners'
    splits = tuple(OFFICIAL)
    tasks = ('detection',)

    def __init__(self, root: str | Path, split: str) -> None:
        super().__init__(root, split)
        path = _annotations(self.root, split)
        content = read_json(path, EXPECTED)
        try:
            categories = {int(entry['id']): str(entry['name']) for entry in content['categories']}
            images = [
                (int(entry['id']), str(entry['file_name']), entry['width'], entry['height'])
                for entry in content['images']
            ]
            annotations = content['annotations']
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f'{path} is broken ({error!r}): expected {EXPECTED}') from error
        self.box_classes = tuple(categories[number] for number in sorted(categories))
        self._index = {number: index for index, number in enumerate(sorted(categories))}
        self._categories = categories
        self._pictures: dict[str, tuple[str, Any, Any]] = {}
        frame_of: dict[int, str] = {}
        for number, file_name, width, height in images:
            frame_id = _frame_id(path, file_name)
            if frame_id in self._pictures or number in frame_of:
                text = f'{path}: {file_name} (id {number}) is listed twice'
                self.findings.add(Problem.REPEATED, frame_id, text)
                continue
            frame_of[number] = frame_id
            self._pictures[frame_id] = (file_name, width, height)
        self.ids = sorted(self._pictures)
        self._note_unlisted()
        self._annotations: dict[str, list[tuple[Any, Any, Any, Any]]] = {}
        for entry in annotations:
            kept = (
                entry.get('id'),
                entry.get('category_id'),
                entry.get('bbox'),
                entry.get('iscrowd', 0),
            )
            frame_id = frame_of.get(entry.get('image_id'))
            if frame_id is None:
                text = f'{path}: annotation {kept[0]} is of picture {entry.get("image_id")}'
                self.findings.add(
                    Problem.PICTURE_UNKNOWN, '', f'{text}, which "images" does not list'
                )
            else:
                self._annotations.setdefault(frame_id, []).append(kept)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Say whether a folder has this layout."""
        return any((root / 'annotations').glob('instances_*.json'))

    @classmethod
    def known_split(cls, split: str) -> None:
        """Accept any split: other data sets in this format name theirs as they like."""

    @classmethod
    def parts(cls, root: Path, split: str, **options: Any) -> list[Part]:
        """Return the layout of one split with what is there of it."""
        path = _annotations(root, split)
        pictures = len(files_in(root / split))
        return [
            Part(split, 'pictures', pictures, OFFICIAL.get(split), required=True),
            Part(
                str(path.relative_to(root)),
                'boxes, of annotations_trainval2017.zip',
                int(path.is_file()),
                1,
                required=True,
            ),
        ]

    def _picture(self, frame_id: str) -> Path:
        return self.root / self.split / self._pictures[frame_id][0]

    def _note_unlisted(self) -> None:
        listed = {file_name for file_name, _, _ in self._pictures.values()}
        for file in files_in(self.root / self.split):
            if file.name not in listed:
                text = f'{file}: the annotations do not list it, so it is no frame'
                self.findings.add(Problem.NOT_LISTED, '', text)

    def _files(self) -> Iterable[Path]:
        yield _annotations(self.root, self.split)
        yield from (self._picture(frame_id) for frame_id in self.ids)

    def _read(self, frame_id: str, findings: Findings) -> LabelledFrame | None:
        path = self._picture(frame_id)
        rgb = read_rgb(path, frame_id, findings)
        if rgb is None:
            return None
        height, width = rgb.shape[:2]
        _, said_width, said_height = self._pictures[frame_id]
        if (width, height) != (said_width, said_height):
            text = f'{path}: {width}x{height} pixels, annotated as {said_width}x{said_height}'
            findings.add(Problem.OTHER_SIZE, frame_id, text)
            return None
        raw = [self._raw_box(frame_id, *entry, findings) for entry in self._of(frame_id)]
        boxes, labels = clean_boxes(raw, frame_id, width, height, findings)
        return labelled_picture(frame_id, rgb, boxes=boxes, box_labels=labels)

    def _of(self, frame_id: str) -> list[tuple[Any, Any, Any, Any]]:
        return self._annotations.get(frame_id, [])

    def _raw_box(
        self, frame_id: str, number: Any, category: Any, bbox: Any, crowd: Any, findings: Findings
    ) -> RawBox:
        name = f'annotation {number} ({self._categories.get(category, f"category {category}")})'
        label = self._index.get(category, NOT_TOLD_APART)
        if label == NOT_TOLD_APART:
            text = f'{frame_id}: {name}: no such category'
            findings.add(Problem.CATEGORY_UNKNOWN, frame_id, text)
        elif crowd:
            findings.add(Problem.REGION, frame_id, f'{frame_id}: {name} is a crowd')
            label = region_of(label)
        try:
            x, y, width, height = (float(value) for value in bbox)
        except (TypeError, ValueError):
            return RawBox(bbox, label, name)
        return RawBox((x, y, x + width, y + height), label, name)


def _annotations(root: Path, split: str) -> Path:
    return root / 'annotations' / f'instances_{split}.json'


def _frame_id(path: Path, file_name: str) -> str:
    name = PurePosixPath(file_name)
    if name.is_absolute() or '..' in name.parts or not name.name:
        raise DatasetError(f'{path} names the picture {file_name!r}: a file of its folder is due')
    return str(name.with_suffix(''))
