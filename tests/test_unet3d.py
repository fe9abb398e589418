"""The factorized 3D U-Net."""

from dataclasses import replace

import pytest
import torch

from vidiff.errors import ConfigError
from vidiff.models.unet3d import UNet3D, UNet3DConfig
from vidiff.types import Conditioning, TextEmbedding

SMALL = UNet3DConfig(dim=16, dim_mult=(1, 2), num_res_blocks=1, num_heads=2)
VARIANTS = [
    SMALL,
    replace(SMALL, dim_mult=(1, 2, 2), attention=(0, 2), cross_attention=(1,)),
    replace(SMALL, pooled_text=False, input_skip=False),
    replace(SMALL, low_res=True),
]
named = pytest.mark.parametrize("config", VARIANTS, ids=["plain", "deep", "bare", "low_res"])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def built(config, trained=True):
    """A network; ``trained`` ones have no zero layers left."""
    torch.manual_seed(0)
    network = UNet3D(config, 4, 8).eval()
    if trained:
        with torch.no_grad():
            for index, parameter in enumerate(network.parameters()):
                if not parameter.any():
                    parameter.copy_(0.1 * drawn(*parameter.shape, seed=index))
    return network


def conditioning(config, x, seed=5, **more):
    b = x.shape[0]
    mask = torch.ones(b, 6, dtype=torch.bool)
    mask[:, 4:] = False
    low = {"low_res": drawn(*x.shape, seed=7), "low_res_t": torch.full((b,), 0.2)} if config.low_res else {}
    return Conditioning(TextEmbedding(drawn(b, 6, 8, seed=seed), mask), **low, **more)


@named
@pytest.mark.parametrize("size", [(1, 8, 8), (3, 8, 8), (2, 7, 9), (5, 4, 11), (1, 1, 1)])
@torch.no_grad()
def test_any_size_works(config, size):
    x = drawn(2, 4, *size)
    out = built(config)(x, torch.tensor([0.3, 0.9]), conditioning(config, x))
    assert out.shape == x.shape and out.dtype == x.dtype and out.std() > 0.01


@named
@torch.no_grad()
def test_an_untrained_temporal_layer_changes_nothing(config):
    network = built(config)
    for block in network.modules():
        for name in ("time_conv", "time"):
            layer = getattr(block, name, None)
            if layer is not None:
                for parameter in getattr(layer, "out", layer).parameters():
                    parameter.zero_()
    x, t = drawn(1, 4, 3, 6, 6), torch.tensor([0.4])
    cond = conditioning(config, x)
    whole = network(x, t, cond)
    for k in range(3):
        low = None if cond.low_res is None else cond.low_res[:, :, k : k + 1]
        alone = network(x[:, :, k : k + 1], t, replace(cond, low_res=low))
        torch.testing.assert_close(whole[:, :, k : k + 1], alone, atol=1e-5, rtol=1e-5)


def test_temporal_layers_start_at_zero():
    network = built(SMALL, trained=False)
    temporal = [p for name, p in network.named_parameters() if "time_conv" in name or "time.out" in name]
    assert len(temporal) > 6 and not any(p.any() for p in temporal)
    assert any(p.any() for name, p in network.named_parameters() if "time.query" in name)


@torch.no_grad()
def test_masked_text_has_no_effect_and_real_text_has():
    for config in VARIANTS:
        network, x, t = built(config), drawn(1, 4, 2, 6, 6), torch.tensor([0.5])
        cond = conditioning(config, x)
        changed = cond.text.tokens.clone()
        changed[:, 4:] = 9.0
        same = network(x, t, cond.with_text(TextEmbedding(changed, cond.text.mask)))
        torch.testing.assert_close(same, network(x, t, cond), atol=1e-6, rtol=1e-6)
        changed[:, 1] = 9.0
        other = network(x, t, cond.with_text(TextEmbedding(changed, cond.text.mask)))
        assert (other - same).abs().max() > 1e-3


@torch.no_grad()
def test_time_and_noise_level_of_the_low_resolution_clip_are_told():
    config = VARIANTS[3]
    network, x = built(config), drawn(1, 4, 2, 6, 6)
    cond = conditioning(config, x)
    out = network(x, torch.tensor([0.2]), cond)
    assert (network(x, torch.tensor([0.8]), cond) - out).abs().max() > 1e-3
    assert (network(x, torch.tensor([0.2]), replace(cond, low_res_t=torch.tensor([0.0]))) - out).abs().max() > 1e-3
    assert (network(x, torch.tensor([0.2]), replace(cond, low_res=0 * x)) - out).abs().max() > 1e-3


def test_every_frame_reaches_every_other():
    network = built(SMALL)
    x = drawn(1, 4, 6, 4, 4).requires_grad_()
    for k in (0, 5):
        (gradient,) = torch.autograd.grad(network(x, torch.tensor([0.5]), conditioning(SMALL, x))[:, :, k].sum(), x)
        assert (gradient.abs().amax((0, 1, 3, 4)) > 0).all()


@torch.no_grad()
def test_the_first_frames_place_matters_only_through_time():
    network, t = built(SMALL), torch.tensor([0.5])
    x = drawn(1, 4, 3, 4, 4)
    at_zero = network(x, t, conditioning(SMALL, x))
    explicit = network(x, t, conditioning(SMALL, x, first_frame=torch.tensor([0])))
    torch.testing.assert_close(at_zero, explicit)
    # Rotary positions are relative: a clip that starts later is denoised alike.
    later = network(x, t, conditioning(SMALL, x, first_frame=torch.tensor([4])))
    torch.testing.assert_close(at_zero, later, atol=1e-5, rtol=1e-4)


@named
@torch.no_grad()
def test_a_batch_equals_its_samples(config):
    network, x, t = built(config), drawn(3, 4, 2, 5, 6), torch.tensor([0.1, 0.5, 0.9])
    cond = conditioning(config, x)
    whole = network(x, t, cond)
    for i in range(3):
        one = {
            name: None if v is None else v[i : i + 1]
            for name, v in (("low_res", cond.low_res), ("low_res_t", cond.low_res_t))
        }
        text = TextEmbedding(cond.text.tokens[i : i + 1], cond.text.mask[i : i + 1])
        alone = network(x[i : i + 1], t[i : i + 1], Conditioning(text, **one))
        torch.testing.assert_close(whole[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_changes_no_number():
    x, t = drawn(1, 4, 2, 4, 4), torch.tensor([0.5])
    gradients = []
    for flag in (False, True):
        network = built(replace(SMALL, gradient_checkpointing=flag))
        network(x, t, conditioning(SMALL, x)).square().sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(network.parameters()))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_it_learns():
    network = built(SMALL, trained=False).train()
    x, wanted, t = drawn(2, 4, 3, 4, 4), drawn(2, 4, 3, 4, 4, seed=9), torch.tensor([0.3, 0.6])
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = (network(x, t, conditioning(SMALL, x)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@torch.no_grad()
def test_a_low_resolution_clip_must_come_where_it_is_expected_and_nowhere_else():
    x, t = drawn(1, 4, 2, 4, 4), torch.tensor([0.5])
    for config, other in ((SMALL, VARIANTS[3]), (VARIANTS[3], SMALL)):
        with pytest.raises(ConfigError, match="low_res"):
            built(config)(x, t, conditioning(other, x))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"dim": 0}, "dim must be"),
        ({"dim": 20, "num_heads": 4}, "try 16"),
        ({"dim_mult": ()}, "dim_mult"),
        ({"attention": (2,)}, "levels 0 to 1"),
        ({"num_res_blocks": 0}, "num_res_blocks"),
    ],
)
def test_impossible_shapes_are_refused(wrong, word):
    with pytest.raises(ConfigError, match=word):
        replace(SMALL, **wrong)
