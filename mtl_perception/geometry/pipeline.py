"""From a prediction to all that a robot drives by, in the order of the work."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from mtl_perception.frames import Intrinsics, Prediction
from mtl_perception.geometry.backprojection import (
    back_project,
    check_picture,
    ray_slopes,
    subsampled,
)
from mtl_perception.geometry.cloud import POINT, flying_pixels, organised_cloud
from mtl_perception.geometry.consistency import (
    agreement_share,
    depth_deviation,
    depth_slopes,
    normal_agreement,
    normal_slopes,
    slope_normals,
)
from mtl_perception.geometry.contact import contact_factors
from mtl_perception.geometry.floor import (
    FloorConfig,
    FloorEstimate,
    FloorPlane,
    fit_floor,
    floor_votes,
    level_axes,
    nominal_plane,
)
from mtl_perception.geometry.obstacles import (
    ClassRoles,
    ObstacleConfig,
    SceneParts,
    choose_records,
    obstacle_records,
    split_scene,
)
from mtl_perception.geometry.scale import (
    ScaleConfig,
    ScaleFilter,
    ScaleObservation,
    ScaleState,
    scale_from_height,
)
from mtl_perception.geometry.scan import (
    ScanConfig,
    combine_beams,
    farthest_per_beam,
    first_row_below_horizon,
    floor_crossings,
    in_base,
    nearest_per_beam,
    scan_config_for,
    spread_to_neighbours,
)
from mtl_perception.geometry.workspace import Workspace

OUTPUTS = frozenset({'points', 'obstacles', 'scan', 'floor'})
SCALE_MODES = ('off', 'estimate', 'apply')
# Pixels of the floor's fit: every 5th of a row and column at 288x384.
_FIT_PIXELS = 4_500
# Where obstacles are moved to their contacts, those up to this share beyond the range are, too.
_CONTACT_REACH = 1.5
# Depth and normals are compared on every second pixel.
_CHECK_STEP = 2
# The scan looks for floor in every second row, and in as many columns as it has beams: rows of
# floor lie far apart at a distance, columns never do.
_SCAN_ROWS = 2
# It looks for obstacles in as many rows as a thing of this height needs at the end of the range.
_SCAN_THING = 0.05


@dataclass(frozen=True)
class GeometryConfig:
    """Everything that can be chosen.

    Attributes:
        roles: which classes are floor and ceiling.
        scale: 'off'; 'estimate' (published); 'apply' (multiplied into everything).
        camera_height: of the optical centre above the floor, metres; None takes it from the
            camera's pose in the base frame, if that is given and the camera is above its origin.
        mount_std_deg: how well the camera's pose in the base frame tells its tilt on the move.
        min_confidence: points below this (0 to 1, after the check for consistency) are left out.
        max_depth: points beyond are left out, metres.
        remove_edges: leave out pixels that hang between two surfaces.
        jump: relative change of depth that counts as an edge.
        contacts: with scale 'apply' and the camera's height known, move obstacles along their
            rays to where they touch the floor (`contact.py`).
        floor_memory_s: how long the last plane stands in when a picture shows none.
        floor: what counts as a floor.
        obstacles: what counts as an obstacle.
        scale_filter: how the scale may move.
        scan: beams; None covers the camera's view.
    """

    roles: ClassRoles = field(default_factory=ClassRoles)
    scale: str = 'off'
    camera_height: float | None = None
    mount_std_deg: float = 2.0
    min_confidence: float = 0.0
    max_depth: float = 10.0
    remove_edges: bool = True
    jump: float = 0.04
    contacts: bool = True
    floor_memory_s: float = 1.0
    floor: FloorConfig = field(default_factory=FloorConfig)
    obstacles: ObstacleConfig = field(default_factory=ObstacleConfig)
    scale_filter: ScaleConfig = field(default_factory=ScaleConfig)
    scan: ScanConfig | None = None

    def __post_init__(self) -> None:
        if self.scale not in SCALE_MODES:
            raise ValueError(f'scale={self.scale!r}: expected one of {", ".join(SCALE_MODES)}')
        if self.camera_height is not None and not self.camera_height > 0:
            raise ValueError(f'camera_height={self.camera_height}: expected metres above 0')


@dataclass(frozen=True)
class Scan:
    """Ranges in the base frame: metres, +inf for free, NaN for unknown."""

    config: ScanConfig
    ranges: np.ndarray


@dataclass(frozen=True)
class Scene:
    """What one frame showed. Arrays are valid until the next `update`.

    Attributes:
        floor: as fitted in this frame, after scaling where that is applied.
        plane: what the rest was computed with: the fitted floor, or, where there is none, the
            mounting's or a remembered one; None when there is nothing to go by.
        scale: filtered scale of depth.
        scale_applied: whether everything here was multiplied by it.
        depth: float32 [H, W], metres, after scaling.
        parts: obstacle, floor, hole, ceiling; None when only the floor was asked for.
        cloud: POINT [H, W], when asked for.
        obstacles: OBSTACLE_POINT [K], when asked for.
        scan: when asked for and the base frame is known.
        scan_refusal: why there is no scan although it was asked for.
    """

    floor: FloorEstimate
    plane: FloorPlane | None
    scale: ScaleState
    scale_applied: bool
    depth: np.ndarray
    parts: SceneParts | None = None
    cloud: np.ndarray | None = None
    obstacles: np.ndarray | None = None
    scan: Scan | None = None
    scan_refusal: str = ''


class SceneGeometry:
    """Turn predictions of one camera into cloud, floor, obstacles and scan.

    It keeps the filtered scale, the last floor and all buffers; every camera has its own.
    """

    def __init__(self, config: GeometryConfig | None = None) -> None:
        self.config = config or GeometryConfig()
        self._workspace = Workspace()
        self._scale = ScaleFilter(self.config.scale_filter)
        self._last_plane: tuple[float, FloorPlane] | None = None
        self._scan_config: tuple[Intrinsics, bytes, ScanConfig] | None = None

    def reset(self) -> None:
        """Forget scale and floor, as at the start of another recording."""
        self._scale.reset()
        self._last_plane = None

    def update(
        self,
        prediction: Prediction,
        rgb: np.ndarray | None = None,
        *,
        time_s: float = 0.0,
        outputs: Collection[str] = OUTPUTS,
        base_from_camera: np.ndarray | None = None,
        scale_reference: ScaleObservation | None = None,
        use_height: bool = True,
        cloud_out: np.ndarray | None = None,
    ) -> Scene:
        """Work out what is asked for.

        Args:
            prediction: with depth and intrinsics; labels, confidence and normals where the
                bundle has them. Nothing in it is changed.
            rgb: uint8 [h, w, 3], the picture, for the cloud's colours; resized where needed.
            time_s: of the frame, seconds; only differences count.
            outputs: names from OUTPUTS.
            base_from_camera: [4, 4], optical frame to base frame, whose origin is on the floor
                and whose z points up. It gives the scan its frame, and the floor a first guess.
            scale_reference: from another sensor, for this frame; takes the place of the height.
            use_height: whether the camera's height may tell the scale where there is none.
            cloud_out: POINT [H, W] for the cloud, for example a message's bytes.
        """
        unknown = set(outputs) - OUTPUTS
        if unknown:
            raise ValueError(f'unknown outputs {sorted(unknown)}: expected {sorted(OUTPUTS)}')
        if prediction.depth is None:
            raise ValueError('the prediction has no depth: geometry needs a bundle with depth')
        if prediction.intrinsics is None:
            raise ValueError(
                'the prediction has no intrinsics: geometry needs a calibrated camera; publish '
                'camera_info'
            )
        config, work = self.config, self._workspace
        camera = prediction.intrinsics
        check_picture('depth', prediction.depth, camera)
        shape = prediction.depth.shape

        depth = work.array('depth', shape)
        inverse = work.array('inverse depth', shape)
        _clean_depth(prediction.depth, depth, inverse)
        normals = self._split_normals(prediction.normal, inverse, camera)
        floor = self._fit(depth, normals, prediction, base_from_camera)
        if scale_reference is None and use_height and config.scale != 'off':
            scale_reference = self._scale_by_height(floor, base_from_camera)
        scale = self._follow_scale(scale_reference, time_s)
        applied = config.scale == 'apply' and scale.std < config.scale_filter.max_std * scale.scale
        if applied:
            np.multiply(depth, scale.scale, out=depth)
            np.divide(inverse, scale.scale, out=inverse)
            if floor.plane is not None:
                floor = FloorEstimate(floor.plane.scaled(scale.scale))
        plane = self._choose_plane(floor, time_s, base_from_camera)
        if not set(outputs) - {'floor'}:
            return Scene(floor, plane, scale, applied, depth)

        noise = FloorPlane.relative_noise if plane is None else plane.relative_noise
        confidence, steepness, std = prediction.confidence, None, noise
        if prediction.normal is not None:
            confidence, steepness, std = self._check(inverse, normals, camera, confidence, noise)
        known_height = self.known_height(base_from_camera) if plane is not None else None
        contacts = config.contacts and config.scale == 'apply' and known_height is not None
        # What comes nearer by its contact may have seemed out of range.
        reach = _CONTACT_REACH if contacts else 1.0
        removed = np.greater(
            depth, config.max_depth * reach, out=work.array('removed', shape, np.bool_)
        )
        if config.remove_edges:
            removed |= flying_pixels(inverse, steepness, jump=config.jump, workspace=work)
        if config.min_confidence > 0 and confidence is not None:
            removed |= confidence < config.min_confidence * 255
        np.copyto(depth, np.nan, where=removed)

        points = back_project(depth, camera, out=work.array('points', (3, *shape)))
        height = upward = None
        if plane is not None:
            height = _heights(plane, depth, camera, work)
            if prediction.normal is not None:
                upward = _plane_product(plane, normals, work, 'upward')
        parts = split_scene(
            depth,
            height,
            plane,
            prediction.label,
            prediction.confidence,
            upward,
            config.roles,
            replace(config.obstacles, max_range=config.obstacles.max_range * reach),
            workspace=work,
        )
        if contacts:
            true_plane = replace(plane, height=known_height)
            stretch = contact_factors(depth, parts.floor, normals, true_plane, camera, work)
            self._move(stretch, parts, points, height, prediction.label, plane, known_height)
        scan, refusal = None, ''
        if 'scan' in outputs:
            scan, refusal = self._scan(camera, plane, points, parts, base_from_camera)
        obstacles = None
        if 'obstacles' in outputs:
            chosen = choose_records(parts.obstacle, height, config.obstacles)
            obstacles = obstacle_records(
                points, chosen, std, height, prediction.label, confidence, work
            )
        cloud = None
        if 'points' in outputs:
            self._hide_unknown(points, parts, plane, camera)
            cloud = organised_cloud(
                points,
                _fitting(rgb, shape),
                prediction.label,
                confidence,
                normals,
                out=work.array('cloud', shape, POINT) if cloud_out is None else cloud_out,
                workspace=work,
            )
        return Scene(floor, plane, scale, applied, depth, parts, cloud, obstacles, scan, refusal)

    def _split_normals(
        self, normal: np.ndarray | None, inverse: np.ndarray, camera: Intrinsics
    ) -> np.ndarray:
        """Return planes of normals, 0 where unknown; derived from depth where none are given."""
        planes = self._workspace.array('normals', (3, *inverse.shape))
        if normal is None:
            return slope_normals(depth_slopes(inverse, workspace=self._workspace), camera, planes)
        cv2.split(np.ascontiguousarray(normal, np.float32), list(planes))
        cv2.patchNaNs(planes.reshape(3, -1), 0.0)
        return planes

    def _check(
        self,
        inverse: np.ndarray,
        normals: np.ndarray,
        camera: Intrinsics,
        confidence: np.ndarray | None,
        noise: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hold depth against normals: return confidence, explained steepness and deviation."""
        work, step = self._workspace, _CHECK_STEP
        every = np.s_[::step, ::step]
        small = subsampled(camera, step, step)
        thin = work.array('thin normals', (3, small.height, small.width))
        np.copyto(thin, normals[:, ::step, ::step])
        measured = depth_slopes(np.ascontiguousarray(inverse[every]), 1, work)
        predicted = normal_slopes(thin, small, work)
        share = agreement_share(normal_agreement(measured, thin, small, work))
        deviation = depth_deviation(measured, predicted, noise, 1)
        steepness = np.abs(predicted.u)
        steepness += np.abs(predicted.v)
        steepness *= 1 / step

        def enlarge(name: str, picture: np.ndarray) -> np.ndarray:
            out = work.array(name, inverse.shape, picture.dtype)
            size = (inverse.shape[1], inverse.shape[0])
            return cv2.resize(picture, size, dst=out, interpolation=cv2.INTER_NEAREST)

        lowered = enlarge('confidence', share)
        if confidence is not None:
            cv2.multiply(lowered, confidence, dst=lowered, scale=1 / 255)
        return lowered, enlarge('steepness', steepness), enlarge('deviation', deviation)

    def _fit(
        self,
        depth: np.ndarray,
        normals: np.ndarray,
        prediction: Prediction,
        base_from_camera: np.ndarray | None,
    ) -> FloorEstimate:
        step = max(1, int(np.sqrt(depth.size / _FIT_PIXELS) + 0.5))
        every = np.s_[::step, ::step]
        points = back_project(
            np.ascontiguousarray(depth[every]), subsampled(prediction.intrinsics, step, step)
        )
        label, confidence = prediction.label, prediction.confidence
        votes = floor_votes(
            None if label is None else np.ascontiguousarray(label[every]),
            None if confidence is None else np.ascontiguousarray(confidence[every]),
            self.config.roles.floor,
            points.shape[1:],
        )
        up = None if base_from_camera is None else tuple(base_from_camera[2, :3])
        return fit_floor(
            points,
            np.ascontiguousarray(normals[:, ::step, ::step]),
            votes,
            self.config.floor,
            labelled=label is not None,
            up=up,
            up_std_deg=self.config.mount_std_deg,
        )

    def known_height(self, base_from_camera: np.ndarray | None) -> float | None:
        """Return how high the camera is known to be above the floor, metres; None if it is not.

        Args:
            base_from_camera: [4, 4], as of `update`; counts where `camera_height` is not set.
        """
        if self.config.camera_height is not None:
            return self.config.camera_height
        # A base that is not below the camera does not lie on the floor.
        if base_from_camera is None or base_from_camera[2, 3] <= 0:
            return None
        return float(base_from_camera[2, 3])

    def _scale_by_height(
        self, floor: FloorEstimate, base_from_camera: np.ndarray | None
    ) -> ScaleObservation | None:
        height = self.known_height(base_from_camera)
        if floor.plane is None or height is None:
            return None
        return scale_from_height(floor.plane, height)

    def _move(
        self,
        stretch: np.ndarray,
        parts: SceneParts,
        points: np.ndarray,
        height: np.ndarray,
        label: np.ndarray | None,
        plane: FloorPlane,
        known_height: float,
    ) -> None:
        """Move, in place, the obstacles along their rays; then leave out what is out of range.

        A thing that is thought too far away seems to stand below the floor. It comes up again
        unless it is labelled floor.
        """
        sunk = None
        if parts.hole.any():
            sunk = parts.hole & (stretch < 1)
            if label is not None:
                for index in self.config.roles.floor:
                    sunk &= label != index
        movable = parts.obstacle if sunk is None else parts.obstacle | sunk
        np.copyto(stretch, 1.0, where=~movable)
        for axis in points:
            np.multiply(axis, stretch, out=axis)
        # Along a ray, height changes linearly from the camera's own; what was moved stands on the
        # floor that is as low as it really is.
        height -= plane.height
        height *= stretch
        height += np.where(stretch == 1, np.float32(plane.height), np.float32(known_height))
        if sunk is not None:
            sunk &= height > -self.config.obstacles.drop
            np.logical_or(parts.obstacle, sunk, out=parts.obstacle)
            np.copyto(parts.hole, False, where=sunk)
        near = points[2] <= self.config.obstacles.max_range
        for part in (parts.obstacle, parts.floor, parts.hole):
            np.logical_and(part, near, out=part)
        beyond = points[2] > self.config.max_depth
        if beyond.any():
            for axis in points:
                np.copyto(axis, np.nan, where=beyond)

    def _follow_scale(self, reference: ScaleObservation | None, time_s: float) -> ScaleState:
        if self.config.scale == 'off':
            return ScaleState()
        return self._scale.update(reference, time_s)

    def _choose_plane(
        self, floor: FloorEstimate, time_s: float, base_from_camera: np.ndarray | None
    ) -> FloorPlane | None:
        if floor.plane is not None:
            self._last_plane = (time_s, floor.plane)
            return floor.plane
        height = self.known_height(base_from_camera)
        if base_from_camera is not None and height is not None:
            up = tuple(base_from_camera[2, :3])
            return nominal_plane(up, height, angle_std_deg=self.config.mount_std_deg)
        if self._last_plane is not None:
            then, plane = self._last_plane
            if 0 <= time_s - then <= self.config.floor_memory_s:
                return plane
        return None

    def _scan(
        self,
        camera: Intrinsics,
        plane: FloorPlane | None,
        points: np.ndarray,
        parts: SceneParts,
        base_from_camera: np.ndarray | None,
    ) -> tuple[Scan | None, str]:
        if base_from_camera is None:
            return None, (
                'no scan: where the camera is on the robot is unknown; set camera_pose, or '
                'base_frame with tf2_ros installed'
            )
        if plane is None:
            return None, 'no scan: no floor is known to tell obstacles from'
        beams = self._beams(camera, base_from_camera)
        step = max(1, int(camera.fy * _SCAN_THING / self.config.obstacles.max_range))
        chosen = np.flatnonzero(parts.obstacle[::step])
        at = np.stack([axis[::step].reshape(-1).take(chosen) for axis in points])
        obstacle = nearest_per_beam(*in_base(base_from_camera, at), beams)

        unknown, floor = self._floor_beams(camera, plane, parts, base_from_camera, beams)
        return Scan(beams, combine_beams(obstacle, unknown, floor, beams)), ''

    @staticmethod
    def _floor_beams(
        camera: Intrinsics,
        plane: FloorPlane,
        parts: SceneParts,
        base_from_camera: np.ndarray,
        beams: ScanConfig,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return, per beam, where the first patch without floor begins and where floor ends."""
        columns = max(1, int(camera.fx * beams.angle_increment))
        coarse = subsampled(camera, _SCAN_ROWS, columns)
        top = first_row_below_horizon(plane, coarse)
        rows = coarse.height - top
        if rows == 0:
            return np.full(beams.beams, np.inf, np.float32), np.zeros(beams.beams, np.float32)
        crossing = floor_crossings(plane, coarse.cropped(0, top, coarse.width, rows))
        x, y = in_base(base_from_camera, crossing)
        every = np.s_[top * _SCAN_ROWS :: _SCAN_ROWS, ::columns]
        seen = parts.floor[every]
        missing = ~(seen | parts.obstacle[every] | parts.ceiling[every])
        # A few pixels left out at edges are no hole.
        missing = cv2.erode(missing.view(np.uint8), np.ones((3, 3), np.uint8)).view(np.bool_)
        unknown = spread_to_neighbours(nearest_per_beam(x[missing], y[missing], beams))
        return unknown, farthest_per_beam(x[seen], y[seen], beams)

    def _beams(self, camera: Intrinsics, base_from_camera: np.ndarray) -> ScanConfig:
        if self.config.scan is not None:
            return self.config.scan
        key = base_from_camera.tobytes()
        if self._scan_config is None or self._scan_config[:2] != (camera, key):
            beams = scan_config_for(camera, base_from_camera, self.config.obstacles.max_range)
            self._scan_config = (camera, key, beams)
        return self._scan_config[2]

    def _hide_unknown(
        self,
        points: np.ndarray,
        parts: SceneParts,
        plane: FloorPlane | None,
        camera: Intrinsics,
    ) -> None:
        """Take out of the cloud whatever must not clear a costmap: ceiling, holes, and beyond."""
        hidden = np.logical_or(
            parts.ceiling, parts.hole, out=self._workspace.array('hidden', parts.hole.shape, bool)
        )
        if plane is not None and parts.hole.any():
            hidden |= beyond_holes(points, parts.hole, plane, camera)
        for axis in points:
            np.copyto(axis, np.nan, where=hidden)


def beyond_holes(
    points: np.ndarray, hole: np.ndarray, plane: FloorPlane, camera: Intrinsics
) -> np.ndarray:
    """Find the points whose ray, seen from above, passes over a hole: bool [H, W].

    A costmap clears along that line, and would drive the robot into the hole.
    """
    sideways, up, forwards = level_axes(plane.normal)
    ground = np.eye(4)
    ground[:3, :3] = np.stack([forwards, -sideways, up])
    beams = ScanConfig(-np.pi, np.pi - np.radians(0.25), np.radians(0.5), range_min=0.0)
    x, y = in_base(ground, floor_crossings(plane, camera)[:, hole])
    first = nearest_per_beam(x, y, beams)
    x, y = in_base(ground, points)
    with np.errstate(invalid='ignore'):
        ranges = np.hypot(x, y)
        beam = np.rint((np.arctan2(y, x) + np.pi) / beams.angle_increment)
        beam = np.nan_to_num(beam).astype(np.intp) % beams.beams
        return ranges > first[beam]


def _clean_depth(source: np.ndarray, depth: np.ndarray, inverse: np.ndarray) -> None:
    """Copy depth with NaN for all that is no distance, and its inverse with 0 there."""
    with np.errstate(divide='ignore', invalid='ignore'):
        np.divide(1.0, source, out=inverse, casting='unsafe')
        usable = (inverse > 1e-4) & (inverse < 1e4)
    np.copyto(depth, source)
    if not usable.all():
        lost = ~usable
        np.copyto(depth, np.nan, where=lost)
        np.copyto(inverse, 0.0, where=lost)


def _heights(
    plane: FloorPlane, depth: np.ndarray, camera: Intrinsics, work: Workspace
) -> np.ndarray:
    """Return how far each pixel's point lies above the plane, float32 [H, W] metres."""
    x, y = ray_slopes(camera)
    a, b, c = (float(value) for value in plane.normal)
    height = np.add(x * a, y * b + c, out=work.array('height', depth.shape))
    height *= depth
    height += float(plane.height)
    return height


def _plane_product(
    plane: FloorPlane, vectors: np.ndarray, work: Workspace, name: str
) -> np.ndarray:
    """Return normal . vectors, float32 [H, W]."""
    out = work.array(name, vectors.shape[1:])
    normal = np.asarray(plane.normal, np.float32)
    np.dot(normal, vectors.reshape(3, -1), out=out.reshape(-1))
    return out


def _fitting(rgb: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    if rgb is None or rgb.shape[:2] == tuple(shape):
        return rgb
    return cv2.resize(rgb, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
