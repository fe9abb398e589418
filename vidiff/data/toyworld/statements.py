"""All that captions can state, as numbers: what a scene shows and what a caption says of it."""

from vidiff.data.toyworld.attributes import MAX_OBJECTS, SCENE_VALUES, THING_VALUES, Scene, value_of
from vidiff.data.toyworld.captions import Caption

# The values of each statement, by its name in `Caption.stated`.
STATEMENTS: dict[str, tuple[str, ...]] = SCENE_VALUES | {
    f"{name}.{number}": values for number in range(MAX_OBJECTS) for name, values in THING_VALUES.items()
}


def shown(scene: Scene) -> list[int]:
    """Return the number of each statement's value in ``scene``; one past the last where there is no such thing."""
    numbers = []
    for name, values in STATEMENTS.items():
        there = "." not in name or int(name.split(".")[1]) < len(scene.objects)
        numbers.append(_number(value_of(scene, name) if there else None, values))
    return numbers


def said(caption: Caption) -> list[int]:
    """Return the number of each statement's value that ``caption`` gives; one past the last where it says nothing."""
    return [_number(caption.stated.get(name), values) for name, values in STATEMENTS.items()]


def _number(value: str | None, values: tuple[str, ...]) -> int:
    return len(values) if value is None else values.index(value)
