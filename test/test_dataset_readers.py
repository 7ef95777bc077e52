"""Official layouts of other data sets: what frames say, and what is named when files are bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from official_layouts import (  # noqa: E402
    SIZE,
    bdd_label,
    coco_annotation,
    coco_content,
    cut_off,
    write_ade20k,
    write_bdd100k,
    write_cityscapes,
    write_coco,
    write_imagenet,
    write_json,
    write_office31,
    write_picture,
    write_pixels,
)

from mtl_perception.datasets import DatasetError, read_picture, region_of  # noqa: E402
from mtl_training.datasets.ade20k import Ade20k  # noqa: E402
from mtl_training.datasets.bdd100k import Bdd100k  # noqa: E402
from mtl_training.datasets.cityscapes import Cityscapes  # noqa: E402
from mtl_training.datasets.coco import Coco  # noqa: E402
from mtl_training.datasets.findings import BREAKING, Findings, Problem  # noqa: E402
from mtl_training.datasets.image_folder import ImageFolder  # noqa: E402
from mtl_training.datasets.inspection import Inspection, inspect  # noqa: E402
from mtl_training.datasets.office31 import Office31  # noqa: E402
from mtl_training.datasets.reader import RawBox, clean_boxes  # noqa: E402


def counts(inspection: Inspection) -> dict[Problem, int]:
    return inspection.findings.counts


def only_text(inspection: Inspection, problem: Problem) -> str:
    texts = inspection.findings.texts(problem)
    assert len(texts) == 1, texts
    return texts[0]


# What frames say


def test_bdd100k_frames_have_boxes_attributes_and_drivable_areas(tmp_path: Path) -> None:
    reader = Bdd100k(write_bdd100k(tmp_path), 'train')
    assert reader.tasks == ('segmentation', 'detection', 'classification')
    assert [spec.name for spec in reader.classes] == ['direct', 'alternative', 'background']
    first, second, third = (reader.read(index) for index in range(3))
    # Stored corners include the last pixel.
    np.testing.assert_allclose(first.boxes, [[10.5, 8, 20.5, 16.25], [2, 2, 5, 10]])
    assert [reader.box_classes[k] for k in first.box_labels] == ['car', 'traffic light']
    assert first.boxes.dtype == np.float32 and first.box_labels.dtype == np.int64
    named = {spec.name: spec.classes for spec in reader.attributes}
    said = {name: named[name][k] for name, k in first.attributes.items()}
    assert said == {'weather': 'clear', 'scene': 'city street', 'timeofday': 'night'}
    assert 'weather' not in second.attributes
    assert named['timeofday'][second.attributes['timeofday']] == 'dawn/dusk'
    assert third.boxes.shape == (0, 4), 'a listed picture without labels shows nothing'
    assert first.label[40, 20] == 0 and first.label[40, 45] == 1 and first.label[0, 0] == 2


def test_bdd100k_labels_of_2018_are_read_with_their_names(tmp_path: Path) -> None:
    write_bdd100k(tmp_path)
    new = tmp_path / 'labels/det_20/det_train.json'
    frames = json.loads(new.read_text())
    area = {'category': 'drivable area', 'poly2d': [{'vertices': [[0, 0]]}], 'id': 7}
    frames[0]['labels'] = [
        bdd_label('person', 1, 1, 5, 9),
        bdd_label('bike', 11, 1, 15, 9),
        bdd_label('motor', 21, 1, 25, 9),
        area,
    ]
    new.unlink()
    write_json(tmp_path / 'labels/bdd100k_labels_images_train.json', frames)
    reader = Bdd100k(tmp_path, 'train')
    labels = [reader.box_classes[k] for k in reader.read(0).box_labels]
    assert labels == ['pedestrian', 'bicycle', 'motorcycle']
    inspection = inspect(reader)
    assert 'label 7 (drivable area) has no box2d' in only_text(inspection, Problem.NO_BOX)


def test_bdd100k_people_that_are_not_judged_are_regions(tmp_path: Path) -> None:
    write_bdd100k(tmp_path)
    file = tmp_path / 'labels/det_20/det_train.json'
    frames = json.loads(file.read_text())
    frames[0]['labels'] = [
        bdd_label('other person', 1, 1, 5, 9),
        bdd_label('pedestrian', 11, 1, 15, 9, crowd=True),
        bdd_label('rider', 21, 1, 25, 9),
    ]
    write_json(file, {'frames': frames})
    reader = Bdd100k(tmp_path, 'train')
    pedestrians = region_of(reader.box_classes.index('pedestrian'))
    rider = reader.box_classes.index('rider')
    assert reader.read(0).box_labels.tolist() == [pedestrians, pedestrians, rider]
    assert counts(inspect(reader))[Problem.REGION] == 2


def test_bdd100k_semantic_masks_are_the_19_classes(tmp_path: Path) -> None:
    reader = Bdd100k(write_bdd100k(tmp_path), 'train', pictures='10k')
    assert reader.tasks == ('segmentation',) and len(reader.classes) == 19
    frame = reader.read(0)
    assert frame.boxes is None and frame.attributes is None
    np.testing.assert_array_equal(np.unique(frame.label), [*range(19), 255])
    assert reader.classes[13].name == 'car' and frame.label[0, 13] == 13


# From the published table of labels: id -> (train id, category), for those that are evaluated.
CITYSCAPES_LABELS = {
    7: (0, 0), 8: (1, 0), 11: (2, 1), 12: (3, 1), 13: (4, 1), 17: (5, 2), 19: (6, 2), 20: (7, 2),
    21: (8, 3), 22: (9, 3), 23: (10, 4), 24: (11, 5), 25: (12, 5), 26: (13, 6), 27: (14, 6),
    28: (15, 6), 31: (16, 6), 32: (17, 6), 33: (18, 6),
}  # fmt: skip


@pytest.mark.parametrize(('classes', 'place'), [(19, 0), (7, 1)])
def test_cityscapes_label_ids_become_classes(tmp_path: Path, classes: int, place: int) -> None:
    reader = Cityscapes(write_cityscapes(tmp_path), 'train', classes=classes)
    assert len(reader.classes) == classes and reader.ids[0] == 'aachen_000000_000019'
    label = reader.read(0).label.ravel()[:34]
    expected = [CITYSCAPES_LABELS.get(k, (255, 255))[place] for k in range(34)]
    np.testing.assert_array_equal(label, expected)


def test_cityscapes_disparity_becomes_metres_of_its_camera(tmp_path: Path) -> None:
    reader = Cityscapes(write_cityscapes(tmp_path), 'train')
    frame = reader.read(0)
    assert reader.tasks == ('segmentation', 'depth')
    assert frame.depth[5, 5] == pytest.approx(0.209313 * 70.7 / 4)
    # 0 is invalid, 1 is no disparity at all, 1/256 pixel would be 3.8 km away.
    np.testing.assert_array_equal(frame.depth[0, :3], 0)
    assert frame.depth[0, 3] == pytest.approx(0.209313 * 70.7 / 0.5)
    camera = frame.intrinsics
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (70.7, 70.8, 34.25, 16.03)


def test_cityscapes_without_disparity_or_of_the_test_split_carries_less(tmp_path: Path) -> None:
    write_cityscapes(tmp_path, 'test')
    test = Cityscapes(tmp_path, 'test')
    assert test.tasks == ('depth',) and test.read(0).label is None and test.classes == ()
    for folder in ('disparity', 'camera'):
        (tmp_path / folder).rename(tmp_path / f'other_{folder}')
    write_cityscapes(tmp_path / 'b')
    for folder in ('disparity', 'camera'):
        (tmp_path / 'b' / folder).rename(tmp_path / 'b' / f'other_{folder}')
    train = Cityscapes(tmp_path / 'b', 'train')
    assert train.tasks == ('segmentation',) and train.read(0).depth is None
    with pytest.raises(DatasetError, match='19 classes or 7 categories'):
        Cityscapes(tmp_path / 'b', 'train', classes=8)


def test_coco_boxes_are_corners_and_crowds_are_regions(tmp_path: Path) -> None:
    reader = Coco(write_coco(tmp_path), 'val2017')
    assert reader.box_classes == ('person', 'car', 'toothbrush')
    assert reader.ids == ['000000000009', '000000000025', '000000000030']
    first, second, third = (reader.read(index) for index in range(3))
    np.testing.assert_allclose(first.boxes, [[10.5, 8.25, 30.5, 18.25], [0, 0, 64, 48]])
    assert first.box_labels.tolist() == [2, region_of(0)]
    assert second.rgb.shape == (40, 30, 3) and second.box_labels.tolist() == [1]
    assert third.boxes.shape == (0, 4) and third.box_labels.shape == (0,)
    inspection = inspect(reader)
    assert 'annotation 2 (person) is a crowd' in only_text(inspection, Problem.REGION)
    assert inspection.carried == {'detection': 3} and not inspection.findings.broken_frames


def test_ade20k_counts_its_150_classes_from_one(tmp_path: Path) -> None:
    reader = Ade20k(write_ade20k(tmp_path), 'training')
    assert len(reader.classes) == 150
    names = [reader.classes[k].name for k in (0, 8, 14, 149)]
    assert names == ['wall', 'windowpane', 'door', 'flag']
    label = reader.read(0).label.ravel()
    assert label[0] == 255
    np.testing.assert_array_equal(label[1:151], np.arange(150))
    assert reader.read(1).label.shape == (40, 30)


@pytest.mark.parametrize(
    'names',
    [
        {'1': ['n01440764', 'tench'], '0': ['n02012849', 'crane']},
        {'n02012849': 'crane', 'n01440764': 'tench'},
    ],
)
def test_imagenet_folders_take_names_and_order_from_the_class_file(
    tmp_path: Path, names: dict[str, Any]
) -> None:
    write_json(write_imagenet(tmp_path) / 'imagenet_class_index.json', names)
    reader = ImageFolder(tmp_path, 'train')
    assert reader.attributes[0].classes == ('crane', 'tench')
    frame = reader.read(reader.ids.index('n01440764/n01440764_18'))
    assert frame.attributes == {'category': 1} and frame.rgb.shape == (48, 40, 3)


def test_folders_without_a_class_file_are_classes_by_name(tmp_path: Path) -> None:
    reader = ImageFolder(write_imagenet(tmp_path), 'train', attribute='animal')
    assert reader.attributes[0].name == 'animal'
    assert reader.attributes[0].classes == ('n01440764', 'n02012849')
    said = {frame_id: reader.read(k).attributes['animal'] for k, frame_id in enumerate(reader.ids)}
    assert said == {name: int(name.startswith('n02012849')) for name in said} and len(said) == 4


def test_the_first_frames_of_class_folders_are_of_many_classes(tmp_path: Path) -> None:
    write_office31(tmp_path)
    ids = Office31(tmp_path, 'webcam').ids
    assert ids == Office31(tmp_path, 'webcam').ids
    assert len({frame_id.split('/')[0] for frame_id in ids[:12]}) == 3


def test_classes_of_one_name_keep_apart(tmp_path: Path) -> None:
    names = {'n01440764': 'crane', 'n02012849': 'crane'}
    write_json(write_imagenet(tmp_path) / 'imagenet_class_index.json', names)
    classes = ImageFolder(tmp_path, 'train').attributes[0].classes
    assert classes == ('crane (n01440764)', 'crane (n02012849)')


def test_office31_domains_share_their_classes(tmp_path: Path) -> None:
    write_office31(tmp_path)
    reader = Office31(tmp_path, 'dslr')
    objects, domains = (spec.classes for spec in reader.attributes)
    assert len(objects) == 31 and len(reader) == 30
    frame = reader.read(reader.ids.index('trash_can/frame_0003'))
    assert objects[frame.attributes['object']] == 'trash_can'
    assert domains[frame.attributes['domain']] == 'dslr'


def test_office31_shares_are_disjoint_and_cover_every_class(tmp_path: Path) -> None:
    write_office31(tmp_path)
    shares = [Office31(tmp_path, f'amazon_{name}').ids for name in ('train', 'val', 'test')]
    assert [len(ids) for ids in shares] == [18, 6, 6]
    together = {frame_id for ids in shares for frame_id in ids}
    assert len(together) == 30 and together == set(Office31(tmp_path, 'amazon').ids)
    for ids in shares:
        assert {frame_id.split('/')[0] for frame_id in ids} == {'back_pack', 'bike', 'trash_can'}
    assert shares[0] == Office31(tmp_path, 'amazon_train').ids


# Bad cases


def test_bad_boxes_are_left_out_clipped_and_counted() -> None:
    findings = Findings()
    raw = [
        RawBox((1, 2, 30, 20), 0, 'good'),
        RawBox((-8, 2, 30, 60), 1, 'beyond'),
        RawBox((63.5, 2, 64.5, 20), 2, 'rounded'),
        RawBox((70, 2, 90, 20), 0, 'outside'),
        RawBox((5, 5, 5, 20), 0, 'flat'),
        RawBox((20, 5, 10, 20), 0, 'turned'),
        RawBox((5, float('nan'), 10, 20), 0, 'nan'),
        RawBox((5, 6, 7), 0, 'three'),
        RawBox('no box', 0, 'text'),
        RawBox(None, 0, 'nothing'),
    ]
    boxes, labels = clean_boxes(raw, 'a', 64, 48, findings)
    np.testing.assert_allclose(boxes, [[1, 2, 30, 20], [0, 2, 30, 48], [63.5, 2, 64, 20]])
    assert labels.tolist() == [0, 1, 2]
    assert findings.counts == {
        Problem.BOX_BROKEN: 4,
        Problem.BOX_EMPTY: 2,
        Problem.BOX_OUTSIDE: 1,
        Problem.BOX_CLIPPED: 1,
    }
    assert findings.texts(Problem.BOX_OUTSIDE) == [
        'a: outside [70.0, 2.0, 90.0, 20.0] lies outside the 64x48 picture'
    ]
    assert not findings.broken_frames


def test_coco_annotations_that_say_nothing_usable_are_named(tmp_path: Path) -> None:
    content = coco_content()
    content['annotations'] += [
        coco_annotation(10, 9, 3, [5, 5, 0, 10]),
        coco_annotation(11, 9, 3, [100, 5, 10, 10]),
        coco_annotation(12, 9, 77, [5, 5, 10, 10]),
        coco_annotation(13, 999, 3, [5, 5, 10, 10]),
        coco_annotation(14, 9, 3, [5, 5, 10]),
        coco_annotation(15, 9, 3, [50, 40, 30, 10]),
    ]
    write_coco(tmp_path, content)
    write_picture(tmp_path / 'val2017/000000000031.jpg')
    inspection = inspect(Coco(tmp_path, 'val2017'))
    assert counts(inspection) == {
        Problem.BOX_BROKEN: 1,
        Problem.BOX_EMPTY: 1,
        Problem.BOX_OUTSIDE: 1,
        Problem.PICTURE_UNKNOWN: 1,
        Problem.BOX_CLIPPED: 1,
        Problem.CATEGORY_UNKNOWN: 1,
        Problem.REGION: 1,
        Problem.NOT_LISTED: 1,
    }
    assert 'annotation 10 (car)' in only_text(inspection, Problem.BOX_EMPTY)
    assert 'annotation 12 (category 77)' in only_text(inspection, Problem.CATEGORY_UNKNOWN)
    assert 'annotation 13 is of picture 999' in only_text(inspection, Problem.PICTURE_UNKNOWN)
    assert '000000000031.jpg' in only_text(inspection, Problem.NOT_LISTED)
    labels = Coco(tmp_path, 'val2017').read(0).box_labels
    assert labels.tolist() == [2, region_of(0), -1, 1], (
        'the unknown category is a region, not a negative'
    )


def test_coco_pictures_of_another_size_than_annotated_are_broken(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_picture(tmp_path / 'val2017/000000000025.jpg', (30, 40))
    inspection = inspect(Coco(tmp_path, 'val2017'))
    text = only_text(inspection, Problem.OTHER_SIZE)
    assert '000000000025.jpg: 40x30 pixels, annotated as 30x40' in text
    assert inspection.carried == {'detection': 2}
    with pytest.raises(DatasetError, match='annotated as 30x40'):
        Coco(tmp_path, 'val2017').read(1)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda c: c['images'][0].update(file_name='../secret.jpg'), 'a file of its folder'),
        (lambda c: c['images'][0].update(file_name='/etc/secret.jpg'), 'a file of its folder'),
        (lambda c: c['images'][0].pop('width'), 'is broken'),
        (lambda c: c.pop('categories'), 'is broken'),
    ],
)
def test_coco_files_of_another_form_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    content = coco_content()
    change(content)
    with pytest.raises(DatasetError, match=words):
        Coco(write_coco(tmp_path, content), 'val2017')


def test_coco_pictures_that_are_listed_twice_are_named(tmp_path: Path) -> None:
    content = coco_content()
    content['images'].append(content['images'][1])
    inspection = inspect(Coco(write_coco(tmp_path, content), 'val2017'))
    assert '000000000025.jpg (id 25)' in only_text(inspection, Problem.REPEATED)
    assert list(inspection.findings.broken_frames) == ['000000000025']


def test_bdd100k_bad_labels_are_named(tmp_path: Path) -> None:
    write_bdd100k(tmp_path)
    file = tmp_path / 'labels/det_20/det_train.json'
    frames = json.loads(file.read_text())
    frames[0]['attributes']['weather'] = 'hail'
    frames[0]['labels'] = [
        bdd_label('hovercraft', 1, 1, 9, 9),
        bdd_label('car', 5, 5, 5, 9),
        bdd_label('car', 90, 5, 95, 9),
        {'id': 'x', 'category': 'car', 'box2d': {'x1': 3, 'y1': 4, 'x2': 'far'}},
    ]
    frames.append({'name': 'absent.jpg', 'labels': None})
    write_json(file, frames)
    write_picture(tmp_path / 'images/100k/train/stray.jpg')
    inspection = inspect(Bdd100k(tmp_path, 'train'))
    found = counts(inspection)
    assert 'stray.jpg: not in det_train.json' in only_text(inspection, Problem.NOT_LISTED)
    assert 'absent.jpg: picture missing' in only_text(inspection, Problem.PICTURE_MISSING)
    assert "weather 'hail' is none of" in only_text(inspection, Problem.ATTRIBUTE_UNKNOWN)
    assert '(hovercraft): no such category' in only_text(inspection, Problem.CATEGORY_UNKNOWN)
    assert found[Problem.BOX_EMPTY] == found[Problem.BOX_OUTSIDE] == 1
    assert found[Problem.BOX_BROKEN] == 1 and found[Problem.ATTRIBUTE_UNDEFINED] == 1
    # stray.jpg and absent.jpg have no drivable masks.
    assert found[Problem.MASK_MISSING] == 2
    assert set(inspection.findings.broken_frames) == {'absent', 'stray'}
    assert inspection.frames == 5 and inspection.carried['detection'] == 3


def bad_files(mask: Path, picture: Path, wrong_value: int) -> list[tuple[Problem, Callable]]:
    """Return every way in which a frame of picture and mask can be bad."""
    good = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
    wrong = good.copy()
    wrong[3, 4] = wrong_value
    return [
        (Problem.MASK_MISSING, mask.unlink),
        (Problem.MASK_BROKEN, lambda: cut_off(mask)),
        (Problem.MASK_BROKEN, lambda: write_pixels(mask, cv2.merge([good] * 3))),
        (Problem.MASK_BROKEN, lambda: write_pixels(mask, good.astype(np.uint16))),
        (Problem.MASK_VALUE, lambda: write_pixels(mask, wrong)),
        (Problem.OTHER_SIZE, lambda: write_pixels(mask, good[1:])),
        (Problem.PICTURE_MISSING, picture.unlink),
        (Problem.PICTURE_BROKEN, lambda: cut_off(picture)),
        (Problem.PICTURE_BROKEN, lambda: picture.write_bytes(b'<html>sign in</html>')),
        (Problem.PICTURE_BROKEN, lambda: picture.write_bytes(b'')),
    ]


@pytest.mark.parametrize('case', range(10))
@pytest.mark.parametrize('name', ['ade20k', 'bdd_drivable', 'bdd_semantic', 'cityscapes'])
def test_bad_masks_and_pictures_are_named_and_counted(
    tmp_path: Path, name: str, case: int
) -> None:
    write, open_reader, mask, picture, wrong_value = {
        'ade20k': (
            write_ade20k,
            lambda: Ade20k(tmp_path, 'training'),
            'annotations/training/ADE_train_00000001.png',
            'images/training/ADE_train_00000001.jpg',
            151,
        ),
        'bdd_drivable': (
            write_bdd100k,
            lambda: Bdd100k(tmp_path, 'train'),
            'labels/drivable/masks/train/0000f77c-62c2a288.png',
            'images/100k/train/0000f77c-62c2a288.jpg',
            3,
        ),
        'bdd_semantic': (
            write_bdd100k,
            lambda: Bdd100k(tmp_path, 'train', pictures='10k'),
            'labels/sem_seg/masks/train/0a0b16e4-93f8c456.png',
            'images/10k/train/0a0b16e4-93f8c456.jpg',
            19,
        ),
        'cityscapes': (
            write_cityscapes,
            lambda: Cityscapes(tmp_path, 'train'),
            'gtFine/train/bochum/bochum_000313_000019_gtFine_labelIds.png',
            'leftImg8bit/train/bochum/bochum_000313_000019_leftImg8bit.png',
            34,
        ),
    }[name]
    write(tmp_path)
    problem, damage = bad_files(tmp_path / mask, tmp_path / picture, wrong_value)[case]
    whole = len(open_reader())
    damage()
    reader = open_reader()
    if name == 'cityscapes' and problem == Problem.PICTURE_MISSING:
        # Frames are named by their pictures; the count of the split shows what is missing.
        parts = {part.path: part.found for part in reader.parts(tmp_path, 'train')}
        assert parts['leftImg8bit/train'] == whole - 1 < parts['gtFine/train']
        assert not inspect(reader).complete
        return
    inspection = inspect(reader)
    breaking = {key: value for key, value in counts(inspection).items() if key in BREAKING}
    assert breaking == {problem: 1}
    file = picture if problem in (Problem.PICTURE_MISSING, Problem.PICTURE_BROKEN) else mask
    assert Path(file).name in only_text(inspection, problem)
    assert len(inspection.findings.broken_frames) == 1 and not inspection.complete
    assert inspection.carried['segmentation'] == whole - 1, 'the other frames stand'
    with pytest.raises(DatasetError, match=f'1 of {whole} frames'):
        reader.check()


@pytest.mark.parametrize(
    ('damage', 'problem', 'words'),
    [
        (lambda f: f['disparity'].unlink(), Problem.DEPTH_MISSING, 'disparity missing'),
        (lambda f: f['camera'].unlink(), Problem.DEPTH_MISSING, 'camera missing'),
        (lambda f: cut_off(f['disparity']), Problem.DEPTH_BROKEN, 'cut off'),
        (
            lambda f: write_pixels(f['disparity'], np.zeros((32, 64), np.uint8)),
            Problem.DEPTH_BROKEN,
            'expected one channel of 16 bits',
        ),
        (
            lambda f: write_pixels(f['disparity'], np.zeros((16, 32), np.uint16)),
            Problem.OTHER_SIZE,
            '32x16 pixels, its picture has 64x32',
        ),
        (lambda f: f['camera'].write_text('{'), Problem.DEPTH_BROKEN, 'cannot be read'),
        (
            lambda f: write_json(f['camera'], {'intrinsic': {'fx': 1}}),
            Problem.DEPTH_BROKEN,
            'is no camera',
        ),
        (
            lambda f: write_json(
                f['camera'],
                {
                    'extrinsic': {'baseline': 0},
                    'intrinsic': {'fx': 1, 'fy': 1, 'u0': 0, 'v0': 0},
                },
            ),
            Problem.DEPTH_BROKEN,
            'baseline 0.0 m',
        ),
    ],
)
def test_bad_disparities_and_cameras_are_named(
    tmp_path: Path, damage: Callable[[dict[str, Path]], object], problem: Problem, words: str
) -> None:
    write_cityscapes(tmp_path)
    stem = 'train/aachen/aachen_000000_000019'
    damage(
        {
            'disparity': tmp_path / f'disparity/{stem}_disparity.png',
            'camera': tmp_path / f'camera/{stem}_camera.json',
        }
    )
    inspection = inspect(Cityscapes(tmp_path, 'train'))
    assert counts(inspection) == {problem: 1}
    assert words in only_text(inspection, problem)
    assert inspection.carried == {'segmentation': 1, 'depth': 1}


def test_pictures_of_no_known_class_are_named(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    write_json(tmp_path / 'imagenet_class_index.json', {'n01440764': 'tench'})
    write_picture(tmp_path / 'train/ILSVRC2012_val_00000001.JPEG')
    cut_off(tmp_path / 'train/n01440764/n01440764_18.JPEG')
    inspection = inspect(ImageFolder(tmp_path, 'train'))
    assert 'n02012849: no known class (2 pictures)' in only_text(inspection, Problem.CLASS_UNKNOWN)
    assert 'ILSVRC2012_val_00000001.JPEG' in only_text(inspection, Problem.NO_CLASS)
    assert 'n01440764_18.JPEG: cut off' in only_text(inspection, Problem.PICTURE_BROKEN)
    assert inspection.carried == {'classification': 1} and inspection.frames == 2


def test_flat_validation_pictures_are_refused_with_the_fix(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    write_picture(tmp_path / 'val/ILSVRC2012_val_00000001.JPEG')
    with pytest.raises(DatasetError, match='folders of classes with pictures'):
        ImageFolder(tmp_path, 'val')


def test_office31_strange_folders_are_named(tmp_path: Path) -> None:
    write_office31(tmp_path, pictures=2)
    write_picture(tmp_path / 'amazon/images/banana/frame_0001.jpg')
    inspection = inspect(Office31(tmp_path, 'amazon'))
    assert 'banana' in only_text(inspection, Problem.CLASS_UNKNOWN)
    assert inspection.frames == 6 and not inspection.complete, '6 of 2817 pictures are there'


@pytest.mark.parametrize(
    ('open_reader', 'words'),
    [
        (lambda root: Bdd100k(root, 'train'), r'lacks .*images/100k/train'),
        (lambda root: Bdd100k(root, 'dev'), 'has no split'),
        (lambda root: Bdd100k(root, 'train', pictures='1k'), 'not .1k.'),
        (lambda root: Cityscapes(root, 'train'), r'leftImg8bit_trainvaltest.zip'),
        (lambda root: Coco(root, 'val2017'), r'instances_val2017.json'),
        (lambda root: Ade20k(root, 'training'), r'ADEChallengeData2016.zip'),
        (lambda root: ImageFolder(root, 'train'), r'ILSVRC2012_img_train.tar'),
        (lambda root: Office31(root, 'webcam'), r'domain_adaptation_images.tar.gz'),
    ],
)
def test_an_empty_folder_is_told_what_it_lacks_and_from_where(
    tmp_path: Path, open_reader: Callable[[Path], object], words: str
) -> None:
    with pytest.raises(DatasetError, match=words):
        open_reader(tmp_path)


# Pictures as files


def test_bytes_behind_a_jpeg_do_no_harm_and_a_thumbnail_hides_no_cut(tmp_path: Path) -> None:
    path = write_picture(tmp_path / 'a.jpg')
    whole = path.read_bytes()
    path.write_bytes(whole + b'camera maker notes' * 100)
    assert read_picture(path, cv2.IMREAD_COLOR).shape == (*SIZE, 3)
    thumbnail = b'Exif\0\0' + whole
    header = b'\xff\xd8\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
    path.write_bytes(header + whole[2:])
    assert read_picture(path, cv2.IMREAD_COLOR).shape == (*SIZE, 3)
    path.write_bytes(header + whole[2 : len(whole) // 2])
    with pytest.raises(DatasetError, match='cut off'):
        read_picture(path, cv2.IMREAD_COLOR)


def test_pictures_stay_as_stored_where_exif_would_turn_them(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    path = tmp_path / 'train/n01440764/n01440764_18.JPEG'
    data = path.read_bytes()
    # One entry of type SHORT: orientation 6, a quarter turn.
    tiff = b'MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'
    block = b'Exif\0\0' + tiff
    path.write_bytes(
        data[:2] + b'\xff\xe1' + (len(block) + 2).to_bytes(2, 'big') + block + data[2:]
    )
    assert cv2.imread(str(path)).shape == (40, 48, 3), 'OpenCV alone turns it'
    reader = ImageFolder(tmp_path, 'train')
    frame = reader.read(reader.ids.index('n01440764/n01440764_18'))
    assert frame.rgb.shape == (48, 40, 3)
