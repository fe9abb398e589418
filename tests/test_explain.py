"""`vidiff explain schedule` and the picture it draws."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from vidiff.cli.main import main
from vidiff.diffusion.schedule import SCHEDULES, CosineSchedule, EDMSchedule
from vidiff.sampling.figure import HEIGHT, WIDTH, Scale, schedule_figure
from vidiff.sampling.times import spacing_by_name, uniform_times

BLUE, ORANGE, GREEN, PURPLE = (0x1F, 0x5F, 0x8B), (0xB3, 0x54, 0x1E), (0x3D, 0x7A, 0x4E), (0x7B, 0x4B, 0x94)


def shown(picture, color, tolerance=40):
    """Return where a color is, (H, W)."""
    return np.abs(picture.astype(int) - color).max(-1) < tolerance


def middle_row(picture, color, column, rows):
    """Return the pixel row of a curve in one column, between two rows."""
    found = np.flatnonzero(shown(picture, color)[rows[0] : rows[1], column])
    return rows[0] + found.mean()


def test_curves_pass_through_what_the_schedule_says():
    picture = schedule_figure(CosineSchedule(), uniform_times(3), "cosine")
    for t in (0.2, 0.45, 0.85):
        column = round(76 + t * (920 - 76))
        alpha, sigma = (v.item() for v in CosineSchedule().alpha_sigma(torch.tensor(t, dtype=torch.float64)))
        for color, value in ((BLUE, alpha), (ORANGE, sigma)):
            assert middle_row(picture, color, column, (108, 360)) == pytest.approx(352 - 240 * value, abs=1.5)
        log_snr = 2 * np.log(alpha / sigma)
        assert middle_row(picture, GREEN, column, (428, 645)) == pytest.approx(536 - 208 / 30 * log_snr, abs=1.5)


def test_every_step_is_marked_where_it_falls():
    times = spacing_by_name("karras").times(EDMSchedule(), 6)
    picture = schedule_figure(EDMSchedule(), times, "edm")
    marks = shown(picture, PURPLE)[425:645, 70:925]
    columns = np.flatnonzero(marks.sum(0) >= 3)
    for t in times.tolist():
        assert np.abs(columns + 70 - (76 + t * 844)).min() < 3
    groups = 1 + np.count_nonzero(np.diff(columns) > 4)
    assert groups == 6  # the last evaluation and t = 0 lie in one column


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_drawn_within_its_picture(name):
    picture = schedule_figure(SCHEDULES[name](), uniform_times(5), name, "5 steps")
    assert picture.shape == (HEIGHT, WIDTH, 3) and picture.dtype == np.uint8
    assert all(shown(picture, color).any() for color in (BLUE, ORANGE, GREEN, PURPLE))
    edges = [picture[:8], picture[-8:], picture[:, :8], picture[:, -8:]]
    assert all((edge == 255).all() for edge in edges)


def test_a_scale_keeps_what_lies_beyond_at_its_edge():
    up = Scale(-10, 10, 200, 100)
    assert [up(v) for v in (-np.inf, -10, 0, 5, np.inf)] == [200, 200, 150, 125, 100]
    assert Scale(0.01, 100, 0, 4, logarithmic=True)(10) == pytest.approx(3)


@pytest.fixture
def vidiff(monkeypatch, capsys, tmp_path):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vidiff", "explain", "schedule", *arguments])
        monkeypatch.chdir(tmp_path)
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
        return code, *capsys.readouterr()

    return run


def test_the_picture_is_written_where_asked(vidiff, tmp_path):
    assert vidiff("cosine") == (0, "cosine.png\n", "")
    plain = np.asarray(Image.open(tmp_path / "cosine.png"))
    options = ("--set", "shift=3", "--spacing", "karras", "--steps", "8", "-o", "other.png")
    assert vidiff("cosine", *options) == (0, "other.png\n", "")
    other = np.asarray(Image.open(tmp_path / "other.png"))
    assert plain.shape == other.shape == (HEIGHT, WIDTH, 3) and not np.array_equal(plain, other)
    assert vidiff("flow", "--set", "shift=2", "--times", "1,0.6,0", "-o", "listed.png")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("cosin",), "unknown schedule 'cosin'. Did you mean cosine?"),
        (("flow", "--set", "shfit=3"), "Did you mean shift?"),
        (("flow", "--set", "shift=-3"), "shift must be positive"),
        (("edm", "--set", "zero_terminal_snr=true"), "zero_terminal_snr: unknown key"),
        (("cosine", "--spacing", "karas"), "Did you mean karras?"),
        (("cosine", "--steps", "0"), "at least 1"),
        (("cosine", "--times", "1,2"), "times must fall"),
        (("cosine", "-o", "x.jpg"), "must end in .png"),
    ],
)
def test_what_cannot_be_drawn_gets_one_line(vidiff, arguments, said):
    code, out, err = vidiff(*arguments)
    assert code == 2 and out == "" and said in err and len(err.splitlines()) == 1
