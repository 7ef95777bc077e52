"""Imports run downwards only: ros, evaluation -> perceiver -> engines -> bundle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROS_MODULES = {
    'rclpy', 'rcl_interfaces', 'std_msgs', 'sensor_msgs', 'geometry_msgs', 'nav_msgs', 'std_srvs',
    'diagnostic_msgs', 'vision_msgs', 'tf2_msgs', 'tf2_ros', 'cv_bridge', 'lifecycle_msgs',
    'rosgraph_msgs', 'builtin_interfaces', 'mtl_perception.msg',
}  # fmt: skip
WORKSHOP_MODULES = {'torch', 'torchvision', 'timm', 'torchjd', 'mtl_training', 'mujoco', 'optuna'}


def modules(folder: str, *, without: str = '') -> list[Path]:
    paths = sorted((ROOT / folder).rglob('*.py'))
    return [p for p in paths if not without or without not in p.relative_to(ROOT).parts]


def imported(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Yield the absolute name of every module that a file of `package` imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = '.'.join((*base, *((node.module,) if node.module else ())))
            yield module
            yield from (f'{module}.{alias.name}' for alias in node.names)


def offences(paths: list[Path], forbidden: set[str]) -> list[str]:
    return [
        f'{path.relative_to(ROOT)} imports {name}'
        for path in paths
        for name in imported(path.read_text(), path.relative_to(ROOT).parent.parts)
        if any(name == rule or name.startswith(rule + '.') for rule in forbidden)
    ]


@pytest.mark.parametrize(
    ('paths', 'forbidden'),
    [
        pytest.param(modules('mtl_perception'), WORKSHOP_MODULES, id='robot-knows-no-workshop'),
        pytest.param(
            [p for p in modules('mtl_perception', without='ros') if p.name != 'cli.py'],
            ROS_MODULES | {'mtl_perception.ros'},
            id='only-ros-folder-knows-ros',
        ),
        pytest.param(
            modules('mtl_training'),
            ROS_MODULES | {'mtl_perception.ros'},
            id='workshop-knows-no-ros',
        ),
        pytest.param(
            modules('mtl_perception/engines'),
            {'mtl_perception.perceiver', 'mtl_perception.evaluation'},
            id='engines-below-perceiver',
        ),
        pytest.param(
            [ROOT / 'mtl_perception' / 'bundle.py', ROOT / 'mtl_perception' / 'frames.py'],
            {'mtl_perception.engines', 'mtl_perception.perceiver', 'mtl_perception.evaluation'},
            id='bundle-and-frames-below-engines',
        ),
        pytest.param(
            [ROOT / 'mtl_perception' / 'perceiver.py', *modules('mtl_perception/geometry')],
            {'mtl_perception.evaluation', 'mtl_perception.recordings'},
            id='perceiver-and-geometry-below-evaluation',
        ),
    ],
)
def test_imports_run_downwards(paths: list[Path], forbidden: set[str]) -> None:
    assert paths
    assert offences(paths, forbidden) == []


def test_the_checker_sees_relative_and_nested_imports() -> None:
    source = 'def f():\n    from ..ros import node\n    import torch.nn\n'
    names = set(imported(source, ('mtl_perception', 'evaluation')))
    assert {'mtl_perception.ros', 'mtl_perception.ros.node', 'torch.nn'} <= names


@pytest.mark.parametrize('module', ['mtl_perception.perceiver', 'mtl_perception.cli'])
def test_robot_side_loads_neither_torch_nor_ros(module: str) -> None:
    program = (
        f'import sys, {module}\n'
        'loaded = {"torch", "rclpy", "mtl_training"} & set(sys.modules)\n'
        'assert not loaded, loaded\n'
    )
    subprocess.run([sys.executable, '-c', program], cwd=ROOT, check=True, timeout=60)
