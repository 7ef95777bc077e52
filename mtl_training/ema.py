"""Exponential moving average of a network's weights (Polyak and Juditsky, 1992)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class MovingAverage:
    """A copy of a network that follows it slowly; buffers are copied as they are.

    The decay grows to its value over the first steps, so that the random start is forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards the weights of `network` after optimizer step number `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, theirs = list(self.network.parameters()), list(network.parameters())
        torch._foreach_lerp_(mine, [p.detach() for p in theirs], 1 - decay)
        for own, other in zip(self.network.buffers(), network.buffers(), strict=True):
            own.copy_(other)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights and buffers."""
        return self.network.state_dict()
