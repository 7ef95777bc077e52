"""One number that makes depth metric, from what is known about the robot or its sensors.

A network's depth is off mostly by one factor per camera and room. The height of the camera above
the floor, or a few distances of another sensor, show that factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mtl_perception.frames import Intrinsics
from mtl_perception.geometry.backprojection import project
from mtl_perception.geometry.floor import FloorPlane

_FLOOR_AGAINST_PICTURE = 2.5


@dataclass(frozen=True)
class ScaleObservation:
    """True distance / measured distance in one frame, with its standard deviation."""

    scale: float
    std: float
    source: str


def scale_from_height(
    plane: FloorPlane, camera_height: float, camera_height_std: float = 0.01
) -> ScaleObservation:
    """Return what the camera's known height (metres) says about the depth's scale.

    Depth that is uneven on the floor is uneven elsewhere, and the floor as a whole may be off by
    another factor than the rest of the picture. So the noise around the plane counts several
    times: on frames held out of training it is 0.08 of depth, and the scales of floor and picture
    differ by 0.18 (NYUv2) to 0.26 (rendered rooms) where the camera's tilt is known.
    """
    if not camera_height > 0:
        raise ValueError(
            f'camera_height={camera_height}: expected metres above the floor, above 0'
        )
    scale = camera_height / plane.height
    relative = math.hypot(
        plane.height_std / plane.height,
        camera_height_std / camera_height,
        _FLOOR_AGAINST_PICTURE * plane.relative_noise,
    )
    return ScaleObservation(scale, scale * relative, 'camera height')


def scale_from_depths(
    depth: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    z: np.ndarray,
    *,
    min_samples: int = 10,
    source: str = 'sparse depth',
) -> ScaleObservation | None:
    """Compare a depth picture with single known depths.

    Args:
        depth: float32 [H, W], metres; NaN where invalid.
        u: columns of the known depths [K], may lie between pixels and outside the picture.
        v: their rows [K].
        z: true depths along the optical axis [K], metres; NaN or <= 0 counts as unknown.
        min_samples: below this many common pixels there is no answer.
        source: name of the reference.

    Returns:
        The median ratio with the standard error that its spread leaves, or None.
    """
    height, width = depth.shape
    u, v, z = (np.asarray(values, np.float64).reshape(-1) for values in (u, v, z))
    inside = np.isfinite(z) & (z > 0) & (u > -0.5) & (u < width - 0.5)
    inside &= (v > -0.5) & (v < height - 0.5)
    u, v, z = u[inside], v[inside], z[inside]
    measured = depth[np.rint(v).astype(np.intp), np.rint(u).astype(np.intp)]
    known = measured > 0
    if np.count_nonzero(known) < min_samples:
        return None
    ratio = np.log(z[known] / measured[known])
    middle = float(np.median(ratio))
    spread = 1.4826 * float(np.median(np.abs(ratio - middle)))
    # Samples side by side err alike: no more than 25 of them count as independent.
    error = max(1.2533 * spread / math.sqrt(min(ratio.size, 25)), 2e-3)
    scale = math.exp(middle)
    return ScaleObservation(scale, scale * error, source)


def scale_from_scan(
    depth: np.ndarray,
    intrinsics: Intrinsics,
    ranges: np.ndarray,
    angle_min: float,
    angle_increment: float,
    camera_from_laser: np.ndarray,
    *,
    range_min: float = 0.05,
    range_max: float = 30.0,
) -> ScaleObservation | None:
    """Compare a depth picture with a planar LiDAR scan.

    Args:
        depth: float32 [H, W], metres.
        intrinsics: of `depth`.
        ranges: [K], metres, counted as in sensor_msgs/LaserScan.
        angle_min: of the first beam, radians.
        angle_increment: between beams, radians.
        camera_from_laser: [4, 4], laser frame (x forward, y left) to optical frame.
        range_min: shorter ones are no measurement.
        range_max: neither are longer ones.
    """
    ranges = np.asarray(ranges, np.float64)
    angles = angle_min + angle_increment * np.arange(ranges.size)
    seen = np.isfinite(ranges) & (ranges >= range_min) & (ranges <= range_max)
    ranges, angles = ranges[seen], angles[seen]
    beams = np.stack([ranges * np.cos(angles), ranges * np.sin(angles), np.zeros_like(ranges)])
    points = camera_from_laser[:3, :3] @ beams + camera_from_laser[:3, 3:]
    u, v = project(points, intrinsics)
    known = np.isfinite(u)
    return scale_from_depths(depth, u[known], v[known], points[2][known], source='laser scan')


@dataclass(frozen=True)
class ScaleConfig:
    """How the scale may move.

    `prior_std` weighs the network's own scale against what is observed. It was measured on frames
    that the shipped bundle was not trained on: the medians of true / predicted depth spread by
    0.19 (NYUv2) and 0.22 (rendered rooms).

    Attributes:
        prior_std: how far depth is off before anything was observed, relative; what was observed
            long ago fades into this (an Ornstein-Uhlenbeck process of the logarithm).
        drift_per_root_s: how far the scale strays in one second, relative standard deviation.
        floor_std: error of one frame's scale that no covariance shows (uneven floor, pitching).
        alike_s: frames within that time see the same floor and err alike: together they count as
            one, so that a faster camera does not make a surer scale.
        gate: observations farther off than so many standard deviations are set aside...
        patience: ...unless so many follow each other: then the filter starts anew from them.
        bound: a scale outside 1 / bound to bound draws a warning.
        max_std: a scale less certain than this, relative, is not applied.
    """

    prior_std: float = 0.2
    drift_per_root_s: float = 0.02
    floor_std: float = 0.03
    alike_s: float = 1.0
    gate: float = 3.5
    patience: int = 5
    bound: float = 1.5
    max_std: float = 0.2


@dataclass(frozen=True)
class ScaleState:
    """The filtered scale.

    Attributes:
        scale: factor for depth; NaN before the first observation.
        std: its standard deviation; NaN likewise.
        warning: '' or a sentence about what is wrong with it.
        source: what the last accepted observation came from.
    """

    scale: float = math.nan
    std: float = math.nan
    warning: str = ''
    source: str = ''


class ScaleFilter:
    """Follow the scale over time: a Kalman filter of its logarithm, with a gate."""

    def __init__(self, config: ScaleConfig | None = None) -> None:
        self.config = config or ScaleConfig()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._mean = 0.0
        self._variance = self.config.prior_std**2
        self._observed = False
        self._time_s: float | None = None
        self._taken_s = -math.inf
        self._rejected: list[tuple[float, float]] = []
        self._source = ''

    def update(self, observation: ScaleObservation | None, time_s: float) -> ScaleState:
        """Let time pass and take in what the frame at `time_s` showed.

        Time that runs backwards (a recording that starts again) passes as none.
        """
        config = self.config
        if self._time_s is not None:
            passed = max(time_s - self._time_s, 0.0)
            prior = config.prior_std**2
            # As many seconds until the walk has strayed as far as the prior says scales do.
            kept = math.exp(-0.5 * config.drift_per_root_s**2 / prior * passed)
            self._mean *= kept
            self._variance = prior + (self._variance - prior) * kept**2
        self._time_s = time_s
        if observation is not None:
            value = math.log(observation.scale)
            variance = (observation.std / observation.scale) ** 2 + config.floor_std**2
            self._take(value, variance, observation.source, time_s)
        return self.state

    def _take(self, value: float, variance: float, source: str, time_s: float) -> None:
        difference = value - self._mean
        far = difference**2 > self.config.gate**2 * (self._variance + variance)
        if far and self._observed:
            self._rejected.append((value, variance))
            if len(self._rejected) < self.config.patience:
                return
            self._mean = float(np.median([value for value, _ in self._rejected]))
            self._variance = max(variance for _, variance in self._rejected)
        else:
            passed = time_s - self._taken_s
            # Time that ran backwards is another recording or another pass: a new look.
            new = min(passed / self.config.alike_s, 1.0) if passed >= 0 else 1.0
            gain = self._variance * new / (self._variance * new + variance)
            self._mean += gain * difference
            self._variance *= 1 - gain
        self._rejected, self._taken_s = [], time_s
        self._source, self._observed = source, True

    @property
    def state(self) -> ScaleState:
        """The scale now."""
        if not self._observed:
            return ScaleState()
        scale = math.exp(self._mean)
        relative = math.sqrt(self._variance)
        warning = ''
        if abs(self._mean) > math.log(self.config.bound):
            warning = (
                f'depth must be multiplied by {scale:.2f} to be metric, beyond the bound of '
                f'{self.config.bound:g}: check camera_height, camera_info and the bundle'
            )
        elif self._rejected:
            warning = (
                f'the scale of depth jumps: {math.exp(self._rejected[-1][0]):.2f} in this frame, '
                f'{scale:.2f} before; it changes after {self.config.patience} such frames'
            )
        return ScaleState(scale, scale * relative, warning, self._source)
