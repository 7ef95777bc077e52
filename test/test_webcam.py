"""A camera without ROS drivers gets onto a topic, and a missing one is said."""

from __future__ import annotations

import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import rclpy
from sensor_msgs.msg import CameraInfo, Image

from mtl_perception.ros.webcam import CameraError, Webcam

FRAMES = 8
WAIT_S = 15.0


@pytest.fixture
def node(ros_domain):
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('webcam', context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Return a video whose pictures get brighter."""
    path = tmp_path / 'camera.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 20, (64, 48))
    assert writer.isOpened()
    for index in range(FRAMES):
        writer.write(np.full((48, 64, 3), 25 * index, np.uint8))
    writer.release()
    return path


def test_every_picture_is_published_with_a_stamp_and_its_calibration(node, video):
    images, infos = [], []
    node.create_subscription(Image, '/front/image', images.append, 50)
    node.create_subscription(CameraInfo, '/front/camera_info', infos.append, 50)
    calibration = CameraInfo(width=64, height=48)
    webcam = Webcam(
        node, str(video), topic='/front/image', frame_id='front', camera_info=calibration
    )
    executor = rclpy.executors.SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    deadline = time.monotonic() + WAIT_S
    while (
        node.count_subscribers('/front/image') == 0 or node.count_publishers('/front/image') == 0
    ):
        assert time.monotonic() < deadline
        executor.spin_once(timeout_sec=0.05)
    webcam.start()
    while len(images) < FRAMES or len(infos) < FRAMES:
        assert time.monotonic() < deadline, f'{len(images)} pictures arrived'
        executor.spin_once(timeout_sec=0.05)
    webcam.close()
    executor.shutdown()
    assert not webcam.is_live
    stamps = [(image.header.stamp.sec, image.header.stamp.nanosec) for image in images]
    assert sorted(set(stamps)) == stamps and stamps[0][0] > 0
    assert stamps == [(info.header.stamp.sec, info.header.stamp.nanosec) for info in infos]
    for index, image in enumerate(images):
        assert (image.width, image.height, image.step, image.encoding) == (64, 48, 192, 'bgr8')
        assert image.header.frame_id == 'front'
        assert np.frombuffer(image.data, np.uint8).mean() == pytest.approx(25 * index, abs=4)


@pytest.mark.parametrize(
    ('device', 'sentence'),
    [
        ('873', 'there is no camera 873 .*plug it in'),
        ('nowhere.mp4', 'nowhere.mp4 is no camera'),
        (__file__, 'can not be opened'),
    ],
)
def test_a_missing_camera_is_said_in_one_sentence(node, device, sentence):
    with pytest.raises(CameraError, match=sentence) as refusal:
        Webcam(node, device)
    assert '\n' not in str(refusal.value)
