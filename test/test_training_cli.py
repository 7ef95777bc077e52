"""`mtl-training`: what a person sees who makes a mistake, and who does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import pytest
import yaml

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from training_parts import tiny_config, write_pictures  # noqa: E402

from mtl_training.cli import main  # noqa: E402


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, 'argv', ['mtl-training', *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


def test_mistakes_end_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_pictures(tmp_path / 'data', count=3)
    (data / 'train/depth/0001.png').unlink()
    cases = [
        (('prepare', data, '--cache', tmp_path / 'cache'), '0001.png: missing'),
        (('prepare', tmp_path / 'absent', '--cache', tmp_path / 'cache'), 'does not exist'),
        (('train', 'absent'), 'neither a YAML file nor a shipped configuration'),
        (('train', 'pvt_v2_b0', '--set', 'optimizer.lr=x'), 'optimizer.lr'),
        (('train', 'pvt_v2_b0', '--set', f'data.sources.0.path={tmp_path}/no'), 'does not exist'),
        (('export', tmp_path / 'last.json', tmp_path / 'bundle'), 'cannot be read'),
        (('experiment', 'absent'), 'neither a file nor a shipped study'),
        (('tune', 'absent'), 'no valid search'),
        (('evaluate', '--data', data), 'exactly one of'),
        (('train', '--minutes', '1', '--steps', '1'), 'exclude each other'),
    ]
    for arguments, words in cases:
        assert run(monkeypatch, *arguments) == 2, arguments
        said = ' '.join(capfd.readouterr().err.replace('│', ' ').split())
        assert words in said, (arguments, said)
        assert 'Traceback' not in said


def test_mistakes_in_the_data_end_in_one_sentence_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_pictures(tmp_path / 'data', count=12)
    values = tiny_config(data, tmp_path / 'cache').model_dump(mode='json')
    values['data']['held_out'] = {'source': 'boxes', 'blocks': 2, 'frames_per_block': 8}
    (tmp_path / 'tiny.yaml').write_text(yaml.safe_dump(values))
    train = ('train', tmp_path / 'tiny.yaml', '--out', tmp_path / 'run')
    cases = [
        (train, '2 blocks of 8 frames leave nothing of 12 to train on: hold fewer out with --set'),
        # Square brackets are no markup.
        (('prepare', data, '--cache', tmp_path / 'cache'), '"intrinsics": [fx, fy, cx, cy]'),
    ]
    for arguments, words in cases:
        assert run(monkeypatch, *arguments) == 2, arguments
        said = ' '.join(capfd.readouterr().err.split())
        assert words in said and 'Traceback' not in said, said
        (data / 'train' / 'cameras.json').write_text('{"frames": {"0001": {}}}')


@pytest.mark.slow
def test_own_pictures_may_have_another_number_of_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What docs/training.md says of one's own pictures, with 5 and with 20 classes."""
    names = [{'name': f'class {k}', 'color': [k, k, k]} for k in range(20)]
    (tmp_path / 'names.json').write_text(json.dumps(names))
    for count, prepared in ((5, ()), (20, ('--classes', 20))):
        data = write_pictures(tmp_path / f'mine{count}', count=4)
        for path in (data / 'train' / 'label13').iterdir():
            label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            label[label < 255] = label[label < 255] % 2 * (count - 1)
            cv2.imwrite(str(path), label)
        cache = ('--cache', tmp_path / 'cache', '--size', '64x96')
        assert run(monkeypatch, 'prepare', data, *cache, *prepared) == 0
        assert run(monkeypatch, 'prepare', data, '--check', *prepared) == 0
        network = {'backbone': 'test_efficientnet_gn', 'decoder_channels': 16}
        config = tiny_config(data, tmp_path / 'cache', network=network).model_dump(mode='json')
        (tmp_path / 'tiny.yaml').write_text(yaml.safe_dump(config))
        folder = tmp_path / f'run{count}'
        changes = ('--set', f'network.num_classes={count}')
        train = ('train', tmp_path / 'tiny.yaml', '--steps', 1, '--out', folder)
        assert run(monkeypatch, *train, *changes) == 0
    bundle = tmp_path / 'bundle'
    shipped = ('--classes', tmp_path / 'names.json', '--size', '64x96', '--no-calibrate')
    assert run(monkeypatch, 'export', folder / 'last.json', bundle, *shipped) == 0
    split = ('--split', 'train', '--engine', 'onnxruntime', '--json', '-')
    assert run(monkeypatch, 'evaluate', '--bundle', bundle, '--data', data, *split) == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures['frames'] == 4 and figures['segmentation']['miou'] is not None
    checkpoint = ('evaluate', '--checkpoint', folder / 'last.json', '--data', data, *split)
    assert run(monkeypatch, *checkpoint) == 2
    assert '13 classes are named, the network has 20' in capfd.readouterr().err
    assert run(monkeypatch, *checkpoint, '--classes', tmp_path / 'names.json') == 0
    again = json.loads(capfd.readouterr().out)
    assert set(again['segmentation']['iou']) == set(figures['segmentation']['iou'])


def test_prepare_and_train_tell_where_things_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_pictures(tmp_path / 'data', count=4)
    done = ('prepare', data, '--cache', tmp_path / 'cache', '--size', '64x96', '--json', '-')
    assert run(monkeypatch, *done) == 0
    prepared = json.loads(capfd.readouterr().out)
    assert prepared['frames'] == 4 and Path(prepared['folder']).is_dir()
    values = tiny_config(data, tmp_path / 'cache').model_dump(mode='json')
    (tmp_path / 'tiny.yaml').write_text(yaml.safe_dump(values))
    out = ('--out', tmp_path / 'run', '--json', tmp_path / 'result.json')
    assert run(monkeypatch, 'train', tmp_path / 'tiny.yaml', '--steps', '2', *out) == 0
    said = capfd.readouterr().err
    assert 'finished after 2 steps' in said and 'held out at step 2' in said
    assert json.loads((tmp_path / 'result.json').read_text())['steps'] == 2
    assert [folder.name for folder in (tmp_path / 'cache').iterdir()] == [
        Path(prepared['folder']).name
    ], 'training uses what prepare wrote'
