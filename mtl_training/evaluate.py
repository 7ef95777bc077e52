"""Figures of a network on labelled frames: quickly during training, by contract afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mtl_perception.bundle import ModelBundle
from mtl_perception.datasets import IGNORE, DatasetError
from mtl_perception.engines import check_unchanged, identify, open_engine
from mtl_perception.evaluation.scoring import comparable
from mtl_perception.metrics import MultiTaskMetrics
from mtl_perception.perceiver import Perceiver
from mtl_perception.recordings import open_recording
from mtl_training.config import TrainingConfig
from mtl_training.data import vocabulary_of
from mtl_training.datasets.arrays import MILLIMETRES, NORMAL_SCALE, ArrayFrame
from mtl_training.datasets.mixtures import Frames
from mtl_training.networks.heads import class_scores, decode_boxes

if TYPE_CHECKING:
    from mtl_training.networks import MultiTaskNetwork

Progress = Callable[[Iterable[int], int, str], Iterable[int]]


@torch.inference_mode()
def predictions(
    network: MultiTaskNetwork,
    frames: Frames,
    *,
    focal_length: float,
    precision: str,
) -> Iterator[tuple[ArrayFrame, dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Run a network on whole prepared frames; it is left in evaluation mode.

    Yields:
        The frame, the prediction and the truth, both with the keys of `MultiTaskMetrics` as far as
        the network has the task and the frame its truth; depth in metres, boxes in pixels.
    """
    network.eval()
    device = next(network.parameters()).device
    for position in range(len(frames)):
        frame = frames.read(position)
        image = torch.from_numpy(np.array(frame.image)).permute(2, 0, 1)[None].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == 'bfloat16'):
            outputs = {name: output.cpu() for name, output in network(image).items()}
        scale = frame.intrinsics.fx / focal_length
        pred: dict[str, np.ndarray] = {}
        if 'segmentation' in outputs:
            pred['label'] = outputs['segmentation'][0].argmax(0).numpy()
        if 'depth' in outputs:
            pred['depth'] = outputs['depth'][0, 0].numpy() * scale
        if 'normals' in outputs:
            normal = outputs['normals'][0].permute(1, 2, 0).numpy()
            pred['normal'] = normal * np.array([1, 1, 1 / scale], np.float32)
        truth: dict[str, np.ndarray] = {
            'label': frame.label,
            'depth': frame.depth.astype(np.float32) / np.float32(MILLIMETRES),
            'normal': frame.normal.astype(np.float32) / np.float32(NORMAL_SCALE),
        }
        if 'detection' in outputs:
            found = decode_boxes(outputs['detection'], network.config.max_boxes)
            boxes, scores, labels = (values[0].numpy() for values in found)
            # What nobody looked for is neither right nor wrong.
            judged = (labels >= 0) & np.append(frame.boxes_known, False)[labels]
            pred |= {
                'boxes': boxes[judged],
                'box_scores': scores[judged],
                'box_labels': labels[judged],
            }
            if frame.boxes_known.any():
                truth |= {'boxes': frame.boxes, 'box_labels': frame.box_labels}
        if 'classification' in outputs:
            logits = outputs['classification']
            pred['class_scores'] = class_scores(logits, network.config.attributes)[0].numpy()
            if (frame.attributes >= 0).any():
                truth['class_targets'] = frame.attributes
        yield frame, pred, truth


def measure_network(
    network: MultiTaskNetwork, frames: Frames, config: TrainingConfig
) -> dict[str, Any]:
    """Measure a network on whole prepared frames; the network is left in evaluation mode."""
    settings = config.network
    vocabulary = vocabulary_of(settings)
    metrics = MultiTaskMetrics(
        config.tasks,
        vocabulary.classes or [str(k) for k in range(settings.num_classes)],
        frames.normals_source,
        resolution_deg=0.01,
        box_classes=settings.box_classes,
        attributes=settings.attributes,
    )
    for _, pred, truth in predictions(
        network,
        frames,
        focal_length=config.data.focal_length_px,
        precision=config.precision,
    ):
        metrics.update(pred, truth)
    return metrics.compute()


def evaluate_bundle(
    bundle: ModelBundle,
    data: Path,
    split: str,
    *,
    engine: str = 'auto',
    precision: str = 'float32',
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a bundle on a raw picture folder, through the robot's own perceiver.

    Args:
        bundle: what is measured.
        data: folder with `{split}/{rgb,depth,label13[,normal][,scenes]}`; nothing is written
            into it.
        split: folder of the data.
        engine: 'auto', 'openvino', 'onnxruntime', ...
        precision: of the engine's arithmetic.
        threads: of the engine; 0 lets it choose.
        progress: wraps the frames' indices.

    Raises:
        DatasetError, BundleError, EngineError: With a sentence that says what to do.
    """
    recording = open_recording(data, split, num_classes=len(bundle.classes) or IGNORE)
    metrics = MultiTaskMetrics(
        bundle.manifest.tasks,
        [spec.name for spec in bundle.classes],
        recording.sources.get('normal', 'none'),
        box_classes=[spec.name for spec in bundle.box_classes],
        attributes=bundle.attributes,
    )
    runner = open_engine(bundle, engine, precision=precision, threads=threads)
    began_on = identify(runner)
    try:
        perceiver = Perceiver(runner, bundle)
        indices: Iterable[int] = range(len(recording))
        if progress is not None:
            indices = progress(indices, len(recording), 'evaluating')
        for frame, _ in zip(recording.frames(), indices, strict=False):
            metrics.update(*comparable(frame, perceiver.perceive(frame.frame), bundle))
        check_unchanged(runner, began_on)
    finally:
        runner.close()
    if recording.skipped:
        raise DatasetError('; '.join(recording.remarks))
    return metrics.compute()
