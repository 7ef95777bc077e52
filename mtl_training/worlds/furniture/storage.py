"""Shelves, cabinets and other large pieces along walls."""

from __future__ import annotations

import numpy as np

from mtl_training.worlds import clutter
from mtl_training.worlds.furniture.common import fill_shelf, fronts
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Piece, Surface


def bookcase(look: Look) -> Piece:
    """Return shelves full of books and things."""
    rng = look.rng
    w, d, h = rng.uniform(0.6, 1.3), rng.uniform(0.25, 0.38), rng.uniform(0.8, 2.2)
    piece = Piece('bookcase', w, d, h)
    body = look.body()
    t = 0.02
    open_back = rng.random() < 0.15
    for x in (-w / 2, w / 2 - t):
        piece.box(x, x + t, -d / 2, d / 2, 0, h, body, 'furniture')
    if not open_back:
        piece.box(-w / 2, w / 2, d / 2 - 0.01, d / 2, 0, h, body.tinted(0.8), 'furniture')
    count = max(2, int(h / rng.uniform(0.28, 0.42)))
    levels = np.linspace(0.06, h - t, count + 1)
    for z in levels:
        piece.box(-w / 2, w / 2, -d / 2, d / 2, z, z + t, body, 'furniture')
    doors = rng.random() < 0.2
    for i, z in enumerate(levels[:-1]):
        room = levels[i + 1] - z - t
        if doors and z < h * 0.4:
            for side in (-1, 1):
                piece.box(side * 0.005, side * (w / 2 - 0.005), -d / 2 - 0.015, -d / 2, z + t,
                          z + t + room, body, 'furniture')  # fmt: skip
            continue
        fill_shelf(look, piece, -w / 2 + 0.03, w / 2 - 0.03, -0.01, d - 0.05, z + t, room)
    clutter.scatter(look, piece, Surface(0, 0, h, w * 0.45, d * 0.45, 0.5), clutter.ON_SHELF, 5)
    return piece


def cabinet(look: Look) -> Piece:
    """Return a closed cabinet, filing cabinet or open metal rack."""
    rng = look.rng
    w, d, h = rng.uniform(0.4, 0.9), rng.uniform(0.4, 0.6), rng.uniform(0.6, 1.7)
    piece = Piece('cabinet', w, d, h)
    body = look.body() if rng.random() < 0.6 else look.metal()
    if rng.random() < 0.2:
        for x in (-w / 2 + 0.02, w / 2 - 0.02):
            for y in (-d / 2 + 0.02, d / 2 - 0.02):
                piece.leg(x, y, 0, h, 0.015, body, 'furniture')
        for z in np.arange(0.15, h, 0.38):
            piece.box(-w / 2, w / 2, -d / 2, d / 2, z - 0.015, z, body, 'furniture')
            clutter.scatter(
                look, piece, Surface(0, 0, z, w * 0.45, d * 0.45, 0.34), clutter.ON_SHELF, 14
            )
        return piece
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0, h, body, 'furniture')
    fronts(look, piece, -w / 2, w / 2, 0.04, h - 0.02, -d / 2, int(rng.integers(1, 3)),
            int(rng.integers(1, 5)), body)  # fmt: skip
    clutter.scatter(look, piece, Surface(0, 0, h, w * 0.45, d * 0.45), clutter.ON_SHELF, 7)
    return piece


def piano(look: Look) -> Piece:
    """Return an upright piano."""
    w, d, h = 1.45, 0.6, look.rng.uniform(1.05, 1.25)
    body = look.wood() if look.rng.random() < 0.5 else look.dark()
    piece = Piece('piano', w, d, h)
    piece.box(-w / 2, w / 2, 0, d / 2, 0, h, body, 'furniture')
    piece.box(-w / 2, w / 2, -d / 2, 0, 0.6, 0.7, body, 'furniture')
    piece.box(-w / 2 + 0.06, w / 2 - 0.06, -d / 2 + 0.02, -0.06, 0.7, 0.725, look.keys(),
              'furniture')  # fmt: skip
    for x in (-w / 2 + 0.04, w / 2 - 0.04):
        piece.box(x - 0.03, x + 0.03, -d / 2 + 0.02, -d / 2 + 0.1, 0, 0.6, body, 'furniture')
    clutter.scatter(look, piece, Surface(0, d / 4, h, w * 0.45, d * 0.2), clutter.ON_CHEST, 8)
    return piece
