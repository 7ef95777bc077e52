"""A tiny network with boxes and classes in the bundle's contract, made with the onnx package.

A red marker in the picture (red 255, green 0, blue b) is a 'lamp', a green one (red 0, green 255,
blue b) a 'cup', if it covers a cell of 4x4 network pixels; the marker's blue says how large the
box around it is: `box_size`. The room is the picture's prevailing colour; bright pictures are
'lit'. The dense outputs are those of tiny_graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_graph import tiny_manifest, tiny_model

from mtl_perception.bundle import (
    OUTPUTS,
    AttributeSpec,
    BundleManifest,
    ClassificationSpec,
    ClassSpec,
    DetectionSpec,
    ModelBundle,
)

CELL = 4
MAX_BOXES = 8
CLASSES = (ClassSpec(name='lamp', color=(230, 60, 60)), ClassSpec(name='cup', color=(60, 220, 60)))
ATTRIBUTES = (
    AttributeSpec(name='room', kind='single', classes=('kitchen', 'office', 'bathroom')),
    AttributeSpec(name='seen', kind='multi', classes=('lit', 'dark')),
)
TASKS = ('segmentation', 'depth', 'normals', 'detection', 'classification')


def box_size(blue: int) -> tuple[float, float]:
    """Return (width, height) in network pixels of the box around a marker."""
    return 64 * blue / 255, 32 * blue / 255


def things_model(tasks: Sequence[str] = TASKS) -> onnx.ModelProto:
    """Return the graph with the outputs of some tasks."""
    model = tiny_model()
    weights = {
        # Markers give 1, everything up to middle brightness 0.
        'heat_weight': np.array([[2, 0, 0], [0, 2, 0]], np.float32)[:, :, None, None],
        'heat_bias': np.array([-1, -1], np.float32),
        'half': np.float32(0.5),
        'cell_size': np.float32(CELL),
        'half_width': np.float32(box_size(255)[0] / 2),
        'half_height': np.float32(box_size(255)[1] / 2),
        'zero': np.float32(0),
        'none': np.int64(-1),
        'flat': np.array([0, -1], np.int64),
        'boxes_kept': np.array([MAX_BOXES], np.int64),
        'last': np.array([2], np.int64),
        'blue_from': np.array([2], np.int64),
        'blue_to': np.array([3], np.int64),
        'second': np.array([1], np.int64),
        'rows_at': np.array([2], np.int64),
        'columns_at': np.array([3], np.int64),
        'sharp': np.float32(10),
        'brightness_weight': np.array([[12, -12]] * 3, np.float32) / 3,
        'brightness_bias': np.array([-6, 6], np.float32),
        'picture_axes': np.array([2, 3], np.int64),
    }
    nodes = [
        ('AveragePool', ['nchw'], 'cells', {'kernel_shape': [CELL] * 2, 'strides': [CELL] * 2}),
        ('Conv', ['cells', 'heat_weight', 'heat_bias'], 'heat_raw', {}),
        ('Relu', ['heat_raw'], 'heat', {}),
        ('MaxPool', ['heat'], 'peak', {'kernel_shape': [3, 3], 'pads': [1] * 4}),
        ('Equal', ['heat', 'peak'], 'is_peak', {}),
        ('Cast', ['is_peak'], 'peak_mask', {'to': TensorProto.FLOAT}),
        ('Mul', ['heat', 'peak_mask'], 'peaks', {}),
        ('Reshape', ['peaks', 'flat'], 'candidates', {}),
        ('TopK', ['candidates', 'boxes_kept'], ['box_scores', 'place'], {'axis': 1}),
        ('Shape', ['cells'], 'cells_shape', {}),
        ('Gather', ['cells_shape', 'rows_at'], 'rows', {}),
        ('Gather', ['cells_shape', 'columns_at'], 'columns', {}),
        ('Mul', ['rows', 'columns'], 'area', {}),
        ('Div', ['place', 'area'], 'class', {}),
        ('Mul', ['class', 'area'], 'class_start', {}),
        ('Sub', ['place', 'class_start'], 'cell', {}),
        ('Div', ['cell', 'columns'], 'row', {}),
        ('Mul', ['row', 'columns'], 'row_start', {}),
        ('Sub', ['cell', 'row_start'], 'column', {}),
        ('Slice', ['cells', 'blue_from', 'blue_to', 'second'], 'blue', {}),
        ('Reshape', ['blue', 'flat'], 'blue_flat', {}),
        ('GatherElements', ['blue_flat', 'cell'], 'size', {'axis': 1}),
    ]
    for axis, index, half in (('x', 'column', 'half_width'), ('y', 'row', 'half_height')):
        nodes += [
            ('Cast', [index], f'{axis}_whole', {'to': TensorProto.FLOAT}),
            ('Add', [f'{axis}_whole', 'half'], f'{axis}_middle', {}),
            ('Mul', [f'{axis}_middle', 'cell_size'], f'{axis}_centre', {}),
            ('Mul', ['size', half], f'{axis}_reach', {}),
            ('Sub', [f'{axis}_centre', f'{axis}_reach'], f'{axis}0', {}),
            ('Add', [f'{axis}_centre', f'{axis}_reach'], f'{axis}1', {}),
            ('Unsqueeze', [f'{axis}0', 'last'], f'{axis}0_column', {}),
            ('Unsqueeze', [f'{axis}1', 'last'], f'{axis}1_column', {}),
        ]
    nodes += [
        ('Concat', ['x0_column', 'y0_column', 'x1_column', 'y1_column'], 'boxes', {'axis': 2}),
        ('Greater', ['box_scores', 'zero'], 'filled', {}),
        ('Where', ['filled', 'class', 'none'], 'label_or_none', {}),
        ('Cast', ['label_or_none'], 'box_labels', {'to': TensorProto.INT32}),
        ('ReduceMean', ['nchw', 'picture_axes'], 'mean_colour', {'keepdims': 0}),
        ('Mul', ['mean_colour', 'sharp'], 'room_logits', {}),
        ('Softmax', ['room_logits'], 'room', {'axis': 1}),
        ('MatMul', ['mean_colour', 'brightness_weight'], 'seen_product', {}),
        ('Add', ['seen_product', 'brightness_bias'], 'seen_logits', {}),
        ('Sigmoid', ['seen_logits'], 'seen', {}),
        ('Concat', ['room', 'seen'], 'class_scores', {'axis': 1}),
    ]
    graph = model.graph
    for op, inputs, outputs, attributes in nodes:
        names = [outputs] if isinstance(outputs, str) else outputs
        graph.node.append(helper.make_node(op, inputs, names, name=names[0], **attributes))
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()
    )
    scores = sum(len(attribute.classes) for attribute in ATTRIBUTES)
    kinds = {
        'boxes': (TensorProto.FLOAT, ['N', MAX_BOXES, 4]),
        'box_scores': (TensorProto.FLOAT, ['N', MAX_BOXES]),
        'box_labels': (TensorProto.INT32, ['N', MAX_BOXES]),
        'class_scores': (TensorProto.FLOAT, ['N', scores]),
    }
    graph.output.extend(helper.make_tensor_value_info(n, *kind) for n, kind in kinds.items())
    _keep_outputs(graph, {name for task in tasks for name in OUTPUTS[task]})
    onnx.checker.check_model(model, full_check=True)
    return model


def _keep_outputs(graph: onnx.GraphProto, wanted: set[str]) -> None:
    """Remove the other outputs and what only they need."""
    kept = [output for output in graph.output if output.name in wanted]
    needed, nodes = {output.name for output in kept}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.insert(0, node)
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.output[:], graph.node[:], graph.initializer[:]
    graph.output.extend(kept)
    graph.node.extend(nodes)
    graph.initializer.extend(weights)


def things_manifest(
    tasks: Sequence[str] = TASKS, *, names: Sequence[str] = (), resizable: bool = True
) -> BundleManifest:
    """Return the description of the network with some of its tasks.

    Args:
        tasks: of the network.
        names: of the boxes' classes, instead of 'lamp' and 'cup'.
        resizable: whether other sizes are allowed.
    """
    classes = [
        spec.model_copy(update={'name': name})
        for spec, name in zip(CLASSES, names or ('lamp', 'cup'), strict=True)
    ]
    plain = tiny_manifest(resizable=resizable).model_dump()
    plain |= {
        'name': 'tiny_things',
        'tasks': tuple(tasks),
        'detection': DetectionSpec(classes=tuple(classes), max_boxes=MAX_BOXES),
        'classification': ClassificationSpec(attributes=ATTRIBUTES),
    }
    return BundleManifest.model_validate(
        {key: value for key, value in plain.items() if key not in TASKS or key in tasks}
    )


def write_things_bundle(
    folder: Path,
    tasks: Sequence[str] = TASKS,
    *,
    names: Sequence[str] = (),
    resizable: bool = True,
) -> ModelBundle:
    """Write the network as a bundle to `folder`; arguments are those of `things_manifest`."""
    model_path = folder.with_suffix('.onnx')
    onnx.save(things_model(tasks), model_path)
    manifest = things_manifest(tasks, names=names, resizable=resizable)
    return ModelBundle.write(folder, manifest, model_path)


def paint_marker(
    picture: np.ndarray, name: str, cell: tuple[int, int], blue: int, pixels_per_cell: int = CELL
) -> None:
    """Paint a marker onto an RGB picture, in place.

    Args:
        picture: uint8 [H, W, 3].
        name: 'lamp' or 'cup'.
        cell: (row, column) of the network's cell that it fills.
        blue: of the marker; `box_size` of it is the box.
        pixels_per_cell: picture pixels per cell along each side.
    """
    row, column = (index * pixels_per_cell for index in cell)
    colour = (255, 0, blue) if name == 'lamp' else (0, 255, blue)
    picture[row : row + pixels_per_cell, column : column + pixels_per_cell] = colour
