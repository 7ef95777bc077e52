"""Folders of pictures as recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mtl_perception.datasets import DatasetError, LabelledFrame, PictureFolder
from mtl_perception.frames import CameraFrame, Intrinsics
from mtl_perception.recordings._base import (
    BaseRecording,
    RecordedFrame,
    RecordingError,
    TrueBoxes,
    Truth,
)
from mtl_perception.recordings._truths import metres
from mtl_perception.sequences import CAMERA_FILE, PictureSequence


def _as_is(pixels: np.ndarray) -> np.ndarray:
    return pixels


class FolderRecording(BaseRecording):
    """A labelled picture folder (see `PictureFolder`)."""

    def __init__(self, pictures: PictureFolder) -> None:
        super().__init__(pictures.folder, f'{pictures.root.name}/{pictures.split}')
        self._pictures = pictures
        if pictures.normals_source == 'file':
            want = (*pictures.want, 'normal')
            self._pictures = PictureFolder(
                pictures.root, pictures.split, want, pictures.num_classes
            )
        self.sources = dict.fromkeys(self._pictures.truths, 'ground truth')
        if pictures.normals_source == 'file':
            self.sources['normal'] = 'file'
        self._name_derived_normals()

    def __len__(self) -> int:
        return len(self._pictures)

    def frames(self) -> Iterator[RecordedFrame]:
        """Yield the pictures in the order of their names; broken ones are counted and named."""
        for index, frame_id in enumerate(self._pictures.ids):
            try:
                labelled = self._pictures.read(index)
            except DatasetError as error:
                self.skipped['pictures with missing or unreadable files'] += 1
                self._remark(str(error))
                continue
            truths = {'label': labelled.label, 'depth': labelled.depth, 'normal': labelled.normal}
            yield RecordedFrame(
                id=frame_id,
                camera='camera',
                frame=CameraFrame(
                    pixels=labelled.rgb, encoding='rgb8', intrinsics=labelled.intrinsics
                ),
                truth={k: Truth(v, _as_is) for k, v in truths.items() if v is not None},
                boxes=self._boxes(labelled),
                attributes=self._attributes(labelled),
                pose=labelled.pose,
            )

    def _boxes(self, labelled: LabelledFrame) -> TrueBoxes | None:
        if labelled.boxes is None or labelled.box_labels is None:
            return None
        classes = self._pictures.box_classes
        names = tuple(classes[k] if k >= 0 else None for k in labelled.box_labels)
        return TrueBoxes(labelled.boxes, names, frozenset(classes))

    def _attributes(self, labelled: LabelledFrame) -> dict[str, str | tuple[str, ...]]:
        classes = {attribute.name: attribute.classes for attribute in self._pictures.attributes}
        return {
            name: (
                classes[name][answer]
                if isinstance(answer, int)
                else tuple(classes[name][k] for k in answer)
            )
            for name, answer in (labelled.attributes or {}).items()
        }


class SequenceRecording(BaseRecording):
    """A folder of plain pictures, or an RGB-D sequence of 30 Hz (see `PictureSequence`)."""

    PERIOD_NS = 33_333_333

    def __init__(self, path: Path) -> None:
        super().__init__(path, path.name)
        try:
            self._sequence = PictureSequence(path)
        except DatasetError as error:
            raise RecordingError(
                f'{path} holds neither a bag nor pictures: expected a rosbag2 folder, '
                'SPLIT/rgb/ID.jpg, frame-N.color.jpg or plain pictures'
            ) from error
        if self._sequence.has_depth:
            self.sources['depth'] = 'RGB-D camera'
        self._name_derived_normals()
        if not self._sequence.is_rgbd:
            self._remark('these pictures come without camera and truth: depth is not calibrated')
        elif not self._sequence.has_camera:
            self._remark(f'there is no {CAMERA_FILE}: depth is not calibrated')

    def __len__(self) -> int:
        return len(self._sequence)

    def frames(self) -> Iterator[RecordedFrame]:
        """Yield the pictures in the order of their names; broken ones are counted and named."""
        sequence = self._sequence
        for index in range(len(sequence)):
            bgr = self._read(sequence.picture, index, 'pictures that are unreadable')
            if bgr is None:
                continue
            depth = self._read(sequence.depth, index, 'depth pictures that are unreadable')
            if depth is None and sequence.has_depth:
                self.skipped['pictures without depth'] += 1
            # Zero would mean that there is no stamp, which is so where no time is known.
            stamp = (index + 1) * self.PERIOD_NS if sequence.is_rgbd else 0
            yield RecordedFrame(
                id=sequence.name(index),
                camera='camera',
                frame=CameraFrame(bgr, 'bgr8', self._intrinsics(bgr), stamp, 'camera'),
                truth={} if depth is None else {'depth': Truth(depth, metres)},
                pose=self._read(sequence.pose, index, 'poses that are unreadable'),
                time_ns=stamp,
            )

    def _read(
        self, read: Callable[[int], np.ndarray | None], index: int, problem: str
    ) -> np.ndarray | None:
        try:
            return read(index)
        except DatasetError as error:
            self.skipped[problem] += 1
            self._remark(str(error))
            return None

    def _intrinsics(self, picture: np.ndarray) -> Intrinsics | None:
        height, width = picture.shape[:2]
        try:
            return self._sequence.intrinsics(height, width)
        except DatasetError as error:
            self._remark(f'{error}; depth is not calibrated')
            return None
