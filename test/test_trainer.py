"""The training loop: exact resume, refusals, and checkpoints that survive accidents."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from rich.console import Console

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

import torch.distributed as dist  # noqa: E402
from training_parts import tiny_config, write_pictures, write_scenes  # noqa: E402

from mtl_training import checkpoints, trainer  # noqa: E402
from mtl_training.checkpoints import (  # noqa: E402
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from mtl_training.config import CONFIG_FOLDER, ConfigError, TrainingConfig, load_config  # noqa: E402
from mtl_training.datasets.mixtures import Mixture  # noqa: E402
from mtl_training.networks import MultiTaskNetwork  # noqa: E402
from mtl_training.processes import Processes  # noqa: E402
from mtl_training.run_state import load_network  # noqa: E402
from mtl_training.schedule import Clock  # noqa: E402
from mtl_training.trainer import TrainingError, train  # noqa: E402


@pytest.fixture(scope='module')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp('data'), size=(48, 64))


@pytest.fixture(scope='module')
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def finished(pictures: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp('runs') / 'whole'
    train(tiny_config(pictures, cache), folder)
    return folder


def losses_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / 'losses.jsonl').read_text().splitlines()]


def test_a_run_leaves_losses_figures_and_checkpoints(finished: Path) -> None:
    losses = losses_of(finished)
    assert [entry['step'] for entry in losses] == [1, 2, 3, 4, 5, 6]
    assert all(entry[f'weight/{task}'] == 1 for entry in losses for task in ('depth', 'normals'))
    assert all(entry['gradient_norm'] > 0 for entry in losses)
    result = json.loads((finished / 'result.json').read_text())
    assert result['finished'] and result['last']['frames'] == 2
    assert {'segmentation', 'depth', 'normals'} <= result['best'].keys()
    assert sorted(path.suffix for path in finished.glob('last*')) == ['.json', '.safetensors']
    assert list((finished / 'tensorboard').iterdir())


def test_resuming_gives_the_losses_of_an_uninterrupted_run(
    finished: Path, pictures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pictures, cache)
    original, calls = trainer._backward, []

    def power_cut(*arguments: object) -> dict[str, float]:
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*arguments)

    always = config.schedule.model_copy(update={'checkpoint_minutes': 1e-9})
    config = config.model_copy(update={'schedule': always})
    monkeypatch.setattr(trainer, '_backward', power_cut)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / 'cut')
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / 'cut' / 'last.json').values['position']['step'] == 4
    train(config, tmp_path / 'cut', resume=True)

    assert losses_of(tmp_path / 'cut') == losses_of(finished)
    mine = load_checkpoint(tmp_path / 'cut' / 'last.json').tensors
    theirs = load_checkpoint(finished / 'last.json').tensors
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name


def test_a_run_that_is_there_is_not_overwritten(
    finished: Path, pictures: Path, cache: Path
) -> None:
    with pytest.raises(TrainingError, match='resume it'):
        train(tiny_config(pictures, cache), finished)


def assert_good_checkpoint_of(run: Path, *, step: int) -> None:
    kept = load_checkpoint(run / 'last.json')
    assert kept.values['position']['step'] == step
    assert all(t.isfinite().all() for t in kept.tensors.values() if t.is_floating_point())


def test_nan_stops_with_task_and_frames_and_keeps_the_checkpoint(
    pictures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pictures, cache)
    always = config.schedule.model_copy(update={'checkpoint_minutes': 1e-9})
    config = config.model_copy(update={'schedule': always})
    honest = Mixture.__getitem__

    def poisoned(self: Mixture, request: object) -> dict:
        batch = honest(self, request)
        if request.step == 3:
            batch['depth'][0] = 1e38
        return batch

    monkeypatch.setattr(Mixture, '__getitem__', poisoned)
    with pytest.raises(TrainingError, match=r'depth loss is (inf|nan) at step 3 .*boxes:\d{4}'):
        train(config, tmp_path / 'run')
    assert_good_checkpoint_of(tmp_path / 'run', step=3)


def test_a_gradient_that_is_not_finite_stops_a_run_without_clipping(
    pictures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(pictures, cache, optimizer={'clip_norm': None})
    always = config.schedule.model_copy(update={'checkpoint_minutes': 1e-9})
    config = config.model_copy(update={'schedule': always})
    original = trainer._backward

    def overflowing(lesson: object, network: MultiTaskNetwork, *rest: object) -> object:
        found = original(lesson, network, *rest)
        if rest[-1] == 2:
            next(network.parameters()).grad[:] = torch.inf
        return found

    monkeypatch.setattr(trainer, '_backward', overflowing)
    with pytest.raises(TrainingError, match=r'gradient is inf at step 2 .*boxes:\d{4}'):
        train(config, tmp_path / 'run')
    assert_good_checkpoint_of(tmp_path / 'run', step=2)


def test_checkpoint_of_another_architecture_is_refused(
    finished: Path, pictures: Path, cache: Path, tmp_path: Path
) -> None:
    other = {'backbone': 'pvt_v2_b0', 'decoder_channels': 24}
    config = tiny_config(pictures, cache, network=other)
    with pytest.raises(CheckpointError, match='decoder_channels 16 != 24'):
        train(config, finished, resume=True)
    with pytest.raises(CheckpointError, match='decoder_channels 16 != 24'):
        train(config, tmp_path / 'new', start_from=finished / 'last.json')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'batch_size': 4, 'seed': 5}, r'\(seed 3 != 5, batch_size 2 != 4\)'),
        ({'optimizer': {'layer_decay': 0.5}}, r'\(optimizer.layer_decay None != 0.5\)'),
        ({'losses': {'depth': {'losses': {'l1': 1.0}}}}, r'losses.depth None != '),
        ({'schedule': {'steps': 6, 'warmup_steps': 3}}, 'schedule.warmup_steps 2 != 3'),
        ({'balancing': {'method': 'uw'}}, r'\(balancing.method equal != uw\)'),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    finished: Path, pictures: Path, cache: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        train(tiny_config(pictures, cache, **changes), finished, resume=True)


def test_a_run_is_not_resumed_with_other_frames(
    finished: Path, cache: Path, tmp_path: Path
) -> None:
    more = write_pictures(tmp_path / 'more', count=9)
    with pytest.raises(CheckpointError, match=r'\(frames of boxes 6 != 7\)'):
        train(tiny_config(more, cache), finished, resume=True)


def test_a_run_goes_on_elsewhere_and_for_longer(
    finished: Path, pictures: Path, cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / 'run')
    moved = shutil.copytree(pictures, tmp_path / 'moved')
    config = tiny_config(moved, tmp_path / 'cache', notes='moved', threads=2)
    changes = {
        'schedule': config.schedule.model_copy(update={'steps': 7, 'evaluations': 1}),
        'optimizer': config.optimizer.model_copy(update={'lr': 1e-4}),
    }
    result = train(config.model_copy(update=changes), tmp_path / 'run', resume=True)
    assert result['finished'] and result['steps'] == 7


def test_a_start_with_other_classes_keeps_all_but_that_head(
    finished: Path, pictures: Path, cache: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        pictures,
        cache,
        network={
            'backbone': 'pvt_v2_b0',
            'decoder_channels': 16,
            'num_classes': 14,
            'drop_path': 0.1,
        },
        optimizer={'lr': 1e-12, 'weight_decay': 0.0},
        schedule={
            'steps': 1,
            'warmup_steps': 0,
            'evaluations': 1,
            'stages': [{'height': 32, 'width': 64}],
        },
    )
    said = Console(record=True, width=300)
    train(config, tmp_path / 'other', start_from=finished / 'last.json', console=said)
    assert 'has no such heads for segmentation: they begin anew' in said.export_text()
    before, after = (
        load_network(path / 'last.json')[0] for path in (finished, tmp_path / 'other')
    )
    shapes = [
        network.state_dict()['heads.segmentation.1.weight'].shape[0] for network in (before, after)
    ]
    assert shapes == [13, 14]
    for (name, a), b in zip(before.named_parameters(), after.parameters(), strict=True):
        assert name.startswith('heads.segmentation.') or torch.allclose(a, b, atol=1e-6), name


def test_training_can_start_from_another_runs_weights(
    finished: Path, pictures: Path, cache: Path, tmp_path: Path
) -> None:
    schedule = {'steps': 1, 'warmup_steps': 0, 'evaluations': 1}
    optimizer = {'lr': 1e-12, 'weight_decay': 0.0}
    config = tiny_config(pictures, cache, schedule=schedule, optimizer=optimizer)
    train(config, tmp_path / 'next', start_from=finished / 'last.json')
    start, _ = load_network(finished / 'last.json')
    end, _ = load_network(tmp_path / 'next' / 'last.json')
    for (name, a), b in zip(start.named_parameters(), end.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


def test_a_start_without_some_heads_says_so_and_keeps_the_rest(
    finished: Path, cache: Path, tmp_path: Path
) -> None:
    common = {
        'schedule': {'steps': 1, 'warmup_steps': 0, 'evaluations': 1},
        'optimizer': {'lr': 1e-12, 'weight_decay': 0.0},
    }
    pictures = write_scenes(write_pictures(tmp_path / 'data'))
    config = tiny_config(pictures, cache, tasks=['depth', 'detection'], **common)
    said = Console(record=True, width=300)
    train(config, tmp_path / 'two', start_from=finished / 'last.json', console=said)
    assert 'has no such heads for detection: they begin anew' in said.export_text()
    start, _ = load_network(finished / 'last.json')
    end, _ = load_network(tmp_path / 'two' / 'last.json')
    before, after = dict(start.named_parameters()), dict(end.named_parameters())
    assert set(after) - set(before) == {n for n in after if n.startswith('heads.detection.')}
    assert not any(name.startswith('heads.segmentation.') for name in after)
    for name in set(after) & set(before):
        assert torch.allclose(before[name], after[name], atol=1e-6), name


def test_an_attentive_pyramid_begins_as_the_pyramid_that_it_extends(
    finished: Path, pictures: Path, cache: Path, tmp_path: Path
) -> None:
    common = {
        'schedule': {'steps': 1, 'warmup_steps': 0, 'evaluations': 1},
        'optimizer': {'lr': 1e-12, 'weight_decay': 0.0},
    }
    attentive = {'decoder': 'attentive_pyramid', 'decoder_channels': 16}
    config = tiny_config(pictures, cache, network=attentive, **common)
    train(config, tmp_path / 'next', start_from=finished / 'last.json')
    start, _ = load_network(finished / 'last.json')
    end, _ = load_network(tmp_path / 'next' / 'last.json')
    # With the batch's own statistics: the step has moved the running ones.
    picture = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        expected, found = start.train()(picture), end.train()(picture)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    back = tiny_config(pictures, cache, **common)
    with pytest.raises(CheckpointError, match='decoder attentive_pyramid != pyramid'):
        train(back, tmp_path / 'back', start_from=tmp_path / 'next' / 'last.json')


@pytest.mark.parametrize(
    ('sharing', 'tasks'),
    [('hard', ['classification']), ('mtan', ['depth', 'detection'])],
)
def test_a_start_with_other_tasks_keeps_what_both_have(
    cache: Path, tmp_path: Path, sharing: str, tasks: list[str]
) -> None:
    pictures = write_scenes(write_pictures(tmp_path / 'data'))
    common = {
        'network': {'backbone': 'pvt_v2_b0', 'decoder_channels': 16, 'sharing': sharing},
        'schedule': {'steps': 1, 'warmup_steps': 0, 'evaluations': 1},
        'optimizer': {'lr': 1e-12, 'weight_decay': 0.0},
    }
    config = tiny_config(pictures, cache, tasks=['segmentation', 'depth'], **common)
    train(config, tmp_path / 'first')
    config = tiny_config(pictures, cache, tasks=tasks, **common)
    train(config, tmp_path / 'next', start_from=tmp_path / 'first' / 'last.json')
    start, _ = load_network(tmp_path / 'first' / 'last.json')
    end, _ = load_network(tmp_path / 'next' / 'last.json')
    before, after = dict(start.named_parameters()), dict(end.named_parameters())
    common_names = set(after) & set(before)
    assert any(name.startswith('encoder.') for name in common_names)
    for name in common_names:
        assert torch.allclose(before[name], after[name], atol=1e-6), name


def test_a_full_disk_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 'last', Checkpoint({'w': torch.ones(3)}, {'position': 1}))

    def full(tensors: object, path: Path) -> None:
        Path(path).write_bytes(b'half')
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(checkpoints, 'save_file', full)
    with pytest.raises(CheckpointError, match='No space left'):
        save_checkpoint(tmp_path, 'last', Checkpoint({'w': torch.zeros(3)}, {'position': 2}))
    kept = load_checkpoint(tmp_path / 'last.json')
    assert kept.values == {'position': 1} and kept.tensors['w'].tolist() == [1, 1, 1]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_crash_between_tensors_and_json_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 'last', Checkpoint({'w': torch.ones(3)}, {'position': 1}))

    def crash(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, 'replace', crash)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 'last', Checkpoint({'w': torch.zeros(3)}, {'position': 2}))
    assert load_checkpoint(tmp_path / 'last.json').tensors['w'].tolist() == [1, 1, 1]
    save_checkpoint(tmp_path, 'last', Checkpoint({'w': torch.zeros(3)}, {'position': 3}))
    assert load_checkpoint(tmp_path / 'last.json').values == {'position': 3}


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('{', 'cannot be read'),
        ('{"format": 9, "tensors": "x"}', 'another version'),
        ('{"format": 2, "tensors": "../x.safetensors"}', 'outside its folder'),
        ('{"format": 2, "tensors": "absent.safetensors"}', 'cannot be read'),
    ],
)
def test_unusable_checkpoints_say_so(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / 'last.json').write_text(content)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(tmp_path / 'last.json')


def test_gradient_accumulation_gives_the_whole_batchs_gradient(
    pictures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two halves are one whole, though one of them knows no depth and few labels."""

    def hide(batch: dict[str, torch.Tensor], _: torch.device) -> dict[str, torch.Tensor]:
        batch['depth'][0] = 0
        batch['label'][0, 1:] = 255
        return batch

    gradients: dict[int, dict[str, torch.Tensor]] = {}

    def keep(parts: torch.nn.Module, config: TrainingConfig, *_: object) -> None:
        gradients[config.optimizer.accumulate] = {
            name: p.grad.clone() for name, p in parts.named_parameters() if p.grad is not None
        }

    monkeypatch.setattr(trainer, 'to_device', hide)
    monkeypatch.setattr(trainer, '_clip', keep)
    losses = {}
    for accumulate in (1, 2):
        config = tiny_config(
            pictures,
            cache,
            optimizer={'accumulate': accumulate},
            schedule={'steps': 1, 'evaluations': 1},
            network={
                'backbone': 'pvt_v2_b0',
                'decoder_channels': 16,
                'decoder_norm': 'group',
                'drop_path': 0.0,
            },
            losses={'segmentation': {'class_weights': [0.5 + 0.1 * n for n in range(13)]}},
        )
        train(config, tmp_path / str(accumulate))
        losses[accumulate] = losses_of(tmp_path / str(accumulate))[0]
    for task in config.tasks:
        assert losses[2][task] == pytest.approx(losses[1][task], rel=1e-5), task
    assert gradients[1].keys() == gradients[2].keys()
    for name, whole in gradients[1].items():
        torch.testing.assert_close(
            gradients[2][name], whole, rtol=1e-3, atol=1e-5 * whole.abs().max().item() + 1e-9
        )


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'batch_size': 3}, 'cannot be cut into 2 equal parts'),
        ({'balancing': {'method': 'uw'}}, 'looks at whole batches'),
    ],
)
def test_an_accumulation_that_is_not_the_batchs_step_is_refused(
    pictures: Path, cache: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    config = tiny_config(pictures, cache, optimizer={'accumulate': 2}, **changes)
    with pytest.raises(TrainingError, match=words):
        train(config, tmp_path / 'run')


DEEPLAB = {'backbone': 'pvt_v2_b0', 'decoder': 'deeplab'}


@pytest.mark.parametrize(
    ('processes', 'changes', 'words'),
    [
        (3, {}, 'batch_size 2 leaves some of 3 processes without a picture'),
        (1, {'batch_size': 1, 'network': DEEPLAB}, 'set batch_size to 2 or more'),
        (2, {'batch_size': 3, 'network': DEEPLAB}, 'set batch_size to 4 or more'),
        (1, {'optimizer': {'accumulate': 2}, 'network': DEEPLAB}, 'optimizer.accumulate 2'),
    ],
)
def test_parts_that_no_step_can_be_made_of_are_refused(
    pictures: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    changes: dict[str, object],
    words: str,
) -> None:
    started = SimpleNamespace(rank=0, leads=True, count=processes)
    monkeypatch.setattr(trainer, 'Processes', lambda: started)
    with pytest.raises(TrainingError, match=words):
        train(tiny_config(pictures, cache, **changes), tmp_path / 'run')


def test_deeplab_takes_two_pictures(pictures: Path, cache: Path, tmp_path: Path) -> None:
    schedule = {'steps': 1, 'evaluations': 1, 'stages': [{'height': 32, 'width': 64}]}
    config = tiny_config(pictures, cache, network=DEEPLAB, schedule=schedule)
    assert train(config, tmp_path / 'run')['finished']


def test_processes_wait_for_a_leader_that_prepares_for_hours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, timedelta] = {}
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr(dist, 'init_process_group', lambda *_, **options: given.update(options))
    assert Processes().count == 2
    assert given['timeout'] > timedelta(hours=12)


def test_two_processes_give_the_losses_of_one(pictures: Path, cache: Path, tmp_path: Path) -> None:
    """Real processes over gloo; norms that know no batch make the results comparable."""
    config = tiny_config(
        pictures,
        cache,
        network={'backbone': 'pvt_v2_b0', 'decoder_channels': 16, 'decoder_norm': 'group'},
        schedule={'steps': 4, 'warmup_steps': 2, 'evaluations': 1},
        batch_size=4,
    )
    train(config, tmp_path / 'one')
    file = tmp_path / 'tiny.yaml'
    file.write_text(yaml.safe_dump(config.model_dump(mode='json')))
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += ['--nproc-per-node', '2', '-m', 'mtl_training.cli', 'train', str(file)]
    done = subprocess.run(
        [*command, '--out', str(tmp_path / 'two')],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        cwd=Path(trainer.__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    one, two = losses_of(tmp_path / 'one'), losses_of(tmp_path / 'two')
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-4), a['step']


def test_progress_follows_training_time_across_an_interruption() -> None:
    now = [100.0]
    settings = load_config('pvt_v2_b0', ['schedule.minutes=10']).schedule
    clock = Clock(settings, now=lambda: now[0])
    now[0] += 300
    clock.tick()
    assert clock.progress(7) == pytest.approx(0.5)
    assert clock.stage(7).height == 192
    later = [5000.0]
    resumed = Clock(settings, elapsed_s=clock.elapsed_s, now=lambda: later[0])
    assert resumed.progress(7) == pytest.approx(0.5)
    later[0] += 120
    resumed.tick()
    assert resumed.stage(8).height == 288
    later[0] += 200
    resumed.tick()
    assert resumed.finished(9)


def test_sizes_of_a_stage_take_turns(
    pictures: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    forward = MultiTaskNetwork.forward

    def watched(network: MultiTaskNetwork, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if network.training:
            seen.append(tuple(images.shape[-2:]))
        return forward(network, images)

    monkeypatch.setattr(MultiTaskNetwork, 'forward', watched)
    stage = {'height': 64, 'width': 96, 'others': [[32, 64], [64, 96]]}
    schedule = {'steps': 5, 'evaluations': 1, 'stages': [stage]}
    train(tiny_config(pictures, cache, schedule=schedule), tmp_path / 'run')
    assert seen == [(64, 96), (32, 64), (64, 96), (64, 96), (32, 64)]


def test_smaller_pictures_may_be_cut_out_more_closely(pictures: Path, cache: Path) -> None:
    stage = {'height': 64, 'width': 96, 'others': [[32, 64], [64, 96]], 'zoom': [1.0, 1.2]}
    schedule = {'steps': 3, 'stages': [stage | {'smaller_zoom': [0.95, 2.4]}]}
    (chosen,) = tiny_config(pictures, cache, schedule=schedule).schedule.stages
    assert [chosen.view(step) for step in range(3)] == [
        (64, 96, (1.0, 1.2)),
        (32, 64, (0.95, 2.4)),
        (64, 96, (1.0, 1.2)),
    ]
    schedule = {'steps': 3, 'stages': [stage]}
    (same,) = tiny_config(pictures, cache, schedule=schedule).schedule.stages
    assert same.view(1) == (32, 64, (1.0, 1.2))


def test_learning_rate_warms_up_and_ends_at_zero(pictures: Path, cache: Path) -> None:
    schedule = {'steps': 100, 'warmup_steps': 10}
    clock = Clock(tiny_config(pictures, cache, schedule=schedule).schedule)
    rates = np.array([clock.learning_rate(step) for step in range(101)])
    assert (np.diff(rates[:9]) > 0).all() and (np.diff(rates[10:]) <= 0).all()
    assert rates.max() > 0.95 and rates[100] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ('override', 'words'),
    [
        ('schedule.steps=5', 'exactly one of'),
        ('optimizer.lr=-1', 'optimizer.lr'),
        ('network.decodre=x', 'network.decodre'),
        ('tasks=[depth, depth]', 'repeat'),
        ('data.held_out.source=moon', 'not among the sources'),
        ('augmentation.zoom=[2, 1]', 'zoom'),
        ('schedule.stages=[{others: [[64, 100]]}]', 'multiple of 32'),
        ('schedule.stages=[{zoom: [2, 1]}]', 'zoom'),
        ('schedule.stages=[{smaller_zoom: [1, 2]}]', 'less high than 288'),
        ('no equals sign', 'dotted.key=value'),
    ],
)
def test_impossible_configurations_are_refused_by_name(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config('pvt_v2_b0', [override])


@pytest.mark.parametrize('text', ['1e-3', '1.0e-3', '.1E-2'])
def test_exponents_are_numbers_everywhere(text: str, tmp_path: Path) -> None:
    overrides = [f'balancing.options.lr={text}', f'losses.depth.losses.l1={text}']
    config = load_config('pvt_v2_b0', overrides)
    assert config.balancing.options['lr'] == config.losses['depth']['losses']['l1'] == 1e-3
    values = yaml.safe_load((CONFIG_FOLDER / 'pvt_v2_b0.yaml').read_text())
    written = yaml.safe_dump(values).replace('gradient: 0.2', f'gradient: {text}')
    (tmp_path / 'mine.yaml').write_text(written)
    assert load_config(tmp_path / 'mine.yaml').losses['depth']['losses']['gradient'] == 1e-3


def test_unknown_configuration_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match='pvt_v2_b0'):
        load_config('absent')
