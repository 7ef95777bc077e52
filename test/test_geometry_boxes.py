"""Boxes with depth become places in the room; overlaps are what they are by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mtl_perception.frames import Intrinsics
from mtl_perception.geometry.boxes import locate, overlap, scale_boxes

CAMERA = Intrinsics(64, 48, 60.0, 62.0, 31.5, 23.5)
BOX = np.array([[20, 10, 44, 34]], np.float32)


def scene(thing: float = 2.0, wall: float = 5.0) -> np.ndarray:
    """Return a depth picture with an upright board before a wall."""
    depth = np.full((48, 64), wall, np.float32)
    depth[10:34, 20:44] = thing
    return depth


def test_overlap_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 5, 5, 9]], np.float32)
    others = np.array([[5, 0, 15, 10], [0, 0, 10, 10], [20, 20, 30, 30]], np.float32)

    np.testing.assert_allclose(overlap(boxes, others), [[1 / 3, 1, 0], [0, 0, 0]], rtol=1e-6)


def test_a_board_stands_where_it_stands() -> None:
    found = locate(BOX, scene(), CAMERA)

    # Pixel centres of the box reach from 20 to 43: its middle is 31.5, the optical axis.
    np.testing.assert_allclose(found.center, [[0, (21.5 - 23.5) / 62 * 2, 2]], atol=1e-6)
    np.testing.assert_allclose(found.size, [[24 / 60 * 2, 24 / 62 * 2, 0]], atol=1e-6)


def test_neither_background_nor_holes_move_it() -> None:
    depth = scene()
    depth[10:34, 20:28] = 5.0  # a third of the box shows the wall
    depth[10:20, 28:44:2] = np.nan
    depth[30, 30] = 0.0

    found = locate(BOX, depth, CAMERA)

    assert found.center[0, 2] == pytest.approx(2.0)
    assert found.size[0, 2] == pytest.approx(0.0, abs=1e-6)


def test_a_mask_keeps_a_thin_thing_apart_from_what_is_behind() -> None:
    depth = scene(thing=5.0)
    own = np.zeros(depth.shape, bool)
    own[10:34, 30:33] = True
    depth[own] = 1.5

    assert locate(BOX, depth, CAMERA).center[0, 2] == pytest.approx(5.0)
    assert locate(BOX, depth, CAMERA, [own]).center[0, 2] == pytest.approx(1.5)
    nothing = [np.zeros(depth.shape, bool)]
    assert locate(BOX, depth, CAMERA, nothing).center[0, 2] == pytest.approx(5.0)


def test_depth_of_a_slanted_thing_is_its_spread() -> None:
    depth = scene()
    depth[10:34, 20:44] = np.linspace(1.8, 2.2, 24, dtype=np.float32)

    found = locate(BOX, depth, CAMERA)

    assert found.center[0, 2] == pytest.approx(2.0, abs=0.01)
    assert found.size[0, 2] == pytest.approx(0.9 * 0.4, abs=0.03)


def test_without_depth_there_is_no_place() -> None:
    depth = scene()
    depth[10:34, 20:44] = np.nan

    found = locate(np.vstack([BOX, BOX - 19]), depth, CAMERA)

    assert np.isnan(found.center[0]).all() and np.isnan(found.size[0]).all()
    assert np.isfinite(found.center[1]).all()


def test_boxes_at_the_rim_and_outside_are_survived() -> None:
    boxes = np.array([[-5, -5, 3, 3], [60, 40, 80, 70], [70, 5, 90, 9]], np.float32)

    found = locate(boxes, scene(), CAMERA)

    np.testing.assert_allclose(found.center[:2, 2], 5.0)
    assert np.isnan(found.center[2]).all()
    assert locate(np.empty((0, 4)), scene(), CAMERA).center.shape == (0, 3)


def test_boxes_of_the_outputs_become_those_of_the_picture() -> None:
    boxes = scale_boxes(np.array([[1, 2, 3, 4]]), (48, 64), (480, 640))

    assert boxes.tolist() == [[10, 20, 30, 40]]
