"""The toy world's pictures: shapes, patterns, light and the renderer."""

import numpy as np
import pytest
import torch

from tests.scenes import TIMES, alone
from vidiff.data.toyworld.attributes import (
    CAMERAS,
    COLORS,
    GROUNDS,
    LIGHTS,
    SHAPES,
    WEATHERS,
    Layout,
    Scene,
    Thing,
)
from vidiff.data.toyworld.draw import draw_scene
from vidiff.data.toyworld.light import OBJECT_COLORS, display, linear
from vidiff.data.toyworld.motion import STANDING
from vidiff.data.toyworld.render import Window, render
from vidiff.data.toyworld.shapes import BOUNDS, SIGNED_DISTANCE, normals
from vidiff.data.toyworld.textures import LEVELS, ground_volume, sky_and_weather


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


def test_rendering_repeats_itself_bit_for_bit_and_knows_no_neighbors():
    scenes = [draw_scene(0, index) for index in range(4)]
    whole = render(scenes, TIMES[:5], 32, 48)
    assert whole.shape == (4, 5, 32, 48, 3) and whole.dtype == torch.uint8
    assert torch.equal(whole, render(scenes, TIMES[:5], 32, 48))
    assert torch.equal(whole[2:3, 3:5], render(scenes[2:3], TIMES[3:5], 32, 48))


def test_one_moment_of_what_rolls_is_the_frame_of_the_clip():
    scene = alone("away", "cylinder")
    assert torch.equal(render([scene], TIMES, 64, 64)[:, -1:], render([scene], TIMES[-1:], 64, 64))


def test_the_inside_of_things_is_not_seen():
    things = (Thing("sphere", "red", "large", motion="grow"),)
    inside = render([Scene(things, camera="dolly in", ground="sand")], np.array([6.0]), 32, 32)
    empty = render(
        [Scene((Thing(size="small", motion="rise"),), camera="dolly in", ground="sand")], np.array([6.0]), 32, 32
    )
    assert (inside.int() - empty.int()).abs().float().mean() < 40


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
