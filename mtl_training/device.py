"""Where a run computes, and in which precision."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from mtl_training.config import ConfigError
from mtl_training.datasets.mixtures import Batch


def choose_device(name: str) -> torch.device:
    """Return the device of this process: its own GPU where there are several.

    Raises:
        ConfigError: CUDA is asked for and not there.
    """
    if name == 'cpu' or (name == 'auto' and not torch.cuda.is_available()):
        return torch.device('cpu')
    if not torch.cuda.is_available():
        raise ConfigError(
            'device is cuda, but torch finds no GPU: install its CUDA build or set device to cpu'
        )
    device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', '0')))
    torch.cuda.set_device(device)
    return device


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on the device; frame ids stay."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the context for a forward pass in bfloat16 or float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == 'bfloat16')
