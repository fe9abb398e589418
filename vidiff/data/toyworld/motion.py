"""Where objects and camera are at every moment of a scene.

World axes: x to the right, y up, z towards the camera's first place; the ground is y = 0. Lengths are in world units
(the picture is about five wide where the objects stand), times in seconds, angles in radians. Rates are chosen so that
every motion can be told from every other within `SPAN` seconds, the length of an ordinary clip; longer clips go on.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vidiff.data.toyworld.attributes import MAX_OBJECTS, Scene, Thing

SPAN = 4 / 3
RADIUS = {"small": 0.5, "large": 0.8}

# Of shapes with radius 1, standing on the ground: height of the center, of the top, and half the width.
STANDING = {
    "sphere": (1.0, 2.0, 1.0),
    "cube": (0.8, 1.6, 0.9),
    "cylinder": (0.85, 1.7, 0.75),
    "cone": (0.8, 1.8, 0.95),
    "pyramid": (0.75, 1.6, 1.0),
    "torus": (1.0, 2.0, 1.0),
}
ROLLING = {"sphere": 1.0, "cylinder": 0.75, "torus": 1.0}  # height of the center of what rolls; the others slide
HEADING = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "toward": (0.0, 1.0), "away": (0.0, -1.0)}  # (x, z)

_GRAVITY = 14.0
_STATIONS = {
    "left of": ((-1.15, 0.0), (1.15, 0.0)),
    "right of": ((1.15, 0.0), (-1.15, 0.0)),
    "behind": ((-0.45, -1.3), (0.45, 1.0)),
    "in front of": ((0.45, 1.0), (-0.45, -1.3)),
    "on top of": ((0.0, 0.0), (0.0, 0.0)),
}
_TRAVEL, _TRAVEL_BESIDE = 2.4, 1.4  # in SPAN, alone and away from a second object
_IMPACT = 2.3  # speed at which the first object runs into the second
_RESTITUTION = 0.85
_ORBIT_RADIUS, _TURN_RATE = 1.75, math.radians(150)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Poses:
    """Everything that moves, at T times; K = `MAX_OBJECTS`, of which those that a scene lacks have scale 0."""

    center: Array  # (T, K, 3)
    axes: Array  # (T, K, 3, 3): columns are the objects' own axes
    scale: Array  # (T, K), radius
    eye: Array  # (T, 3)
    view: Array  # (T, 3, 3): rows are the camera's right, up and forward


def poses(scene: Scene, times: Array) -> Poses:
    """Return the poses of ``scene`` at ``times`` (T,)."""
    count = len(times)
    center, scale = np.zeros((count, MAX_OBJECTS, 3)), np.zeros((count, MAX_OBJECTS))
    axes = np.tile(np.eye(3), (count, MAX_OBJECTS, 1, 1))
    for index, (thing, station) in enumerate(zip(scene.objects, _stations(scene), strict=True)):
        path, lift = _paths(scene, index, np.array(station), times)
        scale[:, index] = _radius(thing, times)
        on_top = index == 0 and scene.relation == "on top of"
        floor = STANDING[scene.objects[1].shape][1] * RADIUS[scene.objects[1].size] if on_top else 0.0
        rolls = _rolls(scene, index)
        height = ROLLING[thing.shape] if rolls else STANDING[thing.shape][0]
        center[:, index, 0], center[:, index, 2] = path[:, 0], path[:, 1]
        center[:, index, 1] = floor + height * scale[:, index] + lift
        if rolls:  # measured from where it began, so that one moment's pose is the same whatever others are asked for
            begin, _ = _paths(scene, index, np.array(station), np.zeros(1))
            axes[:, index] = _rolled(thing, path - begin, height)
        else:
            axes[:, index] = _turned(scene, index, times)
    eye, view = _camera(scene, times)
    return Poses(center, axes, scale, eye, view)


def _rolls(scene: Scene, index: int) -> bool:
    """Return whether an object goes somewhere, or may be pushed, and has a shape that rolls there."""
    pushed = scene.objects[0].motion == "collide" and index < 2
    return scene.objects[index].shape in ROLLING and (scene.objects[index].motion in HEADING or pushed)


def _stations(scene: Scene) -> list[tuple[float, float]]:
    """Return where each object starts, or the middle of its way, (x, z)."""
    spots: tuple[tuple[float, float], ...] = _STATIONS[scene.relation] if scene.relation else ((0.0, 0.0), (0.0, 0.0))
    spots = (*spots, (-1.9 if spots[0][0] > 0 else 1.9, -2.2))
    shifts = scene.layout.shifts
    if scene.relation == "on top of":
        shifts = (shifts[1], shifts[1], shifts[2])
    return [(x + dx, z + dz) for (x, z), (dx, dz), _ in zip(spots, shifts, scene.objects, strict=False)]


def _paths(scene: Scene, index: int, station: Array, times: Array) -> tuple[Array, Array]:
    """Return the way over the ground (T, 2) and the height above it (T,)."""
    thing, u = scene.objects[index], times / SPAN
    still, lift = np.tile(station, (len(times), 1)), np.zeros_like(times)
    match thing.motion:
        case "left" | "right" | "toward" | "away":
            heading = np.array(HEADING[thing.motion])
            # Away from a second object it starts at its station, a little nearer; else the station is half-way.
            apart = scene.relation is not None and abs(heading @ np.array(_STATIONS[scene.relation][0])) > 0.7
            travel = _TRAVEL_BESIDE if apart else _TRAVEL
            start = -0.3 if apart else -0.5
            return still + heading * travel * (u + start)[:, None], lift
        case "bounce":
            return still, _bounces(times, 1.5, 0.8)
        case "fall":
            return still, _bounces(times, 4.2, 0.3)
        case "jump":
            leap = times - 0.2
            return still, np.maximum(0.0, np.sqrt(2 * _GRAVITY * 1.4) * leap - _GRAVITY / 2 * leap**2) * (leap > 0)
        case "rise":
            return still, 1.6 * u
        case "orbit":
            angle = scene.layout.turns[0] * 4 + scene.layout.direction * _TURN_RATE * times
            return still + _ORBIT_RADIUS * np.stack([np.cos(angle), -np.sin(angle)], 1), lift
        case _ if scene.objects[0].motion == "collide" and index < 2:
            return _collision(scene, index, times), lift
        case _:
            return still, lift


def _bounces(times: Array, height: float, restitution: float) -> Array:
    """Return the height of something dropped from ``height`` that keeps ``restitution`` of its speed at each impact."""
    lift = np.zeros_like(times)
    speed = math.sqrt(2 * _GRAVITY * height)
    start, landing, rising = 0.0, speed / _GRAVITY, 0.0
    while height > 1e-3:
        inside, local = (times >= start) & (times < landing), times - start
        lift[inside] = ((height if start == 0 else 0.0) + rising * local - _GRAVITY / 2 * local**2)[inside]
        speed *= restitution
        start, landing, rising, height = landing, landing + 2 * speed / _GRAVITY, speed, height * restitution**2
    return np.maximum(lift, 0.0)


def _collision(scene: Scene, index: int, times: Array) -> Array:
    """Return the way (T, 2) of one of two objects that meet head-on; mass goes with volume, momentum is kept."""
    side = -1.0 if scene.relation == "left of" else 1.0  # where the first object comes from
    radii = [RADIUS[thing.size] for thing in scene.objects[:2]]
    widths = [
        radius * (ROLLING if _rolls(scene, i) else {k: v[2] for k, v in STANDING.items()})[thing.shape]
        for i, (radius, thing) in enumerate(zip(radii, scene.objects[:2], strict=True))
    ]
    start, target = side * 1.75, -side * 0.1
    masses = [radius**3 for radius in radii]
    total, pushed = sum(masses), (1 + _RESTITUTION) * _IMPACT * masses[0] / sum(masses)
    left_over = _IMPACT * (masses[0] - _RESTITUTION * masses[1]) / total
    contact = (abs(start - target) - sum(widths)) / _IMPACT
    before, after = np.minimum(times, contact), np.maximum(times - contact, 0.0)
    x = start - side * (_IMPACT * before + left_over * after) if index == 0 else target - side * pushed * after
    return np.stack([x, np.full_like(x, scene.layout.shifts[0][1])], 1)


def _radius(thing: Thing, times: Array) -> Array:
    change = {"grow": 1.0, "shrink": -1.0}.get(thing.motion, 0.0)
    return RADIUS[thing.size] * np.exp(change * 1.1 * (np.clip(times / SPAN, 0, 1.3) - 0.5))


def _turned(scene: Scene, index: int, times: Array) -> Array:
    """Return the axes (T, 3, 3) of something that stands, slides or spins."""
    thing, angle = scene.objects[index], np.full_like(times, scene.layout.turns[index])
    if thing.motion == "spin":
        angle = angle + scene.layout.direction * _TURN_RATE * times
    if thing.motion == "orbit":
        angle = angle * 5 + scene.layout.direction * _TURN_RATE * times
    return _rotation(np.array([0.0, 1.0, 0.0]), angle)


def _rolled(thing: Thing, way: Array, height: float) -> Array:
    """Return the axes (T, 3, 3) of something that has rolled along ``way`` (T, 2) without slipping."""
    along_x = thing.motion not in HEADING or HEADING[thing.motion][0] != 0  # collisions are along x
    distance = way[:, 0] if along_x else way[:, 1]
    # Rolling towards +x turns about -z, towards +z about +x.
    axis = np.array([0.0, 0.0, -1.0]) if along_x else np.array([1.0, 0.0, 0.0])
    match thing.shape, along_x:
        case "cylinder", True:
            base = _rotation(np.array([1.0, 0.0, 0.0]), np.array([math.pi / 2]))[0]
        case "cylinder", False:
            base = _rotation(np.array([0.0, 0.0, 1.0]), np.array([math.pi / 2]))[0]
        case "torus", False:
            base = _rotation(np.array([0.0, 1.0, 0.0]), np.array([math.pi / 2]))[0]
        case _:
            base = np.eye(3)
    return _rotation(axis, distance / (height * RADIUS[thing.size])) @ base


def _rotation(axis: Array, angle: Array) -> Array:
    """Return rotations (T, 3, 3) by ``angle`` (T,) about a unit axis, right-handed (Rodrigues)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    sin, cos = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    return np.eye(3) + sin * cross + (1 - cos) * (cross @ cross)


def _camera(scene: Scene, times: Array) -> tuple[Array, Array]:
    """Return the camera's place (T, 3) and its right, up and forward (T, 3, 3)."""
    u = times / SPAN
    zero = np.zeros_like(u)
    place, distance, azimuth, yaw, tilt, roll = zero + math.radians(14), zero + 6.8, zero, zero, zero, zero
    match scene.camera:
        case "pan left" | "pan right":
            yaw = math.radians(20) * (u - 0.5) * (1 if scene.camera == "pan left" else -1)
        case "tilt up" | "tilt down":
            tilt = math.radians(18) * (u - 0.5) * (1 if scene.camera == "tilt up" else -1)
        case "dolly in" | "dolly out":
            distance = distance * np.exp(0.5 * (u - 0.5) * (-1 if scene.camera == "dolly in" else 1))
        case "arc":
            azimuth = scene.layout.direction * math.radians(56) * (u - 0.5)
        case "aerial":
            place, distance = zero + math.radians(64), zero + 7.2
        case "clockwise":
            roll = math.radians(45) * (u - 0.5)
    target = np.array([0.0, 0.75, 0.0])
    flat = np.stack([np.sin(azimuth), zero, np.cos(azimuth)], 1)
    up = np.array([0.0, 1.0, 0.0])
    eye = target + distance[:, None] * (np.cos(place)[:, None] * flat + np.sin(place)[:, None] * up)
    heading, pitch = azimuth + yaw, place - tilt
    forward = -np.stack([np.cos(pitch) * np.sin(heading), np.sin(pitch), np.cos(pitch) * np.cos(heading)], 1)
    right = np.stack([np.cos(heading), zero, -np.sin(heading)], 1)
    above = np.cross(right, forward)
    sin, cos = np.sin(roll)[:, None], np.cos(roll)[:, None]
    return eye, np.stack([cos * right - sin * above, cos * above + sin * right, forward], 1)
