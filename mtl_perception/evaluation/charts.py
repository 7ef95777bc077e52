"""Small charts as SVG, coloured by the page's own style sheet so that light and dark both work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

Value = float | None
WIDTH, HEIGHT = 640, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 12, 34


@dataclass(frozen=True)
class Axis:
    """One axis: its label and range.

    Attributes:
        label: with the unit.
        low: at the left or bottom end.
        high: at the other end.
    """

    label: str
    low: float
    high: float

    @classmethod
    def of(cls, label: str, values: Sequence[Value], zero: bool = True) -> Axis:
        """Return an axis that holds all values and, unless told otherwise, zero."""
        known = [value for value in values if value is not None] or [0.0, 1.0]
        low, high = min(known), max(known)
        if zero:
            low = min(low, 0.0)
        if high <= low:
            high = low + 1.0
        return cls(label, low, high + 0.04 * (high - low))

    def ticks(self, most: int = 6) -> list[float]:
        """Return round numbers within the range."""
        step = (self.high - self.low) / most
        magnitude = 10 ** math.floor(math.log10(step))
        step = next(f * magnitude for f in (1, 2, 5, 10) if f * magnitude >= step)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor((self.high - first * step) / step + 1e-9) + 1
        return [(first + index) * step for index in range(count)]


@dataclass
class _Canvas:
    x: Axis
    y: Axis
    height: int = HEIGHT
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (y - self.y.low) / (self.y.high - self.y.low)
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM),
        )

    def text(self, x: float, y: float, text: str, anchor: str = 'middle', extra: str = '') -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'
        )

    def frame(self, x_ticks: bool = True) -> None:
        for tick in self.y.ticks(5):
            _, y = self.at(self.x.low, tick)
            self.parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" '
                f'y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            self.text(_LEFT - 6, y + 4, f'{tick:g}', 'end')
        for tick in self.x.ticks() if x_ticks else ():
            x, _ = self.at(tick, self.y.low)
            self.text(x, HEIGHT - _BOTTOM + 15, f'{tick:g}')
        self.text((WIDTH + _LEFT) / 2, HEIGHT - 4, self.x.label)
        middle = (HEIGHT - _BOTTOM) / 2
        turned = f' transform="rotate(-90 12 {middle})"'
        self.text(12, middle, self.y.label, extra=turned)

    def svg(self, title: str) -> Markup:
        return Markup(
            f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" '
            f'aria-label="{escape(title)}">' + ''.join(self.parts) + '</svg>'
        )


def lines(
    x: Sequence[float], series: Sequence[tuple[str, Sequence[Value]]], x_label: str, y_label: str
) -> Markup:
    """Return lines over common x; None interrupts a line."""
    canvas = _Canvas(
        Axis.of(x_label, x, zero=False), Axis.of(y_label, [v for _, ys in series for v in ys])
    )
    canvas.frame()
    for index, (name, ys) in enumerate(series):
        path, pen = [], 'M'
        for place, value in zip(x, ys, strict=True):
            if value is None:
                pen = 'M'
                continue
            px, py = canvas.at(place, value)
            path.append(f'{pen}{px:.1f} {py:.1f}')
            pen = 'L'
        canvas.parts.append(
            f'<path class="line s{index}" d="{"".join(path)}"><title>{escape(name)}</title></path>'
        )
    return canvas.svg(y_label) + _legend([name for name, _ in series])


def curves(
    x: Sequence[float],
    series: Sequence[tuple[str, Sequence[Value], Sequence[int]]],
    x_label: str,
    y_label: str,
) -> Markup:
    """Return lines of shares over shares, each in a colour of its own: (name, values, RGB)."""
    canvas = _Canvas(Axis(x_label, 0, 1), Axis(y_label, 0, 1.02))
    canvas.frame()
    items = []
    for name, ys, color in series:
        rgb = f'rgb({", ".join(map(str, color))})'
        points = [canvas.at(a, b) for a, b in zip(x, ys, strict=True) if b is not None]
        path = 'M' + 'L'.join(f'{px:.1f} {py:.1f}' for px, py in points)
        canvas.parts.append(
            f'<path class="line" style="stroke: {rgb}" d="{path}">'
            f'<title>{escape(name)}</title></path>'
        )
        items.append(f'<span><i style="background: {rgb}"></i>{escape(name)}</span>')
    return canvas.svg(y_label) + Markup(f'<p class="legend">{"".join(items)}</p>')


def bars(
    names: Sequence[str], series: Sequence[tuple[str, Sequence[Value]]], y_label: str
) -> Markup:
    """Return a group of bars for each name, with the value on hovering."""
    crowded = len(names) > 9
    canvas = _Canvas(
        Axis('', 0, len(names)),
        Axis.of(y_label, [v for _, values in series for v in values]),
        HEIGHT + (24 if crowded else 0),
    )
    canvas.frame(x_ticks=False)
    width = 0.8 / len(series)
    for place, name in enumerate(names):
        for index, (label, values) in enumerate(series):
            value = values[place]
            if value is None:
                continue
            left, top = canvas.at(place + 0.1 + index * width, value)
            right, bottom = canvas.at(place + 0.1 + (index + 1) * width, canvas.y.low)
            canvas.parts.append(
                f'<rect class="bar s{index}" x="{left:.1f}" y="{min(top, bottom):.1f}" '
                f'width="{max(right - left - 1, 1):.1f}" height="{abs(bottom - top):.1f}">'
                f'<title>{escape(name)} {escape(label)}: {value:.4g}</title></rect>'
            )
        x, _ = canvas.at(place + 0.5, 0)
        turned = f' transform="rotate(-35 {x:.1f} {HEIGHT - 18})"' if crowded else ''
        canvas.text(x, HEIGHT - 18, name, 'end' if crowded else 'middle', turned)
    return canvas.svg(y_label) + _legend([name for name, _ in series])


def reliability(bins: Sequence[dict[str, float | None]]) -> Markup:
    """Return accuracy against confidence, beside the diagonal of a calibrated network."""
    canvas = _Canvas(Axis('confidence', 0, 1), Axis('accuracy', 0, 1))
    canvas.frame()
    most = max((float(b['pixels'] or 0) for b in bins), default=0) or 1
    for b in bins:
        if b['accuracy'] is None or b['confidence'] is None:
            continue
        left, top = canvas.at(float(b['from'] or 0), b['accuracy'])
        right, bottom = canvas.at(float(b['to'] or 0), 0)
        strength = 0.25 + 0.75 * float(b['pixels'] or 0) / most
        canvas.parts.append(
            f'<rect class="bar s0" style="opacity:{strength:.2f}" x="{left:.1f}" y="{top:.1f}" '
            f'width="{right - left - 1:.1f}" height="{bottom - top:.1f}">'
            f'<title>confidence {b["confidence"]:.3f}, accuracy {b["accuracy"]:.3f}, '
            f'{b["pixels"]} pixels</title></rect>'
        )
    (x1, y1), (x2, y2) = canvas.at(0, 0), canvas.at(1, 1)
    canvas.parts.append(
        f'<line class="diagonal" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
    )
    return canvas.svg('accuracy against confidence')


def interval(change: float, low: Value, high: Value, verdict: str) -> Markup:
    """Return a difference with its interval on a line whose middle is zero."""
    width, height = 220, 22
    scale = 1.1 * max(abs(value) for value in (change, low, high) if value is not None) or 1.0

    def x(value: float) -> float:
        return width / 2 * (1 + max(-1.0, min(1.0, value / scale)))

    parts = [f'<line class="grid" x1="{width / 2}" x2="{width / 2}" y1="0" y2="{height}"/>']
    if low is not None and high is not None:
        parts.append(
            f'<line class="range {verdict}" x1="{x(low):.1f}" x2="{x(high):.1f}" '
            f'y1="{height / 2}" y2="{height / 2}"/>'
        )
    parts.append(f'<circle class="{verdict}" cx="{x(change):.1f}" cy="{height / 2}" r="4"/>')
    return Markup(
        f'<svg class="interval" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{change:+.4f}">{"".join(parts)}</svg>'
    )


def _legend(names: Sequence[str]) -> Markup:
    if len(names) < 2:
        return Markup('')
    items = ''.join(
        f'<span><i class="s{index}"></i>{escape(name)}</span>' for index, name in enumerate(names)
    )
    return Markup(f'<p class="legend">{items}</p>')
