"""The node as a process, its parameter file, and the doctor."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import yaml
from node_rig import camera_info, image_message, textured
from sensor_msgs.msg import CompressedImage
from typer.testing import CliRunner

from mtl_perception.bundle import ModelBundle, nyu13_classes
from mtl_perception.cli import app
from mtl_perception.ros import doctor, environment, parameters
from mtl_perception.ros.doctor import Severity
from mtl_perception.ros.parameters import CameraSettings, ParameterError, Settings

CONFIG = Path(__file__).parent.parent / 'config'
TIMEOUT_S = 90


# Parameters


def test_the_parameter_file_is_that_of_the_definition() -> None:
    text = (CONFIG / 'perception.yaml').read_text()
    assert text == parameters.render_yaml()
    values = yaml.safe_load(text)['/**']['ros__parameters']
    settings, cameras = parameters.read(values, [])
    assert (settings, cameras) == (Settings(), {'': CameraSettings()})


def test_every_parameter_is_described() -> None:
    for declared in parameters.declarations(['front']):
        descriptor = declared.descriptor
        assert len(descriptor.description) > 20, declared.name
        assert descriptor.additional_constraints


@pytest.mark.parametrize(
    ('value', 'accepted'), [(True, 'true'), ('auto', 'auto'), (1, None), ('perhaps', None)]
)
def test_an_unquoted_true_is_understood(value: object, accepted: str | None) -> None:
    if accepted is None:
        with pytest.raises(ParameterError, match='input_rectified'):
            parameters.read({'input_rectified': value}, [])
    else:
        assert parameters.read({'input_rectified': value}, [])[1][''].input_rectified == accepted


# The process


def test_a_profile_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv('RMW_IMPLEMENTATION', raising=False)
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', '/nowhere/profile.xml')
    assert environment.choose_fastdds_profile() is None
    assert 'names /nowhere/profile.xml, which is not there' in capsys.readouterr().err
    assert any('/nowhere/profile.xml' in f.text for f in doctor.check_middleware())


@pytest.mark.parametrize(('reach', 'profile'), [('LOCALHOST', 'local'), ('SUBNET', 'network')])
def test_the_profile_follows_the_range_of_discovery(
    monkeypatch: pytest.MonkeyPatch, reach: str, profile: str
) -> None:
    for variable in ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'):
        monkeypatch.setenv(variable, '')
    monkeypatch.delenv('RMW_IMPLEMENTATION', raising=False)
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', reach)
    assert environment.choose_fastdds_profile() == CONFIG / f'fastdds_{profile}.xml'


def start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, '-m', 'mtl_perception.cli', 'run', *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    watchdog = threading.Timer(TIMEOUT_S, process.kill)
    watchdog.start()
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            watchdog.cancel()
            return
    watchdog.cancel()
    raise AssertionError(f'{text!r} is not in {lines}')


@pytest.mark.parametrize(
    ('said', 'interrupts'),
    [('listening to /camera/image', 1), ('listening to /camera/image', 3), ('tiny on ', 1)],
    ids=['running', 'impatient', 'starting'],
)
def test_ctrl_c_ends_the_node_in_order(
    tiny_bundle: ModelBundle, ros_domain: dict[str, str], said: str, interrupts: int
) -> None:
    process = start(ros_domain, '--bundle', str(tiny_bundle.path), '--image', '/camera/image')
    wait_for_line(process, said)
    for _ in range(interrupts):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert 'Traceback' not in output


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['--bundle', '/nowhere'], "no bundle '/nowhere'"),
        (['--camera', '77'], 'no camera 77'),
        (['--ros-args', '-p', 'rotate:=45'], '45 is none of 0, 90, 180, 270'),
    ],
)
def test_what_cannot_start_says_why_in_one_sentence(
    ros_domain: dict[str, str], arguments: list[str], sentence: str
) -> None:
    process = start(ros_domain, *arguments)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    assert sentence in output
    assert 'Traceback' not in output


def test_a_video_goes_through_the_node(
    tiny_bundle: ModelBundle, ros_domain: dict[str, str], tmp_path: Path
) -> None:
    """`run --camera` with a file in the webcam's place; the node ends with the video."""
    path = tmp_path / 'video.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 10, (128, 96))
    assert writer.isOpened()
    for _ in range(5):
        writer.write(textured())
    writer.release()
    process = start(ros_domain, '--camera', str(path), '--bundle', str(tiny_bundle.path))
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, output
    assert 'listening to /camera/image' in output


@pytest.mark.parametrize('name', ['play', 'evaluate', 'engine', 'doctor'])
def test_the_installed_programs_are_the_commands(name: str) -> None:
    program = CONFIG.parent / 'programs' / name
    result = subprocess.run(
        [sys.executable, program, '--help'], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert result.returncode == 0, result.stderr
    assert f'mtl-perception {name}' in result.stdout


# The doctor


@pytest.fixture
def camera(ros_domain: dict[str, str]) -> Iterator[dict[str, object]]:
    """Publish, in a thread, what the test puts into the dictionary: topic -> message."""
    import rclpy

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=int(ros_domain['ROS_DOMAIN_ID']))
    node = rclpy.create_node('driver', context=context, use_global_arguments=False)
    messages: dict[str, object] = {}
    ended = threading.Event()

    def publish() -> None:
        publishers = {}
        while not ended.wait(0.05):
            for topic, message in list(messages.items()):
                if topic not in publishers:
                    publishers[topic] = node.create_publisher(type(message), topic, 1)
                message.header.stamp = node.get_clock().now().to_msg()
                publishers[topic].publish(message)

    thread = threading.Thread(target=publish, daemon=True)
    thread.start()
    yield messages
    ended.set()
    thread.join()
    node.destroy_node()
    context.try_shutdown()


def examine(bundle: ModelBundle, **options: object) -> dict[str, list[doctor.Finding]]:
    findings: dict[str, list[doctor.Finding]] = {}
    for finding in doctor.examine(
        bundle=str(bundle.path), engine='onnxruntime', seconds=8.0, **options
    ):
        findings.setdefault(finding.subject, []).append(finding)
    return findings


def test_the_doctor_is_content_with_a_good_camera(
    camera: dict[str, object], tiny_bundle: ModelBundle
) -> None:
    camera['/front/image'] = image_message(textured())
    camera['/front/camera_info'] = camera_info()
    findings = examine(tiny_bundle)
    assert '128x96 rgb8; use image:=/front/image' in findings['/front/image'][0].text
    assert findings['/front/image'][0].severity == Severity.OK
    assert findings['/front/camera_info'][0].severity == Severity.OK
    assert findings['engine'][0].severity == Severity.OK


def test_the_doctor_passes_over_what_image_transport_offers_besides(
    camera: dict[str, object], tiny_bundle: ModelBundle
) -> None:
    depth = CompressedImage(format='16UC1; compressedDepth png', data=b'0123')
    camera['/front/image'] = image_message(textured())
    camera['/front/camera_info'] = camera_info()
    camera['/front/image/compressedDepth'] = depth
    camera['/front/image/zstd'] = CompressedImage(format='zstd', data=b'0123')
    camera['/depth/compressed'] = depth
    findings = examine(tiny_bundle)
    assert findings['/front/image'][0].severity == Severity.OK
    assert not {topic for topic in findings if topic.startswith('/front/image/')}
    assert 'measurements, no camera picture' in findings['/depth/compressed'][0].text
    assert findings['/depth/compressed'][0].severity == Severity.OK


def test_the_doctor_names_what_is_wrong_and_the_fix(
    camera: dict[str, object], tiny_bundle: ModelBundle
) -> None:
    camera['/a/image'] = image_message(textured(), encoding='unknown')
    camera['/b/image'] = image_message(textured())
    camera['/b/camera_info'] = camera_info(48, 64)
    camera['/c/image/compressed'] = CompressedImage(
        format='jpeg', data=cv2.imencode('.jpg', textured())[1].tobytes()
    )
    camera['/c/camera_info'] = camera_info(k=[0.0] * 9)
    camera['/d/image/compressed'] = camera['/c/image/compressed']
    camera['/d/camera_info'] = camera_info(48, 64)
    findings = examine(tiny_bundle)
    worst = {subject: doctor.worst(found) for subject, found in findings.items()}
    assert worst['/a/image'] == Severity.ERROR
    assert 'no colour or grey image' in findings['/a/image'][0].text
    assert worst['/b/camera_info'] == Severity.WARNING
    assert '64x48 but images 128x96' in findings['/b/camera_info'][0].text
    assert 'transport:=compressed' in findings['/c/image/compressed'][0].text
    assert 'all-zero K' in findings['/c/camera_info'][0].text
    assert '64x48 but images 128x96' in findings['/d/camera_info'][0].text
    for found in findings.values():
        assert all(bool(f.fix) == (f.severity != Severity.OK) for f in found)


def test_the_doctor_asks_whose_calibration_it_is() -> None:
    result = CliRunner().invoke(app, ['doctor', '--camera-info', '/front/camera_info'])
    assert result.exit_code == 2
    assert 'name that with --image' in result.output


def test_the_doctors_exit_status_is_the_worst_finding(
    ros_domain: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / 'findings.json'
    result = CliRunner().invoke(
        app, ['doctor', '--bundle', str(tmp_path), '--seconds', '0.5', '--json', str(out)]
    )
    findings = json.loads(out.read_text())
    assert result.exit_code == 2
    assert findings['worst'] == 'error'
    subjects = {f['subject']: f for f in findings['findings']}
    assert subjects['bundle']['severity'] == 'error'
    assert subjects['images']['severity'] == 'error'


# Neighbours' settings


def test_the_collision_monitor_reads_what_the_node_sends() -> None:
    """Keys as Nav2's nav2_collision_monitor declares them (polygon.cpp, source.cpp, node)."""
    known = {
        'node': {
            'base_frame_id', 'odom_frame_id', 'cmd_vel_in_topic', 'cmd_vel_out_topic',
            'state_topic', 'transform_tolerance', 'source_timeout', 'base_shift_correction',
            'stop_pub_timeout', 'polygons', 'observation_sources',
        },
        'polygon': {
            'type', 'points', 'action_type', 'min_points', 'slowdown_ratio', 'visualize',
            'polygon_pub_topic', 'enabled', 'footprint_topic', 'time_before_collision',
            'simulation_time_step',
        },
        'source': {'type', 'topic', 'min_height', 'max_height', 'min_range', 'enabled'},
    }  # fmt: skip
    values = yaml.safe_load((CONFIG / 'nav2_collision_monitor.yaml').read_text())
    values = values['collision_monitor']['ros__parameters']
    polygons, sources = values['polygons'], values['observation_sources']
    assert set(values) == known['node'] | set(polygons) | set(sources)
    for polygon in polygons:
        assert set(values[polygon]) <= known['polygon']
    for source in sources:
        assert set(values[source]) <= known['source']
        assert values[source]['topic'] == '/perception/obstacles'


def test_the_semantic_layer_lists_every_class_once() -> None:
    """Keys as semantic_segmentation_layer.cpp declares them; it ignores classes without a cost."""
    costmap = yaml.safe_load((CONFIG / 'nav2_costmap.yaml').read_text())
    layer = costmap['local_costmap']['local_costmap']['ros__parameters']['semantic_layer']
    assert set(layer) == {
        'plugin', 'enabled', 'combination_method', 'use_approximate_time_sync',
        'observation_sources', 'camera',
    }  # fmt: skip
    camera = layer['camera']
    assert set(camera) == {
        'segmentation_topic', 'confidence_topic', 'labels_topic', 'pointcloud_topic',
        'observation_persistence', 'expected_update_rate', 'min_obstacle_distance',
        'max_obstacle_distance', 'tile_map_decay_time', 'use_cost_selection', 'class_types',
        *camera['class_types'],
    }  # fmt: skip
    listed = [name for kind in camera['class_types'] for name in camera[kind]['classes']]
    assert sorted(listed) == sorted(spec.name for spec in nyu13_classes())
    for kind in camera['class_types']:
        assert set(camera[kind]) == {
            'classes', 'base_cost', 'max_cost', 'mark_confidence', 'samples_to_max_cost',
            'dominant_priority',
        }  # fmt: skip


def test_the_layouts_show_topics_that_exist() -> None:
    known = {f'/perception/{topic}' for topic in parameters.OUTPUT_TOPICS}
    rviz = yaml.safe_load((CONFIG / 'perception.rviz').read_text())
    shown = {
        display['Topic']['Value']
        for display in rviz['Visualization Manager']['Displays']
        if 'Topic' in display
    }
    assert shown
    assert shown <= known
    layout = json.loads((CONFIG / 'foxglove_layout.json').read_text())
    panels = layout['configById'].values()
    images = {p['imageMode']['imageTopic'] for p in panels if 'imageMode' in p}
    assert images - {'/camera/image'} <= known
