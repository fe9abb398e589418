"""A picture of a schedule: alpha, sigma and log-SNR over time, and where the steps of a sampler fall."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vidiff.diffusion.schedule import NoiseSchedule, log_snr

WIDTH, HEIGHT = 960, 720  # of the picture, in pixels
_FINER = 2  # drawn so many times larger, and then made smaller, so that lines are smooth
_LEFT, _RIGHT = 76, 920  # of both plots
_LEVELS, _LOGS = (112, 352), (432, 640)  # top and bottom of the plot of alpha and sigma, and of that of the log-SNR
_MOST_LOG_SNR = 15.0  # shown; what lies beyond is drawn at the edge
_POINTS = 601  # of a curve

_INK, _MUTED, _GRID, _PAPER = "#222222", "#6b6b6b", "#e4e4e4", "#ffffff"
_ALPHA, _SIGMA, _LOG_SNR, _STEP = "#1f5f8b", "#b3541e", "#3d7a4e", "#cfc6dd"
_STEP_INK = "#7b4b94"

Place = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Maps what an axis shows to pixels."""

    low: float
    high: float
    start: float  # pixel of ``low``
    end: float  # pixel of ``high``
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of ``value``, that of the nearest end if it lies beyond."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def schedule_figure(schedule: NoiseSchedule, times: Tensor, title: str, subtitle: str = "") -> np.ndarray:
    """Return the picture, uint8 (720, 960, 3).

    Args:
        schedule: what is drawn.
        times: falling times of the steps, (num_steps + 1,), which are marked.
        title: the first line.
        subtitle: the line below it.
    """
    canvas = _Canvas()
    canvas.text((_LEFT, 24), title, 22, _INK)
    canvas.text((_LEFT, 54), subtitle, 14, _MUTED)
    across = Scale(0, 1, _LEFT, _RIGHT)
    near = torch.logspace(-8, -3, 51, dtype=torch.float64)  # both ends, where the log-SNR has none
    t = torch.cat([torch.linspace(0, 1, _POINTS, dtype=torch.float64), near, 1 - near]).sort().values
    _levels(canvas, schedule, t, times, across)
    _logs(canvas, schedule, t, times, across)
    canvas.text(((_LEFT + _RIGHT) / 2, HEIGHT - 34), "time t, from data (0) to noise (1)", 14, _MUTED, "ma")
    return canvas.finished()


def _levels(canvas: "_Canvas", schedule: NoiseSchedule, t: Tensor, times: Tensor, across: Scale) -> None:
    """Draw alpha and sigma, on a logarithmic axis where sigma exceeds what data can be."""
    alpha, sigma = schedule.alpha_sigma(t)
    top, bottom = _LEVELS
    if sigma.max() > 1.5:
        low, high = (10.0 ** round_(math.log10(v)) for round_, v in ((math.floor, sigma[1]), (math.ceil, sigma.max())))
        up, ticks = Scale(low, high, bottom, top, logarithmic=True), _powers(low, high)
    else:
        up, ticks = Scale(0, 1, bottom, top), [0, 0.25, 0.5, 0.75, 1]
    canvas.frame(across, up, ticks, times.tolist())
    canvas.curve(across, up, t, alpha, _ALPHA)
    canvas.curve(across, up, t[sigma > 0], sigma[sigma > 0], _SIGMA)
    canvas.legend((_LEFT, top - 24), (("alpha, the signal", _ALPHA), ("sigma, the noise", _SIGMA)))


def _logs(canvas: "_Canvas", schedule: NoiseSchedule, t: Tensor, times: Tensor, across: Scale) -> None:
    """Draw the log-SNR with a mark for each step, also at the right edge, where their density shows."""
    values = log_snr(schedule, t)
    inside = values[torch.isfinite(values)].clamp(-_MOST_LOG_SNR, _MOST_LOG_SNR)
    step = 5.0
    low, high = math.floor(inside.min().item() / step) * step, math.ceil(inside.max().item() / step) * step
    top, bottom = _LOGS
    up = Scale(low, high, bottom, top)
    ticks = [low + step * index for index in range(round((high - low) / step) + 1)]
    canvas.frame(across, up, ticks, times.tolist(), labeled=True)
    shown = (values >= low) & (values <= high)
    canvas.curve(across, up, t[shown], values[shown], _LOG_SNR)
    for at, value in zip(times.tolist(), log_snr(schedule, times).tolist(), strict=True):
        canvas.dot((across(at), up(value)), hollow=not low <= value <= high)
        if low <= value <= high:
            canvas.line([(_RIGHT + 4, up(value)), (_RIGHT + 14, up(value))], _STEP_INK, 1.25)
    x = canvas.legend((_LEFT, top - 24), (("log-SNR", _LOG_SNR),))
    canvas.dot((x + 4, top - 16), hollow=False)
    canvas.text((x + 15, top - 24), "times that the steps visit (hollow: beyond the axis)", 14, _INK)


def _powers(low: float, high: float) -> list[float]:
    return [10.0**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]


class _Canvas:
    """Draws in pixels of the finished picture."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH * _FINER, HEIGHT * _FINER), _PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def finished(self) -> np.ndarray:
        return np.asarray(self.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))

    def text(self, at: Place, text: str, size: int, color: str, anchor: str = "la") -> float:
        """Write one line and return its width."""
        font = ImageFont.load_default(size * _FINER)
        self.draw.text(_scaled(at), text, fill=color, font=font, anchor=anchor)
        return float(self.draw.textlength(text, font=font)) / _FINER

    def line(self, points: Sequence[Place], color: str, width: float) -> None:
        self.draw.line([_scaled(p) for p in points], fill=color, width=round(width * _FINER), joint="curve")

    def curve(self, across: Scale, up: Callable[[float], float], t: Tensor, values: Tensor, color: str) -> None:
        points = zip(t.tolist(), values.tolist(), strict=True)
        self.line([(across(x), up(y)) for x, y in points], color, 2.5)

    def dot(self, at: Place, hollow: bool) -> None:
        (x, y), radius = _scaled(at), 3.5 * _FINER
        box = (x - radius, y - radius, x + radius, y + radius)
        self.draw.ellipse(box, fill=_PAPER if hollow else _STEP_INK, outline=_STEP_INK, width=round(1.5 * _FINER))

    def frame(
        self, across: Scale, up: Scale, ticks: Sequence[float], steps: Sequence[float], labeled: bool = False
    ) -> None:
        """Draw the lines behind a plot: of its ticks, and upright ones at the times of the steps."""
        for at in steps:
            self.line([(across(at), up.start), (across(at), up.end)], _STEP, 1)
        for tick in ticks:
            self.line([(_LEFT, up(tick)), (_RIGHT, up(tick))], _GRID, 1)
            self.text((_LEFT - 10, up(tick)), f"{tick:g}", 13, _MUTED, "rm")
        self.line([(_LEFT, up.start), (_RIGHT, up.start)], _MUTED, 1)
        for index in range(6):
            at = across(index / 5)
            self.line([(at, up.start), (at, up.start + 5)], _MUTED, 1)
            if labeled:
                self.text((at, up.start + 10), f"{index / 5:g}", 13, _MUTED, "ma")

    def legend(self, at: Place, entries: Sequence[tuple[str, str]]) -> float:
        """Name lines by their colors and return where the next entry would begin."""
        x, y = at
        for name, color in entries:
            self.line([(x, y + 8), (x + 18, y + 8)], color, 4)
            x += 26 + self.text((x + 26, y), name, 14, _INK) + 28
        return x


def _scaled(at: Place) -> Place:
    return at[0] * _FINER, at[1] * _FINER
