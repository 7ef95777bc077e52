"""Confidence that means something: temperature scaling on held-out frames.

Guo et al., On Calibration of Modern Neural Networks (ICML 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtl_training.datasets.arrays import INVALID_LABEL
from mtl_training.datasets.mixtures import Frames
from mtl_training.networks import MultiTaskNetwork

PIXELS_PER_FRAME = 4000
MOST_LOGITS = 50_000_000  # of all frames together: 200 MB
BINS = 15


@dataclass(frozen=True)
class Calibration:
    """A temperature, and the expected calibration error before and after (0..1)."""

    temperature: float
    error_before: float
    error_after: float
    frames: int


@torch.inference_mode()
def calibrate(network: MultiTaskNetwork, frames: Frames, seed: int = 0) -> Calibration:
    """Find the temperature that minimises the negative log likelihood on held-out frames."""
    logits, labels = _sample(network, frames, seed)
    temperature = _minimise(logits, labels)
    return Calibration(
        temperature=round(temperature, 3),
        error_before=expected_calibration_error(logits, labels),
        error_after=expected_calibration_error(logits / temperature, labels),
        frames=len(frames),
    )


def expected_calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Return the mean gap between confidence and accuracy over 15 equal bins of confidence.

    Args:
        logits: float [P, C].
        labels: int64 [P], every one a class.
    """
    confidence, label = logits.softmax(dim=1).max(dim=1)
    right = (label == labels).float()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gap = torch.zeros(BINS).index_add_(0, bins, confidence - right)
    return float(gap.abs().sum() / len(labels))


def _sample(network: MultiTaskNetwork, frames: Frames, seed: int) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    logits, labels = [], []
    network.eval()
    for position in range(len(frames)):
        frame = frames.read(position)
        labelled = np.flatnonzero(frame.label.ravel() != INVALID_LABEL)
        if not len(labelled):
            continue
        image = torch.from_numpy(np.array(frame.image)).permute(2, 0, 1)[None]
        found = network(image)['segmentation'][0].flatten(1).T
        most = max(1, min(PIXELS_PER_FRAME, MOST_LOGITS // (len(frames) * found.shape[1])))
        chosen = torch.from_numpy(random.choice(labelled, min(len(labelled), most), replace=False))
        logits.append(found[chosen])
        labels.append(torch.from_numpy(frame.label.ravel().astype(np.int64))[chosen])
    return torch.cat(logits), torch.cat(labels)


def _minimise(logits: Tensor, labels: Tensor) -> float:
    """Search log temperature by golden sections; the likelihood has one minimum in 1 / T."""
    ratio = (5**0.5 - 1) / 2
    low, high = np.log(0.2), np.log(5.0)

    def loss(log_temperature: float) -> float:
        scaled = logits / float(np.exp(log_temperature))
        return float(torch.nn.functional.cross_entropy(scaled, labels))

    while high - low > 1e-3:
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))
