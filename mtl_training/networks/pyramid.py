"""A feature pyramid at stride 4 with one shared fusion and a light head per task.

After Lin et al., Feature Pyramid Networks (CVPR 2017), with depthwise-separable convolutions
(Chollet, CVPR 2017) and an image-wide context (Liu et al., ParseNet, 2015). In the attentive one
the cells of the coarsest level look at each other (Vaswani et al., Attention Is All You Need,
NeurIPS 2017): what tells how far a wall is may stand anywhere in the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mtl_training.networks.layers import SeparableConv, lateral_convs, resize

ATTENTION_LAYERS = 2
CHANNELS_OF_A_HEAD = 32
# Of the positions' waves, as in DETR (Carion et al., ECCV 2020): a map has tens of cells, a text
# thousands of words.
TEMPERATURE = 20.0


class CellAttention(nn.Module):
    """Let every cell of a map [N,channels,H,W] look at all others; the result is added to it.

    Nothing is added before the first step of training, so that a pyramid's weights can go on in an
    attentive one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        heads = max(channels // CHANNELS_OF_A_HEAD, 1)
        self.layers = nn.Sequential(
            *(
                Block(channels, heads, mlp_ratio=2.0, qkv_bias=True)
                for _ in range(ATTENTION_LAYERS)
            ),
            nn.LayerNorm(channels),
        )
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        positions = build_sincos2d_pos_embed(
            list(x.shape[-2:]), x.shape[1], TEMPERATURE, device=x.device, dtype=x.dtype
        )
        cells = self.out(self.layers(x.flatten(2).transpose(1, 2) + positions))
        return x + cells.transpose(1, 2).reshape(x.shape)


class PyramidFusion(nn.Module):
    """Fuse a backbone's maps, fine to coarse, into one map [N,channels,H,W] at the finest stride.

    Args:
        in_channels: channels of each map, fine to coarse.
        channels: channels of every pyramid level.
        norm: kind of normalisation, `batch` or `group`.
        attentive: whether the coarsest level's cells look at each other; `channels` is then a
            multiple of 32, or one of 4 below 32.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        norm: str = 'batch',
        *,
        attentive: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = channels
        self.laterals = lateral_convs(in_channels, channels, norm)
        # No normalisation here: a map of one pixel has no batch statistics at batch size one.
        self.context = nn.Conv2d(in_channels[-1], channels, 1)
        self.attention = CellAttention(channels) if attentive else nn.Identity()
        # The coarsest level sees furthest; a wide kernel costs nothing on its few pixels.
        self.smooth = nn.ModuleList(
            SeparableConv(channels, channels, 7 if level == len(in_channels) - 1 else 3, norm)
            for level in range(len(in_channels))
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse the maps from coarse to fine."""
        context = self.context(maps[-1].mean(dim=(2, 3), keepdim=True))
        fused = self.smooth[-1](self.attention(self.laterals[-1](maps[-1]) + context))
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
