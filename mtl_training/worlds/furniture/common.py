"""What several pieces of furniture have in common: legs, filled shelves, fronts."""

from __future__ import annotations

from mtl_training.worlds import clutter
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Material, Piece, Surface


def legs(piece: Piece, w: float, d: float, z: float, r: float, material: Material, label: str,
          square: bool) -> None:  # fmt: skip
    """Add four legs of radius `r` up to `z` at the corners of a footprint `w` by `d`."""
    for x in (-w / 2 + r + 0.03, w / 2 - r - 0.03):
        for y in (-d / 2 + r + 0.03, d / 2 - r - 0.03):
            if square:
                piece.box(x - r, x + r, y - r, y + r, 0, z, material, label)
            else:
                piece.leg(x, y, 0, z, r, material, label)


def fill_shelf(
    look: Look, piece: Piece, x0: float, x1: float, y: float, depth: float, z: float, room: float
) -> None:
    """Put books and things on a shelf from x0 to x1."""
    rng = look.rng
    x = x0
    while x < x1 - 0.1:
        pick = rng.random()
        if pick < 0.5:
            w = min(rng.uniform(0.2, 0.7), x1 - x)
            if min(room, 0.33) > 0.12:
                row = clutter.book_row(look, w, depth * rng.uniform(0.65, 0.9), min(room, 0.33))
                piece.put(row, x + w / 2, y + 0.01, z)
        elif pick < 0.85:
            w = min(rng.uniform(0.2, 0.4), x1 - x)
            clutter.scatter(
                look, piece, Surface(x + w / 2, y, z, w / 2, depth / 2, room), clutter.ON_SHELF,
                14,
            )  # fmt: skip
        else:
            w = rng.uniform(0.1, 0.3)
        x += w + 0.02


def fronts(
    look: Look, piece: Piece, x0: float, x1: float, z0: float, z1: float, y: float,
    columns: int, rows: int, material: Material,
) -> None:  # fmt: skip
    """Add drawers or doors with handles to the face at y."""
    rng = look.rng
    handle = look.metal()
    knob = rng.random() < 0.5
    panel = material.tinted(rng.uniform(0.92, 1.12))
    inset = rng.random() < 0.4
    for i in range(columns):
        a, b = x0 + (x1 - x0) * i / columns + 0.008, x0 + (x1 - x0) * (i + 1) / columns - 0.008
        for j in range(rows):
            low, high = z0 + (z1 - z0) * j / rows + 0.006, z0 + (z1 - z0) * (j + 1) / rows - 0.006
            piece.box(a, b, y - 0.015, y, low, high, panel, 'furniture')
            if inset and b - a > 0.2 and high - low > 0.16:
                piece.box(a + 0.05, b - 0.05, y - 0.018, y - 0.01, low + 0.05, high - 0.05,
                          panel.tinted(0.85), 'furniture')  # fmt: skip
            door = (high - low) > (b - a)
            x = (b - 0.04 if i % 2 == 0 else a + 0.04) if door else (a + b) / 2
            z = (low + high) / 2
            size = (0.015, 0.015, 0.015) if knob else (
                (0.008, 0.012, 0.06) if door else (0.06, 0.012, 0.008))  # fmt: skip
            piece.add('ellipsoid', size, (x, y - 0.028, z), handle, 'furniture')
