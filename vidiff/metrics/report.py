"""The report of `vidiff evaluate`: one HTML file that needs nothing else, or a markdown table; the verdict first."""

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from vidiff.errors import ConfigError, did_you_mean
from vidiff.files import write_bytes
from vidiff.metrics.ab import UNKNOWN, Row, sentences
from vidiff.metrics.best import Best
from vidiff.metrics.plots import Panel, Point, Series, interval_strip, scatter_plot, small_multiples
from vidiff.metrics.results import Clip, Results, Value
from vidiff.metrics.verdict import DIRECTIONS, Standing, cost, interval_text, numbers, standings, verdict
from vidiff.metrics.web_clips import Album

MAX_BYTES = 32 << 20  # of a report's clips: a browser opens that without a pause
_EXTREMES = 4  # prompts that are shown as the best, and as the worst
_NEIGHBORS = 12  # nearest training clips that are shown, at most


def markdown(results: Sequence[Results], comparison: Sequence[Row] = (), best: Best | None = None) -> str:
    """Return the verdict and a table of all values with their protocol lines; raises as `standings`."""
    lines = [
        _cell(" ".join(_verdict(results, comparison, best))),
        "",
        "| model | value | 95% interval | floor | metric and protocol |",
    ]
    lines.append("|:--|--:|--:|--:|:--|")
    for standing in standings(results):
        name = standing.name.replace("`", "'").replace("|", r"\|")
        for result, value in standing.entries:
            shown, floor = numbers(standing.values, value.value, value.floor)
            row = (
                f"{_cell(result.label)}{' **best**' if _is_best(standing, result, best) else ''}",
                *(shown, interval_text(standing.values, value), floor),
                f"`{name}`, {DIRECTIONS[value.better]}",
            )
            lines.append(f"| {' | '.join(row)} |")
    if comparison:
        lines += ["", "| metric | difference | 95% interval | p | compared on | better |", "|:--|--:|--:|--:|:--|:--|"]
        lines += [f"| {' | '.join(map(_cell, (row.metric, *_columns(row))))} |" for row in comparison]
    return "\n".join(lines) + "\n"


def write_report(
    path: Path,
    results: Sequence[Results],
    *,
    comparison: Sequence[Row] = (),
    best: Best | None = None,
    clips: int = 24,
    by: str | None = None,
    quality: str | None = None,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Write one HTML file, whole or not at all, that shows everything without a network.

    Args:
        path: of the file.
        results: one, or several to compare.
        comparison: of two results, see `vidiff.metrics.ab.compared`.
        best: of several results, see `vidiff.metrics.best.best_of`; its row is marked.
        clips: prompts whose clips are shown besides those of the best and the worst.
        by: metric that tells the best prompts from the worst; the first with a value for each clip by default.
        quality: metric that is plotted against seconds per clip; the first that several results have by default.
        max_bytes: of all clips; what does not fit is left out, and the page says so.

    Raises:
        DataError: as `standings`. A clip that cannot be read is named on the page instead.
        ConfigError: for an unknown metric.
        ResourceError: if the file cannot be written.
    """
    found = standings(results)
    ranking = _chosen(found, by, lambda standing: any(value.per_clip for value in standing.values))
    timed = _chosen(found, quality, lambda standing: len(_timed(standing)) > 1)
    album = Album(max_bytes)
    neighbors = _neighbors(results, album)  # first, or they could be left out
    *extremes, others = _prompts(results, ranking, clips, album)
    sections = (
        ("Differences", _differences(comparison)),
        ("Values", _table(found, len(results) > 1, best)),
        ("Training", _curves(found)),
        ("Quality against time", _pareto(timed) if timed else ""),
        *extremes,
        ("Nearest training clips", neighbors),
        others,
        (
            "Left out",
            _items(f"{escape(name)} <small>{escape(why)}</small>" for r in results for name, why in r.excluded),
        ),
        ("Made with", "".join(map(_origin, results))),
    )
    script = files("vidiff.metrics").joinpath("report.js").read_text()
    page = Template(files("vidiff.metrics").joinpath("report.html").read_text()).substitute(
        title=escape(" and ".join(r.label for r in results) if len(results) < 3 else f"{len(results)} models"),
        verdict="".join(f"<p>{escape(sentence)}</p>" for sentence in _verdict(results, comparison, best)),
        sections="".join(f"<section><h2>{name}</h2><div>{html}</div></section>" for name, html in sections if html),
        clips=escape(album.summary()),
        style=files("vidiff.metrics").joinpath("report.css").read_text(),
        script=script,
        # No other script may run, so that a prompt could not bring one even where it were not escaped.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_bytes(path, page.encode("utf-8", "replace"))


def _chosen(found: Sequence[Standing], metric: str | None, fits: Callable[[Standing], bool]) -> Standing | None:
    fitting = [standing for standing in found if fits(standing)]
    if metric is None:
        return fitting[0] if fitting else None
    for standing in fitting:
        if metric in (standing.metric, standing.name):
            return standing
    names = sorted({standing.metric for standing in fitting})
    raise ConfigError(f"{metric}: not a metric that fits here.{did_you_mean(metric, names)} {', '.join(names)} would.")


def _table(found: Sequence[Standing], several: bool, best: Best | None) -> str:
    """Return all values: a group of rows for each metric, under its protocol."""
    groups = []
    for standing in found:
        values, better = standing.values, DIRECTIONS[standing.values[0].better]
        notes = "".join(f"<p>{escape(note)}</p>" for note in dict.fromkeys(v.note for v in values) if note)
        head = f"{escape(standing.metric)} <small>{better}</small>{_copyable(standing.name)}{notes}"
        rows = "".join(_row(standing, result, value, several, best) for result, value in standing.entries)
        groups.append(f'<tbody><tr><th colspan="4" scope="rowgroup">{head}</th></tr>{rows}</tbody>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Metric", "Value", "95% interval", "Floor"))
    return f'<table class="values"><thead><tr>{head}</tr></thead>{"".join(groups)}</table>' if groups else ""


def _verdict(results: Sequence[Results], comparison: Sequence[Row], best: Best | None) -> list[str]:
    found = verdict(results, sentences(comparison, [result.label for result in results]))
    return found if best is None else [*found, best.text()]


def _is_best(standing: Standing, result: Results, best: Best | None) -> bool:
    """Return whether no other result comes near this one by its interval, or it was picked by this metric."""
    picked = best is not None and (best.name, best.label) == (standing.name, result.label)
    return picked or standing.best == (result.label,)


def _differences(comparison: Sequence[Row]) -> str:
    """Return a table of two models' differences."""
    names = ("Metric", "Difference", "95% interval", "p", "Compared on", "Better")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = []
    for row in comparison:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in _columns(row))
        best = ' class="best"' if row.better else ""
        rows.append(f'<tr{best}><th scope="row">{escape(row.metric)}</th>{cells}</tr>')
    return f'<table class="values"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>' if rows else ""


def _columns(row: Row) -> tuple[str, ...]:
    """Return difference, interval, p-value, what was compared and which is better, as text."""
    if not row.known:
        return ("", "", "", row.how, UNKNOWN)
    difference, low, high = numbers([], row.difference, row.low, row.high)
    p_value = f"{row.p_value:.2g}" if row.p_value >= 0.001 else "below 0.001"
    return (difference, f"{low} to {high}", p_value, row.how, row.better or "no difference shows")


def _row(standing: Standing, result: Results, value: Value, several: bool, picked: Best | None) -> str:
    ends = [end for v in standing.values for end in (v.value, *(v.interval or ()), v.floor) if end is not None]
    ends = [end for end in ends if math.isfinite(end)] or [0.0]
    best = _is_best(standing, result, picked)
    name = f"<span>{escape(result.label)}{' <em>best</em>' if best else ''}</span>" if several else ""
    strip = interval_strip(value.value, value.interval, value.floor, (min(ends), max(ends)))
    shown, floor = numbers(standing.values, value.value, value.floor)
    cells = "".join(f"<td>{cell}</td>" for cell in (shown, interval_text(standing.values, value), floor))
    return f'<tr{" class=best" if best else ""}><th scope="row">{name}{strip}</th>{cells}</tr>'


def _curves(found: Sequence[Standing]) -> str:
    """Return a plot for each metric that was measured at several steps of training."""
    panels = []
    for standing in found:
        runs: dict[str, list[Point]] = {}
        for result, value in standing.entries:
            if result.step is not None:
                runs.setdefault(_run(result), []).append(Point(result.step, value.value, value.interval))
        if max(map(len, runs.values()), default=0) > 1:
            series = [Series(name, tuple(points)) for name, points in runs.items()]
            first = standing.values[0]
            panels.append(Panel(standing.metric, series, DIRECTIONS[first.better], first.floor))
    plots = small_multiples(panels, x_label="training step")
    return f'<div class="plots">{"".join(map(_figure, plots))}</div>' if plots else ""


def _run(result: Results) -> str:
    """Return a label without the step that it ends in: checkpoints of one run share the rest."""
    return re.sub(rf"[\s,/_-]*(step[\s_-]*)?(?<!\d)0*{result.step}$", "", result.label)


def _timed(standing: Standing) -> list[tuple[Results, Value, float]]:
    return [(r, v, r.seconds_per_clip) for r, v in standing.entries if r.seconds_per_clip is not None]


def _pareto(standing: Standing) -> str:
    value = standing.values[0]
    points = [Point(seconds, v.value, v.interval, r.label) for r, v, seconds in _timed(standing)]
    plot = scatter_plot(
        points,
        title=f"{standing.metric} and seconds per clip",
        subtitle=f"{DIRECTIONS[value.better]}; hollow: another is better and no slower",
        x_label="seconds per clip",
        cost=lambda point: cost(value, point.y),
    )
    return f'<div class="plots">{_figure(plot)}</div>'


def _figure(plot: str) -> str:
    return f"<figure>{plot}</figure>"


def _prompts(results: Sequence[Results], ranking: Standing | None, count: int, album: Album) -> list[tuple[str, str]]:
    """Return the sections of the best and the worst prompts, and of others in their order, each prompt once."""
    shown: dict[str, list[tuple[Results, Clip]]] = {}
    for result in results:
        for clip in result.clips:
            shown.setdefault(clip.key, []).append((result, clip))
    scores = {result.label: value for result, value in ranking.entries} if ranking else {}
    totals: dict[str, float] = {}
    for key, members in shown.items():
        known = [scores[r.label] for r, _ in members if r.label in scores and key in scores[r.label].per_clip]
        if known and len(known) == len(members):
            totals[key] = sum(cost(value, value.per_clip[key]) for value in known) / len(known)
    order = sorted((key for key in totals if not math.isnan(totals[key])), key=totals.__getitem__)
    extremes = min(_EXTREMES, len(order) // 2)
    best, worst = order[:extremes], order[::-1][:extremes]
    others = [key for key in shown if key not in {*best, *worst}][:count]
    sections = [("Clips" if not best else "More clips", others)]
    if ranking and best:
        name = escape(ranking.metric)
        sections = [(f"Best prompts by {name}", best), (f"Worst prompts by {name}", worst), *sections]
    return [(name, _exhibits(shown, keys, ranking, album)) for name, keys in sections]


def _exhibits(
    shown: dict[str, list[tuple[Results, Clip]]], keys: Sequence[str], ranking: Standing | None, album: Album
) -> str:
    """Return the clips of each prompt side by side, with their values of a metric."""
    scores = {result.label: value.per_clip for result, value in ranking.entries} if ranking else {}
    figures = []
    for key in keys:
        screens = []
        for result, clip in shown[key]:
            names = [result.label] if len(shown[key]) > 1 else []
            score = scores.get(result.label, {}).get(key)
            if ranking and score is not None:
                names.append(f"{ranking.metric} {numbers([], score)[0]}")
            screens.append((album.video(clip.path, f"{clip.prompt or key}, {result.label}"), ", ".join(names)))
        clip = shown[key][0][1]
        seed = "" if clip.seed is None else f" <small>seed {clip.seed}</small>"
        figures.append(_exhibit(screens, f"{escape(clip.prompt or key)}{seed}"))
    return _wall(figures, max((len(shown[key]) for key in keys), default=1))


def _neighbors(results: Sequence[Results], album: Album) -> str:
    """Return generated clips beside the nearest ones of the training data, those that may be copies first."""
    found = [(result, neighbor) for result in results for neighbor in result.neighbors]
    found.sort(key=lambda pair: (not pair[1].flagged, pair[1].distance))
    figures = []
    for result, neighbor in found[:_NEIGHBORS]:
        path = next((clip.path for clip in result.clips if clip.key == neighbor.key), "")
        screens = [
            (album.video(path, f"generated {neighbor.key}"), f"generated {neighbor.key}"),
            (album.video(neighbor.nearest_path, f"training {neighbor.nearest}"), f"training {neighbor.nearest}"),
        ]
        flag = "<em>nearer than held-out clips are</em>" if neighbor.flagged else ""
        model = f" <small>{escape(result.label)}</small>" if len(results) > 1 else ""
        figures.append(_exhibit(screens, f"distance {numbers([], neighbor.distance)[0]} {flag}{model}"))
    rest = len(found) - len(figures)
    return _wall(figures, 2) + (f"<p>{rest} more are farther away.</p>" if rest else "")


def _exhibit(screens: Iterable[tuple[str, str]], caption: str) -> str:
    """Return clips that play together, with what they are called (text) and a caption (HTML)."""
    boxes = "".join(f"<div>{video}<small>{escape(name)}</small></div>" for video, name in screens)
    return f'<figure class="exhibit"><div class="screens">{boxes}</div><figcaption>{caption}</figcaption></figure>'


def _wall(figures: Sequence[str], screens: int) -> str:
    """Return a grid of exhibits with up to ``screens`` clips each."""
    return f'<div class="wall" style="--screens:{screens}">{"".join(figures)}</div>' if figures else ""


def _items(rows: Iterable[str]) -> str:
    items = "".join(f"<li>{row}</li>" for row in rows)
    return f"<ul>{items}</ul>" if items else ""


def _origin(result: Results) -> str:
    """Return the command and the versions that made a result."""
    command = _copyable(result.command) if result.command else "<p>The command is not known.</p>"
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    return f"<h3>{escape(result.label)}</h3>{command}<p><small>{escape(versions)}</small></p>"


def _copyable(text: str) -> str:
    return f'<div class="copyable"><code>{escape(text)}</code><button type="button">Copy</button></div>'


def _cell(text: str) -> str:
    """Return text as it stands in a markdown table."""
    return re.sub(r"([\\`*_<\[|])", r"\\\1", " ".join(text.split()))
