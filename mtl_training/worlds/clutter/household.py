"""Cushions, clothes, bags and boxes."""

from __future__ import annotations

import numpy as np

from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Piece, rotation_z


def pillow(look: Look) -> Piece:
    """Return a cushion lying flat."""
    rng = look.rng
    w, d, h = rng.uniform(0.35, 0.65), rng.uniform(0.3, 0.45), rng.uniform(0.1, 0.16)
    piece = Piece('pillow', w, d, h)
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0, h, look.fabric(), 'objects', radius=h * 0.45)
    return piece


def clothes(look: Look) -> Piece:
    """Return a heap of clothes, a towel or a blanket."""
    rng = look.rng
    piece = Piece('clothes', 0.5, 0.5, 0.15)
    for _ in range(int(rng.integers(2, 6))):
        size = rng.uniform(0.08, 0.25), rng.uniform(0.08, 0.22), rng.uniform(0.03, 0.08)
        piece.add(
            'ellipsoid', size, (*rng.uniform(-0.12, 0.12, 2), size[2] * rng.uniform(0.4, 1)),
            look.fabric(), 'objects', rotation=rotation_z(rng.uniform(0, 3)),
        )  # fmt: skip
    return piece


def bag(look: Look) -> Piece:
    """Return a backpack or handbag."""
    rng = look.rng
    w, d, h = rng.uniform(0.25, 0.4), rng.uniform(0.12, 0.22), rng.uniform(0.25, 0.45)
    cloth = look.fabric() if rng.random() < 0.5 else look.dark()
    piece = Piece('bag', w, d, h)
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0, h, cloth, 'objects', radius=0.06)
    piece.box(
        -w * 0.35, w * 0.35, -d / 2 - 0.05, -d / 2 + 0.02, 0.03, h * 0.5, cloth, 'objects',
        radius=0.03,
    )  # fmt: skip
    return piece


def bin_(look: Look) -> Piece:
    """Return a waste bin or laundry basket."""
    rng = look.rng
    r, h = rng.uniform(0.12, 0.2), rng.uniform(0.25, 0.6)
    piece = Piece('bin', 2 * r, 2 * r, h)
    material = look.plastic(0.5) if rng.random() < 0.6 else look.metal()
    piece.add('cone', (r * 0.8, r, h / 2), (0, 0, h / 2), material, 'objects')
    piece.leg(0, 0, h - 0.02, h + 0.003, r * 0.9, look.dark(), 'objects')
    return piece


def shoes(look: Look) -> Piece:
    """Return a pair of shoes."""
    rng = look.rng
    piece = Piece('shoes', 0.25, 0.3, 0.1)
    material = look.plastic(0.4)
    for side in (-1, 1):
        turn = rotation_z(rng.normal(0, 0.3))
        piece.add(
            'ellipsoid', (0.045, 0.13, 0.045), (side * 0.07, 0, 0.04), material, 'objects',
            rotation=turn,
        )  # fmt: skip
        piece.add(
            'box', (0.042, 0.12, 0.012), (side * 0.07, 0, 0.012), look.dark(), 'objects',
            rotation=turn,
        )  # fmt: skip
        piece.add('ellipsoid', (0.04, 0.05, 0.06), (side * 0.07, 0.07, 0.06), material, 'objects')
    return piece


def cartons(look: Look) -> Piece:
    """Return a stack of cartons or storage boxes."""
    rng = look.rng
    w, d = rng.uniform(0.3, 0.55, 2)
    piece = Piece('cartons', w, d, 0.9)
    z = 0.0
    for _ in range(int(rng.integers(1, 5))):
        h = rng.uniform(0.15, 0.32)
        material = look.paper() if rng.random() < 0.7 else look.print()
        piece.add(
            'box', (w / 2 * rng.uniform(0.8, 1), d / 2 * rng.uniform(0.8, 1), h / 2),
            (*rng.normal(0, 0.015, 2), z + h / 2), material, 'objects',
            rotation=rotation_z(rng.normal(0, 0.1)),
        )  # fmt: skip
        z += h
    piece.height = z
    return piece


def suitcase(look: Look) -> Piece:
    """Return an upright suitcase."""
    rng = look.rng
    w, d, h = rng.uniform(0.4, 0.55), rng.uniform(0.22, 0.3), rng.uniform(0.55, 0.75)
    shell = look.plastic(0.6) if rng.random() < 0.5 else look.dark()
    piece = Piece('suitcase', w, d, h)
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0.04, h, shell, 'objects', radius=0.05)
    for x in np.linspace(-w * 0.35, w * 0.35, 4):
        piece.box(x - 0.01, x + 0.01, -d / 2 - 0.008, d / 2, 0.1, h - 0.06, shell.tinted(0.7),
                  'objects')  # fmt: skip
    for x in (-w * 0.3, w * 0.3):
        piece.add('ellipsoid', (0.03, 0.03, 0.03), (x, 0, 0.03), look.dark(), 'objects')
        piece.leg(x * 0.5, d * 0.35, h, h + 0.3, 0.008, look.metal(), 'objects')
    piece.box(-w * 0.17, w * 0.17, d * 0.32, d * 0.38, h + 0.28, h + 0.31, look.dark(), 'objects')
    return piece


def basket(look: Look) -> Piece:
    """Return a laundry basket or toy crate that overflows."""
    rng = look.rng
    w, d, h = rng.uniform(0.4, 0.65), rng.uniform(0.3, 0.45), rng.uniform(0.22, 0.5)
    body = look.plastic(0.5) if rng.random() < 0.6 else look.fabric()
    piece = Piece('basket', w, d, h + 0.15)
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0, h, body, 'objects', radius=0.04)
    for _ in range(int(rng.integers(2, 7))):
        size = rng.uniform(0.06, 0.16, 3)
        material = look.fabric() if rng.random() < 0.6 else look.plastic()
        piece.add(
            'ellipsoid',
            size,
            (rng.uniform(-w * 0.3, w * 0.3), rng.uniform(-d * 0.25, d * 0.25), h),
            material,
            'objects',
        )
    return piece
