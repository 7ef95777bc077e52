"""Saved frames: an input with its predictions as a picture folder, for bug reports and labelling.

The layout is that of `mtl_perception.datasets.PictureFolder`: {root}/{name}/{rgb,label13,depth,
normal}/{id}.png, cameras.json and scenes/{id}.json (boxes and the room), so that what was saved
can be corrected by hand, evaluated and trained on.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mtl_perception.bundle import ModelBundle, ranked_classes
from mtl_perception.datasets import ROOMS
from mtl_perception.encodings import to_rgb
from mtl_perception.frames import CameraFrame, Intrinsics, Prediction
from mtl_perception.geometry.boxes import scale_boxes
from mtl_perception.ros.conversions import to_millimetres

_NAME = re.compile(r'[A-Za-z0-9_-]{1,64}')
_DEFAULT_NAME = 'saved'


class SavingError(ValueError):
    """A frame that cannot be saved; the message says why."""


def target_folder(save_folder: str, name: str) -> Path:
    """Return the folder to save to.

    Args:
        save_folder: the only folder that may be written to; empty: none.
        name: of a folder directly in it; empty: 'saved'.

    Raises:
        SavingError: saving is not set up, or the name leads elsewhere.
    """
    if not save_folder:
        raise SavingError(
            'saving is not set up: set the parameter save_folder to a folder for saved frames'
        )
    name = name or _DEFAULT_NAME
    if not _NAME.fullmatch(name):
        raise SavingError(f'{name!r} is no name for a folder: use letters, digits, "-" and "_"')
    root = Path(save_folder).expanduser().resolve()
    folder = root / name
    if folder.resolve() != folder:
        raise SavingError(f'{folder} is a link that leads elsewhere: give another name')
    return folder


@dataclass(frozen=True)
class SavedFrame:
    """What is written of one frame.

    Attributes:
        frame: the picture, upright as the network sees it.
        prediction: of it; its maps are brought to the picture's size.
        intrinsics: of the picture; those that depth assumes where the camera is not calibrated.
        notes: what else helps to understand it: engine, bundle, stage times.
        things: what scenes/{id}.json says of it (see `describe_things`); None without detection.
        sensed_depth: float32 of the picture's size, metres, 0 or NaN where unknown; what a depth
            camera measured. It is saved instead of the predicted depth, and no normals with it:
            readers derive them from depth.
        camera: its name, which tells frames of the same time apart; may be empty.
    """

    frame: CameraFrame
    prediction: Prediction
    intrinsics: Intrinsics
    notes: dict[str, Any]
    things: dict[str, Any] | None = None
    sensed_depth: np.ndarray | None = None
    camera: str = ''


def describe_things(
    bundle: ModelBundle, prediction: Prediction, picture: tuple[int, int], least_score: float
) -> dict[str, Any] | None:
    """Return a frame's boxes and room as generated worlds describe theirs.

    Args:
        bundle: that computed them.
        prediction: of the upright picture.
        picture: (height, width) of that picture, whose pixels the boxes are given in.
        least_score: of a box.
    """
    if prediction.boxes is None:
        return None
    assert prediction.box_scores is not None and prediction.box_labels is not None
    assert prediction.size is not None
    sure = prediction.box_scores >= least_score
    boxes = scale_boxes(prediction.boxes[sure], prediction.size, picture)
    names = [bundle.box_classes[label].name for label in prediction.box_labels[sure]]
    scores = prediction.class_scores
    ranked = [] if scores is None else ranked_classes(bundle.attributes, scores)
    likeliest = next((name for name, _ in ranked if name.startswith('room/')), '')
    room = likeliest.removeprefix('room/')
    return {
        'boxes': [
            {'label': name, 'box': [round(value, 2) for value in box]}
            for name, box in zip(names, boxes.tolist(), strict=True)
        ],
        'room': room if room in ROOMS else None,
    }


def save(folder: Path, saved: SavedFrame) -> Path:
    """Write one frame; return the path of its picture.

    Raises:
        SavingError: the folder cannot be written to.
    """
    frame, prediction = saved.frame, saved.prediction
    rgb = to_rgb(frame.pixels, frame.encoding)
    height, width = rgb.shape[:2]
    name = _free_name(folder, '_'.join(filter(None, (f'{frame.stamp_ns:020d}', saved.camera))))
    pictures = {'rgb': rgb[..., ::-1]}
    if prediction.label is not None:
        pictures['label13'] = _fit(prediction.label, height, width)
    depth = prediction.depth if saved.sensed_depth is None else saved.sensed_depth
    if depth is not None:
        pictures['depth'] = to_millimetres(_fit(depth, height, width))
    if prediction.normal is not None and saved.sensed_depth is None:
        # Unknown is (0, 0, 0) in the file.
        normal = np.nan_to_num(_fit(prediction.normal, height, width), nan=-1.0)
        normal = (normal + 1) * 127.5
        pictures['normal'] = np.clip(np.rint(normal), 0, 255).astype(np.uint8)[..., ::-1]
    try:
        for kind, pixels in pictures.items():
            _write_atomically(folder / kind / f'{name}.png', _png(pixels))
        if saved.things is not None:
            content = json.dumps({'frames': {name: saved.things}}, indent=1)
            _write_atomically(folder / 'scenes' / f'{name}.json', content.encode())
        _note_camera(folder / 'cameras.json', name, saved.intrinsics, saved.notes)
    except OSError as error:
        raise SavingError(f'{folder} cannot be written to: {error}') from error
    return folder / 'rgb' / f'{name}.png'


def _free_name(folder: Path, name: str) -> str:
    """Return the name, or with a number behind it where a frame is called so already."""
    names = chain([name], (f'{name}_{number}' for number in count(2)))
    return next(one for one in names if not (folder / 'rgb' / f'{one}.png').exists())


def _fit(values: np.ndarray, height: int, width: int) -> np.ndarray:
    values = np.ascontiguousarray(values)
    if values.shape[:2] == (height, width):
        return values
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _png(pixels: np.ndarray) -> bytes:
    done, data = cv2.imencode('.png', np.ascontiguousarray(pixels))
    if not done:
        raise OSError('OpenCV could not encode the picture')
    return data.tobytes()


def _note_camera(path: Path, name: str, camera: Intrinsics, notes: dict[str, Any]) -> None:
    """Add a frame to cameras.json."""
    content: dict[str, Any] = {'frames': {}}
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
            content['frames'].keys()
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise SavingError(
                f'{path} is damaged ({error}): remove it or give another name'
            ) from error
    content['frames'][name] = {
        'intrinsics': [camera.fx, camera.fy, camera.cx, camera.cy],
        'pose': None,
        'notes': notes,
    }
    _write_atomically(path, json.dumps(content, indent=1).encode())


def _write_atomically(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files can be read by their owner alone, who may be a robot's root.
    draft = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
    draft.write_bytes(data)
    draft.replace(path)
