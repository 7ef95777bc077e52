"""The gate: an engine of lower precision is used only where its outputs are float32's own.

Each head is compared on real pictures with what the bundle's graph gives in float32. A precision
that does not pass gives way to the next safer one, and the report says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from ..geometry.boxes import overlap
from ..metrics import SegmentationMetrics
from .precision import (
    HALF_MAX,
    HalfGraph,
    load_graph,
    nodes_of_head,
    to_half,
    with_magnitudes,
    with_rounding,
)

_SURE_SCORE = 0.5
_SAME_BOX_IOU = 0.9

Runner = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Takes uint8 [1, H, W, 3], returns the bundle's outputs as far as the network has them."""


@dataclass(frozen=True)
class Limits:
    """What a lower precision may change.

    Attributes:
        label_agreement: least share of pixels with float32's label (float16).
        label_miou: least mIoU of the labels against float32's (int8).
        confidence: largest mean difference of the confidence, which runs from 0 to 1.
        depth_relative: largest median of |depth - float32's| / float32's.
        depth_relative_p99: the same for the 99th percentile.
        normal_deg: largest mean angle to float32's normal.
        boxes_found: least share of float32's sure boxes (score 0.5 or more) that are found with
            the same class and an intersection over union of 0.9, and of sure boxes found that
            are float32's; none of them: nothing is judged.
        class_score: largest difference of a class's score.
    """

    label_agreement: float = 0.995
    label_miou: float = 0.97
    confidence: float = 0.02
    depth_relative: float = 0.01
    depth_relative_p99: float = 0.05
    normal_deg: float = 1.0
    boxes_found: float = 0.98
    class_score: float = 0.05


@dataclass(frozen=True)
class Finding:
    """One figure of a comparison; `head` is the graph's output it belongs to."""

    head: str
    figure: str
    value: float
    limit: float
    passed: bool

    def __str__(self) -> str:
        verdict = 'passed' if self.passed else 'FAILED'
        return f'{self.head}: {self.figure} {self.value:.4g} (limit {self.limit:g}) {verdict}'


@dataclass(frozen=True)
class GateReport:
    """Outcome of a comparison with float32.

    Attributes:
        precision: what was compared.
        method: how the lower precision was computed.
        frames: number of pictures.
        findings: figures of each head.
    """

    precision: str
    method: str
    frames: int
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Tell whether there are figures and every one keeps its limit."""
        return bool(self.findings) and all(finding.passed for finding in self.findings)

    @property
    def failure(self) -> str:
        """Return what speaks against it, in words; nothing where it passed."""
        if not self.findings:
            return 'the frames show nothing to judge by: give others with --frames'
        return '; '.join(str(finding) for finding in self.findings if not finding.passed)

    @property
    def failed_heads(self) -> tuple[str, ...]:
        """Names of the outputs that don't keep their limits."""
        return tuple(dict.fromkeys(f.head for f in self.findings if not f.passed))

    def as_dict(self) -> dict[str, object]:
        """Return the report for JSON; figures that are no number become None."""
        return {
            'precision': self.precision,
            'method': self.method,
            'frames': self.frames,
            'passed': self.passed,
            'findings': [
                {
                    'head': f.head,
                    'figure': f.figure,
                    'value': f.value if np.isfinite(f.value) else None,
                    'limit': f.limit,
                    'passed': f.passed,
                }
                for f in self.findings
            ],
        }

    def __str__(self) -> str:
        head = f'{self.precision} against float32 on {self.frames} frames ({self.method})'
        return '\n'.join([head, *(f'  {line}' for line in self.findings or [self.failure])])


@dataclass(frozen=True)
class Rewritten:
    """A graph that passed, ready for the builder.

    Attributes:
        model: the graph.
        precision: what it computes in: 'float32', 'float16' or 'int8'.
        reports: of every precision tried, the last one is the graph's own.
        remarks: what was kept in higher precision and why, in sentences.
    """

    model: onnx.ModelProto
    precision: str
    reports: tuple[GateReport, ...] = ()
    remarks: tuple[str, ...] = field(default=())


def compare(
    reference: Runner,
    candidate: Runner,
    pictures: Sequence[np.ndarray],
    *,
    precision: str,
    method: str,
    num_classes: int,
    limits: Limits | None = None,
) -> GateReport:
    """Compare two ways of computing a bundle's graph, head by head.

    Args:
        reference: computes in float32.
        candidate: computes in the precision in question.
        pictures: uint8 [H, W, 3] at the network's size; at least one.
        precision: of the candidate; int8 labels are judged by mIoU, others by agreement.
        method: words for the report.
        num_classes: of the segmentation; 0 without.
        limits: what may differ.
    """
    if not pictures:
        raise ValueError('the gate got no pictures: give a recording or folder with frames')
    limits = limits or Limits()
    equal: list[float] = []
    segmentation = SegmentationMetrics(num_classes) if num_classes else None
    relative: list[np.ndarray] = []
    angles: list[float] = []
    confidences: list[float] = []
    boxes: list[tuple[int, int]] = []
    invented: list[tuple[int, int]] = []
    score_differences: list[float] = []
    for picture in pictures:
        batch = picture[None]
        true = {name: array.copy() for name, array in reference(batch).items()}
        found = candidate(batch)
        if 'label' in true and segmentation:
            equal.append(float((found['label'] == true['label']).mean()))
            segmentation.update(found['label'], true['label'])
        if 'confidence' in true:
            apart = found['confidence'].astype(np.float32) - true['confidence']
            confidences.append(float(np.abs(apart).mean()) / 255)
        if 'depth' in true:
            relative.append(_relative(found['depth'], true['depth']))
        if 'normal' in true:
            angles.append(_mean_angle(found['normal'], true['normal']))
        if 'boxes' in true:
            boxes.append(_boxes_found(found, true))
            invented.append(_boxes_found(true, found))
        if 'class_scores' in true:
            score_differences.append(_largest(found['class_scores'], true['class_scores']))
    findings = []
    if equal and precision == 'int8':
        miou = segmentation.compute()['miou']
        miou = np.nan if miou is None else miou
        findings.append(_least('label', 'mIoU', miou, limits.label_miou))
    elif equal:
        share = float(np.mean(equal))
        findings.append(_least('label', 'share of equal pixels', share, limits.label_agreement))
    if confidences:
        findings.append(
            _most('confidence', 'mean difference', float(np.mean(confidences)), limits.confidence)
        )
    if relative:
        median, p99 = np.quantile(np.concatenate(relative), (0.5, 0.99), method='higher')
        findings += [
            _most('depth', 'median relative difference', median, limits.depth_relative),
            _most('depth', '99th percentile relative difference', p99, limits.depth_relative_p99),
        ]
    if angles:
        mean = float(np.mean(angles))
        findings.append(_most('normal', 'mean angle, degrees', mean, limits.normal_deg))
    for figure, counts in (('boxes found', boxes), ("boxes that are float32's", invented)):
        if total := sum(count for _, count in counts):
            share = sum(hits for hits, _ in counts) / total
            findings.append(_least('boxes', f'share of {figure}', share, limits.boxes_found))
    if score_differences:
        worst = max(score_differences)
        findings.append(
            _most('class_scores', 'largest difference of a score', worst, limits.class_score)
        )
    return GateReport(precision, method, len(pictures), tuple(findings))


def rewrite_to_half(
    model: onnx.ModelProto,
    pictures: Sequence[np.ndarray],
    *,
    num_classes: int,
    limits: Limits | None = None,
    convert: Callable[..., HalfGraph] = to_half,
) -> Rewritten:
    """Rewrite a graph to float16 as far as its outputs stay those of float32.

    Nodes whose results leave float16's range on the pictures stay float32. Where a head fails
    the gate, all of that head stays float32; where that is not enough, the whole graph does.

    Args:
        model: the bundle's graph.
        pictures: uint8 [H, W, 3] at the network's size.
        num_classes: of the segmentation; 0 without.
        limits: what may differ.
        convert: the conversion, with the signature of `to_half`.
    """
    model = load_graph(model)
    reference = onnx_runner(model)
    remarks: list[str] = []
    reports: list[GateReport] = []
    keep, remark = nodes_that_overflow(model, pictures, convert)
    remarks += remark
    graph = convert(model, keep_nodes=keep)
    for _ in range(2):
        report = compare(
            reference,
            onnx_runner(with_rounding(graph.model)),
            pictures,
            precision='float16',
            method='every result rounded to half precision, on the CPU',
            num_classes=num_classes,
            limits=limits,
        )
        reports.append(report)
        if report.passed:
            precision = 'float16' if graph.half else 'float32'
            return Rewritten(graph.model, precision, tuple(reports), tuple(remarks))
        outputs = {o.name for o in model.graph.output}
        heads = set(report.failed_heads)
        for together in ({'label', 'confidence'}, {'boxes', 'box_scores', 'box_labels'}):
            if heads & together:
                heads |= together & outputs
        more = _nodes_of_heads(model, heads) - keep
        if not more:
            break
        keep |= more
        remarks.append(f'{", ".join(report.failed_heads)} failed: its head stays float32')
        graph = convert(model, keep_nodes=keep)
    remarks.append('float16 did not pass: the whole graph stays float32')
    return Rewritten(model, 'float32', tuple(reports), tuple(remarks))


def nodes_that_overflow(
    model: onnx.ModelProto,
    pictures: Sequence[np.ndarray],
    convert: Callable[..., HalfGraph] = to_half,
) -> tuple[set[str], list[str]]:
    """Return the nodes that must stay float32 for their range, and a sentence about them."""
    overflowing = find_overflow(model, convert(model, keep_nodes=set()).half_tensors, pictures)
    if not overflowing:
        return set(), []
    # Those that read such a result would get it as infinity.
    keep = {
        node.name for node in model.graph.node if overflowing.keys() & {*node.input, *node.output}
    }
    worst = max(overflowing.values())
    sentence = (
        f'{len(overflowing)} results of up to {worst:.3g} leave the range of float16: '
        'their nodes stay float32'
    )
    return keep, [sentence]


def find_overflow(
    model: onnx.ModelProto, tensors: Sequence[str], pictures: Sequence[np.ndarray]
) -> dict[str, float]:
    """Return the tensors whose float32 magnitude exceeds float16's range, with the magnitude."""
    if not tensors:
        return {}
    run = onnx_runner(with_magnitudes(model, tensors))
    largest: dict[str, float] = {}
    for picture in pictures:
        for name, value in run(picture[None]).items():
            tensor = name.removesuffix('__magnitude')
            largest[tensor] = max(largest.get(tensor, 0.0), float(value))
    return {name: value for name, value in largest.items() if not value <= HALF_MAX}


def onnx_runner(model: onnx.ModelProto) -> Runner:
    """Return a function that runs a graph in ONNX Runtime as it is written, without fusions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # A fusion would compute through the roundings that the gate has put there.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    names = [output.name for output in session.get_outputs()]

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {'image': image}), strict=True))

    return run


def reference_runner(model: onnx.ModelProto) -> Runner:
    """Return a function that runs a graph in onnx.reference: slow, but truly in half."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class GatherElements(OpRun):
        """Onnx's own fails on more than 64 values (numpy.choose takes no more)."""

        def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
            return (
                np.take_along_axis(
                    data, np.where(indices < 0, indices + data.shape[axis], indices), axis
                ),
            )

    evaluator = ReferenceEvaluator(model, new_ops=[GatherElements])
    names = [output.name for output in model.graph.output]

    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(all='ignore'):
            return dict(zip(names, evaluator.run(names, {'image': image}), strict=True))

    return run


def _nodes_of_heads(model: onnx.ModelProto, outputs: set[str]) -> set[str]:
    """Return the nodes that only these outputs depend on, also those they share."""
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    kept = [output for output in model.graph.output if output.name not in outputs]
    joint = onnx.helper.make_tensor_value_info('all of them', onnx.TensorProto.FLOAT, None)
    rest.graph.node.append(onnx.helper.make_node('Sum', sorted(outputs), ['all of them']))
    del rest.graph.output[:]
    rest.graph.output.extend([*kept, joint])
    return set(nodes_of_head(rest, 'all of them'))


def _relative(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return |found - true| / true; what is no number counts as infinitely wrong."""
    with np.errstate(all='ignore'):
        difference = np.abs(found - true) / np.abs(true)
    return np.nan_to_num(difference, nan=np.inf, posinf=np.inf).ravel()


def _mean_angle(found: np.ndarray, true: np.ndarray) -> float:
    """Return the mean angle in degrees; what is no number counts as 180."""
    cosine = np.clip((found * true).sum(-1), -1, 1)
    return float(np.nan_to_num(np.degrees(np.arccos(cosine)), nan=180.0).mean())


def _boxes_found(
    found: Mapping[str, np.ndarray], true: Mapping[str, np.ndarray]
) -> tuple[int, int]:
    """Return how many of one picture's sure true boxes are found, and how many there are.

    Order is no matter: boxes of nearly equal score change places.
    """
    sure = (true['box_scores'][0] >= _SURE_SCORE) & (true['box_labels'][0] >= 0)
    filled = found['box_labels'][0] >= 0
    boxes, labels = found['boxes'][0][filled], found['box_labels'][0][filled]
    hits = 0
    for box, label in zip(true['boxes'][0][sure], true['box_labels'][0][sure], strict=True):
        overlaps = overlap(box[None], boxes[labels == label])
        hits += int((overlaps >= _SAME_BOX_IOU).any())
    return hits, int(sure.sum())


def _largest(found: np.ndarray, true: np.ndarray) -> float:
    """Return the largest difference; what is no number counts as 1."""
    return float(np.nan_to_num(np.abs(found - true), nan=1.0).max())


def _least(head: str, figure: str, value: float, limit: float) -> Finding:
    return Finding(head, figure, float(value), limit, bool(value >= limit))


def _most(head: str, figure: str, value: float, limit: float) -> Finding:
    return Finding(head, figure, float(value), limit, bool(value <= limit))
