"""What the player can play: recordings and folders of pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from mtl_perception.ros.sources.bag import BagSource, is_bag
from mtl_perception.ros.sources.base import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    RecordedMessage,
    Source,
    SourceError,
    Topic,
    camera_topic,
    sibling,
)
from mtl_perception.ros.sources.calibration import CalibratedSource, parse_k, read_camera_info
from mtl_perception.ros.sources.folder import FolderSource
from mtl_perception.ros.sources.limited import LimitedSource

__all__ = [
    'CAMERA_INFO',
    'COMPRESSED_IMAGE',
    'IMAGE',
    'BagSource',
    'CalibratedSource',
    'FolderSource',
    'LimitedSource',
    'RecordedMessage',
    'Source',
    'SourceError',
    'Topic',
    'camera_topic',
    'open_source',
    'parse_k',
    'read_camera_info',
    'sibling',
]


def open_source(
    path: Path,
    *,
    split: str | None = None,
    fps: float = 30.0,
    transport: Literal['raw', 'compressed'] = 'raw',
    limit: int = 0,
    start_s: float = 0.0,
    topics: Collection[str] = (),
    all_topics: bool = False,
    images: Sequence[str] = (),
) -> Source:
    """Open a recording or a folder of pictures.

    Args:
        path: a rosbag2 folder or file, a data set, or a folder of pictures.
        split: of a data set.
        fps: of folders.
        transport: of folders.
        limit: pictures of the first camera to play; 0 plays all.
        start_s: where playing will start; the limit counts from there.
        topics: play only these; empty: all but what a perception node published.
        all_topics: play what a perception node published, too.
        images: of bags, the cameras that come first; empty: found by type and name.

    Raises:
        SourceError: there is nothing to play.
    """
    if not path.exists():
        raise SourceError(f'{path} does not exist: give a recording or a folder of pictures')
    if path.suffix == '.bag' or is_bag(path):
        bag = BagSource(path, topics, all_topics, images)
        return LimitedSource(bag, limit, start_s) if limit else bag
    return FolderSource(
        path,
        split=split,
        fps=fps,
        transport=transport,
        limit=limit,
        start_s=start_s,
        chosen=topics,
    )
