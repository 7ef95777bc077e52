"""Books, lying and standing."""

from __future__ import annotations

import numpy as np

from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Piece, rotation_z


def book_stack(look: Look) -> Piece:
    """Return books lying on each other."""
    rng = look.rng
    piece = Piece('book_stack', 0.26, 0.3, 0.1)
    z = 0.0
    for _ in range(int(rng.integers(1, 6))):
        thick = rng.uniform(0.015, 0.05)
        material = look.print() if rng.random() < 0.3 else look.plastic(0.6)
        piece.add(
            'box', (rng.uniform(0.07, 0.12), rng.uniform(0.1, 0.15), thick / 2),
            (*rng.uniform(-0.015, 0.015, 2), z + thick / 2), material, 'books',
            rotation=rotation_z(rng.normal(0, 0.2)),
        )  # fmt: skip
        z += thick
    return piece


def book_row(look: Look, width: float, depth: float, headroom: float) -> Piece:
    """Return upright books that fill `width` metres of a shelf, backs to the front."""
    rng = look.rng
    piece = Piece('book_row', width, depth, headroom)
    x = -width / 2
    if rng.random() < 0.35:
        height = headroom * rng.uniform(0.65, 0.92)
        while x < width / 2 - 0.02:
            w = min(rng.uniform(0.2, 0.45), width / 2 - x)
            piece.box(
                x, x + w, -depth / 2, depth / 2, 0, height * rng.uniform(0.9, 1),
                look.book_spines(), 'books',
            )  # fmt: skip
            x += w
        return piece
    common = rng.uniform(0.6, 0.9) * headroom
    while x < width / 2 - 0.015:
        w = min(rng.uniform(0.018, 0.06), width / 2 - x)
        h = np.clip(common * rng.normal(1, 0.12), 0.08, headroom * 0.97)
        front = -depth / 2 + abs(rng.normal(0, 0.012))
        piece.box(x, x + w * 0.96, front, depth / 2, 0, h, look.plastic(0.75), 'books')
        x += w
        if rng.random() < 0.06:
            x += rng.uniform(0.03, 0.15)
    return piece
