"""The plain nodes that ours is compared with do the same work."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('torch')
sys.path.append(str(Path(__file__).parent.parent / 'benchmarks'))

from plain_node import onnxruntime_network, torch_network

from mtl_perception.bundle import ModelBundle


@pytest.mark.parametrize('name', ['pvt_v2_b0', 'rooms_five_tasks'])
@pytest.mark.parametrize('make', [torch_network, onnxruntime_network])
def test_a_plain_network_gives_all_dense_outputs_of_a_shipped_bundle(make, name: str) -> None:
    bundle = ModelBundle.load(name)
    outputs = make(bundle)(np.full((480, 640, 3), 90, np.uint8))
    assert outputs['label'].shape == outputs['depth'].shape == bundle.input_size
    assert outputs['label'].dtype == np.uint8
    assert 0.1 <= outputs['depth'].min() <= outputs['depth'].max() <= 20
    assert outputs['normal'].shape == (*bundle.input_size, 3)
    assert np.linalg.norm(outputs['normal'], axis=-1) == pytest.approx(1, abs=1e-3)
