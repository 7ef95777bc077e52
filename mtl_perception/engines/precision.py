"""Rewrite a bundle's graph to float16, with the onnx package alone.

TensorRT's networks are strongly typed: what the graph says is what runs. So the precision is
written into the graph: each operator computes in float16 or in float32, with a Cast wherever the
two meet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference

HALF_MAX = 65504.0
"""Largest finite float16."""

KEEP_FLOAT32 = frozenset(
    {
        'Exp',
        'GroupNormalization',
        'InstanceNormalization',
        'LayerNormalization',
        'Log',
        'LogSoftmax',
        'LpNormalization',
        'Pow',
        'Reciprocal',
        'ReduceL2',
        'ReduceMean',
        'ReduceSum',
        'ReduceSumSquare',
        'Softmax',
        'Softplus',
        'Sqrt',
    }
)
"""Operators that stay float32: they sum many values, square them or divide by small ones."""

CONTRACTIONS = frozenset({'Conv', 'ConvTranspose', 'Einsum', 'Gemm', 'MatMul'})
"""Operators that do the work. What comes before the first of them (the picture's normalisation)
and after the last one (the heads' activations) stays float32."""

_ENTRIES = CONTRACTIONS | {'DequantizeLinear'}
"""Operators that turn float32 into float16. All others follow: they compute in float16 where they
get some, so that what a delicate operator gave is not rounded before the next contraction."""

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


class PrecisionError(ValueError):
    """A graph that can't be rewritten."""


@dataclass(frozen=True)
class HalfGraph:
    """A rewritten graph and what became of it.

    Attributes:
        model: the graph; picture and outputs have their old types.
        half: names of the nodes that compute in float16.
        kept: names of the nodes that could, but stay float32.
        half_tensors: original names of the tensors that are float16 now.
    """

    model: onnx.ModelProto
    half: tuple[str, ...]
    kept: tuple[str, ...]
    half_tensors: tuple[str, ...] = field(repr=False)


def load_graph(path_or_model: str | onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph with plain float32 initialisers and a unique name for every node.

    The bundle stores weights as float16 followed by Cast; those Casts are carried out here, and
    Constant nodes become initialisers, so that rewriting sees values only.
    """
    model = onnx.ModelProto()
    if isinstance(path_or_model, onnx.ModelProto):
        model.CopyFrom(path_or_model)
    else:
        model = onnx.load(path_or_model)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    nodes = []
    for index, node in enumerate(graph.node):
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            raise PrecisionError(
                f'operator {node.op_type} ({node.name or index}) contains a graph of its own: '
                'export the network without loops and conditions'
            )
        if node.op_type == 'Constant' and node.attribute[0].name == 'value':
            tensor = TensorProto()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            stored[tensor.name] = tensor
        elif _casts_weight(node, stored) and node.output[0] not in outputs:
            values = numpy_helper.to_array(stored[node.input[0]]).astype(np.float32)
            stored[node.output[0]] = numpy_helper.from_array(values, node.output[0])
        else:
            node.name = node.name or f'{node.op_type}_{index}'
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for name, tensor in stored.items() if name in used]
    nodes = list(nodes)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return model


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every tensor of a graph."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def to_half(
    model: onnx.ModelProto,
    *,
    keep_ops: Collection[str] = KEEP_FLOAT32,
    keep_nodes: Collection[str] = (),
    keep_tail: bool = True,
) -> HalfGraph:
    """Rewrite a float32 graph so that its work is done in float16.

    Args:
        model: the graph as `load_graph` returns it.
        keep_ops: operator types that stay float32.
        keep_nodes: names of further nodes that stay float32.
        keep_tail: keep what comes after the last contraction in float32.

    Nodes with a weight beyond float16's range stay float32 in any case.

    Raises:
        PrecisionError: the types of the rewritten graph don't work out.
    """
    model = load_graph(model)
    types = tensor_types(model)
    weights = {t.name: t for t in model.graph.initializer if t.data_type == FLOAT}
    too_large = {name for name, tensor in weights.items() if _magnitude(tensor) > HALF_MAX}
    tail = _tail(model.graph.node) if keep_tail else frozenset()
    opset = next(entry.version for entry in model.opset_import if entry.domain in ('', 'ai.onnx'))
    rewriter = _Rewriter(weights)
    half: list[str] = []
    kept: list[str] = []
    for node in model.graph.node:
        data, results = _half_ports(node, opset, types)
        able = bool(data)
        wanted = able and not (
            node.op_type in keep_ops
            or node.name in keep_nodes
            or node.name in tail
            or any(node.input[i] in too_large for i in data)
        )
        if node.op_type not in _ENTRIES:
            wanted = wanted and any(rewriter.is_half(node.input[i]) for i in data)
        if wanted:
            half.append(node.name)
            rewriter.add_half(node, data, results)
        else:
            if able:
                kept.append(node.name)
            rewriter.add_float(node, types)
    produced = rewriter.finish({output.name for output in model.graph.output})
    others = [t for t in model.graph.initializer if t.name not in weights]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(produced)
    model.graph.initializer.extend([*others, *rewriter.initializers()])
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise PrecisionError(f'the float16 graph does not type-check: {error}') from error
    return HalfGraph(model, tuple(half), tuple(kept), tuple(sorted(rewriter.half_names)))


def with_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float32 graph that rounds to float16 wherever `model` holds float16.

    CPU runtimes compute float16 graphs in float32 from end to end and so hide overflow; this one
    gives them the overflow (infinity) and the rounding of every single operator's result.
    """
    types = tensor_types(model)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        copy = NodeProto()
        copy.CopyFrom(node)
        halves = [i for i, name in enumerate(node.output) if types.get(name) == HALF]
        casts = []
        for i in halves:
            name = node.output[i]
            copy.output[i] = f'{name}__exact'
            if node.op_type == 'Cast':
                _set_cast(copy, FLOAT)
            casts += [
                _cast(f'{name}__exact', f'{name}__half', HALF),
                _cast(f'{name}__half', name, FLOAT),
            ]
        nodes += [copy, *casts]
    weights = [
        numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float32), t.name)
        if t.data_type == HALF
        else t
        for t in model.graph.initializer
    ]
    del rounded.graph.node[:], rounded.graph.initializer[:], rounded.graph.value_info[:]
    rounded.graph.node.extend(nodes)
    rounded.graph.initializer.extend(weights)
    onnx.checker.check_model(rounded, full_check=True)
    return rounded


def with_magnitudes(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """Return a float32 graph whose only outputs are the largest magnitudes of some tensors.

    Output `NAME__magnitude` is a float32 scalar.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for name in tensors:
        probe.graph.node.extend(
            [
                helper.make_node('Abs', [name], [f'{name}__abs'], name=f'{name}__abs'),
                helper.make_node(
                    'ReduceMax',
                    [f'{name}__abs'],
                    [f'{name}__magnitude'],
                    name=f'{name}__magnitude',
                    keepdims=0,
                ),
            ]
        )
        probe.graph.output.append(helper.make_tensor_value_info(f'{name}__magnitude', FLOAT, []))
    return probe


def nodes_of_head(model: onnx.ModelProto, output: str) -> frozenset[str]:
    """Return the names of the nodes that only the given output depends on."""
    exclusive = _ancestors(model, [output])
    others = [value.name for value in model.graph.output if value.name != output]
    return frozenset(exclusive - _ancestors(model, others))


class _Rewriter:
    """Emit nodes in order, with the Casts and weight copies that two precisions need."""

    def __init__(self, weights: Mapping[str, TensorProto]) -> None:
        self._weights = weights
        self._half_weights: dict[str, TensorProto] = {}
        self._float_weights: dict[str, TensorProto] = {}
        self._nodes: list[NodeProto] = []
        self._casts: set[str] = set()
        self.half_names: set[str] = set()

    def is_half(self, name: str) -> bool:
        """Tell whether a tensor is float16 now."""
        return name in self.half_names

    def add_half(self, node: NodeProto, data: Iterable[int], results: Iterable[int]) -> None:
        """Emit a node that computes in float16."""
        self._float_inputs(node, skip=set(data))
        for i in data:
            node.input[i] = self._as_half(node.input[i])
        for i in results:
            self.half_names.add(node.output[i])
        self._nodes.append(node)

    def add_float(self, node: NodeProto, types: Mapping[str, int]) -> None:
        """Emit a node that stays as it is."""
        # A shape is the same in both precisions.
        if node.op_type != 'Shape':
            self._float_inputs(node, skip=set())
        elif types.get(node.input[0]) == FLOAT and node.input[0] in self._weights:
            self._float_weights[node.input[0]] = self._weights[node.input[0]]
        self._nodes.append(node)

    def finish(self, outputs: Collection[str]) -> list[NodeProto]:
        """Return all nodes; graph outputs that became float16 are cast back under their name."""
        renamed = {name: f'{name}__half' for name in outputs & self.half_names}
        for node in self._nodes:
            for ports in (node.input, node.output):
                for i, name in enumerate(ports):
                    if name in renamed:
                        ports[i] = renamed[name]
        ends = [_cast(half, name, FLOAT) for name, half in renamed.items()]
        return [*self._nodes, *ends]

    def initializers(self) -> list[TensorProto]:
        """Return the weights in the precisions that are used."""
        return [*self._float_weights.values(), *self._half_weights.values()]

    def _float_inputs(self, node: NodeProto, skip: Collection[int]) -> None:
        for i, name in enumerate(node.input):
            if i in skip:
                continue
            if name in self.half_names:
                node.input[i] = self._cast_once(name, f'{name}__float', FLOAT)
            elif name in self._weights:
                self._float_weights[name] = self._weights[name]

    def _as_half(self, name: str) -> str:
        if name in self.half_names:
            return name
        if name not in self._weights:
            return self._cast_once(name, f'{name}__to_half', HALF)
        half = f'{name}__half_weight'
        if half not in self._half_weights:
            values = numpy_helper.to_array(self._weights[name])
            self._half_weights[half] = numpy_helper.from_array(values.astype(np.float16), half)
        return half

    def _cast_once(self, source: str, target: str, to: int) -> str:
        if target not in self._casts:
            self._casts.add(target)
            self._nodes.append(_cast(source, target, to))
        return target


@cache
def _type_ports(op_type: str, opset: int) -> tuple[tuple[str, ...], tuple[str, ...], str] | None:
    """Return an operator's type variables of inputs and outputs, and the one it computes in."""
    schema = onnx.defs.get_schema(op_type, opset, '')
    halves = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if 'tensor(float16)' in constraint.allowed_type_strs
    }
    outputs = tuple(port.type_str for port in schema.outputs)
    variable = next((name for name in outputs if name in halves), None)
    if variable is None:
        return None
    return tuple(port.type_str for port in schema.inputs), outputs, variable


def _half_ports(
    node: NodeProto, opset: int, types: Mapping[str, int]
) -> tuple[list[int], list[int]]:
    """Return the indices of inputs and outputs that would become float16 together."""
    if node.domain not in ('', 'ai.onnx') or node.op_type in ('Cast', 'Constant', 'CastLike'):
        return [], []
    if node.op_type == 'QuantizeLinear':
        # Picture and scale may be float16 since opset 19; the result is int8 anyway.
        return ([0, 1], []) if opset >= 19 and types.get(node.input[0]) == FLOAT else ([], [])
    ports = _type_ports(node.op_type, opset)
    if ports is None:
        return [], []
    inputs, outputs, variable = ports

    def belongs(names: tuple[str, ...], i: int, tensor: str) -> bool:
        # The last port of a variadic operator (Concat, Max) stands for all further ones.
        same = bool(names) and names[min(i, len(names) - 1)] == variable
        return same and types.get(tensor) == FLOAT

    data = [i for i, name in enumerate(node.input) if name and belongs(inputs, i, name)]
    results = [i for i, name in enumerate(node.output) if name and belongs(outputs, i, name)]
    return (data, results) if data else ([], [])


def _tail(nodes: Sequence[NodeProto]) -> frozenset[str]:
    """Return the names of the nodes with no contraction after them."""
    needed: set[str] = set()
    tail = set()
    for node in reversed(nodes):
        if node.op_type in CONTRACTIONS or needed.intersection(node.output):
            needed.update(node.input)
        else:
            tail.add(node.name)
    return frozenset(tail)


def _ancestors(model: onnx.ModelProto, outputs: Iterable[str]) -> set[str]:
    """Return the names of the nodes that some outputs depend on."""
    needed = set(outputs)
    found = set()
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            found.add(node.name)
    return found


def _casts_weight(node: NodeProto, stored: Mapping[str, TensorProto]) -> bool:
    """Tell whether a node turns a stored float16 weight into float32."""
    return (
        node.op_type == 'Cast'
        and node.input[0] in stored
        and stored[node.input[0]].data_type == HALF
        and helper.get_node_attr_value(node, 'to') == FLOAT
    )


def _magnitude(tensor: TensorProto) -> float:
    values = numpy_helper.to_array(tensor)
    return float(np.abs(values).max()) if values.size else 0.0


def _set_cast(node: NodeProto, to: int) -> None:
    for attribute in node.attribute:
        if attribute.name == 'to':
            attribute.i = to


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node('Cast', [source], [target], name=f'{source}__cast__{target}', to=to)
