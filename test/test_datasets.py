"""Picture folders: formats, cameras, and files that are missing or broken."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mtl_perception.datasets import NYUV2_INTRINSICS, DatasetError, PictureFolder
from mtl_perception.metrics import angles_between

SIZE = (30, 40)


def write_folder(root: Path, ids: tuple[str, ...] = ('0001', '0002', '0003')) -> Path:
    """Write a tiny data set: a grey room, a label, a wall at about 2 m."""
    rng = np.random.default_rng(0)
    for name in ('rgb', 'depth', 'label13'):
        (root / 'train' / name).mkdir(parents=True, exist_ok=True)
    for frame_id in ids:
        picture = rng.integers(0, 255, (*SIZE, 3), np.uint8)
        cv2.imwrite(str(root / 'train' / 'rgb' / f'{frame_id}.jpg'), picture)
        cv2.imwrite(str(root / 'train' / 'depth' / f'{frame_id}.png'), np.full(SIZE, 51, np.uint8))
        label = rng.integers(0, 13, SIZE).astype(np.uint8)
        label[0, 0] = 255
        cv2.imwrite(str(root / 'train' / 'label13' / f'{frame_id}.png'), label)
    return root


def test_a_frame_has_the_documented_types_and_units(tmp_path: Path) -> None:
    frame = PictureFolder(write_folder(tmp_path), 'train').read(1)
    assert frame.id == '0002'
    assert (frame.rgb.shape, frame.rgb.dtype) == ((*SIZE, 3), np.uint8)
    assert (frame.label.shape, frame.label.dtype, frame.label[0, 0]) == (SIZE, np.uint8, 255)
    assert frame.depth.dtype == np.float32
    assert frame.depth == pytest.approx(np.full(SIZE, 51.5 / 25.5))
    assert frame.normals_source == 'derived-11'
    assert np.abs(frame.normal - (0, 0, -1)).max() < 1e-3
    assert frame.intrinsics.fx == pytest.approx(NYUV2_INTRINSICS.fx * 40 / 384)


def test_colours_are_read_as_rgb(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, ids=('a',))
    red_in_bgr = np.full((*SIZE, 3), (0, 0, 250), np.uint8)
    cv2.imwrite(str(folder / 'train' / 'rgb' / 'a.jpg'), red_in_bgr)
    rgb = PictureFolder(folder, 'train').read(0).rgb
    assert rgb[..., 0].mean() > 230
    assert rgb[..., 2].mean() < 20


def test_depth_of_16_bit_is_millimetres_and_zero_is_invalid(tmp_path: Path) -> None:
    depth = np.full(SIZE, 1234, np.uint16)
    depth[0, 0] = 0
    cv2.imwrite(str(write_folder(tmp_path) / 'train' / 'depth' / '0001.png'), depth)
    frame = PictureFolder(tmp_path, 'train').read(0)
    assert frame.depth[0, 0] == 0
    assert frame.depth[5, 5] == pytest.approx(1.234)
    assert not frame.normal[0, 0].any()


def test_stored_normals_are_decoded_and_named(tmp_path: Path) -> None:
    write_folder(tmp_path, ids=('1',))
    normal = np.array([0.6, -0.8, 0.0])
    coded = np.full((*SIZE, 3), np.rint((normal + 1) * 127.5), np.uint8)
    coded[0, 0] = 0
    (tmp_path / 'train' / 'normal').mkdir()
    cv2.imwrite(str(tmp_path / 'train' / 'normal' / '1.png'), coded[..., ::-1])
    frame = PictureFolder(tmp_path, 'train').read(0)
    assert frame.normals_source == 'file'
    assert not frame.normal[0, 0].any()
    assert angles_between(frame.normal[1, 1], normal) < 0.4
    assert np.linalg.norm(frame.normal[1, 1]) == pytest.approx(1)


def test_cameras_json_gives_intrinsics_and_pose(tmp_path: Path) -> None:
    write_folder(tmp_path, ids=('1', '2'))
    pose = np.eye(4)
    pose[0, 3] = 2.5
    cameras = {
        '1': {'intrinsics': [50, 51, 20, 15], 'pose': pose.tolist()},
        '2': {'intrinsics': [60, 61, 20, 15], 'pose': None},
    }
    (tmp_path / 'train' / 'cameras.json').write_text(json.dumps({'frames': cameras}))
    first, second = PictureFolder(tmp_path, 'train')
    assert (first.intrinsics.fx, second.intrinsics.fx) == (50, 60)
    assert (first.intrinsics.width, first.intrinsics.height) == (40, 30)
    assert first.pose[0, 3] == 2.5
    assert second.pose is None


def test_only_wanted_truths_are_read(tmp_path: Path) -> None:
    frame = PictureFolder(write_folder(tmp_path), 'train', want=('label',)).read(0)
    assert frame.label is not None
    assert frame.depth is None
    assert frame.normal is None


def test_a_folder_without_a_truth_gives_none_unless_it_is_required(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for file in (tmp_path / 'train' / 'depth').iterdir():
        file.unlink()
    folder = PictureFolder(tmp_path, 'train')
    assert folder.truths == ('label',)
    assert folder.read(0).depth is None
    folder.check()
    with pytest.raises(DatasetError, match='has no depth, normal pictures'):
        folder.check(require=('label', 'depth', 'normal'))


def test_every_missing_and_broken_file_is_named_and_counted(tmp_path: Path) -> None:
    train = write_folder(tmp_path) / 'train'
    (train / 'depth' / '0001.png').unlink()
    jpeg = train / 'rgb' / '0002.jpg'
    jpeg.write_bytes(jpeg.read_bytes()[:400])
    png = train / 'label13' / '0003.png'
    png.write_bytes(png.read_bytes()[:-20])
    with pytest.raises(DatasetError) as error:
        PictureFolder(tmp_path, 'train').check()
    message = str(error.value)
    assert message.startswith('3 of the files')
    for name in ('depth/0001.png: missing', '0002.jpg: cut off', '0003.png: cut off'):
        assert name in message


def test_a_flipped_bit_in_a_png_is_found(tmp_path: Path) -> None:
    png = write_folder(tmp_path) / 'train' / 'label13' / '0001.png'
    data = bytearray(png.read_bytes())
    data[len(data) // 2] ^= 1
    png.write_bytes(data)
    with pytest.raises(DatasetError, match=r'label13/0001\.png: damaged'):
        PictureFolder(tmp_path, 'train').check()


@pytest.mark.parametrize('content', [b'', b'not a picture'])
def test_a_file_that_is_no_picture_is_named_when_read(tmp_path: Path, content: bytes) -> None:
    (write_folder(tmp_path) / 'train' / 'rgb' / '0001.jpg').write_bytes(content)
    with pytest.raises(DatasetError, match=r'0001\.jpg: no readable JPEG or PNG'):
        PictureFolder(tmp_path, 'train').read(0)


def test_a_truth_of_another_size_or_an_impossible_label_is_named(tmp_path: Path) -> None:
    train = write_folder(tmp_path) / 'train'
    cv2.imwrite(str(train / 'depth' / '0001.png'), np.ones((5, 5), np.uint8))
    cv2.imwrite(str(train / 'label13' / '0002.png'), np.full(SIZE, 40, np.uint8))
    with pytest.raises(DatasetError) as error:
        PictureFolder(tmp_path, 'train').check()
    assert '0001.png: shape (5, 5), expected (30, 40)' in str(error.value)
    assert '0002.png: label 40, expected 0..12 or 255' in str(error.value)


def test_many_problems_are_all_counted_but_not_all_listed(tmp_path: Path) -> None:
    write_folder(tmp_path, ids=tuple(f'{i:04d}' for i in range(30)))
    for file in list((tmp_path / 'train' / 'label13').iterdir())[:25]:
        file.write_bytes(b'')
    with pytest.raises(DatasetError, match=r'(?s)^25 of the files.*and 5 more'):
        PictureFolder(tmp_path, 'train').check()


def test_a_missing_split_or_rgb_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match='does not exist'):
        PictureFolder(tmp_path, 'train')
    (tmp_path / 'train').mkdir()
    with pytest.raises(DatasetError, match='has no rgb/ folder'):
        PictureFolder(tmp_path, 'train')
    (tmp_path / 'train' / 'rgb').mkdir()
    with pytest.raises(DatasetError, match='holds no pictures'):
        PictureFolder(tmp_path, 'train')


@pytest.mark.parametrize('text', ['{', '{}', '{"frames": {"0001": {"intrinsics": [1, 2]}}}'])
def test_a_broken_cameras_json_is_refused(tmp_path: Path, text: str) -> None:
    (write_folder(tmp_path) / 'train' / 'cameras.json').write_text(text)
    with pytest.raises(DatasetError, match=r'cameras\.json is broken'):
        PictureFolder(tmp_path, 'train')


def test_boxes_of_unknown_classes_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path) / 'train' / 'scenes'
    folder.mkdir()
    boxes = [{'label': name, 'box': [0, 0, 5, 5]} for name in ('chair', 'wall', 'robot')]
    (folder / 'a.json').write_text(json.dumps({'frames': {'0001': {'boxes': boxes}}}))
    with pytest.raises(DatasetError, match=r"boxes of unknown classes \['robot'\]"):
        PictureFolder(tmp_path, 'train', want=('boxes',))


def test_pictures_of_another_shape_need_cameras(tmp_path: Path) -> None:
    path = write_folder(tmp_path, ids=('1',)) / 'train' / 'rgb' / '1.jpg'
    cv2.imwrite(str(path), np.zeros((20, 40, 3), np.uint8))
    with pytest.raises(DatasetError, match=r'write cameras\.json'):
        PictureFolder(tmp_path, 'train').read(0)


def test_real_frames_are_read_whole(nyuv2: Path) -> None:
    folder = PictureFolder(nyuv2, 'devtest')
    assert len(folder) == 323
    frame = folder.read(0)
    assert frame.rgb.shape == (288, 384, 3)
    assert set(np.unique(frame.label)) <= {*range(13), 255}
    assert 0.7 < frame.depth.min() < frame.depth.max() < 10
    assert frame.intrinsics == NYUV2_INTRINSICS
    # A floor seen by a camera held about level points up: y is negative.
    floor = frame.label == 4
    assert floor.sum() > 500
    assert np.median(frame.normal[floor], axis=0)[1] < -0.8
