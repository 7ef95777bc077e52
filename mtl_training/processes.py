"""One process or several: the few places where data-parallel training has to agree.

Started by `torchrun`, each process computes its share of every batch. Gradients are averaged
once a step; losses are divided by the whole batch's valid pixels, so the result is that of one
process with the same batch, but for three things that each process has of its own: the statistics
of batch norms, what the network draws (stochastic depth, dropout), and loss terms that are no mean
over pixels (silog, gradient, dice, lovasz), which are averaged by their shares of valid pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtl_training.config import ConfigError
from mtl_training.tasks import Task

# The others wait while the leading process prepares data, evaluates or writes: longer than torch's
# half hour for large data sets. A process that dies ends all of them by torchrun, not by this.
LONGEST_WAIT = timedelta(days=1)


class Processes:
    """The processes of this run; a single one unless torchrun says otherwise."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get('RANK', '0'))
        self.count = int(os.environ.get('WORLD_SIZE', '1'))
        if self.count > 1 and not dist.is_initialized():
            nvidia = torch.cuda.is_available()
            backends = 'cpu:gloo,cuda:nccl' if nvidia else 'gloo'
            dist.init_process_group(backends, timeout=LONGEST_WAIT)

    @property
    def leads(self) -> bool:
        """Say whether this is the process that prints and saves."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier()

    def leaders_number(self, number: float) -> float:
        """Return the leading process's number in all of them."""
        if self.count == 1:
            return number
        shared = torch.tensor([number], dtype=torch.float64)
        dist.broadcast(shared, 0)
        return shared.item()

    def any(self, flag: bool) -> bool:
        """Say whether the flag is set in any process."""
        if self.count == 1:
            return flag
        shared = torch.tensor([float(flag)])
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared.item())

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Return the mean of every number over the processes."""
        if self.count == 1:
            return values
        shared = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(shared)
        return dict(zip(values, (shared / self.count).tolist(), strict=True))

    def divisors(
        self, tasks: Mapping[str, Task], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return what each task's sum is divided by: global count (1 for none) / processes."""
        counts = torch.stack([task.valid_count(batch) for task in tasks.values()])
        if self.count > 1:
            dist.all_reduce(counts)
        counts = counts.where(counts > 0, 1.0)
        return dict(zip(tasks, counts / self.count, strict=True))

    def present(self, tasks: Mapping[str, Task], batch: Mapping[str, Tensor]) -> list[str]:
        """Return the tasks that the whole batch, over all processes, has truth for."""
        flags = torch.stack([task.present(batch) for task in tasks.values()]).float()
        if self.count > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return [task for task, flag in zip(tasks, flags.tolist(), strict=True) if flag]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average `.grad` over the processes, in one message."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:  # a batch without truth for any task, which is so in all processes
            return
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        offset = 0
        for gradient in gradients:
            part = flat[offset : offset + gradient.numel()]
            gradient.copy_(part.view_as(gradient))
            offset += gradient.numel()

    def share_weights(self, module: nn.Module) -> None:
        """Give every process the leading one's parameters and buffers."""
        if self.count > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)


def refuse_several_processes(command: str) -> None:
    """Raise ConfigError where torchrun has started a command that is not made for it."""
    count = int(os.environ.get('WORLD_SIZE', '1'))
    if count > 1:
        raise ConfigError(
            f'torchrun started {count} processes of `mtl-training {command}`, which runs in one: '
            'start it without torchrun (only `train` shares its work out)'
        )
