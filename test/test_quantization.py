"""Int8 graphs are symmetric, calibrated on frames, and only as int8 as the gate allows."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from test_precision import pictures
from tiny_graph import SIZE, normalising_model, tiny_model

from mtl_perception.engines.builder import BuildOptions, build_engine
from mtl_perception.engines.gate import Limits, onnx_runner
from mtl_perception.engines.precision import load_graph, tensor_types, to_half
from mtl_perception.engines.quantization import (
    calibrate,
    find_layers,
    layer_errors,
    quantize,
    quantize_within_gate,
)
from mtl_perception.engines.tensorrt_api import load_tensorrt

TINY = load_graph(tiny_model())


def test_the_layers_are_all_but_the_first_contraction() -> None:
    assert [layer.node for layer in find_layers(load_graph(normalising_model()))] == [
        'mixed',
        'logits',
        'grey',
        'leaning',
    ]


def test_scales_cover_what_the_frames_show() -> None:
    scales = calibrate(TINY, find_layers(TINY), pictures())
    grey = onnx_runner(_with_output(TINY, 'grey'))
    largest = max(grey(picture[None])['grey'].max() for picture in pictures())

    assert scales['grey'] * 127 == pytest.approx(largest, rel=0.05)
    assert all(np.float16(scale) == np.float32(scale) for scale in scales.values())


def _with_output(model, name: str):
    from mtl_perception.engines.precision import with_magnitudes

    probe = with_magnitudes(model, [])
    probe.graph.output.add().name = name
    return probe


def test_zero_points_are_zero_and_weights_are_int8_per_channel() -> None:
    layers = find_layers(TINY)
    graph = quantize(TINY, layers, calibrate(TINY, layers, pictures()))

    stored = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    steps = [n for n in graph.graph.node if n.op_type in ('QuantizeLinear', 'DequantizeLinear')]
    assert len(steps) > len(layers)
    for node in steps:
        zero = stored[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
        assert (stored[node.input[1]] > 0).all()
    weights = [n for n in steps if n.op_type == 'DequantizeLinear' and n.input[0] in stored]
    assert all(stored[n.input[0]].dtype == np.int8 for n in weights)
    lean = next(n for n in weights if n.input[0].startswith('lean_weight'))
    assert stored[lean.input[1]].shape == (3,)


def test_the_error_of_a_layer_is_that_of_its_int8() -> None:
    layers = find_layers(TINY)
    scales = calibrate(TINY, layers, pictures())
    fine = layer_errors(TINY, layers, scales, pictures())
    coarse = layer_errors(TINY, layers, {n: 20 * s for n, s in scales.items()}, pictures())

    assert set(fine) == {layer.node for layer in layers}
    assert all(0 < fine[name] < 1e-3 for name in fine)
    assert all(coarse[name] > 20 * fine[name] for name in fine)


def test_the_rest_of_an_int8_graph_is_float16() -> None:
    model = load_graph(normalising_model())
    layers = find_layers(model)

    graph = to_half(quantize(model, layers, calibrate(model, layers, pictures()))).model

    types = tensor_types(graph)
    kinds = {node.op_type: types[node.output[0]] for node in graph.graph.node}
    assert kinds['Conv'] == kinds['DequantizeLinear'] == TensorProto.FLOAT16
    assert kinds['QuantizeLinear'] == TensorProto.INT8
    assert types['label'] == TensorProto.UINT8 and types['depth'] == TensorProto.FLOAT


def test_sensitive_layers_are_left_out_until_the_gate_passes() -> None:
    rewritten = quantize_within_gate(normalising_model(), pictures(), num_classes=13)

    assert rewritten.precision == 'int8'
    assert rewritten.reports[-1].passed and not rewritten.reports[0].passed
    assert 'the most sensitive, stay float16' in rewritten.remarks[-1]


def test_int8_that_never_passes_gives_way_and_says_so() -> None:
    impossible = Limits(label_miou=1.1)

    rewritten = quantize_within_gate(
        normalising_model(), pictures(1), num_classes=13, limits=impossible
    )

    assert rewritten.precision == 'float32'
    assert len(rewritten.reports) >= 3 and not any(r.passed for r in rewritten.reports)
    assert 'int8 did not pass' in rewritten.remarks[-1]


def test_tensorrt_takes_the_int8_graph() -> None:
    pytest.importorskip('tensorrt_rtx')
    layers = find_layers(TINY)
    graph = to_half(quantize(TINY, layers, calibrate(TINY, layers, pictures()))).model

    blob, _ = build_engine(load_tensorrt('tensorrt_rtx'), graph, BuildOptions((SIZE,)))

    assert len(blob) > 10_000
