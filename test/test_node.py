"""The node over real DDS: what goes in, what comes out, and what happens to the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from node_rig import (
    FOCAL_LENGTH,
    FRAME,
    HEIGHT,
    WIDTH,
    Rig,
    camera_info,
    image_message,
    node_of,
    pixels_of,
    predict,
    textured,
)
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool

from mtl_perception.bundle import ModelBundle
from mtl_perception.datasets import PictureFolder
from mtl_perception.engines import open_engine
from mtl_perception.engines.onnxruntime import OnnxRuntimeEngine
from mtl_perception.frames import CameraFrame, Intrinsics, Prediction
from mtl_perception.msg import PerceptionStatus
from mtl_perception.perceiver import Perceiver
from mtl_perception.ros.camera import Health
from mtl_perception.ros.diagnostics import camera_counts
from mtl_perception.ros.parameters import CameraSettings, ParameterError
from mtl_perception.ros.statistics import FrameCounts
from mtl_perception.srv import SaveFrame

CONTRACT = {
    'segmentation/mask': 'mono8',
    'segmentation/confidence': 'mono8',
    'segmentation/color': 'rgb8',
    'segmentation/overlay': 'rgb8',
    'depth/image': '32FC1',
    'depth/color': 'rgb8',
    'normals/image': '32FC3',
    'normals/color': 'rgb8',
}


pytestmark = pytest.mark.usefixtures('ros_domain')


@pytest.fixture
def rig(tiny_bundle: ModelBundle) -> Iterator[Rig]:
    with node_of(tiny_bundle) as rig:
        yield rig


# Outputs


def test_every_output_follows_the_contract(rig: Rig, tiny_bundle: ModelBundle) -> None:
    for topic in CONTRACT:
        rig.collect(f'/perception/{topic}', Image)
    rig.calibrate(camera_info())
    picture = textured()
    stamp = rig.send(image_message(picture))
    expected = predict(tiny_bundle, picture)
    images = {}
    for topic, encoding in CONTRACT.items():
        message = rig.wait_for(f'/perception/{topic}', stamp)
        assert message.header.frame_id == FRAME
        assert (message.encoding, message.height, message.width) == (encoding, 48, 64), topic
        images[topic] = pixels_of(message)
    np.testing.assert_array_equal(images['segmentation/mask'], expected.label)
    np.testing.assert_array_equal(images['segmentation/confidence'], expected.confidence)
    np.testing.assert_allclose(images['depth/image'], expected.depth, rtol=1e-6)
    np.testing.assert_allclose(images['normals/image'], expected.normal, atol=1e-6)
    colors = np.array([spec.color for spec in tiny_bundle.classes], np.uint8)
    np.testing.assert_array_equal(images['segmentation/color'], colors[expected.label])
    half = cv2.resize(picture, (64, 48), interpolation=cv2.INTER_AREA)
    mean = (half.astype(int) + colors[expected.label]) / 2
    assert np.abs(images['segmentation/overlay'] - mean).max() <= 1


def test_the_status_tells_what_was_done(rig: Rig) -> None:
    rig.collect('/perception/depth/image', Image)
    rig.calibrate(camera_info())
    status = rig.perceive(image_message(textured()))
    assert (status.bundle, status.engine, status.precision) == ('tiny', 'onnxruntime', 'float32')
    assert status.health == Health.OK
    assert status.depth_calibrated
    assert (status.input_width, status.input_height) == (WIDTH, HEIGHT)
    assert (status.output_width, status.output_height) == (64, 48)
    assert (status.received, status.published, status.batch_size) == (1, 1, 1)
    stages = (status.queue_ms, status.resize_ms, status.infer_ms, status.publish_ms)
    assert min(stages) > 0
    assert status.latency_ms > status.infer_ms
    assert status.memory_mib > 10


def test_the_network_rests_while_nobody_listens(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.calibrate(camera_info())
    with monkeypatch.context() as patched:
        patched.setattr(OnnxRuntimeEngine, 'infer', None)  # would fail
        status = rig.perceive(image_message(textured()))
    assert status.health == Health.OK and status.depth_calibrated
    assert (status.published, list(status.dropped), status.infer_ms) == (1, [], 0.0)
    assert (status.output_width, status.output_height) == (64, 48)


def test_pictures_come_compressed_on_request(rig: Rig) -> None:
    topics = ('segmentation/mask', 'segmentation/color', 'segmentation/overlay', 'depth/color')
    for topic in topics:
        rig.collect(f'/perception/{topic}', Image)
        rig.collect(f'/perception/{topic}/compressed', CompressedImage)
    rig.calibrate(camera_info())
    stamp = rig.send(image_message(textured()))
    for topic in topics:
        plain = pixels_of(rig.wait_for(f'/perception/{topic}', stamp))
        message = rig.wait_for(f'/perception/{topic}/compressed', stamp)
        found = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
        found = found[..., ::-1] if found.ndim == 3 else found
        assert found.shape == plain.shape
        off = np.abs(found.astype(int) - plain).mean()
        assert off < 8 if 'jpeg' in message.format else off == 0, topic


def test_a_compressed_topic_alone_is_reason_enough(rig: Rig) -> None:
    rig.collect('/perception/depth/color/compressed', CompressedImage)
    stamp = rig.send(image_message(textured()))
    message = rig.wait_for('/perception/depth/color/compressed', stamp)
    assert message.format == 'rgb8; jpeg compressed bgr8'
    assert len(message.data) < 64 * 48 * 3


def test_what_the_engines_say_reaches_the_nodes_log(tiny_bundle: ModelBundle) -> None:
    with node_of(tiny_bundle, engine='auto') as rig:
        log = rig.log()
        rig.wait(lambda: any('TensorRT is not taken' in entry.msg for entry in log), 'reason')


def test_a_slip_in_a_parameters_name_is_told(tiny_bundle: ModelBundle) -> None:
    with node_of(tiny_bundle, camera_hight=0.6, wheels=4) as rig:
        log = rig.log()
        rig.wait(lambda: any('parameter wheels' in entry.msg for entry in log), 'warning')
    said = next(entry.msg for entry in log if 'camera_hight' in entry.msg)
    assert 'is camera_height meant?' in said


@pytest.mark.parametrize('output', ['segmentation', 'depth', 'normals'])
def test_camera_info_of_the_outputs_shows_points_where_the_input_does(
    rig: Rig, output: str
) -> None:
    infos = rig.collect(f'/perception/{output}/camera_info', CameraInfo)
    rig.calibrate(camera_info())
    rig.perceive(image_message(textured()))
    rig.wait(lambda: infos, 'camera_info')
    point = np.array([0.3, -0.2, 1.7])
    u, v, _ = np.array(camera_info().k).reshape(3, 3) @ point / point[2]
    u_out, v_out, _ = infos[0].k.reshape(3, 3) @ point / point[2]
    assert (infos[0].width, infos[0].height) == (64, 48)
    assert u_out == pytest.approx((u + 0.5) / 2 - 0.5, abs=0.1)
    assert v_out == pytest.approx((v + 0.5) / 2 - 0.5, abs=0.1)
    np.testing.assert_allclose(infos[0].p.reshape(3, 4)[:, :3], infos[0].k.reshape(3, 3))


def test_what_nobody_subscribes_to_is_not_computed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []
    original = Perceiver.perceive_batch

    def watched(self: Perceiver, frames: Any, outputs: Any = None) -> list[Prediction]:
        asked.append(set(outputs))
        return original(self, frames, outputs)

    monkeypatch.setattr(Perceiver, 'perceive_batch', watched)
    status = rig.perceive(image_message(textured()))
    assert asked[-1] == set()
    assert (status.output_height, status.output_width) == (48, 64)
    for topic, kind, needed in (
        ('depth/camera_info', CameraInfo, {'depth'}),
        ('segmentation/mask', Image, {'depth', 'label'}),
        ('normals/image', Image, {'depth', 'label', 'normal'}),
    ):
        rig.collect(f'/perception/{topic}', kind)
        rig.wait(lambda t=topic: rig.node.count_subscribers(f'/perception/{t}'), 'subscription')
        rig.perceive(image_message(textured()))
        assert asked[-1] == needed


def test_outputs_that_are_switched_off_stay_silent(rig: Rig) -> None:
    masks = rig.collect('/perception/segmentation/mask', Image)
    depths = rig.collect('/perception/depth/image', Image)
    assert rig.set(outputs=['depth/image']) == ['']
    stamp = rig.send(image_message(textured()))
    rig.wait_for('/perception/status', stamp)
    assert len(depths) == 1
    assert masks == []


# Inputs


@pytest.mark.parametrize(
    ('encoding', 'convert'),
    [
        ('bgr8', lambda rgb: rgb[..., ::-1]),
        ('mono8', lambda rgb: cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)),
        ('rgba8', lambda rgb: cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA)),
        ('bayer_rggb8', lambda rgb: rgb[..., 1]),
        ('mono16', lambda rgb: rgb[..., 1].astype(np.uint16) * 257),
    ],
)
def test_encodings(rig: Rig, tiny_bundle: ModelBundle, encoding: str, convert: Any) -> None:
    rig.collect('/perception/segmentation/mask', Image)
    rig.calibrate(camera_info())
    pixels = np.ascontiguousarray(convert(textured()))
    stamp = rig.send(image_message(pixels, encoding))
    mask = pixels_of(rig.wait_for('/perception/segmentation/mask', stamp))
    np.testing.assert_array_equal(mask, predict(tiny_bundle, pixels, encoding).label)


@pytest.mark.parametrize('file', ['.png', '.jpg'])
def test_compressed_images(tiny_bundle: ModelBundle, file: str) -> None:
    picture = textured()
    data = cv2.imencode(file, picture[..., ::-1])[1].tobytes()
    message = CompressedImage(format=f'rgb8; {file[1:]} compressed bgr8', data=data)
    message.header.frame_id = FRAME
    with node_of(tiny_bundle, transport='compressed') as rig:
        rig.collect('/perception/segmentation/mask', Image)
        rig.calibrate(camera_info())
        stamp = rig.send(message, '/image/compressed')
        mask = pixels_of(rig.wait_for('/perception/segmentation/mask', stamp))
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(mask, predict(tiny_bundle, decoded, 'bgr8').label)


def test_remapped_topics(tiny_bundle: ModelBundle) -> None:
    arguments = ['--ros-args', '-r', 'image:=/front/color/image_raw']
    with node_of(tiny_bundle, arguments=arguments) as rig:
        rig.calibrate(camera_info(), '/front/color/camera_info')
        status = rig.perceive(image_message(textured()), topic='/front/color/image_raw')
    assert status.depth_calibrated


@pytest.mark.parametrize('reliable', [True, False])
def test_qos_follows_the_camera(rig: Rig, reliable: bool) -> None:
    publisher = rig.publisher('/image', Image, reliable=reliable)
    message = image_message(textured())
    for _ in range(5):
        message.header.stamp = rig.stamp()
        publisher.publish(message)
        rig.wait_for('/perception/status', message.header.stamp)
    assert rig.node.cameras[0].counter.snapshot().published == 5


def test_a_changing_resolution_is_followed(rig: Rig) -> None:
    rig.collect('/perception/depth/image', Image)
    for height, width, out in [(96, 128, (48, 64)), (72, 128, (36, 64)), (128, 96, (48, 36))]:
        rig.calibrate(camera_info(height, width))
        stamp = rig.send(image_message(textured(height, width)))
        depth = rig.wait_for('/perception/depth/image', stamp)
        assert (depth.height, depth.width) == out
        assert rig.wait_for('/perception/status', stamp).depth_calibrated


def test_the_networks_size_follows_each_cameras_aspect(tiny_bundle: ModelBundle) -> None:
    perceiver = Perceiver(open_engine(tiny_bundle, 'onnxruntime'), tiny_bundle, input_size='auto')
    with node_of(tiny_bundle, input_size='auto') as rig:
        rig.collect('/perception/depth/image', Image)
        for height, width, network in [(64, 128, (32, 64)), (128, 64, (64, 32))]:
            rig.calibrate(camera_info(height, width))
            picture = textured(height, width)
            stamp = rig.send(image_message(picture))
            depth = rig.wait_for('/perception/depth/image', stamp)
            intrinsics = Intrinsics(
                width, height, FOCAL_LENGTH, FOCAL_LENGTH, (width - 1) / 2, (height - 1) / 2
            )
            expected = perceiver.perceive(CameraFrame(picture, 'rgb8', intrinsics)).depth
            assert (depth.height, depth.width) == network
            np.testing.assert_allclose(pixels_of(depth), expected, rtol=1e-6)


def test_a_qos_mismatch_names_both_sides(tiny_bundle: ModelBundle) -> None:
    with node_of(
        tiny_bundle, input_reliability='reliable', output_reliability='best_effort'
    ) as rig:
        rig.client.create_publisher(Image, '/image', qos_profile_sensor_data)
        rig.client.create_subscription(Image, '/perception/depth/color', print, 1)

        def mismatches() -> dict[str, str]:
            values = rig.diagnosis(having='NO_INPUT').values
            return {entry.key: entry.value for entry in values if 'incompatible' in entry.key}

        found = rig.wait(lambda: len(named := mismatches()) >= 2 and named, 'mismatches')
    assert '/client (best_effort is offered, reliable is asked for)' in found.pop(
        'incompatible publishers'
    )
    assert 'incompatible subscribers of /perception/depth/color' in found


# Calibration


def test_without_camera_info_depth_is_said_to_be_uncalibrated(rig: Rig) -> None:
    infos = rig.collect('/perception/depth/camera_info', CameraInfo)
    status = rig.perceive(image_message(textured()))
    assert not status.depth_calibrated
    assert status.health == Health.UNCALIBRATED
    assert 'nothing arrives on /camera_info' in rig.diagnosis(having='UNCALIBRATED').message
    rig.wait(lambda: infos, 'camera_info')
    assert not infos[0].k.any()


@pytest.mark.parametrize(
    ('info', 'sentence'),
    [
        (camera_info(k=[0.0] * 9), 'all-zero K'),
        (camera_info(k=[float('nan')] * 9), 'finite'),
        (camera_info(frame_id='other'), "frame 'other'"),
        (camera_info(48, 64), 'describes 64x48 pixels but the image has 128x96'),
    ],
)
def test_a_useless_camera_info_is_explained(rig: Rig, info: CameraInfo, sentence: str) -> None:
    rig.calibrate(info)
    assert not rig.perceive(image_message(textured())).depth_calibrated
    assert sentence in rig.diagnosis(having='UNCALIBRATED').message


def test_focal_length_stands_in_for_camera_info(tiny_bundle: ModelBundle) -> None:
    picture = textured()
    with node_of(tiny_bundle, focal_length_px=FOCAL_LENGTH) as rig:
        rig.collect('/perception/depth/image', Image)
        stamp = rig.send(image_message(picture))
        depth = pixels_of(rig.wait_for('/perception/depth/image', stamp))
        assert rig.wait_for('/perception/status', stamp).depth_calibrated
    np.testing.assert_allclose(depth, predict(tiny_bundle, picture).depth, rtol=1e-6)


# Bad frames


def broken(**fields: Any) -> Image:
    message = image_message(textured())
    for name, value in fields.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ('message', 'reason'),
    [
        (broken(encoding='jpeg2000'), 'bad_encoding'),
        (broken(encoding=''), 'bad_encoding'),
        (broken(encoding='32FC1'), 'bad_encoding'),
        (broken(step=WIDTH), 'bad_data'),
        (broken(step=2**32 - 1), 'bad_data'),
        (broken(height=HEIGHT + 1), 'bad_data'),
        (broken(height=0), 'bad_size'),
        (broken(width=0), 'bad_size'),
        (broken(height=2**20, width=2**20), 'too_large'),
    ],
)
def test_a_bad_frame_is_counted_and_the_node_stays_up(
    rig: Rig, message: Image, reason: str
) -> None:
    rig.send(message)
    rig.wait(lambda: rig.dropped() == {reason: 1}, f'frame dropped as {reason}')
    assert rig.diagnosis(having='BAD_ENCODING').level == b'\x02'
    status = rig.perceive(image_message(textured()))
    assert (status.received, status.published) == (2, 1)
    assert dict(zip(status.drop_reasons, status.dropped, strict=True)) == {reason: 1}


def test_a_damaged_jpeg_is_counted(tiny_bundle: ModelBundle) -> None:
    data = cv2.imencode('.jpg', textured())[1].tobytes()
    with node_of(tiny_bundle, transport='compressed') as rig:
        for number, bad in enumerate((data[:40], b'', b'no picture'), start=1):
            rig.send(CompressedImage(format='jpeg', data=bad), '/image/compressed')
            rig.wait(lambda n=number: rig.dropped() == {'bad_data': n}, 'damaged frame')
        status = rig.perceive(CompressedImage(format='jpeg', data=data), topic='/image/compressed')
    assert status.published == 1


def test_a_large_jpeg_is_refused_before_it_is_decoded(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = cv2.imencode('.jpg', np.zeros((200, 200, 3), np.uint8))[1].tobytes()
    with node_of(tiny_bundle, transport='compressed', max_pixels=10_000) as rig:
        monkeypatch.setattr(cv2, 'imdecode', None)
        rig.send(CompressedImage(format='jpeg', data=data), '/image/compressed')
        rig.wait(lambda: rig.dropped() == {'too_large': 1}, 'refused frame')


# Lifecycle, parameters, services


def test_every_transition_of_the_lifecycle(tiny_bundle: ModelBundle) -> None:
    with node_of(tiny_bundle, start=False) as rig:
        assert rig.transition(Transition.TRANSITION_CONFIGURE)
        assert rig.client.count_subscribers('/image') == 0
        assert rig.transition(Transition.TRANSITION_ACTIVATE)
        rig.collect('/perception/status', PerceptionStatus)
        assert rig.perceive(image_message(textured())).published == 1
        assert rig.transition(Transition.TRANSITION_DEACTIVATE)
        rig.wait(lambda: rig.client.count_subscribers('/image') == 0, 'end of the subscription')
        assert rig.transition(Transition.TRANSITION_ACTIVATE)
        rig.settle('/image')
        assert rig.perceive(image_message(textured())).published == 1
        assert rig.transition(Transition.TRANSITION_DEACTIVATE)
        assert rig.transition(Transition.TRANSITION_CLEANUP)
        assert rig.node.identity.engine == ''
        rig.wait(
            lambda: rig.client.count_publishers('/perception/depth/image') == 0,
            'end of the publishers',
        )
        assert rig.transition(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
        assert rig.node.state == 'finalized'


def test_the_last_diagnostics_of_an_active_node_account_for_every_frame(rig: Rig) -> None:
    rig.perceive(image_message(textured()))
    assert rig.call(SetBool, 'set_enabled', SetBool.Request(data=False)).success
    rig.deliver(image_message(textured()))
    rig.deliver(image_message(textured()))
    before = len(rig.received['/diagnostics'])
    assert rig.transition(Transition.TRANSITION_DEACTIVATE)

    def final() -> list[FrameCounts]:
        told = [m.status for m in rig.received['/diagnostics'][before:]]
        return [counts for s in told for one in s if (counts := camera_counts(one))]

    rig.wait(lambda: final() and final()[-1].received == 3, 'last counts')
    assert final()[-1] == FrameCounts(received=3, published=1, dropped={'disabled': 2})


def test_a_failed_configuration_can_be_corrected(tiny_bundle: ModelBundle) -> None:
    with node_of(tiny_bundle, bundle='/nowhere', start=False) as rig:
        assert not rig.transition(Transition.TRANSITION_CONFIGURE)
        assert rig.node.state == 'unconfigured'
        assert rig.set(bundle=str(tiny_bundle.path)) == ['']
        assert rig.transition(Transition.TRANSITION_CONFIGURE)


@pytest.mark.parametrize(
    ('changes', 'sentence'),
    [
        ({'max_rate': -1.0}, '-1.0'),
        ({'max_rate': 'fast'}, 'expected a float'),
        ({'depth_encoding': '8UC1'}, '32FC1, 16UC1'),
        ({'color_min_depth': 9.0}, 'color_max_depth'),
        ({'rotate': 45}, '0, 90, 180, 270'),
        ({'outputs': ['depth/imag']}, 'segmentation/mask'),
        ({'bundle': 'other'}, 'only while the node is unconfigured'),
        ({'gpu_device': 1}, 'only while the node is unconfigured'),
        ({'gpu_device': -1}, '-1'),
        ({'cameras': ['front']}, 'read-only'),
        ({'label_groups': '/nowhere.yaml'}, 'cannot be read'),
    ],
)
def test_refused_parameters_say_why(rig: Rig, changes: dict[str, Any], sentence: str) -> None:
    before = {name: rig.node.get_parameter(name).value for name in changes}
    (reason,) = rig.set(**changes)
    assert sentence in reason
    assert {name: rig.node.get_parameter(name).value for name in changes} == before


def test_a_whole_number_is_a_rate_too(rig: Rig) -> None:
    assert rig.set(max_rate=5) == ['']


def test_set_enabled_switches_the_node_off_and_on(rig: Rig) -> None:
    assert rig.call(SetBool, 'set_enabled', SetBool.Request(data=False)).success
    rig.send(image_message(textured()))
    rig.wait(lambda: rig.dropped() == {'disabled': 1}, 'dropped frame')
    assert rig.diagnosis(having='DISABLED').level == b'\x00'
    assert rig.call(SetBool, 'set_enabled', SetBool.Request(data=True)).success
    assert rig.perceive(image_message(textured())).published == 1


# Save


def test_save_frame_writes_a_picture_folder(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    picture = textured()
    with node_of(tiny_bundle, save_folder=str(tmp_path)) as rig:
        rig.calibrate(camera_info())
        rig.publisher('/image', Image)
        answer = rig.call_while(
            lambda: rig.send(image_message(picture)),
            SaveFrame,
            'save_frame',
            SaveFrame.Request(name='kitchen'),
        )
    assert answer.success, answer.message
    (tmp_path / 'usual').touch()
    usual = (tmp_path / 'usual').stat().st_mode
    written = [path for path in (tmp_path / 'kitchen').rglob('*') if path.is_file()]
    assert written and {path.stat().st_mode for path in written} == {usual}
    (frame,) = PictureFolder(tmp_path, 'kitchen')
    np.testing.assert_array_equal(frame.rgb, picture)
    expected = predict(tiny_bundle, picture)
    np.testing.assert_array_equal(frame.label[::2, ::2], expected.label)
    np.testing.assert_allclose(frame.depth[::2, ::2], expected.depth, atol=1e-3)
    assert frame.intrinsics.fx == FOCAL_LENGTH


def test_frames_of_one_stamp_are_saved_beside_each_other(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    with node_of(tiny_bundle, save_folder=str(tmp_path)) as rig:
        rig.publisher('/image', Image)
        paths = []
        for _ in range(2):
            answer = rig.call_while(
                lambda: rig.send(image_message(textured()), stamp_s=5.0),
                SaveFrame,
                'save_frame',
                SaveFrame.Request(name='same'),
            )
            paths.append(answer.path)
    assert len(set(paths)) == 2
    assert len(PictureFolder(tmp_path, 'same')) == 2


def test_the_only_camera_need_not_be_named_to_save_its_frame(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    with node_of(tiny_bundle, cameras=['front'], save_folder=str(tmp_path)) as rig:
        rig.publisher('/front/image', Image)
        answer = rig.call_while(
            lambda: rig.send(image_message(textured()), '/front/image'),
            SaveFrame,
            'save_frame',
            SaveFrame.Request(),
        )
    assert answer.success, answer.message
    assert Path(answer.path).is_file()


@pytest.mark.parametrize('name', ['../outside', '/etc', 'a/b', '..'])
def test_save_frame_stays_in_its_folder(
    tiny_bundle: ModelBundle, tmp_path: Path, name: str
) -> None:
    with node_of(tiny_bundle, save_folder=str(tmp_path / 'inside')) as rig:
        answer = rig.call(SaveFrame, 'save_frame', SaveFrame.Request(name=name))
    assert not answer.success
    assert 'no name for a folder' in answer.message
    assert list(tmp_path.iterdir()) == []


def test_save_frame_needs_a_folder(rig: Rig) -> None:
    answer = rig.call(SaveFrame, 'save_frame', SaveFrame.Request())
    assert not answer.success
    assert 'save_folder' in answer.message


@pytest.mark.parametrize('topic', ['', '{foo}/scan', 'a b'])
def test_a_reference_needs_a_topic_that_can_be(topic: str) -> None:
    with pytest.raises(ParameterError, match='scale_reference_topic'):
        CameraSettings(scale_reference='laser_scan', scale_reference_topic=topic)
