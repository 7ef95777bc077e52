"""Kitchens."""

from __future__ import annotations

from mtl_training.worlds import clutter
from mtl_training.worlds.furniture.common import fronts
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Material, Piece, Surface


def kitchen_row(look: Look, width: float, *, upper: bool = True) -> Piece:
    """Return base cabinets with a counter, sink or stove, and cabinets on the wall."""
    rng = look.rng
    d, h = 0.62, 0.9
    piece = Piece('kitchen_row', width, d, h)
    body, counter = look.body(), look.counter()
    piece.box(-width / 2, width / 2, -d / 2 + 0.07, d / 2, 0, 0.1, look.dark(), 'furniture')
    piece.box(-width / 2, width / 2, -d / 2 + 0.03, d / 2, 0.1, h - 0.04, body, 'furniture')
    piece.box(-width / 2, width / 2, -d / 2, d / 2, h - 0.04, h, counter, 'furniture')
    front = -d / 2 + 0.03
    x = -width / 2
    sink = stove = False
    while x < width / 2 - 0.3:
        w = min(float(rng.choice([0.4, 0.5, 0.6])), width / 2 - x)
        pick = rng.random()
        if pick < 0.18 and not stove and w >= 0.5:
            stove = True
            steel = look.metal() if rng.random() < 0.6 else look.pale()
            piece.box(x + 0.01, x + w - 0.01, front - 0.02, front, 0.12, h - 0.02, steel,
                      'furniture')  # fmt: skip
            piece.box(x + 0.08, x + w - 0.08, front - 0.025, front - 0.02, 0.25, 0.6, look.dark(),
                      'furniture')  # fmt: skip
            piece.box(x + 0.03, x + w - 0.03, -d / 2 + 0.06, d / 2 - 0.06, h, h + 0.01,
                      look.dark(), 'furniture')  # fmt: skip
            if rng.random() < 0.6:
                r = rng.uniform(0.09, 0.13)
                piece.leg(x + w / 2, 0, h + 0.01, h + rng.uniform(0.08, 0.18), r, look.metal(),
                          'objects', thing=piece.thing('pot'))  # fmt: skip
        elif pick < 0.4 and not sink and w >= 0.5:
            sink = True
            basin = piece.thing('sink')
            piece.box(x + 0.04, x + w - 0.04, -0.2, 0.18, h, h + 0.008, look.metal(), 'objects',
                      thing=basin)  # fmt: skip
            piece.box(x + 0.08, x + w - 0.08, -0.16, 0.12, h + 0.004, h + 0.01,
                      Material((0.12, 0.12, 0.12), gloss=0.2), 'objects',
                      thing=basin)  # fmt: skip
            piece.leg(x + w / 2, 0.22, h, h + 0.25, 0.015, look.metal(), 'objects',
                      thing=basin)  # fmt: skip
            piece.box(x + w / 2 - 0.012, x + w / 2 + 0.012, 0.06, 0.23, h + 0.24, h + 0.265,
                      look.metal(), 'objects', thing=basin)  # fmt: skip
            fronts(look, piece, x, x + w, 0.12, h - 0.05, front, 2, 1, body)
        else:
            fronts(look, piece, x, x + w, 0.12, h - 0.05, front, 1, int(rng.choice([1, 3, 4])),
                    body)  # fmt: skip
            clutter.scatter(
                look, piece, Surface(x + w / 2, 0.05, h, w * 0.45, 0.2, 0.45), clutter.ON_COUNTER,
                rng.uniform(4, 16),
            )  # fmt: skip
        x += w
    piece.box(-width / 2, width / 2, d / 2 - 0.012, d / 2, h, h + 0.1, counter, 'furniture')
    if upper:
        low, high = rng.uniform(1.38, 1.5), rng.uniform(2.0, 2.3)
        gap = rng.uniform(-0.5, 0.5) * width * 0.6 if rng.random() < 0.5 else None
        x = -width / 2
        while x < width / 2 - 0.3:
            w = min(float(rng.choice([0.4, 0.6, 0.8])), width / 2 - x)
            if gap is None or abs(x + w / 2 - gap) > 0.45:
                y = d / 2 - 0.34
                piece.box(x, x + w, y, d / 2, low, high, body, 'furniture')
                fronts(look, piece, x, x + w, low, high, y, 1 if w < 0.5 else 2, 1, body)
            elif rng.random() < 0.5:
                piece.box(x, x + w, d / 2 - 0.36, d / 2, low + 0.1, low + 0.42, look.metal(),
                          'objects', thing=piece.thing('hood'))  # fmt: skip
            x += w
        piece.height = high
    return piece


def fridge(look: Look) -> Piece:
    """Return a refrigerator."""
    rng = look.rng
    w, d, h = rng.uniform(0.6, 0.9), rng.uniform(0.62, 0.75), rng.uniform(1.5, 1.85)
    piece = Piece('fridge', w, d, h)
    body = look.metal() if rng.random() < 0.5 else look.pale()
    piece.box(-w / 2, w / 2, -d / 2 + 0.05, d / 2, 0, h, body, 'furniture')
    split = h * rng.uniform(0.3, 0.68)
    for z0, z1 in ((0.05, split - 0.005), (split + 0.005, h)):
        piece.box(-w / 2, w / 2, -d / 2, -d / 2 + 0.045, z0, z1, body, 'furniture', radius=0.012)
        piece.leg(w / 2 - 0.06, -d / 2 - 0.03, (z0 + z1) / 2 - 0.18, (z0 + z1) / 2 + 0.18, 0.012,
                  look.metal(), 'furniture')  # fmt: skip
    for _ in range(int(rng.integers(0, 5))):
        x, z = rng.uniform(-w * 0.35, w * 0.2), rng.uniform(split + 0.15, h - 0.15)
        s = rng.uniform(0.03, 0.1)
        piece.box(x, x + s, -d / 2 - 0.003, -d / 2 + 0.002, z, z + s * 1.3,
                  look.print() if rng.random() < 0.5 else look.paper(), 'objects',
                  thing=piece.thing('note'))  # fmt: skip
    clutter.scatter(look, piece, Surface(0, 0, h, w * 0.4, d * 0.35, 0.4), clutter.ON_COUNTER, 5)
    return piece


def island(look: Look) -> Piece:
    """Return a free-standing kitchen block."""
    piece = kitchen_row(look, look.rng.uniform(1.0, 1.8), upper=False)
    piece.name = 'island'
    piece.depth += 0.3
    return piece
