"""What the last pictures together say of the classes: averages by hand, ages, forgetting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mtl_perception.bundle import AttributeSpec
from mtl_perception.class_filter import ClassFilter

ROOM = AttributeSpec(name='room', kind='single', classes=('kitchen', 'office', 'bathroom'))
SEEN = AttributeSpec(name='seen', kind='multi', classes=('lit', 'dark'))
BOTH = (ROOM, SEEN)


def scores(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


KITCHEN = scores(0.8, 0.1, 0.1, 0.9, 0.2)
BATHROOM = scores(0.1, 0.2, 0.7, 0.6, 0.5)


def test_the_first_picture_speaks_for_itself():
    found = ClassFilter(BOTH).update(KITCHEN, 3.0, 5.0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, KITCHEN, atol=1e-6)


def test_without_memory_each_picture_stands_alone():
    together = ClassFilter(BOTH)
    together.update(KITCHEN, 0.0, 5.0)
    assert together.update(BATHROOM, 0.1, 0.0) is BATHROOM
    # What was before memory was switched off is not remembered afterwards.
    np.testing.assert_allclose(together.update(BATHROOM, 0.2, 5.0), BATHROOM, atol=1e-6)


def test_a_picture_of_the_memorys_age_counts_one_eth():
    together = ClassFilter(BOTH)
    together.update(KITCHEN, 10.0, 4.0)
    found = together.update(BATHROOM, 14.0, 4.0)
    older = math.exp(-1)
    product = KITCHEN[:3] ** (older / (1 + older)) * BATHROOM[:3] ** (1 / (1 + older))
    np.testing.assert_allclose(found[:3], product / product.sum(), rtol=1e-5)
    seen = np.stack([KITCHEN[3:], BATHROOM[3:]])
    mean = (np.log(seen / (1 - seen)) * [[older], [1]]).sum(0) / (1 + older)
    np.testing.assert_allclose(found[3:], 1 / (1 + np.exp(-mean)), rtol=1e-5)


def test_an_unsure_picture_does_not_undo_what_sure_ones_said():
    together = ClassFilter((ROOM,))
    for step in range(5):
        together.update(KITCHEN[:3], step * 0.5, 5.0)
    found = together.update(scores(0.30, 0.36, 0.34), 2.5, 5.0)
    assert found.argmax() == 0


def test_another_room_is_told_within_the_memory():
    together = ClassFilter((ROOM,))
    for step in range(100):
        together.update(KITCHEN[:3], step * 0.1, 2.0)
    told = [together.update(BATHROOM[:3], 10 + step * 0.1, 2.0).argmax() for step in range(30)]
    assert told[0] == 0 and told[-1] == 2
    assert told.index(2) < 20


def test_time_that_goes_backwards_forgets():
    together = ClassFilter(BOTH)
    together.update(KITCHEN, 100.0, 5.0)
    np.testing.assert_allclose(together.update(BATHROOM, 1.0, 5.0), BATHROOM, atol=1e-6)


def test_a_long_pause_forgets():
    together = ClassFilter(BOTH)
    together.update(KITCHEN, 0.0, 5.0)
    np.testing.assert_allclose(together.update(BATHROOM, 1e6, 5.0), BATHROOM, atol=1e-6)


@given(
    said=hnp.arrays(np.float32, (6, 5), elements=st.floats(0, 1, width=32)),
    pauses=st.lists(st.floats(0, 100), min_size=6, max_size=6),
    memory=st.sampled_from([0.01, 1.0, 1000.0]),
)
def test_scores_stay_scores(said: np.ndarray, pauses: list[float], memory: float):
    """Also of pictures that are perfectly sure of opposite things."""
    together, time_s = ClassFilter(BOTH), 0.0
    for row, pause in zip(said, pauses, strict=True):
        time_s += pause
        found = together.update(row, time_s, memory)
        assert ((found >= 0) & (found <= 1)).all()
        assert found[:3].sum() == pytest.approx(1, abs=1e-5)
