"""BDD100K: boxes, weather, scene and time of day, drivable areas; and 19 classes of pixels.

Yu et al., BDD100K: A Diverse Driving Dataset for Heterogeneous Multitask Learning (CVPR 2020).
Layout, categories and masks as in github.com/bdd100k/bdd100k (doc/source/download.rst,
format.rst, bdd100k/configs/det.toml). Two sets of pictures share the name: the 100K, with boxes,
attributes and drivable areas, and the 10K, with semantic masks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtl_perception.bundle import AttributeSpec
from mtl_perception.datasets import (
    IGNORE,
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
    class_list,
    clean_boxes,
    files_in,
    labelled_picture,
    lookup,
    read_json,
    read_mask,
    read_rgb,
)

CATEGORIES = (
    'pedestrian', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle',
    'traffic light', 'traffic sign',
)  # fmt: skip
# Names of the labels of 2018 and of tracking sets for the same things (configs/det.toml).
RENAMED = {
    'bike': 'bicycle',
    'caravan': 'car',
    'motor': 'motorcycle',
    'person': 'pedestrian',
    'van': 'car',
}
# Annotated but not judged: the official conversion makes them crowds.
IGNORED = {'other person': 'pedestrian', 'other vehicle': 'car', 'trailer': 'truck'}
ATTRIBUTES = (
    AttributeSpec(
        name='weather',
        kind='single',
        classes=('rainy', 'snowy', 'clear', 'overcast', 'partly cloudy', 'foggy'),
    ),
    AttributeSpec(
        name='scene',
        kind='single',
        classes=(
            'tunnel', 'residential', 'parking lot', 'city street', 'gas stations', 'highway',
        ),
    ),
    AttributeSpec(name='timeofday', kind='single', classes=('daytime', 'night', 'dawn/dusk')),
)  # fmt: skip
UNDEFINED = 'undefined'
EXPECTED = '[{"name", "attributes": {...}, "labels": [{"category", "box2d": {...}}]}]'


@dataclass(frozen=True)
class _PictureSet:
    """One of the two sets of pictures: its masks and how much its publisher counts.

    Attributes:
        masks: folder in labels/ with one PNG per picture.
        archive: the masks' name on the download page.
        classes: name of the list of classes; mask values are their indices.
        boxes: whether the detection labels are of these pictures.
        official: number of pictures by split.
    """

    masks: str
    archive: str
    classes: str
    boxes: bool
    official: dict[str, int]


PICTURE_SETS = {
    '100k': _PictureSet(
        'drivable/masks', 'Drivable Area', 'bdd100k_drivable', True, {'train': 70000, 'val': 10000}
    ),
    '10k': _PictureSet(
        'sem_seg/masks',
        'Semantic Segmentation',
        'cityscapes_19',
        False,
        {'train': 7000, 'val': 1000},
    ),
}


@dataclass(frozen=True)
class _Entry:
    """What the detection labels say of one picture."""

    attributes: dict[str, Any]
    labels: list[dict[str, Any]]


class Bdd100k(DatasetReader):
    """Pictures of 1280x720 of one of the two sets.

    `100k`: boxes of 10 classes, attributes `weather`, `scene` and `timeofday`, and drivable areas
    (direct, alternative, background) as classes of pixels. `labels/det_20/det_{split}.json` is
    read where it exists, else the labels of 2018, `labels/bdd100k_labels_images_{split}.json`.
    Their boxes include the last pixel (width is x2 - x1 + 1, format.rst), so 1 is added to x2 and
    y2. A label without a box2d (lanes and areas as polygons) is no box; a picture that is listed
    without labels shows nothing; one that is not listed is not labelled for boxes.

    `10k`: masks of Cityscapes' 19 classes. These pictures overlap with the 100K, across its
    splits, too: `refuse_shared_pictures`, which every training run calls, keeps what trains and
    what judges apart.

    Args:
        root: folder of images/ and labels/.
        split: 'train' or 'val'.
        pictures: '100k' or '10k'.
    """

    format = 'bdd100k'
    default_folder = 'bdd100k'
    source = (
        'dl.cv.ethz.ch/bdd100k/data or bdd-data.berkeley.edu: "100K Images" with "Detection 2020 '
        'Labels" and "Drivable Area"; or "10K Images" with "Semantic Segmentation"'
    )
    licence = 'BDD100K licence: education, research and not-for-profit use'
    splits = ('train', 'val')

    def __init__(self, root: str | Path, split: str, pictures: str = '100k') -> None:
        super().__init__(root, split, pictures=pictures)
        self._pictures = pictures
        chosen = PICTURE_SETS[pictures]
        labels = _label_file(self.root, split)
        self._label_file = labels if chosen.boxes and labels.is_file() else None
        self._entries = {} if self._label_file is None else self._read_labels(labels)
        masks = self._mask('x').parent
        self._has_masks = masks.is_dir()
        if self._label_file is None and not self._has_masks:
            raise DatasetError(
                f'{self.root} has neither {labels.relative_to(self.root)} nor '
                f'{masks.relative_to(self.root)}: get one from {self.source}'
            )
        if self._has_masks:
            self.classes = class_list(chosen.classes)
            self._table = lookup([[value] for value in range(len(self.classes))], [IGNORE])
            self.tasks = ('segmentation',)
        if self._label_file is not None:
            self.box_classes, self.attributes = CATEGORIES, ATTRIBUTES
            self.tasks = (*self.tasks, 'detection', 'classification')
        found = {path.stem for path in files_in(self._picture('x').parent)}
        if self._label_file is not None:
            for frame_id in sorted(found - set(self._entries)):
                text = f'{self._picture(frame_id)}: not in {labels.name}, so without boxes'
                self.findings.add(Problem.NOT_LISTED, frame_id, text)
        with_masks = {path.stem for path in files_in(masks, ('.png',))}
        self.ids = sorted(found | set(self._entries) | with_masks)

    @classmethod
    def recognises(cls, root: Path) -> bool:
        """Say whether a folder has this layout."""
        return any((root / 'images' / pictures).is_dir() for pictures in PICTURE_SETS)

    @classmethod
    def parts(cls, root: Path, split: str, **options: Any) -> list[Part]:
        """Return the layout of one split with what is there of it."""
        pictures = options.get('pictures', '100k')
        if pictures not in PICTURE_SETS:
            raise DatasetError(f'bdd100k has the pictures 100k and 10k, not {pictures!r}')
        chosen = PICTURE_SETS[pictures]
        official = chosen.official[split]
        images, masks = f'images/{pictures}/{split}', f'labels/{chosen.masks}/{split}'
        found = len(files_in(root / images))
        parts = [Part(images, f'"{pictures.upper()} Images"', found, official, required=True)]
        if chosen.boxes:
            path = _label_file(root, split)
            holds = '"Detection 2020 Labels" (or "Labels" of 2018)'
            parts.append(Part(str(path.relative_to(root)), holds, int(path.is_file()), 1))
        found = len(files_in(root / masks, ('.png',)))
        return [*parts, Part(masks, f'"{chosen.archive}"', found, official)]

    def _read_labels(self, path: Path) -> dict[str, _Entry]:
        content = read_json(path, EXPECTED)
        frames = content.get('frames') if isinstance(content, dict) else content
        entries: dict[str, _Entry] = {}
        try:
            for frame in frames:
                frame_id = _frame_id(frame['name'])
                if frame_id in entries:
                    text = f'{path}: {frame["name"]} is listed twice'
                    self.findings.add(Problem.REPEATED, frame_id, text)
                    continue
                labels = [
                    {key: label.get(key) for key in ('id', 'category', 'box2d', 'attributes')}
                    for label in frame.get('labels') or ()
                ]
                entries[frame_id] = _Entry(dict(frame.get('attributes') or {}), labels)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(f'{path} is broken ({error!r}): expected {EXPECTED}') from error
        return entries

    def _picture(self, frame_id: str) -> Path:
        return self.root / 'images' / self._pictures / self.split / f'{frame_id}.jpg'

    def _mask(self, frame_id: str) -> Path:
        folder = self.root / 'labels' / PICTURE_SETS[self._pictures].masks / self.split
        return folder / f'{frame_id}.png'

    def _files(self) -> Iterable[Path]:
        if self._label_file is not None:
            yield self._label_file
        for frame_id in self.ids:
            yield self._picture(frame_id)
            yield self._mask(frame_id)

    def _read(self, frame_id: str, findings: Findings) -> LabelledFrame | None:
        rgb = read_rgb(self._picture(frame_id), frame_id, findings)
        size = None if rgb is None else rgb.shape[:2]
        label = None
        if self._has_masks:
            label = read_mask(self._mask(frame_id), frame_id, size, self._table, findings)
        if rgb is None or findings.broken_frames:
            return None
        height, width = rgb.shape[:2]
        entry = self._entries.get(frame_id)
        boxes = box_labels = attributes = None
        if entry is not None:
            raw = _raw_boxes(entry.labels, frame_id, findings)
            boxes, box_labels = clean_boxes(raw, frame_id, width, height, findings)
            attributes = _known_attributes(entry.attributes, frame_id, findings)
        return labelled_picture(
            frame_id, rgb, label=label, boxes=boxes, box_labels=box_labels, attributes=attributes
        )


def _label_file(root: Path, split: str) -> Path:
    new = root / 'labels' / 'det_20' / f'det_{split}.json'
    old = root / 'labels' / f'bdd100k_labels_images_{split}.json'
    return old if old.is_file() and not new.is_file() else new


def _frame_id(name: str) -> str:
    if not name or Path(name).name != name:
        raise ValueError(f'{name!r} is no file name')
    return Path(name).stem


def _raw_boxes(
    labels: list[dict[str, Any]], frame_id: str, findings: Findings
) -> Iterable[RawBox]:
    for label in labels:
        category = label['category']
        name = f'label {label["id"]} ({category})'
        if label['box2d'] is None:
            text = f'{frame_id}: {name} has no box2d'
            findings.add(Problem.NO_BOX, frame_id, text)
            continue
        index = _category_index(label, frame_id, name, findings)
        yield RawBox(_corners(label['box2d']), index, name)


def _category_index(label: dict[str, Any], frame_id: str, name: str, findings: Findings) -> int:
    category = RENAMED.get(label['category'], label['category'])
    flags = label['attributes'] or {}
    known = IGNORED.get(category, category)
    if known not in CATEGORIES:
        text = f'{frame_id}: {name}: no such category'
        findings.add(Problem.CATEGORY_UNKNOWN, frame_id, text)
        return NOT_TOLD_APART
    if category in IGNORED or flags.get('crowd') or flags.get('ignored'):
        findings.add(Problem.REGION, frame_id, f'{frame_id}: {name} is crowd or ignored')
        return region_of(CATEGORIES.index(known))
    return CATEGORIES.index(category)


def _corners(box: Any) -> Any:
    """Return x0 y0 x1 y1 with ends excluded, or what is there where it is no box."""
    try:
        x0, y0, x1, y1 = (float(box[key]) for key in ('x1', 'y1', 'x2', 'y2'))
    except (KeyError, TypeError, ValueError):
        return box
    if x1 <= x0 or y1 <= y0:
        return x0, y0, x1, y1
    return x0, y0, x1 + 1, y1 + 1


def _known_attributes(said: dict[str, Any], frame_id: str, findings: Findings) -> dict[str, int]:
    known = {}
    for attribute in ATTRIBUTES:
        value = said.get(attribute.name, UNDEFINED)
        if value == UNDEFINED:
            text = f'{frame_id}: {attribute.name} is undefined'
            findings.add(Problem.ATTRIBUTE_UNDEFINED, frame_id, text)
        elif value not in attribute.classes:
            text = f'{frame_id}: {attribute.name} {value!r} is none of {attribute.classes}'
            findings.add(Problem.ATTRIBUTE_UNKNOWN, frame_id, text)
        else:
            known[attribute.name] = attribute.classes.index(value)
    return known
