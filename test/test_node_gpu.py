"""The node outlives its GPU; over real DDS, on a GPU made of host memory (see fake_gpu)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from fake_gpu import FakeDriver, fake_tensorrt
from node_rig import Rig, camera_info, image_message, node_of, pixels_of, predict, textured
from sensor_msgs.msg import Image

from mtl_perception.bundle import ModelBundle
from mtl_perception.engines import open_engine
from mtl_perception.engines.cuda import Cuda
from mtl_perception.engines.guarded import GuardedEngine
from mtl_perception.engines.tensorrt import TensorRtEngine

pytestmark = pytest.mark.usefixtures('ros_domain')


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def rig(
    tiny_bundle: ModelBundle, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Rig]:
    """Return a node that runs on the imitated GPU."""
    api, _ = fake_tensorrt(driver, tiny_bundle.model_path)
    asked: list[dict[str, Any]] = []

    def open_gpu() -> TensorRtEngine:
        cuda = Cuda(driver)
        return TensorRtEngine(tiny_bundle, b'', api, cuda, cuda.find_gpu(), precision='float32')

    def open_guarded(bundle: ModelBundle, engine: str, **options: Any) -> GuardedEngine:
        asked.append(options)
        return GuardedEngine(open_gpu, lambda: open_engine(bundle, 'onnxruntime'))

    monkeypatch.setattr('mtl_perception.ros.node.open_engine', open_guarded)
    with node_of(tiny_bundle, engine='tensorrt', gpu_device=2) as rig:
        assert asked[0]['gpu_device'] == 2
        rig.collect('/perception/depth/image', Image)
        rig.calibrate(camera_info())
        yield rig


def perceive(rig: Rig) -> tuple[Any, np.ndarray]:
    """Return the status and the depth of one picture."""
    stamp = rig.send(image_message(textured()))
    depth = rig.wait_for('/perception/depth/image', stamp)
    return rig.wait_for('/perception/status', stamp), pixels_of(depth)


def test_only_what_has_a_subscriber_is_copied_back(rig: Rig, driver: FakeDriver) -> None:
    perceive(rig)
    driver.calls.clear()

    status, _ = perceive(rig)

    assert status.engine == 'tensorrt' and 'Imaginary GPU' in status.device
    assert driver.calls.count('cuMemcpyDtoHAsync') == 1
    assert driver.calls.count('cuMemAlloc') == driver.calls.count('cuMemHostRegister') == 0


def test_after_a_gpu_error_no_frame_is_lost(
    rig: Rig, driver: FakeDriver, tiny_bundle: ModelBundle
) -> None:
    perceive(rig)
    reset = driver.resets

    def fail_once() -> None:
        driver.fail['cuGraphLaunch'] = 'CUDA_ERROR_ILLEGAL_ADDRESS'
        engine = rig.node._perceiver.engine
        original = engine._open_gpu

        def reopen() -> TensorRtEngine:
            driver.fail.clear()
            return original()

        engine._open_gpu = reopen

    fail_once()
    status, depth = perceive(rig)

    assert status.engine == 'tensorrt' and driver.resets == reset + 1
    np.testing.assert_allclose(depth, predict(tiny_bundle, textured()).depth, rtol=1e-6)
    finding = rig.diagnosis('perception: engine', having='was opened anew')
    assert finding.level == DiagnosticStatus.WARN


def test_three_gpu_errors_in_a_row_hand_over_to_the_cpu(
    rig: Rig, driver: FakeDriver, tiny_bundle: ModelBundle
) -> None:
    perceive(rig)
    driver.fail['cuStreamSynchronize'] = 'CUDA_ERROR_LAUNCH_FAILED'

    status, depth = perceive(rig)

    assert (status.engine, status.device) == ('onnxruntime', 'CPU')
    np.testing.assert_allclose(depth, predict(tiny_bundle, textured()).depth, rtol=1e-6)
    finding = rig.diagnosis('perception: engine', having='3 GPU errors in a row')
    assert finding.level == DiagnosticStatus.WARN and 'on onnxruntime' in finding.message
    assert 'onnxruntime' in {entry.value for entry in finding.values}
    assert status.published == 2 and rig.dropped() == {}
