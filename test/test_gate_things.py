"""Boxes and classes of a lower precision pass the gate only where they are float32's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import FakeDriver, fake_tensorrt
from tiny_graph import SIZE
from tiny_things import TASKS, paint_marker, things_model, write_things_bundle

from mtl_perception.engines import EngineError, open_engine
from mtl_perception.engines.builder import BuildOptions, build_engine
from mtl_perception.engines.cuda import Cuda
from mtl_perception.engines.gate import compare, onnx_runner, reference_runner, rewrite_to_half
from mtl_perception.engines.precision import load_graph, to_half
from mtl_perception.engines.tensorrt import TensorRtEngine
from mtl_perception.engines.tensorrt_api import load_tensorrt

THINGS = ('detection', 'classification')


def pictures() -> list[np.ndarray]:
    found = []
    for cell in ((3, 4), (8, 10)):
        picture = np.full((*SIZE, 3), 20, np.uint8)
        paint_marker(picture, 'lamp', cell, 90)
        paint_marker(picture, 'cup', (cell[0] - 2, cell[1] + 4), 120)
        found.append(picture)
    return found


def changed(change: Callable[[dict[str, np.ndarray]], None]) -> Callable:
    run = onnx_runner(things_model(THINGS))

    def candidate(image: np.ndarray) -> Mapping[str, np.ndarray]:
        outputs = {name: array.copy() for name, array in run(image).items()}
        change(outputs)
        return outputs

    return candidate


def swap_slots(outputs: dict[str, np.ndarray]) -> None:
    for name in ('boxes', 'box_scores', 'box_labels'):
        outputs[name][:, :2] = outputs[name][:, 1::-1]


def shift(outputs: dict[str, np.ndarray]) -> None:
    outputs['boxes'] += 3


def lose(outputs: dict[str, np.ndarray]) -> None:
    outputs['box_labels'][:, 1] = -1


def relabel(outputs: dict[str, np.ndarray]) -> None:
    outputs['box_labels'][:, 0] ^= 1


def invent(outputs: dict[str, np.ndarray]) -> None:
    outputs['boxes'][:, -1] = (1, 1, 9, 9)
    outputs['box_labels'][:, -1] = 0
    outputs['box_scores'][:, -1] = 0.95


def doubt(outputs: dict[str, np.ndarray]) -> None:
    outputs['class_scores'] *= 0.8


@pytest.mark.parametrize(
    ('change', 'failed'),
    [
        (lambda outputs: None, ()),
        (swap_slots, ()),
        (shift, ('boxes',)),
        (lose, ('boxes',)),
        (relabel, ('boxes',)),
        (invent, ('boxes',)),
        (doubt, ('class_scores',)),
    ],
)
def test_the_gate_sees_what_became_of_boxes_and_classes(
    change: Callable[[dict[str, np.ndarray]], None], failed: tuple[str, ...]
) -> None:
    report = compare(
        onnx_runner(things_model(THINGS)),
        changed(change),
        pictures(),
        precision='float16',
        method='test',
        num_classes=0,
    )

    assert report.failed_heads == failed
    assert {finding.head for finding in report.findings} == {'boxes', 'class_scores'}


def test_frames_that_show_nothing_prove_nothing() -> None:
    run = onnx_runner(things_model(('detection',)))
    empty = [np.full((*SIZE, 3), 20, np.uint8)]

    report = compare(run, run, empty, precision='float16', method='test', num_classes=0)

    assert not report.passed and 'give others with --frames' in report.failure


def test_half_precision_keeps_boxes_and_classes() -> None:
    rewritten = rewrite_to_half(things_model(), pictures(), num_classes=13)

    assert rewritten.precision == 'float16', rewritten.reports
    heads = {finding.head for finding in rewritten.reports[-1].findings}
    assert {'boxes', 'class_scores', 'label', 'depth'} <= heads
    half = reference_runner(rewritten.model)(pictures()[0][None])
    true = onnx_runner(things_model())(pictures()[0][None])
    np.testing.assert_array_equal(half['box_labels'], true['box_labels'])
    np.testing.assert_allclose(half['boxes'][0, :2], true['boxes'][0, :2], atol=0.1)


@pytest.mark.parametrize('tasks', [TASKS, THINGS])
def test_the_gpus_engine_gives_boxes_and_classes(tmp_path: Path, tasks: tuple[str, ...]) -> None:
    bundle = write_things_bundle(tmp_path / 'things', tasks)
    driver = FakeDriver()
    api, _ = fake_tensorrt(driver, bundle.model_path)
    cuda = Cuda(driver)
    engine = TensorRtEngine(bundle, b'', api, cuda, cuda.find_gpu(), precision='float32')
    image = pictures()[0][None]
    expected = open_engine(bundle, 'onnxruntime', threads=1).infer(image)

    result = engine.infer(image)

    assert list(result) == list(bundle.outputs)
    for name, array in result.items():
        np.testing.assert_array_equal(array, expected[name])


def test_the_gpus_engine_refuses_another_number_of_boxes(tmp_path: Path) -> None:
    bundle = write_things_bundle(tmp_path / 'things', THINGS)
    detection = bundle.manifest.detection.model_copy(update={'max_boxes': 9})
    bundle.manifest = bundle.manifest.model_copy(update={'detection': detection})
    driver = FakeDriver()
    api, _ = fake_tensorrt(driver, bundle.model_path)
    cuda = Cuda(driver)
    engine = TensorRtEngine(bundle, b'', api, cuda, cuda.find_gpu(), precision='float32')

    with pytest.raises(EngineError, match=r'output boxes .* expected float32 \[1, 9, 4\]'):
        engine.infer(pictures()[0][None])


@pytest.mark.parametrize('precision', ['float32', 'float16'])
def test_real_tensorrt_takes_the_graph(precision: str) -> None:
    pytest.importorskip(
        'tensorrt_rtx',
        reason='tensorrt_rtx is not installed: pip install -r requirements/tensorrt.txt',
    )
    model = load_graph(things_model())
    if precision == 'float16':
        model = to_half(model).model

    blob, _ = build_engine(load_tensorrt('tensorrt_rtx'), model, BuildOptions((SIZE,), (1, 2, 4)))

    assert len(blob) > 10_000
