"""The GPU check's own code, on a GPU made of host memory; a real GPU is for `make gpu-check`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeDriver, fake_tensorrt
from tiny_graph import SIZE
from typer.testing import CliRunner

from mtl_perception.bundle import ModelBundle
from mtl_perception.engines.cuda import Cuda

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'benchmarks'))

import gpu_check

from mtl_perception.ros.live import LiveError


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def subject(tiny_bundle: ModelBundle, driver: FakeDriver) -> gpu_check.Subject:
    api, _ = fake_tensorrt(driver, tiny_bundle.model_path, batch=(1, 1, 4))
    cuda = Cuda(driver)
    return gpu_check.Subject(tiny_bundle, b'', 'float32', api, cuda, cuda.find_gpu())


def pictures(count: int = 2) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *SIZE, 3), np.uint8))


def test_graph_and_batches_agree_with_single_launches(subject, driver) -> None:
    assert gpu_check.check_graph(subject, pictures())['passed']
    assert gpu_check.check_batches(subject, pictures())['passed']
    assert not driver.allocated and driver.contexts == 0


def test_an_engine_comes_back_and_gives_way(subject, driver) -> None:
    result = gpu_check.check_recovery(subject, pictures()[0])

    assert result['passed'], result
    assert '3 GPU errors in a row' in result['remark']
    assert not driver.allocated


def test_latency_rows_cover_graph_batch_and_copies(subject) -> None:
    rows = gpu_check.time_engine(subject, 0.0)

    cases = {(row['cuda_graph'], row['batch'], row['outputs_copied']) for row in rows}
    assert len(rows) == len(cases) == 12
    assert all(0 < row['p50'] <= row['p95'] <= row['p99'] for row in rows)


def test_the_soak_finds_lost_memory(subject, driver) -> None:
    assert gpu_check.soak(subject, pictures(), 0.05)['passed']

    driver.memory_taken_per_call = 32 << 20
    lost = gpu_check.soak(subject, pictures(), 0.05)

    assert not lost['passed'] and lost['gpu_memory_lost_mib'] >= 32


def test_the_report_can_be_read(subject) -> None:
    report = {
        'passed': False,
        'gpu': str(subject.gpu),
        'driver': '12.6',
        'runtime': 'tensorrt',
        'runtime_version': '10.9.0',
        'bundle': 'tiny',
        'machine': {'commit': 'abc'},
        'checks': {'batches': {'passed': False, 'error': 'boom'}},
        'latency': gpu_check.time_engine(subject, 0.0)[:1],
    }

    text = gpu_check.as_markdown(report)

    assert text.startswith('# GPU check: FAILED')
    assert '| batches | FAILED: error boom |' in text
    assert '| float32 | on | 1 | all |' in text


# A rate that any engine holds, on a machine that is shared.
SLOW_HZ = 3.0


def test_the_nodes_part_runs_the_real_node(
    tiny_bundle: ModelBundle, room_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, 'RATE_HZ', SLOW_HZ)

    result = gpu_check.run_node(tiny_bundle, 3.0, engine='onnxruntime')

    assert result['passed'], result
    assert result['frames_out'] == result['frames_in'] == 9
    # The same on another engine than the one asked for is a failure.
    with pytest.raises(LiveError, match='TensorRT was asked for, but'):
        gpu_check.run_node(tiny_bundle, 3.0)


def test_four_cameras_run_through_the_real_node(
    tiny_bundle: ModelBundle, room_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, 'RATE_HZ', SLOW_HZ)

    result = gpu_check.run_cameras(tiny_bundle, 3.0, engine='onnxruntime')

    assert result['accounted_for'], result
    assert result['engine'] == 'onnxruntime'
    assert list(result['cameras']) == ['front', 'left', 'rear', 'right']
    for camera in result['cameras'].values():
        assert camera['sent'] == camera['received'] == 9
        assert camera['published'] + sum(camera['dropped'].values()) == 9
        assert camera['published'] > 0 and camera['latency_ms']['p50'] > 0


@pytest.mark.skipif(
    any(Path('/dev').glob('nvidia[0-9]*')), reason='this machine has an NVIDIA GPU'
)
def test_without_a_gpu_it_says_so_and_ends_with_2() -> None:
    app = gpu_check.typer.Typer()
    app.command()(gpu_check.main)

    result = CliRunner().invoke(app, [])

    assert result.exit_code == 2
    assert 'gpu-check needs a GPU: no NVIDIA driver is installed' in result.output
