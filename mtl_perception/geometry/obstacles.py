"""What a robot must not run into, where it may drive, and where the floor is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from mtl_perception.geometry.cloud import pack_tags
from mtl_perception.geometry.floor import FloorPlane
from mtl_perception.geometry.workspace import Workspace

OBSTACLE_POINT = np.dtype(
    {
        'names': ['x', 'y', 'z', 'std', 'height', 'label', 'confidence'],
        'formats': ['<f4', '<f4', '<f4', '<f4', '<f4', 'u1', 'u1'],
        'offsets': [0, 4, 8, 12, 16, 20, 21],
        'itemsize': 24,
    }
)
"""x, y, z: metres, optical frame. std: of the distance along the ray, metres. height: above the
floor, metres, NaN where no floor is known. label, confidence: as in the mask."""

# On level ground a label other than floor is wrong as often as right below a confidence of .9, and
# nearly always right above: its log-odds count so often.
_THING_SURENESS = 2.0
# Neighbours (of 3x3, itself included) that a pixel of an obstacle or a hole needs.
_COMPANY = 3


@dataclass(frozen=True)
class ClassRoles:
    """Which classes of a bundle are floor and ceiling."""

    floor: tuple[int, ...] = ()
    ceiling: tuple[int, ...] = ()

    @classmethod
    def from_names(
        cls,
        names: Sequence[str],
        floor: Sequence[str] = ('floor',),
        ceiling: Sequence[str] = ('ceiling',),
    ) -> ClassRoles:
        """Look the roles up in a bundle's class names."""
        return cls(
            floor=tuple(index for index, name in enumerate(names) if name in floor),
            ceiling=tuple(index for index, name in enumerate(names) if name in ceiling),
        )


@dataclass(frozen=True)
class ObstacleConfig:
    """What counts as an obstacle.

    Attributes:
        max_range: farther things are left out, metres along the optical axis.
        max_height: the robot passes below what is higher, metres above the floor.
        ceiling_height: what is labelled ceiling is one only above this, metres.
        drop: what lies lower than this below the floor is a hole, metres (plus 3 deviations).
        floor_roughness: of a real floor and its covering, standard deviation, metres.
        floor_weight: how far a label that is sure of floor can go against height and normal, in
            nats.
        thing_weight: the same for a label that is sure of anything else.
        thin_above: of what is higher than this, one pixel of four becomes a point, metres. Walls
            fill most pictures, and a costmap's cell needs one point.
    """

    max_range: float = 5.0
    max_height: float = 2.0
    ceiling_height: float = 1.6
    drop: float = 0.06
    floor_roughness: float = 0.008
    floor_weight: float = 4.0
    thing_weight: float = 6.0
    thin_above: float = 0.3


@dataclass(frozen=True)
class SceneParts:
    """Masks, bool [H, W]; a pixel without depth is in none of them.

    Attributes:
        obstacle: things to keep away from.
        floor: not an obstacle and not far from the floor's plane.
        hole: below the floor: stairs down, a drop-off, or depth gone wrong.
        ceiling: above the robot.
    """

    obstacle: np.ndarray
    floor: np.ndarray
    hole: np.ndarray
    ceiling: np.ndarray


def split_scene(
    depth: np.ndarray,
    height: np.ndarray | None,
    plane: FloorPlane | None,
    label: np.ndarray | None,
    confidence: np.ndarray | None,
    upward: np.ndarray | None,
    roles: ClassRoles,
    config: ObstacleConfig | None = None,
    *,
    workspace: Workspace | None = None,
) -> SceneParts:
    """Tell obstacles from floor, pixel by pixel, by the sum of three log-likelihood ratios.

    Height: floor scatters around 0 by the noise of depth and of the plane; obstacles have any
    height up to a metre. Label: its confidence against its doubt, bounded, so that a wrong label
    never hides a box and never makes a wall of a carpet. Normal: floor looks up, most obstacles
    do not, though their tops do.

    Without a plane, only labels and the normals' silence decide: all that is not labelled floor
    is an obstacle.

    Args:
        depth: float32 [H, W], metres; NaN where unknown or removed.
        height: float32 [H, W], metres above the plane; None without one.
        plane: the floor, or None.
        label: uint8 [H, W], or None.
        confidence: uint8 [H, W], or None for full confidence.
        upward: float32 [H, W], cosine between normal and the plane's, 0 where unknown; or
            None.
        roles: floor and ceiling classes.
        config: bounds and weights.
        workspace: keeps the masks' memory; they are overwritten by the next call then.
    """
    config = config or ObstacleConfig()
    workspace = workspace or Workspace()
    shape = depth.shape
    obstacle = workspace.array('obstacle', shape, np.bool_)
    near = np.less_equal(depth, config.max_range, out=workspace.array('near', shape, np.bool_))
    is_floor = _is_any(label, roles.floor, shape, workspace.array('is floor', shape, np.bool_))
    ceiling = _is_any(label, roles.ceiling, shape, workspace.array('ceiling', shape, np.bool_))
    if plane is None or height is None:
        np.logical_not(is_floor, out=obstacle)
        obstacle &= near
        obstacle &= ~ceiling
        is_floor &= near
        return SceneParts(obstacle, is_floor, np.zeros(shape, bool), ceiling)

    ceiling &= height > config.ceiling_height
    ceiling |= height > config.max_height
    evidence = workspace.array('evidence', shape)
    deviation = workspace.array('height deviation', shape)
    still = float(
        np.sqrt(
            (plane.relative_noise * plane.height) ** 2
            + plane.height_std**2
            + config.floor_roughness**2
        )
    )
    # A plane tilted by its own uncertainty lifts far points. All of it times the root of 2, which
    # the exponent of the normal distribution wants.
    np.multiply(depth, math.sqrt(2) * plane.angle_std, out=deviation)
    np.add(deviation, math.sqrt(2) * still, out=deviation)

    hole = workspace.array('hole', shape, np.bool_)
    np.multiply(deviation, -3.0 / math.sqrt(2), out=evidence)
    np.subtract(evidence, config.drop, out=evidence)
    np.less(height, evidence, out=hole)
    hole &= near

    # log N(h; 0, deviation^2) against a uniform density of one per metre, but for a constant.
    constant = math.log(still) + 0.5 * math.log(2 * math.pi)
    np.maximum(height, 0, out=evidence)
    np.divide(evidence, deviation, out=evidence)
    np.multiply(evidence, evidence, out=evidence)
    np.minimum(evidence, 12.0 - constant, out=evidence)
    if label is not None:
        np.add(
            evidence,
            _label_evidence(label, confidence, roles.floor, config, workspace),
            out=evidence,
        )
    if upward is not None:
        # Of a network's floor nineteen pixels of twenty are at .97 or more, few of a thing's.
        turned = workspace.array('turned', shape)
        level = workspace.array('level', shape)
        np.multiply(upward, -5.0, out=turned)
        np.add(turned, 4.0, out=turned)
        np.multiply(upward, -34.0, out=level)
        np.add(level, 30.0, out=level)
        np.minimum(turned, level, out=turned)
        np.minimum(turned, 3.0, out=turned)
        np.copyto(turned, 0.0, where=upward == 0)
        np.add(evidence, turned, out=evidence)
    np.greater(evidence, -constant, out=obstacle)
    obstacle &= near
    obstacle &= ~ceiling
    obstacle &= ~hole
    _drop_lonely(obstacle, workspace)
    _drop_lonely(hole, workspace)
    floor = np.logical_or(obstacle, hole, out=workspace.array('floor', shape, np.bool_))
    floor |= ceiling
    np.logical_not(floor, out=floor)
    floor &= near
    return SceneParts(obstacle, floor, hole, ceiling)


def _is_any(
    label: np.ndarray | None, classes: tuple[int, ...], shape: tuple[int, ...], out: np.ndarray
) -> np.ndarray:
    if label is None or not classes:
        out.fill(False)
        return out
    np.equal(label, classes[0], out=out)
    for index in classes[1:]:
        out |= label == index
    return out


def _label_evidence(
    label: np.ndarray,
    confidence: np.ndarray | None,
    floor: tuple[int, ...],
    config: ObstacleConfig,
    workspace: Workspace,
) -> np.ndarray:
    """Return what labels say for an obstacle (above 0) or for floor (below), in nats."""
    side, sureness = _evidence_tables(floor, config.floor_weight)
    evidence = cv2.LUT(label, side, dst=workspace.array('label evidence', label.shape))
    if confidence is None:
        np.multiply(evidence, config.floor_weight, out=evidence)
    else:
        sure = cv2.LUT(confidence, sureness, dst=workspace.array('label sureness', label.shape))
        np.multiply(evidence, sure, out=evidence)
    return np.minimum(evidence, config.thing_weight, out=evidence)


@lru_cache(maxsize=16)
def _evidence_tables(floor: tuple[int, ...], weight: float) -> tuple[np.ndarray, np.ndarray]:
    """Return, by label, which side it takes, and, by confidence, how much that counts."""
    share = np.arange(256) / 255
    sureness = np.clip(np.log((share + 0.02) / (1.02 - share)), 0, weight).astype(np.float32)
    side = np.full(256, _THING_SURENESS, np.float32)
    side[list(floor)] = -1
    side[255] = 0
    return side, sureness


def _drop_lonely(mask: np.ndarray, workspace: Workspace) -> None:
    """Clear, in place, pixels with too few neighbours of their kind."""
    bytes_ = mask.view(np.uint8)
    count = cv2.boxFilter(
        bytes_,
        -1,
        (3, 3),
        dst=workspace.array('company', mask.shape, np.uint8),
        normalize=False,
        borderType=cv2.BORDER_CONSTANT,
    )
    mask &= count >= _COMPANY


def choose_records(
    obstacle: np.ndarray, height: np.ndarray | None, config: ObstacleConfig
) -> np.ndarray:
    """Return the flat indices of the pixels that stand for the obstacles, [K]."""
    if height is None:
        return np.flatnonzero(obstacle)
    kept = height < config.thin_above
    kept[::2, ::2] = True
    kept &= obstacle
    return np.flatnonzero(kept)


def obstacle_records(
    points: np.ndarray,
    chosen: np.ndarray,
    std: np.ndarray | float,
    height: np.ndarray | None,
    label: np.ndarray | None,
    confidence: np.ndarray | None,
    workspace: Workspace | None = None,
) -> np.ndarray:
    """Gather the obstacles' points.

    Args:
        points: float32 [3, H, W].
        chosen: flat indices of their pixels [K].
        std: float32 [H, W], relative standard deviation of depth; or one number for all.
        height: float32 [H, W] above the floor, or None.
        label: uint8 [H, W], or None.
        confidence: uint8 [H, W], or None.
        workspace: keeps the result's memory; it is overwritten by the next call then.

    Returns:
        OBSTACLE_POINT [K].
    """
    if not chosen.size:
        return np.empty(0, OBSTACLE_POINT)
    x, y, z = (plane.take(chosen) for plane in points.reshape(3, -1))
    if height is None:
        above = np.full(chosen.size, np.nan, np.float32)
    else:
        above = height.reshape(-1).take(chosen)
    tags = pack_tags(
        None if label is None else label.reshape(-1).take(chosen)[None],
        None if confidence is None else confidence.reshape(-1).take(chosen)[None],
        np.empty((1, chosen.size, 4), np.uint8),
    )
    workspace = workspace or Workspace()
    room = workspace.array('obstacle records', (points[0].size, 6))
    out = room[: chosen.size]
    deviation = np.sqrt(x * x + y * y + z * z)
    deviation *= std if isinstance(std, float) else std.reshape(-1).take(chosen)
    columns = [x, y, z, deviation, above]
    cv2.merge([*(column[None] for column in columns), tags], dst=out[None])
    return out.view(OBSTACLE_POINT)[:, 0]
