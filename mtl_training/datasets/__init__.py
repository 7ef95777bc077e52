"""Frames for training: prepared arrays, mixtures of them, and joint augmentation."""

from mtl_training.datasets.arrays import ArrayFrame, DatasetError, PreparedArrays
from mtl_training.datasets.augmentation import VirtualCamera, augment, draw_camera
from mtl_training.datasets.mixtures import BatchRequest, FrameSubset, Mixture
from mtl_training.datasets.prepare import prepare

__all__ = [
    'ArrayFrame',
    'BatchRequest',
    'DatasetError',
    'FrameSubset',
    'Mixture',
    'PreparedArrays',
    'VirtualCamera',
    'augment',
    'draw_camera',
    'prepare',
]
