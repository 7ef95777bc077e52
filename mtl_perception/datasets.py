"""Labelled picture folders, read the same way by the workshop and by the evaluation."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mtl_perception.bundle import AttributeSpec, nyu13_classes
from mtl_perception.frames import Intrinsics
from mtl_perception.geometry.normals import NORMALS_SOURCE, normals_from_depth

IGNORE = 255
NUM_CLASSES = 13
TRUTHS = ('label', 'depth', 'normal')
ANNOTATIONS = ('boxes', 'attributes')
# What the generated worlds' boxes may be: the things among NYUv2's 13 classes.
THINGS = (
    'bed', 'books', 'chair', 'furniture', 'objects', 'picture', 'sofa', 'table', 'tv', 'window',
)  # fmt: skip
ROOMS = ('bedroom', 'kitchen', 'office', 'corridor', 'bathroom', 'living_room')
# Labels of regions whose things are not told apart: of any class, and of one (`region_of`).
NOT_TOLD_APART = -1
_FIRST_REGION = -3
# The colour camera of NYUv2 (toolbox figures for 640x480, times 0.6), without the pixel-centre
# shift: the published figures are rounded to half a pixel themselves.
NYUV2_INTRINSICS = Intrinsics(width=384, height=288, fx=311.31, fy=311.68, cx=195.35, cy=152.24)
_FOLDER_OF = {'rgb': 'rgb', 'label': 'label13', 'depth': 'depth', 'normal': 'normal'}
_SUFFIXES = ('.png', '.jpg', '.jpeg')
_NAMED_PROBLEMS = 20
_CODED = (np.arange(256) / 127.5 - 1).astype(np.float32)


def region_of(label: Any) -> Any:
    """Return the label of a region of things of one class; of such a label, the class.

    Takes an integer, an array or a tensor.
    """
    return _FIRST_REGION - label


def is_region_of_class(labels: Any) -> Any:
    """Tell which labels mark a region of things of one class; takes what `region_of` does."""
    return labels <= _FIRST_REGION


class DatasetError(ValueError):
    """A picture folder is incomplete or broken; the message names the files."""


@dataclass(frozen=True)
class LabelledFrame:
    """One picture with its ground truth; what the data set lacks is None.

    A picture without anything in it has boxes [0, 4], one that nobody looked for things in None.

    Attributes:
        id: the file name without its suffix.
        rgb: uint8 [H, W, 3].
        label: uint8 [H, W], class id, 255 = unlabelled.
        depth: float32 [H, W], metres along the optical axis, 0 = invalid.
        normal: float32 [H, W, 3], unit, optical frame, towards the camera; (0, 0, 0) = invalid.
        intrinsics: of all of these pictures.
        normals_source: 'file' or the name of the fit that derived them from depth.
        pose: float64 [4, 4], camera to world in metres, or None where unknown.
        boxes: float32 [M, 4], x0 y0 x1 y1 in pixels with pixel centres at +0.5 (0..W, 0..H), the
            visible extent of each thing.
        box_labels: int64 [M], index into the data set's `box_classes`. A region whose things are
            not told apart, so that no detection there is right or wrong, has the label -1, or
            that of `region_of` where they are of one class (COCO's crowds).
        attributes: by the name of an attribute its class index, or the list of those that hold
            for a 'multi' one; a missing name is unknown.
    """

    id: str
    rgb: np.ndarray
    label: np.ndarray | None
    depth: np.ndarray | None
    normal: np.ndarray | None
    intrinsics: Intrinsics
    normals_source: str
    pose: np.ndarray | None = None
    boxes: np.ndarray | None = None
    box_labels: np.ndarray | None = None
    attributes: dict[str, int | list[int]] | None = None


def assumed_intrinsics(width: int, height: int) -> Intrinsics:
    """Return a camera for pictures whose own is unknown: NYUv2's angle along the longer side."""
    known = NYUV2_INTRINSICS
    focal = known.fx * max(width, height) / known.width
    return Intrinsics(width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)


def decode_depth(pixels: np.ndarray) -> np.ndarray:
    """Return metres, float32 [H, W], 0 = invalid, from a stored depth picture.

    uint16 is millimetres; uint8 is the NYUv2 code v of (v + 0.5) / 25.5 m.
    """
    if pixels.dtype == np.uint8:
        return (pixels.astype(np.float32) + np.float32(0.5)) / np.float32(25.5)
    return pixels.astype(np.float32) * np.float32(0.001)


def decode_normals(pixels: np.ndarray) -> np.ndarray:
    """Return unit vectors, float32 [H, W, 3], from rgb8 pixels that hold (n + 1) x 127.5.

    (0, 0, 0) pixels are invalid and stay (0, 0, 0). Rounding to 8 bits costs up to 0.4 degrees.
    """
    pixels = np.ascontiguousarray(pixels)
    planes = [cv2.LUT(plane, _CODED) for plane in cv2.split(pixels)]
    length = planes[0] * planes[0]
    for plane in planes[1:]:
        length += plane * plane
    np.sqrt(length, out=length)
    length[cv2.inRange(pixels, (0, 0, 0), (0, 0, 0)) > 0] = np.inf
    for plane in planes:
        plane /= np.maximum(length, np.float32(1e-6), out=length)
    return cv2.merge(planes)


def read_picture(path: Path, flags: int) -> np.ndarray:
    """Return a whole, undamaged JPEG or PNG; OpenCV alone would pass half of a cut-off one.

    Args:
        path: of the file.
        flags: of cv2.imdecode.

    Raises:
        DatasetError: the file is missing, cut off, damaged or no picture.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f'{path}: {error.strerror or error}') from error
    if data[:3] == b'\xff\xd8\xff':
        _check_jpeg(path, data)
    if data[:8] == b'\x89PNG\r\n\x1a\n':
        _check_png(path, data)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if pixels is None:
        raise DatasetError(f'{path}: no readable JPEG or PNG picture ({len(data)} bytes)')
    return pixels


def _check_jpeg(path: Path, data: bytes) -> None:
    """Look for the end marker behind the header, whose thumbnail may have one of its own."""
    offset = 2
    while data[offset : offset + 1] == b'\xff' and data[offset + 1 : offset + 2] != b'\xda':
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], 'big')
    if b'\xff\xd9' not in data[offset:]:
        raise DatasetError(f'{path}: cut off (no end marker after {len(data)} bytes)')


def _check_png(path: Path, data: bytes) -> None:
    offset, kind = 8, b''
    while offset + 12 <= len(data) and kind != b'IEND':
        size = int.from_bytes(data[offset : offset + 4], 'big')
        kind = data[offset + 4 : offset + 8]
        stored = data[offset + 8 + size : offset + 12 + size]
        if len(stored) < 4:
            break
        if zlib.crc32(data[offset + 4 : offset + 8 + size]) != int.from_bytes(stored, 'big'):
            raise DatasetError(f'{path}: damaged (checksum of {kind!r} is wrong)')
        offset += 12 + size
    else:
        if kind == b'IEND':
            return
    raise DatasetError(f'{path}: cut off after {len(data)} bytes')


class PictureFolder:
    """`{root}/{split}/{rgb,depth,label13,normal}/{id}.{png,jpg}`, read frame by frame.

    The truth folders are optional as a whole. `{root}/{split}/cameras.json`, where present, holds
    `{"frames": {id: {"intrinsics": [fx, fy, cx, cy], "pose": [[...]] or null}}}`; without it the
    camera is NYUv2's, scaled to the pictures' size.

    `{root}/{split}/scenes/*.json`, where present, hold `{"frames": {id: {"boxes": [{"label":
    class, "box": [x0, y0, x1, y1]}], "room": kind or null}}}` in pixels, ends excluded, as
    generated worlds write them. Boxes of classes other than `THINGS` (carpets, boards on walls)
    are surfaces for the segmentation and are left out.

    Args:
        root: the data set's folder.
        split: a folder in it, such as 'train' or 'devtest'.
        want: the truths to read, of 'label', 'depth', 'normal', 'boxes', 'attributes'. Normals
            without files are derived from depth when a frame is read.
        num_classes: labels are 0..num_classes-1 or 255.

    Attributes:
        box_classes: what `LabelledFrame.box_labels` index.
        attributes: what `LabelledFrame.attributes` may name.

    Raises:
        DatasetError: the folder does not exist, has no pictures, or its cameras.json or a file in
            scenes/ is broken.
    """

    box_classes: tuple[str, ...] = THINGS
    attributes: tuple[AttributeSpec, ...] = (
        AttributeSpec(name='room', kind='single', classes=ROOMS),
    )

    def __init__(
        self,
        root: str | Path,
        split: str,
        want: Collection[str] = TRUTHS,
        num_classes: int = NUM_CLASSES,
    ) -> None:
        self.root, self.split = Path(root), split
        self.num_classes = num_classes
        self.folder = self.root / split
        if not self.folder.is_dir():
            raise DatasetError(f'{self.folder} does not exist: expected a folder with rgb/ in it')
        if not (self.folder / 'rgb').is_dir():
            raise DatasetError(f'{self.folder} has no rgb/ folder: expected rgb/ID.jpg or .png')
        unknown = set(want) - {*TRUTHS, *ANNOTATIONS}
        if unknown:
            raise DatasetError(
                f'unknown truths {sorted(unknown)}: expected some of {(*TRUTHS, *ANNOTATIONS)}'
            )
        self.want = frozenset(want)
        self._files = {name: self._list(folder) for name, folder in _FOLDER_OF.items()}
        self.ids: list[str] = sorted(set().union(*self._files.values()))
        if not self.ids:
            raise DatasetError(f'{self.folder} holds no pictures: expected rgb/ID.jpg or .png')
        self._cameras = self._read_cameras()
        self._scenes = self._read_scenes() if self.want & set(ANNOTATIONS) else {}

    def _list(self, folder: str) -> dict[str, Path]:
        path = self.folder / folder
        files = path.iterdir() if path.is_dir() else ()
        return {file.stem: file for file in files if file.suffix.lower() in _SUFFIXES}

    def _read_cameras(self) -> dict[str, tuple[list[float], np.ndarray | None]]:
        path = self.folder / 'cameras.json'
        if not path.is_file():
            return {}
        try:
            cameras = {}
            for frame_id, camera in json.loads(path.read_text())['frames'].items():
                numbers = [float(number) for number in camera['intrinsics']]
                pose = camera.get('pose')
                pose = None if pose is None else np.array(pose, np.float64).reshape(4, 4)
                if len(numbers) != 4:
                    raise ValueError(f'{frame_id}: {len(numbers)} intrinsics')
                cameras[frame_id] = (numbers, pose)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f'{path} is broken ({error}): expected {{"frames": {{ID: {{"intrinsics": '
                '[fx, fy, cx, cy], "pose": 4x4 or null}}}'
            ) from error
        return cameras

    def _read_scenes(self) -> dict[str, dict[str, Any]]:
        scenes: dict[str, dict[str, Any]] = {}
        for path in sorted((self.folder / 'scenes').glob('*.json')):
            try:
                for frame_id, scene in json.loads(path.read_text())['frames'].items():
                    named = {spec.name for spec in nyu13_classes()}
                    strange = {thing['label'] for thing in scene['boxes']} - named
                    if strange:
                        raise ValueError(f'boxes of unknown classes {sorted(strange)}')
                    things = [thing for thing in scene['boxes'] if thing['label'] in THINGS]
                    boxes = np.array([thing['box'] for thing in things], np.float32)
                    labels = [THINGS.index(thing['label']) for thing in things]
                    room = scene.get('room')
                    scenes[frame_id] = {
                        'boxes': boxes.reshape(len(things), 4),
                        'box_labels': np.array(labels, np.int64),
                        'attributes': {} if room is None else {'room': ROOMS.index(room)},
                    }
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise DatasetError(
                    f'{path} is broken ({error}): expected {{"frames": {{ID: {{"boxes": '
                    f'[{{"label": class, "box": [x0, y0, x1, y1]}}], "room": one of {ROOMS}}}}}}}'
                ) from error
        return scenes

    @property
    def truths(self) -> tuple[str, ...]:
        """Which of the wanted truths this folder can give."""
        has = {name for name in TRUTHS if self._files[name]}
        if 'depth' in has:
            has.add('normal')
        if self._scenes:
            has.update(ANNOTATIONS)
        return tuple(name for name in (*TRUTHS, *ANNOTATIONS) if name in has & self.want)

    @property
    def normals_source(self) -> str:
        """'file' where normals are stored, else the name of the fit that derives them."""
        return 'file' if self._files['normal'] else NORMALS_SOURCE

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[LabelledFrame]:
        return (self.read(index) for index in range(len(self)))

    def intrinsics(self, frame_id: str, width: int, height: int) -> Intrinsics:
        """Return the camera of one frame's pictures, which are `width` x `height`."""
        if self._cameras:
            if frame_id not in self._cameras:
                raise DatasetError(
                    f'{self.folder / "cameras.json"} has no camera for {frame_id}: add it'
                )
            return Intrinsics(width, height, *self._cameras[frame_id][0])
        known = NYUV2_INTRINSICS
        if width * known.height != height * known.width:
            raise DatasetError(
                f'{self.folder} has pictures of {width}x{height} and no cameras.json: only 4:3 '
                "pictures of NYUv2's camera need none; write cameras.json"
            )
        if width == known.width:
            return known
        return known.scaled(width / known.width, width, height)

    def read(self, index: int) -> LabelledFrame:
        """Return one frame with the wanted truths.

        Raises:
            DatasetError: a file is missing, unreadable or of another size; it is named.
        """
        frame_id = self.ids[index]
        bgr = read_picture(self._path('rgb', frame_id), cv2.IMREAD_COLOR)
        height, width = bgr.shape[:2]
        intrinsics = self.intrinsics(frame_id, width, height)
        label = self._read_truth('label', frame_id, (height, width))
        need_depth = 'depth' in self.want or ('normal' in self.want and not self._files['normal'])
        depth = self._read_truth('depth', frame_id, (height, width), wanted=need_depth)
        depth = None if depth is None else decode_depth(depth)
        normal = self._read_truth('normal', frame_id, (height, width))
        if normal is not None:
            normal = decode_normals(cv2.cvtColor(normal, cv2.COLOR_BGR2RGB))
        elif 'normal' in self.want and depth is not None:
            normal = normals_from_depth(depth, intrinsics)
        scene = self._scenes.get(frame_id, {})
        wants_boxes = 'boxes' in self.want
        return LabelledFrame(
            id=frame_id,
            rgb=cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB),
            label=label,
            depth=depth if 'depth' in self.want else None,
            normal=normal,
            intrinsics=intrinsics,
            normals_source=self.normals_source,
            pose=self._cameras[frame_id][1] if self._cameras else None,
            boxes=scene.get('boxes') if wants_boxes else None,
            box_labels=scene.get('box_labels') if wants_boxes else None,
            attributes=scene.get('attributes') if 'attributes' in self.want else None,
        )

    def _path(self, name: str, frame_id: str) -> Path:
        path = self._files[name].get(frame_id)
        if path is None:
            raise DatasetError(
                f'{self.folder / _FOLDER_OF[name] / frame_id}.png: missing, though other '
                f'pictures of {frame_id} exist'
            )
        return path

    def _read_truth(
        self, name: str, frame_id: str, size: tuple[int, int], wanted: bool | None = None
    ) -> np.ndarray | None:
        wanted = name in self.want if wanted is None else wanted
        if not wanted or not self._files[name]:
            return None
        path = self._path(name, frame_id)
        colour = name == 'normal'
        pixels = read_picture(path, cv2.IMREAD_COLOR if colour else cv2.IMREAD_UNCHANGED)
        expected = (*size, 3) if colour else size
        if pixels.shape != expected:
            raise DatasetError(f'{path}: shape {pixels.shape}, expected {expected} like rgb')
        types = (np.uint8, np.uint16) if name == 'depth' else (np.uint8,)
        if pixels.dtype not in types:
            raise DatasetError(f'{path}: {pixels.dtype}, expected {types[0].__name__}')
        if name == 'label' and (wrong := (pixels >= self.num_classes) & (pixels != IGNORE)).any():
            raise DatasetError(
                f'{path}: label {int(pixels[wrong][0])}, expected 0..{self.num_classes - 1} or '
                f'{IGNORE} (num_classes is {self.num_classes})'
            )
        return pixels

    def check(self, require: Collection[str] = ()) -> None:
        """Read every file once, before long work starts.

        Args:
            require: truths that the folder must be able to give.

        Raises:
            DatasetError: names and counts every missing or unreadable file.
        """
        known = (*TRUTHS, *ANNOTATIONS)
        lacking = [name for name in known if name in set(require) - set(self.truths)]
        if lacking:
            pictures = [name for name in lacking if name in TRUTHS]
            kind = 'pictures' if pictures == lacking else 'truth'
            folders = dict.fromkeys(_FOLDER_OF.get(name, 'scenes') for name in lacking)
            raise DatasetError(
                f'{self.folder} has no {", ".join(lacking)} {kind}: expected the folders '
                f'{", ".join(folders)} beside rgb'
            )
        problems = []
        for frame_id in self.ids:
            problems += self._problems(frame_id)
        if problems:
            shown = problems[:_NAMED_PROBLEMS]
            rest = len(problems) - len(shown)
            lines = [*shown, *([f'... and {rest} more'] if rest else [])]
            raise DatasetError(
                f'{len(problems)} of the files in {self.folder} are missing or unreadable; '
                'restore them or remove their frames:\n  ' + '\n  '.join(lines)
            )

    def _problems(self, frame_id: str) -> list[str]:
        problems: list[str] = []
        size: tuple[int, int] | None = None
        try:
            bgr = read_picture(self._path('rgb', frame_id), cv2.IMREAD_COLOR)
            size = bgr.shape[0], bgr.shape[1]
            self.intrinsics(frame_id, size[1], size[0])
        except DatasetError as error:
            problems.append(str(error))
        for name in TRUTHS:
            if not self._files[name]:
                continue
            try:
                path = self._path(name, frame_id)
                if size is None:
                    read_picture(path, cv2.IMREAD_UNCHANGED)
                else:
                    self._read_truth(name, frame_id, size, wanted=True)
            except DatasetError as error:
                problems.append(str(error))
        return problems
