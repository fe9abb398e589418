"""Plots as SVG text."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vidiff.metrics.plots import (
    HEIGHT,
    WIDTH,
    Panel,
    Point,
    Series,
    interval_strip,
    line_plot,
    pareto_front,
    scatter_plot,
    small_multiples,
    tick_texts,
    ticks,
)


def parsed(svg):
    assert "http" not in svg
    return ET.fromstring(svg)


def test_plots_are_well_formed_with_titles_for_screen_readers():
    points = (Point(0, 1.0, (0.5, 1.5)), Point(1, 2.0), Point(2, float("nan")), Point(3, 3.0, (2.0, 4.0)))
    for svg in (
        line_plot(Panel("a < b", [Series("a & b", points), Series("<c>", points)], "lower", floor=0.2)),
        scatter_plot([replace(p, name='"x" & <y>') for p in points], title="a < b", subtitle="lower"),
        line_plot(Panel("a < b", [], "lower")),
        line_plot(Panel("a < b", [Series("one", points[:1])], "lower")),
    ):
        root = parsed(svg)
        assert root.get("role") == "img" and [child.tag for child in root[:2]] == ["title", "desc"]
        assert root[0].text == "a < b" and root[1].text.startswith("lower") and "nan" not in svg


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-5, 1e6))
def test_ticks_are_round_evenly_apart_and_inside(low, width):
    found = ticks(low, low + width)
    assert 3 <= len(found) <= 9
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)
    steps = np.diff(found)
    mantissa = float(f"{steps[0]:.6e}".split("e")[0])
    assert np.allclose(steps, steps[0]) and min(abs(mantissa - one) for one in (1, 2, 5, 10)) < 1e-3
    assert len(set(tick_texts(found))) == len(found)


def test_tick_texts_are_short():
    assert tick_texts([0, 5000, 10000]) == ["0", "5k", "10k"]
    assert tick_texts([0.0, 0.25, 0.5]) == ["0.00", "0.25", "0.50"]
    assert tick_texts([-20.0, 0.0, 20.0]) == ["-20", "0", "20"]
    assert tick_texts([0, 2e-5]) == ["0", "2e-05"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e3, 1e5), st.floats(-1e5, 1e5)), min_size=1, max_size=6))
def test_all_marks_lie_inside_the_picture(places):
    root = parsed(line_plot(Panel("t", [Series("", tuple(Point(x, y, (y - 1, y + 1)) for x, y in places))], floor=3.0)))
    for text in root.iter("text"):
        assert 0 <= float(text.get("x")) <= WIDTH and 0 <= float(text.get("y")) <= HEIGHT
    for shape in (*root.iter("polyline"), *root.iter("polygon")):
        for place in shape.get("points").split():
            x, y = map(float, place.split(","))
            assert 0 <= x <= WIDTH and 40 <= y <= HEIGHT - 40


def test_a_band_spans_the_intervals_of_neighbors_and_a_lone_one_is_a_whisker():
    points = [Point(x, 5.0, None if x in (2, 4) else (4.0, 6.0)) for x in range(6)]
    root = parsed(line_plot(Panel("t", [Series("", tuple(points))])))
    (band,) = root.iter("polygon")
    corners = [tuple(map(float, place.split(","))) for place in band.get("points").split()]
    assert len(corners) == 4 and corners[0][0] == corners[3][0] and corners[0][1] > corners[3][1]
    upright = [line for line in root.iter("line") if line.get("x1") == line.get("x2")]
    assert sum(abs(float(line.get("y1")) - float(line.get("y2"))) > 20 for line in upright) == 2


def test_small_multiples_share_their_range_of_x():
    early, late = (Series("", tuple(Point(x, 1.0) for x in xs)) for xs in ((0, 10), (90, 100)))
    labels = [
        [text.text for text in parsed(svg).iter("text") if text.get("class") == "tick-x"]
        for svg in small_multiples([Panel("a", [early]), Panel("b", [late])])
    ]
    assert labels[0] == labels[1] == ["0", "50", "100"] or labels[0] == labels[1] == [
        "0",
        "20",
        "40",
        "60",
        "80",
        "100",
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8))
def test_the_front_holds_what_nothing_else_beats(costs):
    unbeaten = {
        i for i, (a, b) in enumerate(costs) if not any(c <= a and d <= b and (c, d) != (a, b) for c, d in costs)
    }
    front = pareto_front(costs)
    assert set(front) == unbeaten and [costs[i][0] for i in front] == sorted(costs[i][0] for i in front)


def test_beaten_points_are_hollow():
    points = [Point(1, 5.0, name="fast"), Point(2, 1.0, name="good"), Point(3, 3.0, name="beaten")]
    marks = list(parsed(scatter_plot(points, title="t")).iter("path"))
    assert [("--page" in mark.get("style")) for mark in marks] == [False, False, True]
    higher = list(parsed(scatter_plot(points, title="t", cost=lambda p: -p.y)).iter("path"))
    assert [("--page" in mark.get("style")) for mark in higher] == [False, True, True]


def test_a_strip_places_value_interval_and_floor_in_proportion():
    root = parsed(interval_strip(5.0, (4.0, 8.0), 0.0, (0.0, 10.0)))
    _, floor, bar = root.iter("line")
    places = [floor.get("x1"), bar.get("x1"), bar.get("x2"), next(root.iter("circle")).get("cx")]
    assert np.allclose([float(place.rstrip("%")) for place in places], [2 + 96 * x for x in (0, 0.4, 0.8, 0.5)])
    assert interval_strip(1.0, None, None, (1.0, 1.0)) == interval_strip(float("nan"), None, None, (0.0, 1.0)) == ""
