"""The player puts recordings and folders on the wire as a camera would."""

from __future__ import annotations

import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy
from bag_writing import bag_sink, scene
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from typer.testing import CliRunner

from mtl_perception.cli import app
from mtl_perception.ros.player import Player, PlayOptions
from mtl_perception.ros.sources import (
    CalibratedSource,
    FolderSource,
    SourceError,
    camera_topic,
    open_source,
    parse_k,
    read_camera_info,
)
from mtl_perception.ros.sources.folder import quaternion

FRAMES = 6
PERIOD_NS = 20_000_000
START_NS = 1_700_000_000_000_000_000
WAIT_S = 15.0
PICTURES = '/camera/image/compressed'
INFO = '/camera/camera_info'


def write_bag(
    folder: Path, plugin: StoragePlugin, compression: CompressionMode = CompressionMode.NONE
) -> dict[str, list[bytes]]:
    """Write pictures, camera_info and /tf; return the serialized messages by topic."""
    store = get_typestore(Stores.ROS2_KILTED)
    types = store.types
    written: dict[str, list[bytes]] = defaultdict(list)
    writer = Writer(folder, version=9, storage_plugin=plugin)
    if compression != CompressionMode.NONE:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections = {
            PICTURES: writer.add_connection(
                PICTURES, 'sensor_msgs/msg/CompressedImage', typestore=store
            ),
            INFO: writer.add_connection(INFO, 'sensor_msgs/msg/CameraInfo', typestore=store),
            '/tf': writer.add_connection('/tf', 'tf2_msgs/msg/TFMessage', typestore=store),
        }
        for index in range(FRAMES):
            time_ns = START_NS + index * PERIOD_NS
            header = types['std_msgs/msg/Header'](
                stamp=types['builtin_interfaces/msg/Time'](*divmod(time_ns, 1_000_000_000)),
                frame_id='front_optical',
            )
            jpeg = cv2.imencode('.jpg', np.full((24, 32, 3), 40 * index, np.uint8))[1].ravel()
            region = types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
            messages = {
                PICTURES: types['sensor_msgs/msg/CompressedImage'](header, 'jpeg', jpeg),
                INFO: types['sensor_msgs/msg/CameraInfo'](
                    header=header,
                    height=24,
                    width=32,
                    distortion_model='plumb_bob',
                    d=np.zeros(5),
                    k=np.array([30.0, 0, 15.5, 0, 30, 11.5, 0, 0, 1]),
                    r=np.eye(3).ravel(),
                    p=np.array([30.0, 0, 15.5, 0, 0, 30, 11.5, 0, 0, 0, 1, 0]),
                    binning_x=0,
                    binning_y=0,
                    roi=region,
                ),
                '/tf': types['tf2_msgs/msg/TFMessage'](transforms=[]),
            }
            for topic, message in messages.items():
                connection = connections[topic]
                data = bytes(store.serialize_cdr(message, connection.msgtype))
                writer.write(connection, time_ns, data)
                written[topic].append(data)
    return written


@pytest.fixture(params=list(StoragePlugin), ids=lambda plugin: plugin.name.lower())
def bag(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, list[bytes]]]:
    folder = tmp_path / 'bag'
    return folder, write_bag(folder, request.param)


@pytest.fixture
def mcap(tmp_path: Path) -> Path:
    write_bag(tmp_path / 'bag', StoragePlugin.MCAP)
    return tmp_path / 'bag'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three pictures whose first pixels are 1, 2 and 3."""
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for index, name in enumerate(['shot-2', 'shot-9', 'shot-10'], start=1):
        cv2.imwrite(str(pictures / f'{name}.png'), np.full((8, 10, 3), index, np.uint8))
    return pictures


class Listener:
    """Collects what arrives; serialized messages where `raw`."""

    def __init__(self, node: Node, topics: dict[str, type], raw: bool = False) -> None:
        self.received: dict[str, list] = {topic: [] for topic in topics}
        self._subscriptions = [
            node.create_subscription(kind, topic, self.received[topic].append, 50, raw=raw)
            for topic, kind in topics.items()
        ]


@pytest.fixture
def nodes(ros_domain: dict[str, str]) -> Iterator[tuple[Node, Node, Callable]]:
    """Yield a node to publish with, a spinning node to listen with, and a bounded wait."""
    context = rclpy.Context()
    rclpy.init(context=context)
    sender = rclpy.create_node('sender', context=context)
    receiver = rclpy.create_node('receiver', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(receiver)

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, 'nothing more arrived'
            executor.spin_once(timeout_sec=0.05)

    yield sender, receiver, until
    executor.shutdown()
    sender.destroy_node()
    receiver.destroy_node()
    rclpy.shutdown(context=context)


def play_in_background(player: Player) -> tuple[threading.Thread, threading.Event, list]:
    stop, results = threading.Event(), []
    thread = threading.Thread(target=lambda: results.append(player.play(stop)), daemon=True)
    thread.start()
    return thread, stop, results


def play_and_collect(nodes, source, options: PlayOptions, topics: dict[str, type], raw=False):
    sender, receiver, until = nodes
    listener = Listener(receiver, topics, raw)
    player = Player(sender, source, options)
    thread, stop, results = play_in_background(player)
    expected = sum(1 for _ in source.messages()) if not options.loop else 0
    try:
        until(lambda: not thread.is_alive())
        result = results[0]
        assert result.messages == expected
        wanted = {name: topics[name] for name in topics}
        until(lambda: all(len(listener.received[name]) >= result.pictures for name in wanted))
    finally:
        stop.set()
        thread.join(WAIT_S)
    return result, listener.received


def test_a_bag_goes_out_byte_for_byte(nodes, bag):
    path, written = bag
    options = PlayOptions(stamp='bag', wait_s=WAIT_S)
    topics = {PICTURES: CompressedImage, INFO: CameraInfo}
    result, received = play_and_collect(nodes, open_source(path), options, topics, raw=True)
    assert result.completed and result.pictures == FRAMES
    for topic in topics:
        assert [bytes(data) for data in received[topic]] == written[topic]


@pytest.mark.parametrize('mode', [CompressionMode.FILE, CompressionMode.MESSAGE])
def test_a_compressed_recording_holds_the_same(tmp_path, mode):
    written = write_bag(tmp_path / 'bag', StoragePlugin.SQLITE3, mode)
    messages = list(open_source(tmp_path / 'bag').messages())
    for topic in (PICTURES, INFO):
        assert [one.data for one in messages if one.topic.name == topic] == written[topic]


def test_types_that_are_not_installed_are_left_out_by_name(mcap):
    source = open_source(mcap)
    try:
        import tf2_msgs.msg  # noqa: F401
    except ImportError:
        assert 'tf2_msgs' in source.left_out['/tf']
    else:
        assert '/tf' in {topic.name for topic in source.topics}


def test_new_stamps_are_the_present_and_shared_by_what_shared_one(nodes, mcap):
    before = time.time_ns()
    _, received = play_and_collect(
        nodes,
        open_source(mcap),
        PlayOptions(stamp='now', wait_s=WAIT_S),
        {PICTURES: CompressedImage, INFO: CameraInfo},
    )
    stamps = [nanoseconds(message) for message in received[PICTURES]]
    assert stamps == [nanoseconds(message) for message in received[INFO]]
    assert sorted(set(stamps)) == stamps and before < stamps[0] and stamps[-1] < time.time_ns()
    assert {message.header.frame_id for message in received[PICTURES]} == {'front_optical'}
    pictures = [cv2.imdecode(np.frombuffer(m.data, np.uint8), 1) for m in received[PICTURES]]
    assert [round(float(picture.mean()) / 40) for picture in pictures] == list(range(FRAMES))


def test_moved_stamps_keep_what_lies_between_them(nodes, tmp_path: Path):
    late_ns, gap_ns = 60_000_000, 40_000_000
    with bag_sink(tmp_path / 'bag') as sink:
        for index in range(FRAMES):
            now_ns = START_NS + index * gap_ns
            sink.camera_info(INFO, now_ns)
            # A camera's pictures come long after they were taken; a driver may never set stamps.
            rgb, taken_ns = scene(index).rgb, now_ns - late_ns
            sink.image('/camera/image', rgb, 'rgb8', taken_ns, time_ns=now_ns + 1)
            sink.image('/unset/image', rgb, 'rgb8', 7, time_ns=now_ns + 2)
    sender, receiver, until = nodes
    topics = {INFO: CameraInfo, '/camera/image': Image, '/unset/image': Image}
    listener = Listener(receiver, topics)
    options = PlayOptions(stamp='moved', rate=2, wait_s=WAIT_S, wait_for=tuple(topics))
    before = time.time_ns()
    play_in_background(Player(sender, open_source(tmp_path / 'bag'), options))
    until(lambda: all(len(messages) == FRAMES for messages in listener.received.values()))
    infos, pictures, unset = (
        [nanoseconds(message) for message in messages] for messages in listener.received.values()
    )
    assert np.diff(infos) == pytest.approx([gap_ns / 2] * (FRAMES - 1), abs=2)
    assert np.subtract(infos, pictures) == pytest.approx([late_ns / 2] * FRAMES, abs=2)
    assert before < infos[0]
    assert infos[-1] < time.time_ns()
    assert all(info < stamp < time.time_ns() for info, stamp in zip(infos, unset, strict=True))


def nanoseconds(message) -> int:
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def test_camera_info_goes_out_before_its_picture(mcap):
    order = [message.topic.name for message in open_source(mcap).messages()]
    assert order == [INFO, PICTURES] * FRAMES


def test_start_skips_seconds_and_remapping_renames(nodes, mcap):
    options = PlayOptions(
        stamp='bag', start_s=3 * PERIOD_NS * 1e-9, remap={PICTURES: '/front/jpeg'}, wait_s=WAIT_S
    )
    sender, receiver, until = nodes
    listener = Listener(receiver, {'/front/jpeg': CompressedImage})
    player = Player(sender, open_source(mcap), options)
    assert player.topics['/front/jpeg'] == 'sensor_msgs/msg/CompressedImage'
    thread, stop, results = play_in_background(player)
    until(lambda: len(listener.received['/front/jpeg']) == FRAMES - 3)
    thread.join(WAIT_S)
    stop.set()
    first = listener.received['/front/jpeg'][0]
    assert nanoseconds(first) == START_NS + 3 * PERIOD_NS
    assert results[0].pictures == FRAMES - 3


def test_a_limit_keeps_the_first_pictures_and_what_lies_between(mcap):
    source = open_source(mcap, limit=2)
    played = [(message.topic.name, message.time_ns) for message in source.messages()]
    assert [time_ns for name, time_ns in played if name == PICTURES] == [
        START_NS,
        START_NS + PERIOD_NS,
    ]
    whole = [(m.topic.name, m.time_ns) for m in open_source(mcap).messages()]
    assert played == whole[: len(played)]
    assert source.duration_ns < open_source(mcap).duration_ns
    later = source.messages(START_NS + 3 * PERIOD_NS)
    assert [m.time_ns for m in later if m.topic.name == PICTURES] == [
        START_NS + 3 * PERIOD_NS,
        START_NS + 4 * PERIOD_NS,
    ]


@pytest.mark.parametrize('what', ['bag', 'folder'])
def test_a_limit_counts_from_where_playing_starts(
    nodes, mcap: Path, folder: Path, what: str
) -> None:
    path, period_s = {'bag': (mcap, PERIOD_NS * 1e-9), 'folder': (folder, 0.02)}[what]
    start_s, limit = (3 * period_s, 2) if what == 'bag' else (period_s, 1)
    source = open_source(path, fps=50, limit=limit, start_s=start_s)
    sender, receiver, until = nodes
    topic, kind = (PICTURES, CompressedImage) if what == 'bag' else ('/camera/image', Image)
    listener = Listener(receiver, {topic: kind})
    options = PlayOptions(stamp='bag', start_s=start_s, wait_s=WAIT_S)
    thread, _, results = play_in_background(Player(sender, source, options))
    until(lambda: not thread.is_alive())
    until(lambda: len(listener.received[topic]) == limit)
    assert results[0].pictures == limit
    first_ns = nanoseconds(listener.received[topic][0])
    assert first_ns == source.start_ns + round(start_s * 1e9)


def test_what_was_latched_before_the_start_is_played(tmp_path: Path) -> None:
    store = get_typestore(Stores.ROS2_KILTED)
    latched = '/camera/camera_info'
    qos = Qos(
        QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL,
        QosTime(0, 0), QosTime(0, 0), QosLiveliness.AUTOMATIC, QosTime(0, 0), False,
    )  # fmt: skip
    with bag_sink(tmp_path / 'plain') as sink:
        sink.camera_info(latched, START_NS)
        for index in range(3):
            sink.image('/camera/image', scene(0).rgb, 'rgb8', START_NS + index * PERIOD_NS)
    messages = list(open_source(tmp_path / 'plain').messages())
    with Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            name: writer.add_connection(
                name, kind, typestore=store, offered_qos_profiles=[qos] * (name == latched)
            )
            for name, kind in {m.topic.name: m.topic.type for m in messages}.items()
        }
        for message in messages:
            writer.write(connections[message.topic.name], message.time_ns, message.data)
    start_ns = START_NS + PERIOD_NS
    played = list(open_source(tmp_path / 'bag').messages(start_ns))
    assert [(m.topic.name, m.time_ns) for m in played] == [
        (latched, start_ns), ('/camera/image', start_ns), ('/camera/image', start_ns + PERIOD_NS)
    ]  # fmt: skip
    assert played[0].topic.latched
    whole = list(open_source(tmp_path / 'bag').messages())
    assert [m.topic.name for m in whole] == [latched] + ['/camera/image'] * 3


def test_a_loop_goes_on_with_new_stamps_until_it_is_stopped(nodes, mcap):
    sender, receiver, until = nodes
    listener = Listener(receiver, {PICTURES: CompressedImage})
    player = Player(sender, open_source(mcap), PlayOptions(loop=True, rate=4, wait_s=WAIT_S))
    thread, stop, results = play_in_background(player)
    until(lambda: len(listener.received[PICTURES]) > 2 * FRAMES)
    stop.set()
    thread.join(WAIT_S)
    stamps = [nanoseconds(message) for message in listener.received[PICTURES]]
    assert sorted(set(stamps)) == stamps
    assert results[0].passes >= 2 and not results[0].completed


def test_the_clock_tells_recorded_time(nodes, mcap):
    sender, receiver, until = nodes
    listener = Listener(receiver, {PICTURES: CompressedImage, '/clock': Clock})
    options = PlayOptions(stamp='bag', clock=True, rate=0.5, wait_s=WAIT_S)
    thread, stop, _ = play_in_background(Player(sender, open_source(mcap), options))
    end_ns = START_NS + (FRAMES - 1) * PERIOD_NS

    def times() -> list[int]:
        clocks = (message.clock for message in listener.received['/clock'])
        return [clock.sec * 1_000_000_000 + clock.nanosec for clock in clocks]

    until(lambda: times()[-1:] == [end_ns])
    thread.join(WAIT_S)
    stop.set()
    assert times() == sorted(times()) and times()[0] >= START_NS
    # It also advances between the pictures.
    assert any((moment - START_NS) % PERIOD_NS for moment in times())


def test_any_folder_is_played_in_the_order_of_its_numbers(nodes, folder):
    result, received = play_and_collect(
        nodes, open_source(folder), PlayOptions(wait_s=WAIT_S), {'/camera/image': Image}
    )
    assert result.pictures == 3
    for index, image in enumerate(received['/camera/image'], start=1):
        assert (image.width, image.height, image.step, image.encoding) == (10, 8, 30, 'bgr8')
        assert bytes(image.data) == bytes([index]) * 240


def test_compressed_transport_sends_the_files_own_bytes(folder):
    source = open_source(folder, transport='compressed')
    files = [folder / f'shot-{number}.png' for number in (2, 9, 10)]
    for message, file in zip(source.messages(), files, strict=True):
        picture = deserialize_message(message.data, CompressedImage)
        assert message.topic.name == PICTURES and picture.format == 'png'
        assert bytes(picture.data) == file.read_bytes()


def test_an_rgbd_sequence_has_depth_poses_and_its_camera(nyuv2: Path):
    sequence = nyuv2.parent / 'rgbd_sequence_7scenes'
    if not sequence.is_dir():
        pytest.skip(f'{sequence} is absent')
    source = open_source(sequence)
    assert source.duration_ns == 29 * round(1e9 / 30)
    info, depth = CameraInfo(), Image()
    for message in source.messages(source.start_ns + source.duration_ns):
        if message.topic.name == INFO:
            info = deserialize_message(message.data, CameraInfo)
        if message.topic.name == '/camera/depth/image_raw':
            depth = deserialize_message(message.data, Image)
    assert list(info.k) == [585, 0, 320, 0, 585, 240, 0, 0, 1]
    stored = cv2.imread(str(sequence / 'frame-000229.depth.png'), cv2.IMREAD_UNCHANGED)
    stored[stored == 65535] = 0
    np.testing.assert_array_equal(np.frombuffer(depth.data, np.uint16).reshape(480, 640), stored)


def test_a_labelled_data_set_brings_its_truth_and_camera(nyuv2: Path):
    source = FolderSource(nyuv2, split='devtest', limit=2)
    messages = defaultdict(list)
    for message in source.messages():
        messages[message.topic.name].append(
            deserialize_message(message.data, message.topic.message_class)
        )
    assert {name: len(them) for name, them in messages.items()} == {
        '/camera/image': 2,
        INFO: 2,
        '/ground_truth/label': 2,
        '/ground_truth/depth': 2,
    }
    frame = sorted(file.stem for file in (nyuv2 / 'devtest' / 'rgb').iterdir())[0]
    code = cv2.imread(str(nyuv2 / 'devtest' / 'depth' / f'{frame}.png'), cv2.IMREAD_UNCHANGED)
    depth = np.frombuffer(messages['/ground_truth/depth'][0].data, np.float32)
    np.testing.assert_allclose(depth, (code.ravel() + 0.5) / 25.5, rtol=1e-6)
    assert messages[INFO][0].k[0] == pytest.approx(311.31)
    assert messages['/ground_truth/label'][0].encoding == 'mono8'


def test_poses_become_rotations():
    for angle, axis in [(0.0, (1, 0, 0)), (np.pi, (0, 1, 0)), (1.2, (0.6, 0, 0.8))]:
        vector = angle * np.array(axis, float)
        x, y, z, w = quaternion(cv2.Rodrigues(vector)[0])
        assert w == pytest.approx(np.cos(angle / 2), abs=1e-9)
        np.testing.assert_allclose((x, y, z), np.sin(angle / 2) * np.array(axis), atol=1e-7)


def test_given_calibration_replaces_the_recorded_one(mcap, tmp_path):
    by_hand = CalibratedSource(open_source(mcap), parse_k('50,51,16,12'))
    infos = [
        deserialize_message(message.data, CameraInfo)
        for message in by_hand.messages()
        if message.topic.name == INFO
    ]
    assert len(infos) == FRAMES
    assert (infos[-1].width, infos[-1].height) == (32, 24)
    assert (infos[-1].k[0], infos[-1].k[4], infos[-1].k[2], infos[-1].k[5]) == (50, 51, 16, 12)
    assert nanoseconds(infos[-1]) == START_NS + (FRAMES - 1) * PERIOD_NS

    file = tmp_path / 'front.yaml'
    file.write_text(CALIBRATION)
    from_file = CalibratedSource(open_source(mcap), read_camera_info(file))
    info = next(m for m in from_file.messages() if m.topic.name == INFO)
    assert deserialize_message(info.data, CameraInfo).d[0] == pytest.approx(-0.25)


CALIBRATION = """
image_width: 32
image_height: 24
camera_name: front
camera_matrix: {rows: 3, cols: 3, data: [30, 0, 16, 0, 30, 12, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.25, 0.1, 0, 0, 0]}
rectification_matrix: {rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}
projection_matrix: {rows: 3, cols: 4, data: [30, 0, 16, 0, 0, 30, 12, 0, 0, 0, 1, 0]}
"""


def test_nobody_listening_is_said_after_the_wait(nodes, mcap):
    sender, _, _ = nodes
    player = Player(sender, open_source(mcap), PlayOptions(wait_s=0.1))
    with pytest.raises(SourceError, match=f'nobody subscribed to {PICTURES}'):
        player.play()


OWN = (
    '/perception/segmentation/mask',
    '/perception/segmentation/overlay/compressed',
    '/perception/depth/image',
    '/diagnostics',
)
LEFT_OUT = 'published by a perception node, played with --all-topics'


@pytest.fixture
def realsense(tmp_path: Path) -> Path:
    """Return a bag of a camera with a compressed sibling, infra, depth and recorded outputs."""
    with bag_sink(tmp_path / 'realsense') as sink:
        for index in range(FRAMES):
            stamp, shown = START_NS + index * PERIOD_NS, scene(index)
            sink.camera_info('/camera/infra1/camera_info', stamp)
            sink.image('/camera/infra1/image_rect_raw', shown.label, 'mono8', stamp)
            sink.png('/camera/depth/image_raw/compressedDepth', shown.depth_mm, stamp)
            depth = cv2.imencode('.png', shown.depth_mm)[1].tobytes()
            sink.compressed(
                '/camera/depth/image_raw/compressed', depth, '16UC1; png compressed ', stamp
            )
            sink.camera_info('/camera/color/camera_info', stamp)
            sink.png('/camera/color/image_raw/compressed', shown.rgb, stamp)
            sink.image('/camera/color/image_raw', shown.rgb, 'rgb8', stamp)
            sink.image(OWN[0], shown.label, 'mono8', stamp)
            sink.png(OWN[1], shown.rgb, stamp)
            sink.image(OWN[2], shown.depth_mm, '16UC1', stamp)
            sink.diagnostics(stamp)
    return tmp_path / 'realsense'


CAMERAS = (
    '/camera/color/image_raw',
    '/camera/infra1/image_rect_raw',
    '/camera/color/image_raw/compressed',
)


def test_cameras_are_pictures_that_no_perception_node_published(realsense):
    assert open_source(realsense).cameras == CAMERAS
    chosen = open_source(realsense, images=('/camera/infra1/image_rect_raw',))
    assert chosen.cameras[0] == '/camera/infra1/image_rect_raw'
    assert open_source(realsense, all_topics=True).cameras == CAMERAS


def test_what_a_perception_node_published_is_played_on_request_only(realsense):
    def played(**options) -> set[str]:
        source = open_source(realsense, **options)
        names = {topic.name for topic in source.topics}
        assert {message.topic.name for message in source.messages()} == names
        assert not names & source.left_out.keys()
        return names

    everything = played(all_topics=True)
    assert set(OWN) < everything
    assert played() == everything - set(OWN)
    assert open_source(realsense).left_out == dict.fromkeys(OWN, LEFT_OUT)
    assert played(topics=(OWN[1], '/camera/color/camera_info')) == {
        OWN[1],
        '/camera/color/camera_info',
    }


def test_a_bag_of_outputs_alone_says_how_to_play_it(tmp_path):
    with bag_sink(tmp_path / 'outputs') as sink:
        sink.image(OWN[0], scene(0).label, 'mono8', START_NS)
    with pytest.raises(SourceError, match=r'no camera pictures .*mask \(published .*--all-topics'):
        open_source(tmp_path / 'outputs')
    assert open_source(tmp_path / 'outputs', all_topics=True).cameras == (OWN[0],)


def test_a_mask_at_the_root_makes_nobody_a_perception_node(tmp_path):
    with bag_sink(tmp_path / 'bag') as sink:
        sink.image('/segmentation/mask', scene(0).label, 'mono8', START_NS)
        sink.image('/camera/image', scene(0).rgb, 'rgb8', START_NS)
    assert open_source(tmp_path / 'bag').cameras == ('/camera/image', '/segmentation/mask')


def test_transports_of_one_camera_share_its_given_calibration(realsense):
    source = CalibratedSource(open_source(realsense), parse_k('50,51,16,12'))
    infos = [topic.name for topic in source.topics if topic.name.endswith('/camera_info')]
    assert sorted(infos) == ['/camera/color/camera_info', '/camera/infra1/camera_info']


def test_chosen_topics_of_a_folder_are_played_alone(nyuv2):
    source = open_source(nyuv2, split='devtest', limit=1, topics=('/camera/image',))
    assert [message.topic.name for message in source.messages()] == ['/camera/image']
    with pytest.raises(SourceError, match='choose /camera/image as well'):
        open_source(nyuv2, split='devtest', topics=('/ground_truth/depth',))


def test_one_subscribed_camera_is_enough(nodes, realsense):
    options = PlayOptions(wait_s=WAIT_S)
    topics = {'/camera/color/image_raw': Image}
    sender, receiver, until = nodes
    listener = Listener(receiver, topics)
    thread, stop, results = play_in_background(Player(sender, open_source(realsense), options))
    until(lambda: len(listener.received['/camera/color/image_raw']) == FRAMES)
    stop.set()
    thread.join(WAIT_S)
    assert results[0].pictures == len(CAMERAS) * FRAMES


def test_a_node_is_told_where_the_pictures_of_a_recording_are(realsense, mcap, folder):
    assert camera_topic(open_source(realsense)) == (CAMERAS[0], 'raw')
    assert camera_topic(open_source(mcap)) == (PICTURES.removesuffix('/compressed'), 'compressed')
    assert camera_topic(open_source(folder, transport='compressed')) == (
        '/camera/image',
        'compressed',
    )
    infra = '/camera/infra1/image_rect_raw'
    assert camera_topic(open_source(realsense), infra, 'raw') == (infra, 'raw')
    with pytest.raises(SourceError, match=r'no raw camera pictures: .*image \(compressed'):
        camera_topic(open_source(mcap), transport='raw')
    with pytest.raises(SourceError, match='no camera pictures on /x: this source has'):
        camera_topic(open_source(mcap), '/x')


def test_a_topic_that_matters_is_waited_for_by_name(nodes, realsense):
    sender, receiver, until = nodes
    Listener(receiver, {'/camera/infra1/image_rect_raw': Image})
    options = PlayOptions(wait_for=('/camera/color/image_raw',))
    player = Player(sender, open_source(realsense), options)
    until(lambda: sender.count_subscribers('/camera/infra1/image_rect_raw') == 1)
    with pytest.raises(SourceError, match='nobody subscribed to /camera/color/image_raw within'):
        player.wait_for_subscribers(1.0)
    with pytest.raises(SourceError, match='there is no topic /x to wait for'):
        Player(sender, open_source(realsense), PlayOptions(wait_for=('/x',)))


def test_what_is_left_out_is_told_in_one_sentence(ros_domain, realsense):
    result = CliRunner().invoke(app, ['play', str(realsense), '--rate', '100'])
    assert result.exit_code == 0, result.output
    (told,) = [line for line in result.output.splitlines() if line.startswith('left out')]
    assert told == f'left out {", ".join(sorted(OWN))}: {LEFT_OUT}'
    assert f'publishing {OWN[0]}' not in result.output

    arguments = ['play', str(realsense), '--rate', '100', '--topics', f'{CAMERAS[0]},{OWN[0]}']
    result = CliRunner().invoke(app, arguments)
    published = [line.split()[1] for line in result.output.splitlines() if 'publishing' in line]
    assert published == [CAMERAS[0], OWN[0]]


@pytest.mark.parametrize('transport', ['raw', 'compressed', ''])
def test_the_replay_launch_file_plays_folders_as_its_node_listens(ros_domain, folder, transport):
    pytest.importorskip('launch_ros')
    file = Path(__file__).parent.parent / 'launch' / 'replay.launch.py'
    replay = runpy.run_path(str(file))
    given = {name: default for name, (default, _) in replay['ARGUMENTS'].items()}
    given |= {'bag': str(folder), 'transport': transport, 'loop': 'false', 'rate': '100'}
    _, player, _ = replay['start'](given)
    _, *arguments = (''.join(part.text for part in word) for word in player.cmd[1:])
    arguments[arguments.index('--wait') + 1] = '0'
    result = CliRunner().invoke(app, ['play', str(folder), *arguments])
    assert result.exit_code == 0, result.output
    topic = '/camera/image/compressed' if transport == 'compressed' else '/camera/image'
    assert f'publishing {topic} ' in result.output


def test_an_empty_rest_ends_a_loop_with_a_sentence(nodes, folder):
    sender, _, _ = nodes
    source = open_source(folder)
    source.messages = lambda start_ns=0: iter(())
    with pytest.raises(SourceError, match=r'nothing .* is recorded after 0 s'):
        Player(sender, source, PlayOptions(loop=True)).play()


@pytest.mark.parametrize('plugin', list(StoragePlugin), ids=lambda plugin: plugin.name.lower())
@pytest.mark.parametrize('part', [0.0, 0.5, 0.97])
def test_a_cut_off_recording_is_refused_in_one_sentence(tmp_path, plugin, part):
    write_bag(tmp_path / 'bag', plugin)
    file = next(f for f in (tmp_path / 'bag').iterdir() if f.suffix != '.yaml')
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    with pytest.raises(SourceError, match='can not be read') as refusal:
        for _ in open_source(tmp_path / 'bag').messages():
            pass
    assert '\n' not in str(refusal.value)


def break_picture(path: Path) -> list[str]:
    (path / 'shot-9.png').write_bytes(b'no picture')
    return [str(path)]


def empty_folder(path: Path) -> list[str]:
    shutil.rmtree(path)
    path.mkdir()
    return [str(path)]


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (lambda path: [str(path / 'nowhere')], 'does not exist'),
        (empty_folder, 'holds no recording and no pictures'),
        (break_picture, 'shot-9.png: no readable JPEG or PNG picture'),
        (lambda path: [str(path), '--rate', '0'], 'rate 0.0 is no speed'),
        (lambda path: [str(path), '--fps', '-1'], 'fps -1.0 is no frame rate'),
        (lambda path: [str(path), '--start', '99'], 'start 99 s lies behind the end'),
        (lambda path: [str(path), '--split', 'val'], 'has no split val'),
        (lambda path: [str(path), '--topic', '/x:=/y'], 'there is no topic /x to remap'),
        (lambda path: [str(path), '--topic', 'image'], 'is no remapping'),
        (lambda path: [str(path), '--topics', '/x'], 'there is no topic /x to play'),
        (lambda path: [str(path), '--k', '1,2,3'], 'is no camera matrix'),
        (lambda path: [str(path), '--camera-info', 'none.yaml'], 'is no camera calibration'),
        (lambda path: [str(path), '--clock', '--stamp', 'now'], "use stamp 'bag' with clock"),
    ],
)
def test_what_cannot_be_played_is_said_in_one_sentence(
    ros_domain, folder, arguments: Callable[[Path], list[str]], sentence: str
):
    result = CliRunner().invoke(app, ['play', '--quiet', *arguments(folder)])
    assert result.exit_code == 2
    assert sentence in result.output
    assert result.output.count('\n') == 1


def test_ctrl_c_ends_it_without_a_traceback(ros_domain, folder):
    command = [sys.executable, '-m', 'mtl_perception.cli', 'play', str(folder), '--loop']
    process = subprocess.Popen(command, env=ros_domain, stderr=subprocess.PIPE, text=True)
    try:
        said = ''
        while 'publishing /camera/image' not in said:
            line = process.stderr.readline()
            assert line, f'the player ended early: {said}'
            said += line
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
    assert process.returncode == 0
    assert 'stopped after' in rest and 'Traceback' not in rest
