"""Materials of one room: picked once, so that its pieces go together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mtl_training.worlds import textures as tx
from mtl_training.worlds.parts import Material

Painter = Callable[[np.random.Generator, np.ndarray], np.ndarray]
WHITE = (1.0, 1.0, 1.0)


class Look:
    """Makes materials and keeps their textures.

    Args:
        rng: source of every choice.
        textures: where new textures go.

    Attributes:
        clutter: how untidy the people are, 1 is ordinary.
    """

    def __init__(self, rng: np.random.Generator, textures: tx.TextureSet) -> None:
        self.rng, self.textures = rng, textures
        self.clutter = float(rng.uniform(0.7, 2.4))
        self._pictures = [textures.add(tx.picture(rng)) for _ in range(5)]
        self._spines = [textures.add(tx.spines(rng)) for _ in range(2)]
        self._keyboard = textures.add(tx.keyboard(rng))
        self._outdoors = textures.add(tx.outdoors(rng))
        self._woods = [self._wood() for _ in range(2)]
        self._fabrics = [self._fabric() for _ in range(4)]

    def _textured(self, texture: np.ndarray, **options) -> Material:
        return Material(WHITE, self.textures.add(texture), **options)

    def _wood(self) -> Material:
        gloss = self.rng.uniform(0.01, 0.05)
        color = tx.wood_color(self.rng)
        return self._textured(
            tx.wood(self.rng, color), tile_m=self.rng.uniform(0.5, 1.2), gloss=gloss, sharpness=40
        )

    def _fabric(self) -> Material:
        color = tx.muted_color(self.rng)
        return self._textured(
            tx.fabric(self.rng, color), tile_m=self.rng.uniform(0.25, 0.9),
            bump=self.rng.uniform(0.05, 0.22),
        )  # fmt: skip

    def wood(self) -> Material:
        """Return one of the room's two woods."""
        return self._woods[int(self.rng.integers(len(self._woods)))]

    def fabric(self) -> Material:
        """Return one of the room's cloths."""
        return self._fabrics[int(self.rng.integers(len(self._fabrics)))]

    def lacquer(self) -> Material:
        """Return paint on furniture: white, black or a colour."""
        pick = self.rng.random()
        if pick < 0.4:
            color = tx.linear(*([self.rng.uniform(200, 245)] * 3))
        elif pick < 0.6:
            color = tx.linear(*([self.rng.uniform(15, 50)] * 3))
        else:
            color = tx.muted_color(self.rng)
        return Material(tuple(color), gloss=self.rng.uniform(0.02, 0.06), sharpness=60)

    def body(self) -> Material:
        """Return what cabinets are made of: wood mostly, else lacquer."""
        return self.wood() if self.rng.random() < 0.65 else self.lacquer()

    def plastic(self, saturation: float = 0.8) -> Material:
        """Return coloured plastic."""
        color = tx.random_color(self.rng, saturation * float(self.rng.uniform(0.3, 1.0)))
        return Material(tuple(color), gloss=0.04, sharpness=50)

    def dark(self) -> Material:
        """Return black plastic."""
        return Material((0.02, 0.02, 0.022), gloss=0.04, sharpness=60)

    def pale(self) -> Material:
        """Return white porcelain, paper or plastic."""
        value = float(self.rng.uniform(0.55, 0.85))
        return Material((value, value, value * 0.97), gloss=0.04, sharpness=90)

    def metal(self) -> Material:
        """Return brushed steel, chrome or black iron."""
        value = float(self.rng.choice([0.35, 0.5, 0.04], p=[0.4, 0.3, 0.3]))
        return Material((value, value, value), gloss=0.3 if value > 0.1 else 0.05, sharpness=60)

    def paper(self) -> Material:
        """Return white or coloured paper and card."""
        if self.rng.random() < 0.3:
            return Material(tuple(tx.linear(165, 125, 85) * self.rng.uniform(0.8, 1.2)))
        if self.rng.random() < 0.4:
            return self.plastic(0.7)
        return Material((0.75, 0.75, 0.72))

    def print(self) -> Material:
        """Return a printed picture that fills a face."""
        texture = self._pictures[int(self.rng.integers(len(self._pictures)))]
        return Material(WHITE, texture, mapping='fit', gloss=0.02 * (self.rng.random() < 0.5))

    def book_spines(self) -> Material:
        """Return a row of books' backs, drawn on the front face."""
        texture = self._spines[int(self.rng.integers(len(self._spines)))]
        return Material(WHITE, texture, mapping='front')

    def keys(self) -> Material:
        """Return a keyboard."""
        return Material(WHITE, self._keyboard, mapping='fit')

    def screen(self) -> Material:
        """Return a screen: mostly off, sometimes showing a picture."""
        if self.rng.random() < 0.7:
            value = float(self.rng.uniform(0.008, 0.03))
            return Material((value, value, value * 1.1), gloss=0.06, sharpness=200)
        texture = self._pictures[int(self.rng.integers(len(self._pictures)))]
        return Material(WHITE, texture, mapping='fit', emission=float(self.rng.uniform(0.5, 2)))

    def view_out(self, brightness: float) -> Material:
        """Return a window pane with the day outside."""
        return Material(WHITE, self._outdoors, mapping='fit', emission=brightness)

    def floor(self, room: str) -> Material:
        """Return a floor for a kind of room."""
        rng = self.rng
        wet = room in ('kitchen', 'bathroom')
        kind = rng.choice(
            ['planks', 'carpet', 'tiles', 'concrete'],
            p=[0.3, 0.05, 0.55, 0.1] if wet else [0.42, 0.38, 0.1, 0.1],
        )
        if kind == 'planks':
            texture = tx.planks(rng, tx.wood_color(rng))
            return self._textured(
                texture, tile_m=rng.uniform(0.9, 1.4), mapping='world',
                gloss=rng.uniform(0.01, 0.07), sharpness=rng.uniform(20, 80),
            )  # fmt: skip
        if kind == 'carpet':
            return self._textured(
                tx.carpet(rng, tx.muted_color(rng) * 0.85 + 0.06),
                tile_m=rng.uniform(0.4, 0.9),
                mapping='world',
            )
        if kind == 'tiles':
            texture = tx.tiles(rng, tx.wall_color(rng))
            return self._textured(
                texture, tile_m=rng.uniform(0.8, 1.6), mapping='world',
                gloss=rng.uniform(0.02, 0.08), sharpness=rng.uniform(30, 120),
            )  # fmt: skip
        texture = tx.concrete(rng, tx.muted_color(rng) + 0.1)
        return self._textured(texture, tile_m=2.5, mapping='world', gloss=0.03, sharpness=30)

    def wall(self, room: str) -> Material:
        """Return a wall covering for a kind of room."""
        rng = self.rng
        kind = rng.choice(
            ['paint', 'wallpaper', 'bricks', 'tiles', 'panel'],
            p=[0.5, 0, 0, 0.45, 0.05] if room == 'bathroom' else [0.78, 0.1, 0.05, 0.02, 0.05],
        )
        color = tx.wall_color(rng)
        if kind == 'paint':
            return self._textured(tx.paint(rng, color), tile_m=2.4, mapping='world')
        if kind == 'wallpaper':
            return self._textured(
                tx.wallpaper(rng, color), tile_m=rng.uniform(0.5, 1.2), mapping='world'
            )
        if kind == 'bricks':
            red = tx.linear(150, 85, 65) * rng.uniform(0.6, 1.3)
            return self._textured(tx.bricks(rng, red), tile_m=0.9, mapping='world')
        if kind == 'tiles':
            return self._textured(
                tx.tiles(rng, color), tile_m=rng.uniform(0.4, 0.9), mapping='world', gloss=0.05,
                sharpness=90,
            )  # fmt: skip
        texture = tx.planks(rng, tx.wood_color(rng)).transpose(1, 0, 2)
        return self._textured(np.ascontiguousarray(texture), tile_m=1.2, mapping='world')

    def ceiling(self) -> Material:
        """Return a ceiling: white plaster, sometimes office panels or wood."""
        rng = self.rng
        pick = rng.random()
        white = tx.linear(235, 233, 226) * rng.uniform(0.8, 1.0)
        if pick < 0.75:
            return self._textured(tx.paint(rng, white), tile_m=2, mapping='world')
        if pick < 0.93:
            return self._textured(tx.tiles(rng, white), tile_m=2.4, mapping='world')
        return self._textured(tx.planks(rng, tx.wood_color(rng)), tile_m=1.4, mapping='world')

    def rug(self) -> Material:
        """Return a rug that fills its face."""
        if self.rng.random() < 0.6:
            return self._textured(tx.rug(self.rng), mapping='fit')
        return self._textured(tx.carpet(self.rng, tx.muted_color(self.rng)), tile_m=0.5)

    def counter(self) -> Material:
        """Return a kitchen counter's stone."""
        color = tx.muted_color(self.rng)
        return self._textured(tx.stone(self.rng, color), tile_m=0.6, gloss=0.05, sharpness=100)
