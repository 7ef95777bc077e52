"""What every balancing method is: losses in, gradients in place, weights out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtl_training.networks import MultiTaskNetwork

EPSILON = 1e-8


class BalancingError(ValueError):
    """A balancing method is unknown, lacks a package, or can't work with these losses."""


class Balancer(nn.Module, ABC):
    """Turn the tasks' losses into gradients of the network.

    A balancer is a module: what it learns are parameters for the network's optimizer, what it
    remembers are buffers of fixed shape, so that a checkpoint of its state resumes exactly.

    A batch may lack the truth of some tasks. They are balanced among those that it has: what is
    remembered of the others stays as it is, and counts again when they come back.

    Args:
        tasks: the tasks, in order.

    Attributes:
        needs_losses_after_step: whether `after_step` must follow every optimizer step.
        seed: of what the method draws at random.
        here: indices of the tasks that the last losses were of; all before there were any.
        adds_up: whether the gradients of a batch's parts add up to the whole one's.
        reduces_gradients: whether `backward` already averages gradients over processes. Where it
            does not, the caller does (DistributedDataParallel, or an all-reduce of `.grad`).
    """

    needs_losses_after_step = False
    adds_up = False
    reduces_gradients = False
    seed = 0

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.here = list(range(len(self.tasks)))

    def attach(self, network: MultiTaskNetwork, others: Sequence[nn.Module] = ()) -> None:
        """Prepare for a network; call once, before its first forward pass and before restoring.

        Args:
            network: whose gradients are balanced.
            others: modules outside of it that take part in a loss, such as the projections of
                distillation; they get the gradient of the plain sum of the losses.
        """

    @abstractmethod
    def backward(
        self, losses: Mapping[str, Tensor], network: MultiTaskNetwork
    ) -> dict[str, float]:
        """Add the balanced gradients to the parameters' `.grad`, as `Tensor.backward` does.

        Args:
            losses: one scalar with a graph per task that the batch has truth for, at least one.
            network: the network that the losses came from.

        Returns:
            The weight of each of these losses, for the log.

        Raises:
            BalancingError: a loss is of no task, or not positive where the method needs it.
        """

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Take the same batch's losses after the optimizer step (see the class)."""

    def _stack(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the losses [P] in the tasks' order, with their graph; set `here` to them."""
        strange = [task for task in losses if task not in self.tasks]
        if strange or not losses:
            raise BalancingError(
                f'there are losses of {", ".join(losses) or "no task"}: give those of '
                f'{", ".join(self.tasks)} that the batch has truth for'
            )
        self.here = [index for index, task in enumerate(self.tasks) if task in losses]
        return torch.stack([losses[self.tasks[index]] for index in self.here])

    def _log(self, weights: Tensor) -> dict[str, float]:
        names = [self.tasks[index] for index in self.here]
        return dict(zip(names, weights.tolist(), strict=True))

    def _require_positive(self, values: Tensor) -> None:
        if (values <= 0).any():
            raise BalancingError(
                f'{type(self).__name__} takes the logarithm of the losses, which are '
                f'{self._log(values)}: choose losses that are positive (angular_vmf is not)'
            )


def mean_over_processes(values: Tensor) -> Tensor:
    """Average a tensor over the processes of a distributed run; the tensor itself without one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def add_gradient(parameter: nn.Parameter, gradient: Tensor | None) -> None:
    """Add to a parameter's `.grad`."""
    if gradient is None:
        return
    gradient = gradient.detach()
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
