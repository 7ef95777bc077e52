"""The optimizer and its parameter groups."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from mtl_training.config import OptimizerSettings


def build_optimizer(network: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return AdamW or Adam with groups by learning-rate scale and weight decay.

    Vectors (norms, biases) are never decayed. With `layer_decay` d, the backbone's last stage
    learns at d, the one before at d^2 and so on (ELECTRA, Clark et al. 2020, by stages).
    Each group keeps its scale as 'lr_scale'; the schedule multiplies it.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    depth = 1 + max((_stage(name) for name, _ in named), default=0)
    for name, parameter in named:
        scale = 1.0
        if name.removeprefix('network.').startswith('encoder.'):
            scale = settings.backbone_lr_scale
            if settings.layer_decay is not None:
                scale *= settings.layer_decay ** (depth - _stage(name))
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    arguments: list[dict[str, Any]] = [
        {'params': parameters, 'lr': settings.lr * scale, 'weight_decay': decay, 'lr_scale': scale}
        for (scale, decay), parameters in groups.items()
    ]
    kind = torch.optim.AdamW if settings.name == 'adamw' else torch.optim.Adam
    return kind(arguments, lr=settings.lr, betas=settings.betas, foreach=True)


def _stage(name: str) -> int:
    """Return the number of the backbone's stage in a parameter's name, 0 for the stem."""
    found = re.search(r'(?:stages?|layers?|blocks)[._]?(\d+)', name)
    return int(found.group(1)) + 1 if found else 0


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to `lr` times its scale."""
    for group in optimizer.param_groups:
        group['lr'] = lr * group['lr_scale']


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as flat tensors '{parameter}.{name}'."""
    state = optimizer.state_dict()['state']
    return {
        f'{number}.{name}': torch.as_tensor(value)
        for number, values in state.items()
        for name, value in values.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` returned; groups stay as they were built."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split('.', 1)
        state.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()['param_groups']
    optimizer.load_state_dict({'state': state, 'param_groups': groups})
