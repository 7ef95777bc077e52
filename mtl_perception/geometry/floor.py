"""The floor as a plane, from labels, normals and positions together."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

LEVEL_UP = (0.0, -1.0, 0.0)
_NORMAL_BIN = 0.06  # tangent of an angle: 3.4 degrees
_HEIGHT_BIN = 0.03  # logarithm: 3 percent
_LOWEST, _HIGHEST = 0.02, 20.0  # metres the histogram of heights covers
# Scales of the robust weight, from what a badly scaled first guess needs down to what is left of
# it; then the scale follows the residuals.
_ANNEALING = (0.25, 0.15, 0.09)
_REFINEMENTS = 3
# How the noise of depth is guessed before there are pixels that show it.
_NOISE_GUESS, _NOISE_GUESS_PIXELS = 0.05, 30.0


@dataclass(frozen=True)
class FloorConfig:
    """What counts as a floor.

    Attributes:
        max_pitch_deg: how far the camera may look down or up.
        max_roll_deg: how far it may be tilted sideways.
        max_prior_error_deg: how far it may be off a known mounting; replaces both then.
        normal_tolerance_deg: how far one pixel's normal may be off beyond that.
        min_height: lowest camera, metres (in the depth's own scale).
        max_height: highest camera, metres.
        min_pixels: below this, nothing is fitted.
        pixels_per_sample: neighbouring pixels err alike; so many of them count as one sample.
        samples_at_most: errors that span the picture do not average out at all.
        normals_bias: error that all normals of a floor share, as a multiple of their spread.
        min_confidence: below this there is no floor.
    """

    max_pitch_deg: float = 40.0
    max_roll_deg: float = 18.0
    max_prior_error_deg: float = 15.0
    normal_tolerance_deg: float = 20.0
    min_height: float = 0.05
    max_height: float = 3.0
    min_pixels: int = 30
    pixels_per_sample: float = 8.0
    samples_at_most: float = 20.0
    normals_bias: float = 1.0
    min_confidence: float = 0.15


@dataclass(frozen=True)
class FloorPlane:
    """The points p of the optical frame with normal . p + height = 0.

    Attributes:
        normal: unit vector up, from the floor to the camera; (0, -1, 0) for a level camera.
        height: of the optical centre above the floor, metres.
        covariance: float64 [4, 4], of (normal, height); singular along the normal.
        confidence: 0 to 1.
        pixels: how many supported the fit.
        inlier_fraction: their share of all pixels that looked like floor.
        relative_noise: standard deviation of depth around the plane, as a share of depth. Since
            an error stretches the whole ray, it lifts a floor point by `relative_noise * height`,
            however far away the point is.
    """

    normal: tuple[float, float, float]
    height: float
    covariance: np.ndarray
    confidence: float
    pixels: int = 0
    inlier_fraction: float = 0.0
    relative_noise: float = _NOISE_GUESS

    @property
    def pitch_deg(self) -> float:
        """How far the camera looks down, degrees."""
        return float(np.degrees(np.arcsin(np.clip(-self.normal[2], -1, 1))))

    @property
    def roll_deg(self) -> float:
        """How far the camera is tilted clockwise, degrees."""
        return float(np.degrees(np.arctan2(-self.normal[0], -self.normal[1])))

    @property
    def angle_std(self) -> float:
        """Standard deviation of the normal's direction along its worst axis, radians."""
        return float(np.sqrt(max(np.linalg.eigvalsh(self.covariance[:3, :3])[-1], 0.0)))

    @property
    def height_std(self) -> float:
        """Standard deviation of `height`, metres."""
        return float(np.sqrt(max(self.covariance[3, 3], 0.0)))

    def height_of(self, points: np.ndarray) -> np.ndarray:
        """Return how far points [3, ...] lie above the floor, metres."""
        a, b, c = (float(value) for value in self.normal)
        return points[0] * a + points[1] * b + points[2] * c + float(self.height)

    def scaled(self, scale: float) -> FloorPlane:
        """Return the plane in a world whose every length is multiplied by `scale`."""
        stretch = np.array([1, 1, 1, scale], np.float64)
        return replace(
            self,
            height=self.height * scale,
            covariance=self.covariance * np.outer(stretch, stretch),
        )


@dataclass(frozen=True)
class FloorEstimate:
    """A plane, or the reason why there is none."""

    plane: FloorPlane | None
    reason: str = ''


def nominal_plane(
    up: tuple[float, float, float],
    height: float,
    *,
    angle_std_deg: float = 3.0,
    height_std: float = 0.03,
) -> FloorPlane:
    """Return the floor as the camera's mounting has it, for when no picture shows one."""
    normal = np.asarray(up, np.float64)
    normal = normal / np.linalg.norm(normal)
    covariance = np.zeros((4, 4))
    covariance[:3, :3] = (np.eye(3) - np.outer(normal, normal)) * np.radians(angle_std_deg) ** 2
    covariance[3, 3] = height_std**2
    return FloorPlane(tuple(float(v) for v in normal), float(height), covariance, 0.0)


def floor_votes(
    label: np.ndarray | None,
    confidence: np.ndarray | None,
    floor_classes: tuple[int, ...],
    shape: tuple[int, ...],
) -> np.ndarray:
    """Return how strongly labels speak for floor, 0 to 255, int32 of `shape`.

    Floor counts by its confidence, other labels by their doubt, divided by 8. Without any labels
    all pixels are equal.
    """
    if label is None:
        return np.full(shape, 255, np.int32)
    confidence = np.broadcast_to(np.uint8(255) if confidence is None else confidence, shape)
    table = np.zeros((2, 256), np.int32)
    table[1] = np.arange(256)
    table[0] = (255 - np.arange(256)) // 8
    is_floor = np.zeros(256, np.intp)
    is_floor[list(floor_classes)] = 1
    votes = table.reshape(-1).take(is_floor.take(label) * 256 + confidence)
    votes[label == 255] = 32
    return votes


def fit_floor(
    points: np.ndarray,
    normals: np.ndarray,
    votes: np.ndarray,
    config: FloorConfig | None = None,
    *,
    labelled: bool = True,
    up: tuple[float, float, float] | None = None,
    up_std_deg: float = 3.0,
) -> FloorEstimate:
    """Fit the floor; the order of the pixels does not matter and nothing is drawn by lot.

    1. Pixels whose label does not exclude floor, and whose normal the camera's possible tilts
       allow, vote for a direction in a histogram; its strongest cell is refined to a mean.
    2. Along it, they vote for a height. The lowest strong peak wins: tables have level tops too,
       but nothing is below the floor.
    3. From there, a robust fit (iteratively reweighted least squares, Geman-McClure, scale
       annealed as in graduated non-convexity) of a . p = 1 over the points p. The residual is
       the relative error of depth, so near and far pixels count alike. The mean of the normals,
       and the mounting where it is known, take part as further measurements of the direction,
       each with its variance; so a narrow strip of floor, which leaves depth undecided about its
       tilt, still gives a plane.

    Args:
        points: float32 [3, ...], metres, optical frame; NaN where depth is unknown.
        normals: float32 [3, ...], unit vectors towards the camera; NaN or 0 where unknown.
        votes: integers [...], 0 to 255: how much each pixel may be floor (see `floor_votes`).
        config: what counts as floor.
        labelled: whether the votes come from labels.
        up: the direction up as the camera is mounted, when known.
        up_std_deg: how well it is known.
    """
    config = config or FloorConfig()
    points = points.reshape(3, -1)
    normals = normals.reshape(3, -1)
    votes = votes.reshape(-1)
    possible = votes > 0
    if not possible.any():
        return FloorEstimate(None, 'no pixel is labelled floor')

    axes = level_axes(LEVEL_UP if up is None else up)
    if up is None:
        limits = (config.max_roll_deg, config.max_pitch_deg)
    else:
        limits = (config.max_prior_error_deg,) * 2
    tangents = [
        float(np.tan(np.radians(min(limit + config.normal_tolerance_deg, 75)))) for limit in limits
    ]
    along = _dot(axes[1], normals)
    with np.errstate(invalid='ignore', divide='ignore', over='ignore'):
        sideways = _dot(axes[0], normals) / along
        forwards = _dot(axes[2], normals) / along
        allowed = possible & (along > 0.2)
        allowed &= (np.abs(sideways) < tangents[0]) & (np.abs(forwards) < tangents[1])
        allowed &= points[2] > 0
        allowed &= points[2] < 1e4
    chosen = np.flatnonzero(allowed)
    if chosen.size < config.min_pixels:
        return FloorEstimate(
            None,
            f'{chosen.size} pixels are floor by label and normal; {config.min_pixels} are needed',
        )
    points = points[:, chosen]
    normals = normals[:, chosen]
    votes = votes[chosen]

    direction = _vote_direction(normals, votes, sideways[chosen], forwards[chosen], tangents, axes)
    heights = -_dot(direction, points)
    # Labels leave little but floor; without them beds and tables may outvote what is below them.
    strong = 0.5 if labelled else 0.1
    height = _vote_height(heights, points[2], votes, strong)
    if height is None:
        return FloorEstimate(None, 'what is labelled floor lies above the camera')

    facing = _dot(direction, normals)
    level = np.cos(np.radians(config.normal_tolerance_deg + 10))
    gate = np.clip((facing - level) / (1 - level) * 2, 0, 1)
    weights = np.where(heights > 0, gate * votes, 0).astype(np.float32) / np.float32(255)
    return _fit_plane(points, normals, weights, direction, height, config, limits, up, up_std_deg)


def _dot(vector: np.ndarray, planes: np.ndarray) -> np.ndarray:
    return np.asarray(vector, planes.dtype) @ planes


@lru_cache(maxsize=16)
def level_axes(up: tuple[float, float, float]) -> np.ndarray:
    """Return rows sideways, up and forwards of a level frame below the camera.

    Forwards is where the camera looks or, where it looks straight up or down, the picture's top.

    Args:
        up: direction in the optical frame, of any length above 0.

    Returns:
        float64 [3, 3], unit vectors in the optical frame; shared and read-only.
    """
    x, y, z = (value / math.hypot(*up) for value in up)
    ahead = (-z * x, -z * y, 1 - z * z) if abs(z) < 1 - 1e-9 else (x * y, y * y - 1, y * z)
    a, b, c = (value / math.hypot(*ahead) for value in ahead)
    axes = np.array([[b * z - c * y, c * x - a * z, a * y - b * x], [x, y, z], [a, b, c]])
    axes.flags.writeable = False
    return axes


def _across(direction: np.ndarray) -> np.ndarray:
    """Return the projection [3, 3] onto the plane across a unit vector."""
    return np.eye(3) - direction[:, None] * direction


def _vote_direction(
    normals: np.ndarray,
    votes: np.ndarray,
    sideways: np.ndarray,
    forwards: np.ndarray,
    tangents: list[float],
    axes: np.ndarray,
) -> np.ndarray:
    """Return the unit direction most normals share."""
    size = [int(2 * tangent / _NORMAL_BIN) + 1 for tangent in tangents]
    column = ((sideways + tangents[0]) * (1 / _NORMAL_BIN)).astype(np.int32)
    row = ((forwards + tangents[1]) * (1 / _NORMAL_BIN)).astype(np.int32)
    # Votes are whole numbers, so that their sums do not depend on the order of the pixels.
    cells = np.bincount(row * size[0] + column, weights=votes, minlength=size[0] * size[1])
    cells = cells[: size[0] * size[1]].reshape(size[1], size[0])
    smooth = cv2.boxFilter(cells, -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    row, column = np.unravel_index(int(np.argmax(smooth)), smooth.shape)
    direction = (
        axes[1]
        + axes[0] * ((column + 0.5) * _NORMAL_BIN - tangents[0])
        + axes[2] * ((row + 0.5) * _NORMAL_BIN - tangents[1])
    )
    direction /= np.linalg.norm(direction)
    for reach_deg in (16, 12, 12):
        near = np.where(_dot(direction, normals) > np.cos(np.radians(reach_deg)), votes, 0)
        mean = normals.astype(np.float64) @ near
        length = np.linalg.norm(mean)
        if length == 0:
            break
        direction = mean / length
    return direction


def _vote_height(
    heights: np.ndarray, depth: np.ndarray, votes: np.ndarray, strong: float
) -> float | None:
    """Return the camera's height above the lowest level with a `strong` share of the best."""
    below = heights > _LOWEST
    if not below.any():
        return None
    heights, depth, votes = heights[below], depth[below], votes[below]
    # A direction 3 degrees off moves far points more than near ones.
    blur = depth * np.float32(np.tan(np.radians(3))) / heights
    votes = np.rint(votes / (1 + blur * blur))
    bins = int(np.log(_HIGHEST / _LOWEST) / _HEIGHT_BIN) + 1
    index = (np.log(heights * np.float32(1 / _LOWEST)) * (1 / _HEIGHT_BIN)).astype(np.int32)
    histogram = np.bincount(np.minimum(index, bins - 1), weights=votes, minlength=bins)
    smooth = np.convolve(histogram, (1, 2, 3, 2, 1), mode='same')
    if not smooth.max() > 0:
        return None
    peak = int(np.flatnonzero(smooth >= strong * smooth.max())[-1])
    while peak > 0 and smooth[peak - 1] > smooth[peak]:
        peak -= 1
    return float(_LOWEST * np.exp((peak + 0.5) * _HEIGHT_BIN))


def _fit_plane(
    points: np.ndarray,
    normals: np.ndarray,
    weights: np.ndarray,
    direction: np.ndarray,
    height: float,
    config: FloorConfig,
    limits: tuple[float, float],
    up: tuple[float, float, float] | None,
    up_std_deg: float,
) -> FloorEstimate:
    a = -direction / height
    noise, information = _NOISE_GUESS, np.eye(3)
    robust, support, count = weights, 0.0, 0
    mounting = 0.0
    if up is not None:
        mounting = _across(level_axes(up)[1]) / np.radians(up_std_deg) ** 2
    # Until the fit has settled, the direction that was voted for counts as known to 3 degrees.
    mean, variance, samples = direction, np.radians(3) ** 2, config.samples_at_most
    for step in range(len(_ANNEALING) + _REFINEMENTS):
        residual = _dot(a, points) - np.float32(1)
        scale = _ANNEALING[step] if step < len(_ANNEALING) else max(2.5 * noise, 0.01)
        square = np.square(residual * np.float32(1 / scale))
        robust = weights / np.square(square + np.float32(1))
        support = float(robust.sum(dtype=np.float64))
        if not support > 0:
            return FloorEstimate(None, 'what is labelled floor lies on no common plane')
        if step >= len(_ANNEALING):
            inliers = square < 1
            inliers &= weights > 0
            count = int(np.count_nonzero(inliers))
            noise = _noise(residual[inliers])
            samples = min(max(count / config.pixels_per_sample, 1.0), config.samples_at_most)
            mean, spread = _mean_normal(normals, robust)
            variance = spread**2 * (config.normals_bias**2 + 1 / samples) + np.radians(0.05) ** 2
        # In float64 from here on: three nearly dependent columns lose half the digits.
        moments = ((points * robust) @ points.T).astype(np.float64)
        vector = (points @ robust).astype(np.float64)
        per_weight = samples / (support * noise**2)
        square_length = float(a @ a)
        information = moments * per_weight
        information += (_across(mean) / variance + mounting) / square_length
        a = np.linalg.solve(information, vector * per_weight)

    length = float(np.linalg.norm(a))
    normal = -a / length
    height = 1 / length
    jacobian = np.empty((4, 3))
    jacobian[:3] = -_across(normal) / length
    jacobian[3] = normal * height**2
    covariance = jacobian @ np.linalg.inv(information) @ jacobian.T
    fraction = float(robust.sum(dtype=np.float64) / weights.sum(dtype=np.float64))
    plane = FloorPlane(
        normal=tuple(float(value) for value in normal),
        height=height,
        covariance=(covariance + covariance.T) / 2,
        confidence=0.0,
        pixels=count,
        inlier_fraction=fraction,
        relative_noise=noise,
    )
    plane = replace(plane, confidence=_confidence(plane, config))
    reason = _objection(plane, config, limits, up)
    return FloorEstimate(None, reason) if reason else FloorEstimate(plane)


def _noise(residuals: np.ndarray) -> float:
    """Return the robust standard deviation, drawn to a guess where there are few pixels."""
    if residuals.size == 0:
        return _NOISE_GUESS
    magnitude = np.abs(residuals)
    middle = 1.4826 * float(np.partition(magnitude, magnitude.size // 2)[magnitude.size // 2])
    share = residuals.size / (residuals.size + _NOISE_GUESS_PIXELS)
    variance = share * middle**2 + (1 - share) * _NOISE_GUESS**2
    return max(float(np.sqrt(variance)), 2e-3)


def _mean_normal(normals: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the mean direction and the spread around it, radians."""
    total = (normals @ weights).astype(np.float64)
    length = float(np.linalg.norm(total))
    share = min(length / float(weights.sum(dtype=np.float64)), 1.0)
    return total / length, float(np.sqrt(2 * (1 - share)))


def _confidence(plane: FloorPlane, config: FloorConfig) -> float:
    """Multiply what speaks for a plane: enough pixels, small residuals, well determined."""
    support = plane.pixels / (plane.pixels + 3 * config.min_pixels)
    fit = np.exp(-((plane.relative_noise / 0.15) ** 2))
    angle = np.exp(-((np.degrees(plane.angle_std) / 10) ** 2))
    height = np.exp(-((plane.height_std / plane.height / 0.25) ** 2))
    # An outlier share of a half is common where labels spill over a skirting board.
    common = min(plane.inlier_fraction / 0.5, 1.0)
    return float(support * fit * angle * height * common)


def _objection(
    plane: FloorPlane,
    config: FloorConfig,
    limits: tuple[float, float],
    up: tuple[float, float, float] | None,
) -> str:
    """Return why this plane is no floor, or ''."""
    axes = level_axes(LEVEL_UP if up is None else up)
    normal = np.asarray(plane.normal)
    roll = np.degrees(np.arctan2(abs(axes[0] @ normal), axes[1] @ normal))
    pitch = np.degrees(np.arctan2(abs(axes[2] @ normal), axes[1] @ normal))
    if roll > limits[0] or pitch > limits[1]:
        return (
            f'the plane is tilted by {pitch:.0f} degrees of pitch and {roll:.0f} of roll; '
            f'up to {limits[1]:.0f} and {limits[0]:.0f} are allowed'
        )
    if not config.min_height <= plane.height <= config.max_height:
        return (
            f'the plane lies {plane.height:.2f} m below the camera; '
            f'{config.min_height:.2f} to {config.max_height:.2f} m are allowed'
        )
    if plane.confidence < config.min_confidence:
        return (
            f'the plane is too uncertain: {plane.pixels} pixels, '
            f'{100 * plane.relative_noise:.0f} % noise of depth, '
            f'+-{np.degrees(plane.angle_std):.1f} degrees, +-{plane.height_std:.2f} m'
        )
    return ''
