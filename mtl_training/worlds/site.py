"""Site: the parts of a flat under construction, and finding places for them."""

from __future__ import annotations

import numpy as np

from mtl_training.worlds.lights import Light
from mtl_training.worlds.look import Look
from mtl_training.worlds.parts import LABEL, Material, Part, Piece
from mtl_training.worlds.plan import SIDES, TURN, Room


class Site:
    """What has been built so far.

    Args:
        rng: source of every choice.
        look: materials.

    Attributes:
        parts, lights: in the world's frame.
        names: of the things that parts' instances refer to.
        instance: to which thing `building` and `slab` add; -1 is the building itself.
    """

    def __init__(self, rng: np.random.Generator, look: Look) -> None:
        self.rng, self.look = rng, look
        self.parts: list[Part] = []
        self.lights: list[Light] = []
        self.names: list[str] = []
        self.instance = -1

    def building(
        self, low: tuple, high: tuple, material: Material, label: str, casts: bool = True
    ) -> None:
        """Add a box between two corners, metres; one without thickness is left out."""
        low, high = np.minimum(low, high), np.maximum(low, high)
        size = (high - low) / 2
        if size.min() < 5e-4:
            return
        self.parts.append(
            Part('box', tuple(map(float, size)), tuple(map(float, (low + high) / 2)), material,
                 LABEL[label], instance=self.instance, casts=casts)
        )  # fmt: skip

    def slab(
        self, room: Room, side: str, a: float, b: float, off0: float, off1: float, z0: float,
        z1: float, material: Material, label: str, casts: bool = True,
    ) -> None:  # fmt: skip
        """Add a box along a wall: from a to b, from off0 to off1 into the room, z0 to z1."""
        p, q = room.on_wall(side, a, off0), room.on_wall(side, b, off1)
        self.building((*p, z0), (*q, z1), material, label, casts)

    def place(self, piece: Piece, x: float, y: float, z: float, angle: float) -> None:
        """Add a piece's parts at a place, turned about z, and its things' names."""
        self.parts += piece.placed(x, y, z, angle, len(self.names))
        self.names += piece.names

    def against_wall(
        self, room: Room, piece: Piece, *, sides: tuple[str, ...] = SIDES, front: float = 0.0,
        corner: bool = False, tries: int = 30,
    ) -> tuple[str, float] | None:  # fmt: skip
        """Stand a piece with its back to a wall; return side and place along it, or None."""
        rng = self.rng
        for _ in range(tries):
            side = str(sides[int(rng.integers(len(sides)))])
            start, end = room.span(side)
            half = piece.width / 2
            if end - start < piece.width + 0.04:
                continue
            low, high = start + half + 0.02, end - half - 0.02
            along = rng.uniform(low, high)
            if corner and rng.random() < 0.8:
                along = low if rng.random() < 0.5 else high
            off = 0.03 + abs(rng.normal(0, 0.015))
            if piece.height > 0.95 and any(
                o.what == 'window' and along - half < o.end and along + half > o.start
                and o.low < piece.height
                for o in room.openings[side]
            ):  # fmt: skip
                continue
            if any(
                along - half < q and along + half > p and low_z < piece.height
                for p, q, low_z, _ in room.hung[side]
                if low_z == 0.0
            ):
                continue
            depth = piece.depth + front
            x, y = room.on_wall(side, along, off + depth / 2)
            half_x, half_y = (depth / 2, half) if side[1] == 'x' else (half, depth / 2)
            if not room.free(x, y, half_x, half_y):
                continue
            px, py = room.on_wall(side, along, off + piece.depth / 2)
            room.take(x, y, half_x, half_y)
            self.place(piece, px, py, 0, TURN[side] + rng.normal(0, 0.012))
            if piece.height > 0.5:
                room.hung[side].append((along - half, along + half, 0.05, piece.height))
            return side, along
        return None

    def standing(
        self, room: Room, piece: Piece, *, margin: float = 0.35, near: np.ndarray | None = None,
        turn: float | None = None,
    ) -> tuple[float, float] | None:  # fmt: skip
        """Stand a piece free in the room; return where, or None."""
        rng = self.rng
        for _ in range(25):
            if near is None:
                x = rng.uniform(room.x0 + margin, room.x1 - margin)
                y = rng.uniform(room.y0 + margin, room.y1 - margin)
            else:
                x, y = near + rng.normal(0, 0.25, 2)
            angle = float(rng.choice([0, np.pi / 2, np.pi, -np.pi / 2])) if turn is None else turn
            swap = abs(np.sin(angle)) > 0.7
            half = np.array([piece.width, piece.depth])[:: -1 if swap else 1] / 2
            if room.free(x, y, half[0] + 0.05, half[1] + 0.05):
                room.take(x, y, *half)
                self.place(piece, x, y, 0, angle + rng.normal(0, 0.06))
                return x, y
        return None

    def beside(
        self, room: Room, side: str, along: float, gap: float, piece: Piece, sign: int
    ) -> None:
        """Stand a piece at the wall next to another whose half width is `gap`."""
        where = along + sign * (gap + piece.width / 2 + 0.04)
        x, y = room.on_wall(side, where, 0.03 + piece.depth / 2)
        half = (piece.depth / 2, piece.width / 2)
        half_x, half_y = half if side[1] == 'x' else half[::-1]
        if room.free(x, y, half_x, half_y):
            room.take(x, y, half_x, half_y)
            self.place(piece, x, y, 0, TURN[side])

    def before(
        self, room: Room, side: str, along: float, off: float, piece: Piece, turned: bool
    ) -> None:
        """Stand a piece in the room in front of a wall's piece, facing it when `turned`."""
        x, y = room.on_wall(side, along, off + piece.depth / 2)
        half = (piece.depth / 2, piece.width / 2)
        half_x, half_y = half if side[1] == 'x' else half[::-1]
        if (
            room.x0 < x - half_x and x + half_x < room.x1
            and room.y0 < y - half_y and y + half_y < room.y1
        ):  # fmt: skip
            room.take(x, y, half_x, half_y)
            angle = TURN[side] + (np.pi if turned else 0) + self.rng.normal(0, 0.15)
            self.place(piece, x, y, 0, angle)

    def hang(
        self, room: Room, width: float, low: float, high: float, tries: int = 12
    ) -> tuple[str, float] | None:
        """Reserve a free place on a wall; return side and middle along it."""
        rng = self.rng
        for _ in range(tries):
            side = str(SIDES[int(rng.integers(4))])
            start, end = room.span(side)
            if end - start < width + 0.2:
                continue
            along = rng.uniform(start + width / 2 + 0.08, end - width / 2 - 0.08)
            a, b = along - width / 2 - 0.04, along + width / 2 + 0.04
            if all(b < p or a > q or high < r or low > s for p, q, r, s in room.hung[side]):
                room.hung[side].append((a, b, low, high))
                return side, along
        return None
