from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vidiff.errors import ConfigError
from vidiff.models.dit import Context, DiTConfig, SpaceTimeBlock, SpaceTimeDiT
from vidiff.models.embeddings import rotary_table, token_positions
from vidiff.types import Conditioning, TextEmbedding

SMALL = DiTConfig(dim=24, depth=2, num_heads=2, ffn_dim=32)
VARIANTS = [
    SMALL,
    replace(SMALL, attention="factorized"),
    replace(SMALL, modulation="block"),
    replace(SMALL, attention="factorized", modulation="block", positions="rope+absolute"),
    replace(SMALL, pooled_text=True, input_skip=True),
]
variants = pytest.mark.parametrize(
    "config", VARIANTS, ids=lambda c: f"{c.attention}-{c.modulation}-{c.positions}-pooled={c.pooled_text}"
)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def dit(config: DiTConfig, trained: bool = True) -> SpaceTimeDiT:
    """Return a small model, by default with random weights where a new one has zeros."""
    model = SpaceTimeDiT(config, in_channels=3, text_dim=5)
    if trained:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def condition(batch: int, first_frame: Tensor | None = None) -> Conditioning:
    mask = torch.arange(6)[None] < torch.tensor([4, 6])[:batch, None]
    return Conditioning(TextEmbedding(torch.randn(batch, 6, 5), mask), first_frame)


@variants
def test_output_has_the_shape_of_the_input_for_clips_and_images(config: DiTConfig):
    model = dit(config)
    for frames in (1, 3):
        x = torch.randn(2, 3, frames, 4, 6)
        y = model(x, torch.rand(2), condition(2))
        assert y.shape == x.shape
        assert y.isfinite().all()


@variants
def test_a_new_model_says_zero(config: DiTConfig):
    y = dit(config, trained=False)(torch.randn(2, 3, 2, 4, 4), torch.rand(2), condition(2))
    assert (y == 0).all()


@pytest.mark.parametrize("attention", ["full", "factorized"])
def test_a_new_block_with_its_own_projection_is_the_identity(attention: str):
    config = replace(SMALL, modulation="block", attention=attention)
    block = dit(config, trained=False).blocks[0]
    assert isinstance(block, SpaceTimeBlock)
    x = torch.randn(2, 12, 24)
    rotary = rotary_table(token_positions((3, 2, 2), x.device), config.head_dim)
    context = Context(torch.randn(2, 24), torch.randn(2, 6, 24), None, rotary, 3, torch.float32)
    assert torch.equal(block(x, context), x)


@variants
def test_every_frame_reaches_every_other(config: DiTConfig):
    model = dit(config)
    x = torch.randn(1, 3, 3, 4, 4, requires_grad=True)
    y = model(x, torch.tensor([0.5]), condition(1))
    for frame in range(3):
        (grad,) = torch.autograd.grad(y[:, :, frame].square().sum(), x, retain_graph=True)
        assert (grad.abs().sum(dim=(0, 1)) > 0).all()


@variants
def test_masked_text_has_no_effect_and_real_text_has(config: DiTConfig):
    model, x, t = dit(config), torch.randn(2, 3, 2, 4, 4), torch.rand(2)
    cond = condition(2)
    text = cond.text
    hidden = TextEmbedding(torch.where(text.mask[..., None], text.tokens, 100.0), text.mask)
    cut = TextEmbedding(text.tokens[:1, :4], text.mask[:1, :4])
    seen = TextEmbedding(text.tokens + text.mask[..., None], text.mask)
    y = model(x, t, cond)
    torch.testing.assert_close(model(x, t, cond.with_text(hidden)), y)
    torch.testing.assert_close(model(x[:1], t[:1], cond.with_text(cut)), y[:1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(x, t, cond.with_text(seen)), y, atol=1e-3)


def test_without_mask_text_the_padding_is_seen():
    model, x, t, cond = dit(replace(SMALL, mask_text=False)), torch.randn(1, 3, 2, 4, 4), torch.rand(1), condition(1)
    shown = cond.with_text(TextEmbedding(cond.text.tokens, torch.ones_like(cond.text.mask)))
    torch.testing.assert_close(model(x, t, cond), model(x, t, shown))
    assert not torch.allclose(model(x, t, cond), dit_like(model, mask_text=True)(x, t, cond), atol=1e-4)


def dit_like(model: SpaceTimeDiT, **changes: bool) -> SpaceTimeDiT:
    """Return a model with the same weights and another config."""
    other = SpaceTimeDiT(replace(model.config, **changes), in_channels=3, text_dim=5).eval()
    other.load_state_dict(model.state_dict())
    return other


@variants
def test_samples_of_a_batch_do_not_mix(config: DiTConfig):
    model, x, t, cond = dit(config), torch.randn(2, 3, 2, 4, 4), torch.rand(2), condition(2, torch.tensor([0, 3]))
    y = model(x, t, cond)
    for i in range(2):
        one = Conditioning(TextEmbedding(cond.text.tokens[i : i + 1], cond.text.mask[i : i + 1]), torch.tensor([3 * i]))
        torch.testing.assert_close(model(x[i : i + 1], t[i : i + 1], one), y[i : i + 1], rtol=1e-4, atol=1e-5)


def test_a_frame_cut_from_a_clip_keeps_its_absolute_position():
    # Without attention across frames the only thing that tells frames apart is their absolute position.
    model = dit(replace(SMALL, attention="factorized", positions="rope+absolute"))
    for block in model.blocks:
        torch.nn.init.zeros_(block.time_attention.out.weight)
        torch.nn.init.zeros_(block.time_attention.out.bias)
    x, t, cond = torch.randn(1, 3, 4, 4, 4), torch.rand(1), condition(1)
    clip = model(x, t, cond)
    for frame in range(4):
        alone = model(x[:, :, frame : frame + 1], t, replace(cond, first_frame=torch.tensor([frame])))
        torch.testing.assert_close(alone, clip[:, :, frame : frame + 1], rtol=1e-4, atol=1e-5)
    moved = model(x[:, :, 2:3], t, replace(cond, first_frame=torch.tensor([0])))
    assert not torch.allclose(moved, clip[:, :, 2:3], atol=1e-3)


def test_rotary_positions_alone_do_not_see_a_shift_of_the_whole_clip():
    model, x, t, cond = dit(SMALL), torch.randn(1, 3, 3, 4, 4), torch.rand(1), condition(1)
    shifted = model(x, t, replace(cond, first_frame=torch.tensor([7])))
    torch.testing.assert_close(shifted, model(x, t, cond), rtol=1e-3, atol=1e-4)


def test_the_order_of_frames_matters():
    model, x, t, cond = dit(SMALL), torch.randn(1, 3, 3, 4, 4), torch.rand(1), condition(1)
    assert not torch.allclose(model(x.flip(2), t, cond).flip(2), model(x, t, cond), atol=1e-3)


def test_for_images_factorized_attention_without_its_time_branch_is_full_attention():
    model, x, t, cond = (
        dit(replace(SMALL, attention="factorized")),
        torch.randn(2, 3, 1, 4, 4),
        torch.rand(2),
        condition(2),
    )
    full = dit(SMALL)
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith("time_projection"):
            value = torch.cat([value[: 3 * 24], value[6 * 24 :]])
        if key.startswith("blocks") and key.endswith("table"):
            value = torch.cat([value[:, :3], value[:, 6:]], dim=1)
        if ".time_attention." not in key:
            state[key] = value
    full.load_state_dict(state)
    for block in model.blocks:
        torch.nn.init.zeros_(block.time_attention.out.weight)
        torch.nn.init.zeros_(block.time_attention.out.bias)
    torch.testing.assert_close(model(x, t, cond), full(x, t, cond), rtol=1e-4, atol=1e-5)


@variants
def test_gradient_checkpointing_changes_no_gradient(config: DiTConfig):
    model, x, t, cond = dit(config), torch.randn(2, 3, 2, 4, 4), torch.rand(2), condition(2)
    gradients = []
    for checkpointed in (False, True):
        one = dit_like(model, gradient_checkpointing=checkpointed)
        one(x, t, cond).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in one.named_parameters()})
    for name, grad in gradients[0].items():
        assert grad is not None, name
        torch.testing.assert_close(gradients[1][name], grad, msg=name)


@variants
def test_bf16_autocast_stays_close_to_float32(config: DiTConfig):
    model, x, t, cond = dit(config), torch.randn(2, 3, 2, 4, 4), torch.rand(2), condition(2)
    exact = model(x, t, cond)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x, t, cond)
    assert rough.dtype == x.dtype
    assert (rough - exact).norm() / exact.norm() < 0.05


def test_bf16_weights_run_without_autocast():
    model = dit(SMALL).bfloat16()
    y = model(torch.randn(1, 3, 2, 4, 4), torch.rand(1), condition(1))
    assert y.isfinite().all()


@pytest.mark.parametrize(("size", "named"), [((2, 5, 4), "height"), ((2, 4, 3), "width")])
def test_a_size_that_patches_do_not_divide_is_refused_with_the_nearest(size: tuple[int, int, int], named: str):
    with pytest.raises(ConfigError, match=rf"latent {named} must be a multiple .* nearest that fits is 4"):
        dit(SMALL)(torch.randn(1, 3, *size), torch.rand(1), condition(1))


def test_patches_may_span_frames():
    model = dit(replace(SMALL, patch_size=(2, 2, 2)))
    assert model(torch.randn(1, 3, 4, 4, 4), torch.rand(1), condition(1)).shape == (1, 3, 4, 4, 4)
    with pytest.raises(ConfigError, match="latent frames must be a multiple"):
        model(torch.randn(1, 3, 3, 4, 4), torch.rand(1), condition(1))


def test_low_resolution_conditioning_is_refused():
    x = torch.randn(1, 3, 2, 4, 4)
    with pytest.raises(ConfigError, match="low_res"):
        dit(SMALL)(x, torch.rand(1), replace(condition(1), low_res=x))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dim": 25}, "try 24"),
        ({"num_heads": 5, "dim": 24}, "try 20"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"patch_size": (1, 0, 2)}, "patch_size"),
        ({"ffn_dim": 0}, "ffn_dim"),
    ],
)
def test_impossible_configs_are_refused(wrong: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **wrong)


def test_the_input_skip_multiplies_each_number_by_a_gain_of_the_time():
    model = dit(replace(SMALL, input_skip=True), trained=False)
    x, t, cond = torch.randn(2, 3, 2, 4, 4), torch.tensor([0.2, 0.8]), condition(2)
    assert torch.equal(model(x, t, cond), torch.zeros_like(x))
    torch.nn.init.ones_(model.skip_gain.bias)
    torch.testing.assert_close(model(x, t, cond), x)
    torch.nn.init.normal_(model.skip_gain.weight)
    gain = model(x, t, cond) / x
    patches = gain.unflatten(3, (2, 2)).unflatten(5, (2, 2))  # equal gains at equal places of every patch
    torch.testing.assert_close(patches, patches[:, :, :1, :1, :, :1].expand_as(patches), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(gain[0], gain[1])


@pytest.mark.parametrize("skip_text", [False, True])
def test_the_gain_follows_from_the_text_only_if_asked(skip_text):
    """Else guidance, which amplifies what differs with and without text, would amplify noise."""
    model = dit(replace(SMALL, input_skip=True, pooled_text=True, skip_text=skip_text))
    torch.nn.init.zeros_(model.out.weight)
    torch.nn.init.zeros_(model.out.bias)
    torch.nn.init.normal_(model.skip_gain.weight)
    torch.nn.init.normal_(model.pooled_projection.linear_2.weight)
    x, t, cond = torch.randn(1, 3, 2, 4, 4), torch.tensor([0.5]), condition(1)
    other = replace(cond, text=replace(cond.text, tokens=cond.text.tokens + 1))
    assert torch.equal(model(x, t, cond), model(x, t, other)) is not skip_text
