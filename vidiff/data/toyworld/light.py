"""Light, sky and surface colors. Colors are linear RGB unless they say sRGB."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vidiff.data.toyworld.attributes import COLORS, GROUNDS, LIGHTS, Scene
from vidiff.data.toyworld.textures import GROUND_COLORS

Color = tuple[float, float, float]

# sRGB, 0 to 255: apart from each other under every light.
OBJECT_COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 28, 32),
    "orange": (246, 126, 10),
    "yellow": (248, 218, 24),
    "green": (22, 150, 48),
    "cyan": (30, 206, 214),
    "blue": (28, 62, 206),
    "purple": (122, 38, 176),
    "pink": (252, 128, 184),
    "white": (240, 240, 240),
    "black": (20, 20, 22),
}


@dataclass(frozen=True)
class Light:
    """One kind of light."""

    elevation: float  # of the sun or moon, degrees
    sun: Color
    ambient: Color
    zenith: Color
    horizon: Color
    clouds: float = 0.0
    stars: float = 0.0
    shadow: float = 1.0  # share of the sun's light that an object can block


PRESETS = {
    "day": Light(48, (1.15, 1.08, 0.95), (0.30, 0.36, 0.46), (0.10, 0.30, 0.78), (0.52, 0.72, 0.94), clouds=0.8),
    "sunset": Light(17, (1.35, 0.55, 0.18), (0.30, 0.19, 0.26), (0.16, 0.09, 0.30), (1.00, 0.40, 0.13), clouds=0.5),
    "night": Light(42, (0.30, 0.38, 0.58), (0.06, 0.09, 0.18), (0.004, 0.008, 0.035), (0.03, 0.05, 0.13), stars=1.0),
    "overcast": Light(60, (0.22, 0.22, 0.22), (0.50, 0.52, 0.55), (0.34, 0.37, 0.41), (0.62, 0.65, 0.68), 0.6, 0, 0.9),
}


@dataclass(frozen=True)
class Lighting:
    """The light of S scenes."""

    toward_sun: Tensor  # (S, 3), unit
    sun: Tensor  # (S, 3)
    ambient: Tensor  # (S, 3)
    zenith: Tensor  # (S, 3)
    horizon: Tensor  # (S, 3)
    clouds: Tensor  # (S,)
    stars: Tensor  # (S,)
    shadow: Tensor  # (S,)


def lighting(scenes: list[Scene], device: torch.device) -> Lighting:
    """Return the light of each scene; rain and snow dim the sun and gray the sky."""
    rows = []
    for scene in scenes:
        light = PRESETS[scene.light]
        elevation, azimuth = math.radians(light.elevation), math.radians(65) * scene.layout.sun
        toward = (
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
            math.cos(elevation) * math.cos(azimuth),
        )
        wet = scene.weather != "clear"
        sun = tuple(c * 0.6 for c in light.sun) if wet else light.sun
        zenith, horizon = (_grayed(c, 0.6 if wet else 0.0) for c in (light.zenith, light.horizon))
        extra = (light.clouds, light.stars * (0.3 if wet else 1.0), light.shadow)
        rows.append([*toward, *sun, *light.ambient, *zenith, *horizon, *extra])
    table = torch.tensor(rows, device=device)
    return Lighting(*(table[:, i : i + 3] for i in range(0, 15, 3)), *table[:, 15:].unbind(1))


def ground_ramps(device: torch.device) -> Tensor:
    """Return each ground's darkest, middle and brightest color, (grounds, 3, 3)."""
    return linear(torch.tensor([GROUND_COLORS[name] for name in GROUNDS], device=device) / 255)


def albedos(device: torch.device) -> Tensor:
    """Return the objects' colors, (colors, 3)."""
    return linear(torch.tensor([OBJECT_COLORS[name] for name in COLORS], device=device) / 255)


def linear(srgb: Tensor) -> Tensor:
    """Return linear light of display values in [0, 1] (IEC 61966-2-1)."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def display(light: Tensor) -> Tensor:
    """Return display values in [0, 1] of linear light, what is too bright cut off; undoes `linear`."""
    light = light.clamp(0, 1)
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def _grayed(color: Color, amount: float) -> Color:
    gray = sum(color) / 3
    r, g, b = (c + amount * (gray - c) for c in color)
    return r, g, b


assert set(PRESETS) == set(LIGHTS)
