"""Convolutions changed for speed: the same results, exact gradients, same names."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from mtl_training.networks.depthwise import (
    DepthwiseConv2d,
    DepthwiseConv2dSame,
    with_fast_depthwise,
)
from mtl_training.networks.padding import EvenConv2dSame, with_constant_padding


def _convolution(kind: str, kernel: int, stride: int) -> nn.Conv2d:
    if kind == 'same':
        return Conv2dSame(16, 16, kernel, stride, groups=16, bias=False)
    return nn.Conv2d(16, 16, kernel, stride, padding=kernel // 2, groups=16)


@pytest.mark.parametrize('kind', ['plain', 'same'])
@pytest.mark.parametrize(('kernel', 'stride'), [(3, 2), (5, 1), (5, 2)])
def test_results_stay_and_gradients_are_those_of_float32(kind, kernel, stride):
    torch.manual_seed(0)
    plain = nn.Sequential(_convolution(kind, kernel, stride)).train()
    quick = with_fast_depthwise(copy.deepcopy(plain))
    assert type(quick[0]) in (DepthwiseConv2d, DepthwiseConv2dSame)
    assert list(quick.state_dict()) == list(plain.state_dict())

    x = torch.randn(2, 16, 11, 14).bfloat16().float()
    plain[0].weight.data = plain[0].weight.data.bfloat16().float()
    quick[0].weight.data = plain[0].weight.data.clone()
    exact_x, quick_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    exact = plain(exact_x)
    pull = torch.randn_like(exact).bfloat16().float()
    exact.backward(pull)
    with torch.autocast('cpu', torch.bfloat16):
        mixed = quick(quick_x)
        same = plain(x)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, same)
    mixed.backward(pull.bfloat16())
    torch.testing.assert_close(quick[0].weight.grad, plain[0].weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(quick_x.grad, exact_x.grad, rtol=1e-2, atol=1e-2)
    if plain[0].bias is not None:
        torch.testing.assert_close(quick[0].bias.grad, plain[0].bias.grad, rtol=1e-4, atol=1e-4)


def test_only_what_is_slow_is_changed():
    network = with_fast_depthwise(
        nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8),
            nn.Conv2d(8, 8, 5, padding=2, padding_mode='reflect', groups=8),
        )
    )
    assert [type(module) for module in network] == [nn.Conv2d] * 4


def test_outside_training_nothing_differs():
    convolution = with_fast_depthwise(nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8)))
    x = torch.randn(1, 8, 9, 9, requires_grad=True)
    assert convolution(x).dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        assert convolution(x).dtype == torch.bfloat16


@pytest.mark.parametrize(('kernel', 'stride'), [(3, 1), (3, 2), (5, 1), (5, 2), (2, 2)])
def test_constant_padding_is_tensorflows_where_the_stride_divides(kernel, stride):
    convolution = nn.Sequential(Conv2dSame(6, 6, kernel, stride, groups=6)).eval()
    x = torch.randn(1, 6, 16, 20)
    expected = convolution(x)
    changed = with_constant_padding(convolution)
    assert type(changed[0]) is EvenConv2dSame
    torch.testing.assert_close(changed(x), expected, rtol=0, atol=0)
