"""`SpaceTimeDiT` against the reference implementation of Wan 2.1 in diffusers, with random weights."""

import re

import pytest
import torch
from torch import Tensor

from vidiff.errors import CheckpointError, ConfigError
from vidiff.interop import wan_transformer
from vidiff.models.dit import DiTConfig, SpaceTimeDiT
from vidiff.types import Conditioning, TextEmbedding

diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference")

SIZES = [
    dict(num_attention_heads=2, attention_head_dim=12, in_channels=4, text_dim=10, ffn_dim=40, num_layers=2),
    dict(num_attention_heads=3, attention_head_dim=22, in_channels=3, text_dim=7, ffn_dim=64, num_layers=3, eps=1e-5),
]
sizes = pytest.mark.parametrize("size", SIZES, ids=["2x12", "3x22"])


def reference(size: dict) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.WanTransformer3DModel(out_channels=size["in_channels"], **size).eval()
        for name, parameter in model.named_parameters():
            mean = 1.0 if re.search(r"norm\w*\.weight$", name) else 0.0
            torch.nn.init.normal_(parameter, mean, 0.2)
    return model


def ours(model: torch.nn.Module, weights: dict[str, Tensor]) -> SpaceTimeDiT:
    config, in_channels, text_dim = wan_transformer.config_from_diffusers(model.config)
    dit = SpaceTimeDiT(config, in_channels, text_dim).eval()
    dit.load_state_dict(wan_transformer.to_ours(weights))
    return dit


def native(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename diffusers' keys to those of the original release."""
    renames = [
        (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
        (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
        (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
        (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
        (r"^condition_embedder\.time_proj", "time_projection.1"),
        (r"^scale_shift_table", "head.modulation"),
        (r"^proj_out", "head.head"),
        (r"\.scale_shift_table", ".modulation"),
        (r"\.norm2\.", ".norm3."),
        (r"\.attn1\.", ".self_attn."),
        (r"\.attn2\.", ".cross_attn."),
        (r"\.to_([qkv])\.", r".\1."),
        (r"\.to_out\.0\.", ".o."),
        (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
        (r"\.ffn\.net\.2\.", ".ffn.2."),
    ]
    renamed = {}
    for key, value in weights.items():
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


@sizes
@pytest.mark.parametrize("grid", [(1, 4, 6), (3, 6, 4)], ids=["image", "clip"])
def test_outputs_equal_the_reference(size: dict, grid: tuple[int, int, int]):
    model = reference(size)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, size["in_channels"], *grid, generator=generator)
    tokens = torch.randn(2, 6, size["text_dim"], generator=generator)
    t = torch.tensor([0.137, 0.9])
    text = TextEmbedding(tokens, torch.ones(2, 6, dtype=torch.bool))
    with torch.no_grad():
        expected = model(x, 1000 * t, tokens).sample
        found = ours(model, model.state_dict())(x, t, Conditioning(text))
    assert (found - expected).abs().max() / expected.abs().max() < 1e-4


@sizes
def test_weights_return_to_diffusers_unchanged(size: dict):
    weights = reference(size).state_dict()
    back = wan_transformer.to_diffusers(wan_transformer.to_ours(weights))
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        assert torch.equal(back[key], value), key


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_original_names_give_the_same_weights(prefix: str):
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    weights = reference(SIZES[0]).state_dict()
    original = {prefix + key: value for key, value in native(weights).items()}
    converted = convert_wan_transformer_to_diffusers(dict(original))
    assert converted.keys() == weights.keys()  # so the names above are the real ones
    renamed, expected = wan_transformer.to_ours(original), wan_transformer.to_ours(weights)
    assert renamed.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(renamed[key], value), key


def test_weights_of_another_model_are_refused_by_name():
    with pytest.raises(CheckpointError, match=r"no counterpart for vace_blocks\.0\.proj_in\.weight"):
        wan_transformer.to_ours({"vace_blocks.0.proj_in.weight": torch.zeros(1)})
    factorized = SpaceTimeDiT(DiTConfig(dim=12, depth=1, num_heads=1, attention="factorized"), 2, 3)
    with pytest.raises(CheckpointError, match="time_attention"):
        wan_transformer.to_diffusers(factorized.state_dict())


@pytest.mark.parametrize("change", [{"image_dim": 1280}, {"out_channels": 5}, {"freq_dim": 128}, {"qk_norm": None}])
def test_configs_of_other_kinds_are_refused(change: dict):
    config = dict(reference(SIZES[0]).config) | change
    with pytest.raises(ConfigError, match="text-to-video"):
        wan_transformer.config_from_diffusers(config)


IMAGE = SIZES[0] | dict(in_channels=10, image_dim=14, added_kv_proj_dim=24)


def image_to_video() -> torch.nn.Module:
    size = {key: value for key, value in IMAGE.items() if key != "in_channels"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.WanTransformer3DModel(in_channels=10, out_channels=4, **size).eval()
        for name, parameter in model.named_parameters():
            mean = 1.0 if re.search(r"norm\w*\.weight$", name) else 0.0
            torch.nn.init.normal_(parameter, mean, 0.2)
    return model


def test_a_picture_is_seen_as_by_the_reference():
    model, generator = image_to_video(), torch.Generator().manual_seed(1)
    x, concat = torch.randn(2, 4, 3, 4, 6, generator=generator), torch.randn(2, 6, 3, 4, 6, generator=generator)
    # The reference tells the picture's states from the text's by a length of 512.
    tokens, image = torch.randn(2, 512, 10, generator=generator), torch.randn(2, 9, 14, generator=generator)
    t = torch.tensor([0.137, 0.9])
    text = TextEmbedding(tokens, torch.ones(2, 512, dtype=torch.bool))
    dit = ours(model, model.state_dict())
    with torch.no_grad():
        expected = model(torch.cat([x, concat], 1), 1000 * t, tokens, image).sample
        found = dit(x, t, Conditioning(text, concat=concat, image=image))
    assert (found - expected).abs().max() / expected.abs().max() < 1e-4
    back = wan_transformer.to_diffusers(dit.state_dict())
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="--image"):
        dit(x, t, Conditioning(text))


def test_known_frames_are_told_their_own_time_as_in_the_reference():
    model, generator = reference(SIZES[0]), torch.Generator().manual_seed(1)
    x, tokens = torch.randn(2, 4, 3, 4, 6, generator=generator), torch.randn(2, 6, 10, generator=generator)
    t = torch.tensor([0.137, 0.9])
    times = (1000 * t)[:, None] * torch.tensor([0.0] * 6 + [1.0] * 12)
    text = TextEmbedding(tokens, torch.ones(2, 6, dtype=torch.bool))
    with torch.no_grad():
        expected = model(x, times, tokens).sample
        found = ours(model, model.state_dict())(x, t, Conditioning(text, known=x[:, :, :1]))
    assert (found - expected).abs().max() / expected.abs().max() < 1e-4


@pytest.mark.parametrize("model", [reference(SIZES[1]), image_to_video()], ids=["text", "image"])
def test_configs_return_to_diffusers(model: torch.nn.Module):
    back = wan_transformer.config_to_diffusers(*wan_transformer.config_from_diffusers(model.config))
    again = diffusers.WanTransformer3DModel.from_config(back)
    assert {key: tuple(value.shape) for key, value in again.state_dict().items()} == {
        key: tuple(value.shape) for key, value in model.state_dict().items()
    }
    assert wan_transformer.config_from_diffusers(back) == wan_transformer.config_from_diffusers(model.config)
    with pytest.raises(ConfigError, match="no place for attention: factorized"):
        wan_transformer.config_to_diffusers(DiTConfig(dim=12, num_heads=1, attention="factorized"), 4, 8)
