"""Other people's data sets from their official layout to prepared arrays and to the trainer."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from rich.console import Console

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from official_layouts import (  # noqa: E402
    cut_off,
    write_ade20k,
    write_bdd100k,
    write_cityscapes,
    write_coco,
    write_imagenet,
    write_office31,
)
from training_parts import write_pictures  # noqa: E402

from mtl_perception.bundle import AttributeSpec  # noqa: E402
from mtl_perception.datasets import NYUV2_INTRINSICS, LabelledFrame, region_of  # noqa: E402
from mtl_perception.letterbox import PADDING  # noqa: E402
from mtl_training.cli import main  # noqa: E402
from mtl_training.config import SourceSettings, parse_config  # noqa: E402
from mtl_training.data import open_data  # noqa: E402
from mtl_training.datasets import BatchRequest, DatasetError, Mixture, prepare  # noqa: E402
from mtl_training.datasets.ade20k import Ade20k  # noqa: E402
from mtl_training.datasets.arrays import PreparedArrays  # noqa: E402
from mtl_training.datasets.bdd100k import Bdd100k  # noqa: E402
from mtl_training.datasets.cityscapes import Cityscapes  # noqa: E402
from mtl_training.datasets.coco import Coco  # noqa: E402
from mtl_training.datasets.formats import (  # noqa: E402
    default_split,
    official_formats,
    recognise,
    resolve,
)
from mtl_training.datasets.image_folder import ImageFolder  # noqa: E402
from mtl_training.datasets.office31 import Office31  # noqa: E402
from mtl_training.datasets.pool import FEW  # noqa: E402
from mtl_training.datasets.prepare import convert_frame  # noqa: E402
from mtl_training.datasets.reader import class_list  # noqa: E402
from mtl_training.datasets.sources import open_reader, open_source  # noqa: E402
from mtl_training.datasets.vocabulary import Vocabulary  # noqa: E402

SIZE = (32, 64)


@pytest.mark.parametrize(
    ('write', 'open_reader', 'truths', 'frames'),
    [
        (write_bdd100k, lambda r: Bdd100k(r, 'train'), {'label', 'boxes', 'attributes'}, 3),
        (write_bdd100k, lambda r: Bdd100k(r, 'train', pictures='10k'), {'label'}, 2),
        (write_cityscapes, lambda r: Cityscapes(r, 'train'), {'label', 'depth', 'normal'}, 2),
        (write_coco, lambda r: Coco(r, 'val2017'), {'boxes'}, 3),
        (write_ade20k, lambda r: Ade20k(r, 'training'), {'label'}, 2),
        (write_imagenet, lambda r: ImageFolder(r, 'train'), {'attributes'}, 4),
        (write_office31, lambda r: Office31(r, 'webcam_val'), {'attributes'}, 6),
    ],
)
def test_arrays_hold_what_the_frames_carry_and_no_more(
    tmp_path: Path, write: object, open_reader: object, truths: set[str], frames: int
) -> None:
    reader = open_reader(write(tmp_path / 'data'))
    arrays = prepare(reader, reader.split, tmp_path / 'cache', size=SIZE, processes=0)
    assert set(arrays.truths) == truths and len(arrays) == frames
    assert arrays.own.classes == tuple(spec.name for spec in reader.classes)
    assert arrays.own.box_classes == tuple(reader.box_classes)
    assert arrays.own.attributes == tuple(reader.attributes)
    stored = {file.stem for file in arrays.folder.glob('*.npy')}
    assert ('depth' in stored) == ('depth' in truths) and ('label' in stored) == (
        'label' in truths
    )


def test_boxes_and_sizes_follow_the_one_scale(tmp_path: Path) -> None:
    reader = Coco(write_coco(tmp_path / 'data'), 'val2017')
    arrays = prepare(reader, 'val2017', tmp_path / 'cache', size=(24, 64), processes=0)
    # 48x64 pixels become 24x32; 40x30 become 24x18.
    np.testing.assert_allclose(arrays.read(0).boxes[0], [5.25, 4.125, 15.25, 9.125])
    np.testing.assert_allclose(arrays.read(1).boxes[0], np.array([2, 3, 6, 8]) * 0.6, rtol=1e-6)
    assert arrays.read(0).box_labels.tolist() == [2, region_of(0)]
    assert (arrays.read(0).image[:, 32:] == PADDING).all()


def test_regions_follow_the_networks_names(tmp_path: Path) -> None:
    reader = Coco(write_coco(tmp_path / 'data'), 'val2017')
    folder = prepare(reader, 'val2017', tmp_path / 'cache', size=(24, 64), processes=0).folder
    with_people = Vocabulary(box_classes=('toothbrush', 'human'))
    labels = PreparedArrays(folder, with_people, {'person': 'human'}).read(0).box_labels
    assert labels.tolist() == [0, region_of(1)]
    without = Vocabulary(box_classes=('toothbrush',))
    assert PreparedArrays(folder, without).read(0).box_labels.tolist() == [0]


@pytest.mark.parametrize('width', [640, 1000, 1920])
def test_masks_and_depth_stay_where_the_picture_is(width: int) -> None:
    """The edge of a wall lies at the same column of picture, label and depth (to .1 pixels)."""
    height, edge = width * 3 // 4, np.arange(width // 3, width // 3 + 40)
    shifts = []
    for column in edge:
        right = np.broadcast_to(np.arange(width) >= column, (height, width))
        frame = LabelledFrame(
            id='wall',
            rgb=np.repeat(np.where(right, 255, 0).astype(np.uint8)[..., None], 3, axis=2),
            label=right.astype(np.uint8),
            depth=np.where(right, 2.0, 1.0).astype(np.float32),
            normal=None,
            intrinsics=NYUV2_INTRINSICS.scaled(width / 384, width, height),
            normals_source='none',
        )
        arrays, _ = convert_frame(frame, (288, 384), Vocabulary())
        at = 384 - arrays['image'][100, :, 0].astype(float).sum() / 255
        shifts.append(
            (
                384 - (arrays['label'][100] == 1).sum() - at,
                (arrays['depth'][100] < 1500).sum() - at,
            )
        )
    np.testing.assert_allclose(np.mean(shifts, axis=0), 0, atol=0.1)


def test_broken_frames_stop_the_work_unless_they_are_knowingly_skipped(tmp_path: Path) -> None:
    root = write_coco(tmp_path / 'data')
    cut_off(root / 'val2017/000000000025.jpg')
    cache = tmp_path / 'cache'
    with pytest.raises(DatasetError, match=r'1 of 3 frames .*\n.*000000000025.jpg: cut off'):
        prepare(Coco(root, 'val2017'), 'val2017', cache, size=SIZE, processes=0)
    assert not list(cache.glob('*'))
    arrays = prepare(
        Coco(root, 'val2017'), 'val2017', cache, size=SIZE, skip_broken=True, processes=0
    )
    assert arrays.ids == ['000000000009', '000000000030']
    assert arrays.findings['broken_frames'] == 1 and arrays.findings['frames'] == 3
    named = arrays.findings['broken']['picture unreadable']
    assert named['count'] == 1 and '000000000025.jpg' in named['first'][0]
    assert arrays.findings['noted']['crowd or ignored box, kept as a region']['count'] == 1
    again = prepare(
        Coco(root, 'val2017'), 'val2017', cache, size=SIZE, skip_broken=True, processes=0
    )
    assert again.folder == arrays.folder and again.findings == arrays.findings


def test_processes_find_and_write_the_same(tmp_path: Path) -> None:
    root = write_office31(tmp_path / 'data', pictures=12)
    cut_off(root / 'dslr/images/bike/frame_0007.jpg')
    assert len(Office31(root, 'dslr')) >= FEW, 'fewer are not worth a process'
    alone, together = (
        prepare(
            Office31(root, 'dslr'), 'dslr', tmp_path / f'cache{processes}', size=SIZE,
            skip_broken=True, processes=processes,
        )
        for processes in (0, 1)
    )  # fmt: skip
    assert alone.ids == together.ids and len(together) == 35
    assert alone.findings == together.findings
    for index in (0, 20, 34):
        np.testing.assert_array_equal(alone.read(index).image, together.read(index).image)
        np.testing.assert_array_equal(
            alone.read(index).attributes, together.read(index).attributes
        )


def test_nothing_left_to_skip_to_is_an_error(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / 'data')
    for mask in (root / 'annotations/training').iterdir():
        cut_off(mask)
    with pytest.raises(DatasetError, match=r'all 2 frames .* are broken'):
        prepare(
            Ade20k(root, 'training'), 'training', tmp_path / 'cache', size=SIZE,
            skip_broken=True, processes=0,
        )  # fmt: skip


def test_own_picture_folders_are_mended_and_not_skipped(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / 'data', count=2)
    with pytest.raises(DatasetError, match='only official layouts'):
        prepare(data, 'train', tmp_path / 'cache', size=(48, 64), skip_broken=True, processes=0)


def test_problems_beyond_the_limit_do_not_matter(tmp_path: Path) -> None:
    root = write_coco(tmp_path / 'data')
    cut_off(root / 'val2017/000000000030.jpg')
    reader = Coco(root, 'val2017')
    assert len(prepare(reader, 'v', tmp_path / 'cache', size=SIZE, limit=2, processes=0)) == 2


def test_options_and_files_make_another_cache(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path / 'data')
    prints = {Cityscapes(root, 'train', classes=n).fingerprint() for n in (7, 19)}
    cut_off(root / 'camera/train/aachen/aachen_000000_000019_camera.json')
    prints.add(Cityscapes(root, 'train').fingerprint())
    assert len(prints) == 3


def test_arrays_that_do_not_fit_the_disk_are_refused_before_they_are_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage(NamedTuple):
        total: int
        used: int
        free: int

    monkeypatch.setattr(shutil, 'disk_usage', lambda _: Usage(10**12, 10**12, 20_000))
    reader = ImageFolder(write_imagenet(tmp_path / 'data'), 'train')
    with pytest.raises(DatasetError, match=r'4 frames of 32x64 need 0\.0 GB'):
        prepare(reader, 'train', tmp_path / 'cache', size=SIZE, processes=0)
    assert prepare(
        reader, 'train', tmp_path / 'cache', size=SIZE, limit=3, processes=0
    ).truths == ('attributes',)


def test_a_cache_inside_the_data_is_refused(tmp_path: Path) -> None:
    reader = Ade20k(write_ade20k(tmp_path), 'training')
    with pytest.raises(DatasetError, match='lies inside the data'):
        prepare(reader, 'training', tmp_path / 'cache', size=SIZE, processes=0)


def test_a_source_of_training_speaks_the_networks_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_bdd100k(tmp_path / 'data')
    cut_off(root / 'images/100k/train/0000f77c-cb820c98.jpg')
    source = SourceSettings(
        name='drive', path=str(root), format='bdd100k', height=48, width=64, skip_broken=True,
        rename={'timeofday': 'light', 'night': 'dark'},
    )  # fmt: skip
    light = AttributeSpec(name='light', kind='single', classes=('dark', 'daytime'))
    words = Vocabulary(('direct', 'alternative'), 2, ('traffic light', 'tv'), (light,))
    console = Console(file=sys.stdout, width=200)
    arrays = open_source(source, tmp_path / 'cache', console, vocabulary=words)
    frame = arrays.read(0)
    np.testing.assert_array_equal(frame.box_labels, [0])
    np.testing.assert_array_equal(frame.attributes, [1, 0])
    np.testing.assert_array_equal(np.unique(frame.label), [0, 1, 255])
    said = capsys.readouterr().out
    assert '1 of 3 frames left out; 1 x picture unreadable' in said


def test_three_data_sets_of_one_task_each_make_one_batch(tmp_path: Path) -> None:
    write_coco(tmp_path / 'coco')
    write_ade20k(tmp_path / 'ade')
    write_imagenet(tmp_path / 'net')
    size = {'height': 32, 'width': 64}
    split = {'coco': 'val2017', 'ade20k': 'training', 'image_folder': 'train'}
    folders = {'things': 'coco', 'stuff': 'ade', 'kinds': 'net'}
    config = parse_config(
        {
            'name': 'partly',
            'tasks': ['segmentation', 'detection', 'classification'],
            'network': {
                'num_classes': 150,
                'classes': [spec.name for spec in class_list('ade20k_150')],
                'box_classes': ['car', 'toothbrush', 'person'],
                'attributes': [
                    {'name': 'category', 'kind': 'single', 'classes': ['n02012849', 'n01440764']}
                ],
            },
            'data': {
                'cache': str(tmp_path / 'cache'),
                'sources': [
                    {'name': name, 'path': str(tmp_path / folder), 'format': kind, **size}
                    | {'split': split[kind]}
                    for (name, folder), kind in zip(folders.items(), split, strict=True)
                ],
                'held_out': [
                    {'source': name, 'blocks': 1, 'frames_per_block': 1} for name in folders
                ],
            },
            'schedule': {'steps': 1},
        },
        'test',
    )
    data = open_data(config)
    assert sorted(subset.name for subset in data.train) == sorted(folders)
    mixture = Mixture(data.train, [1, 1, 1], 6, 300.0, config.augmentation, seed=1)
    batch = mixture[BatchRequest(0, 32, 64)]
    labelled = (batch['label'] != 255).flatten(1).any(dim=1)
    known = {
        'things': batch['boxes_known'].all(dim=1),
        'stuff': labelled,
        'kinds': (batch['attributes'] >= 0).all(dim=1),
    }
    for index, frame in enumerate(batch['ids']):
        source = frame.split(':')[0]
        assert {name: bool(known[name][index]) for name in folders} == {
            name: name == source for name in folders
        }, frame
    assert len({frame.split(':')[0] for frame in batch['ids']}) == 3
    assert not batch['depth'].any()


def test_options_of_a_source_are_those_of_its_reader(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path / 'data')
    values = {'name': 'street', 'path': str(root), 'format': 'cityscapes', 'height': 32}
    source = SourceSettings(**values, width=64, options={'classes': 7})
    assert len(open_reader(source).classes) == 7
    source = SourceSettings(**values, width=64, options={'masks': 7})
    with pytest.raises(DatasetError, match='has no option masks: it has classes'):
        open_reader(source)


# Names, layouts and the command line

LAYOUTS = {
    'bdd100k': (write_bdd100k, 'bdd100k'),
    'cityscapes': (write_cityscapes, 'cityscapes'),
    'coco': (write_coco, 'coco'),
    'ade20k': (write_ade20k, 'ADEChallengeData2016'),
    'image_folder': (write_imagenet, 'imagenet'),
    'office31': (write_office31, 'office31'),
    'pictures': (write_pictures, 'my_rooms'),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_layouts_are_recognised(tmp_path: Path, name: str) -> None:
    write, folder = LAYOUTS[name]
    write(tmp_path / folder)
    assert recognise(tmp_path / folder) == name
    assert resolve(tmp_path / folder) == (name, tmp_path / folder)


def test_names_stand_for_folders_of_all_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('MTL_DATA', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert set(official_formats()) == set(LAYOUTS) - {'pictures'}
    for name in official_formats():
        assert resolve(name) == (name, tmp_path / LAYOUTS[name][1])
    assert resolve('imagenet') == ('image_folder', tmp_path / 'imagenet')
    assert default_split('ade20k') == 'training' and default_split('pictures') == 'train'
    with pytest.raises(DatasetError, match='expected a folder, or one of bdd100k'):
        resolve('pascal')
    with pytest.raises(DatasetError, match="no format 'voc'"):
        resolve('coco', 'voc')


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, 'argv', ['mtl-training', *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_check_says_what_is_missing_of_a_data_set_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv('MTL_DATA', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in official_formats():
        assert run(monkeypatch, 'prepare', name, '--check', '--json', '-') == 1
        said = capfd.readouterr()
        report = json.loads(said.out)
        assert report['format'] == name and report['frames'] == 0 and not report['complete']
        assert [part['found'] for part in report['parts']] == [0] * len(report['parts'])
        assert f'{name} lacks' in report['error']
        assert official_formats()[name].licence[:20] in said.err


def test_check_lists_parts_tasks_and_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_cityscapes(tmp_path / 'cs')
    (root / 'gtFine/train/bochum/bochum_000313_000019_gtFine_labelIds.png').unlink()
    shutil.rmtree(root / 'camera')
    arguments = ('prepare', root, '--check', '--processes', 0, '--json', '-')
    assert run(monkeypatch, *arguments, '--option', 'classes=7') == 1
    said = capfd.readouterr()
    report = json.loads(said.out)
    assert {part['path']: (part['found'], part['official']) for part in report['parts']} == {
        'leftImg8bit/train': (2, 2975),
        'gtFine/train': (1, 2975),
        'disparity/train': (2, 2975),
        'camera/train': (0, 2975),
    }
    assert report['frames'] == report['broken_frames'] == 2
    assert report['broken']['mask missing']['count'] == 1
    assert report['broken']['depth or camera missing']['count'] == 2
    assert 'broken: 1 x mask missing' in said.err
    assert 'bochum_000313_000019_gtFine_labelIds.png: mask missing' in said.err
    assert not list(tmp_path.glob('**/*.npy')), 'a check writes nothing'


def test_check_of_whole_data_is_quiet_and_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_imagenet(tmp_path / 'animals')
    arguments = ('prepare', root, '--check', '--processes', 0, '--json', '-')
    assert run(monkeypatch, *arguments) == 0
    report = json.loads(capfd.readouterr().out)
    assert report['complete'] and report['tasks'] == {'classification': 4}
    rooms = write_pictures(tmp_path / 'rooms', count=2)
    assert run(monkeypatch, 'prepare', rooms, '--check') == 0
    assert 'all 2 frames of train are whole' in ' '.join(capfd.readouterr().err.split())
    (rooms / 'train/depth/0001.png').unlink()
    assert run(monkeypatch, 'prepare', rooms, '--check') == 2
    assert '0001.png: missing' in ''.join(capfd.readouterr().err.split('\n'))


def test_prepare_writes_arrays_of_an_official_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / 'coco')
    cut_off(root / 'val2017/000000000030.jpg')
    arguments = (
        'prepare', root, '--split', 'val2017', '--cache', tmp_path / 'cache', '--size', '32x64',
        '--processes', 0, '--json', '-',
    )  # fmt: skip
    assert run(monkeypatch, *arguments) == 2
    assert '--skip-broken' in capfd.readouterr().err
    assert run(monkeypatch, *arguments, '--skip-broken') == 0
    said = capfd.readouterr()
    report = json.loads(said.out)
    assert report['frames'] == 2 and report['findings']['broken_frames'] == 1
    assert '1 of 3 frames left out' in said.err
    assert run(monkeypatch, *arguments, '--option', 'colour=red') == 2
    assert run(monkeypatch, *arguments, '--format', 'voc') == 2
