"""Look at the maps inside of a network while it runs as usual."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mtl_training.networks.multitask import MultiTaskNetwork


class FusedTap:
    """Keep the maps that a network's heads read, from one forward pass to their use.

    Maps are kept in training mode only, so evaluation costs no memory.

    Args:
        network: whose training passes are followed from now on.
    """

    def __init__(self, network: MultiTaskNetwork) -> None:
        self._tasks = network.tasks
        self._maps: dict[str, Tensor] = {}
        for key, fusion in network.fusions.items():
            fusion.register_forward_hook(self._keeper(key))

    def _keeper(self, key: str) -> Any:
        def keep(module: nn.Module, inputs: Any, fused: Tensor) -> None:
            if module.training:
                self._maps[key] = fused

        return keep

    def take(self) -> dict[str, Tensor]:
        """Return the last pass's maps [N,C,H',W'] by task, and forget them.

        Raises:
            RuntimeError: the network has not run in training mode since the last call.
        """
        maps, self._maps = self._maps, {}
        if not maps:
            raise RuntimeError(
                'no maps were kept: run the network in training mode after the tap was made'
            )
        return {task: maps.get(task, maps.get('shared')) for task in self._tasks}
