"""The scale of guidance over time, in one line of text.

    schedule = piece {"," piece}           pieces are tried in order; where none holds, the scale is 1
    piece    = value ["@" from ":" to]     from and to are times with 0 <= from <= to <= 1; left out, the piece
                                           covers the rest, and is the last
    value    = number                      6        the same throughout
             | number ".." number          8..2     linear in t: 8 at ``from``, the smaller time, and 2 at ``to``
             | number {"/" number}         15/1     one after the other, a step each; 15 at the first one up to ``to``

``6@0:0.7,1`` guides with 6 in the last 70% of the time to sample and not at all in the first 30%, which is
limited-interval guidance (Kynkäänniemi et al., 2024). ``15@0.9:1,15/1`` is the oscillating guidance of Imagen Video
(Ho et al., 2022): strong at first, then every other step without.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from vidiff.errors import ConfigError

_GRAMMAR = "a piece is 6, 8..2 or 15/1, alone or with its times as in 6@0:0.7; for example 6@0:0.7,1"
_NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_PIECE = re.compile(rf"({_NUMBER}(?:\.\.{_NUMBER}|(?:/{_NUMBER})*))(?:@({_NUMBER}):({_NUMBER}))?")
_SLACK = 1e-6  # a grid's 0.7 may be 0.7000000000000001

Form = Literal["constant", "ramp", "alternating"]


@dataclass(frozen=True)
class Piece:
    """What the scale is at the times in [t_min, t_max]."""

    form: Form
    values: tuple[float, ...]
    t_min: float = 0.0
    t_max: float = 1.0
    rest: bool = True  # written without times

    def __str__(self) -> str:
        value = {"constant": "", "ramp": "..", "alternating": "/"}[self.form].join(map(_short, self.values))
        return value if self.rest else f"{value}@{_short(self.t_min)}:{_short(self.t_max)}"

    def inside(self, t: Tensor) -> Tensor:
        """Return where this piece holds, bool, of the shape of ``t``."""
        return (t >= self.t_min - _SLACK) & (t <= self.t_max + _SLACK)

    def at(self, t: Tensor, times: Tensor | None) -> Tensor:
        """Return the scale at the times ``t`` inside, (B,), float64; ``times`` as for `ScaleSchedule.at`."""
        values = torch.tensor(self.values, dtype=torch.float64, device=t.device)
        if self.form == "constant":
            return values.expand(t.shape)
        if self.form == "ramp":
            share = (t.double() - self.t_min) / (self.t_max - self.t_min)
            return values[0] + share.clamp(0, 1) * (values[1] - values[0])
        if times is None:
            raise ConfigError(f"guidance {self}: what alternates by step needs the times that sampling visits")
        first = int((times > self.t_max + _SLACK).sum())
        return values[(step_of(t, times) - first).clamp(min=0) % len(values)]


@dataclass(frozen=True)
class ScaleSchedule:
    """The scale of guidance as a function of t and of the times that sampling visits; `parsed` from text."""

    pieces: tuple[Piece, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.pieces))

    @property
    def has_times(self) -> bool:
        """Return whether a piece says when it holds."""
        return not all(piece.rest for piece in self.pieces)

    @property
    def plain(self) -> float | str:
        """Return the shortest way to write it: a number if it is one, or else its text."""
        (first, *others) = self.pieces
        return first.values[0] if first.rest and first.form == "constant" and not others else str(self)

    def at(self, t: Tensor, times: Tensor | None = None) -> Tensor:
        """Return the scale at the times ``t``.

        Args:
            t: time of each sample, (B,).
            times: falling times of the steps, (num_steps + 1,), which only alternating pieces need.

        Returns:
            (B,), float64.

        Raises:
            ConfigError: if a piece alternates and there are no ``times``.
        """
        scale, free = torch.ones(t.shape, dtype=torch.float64, device=t.device), torch.ones_like(t, dtype=torch.bool)
        for piece in self.pieces:
            here = free & piece.inside(t)
            if here.any():
                scale = torch.where(here, piece.at(t, times), scale)
            free = free & ~here
        return scale


def step_of(t: Tensor, times: Tensor) -> Tensor:
    """Return the step in which each time lies, int64 of the shape of ``t``.

    Step k goes from ``times[k]`` to ``times[k + 1]`` and owns the times in between and the one that it starts at, so
    that a solver's evaluations inside a step belong to it, and one at its end to the next.
    """
    passed = (times.to(t.device) >= t[:, None] - _SLACK).sum(1)
    return (passed - 1).clamp(0, max(0, len(times) - 2))


@lru_cache
def parsed(text: str) -> ScaleSchedule:
    """Return the schedule that a text such as ``6@0:0.7,1`` stands for.

    Raises:
        ConfigError: names the piece that is wrong, and what a piece is.
    """
    pieces = tuple(_piece(part.strip(), text) for part in text.split(","))
    for piece in pieces[:-1]:
        if piece.rest:
            raise ConfigError(f"guidance {text!r}: {str(piece)!r} covers the rest, so it comes last; {_GRAMMAR}")
    return ScaleSchedule(pieces)


def constant(scale: float) -> ScaleSchedule:
    """Return the schedule that is ``scale`` throughout."""
    return ScaleSchedule((Piece("constant", (scale,)),))


def _short(number: float) -> str:
    """Return a number's shortest text that is read as the same."""
    text = f"{number:g}"
    return text if float(text) == number else repr(number)


def _piece(part: str, text: str) -> Piece:
    found = _PIECE.fullmatch(part)
    if found is None:
        raise ConfigError(f"guidance {text!r}: {part!r} is no piece; {_GRAMMAR}")
    value, t_min, t_max = found.groups()
    form: Form = "ramp" if ".." in value else "alternating" if "/" in value else "constant"
    numbers = tuple(float(number) for number in re.split(r"\.\.|/", value))
    start, stop = (0.0, 1.0) if t_min is None else (float(t_min), float(t_max))
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(f"guidance {text!r}: {part!r} is no finite number; {_GRAMMAR}")
    if not 0 <= start <= stop <= 1:
        raise ConfigError(f"guidance {text!r}: {part!r} needs times with 0 <= from <= to <= 1; {_GRAMMAR}")
    if form == "ramp" and start == stop:
        raise ConfigError(f"guidance {text!r}: {part!r} has no time to go from one number to the other; {_GRAMMAR}")
    return Piece(form, numbers, start, stop, rest=t_min is None)
