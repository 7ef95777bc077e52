"""Pictures show what they are made of: class colours, near as warm, grey for unknown."""

from __future__ import annotations

import numpy as np
import pytest

from mtl_perception import views
from mtl_perception.bundle import ClassSpec, nyu13_classes

CLASSES = nyu13_classes()


def test_labels_get_their_class_colours_and_the_rest_is_black() -> None:
    label = np.array([[0, 4, 12], [13, 200, 255]], np.uint8)

    rgb = views.colorize_labels(label, CLASSES)

    expected = [[CLASSES[0].color, CLASSES[4].color, CLASSES[12].color], [(0, 0, 0)] * 3]
    np.testing.assert_array_equal(rgb, expected)


def test_an_overlay_mixes_and_leaves_unlabelled_pixels() -> None:
    rgb = np.full((1, 2, 3), 100, np.uint8)
    label = np.array([[4, 255]], np.uint8)

    mixed = views.overlay(rgb, label, CLASSES, alpha=0.25)

    expected = 75 + 0.25 * np.array(CLASSES[4].color)
    np.testing.assert_allclose(mixed[0, 0], expected, atol=1)
    np.testing.assert_array_equal(mixed[0, 1], (100, 100, 100))


def test_near_is_warm_far_is_cold_and_unknown_is_grey() -> None:
    depth = np.array([[0.6, 9.0, np.nan, np.inf, 0, -1]], np.float32)

    near, far, *unknown = views.colorize_depth(depth, 0.5, 10)[0].astype(int)

    assert near[0] > near[2]
    assert far[2] > far[0]
    assert all(tuple(color) == views.INVALID for color in unknown)


def test_depth_outside_the_range_takes_the_ends_colours() -> None:
    depth = np.array([[0.01, 0.5, 10, 1000]], np.float32)

    rgb = views.colorize_depth(depth, 0.5, 10)

    np.testing.assert_array_equal(rgb[0, 0], rgb[0, 1])
    np.testing.assert_array_equal(rgb[0, 2], rgb[0, 3])


@pytest.mark.parametrize(('near', 'far'), [(0, 1), (2, 2), (3, 1), (float('nan'), 1)])
def test_impossible_depth_ranges_are_refused(near: float, far: float) -> None:
    with pytest.raises(ValueError, match='expected 0 < min_m < max_m'):
        views.colorize_depth(np.ones((2, 2), np.float32), near, far)


def test_normals_show_their_direction() -> None:
    normal = np.array([[[0, 0, -1], [0, -1, 0], [-1, 0, 0], [0, 0, 0]]], np.float32)
    normal = np.concatenate([normal, np.full((1, 4, 3), np.nan, np.float32)])

    rgb = views.colorize_normals(normal)

    facing, floor, leftwards, unknown = rgb[0]
    assert facing.argmax() == 2 and floor.argmax() == 1 and leftwards.argmax() == 0
    assert facing[2] == floor[1] == leftwards[0] == 255
    np.testing.assert_array_equal(unknown, views.INVALID)
    np.testing.assert_array_equal(rgb[1], [views.INVALID] * 4)


def test_pictures_are_written_in_place() -> None:
    out = np.zeros((4, 5, 3), np.uint8)
    label = np.full((4, 5), 4, np.uint8)
    depth = np.full((4, 5), 2, np.float32)
    normal = np.full((4, 5, 3), -0.577, np.float32)

    for paint in (
        lambda: views.colorize_labels(label, CLASSES, out),
        lambda: views.colorize_depth(depth, 0.5, 10, out),
        lambda: views.colorize_normals(normal, out),
        lambda: views.overlay(np.full_like(out, 9), label, CLASSES, 0.5, out),
    ):
        out[:] = 0
        assert np.shares_memory(paint(), out)
        assert out.any()


def test_a_legend_shows_every_colour_from_top_to_bottom() -> None:
    for height in (144, 288, 480):
        column = views.legend(CLASSES, height)[:, 10]
        rows = [np.flatnonzero((column == spec.color).all(-1)) for spec in CLASSES]
        assert all(len(found) >= 5 for found in rows)
        middles = [found.mean() for found in rows]
        assert middles == sorted(middles)


def test_a_depth_scale_has_far_on_top_and_marks() -> None:
    scale = views.depth_scale(0.5, 10, 288)

    assert scale.shape[0] == 288
    top, bottom = scale[20, 12].astype(int), scale[-20, 12].astype(int)
    assert top[2] > top[0] and bottom[0] > bottom[2]
    assert (scale[:, 30:] > 200).any()


def test_a_strip_brings_pictures_to_one_height() -> None:
    first = np.zeros((100, 50, 3), np.uint8)
    second = np.full((50, 60, 3), 255, np.uint8)

    joined = views.strip(first, second, gap=4)

    assert joined.shape == (100, 50 + 4 + 120, 3)
    assert (joined[:, -120:] == 255).all()


def test_unsure_boxes_are_not_drawn() -> None:
    classes = [
        ClassSpec(name='chair', color=(255, 0, 0)),
        ClassSpec(name='bed', color=(0, 0, 255)),
    ]
    boxes = np.array([[10, 60, 60, 110], [100, 60, 150, 110]], np.float32)
    labels, scores = np.array([0, 1]), np.array([0.2, 0.8], np.float32)
    picture = np.zeros((120, 160, 3), np.uint8)
    views.draw_boxes(picture, boxes, labels, scores, classes, least_score=0.5)
    assert not picture[:, :80].any()
    assert (picture[80:110, 100] == (0, 0, 255)).all()
    # True boxes have no score to be too low.
    views.draw_boxes(picture, boxes, labels, None, classes, least_score=0.5)
    assert (picture[80:110, 10] == (255, 0, 0)).all()
