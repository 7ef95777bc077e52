"""Solid parts with materials and labels, from which every room is put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

CLASSES = (
    'bed', 'books', 'ceiling', 'chair', 'floor', 'furniture', 'objects',
    'picture', 'sofa', 'table', 'tv', 'wall', 'window',
)  # fmt: skip
"""NYUv2-13 in the order of the labels."""
LABEL = {name: index for index, name in enumerate(CLASSES)}

Kind = Literal['box', 'rounded_box', 'cylinder', 'ellipsoid', 'cone']


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Attributes:
        color: linear reflectance red, green, blue; multiplies the texture.
        texture: index into the room's textures, -1 for none.
        tile_m: size of one repeat of the texture in metres.
        mapping: 'part' repeats the texture along the part's longer side, 'world' along the
            world's axes (so that walls of several parts join), 'fit' stretches it once over each
            face, 'front' does so on the faces along the part's y axis only.
        gloss: strength of highlights and mirror light at normal incidence, 0 to 1.
        sharpness: exponent of the highlight.
        emission: radiance given off, in units of a white surface in the room's light.
        bump: tilt of the shading normal by folds, as a slope; the true normal is kept.
    """

    color: tuple[float, float, float] = (0.6, 0.6, 0.6)
    texture: int = -1
    tile_m: float = 1.0
    mapping: Literal['part', 'world', 'fit', 'front'] = 'part'
    gloss: float = 0.0
    sharpness: float = 20.0
    emission: float = 0.0
    bump: float = 0.0

    def tinted(self, factor: float) -> Material:
        """Return the material with its colour multiplied by `factor`."""
        return replace(self, color=tuple(float(c * factor) for c in self.color))


@dataclass(frozen=True)
class Part:
    """One convex solid.

    Attributes:
        kind: shape; the cylinder's and cone's axis is z.
        size: metres; half extents of boxes and the ellipsoid, (radius, half height, 0) of the
            cylinder, (lower radius, upper radius, half height) of the cone.
        center: of the solid, metres.
        rotation: float64 [3, 3], part to parent.
        radius: rounding of a rounded box, metres.
        instance: number of the thing that it belongs to, -1 for the building itself.
        casts: False for glass and lamps, which throw no shadow.
    """

    kind: Kind
    size: tuple[float, float, float]
    center: tuple[float, float, float]
    material: Material
    label: int
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    radius: float = 0.0
    instance: int = -1
    casts: bool = True


def rotation_z(angle_rad: float) -> np.ndarray:
    """Return the rotation about z, float64 [3, 3]."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def rotation_x(angle_rad: float) -> np.ndarray:
    """Return the rotation about x, float64 [3, 3]."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[1.0, 0, 0], [0, c, -s], [0, s, c]])


def rotation_y(angle_rad: float) -> np.ndarray:
    """Return the rotation about y, float64 [3, 3]."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[c, 0, s], [0, 1.0, 0], [-s, 0, c]])


@dataclass(frozen=True)
class Surface:
    """A horizontal place for things: centre and half extents in the piece's frame, metres."""

    x: float
    y: float
    z: float
    half_x: float
    half_y: float
    headroom: float = 1.0


@dataclass
class Piece:
    """A piece of furniture in its own frame.

    The origin lies on the floor under the middle of the footprint; -y is the front, +y the back
    that stands against a wall.

    Attributes:
        name: what it is ('bed', 'office_chair', ...).
        width, depth, height: extents along x, y, z in metres.
        names: of the separate things in it; the piece itself is the first.
    """

    name: str
    width: float = 0.0
    depth: float = 0.0
    height: float = 0.0
    parts: list[Part] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = self.names or [self.name]

    def add(
        self,
        kind: Kind,
        size: Iterable[float],
        center: Iterable[float],
        material: Material,
        label: str,
        *,
        rotation: np.ndarray | None = None,
        radius: float = 0.0,
        thing: int = 0,
        casts: bool = True,
    ) -> None:
        """Add a part; `thing` is an index into `names`, 0 the piece itself."""
        size = tuple(max(float(s), 1e-3) for s in size)
        if kind == 'rounded_box':
            # A rounding as thick as the part would leave no flat face and a degenerate mesh.
            radius = min(radius, 0.9 * min(size))
        self.parts.append(
            Part(
                kind,
                size,
                tuple(float(c) for c in center),
                material,
                LABEL[label],
                np.eye(3) if rotation is None else rotation,
                radius,
                thing,
                casts,
            )
        )

    def box(self, x0, x1, y0, y1, z0, z1, material, label, **options) -> None:
        """Add a box (or rounded box, with radius=...) between two corners."""
        kind = 'rounded_box' if options.get('radius') else 'box'
        self.add(
            kind,
            (abs(x1 - x0) / 2, abs(y1 - y0) / 2, abs(z1 - z0) / 2),
            ((x0 + x1) / 2, (y0 + y1) / 2, (z0 + z1) / 2),
            material,
            label,
            **options,
        )

    def leg(self, x, y, z0, z1, radius, material, label, **options) -> None:
        """Add an upright round leg."""
        self.add(
            'cylinder', (radius, (z1 - z0) / 2, 0), (x, y, (z0 + z1) / 2), material, label,
            **options,
        )  # fmt: skip

    def thing(self, name: str) -> int:
        """Begin a separate thing inside the piece, such as a pillow on a bed; return its index."""
        self.names.append(name)
        return len(self.names) - 1

    def put(self, other: Piece, x: float, y: float, z: float, angle_rad: float = 0.0) -> None:
        """Put another piece's parts into this one, turned about z, as things of their own."""
        turn = rotation_z(angle_rad)
        for part in other.parts:
            center = turn @ np.asarray(part.center) + (x, y, z)
            self.parts.append(
                replace(
                    part,
                    center=tuple(center),
                    rotation=turn @ part.rotation,
                    instance=part.instance + len(self.names),
                )
            )
        self.names += other.names

    def placed(self, x: float, y: float, z: float, angle_rad: float, first: int) -> list[Part]:
        """Return the parts in the world, their instances counted from `first`."""
        turn = rotation_z(angle_rad)
        return [
            replace(
                part,
                center=tuple(turn @ np.asarray(part.center) + (x, y, z)),
                rotation=turn @ part.rotation,
                instance=part.instance + first,
            )
            for part in self.parts
        ]
