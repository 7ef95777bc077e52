"""What `mtl-perception evaluate` does, apart from reading its command line."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mtl_perception.bundle import ModelBundle
from mtl_perception.evaluation import tables
from mtl_perception.evaluation.compare import Comparison, Condition, compare, flat_figures
from mtl_perception.evaluation.fleet import Outcome, evaluate_fleet, make_jobs
from mtl_perception.evaluation.report import write_comparison, write_report
from mtl_perception.evaluation.results import atomic, read_json, write_json
from mtl_perception.evaluation.run import (
    Evaluation,
    EvaluationError,
    Settings,
    combine,
    evaluate_recording,
)
from mtl_perception.evaluation.shards import SUFFIX
from mtl_perception.recordings import find_recordings

EXIT_OK, EXIT_CONDITION, EXIT_ERROR = 0, 1, 2


@dataclass(frozen=True)
class Outputs:
    """What to write.

    Attributes:
        json: results document; '-' is stdout.
        report: HTML file.
        record: bag file with the predictions.
        results: folder of per-recording results, which a later run goes on from.
        quiet: print neither progress nor tables.
    """

    json: str | None = None
    report: Path | None = None
    record: Path | None = None
    results: Path | None = None
    quiet: bool = False

    @property
    def to_stderr(self) -> bool:
        """Whether stdout belongs to JSON."""
        return self.json == '-'


def evaluate(
    path: Path,
    settings: Settings,
    outputs: Outputs,
    *,
    workers: int = 1,
    ray_address: str | None = None,
    fail_if: Sequence[str] = (),
    live: Mapping[str, Any] | None = None,
) -> int:
    """Evaluate a recording, or all below a folder; return the exit code.

    `live` is what a replay through the real node has shown; it goes into the results as it is.

    Raises:
        ValueError: nothing could be evaluated, or a condition or option makes no sense.
    """
    conditions = [Condition.parse(text) for text in fail_if]
    recordings = find_recordings(path)
    if outputs.record is not None and len(recordings) > 1:
        raise ValueError(f'{path} holds {len(recordings)} recordings: record one at a time')
    started = time.perf_counter()
    bundle = ModelBundle.load(settings.bundle)
    with tempfile.TemporaryDirectory() as temporary:
        alone = len(recordings) == 1 and ray_address is None and outputs.results is None
        if alone:
            evaluation = _evaluate_one(recordings[0], settings, outputs, bundle, Path(temporary))
        else:
            folder = outputs.results or Path(temporary)
            jobs = make_jobs(recordings, path, folder)
            with _progress(outputs, path.name, len(jobs)) as advance:
                shards, failed = evaluate_fleet(
                    jobs,
                    settings,
                    workers=workers,
                    ray_address=ray_address,
                    progress=lambda outcome: advance(_describe(outcome)),
                )
            evaluation = combine(shards, bundle, failed, time.perf_counter() - started)
        if live is not None:
            evaluation.results['live'] = dict(live)
        _write(evaluation, outputs, bundle)
        if not outputs.quiet:
            tables.show(tables.results_table(evaluation.results), to_stderr=outputs.to_stderr)
    return _check(conditions, flat_figures(evaluation.results), outputs)


def _evaluate_one(
    path: Path, settings: Settings, outputs: Outputs, bundle: ModelBundle, folder: Path
) -> Evaluation:
    perceiver = settings.open()
    try:
        with _progress(outputs, path.name) as advance:
            shard = evaluate_recording(
                path,
                settings,
                perceiver,
                folder / f'recording{SUFFIX}',
                record=outputs.record,
                progress=lambda done, total: advance('', done, total),
            )
    finally:
        perceiver.close()
    return combine([shard], bundle)


def _describe(outcome: Outcome) -> str:
    return f'{outcome.job.name}: {outcome.reason or f"{outcome.frames} frames"}'


def _write(evaluation: Evaluation, outputs: Outputs, bundle: ModelBundle) -> None:
    if outputs.json is not None:
        with _json_file(outputs.json) as file:
            write_json(evaluation.results, evaluation.timeless_frames(), file)
    if outputs.report is not None:
        write_report(
            evaluation.results,
            outputs.report,
            frames=evaluation.frames(),
            gallery=evaluation.gallery(),
            classes=bundle.classes,
            box_classes=bundle.box_classes,
        )


@contextmanager
def _json_file(target: str) -> Iterator[IO[str]]:
    if target == '-':
        yield sys.stdout
    else:
        with atomic(Path(target)) as file:
            yield file


def compare_files(
    paths: Sequence[Path], outputs: Outputs, fail_if: Sequence[str] = (), *, block: int = 0
) -> int:
    """Compare the first results with each of the others; return the exit code.

    Conditions are about differences, second minus first; one that holds for any file fails.
    `block` is that of `compare.compare`.

    Raises:
        ValueError: fewer than two files, files that are no results, or a condition that makes
            no sense.
    """
    if len(paths) < 2:
        raise ValueError('compare needs two or more JSON files of `mtl-perception evaluate`')
    conditions = [Condition.parse(text) for text in fail_if]
    documents = [read_json(path) for path in paths]
    comparisons = [compare(documents[0], other, block=block) for other in documents[1:]]
    names = _names(paths)
    code = EXIT_OK
    for name, comparison in zip(names[1:], comparisons, strict=True):
        if not outputs.quiet:
            table = tables.comparison_table(comparison, (names[0], name))
            tables.show(table, to_stderr=outputs.to_stderr)
        changes = {d.name: d.change for d in comparison.differences}
        code = max(code, _check(conditions, changes, outputs))
    if outputs.json is not None:
        with _json_file(outputs.json) as file:
            json.dump(_comparison_document(names, comparisons), file, indent=1, allow_nan=False)
            file.write('\n')
    if outputs.report is not None:
        write_comparison(names, documents, comparisons, outputs.report)
    return code


def _names(paths: Sequence[Path]) -> list[str]:
    """Return file names, with their folders where they would be the same."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


def _comparison_document(
    names: Sequence[str], comparisons: Sequence[Comparison]
) -> dict[str, Any]:
    return {
        'format': 1,
        'first': names[0],
        'comparisons': [
            {
                'second': name,
                'paired_frames': c.paired,
                'only_first': c.only_first,
                'only_second': c.only_second,
                'block_frames': c.block,
                'blocks': c.blocks,
                'remarks': list(c.remarks),
                'figures': {
                    d.name: {
                        'first': d.first,
                        'second': d.second,
                        'change': d.change,
                        'low': d.low,
                        'high': d.high,
                        'verdict': d.verdict,
                    }
                    for d in c.differences
                },
            }
            for name, c in zip(names[1:], comparisons, strict=True)
        ],
    }


def _check(conditions: Sequence[Condition], values: dict[str, float], outputs: Outputs) -> int:
    holding = [
        f'{condition} ({values[condition.figure]:.4g})'
        for condition in conditions
        if condition.holds(values)
    ]
    if not holding:
        return EXIT_OK
    tables.show(tables.failures(holding), to_stderr=True)
    return EXIT_CONDITION


@contextmanager
def _progress(outputs: Outputs, title: str, total: int | None = None) -> Iterator[Any]:
    """Yield a function (line, done, total) that advances a bar on stderr."""
    console = Console(stderr=True, quiet=outputs.quiet, highlight=False)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=outputs.quiet) as bar:
        task = bar.add_task('', total=total)

        def advance(line: str, done: int | None = None, total: int | None = None) -> None:
            if line:
                console.print(line)
            if done is None:
                bar.advance(task)
            else:
                bar.update(task, completed=done, total=total)

        yield advance


__all__ = [
    'EXIT_CONDITION',
    'EXIT_ERROR',
    'EXIT_OK',
    'EvaluationError',
    'Outputs',
    'compare_files',
    'evaluate',
]
