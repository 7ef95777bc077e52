"""What the weights of a network have learnt from: its own data, its start's and its teacher's.

A licence binds whoever learns from the data, also through another network. So a bundle lists them
all, however many trainings lie between.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import timm

from mtl_perception.bundle import DataSpec, ModelBundle
from mtl_training.checkpoints import Checkpoint, load_checkpoint
from mtl_training.config import TrainingConfig


def learnt_from(
    config: TrainingConfig, frames: Sequence[int], start: Path | None
) -> tuple[DataSpec, ...]:
    """Return every data set that a training's weights owe something to, its own first.

    Args:
        config: of the training.
        frames: how many frames of each of its sources are trained on.
        start: the checkpoint or bundle that it starts from, if any.

    Raises:
        CheckpointError, BundleError: the start or the teacher cannot be read.
    """
    specs = [
        DataSpec(name=source.name, frames=count, licence=source.licence)
        for source, count in zip(config.data.sources, frames, strict=True)
    ]
    if start is not None:
        specs += _through('start', str(start))
    elif config.network.pretrained:
        specs.append(_pretraining(config.network.backbone, config.network.pretrained))
    if config.distillation is not None:
        specs += _through('teacher', config.distillation.teacher)
    first: dict[tuple[str, str], DataSpec] = {}
    for spec in specs:
        first.setdefault((spec.name, spec.licence), spec)
    return tuple(first.values())


def of_checkpoint(checkpoint: Checkpoint) -> tuple[DataSpec, ...]:
    """Return what the weights of a checkpoint have learnt from."""
    return tuple(DataSpec.model_validate(spec) for spec in checkpoint.values['learnt_from'])


def remark(specs: Sequence[DataSpec]) -> str:
    """Return one sentence that names every data set with its licence."""
    named = (
        f'{spec.name} ({spec.licence}{"; through " + spec.through if spec.through else ""})'
        for spec in specs
    )
    return 'The weights have learnt from: ' + '; '.join(named)


def _through(role: str, network: str) -> list[DataSpec]:
    path = Path(network)
    if path.suffix == '.json':
        name, specs = path.parent.name, of_checkpoint(load_checkpoint(path))
    else:
        bundle = ModelBundle.load(network)
        name, specs = bundle.name, bundle.manifest.training.data
    step = f'{role} {name}'

    def extended(through: str) -> str:
        # A training that goes on in parts, each from the last, is one step.
        if through == step or through.startswith(f'{step}, '):
            return through
        return f'{step}, {through}' if through else step

    return [spec.model_copy(update={'through': extended(spec.through)}) for spec in specs]


def _pretraining(backbone: str, pretrained: bool | str) -> DataSpec:
    through = f'pre-training of {backbone}'
    if isinstance(pretrained, str):
        return DataSpec(name=Path(pretrained).name, licence='not stated', through=through)
    known = timm.get_pretrained_cfg(backbone)
    tag = known.tag if known is not None else ''
    name = 'imagenet' if tag in ('', 'in1k') else f'imagenet ({tag})'
    return DataSpec(name=name, licence='non-commercial research and education', through=through)
