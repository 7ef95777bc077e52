"""Furniture where people put it, by the kind of room."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mtl_training.worlds import clutter, furniture
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import LABEL, Part, Piece, rotation_z
from mtl_training.worlds.plan import SIDES, Room
from mtl_training.worlds.site import Site

FILLERS: dict[str, tuple[Callable[[Look], Piece], ...]] = {
    'bedroom': (
        furniture.dresser, furniture.cabinet, furniture.bookcase, furniture.nightstand,
        furniture.wardrobe, furniture.armchair, clutter.bin_,
    ),
    'living_room': (
        furniture.bookcase, furniture.dresser, furniture.cabinet, furniture.nightstand,
        furniture.armchair, furniture.bookcase, furniture.wardrobe, furniture.bench,
    ),
    'kitchen': (
        furniture.cabinet, furniture.dresser, furniture.fridge, clutter.bin_,
        furniture.cabinet, furniture.stool,
    ),
    'office': (
        furniture.cabinet, furniture.bookcase, furniture.cabinet, furniture.dresser,
        furniture.office_chair, clutter.bin_, furniture.bookcase,
    ),
    'bathroom': (furniture.cabinet, clutter.bin_, furniture.stool),
    'corridor': (furniture.cabinet, furniture.bench, furniture.dresser, furniture.bookcase),
}  # fmt: skip
"""What else stands along the walls of each kind of room."""


def furnish(site: Site, room: Room) -> None:
    """Fill a room with what its kind needs, then its walls and floor with more."""
    FURNISHERS[room.kind](site, room)
    _rug(site, room)
    perimeter = 2 * (room.x1 - room.x0 + room.y1 - room.y0)
    fillers = FILLERS[room.kind]
    for _ in range(site.rng.poisson(perimeter * 0.3)):
        piece = fillers[int(site.rng.integers(len(fillers)))](site.look)
        site.against_wall(room, piece, front=0.2, tries=10)
    for _ in range(site.rng.poisson(min(room.area * 0.4, 8) * site.look.clutter)):
        makers = clutter.ON_FLOOR
        thing = makers[int(site.rng.integers(len(makers)))](site.look)
        if site.rng.random() < 0.6:
            site.against_wall(room, thing, tries=8)
        else:
            site.standing(room, thing, margin=0.3)


def _opposite(side: str) -> str:
    return ('-' if side[0] == '+' else '+') + side[1]


def _some(site: Site, room: Room, *makers: Callable[[Look], Piece], chance: float = 0.6) -> None:
    for maker in makers:
        if site.rng.random() < chance:
            site.against_wall(room, maker(site.look), front=0.25)


def _furnish_bedroom(site: Site, room: Room) -> None:
    rng, look = site.rng, site.look
    for _ in range(2 if rng.random() < 0.12 else 1):
        piece = furniture.bed(look)
        where = site.against_wall(room, piece, front=0.3, corner=rng.random() < 0.3)
        if where:
            for sign in (-1, 1):
                if rng.random() < 0.75:
                    site.beside(room, *where, piece.width / 2, furniture.nightstand(look),
                                 sign)  # fmt: skip
    _some(site, room, furniture.dresser, furniture.wardrobe, chance=0.7)
    if rng.random() < 0.45:
        _desk(site, room)
    _some(site, room, furniture.bookcase, furniture.tv_stand, chance=0.4)
    _some(site, room, furniture.armchair, furniture.floor_lamp, furniture.chair, chance=0.3)


def _desk(site: Site, room: Room, swivel: float = 0.7) -> None:
    desk = furniture.desk(site.look)
    where = site.against_wall(room, desk, front=0.7)
    if where:
        seat = furniture.office_chair if site.rng.random() < swivel else furniture.chair
        side, along = where
        site.before(room, side, along + site.rng.normal(0, 0.1), desk.depth - 0.1,
                     seat(site.look), turned=True)  # fmt: skip


def _furnish_living_room(site: Site, room: Room) -> None:
    rng, look = site.rng, site.look
    couch = furniture.sofa(look)
    where = site.against_wall(room, couch, front=0.9)
    if where:
        side, along = where
        if rng.random() < 0.75:
            site.before(room, side, along, couch.depth + 0.35, furniture.coffee_table(look),
                         turned=False)  # fmt: skip
        site.against_wall(room, furniture.tv_stand(look), sides=(_opposite(side),), front=0.3)
        if rng.random() < 0.5:
            site.beside(room, side, along, couch.width / 2, furniture.floor_lamp(look), 1)
        if rng.random() < 0.5:
            site.beside(room, side, along, couch.width / 2, furniture.nightstand(look), -1)
    else:
        _some(site, room, furniture.tv_stand, chance=1.0)
    if rng.random() < 0.12:
        # A flat of one room.
        site.against_wall(room, furniture.bed(look), front=0.2, corner=True)
    for _ in range(int(rng.integers(0, 3))):
        piece = furniture.armchair(look)
        if rng.random() < 0.5:
            site.against_wall(room, piece, front=0.2)
        else:
            site.standing(room, piece, margin=0.8)
    if room.area > 17 and rng.random() < 0.55:
        _dining(site, room)
    _some(site, room, furniture.bookcase, furniture.bookcase, furniture.dresser, chance=0.55)
    _some(site, room, furniture.piano, furniture.cabinet, furniture.ottoman, clutter.plant,
               furniture.bench, chance=0.3)  # fmt: skip


def _dining(site: Site, room: Room, near: np.ndarray | None = None) -> None:
    rng, look = site.rng, site.look
    piece = furniture.table(look)
    spot = site.standing(room, piece, margin=1.0, near=near, turn=float(
        rng.choice([0, np.pi / 2])))  # fmt: skip
    if spot is None:
        return
    x, y = spot
    a, b, c, d = room.taken[-1]
    style = furniture.stool if rng.random() < 0.08 else furniture.chair
    state = rng.bit_generator.state
    for ux, uy, angle in ((0, -1, np.pi), (0, 1, 0.0), (-1, 0, np.pi / 2), (1, 0, -np.pi / 2)):
        length = (b - a) if ux == 0 else (d - c)
        count = 2 if length > 1.25 else 1
        for k in range(count):
            if rng.random() < 0.2:
                continue
            # The same draw makes the same chair.
            after = rng.bit_generator.state
            rng.bit_generator.state = state
            seat = style(look)
            rng.bit_generator.state = after
            along = (k + 0.5) / count - 0.5
            pulled = rng.uniform(-0.12, 0.3)
            px = x + ux * ((b - a) / 2 + pulled) + (along * length if ux == 0 else 0)
            py = y + uy * ((d - c) / 2 + pulled) + (along * length if uy == 0 else 0)
            if (
                room.x0 + 0.3 < px < room.x1 - 0.3 and room.y0 + 0.3 < py < room.y1 - 0.3
                and _free_but_last(room, px, py)
            ):  # fmt: skip
                site.place(seat, px, py, 0, angle + rng.normal(0, 0.15))
                room.taken.insert(0, (px - 0.25, px + 0.25, py - 0.25, py + 0.25))


def _free_but_last(room: Room, x: float, y: float) -> bool:
    return all(
        x + 0.2 <= a or x - 0.2 >= b or y + 0.2 <= c or y - 0.2 >= d
        for a, b, c, d in room.taken[:-1]
    )


def _furnish_kitchen(site: Site, room: Room) -> None:
    rng, look = site.rng, site.look
    side = str(rng.choice(SIDES))
    start, end = room.span(side)
    bare = not any(o.what == 'window' for o in room.openings[side])
    row = furniture.kitchen_row(look, (end - start) * rng.uniform(0.6, 0.97), upper=bare)
    site.against_wall(room, row, sides=(side,), front=0.5)
    site.against_wall(room, furniture.fridge(look), front=0.4, corner=True)
    if rng.random() < 0.6:
        other = furniture.kitchen_row(look, rng.uniform(1.0, 2.2), upper=rng.random() < 0.6)
        site.against_wall(room, other, front=0.4)
    if room.area > 11 and rng.random() < 0.35:
        spot = site.standing(room, furniture.island(look), margin=1.1)
        if spot:
            for _ in range(int(rng.integers(0, 4))):
                site.standing(room, furniture.stool(look), near=np.array(spot))
    elif rng.random() < 0.85:
        _dining(site, room)
    _some(site, room, furniture.cabinet, furniture.dresser, clutter.bin_, chance=0.35)


def _furnish_office(site: Site, room: Room) -> None:
    rng, look = site.rng, site.look
    for _ in range(1 + int(room.area > 10) + int(room.area > 18) * int(rng.integers(1, 4))):
        _desk(site, room, swivel=0.85)
    if room.area > 14 and rng.random() < 0.4:
        _dining(site, room)
    _some(site, room, furniture.bookcase, furniture.bookcase, furniture.cabinet, chance=0.75)
    _some(site, room, furniture.cabinet, furniture.sofa, furniture.dresser, clutter.plant,
               chance=0.3)  # fmt: skip
    for _ in range(int(rng.integers(0, 3))):
        maker = furniture.office_chair if rng.random() < 0.5 else furniture.chair
        site.standing(room, maker(look), margin=0.6)


def _furnish_bathroom(site: Site, room: Room) -> None:
    _some(site, room, furniture.toilet, furniture.vanity, furniture.bathtub, chance=0.95)
    _some(site, room, furniture.cabinet, clutter.bin_, furniture.stool, chance=0.4)


def _furnish_corridor(site: Site, room: Room) -> None:
    _some(site, room, furniture.cabinet, furniture.bench, furniture.dresser, chance=0.35)
    _some(site, room, clutter.plant, furniture.bookcase, clutter.bin_, chance=0.3)


def _rug(site: Site, room: Room) -> None:
    rng = site.rng
    if rng.random() > 0.4 or room.kind == 'corridor':
        return
    w, d = (
        rng.uniform(0.3, 0.65) * (room.x1 - room.x0),
        rng.uniform(0.3, 0.65) * (room.y1 - room.y0),
    )
    x, y = room.center + rng.normal(0, 0.3, 2)
    site.names.append('rug')
    site.parts.append(
        Part('box', (w / 2, d / 2, 0.005), (float(x), float(y), 0.005), site.look.rug(),
             LABEL['floor'], rotation_z(float(rng.normal(0, 0.1))), instance=len(site.names) - 1)
    )  # fmt: skip


FURNISHERS: dict[str, Callable[[Site, Room], None]] = {
    'bedroom': _furnish_bedroom,
    'living_room': _furnish_living_room,
    'kitchen': _furnish_kitchen,
    'office': _furnish_office,
    'bathroom': _furnish_bathroom,
    'corridor': _furnish_corridor,
}
