"""Whole flats: rooms with everything in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtl_training.worlds.decor import decorate, hang_lamps
from mtl_training.worlds.furnishing import furnish
from mtl_training.worlds.lights import Light
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import Material, Part
from mtl_training.worlds.plan import Room
from mtl_training.worlds.shell import build_shell
from mtl_training.worlds.site import Site


@dataclass
class Flat:
    """Everything that a world is made of, before it is compiled."""

    rooms: list[Room]
    parts: list[Part]
    lights: list[Light]
    names: list[str]
    """What each instance is; parts refer to it by index."""


def build_flat(rng: np.random.Generator, look: Look, rooms: list[Room]) -> Flat:
    """Return a plan's rooms with walls, furniture, things and light."""
    site = Site(rng, look)
    daylight = float(rng.random() < 0.75) * rng.uniform(0.4, 1.5)
    trim = Material(tuple([float(rng.uniform(0.45, 0.75))] * 3), gloss=0.03)
    trim = trim if rng.random() < 0.7 else look.wood()
    for room in rooms:
        build_shell(site, room, trim, daylight)
        furnish(site, room)
        decorate(site, room)
        hang_lamps(site, room, daylight)
    if daylight > 0.6 and rng.random() < 0.35:
        around, down = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.9)
        direction = np.array([np.cos(around), np.sin(around), -down])
        direction /= np.linalg.norm(direction)
        center = np.array([*rooms[0].center, 1.0])
        color = np.array([1.0, 0.92, 0.78]) * rng.uniform(3, 9) * daylight
        site.lights.append(Light('sun', center, color, direction=direction))
    return Flat(rooms, site.parts, site.lights, site.names)
