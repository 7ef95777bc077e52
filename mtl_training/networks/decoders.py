"""The registry of decoders: how each builds its fusion and its heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from mtl_training.networks.bifpn import BiFpnFusion
from mtl_training.networks.deeplab import CoarsestMap, DeepLabHead
from mtl_training.networks.pyramid import PyramidFusion, PyramidHead
from mtl_training.networks.segformer import MlpFusion, MlpHead


@dataclass(frozen=True)
class Decoder:
    """Builders of a decoder's two parts.

    Attributes:
        fusion: f(channels of the backbone's maps, width, norm) -> module that turns the maps into
            one, and tells its `out_channels`.
        head: f(channels of the fused map, outputs, width, norm) -> module ending in a convolution.
        align_corners: how its output is scaled to the picture's size.
        coarse: whether the fused map has the coarsest map's size and not the finest's.
        extends: another decoder whose weights this one can go on from: what it has besides does
            nothing before the first step of training.
    """

    fusion: Callable[[Sequence[int], int, str], nn.Module]
    head: Callable[[int, int, int, str], nn.Sequential]
    align_corners: bool = False
    coarse: bool = False
    extends: str | None = None


DECODERS: dict[str, Decoder] = {
    'pyramid': Decoder(
        fusion=PyramidFusion,
        head=lambda fused, outputs, width, norm: PyramidHead(fused, outputs, norm),
    ),
    'attentive_pyramid': Decoder(
        fusion=lambda channels, width, norm: PyramidFusion(channels, width, norm, attentive=True),
        head=lambda fused, outputs, width, norm: PyramidHead(fused, outputs, norm),
        extends='pyramid',
    ),
    'bifpn': Decoder(
        fusion=BiFpnFusion,
        head=lambda fused, outputs, width, norm: PyramidHead(fused, outputs, norm),
    ),
    'deeplab': Decoder(
        fusion=lambda channels, width, norm: CoarsestMap(channels),
        head=lambda fused, outputs, width, norm: DeepLabHead(fused, outputs),
        align_corners=True,
        coarse=True,
    ),
    'segformer': Decoder(
        fusion=lambda channels, width, norm: MlpFusion(channels, width),
        head=lambda fused, outputs, width, norm: MlpHead(fused, width, outputs, norm),
    ),
}
