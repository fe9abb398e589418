"""What `validate_metrics.py` shows of its study: verdicts, all values, and a small plot for each metric and damage."""

import math
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

Found = dict[str, Any]  # as in docs/results/metrics.json
_CELL, _GAP, _NAMES, _HEAD = (104, 52), 8, 168, 58  # pixels
_SAME = 1e-9  # relative; below, a change is rounding


def steady(values: Sequence[float]) -> bool:
    """Return whether values go one way all along; some may be equal."""
    least = _SAME * max(map(abs, values))
    steps = [b - a for a, b in pairwise(values)]
    return all(step >= -least for step in steps) or all(step <= least for step in steps)


def course(found: Found, way: str, metric: str) -> list[float]:
    """Return a metric's values from strength 0 on."""
    index = [value["metric"] for value in found["clean"]].index(metric)
    return [row[index]["value"] for row in (found["clean"], *found["spoiled"][way])]


def verdict(found: Found, way: str, metric: str) -> str:
    """Return from which strength on a metric sees a damage, with a tilde where it does not go one way all along."""
    first = found["seen"][way][metric]
    return "-" if first is None else f"{first}{'' if steady(course(found, way, metric)) else '~'}"


def command(found: Found) -> str:
    """Return the command that gives these values."""
    options = dict(found["counts"])
    options = {"count": options.pop("distances"), **options, "evaluator": found.get("evaluator", "")}
    given = [f"--{name} {value}" for name, value in options.items() if value]
    return f"python scripts/validate_metrics.py {' '.join(given)}"


def page(found: Found) -> str:
    """Return the study's part of docs/evaluation.md."""
    counts, ways = found["counts"], list(found["spoiled"])
    names = [value["metric"] for value in found["clean"]]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    nulls = ", ".join(f"{kind} {count}" for kind, count in found["null_test"].items())
    lines = [
        f"`{command(found)}`",
        "",
        f"With {versions}. Distances and alignment on {counts['distances']} clips against as many others, temporal",
        f"metrics on {counts['temporal']}, `following` on {counts['following']}.",
        "",
        "The strength, of five, from which on a metric is outside the interval that it has for the clips as they were;",
        "a tilde where its values do not go one way all along, a dash where it misses the damage:",
        "",
        "| metric | " + " | ".join(ways) + " |",
        "|---|" + "---|" * len(ways),
        *(f"| {name} | " + " | ".join(verdict(found, way, name) for way in ways) + " |" for name in names),
        "",
        *(f"- {'Yes' if holds else '**No**'}: {what}." for what, holds in found["claims"].items()),
        f"- Null test, intervals that cover: {nulls}.",
        "",
        "![Every metric against every damage](pictures/metrics.svg)",
        *(line for way in ways for line in _table(found, way)),
        *_folded("Protocols", [f"- `{value['name']}`" for value in found["clean"]]),
    ]
    return "\n".join(lines)


def _table(found: Found, way: str) -> list[str]:
    rows = ["| metric | as they were | 1 | 2 | 3 | 4 | 5 | sees |", "|---|---|---|---|---|---|---|---|"]
    for value in found["clean"]:
        clean, *worse = course(found, way, value["metric"])
        low, high = value["interval"]
        cells = [f"{clean:.4g} [{low:.4g}, {high:.4g}]", *(f"{one:.4g}" for one in worse)]
        rows.append(f"| {value['metric']} | {' | '.join(cells)} | {verdict(found, way, value['metric'])} |")
    return _folded(f"All values: {way}", rows)


def _folded(title: str, lines: list[str]) -> list[str]:
    return ["", f"<details><summary>{title}</summary>", "", *lines, "", "</details>"]


def figure(found: Found) -> str:
    """Return an SVG with a row for each metric and a column for each damage.

    Heights are in half-widths of the interval of the clips as they were, by asinh: damage that a metric hardly sees and
    damage that raises it a hundredfold are both read off. The band is that interval; a row has one scale.
    """
    ways, width = list(found["spoiled"]), _CELL[0] + _GAP
    height = _CELL[1] + _GAP
    size = (_NAMES + len(ways) * width, _HEAD + len(found["clean"]) * height)
    told = "Shaded: seen, from the strength that the number says; band: interval of the clips as they were; up: higher"
    parts = [_text(0, 16, told)]
    parts += [_text(_NAMES + k * width, _HEAD - 10, way, weight=600) for k, way in enumerate(ways)]
    for row, value in enumerate(found["clean"]):
        top = _HEAD + row * height
        side = {"reference": "as real clips"}.get(value["better"], f"{value['better']} is better")
        parts += [_text(0, top + 22, value["metric"], weight=600), _text(0, top + 38, side)]
        reach = max(abs(_scaled(one, value)) for way in ways for one in course(found, way, value["metric"]))
        for column, way in enumerate(ways):
            corner = (_NAMES + column * width, top)
            parts.append(_cell(found, way, value, corner, 1.1 * max(reach, 1.0)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" role="img" '
        f'font-family="sans-serif" font-size="12"><title>Every metric against every damage</title>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _cell(found: Found, way: str, value: Found, corner: tuple[float, float], reach: float) -> str:
    values, seen = course(found, way, value["metric"]), verdict(found, way, value["metric"])
    left, top = corner
    xs = [left + 8 + k * (_CELL[0] - 16) / (len(values) - 1) for k in range(len(values))]
    high, low, *ys = (
        top + _CELL[1] / 2 * (1 - _scaled(one, value) / reach) for one in (*reversed(value["interval"]), *values)
    )
    points = list(zip(xs, ys, strict=True))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    said = f"{value['metric']}, {way}: {', '.join(f'{one:.4g}' for one in values)}"
    color, ground = ("#f7f7f7", "#6b6b6b") if seen == "-" else ("#d9e8f3", "#1f5f8b")
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{ground}"/>' for x, y in points)
    top_band, depth = max(high, top), min(low, top + _CELL[1]) - max(high, top)
    return (
        f'<g><title>{escape(said)}</title><rect x="{left}" y="{top}" width="{_CELL[0]}" height="{_CELL[1]}" '
        f'fill="{color}"/><rect x="{left}" y="{top_band:.1f}" width="{_CELL[0]}" height="{max(depth, 1):.1f}" '
        f'fill="#888" fill-opacity=".22"/><polyline points="{path}" fill="none" stroke="{ground}" stroke-width="1.6"/>'
        f"{dots}{_text(left + 4, top + 13, '' if seen == '-' else seen, weight=600)}</g>"
    )


def _scaled(number: float, value: Found) -> float:
    low, high = value["interval"]
    return math.asinh((number - value["value"]) / ((high - low) / 2 or abs(value["value"]) or 1.0))


def _text(x: float, y: float, text: str, weight: int = 400) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="#222" font-weight="{weight}">{escape(text)}</text>' if text else ""
