"""Experts over time: who works when, and that they train like any other backbone."""

import pytest
import torch

from vidiff.errors import ConfigError
from vidiff.models.build import build_backbone, check_skippable
from vidiff.models.dit import DiTConfig
from vidiff.models.experts import Experts, ExpertsConfig
from vidiff.types import Conditioning, LatentSpec, TextEmbedding

DIT = DiTConfig(dim=24, depth=2, num_heads=2)
THREE = ExpertsConfig(expert=DIT, boundaries=(0.9, 0.4))


def backbone(config=THREE):
    torch.manual_seed(0)
    found = build_backbone(config, LatentSpec(3, 8, 4), 5)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return found


def condition(count):
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(count, 4, dtype=torch.bool)
    return Conditioning(
        TextEmbedding(torch.randn(count, 4, 5, generator=generator), mask), first_frame=torch.arange(count)
    )


def test_each_sample_goes_to_the_expert_of_its_time():
    found = backbone()
    times = torch.tensor([1.0, 0.9, 0.89, 0.4, 0.39, 0.0])
    assert found.expert_at(times).tolist() == [0, 0, 1, 1, 2, 2]
    x = torch.randn(6, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    cond = condition(6)
    with torch.no_grad():
        together = found(x, times, cond)
        for row, number in enumerate([0, 0, 1, 1, 2, 2]):
            one = torch.tensor([row])
            alone = found.experts[number](x[one], times[one], cond.of(one))
            torch.testing.assert_close(together[one], alone, atol=2e-5, rtol=1e-4)
        same = found(x[:2], times[:2], cond.of(torch.tensor([0, 1])))
    torch.testing.assert_close(same, together[:2], atol=2e-5, rtol=1e-4)


def test_every_expert_learns_from_its_own_times_only():
    found = backbone(ExpertsConfig(expert=DIT, boundaries=(0.5,)))
    x = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found(x, torch.tensor([0.2, 0.3]), condition(2)).square().mean().backward()
    assert all(parameter.grad is None for parameter in found.experts[0].parameters())
    assert any(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in found.experts[1].parameters()
    )


@pytest.mark.parametrize("boundaries", [(), (0.4, 0.9), (1.0,), (0.0,), (0.5, 0.5)])
def test_boundaries_that_make_no_sense_are_refused(boundaries):
    with pytest.raises(ConfigError, match="falling times"):
        ExpertsConfig(boundaries=boundaries)


def test_blocks_to_skip_are_those_of_one_expert():
    check_skippable(THREE, (1,))
    with pytest.raises(ConfigError, match="blocks 0 to 1"):
        check_skippable(THREE, (2,))
    assert isinstance(backbone(), Experts)
