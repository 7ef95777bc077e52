"""What the node makes of cameras that are turned, distorted, cropped, and of the user's wishes."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
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
from sensor_msgs.msg import CameraInfo, Image, LaserScan, PointCloud2, RegionOfInterest

from mtl_perception.bundle import ModelBundle
from mtl_perception.datasets import PictureFolder
from mtl_perception.frames import Intrinsics, Prediction
from mtl_perception.msg import FloorPlane
from mtl_perception.orientation import turn_image, turn_intrinsics, turn_normals
from mtl_perception.perceiver import Perceiver
from mtl_perception.ros.poses import pose_matrix, quaternion_matrix
from mtl_perception.srv import SaveFrame

pytestmark = pytest.mark.usefixtures('ros_domain')

LENS = [-0.25, 0.06, 0.0, 0.0, 0.0]


def images(rig: Rig, picture: np.ndarray, *topics: str, **options: Any) -> list[np.ndarray]:
    """Publish a picture and return what the node makes of it."""
    for topic in topics:
        rig.collect(f'/perception/{topic}', Image)
    stamp = rig.send(image_message(picture), **options)
    return [pixels_of(rig.wait_for(f'/perception/{topic}', stamp)) for topic in topics]


# Orientation


@pytest.mark.parametrize('degrees', [90, 180, 270])
def test_a_turned_camera_sees_what_an_upright_one_sees(
    tiny_bundle: ModelBundle, degrees: int
) -> None:
    upright = textured()
    camera = Intrinsics(WIDTH, HEIGHT, 100.0, 100.0, 60.0, 50.0)
    expected = predict(tiny_bundle, upright, intrinsics=camera)
    mounted = turn_intrinsics(camera, -degrees)
    info = camera_info(mounted.height, mounted.width, k=mounted.matrix.ravel().tolist())
    with node_of(tiny_bundle, rotate=degrees) as rig:
        infos = rig.collect('/perception/depth/camera_info', CameraInfo)
        rig.calibrate(info)
        mask, depth, normal = images(
            rig,
            turn_image(upright, -degrees),
            'segmentation/mask',
            'depth/image',
            'normals/image',
        )
        rig.wait(lambda: infos, 'camera_info')
    np.testing.assert_array_equal(mask, turn_image(expected.label, -degrees))
    np.testing.assert_allclose(depth, turn_image(expected.depth, -degrees), rtol=1e-6)
    np.testing.assert_allclose(normal, turn_normals(expected.normal, -degrees), atol=1e-6)
    assert (infos[0].width, infos[0].height) == mask.shape[::-1]
    # A point of the mounted camera is seen at the same place of input and output, in their scales.
    point = np.array([0.2, 0.1, 1.5])
    u, v, _ = mounted.matrix @ point / point[2]
    u_out, v_out, _ = infos[0].k.reshape(3, 3) @ point / point[2]
    assert u_out == pytest.approx((u + 0.5) / 2 - 0.5, abs=0.1)
    assert v_out == pytest.approx((v + 0.5) / 2 - 0.5, abs=0.1)


@pytest.mark.parametrize('degrees', [90, 180])
def test_a_turned_cameras_frame_is_saved_upright(
    tiny_bundle: ModelBundle, tmp_path: Path, degrees: int
) -> None:
    upright = textured()
    camera = Intrinsics(WIDTH, HEIGHT, 100.0, 100.0, 60.0, 50.0)
    mounted = turn_intrinsics(camera, -degrees)
    info = camera_info(mounted.height, mounted.width, k=mounted.matrix.ravel().tolist())
    with node_of(tiny_bundle, rotate=degrees, save_folder=str(tmp_path)) as rig:
        rig.calibrate(info)
        rig.publisher('/image', Image)
        message = image_message(turn_image(upright, -degrees))
        answer = rig.call_while(
            lambda: rig.send(message), SaveFrame, 'save_frame', SaveFrame.Request(name='turned')
        )
    assert answer.success, answer.message
    (frame,) = PictureFolder(tmp_path, 'turned')
    expected = predict(tiny_bundle, upright, intrinsics=camera)
    np.testing.assert_array_equal(frame.rgb, upright)
    np.testing.assert_array_equal(frame.label[::2, ::2], expected.label)
    np.testing.assert_allclose(frame.depth[::2, ::2], expected.depth, atol=1e-3)
    cosine = np.einsum('hwc,hwc->hw', frame.normal[::2, ::2], expected.normal)
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 1.0
    assert frame.intrinsics == camera


@pytest.mark.parametrize('degrees', [0, 90, 180, 270])
def test_points_and_floor_stay_in_the_cameras_frame(
    tiny_bundle: ModelBundle, degrees: int
) -> None:
    camera = Intrinsics(WIDTH, HEIGHT, 100.0, 100.0, 63.5, 47.5)
    mounted = turn_intrinsics(camera, -degrees)
    info = camera_info(mounted.height, mounted.width, k=mounted.matrix.ravel().tolist())
    with node_of(tiny_bundle, rotate=degrees) as rig:
        clouds = rig.collect('/perception/points', PointCloud2)
        floors = rig.collect('/perception/floor', FloorPlane)
        rig.calibrate(info)
        (depth,) = images(rig, turn_image(textured(), -degrees), 'depth/image')
        rig.wait(lambda: clouds and floors, 'cloud and floor')
    cloud = cloud_of(clouds[0])
    assert clouds[0].header.frame_id == FRAME
    assert cloud.shape == depth.shape
    seen = np.isfinite(cloud['z'])
    assert seen.mean() > 0.3
    np.testing.assert_allclose(cloud['z'][seen], depth[seen], rtol=1e-5)
    v, u = np.nonzero(seen)
    x = (u - (mounted.cx + 0.5) / 2 + 0.5) / (mounted.fx / 2) * depth[seen]
    y = (v - (mounted.cy + 0.5) / 2 + 0.5) / (mounted.fy / 2) * depth[seen]
    np.testing.assert_allclose(cloud['x'][seen], x, atol=0.05)
    np.testing.assert_allclose(cloud['y'][seen], y, atol=0.05)


def cloud_of(message: PointCloud2) -> np.ndarray:
    """Return the records of a cloud by its own description."""
    types = {7: '<f4', 2: 'u1'}
    dtype = np.dtype(
        {
            'names': [field.name for field in message.fields],
            'formats': [types[field.datatype] for field in message.fields],
            'offsets': [field.offset for field in message.fields],
            'itemsize': message.point_step,
        }
    )
    assert message.row_step == message.width * message.point_step
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width)


# Distortion, regions, binning


def distorted(straight: np.ndarray) -> np.ndarray:
    """Return a picture as a lens with LENS would show it."""
    matrix = np.array(camera_info().k).reshape(3, 3)
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    seen = np.stack([u, v], axis=-1).reshape(-1, 1, 2)
    ideal = cv2.undistortPoints(seen, matrix, np.array(LENS), P=matrix).reshape(HEIGHT, WIDTH, 2)
    return cv2.remap(straight, ideal, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def test_distortion_is_removed_on_request(tiny_bundle: ModelBundle) -> None:
    straight = textured()
    expected = predict(tiny_bundle, straight).depth
    inner = np.s_[8:-8, 8:-8]
    errors = {}
    for rectify in (False, True):
        with node_of(tiny_bundle, rectify=rectify) as rig:
            infos = rig.collect('/perception/depth/camera_info', CameraInfo)
            rig.calibrate(camera_info(d=LENS))
            (depth,) = images(rig, distorted(straight), 'depth/image')
            rig.wait(lambda infos=infos: infos, 'camera_info')
        assert any(infos[0].d) != rectify
        errors[rectify] = np.abs(depth - expected)[inner].mean()
    assert errors[True] < 0.3 * errors[False]


def test_what_the_lens_does_not_show_is_not_known(tiny_bundle: ModelBundle) -> None:
    # A rectified camera that sees wider than the lens: its picture has a black border.
    wide = [FOCAL_LENGTH / 2, 0, WIDTH / 2 - 0.5, 0, 0, FOCAL_LENGTH / 2, HEIGHT / 2 - 0.5, 0]
    topics = ('segmentation/mask', 'segmentation/confidence', 'depth/image', 'normals/image')
    with node_of(tiny_bundle, rectify=True, rotate=180) as rig:
        rig.calibrate(camera_info(d=LENS, p=[*wide, 0, 0, 1, 0]))
        label, confidence, depth, normal = images(rig, textured(), *topics)
    hidden = np.isnan(depth)
    assert hidden[0].all() and hidden[:, -1].all() and not hidden[20:28, 28:36].any()
    assert 0.6 < hidden.mean() < 0.8
    assert (label[hidden] == 255).all() and (confidence[hidden] == 0).all()
    assert np.isnan(normal[hidden]).all()
    assert (label[~hidden] < 13).all() and not np.isnan(normal[~hidden]).any()


def test_an_unknown_lens_is_not_rectified_as_another(tiny_bundle: ModelBundle) -> None:
    info = camera_info(d=LENS[:4])
    info.distortion_model = 'double_sphere'
    with node_of(tiny_bundle, rectify=True) as rig:
        rig.calibrate(info)
        rig.deliver(image_message(textured()))
        rig.wait(lambda: rig.dropped() == {'bad_data': 1}, 'dropped frame')
        assert (
            "'double_sphere' with 4 coefficients cannot be"
            in rig.diagnosis(having='double_sphere').message
        )


def test_the_robots_own_body_is_left_out(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    mask = np.full((HEIGHT // 2, WIDTH // 2), 255, np.uint8)
    mask[-12:] = 0
    assert cv2.imwrite(str(tmp_path / 'mask.png'), mask)
    expected = predict(tiny_bundle, textured()).depth
    with node_of(tiny_bundle, mask=str(tmp_path / 'mask.png')) as rig:
        rig.calibrate(camera_info())
        depth, label = images(rig, textured(), 'depth/image', 'segmentation/mask')
        rig.deliver(image_message(textured(64, 64)))
        rig.wait(lambda: rig.dropped() == {'bad_data': 1}, 'dropped frame')
        assert 'the mask is 128x96 but the picture 64x64' in rig.diagnosis(having='mask').message
    assert np.isnan(depth[-12:]).all() and (label[-12:] == 255).all()
    np.testing.assert_allclose(depth[:-12], expected[:-12], rtol=1e-5)


@pytest.mark.parametrize(
    ('content', 'sentence'), [(None, 'no picture that can be read'), (0, 'black everywhere')]
)
def test_a_useless_mask_is_refused(
    tiny_bundle: ModelBundle, tmp_path: Path, content: int | None, sentence: str
) -> None:
    path = tmp_path / 'mask.png'
    if content is not None:
        assert cv2.imwrite(str(path), np.full((HEIGHT, WIDTH), content, np.uint8))
    with node_of(tiny_bundle, mask=str(path), start=False) as rig:
        log = rig.log()
        assert not rig.transition(Transition.TRANSITION_CONFIGURE)
        rig.wait(lambda: any(sentence in entry.msg for entry in log), sentence)


def test_a_turn_that_changes_during_an_inference_waits_for_the_next_frame(
    tiny_bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = threading.Event(), threading.Event()
    original = Perceiver.perceive_batch

    def held(self: Perceiver, *arguments: Any) -> list[Prediction]:
        begun.set()
        assert gate.wait(60)
        return original(self, *arguments)

    expected = predict(tiny_bundle, textured()).depth
    monkeypatch.setattr(Perceiver, 'perceive_batch', held)
    with node_of(tiny_bundle) as rig:
        rig.collect('/perception/depth/image', Image)
        rig.calibrate(camera_info())
        stamp = rig.send(image_message(textured()))
        rig.wait(begun.is_set, 'inference')
        assert rig.set(rotate=180) == ['']
        gate.set()
        depth = pixels_of(rig.wait_for('/perception/depth/image', stamp))
    np.testing.assert_allclose(depth, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ('topic', 'setting', 'from_p'),
    [
        ('/front/image_rect', 'auto', True),
        ('/front/image_raw', 'auto', False),
        ('/front/image_corrected', 'auto', False),
        ('/front/image_raw', 'true', True),
        ('/front/image_rect', 'false', False),
    ],
)
def test_rectified_topics_are_described_by_p(
    tiny_bundle: ModelBundle, topic: str, setting: str, from_p: bool
) -> None:
    arguments = ['--ros-args', '-r', f'image:={topic}']
    p = [80.0, 0.0, 60.0, 0.0, 0.0, 80.0, 40.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    with node_of(tiny_bundle, arguments=arguments, input_rectified=setting) as rig:
        infos = rig.collect('/perception/depth/camera_info', CameraInfo)
        rig.calibrate(camera_info(d=LENS, p=p), '/front/camera_info')
        rig.perceive(image_message(textured()), topic=topic)
        rig.wait(lambda: infos, 'camera_info')
    assert infos[0].k[0] == pytest.approx(40.0 if from_p else FOCAL_LENGTH / 2)
    assert any(infos[0].d) != from_p
    assert infos[0].p[0] == pytest.approx(40.0)


@pytest.mark.parametrize(
    ('topic', 'parameters', 'warnings'),
    [
        ('/front/image_raw', {}, 1),
        ('/front/image_raw', {'rectify': True}, 0),
        ('/front/image_rect', {}, 0),
    ],
)
def test_distortion_that_stays_is_warned_of_once(
    tiny_bundle: ModelBundle, topic: str, parameters: dict[str, Any], warnings: int
) -> None:
    arguments = ['--ros-args', '-r', f'image:={topic}']
    with node_of(tiny_bundle, arguments=arguments, **parameters) as rig:
        log = rig.log()
        rig.calibrate(camera_info(d=LENS), '/front/camera_info')
        for _ in range(3):
            rig.perceive(image_message(textured()), topic=topic)
        rig.node.get_logger().warning('the end of the log')
        rig.wait(lambda: any('the end' in entry.msg for entry in log), 'end of the log')
    assert sum('the lens distorts' in entry.msg for entry in log) == warnings


def test_region_and_binning_shift_and_scale_the_camera(tiny_bundle: ModelBundle) -> None:
    """A sensor of four times the pixels, read out in part and binned by two."""
    sensor = camera_info(
        4 * HEIGHT,
        4 * WIDTH,
        4 * FOCAL_LENGTH,
        binning_x=2,
        binning_y=2,
        roi=RegionOfInterest(x_offset=64, y_offset=32, width=2 * WIDTH, height=2 * HEIGHT),
    )
    with node_of(tiny_bundle) as rig:
        infos = rig.collect('/perception/depth/camera_info', CameraInfo)
        rig.calibrate(sensor)
        assert rig.perceive(image_message(textured())).depth_calibrated
        rig.wait(lambda: infos, 'camera_info')
    point = np.array([-0.3, 0.1, 2.0])
    u, v, _ = np.array(sensor.k).reshape(3, 3) @ point / point[2]
    # Centres of a sensor pixel, of a binned pixel, of an output pixel.
    u, v = ((u - 64 + 0.5) / 2 - 0.5, (v - 32 + 0.5) / 2 - 0.5)
    u, v = ((u + 0.5) / 2 - 0.5, (v + 0.5) / 2 - 0.5)
    u_out, v_out, _ = infos[0].k.reshape(3, 3) @ point / point[2]
    assert (u_out, v_out) == (pytest.approx(u, abs=0.1), pytest.approx(v, abs=0.1))


# Sizes


@pytest.mark.parametrize(
    ('picture', 'parameters', 'size'),
    [
        ((90, 160), {}, (36, 64)),
        ((90, 160), {'input_size': '128x96'}, (72, 128)),
        ((90, 160), {'output_size': 'camera'}, (90, 160)),
        ((160, 90), {}, (48, 27)),
    ],
)
def test_sizes(
    tiny_bundle: ModelBundle,
    picture: tuple[int, int],
    parameters: dict[str, Any],
    size: tuple[int, int],
) -> None:
    with node_of(tiny_bundle, **parameters) as rig:
        infos = rig.collect('/perception/depth/camera_info', CameraInfo)
        info = camera_info(*picture)
        rig.calibrate(info)
        mask, depth = images(rig, textured(*picture), 'segmentation/mask', 'depth/image')
        rig.wait(lambda: infos, 'camera_info')
    assert mask.shape == depth.shape == size
    assert (infos[0].height, infos[0].width) == size
    corner = np.array([picture[1] / 2, picture[0] / 2, 100.0])  # seen in the picture's corner
    u, v, _ = np.array(info.k).reshape(3, 3) @ corner / corner[2]
    u_out, v_out, _ = infos[0].k.reshape(3, 3) @ corner / corner[2]
    assert u_out == pytest.approx((u + 0.5) * size[1] / picture[1] - 0.5, abs=0.1)
    assert v_out == pytest.approx((v + 0.5) * size[0] / picture[0] - 0.5, abs=0.1)


# The user's wishes, while the node runs


def test_depth_in_millimetres(tiny_bundle: ModelBundle) -> None:
    picture = textured()
    expected = predict(tiny_bundle, picture).depth
    with node_of(tiny_bundle) as rig:
        rig.calibrate(camera_info())
        (metres,) = images(rig, picture, 'depth/image')
        assert rig.set(depth_encoding='16UC1') == ['']
        stamp = rig.send(image_message(picture))
        message = rig.wait_for('/perception/depth/image', stamp)
    np.testing.assert_allclose(metres, expected, rtol=1e-6)
    assert message.encoding == '16UC1'
    np.testing.assert_allclose(pixels_of(message), expected * 1000, atol=0.51)


def test_unsure_pixels_become_unknown(tiny_bundle: ModelBundle) -> None:
    picture = textured()
    expected = predict(tiny_bundle, picture)
    with node_of(tiny_bundle) as rig:
        rig.calibrate(camera_info())
        assert rig.set(confidence_threshold=0.6) == ['']
        (mask,) = images(rig, picture, 'segmentation/mask')
    unsure = expected.confidence < 0.6 * 255
    assert 0 < unsure.mean() < 1
    np.testing.assert_array_equal(mask, np.where(unsure, 255, expected.label))


def test_label_groups_change_while_the_node_runs(tiny_bundle: ModelBundle, tmp_path: Path) -> None:
    picture = textured()
    label = predict(tiny_bundle, picture).label
    names = [spec.name for spec in tiny_bundle.classes]
    used = [names[index] for index in np.unique(label)]
    groups = [
        {'name': 'first', 'classes': used[:1], 'color': [1, 2, 3]},
        {'name': 'second', 'classes': used[1:3]},
    ]
    path = tmp_path / 'groups.yaml'
    path.write_text(yaml.safe_dump({'groups': groups}))
    with node_of(tiny_bundle) as rig:
        assert rig.set(label_groups=str(path)) == ['']
        mask, color = images(rig, picture, 'segmentation/mask', 'segmentation/color')
    group_of = {names.index(used[0]): 0, **{names.index(name): 1 for name in used[1:3]}}
    expected = np.vectorize(lambda index: group_of.get(index, 255))(label)
    np.testing.assert_array_equal(mask, expected)
    assert (color[mask == 0] == [1, 2, 3]).all()


def test_label_info_names_the_labels_for_late_readers(
    tiny_bundle: ModelBundle, tmp_path: Path
) -> None:
    messages = pytest.importorskip('vision_msgs.msg', reason='vision_msgs is not installed')
    path = tmp_path / 'groups.yaml'
    path.write_text(yaml.safe_dump({'groups': [{'name': 'ground', 'classes': ['floor']}]}))
    topic = '/perception/segmentation/label_info'
    with node_of(tiny_bundle) as rig:
        infos = rig.collect(topic, messages.LabelInfo, latched=True)
        rig.wait(lambda: infos, 'label_info')
        names = {entry.class_id: entry.class_name for entry in infos[0].class_map}
        assert names == {n: spec.name for n, spec in enumerate(tiny_bundle.classes)}
        assert rig.set(label_groups=str(path), confidence_threshold=0.25) == ['', '']
        rig.wait(lambda: infos[-1].threshold == 0.25, 'changed label_info')
        assert [entry.class_name for entry in infos[-1].class_map] == ['ground']


@pytest.mark.parametrize(
    ('content', 'sentence'),
    [
        ({'groups': [{'name': 'a', 'classes': ['unicorn']}]}, "no class 'unicorn'"),
        (
            {'groups': [{'name': n, 'classes': ['floor']} for n in 'ab']},
            "'floor' is in 'a' and in 'b'",
        ),
        ({'floor': ['floor']}, 'groups'),
    ],
)
def test_wrong_label_groups_are_refused(
    tiny_bundle: ModelBundle, tmp_path: Path, content: Any, sentence: str
) -> None:
    path = tmp_path / 'groups.yaml'
    path.write_text(yaml.safe_dump(content))
    with node_of(tiny_bundle) as rig:
        (reason,) = rig.set(label_groups=str(path))
    assert sentence in reason


# The robot


def test_a_transform_turns_as_its_quaternion_says() -> None:
    axis = np.array([0.3, -0.5, 0.8])
    angle = np.linalg.norm(axis)
    x, y, z = axis / angle * np.sin(angle / 2)
    matrix = quaternion_matrix(x, y, z, np.cos(angle / 2))
    np.testing.assert_allclose(matrix, cv2.Rodrigues(axis)[0], atol=1e-12)


def test_a_level_camera_looks_along_the_robots_x_axis() -> None:
    base_from_camera = pose_matrix([0.1, 0.2, 0.3, 0.0, 0.0, 0.0])
    ahead_left_above = base_from_camera @ [-1.0, -2.0, 5.0, 1.0]
    np.testing.assert_allclose(ahead_left_above, [5.1, 1.2, 2.3, 1.0])
    looking_down = pose_matrix([0.0, 0.0, 0.0, 0.0, np.pi / 2, 0.0])
    np.testing.assert_allclose(looking_down @ [0, 0, 1, 1], [0, 0, -1, 1], atol=1e-12)


@pytest.mark.skipif(find_spec('tf2_ros') is not None, reason='tf2_ros is installed')
def test_without_tf_the_scan_says_what_to_set(tiny_bundle: ModelBundle) -> None:
    with node_of(tiny_bundle) as rig:
        log = rig.log()
        rig.collect('/perception/scan', LaserScan)
        rig.calibrate(camera_info())

        def is_explained() -> bool:
            rig.perceive(image_message(textured()))
            return any('no scan' in entry.msg and 'camera_pose' in entry.msg for entry in log)

        rig.wait(is_explained, 'explanation')


def test_scan_needs_to_know_where_the_camera_is(tiny_bundle: ModelBundle) -> None:
    with node_of(tiny_bundle) as rig:
        scans = rig.collect('/perception/scan', LaserScan)
        rig.calibrate(camera_info())
        rig.perceive(image_message(textured()))
        assert scans == []
        assert rig.set(camera_pose=[0.2, 0.0, 0.4, 0.0, 0.2, 0.0]) == ['']
        stamp = rig.send(image_message(textured()))
        scan = rig.wait_for('/perception/scan', stamp)
    assert scan.header.frame_id == 'base_link'
    beams = round((scan.angle_max - scan.angle_min) / scan.angle_increment) + 1
    assert len(scan.ranges) == beams
    assert -1.0 < scan.angle_min < 0 < scan.angle_max < 1.0
