"""The metrics against hand-computed cases and a second, plain implementation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_perception.metrics import (
    DepthMetrics,
    MultiTaskMetrics,
    NormalsMetrics,
    SegmentationMetrics,
    angles_between,
)

SEEDS = st.integers(0, 2**32 - 1)


def random_frames(seed: int, count: int = 3) -> list[tuple[dict, dict]]:
    """Return (prediction, truth) of `count` small frames with ignored and invalid pixels."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        shape = tuple(rng.integers(1, 7, 2))
        normals = rng.normal(size=(2, *shape, 3)).astype(np.float32)
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        normals[1][rng.random(shape) < 0.3] = 0
        depth = rng.uniform(0.5, 10, (2, *shape)).astype(np.float32)
        depth[1][rng.random(shape) < 0.2] = 0
        depth[1][rng.random(shape) < 0.1] = np.nan
        label = rng.integers(0, 4, (2, *shape)).astype(np.uint8)
        label[1][rng.random(shape) < 0.2] = 255
        frames.append(
            tuple({'label': label[i], 'depth': depth[i], 'normal': normals[i]} for i in (0, 1))
        )
    return frames


def plain_figures(frames: list[tuple[dict, dict]], classes: int) -> dict[str, dict]:
    """Compute everything again, pixel by pixel, from the written definitions."""
    confusion = np.zeros((classes, classes))
    absolute, relative, squared, ratios, angles = [], [], [], [], []
    for pred, true in frames:
        for p, t in zip(pred['label'].flat, true['label'].flat, strict=True):
            if t < classes:
                confusion[t, p] += 1
        for p, t in zip(pred['depth'].flat, true['depth'].flat, strict=True):
            p, t = float(p), float(t)
            if np.isfinite(t) and t > 0:
                absolute.append(abs(p - t))
                relative.append(abs(p - t) / t)
                squared.append((p - t) ** 2)
                ratios.append(max(p / t, t / p))
        for p, t in zip(pred['normal'].reshape(-1, 3), true['normal'].reshape(-1, 3), strict=True):
            if any(t):
                p, t = p.astype(float), t.astype(float)
                cosine = p @ t / np.linalg.norm(p) / np.linalg.norm(t)
                angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    iou = []
    for k in range(classes):
        union = confusion[k].sum() + confusion[:, k].sum() - confusion[k, k]
        iou.append(confusion[k, k] / union if union else None)
    present = [value for value in iou if value is not None]
    return {
        'iou': iou,
        'miou': np.mean(present) if present else None,
        'pixacc': np.trace(confusion) / confusion.sum() if confusion.sum() else None,
        'abs_err': np.mean(absolute) if absolute else None,
        'rel_err': np.mean(relative) if relative else None,
        'rmse': np.sqrt(np.mean(squared)) if squared else None,
        'delta1': np.mean(np.array(ratios) < 1.25) if ratios else None,
        'delta3': np.mean(np.array(ratios) < 1.25**3) if ratios else None,
        'mean': np.mean(angles) if angles else None,
        'median': np.median(angles) if angles else None,
        '22.5': np.mean(np.array(angles) < 22.5) if angles else None,
    }


def make(classes: int = 4) -> MultiTaskMetrics:
    return MultiTaskMetrics(
        ('segmentation', 'depth', 'normals'), [f'class{i}' for i in range(classes)], 'rendered'
    )


def test_segmentation_equals_a_case_computed_by_hand() -> None:
    metrics = SegmentationMetrics(3, ('bed', 'books', 'chair'))
    metrics.update(np.array([[0, 0, 1], [1, 1, 0]]), np.array([[0, 1, 1], [1, 255, -1]]))
    # bed: 1 hit of {1 true, 2 predicted}: 1/2; books: 2 of 3; chair occurs nowhere.
    assert metrics.compute() == {
        'miou': pytest.approx((1 / 2 + 2 / 3) / 2),
        'pixacc': pytest.approx(3 / 4),
        'iou': {'bed': pytest.approx(1 / 2), 'books': pytest.approx(2 / 3), 'chair': None},
        'classes': 2,
    }


def test_a_class_only_predicted_counts_with_zero() -> None:
    metrics = SegmentationMetrics(3)
    metrics.update(np.array([0, 2]), np.array([0, 0]))
    figures = metrics.compute()
    assert figures['iou'] == {'0': 0.5, '1': None, '2': 0.0}
    assert figures['miou'] == 0.25
    assert figures['classes'] == 2


def test_a_refused_label_counts_as_an_error() -> None:
    metrics = SegmentationMetrics(2)
    metrics.update(np.array([0, 255], np.uint8), np.array([0, 0], np.uint8))
    assert metrics.compute()['pixacc'] == 0.5
    assert metrics.compute()['iou'] == {'0': 0.5, '1': None}


def test_depth_equals_a_case_computed_by_hand() -> None:
    metrics = DepthMetrics()
    metrics.update(
        np.array([2.0, 3.0, 1.0, 9.0, np.nan], np.float32),
        np.array([1.0, 3.0, 0.0, np.nan, 4.0], np.float32),
    )
    assert metrics.compute() == {
        'abs_err': 0.5,
        'rel_err': 0.5,
        'rmse': pytest.approx(0.5**0.5),
        'log10': pytest.approx(np.log10(2) / 2),
        'delta1': 0.5,
        'delta2': 0.5,
        'delta3': 0.5,
        'pixels': 2,
        'missing': 1,
    }


def test_the_delta_thresholds_are_strict() -> None:
    metrics = DepthMetrics()
    metrics.update(np.array([1.25, 1.0, 0.8]), np.array([1.0, 1.25, 0.9]))
    assert metrics.compute()['delta1'] == pytest.approx(1 / 3)
    assert metrics.compute()['delta2'] == 1.0


def test_a_depth_prediction_that_is_not_positive_is_an_error_and_no_crash() -> None:
    metrics = DepthMetrics()
    metrics.update(np.array([0.0, -1.0]), np.array([1.0, 1.0]))
    figures = metrics.compute()
    assert figures['abs_err'] == 1.5
    assert figures['delta3'] == 0.0
    assert figures['log10'] == pytest.approx(3.0)


def test_normals_equal_a_case_computed_by_hand() -> None:
    truth = np.array([[0, 0, -1]] * 4 + [[0, 0, 0], [np.nan, 0, 0]], np.float64)
    angles = np.radians([0.0, 11.0, 22.4, 90.0, 5.0, 5.0])
    pred = np.stack((np.sin(angles), np.zeros(6), -np.cos(angles)), axis=-1)
    metrics = NormalsMetrics('rendered')
    metrics.update(pred, truth)
    assert metrics.compute() == {
        'mean': pytest.approx((0 + 11 + 22.4 + 90) / 4),
        'median': pytest.approx((11 + 22.4) / 2, abs=1e-4),
        '11.25': 0.5,
        '22.5': 0.75,
        '30': 0.75,
        'source': 'rendered',
        'pixels': 4,
    }


def test_the_angle_thresholds_are_strict() -> None:
    metrics = NormalsMetrics()
    metrics.update_angles(np.array([11.25, 22.5, 30.0]))
    figures = metrics.compute()
    assert (figures['11.25'], figures['22.5'], figures['30']) == (0, 1 / 3, 2 / 3)


def test_normals_need_not_have_unit_length() -> None:
    metrics = NormalsMetrics()
    metrics.update(np.array([[0, 0, -3.0]]), np.array([[0, 0, -0.5]]))
    assert metrics.compute()['mean'] == 0.0


def test_a_missing_normal_prediction_counts_as_180_degrees() -> None:
    metrics = NormalsMetrics()
    metrics.update(np.array([[np.nan, 0, 0], [0.0, 0, 0]]), np.array([[0, 0, 1.0], [0, 0, 1.0]]))
    assert metrics.compute()['mean'] == 180.0


def test_opposite_and_equal_vectors_are_180_and_0_degrees_apart() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    assert angles_between(vectors, vectors) == pytest.approx(np.zeros(50), abs=1e-5)
    assert angles_between(vectors, -vectors) == pytest.approx(np.full(50, 180), abs=1e-5)


def test_without_valid_pixels_every_figure_is_null_in_json() -> None:
    metrics = make()
    blank = np.zeros((2, 2), np.float32)
    metrics.update(
        {'label': np.zeros((2, 2), np.uint8), 'depth': blank, 'normal': np.zeros((2, 2, 3))},
        {'label': np.full((2, 2), 255), 'depth': blank, 'normal': np.zeros((2, 2, 3))},
    )
    figures = json.loads(json.dumps(metrics.compute(), allow_nan=False))
    assert figures['frames'] == 1
    assert figures['segmentation']['miou'] is None
    assert figures['segmentation']['pixacc'] is None
    assert figures['segmentation']['classes'] == 0
    assert figures['depth']['abs_err'] is None
    assert figures['depth']['rmse'] is None
    assert figures['normals']['median'] is None


@pytest.mark.parametrize('name', ['label', 'depth', 'normal'])
def test_different_shapes_are_refused(name: str) -> None:
    sizes = {'label': (2, 3), 'depth': (2, 3), 'normal': (2, 3, 3)}
    other = {'label': (3, 2), 'depth': (3, 2), 'normal': (3, 2, 3)}
    with pytest.raises(ValueError, match='differ in shape'):
        make().update(
            {name: np.zeros(sizes[name], np.uint8)}, {name: np.zeros(other[name], np.uint8)}
        )


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_all_figures_equal_the_plain_implementation(seed: int) -> None:
    frames = random_frames(seed)
    metrics = make()
    for pred, true in frames:
        metrics.update(pred, true)
    figures = metrics.compute()
    plain = plain_figures(frames, 4)
    flat = {**figures['segmentation'], **figures['depth'], **figures['normals']}
    assert list(flat.pop('iou').values()) == pytest.approx(plain.pop('iou'), abs=1e-9)
    assert flat['median'] == pytest.approx(plain.pop('median'), abs=1e-4)
    for name, value in plain.items():
        assert flat[name] == pytest.approx(value, abs=1e-9), name


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(0, 4))
def test_merged_parts_equal_the_whole(seed: int, cut: int) -> None:
    frames = random_frames(seed, count=4)
    whole, first, second = make(), make(), make()
    for index, (pred, true) in enumerate(frames):
        whole.update(pred, true)
        (first if index < cut else second).update(pred, true)
    first.merge(second)
    merged, expected = first.compute(), whole.compute()
    assert merged['frames'] == expected['frames']
    for task in ('segmentation', 'depth', 'normals'):
        for name, value in expected[task].items():
            assert merged[task][name] == (
                value if isinstance(value, dict | str) else pytest.approx(value, abs=1e-12)
            )


def test_a_stored_state_gives_the_same_figures(tmp_path) -> None:
    metrics, restored = make(), make()
    for pred, true in random_frames(7):
        metrics.update(pred, true)
    np.savez(tmp_path / 'state.npz', **metrics.state())
    with np.load(tmp_path / 'state.npz', allow_pickle=False) as state:
        restored.load_state(state)
    assert restored.compute() == metrics.compute()


def test_merging_other_sources_of_normals_names_both() -> None:
    first, second = NormalsMetrics('published'), NormalsMetrics('derived-11')
    first.update_angles(np.array([1.0]))
    second.update_angles(np.array([2.0]))
    first.merge(second)
    assert first.compute()['source'] == 'derived-11+published'


def test_accumulators_of_other_classes_are_not_merged() -> None:
    with pytest.raises(ValueError, match='different classes'):
        SegmentationMetrics(2, ('a', 'b')).merge(SegmentationMetrics(2, ('a', 'c')))
