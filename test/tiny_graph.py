"""A tiny network with the bundle's contract, made with the onnx package alone.

Its outputs follow the picture: the label is the class whose colour is nearest, the depth grows
with the brightness, the normal leans with the brightness' slope.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mtl_perception.bundle import (
    BundleManifest,
    DepthSpec,
    InputSpec,
    ModelBundle,
    NetworkSpec,
    NormalsSpec,
    SegmentationSpec,
    TrainingSpec,
    nyu13_classes,
)

SIZE = (48, 64)
FOCAL_LENGTH_PX = 50.0


def tiny_model() -> onnx.ModelProto:
    """Return the graph: image uint8 [N, H, W, 3] -> label, confidence, depth, normal."""
    colors = np.array([spec.color for spec in nyu13_classes()], np.float32) / 255
    slope = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
    lean = np.zeros((3, 1, 3, 3), np.float32)
    lean[0, 0], lean[1, 0] = slope, slope.T
    weights = {
        'scale': np.float32(1 / 255),
        'class_weight': (20 * colors)[:, :, None, None],
        'class_bias': -10 * (colors**2).sum(1),
        'grey_weight': np.full((1, 3, 1, 1), 1 / 3, np.float32),
        'depth_scale': np.float32(4),
        'depth_offset': np.float32(0.5),
        'lean_weight': lean,
        'lean_bias': np.array([0, 0, -1], np.float32),
        'full': np.float32(255),
        'channel': np.array([1], np.int64),
    }
    nodes = [
        ('Cast', ['image'], 'image_float', {'to': TensorProto.FLOAT}),
        ('Mul', ['image_float', 'scale'], 'nhwc', {}),
        ('Transpose', ['nhwc'], 'nchw', {'perm': [0, 3, 1, 2]}),
        ('Conv', ['nchw', 'class_weight', 'class_bias'], 'logits', {}),
        ('ArgMax', ['logits'], 'index', {'axis': 1, 'keepdims': 0}),
        ('Cast', ['index'], 'label', {'to': TensorProto.UINT8}),
        ('Softmax', ['logits'], 'probability', {'axis': 1}),
        ('ReduceMax', ['probability', 'channel'], 'best', {'keepdims': 0}),
        ('Mul', ['best', 'full'], 'best_full', {}),
        ('Cast', ['best_full'], 'confidence', {'to': TensorProto.UINT8}),
        ('Conv', ['nchw', 'grey_weight'], 'grey', {}),
        ('Mul', ['grey', 'depth_scale'], 'grey_scaled', {}),
        ('Add', ['grey_scaled', 'depth_offset'], 'depth_nchw', {}),
        ('Squeeze', ['depth_nchw', 'channel'], 'depth', {}),
        ('Conv', ['grey', 'lean_weight', 'lean_bias'], 'leaning', {'pads': [1, 1, 1, 1]}),
        ('LpNormalization', ['leaning'], 'unit', {'axis': 1}),
        ('Transpose', ['unit'], 'normal', {'perm': [0, 2, 3, 1]}),
    ]
    picture = ['N', 'H', 'W']
    graph = helper.make_graph(
        [helper.make_node(op, ins, [out], name=out, **attrs) for op, ins, out, attrs in nodes],
        'tiny',
        [helper.make_tensor_value_info('image', TensorProto.UINT8, [*picture, 3])],
        [
            helper.make_tensor_value_info('label', TensorProto.UINT8, picture),
            helper.make_tensor_value_info('confidence', TensorProto.UINT8, picture),
            helper.make_tensor_value_info('depth', TensorProto.FLOAT, picture),
            helper.make_tensor_value_info('normal', TensorProto.FLOAT, [*picture, 3]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)])
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    return model


def tiny_manifest(*, resizable: bool = True) -> BundleManifest:
    """Return the description of the tiny network."""
    return BundleManifest(
        name='tiny',
        description='nearest colour, brightness as depth: a network for tests',
        tasks=('segmentation', 'depth', 'normals'),
        input=InputSpec(height=SIZE[0], width=SIZE[1], resizable=resizable),
        segmentation=SegmentationSpec(classes=tuple(nyu13_classes())),
        depth=DepthSpec(min=0.5, max=4.5, focal_length_px=FOCAL_LENGTH_PX),
        normals=NormalsSpec(),
        network=NetworkSpec(backbone='none', decoder='none', parameters=82, gmacs=0.0),
        training=TrainingSpec(data=(), licence_remark='made by hand, no data'),
    )


def write_tiny_bundle(folder: Path, *, resizable: bool = True) -> ModelBundle:
    """Write the tiny network as a bundle to `folder`."""
    model_path = folder.with_suffix('.onnx')
    onnx.save(tiny_model(), model_path)
    return ModelBundle.write(folder, tiny_manifest(resizable=resizable), model_path)


def normalising_model() -> onnx.ModelProto:
    """Return a graph with a layer normalisation, written out, over values of a few hundreds.

    Its squares leave the range of float16; its result does not.
    """
    rng = np.random.default_rng(4)
    model = tiny_model()
    graph = model.graph
    arrays = {
        'spread_weight': rng.normal(0, 600, (8, 3, 1, 1)).astype(np.float32),
        'spread_bias': rng.normal(0, 300, 8).astype(np.float32),
        'axis': np.array([1], np.int64),
        'two': np.float32(2),
        'epsilon': np.float32(1e-5),
        'mix_weight': rng.normal(0, 0.3, (3, 8, 1, 1)).astype(np.float32),
        'mix_bias': np.full(3, 0.5, np.float32),
    }
    nodes = [
        ('Conv', ['nchw', 'spread_weight', 'spread_bias'], 'spread'),
        ('ReduceMean', ['spread', 'axis'], 'mean'),
        ('Sub', ['spread', 'mean'], 'centred'),
        ('Pow', ['centred', 'two'], 'squares'),
        ('ReduceMean', ['squares', 'axis'], 'variance'),
        ('Add', ['variance', 'epsilon'], 'safe_variance'),
        ('Sqrt', ['safe_variance'], 'deviation'),
        ('Div', ['centred', 'deviation'], 'normalised'),
        ('Conv', ['normalised', 'mix_weight', 'mix_bias'], 'mixed'),
    ]
    start = next(i for i, node in enumerate(graph.node) if node.output[0] == 'nchw') + 1
    for node in graph.node[start:]:
        for i, name in enumerate(node.input):
            if name == 'nchw':
                node.input[i] = 'mixed'
    for offset, (op, ins, out) in enumerate(nodes):
        graph.node.insert(start + offset, helper.make_node(op, ins, [out], name=out))
    graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    onnx.checker.check_model(model, full_check=True)
    return model
