"""The words of the toy world, what a scene is made of, and which pairs of words are never seen in training."""

from dataclasses import dataclass, fields
from itertools import product
from typing import Any

from vidiff.errors import ConfigError, did_you_mean

SHAPES = ("sphere", "cube", "cylinder", "cone", "pyramid", "torus")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black")
SIZES = ("small", "large")
MATERIALS = ("matte", "shiny")
MOTIONS = (
    *("still", "left", "right", "toward", "away", "bounce", "spin"),
    *("jump", "fall", "rise", "orbit", "grow", "shrink", "collide"),
)
CAMERAS = (
    *("still", "pan left", "pan right", "tilt up", "tilt down"),
    *("dolly in", "dolly out", "arc", "aerial", "clockwise"),
)
GROUNDS = ("grass", "sand", "snow", "water", "stone", "checkerboard")
LIGHTS = ("day", "sunset", "night", "overcast")
WEATHERS = ("clear", "rain", "snowfall")
RELATIONS = ("left of", "right of", "behind", "in front of", "on top of")
MAX_OBJECTS = 3

# What the first object cannot do from where it stands: it would run through the second one or fall off it.
_BLOCKED = {
    "left of": {"right"},
    "right of": {"left"},
    "behind": {"toward", "collide"},
    "in front of": {"away", "collide"},
    "on top of": set(MOTIONS) - {"still", "spin", "jump", "grow", "shrink"},
}
_IN_PLACE = ("still", "bounce", "spin", "jump", "grow", "shrink")  # motions that never leave their spot
_FLAT_TOPS = ("cube", "cylinder")


@dataclass(frozen=True)
class Thing:
    """One object."""

    shape: str = "sphere"
    color: str = "red"
    size: str = "large"
    material: str = "matte"
    motion: str = "still"

    def __post_init__(self) -> None:
        for name, values in THING_VALUES.items():
            _check(name, getattr(self, name), values)


@dataclass(frozen=True)
class Layout:
    """What no caption speaks of: small differences between scenes of equal attributes."""

    shifts: tuple[tuple[float, float], ...] = ((0.0, 0.0),) * MAX_OBJECTS  # of each object, to the right and nearer
    turns: tuple[float, ...] = (0.4,) * MAX_OBJECTS  # of each object about the vertical, radians
    direction: int = 1  # of spins, orbits and arc shots: 1 counter-clockwise seen from above, -1 clockwise
    sun: int = 1  # light comes from the right (1) or the left (-1)


@dataclass(frozen=True)
class Scene:
    """Everything that decides a clip but its size, rate and length.

    ``relation`` is that of the first object to the second when the clip begins. Motions are those of the world:
    "left" is the camera's left at the start, whatever the camera does afterwards.

    Raises:
        ConfigError: if a value is unknown, or the attributes contradict each other.
    """

    objects: tuple[Thing, ...]
    relation: str | None = None
    camera: str = "still"
    ground: str = "grass"
    light: str = "day"
    weather: str = "clear"
    layout: Layout = Layout()

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= MAX_OBJECTS:
            raise ConfigError(f"a scene has 1 to {MAX_OBJECTS} objects, got {len(self.objects)}")
        for name, values in SCENE_VALUES.items():
            if name != "relation" or self.relation is not None:
                _check(name, getattr(self, name), values)
        problem = self._contradiction()
        if problem:
            raise ConfigError(problem)

    def _contradiction(self) -> str | None:
        first, others = self.objects[0], self.objects[1:]
        for thing in others:
            if thing.motion not in _IN_PLACE:
                return f"only the first object can {thing.motion!r}; the others take one of {', '.join(_IN_PLACE)}"
        if not others:
            for value in (self.relation, first.motion if first.motion in ("orbit", "collide") else None):
                if value is not None:
                    return f"{value!r} needs a second object"
            return None
        if (first.motion == "orbit") != (self.relation is None):
            return "two objects need a relation, unless the first orbits the second"
        if self.relation is not None and first.motion in _BLOCKED[self.relation]:
            return f"an object {self.relation} another cannot {first.motion!r}"
        if first.motion in ("orbit", "collide") and others[0].motion != "still":
            return f"what another object meets or orbits is still, got {others[0].motion!r}"
        if self.relation == "on top of" and (others[0].shape not in _FLAT_TOPS or others[0].motion != "still"):
            return f"an object stands on top of a still {' or '.join(_FLAT_TOPS)}"
        return None

    def pairs(self) -> set[tuple[str, str, str, str]]:
        """Return the (attribute, value, attribute, value) pairs that can be held out."""
        found = {("motion", self.objects[0].motion, "camera", self.camera)}
        for thing in self.objects:
            found |= {("color", thing.color, "shape", thing.shape), ("shape", thing.shape, "motion", thing.motion)}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes, without the layout, as plain data."""
        things = [{field.name: getattr(thing, field.name) for field in fields(thing)} for thing in self.objects]
        return {"objects": things} | {name: getattr(self, name) for name in SCENE_VALUES}


THING_VALUES = {"shape": SHAPES, "color": COLORS, "size": SIZES, "material": MATERIALS, "motion": MOTIONS}
SCENE_VALUES = {"relation": RELATIONS, "camera": CAMERAS, "ground": GROUNDS, "light": LIGHTS, "weather": WEATHERS}


def value_of(scene: Scene, name: str) -> str | None:
    """Return an attribute by its name in a caption's account, such as "camera" or "color.1"."""
    if "." not in name:
        value: str | None = getattr(scene, name)
        return value
    attribute, index = name.split(".")
    value = getattr(scene.objects[int(index)], attribute)
    return value


def _held_out() -> frozenset[tuple[str, str, str, str]]:
    """Return a Latin square's diagonal of each table: every value stays seen, about an eighth of the pairs never is."""
    tables = (
        ("color", COLORS, "shape", SHAPES),
        ("shape", SHAPES, "motion", MOTIONS),
        ("motion", MOTIONS, "camera", CAMERAS),
    )
    return frozenset(
        (first, a, second, b)
        for first, left, second, right in tables
        for (i, a), (j, b) in product(enumerate(left), enumerate(right))
        if (i + 3 * j) % 8 == 0 and (a, b) != ("still", "still")
    )


HELD_OUT = _held_out()


def _check(name: str, value: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise ConfigError(f"unknown {name} {value!r}.{did_you_mean(value, values)} Use one of {', '.join(values)}.")
