"""Light per pixel: lamps and windows with soft shadows, light reflected by the room, highlights.

MuJoCo's own shading is per vertex, with hard shadows and no light from walls; pictures made so
look little like a camera's. Here depth and parts from MuJoCo are shaded in plain numpy instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtl_training.worlds.lights import Light, ShadowCube, SunMap
from mtl_training.worlds.parts import Part
from mtl_training.worlds.probes import Probes, surface_points
from mtl_training.worlds.raster import Hits, Rasteriser
from mtl_training.worlds.textures import TextureSet

BOUNCE_GAIN = 1.7
"""Stands for the reflections after the second and the small things that voxels blur away."""


class Shader:
    """Lights the parts of one world.

    Args:
        raster: of the world.
        parts: of the world.
        textures: of the world.
        lights: lamps, windows and sun.
        seed: of the sampling.
    """

    def __init__(
        self,
        raster: Rasteriser,
        parts: Sequence[Part],
        textures: TextureSet,
        lights: Sequence[Light],
        seed: int,
    ) -> None:
        self.raster, self.textures, self.lights = raster, textures, list(lights)
        rng = np.random.default_rng(seed)
        materials = [part.material for part in parts]
        mappings = ('part', 'world', 'fit', 'front')
        self.color = np.array([m.color for m in materials], np.float32)
        self.texture = np.array([m.texture for m in materials], np.int32)
        self.tile = np.array([m.tile_m for m in materials], np.float32)
        self.mapping = np.array([mappings.index(m.mapping) for m in materials], np.int8)
        self.gloss = np.array([m.gloss for m in materials], np.float32)
        self.sharpness = np.array([m.sharpness for m in materials], np.float32)
        self.emission = np.array([m.emission for m in materials], np.float32)
        self.bump = np.array([m.bump for m in materials], np.float32)
        self.shift = rng.random((len(parts), 2)).astype(np.float32)
        self._folds = self._make_folds(rng)
        corners = np.array([part.center for part in parts])
        self.low = corners.min(0) - 0.5
        self.high = corners.max(0) + 0.5
        self._shadows = self._make_shadows()
        self._probes = self._make_probes(parts, rng)

    @staticmethod
    def _make_folds(rng: np.random.Generator) -> np.ndarray:
        """Return slopes of a repeating cloth with folds, float32 [256, 256, 2]."""
        frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)[None])
        frequency[0, 0] = 1
        spectrum = np.fft.rfft2(rng.standard_normal((256, 256))) * frequency**-2.2
        spectrum[frequency < 3 / 256] = 0
        height = np.fft.irfft2(spectrum, (256, 256))
        slope = np.stack(np.gradient(height)[::-1], -1)
        return (slope / slope.std()).astype(np.float32)

    def _make_shadows(self) -> list[list[ShadowCube] | SunMap]:
        shadows: list[list[ShadowCube] | SunMap] = []
        for light in self.lights:
            if light.kind == 'sun':
                size = float(np.linalg.norm(self.high - self.low)) + 1
                shadows.append(SunMap(self.raster, light, size))
                continue
            direction = light.direction if light.kind == 'window' else None
            shadows.append(
                [
                    ShadowCube(
                        self.raster,
                        light.center + a * light.extent_u + b * light.extent_v,
                        direction,
                    )
                    for a, b in ((-0.5, -0.3), (0.5, -0.3), (0.0, 0.5))
                ]
            )
        return shadows

    def albedo(self, hits: Hits, pixel_m: np.ndarray) -> np.ndarray:
        """Return the surfaces' linear colours, float32 [N, 3]; pixel_m: sample width [N]."""
        part = hits.part
        color = self.color[part]
        textured = np.flatnonzero(self.texture[part] >= 0)
        if not len(textured):
            return color
        which = part[textured]
        mapping = self.mapping[which]
        world = mapping == 1
        normal = np.where(world[:, None], hits.normal[textured], hits.local_normal[textured])
        point = np.where(world[:, None], hits.position[textured], hits.local[textured])
        axis = np.abs(normal).argmax(1)
        first = np.array([1, 0, 0])[axis]
        second = np.array([2, 2, 1])[axis]
        rows = np.arange(len(which))
        u, v = point[rows, first], point[rows, second]
        size = self.raster.size[which].copy()
        kind = self.raster.kind[which]
        size[kind == 2] = size[kind == 2][:, [0, 0, 1]]
        size_u, size_v = size[rows, first], size[rows, second]
        # The grain runs along the longer side.
        turned = (mapping == 0) & (size_v > size_u)
        u, v = np.where(turned, v, u), np.where(turned, u, v)
        tile = self.tile[which]
        fit = mapping >= 2
        shift = np.where(fit[:, None] | world[:, None], 0, self.shift[which])
        side = np.where(hits.local_normal[textured][rows, axis] * (axis == 1) > 0, -1.0, 1.0)
        u = np.where(fit, (side * u / size_u + 1) / 2, u / tile + shift[:, 0])
        v = np.where(fit, (v / size_v + 1) / 2, v / tile + shift[:, 1])
        span = np.where(fit, 2 * np.minimum(size_u, size_v), tile)
        inside = ~fit
        u = np.where(inside, u, np.clip(u, 0.003, 0.997))
        v = np.where(inside, v, np.clip(v, 0.003, 0.997))
        texel = self.textures.sample(
            self.texture[which], u.astype(np.float32), v.astype(np.float32),
            pixel_m[textured] / span,
        )  # fmt: skip
        keep = (mapping == 3) & (axis != 1)
        texel[keep] = 1
        color[textured] *= texel
        return color

    def _bumped(self, hits: Hits) -> np.ndarray:
        """Return shading normals: cloth is tilted by its folds."""
        strength = self.bump[hits.part]
        chosen = np.flatnonzero(strength > 0)
        if not len(chosen):
            return hits.normal
        normal = hits.normal.copy()
        at = normal[chosen]
        point = hits.position[chosen]
        axis = np.abs(at).argmax(1)
        rows = np.arange(len(chosen))
        a, b = (axis + 1) % 3, (axis + 2) % 3
        u = (point[rows, a] * 150).astype(np.int32) % 256
        v = (point[rows, b] * 150).astype(np.int32) % 256
        slope = self._folds[v, u] * strength[chosen][:, None]
        tilt = np.zeros_like(at)
        tilt[rows, a], tilt[rows, b] = slope[:, 0], slope[:, 1]
        at = at - tilt
        normal[chosen] = at / np.linalg.norm(at, axis=1, keepdims=True)
        return normal

    def direct(
        self,
        position: np.ndarray,
        normal: np.ndarray,
        shading_normal: np.ndarray | None = None,
        eye: np.ndarray | None = None,
        gloss: np.ndarray | None = None,
        sharpness: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return irradiance / pi and highlights from the lights, float32 [N, 3] each."""
        count = len(position)
        irradiance = np.zeros((count, 3), np.float32)
        highlight = np.zeros((count, 3), np.float32)
        shading_normal = normal if shading_normal is None else shading_normal
        # A fixed dither turns the few shadow samples' steps into grain.
        grain = np.random.default_rng(5).uniform(-0.9, 0.9, (count, 2)).astype(np.float32)
        for light, shadow in zip(self.lights, self._shadows, strict=True):
            color = light.color.astype(np.float32)
            if light.kind == 'sun':
                toward = np.broadcast_to(-light.direction.astype(np.float32), position.shape)
                strength = np.ones(count, np.float32)
            else:
                # Not of unit length: `strength` makes up for it.
                toward = light.center.astype(np.float32) - position
                square = np.einsum('ni,ni->n', toward, toward)
                inverse = 1 / np.sqrt(square + 1e-6)
                strength = inverse / (square + 0.05)
                if light.kind == 'window':
                    cosine = -(toward @ light.direction.astype(np.float32)) * inverse
                    strength *= np.maximum(cosine, 0)
            facing = np.maximum(np.einsum('ni,ni->n', shading_normal, toward), 0) * strength
            if shading_normal is not normal:
                facing[np.einsum('ni,ni->n', normal, toward) <= 0] = 0
            chosen = np.flatnonzero(facing * color.max() > 0.01)
            if not len(chosen):
                continue
            start = position[chosen] + normal[chosen] * 0.035
            if isinstance(shadow, SunMap):
                seen = shadow.visible(start)
            else:
                seen = np.zeros(len(chosen), np.float32)
                shift = grain[chosen]
                for cube in shadow:
                    seen += cube.visible(start, shift)
                    shift = shift[:, ::-1] * np.array([1, -1], np.float32)
                seen /= len(shadow)
            lit = facing[chosen] * seen
            irradiance[chosen] += (lit / np.pi)[:, None] * color
            if eye is not None and gloss is not None and sharpness is not None:
                shiny = gloss[chosen] > 0
                rows = chosen[shiny]
                half = toward[rows]
                half = half / (np.linalg.norm(half, axis=1, keepdims=True) + 1e-6) + eye[rows]
                half /= np.linalg.norm(half, axis=1, keepdims=True) + 1e-6
                lobe = np.maximum(np.einsum('ni,ni->n', half, shading_normal[rows]), 0)
                power = sharpness[rows]
                lobe = lobe**power * (power + 8) / 25 * gloss[rows] * lit[shiny]
                highlight[rows] += lobe[:, None] * color
        return irradiance, highlight

    def _make_probes(self, parts: Sequence[Part], rng: np.random.Generator) -> Probes:
        """Return probes filled with light reflected once and twice."""
        part, local, area = surface_points(parts, 0.12, rng)
        rotation = self.raster.rotation[part]
        position = np.einsum('nij,nj->ni', rotation, local) + self.raster.center[part]
        local_normal = self.raster.local_normals(part, local)
        normal = np.einsum('nij,nj->ni', rotation, local_normal)
        hits = Hits(part, np.zeros(len(part), np.float32), position, normal, local, local_normal)
        albedo = self.albedo(hits, np.full(len(part), 0.2, np.float32))
        irradiance, _ = self.direct(position, normal)
        glow = albedo * self.emission[part][:, None]
        probes = Probes(self.low, self.high, position, area)
        probes.fill(albedo * irradiance + glow)
        bounced = probes.light(position + normal * 0.15, normal)
        probes.fill(albedo * (irradiance + bounced) + glow)
        return probes

    def shade(
        self, hits: Hits, camera: np.ndarray, pixel_angle: float, occlusion: np.ndarray
    ) -> np.ndarray:
        """Return linear radiance towards the camera, float32 [N, 3].

        Args:
            hits: with part >= 0 everywhere.
            camera: position, [3].
            pixel_angle: width of a sample in radians.
            occlusion: share of reflected light that reaches the point past its neighbours, [N].
        """
        toward = camera.astype(np.float32) - hits.position
        distance = np.linalg.norm(toward, axis=1)
        eye = toward / np.maximum(distance, 1e-6)[:, None]
        cosine = np.maximum(np.einsum('ni,ni->n', eye, hits.normal), 0.15)
        albedo = self.albedo(hits, distance * pixel_angle / cosine**0.5)
        shading_normal = self._bumped(hits)
        gloss = self.gloss[hits.part]
        fresnel = gloss + (1 - gloss) * (1 - cosine) ** 5 * np.minimum(gloss * 6, 1)
        irradiance, highlight = self.direct(
            hits.position, hits.normal, shading_normal, eye, fresnel, self.sharpness[hits.part]
        )
        free = hits.position + hits.normal * 0.14
        bounced = BOUNCE_GAIN * self._probes.light(free, shading_normal)
        color = albedo * (irradiance * (0.55 + 0.45 * occlusion[:, None]))
        color += albedo * bounced * occlusion[:, None]
        color += highlight
        shiny = np.flatnonzero(fresnel > 0.02)
        if len(shiny):
            mirrored = 2 * np.einsum('ni,ni->n', eye[shiny], hits.normal[shiny])
            mirrored = mirrored[:, None] * hits.normal[shiny] - eye[shiny]
            ahead = free[shiny] + mirrored * 0.6
            color[shiny] += self._probes.light(ahead, mirrored) * fresnel[shiny][:, None]
        glow = self.emission[hits.part]
        return color * (glow == 0)[:, None] + albedo * glow[:, None]


def ambient_occlusion(position: np.ndarray, normal: np.ndarray, focal: float) -> np.ndarray:
    """Return how open each pixel's surroundings are, float32 [H, W] in 0..1.

    It is computed for every second pixel and spread to the others along surfaces.

    Neighbouring pixels' points that stand above the pixel's tangent plane take light away
    (scalable ambient obscurance, McGuire et al. 2012).

    Args:
        position: float32 [H, W, 3], metres, camera frame.
        normal: float32 [H, W, 3], same frame.
        focal: pixels.
    """
    full = np.maximum(position[..., 2], 0.2)
    position, normal, focal = position[::2, ::2], normal[::2, ::2], focal / 2
    height, width = position.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.int32)
    rng = np.random.default_rng(11)
    turn = rng.random((height, width)).astype(np.float32) * (2 * np.pi)
    depth = np.maximum(position[..., 2], 0.2)
    taken = np.zeros((height, width), np.float32)
    taps = 10
    for tap in range(taps):
        radius_m = 0.3 * (tap + 0.7) / taps
        angle = turn + tap * 2.39996
        reach = np.minimum(radius_m * focal / depth, 40)
        v = np.clip(rows + (np.sin(angle) * reach).astype(np.int32), 0, height - 1)
        u = np.clip(columns + (np.cos(angle) * reach).astype(np.int32), 0, width - 1)
        offset = position[v, u] - position
        square = np.einsum('hwi,hwi->hw', offset, offset)
        above = np.einsum('hwi,hwi->hw', offset, normal)
        fade = np.maximum(0.16 - square, 0) / 0.16
        taken += np.maximum(above - 0.012, 0) / (np.sqrt(square) + 0.02) * fade
    open_share = np.clip(1 - 1.6 * taken / taps, 0.08, 1)
    # The taps' random turn leaves grain; occlusion itself is smooth along surfaces.
    rows, columns = np.mgrid[: full.shape[0], : full.shape[1]].astype(np.int32) // 2
    total = np.zeros_like(full)
    weight = np.full_like(full, 1e-4)
    for dv in (-1, 0, 1):
        for du in (-1, 0, 1):
            v, u = np.clip(rows + dv, 0, height - 1), np.clip(columns + du, 0, width - 1)
            near = np.abs(depth[v, u] - full) < 0.04 * full
            near = near + np.float32(1e-4)
            total += open_share[v, u] * near
            weight += near
    return total / weight
