"""Rewrite a bundle's graph to int8: symmetric Q/DQ around its contractions, calibrated on frames.

Weights have one scale per output channel, activations one per tensor; zero points are zero, which
is all that TensorRT takes. What is not int8 is float16, as `precision` does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper, version_converter

from .gate import GateReport, Limits, Rewritten, compare, nodes_that_overflow, onnx_runner
from .precision import FLOAT, load_graph, to_half, with_rounding

_OPSET = 19
"""The first opset whose QuantizeLinear takes float16."""

_PERCENTILE = 99.99
"""Share of an activation's magnitudes that its int8 range covers; the rest is cut."""

_SHARES_LEFT_OUT = (0.0, 0.1, 0.25, 0.5)
"""Shares of the layers, the most sensitive first, that stay float16 in one try after the other."""


@dataclass(frozen=True)
class Layer:
    """A contraction with constant weights.

    Attributes:
        node: its name.
        activation: name of the tensor it reads.
        weight: name of its weights.
        axis: of the weights' output channels.
    """

    node: str
    activation: str
    weight: str
    axis: int


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """Return the layers that can be int8: Conv and MatMul with constant weights.

    The first contraction, which reads the picture itself, is not among them.
    """
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == FLOAT}
    layers = [
        Layer(node.name, node.input[0], node.input[1], 0 if node.op_type == 'Conv' else 1)
        for node in model.graph.node
        if node.op_type in ('Conv', 'MatMul')
        and node.input[1] in weights
        and node.input[0] not in weights
        and (node.op_type == 'Conv' or _rank(model, node.input[1]) == 2)
    ]
    return layers[1:]


def calibrate(
    model: onnx.ModelProto, layers: Sequence[Layer], pictures: Sequence[np.ndarray]
) -> dict[str, float]:
    """Return the int8 scale of each layer's activation from its values on pictures."""
    names = sorted({layer.activation for layer in layers})
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(n, FLOAT, None) for n in names)
    run = onnx_runner(probe)
    largest = dict.fromkeys(names, 0.0)
    for picture in pictures:
        for name, values in run(picture[None]).items():
            reach = float(np.percentile(np.abs(values), _PERCENTILE))
            largest[name] = max(largest[name], reach)
    return {name: float(_storable(value / 127)) for name, value in largest.items()}


def quantize(
    model: onnx.ModelProto, layers: Sequence[Layer], scales: Mapping[str, float]
) -> onnx.ModelProto:
    """Return the graph with Q/DQ at the inputs of some layers.

    Args:
        model: the float32 graph, from `load_graph`.
        layers: those that become int8.
        scales: of their activations, from `calibrate`.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(version_converter.convert_version(model, _OPSET))
    stored = {tensor.name: tensor for tensor in quantized.graph.initializer}
    chosen = {layer.node: layer for layer in layers}
    pieces = _Pieces()
    nodes: list[NodeProto] = []
    for node in list(quantized.graph.node):
        layer = chosen.get(node.name)
        if layer:
            node.input[0] = pieces.activation(layer.activation, scales[layer.activation], nodes)
            values = numpy_helper.to_array(stored[layer.weight])
            node.input[1] = pieces.weight(layer, values, nodes)
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    initializers = [t for t in (*stored.values(), *pieces.initializers) if t.name in used]
    del quantized.graph.node[:], quantized.graph.initializer[:], quantized.graph.value_info[:]
    quantized.graph.node.extend(nodes)
    quantized.graph.initializer.extend(initializers)
    onnx.checker.check_model(quantized, full_check=True)
    return quantized


def layer_errors(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    scales: Mapping[str, float],
    pictures: Sequence[np.ndarray],
) -> dict[str, float]:
    """Return, for each layer, how far int8 alone throws its result off.

    Every layer is computed twice on float32's activations, once in int8; the figure is the energy
    of the difference over the energy of the result.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(version_converter.convert_version(model, _OPSET))
    stored = {tensor.name: tensor for tensor in probe.graph.initializer}
    originals = {node.name: node for node in probe.graph.node}
    pieces = _Pieces()
    nodes: list[NodeProto] = []
    outputs = []
    for layer in layers:
        original = originals[layer.node]
        twin = NodeProto()
        twin.CopyFrom(original)
        twin.name = f'{layer.node}__twin'
        twin.input[0] = pieces.activation(layer.activation, scales[layer.activation], nodes)
        twin.input[1] = pieces.weight(layer, numpy_helper.to_array(stored[layer.weight]), nodes)
        twin.output[0] = f'{layer.node}__int8_result'
        nodes.append(twin)
        true, found = original.output[0], twin.output[0]
        for op, ins, out in (
            ('Sub', [found, true], f'{layer.node}__difference'),
            ('Mul', [f'{layer.node}__difference'] * 2, f'{layer.node}__difference_squared'),
            ('Mul', [true, true], f'{layer.node}__squared'),
            ('ReduceMean', [f'{layer.node}__difference_squared'], f'{layer.node}__error'),
            ('ReduceMean', [f'{layer.node}__squared'], f'{layer.node}__energy'),
            ('Div', [f'{layer.node}__error', f'{layer.node}__energy'], f'{layer.node}__relative'),
        ):
            extra = {'keepdims': 0} if op == 'ReduceMean' else {}
            nodes.append(helper.make_node(op, ins, [out], name=out, **extra))
        outputs.append(helper.make_tensor_value_info(f'{layer.node}__relative', FLOAT, None))
    probe.graph.node.extend(nodes)
    probe.graph.initializer.extend(pieces.initializers)
    del probe.graph.output[:]
    probe.graph.output.extend(outputs)
    run = onnx_runner(probe)
    totals = dict.fromkeys((layer.node for layer in layers), 0.0)
    for picture in pictures:
        for name, value in run(picture[None]).items():
            totals[name.removesuffix('__relative')] += float(value) / len(pictures)
    return totals


def quantize_within_gate(
    model: onnx.ModelProto,
    pictures: Sequence[np.ndarray],
    *,
    num_classes: int,
    limits: Limits | None = None,
) -> Rewritten:
    """Return an int8 graph that passes the gate, with its most sensitive layers left out.

    Args:
        model: the bundle's graph.
        pictures: uint8 [H, W, 3] at the network's size, for calibration and the gate.
        num_classes: of the segmentation; 0 without.
        limits: what may differ from float32.

    Returns:
        The graph; with precision 'float32' and the float32 graph where int8 does not pass.
    """
    model = load_graph(model)
    layers = find_layers(model)
    reports: list[GateReport] = []
    if not layers:
        return Rewritten(model, 'float32', (), ('no layer can be int8',))
    scales = calibrate(model, layers, pictures)
    errors = layer_errors(model, layers, scales, pictures[:2])
    ranked = sorted(layers, key=lambda layer: errors[layer.node], reverse=True)
    keep, remarks = nodes_that_overflow(model, pictures)
    reference = onnx_runner(model)
    for left_out in dict.fromkeys(round(share * len(ranked)) for share in _SHARES_LEFT_OUT):
        graph = to_half(quantize(model, ranked[left_out:], scales), keep_nodes=keep).model
        report = compare(
            reference,
            onnx_runner(with_rounding(graph)),
            pictures,
            precision='int8',
            method=f'{len(ranked) - left_out} of {len(ranked)} layers in int8, on the CPU',
            num_classes=num_classes,
            limits=limits,
        )
        reports.append(report)
        if report.passed:
            if left_out:
                remarks.append(
                    f'{left_out} of {len(ranked)} layers, the most sensitive, stay float16'
                )
            return Rewritten(graph, 'int8', tuple(reports), tuple(remarks))
    return Rewritten(
        model, 'float32', tuple(reports), ('int8 did not pass with half of the layers left out',)
    )


class _Pieces:
    """Q/DQ nodes and int8 weights, each made once however many layers share it."""

    def __init__(self) -> None:
        self.initializers: list[onnx.TensorProto] = []
        self._made: set[str] = set()

    def activation(self, name: str, scale: float, nodes: list[NodeProto]) -> str:
        """Return the name of a tensor after int8."""
        result = f'{name}__int8_value'
        if result not in self._made:
            self._made.add(result)
            parts = [f'{name}__scale', f'{name}__zero']
            self._keep(np.float32(scale), parts[0])
            self._keep(np.int8(0), parts[1])
            nodes += [
                helper.make_node(
                    'QuantizeLinear', [name, *parts], [f'{name}__int8'], f'{name}__q'
                ),
                helper.make_node(
                    'DequantizeLinear', [f'{name}__int8', *parts], [result], f'{name}__dq'
                ),
            ]
        return result

    def weight(self, layer: Layer, values: np.ndarray, nodes: list[NodeProto]) -> str:
        """Return the name of a layer's weights, stored as int8."""
        name = f'{layer.weight}__axis{layer.axis}'
        result = f'{name}__int8_value'
        if result not in self._made:
            self._made.add(result)
            others = tuple(axis for axis in range(values.ndim) if axis != layer.axis)
            scale = _storable(np.abs(values).max(others) / 127)
            shape = [-1 if axis == layer.axis else 1 for axis in range(values.ndim)]
            steps = np.rint(values / scale.reshape(shape)).clip(-127, 127).astype(np.int8)
            parts = [f'{name}__int8', f'{name}__scale', f'{name}__zero']
            self._keep(steps, parts[0])
            self._keep(scale, parts[1])
            self._keep(np.zeros(scale.shape, np.int8), parts[2])
            node = helper.make_node(
                'DequantizeLinear', parts, [result], f'{name}__dq', axis=layer.axis
            )
            nodes.append(node)
        return result

    def _keep(self, values: np.ndarray | np.generic, name: str) -> None:
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))


def _storable(scale: np.ndarray | float) -> np.ndarray:
    """Return positive scales that float16 holds as they are, float32."""
    least = np.float32(2.0**-17)
    return np.asarray(np.maximum(scale, least), np.float16).astype(np.float32)


def _rank(model: onnx.ModelProto, name: str) -> int:
    return next(len(tensor.dims) for tensor in model.graph.initializer if tensor.name == name)
