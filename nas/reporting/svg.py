"""Just enough SVG: elements, scales, and the frame of a chart."""

import html
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Frame", "Scale", "drawing", "element", "number", "path", "shade", "text"]

_PAGE = 1100.0
_STOPS = ((0.0, (213, 222, 234)), (0.5, (127, 159, 196)), (0.85, (59, 95, 143)), (1.0, (217, 72, 15)))


def number(value: float) -> str:
    """Return a coordinate, to a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def element(name: str, content: str = "", /, **attributes: object) -> str:
    """Return one element; ``class_`` and ``font_size`` become ``class`` and ``font-size``, ``None`` is left out.

    >>> element("line", x1=0.5, class_="grid")
    '<line x1="0.5" class="grid"/>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{number(value) if isinstance(value, float) else _quoted(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def _quoted(value: object) -> str:
    return html.escape(str(value), quote=True).replace("\n", "&#10;")


def text(words: str, x: float, y: float, **attributes: object) -> str:
    """Return a line of text."""
    return element("text", html.escape(words, quote=False), **{"x": x, "y": y, **attributes})


def path(points: Sequence[tuple[float, float]], **attributes: object) -> str:
    """Return straight lines through ``points``."""
    drawn = "L".join(f"{number(x)},{number(y)}" for x, y in points)
    return element("path", d=f"M{drawn}", **attributes)


def drawing(content: str, width: float, height: float, *, label: str, key: str, fill: bool = True) -> str:
    """Return a picture of at least ``width`` pixels.

    Args:
        content: elements.
        width: in pixels; one that is too wide for the page can be scrolled.
        height: in pixels.
        label: read to people who cannot see it.
        key: identity in the page.
        fill: whether it grows to the width of the page.
    """
    box = f"0 0 {number(width)} {number(height)}"
    style = f"width:max(100%,{number(width)}px)" if fill and width > _PAGE else None
    style = style if fill else f"width:{number(width)}px;min-width:0"
    drawn = element("svg", content, viewBox=box, role="img", aria_label=label, id=key, style=style)
    return f'<div class="wide">{drawn}</div>'


def shade(goodness: float) -> str:
    """Return the colour of a trial, from pale blue (0, worst) to the orange of the front (1, best)."""
    share = min(max(goodness, 0.0), 1.0)
    for (low, dark), (high, light) in itertools.pairwise(_STOPS):
        if share <= high:
            part = (share - low) / (high - low)
            return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in zip(dark, light, strict=True))
    raise AssertionError  # pragma: no cover - the stops end at 1


@dataclass(frozen=True)
class Scale:
    """A mapping of values onto pixels.

    Attributes:
        low: value at ``start``.
        high: value at ``end``; equal to ``low``, everything lies in the middle.
        start: pixel.
        end: pixel.
        log: whether logarithms are mapped, which needs positive values.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, log: bool = False) -> "Scale":
        """Return a scale that shows all ``values`` with a little room on both sides."""
        low, high = min(values), max(values)
        if log:
            room = (high / low) ** 0.05 if high > low else 1.1
            return cls(low / room, high * room, start, end, log=True)
        room = 0.05 * (high - low) or 0.1 * abs(high) or 0.5
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        """Return the pixel of ``value``."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 6) -> tuple[float, ...]:
        """Return about ``count`` round values inside."""
        if self.high == self.low:
            return (self.low,)
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = [factor * 10.0**power for power in powers for factor in ((1, 2, 5) if len(powers) < 5 else (1,))]
            return tuple(tick for tick in every if self.low <= tick <= self.high)
        rough = (self.high - self.low) / count
        size = 10.0 ** math.floor(math.log10(rough))
        step = size * next(factor for factor in (1, 2, 5, 10) if factor * size >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return tuple(i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1))


@dataclass(frozen=True)
class Frame:
    """The axes of a chart.

    Attributes:
        x: horizontal scale, left to right.
        y: vertical scale, whose ``start`` is the bottom.
    """

    x: Scale
    y: Scale

    def drawn(
        self,
        *,
        x_title: str = "",
        y_title: str = "",
        x_label: Callable[[float], str],
        y_label: Callable[[float], str],
        x_ticks: Sequence[float] = (),
        y_ticks: Sequence[float] = (),
    ) -> str:
        """Return grid, tick labels and titles; ticks are found where none are given."""
        x, y = self.x, self.y
        parts = []
        for tick in [t for t in x_ticks if x.low <= t <= x.high] or x.ticks():
            at = x(tick)
            parts.append(element("line", x1=at, x2=at, y1=y.start, y2=y.end, class_="grid"))
            parts.append(text(x_label(tick), at, y.start + 18, class_="tick", text_anchor="middle"))
        for tick in [t for t in y_ticks if y.low <= t <= y.high] or y.ticks():
            at = y(tick)
            parts.append(element("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"))
            parts.append(text(y_label(tick), x.start - 8, at + 4, class_="tick", text_anchor="end"))
        parts.append(path([(x.start, y.end), (x.start, y.start), (x.end, y.start)], class_="axis"))
        parts.append(text(x_title, (x.start + x.end) / 2, y.start + 40, class_="title", text_anchor="middle"))
        middle = (y.start + y.end) / 2
        turned = f"rotate(-90 {number(x.start - 58)} {number(middle)})"
        parts.append(text(y_title, x.start - 58, middle, class_="title", text_anchor="middle", transform=turned))
        return "".join(parts)
