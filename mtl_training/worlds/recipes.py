"""What `mtl-training worlds` makes, as checked data from YAML files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mtl_training.settings_yaml import load_settings

FOLDER = Path(__file__).parent / 'recipes'


class RecipeError(ValueError):
    """A recipe does not exist or says something that cannot be made."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra='forbid')


class PictureRecipe(_Strict):
    """A labelled picture folder; the same recipe gives the same files.

    Attributes:
        split: folder inside the output folder.
        frames: number of pictures.
        views: pictures of one world.
        seed: world i has the seed `seed + i`.
        nyu_share: share of pictures with NYUv2's camera; the others' focal lengths vary.
        min_things: things that every picture shows at least, as far as its world allows.
        all_classes: refuse the finished folder when one of the 13 classes is missing.
    """

    kind: Literal['pictures'] = 'pictures'
    split: str = Field('train', pattern=r'^[\w-]+$')
    frames: int = Field(gt=0)
    views: int = Field(7, gt=0, le=100)
    seed: int = Field(0, ge=0)
    nyu_share: float = Field(0.7, ge=0, le=1)
    min_things: int = Field(0, ge=0)
    all_classes: bool = False

    @property
    def worlds(self) -> int:
        """Return how many worlds the pictures need."""
        return -(-self.frames // self.views)


class BagRecipe(_Strict):
    """A drive through one world as a rosbag2 recording.

    Attributes:
        seed: of the world.
        room: kind of the first room, through which the drive goes.
        drive: which of the world's random drives.
        roam: leave the first room for another.
        frames: number of pictures.
        rate_hz: pictures a second.
        width, height: of the pictures, pixels.
        focal_length_px: of the camera.
        camera_height_m, pitch_deg: of the camera; a negative pitch looks down.
        quality: of the JPEG pictures.
    """

    kind: Literal['bag']
    seed: int = Field(ge=0)
    room: Literal['bedroom', 'living_room', 'kitchen', 'office', 'bathroom', 'corridor']
    drive: int = Field(0, ge=0)
    roam: bool = False
    frames: int = Field(90, gt=1)
    rate_hz: float = Field(15.0, gt=0)
    width: int = Field(640, ge=32, le=1280)
    height: int = Field(480, ge=32, le=1280)
    focal_length_px: float = Field(520.0, gt=0)
    camera_height_m: float = Field(1.0, gt=0.05, lt=2.3)
    pitch_deg: float = Field(-8.0, ge=-60, le=60)
    quality: int = Field(85, ge=30, le=100)


class SheetRecipe(_Strict):
    """One picture that shows many worlds, each with its labels in a corner.

    Attributes:
        seed: scene i is world `seed + i`.
        scenes: number of worlds.
        columns: scenes side by side.
        width: of one scene, pixels.
    """

    kind: Literal['sheet']
    seed: int = Field(ge=0)
    scenes: int = Field(24, gt=0, le=200)
    columns: int = Field(6, gt=0)
    width: int = Field(256, ge=64, le=640)


Recipe = Annotated[PictureRecipe | BagRecipe | SheetRecipe, Field(discriminator='kind')]


def names() -> list[str]:
    """Return the shipped recipes' names."""
    return sorted(path.stem for path in FOLDER.glob('*.yaml'))


def load_recipe(
    name_or_path: str, overrides: Iterable[str] = ()
) -> PictureRecipe | BagRecipe | SheetRecipe:
    """Return a shipped recipe by name, or one from a YAML file.

    Args:
        overrides: 'key=value' that replace the file's, values as in YAML.

    Raises:
        RecipeError: it does not exist or is invalid; the message names the field.
    """
    path = Path(name_or_path)
    if path.suffix not in ('.yaml', '.yml'):
        path = FOLDER / f'{name_or_path}.yaml'
    if not path.is_file():
        raise RecipeError(
            f'no recipe {name_or_path!r}: choose one of {", ".join(names())} or a YAML file'
        )
    try:
        values = load_settings(path.read_text(encoding='utf-8'))
        for override in overrides:
            key, equals, value = override.partition('=')
            if not equals:
                raise RecipeError(f'{override!r} is not key=value, such as frames=500')
            values[key] = load_settings(value)
        return TypeAdapter(Recipe).validate_python(values)
    except (ValidationError, yaml.YAMLError) as error:
        raise RecipeError(f'{path} is no recipe: {error}') from error
