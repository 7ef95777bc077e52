"""ModelBundle: the folder that passes from the workshop to the robot.

`bundle.json` says what `model.onnx` computes, for which camera, from which data, and how well;
it holds the sha256 of every other file. Loading verifies all of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from .shared import shared_folders

MANIFEST = 'bundle.json'
MODEL = 'model.onnx'
ALLOWED_SUFFIXES = frozenset({'.onnx', '.json', '.md', '.txt', '.png', '.csv'})

# An ONNX tensor that lives in another file names it by the key 'location' (a protobuf entry:
# field 1, eight bytes). Such a file would escape the hashes, so the bytes are looked for.
_EXTERNAL_DATA = b'\x0a\x08location'
_PICKLE_HEADS = (b'PK\x03\x04', *(bytes([0x80, protocol]) for protocol in range(2, 6)))

Task = Literal['segmentation', 'depth', 'normals', 'detection', 'classification']
OUTPUTS: dict[Task, tuple[str, ...]] = {
    'segmentation': ('label', 'confidence'),
    'depth': ('depth',),
    'normals': ('normal',),
    'detection': ('boxes', 'box_scores', 'box_labels'),
    'classification': ('class_scores',),
}
"""Names of the graph's outputs for each task."""

DENSE_TASKS: frozenset[Task] = frozenset({'segmentation', 'depth', 'normals'})
"""Tasks that say something of every pixel."""


class BundleError(ValueError):
    """A bundle that can't be trusted or read."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra='forbid', frozen=True)


class ClassSpec(_Spec):
    """One class of pixels or boxes: its name and its colour (RGB, 0..255)."""

    name: str = Field(min_length=1)
    color: tuple[int, int, int]

    @field_validator('color')
    @classmethod
    def _in_range(cls, color: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= channel <= 255 for channel in color):
            raise ValueError(f'colour {color} has channels outside 0..255')
        return color


class InputSpec(_Spec):
    """Size of the network's picture, pixels; `resizable`: other multiples of 32 work, too."""

    height: int = Field(gt=0, le=8192)
    width: int = Field(gt=0, le=8192)
    resizable: bool


class SegmentationSpec(_Spec):
    """Classes in the order of the labels."""

    classes: tuple[ClassSpec, ...] = Field(min_length=1, max_length=255)


class DepthSpec(_Spec):
    """Range of the depth output, and the focal length (pixels at the input) it is metric for."""

    unit: Literal['m'] = 'm'
    min: float = Field(ge=0, allow_inf_nan=False)
    max: float = Field(gt=0, allow_inf_nan=False)
    focal_length_px: float = Field(gt=0, allow_inf_nan=False)

    @model_validator(mode='after')
    def _ordered(self) -> DepthSpec:
        if self.min >= self.max:
            raise ValueError(f'depth runs from {self.min:g} to {self.max:g} m: min must be less')
        return self


class NormalsSpec(_Spec):
    """Convention of the normals (REP 103 optical frame: x right, y down, z forward).

    `focal_length_px` is that of the camera (pixels at the input) that they are told for; where it
    is not said, that of the depth.
    """

    frame: Literal['camera_optical'] = 'camera_optical'
    direction: Literal['towards_camera'] = 'towards_camera'
    focal_length_px: float | None = Field(None, gt=0, allow_inf_nan=False)


class DetectionSpec(_Spec):
    """Classes in the order of the boxes' labels, and how many boxes a picture has room for."""

    classes: tuple[ClassSpec, ...] = Field(min_length=1, max_length=65535)
    max_boxes: int = Field(gt=0, le=10_000)


class AttributeSpec(_Spec):
    """Something that is asked about the whole picture.

    Attributes:
        name: of the question, such as 'room'.
        kind: 'single': exactly one of the classes holds; 'multi': each may hold or not.
        classes: the answers, in the order of their scores.
    """

    name: str = Field(pattern=r'^[a-z][a-z0-9_]*$')
    kind: Literal['single', 'multi']
    classes: tuple[str, ...] = Field(min_length=1)

    @field_validator('classes')
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) != len(classes) or not all(classes):
            raise ValueError(f'classes {list(classes)} are empty or occur twice')
        return classes


def attribute_slices(
    attributes: Iterable[AttributeSpec],
) -> Iterator[tuple[AttributeSpec, slice]]:
    """Yield each attribute with where its scores lie in class_scores."""
    start = 0
    for attribute in attributes:
        stop = start + len(attribute.classes)
        yield attribute, slice(start, stop)
        start = stop


class ClassificationSpec(_Spec):
    """What the picture is classified by; scores follow in this order, attribute by attribute."""

    attributes: tuple[AttributeSpec, ...] = Field(min_length=1)

    @model_validator(mode='after')
    def _names_are_distinct(self) -> ClassificationSpec:
        names = [attribute.name for attribute in self.attributes]
        if len(set(names)) != len(names):
            raise ValueError(f'attributes {names} occur twice')
        return self

    @property
    def num_scores(self) -> int:
        """Length of the graph's class_scores."""
        return sum(len(attribute.classes) for attribute in self.attributes)

    @property
    def slices(self) -> dict[str, slice]:
        """Return where each attribute's scores lie in class_scores."""
        return {attribute.name: part for attribute, part in attribute_slices(self.attributes)}


class NetworkSpec(_Spec):
    """What was trained; GMACs for one picture of the input size."""

    backbone: str
    decoder: str
    parameters: int = Field(ge=0)
    gmacs: float = Field(ge=0)


class DataSpec(_Spec):
    """A data set that the network has learnt from.

    Attributes:
        frames: how many of its frames; None where they were not counted.
        through: what stood between: 'start NAME', 'teacher NAME' or 'pre-training of NAME', the
            nearest first; empty where the network saw the frames itself in its last training.
    """

    name: str
    frames: int | None = Field(None, ge=0)
    licence: str
    through: str = ''


class TrainingSpec(_Spec):
    """How the network was trained and what that means for its use."""

    data: tuple[DataSpec, ...]
    licence_remark: str
    recipe: dict[str, Any] = Field(default_factory=dict)


class MetricsSpec(_Spec):
    """Figures with the data and the command that gave them."""

    data: str
    frames: int = Field(ge=0)
    command: str
    figures: dict[str, Any]


class BundleManifest(_Spec):
    """The content of `bundle.json`, format 1."""

    format: Literal[1] = 1
    name: str = Field(pattern=r'^[a-z0-9][a-z0-9_.-]*$')
    description: str
    tasks: tuple[Task, ...] = Field(min_length=1)
    input: InputSpec
    segmentation: SegmentationSpec | None = None
    depth: DepthSpec | None = None
    normals: NormalsSpec | None = None
    detection: DetectionSpec | None = None
    classification: ClassificationSpec | None = None
    network: NetworkSpec
    training: TrainingSpec
    metrics: tuple[MetricsSpec, ...] = ()
    files: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode='after')
    def _tasks_are_described(self) -> BundleManifest:
        for task in OUTPUTS:
            if (task in self.tasks) != (getattr(self, task) is not None):
                raise ValueError(
                    f'tasks are {list(self.tasks)} but the section {task!r} is '
                    f'{"absent" if task in self.tasks else "present"}'
                )
        return self

    @property
    def focal_length_px(self) -> float | None:
        """Return the focal length that depth and normals are told for; None without either."""
        for spec in (self.depth, self.normals):
            if spec is not None and spec.focal_length_px is not None:
                return spec.focal_length_px
        return None

    def as_json(self) -> str:
        """Return the text of bundle.json."""
        return json.dumps(self.model_dump(mode='json', exclude_none=True), indent=2) + '\n'

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in the contract's order."""
        return tuple(name for task in OUTPUTS if task in self.tasks for name in OUTPUTS[task])


class ModelBundle:
    """A verified bundle on disk; `ModelBundle.load` makes one.

    Attributes:
        path: its folder.
        manifest: the validated content of `bundle.json`.
    """

    def __init__(self, path: Path, manifest: BundleManifest) -> None:
        self.path = path
        self.manifest = manifest

    def __repr__(self) -> str:
        return f'ModelBundle({self.name!r}, {str(self.path)!r})'

    @property
    def name(self) -> str:
        """Name of the bundle."""
        return self.manifest.name

    @property
    def model_path(self) -> Path:
        """Path of the ONNX graph."""
        return self.path / MODEL

    @property
    def model_sha256(self) -> str:
        """Hash of the ONNX graph, lower-case hexadecimal."""
        return self.manifest.files[MODEL]

    @property
    def classes(self) -> list[ClassSpec]:
        """Classes in the order of the pixels' labels; empty without segmentation."""
        spec = self.manifest.segmentation
        return list(spec.classes) if spec else []

    @property
    def box_classes(self) -> list[ClassSpec]:
        """Classes in the order of the boxes' labels; empty without detection."""
        spec = self.manifest.detection
        return list(spec.classes) if spec else []

    @property
    def attributes(self) -> list[AttributeSpec]:
        """What pictures are classified by, in the order of the scores; may be empty."""
        spec = self.manifest.classification
        return list(spec.attributes) if spec else []

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the network's picture."""
        return self.manifest.input.height, self.manifest.input.width

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return self.manifest.outputs

    @classmethod
    def load(cls, path_or_name: str | os.PathLike[str]) -> ModelBundle:
        """Read and verify a bundle.

        Args:
            path_or_name: a folder, or the bare name of a shipped bundle ('pvt_v2_b0').

        Raises:
            BundleError: no such bundle, an unreadable or unknown manifest, a file that is missing,
                changed, outside the folder, or of a kind that may run code.
        """
        path = find_bundle(path_or_name)
        manifest = _read_manifest(path / MANIFEST)
        if MODEL not in manifest.files:
            raise BundleError(f'{path / MANIFEST} lists no {MODEL}: export the bundle again')
        for name, expected in manifest.files.items():
            _verify(path, name, expected)
        return cls(path, manifest)

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        manifest: BundleManifest,
        model_path: str | os.PathLike[str],
    ) -> ModelBundle:
        """Write a bundle to `path` in one step: it appears whole or not at all.

        Args:
            path: the bundle's folder; one that is there is replaced.
            manifest: its description; `files` is filled in here.
            model_path: the ONNX graph to copy in.

        Raises:
            BundleError: `path` is something other than a bundle, or the graph can't be taken in.
        """
        target = Path(path).absolute()
        if target.exists() and not (target / MANIFEST).is_file() and _is_used(target):
            raise BundleError(
                f'{target} exists and is no bundle: choose another folder or remove it'
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f'.{target.name}.') as scratch:
            fresh = Path(scratch) / 'new'
            fresh.mkdir()
            shutil.copyfile(model_path, fresh / MODEL)
            manifest = manifest.model_copy(update={'files': {MODEL: _sha256(fresh / MODEL)}})
            (fresh / MANIFEST).write_text(manifest.as_json(), encoding='utf-8')
            cls.load(fresh)
            old = Path(scratch) / 'old'
            if target.exists():
                target.rename(old)
            try:
                fresh.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
        return cls.load(target)

    def state(self, metrics: Iterable[MetricsSpec]) -> ModelBundle:
        """Rewrite the manifest with these figures, in place of older ones on the same data.

        Raises:
            BundleError: the manifest can't be written.
        """
        stated = {spec.data: spec for spec in (*self.manifest.metrics, *metrics)}
        manifest = self.manifest.model_copy(update={'metrics': tuple(stated.values())})
        draft = self.path / f'.{MANIFEST}.{os.getpid()}'
        try:
            draft.write_text(manifest.as_json(), encoding='utf-8')
            draft.replace(self.path / MANIFEST)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise BundleError(
                f"{self.path / MANIFEST} can't be written ({error}): make the folder writable"
            ) from error
        return self.load(self.path)


def ranked_classes(
    attributes: Sequence[AttributeSpec], class_scores: np.ndarray
) -> list[tuple[str, float]]:
    """Return ('attribute/class', score) of every class: by attribute, the likeliest first.

    Args:
        attributes: in the order of the scores.
        class_scores: float32 [C].
    """
    ranked = []
    for attribute, part in attribute_slices(attributes):
        scores = class_scores[part]
        ranked += [
            (f'{attribute.name}/{attribute.classes[k]}', float(scores[k]))
            for k in np.argsort(-scores, kind='stable')
        ]
    return ranked


def find_bundle(path_or_name: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle given by path or by the name of a shipped one.

    Raises:
        BundleError: there is none; the message lists the shipped ones.
    """
    path = Path(path_or_name).expanduser()
    if (path / MANIFEST).is_file():
        return path.resolve()
    folders = [folder for folder in shared_folders('models') if folder.is_dir()]
    if re.fullmatch(r'[\w.-]+', str(path_or_name)):
        for folder in folders:
            if (folder / path / MANIFEST).is_file():
                return (folder / path).resolve()
    if path.is_dir():
        raise BundleError(f'{path} holds no {MANIFEST}: give the folder of an exported bundle')
    names = sorted({found.parent.name for f in folders for found in f.glob(f'*/{MANIFEST}')})
    raise BundleError(
        f'there is no bundle {str(path_or_name)!r}: give the folder of an exported bundle or a '
        f'shipped name ({", ".join(names) or "none is shipped here"})'
    )


def how_to_name(bundle: ModelBundle) -> str:
    """Return what names a bundle on a command line: a shipped one's name, else its folder."""
    name = bundle.path.name
    shipped = any((folder / name).resolve() == bundle.path for folder in shared_folders('models'))
    return name if shipped else str(bundle.path)


@cache
def _nyu13() -> tuple[ClassSpec, ...]:
    text = (Path(__file__).parent / 'data' / 'nyu13.json').read_text(encoding='utf-8')
    return tuple(ClassSpec.model_validate(entry) for entry in json.loads(text))


def nyu13_classes() -> list[ClassSpec]:
    """Return NYUv2's 13 classes in the order of the labels, with the project's colours."""
    return list(_nyu13())


def _read_manifest(path: Path) -> BundleManifest:
    """Parse and validate bundle.json; the format is looked at first."""
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(
            f"{path} can't be read ({error}): copy or export the bundle again"
        ) from error
    found = content.get('format') if isinstance(content, dict) else None
    if found != 1 or isinstance(found, bool):
        raise BundleError(
            f'{path} has format {found!r}; this version reads format 1: '
            'export the bundle again or update mtl_perception'
        )
    try:
        return BundleManifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = '.'.join(str(part) for part in first['loc']) or 'the manifest'
        raise BundleError(
            f'{path} is no valid bundle description: {where}: {first["msg"]} '
            f'({error.error_count()} in all); export the bundle again'
        ) from error


def _verify(folder: Path, name: str, expected: str) -> None:
    """Check one listed file: place, kind, hash."""
    pure = PurePosixPath(name)
    path = folder / pure
    if pure.is_absolute() or '..' in pure.parts or '\\' in name or not name:
        raise BundleError(
            f'{folder / MANIFEST} lists {name!r}, which leads out of the bundle: '
            "don't use this bundle; get it from its source again"
        )
    if pure.suffix not in ALLOWED_SUFFIXES:
        raise BundleError(
            f'{folder / MANIFEST} lists {name!r}; only {", ".join(sorted(ALLOWED_SUFFIXES))} '
            'files belong in a bundle (pickles may run code): export the network to ONNX'
        )
    if not path.is_file():
        raise BundleError(f'{path} is missing: copy or export the bundle again')
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(
            f'{path} is a link that leads out of the bundle: copy the file itself into it'
        )
    found = _sha256(path)
    if found != expected.lower():
        raise BundleError(
            f'{path} has sha256 {found[:12]}… but the manifest says {expected[:12]}…: '
            'it was cut off or changed; copy or export the bundle again'
        )
    if pure.suffix == '.onnx':
        _check_onnx(path)


def _check_onnx(path: Path) -> None:
    """Refuse pickles in disguise and graphs whose weights lie in further files."""
    content = path.read_bytes()
    if content.startswith(_PICKLE_HEADS):
        raise BundleError(
            f'{path} is a pickle or archive (these may run code), no ONNX graph: '
            'export the network to ONNX'
        )
    if _EXTERNAL_DATA in content:
        raise BundleError(
            f"{path} keeps weights in other files, which the hashes don't cover: "
            'export it as one file'
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def _is_used(path: Path) -> bool:
    return not path.is_dir() or any(path.iterdir())
