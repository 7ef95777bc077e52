"""Balancing of tasks: one class per method, chosen by one line of YAML.

balancing: {method: uw}
balancing: {method: cagrad, options: {c: 0.4, at: features}}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtl_training.balancing._base import Balancer, BalancingError
from mtl_training.balancing._gradients import (
    AlignedMtl,
    CaGrad,
    DbMtl,
    GradDrop,
    GradientBalancer,
    GradNorm,
    GradVac,
    ImtlG,
    Mgda,
    NashMtl,
    PcGrad,
    UpGrad,
)
from mtl_training.balancing._losses import (
    Constants,
    DynamicWeightAverage,
    Equal,
    Famo,
    GeometricLoss,
    ImtlL,
    LossBalancer,
    RandomLoss,
    SmoothTchebycheff,
    UncertaintyWeighting,
)

BALANCERS: dict[str, type[Balancer]] = {
    'equal': Equal,
    'constants': Constants,
    'uw': UncertaintyWeighting,
    'dwa': DynamicWeightAverage,
    'gls': GeometricLoss,
    'rlw': RandomLoss,
    'imtl_l': ImtlL,
    'stch': SmoothTchebycheff,
    'famo': Famo,
    'gradnorm': GradNorm,
    'db_mtl': DbMtl,
    'mgda': Mgda,
    'pcgrad': PcGrad,
    'cagrad': CaGrad,
    'graddrop': GradDrop,
    'gradvac': GradVac,
    'imtl_g': ImtlG,
    'nash_mtl': NashMtl,
    'aligned_mtl': AlignedMtl,
    'upgrad': UpGrad,
}


def build_balancer(name: str, tasks: Sequence[str], *, seed: int = 0, **options: Any) -> Balancer:
    """Build a balancing method by name.

    With one task there is nothing to balance, and every method is `equal`.

    Args:
        name: a key of `BALANCERS`.
        tasks: the tasks, in order.
        seed: of what the method draws at random.
        options: the arguments of the method's class.

    Raises:
        BalancingError: the method or an option is unknown, or a package is missing.
    """
    if name not in BALANCERS:
        raise BalancingError(
            f'there is no balancing method {name!r}: choose of {", ".join(BALANCERS)}'
        )
    try:
        balancer = BALANCERS[name](tasks, **options)
    except (TypeError, ValueError) as error:
        if isinstance(error, BalancingError):
            raise
        raise BalancingError(f'options of the balancing method {name}: {error}') from error
    balancer.seed = seed
    return balancer if len(balancer.tasks) > 1 else Equal(tasks)


__all__ = [
    'BALANCERS',
    'Balancer',
    'BalancingError',
    'GradientBalancer',
    'LossBalancer',
    'build_balancer',
]
