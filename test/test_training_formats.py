"""Other people's formats: LibMTL's folders and the official NYUv2 file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')
h5py = pytest.importorskip('h5py')
scipy_io = pytest.importorskip('scipy.io')

from mtl_perception.datasets import DatasetError, LabelledFrame, PictureFolder  # noqa: E402
from mtl_perception.frames import Intrinsics  # noqa: E402
from mtl_training.cli import main  # noqa: E402
from mtl_training.config import CONFIG_FOLDER, SourceSettings, load_config  # noqa: E402
from mtl_training.datasets.libmtl import LibMtlFolder, write_libmtl_frame  # noqa: E402
from mtl_training.datasets.nyuv2_mat import DEVTEST, NyuV2Mat  # noqa: E402
from mtl_training.datasets.sources import open_source  # noqa: E402
from mtl_training.experiments.study import STUDY_FOLDER, load_study  # noqa: E402

CAMERA = Intrinsics(64, 48, 60.0, 60.0, 31.5, 23.5)


def room(index: int) -> LabelledFrame:
    """Return a floor below a wall."""
    label = np.full((48, 64), 11, np.uint8)
    normal = np.zeros((48, 64, 3), np.float32)
    normal[..., 2] = -1
    label[24:] = 4
    normal[24:] = (0, -1, 0)
    label[:, 0] = 255
    normal[:, 1] = 0
    depth = np.full((48, 64), 2 + index / 4, np.float32)
    depth[0] = 0
    rgb = np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8)
    return LabelledFrame(str(index), rgb, label, depth, normal, CAMERA, 'file')


@pytest.fixture
def libmtl(tmp_path: Path) -> Path:
    for index in range(3):
        write_libmtl_frame(tmp_path / 'libmtl', 'train', index, room(index))
    return tmp_path / 'libmtl'


def test_libmtl_frames_come_back_as_they_were_written(libmtl: Path) -> None:
    folder = LibMtlFolder(libmtl, 'train', intrinsics=CAMERA)
    folder.check()
    assert folder.ids == ['0', '1', '2']
    for index in range(3):
        frame, truth = folder.read(index), room(index)
        np.testing.assert_array_equal(frame.rgb, truth.rgb)
        np.testing.assert_array_equal(frame.label, truth.label)
        np.testing.assert_array_equal(frame.depth, truth.depth)
        np.testing.assert_allclose(frame.normal, truth.normal, atol=1e-6)


def test_libmtl_files_have_the_documented_form(libmtl: Path) -> None:
    arrays = {
        t: np.load(libmtl / f'train/{t}/0.npy') for t in ('image', 'label', 'depth', 'normal')
    }
    assert arrays['image'].shape == (48, 64, 3) and arrays['image'].max() <= 1
    assert arrays['label'].shape == (48, 64) and arrays['label'].min() == -1
    assert arrays['depth'].shape == (48, 64, 1) and arrays['depth'].min() == 0
    assert arrays['normal'].shape == (48, 64, 3)


def test_wrong_normal_axes_are_found_on_the_floor(libmtl: Path) -> None:
    with pytest.raises(DatasetError, match=r'about \(0, -1, 0\) is expected'):
        LibMtlFolder(libmtl, 'train', ('x', '-y', 'z'), CAMERA).check()
    with pytest.raises(DatasetError, match='each occur once'):
        LibMtlFolder(libmtl, 'train', ('x', 'x', 'z'), CAMERA)


def test_normals_stored_with_other_axes_are_turned(libmtl: Path) -> None:
    for file in (libmtl / 'train/normal').iterdir():
        x, y, z = np.moveaxis(np.load(file), -1, 0)
        np.save(file, np.stack([x, z, -y], axis=-1))
    folder = LibMtlFolder(libmtl, 'train', ('x', '-z', 'y'), CAMERA)
    folder.check()
    np.testing.assert_allclose(folder.read(0).normal[40, 30], [0, -1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda root: (root / 'train/depth/1.npy').unlink(), 'depth/1.npy: missing'),
        (
            lambda root: (root / 'train/image/1.npy').write_bytes(b'\x93NUMPY'),
            'image/1.npy: unreadable',
        ),
        (
            lambda root: np.save(root / 'train/normal/1.npy', np.full((48, 64, 3), np.nan)),
            'NaN or infinite',
        ),
        (
            lambda root: np.save(root / 'train/label/1.npy', np.zeros((4, 4))),
            r'shape \(4, 4\)',
        ),
        (
            lambda root: np.save(root / 'train/image/1.npy', np.full((48, 64, 3), 200.0)),
            r'expected 0\.\.1',
        ),
    ],
)
def test_broken_libmtl_files_are_named_and_counted(
    libmtl: Path, damage: object, words: str
) -> None:
    damage(libmtl)
    with pytest.raises(DatasetError, match=words) as caught:
        LibMtlFolder(libmtl, 'train', intrinsics=CAMERA).check()
    assert '1 of 3 frames' in str(caught.value)


def test_libmtl_folders_are_a_source_of_training(libmtl: Path, tmp_path: Path) -> None:
    source = SourceSettings(name='study', path=str(libmtl), format='libmtl', height=48, width=64)
    arrays = open_source(source, tmp_path / 'cache')
    assert len(arrays) == 3 and arrays.normals_source == 'file'
    np.testing.assert_array_equal(arrays.read(1).label, room(1).label)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """Return a small file of the official layout, columns first as MATLAB writes it."""
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (3, 480, 640, 3), np.uint8)
    depth = np.full((3, 480, 640), 2.5, np.float32)
    raw = np.zeros((3, 480, 640), np.uint16)
    raw[:, :240] = 1
    raw[:, 240:400] = 3
    path = tmp_path / 'nyu_depth_v2_labeled.mat'
    with h5py.File(path, 'w') as file:
        file['images'] = rgb.transpose(0, 3, 2, 1)
        file['depths'] = depth.transpose(0, 2, 1)
        file['labels'] = raw.transpose(0, 2, 1)
    scipy_io.savemat(tmp_path / 'splits.mat', {'trainNdxs': [[3], [1]], 'testNdxs': [[2]]})
    # Raw class 1 is the second of three middle classes, 2 none, 3 the first.
    scipy_io.savemat(tmp_path / 'classMapping40.mat', {'mapClass': [[2, 0, 1]]})
    struct = {'labels13': [12, 5, 13], 'classNames': ['wall', 'floor', 'window']}
    scipy_io.savemat(tmp_path / 'class13Mapping.mat', {'classMapping13': struct})
    return path


def test_official_file_gives_frames_of_its_split(official: Path) -> None:
    train = NyuV2Mat(official, 'train')
    assert train.ids == ['0003', '0001'] and NyuV2Mat(official, 'test').ids == ['0002']
    frame = train.read(0)
    assert frame.rgb.shape == (288, 384, 3) and frame.intrinsics.fx == 311.31
    assert frame.label[10, 10] == 4 and frame.label[200, 10] == 11 and frame.label[280, 10] == 255
    np.testing.assert_allclose(frame.depth, 2.5)
    np.testing.assert_allclose(frame.normal[100, 100], [0, 0, -1], atol=1e-3)
    with h5py.File(official) as file:
        mean = file['images'][2].mean(axis=(1, 2))
    np.testing.assert_allclose(frame.rgb.mean(axis=(0, 1)), mean, atol=1)


def test_official_file_becomes_the_pictures_of_every_configuration(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    out = tmp_path / 'nyuv2_288x384'

    def run() -> int:
        monkeypatch.setattr(sys, 'argv', ['mtl-training', 'nyuv2', str(official), str(out)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0

    assert run() == 0
    assert '2 in train, 1 in test, 1 in devtest' in ' '.join(capfd.readouterr().err.split())
    for split in ('train', 'test', 'devtest'):
        source = NyuV2Mat(official, split)
        truth = {frame.id: frame for frame in map(source.read, range(len(source)))}
        folder = PictureFolder(out, split)
        folder.check(require=('label', 'depth', 'normal'))
        assert folder.ids == sorted(truth)
        for frame in folder:
            np.testing.assert_array_equal(frame.rgb, truth[frame.id].rgb)
            np.testing.assert_array_equal(frame.label, truth[frame.id].label)
            np.testing.assert_allclose(frame.depth, truth[frame.id].depth, atol=5e-4)
            np.testing.assert_allclose(frame.normal, truth[frame.id].normal, atol=1e-3)
            assert frame.intrinsics == truth[frame.id].intrinsics
    before = sorted(out.rglob('*'))
    assert run() == 2
    assert 'is not empty: remove it' in ' '.join(capfd.readouterr().err.split())
    assert sorted(out.rglob('*')) == before


def test_devtest_is_what_the_shipped_figures_were_measured_on(nyuv2: Path) -> None:
    assert DEVTEST.read_text().split() == PictureFolder(nyuv2, 'devtest', want=()).ids


def test_configurations_find_the_data_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MTL_DATA', '/data')
    source = SourceSettings(name='a', path='$MTL_DATA/nyuv2_288x384')
    assert source.location == Path('/data/nyuv2_288x384')
    # A checkpoint keeps the name, so that it can be exported where the data lie elsewhere.
    assert source.model_dump()['path'] == '$MTL_DATA/nyuv2_288x384'
    assert SourceSettings(name='a', path='other/$MTL_DATA').location == Path('other/$MTL_DATA')
    monkeypatch.delenv('MTL_DATA')
    names = [path.stem for path in CONFIG_FOLDER.glob('*.yaml')]
    sources = [source for name in names for source in load_config(name).data.sources]
    paths = {str(source.location) for source in sources}
    worlds = {'runs/worlds', 'runs/worlds_wide', 'runs/worlds_20000', 'runs/worlds_30000'}
    assert paths == {'../shared/data/nyuv2_288x384', 'mine'} | worlds
    studies = STUDY_FOLDER.glob('*.yaml')
    assert {str(load_study(path).measure.location) for path in studies} == {
        '../shared/data/nyuv2_288x384',
        'runs/worlds',
    }


def test_official_file_needs_its_companions(official: Path) -> None:
    (official.parent / 'class13Mapping.mat').unlink()
    with pytest.raises(DatasetError, match=r'class13Mapping\.mat'):
        NyuV2Mat(official, 'train')


def test_a_file_that_is_not_the_official_one_is_refused(official: Path) -> None:
    official.write_bytes(b'not HDF5')
    with pytest.raises(DatasetError, match='HDF5'):
        NyuV2Mat(official, 'train').check()


def test_real_pictures_survive_libmtls_format(nyuv2: Path, tmp_path: Path) -> None:
    original = PictureFolder(nyuv2, 'train').read(0)
    write_libmtl_frame(tmp_path, 'train', 0, original)
    frame = LibMtlFolder(tmp_path, 'train').read(0)
    np.testing.assert_array_equal(frame.rgb, original.rgb)
    np.testing.assert_array_equal(frame.label, original.label)
    np.testing.assert_array_equal(frame.depth, original.depth)
    assert frame.intrinsics == original.intrinsics
