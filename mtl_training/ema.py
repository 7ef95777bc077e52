"""Exponential moving average of a network's weights (Polyak and Juditsky, 1992)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MovingAverage:
    """A copy of a network that follows it slowly, the statistics of its norms included.

    The decay grows to its value over the first steps, so that the random start is forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards the weights of `network` after optimizer step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        followed = []
        for mine, theirs in zip(_tensors(self.network), _tensors(network), strict=True):
            if mine.is_floating_point():
                followed.append((mine, theirs.detach()))
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(*map(list, zip(*followed, strict=True)), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights and buffers."""
        return self.network.state_dict()


def _tensors(network: nn.Module) -> list[Tensor]:
    """Return each parameter and buffer once, also one that has several names."""
    return [*network.parameters(), *network.buffers()]
