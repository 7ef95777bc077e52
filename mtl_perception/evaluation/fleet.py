"""Many recordings: in this process, in several, or on a Ray cluster; all with one result.

Every recording becomes one shard, written at once when it is complete. What was evaluated before
with the same bundle, settings and files is not evaluated again, so a run that was stopped goes on.
"""

from __future__ import annotations

import multiprocessing
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mtl_perception.bundle import ModelBundle
from mtl_perception.evaluation.run import Settings, evaluate_recording, fingerprint
from mtl_perception.evaluation.shards import SUFFIX, Shard
from mtl_perception.perceiver import Perceiver

ATTEMPTS = 3


@dataclass(frozen=True)
class Job:
    """One recording to evaluate; plain data.

    Attributes:
        path: of the recording.
        name: in the results.
        target: the shard's file.
    """

    path: Path
    name: str
    target: Path


@dataclass(frozen=True)
class Outcome:
    """How a job ended: `reason` is None when its shard is there."""

    job: Job
    reason: str | None = None
    frames: int = 0


def make_jobs(recordings: Sequence[Path], root: Path, folder: Path) -> list[Job]:
    """Return a job for each recording, named by its path below `root`."""
    jobs = []
    for path in sorted(recordings):
        name = path.name if path == root else str(path.relative_to(root))
        file = re.sub(r'[^\w.-]+', '__', name)
        jobs.append(Job(path, name, folder / f'{file}{SUFFIX}'))
    return jobs


def unfinished(jobs: Sequence[Job], settings: Settings) -> list[Job]:
    """Return the jobs whose shard is absent or was made of something else."""
    bundle = ModelBundle.load(settings.bundle)

    def is_done(job: Job) -> bool:
        info = Shard(job.target).info()
        return info is not None and info['fingerprint'] == fingerprint(job.path, settings, bundle)

    return [job for job in jobs if not is_done(job)]


@lru_cache(maxsize=1)
def _perceiver(settings: Settings) -> Perceiver:
    """Open the engine once for each process."""
    return settings.open()


def work(job: Job, settings: Settings) -> Outcome:
    """Do one job in this process; a recording that cannot be evaluated is an outcome, no error."""
    perceiver = _perceiver(settings)
    try:
        shard = evaluate_recording(job.path, settings, perceiver, job.target, name=job.name)
    except Exception as error:  # whatever one recording holds, the others are evaluated
        job.target.unlink(missing_ok=True)
        named = '' if isinstance(error, (ValueError, OSError)) else f'{type(error).__name__}: '
        return Outcome(job, reason=f'{named}{error}')
    info = shard.info()
    return Outcome(job, frames=info['recording']['frames'] if info else 0)


def run_serially(jobs: Sequence[Job], settings: Settings) -> Iterator[Outcome]:
    """Do the jobs one after the other in this process."""
    for job in jobs:
        yield work(job, settings)


def run_in_processes(
    jobs: Sequence[Job],
    settings: Settings,
    workers: int,
    do: Callable[[Job, Settings], Outcome] = work,
) -> Iterator[Outcome]:
    """Do the jobs in `workers` processes; those of a process that dies are done again."""
    left = list(jobs)
    context = multiprocessing.get_context('spawn')
    for _ in range(ATTEMPTS):
        done: set[Path] = set()
        try:
            with ProcessPoolExecutor(min(workers, len(left)), mp_context=context) as pool:
                futures = [pool.submit(do, job, settings) for job in left]
                for future in as_completed(futures):
                    outcome = future.result()
                    done.add(outcome.job.target)
                    yield outcome
        except BrokenProcessPool:
            pass
        left = [job for job in left if job.target not in done]
        if not left:
            return
    for job in left:
        yield Outcome(job, reason=f'{job.path}: its worker died {ATTEMPTS} times')


def _work_remotely(job: Job, settings: Settings) -> tuple[Outcome, bytes | None]:
    """Do a job where no folder is shared with the caller: the shard travels back as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / job.target.name
        outcome = replace(work(replace(job, target=target), settings), job=job)
        return outcome, target.read_bytes() if outcome.reason is None else None


def run_on_ray(jobs: Sequence[Job], settings: Settings, address: str) -> Iterator[Outcome]:
    """Do the jobs on a Ray cluster; those of a worker or node that dies are done again.

    Recordings and bundle must be found under the same paths on every node.

    Raises:
        ValueError: ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ValueError(
            'ray is not installed: `pip install ray` on every machine of the cluster'
        ) from None
    from mtl_perception.evaluation.results import atomic

    ray.init(address=address, log_to_driver=False, logging_level='error')
    try:
        remote: Any = ray.remote(_work_remotely).options(max_retries=-1)
        waiting = [remote.remote(job, settings) for job in jobs]
        while waiting:
            ready, waiting = ray.wait(waiting, num_returns=1)
            outcome, shard = ray.get(ready[0])
            if shard is not None:
                with atomic(outcome.job.target, 'wb') as file:
                    file.write(shard)
            yield outcome
    finally:
        ray.shutdown()


def evaluate_fleet(
    jobs: Sequence[Job],
    settings: Settings,
    *,
    workers: int = 1,
    ray_address: str | None = None,
    progress: Callable[[Outcome], None] | None = None,
) -> tuple[list[Shard], list[tuple[Path, str]]]:
    """Do all jobs that are not done yet.

    Returns:
        The shards in the jobs' order whatever ran first, and the recordings that failed with the
        reason.
    """
    left = unfinished(jobs, settings)
    if ray_address is not None:
        outcomes = run_on_ray(left, settings, ray_address)
    elif workers > 1 and len(left) > 1:
        outcomes = run_in_processes(left, settings, workers)
    else:
        outcomes = run_serially(left, settings)
    reasons: dict[Path, str] = {}
    for outcome in outcomes:
        if outcome.reason is not None:
            reasons[outcome.job.path] = outcome.reason
        if progress is not None:
            progress(outcome)
    shards = [Shard(job.target) for job in jobs if job.path not in reasons]
    return shards, [(job.path, reasons[job.path]) for job in jobs if job.path in reasons]
