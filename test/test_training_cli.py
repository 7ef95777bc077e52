"""`mtl-training`: what a person sees who makes a mistake, and who does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

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
