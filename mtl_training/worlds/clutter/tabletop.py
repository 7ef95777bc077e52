"""What stands on tables and shelves."""

from __future__ import annotations

import numpy as np

from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Material, Piece, rotation_x, rotation_y, rotation_z


def bottle(look: Look) -> Piece:
    """Return a bottle or jar."""
    rng = look.rng
    radius, height = rng.uniform(0.025, 0.05), rng.uniform(0.14, 0.3)
    material = look.plastic() if rng.random() < 0.7 else look.pale()
    piece = Piece('bottle', 2 * radius, 2 * radius, height)
    piece.leg(0, 0, 0, height * 0.7, radius, material, 'objects')
    piece.add(
        'cone', (radius, radius * 0.4, height * 0.08), (0, 0, height * 0.78), material, 'objects'
    )
    piece.leg(0, 0, height * 0.84, height, radius * 0.4, look.plastic(), 'objects')
    return piece


def cup(look: Look) -> Piece:
    """Return a cup, glass or bowl."""
    rng = look.rng
    radius = rng.uniform(0.03, 0.09)
    height = rng.uniform(0.06, 0.11)
    material = look.pale() if rng.random() < 0.5 else look.plastic()
    piece = Piece('cup', 2 * radius, 2 * radius, height)
    piece.add(
        'cone', (radius * rng.uniform(0.6, 1), radius, height / 2), (0, 0, height / 2), material,
        'objects',
    )  # fmt: skip
    return piece


def plate(look: Look) -> Piece:
    """Return a plate, sometimes with fruit."""
    rng = look.rng
    radius = rng.uniform(0.08, 0.14)
    piece = Piece('plate', 2 * radius, 2 * radius, 0.02)
    piece.add('cone', (radius * 0.6, radius, 0.01), (0, 0, 0.01), look.pale(), 'objects')
    for _ in range(int(rng.integers(0, 4))):
        r = rng.uniform(0.025, 0.04)
        x, y = rng.uniform(-radius * 0.5, radius * 0.5, 2)
        piece.add('ellipsoid', (r, r, r * 0.9), (x, y, 0.02 + r), look.plastic(), 'objects')
    return piece


def box(look: Look) -> Piece:
    """Return a carton, tissue box, basket or crate."""
    rng = look.rng
    w, d = rng.uniform(0.08, 0.32, 2)
    h = rng.uniform(0.05, 0.28)
    material = look.print() if rng.random() < 0.25 else look.paper()
    piece = Piece('box', w, d, h)
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0, h, material, 'objects')
    if rng.random() < 0.3:
        piece.box(
            -w * 0.3, w * 0.3, -d * 0.25, d * 0.25, h - 0.005, h + 0.03, look.paper(), 'objects'
        )
    return piece


def papers(look: Look) -> Piece:
    """Return sheets of paper or a magazine."""
    rng = look.rng
    piece = Piece('papers', 0.3, 0.36, 0.02)
    z = 0.0
    for _ in range(int(rng.integers(1, 5))):
        material = look.print() if rng.random() < 0.3 else look.paper()
        thick = rng.uniform(0.002, 0.012)
        piece.add(
            'box', (0.105, 0.148, thick / 2), (*rng.uniform(-0.04, 0.04, 2), z + thick / 2),
            material, 'objects', rotation=rotation_z(rng.uniform(-0.6, 0.6)),
        )  # fmt: skip
        z += thick
    return piece


def toy(look: Look) -> Piece:
    """Return a soft toy."""
    rng = look.rng
    s = rng.uniform(0.6, 1.5)
    fur = look.fabric() if rng.random() < 0.5 else look.plastic(0.7)
    piece = Piece('toy', 0.16 * s, 0.16 * s, 0.26 * s)
    piece.add('ellipsoid', (0.08 * s, 0.07 * s, 0.09 * s), (0, 0, 0.09 * s), fur, 'objects')
    piece.add('ellipsoid', (0.06 * s, 0.055 * s, 0.06 * s), (0, 0, 0.2 * s), fur, 'objects')
    for side in (-1, 1):
        for dx, z, r in ((0.045, 0.25, 0.022), (0.09, 0.12, 0.03), (0.06, 0.03, 0.035)):
            piece.add(
                'ellipsoid', (r * s, r * s, r * s), (side * dx * s, -0.02 * s, z * s), fur,
                'objects',
            )  # fmt: skip
    return piece


def vase(look: Look) -> Piece:
    """Return a vase with flowers or a pot with leaves."""
    rng = look.rng
    piece = Piece('plant', 0.2, 0.2, 0.4)
    r, h = rng.uniform(0.04, 0.08), rng.uniform(0.08, 0.2)
    piece.add('cone', (r * 0.7, r, h / 2), (0, 0, h / 2), look.pale() if rng.random() < 0.5
              else look.plastic(), 'objects')  # fmt: skip
    _leaves(look, piece, h, rng.uniform(0.12, 0.28), int(rng.integers(6, 16)))
    return piece


def plant(look: Look) -> Piece:
    """Return a potted plant for the floor."""
    rng = look.rng
    piece = Piece('plant', 0.5, 0.5, 1.2)
    r, h = rng.uniform(0.12, 0.2), rng.uniform(0.2, 0.4)
    piece.add('cone', (r * 0.75, r, h / 2), (0, 0, h / 2), look.plastic(0.5), 'objects')
    piece.leg(0, 0, h, h + 0.4, 0.012, look.wood(), 'objects')
    _leaves(
        look, piece, h + rng.uniform(0, 0.35), rng.uniform(0.4, 0.8), int(rng.integers(14, 34))
    )
    return piece


def _leaves(look: Look, piece: Piece, z: float, reach: float, count: int) -> None:
    rng = look.rng
    green = Material((float(rng.uniform(0.02, 0.12)), float(rng.uniform(0.08, 0.25)), 0.03))
    for _ in range(count):
        around, lean = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 1.2)
        length = reach * rng.uniform(0.5, 1) / 2
        turn = rotation_z(around) @ rotation_y(lean)
        center = np.array([0, 0, z]) + turn @ [0, 0, length * 1.1]
        piece.add(
            'ellipsoid', (length * 0.06, length * 0.25, length), center, green, 'objects',
            rotation=turn,
        )  # fmt: skip
        if rng.random() < 0.15:
            piece.add(
                'ellipsoid', (0.025, 0.025, 0.02), center + turn @ [0, 0, length], look.plastic(),
                'objects',
            )  # fmt: skip


def table_lamp(look: Look) -> Piece:
    """Return a lamp with a shade."""
    rng = look.rng
    piece = Piece('table_lamp', 0.3, 0.3, 0.55)
    base = look.metal() if rng.random() < 0.4 else look.plastic(0.6)
    h = rng.uniform(0.18, 0.32)
    piece.leg(0, 0, 0, 0.02, 0.07, base, 'objects')
    if rng.random() < 0.5:
        piece.leg(0, 0, 0, h, 0.015, base, 'objects')
    else:
        piece.add('ellipsoid', (0.07, 0.07, h / 2), (0, 0, h / 2), base, 'objects')
    r, s = rng.uniform(0.11, 0.18), rng.uniform(0.08, 0.13)
    shade = Material((0.8, 0.66, 0.45), emission=float(rng.choice([0.0, 2.5])))
    piece.add(
        'cone', (r, r * rng.uniform(0.5, 1), s), (0, 0, h + s), shade, 'objects', casts=False
    )
    return piece


def frame(look: Look) -> Piece:
    """Return a small standing picture frame."""
    rng = look.rng
    w, h = rng.uniform(0.1, 0.2), rng.uniform(0.12, 0.25)
    piece = Piece('photo', w, 0.08, h)
    tilt = rotation_x(-0.2)
    piece.add('box', (w / 2, 0.008, h / 2), (0, 0, h / 2), look.body(), 'picture', rotation=tilt)
    piece.add(
        'box', (w / 2 - 0.015, 0.003, h / 2 - 0.015),
        np.array([0, 0, h / 2]) + tilt @ [0, -0.008, 0], look.print(), 'picture', rotation=tilt,
    )  # fmt: skip
    return piece


def ball(look: Look) -> Piece:
    """Return a ball."""
    r = look.rng.uniform(0.05, 0.14)
    piece = Piece('ball', 2 * r, 2 * r, 2 * r)
    piece.add('ellipsoid', (r, r, r), (0, 0, r), look.plastic(0.9), 'objects')
    return piece
