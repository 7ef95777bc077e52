"""Say what a benchmark ran on: its figures mean nothing without."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = {
    'numpy': 'numpy',
    'opencv': 'opencv-python-headless',
    'openvino': 'openvino',
    'onnxruntime': 'onnxruntime',
    'torch': 'torch',
    'timm': 'timm',
    'rclpy': 'ros-rclpy',
    'fastdds': 'ros-fastdds',
}


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, memory, load, system and versions, as they go into JSON.

    `load` is the mean number of busy processes over the last minute before the benchmark: above
    a few tenths, other work disturbed the figures.
    """
    return {
        'cpu': _cpu_model(),
        'cores': len(os.sched_getaffinity(0)),
        'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
        'load': round(os.getloadavg()[0], 2),
        'system': platform.platform(),
        'python': platform.python_version(),
        'versions': _versions(),
        'commit': _commit(),
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result with its machine; make the folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + '\n')


def _cpu_model() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {}
    for name, package in PACKAGES.items():
        try:
            versions[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _commit() -> str | None:
    command = ['git', '-C', str(Path(__file__).parent), 'rev-parse', '--short', 'HEAD']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
