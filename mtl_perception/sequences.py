"""Folders of plain pictures and RGB-D sequences, read the same way by player and evaluation."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from mtl_perception.datasets import DatasetError, read_picture
from mtl_perception.frames import Intrinsics

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.webp', '.tif', '.tiff')
INVALID_MILLIMETRES = 65535
CAMERA_FILE = 'camera-intrinsics.txt'


class PictureSequence:
    """Pictures in the order of their names, with depth, pose and camera where they lie beside.

    Pictures called NAME.color.SUFFIX are an RGB-D sequence, such as those of 7-Scenes: beside
    them lie NAME.depth.png (16-bit millimetres), NAME.pose.txt (4x4, camera to world, metres) and
    camera-intrinsics.txt (3x3, pixels). Where there are such pictures, others are left out.

    Attributes:
        files: the colour pictures; numbers in their names count as numbers.
        has_depth: whether any picture has depth.
        has_poses: whether any picture has a pose.

    Raises:
        DatasetError: the folder holds no picture.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pictures = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES]
        colour = [file for file in pictures if '.color.' in file.name]
        self.files = sorted(colour or pictures, key=_natural_order)
        if not self.files:
            raise DatasetError(
                f'{folder} holds no pictures: expected files ending in {", ".join(SUFFIXES)}'
            )
        self.has_depth = any(self._beside(i, 'depth.png') for i in range(len(self)))
        self.has_poses = any(self._beside(i, 'pose.txt') for i in range(len(self)))

    def __len__(self) -> int:
        return len(self.files)

    @property
    def is_rgbd(self) -> bool:
        """Whether the pictures' names are those of an RGB-D sequence."""
        return '.color.' in self.files[0].name

    def name(self, index: int) -> str:
        """Return what a picture's files have in common."""
        file = self.files[index]
        return file.name.partition('.color.')[0] if self.is_rgbd else file.stem

    def picture(self, index: int) -> np.ndarray:
        """Return a picture, uint8 [H, W, 3] BGR.

        Raises:
            DatasetError: it is damaged or no picture.
        """
        return read_picture(self.files[index], cv2.IMREAD_COLOR)

    def depth(self, index: int) -> np.ndarray | None:
        """Return a picture's depth, uint16 [h, w] in millimetres, 0 = invalid, if it has one.

        Raises:
            DatasetError: it is damaged or of another kind.
        """
        path = self._beside(index, 'depth.png')
        if path is None:
            return None
        depth = read_picture(path, cv2.IMREAD_UNCHANGED)
        if depth.dtype != np.uint16 or depth.ndim != 2:
            raise DatasetError(
                f'{path} is {depth.dtype} {list(depth.shape)}: expected one channel of 16-bit '
                'millimetres'
            )
        depth[depth == INVALID_MILLIMETRES] = 0
        return depth

    def pose(self, index: int) -> np.ndarray | None:
        """Return camera to world, float64 [4, 4]; None without one or where tracking was lost.

        Raises:
            DatasetError: the file is no matrix.
        """
        path = self._beside(index, 'pose.txt')
        matrix = None if path is None else _read_matrix(path, (4, 4))
        return matrix if matrix is not None and np.isfinite(matrix).all() else None

    def intrinsics(self, height: int, width: int) -> Intrinsics | None:
        """Return the camera of pictures of this size, if it is known.

        Raises:
            DatasetError: camera-intrinsics.txt is broken.
        """
        k = self._matrix
        return None if k is None else Intrinsics(width, height, k[0, 0], k[1, 1], k[0, 2], k[1, 2])

    @cached_property
    def _matrix(self) -> np.ndarray | None:
        path = self.folder / CAMERA_FILE
        return _read_matrix(path, (3, 3)) if path.is_file() else None

    @property
    def has_camera(self) -> bool:
        """Whether the folder says what camera took the pictures."""
        return (self.folder / CAMERA_FILE).is_file()

    def _beside(self, index: int, suffix: str) -> Path | None:
        if not self.is_rgbd:
            return None
        path = self.folder / f'{self.name(index)}.{suffix}'
        return path if path.is_file() else None


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Sort frame-2 before frame-10."""
    return [
        (int(part), '') if part.isdigit() else (-1, part) for part in re.split(r'(\d+)', path.name)
    ]


def _read_matrix(path: Path, shape: tuple[int, int]) -> np.ndarray:
    try:
        return np.loadtxt(path, dtype=np.float64).reshape(shape)
    except ValueError as error:
        raise DatasetError(
            f'{path} is no {shape[0]}x{shape[1]} matrix ({error}): expected {shape[0]} lines of '
            f'{shape[1]} numbers'
        ) from error
