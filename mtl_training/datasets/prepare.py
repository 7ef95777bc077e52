"""Picture folders into memory-mapped arrays, once, outside the data.

Every file is looked at before the first array is written, so that a missing picture stops the
work in its first minute and not in the seventh epoch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from mtl_perception.bundle import AttributeSpec, ClassSpec
from mtl_perception.datasets import (
    ANNOTATIONS,
    NOT_TOLD_APART,
    NUM_CLASSES,
    TRUTHS,
    LabelledFrame,
    PictureFolder,
    is_region_of_class,
    region_of,
)
from mtl_perception.frames import Intrinsics
from mtl_perception.geometry.normals import NORMALS_SOURCE, normals_from_depth
from mtl_perception.letterbox import PADDING
from mtl_training.datasets.arrays import (
    FORMAT,
    INDEX,
    MILLIMETRES,
    NORMAL_SCALE,
    DatasetError,
    PreparedArrays,
)
from mtl_training.datasets.inspection import Progress, inspect
from mtl_training.datasets.pool import work_on_frames
from mtl_training.datasets.reader import DatasetReader
from mtl_training.datasets.scenes import scene_edges
from mtl_training.datasets.vocabulary import INVALID_LABEL, UNKNOWN, Vocabulary

FARTHEST_MM = 65535
# Bytes of a prepared pixel by task; the picture itself has three.
PIXEL_BYTES = {'segmentation': 1, 'depth': 2, 'normals': 3}


class FrameReader(Protocol):
    """A data set of another format; `PictureFolder` has the same shape but for the last two.

    Attributes:
        ids: of the frames.
        name: of the data set.
        classes: of the pixels' ids; () where they have no names.
        box_classes: what `LabelledFrame.box_labels` index; () without boxes.
        attributes: what `LabelledFrame.attributes` name; () without.
    """

    ids: list[str]
    name: str
    classes: tuple[ClassSpec, ...]
    box_classes: tuple[str, ...]
    attributes: tuple[AttributeSpec, ...]

    def __len__(self) -> int: ...

    def read(self, index: int) -> LabelledFrame:
        """Return one frame."""
        ...

    def check(self) -> None:
        """Raise DatasetError that names everything missing or unreadable."""
        ...

    def fingerprint(self) -> str:
        """Return a text that changes when the data change."""
        ...


def prepare(
    source: str | Path | FrameReader,
    split: str,
    cache: str | Path,
    *,
    size: tuple[int, int] = (288, 384),
    num_classes: int = NUM_CLASSES,
    limit: int | None = None,
    part: tuple[int, int] | None = None,
    annotations: bool = False,
    skip_broken: bool = False,
    processes: int = 2,
    progress: Progress | None = None,
) -> PreparedArrays:
    """Return the prepared arrays of one split, making them where the cache has none.

    Args:
        source: picture folder `{split}/{rgb,depth,label13,scenes}`, or a reader of another
            format.
        split: folder of the source.
        cache: where the arrays go; a subfolder per content of the data (names, sizes, times).
        size: (height, width) of the arrays. Pictures of another size are scaled by one factor
            and padded with invalid pixels; their intrinsics follow.
        num_classes: labels outside 0..num_classes-1 other than 255 are refused; a reader with
            `classes` has its own number.
        limit: take only the first frames.
        part: (k, n) takes the k-th of n runs of consecutive frames; none splits a scene.
        annotations: read a picture folder's boxes and attributes, too.
        skip_broken: leave out frames of an official layout that miss a file or have a broken one,
            instead of refusing them all; `PreparedArrays.findings` names and counts them.
        processes: workers; 0 works in this process.
        progress: wraps an iterable of known length, for a progress bar.

    Raises:
        DatasetError: A file is missing or unreadable (all are named), a label is no class, depth
            is not finite, the cache lies inside the data, or there is no room for the arrays.
    """
    root = Path(source) if isinstance(source, str | Path) else None
    want = (*TRUTHS, *ANNOTATIONS) if annotations else TRUTHS
    reader = PictureFolder(root, split, want, num_classes) if root is not None else source
    cache_folder = Path(cache).expanduser().resolve()
    data = reader.root if isinstance(reader, DatasetReader) else root
    if data is not None and cache_folder.is_relative_to(data.resolve()):
        raise DatasetError(
            f'the cache {cache_folder} lies inside the data {data}: choose a folder outside it'
        )
    if len(reader) == 0:
        raise DatasetError(f'split {split} of {source} is empty: frames are expected')
    reader.ids = _chosen(list(reader.ids), limit, part)
    if not reader.ids:
        raise DatasetError(f'part {part} of split {split} of {source} has no frames: take fewer')
    vocabulary = _vocabulary(reader, num_classes)
    digest = _fingerprint(reader, root, split, size, vocabulary.num_classes)
    # What is skipped is known only after every file has been looked at.
    target = cache_folder / f'{_name(source, split)}-{digest}{"-whole" if skip_broken else ""}'
    if (target / INDEX).is_file():
        return PreparedArrays(target)
    findings = _look(reader, skip_broken, processes, progress)
    cache_folder.mkdir(parents=True, exist_ok=True)
    _refuse_without_room(reader, size, cache_folder)
    scratch = Path(tempfile.mkdtemp(prefix=f'.{target.name}-', dir=cache_folder))
    try:
        _write(reader, scratch, size, vocabulary, findings, processes, progress)
        scratch.replace(target)
    except OSError as error:
        if (target / INDEX).is_file():
            return PreparedArrays(target)
        raise DatasetError(
            f'the arrays could not be written to {target} ({error.strerror}): free some space or '
            'choose another cache'
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return PreparedArrays(target)


def _look(
    reader: FrameReader, skip_broken: bool, processes: int, progress: Progress | None
) -> dict[str, Any]:
    """Look at every file before the first array is written; return what was found, as JSON.

    With `skip_broken` the reader loses its broken frames.
    """
    if not isinstance(reader, DatasetReader):
        if skip_broken:
            raise DatasetError(
                'only official layouts of other data sets can skip broken frames: mend or remove '
                'those of this folder'
            )
        reader.check()
        return {}
    inspection = inspect(reader, processes, progress)
    findings = inspection.findings
    broken = findings.broken_frames
    if not skip_broken:
        findings.raise_if_broken(str(reader.root), len(reader))
    reader.ids = [frame_id for frame_id in reader.ids if frame_id not in broken]
    if not reader.ids:
        raise DatasetError(
            f'all {len(broken)} frames of {reader.root} are broken, such as '
            f'{next(iter(broken.values()))}: restore the files'
        )
    return {'frames': inspection.frames, 'broken_frames': len(broken), **findings.as_json()}


def _refuse_without_room(reader: FrameReader, size: tuple[int, int], folder: Path) -> None:
    """Refuse what would not fit: a full disk kills a process that writes to mapped files."""
    tasks = set(reader.tasks if isinstance(reader, DatasetReader) else PIXEL_BYTES)
    if 'depth' in tasks:
        tasks.add('normals')
    per_pixel = 3 + sum(PIXEL_BYTES.get(task, 0) for task in tasks)
    needed = len(reader) * size[0] * size[1] * per_pixel
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DatasetError(
            f'{len(reader)} frames of {size[0]}x{size[1]} need {needed / 1e9:.1f} GB, {folder} '
            f'has {free / 1e9:.1f} GB: choose another cache, a smaller size or a limit'
        )


def _chosen(ids: list[str], limit: int | None, part: tuple[int, int] | None) -> list[str]:
    ids = ids[:limit]
    if part is None:
        return ids
    edges = scene_edges(ids)
    # The scene that a cut would split belongs to the part before it.
    first, last = (
        edges[bisect_left(edges, round(len(ids) * cut / part[1]))]
        for cut in (part[0], part[0] + 1)
    )
    return ids[first:last]


def _vocabulary(reader: FrameReader, num_classes: int) -> Vocabulary:
    classes = tuple(spec.name for spec in getattr(reader, 'classes', ()))
    return Vocabulary(
        classes=classes,
        num_classes=len(classes) or num_classes,
        box_classes=tuple(getattr(reader, 'box_classes', ())),
        attributes=tuple(getattr(reader, 'attributes', ())),
    )


def _name(source: object, split: str) -> str:
    stem = Path(source).resolve().name if isinstance(source, str | Path) else source.name
    return f'{stem}-{split}'


def _fingerprint(
    reader: FrameReader, root: Path | None, split: str, size: tuple[int, int], num_classes: int
) -> str:
    """Return a short hash of everything the arrays depend on."""
    digest = hashlib.sha256(json.dumps([FORMAT, size, list(reader.ids)]).encode())
    if root is None:
        digest.update(reader.fingerprint().encode())
    else:
        for file in sorted((root / split).rglob('*')):
            if file.is_file():
                status = file.stat()
                entry = f'{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n'
                digest.update(entry.encode())
        if set(ANNOTATIONS) & set(reader.truths):
            digest.update(b'annotations')
    if num_classes != NUM_CLASSES:
        digest.update(f'{num_classes} classes'.encode())
    return digest.hexdigest()[:12]


def _write(
    reader: FrameReader,
    folder: Path,
    size: tuple[int, int],
    vocabulary: Vocabulary,
    findings: dict[str, Any],
    processes: int,
    progress: Progress | None,
) -> None:
    count = len(reader)
    arrays = _Arrays(folder, count, size, vocabulary)
    work = partial(_read_and_convert, reader, size, vocabulary)
    converted = work_on_frames(work, count, processes)
    indices: Iterable[int] = range(count)
    if progress is not None:
        indices = progress(indices, count, 'preparing')
    sources = set()
    for index, (values, source) in zip(indices, converted, strict=False):
        arrays.put(index, values)
        if 'normal' in values:
            sources.add(source)
    arrays.finish()
    if len(sources) > 1:
        raise DatasetError(
            f'some frames have published normals and some do not ({sorted(sources)}): complete '
            'the normal folder or remove it'
        )
    index = {
        'format': FORMAT,
        'ids': list(reader.ids),
        'normals_source': sources.pop() if sources else 'none',
        'truths': arrays.truths,
        'vocabulary': vocabulary.to_json(),
        'findings': findings,
    }
    (folder / INDEX).write_text(json.dumps(index), encoding='utf-8')


class _Arrays:
    """The files of one data set; truth that no frame has takes no room."""

    def __init__(
        self, folder: Path, count: int, size: tuple[int, int], vocabulary: Vocabulary
    ) -> None:
        self._folder, self._count = folder, count
        self._kinds: dict[str, tuple[tuple[int, ...], type, int]] = {
            'image': ((*size, 3), np.uint8, 0),
            'intrinsics': ((4,), np.float64, 0),
            'label': (size, np.uint8, INVALID_LABEL),
            'depth': (size, np.uint16, 0),
            'normal': ((*size, 3), np.int8, 0),
            'attributes': ((vocabulary.width,), np.int8, UNKNOWN),
        }
        self._arrays: dict[str, np.ndarray] = {}
        self._boxes: list[np.ndarray | None] = []
        self._box_labels: list[np.ndarray] = []

    @property
    def truths(self) -> list[str]:
        """What at least one frame has."""
        found = [name for name in (*TRUTHS, 'attributes') if name in self._arrays]
        return [*found, *(['boxes'] if any(b is not None for b in self._boxes) else [])]

    def put(self, index: int, values: dict[str, np.ndarray]) -> None:
        """Write what `convert_frame` returned for frame `index`; indices come in order."""
        values = dict(values)
        self._boxes.append(values.pop('boxes', None))
        self._box_labels.append(values.pop('box_labels', np.zeros(0, np.int64)))
        for name, value in values.items():
            if name not in self._arrays:
                shape, dtype, nothing = self._kinds[name]
                array = np.lib.format.open_memmap(
                    self._folder / f'{name}.npy', 'w+', dtype, (self._count, *shape)
                )
                if nothing:
                    array[:] = nothing
                self._arrays[name] = array
            self._arrays[name][index] = value

    def finish(self) -> None:
        """Bring everything to the disk."""
        for array in self._arrays.values():
            array.flush()
        if 'boxes' not in self.truths:
            return
        boxes = [np.zeros((0, 4)) if b is None else b for b in self._boxes]
        starts = np.concatenate([[0], np.cumsum([len(b) for b in boxes])]).astype(np.int64)
        np.save(self._folder / 'boxes.npy', np.concatenate(boxes).astype(np.float32))
        np.save(self._folder / 'box_labels.npy', np.concatenate(self._box_labels))
        np.save(self._folder / 'box_starts.npy', starts)
        np.save(self._folder / 'boxes_labelled.npy', [b is not None for b in self._boxes])


def _read_and_convert(
    reader: FrameReader, size: tuple[int, int], vocabulary: Vocabulary, index: int
) -> tuple[dict[str, np.ndarray], str]:
    return convert_frame(reader.read(index), size, vocabulary)


def convert_frame(
    frame: LabelledFrame, size: tuple[int, int], vocabulary: Vocabulary
) -> tuple[dict[str, np.ndarray], str]:
    """Return the arrays of one frame by name, and where its normals come from.

    What the frame lacks is absent. Normals are derived at the final size, where the frozen plane
    fit is defined.
    """
    height, width = frame.rgb.shape[:2]
    label = _checked_label(frame, vocabulary.num_classes)
    depth = _checked_depth(frame)
    normal = frame.normal
    intrinsics = frame.intrinsics
    image = frame.rgb
    scale = 1.0
    if (height, width) != size:
        scale = min(size[0] / height, size[1] / width)
        image = _fit(
            image, scale, size, cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR, PADDING
        )
        if label is not None:
            label = _fit(label, scale, size, cv2.INTER_NEAREST_EXACT, INVALID_LABEL)
        if depth is not None:
            depth = _fit(depth, scale, size, cv2.INTER_NEAREST_EXACT, 0)
        if normal is not None and frame.normals_source == 'file':
            normal = _fit(normal, scale, size, cv2.INTER_NEAREST_EXACT, 0)
        else:
            normal = None
        intrinsics = intrinsics.scaled(scale, size[1], size[0])
    values = {
        'image': image,
        'intrinsics': np.array([intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy]),
    }
    source = frame.normals_source
    if normal is None and depth is not None:
        normal, source = _derive(depth, intrinsics), NORMALS_SOURCE
    if label is not None:
        values['label'] = label
    if depth is not None:
        millimetres = np.rint(depth * MILLIMETRES)
        # What is farther than the code reaches is unknown, not at its end.
        values['depth'] = np.where(millimetres > FARTHEST_MM, 0, millimetres).astype(np.uint16)
    if normal is not None:
        values['normal'] = np.rint(np.nan_to_num(normal) * NORMAL_SCALE).astype(np.int8)
    if frame.attributes:
        values['attributes'] = vocabulary.attribute_row(frame.attributes)
    if frame.boxes is not None:
        values['boxes'], values['box_labels'] = _checked_boxes(frame, vocabulary, scale)
    return values, source


def _checked_boxes(
    frame: LabelledFrame, vocabulary: Vocabulary, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes in the pixels of the scaled picture, and their classes."""
    boxes = np.asarray(frame.boxes, np.float64).reshape(-1, 4)
    labels = np.asarray(frame.box_labels if frame.box_labels is not None else [], np.int64)
    if len(labels) != len(boxes):
        raise DatasetError(f'frame {frame.id} has {len(boxes)} boxes and {len(labels)} labels')
    height, width = frame.rgb.shape[:2]
    slack = 1.0
    wrong = (
        ~np.isfinite(boxes).all(axis=1)
        | (boxes[:, 2] <= boxes[:, 0])
        | (boxes[:, 3] <= boxes[:, 1])
        | (boxes < -slack).any(axis=1)
        | (boxes > np.array([width, height, width, height]) + slack).any(axis=1)
    )
    if wrong.any():
        raise DatasetError(
            f'frame {frame.id} has the box {boxes[wrong][0].tolist()} in a picture of '
            f'{width}x{height}: x0 < x1 and y0 < y1 within it are expected'
        )
    classes = len(vocabulary.box_classes)
    class_of = np.where(is_region_of_class(labels), region_of(labels), labels)
    if ((class_of < NOT_TOLD_APART) | (class_of >= classes)).any():
        raise DatasetError(
            f'frame {frame.id} has boxes of the classes {np.unique(labels).tolist()}: '
            f'0..{classes - 1}, {NOT_TOLD_APART} for a region of any class, or '
            f'{region_of(classes - 1)}..{region_of(0)} for one of a class are expected'
        )
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    return (boxes * scale).astype(np.float32), labels


def _checked_label(frame: LabelledFrame, num_classes: int) -> np.ndarray | None:
    if frame.label is None:
        return None
    wrong = np.setdiff1d(np.unique(frame.label), [*range(num_classes), INVALID_LABEL])
    if wrong.size:
        raise DatasetError(
            f'label of frame {frame.id} holds {wrong.tolist()}: class ids 0..{num_classes - 1} '
            f'and {INVALID_LABEL} are expected'
        )
    _check_shape(frame, 'label', frame.label)
    return frame.label


def _checked_depth(frame: LabelledFrame) -> np.ndarray | None:
    if frame.depth is None:
        return None
    _check_shape(frame, 'depth', frame.depth)
    depth = np.where(np.isnan(frame.depth), 0, frame.depth)
    if not np.isfinite(depth).all() or (depth < 0).any():
        raise DatasetError(
            f'depth of frame {frame.id} is infinite or negative somewhere: metres, with 0 or NaN '
            'for unknown, are expected'
        )
    return depth


def _check_shape(frame: LabelledFrame, name: str, array: np.ndarray) -> None:
    if array.shape != frame.rgb.shape[:2]:
        raise DatasetError(
            f'{name} of frame {frame.id} is {array.shape}, its picture {frame.rgb.shape[:2]}: '
            'equal sizes are expected'
        )


def _derive(depth: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    if not (depth > 0).any():
        return np.zeros((*depth.shape, 3), np.float32)
    return normals_from_depth(depth, intrinsics)


def _fit(
    array: np.ndarray,
    scale: float,
    size: tuple[int, int],
    interpolation: int,
    fill: int | tuple[int, int, int],
) -> np.ndarray:
    height, width = (max(1, round(edge * scale)) for edge in array.shape[:2])
    resized = cv2.resize(array, (width, height), interpolation=interpolation)
    out = np.full((*size, *array.shape[2:]), fill, array.dtype)
    out[:height, :width] = resized
    return out
