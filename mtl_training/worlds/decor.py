"""Pictures, shelves and switches on the walls, radiators, lamps on the ceiling."""

from __future__ import annotations

import numpy as np

from mtl_training.worlds import clutter, furniture
from mtl_training.worlds.lights import Light
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Material, Piece, Surface, rotation_z
from mtl_training.worlds.plan import SIDES, TURN, Room
from mtl_training.worlds.site import Site

MIRROR = Material((0.05, 0.05, 0.05), gloss=0.8, sharpness=300)


def _mount(site: Site, room: Room, piece: Piece, low: float, off: float) -> None:
    """Hang a piece on a free stretch of wall, its foot `low` metres up, its middle `off` away."""
    where = site.hang(room, piece.width, low, low + piece.height)
    if where:
        side, along = where
        x, y = room.on_wall(side, along, off)
        site.place(piece, x, y, low, TURN[side])


def framed_picture(look: Look) -> Piece:
    """Return a print in a frame, or a poster."""
    rng = look.rng
    width, height = rng.uniform(0.22, 1.0), rng.uniform(0.25, 0.9)
    piece = Piece('picture', width, 0.04, height)
    edge = rng.uniform(0.015, 0.05)
    if rng.random() < 0.75:
        frame = look.body() if rng.random() < 0.8 else look.metal()
        piece.box(-width / 2, width / 2, -0.015, 0.015, 0, height, frame, 'picture')
        piece.box(-width / 2 + edge, width / 2 - edge, -0.019, 0, edge, height - edge,
                  look.print(), 'picture')  # fmt: skip
    else:
        piece.box(-width / 2, width / 2, -0.003, 0.015, 0, height, look.print(), 'picture')
    return piece


def board(look: Look) -> Piece:
    """Return a whiteboard or a board of cork with notes."""
    rng = look.rng
    w, h = rng.uniform(0.6, 2.2), rng.uniform(0.6, 1.1)
    piece = Piece('whiteboard', w, 0.04, h)
    piece.box(-w / 2, w / 2, -0.01, 0.02, 0, h, look.metal(), 'objects')
    face = Material((0.8, 0.8, 0.8), gloss=0.05, sharpness=60)
    if rng.random() < 0.4:
        face = Material((0.3, 0.2, 0.11))
    piece.box(-w / 2 + 0.03, w / 2 - 0.03, -0.013, 0, 0.03, h - 0.03, face, 'objects')
    for _ in range(int(rng.integers(0, 8))):
        x, z = rng.uniform(-w / 2 + 0.15, w / 2 - 0.15), rng.uniform(0.2, h - 0.2)
        piece.box(x - 0.1, x + 0.1, -0.016, -0.01, z - 0.14, z + 0.14, look.paper(), 'objects')
    return piece


def shelf(look: Look) -> Piece:
    """Return a board on the wall with books or things."""
    rng = look.rng
    w = rng.uniform(0.5, 1.2)
    piece = Piece('shelf', w, 0.22, 0.38)
    piece.box(-w / 2, w / 2, -0.11, 0.11, 0, 0.03, look.body(), 'furniture')
    if rng.random() < 0.45:
        piece.put(clutter.book_row(look, w * rng.uniform(0.3, 0.7), 0.16, 0.28), -w * 0.12, 0.02,
                  0.03)  # fmt: skip
    else:
        surface = Surface(0, 0, 0.03, w / 2, 0.1, 0.4)
        clutter.scatter(look, piece, surface, clutter.ON_SHELF, 16)
    return piece


def switch(look: Look) -> Piece:
    """Return a light switch, socket or thermostat."""
    piece = Piece('switch', 0.08, 0.02, 0.12)
    piece.box(-0.04, 0.04, -0.005, 0.02, 0, 0.12, look.pale(), 'objects')
    return piece


def coats(look: Look) -> Piece:
    """Return hooks with coats, or a rail with towels."""
    rng = look.rng
    piece = Piece('coats', 0.7, 0.2, 0.8)
    if rng.random() < 0.5:
        piece.box(-0.35, 0.35, 0, 0.03, 0.68, 0.75, look.body(), 'objects')
        for x in (-0.22, 0.02, 0.24)[: int(rng.integers(1, 4))]:
            piece.add('ellipsoid', (0.13, 0.07, 0.4), (x, -0.06, 0.36), look.fabric(), 'objects',
                      thing=piece.thing('coat'))  # fmt: skip
        return piece
    piece.box(-0.35, 0.35, -0.06, -0.04, 0.7, 0.72, look.metal(), 'objects')
    for x in (-0.17, 0.17)[: int(rng.integers(1, 3))]:
        w = rng.uniform(0.1, 0.16)
        piece.box(x - w, x + w, -0.075, -0.03, rng.uniform(0, 0.3), 0.725, look.fabric(),
                  'objects', radius=0.02, thing=piece.thing('towel'))  # fmt: skip
    return piece


def mirror(look: Look) -> Piece:
    """Return a mirror in its frame."""
    rng = look.rng
    w, h = rng.uniform(0.4, 0.9), rng.uniform(0.5, 1.3)
    piece = Piece('mirror', w, 0.04, h)
    piece.box(-w / 2, w / 2, -0.01, 0.02, 0, h, look.body(), 'objects')
    piece.box(-w / 2 + 0.04, w / 2 - 0.04, -0.014, 0, 0.04, h - 0.04, MIRROR, 'objects')
    return piece


def notes(look: Look) -> Piece:
    """Return a calendar, a child's drawings, or papers on the wall."""
    rng = look.rng
    piece = Piece('notes', 0.7, 0.02, 0.5)
    for _ in range(int(rng.integers(1, 6))):
        x, z = rng.uniform(-0.24, 0.24), rng.uniform(0.15, 0.35)
        w, h = rng.uniform(0.06, 0.12), rng.uniform(0.08, 0.15)
        material = look.print() if rng.random() < 0.4 else look.paper()
        piece.box(x - w, x + w, -0.004, 0.01, z - h, z + h, material, 'objects',
                  thing=piece.thing('note'))  # fmt: skip
    return piece


def clock(look: Look) -> Piece:
    """Return a clock, lamp or vent on the wall."""
    rng = look.rng
    r = rng.uniform(0.1, 0.18)
    piece = Piece('clock', 2 * r, 0.06, 2 * r)
    turn = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    piece.add('cylinder', (r, 0.02, 0), (0, 0, r), look.body(), 'objects', rotation=turn)
    piece.add('cylinder', (r * 0.85, 0.022, 0), (0, -0.003, r), look.pale(), 'objects',
              rotation=turn)  # fmt: skip
    return piece


def _radiators(site: Site, room: Room) -> None:
    """Set a radiator below each window."""
    white = site.look.pale()
    for side in SIDES:
        for hole in room.openings[side]:
            width = hole.end - hole.start
            if hole.what == 'window' and hole.low > 0.55 and width > 0.6:
                piece = Piece('radiator', width, 0.1, 0.5)
                for x in np.arange(-width / 2 + 0.03, width / 2 - 0.02, 0.055):
                    piece.box(x, x + 0.04, -0.05, 0.05, 0.1, 0.52, white, 'objects')
                x, y = room.on_wall(side, (hole.start + hole.end) / 2, 0.07)
                site.place(piece, x, y, 0, TURN[side])


def decorate(site: Site, room: Room) -> None:
    """Hang pictures, televisions, shelves, coats and switches; set radiators below windows."""
    rng, look = site.rng, site.look
    for _ in range(rng.poisson({'corridor': 3.0, 'bathroom': 0.8}.get(room.kind, 3.0))):
        piece = framed_picture(look)
        _mount(site, room, piece, rng.uniform(1.35, 1.75) - piece.height / 2, 0.018)
    if room.kind in ('living_room', 'bedroom', 'office') and rng.random() < 0.15:
        piece = furniture.television(look, rng.uniform(0.8, 1.3))
        _mount(site, room, piece, rng.uniform(0.9, 1.3), 0.05)
    if rng.random() < {'office': 0.7, 'corridor': 0.4, 'kitchen': 0.2}.get(room.kind, 0.12):
        _mount(site, room, board(look), rng.uniform(0.9, 1.2), 0.02)
    for _ in range(rng.poisson(0.8)):
        _mount(site, room, shelf(look), rng.uniform(1.25, 1.75), 0.12)
    for _ in range(int(rng.integers(1, 4))):
        _mount(site, room, switch(look), 1.05 if rng.random() < 0.6 else 0.28, 0.005)
    for maker, chance, low, off in (
        (coats, 0.35, 0.95, 0.03), (mirror, 0.3, 0.8, 0.022), (notes, 0.45, 1.1, 0.005),
        (clock, 0.35, 1.7, 0.022), (coats, 0.2, 0.95, 0.03),
    ):  # fmt: skip
        if rng.random() < chance:
            _mount(site, room, maker(look), low + rng.uniform(-0.1, 0.2), off)
    if rng.random() < 0.3:
        _radiators(site, room)


def hang_lamps(site: Site, room: Room, daylight: float) -> None:
    """Hang a room's lamps; by day some are off."""
    rng, look = site.rng, site.look
    w, d = room.x1 - room.x0, room.y1 - room.y0
    on = rng.random() < (0.75 if daylight else 1.0)
    warm = np.array([1.0, 0.8, 0.58]) if rng.random() < 0.7 else np.array([0.95, 1.0, 0.95])
    warm = warm * rng.uniform(0.92, 1.05, 3)
    power = rng.uniform(1.6, 4.0) * max(room.area, 6) / 12
    kind = rng.choice(['dome', 'pendant', 'panel', 'spots', 'fan'],
                      p=[0.35, 0.2, 0.2, 0.15, 0.1])  # fmt: skip
    if room.kind in ('office', 'corridor') and rng.random() < 0.6:
        kind = 'panel'
    columns, rows = max(1, round(w / 3.2)), max(1, round(d / 3.2))
    if kind in ('pendant', 'fan', 'dome'):
        columns, rows = max(1, round(w / 5)), max(1, round(d / 5))
    if columns * rows > 3:
        columns, rows = (2, 1) if w > d else (1, 2)
    glow = float(rng.uniform(3, 8)) if on else 0.0
    shade = Material((0.9, 0.88, 0.82), emission=glow)
    for i in range(columns):
        for j in range(rows):
            x = room.x0 + w * (i + 0.5) / columns + rng.normal(0, 0.05)
            y = room.y0 + d * (j + 0.5) / rows + rng.normal(0, 0.05)
            z, size = room.height, 0.15
            piece = Piece('ceiling_lamp')
            if kind == 'dome':
                piece.add('ellipsoid', (0.17, 0.17, 0.08), (0, 0, -0.02), shade, 'objects',
                          casts=False)  # fmt: skip
                z -= 0.16
            elif kind == 'pendant':
                drop = rng.uniform(0.3, 0.7)
                piece.leg(0, 0, -drop, 0, 0.006, look.dark(), 'objects')
                piece.add('cone', (0.2, 0.08, 0.1), (0, 0, -drop), shade, 'objects',
                          casts=False)  # fmt: skip
                z -= drop + 0.14
            elif kind == 'panel':
                piece.box(-0.6, 0.6, -0.15, 0.15, -0.03, 0, shade, 'objects', casts=False)
                z, size = z - 0.08, 0.6
            elif kind == 'spots':
                for dx in (-0.4, 0.4):
                    for dy in (-0.4, 0.4):
                        piece.add('cylinder', (0.06, 0.01, 0), (dx, dy, -0.005), shade,
                                  'objects', casts=False)  # fmt: skip
                z, size = z - 0.06, 0.8
            else:
                body = look.body()
                piece.leg(0, 0, -0.3, 0, 0.02, look.metal(), 'objects')
                piece.leg(0, 0, -0.4, -0.25, 0.09, look.metal(), 'objects')
                for k in range(4):
                    piece.add('box', (0.28, 0.06, 0.006), tuple(
                        rotation_z(k * np.pi / 2 + 0.4) @ np.array([0.36, 0, -0.33])), body,
                        'objects', rotation=rotation_z(k * np.pi / 2 + 0.4))  # fmt: skip
                piece.add('ellipsoid', (0.12, 0.12, 0.07), (0, 0, -0.44), shade, 'objects',
                          casts=False)  # fmt: skip
                z -= 0.56
            site.place(piece, x, y, room.height, 0.0)
            if on:
                site.lights.append(
                    Light('lamp', np.array([x, y, z]), warm * power / (columns * rows) * 4,
                          np.array([size, 0, 0]), np.array([0, size, 0]))
                )  # fmt: skip
