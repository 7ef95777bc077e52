"""The multi-task network: normalisation, shared encoder, decoders, activations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_perception.bundle import AttributeSpec
from mtl_perception.datasets import ROOMS
from mtl_training.networks.backbones import build_backbone
from mtl_training.networks.decoders import DECODERS
from mtl_training.networks.depthwise import with_fast_depthwise
from mtl_training.networks.heads import (
    BOX_STRIDE,
    ClassificationHead,
    DetectionHead,
    boxes_in_pixels,
    with_full_precision_outputs,
)
from mtl_training.networks.sharing import SHARING

DENSE_TASKS = ('segmentation', 'depth', 'normals')
TASKS = (*DENSE_TASKS, 'detection', 'classification')
TYPICAL_DEPTH_M = 2.7


class NetworkError(ValueError):
    """A network's configuration can't be built."""


@dataclass(frozen=True)
class NetworkConfig:
    """All that is needed to build a network.

    Attributes:
        backbone: timm's name (see `build_backbone`).
        pretrained: False, True (ImageNet weights by timm's hub) or a path to them.
        decoder: `pyramid`, `attentive_pyramid`, `bifpn`, `deeplab` or `segformer`.
        decoder_channels: width of all decoders but `deeplab`, and of the detection's head.
        decoder_norm: `batch` or `group` normalisation in the decoders but `deeplab`.
        sharing: `hard`, `cross_stitch`, `mtan` or `mmoe`.
        tasks: some of `segmentation`, `depth`, `normals`, `detection`, `classification`.
        num_classes: classes of the segmentation.
        num_box_classes: classes of the detection.
        max_boxes: most boxes of a picture.
        attributes: what the classification says of whole pictures.
        depth_min: smallest depth in metres that the network can give.
        depth_max: largest depth in metres that the network can give.
        depth_activation: `bounded` keeps depth softly between the bounds; `linear` is the
            unbounded output of the reference study.
        normals_confidence: add the output `normals_kappa` [N,1,H,W], the concentration of the
            angular von Mises-Fisher loss.
        drop_path: rate of stochastic depth in the backbone.
    """

    backbone: str = 'pvt_v2_b0'
    pretrained: bool | str | Path = False
    decoder: str = 'pyramid'
    decoder_channels: int = 128
    decoder_norm: str = 'batch'
    sharing: str = 'hard'
    tasks: tuple[str, ...] = DENSE_TASKS
    num_classes: int = 13
    num_box_classes: int = 10
    max_boxes: int = 100
    attributes: tuple[AttributeSpec, ...] = (
        AttributeSpec(name='room', kind='single', classes=ROOMS),
    )
    depth_min: float = 0.1
    depth_max: float = 10.0
    depth_activation: str = 'bounded'
    normals_confidence: bool = False
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, 'tasks', tuple(self.tasks))
        for field, known in (('decoder', DECODERS), ('sharing', SHARING)):
            if getattr(self, field) not in known:
                raise NetworkError(
                    f'{field} is {getattr(self, field)!r}: it must be one of {", ".join(known)}'
                )
        if self.num_classes < 2:
            raise NetworkError(f'num_classes is {self.num_classes}: give at least 2')
        if min(self.num_box_classes, self.max_boxes, self.num_attribute_classes) < 1:
            raise NetworkError(
                f'num_box_classes is {self.num_box_classes}, max_boxes {self.max_boxes}, and '
                f'there are {len(self.attributes)} attributes: give at least 1 of each'
            )
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise NetworkError(
                f'tasks are {list(self.tasks)}: name each of {", ".join(TASKS)} at most once'
            )
        if not 0 < self.depth_min < self.depth_max:
            raise NetworkError(
                f'depth_min {self.depth_min} and depth_max {self.depth_max} bound no range: '
                'give 0 < depth_min < depth_max in metres'
            )
        if self.depth_activation not in ('bounded', 'linear'):
            raise NetworkError(
                f'depth_activation is {self.depth_activation!r}: it must be bounded or linear'
            )

    @property
    def num_attribute_classes(self) -> int:
        """Classes of all attributes together."""
        return sum(len(attribute.classes) for attribute in self.attributes)

    def channels(self, task: str) -> int:
        """Return the channels of a dense task's raw output."""
        if task == 'segmentation':
            return self.num_classes
        if task == 'depth':
            return 1
        return 4 if self.normals_confidence else 3


class MultiTaskNetwork(nn.Module):
    """Pictures in, one output per task out.

    The picture is float or uint8 [N,3,H,W], RGB in 0..255; the network normalises it itself.
    The outputs are float32. Those of the picture's height and width:
    `segmentation` logits [N,num_classes,H,W]; `depth` metres along the optical axis [N,1,H,W],
    positive; `normals` unit vectors [N,3,H,W] in the camera's optical frame.
    `detection` [N,num_box_classes+4,H/4,W/4]: logits of each class having a thing's centre there,
    then the distances in pixels from the cell's centre to the thing's left, top, right and bottom.
    `classification` logits of all attributes' classes in a row, [N,num_attribute_classes].
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.tasks = config.tasks
        decoder = DECODERS[config.decoder]
        self.encoder = SHARING[config.sharing](
            lambda: build_backbone(
                config.backbone, pretrained=config.pretrained, drop_path=config.drop_path
            ),
            config.tasks,
        )
        for name, values in (('mean', self.encoder.mean), ('std', self.encoder.std)):
            scaled = torch.tensor([255.0 * value for value in values]).view(1, 3, 1, 1)
            self.register_buffer(name, scaled, persistent=False)
        width, norm = config.decoder_channels, config.decoder_norm
        self.fusions = nn.ModuleDict(
            {
                key: decoder.fusion(self.encoder.channels, width, norm)
                for key in self._fusion_keys()
            }
        )
        self.heads = nn.ModuleDict(
            {
                task: decoder.head(
                    self._fusion(task).out_channels, config.channels(task), width, norm
                )
                for task in config.tasks
                if task in DENSE_TASKS
            }
        )
        if 'detection' in config.tasks:
            fused = self._fusion('detection').out_channels
            self.heads['detection'] = DetectionHead(fused, config.num_box_classes, width, norm)
        if 'classification' in config.tasks:
            self.heads['classification'] = ClassificationHead(
                self.encoder.channels[-1], config.num_attribute_classes
            )
        for head in self.heads.values():
            with_full_precision_outputs(head)
        self._align_corners = decoder.align_corners
        self._fused_stride = self.encoder.strides[-1 if decoder.coarse else 0]
        self._start_at_typical_depth()

    def _start_at_typical_depth(self) -> None:
        """Begin in the steep part of the depth activation, whatever the bounds."""
        if 'depth' not in self.tasks or self.config.depth_activation == 'linear':
            return
        low, high = self.config.depth_min, self.config.depth_max
        share = min(max((TYPICAL_DEPTH_M - low) / (high - low), 0.1), 0.9)
        nn.init.constant_(self.heads['depth'][-1].bias, math.log(share / (1 - share)))

    @property
    def tasks_beside_fusion(self) -> tuple[str, ...]:
        """Tasks whose heads read the backbone's coarsest map and not the fused one."""
        return tuple(task for task in self.tasks if task == 'classification')

    def _fusion_keys(self) -> tuple[str, ...]:
        fused = tuple(task for task in self.tasks if task not in self.tasks_beside_fusion)
        return (('shared',) if fused else ()) if self.encoder.same_maps else fused

    def _fusion(self, task: str) -> nn.Module:
        return self.fusions['shared' if self.encoder.same_maps else task]

    @property
    def fused_channels(self) -> dict[str, int]:
        """Channels of the map that each task's head reads."""
        beside = dict.fromkeys(self.tasks_beside_fusion, self.encoder.channels[-1])
        return {
            task: beside[task] if task in beside else self._fusion(task).out_channels
            for task in self.tasks
        }

    def normalise(self, images: Tensor) -> Tensor:
        """Bring RGB pictures in 0..255 to the backbone's mean and standard deviation."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def fused_maps(self, images: Tensor) -> dict[str, Tensor]:
        """Return the map [N,C,H',W'] that each task's head reads, by task.

        With hard sharing it is the same tensor for all tasks: the place where gradient balancing
        may act, and where distillation compares networks. The classification reads the backbone's
        coarsest map instead.
        """
        maps = self.encoder(self.normalise(images))
        fused = {
            key: fusion(maps[self.tasks[0] if key == 'shared' else key])
            for key, fusion in self.fusions.items()
        }
        read = {task: maps[task][-1] for task in self.tasks_beside_fusion}
        return {
            task: read[task] if task in read else fused.get(task, fused.get('shared'))
            for task in self.tasks
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute every task's output (see the class) for pictures [N,3,H,W] in 0..255."""
        return self.predict(self.fused_maps(images), images.shape[-2:])

    def predict(self, fused: dict[str, Tensor], size: Sequence[int]) -> dict[str, Tensor]:
        """Compute the outputs from the maps of `fused_maps`, at `size` (height, width)."""
        outputs: dict[str, Tensor] = {}
        for task in self.tasks:
            features = fused[task]
            if task == 'detection' and self._fused_stride != BOX_STRIDE:
                cells = [edge // BOX_STRIDE for edge in size]
                features = F.interpolate(features, cells, mode='bilinear')
            # Dense heads and boxes end in float32 (half precision would round depth to
            # centimetres); all that follows stays so.
            raw = self.heads[task](features).float()
            if task not in DENSE_TASKS:
                outputs[task] = boxes_in_pixels(raw) if task == 'detection' else raw
                continue
            raw = F.interpolate(raw, size, mode='bilinear', align_corners=self._align_corners)
            outputs |= self._activate(task, raw)
        return outputs

    def _activate(self, task: str, raw: Tensor) -> dict[str, Tensor]:
        if task == 'segmentation':
            return {task: raw}
        if task == 'depth':
            if self.config.depth_activation == 'linear':
                return {task: raw}
            low, high = self.config.depth_min, self.config.depth_max
            return {task: low + (high - low) * torch.sigmoid(raw)}
        outputs = {task: safe_normalise(raw[:, :3])}
        if self.config.normals_confidence:
            outputs['normals_kappa'] = 0.01 + F.softplus(raw[:, 3:])
        return outputs

    def task_parameters(self, task: str) -> Iterator[nn.Parameter]:
        """Yield the parameters that act on this task's output alone."""
        yield from self.encoder.task_parameters(task)
        if not self.encoder.same_maps and task in self.fusions:
            yield from self.fusions[task].parameters()
        yield from self.heads[task].parameters()

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that act on several tasks' outputs."""
        own = {id(p) for task in self.tasks for p in self.task_parameters(task)}
        yield from (p for p in self.parameters() if id(p) not in own)


def safe_normalise(vectors: Tensor) -> Tensor:
    """Scale vectors [N,3,H,W] to unit length; the gradient stays finite at zero."""
    return vectors * torch.rsqrt(vectors.square().sum(dim=1, keepdim=True) + 1e-8)


def build_network(config: NetworkConfig) -> MultiTaskNetwork:
    """Build the network of a configuration.

    Raises:
        NetworkError, BackboneError: the configuration can't be built.
    """
    return with_fast_depthwise(MultiTaskNetwork(config))
