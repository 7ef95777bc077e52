"""Search for hyper-parameters with Optuna; many processes or machines may share one study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from pydantic import Field, ValidationError, model_validator
from rich.console import Console

from mtl_training.balancing import BalancingError
from mtl_training.config import (
    CONFIG_FOLDER,
    ConfigError,
    Settings,
    TrainingConfig,
    apply_override,
    parse_config,
)
from mtl_training.experiments.study import STUDY_FOLDER
from mtl_training.processes import refuse_several_processes
from mtl_training.settings_yaml import load_settings
from mtl_training.trainer import TrainingError, train


class _Interrupted(Exception):
    """A trial that somebody stopped: it says nothing about its hyper-parameters."""


class Range(Settings):
    """Where one hyper-parameter may lie: a range, or a list of choices."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[Any] | None = None

    @model_validator(mode='after')
    def _range_or_choices(self) -> Range:
        is_range = self.low is not None and self.high is not None and self.low < self.high
        if is_range == (self.choices is not None):
            raise ValueError('give either low < high (and log) or choices')
        return self


class SearchSettings(Settings):
    """A search: a base configuration and the space of its changes by dotted key."""

    name: str
    kind: Literal['search']
    base: str
    overrides: list[str] = Field(default_factory=list)
    space: dict[str, Range] = Field(min_length=1)


def load_search(path_or_name: str | Path) -> SearchSettings:
    """Read a search's YAML file, or a shipped one by its name.

    Raises:
        ConfigError: It is missing or not valid.
    """
    path = Path(path_or_name)
    if not path.is_file():
        path = STUDY_FOLDER / 'searches' / f'{path_or_name}.yaml'
    try:
        return SearchSettings.model_validate(load_settings(path.read_text(encoding='utf-8')))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f'{path} is no valid search: {error}') from error


def trial_config(search: SearchSettings, values: dict[str, Any], name: str) -> TrainingConfig:
    """Return the configuration of one trial."""
    path = Path(search.base)
    if not path.is_file():
        path = CONFIG_FOLDER / f'{search.base}.yaml'
    content = load_settings(path.read_text(encoding='utf-8'))
    for override in search.overrides:
        apply_override(content, override)
    for key, value in values.items():
        apply_override(content, f'{key}={json.dumps(value)}')
    return parse_config(content | {'name': name}, f'search {search.name}')


def tune(
    search: SearchSettings,
    out: Path,
    trials: int,
    storage: str | None = None,
    console: Console | None = None,
) -> optuna.Study:
    """Add trials to the search and return it; what was tried before is remembered.

    Trials that fall behind the median of the others at the same step are given up; trials that
    end in NaN count as failed and the search goes on.

    Args:
        search: space and base configuration.
        out: trial folders, the database (by default), best.yaml and history.png go here.
        trials: how many to add.
        storage: database URL for several machines; SQLite in `out` by default.
        console: for progress; None is silent.

    Raises:
        ConfigError: torchrun started it.
    """
    refuse_several_processes('tune')
    out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=search.name,
        storage=storage or f'sqlite:///{out / "trials.db"}',
        direction='maximize',
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0),
        sampler=optuna.samplers.TPESampler(),
    )

    def objective(trial: optuna.Trial) -> float:
        values = {key: _suggest(trial, key, where) for key, where in search.space.items()}
        config = trial_config(search, values, f'{search.name}-{trial.number}')

        def report(step: int, score: float) -> None:
            trial.report(score, step)
            if trial.should_prune():
                raise optuna.TrialPruned

        result = train(
            config, out / f'trial{trial.number:04d}', console=console, on_evaluation=report
        )
        if not result['finished']:
            study.stop()
            raise _Interrupted
        return result['best']['score']

    study.optimize(objective, n_trials=trials, catch=(TrainingError, BalancingError, _Interrupted))
    _write_findings(study, search, out)
    return study


def _suggest(trial: optuna.Trial, key: str, where: Range) -> Any:
    if where.choices is not None:
        return trial.suggest_categorical(key, where.choices)
    return trial.suggest_float(key, where.low, where.high, log=where.log)


def _write_findings(study: optuna.Study, search: SearchSettings, out: Path) -> None:
    """Write the best configuration and a picture of the search."""
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        return
    best = trial_config(search, study.best_params, f'{search.name}-best')
    (out / 'best.yaml').write_text(
        yaml.safe_dump(best.model_dump(mode='json'), sort_keys=False), encoding='utf-8'
    )
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot as plt

    numeric = [key for key, where in search.space.items() if where.choices is None]
    figure, axes = plt.subplots(
        1, 1 + len(numeric), figsize=(4 * (1 + len(numeric)), 3.6), layout='constrained'
    )
    panels = list(axes) if numeric else [axes]
    panels[0].scatter([t.number for t in complete], [t.value for t in complete])
    panels[0].set(xlabel='trial', ylabel='held-out score', title=search.name)
    for panel, key in zip(panels[1:], numeric, strict=True):
        panel.scatter([t.params[key] for t in complete], [t.value for t in complete])
        panel.set(xlabel=key, xscale='log' if search.space[key].log else 'linear')
    figure.savefig(out / 'history.png', dpi=110)
    plt.close(figure)
