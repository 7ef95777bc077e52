"""A bundle's weights back in a network, to train on from what is shipped.

A bundle holds no checkpoint: its weights are float16, and a normalisation that followed a
convolution is folded into it. Here the normalisations are measured anew on pictures, so that the
network computes what the bundle computes and learns like one that was never folded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from torch import Tensor, nn

from mtl_perception.bundle import ModelBundle
from mtl_training.checkpoints import CheckpointError
from mtl_training.config import NetworkSettings
from mtl_training.networks import MultiTaskNetwork

_OWNER = 'network.'
_STORED_HALF = '.half'
_FOLDED_BIAS = 'weight_bias'


def trained_network(bundle: ModelBundle) -> tuple[NetworkSettings, list[str]]:
    """Return the settings of a bundle's network, and its tasks.

    Raises:
        CheckpointError: The bundle does not say, or this version does not know it.
    """
    try:
        settings = NetworkSettings.model_validate(bundle.manifest.training.recipe['network'])
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f'bundle {bundle.path} does not say how its network is built: start from one that '
            '`mtl-training export` wrote, or from a checkpoint'
        ) from error
    return settings, list(bundle.manifest.tasks)


def load_bundle_weights(
    network: MultiTaskNetwork, bundle: ModelBundle, pictures: Iterable[Tensor]
) -> None:
    """Fill a network with a bundle's weights, in place; it is in evaluation mode afterwards.

    Args:
        network: built as `trained_network` says, float32 on the CPU.
        bundle: to read.
        pictures: batches uint8 or float32 [N,3,H,W], RGB in 0..255, of the kind to be trained on:
            the folded normalisations take their statistics from them.

    Raises:
        CheckpointError: The graph lacks a weight or has it in another shape.
    """
    graph = onnx.load(str(bundle.model_path)).graph
    stored = _constants(graph) | _linear_weights(graph)
    folded = {
        norm: conv
        for norm, conv in _normalised_convolutions(network).items()
        if f'{norm}.running_var' not in stored
    }
    for norm, conv in folded.items():
        layer = network.get_submodule(norm)
        width = layer.num_features
        stored |= {
            f'{norm}.weight': np.ones(width, np.float32),
            f'{norm}.running_mean': np.zeros(width, np.float32),
            f'{norm}.running_var': np.full(width, 1 - layer.eps, np.float32),
        }
        bias = stored.pop(f'{conv}.{_FOLDED_BIAS}', None)
        if bias is not None:
            stored[f'{norm}.bias'] = bias
    for name, tensor in network.state_dict().items():
        if name.endswith('num_batches_tracked'):
            continue
        values = stored.get(name)
        if values is None or values.shape != tuple(tensor.shape):
            found = 'is missing' if values is None else f'has the shape {list(values.shape)}'
            raise CheckpointError(
                f'{name} {found} in the graph of bundle {bundle.path}, {list(tensor.shape)} is '
                'expected: start from the checkpoint that the bundle was exported from'
            )
        tensor.copy_(torch.from_numpy(values))
    network.eval()
    _unfold(network, folded, pictures)


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Return the graph's named weights as float32."""
    return {
        tensor.name.removesuffix(_STORED_HALF).removeprefix(_OWNER): numpy_helper.to_array(
            tensor
        ).astype(np.float32)
        for tensor in graph.initializer
        if tensor.name.startswith(_OWNER)
    }


def _linear_weights(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Return the weights of linear layers.

    The exporter transposes them and drops their names; the bias added next still has its own.
    """
    tensors = {tensor.name.removesuffix(_STORED_HALF): tensor for tensor in graph.initializer}
    products = {
        node.output[0]: tensors[node.input[1]]
        for node in graph.node
        if node.op_type == 'MatMul' and node.input[1] in tensors
    }
    found = {}
    for node in graph.node:
        if node.op_type != 'Add':
            continue
        product = next((products[name] for name in node.input if name in products), None)
        bias = next((name for name in node.input if name.endswith('.bias')), None)
        if product is not None and bias is not None:
            weight = numpy_helper.to_array(product).astype(np.float32).T.copy()
            found[bias.removeprefix(_OWNER).removesuffix('bias') + 'weight'] = weight
    return found


def _normalised_convolutions(network: MultiTaskNetwork) -> dict[str, str]:
    """Return which convolution feeds each batch normalisation, by names."""
    makers: dict[int, str] = {}
    pairs: dict[str, str] = {}
    kept: list[Tensor] = []  # no two outputs may share an address

    def made(name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            kept.append(output)
            makers[output.data_ptr()] = name

        return note

    def read(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            maker = makers.get(inputs[0].data_ptr())
            if maker is not None:
                pairs[name] = maker

        return note

    handles = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(made(name)))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(read(name)))
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, 64, 64))
    finally:
        for handle in handles:
            handle.remove()
    return pairs


@torch.no_grad()
def _unfold(network: MultiTaskNetwork, folded: dict[str, str], pictures: Iterable[Tensor]) -> None:
    """Give the folded normalisations statistics; what the network computes stays the same.

    Filters before a normalisation have no scale of their own; they get that of new ones, so that
    the learning rate means to them what it means to new ones.
    """
    sums = {norm: torch.zeros(2, network.get_submodule(norm).num_features) for norm in folded}
    counts = dict.fromkeys(folded, 0)

    def reader(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].double()
            sums[name] = sums[name] + torch.stack([x.sum((0, 2, 3)), (x * x).sum((0, 2, 3))])
            counts[name] += x.numel() // x.shape[1]

        return note

    handles = [
        network.get_submodule(name).register_forward_pre_hook(reader(name)) for name in folded
    ]
    try:
        for batch in pictures:
            network(batch)
    finally:
        for handle in handles:
            handle.remove()
    for norm, conv in folded.items():
        layer, filters = network.get_submodule(norm), network.get_submodule(conv).weight
        if not counts[norm]:
            raise ValueError('pictures are empty: give at least one batch')
        mean, square = sums[norm] / counts[norm]
        variance = (square - mean * mean).clamp_min(0)
        spread = filters.flatten(1).double().square().mean(1).sqrt()
        usual = filters[0].numel() ** -0.5
        scale = torch.where(spread > 0, usual / spread.clamp_min(1e-12), 1.0)
        filters.mul_(scale.to(filters.dtype).view(-1, 1, 1, 1))
        layer.running_mean.copy_(scale * mean)
        layer.running_var.copy_(scale * scale * variance)
        # As float32 stores it: a nearly constant channel must not amplify the rounding.
        deviation = (layer.running_var.double() + layer.eps).sqrt()
        layer.weight.copy_(deviation / scale)
        layer.bias.add_((layer.running_mean.double() / scale).to(layer.bias.dtype))
