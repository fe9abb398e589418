"""Plots as SVG text that stands inside a page: the page's fonts, colors from its CSS variables, no script."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise

WIDTH, HEIGHT = 420, 264  # of the picture, in pixels where a page shows it unscaled
_TOP, _BOTTOM, _RIGHT = 46, 44, 16
_ROW = 17  # height of a line of the legend
_CHARACTER = 6.4  # about the width of one at the size of labels
_LONGEST = 24  # characters of a label: two stand side by side
_INK, _MUTED, _GRID = "var(--ink, #222)", "var(--muted, #6b6b6b)", "var(--rule, #ddd)"
_HALO = "paint-order:stroke;stroke:var(--page, #fff);stroke-width:3"  # keeps text apart from lines
_COLORS = ("#1f5f8b", "#b3541e", "#3d7a4e", "#7b4b94", "#8a6d1d", "#9c3848")


@dataclass(frozen=True)
class Point:
    """One measurement."""

    x: float
    y: float
    interval: tuple[float, float] | None = None  # of y
    name: str = ""


@dataclass(frozen=True)
class Series:
    """The measurements of one thing, joined by a line in the order of x."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """What one plot of lines shows."""

    title: str
    series: Sequence[Series]
    subtitle: str = ""
    floor: float | None = None


def line_plot(panel: Panel, *, x_label: str = "", x_range: tuple[float, float] | None = None) -> str:
    """Return lines with the bands of their intervals, and the floor as a dashed line.

    Points that are not finite are left out. Series differ by marker as well as by color, and are named below the plot
    where there are several.
    """
    series = [Series(one.name, tuple(sorted(_finite(one.points), key=lambda p: p.x))) for one in panel.series]
    floors = [] if panel.floor is None else [panel.floor]
    rows = len(series) if len(series) > 1 else 0
    frame = _Frame.around([point for one in series for point in one.points], floors, x_range, rows)
    body = [frame.axes(x_label), *(_floor(frame, floor) for floor in floors)]
    for index, one in enumerate(series):
        body += [_bands(frame, one.points, index), _line(frame, one.points, _color(index))]
        body += [_marker(frame.x(p.x), frame.y(p.y), index, _hover(p, one.name)) for p in one.points]
        if rows:
            y = HEIGHT + _ROW * index + 4
            body += [_marker(frame.left + 5, y, index), _text(frame.left + 16, y + 4, _short(one.name, 52))]
    said = "; ".join(
        f"{one.name + ': ' if one.name else ''}{', '.join(f'{p.y:.4g} at {p.x:g}' for p in one.points)}"
        for one in series
    )
    return _svg(body, panel.title, panel.subtitle, said, rows)


def small_multiples(panels: Sequence[Panel], *, x_label: str = "") -> list[str]:
    """Return a line plot of each panel, all over the same range of x."""
    x_range = _padded([p.x for panel in panels for one in panel.series for p in _finite(one.points)])
    return [line_plot(panel, x_label=x_label, x_range=x_range) for panel in panels]


def scatter_plot(
    points: Sequence[Point],
    *,
    title: str,
    subtitle: str = "",
    x_label: str = "",
    cost: Callable[[Point], float] = lambda point: point.y,
) -> str:
    """Return named points with the Pareto front through those that no other beats.

    Args:
        points: smaller x is better.
        title: of the plot.
        subtitle: the line below it.
        x_label: what x is, with its unit.
        cost: turns a point into what should be small; its y by default.
    """
    kept = list(_finite(points))
    frame = _Frame.around(kept)
    front = pareto_front([(point.x, cost(point)) for point in kept])
    path = [kept[i] for i in front]
    stairs = [Point(b.x, y) for a, b in zip(path[:1] + path, path, strict=False) for y in (a.y, b.y)]
    body = [frame.axes(x_label), _line(frame, stairs, _color(0), dash="5 4")]
    for index, point in enumerate(kept):
        body.append(_whisker(frame, point, _color(0)) if point.interval else "")
        body.append(
            _marker(frame.x(point.x), frame.y(point.y), 0, _hover(point, point.name), hollow=index not in front)
        )
    body += _labels(frame, [*path, *(point for point in kept if point not in path)])
    said = "; ".join(
        f"{p.name}: {p.y:.4g} at {p.x:.4g}{', on the front' if i in front else ''}" for i, p in enumerate(kept)
    )
    return _svg(body, title, subtitle, said)


def interval_strip(
    value: float, interval: tuple[float, float] | None, floor: float | None, span: tuple[float, float]
) -> str:
    """Return a value as a dot on a line, its interval as a bar and its floor as a tick, as wide as its place.

    It says nothing to a screen reader, since the numbers stand beside it. Nothing is drawn without a finite ``span``.
    """
    low, high = span
    if not (math.isfinite(value) and math.isfinite(high - low) and high > low):
        return ""

    def place(number: float) -> str:
        return f"{2 + 96 * (min(max(number, low), high) - low) / (high - low):.2f}%"

    parts = [f'<line x1="0" x2="100%" y1="8" y2="8" style="stroke:{_GRID}"/>']
    if floor is not None and math.isfinite(floor):
        parts.append(f'<line x1="{place(floor)}" x2="{place(floor)}" y1="2" y2="14" style="stroke:{_MUTED}"/>')
    if interval is not None:
        left, right = map(place, interval)
        bar = f"stroke:{_color(0)};stroke-width:4;stroke-opacity:.45"
        parts.append(f'<line x1="{left}" x2="{right}" y1="8" y2="8" style="{bar}"/>')
    parts.append(f'<circle cx="{place(value)}" cy="8" r="4" style="fill:{_color(0)}"/>')
    return f'<svg class="strip" width="100%" height="16" aria-hidden="true">{"".join(parts)}</svg>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` multiples of 1, 2 or 5 times a power of ten that lie from ``low`` to ``high``."""
    rough = (high - low) / count
    power = math.floor(math.log10(rough))
    step = min((one * 10.0**power for one in (1, 2, 5, 10)), key=lambda one: abs(math.log(one / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(step * n, max(0, 1 - power)) for n in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Return the shortest texts that tell ticks apart, thousands as k and millions as M."""
    largest = max(map(abs, values), default=0.0)
    if 0 < largest < 1e-3:
        return [f"{value:.3g}" for value in values]
    unit, suffix = next((u, s) for u, s in ((1e6, "M"), (1e3, "k"), (1.0, "")) if largest >= 10 * u or u == 1)
    scaled = [value / unit for value in values]
    near = 1e-3 * min((b - a for a, b in pairwise(scaled)), default=1.0)
    decimals = next(d for d in range(18) if all(abs(round(v, d) - v) <= near for v in scaled))
    return [f"{v:.{decimals}f}{suffix if v else ''}" for v in scaled]


def pareto_front(costs: Sequence[tuple[float, float]]) -> list[int]:
    """Return which pairs of costs no other pair beats in one without losing in the other, by rising first cost."""
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: costs[i]):
        if not front or costs[i][1] < costs[front[-1]][1] or costs[i] == costs[front[-1]]:
            front.append(i)
    return front


@dataclass(frozen=True)
class _Frame:
    """Where the data's ranges lie in the picture."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float  # pixels, of the y axis
    rows: int = 0  # of the legend

    @staticmethod
    def around(
        points: Sequence[Point],
        extra: Iterable[float] = (),
        x_range: tuple[float, float] | None = None,
        rows: int = 0,
    ) -> "_Frame":
        y_range = _padded([y for p in points for y in (p.y, *(p.interval or ()))] + list(extra))
        widest = max(map(len, tick_texts(ticks(*y_range))), default=1)
        return _Frame(x_range or _padded([p.x for p in points]), y_range, 12 + _CHARACTER * widest, rows)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (WIDTH - _RIGHT - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _BOTTOM - _TOP)

    def axes(self, x_label: str) -> str:
        parts = []
        marks = ticks(*self.y_range)
        for mark, text in zip(marks, tick_texts(marks), strict=True):
            y = self.y(mark)
            parts.append(_segment(self.left, y, WIDTH - _RIGHT, y, _GRID))
            parts.append(_text(self.left - 6, y + 4, text, anchor="end", color=_MUTED, kind="tick-y"))
        bottom = HEIGHT - _BOTTOM
        parts.append(_segment(self.left, bottom, WIDTH - _RIGHT, bottom, _MUTED))
        marks = ticks(*self.x_range)
        for mark, text in zip(marks, tick_texts(marks), strict=True):
            parts.append(_segment(self.x(mark), bottom, self.x(mark), bottom + 4, _MUTED))
            parts.append(_text(self.x(mark), bottom + 16, text, anchor="middle", color=_MUTED, kind="tick-x"))
        parts.append(_text(WIDTH - _RIGHT, bottom + 32, x_label, anchor="end", color=_MUTED))
        return "".join(parts)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """Return a range with some air around ``values``."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    air = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return low - air, high + air


def _finite(points: Iterable[Point]) -> Iterable[Point]:
    return (p for p in points if all(map(math.isfinite, (p.x, p.y, *(p.interval or ())))))


def _svg(body: Iterable[str], title: str, subtitle: str, said: str, rows: int = 0) -> str:
    heading = _text(0, 14, title, weight=600) + _text(0, 31, subtitle, color=_MUTED)
    return (
        f'<svg class="plot" role="img" viewBox="0 0 {WIDTH} {HEIGHT + _ROW * rows}" font-size="12">'
        f"<title>{escape(title)}</title><desc>{escape(f'{subtitle}. {said}'.lstrip('. '))}</desc>"
        f"{heading}{''.join(body)}</svg>"
    )


def _color(index: int) -> str:
    return f"var(--series-{index % len(_COLORS)}, {_COLORS[index % len(_COLORS)]})"


def _short(name: str, longest: int = _LONGEST) -> str:
    # Names often differ only where they end, such as in a step.
    return name if len(name) <= longest else f"{name[: longest // 2 - 1]}…{name[-(longest // 2) :]}"


def _hover(point: Point, name: str) -> str:
    interval = f" [{point.interval[0]:.4g}, {point.interval[1]:.4g}]" if point.interval else ""
    return f"{name + ', ' if name else ''}{point.x:g}: {point.y:.4g}{interval}"


def _segment(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" style="stroke:{color}"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", color: str = _INK, weight: int = 400, kind: str = "label"
) -> str:
    style = f"fill:{color};text-anchor:{anchor};font-weight:{weight};{_HALO}"
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" style="{style}">{escape(text)}</text>' if text else ""


def _line(frame: _Frame, points: Sequence[Point], color: str, dash: str = "none") -> str:
    path = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.1f}" for p in points)
    return f'<polyline points="{path}" style="fill:none;stroke:{color};stroke-width:2;stroke-dasharray:{dash}"/>'


def _bands(frame: _Frame, points: Sequence[Point], index: int) -> str:
    """Shade between the ends of intervals, where neighbors have them; a lone one is a whisker."""
    parts = []
    for known, run in groupby(points, key=lambda p: p.interval is not None):
        members = list(run)
        if known and len(members) == 1:
            parts.append(_whisker(frame, members[0], _color(index)))
        elif known:
            ends = [(p.x, p.interval[0]) for p in members if p.interval]
            ends += [(p.x, p.interval[1]) for p in reversed(members) if p.interval]
            path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in ends)
            parts.append(f'<polygon class="band" points="{path}" style="fill:{_color(index)};fill-opacity:.16"/>')
    return "".join(parts)


def _whisker(frame: _Frame, point: Point, color: str) -> str:
    low, high = point.interval or (point.y, point.y)
    return _segment(frame.x(point.x), frame.y(low), frame.x(point.x), frame.y(high), color)


def _floor(frame: _Frame, floor: float) -> str:
    y, style = frame.y(floor), f"stroke:{_MUTED};stroke-dasharray:2 3"
    line = f'<line x1="{frame.left:.1f}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}" style="{style}"/>'
    return line + _text(frame.left + 4, y - 4, "floor", color=_MUTED)  # curves come near it on the right


def _marker(x: float, y: float, index: int, hover: str = "", hollow: bool = False) -> str:
    """Draw a circle, square, diamond or triangle: color is never the only sign."""
    shape = (
        f"M{x - 4:.1f} {y:.1f}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        f"M{x - 3.5:.1f} {y - 3.5:.1f}h7v7h-7z",
        f"M{x:.1f} {y - 5:.1f}l5 5l-5 5l-5 -5z",
        f"M{x:.1f} {y - 5:.1f}l4.8 8.4h-9.6z",
    )[index % 4]
    fill = "var(--page, #fff)" if hollow else _color(index)
    title = f"<title>{escape(hover)}</title>" if hover else ""
    return f'<path d="{shape}" style="fill:{fill};stroke:{_color(index)};stroke-width:1.5">{title}</path>'


def _labels(frame: _Frame, points: Sequence[Point]) -> list[str]:
    """Name points beside them, on the side with room, the first ones first; a name without a place is left out."""
    placed: list[tuple[float, float, float]] = []
    parts = []
    for point in points:
        text = _short(point.name)
        x, width = frame.x(point.x), _CHARACTER * len(text)
        leftwards = x + 9 + width > WIDTH
        start = max(0.0, x - 9 - width) if leftwards else x + 9
        for shift in (0, -14, 14):
            y = frame.y(point.y) + 4 + shift
            free = all(abs(y - o) >= 13 or right <= start or start + width <= left for left, right, o in placed)
            if free and _TOP <= y <= HEIGHT - _BOTTOM - 4:
                placed.append((start, start + width, y))
                anchor, at = ("end", start + width) if leftwards else ("start", start)
                parts.append(_text(at, y, text, anchor=anchor))
                break
    return parts
