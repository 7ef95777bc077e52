"""The tasks: what of a batch counts, and the losses that may be mixed for each.

Losses compute in float32 whatever the network's precision, and mean over what is labelled only: a
batch may mix pictures of data sets that know different things.
`PLAIN` names each task's usual losses, for the dense ones LibMTL's (https://github.com/median-research-group/LibMTL).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl_perception.bundle import AttributeSpec
from mtl_perception.datasets import NOT_TOLD_APART, is_region_of_class, region_of
from mtl_training.networks.heads import BOX_STRIDE, cell_centres

IGNORED_LABEL = 255
PLAIN: dict[str, dict[str, float]] = {
    'segmentation': {'cross_entropy': 1.0},
    'depth': {'l1': 1.0},
    'normals': {'cosine': 1.0},
    'detection': {'heat': 1.0, 'giou': 2.0},
    'classification': {'cross_entropy': 1.0},
}
Batch = Mapping[str, Tensor]


class TaskError(ValueError):
    """A task or one of its losses is unknown or wrongly configured."""


class Task(ABC):
    """One output of the network and its training signal.

    Args:
        losses: weight of each loss term by name; None is the one of `PLAIN`.

    Attributes:
        name: the key of the network's output.
        target: the key of the target in a batch.
        losses: the loss terms and their weights.
        OF_THE_WHOLE: terms that are no means over what is valid.
    """

    name: str
    target: str
    OF_THE_WHOLE: frozenset[str] = frozenset()

    def __init__(self, losses: Mapping[str, float] | None = None) -> None:
        self.losses = dict(losses if losses is not None else PLAIN[self.name])
        unknown = sorted(set(self.losses) - set(self._terms()))
        if unknown or not self.losses:
            raise TaskError(
                f'{self.name} has the losses {sorted(self.losses)}: '
                f'name at least one of {", ".join(sorted(self._terms()))}'
            )

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the network's output."""

    @abstractmethod
    def valid(self, batch: Batch) -> Tensor:
        """Return the mask of what has a target: pixels [N,H,W] for a dense task."""

    @abstractmethod
    def _terms(self) -> dict[str, Callable[[Tensor, Batch, Tensor, Tensor], Tensor]]:
        """Return each loss term as f(prediction, batch, mask, count)."""

    def valid_count(self, batch: Batch) -> Tensor:
        """Count what the loss is a mean over: the pixels with a target (float32 scalar).

        Pixels that weigh more count more.
        """
        return self.valid(batch).sum(dtype=torch.float32)

    def present(self, batch: Batch) -> Tensor:
        """Tell whether the batch teaches this task at all (bool scalar)."""
        return self.valid(batch).any()

    def loss(
        self,
        outputs: Mapping[str, Tensor] | Tensor,
        batch: Batch,
        count: Tensor | None = None,
    ) -> Tensor:
        """Compute the weighted sum of the loss terms, a float32 scalar.

        Args:
            outputs: the network's outputs, or this task's alone.
            batch: targets; `label` int64 [N,H,W] (255 ignored), `depth` float32 [N,H,W] metres
                (0 or not finite: invalid), `normal` float32 [N,3,H,W] (0,0,0: invalid); see
                `collate` for those of boxes and attributes.
            count: divisor of the terms that are means, positive; None takes the batch's own
                `valid_count`. Of a part of a larger batch, give the whole one's count, so that the
                losses of the parts add up to its mean; with several processes, divided by their
                number, because their gradients are averaged. Terms that are no means count by
                their share of it.

        Returns:
            The loss; 0 with a graph when nothing has a target.
        """
        prediction = outputs if isinstance(outputs, Tensor) else self._prediction(outputs)
        with torch.autocast(prediction.device.type, enabled=False):
            prediction = prediction.float()
            mask = self.valid(batch)
            own = self.valid_count(batch)
            if count is None:
                count = own.where(own > 0, 1.0)
            terms = self._terms()
            total = prediction.new_zeros(())
            for name, weight in self.losses.items():
                term = terms[name](prediction, batch, mask, count)
                if name in self.OF_THE_WHOLE:
                    term = term * own / count
                total = total + weight * term
        return total

    def _prediction(self, outputs: Mapping[str, Tensor]) -> Tensor:
        return outputs[self.name]


class Segmentation(Task):
    """Pixel classes.

    Args:
        num_classes: number of classes.
        losses: of `cross_entropy`, `dice` (Milletari et al., 2016) and `lovasz`
            (Berman et al., CVPR 2018).
        class_weights: weight of each class in the cross entropy.
        label_smoothing: share of the target spread over all classes.
    """

    name = 'segmentation'
    target = 'label'
    OF_THE_WHOLE = frozenset({'dice', 'lovasz'})

    def __init__(
        self,
        num_classes: int = 13,
        losses: Mapping[str, float] | None = None,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(losses)
        if class_weights is not None and len(class_weights) != num_classes:
            raise TaskError(
                f'class_weights has {len(class_weights)} values: give one per class, {num_classes}'
            )
        self.num_classes = num_classes
        self.class_weights = None if class_weights is None else torch.tensor(class_weights)
        self.label_smoothing = label_smoothing

    @property
    def channels(self) -> int:
        """Channels of the logits."""
        return self.num_classes

    def valid(self, batch: Batch) -> Tensor:
        """Return the labelled pixels."""
        return batch['label'] != IGNORED_LABEL

    def valid_count(self, batch: Batch) -> Tensor:
        """Count the labelled pixels, each with the weight of its class."""
        mask = self.valid(batch)
        weights = self._weights(mask.device)
        if weights is None:
            return mask.sum(dtype=torch.float32)
        return (weights[batch['label'].where(mask, 0)] * mask).sum()

    def _weights(self, device: torch.device) -> Tensor | None:
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(device, torch.float32)
        return self.class_weights

    def _terms(self) -> dict[str, Callable[[Tensor, Batch, Tensor, Tensor], Tensor]]:
        return {
            'cross_entropy': self._cross_entropy,
            'dice': self._dice,
            'lovasz': self._lovasz,
        }

    def _cross_entropy(self, logits: Tensor, batch: Batch, mask: Tensor, count: Tensor) -> Tensor:
        summed = F.cross_entropy(
            logits,
            batch['label'],
            weight=self._weights(logits.device),
            ignore_index=IGNORED_LABEL,
            label_smoothing=self.label_smoothing,
            reduction='sum',
        )
        return summed / count

    def _probabilities(
        self, logits: Tensor, batch: Batch, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities and one-hot truth [P,C] where valid, and the present classes."""
        probability = logits.softmax(dim=1).permute(0, 2, 3, 1)[mask]
        truth = F.one_hot(batch['label'][mask], self.num_classes).to(probability.dtype)
        return probability, truth, truth.sum(dim=0) > 0

    def _dice(self, logits: Tensor, batch: Batch, mask: Tensor, count: Tensor) -> Tensor:
        probability, truth, present = self._probabilities(logits, batch, mask)
        overlap = 2 * (probability * truth).sum(dim=0)
        dice = overlap / (probability.sum(dim=0) + truth.sum(dim=0)).clamp(min=1e-6)
        return ((1 - dice) * present).sum() / present.sum().clamp(min=1)

    def _lovasz(self, logits: Tensor, batch: Batch, mask: Tensor, count: Tensor) -> Tensor:
        probability, truth, present = self._probabilities(logits, batch, mask)
        if not len(truth):
            return logits.sum() * 0
        errors, order = (probability - truth).abs().sort(dim=0, descending=True)
        truth = truth.gather(0, order)
        total = truth.sum(dim=0)
        jaccard = 1 - (total - truth.cumsum(0)) / (total + (1 - truth).cumsum(0))
        slope = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
        return ((errors * slope).sum(dim=0) * present).sum() / present.sum().clamp(min=1)


class Depth(Task):
    """Depth in metres along the optical axis.

    Args:
        losses: of `l1`, `log_l1`, `silog` (Eigen et al., NeurIPS 2014) and `gradient`
            (differences of log depth at four scales: Li and Snavely, MegaDepth, CVPR 2018).
        silog_variance: the share of the mean log error that `silog` forgives, 0 to 1.
    """

    name = 'depth'
    target = 'depth'
    OF_THE_WHOLE = frozenset({'silog', 'gradient'})
    SCALES = 4

    def __init__(
        self, losses: Mapping[str, float] | None = None, silog_variance: float = 0.85
    ) -> None:
        super().__init__(losses)
        self.silog_variance = silog_variance

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return 1

    def valid(self, batch: Batch) -> Tensor:
        """Return the pixels with a measured depth."""
        return (batch['depth'] > 0) & batch['depth'].isfinite()

    def _terms(self) -> dict[str, Callable[[Tensor, Batch, Tensor, Tensor], Tensor]]:
        return {
            'l1': self._l1,
            'log_l1': self._log_l1,
            'silog': self._silog,
            'gradient': self._gradient,
        }

    @staticmethod
    def _l1(depth: Tensor, batch: Batch, mask: Tensor, count: Tensor) -> Tensor:
        truth = batch['depth'].where(mask, 0)
        return ((depth[:, 0] - truth).abs() * mask).sum() / count

    @staticmethod
    def _log_error(depth: Tensor, batch: Batch, mask: Tensor) -> Tensor:
        """Return log(depth / truth), 0 where invalid; the floor admits unbounded outputs."""
        truth = batch['depth'].where(mask, 1)
        return ((depth[:, 0].clamp(min=1e-3).log() - truth.log()) * mask).where(mask, 0)

    def _log_l1(self, depth: Tensor, batch: Batch, mask: Tensor, count: Tensor) -> Tensor:
        return self._log_error(depth, batch, mask).abs().sum() / count

    def _silog(self, depth: Tensor, batch: Batch, mask: Tensor, count: Tensor) -> Tensor:
        error = self._log_error(depth, batch, mask)
        own = mask.sum().clamp(min=1)
        mean = error.sum() / own
        # The variance is summed around the mean: mean(e^2) - mean(e)^2 cancels in float32.
        spread = ((error - mean) * mask).square().sum() / own
        return (spread + (1 - self.silog_variance) * mean.square() + 1e-8).sqrt()

    def _gradient(self, depth: Tensor, batch: Batch, mask: Tensor, count: Tensor) -> Tensor:
        error = self._log_error(depth, batch, mask)
        total = error.new_zeros(())
        for scale in range(self.SCALES):
            step = 2**scale
            e, m = error[:, ::step, ::step], mask[:, ::step, ::step]
            for axis in (1, 2):
                if e.shape[axis] < 2:
                    continue
                pairs = m.narrow(axis, 1, m.shape[axis] - 1) & m.narrow(axis, 0, m.shape[axis] - 1)
                total = total + (e.diff(dim=axis).abs() * pairs).sum() / pairs.sum().clamp(min=1)
        return total / self.SCALES


class Normals(Task):
    """Unit surface normals in the camera's optical frame.

    Args:
        losses: of `cosine`, `angular` (mean angle in radians) and `angular_vmf` (negative log
            likelihood of the angular von Mises-Fisher distribution: Bae et al., ICCV 2021; needs
            the network's `normals_kappa`).
    """

    name = 'normals'
    target = 'normal'

    @property
    def channels(self) -> int:
        """Channels of the output: the vector, and its concentration where a loss reads it."""
        return 4 if 'angular_vmf' in self.losses else 3

    def valid(self, batch: Batch) -> Tensor:
        """Return the pixels with a normal."""
        normal = batch['normal']
        return (normal != 0).any(dim=1) & normal.isfinite().all(dim=1)

    def _prediction(self, outputs: Mapping[str, Tensor]) -> Tensor:
        if self.channels == 3:
            return outputs['normals']
        if 'normals_kappa' not in outputs:
            raise TaskError(
                'the loss angular_vmf needs the output normals_kappa: '
                'set normals_confidence in the network'
            )
        return torch.cat([outputs['normals'], outputs['normals_kappa']], dim=1)

    def _terms(self) -> dict[str, Callable[[Tensor, Batch, Tensor, Tensor], Tensor]]:
        return {
            'cosine': self._cosine,
            'angular': self._angular,
            'angular_vmf': self._angular_vmf,
        }

    @staticmethod
    def _cosine(normal: Tensor, batch: Batch, mask: Tensor, count: Tensor) -> Tensor:
        truth = batch['normal'].where(mask.unsqueeze(1), 0)
        cosine = (normal[:, :3] * truth).sum(dim=1)
        return ((1 - cosine) * mask).sum() / count

    @staticmethod
    def _angle(normal: Tensor, batch: Batch, mask: Tensor) -> Tensor:
        """Return the angle [N,H,W] in radians, 0 where invalid.

        The half-angle form keeps its accuracy and a finite gradient where acos has neither.
        """
        truth = batch['normal'].where(mask.unsqueeze(1), 0)
        n = normal[:, :3]
        apart = ((n - truth).square().sum(dim=1) + 1e-12).sqrt()
        along = ((n + truth).square().sum(dim=1) + 1e-12).sqrt()
        return (2 * torch.atan2(apart, along)) * mask

    def _angular(self, normal: Tensor, batch: Batch, mask: Tensor, count: Tensor) -> Tensor:
        return self._angle(normal, batch, mask).sum() / count

    def _angular_vmf(self, normal: Tensor, batch: Batch, mask: Tensor, count: Tensor) -> Tensor:
        angle = self._angle(normal, batch, mask)
        kappa = normal[:, 3]
        nll = (
            kappa * angle - torch.log1p(kappa.square()) + torch.log1p(torch.exp(-kappa * math.pi))
        )
        return (nll * mask).sum() / count


class Detection(Task):
    """Boxes of things, as peaks of heat maps.

    The targets are those of Liu et al., Training-Time-Friendly Network for Real-Time Object
    Detection (TTFNet, AAAI 2020): a Gaussian as long and wide as the box, at whose every cell
    the box is learned, so that a few thousand steps suffice. A class that a picture's data set
    does not label is neither there nor not there; a region of things that are not told apart
    holds no negative examples of its class, or of any.

    Args:
        num_classes: number of classes.
        losses: of `heat` (focal loss of Law and Deng, CornerNet, ECCV 2018, per thing) and `giou`
            (Rezatofighi et al., Generalized Intersection over Union, CVPR 2019).
        reach: size of the Gaussian's window relative to the box, 0 to 1.
    """

    name = 'detection'
    target = 'boxes'
    ALPHA, BETA = 2.0, 4.0

    def __init__(
        self,
        num_classes: int = 10,
        losses: Mapping[str, float] | None = None,
        reach: float = 0.54,
    ) -> None:
        super().__init__(losses)
        if not 0 < reach <= 1:
            raise TaskError(f'reach is {reach}: give the share of a box, above 0 and at most 1')
        self.num_classes = num_classes
        self.reach = reach

    @property
    def channels(self) -> int:
        """Channels of the output: one per class, and four sides."""
        return self.num_classes + 4

    def valid(self, batch: Batch) -> Tensor:
        """Return which classes' boxes are known of which picture, [N,C]."""
        return batch['boxes_known']

    def valid_count(self, batch: Batch) -> Tensor:
        """Count the things (float32 scalar)."""
        return (batch['box_labels'] >= 0).sum(dtype=torch.float32)

    def _terms(self) -> dict[str, Callable[[Tensor, Batch, Tensor, Tensor], Tensor]]:
        return {'heat': self._heat, 'giou': self._giou}

    def _gaussians(self, batch: Batch, size: Sequence[int]) -> Tensor:
        """Return each box's Gaussian over the cells, [N,M,H,W]; 1 at its centre's cell.

        It is zero beyond a window of `reach` times the box, and everywhere for empty slots and
        regions.
        """
        boxes = batch['boxes'] / BOX_STRIDE
        height, width = size
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        # The last cell takes a centre on the picture's far edge.
        limit = centre.new_tensor([width - 1, height - 1])
        cell = centre.floor().clamp(min=0).minimum(limit)
        radius = ((boxes[..., 2:] - boxes[..., :2]) / 2 * self.reach).floor()
        sigma = (2 * radius + 1) / 6
        axes = []
        for axis, length in enumerate((width, height)):
            cells = torch.arange(length, device=boxes.device, dtype=boxes.dtype)
            away = cells - cell[..., axis, None]
            bell = torch.exp(-away.square() / (2 * sigma[..., axis, None].square()))
            axes.append(bell * (away.abs() <= radius[..., axis, None]))
        things = batch['box_labels'] >= 0
        return axes[1].unsqueeze(-1) * axes[0].unsqueeze(-2) * things[..., None, None]

    def _heat(self, prediction: Tensor, batch: Batch, known: Tensor, count: Tensor) -> Tensor:
        logits = prediction[:, :-4]
        gaussians = self._gaussians(batch, logits.shape[-2:])
        truth = torch.zeros_like(logits)
        if gaussians.shape[1]:
            label = batch['box_labels'].clamp(min=0)[..., None, None].expand_as(gaussians)
            truth = truth.scatter_reduce(1, label, gaussians, 'amax')
        counted = known[..., None, None] & ~self._crowded(batch, logits)
        centre = truth == 1
        sure = F.logsigmoid(logits)
        unsure = F.logsigmoid(-logits)
        hits = sure * unsure.exp().pow(self.ALPHA)
        misses = unsure * sure.exp().pow(self.ALPHA) * (1 - truth).pow(self.BETA)
        # A centre in a crowd is still a centre.
        total = hits.where(centre & known[..., None, None], misses * (counted & ~centre))
        return -total.sum() / count

    @staticmethod
    def _crowded(batch: Batch, like: Tensor) -> Tensor:
        """Return the cells [N,C or 1,H,W] whose centres lie in a region (see the class)."""
        x, y = cell_centres(like)
        boxes = batch['boxes'][..., None, None]
        inside = (
            (boxes[:, :, 0] <= x) & (x < boxes[:, :, 2]) & (boxes[:, :, 1] <= y)
            & (y < boxes[:, :, 3])
        )  # fmt: skip
        labels = batch['box_labels'][..., None, None]
        of_any = (inside & (labels == NOT_TOLD_APART)).any(dim=1, keepdim=True)
        of_class = inside & is_region_of_class(labels)
        if not of_class.any():
            return of_any
        label = region_of(labels).clamp(0, like.shape[1] - 1).expand_as(inside)
        crowded = torch.zeros_like(like).scatter_reduce(1, label, of_class.to(like.dtype), 'amax')
        return of_any | crowded.bool()

    def _giou(self, prediction: Tensor, batch: Batch, known: Tensor, count: Tensor) -> Tensor:
        sides = prediction[:, -4:]
        gaussians = self._gaussians(batch, sides.shape[-2:])
        if not gaussians.shape[1]:
            return sides.sum() * 0
        boxes = batch['boxes']
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        # Where things overlap, a cell belongs to the smallest.
        area = area[..., None, None].where(gaussians > 0, math.inf)
        owner = area.argmin(dim=1)
        mine = F.one_hot(owner, gaussians.shape[1]).movedim(-1, 1) * gaussians
        weights = mine / mine.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
        weight = weights.sum(dim=1)
        x, y = cell_centres(sides)
        centres = torch.stack([x.expand_as(owner), y.expand_as(owner)], dim=-1)
        sides = sides.movedim(1, -1)
        found = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], dim=-1)
        picture = torch.arange(len(owner), device=owner.device)[:, None, None]
        return (weight * (1 - generalised_iou(found, boxes[picture, owner]))).sum() / count


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the generalised intersection over union of boxes [...,4], in -1..1."""
    width_a, height_a = (a[..., 2:] - a[..., :2]).unbind(-1)
    width_b, height_b = (b[..., 2:] - b[..., :2]).unbind(-1)
    both = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(
        min=0
    )
    intersection = both.prod(dim=-1)
    union = (width_a * height_a + width_b * height_b - intersection).clamp(min=1e-6)
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = hull.prod(dim=-1).clamp(min=1e-6)
    return intersection / union - (hull - union) / hull


class Classification(Task):
    """Attributes of whole pictures: one class of each `single` one, any number of `multi` ones.

    The loss is the mean over all pictures' known attributes; a picture need not know all.

    Args:
        attributes: in the order of the network's outputs.
        losses: of `cross_entropy` (over an attribute's classes where it is `single`, the mean over
            each class's yes or no where it is `multi`).
        label_smoothing: share of a `single` target that is spread over all classes.
    """

    name = 'classification'
    target = 'attributes'

    def __init__(
        self,
        attributes: Sequence[AttributeSpec] = (),
        losses: Mapping[str, float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(losses)
        if not attributes:
            raise TaskError('classification has no attributes: name at least one')
        self.attributes = tuple(attributes)
        self.label_smoothing = label_smoothing

    @property
    def channels(self) -> int:
        """Length of the output: all attributes' classes."""
        return sum(len(attribute.classes) for attribute in self.attributes)

    def valid(self, batch: Batch) -> Tensor:
        """Return which attributes are known of which picture, [N,attributes]."""
        widths = [len(attribute.classes) for attribute in self.attributes]
        known = (batch['attributes'] >= 0).split(widths, dim=1)
        return torch.stack([part.any(dim=1) for part in known], dim=1)

    def _terms(self) -> dict[str, Callable[[Tensor, Batch, Tensor, Tensor], Tensor]]:
        return {'cross_entropy': self._cross_entropy}

    def _cross_entropy(self, logits: Tensor, batch: Batch, known: Tensor, count: Tensor) -> Tensor:
        total = logits.sum() * 0
        start = 0
        for index, attribute in enumerate(self.attributes):
            end = start + len(attribute.classes)
            given, target = logits[:, start:end], batch['attributes'][:, start:end]
            start = end
            if attribute.kind == 'single':
                chosen = target.argmax(dim=1).where(known[:, index], -100)
                total = total + F.cross_entropy(
                    given, chosen, label_smoothing=self.label_smoothing, reduction='sum'
                )
            else:
                decided = target >= 0
                loss = F.binary_cross_entropy_with_logits(
                    given, target.clamp(min=0).to(given.dtype), reduction='none'
                )
                per_picture = (loss * decided).sum(dim=1) / decided.sum(dim=1).clamp(min=1)
                total = total + per_picture.sum()
        return total / count


_TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Segmentation, Depth, Normals, Detection, Classification)
}


def build_task(name: str, config: Mapping[str, Any] | None = None) -> Task:
    """Build a task by name with its options (the arguments of its class).

    Raises:
        TaskError: the task, an option or a loss is unknown.
    """
    if name not in _TASKS:
        raise TaskError(f'there is no task {name!r}: choose of {", ".join(_TASKS)}')
    try:
        return _TASKS[name](**(config or {}))
    except TypeError as error:
        raise TaskError(f'options of the task {name}: {error}') from error
