"""All that a run is made of between two steps, and its way to the disk and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtl_perception.bundle import DataSpec, ModelBundle
from mtl_training import lineage
from mtl_training.bundle_weights import load_bundle_weights, trained_network
from mtl_training.checkpoints import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from mtl_training.config import NetworkSettings, Settings, TrainingConfig, parse_config
from mtl_training.data import vocabulary_of
from mtl_training.ema import MovingAverage
from mtl_training.networks import MultiTaskNetwork, NetworkConfig, build_network
from mtl_training.networks.decoders import DECODERS
from mtl_training.optimizer import load_optimizer_tensors, optimizer_tensors

# What may differ between two parts of one run, or two runs of one study: names, and where and how
# fast it is computed, but not what.
INCIDENTAL = re.compile(
    r'name|notes|threads|workers|device|compile|schedule\.checkpoint_minutes|data\.cache|'
    r'(?:data\..*|measure)\.path'
)
# What --resume may change besides: how long the run is, how often it is judged, what mends a run
# whose losses are no longer finite, and weights that the checkpoint replaces.
RESUMABLE = re.compile(
    r'schedule\.(?:minutes|steps|evaluations)|optimizer\.(?:lr|clip_norm)|network\.pretrained'
)
# Where a network keeps what belongs to one task, and what its tasks of pixels share.
_OF_TASKS = ('heads', 'fusions', 'encoder.attention', 'encoder.gates', 'encoder.backbones')
_SHARED = 'fusions.shared.'
# What only the head of a task depends on, but for the classes' names.
_OF_HEADS = {
    'segmentation': ('num_classes',),
    'depth': ('depth_min', 'depth_max', 'depth_activation'),
    'normals': ('normals_confidence',),
    'detection': ('box_classes',),
    'classification': ('attributes',),
}


@dataclass
class Position:
    """Where a run stands; with the tensors of a checkpoint it is the whole state."""

    step: int = 0
    elapsed_s: float = 0.0
    best_score: float | None = None
    best_step: int | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class RunState:
    """What a checkpoint holds.

    Attributes:
        parts: modules with state by name; 'network' is among them.
        average: the averaged network, where the run keeps one.
        learnt_from: the data sets that the weights owe something to (see `lineage`).
    """

    folder: Path
    config: TrainingConfig
    parts: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    learnt_from: tuple[DataSpec, ...] = ()
    position: Position = field(default_factory=Position)

    @property
    def judged(self) -> MultiTaskNetwork:
        """Return the network that is evaluated: the averaged one where there is one."""
        return self.average.network if self.average is not None else self.parts['network']

    def save(self, name: str, step: int, elapsed_s: float, *, to_resume: bool) -> None:
        """Write `{name}.json` and its tensors; without `to_resume`, the optimizer stays out.

        Raises:
            CheckpointError: The disk is full; the previous checkpoint is untouched.
        """
        tensors = dict(self.parts.state_dict())
        if self.average is not None:
            average = self.average.state_dict()
            tensors |= {f'average.{key}': value for key, value in average.items()}
        if to_resume:
            state = optimizer_tensors(self.optimizer)
            tensors |= {f'optimizer.{key}': value for key, value in state.items()}
        self.position.step, self.position.elapsed_s = step, elapsed_s
        values = {
            'config': self.config.model_dump(mode='json'),
            'position': asdict(self.position),
            'learnt_from': [spec.model_dump() for spec in self.learnt_from],
        }
        save_checkpoint(self.folder, name, Checkpoint(tensors, values))

    def restore(self) -> None:
        """Load `last` into everything that was built.

        Raises:
            CheckpointError: It is missing, damaged, of another network, or of a run with other
                settings or frames.
        """
        path = self.folder / 'last.json'
        checkpoint = load_checkpoint(path)
        stored = parse_config(checkpoint.values['config'], str(path))
        refuse_other_network(stored.network, stored.tasks, self.config, path)
        learnt_from = lineage.of_checkpoint(checkpoint)
        different = [d for d in differences(stored, self.config) if not RESUMABLE.fullmatch(d[0])]
        # The run's own sources come first in what it has learnt from.
        different += [
            (f'frames of {source.name}', then.frames, now.frames)
            for source, then, now in zip(
                self.config.data.sources, learnt_from, self.learnt_from, strict=False
            )
            if then.frames != now.frames
        ]
        if different:
            raise CheckpointError(
                f'{path} was trained with other settings ({described(different)}): resume it with '
                'the configuration and the data that it was begun with, or begin another run from '
                'its weights with --start-from'
            )
        for name, module in self.parts.items():
            load_weights(module, checkpoint.part(name), path)
        if self.average is not None:
            load_weights(self.average.network, checkpoint.part('average'), path)
        load_optimizer_tensors(self.optimizer, checkpoint.part('optimizer'))
        self.position = Position(**checkpoint.values['position'])
        self.learnt_from = learnt_from

    def start_from(self, path: Path, pictures: Iterable[Tensor]) -> list[str]:
        """Take over the weights of another run's checkpoint or of a bundle, nothing else.

        Its tasks and classes may be others than this run's: heads that it lacks or that tell
        other classes stay as they were built, those that this run lacks are left behind. Its
        decoder may be the one that this run's extends.

        Args:
            path: a checkpoint's .json, a bundle's folder, or a shipped bundle's name.
            pictures: batches float32 [N,3,H,W] to train on, read where a bundle needs them (see
                `load_bundle_weights`).

        Returns:
            The tasks whose heads begin anew.

        Raises:
            CheckpointError: It is missing, damaged, or of another network.
            BundleError: There is no such bundle.
        """
        if path.suffix == '.json':
            checkpoint = load_checkpoint(path)
            stored = parse_config(checkpoint.values['config'], str(path))
            settings, tasks = stored.network, stored.tasks
            refuse_other_network(settings, tasks, self.config, path, same_heads=False)
            weights = checkpoint.part('average') or checkpoint.part('network')
        else:
            bundle = ModelBundle.load(path)
            settings, tasks = trained_network(bundle)
            refuse_other_network(settings, tasks, self.config, path, same_heads=False)
            network = build_stored_network(settings, tasks)
            load_bundle_weights(network, bundle, pictures)
            weights = network.state_dict()
        own = self.config.network
        new_tasks = [
            task
            for task in self.config.tasks
            if task not in tasks or _head_settings(settings, task) != _head_settings(own, task)
        ]
        # Heads begin anew where their settings differ; what else is a task's own (how it shares
        # the network, what fuses its maps) only where the task is new.
        own_heads = tuple(f'heads.{task}.' for task in new_tasks)
        left = [t for t in tasks if t not in self.config.tasks]
        dropped = own_heads + tuple(f'{part}.{t}.' for t in left for part in _OF_TASKS)
        added = [task for task in self.config.tasks if task not in tasks]
        begun = own_heads + tuple(f'{part}.{t}.' for t in added for part in _OF_TASKS)
        built = self.parts['network'].state_dict()
        weights = {key: value for key, value in weights.items() if not key.startswith(dropped)}
        weights |= {key: value for key, value in built.items() if key.startswith(begun)}
        # What tasks of pixels share among themselves is there only where there are such tasks.
        if not any(key.startswith(_SHARED) for key in built):
            weights = {k: value for k, value in weights.items() if not k.startswith(_SHARED)}
        elif not any(key.startswith(_SHARED) for key in weights):
            weights |= {key: value for key, value in built.items() if key.startswith(_SHARED)}
        if own.decoder != settings.decoder:
            # What the decoder has besides what it extends.
            added = {key: value for key, value in built.items() if key.startswith('fusions.')}
            weights = added | weights
        load_weights(self.parts['network'], weights, path)
        if self.average is not None:
            load_weights(self.average.network, weights, path)
        return new_tasks


def network_config(settings: NetworkSettings, tasks: list[str]) -> NetworkConfig:
    """Return the network's own configuration."""
    known = {field.name for field in fields(NetworkConfig)}
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    return NetworkConfig(
        **{name: value for name, value in values.items() if name in known},
        tasks=tuple(tasks),
        num_box_classes=len(settings.box_classes),
    )


def differences(stored: Settings, given: Settings, key: str = '') -> list[tuple[str, Any, Any]]:
    """Return (dotted key, stored value, given value) of the settings that change the training.

    The keys begin with `key`, where the settings are part of others.
    """
    pairs = _differences(stored.model_dump(mode='json'), given.model_dump(mode='json'), key)
    return [pair for pair in pairs if not INCIDENTAL.fullmatch(pair[0])]


def _differences(a: Any, b: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, dict) and isinstance(b, dict):
        for name in {**a, **b}:
            yield from _differences(a.get(name), b.get(name), f'{key}.{name}' if key else name)
    elif a != b:
        yield key, a, b


def described(different: Iterable[tuple[str, Any, Any]]) -> str:
    """Return differences as words: 'batch_size 2 != 4, ...'."""
    return ', '.join(f'{key} {a} != {b}' for key, a, b in different)


def refuse_other_network(
    settings: NetworkSettings,
    tasks: list[str],
    config: TrainingConfig,
    path: Path,
    *,
    same_heads: bool = True,
) -> None:
    """Raise CheckpointError where the network stored at `path` is not the configuration's.

    Without `same_heads`, only what the heads read has to be the same.
    """
    stored, wanted = (
        {**network.model_dump(), 'tasks': names, 'pretrained': None}
        for network, names in ((settings, tasks), (config.network, config.tasks))
    )
    if not same_heads:
        free = {'tasks', 'drop_path', 'max_boxes', 'classes'}.union(*_OF_HEADS.values())
        wanted = {key: value for key, value in wanted.items() if key not in free}
        if DECODERS[wanted['decoder']].extends == stored['decoder']:
            del wanted['decoder']
    different = [(key, stored[key], wanted[key]) for key in wanted if stored[key] != wanted[key]]
    if different:
        raise CheckpointError(
            f'{path} is of another network ({described(different)}): use the configuration it was '
            'trained with'
        )


def _head_settings(network: NetworkSettings, task: str) -> list[Any]:
    """Return what the head of a task is made for."""
    names = [vocabulary_of(network).classes] if task == 'segmentation' else []
    return [*names, *(getattr(network, name) for name in _OF_HEADS[task])]


def load_weights(module: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load tensors by name, all of them; name what does not fit."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if '\n' in str(error) else str(error)
        raise CheckpointError(f'{path} does not fit the network: {first}') from error


def build_stored_network(settings: NetworkSettings, tasks: list[str]) -> MultiTaskNetwork:
    """Build a network whose weights are stored."""
    settings = settings.model_copy(update={'pretrained': False})
    return build_network(network_config(settings, tasks))


def load_network(path: Path) -> tuple[MultiTaskNetwork, TrainingConfig]:
    """Return the averaged network of a checkpoint in evaluation mode, and its configuration."""
    checkpoint = load_checkpoint(path)
    config = parse_config(checkpoint.values['config'], str(path))
    network = build_stored_network(config.network, config.tasks)
    weights = checkpoint.part('average') or checkpoint.part('network')
    load_weights(network, weights, path)
    return network.to(memory_format=torch.channels_last).eval(), config
