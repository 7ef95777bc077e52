"""Draw what the geometry makes of one picture: parts of the scene, and the map from above.

MUJOCO_GL=egl python benchmarks/draw_geometry.py --out docs/images/geometry.jpg
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from geometry import FIRST_SEED, ROLES, Case, from_truth, network, robot_cases

from mtl_perception.bundle import ModelBundle
from mtl_perception.geometry.pipeline import GeometryConfig, Scene, SceneGeometry

PARTS = {
    'floor': (96, 168, 92),
    'obstacle': (222, 92, 52),
    'ceiling': (112, 148, 214),
    'hole': (160, 70, 190),
}
_METRES, _PIXELS_PER_M = 5.0, 72


def draw_parts(picture: np.ndarray, scene: Scene) -> np.ndarray:
    """Return the picture, uint8 [H, W, 3] RGB, with its parts in colour."""
    image = picture.copy()
    for name, color in PARTS.items():
        mask = getattr(scene.parts, name)
        image[mask] = (0.45 * image[mask] + 0.55 * np.array(color)).astype(np.uint8)
    return image


def draw_map(scene: Scene, base: np.ndarray) -> np.ndarray:
    """Return obstacles (by height), seen floor and scan from above, uint8 [H, W, 3] RGB."""
    width, height = round(_METRES * _PIXELS_PER_M), round(_METRES * _PIXELS_PER_M * 0.75)
    image = np.full((height, width, 3), 246, np.uint8)

    def pixels(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        u = width / 2 - y * _PIXELS_PER_M
        v = height - 12 - x * _PIXELS_PER_M
        return np.stack([u, v], -1).round().astype(np.int32)

    def dots(x: np.ndarray, y: np.ndarray, color: np.ndarray | tuple[int, int, int]) -> None:
        at = pixels(x, y)
        inside = (at >= 0).all(-1) & (at[:, 0] < width) & (at[:, 1] < height)
        image[at[inside, 1], at[inside, 0]] = color if np.ndim(color) == 1 else color[inside]

    cloud = np.stack([scene.cloud[axis][scene.parts.floor] for axis in 'xyz'])
    placed = base[:3, :3] @ cloud + base[:3, 3:]
    dots(placed[0], placed[1], (196, 222, 192))
    points = np.stack([scene.obstacles[axis] for axis in 'xyz'])
    placed = base[:3, :3] @ points + base[:3, 3:]
    shade = np.clip(scene.obstacles['height'] / 1.5, 0, 1)[:, None]
    low, high = np.array(PARTS['obstacle']), np.array((70, 40, 90))
    dots(placed[0], placed[1], (low * (1 - shade) + high * shade).astype(np.uint8))
    config, ranges = scene.scan.config, scene.scan.ranges
    angles = config.angle_min + config.angle_increment * np.arange(config.beams)
    eye = pixels(np.zeros(1), np.zeros(1))[0]
    for angle, distance in zip(angles, ranges, strict=True):
        if np.isnan(distance):
            continue
        reach = min(float(distance), config.range_max)
        end = pixels(np.array([reach * np.cos(angle)]), np.array([reach * np.sin(angle)]))[0]
        if np.isfinite(distance):
            cv2.circle(image, end.tolist(), 2, (20, 20, 20), -1, cv2.LINE_AA)
        else:
            cv2.line(image, (end + (eye - end) // 12).tolist(), end.tolist(), (150, 180, 230), 1)
    cv2.circle(image, eye.tolist(), 6, (20, 20, 20), -1, cv2.LINE_AA)
    return image


def draw(case: Case, prediction, config: GeometryConfig) -> np.ndarray:
    """Return picture, parts and map side by side, uint8 [H, W, 3] RGB."""
    base = case.base_from_camera
    scene = SceneGeometry(config).update(prediction, case.picture, base_from_camera=base)
    panels = [case.picture, draw_parts(case.picture, scene), draw_map(scene, base)]
    height = panels[0].shape[0]
    scaled = [
        cv2.resize(
            panel,
            (round(panel.shape[1] * height / panel.shape[0]), height),
            interpolation=cv2.INTER_AREA,
        )
        for panel in panels
    ]
    gap = np.full((height, 6, 3), 255, np.uint8)
    return np.hstack([scaled[0], gap, scaled[1], gap, scaled[2]])


def main(
    out: Annotated[Path, typer.Option(help='Picture to write.')] = Path('out/geometry.jpg'),
    worlds: Annotated[int, typer.Option(help='One row for each.')] = 3,
    first_seed: Annotated[int, typer.Option(help='Seed of the first world.')] = FIRST_SEED,
    bundle: Annotated[str, typer.Option(help='Bundle to see with; "" sees perfectly.')] = '',
) -> None:
    """Draw the first view of some worlds."""
    perceive = network(ModelBundle.load(bundle)) if bundle else from_truth
    rows = []
    for case in robot_cases(worlds, 1, color=True, first=first_seed):
        scale = 'apply' if bundle else 'off'
        config = GeometryConfig(roles=ROLES, scale=scale, camera_height=case.height)
        rows.append(draw(case, perceive(case), config))
    gap = np.full((6, rows[0].shape[1], 3), 255, np.uint8)
    stacked = [part for row in rows for part in (row, gap)][:-1]
    out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(out), np.vstack(stacked)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == '__main__':
    typer.run(main)
