"""Frames that show the same scene: they train together or judge together, never both."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Generated worlds call their frames SCENE_VIEW; other names say nothing of what else shows a room.
_WORLD = re.compile(r'(\d{5})_\d+')


def scene_of(frame_id: str) -> str:
    """Return the flat of a generated world's frame; any other frame is a scene of its own."""
    found = _WORLD.fullmatch(frame_id)
    return found[1] if found else frame_id


def scene_edges(ids: Sequence[str]) -> list[int]:
    """Return where each scene begins among sorted frames, and at last the number of frames."""
    scenes = [scene_of(frame_id) for frame_id in ids]
    return [k for k, scene in enumerate(scenes) if not k or scene != scenes[k - 1]] + [len(ids)]
