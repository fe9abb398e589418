"""The damage that metrics are validated by: none at strength 0, more with every strength."""

import numpy as np
import pytest
import torch

from tests.clips import frames
from tests.loaded import script

degradations = script("degradations")


def spoiled(way, strength):
    clips = [torch.from_numpy(frames(16, 32, 32, seed)) for seed in range(6)]
    made = [degradations.DEGRADATIONS[way](c, strength, np.random.default_rng(i)) for i, c in enumerate(clips)]
    return torch.stack(clips).float(), torch.stack(made)


@pytest.mark.parametrize("way", degradations.DEGRADATIONS)
def test_damage_starts_at_nothing_and_grows(way):
    clips, same = spoiled(way, 0)
    assert torch.equal(clips, same.float()) and same.dtype == torch.uint8
    errors = [(spoiled(way, strength)[1] - clips).square().mean() for strength in range(1, degradations.STRENGTHS + 1)]
    assert errors == sorted(errors) and 0 < errors[0] < errors[-1]


def test_a_shuffle_keeps_every_frame():
    for strength in (2, 5):
        clips, made = spoiled("frame shuffle", strength)
        for before, after in zip(clips, made, strict=True):
            assert sorted(f.sum().item() for f in before) == sorted(f.float().sum().item() for f in after)


def test_wrong_prompts_are_those_of_other_clips():
    prompts = [str(number) for number in range(20)]
    for strength in range(6):
        found = degradations.wrong_prompts(prompts, strength)
        assert sorted(found) == sorted(prompts)
        assert sum(a != b for a, b in zip(found, prompts, strict=True)) == 4 * strength
