"""A trained network teaches a smaller one by its outputs and its features.

    distillation: {teacher: runs/pvt_v2_b2/best.json, outputs: 1.0, features: 0.5}

The teacher sees the very pictures that the student trains on, so no target needs a mask. Outputs
after Hinton et al., Distilling the Knowledge in a Neural Network (2015), features after Romero
et al., FitNets (ICLR 2015), compared by direction.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtl_perception.bundle import MANIFEST, ModelBundle
from mtl_perception.engines import Engine, open_engine
from mtl_training.data import vocabulary_of
from mtl_training.networks import DENSE_TASKS, MultiTaskNetwork
from mtl_training.networks.tap import FusedTap


class DistillationError(ValueError):
    """A teacher can't be had or doesn't fit its student."""


class Teacher(ABC):
    """A trained network.

    Attributes:
        tasks: what it can teach.
        num_classes: classes of its segmentation, 0 without one.
        feature_channels: channels of its fused map per task; empty where it shows none.
        classes: names of its segmentation's classes; empty where they are not known.
        focal_length_px: of the camera that its depth and normals are told for; None likewise.
    """

    tasks: tuple[str, ...]
    num_classes: int
    feature_channels: dict[str, int]
    classes: tuple[str, ...] = ()
    focal_length_px: float | None = None

    def refuse_another_view(self, classes: Sequence[str], focal_length_px: float) -> None:
        """Raise DistillationError where its classes or its camera are not the student's.

        Args:
            classes: names of the student's classes; empty where they are not known or not
                learnt.
            focal_length_px: of the camera that the student learns.
        """
        named = self.classes if 'segmentation' in self.tasks else ()
        if named and classes and named != tuple(classes):
            raise DistillationError(
                f'the teacher knows the classes {", ".join(self.classes)}, the student learns '
                f'{", ".join(classes)}: choose a teacher of the same classes in the same order'
            )
        metric = {'depth', 'normals'} & set(self.tasks)
        other = self.focal_length_px is not None and not math.isclose(
            self.focal_length_px, focal_length_px, rel_tol=1e-3
        )
        if metric and other:
            raise DistillationError(
                f'the teacher tells {" and ".join(sorted(metric))} for a focal length of '
                f'{self.focal_length_px:g} px, the student learns {focal_length_px:g} px: choose '
                'a teacher of the same focal length'
            )

    @abstractmethod
    def outputs(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return outputs and fused maps for uint8 images [N,3,H,W].

        The outputs are `segmentation` logits [N,C,H,W], or `label` int64 and `confidence` 0..1
        [N,H,W]; `depth` metres [N,1,H,W]; `normals` unit [N,3,H,W].
        """


class NetworkTeacher(Teacher):
    """A network in torch, of any backbone, decoder and sharing.

    Args:
        network: is put into evaluation mode and frozen.
        classes: names of its classes, where they are known.
        focal_length_px: that it was trained for, where it is known.
    """

    def __init__(
        self,
        network: MultiTaskNetwork,
        classes: Sequence[str] = (),
        focal_length_px: float | None = None,
    ) -> None:
        self.classes, self.focal_length_px = tuple(classes), focal_length_px
        self.network = network.eval().requires_grad_(False)
        self.tasks = network.tasks
        self.num_classes = network.config.num_classes if 'segmentation' in self.tasks else 0
        self.feature_channels = network.fused_channels

    @torch.no_grad()
    def outputs(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run the network once."""
        self.network.to(images.device)
        fused = self.network.fused_maps(images)
        return self.network.predict(fused, images.shape[-2:]), fused


class BundleTeacher(Teacher):
    """An exported bundle; it shows its outputs only, and labels in place of logits.

    Args:
        bundle: a verified bundle.
        engine: the inference engine (see `open_engine`).
    """

    def __init__(self, bundle: ModelBundle, engine: str = 'auto') -> None:
        self.bundle, self.engine = bundle, engine
        self.tasks = tuple(bundle.manifest.tasks)
        self.num_classes = len(bundle.classes)
        self.classes = tuple(spec.name for spec in bundle.classes)
        self.focal_length_px = bundle.manifest.focal_length_px
        self.feature_channels = {}
        self._opened: Engine | None = None

    def outputs(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run the engine once; sizes may change.

        It takes as many threads as torch has, or the GPU of this process.
        """
        pictures = np.ascontiguousarray(images.permute(0, 2, 3, 1).cpu().numpy())
        if self._opened is None:
            batch, *size, _ = pictures.shape
            self._opened = open_engine(
                self.bundle,
                self.engine,
                threads=torch.get_num_threads(),
                size=(size[0], size[1]),
                batch=batch,
                gpu_device=int(os.environ.get('LOCAL_RANK', '0')),
            )
        found = self._opened.infer(pictures)
        outputs: dict[str, Tensor] = {}
        if 'label' in found:
            outputs['label'] = torch.from_numpy(found['label'].astype(np.int64))
            outputs['confidence'] = torch.from_numpy(found['confidence'].astype(np.float32) / 255)
        if 'depth' in found:
            outputs['depth'] = torch.from_numpy(found['depth'].copy()).unsqueeze(1)
        if 'normal' in found:
            outputs['normals'] = torch.from_numpy(found['normal'].copy()).permute(0, 3, 1, 2)
        return {name: value.to(images.device) for name, value in outputs.items()}, {}


def load_teacher(path: str | Path) -> Teacher:
    """Load a teacher: a bundle's folder or shipped name, or a checkpoint's `.json` file.

    Raises:
        BundleError, CheckpointError: the teacher can't be read.
    """
    path = Path(path)
    if path.suffix == '.json' and path.name != MANIFEST:
        # The trainer builds what its checkpoints hold, and itself asks this module for losses.
        from mtl_training.run_state import load_network

        network, config = load_network(path)
        classes = vocabulary_of(config.network).classes
        return NetworkTeacher(network, classes, config.data.focal_length_px)
    return BundleTeacher(ModelBundle.load(path))


class Distillation(nn.Module):
    """The losses by which a student follows its teacher.

    It is a module because comparing features learns a 1x1 projection from the student's channels
    to the teacher's: give its parameters to the optimizer.

    Args:
        student: the network that learns; its training passes are followed from now on.
        teacher: of the same classes, with at least one of the student's dense tasks; boxes and
            attributes are learned from their truth alone.
        outputs: weight of the outputs' losses.
        features: weight of the features' loss; needs a teacher in torch.
        temperature: softens both distributions over classes.

    Raises:
        DistillationError: the teacher doesn't fit.
    """

    def __init__(
        self,
        student: MultiTaskNetwork,
        teacher: Teacher,
        outputs: float = 1.0,
        features: float = 0.0,
        temperature: float = 2.0,
    ) -> None:
        super().__init__()
        self.tasks = tuple(
            task for task in student.tasks if task in teacher.tasks and task in DENSE_TASKS
        )
        if not self.tasks:
            raise DistillationError(
                f'the teacher knows {", ".join(teacher.tasks)}, the student learns '
                f'{", ".join(student.tasks)}: choose a teacher of a common task'
            )
        if 'segmentation' in self.tasks and teacher.num_classes != student.config.num_classes:
            raise DistillationError(
                f'the teacher knows {teacher.num_classes} classes, the student learns '
                f'{student.config.num_classes}: choose a teacher of the same classes'
            )
        if features and not teacher.feature_channels:
            raise DistillationError(
                'a bundle shows no features: set features to 0 or name a checkpoint as teacher'
            )
        if min(outputs, features) < 0 or outputs + features == 0 or temperature <= 0:
            raise DistillationError(
                f'outputs {outputs}, features {features}, temperature {temperature}: give weights '
                'that are not negative, one of them positive, and a positive temperature'
            )
        self.teacher = teacher
        self.outputs_weight, self.features_weight = outputs, features
        self.temperature = temperature
        self.projections = nn.ModuleDict()
        self._tap: FusedTap | None = None
        if features:
            self._tap = FusedTap(student)
            self.projections.update(
                {
                    task: nn.Conv2d(
                        student.fused_channels[task], teacher.feature_channels[task], 1
                    )
                    for task in self.tasks
                }
            )

    def forward(self, images: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each common task's loss, a float32 scalar, to add to the task's own.

        Args:
            images: uint8 [N,3,H,W], the ones that the student has just seen.
            outputs: what the student gave for them.
        """
        taught, features = self.teacher.outputs(images)
        shown = self._tap.take() if self._tap is not None else {}
        losses: dict[str, Tensor] = {}
        for task in self.tasks:
            student = outputs[task]
            with torch.autocast(student.device.type, enabled=False):
                loss = student.new_zeros((), dtype=torch.float32)
                if self.outputs_weight:
                    apart = self._outputs_loss(task, student.float(), taught)
                    loss = loss + self.outputs_weight * apart
                if shown:
                    projected = self.projections[task](shown[task].float())
                    target = F.interpolate(
                        features[task].float(), projected.shape[-2:], mode='bilinear'
                    )
                    away = 1 - F.cosine_similarity(projected, target, dim=1)
                    loss = loss + self.features_weight * away.mean()
            losses[task] = loss
        return losses

    def _outputs_loss(self, task: str, student: Tensor, taught: Mapping[str, Tensor]) -> Tensor:
        if task == 'depth':
            floor = 1e-3
            return (
                (student.clamp(min=floor).log() - taught['depth'].clamp(min=floor).log())
                .abs()
                .mean()
            )
        if task == 'normals':
            return (1 - (student * taught['normals']).sum(dim=1)).mean()
        if 'label' in taught:
            loss = F.cross_entropy(student, taught['label'], reduction='none')
            return (loss * taught['confidence']).sum() / taught['confidence'].sum().clamp(min=1)
        wanted = (taught['segmentation'].float() / self.temperature).log_softmax(dim=1)
        given = (student / self.temperature).log_softmax(dim=1)
        apart = (wanted.exp() * (wanted - given)).sum(dim=1).mean()
        # The gradient of softened distributions falls with the temperature squared.
        return self.temperature**2 * apart
