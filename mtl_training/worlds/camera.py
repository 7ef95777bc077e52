"""Cameras: where they look from, and how a cheap sensor shows linear light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mtl_perception.frames import Intrinsics
from mtl_training.worlds.parts import CLASSES, LABEL
from mtl_training.worlds.plan import Room
from mtl_training.worlds.world import View, World


def camera_pose(
    x: float, y: float, z: float, yaw: float, pitch: float, roll: float = 0.0
) -> np.ndarray:
    """Return optical frame to world, float64 [4, 4].

    Args:
        x, y, z: of the camera, metres.
        yaw: radians, 0 looks along +x, counterclockwise seen from above.
        pitch: radians, negative looks down.
        roll: radians about the optical axis.
    """
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    down = np.cross(forward, right)
    turned = np.cos(roll) * right + np.sin(roll) * down
    pose = np.eye(4)
    pose[:3, :3] = np.stack([turned, np.cross(forward, turned), forward], 1)
    pose[:3, 3] = (x, y, z)
    return pose


@dataclass(frozen=True)
class Sensor:
    """How one camera develops its pictures.

    Attributes:
        gain: exposure; 1 brings the picture's log-mean to a mid tone.
        white: gains of red, green, blue.
        balance: how far the automatic white balance turns the picture's mean to grey, 0 to 1.
        contrast: of the tone curve, 1 is sRGB.
        noise: deviation of read noise, share of full scale; shot noise grows with it.
        blur_px: of lens and demosaicing.
        motion_px: length of the motion's smear, and its direction in radians.
        bloom: share of overexposed light that spreads.
        vignette: loss of light in the corners.
        quality: of the JPEG.
        border: paint the white frame of NYUv2's undistorted pictures.
    """

    gain: float = 1.0
    white: tuple[float, float, float] = (1.0, 1.0, 1.0)
    balance: float = 0.6
    contrast: float = 1.0
    saturation: float = 1.0
    noise: float = 0.01
    blur_px: float = 0.6
    motion_px: float = 0.0
    motion_rad: float = 0.0
    bloom: float = 0.15
    vignette: float = 0.15
    quality: int = 90
    border: bool = False

    @classmethod
    def random(cls, rng: np.random.Generator) -> Sensor:
        """Return a sensor as different from others as webcams are."""
        warm = rng.normal(0.02, 0.07)
        green = rng.normal(0, 0.02)
        return cls(
            gain=float(np.exp(rng.normal(0.0, 0.25))),
            white=(1 + warm, 1 + green, 1 - warm),
            balance=float(rng.uniform(0.35, 0.9)),
            contrast=float(rng.uniform(0.95, 1.3)),
            saturation=float(rng.uniform(0.8, 1.15)),
            noise=float(rng.uniform(0.003, 0.025)),
            blur_px=float(rng.uniform(0.2, 0.7)),
            motion_px=float(rng.choice([0, 0, 0, 0, rng.uniform(1, 4)])),
            motion_rad=float(rng.uniform(0, np.pi)),
            bloom=float(rng.uniform(0.05, 0.3)),
            vignette=float(rng.uniform(0, 0.3)),
            quality=int(rng.integers(78, 96)),
        )

    def develop(
        self, radiance: np.ndarray, rng: np.random.Generator, exposure: float | None = None
    ) -> np.ndarray:
        """Return the camera's picture, uint8 [H, W, 3] RGB, of linear light float32 [H, W, 3].

        Args:
            exposure: factor on the light; measured from the picture when None.
        """
        height, width = radiance.shape[:2]
        if exposure is None:
            exposure = self.measure(radiance)
        mean = np.minimum(radiance[::4, ::4], 2 / exposure).reshape(-1, 3).mean(0) + 1e-4
        white = np.asarray(self.white) * (mean.mean() / mean) ** self.balance
        image = radiance * (exposure * self.gain * white).astype(np.float32)
        over = cv2.GaussianBlur(np.minimum(np.maximum(image - 0.8, 0), 3), (0, 0), width / 60)
        image = image + self.bloom * over
        if self.blur_px > 0.2:
            image = cv2.GaussianBlur(image, (0, 0), self.blur_px)
        if self.motion_px >= 1:
            steps = int(np.ceil(self.motion_px)) | 1
            kernel = np.zeros((steps + 2, steps + 2), np.float32)
            for at in np.linspace(-0.5, 0.5, 4 * steps):
                u = (steps + 1) / 2 + at * (self.motion_px - 1) * np.cos(self.motion_rad)
                v = (steps + 1) / 2 + at * (self.motion_px - 1) * np.sin(self.motion_rad)
                kernel[round(v), round(u)] += 1
            image = cv2.filter2D(image, -1, kernel / kernel.sum())
        v, u = np.mgrid[:height, :width].astype(np.float32)
        radius = np.hypot(u / width - 0.5, v / height - 0.5) / 0.707
        image = image * (1 - self.vignette * radius**2)[..., None]
        grain = rng.standard_normal(image.shape).astype(np.float32)
        # Demosaicing spreads each pixel's noise over its neighbours.
        grain = cv2.GaussianBlur(grain, (0, 0), 0.6) * 1.8
        image = image + grain * self.noise * np.sqrt(np.clip(image, 0.02, 1))
        grey = image @ np.array([0.3, 0.59, 0.11], np.float32)
        image = grey[..., None] + self.saturation * (image - grey[..., None])
        image = np.clip(image, 0, 1) ** (1 / 2.2)
        image = np.clip(0.45 + (image - 0.45) * self.contrast, 0, 1)
        picture = (image * 255 + 0.5).astype(np.uint8)
        if self.border:
            side, top = round(width / 96), round(height / 90)
            picture[:top] = picture[-top:] = 253
            picture[:, :side] = picture[:, -side:] = 253
        return picture

    @staticmethod
    def measure(radiance: np.ndarray) -> float:
        """Return the exposure that brings the picture's log-mean to a mid tone."""
        grey = radiance[::4, ::4].mean(-1)
        return float(0.13 / np.exp(np.log(np.clip(grey, 1e-3, 3)).mean()))


NYU = Intrinsics(384, 288, 311.31, 311.68, 195.35, 152.24)


def sample_intrinsics(rng: np.random.Generator, nyu_share: float = 0.7) -> Intrinsics:
    """Return a camera of 384x288: NYUv2's mostly, else of focal length 220 to 620 px."""
    if rng.random() < nyu_share:
        return NYU
    focal = float(np.exp(rng.uniform(np.log(220), np.log(620))))
    cx, cy = rng.normal(191.5, 6), rng.normal(143.5, 6)
    return Intrinsics(384, 288, focal, focal * rng.normal(1, 0.003), float(cx), float(cy))


TRIES = 20
GLANCE = 0.25
"""Candidate views are judged at a quarter of the picture's size."""


def sample_pose(
    world: World, rng: np.random.Generator, intrinsics: Intrinsics, min_things: int = 0
) -> np.ndarray:
    """Return a pose, float64 [4, 4], from which something is to be seen.

    Poses are drawn until one shows several classes at a fair distance and at least `min_things`
    things, or else the best of TRIES is taken.

    Raises:
        RuntimeError: the world leaves no free place for a camera.
    """
    glance = intrinsics.scaled(
        GLANCE, round(intrinsics.width * GLANCE), round(intrinsics.height * GLANCE)
    )
    areas = np.array([room.area for room in world.rooms])
    best: tuple[float, np.ndarray] | None = None
    for _ in range(TRIES):
        room = world.rooms[int(rng.choice(len(areas), p=areas / areas.sum()))]
        pose = _random_pose(world, room, rng)
        if pose is None:
            continue
        score = _interest(world.render(pose, glance, color=False), min_things)
        if best is None or score > best[0]:
            best = (score, pose)
        if score > 5.5 - rng.exponential(1.0):
            break
    if best is None:
        raise RuntimeError(f'world {world.seed} leaves no free place for a camera')
    return best[1]


def _random_pose(world: World, room: Room, rng: np.random.Generator) -> np.ndarray | None:
    """Return a pose in a free place of a room, turned roughly inwards; None when cramped."""
    height = rng.uniform(0.9, 1.7) if rng.random() < 0.72 else rng.uniform(0.2, 0.9)
    # Heights in steps, so that few maps are made.
    level = 0.2 * round(height / 0.2)
    free = world.clearance(max(level - 0.3, 0.03), level + 0.3)
    for _ in range(30):
        x = rng.uniform(room.x0 + 0.25, room.x1 - 0.25)
        y = rng.uniform(room.y0 + 0.25, room.y1 - 0.25)
        if free[world.cell(x, y)] > 0.3:
            break
    else:
        return None
    toward = room.center + rng.normal(0, 0.8, 2) - (x, y)
    yaw = np.arctan2(toward[1], toward[0]) + rng.normal(0, 0.45)
    pitch = np.clip(rng.normal(-0.2 * (height - 0.3), 0.15), -0.9, 0.5)
    return camera_pose(x, y, height, yaw, pitch, rng.normal(0, 0.035))


def _interest(view: View, min_things: int) -> float:
    """Return how much a view shows: about the number of classes, less for what fills it."""
    share = np.bincount(view.label.ravel(), minlength=256)[: len(CLASSES)] / view.label.size
    depth = np.nan_to_num(view.depth, nan=10.0)
    score = float((share > 0.008).sum())
    score -= 8 * max(share[LABEL['wall']] - 0.33, 0) + 6 * max(share[LABEL['floor']] - 0.16, 0)
    score -= 10 * max(share.max() - 0.5, 0) + 8 * max(np.mean(depth < 0.75) - 0.06, 0)
    score -= 2 * abs(np.log(np.median(depth) / 2.7))
    things = len(np.unique(view.instance[view.instance >= 0])) if min_things else 0
    return score - (20 + min_things - things if things < min_things else 0)
