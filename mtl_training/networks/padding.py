"""TensorFlow's padding with constants, for export with free picture sizes."""

from __future__ import annotations

from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional


class EvenConv2dSame(Conv2dSame):
    """timm's `Conv2dSame` for pictures whose sides its stride divides.

    Then the padding does not depend on the size: as a formula of a free size it takes the
    exporter minutes, and every engine has to compute it for each picture.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [N,C,H,W], H and W multiples of the stride."""
        pads = []
        for size, stride, dilation in zip(
            reversed(self.kernel_size),
            reversed(self.stride),
            reversed(self.dilation),
            strict=True,
        ):
            total = max(dilation * (size - 1) + 1 - stride, 0)
            pads += [total // 2, total - total // 2]
        x = functional.pad(x, pads)
        return functional.conv2d(
            x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


def with_constant_padding(network: nn.Module) -> nn.Module:
    """Change the network's `Conv2dSame` modules in place to `EvenConv2dSame`."""
    for module in network.modules():
        if isinstance(module, Conv2dSame):
            module.__class__ = EvenConv2dSame
    return network
