"""Televisions, their stands, and standing lamps."""

from __future__ import annotations

from mtl_training.worlds import clutter
from mtl_training.worlds.furniture.common import fill_shelf, fronts
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Material, Piece, Surface


def television(look: Look, width: float) -> Piece:
    """Return a flat television, standing on its foot."""
    rng = look.rng
    w, h = width, width * 0.57
    piece = Piece('tv', w, 0.25, h + 0.06)
    frame = look.dark() if rng.random() < 0.85 else look.metal()
    piece.box(-0.2, 0.2, -0.1, 0.1, 0, 0.02, frame, 'tv')
    piece.box(-0.05, 0.05, 0, 0.03, 0, 0.1, frame, 'tv')
    piece.box(-w / 2, w / 2, -0.03, 0.03, 0.05, 0.05 + h, frame, 'tv')
    piece.box(-w / 2 + 0.025, w / 2 - 0.025, -0.034, -0.029, 0.08, 0.025 + h, look.screen(), 'tv')
    return piece


def old_television(look: Look) -> Piece:
    """Return a deep television with a tube."""
    rng = look.rng
    w = rng.uniform(0.5, 0.8)
    h, d = w * 0.8, w * 0.7
    piece = Piece('tv', w, d, h)
    frame = look.dark() if rng.random() < 0.6 else look.metal()
    piece.box(-w / 2, w / 2, -d / 2, -d / 2 + 0.12, 0, h, frame, 'tv', radius=0.02)
    piece.box(-w * 0.4, w * 0.4, -d / 2 + 0.1, d / 2, 0.05, h * 0.9, frame, 'tv', radius=0.05)
    piece.box(
        -w * 0.43, w * 0.43, -d / 2 - 0.012, -d / 2 + 0.01, h * 0.18, h * 0.94, look.screen(),
        'tv', radius=0.015,
    )  # fmt: skip
    return piece


def tv_stand(look: Look) -> Piece:
    """Return a low board or wall unit with a television."""
    rng = look.rng
    w, d, h = rng.uniform(1.0, 1.9), rng.uniform(0.4, 0.5), rng.uniform(0.4, 0.7)
    piece = Piece('tv_stand', w, d, h)
    body = look.body()
    piece.box(-w / 2, w / 2, -d / 2, d / 2, h - 0.03, h, body, 'furniture')
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0.02, 0.06, body, 'furniture')
    piece.box(-w / 2, w / 2, d / 2 - 0.02, d / 2, 0.02, h, body, 'furniture')
    columns = int(rng.integers(2, 4))
    for i in range(columns + 1):
        x = -w / 2 + (w - 0.03) * i / columns
        piece.box(x, x + 0.03, -d / 2, d / 2, 0, h, body, 'furniture')
        if i < columns:
            a, b = x + 0.04, x + (w - 0.03) / columns - 0.01
            if rng.random() < 0.4:
                fronts(look, piece, a - 0.01, b + 0.01, 0.06, h - 0.03, -d / 2, 1,
                        int(rng.integers(1, 3)), body)  # fmt: skip
            else:
                fill_shelf(look, piece, a, b, 0, d - 0.08, 0.06, h - 0.12)
    if rng.random() < 0.75:
        size = min(w * 0.85, rng.uniform(0.7, 1.25))
        piece.put(television(look, size), rng.uniform(-0.1, 0.1), 0.05, h, rng.normal(0, 0.04))
    else:
        piece.put(old_television(look), 0, 0, h, rng.normal(0, 0.1))
    piece.height = h + 0.8
    for side in (-1, 1):
        clutter.scatter(
            look, piece, Surface(side * w * 0.45, 0, h, w * 0.06, d * 0.4), clutter.ON_CHEST, 30
        )
    return piece


def floor_lamp(look: Look) -> Piece:
    """Return a standing lamp."""
    rng = look.rng
    h = rng.uniform(1.3, 1.8)
    metal = look.metal()
    piece = Piece('floor_lamp', 0.4, 0.4, h)
    piece.leg(0, 0, 0, 0.025, 0.13, metal, 'objects')
    piece.leg(0, 0, 0, h - 0.2, 0.012, metal, 'objects')
    shade = Material((0.8, 0.68, 0.48), emission=float(rng.choice([0, 2.2])))
    r = rng.uniform(0.13, 0.22)
    piece.add('cone', (r, r * rng.uniform(0.5, 1.5), 0.12), (0, 0, h - 0.12), shade, 'objects',
              casts=False)  # fmt: skip
    return piece
