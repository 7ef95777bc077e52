"""Bathrooms."""

from __future__ import annotations

from mtl_training.worlds import clutter
from mtl_training.worlds.furniture.common import fronts
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Material, Piece, Surface, rotation_x


def toilet(look: Look) -> Piece:
    """Return a toilet with its cistern."""
    porcelain = look.pale()
    piece = Piece('toilet', 0.4, 0.68, 0.8)
    piece.add('cone', (0.11, 0.17, 0.19), (0, -0.08, 0.19), porcelain, 'objects')
    piece.add('ellipsoid', (0.19, 0.24, 0.04), (0, -0.1, 0.4), porcelain, 'objects')
    if look.rng.random() < 0.5:
        piece.add('box', (0.17, 0.02, 0.2), (0, 0.14, 0.6), porcelain, 'objects',
                  rotation=rotation_x(-0.1))  # fmt: skip
    piece.box(-0.2, 0.2, 0.16, 0.34, 0.36, 0.76, porcelain, 'objects', radius=0.03)
    piece.box(-0.21, 0.21, 0.15, 0.34, 0.75, 0.79, porcelain, 'objects', radius=0.012)
    return piece


def bathtub(look: Look) -> Piece:
    """Return a bathtub, sometimes with a curtain."""
    rng = look.rng
    w, d, h = rng.uniform(1.5, 1.75), rng.uniform(0.7, 0.8), rng.uniform(0.5, 0.6)
    porcelain = look.pale()
    piece = Piece('bathtub', w, d, h)
    t = 0.06
    piece.box(-w / 2, w / 2, -d / 2, -d / 2 + t, 0, h, porcelain, 'objects', radius=0.025)
    piece.box(-w / 2, w / 2, d / 2 - t, d / 2, 0, h, porcelain, 'objects', radius=0.025)
    piece.box(-w / 2, -w / 2 + t, -d / 2, d / 2, 0, h, porcelain, 'objects', radius=0.025)
    piece.box(w / 2 - t, w / 2, -d / 2, d / 2, 0, h, porcelain, 'objects', radius=0.025)
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0.05, 0.15, porcelain, 'objects')
    piece.leg(w / 2 - 0.1, 0, h, h + 0.15, 0.02, look.metal(), 'objects')
    if rng.random() < 0.4:
        cloth = look.fabric()
        side = rng.choice([-1, 1])
        for i in range(10):
            x = side * (w / 2 - 0.05 - i * 0.07)
            piece.add('ellipsoid', (0.045, 0.05 + 0.02 * (i % 2), 0.95),
                      (x, -d / 2 + 0.02 * (i % 2), 1.05), cloth, 'objects')  # fmt: skip
    return piece


def vanity(look: Look) -> Piece:
    """Return a washbasin on its cabinet with a mirror."""
    rng = look.rng
    w, d, h = rng.uniform(0.6, 1.4), 0.52, rng.uniform(0.8, 0.88)
    piece = Piece('vanity', w, d, h)
    body = look.body()
    piece.box(-w / 2, w / 2, -d / 2 + 0.02, d / 2, 0.08, h - 0.03, body, 'furniture')
    fronts(look, piece, -w / 2, w / 2, 0.1, h - 0.05, -d / 2 + 0.02, max(1, round(w / 0.4)), 1,
            body)  # fmt: skip
    piece.box(-w / 2, w / 2, -d / 2, d / 2, h - 0.03, h, look.counter(), 'furniture')
    thing = piece.thing('washbasin')
    mirror = piece.thing('mirror')
    piece.add('cone', (0.15, 0.2, 0.03), (0, -0.02, h + 0.03), look.pale(), 'objects', thing=thing)
    piece.add('ellipsoid', (0.16, 0.13, 0.012), (0, -0.02, h + 0.058),
              Material((0.35, 0.35, 0.34), gloss=0.05), 'objects', thing=thing)  # fmt: skip
    piece.leg(0, 0.19, h, h + 0.2, 0.015, look.metal(), 'objects', thing=thing)
    piece.box(-0.012, 0.012, 0.06, 0.2, h + 0.18, h + 0.2, look.metal(), 'objects', thing=thing)
    z = h + rng.uniform(0.25, 0.35)
    frame = look.body()
    piece.box(-w * 0.42, w * 0.42, d / 2 - 0.02, d / 2, z, z + 0.8, frame, 'objects',
              thing=mirror)  # fmt: skip
    piece.box(-w * 0.4, w * 0.4, d / 2 - 0.024, d / 2 - 0.015, z + 0.02, z + 0.78,
              Material((0.05, 0.05, 0.05), gloss=0.8, sharpness=300), 'objects',
              thing=mirror)  # fmt: skip
    piece.height = z + 0.8
    for side in (-1, 1):
        half = (w / 2 - 0.22) / 2
        if half > 0.06:
            clutter.scatter(
                look, piece, Surface(side * (w / 2 - half), 0, h, half, d * 0.4),
                (clutter.bottle, clutter.bottle, clutter.cup, clutter.box, clutter.vase), 25,
            )  # fmt: skip
    return piece
