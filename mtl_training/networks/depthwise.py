"""Depthwise convolutions whose backward pass is fast on a CPU in bfloat16.

oneDNN runs two backward passes of bfloat16 depthwise convolutions by a reference kernel: that
into the input of strided ones, and that into the weights of kernels wider than 3. In float32 both
have real kernels, several times faster (docs/experiments.md). Weights, names and results stay
those of `nn.Conv2d`; gradients are more exact.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Conv2dSame, pad_same
from torch import Tensor, nn

WIDEST_FAST_KERNEL = 3


class _Depthwise(torch.autograd.Function):
    """conv2d forward as autocast has it, backward in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options = (list(stride), list(padding), [1, 1], False, [0, 0], x.shape[1])
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        bias = None if bias is None else bias.to(x.dtype)
        return torch.conv2d(x, weight.to(x.dtype), bias, stride, padding, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grads = torch.ops.aten.convolution_backward(
            grad.float(),
            x.float(),
            weight.float(),
            ctx.bias_sizes,
            *ctx.options,
            list(ctx.needs_input_grad[:3]),
        )
        into_x = None if grads[0] is None else grads[0].to(x.dtype)
        into_weight = None if grads[1] is None else grads[1].to(weight.dtype)
        return into_x, into_weight, grads[2], None, None


class DepthwiseConv2d(nn.Conv2d):
    """An `nn.Conv2d` with one filter per channel, quick to train in bfloat16 on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [N,C,H,W]."""
        return _train(self, x) if _is_training_in_bfloat16(self, x) else super().forward(x)


class DepthwiseConv2dSame(Conv2dSame):
    """The same for timm's convolutions with TensorFlow's padding."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [N,C,H,W]."""
        if not _is_training_in_bfloat16(self, x):
            return super().forward(x)
        return _train(self, pad_same(x, self.kernel_size, self.stride, self.dilation))


QUICK: dict[type[nn.Conv2d], type[nn.Conv2d]] = {
    nn.Conv2d: DepthwiseConv2d,
    Conv2dSame: DepthwiseConv2dSame,
}


def _is_training_in_bfloat16(module: nn.Module, x: Tensor) -> bool:
    return (
        module.training
        and torch.is_grad_enabled()
        and x.device.type == 'cpu'
        and torch.is_autocast_enabled('cpu')
    )


def _train(module: nn.Conv2d, x: Tensor) -> Tensor:
    x = x.to(torch.get_autocast_dtype('cpu'))
    return _Depthwise.apply(x, module.weight, module.bias, module.stride, module.padding)


def with_fast_depthwise(network: nn.Module) -> nn.Module:
    """Let the depthwise convolutions of a network that oneDNN is slow at train in mixed precision.

    The modules' classes are changed in place: parameters, their names and the results stay.
    """
    for module in network.modules():
        if (
            type(module) in QUICK
            and module.groups == module.in_channels == module.out_channels > 1
            and set(module.dilation) == {1}
            and module.padding_mode == 'zeros'
            and not isinstance(module.padding, str)
            and (max(module.stride) > 1 or max(module.kernel_size) > WIDEST_FAST_KERNEL)
        ):
            module.__class__ = QUICK[type(module)]
    return network
