"""From a checkpoint to a bundle: network, pre- and post-processing in one ONNX graph.

Weights are stored as float16 behind a Cast, so that the file is half as large and every runtime
still computes in the precision that it is asked for.
"""

from __future__ import annotations

import colorsys
import contextlib
import io
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from mtl_perception.bundle import (
    OUTPUTS,
    BundleManifest,
    ClassificationSpec,
    ClassSpec,
    DepthSpec,
    DetectionSpec,
    InputSpec,
    MetricsSpec,
    ModelBundle,
    NetworkSpec,
    NormalsSpec,
    SegmentationSpec,
    TrainingSpec,
    nyu13_classes,
)
from mtl_perception.engines.precision import HALF_MAX
from mtl_perception.frames import CameraFrame
from mtl_perception.letterbox import Letterbox, Size, fit
from mtl_training import lineage
from mtl_training.calibration import Calibration, calibrate
from mtl_training.checkpoints import load_checkpoint
from mtl_training.config import NetworkSettings, TrainingConfig
from mtl_training.data import open_data
from mtl_training.datasets.mixtures import Frames
from mtl_training.networks import MultiTaskNetwork
from mtl_training.networks.cost import count_macs, count_parameters
from mtl_training.networks.heads import class_scores, decode_boxes
from mtl_training.networks.padding import with_constant_padding
from mtl_training.run_state import load_network

OPSET = 18
STRIDE = 32
PARITY_PICTURES = 4
MIN_LABEL_AGREEMENT = 0.995
MAX_DEPTH_DIFFERENCE = 0.01
MAX_NORMAL_ANGLE_DEG = 1.0
# Boxes of at least this score have to come out of the graph as out of torch.
SURE_SCORE = 0.1
SAME_BOX_PX = 0.5
MIN_BOX_AGREEMENT = 0.97
MAX_SCORE_DIFFERENCE = 0.02


class ExportError(RuntimeError):
    """A network that cannot be exported faithfully."""


class DeployedNetwork(nn.Module):
    """What runs on the robot: uint8 [N, H, W, 3] RGB in, final types out.

    The outputs, as far as the tasks are there: label uint8 [N, H, W], confidence uint8 [N, H, W]
    (softmax maximum x 255), depth float32 [N, H, W] metres, normal float32 [N, H, W, 3] unit,
    boxes float32 [N, K, 4] x0 y0 x1 y1 in pixels of the picture, box_scores float32 [N, K]
    falling, box_labels int32 [N, K] (empty slots have score 0 and label -1), class_scores float32
    [N, C] of all attributes' classes in a row.
    """

    def __init__(self, network: MultiTaskNetwork, temperature: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    @property
    def names(self) -> list[str]:
        """Names of the outputs in order."""
        return [name for task, names in OUTPUTS.items() if task in self.tasks for name in names]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks of the network."""
        return tuple(self.network.tasks)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs in the order of `names`."""
        # To float before permuting: TensorRT has no transpose of bytes.
        outputs = self.network(image.float().permute(0, 3, 1, 2))
        results: list[Tensor] = []
        if 'segmentation' in outputs:
            logits = outputs['segmentation']
            highest, label = logits.max(dim=1)
            scaled = (logits - highest.unsqueeze(1)) / self.temperature
            confidence = 1 / scaled.exp().sum(dim=1)
            results += [label.to(torch.uint8), (255 * confidence).round().to(torch.uint8)]
        if 'depth' in outputs:
            results.append(outputs['depth'][:, 0])
        if 'normals' in outputs:
            results.append(outputs['normals'].permute(0, 2, 3, 1))
        config = self.network.config
        if 'detection' in outputs:
            results += decode_boxes(outputs['detection'], config.max_boxes)
        if 'classification' in outputs:
            results.append(class_scores(outputs['classification'], config.attributes))
        return tuple(results)


def with_half_weights(network: MultiTaskNetwork) -> MultiTaskNetwork:
    """Round every weight to float16 in place, as the bundle stores it."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(parameter.half().float())
    return network


def export_graph(
    network: MultiTaskNetwork, path: Path, size: tuple[int, int], temperature: float = 1.0
) -> bool:
    """Write the deployed network as ONNX.

    Batch, and height and width in multiples of 32, stay free where the network's operations allow
    it.

    Returns:
        Whether other sizes than `size` work.
    """
    network = network.to(memory_format=torch.contiguous_format)
    if not any(side % STRIDE for side in size):
        with_constant_padding(network)
    deployed = DeployedNetwork(network, temperature).eval()
    # Two pictures: a batch of one would be taken for a constant.
    example = torch.zeros((2, *size, 3), dtype=torch.uint8)
    batch = torch.export.Dim('batch', min=1, max=256)
    rows, columns = (torch.export.Dim(name, min=2, max=64) for name in ('rows', 'columns'))
    free = {0: batch, 1: STRIDE * rows, 2: STRIDE * columns}
    try:
        model = _to_onnx(deployed, example, free)
        resizable = True
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
        logging.getLogger(__name__).warning(
            'the graph is fixed to %dx%d: %s', *size, str(error).splitlines()[0]
        )
        model = _to_onnx(deployed, example, {0: batch})
        resizable = False
    store_half_weights(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return resizable


def _to_onnx(deployed: DeployedNetwork, example: Tensor, free: dict[int, Any]) -> onnx.ModelProto:
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            deployed,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=['image'],
            output_names=deployed.names,
            dynamic_shapes={'image': free},
            optimize=True,
            verbose=False,
        )
    model = program.model_proto
    # Stack traces of the export help nobody on the robot and are a tenth of the file.
    for entry in (model.graph, *model.graph.node, *model.graph.value_info):
        entry.ClearField('doc_string')
        entry.ClearField('metadata_props')
    for tensor in model.graph.initializer:
        tensor.ClearField('doc_string')
        tensor.ClearField('metadata_props')
    model.ClearField('metadata_props')
    return model


def store_half_weights(model: onnx.ModelProto) -> None:
    """Store every float32 initializer as float16 followed by a Cast to float32, in place.

    Raises:
        ExportError: A weight does not fit float16.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or not tensor.dims:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < 2:
            continue
        if not np.isfinite(values).all() or np.abs(values).max() > HALF_MAX:
            raise ExportError(
                f'weight {tensor.name} reaches {np.abs(values).max():.3g}, beyond float16 '
                f'({HALF_MAX:.0f}): train with weight decay or clipping'
            )
        name = tensor.name
        half = numpy_helper.from_array(values.astype(np.float16), f'{name}.half')
        tensor.CopyFrom(half)
        casts.append(
            helper.make_node('Cast', [half.name], [name], f'{name}.cast', to=TensorProto.FLOAT)
        )
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


@dataclass(frozen=True)
class Parity:
    """Agreement of an ONNX graph with the torch network on some pictures.

    Attributes:
        label: share of pixels with the same label.
        depth: median relative difference of depth; infinite where one is no number.
        normal_deg: median angle between normals in degrees; infinite where one is no number.
        boxes: share of the sure boxes that come out within half a pixel, with the same label.
        class_scores: largest difference of a class's score.
    """

    label: float | None = None
    depth: float | None = None
    normal_deg: float | None = None
    boxes: float | None = None
    class_scores: float | None = None


def parity_pictures(frames: Frames, size: Size) -> np.ndarray:
    """Return the first frames' pictures as the robot gives them, uint8 [N, H, W, 3] of `size`."""
    images = np.empty((min(PARITY_PICTURES, len(frames)), *size, 3), np.uint8)
    letterbox = Letterbox()
    for slot in range(len(images)):
        frame = CameraFrame(frames.read(slot).image, 'rgb8')
        letterbox.place(frame, fit(frame.pixels.shape[:2], size), images, slot)
    return images


def torch_outputs(network: MultiTaskNetwork, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the robot's outputs are in torch, of uint8 pictures [N, H, W, 3]."""
    deployed = DeployedNetwork(network).eval()
    with torch.inference_mode():
        outputs = [tensor.numpy() for tensor in deployed(torch.from_numpy(images))]
    return dict(zip(deployed.names, outputs, strict=True))


def measure_parity(reference: dict[str, np.ndarray], model: Path, images: np.ndarray) -> Parity:
    """Compare a graph in ONNX Runtime with torch.

    Args:
        reference: `torch_outputs` of the network as it was trained.
        model: the ONNX file.
        images: uint8 [N, H, W, 3].
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=['CPUExecutionProvider'])
    names = list(reference)
    found = dict(zip(names, session.run(names, {'image': images}), strict=True))
    return compare_outputs(reference, found)


def compare_outputs(reference: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> Parity:
    """Return how far two sets of the graph's outputs agree."""
    label = depth = angle = boxes = scores = None
    if 'label' in reference:
        label = float((reference['label'] == found['label']).mean())
    if 'depth' in reference:
        depth = float(np.median(np.abs(found['depth'] / reference['depth'] - 1)))
        depth = depth if np.isfinite(found['depth']).all() else np.inf
    if 'normal' in reference:
        cosine = np.einsum('...c,...c->...', reference['normal'], found['normal'])
        angle = float(np.degrees(np.median(np.arccos(np.clip(cosine, -1, 1)))))
        angle = angle if np.isfinite(found['normal']).all() else np.inf
    if 'boxes' in reference:
        boxes = _agreeing_boxes(reference, found)
    if 'class_scores' in reference:
        scores = float(np.abs(reference['class_scores'] - found['class_scores']).max())
    return Parity(label, depth, angle, boxes, scores)


def _agreeing_boxes(reference: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> float:
    """Return the share of the sure boxes that are found again; 1 where there are none."""
    again = []
    for picture, scores in enumerate(reference['box_scores']):
        for slot in np.flatnonzero(scores >= SURE_SCORE):
            label = reference['box_labels'][picture, slot]
            others = found['boxes'][picture][found['box_labels'][picture] == label]
            apart = np.abs(others - reference['boxes'][picture, slot]).max(axis=1, initial=0)
            again.append(bool((apart <= SAME_BOX_PX).any()))
    return float(np.mean(again)) if again else 1.0


def export_bundle(
    checkpoint: Path,
    target: Path,
    *,
    name: str | None = None,
    description: str | None = None,
    classes: list[ClassSpec] | None = None,
    size: tuple[int, int] = (288, 384),
    calibrated: bool = True,
    metrics: list[MetricsSpec] | None = None,
) -> ModelBundle:
    """Export the averaged weights of a checkpoint as a bundle.

    The held-out frames serve as pictures for the parity check and calibrate the confidence.

    Args:
        checkpoint: `last.json` or `best.json` of a run.
        target: the bundle's folder; an older bundle there is replaced.
        name: of the bundle; the folder's name by default.
        description: one sentence.
        classes: names and colours; NYUv2-13 by default.
        size: (height, width) of the network's picture.
        calibrated: fit the confidence's temperature on the held-out frames.
        metrics: figures to state.

    Raises:
        ExportError: torch and ONNX disagree, or a weight does not fit float16.
        CheckpointError, DatasetError, BundleError: See there.
    """
    network, config = load_network(checkpoint)
    classes = classes or named_classes(config.network)
    if 'segmentation' in config.tasks and len(classes) != config.network.num_classes:
        raise ExportError(
            f'{len(classes)} classes are named, the network has {config.network.num_classes}: '
            'give a classes file with one entry per class'
        )
    data = open_data(config)
    images = parity_pictures(data.held_out, size)
    reference = torch_outputs(network, images)
    # From here on the weights are those that the bundle stores.
    with_half_weights(network)
    calibration = None
    if calibrated and 'segmentation' in config.tasks:
        calibration = calibrate(network, data.held_out)
    temperature = calibration.temperature if calibration else 1.0
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / 'model.onnx'
        resizable = export_graph(network, model, size, temperature)
        parity = measure_parity(reference, model, images)
        refuse_disagreement(parity)
        manifest = BundleManifest(
            name=name or target.name,
            description=description or _describe(config),
            tasks=tuple(config.tasks),
            input=InputSpec(height=size[0], width=size[1], resizable=resizable),
            segmentation=_segmentation(config, classes),
            depth=_depth(config),
            normals=_normals(config),
            detection=_detection(config),
            classification=_classification(config),
            network=NetworkSpec(
                backbone=config.network.backbone,
                decoder=config.network.decoder,
                parameters=count_parameters(network),
                gmacs=round(count_macs(network, size) / 1e9, 3),
            ),
            training=_training(config, checkpoint, calibration, parity),
            metrics=tuple(metrics or ()),
        )
        return ModelBundle.write(target, manifest, model)


def refuse_disagreement(parity: Parity) -> None:
    """Raise ExportError where the graph does not compute what torch does."""
    if parity.label is not None and parity.label < MIN_LABEL_AGREEMENT:
        raise ExportError(
            f'torch and ONNX agree on {100 * parity.label:.2f} % of the labels, more than '
            f'{100 * MIN_LABEL_AGREEMENT} % are expected: the network does not survive float16 '
            'weights or the exporter changed it'
        )
    if parity.depth is not None and not parity.depth < MAX_DEPTH_DIFFERENCE:
        raise ExportError(
            f'depth of torch and ONNX differs by {100 * parity.depth:.2f} % in the median, at '
            f'most {100 * MAX_DEPTH_DIFFERENCE} % are expected: the network does not survive '
            'float16 weights or the exporter changed it'
        )
    if parity.normal_deg is not None and not parity.normal_deg <= MAX_NORMAL_ANGLE_DEG:
        raise ExportError(
            f'normals of torch and ONNX differ by {parity.normal_deg:.2f} degrees in the median, '
            f'at most {MAX_NORMAL_ANGLE_DEG} is expected: the network does not survive float16 '
            'weights or the exporter changed it'
        )
    if parity.boxes is not None and not parity.boxes >= MIN_BOX_AGREEMENT:
        raise ExportError(
            f'torch and ONNX agree on {100 * parity.boxes:.1f} % of the boxes, '
            f'{100 * MIN_BOX_AGREEMENT:.0f} % within {SAME_BOX_PX} pixels are expected: the '
            'network does not survive float16 weights or the exporter changed it'
        )
    if parity.class_scores is not None and not parity.class_scores <= MAX_SCORE_DIFFERENCE:
        raise ExportError(
            f'scores of classes differ by {parity.class_scores:.3f} between torch and ONNX, at '
            f'most {MAX_SCORE_DIFFERENCE} is expected: the network does not survive float16 '
            'weights or the exporter changed it'
        )


def _segmentation(config: TrainingConfig, classes: list[ClassSpec]) -> SegmentationSpec | None:
    return SegmentationSpec(classes=tuple(classes)) if 'segmentation' in config.tasks else None


def named_classes(settings: NetworkSettings) -> list[ClassSpec]:
    """Return NYUv2's classes and colours, or the configuration's names with colours of a wheel."""
    return coloured(settings.classes) if settings.classes else nyu13_classes()


def coloured(names: Sequence[str]) -> list[ClassSpec]:
    """Give classes colours: NYUv2's where they are named like its, else far from each other."""
    known = {spec.name: spec for spec in nyu13_classes()}
    return [
        known.get(name) or ClassSpec(name=name, color=_colour_of(index))
        for index, name in enumerate(names)
    ]


def _colour_of(index: int) -> tuple[int, int, int]:
    # Steps of the golden ratio around the colour wheel never come close to an earlier one.
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.65, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def _detection(config: TrainingConfig) -> DetectionSpec | None:
    if 'detection' not in config.tasks:
        return None
    settings = config.network
    return DetectionSpec(
        classes=tuple(coloured(settings.box_classes)), max_boxes=settings.max_boxes
    )


def _classification(config: TrainingConfig) -> ClassificationSpec | None:
    if 'classification' not in config.tasks:
        return None
    return ClassificationSpec(attributes=config.network.attributes)


def _depth(config: TrainingConfig) -> DepthSpec | None:
    if 'depth' not in config.tasks:
        return None
    return DepthSpec(
        min=config.network.depth_min,
        max=config.network.depth_max,
        focal_length_px=config.data.focal_length_px,
    )


def _normals(config: TrainingConfig) -> NormalsSpec | None:
    if 'normals' not in config.tasks:
        return None
    return NormalsSpec(focal_length_px=config.data.focal_length_px)


def _training(
    config: TrainingConfig,
    checkpoint: Path,
    calibration: Calibration | None,
    parity: Parity,
) -> TrainingSpec:
    stored = load_checkpoint(checkpoint)
    position = stored.values['position']
    recipe = config.model_dump(mode='json', exclude={'data': {'cache'}, 'threads': True})
    judges = recipe['data']['held_out']
    judges = judges if isinstance(judges, list) else [judges]
    for source in (*recipe['data']['sources'], *(judge['source'] for judge in judges)):
        if isinstance(source, dict):
            source.pop('path')
    recipe['steps_done'] = position['step']
    recipe['minutes_done'] = round(position['elapsed_s'] / 60, 1)
    if calibration is not None:
        recipe['calibration'] = asdict(calibration)
    recipe['export_parity'] = asdict(parity)
    learnt_from = lineage.of_checkpoint(stored)
    return TrainingSpec(
        data=learnt_from, licence_remark=lineage.remark(learnt_from), recipe=recipe
    )


def _describe(config: TrainingConfig) -> str:
    return f'{config.network.backbone} with a {config.network.decoder} decoder: ' + ', '.join(
        config.tasks
    )
