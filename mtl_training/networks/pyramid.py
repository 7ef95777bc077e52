"""A feature pyramid at stride 4 with one shared fusion and a light head per task.

After Lin et al., Feature Pyramid Networks (CVPR 2017), with depthwise-separable convolutions
(Chollet, CVPR 2017) and an image-wide context (Liu et al., ParseNet, 2015).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mtl_training.networks.layers import SeparableConv, lateral_convs, resize


class PyramidFusion(nn.Module):
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
        # No normalisation here: a map of one pixel has no batch statistics at batch size one.
        self.context = nn.Conv2d(in_channels[-1], channels, 1)
        # The coarsest level sees furthest; a wide kernel costs nothing on its few pixels.
        self.smooth = nn.ModuleList(
            SeparableConv(channels, channels, 7 if level == len(in_channels) - 1 else 3, norm)
            for level in range(len(in_channels))
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse the maps from coarse to fine."""
        context = self.context(maps[-1].mean(dim=(2, 3), keepdim=True))
        fused = self.smooth[-1](self.laterals[-1](maps[-1]) + context)
        for level in range(len(maps) - 2, -1, -1):
            lateral = self.laterals[level](maps[level])
            fused = self.smooth[level](lateral + resize(fused, lateral))
        return fused


class PyramidHead(nn.Sequential):
    """Compute one task's raw output [N,out_channels,H,W] from the fused map."""

    def __init__(self, in_channels: int, out_channels: int, norm: str = 'batch') -> None:
        super().__init__(
            SeparableConv(in_channels, in_channels, norm=norm),
            nn.Conv2d(in_channels, out_channels, 1),
        )
