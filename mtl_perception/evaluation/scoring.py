"""Turns predictions and truth into figures, frame by frame, in constant memory."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from mtl_perception.bundle import ModelBundle
from mtl_perception.encodings import to_rgb
from mtl_perception.evaluation.histograms import LogHistogram
from mtl_perception.evaluation.temporal import Consistency, Seen, TemporalConsistency
from mtl_perception.evaluation.things import (
    count_answers,
    count_hits,
    things_of,
    unknown_answers,
)
from mtl_perception.frames import Intrinsics, Prediction
from mtl_perception.geometry.normals import normals_from_depth
from mtl_perception.metrics import (
    KEYS_OF_TASK,
    NORMALS_THRESHOLDS_DEG,
    TRUTHS_OF_TASK,
    AttributeLike,
    DepthMetrics,
    MultiTaskMetrics,
    NormalsMetrics,
    SegmentationMetrics,
    angles_between,
)
from mtl_perception.recordings import RecordedFrame

DISTANCE_EDGES_M = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
# Every edge is a whole number of these, so a table tells the band.
_STEPS_A_METRE = 2
_BAND_OF_STEP = np.digitize(
    np.arange(DISTANCE_EDGES_M[-1] * _STEPS_A_METRE + 1) / _STEPS_A_METRE, DISTANCE_EDGES_M[1:]
)
REGIONS = 3
CALIBRATION_BINS = 15
UNSURE_BELOW = 128
COARSE_DEG = 0.01
ANGLE_BINS = 91
_BINS_A_DEGREE = round(1 / COARSE_DEG)
_FINE_BINS = 180 * _BINS_A_DEGREE + 1
# What needs no exact count is taken of a quarter of the pixels.
EVERY_SECOND = (slice(None, None, 2), slice(None, None, 2))
SCALE_RANGE = (1e-2, 1e2)

# What is summed for each (class, distance band, region of the picture).
QUANTITIES = (
    'labelled', 'hits', 'deep', 'abs', 'rel', 'delta1', 'oriented', 'angle', 'within_11_25',
)  # fmt: skip


@dataclass
class Score:
    """Everything that is counted over one or more recordings; merges.

    Attributes:
        metrics: the figures of the contract.
        cells: float64 [quantities, classes + 1, bands + 1, regions]; the last class holds
            unlabelled pixels, the last band pixels without a known distance. Of every second
            row and column.
        confidence: int64 [3, 256]; all pixels, labelled pixels and hits, by confidence.
        aligned: depth after scaling each frame by the median of truth / prediction, of every
            second row and column.
        scales: those factors.
        hits: int64 [3]; right, found and true boxes, as `Hits` has them.
        agreement: angle between predicted normals and those of the predicted depth.
        consistency: method -> float64 [5]; frames, pixels, compared, same label, labelled and
            summed log depth.
        cameras: figures by camera, where a recording has several.
        latency_ms: by stage.
    """

    metrics: MultiTaskMetrics
    cells: np.ndarray
    confidence: np.ndarray = field(default_factory=lambda: np.zeros((3, 256), np.int64))
    aligned: DepthMetrics = field(default_factory=DepthMetrics)
    scales: LogHistogram = field(default_factory=lambda: LogHistogram(*SCALE_RANGE))
    hits: np.ndarray = field(default_factory=lambda: np.zeros(3, np.int64))
    agreement: NormalsMetrics = field(
        default_factory=lambda: NormalsMetrics('predicted depth', COARSE_DEG)
    )
    consistency: dict[str, np.ndarray] = field(
        default_factory=lambda: {m: np.zeros(6) for m in ('poses', 'optical flow')}
    )
    cameras: dict[str, MultiTaskMetrics] = field(default_factory=dict)
    latency_ms: dict[str, LogHistogram] = field(
        default_factory=lambda: {s: LogHistogram() for s in ('prepare', 'infer', 'post', 'total')}
    )

    @classmethod
    def empty(
        cls,
        tasks: Sequence[str],
        class_names: Sequence[str],
        source: str,
        *,
        box_classes: Sequence[str] = (),
        attributes: Sequence[AttributeLike] = (),
    ) -> Score:
        """Return a score of nothing; arguments are those of `MultiTaskMetrics`."""
        shape = (len(QUANTITIES), len(class_names) + 1, len(DISTANCE_EDGES_M) + 1, REGIONS**2)
        metrics = MultiTaskMetrics(
            tasks, class_names, source, box_classes=box_classes, attributes=attributes
        )
        return cls(metrics, np.zeros(shape))

    @classmethod
    def of_bundle(cls, bundle: ModelBundle, source: str = 'none') -> Score:
        """Return a score of nothing for what a bundle computes."""
        return cls.empty(
            bundle.manifest.tasks,
            [spec.name for spec in bundle.classes],
            source,
            box_classes=[spec.name for spec in bundle.box_classes],
            attributes=bundle.attributes,
        )

    def fresh(self) -> Score:
        """Return a score of nothing for the same tasks and classes."""
        return Score.empty(
            tuple(self.metrics.tasks), self.class_names, 'none', **self._vocabulary()
        )

    def _vocabulary(self) -> dict[str, Any]:
        tasks = self.metrics.tasks
        return {
            'box_classes': getattr(tasks.get('detection'), 'class_names', ()),
            'attributes': getattr(tasks.get('classification'), 'attributes', ()),
        }

    def merge(self, other: Score) -> None:
        """Add what `other` has counted."""
        self.metrics.merge(other.metrics)
        self.cells += other.cells
        self.confidence += other.confidence
        self.hits += other.hits
        self.aligned.merge(other.aligned)
        self.scales.merge(other.scales)
        self.agreement.merge(other.agreement)
        for method, sums in other.consistency.items():
            self.consistency[method] += sums
        for camera, metrics in other.cameras.items():
            self.camera(camera).merge(metrics)
        for stage, histogram in other.latency_ms.items():
            self.latency_ms[stage].merge(histogram)

    def camera(self, name: str) -> MultiTaskMetrics:
        """Return the figures of one camera."""
        if name not in self.cameras:
            names = self.class_names
            source = self._normals_source()
            self.cameras[name] = MultiTaskMetrics(
                tuple(self.metrics.tasks),
                names,
                source,
                resolution_deg=COARSE_DEG,
                **self._vocabulary(),
            )
        return self.cameras[name]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty without segmentation."""
        segmentation = self.metrics.tasks.get('segmentation')
        return getattr(segmentation, 'class_names', ())

    def _normals_source(self) -> str:
        return getattr(self.metrics.tasks.get('normals'), 'source', 'unknown')

    def state(self) -> dict[str, np.ndarray]:
        """Return everything as arrays, for a .npz file."""
        parts: dict[str, Mapping[str, np.ndarray]] = {
            'metrics': self.metrics.state(),
            'aligned': self.aligned.state(),
            'agreement': self.agreement.state(),
            'consistency': self.consistency,
            'latency': {stage: h.counts for stage, h in self.latency_ms.items()},
            'own': {
                'cells': self.cells,
                'confidence': self.confidence,
                'hits': self.hits,
                'scales': self.scales.counts,
                'cameras': np.array(json.dumps(sorted(self.cameras))),
            },
        }
        for index, name in enumerate(sorted(self.cameras)):
            parts[f'camera{index}'] = self.cameras[name].state()
        return {f'{part}/{k}': np.asarray(v) for part, d in parts.items() for k, v in d.items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what `state` returned."""
        parts: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
        for key, value in state.items():
            part, _, name = key.partition('/')
            parts[part][name] = value
        self.metrics.load_state(parts['metrics'])
        self.aligned.load_state(parts['aligned'])
        self.agreement.load_state(parts['agreement'])
        self.consistency = dict(parts['consistency'])
        for stage, counts in parts['latency'].items():
            self.latency_ms[stage].counts = counts
        own = parts['own']
        self.cells, self.confidence = own['cells'], own['confidence']
        self.hits = own['hits']
        self.scales.counts = own['scales']
        for index, name in enumerate(json.loads(str(own['cameras']))):
            self.camera(name).load_state(parts[f'camera{index}'])


class Scorer:
    """Scores the frames of one recording.

    Predictions are compared at their own size; truth is brought to it by taking the nearest
    pixel, and normals that were not recorded are derived from recorded depth at that size.

    Args:
        bundle: says which classes and tasks there are.
        sources: of the recording's truths.
        several_cameras: keep figures by camera, too.

    Attributes:
        score: what is counted so far.
        unknown: truth that the bundle has no class for, and how often it came.
    """

    def __init__(
        self, bundle: ModelBundle, sources: Mapping[str, str], several_cameras: bool = False
    ) -> None:
        self._bundle = bundle
        self._classes = tuple(spec.name for spec in bundle.classes)
        self._several_cameras = several_cameras
        self._temporal: dict[str, TemporalConsistency] = defaultdict(TemporalConsistency)
        self.score = Score.of_bundle(bundle, sources.get('normal', 'none'))
        self.unknown: Counter[str] = Counter()

    def add(self, frame: RecordedFrame, prediction: Prediction) -> dict[str, Any]:
        """Score one frame and return its record: plain numbers, ready for JSON.

        `record['counts']` holds what pooled figures can be computed of again.
        """
        size = _size_of(prediction)
        pred, truth = comparable(frame, prediction, self._bundle)
        self.unknown += unknown_answers(frame, self._bundle)
        record: dict[str, Any] = {'id': frame.id, 'camera': frame.camera, 'counts': {}}
        self.score.metrics.frames += 1
        quantities: dict[str, np.ndarray] = {}
        self._segmentation(pred, truth, prediction.confidence, quantities, record)
        self._depth(pred, truth, quantities, record)
        self._normals(pred, truth, quantities, record)
        self._things(pred, truth, record)
        if truth.keys() & {'label', 'depth', 'normal'}:
            self._cells(truth, quantities, size)
        if self._several_cameras:
            self.score.camera(frame.camera).update(pred, truth)
        self._without_truth(frame, prediction, size, record)
        for stage, histogram in self.score.latency_ms.items():
            timings = prediction.timings_ms
            value = sum(timings.values()) if stage == 'total' else timings.get(stage)
            if value is not None and timings:
                histogram.add(value)
        return record

    def _segmentation(
        self,
        pred: Mapping[str, np.ndarray],
        truth: Mapping[str, np.ndarray],
        confidence: np.ndarray | None,
        quantities: dict[str, np.ndarray],
        record: dict[str, Any],
    ) -> None:
        if 'label' not in pred:
            return
        label = pred['label']
        if 'label' not in truth:
            if confidence is not None:
                self.score.confidence[0] += np.bincount(confidence.ravel(), minlength=256)
            return
        frame = SegmentationMetrics(len(self._classes), self._classes)
        frame.update(label, truth['label'])
        self.score.metrics.tasks['segmentation'].merge(frame)
        labelled = truth['label'] < len(self._classes)
        hits = labelled & (label == truth['label'])
        quantities['labelled'], quantities['hits'] = labelled[EVERY_SECOND], hits[EVERY_SECOND]
        if confidence is not None:
            # Other pixels, labelled ones that are wrong and hits in one pass.
            kind = labelled.astype(np.uint16)
            kind += hits
            kind *= 256
            kind += confidence
            other, wrong, right = np.bincount(kind.ravel(), minlength=768).reshape(3, 256)
            self.score.confidence += (other + wrong + right, wrong + right, right)
        figures = frame.compute()
        record['segmentation'] = {k: figures[k] for k in ('miou', 'pixacc')}
        confusion = frame.confusion
        record['counts']['segmentation'] = [
            np.diagonal(confusion).tolist(),
            confusion.sum(axis=1).tolist(),
            confusion[:, :-1].sum(axis=0).tolist(),
        ]

    def _depth(
        self,
        pred: Mapping[str, np.ndarray],
        truth: Mapping[str, np.ndarray],
        quantities: dict[str, np.ndarray],
        record: dict[str, Any],
    ) -> None:
        if 'depth' not in pred or 'depth' not in truth:
            return
        p, t = pred['depth'], truth['depth']
        frame = DepthMetrics()
        frame.update(p, t)
        self.score.metrics.tasks['depth'].merge(frame)
        p, t = p[EVERY_SECOND], t[EVERY_SECOND]
        valid = np.isfinite(t) & (t > 0) & np.isfinite(p) & (p > 0)
        if not valid.any():
            return
        safe = np.where(valid, t, 1)
        error = np.where(valid, np.abs(p - safe), 0)
        ratio = np.where(valid, p, 1) / safe
        quantities |= {
            'deep': valid,
            'abs': error,
            'rel': error / safe,
            'delta1': valid & (np.maximum(ratio, 1 / ratio) < 1.25),
        }
        scale = 1 / float(np.median(ratio[valid]))
        aligned = DepthMetrics()
        aligned.update(p * np.float32(scale), t)
        self.score.aligned.merge(aligned)
        self.score.scales.add(scale)
        figures = frame.compute()
        record['depth'] = {k: figures[k] for k in ('abs_err', 'rel_err', 'rmse', 'delta1')}
        record['depth']['scale'] = scale
        record['depth']['aligned_rel_err'] = aligned.compute()['rel_err']
        record['counts']['depth'] = [frame.counts.tolist(), frame.sums.tolist()]

    def _normals(
        self,
        pred: Mapping[str, np.ndarray],
        truth: Mapping[str, np.ndarray],
        quantities: dict[str, np.ndarray],
        record: dict[str, Any],
    ) -> None:
        if 'normal' not in pred or 'normal' not in truth:
            return
        valid = np.einsum('...i,...i', truth['normal'], truth['normal']) > 0
        every = angles_between(pred['normal'], truth['normal'])
        # A missing prediction is as wrong as can be, as in NormalsMetrics.
        np.copyto(every, 180.0, where=np.isnan(every))
        angles = every.ravel() if valid.all() else every[valid]
        metrics = self.score.metrics.tasks['normals']
        assert isinstance(metrics, NormalsMetrics)
        within = metrics.update_angles(angles)
        if not angles.size:
            return
        oriented, turned = valid[EVERY_SECOND], every[EVERY_SECOND]
        quantities |= {
            'oriented': oriented,
            'angle': np.where(oriented, turned, 0),
            'within_11_25': oriented & (turned < NORMALS_THRESHOLDS_DEG[0]),
        }
        total = float(angles.sum())
        fine = np.bincount((angles / COARSE_DEG).astype(np.int32), minlength=_FINE_BINS)
        middle = np.searchsorted(np.cumsum(fine), (angles.size - 1) // 2, side='right')
        record['normals'] = {
            'mean': total / angles.size,
            'median': (float(middle) + 0.5) * COARSE_DEG,
            **{
                f'{limit:g}': count / angles.size
                for limit, count in zip(NORMALS_THRESHOLDS_DEG, within, strict=True)
            },
        }
        upright = (ANGLE_BINS - 1) * _BINS_A_DEGREE
        degrees = fine[:upright].reshape(-1, _BINS_A_DEGREE).sum(axis=1)
        record['counts']['normals'] = [
            [angles.size, *within],
            total,
            [*degrees.tolist(), int(fine[upright:].sum())],
        ]

    def _things(
        self,
        pred: Mapping[str, np.ndarray],
        truth: Mapping[str, np.ndarray],
        record: dict[str, Any],
    ) -> None:
        metrics = self.score.metrics.tasks
        for task in ('detection', 'classification'):
            values = [
                *(pred.get(key) for key in KEYS_OF_TASK[task]),
                *(truth.get(key) for key in TRUTHS_OF_TASK[task]),
            ]
            if task not in metrics or any(value is None for value in values):
                continue
            metrics[task].update(*values)
            if task == 'detection':
                hits = count_hits(pred, truth)
                record['detection'] = hits.figures()
                counts = [hits.right, hits.found, hits.true]
                self.score.hits += counts
            else:
                counts = count_answers(self._bundle.attributes, *values)
                told = [right / total for right, total in counts if total]
                record['classification'] = {'accuracy': sum(told) / len(told)}
            record['counts'][task] = counts

    def _cells(
        self,
        truth: Mapping[str, np.ndarray],
        quantities: Mapping[str, np.ndarray],
        size: tuple[int, int],
    ) -> None:
        """Sum every quantity over classes, distance bands and regions at once."""
        shape = self.score.cells.shape[1:]
        classes, bands, regions = shape
        cell = _region_of_pixels(size)[EVERY_SECOND]
        if 'depth' in truth:
            depth = truth['depth'][EVERY_SECOND]
            halves = np.clip(depth * np.float32(_STEPS_A_METRE), 0, _BAND_OF_STEP.size - 1)
            band = _BAND_OF_STEP.take(np.nan_to_num(halves).astype(np.intp))
            band[~(depth > 0)] = bands - 1
            cell = cell + band * regions
        else:
            cell = cell + (bands - 1) * regions
        if 'label' in truth:
            label = np.minimum(truth['label'][EVERY_SECOND], classes - 1).astype(np.intp)
        else:
            label = np.full(cell.shape, classes - 1, np.intp)
        cell = (cell + label * (bands * regions)).ravel()
        for name, values in quantities.items():
            sums = np.bincount(cell, values.ravel(), minlength=int(np.prod(shape)))
            self.score.cells[QUANTITIES.index(name)] += sums.reshape(shape)

    def _without_truth(
        self,
        frame: RecordedFrame,
        prediction: Prediction,
        size: tuple[int, int],
        record: dict[str, Any],
    ) -> None:
        """Take the figures that need no truth, on every second row and column."""
        figures: dict[str, Any] = {}
        if prediction.confidence is not None:
            figures['unsure'] = float(np.mean(prediction.confidence < UNSURE_BELOW))
        depth = None if prediction.depth is None else prediction.depth[EVERY_SECOND]
        label = None if prediction.label is None else prediction.label[EVERY_SECOND]
        camera = None
        if prediction.intrinsics is not None:
            camera = _every_second_pixel(prediction.intrinsics)
        if depth is not None and prediction.normal is not None and camera is not None:
            of_depth = normals_from_depth(depth, camera, window=5)
            valid = of_depth.any(axis=-1)
            angles = angles_between(prediction.normal[EVERY_SECOND][valid], of_depth[valid])
            angles = angles[np.isfinite(angles)]
            self.score.agreement.update_angles(angles)
            figures['normals_agreement'] = float(angles.mean()) if angles.size else None
        stamp = frame.frame.stamp_ns
        if stamp and not (depth is None and label is None):
            grey = None
            if frame.pose is None:
                rgb = to_rgb(frame.frame.pixels, frame.frame.encoding)
                half = ((size[1] + 1) // 2, (size[0] + 1) // 2)
                small = cv2.resize(rgb, half, interpolation=cv2.INTER_AREA)
                grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
            seen = Seen(stamp, camera, frame.pose, label, depth, grey)
            compared = self._temporal[frame.camera].add(seen)
            if compared is not None:
                self._consistency(compared, figures)
        record['without_truth'] = figures

    def _consistency(self, compared: Consistency, figures: dict[str, Any]) -> None:
        self.score.consistency[compared.method] += (
            1,
            compared.pixels,
            compared.compared,
            compared.same_label,
            compared.labelled,
            compared.log_depth,
        )
        if compared.labelled:
            figures['same_label'] = compared.same_label / compared.labelled
        if compared.compared:
            figures['depth_change'] = compared.log_depth / compared.compared


def truth_for(
    frame: RecordedFrame, prediction: Prediction, tasks: Collection[str]
) -> dict[str, np.ndarray]:
    """Return a frame's truth at the prediction's size: 'label', 'depth' and 'normal'.

    Values are those of the nearest stored pixels. Normals that were not recorded are derived from
    recorded depth at this size, if the camera is known: another focal length tilts every surface.
    """
    size, camera = _size_of(prediction), prediction.intrinsics
    truth = {name: stored.at(*size) for name, stored in frame.truth.items()}
    if 'normals' in tasks and 'normal' not in truth and 'depth' in truth and camera is not None:
        truth['normal'] = normals_from_depth(truth['depth'], camera)
    return truth


def comparable(
    frame: RecordedFrame, prediction: Prediction, bundle: ModelBundle
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return a prediction and its truth at one size, with the keys of `MultiTaskMetrics`."""
    pred, truth = things_of(frame, prediction, bundle)
    for name in ('label', 'depth', 'normal'):
        values = getattr(prediction, name)
        if values is not None:
            pred[name] = values
    return pred, truth | truth_for(frame, prediction, bundle.manifest.tasks)


def _size_of(prediction: Prediction) -> tuple[int, int]:
    if prediction.size is None:
        raise ValueError('a prediction without any output cannot be scored')
    return prediction.size


def _every_second_pixel(camera: Intrinsics) -> Intrinsics:
    """Return the camera of picture[::2, ::2], whose first pixel stays where it is."""
    return Intrinsics(
        (camera.width + 1) // 2,
        (camera.height + 1) // 2,
        camera.fx / 2,
        camera.fy / 2,
        camera.cx / 2,
        camera.cy / 2,
    )


def _region_of_pixels(size: tuple[int, int]) -> np.ndarray:
    """Return the number of each pixel's ninth of the picture, row by row, intp [H, W]."""
    rows = np.arange(size[0]) * REGIONS // size[0]
    columns = np.arange(size[1]) * REGIONS // size[1]
    return rows[:, None] * REGIONS + columns[None, :]
