"""Parameters and multiply-adds of a network.

The counter gives what fvcore's FlopCountAnalysis gives: one multiply-add counts one; convolutions,
linear layers, matrix products, batch, group and layer normalisation and bilinear scaling count,
activations and sums do not. fvcore does not know the fused attention of today's transformers; its
two matrix products are counted apart. The counting runs on shapes: no weights, no arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mtl_training.networks.multitask import MultiTaskNetwork, NetworkConfig, build_network

COUNTER = 'fvcore-style multiply-adds of one picture; fused attention only in gmacs_with_attention'

aten = torch.ops.aten


@dataclass
class Macs:
    """Multiply-adds of one picture.

    Attributes:
        layers: what fvcore counts.
        attention: the matrix products inside of fused attention.
    """

    layers: int = 0
    attention: int = 0


def count_parameters(network: nn.Module) -> int:
    """Count the parameters; buffers are none."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: MultiTaskNetwork, size: tuple[int, int]) -> int:
    """Count the multiply-adds of one picture as fvcore does (see the module).

    Args:
        network: in any mode and on any device; a copy without storage is counted.
        size: height and width of the picture in pixels.
    """
    return _count(network.config, size).layers


def _count(config: NetworkConfig, size: tuple[int, int]) -> Macs:
    network = _shapes_of(config)
    picture = torch.empty(1, 3, *size, device='meta')
    with _Operations() as operations, _FusedAttention(operations), torch.no_grad():
        network(picture)
    return operations.macs


def _shapes_of(config: NetworkConfig) -> MultiTaskNetwork:
    """Build a network without storage."""
    with torch.device('meta'):
        return build_network(replace(config, pretrained=False)).eval()


def network_costs(config: NetworkConfig, size: tuple[int, int] = (288, 384)) -> dict[str, Any]:
    """Return parameters and GMACs of a configuration, as `mtl-training params` prints them.

    Args:
        config: of the network; its weights are neither made nor fetched.
        size: height and width of the picture in pixels.

    Returns:
        `parameters`, `gmacs` and `gmacs_with_attention` (10^9 multiply-adds), `counter`, `input`
        (N, C, H, W), and `parameters_by_part`: those of the encoder, the fusion and the heads.
    """
    network = _shapes_of(config)
    macs = _count(config, size)
    return {
        'parameters': count_parameters(network),
        'gmacs': round(macs.layers / 1e9, 4),
        'gmacs_with_attention': round((macs.layers + macs.attention) / 1e9, 4),
        'counter': COUNTER,
        'input': [1, 3, *size],
        'parameters_by_part': _by_part(network),
    }


def _by_part(network: MultiTaskNetwork) -> dict[str, int]:
    heads = {f'{task} head': count_parameters(head) for task, head in network.heads.items()}
    return {
        'encoder': count_parameters(network.encoder),
        'fusion': count_parameters(network.fusions),
        **heads,
    }


def _convolution(args: tuple[Any, ...], out: Tensor) -> int:
    weight, transposed = args[1], args[6]
    positions = prod(args[0].shape[2:]) if transposed else prod(out.shape[2:])
    return args[0].shape[0] * positions * weight.numel()


def _product(args: tuple[Any, ...], out: Tensor) -> int:
    """Count a matrix product [.., m, k] x [.., k, n]; addmm has the sum first."""
    left = args[-2]
    return out.numel() * left.shape[-1]


def _normalisation(per_element: int) -> Callable[[tuple[Any, ...], Any], int]:
    return lambda args, out: per_element * args[0].numel()


_COUNTS: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    aten.convolution.default: _convolution,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _product,
    # In evaluation the statistics are known: one scale and shift per element.
    aten.native_batch_norm.default: _normalisation(2),
    aten._native_batch_norm_legit_no_training.default: _normalisation(2),
    aten.native_layer_norm.default: _normalisation(5),
    aten.native_group_norm.default: _normalisation(5),
    aten.upsample_bilinear2d.default: lambda args, out: 4 * out.numel(),
}


class _Operations(TorchDispatchMode):
    """Add up the multiply-adds of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = Macs()
        self.in_attention = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation on shapes and count it."""
        out = func(*args, **(kwargs or {}))
        count = _COUNTS.get(func)
        if count is None:
            return out
        if self.in_attention:
            self.macs.attention += count(args, out)
        else:
            self.macs.layers += count(args, out)
        return out


class _FusedAttention(TorchFunctionMode):
    """Tell the counter when it is inside of fused attention, which shapes alone take apart."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function."""
        self.operations.in_attention = func is F.scaled_dot_product_attention
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.operations.in_attention = False
