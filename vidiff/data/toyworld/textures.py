"""Ground, cloud and weather patterns: computed once from fixed seeds, the same at every size and on every device.

A pattern is a tile that repeats without a seam, held at several widths of blur, so that far ground does not flicker.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff.data.toyworld.attributes import GROUNDS

TILE = 6.0  # world units that a ground tile covers
SIDE = 256  # texels along a tile
LEVELS = 10  # blurs, each half an octave wider

# Darkest, middle and brightest color of each ground, sRGB.
GROUND_COLORS = {
    "grass": ((38, 84, 28), (74, 134, 46), (138, 182, 80)),
    "sand": ((168, 130, 82), (214, 180, 124), (240, 216, 166)),
    "snow": ((150, 168, 196), (196, 208, 224), (226, 232, 240)),
    "water": ((10, 52, 94), (26, 96, 148), (120, 186, 214)),
    "stone": ((72, 70, 70), (118, 114, 110), (166, 160, 152)),
    "checkerboard": ((52, 46, 58), (136, 128, 128), (222, 212, 200)),
}


@lru_cache(maxsize=1)
def ground_volume() -> Tensor:
    """Return all grounds, (1, 1, grounds * LEVELS, SIDE + 1, SIDE + 1), values in [0, 1]."""
    return torch.stack([_blurs(_ground(name)) for name in GROUNDS]).flatten(0, 1)[None, None]


@lru_cache(maxsize=1)
def sky_and_weather() -> Tensor:
    """Return clouds, stars, rain and snowflakes, (4, 1, SIDE + 1, SIDE + 1), values in [0, 1]."""
    generator = torch.Generator().manual_seed(7)
    clouds = ((_noise(generator, (2, 3, 4, 5), 0.55) - 0.5) * 2.6).clamp(0, 1)
    stars = _dots(generator, 160, 0.55)
    rain = _streaks(generator, 150)
    flakes = _dots(generator, 110, 1.7)
    return torch.stack([_closed(pattern) for pattern in (clouds, stars, rain, flakes)])[:, None]


def _ground(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(GROUNDS.index(name))
    rows = torch.arange(SIDE)[:, None].float() / SIDE
    columns = torch.arange(SIDE)[None].float() / SIDE
    match name:
        case "grass":
            blades = _noise(generator, (5, 6, 7), 0.9)
            return _stretched(0.55 * blades + 0.45 * _noise(generator, (2, 3, 4), 0.7))
        case "sand":
            drift = _noise(generator, (1, 2, 3), 0.5)
            ripples = torch.sin(2 * math.pi * (9 * rows + 2 * columns + 1.6 * drift))
            return _stretched(0.5 * ripples + 1.2 * drift + 0.5 * _noise(generator, (7, 8), 0.9))
        case "snow":
            return _stretched(_noise(generator, (2, 3, 4, 5), 0.6)) ** 0.7
        case "water":
            ridges = [1 - (2 * _noise(generator, octaves, 0.6) - 1).abs() for octaves in ((3, 4), (4, 5))]
            return _stretched(ridges[0] * ridges[1]) ** 1.6
        case "stone":
            return _slabs(generator) * (0.7 + 0.3 * _noise(generator, (4, 5, 6), 0.8))
        case _:
            even = ((rows * 6).floor() + (columns * 6).floor()) % 2
            return 0.08 + 0.84 * even + 0.08 * (_noise(generator, (4, 5, 6), 0.8) - 0.5)


def _noise(generator: torch.Generator, octaves: tuple[int, ...], gain: float) -> Tensor:
    """Return seamless value noise (SIDE, SIDE) in [0, 1]: cubic splines through 2^octave random values a side."""
    total, weight = torch.zeros(SIDE, SIDE), 0.0
    for number, octave in enumerate(octaves):
        cells = 2**octave
        grid = torch.rand(cells, cells, generator=generator)
        wrapped = F.pad(grid[None, None], (2, 2, 2, 2), mode="circular")
        step = SIDE // cells
        fine = F.interpolate(wrapped, scale_factor=step, mode="bicubic", align_corners=False)[0, 0]
        total += gain**number * fine[2 * step : -2 * step, 2 * step : -2 * step]
        weight += gain**number
    return (total / weight).clamp(0, 1)


def _slabs(generator: torch.Generator, count: int = 6) -> Tensor:
    """Return paving (SIDE, SIDE): irregular slabs of differing brightness, dark joints between them."""
    side = torch.arange(SIDE).float() / SIDE
    cell = torch.arange(count).float()
    jitter = torch.rand(2, count, count, generator=generator)
    points = torch.stack([(cell[:, None] + 0.2 + 0.6 * jitter[0]) / count, (cell + 0.2 + 0.6 * jitter[1]) / count])
    away = (side[:, None, None, None] - points[0]).abs(), (side[None, :, None, None] - points[1]).abs()
    distance = torch.hypot(*(torch.minimum(d, 1 - d).expand(SIDE, SIDE, count, count) for d in away)).flatten(2)
    nearest, which = distance.topk(2, largest=False)
    tone = 0.45 + 0.55 * torch.rand(count * count, generator=generator)[which[..., 0]]
    joint = ((nearest[..., 1] - nearest[..., 0]) / 0.018).clamp(0, 1)
    return tone * (0.15 + 0.85 * joint)


def _dots(generator: torch.Generator, count: int, radius: float) -> Tensor:
    """Return round soft dots at random places, (SIDE, SIDE)."""
    impulses = torch.zeros(SIDE, SIDE)
    places = torch.randint(0, SIDE, (2, count), generator=generator)
    impulses[places[0], places[1]] = 0.4 + 0.6 * torch.rand(count, generator=generator)
    blurred = _blur(impulses, radius)
    return (blurred / blurred.max() * 1.3).clamp(0, 1)


def _streaks(generator: torch.Generator, count: int, length: int = 26) -> Tensor:
    """Return thin falling lines, (SIDE, SIDE)."""
    rain = torch.zeros(SIDE, SIDE)
    places = torch.randint(0, SIDE, (2, count), generator=generator)
    for offset in range(length):
        rows, columns = (places[0] + offset) % SIDE, (places[1] - offset // 6) % SIDE
        rain[rows, columns] = torch.maximum(rain[rows, columns], torch.tensor(math.sin(math.pi * offset / length)))
    return (_blur(rain, 0.6) * 1.5).clamp(0, 1)


def _stretched(x: Tensor) -> Tensor:
    return (x - x.min()) / (x.max() - x.min())


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Blur a seamless tile by a Gaussian of ``sigma`` texels."""
    frequency = torch.fft.fftfreq(SIDE)
    falloff = torch.exp(-2 * (math.pi * sigma * frequency) ** 2)
    blurred: Tensor = torch.fft.ifft2(torch.fft.fft2(x) * falloff[:, None] * falloff).real
    return blurred


def _closed(x: Tensor) -> Tensor:
    """Repeat the first row and column behind the last, so that interpolation meets no seam."""
    return F.pad(x[None, None], (0, 1, 0, 1), mode="circular")[0, 0]


def _blurs(x: Tensor) -> Tensor:
    return torch.stack([_closed(_blur(x, 0.35 * 2 ** (level / 2)) if level else x) for level in range(LEVELS)])
