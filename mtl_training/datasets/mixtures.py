"""Mixtures of data sets as a pure function from step to batch.

Batch `step` is the same whoever asks for it and whenever: order, virtual cameras and colours come
from (seed, step, slot). Resuming a run needs no state of the reader, and several processes take
their slots of the same global batch.
"""

from __future__ import annotations

import signal
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from mtl_training.config import AugmentationSettings, ConfigError
from mtl_training.datasets.arrays import ArrayFrame, DatasetError, PreparedArrays
from mtl_training.datasets.augmentation import augment, change_colours, draw_camera
from mtl_training.datasets.scenes import scene_edges

Batch = dict[str, Any]
BLOCK = 1000
EMPTY_SLOT = -2


@dataclass(frozen=True)
class FrameSubset:
    """Some frames of prepared arrays, under the source's name."""

    name: str
    arrays: PreparedArrays
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, position: int) -> ArrayFrame:
        """Return the frame at `position` of the subset."""
        return self.arrays.read(self.indices[position])

    @property
    def normals_source(self) -> str:
        """Where the frames' normals come from; 'none' where they have none."""
        return self.arrays.normals_source if 'normal' in self.arrays.truths else 'none'


@dataclass(frozen=True)
class FrameUnion:
    """Frames of several subsets, one after the other, to be measured together."""

    subsets: tuple[FrameSubset, ...]

    def __len__(self) -> int:
        return sum(len(subset) for subset in self.subsets)

    def read(self, position: int) -> ArrayFrame:
        """Return the frame at `position` of all of them."""
        for subset in self.subsets:
            if position < len(subset):
                return subset.read(position)
            position -= len(subset)
        raise IndexError(f'position {position} beyond the last frame')

    @property
    def normals_source(self) -> str:
        """Where the frames' normals come from, several joined by '+'; 'none' without any."""
        sources = sorted({subset.normals_source for subset in self.subsets} - {'none'})
        return '+'.join(sources) or 'none'


Frames = FrameSubset | FrameUnion


@dataclass(frozen=True)
class BatchRequest:
    """Which batch, the size of its pictures in pixels, and the zooms if not the usual ones."""

    step: int
    height: int
    width: int
    zoom: tuple[float, float] | None = None


class Mixture(Dataset):
    """Augmented batches drawn from several subsets in fixed proportions.

    The proportions hold exactly over time (not only on average), and each subset is walked
    through in a new random order before any of its frames comes again.

    Args:
        subsets: what to draw from; none may be empty.
        weights: share of each subset, any scale.
        batch_size: frames of the global batch.
        focal_length: fx in pixels that every frame is brought to.
        augmentation: how cameras and colours vary.
        seed: of everything random.
        rank, world_size: this process takes every `world_size`-th of the shuffled slots.

    Raises:
        DatasetError, ConfigError: A subset is empty, or its weight too small to be drawn.
    """

    def __init__(
        self,
        subsets: list[FrameSubset],
        weights: list[float],
        batch_size: int,
        focal_length: float,
        augmentation: AugmentationSettings,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(subsets) != len(weights):
            raise ValueError(f'{len(subsets)} subsets have {len(weights)} weights')
        for subset in subsets:
            if not len(subset):
                raise DatasetError(
                    f'source {subset.name} has no frames left to train on: hold fewer out, or '
                    'add pictures'
                )
        self.subsets = subsets
        self.pattern = spread(weights, BLOCK)
        absent = set(range(len(subsets))) - set(self.pattern.tolist())
        if absent:
            names = [subsets[k].name for k in sorted(absent)]
            raise ConfigError(
                f'weights of {names} are below one sample in {BLOCK}: raise them or remove the '
                'sources'
            )
        self.batch_size = batch_size
        self.focal_length = focal_length
        self.augmentation = augmentation
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __getitem__(self, request: BatchRequest) -> Batch:
        cv2.setNumThreads(1)
        chosen = self.choose(request.step)
        slots = self.slots(request.step)
        samples = [self._sample(request, slot, *chosen[slot]) for slot in slots]
        ids = [f'{self.subsets[k].name}:{self.subsets[k].read(p).id}' for k, p in chosen]
        return collate(samples, [ids[slot] for slot in slots])

    def slots(self, step: int) -> list[int]:
        """Return this process's slots of a batch.

        They are shuffled, because sources follow each other in a pattern: of two in turns, every
        second slot is always the same one's.
        """
        if self.world_size == 1:
            return list(range(self.batch_size))
        order = np.random.default_rng((self.seed, 3, step)).permutation(self.batch_size)
        return sorted(order[self.rank :: self.world_size].tolist())

    def choose(self, step: int) -> list[tuple[int, int]]:
        """Return (subset, position) of every slot of the global batch."""
        first = step * self.batch_size
        chosen = []
        for drawn in range(first, first + self.batch_size):
            subset, count = self._subset_of(drawn)
            epoch, place = divmod(count, len(self.subsets[subset]))
            chosen.append((subset, int(self._order(subset, epoch)[place])))
        return chosen

    def _subset_of(self, drawn: int) -> tuple[int, int]:
        """Return the subset of the `drawn`-th sample and how often it was drawn before.

        Every block of BLOCK samples has the same pattern with the exact proportions.
        """
        block, offset = divmod(drawn, BLOCK)
        subset = int(self.pattern[offset])
        before = int(np.count_nonzero(self.pattern[:offset] == subset))
        return subset, block * int(np.count_nonzero(self.pattern == subset)) + before

    def _order(self, subset: int, epoch: int) -> np.ndarray:
        key = (subset, epoch)
        if key not in self._orders:
            for old in [old for old in self._orders if old[0] == subset and old[1] < epoch - 1]:
                del self._orders[old]
            random = np.random.default_rng((self.seed, 1, subset, epoch))
            self._orders[key] = random.permutation(len(self.subsets[subset]))
        return self._orders[key]

    def _sample(
        self, request: BatchRequest, slot: int, subset: int, position: int
    ) -> dict[str, np.ndarray]:
        random = np.random.default_rng((self.seed, 2, request.step, slot))
        frame = self.subsets[subset].read(position)
        augmentation = self.augmentation
        if request.zoom is not None:
            augmentation = augmentation.model_copy(update={'zoom': request.zoom})
        camera = draw_camera(
            random,
            augmentation,
            frame.intrinsics,
            request.height,
            request.width,
            self.focal_length,
        )
        sample = augment(frame, camera)
        sample['image'] = change_colours(sample['image'], random, self.augmentation)
        return sample


def spread(weights: list[float], length: int) -> np.ndarray:
    """Return `length` subset numbers with the weights' proportions, each evenly spread."""
    edges = np.rint(np.cumsum(weights) / np.sum(weights) * length).astype(int)
    counts = np.diff(edges, prepend=0)
    times = np.concatenate([(np.arange(count) + 0.5) / max(count, 1) for count in counts])
    owners = np.repeat(np.arange(len(weights)), counts)
    return owners[np.argsort(times, kind='stable')]


def collate(samples: list[dict[str, np.ndarray]], ids: list[str]) -> Batch:
    """Stack samples into the tensors of one batch.

    Returns:
        image uint8 [N, 3, H, W] in channels-last memory, label int64 [N, H, W] (255 ignored),
        depth float32 [N, H, W] m (0 invalid), normal float32 [N, 3, H, W] (0 invalid),
        intrinsics float32 [N, 4], ids list of 'source:frame', boxes float32 [N, M, 4] px,
        box_labels int64 [N, M] (-1 not told apart, -2 empty), boxes_known bool [N, C], attributes
        int8 [N, A] (-1 unknown).
    """

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([sample[name] for sample in samples]))

    most = max(len(sample['boxes']) for sample in samples)
    boxes = torch.zeros((len(samples), most, 4))
    box_labels = torch.full((len(samples), most), EMPTY_SLOT)
    for index, sample in enumerate(samples):
        number = len(sample['boxes'])
        boxes[index, :number] = torch.from_numpy(sample['boxes'])
        box_labels[index, :number] = torch.from_numpy(sample['box_labels'])
    return {
        'image': stacked('image').permute(0, 3, 1, 2),
        'label': stacked('label').long(),
        'depth': stacked('depth'),
        'normal': stacked('normal').permute(0, 3, 1, 2),
        'intrinsics': stacked('intrinsics'),
        'boxes': boxes,
        'box_labels': box_labels,
        'boxes_known': stacked('boxes_known'),
        'attributes': stacked('attributes'),
        'ids': ids,
    }


class Requests(Sampler):
    """The batches to come; sizes are asked for when a batch is ordered, not in advance."""

    def __init__(self, requests: Iterator[BatchRequest]) -> None:
        self._requests = requests

    def __iter__(self) -> Iterator[BatchRequest]:
        return self._requests


def batches(mixture: Mixture, requests: Iterator[BatchRequest], workers: int) -> Iterator[Batch]:
    """Return the requested batches in order, made by `workers` processes ahead of time.

    Ctrl-C and SIGTERM, which a terminal and torchrun send to the workers, too, are left to this
    process.
    """
    loader = DataLoader(
        mixture,
        sampler=Requests(requests),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=3 if workers else None,
        worker_init_fn=_start_worker,
        # Threads of OpenCV and of inference engines do not survive a fork.
        multiprocessing_context='spawn' if workers else None,
        # Its own generator: drawing from the global one would change a resumed run.
        generator=torch.Generator(),
    )
    resource_tracker.ensure_running()  # started later, it would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return iter(loader)  # the workers keep the mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def held_out_blocks(ids: Sequence[str], blocks: int, frames_per_block: int) -> tuple[int, ...]:
    """Return indices of `blocks` evenly spread runs of consecutive frames.

    A run that would cut a scene (see scenes.py) begins earlier and ends later, with whole ones.

    Args:
        ids: of the frames, in their order.
        blocks: number of runs.
        frames_per_block: least frames of each.

    Raises:
        DatasetError: Nothing would be left to train on.
    """
    edges = scene_edges(ids)
    chosen: set[int] = set()
    if blocks * frames_per_block < len(ids):
        pitch = len(ids) / blocks
        for block in range(blocks):
            start = round(pitch * (block + 0.5) - frames_per_block / 2)
            start = edges[bisect_right(edges, start) - 1]
            chosen |= {*range(start, edges[bisect_left(edges, start + frames_per_block)])}
    if len(chosen) in (0, len(ids)):
        raise DatasetError(
            f'{blocks} blocks of {frames_per_block} frames leave nothing of {len(ids)} to train '
            'on: hold fewer out with --set data.held_out.blocks=... and '
            'data.held_out.frames_per_block=..., or add pictures'
        )
    return tuple(sorted(chosen))
