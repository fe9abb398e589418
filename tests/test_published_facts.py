"""The published models in full size, on the meta device: every name and shape has its place."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from tests.published import diffusers
from vidiff.diffusers_folder import folder_hash
from vidiff.diffusion.schedule import FlowSchedule
from vidiff.interop import wan_transformer
from vidiff.interop.wan_published import MANY_PIXELS, PUBLISHED, published
from vidiff.model_folder import ModelConfig, SamplingConfig
from vidiff.models.dit import SpaceTimeDiT
from vidiff.sampling.times import FlowSpacing
from vidiff.types import Size

FACTS = json.loads((Path(__file__).parent / "data" / "wan_transformers.json").read_text())["transformers"]


@pytest.mark.parametrize("fact", FACTS, ids=[fact["name"] for fact in FACTS])
def test_every_tensor_of_a_published_transformer_has_its_place(fact):
    config, channels, text_dim = wan_transformer.config_from_diffusers(fact["config"])
    with torch.device("meta"):
        ours = SpaceTimeDiT(config, channels, text_dim).state_dict()
        theirs = diffusers.WanTransformer3DModel(**fact["config"]).state_dict()
    named = wan_transformer.to_diffusers(ours, config.patch_size)
    assert {name: tensor.shape for name, tensor in named.items()} == {
        name: tensor.shape for name, tensor in theirs.items() if not name.endswith(wan_transformer.UNUSED)
    }
    assert len(theirs) == fact["tensors"]
    assert sum(tensor.numel() for tensor in named.values()) / 1e9 == pytest.approx(fact["billions"], abs=6e-4)
    back = wan_transformer.to_ours(theirs)
    assert back.keys() == ours.keys()


@pytest.mark.parametrize("fact", FACTS, ids=[fact["name"] for fact in FACTS])
def test_published_settings_are_found_by_shape(fact):
    config, channels, _ = wan_transformer.config_from_diffusers(fact["config"])
    found = published(config, channels, fact["boundary"])
    assert found is not None and (found.name, found.hub) == (fact["name"], fact["hub"])
    assert config.hidden_dim == found.ffn_dim and found.params == pytest.approx(fact["billions"], abs=6e-4)


def test_every_published_setting_has_its_facts():
    assert [one.name for one in PUBLISHED] == [fact["name"] for fact in FACTS]


def test_the_published_text_encoder_is_as_large_as_it_should_be():
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    assert sum(one.numel() for one in model.parameters()) / 1e9 == pytest.approx(5.681, abs=6e-4)


FLOW = dict(prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000)
SCHEDULERS = {
    "reference": lambda shift: diffusers.UniPCMultistepScheduler(flow_shift=shift, **FLOW),
    "native": lambda shift: diffusers.DPMSolverMultistepScheduler(flow_shift=shift, **FLOW),
    "euler": lambda shift: diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
    "even": lambda shift: diffusers.FlowMapEulerDiscreteScheduler(shift=shift),
}


@pytest.mark.parametrize("grid", SCHEDULERS)
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 4, 25, 50])
def test_steps_are_those_of_the_reference(grid, shift, steps):
    scheduler = SCHEDULERS[grid](shift)
    scheduler.set_timesteps(steps)
    found = FlowSpacing(shift=shift, grid=grid).times(FlowSchedule(), steps)
    torch.testing.assert_close(found, scheduler.sigmas.double(), atol=2e-7, rtol=0)
    if grid in ("reference", "native"):  # the network is told whole steps
        assert torch.equal((found[:-1] * 1000).floor().long(), scheduler.timesteps)


def test_the_published_grid_ends_where_it_is_said_to():
    native, reference = (
        FlowSpacing(shift=5.0, grid=grid).times(FlowSchedule(), 50) for grid in ("native", "reference")
    )
    assert (1000 * native).floor().long().tolist()[:4] == [999, 995, 991, 987]
    assert (1000 * native).floor().long().tolist()[-4:] == [241, 172, 92, 0]
    assert (1000 * reference).floor().long().tolist()[-4:] == [244, 175, 96, 0]


def test_large_frames_have_the_shift_that_was_published_for_them():
    own = SamplingConfig(spacing=FlowSpacing(shift=3.0))
    config = ModelConfig(sampling=own, large_shift=(MANY_PIXELS, 5.0))
    small, large = Size(81, 480, 832, 16.0), Size(81, 720, 1280, 16.0)
    assert config.sized(own, small) == own
    assert config.sized(own, large).spacing == FlowSpacing(shift=5.0)
    chosen = SamplingConfig(spacing=FlowSpacing(shift=8.0))
    assert config.sized(chosen, large) == chosen  # what someone has set stays


def test_files_that_a_hub_names_by_their_hash_are_not_read_for_it(tmp_path, monkeypatch):
    data = b"weights"
    name = hashlib.sha256(data).hexdigest()
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.safetensors").write_bytes(data)
    (tmp_path / name).write_bytes(data)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.safetensors").symlink_to(tmp_path / name)
    expected = folder_hash(tmp_path / "plain")
    monkeypatch.setattr("vidiff.diffusers_folder.sha256_of", None)
    assert folder_hash(tmp_path / "snapshot") == expected
