"""The optimizer and its parameter groups."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mtl_training.checkpoints import CheckpointError
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
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
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
        groups.setdefault((scale, decay), []).append((name, parameter))
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
    """Return the state of an optimizer of `build_optimizer` as tensors '{parameter}.{name}'."""
    state = optimizer.state_dict()
    names = _names_by_number(state)
    return {
        f'{names[number]}.{name}': torch.as_tensor(value)
        for number, values in state['state'].items()
        for name, value in values.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` returned, by name; groups stay as they were built.

    Raises:
        CheckpointError: There is state of a parameter that the optimizer does not have.
    """
    groups = optimizer.state_dict()['param_groups']
    numbers = {name: number for number, name in _names_by_number({'param_groups': groups}).items()}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        parameter, _, name = key.rpartition('.')
        if parameter not in numbers:
            raise CheckpointError(
                f"the checkpoint holds the optimizer's state of {parameter!r}, which is no "
                'parameter that learns now: resume with the version that wrote it, or begin a '
                'new run from its weights with --start-from'
            )
        state.setdefault(numbers[parameter], {})[name] = value
    optimizer.load_state_dict({'state': state, 'param_groups': groups})


def _names_by_number(state: dict[str, Any]) -> dict[int, str]:
    """Return the parameters' names by their numbers in an optimizer's `state_dict`."""
    return {
        number: name
        for group in state['param_groups']
        for number, name in zip(group['params'], group['param_names'], strict=True)
    }
