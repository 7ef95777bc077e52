"""The reference study's decoder: one DeepLabv3 head per task on the coarsest map.

Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation (2017), in
torchvision's form, which LibMTL uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

RATES = (12, 24, 36)
CHANNELS = 256


def _block(in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class CoarsestMap(nn.Module):
    """Pass the coarsest map on: the heads share nothing but the backbone."""

    def __init__(self, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = in_channels[-1]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the last map."""
        return maps[-1]


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling [N,in_channels,H,W] -> [N,256,H,W]."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                _block(in_channels, CHANNELS, 1),
                *(_block(in_channels, CHANNELS, 3, rate) for rate in RATES),
            ]
        )
        self.pooled = _block(in_channels, CHANNELS, 1)
        self.project = nn.Sequential(
            *_block((len(RATES) + 2) * CHANNELS, CHANNELS, 1), nn.Dropout(0.5)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Join the branches and the image-wide mean."""
        pooled = self.pooled(x.mean(dim=(2, 3), keepdim=True))
        pooled = pooled.expand(-1, -1, x.shape[2], x.shape[3])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1))


class DeepLabHead(nn.Sequential):
    """Compute one task's raw output [N,out_channels,H,W] at the map's stride."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            AtrousPyramid(in_channels),
            *_block(CHANNELS, CHANNELS, 3),
            nn.Conv2d(CHANNELS, out_channels, 1),
        )
