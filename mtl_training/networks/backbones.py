"""Image backbones from timm behind one small interface: a sequence of stages."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Format
from torch import Tensor, nn

from mtl_training.networks.weights import (
    PACKAGES,
    BackboneError,
    classifier_with_weights,
    transfer,
)

FINEST_STRIDE = 4
MAX_LEVELS = 4
HUB = 'hf-hub:'
# What timm's networks need for dense prediction, by the beginning of their names.
OPTIONS: dict[str, dict[str, Any]] = {
    'resnet50': {'output_stride': 8},
    'resnet101': {'output_stride': 8},
    'resnet152': {'output_stride': 8},
    'swin': {'dynamic_img_size': True},
    'vit_': {'dynamic_img_size': True},
    'deit': {'dynamic_img_size': True},
}


class Backbone(nn.Module):
    """A timm network cut into stages, one feature map each.

    The stages run one after the other (`run_stage`), so that parameter sharing can act between
    them. Networks that timm can't cut (plain vision transformers) are one stage with several maps.

    Attributes:
        name: timm's name of the network.
        channels: channels of each feature map, fine to coarse.
        strides: pixels of the input per pixel of each feature map.
        mean, std: what the network was trained with, in units of pictures in 0..1.
        channels_last_output: whether the stages give [N,H,W,C].
        norm: normalisation of the last map, where the network ends in one.
    """

    def __init__(
        self,
        name: str,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        channels_last_output: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.stages = nn.ModuleList(stages)
        self.norm: nn.Module | None = None
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.channels_last_output = channels_last_output

    def run_stage(self, index: int, x: Tensor) -> Tensor | list[Tensor]:
        """Run one stage on the previous stage's raw output (the picture for stage 0)."""
        return self.stages[index](x)

    def as_maps(self, index: int, raw: Tensor | list[Tensor]) -> list[Tensor]:
        """Turn a stage's raw output into feature maps [N,C,H,W]."""
        if isinstance(raw, list):
            return raw
        if self.norm is not None and index == len(self.stages) - 1:
            raw = self.norm(raw)
        return [raw.permute(0, 3, 1, 2) if self.channels_last_output else raw]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the feature maps, fine to coarse, of normalised images [N,3,H,W]."""
        maps: list[Tensor] = []
        x: Any = images
        for index in range(len(self.stages)):
            x = self.run_stage(index, x)
            maps += self.as_maps(index, x)
        return maps


def build_backbone(
    name: str, *, pretrained: bool | str | Path = False, drop_path: float = 0.0
) -> Backbone:
    """Build a backbone by timm's name, or by a hub id (`hf-hub:owner/name`).

    Args:
        name: for instance `pvt_v2_b0`..`b5`, `pvt_v2_b2_li`, `resnet50` (dilated to stride 8),
            `swinv2_base_window8_256`, `tf_efficientnet_lite0`.
        pretrained: False starts from random weights; True takes ImageNet weights (from timm's hub
            or an installed package); a path takes them from a local file.
        drop_path: rate of stochastic depth, where the network has it.

    Raises:
        BackboneError: the name is unknown, or the weights can't be had or don't fit.
    """
    if not name.startswith(HUB) and not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=4) or ['pvt_v2_b0', 'resnet50']
        raise BackboneError(
            f'timm knows no backbone {name!r}: did you mean one of {", ".join(near)}?'
        )
    options = options_for(name)
    if drop_path:
        options['drop_path_rate'] = drop_path
    try:
        features = timm.create_model(name, features_only=True, **options)
        with torch.device('meta'):
            classifier = timm.create_model(name, num_classes=0, **options)
    except (RuntimeError, TypeError, ValueError, OSError, AttributeError) as error:
        raise BackboneError(
            f'timm can not build {name} as a features backbone with the options {options} '
            f'({str(error).splitlines()[0]}): choose another backbone'
        ) from error
    if pretrained:
        classifier = classifier_with_weights(name, pretrained, options)
        transfer(classifier, features)
    backbone = _cut(name, features, classifier)
    norm = getattr(classifier, 'norm', None)
    if backbone.channels_last_output and isinstance(norm, nn.LayerNorm):
        # Swin's features are not normalised before the norm that timm's features leave out.
        backbone.norm = nn.LayerNorm(backbone.channels[-1], eps=norm.eps)
        if pretrained:
            backbone.norm.load_state_dict(norm.state_dict())
    return backbone


def options_for(name: str) -> dict[str, Any]:
    """Return what timm is told of a network, known by its name in timm or on the hub."""
    known_as = name.rpartition('/')[2]
    return next((dict(o) for prefix, o in OPTIONS.items() if known_as.startswith(prefix)), {})


def _cut(name: str, features: nn.Module, classifier: nn.Module) -> Backbone:
    """Cut timm's feature network behind each feature map that we use."""
    info = features.feature_info
    levels = [i for i, stride in enumerate(info.reduction()) if stride >= FINEST_STRIDE]
    levels = levels[:MAX_LEVELS]
    nhwc = False
    if hasattr(features, 'return_layers'):
        layers = list(features.return_layers)
        stages = _group(list(features.named_children()), {layers[level] for level in levels})
        nhwc = features.output_fmt == Format.NHWC
    elif hasattr(features, 'conv_stem') and hasattr(features, 'blocks'):
        stem = [(part, module) for part, module in features.named_children() if part != 'blocks']
        blocks = [(f'blocks_{i}', block) for i, block in enumerate(features.blocks)]
        # timm numbers its outputs by stage: 0 is the stem's, i + 1 that of blocks[i].
        ends = {index - 1 for index, out in features._stage_out_idx.items() if out in levels}
        stages = _group(stem + blocks, {f'blocks_{end}' for end in ends})
    else:
        stages = [_Levels(features, levels)]
    return Backbone(
        name,
        stages,
        [info.channels()[level] for level in levels],
        [info.reduction()[level] for level in levels],
        **_input_statistics(name, classifier),
        channels_last_output=nhwc,
    )


def _input_statistics(name: str, classifier: nn.Module) -> dict[str, Sequence[float]]:
    """Return the mean and standard deviation that the network was trained with."""
    if name in PACKAGES:
        # Also from random weights: a trained checkpoint must not depend on where it began.
        return {'mean': (127 / 255,) * 3, 'std': (128 / 255,) * 3}
    config = classifier.pretrained_cfg
    return {'mean': config['mean'], 'std': config['std']}


class _Levels(nn.Module):
    """Some of the maps of a network that can't be cut."""

    def __init__(self, features: nn.Module, levels: Sequence[int]) -> None:
        super().__init__()
        self.features = features
        self.levels = tuple(levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.features(x)
        return [maps[level] for level in self.levels]


def _group(parts: list[tuple[str, nn.Module]], last_of_stage: set[str]) -> list[nn.Module]:
    """Join consecutive modules into one stage each; what follows the last stage is dropped."""
    stages: list[nn.Module] = []
    current = nn.Sequential()
    for part, module in parts:
        current.add_module(part, module)
        if part in last_of_stage:
            stages.append(current)
            current = nn.Sequential()
    return stages
