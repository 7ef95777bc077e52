"""A bidirectional feature pyramid, as in HydraNet-style networks of one backbone and many heads.

After Tan, Pang and Le, EfficientDet: Scalable and Efficient Object Detection (CVPR 2020), with
learned non-negative weights at every sum ("fast normalised fusion").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_training.networks.layers import SeparableConv, lateral_convs, resize

REPEATS = 3


class WeightedSum(nn.Module):
    """Add maps of one shape with learned weights, then convolve.

    Args:
        inputs: number of maps.
        channels: of each.
        norm: kind of normalisation, `batch` or `group`.
    """

    def __init__(self, inputs: int, channels: int, norm: str) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(inputs))
        self.smooth = SeparableConv(channels, channels, norm=norm)

    def forward(self, *maps: Tensor) -> Tensor:
        """Return a map of the same shape."""
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-4)
        total = weights[0] * maps[0]
        for index, x in enumerate(maps[1:], 1):
            total = total + weights[index] * x
        return self.smooth(total)


class BiFpnLayer(nn.Module):
    """One way down the pyramid and, but for the last layer, one way up again."""

    def __init__(self, levels: int, channels: int, norm: str, *, last: bool) -> None:
        super().__init__()
        self.down = nn.ModuleList(WeightedSum(2, channels, norm) for _ in range(levels - 1))
        # Only the finest level of the last layer is read: its way up would do nothing.
        rising = 0 if last else levels - 1
        self.up = nn.ModuleList(
            WeightedSum(3 if level < levels - 2 else 2, channels, norm) for level in range(rising)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps of the same shapes, fine to coarse."""
        coarsest = len(maps) - 1
        lower = [maps[coarsest]]
        for level in range(coarsest - 1, -1, -1):
            own = maps[level]
            lower.insert(0, self.down[level](own, resize(lower[0], own)))
        if not self.up:
            return lower
        out = [lower[0]]
        for level in range(1, coarsest + 1):
            finer = _reduce(out[-1], maps[level])
            inputs = (maps[level], lower[level], finer)
            # The coarsest map has no way down of its own.
            out.append(self.up[level - 1](*(inputs if level < coarsest else inputs[1:])))
        return out


def _reduce(finer: Tensor, like: Tensor) -> Tensor:
    """Halve a map; maps of one size (plain vision transformers) stay."""
    if finer.shape[-1] == like.shape[-1]:
        return finer
    return F.max_pool2d(finer, 3, stride=2, padding=1)


class BiFpnFusion(nn.Module):
    """Fuse a backbone's maps, fine to coarse, into one map [N,channels,H,W] at the finest stride.

    Args:
        in_channels: channels of each map, fine to coarse.
        channels: channels of every pyramid level.
        norm: kind of normalisation, `batch` or `group`.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, norm: str = 'batch') -> None:
        super().__init__()
        self.out_channels = channels
        self.laterals = lateral_convs(in_channels, channels, norm)
        self.layers = nn.ModuleList(
            BiFpnLayer(len(in_channels), channels, norm, last=index == REPEATS - 1)
            for index in range(REPEATS)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Run the layers and return the finest map."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for layer in self.layers:
            levels = layer(levels)
        return levels[0]
