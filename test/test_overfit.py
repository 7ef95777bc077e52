"""The whole workshop learns: eight pictures are known by heart after a short training."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from training_parts import STILL, tiny_config, write_pictures  # noqa: E402

from mtl_training.datasets import FrameSubset, prepare  # noqa: E402
from mtl_training.evaluate import measure_network  # noqa: E402
from mtl_training.run_state import load_network  # noqa: E402
from mtl_training.trainer import train  # noqa: E402

SIZE = (64, 96)
# NYUv2's camera at 64x48, and 4/3 as large.
FOCAL_LENGTH = 311.31 / 6 * 4 / 3


@pytest.mark.slow
def test_eight_frames_are_learnt_by_heart(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data', count=9, size=(48, 64))
    config = tiny_config(
        data,
        tmp_path / 'cache',
        held_out=1,
        focal_length=FOCAL_LENGTH,
        augmentation=STILL,
        schedule={
            'steps': 260,
            'warmup_steps': 10,
            'evaluations': 1,
            'stages': [{'until': 1.0, 'height': 64, 'width': 96}],
        },
        optimizer={'lr': 3e-3, 'weight_decay': 0.0, 'clip_norm': 5.0},
        losses={'depth': {'losses': {'l1': 1.0}}},
        batch_size=8,
        ema_decay=None,
    )
    train(config, tmp_path / 'run')
    network, _ = load_network(tmp_path / 'run' / 'last.json')
    arrays = prepare(data, 'train', tmp_path / 'cache', size=SIZE)
    learnt = FrameSubset('boxes', arrays, tuple(k for k in range(9) if k != 4))
    exact = config.model_copy(update={'precision': 'float32'})
    figures = measure_network(network, learnt, exact)
    assert figures['segmentation']['miou'] > 0.90
    assert figures['depth']['abs_err'] < 0.10
    assert figures['normals']['mean'] < 10
