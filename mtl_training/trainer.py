"""The training loop.

`train` can be read from top to bottom. Everything random is a function of the seed and the step,
so a run of a fixed number of steps that was interrupted and resumed gives the same losses as one
that was not. (Where the schedule is in minutes, rate and picture size follow the clock.)
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtl_training import lineage
from mtl_training.balancing import Balancer, build_balancer
from mtl_training.config import TrainingConfig
from mtl_training.data import open_together, vocabulary_of
from mtl_training.datasets.mixtures import Batch, BatchRequest, Frames, Mixture, batches
from mtl_training.device import autocast, choose_device, to_device
from mtl_training.distillation import Distillation, load_teacher
from mtl_training.ema import MovingAverage
from mtl_training.evaluate import measure_network
from mtl_training.networks import MultiTaskNetwork, build_network
from mtl_training.optimizer import build_optimizer, set_learning_rate
from mtl_training.processes import Processes
from mtl_training.progress import Reporter
from mtl_training.record import Record
from mtl_training.run_state import Position, RunState, network_config
from mtl_training.schedule import Clock
from mtl_training.tasks import Task, build_task

# Figures in 0..1, higher is better, one per task: their mean chooses the checkpoint.
SELECTION = {
    'segmentation': 'miou',
    'depth': 'delta1',
    'normals': '22.5',
    'detection': 'ap',
    'classification': 'accuracy',
}


# A bundle's normalisations take their statistics from so many batches.
UNFOLDING_BATCHES = 24
# Between the seeds of two processes: more than a run has steps.
_APART = 1_000_000_007


class TrainingError(RuntimeError):
    """Training cannot go on; the last good checkpoint is kept."""


def train(
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    start_from: Path | None = None,
    console: Console | None = None,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> dict[str, Any]:
    """Train one network and return its held-out figures, best and last.

    Under torchrun every process calls this; all but the leading one return an empty mapping.

    Args:
        config: the run.
        folder: checkpoints, losses.jsonl, TensorBoard logs and result.json go here.
        resume: go on from `last` in `folder`, which must exist.
        start_from: a checkpoint whose averaged weights are the start, or a bundle (not with
            `resume`). Its tasks may be others: heads that it lacks begin anew, which `console` is
            told.
        console: for the progress bar; None is silent.
        on_evaluation: called with step and score after each held-out evaluation; what it raises
            ends the training.

    Raises:
        TrainingError: A loss or a gradient is not finite, the batch cannot be shared out, or
            `folder` holds a run that was not to be resumed.
        CheckpointError: The checkpoint is of another network or of other settings, or the disk is
            full.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    processes = Processes()
    _refuse_uneven_parts(config, processes)
    console = console if processes.leads else None
    data = open_together(config, console, processes)
    network = build_network(network_config(config.network, config.tasks))
    device = choose_device(config.device)
    network = network.to(device=device, memory_format=torch.channels_last)
    tasks = {name: build_task(name, _task_options(config, name)) for name in config.tasks}
    balancer = build_balancer(
        config.balancing.method, config.tasks, seed=config.seed, **config.balancing.options
    )
    if config.optimizer.accumulate > 1 and not balancer.adds_up:
        raise TrainingError(
            f'balancing by {config.balancing.method} looks at whole batches: set '
            'optimizer.accumulate to 1, or balancing.method to constants'
        )
    parts = nn.ModuleDict({'network': network, 'balancer': balancer})
    distillation = _distillation(config, network)
    if distillation is not None:
        parts['distillation'] = distillation
    parts.to(device)
    optimizer = build_optimizer(parts, config.optimizer)
    average = MovingAverage(network, config.ema_decay) if config.ema_decay else None
    balancer.attach(network, [distillation] if distillation is not None else [])
    mixture = Mixture(
        data.train,
        [source.weight for source in config.data.sources],
        config.batch_size,
        config.data.focal_length_px,
        config.augmentation,
        config.seed,
        processes.rank,
        processes.count,
    )
    learnt_from = lineage.learnt_from(config, [len(part) for part in data.train], start_from)
    state = RunState(folder, config, parts, optimizer, average, learnt_from)
    if resume:
        state.restore()
    elif (folder / 'last.json').exists():
        raise TrainingError(f'{folder} already holds a run: resume it or choose another folder')
    elif start_from is not None:
        new_tasks = state.start_from(start_from, _pictures(mixture, config))
        if new_tasks and console is not None and processes.leads:
            heads = ', '.join(new_tasks)
            console.print(f'{start_from} has no such heads for {heads}: they begin anew')
    processes.share_weights(parts)

    clock = Clock(config.schedule, state.position.elapsed_s)
    forward = torch.compile(network) if config.compile else network
    record = Record(folder, state.position.step) if processes.leads else None
    evaluated = clock.evaluations_due(state.position.step)
    saved_at = clock.elapsed_s
    step = state.position.step
    network.train()

    with Reporter(console, config.name) as reporter, _stop_signals() as stopped:

        def evaluate() -> None:
            if _evaluate(state, data.held_out, step, record, reporter):
                state.save('best', step, clock.elapsed_s, to_resume=False)
            network.train()
            if on_evaluation is not None:
                on_evaluation(step, state.position.evaluations[-1]['score'])

        for batch in batches(mixture, _requests(clock, step), config.workers):
            if clock.finished(step) or processes.any(stopped()):
                break
            # What the network draws (stochastic depth, dropout) is a function of the step, too.
            drawn = config.seed * 1_000_003 + step + processes.rank * _APART
            torch.manual_seed(drawn)
            batch = to_device(batch, device)
            set_learning_rate(optimizer, config.optimizer.lr * clock.learning_rate(step))
            lesson = Lesson(forward, tasks, distillation, batch, config, processes)
            losses, weights = _backward(lesson, network, balancer, step)
            if not balancer.reduces_gradients:
                processes.average_gradients(parts.parameters())
            norm = _clip(parts, config, batch, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if balancer.needs_losses_after_step:
                # The same paths are dropped as before the step, so that only the step changed.
                torch.manual_seed(drawn)
                with torch.no_grad(), _kept_statistics(network):
                    after = lesson.losses(batch)
                    if after:
                        balancer.after_step(after)
            step += 1
            clock.tick(processes.leaders_number)
            if not processes.leads:
                continue

            if average is not None:
                average.update(network, step)
            figures = {f'weight/{task}': weight for task, weight in weights.items()}
            figures['gradient_norm'] = norm
            record.step(step, losses, figures, optimizer.param_groups[0]['lr'])
            reporter.step(step, clock.progress(step), losses, tuple(batch['image'].shape[-2:]))
            if clock.evaluations_due(step) > evaluated:
                evaluated = clock.evaluations_due(step)
                evaluate()
            if clock.elapsed_s - saved_at > 60 * config.schedule.checkpoint_minutes:
                record.flush()
                state.save('last', step, clock.elapsed_s, to_resume=True)
                saved_at = clock.elapsed_s

        result: dict[str, Any] = {}
        if processes.leads:
            record.close()
            if clock.finished(step) and not _evaluated_at(state.position, step):
                evaluate()
            state.save('last', step, clock.elapsed_s, to_resume=True)
            result = _finish(folder, state.position, step, clock)
        processes.wait()
    return result


def _pictures(mixture: Mixture, config: TrainingConfig) -> Iterator[Tensor]:
    """Yield some batches as the end of the training sees them; it misses none for that."""
    stage = config.schedule.stages[-1]
    for step in range(UNFOLDING_BATCHES):
        yield mixture[BatchRequest(step, *stage.view(step))]['image']


@contextmanager
def _kept_statistics(network: nn.Module) -> Iterator[None]:
    """Keep batch norms' running statistics as they are."""
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _distillation(config: TrainingConfig, network: MultiTaskNetwork) -> Distillation | None:
    """Build the losses of the configured teacher."""
    if config.distillation is None:
        return None
    teacher = load_teacher(config.distillation.teacher)
    classes = vocabulary_of(config.network).classes if 'segmentation' in config.tasks else ()
    teacher.refuse_another_view(classes, config.data.focal_length_px)
    options = config.distillation.model_dump(exclude={'teacher'})
    return Distillation(network, teacher, **options)


def _clip(parts: nn.Module, config: TrainingConfig, batch: Batch, step: int) -> float:
    """Clip the gradient's norm, if configured, and return it; refuse one that is not finite."""
    limit = config.optimizer.clip_norm
    norm = nn.utils.clip_grad_norm_(parts.parameters(), math.inf if limit is None else limit)
    if not norm.isfinite():
        raise TrainingError(
            f'the gradient is {norm.item()} at step {step} (frames {", ".join(batch["ids"])}) '
            'though every loss is finite: the last good checkpoint is kept; lower the learning '
            'rate, then resume'
        )
    return norm.item()


def _task_options(config: TrainingConfig, task: str) -> dict[str, Any]:
    options = dict(config.losses.get(task, {}))
    if task == 'segmentation':
        options.setdefault('num_classes', config.network.num_classes)
    elif task == 'detection':
        options.setdefault('num_classes', len(config.network.box_classes))
    elif task == 'classification':
        options.setdefault('attributes', config.network.attributes)
    return options


def _requests(clock: Clock, step: int) -> Iterator[BatchRequest]:
    """Order batches until the training is over; the size is that of the moment of ordering."""
    while not clock.finished(step):
        stage = clock.stage(step)
        yield BatchRequest(step, *stage.view(step))
        step += 1


class Lesson:
    """A batch and what each task's losses are divided by, over all of its parts and processes.

    Args:
        forward: the network, compiled or not.
        tasks: all of the run.
        distillation: of a teacher, if there is one.
        batch: this process's share of the whole batch.
        config: of the run.
        processes: that hold the other shares.
    """

    def __init__(
        self,
        forward: nn.Module,
        tasks: dict[str, Task],
        distillation: Distillation | None,
        batch: Batch,
        config: TrainingConfig,
        processes: Processes,
    ) -> None:
        self.batch = batch
        self.processes = processes
        self._forward, self._tasks, self._distillation = forward, tasks, distillation
        self._config = config
        self._divisors = processes.divisors(tasks, batch)
        self._present = processes.present(tasks, batch)

    def parts(self) -> list[Batch]:
        """Return the parts that are computed one after the other, all of one size."""
        number = self._config.optimizer.accumulate
        if number == 1:
            return [self.batch]
        tensors = {name: v.chunk(number) for name, v in self.batch.items() if name != 'ids'}
        return [{name: parts[i] for name, parts in tensors.items()} for i in range(number)]

    def losses(self, part: Batch) -> dict[str, Tensor]:
        """Run the network; return the losses of the tasks that the batch or a teacher teaches.

        Those of all parts add up to the batch's.
        """
        with autocast(self._config.precision, part['image'].device):
            outputs = self._forward(part['image'])
            taught = {}
            if self._distillation is not None:
                taught = self._distillation(part['image'], outputs)
        # Of the whole batch, times the processes whose gradients are averaged.
        share = len(part['image']) * self.processes.count / self._config.batch_size
        losses = {
            name: self._tasks[name].loss(outputs, part, self._divisors[name])
            for name in self._present
        }
        return {
            name: losses.get(name, 0.0) + share * taught.get(name, 0.0)
            for name in self._tasks
            if name in losses or name in taught
        }


def _backward(
    lesson: Lesson, network: MultiTaskNetwork, balancer: Balancer, step: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Fill the gradients of one optimizer step; return losses and weights of the tasks at hand."""
    totals: dict[str, float] = {}
    weights: dict[str, float] = {}
    for part in lesson.parts():
        losses = lesson.losses(part)
        if not losses:
            continue
        values = lesson.processes.mean({name: loss.item() for name, loss in losses.items()})
        for name, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f'the {name} loss is {value} at step {step} (frames '
                    f'{", ".join(lesson.batch["ids"])}): the last good checkpoint is kept; look '
                    'at these frames, or lower the learning rate, then resume'
                )
            totals[name] = totals.get(name, 0.0) + value
        weights = balancer.backward(losses, network)
    return totals, weights


def _refuse_uneven_parts(config: TrainingConfig, processes: Processes) -> None:
    """Refuse parts of a batch that are empty, too small to be normalised, or not equal."""
    size, parts, count = config.batch_size, config.optimizer.accumulate, processes.count
    if size < count:
        raise TrainingError(
            f'batch_size {size} leaves some of {count} processes without a picture: set '
            f'batch_size to {count} or more, or start fewer processes'
        )
    if parts > 1 and size % (parts * count):
        raise TrainingError(
            f'batch_size {size} cannot be cut into {parts} equal parts in each of {count} '
            f'processes: choose a multiple of {parts * count}'
        )
    if config.network.decoder == 'deeplab' and size // (parts * count) == 1:
        raise TrainingError(
            f'batch_size {size} gives a process ({count} of them, optimizer.accumulate {parts}) '
            'one picture at a time, whose mean deeplab cannot normalise: set batch_size to '
            f'{2 * parts * count} or more'
        )


def _evaluate(
    state: RunState, held_out: Frames, step: int, record: Record, reporter: Reporter
) -> bool:
    """Measure on the held-out frames, note it in the state, and say whether it is the best."""
    config, position = state.config, state.position
    figures = measure_network(state.judged, held_out, config)
    values = [figures[task][SELECTION[task]] for task in config.tasks]
    # A figure without a case (no held-out frame shows it) cannot choose.
    known = [value for value in values if value is not None]
    score = sum(known) / len(known) if known else 0.0
    position.evaluations.append({'step': step, 'score': score, **figures})
    record.evaluated(step, figures)
    reporter.evaluated(step, score, figures)
    if position.best_score is not None and score <= position.best_score:
        return False
    position.best_score, position.best_step = score, step
    return True


def _evaluated_at(position: Position, step: int) -> bool:
    return bool(position.evaluations) and position.evaluations[-1]['step'] == step


@contextlib.contextmanager
def _stop_signals() -> Iterator[Any]:
    """Turn SIGINT and SIGTERM into a polite request: finish the step, save, leave."""
    received: list[int] = []

    def note(number: int, _: Any) -> None:
        received.append(number)

    previous = {}
    with contextlib.suppress(ValueError):  # signals belong to the main thread alone
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _finish(folder: Path, position: Position, step: int, clock: Clock) -> dict[str, Any]:
    """Write and return the figures of the best and of the last evaluation."""
    evaluations = position.evaluations
    best = next((e for e in evaluations if e['step'] == position.best_step), None)
    result = {
        'finished': clock.finished(step),
        'steps': step,
        'minutes': round(clock.elapsed_s / 60, 2),
        'best': best,
        'last': evaluations[-1] if evaluations else None,
    }
    (folder / 'result.json').write_text(json.dumps(result, indent=2), encoding='utf-8')
    return result
