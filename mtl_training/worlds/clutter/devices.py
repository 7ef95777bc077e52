"""Computers, kitchen machines and other devices."""

from __future__ import annotations

import numpy as np

from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Piece, rotation_x


def laptop(look: Look) -> Piece:
    """Return an open laptop, its screen to the front."""
    rng = look.rng
    piece = Piece('laptop', 0.34, 0.3, 0.24)
    body = look.metal() if rng.random() < 0.5 else look.dark()
    piece.box(-0.17, 0.17, -0.12, 0.11, 0, 0.018, body, 'objects')
    piece.box(-0.15, 0.15, -0.02, 0.09, 0.018, 0.021, look.keys(), 'objects')
    tilt = rotation_x(-rng.uniform(0.05, 0.5))
    piece.add('box', (0.17, 0.006, 0.11), (0, 0.16, 0.12), body, 'objects', rotation=tilt)
    piece.add(
        'box', (0.158, 0.003, 0.098), np.array([0, 0.16, 0.12]) + tilt @ [0, -0.0075, 0],
        look.screen(), 'objects', rotation=tilt,
    )  # fmt: skip
    return piece


def monitor(look: Look) -> Piece:
    """Return a computer's screen on its foot."""
    rng = look.rng
    w = rng.uniform(0.4, 0.6)
    h = w * rng.uniform(0.56, 0.75)
    frame = look.dark() if rng.random() < 0.75 else look.metal()
    piece = Piece('monitor', w, 0.2, h + 0.12)
    piece.box(-0.12, 0.12, -0.09, 0.09, 0, 0.015, frame, 'objects')
    piece.box(-0.03, 0.03, 0.02, 0.05, 0, 0.2, frame, 'objects')
    piece.box(-w / 2, w / 2, -0.02, 0.02, 0.1, 0.1 + h, frame, 'objects')
    piece.box(
        -w / 2 + 0.02, w / 2 - 0.02, -0.024, -0.019, 0.12, 0.08 + h, look.screen(), 'objects'
    )
    return piece


def keyboard(look: Look) -> Piece:
    """Return a keyboard and a mouse."""
    piece = Piece('keyboard', 0.55, 0.16, 0.03)
    piece.box(-0.26, 0.17, -0.07, 0.07, 0, 0.02, look.keys(), 'objects')
    piece.add('ellipsoid', (0.03, 0.05, 0.02), (0.24, 0, 0.015), look.dark(), 'objects')
    return piece


def appliance(look: Look) -> Piece:
    """Return a microwave, toaster, printer or stereo."""
    rng = look.rng
    w, d, h = rng.uniform(0.25, 0.5), rng.uniform(0.22, 0.36), rng.uniform(0.16, 0.32)
    piece = Piece('appliance', w, d, h)
    body = look.metal() if rng.random() < 0.4 else look.lacquer()
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0, h, body, 'objects', radius=0.02)
    piece.box(
        -w * 0.42, w * 0.2, -d / 2 - 0.004, -d / 2 + 0.01, h * 0.2, h * 0.8, look.dark(), 'objects'
    )
    piece.box(
        w * 0.26, w * 0.44, -d / 2 - 0.003, -d / 2 + 0.01, h * 0.15, h * 0.85, look.keys(),
        'objects',
    )  # fmt: skip
    return piece


def fan(look: Look) -> Piece:
    """Return a standing fan."""
    rng = look.rng
    h = rng.uniform(0.5, 1.2)
    body = look.pale() if rng.random() < 0.5 else look.dark()
    piece = Piece('fan', 0.42, 0.3, h + 0.2)
    piece.leg(0, 0, 0, 0.03, 0.17, body, 'objects')
    piece.leg(0, 0, 0, h, 0.016, body, 'objects')
    piece.add('cylinder', (0.2, 0.04, 0), (0, -0.06, h), look.metal(), 'objects',
              rotation=rotation_x(np.pi / 2 + 0.1))  # fmt: skip
    piece.add('ellipsoid', (0.06, 0.09, 0.06), (0, 0.04, h), body, 'objects')
    return piece


def heater(look: Look) -> Piece:
    """Return a small heater, loudspeaker, computer case or air purifier."""
    rng = look.rng
    w, d, h = rng.uniform(0.18, 0.45), rng.uniform(0.18, 0.45), rng.uniform(0.35, 0.75)
    body = look.dark() if rng.random() < 0.5 else look.lacquer()
    piece = Piece('device', w, d, h)
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0, h, body, 'objects')
    front = look.keys() if rng.random() < 0.5 else body.tinted(0.6)
    piece.box(-w * 0.4, w * 0.4, -d / 2 - 0.006, -d / 2 + 0.01, h * 0.1, h * 0.9, front, 'objects')
    return piece


def guitar(look: Look) -> Piece:
    """Return a guitar leaning back."""
    piece = Piece('guitar', 0.4, 0.4, 1.0)
    wood = look.wood()
    tilt = rotation_x(-0.25)
    for radius, z in ((0.19, 0.22), (0.14, 0.48)):
        piece.add('cylinder', (radius, 0.045, 0), tilt @ np.array([0, 0, z]), wood, 'objects',
                  rotation=tilt @ rotation_x(np.pi / 2))  # fmt: skip
    piece.add('box', (0.025, 0.015, 0.26), tilt @ np.array([0, -0.03, 0.78]), look.dark(),
              'objects', rotation=tilt)  # fmt: skip
    return piece
