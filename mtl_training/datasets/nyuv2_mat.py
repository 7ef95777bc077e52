"""The official `nyu_depth_v2_labeled.mat` (MATLAB 7.3, that is HDF5).

Silberman et al., Indoor Segmentation and Support Inference from RGBD Images (ECCV 2012). The file
holds 1449 frames of 640x480 with 894 raw classes; Gupta et al. (CVPR 2013) map them to 40, Couprie
et al. (ICLR 2013) to 13. MATLAB stores columns first, so every array arrives transposed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from mtl_perception.datasets import NYUV2_INTRINSICS, DatasetError, LabelledFrame
from mtl_perception.geometry.normals import NORMALS_SOURCE, normals_from_depth
from mtl_training.datasets.inspection import Progress

UNLABELLED = 255
SPLITS = {'train': 'trainNdxs', 'test': 'testNdxs', 'devtest': 'testNdxs'}
# The part of the test split that figures may be looked at while recipes are chosen.
DEVTEST = Path(__file__).with_name('nyuv2_devtest.txt')


class NyuV2Mat:
    """Frames of the .mat file at 384x288, with normals derived from depth.

    Args:
        path: `nyu_depth_v2_labeled.mat`.
        split: 'train' (795 frames), 'test' (654), or 'devtest' (323 of the test's).
        maps: folder with `splits.mat` (trainNdxs, testNdxs), `classMapping40.mat` (mapClass: 894
            raw classes to 40) and `class13Mapping.mat` (classMapping13: 40 classes to 13), as
            github.com/ankurhanda/nyuv2-meta-data has them; beside the file by default.

    Raises:
        DatasetError: A file is missing or lacks an array.
    """

    def __init__(self, path: str | Path, split: str, maps: str | Path | None = None) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        if split not in SPLITS:
            raise DatasetError(
                f'split {split!r} of {self.path}: one of {list(SPLITS)} is expected'
            )
        folder = Path(maps) if maps else self.path.parent
        numbers = _matlab_array(folder / 'splits.mat', SPLITS[split]).astype(int).ravel()
        if split == 'devtest':
            chosen = np.loadtxt(DEVTEST, dtype=int)
            numbers = numbers[np.isin(numbers, chosen)]
        self.to_13 = read_class_map(folder)
        self._rows = [int(number) - 1 for number in numbers]
        self.ids = [f'{number:04d}' for number in numbers]
        self._file = None

    def __getstate__(self) -> dict[str, object]:
        # HDF5 handles do not survive a fork or a pickle; every process opens its own.
        return {**self.__dict__, '_file': None}

    def __len__(self) -> int:
        return len(self.ids)

    def _open(self):
        if self._file is None:
            import h5py

            try:
                file = h5py.File(self.path, 'r')
            except OSError as error:
                raise DatasetError(
                    f'{self.path} cannot be read as HDF5 ({error}): download '
                    'nyu_depth_v2_labeled.mat again'
                ) from error
            absent = [name for name in ('images', 'depths', 'labels') if name not in file]
            if absent:
                raise DatasetError(
                    f'{self.path} has no {", ".join(absent)}: is it the labelled set?'
                )
            self._file = file
        return self._file

    def read(self, index: int) -> LabelledFrame:
        """Return one frame at 384x288."""
        file, row = self._open(), self._rows[index]
        try:
            rgb = np.ascontiguousarray(file['images'][row].transpose(2, 1, 0))
            depth = np.ascontiguousarray(file['depths'][row].T).astype(np.float32)
            raw = np.ascontiguousarray(file['labels'][row].T)
        except (OSError, ValueError, IndexError) as error:
            raise DatasetError(f'{self.path}: frame {self.ids[index]}: {error}') from error
        if raw.max() >= len(self.to_13):
            raise DatasetError(
                f'{self.path}: frame {self.ids[index]} has class {raw.max()}, the map ends at '
                f'{len(self.to_13) - 1}'
            )
        camera = NYUV2_INTRINSICS
        size = (camera.width, camera.height)
        depth = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST_EXACT)
        return LabelledFrame(
            id=self.ids[index],
            rgb=cv2.resize(rgb, size, interpolation=cv2.INTER_AREA),
            label=cv2.resize(self.to_13[raw], size, interpolation=cv2.INTER_NEAREST_EXACT),
            depth=depth,
            normal=normals_from_depth(depth, camera),
            intrinsics=camera,
            normals_source=NORMALS_SOURCE,
        )

    def check(self) -> None:
        """Read every frame; HDF5 notices damaged chunks only then."""
        problems = []
        for index in range(len(self)):
            try:
                self.read(index)
            except DatasetError as error:
                problems.append(str(error))
        if problems:
            listed = '\n  '.join(problems[:20])
            raise DatasetError(f'{len(problems)} frames of {self.path} are broken:\n  {listed}')

    def fingerprint(self) -> str:
        """Return a hash of the file's name, size and time, and of the class map."""
        status = self.path.stat()
        text = f'{self.path.name} {status.st_size} {status.st_mtime_ns} {self.ids}'
        return hashlib.sha256(text.encode() + self.to_13.tobytes()).hexdigest()


def write_pictures(
    path: str | Path,
    out: str | Path,
    maps: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write the .mat file as a picture folder, out/SPLIT/{rgb,depth,label13}/ID.png.

    Pictures are 384x288; depth is uint16 millimetres, 0 = unknown; labels are 0..12, 255 =
    unlabelled.

    Args:
        path: `nyu_depth_v2_labeled.mat`.
        out: the picture folder; its splits must be absent or empty.
        maps: folder of the split and the class maps, as of `NyuV2Mat`.
        progress: wraps an iterable of known length, for a progress bar.

    Returns:
        The number of frames of each split.

    Raises:
        DatasetError: A file is missing or damaged, a split of `out` holds something, or a picture
            cannot be written.
    """
    readers = {split: NyuV2Mat(path, split, maps) for split in SPLITS}
    for split in SPLITS:
        folder = Path(out) / split
        if folder.exists() and any(folder.iterdir()):
            raise DatasetError(f'{folder} is not empty: remove it, or choose another folder')
    for split, reader in readers.items():
        indices: Iterable[int] = range(len(reader))
        if progress is not None:
            indices = progress(indices, len(reader), f'writing {split}')
        for index in indices:
            _write_frame(Path(out) / split, reader.read(index))
    return {split: len(reader) for split, reader in readers.items()}


def _write_frame(folder: Path, frame: LabelledFrame) -> None:
    pictures = {
        'rgb': frame.rgb[..., ::-1],
        'depth': np.rint(np.nan_to_num(frame.depth) * 1000).astype(np.uint16),
        'label13': frame.label,
    }
    for name, pixels in pictures.items():
        target = folder / name / f'{frame.id}.png'
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(cv2.imencode('.png', pixels)[1])
        except OSError as error:
            raise DatasetError(
                f'{target} cannot be written ({error.strerror}): free some space, remove {folder} '
                'and begin again'
            ) from error


def read_class_map(folder: Path) -> np.ndarray:
    """Return the map from raw class (0..894, 0 = unlabelled) to 0..12 or 255, uint8 [895].

    Raises:
        DatasetError: A file is missing, or the maps do not lead to 13 classes.
    """
    to_40 = _matlab_array(folder / 'classMapping40.mat', 'mapClass').astype(int).ravel()
    to_13 = _matlab_array(folder / 'class13Mapping.mat', 'classMapping13').astype(int).ravel()
    if to_40.min() < 0 or to_40.max() > len(to_13) or not 1 <= to_13.max() <= 13:
        raise DatasetError(
            f'{folder}: maps of {len(to_40)} and {len(to_13)} classes do not lead to 1..13'
        )
    # Class 0 of each map is "unlabelled"; 13 classes count from 1.
    final = np.concatenate([[0], to_13])[np.concatenate([[0], to_40])]
    return np.where((final >= 1) & (final <= 13), final - 1, UNLABELLED).astype(np.uint8)


def _matlab_array(path: Path, name: str) -> np.ndarray:
    """Return an array of a MATLAB 5 file; of a struct, its first field."""
    import scipy.io

    try:
        content = scipy.io.loadmat(str(path), squeeze_me=True, struct_as_record=False)
    except (OSError, ValueError, NotImplementedError) as error:
        raise DatasetError(
            f'{path} cannot be read ({error}): splits.mat, classMapping40.mat and '
            'class13Mapping.mat are expected beside the .mat file'
        ) from error
    if name not in content:
        raise DatasetError(f'{path} has no array {name}')
    value = content[name]
    fields = getattr(value, '_fieldnames', None)
    return np.asarray(getattr(value, fields[0]) if fields else value)
