"""Float16 graphs compute in float16 what they should, and the gate lets no wrong one through."""

from __future__ import annotations

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_graph import SIZE, normalising_model, tiny_model

from mtl_perception.engines.gate import (
    Limits,
    compare,
    find_overflow,
    onnx_runner,
    reference_runner,
    rewrite_to_half,
)
from mtl_perception.engines.precision import (
    HALF_MAX,
    HalfGraph,
    PrecisionError,
    load_graph,
    nodes_of_head,
    tensor_types,
    to_half,
    with_magnitudes,
    with_rounding,
)


def pictures(count: int = 2) -> list[np.ndarray]:
    """Return smooth pictures."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (count, 6, 8, 3)).astype(np.float32)
    return [cv2.resize(small, SIZE[::-1]).clip(0, 255).astype(np.uint8) for small in coarse]


def types_by_op(model: onnx.ModelProto) -> dict[str, set[int]]:
    """Return the float types that each operator's results have."""
    types = tensor_types(model)
    found: dict[str, set[int]] = {}
    for node in model.graph.node:
        kinds = {types[name] for name in node.output} & {TensorProto.FLOAT, TensorProto.FLOAT16}
        found.setdefault(node.op_type, set()).update(kinds)
    return found


def test_the_work_is_half_and_the_delicate_rest_is_not() -> None:
    graph = to_half(load_graph(normalising_model()))

    kinds = types_by_op(graph.model)
    half, single = {TensorProto.FLOAT16}, {TensorProto.FLOAT}
    assert kinds['Conv'] == kinds['Div'] == kinds['Sub'] == half
    for op in ('ReduceMean', 'Pow', 'Sqrt', 'Softmax', 'LpNormalization', 'Transpose', 'Mul'):
        assert kinds[op] == single, op
    inputs = {name for node in graph.model.graph.node for name in node.input}
    assert all(tensor.name in inputs for tensor in graph.model.graph.initializer)


def test_picture_and_outputs_keep_their_types() -> None:
    def signature(model: onnx.ModelProto) -> list[tuple[str, int]]:
        values = [*model.graph.input, *model.graph.output]
        return [(value.name, value.type.tensor_type.elem_type) for value in values]

    assert signature(to_half(tiny_model(), keep_tail=False).model) == signature(tiny_model())


def test_stored_half_weights_are_unpacked() -> None:
    model = tiny_model()
    for tensor in list(model.graph.initializer):
        if tensor.name == 'class_weight':
            values = numpy_helper.to_array(tensor)
            stored = numpy_helper.from_array(values.astype(np.float16), 'stored')
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(stored)
    cast = helper.make_node('Cast', ['stored'], ['class_weight'], to=TensorProto.FLOAT)
    model.graph.node.insert(0, cast)

    unpacked = load_graph(model)

    weights = {t.name: numpy_helper.to_array(t) for t in unpacked.graph.initializer}
    assert weights['class_weight'].dtype == np.float32
    np.testing.assert_array_equal(weights['class_weight'], values.astype(np.float16))
    assert [node.op_type for node in unpacked.graph.node].count('Cast') == 3
    assert all(node.name for node in unpacked.graph.node)


def test_a_weight_beyond_half_keeps_its_node_in_float32() -> None:
    model = tiny_model()
    for tensor in model.graph.initializer:
        if tensor.name == 'grey_weight':
            values = np.full((1, 3, 1, 1), 2 * HALF_MAX, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, 'grey_weight'))

    graph = to_half(model)

    assert 'grey' in graph.kept and 'logits' in graph.half


def test_graphs_within_graphs_are_refused_by_name() -> None:
    model = tiny_model()
    body = helper.make_graph([], 'body', [], [])
    branch = helper.make_node(
        'If', ['x'], ['y'], name='choice', then_branch=body, else_branch=body
    )
    model.graph.node.append(branch)

    with pytest.raises(PrecisionError, match=r'operator If \(choice\) contains a graph'):
        load_graph(model)


def single(op: str, value: float) -> onnx.ModelProto:
    """Return a float16 graph of one operator on a constant, with a float32 output."""
    nodes = [
        helper.make_node('Cast', ['x'], ['half'], to=TensorProto.FLOAT16),
        helper.make_node(op, ['half', 'half'], ['y_half']),
        helper.make_node('Cast', ['y_half'], ['y'], to=TensorProto.FLOAT),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, op, [info('x', TensorProto.FLOAT, [1])], [info('y', TensorProto.FLOAT, [1])]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)])
    model.ir_version = 9
    return model


@pytest.mark.parametrize(
    ('op', 'value', 'expected'),
    [('Mul', 300.0, np.inf), ('Add', 1.0 + 2.0**-12, 2.0), ('Mul', 1e-4, np.float16(1e-8))],
)
def test_rounding_shows_what_runtimes_hide(op: str, value: float, expected: float) -> None:
    """Every result is rounded: overflow, lost bits and underflow come out as on a GPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(with_rounding(single(op, value)).SerializeToString())
    plain = onnxruntime.InferenceSession(
        with_rounding(single(op, value)).SerializeToString(), options
    )
    x = np.array([value], np.float32)

    assert plain.run(None, {'x': x})[0][0] == np.float32(expected)
    assert session.get_inputs()[0].name == 'x'


def test_rounding_agrees_with_the_onnx_reference_in_half() -> None:
    graph = to_half(load_graph(normalising_model()))
    image = pictures(1)[0][None]

    rounded = onnx_runner(with_rounding(graph.model))(image)
    reference = reference_runner(graph.model)(image)

    assert (rounded['label'] == reference['label']).mean() > 0.99
    np.testing.assert_allclose(rounded['depth'], reference['depth'], rtol=5e-3)


def test_overflow_is_found_by_its_tensor() -> None:
    model = load_graph(normalising_model())
    names = [node.output[0] for node in model.graph.node if node.op_type in ('Pow', 'Conv', 'Div')]

    overflowing = find_overflow(model, names, pictures())

    assert list(overflowing) == ['squares'] and overflowing['squares'] > HALF_MAX


def test_magnitudes_are_those_of_the_tensors() -> None:
    image = np.full((1, *SIZE, 3), 51, np.uint8)

    run = onnx_runner(with_magnitudes(load_graph(tiny_model()), ['grey', 'nhwc']))

    assert {name: float(value) for name, value in run(image).items()} == {
        'grey__magnitude': pytest.approx(0.2),
        'nhwc__magnitude': pytest.approx(0.2),
    }


def test_a_head_is_what_only_one_output_needs() -> None:
    model = load_graph(tiny_model())

    assert nodes_of_head(model, 'depth') == {'grey_scaled', 'depth_nchw', 'depth'}
    assert nodes_of_head(model, 'label') == {'index', 'label'}


def test_float16_passes_the_gate() -> None:
    rewritten = rewrite_to_half(normalising_model(), pictures(), num_classes=13)

    assert rewritten.precision == 'float16'
    assert rewritten.reports[-1].passed and rewritten.reports[-1].frames == 2
    assert [finding.head for finding in rewritten.reports[-1].findings] == [
        'label',
        'confidence',
        'depth',
        'depth',
        'normal',
    ]


def careless(model: onnx.ModelProto, keep_nodes: set[str]) -> HalfGraph:
    """Convert everything, whatever the gate asks for."""
    return to_half(model, keep_ops=(), keep_tail=False)


def test_a_broken_conversion_is_caught_and_falls_back() -> None:
    rewritten = rewrite_to_half(normalising_model(), pictures(), num_classes=13, convert=careless)

    assert rewritten.precision == 'float32'
    assert not rewritten.reports[0].passed
    assert 'label' in rewritten.reports[0].failed_heads
    assert 'FAILED' in str(rewritten.reports[0])
    assert 'the whole graph stays float32' in rewritten.remarks[-1]
    assert types_by_op(rewritten.model)['Conv'] == {TensorProto.FLOAT}


def test_overflowing_nodes_are_kept_in_float32_and_the_rest_passes() -> None:
    def without_a_list(model: onnx.ModelProto, keep_nodes: set[str]) -> HalfGraph:
        return to_half(model, keep_ops=(), keep_nodes=keep_nodes, keep_tail=False)

    rewritten = rewrite_to_half(
        normalising_model(), pictures(), num_classes=13, convert=without_a_list
    )

    assert rewritten.precision == 'float16'
    assert 'leave the range of float16' in rewritten.remarks[0]
    kinds = types_by_op(rewritten.model)
    assert kinds['Pow'] == {TensorProto.FLOAT} and TensorProto.FLOAT16 in kinds['Conv']


def test_a_head_that_fails_stays_float32_and_the_others_do_not() -> None:
    """A depth of a few micrometres' accuracy is more than float16 can give."""
    limits = Limits(depth_relative=1e-6)

    def with_half_ends(model: onnx.ModelProto, keep_nodes: set[str]) -> HalfGraph:
        return to_half(model, keep_nodes=keep_nodes, keep_tail=False)

    model = onnx.ModelProto()
    model.CopyFrom(tiny_model())
    for node in model.graph.node:  # depth gets a convolution of its own, from the picture
        if node.name == 'leaning':
            node.input[0] = 'grey_too'
    model.graph.node.insert(
        12, helper.make_node('Conv', ['nchw', 'grey_weight'], ['grey_too'], name='grey_too')
    )
    onnx.checker.check_model(model)

    rewritten = rewrite_to_half(
        model, pictures(), num_classes=13, limits=limits, convert=with_half_ends
    )

    first, second = rewritten.reports
    assert first.failed_heads == ('depth',) and second.passed
    assert rewritten.precision == 'float16'
    assert rewritten.remarks == ('depth failed: its head stays float32',)
    types = tensor_types(rewritten.model)
    assert types['grey'] == TensorProto.FLOAT and types['logits'] == TensorProto.FLOAT16


def outputs(**changes: np.ndarray) -> dict[str, np.ndarray]:
    base = {
        'label': np.zeros((1, 4, 5), np.uint8),
        'depth': np.full((1, 4, 5), 2, np.float32),
        'confidence': np.full((1, 4, 5), 240, np.uint8),
        'normal': np.full((1, 4, 5, 3), (0, 0, -1), np.float32),
    }
    return {**base, **changes}


def tilted(degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    return np.full((1, 4, 5, 3), (np.sin(angle), 0, -np.cos(angle)), np.float32)


@pytest.mark.parametrize(
    ('changes', 'failed'),
    [
        ({}, ()),
        ({'label': np.eye(4, 5, dtype=np.uint8)[None]}, ('label',)),
        ({'depth': np.full((1, 4, 5), 2.03, np.float32)}, ('depth',)),
        ({'depth': np.full((1, 4, 5), 2.01, np.float32)}, ()),
        ({'depth': np.full((1, 4, 5), np.nan, np.float32)}, ('depth',)),
        ({'depth': np.where(np.arange(20).reshape(1, 4, 5) < 3, np.inf, 2.0)}, ('depth',)),
        ({'confidence': np.full((1, 4, 5), 60, np.uint8)}, ('confidence',)),
        ({'confidence': np.full((1, 4, 5), 238, np.uint8)}, ()),
        ({'normal': tilted(1.2)}, ('normal',)),
        ({'normal': tilted(0.8)}, ()),
        ({'normal': np.full((1, 4, 5, 3), np.nan, np.float32)}, ('normal',)),
    ],
)
def test_the_gate_judges_each_head(changes: dict, failed: tuple[str, ...]) -> None:
    report = compare(
        lambda image: outputs(),
        lambda image: outputs(**changes),
        [np.zeros((4, 5, 3), np.uint8)],
        precision='float16',
        method='by hand',
        num_classes=13,
    )

    assert report.failed_heads == failed
    assert report.as_dict()['passed'] == (not failed)


def test_a_gate_without_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match='the gate got no pictures'):
        rewrite_to_half(tiny_model(), [], num_classes=13)
