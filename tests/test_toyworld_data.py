"""The toy world as training data."""

from dataclasses import replace

import pytest
import torch

from vidiff.data.clips import open_clips
from vidiff.data.toyworld.dataset import ToyWorldConfig
from vidiff.data.toyworld.draw import draw_captions, draw_scene
from vidiff.errors import ConfigError

CONFIG = ToyWorldConfig(clips=6, frames=3, height=16, width=16)


def test_clips_repeat_themselves_and_belong_to_their_captions():
    first, second = open_clips(CONFIG), open_clips(CONFIG)
    assert len(first) == 6 and first.fates.used == 6 and first.fps == 12 and first.groups() is None
    for index in range(3):
        assert torch.equal(first.clip(index), second.clip(index))
        captions = draw_captions(draw_scene(0, index), 0, index, 4)
        assert first.captions(index) == [caption.text for caption in captions]
    assert first.clip(0).shape == (3, 16, 16, 3) and first.clip(0).dtype == torch.uint8


def test_a_window_is_part_of_the_large_picture():
    data = open_clips(replace(CONFIG, pictures=(64, 16)))
    whole = open_clips(replace(CONFIG, height=64, width=64))
    window, picture = data.clip(0).int(), whole.clip(0).int()
    distances = [(picture[:, y : y + 16, x : x + 16] - window).abs().max() for y in range(49) for x in range(49)]
    assert min(distances) <= 1
    assert torch.equal(data.clip(1), open_clips(CONFIG).clip(1))  # pictures come in turn


@pytest.mark.parametrize("change", [{"frames": 4}, {"seed": 1}, {"heldout": True}, {"pictures": (32,)}, {"fps": 6.0}])
def test_whatever_changes_the_clips_changes_the_fingerprint(change):
    assert open_clips(replace(CONFIG, **change)).fingerprint != open_clips(CONFIG).fingerprint


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"fps": 0.0}, {"pictures": (8,)}, {"seed": -1}])
def test_impossible_worlds_are_refused(wrong):
    with pytest.raises(ConfigError):
        replace(CONFIG, **wrong)
