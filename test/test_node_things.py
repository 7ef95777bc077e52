"""Boxes and classes of the node, over real DDS: in the camera's pixels, in metres, by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from node_rig import (
    FOCAL_LENGTH,
    HEIGHT,
    WIDTH,
    Rig,
    camera_info,
    image_message,
    node_of,
    pixels_of,
    predict,
)
from sensor_msgs.msg import Image
from tiny_things import ATTRIBUTES, box_size, paint_marker, write_things_bundle

from mtl_perception import views
from mtl_perception.bundle import ModelBundle
from mtl_perception.class_filter import ClassFilter
from mtl_perception.datasets import PictureFolder
from mtl_perception.orientation import turn_boxes, turn_image
from mtl_perception.ros import things
from mtl_perception.ros.live import LiveError, LiveFrame, perception_program, replay_live
from mtl_perception.srv import SaveFrame

OVERLAY = '/perception/segmentation/overlay'

pytestmark = pytest.mark.usefixtures('ros_domain')


@pytest.fixture(scope='module')
def bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    return write_things_bundle(tmp_path_factory.mktemp('bundles') / 'things')


@pytest.fixture
def vision_msgs() -> Any:
    return pytest.importorskip(
        'vision_msgs.msg', reason='vision_msgs is not installed (it has no wheels)'
    )


@pytest.fixture
def picture() -> np.ndarray:
    """Return a lamp and a cup in WIDTH x HEIGHT pixels, twice the network's."""
    pixels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    paint_marker(pixels, 'lamp', (3, 4), 80, pixels_per_cell=8)
    paint_marker(pixels, 'cup', (8, 11), 120, pixels_per_cell=8)
    return pixels


def expected_boxes() -> dict[str, list[float]]:
    """Return both boxes in pixels of the picture: x0 y0 x1 y1."""
    boxes = {}
    for name, (row, column), blue in (('lamp', (3, 4), 80), ('cup', (8, 11), 120)):
        x, y = 8 * column + 4, 8 * row + 4
        width, height = (2 * size for size in box_size(blue))
        boxes[name] = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return boxes


def corners(box: Any) -> list[float]:
    x, y = box.center.position.x, box.center.position.y
    return [
        x - box.size_x / 2, y - box.size_y / 2, x + box.size_x / 2, y + box.size_y / 2,
    ]  # fmt: skip


def by_name(message: Any) -> dict[str, Any]:
    return {d.results[0].hypothesis.class_id: d for d in message.detections}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[set[str]]]:
    """Collect the outputs that the engine is asked for."""
    from mtl_perception.engines.onnxruntime import OnnxRuntimeEngine

    asked: list[set[str]] = []
    infer = OnnxRuntimeEngine.infer

    def recording(self: Any, image: np.ndarray, outputs: Any = None) -> dict[str, np.ndarray]:
        asked.append(set(self._bundle.outputs if outputs is None else outputs))
        return infer(self, image, outputs)

    monkeypatch.setattr(OnnxRuntimeEngine, 'infer', recording)
    yield asked


def test_the_overlay_names_boxes_and_classes(
    bundle: ModelBundle, picture: np.ndarray, requests: list[set[str]]
) -> None:
    picture[picture == 255] = 240  # a little less than certain
    large = picture.repeat(4, axis=0).repeat(4, axis=1)
    with node_of(bundle, output_size='camera') as rig:
        rig.collect('/perception/segmentation/mask', Image)
        rig.perceive(image_message(picture))
        assert requests[-1].isdisjoint({'boxes', 'class_scores'})
        rig.collect(OVERLAY, Image)
        stamp = rig.send(image_message(large))
        drawn = pixels_of(rig.wait_for(OVERLAY, stamp)).copy()
        assert {'boxes', 'class_scores', 'label'} <= requests[-1]
        assert rig.set(detection_threshold=1.0) == ['']
        stamp = rig.send(image_message(large))
        without = pixels_of(rig.wait_for(OVERLAY, stamp))
    for spec, box in zip(bundle.box_classes, expected_boxes().values(), strict=True):
        column, row = round(4 * box[0]), round(4 * (box[1] + box[3]) / 2)
        near = np.s_[row : row + 20, column - 6 : column + 7]
        assert (drawn[near] == spec.color).all(-1).any(1).all()
        assert not (without[near] == spec.color).all(-1).any()
    np.testing.assert_array_equal(drawn[-30:], without[-30:])  # the classes' names stay
    assert (drawn[-30:, :100].max(-1) > 200).any()


@pytest.mark.parametrize('tasks', [('detection',), ('detection', 'classification', 'depth')])
def test_bundles_without_segmentation_show_boxes_on_the_picture(
    tmp_path: Path, picture: np.ndarray, tasks: tuple[str, ...]
) -> None:
    with node_of(write_things_bundle(tmp_path / 'things', tasks)) as rig:
        rig.collect(OVERLAY, Image)
        stamp = rig.send(image_message(picture))
        drawn = pixels_of(rig.wait_for(OVERLAY, stamp))
        status = rig.wait_for('/perception/status', stamp)
        topics = [name for name, _ in rig.client.get_topic_names_and_types()]
    assert drawn.shape == (48, 64, 3)
    assert drawn[1, 40].tolist() == [40, 40, 40]
    assert (drawn == [230, 60, 60]).all(-1).any()
    assert (status.output_height, status.output_width) == (48, 64)
    assert '/perception/segmentation/mask' not in topics


def test_without_vision_msgs_the_node_says_what_to_install(
    bundle: ModelBundle, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(things, 'HAVE_VISION_MSGS', False)
    with node_of(bundle, start=False) as rig:
        log = rig.log()
        assert rig.transition(1) and rig.transition(3)
        rig.wait(lambda: [e for e in log if 'vision_msgs' in e.msg], 'explanation')
        (said,) = (entry.msg for entry in log if 'vision_msgs' in entry.msg)
        topics = [name for name, _ in rig.client.get_topic_names_and_types()]
    assert '~/detections, ~/detections_3d, ~/classification' in said
    assert 'sudo apt install' in said
    assert '/perception/detections' not in topics


def detections(rig: Rig, kind: type, picture: np.ndarray, topic: str = 'detections') -> Any:
    full = f'/perception/{topic}'
    if full not in rig.received:
        rig.collect(full, kind)
    return rig.wait_for(full, rig.send(image_message(picture)))


def test_detections_lie_in_the_cameras_pixels(
    bundle: ModelBundle, picture: np.ndarray, vision_msgs: Any, requests: list[set[str]]
) -> None:
    with node_of(bundle) as rig:
        message = detections(rig, vision_msgs.Detection2DArray, picture)
        assert requests[-1] == {'boxes', 'box_scores', 'box_labels'}
    assert message.header.frame_id == 'camera_optical_frame'
    found = by_name(message)
    assert set(found) == {'lamp', 'cup'}
    for name, box in expected_boxes().items():
        assert corners(found[name].bbox) == pytest.approx(box, abs=1.0)
        assert found[name].header == message.header
        assert 0.9 < found[name].results[0].hypothesis.score <= 1.0


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_a_turned_camera_gets_boxes_of_its_own_picture(
    bundle: ModelBundle, picture: np.ndarray, vision_msgs: Any, degrees: int
) -> None:
    lying = np.ascontiguousarray(turn_image(picture, -degrees))
    with node_of(bundle, rotate=degrees) as rig:
        found = by_name(detections(rig, vision_msgs.Detection2DArray, lying))
    for name, box in expected_boxes().items():
        expected = turn_boxes(np.array([box]), (HEIGHT, WIDTH), -degrees)[0]
        assert corners(found[name].bbox) == pytest.approx(expected.tolist(), abs=1.0)


def test_unsure_boxes_are_left_out(
    bundle: ModelBundle, picture: np.ndarray, vision_msgs: Any
) -> None:
    picture[24:32, 32:40, 0] = 180  # a faint lamp: 2 x 180 / 255 - 1
    with node_of(bundle) as rig:
        kind = vision_msgs.Detection2DArray
        assert set(by_name(detections(rig, kind, picture))) == {'lamp', 'cup'}
        assert rig.set(detection_threshold=0.5) == ['']
        assert set(by_name(detections(rig, kind, picture))) == {'cup'}
        assert detections(rig, kind, np.zeros_like(picture)).detections == []


def test_detections_3d_stand_where_the_depth_says(
    bundle: ModelBundle, picture: np.ndarray, vision_msgs: Any
) -> None:
    topic, kind = 'detections_3d', vision_msgs.Detection3DArray
    prediction = predict(bundle, picture)
    with node_of(bundle) as rig:
        log = rig.log()
        rig.collect(f'/perception/{topic}', kind)

        def is_explained() -> bool:
            rig.perceive(image_message(picture))
            return any('no detections_3d' in entry.msg for entry in log)

        rig.wait(is_explained, 'explanation')
        assert rig.received[f'/perception/{topic}'] == []
        rig.calibrate(camera_info())
        found = by_name(detections(rig, kind, picture, topic))
    assert set(found) == {'lamp', 'cup'}
    for name, (x0, y0, x1, y1) in expected_boxes().items():
        inside = prediction.depth[round(y0 / 2) : round(y1 / 2), round(x0 / 2) : round(x1 / 2)]
        z = float(np.median(inside))
        box = found[name].bbox
        position = box.center.position
        assert position.z == pytest.approx(z, rel=0.05)
        u, v = (x0 + x1) / 2 - 0.5, (y0 + y1) / 2 - 0.5
        assert position.x == pytest.approx((u - (WIDTH - 1) / 2) / FOCAL_LENGTH * z, abs=0.05)
        assert position.y == pytest.approx((v - (HEIGHT - 1) / 2) / FOCAL_LENGTH * z, abs=0.05)
        assert box.size.x == pytest.approx((x1 - x0) / FOCAL_LENGTH * z, rel=0.1)
        assert box.size.y == pytest.approx((y1 - y0) / FOCAL_LENGTH * z, rel=0.1)
        assert box.size.z >= 0
        assert found[name].results[0].pose.pose.position == position


def test_classification_has_every_class(
    bundle: ModelBundle, picture: np.ndarray, vision_msgs: Any, requests: list[set[str]]
) -> None:
    with node_of(bundle) as rig:
        message = detections(rig, vision_msgs.Classification, picture, 'classification')
        assert requests[-1] == {'class_scores'}
    scores = {result.class_id: result.score for result in message.results}
    assert len(scores) == 5
    rooms = [scores[f'room/{name}'] for name in ATTRIBUTES[0].classes]
    assert sum(rooms) == pytest.approx(1.0, abs=1e-4)
    assert scores['seen/dark'] > 0.9
    expected = predict(bundle, picture).class_scores
    assert rooms == pytest.approx(expected[:3].tolist(), abs=0.01)


def test_classes_are_averaged_over_the_memory(
    bundle: ModelBundle, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heard of by what is drawn into the overlay: this needs no vision_msgs."""
    drawn: list[np.ndarray] = []
    describe = views.describe_classes

    def record(attributes: Any, class_scores: np.ndarray) -> list[str]:
        drawn.append(class_scores.copy())
        return describe(attributes, class_scores)

    monkeypatch.setattr(views, 'describe_classes', record)
    bright = np.full_like(picture, 230)
    alone = [predict(bundle, pixels).class_scores for pixels in (picture, bright)]
    assert abs(alone[0][4] - alone[1][4]) > 0.5
    with node_of(bundle, classification_memory=4.0) as rig:
        rig.collect(OVERLAY, Image)
        rig.perceive(image_message(picture), stamp_s=100.0)
        rig.perceive(image_message(bright), stamp_s=104.0)
        np.testing.assert_allclose(drawn[0], alone[0], atol=0.01)
        expected = ClassFilter(ATTRIBUTES)
        expected.update(alone[0], 100.0, 4.0)
        np.testing.assert_allclose(drawn[1], expected.update(alone[1], 104.0, 4.0), atol=0.01)
        assert np.abs(drawn[1] - alone[1]).max() > 0.05
        assert rig.set(classification_memory=0.0) == ['']
        rig.perceive(image_message(bright), stamp_s=104.5)
        np.testing.assert_allclose(drawn[2], alone[1], atol=0.01)


def test_label_info_numbers_the_names_for_late_readers(
    bundle: ModelBundle, vision_msgs: Any
) -> None:
    topic = '/perception/detections/label_info'
    with node_of(bundle) as rig:
        infos = rig.collect(topic, vision_msgs.LabelInfo, latched=True)
        rig.wait(lambda: infos, 'label_info')
        names = {entry.class_id: entry.class_name for entry in infos[0].class_map}
        assert names == {0: 'lamp', 1: 'cup'}
        assert rig.set(detection_threshold=0.75) == ['']
        rig.wait(lambda: infos[-1].threshold == 0.75, 'changed label_info')


def test_a_bundle_without_these_tasks_has_no_such_topics(tiny_bundle: ModelBundle) -> None:
    with node_of(tiny_bundle) as rig:
        topics = [name for name, _ in rig.client.get_topic_names_and_types()]
    assert '/perception/depth/image' in topics
    assert not [t for t in topics if 'detections' in t or 'classification' in t]


def test_a_bundle_with_boxes_alone_is_replayed_live(tmp_path: Path, picture: np.ndarray) -> None:
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f'{index}.png'), picture)
    boxes = write_things_bundle(tmp_path / 'boxes', ('detection', 'classification'))
    frames: list[LiveFrame] = []
    result = replay_live(
        folder,
        boxes.path,
        in_step=True,
        parameters={'engine': 'onnxruntime', 'threads': 1},
        on_frame=frames.append,
    )
    assert result.frames_out == 3
    assert all(frame.arrays['overlay'].shape == (48, 64, 3) for frame in frames)


def test_a_bundle_without_pictures_is_not_replayed_live(tmp_path: Path) -> None:
    rooms = write_things_bundle(tmp_path / 'rooms', ('classification',))
    with pytest.raises(LiveError, match='computes classification only'):
        perception_program(rooms)


def test_save_frame_writes_boxes_and_room_for_the_data_sets_reader(
    tmp_path: Path, picture: np.ndarray
) -> None:
    named = write_things_bundle(tmp_path / 'named', names=('chair', 'table'))
    with node_of(named, save_folder=str(tmp_path)) as rig:
        answer = rig.call_while(
            lambda: rig.send(image_message(picture)),
            SaveFrame,
            'save_frame',
            SaveFrame.Request(name='saved'),
        )
    assert answer.success, answer.message
    saved = PictureFolder(tmp_path, 'saved', want=('boxes', 'attributes')).read(0)
    names = [PictureFolder.box_classes[label] for label in saved.box_labels]
    assert dict(zip(names, saved.boxes.tolist(), strict=True)) == {
        name: pytest.approx(box, abs=1.0)
        for name, box in zip(('chair', 'table'), expected_boxes().values(), strict=True)
    }
    assert set(saved.attributes) == {'room'}
