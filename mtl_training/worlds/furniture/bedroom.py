"""Beds and what stands beside them."""

from __future__ import annotations

import numpy as np

from mtl_training.worlds import clutter
from mtl_training.worlds.furniture.common import fronts, legs
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Material, Piece, Surface, rotation_x, rotation_z


def bed(look: Look) -> Piece:
    """Return a bed, its head at the back."""
    rng = look.rng
    w, d = float(rng.choice([0.95, 1.2, 1.45, 1.8])), rng.uniform(1.95, 2.15)
    piece = Piece('bed', w + 0.08, d + 0.1, 1.0)
    frame = look.body() if rng.random() < 0.7 else look.fabric()
    base = rng.uniform(0.2, 0.35)
    top = base + rng.uniform(0.18, 0.28)
    low = 0.0 if rng.random() < 0.4 else base - 0.14
    piece.box(-w / 2, w / 2, -d / 2, d / 2, low, base, frame, 'bed')
    if low:
        for x in (-w / 2 + 0.05, w / 2 - 0.05):
            for y in (-d / 2 + 0.05, d / 2 - 0.05):
                piece.leg(x, y, 0, low, 0.035, frame, 'bed')
    mattress = look.fabric() if rng.random() < 0.3 else Material((0.7, 0.68, 0.63), bump=0.05)
    cover = look.fabric()
    piece.box(-w / 2, w / 2, -d / 2, d / 2, base, top, mattress, 'bed', radius=0.05)
    head = rng.uniform(0.5, 0.75)
    drop = rng.uniform(0.05, 0.35)
    front = -d / 2 - 0.03
    piece.box(
        -w / 2 - 0.04, w / 2 + 0.04, front, front + d * head, max(top - drop, 0.05), top + 0.06,
        cover, 'bed', radius=0.05,
    )  # fmt: skip
    if rng.random() < 0.4:
        y = front + d * head
        piece.box(
            -w / 2 - 0.03, w / 2 + 0.03, y - 0.3, y, top - 0.05, top + 0.08, look.fabric(), 'bed',
            radius=0.05,
        )  # fmt: skip
    for _ in range(int(rng.integers(0, 4))):
        # Lumps of an unmade cover.
        piece.add(
            'ellipsoid', (rng.uniform(0.15, 0.4), rng.uniform(0.1, 0.3), rng.uniform(0.03, 0.08)),
            (rng.uniform(-w * 0.3, w * 0.3), rng.uniform(-d * 0.35, d * 0.1), top + 0.04), cover,
            'bed', rotation=rotation_z(rng.uniform(0, 3)),
        )  # fmt: skip
    wide = 2 if w > 1.3 else 1
    for row in range(int(rng.integers(1, 3))):
        for side in range(wide):
            x = (side - (wide - 1) / 2) * w / 2
            pw = min(w / wide * 0.42, 0.36)
            piece.add(
                'rounded_box', (pw, 0.2, 0.07),
                (x + rng.normal(0, 0.02), d / 2 - 0.24 - 0.16 * row, top + 0.09 + 0.05 * row),
                look.fabric(), 'objects', radius=0.062, thing=piece.thing('pillow'),
                rotation=rotation_z(rng.normal(0, 0.08)) @ rotation_x(rng.uniform(0.1, 0.9)),
            )  # fmt: skip
    style = rng.random()
    if style < 0.75:
        high = rng.uniform(0.8, 1.25)
        if style < 0.45:
            piece.box(
                -w / 2 - 0.03, w / 2 + 0.03, d / 2, d / 2 + 0.06, 0, high, frame, 'bed',
                radius=0.02 * (rng.random() < 0.5),
            )  # fmt: skip
        else:
            for x in np.linspace(-w / 2, w / 2, int(rng.integers(6, 12))):
                piece.leg(x, d / 2 + 0.03, 0, high - 0.04, 0.015, frame, 'bed')
            piece.box(
                -w / 2 - 0.03, w / 2 + 0.03, d / 2, d / 2 + 0.06, high - 0.08, high, frame, 'bed'
            )
        if rng.random() < 0.4:
            piece.box(
                -w / 2 - 0.03, w / 2 + 0.03, -d / 2 - 0.07, -d / 2 - 0.03, 0, high * 0.6, frame,
                'bed',
            )  # fmt: skip
        if rng.random() < 0.12:
            for x in (-w / 2 - 0.02, w / 2 + 0.02):
                for y in (-d / 2 - 0.05, d / 2 + 0.03):
                    piece.leg(x, y, 0, 2.0, 0.04, frame, 'bed')
    clutter.scatter(
        look, piece, Surface(0, -d * 0.1, top + 0.06, w * 0.4, d * 0.3),
        (clutter.clothes, clutter.pillow, clutter.toy, clutter.bag, clutter.papers,
         clutter.book_stack),
        rng.uniform(0, 1.6),
    )  # fmt: skip
    return piece


def nightstand(look: Look) -> Piece:
    """Return a bedside table."""
    rng = look.rng
    w, d, h = rng.uniform(0.4, 0.58), rng.uniform(0.36, 0.45), rng.uniform(0.45, 0.7)
    piece = Piece('nightstand', w, d, h)
    body = look.body()
    low = rng.uniform(0.05, 0.25)
    piece.box(-w / 2, w / 2, -d / 2, d / 2, low, h, body, 'furniture')
    legs(piece, w, d, low, 0.02, body, 'furniture', True)
    fronts(look, piece, -w / 2 + 0.01, w / 2 - 0.01, low + 0.02, h - 0.03, -d / 2, 1,
            int(rng.integers(1, 4)), body)  # fmt: skip
    if rng.random() < 0.7:
        piece.put(clutter.table_lamp(look), rng.uniform(-0.08, 0.08), 0.06, h)
    clutter.scatter(
        look, piece, Surface(0, -d * 0.25, h, w * 0.45, d * 0.2), clutter.ON_CHEST[5:], 18
    )
    return piece


def wardrobe(look: Look) -> Piece:
    """Return a wardrobe."""
    rng = look.rng
    w, d, h = rng.uniform(0.8, 2.0), rng.uniform(0.5, 0.62), rng.uniform(1.8, 2.3)
    piece = Piece('wardrobe', w, d, h)
    body = look.body()
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0, h, body, 'furniture')
    split = h * 0.25 if rng.random() < 0.3 else 0.05
    columns = max(2, round(w / 0.5))
    fronts(look, piece, -w / 2, w / 2, split, h - 0.05, -d / 2, columns, 1, body)
    if split > 0.1:
        fronts(look, piece, -w / 2, w / 2, 0.05, split, -d / 2, columns, 1, body)
    clutter.scatter(
        look, piece, Surface(0, 0, h, w * 0.45, d * 0.4, 0.35),
        (clutter.box, clutter.bag, clutter.clothes), 2.5,
    )  # fmt: skip
    return piece


def dresser(look: Look) -> Piece:
    """Return a chest of drawers or sideboard."""
    rng = look.rng
    w, d, h = rng.uniform(0.7, 1.6), rng.uniform(0.4, 0.52), rng.uniform(0.7, 1.15)
    piece = Piece('dresser', w, d, h)
    body = look.body()
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0.06, h, body, 'furniture')
    piece.box(-w / 2 + 0.03, w / 2 - 0.03, -d / 2 + 0.04, d / 2, 0, 0.06, body.tinted(0.6),
              'furniture')  # fmt: skip
    piece.box(
        -w / 2 - 0.015, w / 2 + 0.015, -d / 2 - 0.025, d / 2, h - 0.025, h, body, 'furniture'
    )
    fronts(look, piece, -w / 2 + 0.01, w / 2 - 0.01, 0.08, h - 0.04, -d / 2,
            1 if w < 0.9 else int(rng.integers(2, 4)), int(rng.integers(2, 6)), body)  # fmt: skip
    clutter.scatter(
        look, piece, Surface(0, 0, h, w * 0.46, d * 0.45), clutter.ON_CHEST, rng.uniform(3, 14)
    )
    if rng.random() < 0.25:
        mirror_z = h + rng.uniform(0.35, 0.5)
        piece.height = mirror_z + 0.35
        piece.box(-w * 0.35, w * 0.35, d / 2 - 0.05, d / 2 - 0.01, h + 0.02, mirror_z + 0.35, body,
                  'furniture')  # fmt: skip
        piece.box(
            -w * 0.32, w * 0.32, d / 2 - 0.055, d / 2 - 0.045, h + 0.05, mirror_z + 0.32,
            Material((0.03, 0.03, 0.03), gloss=0.8, sharpness=300), 'objects',
            thing=piece.thing('mirror'),
        )  # fmt: skip
    return piece
