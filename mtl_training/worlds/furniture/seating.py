"""What people sit on."""

from __future__ import annotations

import numpy as np

from mtl_training.worlds import clutter
from mtl_training.worlds.furniture.common import legs
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Material, Piece, Surface, rotation_x, rotation_y, rotation_z


def sofa(look: Look) -> Piece:
    """Return a sofa for two to four."""
    return _couch(look, int(look.rng.integers(2, 5)), 'sofa', 'sofa')


def armchair(look: Look) -> Piece:
    """Return an upholstered chair."""
    return _couch(look, 1, 'armchair', 'chair')


def _couch(look: Look, seats: int, name: str, label: str) -> Piece:
    rng = look.rng
    seat_w = rng.uniform(0.55, 0.75)
    arm, d = rng.uniform(0.08, 0.24), rng.uniform(0.8, 1.0)
    w = seats * seat_w + 2 * arm
    cloth = look.fabric() if rng.random() < 0.75 else look.lacquer()
    seat, back = rng.uniform(0.38, 0.47), rng.uniform(0.75, 0.98)
    arm_z = rng.uniform(seat + 0.06, min(back, 0.68))
    piece = Piece(name, w, d, back)
    foot = rng.uniform(0.02, 0.14)
    soft = rng.uniform(0.04, 0.09)
    piece.box(-w / 2 + 0.02, w / 2 - 0.02, -d / 2 + 0.03, d / 2, foot, seat - 0.12, cloth, label,
              radius=0.03)  # fmt: skip
    for x in (-w / 2 + 0.06, w / 2 - 0.06):
        for y in (-d / 2 + 0.08, d / 2 - 0.08):
            piece.leg(x, y, 0, foot, 0.025, look.wood(), label)
    piece.box(
        -w / 2 + 0.02, w / 2 - 0.02, d / 2 - 0.22, d / 2, foot, back - 0.05, cloth, label,
        radius=soft,
    )  # fmt: skip
    for side in (-1, 1):
        piece.box(
            side * w / 2, side * (w / 2 - arm), -d / 2 + 0.02, d / 2, foot, arm_z, cloth, label,
            radius=min(soft, arm * 0.45),
        )  # fmt: skip
    cushion = cloth if rng.random() < 0.8 else look.fabric()
    for i in range(seats):
        x = -w / 2 + arm + seat_w * (i + 0.5)
        half = seat_w / 2 - 0.004
        piece.box(x - half, x + half, -d / 2, d / 2 - 0.2, seat - 0.14, seat, cushion, label,
                  radius=soft)  # fmt: skip
        piece.add(
            'rounded_box', (half, 0.1, (back - seat) / 2), (x, d / 2 - 0.24, (back + seat) / 2),
            cushion, label, radius=soft, rotation=rotation_x(-rng.uniform(0.05, 0.25)),
        )  # fmt: skip
    for _ in range(int(rng.integers(0, seats + 2))):
        x = rng.uniform(-w / 2 + arm + 0.2, w / 2 - arm - 0.2) if seats > 1 else 0
        s = rng.uniform(0.18, 0.24)
        piece.add(
            'rounded_box', (s, 0.06, s), (x, d / 2 - 0.4, seat + s * 0.95), look.fabric(),
            'objects', radius=0.05, thing=piece.thing('cushion'),
            rotation=rotation_z(rng.normal(0, 0.3)) @ rotation_x(-rng.uniform(0.2, 0.5))
            @ rotation_y(rng.normal(0, 0.2)),
        )  # fmt: skip
    if rng.random() < 0.3:
        piece.box(
            -0.3, 0.3, -d / 2 - 0.02, d / 2 - 0.15, seat - 0.08, seat + 0.03, look.fabric(),
            'objects', radius=0.03, thing=piece.thing('blanket'),
        )  # fmt: skip
    return piece


def chair(look: Look) -> Piece:
    """Return a dining chair; the sitter looks to the front."""
    rng = look.rng
    w, d, seat = rng.uniform(0.4, 0.48), rng.uniform(0.4, 0.48), rng.uniform(0.43, 0.48)
    high = rng.uniform(0.8, 1.08)
    frame = look.body() if rng.random() < 0.75 else look.metal()
    piece = Piece('chair', w, d, high)
    r = rng.uniform(0.013, 0.024)
    lean = rng.uniform(0.03, 0.16)
    for x in (-w / 2 + r, w / 2 - r):
        piece.leg(x, -d / 2 + r, 0, seat, r, frame, 'chair')
        piece.leg(x, d / 2 - r, 0, seat, r, frame, 'chair')
        length = (high - seat) / 2
        piece.add(
            'cylinder', (r, length / np.cos(lean), 0),
            (x, d / 2 - r + np.tan(lean) * length, seat + length), frame, 'chair',
            rotation=rotation_x(-lean),
        )  # fmt: skip
        if rng.random() < 0.5:
            piece.box(x - r / 2, x + r / 2, -d / 2, d / 2, seat * 0.4, seat * 0.4 + 0.02, frame,
                      'chair')  # fmt: skip
    cover = look.fabric() if rng.random() < 0.5 else frame
    piece.box(
        -w / 2, w / 2, -d / 2, d / 2, seat - 0.02, seat + rng.uniform(0.01, 0.05), cover, 'chair',
        radius=0.02,
    )  # fmt: skip

    def across(z0: float, z1: float, material: Material) -> None:
        z = (z0 + z1) / 2
        piece.add(
            'box', (w / 2 - r, 0.01, (z1 - z0) / 2),
            (0, d / 2 - r + np.tan(lean) * (z - seat), z), material, 'chair',
            rotation=rotation_x(-lean),
        )  # fmt: skip

    style = rng.random()
    if style < 0.35:
        across(seat + 0.12, high, cover)
    elif style < 0.7:
        bars = int(rng.integers(2, 5))
        for i in range(bars):
            z = seat + 0.1 + (high - seat - 0.13) * (i + 0.5) / bars
            across(z - 0.03, z + 0.03, frame)
    else:
        across(high - 0.08, high, frame)
        count = int(rng.integers(3, 7))
        for x in np.linspace(-w / 2 + 0.06, w / 2 - 0.06, count):
            length = (high - seat) / 2
            piece.add(
                'cylinder', (0.008, length, 0),
                (x, d / 2 - r + np.tan(lean) * length, seat + length), frame, 'chair',
                rotation=rotation_x(-lean),
            )  # fmt: skip
    piece.depth += 0.1
    if rng.random() < 0.12:
        piece.put(clutter.clothes(look), 0, 0, seat + 0.03)
    elif rng.random() < 0.12:
        piece.box(
            -w / 2 - 0.02, w / 2 + 0.02, d / 2 - 0.03, d / 2 + 0.1, high - 0.3, high + 0.03,
            look.fabric(), 'objects', radius=0.04, thing=piece.thing('coat'),
        )  # fmt: skip
    return piece


def office_chair(look: Look) -> Piece:
    """Return a swivel chair on castors."""
    rng = look.rng
    seat, high = rng.uniform(0.43, 0.52), rng.uniform(0.85, 1.15)
    piece = Piece('office_chair', 0.62, 0.62, high)
    metal, cloth = look.dark() if rng.random() < 0.6 else look.metal(), look.fabric()
    if rng.random() < 0.5:
        cloth = look.dark()
    start = rng.uniform(0, 1)
    for i in range(5):
        angle = start + i * 2 * np.pi / 5
        piece.add(
            'box', (0.14, 0.02, 0.015), (0.15 * np.cos(angle), 0.15 * np.sin(angle), 0.075), metal,
            'chair', rotation=rotation_z(angle),
        )  # fmt: skip
        piece.add(
            'ellipsoid', (0.03, 0.03, 0.03), (0.28 * np.cos(angle), 0.28 * np.sin(angle), 0.03),
            look.dark(), 'chair',
        )  # fmt: skip
    piece.leg(0, 0, 0.07, seat - 0.05, 0.025, metal, 'chair')
    piece.box(-0.25, 0.25, -0.24, 0.24, seat - 0.06, seat + 0.03, cloth, 'chair', radius=0.04)
    tilt = rotation_x(-rng.uniform(0.05, 0.2))
    half = (high - seat - 0.1) / 2
    piece.add(
        'rounded_box', (rng.uniform(0.19, 0.24), 0.035, half), (0, 0.25, high - half), cloth,
        'chair', radius=0.03, rotation=tilt,
    )  # fmt: skip
    piece.box(-0.03, 0.03, 0.24, 0.27, seat - 0.05, seat + 0.2, metal, 'chair')
    if rng.random() < 0.6:
        for x in (-0.27, 0.27):
            piece.box(x - 0.02, x + 0.02, -0.02, 0.02, seat - 0.03, seat + 0.19, metal, 'chair')
            piece.box(
                x - 0.03, x + 0.03, -0.14, 0.12, seat + 0.18, seat + 0.21, look.dark(), 'chair',
                radius=0.012,
            )  # fmt: skip
    return piece


def stool(look: Look) -> Piece:
    """Return a stool, low or at bar height."""
    rng = look.rng
    r, h = rng.uniform(0.15, 0.2), float(rng.choice([0.45, 0.65, 0.75]))
    piece = Piece('stool', 2 * r, 2 * r, h)
    frame = look.body() if rng.random() < 0.6 else look.metal()
    cover = look.fabric() if rng.random() < 0.5 else frame
    piece.leg(0, 0, h - 0.05, h, r, cover, 'chair')
    for i in range(4):
        angle = i * np.pi / 2 + 0.7
        top = np.array([np.cos(angle), np.sin(angle), 0]) * r * 0.6
        turn = rotation_z(angle) @ rotation_y(-0.08)
        piece.add(
            'cylinder', (0.016, h / 2 - 0.02, 0), (top[0] * 1.2, top[1] * 1.2, h / 2 - 0.02),
            frame, 'chair', rotation=turn,
        )  # fmt: skip
    return piece


def ottoman(look: Look) -> Piece:
    """Return a footstool or pouf."""
    w, d, h = look.rng.uniform(0.45, 0.8), look.rng.uniform(0.4, 0.6), look.rng.uniform(0.35, 0.45)
    piece = Piece('ottoman', w, d, h)
    piece.box(-w / 2, w / 2, -d / 2, d / 2, 0.04, h, look.fabric(), 'sofa', radius=0.06)
    legs(piece, w, d, 0.06, 0.02, look.wood(), 'sofa', False)
    return piece


def bench(look: Look) -> Piece:
    """Return a bench of wood."""
    w, d, h = look.rng.uniform(0.9, 1.5), 0.38, 0.45
    piece = Piece('bench', w, d, h)
    body = look.body()
    piece.box(-w / 2, w / 2, -d / 2, d / 2, h - 0.05, h, body, 'chair')
    legs(piece, w, d, h - 0.05, 0.03, body, 'chair', True)
    clutter.scatter(
        look, piece, Surface(0, 0, h, w * 0.45, d * 0.45),
        (clutter.bag, clutter.clothes, clutter.pillow, clutter.box), 3,
    )  # fmt: skip
    return piece
