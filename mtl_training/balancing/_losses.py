"""Methods that weigh the losses by their values alone: one backward pass per step.

Each gives the weights in closed form: the derivatives of its combined loss. Their counterparts in
`torchjd.scalarization` keep their memory outside of `state_dict`, so a run could not resume.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtl_training.balancing._base import (
    EPSILON,
    Balancer,
    BalancingError,
    add_gradient,
    mean_over_processes,
)
from mtl_training.networks import TASKS, MultiTaskNetwork


class LossBalancer(Balancer):
    """Weigh the losses by functions of their values."""

    def backward(
        self, losses: Mapping[str, Tensor], network: MultiTaskNetwork
    ) -> dict[str, float]:
        """Backpropagate the weighted sum of the losses."""
        stacked = self._stack(losses)
        weights = self.weigh(mean_over_processes(stacked.detach().float()))
        (weights * stacked).sum().backward()
        return self._log(weights)

    @abstractmethod
    def weigh(self, values: Tensor) -> Tensor:
        """Return the weights [P] of losses [P] of the tasks `here`; update what is remembered."""


class Equal(LossBalancer):
    """Sum the losses."""

    adds_up = True

    def weigh(self, values: Tensor) -> Tensor:
        """Return ones."""
        return torch.ones_like(values)


class Constants(LossBalancer):
    """Sum the losses with constant weights.

    Args:
        weights: the weight of each task; weights of absent tasks do nothing.
    """

    adds_up = True

    def __init__(self, tasks: Sequence[str], weights: Mapping[str, float]) -> None:
        super().__init__(tasks)
        unfit = not set(self.tasks) <= set(weights) <= {*TASKS, *self.tasks}
        if unfit or min(weights.values()) < 0:
            raise BalancingError(
                f'weights are {dict(weights)}: give one that is not negative for each of '
                f'{", ".join(self.tasks)}'
            )
        of_tasks = torch.tensor([float(weights[task]) for task in self.tasks])
        self.register_buffer('weights', of_tasks, persistent=False)

    def weigh(self, values: Tensor) -> Tensor:
        """Return the constants."""
        return self.weights[self.here]


class UncertaintyWeighting(LossBalancer):
    """Learn each task's noise: Kendall, Gal and Cipolla (CVPR 2018).

    The combined loss is the sum of (L exp(-s) + s) / 2 with learned log variances s.

    Args:
        start: initial log variance (LibMTL: -0.5).
    """

    def __init__(self, tasks: Sequence[str], start: float = -0.5) -> None:
        super().__init__(tasks)
        self.log_variance = nn.Parameter(torch.full((len(self.tasks),), start))

    def weigh(self, values: Tensor) -> Tensor:
        """Return exp(-s) / 2 and add the gradient of s."""
        weights = 0.5 * torch.exp(-self.log_variance.detach()[self.here])
        gradient = torch.zeros_like(self.log_variance)
        gradient[self.here] = 0.5 - weights * values
        add_gradient(self.log_variance, gradient)
        return weights


class ImtlL(LossBalancer):
    """Learn each task's scale: Liu et al., Towards Impartial Multi-task Learning (ICLR 2021).

    The combined loss is the sum of exp(s) L - s.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.log_scale = nn.Parameter(torch.zeros(len(self.tasks)))

    def weigh(self, values: Tensor) -> Tensor:
        """Return exp(s) and add the gradient of s."""
        weights = torch.exp(self.log_scale.detach()[self.here])
        gradient = torch.zeros_like(self.log_scale)
        gradient[self.here] = weights * values - 1
        add_gradient(self.log_scale, gradient)
        return weights


class DynamicWeightAverage(LossBalancer):
    """Weigh by the speed at which losses fall: Liu, Johns and Davison (CVPR 2019).

    Args:
        temperature: larger values even the weights out.
        period: steps over which losses are averaged; the paper's period is an epoch.
    """

    def __init__(self, tasks: Sequence[str], temperature: float = 2.0, period: int = 100) -> None:
        super().__init__(tasks)
        if temperature <= 0 or period < 1:
            raise BalancingError(
                f'dwa has temperature {temperature} and period {period}: give a positive '
                'temperature and a period of at least one step'
            )
        self.temperature, self.period = temperature, period
        number = len(self.tasks)
        self.register_buffer('total', torch.zeros(number))
        self.register_buffer('steps', torch.zeros((), dtype=torch.int64))
        # The steps of this period that had the task's truth.
        self.register_buffer('seen', torch.zeros(number))
        # The means of the last period and the one before; zero while there is none.
        self.register_buffer('last', torch.zeros(number))
        self.register_buffer('before', torch.zeros(number))

    def weigh(self, values: Tensor) -> Tensor:
        """Return P softmax(ratio of the last two periods' means / temperature)."""
        if self.steps == self.period:
            seen = self.seen > 0
            self.before.copy_(torch.where(seen, self.last, self.before))
            self.last.copy_(torch.where(seen, self.total / self.seen.clamp(min=1), self.last))
            self.total.zero_()
            self.seen.zero_()
            self.steps.zero_()
        self.total[self.here] += values
        self.seen[self.here] += 1
        self.steps += 1
        before = self.before[self.here]
        # A task without two periods behind it keeps its pace, as all do at first.
        ratio = torch.where(before > 0, self.last[self.here] / before.clamp(min=EPSILON), 1.0)
        return len(values) * torch.softmax(ratio / self.temperature, dim=0)


class GeometricLoss(LossBalancer):
    """Minimise the geometric mean: Chennupati et al., MultiNet++ (GLS, CVPRW 2019)."""

    def weigh(self, values: Tensor) -> Tensor:
        """Return mean / (P L)."""
        self._require_positive(values)
        return torch.exp(values.log().mean()) / (len(values) * values)


class RandomLoss(LossBalancer):
    """Draw the weights anew at each step: Lin et al., Random Loss Weighting (TMLR 2022).

    The draws depend on the seed and the step alone: they agree over processes and resume exactly.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))

    def weigh(self, values: Tensor) -> Tensor:
        """Return softmax of standard normal draws."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.step))
        self.step += 1
        drawn = torch.randn(len(self.tasks), generator=generator)[self.here]
        return drawn.softmax(dim=0).to(values.device)


class SmoothTchebycheff(LossBalancer):
    """Minimise a smooth maximum: Lin et al., Smooth Tchebycheff Scalarization (ICML 2024).

    As LibMTL does, logarithms of the losses are summed for a while; then the smooth maximum
    mu log(sum(exp(log(L / nadir) / mu))) takes over, times the number of tasks, where nadir is
    the mean loss of the first part.

    Args:
        mu: smoothing; small values come close to the maximum.
        warmup_steps: length of the first part.
    """

    def __init__(self, tasks: Sequence[str], mu: float = 1.0, warmup_steps: int = 100) -> None:
        super().__init__(tasks)
        if mu <= 0 or warmup_steps < 1:
            raise BalancingError(
                f'stch has mu {mu} and warmup_steps {warmup_steps}: give a positive mu and at '
                'least one step'
            )
        self.mu, self.warmup_steps = mu, warmup_steps
        self.register_buffer('total', torch.zeros(len(self.tasks)))
        self.register_buffer('seen', torch.zeros(len(self.tasks)))
        self.register_buffer('steps', torch.zeros((), dtype=torch.int64))

    def weigh(self, values: Tensor) -> Tensor:
        """Return 1 / L, later P softmax(log(L / nadir) / mu) / L."""
        self._require_positive(values)
        warming = bool(self.steps < self.warmup_steps)
        # A task that comes late starts from its first loss.
        noted = torch.full_like(values, float(warming)).where(self.seen[self.here] > 0, 1.0)
        self.total[self.here] += noted * values
        self.seen[self.here] += noted
        self.steps += 1
        if warming:
            return 1 / values
        nadir = self.total[self.here] / self.seen[self.here]
        share = torch.softmax((values / nadir).log() / self.mu, dim=0)
        return len(values) * share / values


class Famo(LossBalancer):
    """Let all losses fall at an equal rate: Liu et al., FAMO (NeurIPS 2023).

    The weights' logits take an Adam step after each step of the network, by how much each loss
    fell on the same batch.

    Args:
        lr: learning rate of the logits.
        weight_decay: their regularisation (added to the gradient, as in Adam).
    """

    needs_losses_after_step = True
    BETAS = (0.9, 0.999)

    def __init__(
        self, tasks: Sequence[str], lr: float = 0.025, weight_decay: float = 1e-3
    ) -> None:
        super().__init__(tasks)
        self.lr, self.weight_decay = lr, weight_decay
        number = len(self.tasks)
        self.register_buffer('logits', torch.zeros(number))
        self.register_buffer('first_moment', torch.zeros(number))
        self.register_buffer('second_moment', torch.zeros(number))
        self.register_buffer('updates', torch.zeros((), dtype=torch.int64))
        self.register_buffer('before', torch.zeros(number), persistent=False)

    def weigh(self, values: Tensor) -> Tensor:
        """Return z / L, scaled to sum to one, for z = softmax(logits)."""
        self._require_positive(values)
        self.before[self.here] = values
        weights = self.logits[self.here].softmax(dim=0) / (values + EPSILON)
        return weights / weights.sum()

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Update the logits with the batch's losses after the optimizer step."""
        after = mean_over_processes(self._stack(losses).detach().float())
        self._require_positive(after)
        here = self.here
        fall = (self.before[here] + EPSILON).log() - (after + EPSILON).log()
        z = self.logits[here].softmax(dim=0)
        gradient = z * (fall - (z * fall).sum()) + self.weight_decay * self.logits[here]
        self.updates += 1
        step = int(self.updates)
        first, second = self.BETAS
        self.first_moment[here] = self.first_moment[here].lerp(gradient, 1 - first)
        self.second_moment[here] = self.second_moment[here].lerp(gradient.square(), 1 - second)
        scale = math.sqrt(1 - second**step) / (1 - first**step)
        root = self.second_moment[here].sqrt() + EPSILON * math.sqrt(1 - second**step)
        self.logits[here] -= self.lr * scale * self.first_moment[here] / root
