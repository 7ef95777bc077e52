"""Plain pictures and RGB-D sequences: one reader, two users that see the same."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from rclpy.serialization import deserialize_message

from mtl_perception.datasets import DatasetError
from mtl_perception.recordings import open_recording
from mtl_perception.ros.sources import open_source
from mtl_perception.sequences import PictureSequence


@pytest.fixture
def sequence(tmp_path: Path) -> Path:
    """Write three RGB-D pictures of 6x8, the second without depth, the third without tracking."""
    for number in (2, 9, 10):
        name = tmp_path / f'frame-{number}'
        cv2.imwrite(f'{name}.color.png', np.full((6, 8, 3), number, np.uint8))
        if number != 9:
            depth = np.full((6, 8), 1000 + number, np.uint16)
            depth[0] = 65535
            cv2.imwrite(f'{name}.depth.png', depth)
        pose = np.eye(4) if number != 10 else np.full((4, 4), -np.inf)
        np.savetxt(f'{name}.pose.txt', pose)
    np.savetxt(tmp_path / 'camera-intrinsics.txt', [[10, 0, 3.5], [0, 11, 2.5], [0, 0, 1]])
    cv2.imwrite(str(tmp_path / 'thumbnail.png'), np.zeros((2, 2, 3), np.uint8))
    return tmp_path


def test_pictures_come_in_the_order_of_their_numbers_with_what_lies_beside(sequence: Path) -> None:
    pictures = PictureSequence(sequence)
    assert [pictures.name(i) for i in range(len(pictures))] == ['frame-2', 'frame-9', 'frame-10']
    assert [int(pictures.picture(i)[0, 0, 0]) for i in range(3)] == [2, 9, 10]
    assert (pictures.is_rgbd, pictures.has_depth, pictures.has_poses) == (True, True, True)
    depth = pictures.depth(0)
    assert depth.dtype == np.uint16
    assert (depth[0] == 0).all() and (depth[1:] == 1002).all()
    assert pictures.depth(1) is None
    np.testing.assert_array_equal(pictures.pose(1), np.eye(4))
    assert pictures.pose(2) is None
    camera = pictures.intrinsics(6, 8)
    assert (camera.width, camera.height, camera.fx, camera.cy) == (8, 6, 10, 2.5)


def test_the_player_sends_what_the_evaluation_reads(sequence: Path) -> None:
    source = open_source(sequence)
    sent = {name: [] for name in ('/camera/image', '/camera/depth/image_raw')}
    for message in source.messages():
        if message.topic.name in sent:
            sent[message.topic.name].append(message)
    read = list(open_recording(sequence).frames())
    assert len(sent['/camera/image']) == len(read) == 3
    assert len(sent['/camera/depth/image_raw']) == sum('depth' in frame.truth for frame in read)
    for message, frame in zip(sent['/camera/image'], read, strict=True):
        image = deserialize_message(message.data, message.topic.message_class)
        pixels = np.frombuffer(image.data, np.uint8).reshape(6, 8, 3)
        np.testing.assert_array_equal(pixels, frame.frame.pixels)


def test_what_is_broken_is_named_and_the_rest_is_evaluated(sequence: Path) -> None:
    (sequence / 'frame-2.color.png').write_bytes(b'no picture')
    (sequence / 'frame-9.pose.txt').write_text('lost')
    cv2.imwrite(str(sequence / 'frame-10.depth.png'), np.zeros((6, 8), np.uint8))
    pictures = PictureSequence(sequence)
    with pytest.raises(DatasetError, match=r'frame-2\.color\.png: no readable'):
        pictures.picture(0)
    with pytest.raises(DatasetError, match=r'frame-9\.pose\.txt is no 4x4 matrix'):
        pictures.pose(1)
    with pytest.raises(DatasetError, match=r'frame-10\.depth\.png is uint8'):
        pictures.depth(2)
    recording = open_recording(sequence)
    assert [frame.id for frame in recording.frames()] == ['frame-9', 'frame-10']
    assert recording.skipped == {
        'pictures that are unreadable': 1,
        'pictures without depth': 2,
        'poses that are unreadable': 1,
        'depth pictures that are unreadable': 1,
    }
    (sequence / 'camera-intrinsics.txt').write_text('1 2')
    recording = open_recording(sequence)
    assert all(frame.frame.intrinsics is None for frame in recording.frames())
    assert any('is no 3x3 matrix' in remark for remark in recording.remarks)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match='holds no pictures'):
        PictureSequence(tmp_path)
