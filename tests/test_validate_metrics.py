"""What the study of metrics says of values that are known."""

import xml.etree.ElementTree as ET

import pytest

from tests.loaded import script

shown = script("validation_page")


def found(values, seen):
    clean = {"metric": "fd", "name": "fd[n=4]", "value": 1.0, "interval": [0.5, 1.5], "better": "lower"}
    rows = [[clean | {"value": value}] for value in values]
    counts = {"distances": 4, "temporal": 3, "following": 2}
    shared = {
        "counts": counts,
        "versions": {"torch": "2"},
        "null_test": {"random": "95 of 100"},
        "claims": {"so": False},
    }
    return shared | {"clean": [clean], "spoiled": {"blur": rows}, "seen": {"blur": {"fd": seen}}}


@pytest.mark.parametrize(
    ("values", "seen", "expected"),
    [((1.2, 2, 3, 4, 5), 2, "2"), ((1.2, 2, 5, 4, 5), 2, "2~"), ((1.1, 1.1, 1.1, 1.2, 1.3), None, "-")],
)
def test_a_verdict_tells_steady_damage_from_unsteady_and_unseen(values, seen, expected):
    assert shown.verdict(found(values, seen), "blur", "fd") == expected


def test_rounding_is_no_change():
    assert shown.steady([9.25, 9.25 + 2e-15, 9.25, 9.25 - 2e-15, 9.25]) and not shown.steady([1, 2, 1.9])


def test_the_page_has_every_value_and_the_whole_command():
    text = shown.page(found((1.2, 2, 3, 4, 5.125), 2))
    assert "| fd | 1 [0.5, 1.5] | 1.2 | 2 | 3 | 4 | 5.125 | 2 |" in text and "**No**: so." in text
    assert "`python scripts/validate_metrics.py --count 4 --temporal 3 --following 2`" in text and "fd[n=4]" in text


def test_the_figure_is_whole_where_nothing_varies():
    for values in ((1, 1, 1, 1, 1), (1e9, 2, 3, 4, 5)):
        assert (
            len(list(ET.fromstring(shown.figure(found(values, None))).iter("{http://www.w3.org/2000/svg}circle"))) == 6
        )
    one = found((1, 1, 1, 1, 1), None)
    one["clean"][0]["interval"] = [1.0, 1.0]
    assert "nan" not in shown.figure(one)
