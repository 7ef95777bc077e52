"""The figures of an evaluation as one JSON document, and its schema."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from mtl_perception.evaluation.scoring import (
    CALIBRATION_BINS,
    DISTANCE_EDGES_M,
    QUANTITIES,
    REGIONS,
    UNSURE_BELOW,
    Score,
)
from mtl_perception.evaluation.things import SAME_THING_IOU, SURE_SCORE, Hits

FORMAT = 1
SCHEMA_PATH = Path(__file__).with_name('results.schema.json')
EXPLAINED = {
    'unsure': 'share of pixels whose confidence (softmax maximum) is below one half',
    'normals_agreement': 'angle between the predicted normals and those of planes fitted to the '
    'predicted depth, degrees: whether both heads say the same of a surface, not whether it is so',
    'temporal.poses': 'each frame reprojected into the one before with recorded poses and '
    'predicted depth; compared are pixels whose two depths agree within a quarter',
    'temporal.optical flow': 'each frame compared with the one before along optical flow; change '
    "of depth by the camera's own motion is not taken out",
}


def figures(score: Score) -> dict[str, Any]:
    """Return the figures of a score, JSON-ready: None where there is nothing to say."""
    document = score.metrics.compute()
    names = score.class_names
    if names:
        confusion = score.metrics.tasks['segmentation'].confusion  # type: ignore[union-attr]
        document['confusion'] = {
            'classes': list(names),
            'columns': [*names, 'none'],
            'matrix': confusion.tolist(),
        }
        document['calibration'] = calibration(score.confidence)
    detection = score.metrics.tasks.get('detection')
    if detection is not None:
        document['detection'] |= {
            **Hits(*(int(count) for count in score.hits)).figures(),
            'at': {'score': SURE_SCORE, 'iou': SAME_THING_IOU},
            'curves': detection.precision_recall(),
        }
    document['by_class'] = {
        name: _cell_figures(score.cells[:, index].sum(axis=(1, 2)))
        for index, name in enumerate(names)
    }
    edges = (*DISTANCE_EDGES_M, None)
    document['by_distance'] = [
        {
            'from_m': edges[band],
            'to_m': edges[band + 1],
            **_cell_figures(score.cells[:, :, band].sum(axis=(1, 2))),
        }
        for band in range(len(DISTANCE_EDGES_M))
    ]
    document['by_region'] = [
        {
            'row': index // REGIONS,
            'column': index % REGIONS,
            **_cell_figures(score.cells[..., index].sum(axis=(1, 2))),
        }
        for index in range(REGIONS**2)
    ]
    aligned = score.aligned.compute()
    document['scale_aligned_depth'] = {
        'method': 'each frame multiplied by the median of truth / prediction; of every second '
        'row and column',
        **aligned,
        'scale': {f'p{p}': score.scales.percentile(p) for p in (10, 50, 90)},
    }
    document['without_truth'] = _without_truth(score)
    if score.cameras:
        document['cameras'] = {name: m.compute() for name, m in sorted(score.cameras.items())}
    return document


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None


def _cell_figures(sums: np.ndarray) -> dict[str, Any]:
    """Return the figures of some cells' pixels."""
    s = dict(zip(QUANTITIES, (float(value) for value in sums), strict=True))
    return {
        'pixacc': _share(s['hits'], s['labelled']),
        'abs_err': _share(s['abs'], s['deep']),
        'rel_err': _share(s['rel'], s['deep']),
        'delta1': _share(s['delta1'], s['deep']),
        'normals_mean': _share(s['angle'], s['oriented']),
        'normals_11.25': _share(s['within_11_25'], s['oriented']),
        'pixels': {
            'segmentation': int(s['labelled']),
            'depth': int(s['deep']),
            'normals': int(s['oriented']),
        },
    }


def calibration(confidence: np.ndarray) -> dict[str, Any]:
    """Return ECE (Guo et al. 2017) over equal bins, and the bins.

    Args:
        confidence: int64 [3, 256]; all pixels, labelled pixels and hits, by confidence x 255.
    """
    levels = np.arange(256) / 255
    place = np.minimum((levels * CALIBRATION_BINS).astype(np.intp), CALIBRATION_BINS - 1)
    _, labelled, hits = confidence
    total = int(labelled.sum())
    bins, ece, mce = [], 0.0, 0.0
    for index in range(CALIBRATION_BINS):
        inside = place == index
        pixels = int(labelled[inside].sum())
        mean = _share(float((levels * labelled)[inside].sum()), pixels)
        accuracy = _share(float(hits[inside].sum()), pixels)
        if mean is not None and accuracy is not None:
            gap = abs(mean - accuracy)
            ece += gap * pixels / total
            mce = max(mce, gap)
        bins.append(
            {
                'from': index / CALIBRATION_BINS,
                'to': (index + 1) / CALIBRATION_BINS,
                'pixels': pixels,
                'confidence': mean,
                'accuracy': accuracy,
            }
        )
    known = total > 0
    return {'ece': ece if known else None, 'mce': mce if known else None, 'bins': bins}


def _without_truth(score: Score) -> dict[str, Any]:
    everything = score.confidence[0]
    temporal = {}
    for method, sums in score.consistency.items():
        frames, pixels, compared, same, labelled, log_depth = (float(value) for value in sums)
        if frames:
            temporal[method] = {
                'frames': int(frames),
                'same_label': _share(same, labelled),
                'depth_change': _share(log_depth, compared),
                'compared': _share(compared, pixels),
            }
    agreement = score.agreement.compute()
    agreement.pop('source')
    return {
        'unsure': _share(float(everything[:UNSURE_BELOW].sum()), float(everything.sum())),
        'normals_agreement': agreement,
        'temporal': temporal,
        'explained': EXPLAINED,
    }


@contextmanager
def atomic(path: Path, mode: str = 'w') -> Any:
    """Open a file that appears at `path` only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        encoding = None if 'b' in mode else 'utf-8'
        with os.fdopen(handle, mode, encoding=encoding) as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(
    results: Mapping[str, Any], frames: Iterable[Mapping[str, Any]], file: IO[str]
) -> None:
    """Write a results document; `frames` are written one by one as `per_frame`."""
    text = json.dumps(results, indent=1, allow_nan=False)
    file.write(text.removesuffix('\n}') + ',\n "per_frame": [')
    separator = '\n  '
    for record in frames:
        file.write(separator + json.dumps(record, allow_nan=False, separators=(',', ':')))
        separator = ',\n  '
    file.write('\n ]\n}\n')


def read_json(path: str | Path) -> dict[str, Any]:
    """Return a results document.

    Raises:
        ValueError: no such document; says what is wrong.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f'{path} cannot be read as JSON ({error}): give a file that '
                         '`mtl-perception evaluate --json` wrote') from error  # fmt: skip
    if not isinstance(document, dict) or document.get('format') != FORMAT:
        raise ValueError(
            f'{path} is no evaluation of format {FORMAT}: give a file that '
            '`mtl-perception evaluate --json` wrote'
        )
    return document
