"""Bags of every kind, and folders, become frames with the truth of their time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from bag_writing import (
    IMAGE,
    LABEL,
    PERIOD_NS,
    SIZE,
    START_NS,
    K,
    bag_sink,
    scene,
    write_bag,
)
from rosbags.rosbag2 import CompressionMode

from mtl_perception.encodings import to_rgb
from mtl_perception.recordings import (
    RecordedFrame,
    Recording,
    RecordingError,
    TopicChoice,
    open_recording,
    published_by_node,
)


def read(recording: Recording) -> list[RecordedFrame]:
    return list(recording.frames())


def assert_is_scene(frame: RecordedFrame, index: int) -> None:
    shown = scene(index)
    assert np.array_equal(to_rgb(frame.frame.pixels, frame.frame.encoding), shown.rgb)
    assert np.array_equal(frame.truth['label'].at(*SIZE), shown.label)
    assert frame.truth['depth'].at(*SIZE) == pytest.approx(shown.depth_mm / 1000)
    assert np.abs(frame.truth['normal'].at(*SIZE) - shown.normal).max() < 0.01


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3', 'ros1'])
def test_every_kind_of_bag_gives_the_same_frames(tmp_path: Path, storage: str) -> None:
    path = tmp_path / ('bag.bag' if storage == 'ros1' else 'bag')
    recording = open_recording(write_bag(path, storage=storage))
    frames = read(recording)
    assert len(recording) == len(frames) == 5
    for index, frame in enumerate(frames):
        assert_is_scene(frame, index)
        assert frame.frame.stamp_ns == START_NS + index * PERIOD_NS
        assert frame.frame.frame_id == 'camera'
        assert frame.frame.intrinsics.fx == K[0]
    assert recording.sources == dict.fromkeys(('label', 'depth', 'normal'), 'ground truth')
    assert not recording.skipped
    assert not recording.remarks


@pytest.mark.parametrize(
    ('storage', 'mode'),
    [
        ('mcap', CompressionMode.STORAGE),
        ('mcap', CompressionMode.FILE),
        ('sqlite3', CompressionMode.MESSAGE),
        ('sqlite3', CompressionMode.FILE),
    ],
)
def test_compressed_bags_are_read(tmp_path: Path, storage: str, mode: CompressionMode) -> None:
    path = write_bag(tmp_path / 'bag', storage=storage, compression=mode)
    assert len(read(open_recording(path))) == 5
    # Without its description the files alone say how they are compressed.
    (path / 'metadata.yaml').unlink()
    recording = open_recording(path)
    for index, frame in enumerate(read(recording)):
        assert_is_scene(frame, index)
    assert any('no metadata.yaml' in remark for remark in recording.remarks)


def test_a_storage_file_alone_is_a_recording(tmp_path: Path) -> None:
    write_bag(tmp_path / 'bag')
    assert len(read(open_recording(tmp_path / 'bag' / 'bag.mcap'))) == 5


@pytest.mark.parametrize('with_metadata', [True, False])
@pytest.mark.parametrize('compression', [None, CompressionMode.STORAGE])
@pytest.mark.parametrize('size', [SIZE, (240, 320)])
def test_a_cut_off_mcap_gives_its_whole_frames(
    tmp_path: Path,
    with_metadata: bool,
    compression: CompressionMode | None,
    size: tuple[int, int],
) -> None:
    path = tmp_path / 'bag'
    with bag_sink(path, compression=compression) as sink:
        for index in range(40):
            picture = np.random.default_rng(index).integers(0, 255, (*size, 3), np.uint8)
            sink.image('/noise', picture, 'rgb8', START_NS + index)
            sink.frame(index)
    file = path / 'bag.mcap'
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    if not with_metadata:
        (path / 'metadata.yaml').unlink()
    recording = open_recording(path, topics=TopicChoice(image=(f'{IMAGE}/compressed',)))
    frames = read(recording)
    assert 10 < len(frames) < 40
    assert_is_scene(frames[3], 3)
    assert any('damaged' in remark for remark in recording.remarks)


def test_a_cut_off_sqlite_bag_gives_what_is_left_or_says_why_not(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag', frames=60, storage='sqlite3')
    file = path / 'bag.db3'
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    try:
        recording = open_recording(path)
    except ValueError as error:
        assert 'nothing can be read' in str(error)
    else:
        read(recording)
        assert any('ends early' in r or 'damaged' in r for r in recording.remarks)


@pytest.mark.parametrize('content', [b'', b'\x89MCAP0\r\n', b'no bag at all' * 10])
def test_a_file_with_nothing_in_it_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'broken.mcap').write_bytes(content)
    with pytest.raises(ValueError, match=r'nothing can be read from .*broken\.mcap'):
        open_recording(tmp_path / 'broken.mcap')


def test_a_bag_without_pictures_names_what_there_is(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.transform(0.0, START_NS)
    with pytest.raises(RecordingError, match=r'no camera pictures: .*there are /tf \(tf2_msgs'):
        open_recording(tmp_path / 'bag')


def test_a_missing_or_mistaken_topic_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag')
    choice = TopicChoice(label='/no/such', depth='/camera/camera_info')
    recording = open_recording(path, topics=choice)
    frames = read(recording)
    assert set(frames[0].truth) == {'normal'}
    assert any('there is no topic /no/such' in remark for remark in recording.remarks)
    assert any('expected sensor_msgs/msg/Image' in remark for remark in recording.remarks)


def test_truth_of_another_size_is_sampled_and_of_another_view_left_out(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.frame(0, truth=False)
        large = scene(0, (96, 128))
        sink.png(LABEL, large.label, START_NS)
        sink.png('/ground_truth/depth/compressedDepth', large.depth_mm[:, :40], START_NS)
    recording = open_recording(tmp_path / 'bag')
    frame = read(recording)[0]
    assert np.array_equal(frame.truth['label'].at(*SIZE)[1:], scene(0).label[1:])
    assert 'depth' not in frame.truth
    assert any('shows another view' in reason for reason in recording.skipped)


def test_half_the_truth_missing_is_counted(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        for index in range(50):
            sink.frame(index, truth=index < 25)
    recording = open_recording(tmp_path / 'bag')
    frames = read(recording)
    assert [bool(frame.truth) for frame in frames] == [True] * 25 + [False] * 25
    assert recording.skipped[f'{LABEL}: pictures without a message of their time'] == 25


def test_truth_comes_from_the_nearest_stamp_within_the_tolerance(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        for index in range(4):
            stamp = START_NS + index * PERIOD_NS
            sink.image(IMAGE, scene(index).rgb, 'rgb8', stamp)
            sink.image('/ground_truth/label', scene(index).label, 'mono8', stamp + 15_000_000)
    near = read(open_recording(tmp_path / 'bag', tolerance_s=0.02))
    for index, frame in enumerate(near):
        assert np.array_equal(frame.truth['label'].at(*SIZE), scene(index).label)
    assert len(near) == 4
    assert not any(f.truth for f in read(open_recording(tmp_path / 'bag', tolerance_s=0.01)))


def test_truth_recorded_before_or_long_after_its_picture_is_found(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        for index in range(6):
            stamp = START_NS + index * PERIOD_NS
            sink.image('/ground_truth/label', scene(index).label, 'mono8', stamp)
            sink.image(IMAGE, scene(index).rgb, 'rgb8', stamp, time_ns=stamp + 300_000_000)
    for index, frame in enumerate(read(open_recording(tmp_path / 'bag'))):
        assert np.array_equal(frame.truth['label'].at(*SIZE), scene(index).label)


def test_time_running_backwards_keeps_every_frame_and_is_counted(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        for index in range(20):
            time_ns = START_NS + index * PERIOD_NS
            sink.frame(index % 10, stamp_ns=START_NS + (index % 10) * PERIOD_NS, time_ns=time_ns)
    recording = open_recording(tmp_path / 'bag')
    frames = read(recording)
    assert len(frames) == 20
    for index, frame in enumerate(frames):
        assert_is_scene(frame, index % 10)
    assert sum(n for reason, n in recording.skipped.items() if 'backwards' in reason) == 1


def test_two_cameras_each_get_their_own_truth_and_camera(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        for index, name in enumerate(('front', 'rear')):
            k = (50.0 + 10 * index, *K[1:])
            sink.camera_info(f'/{name}/camera_info', START_NS, k)
            sink.image(f'/{name}/image', scene(index).rgb, 'rgb8', START_NS)
            label = scene(index).label
            sink.image(f'/ground_truth/{name}/label', label, 'mono8', START_NS)
    frames = {frame.camera: frame for frame in read(open_recording(tmp_path / 'bag'))}
    for index, name in enumerate(('front', 'rear')):
        frame = frames[f'/{name}/image']
        assert np.array_equal(frame.truth['label'].at(*SIZE), scene(index).label)
        assert frame.frame.intrinsics.fx == 50 + 10 * index
    only = open_recording(tmp_path / 'bag', topics=TopicChoice(image=('/rear/image',)))
    assert [frame.camera for frame in read(only)] == ['/rear/image']


def test_the_nodes_own_outputs_are_neither_camera_nor_truth(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.frame(0)
        for name in ('segmentation/mask', 'segmentation/color', 'depth/image'):
            sink.image(f'/robot/eyes/{name}', scene(0).label, 'mono8', START_NS)
    recording = open_recording(tmp_path / 'bag')
    assert recording.topics['image'] == f'{IMAGE}/compressed'
    assert recording.topics['label'] == LABEL
    assert len(read(recording)) == 1


def test_a_camera_in_a_namespace_called_perception_is_a_camera(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.camera_info('/perception/front/camera_info', START_NS)
        sink.image('/perception/front/image_raw', scene(0).rgb, 'rgb8', START_NS)
        for name in ('segmentation/color', 'front/depth/image', 'depth/color/compressed'):
            sink.image(f'/perception/{name}', scene(0).rgb, 'rgb8', START_NS)
    recording = open_recording(tmp_path / 'bag')
    (frame,) = read(recording)
    assert frame.camera == '/perception/front/image_raw'
    assert frame.frame.intrinsics.fx == K[0]
    assert not frame.truth


def test_all_that_a_node_publishes_is_its_own() -> None:
    names = ('segmentation/mask', 'detections/label_info', 'depth/color/compressed', 'points')
    own = {f'/perception/{name}': 'any' for name in (*names, 'status', 'transition_event')}
    own |= {f'/perception/front/{name}': 'any' for name in names}
    others = {'/perception/front/image_raw': 'any', '/points': 'any', '/status': 'any'}
    assert published_by_node(own | others) == own.keys()


def test_what_is_given_for_one_camera_is_refused_for_several(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        for name in ('front', 'rear'):
            sink.image(f'/{name}/image', scene(0).rgb, 'rgb8', START_NS)
        sink.image('/tof/range', scene(0).depth_mm, '16UC1', START_NS)
    with pytest.raises(
        RecordingError, match='/tof/range cannot belong to all of /front/image, /r'
    ):
        open_recording(tmp_path / 'bag', topics=TopicChoice(depth='/tof/range'))
    topics = TopicChoice(image=('/rear/image',), depth='/tof/range')
    (frame,) = read(open_recording(tmp_path / 'bag', topics=topics))
    assert frame.camera == '/rear/image'
    assert 'depth' in frame.truth


@pytest.mark.parametrize(
    ('topic', 'given', 'used'),
    [
        ('/camera/depth/image_rect_raw', None, False),
        ('/camera/depth/image_rect_raw', '/camera/depth/image_rect_raw', True),
        ('/camera/aligned_depth_to_color/image_raw', None, True),
    ],
)
def test_depth_of_another_view_is_no_truth_unless_it_is_said_to_be(
    tmp_path: Path, topic: str, given: str | None, used: bool
) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.image('/camera/color/image_raw', scene(0).rgb, 'rgb8', START_NS, frame_id='color')
        sink.image(topic, scene(0).depth_mm, '16UC1', START_NS, frame_id='depth')
    recording = open_recording(tmp_path / 'bag', topics=TopicChoice(depth=given))
    (frame,) = read(recording)
    assert ('depth' in frame.truth) == used
    assert dict(recording.skipped) == ({} if used else {f'{topic}: in depth, not in color': 1})
    assert any(topic in remark and 'color' in remark for remark in recording.remarks)


def test_an_rgbd_cameras_depth_is_named_as_such_and_registered_depth_preferred(
    tmp_path: Path,
) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.image('/camera/color/image_raw', scene(0).rgb, 'rgb8', START_NS)
        for name in ('depth', 'aligned_depth_to_color'):
            sink.image(f'/camera/{name}/image_raw', scene(0).depth_mm, '16UC1', START_NS)
    recording = open_recording(tmp_path / 'bag')
    assert recording.sources == {'depth': 'RGB-D camera', 'normal': 'derived-11'}
    assert recording.topics['depth'] == '/camera/aligned_depth_to_color/image_raw'
    assert read(recording)[0].truth['depth'].at(*SIZE)[5, 5] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ('encoding', 'values', 'expected'),
    [
        ('mono8', np.array([[0, 12, 255]], np.uint8), [0, 12, 255]),
        ('mono16', np.array([[0, 12, 300]], np.uint16), [0, 12, 255]),
        ('16SC1', np.array([[0, 12, -1]], np.int16), [0, 12, 255]),
        ('32SC1', np.array([[0, 12, -1]], np.int32), [0, 12, 255]),
    ],
)
def test_labels_of_every_encoding(
    tmp_path: Path, encoding: str, values: np.ndarray, expected: list[int]
) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.image(IMAGE, np.zeros((1, 3, 3), np.uint8), 'rgb8', START_NS)
        sink.image('/ground_truth/label', values, encoding, START_NS)
    assert read(open_recording(tmp_path / 'bag'))[0].truth['label'].at(1, 3).tolist() == [expected]


def test_raw_depth_and_normals(tmp_path: Path) -> None:
    depth = np.array([[1.5, np.nan, np.inf, -np.inf]], np.float32)
    normal = np.array([[[0, 0, -1], [np.nan] * 3, [0, 0, 0], [0, 0, 0]]], np.float32)
    with bag_sink(tmp_path / 'bag') as sink:
        sink.image(IMAGE, np.zeros((1, 4, 3), np.uint8), 'rgb8', START_NS)
        sink.image('/ground_truth/depth', depth, '32FC1', START_NS)
        sink.image('/ground_truth/normals', normal, '32FC3', START_NS)
    truth = read(open_recording(tmp_path / 'bag'))[0].truth
    assert truth['depth'].at(1, 4).tolist() == [[1.5, 0, 0, 0]]
    assert truth['normal'].at(1, 4).tolist() == [[[0, 0, -1]] + [[0, 0, 0]] * 3]


def test_lossy_labels_and_unusable_encodings_are_counted_and_named(tmp_path: Path) -> None:
    jpeg = cv2.imencode('.jpg', scene(0).label)[1].tobytes()
    with bag_sink(tmp_path / 'bag') as sink:
        sink.frame(0, truth=False)
        sink.compressed(LABEL, jpeg, 'jpeg', START_NS)
        sink.image('/ground_truth/depth', scene(0).rgb, 'rgb8', START_NS)
    recording = open_recording(tmp_path / 'bag')
    assert not read(recording)[0].truth
    assert sum(recording.skipped.values()) == 2
    assert any('damaged by compression' in remark for remark in recording.remarks)
    assert any('depth cannot be rgb8' in remark for remark in recording.remarks)


def test_a_broken_picture_is_counted_and_the_next_one_read(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.frame(0)
        sink.compressed(f'{IMAGE}/compressed', b'\xff\xd8\xff broken', 'jpeg', START_NS + 1)
        sink.frame(1)
    recording = open_recording(tmp_path / 'bag')
    assert len(read(recording)) == 2
    assert sum(n for reason, n in recording.skipped.items() if 'cannot be decoded' in reason) == 1


@pytest.mark.parametrize(
    ('k', 'size', 'remark'),
    [
        ((0.0,) * 9, SIZE, 'an all-zero K'),
        (K, (48, 100), 'depth is not calibrated'),
    ],
)
def test_a_useless_camera_info_is_named(
    tmp_path: Path, k: tuple[float, ...], size: tuple[int, int], remark: str
) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.camera_info('/camera/camera_info', START_NS, k, size)
        sink.image(IMAGE, scene(0).rgb, 'rgb8', START_NS)
    recording = open_recording(tmp_path / 'bag')
    assert read(recording)[0].frame.intrinsics is None
    assert any(remark in text for text in recording.remarks)


# A sensor of four times the pixels.
SENSOR_K = (200.0, 0.0, 130.0, 0.0, 220.0, 90.0, 0.0, 0.0, 1.0)
SENSOR_SIZE = (4 * SIZE[0], 4 * SIZE[1])


@pytest.mark.parametrize('storage', ['mcap', 'ros1'])
@pytest.mark.parametrize(
    ('binning', 'region'),
    [
        (4, (0, 0, 0, 0)),
        (2, (40, 24, 2 * SIZE[1], 2 * SIZE[0])),
        # As large as the picture, and of the sensor's aspect: not to be taken for binning.
        (0, (40, 24, SIZE[1], SIZE[0])),
    ],
)
def test_binning_and_region_give_the_camera_of_the_delivered_picture(
    tmp_path: Path, storage: str, binning: int, region: tuple[int, int, int, int]
) -> None:
    path = tmp_path / ('bag.bag' if storage == 'ros1' else 'bag')
    with bag_sink(path, storage=storage) as sink:
        sink.camera_info(
            '/camera/camera_info', START_NS, SENSOR_K, SENSOR_SIZE, binning=binning, region=region
        )
        sink.image(IMAGE, scene(0).rgb, 'rgb8', START_NS)
    recording = open_recording(path)
    camera = read(recording)[0].frame.intrinsics
    point = np.array([-0.2, 0.1, 2.0])
    u, v, _ = np.array(SENSOR_K).reshape(3, 3) @ point / point[2]
    expected = ((np.array([u, v]) - region[:2]) + 0.5) / (binning or 1) - 0.5
    assert camera.matrix @ point / point[2] == pytest.approx([*expected, 1])
    assert (camera.height, camera.width) == SIZE
    assert not recording.remarks


@pytest.mark.parametrize(
    ('topic', 'fx'),
    [
        ('/camera/image_rect', 40),
        ('/camera/image_rect_color/compressed', 40),
        ('/camera/rectified/image', 40),
        ('/camera/image_raw', K[0]),
        ('/camera/image_corrected', K[0]),
    ],
)
def test_p_describes_rectified_topics_and_k_the_others(
    tmp_path: Path, topic: str, fx: float
) -> None:
    p = (40.0, 0.0, 30.0, 0.0, 0.0, 40.0, 20.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    with bag_sink(tmp_path / 'bag') as sink:
        info = f'{topic.removesuffix("/compressed").rpartition("/")[0]}/camera_info'
        sink.camera_info(info, START_NS, d=(-0.2, 0.05, 0.0, 0.0, 0.0), p=p)
        if topic.endswith('/compressed'):
            sink.png(topic, scene(0).rgb, START_NS)
        else:
            sink.image(topic, scene(0).rgb, 'rgb8', START_NS)
    recording = open_recording(tmp_path / 'bag')
    assert read(recording)[0].frame.intrinsics.fx == fx
    assert any('is distorted' in remark for remark in recording.remarks) == (fx == K[0])


def test_poses_come_from_tf_and_are_interpolated(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        for index in range(4):
            sink.transform(float(index), START_NS + index * PERIOD_NS)
            stamp = START_NS + index * PERIOD_NS - PERIOD_NS // 4
            sink.image(IMAGE, scene(0).rgb, 'rgb8', stamp)
    poses = [frame.pose for frame in read(open_recording(tmp_path / 'bag'))]
    assert [pose[0, 3] for pose in poses[1:]] == pytest.approx([0.75, 1.75, 2.75])


@pytest.mark.parametrize(('root', 'stands'), [('base_link', False), ('robot/odom', True)])
def test_static_transforms_tell_a_pose_only_within_the_world(
    tmp_path: Path, root: str, stands: bool
) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.transform(0.5, START_NS, parent='mast', topic='/tf_static')
        sink.transform(1.0, START_NS, child='mast', parent=root, topic='/tf_static')
        sink.image(IMAGE, scene(0).rgb, 'rgb8', START_NS)
    (frame,) = read(open_recording(tmp_path / 'bag'))
    assert (frame.pose is not None) == stands
    if stands:
        assert frame.pose[0, 3] == pytest.approx(1.5)


def test_a_fixed_camera_on_a_moving_base_has_a_pose(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.transform(0.5, START_NS, parent='base_link', topic='/tf_static')
        for index in range(2):
            stamp = START_NS + index * PERIOD_NS
            sink.transform(float(index), stamp, child='base_link', parent='start')
            sink.image(IMAGE, scene(0).rgb, 'rgb8', stamp)
    poses = [frame.pose for frame in read(open_recording(tmp_path / 'bag'))]
    assert [pose[0, 3] for pose in poses] == pytest.approx([0.5, 1.5])


def test_nobody_waits_for_transforms_where_only_static_ones_were_recorded(tmp_path: Path) -> None:
    with bag_sink(tmp_path / 'bag') as sink:
        sink.transform(0.5, START_NS, parent='base_link', topic='/tf_static')
        for index in range(3):
            # Stamps that run backwards are counted as soon as their messages are read.
            stamp, time_ns = START_NS - index, START_NS + index
            sink.image(IMAGE, scene(0).rgb, 'rgb8', stamp, time_ns=time_ns)
    recording = open_recording(tmp_path / 'bag')
    frames = recording.frames()
    next(frames)
    assert not recording.skipped
    assert len([*frames]) == 2
    assert sum(recording.skipped.values()) == 2


def test_a_labelled_folder_of_real_pictures(nyuv2: Path) -> None:
    recording = open_recording(nyuv2)
    frame = next(iter(recording.frames()))
    assert recording.name == 'nyuv2_288x384/devtest'
    assert len(recording) == 323
    assert recording.sources['normal'] == 'derived-11'
    assert frame.frame.intrinsics.fx == pytest.approx(311.31)
    assert open_recording(nyuv2, 'train').name.endswith('/train')
    assert open_recording(nyuv2 / 'train').name.endswith('/train')


def test_a_broken_file_of_a_folder_is_counted_and_the_rest_read(
    nyuv2: Path, tmp_path: Path
) -> None:
    for name, suffix in (('rgb', 'jpg'), ('depth', 'png'), ('label13', 'png')):
        (tmp_path / 'val' / name).mkdir(parents=True)
        for frame_id in ('0001', '0002'):
            shutil.copy(nyuv2 / 'devtest' / name / f'{frame_id}.{suffix}', tmp_path / 'val' / name)
    broken = tmp_path / 'val' / 'rgb' / '0001.jpg'
    broken.chmod(0o644)
    broken.write_bytes(b'')
    recording = open_recording(tmp_path)
    assert [frame.id for frame in recording.frames()] == ['0002']
    assert sum(recording.skipped.values()) == 1
    assert any('0001.jpg' in remark for remark in recording.remarks)


def test_a_real_sequence_has_depth_and_poses(nyuv2: Path) -> None:
    recording = open_recording(nyuv2.parent / 'rgbd_sequence_7scenes')
    frames = read(recording)
    assert len(frames) == 30
    assert recording.sources['depth'] == 'RGB-D camera'
    assert frames[0].frame.intrinsics.fx == 585
    depth = frames[0].truth['depth'].at(48, 64)
    assert 1 < np.median(depth[depth > 0]) < 4
    assert np.linalg.det(frames[0].pose[:3, :3]) == pytest.approx(1, abs=1e-3)


def test_plain_pictures_are_a_recording_without_truth(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / 'a.png'), scene(0).rgb)
    recording = open_recording(tmp_path)
    assert [frame.id for frame in recording.frames()] == ['a']
    assert 'without camera and truth' in recording.remarks[0]


def test_paths_that_are_no_recording_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match='does not exist'):
        open_recording(tmp_path / 'nothing')
    with pytest.raises(RecordingError, match='neither a bag nor pictures'):
        open_recording(tmp_path)
    (tmp_path / 'text.json').write_text(json.dumps({}))
    with pytest.raises(RecordingError, match='is no recording'):
        open_recording(tmp_path / 'text.json')
