"""What a training run is made of: YAML in, validated settings out.

Every hyper-parameter lives in a file of mtl_training/configs/; code only says what is allowed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from mtl_perception.bundle import AttributeSpec
from mtl_perception.datasets import ROOMS, THINGS
from mtl_training.settings_yaml import load_settings


def _rising(zoom: tuple[float, float]) -> tuple[float, float]:
    low, high = zoom
    if not 0 < low <= high:
        raise ValueError(f'zoom {zoom} must be a range [low, high] with 0 < low <= high')
    return zoom


CONFIG_FOLDER = Path(__file__).parent / 'configs'
DATA = '../shared/data'
TaskName = Literal['segmentation', 'depth', 'normals', 'detection', 'classification']
DENSE_TASKS: tuple[TaskName, ...] = ('segmentation', 'depth', 'normals')
TASKS: tuple[TaskName, ...] = get_args(TaskName)
PictureSide = Annotated[int, Field(ge=32, multiple_of=32)]
ZoomRange = Annotated[tuple[float, float], AfterValidator(_rising)]
Format = Literal[
    'pictures',
    'libmtl',
    'nyuv2_mat',
    'bdd100k',
    'cityscapes',
    'coco',
    'ade20k',
    'image_folder',
    'office31',
]


class ConfigError(ValueError):
    """A configuration that cannot be run, in one sentence."""


def data_folder() -> Path:
    """Return the folder of all data sets: that of MTL_DATA, else ../shared/data."""
    return Path(os.environ.get('MTL_DATA') or DATA)


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra='forbid', frozen=True)


class NetworkSettings(Settings):
    """The network, by the names of mtl_training/networks.

    Attributes:
        classes: names of the segmentation's classes; NYUv2-13's where there are 13 and none are
            named.
        box_classes: what the detection finds; what generated worlds show by default.
        max_boxes: most boxes that the detection gives for a picture.
        attributes: what the classification says of whole pictures; the room by default.
    """

    backbone: str = 'pvt_v2_b0'
    pretrained: bool | str = False
    decoder: Literal['pyramid', 'attentive_pyramid', 'bifpn', 'deeplab', 'segformer'] = 'pyramid'
    decoder_channels: int = Field(128, ge=8, le=512)
    sharing: Literal['hard', 'cross_stitch', 'mtan', 'mmoe'] = 'hard'
    depth_min: float = Field(0.1, gt=0)
    depth_max: float = Field(20.0, gt=0)
    decoder_norm: Literal['batch', 'group'] = 'batch'
    depth_activation: Literal['bounded', 'linear'] = 'bounded'
    normals_confidence: bool = False
    num_classes: int = Field(13, ge=2, le=254)
    classes: tuple[str, ...] = ()
    box_classes: tuple[str, ...] = Field(THINGS, min_length=1)
    max_boxes: int = Field(100, ge=1, le=1000)
    attributes: tuple[AttributeSpec, ...] = Field(
        (AttributeSpec(name='room', kind='single', classes=ROOMS),), min_length=1
    )
    drop_path: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode='after')
    def _names_are_complete(self) -> NetworkSettings:
        if self.classes and len(self.classes) != self.num_classes:
            raise ValueError(
                f'{len(self.classes)} classes are named, num_classes is {self.num_classes}'
            )
        attributes = [attribute.name for attribute in self.attributes]
        for names in (self.classes, self.box_classes, attributes):
            if len(set(names)) != len(names):
                raise ValueError(f'names {list(names)} repeat')
        return self


class SourceSettings(Settings):
    """One data set of the mixture.

    Attributes:
        format: `pictures` ({split}/{rgb,depth,label13,scenes}), `libmtl` (.npy files),
            `nyuv2_mat` (nyu_depth_v2_labeled.mat), or another of mtl_training/datasets.
        path: folder, or the .mat file; a leading `$MTL_DATA` stands for `data_folder()`.
        options: further arguments of the format's reader.
        normal_axes: of a LibMTL folder, see datasets/libmtl.py.
        split: folder of `path` (or split of the .mat file).
        tasks: the only tasks that its frames teach; by default all that they have truth for.
        classes: names of the pixels' ids in order, of a format that has none (`pictures`); without
            them ids are taken as the network's.
        rename: the data set's names of classes, boxes or attributes to the network's, where they
            differ; what the network does not know is left out.
        weight: share of the samples, relative to the other sources.
        licence: remark that ends up in the bundle.
        height, width: size of the prepared frames in pixels.
        limit: take only the first frames.
        skip_broken: leave out frames of an official layout whose files are missing or broken,
            instead of refusing the source; they are named and counted.
        part: (k, n) takes the k-th of n runs of consecutive frames, counted from 0; none splits a
            scene (see datasets/scenes.py).
    """

    name: str
    path: str
    format: Format = 'pictures'
    options: dict[str, Any] = {}
    normal_axes: tuple[str, str, str] = ('x', 'y', 'z')
    split: str = 'train'
    tasks: tuple[TaskName, ...] | None = Field(None, min_length=1)
    classes: tuple[str, ...] = ()
    rename: dict[str, str] = {}
    weight: float = Field(1.0, gt=0)
    licence: str = 'not stated'
    height: int = Field(288, ge=32)
    width: int = Field(384, ge=32)
    limit: int | None = Field(None, ge=1)
    skip_broken: bool = False
    part: tuple[int, int] | None = None

    @property
    def location(self) -> Path:
        """Return the path on this machine, which a checkpoint may have left for another one."""
        first, _, rest = self.path.partition('/')
        return data_folder() / rest if first == '$MTL_DATA' else Path(self.path).expanduser()

    @model_validator(mode='after')
    def _part_exists(self) -> SourceSettings:
        if self.part is not None and not 0 <= self.part[0] < self.part[1]:
            raise ValueError(f'part {self.part} is not (k, n) with 0 <= k < n')
        return self


class HeldOutSettings(Settings):
    """Frames that choose the checkpoint and never train.

    They are blocks of consecutive frames of a source that trains, with whole scenes: neighbouring
    NYUv2 ids show the same room, so single random frames would not be held out. Or all frames of
    a source that does not train.

    Attributes:
        source: name of one of the mixture's sources, or the settings of one that only judges.
        blocks, frames_per_block: how much of one of the mixture's is held out; the other judges
            with all that it has.
    """

    source: str | SourceSettings
    blocks: int = Field(4, ge=1)
    frames_per_block: int = Field(12, ge=1)

    @property
    def name(self) -> str:
        """Return the source's name."""
        return self.source if isinstance(self.source, str) else self.source.name


class DataSettings(Settings):
    """Sources, their mixture and the geometry that every frame is brought to.

    Attributes:
        held_out: of one source, or of several where no single one has truth for every task.
    """

    sources: list[SourceSettings] = Field(min_length=1)
    held_out: HeldOutSettings | list[HeldOutSettings]
    focal_length_px: float = Field(311.31, gt=0)
    cache: str = 'runs/cache'

    @model_validator(mode='after')
    def _names_are_known(self) -> DataSettings:
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f'source names {names} repeat: give each source its own name')
        judges = [settings.name for settings in self.judges]
        for settings in self.judges:
            if isinstance(settings.source, str) and settings.source not in names:
                raise ValueError(
                    f'held_out.source {settings.source!r} is not among the sources {names}: name '
                    'one of them, or give the settings of a source of its own'
                )
            if not isinstance(settings.source, str) and settings.name in names:
                raise ValueError(
                    f'held_out.source {settings.name!r} has the name of a source that trains: '
                    'give it another'
                )
        if not judges or len(set(judges)) != len(judges):
            raise ValueError(f'held_out names the sources {judges}: name each at most once')
        return self

    @property
    def judges(self) -> list[HeldOutSettings]:
        """Return the settings of `held_out` as a list."""
        return self.held_out if isinstance(self.held_out, list) else [self.held_out]

    @property
    def every_source(self) -> list[SourceSettings]:
        """Return the sources that train, then those that only judge."""
        own = [settings.source for settings in self.judges]
        return [*self.sources, *(source for source in own if not isinstance(source, str))]


class AugmentationSettings(Settings):
    """Random virtual cameras and colours; see datasets/augmentation.py.

    Attributes:
        zoom: range of the scale relative to the picture just covering the crop, log-uniform.
        rotation_deg: largest roll about the optical axis.
        flip: probability of a mirrored picture.
        brightness, contrast, saturation: largest relative change.
        hue_deg: largest rotation of hue.
        gamma: largest exponent (its inverse is the smallest).
        greyscale, blur, noise: probability of each.
    """

    zoom: ZoomRange = (0.9, 1.8)
    rotation_deg: float = Field(4.0, ge=0, le=45)
    flip: float = Field(0.5, ge=0, le=1)
    brightness: float = Field(0.3, ge=0, lt=1)
    contrast: float = Field(0.3, ge=0, lt=1)
    saturation: float = Field(0.4, ge=0, le=1)
    hue_deg: float = Field(15.0, ge=0, le=180)
    gamma: float = Field(1.3, ge=1)
    greyscale: float = Field(0.05, ge=0, le=1)
    blur: float = Field(0.1, ge=0, le=1)
    noise: float = Field(0.1, ge=0, le=1)


class StageSettings(Settings):
    """Picture size until a share of the training is done (progressive resolution).

    Attributes:
        others: further sizes (height, width) in pixels that take turns with the first, step by
            step; a size may stand there more than once. A network that meets pictures of several
            sizes on the robot has to see them here.
        zoom: replaces the augmentation's range during this stage.
        smaller_zoom: that of the sizes less high than the first, if not the same. Zoom 1 is the
            whole picture however small; a camera of long focal length sees what larger zooms cut
            out of it.
    """

    until: float = Field(1.0, gt=0, le=1)
    height: PictureSide = 288
    width: PictureSide = 384
    others: tuple[tuple[PictureSide, PictureSide], ...] = ()
    zoom: ZoomRange | None = None
    smaller_zoom: ZoomRange | None = None

    @model_validator(mode='after')
    def _smaller_ones_are_there(self) -> StageSettings:
        if self.smaller_zoom is not None and all(size[0] >= self.height for size in self.others):
            raise ValueError(
                f'smaller_zoom is of sizes in `others` less high than {self.height} px, and there '
                'is none: name some there, or leave smaller_zoom out'
            )
        return self

    def view(self, step: int) -> tuple[int, int, tuple[float, float] | None]:
        """Return height and width in pixels for `step`, and its zooms if not the usual ones."""
        sizes = ((self.height, self.width), *self.others)
        height, width = sizes[step % len(sizes)]
        closer = self.smaller_zoom is not None and height < self.height
        return height, width, self.smaller_zoom if closer else self.zoom


class ScheduleSettings(Settings):
    """Length of the training, in steps or in minutes of training time; exactly one.

    With `minutes` the cosine and the stages follow the elapsed training time (pauses between an
    interruption and its resumption do not count), so that a run ends when it has to.
    """

    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    warmup_steps: int = Field(200, ge=0)
    decay: Literal['cosine', 'step', 'constant'] = 'cosine'
    step_decay: float = Field(0.5, gt=0, le=1)
    step_every: float = Field(0.5, gt=0, le=1)
    stages: list[StageSettings] = [StageSettings()]
    evaluations: int = Field(10, ge=1)
    checkpoint_minutes: float = Field(3.0, gt=0)

    @model_validator(mode='after')
    def _length_and_stages(self) -> ScheduleSettings:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError('schedule needs exactly one of `steps` and `minutes`')
        ends = [stage.until for stage in self.stages]
        if not ends or ends != sorted(ends) or ends[-1] != 1.0:
            raise ValueError(f'stages end at {ends}: rising numbers that end at 1.0 are expected')
        return self


class OptimizerSettings(Settings):
    """AdamW or Adam; weight decay spares norms and biases."""

    name: Literal['adamw', 'adam'] = 'adamw'
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = Field(1.0, gt=0)
    backbone_lr_scale: float = Field(1.0, gt=0)
    layer_decay: float | None = Field(None, gt=0, le=1)
    accumulate: int = Field(1, ge=1)


class BalancingSettings(Settings):
    """How the tasks' losses or gradients are weighed; names of mtl_training/balancing."""

    method: str = 'constants'
    options: dict[str, Any] = {}


class DistillationSettings(Settings):
    """A teacher for the network; see mtl_training/distillation.py.

    Attributes:
        teacher: a checkpoint's .json file, or a bundle's folder or shipped name.
        outputs, features: weights of the two losses.
        temperature: softens the distributions over classes.
    """

    teacher: str
    outputs: float = Field(1.0, ge=0)
    features: float = Field(0.0, ge=0)
    temperature: float = Field(2.0, gt=0)


class TrainingConfig(Settings):
    """One training run.

    Attributes:
        notes: what the numbers do not say; goes into the bundle's recipe.
    """

    name: str
    notes: str = ''
    seed: int = 0
    tasks: list[TaskName] = Field(list(DENSE_TASKS), min_length=1)
    network: NetworkSettings = NetworkSettings()
    data: DataSettings
    augmentation: AugmentationSettings = AugmentationSettings()
    schedule: ScheduleSettings
    optimizer: OptimizerSettings = OptimizerSettings()
    balancing: BalancingSettings = BalancingSettings()
    distillation: DistillationSettings | None = None
    losses: dict[TaskName, dict[str, Any]] = {}
    batch_size: int = Field(8, ge=1)
    precision: Literal['bfloat16', 'float32'] = 'bfloat16'
    device: Literal['auto', 'cpu', 'cuda'] = 'auto'
    ema_decay: float | None = Field(0.999, gt=0, lt=1)
    compile: bool = False
    threads: int = Field(0, ge=0)
    workers: int = Field(1, ge=0)

    @model_validator(mode='after')
    def _tasks_are_distinct(self) -> TrainingConfig:
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f'tasks {self.tasks} repeat')
        return self


def load_config(path_or_name: str | Path, overrides: list[str] | None = None) -> TrainingConfig:
    """Read a YAML file, or a shipped configuration by its bare name, and validate it.

    Args:
        path_or_name: file, or the name of a file of mtl_training/configs without '.yaml'.
        overrides: 'dotted.key=value' strings; values are YAML.

    Raises:
        ConfigError: The file is missing, is no YAML, or asks for something that does not exist.
    """
    path = Path(path_or_name)
    if not path.is_file():
        shipped = CONFIG_FOLDER / f'{path_or_name}.yaml'
        if not shipped.is_file():
            names = ', '.join(sorted(file.stem for file in CONFIG_FOLDER.glob('*.yaml')))
            raise ConfigError(
                f'{path_or_name} is neither a YAML file nor a shipped configuration ({names})'
            )
        path = shipped
    try:
        values = load_settings(path.read_text(encoding='utf-8'))
    except yaml.YAMLError as error:
        raise ConfigError(f'{path} is not YAML: {error}') from error
    if not isinstance(values, dict):
        raise ConfigError(f'{path} holds {type(values).__name__}, a mapping is expected')
    for override in overrides or []:
        apply_override(values, override)
    return parse_config(values, str(path))


def parse_config(values: dict[str, Any], origin: str) -> TrainingConfig:
    """Validate a mapping; `origin` names it in errors."""
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = '.'.join(str(part) for part in first['loc']) or 'top level'
        more = f' (and {error.error_count() - 1} more)' if error.error_count() > 1 else ''
        raise ConfigError(f'{origin}: {where}: {first["msg"]}{more}') from error


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set 'a.b.c=value' in nested mappings and lists, in place."""
    key, separator, text = override.partition('=')
    if not separator:
        raise ConfigError(f'override {override!r} is not of the form dotted.key=value')
    *parents, last = key.split('.')
    node: Any = values
    try:
        for part in parents:
            if isinstance(node, list):
                node = node[int(part)]
            else:
                node = node.setdefault(part, {})
        if isinstance(node, list):
            node[int(last)] = load_settings(text)
        else:
            node[last] = load_settings(text)
    except (ValueError, IndexError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f'override {override!r} does not fit the configuration') from error
