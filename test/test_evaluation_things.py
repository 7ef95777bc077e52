"""True boxes and classes of folders and bags, and what evaluate says of predicted ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
from bag_writing import IMAGE, PERIOD_NS, START_NS, bag_sink
from rosbags.typesys import Stores, get_typestore
from tiny_things import ATTRIBUTES, TASKS, box_size, paint_marker, write_things_bundle
from typer.testing import CliRunner

from mtl_perception.bundle import ModelBundle
from mtl_perception.cli import app
from mtl_perception.evaluation.results import SCHEMA_PATH
from mtl_perception.evaluation.things import (
    Hits,
    count_answers,
    count_hits,
    named_attributes,
    unknown_answers,
)
from mtl_perception.frames import CameraFrame
from mtl_perception.recordings import RecordedFrame, TopicChoice, TrueBoxes, open_recording
from mtl_perception.recordings import _vision_msgs as vision_msgs
from mtl_perception.recordings._storage import Bag

SCHEMA = json.loads(SCHEMA_PATH.read_text())
BOXES = '/ground_truth/detections'
CLASSES = '/ground_truth/classification'
NAMES = ('chair', 'table')  # of the red and the green marker
SCALE = 4  # picture pixels per pixel of the network
SIZE = (48 * SCALE, 64 * SCALE)
FRAMES = 6


def room(index: int) -> tuple[np.ndarray, list[tuple[str, list[float]]]]:
    """Return a picture in which the network finds a chair and a table, and their true boxes."""
    pixels = np.full((*SIZE, 3), 30, np.uint8)
    pixels[..., index % 3] = 90  # kitchen, office, bathroom by the prevailing colour
    things = []
    for marker, name, cell, blue in (
        ('lamp', 'chair', (2 + index % 3, 3), 50 + 5 * index),
        ('cup', 'table', (8, 10 + index % 4), 90),
    ):
        paint_marker(pixels, marker, cell, blue, pixels_per_cell=4 * SCALE)
        y, x = ((4 * index + 2) * SCALE for index in cell)
        half = [size * SCALE / 2 for size in box_size(blue)]
        things.append((name, [x - half[0], y - half[1], x + half[0], y + half[1]]))
    return pixels, things


def write_folder(root: Path, change: Callable[[dict[str, Any]], None] = lambda f: None) -> Path:
    """Write the rooms as a world's picture folder."""
    split = root / 'test'
    (split / 'rgb').mkdir(parents=True)
    (split / 'scenes').mkdir()
    frames, cameras = {}, {}
    for index in range(FRAMES):
        pixels, things = room(index)
        cv2.imwrite(str(split / 'rgb' / f'{index:03d}.png'), pixels[..., ::-1])
        frames[f'{index:03d}'] = {
            'boxes': [{'label': name, 'box': box} for name, box in things],
            'room': ATTRIBUTES[0].classes[index % 3],
        }
        cameras[f'{index:03d}'] = {'intrinsics': [200, 200, 127.5, 95.5], 'pose': None}
    for frame in frames.values():
        change(frame)
    (split / 'scenes' / '00000.json').write_text(json.dumps({'frames': frames}))
    (split / 'cameras.json').write_text(json.dumps({'frames': cameras}))
    return root


def write_bag(path: Path, boxes_topic: str = BOXES) -> Path:
    """Write the rooms as a bag whose truth is vision_msgs."""
    with bag_sink(path) as sink:
        vision_msgs.register(sink.store)
        for index in range(FRAMES):
            pixels, things = room(index)
            stamp = START_NS + index * PERIOD_NS
            sink.image(IMAGE, pixels, 'rgb8', stamp)
            header = sink.header(stamp, 'camera')
            message = vision_msgs.make_detections(
                sink.store,
                header,
                np.array([box for _, box in things]),
                [name for name, _ in things],
                np.ones(len(things)),
            )
            sink.write(boxes_topic, message.__msgtype__, stamp, message)
            kind = ATTRIBUTES[0].classes[index % 3]
            message = vision_msgs.make_classification(
                sink.store, header, [(f'room/{kind}', 1.0), ('room/cellar', 0.2)]
            )
            sink.write(CLASSES, message.__msgtype__, stamp, message)
    return path


@pytest.fixture(scope='module')
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return write_things_bundle(tmp_path_factory.mktemp('bundles') / 'things', names=NAMES)


def run(bundle: ModelBundle, *arguments: str | Path) -> Any:
    command = ['evaluate', *map(str, arguments), '--bundle', str(bundle.path)]
    result = CliRunner().invoke(app, [*command, '--engine', 'onnxruntime', '--threads', '1'])
    assert result.exit_code == 0, result.output
    return result


def evaluate(bundle: ModelBundle, source: Path, target: Path, *more: str | Path) -> dict[str, Any]:
    run(bundle, source, '--json', target, '--quiet', *more)
    document = json.loads(target.read_text())
    jsonschema.validate(document, SCHEMA)
    return document


@pytest.mark.parametrize('kind', ['folder', 'bag'])
def test_truth_of_a_recording_is_named(tmp_path: Path, kind: str) -> None:
    path = write_folder(tmp_path / 'f') if kind == 'folder' else write_bag(tmp_path / 'bag')
    recording = open_recording(path)
    assert recording.sources['boxes'] == recording.sources['attributes'] == 'ground truth'
    frames = list(recording.frames())
    assert len(frames) == FRAMES
    for index, frame in enumerate(frames):
        _, things = room(index)
        assert frame.boxes.names == NAMES
        np.testing.assert_allclose(frame.boxes.boxes, [box for _, box in things], atol=1e-3)
        answer = frame.attributes['room']
        assert answer in (ATTRIBUTES[0].classes[index % 3], (ATTRIBUTES[0].classes[index % 3],))


@pytest.mark.parametrize('kind', ['folder', 'bag'])
@pytest.mark.parametrize('tasks', [TASKS, ('detection', 'classification')])
def test_evaluate_gives_average_precision_curves_and_confusion(
    tmp_path: Path, kind: str, tasks: tuple[str, ...]
) -> None:
    bundle = write_things_bundle(tmp_path / 'things', tasks, names=NAMES)
    path = write_folder(tmp_path / 'f') if kind == 'folder' else write_bag(tmp_path / 'bag')
    report = tmp_path / 'report.html'
    document = evaluate(bundle, path, tmp_path / 'out.json', '--report', report)
    detection = document['detection']
    assert detection['ap50'] == detection['recall'] == detection['precision'] == 1.0
    assert detection['ap'] > 0.7
    assert detection['per_class']['chair']['boxes'] == FRAMES
    assert set(detection['curves']['precision']) == set(NAMES)
    classification = document['classification']['attributes']
    assert classification['room']['accuracy'] == 1.0
    assert classification['room']['confusion'] == [[2, 0, 0], [0, 2, 0], [0, 0, 2]]
    assert classification['seen']['accuracy'] is None
    assert document['classification']['accuracy'] == 1.0
    record = document['per_frame'][0]
    assert record['counts']['detection'] == [2, 2, 2]
    assert record['counts']['classification'] == [[1, 1], [0, 0]]
    page = report.read_text()
    for text in ('Boxes: precision against recall', 'Pictures: room', 'data-view="boxes truth"'):
        assert text in page


def test_the_table_names_the_figures(bundle: ModelBundle, tmp_path: Path) -> None:
    output = run(bundle, write_folder(tmp_path / 'f')).output
    words = ' '.join(output.split())
    assert 'AP50 1' in words and 'recall 1' in words and 'room 1' in words


def test_wrong_and_missing_things_show(bundle: ModelBundle, tmp_path: Path) -> None:
    def change(frame: dict[str, Any]) -> None:
        frame['boxes'][0]['box'] = [0, 0, 20, 20]  # the chair is elsewhere
        frame['boxes'].append({'label': 'sofa', 'box': [5, 5, 50, 60]})
        frame['room'] = 'bedroom' if frame['room'] == 'office' else 'kitchen'

    document = evaluate(bundle, write_folder(tmp_path / 'f', change), tmp_path / 'out.json')
    detection = document['detection']
    assert detection['per_class']['chair']['ap50'] == 0.0
    assert detection['per_class']['table']['ap50'] == 1.0
    assert detection['recall'] == detection['precision'] == 0.5
    room_report = document['classification']['attributes']['room']
    assert room_report['confusion'] == [[2, 0, 2], [0, 0, 0], [0, 0, 0]]
    skipped = document['recordings'][0]['skipped']
    assert skipped["true boxes of 'sofa', which the bundle does not know"] == FRAMES
    assert skipped["pictures whose room is 'bedroom', which the bundle does not know"] == 2


def test_classes_that_nobody_looked_for_are_not_judged(tmp_path: Path) -> None:
    # No world draws boxes of lamps or cups.
    bundle = write_things_bundle(tmp_path / 'things')
    document = evaluate(bundle, write_folder(tmp_path / 'f'), tmp_path / 'out.json')
    assert document['detection']['detections'] == 0
    assert document['detection']['ap'] is None
    assert document['detection']['precision'] is None


def test_other_detectors_boxes_are_no_truth_unless_given(tmp_path: Path) -> None:
    bag = write_bag(tmp_path / 'bag', '/yolo/detections')
    assert 'boxes' not in open_recording(bag).sources
    given = open_recording(bag, topics=TopicChoice(boxes='/yolo/detections'))
    assert all(frame.boxes is not None for frame in given.frames())
    wrong = open_recording(bag, topics=TopicChoice(boxes=IMAGE))
    assert any('expected vision_msgs/msg/Detection2DArray' in line for line in wrong.remarks)


def test_a_turned_box_counts_as_the_upright_one_around_it(tmp_path: Path) -> None:
    store = get_typestore(Stores.ROS2_KILTED)
    vision_msgs.register(store)
    with bag_sink(tmp_path / 'bag') as sink:
        vision_msgs.register(sink.store)
        header = sink.header(START_NS, 'camera')
        message = vision_msgs.make_detections(
            sink.store, header, np.array([[10.0, 20, 30, 26]]), ['chair'], np.ones(1)
        )
        message.detections[0].bbox.center.theta = np.pi / 2
        sink.image(IMAGE, room(0)[0], 'rgb8', START_NS)
        sink.write(BOXES, message.__msgtype__, START_NS, message)
        message.detections[0].results = []
        sink.image(IMAGE, room(0)[0], 'rgb8', START_NS + PERIOD_NS)
        message.header = sink.header(START_NS + PERIOD_NS, 'camera')
        sink.write(BOXES, message.__msgtype__, START_NS + PERIOD_NS, message)
    turned, untold = open_recording(tmp_path / 'bag').frames()
    np.testing.assert_allclose(turned.boxes.boxes, [[17, 13, 23, 33]], atol=1e-4)
    assert untold.boxes.names == (None,)


def test_predictions_are_recorded_in_the_cameras_pixels(
    bundle: ModelBundle, tmp_path: Path
) -> None:
    target = tmp_path / 'predictions.mcap'
    run(bundle, write_folder(tmp_path / 'f'), '--record', target, '--quiet')
    with Bag(target) as bag:
        assert bag.topics['/perception/detections'] == vision_msgs.DETECTIONS
        assert bag.topics['/perception/classification'] == vision_msgs.CLASSIFICATION
        messages = [bag.decode(m) for m in bag.messages({'/perception/detections'})]
    assert len(messages) == FRAMES
    for index, message in enumerate(messages):
        boxes = dict(room(index)[1])
        for detection in message.detections:
            center, box = (
                detection.bbox.center.position,
                boxes[detection.results[0].hypothesis.class_id],
            )
            assert center.x == pytest.approx((box[0] + box[2]) / 2, abs=3)
            assert detection.bbox.size_x == pytest.approx(box[2] - box[0], rel=0.1)


def test_two_bundles_are_compared_by_their_boxes(bundle: ModelBundle, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / 'f')
    evaluate(bundle, folder, tmp_path / 'a.json')
    swapped = write_things_bundle(tmp_path / 'swapped', names=NAMES[::-1])
    evaluate(swapped, folder, tmp_path / 'b.json')
    out = tmp_path / 'difference.json'
    arguments = ['--compare', tmp_path / 'a.json', tmp_path / 'b.json', '--json', out, '--quiet']
    result = CliRunner().invoke(app, ['evaluate', *map(str, arguments)])
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())['comparisons'][0]['figures']
    assert figures['detection.recall']['verdict'] == 'worse'
    assert figures['detection.recall']['change'] == -1.0
    assert figures['detection.ap50']['low'] is None
    assert figures['classification.accuracy']['change'] == 0.0


def test_hits_are_counted_once_each() -> None:
    pred = {
        'boxes': np.array(
            [[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [0, 0, 10, 10]], np.float32
        ),
        'box_scores': np.array([0.9, 0.8, 0.7, 0.1], np.float32),
        'box_labels': np.array([0, 0, 1, 0]),
    }
    truth = {
        'boxes': np.array([[0, 0, 10, 10], [20, 20, 30, 30], [45, 45, 70, 70]], np.float32),
        'box_labels': np.array([0, 0, -1]),
    }
    hits = count_hits(pred, truth)
    assert hits == Hits(right=1, found=2, true=2)
    assert hits.figures() == {'precision': 0.5, 'recall': 0.5, 'f1': 0.5}
    assert Hits(0, 0, 0).figures() == {'precision': None, 'recall': None, 'f1': None}


def test_answers_are_counted_by_attribute() -> None:
    scores = np.array([0.2, 0.7, 0.1, 0.8, 0.3], np.float32)
    assert count_answers(ATTRIBUTES, scores, np.array([0, 1, 0, 1, 1])) == [[1, 1], [1, 2]]
    assert count_answers(ATTRIBUTES, scores, np.array([-1, -1, -1, 0, -1])) == [[0, 0], [0, 1]]


def test_answers_without_an_attribute_go_where_they_fit(bundle: ModelBundle) -> None:
    frame = RecordedFrame(
        'x',
        'camera',
        CameraFrame(np.zeros((*SIZE, 3), np.uint8), 'rgb8'),
        boxes=TrueBoxes(np.zeros((2, 4), np.float32), ('table', None)),
        attributes={'': ('office', 'lit')},
    )
    assert named_attributes(frame, ATTRIBUTES) == {'room': ('office',), 'seen': ('lit',)}
    assert not unknown_answers(frame, bundle)
