"""The optimizer and its parameter groups."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mtl_training.config import OptimizerSettings

_OF_BACKBONE = re.compile(
    r'(?:^|\.)encoder\.(?:backbone|backbones\.\w+|experts\.\d+)\.'
    r'(?:stages\.(?P<stage>\d+)|norm)\.?(?P<rest>.*)'
)
_BLOCK = re.compile(r'(?:stages?|layers?|blocks)[._]?(\d+)')
_UNDECAYED = re.compile(r'\.mixing\.|pos_embed|cls_token')


def build_optimizer(network: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Return AdamW or Adam with groups by learning-rate scale and weight decay.

    Vectors (norms, biases), embeddings of positions and the mixing of shared features are never
    decayed. With `layer_decay` d, the backbone's last stage learns at d, the one before at d^2 and
    so on (ELECTRA, Clark et al. 2020, by stages; by blocks where the backbone is one stage). What
    stands beside a backbone, such as the attention of MTAN, learns at the full rate.
    Each group keeps its scale as 'lr_scale'; the schedule multiplies it.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    stages = _stages(name for name, _ in named)
    depth = 1 + max(stages.values(), default=0)
    for name, parameter in named:
        scale = 1.0
        if name in stages:
            scale = settings.backbone_lr_scale
            if settings.layer_decay is not None:
                scale *= settings.layer_decay ** (depth - stages[name])
        decayed = parameter.ndim > 1 and not _UNDECAYED.search(name)
        decay = settings.weight_decay if decayed else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    arguments: list[dict[str, Any]] = [
        {'params': parameters, 'lr': settings.lr * scale, 'weight_decay': decay, 'lr_scale': scale}
        for (scale, decay), parameters in groups.items()
    ]
    kind = torch.optim.AdamW if settings.name == 'adamw' else torch.optim.Adam
    return kind(arguments, lr=settings.lr, betas=settings.betas, foreach=True)


def _stages(names: Iterable[str]) -> dict[str, int]:
    """Return the stage of each parameter of a backbone, from 1 on; 0 for a stem of its own."""
    found = {name: match for name in names if (match := _OF_BACKBONE.search(name))}
    stages = {name: int(m['stage']) + 1 for name, m in found.items() if m['stage']}
    last = max(stages.values(), default=0)
    if last == 1:
        blocks = {name: _BLOCK.search(found[name]['rest']) for name in stages}
        stages = {name: int(block[1]) + 1 if block else 0 for name, block in blocks.items()}
        last = max(stages.values())
    # A norm after the last stage goes with it.
    return {name: stages.get(name, last) for name in found}


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
