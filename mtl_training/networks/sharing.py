"""How tasks share the encoder: one backbone, or several that exchange what they see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from mtl_training.networks.backbones import Backbone
from mtl_training.networks.layers import SeparableConv, norm_layer, resize


class Sharing(nn.Module, ABC):
    """An encoder for several tasks.

    Attributes:
        tasks: the tasks, in order.
        channels: channels of each feature map that a task gets, fine to coarse.
        strides: pixels of the input per pixel of each map.
        same_maps: whether every task gets the very same maps.
    """

    same_maps = False

    def __init__(self, make_backbone: Callable[[], Backbone], tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self._build(make_backbone)
        example = next(module for module in self.modules() if isinstance(module, Backbone))
        self.channels, self.strides = example.channels, example.strides
        self.mean, self.std = example.mean, example.std

    @abstractmethod
    def _build(self, make_backbone: Callable[[], Backbone]) -> None:
        """Make the parts."""

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Return each task's feature maps, fine to coarse, of normalised images [N,3,H,W]."""

    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """Yield the parameters that act on this task's output alone."""
        yield from ()


class HardSharing(Sharing):
    """One backbone for all tasks (Caruana, Multitask Learning, 1997)."""

    same_maps = True

    def _build(self, make_backbone: Callable[[], Backbone]) -> None:
        self.backbone = make_backbone()

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Return the same list of maps for every task."""
        return dict.fromkeys(self.tasks, self.backbone(images))


class CrossStitch(Sharing):
    """One backbone per task, mixed linearly after every stage.

    Misra et al., Cross-stitch Networks for Multi-task Learning (CVPR 2016), with one mixing weight
    per pair of tasks and stage. A backbone of one stage is mixed at each of its maps.
    """

    KEPT = 0.9

    def _build(self, make_backbone: Callable[[], Backbone]) -> None:
        self.backbones = nn.ModuleDict({task: make_backbone() for task in self.tasks})
        first = self.backbones[self.tasks[0]]
        number = len(self.tasks)
        mixing = torch.full((number, number), (1 - self.KEPT) / max(number - 1, 1))
        mixing.fill_diagonal_(self.KEPT if number > 1 else 1.0)
        units = len(first.channels) if len(first.stages) == 1 else len(first.stages)
        self.mixing = nn.ParameterList(nn.Parameter(mixing.clone()) for _ in range(units))

    def _mix(self, unit: int, values: list[Tensor]) -> list[Tensor]:
        weights = self.mixing[unit].to(values[0].dtype)
        return [
            sum(
                (weights[i, j] * x for j, x in enumerate(values[1:], 1)), weights[i, 0] * values[0]
            )
            for i in range(len(values))
        ]

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Run the backbones stage by stage."""
        backbones = list(self.backbones.values())
        maps: list[list[Tensor]] = [[] for _ in backbones]
        current = [images] * len(backbones)
        for stage in range(len(backbones[0].stages)):
            raw = [b.stages[stage](x) for b, x in zip(backbones, current, strict=True)]
            if isinstance(raw[0], list):
                mixed = [
                    self._mix(i, list(level)) for i, level in enumerate(zip(*raw, strict=True))
                ]
                maps = [list(own) for own in zip(*mixed, strict=True)]
            else:
                current = self._mix(stage, raw)
                for own, backbone, x in zip(maps, backbones, current, strict=True):
                    own += backbone.as_maps(stage, x)
        return dict(zip(self.tasks, maps, strict=True))


class AttentionStep(nn.Module):
    """One task's attention at one level: choose from the shared map, guided by the finer level."""

    def __init__(self, channels: int, below: int, norm: str) -> None:
        super().__init__()
        hidden = max(channels // 4, 8)
        self.mask = nn.Sequential(
            nn.Conv2d(channels + below, hidden, 1, bias=False),
            norm_layer(norm, hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1),
            nn.Sigmoid(),
        )
        self.carry = SeparableConv(below, below, norm=norm) if below else None

    def forward(self, shared: Tensor, finer: Tensor | None) -> Tensor:
        """Return the attended map, of the shared map's shape."""
        seen = shared
        if self.carry is not None:
            seen = torch.cat([shared, resize(self.carry(finer), shared)], dim=1)
        return shared * self.mask(seen)


class TaskAttention(Sharing):
    """One shared backbone; each task chooses from its maps by attention.

    Liu et al., End-to-End Multi-Task Learning with Attention (MTAN, CVPR 2019), applied to a
    backbone's stages as a whole.
    """

    def _build(self, make_backbone: Callable[[], Backbone]) -> None:
        self.backbone = make_backbone()
        widths = self.backbone.channels
        self.attention = nn.ModuleDict(
            {
                task: nn.ModuleList(
                    AttentionStep(width, below, 'batch')
                    for width, below in zip(widths, (0, *widths[:-1]), strict=True)
                )
                for task in self.tasks
            }
        )

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Attend from fine to coarse."""
        shared = self.backbone(images)
        maps: dict[str, list[Tensor]] = {}
        for task in self.tasks:
            own: list[Tensor] = []
            for step, x in zip(self.attention[task], shared, strict=True):
                own.append(step(x, own[-1] if own else None))
            maps[task] = own
        return maps

    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """Yield the task's attention."""
        yield from self.attention[task].parameters()


class Gate(nn.Module):
    """Weigh the experts at each level by what the picture looks like."""

    CHANNELS = 16

    def __init__(self, experts: int, levels: int) -> None:
        super().__init__()
        self.experts, self.levels = experts, levels
        self.look = nn.Sequential(
            nn.Conv2d(3, self.CHANNELS, 7, stride=4, padding=3), nn.ReLU(inplace=True)
        )
        self.weigh = nn.Linear(self.CHANNELS, experts * levels)

    def forward(self, images: Tensor) -> Tensor:
        """Return weights [N,levels,experts] that sum to one over the experts."""
        seen = self.look(images).mean(dim=(2, 3))
        return self.weigh(seen).view(-1, self.levels, self.experts).softmax(dim=-1)


class MixtureOfExperts(Sharing):
    """Several backbones as experts; each task's gate mixes their maps.

    Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts (KDD 2018), with gates that read the picture and differ per level.
    """

    EXPERTS = 2

    def _build(self, make_backbone: Callable[[], Backbone]) -> None:
        self.experts = nn.ModuleList(make_backbone() for _ in range(self.EXPERTS))
        levels = len(self.experts[0].channels)
        self.gates = nn.ModuleDict({task: Gate(self.EXPERTS, levels) for task in self.tasks})

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Mix the experts' maps for each task."""
        seen = [expert(images) for expert in self.experts]
        maps: dict[str, list[Tensor]] = {}
        for task in self.tasks:
            weights = self.gates[task](images)
            maps[task] = [
                sum(
                    x * weights[:, level, expert, None, None, None].to(x.dtype)
                    for expert, x in enumerate(same_level)
                )
                for level, same_level in enumerate(zip(*seen, strict=True))
            ]
        return maps

    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """Yield the task's gate."""
        yield from self.gates[task].parameters()


SHARING: dict[str, type[Sharing]] = {
    'hard': HardSharing,
    'cross_stitch': CrossStitch,
    'mtan': TaskAttention,
    'mmoe': MixtureOfExperts,
}
