"""Tables and desks with what lies on them."""

from __future__ import annotations

from mtl_training.worlds import clutter
from mtl_training.worlds.furniture.common import fill_shelf, legs
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Piece, Surface


def table(look: Look) -> Piece:
    """Return a dining table, square, long or round."""
    rng = look.rng
    h = rng.uniform(0.7, 0.78)
    top = look.body()
    if rng.random() < 0.3:
        r = rng.uniform(0.45, 0.7)
        piece = Piece('table', 2 * r, 2 * r, h)
        piece.leg(0, 0, h - 0.035, h, r, top, 'table')
        if rng.random() < 0.5:
            piece.leg(0, 0, 0, h - 0.03, 0.05, top, 'table')
            piece.leg(0, 0, 0, 0.04, r * 0.5, top, 'table')
        else:
            legs(piece, 1.3 * r, 1.3 * r, h - 0.03, 0.03, top, 'table', False)
        w = d = 1.35 * r
    else:
        w, d = rng.uniform(0.9, 2.0), rng.uniform(0.75, 1.0)
        piece = Piece('table', w, d, h)
        piece.box(-w / 2, w / 2, -d / 2, d / 2, h - rng.uniform(0.02, 0.05), h, top, 'table')
        legs(piece, w, d, h - 0.02, rng.uniform(0.02, 0.045), top, 'table', rng.random() < 0.7)
        if rng.random() < 0.6:
            piece.box(
                -w / 2 + 0.05, w / 2 - 0.05, -d / 2 + 0.05, d / 2 - 0.05, h - 0.12, h - 0.03, top,
                'table',
            )  # fmt: skip
        if rng.random() < 0.15:
            piece.box(
                -w / 2 - 0.01, w / 2 + 0.01, -d / 2 - 0.01, d / 2 + 0.01, h - 0.2, h + 0.004,
                look.fabric(), 'table',
            )  # fmt: skip
    clutter.scatter(
        look, piece, Surface(0, 0, h, w * 0.46, d * 0.46), clutter.ON_TABLE, rng.uniform(1, 9)
    )
    return piece


def coffee_table(look: Look) -> Piece:
    """Return a low table, with a shelf below or of glass."""
    rng = look.rng
    w, d, h = rng.uniform(0.7, 1.3), rng.uniform(0.45, 0.7), rng.uniform(0.35, 0.48)
    piece = Piece('coffee_table', w, d, h)
    top = look.body()
    if rng.random() < 0.2:
        piece.add('ellipsoid', (w / 2, d / 2, 0.02), (0, 0, h - 0.02), top, 'table')
        legs(piece, w * 0.7, d * 0.7, h - 0.02, 0.025, top, 'table', False)
    else:
        piece.box(-w / 2, w / 2, -d / 2, d / 2, h - 0.04, h, top, 'table')
        legs(piece, w, d, h - 0.02, rng.uniform(0.02, 0.04), top, 'table', True)
        if rng.random() < 0.5:
            piece.box(-w / 2 + 0.04, w / 2 - 0.04, -d / 2 + 0.04, d / 2 - 0.04, 0.12, 0.14, top,
                      'table')  # fmt: skip
            clutter.scatter(
                look, piece, Surface(0, 0, 0.14, w * 0.4, d * 0.35, h - 0.2),
                (clutter.papers, clutter.book_stack), 5,
            )  # fmt: skip
    clutter.scatter(
        look, piece, Surface(0, 0, h, w * 0.42, d * 0.4), clutter.ON_TABLE, rng.uniform(2, 12)
    )
    return piece


def desk(look: Look) -> Piece:
    """Return a desk with its computer, papers and lamp; the sitter is at the front."""
    rng = look.rng
    w, d, h = rng.uniform(1.0, 1.7), rng.uniform(0.55, 0.8), rng.uniform(0.71, 0.77)
    piece = Piece('desk', w, d, h)
    body = look.body()
    piece.box(-w / 2, w / 2, -d / 2, d / 2, h - 0.035, h, body, 'table')
    side = 1 if rng.random() < 0.5 else -1
    if rng.random() < 0.6:
        x0 = side * (w / 2 - 0.42)
        piece.box(x0, side * (w / 2 - 0.02), -d / 2 + 0.04, d / 2 - 0.02, 0.03, h - 0.035, body,
                  'table')  # fmt: skip
        for i in range(3):
            z = 0.06 + i * (h - 0.1) / 3
            front = -d / 2 + 0.04
            piece.box(
                x0 + side * 0.02, side * (w / 2 - 0.04), front - 0.012, front, z,
                z + (h - 0.1) / 3 - 0.02, body.tinted(1.15), 'table',
            )  # fmt: skip
            piece.add(
                'ellipsoid', (0.04, 0.012, 0.012), (side * (w / 2 - 0.22), front - 0.02, z + 0.1),
                look.metal(), 'table',
            )  # fmt: skip
        piece.box(-side * (w / 2 - 0.02), -side * (w / 2 - 0.06), -d / 2 + 0.03, d / 2 - 0.02, 0,
                  h - 0.03, body, 'table')  # fmt: skip
    else:
        legs(piece, w, d, h - 0.03, 0.03, body if rng.random() < 0.5 else look.metal(), 'table',
              rng.random() < 0.7)  # fmt: skip
    if rng.random() < 0.4:
        piece.box(-w / 2 + 0.05, w / 2 - 0.05, d / 2 - 0.04, d / 2 - 0.02, h * 0.4, h - 0.04, body,
                  'table')  # fmt: skip
    x = rng.uniform(-0.2, 0.2) * w
    if rng.random() < 0.65:
        piece.put(clutter.monitor(look), x, d * 0.22, h, rng.normal(0, 0.15))
        piece.put(clutter.keyboard(look), x, -d * 0.2, h, rng.normal(0, 0.08))
    elif rng.random() < 0.6:
        piece.put(clutter.laptop(look), x, -0.02, h, rng.normal(0, 0.15))
    for sign in (-1, 1):
        half = w / 2 - 0.32 - sign * x
        if half > 0.2:
            center = sign * (w / 2 - half / 2)
            clutter.scatter(
                look, piece, Surface(center, 0, h, half / 2, d * 0.42), clutter.ON_DESK,
                rng.uniform(4, 16),
            )  # fmt: skip
    if rng.random() < 0.3:
        hutch_z = h + rng.uniform(0.35, 0.5)
        piece.height = hutch_z + 0.32
        for z in (hutch_z, hutch_z + 0.32):
            piece.box(-w / 2, w / 2, d / 2 - 0.24, d / 2, z - 0.02, z, body, 'furniture')
        for x in (-w / 2, w / 2 - 0.02):
            piece.box(x, x + 0.02, d / 2 - 0.24, d / 2, h, hutch_z + 0.32, body, 'furniture')
        fill_shelf(look, piece, -w / 2 + 0.03, w / 2 - 0.03, d / 2 - 0.12, 0.22, hutch_z, 0.28)
    return piece
