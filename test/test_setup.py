"""The set-up says in one sentence what is missing, before it installs anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = [
    'bash',
    'sha256sum',
    'cut',
    'cat',
    'dirname',
    'env',
    'id',
    'grep',
    'make',
    'g++',
    'df',
    'awk',
    'rm',
]


def set_up(path: Path, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {'PATH': str(path), 'HOME': str(tmp_path), 'VENV': str(tmp_path / 'venv')}
    return subprocess.run(
        [shutil.which('bash') or 'bash', str(ROOT / 'scripts' / 'setup.sh'), 'runtime'],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Return a folder with only the programs that the set-up may rely on."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if not found:
            pytest.skip(f'{tool} is not installed')
        (folder / tool).symlink_to(found)
    return folder


def fake_python(folder: Path, name: str, version: str, *, venv: bool = True) -> Path:
    """Write a Python that reports `version`, and has a venv module or not."""
    program = folder / name
    program.write_text(
        '#!/bin/bash\n'
        'case "$2" in\n'
        f'  *version_info*) echo {version} ;;\n'
        f'  *ensurepip*) exit {0 if venv else 1} ;;\n'
        '  *) exit 1 ;;\n'
        'esac\n'
    )
    program.chmod(0o755)
    return program


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0]


def test_a_wrong_python_is_named_with_the_version_found(tools: Path, tmp_path: Path) -> None:
    fake_python(tools, 'python3', '3.9')
    assert_refused(set_up(tools, tmp_path), '3.11 or 3.12', 'found Python 3.9', 'PYTHON=')


def test_a_shim_that_does_not_run_is_passed_over(tools: Path, tmp_path: Path) -> None:
    (tools / 'python3').write_text('#!/bin/bash\nexit 127\n')
    (tools / 'python3').chmod(0o755)
    assert_refused(set_up(tools, tmp_path), 'found Python none')


def test_a_full_disk_is_named_before_anything_is_installed(tools: Path, tmp_path: Path) -> None:
    (tools / 'df').unlink()
    (tools / 'df').write_text(
        '#!/bin/bash\necho head\necho "/dev/x 90000000 89800000 200000 99% /"\n'
    )
    (tools / 'df').chmod(0o755)
    result = set_up(tools, tmp_path, PYTHON=sys.executable)
    assert_refused(result, '200 MB free', 'takes 1 GB', 'VENV=')
    assert not (tmp_path / 'venv').exists()


def test_a_missing_compiler_is_named(tools: Path, tmp_path: Path) -> None:
    (tools / 'g++').unlink()
    result = set_up(tools, tmp_path, PYTHON=sys.executable)
    assert_refused(result, 'C++ compiler', 'install g++')


def test_a_missing_venv_module_is_named(tools: Path, tmp_path: Path) -> None:
    fake_python(tools, 'python3', '3.11', venv=False)
    assert_refused(set_up(tools, tmp_path), 'venv module', 'python3-venv')


def test_a_sourced_ros_without_rclpy_is_named(tools: Path, tmp_path: Path) -> None:
    python = fake_python(tools, 'python3', '3.10')
    result = set_up(
        tools,
        tmp_path,
        PYTHON=str(python),
        ROS_DISTRO='humble',
        AMENT_PREFIX_PATH='/opt/ros/humble',
    )
    assert_refused(result, 'ROS 2 humble is sourced', 'ros-humble-rclpy')


@pytest.mark.parametrize(('ros', 'again'), [('jazzy', True), ('wheels', False)])
def test_an_environment_of_another_ros_is_made_anew(
    ros: str, again: bool, tools: Path, tmp_path: Path
) -> None:
    (tmp_path / 'venv' / 'bin').mkdir(parents=True)
    fake_python(tmp_path / 'venv' / 'bin', 'python', '3.11')
    (tmp_path / 'venv' / '.ros').write_text(f'{ros}\n')
    python = fake_python(tools, 'python3', '3.11')
    result = set_up(tools, tmp_path, PYTHON=str(python))
    assert result.returncode == 1
    assert ('Making' in result.stdout) == again
    assert (tmp_path / 'venv').exists() != again


def test_an_unknown_level_is_refused() -> None:
    result = subprocess.run(
        ['bash', str(ROOT / 'scripts' / 'setup.sh'), 'everything'],
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert "unknown level 'everything'" in result.stderr
