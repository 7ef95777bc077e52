"""A study as YAML: a base configuration, rows that change it, seeds and scales."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from mtl_training.config import (
    CONFIG_FOLDER,
    ConfigError,
    Settings,
    SourceSettings,
    TrainingConfig,
    parse_config,
)
from mtl_training.settings_yaml import load_settings

STUDY_FOLDER = Path(__file__).parent


class RowSettings(Settings):
    """One line of the study's table.

    Attributes:
        change: what differs from the base configuration, as nested keys.
        start_from: a checkpoint or bundle whose weights are the start.
        reference: the reference study's figures for this row, for comparison only.
    """

    name: str = Field(pattern=r'^[a-z0-9][a-z0-9_-]*$')
    title: str
    change: dict[str, Any] = Field(default_factory=dict)
    start_from: str | None = None
    reference: dict[str, float] = Field(default_factory=dict)


class StudySettings(Settings):
    """A study.

    Attributes:
        base: name of a configuration in mtl_training/configs, or a file.
        change: what all rows change of it.
        measure: frames that nothing was chosen on; every row is measured on them.
        single_task: row of the single-task baseline for each task; gives Delta m.
        compare_to: row that the others are compared with, frame by frame.
        scales: changes per scale; `full` and `quick` are expected.
    """

    name: str
    title: str
    description: str = ''
    base: str
    change: dict[str, Any] = Field(default_factory=dict)
    measure: SourceSettings
    seeds: list[int] = Field([1], min_length=1)
    rows: list[RowSettings] = Field(min_length=1)
    single_task: dict[str, str] = Field(default_factory=dict)
    compare_to: str | None = None
    scales: dict[str, dict[str, Any]] = Field(default_factory=lambda: {'full': {}})

    @model_validator(mode='after')
    def _rows_are_known(self) -> StudySettings:
        names = [row.name for row in self.rows]
        if len(set(names)) != len(names):
            raise ValueError(f'row names {names} repeat')
        changed = [row for scale in self.scales.values() for row in scale.get('rows', {})]
        for wanted in (*self.single_task.values(), *filter(None, [self.compare_to]), *changed):
            if wanted not in names:
                raise ValueError(f'row {wanted!r} is not among {names}')
        return self


def load_study(path_or_name: str | Path) -> StudySettings:
    """Read a study's YAML file, or a shipped study by its name.

    Raises:
        ConfigError: It is missing or not valid.
    """
    path = Path(path_or_name)
    if not path.is_file():
        shipped = STUDY_FOLDER / f'{path_or_name}.yaml'
        if not shipped.is_file():
            names = ', '.join(sorted(file.stem for file in STUDY_FOLDER.glob('*.yaml')))
            raise ConfigError(f'{path_or_name} is neither a file nor a shipped study ({names})')
        path = shipped
    try:
        return StudySettings.model_validate(load_settings(path.read_text(encoding='utf-8')))
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f'{path} is no valid study: {error}') from error


def row_config(study: StudySettings, row: RowSettings, seed: int, scale: str) -> TrainingConfig:
    """Return the configuration of one training of the study.

    Later changes win: base, study, scale, row, scale again for one row (`scales.NAME.rows.ROW`)
    and for what no row must undo (`scales.NAME.always`).
    """
    if scale not in study.scales:
        raise ConfigError(f'study {study.name} has the scales {list(study.scales)}, not {scale!r}')
    path = Path(study.base)
    if not path.is_file():
        path = CONFIG_FOLDER / f'{study.base}.yaml'
    values = load_settings(path.read_text(encoding='utf-8'))
    scaled = dict(study.scales[scale])
    always = scaled.pop('always', {})
    for_row = scaled.pop('rows', {}).get(row.name, {})
    for change in (study.change, scaled, row.change, for_row, always):
        values = merge(values, change)
    values |= {'name': f'{study.name}-{row.name}', 'seed': seed}
    return parse_config(values, f'study {study.name}, row {row.name}')


def measured_source(study: StudySettings, scale: str) -> SourceSettings:
    """Return the frames to measure on, at the scale's size."""
    change = study.scales[scale].get('always', {}).get('measure', {})
    return study.measure.model_copy(update=change)


def merge(values: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with nested `change`.

    Under `each`, a change is made to every entry of a list; `replace: true` drops what was there.
    """
    merged = copy.deepcopy(values)
    for key, value in change.items():
        if key == 'measure':
            continue
        old = merged.get(key)
        if isinstance(old, list) and isinstance(value, dict) and set(value) == {'each'}:
            merged[key] = [merge(entry, value['each']) for entry in old]
        elif isinstance(old, dict) and isinstance(value, dict) and not value.get('replace'):
            merged[key] = merge(old, value)
        elif isinstance(value, dict):
            merged[key] = {k: v for k, v in copy.deepcopy(value).items() if k != 'replace'}
        else:
            merged[key] = copy.deepcopy(value)
    return merged
