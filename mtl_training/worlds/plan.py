"""Plans of flats: rectangles of rooms with doors and windows in their walls."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

ROOM_TYPES = ('bedroom', 'living_room', 'kitchen', 'office', 'bathroom', 'corridor')
INNER_M, OUTER_M = 0.06, 0.16
"""Thickness of one room's half of a wall between rooms, and of a wall to the outside."""

SIDES = ('-x', '+x', '-y', '+y')
TURN = {'+y': 0.0, '-y': np.pi, '+x': -np.pi / 2, '-x': np.pi / 2}
"""Turn of a piece that stands with its back against each side."""


@dataclass
class Opening:
    """A hole in a wall: from `start` to `end` along it, `low` to `high` above the floor."""

    start: float
    end: float
    low: float
    high: float
    what: str


@dataclass
class Room:
    """One room: its rectangle in metres, its kind and what has been put into it."""

    kind: str
    x0: float
    x1: float
    y0: float
    y1: float
    height: float
    openings: dict[str, list[Opening]] = field(default_factory=lambda: {s: [] for s in SIDES})
    outside: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(SIDES, True))
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)
    hung: dict[str, list[tuple[float, float, float, float]]] = field(
        default_factory=lambda: {s: [] for s in SIDES}
    )

    @property
    def center(self) -> np.ndarray:
        """Return the middle of the floor, [2]."""
        return np.array([(self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2])

    @property
    def area(self) -> float:
        """Return the floor's area in square metres."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def span(self, side: str) -> tuple[float, float]:
        """Return where a side's wall starts and ends along its own axis."""
        return (self.y0, self.y1) if side[1] == 'x' else (self.x0, self.x1)

    def on_wall(self, side: str, along: float, off: float) -> tuple[float, float]:
        """Return the point `off` metres inside the room from a side's wall."""
        if side == '-x':
            return self.x0 + off, along
        if side == '+x':
            return self.x1 - off, along
        if side == '-y':
            return along, self.y0 + off
        return along, self.y1 - off

    def take(self, x: float, y: float, half_x: float, half_y: float) -> None:
        """Mark a rectangle of the floor as taken."""
        self.taken.append((x - half_x, x + half_x, y - half_y, y + half_y))

    def free(self, x: float, y: float, half_x: float, half_y: float) -> bool:
        """Tell whether a rectangle lies in the room and touches nothing that is taken."""
        if not (
            self.x0 <= x - half_x + 1e-6 and x + half_x <= self.x1 + 1e-6
            and self.y0 <= y - half_y + 1e-6 and y + half_y <= self.y1 + 1e-6
        ):  # fmt: skip
            return False
        return all(
            x + half_x <= a or x - half_x >= b or y + half_y <= c or y - half_y >= d
            for a, b, c, d in self.taken
        )


def make_plan(rng: np.random.Generator, kind: str | None = None) -> list[Room]:
    """Return rooms: one alone, a few side by side, or rooms along a corridor.

    Args:
        kind: of the first room; any when None.
    """
    height = rng.uniform(2.35, 2.95)
    weights = np.array([0.27, 0.25, 0.16, 0.18, 0.08, 0.06])
    pick = kind or str(rng.choice(ROOM_TYPES, p=weights))
    gap = 2 * INNER_M
    style = rng.random()
    if pick == 'corridor' or style < 0.18:
        length, width = rng.uniform(6, 10), rng.uniform(1.2, 2.0)
        rooms = [Room('corridor', 0, length, 0, width, height)]
        others = [k for k in ROOM_TYPES if k != 'corridor']
        first = pick if pick != 'corridor' else str(rng.choice(others))
        x, upper = 0.0, rng.uniform(3.0, 4.5)
        kinds = [first, *rng.permutation([k for k in others if k != first])]
        for other in kinds[: int(rng.integers(1, 4))]:
            w = rng.uniform(2.6, 4.4)
            if x + w > length:
                break
            rooms.append(Room(str(other), x, x + w, width + gap, width + gap + upper, height))
            x += w + gap
    elif style < 0.5:
        w, d = _room_size(rng, pick)
        rooms = [Room(pick, 0, w, 0, d, height)]
        other = str(rng.choice([k for k in ROOM_TYPES if k not in (pick, 'corridor')]))
        w2, d2 = _room_size(rng, other)
        y = rng.uniform(-0.5, 0.5)
        rooms.append(Room(other, w + gap, w + gap + w2, y, y + d2, height))
    else:
        w, d = _room_size(rng, pick)
        rooms = [Room(pick, 0, w, 0, d, height)]
    _connect(rng, rooms)
    if kind:
        rooms.sort(key=lambda room: room.kind != kind)
    return rooms


def _room_size(rng: np.random.Generator, kind: str) -> tuple[float, float]:
    low, high = {
        'bedroom': (3.0, 5.2), 'living_room': (3.8, 7.0), 'kitchen': (2.8, 5.4),
        'office': (2.9, 6.5), 'bathroom': (1.9, 3.2), 'corridor': (1.2, 8.0),
    }[kind]  # fmt: skip
    return rng.uniform(low, high), rng.uniform(low, high)


def _connect(rng: np.random.Generator, rooms: list[Room]) -> None:
    """Cut doors between neighbours, and doors and windows to the outside."""
    for i, a in enumerate(rooms):
        for b in rooms[i + 1 :]:
            for side, other in (('+x', '-x'), ('+y', '-y')):
                wall_a = a.x1 if side == '+x' else a.y1
                wall_b = b.x0 if side == '+x' else b.y0
                if abs(wall_b - wall_a - 2 * INNER_M) > 0.01:
                    continue
                low = max(a.span(side)[0], b.span(other)[0])
                high = min(a.span(side)[1], b.span(other)[1])
                if high - low < 1.2:
                    continue
                a.outside[side] = False
                b.outside[other] = False
                width = rng.uniform(0.85, 1.0)
                if rng.random() < 0.3 and 'bathroom' not in (a.kind, b.kind):
                    width = min(rng.uniform(1.2, 2.4), high - low - 0.3)
                start = rng.uniform(low + 0.1, high - width - 0.1)
                for room, where in ((a, side), (b, other)):
                    room.openings[where].append(
                        Opening(start, start + width, 0.0, 2.05, 'passage')
                    )
    for room in rooms:
        walls = [s for s in SIDES if room.outside[s]]
        rng.shuffle(walls)
        if not any(room.openings.values()) and walls:
            _cut(rng, room, walls.pop(), rng.uniform(0.8, 0.95), 0.0, 2.05, 'door')
        chance = {'corridor': 0.15, 'bathroom': 0.5}.get(room.kind, 0.85)
        for wall in walls:
            if rng.random() > chance:
                continue
            chance *= 0.45
            span = room.span(wall)
            low = 0.12 if rng.random() < 0.12 else rng.uniform(0.6, 1.05)
            high = min(rng.uniform(1.9, 2.3), room.height - 0.2)
            for _ in range(1 if span[1] - span[0] < 3.5 or rng.random() < 0.6 else 2):
                _cut(rng, room, wall, rng.uniform(0.7, 2.2), low, high, 'window')


def _cut(
    rng: np.random.Generator, room: Room, side: str, width: float, low: float, high: float,
    what: str,
) -> None:  # fmt: skip
    start, end = room.span(side)
    width = min(width, end - start - 0.5)
    if width < 0.5:
        return
    for _ in range(8):
        at = rng.uniform(start + 0.2, end - width - 0.2)
        if all(at + width + 0.2 < o.start or at > o.end + 0.2 for o in room.openings[side]):
            room.openings[side].append(Opening(at, at + width, low, high, what))
            return
