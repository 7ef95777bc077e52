"""Fixtures shared by the whole suite: data, bundles and an own ROS domain per test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_graph import write_tiny_bundle

from mtl_perception.bundle import ModelBundle
from mtl_perception.ros import environment
from mtl_perception.ros.domain import private_domain

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get('MTL_DATA', ROOT.parent / 'shared' / 'data'))


@pytest.fixture(scope='session')
def nyuv2() -> Path:
    """Return the folder with real NYUv2 pictures, or skip."""
    folder = DATA / 'nyuv2_288x384'
    if not (folder / 'devtest').is_dir():
        pytest.skip(f'{folder} is absent: set MTL_DATA to the folder that holds nyuv2_288x384')
    return folder


@pytest.fixture(scope='session')
def room_bag() -> Path:
    """Return the shipped sample bag, or skip."""
    bag = ROOT / 'samples' / 'room'
    if not (bag / 'metadata.yaml').is_file():
        pytest.skip(f'{bag} is absent: make it with `mtl-training worlds`')
    return bag


@pytest.fixture
def ros_domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Reserve a ROS domain that no other test process uses; yield the environment for children.

    Suites that run side by side on one machine stay apart. Images get the shipped Fast DDS profile
    for one machine.
    """
    with private_domain() as domain:
        monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
        monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        monkeypatch.setenv(
            environment.fastdds_variable(), str(ROOT / 'config' / 'fastdds_local.xml')
        )
        monkeypatch.delenv('_ROS_WHEELS_BOOTSTRAP_COMPLETE', raising=False)
        yield dict(os.environ)


@pytest.fixture(scope='session')
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """Return a bundle with a tiny real graph: 48x64, resizable, three tasks (see tiny_graph)."""
    return write_tiny_bundle(tmp_path_factory.mktemp('bundles') / 'tiny')
