"""Building blocks that the decoders share."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def norm_layer(kind: str, channels: int) -> nn.Module:
    """Return a normalisation layer: `batch`, or `group` (the same with any batch or process)."""
    if kind == 'batch':
        return nn.BatchNorm2d(channels)
    if kind == 'group':
        return nn.GroupNorm(min(32, channels // 4), channels)
    raise ValueError(f'norm is {kind!r}: it must be batch or group')


def lateral_convs(in_channels: Sequence[int], channels: int, norm: str) -> nn.ModuleList:
    """Return a 1x1 convolution with normalisation for each map, to bring all to `channels`."""
    return nn.ModuleList(
        nn.Sequential(nn.Conv2d(width, channels, 1, bias=False), norm_layer(norm, channels))
        for width in in_channels
    )


class SeparableConv(nn.Sequential):
    """Depthwise convolution, 1x1 convolution, normalisation, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, norm: str = 'batch'
    ) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels,
                in_channels,
                kernel,
                padding=kernel // 2,
                groups=in_channels,
                bias=False,
            ),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            norm_layer(norm, out_channels),
            nn.ReLU(inplace=True),
        )


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Scale a map bilinearly to another map's height and width."""
    return F.interpolate(x, size=like.shape[-2:], mode='bilinear', align_corners=False)
