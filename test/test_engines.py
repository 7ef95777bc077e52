"""Both CPU runtimes compute the graph, on any allowed shape, and refuse the rest."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from tiny_graph import SIZE, tiny_model, write_tiny_bundle
from tiny_things import TASKS as THING_TASKS
from tiny_things import box_size, paint_marker, things_manifest, things_model, write_things_bundle

from mtl_perception.bundle import ModelBundle
from mtl_perception.engines import Engine, EngineError, open_engine
from mtl_perception.engines.gate import reference_runner

ENGINES = ['openvino', 'onnxruntime']


def pictures(batch: int = 1, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, *size, 3), np.uint8)


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize(('batch', 'size'), [(1, SIZE), (3, SIZE), (2, (32, 96))])
def test_engines_agree_with_the_onnx_reference(
    tiny_bundle: ModelBundle, engine: str, batch: int, size: tuple[int, int]
) -> None:
    image = pictures(batch, size)
    names = list(tiny_bundle.outputs)
    expected = dict(
        zip(names, ReferenceEvaluator(tiny_model()).run(names, {'image': image}), strict=True)
    )

    result = open_engine(tiny_bundle, engine, precision='float32', threads=1).infer(image)

    assert list(result) == names
    assert {name: result[name].dtype for name in names} == {
        'label': np.uint8,
        'confidence': np.uint8,
        'depth': np.float32,
        'normal': np.float32,
    }
    assert (result['label'] != expected['label']).mean() < 1e-3
    assert np.abs(result['confidence'].astype(int) - expected['confidence']).max() <= 1
    np.testing.assert_allclose(result['depth'], expected['depth'], rtol=1e-5)
    np.testing.assert_allclose(result['normal'], expected['normal'], atol=1e-4)


@pytest.mark.parametrize('engine', ENGINES)
def test_the_kept_input_is_used_in_place(tiny_bundle: ModelBundle, engine: str) -> None:
    opened = open_engine(tiny_bundle, engine, precision='float32', threads=1)
    kept = opened.input_buffer(1, SIZE)
    for seed in (1, 2):
        image = pictures(seed=seed)
        expected = {name: array.copy() for name, array in opened.infer(image).items()}
        kept[:] = 0
        opened.infer(kept)
        kept[:] = image

        result = opened.infer(kept)

        assert opened.input_buffer(1, SIZE) is kept
        for name, array in expected.items():
            np.testing.assert_array_equal(result[name], array)


@pytest.mark.parametrize('engine', ENGINES)
def test_only_the_wanted_outputs_come_back(tiny_bundle: ModelBundle, engine: str) -> None:
    opened = open_engine(tiny_bundle, engine, precision='float32', threads=1)
    image = pictures()
    depth = opened.infer(image)['depth'].copy()

    result = opened.infer(image, {'depth'})

    assert list(result) == ['depth']
    np.testing.assert_array_equal(result['depth'], depth)


def wait_for_smaller(engine: Engine, image: np.ndarray, wanted: set[str]) -> None:
    """Infer until the part of the graph that computes these outputs is compiled."""
    until = time.monotonic() + 60
    while frozenset(wanted) not in engine._plans.get(image.shape[:3]).smaller:
        assert time.monotonic() < until
        engine.infer(image, wanted)
        time.sleep(0.01)


@pytest.mark.parametrize('wanted', [{'label'}, {'label', 'depth'}, {'depth', 'normal'}])
def test_openvino_stops_computing_what_nobody_wants(
    tiny_bundle: ModelBundle, wanted: set[str]
) -> None:
    opened = open_engine(tiny_bundle, 'openvino', precision='float32', threads=1)
    image = pictures()
    expected = {name: array.copy() for name, array in opened.infer(image).items()}

    wait_for_smaller(opened, image, wanted)
    result = opened.infer(image, wanted)

    graph = opened._plans.get(image.shape[:3]).smaller[frozenset(wanted)]
    computed = {name for port in graph.request.model_outputs for name in port.names}
    assert computed == set(result) == wanted
    for name in wanted:
        assert np.shares_memory(result[name], graph.outputs[name])
        np.testing.assert_array_equal(result[name], expected[name])
    assert list(opened.infer(image)) == list(expected)
    opened.close()


def test_openvino_prepares_what_is_expected(tiny_bundle: ModelBundle) -> None:
    opened = open_engine(tiny_bundle, 'openvino', precision='float32', threads=1)
    plan = opened._plans.get((1, *SIZE))

    opened.expect(1, SIZE, {'depth'})
    compiled = plan.compiling[1].result(60)
    result = opened.infer(pictures(), {'depth'})

    assert np.shares_memory(result['depth'], compiled.outputs['depth'])
    opened.expect(1, SIZE, {'depth'})
    opened.expect(1, SIZE, set(tiny_bundle.outputs))
    assert plan.compiling is None
    opened.close()


def test_openvino_keeps_few_graphs(tiny_bundle: ModelBundle) -> None:
    opened = open_engine(tiny_bundle, 'openvino', precision='float32', threads=1)
    image = pictures()
    names = list(tiny_bundle.outputs)
    pairs = [set(pair) for pair in itertools.combinations(names, 2)]

    for pair in pairs:
        wait_for_smaller(opened, image, pair)

    kept = opened._plans.get(image.shape[:3]).smaller
    assert list(kept) == [frozenset(pair) for pair in pairs[-2:]]
    opened.close()


def test_openvino_goes_on_where_a_part_of_the_graph_is_refused(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_engine(tiny_bundle, 'openvino', precision='float32', threads=1)
    image = pictures()
    expected = opened.infer(image)['depth'].copy()

    def refuse(*_: object) -> None:
        raise EngineError('this part is too small')

    monkeypatch.setattr(opened, '_compile', refuse)
    wait_for_smaller(opened, image, {'depth'})

    np.testing.assert_array_equal(opened.infer(image, {'depth'})['depth'], expected)
    opened.close()


@pytest.mark.parametrize('engine', ENGINES)
def test_more_shapes_than_are_kept_still_give_right_answers(
    tiny_bundle: ModelBundle, engine: str
) -> None:
    opened = open_engine(tiny_bundle, engine, precision='float32', threads=1)
    first = opened.infer(pictures())['depth'].copy()
    for width in range(32, 32 * 7, 32):
        assert opened.infer(pictures(size=(32, width)))['label'].shape == (1, 32, width)

    np.testing.assert_array_equal(opened.infer(pictures())['depth'], first)


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize(
    ('image', 'outputs', 'sentence'),
    [
        (np.zeros((1, 48, 64, 3), np.float32), None, 'expected uint8'),
        (np.zeros((48, 64, 3), np.uint8), None, 'expected uint8'),
        (np.zeros((1, 48, 65, 3), np.uint8), None, 'expected multiples of 32'),
        (np.zeros((1, 48, 64, 3), np.uint8), {'sound'}, 'the bundle computes'),
    ],
)
def test_wrong_requests_are_refused(
    tiny_bundle: ModelBundle, engine: str, image: np.ndarray, outputs: set | None, sentence: str
) -> None:
    opened = open_engine(tiny_bundle, engine, threads=1)

    with pytest.raises(EngineError, match=sentence):
        opened.infer(image, outputs)


@pytest.mark.parametrize('engine', ENGINES)
def test_a_bundle_of_one_size_refuses_others(tmp_path: Path, engine: str) -> None:
    bundle = write_tiny_bundle(tmp_path / 'fixed', resizable=False)

    with pytest.raises(EngineError, match=r'computes 48x64 .* only, 64x64 was asked for'):
        open_engine(bundle, engine, size=(64, 64))


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'engine': 'abacus'}, "engine 'abacus' is unknown: expected one of auto, openvino"),
        ({'precision': 'float8'}, "precision 'float8' is unknown"),
        ({'engine': 'onnxruntime', 'precision': 'bfloat16'}, 'ONNX Runtime computes float32'),
        ({'engine': 'openvino', 'precision': 'int8'}, 'OpenVINO does not run bundles in int8'),
        ({'engine': 'openvino', 'threads': -1}, 'threads=-1'),
        ({'engine': 'openvino', 'batch': 0}, 'batch=0'),
        ({'engine': 'openvino', 'gpu_device': -1}, 'gpu_device=-1: expected .* gpu_device >= 0'),
    ],
)
def test_wrong_options_are_refused(tiny_bundle: ModelBundle, options: dict, sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence):
        open_engine(tiny_bundle, **options)


def test_a_graph_that_is_none_is_refused_by_name(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    (tmp_path / 'noise.onnx').write_bytes(b'no graph at all')
    broken = ModelBundle.write(tmp_path / 'b', tiny_bundle.manifest, tmp_path / 'noise.onnx')

    for engine in ENGINES:
        with pytest.raises(EngineError, match='refuses'):
            open_engine(broken, engine)


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('tasks', [THING_TASKS, ('detection',), ('depth', 'classification')])
def test_boxes_and_classes_come_in_the_contracts_form(
    tmp_path: Path, engine: str, tasks: tuple[str, ...]
) -> None:
    bundle = write_things_bundle(tmp_path / 'things', tasks)
    image = np.full((2, *SIZE, 3), 20, np.uint8)
    paint_marker(image[0], 'lamp', (3, 4), 60)
    paint_marker(image[1], 'cup', (8, 10), 100)
    expected = reference_runner(things_model(tasks))(image)

    result = open_engine(bundle, engine, precision='float32', threads=1).infer(image)

    assert list(result) == list(bundle.outputs) == list(expected)
    for name, array in result.items():
        assert array.shape == expected[name].shape and array.dtype == expected[name].dtype
        tolerance = 1 if name == 'confidence' else 1e-4
        if name == 'boxes':  # what an empty slot holds is left open
            array, expected[name] = array[:, :1], expected[name][:, :1]
        np.testing.assert_allclose(
            array.astype(float), expected[name].astype(float), atol=tolerance
        )
    if 'detection' in tasks:
        assert result['box_labels'].tolist() == [[0] + [-1] * 7, [1] + [-1] * 7]
        width, height = box_size(100)
        np.testing.assert_allclose(
            result['boxes'][1, 0],
            [42 - width / 2, 34 - height / 2, 42 + width / 2, 34 + height / 2],
            atol=1e-4,
        )


@pytest.mark.parametrize('name', ['box_labels', 'boxes'])
def test_outputs_that_break_the_contract_are_refused(tmp_path: Path, name: str) -> None:
    model = things_model(('detection',))
    manifest = things_manifest(('detection',))
    if name == 'boxes':
        wider = manifest.detection.model_copy(update={'max_boxes': 9})
        manifest = manifest.model_copy(update={'detection': wider})
    else:
        cast = next(node for node in model.graph.node if node.output[0] == name)
        cast.attribute[0].i = onnx.TensorProto.INT64
        model.graph.output[2].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, tmp_path / 'model.onnx')
    bundle = ModelBundle.write(tmp_path / 'odd', manifest, tmp_path / 'model.onnx')

    with pytest.raises(EngineError, match=f'output {name} of tiny_things is .*: expected'):
        open_engine(bundle, 'openvino', threads=1)
    with pytest.raises(EngineError):
        open_engine(bundle, 'onnxruntime', threads=1).infer(np.zeros((1, *SIZE, 3), np.uint8))
