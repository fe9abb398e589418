"""The transformer of two levels: it begins as its coarse one, and a recipe can go on from there."""

from dataclasses import replace

import pytest
import torch

from vidiff import config
from vidiff.checkpoint import save_model
from vidiff.diffusion.guidance import Guidance, guided
from vidiff.errors import CheckpointError, ConfigError
from vidiff.model_folder import ModelConfig
from vidiff.models.build import build_backbone
from vidiff.models.dit import DiTConfig
from vidiff.models.two_level import TwoLevelDiT, TwoLevelDiTConfig
from vidiff.train.stage_runs import start_from
from vidiff.types import Conditioning, LatentSpec, TextEmbedding

COARSE = DiTConfig(patch_size=(1, 2, 2), dim=24, depth=2, num_heads=2, pooled_text=True, input_skip=True)
CONFIG = TwoLevelDiTConfig(coarse=COARSE, dim=12, depth=2, num_heads=2)


def inputs(batch=2, frames=3, first_frame=None):
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:batch]
    text = TextEmbedding(torch.randn(batch, 5, 16, generator=generator), mask)
    x = torch.randn(batch, 8, frames, 4, 6, generator=generator)
    return x, torch.linspace(0.2, 0.9, batch), Conditioning(text, first_frame)


def built(config=CONFIG):
    torch.manual_seed(0)
    return TwoLevelDiT(config, 8, 16)


def stirred(network):
    """Give every layer that starts at zero something to say."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


def test_what_the_text_becomes_is_made_once_a_run_and_changes_nothing():
    network = stirred(built())
    x, _, cond = inputs()
    null = cond.with_text(TextEmbedding(torch.zeros(2, 1, 16), torch.ones(2, 1, dtype=torch.bool)))
    calls = []
    for name, part in network.named_modules():
        if name.endswith(("text_projection", "cross_attention.key")):
            part.register_forward_hook(lambda *_, name=name: calls.append(name))

    def run(*conds):
        denoise = guided(lambda x, t, cond: network(x, t, cond), *conds, Guidance(scale=3.0, t_min=0.5))
        with torch.no_grad():  # two steps with guidance, two without
            return [denoise(x, torch.full((2,), at)) for at in (0.9, 0.7, 0.4, 0.2)]

    expected, made = run(cond, null), len(calls)
    found = run(*(one.with_text(one.text.keeping()) for one in (cond, null)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert made == 4 * 6 and len(calls) - made == 2 * 6  # of both texts together, and of one


def test_it_begins_as_its_coarse_level():
    network = built()
    x, t, cond = inputs()
    torch.nn.init.normal_(network.coarse.out.weight)
    assert torch.equal(network(x, t, cond), network.coarse(x, t, cond))


def test_the_fine_level_sees_single_latents():
    network = stirred(built())
    x, t, cond = inputs()
    moved = x.clone()
    moved[:, :, 0, 0, 0] += 1
    fine = [network(one, t, cond) - network.coarse(one, t, cond) for one in (x, moved)]
    change = (fine[0] - fine[1]).abs().sum(1)
    assert (change > 0).all()  # attention reaches every place and frame
    place = change.flatten(1).argmax(1)
    assert (place == 0).all()  # and the place itself the most


@pytest.mark.parametrize("batch", [1, 2])
def test_samples_do_not_touch_one_another(batch):
    network = stirred(built())
    x, t, cond = inputs()
    alone = network(x[:batch], t[:batch], Conditioning(TextEmbedding(cond.text.tokens[:batch], cond.text.mask[:batch])))
    assert torch.allclose(network(x, t, cond)[:batch], alone, atol=1e-5)


def test_hidden_text_and_the_first_frame_count():
    network = stirred(built())
    x, t, cond = inputs()
    tokens = cond.text.tokens.clone()
    tokens[1, 3:] = 9.0
    assert torch.allclose(network(x, t, cond), network(x, t, Conditioning(TextEmbedding(tokens, cond.text.mask))))
    later = Conditioning(cond.text, torch.tensor([2, 2]))
    assert not torch.allclose(network(x, t, cond), network(x, t, later), atol=1e-4)


def test_autocast_stays_near_full_precision():
    network = stirred(built())
    x, t, cond = inputs()
    full = network(x, t, cond)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(x, t, cond)
    assert (half - full).abs().mean() < 0.02 * full.abs().mean()


def test_the_union_builds_it():
    assert isinstance(build_backbone(CONFIG, LatentSpec(channels=8, stride=8, frame_stride=4), 16), TwoLevelDiT)


def test_patches_along_time_are_refused():
    with pytest.raises(ConfigError, match="must be 1 along time"):
        TwoLevelDiTConfig(coarse=DiTConfig(patch_size=(2, 2, 2)))


def test_a_stage_of_two_levels_goes_on_from_a_coarse_one_or_from_its_like(tmp_path):
    latents, settings = LatentSpec(8, 8, 4), {"text_dim": 16, "predicts": "x0"}
    x, t, cond = inputs()
    for name, backbone in (("coarse", COARSE), ("both", CONFIG)):
        earlier = ModelConfig(backbone=backbone, **settings)
        trained = stirred(earlier.denoiser(latents))
        save_model(tmp_path / name, config.to_dict(earlier), trained.state_dict())
        later = ModelConfig(backbone=CONFIG, **settings)
        started = later.denoiser(latents)
        start_from(tmp_path / name, started, later, latents)
        assert torch.equal(started(x, t, cond), trained(x, t, cond))
        assert torch.equal(started.null_tokens, trained.null_tokens)
    wide = ModelConfig(backbone=replace(CONFIG, coarse=replace(COARSE, depth=3)), **settings)
    with pytest.raises(CheckpointError):
        start_from(tmp_path / "coarse", wide.denoiser(latents), wide, latents)
