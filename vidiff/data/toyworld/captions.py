"""Sentences about scenes, and exactly which attributes they state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vidiff.data.toyworld import words
from vidiff.data.toyworld.attributes import Scene, Thing
from vidiff.data.toyworld.motion import ROLLING

# How often each attribute is left unsaid. The first object's shape and motion are always said.
_UNSAID = {"color": 0.06, "size": 0.4, "material": 0.5, "ground": 0.12, "light": 0.25, "weather": 0.1, "camera": 0.06}
_UNSAID_PLAIN = {"weather": 0.85, "camera": 0.65}  # of what a reader takes for granted: clear air, a still camera
_TAKEN_FOR_GRANTED = {"weather": "clear", "camera": "still"}


@dataclass(frozen=True)
class Caption:
    """A sentence and what it says."""

    text: str
    stated: dict[str, str]  # attribute to value, objects' as "color.0" for the first one's


@dataclass
class _Speaker:
    """Picks words for one caption and keeps account of what was said."""

    scene: Scene
    rng: np.random.Generator
    stated: dict[str, str] = field(default_factory=dict)

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def says(self, name: str, value: str) -> bool:
        table = _UNSAID_PLAIN if _TAKEN_FOR_GRANTED.get(name) == value else _UNSAID
        return bool(self.rng.random() >= table[name])

    def place(self, name: str, phrases: Mapping[str, tuple[str, ...]]) -> str:
        """Return a phrase for ground, light or weather, or nothing."""
        value = getattr(self.scene, name)
        if not self.says(name, value):
            return ""
        self.stated[name] = value
        phrase: str = self.pick(phrases[value])
        return phrase

    def camera(self) -> tuple[str, str]:
        """Return what the camera does as a verb and as a shot, or two empty strings."""
        if not self.says("camera", self.scene.camera):
            return "", ""
        self.stated["camera"] = self.scene.camera
        phrases: tuple[str, str] = self.pick(words.CAMERA_PHRASES[self.scene.camera])
        return phrases

    def noun(self, index: int) -> str:
        """Return an object with its article, like "a small red ball"."""
        thing = self.scene.objects[index]
        adjectives = []
        for name, table in (
            ("size", words.SIZE_ADJECTIVES),
            ("material", words.MATERIAL_ADJECTIVES),
            ("color", words.COLOR_ADJECTIVES),
        ):
            value = getattr(thing, name)
            # A size that changes is no size to speak of.
            if self.says(name, value) and not (name == "size" and thing.motion in ("grow", "shrink")):
                self.stated[f"{name}.{index}"] = value
                adjectives.append(self.pick(table[value]))
        self.stated[f"shape.{index}"] = thing.shape
        phrase = " ".join([*adjectives, self.pick(words.SHAPE_NOUNS[thing.shape])])
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"

    def action(self) -> tuple[str, str]:
        """Return what the first object does, finite and gerund, with the second object where one is there."""
        first = self.scene.objects[0]
        self.stated["motion.0"] = first.motion
        if first.motion in words.MEETING_VERBS:
            finite, gerund = self.pick(words.MEETING_VERBS[first.motion])
            beside = f" {self.noun(1)}"
            if first.motion == "collide":
                self.stated["relation"] = str(self.scene.relation)
                side = self.pick(("coming from the {}", "from the {}", "arriving from the {} side"))
                beside += " " + side.format("left" if self.scene.relation == "left of" else "right")
        else:
            finite, gerund = self.pick(words.verbs(first.motion, first.shape in ROLLING))
            beside = self._beside()
        return finite + beside, gerund + beside

    def _beside(self) -> str:
        if len(self.scene.objects) < 2:
            return ""
        relation = str(self.scene.relation)
        self.stated["relation"] = relation
        return f" {self.pick(words.RELATION_PHRASES[relation])} {self.moving_noun(1)}"

    def moving_noun(self, index: int) -> str:
        """Return an object that is not the first with what it does, like "a red ball that spins"."""
        thing: Thing = self.scene.objects[index]
        noun = self.noun(index)
        if thing.motion == "still":
            return noun
        self.stated[f"motion.{index}"] = thing.motion
        return f"{noun} that {self.pick(words.verbs(thing.motion, thing.shape in ROLLING))[0]}"

    def third(self) -> str:
        if len(self.scene.objects) < 3:
            return ""
        phrase: str = self.pick(words.THIRD_PHRASES)
        return phrase.format(self.moving_noun(2))


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """Return one of the ways to describe ``scene``."""
    speaker = _Speaker(scene, rng)
    subject = speaker.noun(0)
    finite, gerund = speaker.action()
    third = speaker.third()
    ground = speaker.place("ground", words.GROUND_PHRASES)
    light = speaker.place("light", words.LIGHT_PHRASES)
    weather = speaker.place("weather", words.WEATHER_PHRASES)
    camera, shot = speaker.camera()
    setting = _joined(" ", ground, light, weather)
    says = _joined(" ", subject, finite)
    shows = _joined(" ", subject, gerund)
    tail = f"while the camera {camera}" if camera else ""
    sentences = (
        _joined(" ", says, third, setting, tail),
        _joined(", ", setting, _joined(" ", says, third, tail)),
        _joined(" ", f"the camera {camera} as" if camera else "", says, third, setting),
        _joined(" ", f"{_article(shot)} of" if shot else "a video of", shows, third, setting),
        _joined(": ", shot or "video", _joined(" ", says, third, setting)),
        _joined(", ", _joined(" ", shows, third), ground, light, weather, shot),
        _joined(". ", _joined(" ", says, third, setting), f"the camera {camera}" if camera else ""),
        _joined(", ", _joined(" ", "we see", shows, third), setting, f"and the camera {camera}" if camera else ""),
        _joined("; ", shot, setting, _joined(" ", says, third)),
        _joined(" ", _joined(", ", setting, "there is"), shows, third, tail),
    )
    text = str(speaker.pick(sentences))
    end = speaker.pick(("", "."))
    if rng.random() < 0.5:
        text = ". ".join(part[0].upper() + part[1:] for part in text.split(". "))
    return Caption(text + end, speaker.stated)


def _joined(by: str, *parts: str) -> str:
    return by.join(part for part in parts if part)


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"
