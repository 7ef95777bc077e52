"""Evaluates one recording into a shard, and shards into results."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import mtl_perception
from mtl_perception.allocator import keep_freed_memory
from mtl_perception.bundle import ModelBundle
from mtl_perception.datasets import IGNORE
from mtl_perception.encodings import EncodingError
from mtl_perception.engines import check_unchanged, identify, open_engine
from mtl_perception.evaluation.gallery import Gallery, Shown, choose
from mtl_perception.evaluation.pipeline import predict_all
from mtl_perception.evaluation.record import Recorder
from mtl_perception.evaluation.results import FORMAT, figures
from mtl_perception.evaluation.scoring import Score, Scorer
from mtl_perception.evaluation.shards import Shard
from mtl_perception.perceiver import Perceiver
from mtl_perception.recordings import (
    RecordedFrame,
    Recording,
    TopicChoice,
    open_recording,
)

Progress = Callable[[int, int], None]


class EvaluationError(ValueError):
    """Nothing could be evaluated."""


@dataclass(frozen=True)
class Settings:
    """How to evaluate; plain data, so that it can travel to other processes and machines.

    Attributes:
        bundle: path or name.
        engine: see `open_engine`.
        precision: see `open_engine`; float32 makes figures comparable between machines.
        threads: of the engine; 0 leaves it to the runtime.
        gpu_device: number of the GPU for TensorRT.
        split: of labelled folders.
        topics: see `TopicChoice`.
        tolerance_s: see `open_recording`.
        limit: evaluate that many frames of each recording; 0 means all.
        gallery: keep pictures for the report.
        rotate: clockwise turn that makes the pictures upright for the network, as for the node:
            0, 90, 180 or 270 degrees.
        rectify: take the lens distortion out of pictures and truths, as the node's rectify does.
    """

    bundle: str
    engine: str = 'auto'
    precision: str = 'float32'
    threads: int = 0
    gpu_device: int = 0
    split: str | None = None
    topics: TopicChoice = field(default_factory=TopicChoice)
    tolerance_s: float = 0.02
    limit: int = 0
    gallery: bool = True
    rotate: int = 0
    rectify: bool = False

    def open(self) -> Perceiver:
        """Open the engine, ready for the first frame."""
        keep_freed_memory()
        bundle = ModelBundle.load(self.bundle)
        engine = open_engine(
            bundle,
            self.engine,
            precision=self.precision,
            threads=self.threads,
            gpu_device=self.gpu_device,
        )
        return Perceiver(engine, bundle)


def fingerprint(path: Path, settings: Settings, bundle: ModelBundle) -> str:
    """Return what a shard must have been made of to be used again."""
    files = sorted(file for file in (path, *path.rglob('*')) if file.is_file())
    stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    made_of = [asdict(settings), bundle.model_sha256, stats, mtl_perception.__version__]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()


def evaluate_recording(
    source: Path | Recording,
    settings: Settings,
    perceiver: Perceiver,
    target: Path,
    *,
    name: str | None = None,
    record: Path | None = None,
    progress: Progress | None = None,
) -> Shard:
    """Evaluate every frame of a recording, in order.

    Args:
        source: a recording, or where one lies.
        settings: how.
        perceiver: from `settings.open()`.
        target: file to write the shard to, when it is complete.
        name: of the recording in results; its own by default.
        record: bag file to write the predictions to.
        progress: called with frames done and frames announced.

    Raises:
        EvaluationError: not one frame could be evaluated.
        EngineError: another engine took over meanwhile.
        ValueError: the recording cannot be opened.
    """
    started = time.perf_counter()
    engine = identify(perceiver.engine)
    if isinstance(source, Path):
        recording = open_recording(
            source,
            settings.split,
            topics=settings.topics,
            tolerance_s=settings.tolerance_s,
            num_classes=len(perceiver.bundle.classes) or IGNORE,
            rectify=settings.rectify,
        )
    else:
        recording = source
    path = source if isinstance(source, Path) else recording.path
    name = name or recording.name
    bundle = perceiver.bundle
    cameras = {topic for role, topic in recording.topics.items() if role.startswith('image')}
    several = len(cameras) > 1
    scorer = Scorer(bundle, recording.sources, several_cameras=several)
    announced = min(len(recording), settings.limit or len(recording))
    gallery = Gallery(bundle, name, announced, several) if settings.gallery else None

    def refused(frame: RecordedFrame, error: EncodingError) -> None:
        recording.skipped[f'{frame.camera}: pictures that the network cannot take'] += 1
        sentence = f'{frame.camera}: {error}'
        if sentence not in recording.remarks:
            recording.remarks.append(sentence)

    with ExitStack() as stack:
        spool = stack.enter_context(tempfile.NamedTemporaryFile('w', suffix='.jsonl'))
        recorder = stack.enter_context(Recorder(record, bundle)) if record else None
        frames = islice(recording.frames(), settings.limit or None)
        done = 0
        for frame, prediction in predict_all(frames, perceiver, refused, settings.rotate):
            scored = scorer.add(frame, prediction)
            if gallery is not None:
                gallery.add(frame, prediction, scored)
            if recorder is not None:
                recorder.add(frame, prediction)
            scored['times'] = {k: round(v, 3) for k, v in prediction.timings_ms.items()}
            spool.write(json.dumps(scored, allow_nan=False, separators=(',', ':')) + '\n')
            done += 1
            if progress is not None:
                progress(done, max(announced, done))
        if not done:
            reasons = [f'{n} x {reason}' for reason, n in recording.skipped.items()]
            raise EvaluationError(
                f'no frame of {path} could be evaluated: '
                + ('; '.join([*reasons, *recording.remarks]) or 'it holds no pictures')
            )
        check_unchanged(perceiver.engine, engine)
        recording.skipped.update(scorer.unknown)
        spool.flush()
        info = {
            'fingerprint': fingerprint(path, settings, bundle),
            'seconds': time.perf_counter() - started,
            'recording': {
                'name': name,
                'path': str(path),
                'frames': done,
                'topics': recording.topics,
                'sources': recording.sources,
                'skipped': dict(sorted(recording.skipped.items())),
                'remarks': recording.remarks,
            },
            'normals_source': recording.sources.get('normal', 'none'),
            'engine': engine,
        }
        shown = gallery.chosen() if gallery else []
        return Shard.write(target, info, scorer.score, Path(spool.name), shown)


@dataclass(frozen=True)
class Evaluation:
    """Results of one or more recordings.

    Attributes:
        results: the JSON document without its `per_frame`.
        shards: of the recordings, in the order of the document.
    """

    results: dict[str, Any]
    shards: tuple[Shard, ...]

    def frames(self) -> Iterator[dict[str, Any]]:
        """Yield every frame's record with the name of its recording and its times."""
        for index, shard in enumerate(self.shards):
            name = self.results['recordings'][index]['name']
            for record in shard.frames():
                yield {'recording': name, **record}

    def timeless_frames(self) -> Iterator[dict[str, Any]]:
        """Yield the records without what differs from run to run."""
        for record in self.frames():
            record.pop('times', None)
            yield record

    def gallery(self) -> list[tuple[str, Shown]]:
        """Return best, median and worst frames with these words."""
        kept = [
            (shard, shown, place)
            for shard in self.shards
            for place, shown in enumerate(shard.gallery())
        ]
        gallery = []
        for title, index in choose([shown for _, shown, _ in kept]):
            shard, shown, place = kept[index]
            gallery.append((title, shard.with_pictures(shown, place)))
        return gallery


def combine(
    shards: Sequence[Shard],
    bundle: ModelBundle,
    failed: Sequence[tuple[Path, str]] = (),
    seconds: float | None = None,
) -> Evaluation:
    """Put shards together in the given order.

    Raises:
        EvaluationError: there is no shard.
    """
    if not shards:
        reasons = '; '.join(reason for _, reason in failed)
        raise EvaluationError(f'nothing could be evaluated: {reasons or "no recording was found"}')
    score = Score.of_bundle(bundle)
    infos = []
    for shard in shards:
        info = shard.info()
        if info is None:
            raise EvaluationError(f'{shard.path} is damaged: delete it and evaluate again')
        shard.add_to(score)
        infos.append(info)
    own_seconds = sum(info['seconds'] for info in infos)
    results = {
        'format': FORMAT,
        'tool': f'mtl-perception evaluate {mtl_perception.__version__}',
        'bundle': {'name': bundle.name, 'sha256': bundle.model_sha256},
        'engine': infos[0]['engine'],
        **figures(score),
        'recordings': [info['recording'] for info in infos],
        'failed': [{'path': str(path), 'reason': reason} for path, reason in failed],
        'times': {
            'seconds': own_seconds if seconds is None else seconds,
            'frames_per_second': score.metrics.frames / max(own_seconds, 1e-9),
            'latency_ms': {s: h.summary() for s, h in score.latency_ms.items()},
        },
    }
    return Evaluation(results, tuple(shards))
