"""Floors, ceilings, walls, doors and windows."""

from __future__ import annotations

import numpy as np

from mtl_training.worlds.lights import Light
from mtl_training.worlds.look import WHITE
from mtl_training.worlds.parts import LABEL, Material, Part, Piece
from mtl_training.worlds.plan import INNER_M, OUTER_M, SIDES, Opening, Room
from mtl_training.worlds.site import Site


def build_shell(site: Site, room: Room, trim: Material, daylight: float) -> None:
    """Build floor, ceiling and walls of a room, with its doors and windows.

    Args:
        trim: of skirting boards, doors and frames.
        daylight: brightness outside, 0 at night.
    """
    rng, t = site.rng, INNER_M
    floor, ceiling = site.look.floor(room.kind), site.look.ceiling()
    site.building((room.x0 - t, room.y0 - t, -0.1), (room.x1 + t, room.y1 + t, 0), floor, 'floor')
    site.building(
        (room.x0 - t, room.y0 - t, room.height), (room.x1 + t, room.y1 + t, room.height + 0.1),
        ceiling, 'ceiling',
    )  # fmt: skip
    wall = site.look.wall(room.kind)
    accent = site.look.wall(room.kind) if rng.random() < 0.2 else wall
    skirting = rng.uniform(0.05, 0.14) if rng.random() < 0.75 else 0.0
    crown = rng.uniform(0.04, 0.1) if rng.random() < 0.25 else 0.0
    special = str(rng.choice(SIDES))
    for side in SIDES:
        material = accent if side == special else wall
        thick = OUTER_M if room.outside[side] else t
        start, end = room.span(side)
        at = start - t
        for hole in [*sorted(room.openings[side], key=lambda o: o.start), None]:
            until = hole.start if hole else end + t
            site.slab(room, side, at, until, 0, -thick, 0, room.height, material, 'wall')
            low, high = max(at, start), min(until, end)
            if skirting and high - low > 0.05:
                site.slab(room, side, low, high, 0, 0.015, 0, skirting, trim, 'wall')
            if hole:
                site.slab(room, side, hole.start, hole.end, 0, -thick, hole.high,
                           room.height, material, 'wall')  # fmt: skip
                if hole.low > 0:
                    site.slab(room, side, hole.start, hole.end, 0, -thick, 0, hole.low,
                               material, 'wall')  # fmt: skip
                room.hung[side].append((hole.start - 0.1, hole.end + 0.1, hole.low, hole.high))
                if hole.what == 'window':
                    site.instance = len(site.names)
                    site.names.append('window')
                    _window(site, room, side, hole, trim, daylight)
                    site.instance = -1
                else:
                    _door(site, room, side, hole, trim)
                at = hole.end
        if crown:
            site.slab(room, side, start, end, 0, crown, room.height - crown, room.height,
                       trim, 'wall')  # fmt: skip
    if rng.random() < 0.12:
        for offset in np.arange(room.x0 + 0.5, room.x1, rng.uniform(0.8, 1.6)):
            site.building(
                (offset - 0.06, room.y0, room.height - 0.16),
                (offset + 0.06, room.y1, room.height), site.look.wood(), 'ceiling',
            )  # fmt: skip


def _door(site: Site, room: Room, side: str, hole: Opening, trim: Material) -> None:
    rng = site.rng
    f = rng.uniform(0.05, 0.09)
    site.slab(room, side, hole.start - f, hole.start, 0, 0.02, 0, hole.high + f, trim, 'wall')
    site.slab(room, side, hole.end, hole.end + f, 0, 0.02, 0, hole.high + f, trim, 'wall')
    site.slab(room, side, hole.start, hole.end, 0, 0.02, hole.high, hole.high + f, trim,
               'wall')  # fmt: skip
    leaf = trim if rng.random() < 0.5 else site.look.body()
    width = hole.end - hole.start
    if hole.what == 'door':
        # Behind the leaf there is nothing to see: it is closed.
        site.slab(room, side, hole.start, hole.end, -0.03, -0.07, 0, hole.high, leaf, 'wall')
        for k in range(2):
            z = 0.25 + 0.95 * k
            site.slab(room, side, hole.start + 0.12, hole.end - 0.12, -0.02, -0.03, z,
                       z + 0.75, leaf.tinted(0.9), 'wall')  # fmt: skip
        a, b = hole.start + 0.05, hole.start + 0.17
        site.slab(room, side, a, b, -0.02, 0.04, 0.98, 1.01, site.look.metal(), 'wall')
    elif width < 1.1 and rng.random() < 0.55 and side[0] == '+':
        # An open leaf, hinged at the start of the hole, swung into the room.
        swing = rng.uniform(1.1, 1.6)
        piece = Piece('door')
        piece.box(0, width - 0.02, -0.02, 0.02, 0.01, hole.high - 0.02, leaf, 'wall')
        piece.add('ellipsoid', (0.03, 0.06, 0.03), (width - 0.1, 0, 1.0), site.look.metal(),
                  'wall')  # fmt: skip
        hx, hy = room.on_wall(side, hole.start, 0.03)
        along = np.pi / 2 if side[1] == 'x' else 0.0
        angle = along + (swing if side[1] == 'x' else -swing)
        room.take(hx, hy, 0.5, 0.5)
        site.place(piece, hx, hy, 0, angle)
    depth = 1.0
    cx, cy = room.on_wall(side, (hole.start + hole.end) / 2, depth / 2)
    along_x = side[1] == 'y'
    half = width / 2 + 0.05
    room.take(cx, cy, half if along_x else depth / 2, depth / 2 if along_x else half)


def _window(
    site: Site, room: Room, side: str, hole: Opening, trim: Material, daylight: float
) -> None:
    rng = site.rng
    a, b, z0, z1 = hole.start, hole.end, hole.low, hole.high
    brightness = rng.uniform(2.5, 7) * daylight if daylight else rng.uniform(0.005, 0.06)
    frame = trim if rng.random() < 0.6 else site.look.body()
    f = rng.uniform(0.03, 0.07)
    pane = site.look.view_out(brightness)
    site.slab(room, side, a, b, -0.1, -0.11, z0, z1, pane, 'window', casts=False)
    site.slab(room, side, a - 0.3, b + 0.3, -0.32, -0.33, z0 - 0.3, z1 + 0.3,
               Material((0.3, 0.3, 0.3)), 'window', casts=False)  # fmt: skip
    for p, q in ((a, a + f), (b - f, b)):
        site.slab(room, side, p, q, -0.04, -0.1, z0, z1, frame, 'window')
    for p, q in ((z0, z0 + f), (z1 - f, z1)):
        site.slab(room, side, a, b, -0.04, -0.1, p, q, frame, 'window')
    for x in np.linspace(a, b, int(rng.integers(2, 4)) + 1)[1:-1]:
        site.slab(room, side, x - f / 2, x + f / 2, -0.05, -0.1, z0, z1, frame, 'window')
    for z in np.linspace(z0, z1, int(rng.integers(1, 4)) + 1)[1:-1]:
        site.slab(room, side, a, b, -0.055, -0.1, z - f / 3, z + f / 3, frame, 'window')
    if rng.random() < 0.6:
        c = rng.uniform(0.05, 0.1)
        for p, q, s, t in ((a - c, a, z0 - c, z1 + c), (b, b + c, z0 - c, z1 + c),
                           (a, b, z1, z1 + c)):  # fmt: skip
            site.slab(room, side, p, q, 0, 0.02, s, t, frame, 'window')
    site.slab(room, side, a - 0.06, b + 0.06, 0, rng.uniform(0.02, 0.14), z0 - 0.03, z0,
               frame, 'window')  # fmt: skip
    open_share = 1.0
    cover = rng.choice(['none', 'blinds', 'curtains', 'shade'], p=[0.3, 0.25, 0.33, 0.12])
    if cover == 'blinds':
        down = rng.uniform(0.2, 1.0)
        slat = site.look.pale() if rng.random() < 0.7 else site.look.wood()
        glow = brightness * rng.uniform(0.04, 0.16) if daylight else 0.0
        pitch = rng.uniform(0.03, 0.05)
        open_share = 1 - 0.8 * down
        step = 0
        tilt = rng.uniform(0.2, 0.85)
        while step * pitch < (z1 - z0) * down:
            z = z1 - 0.02 - step * pitch
            site.slab(room, side, a + 0.01, b - 0.01, -0.035, -0.03, z - pitch * tilt, z,
                       slat, 'window', casts=False)  # fmt: skip
            step += 1
        back = Material(slat.color if slat.texture < 0 else WHITE, emission=glow)
        if glow and down > 0.6:
            site.slab(room, side, a + 0.01, b - 0.01, -0.038, -0.04,
                       z1 - (z1 - z0) * down, z1, back, 'window', casts=False)  # fmt: skip
    elif cover == 'shade':
        down = rng.uniform(0.2, 0.9)
        open_share = 1 - 0.7 * down
        cloth = Material((0.75, 0.7, 0.6), emission=brightness * 0.12 if daylight else 0.0)
        site.slab(room, side, a, b, -0.02, -0.03, z1 - (z1 - z0) * down, z1, cloth, 'window',
                   casts=False)  # fmt: skip
    elif cover == 'curtains':
        cloth = site.look.fabric()
        top = min(z1 + 0.18, room.height - 0.05)
        bottom = 0.03 if rng.random() < 0.6 else z0 - 0.1
        drawn = rng.uniform(0.12, 0.5)
        for sign, edge in ((1, a - 0.15), (-1, b + 0.15)):
            width = (b - a + 0.3) * drawn
            folds = max(3, int(width / 0.07))
            for i in range(folds):
                along = edge + sign * (i + 0.5) * width / folds
                off = 0.07 + 0.018 * (i % 2) + rng.uniform(-0.006, 0.006)
                x, y = room.on_wall(side, along, off)
                r = width / folds * 0.75
                site.parts.append(
                    Part('cylinder', (r * 0.8, (top - bottom) / 2, 0),
                         (x, y, (top + bottom) / 2), cloth, LABEL['window'],
                         instance=site.instance)
                )  # fmt: skip
        site.slab(room, side, a - 0.3, b + 0.3, 0.06, 0.085, top, top + 0.025,
                   site.look.metal(), 'window')  # fmt: skip
        open_share = 1 - 2 * drawn * 0.9
    if daylight:
        x, y = room.on_wall(side, (a + b) / 2, -0.02)
        inward = np.array([*(room.on_wall(side, 0, 1)), 0]) - [*room.on_wall(side, 0, 0), 0]
        axis = np.array([0.0, 1, 0]) if side[1] == 'x' else np.array([1.0, 0, 0])
        area = (b - a) * (z1 - z0)
        sky = np.array([0.92, 0.97, 1.0]) if rng.random() < 0.6 else np.array([1, 0.95, 0.85])
        site.lights.append(
            Light('window', np.array([x, y, (z0 + z1) / 2]),
                  sky * brightness * area * 0.9 * max(open_share, 0.1),
                  axis * (b - a) * 0.5, np.array([0, 0, (z1 - z0) * 0.5]), inward)
        )  # fmt: skip
