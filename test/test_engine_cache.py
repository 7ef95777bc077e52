"""The cache gives back exactly what was built for a key, or builds and says why."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from mtl_perception.engines import EngineError
from mtl_perception.engines.cache import (
    KEPT_PER_BUNDLE,
    CachedEngine,
    EngineCache,
    EngineKey,
    Miss,
)

PARTS = {
    'bundle': 'tiny',
    'model_sha256': 'a' * 64,
    'runtime': 'tensorrt',
    'runtime_version': '10.9.0',
    'device': 'Orin (compute capability 8.7)',
    'precision': 'float16',
    'sizes': ((288, 384),),
    'batch': (1, 1, 1),
    'flags': (('workspace_mib', 'None'),),
}
NOTES = {'precision': 'float16'}


def key(**changes: object) -> EngineKey:
    return EngineKey(**{**PARTS, **changes})


def never() -> CachedEngine:
    raise AssertionError('built although the engine is there')


def put(cache: EngineCache, blob: bytes = b'engine', **changes: object) -> Path:
    _, path, _ = cache.build(key(**changes), lambda: CachedEngine(blob, NOTES))
    assert path is not None
    return path


def test_a_hit_gives_the_engine_back_without_building(tmp_path: Path) -> None:
    path = put(EngineCache(tmp_path), b'\0\1engine')

    engine, found, origin = EngineCache(tmp_path).build(key(), never)

    assert (engine.blob, engine.notes, found) == (b'\0\1engine', NOTES, path)
    assert origin == f'found in {path}'


@pytest.mark.parametrize(
    ('part', 'value', 'words'),
    [
        ('bundle', 'other', 'no engine of other'),
        ('model_sha256', 'b' * 64, 'model_sha256 was aaaa'),
        ('runtime', 'tensorrt_rtx', 'runtime was tensorrt, is tensorrt_rtx'),
        ('runtime_version', '10.10.0', 'runtime_version was 10.9.0, is 10.10.0'),
        ('device', 'Thor', r'device was Orin \(compute capability 8.7\), is Thor'),
        ('precision', 'int8', 'precision was float16, is int8'),
        ('sizes', ((288, 512),), 'sizes was'),
        ('batch', (1, 1, 4), r'batch was \[1, 1, 1\], is \[1, 1, 4\]'),
        ('flags', (('workspace_mib', '64'),), 'workspace_mib was None, is 64'),
    ],
)
def test_every_part_of_the_key_counts(
    tmp_path: Path, part: str, value: object, words: str
) -> None:
    cache = EngineCache(tmp_path)
    put(cache)

    miss = cache.find(key(**{part: value}))
    _, _, origin = cache.build(key(**{part: value}), lambda: CachedEngine(b'new', NOTES))

    assert isinstance(miss, Miss)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(miss.reason)
    assert origin == f'built: {miss.reason}'
    assert cache.find(key(**{part: value})) == CachedEngine(b'new', NOTES)


@pytest.mark.parametrize('length', [0, 10, 30, 200, -1])
def test_a_truncated_file_is_built_again_and_the_reason_said(tmp_path: Path, length: int) -> None:
    cache = EngineCache(tmp_path)
    path = put(cache, bytes(1000))
    content = path.read_bytes()
    path.write_bytes(content[:length])

    engine, _, origin = cache.build(key(), lambda: CachedEngine(b'again', NOTES))

    assert engine.blob == b'again'
    assert origin.startswith(f'built: {path} is damaged (')
    assert cache.find(key()) == CachedEngine(b'again', NOTES)


def test_changed_bytes_are_found(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    path = put(cache, bytes(1000))
    content = bytearray(path.read_bytes())
    content[-500] ^= 1
    path.write_bytes(content)

    miss = cache.find(key())

    assert isinstance(miss, Miss) and 'changed bytes' in miss.reason


def test_an_engine_under_a_wrong_name_is_not_taken(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    path = put(cache)
    path.rename(tmp_path / key(precision='float32').file_name)

    miss = cache.find(key(precision='float32'))

    assert isinstance(miss, Miss) and 'built for another key' in miss.reason


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)

    def fail() -> CachedEngine:
        raise RuntimeError('out of memory')

    with pytest.raises(RuntimeError, match='out of memory'):
        cache.build(key(), fail)

    assert [path for path in tmp_path.iterdir() if path.suffix != '.lock'] == []
    assert put(cache).is_file()


BUILDER = """
import sys, time
from pathlib import Path
from test_engine_cache import key, NOTES
from mtl_perception.engines.cache import CachedEngine, EngineCache
folder = Path(sys.argv[1])

def make():
    (folder / f'built_by_{sys.argv[2]}').touch()
    while not (folder / 'go').exists():
        time.sleep(0.01)
    return CachedEngine(b'engine', NOTES)

print(EngineCache(folder / 'cache').build(key(), make)[2])
"""


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
    builders = [
        subprocess.Popen(
            [sys.executable, '-c', BUILDER, str(tmp_path), name],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in 'ab'
    ]
    while not list(tmp_path.glob('built_by_*')):
        assert any(builder.poll() is None for builder in builders)
    (tmp_path / 'go').touch()

    origins = sorted(builder.communicate(timeout=60)[0] for builder in builders)

    assert len(list(tmp_path.glob('built_by_*'))) == 1
    assert origins[0].startswith('built: no engine of tiny') and origins[1].startswith('found in')


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up the superuser's rights, to whom every folder is open."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def open_up(folder: Path) -> None:
    """Let anybody reach a folder of pytest's."""
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid():
            parent.chmod(parent.stat().st_mode | 0o055)


def test_a_read_only_folder_still_gives_engines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / 'shared'
    path = put(EngineCache(folder))
    open_up(folder)
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        with as_nobody():
            found, _, origin = EngineCache(folder).build(key(), never)
            made, nowhere, remark = EngineCache(folder).build(
                key(precision='int8'), lambda: CachedEngine(b'new', NOTES)
            )
    finally:
        folder.chmod(0o755)

    assert found.blob == b'engine' and origin == f'found in {path}'
    assert made.blob == b'new' and nowhere is None and 'not kept' in remark
    assert 'set MTL_PERCEPTION_CACHE' in caplog.text


def test_a_folder_that_cannot_exist_still_gives_engines(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()

    made, path, _ = EngineCache(tmp_path / 'file' / 'cache').build(
        key(), lambda: CachedEngine(b'new', NOTES)
    )

    assert made.blob == b'new' and path is None


def test_an_engine_that_cannot_be_written_still_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('mtl_perception.engines.cache.write_file', full)

    made, path, origin = EngineCache(tmp_path).build(key(), lambda: CachedEngine(b'new', {}))

    assert made.blob == b'new' and path is None and 'No space left' in origin


def test_another_builder_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mtl_perception.engines.cache.LOCK_TIMEOUT_S', 0.05)
    with (
        FileLock(tmp_path / f'{key().file_name}.lock'),
        pytest.raises(EngineError, match='another process has been building'),
    ):
        EngineCache(tmp_path).build(key(), lambda: pytest.fail('it was built'))


def test_engines_that_cannot_be_hit_again_are_removed(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    outdated = [put(cache, model_sha256='b' * 64), put(cache, model_sha256='c' * 64)]
    assert not outdated[0].exists()
    other = put(cache, bundle='other', model_sha256='b' * 64)
    rtx = put(cache, runtime='tensorrt_rtx', runtime_version='1.7')
    old = put(cache, runtime_version='10.3.0')
    elsewhere = put(cache, runtime_version='10.3.0', device='another GPU')

    new = put(cache)

    assert new.exists() and rtx.exists() and other.exists() and elsewhere.exists()
    assert not outdated[1].exists() and not old.exists()


def test_no_more_than_a_few_engines_of_a_bundle_are_kept(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    paths = []
    for width in range(32, 32 * (KEPT_PER_BUNDLE + 3), 32):
        paths.append(put(cache, sizes=((32, width),)))
        os.utime(paths[-1], (width, width))

    assert [path.exists() for path in paths[:2]] == [False, False]
    assert sum(path.exists() for path in paths) == KEPT_PER_BUNDLE


def test_the_folder_is_the_users_or_the_one_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('MTL_PERCEPTION_CACHE', str(tmp_path / 'mine'))
    assert EngineCache().folder == tmp_path / 'mine'

    monkeypatch.delenv('MTL_PERCEPTION_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'users'))
    assert EngineCache().folder == tmp_path / 'users' / 'mtl_perception' / 'engines'
