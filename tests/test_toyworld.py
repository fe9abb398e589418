"""The toy world: which scenes there are, and how things and the camera move in them."""

import hashlib
import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.scenes import TIMES, alone, pair
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
from vidiff.data.toyworld.draw import draw_scene
from vidiff.data.toyworld.motion import HEADING, RADIUS, ROLLING, SPAN, poses
from vidiff.errors import ConfigError


def test_a_scene_is_a_function_of_seed_and_index():
    assert draw_scene(3, 17) == draw_scene(3, 17)
    assert len({draw_scene(3, index) for index in range(50)}) == 50
    assert draw_scene(3, 17) != draw_scene(4, 17)


def test_training_never_shows_a_held_out_pair_and_heldout_shows_nothing_else():
    assert not any(draw_scene(0, index).pairs() & HELD_OUT for index in range(300))
    assert all(draw_scene(0, index, heldout=True).pairs() & HELD_OUT for index in range(300))


def test_scenes_stay_the_ones_that_were_measured():
    texts = [repr(draw_scene(seed, index, True)) for seed in (0, 6, 77) for index in range(3000 if seed == 77 else 300)]
    assert hashlib.sha256("".join(texts).encode()).hexdigest()[:16] == "828cf1ceb6dec7d5"


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
@pytest.mark.parametrize(("shape", "axle"), [("cylinder", 1), ("torus", 2)])
def test_what_rolls_lies_across_its_way(shape, axle, motion):
    posed = poses(alone(motion, shape), TIMES)
    x, z = HEADING[motion]
    across = np.abs(posed.axes[:, 0, :, axle] @ np.array([z, 0.0, x]))
    np.testing.assert_allclose(across, 1, atol=1e-9)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_pose_does_not_depend_on_the_other_moments_asked_for(motion):
    for shape in ("sphere", "cylinder", "torus"):
        scene = pair(motion, None if motion == "orbit" else "left of") if motion != "right" else alone(motion)
        scene = replace(scene, objects=(replace(scene.objects[0], shape=shape), *scene.objects[1:]))
        whole, last = poses(scene, TIMES), poses(scene, TIMES[-1:])
        for name in ("center", "axes", "scale", "eye", "view"):
            np.testing.assert_array_equal(getattr(whole, name)[-1:], getattr(last, name))


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


def test_the_published_list_of_held_out_pairs_is_that_of_the_code():
    text = (Path(__file__).parents[1] / "docs" / "toyworld.md").read_text()
    found = {
        (first, a, second, b)
        for first, second, pairs in re.findall(r"\*\*(\w+) \+ (\w+)\*\*:\n((?:  .*\n)+)", text)
        for a, b in (pair.split(" + ") for pair in " ".join(pairs.split()).split(", "))
    }
    assert found == HELD_OUT
