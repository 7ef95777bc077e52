"""The workshop's figures and the robot side's are the same, from a folder and from a bag."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bag_writing import write_bag

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'benchmarks'))

import equality


@pytest.mark.slow
def test_both_sides_measure_the_same_on_real_pictures(nyuv2, tiny_bundle, tmp_path):
    folder = equality.first_frames(nyuv2, 'train', 4, tmp_path)
    result = equality.measure(folder, 'train', str(tiny_bundle.path), 'onnxruntime', threads=1)
    assert result['frames'] == {'workshop': 4, 'folder': 4, 'bag': 4}
    assert set(result['figures']['workshop']) >= {
        'segmentation.miou',
        'depth.rel_err',
        'normals.median',
    }
    assert result['equal'], result['figures']


@pytest.mark.slow
def test_both_sides_measure_the_same_on_a_bag(tiny_bundle, tmp_path):
    bag = write_bag(tmp_path / 'bag', frames=3)
    result = equality.measure_bag(bag, str(tiny_bundle.path), 'onnxruntime', threads=1)
    assert result['frames'] == {'workshop': 3, 'bag': 3}
    assert result['equal'], result['figures']


def test_figures_that_differ_are_found(nyuv2, tiny_bundle, tmp_path, monkeypatch):
    folder = equality.first_frames(nyuv2, 'train', 1, tmp_path)
    figures = iter((0.5, 0.5, 0.5002))

    def run(*_):
        return {'depth': {'rel_err': next(figures)}, 'frames': 1}

    monkeypatch.setattr(equality, 'run', run)
    result = equality.measure(folder, 'train', str(tiny_bundle.path))
    assert not result['equal']
    assert result['largest_difference'] == pytest.approx(2e-4)
