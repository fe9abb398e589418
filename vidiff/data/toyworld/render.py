"""Scenes into frames: a batched ray tracer in plain torch, the same on every device."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidiff.data.toyworld.attributes import COLORS, GROUNDS, MATERIALS, MAX_OBJECTS, SHAPES, Scene
from vidiff.data.toyworld.light import Lighting, albedos, display, ground_ramps, lighting
from vidiff.data.toyworld.motion import poses
from vidiff.data.toyworld.rays import Hits, Objects, nearest_hits, sunlit
from vidiff.data.toyworld.textures import LEVELS, SIDE, TILE, ground_volume, sky_and_weather

FIELD_OF_VIEW = math.radians(40)  # from bottom to top
_FAR = 60.0  # where the ground ends
_RAYS_AT_ONCE = {"cpu": 1 << 18}  # what fits a processor's cache; a GPU takes more
_RAYS_ELSEWHERE = 1 << 23


@dataclass(frozen=True)
class Window:
    """The part of a picture that is rendered, in pixels."""

    top: int
    left: int
    height: int
    width: int


def render(
    scenes: list[Scene],
    times: np.ndarray,
    height: int,
    width: int,
    *,
    window: Window | None = None,
    samples: int = 2,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return frames of each scene, uint8 (S, T, H, W, 3), on ``device``.

    Args:
        scenes: S of them.
        times: seconds since the beginning, (T,).
        height: of the whole picture in pixels.
        width: of the whole picture in pixels.
        window: render only this part of it.
        samples: rays a pixel along each side, for antialiasing.
        device: where to compute.
    """
    device = torch.device(device)
    window = window or Window(0, 0, height, width)
    pixels = _pixel_rays(height, width, window, samples, device)
    at_once = max(1, _RAYS_AT_ONCE.get(device.type, _RAYS_ELSEWHERE) // pixels.shape[1])
    out = torch.empty(len(scenes), len(times), window.height, window.width, 3, dtype=torch.uint8, device=device)
    # Neighboring frames of a scene go together, and several scenes where they are small.
    jobs = [(s, t) for s in range(len(scenes)) for t in range(len(times))]
    for first in range(0, len(jobs), at_once):
        part = jobs[first : first + at_once]
        frames = _Frames.of(scenes, times, part, device)
        light = _light(frames, pixels, samples, height)
        light = F.avg_pool2d(light.unflatten(2, (window.height * samples, window.width * samples)), samples)
        light = _weather(light, frames, height, width, window)
        pictures = (display(light) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        out.view(-1, *pictures.shape[1:])[first : first + len(part)] = pictures
    return out


@dataclass(frozen=True)
class _Frames:
    """F frames, each of some scene at some time, with everything that decides their pixels."""

    objects: Objects
    albedo: Tensor  # (F, K, 3)
    shiny: Tensor  # (F, K), bool
    eye: Tensor  # (F, 3)
    view: Tensor  # (F, 3, 3)
    light: Lighting  # of F frames
    ground: Tensor  # (F,), index into GROUNDS
    weather: Tensor  # (F, 2): rain, snowfall
    time: Tensor  # (F,)

    @staticmethod
    def of(scenes: list[Scene], times: np.ndarray, part: list[tuple[int, int]], device: torch.device) -> "_Frames":
        used = sorted({s for s, _ in part})
        row = {s: i for i, s in enumerate(used)}
        posed = {s: poses(scenes[s], times[[t for scene, t in part if scene == s]]) for s in used}

        def joined(name: str) -> Tensor:
            return torch.from_numpy(np.concatenate([getattr(posed[s], name) for s in used])).float().to(device)

        scene_of = torch.tensor([row[s] for s, _ in part], device=device)

        def each(values: list) -> Tensor:
            return torch.tensor(values, device=device)[scene_of]

        def of_things(name: str, values: tuple[str, ...]) -> list[list[int]]:
            return [[values.index(getattr(thing, name)) for thing in _filled(scenes[s])] for s in used]

        light = lighting([scenes[s] for s in used], device)
        return _Frames(
            Objects(joined("center"), joined("axes"), joined("scale"), each(of_things("shape", SHAPES))),
            albedos(device)[each(of_things("color", COLORS))],
            each(of_things("material", MATERIALS)) == MATERIALS.index("shiny"),
            joined("eye"),
            joined("view"),
            Lighting(*(getattr(light, name)[scene_of] for name in Lighting.__dataclass_fields__)),
            each([GROUNDS.index(scenes[s].ground) for s in used]),
            each([[float(scenes[s].weather == name) for name in ("rain", "snowfall")] for s in used]),
            torch.tensor([times[t] for _, t in part], device=device, dtype=torch.float32),
        )


def _filled(scene: Scene) -> tuple:
    """Return MAX_OBJECTS things; those that are not there have scale 0."""
    return scene.objects + (scene.objects[0],) * (MAX_OBJECTS - len(scene.objects))


def _pixel_rays(height: int, width: int, window: Window, samples: int, device: torch.device) -> Tensor:
    """Return unit ray directions in the camera's frame, (3, P)."""
    reach = math.tan(FIELD_OF_VIEW / 2)
    rows = (torch.arange(window.height * samples, device=device) + 0.5) / samples + window.top
    columns = (torch.arange(window.width * samples, device=device) + 0.5) / samples + window.left
    up = reach * (1 - 2 * rows / height)
    right = reach * (2 * columns / width - 1) * (width / height)
    up, right = (x.flatten() for x in torch.meshgrid(up, right, indexing="ij"))
    return F.normalize(torch.stack([right, up, torch.ones_like(up)]), dim=0)


def _light(frames: _Frames, pixels: Tensor, samples: int, height: int) -> Tensor:
    """Return the linear light that reaches each sub-pixel, (F, 3, P)."""
    rays = torch.matmul(frames.view.mT, pixels)
    down = -rays[:, 1]
    depth = torch.where(down > 1e-4, frames.eye[:, 1:2] / down.clamp(min=1e-4), torch.inf)
    hits = nearest_hits(frames.objects, frames.eye, rays, depth)
    ground = depth < _FAR
    depth = depth.clamp(max=_FAR)
    light = _sky(frames, rays)
    fade = torch.where(ground, torch.exp(-(depth / 26).square()), 0.0)[:, None]
    footprint = depth * (2 * math.tan(FIELD_OF_VIEW / 2) / (height * samples)) / down.clamp(min=0.02).sqrt()
    light = light + fade * (_ground(frames, rays, depth, footprint) - light)
    flat = light.permute(0, 2, 1).contiguous().view(-1, 3)
    flat[hits.ray] = _surface(frames, rays, hits)
    return flat.view(len(rays), -1, 3).permute(0, 2, 1)


def _sky(frames: _Frames, rays: Tensor) -> Tensor:
    """Return the sky's light along ``rays`` (F, 3, P); the horizon's below it."""
    light = frames.light
    height = rays[:, 1].clamp(min=0)
    share = (height * 2.2).clamp(max=1).sqrt()[:, None]
    color = light.horizon[..., None] + share * (light.zenith - light.horizon)[..., None]
    above = (height > 0.01).flatten().nonzero()[:, 0]
    if len(above):
        count = rays.shape[2]
        frame = above // count
        x, y, z = rays.permute(1, 0, 2).flatten(1)[:, above]
        flat = color.permute(0, 2, 1).reshape(-1, 3)
        uv = torch.stack([x, z]) / (y + 0.12) * 0.22
        clouds, stars = _pattern(0, uv), _pattern(1, torch.stack([x, y]) * 1.3)
        glow = (torch.stack([x, y, z], 1) * light.toward_sun[frame]).sum(1).clamp(min=0) ** 6
        bright = light.sun[frame] * 0.45 + light.ambient[frame]
        mixed = flat[above] + glow[:, None] * light.sun[frame] * 0.25
        mixed = mixed + (light.clouds[frame] * clouds * (y * 6).clamp(max=1))[:, None] * (bright - mixed)
        flat[above] = mixed + (light.stars[frame] * stars * 0.8)[:, None]
        color = flat.view(len(rays), count, 3).permute(0, 2, 1)
    return color


def _pattern(number: int, uv: Tensor) -> Tensor:
    """Look up a seamless pattern at (2, N), one tile a unit."""
    grid = (uv - uv.floor()).T[None, None] * 2 - 1
    texture = sky_and_weather()[number : number + 1].to(uv.device)
    return F.grid_sample(texture, grid, align_corners=True)[0, 0, 0]


def _ground(frames: _Frames, rays: Tensor, depth: Tensor, footprint: Tensor) -> Tensor:
    """Return the light from the ground along ``rays``, (F, 3, P)."""
    x = frames.eye[:, 0:1] + depth * rays[:, 0]
    z = frames.eye[:, 2:3] + depth * rays[:, 2]
    value = _ground_pattern(frames, x, z, footprint)
    ramp = ground_ramps(depth.device)[frames.ground]
    low, high = (value * 2).clamp(max=1)[:, None], (value * 2 - 1).clamp(min=0)[:, None]
    albedo = ramp[:, 0, :, None] + low * (ramp[:, 1] - ramp[:, 0])[..., None]
    albedo = albedo + high * (ramp[:, 2] - ramp[:, 1])[..., None]
    sun, open_sky = _ground_shade(frames, x, z, depth)
    light, facing = frames.light, frames.light.toward_sun[:, 1:2]
    arriving = light.sun[..., None] * (facing * sun)[:, None] + light.ambient[..., None] * open_sky[:, None]
    color = albedo * arriving
    water = frames.ground == GROUNDS.index("water")
    if water.any():
        # Schlick's approximation; flat water mirrors the sky above the ray.
        mirror = 0.06 + 0.6 * (1 + rays[:, 1].clamp(-1, 0)) ** 4
        up = (-rays[:, 1] * 2.2).clamp(0, 1).sqrt()[:, None]
        sky = light.horizon[..., None] + up * (light.zenith - light.horizon)[..., None]
        share = (mirror * open_sky * (0.6 + 0.4 * value) * water[:, None])[:, None]
        color = color + share * (sky - color)
    return color


def _ground_pattern(frames: _Frames, x: Tensor, z: Tensor, footprint: Tensor) -> Tensor:
    """Return the pattern's brightness under each ray, (F, P), blurred to the width that a ray covers."""
    level = (2 * torch.log2(footprint / (TILE / SIDE) * 1.4)).clamp(0, LEVELS - 1)
    slices = (frames.ground[:, None] * LEVELS + level) * (2 / (len(GROUNDS) * LEVELS - 1)) - 1
    volume = ground_volume().to(x.device).expand(len(x), -1, -1, -1, -1)

    def look(dx: Tensor, dz: Tensor) -> Tensor:
        u, v = x / TILE + dx[:, None], z / TILE + dz[:, None]
        grid = torch.stack([(u - u.floor()) * 2 - 1, (v - v.floor()) * 2 - 1, slices], dim=-1)
        return F.grid_sample(volume, grid[:, None, None], align_corners=True)[:, 0, 0, 0]

    still = torch.zeros_like(frames.time)
    water = frames.ground == GROUNDS.index("water")
    if not water.any():
        return look(still, still)
    # Two sheets of ripples drift against each other, so that water moves without going anywhere.
    drift = torch.where(water, frames.time, still)
    first, second = look(0.06 * drift, 0.02 * drift), look(0.37 * water - 0.05 * drift, 0.21 * water - 0.03 * drift)
    return torch.where(water[:, None], (first * second).clamp(min=0).sqrt(), first)


def _ground_shade(frames: _Frames, x: Tensor, z: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the visible share of the sun and of the sky at ground points, both (F, P)."""
    objects, toward = frames.objects, frames.light.toward_sun
    near, open_sky = torch.zeros_like(x, dtype=torch.bool), torch.ones_like(x)
    for k in range(MAX_OBJECTS):
        center, scale = objects.center[:, k], objects.scale[:, k : k + 1]
        if not scale.any():
            continue
        dx, dz = center[:, 0:1] - x, center[:, 2:3] - z
        square = dx.square() + dz.square() + center[:, 1:2].square()
        along = dx * toward[:, 0:1] + dz * toward[:, 2:3] + (center[:, 1] * toward[:, 1])[:, None]
        near |= square - along.square() < (2.1 * scale).square()
        # A ball hides this share of the sky above the ground (Quilez, 2011).
        hidden = center[:, 1:2] * scale.square() * square.rsqrt() ** 3
        open_sky = open_sky * (1 - 0.75 * hidden.clamp(max=1))
    sun = torch.ones_like(x)
    place = (near & (depth < _FAR)).flatten().nonzero()[:, 0]
    if len(place):
        points = torch.stack([x.flatten()[place], torch.zeros_like(place, dtype=x.dtype), z.flatten()[place]], 1)
        frame = place // x.shape[1]
        seen = sunlit(objects, points, frame, toward)
        sun.view(-1)[place] = 1 - frames.light.shadow[frame] * (1 - seen)
    return sun, open_sky


def _surface(frames: _Frames, rays: Tensor, hits: Hits) -> Tensor:
    """Return the light from the objects that were met, (N, 3)."""
    light, frame = frames.light, hits.ray // rays.shape[2]
    heading = rays.permute(0, 2, 1).reshape(-1, 3)[hits.ray]
    points = frames.eye[frame] + hits.depth[:, None] * heading
    toward, normal = light.toward_sun[frame], hits.normal
    albedo = frames.albedo[frame, hits.slot]
    # A pale stripe around each object, dark on white ones, shows that it turns.
    contrast = torch.where(albedo.mean(1, keepdim=True) > 0.6, 0.05, 0.62)
    stripe = ((0.16 - hits.local[:, :1].abs()) * 25).clamp(0, 1)
    albedo = albedo + 0.75 * stripe * (contrast - albedo)
    seen = 1 - light.shadow[frame] * (1 - sunlit(frames.objects, points, frame, light.toward_sun, hits.slot))
    facing = (normal * toward).sum(1).clamp(min=0)
    sun = light.sun[frame] * (facing * seen)[:, None]
    up = 0.5 + 0.5 * normal[:, 1:2]
    ramp = ground_ramps(rays.device)[frames.ground, 1][frame]
    bounce = ramp * (0.5 * light.sun[frame] * toward[:, 1:2] + light.ambient[frame])
    sky_share = up * light.ambient[frame] + (1 - up) * 0.45 * bounce
    color = albedo * (sun + sky_share)
    shiny = frames.shiny[frame, hits.slot][:, None].to(color)
    half = F.normalize(toward - heading, dim=1)
    cosine = (normal * half).sum(1).clamp(min=0)[:, None]
    highlight = shiny * 1.8 * cosine**70 + (1 - shiny) * 0.05 * cosine**8
    mirrored = heading - 2 * (heading * normal).sum(1, keepdim=True) * normal
    height = (mirrored[:, 1:2] * 2.2).clamp(0, 1).sqrt()
    sky = light.horizon[frame] + height * (light.zenith - light.horizon)[frame]
    around = torch.where(mirrored[:, 1:2] > 0, sky, 0.7 * bounce)
    fresnel = 0.1 + 0.5 * (1 + (heading * normal).sum(1, keepdim=True)).clamp(0, 1) ** 4
    color = color + shiny * fresnel * (around - color)
    return color + highlight * light.sun[frame] * (seen * (facing > 0))[:, None]


def _weather(light: Tensor, frames: _Frames, height: int, width: int, window: Window) -> Tensor:
    """Lay two sheets of falling rain or snow over pictures (F, 3, H, W), one nearer and faster than the other."""
    if not frames.weather.any():
        return light
    rows = (torch.arange(window.height, device=light.device) + 0.5 + window.top) / height
    columns = (torch.arange(window.width, device=light.device) + 0.5 + window.left) / height
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    falling = []
    for number, speed, sway in ((2, 1.9, 0.35), (3, 0.33, 0.06)):
        kind = frames.weather[:, number - 2]
        cover = torch.zeros(len(light), *u.shape, device=light.device)
        if kind.any():
            t = frames.time[:, None, None]
            for zoom in (0.8, 1.35):
                drift = sway * t if number == 2 else sway * torch.sin(3 * t + zoom)
                uv = torch.stack([(u * zoom + drift).expand(len(t), -1, -1), v * zoom - speed * t])
                cover = torch.maximum(cover, _pattern(number, uv.flatten(1)).view_as(cover) / zoom**0.5)
        falling.append((cover * kind[:, None, None]).clamp(0, 1)[:, None])
    bright = (frames.light.sun * 0.5 + frames.light.ambient * 1.3)[..., None, None]
    light = light + 0.4 * falling[0] * (bright * 0.9 - light)
    return light + 0.9 * falling[1] * (bright * 1.15 - light)
