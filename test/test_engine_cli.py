"""`mtl-perception engine`: a build from the command line, and what a node would make of it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.progress import Progress
from tiny_graph import SIZE
from typer.testing import CliRunner

from mtl_perception.bundle import ModelBundle
from mtl_perception.engine_cli import app, read_pictures

pytest.importorskip(
    'tensorrt_rtx',
    reason='tensorrt_rtx is not installed: pip install -r requirements/tensorrt.txt',
)
NO_GPU = not any(Path('/dev').glob('nvidia[0-9]*'))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of three pictures, 96 x 128 pixels; the cache lies beside it."""
    monkeypatch.setenv('MTL_PERCEPTION_CACHE', str(tmp_path / 'cache'))
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    rng = np.random.default_rng(2)
    for index in range(3):
        coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.float32)
        cv2.imwrite(str(pictures / f'{index}.png'), cv2.resize(coarse, (128, 96)))
    return pictures


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_frames_come_as_the_network_gets_them(folder: Path) -> None:
    pictures = read_pictures(folder, SIZE, 2)

    assert [picture.shape for picture in pictures] == [(*SIZE, 3)] * 2
    assert all(picture.dtype == np.uint8 and picture.std() > 10 for picture in pictures)


@pytest.mark.skipif(not NO_GPU, reason='this machine has an NVIDIA GPU')
def test_a_build_is_kept_and_checked(
    tiny_bundle: ModelBundle, folder: Path, tmp_path: Path
) -> None:
    build = ('build', '--bundle', tiny_bundle.path, '--frames', folder, '--precision', 'fp16')
    targets = ('--compute-capability', '8.6,12.0', '--batch', '1:1:2')

    code, output = call(*build, *targets, '--json', tmp_path / 'build.json')
    again_code, again = call(*build, *targets)
    check_code, checked = call('check', '--bundle', tiny_bundle.path)

    assert code == again_code == 0
    result = json.loads((tmp_path / 'build.json').read_text())
    assert result['precision'] == 'float16' and result['gate'][0]['frames'] == 3
    assert 'onnx.reference' in result['gate'][-1]['method']
    assert result['gate'][-1]['passed'] and Path(result['path']).is_file()
    assert 'float16 passed on 3 frames' in output and 'The gate runs on the CPU' in output
    assert 'found in' in again
    assert check_code == 1 and 'A node runs tiny on the CPU: no NVIDIA driver' in checked
    assert 'computes in float16' in checked


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (('--size', '48'), "size '48': expected HEIGHTxWIDTH"),
        (('--batch', '1-4'), "batch '1-4': expected MIN:OPT:MAX"),
        (('--batch', '4:1:1'), 'expected MIN:OPT:MAX'),
        (('--size', '33x33'), 'expected multiples of 32'),
        (('--frames', '/nowhere'), '/nowhere does not exist'),
        (('--bundle', 'nobody'), "there is no bundle 'nobody'"),
        (('--compute-capability', '3.5', '--precision', 'fp32'), 'does not build for 3.5'),
    ],
)
def test_wrong_arguments_end_with_2_and_a_sentence(
    tiny_bundle: ModelBundle, folder: Path, options: tuple[str, ...], sentence: str
) -> None:
    base = ('build', '--bundle', tiny_bundle.path, '--runtime', 'tensorrt_rtx')

    code, output = call(*base, *options)

    assert code == 2
    assert f'engine build: {sentence}' in ' '.join(output.split()) or sentence in output


def test_ctrl_c_ends_a_build(
    tiny_bundle: ModelBundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = signal.getsignal(signal.SIGINT)

    class Interrupting(Progress):
        """Gets the user's Ctrl-C in the middle of TensorRT's callbacks."""

        def update(self, *arguments: object, **options: object) -> None:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr('rich.progress.Progress', Interrupting)

    code, output = call(
        *('build', '--bundle', tiny_bundle.path, '--frames', folder, '--precision', 'fp32'),
        *('--runtime', 'tensorrt_rtx', '--compute-capability', '8.6'),
    )

    assert code == 130, output
    assert not list((folder.parent / 'cache').glob('*.engine'))
    assert signal.getsignal(signal.SIGINT) is usual
