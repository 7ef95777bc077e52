"""Heads that are not dense: boxes of things, and attributes of whole pictures.

Things are found as the peaks of one heat map per class, without anchors (Zhou, Wang and
Kraehenbuehl, Objects as Points, 2019); each peak tells the distances to the sides of its box (Tian
et al., FCOS, ICCV 2019). A large thing may have several peaks: the less sure ones lose their score
by matrix suppression (Wang et al., SOLOv2, NeurIPS 2020), which needs no loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_perception.bundle import AttributeSpec
from mtl_training.networks.layers import SeparableConv

BOX_STRIDE = 4
# Before training a cell is thought to hold a centre with this probability, and a thing's sides to
# be this far from it.
FIRST_PROBABILITY = 0.01
FIRST_DISTANCE_PX = 32.0
# Bounds of log(distance / stride): 0.07 to 1800 pixels.
LOG_RANGE = (-4.0, 6.1)
# Slots with a lower score are empty.
LEAST_SCORE = 0.01
# Areas are computed in units of this many pixels: half precision ends at 65504.
AREA_UNIT_PX = 32.0


class FullPrecisionConv2d(nn.Conv2d):
    """A convolution that computes in float32 under autocast, too."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [N,C,H,W] of any precision."""
        # Shapes alone ('meta') know no autocast; without it, exporters meet a plain convolution.
        if x.is_meta or not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def with_full_precision_outputs(head: nn.Module) -> nn.Module:
    """Let a head's 1x1 convolutions to its outputs compute in float32; names and weights stay.

    Half precision would round logits, depth and boxes to 8 bits before the loss sees them.
    """
    for layers in (head, *head.children()):
        if isinstance(layers, nn.Sequential) and isinstance(layers[-1], nn.Conv2d):
            layers[-1].__class__ = FullPrecisionConv2d
    return head


class DetectionHead(nn.Module):
    """Compute heat maps and distances from the fused map.

    Args:
        in_channels: of the fused map.
        classes: number of classes of things.
        width: channels within the head.
        norm: kind of normalisation, `batch` or `group`.
    """

    def __init__(self, in_channels: int, classes: int, width: int, norm: str = 'batch') -> None:
        super().__init__()
        self.heat = nn.Sequential(
            SeparableConv(in_channels, width, norm=norm),
            SeparableConv(width, width, norm=norm),
            nn.Conv2d(width, classes, 1),
        )
        self.extent = nn.Sequential(
            SeparableConv(in_channels, width, norm=norm),
            SeparableConv(width, width, norm=norm),
            nn.Conv2d(width, 4, 1),
        )
        odds = FIRST_PROBABILITY / (1 - FIRST_PROBABILITY)
        nn.init.constant_(self.heat[-1].bias, math.log(odds))
        nn.init.constant_(self.extent[-1].bias, math.log(FIRST_DISTANCE_PX / BOX_STRIDE))

    def forward(self, fused: Tensor) -> Tensor:
        """Return [N,classes+4,H,W]: logits, then logarithms of distances in strides."""
        return torch.cat([self.heat(fused), self.extent(fused)], dim=1)


def boxes_in_pixels(raw: Tensor) -> Tensor:
    """Turn the logarithms in the last four channels of the head's output into pixels."""
    heat, extent = raw[:, :-4], raw[:, -4:]
    return torch.cat([heat, BOX_STRIDE * extent.clamp(*LOG_RANGE).exp()], dim=1)


class ClassificationHead(nn.Sequential):
    """Compute all attributes' logits [N,classes] from the coarsest map."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LayerNorm(in_channels),
            nn.Dropout(0.1),
            nn.Linear(in_channels, classes),
        )


def class_scores(logits: Tensor, attributes: Sequence[AttributeSpec]) -> Tensor:
    """Turn logits [N,C] into probabilities: softmax within `single` attributes, else sigmoid."""
    parts = logits.split([len(attribute.classes) for attribute in attributes], dim=1)
    scores = [
        part.softmax(dim=1) if attribute.kind == 'single' else part.sigmoid()
        for part, attribute in zip(parts, attributes, strict=True)
    ]
    return torch.cat(scores, dim=1)


def cell_centres(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return x [1,1,W] and y [1,H,1] of the cells of a map [N,C,H,W], in pixels.

    Pixel centres lie at +0.5, as in boxes: the first cell's centre is at half a stride.
    """
    height, width = like.shape[-2:]
    x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) * BOX_STRIDE
    y = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) * BOX_STRIDE
    return x.view(1, 1, -1), y.view(1, -1, 1)


def decode_boxes(detection: Tensor, max_boxes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the things in the network's output.

    A thing is a cell whose logit is the highest of its class among its eight neighbours; its score
    is the cell's probability, lowered where a surer thing of its class covers it.

    Args:
        detection: float32 [N,C+4,H,W], the network's output of that name.
        max_boxes: K, how many are returned at most.

    Returns:
        boxes float32 [N,K,4], x0 y0 x1 y1 in pixels of the picture, within it; scores float32
        [N,K], falling; labels int32 [N,K]. Empty slots have zeros, 0 and -1.
    """
    heat, extent = detection[:, :-4], detection[:, -4:]
    x, y = cell_centres(heat)
    left, top, right, bottom = extent.unbind(1)
    sides = torch.stack(
        [
            (x - left).clamp(min=0),
            (y - top).clamp(min=0),
            torch.minimum(x + right, _edge(x)),
            torch.minimum(y + bottom, _edge(y)),
        ],
        dim=-1,
    )
    probability = heat.sigmoid()
    peak = F.max_pool2d(heat, 3, stride=1, padding=1) == heat
    probability = torch.where(peak, probability, 0.0)
    # Looked up, not divided: exporters divide integers as floats, which half precision spoils.
    pictures, classes, height, width = heat.shape
    every = (pictures, classes, height * width)
    label_of = torch.arange(classes, device=heat.device).view(1, -1, 1).expand(every)
    cell_of = torch.arange(height * width, device=heat.device).view(1, 1, -1).expand(every)
    scores, found = probability.flatten(1).topk(max_boxes, dim=1)
    label = label_of.flatten(1).gather(1, found)
    cell = cell_of.flatten(1).gather(1, found)
    boxes = sides.flatten(1, 2).gather(1, cell.unsqueeze(-1).expand(-1, -1, 4))
    scores, order = (scores * _uncovered(boxes, label)).topk(max_boxes, dim=1)
    boxes = boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
    label = label.gather(1, order)
    filled = scores >= LEAST_SCORE
    return (
        torch.where(filled.unsqueeze(-1), boxes, 0.0),
        torch.where(filled, scores, 0.0),
        torch.where(filled, label, -1).to(torch.int32),
    )


def _uncovered(boxes: Tensor, label: Tensor) -> Tensor:
    """Return by which factor each box keeps its score, [N,K]: matrix suppression, linear kernel.

    A box loses the share of it that overlaps with a surer one of its class, unless that one was
    itself covered by a surer one.

    Args:
        boxes: [N,K,4] in pixels, the surest first.
        label: [N,K].
    """
    boxes = boxes / AREA_UNIT_PX
    size = boxes[..., 2:] - boxes[..., :2]
    area = size[..., 0] * size[..., 1]
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = (high - low).clamp(min=0)
    shared = shared[..., 0] * shared[..., 1]
    overlap = shared / (area[:, :, None] + area[:, None] - shared).clamp(min=1e-3)
    # From the surer i to the less sure j.
    surer = torch.ones(boxes.shape[1], boxes.shape[1], device=boxes.device).triu(1) > 0
    overlap = torch.where(surer & (label[:, :, None] == label[:, None]), overlap, 0.0)
    covered = overlap.amax(dim=1)
    kept = (1 - overlap) / (1 - covered).clamp(min=0.01).unsqueeze(-1)
    return kept.amin(dim=1).clamp(max=1)


def _edge(centres: Tensor) -> Tensor:
    """Return the far side of the picture along one axis, from the last cell's centre."""
    return centres.max() + BOX_STRIDE / 2
