"""Studies and searches: figures, statistics, tables, and going on where one was interrupted."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from training_parts import tiny_config, write_pictures  # noqa: E402

from mtl_perception.bundle import AttributeSpec  # noqa: E402
from mtl_perception.metrics import MultiTaskMetrics  # noqa: E402
from mtl_training.balancing import BalancingError  # noqa: E402
from mtl_training.config import ConfigError  # noqa: E402
from mtl_training.experiments import runner  # noqa: E402
from mtl_training.experiments.figures import (  # noqa: E402
    FrameFigures,
    collect,
    delta_m,
    paired_bootstrap,
)
from mtl_training.experiments.study import (  # noqa: E402
    STUDY_FOLDER,
    StudySettings,
    load_study,
    merge,
    row_config,
)
from mtl_training.run_state import load_network  # noqa: E402


def random_frames(
    count: int, seed: int, noise: float = 1.0
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Return predictions and truths with ignored and invalid pixels."""
    random = np.random.default_rng(0)
    disturb = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        label = random.integers(0, 13, (12, 16)).astype(np.uint8)
        depth = random.uniform(0.8, 5, (12, 16)).astype(np.float32)
        normal = random.normal(size=(12, 16, 3)).astype(np.float32)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        guess = np.where(disturb.random((12, 16)) < 0.5 * noise, disturb.integers(0, 13), label)
        pred = {
            'label': guess.astype(np.uint8),
            'depth': depth + (noise * disturb.normal(0, 0.3, depth.shape)).astype(np.float32),
            'normal': normal + noise * 0.3 * disturb.normal(size=normal.shape),
        }
        truth = {'label': label.copy(), 'depth': depth.copy(), 'normal': normal.copy()}
        truth['label'][0], truth['depth'][1], truth['normal'][2] = 255, 0, 0
        frames.append((pred, truth))
    return frames


def test_figures_per_frame_add_up_to_those_of_the_set() -> None:
    frames = random_frames(5, seed=1)
    metrics = MultiTaskMetrics(
        ('segmentation', 'depth', 'normals'), [str(k) for k in range(13)], 'test'
    )
    for pred, truth in frames:
        metrics.update(pred, truth)
    expected = {**metrics.compute()['segmentation'], **metrics.compute()['depth']}
    normals = metrics.compute()['normals']
    found = {name: float(value[0]) for name, value in collect(frames, 13).compute().items()}
    for name in ('miou', 'pixacc', 'abs_err', 'rel_err'):
        assert found[name] == pytest.approx(expected[name], rel=1e-9), name
    for name in ('mean', 'median'):
        assert found[name] == pytest.approx(normals[name], abs=0.1), name
    for name in ('11.25', '22.5', '30'):
        assert found[name] == pytest.approx(normals[name], abs=1e-5), name


def random_things(
    count: int, seed: int, noise: float
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Return found and true boxes of two classes, a region, and answers to one attribute."""
    random = np.random.default_rng(0)
    disturb = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        low = random.uniform(0, 60, (5, 2))
        boxes = np.hstack([low, low + random.uniform(8, 40, (5, 2))]).astype(np.float32)
        labels = random.integers(0, 2, 5)
        labels[4] = -1
        found = boxes[[0, 1, 2, 3, 4, 0]] + disturb.normal(0, noise, (6, 4))
        scores = disturb.random(3)
        pred = {
            'boxes': found.astype(np.float32),
            'box_scores': disturb.random(6).astype(np.float32),
            'box_labels': np.abs(labels[[0, 1, 2, 3, 4, 1]]),
            'class_scores': (scores / scores.sum()).astype(np.float32),
        }
        target = np.eye(3, dtype=np.int8)[random.integers(0, 3)]
        frames.append((pred, {'boxes': boxes, 'box_labels': labels, 'class_targets': target}))
    return frames


def test_average_precision_per_frame_adds_up_to_cocos() -> None:
    room = (AttributeSpec(name='room', kind='single', classes=('a', 'b', 'c')),)
    frames = random_things(12, seed=1, noise=2.0)
    metrics = MultiTaskMetrics(
        ('detection', 'classification'), [], box_classes=('x', 'y'), attributes=room
    )
    # Whole frames drawn again, as a bootstrap does it.
    for pred, truth in [*frames, *frames[:4], *frames[:4]]:
        metrics.update(pred, truth)
    expected = metrics.compute()
    figures = collect(frames, 13, 2, room)
    assert len(figures) == 12
    found = figures.compute(np.array([[3] * 4 + [1] * 8]))
    for name in ('ap', 'ap50'):
        assert 0.1 < expected['detection'][name] < 0.95
        # Equal scores of a frame drawn twice have no order: allow for that.
        assert found[name][0] == pytest.approx(expected['detection'][name], abs=0.01), name
    assert found['accuracy'][0] == pytest.approx(expected['classification']['accuracy'])
    once = MultiTaskMetrics(('detection',), [], box_classes=('x', 'y'))
    for pred, truth in frames:
        once.update(pred, truth)
    plain = figures.compute()
    assert plain['ap'][0] == pytest.approx(once.compute()['detection']['ap'], abs=1e-6)
    assert plain['ap50'][0] == pytest.approx(once.compute()['detection']['ap50'], abs=1e-6)
    better = collect(random_things(12, seed=2, noise=0.3), 13, 2, room)
    gain = paired_bootstrap([figures], [better], samples=50)['ap']
    assert gain.is_real and gain.difference > 0


def test_bootstrap_finds_a_real_difference_and_no_other() -> None:
    good = collect(random_frames(40, seed=1, noise=0.5), 13)
    bad = collect(random_frames(40, seed=2, noise=1.0), 13)
    alike = collect(random_frames(40, seed=3, noise=0.5), 13)
    worse = paired_bootstrap([good], [bad], samples=200)
    assert worse['abs_err'].is_real and worse['abs_err'].difference > 0
    assert worse['abs_err'].low <= worse['abs_err'].difference <= worse['abs_err'].high
    same = paired_bootstrap([good], [good], samples=50)
    assert all(entry.difference == 0 and not entry.is_real for entry in same.values())
    assert abs(paired_bootstrap([good], [alike], samples=200)['abs_err'].difference) < 0.02
    with pytest.raises(ValueError, match='cannot be paired'):
        paired_bootstrap([good], [collect(random_frames(3, seed=1), 13)])


def test_what_one_seed_gains_and_another_loses_is_no_gain() -> None:
    base, good, bad = (
        collect(random_frames(40, seed=seed, noise=noise), 13)
        for seed, noise in ((1, 0.7), (2, 0.5), (3, 0.9))
    )
    assert paired_bootstrap([base], [good], samples=200)['abs_err'].is_real
    both = paired_bootstrap([base, base], [good, bad], samples=200)['abs_err']
    singles = [paired_bootstrap([base], [one], samples=50)['abs_err'] for one in (good, bad)]
    assert both.difference == pytest.approx(np.mean([one.difference for one in singles]))
    assert not both.is_real


def test_normals_without_truth_have_no_median() -> None:
    frames = [({'normal': p['normal']}, {**t, 'normal': np.zeros_like(t['normal'])})
              for p, t in random_frames(2, seed=1)]  # fmt: skip
    figures = collect(frames, 13).compute()
    assert all(np.isnan(figures[name]).all() for name in ('mean', 'median', '11.25'))


def test_frame_figures_survive_the_disk(tmp_path: Path) -> None:
    figures = collect([({'depth': p['depth']}, t) for p, t in random_frames(3, seed=1)], 13)
    figures.save(tmp_path / 'frames.npz')
    loaded = FrameFigures.load(tmp_path / 'frames.npz')
    assert loaded.confusion is None and len(loaded) == 3
    np.testing.assert_array_equal(loaded.depth, figures.depth)


def test_delta_m_by_hand() -> None:
    baselines = {
        'segmentation': {'miou': 0.5, 'pixacc': 0.8},
        'depth': {'abs_err': 0.4, 'rel_err': 0.2},
    }
    figures = {'miou': 0.55, 'pixacc': 0.8, 'abs_err': 0.44, 'rel_err': 0.2}
    # Segmentation gains (10 % + 0) / 2, depth loses (10 % + 0) / 2.
    assert delta_m(figures, baselines) == pytest.approx(0)
    assert delta_m(figures | {'abs_err': 0.4}, baselines) == pytest.approx(2.5)
    assert delta_m(figures, {'segmentation': baselines['segmentation']}) is None


def test_the_reference_studys_delta_m_is_reproduced_from_its_rows() -> None:
    study = load_study('single_vs_multi')
    rows = {row.name: row.reference for row in study.rows}
    baselines = {task: rows[row] for task, row in study.single_task.items()}
    gain = delta_m(rows['all'], baselines)
    segmentation = ((0.5463 - 0.5526) / 0.5526 + (0.7585 - 0.7605) / 0.7605) / 2
    depth = ((0.3854 - 0.3770) / 0.3854 + (0.1562 - 0.1544) / 0.1562) / 2
    assert gain == pytest.approx(100 * (segmentation + depth + _normals_gain()) / 3, abs=1e-6)


def _normals_gain() -> float:
    lower = [(23.55 - 25.22) / 23.55, (16.33 - 18.75) / 16.33]
    higher = [(0.3195 - 0.3680) / 0.3680, (0.5703 - 0.6149) / 0.6149, (0.6827 - 0.7147) / 0.7147]
    return sum(lower + higher) / 5


@pytest.mark.parametrize('file', sorted(STUDY_FOLDER.glob('*.yaml')), ids=lambda path: path.stem)
def test_shipped_studies_are_valid_in_every_scale(file: Path) -> None:
    study = load_study(file)
    for row in study.rows:
        for scale in study.scales:
            row_config(study, row, 1, scale)
        quick, full = (row_config(study, row, 1, scale) for scale in ('quick', 'full'))
        assert full.schedule.steps >= 300 and full.data.sources[0].limit is None
        assert quick.schedule.steps <= 10 and not quick.network.pretrained
        assert quick.network.decoder == full.network.decoder


def test_a_scale_can_change_one_row(study_file: Path) -> None:
    values = yaml.safe_load(study_file.read_text())
    values['scales']['short'] = {'rows': {'depth': {'schedule': {'steps': 2}}}, 'batch_size': 1}
    study_file.write_text(yaml.safe_dump(values))
    study = load_study(study_file)
    narrow, depth = (row_config(study, row, 1, 'short') for row in study.rows)
    assert (narrow.schedule.steps, depth.schedule.steps) == (3, 2)
    assert narrow.batch_size == depth.batch_size == 1


def test_changes_are_nested_and_lists_change_by_entry() -> None:
    base = {'a': {'b': 1, 'c': 2}, 'list': [{'x': 1}, {'x': 2}]}
    assert merge(base, {'a': {'b': 5}}) == {**base, 'a': {'b': 5, 'c': 2}}
    assert merge(base, {'a': {'replace': True, 'd': 1}})['a'] == {'d': 1}
    assert merge(base, {'list': {'each': {'y': 0}}})['list'] == [
        {'x': 1, 'y': 0},
        {'x': 2, 'y': 0},
    ]
    assert base == {'a': {'b': 1, 'c': 2}, 'list': [{'x': 1}, {'x': 2}]}


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'compare_to': 'moon'}, "row 'moon'"),
        ({'rows': []}, 'rows'),
        ({'colour': 1}, 'colour'),
        ({'scales': {'full': {'rows': {'sun': {}}}}}, "row 'sun'"),
    ],
)
def test_broken_studies_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    values = yaml.safe_load((STUDY_FOLDER / 'decoders.yaml').read_text()) | change
    (tmp_path / 'study.yaml').write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=words):
        load_study(tmp_path / 'study.yaml')


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """Return a study of two tiny networks."""
    data = write_pictures(tmp_path / 'data', count=6)
    write_pictures(tmp_path / 'data', split='test', count=4, seed=9)
    config = tiny_config(data, tmp_path / 'cache').model_dump(mode='json')
    config['schedule'] |= {'steps': 3, 'warmup_steps': 1, 'evaluations': 1}
    (tmp_path / 'base.yaml').write_text(yaml.safe_dump(config))
    measure = {'name': 'boxes', 'path': str(data), 'split': 'test', 'height': 64, 'width': 96}
    study = {
        'name': 'widths',
        'title': 'Two widths',
        'base': str(tmp_path / 'base.yaml'),
        'measure': measure,
        'seeds': [1, 2],
        'compare_to': 'narrow',
        'rows': [
            {'name': 'narrow', 'title': 'narrow', 'reference': {'miou': 0.3}},
            {'name': 'depth', 'title': 'depth', 'change': {'tasks': ['depth']}},
        ],
        'scales': {'full': {}},
    }
    (tmp_path / 'study.yaml').write_text(yaml.safe_dump(study))
    return tmp_path / 'study.yaml'


def test_a_study_writes_its_tables_and_is_not_run_twice(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = load_study(study_file), tmp_path / 'out'
    results = runner.run_study(study, out, 'full')
    assert [row['seeds'] for row in results['rows']] == [2, 2]
    narrow, depth = results['rows']
    assert set(depth['figures']) == {'abs_err', 'rel_err'} and depth['parameters'] > 1e6
    assert set(depth['against']) == {'abs_err', 'rel_err'} and not narrow['against']
    assert json.loads((out / 'results.json').read_text()) == results
    lines = list(csv.reader((out / 'table.csv').open()))
    assert len(lines) == 3 and '±' in lines[1][4]
    text = (out / 'table.md').read_text()
    assert 'Last step' in text and 'reference study' in text
    page = (out / 'index.html').read_text()
    assert page.count('<img') >= 2 + 6 and 'http' not in page.replace('data:image', '')

    def never(*_: object, **__: object) -> None:
        raise AssertionError('a finished training ran again')

    monkeypatch.setattr(runner, 'train', never)
    assert runner.run_study(study, out, 'full') == results


def test_a_row_of_other_settings_is_not_taken_for_done(study_file: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(study_file.read_text())
    values |= {'seeds': [1], 'rows': values['rows'][1:], 'compare_to': None}
    values['change'] = {'schedule': {'steps': 1}}
    out = tmp_path / 'out'

    def run(**changes: Any) -> dict[str, Any]:
        return runner.run_study(StudySettings.model_validate(values | changes), out, 'full')

    run()
    faster = {'change': {'schedule': {'steps': 1}, 'optimizer': {'lr': 0.002}}}
    with pytest.raises(ConfigError, match=r'depth/1 .*\(optimizer.lr 0.001 != 0.002\)'):
        run(**faster)
    with pytest.raises(ConfigError, match=r'\(measure.limit None != 2\)'):
        run(measure=values['measure'] | {'limit': 2})
    (out / 'depth' / '1' / 'measured.json').unlink()
    with pytest.raises(ConfigError, match=r'schedule.steps 1 != 3.* remove that folder'):
        run(change={})
    assert run(change={**values['change'], 'threads': 2})['rows'][0]['seeds'] == 1


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(load_network(checkpoint)[0].named_parameters())


def test_a_row_starts_from_the_weights_that_it_names(study_file: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(study_file.read_text())
    values |= {'seeds': [1], 'rows': values['rows'][1:], 'compare_to': None}
    runner.run_study(StudySettings.model_validate(values), tmp_path / 'first', 'full')
    start = str(tmp_path / 'first' / 'depth' / '1' / 'last.json')
    values |= {'seeds': [2], 'change': {'optimizer': {'lr': 1e-12}}}
    row = values['rows'][0]

    def run(**changes: Any) -> dict[str, torch.Tensor]:
        study = StudySettings.model_validate(values | {'rows': [row | changes]})
        runner.run_study(study, tmp_path / 'second', 'full')
        return weights_of(tmp_path / 'second' / 'depth' / '2' / 'last.json')

    found = run(start_from=start)
    for name, weight in weights_of(Path(start)).items():
        torch.testing.assert_close(found[name], weight)
    with pytest.raises(ConfigError, match=r'\(start_from .*last.json != None\)'):
        run()
    shutil.rmtree(tmp_path / 'second')
    assert not all(torch.equal(weight, found[name]) for name, weight in run().items())


def test_studies_and_searches_run_in_one_process(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip('optuna')
    from mtl_training.experiments.tuning import load_search, tune

    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ConfigError, match='torchrun started 2 processes of `mtl-training exp'):
        runner.run_study(load_study(study_file), tmp_path / 'out', 'full')
    with pytest.raises(ConfigError, match='torchrun started 2 processes of `mtl-training tune'):
        tune(load_search('recipe'), tmp_path / 'out', trials=1)
    assert not (tmp_path / 'out').exists()


def test_a_search_goes_on_and_keeps_the_best(study_file: Path, tmp_path: Path) -> None:
    optuna = pytest.importorskip('optuna')
    from mtl_training.experiments.tuning import load_search, tune

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {'optimizer.lr': {'low': 1e-4, 'high': 1e-2, 'log': True}}
    search = {'name': 'lr', 'kind': 'search', 'base': str(tmp_path / 'base.yaml'), 'space': space}
    (tmp_path / 'search.yaml').write_text(yaml.safe_dump(search))
    loaded = load_search(tmp_path / 'search.yaml')
    tune(loaded, tmp_path / 'search', trials=1)
    study = tune(loaded, tmp_path / 'search', trials=1)
    assert len(study.trials) == 2
    best = yaml.safe_load((tmp_path / 'search' / 'best.yaml').read_text())
    assert best['optimizer']['lr'] == study.best_params['optimizer.lr']
    assert (tmp_path / 'search' / 'history.png').stat().st_size > 5000


def test_a_stopped_trial_says_nothing_about_its_values(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna = pytest.importorskip('optuna')
    from mtl_training.experiments import tuning

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    space = {'optimizer.lr': {'low': 1e-4, 'high': 1e-2, 'log': True}}
    search = {'name': 'lr', 'kind': 'search', 'base': str(tmp_path / 'base.yaml'), 'space': space}
    (tmp_path / 'search.yaml').write_text(yaml.safe_dump(search))
    endings = iter(['stopped', 'unsuitable', 'whole'])

    def end(*args: object, **kwargs: object) -> dict[str, object]:
        ending = next(endings)
        if ending == 'unsuitable':
            raise BalancingError('a loss is negative')
        return {'finished': ending == 'whole', 'best': {'score': 0.5}}

    monkeypatch.setattr(tuning, 'train', end)
    loaded = tuning.load_search(tmp_path / 'search.yaml')
    for trials in (1, 2):  # a stopped trial ends the search
        study = tuning.tune(loaded, tmp_path / 'search', trials=trials)
    states = [trial.state.name for trial in study.trials]
    assert states == ['FAIL', 'FAIL', 'COMPLETE']


def test_a_search_without_a_space_is_refused(tmp_path: Path) -> None:
    from mtl_training.experiments.tuning import load_search

    (tmp_path / 'search.yaml').write_text('{name: x, kind: search, base: y, space: {a: {low: 1}}}')
    with pytest.raises(ConfigError, match='low < high'):
        load_search(tmp_path / 'search.yaml')
