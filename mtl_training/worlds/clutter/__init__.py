"""Small things: what lies on tables, shelves and floors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mtl_training.worlds.clutter.books import book_row, book_stack
from mtl_training.worlds.clutter.devices import (
    appliance,
    fan,
    guitar,
    heater,
    keyboard,
    laptop,
    monitor,
)
from mtl_training.worlds.clutter.household import (
    bag,
    basket,
    bin_,
    cartons,
    clothes,
    pillow,
    shoes,
    suitcase,
)
from mtl_training.worlds.clutter.tabletop import (
    ball,
    bottle,
    box,
    cup,
    frame,
    papers,
    plant,
    plate,
    table_lamp,
    toy,
    vase,
)
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Piece, Surface

__all__ = [
    'ON_CHEST',
    'ON_COUNTER',
    'ON_DESK',
    'ON_FLOOR',
    'ON_SHELF',
    'ON_TABLE',
    'Maker',
    'appliance',
    'bag',
    'ball',
    'basket',
    'bin_',
    'book_row',
    'book_stack',
    'bottle',
    'box',
    'cartons',
    'clothes',
    'cup',
    'fan',
    'frame',
    'guitar',
    'heater',
    'keyboard',
    'laptop',
    'monitor',
    'papers',
    'pillow',
    'plant',
    'plate',
    'scatter',
    'shoes',
    'suitcase',
    'table_lamp',
    'toy',
    'vase',
]

Maker = Callable[[Look], Piece]
ON_DESK: tuple[Maker, ...] = (
    papers, papers, papers, book_stack, book_stack, cup, bottle, box, frame, table_lamp, laptop,
    toy, vase,
)  # fmt: skip
ON_TABLE: tuple[Maker, ...] = (
    plate, cup, cup, bottle, papers, book_stack, vase, box, bottle, papers, laptop,
)  # fmt: skip
ON_SHELF: tuple[Maker, ...] = (
    book_stack, box, box, frame, vase, cup, bottle, toy, papers, plate, ball, bottle,
)  # fmt: skip
ON_COUNTER: tuple[Maker, ...] = (
    bottle, bottle, bottle, cup, cup, plate, appliance, appliance, box, vase, papers, box,
)  # fmt: skip
ON_CHEST: tuple[Maker, ...] = (
    frame, frame, table_lamp, box, vase, book_stack, toy, bottle, papers, clothes, bottle,
)  # fmt: skip
ON_FLOOR: tuple[Maker, ...] = (
    bag, bag, bin_, shoes, shoes, box, ball, clothes, toy, book_stack, pillow, plant, papers,
    cartons, cartons, cartons, suitcase, fan, basket, basket, heater, heater, guitar, clothes,
)  # fmt: skip


def scatter(
    look: Look, piece: Piece, surface: Surface, makers: tuple[Maker, ...], density: float
) -> None:
    """Strew things over a surface without overlap.

    Args:
        density: things per square metre in a room of ordinary tidiness.
    """
    rng = look.rng
    wanted = rng.poisson(look.clutter * density * 4 * surface.half_x * surface.half_y)
    taken: list[tuple[float, float, float]] = []
    for _ in range(min(int(wanted), 18)):
        thing = makers[int(rng.integers(len(makers)))](look)
        reach = max(thing.width, thing.depth) / 2
        free_x, free_y = surface.half_x - thing.width / 2, surface.half_y - thing.depth / 2
        if thing.height > surface.headroom or free_x < 0 or free_y < 0:
            continue
        for _ in range(6):
            x, y = rng.uniform(-free_x, free_x), rng.uniform(-free_y, free_y)
            if all(np.hypot(x - a, y - b) > 0.85 * (reach + r) for a, b, r in taken):
                taken.append((x, y, reach))
                turn = rng.normal(0, 0.25)
                piece.put(thing, surface.x + x, surface.y + y, surface.z, turn)
                break
