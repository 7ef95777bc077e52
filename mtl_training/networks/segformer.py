"""SegFormer's all-MLP decoder (Xie et al., NeurIPS 2021) with one fusing layer per task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtl_training.networks.layers import norm_layer, resize


class MlpFusion(nn.Module):
    """Project every map to one width, scale all to the finest and join their channels."""

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.out_channels = channels * len(in_channels)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the joined maps [N,out_channels,H,W], coarsest first as in the paper."""
        projected = [project(x) for project, x in zip(self.projections, maps, strict=True)]
        finest = projected[0]
        return torch.cat([*(resize(x, finest) for x in reversed(projected[1:])), finest], dim=1)


class MlpHead(nn.Sequential):
    """Fuse the joined maps and compute one task's raw output [N,out_channels,H,W]."""

    def __init__(self, in_channels: int, channels: int, out_channels: int, norm: str) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, 1, bias=False),
            norm_layer(norm, channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.1),
            nn.Conv2d(channels, out_channels, 1),
        )
