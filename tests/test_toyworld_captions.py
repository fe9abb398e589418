"""The toy world's words: what captions say, and what they leave out."""

import re

import numpy as np

from vidiff.data.toyworld import words
from vidiff.data.toyworld.attributes import (
    CAMERAS,
    COLORS,
    GROUNDS,
    LIGHTS,
    MATERIALS,
    MOTIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    WEATHERS,
    Scene,
    Thing,
)
from vidiff.data.toyworld.captions import caption
from vidiff.data.toyworld.draw import draw_captions, draw_scene


def test_everything_can_be_said_in_three_ways():
    tables = [
        (words.SHAPE_NOUNS, SHAPES),
        (words.COLOR_ADJECTIVES, COLORS),
        (words.SIZE_ADJECTIVES, SIZES),
        (words.MATERIAL_ADJECTIVES, MATERIALS),
        (words.GROUND_PHRASES, GROUNDS),
        (words.LIGHT_PHRASES, LIGHTS),
        (words.WEATHER_PHRASES, WEATHERS),
        (words.CAMERA_PHRASES, CAMERAS),
        (words.RELATION_PHRASES, RELATIONS),
    ]
    for table, values in tables:
        assert set(table) == set(values)
        assert all(len(set(phrases)) >= 3 for phrases in table.values())
        said = [phrase for phrases in table.values() for phrase in phrases]
        assert len(set(said)) == len(said)  # no phrase means two things
    for motion in MOTIONS:
        ways = words.MEETING_VERBS.get(motion) or words.verbs(motion, rolls=True)
        assert len({finite for finite, _ in ways}) >= 3


def test_captions_say_what_they_state_and_nothing_that_is_false():
    tables = {
        "ground": words.GROUND_PHRASES,
        "light": words.LIGHT_PHRASES,
        "weather": words.WEATHER_PHRASES,
        "relation": words.RELATION_PHRASES,
    }
    for index in range(300):
        scene = draw_scene(0, index)
        said = caption(scene, np.random.default_rng(index))
        text = said.text.lower()
        assert text.strip(" .") and "  " not in text and "{" not in text
        for name, table in tables.items():
            found = {value for value, phrases in table.items() if any(re.search(rf"\b{p}\b", text) for p in phrases)}
            if name in said.stated and name != "relation":
                assert getattr(scene, name) == said.stated[name] and said.stated[name] in found, text
        cameras = [way for verb, shot in words.CAMERA_PHRASES[scene.camera] for way in (f"the camera {verb}", shot)]
        assert ("camera" in said.stated) == any(way in text for way in cameras), text
        for number, thing in enumerate(scene.objects):
            assert said.stated[f"shape.{number}"] == thing.shape
            assert any(noun in text for noun in words.SHAPE_NOUNS[thing.shape])
            color = f"color.{number}"
            if color in said.stated:
                assert any(adjective in text for adjective in words.COLOR_ADJECTIVES[thing.color]), text


def test_there_are_many_sentence_shapes_and_attributes_are_left_out():
    scene = Scene((Thing(motion="left"),), camera="arc", ground="sand", light="night", weather="rain")
    captions = [caption(scene, np.random.default_rng(index)) for index in range(400)]

    def shape_of(text):
        """Return a sentence with its phrases replaced by what they stand for."""
        text = text.lower().rstrip(".")
        tables = {
            "G": words.GROUND_PHRASES["sand"],
            "L": words.LIGHT_PHRASES["night"],
            "W": words.WEATHER_PHRASES["rain"],
            "C": [p for ways in words.CAMERA_PHRASES["arc"] for p in ways],
            "V": [p for way in words.verbs("left", True) for p in way],
            "S": words.SHAPE_NOUNS["sphere"],
            "": [
                *words.SIZE_ADJECTIVES["large"],
                *words.MATERIAL_ADJECTIVES["matte"],
                *words.COLOR_ADJECTIVES["red"],
            ],
        }
        for mark, phrases in tables.items():
            for phrase in sorted(phrases, key=len, reverse=True):
                text = re.sub(rf"\b{re.escape(phrase)}\b", mark, text)
        return re.sub(r"\s+", " ", re.sub(r"\ban?\b", "a", text))

    complete = {shape_of(c.text) for c in captions if {"ground", "light", "weather", "camera"} <= set(c.stated)}
    assert len(complete) >= 8, complete
    for name in ("ground", "light", "weather", "camera", "size.0", "material.0", "color.0"):
        share = np.mean([name in said.stated for said in captions])
        assert 0.4 < share < 0.99, name
    assert all({"shape.0", "motion.0"} <= set(said.stated) for said in captions)


def test_captions_fit_the_text_encoder():
    longest = max(len(draw_captions(draw_scene(0, index), 0, index)[0].text.split()) for index in range(500))
    assert longest <= 55
