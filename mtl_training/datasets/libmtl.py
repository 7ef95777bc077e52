"""LibMTL's NYUv2 folders: `{root}/{train|val}/{image,label,depth,normal}/{i}.npy`.

image [H, W, 3] in [0, 1]; label [H, W] with -1 = ignored; depth [H, W, 1] in metres, 0 = invalid;
normal [H, W, 3], (0, 0, 0) = invalid. The axes of the normals are not documented there, so the
reader takes them as an option and checks them on floors.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mtl_perception.datasets import NYUV2_INTRINSICS, DatasetError, LabelledFrame
from mtl_perception.frames import Intrinsics

TARGETS = ('image', 'label', 'depth', 'normal')
FLOOR = 4
NAMED_PROBLEMS = 20
# A floor looks up at a camera: its y component is negative in the optical frame (y down).
MIN_FLOOR_PIXELS = 500


class LibMtlFolder:
    """A LibMTL folder as labelled frames.

    Args:
        root: folder with the splits.
        split: 'train' or 'val'.
        normal_axes: signed axes of the stored normals that give x right, y down, z forward, as in
            ('x', 'y', 'z') or ('x', '-z', 'y').
        intrinsics: of every picture; NYUv2's scaled to the pictures' size by default.

    Raises:
        DatasetError: The split is absent or empty, or the axes are no axes.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        normal_axes: tuple[str, str, str] = ('x', 'y', 'z'),
        intrinsics: Intrinsics | None = None,
    ) -> None:
        self.folder = Path(root) / split
        self.name = Path(root).resolve().name
        images = self.folder / 'image'
        stems = [file.stem for file in images.glob('*.npy')] if images.is_dir() else []
        self.ids = sorted(stems, key=lambda stem: (len(stem), stem))
        if not self.ids:
            raise DatasetError(f'{images} holds no .npy pictures: expected {images}/0.npy, ...')
        self.axes = _axes_matrix(normal_axes)
        self._normal_axes = normal_axes
        self._intrinsics = intrinsics

    def __len__(self) -> int:
        return len(self.ids)

    def _load(self, target: str, frame_id: str) -> np.ndarray:
        path = self.folder / target / f'{frame_id}.npy'
        try:
            return np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise DatasetError(f'{path}: missing') from None
        except (OSError, ValueError, EOFError) as error:
            raise DatasetError(f'{path}: unreadable ({error})') from error

    def read(self, index: int) -> LabelledFrame:
        """Return one frame.

        Raises:
            DatasetError: A file is missing, unreadable, of another shape or not finite.
        """
        frame_id = self.ids[index]
        image, label, depth, normal = (self._load(target, frame_id) for target in TARGETS)
        size = image.shape[:2]
        shapes = {
            'image': (*size, 3),
            'label': size,
            'depth': (*size, 1),
            'normal': (*size, 3),
        }
        arrays = {'image': image, 'label': label, 'depth': depth, 'normal': normal}
        for target, array in arrays.items():
            path = self.folder / target / f'{frame_id}.npy'
            if array.shape != shapes[target]:
                raise DatasetError(f'{path}: shape {array.shape}, expected {shapes[target]}')
            if not np.isfinite(array).all():
                raise DatasetError(f'{path}: holds NaN or infinite values; 0 marks invalid pixels')
        if image.min() < 0 or image.max() > 1:
            raise DatasetError(
                f'{self.folder}/image/{frame_id}.npy: values up to {image.max():.3g}, '
                'expected 0..1'
            )
        ids = np.rint(label).astype(np.int64)
        if ids.min() < -1 or ids.max() > 254:
            raise DatasetError(
                f'{self.folder}/label/{frame_id}.npy: ids {ids.min()}..{ids.max()}, expected '
                '-1 (ignored) or a class'
            )
        turned = normal.astype(np.float32) @ self.axes.T
        length = np.linalg.norm(turned, axis=-1, keepdims=True)
        turned = np.divide(turned, length, out=np.zeros_like(turned), where=length > 1e-3)
        return LabelledFrame(
            id=frame_id,
            rgb=np.rint(image * 255).astype(np.uint8),
            label=np.where(ids < 0, 255, ids).astype(np.uint8),
            depth=depth[..., 0].astype(np.float32),
            normal=turned,
            intrinsics=self._intrinsics or _nyuv2(size),
            normals_source='file',
        )

    def check(self) -> None:
        """Read every file; name what is broken; make sure that floors look up.

        Raises:
            DatasetError: Files are missing or unreadable, or the normals' axes are wrong.
        """
        problems, upward = [], []
        for index in range(len(self)):
            try:
                frame = self.read(index)
            except DatasetError as error:
                problems.append(str(error))
                continue
            floor = (frame.label == FLOOR) & frame.normal.any(axis=-1)
            if floor.sum() >= MIN_FLOOR_PIXELS:
                upward.append(np.median(frame.normal[floor], axis=0))
        if problems:
            shown = '\n  '.join(problems[:NAMED_PROBLEMS])
            raise DatasetError(
                f'{len(problems)} of {len(self)} frames of {self.folder} are broken; restore or '
                f'remove them:\n  {shown}'
            )
        if upward:
            mean = np.mean(upward, axis=0)
            if mean[1] > -0.5:
                raise DatasetError(
                    f'floors of {self.folder} have the normal {np.round(mean, 2).tolist()} with '
                    f'the axes {self._normal_axes}, about (0, -1, 0) is expected: choose other '
                    'normal_axes'
                )

    def fingerprint(self) -> str:
        """Return a hash of the files' names, sizes and times, and of the axes."""
        digest = hashlib.sha256(str(self._normal_axes).encode())
        for file in sorted(self.folder.rglob('*.npy')):
            status = file.stat()
            digest.update(f'{file.name} {status.st_size} {status.st_mtime_ns}\n'.encode())
        return digest.hexdigest()


def write_libmtl_frame(root: Path, split: str, number: int, frame: LabelledFrame) -> None:
    """Write one frame in LibMTL's format, normals in the optical frame.

    Args:
        root: folder of the data set.
        split: 'train' or 'val'.
        number: name of the files.
        frame: with label, depth and normal.
    """
    if frame.label is None or frame.depth is None or frame.normal is None:
        raise DatasetError(f'frame {frame.id} lacks a target: LibMTL has label, depth and normal')
    label = frame.label.astype(np.float32)
    arrays = {
        'image': (frame.rgb / 255).astype(np.float32),
        'label': np.where(frame.label == 255, -1, label).astype(np.float32),
        'depth': np.nan_to_num(frame.depth).astype(np.float32)[..., None],
        'normal': np.nan_to_num(frame.normal).astype(np.float32),
    }
    for target, array in arrays.items():
        folder = root / split / target
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f'{number}.npy', array)


def _axes_matrix(axes: tuple[str, str, str]) -> np.ndarray:
    """Return the rotation or reflection that signed axis names stand for."""
    rows = []
    for axis in axes:
        sign, letter = (-1.0, axis[1:]) if axis.startswith('-') else (1.0, axis)
        if letter not in ('x', 'y', 'z'):
            raise DatasetError(f"normal_axes {axes}: each must be one of x y z, '-' before it")
        rows.append([sign * (letter == other) for other in 'xyz'])
    matrix = np.array(rows, np.float32)
    if abs(np.linalg.det(matrix)) < 0.5:
        raise DatasetError(f'normal_axes {axes}: x, y and z must each occur once')
    return matrix


def _nyuv2(size: tuple[int, int]) -> Intrinsics:
    height, width = size
    known = NYUV2_INTRINSICS
    if width * known.height != height * known.width:
        raise DatasetError(
            f"pictures of {width}x{height} are not of NYUv2's aspect: give their intrinsics"
        )
    if width == known.width:
        return known
    return known.scaled(width / known.width, width, height)
