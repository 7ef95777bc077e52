"""Average precision equals the reference evaluator's; classification figures are as by hand."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mtl_perception.bundle import AttributeSpec
from mtl_perception.datasets import region_of
from mtl_perception.metrics import (
    ClassificationMetrics,
    DetectionMetrics,
    MultiTaskMetrics,
    class_targets,
)

NAMES = ('bed', 'chair', 'table', 'unseen')
ROOM = AttributeSpec(name='room', kind='single', classes=('kitchen', 'office', 'bathroom'))
SEEN = AttributeSpec(name='seen', kind='multi', classes=('cup', 'lamp'))

Picture = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def random_pictures(seed: int, crowds: str = 'none') -> list[Picture]:
    """Return pictures with true boxes, noisy copies of them, false ones and double ones."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(12):
        count = int(rng.integers(0, 9))
        corner = rng.uniform(0, 250, (count, 2))
        true = np.hstack([corner, corner + rng.uniform(4, 120, (count, 2))])
        true_labels = rng.integers(0, 3, count)
        copies = rng.integers(0, 3, count)
        near = np.repeat(true, copies, axis=0) + rng.normal(0, 5, (copies.sum(), 4))
        wild = rng.uniform(0, 200, (int(rng.integers(0, 6)), 2))
        found = np.vstack([near, np.hstack([wild, wild + rng.uniform(2, 60, wild.shape)])])
        labels = np.concatenate([np.repeat(true_labels, copies), rng.integers(0, 4, len(wild))])
        swapped = rng.random(len(labels)) < 0.15
        labels = np.where(swapped, rng.integers(0, 3, len(labels)), labels)
        if crowds != 'none' and count:
            true_labels[0] = -1 if crowds == 'of any class' else region_of(true_labels[0])
        pictures.append((found, rng.random(len(found)), labels, true, true_labels))
    return pictures


def filled(pictures: list[Picture]) -> DetectionMetrics:
    """Return the accumulator of some pictures."""
    metrics = DetectionMetrics(NAMES)
    for picture in pictures:
        metrics.update(*picture)
    return metrics


def reference(pictures: list[Picture]) -> tuple[np.ndarray, np.ndarray]:
    """Return pycocotools' twelve figures and its precision [10, 101, classes]."""

    def bbox(box: np.ndarray) -> list[float]:
        x0, y0, x1, y1 = box.astype(np.float32).astype(float)
        return [x0, y0, x1 - x0, y1 - y0]

    annotations, results = [], []
    for image, (found, scores, labels, true, true_labels) in enumerate(pictures, 1):
        for box, label in zip(true, true_labels, strict=True):
            of_class = {label, region_of(label)} & set(range(len(NAMES)))
            for category in of_class or range(len(NAMES)):
                x, y, w, h = bbox(box)
                annotations.append(
                    {
                        'id': len(annotations) + 1, 'image_id': image,
                        'category_id': int(category), 'bbox': [x, y, w, h], 'area': w * h,
                        'iscrowd': int(label < 0),
                    }
                )  # fmt: skip
        results += [
            {'image_id': image, 'category_id': int(c), 'bbox': bbox(box), 'score': float(s)}
            for box, s, c in zip(found, scores.astype(np.float32), labels, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            'info': {},
            'images': [{'id': image} for image in range(1, len(pictures) + 1)],
            'categories': [{'id': k, 'name': name} for k, name in enumerate(NAMES)],
            'annotations': annotations,
        }
        known.createIndex()
        judge = COCOeval(known, known.loadRes(results), 'bbox')
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats, judge.eval['precision'][:, :, :, 0, 2]


@pytest.mark.parametrize('crowds', ['none', 'of any class', 'of one class'])
@pytest.mark.parametrize('seed', range(5))
def test_average_precision_equals_the_reference_evaluators(seed: int, crowds: str) -> None:
    pictures = random_pictures(seed, crowds)
    stats, precision = reference(pictures)
    metrics = filled(pictures)
    figures = metrics.compute()
    assert 0.05 < stats[0] < 0.95
    assert figures['ap'] == pytest.approx(stats[0], abs=1e-4)
    assert figures['ap50'] == pytest.approx(stats[1], abs=1e-4)
    assert figures['ap75'] == pytest.approx(stats[2], abs=1e-4)
    assert figures['ar100'] == pytest.approx(stats[8], abs=1e-4)
    curves = metrics.precision_recall()['precision']
    assert list(curves) == list(NAMES[:3])
    for k, name in enumerate(NAMES[:3]):
        per_class = figures['per_class'][name]
        assert per_class['ap'] == pytest.approx(precision[:, :, k].mean(), abs=1e-4)
        assert per_class['ap50'] == pytest.approx(precision[0, :, k].mean(), abs=1e-4)
        assert curves[name] == pytest.approx(precision[0, :, k], abs=1e-4)
    assert figures['per_class']['unseen']['ap'] is None


def test_parts_merged_and_stored_give_the_whole() -> None:
    pictures = random_pictures(9, 'of one class')
    whole = filled(pictures)
    first, second = filled(pictures[:5]), DetectionMetrics(NAMES)
    second.load_state(filled(pictures[5:]).state())
    first.merge(second)
    assert first.frames == len(pictures)
    assert first.compute() == whole.compute()
    assert first.precision_recall(0.75) == whole.precision_recall(0.75)


def test_perfect_boxes_score_one_and_empty_slots_do_not_count() -> None:
    boxes = np.array([[10, 10, 50, 60], [70, 20, 90, 80], [0, 0, 0, 0]], np.float32)
    metrics = DetectionMetrics(NAMES)
    metrics.update(boxes, np.array([0.9, 0.8, 0]), np.array([0, 1, -1]), boxes[:2], [0, 1])
    figures = metrics.compute()
    assert figures['ap'] == figures['ap50'] == figures['ar100'] == 1.0
    assert (figures['boxes'], figures['detections']) == (2, 2)


def test_without_pictures_or_things_there_is_no_figure() -> None:
    metrics = DetectionMetrics(NAMES)
    assert metrics.compute()['ap'] is None
    metrics.update(np.empty((0, 4)), np.empty(0), np.empty(0, int), np.empty((0, 4)), [])
    assert metrics.compute()['ap'] is None
    assert metrics.precision_recall()['precision'] == {}


def test_nothing_found_is_an_average_precision_of_zero() -> None:
    metrics = DetectionMetrics(NAMES)
    metrics.update(np.empty((0, 4)), np.empty(0), np.empty(0, int), [[0, 0, 9, 9]], [2])
    assert metrics.compute()['ap'] == 0.0
    assert metrics.compute()['per_class']['table']['boxes'] == 1


def test_boxes_that_do_not_fit_are_refused() -> None:
    metrics = DetectionMetrics(NAMES)
    none = (np.empty((0, 4)), np.empty(0, int))
    with pytest.raises(ValueError, match=r'expected \[M, 4\]'):
        metrics.update(np.zeros((2, 5)), np.zeros(2), np.zeros(2, int), *none)
    with pytest.raises(ValueError, match=r'labels 4\.\.4: expected -1\.\.3'):
        metrics.update(np.zeros((1, 4)), np.zeros(1), np.array([4]), *none)
    with pytest.raises(ValueError, match='1 boxes but scores'):
        metrics.update(np.zeros((1, 4)), np.zeros(2), np.array([1]), *none)
    with pytest.raises(ValueError, match='expected one of'):
        metrics.precision_recall(0.52)


def test_single_attribute_is_judged_by_its_best_class() -> None:
    metrics = ClassificationMetrics([ROOM, SEEN])
    rooms = [('kitchen', 'kitchen'), ('kitchen', 'office'), ('office', 'office'), (None, 'office')]
    for truth, answer in rooms:
        known = {'seen': ['cup']} if truth is None else {'room': truth}
        scores = np.array([0.2] * 3 + [0.7, 0.6], np.float32)
        scores[ROOM.classes.index(answer)] = 0.6
        metrics.update(scores, class_targets([ROOM, SEEN], known))
    figures = metrics.compute()
    room, seen = figures['attributes']['room'], figures['attributes']['seen']
    assert room['confusion'] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert room['accuracy'] == pytest.approx(2 / 3)
    assert room['top5'] == 1.0
    assert room['classes']['kitchen'] == {
        'precision': 1.0, 'recall': 0.5, 'f1': pytest.approx(2 / 3), 'support': 2,
    }  # fmt: skip
    assert room['classes']['bathroom']['f1'] is None
    assert room['macro']['precision'] == pytest.approx((1 + 1 / 2) / 2)
    assert room['weighted']['recall'] == pytest.approx(2 / 3)
    assert seen['decisions'] == 2
    assert seen['accuracy'] == 0.5
    assert seen['classes']['lamp'] == {
        'precision': 0.0, 'recall': None, 'f1': 0.0, 'support': 0,
    }  # fmt: skip
    assert figures['accuracy'] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_top5_counts_the_five_best() -> None:
    many = AttributeSpec(name='scene', kind='single', classes=tuple('abcdefg'))
    metrics = ClassificationMetrics([many])
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    targets = np.stack([class_targets([many], {'scene': c}) for c in 'bcg'])
    metrics.update(np.tile(scores, (3, 1)), targets)
    report = metrics.compute()['attributes']['scene']
    assert report['top5'] == pytest.approx(2 / 3)
    assert report['accuracy'] == pytest.approx(1 / 3)


def test_answers_that_the_network_cannot_give_are_unknown() -> None:
    assert class_targets([ROOM, SEEN], {'room': 'cellar'}).tolist() == [-1] * 5
    assert class_targets([ROOM, SEEN], {'seen': []}).tolist() == [-1, -1, -1, 0, 0]
    assert class_targets([ROOM, SEEN], {'room': 'office', 'seen': ['lamp', 'cat']}).tolist() == [
        0, 1, 0, 0, 1,
    ]  # fmt: skip


def test_classification_merged_and_stored_gives_the_whole() -> None:
    rng = np.random.default_rng(3)
    scores = rng.random((40, 5)).astype(np.float32)
    targets = np.stack(
        [
            class_targets([ROOM, SEEN], {'room': rng.choice(ROOM.classes), 'seen': ['cup']})
            for _ in range(40)
        ]
    )
    whole, first, second = (ClassificationMetrics([ROOM, SEEN]) for _ in range(3))
    whole.update(scores, targets)
    first.update(scores[:15], targets[:15])
    part = ClassificationMetrics([ROOM, SEEN])
    part.update(scores[15:], targets[15:])
    second.load_state(part.state())
    first.merge(second)
    assert first.compute() == whole.compute()


def test_all_tasks_accumulate_together_and_absent_truth_is_left_out() -> None:
    def fresh() -> MultiTaskMetrics:
        return MultiTaskMetrics(
            ['depth', 'detection', 'classification'], (), box_classes=NAMES, attributes=[ROOM]
        )

    box = np.array([[2, 2, 20, 30]], np.float32)
    prediction = {
        'depth': np.ones((4, 4), np.float32),
        'boxes': box,
        'box_scores': np.array([0.8], np.float32),
        'box_labels': np.array([1], np.int32),
        'class_scores': np.array([0.7, 0.2, 0.1], np.float32),
    }
    metrics = fresh()
    truth = {'boxes': box, 'box_labels': np.array([1])}
    metrics.update(prediction, truth)
    metrics.update(prediction, {'class_targets': class_targets([ROOM], {'room': 'kitchen'})})
    stored = fresh()
    stored.load_state(metrics.state())
    figures = stored.compute()
    assert figures['frames'] == 2
    assert figures['depth']['pixels'] == 0
    assert figures['detection']['ap'] == 1.0
    assert figures['classification']['attributes']['room']['decisions'] == 1
