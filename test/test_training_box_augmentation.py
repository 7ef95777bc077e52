"""Boxes follow the virtual camera: zoom, crop, mirror and roll, cut to the picture."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the workshop needs requirements/training.txt')

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from mtl_perception.datasets import region_of  # noqa: E402
from mtl_perception.frames import Intrinsics  # noqa: E402
from mtl_training.datasets.arrays import ArrayFrame  # noqa: E402
from mtl_training.datasets.augmentation import (  # noqa: E402
    LEAST_SHARE,
    VirtualCamera,
    augment,
    move_boxes,
)

CAMERA = Intrinsics(width=96, height=72, fx=80.0, fy=80.0, cx=47.5, cy=35.5)
SIZE = (64, 80)


def frame_with(shape: str, box: tuple[int, int, int, int]) -> ArrayFrame:
    """Return a frame whose label 3 fills a box, or the ellipse within it."""
    x0, y0, x1, y1 = box
    label = np.full((CAMERA.height, CAMERA.width), 11, np.uint8)
    if shape == 'rectangle':
        label[y0:y1, x0:x1] = 3
    else:
        v, u = np.mgrid[: CAMERA.height, : CAMERA.width] + 0.5
        inside = ((u - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((v - (y0 + y1) / 2) / (y1 - y0)) ** 2
        label[inside <= 0.25] = 3
    return ArrayFrame(
        id='one',
        image=np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8),
        label=label,
        depth=np.full(label.shape, 2000, np.uint16),
        normal=np.zeros((*label.shape, 3), np.int8),
        intrinsics=CAMERA,
        boxes=np.array([box], np.float32),
        box_labels=np.array([7]),
        boxes_known=np.ones(10, bool),
        attributes=np.array([0, 1], np.int8),
    )


@st.composite
def cameras(draw: st.DrawFn, most_roll: float = 0.0) -> VirtualCamera:
    zoom = draw(st.floats(0.7, 2.0))
    return VirtualCamera(
        zoom=zoom,
        roll=draw(st.floats(-most_roll, most_roll)),
        mirrored=draw(st.booleans()),
        left=draw(st.floats(0, 1)) * (zoom * CAMERA.width - SIZE[1]),
        top=draw(st.floats(0, 1)) * (zoom * CAMERA.height - SIZE[0]),
        height=SIZE[0],
        width=SIZE[1],
        focal_length=80.0,
    )


@st.composite
def boxes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    x0, y0 = draw(st.integers(0, 70)), draw(st.integers(0, 50))
    x1 = draw(st.integers(x0 + 8, CAMERA.width))
    return x0, y0, x1, draw(st.integers(y0 + 8, CAMERA.height))


def extent(mask: np.ndarray) -> list[int]:
    """Return x0 y0 x1 y1 of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@settings(max_examples=60, deadline=None)
@given(camera=cameras(), box=boxes())
def test_a_box_stays_around_its_pixels(
    camera: VirtualCamera, box: tuple[int, int, int, int]
) -> None:
    taken = augment(frame_with('rectangle', box), camera)
    mask = taken['label'] == 3
    if not len(taken['boxes']):
        assert min(mask.any(0).sum(), mask.any(1).sum()) <= 4
        return
    np.testing.assert_allclose(taken['boxes'][0], extent(mask), atol=1.01)
    whole = np.ptp(np.array(box).reshape(2, 2), axis=0).prod() * camera.zoom**2
    share = mask.sum() / whole
    (label,) = taken['box_labels']
    assert label == 7 if share > LEAST_SHARE + 0.1 else label in (7, region_of(7))
    assert label == region_of(7) or share > LEAST_SHARE - 0.1
    assert taken['boxes_known'].all() and taken['attributes'].tolist() == [0, 1]


@settings(max_examples=40, deadline=None)
@given(camera=cameras(most_roll=0.3), box=boxes())
def test_a_turned_box_fits_a_turned_thing(
    camera: VirtualCamera, box: tuple[int, int, int, int]
) -> None:
    taken = augment(frame_with('ellipse', box), camera)
    mask = taken['label'] == 3
    at_edge = mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()
    if len(taken['boxes']) and mask.any() and not at_edge:
        np.testing.assert_allclose(taken['boxes'][0], extent(mask), atol=2.0)


def test_boxes_are_cut_to_the_picture_and_dropped_when_hardly_anything_is_left() -> None:
    unmoved = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    given_boxes = np.array(
        [
            [-10, 5, 30, 25],
            [-30, 5, 10.5, 25],
            [-31, 5, 10, 25],
            [70, 60, 200, 61],
            [200, 10, 240, 30],
            [8, 8, 24, 24],
        ]
    )
    left, kept, whole = move_boxes(given_boxes, unmoved, 64, 80)
    assert kept.tolist() == [True, True, True, False, False, True]
    assert whole.tolist() == [True, True, False, True]
    assert left.tolist() == [[0, 5, 30, 25], [0, 5, 10.5, 25], [0, 5, 10, 25], [8, 8, 24, 24]]
    nothing, none, _ = move_boxes(np.zeros((0, 4)), unmoved, 64, 80)
    assert nothing.shape == (0, 4) and none.shape == (0,)


def test_what_shows_a_little_is_a_region_of_its_class() -> None:
    frame = frame_with('rectangle', (2, 2, 78, 62))
    cut = VirtualCamera(1.8, 0.0, False, 100.0, 70.0, 32, 32, 60.0)
    taken = augment(frame, cut)
    assert len(frame.boxes) == len(taken['boxes']) == 1
    assert taken['box_labels'].tolist() == [region_of(frame.box_labels[0])]


def test_the_ellipse_of_a_turned_box_is_the_one_that_opencv_draws() -> None:
    angle = math.radians(20)
    turn = np.array(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]
    )
    turn[:, 2] = np.array([99.5, 99.5]) - turn[:, :2] @ np.array([99.5, 99.5])
    left, *_ = move_boxes(np.array([[60.0, 80, 140, 120]]), turn, 200, 200)
    drawn = np.zeros((200, 200), np.uint8)
    cv2.ellipse(drawn, ((99.5, 99.5), (80, 40), 20), 255, -1)
    np.testing.assert_allclose(left[0], extent(drawn > 0), atol=1.5)
