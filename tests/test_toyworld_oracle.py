"""The toy world's meter: right about the truth, not to be fooled."""

import numpy as np
import pytest

from vidiff.data.toyworld.attributes import Layout, Scene, Thing, value_of
from vidiff.data.toyworld.captions import caption
from vidiff.data.toyworld.draw import draw_captions, draw_scene
from vidiff.data.toyworld.render import render
from vidiff.errors import ConfigError, DataError
from vidiff.metrics.toyworld_oracle import accuracy, centroid_track, color_share, judge

FPS, COUNT = 12, 4
SCENES = [draw_scene(5, index) for index in range(COUNT)]
STATED = [draw_captions(scene, 5, index)[0].stated for index, scene in enumerate(SCENES)]


def rendered(scene, frames=17):
    return render([scene], np.arange(frames) / FPS, 64, 64)[0].numpy()


@pytest.fixture(scope="module")
def clips():
    return [rendered(scene) for scene in SCENES]


def score(clips):
    return accuracy([judge(c, FPS, s, said) for c, s, said in zip(clips, SCENES, STATED, strict=False)])


def test_ground_truth_is_right(clips):
    found = score(clips)
    assert found["mean"] >= 0.98 and found["psnr"] > 30


def test_held_out_pairs_and_two_objects_are_measured_as_well():
    scene, index = next((s, i) for i in range(99) if len((s := draw_scene(6, i, heldout=True)).objects) == 2)
    said = draw_captions(scene, 6, index)[0].stated
    assert all(judge(rendered(scene), FPS, scene, said).followed.values())


def test_compression_and_noise_do_not_matter(clips):
    rng = np.random.default_rng(0)
    noisy = [np.clip(clip + rng.normal(0, 8, clip.shape), 0, 255).astype(np.uint8) for clip in clips[:2]]
    assert score(noisy)["mean"] >= 0.98


def test_other_clips_are_at_chance(clips):
    # Chance is about 0.25: between 1 in 14 (motion) and 1 in 2 (size, material).
    assert score([*clips[1:], clips[0]])["mean"] < 0.5


def test_noise_shows_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)
    assert score([noise])["mean"] == 0


MOVING = Scene(
    (Thing("cube", "blue", "large", "matte", "right"),), camera="pan left", ground="checkerboard", layout=Layout()
)
MOVES = {"motion.0": "right", "camera": "pan left"}
ATTACKS = {
    "frozen": lambda clip: np.repeat(clip[:1], 17, 0),
    "shuffled": lambda clip: clip[np.random.default_rng(1).permutation(17)],
    "looped": lambda clip: np.concatenate([clip[:9], clip[:8]]),
    "reversed": lambda clip: clip[::-1].copy(),
}


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_a_clip_whose_frames_were_tampered_with_does_not_move_as_asked(attack):
    clip = rendered(MOVING)
    verdict = judge(ATTACKS[attack](clip), FPS, MOVING, MOVES)
    assert not any(verdict.followed.values()), verdict.followed


def test_a_blend_of_two_clips_shows_neither_whole(clips):
    blend = ((clips[0].astype(int) + clips[1]) // 2).astype(np.uint8)
    assert score([blend, blend])["all_right"] < 1 and score([blend, blend])["mean"] < 0.75


def test_the_search_does_not_start_at_the_answer():
    """Asked for the wrong thing, it finds the right one."""
    truth = Scene((Thing("sphere", "red", "large", "matte", "left"),), ground="sand", light="day")
    asked = Scene((Thing("cube", "green", "small", "matte", "jump"),), ground="snow", light="night", camera="arc")
    said = caption(asked, np.random.default_rng(0)).stated
    verdict = judge(rendered(truth), FPS, asked, said)
    assert not any(verdict.followed.values())
    for name, value in (("shape.0", "sphere"), ("color.0", "red"), ("motion.0", "left"), ("ground", "sand")):
        assert value_of(verdict.scene, name) == value
    assert (verdict.scene.light, verdict.scene.camera) == ("day", "still")


def test_an_orbit_can_be_told_from_other_motions():
    things = (Thing("sphere", "red", "small", motion="orbit"), Thing("cube", "blue", "small"))
    orbit = Scene(things, ground="sand")
    still = Scene((Thing("sphere", "red", "small"), things[1]), "left of", ground="sand")
    said = {"motion.0": "orbit"}
    assert judge(rendered(orbit), FPS, orbit, said).followed == {"motion.0": True}
    assert judge(rendered(still), FPS, orbit, said).followed == {"motion.0": False}


def test_what_is_not_a_clip_is_refused():
    with pytest.raises(DataError, match="uint8"):
        judge(np.zeros((3, 8, 8, 3)), FPS, SCENES[0], {})


def test_pixels_of_a_color_are_counted_and_followed():
    clip = rendered(Scene((Thing("sphere", "red", "large", motion="right"),), ground="stone"))
    share, track = color_share(clip, "red"), centroid_track(clip, "red")
    assert (share > 0.02).all() and color_share(clip, "green").max() < 0.01
    assert (np.diff(track[:, 0]) > 0).all() and track[-1, 0] - track[0, 0] > 0.6
    assert np.abs(np.diff(track[:, 1])).max() < 0.05
    assert np.isnan(centroid_track(np.zeros((2, 8, 8, 3), np.uint8), "red")).all()
    for color in ("white", "redd"):
        with pytest.raises(ConfigError, match=rf"'{color}' cannot be told .* Use one of red, "):
            color_share(clip, color)
