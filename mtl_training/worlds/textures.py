"""Procedural textures: square tiles of linear reflectance, float32 [S, S, 3], made from noise."""

from __future__ import annotations

import cv2
import numpy as np

SIZE = 256
Color = tuple[float, float, float]


def linear(*rgb: float) -> np.ndarray:
    """Return sRGB 0..255 as linear reflectance 0..1, float32 [3]."""
    return ((np.asarray(rgb, np.float32) / 255) ** 2.2).astype(np.float32)


def noise(
    rng: np.random.Generator, slope: float = 1.0, stretch: float = 1.0, size: int = SIZE
) -> np.ndarray:
    """Return repeating noise of zero mean and unit deviation, float32 [S, S].

    Args:
        slope: amplitude falls with frequency ** -slope (0 white, 1 pink, 2 cloudy).
        stretch: how much longer features are along u (columns) than along v (rows).
    """
    fv = np.fft.fftfreq(size)[:, None]
    fu = np.fft.rfftfreq(size)[None] * stretch
    frequency = np.sqrt(fu**2 + fv**2)
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * frequency**-slope
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, (size, size))
    return (field / (field.std() + 1e-9)).astype(np.float32)


def _shade(color: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return np.clip(color * factor[..., None], 0.004, 0.95).astype(np.float32)


def _mix(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    weight = np.clip(weight, 0, 1)[..., None]
    return (a * (1 - weight) + b * weight).astype(np.float32)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE
    return np.meshgrid(axis, axis)


WOODS = (
    (92, 55, 32), (128, 82, 48), (160, 112, 70), (190, 148, 100), (66, 38, 26), (112, 60, 40),
    (140, 74, 44), (50, 34, 28), (205, 172, 130), (36, 28, 26), (170, 125, 85), (225, 215, 200),
)  # fmt: skip


def wood_color(rng: np.random.Generator) -> np.ndarray:
    """Return a wood's linear colour, float32 [3]."""
    base = np.asarray(WOODS[rng.integers(len(WOODS))], np.float32)
    return linear(*np.clip(base * rng.uniform(0.85, 1.15) + rng.normal(0, 4, 3), 8, 245))


def wood(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Return wood with its grain along u."""
    grain = noise(rng, 1.0, 0.06)
    rings = np.sin(noise(rng, 1.6, 0.08) * rng.uniform(2, 6)) * 0.5
    contrast = rng.uniform(0.05, 0.16)
    return _shade(color, 1 + contrast * (grain + rings) + 0.04 * noise(rng, 2))


def planks(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Return floor boards running along u."""
    boards = int(rng.choice([6, 8, 10, 12]))
    u, v = _grid()
    row = np.floor(v * boards).astype(int)
    shift = rng.random(boards)[row]
    joint = (u * 2 + shift * 2) % 2
    board = np.floor(joint).astype(int) + 2 * row
    tone = rng.normal(1, rng.uniform(0.03, 0.16), 2 * boards)[board]
    texture = wood(rng, color) * tone[..., None]
    edge = np.abs(v * boards - np.round(v * boards)) < 0.035
    end = np.abs(joint % 1) < 0.006
    texture[edge | end] *= rng.uniform(0.35, 0.8)
    return np.clip(texture, 0.004, 0.9).astype(np.float32)


def carpet(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Return a pile carpet."""
    return _shade(color, 1 + rng.uniform(0.06, 0.18) * noise(rng, 0.25) + 0.06 * noise(rng, 1.5))


def rug(rng: np.random.Generator) -> np.ndarray:
    """Return an ornamented rug: rings of colours mirrored about both axes."""
    u, v = _grid()
    au, av = np.abs(u - 0.5) * 2, np.abs(v - 0.5) * 2
    edge = np.maximum(au, av)
    palette = [0.6 * muted_color(rng) + 0.4 * random_color(rng, 0.5) for _ in range(5)]
    pattern = np.sin(noise(rng, 1.8)[:, ::1] * 2)
    pattern = pattern + pattern[:, ::-1] + pattern[::-1] + pattern[::-1, ::-1]
    texture = np.broadcast_to(palette[0], (SIZE, SIZE, 3)).copy()
    texture[pattern > 0.6] = palette[1]
    texture[pattern < -0.9] = palette[2]
    for inner, outer, tone in ((0.72, 0.76, 3), (0.76, 0.9, 4), (0.9, 0.94, 3)):
        texture[(edge >= inner) & (edge < outer)] = palette[tone]
    return np.clip(texture * (1 + 0.15 * noise(rng, 0.3))[..., None], 0.01, 0.9)


def tiles(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Return tiles with grout, sometimes a checkerboard."""
    n = int(rng.choice([2, 4, 8]))
    u, v = _grid()
    cell = np.floor(v * n).astype(int) * n + np.floor(u * n).astype(int)
    tone = rng.normal(1, rng.uniform(0.01, 0.1), n * n)[cell]
    if rng.random() < 0.2:
        tone = np.where((np.floor(v * n) + np.floor(u * n)) % 2 > 0, tone * 0.35, tone)
    texture = _shade(color, tone * (1 + rng.uniform(0.01, 0.1) * noise(rng, 1.3)))
    width = rng.uniform(0.008, 0.03)
    grout = (np.abs(u * n - np.round(u * n)) < width * n / 4) | (
        np.abs(v * n - np.round(v * n)) < width * n / 4
    )
    texture[grout] = texture[grout] * rng.uniform(0.3, 0.9) + rng.uniform(0, 0.15)
    return np.clip(texture, 0.004, 0.9).astype(np.float32)


def bricks(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Return a brick wall."""
    u, v = _grid()
    rows, columns = 12, 4
    row = np.floor(v * rows).astype(int)
    x = u * columns + 0.5 * (row % 2)
    brick = row * columns + np.floor(x).astype(int) % columns
    texture = _shade(
        color, rng.normal(1, 0.15, rows * columns)[brick] * (1 + 0.12 * noise(rng, 0.8))
    )
    mortar = (np.abs(x - np.round(x)) < 0.035) | (np.abs(v * rows - np.round(v * rows)) < 0.09)
    texture[mortar] = rng.uniform(0.2, 0.6)
    return texture


def paint(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Return painted plaster."""
    return _shade(color, 1 + 0.015 * noise(rng, 2) + 0.012 * noise(rng, 0.5))


def wallpaper(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Return wallpaper: stripes or a repeated motif, close in tone to `color`."""
    u, v = _grid()
    other = np.clip(color * rng.uniform(0.6, 1.35) + rng.normal(0, 0.03, 3), 0.02, 0.9)
    n = int(rng.choice([4, 6, 8, 12]))
    if rng.random() < 0.5:
        weight = (np.sin(2 * np.pi * u * n) > rng.uniform(-0.5, 0.7)).astype(np.float32)
    else:
        a = np.sin(2 * np.pi * u * n) * np.sin(2 * np.pi * v * n)
        b = np.cos(4 * np.pi * u * n + 2 * np.sin(2 * np.pi * v * n))
        weight = np.clip(4 * (a + 0.4 * b - 0.3), 0, 1)
    return np.clip(_mix(color, other, weight) * (1 + 0.02 * noise(rng, 1))[..., None], 0, 0.95)


def stone(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Return granite or marble."""
    if rng.random() < 0.5:
        return _shade(color, 1 + 0.35 * noise(rng, 0.4) + 0.2 * noise(rng, 1.2))
    veins = np.exp(-np.abs(noise(rng, 1.7)) * 9)
    return _shade(color, 1 - 0.45 * veins + 0.05 * noise(rng, 1.5))


def concrete(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Return concrete or linoleum with stains."""
    return _shade(color, 1 + 0.1 * noise(rng, 1.6) + 0.05 * noise(rng, 0.4))


def fabric(rng: np.random.Generator, color: np.ndarray) -> np.ndarray:
    """Return cloth: plain, striped, checked, dotted, patchwork or with blots."""
    u, v = _grid()
    weave = 1 + rng.uniform(0.03, 0.12) * noise(rng, 0.3) + 0.05 * noise(rng, 1.5)
    base = np.broadcast_to(color, (SIZE, SIZE, 3)).astype(np.float32)
    other = random_color(rng, rng.uniform(0.1, 0.6)) * 0.7 + 0.3 * color
    n = int(rng.choice([2, 3, 4, 6, 10]))
    style = rng.choice(
        ['plain', 'stripes', 'check', 'dots', 'patches', 'blots'],
        p=[0.42, 0.13, 0.13, 0.08, 0.08, 0.16],
    )
    if style == 'stripes':
        base = _mix(color, other, (np.sin(2 * np.pi * u * n) > rng.uniform(-0.3, 0.8)) * 1.0)
    elif style == 'check':
        bars = (np.sin(2 * np.pi * u * n) > 0.4) * 0.5 + (np.sin(2 * np.pi * v * n) > 0.4) * 0.5
        base = _mix(color, other, bars)
    elif style == 'dots':
        cell = np.hypot(u * n % 1 - 0.5, v * n % 1 - 0.5)
        base = _mix(color, other, (cell < rng.uniform(0.15, 0.4)) * 1.0)
    elif style == 'patches':
        palette = np.stack([random_color(rng, 0.5) for _ in range(n * n)])
        base = palette[np.floor(v * n).astype(int) * n + np.floor(u * n).astype(int)]
    elif style == 'blots':
        field = noise(rng, 1.4)
        base = _mix(color, other, 3 * (field - rng.uniform(0, 1)))
        base = np.where(noise(rng, 1.4)[..., None] > 1.1, random_color(rng, 0.5), base)
    return np.clip(base * weave[..., None], 0.004, 0.95).astype(np.float32)


def random_color(rng: np.random.Generator, saturation: float = 0.5) -> np.ndarray:
    """Return a linear colour of any hue, float32 [3]."""
    hue, value = rng.uniform(0, 180), rng.uniform(60, 235)
    hsv = np.array([[[hue, 255 * saturation * rng.uniform(0.3, 1), value]]], np.uint8)
    return linear(*cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0])


def muted_color(rng: np.random.Generator) -> np.ndarray:
    """Return a colour as of upholstery and carpets: mostly beige, brown, grey, dark blue."""
    if rng.random() < 0.15:
        return random_color(rng, 0.7)
    base = (
        (150, 130, 105), (110, 95, 80), (90, 90, 92), (60, 62, 70), (120, 60, 50), (60, 75, 100),
        (185, 175, 155), (80, 95, 75), (205, 200, 190), (45, 40, 40), (140, 110, 70),
        (165, 150, 130), (130, 125, 118), (195, 185, 165),
    )  # fmt: skip
    return linear(*np.clip(base[rng.integers(len(base))] * rng.uniform(0.8, 1.2, 3), 10, 240))


def wall_color(rng: np.random.Generator) -> np.ndarray:
    """Return a wall's colour: mostly whites, beiges, yellows and greys."""
    base = (
        (225, 220, 208), (210, 196, 165), (200, 180, 140), (190, 190, 190), (228, 228, 225),
        (170, 160, 140), (150, 165, 170), (215, 190, 120), (165, 175, 150), (130, 115, 100),
        (180, 130, 110), (235, 228, 212), (218, 205, 185),
    )  # fmt: skip
    scale = rng.uniform(0.9, 1.08) * rng.uniform(0.96, 1.04, 3)
    return linear(*np.clip(np.asarray(base[rng.integers(len(base))]) * scale, 30, 248))


def picture(rng: np.random.Generator) -> np.ndarray:
    """Return a printed picture: landscape, portrait-like blobs, abstract painting or text."""
    u, v = _grid()
    style = rng.choice(['landscape', 'portrait', 'abstract', 'text', 'map'])
    sky, ground = random_color(rng, 0.5), random_color(rng, 0.6)
    if style == 'landscape':
        horizon = rng.uniform(0.35, 0.65) + 0.08 * noise(rng, 2)[0][None, :]
        texture = _mix(sky, ground, (1 - v > 1 - horizon) * 1.0)
        texture = np.where((v < horizon)[..., None], ground, sky)
        texture = texture * (1 + 0.2 * noise(rng, 1.3))[..., None]
    elif style == 'portrait':
        texture = np.broadcast_to(random_color(rng, 0.5), (SIZE, SIZE, 3)).copy()
        for y, rx, ry, color in (
            (0.12, 0.38, 0.3, random_color(rng, 0.6)),
            (0.58, 0.15, 0.2, linear(205, 160, 130)),
            (0.72, 0.17, 0.1, linear(60, 40, 30)),
        ):
            texture[((u - 0.5) / rx) ** 2 + ((v - y) / ry) ** 2 < 1] = color
        texture = texture * (1 + 0.15 * noise(rng, 1.2))[..., None]
    elif style == 'abstract':
        texture = np.broadcast_to(random_color(rng, 0.3), (SIZE, SIZE, 3)).copy()
        for _ in range(int(rng.integers(3, 10))):
            field = noise(rng, 1.9)
            texture[field > rng.uniform(0.7, 1.6)] = random_color(rng, 0.9)
    elif style == 'text':
        texture = np.broadcast_to(random_color(rng, 0.15) * 0.5 + 0.4, (SIZE, SIZE, 3)).copy()
        for line in range(int(rng.integers(4, 14))):
            top = 14 + line * 17
            words = rng.random(12) < 0.75
            for word in np.flatnonzero(words):
                texture[SIZE - top - 7 : SIZE - top, 16 + word * 19 : 30 + word * 19] *= 0.15
    else:
        texture = np.where((noise(rng, 1.8) > 0)[..., None], linear(190, 200, 150), sky)
        texture = texture * (1 + 0.1 * noise(rng, 0.6))[..., None]
    if rng.random() < 0.4:
        margin = rng.uniform(0.06, 0.16)
        mat = np.maximum(np.abs(u - 0.5), np.abs(v - 0.5)) > 0.5 - margin
        texture[mat] = linear(*([float(rng.uniform(180, 245))] * 3))
    return np.clip(texture, 0.005, 0.95).astype(np.float32)


def outdoors(rng: np.random.Generator) -> np.ndarray:
    """Return the view out of a window: sky over trees or houses, out of focus."""
    _, v = _grid()
    sky = linear(225, 235, 250) * rng.uniform(0.8, 1.2)
    texture = np.broadcast_to(sky, (SIZE, SIZE, 3)).copy()
    skyline = rng.uniform(0.2, 0.8) + 0.1 * noise(rng, 1.8)[0][None, :]
    trees = linear(70, 95, 50) if rng.random() < 0.6 else linear(150, 130, 115)
    below = v < skyline
    texture[below] = (trees * (1 + 0.5 * noise(rng, 1.1))[..., None])[below]
    return np.clip(cv2.GaussianBlur(texture, (0, 0), 3), 0.01, 1.2).astype(np.float32)


def spines(rng: np.random.Generator) -> np.ndarray:
    """Return the backs of a row of books."""
    texture = np.zeros((SIZE, SIZE, 3), np.float32)
    x = 0
    while x < SIZE:
        width = int(rng.integers(6, 18))
        texture[:, x : x + width] = random_color(rng, 0.8) * rng.uniform(0.4, 1)
        texture[:, x : x + 1] *= 0.3
        for _ in range(int(rng.integers(0, 4))):
            y = int(rng.integers(20, 230))
            band = int(rng.integers(3, 30))
            texture[y : y + band, x + 2 : x + width - 1] = random_color(rng, 0.5)
        x += width
    return np.clip(texture, 0.006, 0.9)


def keyboard(rng: np.random.Generator) -> np.ndarray:
    """Return rows of keys or buttons."""
    u, v = _grid()
    gap = (u * 14 % 1 < 0.18) | (v * 5 % 1 < 0.2)
    dark = rng.random() < 0.6
    key, frame = (0.03, 0.012) if dark else (0.6, 0.3)
    return np.where(gap[..., None], frame, key).astype(np.float32) * np.ones(3, np.float32)


class TextureSet:
    """The textures of one world with their mipmaps, read by bilinear interpolation."""

    def __init__(self) -> None:
        self._tiles: list[np.ndarray] = []
        self._levels: list[np.ndarray] | None = None

    def add(self, texture: np.ndarray) -> int:
        """Keep a texture; return its index."""
        self._tiles.append(np.ascontiguousarray(texture, np.float32))
        self._levels = None
        return len(self._tiles) - 1

    def __len__(self) -> int:
        return len(self._tiles)

    def means(self) -> np.ndarray:
        """Return each texture's mean colour, float32 [T, 3]."""
        return np.stack([tile.mean((0, 1)) for tile in self._tiles])

    def _pyramid(self) -> list[np.ndarray]:
        """Return one picture per mipmap level: the tiles below each other, framed by repeats."""
        if self._levels is None:
            level = np.stack(self._tiles)
            self._levels = []
            while level.shape[1] >= 4:
                framed = np.pad(level, ((0, 0), (1, 1), (1, 1), (0, 0)), 'wrap')
                self._levels.append(framed.reshape(-1, framed.shape[2], 3))
                level = 0.25 * (
                    level[:, ::2, ::2] + level[:, 1::2, ::2] + level[:, ::2, 1::2]
                    + level[:, 1::2, 1::2]
                )  # fmt: skip
        return self._levels

    def sample(
        self, index: np.ndarray, u: np.ndarray, v: np.ndarray, footprint: np.ndarray
    ) -> np.ndarray:
        """Return colours, float32 [N, 3].

        Args:
            index: texture of each sample, int [N].
            u, v: place in repeats of the texture, float32 [N].
            footprint: width of the sample in repeats, float32 [N]; picks the mipmap.
        """
        levels = self._pyramid()
        level = np.log2(np.maximum(footprint * SIZE, 1e-6))
        level = np.clip(np.round(level), 0, len(levels) - 1).astype(np.int8)
        out = np.empty((len(index), 3), np.float32)
        for number, picture in enumerate(levels):
            chosen = np.flatnonzero(level == number)
            if not len(chosen):
                continue
            size = SIZE >> number
            x = (u[chosen] % 1) * size + 0.5
            y = (v[chosen] % 1) * size + (index[chosen] * (size + 2) + 0.5)
            out[chosen] = read_bilinear(picture, x, y)
        return out


def read_bilinear(picture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the values of a picture between its pixels, [N, channels].

    Args:
        picture: float32 [H, W, C], C up to 4, fewer than 32768 rows.
        x, y: column and row of each sample, [N].
    """
    count = len(x)
    # OpenCV wants maps of fewer than 32768 columns.
    rows = -(-count // 512)
    maps = np.zeros((2, rows * 512), np.float32)
    maps[0, :count], maps[1, :count] = x, y
    maps = maps.reshape(2, rows, 512)
    return cv2.remap(picture, maps[0], maps[1], cv2.INTER_LINEAR).reshape(rows * 512, -1)[:count]
