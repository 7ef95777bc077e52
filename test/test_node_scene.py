"""Points, obstacles, scan and floor over DDS, of a network that always sees one known room."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from analytic_rooms import FLOOR, WALL, Box, View, camera_pose, render
from node_rig import (
    FOCAL_LENGTH,
    FRAME,
    HEIGHT,
    WIDTH,
    camera_info,
    image_message,
    node_of,
    pixels_of,
    textured,
)
from onnx import TensorProto, helper, numpy_helper
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import Image, LaserScan, PointCloud2
from tiny_graph import tiny_manifest

from mtl_perception.bundle import ClassSpec, DepthSpec, DetectionSpec, InputSpec, ModelBundle
from mtl_perception.datasets import PictureFolder
from mtl_perception.frames import Intrinsics
from mtl_perception.geometry.pipeline import SceneGeometry
from mtl_perception.msg import FloorPlane
from mtl_perception.orientation import turn_image
from mtl_perception.ros.poses import pose_matrix
from mtl_perception.srv import SaveFrame

pytestmark = pytest.mark.usefixtures('ros_domain')

CAMERA = Intrinsics(WIDTH, HEIGHT, FOCAL_LENGTH, FOCAL_LENGTH, WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5)
# x, y, z, roll, pitch, yaw of the camera's body: 0.6 m high, 15 degrees down.
POSE = [0.0, 0.0, 0.6, 0.0, float(np.radians(15)), 0.0]
BOX = Box((2.0, -0.4, 0.0), (2.3, 0.4, 0.3))


def room(**options) -> View:
    view = render(camera_pose(0.6, 15), CAMERA, (BOX,), **options)
    np.testing.assert_allclose(pose_matrix(POSE), view.base_from_camera, atol=1e-9)
    return view


def bundle_of(
    view: View, folder: Path, *, depth_factor: float = 1.0, boxed: bool = False
) -> ModelBundle:
    """Write a network that answers every picture with this view.

    Args:
        view: that is seen, whatever the picture shows.
        folder: to write to.
        depth_factor: that the depth is wrong by.
        boxed: the network finds a box, too: the one around the view's first thing.
    """
    seen = view.prediction
    constants = {
        'label_map': seen.label.astype(np.float32),
        'confidence_map': np.full((HEIGHT, WIDTH), 250, np.float32),
        'depth_map': (seen.depth * depth_factor).astype(np.float32),
        'normal_map': seen.normal,
        'nothing': np.float32(0),
        'channels': np.array([3], np.int64),
    }
    nodes = [
        ('Cast', ['image'], 'numbers', {'to': TensorProto.FLOAT}),
        ('Mul', ['numbers', 'nothing'], 'zeros', {}),
        ('ReduceMax', ['zeros', 'channels'], 'zero', {'keepdims': 0}),
        ('Add', ['zeros', 'normal_map'], 'normal', {}),
        ('Add', ['zero', 'depth_map'], 'depth', {}),
        ('Add', ['zero', 'label_map'], 'label_float', {}),
        ('Add', ['zero', 'confidence_map'], 'confidence_float', {}),
        ('Cast', ['label_float'], 'label', {'to': TensorProto.UINT8}),
        ('Cast', ['confidence_float'], 'confidence', {'to': TensorProto.UINT8}),
    ]
    outputs = []
    if boxed:
        rows, columns = (np.flatnonzero((view.thing == 0).any(axis)) for axis in (1, 0))
        corners = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        constants |= {
            'box': np.array([corners], np.float32),
            'score': np.array([0.9], np.float32),
            'picture_axes': np.array([1, 2], np.int64),
            'last': np.array([2], np.int64),
        }
        nodes += [
            ('ReduceMax', ['zero', 'picture_axes'], 'zero_each', {'keepdims': 1}),
            ('Add', ['zero_each', 'box'], 'boxes', {}),
            ('Squeeze', ['zero_each', 'last'], 'zero_slot', {}),
            ('Add', ['zero_slot', 'score'], 'box_scores', {}),
            ('Cast', ['zero_slot'], 'box_labels', {'to': TensorProto.INT32}),
        ]
        outputs = [
            helper.make_tensor_value_info('boxes', TensorProto.FLOAT, ['N', 1, 4]),
            helper.make_tensor_value_info('box_scores', TensorProto.FLOAT, ['N', 1]),
            helper.make_tensor_value_info('box_labels', TensorProto.INT32, ['N', 1]),
        ]
    picture = ['N', HEIGHT, WIDTH]
    graph = helper.make_graph(
        [helper.make_node(op, ins, [out], name=out, **attrs) for op, ins, out, attrs in nodes],
        'room',
        [helper.make_tensor_value_info('image', TensorProto.UINT8, [*picture, 3])],
        [
            helper.make_tensor_value_info('label', TensorProto.UINT8, picture),
            helper.make_tensor_value_info('confidence', TensorProto.UINT8, picture),
            helper.make_tensor_value_info('depth', TensorProto.FLOAT, picture),
            helper.make_tensor_value_info('normal', TensorProto.FLOAT, [*picture, 3]),
            *outputs,
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)])
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / 'room.onnx')
    manifest = tiny_manifest().model_copy(
        update={
            'name': 'room',
            'input': InputSpec(height=HEIGHT, width=WIDTH, resizable=False),
            'depth': DepthSpec(min=0.1, max=20.0, focal_length_px=FOCAL_LENGTH),
        }
    )
    if boxed:
        thing = ClassSpec(name='box', color=(200, 120, 40))
        manifest = manifest.model_copy(
            update={
                'tasks': (*manifest.tasks, 'detection'),
                'detection': DetectionSpec(classes=(thing,), max_boxes=1),
            }
        )
    return ModelBundle.write(folder / 'room', manifest, folder / 'room.onnx')


def records(message: PointCloud2) -> np.ndarray:
    types = {7: '<f4', 2: 'u1'}
    dtype = np.dtype(
        {
            'names': [field.name for field in message.fields],
            'formats': [types[field.datatype] for field in message.fields],
            'offsets': [field.offset for field in message.fields],
            'itemsize': message.point_step,
        }
    )
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width)


def perceive(rig, *topics, kinds, calibrate=True):
    """Publish a picture; return the messages of these topics with its stamp."""
    for topic, kind in zip(topics, kinds, strict=True):
        rig.collect(f'/perception/{topic}', kind)
    if calibrate:
        rig.calibrate(camera_info())
    stamp = rig.send(image_message(textured()))
    return [rig.wait_for(f'/perception/{topic}', stamp) for topic in topics]


def test_the_room_arrives_as_points_obstacles_scan_and_floor(tmp_path):
    view = room()
    with node_of(bundle_of(view, tmp_path), camera_pose=POSE) as rig:
        cloud, obstacles, scan, floor, mask = perceive(
            rig,
            'points',
            'obstacles',
            'scan',
            'floor',
            'segmentation/mask',
            kinds=(PointCloud2, PointCloud2, LaserScan, FloorPlane, Image),
        )
    assert [field.name for field in cloud.fields] == [
        'x', 'y', 'z', 'rgb', 'label', 'confidence', 'normal_x', 'normal_y', 'normal_z',
    ]  # fmt: skip
    assert not cloud.is_dense
    points = records(cloud)
    label = pixels_of(mask)
    assert points.shape == label.shape
    for message in (cloud, obstacles, floor):
        assert message.header == mask.header
        assert message.header.frame_id == FRAME
    np.testing.assert_array_equal(points['label'], label)
    seen = np.isfinite(points['x'])
    assert seen.mean() > 0.9
    np.testing.assert_allclose(points['z'][seen], view.prediction.depth[seen], rtol=1e-5)
    red = np.ascontiguousarray(points['rgb']).view(np.uint32) >> 16 & 255
    np.testing.assert_array_equal(red, textured()[..., 0])

    things = records(obstacles)[0]
    assert obstacles.is_dense
    assert set(np.unique(things['label'])) == {BOX.label, WALL}
    assert things['height'].min() > -0.02
    box = things[things['label'] == BOX.label]
    assert box.size > 0.9 * (view.thing == 0).sum()
    assert (box['std'] > 0).all()

    assert scan.header.frame_id == 'base_link'
    assert scan.header.stamp == mask.header.stamp
    angles = scan.angle_min + scan.angle_increment * np.arange(len(scan.ranges))
    front = np.abs(np.tan(angles)) < 0.17
    np.testing.assert_allclose(
        np.array(scan.ranges)[front], 2.0 / np.cos(angles[front]), atol=0.04
    )

    assert floor.found
    assert floor.reason == ''
    assert floor.distance == pytest.approx(0.6, abs=0.01)
    normal = [floor.normal.x, floor.normal.y, floor.normal.z]
    np.testing.assert_allclose(normal, view.up, atol=0.01)
    covariance = floor.covariance.reshape(4, 4)
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-15)
    assert covariance[3, 3] > 0
    assert 0.5 < floor.confidence <= 1
    assert np.isnan(floor.scale)


def test_without_a_floor_the_message_says_why(tmp_path):
    view = room()
    view.prediction.label[view.prediction.label == FLOOR] = WALL
    with node_of(bundle_of(view, tmp_path)) as rig:
        (floor,) = perceive(rig, 'floor', kinds=(FloorPlane,))
    assert not floor.found
    assert floor.reason == 'no pixel is labelled floor'
    assert np.isnan(floor.distance)


def test_the_cameras_height_corrects_the_scale(tmp_path):
    view = room()
    bundle = bundle_of(view, tmp_path, depth_factor=0.8)
    with node_of(bundle, camera_height=0.6, scale='apply') as rig:
        floor, cloud = perceive(rig, 'floor', 'points', kinds=(FloorPlane, PointCloud2))
        assert rig.set(scale='estimate') == ['']
        (estimated,) = perceive(rig, 'floor', kinds=(FloorPlane,), calibrate=False)
    assert floor.scale == pytest.approx(1.25, rel=0.02)
    assert 0 < floor.scale_std < 0.2
    assert floor.scale_applied
    assert floor.distance == pytest.approx(0.6, rel=0.02)
    points = records(cloud)
    seen = np.isfinite(points['z'])
    ratio = points['z'] / view.prediction.depth
    np.testing.assert_allclose(ratio[seen & (view.prediction.label == FLOOR)], 1, rtol=0.03)
    # What stands on the floor was moved to where it touches it, to a row's precision.
    assert np.quantile(np.abs(ratio[seen] - 1), 0.9) < 0.04
    np.testing.assert_allclose(ratio[seen], 1, rtol=0.11)
    assert not estimated.scale_applied
    assert estimated.distance == pytest.approx(0.48, rel=0.02)


@pytest.mark.parametrize('encoding', ['32FC1', '16UC1'])
def test_depth_for_maps_is_scaled(tmp_path, encoding):
    bundle = bundle_of(room(), tmp_path, depth_factor=0.8)
    topics = ('floor', 'depth/image', 'depth/scaled')
    with node_of(bundle, camera_height=0.6, scale='apply', depth_encoding=encoding) as rig:
        floor, plain, scaled = perceive(rig, *topics, kinds=(FloorPlane, Image, Image))
    assert floor.scale == pytest.approx(1.25, rel=0.02)
    depth, corrected = (pixels_of(image).astype(float) for image in (plain, scaled))
    assert scaled.encoding == encoding and corrected.shape == depth.shape
    step = 1.0 if encoding == '16UC1' else 1e-5
    np.testing.assert_allclose(corrected, floor.scale * depth, atol=step, rtol=1e-5)
    assert scaled.header == plain.header


@pytest.mark.parametrize(
    ('parameters', 'sentence'),
    [
        ({'scale': 'apply'}, 'scale: apply has no effect'),
        ({'scale': 'estimate', 'camera_height': 0.6}, 'no depth/scaled: it needs scale: apply'),
    ],
    ids=['no height', 'not applied'],
)
def test_without_a_scale_depth_for_maps_is_silent(tmp_path, parameters, sentence):
    with node_of(bundle_of(room(), tmp_path), **parameters) as rig:
        log = rig.log()
        rig.collect('/perception/depth/scaled', Image)
        perceive(rig, 'depth/image', kinds=(Image,))
        rig.wait(lambda: any(sentence in entry.msg for entry in log), sentence)
        assert not rig.received['/perception/depth/scaled']


@pytest.mark.parametrize(
    ('parameters', 'sentence'),
    [
        ({}, 'scale: apply has no effect'),
        ({'camera_height': 0.6}, 'its height above the floor, but its tilt is unknown'),
        ({'camera_pose': [0.0, 0.0, 0.6, 0.0, 0.2618, 0.0]}, 'camera is 0.60 m above'),
        ({'camera_pose': [0.0, 0.0, -0.1, 0.0, 0.2618, 0.0]}, 'camera: it is 0.10 m below'),
    ],
    ids=['unknown', 'height alone', 'known', 'base above the camera'],
)
def test_the_log_tells_what_height_the_scale_follows(tmp_path, parameters, sentence):
    with node_of(bundle_of(room(), tmp_path), scale='apply', **parameters) as rig:
        log = rig.log()
        (floor,) = perceive(rig, 'floor', kinds=(FloorPlane,))
        rig.wait(lambda: any(sentence in entry.msg for entry in log), sentence)
    assert floor.scale_applied == ('above' in sentence)


@pytest.mark.parametrize(
    ('pose', 'sentence'),
    [
        ([0.0, 0.0, 0.6, 0.0, float(-np.pi / 2), 0.0], 'looks up: images need an optical frame'),
        ([0.0, 0.0, 0.6, float(np.pi / 2), 0.0, 0.0], 'its picture is not upright: set rotate'),
    ],
)
def test_a_camera_that_cannot_stand_so_is_told(tmp_path, pose, sentence):
    with node_of(bundle_of(room(), tmp_path), camera_pose=pose) as rig:
        log = rig.log()
        perceive(rig, 'floor', kinds=(FloorPlane,))
        rig.wait(lambda: any(sentence in entry.msg for entry in log), sentence)


def test_boxes_stand_in_the_corrected_scale(tmp_path):
    messages = pytest.importorskip(
        'vision_msgs.msg', reason='vision_msgs is not installed (it has no wheels)'
    )
    view = room()
    bundle = bundle_of(view, tmp_path, depth_factor=0.8, boxed=True)
    distance = float(np.median(view.prediction.depth[view.thing == 0]))
    topics, kinds = ('detections_3d', 'floor'), (messages.Detection3DArray, FloorPlane)
    with node_of(bundle, camera_height=0.6, scale='apply') as rig:
        corrected, floor = perceive(rig, *topics, kinds=kinds)
        assert rig.set(scale='off') == ['']
        (plain,) = perceive(rig, 'detections_3d', kinds=kinds[:1], calibrate=False)
    assert floor.scale_applied and floor.scale > 1.05
    (near,), (far,) = plain.detections, corrected.detections
    assert near.bbox.center.position.z == pytest.approx(0.8 * distance, rel=0.05)
    for axis in 'xyz':
        places = [getattr(d.bbox.center.position, axis) for d in (near, far)]
        assert places[1] == pytest.approx(floor.scale * places[0], rel=1e-4)
        sizes = [getattr(d.bbox.size, axis) for d in (near, far)]
        assert sizes[1] == pytest.approx(floor.scale * sizes[0], rel=1e-4)
    # The thing's front is 0.8 m wide.
    assert near.bbox.size.x == pytest.approx(0.8 * 0.8, rel=0.1)


def with_reference(rig, reference, *, reliable=False, info=None):
    """Publish a reference and a picture of the same stamp until the floor shows a scale."""
    rig.collect('/perception/floor', FloorPlane)
    rig.calibrate(info or camera_info())
    publisher = rig.publisher('/reference', type(reference), reliable=reliable)
    message = image_message(textured())

    def scaled():
        reference.header.stamp = rig.stamp()
        publisher.publish(reference)
        stamp = rig.send(message)
        floor = rig.wait_for('/perception/floor', stamp)
        return floor if np.isfinite(floor.scale) else None

    return rig.wait(scaled, 'floor with a scale')


def test_a_laser_scan_corrects_the_scale(tmp_path):
    bundle = bundle_of(room(), tmp_path, depth_factor=0.75)
    angles = np.arange(-0.5, 0.5, 0.01)
    # A laser at the base's origin, 0.2 m above the floor: it sees the box and the room's walls.
    ranges = np.minimum(5.0 / np.cos(angles), 2.0 / np.maximum(np.abs(np.sin(angles)), 0.1))
    on_box = np.abs(np.tan(angles)) < 0.2
    ranges[on_box] = 2.0 / np.cos(angles[on_box])
    scan = LaserScan(
        angle_min=-0.5, angle_max=0.5, angle_increment=0.01, range_min=0.1, range_max=10.0
    )
    scan.ranges = ranges.astype(np.float32).tolist()
    scan.header.frame_id = 'base_link'
    pose = [0.0, 0.0, 0.4, *POSE[3:]]  # base_link is 0.2 m above the floor here
    with node_of(
        bundle,
        camera_pose=pose,
        scale='apply',
        scale_reference='laser_scan',
        scale_reference_topic='/reference',
    ) as rig:
        floor = with_reference(rig, scan)
    assert floor.scale == pytest.approx(1 / 0.75, rel=0.03)
    assert floor.distance == pytest.approx(0.6, rel=0.03)


@pytest.mark.parametrize('encoding', ['32FC1', '16UC1'])
def test_sparse_depth_corrects_the_scale(tmp_path, encoding):
    view = room()
    depth = view.prediction.depth.copy()
    depth[np.random.default_rng(0).random(depth.shape) < 0.95] = 0
    pixels = depth if encoding == '32FC1' else np.rint(depth * 1000).astype(np.uint16)
    with node_of(
        bundle_of(view, tmp_path, depth_factor=1.3),
        scale='estimate',
        scale_reference='depth_image',
        scale_reference_topic='/reference',
    ) as rig:
        floor = with_reference(rig, image_message(pixels, encoding), reliable=True)
        (asked,) = rig.node.get_subscriptions_info_by_topic('/reference')
    assert floor.scale == pytest.approx(1 / 1.3, rel=0.01)
    assert not floor.scale_applied
    assert asked.qos_profile.reliability == ReliabilityPolicy.RELIABLE


def test_depth_of_a_lens_that_distorts_is_compared_where_it_is_seen(tmp_path):
    view = room()
    info = camera_info()
    info.distortion_model, info.d = 'plumb_bob', [-0.3, 0.1, 0.0, 0.0, 0.0]
    # What the lens shows at each of its pixels, of the floor before the robot alone.
    matrix = np.array(info.k).reshape(3, 3)
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    seen = cv2.undistortPoints(
        np.stack([u, v], -1).reshape(-1, 1, 2), matrix, np.array(info.d), P=matrix
    )
    columns, rows = np.rint(seen[:, 0].T.reshape(2, HEIGHT, WIDTH)).astype(int)
    inside = (columns >= 0) & (columns < WIDTH) & (rows >= 0) & (rows < HEIGHT)
    inside &= v >= HEIGHT * 0.8
    depth = view.prediction.depth[rows.clip(0, HEIGHT - 1), columns.clip(0, WIDTH - 1)]
    reference = image_message(np.where(inside, depth, 0).astype(np.float32), '32FC1')
    with node_of(
        bundle_of(view, tmp_path, depth_factor=1.3),
        rectify=True,
        scale='estimate',
        scale_reference='depth_image',
        scale_reference_topic='/reference',
    ) as rig:
        floor = with_reference(rig, reference, reliable=True, info=info)
    assert floor.scale == pytest.approx(1 / 1.3, rel=0.01)


@pytest.mark.parametrize(
    ('size', 'sentence'),
    [(None, 'nothing has arrived on /reference'), ((64, 64), 'which has another aspect')],
)
def test_a_useless_reference_is_told(tmp_path, size, sentence):
    with node_of(
        bundle_of(room(), tmp_path),
        scale='estimate',
        scale_reference='depth_image',
        scale_reference_topic='/reference',
    ) as rig:
        log = rig.log()
        rig.collect('/perception/floor', FloorPlane)
        rig.calibrate(camera_info())
        publisher = rig.publisher('/reference', Image) if size else None

        def told():
            if publisher is not None:
                reference = image_message(np.full(size, 2.0, np.float32), '32FC1')
                reference.header.stamp = rig.stamp()
                publisher.publish(reference)
            rig.wait_for('/perception/floor', rig.send(image_message(textured())))
            return any(sentence in entry.msg for entry in log)

        rig.wait(told, sentence)


@pytest.mark.parametrize(('encoding', 'degrees'), [('32FC1', 0), ('16UC1', 180)])
def test_a_depth_cameras_depth_is_saved_as_truth(tmp_path, encoding, degrees):
    view = room()
    depth = view.prediction.depth.copy()
    depth[: HEIGHT // 8] = np.nan if encoding == '32FC1' else 0
    pixels = depth if encoding == '32FC1' else np.rint(depth * 1000).astype(np.uint16)
    with node_of(
        bundle_of(view, tmp_path / 'bundle', depth_factor=1.3),
        rotate=degrees,
        scale_reference='depth_image',
        scale_reference_topic='/reference',
        save_folder=str(tmp_path),
    ) as rig:
        rig.calibrate(camera_info())
        reference = image_message(turn_image(pixels, -degrees), encoding)
        publisher = rig.publisher('/reference', Image, reliable=True)
        picture = image_message(turn_image(textured(), -degrees))

        def send():
            reference.header.stamp = rig.stamp()
            publisher.publish(reference)
            rig.send(picture)

        request = SaveFrame.Request(name='truth')
        answer = rig.wait(
            lambda: (a := rig.call_while(send, SaveFrame, 'save_frame', request)).success and a,
            'a saved frame',
        )
    saved = PictureFolder(tmp_path, 'truth').read(0)
    np.testing.assert_array_equal(saved.rgb, textured())
    known = np.isfinite(depth) & (depth > 0)
    np.testing.assert_allclose(saved.depth[known], depth[known], atol=1e-3)
    assert not saved.depth[~known].any() and not known.all()
    assert saved.normals_source != 'file'
    notes = json.loads((tmp_path / 'truth' / 'cameras.json').read_text())['frames']
    assert notes[Path(answer.path).stem]['notes']['depth'] == 'depth camera'


def test_saved_depth_is_rectified_like_the_picture(tmp_path):
    view = room()
    row = np.linspace(1, 3, WIDTH, dtype=np.float32)
    ramp = np.tile(row, (HEIGHT, 1))
    info = camera_info()
    info.distortion_model, info.d = 'plumb_bob', [-0.3, 0.1, 0.0, 0.0, 0.0]
    with node_of(
        bundle_of(view, tmp_path / 'bundle'),
        rectify=True,
        scale_reference='depth_image',
        scale_reference_topic='/reference',
        save_folder=str(tmp_path),
    ) as rig:
        rig.calibrate(info)
        reference = image_message(ramp, '32FC1')
        publisher = rig.publisher('/reference', Image, reliable=True)
        # The picture's brightness follows the depth: both must be bent alike.
        grey = np.repeat((ramp * 80).astype(np.uint8)[..., None], 3, axis=2)
        picture = image_message(grey)

        def send():
            reference.header.stamp = rig.stamp()
            publisher.publish(reference)
            rig.send(picture)

        request = SaveFrame.Request(name='truth')
        rig.wait(
            lambda: rig.call_while(send, SaveFrame, 'save_frame', request).success,
            'a saved frame',
        )
    saved = PictureFolder(tmp_path, 'truth').read(0)
    known = saved.depth > 0
    assert known.mean() > 0.9
    assert np.abs(saved.depth - ramp).max() > 0.05
    np.testing.assert_allclose(saved.rgb[known][:, 0] / 80, saved.depth[known], atol=0.05)


def test_depth_of_another_camera_is_no_truth(tmp_path):
    with node_of(
        bundle_of(room(), tmp_path / 'bundle'),
        scale_reference='depth_image',
        scale_reference_topic='/reference',
        save_folder=str(tmp_path),
    ) as rig:
        rig.calibrate(camera_info())
        depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
        reference = image_message(depth, '32FC1', 'camera_depth_optical_frame')
        publisher = rig.publisher('/reference', Image, reliable=True)

        def send():
            reference.header.stamp = rig.stamp()
            publisher.publish(reference)
            rig.send(image_message(textured()))

        request, sentence = SaveFrame.Request(name='truth'), "from 'camera_depth_optical_frame'"
        rig.wait(
            lambda: sentence in rig.call_while(send, SaveFrame, 'save_frame', request).message,
            'a refusal',
        )
    assert not (tmp_path / 'truth').exists()


def test_scaled_depth_falls_silent_when_nothing_tells_the_scale(tmp_path):
    bundle = bundle_of(room(), tmp_path, depth_factor=0.8)
    depth = room().prediction.depth
    with node_of(
        bundle,
        scale='apply',
        scale_reference='depth_image',
        scale_reference_topic='/reference',
    ) as rig:
        log = rig.log()
        scaled = rig.collect('/perception/depth/scaled', Image)
        rig.collect('/perception/depth/image', Image)
        rig.calibrate(camera_info())
        reference = image_message(depth, '32FC1')
        publisher = rig.publisher('/reference', Image, reliable=True)

        def told():
            reference.header.stamp = rig.stamp(100.0)
            publisher.publish(reference)
            rig.wait_for(
                '/perception/depth/image', rig.send(image_message(textured()), stamp_s=100.0)
            )
            return scaled

        rig.wait(told, 'scaled depth')
        count = len(scaled)
        # Four minutes later the scale has faded into the network's own.
        stamp = rig.send(image_message(textured()), stamp_s=340.0)
        rig.wait_for('/perception/depth/image', stamp)
        sentence = 'was not seen well for a while'
        rig.wait(lambda: any(sentence in entry.msg for entry in log), sentence)
        assert len(scaled) == count


def test_without_its_depth_camera_nothing_is_saved(tmp_path):
    with node_of(
        bundle_of(room(), tmp_path / 'bundle'),
        scale_reference='depth_image',
        scale_reference_topic='/reference',
        save_folder=str(tmp_path),
    ) as rig:
        rig.calibrate(camera_info())
        answer = rig.call_while(
            lambda: rig.send(image_message(textured())),
            SaveFrame,
            'save_frame',
            SaveFrame.Request(name='truth'),
        )
    assert not answer.success
    assert 'nothing has arrived on /reference' in answer.message
    assert not (tmp_path / 'truth').exists()


def test_points_are_thinned_on_request(tmp_path):
    view = room()
    with node_of(bundle_of(view, tmp_path), points_stride=4) as rig:
        (cloud,) = perceive(rig, 'points', kinds=(PointCloud2,))
        assert (cloud.height, cloud.width) == (HEIGHT // 4, WIDTH // 4)
        np.testing.assert_array_equal(records(cloud)['label'], view.prediction.label[::4, ::4])
        assert rig.set(points_stride=1, points_voxel=0.2) == ['', '']
        (thin,) = perceive(rig, 'points', kinds=(PointCloud2,), calibrate=False)
    sparse = records(thin)[0]
    assert 50 < sparse.size < 0.2 * HEIGHT * WIDTH
    assert np.isfinite(sparse['x']).all()
    cubes = np.stack([np.floor(sparse[axis] / np.float32(0.2)) for axis in 'xyz'])
    assert np.unique(cubes, axis=1).shape[1] == sparse.size


def test_nothing_is_computed_while_nobody_listens(tmp_path, monkeypatch):
    calls = []
    update = SceneGeometry.update

    def counted(self, *args, **options):
        calls.append(sorted(options['outputs']))
        return update(self, *args, **options)

    monkeypatch.setattr(SceneGeometry, 'update', counted)
    with node_of(bundle_of(room(), tmp_path)) as rig:
        rig.calibrate(camera_info())
        rig.perceive(image_message(textured()))
        assert calls == []
        perceive(rig, 'floor', kinds=(FloorPlane,), calibrate=False)
        assert calls == [['floor']]
