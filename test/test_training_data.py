"""Preparing picture folders, and mixing prepared frames."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from training_parts import write_pictures  # noqa: E402

from mtl_perception.datasets import PictureFolder  # noqa: E402
from mtl_perception.geometry.normals import normals_from_depth  # noqa: E402
from mtl_training.config import AugmentationSettings, ConfigError  # noqa: E402
from mtl_training.datasets import (  # noqa: E402
    BatchRequest,
    DatasetError,
    FrameSubset,
    Mixture,
    PreparedArrays,
    prepare,
)
from mtl_training.datasets.mixtures import batches, held_out_blocks  # noqa: E402
from mtl_training.datasets.sources import refuse_shared_pictures  # noqa: E402

SIZE = (48, 64)


def test_arrays_equal_the_pictures(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data')
    arrays = prepare(data, 'train', tmp_path / 'cache', size=SIZE, processes=2)
    folder = PictureFolder(data, 'train')
    assert arrays.ids == list(folder.ids)
    for index in range(len(folder)):
        frame, truth = arrays.read(index), folder.read(index)
        np.testing.assert_array_equal(frame.image, truth.rgb)
        np.testing.assert_array_equal(frame.label, truth.label)
        np.testing.assert_allclose(frame.depth / 1000, truth.depth, atol=5e-4)
        derived = normals_from_depth(truth.depth, truth.intrinsics)
        np.testing.assert_allclose(frame.normal / 127, derived, atol=0.5 / 127 + 1e-6)
        assert frame.intrinsics == truth.intrinsics


def test_second_call_reuses_the_arrays_and_changed_data_do_not(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data')
    first = prepare(data, 'train', tmp_path / 'cache', size=SIZE, processes=0)
    stamp = (first.folder / 'image.npy').stat().st_mtime_ns
    again = prepare(data, 'train', tmp_path / 'cache', size=SIZE, processes=0)
    assert again.folder == first.folder
    assert (again.folder / 'image.npy').stat().st_mtime_ns == stamp
    picture = data / 'train' / 'rgb' / '0003.png'
    cv2.imwrite(str(picture), np.zeros((*SIZE, 3), np.uint8))
    changed = prepare(data, 'train', tmp_path / 'cache', size=SIZE, processes=0)
    assert changed.folder != first.folder
    assert not changed.read(3).image.any()


def test_broken_files_are_named_and_counted_and_nothing_is_written(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data')
    (data / 'train' / 'depth' / '0002.png').unlink()
    cut = data / 'train' / 'rgb' / '0005.png'
    cut.write_bytes(cut.read_bytes()[:60])
    with pytest.raises(DatasetError, match=r'^2 of the files') as caught:
        prepare(data, 'train', tmp_path / 'cache', size=SIZE)
    assert '0002' in str(caught.value) and '0005' in str(caught.value)
    assert not (tmp_path / 'cache').exists()


def test_wrong_class_id_is_refused(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data')
    path = data / 'train' / 'label13' / '0001.png'
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    label[5, 5] = 13
    cv2.imwrite(str(path), label)
    with pytest.raises(DatasetError, match='label 13'):
        prepare(data, 'train', tmp_path / 'cache', size=SIZE)


def test_other_numbers_of_classes_have_arrays_of_their_own(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data')
    path = data / 'train' / 'label13' / '0001.png'
    cv2.imwrite(str(path), np.full(SIZE, 19, np.uint8))
    with pytest.raises(
        DatasetError, match=r'label 19, expected 0\.\.12 or 255 \(num_classes is 13\)'
    ):
        prepare(data, 'train', tmp_path / 'cache', size=SIZE)
    twenty = prepare(data, 'train', tmp_path / 'cache', size=SIZE, num_classes=20, processes=0)
    assert twenty.read(1).label[0, 0] == 19 and twenty.own.num_classes == 20
    with pytest.raises(DatasetError, match='label 19'):
        prepare(data, 'train', tmp_path / 'cache', size=SIZE, num_classes=19)
    more = prepare(data, 'train', tmp_path / 'cache', size=SIZE, num_classes=21, processes=0)
    assert more.folder != twenty.folder and more.own.num_classes == 21


def test_cache_inside_the_data_is_refused(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data')
    with pytest.raises(DatasetError, match='inside the data'):
        prepare(data, 'train', data / 'cache', size=SIZE)
    assert sorted(file.name for file in data.iterdir()) == ['train']


def test_pictures_of_another_size_are_fitted_with_their_camera(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data', size=(96, 128), count=1)
    arrays = prepare(data, 'train', tmp_path / 'cache', size=(64, 64), processes=0)
    frame = arrays.read(0)
    original = PictureFolder(data, 'train').read(0).intrinsics
    assert frame.image.shape == (64, 64, 3)
    assert (frame.label[48:] == 255).all() and not frame.depth[48:].any()
    assert frame.depth[:48].all()
    assert frame.intrinsics.fx == pytest.approx(original.fx / 2)
    assert frame.intrinsics.cx == pytest.approx((original.cx + 0.5) / 2 - 0.5)


def test_damaged_cache_says_to_prepare_again(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data', count=2)
    arrays = prepare(data, 'train', tmp_path / 'cache', size=SIZE, processes=0)
    np.save(arrays.folder / 'label.npy', np.zeros((1, *SIZE), np.uint8))
    with pytest.raises(DatasetError, match='prepare again'):
        PreparedArrays(arrays.folder)


def test_real_frames_prepare_with_derived_normals(nyuv2: Path, tmp_path: Path) -> None:
    few = tmp_path / 'few'
    for folder in ('rgb', 'depth', 'label13'):
        (few / 'train' / folder).mkdir(parents=True)
        for file in sorted((nyuv2 / 'train' / folder).iterdir())[:3]:
            (few / 'train' / folder / file.name).symlink_to(file.resolve())
    arrays = prepare(few, 'train', tmp_path / 'cache')
    assert arrays.size == (288, 384) and arrays.normals_source == 'derived-11'
    length = np.linalg.norm(arrays.read(0).normal.astype(float) / 127, axis=-1)
    assert np.abs(length - 1).max() < 0.02
    assert (arrays.read(0).normal[..., 2] <= 64).mean() > 0.99, 'normals point to the camera'


def test_a_picture_in_two_data_sets_is_refused(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data')
    write_pictures(tmp_path / 'data', split='test', count=3, seed=9)
    shutil.copy(data / 'train/rgb/0003.png', data / 'test/rgb/0001.png')
    train, test = (
        prepare(data, split, tmp_path / 'cache', size=SIZE, processes=0)
        for split in ('train', 'test')
    )
    whole, others = (
        FrameSubset(name, arrays, tuple(range(len(arrays))))
        for name, arrays in (('train', train), ('test', test))
    )
    with pytest.raises(DatasetError, match=r'1 pictures .*train:0003 = test:0001'):
        refuse_shared_pictures([whole], [others])
    refuse_shared_pictures([whole, others], [])
    elsewhere = tuple(i for i, name in enumerate(train.ids) if name != '0003')
    refuse_shared_pictures([FrameSubset('train', train, elsewhere)], [others])
    (data / 'test/rgb/0001.png').write_bytes((data / 'test/rgb/0002.png').read_bytes())
    mended = prepare(data, 'test', tmp_path / 'cache', size=SIZE, processes=0)
    refuse_shared_pictures([whole], [FrameSubset('test', mended, (0, 1, 2))])
    assert PreparedArrays(train.folder).picture_hashes() == train.picture_hashes()


@pytest.fixture
def subsets(tmp_path: Path) -> list[FrameSubset]:
    """Return two prepared sets of 7 and 5 frames."""
    found = []
    for name, count in (('one', 7), ('two', 5)):
        data = write_pictures(tmp_path / name, count=count, seed=count)
        arrays = prepare(data, 'train', tmp_path / 'cache', size=SIZE, processes=0)
        found.append(FrameSubset(name, arrays, tuple(range(count))))
    return found


def make_mixture(subsets: list[FrameSubset], **arguments: object) -> Mixture:
    values = {
        'weights': [3.0, 1.0],
        'batch_size': 4,
        'focal_length': 60.0,
        'augmentation': AugmentationSettings(),
        'seed': 5,
    }
    return Mixture(subsets, **(values | arguments))


@pytest.mark.parametrize('weights', [[1.0, 1.0], [3.0, 1.0]])
def test_every_process_sees_every_source(subsets: list[FrameSubset], weights: list[float]) -> None:
    shares = [make_mixture(subsets, weights=weights, rank=rank, world_size=2) for rank in range(2)]
    seen: list[collections.Counter[int]] = [collections.Counter(), collections.Counter()]
    for step in range(100):
        chosen = shares[0].choose(step)
        slots = [mixture.slots(step) for mixture in shares]
        assert sorted(slots[0] + slots[1]) == [0, 1, 2, 3]
        for counter, own in zip(seen, slots, strict=True):
            counter.update(chosen[slot][0] for slot in own)
    share = weights[1] / sum(weights)
    for counter in seen:
        assert counter[1] / counter.total() == pytest.approx(share, abs=0.1)


def test_mixture_keeps_the_proportions_and_visits_every_frame(subsets: list[FrameSubset]) -> None:
    mixture = make_mixture(subsets)
    drawn = [pair for step in range(70) for pair in mixture.choose(step)]
    counts = collections.Counter(subset for subset, _ in drawn)
    assert counts == {0: 210, 1: 70}
    visits = collections.Counter(drawn)
    assert {visits[0, p] for p in range(7)} == {30}
    assert {visits[1, p] for p in range(5)} == {14}


def test_a_batch_depends_on_its_step_alone(subsets: list[FrameSubset]) -> None:
    early, late = make_mixture(subsets), make_mixture(subsets)
    for step in range(5):
        early[BatchRequest(step, 32, 48)]
    request = BatchRequest(9, 32, 48)
    one, two = early[request], late[request]
    assert one['ids'] == two['ids']
    for name in ('image', 'label', 'depth', 'normal', 'intrinsics'):
        assert torch.equal(one[name], two[name]), name
    assert not torch.equal(one['image'], make_mixture(subsets, seed=6)[request]['image'])


def test_a_stage_may_have_its_own_zooms(subsets: list[FrameSubset]) -> None:
    still = AugmentationSettings(zoom=(2.0, 2.0))
    mixture = make_mixture(subsets, augmentation=still)
    whole, zoomed = (mixture[BatchRequest(0, 48, 64, zoom)] for zoom in ((1.0, 1.0), None))
    assert torch.equal(whole['intrinsics'][:, 0], zoomed['intrinsics'][:, 0])
    assert whole['depth'][whole['depth'] > 0].mean() > 1.5 * zoomed['depth'].mean()


def test_processes_share_one_global_batch(subsets: list[FrameSubset]) -> None:
    request = BatchRequest(3, 32, 48)
    whole = make_mixture(subsets)[request]
    parts = [make_mixture(subsets, rank=rank, world_size=2)[request] for rank in range(2)]
    assert whole['ids'][0::2] == parts[0]['ids'] and whole['ids'][1::2] == parts[1]['ids']
    assert torch.equal(whole['depth'][1::2], parts[1]['depth'])


def test_batches_have_the_documented_types(subsets: list[FrameSubset]) -> None:
    batch = make_mixture(subsets)[BatchRequest(0, 32, 48)]
    assert batch['image'].shape == (4, 3, 32, 48) and batch['image'].dtype == torch.uint8
    assert batch['image'].is_contiguous(memory_format=torch.channels_last)
    assert batch['label'].shape == (4, 32, 48) and batch['label'].dtype == torch.int64
    assert batch['depth'].dtype == torch.float32
    assert batch['normal'].shape == (4, 3, 32, 48)
    assert batch['intrinsics'][:, 0].tolist() == [60.0] * 4


def test_worker_processes_give_the_same_batches_in_order(subsets: list[FrameSubset]) -> None:
    requests = [BatchRequest(step, 32, 48) for step in range(4)]
    mixture = make_mixture(subsets)
    for batch, request in zip(batches(mixture, iter(requests), workers=1), requests, strict=True):
        assert torch.equal(batch['image'], mixture[request]['image'])


def test_copies_for_other_processes_map_the_files_again(subsets: list[FrameSubset]) -> None:
    text = pickle.dumps(subsets[0].arrays)
    assert len(text) < 1000
    np.testing.assert_array_equal(pickle.loads(text).read(2).image, subsets[0].read(2).image)


def test_weights_too_small_to_be_drawn_are_refused(subsets: list[FrameSubset]) -> None:
    with pytest.raises(ConfigError, match='two'):
        make_mixture(subsets, weights=[1.0, 1e-6])


def test_a_source_without_frames_to_train_on_is_refused(subsets: list[FrameSubset]) -> None:
    nothing = dataclasses.replace(subsets[1], indices=())
    with pytest.raises(DatasetError, match=r'source two has no frames left .* add pictures'):
        make_mixture([subsets[0], nothing])


def plain_ids(count: int) -> list[str]:
    return [f'{number:04d}' for number in range(count)]


def world_ids(count: int, views: int) -> list[str]:
    return [f'{number // views:05d}_{number % views}' for number in range(count)]


def test_held_out_frames_are_blocks_of_neighbours() -> None:
    held = held_out_blocks(plain_ids(100), blocks=4, frames_per_block=5)
    assert len(held) == len(set(held)) == 20
    assert sum(b - a == 1 for a, b in itertools.pairwise(held)) == 16
    assert held[0] >= 0 and held[-1] < 100
    with pytest.raises(DatasetError, match=r'leave nothing of 20 .* data\.held_out\.blocks='):
        held_out_blocks(plain_ids(20), blocks=4, frames_per_block=5)


@pytest.mark.parametrize(
    ('ids', 'blocks', 'frames'),
    [
        (plain_ids(795), 4, 12),  # NYUv2's, on which the shipped networks were chosen
        (world_ids(3000, views=3), 8, 9),  # the shipped networks' worlds
        ([f'20240501_{number:06d}' for number in range(30)], 2, 8),  # pictures of a telephone
    ],
)
def test_blocks_that_split_no_scene_stay_where_they_are(
    ids: list[str], blocks: int, frames: int
) -> None:
    pitch = len(ids) / blocks
    starts = [round(pitch * (block + 0.5) - frames / 2) for block in range(blocks)]
    expected = [start + frame for start in starts for frame in range(frames)]
    assert held_out_blocks(ids, blocks, frames) == tuple(expected)


@pytest.mark.parametrize(('views', 'frames'), [(7, 7), (4, 6), (3, 1)])
def test_no_flat_is_trained_on_and_judged_by(views: int, frames: int) -> None:
    ids = world_ids(2002, views)
    held = set(held_out_blocks(ids, 8, frames))
    judging = {ids[k][:5] for k in held}
    assert not judging & {ids[k][:5] for k in range(len(ids)) if k not in held}
    assert 8 * frames <= len(held) <= 8 * (frames + 2 * views)
    if views == frames:
        assert len(judging) == 8, 'a block of the size of a flat is one flat'
    with pytest.raises(DatasetError, match='leave nothing of 7 to train on'):
        held_out_blocks(world_ids(7, 7), 1, 2)


def test_no_flat_is_in_two_parts_of_a_source(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data', count=14)
    for folder in ('rgb', 'depth', 'label13'):
        files = sorted((data / 'train' / folder).iterdir())
        for file, frame_id in zip(files, world_ids(14, views=4), strict=True):
            file.rename(file.with_stem(frame_id))
    parts = [
        prepare(data, 'train', tmp_path / 'cache', size=SIZE, part=(k, 3), processes=0).ids
        for k in range(3)
    ]
    assert [frame_id for part in parts for frame_id in part] == world_ids(14, views=4)
    flats = [{frame_id[:5] for frame_id in part} for part in parts]
    assert flats == [{'00000', '00001'}, {'00002'}, {'00003'}]


SLOW_TRAINING = """
import os, signal, sys, time
from torch.utils.data import Dataset
from mtl_training.datasets.mixtures import BatchRequest, batches

class Slow(Dataset):
    def __getitem__(self, request):
        time.sleep(0.2)
        return {'step': request.step}

if __name__ == '__main__':
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    made = batches(Slow(), (BatchRequest(step, 32, 32) for step in range(12)), workers=1)
    signal.signal(signal.SIGTERM, lambda *_: heard.append(2))
    os.killpg(0, signal.SIGINT)  # while the worker still imports
    for batch in made:
        if batch['step'] == 2:
            os.killpg(0, signal.SIGINT)  # while it works
            os.killpg(0, signal.SIGTERM)
    sys.exit(0 if sorted(heard) == [1, 1, 2] and batch['step'] == 11 else 1)
"""


def test_signals_to_the_whole_group_leave_the_workers_alive(tmp_path: Path) -> None:
    script = tmp_path / 'slow.py'
    script.write_text(SLOW_TRAINING)
    # A terminal sends Ctrl-C to the whole group of processes in front, torchrun SIGTERM.
    ended = subprocess.run(
        [sys.executable, script],
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, 'PYTHONPATH': str(Path(__file__).parent.parent)},
    )
    assert ended.returncode == 0, ended.stderr
    assert 'KeyboardInterrupt' not in ended.stderr
