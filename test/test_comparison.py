"""Comparison of evaluations: intervals, verdicts, conditions."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mtl_perception.cli import app
from mtl_perception.evaluation.blocks import Resamples, automatic_length, cut_into_blocks
from mtl_perception.evaluation.compare import (
    ANGLE_NAMES,
    ComparisonError,
    Condition,
    compare,
    pooled,
)
from mtl_perception.metrics import MultiTaskMetrics, angles_between

CLASSES = ('floor', 'wall', 'chair')
TASKS = ('segmentation', 'depth', 'normals')


def document(
    frames: int = 30, *, wrong: float = 0.2, noise: float = 0.1, seed: int = 0
) -> dict[str, Any]:
    """Return results of a made-up network: labels wrong by chance, noisy depth and normals."""
    truth_rng = np.random.default_rng(42)
    rng = np.random.default_rng(seed)
    whole = MultiTaskMetrics(TASKS, CLASSES, 'rendered')
    records = []
    for index in range(frames):
        frame = MultiTaskMetrics(TASKS, CLASSES, 'rendered', resolution_deg=0.1)
        label = truth_rng.integers(0, 3, (10, 12))
        depth = truth_rng.uniform(1, 5, (10, 12))
        normal = truth_rng.normal(size=(10, 12, 3))
        chance = rng.random((10, 12)) < wrong
        pred = {
            'label': np.where(chance, (label + 1) % 3, label),
            'depth': depth * (1 + noise * rng.normal(size=(10, 12))),
            'normal': normal + noise * rng.normal(size=(10, 12, 3)),
        }
        truth = {'label': label, 'depth': depth, 'normal': normal}
        for metrics in (whole, frame):
            metrics.update(pred, truth)
        confusion = frame.tasks['segmentation'].confusion
        angles = angles_between(pred['normal'], normal).ravel()
        within = [int((angles < limit).sum()) for limit in (11.25, 22.5, 30)]
        degrees = np.bincount(np.minimum(angles, 90).astype(int), minlength=91).tolist()
        counts = {
            'segmentation': [
                np.diagonal(confusion).tolist(),
                confusion.sum(axis=1).tolist(),
                confusion[:, :-1].sum(axis=0).tolist(),
            ],
            'depth': [frame.tasks['depth'].counts.tolist(), frame.tasks['depth'].sums.tolist()],
            'normals': [[angles.size, *within], float(angles.sum()), degrees],
        }
        records.append({'recording': 'a', 'camera': 'c', 'id': str(index), 'counts': counts})
    return {
        'format': 1,
        'engine': {'precision': 'float32'},
        'recordings': [{'name': 'a'}],
        **whole.compute(),
        'per_frame': records,
    }


def by_name(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {d.name: d for d in compare(first, second).differences}


def test_what_frames_count_gives_the_pooled_figures_again() -> None:
    results = document()
    counts = [record['counts'] for record in results['per_frame']]
    once = Resamples(np.ones((1, len(counts))), np.arange(len(counts)))
    for task in TASKS:
        for name, values in pooled(task, counts, once).items():
            tolerance = 0.5 if name == 'median' else 1e-9
            assert values[0] == pytest.approx(results[task][name], abs=tolerance), name
    assert set(ANGLE_NAMES) < set(pooled('normals', counts, once))


def test_a_better_network_is_better_in_everything() -> None:
    differences = by_name(document(wrong=0.4, noise=0.3), document(wrong=0.1, noise=0.05, seed=1))
    assert len(differences) == 13
    for difference in differences.values():
        assert difference.verdict == 'better', difference
        assert difference.low <= difference.change <= difference.high
    turned = by_name(document(wrong=0.1, noise=0.05, seed=1), document(wrong=0.4, noise=0.3))
    assert {difference.verdict for difference in turned.values()} == {'worse'}


def test_equal_results_have_no_difference() -> None:
    for difference in by_name(document(), document()).values():
        assert difference.change == difference.low == difference.high == 0
        assert difference.verdict == 'unclear'


def test_chance_alone_is_mostly_unclear() -> None:
    differences = by_name(document(seed=1), document(seed=2))
    verdicts = [difference.verdict for difference in differences.values()]
    assert verdicts.count('unclear') > len(verdicts) / 2


def test_the_intervals_are_the_same_in_every_run() -> None:
    first, second = document(seed=1), document(seed=2)
    assert compare(first, second) == compare(first, second)


def wandering(frames: int, memory: float, seed: int) -> np.ndarray:
    """Return an autoregressive series of variance 1 whose neighbours correlate by `memory`."""
    rng = np.random.default_rng(seed)
    values = [rng.normal()]
    for _ in range(frames - 1):
        values.append(memory * values[-1] + np.sqrt(1 - memory**2) * rng.normal())
    return np.array(values)


def test_blocks_are_as_long_as_frames_resemble_each_other() -> None:
    recordings = ['a'] * 400
    lengths = [
        np.median([automatic_length(recordings, [wandering(400, m, s)]) for s in range(9)])
        for m in (0.0, 0.5, 0.9)
    ]
    assert lengths[0] <= 2 < lengths[1] < lengths[2] <= 3 * 20
    # The most correlated of several series decides; one without variance says nothing.
    still, slow = np.ones(400), wandering(400, 0.9, 1)
    assert automatic_length(recordings, [still]) == 1
    assert automatic_length(recordings, [still, slow]) == automatic_length(recordings, [slow])
    assert automatic_length(recordings, []) == automatic_length([], [np.zeros(0)]) == 1
    gaps = np.where(np.arange(400) % 7 == 0, np.nan, slow)
    assert automatic_length(recordings, [gaps]) > 2


def test_no_block_spans_two_recordings() -> None:
    recordings = ['a'] * 10 + ['b'] * 3 + ['a'] * 2
    block_of = cut_into_blocks(recordings, 5)
    assert block_of.tolist() == [0] * 4 + [1] * 4 + [2] * 2 + [3] * 3 + [2] * 2
    assert cut_into_blocks(['a', 'b', 'a'], 1).tolist() == [0, 2, 1]
    assert cut_into_blocks([], 4).size == 0


def continuous(shift: np.ndarray) -> dict[str, Any]:
    """Return results whose depth is wrong by 1 + shift in each frame of one recording."""
    errors = 1 + 0.1 * shift
    counts = [[100, 0, 50, 50, 50], [100.0, 100.0, 100.0, 100.0]]
    return {
        'depth': {'abs_err': float(errors.mean()), 'rel_err': float(errors.mean())},
        'recordings': [{'name': 'a'}],
        'per_frame': [
            {
                'recording': 'a',
                'camera': 'c',
                'id': str(index),
                'counts': {'depth': [counts[0], [total * error for total in counts[1]]]},
            }
            for index, error in enumerate(errors)
        ],
    }


def test_intervals_of_a_continuous_recording_hold_the_truth_as_often_as_they_say() -> None:
    # Both networks are equally good; each has its better and its worse stretches.
    held = {0: 0, 1: 0}
    for seed in range(40):
        a = continuous(wandering(400, 0.8, 2 * seed))
        b = continuous(wandering(400, 0.8, 2 * seed + 1))
        for block in held:
            comparison = compare(a, b, block=block)
            rel_err = next(d for d in comparison.differences if d.name == 'depth.rel_err')
            held[block] += rel_err.low <= 0 <= rel_err.high
            assert (comparison.block > 5) is (block == 0)
    assert held[1] < 24
    assert held[0] > 32


def test_few_blocks_are_said_to_be_few() -> None:
    a, b = continuous(wandering(60, 0.5, 1)), continuous(wandering(60, 0.5, 2))
    comparison = compare(a, b, block=20)
    assert (comparison.block, comparison.blocks) == (20, 3)
    assert 'only 3 stretches' in comparison.remarks[0]
    assert {one.low for one in comparison.differences} == {None}
    assert {one.verdict for one in comparison.differences} == {'unclear'}
    rough = compare(a, b, block=10)
    assert 'the intervals are rough' in rough.remarks[0]
    assert all(one.low is not None for one in rough.differences)
    assert not compare(a, b, block=1).remarks


def test_frames_are_paired_by_name_and_others_counted() -> None:
    first, second = document(), document(seed=1)
    second['per_frame'] = list(reversed(second['per_frame']))[:20]
    comparison = compare(first, second)
    assert (comparison.paired, comparison.only_first, comparison.only_second) == (20, 10, 0)
    assert any('over the frames of each' in remark for remark in comparison.remarks)


def test_one_recording_under_two_names_is_paired() -> None:
    second = document(seed=1)
    for record in second['per_frame']:
        record['recording'] = 'renamed'
    assert compare(document(), second).paired == 30


def test_without_common_frames_there_are_no_intervals() -> None:
    second = document(seed=1)
    second['per_frame'] = []
    comparison = compare(document(), second)
    assert all(d.low is None and d.verdict == 'unclear' for d in comparison.differences)
    assert 'no frame is in both' in comparison.remarks[0]


def test_other_sources_of_normals_are_named() -> None:
    second = document(seed=1)
    second['normals']['source'] = 'derived-11'
    assert any('not comparable' in remark for remark in compare(document(), second).remarks)


def test_figures_that_one_lacks_are_left_out() -> None:
    second = copy.deepcopy(document())
    second['segmentation']['miou'] = None
    del second['depth']
    names = set(by_name(document(), second))
    assert 'segmentation.pixacc' in names
    assert not names & {'segmentation.miou', 'depth.abs_err'}
    with pytest.raises(ComparisonError, match='no figure in common'):
        compare(document(), {'format': 1, 'per_frame': []})


@pytest.mark.parametrize(
    ('text', 'holds'),
    [
        ('segmentation.miou < -0.01', True),
        ('segmentation.miou<=-0.02', True),
        ('segmentation.miou > -0.02', False),
        ('normals.11.25 >= 3e-1', True),
    ],
)
def test_conditions_are_read_and_decided(text: str, holds: bool) -> None:
    values = {'segmentation.miou': -0.02, 'normals.11.25': 0.3}
    assert Condition.parse(text).holds(values) is holds


@pytest.mark.parametrize('text', ['', 'miou', 'miou = 3', 'miou < three', '< 3'])
def test_text_that_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match='is not understood'):
        Condition.parse(text)


def test_a_condition_on_an_unknown_figure_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no figure 'iou': choose from segmentation\.miou"):
        Condition.parse('iou < 1').holds({'segmentation.miou': 0.5})


def run_compare(tmp_path: Path, *arguments: str) -> Any:
    for name, results in (('a', document()), ('b', document(wrong=0.5, seed=1))):
        (tmp_path / f'{name}.json').write_text(json.dumps(results))
    files = [str(tmp_path / 'a.json'), str(tmp_path / 'b.json')]
    return CliRunner().invoke(app, ['evaluate', '--compare', *files, *arguments])


def test_the_command_shows_a_table_and_exits_with_1_on_a_regression(tmp_path: Path) -> None:
    fine = run_compare(tmp_path)
    assert fine.exit_code == 0
    assert 'segmentation.miou' in fine.stdout
    assert 'worse' in fine.stdout
    worse = run_compare(tmp_path, '--fail-if', 'segmentation.miou < -0.01')
    assert worse.exit_code == 1
    assert 'failed: segmentation.miou < -0.01' in worse.stderr


def test_the_command_writes_json_and_a_page(tmp_path: Path) -> None:
    target, page = tmp_path / 'out' / 'c.json', tmp_path / 'c.html'
    result = run_compare(
        tmp_path, '--json', str(target), '--report', str(page), '--block', '3', '--quiet'
    )
    assert (result.exit_code, result.output) == (0, '')
    comparison = json.loads(target.read_text())['comparisons'][0]
    assert (comparison['block_frames'], comparison['blocks']) == (3, 10)
    figures = comparison['figures']
    assert figures['segmentation.miou']['verdict'] == 'worse'
    assert 'segmentation.miou' in page.read_text()


@pytest.mark.parametrize(
    ('content', 'reason'), [('{', 'cannot be read as JSON'), ('{}', 'no evaluation of format 1')]
)
def test_files_that_are_no_results_are_one_sentence(
    tmp_path: Path, content: str, reason: str
) -> None:
    (tmp_path / 'x.json').write_text(content)
    command = ['evaluate', '--compare', *[str(tmp_path / 'x.json')] * 2]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert reason in result.stderr


def test_one_file_is_no_comparison(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ['evaluate', '--compare', str(tmp_path / 'a.json')])
    assert result.exit_code == 2
    assert 'two or more' in result.stderr
