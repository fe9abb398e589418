"""The toy world: scenes, physics, pictures, captions and files."""

import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from vidiff.data.dataset import ClipDataset, DataConfig
from vidiff.data.toyworld import words
from vidiff.data.toyworld.attributes import (
    CAMERAS,
    COLORS,
    GROUNDS,
    HELD_OUT,
    LIGHTS,
    MATERIALS,
    MOTIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    WEATHERS,
    Layout,
    Scene,
    Thing,
)
from vidiff.data.toyworld.captions import caption
from vidiff.data.toyworld.draw import draw_captions, draw_scene
from vidiff.data.toyworld.light import OBJECT_COLORS, display, linear
from vidiff.data.toyworld.motion import HEADING, RADIUS, ROLLING, SPAN, STANDING, poses
from vidiff.data.toyworld.render import Window, render
from vidiff.data.toyworld.shapes import BOUNDS, SIGNED_DISTANCE, normals
from vidiff.data.toyworld.textures import LEVELS, ground_volume, sky_and_weather
from vidiff.data.toyworld.write import ToyClips, write_folder, write_shards
from vidiff.errors import ConfigError
from vidiff.types import Size

TIMES = np.arange(17) / 12


def alone(motion="still", shape="sphere", **settings):
    thing = Thing(shape=shape, motion=motion, **{k: settings.pop(k) for k in ("color", "size") if k in settings})
    return Scene((thing,), layout=Layout(turns=(0.0, 0.0, 0.0)), **settings)


def pair(motion="still", relation="left of", **settings):
    return Scene((Thing(motion=motion), Thing(shape="cube", color="blue")), relation, **settings)


# Scenes


def test_a_scene_is_a_function_of_seed_and_index():
    assert draw_scene(3, 17) == draw_scene(3, 17)
    assert len({draw_scene(3, index) for index in range(50)}) == 50
    assert draw_scene(3, 17) != draw_scene(4, 17)


def test_training_never_shows_a_held_out_pair_and_heldout_shows_nothing_else():
    assert not any(draw_scene(0, index).pairs() & HELD_OUT for index in range(300))
    assert all(draw_scene(0, index, heldout=True).pairs() & HELD_OUT for index in range(300))


def test_every_value_is_seen_although_an_eighth_of_the_pairs_is_not():
    tables = [
        ("color", COLORS, "shape", SHAPES),
        ("shape", SHAPES, "motion", MOTIONS),
        ("motion", MOTIONS, "camera", CAMERAS),
    ]
    for first, left, second, right in tables:
        seen = {(a, b) for a, b in itertools.product(left, right) if (first, a, second, b) not in HELD_OUT}
        assert {a for a, _ in seen} == set(left) and {b for _, b in seen} == set(right)
        assert 0.08 < 1 - len(seen) / (len(left) * len(right)) < 0.17


def test_training_scenes_show_every_value_of_every_attribute():
    scenes = [draw_scene(0, index) for index in range(600)]
    for name, values in (("camera", CAMERAS), ("ground", GROUNDS), ("light", LIGHTS), ("weather", WEATHERS)):
        assert {getattr(scene, name) for scene in scenes} == set(values)
    assert {scene.relation for scene in scenes} == {*RELATIONS, None}
    things = [thing for scene in scenes for thing in scene.objects]
    for name, values in (
        ("shape", SHAPES),
        ("color", COLORS),
        ("size", SIZES),
        ("material", MATERIALS),
        ("motion", MOTIONS),
    ):
        assert {getattr(thing, name) for thing in things} == set(values)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3}


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Thing(shape="spher"), "Did you mean sphere?"),
        (lambda: alone(ground="gras"), "Did you mean grass?"),
        (lambda: alone(camera="zoom"), "unknown camera 'zoom'"),
        (lambda: Scene(()), "1 to 3 objects"),
        (lambda: alone("orbit"), "needs a second object"),
        (lambda: replace(alone(), relation="behind"), "needs a second object"),
        (lambda: pair(relation=None), "need a relation"),
        (lambda: pair("orbit"), "need a relation"),
        (lambda: pair("right"), "cannot 'right'"),
        (lambda: pair("fall", "on top of"), "cannot 'fall'"),
        (lambda: Scene((Thing(), Thing(motion="left")), "behind"), "only the first object"),
        (lambda: Scene((Thing(), Thing(shape="cone")), "on top of"), "cube or cylinder"),
        (lambda: Scene((Thing(motion="collide"), Thing(motion="spin")), "left of"), "is still"),
    ],
)
def test_a_scene_that_cannot_be_is_refused(make, word):
    with pytest.raises(ConfigError, match=re.escape(word)):
        make()


# Physics


@pytest.mark.parametrize("motion", list(HEADING))
@pytest.mark.parametrize("shape", list(ROLLING))
def test_rolling_does_not_slip(shape, motion):
    times = np.linspace(0, SPAN, 200)
    posed = poses(alone(motion, shape), times)
    path, axes = posed.center[:, 0], posed.axes[:, 0]
    turn = axes[1:] @ axes[:-1].swapaxes(1, 2)
    angle = np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1))
    travelled = np.linalg.norm(np.diff(path, axis=0), axis=1)
    np.testing.assert_allclose(angle * ROLLING[shape] * RADIUS["large"], travelled, rtol=1e-4, atol=1e-6)
    # The point that touches the ground is at rest: velocity + angular velocity x (downwards) is 0.
    spin = (turn[0] - turn[0].T)[[2, 0, 1], [1, 2, 0]] / 2
    rest = np.diff(path, axis=0)[0] + np.cross(spin, [0, -ROLLING[shape] * RADIUS["large"], 0])
    assert np.abs(rest).max() < 1e-4


@pytest.mark.parametrize("motion", list(HEADING))
def test_things_go_where_the_word_says(motion):
    posed = poses(alone(motion, "cube"), TIMES)
    way = posed.center[-1, 0] - posed.center[0, 0]
    np.testing.assert_allclose(way[[0, 2]] / np.linalg.norm(way), HEADING[motion], atol=1e-6)
    assert np.linalg.norm(way) > 2


def test_gravity_pulls_alike_on_what_bounces_jumps_and_falls():
    times = np.linspace(0, 3, 3001)
    for motion in ("bounce", "jump", "fall"):
        height = poses(alone(motion), times).center[:, 0, 1] - RADIUS["large"]
        flying = (height[:-2] > 1e-3) & (height[1:-1] > 1e-3) & (height[2:] > 1e-3)
        acceleration = np.diff(height, 2)[flying] / 1e-6
        assert np.median(acceleration) == pytest.approx(-14, rel=1e-3)
        assert height.min() > -1e-9
        assert height[-1] < 0.2


def test_a_bounce_loses_energy_at_every_impact():
    times = np.linspace(0, 2.5, 2501)
    height = poses(alone("bounce"), times).center[:, 0, 1] - RADIUS["large"]
    peaks = height[1:-1][(height[1:-1] > height[:-2]) & (height[1:-1] > height[2:])]
    assert len(peaks) >= 2
    np.testing.assert_allclose(peaks[1:] / peaks[:-1], 0.64, rtol=0.02)


@pytest.mark.parametrize("sizes", [("large", "large"), ("small", "large"), ("large", "small")])
@pytest.mark.parametrize("relation", ["left of", "right of"])
def test_a_collision_keeps_momentum_and_nothing_overlaps(relation, sizes):
    scene = Scene(
        (Thing(size=sizes[0], motion="collide"), Thing(size=sizes[1], color="blue")), relation, layout=Layout()
    )
    times = np.linspace(0, SPAN, 400)
    x = poses(scene, times).center[:, :2, 0]
    masses = np.array([RADIUS[size] ** 3 for size in sizes])
    momentum = (np.diff(x, axis=0) / np.diff(times)[:, None]) @ masses
    outside = np.abs(np.diff(momentum)) < 1e-6  # one step straddles the impact
    np.testing.assert_allclose(momentum[np.r_[True, outside]], momentum[0], rtol=0.02)
    assert np.abs(x[:, 0] - x[:, 1]).min() >= sum(RADIUS[size] for size in sizes) - 1e-6
    assert abs(x[-1, 1] - x[0, 1]) > 0.3


@pytest.mark.parametrize(
    ("relation", "axis", "sign"),
    [("left of", 0, -1), ("right of", 0, 1), ("behind", 2, -1), ("in front of", 2, 1), ("on top of", 1, 1)],
)
def test_relations_hold_at_the_start(relation, axis, sign):
    for index in range(400):
        scene = draw_scene(1, index)
        if scene.relation == relation:
            center = poses(scene, TIMES[:1]).center[0]
            assert sign * (center[0, axis] - center[1, axis]) > 0.3, scene


def test_nothing_sinks_into_the_ground():
    for index in range(60):
        posed = poses(draw_scene(2, index), TIMES)
        assert (posed.center[..., 1] >= 0.7 * posed.scale - 1e-9).all()


@pytest.mark.parametrize(
    ("camera", "test"),
    [
        ("pan left", lambda p: p.view[-1, 2, 0] < p.view[0, 2, 0] - 0.2),
        ("pan right", lambda p: p.view[-1, 2, 0] > p.view[0, 2, 0] + 0.2),
        ("tilt up", lambda p: p.view[-1, 2, 1] > p.view[0, 2, 1] + 0.2),
        ("tilt down", lambda p: p.view[-1, 2, 1] < p.view[0, 2, 1] - 0.2),
        ("dolly in", lambda p: np.linalg.norm(p.eye[-1]) < 0.7 * np.linalg.norm(p.eye[0])),
        ("dolly out", lambda p: np.linalg.norm(p.eye[-1]) > 1.4 * np.linalg.norm(p.eye[0])),
        ("arc", lambda p: abs(math.atan2(p.eye[-1, 0], p.eye[-1, 2]) - math.atan2(p.eye[0, 0], p.eye[0, 2])) > 0.8),
        ("aerial", lambda p: p.eye[:, 1].min() > 6),
        ("clockwise", lambda p: p.view[-1, 1, 0] > 0.3 > -0.3 > p.view[0, 1, 0]),
    ],
)
def test_the_camera_does_what_its_name_says(camera, test):
    posed = poses(alone(camera=camera), np.array([0, SPAN]))
    assert test(posed)
    identity = np.einsum("tij,tkj->tik", posed.view, posed.view)
    np.testing.assert_allclose(identity, np.tile(np.eye(3), (2, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.cross(posed.view[:, 0], posed.view[:, 1]), -posed.view[:, 2], atol=1e-12)


# Shapes and patterns


@pytest.mark.parametrize("shape", SHAPES)
def test_distances_never_overshoot_and_bounds_hold_the_shape(shape):
    distance = SIGNED_DISTANCE[shape]
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(20_000, 3, generator=generator) * 4 - 2
    values = distance(points)
    inside = points[values < 0]
    assert len(inside) > 300
    assert inside.norm(dim=1).max() <= BOUNDS[SHAPES.index(shape)] + 1e-3
    # True distance to the nearest inside sample can only be larger, up to the sampling's spacing.
    outside = points[values > 0][:500]
    nearest = torch.cdist(outside, inside).amin(1)
    assert (distance(outside) <= nearest + 1e-4).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_normals_point_outwards(shape):
    distance = SIGNED_DISTANCE[shape]
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(4000, 3, generator=generator) * 3 - 1.5
    near = points[distance(points).abs() < 0.05]
    found = normals(distance, near)
    np.testing.assert_allclose(found.norm(dim=1), 1, atol=1e-5)
    assert (distance(near + 0.05 * found) > distance(near - 0.05 * found)).all()


def test_standing_heights_are_those_of_the_shapes():
    axis, coarse = torch.linspace(-1.2, 1.2, 481), torch.linspace(-1.2, 1.2, 61)
    for shape, (center, top, _) in STANDING.items():
        grid = torch.cartesian_prod(coarse, axis, coarse)
        y = grid[SIGNED_DISTANCE[shape](grid) <= 0][:, 1]
        assert -y.min() == pytest.approx(center, abs=0.02), shape
        assert y.max() - y.min() == pytest.approx(top, abs=0.06), shape


def test_patterns_repeat_without_a_seam_and_have_contrast():
    for tile in (*ground_volume()[0, 0, ::LEVELS], *sky_and_weather()[:, 0]):
        assert torch.equal(tile[0], tile[-1]) and torch.equal(tile[:, 0], tile[:, -1])
        assert tile.min() >= 0 and tile.max() <= 1
    assert (ground_volume()[0, 0, ::LEVELS].std((1, 2)) > 0.06).all()


def test_display_undoes_linear():
    x = torch.linspace(0, 1, 256)
    torch.testing.assert_close(display(linear(x)), x, atol=1e-5, rtol=0)


# Pictures


def test_rendering_repeats_itself_bit_for_bit_and_knows_no_neighbors():
    scenes = [draw_scene(0, index) for index in range(4)]
    whole = render(scenes, TIMES[:5], 32, 48)
    assert whole.shape == (4, 5, 32, 48, 3) and whole.dtype == torch.uint8
    assert torch.equal(whole, render(scenes, TIMES[:5], 32, 48))
    assert torch.equal(whole[2:3, 3:5], render(scenes[2:3], TIMES[3:5], 32, 48))


def test_a_window_is_the_cut_out_picture():
    scenes = [draw_scene(0, index) for index in (0, 2)]  # one of them snows
    whole = render(scenes, TIMES[:2], 64, 64)
    part = render(scenes, TIMES[:2], 64, 64, window=Window(16, 24, 32, 40))
    difference = (whole[:, :, 16:48, 24:64].int() - part.int()).abs()
    assert difference.max() <= 1


def test_sizes_agree():
    scene = alone("left", "cube", ground="grass")  # soft edges: pictures average light, this test averages pixels
    small = render([scene], TIMES[:3], 32, 32, samples=4).float()
    large = render([scene], TIMES[:3], 128, 128).float().unflatten(3, (32, 4)).unflatten(2, (32, 4)).mean((3, 5))
    assert (small - large).abs().mean() < 3


def test_a_clip_at_half_the_rate_is_every_second_frame():
    scene = draw_scene(0, 4)
    fine, coarse = render([scene], np.arange(9) / 24, 32, 32), render([scene], np.arange(5) / 12, 32, 32)
    assert torch.equal(fine[:, ::2], coarse)


@pytest.mark.parametrize("color", [name for name in COLORS if name not in ("white", "black")])
def test_an_object_has_its_color(color):
    wanted = torch.tensor(OBJECT_COLORS[color]).float()
    picture = render([alone(color=color, ground="stone")], TIMES[:1], 64, 64)[0, 0].float()
    empty = render([alone(color=color, ground="stone", size="small")], TIMES[:1], 64, 64)[0, 0].float()
    changed = (picture - empty).abs().sum(-1) > 60
    pixels = picture[changed]
    hues = torch.tensor([OBJECT_COLORS[name] for name in COLORS]).float()
    shades = hues / hues.norm(dim=1, keepdim=True)
    nearest = ((pixels / pixels.norm(dim=1, keepdim=True).clamp(min=1)) @ shades.T).argmax(1)
    # Where the larger object covers the smaller one's surroundings its own color shows; stripe and edge aside.
    assert (nearest == COLORS.index(color)).float().mean() > 0.5, wanted


def test_objects_throw_shadows_away_from_the_sun():
    lit = {}
    for sun in (-1, 1):
        layout = Layout(turns=(0.0, 0.0, 0.0), sun=sun)
        scenes = [
            Scene((Thing(size=size),), ground="sand", camera="aerial", layout=layout) for size in ("large", "small")
        ]
        lit[sun] = render(scenes[:1], TIMES[:1], 64, 64)[0, 0].float().mean(-1)
    difference = lit[1] - lit[-1]
    assert difference[:, :28].mean() < -1 < 1 < difference[:, 36:].mean()


@pytest.mark.parametrize("name", ["camera", "ground", "light", "weather"])
def test_every_value_looks_different(name):
    values = {"camera": CAMERAS, "ground": GROUNDS, "light": LIGHTS, "weather": WEATHERS}[name]
    clips = render([alone(**{name: value}) for value in values], TIMES[::4], 32, 32).float()
    apart = torch.cdist(clips.flatten(1), clips.flatten(1)) / clips[0].numel() ** 0.5
    assert (apart + 1e3 * torch.eye(len(values))).min() > 4, apart


# Captions


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


# Files


SMALL = Size(frames=3, height=16, width=24, fps=12)


@pytest.mark.parametrize("write", [write_folder, write_shards])
def test_written_clips_are_read_as_ordinary_data(tmp_path, write):
    clips = ToyClips(3, SMALL, seed=5)
    write(clips, tmp_path / "out")
    data = ClipDataset(DataConfig(tmp_path / "out", frames=3, height=16, width=24))
    assert len(data) == 3 and data.fates.as_is == 3 and data.fps == 12
    assert data.captions(1)[0] == draw_captions(draw_scene(5, 1), 5, 1)[0].text
    assert len(data.captions(1)) == 4
    difference = np.abs(data.clip(1).numpy().astype(int) - clips.frames(1))
    assert difference.mean() < 6  # H.264


def test_a_second_run_goes_on_and_other_settings_are_refused(tmp_path):
    out = tmp_path / "out"
    write_folder(ToyClips(2, SMALL), out)
    (out / "00000001.json").unlink()
    before = (out / "00000000.mp4").stat().st_mtime_ns
    write_folder(ToyClips(2, SMALL), out)
    assert (out / "00000001.json").is_file()
    assert (out / "00000000.mp4").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="other settings"):
        write_folder(ToyClips(2, SMALL, seed=1), out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        write_shards(ToyClips(2, SMALL), tmp_path / "mine")


def test_shards_come_with_a_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr("vidiff.data.toyworld.write.CLIPS_A_SHARD", 2)
    write_shards(ToyClips(3, SMALL), tmp_path)
    shards = json.loads((tmp_path / "MANIFEST.json").read_text())["shards"]
    assert {name: entry["samples"] for name, entry in shards.items()} == {
        "toyworld-00000.tar": 2,
        "toyworld-00001.tar": 1,
    }
    whole = (tmp_path / "toyworld-00000.tar").read_bytes()
    write_shards(ToyClips(3, SMALL), tmp_path / "again")
    assert (tmp_path / "again" / "toyworld-00000.tar").read_bytes() == whole


@pytest.mark.parametrize("size", [Size(0, 8, 8, 12), Size(3, 8, 8, 0), Size(10_000, 10_000, 1000, 12)])
def test_sizes_that_cannot_be_rendered_are_refused(size):
    with pytest.raises(ConfigError):
        ToyClips(1, size)
