"""Methods that compare the tasks' gradients: one backward pass per task and step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torchjd.aggregation as jd
from torch import Tensor, nn

from mtl_training.balancing._base import (
    EPSILON,
    Balancer,
    BalancingError,
    add_gradient,
    mean_over_processes,
)
from mtl_training.networks import MultiTaskNetwork
from mtl_training.networks.tap import FusedTap

Place = Literal['parameters', 'features']


class GradientBalancer(Balancer):
    """Combine the tasks' gradients where they share the network.

    The parameters of one task alone take their own loss's gradient. Gradients of parameters are
    averaged over processes before they are combined, so that every process combines the same
    ones; those of features are of each process's own pictures, and what they give is averaged.

    Args:
        tasks: the tasks, in order.
        at: `parameters` compares the gradients of all shared parameters, as the papers do: a
            backward pass through the whole network per task. `features` compares those of the
            map that all heads read, and runs the shared part once; hard sharing only.
    """

    reduces_gradients = True

    def __init__(self, tasks: Sequence[str], at: Place = 'parameters') -> None:
        super().__init__(tasks)
        if at not in ('parameters', 'features'):
            raise BalancingError(f'at is {at!r}: it must be parameters or features')
        self.at = at
        self._attached = False
        self._others: tuple[nn.Module, ...] = ()
        self._tap: FusedTap | None = None

    def attach(self, network: MultiTaskNetwork, others: Sequence[nn.Module] = ()) -> None:
        """Follow the fused map of a network with hard sharing where `at` is `features`."""
        if self.at == 'features':
            if not network.encoder.same_maps:
                raise BalancingError(
                    f'{network.config.sharing} sharing has no map that all tasks read: set '
                    'at to parameters'
                )
            apart = [task for task in self.tasks if task in network.tasks_beside_fusion]
            if apart:
                raise BalancingError(
                    f'{", ".join(apart)} does not read the map that the other tasks share: set '
                    'at to parameters'
                )
            self._tap = FusedTap(network)
        self._others = tuple(others)
        self._attached = True

    @abstractmethod
    def combine(self, gradients: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the combined gradient [n] and the weights [P] of gradients [P,n], losses [P].

        The rows are those of the tasks `here`.
        """

    def transform(self, losses: Tensor) -> Tensor:
        """Return the losses [P] that are differentiated."""
        return losses

    def backward(
        self, losses: Mapping[str, Tensor], network: MultiTaskNetwork
    ) -> dict[str, float]:
        """Differentiate each loss on its own, then combine (see the class)."""
        if not self._attached:
            self.attach(network)
        stacked = self._stack(losses)
        shared = self._shared(network)
        own = [p for task in self.tasks for p in network.task_parameters(task)]
        own += [parameter for module in self._others for parameter in module.parameters()]
        own = [parameter for parameter in own if parameter.requires_grad]
        differentiated = self.transform(stacked)
        rows = []
        for index in range(len(stacked)):
            gradients = torch.autograd.grad(
                differentiated[index], [*shared, *own], retain_graph=True, allow_unused=True
            )
            rows.append(_flatten(shared, gradients[: len(shared)]))
            for parameter, gradient in zip(own, gradients[len(shared) :], strict=True):
                if gradient is not None:
                    add_gradient(parameter, mean_over_processes(gradient))
        matrix = torch.stack(rows)
        if self.at == 'parameters':
            matrix = mean_over_processes(matrix)
        values = mean_over_processes(stacked.detach().float())
        if len(values) > 1:
            combined, weights = self.combine(matrix, values)
        else:
            combined, weights = matrix[0], torch.ones_like(values)
        pieces = combined.split([tensor.numel() for tensor in shared])
        if self.at == 'parameters':
            for parameter, piece in zip(shared, pieces, strict=True):
                add_gradient(parameter, piece.view_as(parameter))
        else:
            self._through_features(network, shared, pieces)
        return self._log(weights)

    def _shared(self, network: MultiTaskNetwork) -> list[Tensor]:
        if self._tap is not None:
            return [self._tap.take()[self.tasks[0]]]
        return [p for p in network.shared_parameters() if p.requires_grad]

    def _through_features(
        self, network: MultiTaskNetwork, fused: list[Tensor], gradients: Sequence[Tensor]
    ) -> None:
        """Carry the combined gradient of the features to the shared parameters."""
        parameters = [p for p in network.shared_parameters() if p.requires_grad]
        outside = [g.view_as(f).to(f.dtype) for f, g in zip(fused, gradients, strict=True)]
        found = torch.autograd.grad(fused, parameters, outside, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                add_gradient(parameter, mean_over_processes(gradient))


def _flatten(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Join gradients into one float32 vector; where there is none it is zero."""
    pieces = [
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(tensors, gradients, strict=True)
    ]
    return torch.cat([piece.detach().float().flatten() for piece in pieces])


class TorchJd(GradientBalancer):
    """A method of torchjd (Quinton and Rey, Jacobian Descent, 2024).

    What torchjd draws at random depends on the seed and the step alone here: all processes draw
    the same, and a resumed run goes on with the same draws.

    Attributes:
        scale_free: whether the weights depend on the gradients' directions and ratios alone.
    """

    scale_free = True

    def __init__(self, tasks: Sequence[str], at: Place = 'parameters', **options: Any) -> None:
        super().__init__(tasks, at)
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))
        self._options = options
        try:
            self.aggregator = self._aggregator(**options)
        except ImportError as error:
            raise BalancingError(
                f'{type(self).__name__} needs packages that are not installed ({error}): '
                'install requirements/training.txt'
            ) from error

    @abstractmethod
    def _aggregator(self, **options: Any) -> jd.Aggregator:
        """Build torchjd's aggregator."""

    def combine(self, gradients: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Combine with torchjd."""
        devices = [gradients.device] if gradients.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed * 1_000_003 + int(self.step))
            self.step += 1
            if isinstance(self.aggregator, jd.WeightedAggregator):
                # torchjd takes small gradients for none: those of mean losses at features are.
                scale = gradients.norm().clamp(min=1e-30) if self.scale_free else 1.0
                weights = self.aggregator.weighting(gradients / scale)
                return weights @ gradients, weights
            combined = self.aggregator(gradients)
        # Not a weighted sum: log the weights that come closest to it.
        products = gradients @ gradients.T
        return combined, torch.linalg.pinv(products) @ (gradients @ combined)


class Mgda(TorchJd):
    """Smallest convex combination: Desideri (2012); Sener and Koltun (NeurIPS 2018)."""

    def _aggregator(self, **options: Any) -> jd.Aggregator:
        return jd.MGDA(**options)


class PcGrad(TorchJd):
    """Project conflicting gradients: Yu et al., Gradient Surgery (NeurIPS 2020)."""

    def _aggregator(self, **options: Any) -> jd.Aggregator:
        return jd.PCGrad(**options)


class CaGrad(TorchJd):
    """Help the worst task near the mean gradient: Liu et al., CAGrad (NeurIPS 2021).

    Options: `c`, the radius of the search relative to the mean gradient's norm (default 0.4).
    """

    def _aggregator(self, c: float = 0.4, **options: Any) -> jd.Aggregator:
        return jd.CAGrad(c=c, **options)


class GradDrop(TorchJd):
    """Keep one sign per coordinate: Chen et al., Just Pick a Sign (NeurIPS 2020)."""

    def _aggregator(self, **options: Any) -> jd.Aggregator:
        return jd.GradDrop(**options)


class GradVac(TorchJd):
    """Align gradients to their usual similarity: Wang et al., Gradient Vaccine (ICLR 2021)."""

    def __init__(self, tasks: Sequence[str], at: Place = 'parameters', **options: Any) -> None:
        super().__init__(tasks, at, **options)
        number = len(self.tasks)
        self.register_buffer('similarity', torch.zeros(number, number))

    def _aggregator(self, **options: Any) -> jd.Aggregator:
        return jd.GradVac(**options)

    def combine(self, gradients: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Combine with the similarities of a checkpoint, which torchjd would start anew."""
        weighting = self.aggregator.gramian_weighting
        rows = torch.tensor(self.here).unsqueeze(1)
        weighting._phi_t = self.similarity[rows, self.here].cpu()
        weighting._state_key = (len(self.here), gradients.dtype)
        result = super().combine(gradients, values)
        self.similarity[rows, self.here] = weighting._phi_t.to(self.similarity)
        # Only our own buffer goes into checkpoints.
        weighting.reset()
        return result


class ImtlG(TorchJd):
    """Equal projections on all gradients: Liu et al., Impartial Learning (ICLR 2021)."""

    def _aggregator(self, **options: Any) -> jd.Aggregator:
        return jd.IMTLG(**options)


class NashMtl(TorchJd):
    """Nash's bargaining solution: Navon et al. (ICML 2022).

    Options: `max_norm`, `update_weights_every`, `optim_niter` of torchjd.
    """

    scale_free = False

    def __init__(self, tasks: Sequence[str], at: Place = 'parameters', **options: Any) -> None:
        super().__init__(tasks, at, **options)
        self.register_buffer('previous', torch.ones(len(self.tasks)))
        # One optimisation problem per number of tasks that a batch has truth for.
        self._problems = {len(self.tasks): self.aggregator}

    def _aggregator(self, **options: Any) -> jd.Aggregator:
        return jd.NashMTL(len(self.here), **options)

    def combine(self, gradients: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Combine from the previous solution, which a checkpoint brings back."""
        if len(self.here) not in self._problems:
            self._problems[len(self.here)] = self._aggregator(**self._options)
        self.aggregator = self._problems[len(self.here)]
        weighting = self.aggregator.weighting
        if weighting.step == 0 and self.step > 0:
            weighting._init_optim_problem()
        weighting.step = int(self.step)
        weighting.prvs_alpha = self.previous[self.here].cpu().numpy()
        result = super().combine(gradients, values)
        self.previous[self.here] = torch.as_tensor(weighting.prvs_alpha).to(self.previous)
        return result


class AlignedMtl(TorchJd):
    """Align the principal components of the gradients: Senushkin et al. (CVPR 2023)."""

    def _aggregator(self, **options: Any) -> jd.Aggregator:
        return jd.AlignedMTL(**options)


class UpGrad(TorchJd):
    """Project each gradient onto the dual cone, then average: Quinton and Rey (2024)."""

    def _aggregator(self, **options: Any) -> jd.Aggregator:
        return jd.UPGrad(**options)


class GradNorm(GradientBalancer):
    """Learn weights that let tasks train at similar rates: Chen et al. (ICML 2018).

    The weights are P softmax(logits); the logits follow the derivative of
    sum |w_i |g_i| - mean(w |g|) r_i^alpha|, with the mean and the inverse training rates r fixed.

    Args:
        alpha: strength of the pull towards equal training rates (LibMTL: 1.5).
    """

    def __init__(self, tasks: Sequence[str], at: Place = 'parameters', alpha: float = 1.5) -> None:
        super().__init__(tasks, at)
        self.alpha = alpha
        self.logits = nn.Parameter(torch.zeros(len(self.tasks)))
        # Zero until the task's first loss.
        self.register_buffer('initial', torch.zeros(len(self.tasks)))

    def combine(self, gradients: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh the gradients and add the gradient of the logits."""
        self._require_positive(values)
        initial = self.initial[self.here]
        initial = self.initial[self.here] = torch.where(initial > 0, initial, values)
        norms = gradients.norm(dim=1)
        with torch.enable_grad():
            weights = len(values) * self.logits[self.here].softmax(dim=0)
            weighted = weights * norms
            ratio = values / initial
            rate = ratio / ratio.mean()
            target = (weighted.mean() * rate**self.alpha).detach()
            (gradient,) = torch.autograd.grad((weighted - target).abs().sum(), self.logits)
        # Gradients of features are each process's own.
        add_gradient(self.logits, mean_over_processes(gradient))
        weights = weights.detach()
        return weights @ gradients, weights


class DbMtl(GradientBalancer):
    """Logarithms of losses, gradients of equal norm: Lin et al., Dual-Balancing (2023).

    Each task's smoothed gradient of log L is scaled to the largest of their norms.

    Args:
        beta: share of the past in the smoothed gradients.
        beta_sigma: beta falls with the step to this power.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        at: Place = 'parameters',
        beta: float = 0.9,
        beta_sigma: float = 0.0,
    ) -> None:
        super().__init__(tasks, at)
        if not 0 <= beta < 1:
            raise BalancingError(f'beta is {beta}: it must be in 0..1, without 1')
        if at == 'features' and beta > 0:
            raise BalancingError(
                'db_mtl can not smooth the gradients of features, which differ with the batch: '
                'set beta to 0, or at to parameters'
            )
        self.beta, self.beta_sigma = beta, beta_sigma
        self.register_buffer('step', torch.zeros((), dtype=torch.int64))

    def attach(self, network: MultiTaskNetwork, others: Sequence[nn.Module] = ()) -> None:
        """Make room for the smoothed gradients."""
        super().attach(network, others)
        if self.beta > 0:
            size = sum(p.numel() for p in self._shared(network))
            self.register_buffer('smoothed', torch.zeros(len(self.tasks), size))
            self.smoothed = self.smoothed.to(next(network.parameters()).device)

    def transform(self, losses: Tensor) -> Tensor:
        """Return what has the gradient of the logarithms of the losses of all processes."""
        whole = mean_over_processes(losses.detach())
        self._require_positive(whole)
        return losses / (whole + EPSILON)

    def combine(self, gradients: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Smooth, then scale every gradient to the largest norm."""
        self.step += 1
        if self.beta > 0:
            beta = self.beta / int(self.step) ** self.beta_sigma
            gradients = self.smoothed[self.here].lerp(gradients, 1 - beta)
            self.smoothed[self.here] = gradients
        norms = gradients.norm(dim=1)
        weights = norms.max() / (norms + EPSILON)
        return weights @ gradients, weights
